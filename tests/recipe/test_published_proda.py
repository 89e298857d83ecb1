"""ProDA's published recipes: each stage has the settings of the specification's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.annotate.policies import ThresholdSettings
from tutelage.methods.proda import ProDA
from tutelage.methods.self_distill import SelfDistill
from tutelage.methods.settings.common import CacheSettings
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.fit import FitStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published" / "proda"


@pytest.mark.parametrize(
    ("name", "source", "classes", "regularizer"),
    [("gta5", (1209, 2200), None, 0.1), ("synthia", (1306, 2200), 16, 0.0)],
)
def test_the_stages_are_the_published_ones(
    name: str, source: tuple[int, int], classes: int | None, regularizer: float
) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml").recipe
    stages = recipe.stages
    assert [*stages] == ["warm_up", "prototypes", "stage1", "labels1", "stage2", "labels2", "stage3", "score", "report"]
    assert classes is None or len(recipe.classes or ()) == classes
    rates = {"warm_up": (2.5e-4, 10), "stage1": (1e-4, 1), "stage2": (6e-4, 10), "stage3": (6e-4, 10)}
    for stage_name, (rate, head) in rates.items():
        stage = stages[stage_name]
        assert isinstance(stage, TrainStage)
        assert stage.steps == 84 * 743
        assert (stage.optimizer.kind, stage.optimizer.momentum, stage.optimizer.weight_decay) == ("sgd", 0.9, 2e-4)
        assert stage.optimizer.lr * stage.optimizer.encoder_lr_ratio == pytest.approx(rate)
        assert stage.optimizer.lr == pytest.approx(rate * head)
        assert (stage.schedule.kind, stage.schedule.power, stage.schedule.horizon) == ("poly", 0.9, 90000)
        for stream, size in (("source", source), ("target", (1100, 2200))):
            augment = stage.streams[stream].augment
            assert stage.streams[stream].batch == 4
            assert (augment.resize, augment.crop, augment.scale, augment.flip) == (size, (512, 896), (0.5, 1.5), 0.5)
    first = stages["stage1"]
    assert isinstance(first, TrainStage)
    told = first.method_settings()
    assert told == ProDA.Settings(cache=CacheSettings(top=8), regularizer_weight=regularizer, task=told.task)
    full = first.streams["target"].views["full"]
    assert full.augment is not None
    assert full.augment.crop is None
    assert first.init == {"student": "warm_up"}
    for number in (2, 3):
        stage, labels = stages[f"stage{number}"], stages[f"labels{number - 1}"]
        assert isinstance(stage, TrainStage)
        assert isinstance(labels, AnnotateStage)
        told = stage.method_settings()
        assert told == SelfDistill.Settings(form="code", task=told.task)
        assert labels.policy == ThresholdSettings(threshold=0.95)
        assert labels.protocol.flip
        assert stage.inputs == {"teacher": labels.net}
        assert stage.streams["target"].data == f"labels{number - 1}"
        assert stage.streams["target"].views["strong"] == ProDA.Settings.streams["target"].defaults["strong"]
        assert stage.init == ({} if number == 2 else {"student": "stage2"})
    fitted = stages["prototypes"]
    assert isinstance(fitted, FitStage)
    assert fitted.what.model_dump(include={"kind", "epochs", "min_pixels", "count_cap", "labels"}) == {
        "kind": "means",
        "epochs": 4,
        "min_pixels": 10,
        "count_cap": 3000,
        "labels": False,
    }
