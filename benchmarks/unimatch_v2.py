"""A step of UniMatch V2 against the same step written down plainly: the same nets, images, precision and optimizer.

The plain one does what codes of this kind do: boxes and pasting in a loop over images with masks as indices, a full map
of probabilities, a forward for each strong view, a moving average parameter by parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import HEADER, in_turns, ratio_line, street_data
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.batch import Batch
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.stream import Stream
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.contract import StepContext, TaskInfo
from tutelage.methods.settings.unimatch_v2 import UniMatchV2Settings
from tutelage.methods.unimatch_v2 import UniMatchV2
from tutelage.nets.build import build
from tutelage.nets.segmentor import Features, Segmentor
from tutelage.nets.settings import NetSettings

CROP, BATCH, CLASSES = 192, 4, 11
THRESHOLD, DECAY = 0.2, 0.996
NET = NetSettings(encoder="tf_efficientnet_lite0", decoder="deeplabv3plus", width=64)
CPU = torch.device("cpu")


class Plain:
    """The step written down, and the parts of it that are measured by themselves."""

    def __init__(self, student: Segmentor) -> None:
        self.student = student
        self.teacher = copy.deepcopy(student).eval()
        self.draw = np.random.default_rng(0)
        self.iteration = 0

    def box(self) -> Tensor:
        mask = np.zeros((CROP, CROP))
        if self.draw.random() > 0.5:
            return torch.from_numpy(mask)
        area = self.draw.uniform(0.02, 0.4) * CROP * CROP
        while True:
            aspect = self.draw.uniform(0.3, 1 / 0.3)
            width, height = int(np.sqrt(area / aspect)), int(np.sqrt(area * aspect))
            x, y = self.draw.integers(0, CROP), self.draw.integers(0, CROP)
            if x + width <= CROP and y + height <= CROP:
                break
        mask[y : y + height, x : x + width] = 1
        return torch.from_numpy(mask)

    def labels(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo labels and confidence."""
        with torch.no_grad():
            probability = self.over(self.teacher(weak).logits).softmax(1)
            return probability.argmax(1), probability.max(1)[0]

    def pasted(self, strong: Tensor, label: Tensor, confidence: Tensor, ignored: Tensor) -> tuple[Tensor, ...]:
        """One strong view and its targets."""
        maps = [strong.clone(), label.clone(), confidence.clone(), ignored.clone()]
        for number in range(len(strong)):
            inside = self.box() == 1
            for target, source in zip(maps, (strong, label, confidence, ignored), strict=True):
                target[number][..., inside] = source.flip(0)[number][..., inside]
        return tuple(maps)

    def loss(self, logits: Tensor, label: Tensor, confidence: Tensor, ignored: Tensor) -> Tensor:
        each = F.cross_entropy(self.over(logits), label, reduction="none")
        each = each * ((confidence >= THRESHOLD) & (ignored != 255))
        return each.sum() / (ignored != 255).sum().item()

    def follow(self) -> None:
        """The moving average."""
        decay = min(1 - 1 / (self.iteration + 1), DECAY)
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.data = mine.data * decay + theirs.data * (1 - decay)
        for mine, theirs in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            mine.data = (mine.data * decay + theirs.data * (1 - decay)).to(mine.dtype)
        self.iteration += 1

    def over(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, (CROP, CROP), mode="bilinear")

    def terms(self, batches: dict[str, Batch]) -> Tensor:
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]
        label, confidence = self.labels(unlabeled["weak"].image)
        ignored = torch.where(unlabeled["weak"].valid, 0, 255)
        first, *first_targets = self.pasted(unlabeled["strong"].image, label, confidence, ignored)
        second, *second_targets = self.pasted(unlabeled["strong2"].image, label, confidence, ignored)
        supervised = F.cross_entropy(self.over(self.student(labeled.image).logits), labeled.label, ignore_index=255)
        features = [self.student.encode(image) for image in (first, second)]
        whole = torch.randperm(BATCH)[: BATCH // 2]
        levels: list[list[Tensor]] = [[], []]
        for level1, level2 in zip(features[0].levels, features[1].levels, strict=True):
            kept = torch.bernoulli(torch.full(level1.shape[:2], 0.5)) * 2
            other = 2 - kept
            kept[whole] = 1
            other[whole] = 1
            levels[0].append(level1 * kept[..., None, None].to(level1.dtype))
            levels[1].append(level2 * other[..., None, None].to(level2.dtype))
        logits = [self.decoded(own, taken) for own, taken in zip(features, levels, strict=True)]
        strong = self.loss(logits[0], *first_targets) + self.loss(logits[1], *second_targets)
        return (supervised + strong / 2) / 2

    def decoded(self, features: Features, levels: list[Tensor]) -> Tensor:
        return self.student.decode(features._replace(levels=tuple(levels))).logits


def net() -> Segmentor:
    """A student as both sides train it."""
    made = build(NET, CLASSES, seed=0).to(memory_format=torch.channels_last)
    made.precision = "bf16"
    return made


def stepper(student: Segmentor, loss: Callable[[], Tensor], follow: Callable[[], None]) -> Callable[[], None]:
    """A whole step: loss, backward, optimizer, moving average."""
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            follow()

    return step


def views() -> tuple[dict[str, Batch], str]:
    """One labelled and one unlabelled batch, and of which images."""
    data, name = street_data()
    augment = AugmentSettings(crop=(CROP, CROP), scale=(0.5, 2.0), flip=0.5)
    strong = ViewSettings(colour=ColourSettings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, grey=0.2))
    shown = {
        "labeled": {"weak": ViewSettings()},
        "unlabeled": {"weak": ViewSettings(), "strong": strong, "strong2": strong},
    }
    batches = {
        stream: next(iter(Stream(stream, [data["train"]], 0, BATCH, own, augment).batches(0, 1, 1, 0, 1, CPU)))
        for stream, own in shown.items()
    }
    return batches, name


def main(rounds: int = 9) -> None:
    """Print the ratio table."""
    keep_freed_memory()
    batches, name = views()
    weak, strong = (batches["unlabeled"][view] for view in ("weak", "strong"))
    settings = UniMatchV2Settings(threshold=THRESHOLD, decay=DECAY)
    ours = UniMatchV2({"student": net()}, settings, TaskInfo(CLASSES))
    ours.train()
    plain = Plain(net())
    totals = {key: count.float() for key, count in ours.counts(batches).items()}
    steps = iter(range(10**9))

    def context() -> StepContext:
        return StepContext(next(steps), 10**9, 0, CPU, "train", totals=totals)

    logits = ours.judged(ours.ema, weak), plain.labels(weak.image)
    ignored = torch.where(weak.valid, 0, 255)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "whole step": (
            stepper(plain.student, lambda: plain.terms(batches), plain.follow),
            stepper(
                ours.student,
                lambda: torch.stack(list(ours(batches, "train", context()).values())).sum(),
                lambda: ours.after_step(context()),
            ),
        ),
        "boxes and pasting, one strong view": (
            lambda: plain.pasted(strong.image, *logits[1], ignored),
            lambda: ours.mixed(batches["unlabeled"], "strong", logits[0], logits[0], context()),
        ),
        "moving average": (plain.follow, lambda: ours.after_step(context())),
    }
    print(
        f"\n## A step of UniMatch V2 ({name}, batch {BATCH} + {BATCH}, {CROP}x{CROP}, EfficientNet-Lite0 DeepLabV3+, "
        f"bf16, images ready)\n\n{HEADER}"
    )
    for what, (slow, fast) in ways.items():
        many = rounds if what == "whole step" else 5 * rounds
        times = in_turns({"plain": torch.no_grad()(slow) if many > rounds else slow, "ours": fast}, many)
        print(ratio_line(what, times["plain"], times["ours"]))


if __name__ == "__main__":
    main()
