"""Maps of weights in streams: sizes that do not fit, and pooled data of which only some have weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity
from tutelage.data.settings import ViewSettings
from tutelage.data.stream import LoaderSettings, Stream
from tutelage.data.weights import WeightFolder, with_weights

SIZE = (8, 10)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for number in range(2):
        image, label = tmp_path / f"i{number}.png", tmp_path / f"m{number}.png"
        Image.fromarray(np.full((*SIZE, 3), 40 * number, dtype=np.uint8)).save(image)
        Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(label)
        samples.append(Sample(f"i{number}", image, label))
    return Dataset("mine", tuple(samples), Classes(("a", "b")), identity(2))


def weighted(dataset: Dataset, root: Path, size: tuple[int, int] = SIZE) -> Dataset:
    folder = WeightFolder(root)
    for number in range(2):
        folder.write(f"i{number}", np.full(size, 51 * (number + 1), dtype=np.uint8))
    folder.finish(["i0", "i1"])
    return with_weights(dataset, root)


def stream(*datasets: Dataset, cache: str = "none", labels: bool = True) -> Stream:
    loader = LoaderSettings(cache=cache)  # type: ignore[arg-type]
    batch = sum(map(len, datasets))
    return Stream("source", datasets, 0, batch, {"weak": ViewSettings()}, labels=labels, loader=loader)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_weights_reach_the_view_as_shares(dataset: Dataset, tmp_path: Path, cache: str) -> None:
    (batch,) = stream(weighted(dataset, tmp_path / "w"), cache=cache).batches(0, 1, 1, 0, 1, torch.device("cpu"))
    found = dict(zip(batch.samples, batch["weak"].maps["weight"].flatten(1).tolist(), strict=True))
    assert found.keys() == {"mine:i0", "mine:i1"}
    assert found["mine:i0"] == pytest.approx([0.2] * 80)
    assert found["mine:i1"] == pytest.approx([0.4] * 80)


def test_a_stream_without_labels_has_no_weights(dataset: Dataset, tmp_path: Path) -> None:
    bare = stream(weighted(dataset, tmp_path / "w"), labels=False)
    (batch,) = bare.batches(0, 1, 1, 0, 1, torch.device("cpu"))
    assert not batch["weak"].maps
    assert all(sample.weight is None for sample in bare.datasets[0].samples)


def test_pooled_data_of_which_some_have_weights(dataset: Dataset, tmp_path: Path) -> None:
    pooled = stream(weighted(dataset, tmp_path / "w"), replace(dataset, name="other"))
    with raises_code("batch-maps"):
        list(pooled.batches(0, 1, 1, 0, 1, torch.device("cpu")))


def test_weights_of_another_size(dataset: Dataset, tmp_path: Path) -> None:
    with raises_code("artefact-mismatch"):
        list(stream(weighted(dataset, tmp_path / "w", (4, 4))).batches(0, 1, 1, 0, 1, torch.device("cpu")))
