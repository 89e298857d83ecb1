"""What the commands print: results of :mod:`tutelage.api` as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.ladders.plan import PlannedRung
    from tutelage.ladders.run import LadderResult as Ladder
    from tutelage.nets.catalogue import CatalogueRow
    from tutelage.pipeline.run import Planned
    from tutelage.pipeline.training_cost import TrainingCost


def plan_table(rows: Sequence[Planned], estimate: Callable[[str], TrainingCost | str] | None) -> str:
    """What would run and why; with ``estimate``, what each training stage would cost."""
    wide = max(len(row.stage) for row in rows)
    lines, hours = [], 0.0
    for row in rows:
        lines.append(f"{row.stage:<{wide}}  {row.kind:<8}  {'runs' if row.runs else 'skip'}  {row.why}")
        if not row.runs or row.kind != "train" or estimate is None:
            continue
        cost = estimate(row.stage)
        if isinstance(cost, str):
            lines.append(f"{'':<{wide}}  no estimate: {cost}")
            continue
        hours += cost.hours
        extra = f", {cost.note}" if cost.note else ""
        lines.append(
            f"{'':<{wide}}  about {_duration(cost.hours)} ({cost.step_seconds:.2f} s a step{extra}), "
            f"{cost.memory_mib:.0f} MiB of memory, {cost.disk_mib:.0f} MiB of disk"
        )
        lines += [f"{'':<{wide}}  {cost.cache}"] if cost.cache else []
    if hours:
        lines.append(f"training in all: about {_duration(hours)} on this machine as it is now")
    return "\n".join(lines)


def ladder_plan_table(rows: Sequence[PlannedRung]) -> str:
    """What a ladder would train, rung by rung, and what that costs."""
    wide = max(len(row.name) for row in rows)
    lines, hours = [], 0.0
    for row in rows:
        trials = f", {row.trials} trials" if row.trials else ""
        lines.append(f"{row.name:<{wide}}  {row.done} done, {row.missing} to train{trials}")
        lines += [f"{'':<{wide}}  {row.note}"] if row.note and row.cost is not None else []
        if isinstance(row.cost, str):
            lines.append(f"{'':<{wide}}  no estimate: {row.cost}")
        elif row.cost is not None:
            hours += row.hours
            lines.append(
                f"{'':<{wide}}  about {_duration(row.hours)} ({row.cost.step_seconds:.2f} s a step), "
                f"{row.cost.memory_mib:.0f} MiB of memory"
            )
            lines += [f"{'':<{wide}}  {row.cost.cache}"] if row.cost.cache else []
    if hours:
        lines.append(f"training in all: about {_duration(hours)} on this machine as it is now, without the teacher's")
    return "\n".join(lines)


def ladder_table(ladder: Ladder) -> str:
    """The ladder's result, aligned, a sentence for each rung, and where the files are."""
    from tutelage.ladders.page import cells, compared, head, missing, notes, sentence

    content = ladder.content
    rows = [head(content), *(cells(content, rung) for rung in content.rungs)]
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    sentences = [f"{rung.name}: {sentence(content, rung)}" for rung in compared(content)]
    lacking = [f"missing: {'; '.join(missing(content))}"] if missing(content) else []
    files = [str(path) for path in (ladder.files.markdown, ladder.files.page, ladder.files.json)]
    return "\n".join([*lines, "", *sentences, "", *notes(content), *lacking, *files])


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores of one or several nets: a line each, then IoU by class."""
    lines = []
    for name, content in scores.items():
        interval = content["miou_interval"]
        lines.append(
            f"{name}: mIoU {_percent(content['miou'])} [{_percent(interval['low'])}, {_percent(interval['high'])}"
            f"{'' if interval['reliable'] else '; the interval is not reliable: ' + interval['reason']}], "
            f"pixel accuracy {_percent(content['pixel_accuracy'])}, "
            f"boundary IoU {_percent(content['boundary']['miou'])}, "
            f"calibration error {_percent(content['calibration']['error'])}"
        )
    first = next(iter(scores.values()))
    lines.append(f"on {first['data']['images']} images; {first['protocol']['text']}")
    lines.append(f"{'class':<24}" + "".join(f"{name[:18]:>20}" for name in scores))
    for number, label in enumerate(first["classes"]):
        lines.append(f"{label:<24}" + "".join(f"{_percent(c['iou'][number]):>20}" for c in scores.values()))
    for name, one in first.get("subsets", {}).items():
        title = f"mIoU of {name} ({len(one['classes'])})"
        lines.append(f"{title:<24}" + "".join(f"{_percent(c['subsets'][name]['miou']):>20}" for c in scores.values()))
    if "merged" in first:
        lines.append(f"with {', '.join(first['merged']['groups'])} taken as one class each:")
        for number, label in enumerate(first["merged"]["classes"]):
            lines.append(
                f"{label:<24}" + "".join(f"{_percent(c['merged']['iou'][number]):>20}" for c in scores.values())
            )
        lines.append(f"{'mIoU':<24}" + "".join(f"{_percent(c['merged']['miou']):>20}" for c in scores.values()))
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "absent" if share is None else f"{100 * share:.2f}"


def model_table(rows: Sequence[CatalogueRow], size: str, classes: int) -> str:
    """Nets worth starting from."""
    from tutelage.nets.catalogue import CATALOGUE

    lines = [f"{'name':<26}{'parameters':>12}{'GFLOPs':>9}   (multiply-adds at {size}, {classes} classes)"]
    for row in rows:
        lines.append(f"{row.name:<26}{row.parameters / 1e6:>10.2f} M{row.gflops:>9.3g}   {CATALOGUE[row.name].use}")
        lines.append(f"{'':<26}{'':>23}encoder: {row.encoder}, decoder: {row.decoder}")
    return "\n".join(lines)


def clean_table(doomed: Sequence[tuple[Path, int]], really: bool) -> str:
    """What was, or would be, removed."""
    if not doomed:
        return "nothing to remove"
    verb = "removed" if really else "would remove"
    lines = [f"{verb} {folder} ({size / 2**20:.1f} MiB)" for folder, size in doomed]
    return "\n".join(lines if really else [*lines, "nothing was removed; add --yes to do it"])
