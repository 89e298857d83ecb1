"""DACS: the mixed loss by hand, its weights, the average, and what must not depend on how a batch is dealt out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import Stream, batch, context, copied, gradients, train
from tests.methods.domains import PLAIN, Shown, domains, full, made, passes
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Geometries
from tutelage.data.mixing.classmix import class_masks, draw_scores
from tutelage.methods.dacs import DACS
from tutelage.methods.ema import decay_at
from tutelage.methods.mixed_self_training import inside_margins
from tutelage.methods.settings.mixed_self_training import MarginSettings


def by_hand(method: Any, given: dict[str, Any], threshold: float, weighting: str, keep: Tensor | None = None) -> Tensor:
    """The mixed term, image by image."""
    source, target = given["source"]["weak"], given["target"]["weak"]
    confidence, pseudo = full(method.ema, target.image).softmax(1).max(1)
    sure = (confidence >= threshold) & target.valid
    q = sure.sum() / target.valid.sum()
    scores = draw_scores(1, "mixed", given["target"].positions.tolist(), 4, torch.device("cpu"))
    mask = class_masks(source.label, scores)
    total = torch.zeros(())
    for n in range(len(mask)):
        theirs = sure[n].float() if weighting == "pixel" else q * target.valid[n]
        theirs = theirs if keep is None else theirs * keep
        image = torch.where(mask[n], source.image[n], target.image[n])
        label = torch.where(mask[n], source.label[n], pseudo[n])
        weight = torch.where(mask[n], 1.0, theirs)
        loss = F.cross_entropy(full(method.student, image[None]), label[None], ignore_index=255, reduction="none")[0]
        total = total + (loss * weight).sum() / label.numel()
    return total / len(mask)


@pytest.mark.parametrize("weighting", ["share", "pixel"])
@pytest.mark.parametrize("padding", [0, 9])
def test_the_step_by_hand(weighting: str, padding: int) -> None:
    method = made(DACS, threshold=0.6, weight=2.0, colour=PLAIN, weighting=weighting)
    given = domains(count=3, padding=padding)
    found = passes(method, given)
    assert {name: set(terms) for name, terms in found.items()} == {"source": {"cross_entropy"}, "mixed": {"mixed"}}
    torch.testing.assert_close(found["mixed"]["mixed"], 2.0 * by_hand(method, given, 0.6, weighting))
    view = given["source"]["weak"]
    expected = F.cross_entropy(full(method.student, view.image), view.label, ignore_index=255)
    torch.testing.assert_close(found["source"]["cross_entropy"], expected)


def test_the_divisor_of_the_source_may_be_all_pixels() -> None:
    given = domains(ignored=0.5)
    valid, whole = (passes(made(DACS, reduction=name), given)["source"]["cross_entropy"] for name in ("valid", "all"))
    label = given["source"]["weak"].label
    torch.testing.assert_close(whole, valid * (label != 255).float().mean())


def test_each_pass_trains_the_student_alone() -> None:
    method = made(DACS, threshold=0.4)
    for terms in passes(method, domains()).values():
        method.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        assert gradients(method) == {"student": True, "ema": False, "task": False}
    assert list(method.exported()) == ["student", "ema"]
    assert method.ema.declared == {"norm": "batch", "dropout": False}


def test_the_average_labels_each_batch_once_a_step() -> None:
    method, given = made(DACS), domains()
    counted = context(method, given)
    assert len(method.ema.seen) == 1
    method(given, "mixed", counted)
    method(given, "mixed", counted)
    assert len(method.ema.seen) == 1
    method.after_step(counted)
    method(given, "mixed", counted)  # of another step: without its counts it asks again
    assert len(method.ema.seen) == 2


@pytest.mark.parametrize("why", ["unsure", "padding"])
def test_without_a_sure_label_only_what_is_pasted_is_learned(why: str) -> None:
    method = made(DACS, threshold=1.0 if why == "unsure" else 0.0, colour=PLAIN)
    given = domains(padding=32 if why == "padding" else 0)
    with torch.no_grad():
        method.ema.classifier.weight.mul_(0.01)
    source = given["source"]["weak"]
    assert passes(method, given)["mixed"]["mixed"] > 0
    blank = replace(source, maps={"label": torch.full_like(source.label, 255)})
    given["source"].views["weak"] = blank  # type: ignore[index]
    found = passes(method, given)
    assert found["mixed"]["mixed"].item() == 0
    assert found["source"]["cross_entropy"].item() == 0
    found["mixed"]["mixed"].backward()
    assert not any(parameter.grad.any() for parameter in method.student.parameters())


def test_micro_batches_and_the_whole_batch_are_one() -> None:
    """Also with random colours: these belong to the step and to positions, and q to the whole step."""

    def trained(accumulate: int) -> DACS:
        method: DACS = made(DACS, threshold=0.6)
        streams = {"source": Stream(3), "target": Stream(4, labels=False)}
        train(method, steps=3, accumulate=accumulate, **streams)
        return method

    whole, parts = trained(1), trained(2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_what_is_drawn_belongs_to_positions_and_the_seed() -> None:
    method, given = made(DACS, threshold=0.0), domains()

    def shown(**changes: Any) -> Tensor:
        method(given, "mixed", context(method, given, **changes))
        image: Tensor = method.student.seen[-1]
        return image

    first = shown()
    assert torch.equal(first, shown(slice=3))
    assert not torch.equal(first, shown(seed=2))
    plain = made(DACS, colour=PLAIN)
    plain(given, "mixed", context(plain, given))
    weak = {name: given[name]["weak"].image for name in ("source", "target")}
    image = plain.student.seen[-1]
    assert ((image == weak["source"]) | (image == weak["target"])).all(), "without colours every pixel is of one"


def test_the_average_is_a_copy_after_the_first_step_and_has_statistics_of_its_own() -> None:
    method = made(DACS, Shown(norm=True), decay=0.6)
    expected = {name: value.clone() for name, value in method.ema.named_parameters()}
    students: list[dict[str, Tensor]] = []
    original = method.after_step
    method.after_step = lambda context: (students.append(copied(method.student)), original(context))[-1]
    train(method, steps=4)
    for step, student in enumerate(students):
        decay = decay_at(step, 0.6, ramp=True)
        assert decay == pytest.approx([0, 0.5, 0.6, 0.6][step])
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * student[name]
    for name, value in method.ema.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert int(method.ema.norm.num_batches_tracked) == 4
    assert int(method.student.norm.num_batches_tracked) == 8


def test_batches_that_cannot_be_mixed_are_refused() -> None:
    for other in (batch(2, count=3, labels=False), batch(2, count=2, size=(24, 32), labels=False)):
        given = {"source": batch(1, count=2), "target": other}
        method = made(DACS)
        with raises_code("streams-differ") as caught:
            method(given, "mixed", context(method, given))
        assert "augment.crop" in str(caught.value.remedy)


def test_margins_of_the_crop_and_of_the_image() -> None:
    given = domains()
    view = given["target"]["weak"]
    keep = torch.zeros(32, 32)
    keep[3:25, 2:31] = 1
    sides = {"top": 3, "bottom": 7, "left": 2, "right": 1}
    for of in ("crop", "image"):  # the crop is the whole image here
        method = made(DACS, threshold=0.6, colour=PLAIN, margins={"of": of, **sides})
        torch.testing.assert_close(passes(method, given)["mixed"]["mixed"], by_hand(method, given, 0.6, "share", keep))
    # Half the image's size, the lower left quarter, flipped: 12 rows of the image are 6 of the view.
    geometry = Geometries.stack([Geometry.crop((64, 64), (32, 32), (16, 0), (16, 16), True)] * 2)
    image = MarginSettings(top=40, bottom=12, left=8)
    found = inside_margins(replace(view, geometry=geometry), image)
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[:, 4:10, :12] = True
    assert torch.equal(found, expected)
