"""Predicting files: names, kinds of results, going on, faults in the middle, and bounds on what is held."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.deploy.nets import CLASSES, PALETTE, model
from tests.deploy.test_model import SLIDING, picture
from tests.errors import raises_code
from tutelage.data.images import read_image
from tutelage.deploy import flow, predict
from tutelage.deploy.decoded_image import DecodedImage
from tutelage.deploy.flow import Room, decoded
from tutelage.deploy.model import Model
from tutelage.deploy.outputs import Job, find_jobs
from tutelage.deploy.predict import predict_files
from tutelage.errors import DataError
from tutelage.evaluation.protocol import Protocol


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of many kinds, names and sizes; one of them damaged, one none at all."""
    folder = tmp_path / "my photos"
    (folder / "straße" / "無題").mkdir(parents=True)
    Image.fromarray(picture(30, 41)).save(folder / "a b.jpg")
    Image.fromarray(picture(17, 23)).convert("L").save(folder / "grey.png")
    opaque = Image.fromarray(picture(33, 20))
    opaque.putalpha(9)
    opaque.save(folder / "straße" / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(picture(19, 31)).save(folder / "straße" / "無題" / "turned.jpeg", exif=exif)
    whole = folder / "straße" / "cut.jpg"
    Image.fromarray(picture(64, 64)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-400])
    (folder / "nothing.tif").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / "._a b.jpg").write_bytes(b"a file of a Mac")
    return folder


def written(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_folder_with_faults_in_the_middle(photos: Path, tmp_path: Path) -> None:
    out, used = tmp_path / "out", model()[0]
    calls: list[tuple[int, int]] = []
    report = predict_files(used, [photos], out, progress=lambda done, total: calls.append((done, total)))
    assert (report.done, report.skipped) == (4, 0)
    assert [path.name for path, _ in report.failed] == ["nothing.tif", "cut.jpg"]
    assert all(str(path) in reason for path, reason in report.failed)
    assert str(report).startswith("4 predicted, 2 failed\n")
    names = {"a b.png", "grey.png", "straße/alpha.png", "straße/無題/turned.png"}
    assert written(out) == {*names, "failed.txt", "predictions.json"}
    assert calls == [(number, 6) for number in range(1, 7)]
    lines = (out / "failed.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path, _ in report.failed]
    for path in (p for p in photos.rglob("*") if p.stem in ("a b", "grey", "alpha", "turned") and p.name[0] != "."):
        with Image.open((out / path.relative_to(photos)).with_suffix(".png")) as result:
            assert result.mode == "P"
            np.testing.assert_array_equal(np.asarray(result), used.predict(read_image(path)).labels)
            colours = np.array(PALETTE, dtype=np.uint8)[np.asarray(result)]
            np.testing.assert_array_equal(np.asarray(result.convert("RGB")), colours)
    manifest = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert manifest["classes"] == list(CLASSES)


def test_all_kinds_of_results(tmp_path: Path) -> None:
    image = picture(40, 60)
    Image.fromarray(image).save(tmp_path / "a.png")
    used, out = model()[0], tmp_path / "out"
    kinds = {"palette", "index", "overlay", "confidence"}
    assert predict_files(used, [tmp_path / "a.png"], out, write=kinds, alpha=0.4).done == 1
    assert written(out) >= {"a.png", "a_index.png", "a_overlay.jpg", "a_confidence.png"}
    result = used.predict(image, confidence=True)
    for name, expected in (("a_index.png", result.labels), ("a_confidence.png", result.confidence)):
        with Image.open(out / name) as found:
            assert found.mode == "L"
            np.testing.assert_array_equal(np.asarray(found), expected)
    overlay = np.asarray(result.overlay(image, 0.4)).astype(int)
    assert np.abs(read_image(out / "a_overlay.jpg") - overlay).mean() < 6


def test_going_on_makes_only_what_is_missing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    used, net = model()
    predict_files(used, [photos], out)
    (out / "grey.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    net.calls.clear()
    said: list[str] = []
    report = predict_files(used, [photos], out, say=said.append)
    assert (report.done, report.skipped, len(report.failed)) == (1, 3, 2)
    assert len(net.calls) == 1
    assert "3 of 6" in said[0]
    assert times == {path: path.stat().st_mtime_ns for path in times}
    report = predict_files(used, [photos], out, write=["palette", "index"])
    assert (report.done, report.skipped) == (4, 0)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert predict_files(used, [photos], out, overwrite=True).done == 4
    assert times != {path: path.stat().st_mtime_ns for path in times}
    for name in ("nothing.tif", "straße/cut.jpg"):
        (photos / name).unlink()
    assert not predict_files(used, [photos], out).failed
    assert not (out / "failed.txt").exists()


def test_results_of_another_net_are_not_mixed_in(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(model()[0], [photos], out)
    with raises_code("output-exists"):
        predict_files(model(Protocol(flip=True))[0], [photos], out)
    other = Model(model()[0].net, CLASSES, PALETTE, torch.device("cpu"), checksum=2)
    with raises_code("output-exists"):
        predict_files(other, [photos], out)
    assert predict_files(other, [photos], out, overwrite=True).done == 4
    assert predict_files(other, [photos], out).done == 0


# Names


def names(*inputs: Path, out: Path = Path("out")) -> list[str]:
    return [job.name for job in find_jobs(inputs, out)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_names_follow_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(*(tmp_path / name for name in ("x/1.jpg", "x/deep/2.jpg", "y/1.jpg", "y/text.txt")))
    assert names(tmp_path / "x") == ["1", "deep/2"]
    assert names(tmp_path / "x", tmp_path / "y") == ["x/1", "x/deep/2", "y/1"]
    assert names(tmp_path / "x/1.jpg") == ["1"]
    assert names(tmp_path / "x/1.jpg", tmp_path / "y/1.jpg") == ["x/1", "y/1"]
    assert names(tmp_path / "x/1.jpg", tmp_path / "x") == ["1", "deep/2"]
    assert names(tmp_path / "*/1.*") == ["x/1", "y/1"]
    assert names(tmp_path / "**/*.jpg") == ["x/1", "x/deep/2", "y/1"]
    assert names(tmp_path / "*") == ["x/1", "x/deep/2", "y/1"]
    assert names(tmp_path / "y/*") == ["1"]
    monkeypatch.chdir(tmp_path / "x")
    assert names(Path("deep"), Path("../y")) == ["x/deep/2", "y/1"]


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "[1].jpg", tmp_path / "1.jpg")
    assert names(tmp_path / "[1].jpg") == ["[1]"]
    with raises_code("folder-empty"):
        names(tmp_path / "[2].jpg")
    with raises_code("file-missing"):
        names(tmp_path / "2.jpg")
    (tmp_path / "empty").mkdir()
    with raises_code("folder-empty"):
        names(tmp_path / "empty")
    with raises_code("input-missing"):
        names()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("a.jpg", "a.png", "b.png"), ["a.jpg", "a.png", "b"]),
        (("a.jpg", "a.png", "a.jpg.bmp"), ["a.jpg", "a.jpg.bmp", "a.png"]),
        (("a.jpg", "a_confidence.bmp"), ["a.jpg", "a_confidence.bmp"]),
        (("a.jpg", "a_overlay.jpg"), ["a", "a_overlay"]),
        (("a.b.jpg", "a.c.jpg"), ["a.b", "a.c"]),
    ],
)
def test_names_that_would_clash_keep_their_ending(files: tuple[str, ...], expected: list[str], tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in files))
    assert names(tmp_path) == expected


def test_images_of_one_name_have_a_result_each(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for seed, name in enumerate(("a.jpg", "a.png")):
        Image.fromarray(picture(20, 30 + seed)).save(folder / name)
    assert predict_files(model()[0], [folder], out).done == 2
    widths = {path.name: Image.open(path).width for path in sorted(out.glob("*.png"))}
    assert widths == {"a.jpg.png": 30, "a.png.png": 31}


def test_results_do_not_touch_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    touch(folder / "a.jpg", folder / "sub/b.png", folder / "results/old.png")
    assert names(folder, out=folder / "results") == ["a", "sub/b"]
    assert names(folder / "*.jpg", out=folder) == ["a"]
    assert names(folder / "a.jpg", out=folder) == ["a"]
    with raises_code("output-overlap"):
        names(folder / "sub" / "b.png", out=folder / "sub")
    (folder / "sub" / "b.png").rename(folder / "sub" / "b.jpg")
    with raises_code("output-overlap"):
        names(folder / "sub", folder / "results", out=folder)
    with raises_code("output-overlap"):
        names(folder / "sub", out=folder / "sub")


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"write": []}, "use one or more of"),
        ({"write": ["mask"]}, "'mask'"),
        ({"alpha": 2.0}, "alpha"),
        ({"batch": 0}, "batch"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, object], fact: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    with raises_code("invalid-value", fact):
        predict_files(model()[0], [tmp_path / "a.jpg"], tmp_path / "out", **settings)  # type: ignore[arg-type]


# Faults that are not the image's


def test_a_full_disk_ends_the_work_and_it_can_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(*_: object) -> Image.Image:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(predict, "coloured", full)
        with raises_code("write-failed", "No space left", out):
            predict_files(model()[0], [photos], out)
    assert not [path for path in written(out) if "partial" in path]
    assert predict_files(model()[0], [photos], out).done == 4


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "file")
    with raises_code("write-failed"):
        predict_files(model()[0], [tmp_path / "a.jpg"], tmp_path / "file" / "out")


def test_memory_that_ends_is_a_matter_of_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a", 20), ("b", 40), ("c", 20)):
        Image.fromarray(picture(size, size)).save(tmp_path / f"{name}.png")
    used, _ = model()
    original = Model.predict_decoded

    def limited(self: Model, images: list[DecodedImage], *rest: object) -> object:
        if images[0].shape[0] > 30 or len(images) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        return original(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "predict_decoded", limited)
    report = predict_files(used, [tmp_path], tmp_path / "out", batch=4)
    assert report.done == 2
    assert "out of memory with 40x40 pixels" in report.failed[0][1]
    monkeypatch.setattr(Model, "predict_decoded", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_files(used, [tmp_path], tmp_path / "other")


def test_an_overlay_longer_than_a_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(8, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(predict, "_JPEG_SIDE", 50)
    report = predict_files(model()[0], [tmp_path], tmp_path / "out", write=["overlay"])
    assert "overlay" in report.failed[0][1]
    assert predict_files(model()[0], [tmp_path], tmp_path / "out", write=["palette"]).done == 1


# What is held at once


def test_large_images_go_through_the_net_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model", "large", "predict"):
        monkeypatch.setattr(f"tutelage.deploy.{module}.WHOLE_PIXELS", 3000)
    monkeypatch.setattr("tutelage.deploy.model.WINDOWED", SLIDING)
    taken: list[int] = []
    original = DecodedImage.__getitem__

    def noted(self: DecodedImage, window: tuple[slice, slice]) -> np.ndarray:
        part = original(self, window)
        taken.append(part.size)
        return part

    monkeypatch.setattr(DecodedImage, "__getitem__", noted)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(picture(301, 407)).save(tmp_path / name)
    used, net = model()
    said: list[str] = []
    kinds = ["palette", "overlay", "confidence"]
    report = predict_files(used, [tmp_path], tmp_path / "out", write=kinds, say=said.append)
    assert report.done == 2
    assert {call[0] * call[2] * call[3] for call in net.calls} == {24 * 32}
    assert max(taken) <= 3 * 24 * 32
    assert len(said) == 1
    assert "407x301" in said[0]
    assert "windows of 24x32" in said[0]
    net.calls.clear()
    told = Model(net, CLASSES, PALETTE, torch.device("cpu"), Protocol())
    predict_files(told, [tmp_path / "a.png"], tmp_path / "whole", say=said.append)
    assert net.calls == [(1, 3, 301, 407)]
    assert len(said) == 1


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(picture(12 + number // 50, 16, number)).save(folder / f"{number:03}.png")
    return folder


def test_many_files_are_never_all_open(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    most_open = most_held = 0
    monkeypatch.setattr(flow, "_LEAST_PIXELS", flow.ROOM_PIXELS // 16)

    class Watched(Room):
        held = 0

        def enter(self, number: int, pixels: int) -> None:
            nonlocal most_held, most_open
            super().enter(number, pixels)
            Watched.held += 1
            most_held = max(most_held, Watched.held)
            if before:
                most_open = max(most_open, len(os.listdir("/proc/self/fd")) - before)

        def leave(self, pixels: int) -> None:
            Watched.held -= 1
            super().leave(pixels)

    monkeypatch.setattr(predict, "Room", Watched)
    threads = threading.active_count()
    assert predict_files(model()[0], [many], tmp_path / "out").done == 60
    assert Watched.held == 0
    assert 1 <= most_held <= 17  # counted just after it is let in, perhaps before another's leaving is
    assert most_open <= 20
    assert threading.active_count() == threads


def test_small_images_share_a_call(many: Path, tmp_path: Path) -> None:
    used, net = model()
    predict_files(used, [many], tmp_path / "out", batch=8, write=["palette", "confidence"])
    assert [call[0] for call in net.calls] == [8] * 6 + [2] + [8, 2]
    assert {call[2] for call in net.calls[:7]} == {12}
    predict_files(model()[0], [many], tmp_path / "one", write=["palette", "confidence"])
    for path in (tmp_path / "one").glob("*.png"):
        alone, shared = read_image(path).astype(int), read_image(tmp_path / "out" / path.name).astype(int)
        # Kernels may add up in another order for another batch: a confidence between two steps may go either way.
        assert np.abs(alone - shared).max() <= (1 if "confidence" in path.name else 0)


def test_an_image_larger_than_all_the_room(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "Room", lambda: Room(1))
    monkeypatch.setattr(flow, "_LEAST_PIXELS", 1)
    used = model()[0]
    assert predict_files(used, [many], tmp_path / "out").done == 60
    # In company an image waits for room that its company holds: it would for ever, were it not known before.
    monkeypatch.setattr(predict, "Room", lambda: Room(flow.TOGETHER_PIXELS))
    Image.fromarray(picture(1100, 1000)).save(many / "000 large.png")
    assert predict_files(used, [many], tmp_path / "more", batch=8).done == 61


def test_who_stops_half_way_leaves_nothing_running(many: Path) -> None:
    threads = threading.active_count()
    room = Room(1)
    groups: Iterator[list[flow.Decoded]] = decoded([Job(path, path.stem) for path in sorted(many.iterdir())], room)
    assert next(groups)[0].job.name == "000"
    groups.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    with pytest.raises(CancelledError):
        room.enter(99, 1)


def test_a_decoder_that_raises_anything(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DecodedImage.read
    faults = {"003": KeyError("no table"), "017": MemoryError(), "059": DataError("image-unreadable", "bad luck")}

    def read(path: Path, admit: object) -> DecodedImage:
        if path.stem in faults:
            raise faults[path.stem]
        return original(path, admit)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodedImage, "read", staticmethod(read))
    report = predict_files(model()[0], [many], tmp_path / "out", batch=4)
    assert report.done == 57
    reasons = {path.stem: reason for path, reason in report.failed}
    assert list(reasons) == list(faults)
    assert "KeyError" in reasons["003"]
    assert "memory" in reasons["017"]
    assert reasons["059"] == "bad luck"
