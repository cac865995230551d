"""AWAC, XQL and Gaussian BC against ordinary implementations of the papers' formulas, in float64."""

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
from offbench.data.views import Chunk, NStep
from offbench.methods.awac import AWAC
from offbench.methods.bc import BC
from offbench.methods.xql import XQL
from offbench.testing.contract import SPEC

VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]
SMALL = {"hidden": (16, 16)}
LOUD = {**SMALL, "polyak_rate": 0.1, "lr": 1e-2, "max_weight": 1.3}
AWAC_LOUD = AWAC(**LOUD, temperature=0.1)
XQL_LOUD = XQL(
    **LOUD,
    value_temperature=0.5,
    max_exponent=0.5,
    inverse_temperature=2.0,
    huber_delta=0.8,
    actor_decay_steps=20,
)
BC_LOUD = BC(**SMALL, gaussian=True, lr=1e-2)


class PlainBC:
    def __init__(self, m, spec, state):
        self.actor = net((spec.obs_dim, *m.hidden, spec.action_dim))
        load(state.actor["mean"], self.actor)
        self.log_std = nn.Parameter(state.actor["log_std"].clone())
        self.opt = torch.optim.Adam([*self.actor.parameters(), self.log_std], m.lr)

    def pairs(self, state):
        return [(state.actor["mean"], self.actor)]

    def update(self, batch, key):
        policy = Normal(self.actor(batch.obs).tanh(), self.log_std.clamp(-20, 2).exp())
        loss = -policy.log_prob(batch.action).sum(1).mean()
        minimise(self.opt, loss)
        return {"actor_loss": loss.item()}


class Twins:
    """Actor, log standard deviation, twins and their targets."""

    def __init__(self, m, spec, state):
        self.m, obs, act = m, spec.obs_dim, spec.action_dim
        self.actor = net((obs, *m.hidden, act))
        self.q1, self.q2 = net((obs + act, *m.hidden, 1)), net((obs + act, *m.hidden, 1))
        self.log_std = nn.Parameter(state.actor["log_std"].clone())
        load(state.actor["mean"], self.actor)
        load(member(state.critic, 0), self.q1), load(member(state.critic, 1), self.q2)
        self.q1_t, self.q2_t = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.actor_opt = torch.optim.Adam([*self.actor.parameters(), self.log_std], m.lr)
        self.critic_opt = torch.optim.Adam([*self.q1.parameters(), *self.q2.parameters()], m.lr)

    def pairs(self, state):
        return [
            (state.actor["mean"], self.actor),
            (member(state.critic, 0), self.q1),
            (member(state.critic, 1), self.q2),
            (member(state.target_critic, 0), self.q1_t),
            (member(state.target_critic, 1), self.q2_t),
        ]

    def lower(self, twins, obs, action):
        x = torch.cat([obs, action], 1)
        return torch.minimum(twins[0](x), twins[1](x))[:, 0]

    def follow(self):
        follow(self.q1_t, self.q1, self.m.polyak_rate)
        follow(self.q2_t, self.q2, self.m.polyak_rate)


class PlainAWAC(Twins):
    def sample(self, obs, key):
        mean = self.actor(obs)
        noise = rng.normal(key, tuple(mean.shape), mean.dtype)
        return (mean + self.log_std.exp() * noise).clamp(-1, 1).detach()

    def update(self, batch, key):
        m, (k_next, k_now) = self.m, rng.split(key)
        a2 = self.sample(batch.next_obs, k_next)
        y = batch.reward + batch.discount * self.lower((self.q1_t, self.q2_t), batch.next_obs, a2)
        x = torch.cat([batch.obs, batch.action], 1)
        q1, q2 = self.q1(x)[:, 0], self.q2(x)[:, 0]
        critic_loss = ((q1 - y.detach()) ** 2).mean() + ((q2 - y.detach()) ** 2).mean()
        minimise(self.critic_opt, critic_loss)

        online = (self.q1, self.q2)
        with torch.no_grad():
            v = self.lower(online, batch.obs, self.sample(batch.obs, k_now))
            q = self.lower(online, batch.obs, batch.action)
            weight = torch.exp((q - v) / m.temperature).clamp(max=m.max_weight)
        policy = Normal(self.actor(batch.obs), self.log_std.exp())
        actor_loss = -(weight * policy.log_prob(batch.action).sum(1)).mean()
        minimise(self.actor_opt, actor_loss)
        self.follow()
        return {
            "critic_loss": critic_loss.item(),
            "q": (q1.mean() + q2.mean()).item() / 2,
            "actor_loss": actor_loss.item(),
            "v": v.mean().item(),
            "advantage_weight": weight.mean().item(),
            "effective_share": (weight.sum() ** 2 / (weight**2).sum() / len(weight)).item(),
        }


class PlainXQL(Twins):
    def __init__(self, m, spec, state):
        super().__init__(m, spec, state)
        layers = []
        for part in net((spec.obs_dim, *m.hidden, 1)):
            layers += (
                [nn.LayerNorm(m.hidden[0], eps=1e-6), part] if isinstance(part, nn.ReLU) else [part]
            )
        self.value = nn.Sequential(*layers).double()
        load(state.value, self.value)
        self.value_opt = torch.optim.Adam(self.value.parameters(), m.lr)
        steps = m.actor_decay_steps or 1
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_opt, steps)

    def pairs(self, state):
        return [*super().pairs(state), (state.value, self.value)]

    def update(self, batch, key):
        m = self.m
        target_q = self.lower((self.q1_t, self.q2_t), batch.obs, batch.action).detach()
        v = self.value(batch.obs)[:, 0]
        z = (target_q - v) / m.value_temperature
        clipped = (z > m.max_exponent).double().mean().item()
        z = torch.minimum(z, torch.tensor(m.max_exponent, dtype=z.dtype))
        largest = max(z.max().item(), -1.0)
        # the Gumbel loss divided by the exponential of its largest argument
        value_loss = ((torch.exp(z) - z - 1) / torch.tensor(largest, dtype=z.dtype).exp()).mean()
        minimise(self.value_opt, value_loss)

        with torch.no_grad():
            advantage = target_q - self.value(batch.obs)[:, 0]
            y = batch.reward + batch.discount * self.value(batch.next_obs)[:, 0]
        x, huber = torch.cat([batch.obs, batch.action], 1), nn.HuberLoss(delta=m.huber_delta)
        critic_loss = huber(self.q1(x)[:, 0], y) + huber(self.q2(x)[:, 0], y)
        minimise(self.critic_opt, critic_loss)
        weight = torch.exp(m.inverse_temperature * advantage).clamp(max=m.max_weight)
        policy = Normal(self.actor(batch.obs).tanh(), self.log_std.exp())
        actor_loss = -(weight * policy.log_prob(batch.action).sum(1)).mean()
        minimise(self.actor_opt, actor_loss)
        if m.actor_decay_steps:
            self.decay.step()
        self.follow()
        return {
            "value_loss": value_loss.item(),
            "v": v.mean().item(),
            "clipped_share": clipped,
            "critic_loss": critic_loss.item(),
            "actor_loss": actor_loss.item(),
            "advantage_weight": weight.mean().item(),
        }


PLAIN = {BC: PlainBC, AWAC: PlainAWAC, XQL: PlainXQL}


def disagreement(method, data, view=VIEWS[0], n: int = 20, plain=None) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches and noise."""
    pipeline = make_pipeline(data, view=view, batch_size=32)
    spec = pipeline.spec(SPEC)
    state = double(method.init(rng.key(0), spec))
    plain = (plain or PLAIN[type(method)])(method, spec, state)
    key, worst = rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        logged = plain.update(batch, k_update)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    gaps = [gap(ours, theirs) for ours, theirs in plain.pairs(state)]
    return max(worst, (state.actor["log_std"] - plain.log_std).abs().max().item(), *gaps)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize(
    "method",
    [BC_LOUD, AWAC(**SMALL), AWAC_LOUD, XQL(**SMALL), XQL_LOUD],
    ids=["bc", "awac", "awac loud", "xql", "xql loud"],
)
def test_updates_equal_the_plain_implementation(method, view, data64):
    assert disagreement(method, data64, view) < 1e-9


FLOATS = [
    (m, f.name)
    for m in (AWAC_LOUD, XQL_LOUD)
    for f in dataclasses.fields(m)
    if isinstance(getattr(m, f.name), float)
]


@pytest.mark.parametrize("method, name", FLOATS, ids=[f"{type(m).__name__}.{n}" for m, n in FLOATS])
def test_every_hyper_parameter_acts_in_the_settings_compared(method, name, data64):
    changed = dataclasses.replace(method, **{name: 0.8 * getattr(method, name)})
    plain = lambda _, spec, state: PLAIN[type(method)](changed, spec, state)
    assert disagreement(method, data64, n=5, plain=plain) > 1e-6


def test_gaussian_cloning_acts_by_its_mean_or_by_a_clipped_sample():
    mean, sampled = BC(**SMALL, gaussian=True), BC(**SMALL, gaussian=True, sample_actions=True)
    state, obs = mean.init(rng.key(0), SPEC), rng.normal(rng.key(1), (4000, SPEC.obs_dim))
    state.actor["log_std"][:] = torch.tensor([-3.0, 1.0])
    want = mean.act(state, obs, rng.key(2))
    got = sampled.act(state, obs, rng.key(2))
    assert torch.equal(want, mean.act(state, obs, rng.key(3)))
    assert (got - want)[:, 0].std().item() == pytest.approx(0.0498, rel=0.05)
    assert got[:, 1].abs().max() == 1 and (got[:, 1].abs() == 1).float().mean() > 0.5
    assert not torch.equal(got, sampled.act(state, obs, rng.key(3)))


def test_the_value_of_xql_is_the_soft_maximum_of_what_the_data_offer():
    """The minimiser of the Gumbel loss is temperature * log mean exp(q / temperature)."""
    q, m = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), XQL(value_temperature=0.7)
    flat = [
        {"w": torch.zeros(1, 1, dtype=torch.float64), "b": torch.zeros(1, 1, dtype=torch.float64)}
    ]

    def slope(v: float) -> float:
        value = [{"w": flat[0]["w"], "b": torch.full_like(flat[0]["b"], v)}]
        obs = torch.zeros(3, 1, dtype=torch.float64)
        batch = type("B", (), {"obs": obs})
        loss = lambda p: m._value_loss(p, q, batch)[0]
        return torch.func.grad(loss)(value)[0]["b"].item()

    soft = 0.7 * (q / 0.7).exp().mean().log().item()
    assert abs(slope(soft)) < 1e-12 and slope(soft + 0.1) > 0 > slope(soft - 0.1)


MUTANTS = {
    "bc: likelihood minimised": (BC_LOUD, "return -gaussian", "return gaussian"),
    "bc: mean not squashed": (BC_LOUD, 'actor["mean"], obs).tanh()', 'actor["mean"], obs)'),
    "awac: target subtracts the future": (
        AWAC_LOUD,
        "batch.reward + batch.disc",
        "batch.reward - batch.disc",
    ),
    "awac: larger target twin": (AWAC_LOUD, "next_action).amin(0)", "next_action).amax(0)"),
    "awac: online critic in the target": (AWAC_LOUD, "_q(state.target_critic", "_q(state.critic"),
    "awac: critics averaged": (AWAC_LOUD, ".mean(-1).sum()", ".mean()"),
    "awac: weights of the disadvantage": (AWAC_LOUD, "(q - v) / self", "(v - q) / self"),
    "awac: multiplies by the temperature": (AWAC_LOUD, "(q - v) / self", "(q - v) * self"),
    "awac: weights not clipped": (AWAC_LOUD, ".clamp(max=self.max_weight)", ""),
    "awac: likelihood minimised": (AWAC_LOUD, "loss = -(weight", "loss = (weight"),
    "awac: larger twin in the advantage": (AWAC_LOUD, "rows).amin(0)", "rows).amax(0)"),
    "awac: critic of before its step": (
        AWAC_LOUD,
        "grad(state.actor, critic, batch",
        "grad(state.actor, state.critic, batch",
    ),
    "awac: samples not clipped": (AWAC_LOUD, "mean)).clamp(-1, 1)", "mean))"),
    "awac: no noise": (AWAC_LOUD, "log_std.exp() * rng", "0 * rng"),
    "awac: one key": (AWAC_LOUD, "batch, k_now)", "batch, k_next)"),
    "awac: mean squashed": (
        AWAC_LOUD,
        'return nets.mlp(actor["mean"], obs),',
        'return nets.mlp(actor["mean"], obs).tanh(),',
    ),
    "awac: target stays": (
        AWAC_LOUD,
        "polyak(state.target_critic, critic",
        "polyak(state.target_critic, state.critic",
    ),
    "xql: z turned round": (XQL_LOUD, "(target_q - v) / self", "(v - target_q) / self"),
    "xql: not clipped": (XQL_LOUD, "z = z.clamp(max=self.max_exponent)", "z = z"),
    "xql: scale not detached": (
        dataclasses.replace(XQL_LOUD, max_exponent=9.0),
        "clamp(min=-1).detach()",
        "clamp(min=-1)",
    ),
    "xql: scale without floor": (XQL_LOUD, "z.max().clamp(min=-1)", "(z.max() - 0 * z.max() + 1)"),
    "xql: no linear term": (XQL_LOUD, "(z + 1) * (-top)", "1 * (-top)"),
    "xql: old V in the advantage": (XQL_LOUD, "target_q - _v(value,", "target_q - _v(state.value,"),
    "xql: old V in the target": (
        XQL_LOUD,
        "_v(value, batch.next_obs)",
        "_v(state.value, batch.next_obs)",
    ),
    "xql: larger twin": (
        XQL_LOUD,
        "obs_action).squeeze(-1).amin(0)",
        "obs_action).squeeze(-1).amax(0)",
    ),
    "xql: squared error": (XQL_LOUD, "error.clamp(max=self.huber_delta)", "error"),
    "xql: twice Huber": (XQL_LOUD, "0.5 * near))", "0.25 * near))"),
    "xql: critics averaged": (XQL_LOUD, ".mean(-1).sum()", ".mean()"),
    "xql: target subtracts the future": (
        XQL_LOUD,
        "batch.reward + batch.disc",
        "batch.reward - batch.disc",
    ),
    "xql: weights not clipped": (XQL_LOUD, ".clamp(max=self.max_weight)", ""),
    "xql: likelihood minimised": (XQL_LOUD, "actor_loss = -(weight", "actor_loss = (weight"),
    "xql: V without norm": (XQL_LOUD, 'layer_norm="before", ', ""),
    "xql: V norm after": (XQL_LOUD, 'layer_norm="before"', 'layer_norm="after"'),
    "xql: cosine one late": (XQL_LOUD, "(state.opt.count / self", "(opt.count / self"),
    "xql: target stays": (
        XQL_LOUD,
        "polyak(state.target_critic, critic",
        "polyak(state.target_critic, state.critic",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    method, old, new = MUTANTS[name]
    plain = PLAIN[type(method)]
    broken = mutated(type(method), old, new)(**dataclasses.asdict(method))
    assert disagreement(broken, data64, n=4, plain=plain) > 1e-7
