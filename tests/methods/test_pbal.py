"""PBAL: both stages by hand, their switches, who learns from what, and two processes as one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from tests.methods.cases import FACTS, SGD, Stream, Stub, batch, changed, copied, part, terms, tiny, train
from tests.processes import start
from tutelage.data.batch import Batch, View
from tutelage.engine.contract import Carry, Method
from tutelage.losses.transport import cosine_cost, pixel_to_prototype
from tutelage.methods.pbal import PBALBidirectional, PBALSelfTraining
from tutelage.methods.settings.pbal import COLOURED

SIZE = (64, 96)


def bpl(net: Any = None, **settings: Any) -> PBALBidirectional:
    torch.manual_seed(0)  # the discriminator's
    return PBALBidirectional({"student": net or Stub()}, PBALBidirectional.Settings(**settings), FACTS)


def pst(net: Any = None, **settings: Any) -> PBALSelfTraining:
    torch.manual_seed(0)  # the projection's
    return PBALSelfTraining({"student": net or Stub()}, PBALSelfTraining.Settings(**settings), FACTS)


def for_bpl(size: tuple[int, int] = SIZE, ignored: float = 0.3, count: int = 3) -> dict[str, Batch]:
    return {
        "source": batch(1, ("strong",), count=2, ignored=ignored),
        "target": batch(2, count=count, size=size, labels=False),
    }


def for_pst(ignored: float = 0.3) -> dict[str, Batch]:
    return {"source": batch(1, ("strong",), count=2), "target": batch(2, ("strong",), count=3, ignored=ignored)}


def both(method: PBALBidirectional, given: dict[str, Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of both passes, the second with what the first carried."""
    carry = Carry()
    first = terms(method, given, "segment", carry=carry)
    return first, terms(method, given, "discriminate", carry=carry)


def full(logits: Tensor, factor: int = 4) -> Tensor:
    return F.interpolate(logits, scale_factor=factor, mode="bilinear")


def bce(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def weight_of(method: Any, live: bool = False) -> Tensor:
    weight: Tensor = method.student.classifier.weight
    return weight if live else weight.flatten(1)


# Bidirectional prototype learning


def test_both_passes_by_hand() -> None:
    method, given = bpl(adversarial=0.3, weight=0.2), for_bpl()
    segment, discriminate = both(method, given)
    source, target = given["source"]["strong"], given["target"]["weak"]
    on_source, on_target = method.student(source.image), method.student(target.image)
    cost = 1 - torch.einsum(
        "bchw,kc->bkhw", F.normalize(on_target.embedding, dim=1), F.normalize(weight_of(method), dim=1)
    )
    over_pixels = on_target.logits.transpose(0, 1).flatten(1).softmax(1)
    expected = {
        "cross_entropy": F.cross_entropy(full(on_source.logits), source.label, ignore_index=255),
        "adversarial": 0.3 * bce(method.critic(full(on_target.logits).softmax(1)), 0.0),
        "pixel_to_prototype": 0.2 * (on_target.logits.softmax(1) * cost).sum(1).mean(),
        "prototype_to_pixel": 0.2 * (over_pixels * cost.transpose(0, 1).flatten(1)).sum(1).mean(),
    }
    assert segment.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(segment[name], value)
    expected = {
        "critic_source": 0.5 * bce(method.critic(full(on_source.logits).softmax(1)), 0.0),
        "critic_target": 0.5 * bce(method.critic(full(on_target.logits).softmax(1)), 1.0),
    }
    assert discriminate.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(discriminate[name], value)


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        ({"adversarial": 0.0}, {"adversarial"}),
        ({"adversarial": False}, {"adversarial"}),
        ({"weight": 0.0}, {"pixel_to_prototype", "prototype_to_pixel"}),
        ({"pixel_to_prototype": False}, {"pixel_to_prototype"}),
        ({"s2t": False}, {"pixel_to_prototype"}),
        ({"t2s": False, "s2t": True}, {"prototype_to_pixel"}),
        ({"adversarial": 0, "s2t": False, "t2s": False}, {"adversarial", "pixel_to_prototype", "prototype_to_pixel"}),
    ],
)
def test_what_is_switched_off(told: dict[str, Any], missing: set[str]) -> None:
    method = bpl(**told)
    every = {"cross_entropy", "adversarial", "pixel_to_prototype", "prototype_to_pixel"}
    assert terms(method, for_bpl(), "segment").keys() == every - missing
    assert len(method.passes(0)) == (1 if "adversarial" in missing else 2)


def test_settings() -> None:
    assert PBALBidirectional.Settings(adversarial=True).adversarial == 0.01
    with pytest.raises(ValidationError, match="the same setting"):
        PBALBidirectional.Settings(s2t=True, pixel_to_prototype=True)
    with pytest.raises(ValidationError, match="s2s"):
        PBALBidirectional.Settings(s2s=True)
    written = PBALBidirectional.Settings(t2s=False).model_dump()
    assert written["prototype_to_pixel"] is False
    assert "t2s" not in written
    with pytest.raises(ValidationError):
        PBALSelfTraining.Settings(temperature=0)
    assert PBALSelfTraining.Settings(contrast_source=False).contrast_source == 0


def test_the_source_is_coloured_and_the_targets_colours_are_the_stages() -> None:
    assert PBALBidirectional.Settings.streams["source"].defaults == {"strong": COLOURED}
    assert not PBALBidirectional.Settings.streams["target"].defaults
    assert all(needs.defaults == {"strong": COLOURED} for needs in PBALSelfTraining.Settings.streams.values())
    assert not PBALBidirectional.Settings.streams["target"].labels


@pytest.mark.parametrize("learns", [False, True])
def test_whether_the_cosines_reach_the_classifier(learns: bool) -> None:
    """Through the logits they always do; with logits that cannot move, only if asked for."""
    method, given = bpl(weight=1.0, adversarial=0.0, prototype_grad=learns), for_bpl()
    target = given["target"]["weak"]
    weight = method.student.classifier.weight
    found = terms(method, given, "segment")
    (gradient,) = torch.autograd.grad(found["pixel_to_prototype"], weight)
    prediction = method.student(target.image)
    prototypes = weight_of(method) if learns else weight_of(method).detach()
    value = pixel_to_prototype(prediction.logits, cosine_cost(prediction.embedding, prototypes, True))
    torch.testing.assert_close(gradient, torch.autograd.grad(value, weight)[0])


def test_padding_takes_no_part() -> None:
    method, given = bpl(weight=1.0), for_bpl()
    target = given["target"]["weak"]
    valid = torch.ones_like(target.valid)
    valid[:, :, 64:] = False
    padded = Batch({"weak": View(target.image, valid, {}, target.geometry)}, torch.arange(3))
    cut = Batch({"weak": View(target.image[..., :64], valid[..., :64], {}, target.geometry)}, torch.arange(3))
    found, expected = (terms(method, {**given, "target": one}, "segment") for one in (padded, cut))
    for name in ("pixel_to_prototype", "prototype_to_pixel"):
        torch.testing.assert_close(found[name], expected[name])


def test_no_label_and_nothing_valid_are_exact_zeros() -> None:
    method, given = bpl(), for_bpl(ignored=1.0)
    target = given["target"]["weak"]
    given["target"] = Batch(
        {"weak": View(target.image, torch.zeros_like(target.valid), {}, target.geometry)}, torch.arange(3)
    )
    found = terms(method, given, "segment")
    zeros = [found[name] for name in ("cross_entropy", "pixel_to_prototype", "prototype_to_pixel")]
    assert [value.item() for value in zeros] == [0, 0, 0]
    for gradient in torch.autograd.grad(sum(zeros), list(method.student.parameters())):  # type: ignore[arg-type]
        assert not gradient.any()


def test_who_learns_from_which_pass() -> None:
    method = bpl(tiny(), adversarial=0.5)
    student, critic = copied(method.student), copied(method.critic)
    train(method)
    assert changed(method.student, student)
    assert changed(method.critic, critic)
    warm = bpl(tiny(), adversarial=0.0)
    before = copied(warm.critic)
    train(warm)
    assert not changed(warm.critic, before)


def test_micro_batches_are_one_batch_but_for_the_softmax_over_pixels() -> None:
    """Each has its own, and the loss is their mean."""
    method = bpl(adversarial=0.0, weight=1.0)
    given = {"source": batch(1, ("strong",), count=4, ignored=0.6), "target": images(2, ("weak",))}
    halves = [{name: part(one, slice(at, at + 2)) for name, one in given.items()} for at in (0, 2)]
    totals = {name: value.float() for name, value in method.counts(given).items()}
    found = [terms(method, half, "segment", slices=2, totals=totals) for half in halves]
    whole = terms(method, given, "segment")
    for name in ("cross_entropy", "pixel_to_prototype"):
        torch.testing.assert_close((found[0][name] + found[1][name]) / 2, whole[name])
    local = bpl(scope="local", adversarial=0.0, weight=1.0)
    alone = [terms(local, half, "segment")["prototype_to_pixel"] for half in halves]
    torch.testing.assert_close([each["prototype_to_pixel"] for each in found], alone)
    together = torch.autograd.grad(whole["prototype_to_pixel"], weight_of(method, live=True))[0]
    apart = torch.autograd.grad((alone[0] + alone[1]) / 2, weight_of(local, live=True))[0]
    assert (together - apart).abs().max() > 0.05 * together.abs().max()


# Two processes


def images(seed: int, views: tuple[str, ...]) -> Batch:
    """Four images, of which the last two are dark and the last one is mostly padding."""
    made = batch(seed, views, count=4, size=(32, 32))
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    valid[3:, :, 8:] = False
    light = torch.tensor([1.0, 1.0, 0.1, 0.1]).view(4, 1, 1, 1)
    shown = {name: View(view.image * light, valid, view.maps, view.geometry) for name, view in made.views.items()}
    return Batch(shown, made.positions)


def stepped(scope: str, whole: bool) -> Method:
    """One step of the engine, on all images or on this process's half of them."""

    class Given(Stream):
        def batches(self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: Any) -> Any:
            given = images(self.seed, self.views)
            yield given if whole else part(given, slice(2 * rank, 2 * rank + 2))

    # Without dropout and batch norm: two halves must then give what the whole gives.
    method = bpl(Stub(), adversarial=0.0, weight=1.0, scope=scope)
    train(method, source=Given(1, views=("strong",)), target=Given(2), optimizer=SGD)
    return method


def as_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    for scope in ("global", "local"):
        torch.save(stepped(scope, whole=False).student.state_dict(), folder / f"{scope}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_where_the_scope_is_global(tmp_path: Path) -> None:
    processes = [start(as_rank, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = stepped("global", whole=True).student.state_dict()
    begun = Stub().state_dict()
    for scope in ("global", "local"):
        first, second = (torch.load(tmp_path / f"{scope}{rank}.pt") for rank in range(2))
        moved = 0.0
        for name, value in alone.items():
            assert torch.equal(first[name], second[name])
            if scope == "global":
                # Exactly: averaging where the parts must add up moves the net by 4e-6 only.
                assert torch.equal(first[name], value), name
                assert not torch.equal(value, begun[name])
            moved += (first[name] - value).abs().max().item()
        assert scope == "global" or moved > 1e-5


# Prototypical self-training


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_self_training_by_hand(reduction: str) -> None:
    method, given = pst(contrast_target=0.5, temperature=0.2, reduction=reduction), for_pst(0.6)
    found = terms(method, given)
    expected = {}
    for side, share in (("source", 1.0), ("target", 0.5)):
        view = given[side]["strong"]
        prediction = method.student(view.image)
        expected[f"{side}_cross_entropy"] = F.cross_entropy(full(prediction.logits), view.label, ignore_index=255)
        small = view.label[:, ::4, ::4]
        logits = torch.einsum(
            "bchw,kc->bkhw", F.normalize(prediction.embedding, dim=1), F.normalize(weight_of(method), dim=1)
        )
        total = F.cross_entropy(logits / 0.2, small, ignore_index=255, reduction="sum")
        number = small.numel() if reduction == "all" else (small != 255).sum()
        expected[f"{side}_contrast"] = share * total / number
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_target_without_a_label_teaches_nothing_and_is_no_nan() -> None:
    method, given = pst(), for_pst(1.0)
    found = terms(method, given)
    assert found["target_cross_entropy"].item() == found["target_contrast"].item() == 0
    gradients = torch.autograd.grad(
        found["target_cross_entropy"] + found["target_contrast"], weight_of(method), allow_unused=True
    )
    assert gradients[0] is None or not gradients[0].any()
    assert found["source_contrast"].item() > 0


def test_switches_of_the_contrast() -> None:
    assert terms(pst(contrast_source=0), for_pst()).keys() == {
        "source_cross_entropy",
        "target_cross_entropy",
        "target_contrast",
    }
    assert "target_contrast" not in terms(pst(contrast_target=False), for_pst())
    fixed = pst(prototype_grad=False)
    weight = fixed.student.classifier.weight
    assert not terms(fixed, for_pst())["source_contrast"].requires_grad, "a Stub's features do not depend on it"
    assert torch.autograd.grad(terms(pst(fixed.student), for_pst())["source_contrast"], weight)[0].any()


def test_the_projection_is_trained_and_not_handed_on() -> None:
    method = pst(tiny(), projection="linear")
    assert method.projection is not None
    before = copied(method.projection)
    train(method)
    assert changed(method.projection, before)
    assert list(method.exported()) == ["student"]
    assert not any("projection" in name for name in method.student.state_dict())
    assert pst().projection is None


def test_micro_batches_are_one_batch() -> None:
    for reduction in ("all", "valid"):
        method, given = (
            pst(reduction=reduction),
            {n: batch(s, ("strong",), count=4, ignored=0.6) for s, n in enumerate(("source", "target"))},
        )
        halves = [{name: part(one, slice(at, at + 2)) for name, one in given.items()} for at in (0, 2)]
        totals = {name: value.float() for name, value in method.counts(given).items()}
        found = [terms(method, half, slices=2, totals=totals) for half in halves]
        for name, value in terms(method, given).items():
            torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value)


def test_target_images_as_the_published_loader_hands_them_over() -> None:
    net = tiny().mode(norm="running", dropout=False)
    method, given = pst(net, normalise_target=False), for_pst()
    seen: list[Tensor] = []
    net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    terms(method, given)
    source, target = (given[name]["strong"].image for name in ("source", "target"))
    torch.testing.assert_close(seen[0], (source - net.mean) / net.std)
    torch.testing.assert_close(seen[1], target)


def test_an_untouched_copy_agrees() -> None:
    """Nothing is remembered from one step to the next: prototypes are the weights themselves."""
    method = pst()
    twin = copy.deepcopy(method)
    terms(method, for_pst())
    for name, value in terms(twin, for_pst()).items():
        assert torch.equal(value, terms(method, for_pst())[name])
