"""Published semi-supervised recipes: each row of the published tables, for each of its lists, with its settings.

The tables are written from the specifications of the methods, not from the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.augmentation import AugmentSettings
from tutelage.data.catalogue import CatalogueSettings
from tutelage.data.folder import FolderSettings
from tutelage.data.settings import ColourSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.run import run
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published"
METHODS = ("trikd", "unimatch", "unimatch_v2", "fixmatch", "cps", "mean_teacher", "u2pl")
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for name in METHODS for path in (FOLDER / name).glob("*.yaml")
)

# List → labelled and unlabelled images.
CITY = {"1_16": (186, 2789), "1_8": (372, 2603), "1_4": (744, 2231), "1_2": (1488, 1487)}
FINE = {"92": (92, 10490), "183": (183, 10399), "366": (366, 10216), "732": (732, 9850), "1464": (1464, 9118)}
BLENDED = {"662": (662, 9920), "1323": (1323, 9259), "2646": (2646, 7936), "5291": (5291, 5291)}
SOME_BLENDED = {name: BLENDED[name] for name in ("662", "1323", "2646")}
COCO = {f"1_{d}": (ceil(118_287 / d), 118_287 - ceil(118_287 / d)) for d in (512, 256, 128, 64, 32)}
ADE = {f"1_{d}": (round(20_210 / d), 20_210 - round(20_210 / d)) for d in (64, 32, 16, 8)}

STRONG = ColourSettings(
    probability=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, grey=0.2, blur=0.5, blur_sigma=(0.1, 2.0)
)
WHOLE = Protocol(resize="corners")
PATCHES = Protocol(resize="corners", multiple=32)


def windows(size: int, stride: int, border: str, blend: str) -> Protocol:
    values = {"kind": "sliding", "window": (size, size), "stride": (stride, stride), "border": border, "blend": blend}
    return Protocol.model_validate({**values, "resize": "corners"})


@dataclass(frozen=True)
class Row:
    """A row: its lists, crop, GPUs times images, optimizer, epochs, and what its method is told."""

    lists: dict[str, tuple[int, int]]
    nets: tuple[str, ...]
    crop: int
    gpus: tuple[int, int]
    """GPUs, and images of each stream on each."""
    optimizer: tuple[str, float, float, float]
    """Kind, rate of heads, rate of the encoder, weight decay."""
    epochs: int | dict[str, int]
    method: str
    told: dict[str, Any]
    protocol: Protocol
    views: tuple[str, ...] = ()
    min_kept: int | None = None
    """OHEM's, per GPU; ``None``: cross-entropy."""
    divided: int = 1
    """By how much the published code divides its gradients once more: rate / this, weight decay x this."""
    longest: bool = False
    """Whether an epoch is a round of the longer list, in batches of all GPUs; else of the unlabelled one."""
    decays_all: bool = True
    lag: int = 0
    precision: str = "fp32"
    scale_steps: int | None = None

    def epoch(self, name: str) -> int:
        """Steps of an epoch: the sampler fills up so that GPUs have as many, the loader drops an incomplete batch."""
        labeled, unlabeled = self.lists[name]
        gpus, each = self.gpus
        return max(labeled, unlabeled) // (gpus * each) if self.longest else ceil(unlabeled / gpus) // each


R50, R101 = "resnet50s", "resnet101s"
DINO_S, DINO_B = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
TINY = ("tiny_vit_11m_224.dist_in22k_ft_in1k", "tiny_vit_21m_512.dist_in22k_ft_in1k")
STRONG2 = ("strong", "strong2")

V1: dict[str, Any] = {"method": "unimatch", "views": STRONG2, "lag": 1}
V1_VOC: dict[str, Any] = {
    **V1,
    "gpus": (4, 2),
    "optimizer": ("sgd", 0.01, 0.001, 1e-4),
    "epochs": 80,
    "told": {"threshold": 0.95, "cutmix": 0.5, "pseudo_labels": "student", "weight": 1.0},
    "protocol": WHOLE,
}
V2: dict[str, Any] = {"optimizer": ("adamw", 2e-4, 5e-6, 0.01), "lag": 1}
V2_TOLD = {"threshold": 0.95, "cutmix": 0.5, "decay": 0.996, "partner": "reversed", "weight": 1.0}
V2_OWN: dict[str, Any] = {
    **V2,
    "method": "unimatch_v2",
    "views": STRONG2,
    "told": {**V2_TOLD, "complementary_dropout": True},
}
CPS_EPOCHS = {"662": 32, "1323": 34, "2646": 40, "5291": 60}
CPS_CITY_EPOCHS = {"1_16": 128, "1_8": 137, "1_4": 160, "1_2": 240}
CPS: dict[str, Any] = {"nets": (R50, R101), "longest": True, "decays_all": False, "scale_steps": 7}
CPS_VOC: dict[str, Any] = {
    **CPS,
    "lists": BLENDED,
    "crop": 512,
    "gpus": (4, 2),
    "optimizer": ("sgd", 0.01, 0.01, 1e-4),
    "divided": 4,
    "epochs": CPS_EPOCHS,
    "protocol": windows(512, 342, "shifted", "logits"),
}
CPS_CITY: dict[str, Any] = {
    **CPS,
    "lists": CITY,
    "crop": 800,
    "gpus": (8, 1),
    "optimizer": ("sgd", 0.02, 0.02, 1e-4),
    "divided": 8,
    "epochs": CPS_CITY_EPOCHS,
    "min_kept": 50_000,
    "protocol": windows(800, 534, "shifted", "logits"),
}
MT_TOLD = {"weight": 100.0, "ramp_steps": 0, "decay": 0.99, "ramp_decay": False}
U2PL_TOLD = {
    "weight": 1.0,
    "keep_percent": 80.0,
    "alpha": 20.0,
    "low_rank": 3,
    "high_rank": 20,
    "delta_p": 0.3,
    "delta_n": 1.0,
    "temperature": 0.5,
    "dimensions": 256,
    "anchors": 256,
    "negatives_per_anchor": 50,
    "queue": 30_000,
    "queue_first": 50_000,
    "keys": None,
    "precision": "fp32",
    "mixing_probability": 0.5,
    "decay": 0.99,
    "negatives": "published",
    "indexing": "published",
    "onehot": "published",
}
U2PL: dict[str, Any] = {"nets": (R101,), "method": "u2pl"}
U2PL_VOC: dict[str, Any] = {
    **U2PL,
    "crop": 513,
    "gpus": (4, 4),
    "optimizer": ("sgd", 0.01, 0.001, 1e-4),
    "epochs": 80,
    "told": {**U2PL_TOLD, "weight_contrast": 1 / 4},
    "protocol": WHOLE,
}

ROWS: dict[str, Row] = {
    "trikd/cityscapes": Row(
        lists={"1_30": (100, 2875), **CITY},
        nets=TINY,
        crop=512,
        gpus=(4, 2),
        optimizer=("sgd", 0.005, 0.005, 1e-4),
        epochs=300,
        method="trikd",
        told={
            "student_weight": 1.0,
            "cnn_weight": 1.0,
            "vit_weight": 1.0,
            "cps_weight": 0.1,
            "cps_padding": True,
            "attention_weight": 0.5,
            "attention_resize": "published",
            "kl": "elements",
            "vit_schedule": "published",
            "cnn_optimizer": None,
            "vit_optimizer": None,
        },
        protocol=windows(512, 342, "shifted", "logits"),
        min_kept=200_000,
        lag=1,
        precision="fp16",
    ),
    "unimatch/cityscapes": Row(
        lists=CITY,
        nets=(R50, R101),
        crop=801,
        gpus=(4, 2),
        optimizer=("sgd", 0.005, 0.005, 1e-4),
        epochs=240,
        told={"threshold": 0.0, "cutmix": 0.5, "pseudo_labels": "student", "weight": 1.0},
        protocol=windows(801, 534, "truncated", "probabilities"),
        min_kept=200_000,
        **V1,
    ),
    "unimatch/voc": Row(lists=FINE, nets=(R50, R101), crop=321, **V1_VOC),
    "unimatch/voc_blended": Row(lists=SOME_BLENDED, nets=(R101,), crop=321, **V1_VOC),
    "unimatch/voc_blended_513": Row(lists=SOME_BLENDED, nets=(R50, R101), crop=513, **V1_VOC),
    "unimatch/coco": Row(
        lists=COCO,
        nets=("xception65.tf_in1k",),
        crop=513,
        **{**V1_VOC, "gpus": (8, 1), "optimizer": ("sgd", 0.04, 0.004, 1e-4), "epochs": 30},
    ),
    "unimatch_v2/voc": Row(
        lists=FINE, nets=(DINO_S, DINO_B), crop=518, gpus=(4, 4), epochs=60, protocol=PATCHES, **V2_OWN
    ),
    "unimatch_v2/cityscapes": Row(
        lists=CITY,
        nets=(DINO_S, DINO_B),
        crop=798,
        gpus=(4, 2),
        epochs=180,
        protocol=windows(798, 532, "shifted", "probabilities"),
        min_kept=200_000,
        **V2_OWN,
    ),
    "unimatch_v2/coco": Row(lists=COCO, nets=(DINO_B,), crop=518, gpus=(4, 4), epochs=20, protocol=PATCHES, **V2_OWN),
    "unimatch_v2/ade20k": Row(lists=ADE, nets=(DINO_B,), crop=518, gpus=(4, 2), epochs=60, protocol=PATCHES, **V2_OWN),
    "fixmatch/voc": Row(
        lists=FINE,
        nets=(DINO_B,),
        crop=518,
        gpus=(4, 4),
        epochs=60,
        protocol=PATCHES,
        method="fixmatch",
        views=("strong",),
        told={**V2_TOLD, "pseudo_labels": "ema"},
        **V2,
    ),
    "cps/voc": Row(method="cps", told={"weight": 1.5, "cutmix": False, "threshold": None}, **CPS_VOC),
    "cps/voc_cutmix": Row(method="cps", told={"weight": 1.0, "cutmix": True, "threshold": None}, **CPS_VOC),
    "cps/cityscapes": Row(method="cps", told={"weight": 6.0, "cutmix": False, "threshold": None}, **CPS_CITY),
    "cps/cityscapes_cutmix": Row(method="cps", told={"weight": 5.0, "cutmix": True, "threshold": None}, **CPS_CITY),
    "mean_teacher/voc": Row(method="mean_teacher", told=MT_TOLD, **CPS_VOC),
    "mean_teacher/cityscapes": Row(method="mean_teacher", told=MT_TOLD, **CPS_CITY),
    "u2pl/voc": Row(lists=FINE, **U2PL_VOC),
    "u2pl/voc_blended": Row(lists=BLENDED, **U2PL_VOC),
    "u2pl/cityscapes": Row(
        lists=CITY,
        crop=769,
        gpus=(8, 2),
        optimizer=("sgd", 0.01, 0.01, 5e-4),
        epochs=200,
        told={**U2PL_TOLD, "weight_contrast": 1 / 8, "supervised_steps": 0},
        protocol=windows(769, 513, "shifted", "logits"),
        min_kept=100_000,
        **U2PL,
    ),
}


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def trainings(file: str) -> dict[tuple[str, str], TrainStage]:
    """(encoder of the student, list) → its training."""
    recipe, found = recipe_of(file), {}
    for stage in recipe.stages.values():
        if isinstance(stage, TrainStage):
            data = stage.streams["labeled"].data
            assert isinstance(data, str)
            found[recipe.nets[stage.nets["student"]].encoder, data.partition("/labeled_")[2]] = stage
    return found


def test_every_recipe_is_that_of_a_row_and_every_row_has_one() -> None:
    assert sorted(ROWS) == FILES
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file}.yaml`" in text, file


@pytest.mark.parametrize("file", FILES)
def test_each_list_and_each_net_is_trained_once(file: str) -> None:
    row, recipe = ROWS[file], recipe_of(file)
    assert set(trainings(file)) == {(net, name) for net in row.nets for name in row.lists}
    stages = [stage for stage in recipe.stages.values() if isinstance(stage, TrainStage)]
    assert len(stages) == len(row.nets) * len(row.lists)
    (data,) = recipe.data.values()
    assert isinstance(data, CatalogueSettings | FolderSettings)
    lists = {f"{part}_{name}" for name in row.lists for part in ("labeled", "unlabeled")}
    assert set(data.splits) - {"val"} == lists


@pytest.mark.parametrize("file", FILES)
def test_the_course_is_the_published_one(file: str) -> None:
    row = ROWS[file]
    for (_, name), stage in trainings(file).items():
        gpus, each = row.gpus
        for stream, settings in stage.streams.items():
            assert isinstance(settings.data, str)
            assert settings.data.endswith(f"/{stream}_{name}")
            assert settings.batch == gpus * each
            expected = AugmentSettings(
                crop=(row.crop, row.crop), scale=(0.5, 2.0), scale_steps=row.scale_steps, flip=0.5
            )
            assert settings.augment == expected
            assert (settings.repeat, settings.draws_of) == (None, None)
        assert stage.streams["labeled"].views == {}
        strong = {view: settings.colour for view, settings in stage.streams["unlabeled"].views.items()}
        assert strong == dict.fromkeys(row.views, STRONG)
        epochs = row.epochs if isinstance(row.epochs, int) else row.epochs[name]
        assert stage.steps == epochs * row.epoch(name), name
        optimizer, schedule = stage.optimizer, stage.schedule
        kind, rate, encoder_rate, decay = row.optimizer
        assert optimizer.kind == kind
        assert optimizer.lr == pytest.approx(rate / row.divided)
        assert optimizer.lr * optimizer.encoder_lr_ratio == pytest.approx(encoder_rate / row.divided)
        assert optimizer.weight_decay == pytest.approx(decay * row.divided)
        assert (optimizer.momentum, optimizer.betas) == (0.9, (0.9, 0.999))
        assert optimizer.decay_norm_and_bias == row.decays_all
        assert (schedule.kind, schedule.power, schedule.warmup, schedule.floor) == ("poly", 0.9, 0, 0.0)
        assert schedule.lag == row.lag
        assert (stage.accumulate, stage.precision, stage.clip, stage.keep) == (1, row.precision, None, "best")
        assert stage.evaluate is not None
        assert stage.evaluate.every == row.epoch(name)
        assert stage.evaluate.data.endswith("/val")
        assert stage.evaluate.protocol == row.protocol


@pytest.mark.parametrize("file", FILES)
def test_the_method_is_told_what_is_published(file: str) -> None:
    row = ROWS[file]
    for (net, name), stage in trainings(file).items():
        settings = stage.method_settings()
        assert stage.method.name == row.method
        for key, value in row.told.items():
            assert getattr(settings, key) == value, key
        task = settings.task  # type: ignore[attr-defined]
        assert (task.resize, task.class_weights, task.smoothing, task.dice) == ("corners", None, 0.0, 0.0)
        assert task.loss == ("cross_entropy" if row.min_kept is None else "ohem")
        if row.min_kept is not None:
            assert (task.ohem_threshold, task.ohem_min_kept) == (0.7, row.min_kept)
        if row.method == "trikd":
            assert settings.spatial_weight == {TINY[0]: 0.9, TINY[1]: 0.5}[net]  # type: ignore[attr-defined]
            other = settings.vit_task  # type: ignore[attr-defined]
            assert (other.loss, other.resize) == ("cross_entropy", "corners")
        if file.startswith("u2pl/voc"):
            assert settings.supervised_steps == row.epoch(name)  # type: ignore[attr-defined]
            assert task.auxiliary == 0.4


def test_iterations_are_those_that_were_published() -> None:
    """Of the epochs' lengths some are given in the specification."""
    assert [ROWS["unimatch/cityscapes"].epoch(name) for name in CITY] == [349, 325, 279, 186]
    assert [ROWS["unimatch/voc"].epoch(name) for name in FINE] == [1311, 1300, 1277, 1231, 1140]
    steps = {name: stage.steps for (net, name), stage in trainings("trikd/cityscapes").items() if net == TINY[0]}
    assert steps == {"1_30": 107_700, "1_16": 104_700, "1_8": 97_500, "1_4": 83_700, "1_2": 55_800}


@pytest.mark.parametrize("file", FILES)
def test_every_training_is_scored_as_published(file: str) -> None:
    recipe = recipe_of(file)
    (score,) = [stage for stage in recipe.stages.values() if isinstance(stage, EvaluateStage)]
    assert score.protocol == ROWS[file].protocol
    assert score.data.endswith("/val")
    scored = {reference.partition(".")[0] for reference in score.scored().values()}
    assert scored == {name for name, stage in recipe.stages.items() if isinstance(stage, TrainStage)}
    kept = {reference.partition(".")[2] for reference in score.scored().values()}
    assert kept == {"u2pl": {"ema"}, "unimatch_v2": {"", "ema"}, "fixmatch": {"", "ema"}}.get(ROWS[file].method, {""})


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_says_whose_numbers_it_holds_and_what_differs(file: str) -> None:
    header = (FOLDER / f"{file}.yaml").read_text(encoding="utf-8").partition("tutelage: 1")[0]
    text = " ".join(line.removeprefix("#").strip() for line in header.splitlines())
    for words in ("Source: ", "Not run here.", "Published", "Hardware: published on", "Lists: ", "Differs: "):
        assert words in text, words
    assert all(len(line) <= 120 for line in (FOLDER / f"{file}.yaml").read_text(encoding="utf-8").splitlines())


def test_names_and_run_folders_are_their_own() -> None:
    recipes = [recipe_of(file) for file in FILES]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert len({recipe.out_folder() for recipe in recipes}) == len(recipes)


def test_the_nets_are_those_of_the_papers() -> None:
    """Parameters in millions: TriKD's as counted from the published modules, without the heads that only train."""
    nets = {
        settings.encoder: settings.model_copy(update={"weights": None})
        for file in FILES
        for settings in recipe_of(file).nets.values()
        if settings.decoder == "dual_frequency"
    }
    published = {TINY[0]: 18.31 - 0.017, TINY[1]: 29.13 - 0.025, R101: 71.72, "deit_base_distilled_patch16_384": 101.53}
    assert set(nets) == set(published)
    for encoder, settings in nets.items():
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in Segmentor(settings, 19).parameters()) / 1e6
        assert found == pytest.approx(published[encoder], rel=0.004), encoder


@pytest.mark.parametrize(
    "settings",
    {
        net.model_dump_json(): net
        for file in FILES
        for net in (it.model_copy(update={"weights": None}) for it in recipe_of(file).nets.values())
        if net.decoder != "dual_frequency"
    }.values(),
    ids=lambda net: f"{net.encoder}-{net.stride}",
)
def test_the_nets_can_be_built(settings: Any) -> None:
    with torch.device("meta"):
        net = Segmentor(settings, 19)
    if settings.encoder in (R50, R101):
        stem = [module for module in net.encoder.modules() if isinstance(module, torch.nn.Conv2d)][:3]
        assert [(conv.out_channels, conv.kernel_size, conv.stride[0]) for conv in stem] == [
            (64, (3, 3), 2),
            (64, (3, 3), 1),
            (128, (3, 3), 1),
        ]


SMALL = "encoder: mobilenetv3_small_050, decoder: deeplabv3plus, width: 32"
VIEWS = {
    "tiny_11m": "{encoder: tiny_vit_5m_224, decoder: dual_frequency, width: 32, frequency: {centre: published}}",
    "resnet": "{encoder: resnet10t, decoder: dual_frequency, width: 32, frequency: {centre: published}}",
    "deit": "{encoder: vit_tiny_patch16_224, decoder: dual_frequency, width: 32, frequency: {neck: published}}",
}
DINO_TINY = "{encoder: vit_tiny_patch16_224, decoder: dpt, width: 16}"
TRIALS = {
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
    for name in ("1_30", *CITY):
        for part, text in lines.items():
            (root / f"splits/{name}").mkdir(parents=True, exist_ok=True)
            (root / f"splits/{name}/{part}.txt").write_text("".join(text), encoding="utf-8")


@pytest.mark.parametrize("file", TRIALS)
def test_a_training_runs_on_small_pictures(file: str, tmp_path: Path) -> None:
    """The settings as they are, but small nets, crops and batches, and one step."""
    write_city(tmp_path / "cityscapes")
    stage, nets = TRIALS[file]
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
