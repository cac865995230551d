"""What was measured of the runs of a report beside their scores, in words: it is shown by other commands."""

from collections.abc import Collection
from pathlib import Path

from offbench.results import decisions, estimates, measured
from offbench.results.words import plural


def measured_words(root: Path, run_ids: Collection[str]) -> str:
    """Of how many runs there are offline estimates, by which estimator, and decisions; empty where of none."""
    of_estimates = measured.kinds_of(root, estimates.FOLDER, run_ids)
    of_decisions = measured.kinds_of(root, decisions.FOLDER, run_ids)
    words = []
    if of_estimates:
        by = ", ".join(f"{name} of {plural(n, 'run')}" for name, n in of_estimates.items())
        words.append(f"values by {by} (offbench evaluate --offline)")
    if n := sum(of_decisions.values()):
        words.append(f"decisions of {plural(n, 'run')} played again (offbench diagnose)")
    return "; ".join(words)
