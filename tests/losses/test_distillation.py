"""Distillation losses on numbers that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from tutelage.losses.attention import attention, attention_transfer, dsd_category, dsd_pixel
from tutelage.losses.distillation import (
    cwd,
    dist,
    fitnet,
    ifvd,
    mgd,
    pixel_kd,
    probability_mse,
    skd_pairwise,
)


def logits(*positions: tuple[float, ...]) -> Tensor:
    """(1, K, 1, n): the logits of n positions."""
    return torch.tensor(positions).t()[None, :, None, :].clone()


def random_logits(seed: int, shape: tuple[int, ...] = (2, 5, 3, 4)) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_kd_by_hand() -> None:
    student, teacher = logits((0.0, 0.0)), logits((math.log(3), 0.0))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert pixel_kd(student, teacher).item() == pytest.approx(expected)
    both = pixel_kd(logits((0.0, 0.0), (7.0, 7.0)), logits((math.log(3), 0.0), (1.0, 1.0)))
    assert both.item() == pytest.approx(expected / 2), "a mean over positions; the second agrees"


def test_kd_at_a_temperature_by_hand() -> None:
    share = math.sqrt(3) / (1 + math.sqrt(3))  # softmax(ln 3 / 2, 0)
    divergence = share * math.log(share / 0.5) + (1 - share) * math.log((1 - share) / 0.5)
    found = pixel_kd(logits((0.0, 0.0)), logits((math.log(3), 0.0)), temperature=2.0)
    assert found.item() == pytest.approx(4 * divergence, rel=1e-5)


def test_kd_is_zero_only_between_equals_and_ignores_shifts() -> None:
    teacher = random_logits(0)
    assert pixel_kd(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)
    assert pixel_kd(random_logits(1), teacher) > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_of_kd(temperature: float) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    pixel_kd(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / (2 * 3 * 4))
    assert teacher.grad is None


def test_mse_by_hand() -> None:
    found = probability_mse(logits((0.0, 0.0), (math.log(4), 0.0)), logits((math.log(3), 0.0), (math.log(4), 0.0)))
    assert found.item() == pytest.approx((2 * 0.25**2 + 0) / 4)


def test_the_gradient_of_mse_reaches_the_student_alone() -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    probability_mse(student, teacher).backward()
    own = random_logits(1).requires_grad_()
    ((own.softmax(1) - teacher.detach().softmax(1)) ** 2).mean().backward()
    torch.testing.assert_close(student.grad, own.grad)
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [pixel_kd, probability_mse])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(loss, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    student, teacher = random_logits(1).to(dtype), random_logits(2).to(dtype)
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", [pixel_kd, probability_mse])
def test_extreme_logits_stay_finite(loss) -> None:  # type: ignore[no-untyped-def]
    student = logits((1e4, -1e4, 0.0), (-1e4, 1e4, 0.0)).requires_grad_()
    value = loss(student, logits((-1e4, 1e4, 0.0), (-1e4, 1e4, 0.0)))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


# Every loss against the formula of the specification, written out slowly in float64; then what holds for all of them.

CLASSES = 4
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "pixel_kd": lambda student, teacher, label: pixel_kd(student, teacher, 2.0),
    "skd_pairwise": lambda student, teacher, label: skd_pairwise(student, teacher),
    "ifvd": lambda student, teacher, label: ifvd(student, teacher, label, CLASSES),
    "cwd": lambda student, teacher, label: cwd(student, teacher),
    "dist": lambda student, teacher, label: dist(student, teacher, 0.5, 2.0, 3.0),
    "fitnet": lambda student, teacher, label: fitnet(student, teacher),
    "mgd": lambda student, teacher, label: mgd(student, teacher),
    "at": lambda student, teacher, label: attention_transfer(student, teacher),
    "dsd_pixel": lambda student, teacher, label: dsd_pixel((student**2, student), (teacher**2, teacher)),
    "dsd_category": lambda student, teacher, label: dsd_category(student, teacher),
}
ANY_CHANNELS = ("skd_pairwise", "ifvd", "at", "dsd_pixel")
EACH = pytest.mark.parametrize("name", LOSSES)


def divergence(teacher: Tensor, student: Tensor, dim: int) -> Tensor:
    p, q = teacher.softmax(dim), student.softmax(dim)
    return (p * (p.log() - q.log())).sum()


def at(x: Tensor) -> Tensor:
    return F.normalize((x**2).mean(1).flatten(1), dim=1)


def slow_skd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    def similarity(x: Tensor) -> Tensor:
        nodes = F.max_pool2d(x, 2, ceil_mode=True).flatten(2)
        return torch.stack([F.cosine_similarity(one[:, :, None], one[:, None, :], dim=0) for one in nodes])

    return ((similarity(student) - similarity(teacher)) ** 2).mean()


def slow_ifvd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    images, _, height, width = student.shape
    total = 0 * student.sum()
    for image in range(images):
        small = [
            [int(label[image, i * label.shape[1] // height, j * label.shape[2] // width]) for j in range(width)]
            for i in range(height)
        ]
        where = torch.tensor(small)
        for place in (where < CLASSES).nonzero().tolist():
            same = where == where[place[0], place[1]]
            cosines = [
                F.cosine_similarity(
                    x[image, :, place[0], place[1]], x[image][:, same].sum(1) / (same.sum() + 1e-6), dim=0
                )
                for x in (student, teacher)
            ]
            total = total + (cosines[0] - cosines[1]) ** 2
    return total / (images * height * width)


def slow_dist(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    p, q = ((x / 3.0).softmax(1).movedim(1, -1).flatten(0, -2) for x in (student, teacher))

    def correlation(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(), y - y.mean()
        return (x @ y) / (x.norm() * y.norm() + 1e-8)

    between = torch.stack([correlation(p[i], q[i]) for i in range(len(p))]).mean()
    within = torch.stack([correlation(p[:, k], q[:, k]) for k in range(p.shape[1])]).mean()
    return 9.0 * (0.5 * (1 - between) + 2.0 * (1 - within))


def slow_dsd_pixel(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    change = [F.normalize(at(x) - at(x**2), dim=1) for x in (student, teacher)]
    return ((change[0] - change[1]) ** 2).mean()


def slow_dsd_category(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    def similarity(x: Tensor) -> Tensor:
        where = (F.avg_pool2d(x, 2, ceil_mode=True).flatten(2) / 4).softmax(2)
        return torch.einsum("bkp,blp->bkl", where, where)

    return ((similarity(student) - similarity(teacher)) ** 2).mean()


SLOW: dict[str, Loss] = {
    "pixel_kd": lambda s, t, label: 4 * divergence(t / 2, s / 2, 1) / (s.numel() / s.shape[1]),
    "skd_pairwise": slow_skd,
    "ifvd": slow_ifvd,
    "cwd": lambda s, t, label: 16 * divergence(t.flatten(2) / 4, s.flatten(2) / 4, 2) / (s.shape[0] * s.shape[1]),
    "dist": slow_dist,
    "fitnet": lambda s, t, label: ((s - t) ** 2).sum() / s.numel(),
    "mgd": lambda s, t, label: ((s - t) ** 2).sum() / len(s),
    "at": lambda s, t, label: ((at(s) - at(t)) ** 2).mean(),
    "dsd_pixel": slow_dsd_pixel,
    "dsd_category": slow_dsd_category,
}


def drawn(seed: int, images: int = 2, size: tuple[int, int] = (5, 7), ignored: float = 0.3) -> Tensor:
    """Labels (B, H, W) of three of the four classes on a finer grid, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 3 * size[0] + 1, 2 * size[1])
    label = torch.randint(0, CLASSES - 1, shape, generator=generator)
    return label.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)


@EACH
@given(
    seed=st.integers(0, 1000), images=st.integers(1, 3), height=st.integers(2, 6), width=st.integers(3, 7),
    channels=st.integers(3, 5), theirs=st.integers(2, 5), scale=st.sampled_from([0.1, 1.0, 3.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None, derandomize=True)
def test_values_and_gradients_are_those_of_the_formula(
    name: str, seed: int, images: int, height: int, width: int, channels: int, theirs: int, scale: float
) -> None:
    theirs = theirs if name in ANY_CHANNELS else channels
    student = scale * random_logits(seed, (images, channels, height, width))
    teacher = scale * random_logits(seed + 1, (images, theirs, height, width))
    label = drawn(seed, images, (height, width))
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    loss, expected = LOSSES[name](student, teacher, label), SLOW[name](exact, teacher.double(), label)
    assert loss.item() == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-5 if name == "dist" else 1e-6)
    (ours,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, exact)
    bound = 2e-3 * float(wanted.abs().max()) + 1e-6
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=bound)


@EACH
def test_equals_have_nothing_to_learn(name: str) -> None:
    student = random_logits(3).requires_grad_()
    loss = LOSSES[name](student, student.detach(), drawn(0, size=(3, 4)))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


@EACH
def test_a_loss_is_at_least_zero_and_leaves_the_teacher_alone(name: str) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    loss = LOSSES[name](student, teacher, drawn(0, size=(3, 4)))
    loss.backward()
    assert loss > 0
    assert loss.shape == ()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


def zeroed(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, :2, :2] = 0
    x[0] = 0
    return x


HARD: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "a zero student": (lambda: torch.zeros(2, 5, 3, 4), lambda: random_logits(1)),
    "a zero teacher": (lambda: random_logits(1), lambda: torch.zeros(2, 5, 3, 4)),
    "both zero": (lambda: torch.zeros(2, 5, 3, 4), lambda: torch.zeros(2, 5, 3, 4)),
    "zero blocks and images": (lambda: zeroed(random_logits(1)), lambda: zeroed(random_logits(2))),
    "one image": (lambda: random_logits(1, (1, 5, 3, 4)), lambda: random_logits(2, (1, 5, 3, 4))),
    "one position": (lambda: random_logits(1, (2, 5, 1, 1)), lambda: random_logits(2, (2, 5, 1, 1))),
    "one of everything": (lambda: random_logits(1, (1, 1, 1, 1)), lambda: random_logits(2, (1, 1, 1, 1))),
    "constant maps": (lambda: torch.full((2, 5, 3, 4), 0.3), lambda: torch.full((2, 5, 3, 4), 7.7)),
    "a shift apart": (lambda: random_logits(1), lambda: random_logits(1) + 1e-7),
    "huge": (lambda: 6e4 * random_logits(1).sign(), lambda: 6e4 * random_logits(2).sign()),
    "beyond half precision": (lambda: 1e9 * random_logits(1), lambda: 1e9 * random_logits(2)),
    "tiny": (lambda: 1e-20 * random_logits(1), lambda: 1e-20 * random_logits(2)),
    "no sign": (lambda: -random_logits(1).abs(), lambda: random_logits(2).abs()),
}


@pytest.mark.parametrize("ignored", [0.3, 1.0])
@pytest.mark.parametrize("case", HARD)
@EACH
def test_hard_inputs_stay_finite(name: str, case: str, ignored: float) -> None:
    student, teacher = (make() for make in HARD[case])
    student.requires_grad_()
    label = drawn(0, len(student), (student.shape[2], student.shape[3]), ignored=ignored)
    loss = LOSSES[name](student, teacher, label)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if "huge" not in case and "beyond" not in case:
        # Nothing is amplified: a rare case must not undo what all others have taught.
        assert gradient.abs().max() < 1e3


@pytest.mark.parametrize("name", ["skd_pairwise", "ifvd", "at"])
def test_zero_vectors_have_a_zero_gradient(name: str) -> None:
    student = zeroed(random_logits(1)).requires_grad_()
    loss = LOSSES[name](student, random_logits(2), drawn(0, size=(3, 4), ignored=0.0))
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient[0].any()
    if name != "ifvd":  # there a zero vector still moves its class's mean
        assert not gradient[:, :, :2, :2].any()
    assert gradient.any()


def test_without_labels_there_is_no_variation() -> None:
    student = random_logits(1).requires_grad_()
    loss = LOSSES["ifvd"](student, random_logits(2), drawn(0, size=(3, 4), ignored=1.0))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_labels_beyond_the_classes_are_ignored() -> None:
    label = drawn(0, size=(3, 4), ignored=0.0)
    expected = LOSSES["ifvd"](random_logits(1), random_logits(2), label.masked_fill(label == 2, 255))
    for other in (-1, CLASSES, 254):
        found = LOSSES["ifvd"](random_logits(1), random_logits(2), label.masked_fill(label == 2, other))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["skd_pairwise", "ifvd", "at"])
def test_cosines_and_attention_know_no_scale(name: str) -> None:
    label = drawn(0, size=(3, 4))
    expected = LOSSES[name](random_logits(1), random_logits(2), label)
    torch.testing.assert_close(LOSSES[name](1e-3 * random_logits(1), 1e4 * random_logits(2), label), expected)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    student, teacher = random_logits(1).to(dtype), random_logits(2).to(dtype)
    label = drawn(0, size=(3, 4))
    expected = LOSSES[name](student.float(), teacher.float(), label)
    if name == "dsd_pixel":  # squares its maps first
        student, teacher = student.float(), teacher.float()
    found = LOSSES[name](student, teacher, label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@EACH
def test_autocast_changes_nothing(name: str) -> None:
    student, teacher, label = random_logits(1), random_logits(2), drawn(0, size=(3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](student, teacher, label)
    assert torch.equal(found, LOSSES[name](student, teacher, label))


@EACH
def test_nothing_is_read_back(name: str) -> None:
    """Fake tensors have no values: what asks for one (and would make a GPU wait) fails."""
    student, teacher, label = random_logits(1), random_logits(2), drawn(0, size=(3, 4))
    with FakeTensorMode() as mode:
        given_ = [mode.from_tensor(x) for x in (student, teacher, label)]
        assert LOSSES[name](*given_).shape == ()


@EACH
def test_memory_layout_is_no_matter(name: str) -> None:
    student, teacher, label = random_logits(1), random_logits(2), drawn(0, size=(3, 4))
    last = [x.contiguous(memory_format=torch.channels_last) for x in (student, teacher)]
    torch.testing.assert_close(LOSSES[name](*last, label), LOSSES[name](student, teacher, label))


def test_the_divisor_and_the_modes_of_cwd() -> None:
    student, teacher = random_logits(1), random_logits(2)
    torch.testing.assert_close(cwd(student, teacher, divisor=1), 5 * cwd(student, teacher))
    torch.testing.assert_close(cwd(student, teacher, 2.0, mode="spatial"), pixel_kd(student, teacher, 2.0))


def test_the_last_window_of_a_pool_is_cut() -> None:
    """An odd map has windows of fewer positions, whose mean is over these."""
    student, teacher = random_logits(1, (1, 3, 3, 3)), random_logits(2, (1, 3, 3, 3))
    means = [x[:, :, 2:, 2:].squeeze() for x in (student, teacher)]
    assert F.avg_pool2d(student, 2, ceil_mode=True)[0, :, 1, 1].tolist() == means[0].tolist()
    assert torch.isfinite(dsd_category(student, teacher))


def test_dsd_takes_all_pairs_of_maps_on_one_grid() -> None:
    student = [random_logits(seed, (2, 3, 4, 6)) for seed in range(3)]
    teacher = [random_logits(seed, (2, 7, 4, 6)) for seed in range(3, 6)]
    pairs = [
        dsd_pixel([student[i], student[j]], [teacher[i], teacher[j]]) for i, j in combinations(range(len(student)), 2)
    ]
    torch.testing.assert_close(dsd_pixel(student, teacher), torch.stack(pairs).mean())
    fine = F.interpolate(student[0], scale_factor=2.0)  # the energy of a cell is that of its four copies
    torch.testing.assert_close(dsd_pixel([fine, *student[1:]], teacher), dsd_pixel(student, teacher))


def test_attention_by_hand() -> None:
    found = attention(torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]]))
    assert found[0].tolist() == pytest.approx([9 / math.sqrt(82), 1 / math.sqrt(82)])
    assert attention(torch.tensor([[[[3.0, 4.0]]]]), power=1.0)[0].tolist() == pytest.approx([0.6, 0.8])


def test_a_scaled_and_shifted_probability_is_as_good_to_dist() -> None:
    """Pearson's correlation: within two classes, a softer student is as right as the teacher."""
    teacher = logits((0.0, 1.0), (0.0, -1.0))
    assert dist(0.5 * teacher, teacher).item() == pytest.approx(0, abs=1e-5)
    assert dist(-teacher, teacher).item() == pytest.approx(4, abs=1e-5)


def test_a_teacher_that_does_not_vary_is_nothing_to_learn_for_dist() -> None:
    student = torch.randn(2, 5, 3, 4, requires_grad=True)
    loss = dist(student, torch.zeros(2, 5, 3, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    # Alike at all positions: no correlation over positions, that over classes counts.
    alike = torch.randn(1, 5, 1, 1).expand(2, 5, 3, 4)
    assert dist(student, alike, inter=0.0).item() == 0
    assert dist(student, alike, intra=0.0).item() > 0
