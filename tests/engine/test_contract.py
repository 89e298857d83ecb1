"""The engine keeps its side: equal to a hand-written loop, to more ranks, and to itself after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from tests.engine.toy import CLASSES, Toy, ToyStream, make_batch
from tutelage.data.batch import warp
from tutelage.engine import collectives
from tutelage.engine.contract import StepContext
from tutelage.engine.loop import fit
from tutelage.engine.settings import FitSettings, OptimizerSettings
from tutelage.runs.checkpoints import Checkpoints

CPU = torch.device("cpu")
STEPS = 6
MAIN = OptimizerSettings(
    kind="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, encoder_lr_ratio=0.5, decay_norm_and_bias=True
)


def settings(**changes: object) -> FitSettings:
    return FitSettings(**{"steps": STEPS, "optimizer": MAIN, "checkpoint_every": 2, "log_every": 1, **changes})


def trained(toy: Toy, **changes: object) -> dict[str, torch.Tensor]:
    fit(toy, {"labeled": ToyStream()}, settings(**changes), seed=3, device=CPU)
    return toy.state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing, differing


def by_hand() -> dict[str, torch.Tensor]:
    """The same training as the engine's, written out without it."""
    toy = Toy(dropout=0.2, noise=0.1).to(memory_format=torch.channels_last)
    toy.train()
    encoder = list(toy.student.encoder.parameters())
    rest = [*toy.student.norm.parameters(), *toy.student.classifier.parameters(), *toy.projector.parameters()]
    main = torch.optim.SGD(
        [{"params": rest, "lr": 0.1}, {"params": encoder, "lr": 0.05}], momentum=0.9, weight_decay=1e-4, foreach=True
    )
    critic = torch.optim.Adam(toy.critic.parameters(), lr=1e-3, fused=True)
    for step in range(STEPS):
        view = make_batch(range(step * 8, step * 8 + 8))["weak"]
        share = (view.label != 255).sum().float()
        torch.manual_seed(StepContext(step, STEPS, 3, CPU, "segment", 0, 1).global_seed)
        logits, embedding = toy.student(view.image)
        with torch.no_grad():
            taught, _ = toy.teacher(view.image)
        replayed = warp(view.maps["source_map"], view.geometry, fill=255)
        seen = F.cross_entropy(logits, replayed, ignore_index=255, reduction="sum")
        loss = torch.stack(
            [
                F.cross_entropy(logits, view.label, ignore_index=255, reduction="sum") / share,
                0.1 * seen / replayed.numel(),
                F.mse_loss(logits.softmax(1), taught.softmax(1)),
                -0.01 * toy.critic(logits.softmax(1)).mean(),
            ]
        ).sum()
        wanted = [*encoder, *rest[:4]]
        for parameter, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
            parameter.grad = gradient
        real = F.one_hot(view.label.clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2).float()
        fake = logits.softmax(1).detach()
        (F.softplus(-toy.critic(real)).mean() + F.softplus(toy.critic(fake)).mean()).backward(
            inputs=list(toy.critic.parameters())
        )
        if step >= toy.gate:
            rows = toy.projector(embedding.detach().mean((2, 3)))
            rows = rows + 0.1 * torch.randn(
                rows.shape, generator=StepContext(step, STEPS, 3, CPU, "align", 0, 1).generator
            )
            F.mse_loss(rows, toy.queue.rows.mean(0).expand_as(rows)).backward()
        factor = (1 - step / STEPS) ** 0.9
        main.param_groups[0]["lr"], main.param_groups[1]["lr"] = 0.1 * factor, 0.05 * factor
        for optimizer in (main, critic):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(toy.teacher.parameters(), toy.student.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
            rows = embedding.detach().mean((2, 3))
            order = torch.randperm(8, generator=StepContext(step, STEPS, 3, CPU, "after").shared_generator)
            toy.queue.push(rows[order])
    return toy.state_dict()


def test_equals_a_hand_written_loop_to_the_bit() -> None:
    assert_equal(trained(Toy(dropout=0.2, noise=0.1)), by_hand())


def test_two_uninterrupted_runs_are_byte_equal_whatever_the_global_generator_says() -> None:
    first, second = (Toy(dropout=0.2, noise=0.1) for _ in range(2))
    torch.manual_seed(999)
    expected = trained(first)
    torch.rand(17)
    assert_equal(expected, trained(second))


def test_a_gated_net_has_no_gradient_rather_than_a_zero_one() -> None:
    before = Toy().projector.weight.clone()
    toy = Toy(gate=STEPS)  # never trained: weight decay and momentum must not touch it either
    trained(toy)
    assert torch.equal(toy.projector.weight, before)
    assert not torch.equal(toy.student.classifier.weight, Toy().student.classifier.weight)


def test_passes_train_only_what_they_name() -> None:
    toy = Toy()
    seen: list[tuple[str, set[str]]] = []
    original = toy.forward

    def spy(batches, pass_name, context):  # type: ignore[no-untyped-def]
        seen.append((pass_name, {n for n, c in toy.named_children() if any(p.requires_grad for p in c.parameters())}))
        return original(batches, pass_name, context)

    toy.forward = spy  # type: ignore[method-assign]
    trained(toy, steps=3)
    assert seen[0] == ("segment", {"student"})
    assert seen[1] == ("discriminate", {"critic"})
    assert seen[-1] == ("align", {"projector"})
    assert all(p.requires_grad for p in toy.critic.parameters()), "given back after the pass"


def _rank(rank: int, world: int, store: str, folder: str, arguments: dict, changes: dict) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    toy = Toy(**arguments)
    if rank:  # rank 0's weights count
        nn.init.zeros_(toy.student.classifier.weight)
    state = trained(toy, **changes)
    torch.save(state, Path(folder) / f"{rank}.pt")
    collectives.leave()


def over_two_ranks(tmp_path: Path, arguments: dict, **changes: object) -> list[dict[str, torch.Tensor]]:
    mp.spawn(_rank, (2, str(tmp_path / "store"), str(tmp_path), arguments, changes), nprocs=2)
    return [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    arguments = {"norm": "group"}  # what depends on the batch itself (batch norm, draws per slice) cannot be equal
    one = trained(Toy(**arguments))
    ranks = over_two_ranks(tmp_path, arguments)
    assert_equal(*ranks)
    assert_close(ranks[0], one)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_micro_batches_equal_ranks(tmp_path: Path, norm: str) -> None:
    arguments = {"norm": norm, "dropout": 0.2, "noise": 0.1}
    micro = trained(Toy(**arguments), accumulate=2)
    ranks = over_two_ranks(tmp_path, arguments)
    assert_equal(*ranks)
    rank = ranks[0]
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # averaged over ranks, updated per micro-batch
    assert_close(
        {n: v for n, v in rank.items() if not n.endswith(statistics)},
        {n: v for n, v in micro.items() if not n.endswith(statistics)},
    )


def test_micro_batches_of_ranks_are_slices_of_their_own(tmp_path: Path) -> None:
    """Two ranks with two micro-batches each draw what four micro-batches draw."""
    arguments = {"norm": "group", "dropout": 0.2, "noise": 0.1}
    micro = trained(Toy(**arguments), accumulate=4)
    assert_close(over_two_ranks(tmp_path, arguments, accumulate=2)[0], micro)


def _rank_with_checkpoints(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    store = Checkpoints(Path(folder) / str(rank), 2)
    fit(Toy(norm="group"), {"labeled": ToyStream()}, settings(), seed=3, device=CPU, checkpoints=store)
    collectives.leave()


def test_the_first_process_alone_writes_checkpoints(tmp_path: Path) -> None:
    mp.spawn(_rank_with_checkpoints, (str(tmp_path),), nprocs=2)
    assert Checkpoints(tmp_path / "0").steps() == [4, 6]
    assert Checkpoints(tmp_path / "1").steps() == []


_VICTIM = """
import sys, os, signal
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.engine.test_contract import CPU, Toy, ToyStream, settings, fit, Checkpoints
from tutelage.engine.loop import Callbacks
folder, die_at, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
toy = Toy(dropout=0.2, noise=0.1)
if die_at >= 0:
    original = toy.after_step
    def after_step(context):
        original(context)
        if context.step == die_at:
            os.kill(os.getpid(), getattr(signal, how))
    toy.after_step = after_step
callbacks = Callbacks(on_evaluate=lambda step: float(toy.student.classifier.weight.abs().sum()), evaluate_every=2)
streams, store = {"labeled": ToyStream()}, Checkpoints(folder, 2)
progress = fit(toy, streams, settings(), seed=3, device=CPU, checkpoints=store, callbacks=callbacks)
torch.save({**toy.state_dict(), "best": torch.tensor([progress.best_score, progress.best_step])}, folder / "final.pt")
"""


def run_victim(folder: Path, die_at: int, how: str = "SIGKILL") -> int:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _VICTIM, str(folder), str(die_at), how]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("die_at", "how"),
    [
        (4, "SIGKILL"),
        (3, "SIGTERM"),
        pytest.param(0, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(2, "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_byte_for_byte(tmp_path: Path, die_at: int, how: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert run_victim(whole, -1) == 0
    assert run_victim(broken, die_at, how) != 0
    if how != "SIGKILL":
        assert Checkpoints(broken).steps()[-1] == die_at + 1, "asked politely, it keeps what it has"
    assert run_victim(broken, -1) == 0
    assert (whole / "final.pt").read_bytes() == (broken / "final.pt").read_bytes()
    for name in sorted(path.name for path in whole.glob("checkpoint-*.safetensors")):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
