"""Do seeds of an entry end in the same policy? Divergences of pairs of seeds, their files, and their mean.

    root/consistency/<suite>/<task>/<entry>.csv     a row per pair of seeds and kind, in COLUMNS

`offbench diagnose --consistency` writes them from kept policies (`offbench.bench.consistency`). Runs of equal
return may have learned different policies ("Behavior-consistent deep RL", arXiv 2605.21214); kinds are

    action   root mean square of the difference of the first executed action over its dimensions, over 2, the
             range of an action; mean over states. 0: the same, 1: opposite ends everywhere
    choice   of discrete actions: the share of states with different choices
    js       of Gaussian policies: Jensen-Shannon divergence in bits, mean over states. 0: the same, 1: nothing in
             common
"""

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from offbench.errors import UserError, writing
from offbench.io import atomic_write, slug
from offbench.results.stats import Interval, mean_interval

COLUMNS = (
    "task",
    "entry",
    "kind",
    "seed",
    "other",
    "run_id",
    "other_run_id",
    "divergence",
    "states",
)
OF_CELLS = ("entry", "task", "kind", "value", "low", "high", "n_seeds", "states")
CHURN = (
    *("task", "entry", "kind", "seed", "earlier_updates", "updates"),
    *("earlier_run_id", "run_id", "divergence", "states", "went_on"),
)
"""The columns of how far policies moved over their last updates, a row per seed and kind; `went_on`: whether the run
went on from the kept state of the earlier one, else both began at 0 with the same seed and settings."""
SHOWN = ("action", "choice")
"""The kinds that a board shows: every method has one of them, and they can be compared."""


def path_of(root: Path, suite: str, task: str, entry: str) -> Path:
    """Where the rows of a cell lie."""
    return root / "consistency" / slug(suite) / slug(task) / f"{slug(entry)}.csv"


def write_pairs(path: Path, rows: pd.DataFrame) -> None:
    """Writes the rows of a cell. Raises UserError where the file cannot be written."""
    text = rows[list(COLUMNS)].to_csv(index=False, float_format="%.6g", lineterminator="\n")
    with writing(path):
        atomic_write(path, text.encode())


def read_pairs(root: Path, suite: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of a suite's cells whose runs are both among `runs` (lines of `Store.runs()`), in COLUMNS."""
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    for task, entry in sorted(set(zip(runs["task"], runs["entry"]))):
        path = path_of(root, suite, str(task), str(entry))
        if path.exists():
            parts.append(parse_pairs(path))
    return of_runs(pd.concat([p for p in parts if len(p)] or parts[:1]), set(runs["run_id"]))


def parse_pairs(path: Path) -> pd.DataFrame:
    """The rows of a file, in COLUMNS. UserError for any other file."""
    kinds = {"run_id": str, "other_run_id": str, "entry": str, "task": str}
    try:
        rows = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=kinds)
        return rows[list(COLUMNS)]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} has no rows of consistency; delete it and measure again") from None


def of_runs(rows: pd.DataFrame, run_ids: Collection[str]) -> pd.DataFrame:
    """The rows whose two runs are among some."""
    known = list(run_ids)
    both = rows["run_id"].isin(known) & rows["other_run_id"].isin(known)
    return rows[both].sort_values(["task", "entry", "kind", "seed", "other"], ignore_index=True)


# --- numbers --------------------------------------------------------------------------------


def cell_consistency(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The mean divergence of each cell and kind with its interval over seeds, in OF_CELLS."""
    lines = []
    for (entry, task, kind), mine in rows.groupby(["entry", "task", "kind"]):
        table = _square(mine)
        line = (entry, task, kind, *mean_divergence([table], level), len(table))
        lines.append((*line, int(mine["states"].iloc[0])))
    return pd.DataFrame(lines, columns=list(OF_CELLS))


def entry_consistency(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The mean of each entry over its measured tasks, of the kinds that a board shows: entry, value, low, high,
    n_tasks."""
    lines = []
    for entry, mine in rows[rows["kind"].isin(SHOWN)].groupby("entry"):
        tables = [_square(part) for _, part in mine.groupby("task")]
        lines.append((entry, *mean_divergence(tables, level), len(tables)))
    return pd.DataFrame(lines, columns=["entry", "value", "low", "high", "n_tasks"])


def cell_churn(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The mean churn of each cell and kind with its interval over seeds (Student's t, not below 0), of rows in CHURN."""
    lines = []
    keys = ["entry", "task", "kind", "earlier_updates", "updates", "states"]
    for key, mine in rows.groupby(keys, sort=False):
        point, low, high = mean_interval(mine["divergence"].to_numpy(float), level)
        bounds = (low if np.isnan(low) else max(0.0, low), high)
        lines.append((*key, point, *bounds, len(mine), int(mine["went_on"].sum())))
    return pd.DataFrame(lines, columns=[*keys, "value", "low", "high", "n_seeds", "n_went_on"])


def mean_divergence(tables: list[np.ndarray], level: float = 0.95) -> Interval:
    """The mean over tasks of the mean over pairs of seeds, with an interval over seeds.

    Pairs that share a seed depend on each other, so that it is seeds that are left out, one at a time: the
    jackknife of a U-statistic (Arvesen 1969), with Student's t of the fewest seeds. Bounds are nan where a task
    has two seeds, and never below 0.

    Args:
        tables: (n, n) of each task, symmetric with zeros on the diagonal.
    """
    points, variances = zip(*(_jackknife(x) for x in tables))
    point, n = float(np.mean(points)), min(map(len, tables))
    if n < 3:
        return Interval(point, np.nan, np.nan)
    half = special.stdtrit(n - 1, (1 + level) / 2) * np.sqrt(np.sum(variances)) / len(tables)
    return Interval(point, max(0.0, point - float(half)), point + float(half))


def _jackknife(table: np.ndarray) -> tuple[float, float]:
    """The mean over pairs, and its variance over seeds; nan with two seeds."""
    n, total = len(table), table.sum()
    point = float(total / (n * (n - 1)))
    if n < 3:
        return point, np.nan
    without = (total - 2 * table.sum(0)) / ((n - 1) * (n - 2))
    return point, float((n - 1) / n * np.square(without - without.mean()).sum())


def _square(rows: pd.DataFrame) -> np.ndarray:
    """(n, n) divergences of the pairs of one cell and kind."""
    seeds = sorted({*rows["seed"], *rows["other"]})
    place = {seed: i for i, seed in enumerate(seeds)}
    table = np.zeros((len(seeds), len(seeds)))
    i, j = (rows[name].map(place).to_numpy() for name in ("seed", "other"))
    table[i, j] = table[j, i] = rows["divergence"].to_numpy(float)
    return table
