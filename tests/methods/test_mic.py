"""MIC: the masked term by hand, its hosts, and what is shown of a masked image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.methods.cases import FACTS, context, tiny
from tests.methods.domains import PLAIN, Shown, domains, full, made, passes
from tutelage.data.mixing.blocks import block_masks, draw_grids
from tutelage.methods.hrda import HRDA
from tutelage.methods.mic import MIC
from tutelage.nets.multi_resolution import MultiResolution
from tutelage.nets.segmentor import Segmentor


def mic(host: Any = None, **settings: Any) -> Any:
    told = {"threshold": 0.6, "colour": PLAIN, **(host or {})}
    return made(MIC, Shown(), host="dacs", dacs=told, **{"block": 8, **settings})


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


@pytest.mark.parametrize("host", ["dacs", "daformer", "hrda"])
def test_each_host_keeps_its_own_terms(host: str) -> None:
    method = MIC({"student": tiny()}, MIC.Settings(host=host, block=16), FACTS)
    found = passes(method, domains(size=(64, 64)))
    expected = {"dacs": set(), "daformer": {"feature_distance"}, "hrda": {"feature_distance", "detail"}}[host]
    assert found["source"].keys() == {"cross_entropy", *expected}
    assert type(method.student) is (MultiResolution if host == "hrda" else Segmentor)
    assert method.mixing.decay == (0.99 if host == "dacs" else 0.999)
    alone = HRDA({"student": tiny()}, HRDA.Settings(), FACTS)
    assert [each.name for each in alone.passes(0)] == ["source", "mixed"]


def test_settings_of_another_host_are_refused() -> None:
    MIC.Settings(host="hrda", hrda={"detail_weight": 0.2})
    with pytest.raises(ValidationError, match="settings of dacs are given, but the host is daformer"):
        MIC.Settings(dacs={"threshold": 0.9})
