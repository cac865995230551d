"""Episodes as a user has them, in a frame of their own: what must be there, and what is refused."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from offbench.errors import UserError

_COLUMNS = ("entry", "task", "seed", "episode", "score")


def complete_rows(rows: pd.DataFrame, *, alone: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The test rows with what a record has beside them, and the runs that they are of.

    Args:
        alone: nothing else says which runs are whole.
    """
    if absent := [name for name in _COLUMNS if name not in rows]:
        raise UserError(
            f"rows: no column {', '.join(absent)}; needed are {', '.join(_COLUMNS)},"
            f" found are {', '.join(map(str, rows.columns))}"
        )
    for name in ("entry", "task"):
        if rows[name].isna().any():
            raise UserError(f"rows: column {name} is empty in {int(rows[name].isna().sum())} rows")
    for name in ("seed", "episode", "score") if len(rows) else ():
        kind, bad = "numbers" if name == "score" else "whole numbers", rows[name]
        if pd.api.types.is_numeric_dtype(bad):
            bad = bad[bad % 1 != 0] if name != "score" else bad.head(0)
        if len(bad):
            raise UserError(f"rows: column {name} has {str(bad.iloc[0])!r}, not {kind}")
    test = rows[rows["stream"] == "test"] if "stream" in rows else rows.assign(stream="test")
    if test.empty:
        raise UserError("rows: there are no test episodes")
    key = ["entry", "task", "seed"]
    kinds = {"entry": str, "task": str, "seed": int, "episode": int, "score": np.float64}
    # categories, too, as the rows behind a board have them
    test = test.astype(kinds | ({"run_id": str} if "run_id" in test else {}))
    if "update" not in test:
        test = test.assign(update=0)
    if "run_id" not in test:
        text = test["entry"] + " on " + test["task"] + ", seed " + test["seed"].astype(str)
        test = test.assign(run_id=text)
    if (twice := test.duplicated(["run_id", "update", "episode"])).any():
        row = test[twice].iloc[0]
        raise UserError(
            f"rows: {row['entry']} on {row['task']}, seed {row['seed']}, has episode {row['episode']} twice"
        )
    runs = test.groupby([*key, "run_id"], as_index=False).agg(n_updates=("update", "max"))
    if alone:
        _refuse_half_runs(runs)
    return test, runs.assign(status="ok", config_id=runs["entry"] + " on " + runs["task"])


def _refuse_half_runs(runs: pd.DataFrame) -> None:
    """UserError where the seeds of an entry on a task end at different updates."""
    ends = runs.groupby(["entry", "task"])["n_updates"].agg(["min", "max"])
    for (entry, task), end in ends[ends["min"] < ends["max"]].iterrows():
        raise UserError(
            f"rows: {entry} on {task} has seeds that end at update {end['min']} and at {end['max']}:"
            " a run that stopped is no result"
        )


def remarks_on(rows: pd.DataFrame, tasks: Collection[str], unscaled: Collection[str]) -> list[str]:
    """What a reader must know of the scores of some tasks, and of the number of episodes of their runs.

    Raises:
        UserError: a success is 1 instead of 100, which would make every difference small.
    """
    rows = rows[rows["task"].isin(list(tasks))]
    scaled = rows[~rows["task"].isin(list(unscaled))]
    for task, scores in scaled.groupby("task")["score"]:
        if scores.isin([0, 1]).all() and scores.any():
            raise UserError(f"rows: the scores on {task} are 0 or 1; a success is 100 points here")
    remarks, most = [], scaled["score"].abs().max()
    if 0 < most <= 1:
        remarks = [
            f"no score is above {most:.2g}: if 1 is the reference maximum, it must be given as 100"
        ]
    last = rows[rows["update"] == rows.groupby("run_id")["update"].transform("max")]
    n = last.groupby(["entry", "task", "run_id"]).size().groupby(["entry", "task"])
    n = n.agg(["min", "max"])
    return remarks + [
        f"{entry} on {task} has {few} to {many} test episodes a seed"
        for (entry, task), few, many in n[n["min"] < n["max"]].itertuples()
    ]
