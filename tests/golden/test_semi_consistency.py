"""Folder semi_baselines: FixMatch and UniMatch, whole steps of them with nets that answer what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tests.methods.cases import CPU, context
from tutelage.data.augmentation import AugmentSettings, Geometry, draw_geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.mixing.cutmix import AREA, ASPECT, NOWHERE, Box, box_masks, box_size
from tutelage.engine.contract import TaskInfo
from tutelage.methods import strong_views
from tutelage.methods.fixmatch import FixMatch
from tutelage.methods.strong_views import StrongViewMethod
from tutelage.methods.unimatch import UniMatch
from tutelage.methods.unimatch_v2 import UniMatchV2, complementary_scale
from tutelage.nets.segmentor import Features, Prediction

File = dict[str, NDArray]


class Answers(nn.Module):
    """A net of stride 1 that gives stored logits in the order in which it is asked, and keeps the images."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Tensor] = []
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image))

    def encode(self, image: Tensor) -> Features:
        self.seen.append(image)
        return Features((image,), (image.shape[2], image.shape[3]))

    def decode(self, features: Features) -> Prediction:
        logits = self.answers.pop(0)
        assert len(logits) == len(features.levels[0])
        return Prediction(logits, logits, (), None, {})


class Leaves:
    """The file's logits as leaves."""

    def __init__(self, file: File) -> None:
        self.of = {key: tensor(file[key]).requires_grad_() for key in file if key.startswith("logits_")}

    def __getitem__(self, names: str | Sequence[str]) -> Tensor:
        return torch.cat([self.of[f"logits_{name}"] for name in names.split()])  # type: ignore[union-attr]


def view(image: Tensor, ignored: NDArray | None = None, label: NDArray | None = None) -> View:
    size = (image.shape[2], image.shape[3])
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * len(image))
    valid = torch.ones(len(image), *size, dtype=torch.bool) if ignored is None else tensor(ignored) != 255
    return View(image, valid, {} if label is None else {"label": labels(label)}, geometry)


def batches(file: File, strong: dict[str, str]) -> dict[str, Batch]:
    """The labelled images are not stored: nets answer without looking."""
    label = view(torch.zeros(len(file["target_l"]), 3, *file["target_l"].shape[1:]), label=file["target_l"])
    image = tensor(next(iter(file[key] for key in strong.values())))
    views = {"weak": view(torch.zeros_like(image), file["ignore_mask"])}
    views |= {name: view(tensor(file[key]), file["ignore_mask"]) for name, key in strong.items()}
    return {
        "labeled": Batch({"weak": label}, torch.arange(len(label.image))),
        "unlabeled": Batch(views, torch.arange(len(image))),
    }


def method(kind: Any, file: File, **settings: Any) -> Any:
    info = TaskInfo(file["logits_l"].shape[1])
    return kind({"student": Answers()}, kind.Settings(threshold=float(file["conf_thresh"]), **settings), info)


def with_draws(patch: pytest.MonkeyPatch, file: File, boxes: Sequence[str], mixes: Sequence[str] = ()) -> None:
    """The file's boxes in the order of the views and, where its partners are other images than the batch's, these."""
    masks = [tensor(file[name]) > 0 for name in boxes]
    patch.setattr(strong_views, "box_masks", lambda *given: masks.pop(0))
    if mixes:
        images = [tensor(file[name]) for name in mixes]
        ignored = tensor(file["ignore_mask_mix"])

        def partners(values: Tensor, rule: str) -> Tensor:
            if values.ndim == 4:
                return images.pop(0)
            return ignored != 255 if values.dtype == torch.bool else values

        patch.setattr(strong_views, "partners", partners)


def checked_step(made: StrongViewMethod, file: File, given: dict[str, Batch], leaves: Leaves) -> dict[str, Tensor]:
    """The terms, after total loss and gradients were compared."""
    terms = made(given, "train", context(made, given))
    assert_values(2 * terms["cross_entropy"], file["loss_sup"], absolute=1e-4)
    total = torch.stack(list(terms.values())).sum()
    assert_values(total, file["loss_total"], absolute=1e-4)
    total.backward()
    for key, value in file.items():
        if key.startswith("grad_"):
            gradient = leaves.of[key.removeprefix("grad_")].grad
            assert_gradient(torch.zeros_like(tensor(value)) if gradient is None else gradient, value)
    return terms


def assert_targets(made: StrongViewMethod, file: File, found: list[Any], suffixes: Sequence[str]) -> None:
    """What was pasted: pseudo labels, their confidence and the padding, in the order of the views."""
    for target, suffix, ignored in zip(found, suffixes, (f"ignore{s or '_mixed'}" for s in suffixes), strict=True):
        np.testing.assert_array_equal(target.label.numpy(), file[f"pseudo{suffix}"])
        assert_values(target.confidence, file[f"conf{suffix}"], absolute=1e-4)
        np.testing.assert_array_equal(target.valid.numpy(), file[ignored] != 255)


def noted_targets(made: Any) -> list[Any]:
    """Fills with what the method compares logits with, in turn."""
    found: list[Any] = []
    original = made.consistency
    made.consistency = lambda logits, image, target: (found.append(target), original(logits, image, target))[1]
    return found


@pytest.mark.parametrize("name", ["fixmatch"])
def test_fixmatch(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"semi_baselines/{name}")
    made, leaves, given = method(FixMatch, file), Leaves(file), batches(file, {"strong": "image_u_s"})
    with_draws(monkeypatch, file, ["box"], ["image_u_s_mix"])
    together = file["logits_l"].shape[2:] == file["logits_u_weak"].shape[2:]
    weak = [leaves["l u_weak"]] if together else [leaves["l"], leaves["u_weak"]]
    made.student.answers = [leaves["u_weak_mix"], *weak, leaves["u_s"]]
    found = noted_targets(made)
    terms = checked_step(made, file, given, leaves)
    assert_values(2 * terms["strong"], file["loss_s"], absolute=1e-4)
    assert_values(made.student.seen[-1], file["image_u_s_pasted"])
    assert_targets(made, file, found, [""])


@pytest.mark.parametrize("name", ["unimatch_v1"])
def test_unimatch_v1(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"semi_baselines/{name}")
    made, leaves = method(UniMatch, file), Leaves(file)
    given = batches(file, {"strong": "image_u_s1", "strong2": "image_u_s2"})
    with_draws(monkeypatch, file, ["box1", "box2"], ["image_u_s1_mix", "image_u_s2_mix"])
    together = file["logits_l"].shape[2:] == file["logits_u_weak"].shape[2:]
    unused = torch.zeros_like(leaves["l"])  # what the perturbed features of labelled images give
    weak = torch.cat((leaves["l u_weak"], unused, leaves["u_fp"])) if together else None
    made.student.answers = [
        leaves["u_weak_mix"],
        *([weak] if weak is not None else [leaves["l"], leaves["u_weak u_fp"]]),
        leaves["u_s1 u_s2"],
    ]
    found = noted_targets(made)
    terms = checked_step(made, file, given, leaves)
    for term, share, loss in (("strong", 8, "loss_s1"), ("strong2", 8, "loss_s2"), ("perturbed", 4, "loss_fp")):
        assert_values(share * terms[term], file[loss], absolute=1e-4)
    for image, number in zip(made.student.seen[-1].chunk(2), "12", strict=True):
        assert_values(image, file[f"image_u_s{number}_pasted"])
    assert_targets(made, file, found[:2], ["1", "2"])


@pytest.mark.parametrize("name", ["unimatch_v2"])
def test_unimatch_v2(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"semi_baselines/{name}")
    made, leaves = method(UniMatchV2, file, complementary_dropout=False), Leaves(file)
    given = batches(file, {"strong": "image_u_s1", "strong2": "image_u_s2"})
    with_draws(monkeypatch, file, ["box1", "box2"])
    made.ema.answers = [leaves["u_weak_teacher"]]
    made.student.answers = [leaves["l"], leaves["u_s1 u_s2"]]
    found = noted_targets(made)
    terms = checked_step(made, file, given, leaves)
    assert_values(2 * (terms["strong"] + terms["strong2"]), file["loss_s"], absolute=1e-4)
    assert_values(4 * terms["strong"], file["loss_s1"], absolute=1e-4)
    assert_values(4 * terms["strong2"], file["loss_s2"], absolute=1e-4)
    for image, number in zip(made.student.seen[-1].chunk(2), "12", strict=True):
        assert_values(image, file[f"image_u_s{number}_pasted"])
    assert_targets(made, file, found, ["1", "2"])


@pytest.mark.parametrize("name", ["complementary_dropout"])
def test_complementary_dropout(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    kept = tensor(file["bernoulli_draw"]) > 0
    whole = torch.zeros(len(kept), 1, dtype=torch.bool)
    whole[tensor(file["permutation"])[: len(kept) // 2]] = True
    scale = complementary_scale(kept, whole)
    np.testing.assert_array_equal(scale.numpy(), file["mask"])
    for key in (key for key in file if key.startswith("feature")):
        assert_values(tensor(file[key]) * scale[:, None], file[key.replace("feature", "out")])


@pytest.mark.parametrize("name", ["cutmix_box"])
def test_cutmix_box(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    assert [float(file[f"area_{end}"]) for end in ("min", "max")] == pytest.approx(AREA)
    assert [float(file[f"aspect_{end}"]) for end in ("min", "max")] == pytest.approx(ASPECT)
    size = (int(file["image_size"]),) * 2
    boxes = [
        Box(int(y), int(x), *box_size(area, aspect, size)) if coin <= file["prob"] else NOWHERE
        for coin, area, aspect, x, y, _ in file["draws"].astype(np.float64)
    ]
    assert all(box.top + box.height <= size[0] and box.left + box.width <= size[1] for box in boxes)
    np.testing.assert_array_equal(box_masks(boxes, size, CPU).numpy(), file["mask"] > 0)


@pytest.mark.parametrize("name", ["resize_rule"])
def test_resize_rule(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    (rows,) = file.values()
    for width, height, long_side, *expected in rows.tolist():
        factor = long_side / max(width, height)
        found = draw_geometry(AugmentSettings(scale=(factor, factor)), (height, width), None, 0, "s", 0).size
        assert list(found[::-1]) == expected
