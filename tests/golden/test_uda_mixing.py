"""Folder uda_baselines: what DACS, DAFormer, HRDA and MIC are made of, and the mixed step of DACS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tests.methods.cases import context
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.mixing.blocks import block_masks, grid_of, hidden
from tutelage.data.mixing.classmix import class_masks
from tutelage.data.settings import ColourSettings
from tutelage.engine.contract import TaskInfo
from tutelage.losses.feature_distance import feature_distance, majority_label, things_mask
from tutelage.methods import mixed_self_training
from tutelage.methods.dacs import DACS
from tutelage.nets.multi_resolution import fuse
from tutelage.nets.segmentor import Prediction

File = dict[str, NDArray]


class Answer(nn.Module):
    """A net of stride 1 that gives stored logits, and keeps the images that it was asked about."""

    stride = 1
    auxiliary = None

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen: list[Tensor] = []

    def mode(self, **declared: Any) -> Answer:
        return self

    def forward(self, image: Tensor) -> Prediction:
        self.seen.append(image)
        return Prediction(self.logits, self.logits, (), None, {})


def batch(image: NDArray, label: NDArray | None = None) -> Batch:
    size = (image.shape[2], image.shape[3])
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * len(image))
    maps = {} if label is None else {"label": labels(label)}
    view = View(tensor(image), torch.ones(len(image), *size, dtype=torch.bool), maps, geometry)
    return Batch({"weak": view}, torch.arange(len(image)))


def chosen_scores(file: File, classes: int) -> Tensor:
    """Scores with which the file's classes are drawn: theirs are the smallest."""
    score_BL = torch.ones(len(file["chosen_classes"]), classes + 1)
    for row, chosen in zip(score_BL, file["chosen_classes"], strict=True):
        row[torch.from_numpy(chosen[chosen >= 0]).clamp(max=classes)] = 0.0
    return score_BL


@pytest.mark.parametrize("name", ["dacs_classmix"])
def test_classmix_masks(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")
    score_BL = chosen_scores(file, file["teacher_logits"].shape[1])
    mask_BHW = class_masks(labels(file["source_label"]), score_BL)
    np.testing.assert_array_equal(mask_BHW.numpy(), file["mix_mask"] > 0)


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("name", ["dacs_classmix"])
def test_a_mixed_step(golden: Golden, name: str, margins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"uda_baselines/{name}")
    made, given, seen = mixed_step(
        file,
        monkeypatch,
        margins={"of": "crop", "top": int(file["ignore_top"]), "bottom": int(file["ignore_bottom"])} if margins else {},
    )
    logits = made.student.logits
    counted = context(made, given)
    confident = counted.totals["sure"] / counted.totals["shown"]
    assert_values(confident, file["confident_fraction"])
    pseudo = made.pseudo_labels.of(given["target"])
    np.testing.assert_array_equal(pseudo.label_BHW.numpy(), file["pseudo_label"])
    np.testing.assert_array_equal(pseudo.sure_BHW.numpy(), file["pseudo_confidence"] >= file["threshold"])
    loss = made(given, "mixed", counted)["mixed"]
    ending = "_margins" if margins else ""
    assert_values(loss, file[f"mix_loss{ending}"])
    assert_values(made.student.seen[-1], file["mixed_image"])
    label_BHW, weight_BHW = seen[-1]
    np.testing.assert_array_equal(label_BHW.numpy(), file["mixed_label"])
    assert_values(weight_BHW, file[f"mixed_weight{ending}"])
    loss.backward()
    if not margins:
        assert_gradient(logits.grad, file["mix_grad"])


@pytest.mark.parametrize("name", ["dacs_classmix"])
def test_sure_pixels_alone(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"uda_baselines/{name}")
    made, given, seen = mixed_step(file, monkeypatch, weighting="pixel")
    made(given, "mixed", context(made, given))
    mask, target = file["mix_mask"], file["threshold_mode_weight"]
    assert_values(seen[-1][1], mask + (1 - mask) * target)


def mixed_step(file: File, patch: pytest.MonkeyPatch, **settings: Any) -> tuple[Any, dict[str, Batch], list[Any]]:
    """DACS with the file's logits and draws, its batches, and what its loss is asked to compare with."""
    classes = file["teacher_logits"].shape[1]
    student = Answer(tensor(file["student_logits"]).requires_grad_())
    info, plain = TaskInfo(classes), ColourSettings()
    told = DACS.Settings(threshold=float(file["threshold"]), colour=plain, **settings)
    with patch.context() as without:
        without.setattr(mixed_self_training, "twin", lambda net: Answer(tensor(file["teacher_logits"])))
        made = DACS({"student": student}, told, info)  # type: ignore[dict-item]
    patch.setattr(mixed_self_training, "draw_scores", lambda *given: chosen_scores(file, classes))
    seen: list[Any] = []
    original = made.pseudo_label_loss
    made.pseudo_label_loss = lambda image, label, weight, context: (  # type: ignore[method-assign]
        seen.append((label, weight)),  # type: ignore[func-returns-value]
        original(image, label, weight, context),
    )[1]
    given = {"source": batch(file["source_image"], file["source_label"]), "target": batch(file["target_image"])}
    return made, given, seen


@pytest.mark.parametrize("name", ["feature_distance"])
def test_feature_distance(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")
    classes, grid = int(file["num_classes"]), file["features"].shape[2:]
    label_Bhw = majority_label(labels(file["label"]), int(file["scale_factor"]), classes, float(file["min_ratio"]))[
        :, : grid[0], : grid[1]
    ]
    np.testing.assert_array_equal(label_Bhw.numpy(), labels(file["downscaled_label"]).numpy())
    thing_K = torch.zeros(classes, dtype=torch.bool)
    thing_K[labels(file["thing_classes"])] = True
    mask_Bhw = things_mask(label_Bhw, thing_K)
    np.testing.assert_array_equal(mask_Bhw.numpy(), file["mask"] > 0)
    features, origin = tensor(file["features"]).requires_grad_(), tensor(file["imagenet_features"])
    weight = float(file["weight"])
    loss = weight * feature_distance(features, origin, mask_Bhw)
    loss.backward()
    assert_values(weight * feature_distance(features, origin), file["loss_all_pixels"])
    if mask_Bhw.any():
        assert_values(loss, file["loss"])
        assert_gradient(features.grad, file["grad"])
    else:  # published: NaN
        assert loss.item() == 0
        assert not features.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["hrda_fusion"])
def test_hrda_fusion(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")
    context, detail = tensor(file["lr_logits"]), tensor(file["hr_logits"])
    attention = tensor(file["attention_logits"]).sigmoid()
    unit = round(float(file["output_stride"]) / float(file["scales"].min()))
    top, bottom, left, right = (int(side) for side in file["crop_box_y1y2x1x2"])
    assert tuple(detail.shape[2:]) == tuple(2 * side // unit for side in (bottom - top, right - left))
    corner = (top // unit, left // unit)
    assert_values(fuse(context, detail, attention, corner), file["fused_logits"])
    attended = F.interpolate(tensor(file["lr_logits_attended"]), scale_factor=2.0, mode="bilinear")
    assert_values(fuse(context, torch.zeros_like(detail), attention, corner), attended.numpy())


@pytest.mark.parametrize("name", ["mic_mask"])
def test_mic_mask(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")
    image, uniform = tensor(file["image"]), tensor(file["random_grid"])
    size = (image.shape[2], image.shape[3])
    assert grid_of(size, int(file["block_size"])) == tuple(uniform.shape[1:])
    mask = block_masks(uniform, size, float(file["mask_ratio"]))
    np.testing.assert_array_equal(mask.numpy(), file["mask"] > 0)
    np.testing.assert_array_equal(hidden(image, mask, torch.zeros(1, 3, 1, 1)).numpy(), file["masked_image"])
