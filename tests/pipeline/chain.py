"""A project whose recipe has every kind of stage, and what counts as equal of two runs of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.projects import DATA, write_project
from tutelage.engine.log import read_log

TRAINING = (
    DATA
    + """\
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
stages:
  teacher:
    method: supervised
    nets: {student: small}
    streams:
      labeled: {data: city/train, batch: 2, augment: {crop: [32, 32]}}
    steps: 3
    checkpoint_every: 1
    log_every: 1
    evaluate: {data: city/val, every: 1}
"""
)

CHAIN = f"""\
tutelage: 1
name: chain
out: runs
run: {{device: cpu, threads: 1}}
{TRAINING}
  maps: {{kind: annotate, net: teacher, data: city/train, policy: class_balanced}}
  student:
    method: supervised
    nets: {{student: small}}
    streams:
      labeled: {{data: maps, batch: 2, augment: {{crop: [32, 32]}}}}
    steps: 2
    checkpoint_every: 1
    log_every: 1
  score: {{kind: evaluate, nets: [teacher, student], data: city/val}}
  page: {{kind: report, scores: score}}
"""
"""Train, annotate, train on the pseudo labels, evaluate, report: about a second without the report."""

STAGES = ("teacher", "maps", "student", "score", "page")


def write_chain(root: Path, *changes: tuple[str, str], report: bool = False) -> Path:
    """Write data and recipe into ``root``, with (old, new) replaced in the recipe; its run folder."""
    text = CHAIN if report else "".join(line for line in CHAIN.splitlines(True) if "kind: report" not in line)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    write_project(root, text)
    return root / "runs"


def content(runs: Path) -> dict[str, bytes]:
    """The bytes of everything that stages made, with their manifests; times and logs are left out."""
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in _lasting(runs)}


def _lasting(runs: Path) -> Iterator[Path]:
    for manifest in sorted(runs.glob("*/artefact.json")):
        for path in sorted(manifest.parent.rglob("*")):
            if path.is_file() and path.name not in ("times.json", "cost.json", "log.jsonl", "lock"):
                yield path


def course(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """The training logs by folder, without the times."""
    timeless = ("step", "terms", "evaluation", "rate")
    return {
        path.parent.name: [{key: record[key] for key in timeless if key in record} for record in read_log(path)]
        for path in sorted(runs.glob("*/log.jsonl"))
    }


def assert_same(runs: Path, whole: Path) -> None:
    """Both run folders hold the same finished artefacts, byte for byte, and no leftovers."""
    ours, theirs = content(runs), content(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if value != theirs[name]] == []
    assert course(runs) == course(whole)
    assert not list(runs.glob("*/checkpoints"))
