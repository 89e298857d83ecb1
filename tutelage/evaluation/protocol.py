"""The evaluation protocol: all settings between an image and its class map that can change a score.

Two scores are comparable only if they were made by one protocol. Its short name (:meth:`Protocol.key`) is stored with
every score.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tutelage.losses.options import ResizeRule
from tutelage.settings import Settings

_SLIDING_ONLY = ("window", "stride", "overlap", "border", "weighting", "fill")


class Protocol(Settings):
    """How a net is run over an image for scoring and prediction."""

    kind: Literal["whole", "sliding"] = "whole"
    """The whole image at once, or windows that overlap and are averaged."""
    window: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of a window in pixels."""
    stride: tuple[PositiveInt, PositiveInt] | None = None
    """Steps between windows in pixels, down and across; excludes ``overlap``."""
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of a window that its neighbour covers too; the step is rounded. Default: a third."""
    border: Literal["shifted", "truncated"] = "shifted"
    """The last window of a row: moved back into the image, or cut off at its border. Nets of a fixed input size need
    ``shifted``, which also pads images smaller than the window, equally on both sides."""
    fill: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB in 0..1 of that padding. Default: ImageNet's mean, which is zero in codes that pad after normalisation."""
    weighting: Literal["uniform", "gaussian"] = "uniform"
    """Weight of a pixel by its place in the window: uniform, or decreasing towards the border (a Gaussian with a
    standard deviation of an eighth of the window)."""
    blend: Literal["probabilities", "logits"] = "probabilities"
    """The scores averaged over windows, scales and flips."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
    """Scale factors of the image over which the prediction is averaged."""
    flip: bool = False
    """Whether to average each scale with its mirror image."""
    resize: ResizeRule = "grid"
    """How logits are resized to the net's input: by exactly the stride and cropped (``grid``), or with ``centers`` or
    ``corners`` aligned. From there to the size of the label, ``grid`` resizes as ``centers`` does."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width to which the image is resized before the net (before ``scales``). Default: its own. The
    prediction is always resized to the image's size."""
    multiple: PositiveInt = 1
    """Round both sides of the net's input to the nearest multiple of this, as patch transformers need."""
    antialias: bool = True
    """Whether to smooth the image when it is reduced."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the net; averaging and scores stay in fp32."""

    @model_validator(mode="after")
    def _means_something(self) -> Protocol:
        given = sorted(name for name in _SLIDING_ONLY if name in self.model_fields_set)
        if self.kind == "whole" and given:
            raise ValueError(f"{', '.join(given)} would have no effect with kind 'whole'; write kind: sliding")
        if self.kind == "sliding" and self.window is None:
            raise ValueError("kind 'sliding' needs a window, e.g. window: [512, 512]")
        if self.stride is not None and self.overlap is not None:
            raise ValueError("stride and overlap exclude each other; remove one")
        if self.window and self.stride and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"stride {list(self.stride)} leaves gaps between windows of {list(self.window)}")
        return self

    def steps(self) -> tuple[int, int]:
        """Pixels between neighbouring windows, down and across, of a sliding protocol."""
        if self.window is None:
            raise ValueError("a protocol of kind 'whole' has no windows")
        if self.stride is not None:
            return self.stride
        share = 1 - (1 / 3 if self.overlap is None else self.overlap)
        return max(1, round(self.window[0] * share)), max(1, round(self.window[1] * share))

    def input_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the net's input for an image of that size, one for each scale."""
        base = self.size or (height, width)
        return [(self._rounded(base[0] * scale), self._rounded(base[1] * scale)) for scale in self.scales]

    def _rounded(self, length: float) -> int:
        return max(1, int(length / self.multiple + 0.5)) * self.multiple

    @property
    def averages(self) -> bool:
        """Whether several predictions are averaged, so that ``blend`` matters."""
        return self.kind == "sliding" or self.flip or len(self.scales) > 1

    def canonical(self) -> dict[str, Any]:
        """The settings that have an effect; an overlap is given as a stride."""
        values = self.model_dump(mode="json", exclude={"overlap", "stride"})
        if self.kind == "sliding":
            values["stride"] = list(self.steps())
        idle = set(_SLIDING_ONLY) if self.kind == "whole" else {"fill"} if self.border == "truncated" else set()
        if not self.averages:
            idle.add("blend")
        if self.size is None and self.multiple == 1 and min(self.scales) >= 1:
            idle.add("antialias")
        for name in idle:
            values.pop(name, None)
        return values

    def written(self, content: dict[str, Any]) -> dict[str, Any]:
        """The settings with an effect, and those that were given; others would be errors when read back."""
        kept = self.canonical().keys() | self.model_fields_set
        return {name: value for name, value in content.items() if name in kept}

    def key(self) -> str:
        """Twelve hexadecimal digits, equal for two protocols exactly if :meth:`canonical` is."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def describe(self) -> str:
        """One line of text with all settings that are not defaults."""
        parts = ["whole image"]
        if self.window is not None:
            (height, width), (down, across) = self.window, self.steps()
            parts = [f"windows of {height}x{width} every {down}x{across} ({self.border} at the border)"]
            if self.weighting != "uniform":
                parts.append(f"{self.weighting} weights")
        if self.size is not None:
            parts.append(f"input {self.size[0]}x{self.size[1]}")
        if self.multiple != 1:
            parts.append(f"sides multiples of {self.multiple}")
        if self.scales != (1.0,):
            parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            parts.append("flipped too")
        if self.averages:
            parts.append(f"mean of {self.blend}")
        if not self.antialias:
            parts.append("no antialiasing")
        return ", ".join([*parts, f"resize rule {self.resize}", self.precision])
