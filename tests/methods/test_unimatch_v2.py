"""UniMatch V2: the step by hand, complementary dropout, and an average that labels in evaluation mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.methods.cases import FACTS, Stream, changed, context, copied, gradients, terms, tiny, train
from tests.methods.pyramid import VIEWS, Pyramid, few_and_many, full
from tests.methods.test_fixmatch import by_hand, moved
from tutelage.methods.unimatch_v2 import UniMatchV2, complementary_dropout
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings


def method(net: Any = None, **settings: Any) -> UniMatchV2:
    return UniMatchV2({"student": net or Pyramid()}, UniMatchV2.Settings(**settings), FACTS)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("labeled_size", [(32, 32), (20, 44)])
def test_the_step_by_hand(count: int, labeled_size: tuple[int, int]) -> None:
    made = moved(method(threshold=0.6, cutmix=0.8, weight=2.0, complementary_dropout=False))
    batches = few_and_many(unlabeled=count, padding=5, labeled_size=labeled_size)
    found = terms(made, batches)
    for name in ("strong", "strong2"):
        expected = by_hand(made.student, made.ema, batches["unlabeled"], name, 0.6, "reversed", 0.8)
        torch.testing.assert_close(found[name], 0.5 * 2.0 * 0.5 * expected)
    labeled = batches["labeled"]["weak"]
    supervised = F.cross_entropy(full(made.student, labeled.image), labeled.label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], 0.5 * supervised)
    assert found.keys() == {"cross_entropy", "strong", "strong2"}


def test_the_average_labels_and_both_strong_views_are_one_batch() -> None:
    made, batches = method(), few_and_many(labeled=2, unlabeled=3)
    terms(made, batches)
    assert made.ema.modes == [(False, False, 3)]
    assert made.student.modes == [(True, True, 2), (True, True, 6)], "labelled without dropout; strong"


def test_dropout_stands_between_encoder_and_decoder() -> None:
    made, batches = moved(method(threshold=0.0, cutmix=0.0)), few_and_many(unlabeled=4)
    found = terms(made, batches)
    unlabeled = batches["unlabeled"]
    features = made.student.encode(torch.cat((unlabeled["strong"].image, unlabeled["strong2"].image)))
    levels = complementary_dropout(features.levels, context(made, batches).generator)
    logits = F.interpolate(
        made.student.decode(features._replace(levels=levels)).logits, scale_factor=4, mode="bilinear"
    )
    label = full(made.ema, unlabeled["weak"].image).argmax(1)
    for part, name in zip(logits.chunk(2), ("strong", "strong2"), strict=True):
        torch.testing.assert_close(found[name], 0.25 * F.cross_entropy(part, label))
    plain = terms(moved(method(threshold=0.0, cutmix=0.0, complementary_dropout=False)), batches)
    assert plain["strong"] != found["strong"]
    torch.testing.assert_close(plain["cross_entropy"], found["cross_entropy"])


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans(), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_what_one_view_loses_the_other_keeps(images: int, widths: list[int], alike: bool, seed: int) -> None:
    widths = widths[:1] * len(widths) if alike else widths
    levels = [torch.ones(2 * images, width, 2, 3) for width in widths]
    out = complementary_dropout(levels, torch.Generator().manual_seed(seed))
    whole = []
    for level in out:
        first, second = level.chunk(2)
        assert torch.equal(first + second, torch.full_like(first, 2.0))
        assert set(level.unique().tolist()) <= {0.0, 1.0, 2.0}
        assert torch.equal(level, level[..., :1, :1].expand_as(level)), "whole channels"
        whole.append((first == 1).flatten(1).all(1))
    assert all(torch.equal(each, whole[0]) for each in whole), "the same images on all levels"
    assert int(whole[0].sum()) == images // 2
    if len(set(widths)) == 1:
        assert all(torch.equal(level, out[0]) for level in out), "one draw for all levels"


def test_levels_of_other_widths_have_draws_of_their_own() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second, third = complementary_dropout(
        [torch.ones(8, 64, 1, 1), torch.ones(8, 64, 1, 1), torch.ones(8, 32, 1, 1)], draw
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, :32], third)


def test_dropout_is_drawn_anew_and_in_the_precision_of_the_features() -> None:
    levels = [torch.ones(4, 64, 1, 1, dtype=torch.bfloat16)]
    draw = torch.Generator().manual_seed(0)
    one, other = complementary_dropout(levels, draw)[0], complementary_dropout(levels, draw)[0]
    assert one.dtype == torch.bfloat16
    assert not torch.equal(one, other)
    half = complementary_dropout([torch.ones(2, 4000, 1, 1)], draw)[0]
    assert (half == 2).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_gradients_reach_the_student_alone() -> None:
    made = moved(method(threshold=0.0))
    sum(terms(made, few_and_many()).values()).backward()  # type: ignore[union-attr]
    assert gradients(made) == {"student": True, "ema": False, "task": False}
    assert not any(p.requires_grad for p in made.ema.parameters())


def test_nothing_to_learn_is_exactly_zero_and_training_goes_on() -> None:
    made = method(tiny(), threshold=1.0)
    found = terms(made, few_and_many(size=(64, 64)))
    assert found["strong"].item() == found["strong2"].item() == 0
    padded = terms(method(threshold=0.0), few_and_many(padding=32))
    assert padded["strong"].item() == padded["strong2"].item() == 0
    before = copied(made.student)
    train(made, steps=2)
    assert changed(made.student, before)
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())


def test_the_average_is_a_copy_after_the_first_step_and_lags_after_others() -> None:
    made = method(tiny())
    train(made, steps=1)
    assert not changed(made.ema, copied(made.student)), "running statistics too"
    made = method(tiny())
    train(made, steps=3)
    floating = {name for name, value in made.student.state_dict().items() if value.is_floating_point()}
    apart = changed(made.ema, copied(made.student))
    assert any(name.endswith("running_var") for name in apart)
    assert apart <= floating


def test_batches_of_unequal_numbers_and_sizes_train() -> None:
    made = method(tiny(), threshold=0.0)
    before = copied(made.student)
    labeled = Stream(1, batch=2, size=(48, 80))
    train(made, steps=2, labeled=labeled, unlabeled=Stream(2, batch=3, labels=False, views=VIEWS))
    assert changed(made.student, before)


def test_a_plain_vision_transformer_shares_one_draw() -> None:
    """The published pair of encoder and decoder, with other numbers of layers and channels."""
    net = build(NetSettings(encoder="vit_tiny_patch16_224", decoder="dpt", width=16), 3, seed=0)
    assert len(set(net.feature_channels)) == 1
    made = method(net, threshold=0.0)
    found = terms(made, few_and_many(labeled=2, unlabeled=2))
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in made.student.parameters() if p.grad is not None)
    assert gradients(made)["student"]
