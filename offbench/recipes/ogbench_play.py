"""OGBench sets collected anew with the oracles that ship in the package, for the default single
task or, ``stitch``, for all five goals.

A trajectory has ``steps`` transitions and never stops: the oracle draws its next goal when it
has reached one. Rewards and masks come from ``ogbench.relabel_utils`` itself, which judges
success on the state *before* the action::

    state      s0   s1   s2* s3* s4        (* inside the goal region)
    reward     -1   -1   0   0             for the transitions s0->s1 .. s3->s4, one object
    mask        1    1   0   0             termination = (mask == 0), here inside the trajectory
    truncation  0    0   0   1             only where the trajectory is cut
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench.recipes import Progress, unwatched
from offbench.recipes.locomotion import seeds
from offbench.recipes.ogbench_oracles import (
    NAVIGATE_NOISE,
    PLAY_NOISE,
    PLAY_SMOOTHING,
    Trajectory,
    begin_arm,
    begin_navigate,
    begin_stitch,
    direction,
    make,
    make_env,
    roll,
    seeded,
)
from offbench.recipes.store import Collected, Episode, success_score

if TYPE_CHECKING:
    from pathlib import Path

    import gymnasium as gym


POINTMAZE = ("pointmaze-medium-v0", "pointmaze-medium-singletask-v0")
CUBE = ("cube-single-v0", "cube-single-singletask-v0")
GOALS = (1, 2, 3, 4, 5)
_SEEDS = "first 31-bit words of SeedSequence(recipe), in order"
_SCORE_EPISODES = 50
_SCORE_SEED = 30_000
Act = Callable[[Any, dict[str, Any]], NDArray[np.floating]]
Policy = Callable[["gym.Env", np.random.Generator, Any, dict[str, Any]], Act]
"""Begins an episode: environment, generator, first observation and info; returns how to act in
it."""


def navigate(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress = unwatched
) -> Collected:
    """Point mass in the medium maze, steered cell by cell along shortest paths with noise of
    0.5."""
    return _collected(
        list(_rolled(POINTMAZE[0], begin_navigate, episodes, steps, seed, progress)),
        POINTMAZE[1],
        seed,
        algorithm="shortest-path oracle with Gaussian noise",
        how=(
            f"{episodes} trajectories of {steps} steps: start in a random free cell, follow the "
            "package's shortest-path oracle to a random goal among the cells that are no hallway, "
            "draw the next goal when one is reached; Gaussian noise of "
            f"{NAVIGATE_NOISE} on the action, clipped to [-1, 1]."
        ),
        oracle=_path_follower,
    )


def stitch(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress = unwatched
) -> Collected:
    """Point mass in the medium maze, steered to a goal four cells away, with noise of 0.5: no
    trajectory crosses the maze. For the five goals of the maze; all rewards are 0."""
    made = []
    for t in _rolled(POINTMAZE[0], begin_stitch, episodes, steps, seed, progress):
        none, cuts = np.zeros(steps, np.bool_), np.zeros(steps, np.bool_)
        cuts[-1] = True
        rewards = np.zeros(steps, np.float32)
        made.append(Episode(t.observations, t.actions[:-1], rewards, none, cuts, t.seed))
    task: Any = make(POINTMAZE[0])
    return Collected(
        episodes=made,
        env=POINTMAZE[0],
        max_episode_steps=task.spec.max_episode_steps,
        terminal_inside=False,
        algorithm="shortest-path oracle with Gaussian noise",
        how=(
            f"{episodes} trajectories of {steps} steps: start in a random free cell, follow the "
            "package's shortest-path oracle to a random cell four cells away, and stay there; Gaussian "
            f"noise of {NAVIGATE_NOISE} on the action, clipped to [-1, 1]. No rewards."
        ),
        seeds={"recipe": seed, "trajectories": _SEEDS},
        score=_success_score(task, _path_follower, GOALS),
        goals=GOALS,
    )


def play(
    *, episodes: int, steps: int, seed: int, root: Path, progress: Progress = unwatched
) -> Collected:
    """Robot arm that puts one cube to random places by noisy plans computed ahead."""
    return _collected(
        list(_rolled(CUBE[0], begin_arm(), episodes, steps, seed, progress)),
        CUBE[1],
        seed,
        algorithm="plan oracle with correlated noise",
        how=(
            f"{episodes} trajectories of {steps} steps: random scene, the package's plan oracle "
            f"(noise {PLAY_NOISE}, smoothing {PLAY_SMOOTHING}) moves the cube to a random "
            "target, then to the next."
        ),
        oracle=_task_planner,
    )


def _rolled(
    env_id: str, begin: Any, episodes: int, steps: int, seed: int, progress: Progress
) -> Iterator[Trajectory]:
    """Trajectories of so many steps, `begin` as of `roll`."""
    env, number = make_env(env_id, steps), seeds(seed)
    for i in range(episodes):
        yield roll(env, begin, steps, next(number))
        progress((i + 1) * steps, episodes * steps)


def relabel(
    env_id: str, qpos: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rewards and terminations of the states ``qpos`` under the single task ``env_id``."""
    from ogbench.relabel_utils import relabel_dataset

    data: dict[str, Any] = {"qpos": qpos}
    with seeded(0):
        relabel_dataset(env_id, make(env_id), data)
    return data["rewards"], data["masks"] == 0


def _collected(
    trajectories: list[Trajectory],
    task: str,
    seed: int,
    *,
    algorithm: str,
    how: str,
    oracle: Policy,
) -> Collected:
    rewards, stops = relabel(task, np.concatenate([t.qpos[:-1] for t in trajectories]))
    episodes, start = [], 0
    for t in trajectories:
        part = slice(start, start + len(t.qpos) - 1)
        cuts = np.zeros(len(t.qpos) - 1, np.bool_)
        cuts[-1] = True
        episodes.append(
            Episode(t.observations, t.actions[:-1], rewards[part], stops[part], cuts, t.seed)
        )
        start = part.stop
    env: Any = make(task)
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
        seeds={"recipe": seed, "trajectories": _SEEDS},
        score=_success_score(env, oracle),
    )


def _success_score(env: gym.Env, oracle: Policy, goals: tuple[int, ...] = ()) -> dict[str, Any]:
    """The score of a manifest, with how often uniform actions and the oracle succeed."""
    shares = (_success(env, policy, goals) for policy in (_uniform, oracle))
    return success_score(*shares, episodes=_SCORE_EPISODES, first_seed=_SCORE_SEED)


def _success(env: gym.Env, policy: Policy, goals: tuple[int, ...] = ()) -> float:
    """Share of evaluation episodes in which the task, or one of the goals in turn, is reached in time."""
    solved = 0
    for seed in range(_SCORE_SEED, _SCORE_SEED + _SCORE_EPISODES):
        rng = np.random.default_rng(seed)
        goal = {"task_id": goals[seed % len(goals)]} if goals else None
        with seeded(seed):
            obs, info = env.reset(seed=seed, options=goal)
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
    return lambda obs, info: direction(env.unwrapped).astype(np.float32)


def _task_planner(env: Any, rng: np.random.Generator, obs: Any, info: dict[str, Any]) -> Act:
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
