"""Tiny runs for tests of executors, and what is left of their processes."""

import time

import psutil

from offbench.bench.plan import plan
from offbench.bench.schedule import Effort, run_packs
from offbench.bench.stacks import pack
from offbench.results.store import Store

TASK = "offbench/hopper/medium-replay-v0"
TINY = (
    "methods=[bc]",
    f"task={TASK}",
    "seeds=[0,1]",
    "max_stack=1",
    "method.hidden=[8]",
    "n_updates=40",
    "eval.episodes=1",
    "device=cpu",
)
THREAD, PROCESSES = ("jobs=1",), ("jobs=2",)
RAY, SLURM = ("executor=ray", "jobs=2"), ("executor=slurm", "slurm.cluster=local", "jobs=2")


def made(root, *more: str):
    """(plan of the tiny runs, its stacks)"""
    whole = plan([*TINY, *more, f"results={root}"], bench=True)
    return whole, pack(whole.cells, max_stack=1)


def run(root, *more: str, effort: Effort | None = None) -> list:
    """The last event of each stack, and before it those of attempts that are tried again."""
    whole, packs = made(root, *more)
    store = Store(root)
    store.check_writable()
    events = run_packs(packs, store, whole.settings, effort or Effort())
    return [e for e in events if e.final or e.phase == "again"]


def rows(root):
    order = ["run_id", "stream", "update", "episode"]
    return Store(root).episodes().sort_values(order, ignore_index=True)


def left_over(before: set[int]) -> list[str]:
    """Processes below this one that were not there before; those that end are waited for."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        now = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        now = [p for p in now if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        # Python's own, for the life of this process
        left = [words for p in now if "resource_tracker" not in (words := " ".join(p.cmdline()))]
        if not left:
            return []
        time.sleep(0.2)
    return left


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}
