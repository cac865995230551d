"""Benches that are killed at random moments and started again, and what is lost: nothing may be.

As a script it prints the table of deaths: `python tests/support/crashes.py 100 [KIND ...]`; its exit code says whether
anything was lost.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from offbench.results.store import Store

TINY = [
    "methods=[bc,td3_bc]",
    "task=offbench/hopper/medium-replay-v0",
    "seeds=[0,1]",
    "n_updates=200",
    "batch_size=16",
    "method.hidden=[8]",
    "eval.episodes=2",
    "eval.envs=2",
    "eval.monitor_at=[0.25,0.5]",
    "eval.monitor_episodes=1",
    "checkpoint_minutes=0.001",
    "engine=eager",
    "device=cpu",
]

# a shell that starts the tests in the background ignores SIGINT, and so would its children
COMMAND_LINE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from offbench.cli.app import main
sys.exit(main(sys.argv[1:]))
"""

# what differs between two honest executions
TIMES = {"wall_s", "train_s", "created", "pack", "stack", "reason"}


class Death(NamedTuple):
    """A bench of TINY that is ended after some seconds."""

    # SIGKILL, SIGTERM, SIGINT of the bench; WORKER: SIGKILL of a worker process; DISK: its disk is full
    kind: str
    after: float


def start(results: Path, jobs: int) -> int:
    """A bench in a forked process of its own group, with everything imported: returns its pid."""
    results.parent.mkdir(parents=True, exist_ok=True)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            # a shell that starts this in the background ignores it
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open(os.devnull, os.O_RDWR)
            log = os.open(
                results.parent.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY
            )
            for ours, theirs in ((null, 0), (log, 1), (log, 2)):
                os.dup2(ours, theirs)
            from offbench.cli.app import main

            code = main(["bench", *TINY, f"jobs={jobs}", f"results={results}"])
        finally:
            os._exit(code)
    return pid


def end(pid: int, death: Death, ballast: Path) -> int | None:
    """Ends a bench; returns its exit code, None where a signal ended it."""
    time.sleep(death.after)
    if death.kind == "DISK":
        fill(ballast)
    elif death.kind == "WORKER":
        kill_worker(pid)
    else:
        os.kill(pid, getattr(signal, death.kind))
    _, status = os.waitpid(pid, 0)
    ballast.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None


def fill(ballast: Path) -> None:
    """Takes all the space of a disk."""
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def kill_worker(pid: int) -> None:
    """SIGKILL of one worker process of a bench, where it has one."""
    import psutil

    try:
        workers = [
            p
            for p in psutil.Process(pid).children()
            if "resource_tracker" not in " ".join(p.cmdline())
        ]
    except psutil.Error:
        return
    if workers:
        random.choice(workers).kill()


def rows(results: Path) -> dict[str, Any]:
    """Run id -> its episodes, curves and what is said of it, without times."""
    store = Store(results)
    episodes = store.episodes().sort_values(["run_id", "stream", "update", "episode"])
    curves = store.curves()
    lines = store.runs().drop(columns=list(TIMES), errors="ignore").set_index("run_id")
    return {
        name: (
            episodes[episodes["run_id"] == name].reset_index(drop=True),
            curves[name],
            lines.loc[name, ["status", "seed", "entry", "rows"]],
        )
        for name in lines.index
    }


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What was lost, doubled or changed, in words."""
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is new" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        for part, a, b in zip(("episodes", "curves", "record"), found[name], wanted[name]):
            if not a.equals(b):
                wrong.append(f"{part} of {name} differ")
    return wrong


def run_through(results: Path, deaths: Sequence[Death], jobs: int) -> list[int | None]:
    """A bench that dies each of the deaths and is then left to end; the exit codes of all of them."""
    ballast = results.parent / "ballast"
    codes = [end(start(results, jobs), death, ballast) for death in deaths]
    _, status = os.waitpid(start(results, jobs), 0)
    return [*codes, os.waitstatus_to_exitcode(status)]


def leftovers(results: Path) -> list[str]:
    """Files that a finished bench should not leave."""
    left = [*results.glob("checkpoints/*"), *results.glob("claims/*"), *results.glob("workers/*")]
    return [str(path.relative_to(results)) for path in left if "ballast" not in path.name]


class Mounted:
    """A small disk in memory at a folder; its size in MiB."""

    def __init__(self, folder: Path, size: int):
        folder.mkdir(parents=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
        self.done = subprocess.run(command, capture_output=True).returncode == 0

    def __enter__(self) -> "Mounted":
        return self

    def __exit__(self, *error: object) -> None:
        if self.done:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "DISK", "WORKER")


def main(count: int, folder: Path, kinds: Sequence[str] = KINDS) -> int:
    """Prints the table: kind of death, how often, rows lost, doubled or changed; returns how many."""
    begin = time.perf_counter()
    # the first one fills caches
    for name in ("first", "undisturbed"):
        mark = time.perf_counter()
        os.waitpid(start(folder / name / "results", 1), 0)
        whole = time.perf_counter() - mark
    wanted = rows(folder / "undisturbed" / "results")
    print(f"undisturbed: {len(wanted)} runs in {whole:.1f} s", flush=True)
    draw = random.Random(f"{kinds}")
    table = {kind: [0, 0, 0] for kind in kinds}
    each = max(1, min(3, count // len(kinds)))
    for i in range(-(-count // each)):
        kind = kinds[i % len(kinds)]
        deaths = [Death(kind, draw.uniform(0.0, whole)) for _ in range(each)]
        results = folder / f"{i}" / "results"
        with Mounted(results.parent, 8 if kind == "DISK" else 64):
            codes = run_through(results, deaths, 2 if kind == "WORKER" else 1)
            wrong = [] if codes[-1] == 0 else [f"exit code {codes[-1]}"]
            wrong += differences(rows(results), wanted) + leftovers(results)
        log = results.parent.with_suffix(".log").read_text()
        wrong += [log[-4000:]] if "Traceback" in log and kind != "DISK" else []
        table[kind][0] += len(deaths)
        table[kind][1] += sum(code != 0 for code in codes[:-1])
        table[kind][2] += len(wrong)
        print(f"{kind:8} {codes} {'; '.join(wrong) or 'equal'}", flush=True)
    print(pd.DataFrame(table, index=["deaths", "ended early", "wrong"]).T.to_string())
    print(f"{time.perf_counter() - begin:.0f} s")
    return sum(row[2] for row in table.values())


if __name__ == "__main__":
    import tempfile

    # once, so that forked benches need not

    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(int(sys.argv[1]), Path(name), tuple(sys.argv[2:]) or KINDS) > 0)
