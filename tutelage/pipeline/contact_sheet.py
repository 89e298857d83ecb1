"""Contact sheets, drawn with Pillow: blocks of captioned pictures, several per line, with a legend at the bottom."""

# Legend: H W pixels of a picture before scaling.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (28, 30, 34)
_FAINT: Colour = (105, 110, 118)
_LINE: Colour = (214, 217, 222)
_IGNORED: tuple[Colour, Colour] = ((232, 232, 232), (168, 168, 168))
_PADDED: tuple[Colour, Colour] = ((255, 255, 255), (214, 0, 140))

_CELL_AREA = 256 * 256
_WIDEST, _TALLEST = 448, 320
_SHEET_WIDTH = 1720
_MARGIN, _GAP, _BLOCK_GAP = 24, 8, 28
_LINE_HEIGHT = 18
_PERIOD = 8  # of both hatchings, in pixels of the sheet
_SWATCH = 14


@dataclass(frozen=True)
class SheetCell:
    """One picture: RGB (H, W, 3), and where (H, W) it is hatched as ignored or as padding."""

    title: str
    image_HW3: Bytes
    padded_HW: Mask
    ignored_HW: Mask | None = None
    smooth: bool = True
    """Whether it is a photograph; a map is scaled by nearest neighbours."""


@dataclass(frozen=True)
class Group:
    """Pictures with a common geometry, and two caption lines."""

    caption: tuple[str, str]
    cells: tuple[SheetCell, ...]


@dataclass(frozen=True)
class SampleBlock:
    """One sample."""

    title: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Swatch:
    """One entry of the legend: a colour, or a hatching."""

    text: str
    colour: Colour | None = None
    padded: bool = False


@dataclass(frozen=True)
class _Fonts:
    title: ImageFont.FreeTypeFont | ImageFont.ImageFont
    bold: ImageFont.FreeTypeFont | ImageFont.ImageFont
    plain: ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_sheet(title: str, subtitle: str, blocks: Sequence[SampleBlock], legend: Sequence[Swatch]) -> Image.Image:
    """A sheet of ``blocks`` of equal structure, with a title and a legend."""
    fonts = _Fonts(ImageFont.load_default(20), ImageFont.load_default(14), ImageFont.load_default(12.5))
    layout = _layout(blocks)
    across = max(1, min(len(blocks), (_SHEET_WIDTH - 2 * _MARGIN + _BLOCK_GAP) // (layout.width + _BLOCK_GAP)))
    sheet_width = max(2 * _MARGIN + across * (layout.width + _BLOCK_GAP) - _BLOCK_GAP, 640)
    lines = _legend_lines(legend, sheet_width - 2 * _MARGIN, fonts)
    head = _MARGIN + 56
    down = -(-len(blocks) // across)
    foot = head + down * (layout.height + _BLOCK_GAP) - _BLOCK_GAP + 16
    sheet = Image.new("RGB", (sheet_width, foot + len(lines) * 24 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    inner = sheet_width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN - 4), _fitted(title, fonts.title, inner), _INK, fonts.title)
    draw.text((_MARGIN, _MARGIN + 24), _fitted(subtitle, fonts.plain, inner), _FAINT, fonts.plain)
    for number, block in enumerate(blocks):
        x = _MARGIN + number % across * (layout.width + _BLOCK_GAP)
        y = head + number // across * (layout.height + _BLOCK_GAP)
        _draw_block(sheet, block, (x, y), layout, fonts)
    for number, line in enumerate(lines):
        _draw_legend(sheet, line, foot + number * 24, fonts)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Positions of the pictures in a block; the same for all blocks."""

    cells: tuple[tuple[int, int], ...]
    """Largest width and height of a group's pictures."""
    places: tuple[tuple[int, int], ...]
    """Of each group, relative to the block's corner."""
    width: int
    height: int


def _layout(blocks: Sequence[SampleBlock]) -> _Layout:
    """Groups side by side, or stacked where the sheet is too narrow."""
    cells, sizes = [], []
    for number in range(len(blocks[0].groups)):
        groups = [block.groups[number] for block in blocks]
        count = max(len(group.cells) for group in groups)
        scaled = [_scaled_size(cell) for group in groups for cell in group.cells]
        wide, tall = max(width for width, _ in scaled), max(height for _, height in scaled)
        cells.append((wide, tall))
        sizes.append((count * (wide + _GAP) - _GAP, 3 * _LINE_HEIGHT + 6 + tall))
    places = []
    x = y = 0
    stacked = sum(wide for wide, _ in sizes) + _GAP * (len(sizes) - 1) > _SHEET_WIDTH - 2 * _MARGIN
    for wide, tall in sizes:
        places.append((x, y + _LINE_HEIGHT))
        x, y = (0, y + tall + _GAP) if stacked else (x + wide + _GAP, 0)
    right = max(place[0] + size[0] for place, size in zip(places, sizes, strict=True))
    bottom = max(place[1] + size[1] for place, size in zip(places, sizes, strict=True))
    return _Layout(tuple(cells), tuple(places), right, bottom)


def _scaled_size(cell: SheetCell) -> tuple[int, int]:
    height, width = cell.padded_HW.shape
    scale = min((_CELL_AREA / (height * width)) ** 0.5, _WIDEST / width, _TALLEST / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_block(sheet: Image.Image, block: SampleBlock, place: tuple[int, int], layout: _Layout, fonts: _Fonts) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.line((place[0], place[1] - 6, place[0] + layout.width, place[1] - 6), _LINE)
    draw.text((place[0], place[1] - 2), _fitted(block.title, fonts.bold, layout.width), _INK, fonts.bold)
    for group, (wide, _), (right, down) in zip(block.groups, layout.cells, layout.places, strict=True):
        x, y = place[0] + right, place[1] + down
        for number, line in enumerate(group.caption):
            text = _fitted(line, fonts.plain, len(group.cells) * (wide + _GAP) - _GAP)
            draw.text((x, y + number * _LINE_HEIGHT), text, _FAINT, fonts.plain)
        for one in group.cells:
            draw.text((x, y + 2 * _LINE_HEIGHT), _fitted(one.title, fonts.plain, wide), _INK, fonts.plain)
            sheet.paste(_rendered(one), (x, y + 3 * _LINE_HEIGHT + 2))
            x += wide + _GAP


def _rendered(cell: SheetCell) -> Image.Image:
    """The picture scaled for the sheet; hatched after scaling, so that all hatchings are equal."""
    size = _scaled_size(cell)
    enlarged = size[0] > cell.padded_HW.shape[1]
    # Nearest neighbours when enlarging: the pixels that the net gets stay visible.
    rule = Image.Resampling.LANCZOS if cell.smooth and not enlarged else Image.Resampling.NEAREST
    pixels = np.array(Image.fromarray(np.ascontiguousarray(cell.image_HW3)).resize(size, rule))
    stripes = _stripes(size)
    if cell.ignored_HW is not None:
        ignored = _resized_mask(cell.ignored_HW, size)
        pixels[ignored] = np.where(stripes[..., None], *map(np.array, _IGNORED[::-1])).astype(np.uint8)[ignored]
    padded = _resized_mask(cell.padded_HW, size)
    # A photograph keeps the net's input colour there.
    pixels[padded & _stripes(size, 2)] = _PADDED[1]
    if not cell.smooth:
        pixels[padded & ~_stripes(size, 2)] = _PADDED[0]
    result = Image.fromarray(pixels)
    ImageDraw.Draw(result).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_LINE)
    return result


def _stripes(size: tuple[int, int], thick: int = _PERIOD // 2) -> Mask:
    """(H, W) diagonal stripes; thin stripes have the opposite slope."""
    rows, columns = np.indices((size[1], size[0]))
    diagonal = rows + columns if thick == _PERIOD // 2 else rows - columns
    result: Mask = diagonal % _PERIOD < thick
    return result


def _resized_mask(mask_HW: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0


def _legend_lines(legend: Sequence[Swatch], wide: int, fonts: _Fonts) -> list[list[tuple[int, Swatch]]]:
    """Entries with their horizontal positions, broken into lines."""
    lines: list[list[tuple[int, Swatch]]] = []
    x = wide + 1
    for swatch in legend:
        length = _SWATCH + 6 + int(fonts.plain.getlength(swatch.text)) + 18
        if x + length - 18 > wide:
            lines.append([])
            x = 0
        lines[-1].append((x, swatch))
        x += length
    return lines


def _draw_legend(sheet: Image.Image, line: Sequence[tuple[int, Swatch]], y: int, fonts: _Fonts) -> None:
    draw = ImageDraw.Draw(sheet)
    size = (_SWATCH, _SWATCH)
    for x, swatch in line:
        x += _MARGIN
        if swatch.colour is not None:
            patch = Image.new("RGB", size, swatch.colour)
        else:
            mask = _stripes(size, 2 if swatch.padded else _PERIOD // 2)[..., None]
            pair = _PADDED if swatch.padded else _IGNORED
            patch = Image.fromarray(np.where(mask, *map(np.array, pair[::-1])).astype(np.uint8))
        sheet.paste(patch, (x, y))
        draw.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), outline=_FAINT)
        draw.text((x + _SWATCH + 6, y - 1), swatch.text, _INK, fonts.plain)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int) -> str:
    """The text, shortened in its first half where it is too long: names differ at their ends."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType supports only Latin-1
        text = text.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(text) <= wide:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = kept // 4
        short = f"{text[:head]}...{text[len(text) - kept + head :]}"
        if font.getlength(short) <= wide:
            return short
    return ""
