"""Time of a large store of records: `python tests/scale_store.py FOLDER [--records N]`.

Makes, where they are not there, a store of N records (100,000: 100 entries x 100 tasks x 10 seeds, 10 episodes
each) and one of 5,040 of a suite (56 entries x 18 tasks x 5 seeds), and prints what an append, light questions and
a board cost, and how fast 8 processes write 10,000 records at once. Seconds are of processors, and of a clock.
"""

import argparse
import hashlib
import io
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.paths import ROOT
from support.records import episodes, parquet_of, provenance, spec

from offbench.results.record import load, seal
from offbench.results.schema import EPISODE_SCHEMA
from offbench.results.spec import RunSpec
from offbench.results.store import Store

EPISODES = 10
BOARD = ["suite=d4rl-gym-18", "methods=[bc]", "seeds=[0,1,2,3,4]"]

Cells = Iterable[tuple[str, RunSpec]]


def grid(n_entries: int, n_tasks: int, n_seeds: int) -> Iterator[tuple[str, RunSpec]]:
    """(entry, run) of every seed of every entry on every task."""
    protocol = {"episodes": EPISODES, "monitor_at": [], "monitor_episodes": 0}
    for task in range(n_tasks):
        for i in range(n_entries):
            hparams = {"lr": 3e-4, "hidden": (256, 256), "expectile": i / n_entries}
            changes = {"hparams": hparams, "protocol": protocol, "suite": "scale"}
            name = f"scale/task{task:03}-v0"
            for seed in range(n_seeds):
                yield f"entry{i:03}", spec(task=name, seed=seed, **changes)


def of_suite(n_entries: int) -> Iterator[tuple[str, RunSpec]]:
    """The planned runs of BOARD, and those of other entries by the same protocol."""
    from offbench.bench.plan import plan

    for cell in plan(BOARD, bench=True).cells:
        cell = replace(cell, task=replace(cell.task, sha256="ab" * 32))
        for run in cell.runs():
            yield cell.entry, run
            for i in range(1, n_entries):
                changes = {"method": f"entry{i:03}", "hparams": {"lr": i / 1000}}
                yield f"entry{i:03}", RunSpec(**{**run.as_dict(), **changes})


def make(root: Path, cells: Cells) -> None:
    """Records as `Store.append` writes them, but not flushed to the disk one by one."""
    shutil.rmtree(part := root.with_name(f"{root.name}.part"), ignore_errors=True)
    shutil.rmtree(example := root.with_name("example"), ignore_errors=True)
    run = next(grid(1, 1, 1))[1]
    mark = Store(example).append(run, episodes(EPISODES), provenance())
    table, body = pq.read_table(parquet_of(mark)), load(mark)
    generator = np.random.default_rng(0)
    levels: dict[str, float] = {}
    for entry, run in cells:
        level = levels.setdefault(entry, float(generator.normal(50, 10)))
        score = level + generator.normal(0, 5) + generator.normal(0, 5, EPISODES)
        constant = {"run_id": run.run_id, "entry": entry, "suite": run.suite, "task": run.task}
        constant |= {"method": run.method, "seed": run.seed, "update": run.n_updates}
        write(part, run, entry, body, table, {"score": score, **constant})
    part.rename(root)
    shutil.rmtree(example)


def write(
    root: Path,
    run: RunSpec,
    entry: str,
    body: dict[str, Any],
    table: pa.Table,
    changed: dict[str, Any],
) -> None:
    for name, value in changed.items():
        field, i = EPISODE_SCHEMA.field(name), table.column_names.index(name)
        array = pa.array(np.broadcast_to(value, len(table)).tolist(), field.type)
        table = table.set_column(i, field, array)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="snappy", write_statistics=False)
    checksum = hashlib.sha256(content := sink.getvalue()).hexdigest()
    about = {"rows": len(table), "bytes": len(content), "sha256": checksum}
    own = {
        "run_id": run.run_id,
        "config_id": run.config_id,
        "spec": run.as_dict(),
        "provenance": {**body["provenance"], "entry": entry},
        "episodes": {"file": f"{run.run_id}.{checksum[:8]}.parquet", **about},
    }
    mark = Store(root).path(run, entry)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.with_name(own["episodes"]["file"]).write_bytes(content)
    mark.write_text(seal({k: v for k, v in {**body, **own}.items() if k != "checksum"}))


def timed(name: str, call: Callable[[], Any], n: int = 1) -> Any:
    """The result of a call, of which the seconds are printed, by n."""
    clock, used = time.perf_counter(), processor_s()
    found = call()
    clock, used = (time.perf_counter() - clock) / n, (processor_s() - used) / n
    print(f"{name:56}{used:10.4f} s{clock:10.4f} s", flush=True)
    return found


def processor_s() -> float:
    """Of this process and of those that it started."""
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(x.ru_utime + x.ru_stime for x in map(resource.getrusage, of))


def append(store: Store, n: int = 200) -> None:
    """Appends runs of a seed that is not there, and removes them again."""
    rows = episodes(EPISODES)
    cells = [(e, r) for e, r in grid(10, n // 10, 1)]
    runs = [(e, RunSpec(**{**r.as_dict(), "seed": 10**6})) for e, r in cells]
    size = len(store.records())
    call = lambda: [store.append(r, rows, provenance(entry=e)) for e, r in runs]
    for mark in timed(f"append to {size:,} records, each", call, n):
        parquet_of(mark).unlink()
        mark.unlink()


WRITER = """
import sys
from support.records import episodes, provenance, spec
from offbench.results.store import Store
store, me = Store(sys.argv[1]), int(sys.argv[2])
for i in range(me, 10_000, 8):
    run = spec(seed=i, task=f"toy/task{i % 20}-v0")
    store.append(run, episodes(), provenance(entry=f"entry{i // 20 % 50}"))
"""


def concurrent(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-c", WRITER, str(root)]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}

    def write() -> None:
        writers = [subprocess.Popen([*command, str(i)], env=env) for i in range(8)]
        assert [writer.wait() for writer in writers] == [0] * 8

    timed("8 processes write 10,000 records", write)
    runs, rows = Store(root).runs(), Store(root).episodes()
    whole = (rows.groupby("run_id").size() == 3).sum()
    print(
        f"  {len(runs):,} records of {runs['run_id'].nunique():,} runs, {whole:,} with all episodes"
    )
    shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    board, large = options.folder / "board", options.folder / f"large-{options.records}"
    if not board.exists():
        timed("made a store of 5,040", lambda: make(board, of_suite(56)))
    if not large.exists():
        cells = grid(options.records // 1000, 100, 10)
        timed(f"made a store of {options.records:,}", lambda: make(large, cells))
    print(f"{'':56}{'processor':>12}{'clock':>12}")
    append(Store(options.folder / "empty"))
    shutil.rmtree(options.folder / "empty")
    for folder in (board, large):
        append(Store(folder))
    store = Store(large)
    shutil.rmtree(large / ".index", ignore_errors=True)
    size = f"of {options.records:,}"
    timed(f"states {size}, without an index", store.states)
    timed(f"states {size}", store.states)
    timed(f"runs(suite=...) {size}", lambda: store.runs(suite="scale"))
    runs = [run for _, run in grid(options.records // 1000, 100, 10)]
    timed(f"names of {options.records:,} runs", lambda: [run.run_id for run in runs])
    left = timed(f"missing {size}", lambda: store.missing(runs))
    assert left == []
    shutil.rmtree(board / ".index", ignore_errors=True)
    command = [sys.executable, "-m", "offbench.cli", "board", *BOARD, f"results={board}"]
    for words in ("without an index", "again"):
        show = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        timed(f"offbench board of 5,040 records, {words}", show)
    concurrent(options.folder / "many")


if __name__ == "__main__":
    main()
