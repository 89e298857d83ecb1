"""A toy method that does everything a method may do, and streams that need no files.

Three passes, two optimizers, a gated net, a carried tensor, a moving-average teacher in batch-statistics mode, a
queue, and a map of the source images replayed through the views' geometry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View, warp
from tutelage.data.draws import generator
from tutelage.engine import collectives
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext
from tutelage.engine.settings import MethodSettings, OptimizerSettings, ScheduleSettings, StreamSpec

CLASSES, WIDTH, SOURCE, SIZE = 3, 8, (12, 14), (8, 8)


class Net(nn.Module):
    def __init__(self, norm: str, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH) if norm == "batch" else nn.GroupNorm(2, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.dropout(F.relu(self.norm(self.encoder(image))))
        return self.classifier(embedding), embedding


class Queue(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, WIDTH))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def push(self, rows: Tensor) -> None:
        for row in rows:
            self.rows[self.pointer % len(self.rows)] = row
            self.pointer += 1


class Toy(Method):
    """See the module."""

    class Settings(MethodSettings):
        streams = {"labeled": StreamSpec(labels=True, views=("weak",))}

    def __init__(self, norm: str = "batch", dropout: float = 0.0, noise: float = 0.0, gate: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = Net(norm, dropout)
        self.critic = nn.Conv2d(CLASSES, 1, 3)
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.teacher = Net(norm, 0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.queue = Queue(16)
        self.noise, self.gate = noise, gate

    def passes(self, step: int) -> tuple[Pass, ...]:
        always = (Pass("segment", {"student"}), Pass("discriminate", {"critic"}))
        return (*always, Pass("align", {"projector"})) if step >= self.gate else always

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        critic = OptimizerSettings(kind="adam", lr=1e-3, weight_decay=0.0)
        return {
            "main": OptimizerSpec(("student", "projector")),
            "critic": OptimizerSpec(("critic",), critic, ScheduleSettings(kind="constant")),
        }

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        return {"labeled": (batches["labeled"]["weak"].label != 255).sum()}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        view = batches["labeled"]["weak"]
        if pass_name == "segment":
            logits, embedding = self.student(view.image)
            with torch.no_grad():
                self.teacher.train()  # batch statistics
                taught, _ = self.teacher(view.image)
            # A map that was made for the whole source image follows the view's geometry.
            replayed = warp(view.maps["source_map"], view.geometry, fill=255)
            context.carry["probability"] = logits.softmax(1)
            context.carry["embedding"] = embedding.mean((2, 3))
            seen = F.cross_entropy(logits, replayed, ignore_index=255, reduction="sum")
            supervised = F.cross_entropy(logits, view.label, ignore_index=255, reduction="sum") / context.normalizer(
                "labeled"
            )
            return {
                "supervised": supervised,
                "replayed": 0.1 * seen / replayed.numel(),
                "consistency": F.mse_loss(logits.softmax(1), taught.softmax(1)),
                "adversarial": -0.01 * self.critic(logits.softmax(1)).mean(),
            }
        if pass_name == "discriminate":
            real = F.one_hot(view.label.clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2).float()
            return {
                "critic": F.softplus(-self.critic(real)).mean()
                + F.softplus(self.critic(context.carry["probability"])).mean()
            }
        rows = self.projector(context.carry["embedding"])
        rows = rows + self.noise * torch.randn(rows.shape, generator=context.generator)
        return {"align": F.mse_loss(rows, self.queue.rows.mean(0).expand_as(rows))}

    def after_step(self, context: StepContext) -> None:
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
        rows = torch.cat([collectives.gather_rows(carry["embedding"]) for carry in context.carries])
        self.queue.push(rows[torch.randperm(len(rows), generator=context.shared_generator)])


@dataclass
class ToyStream:
    """Batches that are a function of position; slices as a real stream deals them out."""

    batch: int = 8

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        size = self.batch // (accumulate * world)
        for step in range(first_step, steps):
            for micro in range(accumulate):
                start = step * self.batch + (micro * world + rank) * size
                yield make_batch(range(start, start + size))


def make_batch(positions: range) -> Batch:
    images, labels, maps, geometries = [], [], [], []
    for position in positions:
        draw = generator(7, "toy", "content", position)
        images.append(draw.random((3, *SIZE), dtype=np.float32))
        label = draw.integers(0, CLASSES, SIZE)
        label[draw.random(SIZE) < draw.random()] = 255  # another number of valid pixels in every image
        labels.append(label)
        maps.append(draw.integers(0, CLASSES, SOURCE))
        offset = (int(draw.integers(5)), int(draw.integers(7)))
        geometries.append(Geometry.crop(SOURCE, SOURCE, offset, SIZE, bool(draw.integers(2))))
    image = torch.from_numpy(np.stack(images)).contiguous(memory_format=torch.channels_last)
    label_maps = {"label": torch.from_numpy(np.stack(labels)), "source_map": torch.from_numpy(np.stack(maps))}
    view = View(image, torch.ones(len(images), *SIZE, dtype=torch.bool), label_maps, Geometries.stack(geometries))
    return Batch({"weak": view}, torch.tensor(list(positions)), tuple(f"toy:{p}" for p in positions))
