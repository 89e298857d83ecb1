"""Self-distillation by hand: weighted source, pseudo labels on a grid, the teacher on the same image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.cases import FACTS, Stream, Stub, batch, changed, copied, terms, train
from tutelage.data.batch import Batch
from tutelage.losses.symmetric import symmetric_cross_entropy
from tutelage.methods.self_distill import SelfDistill


def method(**settings: Any) -> SelfDistill:
    nets: Any = {"student": Stub(0), "teacher": Stub(7)}
    return SelfDistill(nets, SelfDistill.Settings(**settings), FACTS)


def domains(count: int = 3, ignored: float = 0.3, **options: Any) -> dict[str, Batch]:
    views = ("weak", "strong")
    return {"source": batch(1, count=count), "target": batch(2, views, count=count, ignored=ignored, **options)}


def full(logits: Tensor) -> Tensor:
    return F.interpolate(logits, scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("shown", ["strong", "weak"])
@pytest.mark.parametrize(("form", "target_loss"), [("log", "cross_entropy"), ("code", "symmetric")])
@pytest.mark.parametrize("grid", [4, 1])
def test_the_target_by_hand(shown: str, form: str, target_loss: str, grid: int) -> None:
    made = method(view=shown, form=form, target_loss=target_loss, grid=grid, kd=3.0, alpha=0.4)
    batches = domains()
    view = batches["target"][shown]
    label = view.label[:, ::grid, ::grid]
    student, teacher = made.student(view.image).logits, made.teacher(view.image).logits.detach()
    if grid == 1:
        student, teacher = full(student), full(teacher)
    p, q = teacher.softmax(1), student.softmax(1)
    found = terms(made, batches, "target")
    torch.testing.assert_close(found["kd"], 3 * (p * (p.log() - (q.log() if form == "log" else q))).mean())
    expected = (
        F.cross_entropy(student, label, ignore_index=255)
        if target_loss == "cross_entropy"
        else symmetric_cross_entropy(student, label, alpha=0.4)
    )
    torch.testing.assert_close(found["pseudo_labels"], expected)
    assert found.keys() == {"pseudo_labels", "kd"}


def test_the_source_by_hand_and_with_weights() -> None:
    made, batches = method(), domains()
    source = batches["source"]["weak"]
    each = F.cross_entropy(full(made.student(source.image).logits), source.label, ignore_index=255, reduction="none")
    labelled = (source.label != 255).sum()
    found = terms(made, batches, "source")
    torch.testing.assert_close(found["cross_entropy"], each.sum() / labelled)
    weight = torch.rand(source.label.shape)
    weighted = replace(source, maps={**source.maps, "weight": weight})
    found = terms(made, {**batches, "source": replace(batches["source"], views={"weak": weighted})}, "source")
    torch.testing.assert_close(found["cross_entropy"], (each * weight).sum() / labelled)


def test_without_a_teacher_to_ask() -> None:
    made = method(kd=0.0)
    made.teacher = torch.nn.Module()  # would fail if it were asked
    assert terms(made, domains(), "target").keys() == {"pseudo_labels"}


@pytest.mark.parametrize("target_loss", ["cross_entropy", "symmetric"])
def test_without_pseudo_labels(target_loss: str) -> None:
    made = method(target_loss=target_loss)
    found = terms(made, domains(ignored=1.1), "target")
    assert found["pseudo_labels"].item() == 0.0
    found["pseudo_labels"].backward()
    assert not any(parameter.grad.any() for parameter in made.student.parameters())


def test_micro_batches_are_one_batch() -> None:
    ends = []
    for accumulate in (1, 2):
        made = method()
        views = {
            name: Stream(seed, views=needs.views) for seed, (name, needs) in enumerate(made.Settings.streams.items())
        }
        train(made, steps=2, accumulate=accumulate, **views)
        ends.append(copied(made))
    assert changed(method().student, copied(made.student))
    assert not changed(method().teacher, copied(made.teacher))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)
