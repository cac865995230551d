"""A point mass that is steered: data of all skills, and the returns of a policy in it."""

import numpy as np
import torch
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.data.replay import Episode, ReplayData, episode_returns, from_episodes
from offbench.types import Policy, Spec, TimeStep

HORIZON, EPISODES, SEEDS = 20, 150, [0, 1, 2]


SPEC = Spec(obs_dim=2, action_dim=2, gamma=0.9, max_episode_steps=HORIZON)


def move(s: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return (s + 0.2 * action).clamp(-1, 1)


def record() -> ReplayData:
    k_start, k_skill, k_noise = rng.split(rng.key(0), 3)
    s = 2 * rng.uniform(k_start, (EPISODES, 2)) - 1
    skill = 2 * rng.uniform(k_skill, (EPISODES, 1)) - 1
    obs, action, reward = [s], [], []
    for k in rng.split(k_noise, HORIZON):
        a = (torch.tanh(-3 * skill * s) + 0.3 * rng.normal(k, (EPISODES, 2))).clamp(-1, 1)
        s = move(s, a)
        obs.append(s), action.append(a), reward.append(-s.norm(dim=1))
    columns = [torch.stack(x, 1).numpy() for x in (obs, action, reward)]
    no_end = np.zeros(HORIZON, bool)  # every episode is cut by the time limit
    return from_episodes([Episode(o, a, r, no_end) for o, a, r in zip(*columns, strict=True)])


def returns_of(method, state, pipeline: Pipeline, n: int = len(SEEDS)) -> torch.Tensor:
    """(n,) mean return of each of n seeds' policies from 50 starts that the data do not hold."""
    e = 50
    policy = pipeline.policy(
        Policy(
            lambda n, e: None,
            lambda s, step, c, key: (vmap(method.act)(s, step.obs, key[:, 0]), c),
        )
    )
    s = (2 * rng.uniform(rng.key(99), (e, 2)) - 1).expand(n, e, 2)
    total, carry, key = torch.zeros(n), policy.init(n, e), torch.zeros(n, e, dtype=torch.int64)
    for t in range(HORIZON):
        step = TimeStep(s, torch.zeros(n, e), torch.full((n, e), t == 0))
        action, carry = policy.act(state, step, carry, key)
        s = move(s, action)
        total -= s.norm(dim=2).mean(1)
    return total


def skilled() -> float:
    """The return of driving straight to the origin."""
    s, total = 2 * rng.uniform(rng.key(99), (50, 2)) - 1, 0.0
    for _ in range(HORIZON):
        s = move(s, (-5 * s).clamp(-1, 1))
        total -= float(s.norm(dim=1).mean())
    return total


def halfway() -> float:
    """From the mean of the data (-13.5) to the best possible (-1.0): no method is near it by chance."""
    return (float(episode_returns(record()).mean()) + skilled()) / 2
