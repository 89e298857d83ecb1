"""Planted faults, given through the command line: each is one message that says what is wrong and what would be right.

Every row of the tables plants one fault in a tiny project, gives a command and names the words that the message must
hold. The rest is the same for all: the exit status, no traceback, nothing half-written, no stage that failed and
still counts as finished.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.projects import CLASSES, SIZE, Project, Ran, image_name, write_project
from tutelage.methods.supervised import Supervised
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import save_segmentor

NET = NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=32)
Plant = Callable[[Project, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str
    plant: Plant
    words: tuple[str, ...]
    """What the message must hold."""
    command: tuple[str, ...] = ("run", "recipe.yaml")
    finished: frozenset[str] = frozenset()
    """Stages before the one that fails."""


def check_fault(fault: Fault, project: Project, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Plant a fault and judge what the command says and leaves behind."""
    fault.plant(project, monkeypatch)
    before = project.finished()
    ran = project.tutelage(*fault.command)
    assert ran.status == 1
    assert ran.err.startswith("error[")
    assert sum(line.startswith("error[") for line in ran.err.splitlines()) == 1
    assert "Traceback" not in ran.out + ran.err
    lacking = [word for word in fault.words if word not in " ".join(ran.err.split())]
    assert not lacking
    remedy = ran.err.partition("remedy: ")[2]
    assert remedy.strip()
    assert "not a fault that tutelage knows" not in remedy
    assert project.partial() == []
    stages = {folder.rpartition("-")[0] for folder in project.finished() - before}
    assert stages == fault.finished
    return ran


def edited(*changes: tuple[str, str]) -> Plant:
    """Plants changes of the recipe."""
    return lambda project, monkeypatch: project.edit(*changes)


def written(name: str, content: str | bytes) -> Plant:
    """Plants a file."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        place = project.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())

    return plant


def cut(name: str) -> Plant:
    """Plants a file that ends in the middle."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        path = project.root / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return plant


def removed(name: str) -> Plant:
    """Plants the absence of a file or folder."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        path = project.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def image_of(name: str, pixels: np.ndarray, **options: Any) -> Plant:
    """Plants an image file."""
    return lambda project, monkeypatch: Image.fromarray(pixels).save(project.root / name, **options)


def all_of(*plants: Plant) -> Plant:
    """Plants several things."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        for one in plants:
            one(project, monkeypatch)

    return plant


def nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself is the fault."""


def folder_at(name: str) -> Plant:
    """Plants a folder in place of a file."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        (project.root / name).unlink(missing_ok=True)
        (project.root / name).mkdir()

    return plant


def net_of(*classes: str, name: str = "net.safetensors") -> Plant:
    """Plants the file of a net with other classes, or with the project's."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        names = classes or CLASSES
        net = build(NET, len(names), seed=0)
        palette = [(number, number, number) for number in range(len(names))]
        save_segmentor(net, project.root / name, classes=names, palette=palette)

    return plant


def semi_supervised(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a second list, of images without labels, and a method that learns from both."""
    (project.data / "more.txt").write_text("images/i4.png\nimages/i5.png\n", encoding="utf-8")
    project.edit(
        ("val: val.txt", "val: val.txt, more: more.txt"),
        ("method: supervised", "method: mean_teacher"),
        ("batch: 2}", "batch: 2}\n      unlabeled: {data: city/more, batch: 2}"),
    )


def huge_png(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG of a few bytes whose header promises 60 000 x 60 000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    project.image(1).write_bytes(content)


def binary_masks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of 0 and 255 for two classes."""
    project.edit(("classes: [road, car, sky, tree, sign]", "classes: [background, car]"))
    for number in range(6):
        values = np.asarray(Image.open(project.mask(number)))
        Image.fromarray(np.where(values == 1, 255, 0).astype(np.uint8)).save(project.mask(number))


def jpeg_masks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that an editor stored as JPEG: along every border are values of no class."""
    project.edit(("splits: {train", "ids: {0: road, 50: car, 100: sky, 150: tree, 200: sign}\n    splits: {train"))
    lines = []
    for number in range(4):
        values = np.roll(50 * np.asarray(Image.open(project.mask(number))), 3, axis=(0, 1))
        Image.fromarray(values).save(project.data / "masks" / f"i{number}.jpg", quality=60)
        lines.append(f"images/{image_name(number)} masks/i{number}.jpg\n")
    (project.data / "train.txt").write_text("".join(lines), encoding="utf-8")


COLOURS = np.zeros((*SIZE, 3), np.uint8)
COLOURS[:24] = (128, 64, 128)
FOLDERS = ("train: train.txt", "train: {images: images, masks: masks}")

RECIPES = [
    Fault("recipe-missing", nothing, ("recipe not found: absent.yaml", "tutelage init"), ("run", "absent.yaml")),
    Fault("recipe-is-a-folder", nothing, ("got a folder: data", "name the recipe file"), ("run", "data")),
    Fault(
        "not-yaml",
        edited(("name: tiny", "name: [tiny")),
        ("invalid-yaml", "recipe.yaml:3", "check indentation"),
    ),
    Fault("no-mapping", written("recipe.yaml", "- a\n- b\n"), ("recipe.yaml", "mapping", "start with")),
    Fault(
        "python-tag",
        edited(("name: tiny", "name: !!python/object:os.system tiny")),
        ("recipe.yaml:2", "python/object", "is not allowed", "write a plain value"),
    ),
    Fault("binary-recipe", written("recipe.yaml", b"\xff\xfe\x00\x01"), ("recipe.yaml", "UTF-8")),
    Fault(
        "key-twice",
        edited(("steps: 2", "steps: 2\n    steps: 3")),
        ("recipe.yaml:18", "duplicate key 'steps'", "keep one"),
    ),
    Fault(
        "unknown-key",
        edited(("steps: 2", "stepz: 2")),
        ("recipe.yaml:17", "'stages.student.stepz'", "did you mean 'steps'?", "tutelage schema"),
    ),
    Fault(
        "wrong-type",
        edited(("steps: 2", "steps: many")),
        ("recipe.yaml:17", "invalid-value", "stages.student.steps", "'many'"),
    ),
    Fault(
        "several-at-once",
        edited(("steps: 2", "steps: -2"), ("width: 32", "widht: 32"), ("nets: [student]", "nets: [studnet]")),
        ("3 errors", "recipe.yaml:17", "recipe.yaml:10", "did you mean 'width'?", "did you mean 'student'?"),
    ),
    Fault(
        "unknown-data",
        edited(("data: city/train", "data: town/train")),
        ("recipe.yaml:16", "no data set 'town'", "(known: city)"),
    ),
    Fault(
        "unknown-split",
        edited(("data: city/train", "data: city/trian")),
        ("'city/trian'", "'city' has no split 'trian'", "did you mean 'train'?", "data.city.splits"),
    ),
    Fault(
        "unknown-net",
        edited(("{student: small}", "{student: smal}")),
        ("recipe.yaml:14", "no net 'smal'", "did you mean 'small'?"),
    ),
    Fault(
        "unknown-stage",
        edited(("nets: [student]", "nets: [teacher]")),
        ("recipe.yaml:18", "unknown-stage", "'teacher'", "(known: student)"),
    ),
    Fault(
        "unknown-method",
        edited(("method: supervised", "method: supervized")),
        ("recipe.yaml:13", "unknown method 'supervized'", "did you mean 'supervised'?"),
    ),
    Fault(
        "unknown-encoder",
        edited(("mobilenetv3_small_050", "mobilenetv3_smal_050")),
        ("net 'small'", "'mobilenetv3_smal_050'", "did you mean mobilenetv3_small_050"),
    ),
    Fault(
        "unknown-decoder",
        edited(("decoder: lraspp", "decoder: lrasp")),
        ("recipe.yaml:10", "nets.small.decoder", "did you mean 'lraspp'?"),
    ),
    Fault(
        "stages-in-a-circle",
        edited(
            ("student:\n    method", "student: &student\n    init: {student: second}\n    method"),
            ("  score:", "  second: {<<: *student, init: {student: student}}\n  score:"),
        ),
        ("recipe.yaml:13", "unknown-stage", "'second'", "(known: none)"),
    ),
    Fault(
        "stage-of-itself",
        edited(("steps: 2\n", "steps: 2\n    init: {student: student}\n")),
        ("recipe.yaml:18", "unknown-stage", "'student'"),
    ),
    Fault(
        "override-misspelt",
        nothing,
        ("command line", "unknown key 'stages.student.stepz'", "did you mean 'steps'?"),
        ("run", "recipe.yaml", "stages.student.stepz=3"),
    ),
    Fault(
        "override-of-a-new-stage",
        nothing,
        ("command line", "missing-key", "'stages.studnet.method'", "did you mean 'student'?"),
        ("run", "recipe.yaml", "stages.studnet.steps=3"),
    ),
    Fault(
        "override-without-value",
        nothing,
        ("invalid-override", "'stages.student.steps'"),
        ("run", "recipe.yaml", "stages.student.steps"),
    ),
    Fault(
        "only-of-no-stage",
        nothing,
        ("no stage 'teacher'", "student, score"),
        ("run", "recipe.yaml", "--only", "teacher"),
    ),
    Fault("from-the-future", edited(("tutelage: 1", "tutelage: 2")), ("recipe.yaml:1", "newer", "update tutelage")),
    Fault(
        "init-of-no-role",
        edited(("steps: 2\n", "steps: 2\n    init: {pupil: big.pt}\n")),
        ("recipe.yaml:18", "no net has the role 'pupil'", "student"),
    ),
    Fault(
        "split-for-no-data",
        nothing,
        ("no data set 'town'", "(known: city)", "name one of the recipe's data sets"),
        ("split", "recipe.yaml", "--data", "town", "--out", "lists"),
    ),
    Fault("size-of-no-image", nothing, ("size '512'", "512x1024"), ("models", "--size", "512")),
    Fault("count-of-no-split", nothing, ("'train'", "train=200"), ("toycity", "city", "--splits", "train")),
    Fault("no-such-run-folder", nothing, ("run folder not found: nowhere", "runs/demo"), ("clean", "nowhere")),
    Fault("no-such-image-folder", nothing, ("nowhere",), ("init", "--images", "nowhere", "--out", "new.yaml")),
    Fault(
        "recipe-is-there-already",
        nothing,
        ("recipe.yaml", "--force"),
        ("init", "--images", "data/images", "--masks", "data/masks"),
    ),
]

DATA = [
    Fault("data-folder-missing", removed("data"), ("data folder not found", "/data", "data.city.root")),
    Fault(
        "image-folder-missing",
        all_of(edited(FOLDERS), removed("data/images")),
        ("folder not found", "data/images", "check the path"),
    ),
    Fault(
        "image-folder-empty",
        all_of(edited(FOLDERS), removed("data/images"), folder_at("data/images")),
        ("data/images", ".png"),
    ),
    Fault(
        "mask-missing-in-a-folder",
        all_of(edited(FOLDERS), removed("data/masks/i1.png")),
        ("1 of 6 images have no mask", "i1.png", "mask_suffix"),
    ),
    Fault(
        "mask-missing-in-a-list",
        removed("data/masks/i1.png"),
        ("train.txt:2: file not found", "masks/i1.png", ".root"),
    ),
    Fault(
        "mask-lost-in-scoring",
        removed("data/masks/i5.png"),
        ("stage 'score', data city/val", "1 of 2 masks", "val.txt:2", "masks/i5.png"),
    ),
    Fault(
        "mask-lost-in-a-split",
        removed("data/masks/i1.png"),
        ("split, data city/train: 1 of 4 masks", "train.txt:2: file not found"),
        ("split", "recipe.yaml", "--data", "city/train", "--few", "1/2", "--out", "lists"),
    ),
    Fault(
        "groups-whole-and-shared-out",
        edited(("[road, car, sky, tree, sign]", "[road, car, sky, tree, sign]\n    group: '(i)'")),
        ("--by-group", "--stratify group"),
        (
            "split",
            "recipe.yaml",
            "--data",
            "city/train",
            "--by-group",
            "--stratify",
            "group",
            "--few",
            "1/2",
            "--out",
            "lists",
        ),
    ),
    Fault(
        "shared-out-without-groups",
        nothing,
        ("data.city.group",),
        ("split", "recipe.yaml", "--data", "city/train", "--stratify", "group", "--few", "1/2", "--out", "lists"),
    ),
    Fault(
        "list-empty-of-unlabelled-images",
        all_of(semi_supervised, written("data/more.txt", "# none yet\n")),
        ("list file names no image", "more.txt", "IMAGE LABEL"),
    ),
    Fault(
        "folder-empty-of-unlabelled-images",
        all_of(semi_supervised, edited(("more: more.txt", "more: {images: more}")), folder_at("data/more")),
        ("data/more", ".png"),
    ),
    Fault("list-missing", removed("data/train.txt"), ("list file not found", "train.txt", "tutelage split")),
    Fault("list-empty", written("data/train.txt", ""), ("names no image", "train.txt", "IMAGE LABEL")),
    Fault("list-of-remarks", written("data/train.txt", "# none\n\n"), ("names no image", "train.txt")),
    Fault("list-is-no-text", written("data/train.txt", b"\xff\xfe\x00"), ("train.txt", "UTF-8")),
    Fault(
        "image-twice-in-a-list",
        written("data/train.txt", "images/i1.png masks/i1.png\nimages/i1.png masks/i1.png\n"),
        ("train.txt", "'images/i1'"),
    ),
    Fault(
        "list-line-without-mask",
        written("data/train.txt", "images/i1.png masks/i1.png\nimages/i2.png\n"),
        ("stream 'labeled', data city/train", "1 of 2 images have no mask", "images/i2.png"),
    ),
    Fault(
        "mask-value-of-no-class",
        image_of("data/masks/i1.png", np.full(SIZE, 7, np.uint8)),
        (": 7", "masks/i1.png", "expected 0, 1, 2, 3, 4, 255", "data.city.ids"),
    ),
    Fault(
        "mask-of-colours",
        image_of("data/masks/i1.png", COLOURS),
        ("masks/i1.png", "128,64,128", "data.city.colours"),
    ),
    Fault(
        "mask-of-another-size",
        image_of("data/masks/i1.png", np.zeros((24, 32), np.uint8)),
        ("masks/i1.png", " 0.5 ", "one size"),
    ),
    Fault(
        "mask-value-of-no-class-in-scoring",
        image_of("data/masks/i4.png", np.full(SIZE, 7, np.uint8)),
        ("masks/i4.png", "7 (3072 pixels)", "others: ignore"),
    ),
    Fault("mask-cut-short", cut("data/masks/i1.png"), ("cannot be read", "masks/i1.png", "replace the files")),
    Fault("mask-of-zero-bytes", written("data/masks/i1.png", ""), ("is empty (0 bytes)", "masks/i1.png", "replace")),
    Fault("masks-stored-as-jpeg", jpeg_masks, ("stored as JPEG", "masks/i0.jpg", "as PNG")),
    Fault("masks-of-0-and-255", binary_masks, ("hold only 0 and 255", "255: car", ".ignore: []")),
    Fault(
        "ignored-value-is-a-class",
        edited(("splits: {train", "ignore: [3]\n    splits: {train")),
        ("data.city: ", "value 3 ", "data.city.ids"),
    ),
    Fault(
        "class-twice",
        edited(("tree, sign]", "tree, tree]")),
        ("data.city: ", ": tree", "its own name"),
    ),
    Fault(
        "class-file-missing", edited(("[road, car, sky, tree, sign]", "names.json")), ("names.json", "list the names")
    ),
    Fault("image-png-cut-short", cut("data/images/i1.png"), ("images/i1.png", "replace")),
    Fault("image-jpeg-cut-short", cut("data/images/i0.jpg"), ("images/i0.jpg", "replace")),
    Fault("image-of-zero-bytes", written("data/images/i1.png", ""), ("is empty (0 bytes)", "images/i1.png", "replace")),
    Fault("image-is-a-folder", folder_at("data/images/i1.png"), ("images/i1.png", "Is a directory")),
    Fault(
        "image-is-a-text",
        written("data/images/i1.png", "no picture\n"),
        ("images/i1.png", "replace the file"),
    ),
    Fault("image-beyond-all-size", huge_png, ("too large to decode", "images/i1.png", "into tiles")),
    Fault(
        "list-of-nothing-in-common",
        written("data/train.txt", "a.png b.png\n"),
        ("train.txt:1: file not found", "a.png"),
    ),
]


def weights(content: Callable[[], Any], name: str = "weights.pt") -> Plant:
    """Plants a weight file, and its name in the recipe's net."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        project.edit(("width: 32", f"width: 32, weights: {name}"))
        torch.save(content(), project.root / name)

    return plant


class Bomb:
    """Unpickled, it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def own_weights() -> dict[str, torch.Tensor]:
    """The project's net, as a file of another library would hold it."""
    return build(NET, 5, seed=3).state_dict()


def half_weights() -> dict[str, torch.Tensor]:
    """Those of a wider net: most tensors have other shapes."""
    return build(NET.model_copy(update={"encoder": "mobilenetv3_small_075"}), 5, seed=3).state_dict()


def raising(error: Exception) -> Plant:
    """Plants an error inside the method."""

    def forward(self: Supervised, *arguments: Any) -> Any:
        raise error

    return lambda project, monkeypatch: monkeypatch.setattr(Supervised, "forward", forward)


def scored(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the scores of one net under two protocols."""
    net_of()(project, monkeypatch)
    for name, protocol in (("whole", ()), ("sliding", ("kind=sliding", "window=[48,48]"))):
        command = ["evaluate", "net.safetensors", "--images", "data/images", "--masks", "data/masks", "--out", name]
        assert project.tutelage(*command, *(["--protocol", *protocol] if protocol else [])).status == 0


def full_disk(name: str = "") -> Plant:
    """Plants a disk that has no room for files whose path holds ``name``."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        replace = os.replace

        def refuse(source: Path, target: Path) -> None:
            if name in str(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)

    return plant


def read_only(name: str) -> Plant:
    """Plants a folder that may not be written to, also where root may do everything."""

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        (project.root / name).mkdir(mode=0o555)
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and access(path, mode))

    return plant


OUT_OF_MEMORY = ("stage 'student': out of memory", "error[out-of-memory]", "accumulate", "bf16")
EVALUATE = ("evaluate", "net.safetensors", "--recipe", "recipe.yaml", "--data", "city/val")

RUNS = [
    Fault(
        "weights-missing",
        edited(("width: 32", "width: 32, weights: none.pt")),
        ("net 'small'", "none.pt", "packaged"),
    ),
    Fault(
        "weights-cut-short",
        all_of(weights(own_weights), cut("weights.pt")),
        ("weights.pt", "compare its size"),
    ),
    Fault(
        "weights-cut-short-safetensors",
        all_of(edited(("width: 32", "width: 32, weights: net.safetensors")), net_of(), cut("net.safetensors")),
        ("net.safetensors", "compare its size"),
    ),
    Fault(
        "weights-of-another-encoder",
        weights(half_weights),
        ("weights.pt", "encoder mobilenetv3_small_050", "90% of its parameters", "mismatched"),
    ),
    Fault(
        "weights-without-tensors",
        weights(lambda: {"epoch": 3}),
        ("weights.pt", "torch.save(net.state_dict(), path)"),
    ),
    Fault(
        "weights-packed-for-another-encoder",
        edited(("width: 32", "width: 32, weights: packaged")),
        ("no packaged weights for encoder mobilenetv3_small_050", "tf_efficientnet_lite0"),
    ),
    Fault(
        "batch-of-one",
        edited(("batch: 2", "batch: 1"), ("decoder: lraspp", "decoder: deeplabv3plus")),
        ("stage 'student': batch norm", "of one", "at least two images", "lraspp"),
    ),
    Fault(
        "batch-not-to-be-dealt",
        edited(("steps: 2", "steps: 2\n    accumulate: 3")),
        ("stream 'labeled'", "multiple of 3", "got 2"),
    ),
    Fault(
        "images-of-many-sizes",
        all_of(
            image_of("data/images/i1.png", np.zeros((24, 32, 3), np.uint8)),
            image_of("data/masks/i1.png", np.zeros((24, 32), np.uint8)),
        ),
        ("stream 'labeled'", "augment.crop"),
    ),
    Fault("no-such-device", nothing, ("device 'cuda:7'", "cpu"), ("run", "recipe.yaml", "run.device=cuda:7")),
    Fault(
        "half-precision-without-gpu",
        edited(("steps: 2", "steps: 2\n    precision: fp16")),
        ("precision fp16 needs a GPU", "bf16"),
        ("run", "recipe.yaml", "run.device=cpu"),
    ),
    Fault("out-of-memory-gpu", raising(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")), OUT_OF_MEMORY),
    Fault(
        "out-of-memory-cpu",
        raising(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")),
        OUT_OF_MEMORY,
    ),
    Fault("out-of-memory-python", raising(MemoryError()), OUT_OF_MEMORY),
    Fault("run-folder-is-a-file", written("runs", "a file"), ("run folder", "runs", "out=")),
    Fault(
        "run-folder-below-a-file",
        written("place", "a file"),
        ("run folder", "place/here", "out="),
        ("run", "recipe.yaml", "out=place/here"),
    ),
    Fault("run-folder-read-only", read_only("runs"), ("run-folder", "runs", "out=")),
    Fault("disk-full-at-once", full_disk(), ("the disk is full", "runs", "free some space")),
    Fault(
        "disk-full-for-lists",
        full_disk(),
        ("the disk is full", "lists", "free some space"),
        ("split", "recipe.yaml", "--data", "city/train", "--parts", "a=2,b=2", "--out", "lists"),
    ),
    Fault(
        "disk-full-for-scenes",
        full_disk(),
        ("the disk is full", "city", "free some space"),
        ("toycity", "city", "--splits", "train=1", "--size", "32x64"),
    ),
    Fault(
        "disk-full-for-a-recipe",
        full_disk("new.yaml"),
        ("the disk is full", "new.yaml", "free some space"),
        ("init", "--images", "data/images", "--masks", "data/masks", "--out", "new.yaml"),
    ),
    Fault(
        "disk-full-for-pictures",
        full_disk(),
        ("the disk is full", "shown", "free some space"),
        ("show", "recipe.yaml", "--out", "shown", "--count", "1"),
    ),
    Fault(
        "disk-full-for-predictions",
        all_of(net_of(), full_disk()),
        ("here", "No space left", "folder"),
        ("predict", "net.safetensors", "data/images", "--out", "here"),
    ),
    Fault(
        "lists-into-a-file",
        written("lists", "a file"),
        ("lists", "name another place"),
        ("split", "recipe.yaml", "--data", "city/train", "--parts", "a=2,b=2", "--out", "lists"),
    ),
    Fault(
        "lists-are-there-already",
        written("lists/a.txt", "mine"),
        ("lists/a.txt", "--force"),
        ("split", "recipe.yaml", "--data", "city/train", "--parts", "a=2,b=2", "--out", "lists"),
    ),
    Fault(
        "evaluate-a-net-with-other-classes",
        net_of("road", "car", "sky"),
        ("net.safetensors", "classes road, car, sky", "tree, sign", "bridge"),
        EVALUATE,
    ),
    Fault("evaluate-without-data", net_of(), ("no data", "--recipe and --data"), EVALUATE[:2]),
    Fault("evaluate-on-no-data-set", net_of(), ("no data set 'town'", "city"), (*EVALUATE[:-1], "town/val")),
    Fault("evaluate-no-net", nothing, ("net.safetensors", ".safetensors"), EVALUATE),
    Fault(
        "evaluate-with-no-protocol",
        net_of(),
        ("kind", "'slidng'", "did you mean 'sliding'?"),
        (*EVALUATE, "--protocol", "kind=slidng"),
    ),
    Fault(
        "predict-without-images",
        all_of(net_of(), folder_at("photos")),
        ("no images in", "photos", ".png"),
        ("predict", "net.safetensors", "photos", "--out", "here"),
    ),
    Fault(
        "predict-without-folder",
        net_of(),
        ("photos", "check the path"),
        ("predict", "net.safetensors", "photos", "--out", "here"),
    ),
    Fault(
        "predict-with-no-net",
        written("net.safetensors", "no net"),
        ("net.safetensors", "train the net again"),
        ("predict", "net.safetensors", "data/images", "--out", "here"),
    ),
    Fault(
        "predict-with-a-folder-without-net",
        nothing,
        ("no net in data", ".safetensors"),
        ("predict", "data", "data/images", "--out", "here"),
    ),
    Fault(
        "predict-into-a-file",
        all_of(net_of(), written("here", "a file")),
        ("here", "another folder"),
        ("predict", "net.safetensors", "data/images", "--out", "here"),
    ),
    Fault(
        "predict-what",
        net_of(),
        ("'pallete'", "palette"),
        ("predict", "net.safetensors", "data/images", "--out", "here", "--write", "pallete"),
    ),
    Fault(
        "compare-different-protocols",
        scored,
        ("whole/net.json", "sliding/net.json", "differ in the protocol", "with one protocol"),
        ("compare", "whole/net.json", "sliding/net.json"),
    ),
    Fault("compare-no-scores", nothing, ("no scores", "nowhere"), ("compare", "nowhere", "nothing")),
]


@pytest.mark.parametrize("fault", [*RECIPES, *DATA, *RUNS], ids=lambda fault: fault.name)
def test_a_fault_is_one_message_with_its_remedy(
    fault: Fault, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_fault(fault, project, monkeypatch)


def test_a_fault_of_tutelage_itself_names_the_way_to_the_traceback(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(ValueError("odd"))(project, monkeypatch)
    ran = project.tutelage("run", "recipe.yaml", "--quiet")
    assert ran.status == 1
    assert re.match(r"error\[[a-z-]+\]: ValueError: odd\n", ran.err)
    assert "--debug" in ran.err
    for command in (("--debug", "run", "recipe.yaml"), ("run", "recipe.yaml", "--debug")):
        with pytest.raises(ValueError, match="odd"):
            project.tutelage(*command)


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_traceback_of_a_known_fault_too(debug: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tutelage", *(["--debug"] if debug else []), "toycity", "city", "--splits", "all"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ("Traceback (most recent call last)" in ran.stderr) == debug
    assert "invalid splits 'all'; expected name=count" in ran.stderr


def test_an_unreadable_image_is_skipped_when_told_to(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cut("data/images/i1.png")(project, monkeypatch)
    assert project.tutelage("run", "recipe.yaml", "--only", "student").status == 1
    assert project.finished() == set()
    ran = project.tutelage("run", "recipe.yaml", "--only", "student", "run.on_unreadable=skip")
    assert ran.status == 0
    assert len(project.finished()) == 1


def test_an_unreadable_unlabelled_image_is_named_or_skipped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("images/i4.png",)
    check_fault(Fault("cut", all_of(semi_supervised, cut("data/images/i4.png")), words), project, monkeypatch)
    ran = project.tutelage("run", "recipe.yaml", "--only", "student", "run.on_unreadable=skip")
    assert ran.status == 0
    assert len(project.finished()) == 1


def test_a_pickle_is_refused_and_never_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("weights.pt", "could run code")
    check_fault(Fault("bomb", weights(lambda: {"model": Bomb()}), words), project, monkeypatch)
    refused = project.tutelage("predict", "weights.pt", "data/images", "--out", "here")
    assert refused.status == 1
    assert "weights.pt" in refused.err
    trace = project.root / "exploded"
    assert not trace.exists()
    torch.load(project.root / "weights.pt", weights_only=False)
    assert trace.exists()  # it was a bomb


def test_a_loss_that_is_not_finite_names_term_step_and_images_and_keeps_the_batch(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Supervised.forward

    def poisoned(self: Supervised, batches: Any, pass_name: str, context: Any) -> dict[str, torch.Tensor]:
        factor = float("nan") if context.step == 1 else 1.0
        return {name: factor * term for name, term in forward(self, batches, pass_name, context).items()}

    def plant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Supervised, "forward", poisoned)

    words = (
        "loss term cross_entropy is not finite at step 1 (pass 'train')",
        "images: train:images/i",
        "the batch is saved in",
        "lower the learning rate",
    )
    ran = check_fault(Fault("nan", plant, words), project, monkeypatch)
    saved = Path(ran.err.partition("the batch is saved in ")[2].splitlines()[0])
    batch = load_file(saved)
    assert {tuple(value.shape[-2:]) for value in batch.values()} == {SIZE}
    images = next(value for name, value in batch.items() if name.endswith(".image"))
    assert images.shape == (2, 3, *SIZE)
    assert bool(torch.isfinite(images).all())


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_as_if_nothing_had_happened(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.edit(("steps: 2", "steps: 4\n    checkpoint_every: 1"))
    with monkeypatch.context() as patch:
        words = ("stage 'student': the disk is full", "checkpoint-000000003", "tutelage clean", "same command again")
        check_fault(Fault("full", full_disk("checkpoint-000000003"), words), project, patch)
    assert sorted(path.stem for path in project.root.rglob("checkpoint-*.json")) == [
        "checkpoint-000000001",
        "checkpoint-000000002",
    ]
    resumed = project.tutelage("run", "recipe.yaml", "--only", "student")
    assert resumed.status == 0
    assert "resuming after step 2" in resumed.out
    assert project.tutelage("run", "recipe.yaml", "--only", "student", "out=whole").status == 0
    contents = {path.read_bytes() for path in project.root.rglob("student.safetensors")}
    assert len(list(project.root.rglob("student.safetensors"))) == 2
    assert len(contents) == 1


def test_a_net_with_other_classes_may_be_started_from_and_that_is_said(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    net_of("road", "car", "sky")(project, monkeypatch)
    project.edit(("steps: 2", "steps: 2\n    init: {student: net.safetensors}"))
    ran = project.tutelage("run", "recipe.yaml", "--only", "student")
    assert ran.status == 0
    assert "net student starts from net.safetensors" in ran.out
    assert "100.0% of the encoder's parameters" in ran.out
    assert "(3 classes in the source, 5 here)" in ran.out


@pytest.mark.parametrize("decoder", ["lraspp", "pspnet", "segformer"])
def test_a_batch_of_one_trains_where_no_norm_sees_a_single_value(decoder: str, project: Project) -> None:
    project.edit(("batch: 2", "batch: 1"), ("decoder: lraspp", f"decoder: {decoder}"))
    assert project.tutelage("run", "recipe.yaml", "--only", "student", "stages.student.steps=1").status == 0


def test_an_image_of_one_pixel_is_an_image(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.zeros((1, 1), np.uint8)
    for number in range(4):
        image_of(f"data/images/{image_name(number)}", one)(project, monkeypatch)
        image_of(f"data/masks/i{number}.png", one)(project, monkeypatch)
    project.edit(("batch: 2", "batch: 2, augment: {crop: [32, 32]}"))
    assert project.tutelage("run", "recipe.yaml").status == 0
    net = next(project.root.rglob("student.safetensors"))
    assert project.tutelage("predict", str(net), "data/images/i1.png", "--out", "here").status == 0
    assert Image.open(project.root / "here" / "i1.png").size == (1, 1)


def test_blanks_and_letters_of_all_scripts_in_paths_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Büro 東京 (1)" / "l'été #2"
    write_project(root)
    monkeypatch.chdir(root)
    project = Project(root, capsys)
    for split in ("train", "val"):
        entries = []
        for line in (root / "data" / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            renamed = []
            for name in line.split():
                place = root / "data" / name
                place.rename(place.with_name(f"Straße {place.name}"))
                renamed.append(f"{place.parent.name}/Straße {place.name}")
            entries.append("\t".join(renamed))
        (root / "data" / f"{split}.txt").write_text("\n".join(entries), encoding="utf-8")
    project.edit(("out: runs", "out: Läufe und mehr"))
    assert project.tutelage("run", "recipe.yaml").status == 0
    assert len(project.finished()) == 2
    net = next(root.rglob("student.safetensors"))
    assert project.tutelage("predict", str(net), "data/images", "--out", "Ergebnisse hier").status == 0
    assert (root / "Ergebnisse hier" / "Straße i1.png").is_file()
    report = "stages.page={kind: report, scores: score}"
    assert project.tutelage("run", "recipe.yaml", report).status == 0
    assert (root / "Läufe und mehr" / "report.html").is_file()
