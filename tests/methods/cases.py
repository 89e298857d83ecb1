"""Small nets, batches and streams on which methods can be followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.draws import generator
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.engine.loop import Progress, fit
from tutelage.engine.settings import FitSettings, OptimizerSettings, ScheduleSettings
from tutelage.nets.build import build
from tutelage.nets.segmentor import Prediction, Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.runs.checkpoints import Checkpoints

CPU = torch.device("cpu")
CLASSES = 3
FACTS = TaskInfo(CLASSES, lambda: (600, 300, 100), size=lambda: (64, 64))
SGD = OptimizerSettings(kind="sgd", lr=0.05, momentum=0.0, weight_decay=0.0)


class Stub(nn.Module):
    """Logits are a 1x1 convolution of the means over stride x stride pixels; the auxiliary ones of twice that."""

    def __init__(self, seed: int = 0, stride: int = 4, auxiliary: bool = False, norm: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stride = stride
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.classifier = nn.Conv2d(3, CLASSES, 1)
        self.auxiliary = nn.Conv2d(3, CLASSES, 1) if auxiliary else None
        with torch.no_grad():
            for parameter in [*self.classifier.parameters(), *(self.auxiliary.parameters() if self.auxiliary else ())]:
                parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
        self.declared: dict[str, Any] = {}

    def mode(self, **declared: Any) -> Stub:
        self.declared = declared
        return self

    def grid(self, image: Tensor, stride: int) -> Tensor:
        return F.avg_pool2d(self.norm(image), stride, ceil_mode=True)

    def forward(self, image: Tensor) -> Prediction:
        embedding = self.grid(image, self.stride)
        auxiliary = None if self.auxiliary is None else self.auxiliary(self.grid(image, 2 * self.stride))
        return Prediction(self.classifier(embedding), embedding, (embedding,), auxiliary, {})


def tiny(
    decoder: str = "lraspp", auxiliary: bool = False, seed: int = 0, encoder: str = "mobilenetv3_small_050"
) -> Segmentor:
    """A segmentor whose step takes some hundredths of a second."""
    settings = NetSettings.model_validate(
        {"encoder": encoder, "decoder": decoder, "auxiliary": auxiliary, "width": 64, "dropout": 0.1}
    )
    return build(settings, CLASSES, seed=seed)


def view(
    seed: int, count: int = 2, size: tuple[int, int] = (32, 32), labels: bool = True, ignored: float = 0.3
) -> View:
    """Images with blobs of classes; ``ignored`` is the share of pixels without a label."""
    draw = generator(seed, "cases", "content", count)
    coarse = draw.integers(0, CLASSES, (count, -(-size[0] // 8), -(-size[1] // 8)))
    label = np.kron(coarse, np.ones((1, 8, 8), dtype=np.int64))[:, : size[0], : size[1]]
    image = (label[:, None] + draw.random((count, 3, *size))).astype(np.float32) / CLASSES
    label = np.where(draw.random(label.shape) < ignored, 255, label)
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * count)
    maps = {"label": torch.from_numpy(label)} if labels else {}
    return View(torch.from_numpy(image), torch.ones(count, *size, dtype=torch.bool), maps, geometry)


def batch(seed: int, views: tuple[str, ...] = ("weak",), **options: Any) -> Batch:
    """A batch with the view ``weak``, and others of the same crop in other colours."""
    weak = view(seed, **options)
    count = len(weak.image)
    noise = torch.Generator().manual_seed(seed)
    shown = {"weak": weak}
    for name in views:
        if name != "weak":
            image = (weak.image + 0.3 * torch.rand(weak.image.shape, generator=noise)).clamp(max=1.0)
            shown[name] = replace(weak, image=image)
    return Batch(shown, torch.arange(count), tuple(f"case{seed}:{n}" for n in range(count)))


def part(whole: Batch, chosen: slice) -> Batch:
    """Some images of a batch."""
    geometry = whole["weak"].geometry[chosen]
    cut = {
        name: View(view.image[chosen], view.valid[chosen], {n: m[chosen] for n, m in view.maps.items()}, geometry)
        for name, view in whole.views.items()
    }
    return Batch(cut, whole.positions[chosen], whole.samples[chosen])


def context(method: Method, batches: Mapping[str, Batch], **changes: Any) -> StepContext:
    """The context of a step that consists of these batches alone."""
    totals = {name: value.float() for name, value in method.counts(batches).items()}
    return StepContext(**{"step": 0, "total": 10, "seed": 1, "device": CPU, "totals": totals, **changes})


def terms(method: Method, batches: Mapping[str, Batch], name: str = "train", **changes: Any) -> dict[str, Tensor]:
    """The loss terms of one pass."""
    return method(batches, name, context(method, batches, **changes))


@dataclass
class Stream:
    """Batches that are a function of the step; of a fixed list, or made anew each step."""

    seed: int
    batch: int = 4
    labels: bool = True
    size: tuple[int, int] = (64, 64)
    ignored: float = 0.3
    views: tuple[str, ...] = ("weak",)

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        for step in range(first_step, steps):
            whole = batch(
                1000 * self.seed + step,
                views=self.views,
                count=self.batch,
                size=self.size,
                labels=self.labels,
                ignored=self.ignored,
            )
            size = self.batch // accumulate
            for micro in range(accumulate):
                yield part(whole, slice(micro * size, (micro + 1) * size))


def train(
    method: Method, steps: int = 1, checkpoints: Checkpoints | None = None, stop_at: int | None = None, **changes: Any
) -> Progress:
    """Train a method on streams of its kind through the engine."""
    own = {name: changes.pop(name) for name in tuple(changes) if name in method.Settings.streams}
    streams = {
        name: own.get(name, Stream(seed, labels=needs.labels, views=needs.views))
        for seed, (name, needs) in enumerate(method.Settings.streams.items())
    }
    settings = FitSettings(
        **{
            "steps": steps,
            "optimizer": SGD,
            "schedule": ScheduleSettings(kind="constant"),
            "checkpoint_every": 1,
            **changes,
        }
    )
    return fit(method, streams, settings, seed=5, device=CPU, checkpoints=checkpoints, stop_at=stop_at)


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, apart from what it becomes."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    """The names of a module's tensors that are no longer as they were."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def gradients(method: Method) -> dict[str, bool]:
    """Which child has a gradient that is not zero anywhere."""
    return {
        name: any(p.grad is not None and bool(p.grad.any()) for p in child.parameters())
        for name, child in method.named_children()
    }
