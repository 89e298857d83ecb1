"""Published recipes of DACS, DAFormer, HRDA and MIC: the settings of the specification's sections 6 to 9."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.rare_classes import RareClassSettings
from tutelage.data.settings import ColourSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.methods.settings.mixed_self_training import MarginSettings
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published"
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for name in ("dacs", "daformer", "hrda", "mic")
    for path in (FOLDER / name).glob("*.yaml")
)
EVERY = [f"{method}/{source}" for method in ("dacs", "daformer", "hrda") for source in ("gta5", "synthia")]
EVERY += [f"mic/{source}_{host}" for source in ("gta5", "synthia") for host in ("daformer", "hrda")]
SMALL = {"gta5": (720, 1280), "synthia": (760, 1280)}
LARGE = {"gta5": (1440, 2560), "synthia": (1520, 2560)}


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def training(file: str) -> TrainStage:
    (stage,) = (stage for stage in recipe_of(file).stages.values() if isinstance(stage, TrainStage))
    return stage


def told(file: str) -> Any:
    return training(file).method_settings()


def test_every_row_has_its_recipe() -> None:
    assert sorted(EVERY) == FILES


@pytest.mark.parametrize("file", FILES)
def test_images_and_crops(file: str) -> None:
    large = "hrda" in file
    streams = training(file).streams
    source, target = streams["source"], streams["target"]
    domain = "synthia" if "synthia" in file else "gta5"
    side = 1024 if large else 512
    assert (source.data, target.data) == (f"{domain}/all", "cityscapes/train")
    assert source.augment.resize == (LARGE if large else SMALL)[domain]
    assert target.augment.resize == (None if large else (512, 1024))
    for stream in (source, target):
        assert (stream.batch, stream.augment.crop) == (2, (side, side))
        assert stream.augment.flip == (0.0 if file.startswith("dacs") else 0.5)
    if file.startswith("dacs"):
        assert source.sampler is None
        return
    assert source.augment.class_cap == 0.75
    assert isinstance(source.sampler, RareClassSettings)
    # Published: the first crop, and ten more where it has too little.
    assert (source.sampler.temperature, source.sampler.pixels, source.sampler.tries) == (0.01, 3000, 11)
    assert source.sampler.crop_share == (2.0 if large else 0.5)


@pytest.mark.parametrize("file", FILES)
def test_the_course_and_the_score(file: str) -> None:
    stage = training(file)
    old, large = file.startswith("dacs"), "hrda" in file
    optimizer, schedule = stage.optimizer, stage.schedule
    assert stage.steps == (250_000 if old else 40_000)
    assert optimizer.kind == ("sgd" if old else "adamw")
    assert optimizer.lr * optimizer.encoder_lr_ratio == pytest.approx(2.5e-4 if old else 6e-5)
    assert optimizer.encoder_lr_ratio == 0.1
    assert optimizer.weight_decay == (5e-4 if old else 0.01)
    assert (schedule.kind, schedule.power) == ("poly", 0.9 if old else 1.0)
    assert (schedule.warmup, schedule.warmup_ratio) == ((0, 1e-3) if old else (1500, 1e-6))
    assert (stage.keep, stage.precision, stage.accumulate) == ("last", "fp32", 1)
    (score,) = (found for found in recipe_of(file).stages.values() if isinstance(found, EvaluateStage))
    sliding = {"kind": "sliding", "window": (1024, 1024), "stride": (512, 512), "blend": "logits"}
    expected = {**(sliding if large else {"size": (512, 1024)}), "resize": "corners" if old else "centers"}
    assert score.protocol == Protocol.model_validate(expected)
    assert score.data == "cityscapes/val"
    # 19 outputs for both sources, as published; three of them SYNTHIA does not label.
    assert recipe_of(file).classes is None
    sizes = {name: len(of) for name, of in score.subsets.items()}
    assert sizes == ({"sixteen": 16, "thirteen": 13} if "synthia" in file else {})


@pytest.mark.parametrize("file", FILES)
def test_what_the_method_is_told(file: str) -> None:
    settings, old, large = told(file), file.startswith("dacs"), "hrda" in file
    assert (settings.threshold, settings.weight, settings.weighting) == (0.968, 1.0, "share")
    assert (settings.decay, settings.classes_from) == ((0.99, "image") if old else (0.999, "batch"))
    assert settings.reduction == ("valid" if old else "all")
    strength = 0.25 if old else 0.2
    kinds = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), strength)
    assert settings.colour == ColourSettings(probability=0.8, blur=0.5, blur_sigma=(0.15, 1.15), **kinds)
    assert settings.colour == type(settings)().colour, "the default"
    if old:
        assert not settings.margins.any
        return
    of_crop, of_image = (
        MarginSettings(of="crop", top=15, bottom=120),
        MarginSettings(top=30, bottom=240, left=30, right=30),
    )
    assert settings.margins == (of_image if large else of_crop)
    distance = settings.feature_distance
    assert (distance.weight, distance.share, len(distance.things)) == (0.005, 0.75, 8 if "synthia" in file else 10)
    if large:
        assert (settings.detail_weight, settings.multi_resolution.detail) == (0.1, (512, 512))
    masked = settings.masked_consistency
    assert (masked is not None) == file.startswith("mic/")
    if masked is not None:
        assert (masked.weight, masked.ratio, masked.block, masked.colours) == (1.0, 0.7, 64 if large else 32, True)


def test_nets_are_the_published_ones() -> None:
    for file in FILES:
        (net,) = recipe_of(file).nets.values()
        if file.startswith("dacs"):
            assert (net.encoder, net.decoder, net.stride) == ("resnet101.tv_in1k", "deeplabv2_reduced", 8)
            assert net.frozen_norm == "affine"
        else:
            assert (net.encoder, net.decoder, net.channels, net.drop_path) == ("mit_b5", "daformer", 256, 0.1)
