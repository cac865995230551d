"""Loads the data of a task and reports their defects.

    data, spec = load_data(load_task("hopper-medium-v2"))

Data that are missing are downloaded.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from offbench.data import compose, composition
from offbench.data.replay import is_one_hot
from offbench.errors import UserError, expect, unknown
from offbench.io import sha256_of
from offbench.tasks import doctor, files, ogbench
from offbench.tasks.cache import MIN_ROWS
from offbench.tasks.custom import read_for
from offbench.tasks.formats import arrays, d4rl, d4rl_package
from offbench.tasks.formats import minari as minari_files
from offbench.tasks.formats import ogbench as ogbench_files
from offbench.tasks.locate import fetch, load_task, loaded_sha256
from offbench.tasks.task import Family, Task
from offbench.types import Spec

if TYPE_CHECKING:
    from offbench.data.replay import ReplayData
    from offbench.tasks.spaces import Space

Bounds = tuple[float, ...]


def load_data(
    task: Task, *, gamma: float = 0.99, defects: Literal["warn", "refuse", "ignore"] = "warn"
) -> "tuple[ReplayData, Spec]":
    """The dataset of a task and its `Spec`, downloaded if missing.

    A severe defect, reported by others for this id or in a stored report, warns once
    (`offbench.tasks.doctor.DataWarning`); with "refuse" data without a report are examined, and a
    severe defect is a UserError.

    Raises:
        UserError: a file is missing, damaged or has another checksum.
    """
    expect("task", task, Task, "a task, as of load_task")
    if defects not in ("warn", "refuse", "ignore"):
        raise unknown("defects", defects, ("warn", "refuse", "ignore"))
    data = _read(task)
    if defects == "refuse":
        doctor.refuse(doctor_report(task, data), task.check_command)
    elif defects == "warn":
        known = doctor_report(task)
        if task.family == "own" and "terminal_at_limit" not in known:
            more = doctor.terminals_at_limit(data, doctor.Facts.of(task))
            known = replace(known, findings=(*known.findings, *more))
        doctor.warn_once(known)
    limit = task.max_episode_steps or int(data.episode.bincount().max()) - 1
    discrete = is_one_hot(data.action, data.valid)
    return data, Spec(data.obs.shape[1], data.action.shape[1], gamma, limit, discrete)


@contextlib.contextmanager
def kept_in_memory() -> Iterator[None]:
    """In the block, small sets of the last few tasks are read once; they are not to be changed."""
    token = _kept.set([]) if _kept.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


KEPT = 4
_kept: "ContextVar[list[tuple[Task, ReplayData]] | None]" = ContextVar("kept", default=None)


def _read(task: Task) -> "ReplayData":
    """The dataset of a task, from memory in `kept_in_memory`."""
    if (kept := _kept.get()) is None:
        return _READERS[task.family](task)
    found = next((data for other, data in kept if other == task), None)
    if found is None:
        found = _READERS[task.family](task)
        # larger ones are mapped from files
        if len(found.last) < MIN_ROWS:
            kept.append((task, found))
            del kept[:-KEPT]
    return found


def _embedded(task: Task) -> "ReplayData":
    assert task.path is not None and task.sha256 is not None
    check_file(task.path / "data" / "main_data.hdf5", task.sha256, task.id)
    return minari_files.load(task.path, name=task.id, terminal_inside=task.terminal_inside)


def _published(task: Task) -> "ReplayData":
    path = fetch(task) if task.path is None else task.path
    changed = task.path is not None and (
        not path.exists() or loaded_sha256(task, files.digest(path)) != task.sha256
    )
    if changed:
        raise UserError(f"{task.id}: {path} is missing or not the file it was (by sha256)")
    if task.loader == "d4rl":
        return d4rl_package.load(path, name=task.id, max_episode_steps=task.max_episode_steps)
    return read(task, path)


def read(task: Task, path: Path) -> "ReplayData":
    """Reads a published set from its file or folder. Raises UserError where it is damaged or has other
    dimensions than its id."""
    data = _parse(task, path)
    for field_name, found, wanted in (
        ("observations", data.obs.shape[1], task.obs_dim),
        ("actions", data.action.shape[1], task.action_dim),
    ):
        if wanted not in (None, found):
            raise UserError(
                f"{task.id}: {path} has {found} features of {field_name}, it should be {wanted}"
            )
    if task.adapter == "d4rl-ant" and bool((data.obs[:, 27:] != 0).any()):
        raise UserError(
            f"{task.id}: contact forces are recorded; no environment here shows them as MuJoCo 1.5 did"
        )
    return data


def _parse(task: Task, path: Path) -> "ReplayData":
    if task.family == "d4rl":
        choices = 7 if task.env and task.env.startswith("MiniGrid") else None
        return d4rl.load(
            path, name=task.id, max_episode_steps=task.max_episode_steps, n_actions=choices
        )
    if task.family == "ogbench":
        parsed = ogbench.parse(task.id.removeprefix("ogbench/"))
        assert parsed is not None
        single = None if parsed.task is None else parsed.env
        return ogbench_files.load(path, name=task.id, task=single, sparse=parsed.sparse)
    return minari_files.load(path, name=task.id, terminal_inside=task.terminal_inside)


def check_file(path: Path, sha256: str, name: str) -> None:
    """Raises UserError when the file is missing or its sha256 is not that of the manifest."""
    if not path.is_file():
        raise UserError(
            f"{name}: data file {path} is missing; rebuild it with: offbench data make {name}"
        )
    found = sha256_of(path)
    if found != sha256:
        raise UserError(
            f"{name}: {path} has sha256 {found[:12]}..., its manifest says {sha256[:12]}... "
            f"({path.stat().st_size} bytes); restore it or rebuild it with: offbench data make {name}"
        )


def _own(task: Task) -> "ReplayData":
    assert task.path is not None
    if task.loader == "d4rl":
        if task.reading is not None and task.reading.scales:
            raise UserError(
                f"{task.id}: loader=d4rl takes actions as they are in the file, in [-1, 1], and {task.env} takes"
                " others; use loader=offbench, or say task.actions=unit"
            )
        limit = task.max_episode_steps
        return d4rl_package.load(task.path, name=task.id, max_episode_steps=limit)
    return arrays.load(task.path, name=task.id, reading=task.reading, env=task.env)


def _compose(task: Task) -> "ReplayData":
    part = lambda name: load_data(load_task(name, loader=task.loader), defects="ignore")[0]
    return compose.build(task.id, part).data


_READERS: "Mapping[Family, Callable[[Task], ReplayData]]" = {
    "offbench": _embedded,
    "d4rl": _published,
    "minari": _published,
    "ogbench": _published,
    "own": _own,
    "composed": _compose,
}


def action_units(task: Task, discrete: bool) -> "tuple[Bounds | None, Bounds | None, int | None]":
    """(low (A,), high (A,), first discrete action) of recorded actions, for tasks without environment.

    Bounds are None where they are [-1, 1], the first action is None for continuous ones.
    """
    if task.path is not None and (task.path / "data" / "metadata.json").is_file():
        space = minari_files.metadata(task.path, name=task.id).action
        if space.kind == "Discrete":
            return None, None, space.start
        assert space.low is not None and space.high is not None
        low, high = (tuple(x.ravel().tolist()) for x in (space.low, space.high))
        return low, high, None
    if discrete:
        return None, None, 0
    return (
        (None, None, None) if task.reading is None else (task.reading.low, task.reading.high, None)
    )


# --- what is wrong with them ----------------------------------------------------------------

_OF_THIS_COPY = ("collected_again", "evaluation_maze", "action_bounds")


def doctor_report(task: Task, data: "ReplayData | None" = None) -> "doctor.Report":
    """The dataset doctor's report of a task: the stored one of these bytes, else a new one of `data`
    (stored), else the known defects of the id."""
    parsed = composition.parse(task.id)
    parts = () if isinstance(parsed, str) else parsed.leaves
    sets = [load_task(part) for part in parts] or [task]
    known = tuple(f for t in sets for f in (*doctor.known_defects(t.id), *of_this_copy(t)))
    seen = task.sha256
    # the reading of own data depends on its environment
    if task.family == "own" and seen is not None:
        seen = hashlib.sha256(f"{seen} {task.env or ''} {task.reading}".encode()).hexdigest()
    found = None if seen is None else doctor.stored(task.id, seen)
    if found is None and data is not None:
        facts = doctor.Facts.of(task, repeats=bool(parts), parts=parts)
        found = doctor.check(data, facts, sha256=seen)
        if seen is not None:
            with contextlib.suppress(OSError):
                doctor.save(found)
    if found is None:
        return doctor.Report(task.id, 0, 0, known)
    rest = tuple(f for f in found.findings if f.name not in ("known_defect", *_OF_THIS_COPY))
    return replace(found, findings=(*known, *rest))


def of_this_copy(task: Task) -> "list[doctor.Finding]":
    """Findings from files next to the data: a published set collected again by `offbench data make`, or
    a Minari set recorded in another maze or with other action bounds than its evaluation environment."""
    found: list[doctor.Finding] = []
    if task.path is None or task.family in ("offbench", "composed"):
        return found
    if task.path.with_suffix(".regenerated.yaml").exists():
        words = (
            f"{task.path.name} was collected again and is not the published file; scores on it "
            "cannot be compared with published ones"
        )
        found.append(doctor.Finding("collected_again", "severe", words))
    if (task.path / "data" / "metadata.json").is_file():
        meta = minari_files.metadata(task.path, name=task.id)
        found += _other_bounds(task, meta.action)
        if meta.other_maze:
            words = (
                f"{task.env} is evaluated in another maze than the data were recorded in: its metadata "
                "name one with other walls (Minari issue 304)"
            )
            found.append(doctor.Finding("evaluation_maze", "severe", words))
    return found


def _other_bounds(task: Task, recorded: "Space") -> "list[doctor.Finding]":
    """A finding where recorded action bounds differ from the environment's. None where the environment
    cannot be made: evaluation reports that."""
    if task.refused is not None or recorded.low is None or recorded.high is None or not task.env:
        return []
    kwargs = json.dumps(dict(task.env_kwargs), sort_keys=True, default=str)
    try:
        box = _bounds(task.env, kwargs, task.id)
    except UserError:
        return []
    theirs = [np.ravel(b) for b in (recorded.low, recorded.high)]
    if box is None or all(
        a.shape == np.shape(b) and np.allclose(a, b) for a, b in zip(theirs, box)
    ):
        return []
    span = lambda low, high: f"[{np.min(low):g}, {np.max(high):g}]"
    words = (
        f"actions were recorded in {span(*theirs)} ({len(theirs[0])} features), {task.env} takes {span(*box)}"
        f" ({len(box[0])}): a recorded action is played as another one"
    )
    return [doctor.Finding("action_bounds", "severe", words)]


@functools.cache
def _bounds(env: str, kwargs: str, name: str) -> tuple[Bounds, Bounds] | None:
    """The action bounds of an environment, None for discrete actions."""
    found = read_for(env, json.loads(kwargs), name, 1, False)
    return None if found.low is None or found.high is None else (found.low, found.high)
