"""Published recipes: their nets have the published sizes, and their stages run on small pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nets.test_published import COSTS
from tests.projects import CLASSES, write_project
from tests.recipe.test_published import FILES, FOLDER, published_net, recipe_of, trainings
from tutelage.nets.published.nets import NETS
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.pipeline.run import run
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.train import TrainStage

# The nets


@cache
def made(settings: NetSettings) -> Segmentor:
    """Made on the meta device, where nothing is stored; Mix Transformers cannot be made there."""
    with torch.device("cpu" if "mit_b" in settings.encoder else "meta"):
        return Segmentor(settings, 19)


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def nets_of(*papers: str) -> list[NetSettings]:
    """The nets of some papers' recipes, without their first weights, each once."""
    found = {
        net.model_dump_json(): net
        for file in FILES
        if file.partition("/")[0] in papers
        for net in (one.model_copy(update={"weights": None}) for one in recipe_of(file).nets.values())
    }
    return list(found.values())


def test_every_net_can_be_made() -> None:
    papers = {file.partition("/")[0] for file in FILES}
    assert all(millions(made(net)) > 1 for net in nets_of(*papers))


def test_nets_of_cirkd_have_the_published_sizes() -> None:
    used = {published_net(net) for net in nets_of("cirkd")}
    assert used == set(COSTS)
    for name in used:
        assert millions(made(NETS[name])) == pytest.approx(COSTS[name][0], abs=0.006), name


def test_nets_of_trikd_have_the_published_sizes() -> None:
    """As counted from the published modules, without the heads that only train."""
    published = {
        "tiny_vit_11m_224.dist_in22k_ft_in1k": 18.31 - 0.017,
        "tiny_vit_21m_512.dist_in22k_ft_in1k": 29.13 - 0.025,
        "resnet101s": 71.72,
        "deit_base_distilled_patch16_384": 101.53,
    }
    found = {net.encoder: millions(made(net)) for net in nets_of("trikd")}
    assert found == pytest.approx(published, rel=0.004)


def test_encoders_of_bismap_have_the_published_sizes() -> None:
    found = {name: millions(made(net).encoder) for name, net in recipe_of("bismap/gta5").nets.items()}
    assert found == pytest.approx({"simclr_r152": 88.7, "imagenet_r101": 42.5, "simclr_r101": 42.5}, abs=0.5)


def test_deep_stems_are_the_published_ones() -> None:
    stemmed = [net for net in nets_of("unimatch", "cps") if net.encoder in ("resnet50s", "resnet101s")]
    assert stemmed
    for net in stemmed:
        stem = [module for module in made(net).encoder.modules() if isinstance(module, torch.nn.Conv2d)][:3]
        assert [(conv.out_channels, conv.kernel_size, conv.stride[0]) for conv in stem] == [
            (64, (3, 3), 2),
            (64, (3, 3), 1),
            (128, (3, 3), 1),
        ]


# Few labels


SMALL = "encoder: mobilenetv3_small_050, decoder: deeplabv3plus, width: 32"
VIEWS = {
    "tiny_11m": "{encoder: tiny_vit_5m_224, decoder: dual_frequency, width: 32, frequency: {centre: published}}",
    "resnet": "{encoder: resnet10t, decoder: dual_frequency, width: 32, frequency: {centre: published}}",
    "deit": "{encoder: vit_tiny_patch16_224, decoder: dual_frequency, width: 32, frequency: {neck: published}}",
}
DINO_TINY = "{encoder: vit_tiny_patch16_224, decoder: dpt, width: 16}"
FEW_LABELS_RUN = {
    "trikd/cityscapes": ("tiny_11m_1_8", VIEWS),
    "unimatch/cityscapes": ("r50_1_8", {"r50": f"{{{SMALL}}}"}),
    "unimatch_v2/cityscapes": ("dinov2_s_1_8", {"dinov2_s": DINO_TINY}),
    "cps/cityscapes_cutmix": ("r50_1_8", {"r50": f"{{{SMALL}}}"}),
    "mean_teacher/cityscapes": ("r50_1_8", {"r50": f"{{{SMALL}}}"}),
    "u2pl/cityscapes": ("r101_1_8", {"r101": f"{{{SMALL}, auxiliary: true}}"}),
}


def write_city(root: Path) -> None:
    """A Cityscapes of a few small pictures, in its layout, with all lists; unlabelled images have no masks."""
    draw = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"labeled": [], "unlabeled": []}
    for number in range(6):
        split = "val" if number > 4 else "train"
        place = f"{split}/ulm/ulm_00000{number}_000019"
        image, truth = f"leftImg8bit/{place}_leftImg8bit.png", f"gtFine/{place}_gtFine"
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(root / image)
        if split == "val" or number < 2:
            (root / truth).parent.mkdir(parents=True, exist_ok=True)
            mask = np.kron(draw.choice([7, 8, 11, 21, 23, 26], (8, 12)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(mask).save(root / f"{truth}_labelIds.png")
        if split == "train":
            lines["labeled" if number < 2 else "unlabeled"].append(f"{image} {truth}_labelTrainIds.png\n")
    for name in ("1_30", "1_16", "1_8", "1_4", "1_2"):
        for part, text in lines.items():
            (root / f"splits/{name}").mkdir(parents=True, exist_ok=True)
            (root / f"splits/{name}/{part}.txt").write_text("".join(text), encoding="utf-8")


@pytest.mark.parametrize("file", FEW_LABELS_RUN)
def test_a_training_on_few_labels_runs_on_small_pictures(file: str, tmp_path: Path) -> None:
    """The settings as they are, but small nets, crops and batches, and one step."""
    write_city(tmp_path / "cityscapes")
    stage, nets = FEW_LABELS_RUN[file]
    overrides = [
        f"data.cityscapes.root={tmp_path / 'cityscapes'}",
        f"out={tmp_path / 'runs'}",
        f"stages.{stage}.steps=1",
        f"stages.{stage}.precision=fp32",
        f"stages.{stage}.evaluate.protocol={{resize: corners}}",
        "run.threads=1",
        *(f"stages.{stage}.streams.{stream}.batch=2" for stream in ("labeled", "unlabeled")),
        *(f"stages.{stage}.streams.{stream}.augment.crop=[64, 64]" for stream in ("labeled", "unlabeled")),
        *(f"nets.{name}={net}" for name, net in nets.items()),
    ]
    outcome = run(load_recipe(FOLDER / f"{file}.yaml", overrides), only=[stage], quiet=True)
    assert outcome.artefacts[stage].manifest() is not None


# Two domains


def write_domains(root: Path) -> None:
    """A GTA5 and a Cityscapes of a few small pictures, in their layouts; the target's training images have no masks."""
    draw = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)

    def mask(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = np.kron(draw.choice([7, 8, 11, 21, 23, 26], (8, 12)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(ids).save(path)

    for number in range(4):
        picture(root / f"gta5/images/{number:05d}.png")
        mask(root / f"gta5/labels/{number:05d}.png")
        place = f"{'val' if number == 3 else 'train'}/ulm/ulm_00000{number}_000019"
        picture(root / f"cityscapes/leftImg8bit/{place}_leftImg8bit.png")
        if number == 3:
            mask(root / f"cityscapes/gtFine/{place}_gtFine_labelIds.png")


TWO_DOMAINS_RUN = {
    "cbst/gta5": ["source", "labels_0", "cbst_0", "cbst_labels_1", "cbst_1"],
    "fda/gta5": ["beta_01", "beta_05", "beta_09", "labels_1_01", "labels_1_05", "labels_1_09", "round_1_05"],
    "adaptsegnet/gta5": ["two_levels", "least_squares"],
    "minent/gta5": ["minent"],
}


@pytest.mark.parametrize("file", TWO_DOMAINS_RUN)
def test_stages_of_two_domains_run_on_small_pictures(file: str, tmp_path: Path) -> None:
    """The settings as they are, but a small net, small crops and one step."""
    write_domains(tmp_path)
    recipe, chosen = recipe_of(file), TWO_DOMAINS_RUN[file]
    overrides = [f"out={tmp_path / 'runs'}", "run.threads=1"]
    overrides += [f"data.{name}.root={tmp_path / name}" for name in ("gta5", "cityscapes")]
    for name, net in recipe.nets.items():
        small = f"encoder: mobilenetv3_small_050, decoder: {net.decoder}"
        overrides.append(f"nets.{name}={{{small}, auxiliary: {str(net.auxiliary).lower()}}}")
    for name in chosen:
        stage = recipe.stages[name]
        if isinstance(stage, TrainStage):
            overrides.append(f"stages.{name}.steps=1")
            overrides += [f"stages.{name}.streams.{s}.augment={{crop: [64, 64]}}" for s in stage.streams]
        elif isinstance(stage, AnnotateStage):
            overrides.append(f"stages.{name}.protocol={{resize: centers}}")
    outcome = run(load_recipe(FOLDER / f"{file}.yaml", overrides), only=chosen, quiet=True)
    for name in chosen:
        assert outcome.artefacts[name].manifest() is not None, name


def test_all_stages_of_pbal_run_on_small_pictures(tmp_path: Path) -> None:
    """The settings as they are, but small nets, crops and batches, and one step; source and target are the same."""
    write_project(tmp_path, "")
    trained = trainings(recipe_of("pbal/gta5"))
    city = f"{{root: {tmp_path / 'data'}, classes: [{', '.join(CLASSES)}], splits: %s}}"
    net = "{encoder: mobilenetv3_small_050, decoder: deeplabv3plus_pbal, width: 16}"
    overrides = [
        f"data.gta5={city % '{all: train.txt}'}",
        f"data.cityscapes={city % '{train: train.txt, val: val.txt}'}",
        f"out={tmp_path / 'runs'}",
        "run.threads=1",
        "run.weak_teacher=warn",
        *(f"nets.{name}={net}" for name in ("imagenet", "simclr")),
        *(f"stages.{name}.steps=1" for name in trained),
        *(f"stages.{name}.streams.{side}.batch=2" for name in trained for side in ("source", "target")),
        *(
            f"stages.{name}.streams.{side}.augment={{crop: [32, 48], flip: 0.5}}"
            for name in trained
            for side in ("source", "target")
        ),
    ]
    stages = [name for name in recipe_of("pbal/gta5").stages if name != "report"]
    outcome = run(load_recipe(FOLDER / "pbal/gta5.yaml", overrides), only=stages, quiet=True)
    assert all(outcome.artefacts[name].manifest() is not None for name in stages)
