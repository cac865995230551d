"""The leaderboard: episodes in, one honest table out.

`leaderboard` computes a `Board` once; `to_markdown`, `to_csv` and `to_terminal` only spell it. Its
rules: the last update is the result; the configuration is one per cell; a missing, failed or
diverged run is shown and never averaged over, so an entry that lacks anything has no aggregate and
ranks last; and what differs between the runs of a column is said under the table.

The random numbers of the intervals are seeded by the scores they are computed from, so a board is
a function of its records. A new row changes no other row's numbers but for its intervals and
bold, in so far as it changes the mean variance between seeds (`offbench.results.uncertainty`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from offbench.errors import UserError, expect, expect_names, expect_whole
from offbench.results import aggregates, stats, uncertainty
from offbench.results.aggregates import Aggregate
from offbench.results.captions import (
    how_trained,
    long_caption,
    notes_on,
    notes_on_ranks,
    short_caption,
    sources_of,
)
from offbench.results.cells import averaged_table, cell_table, pools_of, scored_cells
from offbench.results.generators import Generators
from offbench.results.goals import goal_table
from offbench.results.pairwise import Scores, pairs_of, ranks_of
from offbench.results.selection import current_runs, refuse_mixtures

SCALE = "0 = reference minimum, 100 = reference maximum or certain success"

_RETURNS = "the return itself, no reference returns are known"

_AGGREGATES = ("iqm", "low", "high", "mean", "mean_low", "mean_high", "mean_rank")


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard, computed.

    cells, one row per (entry, task): entry, task, mean, low, high, n_seeds, n_episodes (in all),
    n_asked (seeds asked for), n_failed, n_diverged, status (ok | partial | failed | diverged | missing |
    left out), missing, best, success (whether the score is a success rate).
    aggregate, one row per entry, in rank order: rank, rank_low and rank_high (the ranks that the
    tests of all pairs leave it), entry, mean_rank (instead of iqm and mean where
    tasks have returns of several scales), complete, n_asked (tasks that the suite
    asks it for), n_tasks, iqm, low, high, mean, mean_low, mean_high, best, n_seeds (fewest of a task),
    n_seeds_max, n_episodes, n_tuned (tasks run with a per-task preset), tuning, commit, n_updates,
    published_updates, updates (both in words), wall_s (per run, a pack shared). Entries that lack a task have rank <NA> and nan.
    averaged, one row per cell whose runs all have two monitor evaluations: entry, task, mean, low and
    high of the mean of the last three evaluations, last (the mean of the last alone), n_seeds,
    n_episodes (in all), at (update / n_updates of the three), each (episodes of the three per seed), success.
    goals, one row per goal of a goal-conditioned task and entry: entry, task, task_id, mean, low, high,
    n_seeds, n_episodes (in all). Empty without such tasks.
    """

    title: str
    tasks: tuple[str, ...]
    cells: pd.DataFrame
    aggregate: pd.DataFrame
    averaged: pd.DataFrame
    goals: pd.DataFrame
    notes: tuple[str, ...]
    caption: str
    # the caption in two lines, for a terminal
    summary: str
    # of the intervals and of bold
    level: float
    # resamples of the aggregates' intervals
    reps: int
    # task -> what its runs have in common or differ in: data, environment, protocol and versions
    sources: Mapping[str, Mapping[str, list[str]]]
    # of the cells where seeds were compared, as of `offbench.results.consistency.cell_consistency`, and per entry
    # entry, value, low, high, n_tasks
    consistency: pd.DataFrame = field(default_factory=pd.DataFrame)
    entry_consistency: pd.DataFrame = field(default_factory=pd.DataFrame)
    # of the complete entries, as of `offbench.results.pairwise`: mean ranks, and all ordered pairs
    ranks: pd.DataFrame
    pairwise: pd.DataFrame


class Asked(NamedTuple):
    """What a suite asks of every entry, beside its tasks."""

    # method -> patterns of the tasks that it is asked for, where those are not all
    only: Mapping[str, Sequence[str]] = {}
    # task -> seeds; an entry that lacks one has no aggregate and no rank
    seeds: Mapping[str, Collection[int]] = {}
    # tasks whose score is a plain return, of which no aggregate is made
    unscaled: Collection[str] = ()


_EVERYTHING = Asked()


def leaderboard(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    tasks: Sequence[str],
    *,
    asked: Asked = _EVERYTHING,
    title: str = "",
    level: float = 0.95,
    reps: int = 2000,
    random_seed: int = 0,
) -> Board:
    """The leaderboard of some tasks, computed from recorded episodes.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records.
        tasks: ids, in the order of the columns.
        level: confidence level of the intervals and of bold.
        reps: resamples of the aggregates' intervals.
        random_seed: of the resamples.

    Raises:
        UserError: two runs claim one (entry, task, seed), a cell would mix configurations, or the two
            frames disagree.
    """
    tasks = _checked(episodes, runs, tasks, level, reps)
    runs = current_runs(runs, tasks)
    whole = _whole(runs)
    found = scored_cells(episodes, whole, asked.unscaled)
    pools = pools_of(found, tasks, asked.unscaled)
    asked_tasks = _asked_tasks(runs, tasks, asked.only)
    cells = cell_table(runs, found, pools, asked_tasks, asked.seeds, level)
    plain = [task for task in tasks if task in set(asked.unscaled)]
    mixed = plain if len(tasks) > 1 else []
    scores = Scores(tasks, found, pools, _not_whole(cells), frozenset(plain))
    complete = _complete(cells, tasks)
    estimates = _Estimates.of(scores, complete, Generators(random_seed), reps, level)
    pairs = pairs_of(
        scores, complete, tasks, level=level, reps=reps, seed=random_seed, found=estimates.iqm
    )
    if mixed:
        aggregate = _ranked(cells, whole, complete)
    else:
        aggregate = _aggregate(cells, whole, complete, estimates, level)
    return Board(
        title=title,
        tasks=tasks,
        cells=cells,
        aggregate=aggregate,
        averaged=averaged_table(episodes, whole, found, pools, level),
        goals=goal_table(episodes, whole, level),
        notes=(*notes_on_ranks(mixed, tasks), *notes_on(whole, cells, tasks)),
        caption=long_caption(cells, _scale(tasks, plain), level, reps),
        summary=short_caption(cells, _scale(tasks, plain), level),
        level=level,
        reps=reps,
        ranks=ranks_of(scores, complete, estimates.drawn_means, level),
        pairwise=pairs,
        sources=sources_of(whole, tasks),
    )


def _whole(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are averaged over. UserError where a cell would mix configurations."""
    whole = runs[runs["status"] == "ok"]
    refuse_mixtures(whole)
    return whole


def _checked(
    episodes: object, runs: object, tasks: object, level: float, reps: int
) -> tuple[str, ...]:
    """The tasks. UserError where something that a board is made of is of another type, or a task is there twice."""
    for name, frame in (("episodes", episodes), ("runs", runs)):
        expect(name, frame, pd.DataFrame, f"Store.{name}()")
    stats.check_level(level)
    expect_whole("reps", reps, 1)
    tasks = expect_names("tasks", tasks)
    if not tasks:
        raise UserError("a board needs at least one task")
    if len(set(tasks)) < len(tasks):
        twice = next(task for task in tasks if tasks.count(task) > 1)
        raise UserError(f"task {twice} is listed twice")
    return tasks


def _asked_tasks(
    runs: pd.DataFrame, tasks: tuple[str, ...], only: Mapping[str, Sequence[str]]
) -> dict[str, set[str]]:
    """Entry -> the tasks that the suite asks it for, or that it was run on all the same."""
    asked = {}
    for entry, mine in runs.groupby("entry"):
        patterns = [only[m] for m in set(mine.get("method", ())) if m in only]
        chosen = {t for t in tasks for p in patterns if any(fnmatch(t, x) for x in p)}
        asked[str(entry)] = set(mine["task"]) | chosen if patterns else set(tasks)
    return asked


def _scale(tasks: tuple[str, ...], plain: Sequence[str]) -> str:
    return _RETURNS if len(plain) == len(tasks) else SCALE


def _not_whole(cells: pd.DataFrame) -> frozenset[tuple[str, str]]:
    """(entry, task) of the cells that lack a seed."""
    lacking = cells.loc[cells["status"] != "ok", ["entry", "task"]]
    return frozenset(lacking.itertuples(index=False, name=None))


def _complete(cells: pd.DataFrame, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The entries that have every seed of every task."""
    whole = cells[cells["status"] == "ok"].groupby("entry").size()
    return tuple(str(entry) for entry in whole.index[whole == len(tasks)])


class _Estimates(NamedTuple):
    """Of the complete entries, in their order."""

    iqm: list[Aggregate]
    mean: list[Aggregate]
    # (reps, n_tasks) each
    drawn_means: list[np.ndarray]

    @classmethod
    def of(
        cls,
        scores: Scores,
        entries: Sequence[str],
        generator: Generators,
        reps: int,
        level: float,
    ) -> "_Estimates":
        pools, made = [scores.pools[task] for task in scores.tasks], cls([], [], [])
        estimate = partial(aggregates.aggregate, generator=generator, reps=reps, level=level)
        for entry in entries:
            cells = scores.row(entry, scores.tasks)
            drawn = [aggregates.draw(c, p, generator, reps) for c, p in zip(cells, pools)]
            made.iqm.append(estimate(cells, pools, stats.iqm, drawn=drawn))
            made.mean.append(estimate(cells, pools, stats.mean, drawn=drawn))
            made.drawn_means.append(np.stack([x.means.mean(1) for x in drawn], -1))
        return made


def _aggregate(
    cells: pd.DataFrame,
    whole: pd.DataFrame,
    entries: Sequence[str],
    estimates: _Estimates,
    level: float,
) -> pd.DataFrame:
    """One line per entry; IQM and mean for the complete ones."""
    numbers = {}
    for entry, iqm, mean in zip(entries, estimates.iqm, estimates.mean):
        middle, average = iqm.interval, mean.interval
        numbers[entry] = {"iqm": middle.point, "low": middle.low, "high": middle.high}
        numbers[entry] |= {
            "mean": average.point,
            "mean_low": average.low,
            "mean_high": average.high,
        }
    table = _lines(cells, whole, numbers)
    table["rank"] = _places(-table["iqm"])
    points = np.array([iqm.interval.point for iqm in estimates.iqm])
    adjusted = aggregates.differences(estimates.iqm).adjusted()
    best = uncertainty.not_worse_than_best(points, adjusted, level)
    table["best"] = table["entry"].isin([e for e, marked in zip(entries, best) if marked])
    return _in_order(_with_ranks(table, entries, points, adjusted < 1 - level))


def _with_ranks(
    table: pd.DataFrame, entries: Sequence[str], points: np.ndarray, differs: np.ndarray
) -> pd.DataFrame:
    """With the ranks that an entry may have: behind those which are better by a test, before those which are
    worse (Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for ranks")."""
    higher = points[:, None] > points
    worse, better = (differs & higher).sum(1), (differs & higher.T).sum(1)
    # without a test, with one seed, any
    first = dict(zip(entries, (1 + better).tolist()))
    last = dict(zip(entries, (len(points) - worse).tolist()))
    table["rank_low"] = table["entry"].map(first).astype("Int64")
    table["rank_high"] = table["entry"].map(last).astype("Int64")
    return table


def _ranked(cells: pd.DataFrame, whole: pd.DataFrame, entries: Sequence[str]) -> pd.DataFrame:
    """One line per entry, in the order of its mean rank within the tasks, where returns of several scales
    have no mean."""
    compared = cells[cells["entry"].isin(entries)]
    ranks = compared.groupby("task")["mean"].rank(ascending=False)
    numbers = {e: {"mean_rank": x} for e, x in ranks.groupby(compared["entry"]).mean().items()}
    table = _lines(cells, whole, numbers)
    table["rank"] = _places(table["mean_rank"])
    table["rank_low"] = table["rank_high"] = pd.Series(pd.NA, table.index, dtype="Int64")
    return _in_order(table)


def _places(x: pd.Series) -> pd.Series:
    """1 for the lowest. Numbers that differ by no more than the rounding of their sums share a place."""
    return x.map("{:.12g}".format).astype(float).rank(method="min").astype("Int64")


def _lines(
    cells: pd.DataFrame, whole: pd.DataFrame, numbers: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """What is told of each entry besides its cells; `numbers` of the complete ones."""
    lines = []
    runs = dict(tuple(whole.groupby("entry")))
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
                **how_trained(runs.get(entry, whole.iloc[:0])),
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
