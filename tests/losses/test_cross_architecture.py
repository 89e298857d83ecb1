"""What one view learns of another: features and attention on other grids, gradients, means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.cross_architecture import attention_loss, spatial_loss

SMALL, LARGE = (2, 3), (4, 6)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(grid: tuple[int, int], seed: int = 0, images: int = 2, heads: int = 3) -> Tensor:
    tokens = grid[0] * grid[1]
    return 2 * drawn(images, heads, tokens, tokens, seed=seed)


def whole(student: Tensor, vit: Tensor) -> Tensor:
    """The published form, all images at once."""
    if student.shape != vit.shape:
        student = F.interpolate(student, vit.shape[2:], mode="bilinear", align_corners=True)
    log_p = vit.log_softmax(3)
    return (log_p.exp() * (log_p - student.log_softmax(3))).mean()


def test_the_spatial_loss_is_a_mean_over_elements_on_the_grid_of_the_cnn() -> None:
    student, cnn = drawn(2, 4, 3, 5).requires_grad_(), drawn(2, 4, 3, 5, seed=1).requires_grad_()
    loss = spatial_loss(student, cnn)
    torch.testing.assert_close(loss, (student - cnn).square().sum() / (2 * 4 * 3 * 5))
    loss.backward()
    assert student.grad is not None
    assert cnn.grad is None
    finer = F.interpolate(cnn.detach(), (6, 10), mode="bilinear", align_corners=False)
    assert spatial_loss(cnn.detach(), finer) == 0
    assert spatial_loss(student.detach().bfloat16(), cnn.detach().bfloat16()).dtype == torch.float32


def test_the_relative_spatial_loss_does_not_depend_on_the_size_of_the_features() -> None:
    """It is the share of the variance that is not explained: 1 for the channels' means, whatever their scale."""
    cnn = 30.0 * torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) + torch.arange(3.0)[:, None, None]
    means = cnn.mean((0, 2, 3), keepdim=True).expand_as(cnn).clone().requires_grad_()
    loss = spatial_loss(means, cnn, relative=True)
    torch.testing.assert_close(loss, torch.ones(()))
    (gradient,) = torch.autograd.grad(loss, means)
    assert gradient.abs().sum() > 0
    half = means.detach() + 0.5 * (cnn - means.detach())
    torch.testing.assert_close(spatial_loss(half, cnn, relative=True), torch.tensor(0.25))
    torch.testing.assert_close(spatial_loss(0.01 * half, 0.01 * cnn, relative=True), torch.tensor(0.25))
    blank = torch.full_like(cnn, 3.0)
    assert spatial_loss(blank, blank, relative=True) == 0
    assert spatial_loss(blank + 1e-3, blank, relative=True) < 2


@pytest.mark.parametrize("grids", [(SMALL, LARGE), (LARGE, SMALL), (SMALL, SMALL)])
def test_image_by_image_is_the_published_form(grids: tuple[Any, Any]) -> None:
    student, vit = logits(grids[0]).requires_grad_(), logits(grids[1], seed=1).requires_grad_()
    expected = whole(student, vit.detach())
    found = attention_loss(student, vit)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(3 * loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(attention_loss(student, vit), expected)


@pytest.mark.parametrize("resize", ["published", "spatial", "pool"])
def test_a_mean_over_rows_is_as_many_times_larger_as_there_are_keys(resize: Any) -> None:
    student, vit = logits(SMALL), logits(LARGE, seed=1)
    elements, rows = (
        attention_loss(student, vit, grids=(SMALL, LARGE), resize=resize, mean=mean) for mean in ("elements", "rows")
    )
    torch.testing.assert_close(rows, elements * (6 if resize == "pool" else 24))


def test_resizing_in_the_image_resizes_keys_and_queries_as_maps() -> None:
    queries, keys = drawn(1, 2, *SMALL), drawn(1, 2, *SMALL, seed=1)
    student = queries.flatten(2)[..., :, None] * keys.flatten(2)[..., None, :]
    large = [F.interpolate(maps, LARGE, mode="bilinear", align_corners=False).flatten(2) for maps in (queries, keys)]
    vit = large[0][..., :, None] * large[1][..., None, :]
    same = attention_loss(student, vit, grids=(SMALL, LARGE), resize="spatial")
    assert same.abs() < 1e-6
    assert attention_loss(student, vit) > 1e-4  # the flat picture is another


def test_pooling_sums_the_keys_of_a_cell_and_averages_its_queries() -> None:
    student = logits(SMALL)
    cell = torch.arange(6).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    probability = student.softmax(3)[:, :, cell][..., cell] / 4
    same = attention_loss(student, probability.log(), grids=(SMALL, LARGE), resize="pool")
    assert same.abs() < 1e-6


@pytest.mark.parametrize("grids", [((2, 3), (3, 5)), ((3, 5), (2, 3))])
@pytest.mark.parametrize("resize", ["spatial", "pool"])
def test_grids_that_do_not_divide(resize: Any, grids: Any) -> None:
    student = logits(grids[0]).requires_grad_()
    vit = logits(grids[1], seed=1)
    loss = attention_loss(student, vit, grids=grids, resize=resize)
    gradient = torch.autograd.grad(loss, student)[0]
    assert loss > 0  # no divergence of probabilities is below 0
    torch.testing.assert_close(gradient.sum((0, 1)).sum(), torch.tensor(0.0), atol=1e-6, rtol=0)
    even = torch.zeros_like(vit)  # attention that is the same everywhere is so on every grid
    if resize == "spatial":
        assert attention_loss(torch.zeros_like(student), even, grids=grids, resize=resize).abs() < 1e-6


@pytest.mark.parametrize("resize", ["published", "spatial", "pool"])
def test_where_grids_are_equal_there_is_one_loss(resize: Any) -> None:
    student, vit = logits(SMALL), logits(SMALL, seed=1)
    torch.testing.assert_close(attention_loss(student, vit, grids=(SMALL, SMALL), resize=resize), whole(student, vit))


@pytest.mark.parametrize("resize", ["published", "spatial", "pool"])
def test_attention_that_is_a_spike_gives_no_nan(resize: Any) -> None:
    student, vit = (1e4 * logits(SMALL)).requires_grad_(), 1e4 * logits(LARGE)
    loss = attention_loss(student, vit, grids=(SMALL, LARGE), resize=resize)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_half_precision_is_computed_in_single() -> None:
    student, vit = logits(SMALL).bfloat16().requires_grad_(), logits(LARGE).bfloat16()
    loss = attention_loss(student, vit)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, student)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("grids", [None, (SMALL, SMALL)])
def test_grids_that_are_missing_or_wrong(grids: Any) -> None:
    with pytest.raises(ValueError, match="grid"):
        attention_loss(logits(SMALL), logits(LARGE), grids=grids, resize="spatial")
