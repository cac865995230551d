"""Estimates of run time, memory and disk space: from records of the same cells, else from a short probe."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench.cells import Cell
from offbench.bench.settings import monitor_plan
from offbench.results.store import Store
from offbench.tasks.environments import evaluation_env

if TYPE_CHECKING:
    import pandas as pd

    from offbench.bench.stacks import Pack

PROBE_UPDATES, PROBE_ROUNDS = 60, 3
PROBE_STEPS = 300
# loading, tracing, making environments
SETUP_S = 3.0


class Cost(NamedTuple):
    """Estimated run time of a cell."""

    # on one process
    seconds: float
    basis: str  # "records" or "probe"
    # of the seconds, those of monitor episodes
    monitor: float = 0.0


def forecast(
    cells: Sequence[Cell], store: Store, *, report: Callable[[str], None] = lambda text: None
) -> list[Cost]:
    """The run time of each cell. Every episode is assumed to reach its time limit."""
    records = store.runs(status="ok") if cells else None
    rates: dict[object, float] = {}
    costs = []
    for cell in cells:
        known = _recorded(cell, records)
        if known is not None:
            costs.append(known)
            continue
        # speed depends on networks and batch, hardly on the task: one probe serves every task
        key = (cell.target, str(cell.hparams), str(cell.pipeline), len(cell.seeds))
        if key not in rates:
            report(f"measuring {cell.entry}")
            rates[key] = _update_rate(cell)
        if cell.task.id not in rates:
            report(f"measuring {cell.task.env}")
            rates[cell.task.id] = _step_rate(cell) if cell.task.env else float("inf")
        played = len(cell.seeds) * cell.task.max_episode_steps / rates[cell.task.id]
        monitor = _monitored(cell.protocol) * played
        seconds = SETUP_S + cell.n_updates / rates[key] + cell.protocol["episodes"] * played
        costs.append(Cost(seconds + monitor, "probe", monitor))
    return costs


def _monitored(protocol: Mapping[str, Any]) -> int:
    """Monitor episodes of a seed, all evaluations together."""
    return sum(monitor_plan(protocol["monitor_at"], protocol["monitor_episodes"]).values())


def _recorded(cell: Cell, records: "pd.DataFrame | None") -> Cost | None:
    """The latest record of the same entry and task, scaled to updates and seeds."""
    if records is None or records.empty:
        return None
    same = records[(records["entry"] == cell.entry) & (records["task"] == cell.task.id)]
    if same.empty:
        return None
    row = same.iloc[-1]
    seeds = len(cell.seeds) / row["pack"]
    scale = cell.n_updates / row["n_updates"] * seeds
    # what is not training is the test episodes
    played = max(0.0, row["wall_s"] - row["train_s"] - SETUP_S)
    episode = seeds * played / max(1, row["protocol.episodes"])
    monitor = episode * _monitored(cell.protocol)
    more = 0.0 if row["protocol.monitor_at"] else monitor
    return Cost(float(row["wall_s"] * scale + more), "records", float(monitor))


def _update_rate(cell: Cell) -> float:
    """Updates per second of the whole stack, the fastest of a few short rounds."""
    import torch

    from offbench.bench.preflight import build
    from offbench.tasks.loading import load_data
    from offbench.training.engine import Engine
    from offbench.training.imperative import Imperative, ImperativeEngine
    from offbench.training.step import initial_carry, make_step, n_minibatches

    data, spec = load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
    method, pipeline = build(cell, data, spec)
    engine: Engine | ImperativeEngine
    if isinstance(method, Imperative):
        engine = ImperativeEngine(method, pipeline, pipeline.spec(spec), cell.seeds, device="cpu")
    else:
        carry = initial_carry(method, pipeline.spec(spec), cell.seeds)
        engine = Engine(make_step(method, pipeline), carry)
    engine.run(1)
    threads, best = torch.get_num_threads(), float("inf")
    # one thread, as in a worker
    torch.set_num_threads(1)
    # one step first: an update of large networks takes seconds
    steps = 1
    for _ in range(PROBE_ROUNDS):
        start = time.perf_counter()
        engine.run(steps)
        took = time.perf_counter() - start
        best = min(best, took / steps)
        if took > 1:
            break
        steps = max(1, PROBE_UPDATES // n_minibatches(method))
    torch.set_num_threads(threads)
    return n_minibatches(method) / best


def _step_rate(cell: Cell) -> float:
    """Environment steps per second, with random actions."""
    env = evaluation_env(cell.task)
    env.action_space.seed(0)
    env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(PROBE_STEPS):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset(seed=0)
    rate = PROBE_STEPS / (time.perf_counter() - start)
    env.close()
    return rate


def stack_bytes(pack: "Pack") -> int:
    """Bytes of device memory of a stack in training, without the data: states and live tensors."""
    from offbench.bench.preflight import build
    from offbench.tasks.loading import load_data
    from offbench.training.engine import peak_bytes
    from offbench.training.imperative import Imperative
    from offbench.training.step import initial_carry, make_step

    cell = pack.cells[0]
    data, spec = load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
    method, pipeline = build(cell, data, spec)
    seeds = [run.seed for _, run in pack.members]
    if isinstance(method, Imperative):
        return method.bytes(pipeline.spec(spec)) * len(seeds)
    carry = initial_carry(method, pipeline.spec(spec), seeds, values=pack.values)
    return peak_bytes(make_step(method, pipeline), carry)


def kept_bytes(packs: "Sequence[Pack]") -> dict[str, int]:
    """Bytes on disk of the kept files of all runs, for each choice of `keep`."""
    from offbench.bench import kept
    from offbench.bench.preflight import build_method, build_view
    from offbench.bench.stacks import program_of
    from offbench.tasks.loading import load_data

    specs, known = {}, {}
    total = {"none": 0, "policy": 0, "state": 0}
    for pack in packs:
        cell = pack.cells[0]
        if cell.task.id not in specs:
            specs[cell.task.id] = load_data(cell.task, defects="ignore")[1]
        key = (cell.task.id, *program_of(cell))
        if key not in known:
            seen = build_view(cell).spec(specs[cell.task.id])
            known[key] = kept.sizes(build_method(cell), seen)
        for name, size in known[key].items():
            total[name] += size * len(pack.members)
    return total
