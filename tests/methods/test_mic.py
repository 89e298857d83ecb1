"""Masked consistency: the term by hand, its hosts, and the pixels of a masked image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.methods.cases import FACTS, context, tiny
from tests.methods.domains import PLAIN, Shown, domains, full, made, passes
from tutelage.data.mixing.blocks import block_masks, draw_grids
from tutelage.methods.advent import AdaptSegNet, AdvEnt, MinEnt
from tutelage.methods.dacs import DACS
from tutelage.methods.daformer import DAFormer
from tutelage.methods.hrda import HRDA
from tutelage.methods.mic import MIC


def mic(host: Any = None, **settings: Any) -> Any:
    own = {"threshold": 0.6, "colour": PLAIN, **(host or {})}
    return made(DACS, Shown(), **own, masked_consistency={"block": 8, **settings})


@pytest.mark.parametrize("padding", [0, 9])
def test_the_masked_term_by_hand(padding: int) -> None:
    method, given = mic(weight=3.0, ratio=0.5), domains(padding=padding)
    found = passes(method, given)
    assert list(found) == ["source", "mixed", "masked"]
    view = given["target"]["weak"]
    confidence, pseudo = full(method.ema, view.image).softmax(1).max(1)
    q = ((confidence >= 0.6) & view.valid).sum() / view.valid.sum()
    mask = block_masks(draw_grids(1, "masked", [0, 1], (32, 32), 8, torch.device("cpu")), (32, 32), 0.5)
    assert mask.any()
    assert not mask.all()
    image = torch.where(mask[:, None], view.image, method.student.mean)
    assert torch.equal(method.student.seen[-1], image)
    loss = F.cross_entropy(full(method.student, image), pseudo, reduction="none") * view.valid
    torch.testing.assert_close(found["masked"]["masked"], 3.0 * q * loss.mean(), msg="all pixels, shown or hidden")


def test_hidden_blocks_are_squares_of_the_mean_colour_and_the_rest_is_recoloured() -> None:
    colour = {"probability": 1.0, "brightness": 0.5, "contrast": 0.5}
    method, given = mic({"colour": colour}), domains()
    passes(method, given)
    shown, image = method.student.seen[-1], given["target"]["weak"].image
    hidden = (shown == method.student.mean).all(1)
    cells = hidden.view(2, 4, 8, 4, 8).float().mean((2, 4))
    assert ((cells == 0) | (cells == 1)).all()
    assert 0.4 < cells.mean() < 1
    visible = ~hidden[:, None].expand_as(image)
    assert not torch.isclose(shown, image)[visible].all()
    plain = mic({"colour": colour}, colours=False)
    passes(plain, given)
    assert torch.equal(plain.student.seen[-1][visible], image[visible])


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_ratio(ratio: float, kept: bool) -> None:
    method, given = mic(ratio=ratio), domains()
    method(given, "masked", context(method, given))
    shown, image = method.student.seen[-1], given["target"]["weak"].image
    assert torch.equal(shown, image if kept else method.student.mean.expand_as(image))


def test_masks_belong_to_positions() -> None:
    method, given = mic(), domains()
    for changes in ({}, {"slice": 2}, {"seed": 2}):
        method(given, "masked", context(method, given, **changes))
    first, again, other = method.student.seen[-3:]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_sure_label_the_term_is_exactly_zero() -> None:
    method, given = mic({"threshold": 1.0}), domains()
    with torch.no_grad():
        method.ema.classifier.weight.mul_(0.01)
    found = method(given, "masked", context(method, given))["masked"]
    assert found.item() == 0
    found.backward()
    assert not any(parameter.grad.any() for parameter in method.student.parameters())


@pytest.mark.parametrize(
    ("host", "terms"), [(DACS, set()), (DAFormer, {"feature_distance"}), (HRDA, {"feature_distance", "detail"})]
)
def test_each_host_keeps_its_own_terms(host: Any, terms: set[str]) -> None:
    method = host({"student": tiny()}, host.Settings(masked_consistency={"block": 16}), FACTS)
    found = passes(method, domains(size=(64, 64)))
    assert found["source"].keys() == {"cross_entropy", *terms}
    assert list(found) == ["source", "mixed", "masked"]
    alone = host({"student": tiny()}, host.Settings(), FACTS)
    assert [each.name for each in alone.passes(0)] == ["source", "mixed"]


def of_step(method: Any, given: Any) -> Any:
    torch.manual_seed(0)  # dropout
    return passes(method, given)


def test_mic_is_daformer_with_the_term() -> None:
    masked, given = {"block": 16, "weight": 2.0}, domains(size=(64, 64))
    first, second = (
        of_step(made(kind, tiny(), threshold=0.4, masked_consistency=masked), given) for kind in (MIC, DAFormer)
    )
    assert [each.name for each in made(MIC, tiny()).passes(0)] == ["source", "mixed", "masked"]
    assert first["masked"]["masked"] > 0
    for name, terms in first.items():
        assert all(torch.equal(value, second[name][term]) for term, value in terms.items())


@pytest.mark.parametrize(
    ("host", "settings", "before"),
    [
        (AdvEnt, {}, ["segment", "discriminate"]),
        (AdaptSegNet, {}, ["segment", "discriminate"]),
        (MinEnt, {}, ["segment"]),
    ],
)
def test_a_host_without_an_average_gets_one(host: Any, settings: dict[str, Any], before: list[str]) -> None:
    masked = {"block": 8, "weight": 3.0, "ratio": 0.5, "threshold": 0.6, "colour": PLAIN, "decay": 0.9}
    method, given = made(host, Shown(), masked_consistency=masked, **settings), domains(padding=9)
    assert [each.name for each in method.passes(0)] == [*before, "masked"]
    assert method.exported().keys() == {"student", "ema"}
    found = method(given, "masked", context(method, given))
    view = given["target"]["weak"]
    confidence, pseudo = full(method.ema, view.image).softmax(1).max(1)
    q = ((confidence >= 0.6) & view.valid).sum() / view.valid.sum()
    mask = block_masks(draw_grids(1, "masked", [0, 1], (32, 32), 8, torch.device("cpu")), (32, 32), 0.5)
    image = torch.where(mask[:, None], view.image, method.student.mean)
    assert torch.equal(method.student.seen[-1], image)
    loss = F.cross_entropy(full(method.student, image), pseudo, reduction="none") * view.valid
    torch.testing.assert_close(found["masked"], 3.0 * q * loss.mean())

    student, average = (next(net.parameters()).detach().clone() for net in (method.student, method.ema))
    with torch.no_grad():
        method.after_step(context(method, given, step=20))
    torch.testing.assert_close(next(method.ema.parameters()), 0.9 * average + 0.1 * student)

    alone = host({"student": Shown()}, host.Settings(), FACTS)
    assert [each.name for each in alone.passes(0)] == before
    assert alone.exported().keys() == {"student"}
    assert not hasattr(alone, "ema")
