"""AdvEnt, MinEnt and AdaptSegNet: both passes by hand, and who learns from which."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.cases import FACTS, SGD, Stub, batch, changed, context, copied, terms, tiny, train
from tutelage.engine.contract import Carry
from tutelage.errors import TutelageError
from tutelage.methods.advent import AdaptSegNet, AdvEnt, MinEnt


def method(net: Any = None, **settings: Any) -> AdvEnt:
    torch.manual_seed(0)  # the discriminators'
    return AdvEnt({"student": net or Stub()}, AdvEnt.Settings(**settings), FACTS)


def batches(size: tuple[int, int] = (32, 64), ignored: float = 0.3) -> dict[str, Any]:
    return {"source": batch(1, count=2, ignored=ignored), "target": batch(2, count=3, size=size, labels=False)}


def both(advent: AdvEnt, given: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of both passes, the second with what the first carried."""
    carry = Carry()
    return tuple(terms(advent, given, name, carry=carry) for name in ("segment", "discriminate"))  # type: ignore[return-value]


def full(logits: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    return F.interpolate(logits, scale_factor=factor, mode="bilinear")[..., : size[0], : size[1]]


def information(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return -p * torch.log2(p + 1e-30) / torch.log2(torch.tensor(3.0))


def bce(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def mse(scores: Tensor, domain: float) -> Tensor:
    return (scores - domain).square().mean()


@pytest.mark.parametrize(("maps", "shown"), [("self_information", information), ("softmax", lambda z: z.softmax(1))])
@pytest.mark.parametrize(("loss", "distance"), [("bce", bce), ("least_squares", mse)])
def test_both_passes_by_hand(maps: str, shown: Any, loss: str, distance: Any) -> None:
    advent, given = method(maps=maps, loss=loss, adversarial=0.3, entropy=0.2), batches()
    segment, discriminate = both(advent, given)
    source, target = (given[name]["weak"] for name in ("source", "target"))
    z_source = full(advent.student(source.image).logits, (32, 32), 4)
    z_target = full(advent.student(target.image).logits, (32, 64), 4)
    critic = advent.critics["main"]
    expected = {
        "cross_entropy": F.cross_entropy(z_source, source.label, ignore_index=255),
        "adversarial_main": 0.3 * distance(critic(shown(z_target)), 0.0),
        "entropy_main": 0.2 * information(z_target).sum(1).mean(),
    }
    assert segment.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(segment[name], value)
    expected = {
        "critic_main_source": 0.5 * distance(critic(shown(z_source)), 0.0),
        "critic_main_target": 0.5 * distance(critic(shown(z_target)), 1.0),
    }
    assert discriminate.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(discriminate[name], value)


def test_an_auxiliary_level_has_a_discriminator_and_weights_of_its_own() -> None:
    advent = method(Stub(auxiliary=True), adversarial=0.3, adversarial_auxiliary=0.7, entropy_auxiliary=0.4)
    given = batches()
    segment, discriminate = both(advent, given)
    assert segment.keys() == {
        "cross_entropy",
        "auxiliary",
        "adversarial_main",
        "adversarial_auxiliary",
        "entropy_auxiliary",
    }
    assert discriminate.keys() == {
        f"critic_{level}_{side}" for level in ("main", "auxiliary") for side in ("source", "target")
    }
    prediction = advent.student(given["target"]["weak"].image)
    beside = F.interpolate(prediction.auxiliary, (32, 64), mode="bilinear")
    scores = advent.critics["auxiliary"](information(beside))
    torch.testing.assert_close(segment["adversarial_auxiliary"], 0.7 * bce(scores, 0.0))
    torch.testing.assert_close(segment["entropy_auxiliary"], 0.4 * information(beside).sum(1).mean())
    torch.testing.assert_close(discriminate["critic_auxiliary_target"], 0.5 * bce(scores, 1.0))
    assert advent.task.settings.auxiliary == 0.1, "the weight of the source's labels there"


def names(advent: AdvEnt) -> list[tuple[str, set[str]]]:
    return [(each.name, set(each.trains)) for each in advent.passes(0)]


def test_min_ent_has_no_second_pass_and_leaves_the_discriminators_alone() -> None:
    advent = method(tiny(), adversarial=0.0, entropy=0.1)
    assert names(advent) == [("segment", {"student"})]
    before, begun = copied(advent.critics), copied(advent.student)
    train(advent, steps=2)
    assert not changed(advent.critics, before)
    assert changed(advent.student, begun)
    assert terms(advent, batches((64, 64)), "segment").keys() == {"cross_entropy", "entropy_main"}


def test_one_level_alone() -> None:
    advent = method(Stub(auxiliary=True), adversarial=0.0, adversarial_auxiliary=0.2)
    assert names(advent) == [("segment", {"student"}), ("discriminate", {"critics"})]
    segment, discriminate = both(advent, batches())
    assert "adversarial_main" not in segment
    assert discriminate.keys() == {"critic_auxiliary_source", "critic_auxiliary_target"}


def test_without_any_weight_it_is_training_on_the_source() -> None:
    advent = method(adversarial=0.0)
    assert names(advent) == [("segment", {"student"})]
    assert terms(advent, batches(), "segment").keys() == {"cross_entropy"}


def test_a_source_batch_without_labels_is_finite() -> None:
    segment, discriminate = both(method(), batches(ignored=1.0))
    assert segment["cross_entropy"].item() == 0
    assert all(torch.isfinite(term) for term in (*segment.values(), *discriminate.values()))


def test_who_learns_from_which_pass() -> None:
    """One step of the engine, against gradients taken apart by hand."""
    advent = method(tiny(), adversarial=0.5)
    twin = copy.deepcopy(advent)
    twin.train()
    given = {"source": next(iter(train_batches(0))), "target": next(iter(train_batches(1)))}
    torch.manual_seed(context(advent, given, seed=5, total=1, pass_name="segment").global_seed)
    carry = Carry()
    segment = terms(twin, given, "segment", carry=carry)
    student = list(twin.student.parameters())
    of_student = torch.autograd.grad(sum(segment.values()), student, allow_unused=True)  # type: ignore[arg-type]
    discriminate = terms(twin, given, "discriminate", carry=carry)
    critics = list(twin.critics.parameters())
    of_critics = torch.autograd.grad(sum(discriminate.values()), critics)  # type: ignore[arg-type]

    rate = {"critic_optimizer": SGD.model_copy(update={"lr": 2.0}), "critic_schedule": {"kind": "constant"}}
    advent.settings = AdvEnt.Settings(adversarial=0.5, **rate)
    train(advent)
    for mine, before, gradient in zip(advent.student.parameters(), student, of_student, strict=True):
        expected = before if gradient is None else before - 0.05 * gradient
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)
    for mine, before, gradient in zip(advent.critics.parameters(), critics, of_critics, strict=True):
        torch.testing.assert_close(mine, before - 2.0 * gradient, atol=1e-6, rtol=1e-4)
        assert gradient.any()


def train_batches(seed: int) -> Any:
    from tests.methods.cases import CPU, Stream

    return Stream(seed, labels=seed == 0).batches(0, 1, 1, 0, 1, CPU)


def test_the_net_is_pushed_towards_the_source_and_the_critic_away() -> None:
    advent = method(Stub(), adversarial=1.0)
    scored: list[Tensor] = []
    advent.critics["main"].register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), scored.append(output))[0]
    )
    segment, discriminate = both(advent, batches())
    segment["adversarial_main"].backward()
    discriminate["critic_main_target"].backward()
    fooling, _, on_target = scored
    assert (fooling.grad > 0).all()
    assert (on_target.grad < 0).all()


def test_the_second_pass_does_not_reach_the_net() -> None:
    advent = method(Stub(), adversarial=1.0)
    _, discriminate = both(advent, batches())
    sum(discriminate.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in advent.student.parameters())
    assert all(p.grad is not None for p in advent.critics.parameters())


def test_optimizers() -> None:
    plans = method().optimizers()
    assert plans["main"].nets == ("student",)
    assert plans["main"].optimizer is None, "the recipe's"
    assert plans["critic"].nets == ("critics",)
    own = plans["critic"].optimizer
    assert own is not None
    assert (own.kind, own.lr, own.betas, own.weight_decay) == ("adam", 1e-4, (0.9, 0.99), 0.0)


def test_images_that_are_too_small_for_the_discriminator() -> None:
    given = {"source": batch(1, size=(24, 32)), "target": batch(2, size=(24, 32), labels=False)}
    with pytest.raises(TutelageError, match="24x32"):
        terms(method(), given, "segment")


def test_what_is_kept_and_what_is_exported() -> None:
    advent = method(Stub(auxiliary=True))
    assert {".".join(name.split(".")[:2]) for name in advent.learned_state() if name.startswith("critics")} == {
        "critics.main", "critics.auxiliary",
    }  # fmt: skip
    assert list(advent.exported()) == ["student"]
    assert advent.counts(batches())["source"] == (batches()["source"]["weak"].label != 255).sum()


# ---------------------------------------------------------------- presets


def test_adaptsegnet_is_advent_on_probabilities() -> None:
    given, settings = batches(), {"adversarial": 0.3, "loss": "least_squares"}
    torch.manual_seed(0)
    preset = AdaptSegNet({"student": Stub()}, AdaptSegNet.Settings(**settings), FACTS)
    for ours, theirs in zip(both(preset, given), both(method(maps="softmax", **settings), given), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name])
    defaults, own = AdaptSegNet.Settings().model_dump(), AdvEnt.Settings().model_dump()
    assert {name for name in own if defaults[name] != own[name]} == {"maps"}


def test_minent_is_advent_without_critics() -> None:
    given = batches()
    preset = MinEnt({"student": Stub(auxiliary=True)}, MinEnt.Settings(), FACTS)
    twin = method(Stub(auxiliary=True), adversarial=0, adversarial_auxiliary=0, entropy=0.001, entropy_auxiliary=0.0002)
    ours, theirs = terms(preset, given, "segment"), terms(twin, given, "segment")
    assert ours.keys() == theirs.keys() == {"cross_entropy", "auxiliary", "entropy_main", "entropy_auxiliary"}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name])
    assert names(preset) == [("segment", {"student"})]
    assert list(preset.optimizers()) == ["main"]
    assert all(name.startswith(("student.", "task.")) for name in preset.learned_state())
