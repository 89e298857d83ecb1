"""Class maps of images of any size, with the memory of a few windows of floats.

:func:`~tutelage.evaluation.inference.predict_labels` keeps the scores of one row of windows, as wide as the image. This
module also cuts that row into blocks of columns. A block has the same windows as the whole row and returns only the
columns that no other window covers, so that the result is the same; windows shared by two blocks are computed
twice.
"""

# Legend: H W pixels of the image.

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from tutelage.deploy.decoded_image import Bytes, DecodedImage
from tutelage.evaluation.inference import SegmentationModel, predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import grid, padded_size

WHOLE_PIXELS = 1 << 22
"""Images of more pixels than this are predicted in windows, unless a protocol is given."""

WINDOWED = Protocol(kind="sliding", window=(768, 768), overlap=0.25, weighting="gaussian")
"""Protocol for them: windows that fit any GPU, and weights without visible seams."""

_SCORES_BYTES = 256 << 20
_FEWEST_FOR_SHARED = 4


@dataclass(frozen=True)
class ColumnBlock:
    """Columns that are predicted together, and those among them that are kept."""

    left: int
    right: int
    first: int
    last: int


def label_image(
    net: SegmentationModel,
    image: DecodedImage | Bytes,
    protocol: Protocol,
    device: torch.device,
    classes: int,
    confidence: bool = False,
    at_once: int = 1,
) -> tuple[Bytes, Bytes | None]:
    """Class ids (H, W) uint8 of an image (H, W, 3), and with ``confidence`` the winner's probability (H, W) in 0..255.

    ``at_once``: windows per call of the net.
    """
    height, width = image.shape[:2]
    blocks = column_blocks(height, width, protocol, classes)
    if len(blocks) == 1:
        return predict_labels(net, cast(Bytes, image), protocol, device, confidence, at_once)
    labels = np.empty((height, width), dtype=np.uint8)
    sureness = np.empty_like(labels) if confidence else None
    for block in blocks:
        columns = _columns(image, block)
        part, sure = predict_labels(net, cast(Bytes, columns), protocol, device, confidence, at_once)
        taken = slice(block.first - block.left, block.last - block.left)
        labels[:, block.first : block.last] = part[:, taken]
        if sureness is not None and sure is not None:
            sureness[:, block.first : block.last] = sure[:, taken]
    return labels, sureness


def _columns(image: DecodedImage | Bytes, block: ColumnBlock) -> object:
    return (
        image.columns(block.left, block.right)
        if isinstance(image, DecodedImage)
        else image[:, block.left : block.right]
    )


def column_blocks(
    height: int, width: int, protocol: Protocol, classes: int, limit: int = _SCORES_BYTES
) -> list[ColumnBlock]:
    """Blocks whose scores of one row of windows need about ``limit`` bytes; one block if that is enough.

    Only a plain sliding protocol can be cut: the windows of a mirrored or resized view lie elsewhere.
    """
    everything = [ColumnBlock(0, width, 0, width)]
    plain = protocol.scales == (1.0,) and not protocol.flip and protocol.input_sizes(height, width) == [(height, width)]
    if protocol.window is None or protocol.border != "shifted" or not plain or width <= protocol.window[1]:
        return everything
    windows = grid(*padded_size(height, width, protocol), protocol)[1]
    step = protocol.steps()[1]
    fitting = limit // (4 * classes * protocol.window[0])
    shared = max(1, -(-protocol.window[1] // step) - 1)  # windows that two neighbouring blocks share
    count = max(_FEWEST_FOR_SHARED * shared, (fitting - protocol.window[1]) // step + 1)
    if len(windows) <= count:
        return everything
    blocks = []
    start = first = 0
    while True:
        stop = min(start + count, len(windows))
        last = windows[stop][0] if stop < len(windows) else width
        blocks.append(ColumnBlock(windows[start][0], windows[stop - 1][1], first, last))
        if stop == len(windows):
            return blocks
        # The next block begins with the first window that covers the column after the last one kept.
        first = last
        start = next(number for number, (_, end) in enumerate(windows) if end > first)
