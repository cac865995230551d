"""IQL with every switch against an ordinary implementation, in float64.

The reference steps one network after the other, with torch's own optimiser and cosine schedule. The
default settings are also compared in test_methods.py, with another implementation.
"""

import copy
import dataclasses

import pytest
import torch
from support.modules import double, follow, gap, load, member, minimise, net
from support.mutants import mutated
from torch import nn
from torch.distributions import Normal

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.methods.iql import IQL
from offbench.testing.contract import SPEC, check_float64_works, check_resume, check_seed_axis

N = 30
LOUD = {
    "hidden": (16, 16),
    "expectile": 0.9,
    "inverse_temperature": 10.0,
    "max_weight": 1.2,
    "polyak_rate": 0.1,
    "lr": 1e-2,
}
SWITCHES = {
    "default": {},
    "deterministic": {"deterministic": True},
    "value first": {"value_first": True},
    "cosine": {"actor_decay_steps": N},
    "cosine that ends": {"actor_decay_steps": N // 2},
    "dropout": {"actor_dropout": 0.3},
    "orthogonal": {"weight_init": "orthogonal"},
    "authors": {
        "value_first": True,
        "actor_decay_steps": N,
        "actor_dropout": 0.1,
        "weight_init": "orthogonal",
    },
    "corl hopper": {"deterministic": True, "actor_decay_steps": N},
}


class Plain:
    def __init__(self, m: IQL, spec, state):
        self.m, obs, act = m, spec.obs_dim, spec.action_dim
        self.actor, self.value = net((obs, *m.hidden, act)), net((obs, *m.hidden, 1))
        self.q1, self.q2 = net((obs + act, *m.hidden, 1)), net((obs + act, *m.hidden, 1))
        self.log_std = nn.Parameter(state.actor["log_std"].clone())
        for ours, theirs in self.pairs(state)[:4]:
            load(ours, theirs)
        self.q1_t, self.q2_t = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.actor_opt = torch.optim.Adam([*self.actor.parameters(), self.log_std], m.lr)
        self.value_opt = torch.optim.Adam(self.value.parameters(), m.lr)
        self.critic_opt = torch.optim.Adam([*self.q1.parameters(), *self.q2.parameters()], m.lr)
        self.decay = None
        if m.actor_decay_steps:
            self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(
                self.actor_opt, m.actor_decay_steps
            )
        self.n = 0

    def pairs(self, state) -> list:
        pairs = [(state.actor["mean"], self.actor), (state.value, self.value)]
        pairs += [(member(state.critic, 0), self.q1), (member(state.critic, 1), self.q2)]
        if hasattr(self, "q1_t"):
            pairs += [(member(state.target_critic, 0), self.q1_t)]
            pairs += [(member(state.target_critic, 1), self.q2_t)]
        return pairs

    def update(self, batch, key) -> None:
        m, x = self.m, torch.cat([batch.obs, batch.action], 1)
        target_q = torch.minimum(self.q1_t(x), self.q2_t(x)).squeeze(1).detach()
        next_v = self.value(batch.next_obs).squeeze(1).detach()
        advantage = target_q - self.value(batch.obs).squeeze(1)
        losses = [(m.expectile if u > 0 else 1 - m.expectile) * u**2 for u in advantage]
        minimise(self.value_opt, torch.stack(losses).mean())
        if m.value_first:
            next_v = self.value(batch.next_obs).squeeze(1).detach()
            advantage = target_q - self.value(batch.obs).squeeze(1)

        weight = torch.exp(m.inverse_temperature * advantage.detach()).clamp(max=m.max_weight)
        mean = torch.tanh(self.dropped(batch.obs, key))
        if m.deterministic:
            actor_loss = (weight * ((mean - batch.action) ** 2).sum(1)).mean()
        else:
            policy = Normal(mean, self.log_std.clamp(-20, 2).exp())
            actor_loss = -(weight * policy.log_prob(batch.action).sum(1)).mean()
        self.actor_opt.param_groups[0]["lr"] *= (
            0 if m.actor_decay_steps and self.n >= m.actor_decay_steps else 1
        )
        minimise(self.actor_opt, actor_loss)
        if self.decay and self.n < m.actor_decay_steps:
            self.decay.step()

        y = batch.reward + batch.discount * next_v
        q1, q2 = self.q1(x).squeeze(1), self.q2(x).squeeze(1)
        minimise(self.critic_opt, (((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()) / 2)
        follow(self.q1_t, self.q1, m.polyak_rate), follow(self.q2_t, self.q2, m.polyak_rate)
        self.n += 1
        self.logs = {"actor_loss": actor_loss.item(), "advantage_weight": weight.mean().item()}

    def dropped(self, x, key):
        """The actor's mean, with the mask that the key gives at every hidden layer."""
        linears = [part for part in self.actor if isinstance(part, nn.Linear)]
        keys = rng.split(key, len(linears))
        for linear, k in zip(linears[:-1], keys, strict=False):
            x = torch.relu(linear(x))
            if self.m.actor_dropout:
                lost = rng.uniform(k, tuple(x.shape), x.dtype) < self.m.actor_dropout
                x = x.masked_fill(lost, 0.0) / (1 - self.m.actor_dropout)
        return linears[-1](x)


def disagreement(method: IQL, data, n: int = N + 5) -> float:
    """The largest difference in parameters over n updates on the same batches and noise."""
    pipeline = make_pipeline(data, batch_size=32)
    state = double(method.init(rng.key(0), SPEC))
    plain, key, worst = Plain(method, SPEC, state), rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        plain.update(batch, k_update)
        worst = max(worst, *(abs(plain.logs[name] - metrics[name].item()) for name in plain.logs))
    gaps = [gap(ours, theirs) for ours, theirs in plain.pairs(state)]
    return max(worst, (state.actor["log_std"] - plain.log_std).abs().max().item(), *gaps)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_updates_equal_the_plain_implementation(switches, data64):
    assert disagreement(IQL(**LOUD, **switches), data64) < 1e-9


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "default"])
def test_every_switch_changes_the_result(name, data64):
    """Otherwise the comparison above would say nothing about it."""
    ends = []
    for method in (IQL(**LOUD), IQL(**LOUD, **SWITCHES[name])):
        state, pipeline = (
            double(method.init(rng.key(0), SPEC)),
            make_pipeline(data64, batch_size=32),
        )
        for i in range(3):
            state, _ = method.update(state, pipeline.sample(rng.key(i)), rng.key(100 + i))
        ends.append(state.actor["mean"][0]["w"])
    assert (ends[0] - ends[1]).abs().max() > 1e-5


def test_after_its_decay_the_actor_rests_and_the_others_go_on(data64):
    method = IQL(**LOUD, actor_decay_steps=3)
    state, pipeline = double(method.init(rng.key(0), SPEC)), make_pipeline(data64, batch_size=32)
    for i in range(4):
        state, _ = method.update(state, pipeline.sample(rng.key(i)), rng.key(i))
    later, _ = method.update(state, pipeline.sample(rng.key(9)), rng.key(9))
    assert torch.equal(later.actor["mean"][0]["w"], state.actor["mean"][0]["w"])
    assert torch.equal(later.actor["log_std"], state.actor["log_std"])
    assert not torch.equal(later.value[0]["w"], state.value[0]["w"])
    assert not torch.equal(later.critic[0]["w"], state.critic[0]["w"])


def test_evaluation_drops_nothing():
    method, plain = IQL(hidden=(16, 16), actor_dropout=0.5), IQL(hidden=(16, 16))
    state, obs = plain.init(rng.key(0), SPEC), rng.normal(rng.key(1), (9, SPEC.obs_dim))
    assert torch.equal(method.act(state, obs, rng.key(2)), plain.act(state, obs, rng.key(3)))


MUTANTS = {
    "expectile of the other side": ("(advantage < 0)", "(advantage > 0)", {}),
    "advantage turned round": ("advantage = target_q - v", "advantage = v - target_q", {}),
    "larger twin": ("obs_action).squeeze(-1).amin(0)", "obs_action).squeeze(-1).amax(0)", {}),
    "advantage from the online critic": (
        "nets.mlp(target_critic, obs_action)",
        "nets.mlp(critic, obs_action).detach()",
        {},
    ),
    "advantage not detached": ("advantage.detach()", "advantage", {}),
    "weights not clipped": (".clamp(max=self.max_weight)", "", {}),
    "next V not detached": (
        "batch.next_obs).squeeze(-1).detach()",
        "batch.next_obs).squeeze(-1)",
        {},
    ),
    "next V of this observation": ("batch.next_obs).squeeze", "batch.obs).squeeze", {}),
    "target subtracts the future": (
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
        {},
    ),
    "likelihood minimised": ("actor_loss = -(weight", "actor_loss = (weight", {}),
    "mean not squashed": ("        ).tanh()\n        if", "        )\n        if", {}),
    "target does not follow": (
        "polyak(state.target_critic, critic",
        "polyak(state.target_critic, state.target_critic",
        {},
    ),
    "deterministic: flees the data": (
        "log_prob = -torch",
        "log_prob = torch",
        {"deterministic": True},
    ),
    "deterministic: mean over the dimensions": (
        "mean - batch.action).sum(-1)",
        "mean - batch.action).mean(-1)",
        {"deterministic": True},
    ),
    "value first: still the old V": (
        "state.critic, value)\n            (*others",
        "state.critic, state.value)\n            (*others",
        {"value_first": True},
    ),
    "value first: V steps on the second loss": (
        "(*others, _), (_, later) = loss(stepped, state.target_critic, batch, key)\n            grads = (*others, grads[2])",
        "grads, (_, later) = loss(stepped, state.target_critic, batch, key)",
        {"value_first": True},
    ),
    "value first: its first step again": (
        "AdamState(state.opt.count,",
        "AdamState(0 * state.opt.count,",
        {"value_first": True},
    ),
    "value first: no momentum": (
        "state.opt.mu[2], state",
        "[{k: 0 * x for k, x in p.items()} for p in state.opt.mu[2]], state",
        {"value_first": True},
    ),
    "cosine one update late": (
        "state.opt.count / self",
        "opt.count / self",
        {"actor_decay_steps": N},
    ),
    "cosine comes back": (".clamp(max=1)", "", {"actor_decay_steps": N // 2}),
    "cosine to a half": (
        "0.5 * (1 + torch.cos",
        "(0.75 + 0.25 * torch.cos",
        {"actor_decay_steps": N},
    ),
    "cosine moves the critic": (
        "actor = polyak(state.actor, actor",
        "critic = polyak(state.critic, critic",
        {"actor_decay_steps": N},
    ),
    "no dropout": ("if drops else None", "if False else None", {"actor_dropout": 0.3}),
    "value first: another mask": (
        "state.target_critic, batch, key)\n            grads",
        "state.target_critic, batch, key + 1)\n            grads",
        {"value_first": True, "actor_dropout": 0.3},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    old, new, switches = MUTANTS[name]
    method = IQL(**LOUD, **switches)
    n = N + 5 if "cosine" in name else 4
    assert disagreement(mutated(IQL, old, new)(**dataclasses.asdict(method)), data64, n) > 1e-7


@pytest.mark.parametrize("check", [check_seed_axis, check_float64_works, check_resume])
def test_the_contract_holds_with_the_switches_on(check):
    check(IQL(hidden=(8,), deterministic=True, **SWITCHES["authors"]))
