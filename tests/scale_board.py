"""Time and memory of a large leaderboard: `python tests/scale_board.py [entries tasks seeds episodes]`.

By default 200 entries x 100 tasks x 10 seeds x 100 episodes, 20 million rows. Prints the seconds of the
board and the peak memory of the process, from frames in memory and from the two files of
`offbench.results.board.evidence` on disk (`--disk FOLDER`, which a first run writes).
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from offbench.results.board.evidence import Evidence, paths_of, read_evidence, write_evidence
from offbench.results.board.leaderboard import Asked


def evidence(entries: int, tasks: int, seeds: int, episodes: int) -> Evidence:
    """Scores that vary with entry, task, seed and start state; names are categories."""
    generator = np.random.default_rng(0)
    names = [f"scale/task{i:03}-v0" for i in range(tasks)]
    labels = [f"entry{i:03}" for i in range(entries)]
    n = entries * tasks * seeds
    grid = np.unravel_index(np.arange(n), (entries, tasks, seeds))
    runs = pd.DataFrame(
        {
            "run_id": [f"{i:016x}" for i in range(n)],
            "config_id": [f"{i // seeds:016x}" for i in range(n)],
            "entry": np.array(labels, object)[grid[0]],
            "task": np.array(names, object)[grid[1]],
            "seed": grid[2],
            "status": "ok",
            "n_updates": 1_000_000,
            "dataset_sha256": "0" * 64,
            "env.id": np.array(names, object)[grid[1]],
            "commit": "0" * 40,
            "dirty": False,
            "wall_s": 60.0,
            "pack": 10,
            "tuning.how": "published",
            "tuning.tried": 1,
            "versions.mujoco": "3.11.0",
        }
    )
    start = generator.integers(2**31, size=(tasks, episodes))
    by_state = generator.normal(0, 5, (tasks, episodes))
    level = generator.normal(50, 15, entries)[grid[0]] + generator.normal(0, 5, n)
    score = level[:, None] + by_state[grid[1]]
    score += generator.normal(0, 8, score.shape)
    run = np.repeat(np.arange(n, dtype=np.int32), episodes)
    rows = pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(run, runs["run_id"]),
            "stream": pd.Categorical.from_codes(np.zeros(len(run), np.int8), ["test"]),
            "update": np.full(len(run), 1_000_000),
            "episode": np.tile(np.arange(episodes, dtype=np.int32), n),
            "env_seed": start[grid[1]].ravel(),
            "score": score.ravel(),
        },
        copy=False,
    )
    asked = Asked(seeds={name: range(seeds) for name in names})
    return Evidence(episodes=rows, runs=runs, tasks=tuple(names), asked=asked, title="scale v1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="*", type=int, default=[200, 100, 10, 100])
    parser.add_argument("--reps", type=int, default=2000)
    parser.add_argument("--disk", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    if options.disk is None or not paths_of(options.disk, "scale")[0].exists():
        found = evidence(*options.size)
        print(f"made: {len(found.episodes):,} rows in {time.perf_counter() - start:.1f} s")
        if options.disk is not None:
            paths = write_evidence(found, options.disk, "scale")
            print(*(f"{path}: {path.stat().st_size / 2**20:.1f} MiB" for path in paths))
            return
    else:
        found = read_evidence(options.disk, "scale")
        print(f"read: {len(found.episodes):,} rows in {time.perf_counter() - start:.1f} s")
    start, used = time.perf_counter(), time.process_time()
    board = found.board(reps=options.reps)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"board: {seconds:.1f} s, of processors {used:.1f} s, peak {peak:.2f} GiB; first: {board.aggregate['entry'].iloc[0]}"
    )


if __name__ == "__main__":
    sys.exit(main())
