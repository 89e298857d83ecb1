"""PBAL's published recipes: their settings against the specification's table, and all stages on small pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.projects import CLASSES, write_project
from tutelage.annotate.policies import ClassQuantileSettings, ThresholdSettings
from tutelage.data.settings import ColourSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.pipeline.run import run
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published" / "pbal"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
COLOURS = ColourSettings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)

# Stage → method, steps run, steps of the course, rate of the encoder; the heads have ten times that.
STAGES: dict[str, tuple[str, int, int, float]] = {
    "warm_up": ("pbal_bpl", 20_000, 31_250, 2.5e-4),
    "bidirectional": ("pbal_bpl", 60_000, 90_000, 1e-4),
    "self_training": ("pbal_pst", 60_000, 90_000, 2.5e-4),
    "distilled_once": ("self_distill", 62_412, 90_000, 6e-4),
    "distilled_twice": ("self_distill", 62_412, 90_000, 6e-4),
}


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def stage_of(file: str, name: str) -> TrainStage:
    stage = recipe_of(file).stages[name]
    assert isinstance(stage, TrainStage)
    return stage


def test_both_data_sets_have_one() -> None:
    assert FILES == ["gta5", "synthia"]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("file", FILES)
def test_the_course_of_a_stage(file: str, name: str) -> None:
    method, steps, horizon, rate = STAGES[name]
    stage = stage_of(file, name)
    assert (stage.method.name, stage.steps, stage.keep, stage.evaluate) == (method, steps, "last", None)
    assert stage.schedule.model_dump(exclude_defaults=True) == {"horizon": horizon}
    optimizer = stage.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 2e-4)
    assert optimizer.decay_norm_and_bias
    assert (optimizer.lr * optimizer.encoder_lr_ratio, optimizer.lr) == pytest.approx((rate, 10 * rate))
    long, images = 2200, {"gta5": (1052, 1914), "synthia": (760, 1280)}[file]
    for side, (height, width) in {"source": images, "target": (1024, 2048)}.items():
        stream = stage.streams[side]
        assert stream.batch == 4
        assert stream.augment.resize == (round(long * height / width), long)
        assert (stream.augment.scale, stream.augment.crop, stream.augment.flip) == ((0.5, 1.5), (512, 896), 0.5)


@pytest.mark.parametrize("file", FILES)
def test_what_the_methods_are_told(file: str) -> None:
    for name, weight, horizon in (("warm_up", 0.0, 31_250), ("bidirectional", 0.1, 90_000)):
        told: Any = stage_of(file, name).method_settings()
        assert (told.weight, told.adversarial, told.scope, told.prototype_grad) == (weight, 0.01, "global", False)
        assert told.pixel_to_prototype
        assert told.prototype_to_pixel
        critic = told.critic_optimizer
        assert (critic.kind, critic.lr, critic.betas, critic.weight_decay) == ("adam", 1e-4, (0.9, 0.99), 0)
        assert told.critic_schedule.horizon == horizon
    told = stage_of(file, "self_training").method_settings()
    assert (told.contrast_source, told.contrast_target, told.temperature, told.reduction) == (1.0, 1.0, 0.07, "all")
    assert (told.prototype_grad, told.projection, told.normalise_target) == (True, "none", True)
    for name in ("distilled_once", "distilled_twice"):
        told = stage_of(file, name).method_settings()
        assert (told.kd, told.form, told.target_loss) == (1.0, "log", "cross_entropy")
    assert all(stage_of(file, name).method_settings().task.resize == "corners" for name in STAGES)  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES)
def test_what_passes_between_stages(file: str) -> None:
    stages = recipe_of(file).stages
    begins = {name: (stage_of(file, name).nets["student"], stage_of(file, name).init) for name in STAGES}
    assert begins == {
        "warm_up": ("imagenet", {}),
        "bidirectional": ("imagenet", {"student": "warm_up"}),
        "self_training": ("imagenet", {}),
        "distilled_once": ("simclr", {}),
        "distilled_twice": ("simclr", {"student": "distilled_once"}),
    }
    assert [stage_of(file, name).inputs for name in ("distilled_once", "distilled_twice")] == [
        {"teacher": "self_training"},
        {"teacher": "distilled_once"},
    ]
    labelled = {
        "pseudo_labels": ("bidirectional", "self_training"),
        "labels_of_self_training": ("self_training", "distilled_once"),
        "labels_of_distilled_once": ("distilled_once", "distilled_twice"),
    }
    for name, (net, reader) in labelled.items():
        stage = stages[name]
        assert isinstance(stage, AnnotateStage)
        assert (stage.net, stage.data) == (net, "cityscapes/train")
        assert stage_of(file, reader).streams["target"].data == name
        if name == "pseudo_labels":
            assert stage.policy == ClassQuantileSettings(quantile=0.5, cap=0.9)
            assert stage.protocol == Protocol(resize="corners")
        else:
            assert (stage.policy, stage.protocol.flip) == (ThresholdSettings(threshold=0.95), True)
    assert isinstance(stages["score"], EvaluateStage)
    assert stages["score"].nets == list(STAGES)
    for net in recipe_of(file).nets.values():
        assert net.encoder.startswith("resnet101_multigrid")
        assert net.decoder == "deeplabv3plus_pbal"


@pytest.mark.parametrize("file", FILES)
def test_the_views(file: str) -> None:
    for name in ("warm_up", "bidirectional"):
        streams = stage_of(file, name).streams
        assert streams["source"].views["strong"].colour == COLOURS
        assert not streams["target"].views, "geometry alone"
    assert all(stream.views["strong"].colour == COLOURS for stream in stage_of(file, "self_training").streams.values())


def test_all_stages_run_on_small_pictures(tmp_path: Path) -> None:
    """The settings as they are, but small nets, crops and batches, and one step; source and target are the same."""
    write_project(tmp_path, "")
    city = f"{{root: {tmp_path / 'data'}, classes: [{', '.join(CLASSES)}], splits: %s}}"
    net = "{encoder: mobilenetv3_small_050, decoder: deeplabv3plus_pbal, width: 16}"
    overrides = [
        f"data.gta5={city % '{all: train.txt}'}",
        f"data.cityscapes={city % '{train: train.txt, val: val.txt}'}",
        f"out={tmp_path / 'runs'}",
        "run.threads=1",
        "run.weak_teacher=warn",
        *(f"nets.{name}={net}" for name in ("imagenet", "simclr")),
        *(f"stages.{name}.steps=1" for name in STAGES),
        *(f"stages.{name}.streams.{side}.batch=2" for name in STAGES for side in ("source", "target")),
        *(
            f"stages.{name}.streams.{side}.augment={{crop: [32, 48], flip: 0.5}}"
            for name in STAGES
            for side in ("source", "target")
        ),
    ]
    stages = [name for name in recipe_of("gta5").stages if name != "report"]
    outcome = run(load_recipe(FOLDER / "gta5.yaml", overrides), only=stages, quiet=True)
    assert all(outcome.artefacts[name].manifest() is not None for name in stages)
