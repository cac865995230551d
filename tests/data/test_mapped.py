"""A set larger than memory is mapped from its files and trained on without ever being copied whole."""

import json
import subprocess
import sys

import pytest

ROWS, WIDTH = 1_200_000, 32  # 200 MB, of zeros: the files are sparse and made at once

# In a process of its own, as memory once taken is seldom given back. Reading a mapped file takes
# pages that the system can drop at any time; what counts is anonymous memory.
TRAIN = """
import json, sys, threading, time
from pathlib import Path
import numpy as np, torch
from offbench.data.replay import ReplayData
from offbench.methods.bc import BC
from offbench.data.pipeline import make_pipeline
from offbench.training.loop import train
from offbench.types import Spec

torch.set_num_threads(1)
folder, rows, width, n_updates = Path(sys.argv[1]), *map(int, sys.argv[2:])
LENGTH = 1001  # rows of an episode


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) * 1024


def mapped(name: str, rows: int) -> ReplayData:
    kinds = {"obs": ("f4", (rows, width)), "action": ("f4", (rows, 4)), "reward": ("f4", (rows,)),
             "terminal": ("?", (rows,)), "last": ("i8", (rows,)), "episode": ("i8", (rows,))}
    files = {k: np.lib.format.open_memmap(folder / f"{name}-{k}.npy", "w+", *kind) for k, kind in kinds.items()}
    for start in range(0, rows, 10**6):
        row = np.arange(start, min(start + 10**6, rows))
        files["episode"][row] = row // LENGTH
        files["last"][row] = np.minimum(row // LENGTH * LENGTH + LENGTH, rows) - 1
    files["obs"][7], files["reward"][7] = 1.0, 1.0
    for x in files.values():
        x.flush()
    read = [np.load(folder / f"{name}-{k}.npy", mmap_mode="c") for k in ReplayData._fields]
    return ReplayData(*map(torch.from_numpy, read))


def run(data: ReplayData) -> None:
    named = {"obs_norm": None, "reward_affine": {"shift": -1.0}}
    pipeline = make_pipeline(data, transforms=named, batch_size=64, lazy=True)
    spec = Spec(width, 4, 0.99, LENGTH)
    for point in train(BC(hidden=(8,)), pipeline, spec, seeds=[0, 1], n_updates=n_updates):
        assert all(m.isfinite().all() for m in point.metrics.values())


run(mapped("small", 5000))  # torch loads parts of itself on first use
data = mapped("large", rows)
before, peak, done = anonymous(), 0, threading.Event()


def watch() -> None:
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())


watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
run(data)
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps({"grown": peak - before, "total": peak, "set": sum(x.nbytes for x in data), "seconds": seconds}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
def test_training_on_a_mapped_set_takes_a_small_part_of_its_size(tmp_path):
    """With `lazy=False`, which normalises all observations at once, it takes 1.9 times the size."""
    command = [sys.executable, "-c", TRAIN, *map(str, (tmp_path, ROWS, WIDTH, 40))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    assert took["set"] > 190e6 and took["grown"] < 0.5 * took["set"], took
