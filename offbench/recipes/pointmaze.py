"""Gymnasium-Robotics PointMaze sets: a controller follows waypoints to one goal after another.

The point never rests: reaching a goal ends an episode by truncation and the next one goes on from
there to a new goal, with that goal already in its first observation. Observations are the
environment's dictionaries.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench.errors import UserError
from offbench.io import sha256_of, slug
from offbench.recipes import Progress, shards, unwatched
from offbench.recipes.locomotion import seeds
from offbench.recipes.store import (
    data_digest,
    install,
    minari_root,
    pack_file,
    positive_variance,
    quantiles,
    set_size,
    success_score,
    versions,
)

if TYPE_CHECKING:
    import gymnasium as gym


_GAIN, _DAMPING = 10.0, 1.0
_NOISE = 0.5
_NEAR = 0.1  # of a waypoint, in metres
_OBS = ("achieved_goal", "desired_goal", "observation")
_DECIDE = ("numpy", "gymnasium", "gymnasium-robotics", "mujoco")
_SCORE_EPISODES, _SCORE_SEED = 20, 30_000


@dataclass(frozen=True)
class Options:
    """What a set is collected in."""

    env: str
    max_episode_steps: int
    # steps between two resets of the environment, each with a seed of its own
    run: int = 10_000


def make(
    dataset_id: str,
    folder: Path,
    options: Options,
    *,
    steps: int,
    seed: int,
    workers: int = 1,
    progress: Progress = unwatched,
) -> Path:
    """Collect a set of ``steps`` transitions in Minari's format under ``folder``, with its
    manifest; returns its folder."""
    if steps < 1:
        raise UserError(f"{dataset_id}: steps={steps} is not a positive number")
    env, run = options.env, min(options.run, steps)
    sizes = [run] * (steps // run) + ([steps % run] if steps % run else [])
    found = versions()
    plan = {
        "id": dataset_id,
        "env": env,
        "run": run,
        "seed": seed,
        "versions": {k: found[k] for k in _DECIDE},
    }
    jobs = {
        f"run-{i:06d}-{size}": (env, size, number)
        for i, (size, number) in enumerate(zip(sizes, seeds(seed)))
    }
    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / f".{slug(dataset_id)}.pieces"
    paths = shards.collect(pieces, plan, jobs, walk, workers=workers, progress=progress)
    made = _write(dataset_id, folder, paths, plan, env, options.max_episode_steps)
    shutil.rmtree(pieces)
    return made


def walk(env_id: str, steps: int, seed: int) -> Mapping[str, NDArray[Any]]:
    """One run: the arrays of all its episodes, observations of an episode one more than steps.

    ``goal_reached`` (steps,) marks the last step of each finished episode.
    """
    env = _environment(env_id, steps)
    inner: Any = env.unwrapped
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    route = _route(inner, obs)
    seen: list[Mapping[str, Any]] = [obs]
    actions, rewards, reached = [], [], []
    for _ in range(steps):
        action = _steer(route, obs["observation"]) + rng.normal(0.0, _NOISE, 2)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        obs, reward, _, _, info = env.step(action)
        actions.append(action)
        rewards.append(reward)
        reached.append(info["success"])
        seen.append(obs)
        # the environment has drawn the next goal, this observation has the old
        if info["success"]:
            obs = {**obs, "desired_goal": inner.goal.copy()}
            seen.append(obs)
            route = _route(inner, obs)
    columns = {f"observations/{k}": np.asarray([o[k] for o in seen]) for k in _OBS}
    return columns | {
        "actions": np.asarray(actions),
        "rewards": np.asarray(rewards, np.float64),
        "goal_reached": np.asarray(reached, np.bool_),
    }


@functools.cache
def _environment(env_id: str, steps: int) -> gym.Env:
    return _make(env_id, max_episode_steps=steps + 1, continuing_task=True, reset_target=True)


def _make(env_id: str, **kwargs: Any) -> gym.Env:
    import gymnasium as gym

    # it prints a notice of its own
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)
    return gym.make(env_id, disable_env_checker=True, **kwargs)


def _route(inner: Any, obs: Mapping[str, Any]) -> deque[NDArray[np.float64]]:
    """Centres of the cells on a shortest path to the goal, and the goal itself."""
    maze, goal = inner.maze, np.asarray(obs["desired_goal"])

    def cell(place: NDArray[np.float64]) -> tuple[int, int]:
        row, column = maze.cell_xy_to_rowcol(place)
        return int(row), int(column)

    cells = _shortest(maze.maze_map, cell(obs["achieved_goal"]), cell(goal))
    return deque([*(maze.cell_rowcol_to_xy(np.asarray(c)) for c in cells[1:-1]), goal])


def _shortest(
    maze_map: Sequence[Sequence[Any]], start: tuple[int, int], end: tuple[int, int]
) -> list[tuple[int, int]]:
    came: dict[tuple[int, int], tuple[int, int]] = {start: start}
    edge = deque([start])
    while edge and end not in came:
        i, j = edge.popleft()
        for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if cell not in came and maze_map[cell[0]][cell[1]] != 1:
                came[cell] = (i, j)
                edge.append(cell)
    path = [end]
    while path[-1] != start:
        path.append(came[path[-1]])
    return path[::-1]


def _steer(route: deque[NDArray[np.float64]], state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Proportional-derivative control towards the next waypoint; drops those that are reached."""
    while len(route) > 1 and np.linalg.norm(route[0] - state[:2]) <= _NEAR:
        route.popleft()
    return _GAIN * (route[0] - state[:2]) - _DAMPING * state[2:]


class _Episode:
    """What Minari's writer and the digest read."""

    def __init__(self, observations: dict[str, NDArray[Any]], **arrays: NDArray[Any]) -> None:
        self.observations = observations
        self.actions, self.rewards = arrays["actions"], arrays["rewards"]
        n = len(self.rewards)
        self.terminations = np.zeros(n, np.bool_)
        self.truncations = np.zeros(n, np.bool_)
        self.truncations[-1] = True


def _episodes(paths: Sequence[Path]) -> list[_Episode]:
    episodes = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            columns = {k: file[k] for k in file.files}
        ends = np.flatnonzero(columns["goal_reached"]) + 1
        cuts = np.unique([0, *ends.tolist(), len(columns["rewards"])])
        for number, (a, b) in enumerate(pairwise(cuts.tolist())):
            rows = slice(a + number, b + number + 1)
            obs = {k: columns[f"observations/{k}"][rows] for k in _OBS}
            arrays = {k: columns[k][a:b] for k in ("actions", "rewards")}
            episodes.append(_Episode(obs, **arrays))
    return episodes


def _write(
    dataset_id: str,
    root: Path,
    paths: Sequence[Path],
    plan: Mapping[str, Any],
    env_id: str,
    max_episode_steps: int,
) -> Path:
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    episodes = _episodes(paths)
    env = _make(
        env_id, continuing_task=True, reset_target=True, max_episode_steps=max_episode_steps
    )
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as scratch:
        beside = Path(scratch)
        (beside / "minari").mkdir()
        with minari_root(beside / "minari"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                dataset_id,
                [
                    EpisodeBuffer(id=i, **{n: getattr(e, n) for n in names})
                    for i, e in enumerate(episodes)
                ],
                env=env,
                observation_space=env.observation_space,
                action_space=env.action_space,
                algorithm_name="waypoint controller with Gaussian noise",
                author="offbench",
                description=_summary(env_id),
                requirements=[f"{n}=={plan['versions'][n]}" for n in _DECIDE[1:]],
                data_format="hdf5",
            )
        made = beside / "minari" / dataset_id
        pack_file(made / "data" / "main_data.hdf5")
        set_size(dataset_id, beside / "minari")
        manifest = _manifest(dataset_id, made, episodes, plan, env_id, max_episode_steps)
        return install(dataset_id, beside, root, manifest)


def _summary(env_id: str) -> str:
    return (
        f"A noisy waypoint controller visits random goals in {env_id}; made here, not downloaded."
    )


def _manifest(
    dataset_id: str,
    made: Path,
    episodes: Sequence[_Episode],
    plan: Mapping[str, Any],
    env_id: str,
    max_episode_steps: int,
) -> dict[str, Any]:
    returns = [float(e.rewards.sum()) for e in episodes]
    return {
        "id": dataset_id,
        "format": "minari",
        "regenerated": True,
        "summary": _summary(env_id),
        "env": {"id": env_id, "kwargs": {"continuing_task": False}},
        "rows": sum(len(e.rewards) for e in episodes),
        "episodes": len(episodes),
        "max_episode_steps": max_episode_steps,
        "terminal_inside": False,
        "terminations": 0,
        "bytes": sum(f.stat().st_size for f in made.rglob("*") if f.is_file()),
        "sha256": sha256_of(made / "data" / "main_data.hdf5"),
        "data_sha256": data_digest(episodes),
        "returns": quantiles(returns) | {"mean": round(float(np.mean(returns)), 4)},
        "positive_sided_variance": round(positive_variance(returns), 4),
        "score": success_score(
            *(_success(env_id, max_episode_steps, steered=steered) for steered in (False, True)),
            episodes=_SCORE_EPISODES,
            first_seed=_SCORE_SEED,
        ),
        "recipe": {
            "function": "offbench.recipes.pointmaze:make",
            "options": {"env": env_id, "run": plan["run"], "seed": plan["seed"]},
            "algorithm": "waypoint controller with Gaussian noise",
            "how": (
                f"Runs of {plan['run']} steps, each reset with a 31-bit word of SeedSequence(seed): "
                f"proportional gain {_GAIN:g}, damping {_DAMPING:g} towards cell centres on a shortest "
                f"path, noise {_NOISE}; reaching a goal truncates the episode, and the next one "
                "goes on from there to a new goal."
            ),
        },
        "policies": [],
        "versions": versions(),
    }


def _success(env_id: str, max_episode_steps: int, *, steered: bool) -> float:
    """Share of evaluation episodes that reach their goal within the limit."""
    env = _make(env_id, continuing_task=False, max_episode_steps=max_episode_steps)
    solved = 0
    for seed in range(_SCORE_SEED, _SCORE_SEED + _SCORE_EPISODES):
        rng = np.random.default_rng(seed)
        obs, info = env.reset(seed=seed)
        route = _route(env.unwrapped, obs)
        stop = cut = False
        while not (stop or cut):
            action = _steer(route, obs["observation"]) if steered else rng.uniform(-1.0, 1.0, 2)
            obs, _, stop, cut, info = env.step(np.clip(action, -1.0, 1.0).astype(np.float32))
        solved += bool(info["success"])
    env.close()
    return solved / _SCORE_EPISODES
