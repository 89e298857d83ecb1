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
from tests.golden.test_proda_prototypes import weak_view
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.strong_map import StrongRecord, replay, strong_cells
from tutelage.engine.contract import Carry, Method, StepContext, TaskInfo
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

NOT_APPLIED = 10000
CORNERS = TaskSettings(resize="corners")
File = dict[str, NDArray]


def records(file: File) -> list[StrongRecord]:
    """The file's strong views."""
    found = []
    for number, flip in enumerate(file["strong_hflip"]):

        def amount(name: str, place: int = number) -> float:
            value = float(file[f"strong_{name}"][place])
            return 0.0 if value == NOT_APPLIED else value

        names = ("shear_x", "shear_y", "translate_x", "translate_y")
        left, top, right, bottom = (int(side) for side in file["strong_cutout_x0y0x1y1"][number])
        own = {name: amount(name) for name in names}
        found.append(StrongRecord(bool(flip), **own, rotate=amount("rotate_deg"), cutout=(left, top, right, bottom)))
    return found


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
    file = golden(f"proda/{name}")
    cases = records(file)
    label = tensor(file["label_in"]).expand(len(cases), -1, -1)
    maps = tensor(file["float_in"]).expand(len(cases), -1, -1, -1)
    grid = (label.shape[1], label.shape[2])
    cells = strong_cells(cases, grid, int(file["scale"]), "code")
    padding = int(file["padding"])
    np.testing.assert_array_equal(replay(label, cells, padding), file["label_out"])
    assert_values(replay(maps, cells, padding), file["float_out"], 1e-6)


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
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * count)
    maps = {} if label is None else {"label": label}
    return View(torch.zeros(count, 3, *size), torch.ones(count, *size, dtype=torch.bool), maps, geometry)


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


class Replayed(ProDA):
    """Views that follow the published maps, which a file holds, and not a geometry."""

    file: File

    def _onto_weak(self, maps: Tensor, batch: Batch) -> Tensor:
        return weak_view(maps, self.file)

    def _onto_strong(self, maps: Tensor, batch: Batch) -> Tensor:
        cells = strong_cells(records(self.file), (maps.shape[-2], maps.shape[-1]), 4, "code")
        return replay(maps, cells, 0.0)

    def _compared(self, batch: Batch) -> Tensor:
        height, width = batch["strong"].image.shape[2:]
        return strong_cells(records(self.file), (height // 4, width // 4), 4, "code") >= 0


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
    method = Replayed({"student": student, "labeller": labeller}, settings, info)  # type: ignore[dict-item]
    method.file = file
    full, crop = (tuple(int(side) for side in file[key]) for key in ("full_hw", "crop_hw"))
    method.ema.outputs = [(tensor(file["ema_logits_full"]), tensor(file["ema_feat_full"]))]
    with torch.no_grad():
        method.ema.parameter.copy_(tensor(file["ema_param_before"]))
        method.ema.buffer.copy_(tensor(file["ema_buffer_before"]))

    count = len(weak_logits)
    source = shown(crop, count, labels(file["source_label"], int(file["ignore_index"])))
    target = {"weak": shown(crop, count), "strong": shown(crop, count), "full": shown(full, count)}
    positions = torch.arange(count)
    batches = {"source": Batch({"weak": source}, positions), "target": Batch(target, positions)}
    terms, after = step(method, batches)

    loss, target_loss = total(terms["source"]), total(terms["target"])
    if np.isfinite(file["loss_source"]):  # a mean over nothing is NaN there
        assert_values(loss, file["loss_source"], 1e-5)
        assert_gradient(torch.autograd.grad(loss, source_logits)[0], file["grad_source_logits"], 1e-4)
    assert_values(target_loss, file["loss_total_target"], 1e-5)
    parts = terms["target"]
    cts = parts["symmetric"] + parts.get("regularizer", torch.zeros(()))
    assert_values(cts, file["loss_cts"], 1e-5)
    if settings.structure:
        assert_values(parts["structure"] / settings.structure, file["loss_consist"], 1e-5)
    of_weak, of_strong = torch.autograd.grad(target_loss, (weak_logits, strong_features))
    assert_gradient(of_weak, file["grad_target_logits_weak"], 1e-4)
    assert_gradient(of_strong, file["grad_target_feat_strong"], 1e-4)
    with torch.no_grad():
        method.after_step(after)
    assert_values(method.prototypes.prototypes, file["prototypes_after"])
    assert_values(method.ema.parameter, file["ema_param_after"])
    assert_values(method.ema.buffer, file["ema_buffer_after"])


class ReplayedLabels(SelfDistill):
    """Pseudo labels that follow the published map."""

    file: File

    def _labels(self, view: View) -> Tensor:
        label = super()._labels(view)
        cells = strong_cells(records(self.file), (label.shape[1], label.shape[2]), 4, "code")
        return replay(label, cells, IGNORE)


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
    method = ReplayedLabels(nets, settings, TaskInfo(int(file["num_classes"])))
    method.file = file
    ignore = int(file["ignore_index"])
    label, pseudo = labels(file["source_label"], ignore), labels(file["pseudo_label"], ignore)
    size, count = (label.shape[1], label.shape[2]), len(label)
    target = {"weak": shown(size, count, pseudo), "strong": shown(size, count, pseudo)}
    batches = {
        "source": Batch({"weak": shown(size, count, label)}, torch.arange(count)),
        "target": Batch(target, torch.arange(count)),
    }
    replayed = method._labels(target["strong"])
    np.testing.assert_array_equal(replayed, labels(file["pseudo_label_strong_quarter"], ignore))
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
    label = labels(file["source_label"], 250)
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
