"""Data checks: every file is read once; every finding names its files and a remedy."""

from tutelage.data.checks.all_checks import CheckSettings, check_datasets, poisons
from tutelage.data.checks.findings import Finding, format_findings, summary, worst
from tutelage.data.checks.subject import Role, guess_roles

__all__ = [
    "CheckSettings",
    "Finding",
    "Role",
    "check_datasets",
    "format_findings",
    "guess_roles",
    "poisons",
    "summary",
    "worst",
]
