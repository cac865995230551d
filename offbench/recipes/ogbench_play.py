"""OGBench sets collected anew with the oracles that ship in the package, for the default single
task.

A trajectory has ``steps`` transitions and never stops: the oracle draws its next goal when it
has reached one. Rewards and masks come from ``ogbench.relabel_utils`` itself, which judges
success on the state *before* the action::

    state      s0   s1   s2* s3* s4        (* inside the goal region)
    reward     -1   -1   0   0             for the transitions s0->s1 .. s3->s4, one object
    mask        1    1   0   0             termination = (mask == 0), here inside the trajectory
    truncation  0    0   0   1             only where the trajectory is cut

The package draws from numpy's global generator as well as from the environment's, so each
trajectory seeds both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench.recipes.locomotion import seeds
from offbench.recipes.store import Collected, Episode

if TYPE_CHECKING:
    from pathlib import Path

    import gymnasium as gym

    from offbench.recipes import Progress

__all__ = ["navigate", "play", "relabel"]

POINTMAZE = ("pointmaze-medium-v0", "pointmaze-medium-singletask-v0")
CUBE = ("cube-single-v0", "cube-single-singletask-v0")
_NAVIGATE_NOISE = 0.5
_PLAY_NOISE, _PLAY_SMOOTHING = 0.1, 0.5
_SCORE_EPISODES = 50
_SCORE_SEED = 30_000

Act = Callable[[Any, dict[str, Any]], NDArray[np.floating]]
Policy = Callable[["gym.Env", np.random.Generator, Any, dict[str, Any]], Act]
"""Begins an episode: environment, generator, first observation and info; returns how to act in
it."""


def navigate(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress | None = None
) -> Collected:
    """Point mass in the medium maze, steered cell by cell along shortest paths with noise of
    0.5."""
    env = _make(POINTMAZE[0], terminate_at_goal=False, max_episode_steps=steps + 1)
    trajectories, number = [], seeds(seed)
    for i in range(episodes):
        trajectories.append(_navigate_once(env, steps, next(number)))
        if progress is not None:
            progress((i + 1) * steps, episodes * steps)
    return _collected(
        trajectories,
        POINTMAZE[1],
        seed,
        algorithm="shortest-path oracle with Gaussian noise",
        how=(
            f"{episodes} trajectories of {steps} steps: start in a random free cell, follow the "
            "package's shortest-path oracle to a random goal among the cells that are no hallway, "
            "draw the next goal when one is reached; Gaussian noise of "
            f"{_NAVIGATE_NOISE} on the action, clipped to [-1, 1]."
        ),
        oracle=_path_follower,
    )


def play(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress | None = None
) -> Collected:
    """Robot arm that puts one cube to random places by noisy plans computed ahead."""
    env = _make(
        CUBE[0], terminate_at_goal=False, mode="data_collection", max_episode_steps=steps + 1
    )
    trajectories, number = [], seeds(seed)
    for i in range(episodes):
        trajectories.append(_play_once(env, steps, next(number)))
        if progress is not None:
            progress((i + 1) * steps, episodes * steps)
    return _collected(
        trajectories,
        CUBE[1],
        seed,
        algorithm="plan oracle with correlated noise",
        how=(
            f"{episodes} trajectories of {steps} steps: random scene, the package's plan oracle "
            f"(noise {_PLAY_NOISE}, smoothing {_PLAY_SMOOTHING}) moves the cube to a random "
            "target, then to the next."
        ),
        oracle=_task_planner,
    )


def relabel(
    env_id: str, qpos: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rewards and terminations of the states ``qpos`` under the single task ``env_id``."""
    from ogbench.relabel_utils import relabel_dataset

    data: dict[str, Any] = {"qpos": qpos}
    with _seeded(0):
        relabel_dataset(env_id, _make(env_id), data)
    return data["rewards"], data["masks"] == 0


def _navigate_once(
    env: gym.Env, steps: int, seed: int
) -> tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    maze = env.unwrapped
    cells, junctions = _cells(maze.maze_map)
    rng = np.random.default_rng(seed)
    with _seeded(seed):
        env.action_space.seed(seed)
        task = {"init_ij": _pick(cells, rng), "goal_ij": _pick(junctions, rng)}
        obs, _ = env.reset(seed=seed, options={"task_info": task})
        states, qpos, actions = [obs], [maze.data.qpos.copy()], []
        for _ in range(steps):
            noise = rng.normal(0.0, _NAVIGATE_NOISE, 2)
            action = np.clip(_direction(maze) + noise, -1.0, 1.0).astype(np.float32)
            obs, _, _, _, info = env.step(action)
            if info["success"]:
                goal = maze.add_noise(maze.ij_to_xy(_pick(junctions, rng)))
                maze.set_goal(goal_xy=goal)
            states.append(obs)
            qpos.append(maze.data.qpos.copy())
            actions.append(action)
    return _arrays(seed, states, qpos, actions)


def _play_once(
    env: gym.Env, steps: int, seed: int
) -> tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    arm = env.unwrapped
    oracle = CubePlanOracle(env=env, noise=_PLAY_NOISE, noise_smoothing=_PLAY_SMOOTHING)
    with _seeded(seed):
        obs, info = env.reset(seed=seed)
        oracle.reset(obs, info)
        states, qpos, actions = [obs], [arm.data.qpos.copy()], []
        for _ in range(steps):
            action = np.clip(oracle.select_action(obs, info), -1.0, 1.0).astype(np.float32)
            obs, _, _, _, info = env.step(action)
            if oracle.done:
                oracle.reset(*arm.set_new_target(p_stack=0.0))
            states.append(obs)
            qpos.append(arm.data.qpos.copy())
            actions.append(action)
    return _arrays(seed, states, qpos, actions)


def _arrays(
    seed: int, states: list[Any], qpos: list[Any], actions: list[Any]
) -> tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    # float32 before success is judged, as in OGBench: a distance may sit on the threshold.
    return (
        seed,
        np.asarray(states, np.float32),
        np.asarray(qpos, np.float32)[:-1],
        np.asarray(actions, np.float32),
    )


def _collected(
    trajectories: list[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]],
    task: str,
    seed: int,
    *,
    algorithm: str,
    how: str,
    oracle: Policy,
) -> Collected:
    rewards, stops = relabel(task, np.concatenate([qpos for _, _, qpos, _ in trajectories]))
    episodes, start = [], 0
    for number, states, qpos, actions in trajectories:
        part = slice(start, start + len(qpos))
        cuts = np.zeros(len(qpos), np.bool_)
        cuts[-1] = True
        episodes.append(Episode(states, actions, rewards[part], stops[part], cuts, number))
        start = part.stop
    env = _make(task)
    return Collected(
        episodes=episodes,
        env=task,
        max_episode_steps=env.spec.max_episode_steps,
        terminal_inside=True,
        algorithm=algorithm,
        how=(
            f"{how} Rewards and masks by ogbench.relabel_utils for the default task "
            f"{env.unwrapped._reward_task_id}, success judged on the state before the action; "
            "termination = (mask == 0), truncation at the last step of a trajectory."
        ),
        seeds={
            "recipe": seed,
            "trajectories": "first 31-bit words of SeedSequence(recipe), in order",
        },
        score={
            "kind": "success",
            "ref_min": 0.0,
            "ref_max": 1.0,
            "random_success": _success(env, _uniform),
            "oracle_success": _success(env, oracle),
            "episodes": _SCORE_EPISODES,
            "first_seed": _SCORE_SEED,
        },
    )


def _success(env: gym.Env, policy: Policy) -> float:
    """Share of evaluation episodes in which the task is solved within the limit."""
    solved = 0
    for seed in range(_SCORE_SEED, _SCORE_SEED + _SCORE_EPISODES):
        rng = np.random.default_rng(seed)
        with _seeded(seed):
            obs, info = env.reset(seed=seed)
            act = policy(env, rng, obs, info)
            stop = cut = False
            while not (stop or cut):
                obs, _, stop, cut, info = env.step(act(obs, info))
        solved += bool(info["success"])
    return solved / _SCORE_EPISODES


def _uniform(env: gym.Env, rng: np.random.Generator, obs: Any, info: dict[str, Any]) -> Act:
    size = env.action_space.shape
    return lambda obs, info: rng.uniform(-1.0, 1.0, size).astype(np.float32)


def _path_follower(env: gym.Env, rng: np.random.Generator, obs: Any, info: dict[str, Any]) -> Act:
    return lambda obs, info: _direction(env.unwrapped).astype(np.float32)


def _task_planner(env: gym.Env, rng: np.random.Generator, obs: Any, info: dict[str, Any]) -> Act:
    """Plan oracle without noise, told the task's goal as if it were a target of data collection."""
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    oracle = CubePlanOracle(env=env, noise=0.0)
    target = {
        "privileged/target_block": 0,
        "privileged/target_block_pos": env.unwrapped._data.mocap_pos[0].copy(),
        "privileged/target_block_yaw": np.zeros(1),
    }
    oracle.reset(obs, info | target)
    return lambda obs, info: oracle.select_action(obs, info)


def _direction(maze: Any) -> NDArray[np.float64]:
    """Unit vector from the point mass to the next cell on the shortest path to the goal."""
    here = maze.get_xy()
    step, _ = maze.get_oracle_subgoal(here, maze.cur_goal_xy)
    return (step - here) / (np.linalg.norm(step - here) + 1e-6)


def _cells(maze_map: NDArray[np.integer]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those among them that are no straight hallway (corners, crossings, dead
    ends)."""
    free = np.pad(np.asarray(maze_map) == 0, 1)
    cells, junctions = [], []
    for i, j in np.argwhere(free).tolist():
        up, down, left, right = free[i - 1, j], free[i + 1, j], free[i, j - 1], free[i, j + 1]
        vertical = up and down and not left and not right
        horizontal = left and right and not up and not down
        cells.append((i - 1, j - 1))
        if not (vertical or horizontal):
            junctions.append((i - 1, j - 1))
    return cells, junctions


def _pick(cells: list[tuple[int, int]], rng: np.random.Generator) -> tuple[int, int]:
    return cells[int(rng.integers(len(cells)))]


def _make(env_id: str, **kwargs: Any) -> gym.Env:
    import gymnasium as gym
    import ogbench  # noqa: F401  (registers its environments)

    return gym.make(env_id, **kwargs)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator for the length of the block, then put the old state back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
