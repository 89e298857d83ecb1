"""Supervised training and the task loss, term by term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import CLASSES, FACTS, Stub, batch, copied, part, terms, tiny, train
from tutelage.engine.contract import TaskInfo
from tutelage.losses.segmentation import dice_loss, ohem_cross_entropy
from tutelage.methods.supervised import Supervised


def method(net: Any = None, info: TaskInfo = FACTS, **settings: Any) -> Supervised:
    return Supervised({"student": net or Stub()}, Supervised.Settings(**settings), info)


def upsampled(logits: torch.Tensor, factor: int, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, scale_factor=factor, mode="bilinear")[..., : size[0], : size[1]]


def test_cross_entropy_is_the_mean_over_valid_pixels_at_full_size() -> None:
    supervised, given = method(), batch(1, size=(30, 34))
    (name, term), = terms(supervised, {"labeled": given}).items()  # fmt: skip
    weak = given["weak"]
    logits = upsampled(supervised.student(weak.image).logits, 4, (30, 34))
    assert name == "cross_entropy"
    torch.testing.assert_close(term, F.cross_entropy(logits, weak.label, ignore_index=255))


@pytest.mark.parametrize(("rule", "corners"), [("centers", False), ("corners", True)])
def test_the_rule_of_resizing_is_a_setting(rule: str, corners: bool) -> None:
    supervised, given = method(resize=rule), batch(1, size=(30, 34))
    logits = supervised.student(given["weak"].image).logits
    stretched = F.interpolate(logits, (30, 34), mode="bilinear", align_corners=corners)
    expected = F.cross_entropy(stretched, given["weak"].label, ignore_index=255)
    torch.testing.assert_close(terms(supervised, {"labeled": given})["cross_entropy"], expected)
    assert not torch.isclose(expected, terms(method(), {"labeled": given})["cross_entropy"])


def test_every_part_of_the_loss_has_its_weight() -> None:
    net, given = Stub(auxiliary=True), batch(2)
    settings = {"smoothing": 0.2, "dice": 0.5, "auxiliary": 0.3, "class_weights": [1, 2, 0.5]}
    found = terms(method(net, **settings), {"labeled": given})
    prediction, label = net(given["weak"].image), given["weak"].label
    options = {"ignore_index": 255, "weight": torch.tensor([1, 2, 0.5]), "label_smoothing": 0.2}
    main = upsampled(prediction.logits, 4, (32, 32))
    assert prediction.auxiliary is not None
    beside = F.interpolate(prediction.auxiliary, (32, 32), mode="bilinear")
    assert found.keys() == {"cross_entropy", "dice", "auxiliary"}
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(main, label, **options))
    torch.testing.assert_close(found["auxiliary"], 0.3 * F.cross_entropy(beside, label, **options))
    torch.testing.assert_close(found["dice"], 0.5 * dice_loss(main, label))


def test_an_auxiliary_head_without_weight_or_a_weight_without_head_is_no_term() -> None:
    assert terms(method(Stub(auxiliary=True), auxiliary=0), {"labeled": batch(2)}).keys() == {"cross_entropy"}
    assert terms(method(Stub(), auxiliary=0.4), {"labeled": batch(2)}).keys() == {"cross_entropy"}


def test_hard_pixels() -> None:
    net, given = Stub(), batch(2)
    found = terms(method(net, loss="ohem", ohem_threshold=0.4, ohem_min_kept=20), {"labeled": given})
    logits = upsampled(net(given["weak"].image).logits, 4, (32, 32))
    expected = ohem_cross_entropy(logits, given["weak"].label, threshold=0.4, min_kept=20)
    assert found.keys() == {"ohem"}
    torch.testing.assert_close(found["ohem"], expected)


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "ohem"}, {"dice": 1.0}, {"class_weights": [1, 2, 3], "smoothing": 0.1}]
)
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_batch_without_labels_gives_zero_and_zero_gradients(settings: dict, auxiliary: bool) -> None:
    supervised = method(Stub(auxiliary=auxiliary), **settings)
    found = terms(supervised, {"labeled": batch(3, ignored=1.0)})
    assert all(term.item() == 0 for term in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]
    for parameter in supervised.student.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("settings", [{}, {"class_weights": [1, 2, 0.5], "smoothing": 0.1}])
def test_parts_of_a_batch_average_to_the_whole(settings: dict) -> None:
    """Whatever the number of valid labels in each: also one without any."""
    supervised, whole = method(Stub(auxiliary=True), **settings), batch(4, count=3)
    whole["weak"].label[1] = 255
    parts = [part(whole, slice(n, n + 1)) for n in range(3)]
    totals = {"labeled": sum(supervised.counts({"labeled": each})["labeled"] for each in parts)}
    expected = terms(supervised, {"labeled": whole})
    found = [terms(supervised, {"labeled": each}, totals=totals, slices=3) for each in parts]
    assert all(term.item() == 0 for term in found[1].values())
    for name, term in expected.items():
        torch.testing.assert_close(torch.stack([each[name] for each in found]).mean(), term)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_one_batch(accumulate: int) -> None:
    """With a net whose norms do not look at the batch."""
    nets = [tiny("deeplabv3plus", auxiliary=True).mode(norm="running", dropout=False) for _ in range(2)]
    before = copied(nets[0])
    train(method(nets[0], class_weights=[1, 2, 0.5]))
    train(method(nets[1], class_weights=[1, 2, 0.5]), accumulate=accumulate)
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(before["classifier.weight"], nets[0].classifier.weight)


# Class weights


def weights(info: TaskInfo = FACTS, **settings: Any) -> list[float]:
    found = method(info=info, **settings).task.class_weight_K
    assert found is not None
    return found.tolist()


def test_balanced_weights_by_hand() -> None:
    assert weights(class_weights="balanced") == pytest.approx([300 / 600, 1.0, 300 / 100])
    absent = TaskInfo(4, lambda: (100, 50, 0, 10))
    assert weights(absent, class_weights="balanced") == pytest.approx([0.5, 1, 1, 5]), "a class that never occurs: 1"


def test_masks_are_counted_only_where_weights_need_it() -> None:
    def count() -> list[int]:
        raise AssertionError("reads every mask")

    assert method(info=TaskInfo(CLASSES, count)).task.class_weight_K is None
    assert weights(TaskInfo(CLASSES, count), class_weights=[1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("counts", [(0, 0, 0), ()])
def test_balanced_weights_of_nothing_are_refused(counts: tuple[int, ...]) -> None:
    with raises_code("no-labelled-pixels"):
        method(info=TaskInfo(CLASSES, lambda: counts), class_weights="balanced")


def test_a_weight_for_each_class() -> None:
    with raises_code("class-weights-length", "3", "2"):
        method(class_weights=[1, 2])


def test_counts_are_the_weights_of_valid_labels() -> None:
    given = batch(5)
    label = given["weak"].label
    counts = [(label == k).sum().item() for k in range(CLASSES)]
    assert method().counts({"labeled": given})["labeled"].item() == sum(counts)
    weighted = method(class_weights=[1, 2, 0.5]).counts({"labeled": given})["labeled"]
    assert weighted.item() == pytest.approx(counts[0] + 2 * counts[1] + 0.5 * counts[2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"smoothing": 1},
        {"dice": -1},
        {"class_weights": [-1, 1, 1]},
        {"ohem_threshold": 0},
        {"loss": "focal"},
        {"resize": "up"},
    ],
)
def test_settings_that_make_no_loss(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Supervised.Settings(**wrong)


def test_it_learns() -> None:
    """Loss falls on blobs that are coloured by their class."""
    net = tiny()
    supervised = method(net)
    given = {"labeled": batch(9, count=4, size=(64, 64))}
    net.train()
    before = terms(supervised, given)["cross_entropy"].item()
    train(supervised, steps=12, optimizer={"kind": "adamw", "lr": 3e-3})
    net.train()
    assert terms(supervised, given)["cross_entropy"].item() < 0.7 * before
