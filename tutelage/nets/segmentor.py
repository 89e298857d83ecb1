"""The net that every method trains: encoder, decoder, and one classifier, 1x1 except for DeepLabV2.

A segmentor normalises its own input, so that nets with other statistics share a batch and an exported net needs no
preprocessing. Images of any size are padded with the mean colour (0 after normalisation) at the bottom and right to
the multiple that encoder and decoder need, and every returned map is cropped to ceil(size / its stride). The output
of :meth:`Segmentor.encode` is not cropped: the decoder needs the whole grid.

Dimensions: B batch, K classes, D embedding, C channels, H W the image, h w a map's grid.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import TutelageError
from tutelage.nets import decoders, encoders
from tutelage.nets.deeplabv2 import DILATIONS, AtrousClassifier
from tutelage.nets.load_report import LoadReport
from tutelage.nets.modes import Modes, NormMode
from tutelage.nets.multigrid_deeplab import MultigridDeepLab
from tutelage.nets.pyramid_attention import PyramidAttention
from tutelage.nets.settings import NetSettings

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Features(NamedTuple):
    """Output of the encoder and input of the decoder; perturb ``levels`` with ``features._replace(levels=...)``."""

    levels: tuple[Tensor, ...]
    """Maps (B, C, h, w), finest first, of the padded image."""
    size: tuple[int, int]
    """Height and width of the image before padding, in pixels."""
    tokens: tuple[Tensor, ...] = ()
    """Prefix tokens (B, N, C) of each level, of vision transformers."""
    taps: dict[str, Tensor] = {}
    """Outputs of tapped submodules of the encoder."""


class Prediction(NamedTuple):
    """A segmentor's output for images (B, 3, H, W)."""

    logits: Tensor
    """Class scores (B, K, h, w) in float32, h = ceil(H / stride)."""
    embedding: Tensor
    """The classifier's input (B, D, h, w), after normalisation, activation and dropout."""
    features: tuple[Tensor, ...]
    """The encoder's levels (B, C, h, w), finest first, each cropped to ceil(size / its stride)."""
    auxiliary: Tensor | None
    """Class scores (B, K, h, w) of the auxiliary head in float32, on the last level but one; None without one."""
    taps: dict[str, Tensor]
    """Outputs of the submodules named in ``tap``, unchanged, with padded borders."""

    def of(self, images: slice) -> Prediction:
        """The prediction of some images of the batch, without taps, whose shapes vary."""
        auxiliary = None if self.auxiliary is None else self.auxiliary[images]
        levels = tuple(level[images] for level in self.features)
        return Prediction(self.logits[images], self.embedding[images], levels, auxiliary, {})


class Segmentor(nn.Module):
    """Encoder, decoder and a 1x1 classifier for ``classes`` classes, with random weights.

    :func:`tutelage.nets.build.build` also seeds and loads weights. Raises TutelageError for an encoder that does not
    exist or does not suit the decoder, and for unknown ``taps``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: NetSettings, classes: int, taps: Iterable[str] = ()) -> None:
        super().__init__()
        if classes < 1:
            raise TutelageError(
                "class-count", f"number of classes must be at least 1, got {classes}", "give at least one class"
            )
        self.settings = settings
        self.classes = classes
        self.spec = encoders.find_encoder(
            settings.encoder,
            settings.stride,
            plain=settings.decoder == "dpt",
            view=settings.decoder == "dual_frequency",
        )
        self.encoder, self.decoder = _make(settings, self.spec)
        self.classifier = self._classifier(self.decoder.channels)
        self.auxiliary: nn.Module | None = None
        if settings.auxiliary:
            channels = self.spec.channels[-2]
            looks_around = settings.decoder in DILATIONS
            self.auxiliary = self._classifier(channels) if looks_around else _auxiliary_head(channels, classes)
        self.stride: int = self.decoder.stride
        self.precision: Precision = "fp32"
        self.load_report: LoadReport | None = None

        mean, std = encoders.MEAN_STD.get(settings.normalisation, (self.spec.mean, self.spec.std))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.bgr = self.spec.bgr if settings.normalisation == "encoder" else settings.normalisation == "caffe"
        if settings.batch_norm_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = settings.batch_norm_momentum
        self._modes = Modes()
        self.taps: tuple[str, ...] = ()
        self._recorded: dict[str, Tensor] = {}
        self._tap_handles: list[torch.utils.hooks.RemovableHandle] = []
        self.tap(taps)

    def _classifier(self, channels: int) -> nn.Conv2d | AtrousClassifier:
        if self.settings.decoder in DILATIONS:
            return AtrousClassifier(channels, self.classes, DILATIONS[self.settings.decoder])
        classifier = nn.Conv2d(channels, self.classes, kernel_size=1)
        if self.spec.kind != "published":  # these keep torch's initialisation
            if isinstance(self.decoder, PyramidAttention):
                nn.init.normal_(classifier.weight, std=0.01)
            elif isinstance(self.decoder, MultigridDeepLab):
                nn.init.kaiming_normal_(classifier.weight)
            else:
                nn.init.xavier_uniform_(classifier.weight)
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
        return classifier

    @property
    def embedding_channels(self) -> int:
        """D, the channels of the embedding."""
        return self.classifier.in_channels

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each level of ``Prediction.features``, finest first."""
        return self.spec.channels

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Stride of each level of ``Prediction.features`` in pixels, finest first."""
        return self.spec.strides

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "precision" and value not in get_args(Precision):
            raise TutelageError("invalid-value", f"unknown precision {value!r}", "use fp32, bf16 or fp16")
        super().__setattr__(name, value)

    # Forward

    def forward(self, image_B3HW: Tensor) -> Prediction:
        """Prediction for RGB images (B, 3, H, W) in 0..1, not normalised, of any size."""
        return self.decode(self.encode(image_B3HW))

    def encode(self, image_B3HW: Tensor) -> Features:
        """Features of RGB images (B, 3, H, W) in 0..1, not normalised, of any size."""
        height, width = image_B3HW.shape[-2:]
        multiple = self.spec.multiple
        self._recorded.clear()  # outputs of a failed forward
        with self._autocast(image_B3HW):
            image = (image_B3HW - self.mean) / self.std
            image = image.flip(1) if self.bgr else image
            # Always called, even with nothing to pad: a branch here would tie an exported graph to one size.
            image = F.pad(image, (0, _missing(width, multiple), 0, _missing(height, multiple)))
            levels, tokens = self.spec.read(self.encoder, image)
        return Features(levels, (height, width), tokens, self._take_recorded())

    def decode(self, features: Features) -> Prediction:
        """Prediction from features of :func:`encode`."""
        size = features.size
        with self._autocast(features.levels[0]):
            embedding_BDhw = _cut(self.decoder(features.levels, features.tokens), size, self.stride)
            logits_BKhw = self.classifier(embedding_BDhw)
            pyramid = tuple(
                _cut(level, size, stride) for level, stride in zip(features.levels, self.spec.strides, strict=True)
            )
            auxiliary = self.auxiliary(pyramid[-2]) if self.auxiliary is not None else None
        return Prediction(
            logits=logits_BKhw.float(),
            embedding=embedding_BDhw,
            features=pyramid,
            auxiliary=auxiliary.float() if auxiliary is not None else None,
            taps={**features.taps, **self._take_recorded()},
        )

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(tensor.device.type, _AUTOCAST[self.precision])

    # Taps

    def tap(self, names: Iterable[str]) -> None:
        """Record the outputs of these submodules (e.g. ``encoder.layer4``) in every Prediction; replaces earlier taps.

        Set taps before compiling. Raises TutelageError for an unknown submodule.
        """
        names = tuple(names)
        known = dict(self.named_modules())
        for name in names:
            if not name or name not in known:
                near = difflib.get_close_matches(name, [key for key in known if key], n=5, cutoff=0.3)
                raise TutelageError(
                    "invalid-tap",
                    f"no submodule {name!r} in {self.settings.encoder} + {self.settings.decoder}",
                    f"nearest names: {', '.join(near)}" if near else "print(net) lists the names",
                )
        for handle in self._tap_handles:
            handle.remove()
        self.taps = names
        self._tap_handles = [known[name].register_forward_hook(_Tap(name, self._recorded)) for name in names]

    def _take_recorded(self) -> dict[str, Tensor]:
        if not self.taps:
            return {}
        taken = dict(self._recorded)
        self._recorded.clear()
        return taken

    # Modes

    def train(self, mode: bool = True) -> Segmentor:
        """Switch to training (or evaluation) mode, then apply ``mode`` and ``freeze_norm`` again."""
        super().train(mode)
        self._modes.apply(self)
        return self

    def mode(self, norm: NormMode | None = None, dropout: bool | None = None) -> Segmentor:
        """Declare BatchNorm's statistics and whether dropout is active, independent of train() and eval().

        ``norm="batch"``: batch statistics (running ones are still updated); ``"running"``: running statistics.
        ``dropout``: all dropout and drop-path layers on or off. None removes a declaration; layers then follow
        the net's own training flag. Raises TutelageError for ``norm="batch"`` while statistics are frozen.
        """
        self._modes = self._modes.declare(norm, dropout)
        return self.train(self.training)

    def freeze_norm(self, affine: bool = True, statistics: bool = True) -> Segmentor:
        """Declare BatchNorm's scale and shift (``affine``) and running statistics as frozen; False releases them.

        Frozen statistics are also used for normalisation. Persists through train() and eval().
        Raises TutelageError for frozen statistics with ``mode(norm="batch")``.
        """
        self._modes = self._modes.freeze(self, affine, statistics)
        return self.train(self.training)

    @contextmanager
    def inferring(self, precision: Precision = "fp32") -> Iterator[Segmentor]:
        """Infer in the block: evaluation mode without declarations, in ``precision``; then restore all modes."""
        before = self._modes, self.precision, self.training
        self._modes = self._modes.declare(None, None)
        self.precision = precision
        try:
            yield self.eval()
        finally:
            self._modes, self.precision, training = before
            self.train(training)


def _missing(size: int, multiple: int) -> int:
    """Padding of ``size`` to a multiple. Not written ``-size % multiple``: inductor fails on it for symbolic sizes."""
    return (multiple - size % multiple) % multiple


class _Tap:
    """A forward hook that records a submodule's output; an object, so that a deep copy of a net gets its own."""

    def __init__(self, name: str, recorded: dict[str, Tensor]) -> None:
        self.name = name
        self.recorded = recorded

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TutelageError(
                "invalid-tap",
                f"output of tapped submodule {self.name!r} is a {type(output).__name__}, expected a tensor",
                "tap a submodule inside it",
            )
        self.recorded[self.name] = output


def _make(settings: NetSettings, spec: encoders.EncoderSpec) -> tuple[nn.Module, decoders.AnyDecoder]:
    try:
        return decoders.make(settings, spec)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise TutelageError(
            "encoder-unsupported",
            f"encoder {settings.encoder} has no drop path",
            "remove drop_path, or use a residual encoder",
        ) from error


def _auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """3x3 to a quarter of the channels (at least 16), BatchNorm, ReLU, dropout 0.1, 1x1 (FCN, Long et al. 2015)."""
    hidden = max(channels // 4, 16)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(hidden, classes, 1),
    )


def _cut(map_BChw: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Crop a map to the image: ceil(size / stride) cells."""
    height, width = -(-size[0] // stride), -(-size[1] // stride)
    if torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in size):
        # Slices tie an exported graph to sizes that do (or do not) need cropping; padding does not.
        return F.pad(map_BChw, (0, width - map_BChw.shape[-1], 0, height - map_BChw.shape[-2]))
    return map_BChw[..., :height, :width]
