"""Trajectories of OGBench's environments, by the oracles that ship in the package.

A trajectory never stops: the oracle draws its next goal when it has reached one. The package draws
from numpy's global generator as well as from the environment's, so each trajectory seeds both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium as gym

NAVIGATE_NOISE = 0.5
PLAY_NOISE, PLAY_SMOOTHING = 0.1, 0.5
_STITCH_CELLS = 4
_STACK = {
    "single": (0.0, 0.0),
    "double": (0.0, 0.25),
    "triple": (0.05, 0.35),
    "quadruple": (0.1, 0.5),
}
"""Range of the probability that a cube is put on another, drawn for each trajectory."""
Cells = list[tuple[int, int]]


class Trajectory(NamedTuple):
    """``T`` transitions of one seed; the last of the ``T + 1`` actions leads out of the record."""

    seed: int
    observations: NDArray[np.float32]  # (T + 1, O)
    actions: NDArray[np.float32]  # (T + 1, A)
    qpos: NDArray[np.float32]  # (T + 1, Q) simulator state at the observation
    qvel: NDArray[np.float32]  # (T + 1, V)
    button_states: NDArray[np.int64] | None  # (T + 1, B) where there are buttons


class Actor(Protocol):
    """What acts in a trajectory, and what happens after each step."""

    def act(self, obs: Any, info: dict[str, Any]) -> NDArray[np.floating]: ...
    def after(self, info: dict[str, Any]) -> None: ...


Begun = tuple[Any, dict[str, Any], Actor]
Begin = Callable[["gym.Env", np.random.Generator, int], Begun]
"""Resets the environment with a seed; returns the first observation, its info and what acts."""


def make_env(env_id: str, steps: int) -> gym.Env:
    """Environment to collect trajectories of ``steps`` transitions in: nothing ends them early."""
    mode = {} if "maze" in env_id else {"mode": "data_collection"}
    return make(env_id, terminate_at_goal=False, max_episode_steps=steps + 1, **mode)


def roll(env: gym.Env, begin: Begin, steps: int, seed: int) -> Trajectory:
    """One trajectory of ``steps`` transitions; a function of the versions and ``seed``."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {name: [] for name in ("obs", "action", "qpos", "qvel", "buttons")}
    with seeded(seed), quiet():
        env.action_space.seed(seed)
        obs, info, actor = begin(env, rng, seed)
        for _ in range(steps + 1):
            action = np.clip(actor.act(obs, info), -1.0, 1.0).astype(np.float32)
            rows["obs"].append(obs)
            rows["action"].append(action)
            obs, _, _, _, info = env.step(action)
            actor.after(info)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if "prev_button_states" in info:
                rows["buttons"].append(info["prev_button_states"])
    # float32 before success is judged, as in OGBench: a distance may sit on the threshold.
    single = [np.asarray(rows[k], np.float32) for k in ("obs", "action", "qpos", "qvel")]
    buttons = np.asarray(rows["buttons"], np.int64) if rows["buttons"] else None
    return Trajectory._make([seed, *single, buttons])


class PathFollower:
    """Steers the point mass cell by cell; draws the next goal at each one, or stays (stitch)."""

    def __init__(self, maze: Any, rng: np.random.Generator, junctions: Cells | None) -> None:
        self.maze, self.rng, self.junctions = maze, rng, junctions

    def act(self, obs: Any, info: dict[str, Any]) -> NDArray[np.floating]:
        return direction(self.maze) + self.rng.normal(0.0, NAVIGATE_NOISE, 2)

    def after(self, info: dict[str, Any]) -> None:
        if info["success"] and self.junctions is not None:
            goal = self.maze.add_noise(self.maze.ij_to_xy(_pick(self.junctions, self.rng)))
            self.maze.set_goal(goal_xy=goal)


class Arm:
    """Scripted oracles of a manipulation environment, one for each kind of object.

    With ``noisy`` the closed-loop ones, Gaussian noise of a level drawn for the trajectory, and
    now and then a random action; otherwise the noisy plans computed ahead.
    """

    def __init__(
        self, env: Any, rng: np.random.Generator, *, noisy: bool, random_actions: float
    ) -> None:
        self.env, self.rng, self.random_actions = env, rng, random_actions
        self.oracles = _oracles(env, noisy=noisy)
        low, high = _STACK.get(env.unwrapped.spec.id.split("-")[1], (0.5, 0.5))
        self.p_stack = low if low == high else rng.uniform(low, high)
        level = rng.uniform(0.0, PLAY_NOISE) if noisy else 0.0
        self.noise = level * np.asarray([1.0, 1.0, 1.0, 3.0, 10.0])

    def start(self, obs: Any, info: dict[str, Any]) -> Arm:
        self.oracle = self.oracles[info["privileged/target_task"]]
        self.oracle.reset(obs, info)
        return self

    def act(self, obs: Any, info: dict[str, Any]) -> NDArray[np.floating]:
        if self.random_actions and self.rng.random() < self.random_actions:
            return self.rng.uniform(-1.0, 1.0, 5)
        action = np.asarray(self.oracle.select_action(obs, info))
        return action + self.rng.normal(0.0, self.noise) if self.noise.any() else action

    def after(self, info: dict[str, Any]) -> None:
        if self.oracle.done:
            self.start(*self.env.unwrapped.set_new_target(p_stack=self.p_stack))


def begin_navigate(env: gym.Env, rng: np.random.Generator, seed: int) -> Begun:
    """A random start, and one goal after another among the cells that are no hallway."""
    maze: Any = env.unwrapped
    cells, junctions = _cells(maze.maze_map)
    task = {"init_ij": _pick(cells, rng), "goal_ij": _pick(junctions, rng)}
    return (
        *env.reset(seed=seed, options={"task_info": task}),
        PathFollower(maze, rng, junctions),
    )


def begin_stitch(env: gym.Env, rng: np.random.Generator, seed: int) -> Begun:
    """A random start, a goal four cells away, and there it stays."""
    maze: Any = env.unwrapped
    cells, _ = _cells(maze.maze_map)
    start = _pick(cells, rng)
    near = _at_distance(cells, start, _STITCH_CELLS)
    task = {"init_ij": start, "goal_ij": _pick(near, rng) if near else start}
    return *env.reset(seed=seed, options={"task_info": task}), PathFollower(maze, rng, None)


def begin_arm(*, noisy: bool = False, random_actions: float = 0.0) -> Begin:
    """A random scene; the oracles move objects to random targets, one after another."""

    def begin(env: gym.Env, rng: np.random.Generator, seed: int) -> Begun:
        obs, info = env.reset(seed=seed)
        arm = Arm(env, rng, noisy=noisy, random_actions=random_actions)
        return obs, info, arm.start(obs, info)

    return begin


def _oracles(env: Any, *, noisy: bool) -> dict[str, Any]:
    """The package's oracle for every kind of object in the environment."""
    import importlib

    kinds = {"cube": ["cube"], "puzzle": ["button"]}
    all_kinds = ["cube", "button", "drawer", "window"]
    scene = env.unwrapped.spec.id.split("-")[0]
    style, options = ("markov", {}) if noisy else ("plan", {"noise": PLAY_NOISE})
    if not noisy:
        options["noise_smoothing"] = PLAY_SMOOTHING
    made = {}
    for kind in kinds.get(scene, all_kinds):
        module = importlib.import_module(f"ogbench.manipspace.oracles.{style}.{kind}_{style}")
        extra: dict[str, Any] = {}
        if scene == "puzzle":
            extra["gripper_always_closed"] = True
        if scene == "scene" and noisy and kind == "cube":
            extra["max_step"] = 100
        oracle = getattr(module, f"{kind.title()}{style.title()}Oracle")
        made[kind] = oracle(env=env, **options, **extra)
    return made


def direction(maze: Any) -> NDArray[np.float64]:
    """Unit vector from the point mass to the next cell on the shortest path to the goal."""
    here = maze.get_xy()
    step, _ = maze.get_oracle_subgoal(here, maze.cur_goal_xy)
    return (step - here) / (np.linalg.norm(step - here) + 1e-6)


def _cells(maze_map: NDArray[np.integer]) -> tuple[Cells, Cells]:
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


def _at_distance(cells: Cells, start: tuple[int, int], distance: int) -> Cells:
    """Cells whose shortest path from ``start`` has that many steps."""
    free, reached, edge = set(cells), {start}, [start]
    for _ in range(distance):
        around = [(i + a, j + b) for i, j in edge for a, b in ((-1, 0), (0, -1), (1, 0), (0, 1))]
        edge = [cell for cell in dict.fromkeys(around) if cell in free and cell not in reached]
        reached |= set(edge)
    return edge


def _pick(cells: Cells, rng: np.random.Generator) -> tuple[int, int]:
    return cells[int(rng.integers(len(cells)))]


def make(env_id: str, **kwargs: Any) -> gym.Env:
    import gymnasium as gym
    import ogbench  # noqa: F401  (registers its environments)

    with quiet():
        return gym.make(env_id, **kwargs)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notice that OGBench's float64 action bounds become float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator for the length of the block, then put the old state back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
