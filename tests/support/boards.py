"""Episodes and runs of boards that never were."""

from typing import Any

import numpy as np
import pandas as pd

from offbench.results.board.evidence import Evidence
from offbench.results.board.leaderboard import Asked

TASKS = ("toy/a-v0", "toy/b-v0", "toy/c-v0")


def frames(scores: dict[tuple[str, str], Any], **columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(episodes, runs) from {(entry, task): seeds x episodes of scores, or a status per seed}."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for (entry, task), seeds in scores.items():
        for seed, values in enumerate(seeds):
            run_id = f"{entry}-{task}-{seed}"
            status = values if isinstance(values, str) else "ok"
            run = {"run_id": run_id, "config_id": f"{entry}-{task}", "entry": entry, "task": task}
            run |= {"seed": seed, "status": status, "reason": None, "n_updates": 100}
            run |= {"suite": "toy", "suite_version": 1, "method": entry, "wall_s": 60.0, "pack": 2}
            run |= {"dataset_sha256": "0" * 64, "env.id": "Toy-v0", "protocol.episodes": 4}
            run |= {"protocol.monitor_at": (0.5, 1), "hparams.hidden": (64, 64), "dirty": False}
            run |= {"commit": "0" * 40, "tuning.how": "published", "tuning.tried": 1}
            runs.append(run | columns)
            for episode, score in enumerate([] if isinstance(values, str) else values):
                row = {"run_id": run_id, "entry": entry, "task": task, "seed": seed, "update": 100}
                row |= {"stream": "test", "episode": episode, "env_seed": 50 + episode}
                rows.append(row | {"score": float(score)})
    return pd.DataFrame(rows), pd.DataFrame(runs)


def evidence(
    *, shift: float = 0.0, seeds: int = 4, entries: str = "xyz", **columns: Any
) -> Evidence:
    """Three entries on three tasks, of which one is a success rate, one cell is missing and one seed failed;
    `shift` is added to entry x on the first task."""
    generator = np.random.default_rng(0)
    scores: dict[tuple[str, str], Any] = {}
    for place, entry in enumerate(entries):
        for task in TASKS:
            drawn = generator.normal(50 - 15 * place, 5, (seeds, 4))
            if task == TASKS[2]:
                drawn = 100.0 * (drawn > 40)
            scores[entry, task] = (drawn + shift * ((entry, task) == ("x", TASKS[0]))).tolist()
    scores["50%_a|b", TASKS[0]] = [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 3.5, 1.0]]
    scores["failing", TASKS[0]] = [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 3.5, 1.0], "failed"]
    episodes, runs = frames(scores, **columns)
    return Evidence(
        episodes=episodes,
        runs=runs,
        tasks=TASKS,
        asked=Asked(seeds={TASKS[1]: range(seeds)}),
        title="toy v1",
        notes=("2 recorded runs are left out",),
    )
