"""Evaluation environments with the observations and actions of a task's dataset.

An adapter converts the observations of a Gymnasium environment to those of a dataset:

    flat           a Dict observation flattened as in the data (`offbench.tasks.spaces`), a
                   Discrete action as the largest of n numbers
    d4rl-gym       unchanged
    d4rl-ant       27 numbers and 84 zeros: contact forces, which MuJoCo 2.0 reported as 0
    d4rl-antmaze   position relative to the start, then the ant's own 27 numbers
    d4rl-maze2d    position as (row, column) of the original maze, then its velocity
    d4rl-hand      unchanged
    d4rl-kitchen   positions of arm and objects (30), then the goal (30)
    image          only the image, flattened
    goal           the observation, then the goal of the episode (OGBench's `info["goal"]`), both flat

Starts, goals, rewards and terminations of `d4rl-` environments are set in `offbench.tasks.d4rl_envs`.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from offbench.errors import UserError, in_one_line, unknown
from offbench.tasks.d4rl_envs import OFF_CENTRE, RULES

if TYPE_CHECKING:
    import gymnasium

    from offbench.tasks.task import Task

Maze = tuple[str, ...]
"""Rows of a maze: `#` a wall, `.` free, `R` a start, `G` a goal; without R, every free cell is one."""

ANTMAZE: Mapping[str, Maze] = {
    "umaze": ("#####", "#R..#", "###.#", "#G..#", "#####"),
    "medium": (
        "########", "#R.##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#.G#", "########",
    ),
    "large": (
        "############", "#R...#.....#", "#.##.#.#.#.#", "#......#...#", "#.####.###.#",
        "#..#.#.....#", "##.#.#.#.###", "#..#...#.G.#", "############",
    ),
    "eval-umaze": ("#####", "#..R#", "#.###", "#..G#", "#####"),
    "eval-medium": (
        "########", "#R....G#", "#.#.##.#", "#....#.#", "###..###", "#......#", "#..##..#", "########",
    ),
    "eval-large": (
        "############", "#R.#...#.G.#", "##.###.#.#.#", "#..#.#.....#", "#.##.#..##.#",
        "#......#...#", "#.##.#.#.###", "#....#.....#", "############",
    ),
}  # fmt: skip
MAZE2D: Mapping[str, Maze] = {
    "open": ("#######", "#.....#", "#..G..#", "#.....#", "#######"),
    "umaze": ("#####", "#G..#", "###.#", "#...#", "#####"),
    "medium": (
        "########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#.G#", "########",
    ),
    "large": (
        "############", "#....#.....#", "#.##.#.#.#.#", "#......#...#", "#.####.###.#",
        "#..#.#.....#", "##.#.#.#.###", "#..#...#.G.#", "############",
    ),
    "eval-umaze": ("#####", "#..G#", "#.###", "#...#", "#####"),
    "eval-medium": (
        "########", "#.....G#", "#.#.##.#", "#....#.#", "###..###", "#......#", "#..##..#", "########",
    ),
    "eval-large": (
        "############", "#..#...#.G.#", "##.###.#.#.#", "#..#.#.....#", "#.##.#..##.#",
        "#......#...#", "#.##.#.#.###", "#....#.....#", "############",
    ),
}  # fmt: skip
# object -> (index of its first coordinate among the 30, goal)
_KITCHEN: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "bottom burner": (11, (-0.88, -0.01)),
    "light switch": (17, (-0.69, -0.05)),
    "slide cabinet": (19, (0.37,)),
    "microwave": (22, (-0.75,)),
    "kettle": (23, (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
_CELLS: Mapping[str, int | str] = {"#": 1, ".": 0, "R": "r", "G": "g"}


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which OGBench's mazes draw from, and restores it afterwards."""
    kept = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(kept)


def antmaze_map(size: str) -> list[list[int | str]]:
    """The maze map for Gymnasium-Robotics, rows reversed: its rows run against y, D4RL's with it, so that
    positions differ by a shift only."""
    return [[_CELLS[c] for c in row] for row in reversed(ANTMAZE[size])]


def maze2d_map(size: str) -> list[list[int | str]]:
    """The maze map for Gymnasium-Robotics, rotated: D4RL's first coordinate is the row.

    Every free cell is a start, as in D4RL.
    """
    rows = [[("r" if c == "." else _CELLS[c]) for c in row] for row in MAZE2D[size]]
    return [list(column) for column in reversed(list(zip(*rows)))]


def evaluation_env(task: "Task") -> "gymnasium.Env":
    """A new evaluation environment of a task, with actions in [-1, 1].

    Raises UserError where the task has none or its package is missing.
    """
    if not hasattr(task, "refused"):
        raise UserError(
            f"a task, as of load_task, has an environment, a {type(task).__name__} has none"
        )
    if task.refused is not None:
        raise UserError(f"{task.id}: {task.refused}")
    if not task.env:
        raise UserError(f"{task.id}: there is no environment; name one: task.env=HalfCheetah-v5")
    return make_env(task.env, task.env_kwargs, task.id, adapter=task.adapter)


def check_goals(env: "gymnasium.Env", task: "Task") -> None:
    """Raises UserError where the environment does not know one of the task's goals."""
    for goal in task.task_ids:
        try:
            with numpy_seed(0):
                env.reset(seed=0, options={"task_id": goal})
        except UserError:
            raise
        # whatever an environment raises for a number that it does not know
        except Exception as error:
            words = in_one_line(error) or type(error).__name__
            raise UserError(f"{task.id}: {task.env} has no goal {goal} ({words})") from None


def goal_distance(env: "gymnasium.Env", info: Mapping[str, Any]) -> float | None:
    """The distance to the goal after a reset or a step with this `info`; None where there is none.

    An environment may tell its own, as `info["distance"]` of `reset` and `step`. In OGBench's mazes it is the
    straight line from agent (or ball) to goal, with its cubes the mean distance of a cube to its place, in metres.
    """
    raw: Any = env.unwrapped
    if "distance" in info:
        return float(info["distance"])
    if hasattr(raw, "cur_goal_xy"):
        ball = getattr(raw, "get_agent_ball_xy", None)
        place = ball()[1] if ball else raw.get_xy()
        return float(np.linalg.norm(place - raw.cur_goal_xy))
    # scenes have buttons and drawers, too
    if "privileged/block_0_pos" in info and "privileged/button_0_pos" not in info:
        targets = raw._cube_target_mocap_ids
        places = [info[f"privileged/block_{i}_pos"] for i in range(len(targets))]
        gap = np.stack(places) - raw._data.mocap_pos[targets]
        return float(np.linalg.norm(gap, axis=-1).mean())
    return None


def maze_walls(env: "gymnasium.Env") -> tuple[list[tuple[float, float]], float] | None:
    """The centres of the walls of one of OGBench's mazes, and how wide each is; None of other environments.

    The first two numbers of an observation are a place there.
    """
    raw: Any = env.unwrapped
    if not hasattr(raw, "maze_map") or not hasattr(raw, "ij_to_xy"):
        return None
    cells = np.argwhere(np.asarray(raw.maze_map) == 1).tolist()
    places = [raw.ij_to_xy((i, j)) for i, j in cells]
    return [(float(x), float(y)) for x, y in places], float(raw._maze_unit)


def make_env(
    env: str, kwargs: Mapping[str, Any], name: str, *, adapter: str | None = None
) -> "gymnasium.Env":
    """An environment with flat observations and actions in [-1, 1].

    Raises UserError for an unknown id or argument, and where its package is missing.
    """
    import gymnasium
    from gymnasium.wrappers import RescaleAction

    # no rendering: dm_control would require a display
    os.environ.setdefault("MUJOCO_GL", "disabled")
    # OGBench's environments make a new Box, and gymnasium this warning, whenever their space is read.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    with warnings.catch_warnings():
        # v4 is used on purpose
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        warnings.filterwarnings("ignore", message=".*reward functions were updated.*")
        try:
            try:
                gym_env = gymnasium.make(env, disable_env_checker=True, **kwargs)
            except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound):
                gym_env = _make_from_package(env, kwargs, name)
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            words = in_one_line(error)
            raise UserError(f"{name}: environment {env}: {words}{_nearest_env(env)}") from None
        gym_env = adapt(gym_env, adapter)
        # OGBench makes its spaces, and warns, each time they are asked for
        gym_env.action_space, gym_env.observation_space = (
            gym_env.action_space,
            gym_env.observation_space,
        )
    space: Any = gym_env.action_space
    bounds: list[Any] = [getattr(space, k, np.nan) for k in ("low", "high")]
    if not (np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()):
        raise UserError(
            f"{name}: environment {env} takes {space}; actions must be a Box with finite bounds, the lower"
            " below the upper, or Discrete"
        )
    if abs(space.low + 1).max() > 0 or abs(space.high - 1).max() > 0:
        gym_env = RescaleAction(gym_env, np.float64(-1), np.float64(1))
    return gym_env


_PACKAGES = ("ogbench", "gymnasium_robotics", "minigrid")


def _make_from_package(env: str, kwargs: Mapping[str, Any], name: str) -> "gymnasium.Env":
    """Environments that a package registers when imported."""
    import importlib

    import gymnasium

    missing = []
    for package in _PACKAGES:
        try:
            # gymnasium-robotics prints a notice of its own
            with contextlib.redirect_stderr(io.StringIO()):
                module = importlib.import_module(package)
        except ImportError:
            missing.append(package)
            continue
        if package == "gymnasium_robotics":
            gymnasium.register_envs(module)
        if env in gymnasium.registry:
            return gymnasium.make(env, disable_env_checker=True, **kwargs)
    if env.startswith("MiniGrid"):
        which = "install minigrid (pip install minigrid)"
    elif "ogbench" in missing:
        # without its dependency labmaze, which Python 3.13 has no wheel of
        which = "OGBench's need: pip install --no-deps ogbench dm-control"
    else:
        which = "one of a package of yours is written module:Id"
    raise UserError(
        f"{name}: environment {env} is not installed (tried gymnasium, ogbench, gymnasium-robotics, "
        f"minigrid){_nearest_env(env)}; {which}"
    )


def _nearest_env(env: str) -> str:
    """ "; did you mean 'Hopper-v5'?": the latest version of that name, else the nearest id."""
    import difflib

    import gymnasium

    base = lambda key: key.rpartition("-v")[0] or key
    version = lambda key: int(key.rpartition("-v")[2]) if key.rpartition("-v")[2].isdigit() else 0
    known = [key for key in gymnasium.registry if key != env]
    same = [key for key in known if base(key) == base(env) and version(key) > 3] or [
        key for key in known if base(key) == base(env)
    ]
    near = (
        [max(same, key=version)] if same else difflib.get_close_matches(env, known, n=1, cutoff=0.7)
    )
    return f"; did you mean {near[0]!r}?" if near else ""


def adapt(env: "gymnasium.Env", adapter: str | None) -> "gymnasium.Env":
    """The environment with an adapter; None: unchanged if it observes a flat Box."""
    from gymnasium.spaces import Box, Discrete

    if adapter is not None and adapter not in (known := (*_ADAPTERS, *RULES, "goal")):
        raise unknown("adapter", adapter, known)
    if adapter in RULES:
        env = RULES[adapter].apply(env)
    if adapter == "goal":
        env = _with_goal(env)
    elif adapter in _ADAPTERS:
        env = _observe(env, _ADAPTERS[adapter](env))
    elif not (isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1):
        env = _observe(env, _flat(env))
    if isinstance(env.action_space, Discrete):
        env = _choose(env)
    return env


def _with_goal(env: "gymnasium.Env") -> "gymnasium.Env":
    """Observations (2 O,) with the goal of the episode, from `reset`; `task_id` is a reset option."""
    import gymnasium
    from gymnasium.spaces import Box, flatdim

    class WithGoal(gymnasium.Wrapper):
        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            obs, info = self.env.reset(**kwargs)
            if "goal" not in info:
                raise UserError(f"{env.spec and env.spec.id}: reset tells no goal, as info['goal']")
            self.goal = np.ravel(info["goal"])
            return np.concatenate([np.ravel(obs), self.goal]), info

        def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, info = self.env.step(action)
            obs = np.concatenate([np.ravel(obs), self.goal])
            return obs, reward, terminated, truncated, info

    wrapped = WithGoal(env)
    size = 2 * flatdim(env.observation_space)
    wrapped.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
    return wrapped


def _observe(env: "gymnasium.Env", function: Callable[[Any], np.ndarray]) -> "gymnasium.Env":
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation

    with numpy_seed(0):
        sample, _ = env.reset(seed=0)
    size = len(function(sample))
    box = Box(-np.inf, np.inf, (size,), np.float64)
    return TransformObservation(env, function, box)


def _choose(env: "gymnasium.Env") -> "gymnasium.Env":
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformAction

    space: Any = env.action_space
    n, start = int(space.n), int(space.start)
    box = Box(-1.0, 1.0, (n,), np.float32)
    return TransformAction(env, lambda a: start + int(np.argmax(a)), box)


def _flat(env: "gymnasium.Env") -> Callable[[Any], np.ndarray]:
    from offbench.tasks import spaces

    space = spaces.of_gymnasium(env.observation_space, "the observation space")

    def flatten(obs: Any) -> np.ndarray:
        return spaces.flatten(space, _one_step(obs), "an observation")[0]

    return flatten


def _one_step(obs: Any) -> Any:
    if isinstance(obs, Mapping):
        return {k: _one_step(v) for k, v in obs.items()}
    return np.asarray(obs)[None]


def _ant(env: "gymnasium.Env") -> Callable[[Any], np.ndarray]:
    zeros = np.zeros(84)
    return lambda obs: np.concatenate([obs, zeros])


def _antmaze(env: Any) -> Callable[[Any], np.ndarray]:
    start = np.array(env.unwrapped.maze.unique_reset_locations[0])
    return lambda obs: np.concatenate([obs["achieved_goal"] - start, obs["observation"]])


def _maze2d(env: Any) -> Callable[[Any], np.ndarray]:
    """D4RL observes the centre of cell (row, column) as (row, column) - 0.2."""
    maze = env.unwrapped.maze
    shift = np.array([maze.x_map_center, maze.y_map_center]) - 0.5 - OFF_CENTRE
    return lambda obs: np.concatenate([obs["observation"][:2] + shift, obs["observation"][2:]])


def _kitchen(env: Any) -> Callable[[Any], np.ndarray]:
    goal = np.zeros(30)
    for task in env.unwrapped.goal:
        first, values = _KITCHEN[task]
        goal[first : first + len(values)] = values
    return lambda obs: np.concatenate([obs["observation"][:9], obs["observation"][18:39], goal])


def _image(env: "gymnasium.Env") -> Callable[[Any], np.ndarray]:
    return lambda obs: np.asarray(obs["image"], np.float64).reshape(-1)


_ADAPTERS: dict[str, Callable[["gymnasium.Env"], Callable[[Any], np.ndarray]]] = {
    "flat": _flat,
    "d4rl-ant": _ant,
    "d4rl-antmaze": _antmaze,
    "d4rl-maze2d": _maze2d,
    "d4rl-kitchen": _kitchen,
    "image": _image,
}
