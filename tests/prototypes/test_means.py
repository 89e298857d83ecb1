"""Class means and anchors: rules of counting, absent classes, state, files, labels with a margin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.errors import raises_code
from tutelage.losses.segmentation import IGNORE
from tutelage.prototypes.anchors import anchor_labels, confident_labels
from tutelage.prototypes.means import ClassMeans, Rule, class_rows, class_vectors, correct_labels


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(label: torch.Tensor, classes: int, height: float = 4.0) -> torch.Tensor:
    return height * torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()


def test_fewer_than_ten_pixels_are_no_vector() -> None:
    label = torch.zeros(1, 4, 6, dtype=torch.int64)
    label[0, 0, :] = 1  # 6 pixels
    features = torch.randn(1, 5, 4, 6, generator=generator(0))
    found = class_vectors(features, logits_of(label, 3))
    assert found.valid.tolist() == [[True, False, False]]
    assert found.counts.tolist() == [[18, 6, 0]]
    torch.testing.assert_close(found.vectors[0, 0], features[0, :, 1:].flatten(1).mean(1))
    assert not found.vectors[0, 1:].any()
    assert class_vectors(features, logits_of(label, 3), min_pixels=6).valid.tolist() == [[True, True, False]]


def test_the_rule_of_ten_is_applied_before_the_threshold_and_after_the_labels() -> None:
    label = torch.zeros(1, 4, 6, dtype=torch.int64)
    logits = logits_of(label, 2, 0.1)
    logits[:, 0, 0, 0] = 9.0  # one sure pixel
    features = torch.randn(1, 5, 4, 6, generator=generator(0))
    found = class_vectors(features, logits, threshold=0.9)
    assert found.valid.tolist() == [[True, False]]
    torch.testing.assert_close(found.vectors[0, 0], features[0, :, 0, 0])
    assert not class_vectors(features, logits, threshold=0.99999).valid.any()
    truth = label.clone()
    truth[0, 1:] = 1
    assert not class_vectors(features, logits, truth).valid.any(), "6 pixels are labelled and predicted as 0"
    truth[0, 1:] = IGNORE
    truth[0, 1] = 0
    assert class_vectors(features, logits, truth).counts.tolist() == [[12, 0]]


def test_vectors_carry_gradients_and_invalid_ones_none() -> None:
    label = torch.zeros(1, 4, 6, dtype=torch.int64)
    label[0, 0, :] = 1
    features = torch.randn(1, 5, 4, 6, generator=generator(0), requires_grad=True)
    class_vectors(features, logits_of(label, 3)).vectors.sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad[:, :, 1:], torch.full((1, 5, 3, 6), 1 / 18))
    assert not features.grad[:, :, 0].any()


@pytest.mark.parametrize("rule", ["mean", "average", "auto"])
def test_folding_leaves_absent_classes_alone_and_is_sequential(rule: Rule) -> None:
    vectors = torch.randn(4, 3, 5, generator=generator(0))
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, False], [False, True, False]])
    whole, parts = (ClassMeans(3, 5, rule=rule, rate=0.1, mean_until=2) for _ in range(2))
    whole.fold(vectors, valid)
    for image in range(4):
        parts.fold(vectors[image : image + 1], valid[image : image + 1])
    assert torch.equal(whole.prototypes, parts.prototypes)
    assert whole.counts.tolist() == [3, 3, 0]
    assert whole.present.tolist() == [True, True, False]
    assert not whole.prototypes[2].any()
    if rule == "mean":
        torch.testing.assert_close(whole.prototypes[0], vectors[:3, 0].mean(0))
    if rule == "auto":
        torch.testing.assert_close(whole.prototypes[0], 0.9 * vectors[:2, 0].mean(0) + 0.1 * vectors[2, 0])


def test_a_full_count_forgets() -> None:
    means = ClassMeans(1, 2, count_cap=3)
    for value in (1.0, 2.0, 3.0, 9.0, 9.0):
        means.fold(torch.full((1, 1, 2), value), torch.ones(1, 1))
    assert means.counts.tolist() == [3]
    expected = ((2.0 * 3 + 9) / 4 * 3 + 9) / 4
    torch.testing.assert_close(means.prototypes, torch.full((1, 2), expected))


def test_vectors_that_sum_to_zero_or_are_not_finite_are_left_out() -> None:
    means = ClassMeans(3, 2)
    vectors = torch.tensor([[[1.0, -1.0], [float("inf"), 1.0], [float("nan"), 1.0]]])
    means.fold(vectors, torch.ones(1, 3, dtype=torch.bool))
    assert not means.prototypes.any()
    assert not means.counts.any()


def test_a_checkpoint_and_a_file_hold_them(tmp_path: Path) -> None:
    means = ClassMeans(2, 3)
    means.fold(torch.randn(2, 2, 3, generator=generator(0)), torch.ones(2, 2))
    other = ClassMeans(2, 3)
    other.load_state_dict(means.state_dict())
    assert torch.equal(other.prototypes, means.prototypes)
    means.save(tmp_path / "means.safetensors", ["road", "bus"], {"net": "x"})
    third = ClassMeans(2, 3)
    assert third.load(tmp_path / "means.safetensors") == (("road", "bus"), {"net": "x"})
    assert torch.equal(third.prototypes, means.prototypes)
    assert torch.equal(third.counts, means.counts)
    with pytest.raises(ValueError, match="holds prototypes"):
        ClassMeans(3, 3).load(tmp_path / "means.safetensors")
    with raises_code("missing-file", "class means"):
        third.load(tmp_path / "nowhere.safetensors")


def test_rows_of_positions_that_have_a_class() -> None:
    features = torch.arange(24.0).view(2, 3, 2, 2)
    label = torch.tensor([[[0, IGNORE], [2, 1]], [[IGNORE, IGNORE], [IGNORE, 0]]])
    rows, found, number = class_rows(features, label, 2)
    assert number.tolist() == [0, 3, 7]  # class 2 is none of the two
    assert found.tolist() == [0, 1, 0]
    assert torch.equal(rows[2], features[1, :, 1, 1])
    nothing = class_rows(features, torch.full((2, 2, 2), IGNORE), 2)
    assert [part.shape[0] for part in nothing] == [0, 0, 0]


def test_labels_that_are_predicted() -> None:
    logits = logits_of(torch.tensor([[[0, 1], [2, 1]]]), 3)
    assert correct_labels(logits).tolist() == [[[0, 1], [2, 1]]]
    assert correct_labels(logits, torch.tensor([[[0, 2], [IGNORE, 1]]])).tolist() == [[[0, IGNORE], [IGNORE, 1]]]


def test_the_margin_and_absent_anchors() -> None:
    anchors = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [4.0, 0.0], [6.25, 0.0], [3.75, 0.0]]).T.view(1, 2, 1, 4)
    assert anchor_labels(features, anchors, 2.5).tolist() == [[[0, 2, 2, 2]]]
    assert anchor_labels(features, anchors, 2.6).tolist() == [[[0, 2, IGNORE, IGNORE]]]
    without = torch.tensor([True, True, False])
    assert anchor_labels(features, anchors, 2.5, without).tolist() == [[[0, IGNORE, 1, 0]]]
    assert anchor_labels(features, anchors, 2.5, torch.tensor([False, True, False])).tolist() == [[[1] * 4]]
    assert anchor_labels(features, anchors, 2.5, torch.zeros(3, dtype=torch.bool)).tolist() == [[[IGNORE] * 4]]
    assert anchor_labels(features, anchors[:1]).tolist() == [[[0] * 4]]


def test_confident_labels_are_above_the_threshold() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = 5.0
    assert confident_labels(logits, 0.5).tolist() == [[[IGNORE, 1]]], "0.5 is not above 0.5"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(1, 5), pixels=st.integers(1, 30), scale=st.floats(0, 1e4))
def test_never_nan(seed: int, classes: int, pixels: int, scale: float) -> None:
    features = torch.randn(2, 3, 1, pixels, generator=generator(seed)) * scale
    logits = torch.randn(2, classes, 1, pixels, generator=generator(seed + 1)) * scale
    means = ClassMeans(classes, 3, rule="auto")
    for threshold in (None, 0.9):
        found = class_vectors(features, logits, threshold=threshold)
        means.fold(found.vectors, found.valid)
    assert found.vectors.isfinite().all()
    assert means.prototypes.isfinite().all()
    label = anchor_labels(features, means.prototypes, present_K=means.present)
    assert ((label == IGNORE) | (label < classes)).all()
