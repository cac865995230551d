"""Findings and reports of the dataset doctor: stored, loaded, warned about, refused."""

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from offbench.errors import UserError
from offbench.io import atomic_write, slug
from offbench.tasks.files import cache_dir

Severity = Literal["info", "warning", "severe"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")
# version of stored reports: raise it when a check is added or changes
FORMAT = 2


class DataWarning(UserWarning):
    """A set with a severe defect is loaded."""


@dataclass(frozen=True)
class Finding:
    """The finding of one check."""

    # name of the check
    name: str
    severity: Severity
    words: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All findings on a dataset, severe ones first."""

    id: str
    # transitions examined
    rows: int
    episodes: int
    findings: tuple[Finding, ...]
    # of the file, or the fingerprint of the arrays
    sha256: str | None = None

    @property
    def severe(self) -> tuple[Finding, ...]:
        """The severe findings."""
        return tuple(f for f in self.findings if f.severity == "severe")

    @property
    def worst(self) -> Severity:
        """The highest severity."""
        found = {f.severity for f in self.findings}
        return next((s for s in reversed(SEVERITIES) if s in found), "info")

    def __getitem__(self, name: str) -> Finding:
        """The finding of a check by name; KeyError where there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in self.findings)


def warn_once(report: Report) -> None:
    """Warns (DataWarning) of severe defects, once per dataset and process."""
    if report.severe:
        _warn(report.id, _summary(report))


@functools.cache
def _warn(dataset_id: str, words: str) -> None:
    warnings.warn(f"{dataset_id}: {words}", DataWarning, stacklevel=4)


def refuse(report: Report, command: str = "") -> None:
    """Raises for severe defects.

    Args:
        report: the report of a dataset.
        command: the command that shows the report, for the error.

    Raises:
        UserError: the set has a severe defect.
    """
    if report.severe:
        raise UserError(
            f"{report.id}: {_summary(report)}; strict=true refuses it "
            f"(see: {command or f'offbench data check {report.id}'})"
        )


def _summary(report: Report) -> str:
    return "; ".join(f.words for f in report.severe)


def report_path(dataset_id: str, folder: Path | None = None) -> Path:
    """The file of a set's report.

    Args:
        dataset_id: an id or a path.
        folder: that of the reports, None: `reports` in the cache folder.

    Returns:
        A path with a part of the id and a hash of all of it in its name.
    """
    plain = slug(dataset_id).strip("-.")[:120]
    short = hashlib.sha256(dataset_id.encode()).hexdigest()[:8]
    return (cache_dir() / "reports" if folder is None else folder) / f"{plain}-{short}.json"


def save(report: Report, folder: Path | None = None) -> Path:
    """Store a report as json, over an earlier one; OSError where it cannot be written.

    Args:
        report: the report.
        folder: as for `report_path`.

    Returns:
        Its file.
    """
    path = report_path(report.id, folder)
    content = {"format": FORMAT} | asdict(report)
    atomic_write(path, json.dumps(content, indent=1).encode())
    return path


def stored(dataset_id: str, sha256: str) -> Report | None:
    """The stored report of exactly these data.

    Args:
        dataset_id: of the set.
        sha256: checksum of its data.

    Returns:
        The report, None where there is none, or one of other data or of an earlier version's checks.
    """
    path = report_path(dataset_id)
    if not path.is_file():
        return None
    try:
        found = load(path)
        same = json.loads(path.read_text(encoding="utf-8"))["format"] == FORMAT
    except (UserError, ValueError, KeyError, OSError):
        return None
    return found if same and (found.id, found.sha256) == (dataset_id, sha256) else None


def load(path: Path) -> Report:
    """Read a stored report; UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        findings = tuple(Finding(**f) for f in content["findings"])
        return Report(
            content["id"], content["rows"], content["episodes"], findings, content["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of the dataset doctor ({error})") from None
