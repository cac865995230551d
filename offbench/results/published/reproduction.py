"""Verdicts on a published table that was run again: which cells agree, and how many misses chance alone makes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from offbench.results.words import plural

AGREES, NOT_RUN = "agrees", "not run"


def verdict(row: Any, planned: int) -> str:
    """What can be said of one cell.

    Args:
        row: of `offbench.results.published.table.compared`.
        planned: number of seeds that the cell was planned with.
    """
    if row.status in ("missing", "left out"):
        return NOT_RUN
    if row.status in ("failed", "diverged"):
        return str(row.status)
    if row.n_seeds < planned:
        return f"cannot tell: {row.n_seeds} of {planned} seeds"
    if np.isnan(row.difference_low):
        return "cannot tell: one seed"
    if row.misses:
        return (
            f"differs: ours {abs(row.difference):.1f} {'lower' if row.difference < 0 else 'higher'}"
        )
    return AGREES


def verdicts(table: pd.DataFrame, planned: Mapping[tuple[str, str], int]) -> pd.Series:
    """A verdict for each row of `offbench.results.published.table.compared`; `planned` has the seeds of (entry, task)."""
    found = [verdict(row, planned[row.entry, row.task]) for row in table.itertuples()]
    return pd.Series(found, index=table.index, dtype=object)


def conclusion(table: pd.DataFrame, found: pd.Series, level: float = 0.95) -> str:
    """One sentence over a table: how many of the cells that can be told agree, and what chance alone would do."""
    told = (found == AGREES) | found.str.startswith("differs")
    n = int(told.sum())
    rest = len(found) - n
    if not n:
        return f"Nothing can be told yet: of {plural(len(found), 'cell')} none is whole."
    by_chance = (1 - level) * n
    text = (
        f"{int((found == AGREES).sum())} of {plural(n, 'cell')} agree; expected by chance at {100 * level:g} %: at most"
        f" {by_chance:.2g} misses"
    )
    if exact := int((told & table["low"].isna()).sum()):
        text += f", more among the {exact} whose published score has no known spread over seeds and counts as exact"
    return f"{text}; {rest} not run or not told." if rest else f"{text}."
