"""The cells of a board: the scores of one entry on one task, with their interval and what is missing."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from offbench.errors import UserError
from offbench.results import uncertainty
from offbench.results.stats import Interval
from offbench.results.uncertainty import Cell, Pool

# (entry, task) -> test scores
Cells = Mapping[tuple[str, str], Cell]

_NONE = Interval(np.nan, np.nan, np.nan)


def scored_cells(episodes: pd.DataFrame, whole: pd.DataFrame, unscaled: Collection[str]) -> Cells:
    """(entry, task) -> its test scores after the last update of the whole runs.

    Scores that are all 0 or 100 are a success rate, unless the task's are plain returns.
    """
    whole = whole.sort_values(["entry", "task", "seed"], ignore_index=True)
    if (twice := whole["run_id"].duplicated()).any():
        raise UserError(f"run {whole['run_id'][twice].iloc[0]} is there twice")
    rows = _last_test_rows(episodes, whole)
    lengths = np.bincount(rows.run, minlength=len(whole))
    if lacking := sorted(whole["run_id"][lengths == 0]):
        raise UserError(f"run {lacking[0]} is recorded as done but has no test episodes here")
    if not (finite := np.isfinite(rows.score)).all():
        bad = whole.iloc[rows.run[~finite][0]]
        raise UserError(f"run {bad['run_id']} has a score which is not finite, on {bad['task']}")
    if whole.empty:
        return {}
    ends = np.cumsum(lengths)
    zero_or_hundred = (rows.score == 0) | (rows.score == 100)
    sure = pd.Series(np.logical_and.reduceat(zero_or_hundred, ends - lengths))
    success = sure.groupby(whole["task"]).all().to_dict() | dict.fromkeys(unscaled, False)
    known: dict[bytes, tuple[int, ...]] = {}
    found, starts = {}, np.flatnonzero(~whole.duplicated(["entry", "task"]).to_numpy())
    for first, end in zip(starts, [*starts[1:], len(whole)]):
        entry, task = str(whole["entry"].iat[first]), str(whole["task"].iat[first])
        part = slice(ends[first] - lengths[first], ends[end - 1])
        states = None if rows.env_seed is None else rows.env_seed[part]
        of_cell = rows.score[part], states, lengths[first:end]
        found[entry, task] = scored_cell(
            *of_cell, success=success[task], name=f"{entry} on {task}", known=known
        )
    return found


class _Rows(NamedTuple):
    """Test episodes, ordered by run and number."""

    # place of the run
    run: np.ndarray
    score: np.ndarray
    env_seed: np.ndarray | None


def _last_test_rows(episodes: pd.DataFrame, whole: pd.DataFrame) -> _Rows:
    """The test episodes after the last update of some runs, by their places."""
    place = places(episodes["run_id"], whole["run_id"])
    last = whole["n_updates"].to_numpy()
    use = np.flatnonzero((episodes["stream"] == "test").to_numpy() & (place >= 0))
    use = use[episodes["update"].to_numpy()[use] == last[place[use]]]
    run, number = place[use], episodes["episode"].to_numpy()[use]
    key = run.astype(np.int64) * (int(number.max(initial=0)) + 1) + number
    if (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
        use, run = use[order], run[order]
    seeds = episodes["env_seed"].to_numpy()[use] if "env_seed" in episodes else None
    return _Rows(run, episodes["score"].to_numpy(dtype=np.float64)[use], seeds)


def places(names: pd.Series, among: pd.Series) -> np.ndarray:
    """The place of every name among some that differ, -1 where it is none; categories are looked up once."""
    index = pd.Index(among)
    if isinstance(names.dtype, pd.CategoricalDtype):
        return index.get_indexer(names.cat.categories)[names.cat.codes]
    return index.get_indexer(pd.Index(names))


def scored_cell(
    scores: np.ndarray,
    states: np.ndarray | None,
    lengths: np.ndarray,
    *,
    success: bool,
    name: str,
    known: dict[bytes, tuple[int, ...]],
) -> Cell:
    """Of the scores and start states of its seeds, one after the other; `known` start states are kept once."""
    shape = len(lengths), int(lengths[0])
    if (lengths != lengths[0]).any():
        by_seed = np.split(scores, np.cumsum(lengths)[:-1])
        means = np.array([seed.mean() for seed in by_seed])
        return Cell(means, round(len(scores) / len(means)), success=success, name=name)
    table = scores.reshape(shape)
    if states is None or (states.reshape(shape) != states[: shape[1]]).any():
        return Cell(table.mean(1), shape[1], success=success, name=name)
    shared = states[: shape[1]]
    faced = known.setdefault(shared.tobytes(), ()) or tuple(shared.tolist())
    known[shared.tobytes()] = faced
    return Cell(table.mean(1), shape[1], table, faced, success, name)


def pools_of(found: Cells, tasks: tuple[str, ...], unscaled: Collection[str]) -> dict[str, Pool]:
    """What the board says of the variance between seeds; plain returns speak for their task alone."""
    scaled = Pool.of([cell for (_, task), cell in found.items() if task not in set(unscaled)])
    return {
        task: Pool.of([cell for (_, t), cell in found.items() if t == task])
        if task in set(unscaled)
        else scaled
        for task in tasks
    }


def cell_table(
    runs: pd.DataFrame,
    found: Cells,
    pools: Mapping[str, Pool],
    asked: Mapping[str, set[str]],
    seeds: Mapping[str, Collection[int]],
    level: float,
) -> pd.DataFrame:
    """`Board.cells`: one row per (entry, task), missing ones too.

    Args:
        pools: in the order of the tasks.
        asked: entry -> the tasks it is asked for.
        seeds: task -> the seeds asked for, where they are known.
    """
    recorded = runs[runs["status"] == "ok"].groupby(["entry", "task"])["seed"].agg(set).to_dict()
    counts = runs.groupby(["entry", "task", "status"]).size().to_dict()
    lines = []
    for entry in sorted(runs["entry"].unique()):
        for task in pools:
            cell = found.get((entry, task))
            failed = counts.get((entry, task, "failed"), 0)
            diverged = counts.get((entry, task, "diverged"), 0)
            interval = _NONE
            if cell is not None:
                interval = uncertainty.cell_interval(cell, pools[task], level)
            n_seeds = 0 if cell is None else cell.n_seeds
            n_asked = n_seeds + failed + diverged
            if task in seeds:
                n_asked = _n_asked(set(seeds[task]), recorded.get((entry, task), set()))
            lines.append(
                {
                    "entry": entry,
                    "task": task,
                    "mean": interval.point,
                    "low": interval.low,
                    "high": interval.high,
                    "n_seeds": n_seeds,
                    "n_asked": n_asked,
                    "n_episodes": 0 if cell is None else n_seeds * cell.n_episodes,
                    "n_failed": failed,
                    "n_diverged": diverged,
                    "status": _cell_status(n_seeds, n_asked, failed, diverged)
                    if task in asked[entry]
                    else "left out",
                    "missing": cell is None,
                    "success": cell is not None and cell.success,
                }
            )
    cells = pd.DataFrame(lines)
    return _marked(cells, found, pools, level)


def _marked(
    cells: pd.DataFrame, found: Cells, pools: Mapping[str, Pool], level: float
) -> pd.DataFrame:
    """The cells, with which of a column cannot be told from its best."""
    cells["best"] = False
    for task in pools:
        whole = cells[(cells["task"] == task) & (cells["status"] == "ok")]
        column = [found[entry, task] for entry in whole["entry"]]
        points = np.array([cell.mean for cell in column])
        adjusted = uncertainty.differences(column, pools[task]).adjusted()
        best = uncertainty.not_worse_than_best(points, adjusted, level)
        cells.loc[whole.index[best], "best"] = True
    return cells


def _n_asked(asked: set[int], recorded: set[int]) -> int:
    """How many seeds a cell ought to have: one that was not asked for takes the place of none."""
    return len(asked if recorded >= asked else asked | recorded)


def _cell_status(n_seeds: int, n_asked: int, failed: int, diverged: int) -> str:
    if n_seeds:
        return "partial" if n_seeds < n_asked or failed or diverged else "ok"
    if diverged:
        return "diverged"
    return "failed" if failed else "missing"


_AVERAGED = ("entry", "task", "mean", "low", "high", "last", "n_seeds", "n_episodes", "at", "each")


def averaged_table(
    episodes: pd.DataFrame,
    whole: pd.DataFrame,
    found: Cells,
    pools: Mapping[str, Pool],
    level: float,
) -> pd.DataFrame:
    """The mean of the last three evaluations, each counting equally, of the cells whose runs all have them."""
    runs, update, mean, size = _last_three(episodes, whole)
    place = {run: i for i, run in enumerate(runs)}
    lines = []
    narrow = whole[["entry", "task", "run_id", "n_updates"]]
    for (entry, task), cell in narrow.groupby(["entry", "task"]) if place else ():
        if not place.keys() >= set(cell["run_id"]):
            continue
        own = [place[run] for run in cell["run_id"]]
        shares = np.round(update[own] / cell["n_updates"].to_numpy()[:, None], 4)
        if np.ptp(shares, 0).any() or np.ptp(size[own], 0).any():
            continue
        # a few episodes are for a learning curve; here each evaluation counts as much as the last
        if (2 * size[own] < size[own, -1:]).any():
            continue
        at, each = tuple(shares[0].tolist()), tuple(size[own[0]].tolist())
        # as many episodes, of one evaluation, as the mean of three evaluations is worth
        worth = max(1, round(9 / (1 / size[own[0]]).sum()))
        averaged = Cell(mean[own].mean(1), worth, success=found[entry, task].success)
        interval = uncertainty.cell_interval(averaged, pools[task], level)
        line = [
            entry,
            task,
            *interval,
            mean[own, -1].mean(),
            len(own),
            sum(each) * len(own),
            at,
            each,
        ]
        lines.append([*line, averaged.success])
    return pd.DataFrame(lines, columns=[*_AVERAGED, "success"])


def _last_three(
    episodes: pd.DataFrame, whole: pd.DataFrame
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """The test evaluation of each run and the two monitor evaluations before it, in the order of updates.

    Returns:
        run ids, and (n_runs, 3) each: update, mean score and number of episodes. Runs with fewer
        evaluations are left out.
    """
    nothing = np.empty((0, 3))
    monitor = (episodes["stream"] == "monitor").to_numpy()
    if not monitor.any():
        return [], nothing, nothing, nothing
    run, test = places(episodes["run_id"], whole["run_id"]), episodes["stream"] == "test"
    seen = pd.DataFrame({"run": run, "test": test, **episodes[["update", "score"]]})
    seen = seen[(run >= 0) & (monitor | test.to_numpy())]
    seen = seen.groupby(["run", "update", "test"])["score"].agg(["mean", "size"]).reset_index()
    last = seen[seen["test"]]
    end = seen["run"].map(last.groupby("run")["update"].max())
    before = seen[~seen["test"] & (seen["update"] < end)]
    three = pd.concat([before.groupby("run").tail(2), last]).sort_values(["run", "update"])
    three = three[three.groupby("run")["update"].transform("size") == 3]
    arrays = (three[name].to_numpy().reshape(-1, 3) for name in ("update", "mean", "size"))
    return whole["run_id"].iloc[three["run"].iloc[::3]].tolist(), *arrays
