"""Executors of this machine: a thread for one stack at a time, processes for several."""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from offbench.bench.executors.executor import blocking_ctrl_c, gpus_of
from offbench.bench.job import Event, Job, lost, run_job
from offbench.bench.preflight import resolve_device
from offbench.bench.settings import Settings
from offbench.errors import UserError
from offbench.results.claims import Heart
from offbench.results.store import Store

if TYPE_CHECKING:
    from offbench.rollout import EnvPool

# a process whose parent has died ends after this many seconds even if it cannot save its state
ORPHANED_S = 20.0
THREAD = "offbench-stack"


class Thread:
    """Runs one stack at a time in a thread of this process, so that the caller can show progress."""

    slots, evaluators = 1, 0

    def __init__(self, store: Store, settings: Settings):
        self._store, self._settings = store, settings
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._events: queue.Queue[Event | BaseException] = queue.Queue()
        self._stop = threading.Event()
        # one that hangs must not keep the process
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def events(self, timeout: float) -> list[Event]:
        found: list[Event] = []
        with suppress(queue.Empty):
            while True:
                event = self._events.get(timeout=0 if found else timeout)
                # a defect of the bookkeeping
                if isinstance(event, BaseException):
                    raise event
                found.append(event)
        return found

    def stop(self) -> None:
        self._stop.set()

    def close(self, timeout: float = 0.0) -> None:
        self._jobs.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        pools: dict[str, EnvPool] = {}
        device = resolve_device(self._settings.device)
        try:
            with Heart(self._store.root, device=device) as heart:
                while (job := self._jobs.get()) is not None:
                    event = run_job(
                        job,
                        self._store,
                        self._settings,
                        heart,
                        pools=pools,
                        send=self._events.put,
                        stop=self._stop.is_set,
                    )
                    self._events.put(event)
        # raised again in the caller's thread
        except BaseException as error:
            self._events.put(error)


class Processes:
    """Runs stacks in processes of their own, each with its environments, dealt over the GPUs.

    Evaluators are processes of the same kind, without a GPU. A process ends when its parent does, whatever
    ended that. A stack whose process dies is `lost`, and another process takes its place.
    """

    def __init__(self, store: Store, settings: Settings, slots: int, evaluators: int = 0):
        self.slots, self.evaluators = slots, evaluators
        self._store, self._settings = store, settings
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        gpus = gpus_of(settings)
        self._devices = [gpus[i % len(gpus)] if gpus else None for i in range(slots)]
        self._stopped = False
        _say_nothing_of_semaphores()

    def submit(self, job: Job) -> None:
        evaluates = job.work == "evaluation"
        process = next((p for p in self._idle if p.evaluates == evaluates), None)
        if process is not None:
            self._idle.remove(process)
        else:
            settings, device = self._settings, "cpu" if evaluates else self._devices.pop()
            if device is not None:
                settings = replace(settings, device=device)
            process = _Process(self._store, settings, device, evaluates)
        self._busy.append(process)
        process.start(job)
        if self._stopped:
            process.stop()

    def events(self, timeout: float) -> list[Event]:
        found: list[Event] = []
        watched = [x for p in self._busy for x in (p.pipe, p.process.sentinel)]
        if not watched:
            time.sleep(timeout)
        elif wait(watched, timeout):
            for process in list(self._busy):
                found += process.events()
                if process.job is None:
                    self._busy.remove(process)
                    if process.alive:
                        self._idle.append(process)
                    elif not process.evaluates:
                        self._devices.append(process.device)
        return found

    def stop(self) -> None:
        self._stopped = True
        for process in self._busy:
            process.stop()

    def close(self, timeout: float = 0.0) -> None:
        processes, self._busy, self._idle = self._busy + self._idle, [], []
        for process in processes:
            process.pipe.close()
        end = time.monotonic() + timeout
        try:
            for process in processes:
                process.process.join(max(0.0, end - time.monotonic()))
        # and where a second Ctrl-C ends the wait
        finally:
            for process in processes:
                process.process.kill()
                process.process.join()


class _Process:
    """A worker process as its parent sees it."""

    def __init__(self, store: Store, settings: Settings, device: str | None, evaluates: bool):
        context = multiprocessing.get_context("spawn")
        self.device, self.evaluates, self.alive = device, evaluates, True
        self.job: Job | None = None
        self.pipe, inner = context.Pipe()
        self.process = context.Process(target=_work, args=(inner, store, settings), name=THREAD)
        with blocking_ctrl_c():
            self.process.start()
        inner.close()

    def start(self, job: Job) -> None:
        self.job = job
        # of a process that has just died, its stack is lost
        with suppress(OSError):
            self.pipe.send(job)

    def stop(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)

    def events(self) -> list[Event]:
        found: list[Event] = []
        # before what it has said last is read; a process of its own may keep its end of the pipe open
        dead = not self.process.is_alive()
        try:
            while self.pipe.poll():
                found.append(self.pipe.recv())
                if found[-1].final:
                    self.job = None
            if dead:
                raise EOFError
        except (EOFError, OSError):
            self.process.join()
            self.alive = False
            if self.job is not None:
                job, self.job = self.job, None
                found.append(lost(job, _death(self.process.exitcode)))
        return found


def _say_nothing_of_semaphores() -> None:
    """Python warns of those that a killed process had, in a process of its own that knows only options."""
    if (option := "ignore:resource_tracker:UserWarning") not in sys.warnoptions:
        sys.warnoptions.append(option)


def _death(code: int | None) -> str:
    """How a worker process ended, in words."""
    if code is None or code >= 0:
        return f"its worker process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"its worker process was killed by {name}{hint}"


def _work(pipe: Connection, store: Store, settings: Settings) -> None:
    """The life of a worker process: stacks from the pipe, until it is closed."""
    import torch

    # Ctrl-C and the end of a terminal reach every process; the parent decides
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(1)
    jobs: queue.Queue[Job | None] = queue.Queue()
    threading.Thread(target=_listen, args=(pipe, jobs, stop), daemon=True).start()
    pools: dict[str, EnvPool] = {}

    def send(event: Event) -> None:
        # the parent has died
        with suppress(OSError):
            pipe.send(event)

    device, heart = resolve_device(settings.device), None
    options: dict[str, Any] = {"pools": pools, "send": send, "stop": stop.is_set}
    while (job := jobs.get()) is not None:
        try:
            heart = heart or Heart(store.root, device=device)
        # a full disk; the stack may be tried again
        except UserError as error:
            why = str(error)
            send(Event(job.index, "failed", 1.0, error=why, reason=why, kind="infrastructure"))
            continue
        send(run_job(job, store, settings, heart, **options))
    if heart:
        heart.close()
    # environments and loggers of other libraries must not keep the process
    sys.stdout.flush()
    os._exit(0)


def _listen(pipe: Connection, jobs: "queue.Queue[Job | None]", stop: threading.Event) -> None:
    """Takes stacks from the pipe, and the request to stop (None); its end asks to stop and leave."""
    try:
        while True:
            if (job := pipe.recv()) is None:
                stop.set()
            else:
                jobs.put(job)
    except (EOFError, OSError):
        stop.set()
        jobs.put(None)
    time.sleep(ORPHANED_S)
    os._exit(1)
