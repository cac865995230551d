"""Discrete CQL against an ordinary implementation in float64, and on a chain that it must walk."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from support.modules import double, gap, load, net
from support.mutants import mutated
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.views import NStep
from offbench.methods.discrete_cql import DiscreteCQL
from offbench.nn import nets
from offbench.testing.contract import SPEC, check_method, fake_data
from offbench.training.loop import train
from offbench.types import Spec

SMALL = {"hidden": (16, 16)}
LOUD = DiscreteCQL(**SMALL, conservative_weight=0.6, polyak_rate=0.1, lr=1e-2)
METHODS = {
    "defaults": DiscreteCQL(**SMALL),
    "loud": LOUD,
    "copied": dataclasses.replace(LOUD, copy_every=3),
}
FAKE = SPEC._replace(discrete=True, action_dim=4)


class Plain:
    def __init__(self, m: DiscreteCQL, state):
        self.m, self.n = m, 0
        self.q = net((FAKE.obs_dim, *m.hidden, FAKE.action_dim))
        load(state.critic, self.q)
        self.target = copy.deepcopy(self.q)
        self.opt = torch.optim.Adam(self.q.parameters(), m.lr)

    def step(self, batch) -> dict:
        m, n = self.m, len(batch.obs)
        td, gaps, qs, best_qs, agreed = 0, 0, 0, 0, 0
        for i in range(n):  # one element after the other
            a = int(batch.action[i].argmax())
            q = self.q(batch.obs[i])
            with torch.no_grad():
                best = int(self.q(batch.next_obs[i]).argmax())
                y = batch.reward[i] + batch.discount[i] * self.target(batch.next_obs[i])[best]
            error = (q[a] - y).abs()
            td = td + (0.5 * error**2 if error < 1 else error - 0.5) / n
            gaps = gaps + (q.exp().sum().log() - q[a]) / n
            qs, best_qs = qs + q[a].item() / n, best_qs + q.max().item() / n
            agreed += (int(q.argmax()) == a) / n
        self.opt.zero_grad()
        (td + m.conservative_weight * gaps).backward()
        self.opt.step()
        self.n += 1
        for t, p in zip(self.target.parameters(), self.q.parameters(), strict=True):
            if m.copy_every is None:
                t.data = (1 - m.polyak_rate) * t.data + m.polyak_rate * p.data
            elif self.n % m.copy_every == 0:
                t.data = p.data.clone()
        return {
            "critic_loss": td.item(),
            "conservative_gap": gaps.item(),
            "q": qs,
            "q_greedy": best_qs,
            "greedy_share": agreed,
        }


def disagreement(method, view=None, n: int = 10) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches."""
    data = fake_data(FAKE, dtype=torch.float64)
    pipeline = make_pipeline(data, view=view, batch_size=16)
    state = double(method.init(rng.key(0), FAKE))
    plain, worst = Plain(method, state), 0.0
    for i in range(n):
        batch = pipeline.sample(rng.key(i))
        state, metrics = method.update(state, batch, rng.key(100 + i))
        logged = plain.step(batch)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    return max(worst, gap(state.critic, plain.q), gap(state.target_critic, plain.target))


@pytest.mark.parametrize("view", [NStep(1, 0.99), NStep(3, 0.99)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_updates_equal_the_plain_implementation(name, view):
    assert disagreement(METHODS[name], view) < 1e-9


@pytest.mark.parametrize("name", ["conservative_weight", "polyak_rate", "lr", "copy_every"])
def test_every_hyper_parameter_acts_in_the_settings_compared(name):
    pipeline = make_pipeline(fake_data(FAKE, dtype=torch.float64), batch_size=16)
    base = METHODS["copied"] if name == "copy_every" else LOUD
    new = 2 if name == "copy_every" else 0.8 * getattr(base, name)
    states = []
    for m in (base, dataclasses.replace(base, **{name: new})):
        state = double(m.init(rng.key(0), FAKE))
        for i in range(5):
            state, _ = m.update(state, pipeline.sample(rng.key(i)), rng.key(0))
        states.append(state)
    pairs = zip(*map(tree_leaves, states), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


def test_it_acts_with_one_hot_rows():
    state = LOUD.init(rng.key(0), FAKE)
    action = LOUD.act(state, rng.normal(rng.key(1), (50, FAKE.obs_dim)), rng.key(0))
    assert set(action.flatten().tolist()) == {0.0, 1.0} and (action.sum(1) == 1).all()


def test_a_copied_target_holds_the_contract():
    # at the default learning rate: some checks train the method first
    check_method(DiscreteCQL(**SMALL, copy_every=3), report=None)


MUTANTS = {
    "target subtracts the future": (
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "target of the target's own best": (
        "* best).sum(-1)",
        "* greedy(nets.mlp(target_critic, batch.next_obs))).sum(-1)",
    ),
    "target of the online network": (
        "nets.mlp(target_critic, batch.next_obs) * best",
        "next_q.detach() * best",
    ),
    "target with gradient": ("nets.mlp(target_critic, batch.next_obs) * best", "next_q * best"),
    "TD error squared": (
        'huber = F.huber_loss(error, torch.zeros_like(error), reduction="none")',
        "huber = 0.5 * error.square()",
    ),
    "penalty is a reward": (
        "huber + self.conservative_weight * gap",
        "huber - self.conservative_weight * gap",
    ),
    "data not raised": ("gap = q.logsumexp(-1) - q_data", "gap = q.logsumexp(-1)"),
    "maximum for log-sum-exp": ("q.logsumexp(-1)", "q.amax(-1)"),
    "penalty at the next observation": ("q.logsumexp(-1)", "next_q.logsumexp(-1)"),
    "worst action": ("greedy(next_q.detach())", "greedy(-next_q.detach())"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name):
    method = mutated(DiscreteCQL, *MUTANTS[name])(**dataclasses.asdict(LOUD))
    assert disagreement(method, n=3) > 1e-7


def test_copies_off_by_one_are_found():
    method = mutated(
        DiscreteCQL, "n_updates % self.copy_every == 0", "state.n_updates % self.copy_every == 0"
    )
    assert disagreement(method(**dataclasses.asdict(METHODS["copied"])), n=3) > 1e-7


# --- a chain of 8 cells: 3 actions (back, stay, on), a cost of 1 until the last


CHAIN = Spec(obs_dim=8, action_dim=3, gamma=0.9, max_episode_steps=20, discrete=True)


def chain(actions: tuple[int, ...]):
    """Walks of a random walker that only uses `actions`; observations and actions one-hot."""
    eye, episodes = np.eye(8, dtype=np.float32), []
    for i in range(120):
        draw = np.random.default_rng(i)
        cell, cells, taken, reward = int(draw.integers(7)), [], [], []
        cells.append(cell)
        while len(taken) < CHAIN.max_episode_steps and cell < 7:
            taken.append(int(draw.choice(actions)))
            cell = min(max(cell + taken[-1] - 1, 0), 7)
            cells.append(cell)
            reward.append(float(cell == 7) - 1)
        end = np.zeros(len(taken), bool)
        end[-1] = cell == 7
        action = np.eye(3, dtype=np.float32)[taken]
        episodes.append(Episode(eye[cells], action, np.array(reward, np.float32), end))
    return from_episodes(episodes)


def learned(method, data, n_updates: int = 600):
    """The actions (seeds, 7) that are taken in the cells before the last, and Q there (seeds, 7, 3)."""
    pipeline = make_pipeline(data, view=NStep(1, CHAIN.gamma), batch_size=64)
    (point,) = train(method, pipeline, CHAIN, seeds=[0, 1, 2], n_updates=n_updates, backend="eager")
    obs = torch.eye(8)[:7]
    q = torch.func.vmap(lambda critic: nets.mlp(critic, obs))(point.state.critic)
    return q.argmax(-1), q


def test_values_are_the_true_returns_without_the_penalty_and_below_them_with_it():
    """Walking on from n cells before the end costs 1 for all steps but the last."""
    steps = torch.arange(7, 0, -1.0)
    truth = -(1 - CHAIN.gamma ** (steps - 1)) / (1 - CHAIN.gamma)
    exact = DiscreteCQL(hidden=(32,), lr=5e-3, polyak_rate=0.05, conservative_weight=0.0)
    action, q = learned(exact, chain((0, 1, 2)))
    assert (action == 2).all() and (q.amax(-1) - truth).abs().max() < 0.05
    careful = dataclasses.replace(exact, conservative_weight=1.0)
    action, q = learned(careful, chain((0, 1, 2)))
    assert (action == 2).all() and (q.amax(-1) < truth - 0.3).all()


def test_an_action_that_the_data_lack_is_preferred_only_without_the_penalty():
    """The walker never stays: Q of staying is a guess near 0, better than any cost that was seen."""
    careful = DiscreteCQL(hidden=(32,), lr=5e-3, polyak_rate=0.05, conservative_weight=1.0)
    data = chain((0, 2))
    action, q = learned(careful, data)
    assert (action != 1).all() and (q[..., 1] < q[..., [0, 2]].amax(-1) - 1).all()
    action, _ = learned(dataclasses.replace(careful, conservative_weight=0.0), data)
    assert (action == 1).any(-1).all()
