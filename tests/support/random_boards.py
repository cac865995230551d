"""Boards of runs that never were: their episodes, lines of runs, and records, without a disk."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from support.records import provenance, spec

from offbench.results.board.leaderboard import Board, leaderboard
from offbench.results.consistency import COLUMNS, cell_consistency, entry_consistency
from offbench.results.record import line_of
from offbench.results.schema import LATER_COLUMNS, typed
from offbench.results.store import Record

_OF_RUN = ("run_id", "suite", "task", "method", "seed")

Made = tuple[Board, pd.DataFrame, pd.DataFrame, dict[str, Record]]


def made_board(
    entries: list[str],
    tasks: list[str],
    *,
    n_seeds: int = 3,
    n_episodes: int = 3,
    monitored: bool = False,
    reps: int = 100,
) -> Made:
    """A board with every run, its episodes, its runs, and run id -> record; scores are drawn at random."""
    records = [
        _record(entry, task, seed, n_episodes, 1e-4 * (1 + e))
        for e, entry in enumerate(entries)
        for task in tasks
        for seed in range(n_seeds)
    ]
    parts = [_episodes(records, n_episodes, "test", 100)]
    if monitored:
        parts.append(_episodes(records, n_episodes, "monitor", 50))
    episodes = typed(pd.concat(parts, ignore_index=True))
    runs = pd.DataFrame([line_of(_body(record, n_episodes)) for record in records])
    board = leaderboard(episodes, runs, tasks, title="toy v1", reps=reps)
    return board, episodes, runs, {record.spec.run_id: record for record in records}


def with_consistency(made: Made) -> Made:
    """The board where seeds of iql were compared on all tasks, with two kinds, and of bc on the first."""
    board, episodes, runs, records = made
    measured = {
        ("iql", task, kind): x for task in board.tasks for kind, x in (("action", 0.2), ("js", 0.5))
    }
    measured["bc", board.tasks[0], "action"] = 0.1
    lines = [
        (task, entry, kind, i, j, f"{i}", f"{j}", divergence, 100)
        for (entry, task, kind), divergence in measured.items()
        for i, j in itertools.combinations(range(3), 2)
    ]
    rows = pd.DataFrame(lines, columns=list(COLUMNS))
    own = replace(
        board, consistency=cell_consistency(rows), entry_consistency=entry_consistency(rows)
    )
    return own, episodes, runs, records


def _episodes(records: list[Record], n: int, stream: str, update: int) -> pd.DataFrame:
    generator = np.random.default_rng(update)
    size = len(records) * n
    constant = {name: np.repeat([getattr(r.spec, name) for r in records], n) for name in _OF_RUN}
    lr = np.repeat([r.spec.hparams["lr"] for r in records], n)
    score = 20 + 1e5 * lr + 10 * generator.standard_normal(size)
    columns = {
        "entry": np.repeat([r.provenance.entry for r in records], n),
        **constant,
        "update": update,
        "stream": stream,
        "episode": np.tile(np.arange(n), len(records)),
        "env_seed": np.tile(generator.integers(0, 2**31, n), len(records)),
        "return": 31.7 * score - 280.3,
        "score": score,
        "length": generator.integers(100, 1000, size),
        "terminated": generator.random(size) < 0.3,
        "truncated": False,
    }
    frame = pd.DataFrame(columns)
    nothing = pd.Series([None] * size, dtype=object)
    return frame.assign(**dict.fromkeys(("success", *LATER_COLUMNS), nothing))


def _record(entry: str, task: str, seed: int, n_episodes: int, lr: float) -> Record:
    run = spec(
        task=task,
        dataset=task,
        seed=seed,
        hparams={"lr": lr, "hidden": [256, 256], "expectile": 0.7},
        protocol={"episodes": n_episodes, "envs": 1, "monitor_at": []},
    )
    sources = {"method.lr": "suite toy", "method.hidden": "default"}
    made = provenance(entry=entry, sources=sources)
    return Record(Path(f"{run.run_id}.json"), "ok", None, run, made, None)


def _body(record: Record, rows: int) -> dict:
    return {
        "run_id": record.spec.run_id,
        "config_id": record.spec.config_id,
        "status": record.status,
        "reason": record.reason,
        "episodes": {"rows": rows},
        "spec": record.spec.as_dict(),
        "provenance": record.provenance.as_dict(),
    }
