"""SAC-N and EDAC against an ordinary implementation of the paper's formulas, in float64.

The reference is written from the paper and its code's order of steps: torch.nn modules, a list of
critics, cosines of one pair after the other, one loss and one torch.optim.Adam for each part.
"""

import copy
import dataclasses

import pytest
import torch
from support.modules import double, gap, load, member, net, number
from support.mutants import mutated
from torch.distributions import Normal
from torch.distributions.transforms import TanhTransform
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.methods.sac_n import SACN
from offbench.testing.contract import SPEC, check_method

SMALL = {"hidden": (16, 16)}
LOUD = SACN(
    **SMALL, n_critics=5, diversity_weight=3.0, polyak_rate=0.1, actor_lr=1e-2, critic_lr=2e-2
)
METHODS = {
    "sac_n": SACN(**SMALL, n_critics=4),
    "edac": SACN(**SMALL, n_critics=3, diversity_weight=1.0),
    "loud": LOUD,
    "one critic": SACN(**SMALL, n_critics=1),
    "best of 4": dataclasses.replace(LOUD, max_target_backup=True, n_actions=4),
}
VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]


class Plain:
    def __init__(self, m: SACN, spec, state):
        self.m, self.n_act = m, spec.action_dim
        self.net = net((spec.obs_dim, *m.hidden, 2 * spec.action_dim))
        sizes = (spec.obs_dim + spec.action_dim, *m.hidden, 1)
        self.q = [net(sizes) for _ in range(m.n_critics)]
        load(state.actor, self.net)
        for i, q in enumerate(self.q):
            load(member(state.critic, i), q)
        self.q_t = copy.deepcopy(self.q)
        self.log_alpha = number(0.0)
        self.opt_actor = torch.optim.Adam(self.net.parameters(), m.actor_lr)
        self.opt_alpha = torch.optim.Adam([self.log_alpha], m.actor_lr)
        everything = [p for q in self.q for p in q.parameters()]
        self.opt_q = torch.optim.Adam(everything, m.critic_lr)

    def policy(self, obs, noise):
        mean, log_std = self.net(obs).split(self.n_act, 1)
        std = log_std.clamp(-5, 2).exp()
        u = mean + std * noise
        action = torch.tanh(u)
        log_prob = Normal(mean, std).log_prob(u) - TanhTransform().log_abs_det_jacobian(u, action)
        return action, log_prob.sum(1)

    def step(self, batch, noise_here, noise_next) -> dict:
        m = self.m
        value = lambda q, s, a: q(torch.cat([s, a], 1))[:, 0]
        a, logp = self.policy(batch.obs, noise_here)
        alpha_loss = -(self.log_alpha * (logp - self.n_act).detach()).mean()
        alpha = self.log_alpha.exp().detach()
        q_pi = torch.stack([value(q, batch.obs, a) for q in self.q])
        actor_loss = (alpha * logp - q_pi.min(0).values).mean()
        with torch.no_grad():
            if m.max_target_backup:
                best = torch.full((m.n_critics, len(batch.reward)), -torch.inf).double()
                for noise in noise_next.split(len(batch.reward)):
                    a2, _ = self.policy(batch.next_obs, noise)
                    for i, q in enumerate(self.q):
                        best[i] = torch.maximum(best[i], value(q, batch.next_obs, a2))
                y = batch.reward + batch.discount * best.min(0).values
            else:
                a2, logp2 = self.policy(batch.next_obs, noise_next)
                q2 = torch.stack([value(q, batch.next_obs, a2) for q in self.q_t]).min(0).values
                y = batch.reward + batch.discount * (q2 - alpha * logp2)
        action = batch.action.clone().requires_grad_()
        q_data = [value(q, batch.obs, action) for q in self.q]
        td = sum(((q - y) ** 2).mean() for q in q_data)
        diversity = torch.zeros((), dtype=torch.float64)
        if m.diversity_weight is not None:
            units = []
            for q in q_data:
                slope = torch.autograd.grad(q.sum(), action, create_graph=True)[0]
                units.append(slope / (torch.sqrt((slope**2).sum(1, keepdim=True)) + 1e-10))
            for i in range(m.n_critics):
                for j in range(m.n_critics):
                    if i != j:
                        cosine = (units[i] * units[j]).sum(1)
                        diversity = diversity + cosine.mean() / (m.n_critics - 1)
        critic_loss = td + (m.diversity_weight or 0) * diversity

        steps = [
            (self.opt_alpha, alpha_loss),
            (self.opt_actor, actor_loss),
            (self.opt_q, critic_loss),
        ]
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
            "critic_loss": td.item(),
            "diversity_loss": diversity.item(),
            "q": torch.stack(q_data).mean().item(),
            "q_policy": q_pi.min(0).values.mean().item(),
            "q_policy_spread": q_pi.std(0, correction=0).mean().item(),
            "actor_loss": actor_loss.item(),
            "entropy": -logp.mean().item(),
            "temperature": alpha.item(),
        }


def lively(state):
    """The state in float64 with Q and log-std spread out, which start near one value."""
    state = double(state)
    actor, critic = copy.deepcopy(state.actor), copy.deepcopy(state.critic)
    actor[-1]["w"] *= 300
    actor[-1]["w"][:, actor[-1]["w"].shape[1] // 2 :] *= 30  # log-std beyond both bounds
    critic[-1]["w"] *= 100
    return state._replace(actor=actor, critic=critic, target_critic=copy.deepcopy(critic))


def disagreement(method, data, view=VIEWS[0], n: int = 10) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches and noise."""
    pipeline = make_pipeline(data, view=view, batch_size=32)
    spec = pipeline.spec(SPEC)
    state = lively(method.init(rng.key(0), spec))
    plain, key, worst = Plain(method, spec, state), rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        k_here, k_next = rng.split(k_update)
        drawn = method.n_actions if method.max_target_backup else 1
        noise_next = rng.normal_like(k_next, batch.action.repeat(drawn, 1))
        logged = plain.step(batch, rng.normal_like(k_here, batch.action), noise_next)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    nets = [(state.actor, plain.net)]
    for i in range(method.n_critics):
        nets.append((member(state.critic, i), plain.q[i]))
        nets.append((member(state.target_critic, i), plain.q_t[i]))
    worst = max(worst, *(gap(*pair) for pair in nets))
    return max(worst, (state.log_temperature - plain.log_alpha).abs().item())


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_updates_equal_the_plain_implementation(name, view, data64):
    assert disagreement(METHODS[name], data64, view) < 1e-9


OTHER = {"max_target_backup": True, "n_actions": 3}  # of the rest, four fifths


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(SACN) if f.name not in ("hidden", "n_critics")]
)
def test_every_hyper_parameter_acts_in_the_settings_compared(name, data64):
    pipeline = make_pipeline(data64, batch_size=32)
    base, states = METHODS["best of 4"] if name == "n_actions" else LOUD, []
    for m in (
        base,
        dataclasses.replace(base, **{name: OTHER.get(name, 0.8 * getattr(base, name))}),
    ):
        state = lively(m.init(rng.key(0), SPEC))
        for i in range(3):
            state, _ = m.update(state, pipeline.sample(rng.key(i)), rng.key(100 + i))
        states.append(state)
    pairs = zip(*map(tree_leaves, states), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


def test_weights_start_as_the_authors_start_them():
    """Hidden biases 0.1, last layers uniform within 1e-3 (policy) and 3e-3 (critics)."""
    state = SACN(n_critics=7).init(rng.key(0), SPEC)
    for params, last in ((state.actor, 1e-3), (state.critic, 3e-3)):
        for layer in params[:-1]:
            bound = layer["w"].shape[-2] ** -0.5
            assert 0.98 * bound < layer["w"].abs().max() <= bound and (layer["b"] == 0.1).all()
        assert 0.9 * last < params[-1]["w"].abs().max() <= last
        assert 0 < params[-1]["b"].abs().max() <= last
    assert all(len(layer["w"]) == 7 for layer in state.critic)
    assert all(map(torch.equal, tree_leaves(state.critic), tree_leaves(state.target_critic)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edac", "best of 4"])
def test_diversified_critics_hold_the_contract(name):
    check_method(METHODS[name], report=None)


def test_one_critic_cannot_be_diverse():
    with pytest.raises(UserError, match=r"n_critics=1: .* at least 2"):
        SACN(n_critics=1, diversity_weight=1.0)


def test_the_best_of_no_actions_is_refused():
    with pytest.raises(UserError, match="n_actions=0 must be at least 1"):
        SACN(n_actions=0)


def test_critics_without_a_slope_leave_the_update_finite(data64):
    """A critic whose units are all off has gradient 0 in the action, which has no direction."""
    state = double(LOUD.init(rng.key(0), SPEC))
    off = [{**state.critic[0], "b": state.critic[0]["b"] - 1e6}, *state.critic[1:]]
    batch = make_pipeline(data64, batch_size=32).sample(rng.key(0))
    new, metrics = LOUD.update(state._replace(critic=off), batch, rng.key(1))
    assert metrics["diversity_loss"] == 0
    assert all(x.isfinite().all() for x in tree_leaves(new))


MUTANTS = {
    "target subtracts the future": (
        "batch.reward + batch.discount",
        "batch.reward - batch.discount",
    ),
    "target takes the largest critic": ("next_action).amin(0)", "next_action).amax(0)"),
    "target averages the critics": ("next_action).amin(0)", "next_action).mean(0)"),
    "target of the online critics": (
        "_q(target_critic, batch.next_obs",
        "_q(fixed_critic, batch.next_obs",
    ),
    "target adds the entropy's cost": ("next_q - temperature", "next_q + temperature"),
    "target without entropy": ("next_q - temperature * next_log_prob", "next_q + 0"),
    "critics' loss moves the actor": (
        "_sample(fixed_actor, batch.next_obs",
        "_sample(actor, batch.next_obs",
    ),
    "next action at this observation": (
        "_sample(fixed_actor, batch.next_obs",
        "_sample(fixed_actor, batch.obs",
    ),
    "temperature of the wrong sign": ("(entropy - target_entropy)", "(target_entropy - entropy)"),
    "temperature's loss moves the actor": (
        "(entropy - target_entropy).detach()",
        "(entropy - target_entropy)",
    ),
    "actor's loss moves the temperature": (
        "log_temperature.exp().detach()",
        "log_temperature.exp()",
    ),
    "target entropy of the other sign": ("target_entropy = -batch", "target_entropy = batch"),
    "actor minimises Q": ("log_prob - q_policy.amin(0)", "log_prob + q_policy.amin(0)"),
    "actor seeks certainty": ("(temperature * log_prob - q", "(-temperature * log_prob - q"),
    "actor takes the largest critic": (
        "log_prob - q_policy.amin(0)",
        "log_prob - q_policy.amax(0)",
    ),
    "actor's loss moves the critics": (
        "_q(fixed_critic, batch.obs, action)",
        "_q(critic, batch.obs, action)",
    ),
    "critics averaged": ("square(q - target).mean(-1).sum()", "square(q - target).mean()"),
    "critics made alike": ("weight * diversity_loss", "-weight * diversity_loss"),
    "diversity unweighted": ("+ weight * diversity_loss", "+ diversity_loss"),
    "a critic paired with itself": (" - slope.square().sum((0, -1))", ""),
    "slopes not normalised": ("slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)", "slope"),
    "slope in the observation": (
        "[obs.expand(n, *obs.shape), tiled]",
        "[obs.expand(n, *obs.shape) + tiled.mean(-1, keepdim=True), tiled]",
    ),
    "mean over N pairs": ("pairs.mean() / (n - 1)", "pairs.mean() / n"),
    "slope at the mean action": (
        "(action.expand(n, *action.shape))",
        "(0 * action.expand(n, *action.shape))",
    ),
    "log-std bounds of SAC": (
        "sample(mean, log_std.clamp(-5.0, 2.0)",
        "sample(mean, log_std.clamp(-20.0, 2.0)",
    ),
    "log-std not bounded above": (
        "sample(mean, log_std.clamp(-5.0, 2.0)",
        "sample(mean, log_std.clamp(min=-5.0)",
    ),
    "actor at the critics' rate": ("Adam(self.actor_lr).step", "Adam(self.critic_lr).step"),
    "critics at the actor's rate": ("Adam(self.critic_lr).step", "Adam(self.actor_lr).step"),
}
OF_THE_BEST = {
    "best of the target critics": ("_q(fixed_critic, tiled", "_q(target_critic, tiled"),
    "best of the smallest critic": (".amax(1).amin(0)", ".amin(0).amax(0)"),
    "least of K actions": (".amax(1).amin(0)", ".amin(1).amin(0)"),
    "best critic": (".amax(1).amin(0)", ".amax(1).amax(0)"),
    "K observations in the place of actions": (
        "unflatten(1, (self.n_actions, -1)).amax(1)",
        "unflatten(1, (-1, self.n_actions)).amax(2)",
    ),
    "best actions here": ("tiled = batch.next_obs", "tiled = batch.obs"),
    "best of loss moving the actor": ("_sample(fixed_actor, tiled", "_sample(actor, tiled"),
    "best of critics that its loss moves": ("_q(fixed_critic, tiled", "_q(critic, tiled"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTANTS, *OF_THE_BEST])
def test_the_comparison_finds_every_mutant(name, data64):
    settings = METHODS["best of 4"] if name in OF_THE_BEST else LOUD
    mutant = mutated(SACN, *(MUTANTS | OF_THE_BEST)[name])
    assert disagreement(mutant(**dataclasses.asdict(settings)), data64, n=3) > 1e-7
