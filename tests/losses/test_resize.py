"""The three rules for bringing logits back to the size of the image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tutelage.losses.resize import over_image, resize_logits


def test_grid_is_the_padded_image_cropped() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    padded = F.interpolate(logits, (16, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_logits(logits, (13, 18), "grid", 4), padded[..., :13, :18])


@pytest.mark.parametrize(("rule", "corners"), [("centers", False), ("corners", True)])
def test_stretching_rules(rule: str, corners: bool) -> None:
    logits = torch.randn(1, 3, 4, 5)
    expected = F.interpolate(logits, (13, 18), mode="bilinear", align_corners=corners)
    torch.testing.assert_close(resize_logits(logits, (13, 18), rule, 4), expected)  # type: ignore[arg-type]


def test_rules_differ_and_meet_where_they_should() -> None:
    logits = torch.randn(1, 2, 4, 4)
    grid, centers = (resize_logits(logits, (16, 16), rule, 4) for rule in ("grid", "centers"))
    torch.testing.assert_close(grid, centers)
    corners = resize_logits(logits, (16, 16), "corners", 4)
    assert not torch.allclose(grid, corners)
    torch.testing.assert_close(corners[..., ::15, ::15], logits[..., ::3, ::3])


@pytest.mark.parametrize("rule", ["grid", "centers", "corners"])
def test_same_size_and_gradient(rule: str) -> None:
    logits = torch.randn(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(resize_logits(logits, (5, 7), rule, 1), logits)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda x: resize_logits(x, (9, 13), rule, 2), logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["grid", "centers", "corners"])
def test_logits_over_an_image_have_its_height_and_width(rule: str) -> None:
    logits, image = torch.randn(2, 3, 4, 6), torch.zeros(2, 3, 15, 22)
    found = over_image(logits, image, rule, 4)  # type: ignore[arg-type]
    torch.testing.assert_close(found, resize_logits(logits, (15, 22), rule, 4))  # type: ignore[arg-type]
    assert found.shape == (2, 3, 15, 22)


def test_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="do not reach"):
        resize_logits(torch.zeros(1, 2, 2, 2), (17, 16), "grid", 8)
    with pytest.raises(ValueError, match="resize rule 'nearest'"):
        resize_logits(torch.zeros(1, 2, 2, 2), (16, 16), "nearest", 8)  # type: ignore[arg-type]
