"""Runs stacks on an executor: what is missing, each until it is recorded, has failed, or time is up."""

import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from offbench.bench.executors.executor import Executor, cores, gpus_of, n_evaluators, n_jobs
from offbench.bench.executors.local import Processes, Thread
from offbench.bench.job import Event, Job, may_mend, record_failure
from offbench.bench.progress import tidy
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.results.store import Store

# seconds until a stack is tried again whose runs another worker has, or whose machine failed
AGAIN_S = 2.0
# trained stacks that may wait for each evaluator
WAITING = 2
# seconds that stacks have to save their state: after Ctrl-C, after SIGTERM, which clusters follow by SIGKILL
# after 30, and when time is up
INTERRUPTED_S, TERMINATED_S, STOPPED_S = 2.5, 20.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often a stack is tried, and until when."""

    # attempts after one that failed through no fault of the method: a lost process, a full disk
    retry: int = 2
    # of time.monotonic(); then the training states are saved
    deadline: float = math.inf


class _Waiting(NamedTuple):
    at: float
    job: Job


def run_packs(
    packs: Sequence[Pack], store: Store, settings: Settings, effort: Effort = Effort()
) -> Generator[Event]:
    """Runs stacks; yields events as they happen.

    An error in one stack is recorded as failed runs with the reason and reported as an event; the others go
    on. Stacks that another process has claimed are waited for. After `effort.deadline`, and when the caller
    stops reading, the training states are saved.
    """
    waiting = [_Waiting(0.0, Job(i, p, 1, 1 + effort.retry)) for i, p in enumerate(packs)]
    running: dict[int, Job] = {}
    stopped, grace = False, INTERRUPTED_S
    executor = make_executor(settings, store, len(packs))
    try:
        while (waiting or running) and time.monotonic() < effort.deadline + STOPPED_S:
            now = time.monotonic()
            if now >= effort.deadline and not stopped:
                yield from (Event(w.job.index, "stopped") for w in waiting)
                waiting.clear()
                executor.stop()
                stopped = True
            for job in _startable(waiting, running.values(), executor):
                running[job.index] = job
                executor.submit(job)
            for event in executor.events(0.2):
                if event.final:
                    job = running.pop(event.index)
                    if event.phase == "trained":
                        if stopped:
                            event = Event(event.index, "stopped")
                        else:
                            waiting.append(_Waiting(0.0, replace(job, work="evaluation")))
                    elif (again := _again(event, job)) is not None and stopped:
                        event = Event(event.index, "stopped")
                    elif again is not None:
                        waiting.append(_Waiting(time.monotonic() + AGAIN_S, again))
                        if event.phase != "held":
                            event = Event(event.index, "again", reason=event.reason)
                    # what died could not record its failure
                    elif event.phase == "lost":
                        event = record_failure(job, event, store, settings)
                yield event
        yield from (Event(index, "stopped") for index in running)
    except BaseException as why:
        grace = INTERRUPTED_S if isinstance(why, KeyboardInterrupt) else TERMINATED_S
        executor.stop()
        raise
    finally:
        try:
            executor.close(grace)
        # and where a second Ctrl-C breaks that off
        finally:
            tidy(store)


def _startable(
    waiting: list[_Waiting], running: Iterable[Job], executor: Executor
) -> Iterator[Job]:
    """Takes what can be started from `waiting`.

    Trained stacks go to the evaluators. Where too many wait for them, and where nothing is left to be trained,
    a process that trains evaluates them, so that none is idle. The last stacks need not make way for others.
    """
    evaluating = sum(job.work == "evaluation" for job in running)
    free = executor.slots - (len([*running]) - evaluating)
    evaluators = executor.evaluators - evaluating
    ready = [w for w in waiting if w.at <= time.monotonic()]
    trained = [w for w in ready if w.job.work == "evaluation"]
    others = [w for w in ready if w.job.work != "evaluation"]
    for one in trained[: max(0, evaluators)]:
        waiting.remove(one)
        yield one.job
    trained = trained[max(0, evaluators) :]
    for _ in range(free):
        if not (trained or others):
            return
        late = len(trained) > WAITING * executor.evaluators
        one = trained.pop(0) if trained and (late or not others) else others.pop(0)
        waiting.remove(one)
        follows = executor.evaluators and any(w.job.work != "evaluation" for w in waiting)
        evaluate_here = one.job.work == "evaluation" or not follows
        yield replace(one.job, work="all" if evaluate_here else "training")


def make_executor(settings: Settings, store: Store, stacks: int) -> Executor:
    """The executor of the settings, for a number of stacks."""
    jobs = n_jobs(settings, stacks)
    if settings.executor == "ray":
        from offbench.bench.executors.ray import Ray

        return Ray(store, settings, jobs, stacks)
    if settings.executor == "slurm":
        from offbench.bench.executors.slurm import Slurm

        return Slurm(store, settings, jobs)
    gpus = gpus_of(settings)
    evaluators = n_evaluators(settings, jobs, stacks, cores=cores(), on_gpus=bool(gpus))
    if jobs == 1 and not evaluators:
        return Thread(store, settings)
    return Processes(store, settings, jobs, evaluators)


def _again(event: Event, job: Job) -> Job | None:
    """The stack, if it is to be tried again."""
    if event.phase == "held":
        return job
    if not may_mend(event, job):
        return None
    # the trained state may be what was wrong
    work = "all" if event.phase == "failed" else job.work
    return replace(job, attempt=job.attempt + 1, work=work)
