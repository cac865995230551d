"""CQL and Cal-QL against an ordinary implementation of the formulas, in float64.

The reference is written from the papers and from CORL's order of steps: torch.nn modules, twins and
targets as separate networks, torch.distributions, a loop over the sampled actions, one backward
pass and one torch.optim.Adam for each loss.
"""

import copy
import dataclasses
import math

import pytest
import torch
from support.modules import double, gap, load, member, net, number
from support.mutants import mutated
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.methods.cql import CQL, _policy
from offbench.testing.contract import CHECKS, SPEC

SMALL = {"hidden": (16, 16), "n_actions": 3}
LOUD = CQL(
    **SMALL,
    critic_hidden=(12,),
    conservative_weight=0.7,
    softmax_temperature=0.6,
    lagrange=True,
    target_gap=1.3,
    calibrated=True,
    max_target_backup=True,
    entropy_backup=True,
    target_entropy=-0.5,
    clip_diff_min=5.0,  # where some of the batch lies beneath it
    polyak_rate=0.1,
    actor_lr=1e-2,
    critic_lr=2e-2,
)
METHODS = {
    "defaults": CQL(**SMALL),
    "loud": LOUD,
    "plain softmax": dataclasses.replace(LOUD, importance_sampling=False, clip_diff_min=None),
    "sparse rewards": dataclasses.replace(LOUD, sparse_rewards=True),
    "no multiplier": dataclasses.replace(LOUD, lagrange=False, max_target_backup=False),
}
RETURNS = ("return_to_go", "sparse_return_to_go")
VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]


class Plain:
    def __init__(self, m: CQL, spec, state):
        self.m, self.n_act = m, spec.action_dim
        self.net = net((spec.obs_dim, *m.hidden, 2 * spec.action_dim))
        sizes = (spec.obs_dim + spec.action_dim, *(m.critic_hidden or m.hidden), 1)
        self.q = [net(sizes) for _ in range(2)]
        load(state.actor["net"], self.net)
        for i in range(2):
            load(member(state.critic, i), self.q[i])
        self.q_t = copy.deepcopy(self.q)
        self.scale, self.shift = number(1.0), number(-1.0)
        self.log_alpha, self.rho = number(0.0), number(1.0)
        adam = torch.optim.Adam
        self.opt_actor = adam([*self.net.parameters(), self.scale, self.shift], m.actor_lr)
        self.opt_alpha, self.opt_rho = (
            adam([self.log_alpha], m.actor_lr),
            adam([self.rho], m.critic_lr),
        )
        self.opt_q = adam([*self.q[0].parameters(), *self.q[1].parameters()], m.critic_lr)

    def policy(self, obs, noise):
        mean, log_std = self.net(obs)[:, : self.n_act], self.net(obs)[:, self.n_act :]
        std = (self.scale * log_std + self.shift).clamp(-20, 2).exp()
        squashed = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
        action = torch.tanh(mean + std * noise)
        u = mean + std * noise
        log_prob = squashed.base_dist.log_prob(u) - TanhTransform().log_abs_det_jacobian(u, action)
        return action, log_prob.sum(1)

    def step(self, batch, noise_here, noise_next, uniform) -> dict:
        m, k = self.m, self.m.n_actions
        value = lambda q, s, a: q(torch.cat([s, a], 1))[:, 0]
        target_entropy = -self.n_act if m.target_entropy is None else m.target_entropy
        # where an episode ended there is no next observation
        s2 = torch.where((batch.discount == 0)[:, None], batch.obs, batch.next_obs)

        a, logp = self.policy(batch.obs, noise_here[0])
        alpha_loss = -(self.log_alpha * (logp + target_entropy).detach()).mean()
        alpha = self.log_alpha.exp().detach()
        q_pi = torch.minimum(value(self.q[0], batch.obs, a), value(self.q[1], batch.obs, a))
        actor_loss = (alpha * logp - q_pi).mean()

        n_backup = k if m.max_target_backup else 1
        with torch.no_grad():
            best = torch.full_like(batch.reward, -math.inf)
            best_logp = torch.zeros_like(best)
            for j in range(n_backup):
                a2, logp2 = self.policy(s2, noise_next[j])
                v = torch.minimum(value(self.q_t[0], s2, a2), value(self.q_t[1], s2, a2))
                best_logp = torch.where(v > best, logp2, best_logp)
                best = torch.maximum(v, best)
            if m.entropy_backup:
                best = best - alpha * best_logp
            y = batch.reward + batch.discount * best

        with torch.no_grad():
            here = [self.policy(batch.obs, noise_here[1 + j]) for j in range(k)]
            after = [self.policy(s2, noise_next[n_backup + j]) for j in range(k)]
        td, gaps, q_datas = [], [], []
        for q in self.q:
            q_data = value(q, batch.obs, batch.action)
            terms = []
            for j in range(k):
                x = value(q, batch.obs, uniform[j])
                terms.append(x + self.n_act * math.log(2) if m.importance_sampling else x)
            for action, log_prob in (*after, *here):
                x = value(q, batch.obs, action)
                if m.calibrated:
                    name = "sparse_return_to_go" if m.sparse_rewards else "return_to_go"
                    x = torch.maximum(x, batch.extras[name])
                terms.append(x - log_prob if m.importance_sampling else x)
            if not m.importance_sampling:
                terms.append(q_data)
            t = m.softmax_temperature
            diff = t * torch.log(sum(torch.exp(x / t) for x in terms)) - q_data
            if m.clip_diff_min is not None:
                diff = torch.clamp(diff, min=m.clip_diff_min)
            td.append(((q_data - y) ** 2).mean())
            gaps.append(diff.mean())
            q_datas.append(q_data.mean().item())
        weight = m.conservative_weight
        if m.lagrange:
            alpha_prime = torch.clamp(self.rho.exp(), 0, 1e6)
            rho_loss = -0.5 * sum(alpha_prime * weight * (g.detach() - m.target_gap) for g in gaps)
            weight = weight * alpha_prime.detach()
        critic_loss = sum(td) + sum(weight * g for g in gaps)

        steps = [
            (self.opt_alpha, alpha_loss),
            (self.opt_actor, actor_loss),
            (self.opt_q, critic_loss),
        ]
        if m.lagrange:
            steps.append((self.opt_rho, rho_loss))
        grads = []
        for opt, loss in steps:  # every loss is of the parameters before the first step
            params = opt.param_groups[0]["params"]
            grads.append(torch.autograd.grad(loss, params, retain_graph=True))
        for (opt, _), grad in zip(steps, grads, strict=True):
            for p, g in zip(opt.param_groups[0]["params"], grad, strict=True):
                p.grad = g
            opt.step()
        for target, online in zip(self.q_t, self.q, strict=True):
            for t, p in zip(target.parameters(), online.parameters(), strict=True):
                t.data = (1 - m.polyak_rate) * t.data + m.polyak_rate * p.data
        return {
            "critic_loss": sum(td).item(),
            "conservative_gap": sum(gaps).item() / 2,
            "q": sum(q_datas) / 2,
            "q_policy": q_pi.mean().item(),
            "actor_loss": actor_loss.item(),
            "entropy": -logp.mean().item(),
            "temperature": alpha.item(),
            "multiplier": alpha_prime.item() if m.lagrange else 1.0,
        }


def lively(state):
    """The state in float64 with Q and log-std spread out, which CQL starts near one value."""
    state = double(state)
    actor, critic = copy.deepcopy(state.actor), copy.deepcopy(state.critic)
    actor["net"][-1]["w"] *= 200
    critic[-1]["w"] *= 200
    return state._replace(actor=actor, critic=critic, target_critic=copy.deepcopy(critic))


def sparse(data):
    """Rewards of two sizes; some episodes get none but the lesser, which for ever is worth most."""
    return data._replace(reward=torch.where(data.reward > 1.5, 1.0, 0.5).double())


def disagreement(method, data, view=VIEWS[0], n: int = 10) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches and noise."""
    inside = (torch.arange(len(data.last)) % 11 == 5) & data.valid
    data = data._replace(terminal=data.terminal | inside)  # more of them than fakes have
    data = sparse(data) if method.sparse_rewards else data
    pipeline = make_pipeline(data, view=view, batch_size=32, needs=RETURNS)
    spec = pipeline.spec(SPEC)
    state = lively(method.init(rng.key(0), spec))
    plain, key, worst = Plain(method, spec, state), rng.key(7), 0.0
    k = method.n_actions
    n_backup = k if method.max_target_backup else 1
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        k_here, k_next, k_uniform = rng.split(k_update, 3)
        shape = batch.action.shape
        here, after = (
            rng.normal(key, (n, *shape), torch.float64)
            for key, n in ((k_here, 1 + k), (k_next, n_backup + k))
        )
        uniform = 2 * rng.uniform(k_uniform, (k, *shape), torch.float64) - 1
        logged = plain.step(batch, here, after, uniform)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    nets = [(state.actor["net"], plain.net)]
    for i in range(2):
        nets += [
            (member(state.critic, i), plain.q[i]),
            (member(state.target_critic, i), plain.q_t[i]),
        ]
    numbers = [
        (state.actor["log_std_scale"], plain.scale),
        (state.actor["log_std_shift"], plain.shift),
        (state.log_temperature, plain.log_alpha),
        (state.log_multiplier, plain.rho),
    ]
    worst = max(worst, *(gap(*pair) for pair in nets))
    return max(worst, *((a - b).abs().item() for a, b in numbers))


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_updates_equal_the_plain_implementation(name, view, data64):
    assert disagreement(METHODS[name], data64, view) < 1e-9


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(CQL) if "hidden" not in f.name]
)
def test_every_hyper_parameter_acts_in_the_settings_compared(name, data64):
    data = sparse(data64) if name == "sparse_rewards" else data64
    pipeline = make_pipeline(data, batch_size=24, needs=RETURNS)
    old = getattr(LOUD, name)
    new = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else 0.8 * old
    states = []
    for m in (LOUD, dataclasses.replace(LOUD, **{name: new})):
        state = lively(m.init(rng.key(0), SPEC))
        for i in range(3):
            state, _ = m.update(state, pipeline.sample(rng.key(i)), rng.key(100 + i))
        states.append(state)
    pairs = zip(*map(tree_leaves, states), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


def test_weights_start_as_corl_starts_them():
    """Critics orthogonal with gain sqrt 2 and 0.01 at the end; the policy's end Xavier with gain 0.01."""
    state = CQL().init(rng.key(0), SPEC)
    for i, layer in enumerate(state.critic):
        w = layer["w"] / (0.01 if i == 3 else 2**0.5)
        small = w.mT @ w if w.shape[-2] > w.shape[-1] else w @ w.mT
        assert torch.allclose(small, torch.eye(small.shape[-1]).expand_as(small), atol=1e-5)
        assert not layer["b"].any()
    *body, last = state.actor["net"]
    for layer in body:  # as torch.nn.Linear
        bound = layer["w"].shape[0] ** -0.5
        assert 0.98 * bound < layer["w"].abs().max() <= bound and layer["b"].any()
    bound = 0.01 * (6 / (256 + 2 * SPEC.action_dim)) ** 0.5
    assert 0.98 * bound < last["w"].abs().max() <= bound and not last["b"].any()
    assert state.actor["log_std_scale"] == 1 and state.actor["log_std_shift"] == -1
    assert state.log_temperature == 0 and state.log_multiplier == 1
    assert all(map(torch.equal, tree_leaves(state.critic), tree_leaves(state.target_critic)))


def test_the_log_std_stays_within_its_bounds():
    actor = CQL(**SMALL).init(rng.key(0), SPEC).actor
    actor["log_std_scale"] = actor["log_std_scale"] * 1e6
    log_std = _policy(actor, rng.normal(rng.key(1), (50, 5)))[1]
    assert log_std.min() == -20 and log_std.max() == 2


def test_only_the_calibrated_version_needs_the_return_to_go():
    assert CQL().needs == () and CQL(calibrated=True).needs == RETURNS[:1]
    assert CQL(calibrated=True, sparse_rewards=True).needs == RETURNS[1:]
    with pytest.raises(UserError, match="calibrated"):
        CQL(sparse_rewards=True)


@pytest.mark.parametrize("check", CHECKS[:-2], ids=lambda c: c.__name__)
def test_the_calibrated_version_holds_the_contract(check):
    # these two train the method first, which at the settings of LOUD learns little and is clipped everywhere
    trains = check.__name__ in (
        "check_what_a_part_learns_from_is_fixed",
        "check_bootstrap_is_added",
    )
    check(CQL(**SMALL, critic_hidden=(12,), calibrated=True) if trains else LOUD)


MUTANTS = {
    "target subtracts the future": (
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "target takes the larger twin": ("after[:n_backup]).amin(0)", "after[:n_backup]).amax(0)"),
    "target of the worst action": ("next_q.max(0)", "next_q.min(0)"),
    "target of the online critics": ("_q(target_critic, next_obs", "_q(critic, next_obs"),
    "target adds the entropy's cost": ("next_v - temperature", "next_v + temperature"),
    "entropy of the first action": ("gather(0, best[None])", "gather(0, 0 * best[None])"),
    "next action at this observation": (
        "_sample(_fixed(actor), next_obs",
        "_sample(_fixed(actor), batch.obs",
    ),
    "next observation after a terminal": ("where(ended, batch.obs", "where(ended, batch.next_obs"),
    "temperature of the wrong sign": ("entropy - target_entropy", "target_entropy - entropy"),
    "temperature's loss moves the actor": (
        "(entropy - target_entropy).detach()",
        "(entropy - target_entropy)",
    ),
    "actor's loss moves the temperature": (
        "log_temperature.exp().detach()",
        "log_temperature.exp()",
    ),
    "actor minimises Q": ("log_here[0] - q_policy)", "log_here[0] + q_policy)"),
    "actor seeks certainty": ("temperature * log_here[0] - q", "-temperature * log_here[0] - q"),
    "actor takes the larger twin": ("here[:1]).amin(0)", "here[:1]).amax(0)"),
    "actor's loss moves the critics": (
        "_q(_fixed(critic), batch.obs, here",
        "_q(critic, batch.obs, here",
    ),
    "actor learns from the penalty's samples": (
        "after[n_backup:], here[1:]]).detach()",
        "after[n_backup:], here[1:]])",
    ),
    "actor learns from densities": ("log_here[1:]]).detach()", "log_here[1:]])"),
    "no density": ("q_sampled - log_density", "q_sampled"),
    "density of the wrong sign": ("q_sampled - log_density", "q_sampled + log_density"),
    "uniform density of [0, 1]": ("-n_act * math.log(2)", "0 * math.log(2)"),
    "uniform actions in [0, 1]": (
        "2 * rng.uniform(k_uniform, (k, *batch.action.shape), batch.action.dtype) - 1",
        "rng.uniform(k_uniform, (k, *batch.action.shape), batch.action.dtype)",
    ),
    "densities of each other's actions": (
        "log_after[n_backup:], log_here[1:]]",
        "log_here[1:], log_after[n_backup:]]",
    ),
    "penalty at the next observation": ("q = _q(critic, batch.obs", "q = _q(critic, next_obs"),
    "mean over actions": ("logsumexp(1)", "logsumexp(1) - math.log(terms.shape[1])"),
    "temperature forgotten": ("(terms / self.softmax_temperature)", "terms"),
    "data not subtracted": ("gap = soft_max - q_data", "gap = soft_max"),
    "clip from above": ("clamp(min=self", "clamp(max=self"),
    "clip of the mean": (
        "gap.clamp(min=self.clip_diff_min)",
        "gap.mean(-1, keepdim=True).clamp(min=self.clip_diff_min)",
    ),
    "multiplier descends": ("-0.5 * (weight", "0.5 * (weight"),
    "multiplier without its target": ("(gap.detach() - offset)", "gap.detach()"),
    "multiplier's loss moves the critics": ("(weight * (gap.detach()", "(weight * (gap"),
    "critics' loss moves the multiplier": ("_fixed(weight) * gap", "weight * gap"),
    "penalty is a reward": ("td_error + _fixed", "td_error - _fixed"),
    "penalty unweighted": ("weight = self.conservative_weight * multiplier", "weight = multiplier"),
    "bound from above": (".maximum(", ".minimum("),
    "bound on uniform actions too": (
        "[q_sampled[:, :k], bounded]",
        '[q_sampled[:, :k].maximum(batch.extras["return_to_go"]), bounded]',
    ),
    "twins averaged": (
        "td_error + _fixed(weight) * gap).sum()",
        "td_error + _fixed(weight) * gap).mean()",
    ),
    "log-std unscaled": ('actor["log_std_scale"] * log_std', "log_std"),
    "actor at the critics' rate": ("Adam(self.actor_lr).step", "Adam(self.critic_lr).step"),
    "critics at the actor's rate": ("Adam(self.critic_lr).step", "Adam(self.actor_lr).step"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name, data64):
    assert (
        disagreement(mutated(CQL, *MUTANTS[name])(**dataclasses.asdict(LOUD)), data64, n=3) > 1e-7
    )
