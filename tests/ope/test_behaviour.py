"""Cloned behaviour policies: densities of recorded actions, and ratios of others to them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.mdps import random_mdp, random_policy, walks

from offbench.data.replay import Episode, from_episodes
from offbench.ope.behaviour import clone
from offbench.ope.fqe import FQE
from offbench.ope.weighted import wis

SETTINGS = FQE(n_updates=1000, hidden=(32,), lr=3e-3, batch_size=256)


def noisy(n: int = 4000):
    """Actions around 0.5 sin(3 s) with a deviation of 0.1."""
    generator = np.random.default_rng(0)
    obs = generator.uniform(-1, 1, (n + 1, 1))
    action = 0.5 * np.sin(3 * obs[:-1]) + 0.1 * generator.normal(size=(n, 1))
    cut = np.arange(0, n, 20)
    parts = [
        Episode(obs[i : i + 21], action[i : i + 20], obs[i : i + 20, 0], np.zeros(20, bool))
        for i in cut
    ]
    return from_episodes(parts)


def test_densities_of_continuous_actions_are_those_they_were_drawn_with():
    data = noisy()
    found = clone(data, SETTINGS, discrete=False)
    rows = data.valid
    mean = 0.5 * np.sin(3 * data.obs[rows].numpy())
    want = stats.norm(mean, 0.1).logpdf(data.action[rows].numpy())[:, 0]
    assert float(found.log_std.exp()) == pytest.approx(0.1, rel=0.05)
    assert np.abs(found.log_prob[rows].numpy() - want).mean() < 0.1
    # the behaviour itself has ratios of 1, a shifted one those of the normal distribution
    same = torch.as_tensor(0.5 * np.sin(3 * data.obs.numpy()))[None]
    assert found.log_ratio(data.action, same)[rows].abs().mean() < 0.1
    moved = found.log_ratio(data.action, same + 0.1)[rows].numpy()
    shifted = stats.norm(mean + 0.1, 0.1).logpdf(data.action[rows].numpy())[:, 0]
    assert np.abs(moved - (shifted - want)).mean() < 0.15
    # of two draws the density is their mean
    two = found.log_ratio(data.action, torch.cat([same, same + 0.1]))[rows].numpy()
    assert np.abs(two - (np.logaddexp(want, shifted) - math.log(2) - want)).mean() < 0.15


def test_wis_with_cloned_choices_is_what_the_policy_earns():
    mdp, pi = random_mdp(0), random_policy(2)
    data, _ = walks(mdp, random_policy(1), 4000, 3)
    found = clone(data, SETTINGS, discrete=True)
    # 64 draws in the proportions of the policy
    draws = [np.repeat(np.arange(3), _counts(p)) for p in pi]
    decided = torch.eye(3)[torch.as_tensor(np.stack(draws))][data.obs.argmax(1)].transpose(0, 1)
    made = wis(data, found.log_ratio(data.action, decided), 0.9)
    v = np.zeros(4)
    for _ in range(3):
        v = (pi * (mdp.reward + 0.9 * v[mdp.successor[..., 0]])).sum(1)
    assert float(made.terms.mean()) == pytest.approx(v.mean(), abs=0.06)
    assert made.effective > 300


def _counts(p: np.ndarray) -> np.ndarray:
    counts = np.round(64 * p).astype(int)
    counts[counts.argmax()] += 64 - counts.sum()
    return counts
