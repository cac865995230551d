"""Time that an executor takes for a stack beside its training: `python tests/scale_executors.py local|ray|slurm N`.

The N stacks have records, so a worker finds them done; for slurm, processes of this machine are jobs, and the
second line is for N stacks in one array of a script that stands in for sbatch.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from offbench.bench.executors import remote
from offbench.bench.plan import plan
from offbench.bench.recording import provenance_of
from offbench.bench.schedule import run_packs
from offbench.bench.stacks import pack
from offbench.results.schema import no_episodes
from offbench.results.store import Store

TASK = "offbench/hopper/medium-replay-v0"
# without test episodes a record is small
FEW = ("eval.episodes=0", "eval.validation=0.1", "eval.monitor_at=[]")
MORE = {
    "thread": ["jobs=1"],
    "local": ["jobs=2"],
    "ray": ["executor=ray", "jobs=2"],
    "slurm": ["executor=slurm", "slurm.cluster=local", "jobs=2"],
}


def measure(name: str, n: int) -> None:
    # asked by the driver, which would then start nothing
    remote.Seen.settled = lambda self, job: None
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seeds={list(range(n))}".replace(" ", "")
        own = ["methods=[bc]", f"task={TASK}", seeds, *FEW, "device=cpu", f"results={folder}"]
        whole = plan([*own, *MORE[name]], bench=True)
        store = Store(folder)
        for cell in whole.cells:
            for run in cell.runs():
                facts = provenance_of(cell, whole.settings, "cpu", "none", [run.run_id], 0, 0, {})
                store.append(run, no_episodes(), facts)
        packs = pack(whole.cells, max_stack=1)
        ends, start, cpu = [], time.perf_counter(), time.process_time()
        for event in run_packs(packs, store, whole.settings):
            if event.final:
                assert event.phase == "recorded", event
                ends.append(time.perf_counter())
        cpu = time.process_time() - cpu
        each = (ends[-1] - ends[0]) / max(1, n - 1)
        print(
            f"{name}: {n} stacks; the first after {ends[0] - start:.1f} s, then {1000 * each:.1f} ms each;"
            f" closed after {time.perf_counter() - ends[-1]:.1f} s; processor time of the command "
            f"{1000 * cpu / n:.1f} ms a stack; load {os.getloadavg()[0]:.1f}"
        )


def measure_array(n: int) -> None:
    """Submitting N stacks as one array."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("srun", "sbatch"):
            path = Path(folder) / name
            path.write_text("#!/bin/sh\necho Submitted batch job 1\n")
            path.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        from offbench.bench.executors.slurm import Slurm
        from offbench.bench.job import Job

        seeds = f"seeds={list(range(n))}".replace(" ", "")
        own = ["methods=[bc]", f"task={TASK}", seeds, "executor=slurm", f"slurm.folder={folder}/j"]
        whole = plan([*own, f"results={folder}/r"], bench=True)
        executor = Slurm(Store(f"{folder}/r"), whole.settings, n)
        start, cpu = time.perf_counter(), time.process_time()
        for i, one in enumerate(pack(whole.cells, max_stack=1)):
            executor.submit(Job(i, one))
        executor._submit_new()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"slurm: {n} stacks in one array: {1000 * wall / n:.1f} ms ({1000 * cpu / n:.1f} ms of processor time) each"
        )


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
    if sys.argv[1] == "slurm":
        measure_array(200)
