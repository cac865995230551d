"""Which recorded runs count on a board.

A board asks for the runs that a command line plans, and shows every other entry that was trained and
evaluated by the same protocol beside them. `Wanted` describes what is asked for in plain values, and
`select` finds it among the records of a suite.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from offbench.results.spec import OUTSIDE


class Budget(NamedTuple):
    """A number of updates or of test episodes."""

    planned: int
    # what is published for the method that is planned; None where nothing is
    published: int | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the runs of one task are trained and evaluated."""

    dataset_sha256: str
    # columns of `Store.runs()` that begin with "env." -> value
    environment: Mapping[str, Any]
    updates: Budget
    episodes: Budget
    seeds: Collection[int]
    # share of the recorded episodes that is held out; None where none is
    validation: float | None = None


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
    same share held out for validation, and with the same numbers of updates and test episodes. Where a
    planned number is the published one of its method, another method's published number is the same.
    Of a policy that was trained elsewhere neither data nor updates are known, and its number of test
    episodes must be the planned one.

    Args:
        runs: the lines of `Store.runs()` of one suite.
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
