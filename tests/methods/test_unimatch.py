"""UniMatch: three terms by hand, dropped features, and one pass of the encoder for clean and perturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.methods.cases import CPU, FACTS, gradients, terms, tiny
from tests.methods.pyramid import Pyramid, few_and_many, full
from tests.methods.test_fixmatch import by_hand, moved
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.sources import ToycitySettings, open_data
from tutelage.data.stream import Stream
from tutelage.losses.consistency import masked_consistency
from tutelage.methods import unimatch
from tutelage.methods.unimatch import UniMatch, doubled, dropped
from tutelage.nets.segmentor import Features


def method(net: Any = None, **settings: Any) -> UniMatch:
    return UniMatch({"student": net or Pyramid()}, UniMatch.Settings(**settings), FACTS)


@pytest.mark.parametrize("source", ["student", "ema"])
@pytest.mark.parametrize("labeled_size", [(32, 32), (24, 40)])
def test_the_step_by_hand(source: str, labeled_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a perturbation that can be repeated: the first level is lost."""
    monkeypatch.setattr(unimatch, "dropped", lambda levels: (0 * levels[0], levels[1]))
    made = method(pseudo_labels=source, threshold=0.6, cutmix=0.8, weight=2.0)
    if source == "ema":
        moved(made)
    given = few_and_many(unlabeled=3, padding=5, labeled_size=labeled_size)
    found = terms(made, given)
    unlabeled, labeled = given["unlabeled"], given["labeled"]["weak"]
    judge = made.student if made.ema is None else made.ema
    for name in ("strong", "strong2"):
        expected = by_hand(made.student, judge, unlabeled, name, 0.6, "next", 0.8)
        torch.testing.assert_close(found[name], 0.5 * 2.0 * 0.25 * expected)
    weak = unlabeled["weak"]
    confidence, label = full(judge, weak.image).softmax(1).max(1)
    features = made.student.encode(weak.image)
    lost = made.student.decode(features._replace(levels=(0 * features.levels[0], features.levels[1]))).logits
    perturbed = F.interpolate(lost, scale_factor=4, mode="bilinear")
    expected = masked_consistency(perturbed, label, confidence, weak.valid, 0.6)
    torch.testing.assert_close(found["perturbed"], 0.5 * 2.0 * 0.5 * expected)
    supervised = F.cross_entropy(full(made.student, labeled.image), labeled.label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], 0.5 * supervised)
    assert found.keys() == {"cross_entropy", "strong", "strong2", "perturbed"}
    assert all(value > 0 for value in found.values())


def test_one_pass_of_the_encoder_serves_clean_and_perturbed() -> None:
    made, given = method(), few_and_many(labeled=2, unlabeled=3)
    terms(made, given)
    assert made.student.modes == [(False, False, 3), (True, True, 5), (True, True, 6)], "partner; both; two strong"
    averaged = method(pseudo_labels="ema")
    terms(averaged, given)
    assert averaged.ema.modes == [(False, False, 3)]
    assert averaged.student.modes == [(True, True, 2), (True, True, 3), (True, True, 6)]
    apart = method()
    terms(apart, few_and_many(labeled=2, unlabeled=3, labeled_size=(16, 16)))
    assert apart.student.modes == [(False, False, 3), (True, True, 2), (True, True, 3), (True, True, 6)]


def test_half_of_the_channels_of_each_image_are_dropped() -> None:
    torch.manual_seed(0)
    levels = (torch.ones(40, 8, 3, 2), torch.ones(40, 5, 1, 1))
    for level in dropped(levels):
        per_channel = level.flatten(2)
        assert (per_channel == per_channel[..., :1]).all(), "whole channels"
        assert set(level.unique().tolist()) == {0, 2}
        assert level.mean().item() == pytest.approx(1, abs=0.2)
        assert level.flatten(1).unique(dim=0).shape[0] > 10, "each image loses others"
    tokens = (torch.randn(2, 1, 8),)
    both = doubled(Features((torch.randn(2, 8, 3, 2),), (12, 8), tokens))
    assert both.levels[0].shape == (4, 8, 3, 2)
    assert torch.equal(both.tokens[0], torch.cat((tokens[0], tokens[0])))
    assert not torch.equal(both.levels[0][2:], both.levels[0][:2])


def test_the_perturbed_view_learns_and_its_pseudo_labels_do_not() -> None:
    made, given = method(threshold=0.0), few_and_many()
    terms(made, given)["perturbed"].backward(retain_graph=True)
    assert gradients(made)["student"]
    averaged = moved(method(threshold=0.0, pseudo_labels="ema"))
    sum(terms(averaged, given).values()).backward()  # type: ignore[union-attr]
    assert gradients(averaged) == {"student": True, "ema": False, "task": False}


def test_nothing_to_learn_is_exactly_zero() -> None:
    made, given = method(threshold=0.0), few_and_many(padding=32)
    found = terms(made, given)
    assert [found[name].item() for name in ("strong", "strong2", "perturbed")] == [0, 0, 0]
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in made.student.parameters())


def test_real_nets_and_their_auxiliary_heads() -> None:
    made = method(tiny("deeplabv3plus", auxiliary=True), threshold=0.0)
    given = few_and_many(size=(64, 64))
    found = terms(made, given)
    assert found.keys() == {"cross_entropy", "auxiliary", "strong", "strong2", "perturbed"}
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in made.student.parameters() if p.grad is not None)


def test_views_of_equal_settings_are_other_pictures_of_one_crop(tmp_path: Path) -> None:
    city = ToycitySettings(kind="toycity", root=str(tmp_path / "city"), splits={"train": 4}, size=(32, 48))
    strong = ViewSettings(colour=ColourSettings(brightness=0.5, contrast=0.5, blur=0.5))
    views = {"weak": ViewSettings(), "strong": strong, "strong2": strong}
    augment = AugmentSettings(crop=(24, 32), scale=(0.5, 1.0))
    stream = Stream("unlabeled", [open_data(city, tmp_path)["train"]], 0, 4, views, augment, labels=False)
    batch = next(iter(stream.batches(0, 1, 1, 0, 1, CPU)))
    images = [batch[name].image for name in views]
    assert not any(torch.equal(images[a][n], images[b][n]) for a, b in ((0, 1), (0, 2), (1, 2)) for n in range(4))
    assert batch["strong"].geometry is batch["weak"].geometry, "so that no comparison waits for the device"
    assert not batch["weak"].valid.all(), "small images are padded"
    made = method(threshold=0.0)
    found = terms(made, {"labeled": few_and_many(labeled=2)["labeled"], "unlabeled": batch})
    assert found["strong"] != found["strong2"]
