"""A finding: what is wrong with the data, where, how bad it is, and what mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    severity: Severity
    """`error`: results would be wrong; `warning`: they may mislead; `note`: worth knowing."""
    code: str
    """Stable short name of the kind of finding."""
    dataset: str
    message: str
    remedy: str
    files: tuple[Path, ...] = ()
    """Every file concerned, the first of which the message names."""


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The gravest severity among the findings; ``None`` without any. A command fails on ``"error"`` alone."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)


def format_findings(findings: Sequence[Finding], width: int = 110) -> str:
    """The findings as plain text, the gravest first, with a last line that counts them."""
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    codes = max((len(finding.code) for finding in ordered), default=0)
    lines = []
    for finding in ordered:
        lines.append(f"{finding.severity:<8} {finding.code:<{codes}}  {finding.dataset}".rstrip())
        for text in (finding.message, f"remedy: {finding.remedy}"):
            # A path is copied by the reader: it stays in one piece.
            lines += textwrap.wrap(
                text,
                width,
                initial_indent=" " * 9,
                subsequent_indent=" " * 9,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many findings of each severity there are, as one line."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    parts = [plural(number, severity) for severity, number in counts.items() if number]
    return ", ".join(parts) if parts else "nothing found"


def plural(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(files: Sequence[Path], limit: int = 3) -> str:
    """The first file with its whole path, the next by their names, and how many more there are."""
    named = [str(files[0]), *(path.name for path in files[1:limit])]
    return ", ".join(named) + (f" and {len(files) - limit} more" if len(files) > limit else "")


def several(items: Sequence[str], limit: int = 6) -> str:
    """The first items and how many more there are."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
