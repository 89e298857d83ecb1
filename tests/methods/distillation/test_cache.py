"""The cache of a teacher's answers: the stated bound, replay under any geometry, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.methods.cases import CLASSES, FACTS, Stub, batch, terms, tiny, view
from tutelage.data.augmentation import Geometry, take_valid
from tutelage.data.batch import Batch, Geometries, View, warp
from tutelage.losses.distillation import pixel_kd
from tutelage.methods.cirkd import CIRKD, CIRKDV2
from tutelage.methods.distillation.cache import TeacherCache, compress, error_bound, expand, replay
from tutelage.methods.distillation.distill import TERMS, Distill
from tutelage.methods.pixel_kd import PixelKD
from tutelage.methods.settings.distill import temperature_of

ROUNDING = 1e-5  # of float32, beside units of 2^-16


def drawn(seed: int, *shape: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def identity(rows: int, columns: int, stride: int = 4) -> Geometries:
    """The whole image, as it is."""
    size = (rows * stride, columns * stride)
    return Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)])


def expanded(records_MN: np.ndarray, classes: int) -> Tensor:
    """The probabilities (K, M, N) that records stand for."""
    kept = records_MN["id"].shape[-1]
    ids = torch.from_numpy(records_MN["id"].reshape(-1, kept).astype(np.int64))
    masses = torch.from_numpy(records_MN["mass"].reshape(-1, kept).astype(np.int32))
    return expand(ids, masses, classes).t().reshape(classes, *records_MN.shape)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 40),
    top=st.integers(1, 12),
    spread=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 100.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_the_gradient_is_as_wrong_as_the_bound_says_at_most(
    seed: int, classes: int, top: int, spread: float, temperature: float
) -> None:
    """Kept and replayed on the same grid: the sum of |p - p~|, and the gradient of pixel KD, at every position."""
    teacher_KMN = drawn(seed, classes, 5, 7, spread=spread)
    p_KMN = (teacher_KMN / temperature).softmax(0)
    kept = min(top, classes)
    rest_MN = 1 - p_KMN.topk(kept, 0).values.sum(0)
    stated_MN = 2 * rest_MN * (1 - 1 / max(classes - kept, 1)) + (3 * kept + 2) / 2**16

    records_MN = compress(teacher_KMN, top, temperature)
    cache = TeacherCache(lambda name: records_MN, classes, temperature)
    logits_1KMN = cache.logits(["it"], identity(5, 7), (5, 7))
    assert torch.isfinite(logits_1KMN).all()
    wrong_MN = ((logits_1KMN[0] / temperature).softmax(0) - p_KMN).abs().sum(0)
    assert (wrong_MN <= stated_MN + ROUNDING).all()
    assert (stated_MN <= torch.from_numpy(error_bound(records_MN, classes)) + ROUNDING).all(), "said of what is kept"

    gradients = []
    for target in (teacher_KMN[None], logits_1KMN):
        student = drawn(seed + 1, 1, classes, 5, 7).requires_grad_()
        gradients.append(torch.autograd.grad(pixel_kd(student, target, temperature), student)[0][0])
    positions = 5 * 7
    difference_MN = (gradients[0] - gradients[1]).abs().sum(0)
    assert (difference_MN <= temperature / positions * (stated_MN + ROUNDING)).all()


def test_the_bound_is_nearly_reached() -> None:
    """One class holds all that remains: nothing smaller could be promised."""
    p = torch.tensor([0.6, 0.2, 0.2, 0, 0, 0, 0, 0])[:, None, None] + 1e-9
    records = compress(p.log(), 2)
    wrong = (expanded(records, 8) - p).abs().sum()
    assert 0.98 * float(error_bound(records, 8)[0, 0]) < wrong < float(error_bound(records, 8)[0, 0])


def test_what_is_kept() -> None:
    records = compress(torch.tensor([0.1, 0.5, 0.3, 0.1]).log()[:, None, None], 2)
    assert records["id"].tolist() == [[[1, 2]]]
    assert records.dtype.itemsize == 6, "a byte for the class, two for its mass"
    torch.testing.assert_close(
        expanded(records, 4).flatten(), torch.tensor([0.1, 0.5, 0.3, 0.1]), atol=4 / 2**16, rtol=0
    )


def test_all_classes_kept() -> None:
    logits = drawn(0, 5, 4, 4)
    torch.testing.assert_close(expanded(compress(logits, 9), 5), logits.softmax(0), atol=6 / 2**16, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    factor=st.floats(0.4, 2.5),
    offset=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    flip=st.booleans(),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_replay_is_warping_of_what_was_expanded(
    seed: int, factor: float, offset: tuple[int, int], flip: bool, grid: tuple[int, int]
) -> None:
    """Two images of different sizes, one of them cut over its border."""
    size, classes = (32, 40), 6
    records, geometries = [], []
    for number, source in enumerate([(36, 48), (61, 37)]):
        records.append(compress(drawn(seed + number, classes, -(-source[0] // 4), -(-source[1] // 4)), 3))
        scaled = (round(source[0] * factor), round(source[1] * factor))
        geometries.append(Geometry.crop(source, scaled, offset, size, flip))
    found = replay(records, classes, Geometries.stack(geometries), grid)
    for number, (record, geometry) in enumerate(zip(records, geometries, strict=True)):
        one = Geometries.stack([geometry])
        wanted = warp(expanded(record, classes)[None], one, grid, "bilinear")[0]
        inside = warp(torch.ones(1, 1, 1), one, grid)[0] > 0
        torch.testing.assert_close(found[number][:, inside], wanted[:, inside], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *grid))


# In the method


def kept_of(method: Distill, given: Batch, top: int, temperature: float = 1.0) -> TeacherCache:
    """A cache of what the method's teacher says of the images of a batch."""
    with torch.no_grad():
        logits = method.teacher.eval()(given["weak"].image).logits
    records = {name: compress(logits[i], top, temperature) for i, name in enumerate(given.samples)}
    return TeacherCache(records.__getitem__, CLASSES, temperature)


@pytest.mark.parametrize("strides", [(4, 4), (8, 4), (4, 8)])
@pytest.mark.parametrize(
    "losses",
    [
        {"pixel_kd": 1.0},
        {"pixel_kd": {"temperature": 3.0}},
        {"dist": {"auxiliary": 0.0}},
        {"pixel_kd": 2.0, "dist": {"auxiliary": 0.0}},
    ],
)
def test_the_terms_at_identity_are_those_of_the_teacher(losses: dict[str, Any], strides: tuple[int, int]) -> None:
    """All classes are kept: what is left is rounding, on equal grids, finer ones and coarser ones."""
    nets = {"student": Stub(0, strides[0]), "teacher": Stub(1, strides[1])}
    wanted = Distill.Settings.model_validate({"losses": losses, "cache": {"top": CLASSES}})
    method, given = Distill(nets, wanted, FACTS), batch(1, size=(64, 64))
    live = terms(method, {"labeled": given})
    method.cache = kept_of(method, given, CLASSES, temperature_of(wanted.terms()))
    method.teacher = None  # nobody asks
    cached = terms(method, {"labeled": given})
    assert live.keys() == cached.keys()
    for name in live:
        torch.testing.assert_close(cached[name], live[name], rtol=2e-3, atol=1e-4)


def test_a_step_through_real_nets() -> None:
    nets = {"student": tiny(seed=0), "teacher": tiny("deeplabv3plus", seed=1)}
    method, given = PixelKD(nets, PixelKD.Settings(), FACTS), batch(1, size=(64, 64))
    method.train()
    torch.manual_seed(0)
    live = terms(method, {"labeled": given})
    method.cache = kept_of(method, given, CLASSES)
    torch.manual_seed(0)
    cached = terms(method, {"labeled": given})
    torch.testing.assert_close(cached["pixel_kd"], live["pixel_kd"], rtol=2e-3, atol=1e-5)
    assert torch.equal(cached["cross_entropy"], live["cross_entropy"])


def test_padding_teaches_nothing() -> None:
    """Where the view shows no image the student is its own teacher: no loss and no gradient."""
    method = PixelKD({"student": Stub(0), "teacher": Stub(1)}, PixelKD.Settings(), FACTS)
    whole = batch(1, size=(64, 64))
    method.cache = kept_of(method, whole, 1)
    geometry = Geometry.crop((64, 64), (48, 32), (0, 0), (64, 64), False)  # padding below and to the right
    padded = view(1, size=(64, 64))
    inside = torch.from_numpy(take_valid(geometry))
    cut = View(padded.image, inside.expand(2, -1, -1), padded.maps, Geometries.stack([geometry] * 2))
    seen: list[Tensor] = []
    method.student.register_forward_hook(lambda module, given, out: seen.append(out.logits))
    found = terms(method, {"labeled": Batch({"weak": cut}, whole.positions, whole.samples)})["pixel_kd"]
    (gradient,) = torch.autograd.grad(found, seen[0])
    moved = (gradient.abs().sum(1) > 0)[0]
    assert moved[:12, :8].all()
    assert gradient[:, :, 12:].abs().max() < 1e-7
    assert gradient[:, :, :, 8:].abs().max() < 1e-7


# What it refuses


def test_terms_that_need_more_are_named() -> None:
    able = {name for name, term in TERMS.items() if not term.Settings().beyond_probabilities()}
    assert able == {"pixel_kd"}
    with pytest.raises(ValidationError, match="ifvd needs its maps, dist needs its auxiliary logits"):
        Distill.Settings.model_validate({"cache": {}, "losses": {"pixel_kd": 1, "ifvd": 1, "dist": 1}})
    Distill.Settings.model_validate({"cache": {}, "losses": {"pixel_kd": 1, "ifvd": 0, "dist": {"auxiliary": 0}}})


@pytest.mark.parametrize("kind", [CIRKD, CIRKDV2])
def test_relations_need_features(kind: Any) -> None:
    with pytest.raises(ValidationError, match="cirkd_minibatch needs its maps, cirkd_memory needs its maps"):
        kind.Settings.model_validate({"cache": {}})
    kind.Settings()


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"pixel_kd": {"temperature": 2.0}, "dist": {"auxiliary": 0}}, "the terms have several"),
        ({"pixel_kd": 0}, "no term has a weight"),
    ],
)
def test_one_temperature(losses: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Distill.Settings.model_validate({"cache": {}, "losses": losses})


@pytest.mark.parametrize("top", [0, 255, 1.5])
def test_how_many_are_kept(top: Any) -> None:
    with pytest.raises(ValidationError):
        PixelKD.Settings.model_validate({"cache": {"top": top}})
