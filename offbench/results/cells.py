"""The cells of a board: the scores of one entry on one task, with their interval and what is missing."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from offbench.errors import UserError
from offbench.results import uncertainty
from offbench.results.episode_scores import score_table
from offbench.results.stats import Interval
from offbench.results.uncertainty import Cell, Pool

# (entry, task) -> test scores
Cells = Mapping[tuple[str, str], Cell]

_NONE = Interval(np.nan, np.nan, np.nan)


def scored_cells(episodes: pd.DataFrame, whole: pd.DataFrame, unscaled: Collection[str]) -> Cells:
    """(entry, task) -> its test scores after the last update of the whole runs.

    Scores that are all 0 or 100 are a success rate, unless the task's are plain returns.
    """
    last = dict(zip(whole["run_id"], whole["n_updates"], strict=True))
    test = episodes[(episodes["stream"] == "test") & episodes["run_id"].isin(last)]
    test = test[test["update"] == test["run_id"].map(last)]
    if lacking := sorted(set(last) - set(test["run_id"])):
        raise UserError(f"run {lacking[0]} is recorded as done but has no test episodes here")
    # refuses scores that are not finite
    score_table(test)
    success = {
        task: task not in set(unscaled) and bool(x.isin([0.0, 100.0]).all())
        for task, x in test.groupby("task")["score"]
    }
    return {
        (str(entry), str(task)): scored_cell(cell, success[task], f"{entry} on {task}")
        for (entry, task), cell in test.sort_values(["seed", "episode"]).groupby(["entry", "task"])
    }


def scored_cell(test: pd.DataFrame, success: bool, name: str) -> Cell:
    """Of test rows ordered by seed and episode."""
    ends = np.flatnonzero(np.diff(test["seed"])) + 1
    by_seed = np.split(test["score"].to_numpy(dtype=np.float64), ends)
    means = np.array([scores.mean() for scores in by_seed])
    faced = np.split(test["env_seed"].to_numpy(), ends) if "env_seed" in test else []
    if len(start_states := {tuple(states.tolist()) for states in faced}) != 1:
        return Cell(means, round(len(test) / len(means)), success=success, name=name)
    table = np.stack(by_seed)
    return Cell(means, table.shape[1], table, start_states.pop(), success, name)


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
            n_asked = len(seeds[task]) if task in seeds else n_seeds + failed + diverged
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
    cells["best"] = False
    for task in pools:
        whole = cells[(cells["task"] == task) & (cells["status"] == "ok")]
        column = [found[entry, task] for entry in whole["entry"]]
        points = np.array([cell.mean for cell in column])
        adjusted = uncertainty.differences(column, pools[task])
        best = uncertainty.not_worse_than_best(points, adjusted, level)
        cells.loc[whole.index[best], "best"] = True
    return cells


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
    runs, update, mean, size = _last_three(episodes[episodes["run_id"].isin(whole["run_id"])])
    place = {run: i for i, run in enumerate(runs)}
    lines = []
    for (entry, task), cell in whole.groupby(["entry", "task"]):
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
    episodes: pd.DataFrame,
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """The test evaluation of each run and the two monitor evaluations before it, in the order of updates.

    Returns:
        run ids, and (n_runs, 3) each: update, mean score and number of episodes. Runs with fewer
        evaluations are left out.
    """
    seen = episodes[episodes["stream"].isin(["monitor", "test"])]
    seen = seen.groupby(["run_id", "update", "stream"])["score"].agg(["mean", "size"]).reset_index()
    test = seen[seen["stream"] == "test"]
    end = seen["run_id"].map(test.groupby("run_id")["update"].max())
    monitor = seen[(seen["stream"] == "monitor") & (seen["update"] < end)]
    three = pd.concat([monitor.groupby("run_id").tail(2), test]).sort_values(["run_id", "update"])
    three = three[three.groupby("run_id")["update"].transform("size") == 3]
    arrays = (three[name].to_numpy().reshape(-1, 3) for name in ("update", "mean", "size"))
    return three["run_id"].tolist()[::3], *arrays
