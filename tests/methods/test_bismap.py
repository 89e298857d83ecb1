"""BiSMAP: its terms by hand, pass by pass, and an average that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import FACTS, Stream, Stub, batch, changed, context, copied, terms, tiny, train
from tutelage.data.batch import Batch
from tutelage.methods import METHODS
from tutelage.methods.bismap import BiSMAP, BiSMAPWarmUp
from tutelage.methods.settings.bismap import MASKED_VIEW

VIEWS = ("weak", "masked")
STEP, RAMP = 3, 10
"""Of ten steps the fourth: the weight is exp(-5 * 0.49)."""


def method(net: Any = None, kind: type = BiSMAP, **settings: Any) -> Any:
    return kind({"student": net or Stub()}, kind.Settings(**{"ramp_steps": RAMP, **settings}), FACTS)


def moved(teacher: Any) -> Any:
    """With an average that differs from its student."""
    with torch.no_grad():
        for parameter in teacher.ema.parameters():
            parameter.mul_(0.5)
    return teacher


def hidden(target: Batch, rows: int = 9) -> Batch:
    """Some rows of the masked view are cut out, and one column of the whole one is padding."""
    shown, whole = target["masked"], target["weak"]
    valid, padded = shown.valid.clone(), whole.valid.clone()
    valid[:, :rows] = False
    padded[:, :, :3] = False
    image = shown.image * valid[:, None]
    return replace(
        target, views={"weak": replace(whole, valid=padded), "masked": replace(shown, image=image, valid=valid)}
    )


def weighted(source: Batch, weight_BHW: Tensor) -> Batch:
    view = source["weak"]
    return replace(source, views={"weak": replace(view, maps={**view.maps, "weight": weight_BHW})})


def given(**changes: Batch) -> dict[str, Batch]:
    return {"source": batch(1), "target": hidden(batch(2, VIEWS)), **changes}


def full(net: Any, image: Tensor) -> Tensor:
    return F.interpolate(net(image).logits, scale_factor=4, mode="bilinear")


def backward(teacher: Any, batches: Mapping[str, Batch], **changes: Any) -> list[str]:
    """All passes of a step, each into the student's gradients; the names of the terms in order."""
    names = []
    for each in teacher.passes(STEP):
        found = terms(teacher, batches, each.name, step=STEP, **changes)
        torch.stack(list(found.values())).sum().backward()
        names += list(found)
    return names


def test_the_source_is_divided_by_the_number_of_labels() -> None:
    source = batch(1)
    label, image = source["weak"].label, source["weak"].image
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(3))
    teacher = method(source=2.0)
    each = F.cross_entropy(full(teacher.student, image), label, ignore_index=255, reduction="none")
    number = (label != 255).sum()
    found = terms(teacher, given(source=weighted(source, weight)), "source")
    torch.testing.assert_close(found["source"], 2.0 * (weight * each).sum() / number)
    plain = terms(teacher, given(), "source")
    torch.testing.assert_close(plain["source"], 2.0 * each.sum() / number)
    none = terms(teacher, given(source=weighted(source, torch.zeros_like(weight))), "source")
    assert none["source"] == 0


def test_the_auxiliary_head_has_the_same_weights() -> None:
    source = batch(1)
    label, image = source["weak"].label, source["weak"].image
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(3))
    teacher = method(Stub(auxiliary=True), source=2.0, auxiliary=0.5)
    found = terms(teacher, given(source=weighted(source, weight)), "source")
    logits = F.interpolate(teacher.student(image).auxiliary, size=label.shape[1:], mode="bilinear")
    each = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
    torch.testing.assert_close(found["auxiliary"], (weight * each).sum() / (label != 255).sum())


def test_consistency_is_a_mean_over_unmasked_pixels_and_classes() -> None:
    teacher, batches = moved(method(consistency=7.0)), given()
    target = batches["target"]
    found = terms(teacher, batches, "consistency", step=STEP)
    log_p = full(teacher.student, target["masked"].image).log_softmax(1)
    q = full(teacher.ema, target["weak"].image).softmax(1)
    divergence = (q * (q.log() - log_p)).sum(1)
    shown = target["masked"].valid & target["weak"].valid
    assert 0 < shown.sum() < shown.numel()
    expected = 7.0 * torch.exp(torch.tensor(-5 * 0.7**2)) * divergence[shown].mean() / q.shape[1]
    torch.testing.assert_close(found["consistency"], expected)
    assert not any(parameter.requires_grad for parameter in teacher.ema.parameters())


def test_pseudo_labels_cost_both_ways() -> None:
    teacher, batches = method(target=3.0, alpha=0.2, beta=0.7), given()
    view = batches["target"]["weak"]
    found = terms(teacher, batches, "pseudo")
    logits = full(teacher.student, view.image)
    valid = view.label != 255
    forward = F.cross_entropy(logits, view.label, ignore_index=255)
    probability = logits.softmax(1).clamp(1e-7, 1.0)
    truth = F.one_hot(view.label.masked_fill(~valid, 0), 3).movedim(-1, 1).float().clamp(min=1e-4)
    backward = -(probability * truth.log()).sum(1)[valid].mean()
    torch.testing.assert_close(found["pseudo"], 3.0 * (0.2 * forward + 0.7 * backward))


def test_the_warm_up_never_reads_the_targets_labels() -> None:
    assert not BiSMAPWarmUp.Settings.streams["target"].labels
    assert BiSMAP.Settings.streams["target"].labels
    teacher = method(kind=BiSMAPWarmUp)
    names = backward(teacher, given(target=hidden(batch(2, VIEWS, labels=False))))
    assert names == ["source", "consistency"]
    assert set(teacher.counts(given())) == {"source", "shown"}


def test_passes_come_in_the_published_order_and_each_may_be_left_out() -> None:
    assert backward(method(), given()) == ["source", "consistency", "pseudo"]
    for name, left in (
        ("source", ["consistency", "pseudo"]),
        ("consistency", ["source", "pseudo"]),
        ("target", ["source", "consistency"]),
    ):
        assert backward(method(**{name: 0.0}), given()) == left
    alone = method(consistency=0.0)
    assert alone.ema is None
    assert list(alone.exported()) == ["student"]
    assert list(method().exported()) == ["student", "ema"]
    with pytest.raises(ValidationError, match="source, consistency must be"):
        method(kind=BiSMAPWarmUp, source=0.0, consistency=0.0)
    with pytest.raises(ValidationError, match="source, consistency, pseudo must be"):
        method(source=0.0, consistency=0.0, target=0.0)


def test_nothing_valid_is_exactly_zero() -> None:
    nothing = batch(1, ignored=1.0)
    target = hidden(batch(2, VIEWS, ignored=1.0), rows=32)
    teacher = moved(method(alpha=0.5))
    for name in ("source", "consistency", "pseudo"):
        (value,) = terms(teacher, {"source": nothing, "target": target}, name, step=STEP).values()
        value.backward()
        assert value == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in teacher.student.parameters())


def batch_norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_the_average_follows_and_copies_statistics(norm: str) -> None:
    teacher = method(tiny(), decay=0.75, teacher_norm=norm)
    before = copied(teacher.ema)
    train(teacher)
    for name, value in teacher.ema.state_dict().items():
        student = teacher.student.state_dict()[name]
        if "running" in name or "batches" in name:
            assert torch.equal(value, student), name
        else:
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student)
    assert {int(layer.num_batches_tracked) for layer in batch_norms(teacher.student)} == {3}, "source, masked, whole"
    for mode in (teacher.train, teacher.eval, teacher.train):
        mode()
        assert all(layer.training == (norm == "batch") for layer in batch_norms(teacher.ema))
        assert not any(layer.training for layer in teacher.ema.modules() if isinstance(layer, nn.Dropout))


def test_the_average_sees_the_batchs_statistics() -> None:
    """So that a student in the same mode agrees with it at the start, on the same image."""
    teacher = method(tiny())
    teacher.student.mode(norm="batch", dropout=False)
    same = batch(2, ("weak",), size=(64, 64))
    target = replace(same, views={"weak": same["weak"], "masked": same["weak"]})
    found = terms(teacher, {"source": batch(1), "target": target}, "consistency", step=STEP)
    assert found["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_a_masked_view_of_another_crop_is_refused() -> None:
    target = batch(2, VIEWS)
    geometry = replace(target["masked"].geometry, matrix=target["masked"].geometry.matrix + 1.0)
    other = replace(target, views={"weak": target["weak"], "masked": replace(target["masked"], geometry=geometry)})
    with raises_code("views-not-aligned", "masked"):
        terms(method(), given(target=other), "consistency")


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_one_batch(accumulate: int) -> None:
    def trained(accumulate: int) -> Any:
        net = tiny()
        net.mode(norm="running", dropout=False)
        teacher = method(net, ramp_steps=0, teacher_norm="running")
        train(teacher, accumulate=accumulate, target=Stream(7, batch=8, views=VIEWS))
        return teacher

    whole, parts = trained(1), trained(accumulate)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_the_masked_view_is_the_published_one_where_nothing_is_said() -> None:
    assert BiSMAP.Settings.streams["target"].defaults["masked"] == MASKED_VIEW
    assert MASKED_VIEW.randaugment is not None
    assert not MASKED_VIEW.randaugment.geometric
    assert MASKED_VIEW.cutout is not None
    assert (MASKED_VIEW.cutout.share, MASKED_VIEW.cutout.of, MASKED_VIEW.cutout.fill) == (0.2, "width", 0)
    assert MASKED_VIEW.colour.brightness == 0.0
    assert {"bismap", "bismap_warm_up"} <= METHODS.keys()


def test_what_is_kept() -> None:
    teacher = method()
    assert {name.partition(".")[0] for name in teacher.learned_state()} == {"student", "ema"}
    before = copied(teacher.ema)
    with torch.no_grad():
        teacher.student.classifier.weight.add_(1.0)
    teacher.after_step(context(teacher, given()))
    assert changed(teacher.ema, before)
