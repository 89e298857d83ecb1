"""A trained net for prediction: image in, classes out."""

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
    """A model's prediction for one image."""

    labels: Bytes
    """(H, W) uint8: the class index of each pixel."""
    confidence: Bytes | None
    """(H, W) uint8: the probability of that class, 255 = 1; None if not requested."""
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    protocol: Protocol
    """The protocol of the prediction."""

    def coloured(self) -> Image.Image:
        """The class map as a palette image (mode P): pixels are class indices, its palette the classes' colours."""
        return coloured(self.labels, self.palette)

    def overlay(self, image: Input, alpha: float = 0.5) -> Image.Image:
        """Blend the classes' colours over ``image`` with weight ``alpha`` in 0..1; returns a new RGB image.

        Raises :class:`TutelageError` for an image of another size.
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
    """A net with its classes on its device; built by :func:`load_model`."""

    net: SegmentationModel
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    device: torch.device
    protocol: Protocol | None = None
    """Protocol of prediction; None: whole images, large ones in windows."""
    precision: Precision = "fp32"
    """Precision of the net."""
    checksum: int = 0
    """Checksum of its tensors, as stored in its file."""

    def protocol_for(self, height: int, width: int) -> Protocol:
        """The protocol for an image of this size."""
        if self.protocol is not None:
            return self.protocol
        chosen = _WHOLE if height * width <= WHOLE_PIXELS else WINDOWED
        return chosen.model_copy(update={"precision": self.precision})

    def predict(self, image: Input, confidence: bool = False) -> PredictionResult:
        """Predict the classes of one image, and with ``confidence`` their probability.

        The EXIF orientation of a file is applied; Pillow images and arrays are used unchanged. Raises
        :class:`TutelageError` for an invalid image, and :class:`DataError` for a file that cannot be read.
        """
        return self.predict_decoded([as_pixels(image)], confidence)[0]

    def predict_decoded(
        self, images: Sequence[DecodedImage | Bytes], confidence: bool = False, at_once: int = 1
    ) -> list[PredictionResult]:
        """Predict decoded images; several must have one size that is predicted whole, and share one call of the net.

        ``at_once``: windows of one image per call.
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
    """Load a model from a .safetensors file that tutelage wrote, or from the folder of a finished training stage.

    From a folder, the student is loaded. ``device``: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``,
    ``cuda:1``, ``mps``; ``precision``: ``fp32``, ``bf16`` or ``fp16``, here or in the protocol. Raises
    :class:`TutelageError` for a missing or damaged file, a folder without nets, and an unavailable device or precision.
    """
    chosen = find_device(device)
    net, metadata = load_segmentor(_net_file(Path(path)))
    net.precision = _precision(precision, protocol)
    net = net.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if protocol is not None:
        protocol = protocol.model_copy(update={"precision": net.precision})
    return Model(net, metadata.classes, metadata.palette, chosen, protocol, net.precision, metadata.checksum)


def as_pixels(image: Input) -> DecodedImage | Bytes:
    """Open an image of any accepted type. Raises as :meth:`Model.predict` does."""
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
    # An RGB array is kept: a Pillow image would be a copy of four bytes per pixel.
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
    """The weight file, or the student's file in an artefact's folder, whose key may be omitted."""
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
    """The precision given in either place; default fp32."""
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
