"""What must hold for every method: a step is finite, its state comes back, an interrupted run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.cases import CLASSES, FACTS, Stream, changed, copied, tiny, train
from tutelage.engine.contract import Method, TaskInfo
from tutelage.methods.advent import AdaptSegNet, AdvEnt, MinEnt
from tutelage.methods.bismap import BiSMAP, BiSMAPWarmUp
from tutelage.methods.cag import CAG
from tutelage.methods.cbst import CBST
from tutelage.methods.cps import CPS
from tutelage.methods.dacs import DACS
from tutelage.methods.daformer import DAFormer
from tutelage.methods.distillation.distill import Distill
from tutelage.methods.fda import FDA, FDASelfTraining
from tutelage.methods.fixmatch import FixMatch
from tutelage.methods.hrda import HRDA
from tutelage.methods.mean_teacher import MeanTeacher
from tutelage.methods.mic import MIC
from tutelage.methods.pbal import PBALBidirectional, PBALSelfTraining
from tutelage.methods.pixel_kd import PixelKD
from tutelage.methods.proda import ProDA
from tutelage.methods.self_distill import SelfDistill
from tutelage.methods.supervised import Supervised
from tutelage.methods.trikd import TriKD
from tutelage.methods.u2pl import U2PL
from tutelage.methods.unimatch import UniMatch
from tutelage.methods.unimatch_v2 import UniMatchV2
from tutelage.runs.checkpoints import Checkpoints

_U2PL = {"low_rank": 1, "high_rank": 3, "queue": 50, "anchors": 8, "dimensions": 16, "precision": "fp32"}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "supervised": (Supervised, {"dice": 0.5, "class_weights": "balanced"}),
    "pixel_kd": (PixelKD, {"temperature": 2.0}),
    "distill": (Distill, {"losses": {"pixel_kd": 1.0, "cwd_features": {}, "ifvd": {}, "dsd_pixel": {}, "mgd": {}}}),
    "mean_teacher": (MeanTeacher, {"ramp_steps": 2, "ramp_decay": True}),
    "fixmatch": (FixMatch, {"threshold": 0.4}),
    "fixmatch_ema": (FixMatch, {"threshold": 0.4, "pseudo_labels": "ema"}),
    "unimatch": (UniMatch, {"threshold": 0.4}),
    "unimatch_ema": (UniMatch, {"threshold": 0.4, "pseudo_labels": "ema"}),
    "unimatch_v2": (UniMatchV2, {"threshold": 0.4}),
    "trikd": (TriKD, {}),
    "trikd_view_wise": (TriKD, {"view_wise": True}),
    "advent": (AdvEnt, {"adversarial": 0.1, "entropy": 0.1}),
    "adaptsegnet": (AdaptSegNet, {"adversarial": 0.1, "loss": "least_squares"}),
    "minent": (MinEnt, {"entropy": 0.1}),
    "fda": (FDA, {"style": {"beta": 0.05}, "entropy": 0.1}),
    "fda_self_training": (FDASelfTraining, {"style": {"kind": "statistics"}}),
    "cbst": (CBST, {}),
    "bismap_warm_up": (BiSMAPWarmUp, {"ramp_steps": 0, "decay": 0.9}),
    "bismap": (BiSMAP, {"ramp_steps": 2, "decay": 0.9, "teacher_norm": "running"}),
    "proda": (ProDA, {"decay": 0.9, "rate": 0.1, "min_pixels": 1}),
    "proda_threshold": (ProDA, {"threshold": 0.4, "ema_eval": True, "regularizer": "mrent", "min_pixels": 1}),
    "self_distill": (SelfDistill, {}),
    "self_distill_bismap": (SelfDistill, {"target_loss": "symmetric", "form": "code", "view": "weak", "grid": 1}),
    "cag": (CAG, {"margin": 0.01, "threshold": 0.4, "min_pixels": 1}),
    "pbal_bpl": (PBALBidirectional, {"prototype_grad": True}),
    "pbal_warm_up": (PBALBidirectional, {"weight": 0.0}),
    "pbal_pst": (PBALSelfTraining, {}),
    "pbal_pst_projection": (PBALSelfTraining, {"projection": "linear", "reduction": "valid"}),
    "cps": (CPS, {}),
    "cps_cutmix": (CPS, {"cutmix": True, "threshold": 0.2}),
    "u2pl": (U2PL, _U2PL),
    "u2pl_published": (U2PL, {**_U2PL, "compat": "published", "mixing": "classmix", "queue_first": 70, "keys": None}),
    "dacs": (DACS, {"threshold": 0.4}),
    "daformer": (DAFormer, {"threshold": 0.4}),
    "hrda": (HRDA, {"threshold": 0.4}),
    "mic": (MIC, {"threshold": 0.4, "masked_consistency": {"block": 16}}),
    "mic_hrda": (HRDA, {"threshold": 0.4, "masked_consistency": {"block": 16}}),
    "mic_advent": (AdvEnt, {"adversarial": 0.1, "masked_consistency": {"block": 16, "threshold": 0.4}}),
    "mic_minent": (MinEnt, {"masked_consistency": {"block": 16, "threshold": 0.4}}),
}
ADAM = {"kind": "adamw", "lr": 1e-3}


def info(kind: type[Any], nets: dict[str, Any]) -> TaskInfo:
    """What is known of the task, with class means where a method starts from them."""
    width = next(iter(nets.values())).embedding_channels
    means = torch.rand(CLASSES, width, generator=torch.Generator().manual_seed(3))
    return replace(
        FACTS,
        fitted_inputs={
            role: {"prototypes": means, "counts": torch.ones(CLASSES)} for role in kind.Settings.fitted_inputs
        },
    )


def make(name: str, decoder: str = "lraspp", auxiliary: bool = False, seed: int = 0, **changes: Any) -> Method:
    kind, settings = KINDS[name]
    nets = {role: tiny(decoder, auxiliary, seed + number) for number, role in enumerate(kind.Settings.trained_nets)}
    for role in kind.Settings.teachers:
        nets[role] = tiny(
            decoder if "anchors" in kind.Settings.fitted_inputs else "deeplabv3plus", seed=1
        )  # whose features they are
    torch.manual_seed(seed)
    made: Method = kind(nets, kind.Settings(**{**settings, **changes}), info(kind, nets))
    return made


@pytest.mark.parametrize(("decoder", "auxiliary"), [("lraspp", False), ("deeplabv3plus", True)])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_changes_what_is_trained_and_stays_finite(name: str, decoder: str, auxiliary: bool) -> None:
    method = make(name, decoder, auxiliary)
    before = {child: copied(module) for child, module in method.named_children()}
    trained = {net for each in method.passes(0) for net in each.trains}
    train(method, optimizer=ADAM)
    for child, module in method.named_children():
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
        names = {name for name, _ in module.named_parameters()}
        moved = changed(module, before[child]) & names
        if child in trained:
            # A convolution before a norm over one place, and the like, may have no gradient in one step.
            assert len(moved) >= 0.9 * len(names), (child, names - moved)
        elif child not in ("ema", "ema_representation", "memory", "prototypes"):
            assert not changed(module, before[child])


@pytest.mark.parametrize("name", KINDS)
def test_no_labels_at_all(name: str) -> None:
    method = make(name, "deeplabv3plus", True, **({"class_weights": None} if name == "supervised" else {}))
    labelled = next(stream for stream, needs in method.Settings.streams.items() if needs.labels)
    train(method, **{labelled: Stream(0, ignored=1.0, views=method.Settings.streams[labelled].views)})
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


@pytest.mark.parametrize("name", KINDS)
def test_state_goes_round(name: str) -> None:
    method, other = make(name, auxiliary=True), make(name, auxiliary=True, seed=9)
    train(method)
    teachers = {role: copied(other.get_submodule(role)) for role in method.Settings.teachers}
    other.load_learned_state(method.learned_state())
    for key, value in method.learned_state().items():
        assert torch.equal(value, other.learned_state()[key])
        assert not key.startswith(tuple(f"{role}." for role in teachers))
    for role, teacher in teachers.items():
        assert not changed(other.get_submodule(role), teacher)


@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_run_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    def run(folder: str, stop_at: int | None = None) -> Method:
        method = make(name, auxiliary=True)
        train(
            method, steps=4, checkpoints=Checkpoints(tmp_path / folder), stop_at=stop_at, optimizer=ADAM, accumulate=2
        )
        return method

    whole = run("whole")
    run("broken", stop_at=2)
    again = run("broken")
    assert not changed(again, copied(whole))
    last = "checkpoint-000000004.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "broken" / last).read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_bf16_computes_nets_in_half_and_keeps_their_weights_in_single(name: str) -> None:
    method = make(name)
    train(method, precision="bf16")
    assert {value.dtype for value in method.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    assert all(module.precision == "bf16" for module in method.children() if hasattr(module, "precision"))
