"""Pixel-wise distillation: the term by hand, a teacher that stays as it was, grids that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.cases import FACTS, Stub, batch, changed, copied, gradients, terms, tiny, train
from tutelage.losses.distillation import pixel_kd
from tutelage.methods.distillation.distill import on_grid
from tutelage.methods.pixel_kd import PixelKD


def method(student: Any = None, teacher: Any = None, **settings: Any) -> PixelKD:
    nets = {"student": student or Stub(0), "teacher": teacher or Stub(1)}
    return PixelKD(nets, PixelKD.Settings(**settings), FACTS)


def test_the_term_by_hand() -> None:
    kd, given = method(temperature=2.0, weight=0.7), batch(1)
    found = terms(kd, {"labeled": given})
    image = given["weak"].image
    student, teacher = kd.student(image).logits, kd.teacher(image).logits
    p_T, p_S = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = 0.7 * 4 * (p_T * (p_T.log() - p_S.log())).sum(1).mean()
    assert found.keys() == {"cross_entropy", "pixel_kd"}
    torch.testing.assert_close(found["pixel_kd"], expected)


@pytest.mark.parametrize("teacher_stride", [4, 8, 16])
@pytest.mark.parametrize("student_stride", [4, 8, 16])
def test_a_teacher_on_another_grid_is_brought_to_the_students(student_stride: int, teacher_stride: int) -> None:
    kd, given = method(Stub(0, student_stride), Stub(1, teacher_stride)), batch(1, size=(48, 40))
    image = given["weak"].image
    student, teacher = kd.student(image).logits, kd.teacher(image).logits
    resized = on_grid(teacher, student)
    torch.testing.assert_close(terms(kd, {"labeled": given})["pixel_kd"], pixel_kd(student, resized))
    if student_stride == teacher_stride:
        assert torch.equal(resized, teacher)


def test_ignored_positions_count_in_the_distillation_alone() -> None:
    kd = method()
    found = terms(kd, {"labeled": batch(1, ignored=1.0)})
    assert found["cross_entropy"].item() == 0
    assert found["pixel_kd"].item() > 0
    torch.testing.assert_close(found["pixel_kd"], terms(kd, {"labeled": batch(1, ignored=0.0)})["pixel_kd"])


def test_gradients_reach_the_student_alone() -> None:
    kd = method()
    sum(terms(kd, {"labeled": batch(1)}).values()).backward()  # type: ignore[union-attr]
    assert {name for name, reached in gradients(kd).items() if reached} == {"student"}
    assert all(p.grad is None for p in kd.teacher.parameters())


def test_a_trained_teacher_is_in_evaluation_mode_and_stays_byte_for_byte() -> None:
    student, teacher = tiny(seed=0), tiny("deeplabv3plus", auxiliary=True, seed=1)
    kd = method(student, teacher)
    before, begun = copied(teacher), copied(student)
    modes: set[bool] = set()
    teacher.register_forward_hook(lambda module, *_: modes.add(any(m.training for m in module.modules())))
    train(kd, steps=2)
    assert modes == {False}, "also its norms and its dropout"
    assert not changed(teacher, before)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {"classifier.weight", "encoder.conv_stem.weight"} <= {
        name.replace("model.", "") for name in changed(student, begun)
    }
    assert (kd.student.training, kd.teacher.training) == (True, False)
    assert not [name for name in kd.learned_state() if name.startswith("teacher")]
    assert list(kd.exported()) == ["student"]


def test_without_weight_it_is_supervised_training() -> None:
    given = batch(3)
    found = terms(method(weight=0.0), {"labeled": given})
    assert found.keys() == {"cross_entropy"}
    assert found["cross_entropy"].item() > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    assert terms(method(Stub(1), Stub(1)), {"labeled": batch(1)})["pixel_kd"].item() == pytest.approx(0, abs=1e-6)


def test_half_precision_nets_have_single_precision_terms() -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    kd = method(student, teacher)
    for net in (student, teacher):
        net.precision = "bf16"
    assert {term.dtype for term in terms(kd, {"labeled": batch(1, size=(64, 64))}).values()} == {torch.float32}
