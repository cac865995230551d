"""Rows, run specs and provenance of runs that never were."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offbench.results.record import episodes_file, load
from offbench.results.spec import Provenance, RunSpec
from offbench.results.store import Store


def spec(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "suite": "toy",
        "suite_version": 1,
        "task": "toy/point-v0",
        "dataset": "toy/point",
        "dataset_sha256": "ab" * 32,
        "env": {"id": "Point-v0", "kwargs": {"size": 3}},
        "method": "iql",
        "hparams": {"lr": 3e-4, "hidden": (256, 256), "expectile": 0.7},
        "pipeline": {"view": {"target": "offbench.views.NStep", "n": 1}, "batch_size": 256},
        "n_updates": 100,
        "seed": 0,
        "protocol": {"episodes": 3, "streams": ["test", "monitor"], "monitor_at": [0.5]},
    }
    return RunSpec(**(values | changes))


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "entry": "iql",
        "commit": "c" * 40,
        "dirty": False,
        "versions": {"torch": "2.13.0", "mujoco": "3.11.0"},
        "device": "cpu",
        "backend": "eager",
        "precision": "float32",
        "pack": 2,
        "wall_s": 10.0,
        "train_s": 8,
        "tuning": {"how": "published", "tried": 1, "source": "a paper, table 1"},
        "created": "2026-01-02T03:04:05+00:00",
        "host": {"cpus": 4},
    }
    return Provenance(**(values | changes))


def episodes(
    n: int = 3, *, update: int = 100, stream: str = "test", **changes: Any
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "update": update,
        "stream": stream,
        "episode": np.arange(n),
        "env_seed": 1000 + np.arange(n),
        "return": np.linspace(-1, 1, n),
        "score": np.linspace(0, 100, n),
        "length": 7,
        "success": None,
        "terminated": False,
        "truncated": True,
    }
    return pd.DataFrame(columns | changes)


def record_cells(store: Store, cells: Iterable[Any], scores: Callable[[Any, int], float]) -> None:
    """Records every run of planned cells, of data that need not be here.

    `scores` gives the mean score of a cell's seed; its test episodes lie one point above and below.
    """
    for cell in cells:
        cell = replace(cell, task=replace(cell.task, sha256=cell.task.sha256 or "ab" * 32))
        for run in cell.runs():
            n = cell.protocol["episodes"]
            around = np.where(np.arange(n) % 2, 1.0, -1.0) * (n > 1)
            rows = episodes(n, update=run.n_updates, score=scores(cell, run.seed) + around)
            store.append(run, rows, provenance(entry=cell.entry, tuning=cell.tuning))


def parquet_of(mark: Path) -> Path:
    """The file of a record's episodes, from the path of its json."""
    return episodes_file(mark, load(mark)["episodes"])
