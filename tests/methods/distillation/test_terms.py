"""The classic terms: each through Distill on small nets, and what is particular to one of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.methods.cases import CPU, FACTS, Stream, batch, changed, context, copied, terms, tiny, train
from tutelage.engine.contract import StepContext
from tutelage.errors import TutelageError
from tutelage.losses.attention import dsd_pixel
from tutelage.losses.distillation import cwd, dist, fitnet, ifvd, pixel_kd
from tutelage.methods.distillation.cwd import CWDFeatures
from tutelage.methods.distillation.distill import TERMS, Distill
from tutelage.methods.distillation.dsd import DSDPixel
from tutelage.methods.distillation.fitnet import FitNet
from tutelage.methods.distillation.mgd import MGD
from tutelage.methods.distillation.skd import SKDHolistic
from tutelage.methods.distillation.term import Maps, NetShape, Pair, TermInputs
from tutelage.methods.settings.distill import Losses
from tutelage.nets.discriminators import HolisticCritic
from tutelage.runs.checkpoints import Checkpoints

WEIGHTS = {
    "pixel_kd": 1.0,
    "skd_pairwise": 10.0,
    "skd_holistic": 0.001,
    "ifvd": 20.0,
    "cwd": 3.0,
    "cwd_features": 50.0,
    "dsd_pixel": 1000.0,
    "dsd_category": 10.0,
    "at": 10_000.0,
    "fitnet": 10.0,
    "dist": 1.0,
    "mgd": 2e-5,
}
"""The terms of this file, with their published weights for convolutional students."""
ALL: dict[str, Any] = {name: {} for name in WEIGHTS}
EACH = pytest.mark.parametrize("name", WEIGHTS)
ADAM = {"kind": "adamw", "lr": 1e-3}


def made(losses: Any, student: str = "lraspp", teacher: str = "deeplabv3plus", seed: int = 0, **more: Any) -> Distill:
    """A student on a grid of 8x8 and a teacher on 16x16 for crops of 64x64, with 80 and 64 channels; or the like."""
    nets = {"student": tiny(student, auxiliary=True, seed=seed), "teacher": tiny(teacher, auxiliary=True, seed=1)}
    torch.manual_seed(seed)
    return Distill(nets, Distill.Settings.model_validate({"losses": losses, **more}), FACTS)


def maps(seed: int, channels: int = 6, auxiliary: bool = True, size: tuple[int, int] = (8, 8)) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    logits, feature, beside = (torch.randn(2, count, *size, generator=generator) for count in (3, channels, 3))
    return Maps(logits, feature, beside if auxiliary else None)


def pair(student: int = 6, teacher: int = 9, auxiliary: tuple[bool, bool] = (True, True)) -> Pair:
    return Pair(3, NetShape(student, auxiliary[0]), NetShape(teacher, auxiliary[1]), (8, 8), (8, 8))


def a_tick(step: int = 0) -> StepContext:
    return StepContext(step, 10, 1, CPU)


@pytest.mark.parametrize(("student", "teacher"), [("lraspp", "deeplabv3plus"), ("deeplabv3plus", "lraspp")])
@EACH
def test_a_step_is_finite_and_moves_what_it_should(name: str, student: str, teacher: str) -> None:
    method = made({name: {}}, student, teacher)
    found = terms(method, {"labeled": batch(1, count=4, size=(64, 64))})
    assert name in found
    assert all(value.shape == () and torch.isfinite(value) for value in found.values())
    assert found[name].abs() > 0
    before = {child: copied(module) for child, module in method.named_children()}
    train(method, optimizer=ADAM)
    moved = {child: changed(module, before[child]) for child, module in method.named_children()}
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    assert moved["student"]
    assert not moved["teacher"]
    assert moved["terms"] == {key for key, _ in method.terms.named_parameters()}
    # Attention begins with a gain of 0: what it scales has no gradient yet. Nor has the last bias, while all scores
    # lie within the hinge's margins, where both halves of the loss pull at it alike.
    still = ("query", "key", "value", "final.bias")
    critics = {key for key, _ in method.critics.named_parameters() if not any(part in key for part in still)}
    assert critics <= moved["critics"]
    assert bool(critics) == (name == "skd_holistic")


@EACH
def test_the_term_alone_moves_the_student(name: str) -> None:
    """The teacher's maps carry no gradient, and the critic's own is not taken in the student's pass."""
    method = made({name: {}})
    for critic in method.critics.values():
        critic.requires_grad_(False)
    found = terms(method, {"labeled": batch(1, count=4, size=(64, 64))})[name]
    gradients = torch.autograd.grad(found, list(method.student.parameters()), allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 10
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


@EACH
def test_published_weights_are_the_defaults_and_a_number_is_a_weight(name: str) -> None:
    assert getattr(Losses.model_validate({name: {}}), name).weight == WEIGHTS[name]
    assert Losses.model_validate({name: 2.5}) == Losses.model_validate({name: {"weight": 2.5}})


def test_a_term_is_as_large_as_its_weight() -> None:
    found = []
    for factor in (1, 3):
        method = made({name: factor * weight for name, weight in WEIGHTS.items()})
        torch.manual_seed(0)
        found.append(terms(method, {"labeled": batch(1, count=4, size=(64, 64))}))
    for name in WEIGHTS:
        torch.testing.assert_close(found[1][name], 3 * found[0][name], rtol=1e-4, atol=1e-7)


def test_terms_are_combined_by_name() -> None:
    method = made({"cwd": 3.0, "pixel_kd": 1.0, "at": 0})
    found = terms(method, {"labeled": batch(1, count=4, size=(64, 64))})
    assert {"cwd", "pixel_kd"} <= found.keys()
    assert "at" not in found, "no weight, no work"
    assert list(method.terms) == ["pixel_kd", "cwd"]


@pytest.mark.parametrize(
    "losses",
    [{"cdw": 1.0}, {"cwd": -1.0}, {"cwd": {"tau": 4}}, {"cwd": True}, {"mgd": {"ratio": 1.0}}, {"pixel_kd": "much"}],
)
def test_what_no_term_understands_is_refused(losses: Any) -> None:
    with pytest.raises(ValidationError):
        Losses.model_validate(losses)


def test_a_misspelt_feature_lists_the_nearest() -> None:
    with pytest.raises(TutelageError, match="blocs") as caught:
        made({"at": {}}, student_feature="encoder.blocs.3")
    assert "encoder.blocks.3" in str(caught.value.remedy)


def test_features_may_be_chosen() -> None:
    losses = {"at": {}, "fitnet": {}, "dsd_pixel": {}, "ifvd": {}, "skd_pairwise": {}}
    method = made(losses, student_feature="encoder.blocks.3", teacher_feature="level3")
    found = terms(method, {"labeled": batch(1, count=4, size=(64, 64))})
    assert all(torch.isfinite(found[name]) and found[name] > 0 for name in losses)
    align = next(method.terms["fitnet"].parameters())
    assert align.shape[0] == method.teacher.feature_channels[3]


def test_no_labels_at_all() -> None:
    method = made(ALL)
    train(method, labeled=Stream(0, ignored=1.0))
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_half_precision_nets_have_single_precision_terms() -> None:
    method = made(ALL)
    for net in (method.student, method.teacher):
        net.precision = "bf16"
    given = {"labeled": batch(1, count=4, size=(64, 64))}
    moment = context(method, given)
    found = method(given, "train", moment)
    found |= method(given, "judge", moment)
    assert found.keys() >= {*ALL, "skd_holistic_critic"}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in found.values())
    train(method, precision="bf16")
    assert {value.dtype for value in method.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("loss", ["hinge", "wgan-gp"])
def test_an_interrupted_run_ends_with_the_same_bytes(loss: str, tmp_path: Path) -> None:
    """All terms that learn or draw, and the critic with its optimizer."""
    losses = {"skd_holistic": {"loss": loss}, "fitnet": {}, "cwd_features": {}, "mgd": {}}

    def run(folder: str, stop_at: int | None = None) -> Distill:
        method = made(losses)
        checkpoints = Checkpoints(tmp_path / folder)
        train(method, steps=4, checkpoints=checkpoints, stop_at=stop_at, optimizer=ADAM, accumulate=2)
        return method

    whole = run("whole")
    run("broken", stop_at=2)
    assert not changed(run("broken"), copied(whole))
    last = "checkpoint-000000004.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "broken" / last).read_bytes()


def test_the_state_of_terms_goes_round() -> None:
    method, other = made(ALL), made(ALL, seed=9)
    train(method)
    other.load_learned_state(method.learned_state())
    assert not changed(other.terms, copied(method.terms))
    assert not changed(other.critics, copied(method.critics))
    assert list(method.exported()) == ["student"]


def test_what_is_projected_is_said() -> None:
    said = made(ALL).extra_report()["distillation"]
    for name in ("cwd_features", "fitnet", "mgd"):
        assert f"{name}: the student's 80 channels are projected to 64" in said
    assert "dsd_pixel: attention from map to map of auxiliary, feature, logits" in said
    assert "skd_holistic: a critic of 8x8 maps" in said
    assert "pixel_kd:" not in said


# One term at a time


def test_terms_are_their_losses() -> None:
    student, teacher = maps(1), maps(2, 6)
    seen = TermInputs(student, teacher, torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0)))
    expected: dict[str, Tensor] = {
        "pixel_kd": pixel_kd(student.logits, teacher.logits, 2.0),
        "cwd": 3 * cwd(student.logits, teacher.logits, 2.0),
        "cwd_features": 50 * cwd(student.feature, teacher.feature, 2.0),
        "ifvd": 20 * ifvd(student.feature, teacher.feature, seen.label_BHW, 3),
        "dist": dist(student.logits, teacher.logits, 1.0, 1.0, 2.0),
    }
    for name, value in expected.items():
        kind = TERMS[name]
        settings = kind.Settings(**({"temperature": 2.0} if name != "ifvd" else {}))
        torch.testing.assert_close(kind(settings, pair(6, 6))(seen, a_tick())[name], value)


def test_cwd_aligns_only_where_channels_differ() -> None:
    settings = CWDFeatures.Settings()
    assert not list(CWDFeatures(settings, pair(6, 6)).parameters())
    assert [tuple(p.shape) for p in CWDFeatures(settings, pair(6, 9)).parameters()] == [(9, 6, 1, 1)]
    assert "as they are" in CWDFeatures(settings, pair(6, 6)).describe()


def test_the_published_divisor_is_the_students_channels() -> None:
    seen = TermInputs(maps(1), maps(2, 9), torch.zeros(2, 8, 8, dtype=torch.long))
    found = []
    for divisor in ("teacher", "published"):
        torch.manual_seed(0)
        term = CWDFeatures(CWDFeatures.Settings(divisor=divisor), pair(6, 9))  # type: ignore[arg-type]
        found.append(term(seen, a_tick())["cwd_features"])
    torch.testing.assert_close(found[1], found[0] * 9 / 6)


def test_fitnet_has_a_projection_also_between_equals() -> None:
    term = FitNet(FitNet.Settings(), pair(6, 6))
    (weight,) = term.parameters()
    assert weight.shape == (6, 6, 1, 1)
    seen = TermInputs(maps(1), maps(2), torch.zeros(2, 8, 8, dtype=torch.long))
    expected = 10 * fitnet(nn.functional.conv2d(seen.student.feature, weight), seen.teacher.feature)
    torch.testing.assert_close(term(seen, a_tick())["fitnet"], expected)


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("teacher", [True, False])
def test_dsd_takes_its_maps_by_name(student: bool, teacher: bool) -> None:
    term = DSDPixel(DSDPixel.Settings(), pair(auxiliary=(student, teacher)))
    ours, theirs = maps(1, 6, student), maps(2, 9, teacher)
    found = term(TermInputs(ours, theirs, torch.zeros(2, 8, 8, dtype=torch.long)), a_tick())["dsd_pixel"]
    names = ("auxiliary", "feature", "logits") if student and teacher else ("feature", "logits")
    sides = ([getattr(side, name) for name in names] for side in (ours, theirs))
    torch.testing.assert_close(found, 1000 * dsd_pixel(*sides))


def test_dist_distils_auxiliary_logits_where_both_nets_have_them() -> None:
    given = {"labeled": batch(1, count=4, size=(64, 64))}
    assert "dist_auxiliary" in terms(made({"dist": {}}), given)
    assert "dist_auxiliary" not in terms(made({"dist": {"auxiliary": 0}}), given)


class Mirror(nn.Module):
    """Gives back what it is given, and keeps it."""

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return x


def test_mgd_masks_a_share_of_the_positions_for_all_channels() -> None:
    term = MGD(MGD.Settings(ratio=0.75), pair(6, 6))
    term.generation = Mirror()  # type: ignore[assignment]
    student = maps(1, 6, size=(40, 40))
    seen = TermInputs(student, student, torch.zeros(2, 8, 8, dtype=torch.long))

    def masked(step: int) -> Tensor:
        term(seen, a_tick(step))
        kept = term.generation.given != 0  # type: ignore[union-attr]
        assert (kept.all(1) | ~kept.any(1)).all()
        return ~kept[:, 0]

    first = masked(0)
    assert first.float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert torch.equal(first, masked(0)), "a function of the step"
    assert not torch.equal(first, masked(1))
    assert not torch.equal(first[0], first[1])


def test_mgd_by_hand() -> None:
    """Without masks and with blocks that change nothing it is the sum of squares over the images."""
    term = MGD(MGD.Settings(ratio=0.0, weight=2.0), pair(6, 6))
    assert not list(term.align.parameters())
    term.generation = Mirror()  # type: ignore[assignment]
    seen = TermInputs(maps(1), maps(2), torch.zeros(2, 8, 8, dtype=torch.long))
    expected = 2 * ((seen.student.feature - seen.teacher.feature) ** 2).sum() / 2
    torch.testing.assert_close(term(seen, a_tick())["mgd"], expected)


@pytest.mark.parametrize("loss", ["hinge", "wgan-gp"])
def test_the_critic_learns_to_tell_the_nets_apart(loss: str) -> None:
    torch.manual_seed(0)
    term = SKDHolistic(SKDHolistic.Settings(loss=loss, critic_weight=1.0), pair())  # type: ignore[arg-type]
    critic = term.make_critic(pair())
    assert isinstance(critic, HolisticCritic)
    assert len(critic.blocks) == 1, "8x8 maps allow no more"
    optimizer = torch.optim.Adam(critic.parameters(), lr=4e-3, betas=(0.9, 0.99))
    student, teacher = maps(1).logits, maps(2).logits + 1
    for step in range(60):
        judged = term.judge(critic, student, teacher, a_tick(step))
        optimizer.zero_grad()
        judged.backward()
        optimizer.step()
    assert (critic(teacher).mean() - critic(student).mean()).item() > 0.5
    student = student.clone().requires_grad_()
    seen = TermInputs(Maps(student, student, None), maps(2), torch.zeros(2, 8, 8, dtype=torch.long))
    term.fool(critic, seen).backward()
    assert student.grad is not None
    assert student.grad.any()


def test_the_penalty_has_its_weight() -> None:
    found = []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        term = SKDHolistic(SKDHolistic.Settings(loss="wgan-gp", gradient_penalty=weight), pair())
        judged = term.judge(term.make_critic(pair()), maps(1).logits, maps(2).logits, a_tick())
        found.append(judged.item())
    assert found[2] - found[0] == pytest.approx(2 * (found[1] - found[0]), rel=1e-4)
    assert not math.isclose(found[1], found[0])


def test_the_critic_has_the_published_optimizer() -> None:
    method = made({"skd_holistic": {}})
    assert [each.name for each in method.passes(0)] == ["train", "judge"]
    plan = method.optimizers()["critic"]
    assert plan.nets == ("critics",)
    assert plan.optimizer is not None
    assert plan.schedule is not None
    settings = plan.optimizer
    assert (settings.kind, settings.lr, settings.betas, settings.weight_decay) == ("adam", 4e-4, (0.9, 0.99), 0.0)
    assert plan.schedule.kind == "constant"
