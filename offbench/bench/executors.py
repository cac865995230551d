"""Runs stacks of runs (`Pack`), in this process or in several."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench.preflight import resolve_device
from offbench.bench.recording import Outcome, provenance_of
from offbench.bench.runner import run_pack
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.errors import UserError
from offbench.results.store import Store

if TYPE_CHECKING:
    from offbench.rollout import EnvPool


@dataclass(frozen=True)
class Event:
    """Progress of one stack: a phase and its fraction, the outcomes, or an error."""

    index: int
    phase: str
    fraction: float = 0.0
    outcomes: tuple[Outcome, ...] = ()
    # one line for a UserError, a traceback for any other
    error: str | None = None


def n_jobs(settings: Settings, packs: int) -> int:
    """Number of worker processes: `jobs`, or for auto one per core, one in all on a GPU."""
    if settings.jobs != "auto":
        return min(int(settings.jobs), max(packs, 1))
    if resolve_device(settings.device).startswith("cuda"):
        return 1
    return max(1, min(_cores(), packs))


def _cores() -> int:
    """Cores this process may use; all of the machine's on systems without CPU affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_packs(packs: Sequence[Pack], store: Store, settings: Settings) -> Iterator[Event]:
    """Runs stacks on `settings.jobs` processes; yields events as they happen.

    An error in one stack is recorded as failed runs with the reason and reported as an event; the
    others go on. A process reuses its environments for the next stack.
    """
    jobs = n_jobs(settings, len(packs))
    if jobs == 1:
        yield from _run_here(packs, store, settings)
    else:
        yield from _run_processes(packs, store, settings, jobs)


def _run_here(packs: Sequence[Pack], store: Store, settings: Settings) -> Iterator[Event]:
    """Runs in a thread of this process, so that the caller can show progress."""
    import queue

    events: queue.Queue[Event | None] = queue.Queue()
    pools: dict[str, EnvPool] = {}

    broken: list[BaseException] = []

    def work() -> None:
        try:
            for index, pack in enumerate(packs):
                events.put(_guarded(index, pack, store, settings, pools, events.put))
        # raised again in the caller's thread
        except BaseException as error:
            broken.append(error)
        events.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (event := events.get()) is not None:
        yield event
    if broken:
        raise broken[0]


def _guarded(
    index: int,
    pack: Pack,
    store: Store,
    settings: Settings,
    pools: "dict[str, EnvPool]",
    send: Callable[[Event], None],
) -> Event:
    """Runs one stack; an error becomes failed records and an event."""
    start = time.perf_counter()
    report = lambda phase, f: send(Event(index, phase, f))
    try:
        outcomes = run_pack(pack, store, settings, pools=pools, report=report)
        return Event(index, "done", 1.0, outcomes=tuple(outcomes))
    except UserError as error:
        reason, text = str(error), str(error)
    except Exception as error:
        reason, text = f"{type(error).__name__}: {error}".split("\n")[0], traceback.format_exc()
    size, wall_s = len(pack.members), time.perf_counter() - start
    for cell, run in pack.members:
        if not store.has(run.run_id):
            facts = provenance_of(cell, settings, "cpu", settings.engine, size, wall_s, 0.0, {})
            try:
                store.fail(run, reason, facts)
            # a full disk takes no record of that, either
            except UserError as error:
                text = text if str(error) == text else f"{text.rstrip()}; {error}"
                break
    return Event(index, "failed", 1.0, error=text)


# a worker process's environments and event queue; set once, in the worker
_worker: dict[str, Any] = {}


def _start_worker(queue: Any, threads: int) -> None:
    import torch

    # the parent process handles interrupts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _worker.update(queue=queue, pools={})


def _work(index: int, pack: Pack, root: Path, settings: Settings) -> Event:
    return _guarded(index, pack, Store(root), settings, _worker["pools"], _worker["queue"].put)


def _run_processes(
    packs: Sequence[Pack], store: Store, settings: Settings, jobs: int
) -> Iterator[Event]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        pool = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_start_worker, initargs=(queue, 1)
        )
        try:
            futures: set[Future[Event]] = {
                pool.submit(_work, i, pack, store.root, settings) for i, pack in enumerate(packs)
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
