"""What is watched, measured and logged while training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.test_loop import CPU, settings
from tests.engine.toy import Toy, ToyStream, make_batch
from tests.errors import raises_code
from tutelage.data.batch import Batch
from tutelage.engine import trackers
from tutelage.engine.contract import StepContext
from tutelage.engine.log import TrainingLog, flat, read_log
from tutelage.engine.loop import fit
from tutelage.engine.meter import Meter, peak_memory
from tutelage.engine.watch import Watch
from tutelage.runs.checkpoints import Checkpoints

# The watch


def batches() -> dict[str, Batch]:
    return {"labeled": make_batch(range(2))}


def test_finite_terms_pass() -> None:
    watch = Watch(None)
    watch.check({"a": torch.tensor(1.0), "b": torch.tensor(-1e38)}, 3, "train", batches())
    watch.check({}, 3, "train", batches())
    watch.finish()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_named_with_its_step_and_images(tmp_path: Path, value: float) -> None:
    watch = Watch(tmp_path)
    terms = {"cross_entropy": torch.tensor(1.0), "consistency": torch.tensor(value), "dice": torch.tensor(value)}
    with raises_code("loss-not-finite") as raised:
        watch.check(terms, 7, "train", batches())
    message = raised.value.message
    assert "consistency, dice" in message
    assert "step 7 (pass 'train')" in message
    assert "toy:0, toy:1" in message
    assert "cross_entropy" not in message
    path = tmp_path / "not-finite-000000007.safetensors"
    assert str(path) in message
    saved = load_file(path)
    view = batches()["labeled"]["weak"]
    assert torch.equal(saved["labeled.weak.image"], view.image)
    assert torch.equal(saved["labeled.weak.label"], view.label)


def test_views_that_share_a_mask_are_saved(tmp_path: Path) -> None:
    view = make_batch(range(2))["weak"]
    shared = {"labeled": Batch({"weak": view, "strong": view}, torch.arange(2), ("a", "b"))}
    with raises_code("loss-not-finite", tmp_path / "not-finite-000000001.safetensors"):
        Watch(tmp_path).check({"loss": torch.tensor(math.nan)}, 1, "train", shared)
    saved = load_file(tmp_path / "not-finite-000000001.safetensors")
    assert torch.equal(saved["labeled.strong.label"], saved["labeled.weak.label"])


def test_a_batch_that_cannot_be_saved_does_not_hide_the_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises_code("loss-not-finite", "File exists"):
        Watch(tmp_path / "file").check({"loss": torch.tensor(math.nan)}, 1, "train", batches())


def test_without_a_folder_or_names_it_says_what_it_knows() -> None:
    nameless = {"labeled": Batch({}, torch.arange(2))}
    with raises_code("loss-not-finite", "unknown"):
        Watch(None).check({"loss": torch.tensor(math.nan)}, 1, "train", nameless)


class Poisoned(Toy):
    """Its critic's loss is not finite in the fourth step."""

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        terms = super().forward(batches, pass_name, context)
        return {name: term / (context.step != 3) if name == "critic" else term for name, term in terms.items()}


def test_a_run_ends_before_anything_is_learned_from_it(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    with raises_code("loss-not-finite", "critic", "step 3 (pass 'discriminate')") as raised:
        fit(Poisoned(), {"labeled": ToyStream()}, settings(checkpoint_every=1), seed=3, device=CPU, checkpoints=store)
    assert "toy:24" in raised.value.message
    assert store.steps() == [2, 3]
    found = store.latest()
    assert found is not None
    assert all(torch.isfinite(value).all() for value in load_file(found.tensors).values() if value.is_floating_point())


# The log


def test_a_log_is_a_json_object_a_line(tmp_path: Path) -> None:
    shown: list[dict] = []
    path = tmp_path / "stage" / "log.jsonl"
    records: list[dict[str, Any]] = [
        {"step": 1, "terms": {"ü": 0.5}},
        {"step": 2, "evaluation": {"student": {"miou": 0.25}}},
    ]
    with TrainingLog(path, shown.append) as log:
        for record in records:
            log.record(record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    assert read_log(path) == shown == records


def test_going_on_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path)
    for step in (1, 2, 3, 4):
        log.record({"step": step})
    with open(path, "a") as file:
        file.write('{"step": 5, "te')  # cut short by a kill
    assert [record["step"] for record in read_log(path)] == [1, 2, 3, 4]
    log.begin(2)
    log.record({"step": 3, "again": True})
    assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    log.begin(0)
    assert path.read_text() == ""
    TrainingLog(tmp_path / "new" / "log.jsonl").begin(0)
    assert not (tmp_path / "new").exists()


def test_a_log_without_a_file_only_shows() -> None:
    shown: list[dict] = []
    with TrainingLog(None, shown.append) as log:
        log.begin(0)
        log.record({"step": 1})
    assert shown == [{"step": 1}]


def test_numbers_by_one_name_each() -> None:
    record = {
        "step": 3,
        "steps": 9,
        "terms": {"a": 1, "b": 0.5},
        "evaluation": {"student": {"miou": 0.2, "iou": [None, 1.0]}},
    }
    assert flat(record) == {"terms/a": 1.0, "terms/b": 0.5, "evaluation/student/miou": 0.2}


class Spy:
    """A tracker that remembers."""

    made: list[Spy] = []

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.told: list[Any] = [(name, folder, dict(config))]
        Spy.made.append(self)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.told.append((step, dict(values)))

    def close(self) -> None:
        self.told.append("closed")


def log_and_fail(log: TrainingLog) -> None:
    with log:
        log.record({"step": 2, "terms": {"a": 1.0}})
        raise ZeroDivisionError


def test_trackers_hear_the_numbers_and_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Spy)
    monkeypatch.setattr(Spy, "made", [])
    log = TrainingLog(tmp_path / "log.jsonl", trackers=["mlflow"], name="n", config={"seed": 1})
    with pytest.raises(ZeroDivisionError):
        log_and_fail(log)
    assert Spy.made[0].told == [("n", tmp_path, {"seed": 1}), (2, {"terms/a": 1.0}), "closed"]


def test_a_tracker_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise ImportError("No module named 'wandb'")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", missing)
    with raises_code("package-missing", "'wandb'"):
        TrainingLog(None, trackers=["wandb"]).__enter__()


# The meter


def test_terms_are_means_since_the_last_record() -> None:
    meter = Meter(CPU, images_per_step=4, step=10, total=30)
    for value in (1.0, 2.0, 6.0):
        meter.add({"a": torch.tensor(value, requires_grad=True)})
    meter.add({"b": torch.tensor(0.1234567)})
    record = meter.record(12, {"main": 0.5})
    assert record["terms"] == {"a": 3.0, "b": 0.123457}
    assert (record["step"], record["steps"], record["rate"]) == (12, 30, {"main": 0.5})
    meter.add({"a": torch.tensor(5.0)})
    assert meter.record(13, {})["terms"] == {"a": 5.0}


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(CPU, images_per_step=4, step=0, total=10)
    with meter.waiting():
        now[0] += 1.0
    now[0] += 3.0
    with meter.apart():  # an evaluation: no training
        now[0] += 50.0
    record = meter.record(2, {})
    assert record["spent_s"] == 4.0
    assert record["data_wait"] == 0.25
    assert record["images_per_s"] == 2.0
    assert record["eta_s"] == 16.0
    now[0] += 1.0
    record = meter.record(3, {})
    assert (record["spent_s"], record["data_wait"], record["eta_s"]) == (1.0, 0.0, 7.0)


def test_memory_is_some_mebibytes() -> None:
    assert 50 < peak_memory(CPU) < 100_000
