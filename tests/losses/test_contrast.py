"""U2PL's pieces against loops over pixels and classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses import contrast
from tutelage.losses.contrast import Candidates


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("percent", [0, 13.7, 20, 50, 80, 100])
@pytest.mark.parametrize("number", [1, 2, 37])
def test_percentiles_are_those_of_numpy(percent: float, number: int) -> None:
    values = torch.randn(5, 20, generator=seeded(number))
    values[2] = values[0]
    counted = torch.zeros(100, dtype=torch.bool)
    counted[torch.randperm(100, generator=seeded())[:number]] = True
    counted = counted.view(5, 20)
    expected = np.percentile(values[counted].numpy(), percent)
    assert contrast.percentile(values, counted, percent).item() == pytest.approx(float(expected), rel=1e-6)


def test_the_percentile_of_nothing_is_zero() -> None:
    assert contrast.percentile(torch.randn(4), torch.zeros(4, dtype=torch.bool), 30.0).item() == 0


def test_entropy_of_what_is_sure_and_of_what_is_not() -> None:
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 2, 0, 1] = 100
    torch.testing.assert_close(contrast.pixel_entropy(logits), torch.tensor([[[np.log(4.0), 0.0]]]).float())


def test_the_fewer_labels_are_kept_the_more_they_weigh() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=seeded())
    pseudo = torch.randint(3, (2, 4, 5), generator=seeded())
    pseudo[0, :2] = 255
    pseudo[1, 3] = 255
    mean = F.cross_entropy(logits, pseudo, ignore_index=255)
    torch.testing.assert_close(contrast.reliable_cross_entropy(logits, pseudo), mean * 40 / 25)
    torch.testing.assert_close(contrast.reliable_cross_entropy(logits, pseudo, torch.tensor(30)), mean * 30 / 25)


def test_no_pseudo_label_at_all() -> None:
    logits = torch.randn(2, 3, 4, 5).requires_grad_()
    pseudo = torch.full((2, 4, 5), 255)
    entropy = torch.rand(2, 4, 5)
    assert torch.equal(contrast.reliable(pseudo, entropy, 80), pseudo)
    loss = contrast.reliable_cross_entropy(logits, pseudo)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert not any(mask.any() for mask in contrast.entropy_masks(entropy, pseudo != 255, 20))


def test_a_fifth_of_the_labels_is_dropped() -> None:
    entropy = torch.randperm(100, generator=seeded()).view(1, 10, 10) / 100
    pseudo = torch.zeros(1, 10, 10, dtype=torch.int64)
    kept = contrast.reliable(pseudo, entropy, 80) != 255
    assert kept.sum() == 80
    assert entropy[kept].max() < entropy[~kept].min()
    low, high = contrast.entropy_masks(entropy, kept, 10)
    assert (low.sum(), high.sum()) == (8, 8)
    assert (entropy[low].max(), entropy[high].min()) == (pytest.approx(0.07), pytest.approx(0.72))


def test_ignored_pixels_have_neither_low_nor_high_entropy() -> None:
    entropy = torch.arange(10.0).view(1, 2, 5)
    counted = (entropy > 1) & (entropy < 8)
    low, high = contrast.entropy_masks(entropy, counted, 20)
    assert entropy[low].tolist() == [2, 3]
    assert entropy[high].tolist() == [6, 7]


def test_one_hot_of_every_image_and_of_all_in_the_first() -> None:
    label = torch.tensor([[[0, 1, 255]], [[2, 255, 2]]])
    assert contrast.one_hot(label, 3).long().argmax(1)[0, 0, :2].tolist() == [0, 1]
    assert contrast.one_hot(label, 3).sum(1).tolist() == [[[1, 1, 0]], [[1, 0, 1]]]
    published = contrast.one_hot(label, 3, "published")
    assert not published[1].any()
    assert published[0, :, 0].T.tolist() == [[True, False, True], [True, True, False], [False, False, False]]


K, P = 5, 60


def case(seed: int = 0, absent: tuple[int, ...] = ()) -> dict[str, Any]:
    generator = seeded(seed)
    label = torch.randint(K, (P,), generator=generator)
    for k in absent:
        label[label == k] = 255
    return {
        "member": label == torch.arange(K)[:, None],
        "probability": (3 * torch.randn(K, P, generator=generator)).softmax(0),
        "low": torch.rand(P, generator=generator) < 0.6,
        "high": torch.rand(P, generator=generator) < 0.6,
        "labeled": torch.arange(P) < P // 2,
    }


@pytest.mark.parametrize("negatives", ["paper", "published"])
def test_candidates_pixel_by_pixel(negatives: contrast.NegativeRule) -> None:
    given = case()
    found = contrast.candidates(*given.values(), low_rank=2, high_rank=4, delta_p=0.3, delta_n=0.2, negatives=negatives)
    for k in range(K):
        for p in range(P):
            probability, member = given["probability"][k, p], bool(given["member"][k, p])
            rank = int((given["probability"][:, p] > probability).sum())
            centre = member and bool(given["low"][p])
            assert bool(found.centre[k, p]) == centre
            assert bool(found.anchor[k, p]) == (centre and bool(probability > 0.3))
            negative = not member and rank < 2 if given["labeled"][p] else 2 <= rank < 4
            if negatives == "published":
                negative = negative and member and bool(probability < 0.2)
            assert bool(found.negative[k, p]) == (negative and bool(given["high"][p]))
    assert found.negative[:, : P // 2].any() == (negatives == "paper")


def test_positions_of_ranks() -> None:
    mask = torch.tensor([[False, True, False, True, True], [False, False, False, False, False]])
    assert contrast.positions(mask, torch.tensor([[2, 0, 1], [0, 1, 2]])).tolist() == [[4, 1, 3], [4, 4, 4]]


def test_numbers_stay_below_their_counts() -> None:
    found = contrast.below(torch.tensor([[0.0, 2.999, 3.0], [0.0, 0.5, 7.0]]).double(), torch.tensor([3, 0]))
    assert found.tolist() == [[0, 2, 2], [0, 0, 0]]


C, N, Q = 6, 4, 7


def spread(count_K: Tensor, number: int) -> Tensor:
    return torch.arange(number) % count_K.clamp(min=1)[:, None]


def run(chosen: Candidates, student: Tensor, teacher: Tensor, numbers: list[int], **changes: Any) -> Tensor:
    number = torch.tensor(numbers)
    memory = torch.randn(int(number.sum()) + 1, C, generator=seeded(9))
    options: dict[str, Any] = {"anchors": N, "negatives": Q, "temperature": 0.5, **changes}
    return contrast.memory_contrast(
        student, teacher, chosen, memory, number.cumsum(0) - number, number, spread, **options
    )


def chosen_of(given: dict[str, Any]) -> Candidates:
    return contrast.candidates(*given.values(), low_rank=2, high_rank=4)


@pytest.mark.parametrize(
    ("absent", "numbers"), [((), [5, 9, 3, 2, 8]), ((1, 3), [5, 9, 3, 2, 8]), ((0,), [1, 4, 0, 6, 2])]
)
def test_the_contrast_class_by_class(absent: tuple[int, ...], numbers: list[int]) -> None:
    student = torch.randn(P, C, generator=seeded(1)).requires_grad_()
    teacher = torch.randn(P, C, generator=seeded(2)).requires_grad_()
    chosen = chosen_of(case(absent=absent))
    loss = run(chosen, student, teacher, numbers)
    memory = torch.randn(sum(numbers) + 1, C, generator=seeded(9))
    total, present = torch.zeros(()), 0
    for k in range(K):
        present += bool(chosen.centre[k].any())
        pixels = chosen.anchor[k].nonzero()[:, 0]
        if not len(pixels) or not numbers[k]:
            continue
        bank = memory[sum(numbers[:k]) : sum(numbers[: k + 1])]
        anchor = student[pixels[torch.arange(N) % len(pixels)]]
        negative = bank[torch.arange(N * Q) % len(bank)].view(N, Q, C)
        positive = teacher[chosen.centre[k]].mean(0).detach().expand(N, 1, C)
        cosine = F.cosine_similarity(anchor[:, None], torch.cat([positive, negative], 1), dim=2)
        total = total + F.cross_entropy(cosine / 0.5, torch.zeros(N, dtype=torch.int64))
    torch.testing.assert_close(loss, total / present)
    ours, theirs = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (loss, total / present))
    torch.testing.assert_close(ours, theirs)
    loss.backward()
    assert teacher.grad is None, "the centre is not learned"


@pytest.mark.parametrize("indexing", ["corrected", "published"])
@pytest.mark.parametrize(("absent", "numbers"), [((0, 1, 2, 3), [5] * K), ((0, 1, 2, 3, 4), [5] * K), ((), [0] * K)])
def test_one_class_or_an_empty_memory_gives_zero(
    absent: tuple[int, ...], numbers: list[int], indexing: contrast.Indexing
) -> None:
    student, teacher = torch.zeros(P, C).requires_grad_(), torch.zeros(P, C)
    loss = run(chosen_of(case(absent=absent)), student, teacher, numbers, indexing=indexing)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_published_indexing_lends_the_negatives_of_another_class() -> None:
    """Classes 0 and 1 are absent: published, class 2 is at place 0, whose anchors are those of class 0: none."""
    student = torch.randn(P, C, generator=seeded(1)).requires_grad_()
    chosen = chosen_of(case(absent=(0, 1)))
    loss = run(chosen, student, torch.randn(P, C, generator=seeded(2)), [4] * K, indexing="published")
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient[chosen.anchor[2]].any(), "place 2, with the queue of class 4"
    assert not gradient[chosen.anchor[3] | chosen.anchor[4]].any(), "high classes are never trained"
