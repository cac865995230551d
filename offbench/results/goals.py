"""Success of an entry at each goal of a goal-conditioned task, behind the one cell of the board."""

import numpy as np
import pandas as pd

from offbench.results import uncertainty
from offbench.results.cells import scored_cell
from offbench.results.uncertainty import Pool

GOALS = ("entry", "task", "task_id", "mean", "low", "high", "n_seeds", "n_episodes")


def goal_table(episodes: pd.DataFrame, whole: pd.DataFrame, level: float) -> pd.DataFrame:
    """`Board.goals`: one row per (entry, task, goal) of the test episodes after the last update.

    Args:
        episodes: rows of episodes; without `task_id`, or where it is null, no task has goals.
        whole: the runs that count.
    """
    empty = pd.DataFrame(columns=list(GOALS))
    if "task_id" not in episodes or episodes["task_id"].isna().all():
        return empty
    played = episodes[episodes["task_id"].notna() & (episodes["stream"] == "test")]
    columns = ["run_id", "update", "episode", "env_seed", "score", "task_id"]
    runs = whole[["run_id", "entry", "task", "seed", "n_updates"]]
    played = played[columns].astype({"run_id": str}).merge(runs, on="run_id")
    played = played[played["update"] == played["n_updates"]]
    if played.empty:
        return empty
    played = played.sort_values(["entry", "task", "task_id", "seed", "episode"])
    found, known = {}, dict[bytes, tuple[int, ...]]()
    for key, rows in played.groupby(["entry", "task", "task_id"]):
        lengths = rows.groupby("seed").size().to_numpy()
        scores = rows["score"].to_numpy(np.float64)
        states = rows["env_seed"].to_numpy(np.int64)
        name = "{} on {}, goal {}".format(*key)
        found[key] = scored_cell(scores, states, lengths, success=True, name=name, known=known)
    pool = Pool.of(list(found.values()))
    lines = []
    for (entry, task, goal), cell in found.items():
        interval = uncertainty.cell_interval(cell, pool, level)
        size = cell.n_seeds, cell.n_seeds * cell.n_episodes
        lines.append([entry, task, int(goal), *interval, *size])
    return pd.DataFrame(lines, columns=list(GOALS))
