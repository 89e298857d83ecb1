"""Mean Teacher: the terms by hand, and an average that follows and is never trained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.cases import (
    FACTS,
    SGD,
    Stream,
    Stub,
    batch,
    changed,
    context,
    copied,
    gradients,
    terms,
    tiny,
    train,
)  # fmt: skip
from tutelage.methods.ema import decay_at
from tutelage.methods.mean_teacher import MeanTeacher


def method(net: Any = None, **settings: Any) -> MeanTeacher:
    return MeanTeacher({"student": net or Stub()}, MeanTeacher.Settings(**settings), FACTS)


def moved(teacher: MeanTeacher) -> MeanTeacher:
    """With an average that differs from its student."""
    with torch.no_grad():
        for parameter in teacher.ema.parameters():
            parameter.mul_(0.5)
    return teacher


def full(net: Stub, image: torch.Tensor) -> torch.Tensor:
    logits = F.interpolate(net(image).logits, scale_factor=4, mode="bilinear")
    return logits[..., : image.shape[2], : image.shape[3]]


def test_the_mean_runs_over_all_images_of_both_batches() -> None:
    teacher = moved(method(weight=10.0))
    batches = {"labeled": batch(1, count=2), "unlabeled": batch(2, count=3, labels=False)}
    found = terms(teacher, batches)
    images = torch.cat([batches[name]["weak"].image for name in batches])
    mine, theirs = full(teacher.student, images).softmax(1), full(teacher.ema, images).softmax(1)
    torch.testing.assert_close(found["consistency"], 10 * ((mine - theirs) ** 2).mean())
    label = batches["labeled"]["weak"].label
    expected = F.cross_entropy(full(teacher.student, images[:2]), label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], expected)
    assert found.keys() == {"cross_entropy", "consistency"}


def test_batches_of_other_sizes_are_pooled_by_their_elements() -> None:
    teacher = moved(method(weight=1.0))
    batches = {"labeled": batch(1, count=1, size=(30, 34)), "unlabeled": batch(2, count=3, size=(48, 32), labels=False)}
    differences = [
        (full(teacher.student, image).softmax(1) - full(teacher.ema, image).softmax(1)).square().flatten()
        for image in (batches[name]["weak"].image for name in batches)
    ]
    torch.testing.assert_close(terms(teacher, batches)["consistency"], torch.cat(differences).mean())


def test_the_ramp_by_hand() -> None:
    teacher = moved(method(weight=2.0, ramp_steps=4))
    batches = {"labeled": batch(1), "unlabeled": batch(2, labels=False)}
    at_full = terms(moved(method(weight=2.0)), batches)["consistency"].item()
    for step in range(7):
        share = math.exp(-5 * (1 - min(step / 4, 1)) ** 2)
        found = terms(teacher, batches, step=step)["consistency"].item()
        assert found == pytest.approx(at_full * share, rel=1e-5), step
    assert terms(moved(method(weight=2.0)), batches, step=0)["consistency"].item() == pytest.approx(at_full)


def test_a_labelled_batch_without_labels_leaves_the_consistency() -> None:
    teacher = moved(method())
    found = terms(teacher, {"labeled": batch(1, ignored=1.0), "unlabeled": batch(2, labels=False)})
    assert found["cross_entropy"].item() == 0
    assert torch.isfinite(found["consistency"])
    assert found["consistency"] > 0
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in teacher.student.parameters())


def test_gradients_reach_the_student_alone() -> None:
    teacher = moved(method())
    sum(terms(teacher, {"labeled": batch(1), "unlabeled": batch(2, labels=False)}).values()).backward()  # type: ignore[union-attr]
    assert gradients(teacher) == {"student": True, "ema": False, "task": False}
    assert not any(p.requires_grad for p in teacher.ema.parameters())


@pytest.mark.parametrize("ramp_decay", [False, True])
def test_the_average_follows_after_every_step(ramp_decay: bool) -> None:
    teacher = method(Stub(), decay=0.9, ramp_decay=ramp_decay)
    expected = copied(teacher.ema)
    students: list[dict[str, torch.Tensor]] = []
    original = teacher.after_step
    teacher.after_step = lambda context: (students.append(copied(teacher.student)), original(context))[-1]  # type: ignore[method-assign, func-returns-value, assignment]
    train(teacher, steps=3)
    for step, student in enumerate(students):
        decay = decay_at(step + 1, 0.9, ramp_decay)
        expected = {name: decay * value + (1 - decay) * student[name] for name, value in expected.items()}
    assert len(students) == 3
    for name, value in teacher.ema.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(teacher.ema.classifier.weight, teacher.student.classifier.weight)


def batch_norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_the_average_normalises_by_the_batch_with_statistics_of_its_own() -> None:
    teacher = method(tiny())
    before, begun = copied(teacher.ema), copied(teacher.student)
    train(teacher, steps=1, optimizer=SGD.model_copy(update={"lr": 1e-12}))
    for net, start in ((teacher.ema, before), (teacher.student, begun)):
        means = {name for name in changed(net, start) if name.endswith("running_mean")}
        assert len(means) == len(batch_norms(net)), "its own forwards update them"
        counts = {int(module.num_batches_tracked) - 0 for module in batch_norms(net)}
        assert counts == {2}, "labelled and unlabelled images pass one after the other"
    for mode in (teacher.train, teacher.eval, teacher.train):
        mode()
        assert all(module.training for module in batch_norms(teacher.ema)), "whatever train() and eval() say"
        dropouts = [module for module in teacher.ema.modules() if isinstance(module, nn.Dropout)]
        assert not any(module.training for module in dropouts)
    with teacher.ema.inferring() as net:
        assert not any(module.training for module in net.modules())


def test_student_and_average_agree_at_the_start() -> None:
    teacher = method(tiny())
    teacher.student.mode(norm="batch", dropout=False)
    given = {"labeled": batch(1, size=(64, 64)), "unlabeled": batch(2, size=(64, 64), labels=False)}
    assert terms(teacher, given)["consistency"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_one_batch(accumulate: int) -> None:
    def trained(accumulate: int) -> MeanTeacher:
        teacher = method(tiny(), weight=5.0)
        teacher.student.mode(norm="running", dropout=False)
        teacher.ema.mode(norm="running", dropout=False)
        moved(teacher)
        train(teacher, accumulate=accumulate, unlabeled=Stream(7, batch=8, labels=False))
        return teacher

    whole, parts = trained(1), trained(accumulate)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_what_is_kept_and_what_is_exported() -> None:
    teacher = method()
    assert {name.partition(".")[0] for name in teacher.learned_state()} == {"student", "ema"}
    assert list(teacher.exported()) == ["student", "ema"]
    assert teacher.exported()["ema"] is teacher.ema
    assert teacher.counts({"labeled": batch(1)})["labeled"] == (batch(1)["weak"].label != 255).sum()
    teacher.after_step(context(teacher, {"labeled": batch(1)}))
