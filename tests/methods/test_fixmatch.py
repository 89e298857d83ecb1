"""FixMatch: the step by hand, who labels and how, and what no strong view may do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import FACTS, Stream, batch, context, copied, gradients, terms, tiny, train
from tests.methods.pyramid import Pyramid, few_and_many, full
from tutelage.data.batch import Batch
from tutelage.data.mixing.cutmix import box_masks, draw_boxes
from tutelage.losses.consistency import masked_consistency
from tutelage.methods.ema import decay_at
from tutelage.methods.fixmatch import FixMatch


def method(net: Any = None, **settings: Any) -> FixMatch:
    return FixMatch({"student": net or Pyramid()}, FixMatch.Settings(**settings), FACTS)


def moved(made: Any) -> Any:
    """With an average that differs from its student."""
    with torch.no_grad():
        for parameter in made.ema.parameters():
            parameter.mul_(0.5)
    return made


def by_hand(student: Any, judge: Any, given: Batch, view: str, threshold: float, rule: str, cutmix: float) -> Tensor:
    """M of one strong view, image by image: paste, then compare."""
    weak, image = given["weak"], given[view].image.clone()
    probability = full(judge, weak.image).softmax(1).detach()
    confidence, label = probability.max(1)
    valid = weak.valid.clone()
    count = len(image)
    sources = (image.clone(), confidence.clone(), label.clone(), valid.clone())
    size = (image.shape[2], image.shape[3])
    for n, (top, left, height, width) in enumerate(draw_boxes(1, view, range(count), size, cutmix)):
        rows, columns = slice(top, top + height), slice(left, left + width)
        partner = (n + 1) % count if rule == "next" else count - 1 - n
        for target, source in zip((image, confidence, label, valid), sources, strict=True):
            target[n, ..., rows, columns] = source[partner, ..., rows, columns]
    return masked_consistency(full(student, image), label, confidence, valid, threshold)


@pytest.mark.parametrize("source", ["student", "ema"])
@pytest.mark.parametrize("rule", ["next", "reversed"])
def test_the_step_by_hand(source: str, rule: str) -> None:
    made = method(pseudo_labels=source, partner=rule, threshold=0.6, cutmix=0.8, weight=3.0)
    if source == "ema":
        moved(made)
    given = few_and_many(unlabeled=5, padding=7)
    found = terms(made, given)
    judge = made.student if made.ema is None else made.ema
    expected = by_hand(made.student, judge, given["unlabeled"], "strong", 0.6, rule, 0.8)
    torch.testing.assert_close(found["strong"], 0.5 * 3.0 * expected)
    labeled = given["labeled"]["weak"]
    supervised = F.cross_entropy(full(made.student, labeled.image), labeled.label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], 0.5 * supervised)
    assert found.keys() == {"cross_entropy", "strong"}
    assert found["strong"] > 0


def test_nothing_is_pasted_at_probability_0_and_something_at_1() -> None:
    given = few_and_many(unlabeled=2)
    plain, pasted = (terms(method(threshold=0.0, cutmix=p), given)["strong"].item() for p in (0.0, 1.0))
    weak, net = given["unlabeled"]["weak"], Pyramid()
    label = full(net, weak.image).argmax(1)
    assert plain == pytest.approx(0.5 * F.cross_entropy(full(net, given["unlabeled"]["strong"].image), label).item())
    assert plain != pytest.approx(pasted, rel=1e-3)


def test_who_labels_and_in_which_mode() -> None:
    given = few_and_many(labeled=2, unlabeled=3)
    made = method()
    terms(made, given)
    assert made.student.modes == [(False, False, 3), (True, True, 5), (True, True, 3)], "partner; both; strong"
    assert made.student.training
    averaged = method(pseudo_labels="ema")
    terms(averaged, given)
    assert averaged.ema.modes == [(False, False, 3)]
    assert averaged.student.modes == [(True, True, 2), (True, True, 3)], "labelled; strong"


@pytest.mark.parametrize("source", ["student", "ema"])
def test_labelled_crops_of_another_size(source: str) -> None:
    given = few_and_many(labeled=3, unlabeled=2, labeled_size=(20, 28), size=(30, 34))
    made = method(pseudo_labels=source, threshold=0.0)
    found = terms(made, given)
    judge = made.student if made.ema is None else made.ema
    expected = by_hand(made.student, judge, given["unlabeled"], "strong", 0.0, "next", 0.5)
    torch.testing.assert_close(found["strong"], 0.5 * expected)
    if source == "student":
        assert made.student.modes[1:3] == [(True, True, 3), (True, False, 2)], "the weak view needs no gradient then"
    sum(found.values()).backward()  # type: ignore[union-attr]


def test_labelled_and_weak_images_are_one_batch_of_statistics() -> None:
    given = few_and_many(labeled=2, unlabeled=3)
    made = method(tiny())
    norms = [module for module in made.student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    terms(made, given)
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}, "both together, and the strong view"
    terms(made, few_and_many(labeled_size=(64, 32)))
    assert {int(norm.num_batches_tracked) for norm in norms} == {5}, "labelled, weak and strong apart"


@pytest.mark.parametrize("why", ["unsure", "padding"])
def test_nothing_to_learn_is_exactly_zero_and_training_goes_on(why: str) -> None:
    made = method(threshold=1.0 if why == "unsure" else 0.0)
    given = few_and_many(padding=32 if why == "padding" else 0)
    with torch.no_grad():
        made.student.classifier.weight.mul_(0.01)
    found = terms(made, given)
    assert found["strong"].item() == 0
    found["strong"].backward(retain_graph=True)
    assert not any(p.grad is not None and bool(p.grad.any()) for p in made.student.parameters())
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert gradients(made)["student"]
    assert all(torch.isfinite(p.grad).all() for p in made.student.parameters())


def test_pseudo_labels_carry_no_gradient() -> None:
    """The unlabelled term alone: the weak view's logits of the same net change nothing of its gradient."""
    made, given = method(threshold=0.0), few_and_many()
    terms(made, given)["strong"].backward()
    ours = [p.grad.clone() for p in made.student.parameters()]
    net = Pyramid()
    (0.5 * by_hand(net, Pyramid(), given["unlabeled"], "strong", 0.0, "next", 0.5)).backward()
    for mine, theirs in zip(ours, net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)
    averaged = method(pseudo_labels="ema")
    sum(terms(averaged, given).values()).backward()  # type: ignore[union-attr]
    assert gradients(averaged) == {"student": True, "ema": False, "task": False}


def test_the_average_copies_first_and_follows_in_statistics_too() -> None:
    made = method(Pyramid(norm=True), pseudo_labels="ema", decay=0.6, threshold=0.5)
    expected = copied(made.ema)
    students: list[dict[str, Tensor]] = []
    original = made.after_step
    made.after_step = lambda context: (students.append(copied(made.student)), original(context))[-1]  # type: ignore[method-assign, func-returns-value, assignment]
    train(made, steps=4)
    for step, student in enumerate(students):
        decay = decay_at(step, 0.6, ramp=True)
        assert decay == pytest.approx([0, 0.5, 0.6, 0.6][step])
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * student[name] if value.is_floating_point() else student[name]
        if step == 0:
            assert all(torch.equal(expected[name], value) for name, value in student.items())
    for name, value in made.ema.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(made.ema.norm.running_mean, made.student.norm.running_mean)


def test_what_is_exported_and_kept() -> None:
    plain, averaged = method(), method(pseudo_labels="ema")
    assert list(plain.exported()) == ["student"]
    assert list(averaged.exported()) == ["student", "ema"]
    assert {name.partition(".")[0] for name in plain.learned_state()} == {"student"}
    assert {name.partition(".")[0] for name in averaged.learned_state()} == {"student", "ema"}
    assert FixMatch.Settings.trained_nets == ("student",)


def test_a_strong_view_of_another_crop_is_refused() -> None:
    given, other = few_and_many(), batch(3, views=("weak", "strong"), count=3)
    strong = replace(given["unlabeled"]["strong"], geometry=other["strong"].geometry)
    given["unlabeled"].views["strong"] = strong  # type: ignore[index]
    terms(method(), given)  # the same crop, said twice
    shifted = replace(strong.geometry, matrix=strong.geometry.matrix + 1)
    given["unlabeled"].views["strong"] = replace(strong, geometry=shifted)  # type: ignore[index]
    with raises_code("views-not-aligned") as caught:
        terms(method(), given)
    assert "views.strong" in str(caught.value.remedy)


def test_boxes_belong_to_positions_not_to_slices() -> None:
    made, given = method(), few_and_many(unlabeled=4)
    whole = given["unlabeled"]
    masks = box_masks(draw_boxes(1, "strong", range(4), (32, 32)), (32, 32))
    assert masks.any()
    pseudo = made.judged(made.student, whole["weak"])
    ours, _ = made.mixed(whole, "strong", pseudo, pseudo, context(made, given))
    again, _ = made.mixed(whole, "strong", pseudo, pseudo, context(made, given, slice=3, step=9))
    assert torch.equal(ours, again)
    assert not torch.equal(ours, made.mixed(whole, "strong", pseudo, pseudo, context(made, given, seed=2))[0])
    torch.testing.assert_close(ours, torch.where(masks[:, None], whole["strong"].image.roll(-1, 0), ours))


def test_micro_batches_average_their_own_means() -> None:
    """Without boxes, and with valid pixels alike everywhere, two micro-batches are one batch."""

    def trained(accumulate: int) -> FixMatch:
        made = method(pseudo_labels="ema", threshold=0.5, cutmix=0.0)
        many = Stream(7, batch=4, labels=False, views=("weak", "strong"))
        train(made, accumulate=accumulate, unlabeled=many)
        return made

    whole, parts = trained(1), trained(2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)
