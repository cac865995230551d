"""Tasks of the user's own data: a file or folder, an environment, a score."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from offbench.errors import UserError, expect, expect_whole, unknown
from offbench.tasks import files
from offbench.tasks.environments import make_env
from offbench.tasks.formats import arrays, minari
from offbench.tasks.task import Score, Task

Actions = Literal["env", "unit"]


def own_task(
    data: str | Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    id: str | None = None,
    max_episode_steps: int | None = None,
    actions: Actions = "env",
    n_actions: int | None = None,
    score: Score = "return",
    ref_min: float | None = None,
    ref_max: float | None = None,
    goals: tuple[int, ...] = (),
) -> Task:
    """The task of the user's own file or folder, in one of the formats of `offbench.tasks.formats.arrays`.

    Args:
        env: the gymnasium id to evaluate in; a Minari folder names its own; "none" for no environment.
            Without one, policies are trained and compared by validation metrics on held-out episodes.
        max_episode_steps: where the recorder cut episodes, if no mark says so; else the environment's limit.
        actions: "env": in the units of the environment (without one: scaled from the recorded range
            where that exceeds [-1, 1]); "unit": already scaled to [-1, 1].
        n_actions: the number of discrete actions, for data without an environment.
        ref_min, ref_max: returns that score 0 and 100; without them a score is the return itself.
        goals: of a goal-conditioned task, scored by success: values of the reset option `task_id`, which
            evaluation episodes play in turn; `reset` tells the goal as `info["goal"]`.

    Raises UserError where `data` does not exist, or the environment is unknown.
    """
    path, name = _named(data, id)
    _check_kinds(env, env_kwargs, max_episode_steps, n_actions, (ref_min, ref_max))
    layout = arrays.layout(path, name=name)
    meta = minari.metadata(path, name=name) if layout == "minari" else None
    env, kwargs, limit = _environment(env, dict(env_kwargs or {}), max_episode_steps, meta)
    _check(name, env, goals, limit, actions, score)
    ref_min, ref_max = _references(name, ref_min, ref_max, meta)
    reading = None
    if env and (layout != "minari" or limit is None):
        reading = read_for(env, kwargs, name, limit, max_episode_steps is not None, actions)
        limit = reading.max_episode_steps
    elif layout == "steps":
        reading = arrays.reading(path, name, actions=actions, n_actions=n_actions, limit=limit)
    return Task(
        id=name,
        family="own",
        path=path.resolve(),
        sha256=files.digest(path),
        env=env,
        env_kwargs=kwargs,
        adapter="goal" if goals else None,
        task_ids=goals,
        max_episode_steps=limit or (1000 if env else 0),
        score="success" if goals else score,
        ref_min=ref_min,
        ref_max=ref_max,
        terminal_inside=layout == "ogbench",
        reading=None if layout == "minari" else reading,
    )


def _named(data: str | Path, id: str | None) -> tuple[Path, str]:
    """The file or folder, and the name of its task. Raises UserError where it is not there."""
    expect("data", data, (str, os.PathLike), "a file or a folder")
    path = Path(data).expanduser()
    expect("id", id, (str, type(None)), "text")
    name = id or f"own/{path.stem}"
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    return path, name


def _check_kinds(
    env: object,
    env_kwargs: object,
    limit: object,
    n_actions: object,
    references: tuple[object, object],
) -> None:
    """Raises UserError for an argument of `own_task` of another type."""
    expect("env", env, (str, type(None)), "the id of an environment")
    expect("env_kwargs", env_kwargs, (Mapping, type(None)), "a mapping of names to values")
    expect("max_episode_steps", limit, (int, type(None)), "a whole number")
    if n_actions is not None:
        expect_whole("n_actions", n_actions, 1)
    for key, reference in zip(("ref_min", "ref_max"), references):
        expect(key, reference, (int, float, type(None)), "a return")


def _environment(
    env: str | None, kwargs: dict[str, Any], limit: int | None, meta: minari.Metadata | None
) -> tuple[str | None, dict[str, Any], int | None]:
    """(id, arguments, time limit) of what is asked for, else of the metadata; no id for "none"."""
    found = None if env or meta is None else meta.eval_env or meta.env
    if found is None:
        return None if env == "none" else env, kwargs, limit
    return found.id, {**found.kwargs, **kwargs}, limit or found.max_episode_steps


def _check(
    name: str,
    env: str | None,
    goals: tuple[int, ...],
    limit: int | None,
    actions: str,
    score: str,
) -> None:
    if score not in ("return", "success"):
        raise unknown("score", score, ("return", "success"))
    if not isinstance(goals, tuple | list) or not all(hasattr(x, "__index__") for x in goals):
        raise UserError(f"{name}: goals={goals!r} must be whole numbers, the task_id of each")
    if limit is not None and limit < 1:
        raise UserError(f"{name}: max_episode_steps={limit} must be at least 1")
    if actions not in get_args(Actions):
        raise unknown("actions", actions, get_args(Actions))
    if goals and not env:
        raise UserError(
            f"{name}: goals={list(goals)} need an environment: task.env=pointmaze-medium-v0"
        )


def _references(
    name: str, ref_min: float | None, ref_max: float | None, meta: minari.Metadata | None
) -> tuple[float | None, float | None]:
    """Those given, else of the metadata, else none; 0 or 100 where only the other one is given."""
    if ref_min is None and ref_max is None:
        if meta is None or meta.ref_min is None or meta.ref_max is None:
            return None, None
        ref_min, ref_max = meta.ref_min, meta.ref_max
    low, high = 0.0 if ref_min is None else ref_min, 100.0 if ref_max is None else ref_max
    if not high > low:
        raise UserError(f"{name}: ref_max={high} must lie above ref_min={low}")
    return low, high


def read_for(
    env: str,
    kwargs: Mapping[str, Any],
    name: str,
    limit: int | None,
    given: bool,
    actions: str = "env",
) -> arrays.Reading:
    """How to read data recorded in an environment: its time limit, action bounds and choices."""
    from gymnasium.spaces import Box, Discrete

    with contextlib.closing(make_env(env, kwargs, name)) as gym:
        if limit is None and gym.spec is not None:
            limit = gym.spec.max_episode_steps
        space = gym.unwrapped.action_space
    found = arrays.Reading(max_episode_steps=limit or 1000, limit_given=given)
    if isinstance(space, Discrete):
        return replace(found, n_actions=int(space.n), first_action=int(space.start))
    if actions == "unit":
        return replace(found, unit=True)
    if not isinstance(space, Box) or not np.isfinite([space.low, space.high]).all():
        return found
    return replace(
        found, low=tuple(space.low.ravel().tolist()), high=tuple(space.high.ravel().tolist())
    )
