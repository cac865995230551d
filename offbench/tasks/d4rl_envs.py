"""D4RL's evaluation rules, applied to Gymnasium and Gymnasium-Robotics environments.

Compiled by the same MuJoCo, D4RL's models equal the models stepped here in every field that this file
does not set. Starts, goals, rewards and terminations are those of D4RL's code.
`results/environments.md` has the measurements, `tests/tasks/recorded` the steps of D4RL's own code that
are repeated here.

    adapter       differences in D4RL
    d4rl-gym      masses of capsules and contact margins as in MuJoCo 2.1.0 and earlier (mujoco-py
                  has 2.0 and 2.1)
    d4rl-ant      the same
    d4rl-antmaze  the same; 10 steps per second (20), softer contacts, motors of 30 Nm (150); a start
                  with the ant's own noise; the goal's noise, drawn anew for every episode
    d4rl-maze2d   starts in every free cell and in the goal's, 0.2 from its centre, with a velocity
    d4rl-hand     contacts as MuJoCo 2.1; the reward falls with the distance of hand and object; a
                  dropped pen terminates the episode
    d4rl-kitchen  contacts as MuJoCo 2.1; ten times the observation noise, which the controller and
                  the rewards see
    adroit-1.2.0  rewards and terminations of Gymnasium-Robotics 1.2.0 (Minari's first sets): D4RL's
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

# radius of a goal; Gymnasium-Robotics has 0.45
NEAR = 0.5
# distance of maze2d's observation (row, column) from the centre of that cell, along both axes
OFF_CENTRE = 0.2
# what the cheetah's XML scales the sum of all masses to
_CHEETAH_MASS = 14.0


# --- MuJoCo 2.1 and MuJoCo 3 ---------------------------------------------------------------


def weigh_as_before(model: Any, total: float | None = None) -> None:
    """Sets masses and inertias of bodies of spheres and capsules as MuJoCo computed them until 2.1.0: a
    capsule as a cylinder, half a radius longer than its straight part at both ends.

    `total` is the sum that masses are scaled to; None: not scaled.
    """
    import mujoco

    for body in range(1, model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        if not len(geoms):
            continue
        parts = [_volume(model.geom_type[g], *model.geom_size[g, :2]) for g in geoms]
        density = model.body_mass[body] / sum(exact for exact, _, _ in parts)
        volume = np.array([v for _, v, _ in parts])
        centre = volume @ model.geom_pos[geoms] / volume.sum()
        tensor = np.zeros((3, 3))
        for geom, (_, v, diagonal) in zip(geoms, parts):
            turn, away = np.zeros((3, 3)), model.geom_pos[geom] - centre
            mujoco.mju_quat2Mat(turn.reshape(-1), model.geom_quat[geom])
            tensor += turn @ np.diag(diagonal) @ turn.T
            tensor += v * (away @ away * np.eye(3) - np.outer(away, away))
        moments, axes = np.linalg.eigh(tensor)
        # right-handed
        axes[:, 2] *= np.linalg.det(axes)
        model.body_mass[body] = density * volume.sum()
        model.body_inertia[body] = density * moments
        model.body_ipos[body] = centre
        mujoco.mju_mat2Quat(model.body_iquat[body], axes.reshape(-1))
    # values derived from inertial frames: frames that coincide, boxes around geoms
    model.body_sameframe[:] = model.geom_sameframe[:] = 0
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    if total is not None:
        scale = total / model.body_mass.sum()
        model.body_mass[:] *= scale
        model.body_inertia[:] *= scale
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _volume(kind: int, radius: float, half: float) -> "tuple[float, float, NDArray[Any]]":
    """(volume, volume until 2.1.0, moments of inertia until 2.1.0 at density 1) of a geom."""
    import mujoco

    sphere = 4 / 3 * np.pi * radius**3
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return sphere, sphere, np.full(3, 0.4 * sphere * radius**2)
    assert kind == mujoco.mjtGeom.mjGEOM_CAPSULE
    disc, length = np.pi * radius**2, 2 * half + radius
    across, along = (3 * radius**2 + length**2) / 12, radius**2 / 2
    return (
        disc * 2 * half + sphere,
        disc * length,
        disc * length * np.array([across, across, along]),
    )


def touch_as_before(model: Any, *, convex: bool = False) -> None:
    """Halves contact margins: MuJoCo until 2.1 uses the larger of two geoms' margins, from 3.6 on at the
    latest their sum (nearly all geoms of a model here have the same margin). With `convex`, meshes, boxes
    and cylinders are collided by the older algorithm."""
    import mujoco

    model.geom_margin[:] /= 2
    if convex:
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MULTICCD
        model.opt.ccd_iterations = 50


# --- locomotion -----------------------------------------------------------------------------


def gym(env: "gymnasium.Env") -> "gymnasium.Env":
    """HalfCheetah, Hopper, Walker2d and Ant under D4RL's rules: masses and contacts; the code is unchanged."""
    inner: Any = env.unwrapped
    cheetah = type(inner).__name__.startswith("HalfCheetah")
    weigh_as_before(inner.model, total=_CHEETAH_MASS if cheetah else None)
    touch_as_before(inner.model)
    return env


# --- mazes ----------------------------------------------------------------------------------


def antmaze(env: "gymnasium.Env") -> "gymnasium.Env":
    """AntMaze under D4RL's rules: the ant's model and start; goals terminate the episode."""
    inner: Any = env.unwrapped
    model = inner.ant_env.model
    model.opt.timestep = 0.02
    model.geom_solref[:] = 0.02, 1.0
    model.geom_solimp[:, :3] = 0.8, 0.8, 0.01
    model.actuator_gear[:, 0] = 30.0
    weigh_as_before(model)
    touch_as_before(model)
    inner.position_noise_range = 0.0
    inner.ant_env._reset_noise_scale = 0.1
    return _maze(env, _antmaze_goal, lambda inner, obs, rng: obs, ends=True)


def maze2d(env: "gymnasium.Env") -> "gymnasium.Env":
    """Maze2d under D4RL's rules: starts and goals, no termination at the goal. Wall contacts are as hard as
    in MuJoCo 2.1, where a body with two slide joints was immovable along the third axis."""
    inner: Any = env.unwrapped
    model = inner.point_env.model
    model.body_invweight0[1, 0] = 2 / 3 / model.body_mass[1]
    touch_as_before(model)
    return _maze(env, _maze2d_goal, _maze2d_start, ends=False)


def _antmaze_goal(inner: Any, rng: np.random.Generator) -> "NDArray[Any]":
    """A goal at the centre of its cell plus noise, the sum of two terms per axis, 3/8 of a cell at most.
    D4RL clips it at the first coordinate of the start, beyond which none of its goals lies."""
    side = inner.maze.maze_size_scaling
    noise = rng.uniform(0, 0.25 * side, 2) + rng.uniform(0, 0.125 * side, 2)
    return inner.maze.unique_goal_locations[0] + noise


def _maze2d_goal(inner: Any, rng: np.random.Generator) -> "NDArray[Any]":
    return inner.maze.unique_goal_locations[0] + OFF_CENTRE


def _maze2d_start(inner: Any, obs: Any, rng: np.random.Generator) -> Any:
    """A start drawn uniformly from the free cells and that of the goal."""
    maze, point = inner.maze, inner.point_env
    cells = [*maze.unique_reset_locations, *maze.unique_goal_locations]
    place = cells[rng.integers(len(cells))] + OFF_CENTRE + rng.uniform(-0.1, 0.1, 2)
    point.set_state(place, 0.1 * rng.standard_normal(2))
    state = np.concatenate([point.data.qpos, point.data.qvel])
    return {**obs, "observation": state, "achieved_goal": state[:2]}


def _maze(
    env: "gymnasium.Env",
    goal: "Callable[[Any, np.random.Generator], NDArray[Any]]",
    start: Callable[[Any, Any, np.random.Generator], Any],
    *,
    ends: bool,
) -> "gymnasium.Env":
    import gymnasium

    class D4RLMaze(gymnasium.Wrapper):
        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            obs, info = self.env.reset(**kwargs)
            inner: Any = self.env.unwrapped
            # a generator of its own: the robot inside is seeded with the number of the maze
            rng = inner.np_random.spawn(1)[0]
            inner.goal = goal(inner, rng)
            return {**start(inner, obs, rng), "desired_goal": inner.goal}, info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, _, _, truncated, info = self.env.step(action)
            inner: Any = self.env.unwrapped
            distance = float(np.linalg.norm(obs["achieved_goal"] - inner.goal))
            near = distance <= NEAR
            reward = float(np.exp(-distance)) if inner.reward_type == "dense" else float(near)
            return obs, reward, near and ends, truncated, {**info, "success": near}

    return D4RLMaze(env)


# --- hand and kitchen -----------------------------------------------------------------------

# attributes of the simulator's data (kind of position) and of the environment (its index)
_GRASPED: Mapping[str, tuple[str, str]] = {
    "Door": ("site_xpos", "handle_site_id"),
    "Hammer": ("xpos", "obj_body_id"),
    "Relocate": ("xpos", "obj_body_id"),
}
_PALM = {"Door": "grasp_site_id", "Hammer": "S_grasp_site_id", "Relocate": "S_grasp_site_id"}
# height of the pen, in metres
_DROPPED = 0.075


def hand(env: "gymnasium.Env") -> "gymnasium.Env":
    """Adroit under D4RL's rules: contacts of MuJoCo 2.1, rewards and terminations."""
    inner: Any = env.unwrapped
    touch_as_before(inner.model, convex=True)
    return hand_rewards(env)


def hand_rewards(env: "gymnasium.Env") -> "gymnasium.Env":
    """Rewards and terminations of D4RL. Gymnasium-Robotics 1.2.1 to 1.4.2 add a tenth of the distance from
    palm to object in Adroit version 1; D4RL, 1.2.0 and version 2 subtract it. A dropped pen terminates."""
    import gymnasium

    name = type(env.unwrapped).__name__.removeprefix("AdroitHand").removesuffix("Env")

    class D4RLHand(gymnasium.Wrapper):
        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, info = self.env.step(action)
            inner: Any = self.env.unwrapped
            if name == "Pen":
                terminated = bool(inner.data.xpos[inner.obj_body_id][2] < _DROPPED)
            else:
                reward = float(reward) - 0.2 * _distance_to_object(inner, name)
            return obs, reward, terminated, truncated, info

    return D4RLHand(env)


def _distance_to_object(inner: Any, name: str) -> float:
    """Distance from palm to handle, hammer or ball, in metres."""
    where, number = _GRASPED[name]
    palm = inner.data.site_xpos[getattr(inner, _PALM[name])]
    return float(np.linalg.norm(palm - getattr(inner.data, where)[getattr(inner, number)]))


# share of the amplitudes in the robot's specification
_KITCHEN_NOISE = 0.1


def kitchen(env: "gymnasium.Env") -> "gymnasium.Env":
    """Kitchen under D4RL's rules: its noise on robot and objects, which rewards depend on, too."""
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_INDICES

    inner: Any = env.unwrapped
    robot = inner.robot_env
    touch_as_before(robot.model, convex=True)
    robot.robot_noise_ratio = _KITCHEN_NOISE
    # of the 21 coordinates of the objects; the specification is read for the 29 velocities, one fewer
    amplitude = _KITCHEN_NOISE * np.append(robot.robot_pos_noise_amp[9:], 0.005)

    def observe(robot_obs: "NDArray[Any]") -> dict[str, Any]:
        position = inner.data.qpos.copy()
        position[9:] += amplitude * robot.np_random.uniform(-1, 1, len(amplitude))
        done = {task: position[OBS_ELEMENT_INDICES[task]] for task in inner.goal}
        state = np.concatenate([robot_obs, position[9:], inner.data.qvel[9:]])
        return {"observation": state, "achieved_goal": done, "desired_goal": inner.goal}

    inner._get_obs = observe
    return env


class Rules(NamedTuple):
    apply: "Callable[[gymnasium.Env], gymnasium.Env]"
    # part of a run's identity: raised when scores under these rules change
    version: int


RULES: dict[str, Rules] = {
    "d4rl-gym": Rules(gym, 1),
    "d4rl-ant": Rules(gym, 1),
    "d4rl-antmaze": Rules(antmaze, 1),
    "d4rl-maze2d": Rules(maze2d, 1),
    "d4rl-hand": Rules(hand, 1),
    "d4rl-kitchen": Rules(kitchen, 1),
    "adroit-1.2.0": Rules(hand_rewards, 1),
}
