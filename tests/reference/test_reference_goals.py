"""GCBC, GCIVL, GCIQL, QRL and CRL against ordinary implementations of their formulas, in float64."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from support.modules import double, follow, gap, load, member, minimise, number
from support.mutants import mutated
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import logsigmoid, softplus

from offbench import rng
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.errors import UserError
from offbench.methods.crl import CRL
from offbench.methods.gcbc import GCBC
from offbench.methods.gciql import GCIQL
from offbench.methods.gcivl import GCIVL
from offbench.methods.qrl import QRL, union_length
from offbench.testing.contract import SPEC

# as in training, and with as many goals reached as may be
VIEWS = [Goal(0.99), Goal(0.9, value_goals=(0.6, 0.2, 0.2), actor_goals=(0.2, 0.4, 0.4))]
SMALL = {"hidden": (16, 16)}
# steps so large that means leave [-1, 1] within a few updates
LOUD = {**SMALL, "lr": 3e-2}
GCBC_LOUD = GCBC(**LOUD)
GCIVL_LOUD = GCIVL(**LOUD, expectile=0.7, inverse_temperature=20.0, polyak_rate=0.1)
GCIQL_LOUD = GCIQL(**LOUD, expectile=0.7, bc_weight=0.02, polyak_rate=0.1)
GCIQL_AWR = dataclasses.replace(GCIQL_LOUD, actor_loss="awr", inverse_temperature=20.0)
QRL_LOUD = QRL(**LOUD, latent_dim=24, bc_weight=0.02, slack=0.3)
CRL_LOUD = CRL(**LOUD, latent_dim=12, bc_weight=0.02)
CRL_AWR = dataclasses.replace(CRL_LOUD, actor_loss="awr", inverse_temperature=20.0)
METHODS = {
    "gcbc": GCBC_LOUD,
    "gcivl": GCIVL_LOUD,
    "gciql": GCIQL_LOUD,
    "gciql awr": GCIQL_AWR,
    "qrl": QRL_LOUD,
    "crl": CRL_LOUD,
    "crl awr": CRL_AWR,
    "gcivl defaults": GCIVL(**SMALL),
    "gciql defaults": GCIQL(**SMALL),
    "qrl defaults": QRL(**SMALL, latent_dim=16),
    "crl defaults": CRL(**SMALL, latent_dim=16),
}


def network(layers: list, *, norm: bool) -> nn.Sequential:
    """A module with the weights of ours: linear, GELU and, in values, LayerNorm."""
    sizes = [layers[0]["w"].shape[-2], *(layer["w"].shape[-1] for layer in layers)]
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        parts += [nn.Linear(n_in, n_out), nn.GELU(approximate="tanh")]
        parts += [nn.LayerNorm(n_out, eps=1e-6)] if norm else []
    module = nn.Sequential(*parts, nn.Linear(*sizes[-2:])).double()
    load(layers, module)
    return module


class Plain:
    """An actor, whatever networks `make` adds, and one optimiser of the sum of all losses."""

    def __init__(self, m, state):
        self.m, self.networks, self.numbers = m, [], []
        self.actor = self.add(state.actor, lambda s: s.actor, norm=False)
        self.tau = torch.tensor(getattr(m, "expectile", 0.5), dtype=torch.float64)
        self.make(state)
        parameters = [p for module, _ in self.networks for p in module.parameters()]
        self.opt = torch.optim.Adam([*parameters, *(p for p, _ in self.numbers)], m.lr)

    def make(self, state):
        pass

    def add(self, layers, where, *, norm=True):
        module = network(layers, norm=norm)
        self.networks.append((module, where))
        return module

    def twins(self, where, state):
        return [
            self.add(member(where(state), i), lambda s, i=i: member(where(s), i)) for i in (0, 1)
        ]

    def gap(self, state) -> float:
        found = [gap(where(state), module) for module, where in self.networks]
        return max(*found, *((where(state) - p).abs().item() for p, where in self.numbers), 0.0)

    def log_prob(self, batch):
        policy = Normal(self.actor(batch.extras["actor_obs"]), 1.0)
        return policy.log_prob(batch.action).sum(1)

    def awr(self, advantage, batch):
        weight = (self.m.inverse_temperature * advantage).exp().clamp(max=100).detach()
        return -(weight * self.log_prob(batch)).mean(), weight.mean()

    def ddpg_bc(self, q_of, batch):
        """`q_of` maps a mean action that is clipped to Q; its networks must not learn from it."""
        q = q_of(self.actor(batch.extras["actor_obs"]).clamp(-1, 1))
        scale = q.detach().abs().mean() + 1e-6
        return -q.mean() / scale - self.m.bc_weight * self.log_prob(batch).mean()

    def finish(self, batch, losses, **others):
        minimise(self.opt, sum(losses.values()))
        return {k: x.item() for k, x in (losses | others).items()}


class PlainGCBC(Plain):
    def update(self, batch):
        error = (self.actor(batch.extras["actor_obs"]) - batch.action).square().mean()
        loss = -self.log_prob(batch).mean()
        return self.finish(batch, {"actor_loss": loss}, bc_error=error)


class PlainGCIVL(Plain):
    def make(self, state):
        self.v = self.twins(lambda s: s.value, state)
        self.v_t = copy.deepcopy(self.v)

    def gap(self, state) -> float:
        targets = [gap(member(state.target_value, i), self.v_t[i]) for i in (0, 1)]
        return max(super().gap(state), *targets)

    def update(self, batch):
        at = lambda nets, x: torch.stack([net(x)[:, 0] for net in nets])
        with torch.no_grad():
            next_v = at(self.v_t, batch.next_obs)
            best = batch.reward + batch.discount * torch.minimum(next_v[0], next_v[1])
            advantage = best - at(self.v_t, batch.obs).sum(0) / 2
            gain = at(self.v, batch.extras["actor_next_obs"]) - at(
                self.v, batch.extras["actor_obs"]
            )
        side = torch.where(advantage >= 0, self.tau, 1 - self.tau)
        v = at(self.v, batch.obs)
        value_loss = sum(
            (side * (batch.reward + batch.discount * next_v[i] - v[i]) ** 2).mean() for i in (0, 1)
        )
        actor_loss, weight = self.awr(gain.sum(0) / 2, batch)
        losses = {"value_loss": value_loss, "actor_loss": actor_loss}
        logged = self.finish(batch, losses, v=v.mean(), advantage_weight=weight)
        for target, online in zip(self.v_t, self.v, strict=True):
            follow(target, online, self.m.polyak_rate)
        return logged


class PlainGCIQL(Plain):
    def make(self, state):
        self.q = self.twins(lambda s: s.critic, state)
        self.q_t = copy.deepcopy(self.q)
        self.v = self.add(state.value, lambda s: s.value)

    def gap(self, state) -> float:
        targets = [gap(member(state.target_critic, i), self.q_t[i]) for i in (0, 1)]
        return max(super().gap(state), *targets)

    def lower(self, nets, obs, action):
        x = torch.cat([obs, action], 1)
        return torch.minimum(nets[0](x)[:, 0], nets[1](x)[:, 0])

    def update(self, batch):
        v = self.v(batch.obs)[:, 0]
        advantage = self.lower(self.q_t, batch.obs, batch.action).detach() - v
        side = torch.where(advantage >= 0, self.tau, 1 - self.tau)
        value_loss = (side * advantage**2).mean()
        y = batch.reward + batch.discount * self.v(batch.next_obs)[:, 0].detach()
        x = torch.cat([batch.obs, batch.action], 1)
        critic_loss = sum(((net(x)[:, 0] - y) ** 2).mean() for net in self.q)
        obs = batch.extras["actor_obs"]
        fixed = copy.deepcopy(self.q)
        if self.m.actor_loss == "awr":
            gain = self.lower(self.q, obs, batch.action) - self.v(obs)[:, 0]
            actor_loss, _ = self.awr(gain, batch)
        else:
            actor_loss = self.ddpg_bc(lambda action: self.lower(fixed, obs, action), batch)
        losses = {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}
        q = self.lower(self.q, batch.obs, batch.action)
        logged = self.finish(batch, losses, v=v.mean(), q=q.mean())
        for target, online in zip(self.q_t, self.q, strict=True):
            follow(target, online, self.m.polyak_rate)
        return logged


def measured(left, right):
    """Length of a union of intervals: by their left ends, each adds what it has beyond those before it."""
    order = left.argsort(-1)
    left = left.gather(-1, order)
    right = torch.maximum(left, right.gather(-1, order))
    reached, total = left[:, 0], 0
    for start, end in zip(left.T, right.T, strict=True):
        total = total + (end - torch.maximum(start, reached)).clamp(min=0)
        reached = torch.maximum(reached, end)
    return total


class PlainQRL(Plain):
    def make(self, state):
        self.phi = self.add(state.metric.phi, lambda s: s.metric.phi)
        self.f = self.add(state.dynamics, lambda s: s.dynamics)
        self.mix, self.log_lambda = number(state.metric.mix.item()), number(0.0)
        self.numbers = [
            (self.mix, lambda s: s.metric.mix),
            (self.log_lambda, lambda s: s.log_multiplier),
        ]

    def distance(self, a, b, mix=None):
        parts = [measured(a[:, i : i + 8], b[:, i : i + 8]) for i in range(0, a.shape[1], 8)]
        lengths, share = torch.stack(parts, 1), torch.sigmoid(self.mix if mix is None else mix)
        return share * lengths.mean(1) + (1 - share) * lengths.max(1).values

    def update(self, batch):
        n = SPEC.obs_dim
        s, g, s2 = batch.obs[:, :n], batch.obs[:, n:], batch.next_obs[:, :n]
        apart = self.distance(self.phi(s), self.phi(g))
        step = self.distance(self.phi(s), self.phi(s2))
        excess = ((step - 1).clamp(min=0) ** 2).mean()
        multiplier = self.log_lambda.exp()
        metric_loss = (100 * softplus(5 - apart / 100)).mean() + multiplier.detach() * excess
        dual = multiplier * (self.m.slack - excess.detach())
        guess = self.phi(s) + self.f(torch.cat([self.phi(s), batch.action], 1))
        there, back = self.distance(self.phi(s2), guess), self.distance(guess, self.phi(s2))
        dynamics_loss = (there + back).mean() / 2

        phi, f, mix = copy.deepcopy(self.phi), copy.deepcopy(self.f), self.mix.detach()
        obs = batch.extras["actor_obs"]

        def q_of(action):
            here = phi(obs[:, :n])
            after = here + f(torch.cat([here, action], 1))
            return -self.distance(after, phi(obs[:, n:]), mix)

        actor_loss = self.ddpg_bc(q_of, batch)
        losses = {
            "metric_loss": metric_loss,
            "dynamics_loss": dynamics_loss,
            "actor_loss": actor_loss,
        }
        means = {"multiplier": multiplier, "distance": apart.mean(), "step_distance": step.mean()}
        logged = self.finish(batch, losses | {"dual": dual}, **means)
        return {name: x for name, x in logged.items() if name != "dual"}


class PlainCRL(Plain):
    def make(self, state):
        phi, psi = (self.twins(lambda s, i=i: s.critic[i], state) for i in (0, 1))
        self.critic = list(zip(phi, psi, strict=True))
        if self.m.actor_loss == "awr":
            self.value = [self.add(state.value[i], lambda s, i=i: s.value[i]) for i in (0, 1)]

    def table(self, nets, x, goal):
        """Logit of every row with every goal, a row at a time."""
        phi, psi = nets[0](x), nets[1](goal)
        return torch.stack([(row * psi).sum(1) for row in phi]) / self.m.latent_dim**0.5

    def nce(self, table):
        true = torch.eye(len(table)).bool()
        return -torch.where(true, logsigmoid(table), logsigmoid(-table)).mean()

    def update(self, batch):
        n = SPEC.obs_dim
        s, g = batch.obs[:, :n], batch.obs[:, n:]
        x = torch.cat([s, batch.action], 1)
        tables = [self.table(nets, x, g) for nets in self.critic]
        losses = {"critic_loss": sum(map(self.nce, tables)) / 2}
        obs, fixed = batch.extras["actor_obs"], copy.deepcopy(self.critic)

        def lower(action):
            x = torch.cat([obs[:, :n], action], 1)
            return torch.minimum(*(self.table(nets, x, obs[:, n:]).diagonal() for nets in fixed))

        if self.m.actor_loss == "awr":
            losses["value_loss"] = self.nce(self.table(self.value, s, g))
            v = self.table(self.value, obs[:, :n], obs[:, n:]).diagonal()
            losses["actor_loss"], _ = self.awr(lower(batch.action) - v, batch)
        else:
            losses["actor_loss"] = self.ddpg_bc(lower, batch)
        true = torch.eye(len(s)).bool()
        own = sum(t[true].mean() for t in tables) / 2
        others = sum(t[~true].mean() for t in tables) / 2
        return self.finish(batch, losses, logit=own, logit_of_others=others)


PLAIN = {GCBC: PlainGCBC, GCIVL: PlainGCIVL, GCIQL: PlainGCIQL, QRL: PlainQRL, CRL: PlainCRL}


def disagreement(method, data, view=VIEWS[1], n: int = 20, plain=None) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches."""
    # of a contrastive method later states alone
    view = view.for_needs(method.needs)
    pipeline = make_pipeline(data, view=view, batch_size=32, needs=method.needs)
    state = double(method.init(rng.key(0), pipeline.spec(SPEC)))
    kind = next(p for ours, p in PLAIN.items() if isinstance(method, ours))
    plain, worst = kind(plain or method, state), 0.0
    for i in range(n):
        batch = pipeline.sample(rng.fold(rng.key(7), i))
        state, metrics = method.update(state, batch, rng.key(0))
        logged = plain.update(batch)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    return max(worst, plain.gap(state))


@pytest.mark.parametrize("view", VIEWS, ids=["usual goals", "reached goals"])
@pytest.mark.parametrize("name", METHODS)
def test_updates_equal_the_plain_implementation(name, view, data64):
    assert disagreement(METHODS[name], data64, view) < 1e-9


FLOATS = [
    (m, f.name)
    for m in (GCBC_LOUD, GCIVL_LOUD, GCIQL_LOUD, GCIQL_AWR, QRL_LOUD, CRL_LOUD, CRL_AWR)
    for f in dataclasses.fields(m)
    if isinstance(getattr(m, f.name), float)
    and f.name
    != {"awr": "bc_weight", "ddpg_bc": "inverse_temperature"}.get(getattr(m, "actor_loss", ""))
]


@pytest.mark.parametrize("method, name", FLOATS, ids=[f"{type(m).__name__}.{n}" for m, n in FLOATS])
def test_every_hyper_parameter_acts_in_the_settings_compared(method, name, data64):
    changed = dataclasses.replace(method, **{name: 0.8 * getattr(method, name)})
    assert disagreement(method, data64, n=5, plain=changed) > 1e-6


def test_a_union_of_intervals_has_its_length_whatever_touches_overlaps_or_is_empty():
    """Against counting the cells of a grid that are covered."""
    draw = lambda i: rng.randint(rng.key(i), (500, 8), 30)
    left, right = draw(0), draw(1)
    cell = torch.arange(30)
    covered = ((left[..., None] <= cell) & (cell < right[..., None])).any(1).sum(1)
    assert torch.equal(union_length(left.double(), right.double()), covered.double())
    assert len(covered.unique()) > 10


def test_a_distance_is_a_quasimetric():
    method = QRL(**SMALL, latent_dim=24)
    spec = Goal(0.99).spec(SPEC)
    state = double(method.init(rng.key(0), spec))
    a, b, c = (3 * rng.normal(rng.key(i), (200, SPEC.obs_dim), torch.float64) for i in (1, 2, 3))
    d = lambda x, y: method.distance(state, torch.cat([x, y], 1))
    assert (d(a, a) == 0).all() and (d(a, b) > 0).all()
    assert (d(a, c) <= d(a, b) + d(b, c) + 1e-12).all()
    assert (d(a, b) - d(b, a)).abs().min() > 1e-6


def test_a_distance_needs_goals_that_are_observations():
    with pytest.raises(UserError, match="of the same kind as observations"):
        QRL(**SMALL, latent_dim=8).init(rng.key(0), SPEC._replace(goal_dim=2))
    with pytest.raises(UserError, match=r"latent_dim=20 .* multiple of 8"):
        QRL(latent_dim=20)
    with pytest.raises(UserError, match="view=goal"):
        CRL().init(rng.key(0), SPEC)


MUTANTS = {
    "gcbc: likelihood minimised": (GCBC_LOUD, "= -goal_nets.log_prob", "= goal_nets.log_prob"),
    "gcbc: goals of values": (GCBC_LOUD, 'batch.extras["actor_obs"]', "batch.obs"),
    "gcivl: target subtracts the future": (
        GCIVL_LOUD,
        "error = batch.reward + batch",
        "error = batch.reward - batch",
    ),
    "gcivl: advantage of the online V": (
        GCIVL_LOUD,
        "(target_value, batch.obs)",
        "(value, batch.obs).detach()",
    ),
    "gcivl: weight from the error itself": (
        GCIVL_LOUD,
        "expectile_loss(advantage, error",
        "expectile_loss(error.detach(), error",
    ),
    "gcivl: larger twin": (GCIVL_LOUD, "next_v.amin(0)", "next_v.amax(0)"),
    "gcivl: one target for both": (GCIVL_LOUD, "discount * next_v - v", "discount * next_v.amin(0) - v"),
    "gcivl: twins averaged": (GCIVL_LOUD, ".mean(1).sum()", ".mean()"),
    "gcivl: policy's gain of the target": (
        GCIVL_LOUD,
        "goal_nets.value(value, next_obs)",
        "goal_nets.value(target_value, next_obs)",
    ),
    "gcivl: gain turned round": (GCIVL_LOUD, "gain.detach()", "-gain.detach()"),
    "gcivl: V learns from the policy": (GCIVL_LOUD, "gain.detach()", "gain"),
    "gcivl: policy's goals are those of values": (
        GCIVL_LOUD,
        'obs, next_obs = batch.extras["actor_obs"], batch.extras["actor_next_obs"]',
        "obs, next_obs = batch.obs, batch.next_obs",
    ),
    "gcivl: target stays": (
        GCIVL_LOUD,
        "polyak(state.target_value, value, self",
        "polyak(state.target_value, state.target_value, self",
    ),
    "gciql: larger twin for V": (GCIQL_LOUD, "batch.action).amin(0)\n        advantage = t", "batch.action).amax(0)\n        advantage = t"),
    "gciql: online critic for V": (GCIQL_LOUD, "before.target_critic", "before.critic"),
    "gciql: advantage turned round": (GCIQL_LOUD, "= target_q - v", "= v - target_q"),
    "gciql: target subtracts the future": (GCIQL_LOUD, "reward + batch.disc", "reward - batch.disc"),
    "gciql: V learns through the target": (GCIQL_LOUD, "goal_nets.value(before.value, batch.next", "goal_nets.value(value, batch.next"),
    "gciql: twins averaged": (GCIQL_LOUD, ".mean(1).sum()", ".mean()"),
    "gciql: Q learns from the policy": (GCIQL_LOUD, "self._actor_loss(actor, before, batch)", "self._actor_loss(actor, before._replace(critic=critic), batch)"),
    "gciql: policy's action not clipped": (GCIQL_LOUD, "obs, mean.clamp(-1, 1)).amin", "obs, mean).amin"),
    "gciql: larger twin for the policy": (GCIQL_LOUD, "mean.clamp(-1, 1)).amin", "mean.clamp(-1, 1)).amax"),
    "gciql: policy's goals are those of values": (GCIQL_LOUD, 'obs = batch.extras["actor_obs"]', "obs = batch.obs"),
    "gciql: target critic for the policy": (GCIQL_LOUD, "(before.critic, obs, mean", "(before.target_critic, obs, mean"),
    "gciql: target stays": (GCIQL_LOUD, "polyak(state.target_critic, critic", "polyak(state.target_critic, state.target_critic"),
    "gciql awr: weights of the disadvantage": (GCIQL_AWR, "advantage_weight(advantage", "advantage_weight(-advantage"),
    "gciql awr: larger twin": (GCIQL_AWR, "obs, batch.action).amin(0)\n        advantage = q", "obs, batch.action).amax(0)\n        advantage = q"),
    "gciql awr: likelihood minimised": (GCIQL_AWR, "-(weight", "(weight"),
    "qrl: steps pushed apart, not goals": (QRL_LOUD, "_distance(metric, phi, phi_goal), _dist", "_distance(metric, phi, phi_next), _dist"),
    "qrl: goals pulled together": (QRL_LOUD, "softplus(5 - apart", "softplus(5 + apart"),
    "qrl: excess below 1": (QRL_LOUD, "(step - 1)", "(1 - step)"),
    "qrl: excess not squared": (QRL_LOUD, ".relu().square().mean()", ".relu().mean()"),
    "qrl: metric learns lambda": (QRL_LOUD, "multiplier.detach()", "multiplier"),
    "qrl: lambda's loss trains the metric": (QRL_LOUD, "excess.detach()", "excess"),
    "qrl: dual turned round": (QRL_LOUD, "= multiplier * (self", "= -multiplier * (self"),
    "qrl: dynamics predict phi itself": (QRL_LOUD, "guess = phi + ", "guess = "),
    "qrl: dynamics one way": (QRL_LOUD, "_distance(metric, guess, phi_next)", "_distance(metric, phi_next, guess)"),
    "qrl: phi learns nothing from dynamics": (QRL_LOUD, "features(dynamics, phi, batch", "features(dynamics, phi.detach(), batch"),
    "qrl: policy away from the goal": (QRL_LOUD, "q = -_distance", "q = _distance"),
    "qrl: distance from the goal": (QRL_LOUD, "metric, after, goal)", "metric, goal, after)"),
    "qrl: policy ignores the step": (QRL_LOUD, "after = here + ", "after = here + 0 * "),
    "qrl: policy trains the dynamics": (QRL_LOUD, "self._actor_loss(actor, before", "self._actor_loss(actor, before._replace(dynamics=dynamics)"),
    "qrl: policy trains the metric": (QRL_LOUD, "self._actor_loss(actor, before", "self._actor_loss(actor, before._replace(metric=metric)"),
    "qrl: policy's action not clipped": (QRL_LOUD, "here, mean.clamp(-1, 1))", "here, mean)"),
    "qrl: mixed the other way": (QRL_LOUD, "share * lengths.mean(-1) + (1 - share)", "(1 - share) * lengths.mean(-1) + share"),
    "qrl: smallest component": (QRL_LOUD, "lengths.amax(-1)", "lengths.amin(-1)"),
    "qrl: overlaps counted twice": (QRL_LOUD, "opens = real & ~(", "opens = real & ~(0 * "),
    "qrl: empty intervals kept": (QRL_LOUD, "closes = real & ~", "closes = ~"),
    "crl: no positives": (CRL_LOUD, "_same(logits).expand_as", "(0 * _same(logits)).expand_as"),
    "crl: not scaled": (CRL_LOUD, "phi / phi.shape[-1] ** 0.5", "phi"),
    "crl: goals from the wrong end": (CRL_LOUD, "obs[..., :-n_goal], obs[..., -n_goal:]", "obs[..., n_goal:], obs[..., :n_goal]"),
    "crl: goals without their gradient": (CRL_LOUD, "phi @ psi.mT", "phi @ psi.mT.detach()"),
    "crl: larger twin for the policy": (CRL_LOUD, "mean.clamp(-1, 1)).amin", "mean.clamp(-1, 1)).amax"),
    "crl: policy's action not clipped": (CRL_LOUD, "obs, mean.clamp(-1, 1))", "obs, mean)"),
    "crl: policy trains the critic": (CRL_LOUD, "self._actor_loss(actor, before", "self._actor_loss(actor, before._replace(critic=critic)"),
    "crl: policy's goals are those of values": (CRL_LOUD, 'obs = batch.extras["actor_obs"]', "obs = batch.obs"),
    "crl awr: V forgets to learn": (CRL_AWR, "loss = torch.stack(list(metrics.values())).sum()", 'loss = metrics["critic_loss"] + metrics["actor_loss"]'),
    "crl awr: V not subtracted": (CRL_AWR, "_logits(before.value, obs)", "0 * _logits(before.value, obs)"),
    "crl awr: larger twin": (CRL_AWR, "batch.action).amin(0) - _logits", "batch.action).amax(0) - _logits"),
    "crl awr: likelihood minimised": (CRL_AWR, "-(weight", "(weight"),
}  # fmt: skip


# one of each method in `make test`, all in `make test-all`
QUICK = {
    "gcbc: goals of values",
    "gcivl: one target for both",
    "gciql: V learns through the target",
    "qrl: phi learns nothing from dynamics",
    "crl awr: V forgets to learn",
}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS]
)
def test_one_mistake_is_noticed(name, data64):
    method, old, new = MUTANTS[name]
    wrong = mutated(type(method), old, new)(**dataclasses.asdict(method))
    assert disagreement(wrong, data64, n=8, plain=method) > 1e-7
