"""Which recorded runs count on a board.

A board asks for the runs that a command line plans, and shows every other entry that was trained and
evaluated by the same protocol beside them. `Wanted` describes what is asked for in plain values, and
`select` finds it among the records of a suite.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from offbench.errors import UserError, listed, nearest
from offbench.results.captions import spelt
from offbench.results.spec import OUTSIDE

ESTIMATED = ("protocol.by", "protocol.fqe_updates", "protocol.fqe_hidden", "protocol.fqe_gamma")
"""The columns of `Store.runs()` that say how values were estimated; none of runs that were played."""


class Budget(NamedTuple):
    """A number of updates or of test episodes."""

    planned: int
    # what is published for the method that is planned; None where nothing is
    published: int | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the runs of one task are trained and evaluated."""

    # None where it is not known: only the planned runs are shown
    dataset_sha256: str | None
    # columns of `Store.runs()` that begin with "env." -> value
    environment: Mapping[str, Any]
    updates: Budget
    episodes: Budget
    seeds: Collection[int]
    # share of the recorded episodes that is held out; None where none is
    validation: float | None = None
    # columns that begin with "protocol." -> value, of values that are estimated and not played
    estimated: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a board asks for."""

    # task -> how its runs are trained and evaluated
    tasks: Mapping[str, Protocol]
    # the planned runs
    run_ids: Collection[str]
    # the entries of the planned runs: other settings of theirs are not shown
    entries: Collection[str]


class Selection(NamedTuple):
    """The runs of a board."""

    # lines of `Store.runs()`, in its order
    runs: pd.DataFrame
    # number of runs of the wanted tasks that were evaluated in another environment or by other rules
    left_out: int


def select(runs: pd.DataFrame, wanted: Wanted) -> Selection:
    """The planned runs, and the runs of other entries that are comparable with them.

    Comparable are runs of a wanted task and seed, in the same environment, on the same data, with the
    same share held out for validation, evaluated by the same estimator if any, and with the same numbers of updates and test episodes. Where a
    planned number is the published one of its method, another method's published number is the same.
    Of a policy that was trained elsewhere neither data nor updates are known, and its number of test
    episodes must be the planned one.

    Args:
        runs: lines of `Store.runs()`, all of one suite.
    """
    chosen = runs["run_id"].isin(list(wanted.run_ids)).to_numpy()
    other = ~runs["entry"].isin(list(wanted.entries)).to_numpy()
    left_out = 0
    for task, protocol in wanted.tasks.items():
        of_task = (runs["task"] == task).to_numpy()
        here = _in_environment(runs[of_task], protocol.environment)
        left_out += int((~here & ~chosen[of_task]).sum())
        chosen[of_task] |= other[of_task] & here & _comparable(runs[of_task], protocol)
    return Selection(runs[chosen], left_out)


def _in_environment(runs: pd.DataFrame, environment: Mapping[str, Any]) -> np.ndarray:
    """(n,) whether a run was evaluated in an environment, by the same rules and with nothing else said of it."""
    recorded = [name for name in runs if name.startswith("env.")]
    names = dict.fromkeys([*recorded, *environment])
    return _all(runs, [_is(runs, name, environment.get(name)) for name in names])


def _comparable(runs: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """(n,) whether a run was trained and evaluated by a protocol."""
    seed = runs["seed"].isin(list(protocol.seeds)).to_numpy()
    outside = (runs["method"] == OUTSIDE).to_numpy()
    trained = [
        _is(runs, "dataset_sha256", protocol.dataset_sha256),
        _is(runs, "protocol.validation", protocol.validation),
        *(_is(runs, name, protocol.estimated.get(name)) for name in ESTIMATED),
        _is_budget(runs, "n_updates", protocol.updates, "tuning.published_updates"),
        _is_budget(runs, "protocol.episodes", protocol.episodes, "tuning.published_episodes"),
    ]
    evaluated = _is(runs, "protocol.episodes", protocol.episodes.planned)
    return seed & np.where(outside, evaluated, _all(runs, trained))


def _is_budget(runs: pd.DataFrame, name: str, budget: Budget, published: str) -> np.ndarray:
    """(n,) whether a run has the planned number, or, like the planned ones, the published one."""
    same = _is(runs, name, budget.planned)
    if budget.planned != budget.published or published not in runs:
        return same
    return same | (runs[name] == runs[published]).to_numpy()


def _is(runs: pd.DataFrame, name: str, value: Any) -> np.ndarray:
    """(n,) whether a column has a value; None is that of runs which have none."""
    if name not in runs:
        return np.full(len(runs), value is None)
    if value is None:
        return runs[name].isna().to_numpy()
    return np.fromiter((x == value for x in runs[name]), bool, len(runs))


def _all(runs: pd.DataFrame, conditions: list[np.ndarray]) -> np.ndarray:
    """(n,) whether all conditions hold of a run; there may be none."""
    return np.logical_and.reduce(conditions, axis=0) if conditions else np.full(len(runs), True)


def readable(runs: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Runs without those whose episodes are damaged.

    Args:
        runs: lines of `Store.runs()`.
        episodes: `Store.episodes()` of them, from which damaged ones are left out.
    """
    if runs.empty:
        return runs
    return runs[(runs["rows"] == 0) | runs["run_id"].isin(episodes["run_id"].unique())]


# --- runs that may share a board ------------------------------------------------------------

_NEEDED = ("run_id", "config_id", "entry", "task", "seed", "status", "n_updates")


def refuse_missing_columns(runs: pd.DataFrame) -> None:
    """UserError where a frame is not `Store.runs()`."""
    if absent := [name for name in _NEEDED if name not in runs]:
        raise UserError(f"runs: no column {', '.join(absent)}")


def current_runs(runs: pd.DataFrame, tasks: tuple[str, ...]) -> pd.DataFrame:
    """Runs of some tasks: whole ones, and the last failure of every seed that has no whole one.

    Raises:
        UserError: a column is missing, or there is no record of these tasks.
    """
    refuse_missing_columns(runs)
    mine = runs[runs["task"].isin(tasks)]
    if mine.empty:
        raise UserError(f"no records of {tasks[0]}: {nearest(tasks[0], runs['task'])}")
    key = ["entry", "task", "seed"]
    whole = mine[mine["status"] == "ok"]
    failed = mine[mine["status"] != "ok"].drop_duplicates(key, keep="last")
    done = pd.MultiIndex.from_frame(whole[key])
    failed = failed[~pd.MultiIndex.from_frame(failed[key]).isin(done)]
    return pd.concat([whole, failed]).sort_values([*key, "run_id"], ignore_index=True)


def refuse_mixtures(whole: pd.DataFrame) -> None:
    """Checks that the runs of an entry on a task are seeds of one configuration.

    Raises:
        UserError: two runs have one seed, or other settings; says which, and in what they differ.
    """
    key = ["entry", "task", "seed"]
    for _, pair in whole[whole.duplicated(key, keep=False)].groupby(key):
        a, b = pair.iloc[0], pair.iloc[1]
        raise UserError(
            f"entry {a['entry']!r} has two runs of seed {a['seed']} on {a['task']}: {a['run_id']}"
            f" and {b['run_id']}, which differ in {_difference(a, b)}; give one of them another"
            " entry label, or select one of them"
        )
    kinds = whole.groupby(["entry", "task"])["config_id"].transform("nunique")
    for _, cell in whole[kinds > 1].groupby(["entry", "task"]):
        other = cell[cell["config_id"] != cell["config_id"].iloc[0]]
        if not other.empty:
            a, b = cell.iloc[0], other.iloc[0]
            raise UserError(
                f"entry {a['entry']!r} has runs of different configurations on {a['task']}:"
                f" {a['run_id']} (seed {a['seed']}) and {b['run_id']} (seed {b['seed']}) differ in"
                f" {_difference(a, b)}; give one of them another entry label, or select one of them"
            )


def refuse_other_protocols(whole: pd.DataFrame, entries: tuple[str, str]) -> None:
    """Checks that two entries were trained and evaluated alike on each task that they share.

    Numbers of updates, or of test episodes, may differ where each is the published one of its method. Of a
    policy that was trained elsewhere neither data nor updates are known. How often training was monitored does
    not matter.

    Raises:
        UserError: data, environment or protocol differ; says in what, with both values.
    """
    recorded = [str(name) for name in whole if str(name).startswith("env.")]
    names = ["dataset_sha256", *recorded, "protocol.validation", "n_updates", "protocol.episodes"]
    budgets = {"n_updates": "tuning.published_updates"}
    budgets["protocol.episodes"] = "tuning.published_episodes"
    for task, column in whole.groupby("task", sort=False):
        rows = [column[column["entry"] == entry] for entry in entries]
        if any(own.empty for own in rows):
            continue
        pair = [own.iloc[0] for own in rows]
        outside = any(row.get("method") == OUTSIDE for row in pair)
        for name in names:
            if outside and name in ("dataset_sha256", "protocol.validation", "n_updates"):
                continue
            a, b = (row.get(name) for row in pair)
            published = [row.get(budgets.get(name, "")) for row in pair]
            same = a == b or spelt(a) == spelt(b) == "unset"
            if not same and [a, b] != published:
                raise UserError(
                    f"{entries[0]!r} and {entries[1]!r} cannot be compared on {task}: they differ in"
                    f" {name} ({spelt(a)}, {spelt(b)})"
                )


def _difference(a: pd.Series, b: pd.Series) -> str:
    """The names of the spec's fields in which two lines of `runs` differ, with both values."""
    top = ("suite_version", "dataset", "dataset_sha256", "method", "n_updates")
    nested = ("hparams.", "pipeline.", "protocol.", "env.")
    names = [name for name in a.index if name in top or str(name).startswith(nested)]
    differing = [name for name in names if spelt(a[name]) != spelt(b[name])]
    shown = [f"{name} ({spelt(a[name])}, {spelt(b[name])})" for name in differing]
    return listed(shown, 3) or "their specification"
