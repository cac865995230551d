"""Datasets by id or path, as they are trained on, for the commands that look at them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offbench.data import compose, composition
from offbench.data.replay import ACTION_TOLERANCE
from offbench.errors import UserError
from offbench.tasks import doctor, registry
from offbench.tasks.embedded import manifests
from offbench.tasks.loading import load_data, of_this_copy
from offbench.tasks.locate import canonical, load_task, ready

if TYPE_CHECKING:
    from offbench.data.replay import ReplayData
    from offbench.tasks.formats.d4rl import Boundaries
    from offbench.tasks.task import Task


@dataclass(frozen=True)
class Loaded:
    """A dataset as it is trained on, with what is known of it."""

    data: "ReplayData"
    facts: doctor.Facts
    card: Mapping[str, Any] = field(default_factory=dict)
    # findings of the reader, besides those of the data checks
    findings: tuple[doctor.Finding, ...] = ()


# names that end so are paths, as no dataset's id does
FILES = (".npz", ".hdf5", ".h5", ".csv", ".tsv", ".parquet", ".pkl", ".pickle")


def load(
    name: str, *, limit: int | None = None, env: str | None = None, actions: str = "env"
) -> Loaded:
    """A dataset by its id or path; `limit`, `env` and `actions` say how a file is read, as in a run.

    `limit` is in steps; `actions` "env" or "unit". UserError for a dataset that is unknown, absent or
    damaged.
    """
    if Path(name).exists() and name not in manifests():
        return _from_path(Path(name), name, limit, env, actions)
    if Path(name).suffix in FILES:
        raise UserError(f"{name} does not exist")
    name = canonical(name)
    if composition.is_composed(name):
        composed = compose.build(name, replay_of)
        facts = doctor.Facts.of(load_task(composed.card["base"]))
        parts = composition.parse(name).leaves  # type: ignore[union-attr]  # no plain id
        facts = replace(facts, id=composed.id, repeats=True, parts=parts)
        return Loaded(composed.data, facts, composed.card)
    # an unknown one is called a dataset
    registry.describe(name)
    task = ready(load_task(name))
    data, _ = load_data(task, defects="ignore")
    return Loaded(data, doctor.Facts.of(task), card_of(task), tuple(of_this_copy(task)))


def replay_of(name: str) -> "ReplayData":
    """The transitions of one part of a composition."""
    if Path(name).is_file() and name not in manifests():
        raise UserError(f"{name}: a file given by its path cannot be part of a composition")
    return load(name).data


def card_of(task: "Task") -> Mapping[str, Any]:
    """The card of a dataset that is named by its id."""
    known = manifests()
    if task.id in known:
        return known[task.id][1]
    card = registry.describe(task.id)
    notes = list(card.notes)
    if alike := [n for n in registry.sounds_like(card.id) if n.split("/")[0] != card.family]:
        notes.append(f"not {' or '.join(alike)}, which only sounds like it")
    return {
        "env": {"id": card.env},
        "differs": card.differs,
        "refused": card.refused,
        "notes": notes,
        "reference": card.ref_source,
        "path": "not here" if task.path is None else str(task.path),
        "sha256": task.sha256,
    }


def _from_path(path: Path, name: str, limit: int | None, env: str | None, actions: str) -> Loaded:
    from offbench.tasks.custom import own_task
    from offbench.tasks.formats import arrays, d4rl, minari

    kind = arrays.layout(path, name=name)
    task = None
    if env is not None:
        task = own_task(path, env=env, id=name, max_episode_steps=limit, actions=actions)  # type: ignore[arg-type]
    facts = (
        doctor.Facts(id=name, max_episode_steps=limit) if task is None else doctor.Facts.of(task)
    )
    if kind == "minari":
        meta = minari.metadata(path, name=name)
        ref = meta.eval_env or meta.env
        known = facts.max_episode_steps or (None if ref is None else ref.max_episode_steps)
        found: list[doctor.Finding] = []
        if task is not None or ref is not None:
            # evaluation says what its environment lacks
            with contextlib.suppress(UserError):
                found = of_this_copy(task or own_task(path, id=name))
        facts = replace(facts, max_episode_steps=known)
        return Loaded(minari.load(path, name=name), facts, findings=tuple(found))
    if kind == "ogbench":
        data = arrays.load(path, name=name, env=env)
        teleports, goals = "teleport" in path.name, not bool(data.reward.any())
        return Loaded(data, replace(facts, terminal_inside=True, teleports=teleports, goals=goals))
    facts = replace(facts, max_episode_steps=facts.max_episode_steps or _limit(path))
    reading = arrays.Reading(
        max_episode_steps=facts.max_episode_steps, limit_given=limit is not None
    )
    raw, at = arrays.steps(
        path, name=name, reading=task.reading if task and task.reading else reading
    )
    found = [doctor.Finding("boundaries", "info", at.words)]
    if facts.max_episode_steps is None and (apparent := _apparent_limit(at)):
        facts = replace(facts, max_episode_steps=apparent, limit_guessed=True)
        words = f"taken from the longest episodes: {apparent} steps (--limit says otherwise)"
        found.append(doctor.Finding("time_limit", "info", words))
    largest = float(np.abs(raw.action).max(initial=0.0))
    if task is None and np.isfinite(largest) and largest > 1 + ACTION_TOLERANCE:
        words = (
            f"actions reach {largest:.4g}, outside [-1, 1]: recorded in the environment's own bounds;"
            " --env ID compares with them, and a run scales from them"
        )
        found.append(doctor.Finding("action_range", "warning", words, {"largest": largest}))
        raw = raw._replace(action=raw.action / largest)
    return Loaded(d4rl.build(raw, at, name=name), facts, findings=tuple(found))


def _apparent_limit(at: "Boundaries") -> int | None:
    """Length of the longest truncated episodes, if three of them and one in twenty are as long; in steps."""
    ends = np.flatnonzero(at.end)
    lengths = np.diff(ends, prepend=-1)[~at.terminal[ends]]
    same = int((lengths == lengths.max(initial=0)).sum())
    return int(lengths.max()) if same >= max(3, len(ends) / 20) else None


def _limit(path: Path) -> int | None:
    """Time limit in steps of the published dataset whose file has this name."""
    if path.suffix not in (".hdf5", ".h5"):
        return None
    found = {
        c.max_episode_steps
        for c in map(registry.describe, registry.ids())
        if any(Path(f.name).name == path.name for f in c.files)
    }
    return found.pop() if len(found) == 1 else None
