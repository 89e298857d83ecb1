"""Mixtures of what is labelled and predicted: which rows count, thinning, several processes, classes without rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.annotate.nets import CLASSES, COUNT, ColourNet, maps, write_dataset
from tests.processes import start
from tutelage.annotate import mixtures as module
from tutelage.annotate.fits import MixturesFit
from tutelage.annotate.mixtures import fit_class_mixtures
from tutelage.data.dataset import Classes, Dataset
from tutelage.engine import collectives
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.gaussians import Mixtures, fit_mixture
from tutelage.prototypes.reservoir import Reservoir


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path)


def run(dataset: Dataset, out: Path, net: Any = None, seed: int = 3, **changes: Any) -> dict[str, Any]:
    on_unreadable = changes.pop("on_unreadable", "error")
    settings = MixturesFit(**{"components": 2, **changes})
    return fit_class_mixtures(
        net or ColourNet(),
        dataset,
        settings,
        out / "f.safetensors",
        out / "p",
        device=torch.device("cpu"),
        protocol=Protocol(),
        seed=seed,
        on_unreadable=on_unreadable,
    )


def rows_of(dataset: Dataset, number: int) -> torch.Tensor:
    """The rows of a class, written out."""
    found = []
    for index in range(len(dataset)):
        features, predicted, label = maps(dataset, index)
        found.append(features[(predicted == number) & (label == number)])
    return torch.cat(found)


def test_rows_are_what_is_labelled_and_predicted(dataset: Dataset, tmp_path: Path) -> None:
    facts = run(dataset, tmp_path)
    mixtures, told = Mixtures.load(tmp_path / "f.safetensors")
    assert told == facts
    assert mixtures.present_K.tolist() == [True, True, True, False]
    assert facts["without_samples"] == ["never"]
    for number, name in enumerate(CLASSES.names[:3]):
        rows = rows_of(dataset, number)
        assert facts["classes"][name]["offered"] == facts["classes"][name]["kept"] == len(rows)
        mixture = mixtures.mixture(number)
        assert mixture is not None
        # Whatever the order of the rows: the mixture's mean is theirs.
        mean = (mixture.weight_M[:, None] * mixture.mean_MC).sum(0)
        torch.testing.assert_close(mean, rows.double().mean(0), atol=1e-6, rtol=1e-6)


def test_the_fit_is_that_of_the_sample(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, samples=30)
    (stored,) = (tmp_path / "p").iterdir()
    sample, _ = Reservoir.load(stored)
    assert sample.rows(1).shape == (30, 3)
    mixtures, _ = Mixtures.load(tmp_path / "f.safetensors")
    fit = fit_mixture(sample.rows(1), MixturesFit(components=2), seed=3, owner="class 1 (green)")
    own = mixtures.mixture(1)
    assert own is not None
    torch.testing.assert_close(own.mean_MC, fit.mixture.mean_MC)


def test_rates_thin_each_class(dataset: Dataset, tmp_path: Path) -> None:
    facts = run(dataset, tmp_path, rates=[0.5, 0.1, 1.0, 1.0])["classes"]
    for name, rate in zip(CLASSES.names[:3], (0.5, 0.1, 1.0), strict=True):
        one = facts[name]
        assert abs(one["offered"] - rate * one["kept"]) <= COUNT, "at most one row an image is lost or won"
    assert facts["blue"]["offered"] == facts["blue"]["kept"]
    again = run(dataset, tmp_path / "again", rates=[0.5, 0.1, 1.0, 1.0])["classes"]
    assert again == facts
    assert run(dataset, tmp_path / "seed", seed=4, rates=[0.5, 0.1, 1.0, 1.0])["classes"] != facts


def test_published_rates_need_the_classes_of_the_papers(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="none for red, green, blue, never"):
        run(dataset, tmp_path, rates="gta5")
    with pytest.raises(TutelageError, match="2 numbers under rates for 4 classes"):
        run(dataset, tmp_path, rates=[1.0, 1.0])


def test_rates_go_by_the_names_of_classes(dataset: Dataset, tmp_path: Path) -> None:
    chosen = module.by_class({"gta5": module._GTA5}, "gta5", ("Car", "road", "traffic-light"), "rates")
    assert chosen is not None
    assert chosen.tolist() == [0.05, 0.002, 1.0]


def test_no_row_at_all_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    other = Classes(("never", "nowhere", "no"), CLASSES.palette[:3])
    label_map = dataset.label_map
    empty = Dataset(
        "mine", dataset.samples, other, type(label_map)(dict.fromkeys((0, 1, 2, 3, 255), 255), label_map.encoding)
    )

    class Three(ColourNet):
        def __call__(self, image: torch.Tensor) -> Any:
            said = super().__call__(image)
            said.logits = said.logits[:, :3]
            return said

    with pytest.raises(TutelageError, match="no class has a mixture"):
        run(empty, tmp_path, net=Three())


def test_a_degenerate_class_is_named(dataset: Dataset, tmp_path: Path) -> None:
    class Broken(ColourNet):
        def __call__(self, image: torch.Tensor) -> Any:
            said = super().__call__(image)
            said.embedding = said.embedding.masked_fill(said.logits[:, :3].argmax(1, keepdim=True) == 1, float("nan"))
            return said

    with pytest.raises(TutelageError, match=r"class 1 \(green\)"):
        run(dataset, tmp_path, net=Broken())


def test_unreadable_images_and_masks_are_named(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.samples[1].label is not None
    dataset.samples[1].label.write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"i1\.png"):
        run(dataset, tmp_path)
    assert run(dataset, tmp_path, on_unreadable="skip")["unreadable"] == ["sub/i1"]


def test_the_sample_so_far_is_gone_on_with(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(dataset, tmp_path / "whole")
    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)

    class Tired(ColourNet):
        def __call__(self, image: torch.Tensor) -> Any:
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().__call__(image)

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "out", net=Tired())
    net = ColourNet()
    run(dataset, tmp_path / "out", net=net)
    assert net.seen == COUNT - 3
    files = [out / "f.safetensors" for out in (tmp_path / "whole", tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def _rank(rank: int, dataset: Dataset, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    run(dataset, out, samples=40, rates=[0.5, 1.0, 1.0, 1.0])
    collectives.leave()


def test_two_processes_give_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "whole", samples=40, rates=[0.5, 1.0, 1.0, 1.0])
    (tmp_path / "out").mkdir()
    processes = [start(_rank, rank, dataset, tmp_path / "out") for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    files = [out / "f.safetensors" for out in (tmp_path / "whole", tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
