"""The leaderboard: episodes in, one honest table out.

`leaderboard` computes a `Board` once; `to_markdown`, `to_csv` and `to_terminal` only spell it. Its
rules: the last update is the result; the configuration is one per cell; a missing, failed or
diverged run is shown and never averaged over, so an entry that lacks anything has no aggregate and
ranks last; and what differs between the runs of a column is said under the table.

The random numbers of the intervals are seeded by the scores they are computed from, so a board is
a function of its records. A new row changes no other row's numbers but for its intervals and
bold, in so far as it changes the mean variance between seeds (`offbench.results.uncertainty`).
"""

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.errors import UserError, nearest
from offbench.io import atomic_write
from offbench.results import stats, uncertainty
from offbench.results.stats import Interval
from offbench.results.uncertainty import Cell, Generators, Pool

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCALE = "0 = reference minimum, 100 = reference maximum or certain success"

_NEEDED = ("run_id", "config_id", "entry", "task", "seed", "status", "n_updates")
_ENV_PACKAGES = (
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "dm-control",
    "ogbench",
    "minari",
    "d4rl",
)
_TASK_WIDTH = 9  # "100.0±12" and a star
_STRIP_WIDTH = 14
_COVERAGE = (
    "Resampled from ten published seeds of 285 cells, nominal 95 % hold the truth in 94 to 97 %"
    " of cells and 92 to 97 % of IQMs at 3 to 10 seeds (results/coverage)."
)
_SHORT = {"failed": "failed", "diverged": "div."}

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
        notes=(*_ranked_notes(mixed, tasks), *_notes(whole, cells, tasks)),
        caption=_caption(cells, scale, level, reps),
        summary=_summary(cells, scale, level),
    )


# --- choosing what counts -------------------------------------------------------------------


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
    differing = [name for name in names if _spelt(a[name]) != _spelt(b[name])]
    shown = [f"{name} ({_spelt(a[name])}, {_spelt(b[name])})" for name in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return (", ".join(shown) or "their specification") + more


def _scored_cells(
    episodes: pd.DataFrame, whole: pd.DataFrame, unscaled: Collection[str]
) -> _Cells:
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


# --- numbers --------------------------------------------------------------------------------


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
        numbers[entry] |= {"mean": average.point, "mean_low": average.low, "mean_high": average.high}
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
                **_how(whole[whole["entry"] == entry]),
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


def _ranked_notes(mixed: Sequence[str], tasks: tuple[str, ...]) -> Iterable[str]:
    """Thousands of return and scores of up to 100 make a mean of nothing; one task has nothing to be mixed with."""
    if mixed:
        yield (
            f"{_where(list(mixed), tasks)}: no reference returns are known, a score is the return"
            f" itself ({mixed[0]}), so entries are ordered by the mean of their ranks within the tasks,"
            " which has no interval"
        )


def _how(mine: pd.DataFrame) -> dict[str, Any]:
    """How an entry's runs were made, in the words of its row."""
    how = mine.get("tuning.how", pd.Series(dtype=object)).dropna().astype(str)
    of, tasks = mine["task"].loc[how.index], mine["task"].nunique()
    words = []
    for text in sorted(set(how)):
        on = of[how == text].nunique()
        words.append(f"{text} ({on}/{tasks} tasks)" if text.startswith("task preset") else text)
    preset = of[how.str.startswith("task preset")].nunique()
    sources = mine.get("tuning.preset", pd.Series(dtype=object)).dropna().astype(str)
    if sources.str.startswith("carried over").any():
        words.append("carried over from the method alone")
    tried = mine.get("tuning.tried", pd.Series(dtype=float)).dropna()
    if len(tried) and tried.max() > 1:
        words.append(f"{int(tried.max())} tried")
    seconds = np.nan
    if "wall_s" in mine and len(mine):
        packs = mine.get("pack", 1)
        seconds = float((mine["wall_s"] / packs).mean())
    return {
        "n_tuned": preset,
        "tuning": ", ".join(words),
        "commit": _commits(mine),
        **_updates(mine),
        "wall_s": seconds,
    }


def _updates(mine: pd.DataFrame) -> dict[str, str]:
    """What an entry's runs had and what is published, as numbers and in words: `300k of 1M`."""
    column = mine.get("tuning.published_updates", pd.Series(np.nan, mine.index))
    known = pd.to_numeric(column, errors="coerce").fillna(0)
    pairs = sorted({(int(n), int(of)) for n, of in zip(mine["n_updates"], known)})
    words = [count(n) if of in (0, n) else f"{count(n)} of {count(of)}" for n, of in pairs]
    return {
        "n_updates": "/".join(dict.fromkeys(str(n) for n, _ in pairs)),
        "published_updates": "/".join(dict.fromkeys(str(of) for _, of in pairs if of)),
        "updates": "/".join(words),
    }


def count(n: int) -> str:
    """A number of updates in few characters: 1M, 300k, 6,000."""
    if n >= 1_000_000 and n % 100_000 == 0:
        return f"{n / 1e6:g}M"
    return f"{n // 1000}k" if n >= 10_000 and n % 1000 == 0 else f"{n:,}"


def _commits(mine: pd.DataFrame) -> str:
    if "commit" not in mine:
        return ""
    dirty = mine["dirty"].astype(bool) if "dirty" in mine else pd.Series(False, mine.index)
    short = mine["commit"].astype(str).str[:7] + np.where(dirty, "+dirty", "")
    names = sorted(short.unique())
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


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
        three = [_last_three(by_run[run]) for run in cell["run_id"]]
        if task not in tasks or any(x is None for x in three):
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


# --- words ----------------------------------------------------------------------------------


def _notes(whole: pd.DataFrame, cells: pd.DataFrame, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """What differs within a column of the table, and what is not there."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        column = whole[whole["task"] == task]
        for text in _differences(column):
            found.setdefault(text, []).append(task)
    notes = [f"{_where(where, tasks)}: {text}" for text, where in found.items()]
    for line in cells[(cells["n_failed"] > 0) | (cells["n_diverged"] > 0)].itertuples():
        counts = [f"{n} {word}" for n, word in _failures(line) if n]
        notes.append(
            f"{line.task}: {line.entry} has {' and '.join(counts)} beside {line.n_seeds} finished"
            " runs, so it has no aggregate"
        )
    short = cells[(cells["status"] == "partial") & (cells["n_failed"] + cells["n_diverged"] == 0)]
    for (entry, have, asked), part in short.groupby(["entry", "n_seeds", "n_asked"]):
        notes.append(
            f"{_where(list(part['task']), tasks)}: {entry} has {have} of {asked} seeds asked for, so it has"
            " no aggregate and no rank"
        )
    return (*notes, *_remarks(whole))


def _remarks(whole: pd.DataFrame) -> Iterable[str]:
    """What the records say of runs whose scores count."""
    if "reason" not in whole:
        return
    for (task, entry), cell in whole.groupby(["task", "entry"]):
        said = cell["reason"].dropna()
        if len(said):
            yield (
                f"{task}: {len(said)} of {len(cell)} runs of {entry}, whose scores count, are "
                f"recorded with a remark, the first: {said.iloc[0]}"
            )


def _failures(line: Any) -> tuple[tuple[int, str], tuple[int, str]]:
    return (line.n_failed, "failed"), (line.n_diverged, "diverged")


def _where(where: list[str], tasks: tuple[str, ...]) -> str:
    if len(where) == len(tasks) > 1:
        return "all tasks"
    return f"{len(where)} of {len(tasks)} tasks" if len(where) > 3 else ", ".join(where)


def _differences(column: pd.DataFrame) -> Iterable[str]:
    fixed = ["dataset_sha256", "n_updates", "suite_version"]
    fixed += [f"versions.{package}" for package in _ENV_PACKAGES]
    nested = sorted(str(name) for name in column if str(name).startswith(("env.", "protocol.")))
    for name in [*fixed, *nested]:
        if name not in column:
            continue
        spelt = column[name].map(_spelt)
        if spelt.nunique() > 1:
            groups = column.groupby(spelt)["entry"].unique()
            shown = "; ".join(f"{value}: {', '.join(sorted(who))}" for value, who in groups.items())
            yield f"runs differ in {name.removeprefix('versions.')} ({shown})"


def _spelt(value: Any) -> str:
    if isinstance(value, str):
        return value[:12] if re.fullmatch("[0-9a-f]{40,}", value) else value
    if isinstance(value, float):
        return "unset" if np.isnan(value) else f"{value:g}"
    return "unset" if value is None else str(value)


def _budget(cells: pd.DataFrame) -> str:
    scored = cells[cells["n_seeds"] > 0]
    seeds, episodes = _span(scored["n_seeds"]), _span(scored["n_episodes"] // scored["n_seeds"])
    return f"{_counted(seeds, 'seed')} x {_counted(episodes, 'episode')}"


def _counted(n: str, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == "1" else "s")


def _summary(cells: pd.DataFrame, scale: str, level: float) -> str:
    return (
        f"{scale}; {_budget(cells)} after the last update; {100 * level:g} % intervals over seeds and"
        " start states. Bold: does not differ from the column's best (all pairs, Holm). The .md says"
        " the rest."
    )


def _caption(cells: pd.DataFrame, scale: str, level: float, reps: int) -> str:
    scored = cells[cells["n_seeds"] > 0]
    percent = f"{100 * level:g} %"
    text = (
        f"Score: {scale}. Test episodes after the last update only: {_budget(cells)}."
        f" Cells: mean over seeds ± half-width of its {percent} Student-t interval, whose"
        " variance is moderated by the mean variance of the board; of a success rate [low, high] by"
        " Wilson's interval at the number of independent episodes. IQM: interquartile mean over runs"
        f" and tasks, tasks weighing equally, with its {percent} smoothed bootstrap interval"
        f" ({reps} resamples). Intervals are over seeds and over start states. {_COVERAGE} Bold: the best of a column and"
        " whatever does not differ from it, by tests of all pairs of the column with episodes paired,"
        f" Holm-corrected so that equal entries all stay bold in {percent} of columns; what lies above a bold"
        " number is bold too."
        " --: missing; an entry without all its seeds has no aggregate and no rank."
    )
    if (cells["status"] == "left out").any():
        text += " Suite's choice: the suite asks the entry for some of the tasks alone."
    if scored["low"].isna().any():
        text += " One seed has no interval, is compared with nothing and is never bold."
    return text


def _span(numbers: pd.Series) -> str:
    if numbers.empty:
        return "0"
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}-{high}"


# --- renderings -----------------------------------------------------------------------------


def to_markdown(board: Board) -> str:
    """A GitHub table, its caption and its notes."""
    names = _without_common_folder(board.tasks)
    head = ["#", "entry", *names, "IQM", "mean", "seeds", "episodes", "tuned", "tuning", "updates"]
    head += ["s/run", "commit"]
    lines = [
        _markdown_row(head),
        _markdown_row(
            ["---:", "---"] + ["---:"] * (len(names) + 5) + ["---", "---:", "---:", "---"]
        ),
    ]
    for row in board.aggregate.itertuples():
        cells = _row_cells(board, row.entry)
        seeds = f"{row.n_seeds}-{row.n_seeds_max}"
        texts = [
            "--" if pd.isna(row.rank) else str(row.rank),
            row.entry,
            *(_bold(_cell_text(cell), cell.best) for cell in cells),
            _bold(_aggregate_text(row), row.best),
            "--" if np.isnan(row.mean) else f"{row.mean:.1f}",
            str(row.n_seeds) if row.n_seeds == row.n_seeds_max else seeds,
            str(row.n_episodes),
            f"{row.n_tuned}/{row.n_tasks}",
            row.tuning or "--",
            row.updates or "--",
            "--" if np.isnan(row.wall_s) else f"{row.wall_s:.0f}",
            row.commit or "--",
        ]
        lines.append(_markdown_row(texts))
    parts = [f"# {board.title}"] if board.title else []
    parts += ["\n".join(lines), board.caption]
    if len(board.averaged):
        parts += [_averaged_markdown(board, names), _averaged_caption(board)]
    if board.notes:
        parts.append("Notes:\n\n" + "\n".join(f"* {note}" for note in board.notes))
    return "\n\n".join(parts) + "\n"


def _averaged_markdown(board: Board, names: list[str]) -> str:
    lines = [
        _markdown_row(["entry", *names, "mean of tasks", "the last alone"]),
        _markdown_row(["---", *["---:"] * (len(names) + 2)]),
    ]
    found = board.averaged.set_index(["entry", "task"])
    for entry in board.aggregate["entry"]:
        if entry not in set(board.averaged["entry"]):
            continue
        texts, cells = [entry], {cell.task: cell for cell in _row_cells(board, entry)}
        for task in board.tasks:
            text = "--"
            if (entry, task) in found.index:
                cell = found.loc[entry, task]
                shown = "" if np.isnan(cell["low"]) else _interval_text(cell, short=False)
                text = f"{cell['mean']:.1f}{shown} ({cell['last']:.1f})"
                text += "".join(f" ({n} {word})" for n, word in _failures(cells[task]) if n)
            texts.append(text)
        means = _averaged_means(board, entry)
        texts += ["--", "--"] if means is None else [f"{x:.1f}" for x in means]
        lines.append(_markdown_row(texts))
    return "\n".join(lines)


def _averaged_means(board: Board, entry: str) -> tuple[float, float] | None:
    """Over tasks: of the last three evaluations and of the last alone; None for entries without all."""
    mine = board.averaged[board.averaged["entry"] == entry]
    mean = board.aggregate.set_index("entry")["mean"]
    if len(mine) < len(board.tasks) or np.isnan(mean[entry]):  # what has no aggregate has none here
        return None
    return float(mine["mean"].mean()), float(mine["last"].mean())


def _averaged_caption(board: Board) -> str:
    designs = board.averaged.groupby(["at", "each"]).size().index
    shown = "; ".join(
        f"after {' %, '.join(f'{100 * x:g}' for x in at)} % of the updates, on"
        f" {', '.join(map(str, each))} episodes per seed"
        for at, each in designs
    )
    return (
        f"Mean of the last three evaluations ({shown}) with its interval, as above but over seeds alone;"
        " in brackets, and in the last column, the last evaluation alone. The first two are monitor"
        " episodes, other ones than the test episodes of the last; the board ranks by the last alone."
    )


def to_csv(board: Board) -> str:
    """Tidy: one line per number, with its interval and what it was computed from."""
    sink = io.StringIO()
    columns = ["kind", "entry", "task", "statistic", "value", "low", "high", "n_seeds"]
    columns += ["n_episodes", "status", "best", "rank", "n_failed", "n_diverged", "n_tuned"]
    columns += ["tuning", "n_updates", "published_updates", "wall_s", "commit"]
    writer = csv.DictWriter(sink, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for cell in board.cells.itertuples():
        common = {name: getattr(cell, name) for name in columns if hasattr(cell, name)}
        writer.writerow(
            _csv_line({**common, "kind": "cell", "statistic": "mean", "value": cell.mean})
        )
    for row in board.aggregate.itertuples():
        common = {name: getattr(row, name) for name in columns if hasattr(row, name)}
        common |= {"kind": "aggregate", "status": _aggregate_status(row)}
        if not np.isnan(row.mean_rank):
            writer.writerow(_csv_line({**common, "statistic": "mean rank", "value": row.mean_rank}))
            continue
        writer.writerow(_csv_line({**common, "statistic": "iqm", "value": row.iqm}))
        bounds = {"low": row.mean_low, "high": row.mean_high, "best": ""}
        writer.writerow(
            _csv_line({**common, "statistic": "mean", "value": row.mean, **bounds, "rank": ""})
        )
    for cell in board.averaged.itertuples():
        common = {name: getattr(cell, name) for name in columns if hasattr(cell, name)}
        common |= {"kind": "cell", "statistic": "mean of last 3 evaluations", "value": cell.mean}
        writer.writerow(_csv_line(common))
    return sink.getvalue()


def to_terminal(board: Board, console: "Console") -> None:
    """Prints the board; more tasks than fit one width continue in further tables."""
    from rich.text import Text

    first = True
    for tasks in _blocks(board, console.width):
        console.print(_terminal_table(board, tasks, with_aggregate=first))
        first = False
    console.print(Text(board.summary, style="dim"))
    if len(board.averaged):
        console.print(_averaged_table(board))
        console.print(Text(_averaged_caption(board), style="dim"))
    for note in board.notes:
        console.print(Text(f"* {note}", style="yellow"))


def write(board: Board, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.csv`; the same records give the same bytes."""
    return write_texts(Path(folder), name, to_markdown(board), to_csv(board))


def write_texts(folder: Path, name: str, markdown: str, table: str) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.csv`, each whole or not at all."""
    paths = folder / f"{name}.md", folder / f"{name}.csv"
    try:
        for path, text in zip(paths, (markdown, table), strict=True):
            atomic_write(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot write the board to {folder}: {error.strerror}") from None
    return paths


def _row_cells(board: Board, entry: str) -> list[Any]:
    mine = board.cells[board.cells["entry"] == entry].set_index("task", drop=False)
    return list(mine.loc[list(board.tasks)].itertuples(index=False))


def _aggregate_status(row: Any) -> str:
    if row.complete == row.n_tasks:
        return "ok"
    if row.complete == row.n_asked:
        return f"suite's choice ({row.complete}/{row.n_tasks} tasks)"
    return f"incomplete ({row.complete}/{row.n_asked} tasks)"


def _aggregate_text(row: Any) -> str:
    if not np.isnan(row.mean_rank):
        return f"mean rank {row.mean_rank:.1f}"
    if np.isnan(row.iqm):
        return "--" if row.complete == row.n_tasks else _aggregate_status(row)
    return f"{row.iqm:.1f}" + ("" if np.isnan(row.low) else f" [{row.low:.1f}, {row.high:.1f}]")


def _cell_text(cell: Any, *, short: bool = False) -> str:
    """`60.5 ± 33.1`; of a success rate, whose interval is not symmetric, `33.3 [8.1, 73.0]`."""
    if cell.missing:
        return "--" if cell.status in ("missing", "left out") else cell.status
    text = f"{cell.mean:.1f}"
    if not np.isnan(cell.low):
        text += _interval_text(cell, short)
    notes = [f"{count} {_SHORT[word] if short else word}" for count, word in _failures(cell) if count]
    if cell.n_seeds < cell.n_asked and not notes:
        notes.append(f"{cell.n_seeds} of {cell.n_asked}" + ("" if short else " seeds"))
    return text + "".join(f"\n{note}" if short else f" ({note})" for note in notes)


def _interval_text(cell: Any, short: bool) -> str:
    if cell.success:
        return f"\n[{cell.low:.0f}, {cell.high:.0f}]" if short else f" [{cell.low:.1f}, {cell.high:.1f}]"
    half = (cell.high - cell.low) / 2
    if short:
        return f"±{half:.0f}" if half >= 9.95 else f"±{half:.1f}"
    return f" ± {half:.1f}"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _csv_line(line: dict[str, Any]) -> dict[str, Any]:
    return {name: _csv_value(value) for name, value in line.items()}


def _csv_value(value: Any) -> Any:
    if value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else value


def _without_common_folder(tasks: tuple[str, ...]) -> list[str]:
    """d4rl/a, d4rl/b/c -> a, b/c; ids of several worlds stay as they are."""
    parts = [task.split("/") for task in tasks]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


def _without_common_version(tasks: tuple[str, ...]) -> list[str]:
    """a-v2, b-v2 -> a, b, for a heading which has no room."""
    names = _without_common_folder(tasks)
    versions = {re.search(r"-v\d+$", name) and name.rpartition("-")[2] for name in names}
    if len(versions) == 1 and None not in versions:
        return [name.rpartition("-")[0] for name in names]
    return names


def _heading(task: str) -> str:
    """A task id in lines of at most _TASK_WIDTH, broken where words end."""
    words = [word for word in re.split(r"[-/_ ]+", task) if word]
    lines: list[str] = []
    for word in words:
        word = word.replace("halfcheetah", "cheetah").replace("humanoid", "hum.")
        word = word if len(word) <= _TASK_WIDTH else word[: _TASK_WIDTH - 1] + "…"
        if lines and len(lines[-1]) + 1 + len(word) <= _TASK_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _blocks(board: Board, width: int) -> list[list[int]]:
    """Column numbers of the tasks, split so that every table fits the width."""
    name = max([len("entry"), *(len(entry) for entry in board.aggregate["entry"])])
    room = width - (2 + 1 + name)  # rank, gap, entry; every further column brings its gap
    first = max(1, (room - (1 + 5 + 1 + _STRIP_WIDTH)) // (_TASK_WIDTH + 1))
    later = max(1, room // (_TASK_WIDTH + 1))
    columns = list(range(len(board.tasks)))
    blocks, columns = [columns[:first]], columns[first:]
    while columns:
        blocks.append(columns[:later])
        columns = columns[later:]
    return blocks


def _terminal_table(board: Board, columns: list[int], *, with_aggregate: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    low, high = _axis(board.aggregate)
    names = [_heading(name) for name in _without_common_version(board.tasks)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.title = board.title if with_aggregate and board.title else None
    table.add_column("#", justify="right", no_wrap=True, min_width=2)
    table.add_column("entry", no_wrap=True, vertical="top")
    for column in columns:
        table.add_column(names[column], justify="right", width=_TASK_WIDTH)
    if with_aggregate:
        table.add_column("IQM", justify="right", no_wrap=True, min_width=5)
        table.add_column(_axis_heading(low, high), no_wrap=True, min_width=_STRIP_WIDTH)
    for row in board.aggregate.itertuples():
        cells = _row_cells(board, row.entry)
        line = [Text("--" if pd.isna(row.rank) else str(row.rank)), Text(row.entry)]
        for column in columns:
            cell = cells[column]
            line.append(Text(_cell_text(cell, short=True), style="bold" if cell.best else ""))
        if with_aggregate:
            whole = not np.isnan(row.iqm)
            line.append(Text(f"{row.iqm:.1f}" if whole else "--", style="bold" if row.best else ""))
            line.append(
                Text(_strip(row.low, row.iqm, row.high, low, high), style="cyan")
                if whole
                else Text(_aggregate_text(row).replace(" (", "\n("), style="dim")
            )
        table.add_row(*line)
    return table


def _averaged_table(board: Board) -> "Table":
    """Means over tasks; single tasks are in the markdown and the csv."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("entry")
    for name in ("last three", "last alone"):
        table.add_column(f"  {name}", justify="right")
    for entry in board.aggregate["entry"]:
        means = _averaged_means(board, entry)
        if means is not None:
            table.add_row(entry, *(f"{x:.1f}" for x in means))
        elif entry in set(board.averaged["entry"]):
            table.add_row(entry, "--", "--")
    return table


def _axis(aggregate: pd.DataFrame) -> tuple[float, float]:
    """Whole tens around everything that is drawn."""
    ends = aggregate[["low", "iqm", "high"]].to_numpy(dtype=np.float64)
    if np.isnan(ends).all():
        return 0.0, 100.0
    low, high = 10 * np.floor(np.nanmin(ends) / 10), 10 * np.ceil(np.nanmax(ends) / 10)
    return float(low), float(high if high > low else low + 10)


def _axis_heading(low: float, high: float) -> str:
    left, right = f"{low:.0f}", f"{high:.0f}"
    return left + right.rjust(_STRIP_WIDTH - len(left))


def _strip(low: float, point: float, high: float, start: float, end: float) -> str:
    """An interval on an axis of text: "   ├──●─┤    "."""

    def place(value: float) -> int:
        return round((value - start) / (end - start) * (_STRIP_WIDTH - 1))

    strip = [" "] * _STRIP_WIDTH
    if not np.isnan(low):
        first, last = place(low), place(high)
        strip[first : last + 1] = "─" * (last + 1 - first)
        strip[first], strip[last] = "├", "┤"
    strip[place(point)] = "●"
    return "".join(strip)
