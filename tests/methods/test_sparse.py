"""The reward-shift trap of sparse tasks: the same IQL, the same data, rewards 0/1 or -1/0.

A point starts at 0 and has to reach 1 in steps of at most 0.1; there the episode ends with reward 1,
all other rewards are 0. The recorded walks drift to the goal and back. With 0/1 the values are
gamma^distance, whose differences between actions are so small that advantage weights stay near 1 and
the actor copies the walks. Shifted to -1/0 the differences are 1 / (1 - gamma) times as large.
"""

import numpy as np
import pytest
import torch

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import NStep
from offbench.methods.iql import IQL
from offbench.training.loop import train
from offbench.types import Spec

HORIZON, SEEDS = 40, [0, 1, 2]
SPEC = Spec(obs_dim=1, action_dim=1, gamma=0.98, max_episode_steps=HORIZON)
METHOD = IQL(hidden=(32, 32), lr=3e-3, expectile=0.9, inverse_temperature=3.0, polyak_rate=0.1)


def walks():
    """Episodes that drift either way, ended by the goal or cut after HORIZON steps."""

    def walk(i: int) -> Episode:
        k_drift, k_start, k_noise = rng.split(rng.fold(rng.key(0), i), 3)
        drift = 0.8 * float(rng.uniform(k_drift, ())) - 0.4
        noise = rng.normal(k_noise, (HORIZON,))
        x, obs, action, reward = 2 * float(rng.uniform(k_start, ())) - 1, [], [], []
        obs.append(x)
        for t in range(HORIZON):
            a = max(-1.0, min(1.0, drift + 0.5 * float(noise[t])))
            x = max(-1.0, x + 0.1 * a)
            obs.append(x), action.append(a), reward.append(float(x >= 1))
            if x >= 1:
                break
        column = lambda values: np.array(values, np.float32)
        terminal = np.array(reward, bool)
        return Episode(column(obs)[:, None], column(action)[:, None], column(reward), terminal)

    return from_episodes(map(walk, range(200)))


def steps_to_goal(transforms) -> list[int]:
    """Per seed, the steps that the trained policy takes from 0 to the goal; HORIZON if it fails."""
    pipeline = make_pipeline(
        walks(), view=NStep(1, SPEC.gamma), transforms=transforms, batch_size=64
    )
    (point,) = train(METHOD, pipeline, SPEC, seeds=SEEDS, n_updates=400, backend="eager")
    x = torch.zeros(len(SEEDS), 1, 1)
    taken = torch.full((len(SEEDS),), HORIZON)
    for t in range(HORIZON):
        action = torch.func.vmap(METHOD.act)(
            point.state, x, torch.zeros(len(SEEDS), dtype=torch.int64)
        )
        x = (x + 0.1 * action).clamp(min=-1.0)
        taken = torch.where((x[:, 0, 0] >= 1) & (taken == HORIZON), t + 1, taken)
    return taken.tolist()


@pytest.mark.slow
def test_shifted_rewards_reach_the_goal_fast_and_unshifted_ones_do_not():
    shifted, raw = steps_to_goal({"reward_affine": {"shift": -1.0}}), steps_to_goal({})
    assert max(shifted) <= 20 and min(raw) >= 30, (shifted, raw)


@pytest.mark.slow
def test_the_trap_is_the_scale_of_the_advantages():
    """Rewards 0/1 times 1 / (1 - gamma) do as well as -1/0: the shift does nothing else here."""
    scaled = steps_to_goal({"reward_affine": {"scale": 1 / (1 - SPEC.gamma)}})
    assert max(scaled) <= 20, scaled
