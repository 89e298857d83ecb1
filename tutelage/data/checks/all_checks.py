"""All checks of a recipe's data, and the subset that blocks training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from tutelage.data.checks.balance import BalanceLimits, contents, deficits, lost_masks
from tutelage.data.checks.findings import SEVERITIES, Finding
from tutelage.data.checks.images import SizeLimits, below_crop, image_faults, image_forms, stray_masks
from tutelage.data.checks.leaks import LikenessLimits, across, inside, overlapping, published
from tutelage.data.checks.masks import binary_trap, mask_findings
from tutelage.data.checks.orientation import orientation
from tutelage.data.checks.shifts import ShiftLimits, shifts
from tutelage.data.checks.subject import TEACHING, Subject, named_roles
from tutelage.data.dataset import Dataset
from tutelage.data.fact_cache import Progress
from tutelage.data.pictures import read_pictures
from tutelage.data.statistics import read_statistics
from tutelage.settings import Settings

MASKED = TEACHING | {"val", "test"}
"""Roles whose masks are read."""


class CheckSettings(Settings):
    """Thresholds of the checks."""

    rare: BalanceLimits = BalanceLimits()
    sizes: SizeLimits = SizeLimits()
    likeness: LikenessLimits = LikenessLimits()
    shift: ShiftLimits = ShiftLimits()


def check_datasets(
    datasets: Mapping[str, Dataset],
    *,
    roles: Mapping[str, str | Collection[str]] | None = None,
    settings: CheckSettings | None = None,
    crops: Mapping[str, tuple[int, int]] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    workers: int = 2,
    cache: Path | None = None,
) -> list[Finding]:
    """Check the data sets of one task (``data/split`` → data set); return the findings, most severe first.

    ``roles``: what each data set is used for (`train`, `val`, `test`, `source`, `target`, `unlabeled`, or several);
    by default guessed from its name. ``crops``: height and width of the training crops of a data set. ``say`` prints a
    line per data set; ``progress`` counts files. Masks of data that are only unlabelled or only target are not read.
    Every file is read once, and again only if the data change. Unreadable files are findings and raise nothing;
    ``ValueError`` for an unknown role.
    """
    limits = settings or CheckSettings()
    subjects = _subjects(datasets, roles, progress, say, workers, cache)
    findings = list(_findings(subjects, limits, crops or {}))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def poisons(dataset: Dataset, *, workers: int = 2, cache: Path | None = None) -> list[Finding]:
    """Findings that block training on a labelled data set; fast once the mask statistics are cached."""
    return [
        finding
        for finding in mask_findings(dataset.name, dataset, read_statistics(dataset, workers=workers, cache=cache))
        if finding.severity == "error"
    ]


def _subjects(
    datasets: Mapping[str, Dataset],
    roles: Mapping[str, str | Collection[str]] | None,
    progress: Progress | None,
    say: Callable[[str], None],
    workers: int,
    cache: Path | None,
) -> list[Subject]:
    chosen = named_roles(datasets, roles)
    masked = {
        name: bool(chosen[name] & MASKED) and any(sample.label is not None for sample in dataset.samples)
        for name, dataset in datasets.items()
    }
    total = sum(len(dataset) * (1 + masked[name]) for name, dataset in datasets.items())
    before = 0

    def report(done: int, of: int) -> None:
        if progress is not None:
            progress(before + done, total)

    subjects = []
    for name, dataset in datasets.items():
        say(f"{name}: {len(dataset)} images{' with masks' if masked[name] else ''}")
        masks = None
        if masked[name]:
            masks = read_statistics(dataset, workers=workers, progress=report, cache=cache)
            before += len(dataset)
        pictures = read_pictures(dataset, workers=workers, progress=report, cache=cache)
        before += len(dataset)
        report(0, 0)
        subjects.append(Subject(name, dataset, chosen[name], masks, pictures))
    return subjects


def _findings(
    subjects: list[Subject], limits: CheckSettings, crops: Mapping[str, tuple[int, int]]
) -> Iterator[Finding]:
    trapped = set()
    for subject in subjects:
        if subject.masks is not None:
            siblings = [
                other.masks
                for other in subjects
                if other is not subject and other.masks is not None and other.source == subject.source
            ]
            for finding in binary_trap(subject.name, subject.dataset, subject.masks, siblings):
                trapped.add(subject.name)
                yield finding
            for finding in mask_findings(subject.name, subject.dataset, subject.masks):
                if not finding.code.startswith("binary-"):  # reported above, in view of the other splits
                    yield finding
            yield from contents(subject, subject.masks)
        if subject.roles & MASKED:
            yield from lost_masks(subject)
        yield from image_faults(subject)
        yield from orientation(subject)
        yield from image_forms(subject, limits.sizes)
        if subject.name in crops:
            yield from below_crop(subject, crops[subject.name])
        yield from inside(subject)
    # A class that is read as ignored is missing everywhere; binary_trap has reported it.
    yield from deficits([subject for subject in subjects if subject.name not in trapped], limits.rare)
    yield from across(subjects, limits.likeness)
    yield from overlapping(subjects)
    yield from published(subjects)
    yield from shifts(subjects, limits.shift)
    yield from stray_masks(subjects)
