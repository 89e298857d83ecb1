"""Colour: the one matrix against torchvision's chain of operations, and blur."""

import tutelage.torchvision_operators  # noqa: F401  isort: skip

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from tutelage.data.colour import PLAIN, blur, colour_batch, draw_colour
from tutelage.data.settings import ColourSettings

GREY_WEIGHTS = 1e-3  # torchvision rounds the weight of red to 0.2989


def images(low: int = 0, high: int = 256, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(low, high, (count, 12, 17, 3), dtype=np.uint8))


def coloured(image: torch.Tensor, **changes: float) -> torch.Tensor:
    names = ("brightness", "contrast", "saturation", "hue", "grey", "sigma")
    numbers = [changes.get(name, plain) for name, plain in zip(names, PLAIN, strict=True)]
    return colour_batch(image, np.array([numbers] * len(image)))


def floats(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 3, 1, 2).float() / 255.0


def test_plain_colours_are_the_image() -> None:
    image = images()
    result = coloured(image)
    torch.testing.assert_close(result, floats(image), rtol=0, atol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert image.dtype == torch.uint8


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.3, 2.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_change_equals_torchvision(name: str, factor: float) -> None:
    image = images()
    expected = getattr(reference, f"adjust_{name}")(floats(image), factor)
    torch.testing.assert_close(coloured(image, **{name: factor}), expected, rtol=0, atol=GREY_WEIGHTS)


def test_a_chain_equals_torchvision_where_nothing_is_clipped() -> None:
    image = images(90, 170)
    expected = floats(image)
    for name, factor in (("brightness", 1.2), ("contrast", 0.8), ("saturation", 1.3)):
        expected = getattr(reference, f"adjust_{name}")(expected, factor)
    assert expected.min() > 0
    assert expected.max() < 1
    result = coloured(image, brightness=1.2, contrast=0.8, saturation=1.3)
    torch.testing.assert_close(result, expected, rtol=0, atol=GREY_WEIGHTS)


def test_each_image_has_its_own_colours() -> None:
    image = images()
    numbers = np.array([PLAIN, (0.5, 1, 1, 0, 0, 0), (1, 1, 1, 0, 1, 0)])
    result = colour_batch(image, numbers)
    torch.testing.assert_close(result[0], floats(image)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(result[1], floats(image)[1] / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(result[2], reference.rgb_to_grayscale(floats(image), 3)[2], rtol=0, atol=GREY_WEIGHTS)


class TestHue:
    def test_no_turn_and_a_full_turn(self) -> None:
        image = images(90, 170)
        for hue in (0.0, 1.0, -1.0):
            torch.testing.assert_close(coloured(image, hue=hue, brightness=1.0001), floats(image), rtol=0, atol=2e-4)

    def test_three_thirds_are_a_full_turn(self) -> None:
        image = images(110, 150)
        result = image.float()
        for _ in range(3):
            result = coloured(result, hue=1 / 3).permute(0, 2, 3, 1).contiguous() * 255.0
        torch.testing.assert_close(result, image.float(), rtol=0, atol=1e-2)

    def test_grey_stays_grey_and_brightness_stays(self) -> None:
        grey = images()[..., :1].expand(-1, -1, -1, 3).contiguous()
        torch.testing.assert_close(coloured(grey, hue=0.3), floats(grey), rtol=0, atol=1e-5)
        image = images(90, 170)
        before, after = (reference.rgb_to_grayscale(x) for x in (floats(image), coloured(image, hue=0.4)))
        torch.testing.assert_close(after, before, rtol=0, atol=GREY_WEIGHTS)

    def test_it_turns_the_same_way_as_torchvision(self) -> None:
        red = torch.tensor([180, 60, 60], dtype=torch.uint8).expand(1, 4, 4, 3).contiguous()
        for hue in (0.2, -0.2):
            ours = coloured(red, hue=hue)[0, :, 0, 0]
            theirs = reference.adjust_hue(floats(red), hue)[0, :, 0, 0]
            assert ours.argmax() == theirs.argmax()


def test_grey_drops_all_colour() -> None:
    result = coloured(images(), grey=1.0, saturation=1.4, hue=0.2)
    torch.testing.assert_close(result, result[:, :1].expand_as(result), rtol=0, atol=1e-6)


class TestBlur:
    @pytest.mark.parametrize("sigma", [0.3, 1.0, 1.7])
    def test_equals_torchvision(self, sigma: float) -> None:
        image = floats(images())
        size = 2 * int(np.ceil(3 * sigma)) + 1
        expected = reference.gaussian_blur(image, [size, size], [sigma, sigma])
        torch.testing.assert_close(blur(image, np.full(3, sigma)), expected, rtol=0, atol=1e-6)

    def test_an_image_does_not_depend_on_its_batch(self) -> None:
        image = floats(images())
        sigmas = np.array([0.3, 1.0, 3.1])
        together = blur(image, sigmas)
        for i in range(3):
            alone = blur(image[i : i + 1], sigmas[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)

    def test_only_where_it_was_drawn(self) -> None:
        image = images()
        numbers = np.array([PLAIN, (*PLAIN[:5], 1.5), PLAIN])
        result = colour_batch(image, numbers)
        torch.testing.assert_close(result[::2], floats(image)[::2], rtol=0, atol=0)
        torch.testing.assert_close(result[1:2], blur(floats(image)[1:2], np.array([1.5])), rtol=0, atol=1e-6)

    def test_images_smaller_than_the_kernel(self) -> None:
        tiny = torch.rand(1, 3, 1, 3)
        assert blur(tiny, np.array([5.0])).shape == tiny.shape
        assert blur(torch.rand(1, 3, 2, 3), np.array([5.0])).isfinite().all()

    def test_mean_is_kept(self) -> None:
        image = torch.full((1, 3, 20, 20), 0.4)
        torch.testing.assert_close(blur(image, np.array([2.0])), image, rtol=0, atol=1e-6)


class TestDraws:
    JITTER = ColourSettings(
        probability=0.8,
        brightness=0.5,
        contrast=0.4,
        saturation=0.3,
        hue=0.2,
        grey=0.2,
        blur=0.5,
        blur_sigma=(0.1, 2.0),
    )

    def test_a_draw_is_a_function_of_its_position(self) -> None:
        draws = [draw_colour(self.JITTER, 1, "s/strong", p) for p in range(50)]
        assert draws == [draw_colour(self.JITTER, 1, "s/strong", p) for p in reversed(range(50))][::-1]
        assert draws != [draw_colour(self.JITTER, 1, "s/other", p) for p in range(50)]
        assert draws != [draw_colour(self.JITTER, 2, "s/strong", p) for p in range(50)]

    def test_ranges_and_frequencies(self) -> None:
        draws = np.array([draw_colour(self.JITTER, 0, "s", p) for p in range(1500)])
        for column, (middle, strength) in enumerate(((1, 0.5), (1, 0.4), (1, 0.3), (0, 0.2))):
            reach = np.abs(draws[:, column] - middle).max()
            assert 0.95 * strength < reach <= strength
            assert abs((draws[:, column] != middle).mean() - 0.8) < 0.05
        assert abs(draws[:, 4].mean() - 0.2) < 0.05
        blurred = draws[draws[:, 5] > 0, 5]
        assert abs(len(blurred) / len(draws) - 0.5) < 0.05
        assert 0.1 <= blurred.min() < 0.15
        assert 1.95 < blurred.max() <= 2.0

    def test_the_default_changes_nothing(self) -> None:
        assert draw_colour(ColourSettings(), 0, "s", 0) == PLAIN
