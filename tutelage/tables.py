"""Results of :mod:`tutelage.api` as text: aligned by rich, without colours and without a limit on the width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.ladders.plan import PlannedRung
    from tutelage.ladders.run import LadderResult
    from tutelage.nets.catalogue import CatalogueRow
    from tutelage.pipeline.run import Planned
    from tutelage.pipeline.training_cost import TrainingCost


def aligned(rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines; ``numbers`` are columns aligned at the right. A cell can have several lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = list(rows)
    table = Table.grid(padding=(0, 2), pad_edge=False)
    for column in range(len(lines[0])):
        table.add_column(justify="right" if column in numbers else "left", no_wrap=True)
    for cells in lines:
        table.add_row(*map(Text, cells))
    console = Console(width=100_000, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(table)
    return [line.rstrip() for line in text.get().splitlines()]


def plan_table(rows: Sequence[Planned], estimate: Callable[[str], TrainingCost | str] | None) -> str:
    """What would run and why; with ``estimate``, what each training stage would cost."""
    lines, hours = [], 0.0
    for row in rows:
        about = [row.why]
        if row.runs and row.kind == "train" and estimate is not None:
            cost = estimate(row.stage)
            hours += 0.0 if isinstance(cost, str) else cost.hours
            about += _cost_lines(cost)
        lines.append((row.stage, row.kind, "runs" if row.runs else "skip", "\n".join(about)))
    return "\n".join([*aligned(lines), *_total(hours)])


def ladder_plan_table(rows: Sequence[PlannedRung]) -> str:
    """What a ladder would train, rung by rung, and what that costs."""
    lines, hours = [], 0.0
    for row in rows:
        about = [f"{row.done} done, {row.missing} to train" + (f", {row.trials} trials" if row.trials else "")]
        if row.cost is not None:
            hours += 0.0 if isinstance(row.cost, str) else row.hours
            about += [*filter(None, [row.note]), *_cost_lines(row.cost, row.hours)]
        lines.append((row.name, "\n".join(about)))
    return "\n".join([*aligned(lines), *_total(hours, ", without the teacher's")])


def _cost_lines(cost: TrainingCost | str, hours: float | None = None) -> list[str]:
    if isinstance(cost, str):
        return [f"no estimate: {cost}"]
    extra = f", {cost.note}" if cost.note and hours is None else ""
    step = f"about {_duration(cost.hours if hours is None else hours)} ({cost.step_seconds:.2f} s a step{extra})"
    disk = f", {cost.disk_mib:.0f} MiB of disk" if hours is None else ""
    return [f"{step}, {cost.memory_mib:.0f} MiB of memory{disk}", *filter(None, [cost.cache])]


def _total(hours: float, exception: str = "") -> list[str]:
    return [f"training in all: about {_duration(hours)} on this machine as it is now{exception}"] if hours else []


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def ladder_table(ladder: LadderResult) -> str:
    """The ladder's result, a sentence for each rung, and where the files are."""
    from tutelage.ladders.page import cells, compared, head, missing, notes, sentence

    content = ladder.content
    lines = aligned([head(content), *(cells(content, rung) for rung in content.rungs)])
    sentences = [f"{rung.name}: {sentence(content, rung)}" for rung in compared(content)]
    lacking = [f"missing: {'; '.join(missing(content))}"] if missing(content) else []
    files = [str(path) for path in (ladder.files.markdown, ladder.files.page, ladder.files.json)]
    return "\n".join([*lines, "", *sentences, "", *notes(content), *lacking, *files])


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores of one or several nets: a line each, then IoU by class."""
    lines = []
    for name, content in scores.items():
        interval = content["miou_interval"]
        doubt = "" if interval["reliable"] else f"; the interval is not reliable: {interval['reason']}"
        low, high = _percent(interval["low"]), _percent(interval["high"])
        lines.append(
            f"{name}: mIoU {_percent(content['miou'])} [{low}, {high}{doubt}], "
            f"pixel accuracy {_percent(content['pixel_accuracy'])}, "
            f"boundary IoU {_percent(content['boundary']['miou'])}, "
            f"calibration error {_percent(content['calibration']['error'])}"
        )
    first, every = next(iter(scores.values())), list(scores.values())
    lines.append(f"on {first['data']['images']} images; {first['protocol']['text']}")
    rows = [("class", *scores), *_iou_rows(every)]
    for name, one in first.get("subsets", {}).items():
        values = (_percent(content["subsets"][name]["miou"]) for content in every)
        rows.append((f"mIoU of {name} ({len(one['classes'])})", *values))
    lines += aligned(rows, range(1, len(rows[0])))
    if "merged" in first:
        lines.append(f"with {', '.join(first['merged']['groups'])} taken as one class each:")
        merged = [content["merged"] for content in every]
        rows = [*_iou_rows(merged), ("mIoU", *(_percent(one["miou"]) for one in merged))]
        lines += aligned(rows, range(1, len(rows[0])))
    return "\n".join(lines)


def _iou_rows(contents: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    columns = [[_percent(value) for value in content["iou"]] for content in contents]
    return list(zip(contents[0]["classes"], *columns, strict=True))


def _percent(share: float | None) -> str:
    return "absent" if share is None else f"{100 * share:.2f}"


def model_table(rows: Sequence[CatalogueRow], size: str, classes: int) -> str:
    """Recommended nets."""
    from tutelage.nets.catalogue import CATALOGUE

    lines = [("name", "parameters", "GFLOPs", f"(multiply-adds at {size}, {classes} classes)")]
    for row in rows:
        use = f"{CATALOGUE[row.name].use}\nencoder: {row.encoder}, decoder: {row.decoder}"
        lines.append((row.name, f"{row.parameters / 1e6:.2f} M", f"{row.gflops:.3g}", use))
    return "\n".join(aligned(lines, numbers=(1, 2)))


def clean_table(doomed: Sequence[tuple[Path, int]], really: bool) -> str:
    """Artefacts that were, or would be, removed."""
    if not doomed:
        return "nothing to remove"
    verb = "removed" if really else "would remove"
    lines = [f"{verb} {folder} ({size / 2**20:.1f} MiB)" for folder, size in doomed]
    return "\n".join(lines if really else [*lines, "nothing was removed; add --yes to do it"])
