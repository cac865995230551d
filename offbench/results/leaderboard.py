"""The leaderboard: episodes in, one honest table out.

`leaderboard` computes a `Board` once; `to_markdown`, `to_csv` and `to_terminal` only spell it. Its
rules: the last update is the result; the configuration is one per cell; a missing, failed or
diverged run is shown and never averaged over, so an entry that lacks anything has no aggregate and
ranks last; and what differs between the runs of a column is said under the table.

The random numbers of the intervals are seeded by the scores they are computed from, so a board is
a function of its records. A new row changes no other row's numbers but for its intervals and
bold, in so far as it changes the mean variance between seeds (`offbench.results.uncertainty`).
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pandas as pd

from offbench.errors import UserError, nearest
from offbench.results import stats, uncertainty
from offbench.results.captions import (
    how_trained,
    long_caption,
    notes_on,
    notes_on_ranks,
    short_caption,
    spelt,
)
from offbench.results.stats import Interval
from offbench.results.uncertainty import Cell, Generators, Pool

SCALE = "0 = reference minimum, 100 = reference maximum or certain success"

_NEEDED = ("run_id", "config_id", "entry", "task", "seed", "status", "n_updates")

_Cells = Mapping[tuple[str, str], Cell]

_RETURNS = "the return itself, no reference returns are known"

_NONE = Interval(np.nan, np.nan, np.nan)

_AGGREGATES = ("iqm", "low", "high", "mean", "mean_low", "mean_high", "mean_rank")


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard, computed.

    cells, one row per (entry, task): entry, task, mean, low, high, n_seeds, n_episodes (in all),
    n_asked (seeds asked for), n_failed, n_diverged, status (ok | partial | failed | diverged | missing |
    left out), missing, best, success (whether the score is a success rate).
    aggregate, one row per entry, in rank order: rank, entry, mean_rank (instead of iqm and mean where
    tasks have returns of several scales), complete, n_asked (tasks that the suite
    asks it for), n_tasks, iqm, low, high, mean, mean_low, mean_high, best, n_seeds (fewest of a task),
    n_seeds_max, n_episodes, n_tuned (tasks run with a per-task preset), tuning, commit, n_updates,
    published_updates, updates (both in words), wall_s (per run, a pack shared). Entries that lack a task have rank <NA> and nan.
    averaged, one row per cell whose runs all have two monitor evaluations: entry, task, mean, low and
    high of the mean of the last three evaluations, last (the mean of the last alone), n_seeds,
    n_episodes (in all), at (update / n_updates of the three), each (episodes of the three per seed), success.
    """

    title: str
    tasks: tuple[str, ...]
    cells: pd.DataFrame
    aggregate: pd.DataFrame
    averaged: pd.DataFrame
    notes: tuple[str, ...]
    caption: str
    # the caption in two lines, for a terminal
    summary: str


def leaderboard(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    tasks: Sequence[str],
    *,
    only: Mapping[str, Sequence[str]] | None = None,
    seeds: Mapping[str, Collection[int]] | None = None,
    unscaled: Collection[str] = (),
    title: str = "",
    scale: str = SCALE,
    level: float = 0.95,
    reps: int = 2000,
    random_seed: int = 0,
) -> Board:
    """The board of `tasks` from `Store.episodes()` and `Store.runs()`.

    Args:
        only: method -> patterns of the tasks that a suite asks it for, where those are not all.
        seeds: task -> the seeds asked for. An entry that lacks one has no aggregate and no rank.
        unscaled: tasks whose score is a plain return, of which no aggregate is made.
        level: of the intervals and of bold.
        reps: resamples of the aggregates' intervals.

    Raises:
        UserError: two runs claim one (entry, task, seed), a cell would mix configurations, or the two
            frames disagree.
    """
    tasks = _distinct(tasks)
    runs = _current(runs, tasks)
    whole = runs[runs["status"] == "ok"]
    refuse_mixtures(whole)
    found = _scored_cells(episodes, whole, unscaled)
    pools = _pools(found, tasks, unscaled)
    cells = _cells(runs, found, pools, tasks, _asked(runs, tasks, only or {}), seeds or {}, level)
    plain = [task for task in tasks if task in set(unscaled)]
    mixed = plain if len(tasks) > 1 else []
    scale = _RETURNS if len(plain) == len(tasks) else scale
    entries = _complete(cells, tasks)
    generator = _by_content(random_seed)
    return Board(
        title=title,
        tasks=tasks,
        cells=cells,
        aggregate=_ranked(cells, whole, entries)
        if mixed
        else _aggregate(cells, whole, found, pools, entries, tasks, generator, level, reps),
        averaged=_averaged(episodes, whole, found, pools, tasks, level),
        notes=(*notes_on_ranks(mixed, tasks), *notes_on(whole, cells, tasks)),
        caption=long_caption(cells, scale, level, reps),
        summary=short_caption(cells, scale, level),
    )


def _distinct(tasks: Sequence[str]) -> tuple[str, ...]:
    tasks = tuple(tasks)
    if not tasks:
        raise UserError("a board needs at least one task")
    if len(set(tasks)) < len(tasks):
        twice = next(task for task in tasks if tasks.count(task) > 1)
        raise UserError(f"task {twice} is listed twice")
    return tasks


def _current(runs: pd.DataFrame, tasks: tuple[str, ...]) -> pd.DataFrame:
    """Runs of these tasks: whole ones, and failures which no whole run of that seed made good."""
    if absent := [name for name in _NEEDED if name not in runs]:
        raise UserError(f"runs: no column {', '.join(absent)}")
    mine = runs[runs["task"].isin(tasks)]
    if mine.empty:
        raise UserError(f"no records of {tasks[0]}: {nearest(tasks[0], runs['task'])}")
    key = ["entry", "task", "seed"]
    whole = mine[mine["status"] == "ok"]
    failed = mine[mine["status"] != "ok"].drop_duplicates(key, keep="last")
    done = pd.MultiIndex.from_frame(whole[key])
    failed = failed[~pd.MultiIndex.from_frame(failed[key]).isin(done)]
    return pd.concat([whole, failed]).sort_values([*key, "run_id"], ignore_index=True)


def _asked(
    runs: pd.DataFrame, tasks: tuple[str, ...], only: Mapping[str, Sequence[str]]
) -> dict[str, set[str]]:
    """Entry -> the tasks that the suite asks it for, or that it was run on all the same."""
    asked = {}
    for entry, mine in runs.groupby("entry"):
        patterns = [only[m] for m in set(mine.get("method", ())) if m in only]
        chosen = {t for t in tasks for p in patterns if any(fnmatch(t, x) for x in p)}
        asked[str(entry)] = set(mine["task"]) | chosen if patterns else set(tasks)
    return asked


def refuse_mixtures(whole: pd.DataFrame) -> None:
    """UserError where runs of one entry on one task are not seeds of one configuration."""
    key = ["entry", "task", "seed"]
    for _, pair in whole[whole.duplicated(key, keep=False)].groupby(key):
        a, b = pair.iloc[0], pair.iloc[1]
        raise UserError(
            f"entry {a['entry']!r} has two runs of seed {a['seed']} on {a['task']}: {a['run_id']}"
            f" and {b['run_id']}, which differ in {_difference(a, b)}; give one of them another"
            " entry label, or select one of them"
        )
    for _, cell in whole.groupby(["entry", "task"]):
        other = cell[cell["config_id"] != cell["config_id"].iloc[0]]
        if not other.empty:
            a, b = cell.iloc[0], other.iloc[0]
            raise UserError(
                f"entry {a['entry']!r} has runs of different configurations on {a['task']}:"
                f" {a['run_id']} (seed {a['seed']}) and {b['run_id']} (seed {b['seed']}) differ in"
                f" {_difference(a, b)}; give one of them another entry label, or select one of them"
            )


def _difference(a: pd.Series, b: pd.Series) -> str:
    """The names of the spec's fields in which two lines of `runs` differ, with both values."""
    top = ("suite_version", "dataset", "dataset_sha256", "method", "n_updates")
    nested = ("hparams.", "pipeline.", "protocol.", "env.")
    names = [name for name in a.index if name in top or str(name).startswith(nested)]
    differing = [name for name in names if spelt(a[name]) != spelt(b[name])]
    shown = [f"{name} ({spelt(a[name])}, {spelt(b[name])})" for name in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return (", ".join(shown) or "their specification") + more


def _scored_cells(episodes: pd.DataFrame, whole: pd.DataFrame, unscaled: Collection[str]) -> _Cells:
    """(entry, task) -> its test scores after the last update of the whole runs.

    Scores that are all 0 or 100 are a success rate, unless the task's are plain returns.
    """
    last = dict(zip(whole["run_id"], whole["n_updates"], strict=True))
    test = episodes[(episodes["stream"] == "test") & episodes["run_id"].isin(last)]
    test = test[test["update"] == test["run_id"].map(last)]
    if lacking := sorted(set(last) - set(test["run_id"])):
        raise UserError(f"run {lacking[0]} is recorded as done but has no test episodes here")
    # refuses scores that are not finite
    stats.score_table(test)
    success = {
        task: task not in set(unscaled) and bool(x.isin([0.0, 100.0]).all())
        for task, x in test.groupby("task")["score"]
    }
    return {
        (str(entry), str(task)): _scored_cell(cell, success[task], f"{entry} on {task}")
        for (entry, task), cell in test.groupby(["entry", "task"])
    }


def _scored_cell(test: pd.DataFrame, success: bool, name: str) -> Cell:
    by_seed = [x.sort_values("episode") for _, x in test.groupby("seed")]
    means = np.array([x["score"].mean() for x in by_seed])
    faced = {tuple(x["env_seed"]) if "env_seed" in x else () for x in by_seed}
    if len(faced) > 1 or faced == {()}:
        return Cell(means, round(len(test) / len(means)), success=success, name=name)
    table = np.stack([x["score"].to_numpy(dtype=np.float64) for x in by_seed])
    return Cell(means, table.shape[1], table, faced.pop(), success, name)


def _pools(found: _Cells, tasks: tuple[str, ...], unscaled: Collection[str]) -> dict[str, Pool]:
    """What the board says of the variance between seeds; plain returns speak for their task alone."""
    scaled = Pool.of([cell for (_, task), cell in found.items() if task not in set(unscaled)])
    return {
        task: Pool.of([cell for (_, t), cell in found.items() if t == task])
        if task in set(unscaled)
        else scaled
        for task in tasks
    }


def _by_content(random_seed: int) -> Generators:
    """Generators that depend on what they are for, not on what else is on the board."""

    def generator(name: str, x: np.ndarray) -> np.random.Generator:
        content = f"{random_seed} {name} {x.shape}".encode() + x.tobytes()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))

    return generator


def _complete(cells: pd.DataFrame, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The entries that have every seed of every task."""
    whole = cells[cells["status"] == "ok"].groupby("entry").size()
    return tuple(str(entry) for entry in whole.index[whole == len(tasks)])


def _cells(
    runs: pd.DataFrame,
    found: _Cells,
    pools: Mapping[str, Pool],
    tasks: tuple[str, ...],
    asked: Mapping[str, set[str]],
    seeds: Mapping[str, Collection[int]],
    level: float,
) -> pd.DataFrame:
    counts = runs.groupby(["entry", "task", "status"]).size().to_dict()
    lines = []
    for entry in sorted(runs["entry"].unique()):
        for task in tasks:
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
    for task in tasks:
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


def _aggregate(
    cells: pd.DataFrame,
    whole: pd.DataFrame,
    found: _Cells,
    pools: Mapping[str, Pool],
    entries: Sequence[str],
    tasks: tuple[str, ...],
    generator: Generators,
    level: float,
    reps: int,
) -> pd.DataFrame:
    """One line per entry; IQM and mean for `entries`, which have every seed of every task."""
    options: Any = {"generator": generator, "reps": reps, "level": level}
    of = {entry: [found[entry, task] for task in tasks] for entry in entries}
    suggested = [pools[task] for task in tasks]
    iqm = {e: uncertainty.aggregate(c, suggested, stats.iqm, **options) for e, c in of.items()}
    mean = {e: uncertainty.aggregate(c, suggested, stats.mean, **options) for e, c in of.items()}
    numbers = {}
    for entry in entries:
        middle, average = iqm[entry].interval, mean[entry].interval
        numbers[entry] = {"iqm": middle.point, "low": middle.low, "high": middle.high}
        numbers[entry] |= {
            "mean": average.point,
            "mean_low": average.low,
            "mean_high": average.high,
        }
    table = _lines(cells, whole, numbers)
    table["rank"] = table["iqm"].rank(ascending=False, method="min").astype("Int64")
    points = np.array([iqm[entry].interval.point for entry in entries])
    adjusted = uncertainty.aggregate_differences([iqm[entry] for entry in entries])
    best = uncertainty.not_worse_than_best(points, adjusted, level)
    table["best"] = table["entry"].isin([e for e, marked in zip(entries, best) if marked])
    return _in_order(table)


def _ranked(cells: pd.DataFrame, whole: pd.DataFrame, entries: Sequence[str]) -> pd.DataFrame:
    """One line per entry, in the order of its mean rank within the tasks, where returns of several scales
    have no mean."""
    compared = cells[cells["entry"].isin(entries)]
    ranks = compared.groupby("task")["mean"].rank(ascending=False)
    numbers = {e: {"mean_rank": x} for e, x in ranks.groupby(compared["entry"]).mean().items()}
    table = _lines(cells, whole, numbers)
    table["rank"] = table["mean_rank"].rank(method="min").astype("Int64")
    return _in_order(table)


def _lines(
    cells: pd.DataFrame, whole: pd.DataFrame, numbers: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """What is told of each entry besides its cells; `numbers` of the complete ones."""
    lines = []
    for entry, row in cells.groupby("entry"):
        asked = row[row["status"] != "left out"]
        lines.append(
            dict.fromkeys(_AGGREGATES, np.nan)
            | {
                "rank": pd.NA,
                "entry": entry,
                "complete": int((row["status"] == "ok").sum()),
                "n_asked": len(asked),
                "n_tasks": row["task"].nunique(),
                "n_seeds": int(asked["n_seeds"].min()),
                "n_seeds_max": int(row["n_seeds"].max()),
                "n_episodes": int(row["n_episodes"].sum()),
                "best": False,
                **how_trained(whole[whole["entry"] == entry]),
                **numbers.get(str(entry), {}),
            }
        )
    return pd.DataFrame(lines)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Ranked entries first, then the more complete ones."""
    order = ["rank", "complete", "entry"]
    return table.sort_values(
        order, ascending=[True, False, True], na_position="last", ignore_index=True
    )


def _averaged(
    episodes: pd.DataFrame,
    whole: pd.DataFrame,
    found: _Cells,
    pools: Mapping[str, Pool],
    tasks: tuple[str, ...],
    level: float,
) -> pd.DataFrame:
    """The mean of the last three evaluations, each of them counting equally, where all runs have them."""
    columns = [
        "entry",
        "task",
        "mean",
        "low",
        "high",
        "last",
        "n_seeds",
        "n_episodes",
        "at",
        "each",
        "success",
    ]
    if not (episodes["stream"] == "monitor").any():
        return pd.DataFrame(columns=columns)
    seen = episodes[
        episodes["run_id"].isin(whole["run_id"]) & episodes["stream"].isin(["monitor", "test"])
    ]
    seen = seen.groupby(["run_id", "update", "stream"])["score"].agg(["mean", "size"]).reset_index()
    by_run = dict(tuple(seen.groupby("run_id")))
    lines = []
    for (entry, task), cell in whole.groupby(["entry", "task"]):
        three = [x for run in cell["run_id"] if (x := _last_three(by_run[run])) is not None]
        if task not in tasks or len(three) < len(cell):
            continue
        at = {
            tuple((x["update"] / n).round(4)) for x, n in zip(three, cell["n_updates"], strict=True)
        }
        each = {tuple(x["size"]) for x in three}
        if len(at) > 1 or len(each) > 1:
            continue
        means = np.array([x["mean"].mean() for x in three])
        each_seed = int(three[0]["size"].sum())
        # as many episodes, of one evaluation, as the mean of three evaluations is worth
        worth = max(1, round(9 / (1 / three[0]["size"]).sum()))
        averaged = Cell(means, worth, success=found[entry, task].success)
        interval = uncertainty.cell_interval(averaged, pools[task], level)
        last = float(np.mean([x["mean"].iloc[-1] for x in three]))
        n_episodes = each_seed * len(three)
        line = [entry, task, *interval, last, len(three), n_episodes, at.pop(), each.pop()]
        lines.append([*line, averaged.success])
    return pd.DataFrame(lines, columns=columns)


def _last_three(run: pd.DataFrame) -> pd.DataFrame | None:
    """Two monitor evaluations before the test one, and that; None where a run has fewer."""
    test = run[run["stream"] == "test"]
    monitor = run[(run["stream"] == "monitor") & (run["update"] < test["update"].max())]
    if len(monitor) < 2:
        return None
    return pd.concat([monitor.sort_values("update").tail(2), test])
