"""The benchmarks run: a measurement that does not start measures nothing. Times are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def in_process(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "own"), [("plain", ("--width", "16", "--scale", "0.5", "1.5", "--threads", "1")), ("ours", ())]
)
def test_both_sides_of_the_training_step(module: str, own: tuple[str, ...]) -> None:
    given = ("--steps", "3", "--warm-up", "1", "--batch", "2", "--crop", "64", *own)
    printed = in_process(f"benchmarks.{module}", *given, *(["--no-score"] if module == "plain" else []))
    assert json.loads(printed.splitlines()[-1])["step_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inputs", "metric", "unimatch_v2", "teacher_cache"])
def test_the_measurements_start(name: str) -> None:
    printed = in_process("benchmarks", name)
    assert "| ratio |" in printed


@pytest.mark.slow
def test_labelling_a_folder_is_measured() -> None:
    assert "| time ratio |" in in_process("benchmarks.annotate", "--small")


@pytest.mark.slow
def test_the_peak_of_memory_is_printed() -> None:
    assert json.loads(in_process("benchmarks.memory", "600").splitlines()[-1])["peak_mib"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pair", "memory"])
@pytest.mark.parametrize("way", ["dense", "fp32", "bf16"])
def test_relational_losses_are_measured(kind: str, way: str) -> None:
    found = json.loads(in_process("benchmarks.relations", kind, way, "--small").splitlines()[-1])
    assert found["loss"] > 0
    assert all(spent > 0 for spent in found["times"])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["published", "ours"])
@pytest.mark.parametrize("what", ["fit", "score"])
def test_mixtures_are_measured(what: str, way: str) -> None:
    found = json.loads(in_process("benchmarks.mixtures", what, way, "--small").splitlines()[-1])
    assert all(spent > 0 for spent in found["times"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["distances", "transport", "contrast", "thresholds"])
def test_prototypes_are_measured(what: str) -> None:
    plain, ours = (
        json.loads(in_process("benchmarks.prototypes", what, way, "--small").splitlines()[-1])
        for way in ("plain", "ours")
    )
    assert ours["value"] == pytest.approx(plain["value"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["joint", "view_wise"])
def test_a_step_of_three_views_is_measured(way: str) -> None:
    found = json.loads(in_process("benchmarks.trikd", "small", way, "32", "2").splitlines()[-1])
    assert found["loss"] > 0
    assert found["mib"] > 0
