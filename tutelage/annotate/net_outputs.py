"""Outputs of a trained net on whole, unaugmented images: features and logits, with the labels."""

# Legend: C channels, K classes, h w the grid of features and logits, H W pixels.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.dataset import Dataset
from tutelage.errors import DataError
from tutelage.evaluation.image_view import ImageView
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor

OnUnreadable = Literal["error", "skip"]
_AHEAD = 4


@dataclass(frozen=True)
class ImageWithMask:
    """An image of a data set, with its mask if requested."""

    index: int
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    label: NDArray[np.uint8] | None
    """(H, W) train ids, 255 = ignore."""


@dataclass(frozen=True)
class NetOutput:
    """An image and the outputs of a net."""

    picture: ImageWithMask
    features_1Chw: Tensor
    """The classifier's input, float32."""
    logits_1Khw: Tensor

    def label(self) -> Tensor:
        """The mask (1, H, W) int64 on the features' device."""
        assert self.picture.label is not None
        return torch.from_numpy(self.picture.label.astype(np.int64)).to(self.logits_1Khw.device)[None]


def pictures(
    dataset: Dataset, indices: Sequence[int], *, labels: bool = False, on_unreadable: OnUnreadable = "error"
) -> Iterator[ImageWithMask]:
    """Images in the order of ``indices``, read ahead. :class:`DataError` for one that cannot be read, or it is skipped.

    With ``labels`` the masks, too; an image whose mask has another size is one that cannot be read.
    """
    with ThreadPoolExecutor(1) as reader:
        pending: list[Future[ImageWithMask]] = []
        try:
            for place in range(len(indices) + _AHEAD):
                if place < len(indices):
                    pending.append(reader.submit(_read, dataset, indices[place], labels))
                if place >= _AHEAD:
                    try:
                        yield pending.pop(0).result()
                    except DataError:
                        if on_unreadable == "error":
                            raise
        finally:
            for waiting in pending:
                waiting.cancel()


def _read(dataset: Dataset, index: int, labels: bool) -> ImageWithMask:
    image = dataset.image(index)
    label = dataset.label(index) if labels else None
    if label is not None and label.shape != image.shape[:2]:
        sample = dataset.samples[index]
        raise DataError(
            "size-mismatch",
            f"image and mask differ in size: {sample.image} is {image.shape[1]}x{image.shape[0]}, "
            f"{sample.label} is {label.shape[1]}x{label.shape[0]}",
            "run `tutelage check`; it lists all such pairs and likely reasons",
        )
    return ImageWithMask(index, image, label)


@torch.no_grad()
def looks(
    net: Segmentor,
    dataset: Dataset,
    indices: Sequence[int],
    protocol: Protocol,
    device: torch.device,
    *,
    labels: bool = False,
    on_unreadable: OnUnreadable = "error",
) -> Iterator[NetOutput]:
    """What ``net``, as it stands, says of :func:`pictures`, one at a time; of a protocol size, flip and the like count.

    With ``flip`` features and logits are means over the image and its mirror image.
    """
    for picture in pictures(dataset, indices, labels=labels, on_unreadable=on_unreadable):
        yield look(net, picture, protocol, device)


@torch.no_grad()
def look(net: Segmentor, picture: ImageWithMask, protocol: Protocol, device: torch.device) -> NetOutput:
    """The outputs of ``net`` on one image; see :func:`looks`."""
    height, width = picture.image.shape[:2]
    (size,) = protocol.input_sizes(height, width)
    seen = []
    for flip in (False, True)[: 1 + protocol.flip]:
        view = ImageView(picture.image, size, flip, protocol.antialias, protocol.fill, device)
        prediction = net(view.whole())
        maps = prediction.embedding.float(), prediction.logits.float()
        seen.append(tuple(each.flip(-1) for each in maps) if flip else maps)
    features, logits = (torch.stack(parts).mean(0) for parts in zip(*seen, strict=True))
    return NetOutput(picture, features, logits)


def missing(dataset: Dataset, seen: Sequence[int]) -> list[str]:
    """Names of the images that are not among those seen: they could not be read."""
    known = set(seen)
    return [sample.name for index, sample in enumerate(dataset.samples) if index not in known]
