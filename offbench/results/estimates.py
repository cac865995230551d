"""Estimated values of policies: their rows, their files, their table, and how far they can be trusted.

    root/estimates/<suite>/<task>/<entry>/<run_id>.<estimator>.parquet

A row is a recorded episode: what the policy is estimated to be worth at its first observation, or what the
episode contributes to a mean, in discounted raw rewards. The estimator `played` is no estimate: its rows
are episodes that the policy played, with their discounted returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import special

from offbench.results import measured
from offbench.results.stats import Interval
from offbench.results.uncertainty import Cell, Pool, cell_interval

ESTIMATE_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        # "fqe", "wis", "dr", "model" or "played"
        pa.field("estimator", pa.string(), nullable=False),
        # of the dataset, in its order; of `played`, of the stream "played"
        pa.field("episode", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        # effective number of episodes behind a weighted mean; null of others
        pa.field("effective", pa.float64()),
    ]
)
"""The rows. The mean of `value` is the estimate."""

PLAYED = "played"

VALUE_COLUMNS = ("task", "entry", "estimator", "n_seeds", "value", "low", "high", "effective")
"""The columns of `values`."""

QUALITY_COLUMNS = (
    *("task", "estimator", "n", "rank_correlation", "low", "high", "regret_at_1"),
    *("absolute_error", "rank_correlation_discounted", "range"),
)
"""The columns of `quality`."""

# bootstrap resamples
_REPS = 2000


# --- files ----------------------------------------------------------------------------------


FOLDER = "estimates"


def path_of(root: Path, mark: Path, estimator: str) -> Path:
    """Where the rows of a run lie, from the path of its record's json."""
    return measured.path_of(root, FOLDER, mark, f".{estimator}.parquet")


def write_estimates(
    path: Path, rows: pd.DataFrame, kept: Path, settings: Mapping[str, Any]
) -> None:
    """Writes the rows of one run and estimator, with the checksum of the kept policy and the settings.

    Raises UserError where the file cannot be written.
    """
    frame = rows.assign(effective=rows["effective"] if "effective" in rows else np.nan)
    table = pa.Table.from_pandas(
        frame[ESTIMATE_SCHEMA.names], schema=ESTIMATE_SCHEMA, preserve_index=False
    )
    measured.write_table(path, table, kept, {"settings": dict(settings)})


def is_estimated(path: Path, kept: Path, settings: Mapping[str, Any]) -> bool:
    """Whether there are rows of a kept policy with these settings."""
    return measured.is_made(path, kept, {"settings": dict(settings)})


def read_estimates(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of some files, in ESTIMATE_SCHEMA. Raises UserError for a file that is no table of estimates."""
    tables = [ESTIMATE_SCHEMA.empty_table(), *map(parse_estimates, paths)]
    return pa.concat_tables(tables).to_pandas()


def parse_estimates(path: Path) -> pa.Table:
    """The rows of a file, in ESTIMATE_SCHEMA. Raises UserError for one that is no table of estimates."""
    return measured.read_table(path, "estimates", ESTIMATE_SCHEMA, lambda table: table)


# --- numbers --------------------------------------------------------------------------------


def values(estimates: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """What each entry is estimated to be worth, one line per (task, entry, estimator), in VALUE_COLUMNS.

    Means over seeds, with 95 % intervals over seeds and start states, as those of a board's cells; with one
    seed they are over start states alone. They say nothing of an estimator's bias, nor of which episodes
    were recorded.

    Args:
        estimates: rows of ESTIMATE_SCHEMA.
        runs: `Store.runs()`, which say what entry and task a run is of.
    """
    known = runs.set_index("run_id")[["entry", "task"]]
    table = estimates.join(known, on="run_id", how="inner")
    cells: dict[tuple[str, str, str], Cell] = {}
    effective: dict[tuple[str, str, str], float] = {}
    for (task, name, entry), rows in table.groupby(["task", "estimator", "entry"]):
        by_run = rows.pivot(index="run_id", columns="episode", values="value").dropna(axis=1)
        scores, states = by_run.to_numpy(float), tuple(int(i) for i in by_run.columns)
        key = (str(task), str(entry), str(name))
        cells[key] = Cell(scores.mean(1), scores.shape[1], scores, states)
        effective[key] = float(rows["effective"].mean())
    lines = []
    for (task, entry, name), cell in cells.items():
        pool = Pool.of([c for (t, _, n), c in cells.items() if (t, n) == (task, name)])
        found = interval(cell, pool)
        line = (task, entry, name, cell.n_seeds, *found, effective[task, entry, name])
        lines.append(dict(zip(VALUE_COLUMNS, line, strict=True)))
    return pd.DataFrame(lines, columns=list(VALUE_COLUMNS))


def interval(cell: Cell, pool: Pool) -> Interval:
    """Of a mean over seeds and start states; of one seed, a bootstrap over its start states."""
    if cell.n_seeds > 1:
        return cell_interval(cell, pool)
    assert cell.table is not None
    return bootstrap(cell.table[0])


def over_seeds(means: np.ndarray, errors: np.ndarray, level: float = 0.95) -> Interval:
    """Of a mean over (n,) seeds, each a mean over start states with its standard error.

    All seeds have the same start states, whose share therefore does not fall with the number of seeds.
    Student's t with Satterthwaite's degrees of freedom; of one seed, of the start states alone.
    """
    n, starts = len(means), float(np.mean(np.square(errors)))
    seeds = float(means.var(ddof=1)) / n if n > 1 else 0.0
    variance = seeds + (starts if np.isfinite(starts) else 0.0)
    freedom = np.inf if seeds == 0 else (n - 1) * (variance / seeds) ** 2
    half = float(special.stdtrit(min(freedom, 1e6), (1 + level) / 2)) * np.sqrt(variance)
    known = n > 1 or np.isfinite(starts)
    mean = float(means.mean())
    return Interval(mean, mean - half, mean + half) if known else Interval(mean, np.nan, np.nan)


def bootstrap(x: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of (n,) numbers; nan bounds with one of them."""
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, np.nan, np.nan)
    generator = np.random.default_rng(len(x))
    drawn = [x[generator.integers(len(x), size=(100, len(x)))].mean(1) for _ in range(_REPS // 100)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def quality(estimates: pd.DataFrame, runs: pd.DataFrame, scores: pd.Series) -> pd.DataFrame:
    """How well estimates order policies, one line per (task, estimator), in QUALITY_COLUMNS.

    A policy is a run. Fewer than three with a score have no line.

        rank_correlation    Spearman's with the mean test score, and its 95 % interval over policies
        regret_at_1         the best mean test score minus that of the policy of the highest estimate
        absolute_error      mean |estimate - mean discounted return| of those that played; nan of none
        rank_correlation_discounted   Spearman's with those returns
        range               largest minus smallest test score, what regret_at_1 is at most

    Args:
        scores: run id -> mean test score.
    """
    means = estimates.groupby(["run_id", "estimator"])["value"].mean().unstack("estimator")
    means = means.join(runs.set_index("run_id")["task"], how="inner")
    lines = []
    for task, own in means.groupby("task"):
        for name in (n for n in own.columns if n not in ("task", PLAYED)):
            lines += list(_quality(str(task), str(name), own, scores))
    return pd.DataFrame(lines, columns=list(QUALITY_COLUMNS))


def _quality(task: str, name: str, own: pd.DataFrame, scores: pd.Series) -> Iterator[dict]:
    both = pd.DataFrame({"estimate": own[name], "score": scores.reindex(own.index)}).dropna()
    if len(both) < 3:
        return
    x, y = both["estimate"].to_numpy(float), both["score"].to_numpy(float)
    low, high = _interval_of_rank(x, y)
    line: dict[str, Any] = {"task": task, "estimator": name, "n": len(both)}
    line |= {"rank_correlation": spearman(x, y), "low": low, "high": high}
    line |= {"regret_at_1": float(y.max() - y[x.argmax()]), "range": float(y.max() - y.min())}
    if PLAYED in own and len(known := own[[name, PLAYED]].dropna()) >= 3:
        a, b = known[name].to_numpy(float), known[PLAYED].to_numpy(float)
        line |= {"absolute_error": float(np.abs(a - b).mean())}
        line |= {"rank_correlation_discounted": spearman(a, b)}
    yield line


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of (n,) numbers, ties sharing their mean rank; nan where all of one are equal.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    a, b = (pd.Series(z).rank().to_numpy() for z in (x, y))
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread > 0 else np.nan


def _interval_of_rank(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 % interval of Spearman's correlation over policies, by Fisher's transform (Bonett and Wright, 2000)."""
    r, n = spearman(x, y), len(x)
    if n < 5 or not np.isfinite(r):
        return np.nan, np.nan
    half = float(special.ndtri(0.975)) * np.sqrt((1 + r**2 / 2) / (n - 3))
    middle = np.arctanh(np.clip(r, -0.999999, 0.999999))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
