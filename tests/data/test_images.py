"""Reading files: every kind of image and mask that turns up, and every way in which one can be broken."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.data.images import image_size, read_image, read_raw_mask

GRADIENT = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3) * 2
IDS = np.arange(40, dtype=np.uint8).reshape(5, 8)
ORIENTATION = 0x0112


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of stored pixels, by the definition of the EXIF orientations."""
    shown = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }
    return shown[orientation]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_lossless_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(GRADIENT).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), GRADIENT)
    assert image_size(path) == (5, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_of_image_and_mask(tmp_path: Path, orientation: int, suffix: str) -> None:
    image, mask = tmp_path / f"image{suffix}", tmp_path / f"mask{suffix}"
    Image.fromarray(GRADIENT).save(image, exif=oriented(orientation))
    Image.fromarray(IDS).save(mask, exif=oriented(orientation))
    np.testing.assert_array_equal(read_image(image), turned(GRADIENT, orientation))
    np.testing.assert_array_equal(read_raw_mask(mask), turned(IDS, orientation))
    assert image_size(image) == turned(GRADIENT, orientation).shape[:2]


def test_size_of_jpeg_is_upright(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "image.jpg", exif=oriented(6))
    assert image_size(tmp_path / "image.jpg") == read_image(tmp_path / "image.jpg").shape[:2] == (8, 5)


def test_orientation_after_the_pixels_of_a_png(tmp_path: Path) -> None:
    """Some tools append the chunk behind the image data, where it is legal too."""
    path = tmp_path / "image.png"
    Image.fromarray(GRADIENT).save(path, exif=oriented(6))
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    path.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    assert image_size(path) == read_image(path).shape[:2] == (8, 5)


def test_size_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (64, 48)


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(GRADIENT)
    picture.convert("L").save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png")
    assert grey.shape == (5, 8, 3)
    assert (grey[..., 0] == grey[..., 2]).all()

    few = Image.fromarray((IDS % 3).astype(np.uint8), mode="P")
    few.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    few.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png"), np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[IDS % 3]
    )

    seen_through = np.concatenate([GRADIENT, IDS[..., None]], axis=2)
    Image.fromarray(seen_through).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), GRADIENT)

    Image.fromarray(IDS > 20).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 1], (IDS > 20) * np.uint8(255))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    red.convert("CMYK").save(tmp_path / "print.jpg")
    image = read_image(tmp_path / "print.jpg")
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - (250, 10, 10)).max() < 8


def test_deep_grey_images(tmp_path: Path) -> None:
    deep = (IDS.astype(np.uint16) * 257 + 100).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], IDS)
    Image.fromarray(IDS.astype(np.uint16)).save(tmp_path / "shallow.png")  # eight bits in a wider container
    np.testing.assert_array_equal(read_image(tmp_path / "shallow.png")[..., 0], IDS)
    Image.fromarray(np.array([[-5, 70_000], [300, 65_535]], np.int32)).save(tmp_path / "wide.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "wide.tif")[..., 0], [[0, 255], [1, 255]])


def test_masks_are_read_as_stored(tmp_path: Path) -> None:
    Image.fromarray(IDS).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_raw_mask(tmp_path / "grey.png"), IDS)

    coloured = Image.fromarray(IDS, mode="P")
    coloured.putpalette([255 - i // 3 for i in range(120)])
    coloured.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_raw_mask(tmp_path / "palette.png"), IDS)

    deep = IDS.astype(np.uint16) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_raw_mask(tmp_path / "deep.png"), deep)

    Image.fromarray(IDS > 20).save(tmp_path / "bits.png")
    bits = read_raw_mask(tmp_path / "bits.png")
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(bits, IDS > 20)

    Image.fromarray(IDS.astype(np.float32)).save(tmp_path / "floats.tif")
    np.testing.assert_array_equal(read_raw_mask(tmp_path / "floats.tif"), IDS)


def test_masks_with_equal_channels(tmp_path: Path) -> None:
    for channels in (3, 4):
        values = np.repeat(IDS[..., None], channels, axis=2)
        values[..., 3:] = 255
        Image.fromarray(values).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_raw_mask(tmp_path / "mask.png"), IDS)
    Image.fromarray(np.stack([IDS, np.full_like(IDS, 255)], axis=2), mode="LA").save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_raw_mask(tmp_path / "mask.png"), IDS)


def test_masks_that_hold_no_indices(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "colours.png")
    with raises_code("mask-colours", "colours.png"):
        read_raw_mask(tmp_path / "colours.png")
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "fractions.tif")
    with raises_code("mask-format", "fractions.tif"):
        read_raw_mask(tmp_path / "fractions.tif")
    # Pillow keeps the upper eight bits of such a file: every id below 256 would become 0.
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((2, 2, 3), 3, np.uint16))
    with raises_code("mask-format", "16", "wide.png"):
        read_raw_mask(tmp_path / "wide.png")


def test_colours_are_packed_exactly(tmp_path: Path) -> None:
    colours = np.array([[[1, 2, 3], [255, 255, 255]], [[128, 0, 64], [0, 0, 0]]], np.uint8)
    for suffix in (".png", ".tif", ".bmp"):
        Image.fromarray(colours).save(tmp_path / f"mask{suffix}")
        np.testing.assert_array_equal(
            read_raw_mask(tmp_path / f"mask{suffix}", "rgb"), [[0x010203, 0xFFFFFF], [0x800040, 0]]
        )
    Image.fromarray(np.dstack([colours, np.zeros((2, 2), np.uint8)])).save(tmp_path / "rgba.png")
    assert read_raw_mask(tmp_path / "rgba.png", "rgb")[0, 0] == 0x010203


def test_first_channel_of_16_bits(tmp_path: Path) -> None:
    for channels in (3, 4):
        values = np.zeros((5, 8, channels), np.uint16)
        values[..., 2] = IDS  # red, as OpenCV orders the channels
        values[..., 1] = 50_000
        values[..., 3:] = 65_535
        cv2.imwrite(str(tmp_path / "mask.png"), values)
        np.testing.assert_array_equal(read_raw_mask(tmp_path / "mask.png", "first16"), IDS)
    for name, content in (("cut.png", b"\x89PNG"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with raises_code("image-unreadable", name):
            read_raw_mask(tmp_path / name, "first16")
    with raises_code("file-missing"):
        read_raw_mask(tmp_path / "none.png", "first16")


@pytest.mark.parametrize("read", [read_image, read_raw_mask], ids=["image", "mask"])
class TestBrokenFiles:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    def test_cut_short(self, tmp_path: Path, read, suffix: str) -> None:
        path = tmp_path / f"file{suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        for length in (len(content) // 2, len(content) * 9 // 10):
            path.write_bytes(content[:length])
            with raises_code("image-unreadable") as error:
                read(path)
            assert str(path) in error.value.message
            assert error.value.remedy

    def test_garbled_pixels(self, tmp_path: Path, read) -> None:
        path = tmp_path / "file.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        content = bytearray(path.read_bytes())
        content[200:300] = bytes(100)
        path.write_bytes(content)
        with raises_code("image-unreadable", "file.png"):
            read(path)

    def test_empty(self, tmp_path: Path, read) -> None:
        (tmp_path / "file.png").touch()
        with raises_code("image-unreadable", "(0 bytes)", "file.png"):
            read(tmp_path / "file.png")

    def test_not_an_image(self, tmp_path: Path, read) -> None:
        (tmp_path / "file.png").write_text("<html>404</html>")
        with raises_code("image-unreadable", "file.png"):
            read(tmp_path / "file.png")

    def test_missing(self, tmp_path: Path, read) -> None:
        with raises_code("file-missing", "file.png"):
            read(tmp_path / "file.png")

    def test_a_folder(self, tmp_path: Path, read) -> None:
        (tmp_path / "file.png").mkdir()
        with raises_code("file-missing", "file.png"):
            read(tmp_path / "file.png")

    def test_too_large(self, tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.fromarray(IDS).save(tmp_path / "file.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with raises_code("image-large", "file.png"):
            read(tmp_path / "file.png")
