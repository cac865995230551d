"""Importance-weighted estimates held to exact values of small MDPs."""

from itertools import product

import numpy as np
import pytest
import torch
from support.mdps import _episode, random_mdp, random_policy

from offbench.data.replay import from_episodes
from offbench.ope.weighted import doubly_robust, wis

GAMMA, T = 0.9, 3
EXACT = 1e-2


def every_walk(terminals: bool = False):
    """Each walk of T steps from each state, as often as a uniform policy makes it; and what the policies earn."""
    mdp, pi = random_mdp(6, terminals=terminals), random_policy(3)
    found, values = [], []
    for start, actions in product(range(4), product(range(3), repeat=T)):
        states, taken = [start], []
        for a in actions:
            if taken and mdp.ends[states[-2], taken[-1]]:
                break
            taken.append(a)
            states.append(int(mdp.successor[states[-1], a, 0]))
        p = np.prod([pi[s, a] for s, a in zip(states, taken)])
        total = sum(GAMMA**t * mdp.reward[s, a] for t, (s, a) in enumerate(zip(states, taken)))
        # a walk that ended stands for all that begin like it
        values.append(p * total * 3.0 ** -(T - len(taken)) / 4)
        found.append(_episode(mdp, states, taken))
    data = from_episodes(found)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    ratio = torch.as_tensor(np.log(pi * 3))[s, a]
    return mdp, pi, data, ratio, float(np.sum(values))


def finite_q(mdp, pi):
    """Q and V with t steps to go: (T + 1, S, A), (T + 1, S)."""
    q, v = [np.zeros(mdp.sizes)], [np.zeros(mdp.sizes[0])]
    for _ in range(T):
        q.append(mdp.reward + GAMMA * v[-1][mdp.successor[..., 0]] * ~mdp.ends)
        v.append((pi * q[-1]).sum(1))
    return np.stack(q), np.stack(v)


@pytest.mark.parametrize("terminals", [False, True])
def test_wis_is_exact_where_every_walk_is_there(terminals):
    _, _, data, ratio, want = every_walk(terminals)
    found = wis(data, ratio, GAMMA)
    assert abs(float(found.terms.mean()) - want) < EXACT
    assert 1 < found.effective < data.n_episodes
    # without weights it is what the uniform policy earns
    assert abs(float(wis(data, 0 * ratio, GAMMA).terms.mean()) - want) > 10 * EXACT
    assert wis(data, 0 * ratio, GAMMA).effective == pytest.approx(data.n_episodes)


def test_dr_with_exact_values_is_exact_whatever_the_weights_and_has_no_variance():
    """Over an endless horizon: what follows a cut is V."""
    mdp, pi, data, ratio, _ = every_walk()
    q = mdp.q(pi, GAMMA)
    v = (pi * q).sum(1)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    given = torch.as_tensor(q)[s, a], torch.as_tensor(v)[s]
    want = v.mean()
    for weights in (ratio, 0 * ratio + 0.1 * torch.arange(len(ratio))):
        found = doubly_robust(data, weights, *given, GAMMA)
        assert abs(float(found.terms.mean()) - want) < EXACT


@pytest.mark.parametrize("terminals", [False, True])
def test_dr_with_exact_weights_is_exact_whatever_the_values_within_the_walks(terminals):
    mdp, pi, data, ratio, want = every_walk(terminals)
    generator = np.random.default_rng(0)
    q = generator.normal(size=mdp.sizes)
    # consistent: V is the mean of Q; and 0 where the walks are cut, as they are all there is
    v = (pi * q).sum(1)
    s, a = data.obs.argmax(1), data.action.argmax(1)
    values = torch.as_tensor(v)[s]
    values[data.last.unique()] = 0.0
    found = doubly_robust(data, ratio, torch.as_tensor(q)[s, a], values, GAMMA)
    assert abs(float(found.terms.mean()) - want) < EXACT


def test_an_episode_that_was_cut_early_says_nothing_of_later_steps():
    obs = np.zeros((3, 1))
    whole = [obs, np.zeros((2, 1)), np.array([1.0, 5.0]), np.array([False, False])]
    cut = [obs[:2], np.zeros((1, 1)), np.array([3.0]), np.array([False])]
    ended = [obs[:2], np.zeros((1, 1)), np.array([3.0]), np.array([True])]
    from offbench.data.replay import Episode

    for second, want in ((cut, 2 + 0.9 * 5), (ended, 2 + 0.9 * 2.5)):
        data = from_episodes([Episode(*whole), Episode(*second)])
        found = wis(data, torch.zeros(len(data.last)), 0.9)
        assert float(found.terms.mean()) == pytest.approx(want)


def test_the_terms_vary_as_the_estimate_does_from_sample_to_sample():
    _, _, data, ratio, _ = every_walk()
    from offbench.data.compose import take

    generator, found, said = np.random.default_rng(0), [], []
    first = torch.cat([torch.zeros(1, dtype=torch.long), data.last.unique()[:-1] + 1])
    length = data.last.unique() - first + 1
    for _ in range(200):
        chosen = np.sort(generator.integers(data.n_episodes, size=60))
        own = take(data, chosen)
        rows = torch.cat([torch.arange(int(first[i]), int(first[i] + length[i])) for i in chosen])
        made = wis(own, ratio[rows], GAMMA)
        found.append(float(made.terms.mean()))
        said.append(float(made.terms.std() / 60**0.5))
    assert np.mean(said) == pytest.approx(np.std(found), rel=0.25)
