"""Prediction against the same protocol written out plainly on whole tensors."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.errors import raises_code
from tutelage.evaluation import bands
from tutelage.evaluation.image_view import ImageView
from tutelage.evaluation.inference import predict_labels, predict_logits, score_bands
from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import spans, taper
from tutelage.losses.resize import resize_logits


class ToyNet:
    """A net of stride 4 whose logits depend on the place in its input, and which counts its calls."""

    stride = 4

    def __init__(self, classes: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(classes, 3, 1, 1, generator=generator) * 4
        self.calls: list[torch.Size] = []

    def __call__(self, image: Tensor, /) -> SimpleNamespace:
        self.calls.append(image.shape)
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 4, 0, -height % 4))
        logits = F.conv2d(F.avg_pool2d(padded, 4), self.weight)
        place = torch.linspace(0, 1, logits.shape[-2])[:, None] + torch.linspace(0, 2, logits.shape[-1])
        return SimpleNamespace(logits=logits + place * torch.tensor([0.3, 0, -0.3, 0.1, 0]).view(1, -1, 1, 1))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = torch.rand(1, 3, height // 6 + 2, width // 6 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


def as_floats(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def plainly(net: ToyNet, image: Tensor, protocol: Protocol) -> Tensor:
    """Mean scores (B, K, H, W) by the protocol, all at once: probabilities or logits."""
    height, width = image.shape[-2:]
    soft = protocol.averages and protocol.blend == "probabilities"
    corners = protocol.resize == "corners"
    views = []
    for size, flip in itertools.product(protocol.input_sizes(height, width), [False, True][: 1 + protocol.flip]):
        view = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=protocol.antialias)
        view = view.flip(-1) if flip else view
        if protocol.window is None:
            scores = resize_logits(net(view).logits, size, protocol.resize, 4)
        else:
            window = protocol.window
            missing = [max(0, w - s) if protocol.border == "shifted" else 0 for w, s in zip(window, size, strict=True)]
            (top, left), (down, across) = (m // 2 for m in missing), protocol.steps()
            fill = torch.tensor(protocol.fill).view(1, 3, 1, 1)
            margin = (left, missing[1] - left, top, missing[0] - top)
            padded = F.pad(view - fill, margin) + fill
            total = torch.zeros(image.shape[0], 5, *padded.shape[-2:])
            weights = torch.zeros(padded.shape[-2:])
            for y0, y1 in spans(padded.shape[-2], window[0], down, protocol.border):
                for x0, x1 in spans(padded.shape[-1], window[1], across, protocol.border):
                    part = resize_logits(net(padded[..., y0:y1, x0:x1]).logits, (y1 - y0, x1 - x0), protocol.resize, 4)
                    weight = np.outer(taper(y1 - y0, protocol.weighting), taper(x1 - x0, protocol.weighting))
                    weight = torch.from_numpy(weight).float()
                    total[..., y0:y1, x0:x1] += (part.softmax(1) if soft else part) * weight
                    weights[y0:y1, x0:x1] += weight
            scores = (total / weights)[..., top : top + size[0], left : left + size[1]]
        scores = scores.flip(-1) if flip else scores
        if size != (height, width):
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=corners)
        views.append(scores.softmax(1) if soft and protocol.window is None else scores)
    return torch.stack(views).mean(0)


PROTOCOLS: list[dict[str, Any]] = [
    {},
    {"resize": "centers"},
    {"resize": "corners"},
    {"size": [40, 30]},
    {"size": [90, 111], "resize": "corners"},
    {"size": [31, 29], "antialias": False},
    {"multiple": 14, "resize": "corners"},
    {"scales": [0.5, 1.0, 1.75], "flip": True},
    {"scales": [0.5, 1.25], "blend": "logits", "resize": "centers"},
    {"kind": "sliding", "window": [24, 28]},
    {"kind": "sliding", "window": [24, 28], "stride": [7, 13], "border": "truncated", "weighting": "gaussian"},
    {"kind": "sliding", "window": [24, 28], "overlap": 0, "blend": "logits", "flip": True},
    {"kind": "sliding", "window": [60, 50], "overlap": 0.7, "weighting": "gaussian", "scales": [0.6, 1.0, 1.4]},
    {"kind": "sliding", "window": [60, 100], "border": "truncated", "resize": "corners", "size": [50, 120]},
    {"kind": "sliding", "window": [100, 100], "fill": [0, 0.5, 1], "multiple": 8, "flip": True, "scales": [0.8]},
]


@pytest.fixture(params=[4 << 10, 4 << 20], ids=["few rows", "many rows"])
def _band_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_BAND_BYTES", request.param)


@pytest.mark.usefixtures("_band_size")
@pytest.mark.parametrize("values", PROTOCOLS, ids=str)
@pytest.mark.parametrize("size", [(53, 71), (64, 48)])
def test_any_protocol(values: dict[str, Any], size: tuple[int, int]) -> None:
    protocol = Protocol.model_validate(values)
    images = [picture(*size, seed) for seed in range(2)]
    expected = plainly(ToyNet(), torch.cat([as_floats(image) for image in images]), protocol)
    logits = predict_logits(ToyNet(), torch.cat([as_floats(image) for image in images]), protocol, at_once=3)
    averaged = protocol.averages and protocol.blend == "probabilities"
    torch.testing.assert_close(logits.exp() if averaged else logits, expected, rtol=1e-4, atol=1e-4)
    probability = logits.softmax(1)
    torch.testing.assert_close(probability, expected if averaged else expected.softmax(1), rtol=1e-4, atol=1e-4)
    labels, confidence = predict_labels(ToyNet(), images[0], protocol, confidence=True)
    assert labels.dtype == np.uint8
    assert confidence is not None
    share, best = probability[0].max(0)
    second = probability[0].topk(2, dim=0).values[1]
    clear = (share - second > 1e-3).numpy()
    np.testing.assert_array_equal(labels[clear], best.numpy()[clear])
    np.testing.assert_allclose(confidence, 255 * share.numpy(), atol=0.55)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
@pytest.mark.parametrize(
    "values", [{}, {"scales": [0.5, 2], "flip": True}, {"kind": "sliding", "window": [8, 8]}], ids=str
)
def test_tiny_images(size: tuple[int, int], values: dict[str, Any]) -> None:
    protocol = Protocol.model_validate(values)
    image = picture(*size)
    logits = predict_logits(ToyNet(), as_floats(image), protocol)
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()
    assert predict_labels(ToyNet(), image, protocol)[0].shape == size


def test_bands_are_bounded_and_need_no_later_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_BAND_BYTES", 4 * 5 * 32 * 8)
    net = ToyNet()
    protocol = Protocol.model_validate({"kind": "sliding", "window": [16, 16], "stride": [8, 16]})
    stream = score_bands(net, picture(80, 32), protocol)
    for number, (start, scores) in enumerate(stream):
        assert start == 8 * number
        assert scores.shape == (1, 5, 8, 32)
        # Two windows a row, and no row of windows beyond the one that completes these rows.
        assert len(net.calls) == 2 * min(number + 1, 9)
    assert number == 9


def test_windows_are_batched_with_their_like() -> None:
    net = ToyNet()
    protocol = Protocol.model_validate({"kind": "sliding", "window": [16, 16], "overlap": 0, "border": "truncated"})
    predict_labels(net, picture(16, 70), protocol, at_once=3)
    assert [tuple(call) for call in net.calls] == [(3, 3, 16, 16), (1, 3, 16, 16), (1, 3, 16, 6)]


@pytest.mark.parametrize("size", [(31, 47), (100, 20), (63, 200), (64, 48), (7, 5)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_views_are_resized_as_a_whole(size: tuple[int, int], antialias: bool, flip: bool) -> None:
    image = picture(64, 48)
    expected = F.interpolate(as_floats(image), size, mode="bilinear", align_corners=False, antialias=antialias)
    expected = expected.flip(-1) if flip else expected
    view = ImageView(image, size, flip, antialias, fill=(1.0, 0.0, 0.5))
    torch.testing.assert_close(view.whole(), expected, rtol=1e-4, atol=1e-5)
    height, width = size
    window = view.crop(height // 3, -2, height, width)
    torch.testing.assert_close(
        window[..., : height - height // 3, 2:], expected[..., height // 3 :, : width - 2], rtol=1e-4, atol=1e-5
    )
    assert (window[0, :, :, :2] == torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1)).all()
    assert (window[0, 1, height - height // 3 :] == 0).all()


def test_memory_maps_and_gradients(tmp_path: Any) -> None:
    image = picture(40, 50)
    stored = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, image.shape)
    stored[:] = image
    protocol = Protocol.model_validate({"kind": "sliding", "window": [16, 16], "scales": [0.5, 1.0]})
    labels, confidence = predict_labels(ToyNet(), np.load(tmp_path / "image.npy", mmap_mode="r"), protocol)
    assert confidence is None
    np.testing.assert_array_equal(labels, predict_labels(ToyNet(), image, protocol)[0])
    logits = predict_logits(ToyNet(), as_floats(image).requires_grad_(), protocol)
    assert not logits.requires_grad


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image(image: np.ndarray) -> None:
    with raises_code("image-array"):
        predict_labels(ToyNet(), image, Protocol())
    with raises_code("image-array"):
        predict_logits(ToyNet(), torch.zeros(3, 4, 4), Protocol())


def test_too_many_classes_for_a_byte() -> None:
    def net(image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(1, 256, *image.shape[-2:]))

    net.stride = 1  # type: ignore[attr-defined]
    with raises_code("class-count", "256"):
        predict_labels(net, picture(4, 4), Protocol())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["whole", "sliding"])
def test_logits_that_are_not_finite_are_no_prediction(value: float, kind: str) -> None:
    class Broken(ToyNet):
        def __call__(self, image: Tensor, /) -> SimpleNamespace:
            answer = super().__call__(image)
            answer.logits[0, 2, -1, -1] = value
            return answer

    protocol = Protocol.model_validate({"kind": kind, **({"window": (16, 16)} if kind == "sliding" else {})})
    image = picture(24, 32)
    for predict in (
        lambda: predict_logits(Broken(), as_floats(image), protocol),
        lambda: predict_labels(Broken(), image, protocol, torch.device("cpu")),
    ):
        with raises_code("output-not-finite"):
            predict()
