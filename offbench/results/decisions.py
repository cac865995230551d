"""Decisions of policies played again: their rows, their files, and what is counted of them.

`offbench diagnose --play N` plays every kept policy that says what its decisions are worth, and keeps

    root/decisions/<suite>/<task>/<entry>/<run_id>.parquet

beside the records. A row is a decision: the steps of a chunk that the policy planned to execute, its value,
and the discounted return from there on, both in the units of the method's data.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import special

from offbench.errors import UserError
from offbench.io import sha256_of
from offbench.results import measured, stats
from offbench.results.schema import NULLABLE, known
from offbench.results.uncertainty import Cell, Pool, cell_interval

PLACES = ("x", "y", "goal_x", "goal_y", "subgoal_x", "subgoal_y")
"""The columns of places in a maze."""

DECISION_SCHEMA = pa.schema(
    [
        known("run_id", pa.string()),
        # steps of every chunk, of a control; null for the policy as it is evaluated
        pa.field("control", pa.int64()),
        # which start state: its place in the stream "played"
        known("episode", pa.int64()),
        # steps of the episode before the decision
        known("step", pa.int64()),
        # steps that the policy planned to execute; the end of an episode may cut the last chunk
        known("length", pa.int64()),
        # what the critics said of these steps; null where they diverged
        pa.field("value", pa.float64()),
        # from the decision on, without a bootstrap
        known("discounted_return", pa.float64()),
        # gamma ** (steps to the end) where the episode was broken off there; 0 where it terminated
        known("left_out", pa.float64()),
        # to the goal, where the environment tells one (offbench.tasks.environments.goal_distance)
        pa.field("distance", pa.float64()),
        # of the episode, within its time limit: steps, success and score, the same in all its rows
        known("steps", pa.int64()),
        pa.field("success", pa.bool_()),
        known("score", pa.float64()),
        # in a maze: where the agent is, where its goal lies, and the state it heads for, of a method that
        # has sub-goals (of some decisions only)
        *(pa.field(name, pa.float64()) for name in PLACES),
    ]
)
"""The rows: one per decision that was made within the time limit of the task."""

CUT_SHORT = 0.01
"""Share of a return's horizon from which a return without it is called cut short."""

COLUMNS = ("entry", "task", "what", "control", "at", "value", "low", "high", "n", "whole")
"""The columns of `measure`."""

BINS = 10
"""Bins of equally many decisions, of values and of distances."""

STEP_BINS = 20
"""Bins of equal width over the time limit, of steps."""

_EPISODE = ["run_id", "episode"]


# --- files ----------------------------------------------------------------------------------


FOLDER = "decisions"


def path_of(root: Path, mark: Path) -> Path:
    """Where the decisions of a run lie, from the path of its record's json."""
    return measured.path_of(root, FOLDER, mark)


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the dtypes of DECISION_SCHEMA; `run_id` may be missing, and places where there are none."""
    rows = rows.assign(**{name: np.nan for name in PLACES if name not in rows})
    kinds = {
        pa.int64(): ("int64", "Int64"),
        pa.float64(): ("float64", "Float64"),
        pa.bool_(): ("bool", "boolean"),
        pa.string(): ("object", "object"),
    }
    there = [field for field in DECISION_SCHEMA if field.name in rows]
    frame = rows[[field.name for field in there]].reset_index(drop=True)
    return frame.astype({f.name: kinds[f.type][f.nullable] for f in there})


def write_decisions(path: Path, rows: pd.DataFrame, kept: Path) -> None:
    """Writes the decisions of one run, and the checksum of the kept policy that made them.

    Raises UserError where the file cannot be written.
    """
    table = pa.Table.from_pandas(typed(rows), schema=DECISION_SCHEMA, preserve_index=False)
    measured.write_table(path, table, kept, {"episodes": int(rows["episode"].max()) + 1})


def is_played(path: Path, kept: Path, episodes: int) -> bool:
    """Whether there are decisions of this many episodes of a kept policy."""
    return measured.is_made(path, kept, {"episodes": episodes})


def read_decisions(root: Path, marks: Mapping[str, Path]) -> pd.DataFrame:
    """The decisions of runs (run id -> the json of its record) that were played, in DECISION_SCHEMA.

    Raises UserError where a file is no table of decisions, or its policy is no longer the one it was.
    """
    tables = [DECISION_SCHEMA.empty_table()]
    for mark in marks.values():
        path, kept = path_of(root, mark), mark.with_suffix(".safetensors")
        if not path.exists():
            continue
        about = measured.about(path)
        if about is None:
            raise UserError(f"{path} is no table of decisions; delete it and play the run again")
        if kept.exists() and about.get("policy") != sha256_of(kept):
            raise UserError(f"{path} is of another policy than {kept}; play it again with --play")
        tables.append(parse_decisions(path))
    return typed(pa.concat_tables(tables).to_pandas(types_mapper=NULLABLE.get))


def parse_decisions(path: Path) -> pa.Table:
    """The decisions of a file, in DECISION_SCHEMA. Raises UserError for one that is no table of decisions."""
    return measured.read_table(path, "decisions", DECISION_SCHEMA, _with_places)


def _with_places(table: pa.Table) -> pa.Table:
    """The table with columns of places, which older files have not."""
    for name in PLACES:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.float64()))
    return table


# --- numbers --------------------------------------------------------------------------------


def measure(decisions: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Executed lengths, calibration and controls, one number per row, in COLUMNS.

    Args:
        decisions: rows of DECISION_SCHEMA.
        runs: `Store.runs()`, which say what entry and task a run is of.

    `control` is empty for the policy itself. `at` is the mean of what is binned. Intervals are of 95 %.

        length by step           mean length; `, successes` and `, others` where episodes say which they are
        length by distance       mean length
        return by value          mean discounted return; `whole` is the share that is not cut short
        value minus return       mean difference
        score                    mean score of n episodes
        policy minus control     mean difference of scores in the same n episodes

    The first three have intervals over n decisions that count those of an episode as one observation: they
    are of these trained policies. The fourth is a mean over seeds with its Student-t interval; of the last two
    they are those of a board's cells, over seeds and start states (`offbench.results.uncertainty`).
    """
    names = runs.set_index("run_id")[["entry", "task"]]
    table = decisions.join(names, on="run_id", how="inner")
    table = table.astype({"value": "float64", "distance": "float64"})
    lines: list[dict[str, Any]] = []
    for (entry, task), mine in table.groupby(["entry", "task"]):
        by_control = {
            None if pd.isna(control) else int(control): part
            for control, part in mine.groupby("control", dropna=False)
        }
        found = [{"control": None, **line} for line in _lengths(by_control[None])]
        for control, part in by_control.items():
            found += [{"control": control, **line} for line in _calibration(part)]
        found += _scores(by_control)
        lines += [{"entry": entry, "task": task, **line} for line in found]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({"control": "Int64"})


def _lengths(part: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The lengths that the policy chooses, by step and by distance."""
    told = part["success"].notna()
    outcomes = {"": part}
    if told.all() and part["success"].nunique() == 2:
        won = part["success"].astype(bool)
        outcomes = {", successes": part[won], ", others": part[~won]}
    width = -(-int(part["steps"].max()) // STEP_BINS)
    for name, some in outcomes.items():
        bins = some["step"] // width
        yield from _binned(f"length by step{name}", some, bins, "step", "length")
    near = part[part["distance"].notna()]
    if len(near):
        yield from _binned(
            "length by distance", near, equal_bins(near["distance"]), "distance", "length"
        )


def _calibration(part: pd.DataFrame) -> Iterator[dict[str, Any]]:
    fine = part[np.isfinite(part["value"])]
    if fine.empty:
        return
    yield from _binned(
        "return by value", fine, equal_bins(fine["value"]), "value", "discounted_return"
    )
    error = (fine["value"] - fine["discounted_return"]).groupby(fine["run_id"]).mean()
    found = stats.mean_interval(error.to_numpy(float)).columns
    yield {"what": "value minus return", **found, "n": len(fine), "whole": _whole(fine)}


def _scores(by_control: Mapping[int | None, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """The scores of a policy (None) and its controls, and how much it is ahead of each."""
    scores = {control: _score_table(part) for control, part in by_control.items()}
    own = scores[None]
    ahead = {control: own - table for control, table in scores.items() if control is not None}
    for what, tables in (("score", scores), ("policy minus control", ahead)):
        cells = {control: _cell(table, what) for control, table in tables.items()}
        pool = Pool.of(list(cells.values()))
        for control, cell in cells.items():
            n = cell.n_seeds * cell.n_episodes
            yield {"what": what, "control": control, **cell_interval(cell, pool).columns, "n": n}


def _score_table(part: pd.DataFrame) -> pd.DataFrame:
    """Runs x episodes, of the episodes that all of them played."""
    return part.groupby(_EPISODE)["score"].first().unstack("episode").dropna(axis=1)


def _cell(table: pd.DataFrame, what: str) -> Cell:
    scores = table.to_numpy(float)
    success = what == "score" and bool(np.isin(scores, (0.0, 100.0)).all())
    states = tuple(int(i) for i in table.columns)
    return Cell(scores.mean(1), scores.shape[1], scores, states, success)


def _whole(part: pd.DataFrame) -> float:
    """The share of returns that are not cut short."""
    return float((part["left_out"] < CUT_SHORT).mean())


def equal_bins(x: pd.Series) -> pd.Series:
    """The bin of each number, of at most BINS with about equally many in each; equal numbers share one."""
    edges = np.unique(np.quantile(x.to_numpy(float), np.arange(1, BINS) / BINS))
    return pd.Series(np.searchsorted(edges, x.to_numpy(float), side="left"), x.index)


def _binned(
    what: str, part: pd.DataFrame, bins: pd.Series, at: str, of: str
) -> Iterator[dict[str, Any]]:
    for _, some in part.groupby(bins.to_numpy()):
        episode = some.groupby(_EPISODE).ngroup().to_numpy()
        found = cluster_interval(some[of].to_numpy(float), episode).columns
        line = {"what": what, "at": float(some[at].mean()), **found, "n": len(some)}
        yield line | ({"whole": _whole(some)} if of == "discounted_return" else {})


def cluster_interval(x: np.ndarray, cluster: np.ndarray, level: float = 0.95) -> stats.Interval:
    """Interval of the mean of (n,) numbers that depend on each other within a cluster; nan bounds with one.

    The variance of the mean is g / (g - 1) times the sum over g clusters of the squared sum of
    deviations, over n^2; the quantile is Student's with g - 1 degrees of freedom.
    """
    mean, n = float(x.mean()), len(x)
    sums = np.bincount(cluster, weights=x - mean)
    g = len(np.unique(cluster))
    if g < 2:
        return stats.Interval(mean, np.nan, np.nan)
    error = np.sqrt(g / (g - 1) * np.square(sums).sum()) / n
    half = float(special.stdtrit(g - 1, (1 + level) / 2) * error)
    return stats.Interval(mean, mean - half, mean + half)
