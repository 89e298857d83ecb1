"""A trained net as its user sees it: an image in, classes out."""

# Legend: H W pixels of the image.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from PIL import Image

from tutelage.deploy.decoded_image import MAX_PIXELS, Bytes, DecodedImage, allowing
from tutelage.deploy.large import WHOLE_PIXELS, WINDOWED, label_image
from tutelage.deploy.palette import coloured, overlaid
from tutelage.errors import RunError, TutelageError
from tutelage.evaluation.inference import SegmentationModel, predict_logits
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.devices import find_device
from tutelage.nets.segmentor import Precision
from tutelage.nets.storage import load_segmentor
from tutelage.runs.store import KEY_LENGTH, Artefact

Input = str | Path | Image.Image | Bytes
"""A file, a Pillow image, or an array of bytes: (H, W, 3) RGB or (H, W) grey."""

_WHOLE = Protocol()


@dataclass(frozen=True)
class PredictionResult:
    """What a model says of one image."""

    labels: Bytes
    """(H, W) uint8: the number of each pixel's class."""
    confidence: Bytes | None
    """(H, W) uint8: the probability of that class, 255 = certain; None where it was not asked for."""
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    protocol: Protocol
    """How the net was run over the image."""

    def coloured(self) -> Image.Image:
        """The class map as a palette image (mode P): its pixels are class numbers, its palette the classes' colours."""
        return coloured(self.labels, self.palette)

    def overlay(self, image: Input, alpha: float = 0.5) -> Image.Image:
        """The classes' colours over ``image`` with strength ``alpha`` in 0..1, as a new RGB image.

        A :class:`TutelageError` for an image of another size.
        """
        if not 0 <= alpha <= 1:
            raise TutelageError("invalid-value", f"alpha must be in [0, 1], got {alpha}", "set a value in this range")
        pixels = as_pixels(image)
        if pixels.shape[:2] != self.labels.shape:
            (height, width), (rows, columns) = pixels.shape[:2], self.labels.shape
            raise TutelageError(
                "size-mismatch",
                f"image is {width}x{height} pixels, class map is {columns}x{rows}",
                "give the image that was predicted",
            )
        under = pixels.image if isinstance(pixels, DecodedImage) else Image.fromarray(np.ascontiguousarray(pixels))
        return overlaid(under.copy() if under is image else under, self.labels, self.palette, alpha)


@dataclass(frozen=True)
class Model:
    """A net with its classes, ready on its device; made by :func:`load_model`."""

    net: SegmentationModel
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    device: torch.device
    protocol: Protocol | None = None
    """How the net is run over images; None: over the whole image, in windows where it is large."""
    precision: Precision = "fp32"
    """What the net computes in."""
    checksum: int = 0
    """What its file gives as the sum of its tensors."""

    def protocol_for(self, height: int, width: int) -> Protocol:
        """The protocol for an image of this size."""
        if self.protocol is not None:
            return self.protocol
        chosen = _WHOLE if height * width <= WHOLE_PIXELS else WINDOWED
        return chosen.model_copy(update={"precision": self.precision})

    def predict(self, image: Input, confidence: bool = False) -> PredictionResult:
        """The classes of one image, and with ``confidence`` how sure the net is of them.

        A file is turned upright as its EXIF orientation says; a Pillow image and an array are taken as they are.
        Raises :class:`TutelageError` for what is no image, and :class:`DataError` for a file that cannot be read.
        """
        return self.predict_decoded([as_pixels(image)], confidence)[0]

    def predict_decoded(
        self, images: Sequence[DecodedImage | Bytes], confidence: bool = False, at_once: int = 1
    ) -> list[PredictionResult]:
        """The classes of decoded images; several must be of one size that is run whole, and share one call of the net.

        ``at_once``: windows of one image in one call.
        """
        height, width = images[0].shape[:2]
        protocol = self.protocol_for(height, width)
        if len(images) == 1:
            count = len(self.classes)
            maps = [label_image(self.net, images[0], protocol, self.device, count, confidence, at_once)]
        else:
            maps = self._together(images, protocol, confidence)
        return [PredictionResult(labels, sure, self.classes, self.palette, protocol) for labels, sure in maps]

    @torch.no_grad()
    def _together(
        self, images: Sequence[DecodedImage | Bytes], protocol: Protocol, confidence: bool
    ) -> list[tuple[Bytes, Bytes | None]]:
        everything = slice(None), slice(None)
        stacked_BHW3 = torch.from_numpy(np.stack([image[everything] for image in images])).to(self.device)
        logits_BKHW = predict_logits(self.net, stacked_BHW3.permute(0, 3, 1, 2).float().div_(255.0), protocol)
        highest, best = logits_BKHW.max(dim=1)
        labels = best.to(torch.uint8).cpu().numpy()
        if not confidence:
            return [(one, None) for one in labels]
        share = (highest - logits_BKHW.logsumexp(dim=1)).exp_()
        return list(zip(labels, share.mul_(255).round_().to(torch.uint8).cpu().numpy(), strict=True))


def load_model(
    path: str | Path, device: str = "auto", precision: str = "fp32", protocol: Protocol | None = None
) -> Model:
    """A model from a .safetensors file that tutelage wrote, or from the folder of a training stage's results.

    Of a folder the student is taken. ``device``: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1``,
    ``mps``; ``precision``: ``fp32``, ``bf16`` or ``fp16``, here or in the protocol. Raises :class:`TutelageError` for a
    missing or damaged file, a folder without nets, and a device or precision that is not there.
    """
    chosen = find_device(device)
    net, metadata = load_segmentor(_net_file(Path(path)))
    net.precision = _precision(precision, protocol)
    net = net.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if protocol is not None:
        protocol = protocol.model_copy(update={"precision": net.precision})
    return Model(net, metadata.classes, metadata.palette, chosen, protocol, net.precision, metadata.checksum)


def as_pixels(image: Input) -> DecodedImage | Bytes:
    """An image of any accepted kind, ready to be read. Raises as :meth:`Model.predict` does."""
    if isinstance(image, str | Path):
        with allowing(MAX_PIXELS):
            return DecodedImage.read(Path(image))
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise TutelageError("image-array", "image has no pixels", "give an image of at least one pixel")
        image.load()
        return DecodedImage(image)
    if not isinstance(image, np.ndarray):
        raise TutelageError(
            "image-array",
            f"image must be a path, a Pillow image or a numpy array, got {type(image).__name__}",
            "convert it to a numpy array of bytes (H, W, 3) or (H, W)",
        )
    if image.dtype != np.uint8:
        remedy = "multiply by 255 and round first" if image.dtype.kind == "f" else "convert it to uint8 first"
        raise TutelageError("image-array", f"image array must be uint8, got {image.dtype}", remedy)
    if (image.ndim != 2 and image.shape[2:] != (3,)) or not image.size:
        raise TutelageError(
            "image-array", f"image array must be (H, W, 3) or (H, W), got {image.shape}", _shape_remedy(image.shape)
        )
    # An RGB array stays as it is: inside Pillow it would be a copy of four bytes a pixel.
    return image if image.ndim == 3 else DecodedImage(Image.fromarray(np.ascontiguousarray(image)))


def _shape_remedy(shape: tuple[int, ...]) -> str:
    wanted = "give RGB (H, W, 3) or grey (H, W)"
    if len(shape) == 3 and shape[2] == 4:
        return f"{wanted}; drop the alpha channel: image[..., :3]"
    if len(shape) == 3 and shape[2] == 1:
        return f"{wanted}: image[..., 0]"
    if len(shape) == 3 and shape[0] == 3:
        return f"{wanted}; channels come last: image.transpose(1, 2, 0)"
    if len(shape) == 4:
        return f"{wanted}, one image at a time"
    return wanted


def _net_file(path: Path) -> Path:
    """The weight file itself, or the student's in an artefact's folder, whose key may be left out."""
    if not path.exists():
        stages = sorted(path.parent.glob(f"{path.name}-{'?' * KEY_LENGTH}"))
        if len(stages) > 1:
            raise RunError(
                "ambiguous-path", f"several runs match {path}", f"name one of: {', '.join(map(str, stages[:8]))}"
            )
        if not stages:
            return path
        path = stages[0]
    elif not path.is_dir():
        return path
    student = Artefact(path, path.name[-KEY_LENGTH:]).net("student")
    if student.is_file():
        return student
    nets = sorted(student.parent.glob("*.safetensors"))
    if nets:
        names = ", ".join(net.stem for net in nets)
        raise RunError("net-missing", f"no student in {path}; nets: {names}", f"name the file, e.g. {nets[0]}")
    found = sorted(inner.parent.parent for inner in path.glob(f"*/{student.relative_to(path).as_posix()}"))
    if found:
        raise RunError("ambiguous-path", f"several stages in {path}", f"name one of: {', '.join(map(str, found[:8]))}")
    raise RunError(
        "net-missing",
        f"no net in {path}",
        "give a .safetensors file written by tutelage, or the folder of a finished training stage",
    )


def _precision(named: str, protocol: Protocol | None) -> Precision:
    """The precision that was asked for, in either place; fp32 is what nobody asked for."""
    known = get_args(Precision)
    if named not in known:
        raise TutelageError("invalid-value", f"unknown precision {named!r}", f"use one of: {', '.join(known)}")
    wanted = [one for one in known if one != "fp32" and one in (named, protocol.precision if protocol else named)]
    if len(wanted) > 1:
        raise TutelageError(
            "option-conflict",
            f"precision is {named}, but the protocol's is {wanted[1 - wanted.index(named)]}",
            "remove one of them",
        )
    return cast(Precision, wanted[0] if wanted else "fp32")
