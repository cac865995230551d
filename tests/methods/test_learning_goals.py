"""What goal-conditioned methods learn where the answer is known: shortest paths, occupancies, discounted steps."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from support.mutants import mutated

from offbench import rng
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.methods.crl import CRL
from offbench.methods.gciql import GCIQL
from offbench.methods.qrl import QRL
from offbench.types import Spec

NETS = {"hidden": (64, 64), "lr": 3e-3}


def walks(paths: list[list[int]], n: int):
    """Episodes along paths through n states, each a row of the unit matrix.

    An action is where to go next, between -1 and 1, so that the dynamics are deterministic.
    """
    eye = np.eye(n, dtype=np.float32)

    def episode(path: list[int]) -> Episode:
        action = (2 * np.array(path[1:], np.float32)[:, None] / (n - 1)) - 1
        none = np.zeros(len(action), np.float32)
        return Episode(eye[path], action, none, none.astype(bool))

    return from_episodes(map(episode, paths), name="walks")


def learned(method, data, view: Goal, n_updates: int):
    """The state after updates and a fifth as many at a tenth of the rate, which calms it."""
    spec = Spec(data.obs.shape[1], 1, view.gamma, 1000)
    pipeline = make_pipeline(data, view=view, batch_size=64, needs=method.needs)
    state, key = method.init(rng.key(0), pipeline.spec(spec)), rng.key(1)
    calm = dataclasses.replace(method, lr=method.lr / 10)
    for i in range(n_updates + n_updates // 5):
        batch = pipeline.sample(rng.fold(key, i))
        state, _ = (method if i < n_updates else calm).update(state, batch, key)
    return state


def all_pairs(n: int) -> torch.Tensor:
    """Observations of every state with every goal: (n * n, 2 n), goals fastest."""
    eye = torch.eye(n)
    return torch.cat([eye.repeat_interleave(n, 0), eye.repeat(n, 1)], 1)


# --- QRL: one-way streets of a small town

STREETS = {0: [1], 1: [2, 3], 2: [3], 3: [4], 4: [0]}


def shortest() -> torch.Tensor:
    """Steps between any two crossings (5, 5), by Floyd and Warshall."""
    far = torch.full((5, 5), 99.0).fill_diagonal_(0)
    for a, after in STREETS.items():
        far[a, after] = 1
    for k in range(5):
        far = torch.minimum(far, far[:, k, None] + far[None, k])
    return far


@cache
def town():
    generator, path = np.random.default_rng(0), [0]
    for _ in range(600):
        path.append(int(generator.choice(STREETS[path[-1]])))
    return walks([path], 5)


def error_of_distances(method, n_updates: int = 4000) -> float:
    """The largest relative error of a distance. Steps may be 2 % longer than 1, not a fifth as by default."""
    method = dataclasses.replace(method, slack=5e-4, latent_dim=64, **NETS)
    state = learned(method, town(), Goal(0.99, value_goals=(0.0, 0.0, 1.0)), n_updates)
    distance = method.distance(state, all_pairs(5)).view(5, 5)
    apart = ~torch.eye(5, dtype=torch.bool)
    return float(((distance - shortest()).abs() / shortest())[apart].max())


@pytest.mark.slow
def test_the_distance_of_qrl_is_that_of_the_shortest_path():
    assert shortest().max() == 4 and (shortest() != shortest().T).any()
    assert error_of_distances(QRL()) < 0.05


QRL_MUTANTS = {
    "steps are as long as they like": ("multiplier.detach() * excess", "0 * excess"),
    "distances the other way": (
        "_distance(metric, phi, phi_goal), _distance(metric, phi, phi_next)",
        "_distance(metric, phi, phi_goal), _distance(metric, phi_next, phi)",
    ),
    "goals pulled together": ("5 - apart", "5 + apart"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QRL_MUTANTS)
def test_a_mistake_in_qrl_gives_other_distances(name):
    assert error_of_distances(mutated(QRL, *QRL_MUTANTS[name])(), n_updates=600) > 0.5


# --- CRL: a ring that is walked in one direction, where every state is visited equally often

RING, RING_GAMMA = 6, 0.7


def ranks_of_logits(method) -> tuple[float, float]:
    """The share of ordered pairs of goals, and the mean change of the logit from one goal to the next."""
    data = walks([[(start + i) % RING for i in range(300)] for start in range(4)], RING)
    method = dataclasses.replace(method, latent_dim=16, **NETS)
    view = Goal(RING_GAMMA, value_goals=(0.0, 1.0, 0.0))
    state = learned(method, data, view, n_updates=1500)
    obs, n = all_pairs(RING), RING
    action = 2 * ((torch.arange(n) + 1) % n) / (n - 1) - 1
    logit = method.logit(state, obs, action.repeat_interleave(n)[:, None]).view(n, n)
    # goals 1, 2, ... steps ahead; the state itself is a whole round ahead
    ahead = torch.stack([logit[s].roll(-s - 1) for s in range(RING)])
    pairs = [ahead[:, i] > ahead[:, j] for i in range(RING) for j in range(i + 1, RING)]
    return float(torch.stack(pairs).float().mean()), float((ahead[:, 1:] - ahead[:, :-1]).mean())


@pytest.mark.slow
def test_the_logits_of_crl_rank_states_by_discounted_occupancy():
    """Occupancy falls by gamma a step, so its logarithm by log gamma."""
    ordered, slope = ranks_of_logits(CRL())
    assert ordered == 1 and slope == pytest.approx(np.log(RING_GAMMA), rel=0.15)


CRL_MUTANTS = {
    "what did not follow": ("_same(logits).expand_as", "(1 - _same(logits)).expand_as"),
    "the state for the goal": ("obs[..., :-n_goal], obs[..., -n_goal:]", "obs[..., :-n_goal], obs[..., :-n_goal]"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CRL_MUTANTS)
def test_a_mistake_in_crl_gives_another_order(name):
    assert ranks_of_logits(mutated(CRL, *CRL_MUTANTS[name])())[0] < 0.9


# --- GCIQL: a chain walked once, so that a goal is reached in its row alone

CHAIN, CHAIN_GAMMA = 12, 0.9


def error_of_values(method) -> float:
    """The largest error of V on goals ahead, as a share of the largest value, 1 / (1 - gamma)."""
    data = walks([list(range(CHAIN))], CHAIN)
    method = dataclasses.replace(method, polyak_rate=0.05, **NETS)
    state = learned(method, data, Goal(CHAIN_GAMMA), n_updates=1200)
    action = 2 * (torch.arange(CHAIN) + 1) / (CHAIN - 1) - 1
    obs, action = all_pairs(CHAIN), action.repeat_interleave(CHAIN)[:, None]
    v = method.value(state, obs, action).view(CHAIN, CHAIN)
    steps = torch.arange(CHAIN)[None] - torch.arange(CHAIN)[:, None]
    want = -(1 - CHAIN_GAMMA**steps) / (1 - CHAIN_GAMMA)
    # the last row is no goal: no transition starts from it
    known = (steps >= 0)[:-1, :-1]
    return float((v - want)[:-1, :-1][known].abs().max() * (1 - CHAIN_GAMMA))


@pytest.mark.slow
def test_the_value_of_gciql_is_the_discounted_number_of_steps():
    assert error_of_values(GCIQL()) < 0.05


GCIQL_MUTANTS = {
    "future subtracted": ("batch.reward + batch.discount", "batch.reward - batch.discount"),
    "no future": ("batch.reward + batch.discount", "batch.reward + 0 * batch.discount"),
    "not ended at the goal": ("batch.discount * goal", "batch.discount.amax() * goal"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GCIQL_MUTANTS)
def test_a_mistake_in_gciql_gives_other_values(name):
    assert error_of_values(mutated(GCIQL, *GCIQL_MUTANTS[name])()) > 0.2
