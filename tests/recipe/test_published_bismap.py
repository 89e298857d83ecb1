"""BiSMAP's recipes: the settings of sections 3 to 5 of its specification, and nets that can be built."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.annotate.fits import MixturesFit, TransferabilityFit
from tutelage.annotate.policies import MixturesSettings
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.catalogue.facts import class_list
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.methods.settings.bismap import MASKED_VIEW, BiSMAPSettings, BiSMAPWarmUpSettings
from tutelage.methods.settings.self_distill import SelfDistillSettings
from tutelage.nets.segmentor import Segmentor
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.fit import FitStage
from tutelage.recipe.stages.report import ReportStage
from tutelage.recipe.stages.train import TrainStage
from tutelage.recipe.stages.transform import TransformStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published"
FILES = ("gta5", "gta5_repaired", "synthia")
ORDER = [
    "stylised",
    "transferability",
    "warm_up",
    "mixtures",
    "pseudo_labels",
    "self_training",
    "labels_of_self_training",
    "distilled_once",
    "labels_of_distilled_once",
    "distilled_twice",
    "score",
    "report",
]
TRAINED = ("warm_up", "self_training", "distilled_once", "distilled_twice")
WHOLE = Protocol(resize="corners")


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / "bismap" / f"{file}.yaml").recipe


def stage(file: str, name: str, kind: type) -> Any:
    found = recipe_of(file).stages[name]
    assert isinstance(found, kind)
    return found


@pytest.mark.parametrize("file", FILES)
def test_all_stages_are_there_in_order(file: str) -> None:
    recipe = recipe_of(file)
    assert list(recipe.stages) == ORDER
    assert recipe.seed == 100
    assert recipe.name == f"bismap_{file}"
    source = file.removesuffix("_repaired")
    assert set(recipe.data) == {source, "cityscapes"}
    styled = stage(file, "stylised", TransformStage)
    assert (styled.data, styled.target) == (f"{source}/all", "cityscapes/train")
    assert f"`bismap/{file}.yaml`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_training_has_the_published_course(file: str, name: str) -> None:
    training = stage(file, name, TrainStage)
    assert (training.steps, training.precision, training.accumulate, training.clip) == (90_000, "fp16", 1, None)
    optimizer, schedule = training.optimizer, training.schedule
    assert (optimizer.kind, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (optimizer.lr, optimizer.lr * optimizer.encoder_lr_ratio) == (5e-3, pytest.approx(5e-4))
    assert optimizer.decay_norm_and_bias
    assert (schedule.kind, schedule.power, schedule.warmup, schedule.warmup_ratio) == ("poly", 0.9, 400, 0.0)
    assert (schedule.least_lr, schedule.lag) == (1e-7, 0)
    if file == "gta5_repaired":
        assert (training.evaluate, training.keep) == (None, "last")
    else:
        assert training.evaluate is not None
        assert (training.evaluate.data, training.evaluate.every) == ("cityscapes/val", 1000)
        assert training.evaluate.protocol == WHOLE
        assert training.keep == "best_on_target"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_training_sees_the_published_views(file: str, name: str) -> None:
    source, target = (stage(file, name, TrainStage).streams[one] for one in ("source", "target"))
    assert (source.data, source.weights, source.batch, target.batch) == ("stylised", "transferability", 4, 4)
    height = 1306 if file == "synthia" else 1209
    crop = {"crop": (512, 896), "scale": (0.5, 1.5), "flip": 0.5}
    tried = {"class_cap": 1.0, "class_cap_attempts": 20}
    assert source.augment == AugmentSettings(resize=(height, 2200), **crop, **tried)
    assert target.augment == AugmentSettings(resize=(1024, 2048), **crop, **({} if name == "warm_up" else tried))
    strong = ColourSettings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    weak = ColourSettings(brightness=0.1, contrast=0.5, saturation=0.5, hue=0.1)
    assert source.views == {"weak": ViewSettings(colour=strong)}
    assert target.views["weak"] == ViewSettings(colour=weak)
    masked = {"masked": MASKED_VIEW} if name in ("warm_up", "self_training") else {}
    assert {view: settings for view, settings in target.views.items() if view != "weak"} == masked


@pytest.mark.parametrize("file", FILES)
def test_methods_are_told_what_is_published(file: str) -> None:
    repaired = file == "gta5_repaired"
    told = {"consistency": 30.0, "ramp_steps": 4000, "decay": 0.999, "resize": "corners"}
    assert stage(file, "warm_up", TrainStage).method_settings() == BiSMAPWarmUpSettings(**told)
    assert stage(file, "self_training", TrainStage).method_settings() == BiSMAPSettings(**told, alpha=0.1, beta=1.0)
    assert BiSMAPSettings().teacher_norm == "batch"
    before = "self_training"
    for name in ("distilled_once", "distilled_twice"):
        training = stage(file, name, TrainStage)
        settings = training.method_settings()
        assert isinstance(settings, SelfDistillSettings)
        assert (settings.target_loss, settings.alpha, settings.beta) == ("symmetric", 0.1, 1.0)
        # A mean over pixels and classes, times the number of classes, is one over pixels.
        assert (settings.kd, settings.form) == ((19.0, "log") if repaired else (1.0, "code"))
        assert (settings.view, settings.grid, settings.task.resize) == ("weak", 1, "corners")
        assert training.inputs == {"teacher": before}
        assert training.streams["target"].data == f"labels_of_{before}"
        assert training.init == {}
        before = name


@pytest.mark.parametrize("file", FILES)
def test_weights_mixtures_and_labels(file: str) -> None:
    repaired, rates = file == "gta5_repaired", "synthia" if file == "synthia" else "gta5"
    weights = stage(file, "transferability", FitStage)
    assert (weights.encoder, weights.data, weights.target) == ("simclr_r152", "stylised", "cityscapes/train")
    what = weights.what
    assert isinstance(what, TransferabilityFit)
    assert (what.size, what.pool, what.centres, what.rows) == ((128, 256), (1, 2), 40, 1_000_000)
    assert (what.scale, what.momentum) == ("global" if repaired else "ema", 0.99)
    if repaired:
        assert isinstance(what.bonus, list)
        assert (len(what.bonus), what.bonus[0], what.bonus[-1]) == (19, 0.1502, 0.6694)
    else:
        assert what.bonus == rates

    fit = stage(file, "mixtures", FitStage)
    assert isinstance(fit.what, MixturesFit)
    expected = MixturesFit(rates=rates, compat="corrected" if repaired else "published")
    assert fit.what == expected
    assert (expected.components, expected.samples) == (8, 300_000)
    assert (fit.net, fit.data, fit.protocol.precision) == ("warm_up", "stylised", "fp16")

    labels = stage(file, "pseudo_labels", AnnotateStage)
    assert (labels.net, labels.data) == ("warm_up", "cityscapes/train")
    assert labels.policy == MixturesSettings(
        mixtures="mixtures", **({"quantile": 0.5} if repaired else {"threshold": 100})
    )
    for teacher in ("self_training", "distilled_once"):
        dense = stage(file, f"labels_of_{teacher}", AnnotateStage)
        assert (dense.net, dense.data, dense.policy.kind) == (teacher, "cityscapes/train", "argmax")
        protocol = dense.protocol
        assert (protocol.scales, protocol.flip, protocol.blend) == ((0.75, 1.0, 1.5), True, "logits")


@pytest.mark.parametrize("file", FILES)
def test_scores(file: str) -> None:
    score, report = stage(file, "score", EvaluateStage), stage(file, "report", ReportStage)
    assert list(score.scored()) == list(TRAINED)
    assert (score.data, score.protocol) == ("cityscapes/val", WHOLE)
    assert report.student == "distilled_twice"
    names = class_list("cityscapes").names
    sixteen = [name for number, name in enumerate(names) if number not in (9, 14, 16)]
    thirteen = [name for name in sixteen if name not in ("wall", "fence", "pole")]
    assert score.subsets == ({"thirteen": thirteen, "sixteen": sixteen} if file == "synthia" else {})


@pytest.mark.parametrize("file", FILES)
def test_the_nets(file: str) -> None:
    recipe = recipe_of(file)
    students = {name: stage(file, name, TrainStage).nets["student"] for name in TRAINED}
    assert students == {
        "warm_up": "imagenet_r101",
        "self_training": "imagenet_r101",
        "distilled_once": "simclr_r101",
        "distilled_twice": "simclr_r101",
    }
    # The published net has 42.5 million values in its encoder, which all of them share.
    sizes = {}
    for name, settings in recipe.nets.items():
        assert settings.weights is not None
        with torch.device("meta"):
            net = Segmentor(settings, 19)
        sizes[name] = sum(value.numel() for value in net.encoder.parameters()) / 1e6
    assert sizes == pytest.approx({"simclr_r152": 88.7, "imagenet_r101": 42.5, "simclr_r101": 42.5}, abs=0.5)
