"""Learning curves: the score of every entry at each evaluation during training, with its interval.

The evaluations before the last are those of the `monitor` stream (few episodes, start states of their own),
the last is the test evaluation that the board ranks by. A curve is never ranked: whoever picks the update
with the best score reports a maximum of noise.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd

from offbench.results import uncertainty
from offbench.results.cells import pools_of, scored_cell
from offbench.results.selection import refuse_mixtures
from offbench.results.uncertainty import Cell

CURVE_COLUMNS = (
    "entry",
    "task",
    "update",
    "mean",
    "low",
    "high",
    "n_seeds",
    "n_episodes",
    "stream",
)
# of the best entry's last score, that `updates_needed` looks for
SHARE = 0.9


def curve_table(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    *,
    level: float = 0.95,
    unscaled: Collection[str] = (),
) -> pd.DataFrame:
    """The mean score of each entry at each evaluation, one row per (entry, task, update) in CURVE_COLUMNS.

    The interval is that of a cell of the board (`offbench.results.uncertainty.cell_interval`), with what all
    cells evaluated at that share of their updates say of the spread between seeds: after the last update it
    is the board's. Runs that failed or diverged are left out whole, so a curve is that of the seeds whose
    last score counts.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records.
        level: confidence level of the intervals.
        unscaled: tasks whose score is a plain return, which says nothing about the spread on others.

    Returns:
        n_seeds is the number of runs evaluated at that update, n_episodes that of their episodes in all,
        stream is monitor, or test for the last update. Ordered by task, entry and update.

    Raises:
        UserError: the runs of an entry on a task differ in more than their seed.
    """
    whole = runs[runs["status"] == "ok"]
    refuse_mixtures(whole)
    seen = _evaluations(episodes, whole)
    success = {
        task: task not in set(unscaled) and bool(x.isin([0.0, 100.0]).all())
        for task, x in seen.groupby("task")["score"]
    }
    lines = []
    for (stream, _), column in seen.groupby(["stream", "share"]):
        rows = dict(list(column.groupby(["entry", "task"])))
        cells = {k: _cell(x, success[k[1]], f"{k[0]} on {k[1]}") for k, x in rows.items()}
        pools = pools_of(cells, tuple(success), unscaled)
        for (entry, task), cell in cells.items():
            interval = uncertainty.cell_interval(cell, pools[task], level)
            own = rows[entry, task]
            line = (entry, task, own["update"].iloc[0], *interval, cell.n_seeds, len(own), stream)
            lines.append(line)
    table = pd.DataFrame(lines, columns=list(CURVE_COLUMNS))
    return table.sort_values(["task", "entry", "update"], ignore_index=True)


def _cell(rows: pd.DataFrame, success: bool, name: str) -> Cell:
    """Of the episodes of an entry at one update, ordered by seed and number."""
    lengths = rows.groupby("seed").size().to_numpy()
    scores, states = rows["score"].to_numpy(dtype=np.float64), rows["env_seed"].to_numpy()
    return scored_cell(scores, states, lengths, success=success, name=name, known={})


def _evaluations(episodes: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """The monitor episodes before the last update and the test episodes after it, by seed and number, with
    their share of the updates."""
    last = episodes["run_id"].map(dict(zip(whole["run_id"], whole["n_updates"], strict=True)))
    early = (episodes["stream"] == "monitor") & (episodes["update"] < last)
    final = (episodes["stream"] == "test") & (episodes["update"] == last)
    seen = episodes.assign(share=(episodes["update"] / last).round(6))
    return seen[early | final].sort_values(["seed", "episode"])


def updates_needed(table: pd.DataFrame, share: float = SHARE) -> pd.Series:
    """(entry, task) -> the first evaluated update whose mean is at least a share of the best last score.

    The best is that of any entry on the task after its last update. nan where an entry never gets there,
    where it has no monitor evaluations, and where the best last score is not above 0.

    Args:
        table: of `curve_table`.
    """
    best = table[table["stream"] == "test"].groupby("task")["mean"].max()
    need = share * table["task"].map(best.where(best > 0))
    reached = table["update"].where(table["mean"] >= need)
    watched = (table["stream"] == "monitor").groupby([table["entry"], table["task"]]).any()
    first = reached.groupby([table["entry"], table["task"]]).min()
    return first.where(watched).astype(np.float64).rename("updates_needed")
