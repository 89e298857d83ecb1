"""DAFormer: the feature distance, which classes count as things, whose classes are pasted, and the average's course."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.errors import raises_code
from tests.methods.cases import CLASSES, FACTS, context, copied, tiny, train
from tests.methods.domains import domains, passes
from tutelage.data.mixing.classmix import class_masks
from tutelage.engine.contract import TaskInfo
from tutelage.methods.daformer import DAFormer
from tutelage.methods.ema import decay_at


def method(info: TaskInfo = FACTS, distance: Any = None, **settings: Any) -> DAFormer:
    given = {**settings, **({} if distance is None else {"feature_distance": distance})}
    return DAFormer({"student": tiny()}, DAFormer.Settings(**given), info)


def moved(made: DAFormer) -> DAFormer:
    """With an encoder that is no longer as it started."""
    with torch.no_grad():
        for parameter in made.student.encoder.parameters():
            parameter.mul_(1.3)
    return made


def plain_domains() -> dict[str, Any]:
    """Source labels that cover squares of 32 pixels: two of class 0, one of 1, one of 2."""
    given = domains(count=1, size=(64, 64), ignored=0.0)
    view = given["source"]["weak"]
    label = torch.tensor([[0, 0], [1, 2]]).repeat_interleave(32, 0).repeat_interleave(32, 1)[None]
    given["source"].views["weak"] = replace(view, maps={"label": label})  # type: ignore[index]
    return {**given, "target": domains(count=1, size=(64, 64))["target"]}


@pytest.mark.parametrize(
    ("things", "cells"), [(None, (0, 1, 2, 3)), ([0], (0, 1)), (["car", 2], (2, 3)), ([1], (2,)), ([], ())]
)
def test_the_distance_by_hand(things: Any, cells: tuple[int, ...]) -> None:
    info = TaskInfo(CLASSES, names=("road", "car", "bus"))
    made = method(info, {"weight": 0.5, "things": things}).train()
    start = tiny().eval()
    moved(made)
    made.student.eval()
    given = plain_domains()
    found = made(given, "source", context(made, given, pass_name="source"))["feature_distance"]
    image = given["source"]["weak"].image
    with torch.no_grad():
        now, before = (net(image).features[-1] for net in (made.student, start))
    # The encoder's stride is 16: each of the four squares has four cells.
    distance = (now - before).norm(dim=1).view(2, 2, 2, 2).mean((1, 3)).flatten()
    expected = 0.5 * distance[list(cells)].mean() if cells else torch.zeros(())
    torch.testing.assert_close(found, expected)
    assert (found > 0) == bool(cells)
    found.backward()
    gathered = [parameter.grad for parameter in made.student.encoder.parameters() if parameter.grad is not None]
    assert any(grad.any() for grad in gathered) == bool(cells)
    assert all(torch.isfinite(grad).all() for grad in gathered)


def test_at_the_start_the_distance_is_exactly_zero_and_so_is_its_gradient() -> None:
    made, given = method(), plain_domains()
    made.student.mode(norm="running", dropout=False)
    found = made(given, "source", context(made, given))["feature_distance"]
    assert found.item() == 0
    found.backward()
    assert not any(p.grad is not None and p.grad.any() for p in made.student.parameters())


def test_the_first_encoder_stays_and_is_not_handed_on() -> None:
    made = method(threshold=0.4)
    before = copied(made.origin)  # type: ignore[arg-type]
    train(made, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in made.origin.state_dict().items())  # type: ignore[union-attr]
    assert not any(module.training for module in made.origin.modules() if isinstance(module, torch.nn.BatchNorm2d))  # type: ignore[union-attr]
    assert list(made.exported()) == ["student", "ema"]
    assert not any(name.startswith("origin.decoder") for name in made.state_dict())
    off = DAFormer({"student": tiny()}, DAFormer.Settings(feature_distance=None), FACTS)
    assert off.origin is None
    assert passes(off, plain_domains())["source"].keys() == {"cross_entropy"}


@pytest.mark.parametrize("wrong", ["lorry", 3, -1])
def test_things_that_are_no_classes_are_refused(wrong: int | str) -> None:
    with raises_code("unknown-class", "road, car, bus"):
        method(TaskInfo(CLASSES, names=("road", "car", "bus")), {"things": [wrong]})
    with raises_code("unknown-class", "0 to 2"):
        method(distance={"things": [wrong]})


def test_the_average_is_a_mean_of_two_after_the_first_step() -> None:
    made = method(decay=0.6, threshold=0.4)
    expected = {name: value.clone() for name, value in made.ema.named_parameters()}
    students: list[dict[str, Tensor]] = []
    original = made.after_step
    made.after_step = lambda context: (students.append(copied(made.student)), original(context))[-1]  # type: ignore[method-assign, func-returns-value, assignment]
    train(made, steps=3)
    for step, student in enumerate(students):
        decay = decay_at(step + 1, 0.6, ramp=True)
        assert decay == pytest.approx([0.5, 0.6, 0.6][step])
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * student[name]
    for name, value in made.ema.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_published_settings_are_the_defaults() -> None:
    settings = DAFormer.Settings()
    assert (settings.classes_from, settings.decay, settings.reduction) == ("batch", 0.999, "all")
    assert (settings.colour.hue, settings.colour.probability, settings.threshold) == (0.2, 0.8, 0.968)


def test_classes_of_the_whole_batch() -> None:
    """Scores 0, 1, 2 of an image alone, or of all that the batch shows; the last label is the ignored one."""
    label = torch.tensor([[[0, 1, 1, 255]], [[2, 2, 2, 2]]])
    score = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.1]])
    image = class_masks(label, score, "image")
    assert image.tolist() == [[[False, True, True, True]], [[True, True, True, True]]]
    # Labels 0, 1, 2 and ignored occur: two are drawn for each image, {1, 2} and {ignored, 0}.
    assert class_masks(label, score, "batch").tolist() == [[[False, True, True, False]], [[False] * 4]]
