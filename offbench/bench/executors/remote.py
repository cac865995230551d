"""What the executors of clusters share: a stack in a process elsewhere, and its progress from heartbeat files."""

import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offbench.bench.job import TRAINED, Event, Job, run_job
from offbench.bench.preflight import resolve_device
from offbench.bench.settings import Settings
from offbench.errors import UserError
from offbench.results.claims import BEAT_S, Heart, claimed, workers
from offbench.results.store import Store

if TYPE_CHECKING:
    from offbench.rollout import EnvPool

# seconds between two looks at the claims
CLAIMS_S = 2.0


@dataclass(frozen=True)
class Place:
    """Where a stack runs: the folders and settings of the command, for a process that something else started."""

    store: Store
    settings: Settings
    # name of the executor, for heartbeats
    executor: str
    # working folder, import paths and OFFBENCH_* variables of the command
    folder: str
    paths: tuple[str, ...]
    variables: Mapping[str, str]

    @classmethod
    def here(cls, store: Store, settings: Settings) -> "Place":
        """That of this process, with absolute paths: other processes start in other folders."""
        root = store.root.resolve()
        return cls(
            Store(root),
            replace(settings, results=str(root)),
            settings.executor,
            os.getcwd(),
            tuple(path for path in sys.path if path),
            {k: v for k, v in os.environ.items() if k.startswith("OFFBENCH_")},
        )

    def enter(self, threads: int) -> None:
        """Makes this process like that of the command, as far as its machine has the same folders."""
        import torch

        with suppress(OSError):
            os.chdir(self.folder)
        sys.path += [path for path in self.paths if path not in sys.path]
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)
        torch.set_num_threads(threads)

    def run(
        self,
        job: Job,
        *,
        stop: Callable[[], bool],
        pools: "dict[str, EnvPool] | None" = None,
    ) -> Event:
        """Runs a stack here (`run_job`); whatever goes wrong around it is the event `lost`."""
        try:
            if not self.store.root.is_dir():
                raise UserError(
                    f"results={self.store.root}: no such folder on {socket.gethostname()}; executor="
                    f"{self.executor} needs one that all its machines see"
                )
            device = resolve_device(self.settings.device)
            with Heart(self.store.root, executor=self.executor, device=device) as heart:
                return run_job(job, self.store, self.settings, heart, pools=pools, stop=stop)
        except UserError as error:
            return Event(job.index, "lost", 1.0, error=str(error), reason=str(error), kind="user")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            return Event(job.index, "lost", 1.0, error=traceback.format_exc(), reason=reason)


def checked(event: Event) -> Event:
    """An event of another process. Raises UserError for what is wrong with the cluster or its folders."""
    if event.phase == "lost" and event.kind == "user":
        raise UserError(event.reason)
    return event


class Seen:
    """What a store's files say of stacks that run elsewhere; looks at most every few seconds."""

    def __init__(self, store: Store):
        self._store = store
        # first run of a stack -> its index
        self._watched: dict[str, int] = {}
        self._claimed: Mapping[str, str] = {}
        self._beats_at = self._claims_at = -math.inf

    def watch(self, job: Job) -> None:
        self._watched[_first(job)] = job.index

    def forget(self, job: Job) -> None:
        self._watched.pop(_first(job), None)

    def progress(self) -> list[Event]:
        """The phases of the watched stacks, from the heartbeats of their workers."""
        if not self._watched or time.monotonic() < self._beats_at + BEAT_S:
            return []
        self._beats_at = time.monotonic()
        found = []
        for stack in (w.stack for w in workers(self._store.root) if w.alive):
            index = self._watched.get(stack["runs"][0]) if stack and stack["runs"] else None
            if stack and index is not None:
                done = {"training": stack["update"] / stack["n_updates"], "evaluating": 1.0}
                phase = stack["phase"]
                found.append(Event(index, phase, TRAINED * done.get(phase, 0.0)))
        return found

    def settled(self, job: Job) -> Event | None:
        """The event of a stack that needs no process: another worker trains it, or it is recorded."""
        if time.monotonic() > self._claims_at + CLAIMS_S:
            self._claims_at, self._claimed = time.monotonic(), claimed(self._store.root)
        runs = job.pack.runs
        if any(run.run_id in self._claimed for run in runs):
            return Event(job.index, "held")
        return None if self._store.missing(runs) else Event(job.index, "recorded", 1.0)


def _first(job: Job) -> str:
    return job.pack.run_ids[0]
