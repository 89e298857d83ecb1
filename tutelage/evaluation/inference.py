"""Running a net over an image by a protocol.

All functions use :func:`score_bands`: a view of the image for each scale and flip; the net over the view, whole or in
windows; its scores resized to the image; the mean over the views. It works from top to bottom in bands of rows, so
that an image of 10,000 x 10,000 pixels needs the scores of one row of windows in memory, not those of all its
pixels.

A net normalises its input itself. It is used unchanged: set evaluation mode, and wrap it for mixed precision, before
the call.

Letters: B images, K classes, H x W pixels, h x w the grid of the net's logits, n rows of a band.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.bands import Bands, RowReader, mirrored, rows_of_band, stretched
from tutelage.evaluation.image_view import Image, ImageView, image_size
from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import coverage, grid, padded_size, taper
from tutelage.losses.options import ResizeRule
from tutelage.losses.resize import resize_logits

_LARGEST_CLASS_COUNT = 255


class HasLogits(typing.Protocol):
    """Output of a net."""

    @property
    def logits(self) -> Tensor:
        """(B, K, h, w) with h = ceil(H / stride)."""
        ...


class SegmentationModel(typing.Protocol):
    """Interface of a net: float RGB (B, 3, H, W) in 0..1 in, logits out."""

    @property
    def stride(self) -> int:
        """Pixels per logit."""
        ...

    def __call__(self, image: Tensor, /) -> HasLogits:
        """Run the net."""
        ...


def gives_probabilities(protocol: Protocol) -> bool:
    """Whether :func:`score_bands` yields probabilities; logits otherwise."""
    return protocol.averages and protocol.blend == "probabilities"


@torch.no_grad()
def score_bands(
    net: SegmentationModel, image: Image, protocol: Protocol, device: torch.device | str | None = None, at_once: int = 1
) -> Bands:
    """Yield first row and scores (B, K, n, W) of an image, from top to bottom, at the image's size.

    ``image``: floats (B, 3, H, W) in 0..1 (run on their device), or bytes (H, W, 3), also memory-mapped, run on
    ``device``; ``at_once``: windows per call of the net. :func:`gives_probabilities` states the kind of scores. The
    caller may change a yielded band. Raises :class:`TutelageError` for an invalid image.
    """
    size = image_size(image)
    readers = []
    for view_size in protocol.input_sizes(*size):
        for flip in (False, True)[: 1 + protocol.flip]:
            view = ImageView(image, view_size, flip, protocol.antialias, protocol.fill, device)
            bands = (_whole_bands if protocol.kind == "whole" else sliding_bands)(net, view, protocol, at_once)
            if flip:
                bands = mirrored(bands)
            if view_size != size:
                rule: ResizeRule = "corners" if protocol.resize == "corners" else "centers"
                bands = stretched(RowReader(bands).take, view_size, size, rule)
            readers.append(RowReader(bands))
    to_probabilities = protocol.kind == "whole" and gives_probabilities(protocol)
    step = rows_of_band(readers[0].take(0, 1), size[1])
    for start in range(0, size[0], step):
        stop = min(start + step, size[0])
        total: Tensor | None = None
        for reader in readers:
            scores = reader.take(start, stop)
            scores = scores.softmax(dim=1) if to_probabilities else scores
            total = scores if total is None else total.add_(scores)
        if total is not None:
            yield start, total.div_(len(readers))


@torch.no_grad()
def _whole_bands(net: SegmentationModel, view: ImageView, protocol: Protocol, at_once: int = 1) -> Bands:
    """Bands of logits, at the size of the view, from one call on the whole view."""
    logits_BKhw = _answer(net, view.whole())
    source = (int(logits_BKhw.shape[2]), int(logits_BKhw.shape[3]))
    return stretched(
        lambda start, stop: logits_BKhw[:, :, start:stop],
        source,
        (view.height, view.width),
        protocol.resize,
        net.stride,
    )


@torch.no_grad()
def sliding_bands(net: SegmentationModel, view: ImageView, protocol: Protocol, at_once: int = 1) -> Bands:
    """Yield bands (first row, (B, K, n, W)) of the windows' weighted mean, at the size of the view.

    A row is yielded as soon as no later window covers it; only rows that are still covered are kept.
    """
    height, width = padded_size(view.height, view.width, protocol)
    top, left = (height - view.height) // 2, (width - view.width) // 2
    rows, columns = grid(height, width, protocol)
    row_weight = torch.from_numpy(coverage(height, rows, protocol.weighting)).float()
    column_weight = torch.from_numpy(coverage(width, columns, protocol.weighting)).float()
    total: Tensor | None = None
    for index, (start, stop) in enumerate(rows):
        for group in _groups(columns, at_once):
            windows = [view.crop(start - top, begin - left, stop - start, end - begin) for begin, end in group]
            for (begin, end), scores in zip(group, _window_scores(net, windows, protocol), strict=True):
                if total is None:
                    shape = (*scores.shape[:2], max(last - first for first, last in rows), width)
                    total = scores.new_zeros(shape)
                    row_weight, column_weight = row_weight.to(total.device), column_weight.to(total.device)
                total[:, :, : stop - start, begin:end] += scores
        assert total is not None
        done = rows[index + 1][0] if index + 1 < len(rows) else height
        first, last = max(start, top), min(done, top + view.height)
        step = rows_of_band(total, width)
        for row in range(first, last, step):
            end = min(row + step, last)
            scores = total[:, :, row - start : end - start, left : left + view.width] / row_weight[row:end, None]
            yield row - top, scores.div_(column_weight[left : left + view.width])
        _move_up(total, done - start)


def _answer(net: SegmentationModel, image_B3HW: Tensor) -> Tensor:
    """Logits (B, K, h, w) in float32. Raises :class:`TutelageError` if one is not finite."""
    logits_BKhw = net(image_B3HW).logits.float()
    if not bool(logits_BKhw.isfinite().all()):
        raise TutelageError(
            "output-not-finite",
            "the net's output is not finite",
            "check for float16 overflow, or for a checkpoint of a run that diverged",
        )
    return logits_BKhw


def _window_scores(net: SegmentationModel, windows: list[Tensor], protocol: Protocol) -> Iterator[Tensor]:
    """Weighted scores (B, K, h, w) of windows (B, 3, h, w) of one size, in one call of the net."""
    height, width = windows[0].shape[-2:]
    scores = resize_logits(_answer(net, torch.cat(windows)), (height, width), protocol.resize, net.stride)
    if protocol.blend == "probabilities":
        scores = scores.softmax(dim=1)
    if protocol.weighting != "uniform":
        down, across = (torch.from_numpy(taper(length, protocol.weighting)).to(scores) for length in (height, width))
        scores = scores * (down[:, None] * across)
    yield from scores.chunk(len(windows))


def _groups(columns: list[tuple[int, int]], at_once: int) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring windows of one width, at most ``at_once`` of them."""
    group: list[tuple[int, int]] = []
    for begin, end in columns:
        if group and (len(group) >= at_once or group[0][1] - group[0][0] != end - begin):
            yield group
            group = []
        group.append((begin, end))
    if group:
        yield group


def _move_up(total: Tensor, step: int) -> None:
    """Drop the first ``step`` rows, move the others up in place, and set the new ones to 0."""
    height = total.shape[2]
    # In pieces of at most a step, because a copy must not overlap its source.
    for start in range(0, height - step, step):
        stop = min(start + step, height - step)
        total[:, :, start:stop] = total[:, :, start + step : stop + step]
    total[:, :, max(0, height - step) :] = 0


@torch.no_grad()
def predict_logits(net: SegmentationModel, image: Tensor, protocol: Protocol, at_once: int = 1) -> Tensor:
    """Float RGB (B, 3, H, W) in 0..1 -> (B, K, H, W) float32, whose softmax is the class probabilities.

    If the protocol averages probabilities, these are the logarithms of the means. ``at_once``: windows of each image
    per call of the net. Raises :class:`TutelageError` for an invalid image.
    """
    height, width = image_size(image)
    logits: Tensor | None = None
    for start, scores in score_bands(net, image, protocol, at_once=at_once):
        if logits is None:
            logits = scores.new_empty((*scores.shape[:2], height, width))
        if gives_probabilities(protocol):
            scores = scores.clamp_min_(torch.finfo(scores.dtype).tiny).log_()
        logits[:, :, start : start + scores.shape[2]] = scores
    assert logits is not None
    return logits


@torch.no_grad()
def predict_labels(
    net: SegmentationModel,
    image: NDArray[np.uint8],
    protocol: Protocol,
    device: torch.device | str = "cpu",
    confidence: bool = False,
    at_once: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Bytes (H, W, 3), also memory-mapped -> class ids (H, W) uint8, and with ``confidence`` the winner's
    probability (H, W) in 0..255, rounded.

    Memory: the two maps, and the scores of the current rows. Raises :class:`TutelageError` for an invalid image and a
    net of more than 255 classes.
    """
    labels = np.empty(image_size(image), dtype=np.uint8)
    sureness = np.empty_like(labels) if confidence else None
    for start, scores in score_bands(net, image, protocol, device, at_once):
        if scores.shape[1] > _LARGEST_CLASS_COUNT:
            raise TutelageError(
                "class-count",
                f"a uint8 label map holds at most 255 classes, the net has {scores.shape[1]}",
                "use predict_logits, or a net of at most 255 classes",
            )
        rows = slice(start, start + scores.shape[2])
        if sureness is None:
            best = scores[0].max(dim=0).indices
        else:
            best, share = winners(scores[0], gives_probabilities(protocol))
            sureness[rows] = share.mul_(255).round_().to(torch.uint8).cpu().numpy()
        labels[rows] = best.to(torch.uint8).cpu().numpy()
    return labels, sureness


def winners(scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
    """The class (n, W) of the highest score, and its probability in 0..1. Overwrites the scores if they are logits."""
    highest, best = scores_KnW.max(dim=0)
    return best, highest if probabilities else scores_KnW.sub_(highest).exp_().sum(dim=0).reciprocal_()
