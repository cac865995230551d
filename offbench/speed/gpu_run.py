"""A run with evaluation, as a user's is, for a machine that may have no environments installed."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, episode_returns, from_episodes
from offbench.errors import UserError
from offbench.methods.iql import IQL
from offbench.rollout import EnvPool, evaluate, make_policy
from offbench.speed.gpu_plan import Job, Sizes
from offbench.tasks.task import Task
from offbench.training.engine import BLOCK
from offbench.training.gate import make_engine
from offbench.training.step import initial_carry, make_step, n_minibatches
from offbench.types import Spec

HOPPER = "offbench/hopper/medium-replay-v0"
POINT_MASS = Task(
    id="own/point-mass-v0",
    family="own",
    env="PointMass",
    max_episode_steps=50,
    score="return",
    ref_source="a point that is steered to the origin: minus its distance at every step",
)


class PointMass:
    """A point in the plane, pushed by the action; the reward is minus its distance from the origin.

    It has what `evaluate` needs of an environment, and needs nothing but numpy.
    """

    observation_space = SimpleNamespace(shape=(4,))

    def reset(self, *, seed: int, options: Any = None) -> tuple[np.ndarray, dict]:
        start = np.random.default_rng(seed).uniform(-1, 1, 2)
        self.state, self.t = np.concatenate([start, np.zeros(2)]), 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        place, speed = self.state[:2], self.state[2:]
        speed = 0.9 * speed + 0.05 * np.clip(action, -1, 1)
        self.state, self.t = np.concatenate([np.clip(place + speed, -2, 2), speed]), self.t + 1
        reward = -float(np.linalg.norm(self.state[:2]))
        return self.state, reward, False, self.t == POINT_MASS.max_episode_steps, {}

    def close(self) -> None:
        """Nothing to close."""


class _Points(EnvPool):
    def take(self, n: int) -> Any:
        self._envs += [PointMass() for _ in range(n - len(self._envs))]  # type: ignore[misc]
        return self._envs[:n]


def point_mass_data(episodes: int = 400) -> ReplayData:
    """Episodes of controllers of all skills, from those that flee the origin to those that seek it."""
    r, env = np.random.default_rng(0), PointMass()

    def episode(seed: int) -> Episode:
        skill, damping = r.uniform(-1, 4), r.uniform(0, 8)
        obs, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(POINT_MASS.max_episode_steps):
            state = obs[-1]
            wish = -skill * state[:2] - damping * state[2:] + 0.3 * r.normal(size=2)
            actions.append(np.clip(wish, -1, 1))
            state, reward, *_ = env.step(actions[-1])
            obs.append(state)
            rewards.append(reward)
        no_end = np.zeros(len(rewards), bool)
        return Episode(np.array(obs), np.array(actions), np.array(rewards), no_end)

    # the starts of evaluation are others
    return from_episodes(map(episode, range(2**31, 2**31 + episodes)), name="point mass")


def _task() -> tuple[Task, EnvPool, ReplayData, str]:
    """The embedded hopper where it can be played, else the point mass; and why."""
    try:
        import gymnasium  # noqa: F401
        import mujoco  # noqa: F401

        from offbench.tasks.loading import load_data
        from offbench.tasks.registry import describe

        task = describe(HOPPER)
        return task, EnvPool(task), load_data(task)[0], ""
    except (ImportError, UserError) as error:
        why = f"of {HOPPER}: {error}"
        return POINT_MASS, _Points(POINT_MASS), point_mass_data(), why


class Run:
    """IQL on a task with an environment: trained in pieces, evaluated before and after."""

    EPISODES = 3

    def __init__(self, job: Job, out: Path, sizes: Sizes):
        start = time.perf_counter()
        self.task, self.pool, data, why = _task()
        self.sizes, self.method = sizes, IQL(hidden=sizes.hidden)
        self.data_return = float(episode_returns(data).mean())
        data = data.to(torch.device(sizes.device))
        pipeline = make_pipeline(data, batch_size=sizes.batch_size)
        spec = pipeline.spec(
            Spec(data.obs.shape[1], data.action.shape[1], 0.99, self.task.max_episode_steps)
        )
        self.carry = initial_carry(self.method, spec, range(sizes.run_seeds), sizes.device)
        # a miniature is not worth compiling
        n_steps = 10**6 if sizes.device == "cuda" else 0
        step = make_step(self.method, pipeline)
        self.engine, ran = make_engine(step, self.carry, backend="auto", n_steps=n_steps)
        self.policy = make_policy(self.method, pipeline)
        self.facts: dict[str, Any] = {
            "method": "iql",
            "task": self.task.id,
            "instead": why,
            "engine": str(ran),
            "rows": data.n_transitions,
            "seeds": sizes.run_seeds,
            "setup_s": round(time.perf_counter() - start, 1),
        }

    def train(self) -> dict[str, Any]:
        """Trains for `run_s` seconds; rates are those of the whole time, not of the best piece."""
        before = self._returns(self.carry.state)
        steps, piece, begin = 0, BLOCK, time.perf_counter()
        while (now := time.perf_counter()) < begin + self.sizes.run_s:
            metrics = self.engine.run(piece)
            # reading them waits for the device
            finite = all(bool(value.isfinite().all()) for value in metrics.values())
            steps += piece
            if time.perf_counter() - now < self.sizes.run_s / 60:
                piece *= 2
        seconds = time.perf_counter() - begin
        rate = steps * n_minibatches(self.method) / seconds
        start = time.perf_counter()
        after = self._returns(self.engine.carry.state)
        return {
            "updates": self.engine.step,
            "seconds": seconds,
            "updates_per_s": rate,
            "seed_updates_per_s": rate * self.sizes.run_seeds,
            "finite": finite,
            "return_before": before,
            "return_after": after,
            "return_of_data": self.data_return,
            "episodes": self.EPISODES * self.sizes.run_seeds,
            "evaluation_s": time.perf_counter() - start,
        }

    def _returns(self, state: Any) -> float:
        """The mean return of all seeds' episodes."""
        seeds = range(self.sizes.run_seeds)
        rows = evaluate(
            self.policy, state, self.pool, seeds=seeds, episodes=self.EPISODES, n_envs=self.EPISODES
        )
        return float(rows["return"].mean())
