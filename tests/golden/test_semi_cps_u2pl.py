"""Folder semi_baselines: CPS, its boxes, and the pieces of U2PL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tests.methods.cases import terms
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.mixing import partners, paste
from tutelage.data.mixing.boxes import boxes_of, toggled
from tutelage.data.mixing.inside_batch import around, class_halves, hole_height
from tutelage.engine.contract import TaskInfo
from tutelage.losses import contrast
from tutelage.losses.consistency import masked_consistency, pseudo_label
from tutelage.losses.regions import shrink_labels
from tutelage.losses.segmentation import IGNORE
from tutelage.methods import cps
from tutelage.methods.u2pl import NegativeQueue
from tutelage.nets.segmentor import Prediction

File = dict[str, NDArray]


# CPS


class Replay(nn.Module):
    """A net that says what is in the file, call after call."""

    stride = 1
    auxiliary = None

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, image: Tensor) -> Prediction:
        logits = next(self.answers)
        return Prediction(logits, logits, (), None, {})


def replayed(monkeypatch: pytest.MonkeyPatch, mine: list[Tensor], hers: list[Tensor], **settings: Any) -> cps.CPS:
    monkeypatch.setattr(cps, "sibling", lambda net: Replay(hers))
    info = TaskInfo(mine[0].shape[1])
    return cps.CPS({"student": Replay(mine)}, cps.CPSSettings(**settings), info)  # type: ignore[dict-item]


def as_batch(image: Tensor, label: Tensor | None = None) -> Batch:
    count, size = len(image), (image.shape[2], image.shape[3])
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * count)
    maps = {} if label is None else {"label": label}
    view = View(image, torch.ones(count, *size, dtype=torch.bool), maps, geometry)
    return Batch({"weak": view}, torch.arange(count), tuple(map(str, range(count))))


def images_for(label: Tensor) -> Tensor:
    return torch.zeros(len(label), 3, *label.shape[1:])


@pytest.mark.parametrize("name", ["cps"])
def test_cps(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"semi_baselines/{name}")
    mine, hers = ([tensor(file[f"logits_{part}_{net}"]).requires_grad_() for part in "lu"] for net in "ab")
    label = labels(file["target_l"])
    method = replayed(monkeypatch, mine, hers, weight=float(file["w_cps"]))
    batches = {
        "labeled": as_batch(images_for(label), label),
        "unlabeled": as_batch(torch.zeros(len(mine[1]), 3, *mine[1].shape[2:])),
    }
    found = terms(method, batches)
    assert_values(found["cross_entropy"], file["loss_sup_a"], absolute=1e-4)
    assert_values(found["sister_cross_entropy"], file["loss_sup_b"], absolute=1e-4)
    assert_values(found["cross"] + found["sister_cross"], file["loss_cps_weighted"], absolute=1e-4)
    total = torch.stack(list(found.values())).sum()
    assert_values(total, file["loss_total"], absolute=1e-4)
    names = [f"{part}_{net}" for net in "ab" for part in "lu"]
    for gradient, key in zip(torch.autograd.grad(total, [*mine, *hers]), names, strict=True):
        assert_gradient(gradient, file[f"grad_logits_{key}"])


@pytest.mark.parametrize("name", ["cps_cutmix"])
def test_cps_cutmix(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published partner comes from a second loader: here it is looked up instead of taken from the batch."""
    file = golden(f"semi_baselines/{name}")
    mask = tensor(file["mask"])[:, 0]
    own = {key: tensor(file[key]) for key in ("image_u0", "logits_u0_a", "logits_u0_b")}
    asked: list[Tensor] = []

    def other(values: Tensor) -> Tensor:
        asked.append(values)
        found = [tensor(file[key.replace("u0", "u1")]) for key, value in own.items() if value is values]
        return found[0] if found else values

    monkeypatch.setattr(cps, "partners", other)
    monkeypatch.setattr(cps, "box_masks", lambda *given: mask)
    monkeypatch.setattr(cps, "over_image", lambda logits, *given: logits)
    answers, asked_for = {}, {}
    for net in "ab":
        asked_for[net] = [tensor(file[f"logits_{part}_{net}"]).requires_grad_() for part in ("l", "mix")]
        answers[net] = [asked_for[net][0], own[f"logits_u0_{net}"], asked_for[net][1]]
    label = labels(file["target_l"])
    method = replayed(monkeypatch, answers["a"], answers["b"], weight=float(file["w_cps"]), cutmix=True)
    batches = {"labeled": as_batch(images_for(label), label), "unlabeled": as_batch(own["image_u0"])}
    found = terms(method, batches)
    assert_values(found["cross"] + found["sister_cross"], file["loss_cps_weighted"], absolute=1e-4)
    total = torch.stack(list(found.values())).sum()
    assert_values(total, file["loss_total"], absolute=1e-4)
    gradients = torch.autograd.grad(total, [asked_for[net][1] for net in "ab"])
    for gradient, net in zip(gradients, "ab", strict=True):
        assert_gradient(gradient, file[f"grad_logits_mix_{net}"])
    assert len(asked) >= len(own)
    assert_values(paste(own["image_u0"], tensor(file["image_u1"]), mask), file["image_mixed"])
    for net in "ab":
        advice = paste(own[f"logits_u0_{net}"], tensor(file[f"logits_u1_{net}"]), mask)
        np.testing.assert_array_equal(pseudo_label(advice)[0], file[f"pseudo_{net}"])


@pytest.mark.parametrize("name", ["box_masks"])
def test_box_masks(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    size = (int(file["height"]), int(file["width"]))
    assert file["u_area"].shape[1] == int(file["n_boxes"])
    areas = (float(file["area_min"]), float(file["area_max"]))
    mask = toggled(tensor(boxes_of(file["u_area"], file["u_aspect"], file["u_position"], size, areas)), size)
    np.testing.assert_array_equal(mask[:, None].numpy().astype(np.float32), file["mask"])
    np.testing.assert_array_equal((~mask)[:, None].numpy().astype(np.float32), file["mask_inverted_flag"])


@pytest.mark.parametrize("name", ["cps_confidence"])
def test_cps_confidence(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    logits = {net: tensor(file[f"logits_{net}"]).requires_grad_() for net in "ab"}
    valid = tensor(file["ignore_mask"]) != IGNORE
    threshold = float(file["conf_thresh"])
    losses = {}
    for net, other in ("ab", "ba"):
        pseudo, confidence = pseudo_label(logits[other])
        losses[net] = masked_consistency(logits[net], pseudo, confidence, valid, threshold)
        assert_values(losses[net], file[f"loss_{net}"], absolute=1e-4)
        ratio = ((confidence >= threshold) & valid).sum() / valid.sum().clamp(min=1)
        assert_values(ratio, file[f"mask_ratio_for_{net}"], absolute=1e-4)
    for gradient, net in zip(torch.autograd.grad(losses["a"] + losses["b"], list(logits.values())), "ab", strict=True):
        assert_gradient(gradient, file[f"grad_logits_{net}"])


# U2PL: mixing


@pytest.mark.parametrize("name", ["strong_mix"])
def test_strong_mix(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    image, target, confidence = (tensor(file[key]) for key in ("image", "target", "conf"))
    keep = tensor(file["keep_mask"]).bool()
    number = int(target.masked_fill(target == IGNORE, 0).max()) + 1
    score = torch.full((len(target), number + 1), float("inf"))
    for index, of_image in enumerate(target):
        shown = of_image.unique().clamp(max=number)
        for place, chosen in enumerate(file[f"class_perm{index}"]):
            score[index, shown[int(chosen)]] = place
    classes = class_halves(target, score)
    np.testing.assert_array_equal(classes.numpy(), file["class_mask"] != 0)
    for what, values, erased in (("image", image, 0.0), ("target", target, IGNORE), ("conf", confidence, 0.0)):
        found = {
            "cutout": paste(values, torch.full_like(values, erased), ~keep),
            "cutmix": paste(values, partners(values), ~keep),
            "classmix": paste(values, partners(values), ~classes),
        }
        for mixing, ours in found.items():
            np.testing.assert_array_equal(ours.numpy(), file[f"{what}_{mixing}"], f"{what} {mixing}")


@pytest.mark.parametrize("name", ["u2pl_cutout_mask"])
def test_u2pl_cutout_mask(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    size = (int(file["height"]), int(file["width"]))
    holes = [
        (x, y, width, hole_height(size, int(width), int(file["ratio"]))) for width, x, y in file["draws_w_x_y"].tolist()
    ]
    np.testing.assert_array_equal(around(torch.tensor(holes), size).numpy(), file["keep_mask"] != 0)


# U2PL: losses


@pytest.mark.parametrize("name", ["u2pl_unsup"])
def test_u2pl_unsup(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    student = tensor(file["student"]).requires_grad_()
    entropy = contrast.pixel_entropy(tensor(file["teacher_for_entropy"]))
    pseudo = contrast.reliable(labels(file["pseudo"]), entropy, float(file["keep_percent"]))
    np.testing.assert_array_equal(pseudo, file["pseudo_after_drop"])
    loss = contrast.reliable_cross_entropy(student, pseudo)
    assert_values(loss, np.nan_to_num(file["loss"]), absolute=1e-4)
    assert_gradient(torch.autograd.grad(loss, student)[0], np.nan_to_num(file["grad_student"]))


@pytest.mark.parametrize("name", ["u2pl_masks"])
def test_u2pl_masks(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    logits, pseudo, target = tensor(file["teacher_u"]), labels(file["pseudo_u"]), labels(file["target_l"])
    alpha, grid = float(file["alpha"]), (int(file["low_height"]), int(file["low_width"]))
    counted, seen = pseudo != IGNORE, target != IGNORE
    entropy = contrast.pixel_entropy(logits)
    assert_values(entropy, file["entropy"], absolute=1e-4)
    assert_values(contrast.percentile(entropy, counted, alpha), file["low_threshold"], absolute=1e-4)
    assert_values(contrast.percentile(entropy, counted, 100 - alpha), file["high_threshold"], absolute=1e-4)
    for mask, key in zip(contrast.entropy_masks(entropy, counted, alpha), ("low", "high"), strict=True):
        small = torch.cat([shrink_labels(seen, grid), shrink_labels(mask, grid)])
        np.testing.assert_array_equal(small[:, None].float(), file[f"{key}_mask_small"])
    for label, key in ((target, "l"), (pseudo, "u")):
        found = contrast.one_hot(shrink_labels(label, grid), logits.shape[1], "published")
        np.testing.assert_array_equal(found.float(), file[f"onehot_{key}_small"])


class Contrast:
    """One case of the file ``u2pl_contrastive``: its names without their prefix."""

    def __init__(self, file: File, prefix: str) -> None:
        self.file = {key.removeprefix(prefix): value for key, value in file.items() if key.startswith(prefix)}
        self.classes = int(self["n_classes"])
        self.label = torch.cat([labels(self["label_l"]), labels(self["label_u"])])
        self.probability = torch.cat([tensor(self["prob_l"]), tensor(self["prob_u"])])
        self.labeled = (torch.arange(len(self.label)) < len(self["label_l"]))[:, None, None].expand_as(self.label)
        self.low, self.high = (tensor(self[f"{key}_mask"])[:, 0] > 0 for key in ("low", "high"))
        self.teacher = rows(tensor(self["rep_teacher"]))
        self.chosen = contrast.candidates(
            rows(contrast.one_hot(self.label, self.classes)).T,
            rows(self.probability).T,
            self.low.flatten(),
            self.high.flatten(),
            self.labeled.flatten(),
            low_rank=int(self["low_rank"]),
            high_rank=int(self["high_rank"]),
            delta_p=float(self["delta_p"]),
            delta_n=float(self["delta_n"]),
            negatives="published",
        )

    def __getitem__(self, key: str) -> NDArray:
        return self.file[key]

    def bank(self, when: str) -> list[Tensor]:
        return [tensor(self[f"bank_{when}{k}"]) for k in range(self.classes)]

    def draws(self, key: str, pairs: list[tuple[int, int]]) -> Callable[[Tensor, int], Tensor]:
        """The stored draws, in the order of the ``pairs`` (class of the anchors, class of the queue) that take part."""
        stored = iter(self[f"{key}{j}"] for j in range(int(self["n_" + key + "s"])))
        banks = self.bank("after")
        parts: dict[int, tuple[NDArray, NDArray]] = {}
        for anchors, queue in pairs:
            if bool(self.chosen.anchor[anchors].any()) and len(banks[queue]):
                parts[anchors] = next(stored), next(stored)
        assert next(stored, None) is None, "every stored draw has its place"
        calls = iter((0, 1))

        def draw(count_K: Tensor, number: int) -> Tensor:
            which = next(calls)
            result = torch.zeros(len(count_K), number, dtype=torch.int64)
            for k, both in parts.items():
                result[k] = tensor(both[which])
            return result

        return draw


def rows(map_BChw: Tensor) -> Tensor:
    return map_BChw.movedim(1, -1).flatten(0, 2)


def append(memory: NegativeQueue, k: int, keys: Tensor) -> None:
    """Remember the keys of one class, as many at once as the memory takes."""
    for part in torch.split(keys, memory.smallest):
        everyone = torch.zeros(len(memory.number_K), len(part), keys.shape[1])
        number = torch.zeros(len(memory.number_K), dtype=torch.int64)
        everyone[k], number[k] = part, len(part)
        memory.append(everyone, number)


def oldest_first(memory: NegativeQueue, k: int) -> Tensor:
    first, number = int(memory.first_K[k]), int(memory.number_K[k])
    held = memory.rows_RC[first : first + number]
    return held.roll(-int(memory.pointer_K[k]), 0) if number == int(memory.capacity_K[k]) else held


@pytest.mark.parametrize("prefix", ["all_", "absent_"])
@pytest.mark.parametrize("name", ["u2pl_contrastive"])
def test_u2pl_contrastive_memory(golden: Golden, name: str, prefix: str) -> None:
    case = Contrast(golden(f"semi_baselines/{name}"), prefix)
    memory = NegativeQueue(case["queue_capacity"].tolist(), case.teacher.shape[1], "fp32")
    for k, before in enumerate(case.bank("before")):
        append(memory, k, before)
        append(memory, k, case.teacher[case.chosen.negative[k]])
    for k, after in enumerate(case.bank("after")):
        np.testing.assert_array_equal(oldest_first(memory, k), after)
    np.testing.assert_array_equal(memory.number_K, case["queue_pointer_after"])


@pytest.mark.parametrize("indexing", ["published", "corrected"])
@pytest.mark.parametrize("prefix", ["all_", "absent_"])
@pytest.mark.parametrize("name", ["u2pl_contrastive"])
def test_u2pl_contrastive(golden: Golden, name: str, prefix: str, indexing: contrast.Indexing) -> None:
    case = Contrast(golden(f"semi_baselines/{name}"), prefix)
    student = tensor(case["rep_student"]).requires_grad_()
    present = case.chosen.centre.any(1).nonzero()[:, 0].tolist()
    taking_part = present if len(present) > 1 else []
    banks = case.bank("after")
    number = torch.tensor([len(bank) for bank in banks])
    if indexing == "published":
        draws = case.draws("index_draw", list(enumerate(taking_part)))
    else:
        draws = case.draws("corrected_draw", [(k, k) for k in taking_part])
    loss = contrast.memory_contrast(
        rows(student),
        case.teacher,
        case.chosen,
        torch.cat([*banks, torch.zeros(1, case.teacher.shape[1])]),
        number.cumsum(0) - number,
        number,
        draws,
        anchors=int(case["num_queries"]),
        negatives=int(case["num_negatives"]),
        temperature=float(case["temperature"]),
        indexing=indexing,
    )
    assert_values(loss, case[f"loss_{indexing}"], absolute=1e-4)
    assert_gradient(torch.autograd.grad(loss, student)[0], case[f"grad_rep_{indexing}"])


@pytest.mark.parametrize("name", ["u2pl_queue"])
def test_u2pl_queue(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    before = tensor(file["queue_before"])
    memory = NegativeQueue([int(file["capacity"])], before.shape[1], "fp32")
    append(memory, 0, before)
    assert int(memory.number_K) == int(file["pointer_before"])
    steps = sum(key.startswith("keys") for key in file)
    assert steps
    for step in range(steps):
        append(memory, 0, tensor(file[f"keys{step}"]))
        np.testing.assert_array_equal(oldest_first(memory, 0), file[f"queue_after{step}"])
        np.testing.assert_array_equal(memory.number_K, file[f"pointer_after{step}"].reshape(-1))
