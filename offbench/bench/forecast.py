"""Estimates of run time, memory and disk space: from records of the same cells on such a device, else from a short
probe on this CPU, or for a GPU from a count of launches and arithmetic."""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench import devices
from offbench.bench.cells import Cell
from offbench.bench.devices import Card
from offbench.bench.probes import PROBE_UPDATES, PROBED, OfFqe, OfSources, probed, step_s
from offbench.bench.settings import monitor_plan
from offbench.results.store import Store
from offbench.tasks.environments import evaluation_env

if TYPE_CHECKING:
    from offbench.bench.stacks import Pack

PROBE_STEPS = 300
# loading, tracing, making environments
SETUP_S = 3.0
# times as many runs, or as few, of a recorded stack that a forecast is scaled from
SIMILAR = 4


class Cost(NamedTuple):
    """Estimated run time of a stack."""

    # on one process
    seconds: float
    # "records", "probe", for large stacks "probes of 8 and 32", or "launches and arithmetic" of a GPU
    basis: str
    # of the seconds, those of monitor episodes
    monitor: float = 0.0
    # of the seconds, those of all episodes, where they were estimated apart
    episodes: float = 0.0
    # of the seconds, those of fitted Q evaluation, where nothing is played
    fitted: float = 0.0
    # of the seconds, those of training and asking sources of synthetic data
    synthetic: float = 0.0


def forecast(
    packs: "Sequence[Pack]",
    store: Store,
    *,
    gpu: Card | None = None,
    precision: str = "float32",
    report: Callable[[str], None] = lambda text: None,
) -> list[Cost]:
    """The run time of each stack, on this CPU or on a GPU. Every episode is assumed to reach its time limit.

    Raises UserError where fitted Q evaluation is asked for, and the policies or data do not allow it.
    """
    recorded = _recorded(packs, store, gpu)
    training = _OfGpu(gpu, precision, store) if gpu else _OfCpu()
    fitting, sources = OfFqe(gpu), OfSources(gpu)
    steps: dict[str, float] = {}
    costs = []
    for pack in packs:
        cell, members = pack.cells[0], pack.size
        known = next((recorded[k] for c in pack.cells if (k := _recorded_as(c)) in recorded), None)
        if known is not None and 1 / SIMILAR <= members / known["pack"] <= SIMILAR:
            costs.append(_as_recorded(pack, known))
            continue
        seconds, basis = training.of(pack, report)
        if cell.task.id not in steps:
            report(f"measuring {cell.task.env}")
            steps[cell.task.id] = _step_rate(cell) if cell.task.env else float("inf")
        played = members * cell.task.max_episode_steps / steps[cell.task.id]
        monitor = _monitored(cell.protocol) * played
        episodes = cell.protocol["episodes"] * played + monitor
        fitted = fitting.of(pack, report)
        synthetic = sources.of(pack, report)
        total = SETUP_S + seconds + episodes + fitted + synthetic
        costs.append(Cost(total, basis, monitor, episodes, fitted, synthetic))
    return costs


class _OfCpu:
    """Time of training, from probes on this CPU."""

    def __init__(self) -> None:
        self.updates: dict[object, float] = {}

    def of(self, pack: "Pack", report: Callable[[str], None]) -> tuple[float, str]:
        """(seconds, what they are estimated from) of all updates of a stack."""
        from offbench.bench.stacks import program_of

        # speed depends on networks and batch, hardly on the task: one probe serves every task
        seconds = 0.0
        for size, weight in probed(pack.size):
            key = (program_of(pack.cells[0]), size)
            if key not in self.updates:
                report(f"measuring {pack.title}")
                self.updates[key] = 1 / _update_rate(pack.first(size))
            seconds += weight * self.updates[key]
        sizes = " and ".join(str(size) for size, _ in probed(pack.size))
        basis = "probe" if pack.size <= PROBED else f"probes of {sizes}"
        return pack.cells[0].n_updates * seconds, basis


class _OfGpu:
    """Time of training on a GPU, from launches and arithmetic, corrected by earlier runs there."""

    def __init__(self, gpu: Card, precision: str, store: Store):
        self.gpu, self.precision = gpu, precision
        self.corrected = _correction(store, gpu)
        self.compiled: set[object] = set()

    def of(self, pack: "Pack", report: Callable[[str], None]) -> tuple[float, str]:
        """(seconds, what they are estimated from) of all updates of a stack."""
        from offbench.bench.stacks import program_of

        report(f"counting {pack.title}")
        cell, work = pack.cells[0], devices.work_of(pack.cells[0])
        update = self.gpu.step_s(work, pack.size, self.precision) / work.minibatches
        compiling = 0.0 if program_of(cell) in self.compiled else devices.COMPILE_S
        self.compiled.add(program_of(cell))
        basis = "launches and arithmetic"
        if self.corrected != 1:
            basis += f" x {self.corrected:.2g}, as earlier runs"
        return compiling + cell.n_updates * self.corrected * update, basis


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """When the last of `jobs` processes is done, each taking the longest stack that is left."""
    free = [0.0] * max(1, jobs)
    for length in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


def _monitored(protocol: Mapping[str, Any]) -> int:
    """Monitor episodes of a seed, all evaluations together."""
    return sum(monitor_plan(protocol["monitor_at"], protocol["monitor_episodes"]).values())


def _recorded(
    packs: "Sequence[Pack]", store: Store, gpu: Card | None
) -> "dict[tuple[str, str], Mapping[str, Any]]":
    """`_recorded_as` -> the latest record on such a device."""
    if not packs or not store.records():
        return {}
    lines = store.runs(status="ok", task={pack.cells[0].task.id for pack in packs})
    return {
        (row["entry"], row["task"], *_evaluated(row)): row
        for row in lines.to_dict("records")
        if _is_on(row["device"], gpu)
    }


def _recorded_as(cell: Cell) -> tuple[Any, ...]:
    """What cells agree in whose time is scaled from each other's records."""
    own = {f"protocol.{key}": value for key, value in cell.protocol.items()}
    return cell.entry, cell.task.id, *_evaluated(own)


def _evaluated(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How runs were evaluated: nothing where they played, else by what, and its widths."""
    # a column that other runs have is nan
    by = row.get("protocol.by")
    return (by, tuple(row["protocol.fqe_hidden"])) if isinstance(by, str) else ()


def _is_on(device: str, gpu: Card | None) -> bool:
    """Whether a record's device is such a card, or without one a CPU."""
    return devices.card_of(device) == gpu if gpu else device.startswith("cpu")


def _correction(store: Store, gpu: Card) -> float:
    from offbench.bench.repeat import cell_of

    if not store.records():
        return 1.0
    rows = store.runs(status="ok").to_dict("records")
    return devices.correction(gpu, rows[::-1], lambda run_id: cell_of([store.read(run_id)]))


def _as_recorded(pack: "Pack", row: "Mapping[str, Any]") -> Cost:
    """The time of a record, scaled to updates and runs."""
    cell, share = pack.cells[0], pack.size / row["pack"]
    scale = cell.n_updates / row["n_updates"] * share
    # what is not training is the test episodes, or the evaluation
    played = max(0.0, row["wall_s"] - row["train_s"] - SETUP_S)
    if updates := cell.protocol.get("fqe_updates"):
        fitted = float(share * played * updates / row["protocol.fqe_updates"])
        training = float(scale * (row["wall_s"] - played))
        return Cost(training + fitted, "records", fitted=fitted)
    episode = share * played / max(1, row["protocol.episodes"])
    monitor = episode * _monitored(cell.protocol)
    more = 0.0 if row["protocol.monitor_at"] else monitor
    return Cost(float(row["wall_s"] * scale + more), "records", float(monitor))


def _update_rate(pack: "Pack") -> float:
    """Updates per second of the whole stack, the fastest of a few short rounds."""
    from offbench.bench.preflight import build
    from offbench.tasks.loading import load_data
    from offbench.training.engine import Engine
    from offbench.training.imperative import Imperative, ImperativeEngine
    from offbench.training.step import initial_carry, make_step, n_minibatches

    cell, seeds, values = pack.cells[0], pack.seeds, pack.values
    data, spec = load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
    method, pipeline = build(cell, data, spec)
    engine: Engine | ImperativeEngine
    if isinstance(method, Imperative):
        seen = pipeline.spec(spec)
        engine = ImperativeEngine(method, pipeline, seen, seeds, device="cpu", values=values)
    else:
        carry = initial_carry(method, pipeline.spec(spec), seeds, values=values)
        engine = Engine(make_step(method, pipeline), carry)
    k = n_minibatches(method)
    return k / step_s(engine, max(1, PROBE_UPDATES // k))


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
            total[name] += size * pack.size
    return total
