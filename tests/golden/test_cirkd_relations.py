"""Folder cirkd: relational losses, memory, channels, context block, and both whole objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.losses.distillation import pixel_kd
from tutelage.losses.regions import class_counts, shrink_labels
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import cross_entropy
from tutelage.methods.distillation.cirkd import Memory, minibatch_pixel
from tutelage.methods.distillation.cirkd_v2 import Channel, ContextBlock
from tutelage.methods.distillation.term import Maps, NetShape, Pair, TermInputs
from tutelage.methods.settings.distill_terms import ChannelSettings, MemorySettings

File = Mapping[str, NDArray]


class Stored:
    """The random choices of one step, as the published code drew them."""

    def __init__(self, file: File, step: str = "") -> None:
        self.file = file
        self.step = step
        # The pixel queue is compared with first.
        self.indices = iter(("pixel_index", "region_index"))

    def _of(self, name: str) -> Tensor:
        return tensor(self.file[f"{self.step}{name}"])

    def ranks(self, counts_BK: Tensor, limit: int) -> Tensor:
        ranks = torch.full((*counts_BK.shape, limit), -1, dtype=torch.int64)
        for image, number, chosen in zip(
            self._of("enqueue_image"), self._of("enqueue_class"), self._of("enqueue_perm"), strict=True
        ):
            ranks[int(image), int(number), : len(chosen)] = chosen[:limit]
        return ranks

    def slots(self, total: int, count: int) -> Tensor:
        chosen = self._of(next(self.indices))
        if not len(chosen):  # nothing is drawn in a step without a valid pixel: its losses are 0 with any slots
            return torch.arange(count)
        assert len(chosen) == count
        return chosen.long()


class StoredChannels:
    def __init__(self, rows: NDArray, slots: NDArray) -> None:
        self.chosen = tensor(rows), tensor(slots)

    def rows(self, total: int, count: int) -> Tensor:
        assert len(self.chosen[0]) == count
        return self.chosen[0]

    def slots(self, total: int, count: int) -> Tensor:
        assert len(self.chosen[1]) == count
        return self.chosen[1]


def fill_projection(projection: nn.Module, file: File, prefix: str) -> None:
    first, norm, _, last = projection.children()
    with torch.no_grad():
        for target, name in (
            (first.weight, "conv1_weight"),
            (norm.weight, "bn_weight"),
            (norm.bias, "bn_bias"),
            (norm.running_mean, "bn_running_mean"),
            (norm.running_var, "bn_running_var"),
            (last.weight, "conv2_weight"),
        ):
            target.copy_(tensor(file[f"{prefix}{name}"]))


def seen(student: Tensor, teacher: Tensor, label: Tensor) -> TermInputs:
    nothing = torch.empty(0)
    return TermInputs(Maps(nothing, student, None), Maps(nothing, teacher, None), label)


def pair(student: int, teacher: int, grid: tuple[int, int], classes: int = 1) -> Pair:
    return Pair(classes, NetShape(student, False), NetShape(teacher, False), grid, grid)


@pytest.mark.parametrize("name", ["minibatch_pixel", "minibatch_pixel_pool2", "minibatch_pixel_pool4"])
def test_minibatch_pixel(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    student = tensor(file["student_feat"]).requires_grad_()
    teacher, count = tensor(file["teacher_feat"]), len(file["student_feat"])
    loss = minibatch_pixel(student, teacher, float(file["temperature"]), count, int(file["pool_kernel"]))
    assert_values(loss, file["loss"])
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()
    mask = tensor(file["grad_mask"])[:, None] if "grad_mask" in file else 1.0
    assert_gradient(gradient * mask, file["grad_student_feat"])


def memory_of(file: File, published: bool, wraps: bool) -> Memory:
    classes = int(file["num_classes"])
    settings = MemorySettings(
        temperature=float(file["contrast_temperature"]),
        softening=float(file["contrast_kd_temperature"]),
        pixel_slots=int(file["pixel_memory_size"]),
        region_slots=int(file["region_memory_size"]),
        enqueue=int(file["pixel_update_freq"]),
        precision="fp32",
    )
    grid = file["step0_student_feat"].shape[2:]
    memory = Memory(settings, pair(int(file["student_channels"]), int(file["teacher_channels"]), grid, classes))
    memory.pixel_draw, memory.region_draw = int(file["pixel_contrast_size"]), int(file["region_contrast_size"])
    memory.any_pixels, memory.wraps = published, wraps
    for name, key in (("pixel", "pixel"), ("region", "region")):
        getattr(memory, f"{name}_queue").copy_(tensor(file[f"{key}_queue_init"]))
        getattr(memory, f"{name}_pointer").copy_(tensor(file[f"{key}_ptr_init"]))
    fill_projection(memory.projection, file, "init_proj_")
    return memory


@pytest.mark.parametrize(
    ("name", "published"), [("memory_published", True), ("memory_corrected", False), ("memory_wraparound", True)]
)
def test_memory(golden: Golden, name: str, published: bool) -> None:
    file = golden(f"cirkd/{name}")
    # The corrected file mends which pixels are remembered, and leaves the overflow as it was.
    memory = memory_of(file, published, wraps=False)
    first, norm, _, last = memory.projection.children()
    weights = {
        "conv1_weight": first.weight,
        "bn_weight": norm.weight,
        "bn_bias": norm.bias,
        "conv2_weight": last.weight,
    }
    for step in range(int(file["steps"])):
        key = f"step{step}_"
        student = tensor(file[f"{key}student_feat"]).requires_grad_()
        teacher = tensor(file[f"{key}teacher_feat"])
        label = labels(file[f"{key}labels"], int(file["ignore_label"]))
        small = shrink_labels(label, (student.shape[2], student.shape[3]))
        assert torch.equal(small, labels(file[f"{key}labels_small"], int(file["ignore_label"])))
        counts = class_counts(small.flatten(1), memory.classes)
        events = zip(*(file[f"{key}enqueue_{what}"] for what in ("image", "class", "count")), strict=True)
        assert [int(counts[image, number]) for image, number, _ in events] == file[f"{key}enqueue_count"].tolist()

        losses = memory.relate(seen(student, teacher, label), Stored(file, key))
        for loss, which in zip(losses, ("pixel", "region"), strict=True):
            assert_values(loss, file[f"{key}loss_{which}"])
            gradients = torch.autograd.grad(loss, [student, *weights.values()], retain_graph=True)
            assert_gradient(gradients[0], file[f"{key}grad_{which}_student_feat"])
            for gradient, weight in zip(gradients[1:], weights, strict=True):
                assert_gradient(gradient, file[f"{key}grad_{which}_proj_{weight}"])
            assert_values(getattr(memory, f"{which}_queue"), file[f"{key}{which}_queue_after"])
            assert torch.equal(getattr(memory, f"{which}_pointer"), tensor(file[f"{key}{which}_ptr_after"]))
        assert_values(norm.running_mean, file[f"{key}proj_bn_running_mean_after"])
        assert_values(norm.running_var, file[f"{key}proj_bn_running_var_after"])


def channel_of(
    file: File, grid: tuple[int, int], channels: tuple[int, int], prefix: str, sizes: dict[str, Any]
) -> Channel:
    settings = ChannelSettings(
        temperature=float(file["contrast_temperature"]),
        softening=float(file["contrast_kd_temperature"]),
        enqueue=int(file["channel_update_freq"]),
        precision="fp32",
        compat="published",
        **sizes,
    )
    term = Channel(settings, pair(*channels, grid))
    term.queue[0].copy_(tensor(file["channel_queue_init"]))
    fill_projection(term.projection, file, prefix)
    return term


@pytest.mark.parametrize("name", ["channel", "channel_wraparound"])
def test_channel(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    shape = file["step0_student_feat"].shape
    sizes = {
        "group_size": shape[0],
        "pool": int(file["pool_kernel"]),
        "slots": int(file["channel_memory_size"]),
        "channels": int(file["channel_contrast_size"]),
    }
    channels = int(file["student_channels"]), int(file["teacher_channels"])
    term = channel_of(file, shape[2:], channels, "init_proj_", sizes)
    assert term.queue.shape[2] == int(file["queue_dim"])
    term.pointer.copy_(tensor(file["channel_ptr_init"]))
    first, _, _, last = term.projection.children()
    for step in range(int(file["steps"])):
        key = f"step{step}_"
        student = tensor(file[f"{key}student_feat"]).requires_grad_()
        draws = StoredChannels(file[f"{key}enqueue_index"], file[f"{key}contrast_index"])
        losses = term.relate(seen(student, tensor(file[f"{key}teacher_feat"]), torch.empty(0)), draws)
        for loss, which in zip(losses, ("minibatch_channel", "memory_channel", "channel_mse"), strict=True):
            assert_values(loss, file[f"{key}loss_{which}"])
            gradients = torch.autograd.grad(loss, [student, first.weight, last.weight], retain_graph=True)
            names = ("student_feat", "proj_conv1_weight", "proj_conv2_weight")
            for gradient, what in zip(gradients, names, strict=True):
                assert_gradient(gradient, file[f"{key}grad_{which}_{what}"])
        assert_values(term.queue[0], file[f"{key}channel_queue_after"])
        assert torch.equal(term.pointer, tensor(file[f"{key}channel_ptr_after"]))


def context_of(file: File, prefix: str, channels: int) -> ContextBlock:
    block = ContextBlock(channels)
    named = {
        "query_weight": block.query.weight,
        "key_weight": block.key.weight,
        "value_weight": block.value.weight,
        "expand_conv_weight": block.expand[0].weight,
        "fuse_conv_weight": block.fuse[0].weight,
    }
    with torch.no_grad():
        for name, target in named.items():
            target.copy_(tensor(file[f"{prefix}{name}"]))
        for part, norm in (("expand", block.expand[1]), ("fuse", block.fuse[1])):
            for name in ("weight", "bias"):
                if f"{prefix}{part}_bn_{name}" in file:
                    getattr(norm, name).copy_(tensor(file[f"{prefix}{part}_bn_{name}"]))
    return block


@pytest.mark.parametrize("name", ["context_block"])
def test_context_block(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    block = context_of(file, "", int(file["channels"]))
    given = tensor(file["input"]).requires_grad_()
    output = block(given)
    assert_values(output, file["output_train"])
    assert_gradient(torch.autograd.grad(output, given, tensor(file["upstream_grad"]))[0], file["grad_input_train"])
    for part, norm in (("expand", block.expand[1]), ("fuse", block.fuse[1])):
        for which in ("mean", "var"):
            assert_values(getattr(norm, f"running_{which}"), file[f"{part}_bn_running_{which}_after"])
    assert_values(block.eval()(given), file["output_eval_after_one_train_step"])


@pytest.mark.parametrize("name", ["objective_v1", "objective_v2"])
def test_objective(golden: Golden, name: str) -> None:
    """Every weighted term of one batch, the sum and its gradients."""
    file = golden(f"cirkd/{name}")
    second = name.endswith("v2")
    leaves = [tensor(file[key]).requires_grad_() for key in ("student_logits", "student_aux_logits", "student_feat")]
    logits, auxiliary, feature = leaves
    label = labels(file["labels"], int(file["ignore_label"]))
    teacher = tensor(file["teacher_feat"])
    size, classes = (label.shape[1], label.shape[2]), logits.shape[1]
    weight = {key.removeprefix("lambda_"): float(value) for key, value in file.items() if key.startswith("lambda_")}
    temperature, count = float(file["contrast_temperature"]), len(feature)
    main, beside = (cross_entropy(resize_logits(part, size, "corners", 1), label) for part in (logits, auxiliary))
    terms = {
        "task": main + float(file["aux_weight"]) * beside,
        "kd": weight["kd"] * pixel_kd(logits, tensor(file["teacher_logits"]), float(file["kd_temperature"])),
    }
    shown = feature
    if second:
        shown = context_of(file, "context_", feature.shape[1])(feature)
        regressed = nn.functional.conv2d(shown, tensor(file["fitnet_conv_weight"]))
        terms["fitnet"] = weight["fitnet"] * nn.functional.mse_loss(regressed, teacher)
    terms["minibatch_pixel"] = weight["minibatch_pixel"] * minibatch_pixel(shown, teacher, temperature, count)
    memory = memory_of(
        {
            **file,
            "num_classes": np.array(classes),
            "pixel_memory_size": np.array(file["pixel_queue_init"].shape[1]),
            "region_memory_size": np.array(file["region_queue_init"].shape[1]),
            "pixel_contrast_size": np.array(len(file["pixel_index"])),
            "region_contrast_size": np.array(len(file["region_index"])),
            "student_channels": np.array(feature.shape[1]),
            "teacher_channels": np.array(teacher.shape[1]),
            "step0_student_feat": file["student_feat"],
            "pixel_ptr_init": np.zeros(classes, dtype=np.int64),
            "region_ptr_init": np.zeros(classes, dtype=np.int64),
            **{
                key.replace("memory_proj_", "init_proj_"): value for key, value in file.items() if "memory_proj_" in key
            },
        },
        published=True,
        wraps=False,
    )
    pixel, region = memory.relate(seen(shown, teacher, label), Stored(file))
    terms["memory_pixel"] = weight["memory_pixel"] * pixel
    terms["memory_region"] = weight["memory_region"] * region
    if second:
        grid = (feature.shape[2], feature.shape[3])
        sizes = {
            "group_size": count,
            "slots": len(file["channel_queue_init"]),
            "channels": len(file["channel_contrast_index"]),
        }
        term = channel_of(file, grid, (feature.shape[1], teacher.shape[1]), "channel_proj_", sizes)
        chosen = StoredChannels(file["channel_enqueue_index"], file["channel_contrast_index"])
        losses = term.relate(seen(shown, teacher, label), chosen)
        for loss, key in zip(losses, ("minibatch_channel", "memory_channel", "channel_kd"), strict=True):
            terms[key] = weight[key] * loss
    for key, term_value in terms.items():
        assert_values(term_value, file[f"term_{key}"])
    total = torch.stack(list(terms.values())).sum()
    assert_values(total, file["loss_total"])
    names = ("student_logits", "student_aux_logits", "student_feat")
    for gradient, key in zip(torch.autograd.grad(total, leaves), names, strict=True):
        assert_gradient(gradient, file[f"grad_{key}"])
