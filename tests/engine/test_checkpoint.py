"""What a checkpoint holds comes back to the bit, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_loop import CPU, Line, Numbers, settings
from tests.engine.toy import Toy, ToyStream
from tests.errors import raises_code
from tutelage.engine import checkpoint
from tutelage.engine.contract import Method
from tutelage.engine.loop import Callbacks, fit
from tutelage.engine.optimizers import build_optimizer
from tutelage.engine.settings import FitSettings, MethodSettings, OptimizerSettings
from tutelage.runs.atomic import write_json
from tutelage.runs.checkpoints import Checkpoints


def trained(kind: str, steps: int = 3) -> tuple[Toy, dict[str, torch.optim.Optimizer]]:
    """A toy and its optimizers after some steps, without the loop; the projector has no gradient yet."""
    toy = Toy().to(memory_format=torch.channels_last)
    settings = OptimizerSettings(kind=kind, lr=0.1, momentum=0.9)
    optimizers = {
        "main": build_optimizer([toy.student, toy.projector], settings),
        "critic": build_optimizer([toy.critic], settings),
    }
    for step in range(steps):
        image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        logits, _ = toy.student(image)
        (logits.square().mean() + toy.critic(logits.softmax(1)).mean()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return toy, optimizers


def layout(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam"])
def test_written_and_restored_to_the_bit(tmp_path: Path, kind: str) -> None:
    toy, optimizers = trained(kind)
    checkpoint.write(tmp_path / "a.safetensors", toy, optimizers)
    other, fresh = trained(kind, steps=1)
    checkpoint.restore(tmp_path / "a.safetensors", other, fresh)
    for name, value in toy.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, optimizer in optimizers.items():
        ours, theirs = optimizer.state_dict()["state"], fresh[name].state_dict()["state"]
        assert ours.keys() == theirs.keys()
        for index, state in ours.items():
            for key, value in state.items():
                assert torch.equal(value, theirs[index][key]), (name, index, key)
                assert value.dtype == theirs[index][key].dtype
                assert layout(value) == layout(theirs[index][key]), "kernels walk both side by side"
    checkpoint.write(tmp_path / "b.safetensors", other, fresh)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_has_everything_once_and_the_teachers_not_at_all(tmp_path: Path) -> None:
    line = Line()
    optimizers = {"main": build_optimizer([line.student], OptimizerSettings())}
    line.student.sum.backward()
    optimizers["main"].step()
    packed = checkpoint.pack(line, optimizers)
    assert {name for name in packed if name.startswith("method.")} == {
        "method.student.encoder.0", "method.student.head.0", "method.critic.encoder.0", "method.critic.head.0",
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name in packed if name.startswith("optimizer.main.0.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in packed.values())


class Tied(Method):
    """Two nets that share a parameter."""

    Settings = MethodSettings

    def __init__(self) -> None:
        super().__init__()
        self.student, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.student.weight


def test_tied_parameters(tmp_path: Path) -> None:
    tied = Tied()
    checkpoint.write(tmp_path / "a.safetensors", tied, {})
    other = Tied()
    checkpoint.restore(tmp_path / "a.safetensors", other, {})
    assert torch.equal(other.student.weight, tied.student.weight)
    assert other.other.weight is other.student.weight


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a.safetensors", Line(), {})
    with raises_code("checkpoint-mismatch", "a.safetensors") as raised:
        checkpoint.restore(tmp_path / "a.safetensors", Tied(), {})
    assert "remove the stage's folder" in raised.value.remedy


# Going on where things are not as they were


def resumed(folder: Path, change: dict[str, object]) -> tuple[list[str], dict[str, Tensor]]:
    """Four steps, of which two were done by a run whose environment was another; what was said."""
    store = Checkpoints(folder)
    fit(Toy(), {"labeled": ToyStream()}, settings(checkpoint_every=1), seed=3, device=CPU, checkpoints=store, stop_at=2)
    found = store.latest()
    assert found is not None
    found.state["environment"].update(change)
    store.save(2, lambda path: path.write_bytes(found.tensors.read_bytes()) and None, found.state)
    said: list[str] = []
    toy = Toy()
    callbacks = Callbacks(message=said.append)
    fit(
        toy,
        {"labeled": ToyStream()},
        settings(),
        seed=3,
        device=CPU,
        checkpoints=Checkpoints(folder),
        callbacks=callbacks,
    )
    return said, toy.state_dict()


def test_the_same_surroundings_are_byte_exact_and_others_are_named(tmp_path: Path) -> None:
    toy = Toy()
    fit(toy, {"labeled": ToyStream()}, settings(), seed=3, device=CPU)
    said, state = resumed(tmp_path / "same", {})
    assert said == ["resuming after step 2"]
    assert all(torch.equal(value, state[name]) for name, value in toy.state_dict().items())
    said, _ = resumed(tmp_path / "other", {"torch": "1.0", "threads": 64})
    assert said == [
        f"resuming after step 2; not byte-exact against an uninterrupted run: torch 1.0 → "
        f"{checkpoint.environment(CPU)['torch']}, threads 64 → {torch.get_num_threads()}"
    ]


def test_surroundings_that_count() -> None:
    found = checkpoint.environment(CPU)
    assert {
        "tutelage",
        "torch",
        "timm",
        "numpy",
        "pillow",
        "python",
        "machine",
        "device",
        "threads",
        "processes",
    } <= set(found)
    assert all(found.values())


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(tmp_path: Path) -> None:
    toy = Toy()
    every = settings(checkpoint_every=1)
    whole = Checkpoints(tmp_path / "whole")
    fit(toy, {"labeled": ToyStream()}, every, seed=3, device=CPU, checkpoints=whole)
    said: list[str] = []
    store = Checkpoints(tmp_path / "broken", say=said.append)
    fit(Toy(), {"labeled": ToyStream()}, every, seed=3, device=CPU, checkpoints=store, stop_at=3)
    latest = tmp_path / "broken" / "checkpoint-000000003.safetensors"
    latest.write_bytes(latest.read_bytes()[:-10])
    again = Toy()
    fit(again, {"labeled": ToyStream()}, every, seed=3, device=CPU, checkpoints=store)
    assert "checkpoint of step 3 is damaged" in said[0]
    for name in ("checkpoint-000000003", "checkpoint-000000004"):
        for ending in (".safetensors", ".json"):
            assert (whole.folder / (name + ending)).read_bytes() == (store.folder / (name + ending)).read_bytes()


def test_patience_goes_on_where_it_was(tmp_path: Path) -> None:
    scores = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1}
    evaluated: list[int] = []

    def score(step: int) -> float:
        evaluated.append(step)
        return scores[step]

    def run(stop_at: int | None = None) -> int:
        callbacks = Callbacks(on_evaluate=score, evaluate_every=1)
        patient = settings(steps=5, patience=3, checkpoint_every=1)
        numbers, store = {"labeled": Numbers()}, Checkpoints(tmp_path)
        return fit(
            Line(), numbers, patient, seed=1, device=CPU, checkpoints=store, callbacks=callbacks, stop_at=stop_at
        ).step

    assert run(stop_at=3) == 3
    assert run() == 4
    assert evaluated == [1, 2, 3, 4]
    assert run() == 4
    assert evaluated == [1, 2, 3, 4], "out of patience it stays"


class Scaler:
    """Stands in for a gradient scaler on a GPU; notes what it was given back."""

    def __init__(self, *arguments: object, **named: object) -> None:
        self.scale_now, self.loaded = 65536.0, None

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        self.scale_now *= 2

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale_now}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale_now = state["scale"]


def test_the_scale_of_half_precision_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Scaler] = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **n: made.append(Scaler()) or made[-1])
    every: FitSettings = settings(checkpoint_every=1)
    for stop_at in (3, None):
        fit(
            Line(),
            {"labeled": Numbers()},
            every,
            seed=1,
            device=CPU,
            checkpoints=Checkpoints(tmp_path),
            stop_at=stop_at,
        )
    assert [scaler.scale_now for scaler in made] == [65536.0 * 2**3, 65536.0 * 2**4]


def test_a_state_that_is_no_state_is_refused_by_its_checksum(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    fit(Line(), {"labeled": Numbers()}, settings(checkpoint_every=2), seed=1, device=CPU, checkpoints=store)
    write_json(tmp_path / "checkpoint-000000004.json", {"step": 4, "sha256": "", "state": {}, "state_sha256": ""})
    found = store.latest()
    assert found is not None
    assert found.step == 2
