"""Comparison of two scored nets: the gain on the same images, its uncertainty, and its classes.

Each side is one run, or several with different seeds. Runs are comparable only if they were scored by one protocol on
the same images and classes; otherwise the error names the differences.
"""

# Legend: N images, K classes, G classes after merging, S seeds.

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import RunError, TutelageError
from tutelage.evaluation.class_groups import ClassGroups, same_groups
from tutelage.evaluation.evaluate import blocks_of, read_counts
from tutelage.evaluation.intervals import RESAMPLES, Gain, miou_of_counts, paired_bootstrap
from tutelage.runs.store import KEY_LENGTH, Artefact

_FEW_SEEDS = 5


@dataclass(frozen=True)
class Scored:
    """One scored run."""

    name: str
    """The path as given by the caller."""
    content: dict[str, Any]
    counts_NK3: NDArray[np.int64]
    images: tuple[str, ...]
    groups: tuple[str, ...]
    merged_NG3: NDArray[np.int64] | None = None
    """Counts with several classes merged into one; None if nothing was merged."""

    def counts_of_subset(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """(N, len(classes), 3): the counts of some of the classes."""
        names = self.content["classes"]
        return self.counts_NK3[:, [names.index(name) for name in classes]]

    def counts_of_merged(self, groups: ClassGroups, classes: Sequence[str]) -> NDArray[np.int64]:
        """(N, G, 3): the counts with each of ``groups`` merged into one class, in the order of ``classes``.

        Raises :class:`RunError` if the run was not scored with these groups.
        """
        found = self.content.get("merged")
        if found is None or self.merged_NG3 is None or not same_groups(found["groups"], groups):
            raise RunError(
                "scores-missing",
                f"{self.name} has no counts with {', '.join(groups)} as one class each",
                "run the evaluation again, with these classes under `merged`",
            )
        return self.merged_NG3[:, [found["classes"].index(name) for name in classes]]

    @property
    def miou(self) -> float:
        """Over the classes that occur."""
        return float(miou_of_counts(self.counts_NK3.sum(0)))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) IoU by class, NaN for a class that does not occur."""
        return miou_of_counts(self.counts_NK3.sum(0)[:, None])


@dataclass(frozen=True)
class Side:
    """The runs of one side."""

    runs: tuple[Scored, ...]

    @property
    def miou(self) -> float:
        """Mean over the runs."""
        return float(np.mean([run.miou for run in self.runs]))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the mIoU over the runs; None for one run."""
        return float(np.std([run.miou for run in self.runs], ddof=1)) if len(self.runs) > 1 else None

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) IoU by class, mean over the runs."""
        mean: NDArray[np.float64] = np.mean([run.iou for run in self.runs], axis=0)
        return mean


@dataclass(frozen=True)
class ClassGain:
    """The gain of b over a in one class."""

    name: str
    a: float
    b: float
    gain: Gain


@dataclass(frozen=True)
class GroupedGain:
    """The gain of b over a in other classes: over some of them, or with several merged into one."""

    name: str
    """Classes of the subset; of merged classes, those of the groups."""
    groups: Mapping[str, Sequence[str]]
    """The merged groups; empty for a subset."""
    names: tuple[str, ...]
    """The classes over which the mean is taken."""
    a: float
    """mIoU, mean over the runs; so is ``b``."""
    b: float
    gain: Gain
    classes: tuple[ClassGain, ...]
    """Those of ``names`` that occur, after merging; none for a subset, whose classes are among all classes."""


@dataclass(frozen=True)
class Comparison:
    """Side b against side a on the same images."""

    a: Side
    b: Side
    gain: Gain
    classes: tuple[ClassGain, ...]
    """Classes that occur."""
    blocks: bool
    """Whether blocks of images (sequences, tiles) were drawn instead of single images."""
    protocol: str
    """Description of the protocol."""
    data: str
    """Name of the data set."""
    subsets: tuple[GroupedGain, ...] = ()
    """Means over subsets of the classes for which all runs were scored."""
    merged: GroupedGain | None = None
    """With several classes merged into one, if all runs were scored so."""

    @property
    def verdict(self) -> str:
        """`clear gain`, `clear loss` or `no clear difference`."""
        return _verdict(self.gain)

    @property
    def caveats(self) -> tuple[str, ...]:
        """Limits of the numbers."""
        found = []
        if not self.gain.reliable:
            found.append(f"The interval is not reliable: {self.gain.interval.reason}.")
        fewest = min(self.gain.seeds)
        if self.gain.seeds == (1, 1):
            found.append("One run per side: the interval does not include the spread between seeds.")
        elif fewest < _FEW_SEEDS:
            which = "one run" if fewest == 1 else f"{fewest} runs"
            found.append(f"With {which} on a side, the spread between seeds is underestimated.")
        return tuple(found)

    def text(self) -> str:
        """A table to print, and its meaning in a sentence."""
        unit = "blocks of images" if self.blocks else "images"
        gain = self.gain
        lines = [
            f"{self.data}, {len(self.a.runs[0].images)} images; {self.protocol}",
            f"a: {_side_text(self.a)}",
            f"b: {_side_text(self.b)}",
            "",
            *self._table(),
            "",
            f"{self.verdict}: b - a is {100 * gain.gain:+.2f} points of mIoU, 95 % interval "
            f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}], p = {_p_text(gain.p_value)} "
            f"(paired bootstrap over {gain.interval.groups} {unit}{_seeds_text(gain)})",
            *self.caveats,
        ]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [(row.name, row.a, row.b, row.gain) for row in self.classes]
        rows.append(("mIoU", self.a.miou, self.b.miou, self.gain))
        others = list(self._other_rows())
        wide = max(5, *(len(name) for name, *_ in (*rows, *others)))
        rule = "-" * (wide + 2 + 6 + 2 + 6 + 2 + 7 + 2 + 16)
        lines = [f"{'class':<{wide}}  {'a':>6}  {'b':>6}  {'b - a':>7}  95 % interval"]
        lines += [_line(wide, *row) for row in rows[:-1]]
        lines += [rule, _line(wide, *rows[-1])]
        lines += [rule, *(_line(wide, *row) for row in others)] if others else []
        return [*lines, f"* clear for this row alone; of {len(self.classes)} classes, one in twenty is so by chance"]

    def _other_rows(self) -> Iterator[tuple[str, float, float, Gain]]:
        """Means over some of the classes; merged classes and their mean."""
        for one in self.subsets:
            if not np.isnan([one.a, one.b]).any():
                yield f"mIoU of {one.name} ({len(one.names)})", one.a, one.b, one.gain
        if self.merged is not None and self.merged.classes:
            for row in self.merged.classes:
                yield row.name, row.a, row.b, row.gain
            yield f"mIoU with {self.merged.name} merged", self.merged.a, self.merged.b, self.merged.gain

    def as_dict(self) -> dict[str, Any]:
        """All values for JSON, as fractions, not points."""
        return {
            "verdict": self.verdict,
            "caveats": list(self.caveats),
            "data": self.data,
            "protocol": self.protocol,
            "images": len(self.a.runs[0].images),
            "a": _side_dict(self.a),
            "b": _side_dict(self.b),
            **_gain_dict(self.gain),
            "over": self.gain.interval.over,
            "groups": self.gain.interval.groups,
            "reliable": self.gain.reliable,
            "reason": self.gain.interval.reason,
            "classes": _class_dicts(self.classes),
            "subsets": {one.name: _grouped_dict(one) for one in self.subsets},
            "merged": self.merged and {"groups": dict(self.merged.groups), **_grouped_dict(self.merged)},
        }


def compare(
    a: Sequence[str | Path], b: Sequence[str | Path], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """The gain of side b over side a; each is one scored run, or several with different seeds.

    A run is a file ``LABEL.json`` with its counts in the same folder, or ``FOLDER:LABEL`` of an evaluate stage's folder
    (``FOLDER`` if it scored one net). Deterministic for a ``seed``. Raises :class:`RunError` for missing or damaged
    scores, and :class:`TutelageError`, naming the differences, for runs that cannot be compared.
    """
    sides = []
    for letter, paths in (("a", a), ("b", b)):
        if not paths:
            raise TutelageError(
                "input-missing", f"side {letter} of the comparison has no run", "name at least one run per side"
            )
        runs = tuple(read_scored(path) for path in paths)
        _refuse_repeats(letter, runs)
        sides.append(Side(runs))
    first, second = sides
    reference = first.runs[0]
    for run in (*first.runs[1:], *second.runs):
        _require_comparable(reference, run)
    blocks = blocks_of(reference.groups)

    draw = partial(paired_bootstrap, blocks=blocks, resamples=resamples, seed=seed)
    counts_a, counts_b = ([run.counts_NK3 for run in side.runs] for side in sides)
    everyone = [*first.runs, *second.runs]
    subsets = [
        _grouped(name, {}, names, [[run.counts_of_subset(names) for run in side.runs] for side in sides], draw)
        for name, names in _shared_subsets(everyone).items()
    ]
    merged = None
    if (shared := _shared_groups(everyone)) is not None:
        groups, names = shared
        parts = [[run.counts_of_merged(groups, names) for run in side.runs] for side in sides]
        merged = _grouped(", ".join(groups), groups, names, parts, draw)
    return Comparison(
        first,
        second,
        draw(counts_a, counts_b),
        _class_gains(reference.content["classes"], counts_a, counts_b, draw),
        blocks is not None,
        str(reference.content["protocol"]["text"]),
        str(reference.content["data"]["name"]),
        tuple(subsets),
        merged,
    )


_Runs = list[NDArray[np.int64]]
"""Per-image counts of each run of a side."""


def _class_gains(
    names: Sequence[str], a: _Runs, b: _Runs, draw: Callable[[_Runs, _Runs], Gain]
) -> tuple[ClassGain, ...]:
    """The gain of b in each class that occurs in all runs."""
    iou_a, iou_b = (np.mean([miou_of_counts(one.sum(0)[:, None]) for one in side], axis=0) for side in (a, b))
    rows = []
    for index, name in enumerate(names):
        if not np.isnan([iou_a[index], iou_b[index]]).any():
            parts_a, parts_b = ([one[:, index : index + 1] for one in side] for side in (a, b))
            rows.append(ClassGain(name, float(iou_a[index]), float(iou_b[index]), draw(parts_a, parts_b)))
    return tuple(rows)


def _grouped(
    name: str,
    groups: ClassGroups,
    names: Sequence[str],
    sides: Sequence[_Runs],
    draw: Callable[[_Runs, _Runs], Gain],
) -> GroupedGain:
    a, b = sides
    mean_a, mean_b = (float(np.mean([miou_of_counts(one.sum(0)) for one in side])) for side in (a, b))
    classes = _class_gains(names, a, b, draw) if groups else ()
    return GroupedGain(name, groups, tuple(names), mean_a, mean_b, draw(a, b), classes)


def _shared_subsets(runs: Sequence[Scored]) -> dict[str, list[str]]:
    """The subsets that all runs have with equal classes."""
    named = [{name: one["classes"] for name, one in run.content.get("subsets", {}).items()} for run in runs]
    return {
        name: classes
        for name, classes in named[0].items()
        if all(set(other.get(name, ())) == set(classes) for other in named)
    }


def _shared_groups(runs: Sequence[Scored]) -> tuple[ClassGroups, list[str]] | None:
    """The merged groups and the classes after merging, if all runs were counted so."""
    found = [run.content.get("merged") for run in runs]
    first = found[0]
    if first is None or any(run.merged_NG3 is None for run in runs):
        return None
    alike = all(one is not None and same_groups(one["groups"], first["groups"]) for one in found)
    return (first["groups"], first["classes"]) if alike else None


def read_scored(path: str | Path) -> Scored:
    """Read one scored run by file, or by folder and label. Raises :class:`RunError` as :func:`compare` does."""
    score, stored_counts = _locate(str(path))
    try:
        content = json.loads(score.read_text(encoding="utf-8"))
        names = list(content["classes"])
        stored = float("nan") if content["miou"] is None else float(content["miou"])
        identity = content["protocol"]["settings"], content["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("file-damaged", f"cannot read scores: {score} ({error})", "run the evaluation again") from None
    counts = read_counts(stored_counts)
    run = Scored(str(path), content, counts.counts_NK3, counts.names, counts.groups, counts.merged_NG3)
    fits = run.counts_NK3.shape == (len(run.images), len(names), 3) and None not in identity
    if run.merged_NG3 is not None:
        after = content.get("merged", {}).get("classes", ())
        fits = fits and run.merged_NG3.shape == (len(run.images), len(after), 3)
    if not fits or not np.isclose(run.miou, stored, rtol=0, atol=1e-6, equal_nan=True):
        raise RunError(
            "scores-mismatch",
            f"scores and counts do not match: {score} and {stored_counts}",
            "run the evaluation again, and copy both files",
        )
    return run


def _locate(named: str) -> tuple[Path, Path]:
    """The files of a run's scores and of its per-image counts, in the same folder."""
    path = Path(named)
    if path.suffix == ".json":
        if not path.is_file():
            raise RunError(
                "scores-missing", f"scores not found: {path}", "check the path; an evaluate stage writes scores/*.json"
            )
        return path, path.with_suffix(".npz")
    folder, separator, label = named.rpartition(":")
    if path.is_dir() or not separator:
        folder, label = named, ""
    artefact = Artefact(Path(folder), Path(folder).name[-KEY_LENGTH:])
    found = {file.stem: file for file in sorted(artefact.score("any").parent.glob("*.json"))}
    if not found:
        raise RunError(
            "scores-missing", f"no scores in {folder}", "give a file, or the folder of a finished evaluate stage"
        )
    if not label and len(found) == 1:
        label = next(iter(found))
    if label not in found:
        what = f"has no scores of {label!r}" if label else "has scores of several nets"
        raise RunError(
            "scores-missing", f"{folder} {what}", f"write {folder}:{next(iter(found))}; available: {', '.join(found)}"
        )
    return found[label], artefact.counts(label)


def _refuse_repeats(letter: str, runs: Sequence[Scored]) -> None:
    """Refuse duplicate runs: they would look like two seeds without variance."""
    for number, run in enumerate(runs):
        for other in runs[:number]:
            same = run.content.get("net") is not None and run.content.get("net") == other.content.get("net")
            if same or Path(run.name) == Path(other.name):
                raise TutelageError(
                    "duplicate-name",
                    f"side {letter} has one run twice: {other.name} and {run.name}",
                    "give the run of each seed once",
                )


def _require_comparable(reference: Scored, run: Scored) -> None:
    ours, theirs = reference.content, run.content
    differing = []
    before, after = ours["protocol"]["settings"], theirs["protocol"]["settings"]
    settings = [
        f"{name} ({before.get(name, 'none')} and {after.get(name, 'none')})"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if settings:
        differing.append(f"the protocol: {', '.join(settings)}")
    if ours["classes"] != theirs["classes"]:
        unlike = [name for name in ours["classes"] if name not in theirs["classes"]]
        unlike += [name for name in theirs["classes"] if name not in ours["classes"]]
        differing.append(f"the classes: {', '.join(unlike) or 'their order'}")
    if reference.images != run.images:
        only = sorted(set(reference.images) ^ set(run.images))
        which = f"{len(only)} are in only one, such as {only[0]}" if only else "their order"
        differing.append(f"the images: {which}")
    elif ours["data"]["fingerprint"] != theirs["data"]["fingerprint"]:
        differing.append("the data: equal names, but different content (fingerprint)")
    if differing:
        raise TutelageError(
            "not-comparable",
            f"cannot compare {reference.name} and {run.name}; they differ in {'; in '.join(differing)}",
            "score all of them with one protocol on one data set (an evaluate stage takes several nets)",
        )


def _verdict(gain: Gain) -> str:
    if gain.reliable and gain.low > 0:
        return "clear gain"
    return "clear loss" if gain.reliable and gain.high < 0 else "no clear difference"


def _line(wide: int, name: str, a: float, b: float, gain: Gain) -> str:
    clear = "" if _verdict(gain) == "no clear difference" else "  *"
    interval = f"[{100 * gain.low:+6.2f}, {100 * gain.high:+6.2f}]"
    return f"{name:<{wide}}  {100 * a:6.2f}  {100 * b:6.2f}  {100 * gain.gain:+7.2f}  {interval}{clear}"


def _side_text(side: Side) -> str:
    names = ", ".join(run.name for run in side.runs)
    if side.spread is None:
        return f"{100 * side.miou:.2f}  {names}"
    return f"{100 * side.miou:.2f} ± {100 * side.spread:.2f} over {len(side.runs)} seeds  {names}"


def _seeds_text(gain: Gain) -> str:
    return "" if gain.seeds == (1, 1) else f", and over {gain.seeds[0]} and {gain.seeds[1]} seeds"


def _p_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}" if value >= 0.001 else "below 0.001"


def _side_dict(side: Side) -> dict[str, Any]:
    runs = [{"name": run.name, "miou": run.miou} for run in side.runs]
    return {"miou": side.miou, "spread": side.spread, "runs": runs}


def _class_dicts(rows: Sequence[ClassGain]) -> list[dict[str, Any]]:
    return [{"name": row.name, "a": row.a, "b": row.b, **_gain_dict(row.gain)} for row in rows]


def _grouped_dict(one: GroupedGain) -> dict[str, Any]:
    means = {name: None if np.isnan(value) else value for name, value in (("a", one.a), ("b", one.b))}
    return {"names": list(one.names), **means, **_gain_dict(one.gain), "classes": _class_dicts(one.classes)}


def _gain_dict(gain: Gain) -> dict[str, Any]:
    values = {"gain": gain.gain, "low": gain.low, "high": gain.high, "p_value": gain.p_value}
    return {name: None if value is None or np.isnan(value) else value for name, value in values.items()}
