"""One stack of runs as an executor runs it: claimed, trained, recorded; whatever happens becomes an `Event`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from offbench.bench.failures import Kind, failure_of
from offbench.bench.recording import Outcome, provenance_of
from offbench.bench.runner import Work, run_pack
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.bench.watch import Watch
from offbench.errors import Interrupted, UserError, clean_traceback
from offbench.results.claims import Heart
from offbench.results.store import Store

if TYPE_CHECKING:
    from offbench.rollout import EnvPool

Phase = Literal[
    "loading",
    "training",
    "evaluating",
    # its training is over and saved, for another process to evaluate
    "trained",
    # all of its runs have records; `recorded`: those of another process
    "done",
    "recorded",
    "failed",
    # nothing is recorded yet: another worker has claimed its runs; asked to stop; its process died
    "held",
    "stopped",
    "lost",
    # it failed, or its process died, and is tried once more
    "again",
]

# share of a stack that is done when its training is over
TRAINED = 0.9
FINAL: frozenset[Phase] = frozenset(
    {"trained", "done", "recorded", "failed", "held", "stopped", "lost"}
)


@dataclass(frozen=True)
class Event:
    """Progress of one stack: a phase and the share that is done, the outcomes, or an error."""

    index: int
    phase: Phase
    fraction: float = 0.0
    outcomes: tuple[Outcome, ...] = ()
    # one line for a UserError, a traceback for any other
    error: str | None = None
    # why nothing came of it, in one line
    reason: str | None = None
    kind: Kind | None = None

    @property
    def final(self) -> bool:
        """Whether the stack is out of its worker's hands."""
        return self.phase in FINAL


@dataclass(frozen=True)
class Job:
    """A stack that an executor is given."""

    index: int
    pack: Pack
    # how often it was tried, this time included, and may be tried
    attempt: int = 1
    attempts: int = 1
    work: Work = "all"


def run_job(
    job: Job,
    store: Store,
    settings: Settings,
    heart: Heart,
    *,
    pools: "dict[str, EnvPool] | None" = None,
    send: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Event:
    """Trains a stack and records those of its runs that have no record, unless another worker does.

    An error is recorded as failed runs; one that another attempt may mend is only with the last attempt.
    """
    pack, start = job.pack, time.perf_counter()
    ids = pack.run_ids
    report = lambda phase, fraction: send(Event(job.index, phase, fraction))
    watch = Watch(pack, send=report, stop=stop)
    try:
        if not store.missing(pack.runs):
            return Event(job.index, "recorded", 1.0)
        if not heart.claim(ids):
            return Event(job.index, "held")
        heart.about = watch.about
        # another worker may have recorded them between the look and the claim
        if not store.missing(pack.runs):
            return Event(job.index, "recorded", 1.0)
        outcomes = run_pack(pack, store, settings, pools=pools, watch=watch, work=job.work)
        if outcomes is None:
            return Event(job.index, "trained", TRAINED)
        # none where another worker took the runs over while this one was suspended
        phase: Phase = "done" if outcomes else "recorded"
        return Event(job.index, phase, 1.0, outcomes=tuple(outcomes))
    except Interrupted:
        return Event(job.index, "stopped")
    except Exception as error:
        kind, reason = failure_of(error)
        text = reason if isinstance(error, UserError) else clean_traceback(error)
        event = Event(job.index, "failed", 1.0, error=text, reason=reason, kind=kind)
        if may_mend(event, job):
            return event
        return record_failure(job, event, store, settings, time.perf_counter() - start)
    finally:
        heart.about = lambda: None
        heart.release(ids)


def lost(job: Job, reason: str) -> Event:
    """The event of a stack whose process ended without one."""
    return Event(job.index, "lost", 1.0, error=reason, reason=reason)


def may_mend(event: Event, job: Job) -> bool:
    """Whether another attempt is allowed, and may help: the failure was not that of the method or its settings."""
    infrastructure = event.phase == "lost" or event.kind == "infrastructure"
    return infrastructure and job.attempt < job.attempts


def record_failure(
    job: Job, event: Event, store: Store, settings: Settings, wall_s: float = 0.0
) -> Event:
    """Records the runs of a stack that have no whole record as failed; the event says where that cannot be."""
    reason = event.reason or event.phase
    # a process that died left none
    trace = event.error if event.phase == "failed" and event.error != reason else None
    absent = {run.run_id for run in store.missing(job.pack.runs)}
    # its process died between the last record and the word of it
    if not absent and event.phase == "lost":
        return Event(job.index, "recorded", 1.0)
    stack = job.pack.run_ids
    before = store.read_all(run_id=stack, status="failed") if absent else {}
    tried = {name: r.failure.attempts for name, r in before.items() if r.failure}
    try:
        for cell, run in job.pack.members:
            if run.run_id in absent:
                facts = provenance_of(
                    cell, settings, "cpu", settings.engine, stack, wall_s, 0.0, {}
                )
                store.fail(
                    run,
                    reason,
                    facts,
                    kind=event.kind or "infrastructure",
                    attempts=tried.get(run.run_id, 0) + job.attempt,
                    traceback=trace,
                )
    # the disk that the run failed of may still be full
    except UserError as error:
        if str(error) != event.reason:
            return replace(event, error=f"{event.error}\n(not recorded: {error})")
    return event
