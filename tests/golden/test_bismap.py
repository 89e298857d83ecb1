"""Folder bismap: losses, rates, the masked view, scores, and the nets' parts with weights of a formula.

Prototypes, pseudo labels and weights of the source are in ``test_bismap_mixtures.py``.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.data import randaugment
from tutelage.data.augmentation import Geometry, take_map
from tutelage.data.batch import Geometries, warp
from tutelage.data.randaugment import CutoutSettings, alter, draw_alteration
from tutelage.engine.settings import ScheduleSettings
from tutelage.evaluation.confusion import Confusion, scores_of, subset_mean
from tutelage.losses.consistency import masked_divergence, ramp_up
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import weighted_cross_entropy
from tutelage.losses.symmetric import mean_kd, symmetric_cross_entropy
from tutelage.nets.build import build
from tutelage.nets.encoders import MEAN_STD
from tutelage.nets.multigrid_deeplab import MultigridDeepLab
from tutelage.nets.published.simclr import CHANNELS, Bottleneck, SelectiveKernel, SimCLRResNet
from tutelage.nets.settings import NetSettings

Arrays = dict[str, NDArray]
IGNORE = 250
LOSS, NET = 1e-4, 1e-4


def given(file: Arrays, name: str) -> Tensor:
    """An input whose gradient is asked for."""
    return tensor(file[name]).requires_grad_()


def assert_loss(value: Tensor, inputs: Tensor, file: Arrays, loss: str, grad: str) -> None:
    assert_values(value, file[loss], LOSS, 1e-5)
    (found,) = torch.autograd.grad(value, inputs)
    assert_gradient(found, file[grad])


@pytest.mark.parametrize("name", ["losses_supervised"])
def test_source_loss(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    logits, label = given(file, "source_logits"), labels(file["source_label"], IGNORE)
    weighted = weighted_cross_entropy(logits, label, tensor(file["source_weight"]))
    assert_loss(weighted, logits, file, "source_loss", "source_grad")
    plain = weighted_cross_entropy(logits, label)
    assert_loss(plain, logits, file, "source_loss_unweighted", "source_grad_unweighted")


@pytest.mark.parametrize("name", ["losses_supervised"])
@pytest.mark.parametrize("pair", ["sce", "sce2"])
def test_target_loss(golden: Golden, name: str, pair: str) -> None:
    file = golden(f"bismap/{name}")
    logits, label = given(file, "target_logits"), labels(file["target_label"], IGNORE)
    alpha, beta = float(file[f"{pair}_alpha"]), float(file[f"{pair}_beta"])
    value = symmetric_cross_entropy(logits, label, alpha=alpha, beta=beta)
    assert_loss(value, logits, file, f"{pair}_loss", f"{pair}_grad")


@pytest.mark.parametrize("name", ["loss_consistency"])
def test_consistency(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    student, mask = given(file, "student_logits_small"), tensor(file["mask"])
    size = (mask.shape[1], mask.shape[2])
    both = [resize_logits(one, size, "corners", 4) for one in (student, tensor(file["teacher_logits_small"]))]
    weight = ramp_up(int(file["iteration"]), int(file["rampup_length"]))
    assert weight == pytest.approx(float(file["rampup_weight"]), rel=1e-12)
    value = float(file["lambda_consist"]) * weight * masked_divergence(*both, ~mask)
    assert_loss(value, student, file, "consistency_loss", "consistency_grad")
    found = [ramp_up(int(step), int(file["rampup_length"])) for step in file["rampup_iterations"]]
    np.testing.assert_allclose(found, file["rampup_weights"], rtol=1e-12)


@pytest.mark.parametrize("name", ["loss_distillation"])
def test_distillation(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    student = given(file, "student_logits")
    size = (student.shape[2], student.shape[3])
    teacher = resize_logits(tensor(file["teacher_logits_small"]), size, "corners", 4)
    for form, key in (("code", "published"), ("log", "true_kl_mean")):
        assert_loss(mean_kd(student, teacher, form), student, file, f"kd_loss_{key}", f"kd_grad_{key}")


@pytest.mark.parametrize("name", ["lr_schedule"])
def test_rates(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    schedule = ScheduleSettings(
        kind="poly",
        power=float(file["power"]),
        warmup=int(file["warmup_iterations"]),
        warmup_ratio=0.0,
        least_lr=float(file["eta_min"]),
    )
    total = int(file["total_iterations"])
    full = [float(file["base_lr"]) * factor for factor in (1.0, float(file["head_multiplier"]))]
    rates = [[schedule.rate(one, step, total) for one in full] for step in range(len(file["lr_used"]))]
    np.testing.assert_allclose(rates, file["lr_used"], rtol=1e-9, atol=1e-18)


class Drawn:
    """Gives numbers of the file where a random one is asked for."""

    def __init__(self, numbers: NDArray) -> None:
        self.numbers = iter(numbers.tolist())

    def uniform(self, low: float, high: float) -> float:
        number = float(next(self.numbers))
        assert low <= number <= high
        return number


def stretched(length: int, scaled: int) -> tuple[float, float]:
    """Step and origin in the source of pixel centres of a side that was resized with aligned corners."""
    step = (length - 1) / max(scaled - 1, 1)
    return step, 0.5 - 0.5 * step


def stepped(length: int, scaled: int) -> tuple[float, float]:
    """The same of a side resized to the nearest pixel by torch's rule: half a pixel up and to the left of ours."""
    return length / scaled, -0.5 * length / scaled


def view_of(file: Arrays, rule: Any, source: tuple[int, int]) -> Geometry:
    """The file's geometry with a rule of resizing."""
    (top, left), (height, width) = file["crop_yx"].tolist(), file["crop_hw"].tolist()
    (step_y, origin_y), (step_x, origin_x) = map(rule, source, file["resize_hw"].tolist())
    matrix = np.array([[step_x, 0.0, left * step_x + origin_x], [0.0, step_y, top * step_y + origin_y]])
    if file["hflip"]:
        matrix[0] = [-step_x, 0.0, (left + width) * step_x + origin_x]
    return Geometry(matrix, source, (height, width))


@pytest.mark.parametrize("name", ["masked_view"])
def test_masked_view(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published rules of resizing, which differ from ours: a stream resizes by pixel centres, antialiased."""
    file = golden(f"bismap/{name}")
    image = file["image"]
    source = (image.shape[0], image.shape[1])
    size = (int(file["crop_hw"][0]), int(file["crop_hw"][1]))
    monkeypatch.setattr(randaugment, "generator", lambda *_: Drawn(file["cutout_u_xy"]))
    cutout = CutoutSettings(share=float(file["cutout_fraction"]), of="width", fill=0)
    drawn = draw_alteration(None, cutout, size, 0, "target/masked", 0)
    left, top, right, bottom = drawn.cutout
    assert [top, bottom, left, right] == file["cutout_box_y0y1x0x1"].tolist()

    shown = view_of(file, stretched, source)
    crop = randaugment.Cut(np.full((*size, 3), 9, np.uint8), np.ones(size, bool), {}, shown)
    masked = alter(crop, {}, drawn)
    np.testing.assert_array_equal(masked.valid_HW, ~file["mask"])
    np.testing.assert_array_equal(masked.image_HW3.any(2), ~file["mask"])

    planes = tensor(image).movedim(2, 0)[None].float() / 255
    found = warp(planes, Geometries.stack([shown]), mode="bilinear")[0] * tensor(masked.valid_HW)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in MEAN_STD["imagenet"])
    assert_values((found - mean) / std, file["masked_image"], 1e-4, 1e-5)

    weight = take_map(file["weight_map_uint8"], view_of(file, stepped, source), 0)
    np.testing.assert_allclose(weight / 255, file["weight_map_view"], atol=1e-6)


@pytest.mark.parametrize("name", ["metrics"])
def test_scores(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    label, prediction = labels(file["label"], IGNORE), tensor(file["prediction"])
    confusion = Confusion(file["confusion_matrix"].shape[0])
    confusion.update(prediction, label)
    np.testing.assert_array_equal(confusion.matrix, file["confusion_matrix"])
    scores = scores_of(confusion.matrix)
    np.testing.assert_allclose(np.nan_to_num(scores.iou), file["class_iou"], rtol=1e-12)
    sixteen = [number for number in range(confusion.num_classes) if number not in (9, 14, 16)]
    thirteen = [number for number in sixteen if number not in (3, 4, 5)]
    for found, key in (
        (scores.miou, "miou_19"),
        (subset_mean(scores.iou, sixteen), "miou_16"),
        (subset_mean(scores.iou, thirteen), "miou_13"),
        (scores.pixel_accuracy, "pixel_accuracy"),
        (scores.mean_accuracy, "mean_accuracy"),
        (scores.frequency_weighted_iou, "fw_iou"),
    ):
        np.testing.assert_allclose(found, file[key], rtol=1e-12, err_msg=key)


@torch.no_grad()
def by_formula(module: nn.Module) -> nn.Module:
    """A module with the weights that the folder's README describes, in evaluation mode."""
    for name, value in chain(module.named_parameters(), module.named_buffers()):
        i = torch.arange(value.numel(), dtype=torch.float64)
        match name.rpartition(".")[2]:
            case "weight" if value.ndim > 1:
                made = math.sqrt(2 / value[0].numel()) * torch.sin(1 + 0.618 * i)
            case "weight":
                made = 1 + 0.1 * torch.sin(i)
            case "bias":
                made = 0.1 * torch.cos(i)
            case "running_mean":
                made = 0.05 * torch.sin(2 * i)
            case "running_var":
                made = 1 + 0.2 * torch.cos(i) ** 2
            case _:
                continue
        value.copy_(made.view(value.shape))
    return module.eval()


@pytest.mark.parametrize("name", ["simclr_blocks"])
@torch.no_grad()
def test_simclr_blocks(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    inner, planes, stride = (int(file[key]) for key in ("in_channels", "planes", "stride"))
    ratio = float(file["sk_ratio"])
    x = tensor(file["input"])
    unit = SelectiveKernel(inner, planes, stride, ratio=ratio, fewest=int(file["sk_min_dim"]))
    by_formula(unit)
    theirs = {
        "conv": "main_conv.0",
        "bn": "main_conv.1.0",
        "squeeze": "mixing_conv.0",
        "squeeze_bn": "mixing_conv.1.0",
        "excite": "mixing_conv.2",
    }
    for own, value in unit.state_dict().items():
        layer, leaf = own.split(".")
        if leaf != "num_batches_tracked":
            assert_values(value, file[f"sk.{theirs[layer]}.{leaf}"], 1e-6, 1e-7)
    assert_values(unit(x), file["sk_output"], NET)

    block = Bottleneck(inner, planes, stride, 1, selective=True, first=True)
    block.select = SelectiveKernel(planes, planes, stride, ratio=ratio, fewest=int(file["bottleneck_min_dim"]))
    assert_values(by_formula(block)(x), file["bottleneck_output"], NET)

    net = SimCLRResNet("simclrv2_r50_1x_sk1")
    by_formula(net)
    assert_values(net.stem(tensor(file["stem_input"])), file["stem_output"], NET)


@pytest.mark.parametrize("name", ["deeplab_head"])
@torch.no_grad()
def test_deeplab_head(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    high, low = tensor(file["high_level"]).float(), tensor(file["low_level"]).float()
    width, classes = file["aspp_output"].shape[1], file["logits"].shape[1]
    channels = (low.shape[1], *CHANNELS[1:3], high.shape[1])
    decoder = MultigridDeepLab("bismap", channels, (4, 8, 16, 16), width, 0.1)
    classifier = nn.Conv2d(width, classes, 1)
    by_formula(decoder), by_formula(classifier)
    assert_values(decoder.aspp(high), file["aspp_output"], NET)
    feature = decoder((low, low, high, high), ())
    assert_values(feature.sum(1), file["feature_sum_over_channels"], NET)
    assert_values(feature[:, :8], file["feature_first8"], NET)
    assert_values(classifier(feature), file["logits"], NET)


@pytest.mark.parametrize("name", ["backbone_layout"])
def test_backbone_layout(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    net = build(NetSettings(encoder="resnet101_multigrid", decoder="deeplabv3plus_bismap", width=16), 3, seed=0)
    last = [block.conv2 for block in net.encoder.layer4]
    assert [conv.dilation for conv in last] == [(one, one) for one in file["layer4_dilations"].tolist()]
    assert last[0].stride == (int(file["layer4_first_stride"]),) * 2
    firsts = [net.encoder.get_submodule(f"layer{number}.0.conv2") for number in range(1, 5)]
    assert [conv.stride for conv in firsts] == [(one, one) for one in file["strides"].tolist()]
    assert net.feature_strides[-1] == int(file["output_stride"])
