"""Stacks as jobs of Slurm, submitted by submitit as job arrays; or, for tests, as processes of this machine.

A job that reaches its time limit, or is preempted, saves the training state and is queued again by itself. Jobs do
not need the command that submitted them: whatever becomes of it, they go on, and their records are stored.
"""

import os
import secrets
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from offbench.bench.executors.executor import blocking_ctrl_c
from offbench.bench.executors.remote import Place, Seen, checked
from offbench.bench.job import Event, Job, lost
from offbench.bench.settings import Settings
from offbench.errors import UserError
from offbench.results.store import Store
from offbench.tasks.files import cache_dir

# stacks in the queue at once, about the most that Slurm takes in one array
QUEUED = 1000
# seconds before the end of a job in which it saves the training state
SAVE_S = 120
# a job is queued again this often when its time is up
REQUEUED = 1000
# seconds between two looks at the folder of the jobs; until a result must be visible on other machines
LOOK_S, VISIBLE_S = 1.0, 20.0
# seconds that a job which was told to end waits for Slurm to end it
ENDED_S = 600.0


class Slurm:
    """Runs stacks as jobs of submitit, those that are given at one time as one array, in their order."""

    def __init__(self, store: Store, settings: Settings, jobs: int):
        self._local = settings.slurm.cluster == "local"
        self.slots, self.evaluators = jobs if self._local else QUEUED, 0
        self._place, self._seen = Place.here(store, settings), Seen(store)
        self._folder = _folder(store, settings)
        self._executor = _executor(self._folder, settings, jobs)
        self._new: list[Job] = []
        # job of submitit and stack
        self._queued: list[tuple[Any, Job]] = []
        # job id -> when it was first seen to have ended without a result
        self._silent: dict[str, float] = {}
        self._settled: list[Event] = []
        self._looked, self._stopped, self._keep_logs = 0.0, False, False

    def submit(self, job: Job) -> None:
        # of what another worker trains nothing is queued
        if (event := self._seen.settled(job)) is not None:
            self._settled.append(event)
        else:
            self._new.append(job)

    def events(self, timeout: float) -> list[Event]:
        self._submit_new()
        found, self._settled = self._settled, []
        if not found:
            time.sleep(timeout)
        found += self._seen.progress()
        if time.monotonic() < self._looked + LOOK_S:
            return found
        self._looked = time.monotonic()
        results = {name for name in os.listdir(self._folder) if name.endswith("_result.pkl")}
        for pair in list(self._queued):
            if (event := self._ended(*pair, results)) is not None:
                self._queued.remove(pair)
                self._seen.forget(pair[1])
                found.append(event)
        return found

    def stop(self) -> None:
        """Jobs of Slurm go on; processes of this machine are asked to save and end."""
        self._stopped = True
        if self._local:
            for submitted, _ in self._queued:
                _signal(submitted, signal.SIGTERM)
        else:
            for _, job in self._queued:
                self._settled.append(Event(job.index, "stopped"))
            self._queued, self._keep_logs = [], True

    def close(self, timeout: float = 0.0) -> None:
        if self._local:
            end = time.monotonic() + timeout
            while time.monotonic() < end and not all(s.done() for s, _ in self._queued):
                time.sleep(0.05)
            for submitted, _ in self._queued:
                _kill(submitted)
        self._queued = []
        if not self._keep_logs:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _submit_new(self) -> None:
        if not self._new:
            return
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        jobs, self._new = self._new, []
        tasks = [_Stack(self._place, job) for job in jobs]
        # on a terminal Ctrl-C reaches every process; this one decides
        try:
            with blocking_ctrl_c():
                submitted = self._executor.submit_array(tasks)
        # what sbatch says of a wrong partition or account
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise UserError(f"executor=slurm: {' '.join(str(error).split())[-300:]}") from None
        for one, job in zip(submitted, jobs, strict=True):
            self._queued.append((one, job))
            self._seen.watch(job)
            if self._stopped and self._local:
                _signal(one, signal.SIGTERM)

    def _ended(self, submitted: Any, job: Job, results: set[str]) -> Event | None:
        """The last event of a stack; None while its job is in the queue or runs."""
        if submitted.paths.result_pickle.name in results:
            if (error := submitted.exception()) is not None:
                return self._lost(job, submitted, str(error).strip().split("\n")[-1])
            event = checked(submitted.result())
            if event.phase == "stopped" and not self._stopped:
                return self._lost(job, submitted, "it was told to end")
            return event
        over = submitted.done() if self._local else submitted.watcher.is_done(submitted.job_id)
        if not over:
            return None
        state = submitted.state
        # by hand
        if state.upper().startswith("CANCELLED"):
            return Event(job.index, "stopped", reason=f"job {submitted.job_id} was cancelled")
        # its result may not have reached this machine yet
        since = self._silent.setdefault(submitted.job_id, time.monotonic())
        if time.monotonic() < since + (LOOK_S if self._local else VISIBLE_S):
            return None
        return self._lost(job, submitted, f"it ended as {state}")

    def _lost(self, job: Job, submitted: Any, why: str) -> Event:
        self._keep_logs = True
        return lost(job, f"job {submitted.job_id}: {why} (output: {submitted.paths.stderr})")


class _Stack:
    """A stack as a job of submitit, which calls `checkpoint` before the time of the job is up."""

    def __init__(self, place: Place, job: Job):
        self._place, self._job = place, job
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> Event:
        slurm = self._place.settings.slurm
        self._place.enter(slurm.cpus)
        self._stop = stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        found: list[Event] = []
        run = lambda: found.append(self._place.run(self._job, stop=stop.is_set))
        # in a thread, so that the process can wait for it in a signal handler
        self._thread = threading.Thread(target=run, name="offbench-stack", daemon=True)
        self._thread.start()
        self._thread.join()
        # preempted or cancelled: Slurm knows whether the job is to be queued again, and ends it here
        if found[0].phase == "stopped" and slurm.cluster == "slurm":
            time.sleep(ENDED_S)
        return found[0]

    def checkpoint(self) -> Any:
        """Saves the training state; returns the job that goes on with it."""
        from submitit.helpers import DelayedSubmission

        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join(SAVE_S - 20)
        return DelayedSubmission(_Stack(self._place, self._job))


def _folder(store: Store, settings: Settings) -> Path:
    """A new folder for the files of the jobs, which only this user may read."""
    given = settings.slurm.folder
    parent = Path(given).expanduser() if given else cache_dir() / "slurm"
    folder = parent.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if folder.is_relative_to(store.root.resolve()):
        raise UserError(
            f"slurm.folder={given} lies in results={store.root}: nothing there is ever unpickled"
        )
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise UserError(f"slurm.folder={parent}: {error.strerror}") from None
    return folder


def _executor(folder: Path, settings: Settings, jobs: int) -> Any:
    """submitit's executor with the settings of the jobs."""
    import submitit

    slurm = settings.slurm
    gpus = slurm.gpus if slurm.gpus is not None else int(settings.device == "cuda")
    if slurm.cluster == "local":
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=REQUEUED)
        executor.update_parameters(
            timeout_min=slurm.time,
            signal_delay_s=SAVE_S,
            gpus_per_node=gpus,
            setup=list(slurm.setup),
        )
        return executor
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUED)
    options = {
        "job_name": "offbench",
        "partition": slurm.partition,
        "time": slurm.time,
        "cpus_per_task": slurm.cpus,
        "gpus_per_node": gpus or None,
        "mem": None if slurm.memory is None else f"{int(1024 * slurm.memory)}MB",
        "setup": list(slurm.setup) or None,
        "signal_delay_s": SAVE_S,
        "array_parallelism": jobs,
        "additional_parameters": {"requeue": True, **slurm.options},
    }
    executor.update_parameters(**{k: v for k, v in options.items() if v is not None})
    return executor


def _signal(submitted: Any, number: int) -> None:
    """Signals the process of a job of this machine, which passes it on."""
    with suppress(OSError):
        os.kill(int(submitted.job_id), number)


def _kill(submitted: Any) -> None:
    """Ends a job of this machine, and all its processes."""
    with suppress(psutil.Error):
        process = psutil.Process(int(submitted.job_id))
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()
