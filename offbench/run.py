"""Runs cells: data -> stacked training -> evaluation -> records; many cells on several processes.

A cell is executed whole in one process. Its records are written when it ends, so whatever
interrupts a benchmark costs the cells in flight and nothing else; the next run makes what is missing.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench import provenance
from offbench.config import Cell, Settings, locate
from offbench.errors import UserError
from offbench.records import Provenance, Store
from offbench.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from offbench.data import ReplayData
    from offbench.evaluation import EnvPool
    from offbench.pipeline import Pipeline

CURVE_POINTS = 20  # how often metrics are read and progress is reported


class Outcome(NamedTuple):
    cell: Cell
    scores: dict[int, float]  # seed -> mean test score
    failed: dict[int, str]  # seed -> reason
    wall_s: float


Report = Callable[[str, float], None]  # phase, fraction of the cell done


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells with the seeds that have no record yet; cells with none left are dropped."""
    cells = list(cells)
    absent = {run.run_id for run in store.missing([run for cell in cells for run in cell.runs()])}
    left = [
        replace(cell, seeds=tuple(r.seed for r in cell.runs() if r.run_id in absent))
        for cell in cells
    ]
    return [cell for cell in left if cell.seeds]


def fetched(
    cells: Iterable[Cell], *, report: Callable[[str], None] = lambda text: None
) -> tuple[Cell, ...]:
    """The cells with their data here: downloaded, and their sha256 part of the run's identity."""
    ready: dict[str, Task] = {}
    for cell in (cells := tuple(cells)):
        if cell.task.id not in ready:
            report(f"fetching {cell.task.id}")
            ready[cell.task.id] = cell.task.ready()
    return tuple(replace(cell, task=ready[cell.task.id]) for cell in cells)


def build(cell: Cell, data: "ReplayData") -> "tuple[Any, Pipeline]":
    """(method, pipeline) of a cell on its task's data. Raises UserError where they do not fit."""
    from offbench.pipeline import make_pipeline

    view, sampler = dict(cell.pipeline["view"]), dict(cell.pipeline["sampler"])
    view_class, sampler_target = locate(view.pop("target")), sampler.pop("target")
    pipeline = make_pipeline(
        data,
        view=view_class(**view, gamma=cell.pipeline["gamma"]),
        weights=[partial(locate(sampler_target), **sampler)] if sampler_target else [],
        transforms=cell.pipeline["transforms"],
        batch_size=cell.pipeline["batch_size"],
    )
    return locate(cell.target)(**cell.hparams), pipeline


def preflight(cells: Sequence[Cell], *, report: Callable[[str], None] = lambda text: None) -> None:
    """Everything that can be known to be wrong before training: data, environment, composition.

    Raises UserError for the first mistake; writes nothing.
    """
    from offbench.evaluation import EnvPool
    from offbench.training import check_budget

    for task in {cell.task.id: cell.task for cell in cells}.values():
        report(f"checking {task.id}")
        data, spec = task.load()
        pool = EnvPool(task)
        pool.check(spec)
        pool.close()
        for cell in (c for c in cells if c.task.id == task.id):
            method, _ = build(cell, data)
            check_budget(method, cell.n_updates)


def resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device}: no CUDA device is available; use device=cpu")
    try:
        return str(torch.device(device))
    except RuntimeError:
        raise UserError(f"device={device!r} is not a device; use auto, cpu or cuda") from None


def run_cell(
    cell: Cell,
    store: Store,
    settings: Settings,
    *,
    pools: "dict[str, EnvPool] | None" = None,
    report: Report | None = None,
) -> Outcome:
    """Trains every seed of the cell as one stack, evaluates the last update, and records the rows."""
    from offbench.engine import n_minibatches
    from offbench.evaluation import EnvPool, evaluate, make_policy
    from offbench.sinks import open_sink
    from offbench.training import diverged, train

    start = time.perf_counter()
    report = report or (lambda phase, fraction: None)
    pools = {} if pools is None else pools
    device = resolve_device(settings.device)
    report("loading", 0.0)
    data, spec = cell.task.load(device, gamma=cell.pipeline["gamma"])
    method, pipeline = build(cell, data)
    pool = pools.setdefault(cell.task.id, EnvPool(cell.task))
    pool.check(spec)
    policy = make_policy(method, pipeline)
    n, seeds = cell.n_updates, cell.seeds
    k = n_minibatches(method)
    monitor = {max(k, round(f * n) // k * k) for f in cell.protocol["monitor_at"]}
    stops = sorted({n * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)} | monitor)
    look = partial(
        evaluate, policy, task=cell.task, seeds=seeds, n_envs=cell.protocol["envs"], pool=pool
    )
    frames: list[pd.DataFrame] = []
    curves: list[dict[str, Any]] = []
    train_s, mark = 0.0, time.perf_counter()
    with open_sink(settings.sink, cell, settings.results) as sink:
        for point in train(
            method, pipeline, spec, seeds=seeds, n_updates=n, stop_at=stops, backend=settings.engine
        ):
            curves.append(
                {"update": point.update, **{k: v.tolist() for k, v in point.metrics.items()}}
            )
            train_s += time.perf_counter() - mark
            sink.metrics(point.update, curves[-1])
            report("training", 0.9 * point.update / n)
            if point.update in monitor:
                frames.append(
                    look(
                        point.state,
                        episodes=cell.protocol["monitor_episodes"],
                        stream="monitor",
                        update=point.update,
                    )
                )
                sink.episodes(frames[-1])
            mark = time.perf_counter()
        report("evaluating", 0.9)
        broken = diverged(point.state).tolist()
        finite = [i for i, bad in enumerate(broken) if not bad]
        if finite:
            state = point.state if len(finite) == len(seeds) else _select(point.state, finite)
            test = evaluate(
                policy, state, cell.task, seeds=[seeds[i] for i in finite], episodes=cell.protocol["episodes"],
                stream="test", update=n, n_envs=cell.protocol["envs"], pool=pool,
            )  # fmt: skip
            frames.append(test)
            sink.episodes(test)
    wall_s = time.perf_counter() - start
    made = _provenance(cell, settings, device, wall_s, train_s)
    scores, failed = {}, {}
    for i, run in enumerate(cell.runs()):
        if broken[i]:
            failed[run.seed] = f"a parameter is not finite after {n} updates"
            store.fail(run, failed[run.seed], made, status="diverged")
            continue
        rows = [f[f["seed"] == run.seed] for f in frames]
        store.append(run, _concat(rows), made, _curve_of(curves, i))
        scores[run.seed] = float(rows[-1]["score"].mean())
    report("done", 1.0)
    return Outcome(cell, scores, failed, wall_s)


def _select(state: Any, rows: list[int]) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda x: x[rows], state)


def _concat(frames: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


def _curve_of(curves: list[dict[str, Any]], i: int) -> dict[str, list[float]]:
    names = [k for k in curves[0] if k != "update"]
    return {
        "update": [c["update"] for c in curves],
        **{k: [c[k][i] for c in curves] for k in names},
    }


def _provenance(
    cell: Cell, settings: Settings, device: str, wall_s: float, train_s: float
) -> Provenance:
    commit, dirty = provenance.commit()
    from offbench.engine import choose_backend

    return Provenance(
        entry=cell.entry,
        commit=commit,
        dirty=dirty,
        versions=provenance.versions(),
        device=provenance.device_name(device),
        backend=choose_backend(settings.engine, device),
        precision="float32",
        pack=len(cell.seeds),
        wall_s=round(wall_s, 3),
        train_s=round(train_s, 3),
        tuning=cell.tuning,
        created=provenance.now(),
        overrides={k: v for k, v in cell.overrides.items() if v is not None},
        host=provenance.host(),
    )


# --- many cells -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """What happened to one cell: a phase and its fraction, an outcome, or an error."""

    index: int
    phase: str
    fraction: float = 0.0
    outcome: Outcome | None = None
    error: str | None = None  # one line for a user's mistake, a traceback for a defect


def n_jobs(settings: Settings, cells: int) -> int:
    if settings.jobs != "auto":
        return min(int(settings.jobs), max(cells, 1))
    if resolve_device(settings.device).startswith("cuda"):
        return 1
    return max(
        1,
        min(
            os.process_cpu_count()
            if hasattr(os, "process_cpu_count")
            else len(os.sched_getaffinity(0)),
            cells,
        ),
    )


def run_cells(cells: Sequence[Cell], store: Store, settings: Settings) -> Iterator[Event]:
    """Runs the cells on `settings.jobs` processes; yields what happens as it happens.

    An error in one cell is recorded as a failed run with its reason and reported as an event; the
    other cells go on. Environments and the interpreter are kept between the cells of a process.
    """
    jobs = n_jobs(settings, len(cells))
    if jobs == 1:
        yield from _run_here(cells, store, settings)
    else:
        yield from _run_processes(cells, store, settings, jobs)


def _run_here(cells: Sequence[Cell], store: Store, settings: Settings) -> Iterator[Event]:
    """In this process, in a thread beside the caller, so that progress can be shown."""
    import queue
    import threading

    events: queue.Queue[Event | None] = queue.Queue()
    pools: dict[str, EnvPool] = {}

    def work() -> None:
        for index, cell in enumerate(cells):
            events.put(_guarded(index, cell, store, settings, pools, events.put))
        events.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (event := events.get()) is not None:
        yield event


def _guarded(
    index: int,
    cell: Cell,
    store: Store,
    settings: Settings,
    pools: "dict[str, EnvPool]",
    send: Callable[[Event], None],
) -> Event:
    """One cell; what goes wrong becomes a record and an event."""
    start = time.perf_counter()
    try:
        outcome = run_cell(
            cell, store, settings, pools=pools, report=lambda phase, f: send(Event(index, phase, f))
        )
        return Event(index, "done", 1.0, outcome=outcome)
    except UserError as error:
        reason, text = str(error), str(error)
    except Exception as error:
        reason, text = f"{type(error).__name__}: {error}".split("\n")[0], traceback.format_exc()
    made = _provenance(cell, settings, "cpu", time.perf_counter() - start, 0.0)
    for run in cell.runs():
        if not store.has(run.run_id):
            store.fail(run, reason, made)
    return Event(index, "failed", 1.0, error=text)


_worker: dict[
    str, Any
] = {}  # a worker process's environments and event queue; set once, in the worker


def _start_worker(queue: Any, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)
    _worker.update(queue=queue, pools={})


def _work(index: int, cell: Cell, root: Path, settings: Settings) -> Event:
    return _guarded(index, cell, Store(root), settings, _worker["pools"], _worker["queue"].put)


def _run_processes(
    cells: Sequence[Cell], store: Store, settings: Settings, jobs: int
) -> Iterator[Event]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        pool = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_start_worker, initargs=(queue, 1)
        )
        try:
            futures: set[Future[Event]] = {
                pool.submit(_work, i, cell, store.root, settings) for i, cell in enumerate(cells)
            }
            while futures:
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    yield queue.get()
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in (pool._processes or {}).values():
                process.terminate()
