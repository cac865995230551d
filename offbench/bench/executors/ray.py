"""Stacks on a Ray cluster: actors, each with its share of a machine, that run one stack after another."""

import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from offbench.bench.executors.executor import cores, gpus_of, is_here, n_evaluators
from offbench.bench.executors.remote import Place, Seen, checked
from offbench.bench.job import Event, Job, lost
from offbench.bench.settings import Settings
from offbench.errors import UserError, in_one_line
from offbench.results.store import Store

if TYPE_CHECKING:
    from offbench.rollout import EnvPool

# bytes of the object store, about the least that Ray takes: what is sent are stacks and events
OBJECT_STORE = 80 * 2**20
# seconds in which a worker that Ray ends saves the state of its stack
LEAVING_S = 20.0


class Ray:
    """Runs stacks as actors of a Ray cluster: that of `ray.address`, or one of this machine for this command.

    A stack whose actor dies is `lost`, and another actor takes its place. Evaluators are actors of one processor.
    """

    def __init__(self, store: Store, settings: Settings, jobs: int, stacks: int):
        if here := is_here(settings):
            _prepare()
        import ray

        self._ray, self._own = ray, not ray.is_initialized()
        self._place, self._seen = Place.here(store, settings), Seen(store)
        # logs of a cluster of this machine
        self._folder: str | None = None
        # whether they evaluate -> actors
        self._idle: dict[bool, list[Any]] = {False: [], True: []}
        # result that is waited for -> its actor and stack
        self._busy: dict[Any, tuple[Any, Job]] = {}
        self._stopped = False
        try:
            if self._own:
                self._connect(settings, jobs, stacks, here)
            self._share(settings, jobs, stacks)
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        idle = self._idle[evaluates := job.work == "evaluation"]
        actor = idle.pop() if idle else self._actor(evaluates)
        self._busy[actor.run.remote(job)] = actor, job
        self._seen.watch(job)
        if self._stopped:
            actor.halt.remote()

    def events(self, timeout: float) -> list[Event]:
        found = self._seen.progress()
        if not self._busy:
            time.sleep(timeout)
            return found
        ready, _ = self._ray.wait(list(self._busy), timeout=timeout)
        if ready:
            ready, _ = self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        return found + [self._ended(result) for result in ready]

    def stop(self) -> None:
        self._stopped = True
        for actor, _ in self._busy.values():
            actor.halt.remote()

    def close(self, timeout: float = 0.0) -> None:
        if self._busy and timeout:
            self._ray.wait(list(self._busy), num_returns=len(self._busy), timeout=timeout)
        for actor in [
            *self._idle[False],
            *self._idle[True],
            *(one for one, _ in self._busy.values()),
        ]:
            self._ray.kill(actor)
        self._idle, self._busy = {False: [], True: []}, {}
        if self._own:
            self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _ended(self, result: Any) -> Event:
        """The last event of a stack; its actor waits for another one, or has died."""
        actor, job = self._busy.pop(result)
        self._seen.forget(job)
        try:
            event = checked(self._ray.get(result))
            # nobody here asked it to: its machine is taken away
            if event.phase == "stopped" and not self._stopped:
                event = lost(job, "its Ray worker was asked to end")
        except self._ray.exceptions.RayError as error:
            words = str(error).strip().split("\n")[0]
            event = lost(job, f"its Ray worker ended: {type(error).__name__}: {words}")
        if event.phase == "lost":
            self._ray.kill(actor)
        else:
            self._idle[job.work == "evaluation"].append(actor)
        return event

    def _actor(self, evaluates: bool) -> Any:
        place, cpus, gpus = self._place, self._cpus, self._gpus
        if evaluates:
            place = replace(place, settings=replace(place.settings, device="cpu"))
            cpus, gpus = 1.0, 0.0
        # two threads: a stack runs in one, the other takes the request to stop
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 2}
        remote = self._ray.remote(_Worker).options(max_restarts=0, **options)
        return remote.remote(place, max(1, int(cpus)))

    def _connect(self, settings: Settings, jobs: int, stacks: int, here: bool) -> None:
        """Joins the cluster, or starts one of this machine."""
        given = settings.ray
        options: dict[str, Any] = {"address": given.address}
        if here:
            # the paths of sockets below it must be short
            self._folder = tempfile.mkdtemp(
                prefix="offbench-ray-", dir="/tmp" if os.name == "posix" else None
            )
            on_gpus = bool(gpus_of(settings))
            beside = n_evaluators(settings, jobs, stacks, cores=cores(), on_gpus=on_gpus)
            options = {
                "address": "local",
                "num_cpus": math.ceil(jobs * given.cpus) + beside,
                "num_gpus": 0 if settings.device == "cpu" else None,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": self._folder,
            }
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            words = in_one_line(error)[:200]
            what = "a Ray cluster of this machine" if here else f"ray.address={given.address}"
            raise UserError(f"{what} cannot be reached: {words}") from None
        finally:
            # Ray's own handler ends the process without a word to the stacks
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)

    def _share(self, settings: Settings, jobs: int, stacks: int) -> None:
        """Processors and GPUs of an actor, how many stacks run at once, and how many are evaluated beside them."""
        there = self._ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0) if settings.device != "cpu" else 0
        self._cpus, share = settings.ray.cpus, settings.ray.gpus
        if share is None:
            k = 1 if settings.jobs == "auto" else math.ceil(jobs / max(gpus, 1))
            share = 1 / k if gpus else 0
        self._gpus = share
        fit = [cpus / self._cpus, gpus / share] if share else [cpus / self._cpus]
        self.slots = min(jobs, int(min(fit) + 1e-6))
        if self.slots < 1:
            raise UserError(
                f"ray.cpus={self._cpus:g} and {share:g} GPUs for a stack: the Ray cluster has {cpus:g} CPUs"
                f" and {there.get('GPU', 0):g} GPUs"
            )
        # one that finds no processor would wait for ever
        left = int(cpus - self.slots * self._cpus + 1e-6)
        beside = n_evaluators(
            settings, self.slots, stacks, cores=left + self.slots, on_gpus=bool(share)
        )
        self.evaluators = min(beside, left)


def _prepare() -> None:
    """Sets variables that Ray reads as it is imported, for a cluster that listens on loopback only, with a token of
    its own, and reports nothing."""
    if "ray" in sys.modules:
        return
    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray would write one to ~/.ray
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in variables.items():
        os.environ.setdefault(name, value)


class _Worker:
    """A process of the cluster: runs stacks one after another."""

    def __init__(self, place: Place, threads: int):
        place.enter(threads)
        self._place = place
        self._stop, self._free = threading.Event(), threading.Event()
        self._free.set()
        self._pools: dict[str, EnvPool] = {}
        # Ray ends its processes by it, on a machine that is taken away
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, lambda *_: self._leave())

    def run(self, job: Job) -> Event:
        self._free.clear()
        try:
            return self._place.run(job, stop=self._stop.is_set, pools=self._pools)
        finally:
            self._free.set()

    def halt(self) -> None:
        """Asks the stack to save its training state and end."""
        self._stop.set()

    def _leave(self) -> None:
        self._stop.set()
        threading.Thread(target=self._exit, daemon=True).start()

    def _exit(self) -> None:
        # the result is sent first
        if not self._free.is_set() and self._free.wait(LEAVING_S):
            time.sleep(0.5)
        sys.stdout.flush()
        os._exit(1)
