"""The leaderboard: episodes in, one honest table out.

`leaderboard` computes a `Board` once; `to_markdown`, `to_csv` and `to_terminal` only spell it. Its
rules: the last update is the result; the configuration is one per cell; a missing, failed or
diverged run is shown and never averaged over, so an entry that lacks anything has no aggregate and
ranks last; and what differs between the runs of a column is said under the table.

The random numbers of the intervals are seeded by the scores they are computed from. So a board is
a function of its records, and a new row changes no other row.
"""

import csv
import hashlib
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench import stats
from offbench.errors import UserError, nearest
from offbench.stats import Interval

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
_SHORT = {"failed": "failed", "diverged": "div."}

_Generators = Callable[..., np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard, computed.

    cells, one row per (entry, task): entry, task, mean, low, high, n_seeds, n_episodes (in all),
    n_failed, n_diverged, status (ok | partial | failed | diverged | missing | left out), missing, best.
    aggregate, one row per entry, in rank order: rank, entry, complete, n_asked (tasks that the suite
    asks it for), n_tasks, iqm, low, high, mean, mean_low, mean_high, best, n_seeds (fewest of a task),
    n_seeds_max, n_episodes, n_tuned (tasks run with a per-task preset), tuning, commit, n_updates,
    wall_s (per run, a pack shared). Entries that lack a task have rank <NA> and nan.
    averaged, one row per cell whose runs all have two monitor evaluations: entry, task, mean, low and
    high of the mean of the last three evaluations, last (the mean of the last alone), n_seeds,
    n_episodes (in all), at (update / n_updates of the three), each (episodes of the three per seed).
    """

    title: str
    tasks: tuple[str, ...]
    cells: pd.DataFrame
    aggregate: pd.DataFrame
    averaged: pd.DataFrame
    notes: tuple[str, ...]
    caption: str


def leaderboard(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    tasks: Sequence[str],
    *,
    only: Mapping[str, Sequence[str]] | None = None,
    rng: np.random.Generator | None = None,
    title: str = "",
    scale: str = SCALE,
    level: float = 0.95,
    reps: int = 2000,
) -> Board:
    """The board of `tasks` from `Store.episodes()` and `Store.runs()`.

    `only` has the patterns of the tasks that a suite asks a method for, where those are not all.
    Without `rng` the intervals are seeded by content. Raises UserError when two runs claim one
    (entry, task, seed), when a cell would mix configurations, and when the two frames disagree.
    """
    tasks = _distinct(tasks)
    runs = _current(runs, tasks)
    whole = runs[runs["status"] == "ok"]
    refuse_mixtures(whole)
    scores = _last_scores(episodes, whole)
    generators = _generators(rng)
    cells = _cells(runs, scores, tasks, _asked(runs, tasks, only or {}), level)
    aggregate = _aggregate(cells, whole, scores, tasks, generators, level, reps)
    return Board(
        title=title,
        tasks=tasks,
        cells=cells,
        aggregate=aggregate,
        averaged=_averaged(episodes, whole, tasks, level),
        notes=_notes(whole, cells, tasks),
        caption=_caption(cells, scale, level, reps),
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


def _last_scores(episodes: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """`stats.score_table` at the last update of the whole runs, with each run's episodes."""
    last = dict(zip(whole["run_id"], whole["n_updates"], strict=True))
    test = episodes[(episodes["stream"] == "test") & episodes["run_id"].isin(last)]
    test = test[test["update"] == test["run_id"].map(last)]
    scores = stats.score_table(test)
    if lacking := sorted(set(last) - set(scores["run_id"])):
        raise UserError(f"run {lacking[0]} is recorded as done but has no test episodes here")
    if "env_seed" not in test:
        return scores.assign(faced="")
    faced = test.sort_values("episode").groupby("run_id")["env_seed"].agg(tuple)
    return scores.assign(faced=scores["run_id"].map(faced))


def _generators(rng: np.random.Generator | None) -> _Generators:
    def by_content(*arrays: np.ndarray) -> np.random.Generator:
        content = b"".join(str(x.shape).encode() + x.tobytes() for x in arrays)
        return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))

    return by_content if rng is None else lambda *_: rng.spawn(1)[0]


# --- numbers --------------------------------------------------------------------------------


def _cells(
    runs: pd.DataFrame,
    scores: pd.DataFrame,
    tasks: tuple[str, ...],
    asked: dict[str, set[str]],
    level: float,
) -> pd.DataFrame:
    by_cell = dict(tuple(scores.groupby(["entry", "task"])))
    counts = runs.groupby(["entry", "task", "status"]).size().to_dict()
    lines = []
    for entry in sorted(runs["entry"].unique()):
        for task in tasks:
            cell = by_cell.get((entry, task))
            failed = counts.get((entry, task, "failed"), 0)
            diverged = counts.get((entry, task, "diverged"), 0)
            interval = Interval(np.nan, np.nan, np.nan)
            if cell is not None:
                interval = stats.mean_interval(cell["score"].to_numpy(), level)
            lines.append(
                {
                    "entry": entry,
                    "task": task,
                    "mean": interval.point,
                    "low": interval.low,
                    "high": interval.high,
                    "n_seeds": 0 if cell is None else len(cell),
                    "n_episodes": 0 if cell is None else int(cell["n_episodes"].sum()),
                    "n_failed": failed,
                    "n_diverged": diverged,
                    "status": _cell_status(cell is not None, failed, diverged)
                    if task in asked[entry]
                    else "left out",
                    "missing": cell is None,
                }
            )
    cells = pd.DataFrame(lines)
    cells["best"] = False
    for task in tasks:
        best = _best_cells(cells[cells["task"] == task], by_cell, task, level)
        cells.loc[(cells["task"] == task) & cells["entry"].isin(best), "best"] = True
    return cells


def _cell_status(scored: bool, failed: int, diverged: int) -> str:
    if scored:
        return "partial" if failed or diverged else "ok"
    if diverged:
        return "diverged"
    return "failed" if failed else "missing"


def _best_cells(
    column: pd.DataFrame, by_cell: dict[tuple[str, str], pd.DataFrame], task: str, level: float
) -> set[str]:
    """The highest mean of a column and every entry which cannot be told from it."""
    usable = column[column["status"] == "ok"]
    if usable.empty:
        return set()
    top = usable.loc[usable["mean"].idxmax()]
    best = set(usable["entry"][usable["mean"] == top["mean"]])
    for entry in usable["entry"]:
        interval = _cell_difference(by_cell[top["entry"], task], by_cell[entry, task], level)
        if interval.low <= 0 <= interval.high:
            best.add(entry)
    return best


def _cell_difference(a: pd.DataFrame, b: pd.DataFrame, level: float) -> Interval:
    """Paired by seed where two seeds are shared and met the same episodes, Welch's otherwise."""
    pairs = a.merge(b, on="seed")
    if len(pairs) >= 2 and (pairs["faced_x"] == pairs["faced_y"]).all():
        return stats.mean_interval((pairs["score_x"] - pairs["score_y"]).to_numpy(), level)
    return stats.welch_interval(a["score"].to_numpy(), b["score"].to_numpy(), level)


def _aggregate(
    cells: pd.DataFrame,
    whole: pd.DataFrame,
    scores: pd.DataFrame,
    tasks: tuple[str, ...],
    generators: _Generators,
    level: float,
    reps: int,
) -> pd.DataFrame:
    none = Interval(np.nan, np.nan, np.nan)
    lines, complete = [], {}
    for entry, row in cells.groupby("entry"):
        mine = whole[whole["entry"] == entry]
        n_complete = int((row["status"] == "ok").sum())
        middle = average = none
        if n_complete == len(tasks):
            arrays = stats.scores_by_task(scores.assign(stream="test", update=0), str(entry), tasks)
            complete[entry] = arrays
            middle = stats.bootstrap(
                arrays, stats.iqm, rng=generators(*arrays), reps=reps, level=level, rescale=True
            )
            average = stats.bootstrap(
                arrays, stats.mean, rng=generators(*arrays), reps=reps, level=level, rescale=True
            )
        lines.append(
            {
                "entry": entry,
                "complete": n_complete,
                "n_asked": int((row["status"] != "left out").sum()),
                "n_tasks": len(tasks),
                "iqm": middle.point,
                "low": middle.low,
                "high": middle.high,
                "mean": average.point,
                "mean_low": average.low,
                "mean_high": average.high,
                "n_seeds": int(row["n_seeds"][row["status"] != "left out"].min()),
                "n_seeds_max": int(row["n_seeds"].max()),
                "n_episodes": int(row["n_episodes"].sum()),
                **_how(mine),
            }
        )
    table = pd.DataFrame(lines).sort_values(
        ["iqm", "complete", "entry"],
        ascending=[False, False, True],
        na_position="last",
        ignore_index=True,
    )
    table.insert(0, "rank", table["iqm"].rank(ascending=False, method="min").astype("Int64"))
    table["best"] = table["entry"].isin(
        _best_entries(table, complete, scores, generators, level, reps)
    )
    return table


def _best_entries(
    table: pd.DataFrame,
    complete: dict[Any, list[np.ndarray]],
    scores: pd.DataFrame,
    generators: _Generators,
    level: float,
    reps: int,
) -> set[str]:
    """The highest IQM and every complete entry whose difference from it may be zero."""
    if not complete:
        return set()
    ranked = table[table["entry"].isin(complete)]
    top = ranked["entry"].iloc[0]
    best = set(ranked["entry"][ranked["iqm"] == ranked["iqm"].iloc[0]])
    for entry in ranked["entry"].iloc[1:]:
        a, b = complete[top], complete[entry]
        paired = _same_design(scores, top, entry)
        difference = stats.paired_difference if paired else stats.unpaired_difference
        rng = generators(*a, *b)
        interval = difference(a, b, stats.iqm, rng=rng, reps=reps, level=level, rescale=True)
        if interval.low <= 0 <= interval.high:
            best.add(entry)
    return best


def _same_design(scores: pd.DataFrame, a: str, b: str) -> bool:
    columns = ["task", "seed", "faced"]
    left, right = (scores[scores["entry"] == entry][columns] for entry in (a, b))
    return left.reset_index(drop=True).equals(right.reset_index(drop=True))


def unaggregated(board: Board, unscaled: Sequence[str]) -> Board:
    """The board without aggregates where it has tasks, `unscaled`, whose scores are plain returns.

    Thousands of return beside scores of up to 100 make a mean of nothing. A board of one task has
    no other to be mixed with.
    """
    named = [task for task in board.tasks if task in set(unscaled)]
    if not named or len(board.tasks) == 1:
        return board
    numbers = ["iqm", "low", "high", "mean", "mean_low", "mean_high"]
    none = dict.fromkeys(numbers, np.nan) | {"rank": pd.NA, "best": False}
    table = board.aggregate.assign(**none).astype({"rank": "Int64"})
    table = table.sort_values(["complete", "entry"], ascending=[False, True], ignore_index=True)
    note = (
        f"{_where(named, board.tasks)}: no reference returns are known, a score is the return itself"
        f" ({named[0]}), so there is no aggregate over tasks"
    )
    return replace(board, aggregate=table, notes=(note, *board.notes))


def _how(mine: pd.DataFrame) -> dict[str, Any]:
    """How an entry's runs were made, in the words of its row."""
    how = mine.get("tuning.how", pd.Series(dtype=object)).dropna()
    preset = mine["task"][mine.index.isin(how.index[how == "task preset"])].nunique()
    words = sorted(set(how) - {"task preset"})
    if preset:
        words.append(f"task preset ({preset}/{mine['task'].nunique()} tasks)")
    tried = mine.get("tuning.tried", pd.Series(dtype=float)).dropna()
    if len(tried) and tried.max() > 1:
        words.append(f"{int(tried.max())} tried")
    updates = sorted(mine["n_updates"].unique())
    seconds = np.nan
    if "wall_s" in mine and len(mine):
        packs = mine.get("pack", 1)
        seconds = float((mine["wall_s"] / packs).mean())
    return {
        "n_tuned": preset,
        "tuning": ", ".join(words),
        "commit": _commits(mine),
        "n_updates": "/".join(str(int(n)) for n in updates),
        "wall_s": seconds,
    }


def _commits(mine: pd.DataFrame) -> str:
    if "commit" not in mine:
        return ""
    dirty = mine["dirty"].astype(bool) if "dirty" in mine else pd.Series(False, mine.index)
    short = mine["commit"].astype(str).str[:7] + np.where(dirty, "+dirty", "")
    names = sorted(short.unique())
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _averaged(
    episodes: pd.DataFrame, whole: pd.DataFrame, tasks: tuple[str, ...], level: float
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
    ]
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
        interval = stats.mean_interval(np.array([x["mean"].mean() for x in three]), level)
        last = float(np.mean([x["mean"].iloc[-1] for x in three]))
        n_episodes = sum(int(x["size"].sum()) for x in three)
        lines.append([entry, task, *interval, last, len(three), n_episodes, at.pop(), each.pop()])
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


def _caption(cells: pd.DataFrame, scale: str, level: float, reps: int) -> str:
    scored = cells[cells["n_seeds"] > 0]
    seeds = _span(scored["n_seeds"])
    episodes = _span(scored["n_episodes"] // scored["n_seeds"])
    percent = f"{100 * level:g} %"
    text = (
        f"Score: {scale}. Test episodes after the last update only: {seeds} seeds x {episodes}"
        f" episodes. Cells: mean over seeds ± half-width of its {percent} Student-t interval."
        " IQM: interquartile mean over runs and tasks, tasks weighing equally, with the"
        f" {percent} percentile bootstrap interval over seeds, stratified by task and rescaled for"
        f" few seeds, {reps} resamples. Bold: the best of a column and whatever cannot be told"
        f" from it: the {percent} interval of the difference contains 0 (paired where seeds and"
        " episodes are the same: t in cells, bootstrap in the aggregate; else unpaired; not"
        " corrected for the number of comparisons). --: missing; an entry"
        " without all its runs has no aggregate."
    )
    if (cells["status"] == "left out").any():
        text += " Suite's choice: the suite asks the entry for some of the tasks alone."
    if scored["low"].isna().any():
        text += " One seed has no interval, and no difference from it can be tested."
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
            row.n_updates or "--",
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
                half = "" if np.isnan(cell["low"]) else f" ± {(cell['high'] - cell['low']) / 2:.1f}"
                text = f"{cell['mean']:.1f}{half} ({cell['last']:.1f})"
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
        f"Mean of the last three evaluations ({shown}) ± half-width of its Student-t interval over seeds;"
        " in brackets, and in the last column, the last evaluation alone. The first two are monitor"
        " episodes, other ones than the test episodes of the last; the board ranks by the last alone."
    )


def to_csv(board: Board) -> str:
    """Tidy: one line per number, with its interval and what it was computed from."""
    sink = io.StringIO()
    columns = ["kind", "entry", "task", "statistic", "value", "low", "high", "n_seeds"]
    columns += ["n_episodes", "status", "best", "rank", "n_failed", "n_diverged", "n_tuned"]
    columns += ["tuning", "n_updates", "wall_s", "commit"]
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
    console.print(Text(board.caption, style="dim"))
    if len(board.averaged):
        console.print(_averaged_table(board))
        console.print(Text(_averaged_caption(board), style="dim"))
    for note in board.notes:
        console.print(Text(f"* {note}", style="yellow"))


def write(board: Board, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.csv`; the same records give the same bytes."""
    folder = Path(folder)
    paths = folder / f"{name}.md", folder / f"{name}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (to_markdown(board), to_csv(board)), strict=True):
            _replace(path, text)
    except OSError as error:
        raise UserError(f"cannot write the board to {folder}: {error.strerror}") from None
    return paths


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    if np.isnan(row.iqm):
        return "--" if row.complete == row.n_tasks else _aggregate_status(row)
    return f"{row.iqm:.1f}" + ("" if np.isnan(row.low) else f" [{row.low:.1f}, {row.high:.1f}]")


def _cell_text(cell: Any, *, short: bool = False) -> str:
    if cell.missing:
        return "--" if cell.status in ("missing", "left out") else cell.status
    text = f"{cell.mean:.1f}"
    if not np.isnan(cell.low):
        half = (cell.high - cell.low) / 2
        space = "" if short else " "
        text += (
            f"{space}±{space}{half:.0f}" if short and half >= 9.95 else f"{space}±{space}{half:.1f}"
        )
    for count, word in _failures(cell):
        if count:
            text += f"\n{count} {_SHORT[word]}" if short else f" ({count} {word})"
    return text


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
