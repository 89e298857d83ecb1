"""Recipes of AdvEnt, MinEnt, AdaptSegNet, FDA and CBST: published settings, and that their stages run.

The tables are written from the specifications of the methods, not from the recipes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tutelage.annotate.policies import ClassQuantileSettings, ClassRatioSettings
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.rare_classes import SmallClassSettings
from tutelage.pipeline.run import run
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published"
METHODS = ("advent", "minent", "adaptsegnet", "fda", "cbst")
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for name in METHODS for path in (FOLDER / name).glob("*.yaml")
)
SOURCE = {"gta5": (720, 1280), "synthia": (760, 1280)}
IMAGES = {"gta5": 24_966, "synthia": 9_400}
TARGET_IMAGES = 2_975

# Stage → method, what it is told, steps of one image a domain, and the length of the rate's course.
OLD: dict[str, dict[str, tuple[str, dict[str, Any], int, int]]] = {
    "advent": {
        "source_only": ("supervised", {"auxiliary": 0.1}, 120_000, 250_000),
        "advent": (
            "advent",
            {"maps": "self_information", "adversarial": 0.001, "adversarial_auxiliary": 0.0002, "entropy": 0.0},
            120_000,
            250_000,
        ),
    },
    "minent": {
        "source_only": ("supervised", {"auxiliary": 0.1}, 120_000, 250_000),
        "minent": ("minent", {"entropy": 0.001, "entropy_auxiliary": 0.0002}, 120_000, 250_000),
    },
    "adaptsegnet": {
        "source_only": ("supervised", {"auxiliary": 0.1}, 120_000, 250_000),
        "two_levels": (
            "adaptsegnet",
            {"maps": "softmax", "loss": "bce", "adversarial": 0.001, "adversarial_auxiliary": 0.0002},
            150_000,
            250_000,
        ),
        "one_level": ("adaptsegnet", {"maps": "softmax", "loss": "bce", "adversarial": 0.001}, 150_000, 250_000),
        "least_squares": ("adaptsegnet", {"loss": "least_squares", "adversarial": 0.01}, 150_000, 250_000),
    },
}
FDA = {"entropy": 0.005, "entropy_eta": 2.0, "entropy_normaliser": 2.9444, "entropy_start": 0}


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def trainings(file: str) -> dict[str, TrainStage]:
    return {name: stage for name, stage in recipe_of(file).stages.items() if isinstance(stage, TrainStage)}


def labellings(file: str) -> dict[str, AnnotateStage]:
    return {name: stage for name, stage in recipe_of(file).stages.items() if isinstance(stage, AnnotateStage)}


def require_told(stage: TrainStage, told: dict[str, Any]) -> None:
    settings = stage.method_settings().model_dump()
    assert {name: settings[name] for name in told} == told


def require_rate(stage: TrainStage, rate: float) -> None:
    optimizer = stage.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    assert optimizer.decay_norm_and_bias
    assert (optimizer.lr, optimizer.encoder_lr_ratio) == (pytest.approx(10 * rate), 0.1)
    assert (stage.keep, stage.evaluate, stage.precision, stage.accumulate) == ("last", None, "fp32", 1)


def test_every_row_has_a_recipe_and_stands_in_the_table() -> None:
    assert sorted(f"{name}/{data}" for name in METHODS for data in SOURCE) == FILES
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file}.yaml`" in text, file


@pytest.mark.parametrize("file", FILES)
def test_domains_classes_and_scores(file: str) -> None:
    recipe, data = recipe_of(file), file.partition("/")[2]
    assert set(recipe.data) == {"cityscapes", data}
    nineteen = data == "gta5" or file.startswith("fda")
    assert recipe.classes is None if nineteen else len(recipe.classes or ()) == 16
    (score,) = (stage for stage in recipe.stages.values() if isinstance(stage, EvaluateStage))
    assert score.data == "cityscapes/val"
    assert set(score.scored().values()) == set(trainings(file)), "every net is scored"
    if file.startswith("cbst"):
        assert (score.protocol.scales, score.protocol.flip, score.protocol.blend) == ((0.9, 1.0, 1.2), True, "logits")
    else:
        assert score.protocol.size == ((576, 1344) if file.startswith("fda") else (512, 1024))
    sizes = {"thirteen": 13} if data == "synthia" else {}
    sizes |= {"sixteen": 16} if sizes and nineteen else {}
    assert {name: len(of) for name, of in score.subsets.items()} == sizes
    # The old codes enlarge with aligned corners, in training and for labels and scores.
    assert {stage.protocol.resize for stage in (score, *labellings(file).values())} == {"corners"}
    for name, stage in trainings(file).items():
        settings = stage.method_settings().model_dump()
        task = settings.get("task", settings)
        assert task["resize"] == "corners", name
        if file.partition("/")[0] in OLD:
            assert task["auxiliary"] == 0.1, name
    head = (FOLDER / f"{file}.yaml").read_text(encoding="utf-8").partition("\ntutelage:")[0]
    for word in ("Published, not ours", "Not run here", "Differs:", "Source:"):
        assert word in head, word


@pytest.mark.parametrize("file", [file for file in FILES if file.partition("/")[0] in OLD])
def test_adversarial_and_entropy(file: str) -> None:
    name, _, data = file.partition("/")
    stages = trainings(file)
    rows = {stage for stage in OLD[name] if data == "gta5" or stage not in ("one_level", "least_squares")}
    assert set(stages) == rows
    for row in rows:
        method, told, steps, horizon = OLD[name][row]
        stage = stages[row]
        assert stage.method.name == method
        require_told(stage, told)
        require_rate(stage, 2.5e-4)
        assert stage.steps == steps
        schedules = [stage.schedule.model_dump()]
        settings = stage.method_settings().model_dump()
        schedules += [settings["critic_schedule"]] if "critic_schedule" in settings else []
        for schedule in schedules:
            assert (schedule["kind"], schedule["power"], schedule["horizon"]) == ("poly", 0.9, horizon)
        if "critic_optimizer" in settings:
            critic = settings["critic_optimizer"]
            assert (critic["kind"], critic["lr"], critic["betas"]) == ("adam", 1e-4, (0.9, 0.99))
        source = stage.streams.get("source") or stage.streams["labeled"]
        assert (source.data, source.batch, source.augment) == (f"{data}/all", 1, AugmentSettings(resize=SOURCE[data]))
        if method != "supervised":
            target = stage.streams["target"]
            assert (target.data, target.batch) == ("cityscapes/train", 1)
            assert target.augment == AugmentSettings(resize=(512, 1024))
        net = recipe_of(file).nets[stage.nets["student"]]
        assert net.auxiliary == (row not in ("one_level", "least_squares"))


@pytest.mark.parametrize("file", FILES)
def test_nets_are_the_published_ones(file: str) -> None:
    name = file.partition("/")[0]
    for net in recipe_of(file).nets.values():
        assert (net.encoder, net.stride) == ("resnet101.tv_in1k", 8)
        assert net.decoder == ("deeplabv2_reduced" if name == "adaptsegnet" else "deeplabv2")
        assert net.frozen_norm == ("all" if name == "cbst" else "affine")


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("fda")])
def test_fda(file: str) -> None:
    data, stages, labels = file.partition("/")[2], trainings(file), labellings(file)
    betas = {"01": 0.01, "05": 0.05, "09": 0.09}
    assert set(stages) == {*(f"beta_{b}" for b in betas), *(f"round_{r}_{b}" for r in (1, 2) for b in betas)}
    for name, stage in stages.items():
        first = name.startswith("beta")
        assert stage.method.name == ("fda" if first else "fda_self_training")
        require_told(stage, FDA if first else {**FDA, "pseudo": 1.0})
        style = stage.method_settings().model_dump()["style"]
        assert (style["kind"], style["beta"]) == ("fda", betas[name[-2:]])
        require_rate(stage, 2.5e-4)
        assert stage.init == {}, "each from ImageNet weights"
        assert (stage.steps, stage.schedule.horizon, stage.schedule.power) == (100_000, 150_000, 0.9)
        source, target = stage.streams["source"], stage.streams["target"]
        assert source.augment == AugmentSettings(resize=SOURCE[data], crop=(512, 1024))
        assert target.augment == AugmentSettings(resize=(512, 1024))
        assert (source.batch, target.batch) == (1, 1)
        assert target.data == ("cityscapes/train" if first else [f"labels_{name[6]}_{b}" for b in betas])
    nets = {f"labels_1_{b}": f"beta_{b}" for b in betas} | {f"labels_2_{b}": f"round_1_{b}" for b in betas}
    assert {name: stage.net for name, stage in labels.items()} == nets
    for stage in labels.values():
        assert stage.policy == ClassQuantileSettings(quantile=0.66, cap=0.9)
        assert (stage.data, stage.protocol.size) == ("cityscapes/train", (512, 1024))


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("cbst")])
def test_cbst(file: str) -> None:
    data, stages, labels = file.partition("/")[2], trainings(file), labellings(file)
    first = stages.pop("source")
    assert (first.steps, first.streams["labeled"].batch, first.streams["labeled"].augment.crop) == (
        100_000, 4, (500, 500),
    )  # fmt: skip
    require_rate(first, 2.5e-4)
    assert set(stages) == {f"{name}_{r}" for name in ("cbst", "mrkld") for r in range(3)}
    for full, stage in stages.items():
        name, _, number = full.partition("_")
        round_ = int(number)
        assert stage.method.name == "cbst"
        require_told(stage, {"regulariser": 0.1 if name == "mrkld" else 0.0})
        require_rate(stage, 5e-5)
        assert stage.schedule.kind == "constant"
        assert stage.init == {"student": f"{name}_{round_ - 1}" if round_ else "source"}
        source, target = stage.streams["source"], stage.streams["target"]
        assert target.data == (f"{name}_labels_{round_}" if round_ else "labels_0")
        made = labels[str(target.data)]
        assert made.net == stage.init["student"]
        assert isinstance(made.policy, ClassRatioSettings)
        assert made.policy.portion == pytest.approx(0.2 + 0.05 * round_)
        assert (made.protocol.scales, made.protocol.flip) == ((0.9,), True)
        for stream in (source, target):
            assert stream.augment == AugmentSettings(crop=(512, 1024), scale=(0.5, 1.5), scale_steps=11, flip=0.5)
        assert target.sampler == SmallClassSettings(share=0.001, probability=0.8)
        # Two epochs over a part of the source and all of the target, as many images as published.
        images = 2 * ((0.03 + 0.0025 * round_) * IMAGES[data] + TARGET_IMAGES)
        assert stage.steps * (source.batch + target.batch) == pytest.approx(images, abs=4)
        assert source.batch / (source.batch + target.batch) == pytest.approx(
            2 * (0.03 + 0.0025 * round_) * IMAGES[data] / images, abs=0.17
        )


# ---------------------------------------------------------------- the stages run


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


TRIALS = {
    "cbst/gta5": ["source", "labels_0", "cbst_0", "cbst_labels_1", "cbst_1"],
    "fda/gta5": ["beta_01", "beta_05", "beta_09", "labels_1_01", "labels_1_05", "labels_1_09", "round_1_05"],
    "adaptsegnet/gta5": ["two_levels", "least_squares"],
    "minent/gta5": ["minent"],
}


@pytest.mark.parametrize("file", TRIALS)
def test_the_stages_run_on_small_pictures(file: str, tmp_path: Path) -> None:
    """The settings as they are, but a small net, small crops and one step."""
    write_domains(tmp_path)
    recipe, chosen = recipe_of(file), TRIALS[file]
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
