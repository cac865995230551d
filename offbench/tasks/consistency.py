"""Checks that a task's environment reproduces recorded steps of its dataset.

The simulator is set to a recorded state, the recorded action is applied, and the result is compared
with the recorded one. Another time step, version of the simulator or reward lowers the share of steps
that agree.

    the state is taken from            of
    infos/qpos, infos/qvel             D4RL's hands; where door, nail, ball and target are follows from
                                       the observation
    qpos, qvel (button_states)         OGBench's files
    the observation                    Gymnasium's HalfCheetah, Hopper, Walker2d and Ant; the mazes of
                                       D4RL and Minari; OGBench's pointmaze
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offbench.errors import UserError
from offbench.tasks.environments import OFF_CENTRE, evaluation_env
from offbench.tasks.loading import load_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from offbench.tasks.task import Task

# share of the standard deviation of a feature's change in one step
CLOSE = 1e-3
# features that change by less are left out
_STILL = 1e-5
# Hopper and Walker2d observe velocities up to this
_CLIPPED = 10.0


class OtherSizes(UserError):
    """Observations or actions were recorded in other sizes than the environment's."""


class Agreement(NamedTuple):
    """Agreement of repeated steps with recorded ones.

    Errors are those of the worst feature, in standard deviations of its change in one step.
    """

    steps: int
    median: float
    p95: float
    # of steps with an error below CLOSE
    share: float
    # share of rewards within CLOSE of their standard deviation; None: not comparable
    rewards: float | None

    @property
    def agrees(self) -> bool:
        """Whether most steps agree. Single-precision states lose some steps with contacts (a third in
        OGBench's cube); another time step or sign of the reward loses nearly all."""
        return self.share > 0.5 and (self.rewards is None or self.rewards > 0.9)

    @property
    def words(self) -> str:
        """The result as one line of text."""
        rewards = "" if self.rewards is None else f"; {self.rewards:.0%} of the rewards agree"
        return (
            f"{self.steps} recorded steps repeated: {self.share:.0%} agree to {CLOSE:g} of a step's change "
            f"(median error {self.median:.1g}, 95th percentile {self.p95:.1g}){rewards}"
        )


class Steps(NamedTuple):
    """Recorded steps, one per row; `state` has the columns of the simulator's state in the file."""

    obs: "NDArray[Any]"  # (n, O)
    action: "NDArray[Any]"  # (n, A)
    reward: "NDArray[Any]"  # (n,)
    next_obs: "NDArray[Any]"  # (n, O)
    change: "NDArray[Any]"  # (O,) standard deviation of next_obs - obs in the whole set
    # qpos, qvel, button_states: (n, ·)
    state: "Mapping[str, NDArray[Any]]"


def one_step(task: "Task", *, steps: int = 300, seed: int = 0) -> Agreement:
    """Repeats sampled steps of a task's dataset in its environment.

    Args:
        task: the task.
        steps: number of sampled steps.
        seed: seed of the sample and of the environment.

    Returns:
        The agreement of the results with the recorded steps.

    Raises:
        UserError: the dataset does not determine the state of its simulator; OtherSizes where it is of
            another environment.
    """
    env: Any = evaluation_env(task)
    recorded = _recorded(task, steps, np.random.default_rng(seed))
    env.reset(seed=seed)
    sizes = recorded.obs.shape[1], recorded.action.shape[1]
    shown = env.observation_space.shape[0], env.action_space.shape[0]
    # a goal-conditioned environment shows the goal behind the observation
    if sizes[1] != shown[1] or shown[0] not in (sizes[0], 2 * sizes[0]):
        raise OtherSizes(
            f"{task.id}: observations of {sizes[0]} numbers and actions of {sizes[1]} were recorded,"
            f" {task.env} has {shown[0]} and {shown[1]}"
        )
    put = _put(task, env, recorded)
    seen, rewards = np.empty_like(recorded.next_obs, float), np.empty(len(recorded.reward))
    for i in range(len(seen)):
        put(
            recorded.obs[i].astype(float),
            {k: v[i].astype(float) for k, v in recorded.state.items()},
        )
        # OGBench's arm, after a success
        if hasattr(env.unwrapped, "_reset_next_step"):
            env.unwrapped._reset_next_step = False
        after, rewards[i] = env.step(recorded.action[i])[:2]
        # a goal-conditioned task shows the goal behind the observation
        seen[i] = after[: seen.shape[1]]
    env.close()
    moves = recorded.change > _STILL
    error = (np.abs(seen - recorded.next_obs)[:, moves] / recorded.change[moves]).max(1)
    near = np.abs(rewards - recorded.reward) <= CLOSE * recorded.reward.std()
    # the goal differed, or (Ant) the reward depends on positions that lag behind the state
    name = task.env or ""
    other = "maze" in name.lower() or task.id.startswith("ogbench/") or name.startswith("Ant-")
    share = None if other else float(near.mean())
    q50, q95 = np.quantile(error, (0.5, 0.95))
    return Agreement(len(error), float(q50), float(q95), float((error < CLOSE).mean()), share)


# an observation (O,) and an action (A,) -> the next observation (O,)
Simulator = Callable[["NDArray[Any]", "NDArray[Any]"], "NDArray[Any]"]


def simulator(task: "Task", sizes: tuple[int, int]) -> Simulator:
    """One step of a task's environment from an observed state.

    Args:
        sizes: numbers of an observation and of an action.

    Raises:
        UserError: the task has no environment, or observations do not determine the state of its simulator.
    """
    if not task.env:
        raise UserError(f"{task.id}: no environment is known, so no step can be repeated")
    env: Any = evaluation_env(task)
    env.reset(seed=0)
    blank = [np.zeros((1, size)) for size in sizes]
    steps = Steps(blank[0], blank[1], np.zeros(1), blank[0], np.ones(sizes[0]), {})
    put = _put(task, env, steps)

    def step(obs: "NDArray[Any]", action: "NDArray[Any]") -> "NDArray[Any]":
        put(obs.astype(float), {})
        return env.step(action)[0][: len(obs)]

    return step


# --- what was recorded ----------------------------------------------------------------------


def _recorded(task: "Task", n: int, rng: np.random.Generator) -> Steps:
    path = task.path
    if path is not None and task.family not in ("offbench", "composed") and path.is_file():
        obs, action, reward, ends = _rows(task, path)
        state, rows = _states(path), np.flatnonzero(~ends[:-1])
    else:
        data, _ = load_data(task, defects="ignore")
        obs, action, reward, state = data.obs.numpy(), data.action.numpy(), data.reward.numpy(), {}
        rows = np.flatnonzero((data.valid & ~data.terminal).numpy())
    if (task.env or "").startswith(("Hopper", "Walker2d")):
        rows = rows[
            (np.abs(obs[rows]) < _CLIPPED).all(1) & (np.abs(obs[rows + 1]) < _CLIPPED).all(1)
        ]
    if not len(rows):
        raise UserError(
            f"{task.id}: no step can be repeated: no recorded step has a next row in its episode"
        )
    some = rng.choice(rows, min(len(rows), 20_000), replace=False)
    change = (obs[some + 1].astype(float) - obs[some]).std(0)
    at = some[:n]
    state = {k: v[at] for k, v in state.items()}
    return Steps(obs[at], action[at], reward[at], obs[at + 1], change, state)


def _rows(task: "Task", path: Path) -> "tuple[NDArray[Any], ...]":
    """Observations, actions in [-1, 1], rewards and ends of episodes, as the rows of a file."""
    from offbench.tasks.formats import arrays, npz

    if arrays.layout(path, name=task.id) == "ogbench":
        with npz.Npz(path, task.id) as file:
            obs, action, ends = map(file.read, ("observations", "actions", "terminals"))
            reward = file.read("rewards") if "rewards" in file else np.zeros(len(obs))
        return obs, action, reward, ends.astype(bool)
    reading = task.reading or arrays.Reading(
        max_episode_steps=task.max_episode_steps, limit_given=True
    )
    raw, at = arrays.steps(path, name=task.id, reading=reading)
    return raw.obs, raw.action, raw.reward, at.end


def _states(path: Path) -> "dict[str, NDArray[Any]]":
    from offbench.tasks.formats import hdf5, npz

    name, names = str(path), ("qpos", "qvel", "button_states")
    if path.suffix == ".npz":
        with npz.Npz(path, name) as file:
            return {k: file.read(k) for k in names if k in file}
    with hdf5.opened(path, name) as file:
        return {
            k: hdf5.array(file, f"infos/{k}", name) for k in names if hdf5.has(file, f"infos/{k}")
        }


# --- the simulator in a recorded state ------------------------------------------------------

Put = Callable[["NDArray[Any]", "Mapping[str, NDArray[Any]]"], None]
_TORSO = {"HalfCheetah": (1, 9), "Hopper": (1, 6), "Walker2d": (1, 9), "Ant": (2, 15)}
"""Coordinates that are not observed, and all of them; Gymnasium's robots."""


def _put(task: "Task", env: Any, recorded: Steps) -> Put:
    inner = env.unwrapped
    robot = (task.env or "").split("-")[0]
    if robot.startswith("AdroitHand") and {"qpos", "qvel"} <= recorded.state.keys():
        return _put_hand(inner, robot.removeprefix("AdroitHand"))
    if robot in _TORSO:
        hidden, n = _TORSO[robot]
        blank, speeds = np.zeros(hidden), 2 * n - hidden - (robot == "Ant")
        return lambda obs, _: inner.set_state(
            np.concatenate([blank, obs[: n - hidden]]), obs[n - hidden : speeds]
        )
    if task.id.startswith("ogbench/") and {"qpos", "qvel"} <= recorded.state.keys():
        return _put_ogbench(inner)
    # OGBench's; its velocity is set to 0 by every step
    if robot == "pointmaze":
        return lambda obs, _: inner.set_state(obs[:2], np.zeros(2))
    if task.adapter == "d4rl-maze2d":
        shift = np.array([inner.maze.x_map_center, inner.maze.y_map_center]) - 0.5 - OFF_CENTRE
        return lambda obs, _: inner.point_env.set_state(obs[:2] - shift, obs[2:])
    if task.adapter == "d4rl-antmaze":
        start = inner.maze.unique_reset_locations[0]
        return lambda obs, _: _put_ant(inner, obs[:2] + start, obs[2:])
    # achieved_goal, desired_goal, observation
    if robot.startswith("PointMaze"):
        return lambda obs, _: inner.point_env.set_state(obs[4:6], obs[6:])
    if robot.startswith("AntMaze") and recorded.obs.shape[1] == 31:
        return lambda obs, _: _put_ant(inner, obs[:2], obs[4:])
    raise UserError(
        f"{task.id}: no step can be repeated in {task.env}: the set holds no simulator states, and its "
        "observations do not determine them"
    )


def _put_ant(inner: Any, position: "NDArray[Any]", seen: "NDArray[Any]") -> None:
    inner.ant_env.set_state(np.concatenate([position, seen[:13]]), seen[13:27])


def _put_ogbench(inner: Any) -> Put:
    """Sets the state with positions of one simulator step before, which the arm's controller reads; with
    buttons OGBench updates the positions itself."""
    import mujoco

    model, data = inner.model, inner.data

    def put(obs: "NDArray[Any]", state: "Mapping[str, NDArray[Any]]") -> None:
        qpos, qvel, *buttons = state.values()
        before = qpos.copy()
        if not buttons:
            mujoco.mj_integratePos(model, before, qvel, -model.opt.timestep)
        inner.set_state(before, qvel, *(b.astype(int) for b in buttons))
        data.qpos[:] = qpos

    return put


def _put_hand(inner: Any, name: str) -> Put:
    """Sets the state of hand and object, and moves the bodies whose positions differ between episodes
    until the observation equals the recorded one."""
    import mujoco

    model, data = inner.model, inner.data

    def put(obs: "NDArray[Any]", state: "Mapping[str, NDArray[Any]]") -> None:
        # positions in an observation lag the state by one simulator step
        inner.set_state(state["qpos"] - model.opt.timestep * state["qvel"], state["qvel"])
        if name == "Door":
            model.body_pos[inner.door_body_id] += obs[32:35] - data.site_xpos[inner.handle_site_id]
        elif name == "Hammer":
            nail = data.site_xpos[inner.target_obj_site_id]
            model.body_pos[inner.target_body_id] += obs[42:45] - nail
        elif name == "Relocate":
            palm, target = data.site_xpos[inner.S_grasp_site_id], inner.target_obj_site_id
            model.body_pos[inner.obj_body_id] += palm - obs[30:33] - data.xpos[inner.obj_body_id]
            model.site_pos[target] += palm - obs[33:36] - data.site_xpos[target]
        else:
            ends = data.site_xpos[inner.tar_t_site_id] - data.site_xpos[inner.tar_b_site_id]
            shown = ends / inner.tar_length
            turn = np.append(1 + shown @ obs[36:39], np.cross(shown, obs[36:39]))
            quat = model.body_quat[inner.target_obj_body_id]
            mujoco.mju_mulQuat(quat, turn / np.linalg.norm(turn), quat.copy())
        inner.set_state(state["qpos"], state["qvel"])

    return put
