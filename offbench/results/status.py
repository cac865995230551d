"""How far planned runs are: recorded, failed, in the hands of a worker, or waiting; and how long they will take."""

import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from offbench.results.claims import Worker, claimed, workers
from offbench.results.record import DamagedRecord
from offbench.results.spec import RunSpec
from offbench.results.store import Store

State = Literal["done", "running", "failed", "waiting", "damaged"]

# share of a run that is training, as its progress is counted; the rest is its test
TRAINING = 0.9


class Failure(NamedTuple):
    """A run that came to nothing."""

    run_id: str
    entry: str
    task: str
    seed: int
    # failed or diverged
    status: str
    reason: str
    attempts: int | None
    traceback: Path | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a store has of a plan, and who is at it."""

    runs: Mapping[State, int]
    # running where one of its runs is, else waiting where one is, else failed where one has
    cells: Mapping[State, int]
    # share of the work, by updates
    share: float
    # None where nothing tells it
    seconds_left: float | None
    workers: list[Worker]
    # the latest first
    failures: list[Failure]

    @property
    def over(self) -> bool:
        """Whether no run is being trained, nor waits to be."""
        return not (self.runs.get("running") or self.runs.get("waiting"))


def status_of(store: Store, suite: str, cells: Mapping[Hashable, Sequence[RunSpec]]) -> Status:
    """The status of planned cells, each with its runs."""
    table, damaged = read_states(store, suite)
    lines = {line.run_id: line for line in table.itertuples(index=False)}
    at_work, crew = claimed(store.root), workers(store.root)
    states: dict[RunSpec, State] = {}
    recorded: dict[RunSpec, Any] = {}
    for run in (run for runs in cells.values() for run in runs):
        found = [lines[name] for name in run.names_among(lines)]
        line = next((one for one in found if one.status == "ok"), next(iter(found), None))
        if line is not None:
            recorded[run] = line
        if line is not None and line.status == "ok":
            states[run] = "done"
        elif run.run_id in at_work:
            states[run] = "running"
        elif line is not None:
            states[run] = "failed"
        else:
            states[run] = "damaged" if run.run_id in damaged else "waiting"
    works = [_share(run, states[run], crew) * run.n_updates for run in states]
    failed = [line for run, line in recorded.items() if states[run] == "failed"]
    return Status(
        runs=Counter(states.values()),
        cells=Counter(_of_cell([states[run] for run in runs]) for runs in cells.values()),
        share=sum(works) / max(1, sum(run.n_updates for run in states)),
        seconds_left=_seconds_left(states, recorded, crew),
        workers=crew,
        failures=last_failures(store, failed),
    )


def hosts_at_work(root: Path) -> dict[str, str]:
    """Run id -> the host of the living worker that trains it."""
    hosts = {worker.name: worker.host for worker in workers(root)}
    return {run_id: hosts[name] for run_id, name in claimed(root).items() if name in hosts}


def read_states(store: Store, suite: str | None = None) -> tuple[pd.DataFrame, set[str]]:
    """`Store.states()`, and the ids of the runs whose records are damaged."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DamagedRecord)
        table = store.states(suite)
    names = (re.search(r"\b([0-9a-f]{16})\.", str(warning.message)) for warning in said)
    return table, {name[1] for name in names if name}


def last_failures(store: Store, lines: Iterable[Any], most: int = 3) -> list[Failure]:
    """The failures of lines of `Store.states()` that were recorded last, with their reasons."""
    last = sorted(lines, key=lambda line: line.created, reverse=True)[:most]
    if not last:
        return []
    names = ("run_id", "suite", "task")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedRecord)
        records = store.read_all(**{name: [getattr(line, name) for line in last] for name in names})
    found = []
    for line in (line for line in last if line.run_id in records):
        record = records[line.run_id]
        about = record.failure
        found.append(
            Failure(
                line.run_id,
                line.entry,
                line.task,
                int(line.seed),
                record.status,
                " ".join((record.reason or "").split()),
                about.attempts if about else None,
                about.traceback if about else None,
            )
        )
    return found


def _of_cell(states: Sequence[State]) -> State:
    order: tuple[State, ...] = ("running", "waiting", "failed", "damaged")
    return next((state for state in order if state in states), "done")


def _at(run: RunSpec, crew: Iterable[Worker]) -> Mapping[str, Any]:
    """The stack of a living worker that has the run; empty where none says so."""
    stacks = (worker.stack for worker in crew if worker.alive and worker.stack)
    return next((stack for stack in stacks if run.run_id in stack.get("runs", ())), {})


def _share(run: RunSpec, state: State, crew: Iterable[Worker]) -> float:
    """Share of a run that is done."""
    if state == "running":
        return TRAINING * min(1.0, _at(run, crew).get("update", 0) / max(1, run.n_updates))
    return 0.0 if state == "waiting" else 1.0


def _seconds_left(
    states: Mapping[RunSpec, State], recorded: Mapping[RunSpec, Any], crew: Sequence[Worker]
) -> float | None:
    """Seconds that the runs still take if the living workers go on as since they began.

    Their rate is that of updates, in runs that were recorded since and in those that they train: loading and
    evaluation are in it. Updates that a checkpoint had before are not.
    """
    begun = min((worker.started for worker in crew if worker.alive), default=None)
    if begun is None:
        return None
    since = [run for run in recorded if states[run] == "done" and recorded[run].created >= begun]
    made, left = float(sum(run.n_updates for run in since)), 0.0
    for run, state in states.items():
        if state == "waiting":
            left += run.n_updates
        elif state == "running":
            stack = _at(run, crew)
            own = (stack.get("updates_per_s") or 0.0) * seconds_since(stack.get("started"))
            made += TRAINING * min(own, stack.get("update", 0))
            left += run.n_updates - TRAINING * min(stack.get("update", 0), run.n_updates)
    return left * seconds_since(begun) / made if made else None


def seconds_since(moment: str | None) -> float:
    """Seconds since an ISO time, by this machine's clock; 0 where there is none."""
    try:
        then = datetime.fromisoformat(moment or "")
        return max(0.0, (datetime.now(UTC) - then).total_seconds())
    except (TypeError, ValueError):
        return 0.0
