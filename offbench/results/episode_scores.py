"""Scores of episodes, as the arrays that statistics are computed from."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from offbench.errors import UserError, unknown


def score_table(episodes: pd.DataFrame) -> pd.DataFrame:
    """Mean test score of each run: columns entry, task, seed, run_id, score, n_episodes.

    Args:
        episodes: `Store.episodes()`; rows of other streams than `test` are left out.

    Raises:
        UserError: two runs claim one (entry, task, seed), a run has test episodes at two updates, or a
            score is not finite.
    """
    test = episodes[episodes["stream"] == "test"]
    if not np.isfinite(test["score"]).all():
        bad = test[~np.isfinite(test["score"])].iloc[0]
        raise UserError(f"run {bad['run_id']} has a score which is not finite, on {bad['task']}")
    key = ["entry", "task", "seed"]
    claims = test[[*key, "run_id"]].drop_duplicates().sort_values([*key, "run_id"])
    for (entry, task, seed), claim in claims[claims.duplicated(key, keep=False)].groupby(key):
        raise UserError(
            f"entry {entry!r} has two runs of seed {seed} on {task}: {claim['run_id'].iloc[0]} and"
            f" {claim['run_id'].iloc[-1]}; give one of them another entry label"
        )
    table = test.groupby(key, as_index=False, sort=True).agg(
        run_id=("run_id", "first"),
        score=("score", "mean"),
        n_episodes=("score", "size"),
        first=("update", "min"),
        last=("update", "max"),
    )
    for line in table[table["first"] != table["last"]].itertuples():
        raise UserError(f"run {line.run_id} has test episodes at {line.first} and at {line.last}")
    return table[[*key, "run_id", "score", "n_episodes"]]


def scores_by_task(episodes: pd.DataFrame, entry: str, tasks: Sequence[str]) -> list[np.ndarray]:
    """Test scores of an entry, one array per task: (n_seeds of the task,), ordered by seed.

    Raises:
        UserError: there is no such entry, or it has no test scores on a task.
    """
    table = score_table(episodes)
    if entry not in set(table["entry"]):
        raise unknown("entry", entry, table["entry"])
    by_task = dict(tuple(table[table["entry"] == entry].groupby("task")["score"]))
    for task in tasks:
        if task not in by_task:
            raise UserError(f"entry {entry!r} has no test scores on {task}")
    return [by_task[task].to_numpy() for task in tasks]


def paired_scores(
    episodes: pd.DataFrame, a: str, b: str, tasks: Sequence[str], *, common_seeds: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Test scores of two entries on the same seeds and episodes: (n_seeds, n_episodes) per task.

    Args:
        common_seeds: keep the seeds that both entries have, instead of refusing others.

    Raises:
        UserError: the two entries have other episodes or seeds, or one has no test scores on a task.
    """
    score_table(episodes)  # refuses mixed runs
    test = episodes[episodes["stream"] == "test"]
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for task in tasks:
        x, y = (_seeds_by_episodes(test, entry, task) for entry in (a, b))
        if not x.columns.equals(y.columns):
            raise UserError(f"{a!r} and {b!r} were not evaluated on the same episodes of {task}")
        seeds = x.index.intersection(y.index)
        if len(seeds) == 0 or not (common_seeds or x.index.equals(y.index)):
            raise UserError(
                f"{a!r} has seeds {list(x.index)} on {task}, {b!r} has {list(y.index)};"
                " pairs need the same seeds"
            )
        left.append(x.loc[seeds].to_numpy())
        right.append(y.loc[seeds].to_numpy())
    return left, right


def _seeds_by_episodes(test: pd.DataFrame, entry: str, task: str) -> pd.DataFrame:
    rows = test[(test["entry"] == entry) & (test["task"] == task)]
    if rows.empty:
        raise UserError(f"entry {entry!r} has no test scores on {task}")
    table = rows.pivot_table(index="seed", columns=["episode", "env_seed"], values="score")
    if table.isna().to_numpy().any():
        raise UserError(f"seeds of {entry!r} were not evaluated on the same episodes of {task}")
    return table
