"""Transferability maps of a whole source: against the formulas written out, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn import functional as F

from tests.annotate.nets import CLASSES, COUNT, ColourNet, write_dataset
from tests.errors import raises_code
from tests.processes import start
from tutelage.annotate import transferability as module
from tutelage.annotate.fits import TransferabilityFit
from tutelage.annotate.transferability import fit_transferability
from tutelage.data.dataset import Dataset
from tutelage.data.weights import WeightFolder, with_weights
from tutelage.engine import collectives
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.image_view import ImageView
from tutelage.prototypes.storage import load_tensors

SETTINGS: dict[str, Any] = {"size": (8, 12), "pool": (1, 2), "centres": 4}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Dataset, Dataset]:
    """Source and target."""
    return write_dataset(tmp_path, name="source"), write_dataset(
        tmp_path, count=5, seed=1, name="target", size=(24, 20)
    )


def run(data: tuple[Dataset, Dataset], out: Path, net: Any = None, **changes: Any) -> tuple[list[Path], dict[str, Any]]:
    passed = {name: changes.pop(name) for name in ("on_unreadable", "entropy") if name in changes}
    return fit_transferability(
        net or ColourNet(),
        data[0],
        data[1].without_labels(),
        TransferabilityFit(**{**SETTINGS, **changes}),
        out / "f.safetensors",
        WeightFolder(out),
        out / "p",
        device=torch.device("cpu"),
        seed=0,
        **passed,
    )


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def features(dataset: Dataset, index: int) -> torch.Tensor:
    """(h, w, C) of one image."""
    said = ColourNet()(ImageView(dataset.image(index), SETTINGS["size"]).whole()).embedding
    return F.avg_pool2d(said, SETTINGS["pool"])[0].permute(1, 2, 0)


@pytest.mark.parametrize("scale", ["ema", "global"])
def test_maps_are_the_papers_formulas(data: tuple[Dataset, Dataset], tmp_path: Path, scale: str) -> None:
    files, facts = run(data, tmp_path, scale=scale, bonus=[0.0, 1.0, 0.5, 0.0], momentum=0.5)
    tensors, about = load_tensors(tmp_path / "f.safetensors", TransferabilityFit.file_kind)
    assert about["facts"] == facts
    assert facts["features"] == 5 * 4 * 3
    assert tensors["centres"].shape == (4, 3)
    distance = [torch.cdist(features(data[0], i), tensors["centres"].float()).amin(-1) for i in range(COUNT)]
    running = float(distance[0].mean())
    overall = float(torch.stack(distance).mean())
    bonus = torch.tensor([0.0, 1.0, 0.5, 0.0])
    for index, one in enumerate(distance):
        running = float(one.mean()) if index == 0 else 0.5 * running + 0.5 * float(one.mean())
        weight = torch.exp2(-((one / (running if scale == "ema" else overall)) ** 2))
        label = torch.from_numpy(data[0].label(index).astype(np.int64))
        large = weight[torch.arange(16) * 4 // 16][:, torch.arange(24) * 3 // 24]
        expected = (large + torch.where(label < 4, bonus[label.clamp(max=3)], 0.0)).clamp(0, 1) * 255
        found = read(WeightFolder(tmp_path).map(data[0].samples[index].name))
        assert found.shape == (16, 24)
        assert np.abs(found - expected.floor().numpy()).max() <= 1  # a float's last bit may cross a whole number
    assert len(files) == COUNT + 2


def test_a_computed_bonus_leaves_out_classes_that_nothing_is_predicted_as(
    data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    entropy = torch.tensor([0.5, 1.0, 0.75, 0.0]), torch.tensor([3, 3, 3, 0])
    _, facts = run(data, tmp_path, entropy=entropy)
    assert facts["bonus"] == {"red": 0.0, "green": 1.0, "blue": 0.5, "never": 0.0}


def test_without_a_bonus_only_distances_count(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    _, facts = run(data, tmp_path)
    assert set(facts["bonus"].values()) == {0.0}
    assert 0.3 < facts["mean_weight"] < 0.7


def test_published_bonuses_need_the_classes_of_the_papers(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="gta5 has numbers for the classes of Cityscapes"):
        run(data, tmp_path, bonus="gta5")


def test_a_pool_larger_than_the_features(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match=r"pool \[5, 1\] is larger than the features .*\[4, 6\]"):
        run(data, tmp_path, pool=(5, 1))


def test_images_that_cannot_be_read_have_no_map(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    source, target = data
    source.samples[1].image.write_bytes(b"")
    target.samples[0].image.write_bytes(b"")
    with pytest.raises(DataError):
        run(data, tmp_path)
    files, facts = run(data, tmp_path, on_unreadable="skip")
    assert (facts["unreadable"], facts["unreadable_target"]) == (["sub/i1"], ["i 0"])
    assert len(files) == COUNT + 1
    weighted = with_weights(source, tmp_path)
    assert [sample.name for sample in weighted.samples] == [
        sample.name for sample in source.samples if sample.name != "sub/i1"
    ]
    with pytest.raises(TutelageError, match="no image of target could be read"):
        run((source, target.subset([0])), tmp_path / "none", on_unreadable="skip")


def test_finished_maps_and_parts_are_not_redone(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    files, _ = run(data, tmp_path)
    before = {path: path.read_bytes() for path in files}
    gone = WeightFolder(tmp_path).map("i 2")
    gone.unlink()
    kept = WeightFolder(tmp_path).map("i 0")
    inode = kept.stat().st_ino
    net = ColourNet()
    run(data, tmp_path, net)
    assert net.seen == 0, "features are still there"
    assert kept.stat().st_ino == inode
    assert {path: path.read_bytes() for path in files} == before


def test_weights_are_those_of_these_images(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    run(data, tmp_path)
    with raises_code("file-damaged"):
        with_weights(data[0], tmp_path / "nowhere")
    renamed = write_dataset(tmp_path, count=1, name="other", size=(16, 24))
    other = Dataset("other", (type(renamed.samples[0])("x", renamed.samples[0].image),), CLASSES, renamed.label_map)
    with pytest.raises(DataError, match="no image of other"):
        with_weights(other, tmp_path)


def _rank(rank: int, data: tuple[Dataset, Dataset], out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    module._PART = 2
    run(data, out)
    collectives.leave()


def test_two_processes_give_the_same_bytes(
    data: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 2)
    files, _ = run(data, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    processes = [start(_rank, rank, data, tmp_path / "out") for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for path in files:
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
