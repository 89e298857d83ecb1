"""A stylised copy of a data set: styles drawn by seed and name, files image by image, targets of any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.annotate.nets import COUNT, write_dataset
from tests.errors import raises_code
from tests.processes import Countdown, count_disk_calls, in_child
from tutelage.annotate.stylised import style_of, stylise_dataset
from tutelage.data.copies import CopyFolder, with_copies
from tutelage.data.dataset import Dataset, Sample
from tutelage.data.images import read_image
from tutelage.data.settings import StyleSettings
from tutelage.data.stylise import stylise
from tutelage.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> tuple[Dataset, Dataset]:
    """Source, and a target of images of other sizes, bit depths and colours, named so that each comes up."""
    target = tmp_path / "target"
    target.mkdir()
    draw = np.random.default_rng(7)
    made = {
        "rgb.png": Image.fromarray(draw.integers(0, 256, (40, 30, 3), dtype=np.uint8)),
        "grey.png": Image.fromarray(draw.integers(0, 256, (5, 60), dtype=np.uint8)),
        "deep.png": Image.fromarray(draw.integers(0, 65536, (16, 24)).astype(np.uint16)),
        "alpha.png": Image.fromarray(draw.integers(0, 256, (9, 9, 4), dtype=np.uint8)),
    }
    samples = []
    for name, image in made.items():
        image.save(target / name)
        samples.append(Sample(name, target / name))
    source = write_dataset(tmp_path, name="source")
    return source, Dataset("target", tuple(samples), source.classes, source.label_map)


def run(data: tuple[Dataset, Dataset], out: Path, seed: int = 0, **changes: Any) -> tuple[list[Path], list[str]]:
    settings = changes.pop("settings", StyleSettings(beta=0.2))
    return stylise_dataset(*data, out, settings, seed=seed, device=torch.device("cpu"), **changes)


@pytest.mark.parametrize("settings", [StyleSettings(beta=0.2), StyleSettings(kind="statistics")])
def test_each_image_is_in_the_style_of_one_of_the_target(
    data: tuple[Dataset, Dataset], tmp_path: Path, settings: StyleSettings
) -> None:
    source, target = data
    files, left_out = run(data, tmp_path / "out", settings=settings)
    assert (len(files), left_out) == (COUNT + 1, [])
    copy = with_copies(source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "images.json").read_text())
    for index, sample in enumerate(source.samples):
        style = style_of(sample.name, len(target), 0)
        assert manifest["styles"][sample.name] == target.samples[style].name
        images = (torch.from_numpy(each.image(at).copy()) for each, at in ((source, index), (target, style)))
        image, other = (each.permute(2, 0, 1)[None].float() / 255 for each in images)
        expected = stylise(image, other, settings)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(copy.image(index), expected)
        np.testing.assert_array_equal(copy.label(index), source.label(index))


def test_styles_go_by_seed_and_name_and_not_by_order(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    source, target = data
    run(data, tmp_path / "all")
    run((source.subset([4, 2]), target), tmp_path / "two")
    for index in (2, 4):
        name = source.samples[index].name
        ours, theirs = (CopyFolder(tmp_path / out).image(name).read_bytes() for out in ("all", "two"))
        assert ours == theirs
    drawn = {style_of(f"image {number}", 4, 0) for number in range(40)}
    assert drawn == {0, 1, 2, 3}
    assert [style_of(f"{n}", 4, 0) for n in range(20)] != [style_of(f"{n}", 4, 1) for n in range(20)]


def test_one_unreadable_style_is_replaced_and_one_unreadable_image_left_out(
    data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    source, target = data
    name = source.samples[0].name
    target.samples[style_of(name, len(target), 0)].image.write_bytes(b"no image")
    source.samples[3].image.write_bytes(b"")
    with pytest.raises(DataError):
        run(data, tmp_path / "out")
    files, left_out = run(data, tmp_path / "out", on_unreadable="skip")
    assert left_out == [source.samples[3].name]
    assert len(files) == COUNT
    copy = with_copies(source, tmp_path / "out")
    assert [sample.name for sample in copy.samples] == [s.name for s in source.samples if s.name not in left_out]
    styles = json.loads((tmp_path / "out" / "images.json").read_text())["styles"]
    assert styles[name] in {sample.name for sample in target.samples} - {
        target.samples[style_of(name, len(target), 0)].name
    }


def test_no_readable_style_is_an_error_in_any_case(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    for sample in data[1].samples:
        sample.image.write_bytes(b"")
    with pytest.raises(DataError, match="in a row cannot be read"):
        run(data, tmp_path / "out", on_unreadable="skip")
    with pytest.raises(DataError, match="target has no image"):
        run((data[0], data[1].subset([])), tmp_path / "out")


def _killed(data: tuple[Dataset, Dataset], out: Path, number: int) -> None:
    count_disk_calls(Countdown(number))
    run(data, out)


def test_killed_anywhere_finished_images_are_not_redone(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    files, _ = run(data, tmp_path / "whole")
    out = tmp_path / "out"
    assert in_child(_killed, data, out, 8) != 0
    there = {path: path.stat().st_ino for path in out.rglob("*.png") if not path.name.startswith(".")}
    assert 0 < len(there) < COUNT
    run(data, out)
    assert {path: path.stat().st_ino for path in there} == there
    for path in files:
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_copies_need_a_whole_folder(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with raises_code("file-damaged"):
        with_copies(data[0], tmp_path / "nowhere")
    run(data, tmp_path / "out")
    path = tmp_path / "out" / "images.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(DataError, match="format 9"):
        with_copies(data[0], tmp_path / "out")
    assert read_image(CopyFolder(tmp_path / "out").image("i 0")).shape == (16, 24, 3)


def test_images_outside_of_their_root_are_not_replaced(data: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    source, target = data
    outside = [Sample(sample.image.with_suffix("").as_posix(), sample.image, sample.label) for sample in source.samples]
    away = Dataset("away", tuple(outside), source.classes, source.label_map)
    before = [sample.image.read_bytes() for sample in outside]
    files, _ = run((away, target), tmp_path / "out")
    assert [sample.image.read_bytes() for sample in outside] == before
    assert all(tmp_path / "out" in path.parents for path in files)
    assert len(set(files)) == COUNT + 1
