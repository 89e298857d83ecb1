"""A data set with masks and a net without weights, for tests of what is fitted to features."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity

CLASSES = Classes(("red", "green", "blue", "never"))
COUNT, SIZE, STRIDE = 6, (16, 24), 2


class ColourNet:
    """Features are the mean colour of 2x2 pixels, and logits tell the brightest channel; counts what it saw."""

    stride = STRIDE
    embedding_channels = 3
    feature_strides = (STRIDE,)

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, image_B3HW: Tensor) -> SimpleNamespace:
        self.seen += len(image_B3HW)
        embedding = F.avg_pool2d(image_B3HW, STRIDE)
        logits = torch.cat([8 * embedding, torch.full_like(embedding[:, :1], -9)], 1)
        return SimpleNamespace(embedding=embedding, logits=logits)

    def encode(self, image_B3HW: Tensor) -> SimpleNamespace:
        """What an encoder alone gives."""
        return SimpleNamespace(levels=(self(image_B3HW).embedding,))


def write_dataset(root: Path, count: int = COUNT, seed: int = 0, name: str = "mine", size: Any = SIZE) -> Dataset:
    """Random images in blocks of 4x4, some in subfolders; masks tell the brightest channel but for a quarter of it."""
    samples = []
    for number in range(count):
        draw = np.random.default_rng([seed, number])
        stem = f"sub/i{number}" if number % 2 else f"i {number}"
        image, mask = root / name / "images" / f"{stem}.png", root / name / "masks" / f"{stem}.png"
        coarse = draw.integers(0, 256, (size[0] // 4, size[1] // 4, 3))
        pixels = np.kron(coarse, np.ones((4, 4, 1))).astype(np.uint8)
        label = pixels.argmax(-1).astype(np.uint8)
        label[draw.random(label.shape) < 0.2] = 255
        label[: size[0] // 2, : size[1] // 2] = 1
        for path, content in ((image, pixels), (mask, label)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        samples.append(Sample(stem, image, mask))
    return Dataset(name, tuple(samples), CLASSES, identity(len(CLASSES)))


def maps(dataset: Dataset, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (P, C), predicted classes (P) and labels (P) of one image, written out."""
    image = torch.from_numpy(dataset.image(index).copy()).permute(2, 0, 1)[None].float() / 255
    said = ColourNet()(image)
    label = torch.from_numpy(dataset.label(index).copy())[::STRIDE, ::STRIDE]
    return said.embedding[0].flatten(1).T, said.logits[0].argmax(0).flatten(), label.flatten()
