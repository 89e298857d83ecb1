"""TriKD: what teaches whom, view by view as all at once, and what is off without attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import FACTS, SGD, Stream, batch, changed, copied, gradients, terms, tiny, train
from tutelage.data.batch import Batch
from tutelage.engine.contract import Carry, TaskInfo
from tutelage.engine.settings import OptimizerSettings, ScheduleSettings
from tutelage.losses.cross_architecture import attention_loss
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import cross_entropy
from tutelage.methods.settings.trikd import VIEWS, TriKDSettings
from tutelage.methods.trikd import TriKD
from tutelage.nets.build import build
from tutelage.nets.modes import keeping_statistics
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

ONLY: dict[str, Any] = {
    **{f"{view}_weight": 0.0 for view in VIEWS},
    "cps_weight": 0.0,
    "spatial_weight": 0.0,
    "attention_weight": 0.0,
}


def view_net(encoder: str, seed: int = 0, **more: Any) -> Segmentor:
    settings = NetSettings(encoder=encoder, decoder="dual_frequency", width=16, dropout=0.1, **more)
    return build(settings, FACTS.classes, seed=seed)


def convolutional() -> dict[str, Segmentor]:
    return {"student": tiny("lraspp", True), "cnn": tiny("deeplabv3plus", seed=1), "vit": tiny("fpn", seed=2)}


def attentive() -> dict[str, Segmentor]:
    """A TinyViT, a ConvNet, a small plain transformer: a token of the first is as large as four of the last."""
    return {
        "student": view_net("tiny_vit_5m_224", drop_path=0.2),
        "cnn": tiny("deeplabv3plus", seed=1),
        "vit": view_net("test_vit", seed=2),
    }


def made(nets: Mapping[str, Segmentor] | None = None, info: TaskInfo = FACTS, **settings: Any) -> TriKD:
    torch.manual_seed(0)
    return TriKD(nets or convolutional(), TriKDSettings(**settings), info)


def batches(size: tuple[int, int] = (64, 64), other: tuple[int, int] | None = None, **more: Any) -> dict[str, Batch]:
    return {
        "labeled": batch(0, size=size, **more),
        "unlabeled": batch(1, size=other or size, labels=False),
    }


@contextmanager
def without_dropout(method: TriKD) -> Iterator[None]:
    for name in VIEWS:
        method.get_submodule(name).mode(dropout=False)  # type: ignore[operator]
    yield


@pytest.mark.parametrize("scale", ["published", "variance"])
def test_the_terms_by_hand(scale: str) -> None:
    task = {"loss": "cross_entropy", "auxiliary": 0.0}
    method = made(vit_weight=0.5, task=task, spatial_weight=0.7, spatial_scale=scale)
    given = batches()
    labeled, unlabeled = (given[stream]["weak"] for stream in ("labeled", "unlabeled"))
    with without_dropout(method), torch.no_grad():
        found = terms(method, given)
        seen = {
            name: [net(view.image) for view in (labeled, unlabeled)]
            for name, net in method.named_children()
            if isinstance(net, Segmentor)
        }

    def full(name: str, number: int) -> Tensor:
        image = (labeled, unlabeled)[number].image
        return over_image(seen[name][number].logits, image, "grid", method.get_submodule(name).stride)  # type: ignore[arg-type]

    expected = {}
    for name, weight in (("student", 1.0), ("cnn", 1.0), ("vit", 0.5)):
        prefix = "" if name == "student" else f"{name}_"
        expected[f"{prefix}cross_entropy"] = weight * cross_entropy(full(name, 0), labeled.label)
        others = [full(other, 1).argmax(1) for other in VIEWS if other != name]
        expected[f"{prefix}cps"] = 0.1 * torch.stack([F.cross_entropy(full(name, 1), other) for other in others]).sum()
    early = {name: torch.stack([each.features[1] for each in seen[name]]) for name in ("student", "cnn")}
    assert early["cnn"].shape[3] == 64 // 4
    projected = torch.stack([method.projections["spatial"](each) for each in early["student"]])
    square_S = (projected - early["cnn"]).square().mean((1, 2, 3, 4))
    unit_S = early["cnn"].var((1, 3, 4), correction=0).mean(1) if scale == "variance" else torch.ones(2)
    expected["spatial"] = 0.7 * (square_S / unit_S).mean()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def reached(method: TriKD, given: dict[str, Batch]) -> set[str]:
    method.zero_grad()
    torch.autograd.backward(torch.stack(list(terms(method, given).values())).sum())
    return {name for name, any_ in gradients(method).items() if any_}


def test_who_learns_from_what() -> None:
    given = batches()
    assert reached(made(**{**ONLY, "cps_weight": 0.1}), given) == set(VIEWS)
    assert reached(made(**{**ONLY, "cnn_weight": 1.0}), given) == {"cnn"}
    assert reached(made(**{**ONLY, "spatial_weight": 0.9}), given) == {"student", "projections"}
    nets = attentive()
    assert reached(made(nets, **{**ONLY, "attention_weight": 0.5, "kl": "rows"}), given) == {"student", "projections"}
    tapped = nets["student"].get_submodule(nets["student"].taps[0])
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in tapped.parameters())


@pytest.mark.parametrize("nets", [convolutional, attentive])
def test_view_by_view_is_all_at_once(nets: Any) -> None:
    joint, parted = (made(nets(), view_wise=view_wise, kl="rows") for view_wise in (False, True))
    assert [each.name for each in parted.passes(0)] == ["student", "cnn", "vit"]
    before = copied(joint)
    unlabeled = Stream(1, labels=False, size=(64, 96))
    momentum = SGD.model_copy(update={"momentum": 0.9})
    for method in (joint, parted):
        train(method, steps=2, labeled=Stream(0), unlabeled=unlabeled, optimizer=momentum, accumulate=2)
    ours, theirs = joint.state_dict(), parted.state_dict()
    counts = [name for name in ours if name.endswith("num_batches_tracked")]
    assert counts
    for name in counts:  # two steps of two micro-batches of two streams
        assert theirs[name] - before[name] == 8
    for name, value in ours.items():
        moved = (value - before[name]).abs().max()
        assert (value - theirs[name]).abs().max() <= 1e-4 * moved + 1e-7, name


def test_the_passes_hand_over_class_maps_alone() -> None:
    method, given, carry = made(view_wise=True), batches(), Carry()
    mine = terms(method, given, "student", carry=carry)
    assert set(carry) == set(VIEWS)
    assert all((maps.dtype, maps.shape) == (torch.int64, (2, 64, 64)) for maps in carry.values())
    others = [terms(method, given, name, carry=carry) for name in ("cnn", "vit")]
    assert [set(each) for each in (mine, *others)] == [
        {"ohem", "auxiliary", "cps", "spatial"},
        {"cnn_ohem", "cnn_cps"},
        {"vit_cross_entropy", "vit_cps"},
    ]


def test_dropout_of_a_view_is_a_function_of_the_position() -> None:
    method, given = made(), batches()
    first, again = (terms(method, given, step=step) for step in (3, 3))
    other = terms(method, given, step=4)
    assert first["cnn_ohem"] == again["cnn_ohem"]
    assert first["cnn_ohem"] != other["cnn_ohem"]
    state = torch.get_rng_state()
    terms(method, given)
    assert torch.equal(state, torch.get_rng_state())


def test_statistics_that_are_kept() -> None:
    net, norm = tiny().mode(dropout=False).train(), nn.BatchNorm2d(3, momentum=None)  # a cumulative mean
    image = batch(0)["weak"].image
    before = copied(net), copied(norm)
    with keeping_statistics(net), keeping_statistics(norm):
        kept = norm(image), net(image).logits
    assert not changed(net, before[0])
    assert not changed(norm, before[1])
    for ours, theirs in zip(kept, (norm(image), net(image).logits), strict=True):
        assert torch.equal(ours, theirs)  # normalised alike
    assert changed(net, before[0])
    assert changed(norm, before[1])
    frozen = norm.eval()(image)
    with keeping_statistics(norm):
        assert torch.equal(norm(image), frozen)


def test_without_attention_the_term_is_off_unless_asked_for() -> None:
    method = made()
    assert "attention" not in method.projections
    assert "net student (mobilenetv3_small_050 + lraspp) has no attention" in method.extra_report()["views"]
    assert "attention: off" in method.extra_report()["views"]
    with raises_code("net-without-attention", "net student", "net vit"):
        made(attention_weight=0.5)
    mixed = {**convolutional(), "vit": view_net("test_vit")}
    with raises_code("net-without-attention", "net student"):
        made(mixed, attention_weight=0.5)
    assert "net vit" not in made(mixed).extra_report()["views"]
    assert "attention_weight is 0" in made(attentive(), attention_weight=0).extra_report()["views"]


def test_what_is_projected_where_is_reported() -> None:
    report = made(attentive(), spatial_weight=0.0).extra_report()["views"]
    assert "spatial: off" in report
    assert "student 10 heads on 2x2 tokens is projected to vit 2 heads on 4x4 tokens" in report
    report = made(view_wise=True).extra_report()["views"]
    assert "student 8 channels at stride 4 (16x16)" in report
    assert "one net after the other" in report
    assert "(16x16)" not in made(info=TaskInfo(FACTS.classes)).extra_report()["views"]


@pytest.mark.parametrize("resize", ["published", "spatial", "pool"])
def test_attention_by_hand(resize: Any) -> None:
    nets = attentive()
    method = made(nets, **{**ONLY, "attention_weight": 0.5}, attention_resize=resize)
    given = batches((64, 96))
    with without_dropout(method), torch.no_grad():
        found = terms(method, given)["attention"]
        seen = {
            name: [nets[name](given[stream]["weak"].image) for stream in ("labeled", "unlabeled")]
            for name in ("student", "vit")
        }
    taps = method.attention
    mine, theirs = (torch.cat([taps[name].logits(each.taps) for each in both]) for name, both in seen.items())
    grids = tuple(taps[name].grid(both[0]) for name, both in seen.items())
    projected = method.projections["attention"](mine)
    assert projected.shape[1] == theirs.shape[1]
    expected = 0.5 * attention_loss(projected, theirs, grids=grids, resize=resize)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("settings", [{}, {"kl": "rows"}, {"attention_resize": "pool"}])
def test_batches_of_two_sizes(settings: dict[str, Any]) -> None:
    method = made(attentive(), **settings)
    found = terms(method, batches((64, 64), (32, 96)))
    assert all(torch.isfinite(value) for value in found.values())
    assert found["attention"] > 0


def test_padding_is_left_out_of_the_class_maps() -> None:
    given = batches()
    view = given["unlabeled"]["weak"]
    view.valid[:] = False
    found = terms(made(), given)
    assert [float(found[name].detach()) for name in ("cps", "cnn_cps", "vit_cps")] == [0.0, 0.0, 0.0]
    counted = terms(made(cps_padding=True), given)
    assert counted["cps"] > 0
    view.valid[:, :, :32] = True
    half = terms(made(), given)
    assert 0 < half["cps"] != counted["cps"]
    method = made(**{**ONLY, "cps_weight": 1.0})
    view.valid[:] = False
    reached(method, given)
    for parameter in method.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_the_mean_over_pixels_is_that_of_the_step() -> None:
    method, given = made(), batches()
    totals = {name: value.float() for name, value in method.counts(given).items()}
    alone = terms(method, given)
    shared = terms(method, given, totals={**totals, "unlabeled": 3 * totals["unlabeled"]}, slices=2)
    torch.testing.assert_close(shared["cps"], alone["cps"] * 2 / 3)


def test_no_label_gives_exact_zeros() -> None:
    found = terms(made(), batches(ignored=1.0))
    assert [float(found[name].detach()) for name in ("ohem", "auxiliary", "cnn_ohem", "vit_cross_entropy")] == [0.0] * 4
    assert all(torch.isfinite(value) for value in found.values())


def test_each_net_has_an_optimizer_and_is_kept() -> None:
    own = OptimizerSettings(kind="adamw", lr=1e-4)
    plans = made(vit_optimizer=own).optimizers()
    assert {name: plan.nets for name, plan in plans.items()} == {
        "main": ("student", "projections"),
        "cnn": ("cnn",),
        "vit": ("vit",),
    }
    assert plans["cnn"].optimizer is None
    assert plans["vit"].optimizer == own
    assert all(plan.schedule is None for plan in plans.values())
    published = made(vit_schedule="published").optimizers()
    assert published["vit"].schedule == ScheduleSettings(kind="constant")
    assert published["cnn"].schedule is None
    method = made()
    assert list(method.exported()) == ["student", "cnn", "vit"]
    assert not any("projection" in name for net in method.exported().values() for name in net.state_dict())


def test_a_rate_that_is_late() -> None:
    late, usual = (ScheduleSettings(kind="poly", lag=lag) for lag in (1, 0))
    assert [late.factor(step, 4) for step in range(4)] == [usual.factor(step, 4) for step in (0, 0, 1, 2)]
    assert ScheduleSettings.model_validate(late.model_dump()) == late
