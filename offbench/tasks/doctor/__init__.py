"""The dataset doctor: finds defects of a dataset in its arrays, or knows them by its id.

`check` examines the raw arrays of a file (`Flat`; some defects show only before episodes are split) or
a loaded dataset (`ReplayData`) and returns a `Report` of findings, each with a severity:

    severe     transitions that never happened, numbers that cannot be trained on, or data that are
               not those of the id
    warning    something a reader of the scores should know
    info       a measurement
"""

from offbench.data.replay import ReplayData
from offbench.tasks.doctor import arrays, episodes, resets
from offbench.tasks.doctor.defects import Defect, known_defects
from offbench.tasks.doctor.episodes import apparent_limit, returns_of, terminals_at_limit
from offbench.tasks.doctor.report import (
    SEVERITIES,
    DataWarning,
    Finding,
    Report,
    Severity,
    load,
    refuse,
    report_path,
    save,
    stored,
    warn_once,
)
from offbench.tasks.doctor.resets import continuing
from offbench.tasks.doctor.rows import Facts, Flat, of_flat, of_replay

__all__ = [
    "DataWarning",
    "Defect",
    "Facts",
    "Finding",
    "Flat",
    "Report",
    "Severity",
    "apparent_limit",
    "check",
    "continuing",
    "known_defects",
    "load",
    "refuse",
    "report_path",
    "returns_of",
    "save",
    "stored",
    "terminals_at_limit",
    "warn_once",
]


def check(data: ReplayData | Flat, facts: Facts, *, sha256: str | None = None) -> Report:
    """Examines a dataset; never raises for what its arrays hold.

    Args:
        data: the arrays of a file, or a loaded dataset.
        facts: facts that are not in the arrays.
        sha256: checksum of the data, for the report.

    Returns:
        The findings, severe ones first.
    """
    findings = [f for part in facts.parts or (facts.id,) for f in known_defects(part)]
    if isinstance(data, Flat):
        broken = arrays.shapes(data)
        if broken:
            return Report(facts.id, 0, 0, (*findings, *broken), sha256)
        goes_on = continuing(data) if arrays.all_finite(data) else None
        rows = of_flat(data, goes_on)
        findings += arrays.dtypes(data) + resets.marks_inside(data, goes_on)
        findings += arrays.recorded_next(data, rows)
    else:
        rows = of_replay(data)
    broken = arrays.not_finite(rows)
    findings += broken + arrays.actions(rows) + arrays.constant(rows)
    findings += arrays.duplicates(rows, facts)
    if not broken:
        findings += resets.unmarked(rows, facts)
        findings += episodes.rewards(rows, facts) + episodes.returns(rows, facts)
    findings += episodes.lengths_and_ends(rows, facts, raw=isinstance(data, Flat))
    findings.sort(key=lambda f: SEVERITIES.index(f.severity), reverse=True)
    return Report(facts.id, int(rows.step.sum()), len(rows.first), tuple(findings), sha256)
