"""The parts of the GPU check: what each runs on the device, and how much of it.

A part is `run(out, sizes, save, until)`: the folder for its files, its sizes, a function that keeps
what has been found so far, and the `time.monotonic` at which it should end.
"""

import csv
import importlib.util
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from offbench.data.pipeline import make_pipeline
from offbench.speed import benchmark
from offbench.speed import table as tables
from offbench.speed.contenders import SPEC, YARDSTICKS, Entry, product, random_data, shipped
from offbench.testing.fakes import sized, view_for
from offbench.training.engine import (
    BLOCK,
    GATE_TOLERANCE,
    Backend,
    Engine,
    Precision,
    deviation,
    make_engine,
)
from offbench.training.step import initial_carry, make_step, n_minibatches

# the methods that speed is judged by
LEADING = ("td3_bc", "iql")
# steps; from BLOCK on a captured engine replays its graph
GATE_AT = (1, 20, BLOCK, 100)
GATE_SEEDS = 3

Save = Callable[[dict[str, Any]], None]


class Sizes(NamedTuple):
    """How much of everything: the real check, or its miniature."""

    device: str
    # held against eager float32
    backends: tuple[Backend, ...]
    gate_hidden: tuple[int, ...]
    # the backend that is measured
    fast: Backend
    # network -> stacks, the most telling first
    seeds: dict[tuple[int, ...], tuple[int, ...]]
    others: tuple[Entry, ...]  # in the same table
    precisions: tuple[Precision, ...]
    precision_seeds: tuple[int, ...]
    train_seeds: int
    train_s: float
    # of the data that is trained on, 1000 steps each
    episodes: int
    seconds: float  # for each row of a table
    batch_size: int

    @property
    def hidden(self) -> tuple[int, ...]:
        """The first network: what is trained."""
        return next(iter(self.seeds))


GPU = Sizes(
    device="cuda",
    backends=("eager", "compile", "cudagraph"),
    gate_hidden=(64, 64),
    fast="cudagraph",
    seeds={(256, 256): (1, 16, 64, 8, 4, 32, 2), (64, 64): (1, 16, 64, 4)},
    others=tuple(product((*YARDSTICKS, "eager"), (1, 16))),
    precisions=("float32", "tf32", "bf16"),
    precision_seeds=(16, 64),
    train_seeds=16,
    train_s=60.0,
    episodes=1000,
    seconds=1.0,
    batch_size=256,
)
DRY = Sizes(
    device="cpu",
    backends=("eager",),
    gate_hidden=(8,),
    fast="eager",
    seeds={(8,): (1, 2)},
    others=tuple(product(("plain", "unstacked"), (1,))),
    precisions=("float32", "bf16"),
    precision_seeds=(2,),
    train_seeds=2,
    train_s=0.3,
    episodes=2,
    seconds=0.02,
    batch_size=8,
)


def environment(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cpus": os.cpu_count(),
        "device": sizes.device,
    }
    if sizes.device == "cuda":
        p = torch.cuda.get_device_properties(0)
        facts |= {"gpu": p.name, "memory_gib": round(p.total_memory / 2**30, 1)}
        facts |= {"multiprocessors": p.multi_processor_count, "capability": f"{p.major}.{p.minor}"}
        save(facts)
        facts |= _nvidia_smi()
    save(facts)


def _nvidia_smi() -> dict[str, str]:
    """Driver and clocks, read only; nothing where the tool is not there."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,utilization.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(fields.split(","), values, strict=False)) if done.returncode == 0 else {}


def tests(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """The tests marked gpu, in their own process; pyproject's strictness about warnings is left out."""
    folder = Path(__file__).resolve().parents[2] / "tests"
    files = [
        str(p)
        for p in sorted(folder.rglob("test_*.py"))
        if "mark.gpu" in p.read_text(encoding="utf-8")
    ]
    if not files or importlib.util.find_spec("pytest") is None:
        save(
            {"passed": None, "last": "no gpu tests beside the package, or pytest is not installed"}
        )
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-W", "default", "-o", "addopts=", "--continue-on-collection-errors", *files]
    with open(out / "tests.txt", "w", encoding="utf-8") as log:
        try:
            seconds = max(5.0, until - time.monotonic())
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, cwd=folder.parent
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = -1
    lines = (out / "tests.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = "stopped at the time limit" if code == -1 else (lines or ["no output"])[-1]
    save({"passed": code == 0, "last": last})


def build(cls: type, hidden: tuple[int, ...], seeds: int, sizes: Sizes, episodes: int = 100) -> Any:
    """Step and first carry, on the device; everything that is compiled ahead is made here too."""
    data = random_data(torch.device(sizes.device), min(episodes, sizes.episodes))
    method = sized(cls, hidden)
    needs = getattr(method, "needs", ())
    pipeline = make_pipeline(data, view=view_for(needs), batch_size=sizes.batch_size, needs=needs)
    step = make_step(method, pipeline)
    return step, initial_carry(method, pipeline.spec(SPEC), range(seeds), sizes.device)


def gate(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """Every method and backend against eager float32 from the first update; and no wait in its loop."""
    rows: list[dict[str, Any]] = []
    for name, cls in shipped().items():
        step, carry = build(cls, sizes.gate_hidden, GATE_SEEDS, sizes)
        judge, ends = Engine(step, carry, backend="eager"), {}
        for n in GATE_AT:
            judge.load(carry)
            judge.run(n)
            ends[n] = judge.carry.state
        for backend in sizes.backends:
            row: dict[str, Any] = {"method": name, "backend": backend}
            rows.append(row)
            if time.monotonic() > until:
                row["error"] = "skipped for lack of time"
                continue
            try:
                row |= _held(step, carry, backend, ends)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            save({"rows": rows})
    columns = [
        "method",
        "backend",
        *(f"after_{n}" for n in GATE_AT),
        "repeats",
        "waits",
        "setup_s",
        "ok",
        "error",
    ]
    with open(out / "gate.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def _held(step: Any, carry: Any, backend: Backend, ends: dict[int, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    engine = Engine(step, carry, backend=backend)
    engine.run(1)
    row: dict[str, Any] = {"setup_s": round(time.perf_counter() - start, 1), "ok": True}
    for n, end in ends.items():
        engine.load(carry)
        engine.run(n)
        state = engine.carry.state
        off = deviation(state, end, carry.state)
        row[f"after_{n}"] = off
        # rounding grows with the run
        row["ok"] &= off <= GATE_TOLERANCE * (5 if n > BLOCK else 1)
    engine.load(carry)
    engine.run(n)
    row["repeats"] = all(map(torch.equal, tree_leaves(engine.carry.state), tree_leaves(state)))
    row["waits"] = _waits(engine) if carry.key.is_cuda else "not on a GPU"
    row["ok"] &= row["repeats"] and (row["waits"] == "none" or not carry.key.is_cuda)
    return row


def _waits(engine: Engine) -> str:
    """The first operation of a warm loop that waits for the device, or `none`."""
    engine.run(2 * BLOCK)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.run(2 * BLOCK + 5)
        return "none"
    except RuntimeError:
        frames = traceback.extract_tb(sys.exc_info()[2])
        ours = [f for f in frames if "offbench" in f.filename]
        return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}"[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def training(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """A long run in pieces, as a user's would be: what is sustained, not the best round."""
    name = LEADING[0]
    cls = shipped()[name]
    step, carry = build(cls, sizes.hidden, sizes.train_seeds, sizes, sizes.episodes)
    start = time.perf_counter()
    # a miniature is not worth compiling
    n_steps = 500_000 if carry.key.is_cuda else 0
    engine, chosen = make_engine(step, carry, backend="auto", n_steps=n_steps)
    _read(engine.run(BLOCK))
    found: dict[str, Any] = {
        "method": name,
        "hidden": sizes.hidden,
        "seeds": sizes.train_seeds,
        "engine": str(chosen),
        "rows": sizes.episodes * SPEC.max_episode_steps,
        "setup_s": time.perf_counter() - start,
    }
    per_step, piece, steps, pieces = n_minibatches(cls), BLOCK, 0, []
    begin = time.perf_counter()
    end = min(begin + sizes.train_s, begin + until - time.monotonic())
    while (now := time.perf_counter()) < end:
        metrics = _read(engine.run(piece))
        seconds = time.perf_counter() - now
        steps += piece
        pieces.append(piece * per_step / seconds)
        if seconds < sizes.train_s / 60:
            piece *= 2
        rate = steps * per_step / (time.perf_counter() - begin)
        save(
            found
            | {
                "updates": steps * per_step,
                "seconds": time.perf_counter() - begin,
                "updates_per_s": rate,
                "seed_updates_per_s": rate * sizes.train_seeds,
                "slowest_piece": min(pieces[len(pieces) // 2 :]),
                "fastest_piece": max(pieces),
                "extrapolated_s_per_million": 1e6 / rate,
                "metrics_of_seed_0": {k: v[0] for k, v in metrics.items()},
                "finite": all(x == x for v in metrics.values() for x in v),
            }
        )


def _read(metrics: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Metrics as numbers; reading them waits for the device."""
    return {name: value.tolist() for name, value in metrics.items()}


def table(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """The speed table; the widest network of every method first."""
    whole: tables.Result | None = None
    for hidden, seeds in sizes.seeds.items():
        entries = (*sizes.others, *(Entry(sizes.fast, n) for n in seeds))
        for name in LEADING:
            part = _measure(name, hidden, entries, sizes, until)
            whole = part if whole is None else _merged(whole, part)
            save({"rows": whole.rows, "facts": whole.facts})
            tables.write(whole, out)


def precision(out: Path, sizes: Sizes, save: Save, until: float) -> None:
    """What rounding the matrix products buys, and how far it leads away."""
    name = LEADING[0]
    entries = [Entry(sizes.fast, n, p) for n in sizes.precision_seeds for p in sizes.precisions]
    result = _measure(name, sizes.hidden, entries, sizes, until)
    save({"rows": result.rows, "facts": result.facts})
    step, carry = build(shipped()[name], sizes.hidden, sizes.precision_seeds[0], sizes)
    ends = {}
    for kind in sizes.precisions:
        if time.monotonic() > until:
            break
        engine = Engine(step, carry, backend=sizes.fast, precision=kind)
        engine.run(100)
        ends[kind] = engine.carry.state
        off = {k: deviation(state, ends["float32"], carry.state) for k, state in ends.items()}
        save({"rows": result.rows, "facts": result.facts, "deviation_after_100": off})


def _measure(
    name: str, hidden: tuple[int, ...], entries: Any, sizes: Sizes, until: float
) -> tables.Result:
    cells = benchmark.cells(
        [name],
        hidden=[hidden],
        batch_size=sizes.batch_size,
        device=sizes.device,
        episodes=min(100, sizes.episodes),
    )
    return benchmark.measure(cells, entries, seconds=sizes.seconds, until=until)


def _merged(a: tables.Result, b: tables.Result) -> tables.Result:
    facts = dict(a.facts)
    for key in ("failed", "products_flops_per_s"):
        facts[key] = a.facts[key] | b.facts[key]
    facts["skipped"] = a.facts["skipped"] + b.facts["skipped"]
    return tables.Result(a.rows + b.rows, facts)


class Part(NamedTuple):
    run: Callable[[Path, Sizes, Save, float], None]
    # what it may take; what earlier parts left is added
    seconds: float
    # measures, so nothing else may run
    alone: bool = False


PARTS = {
    "environment": Part(environment, 20),
    "gate": Part(gate, 90),
    "tests": Part(tests, 75),
    "training": Part(training, 85, alone=True),
    "table": Part(table, 150, alone=True),
    "precision": Part(precision, 40, alone=True),
}
