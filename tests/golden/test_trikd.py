"""Folder trikd: its losses and its schedule (its nets: ``test_trikd_nets.py``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.engine.settings import ScheduleSettings
from tutelage.losses.consistency import cross_pseudo_supervision, pseudo_label
from tutelage.losses.cross_architecture import attention_loss, spatial_loss
from tutelage.losses.segmentation import cross_entropy, ohem_cross_entropy

VIEWS = ("hybrid", "cnn", "vit")


@pytest.mark.parametrize("name", ["ohem"])
def test_ohem(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    for case in range(sum(key.startswith("logits") for key in file)):
        logits = tensor(file[f"logits{case}"]).requires_grad_()
        loss = ohem_cross_entropy(
            logits,
            tensor(file[f"target{case}"]),
            threshold=float(file[f"thresh{case}"]),
            min_kept=int(file[f"min_kept{case}"]),
        )
        assert_values(loss, file[f"loss{case}"])
        assert_gradient(torch.autograd.grad(loss, logits)[0], file[f"grad{case}"])


@pytest.mark.parametrize("name", ["triple_view_losses"])
def test_triple_view_losses(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    inputs = {key: tensor(file[key]).requires_grad_() for key in file if key.startswith(("logits_", "feat_", "attn_"))}
    target = labels(file["target_l"])
    losses = {}
    for view in ("hybrid", "cnn"):
        losses[f"sup_{view}"] = ohem_cross_entropy(
            inputs[f"logits_l_{view}"],
            target,
            threshold=float(file["ohem_thresh"]),
            min_kept=int(file["ohem_min_kept"]),
        )
    losses["sup_vit"] = cross_entropy(inputs["logits_l_vit"], target)
    pseudo = {view: pseudo_label(inputs[f"logits_u_{view}"])[0] for view in VIEWS}
    for view in VIEWS:
        np.testing.assert_array_equal(pseudo[view].numpy(), file[f"pseudo_{view}"])
        others = [pseudo[other] for other in VIEWS if other != view]
        terms = [cross_pseudo_supervision(inputs[f"logits_u_{view}"], other) for other in others]
        losses[f"cps_{view}"] = torch.stack(terms).sum()
    losses["cps"] = torch.stack([losses[f"cps_{view}"] for view in VIEWS]).sum()
    features, attention = (
        [torch.cat([inputs[f"{kind}_{part}_{view}"] for part in "lu"]) for view in ("hybrid", other)]
        for kind, other in (("feat", "cnn"), ("attn", "vit"))
    )
    losses["spatial"] = spatial_loss(*features)
    losses["attention"] = attention_loss(*attention)
    weights = {key[2:]: float(file[key]) for key in file if key.startswith("w_")}
    losses["total"] = torch.stack([weight * losses[term] for term, weight in weights.items()]).sum()
    for term, loss in losses.items():
        assert_values(loss, file[f"loss_{term}"])
    gradients = torch.autograd.grad(losses["total"], list(inputs.values()), allow_unused=True, materialize_grads=True)
    for key, gradient in zip(inputs, gradients, strict=True):
        assert_gradient(gradient, file[f"grad_{key}"])


@pytest.mark.parametrize("name", ["view_distillation"])
def test_view_distillation(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    keys = ("feat_hybrid", "w_low_weight", "w_low_bias", "attn_hybrid", "w_high_weight", "w_high_bias")
    inputs = {key: tensor(file[key]).requires_grad_() for key in keys}
    feature, low_weight, low_bias, attention, high_weight, high_bias = inputs.values()
    projected = F.conv2d(attention, high_weight, high_bias)
    assert_values(projected, file["attn_projected"])
    spatial = spatial_loss(F.conv2d(feature, low_weight, low_bias), tensor(file["feat_cnn"]))
    attentive = attention_loss(projected, tensor(file["attn_vit"]))
    assert_values(spatial, file["loss_spatial"])
    assert_values(attentive, file["loss_attention"])
    for key, gradient in zip(keys, torch.autograd.grad(spatial + attentive, list(inputs.values())), strict=True):
        if f"grad_{key}" in file:
            assert_gradient(gradient, file[f"grad_{key}"])


@pytest.mark.parametrize("name", ["schedule"])
def test_schedule(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    total, full = int(file["total_iters"]), float(file["base_lr"])
    late = ScheduleSettings(kind="poly", power=float(file["power"]), lag=1)
    for schedule, key in ((late, "lr_used_hybrid_and_cnn"), (ScheduleSettings(kind="constant"), "lr_used_vit")):
        rates = np.array([full * schedule.factor(step, total) for step in range(len(file[key]))])
        np.testing.assert_allclose(rates, file[key], rtol=1e-4)
