"""Findings of the data checks: severity, code, data set, message, remedy and files."""

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
    """One finding of a data check."""

    severity: Severity
    """`error`: results would be wrong; `warning`: they may be misleading; `note`: information."""
    code: str
    """Stable name of the kind of finding."""
    dataset: str
    message: str
    remedy: str
    files: tuple[Path, ...] = ()
    """All affected files; the message names the first."""


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Most severe severity among the findings, ``None`` without any. A command fails on ``"error"`` alone."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)


def format_findings(findings: Sequence[Finding], width: int = 110) -> str:
    """Format findings as plain text, most severe first, with a last line that counts them."""
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    codes = max((len(finding.code) for finding in ordered), default=0)
    lines = []
    for finding in ordered:
        lines.append(f"{finding.severity:<8} {finding.code:<{codes}}  {finding.dataset}".rstrip())
        for text in (finding.message, f"remedy: {finding.remedy}"):
            # Paths are not broken, so that they can be copied.
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
    """Number of findings of each severity, as one line."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    parts = [plural(number, severity) for severity, number in counts.items() if number]
    return ", ".join(parts) if parts else "no findings"


def plural(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(files: Sequence[Path], limit: int = 3) -> str:
    """The first file with its full path, the next ones by name, and the number of further files."""
    named = [str(files[0]), *(path.name for path in files[1:limit])]
    return ", ".join(named) + (f" and {len(files) - limit} more" if len(files) > limit else "")


def several(items: Sequence[str], limit: int = 6) -> str:
    """The first items and the number of further items."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
