"""Folder proda: losses on the target, the replay of the strong view, whole steps of all stages, the net's head."""

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
from tests.golden.proda_views import (
    SCALE,
    composed_cells,
    full_geometry,
    in_pixels,
    near_a_tie,
    published_cells,
    records,
    replay,
    strong_geometry,
    strong_valid,
    weak_geometry,
)
from tests.golden.test_proda_prototypes import corners, weak_view
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View, between, warp
from tutelage.engine.contract import Carry, Method, StepContext, TaskInfo
from tutelage.losses.regions import shrink_labels
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import IGNORE, cross_entropy
from tutelage.losses.symmetric import confidence_regularizer, reverse_cross_entropy, symmetric_cross_entropy
from tutelage.methods.advent import AdvEnt
from tutelage.methods.proda import ProDA
from tutelage.methods.self_distill import SelfDistill
from tutelage.methods.settings.common import TaskSettings
from tutelage.nets.discriminators import ProDADiscriminator
from tutelage.nets.pyramid_attention import PyramidAttention
from tutelage.nets.segmentor import Prediction

CORNERS = TaskSettings(resize="corners")
File = dict[str, NDArray]


# ---------------------------------------------------------------- losses and maps


@pytest.mark.parametrize("name", ["losses"])
def test_losses(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    label = labels(file["labels"], int(file["ignore_index"]))
    alpha, beta = float(file["rce_alpha"]), float(file["rce_beta"])
    losses = {
        "ce": lambda z: cross_entropy(z, label),
        "rce": lambda z: reverse_cross_entropy(z, label),
        "mrkld": lambda z: confidence_regularizer(z, "mrkld"),
        "mrent": lambda z: confidence_regularizer(z, "mrent"),
        "sce": lambda z: symmetric_cross_entropy(z, label, alpha=alpha, beta=beta),
    }
    for key, loss in losses.items():
        logits = tensor(file["logits"]).requires_grad_()
        value = loss(logits)
        if np.isfinite(file[f"loss_{key}"]):  # a mean over nothing is NaN there
            assert_values(value, file[f"loss_{key}"], 1e-5)
            assert_gradient(torch.autograd.grad(value, logits)[0], file[f"grad_{key}"], 1e-4)


@pytest.mark.parametrize("name", ["losses_all_ignore"])
def test_losses_without_a_label(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    label = labels(file["labels"], int(file["ignore_index"]))
    logits = tensor(file["logits"]).requires_grad_()
    value = reverse_cross_entropy(logits, label)
    assert value.item() == float(file["loss_rce"]) == 0.0
    assert_gradient(torch.autograd.grad(value, logits)[0], file["grad_rce"])
    value = symmetric_cross_entropy(logits, label)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, logits)[0].any()


@pytest.mark.parametrize("name", ["strong_transform"])
def test_strong_transform(golden: Golden, name: str) -> None:
    """The published replay, and ``warp`` after each operation: equal but where a place lies between two cells."""
    file = golden(f"proda/{name}")
    padding, views = int(file["padding"]), records(file)
    label, maps = tensor(file["label_in"])[None], tensor(file["float_in"])[None]
    grid = (label.shape[1], label.shape[2])
    cells = published_cells(views, grid)
    np.testing.assert_array_equal(replay(label.expand(len(views), -1, -1), cells, padding), file["label_out"])
    assert_values(replay(maps.expand(len(views), -1, -1, -1), cells, padding), file["float_out"], 1e-6)

    for number, view in enumerate(views):
        sure, found_label, found_maps = torch.ones(1, *grid), label, maps
        for step in view.all_steps(grid):
            matrix = in_pixels(step, grid)
            geometry = Geometries.stack([Geometry(matrix[:2], grid, grid)])
            sure = warp(sure, geometry, fill=1) * torch.from_numpy(~near_a_tie(matrix, grid))
            found_label, found_maps = (warp(each, geometry, fill=padding) for each in (found_label, found_maps))
        compared = torch.from_numpy(~view.cut(grid)) & (sure[0] > 0)
        np.testing.assert_array_equal(found_label[0][compared], file["label_out"][number][compared])
        assert_values(found_maps[0][:, compared], file["float_out"][number][:, compared], 1e-6)


# ---------------------------------------------------------------- whole steps


class Saved(nn.Module):
    """Gives saved maps, one after the other; parameter and buffer for the moving average."""

    def __init__(self, *outputs: tuple[Tensor | None, Tensor | None], file: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        given = [each for output in outputs for each in output if each is not None]
        self.outputs, self.stride, self.asked = list(outputs), 8, 0
        self.embedding_channels = max((each.shape[1] for each in given), default=1)
        if file is not None:
            self.parameter = nn.Parameter(tensor(file["student_param"]).clone())
            self.register_buffer("buffer", tensor(file["student_buffer"]).clone())

    def mode(self, **declared: Any) -> Saved:
        return self

    def forward(self, image: Tensor) -> Prediction:
        logits, embedding = self.outputs[self.asked]
        self.asked += 1
        nothing = torch.zeros(len(image), 1, 1, 1)
        return Prediction(
            nothing if logits is None else logits, nothing if embedding is None else embedding, (), None, {}
        )


def shown(size: tuple[int, int], count: int, label: Tensor | None = None) -> View:
    return seen(full_geometry(size, count), {} if label is None else {"label": label})


def seen(geometry: Geometries, maps: Mapping[str, Tensor] | None = None, valid: Tensor | None = None) -> View:
    count, size = len(geometry.matrix), geometry.size
    if valid is None:
        valid = torch.ones(count, *size, dtype=torch.bool)
    return View(torch.zeros(count, 3, *size), valid, maps or {}, geometry)


def step(method: Method, batches: Mapping[str, Batch]) -> tuple[dict[str, dict[str, Tensor]], StepContext]:
    """The terms of all passes, and the context of what follows them."""
    carry, found = Carry(), {}
    totals = {name: value.float() for name, value in method.counts(batches).items()}
    shared: dict[str, Any] = {"step": 0, "total": 10, "seed": 0, "device": torch.device("cpu"), "totals": totals}
    for each in method.passes(0):
        found[each.name] = method(batches, each.name, StepContext(**shared, pass_name=each.name, carry=carry))
    return found, StepContext(**shared, carries=(carry,))


def total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def cells_of(sides: NDArray) -> tuple[int, int]:
    height, width = (int(side) // SCALE for side in sides)
    return height, width


def structure_of(file: File, strong_features: Tensor, cells: Tensor) -> Tensor:
    """The published structure term of one step, with the weak view's cells shown in the strong view."""
    eta, temperature = tensor(file["prototypes_before"]), float(file["temperature"])
    full = corners(tensor(file["ema_feat_full"]), *cells_of(file["full_hw"]))
    weak, found = weak_view(full, file), corners(strong_features, *cells_of(file["crop_hw"]))
    target, found = (
        (-temperature * torch.linalg.vector_norm(features[:, None] - eta[:, :, None, None], dim=2)).log_softmax(1)
        for features in (weak, found)
    )
    divergence = nn.functional.kl_div(found, replay(target, cells, 0.0), reduction="none", log_target=True)
    compared = (cells >= 0)[:, None].expand_as(divergence)
    return divergence[compared].mean()


@pytest.mark.parametrize("name", ["stage1_step"])
def test_stage1_step(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    source_logits, weak_logits, strong_features = (
        tensor(file[key]).requires_grad_() for key in ("source_logits", "target_logits_weak", "target_feat_strong")
    )
    student = Saved((source_logits, None), (weak_logits, None), (None, strong_features), file=file)
    labeller = Saved((tensor(file["soft_pseudo"]).clamp(min=1e-38).log(), None))
    labeller.stride = 1
    settings = ProDA.Settings(
        alpha=float(file["rce_alpha"]),
        beta=float(file["rce_beta"]),
        regularizer="mrent" if int(file["regular_is_mrent"]) else "mrkld",
        regularizer_weight=float(file["regular_weight"]),
        structure=float(file["consist_weight"]),
        temperature=float(file["temperature"]),
        threshold=max(float(file["train_threshold"]), 0.0),
        rate=float(file["proto_momentum"]),
        decay=float(file["ema_decay"]),
        task=CORNERS,
    )
    before = tensor(file["prototypes_before"])
    fitted = {"prototypes": {"prototypes": before, "counts": torch.full(before.shape[:1], 3.0)}}
    info = TaskInfo(int(file["num_classes"]), fitted_inputs=fitted)
    method = ProDA({"student": student, "labeller": labeller}, settings, info)  # type: ignore[dict-item]
    full, crop = (tuple(int(side) for side in file[key]) for key in ("full_hw", "crop_hw"))
    method.ema.outputs = [(tensor(file["ema_logits_full"]), tensor(file["ema_feat_full"]))]
    with torch.no_grad():
        method.ema.parameter.copy_(tensor(file["ema_param_before"]))
        method.ema.buffer.copy_(tensor(file["ema_buffer_before"]))

    count = len(weak_logits)
    source = shown(crop, count, labels(file["source_label"], int(file["ignore_index"])))
    views, weak = records(file), weak_geometry(file, full, crop)
    strong = seen(strong_geometry(views, weak), valid=strong_valid(views, crop))
    target = {"weak": seen(weak), "strong": strong, "full": shown(full, count)}
    positions = torch.arange(count)
    batches = {"source": Batch({"weak": source}, positions), "target": Batch(target, positions)}
    terms, after = step(method, batches)

    loss, target_loss = total(terms["source"]), total(terms["target"])
    if np.isfinite(file["loss_source"]):  # a mean over nothing is NaN there
        assert_values(loss, file["loss_source"], 1e-5)
        assert_gradient(torch.autograd.grad(loss, source_logits)[0], file["grad_source_logits"], 1e-4)
    parts = terms["target"]
    cts = parts["symmetric"] + parts.get("regularizer", torch.zeros(()))
    assert_values(cts, file["loss_cts"], 1e-5)
    of_weak, of_strong = torch.autograd.grad(target_loss, (weak_logits, strong_features), materialize_grads=True)
    assert_gradient(of_weak, file["grad_target_logits_weak"], 1e-4)

    # The published code rounds to cells after every operation, the product once: the formula with the published cells
    # gives the file's numbers, and with the product's own cells those of the product.
    cells = published_cells(views, cells_of(file["crop_hw"]))
    published = structure_of(file, strong_features, cells)
    assert_values(published, file["loss_consist"], 1e-5)
    weight = float(file["consist_weight"])
    (gradient,) = torch.autograd.grad(weight * published, strong_features)
    assert_gradient(gradient, file["grad_target_feat_strong"], 1e-4)
    if settings.structure:
        own = own_cells(method, batches["target"])
        for found, view in zip(own, views, strict=True):
            composed, tie = composed_cells(view, cells_of(file["crop_hw"]))
            np.testing.assert_array_equal(np.where(tie, 0, found), np.where(tie, 0, composed))
        expected = published if torch.equal(own, cells) else structure_of(file, strong_features, own)
        assert_values(parts["structure"] / weight, expected.detach().numpy(), 1e-5)
        assert_values(cts + weight * published, file["loss_total_target"], 1e-5)
        (gradient,) = torch.autograd.grad(weight * expected, strong_features)
        assert_gradient(of_strong, gradient.numpy(), 1e-4)
    with torch.no_grad():
        method.after_step(after)
    assert_values(method.prototypes.prototypes, file["prototypes_after"])
    assert_values(method.ema.parameter, file["ema_param_after"])
    assert_values(method.ema.buffer, file["ema_buffer_after"])


def own_cells(method: ProDA, batch: Batch) -> Tensor:
    """The cells (B, h, w) of the weak view that the product shows in the strong one, -1 for none."""
    weak, strong = batch["weak"], batch["strong"]
    height, width = method.grid.size(weak)
    cells = torch.arange(height * width).view(1, height, width).expand(len(batch), -1, -1)
    shown_cells = warp(cells, between(strong.geometry, weak.geometry), (height, width), fill=-1)
    return shown_cells.masked_fill(~method.grid.valid(strong), -1)


def on_grid(label_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) that show these when they are shrunk to the nearest pixel."""
    pixel = shrink_labels(torch.arange(size[0] * size[1]).view(1, *size), (label_Bhw.shape[1], label_Bhw.shape[2]))
    result = torch.full((len(label_Bhw), size[0] * size[1]), IGNORE)
    result[:, pixel.flatten()] = label_Bhw.flatten(1)
    return result.view(-1, *size)


@pytest.mark.parametrize("name", ["distill_step"])
@pytest.mark.parametrize("form", ["code", "log"])
def test_distill_step(golden: Golden, name: str, form: str) -> None:
    file = golden(f"proda/{name}")
    source_logits, student_logits = (tensor(file[key]).requires_grad_() for key in ("source_logits", "student_logits"))
    student, teacher = (
        Saved((source_logits, None), (student_logits, None)),
        Saved((tensor(file["teacher_logits"]), None)),
    )
    weight = float(file["distillation_weight"])
    settings = SelfDistill.Settings(kd=weight, form=form, task=CORNERS)
    nets: Any = {"student": student, "teacher": teacher}
    method = SelfDistill(nets, settings, TaskInfo(int(file["num_classes"])))
    ignore = int(file["ignore_index"])
    label, pseudo = labels(file["source_label"], ignore), labels(file["pseudo_label"], ignore)
    size, count = (label.shape[1], label.shape[2]), len(label)
    strong = labels(file["pseudo_label_strong_quarter"], ignore)
    cells = published_cells(records(file), (strong.shape[1], strong.shape[2]))
    assert torch.equal(replay(shrink_labels(pseudo, (strong.shape[1], strong.shape[2])), cells, IGNORE), strong)
    target = {"weak": shown(size, count, pseudo), "strong": shown(size, count, on_grid(strong, size))}
    batches = {
        "source": Batch({"weak": shown(size, count, label)}, torch.arange(count)),
        "target": Batch(target, torch.arange(count)),
    }
    terms, _ = step(method, batches)
    if np.isfinite(file["loss_source"]):
        assert_values(total(terms["source"]), file["loss_source"], 1e-5)
        (gradient,) = torch.autograd.grad(total(terms["source"]), source_logits)
        assert_gradient(gradient, file["grad_source_logits"], 1e-4)
    target_loss, parts = total(terms["target"]), terms["target"]
    if np.isfinite(file["loss_ce"]):
        assert_values(parts["pseudo_labels"], file["loss_ce"], 1e-5)
        assert_values(target_loss, file[f"loss_target_{form}"], 1e-5)
        (gradient,) = torch.autograd.grad(target_loss, student_logits, retain_graph=True)
        assert_gradient(gradient, file[f"grad_student_logits_{form}"], 1e-4)
    if weight:
        assert_values(parts["kd"] / weight, file[f"loss_kd_{form}"], 1e-5)


@pytest.mark.parametrize("name", ["warmup_adversarial"])
@pytest.mark.parametrize(("kind", "loss"), [("ls", "least_squares"), ("vanilla", "bce")])
def test_warmup_adversarial(golden: Golden, name: str, kind: str, loss: Any) -> None:
    file = golden(f"proda/{name}")
    source_logits, target_logits = (tensor(file[key]).requires_grad_() for key in ("source_logits", "target_logits"))
    student: Any = Saved((source_logits, None), (target_logits, None))
    student.auxiliary = None
    settings = AdvEnt.Settings(
        maps="softmax",
        adversarial=float(file["adv_weight"]),
        loss=loss,
        critic="proda",
        critic_weight=1.0,
        task=CORNERS,
    )
    classes = int(file["num_classes"])
    method = AdvEnt({"student": student}, settings, TaskInfo(classes))
    assert isinstance(method.critics["main"], ProDADiscriminator)
    critic = ProDADiscriminator(classes, int(file["d_planes"]))
    convolutions = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    for layer, key in zip(convolutions, ("conv1", "conv2", "conv3", "conv4", "classifier"), strict=True):
        layer.load_state_dict({part: tensor(file[f"d_{key}_{part}"]) for part in ("weight", "bias")})
    method.critics["main"] = critic

    height, width = (int(side) for side in file["crop_hw"])
    size, count = (height, width), len(source_logits)
    label = labels(file["source_label"], int(file.get("ignore_index", 250)))
    batches = {
        "source": Batch({"weak": shown(size, count, label)}, torch.arange(count)),
        "target": Batch({"weak": shown(size, count)}, torch.arange(count)),
    }
    terms, _ = step(method, batches)
    if np.isfinite(file[f"loss_source_{kind}"]):
        assert_values(terms["segment"]["cross_entropy"], file[f"loss_source_{kind}"], 1e-5)
    assert_values(terms["segment"]["adversarial_main"], file[f"loss_adv_g_weighted_{kind}"], 1e-5)
    of_source, of_target = torch.autograd.grad(
        total(terms["segment"]), (source_logits, target_logits), retain_graph=True
    )
    if np.isfinite(file[f"grad_source_logits_{kind}"]).all():
        assert_gradient(of_source, file[f"grad_source_logits_{kind}"], 1e-4)
    assert_gradient(of_target, file[f"grad_target_logits_{kind}"], 1e-4)
    critics = total(terms["discriminate"])
    assert_values(critics, file[f"loss_d_{kind}"], 1e-5)
    first, last = torch.autograd.grad(critics, (convolutions[0].weight, convolutions[-1].weight))
    assert_gradient(first, file[f"grad_d_conv1_weight_{kind}"], 1e-4)
    assert_gradient(last, file[f"grad_d_classifier_weight_{kind}"], 1e-4)
    map_BKHW = resize_logits(target_logits, size, "corners", 8).softmax(1)
    assert_values(critic(map_BKHW), file["d_out_target"])


@pytest.mark.parametrize("name", ["aspp_head"])
def test_aspp_head(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    width = file["feat"].shape[1]
    head = PyramidAttention(int(file["in_channels"]), width, stride=8).eval()
    classifier = nn.Conv2d(width, int(file["num_classes"]), 1, bias=False)
    b, c = float(file["formula_b"]), float(file["formula_c"])
    norms = {id(layer.weight) for layer in head.modules() if isinstance(layer, nn.GroupNorm)}
    parameters = [*head.parameters(), classifier.weight]
    assert len(parameters) == 29
    with torch.no_grad():
        for k, parameter in enumerate(parameters):
            index = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            parameter.copy_(0.05 * torch.sin(b * (k + 1) * index + c * k) + float(id(parameter) in norms))
        embedding = head((tensor(file["x"]),), ())
        assert_values(embedding, file["feat"])
        assert_values(classifier(embedding), file["logits"])
