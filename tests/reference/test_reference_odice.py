"""ODICE against an ordinary implementation of its three gradients, in float64."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.modules import double, follow, gap, load, member, minimise, net
from support.mutants import mutated
from torch import nn
from torch.distributions import Normal

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.odice import ODICE, State
from offbench.testing.checks_gradients import check_targets_are_constants
from offbench.testing.contract import SPEC
from offbench.types import Batch

VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]
GRADIENTS = ("true", "semi", "orthogonal")
SMALL = {"hidden": (16, 16), "actor_hidden": (16, 16)}
LOUD = ODICE(
    **SMALL,
    dual_weight=0.7,
    backward_weight=0.6,
    max_weight=1.2,
    polyak_rate=0.1,
    lr=1e-2,
    weight_decay=0.3,
)
SINGLE = dataclasses.replace(LOUD, n_values=1, layer_norm=False)


def conjugate(x):
    """The supremum over w >= 0 of w x - (w - 1)^2, in closed form."""
    return torch.where(x > -2, x + x**2 / 4, -torch.ones_like(x))


class PlainODICE:
    def __init__(self, m, spec, state):
        self.m = m
        self.values = [self.value_net(m, spec) for _ in range(m.n_values)]
        for i, value in enumerate(self.values):
            load(member(state.value, i), value)
        self.targets = copy.deepcopy(self.values)
        self.actor = net((spec.obs_dim, *m.actor_hidden, spec.action_dim))
        load(state.actor["mean"], self.actor)
        self.log_std = nn.Parameter(state.actor["log_std"].clone())
        self.weights = [p for value in self.values for p in value.parameters()]
        self.value_opt = torch.optim.Adam(self.weights, m.lr)
        actor = [*self.actor.parameters(), self.log_std]
        self.actor_opt = torch.optim.Adam(actor, m.lr, weight_decay=m.weight_decay)

    def value_net(self, m, spec):
        layers = []
        for part in net((spec.obs_dim, *m.hidden, 1)):
            norm = isinstance(part, nn.ReLU) and m.layer_norm
            layers += [nn.LayerNorm(m.hidden[0]), part] if norm else [part]
        return nn.Sequential(*layers).double()

    def pairs(self, state):
        found = [(state.actor["mean"], self.actor)]
        for ours, theirs in ((state.value, self.values), (state.target_value, self.targets)):
            found += [(member(ours, i), value) for i, value in enumerate(theirs)]
        return found

    def value_step(self, batch):
        """(residual, V, loss, metrics of the gradient): V's step, of the gradient that is asked for."""
        m, r, gamma = self.m, batch.reward, batch.discount
        v = torch.stack([value(batch.obs)[:, 0] for value in self.values])
        v2 = torch.stack([value(batch.next_obs)[:, 0] for value in self.values])
        with torch.no_grad():
            low = torch.stack([t(batch.obs)[:, 0] for t in self.targets]).min(0).values
            low2 = torch.stack([t(batch.next_obs)[:, 0] for t in self.targets]).min(0).values
        x = r + gamma * (v2 if m.gradient == "true" else low2) - v
        own = (1 - m.dual_weight) * v.mean()
        forward = m.dual_weight * conjugate(x).mean()
        loss = (own + forward).item()
        if m.gradient != "orthogonal":
            minimise(self.value_opt, own + forward)
            return x.detach(), v, loss, {}
        backward = m.dual_weight * m.backward_weight * conjugate(r + gamma * v2 - low).mean()
        slopes = [
            torch.autograd.grad(part, self.weights, retain_graph=True, allow_unused=True)
            for part in (own, forward, backward)
        ]
        slopes = [
            [torch.zeros_like(p) if g is None else g for g, p in zip(part, self.weights)]
            for part in slopes
        ]
        dot = lambda a, b: sum((p * q).sum() for p, q in zip(a, b, strict=True))
        _, f, b = slopes
        k = dot(f, b) / max(dot(f, f).item(), 1e-10)
        for p, g_own, g_f, g_b in zip(self.weights, *slopes, strict=True):
            p.grad = g_own + g_f + (g_b - k * g_f)
        self.value_opt.step()
        cosine = dot(f, b) / max((dot(f, f) * dot(b, b)).sqrt().item(), 1e-10)
        return x.detach(), v, loss, {"gradient_cosine": cosine.item()}

    def update(self, batch):
        x, v, loss, more = self.value_step(batch)
        for target, value in zip(self.targets, self.values, strict=True):
            follow(target, value, self.m.polyak_rate)
        weight = x.clamp(min=0, max=self.m.max_weight)
        policy = Normal(self.actor(batch.obs), self.log_std.clamp(-5, 2).exp())
        log_prob = policy.log_prob(batch.action).sum(1)
        actor_loss = -sum((w * log_prob).mean() for w in weight) / len(weight)
        minimise(self.actor_opt, actor_loss)
        return {
            "value_loss": loss,
            "v": v.mean().item(),
            "actor_loss": actor_loss.item(),
            "weight": weight.mean().item(),
            "positive_share": (x > 0).double().mean().item(),
            **more,
        }


def disagreement(method, data, view=VIEWS[0], n: int = 20, plain=None) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches."""
    pipeline = make_pipeline(data, view=view, batch_size=32)
    spec = pipeline.spec(SPEC)
    state = double(method.init(rng.key(0), spec))
    # one deviation is at either end of its clip, where it has no gradient
    state.actor["log_std"][:2] = torch.tensor([2.3, -5.2])
    plain = PlainODICE(plain or method, spec, state)
    key, worst = rng.key(7), 0.0
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch)
        state, metrics = method.update(state, batch, k_update)
        logged = plain.update(batch)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    gaps = [gap(ours, theirs) for ours, theirs in plain.pairs(state)]
    return max(worst, (state.actor["log_std"] - plain.log_std).abs().max().item(), *gaps)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("method", [ODICE(**SMALL), LOUD, SINGLE], ids=["usual", "loud", "single"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_updates_equal_the_plain_implementation(gradient, method, view, data64):
    assert disagreement(dataclasses.replace(method, gradient=gradient), data64, view) < 1e-9


FLOATS = [f.name for f in dataclasses.fields(LOUD) if isinstance(getattr(LOUD, f.name), float)]


@pytest.mark.parametrize("name", FLOATS)
def test_every_hyper_parameter_acts_in_the_settings_compared(name, data64):
    changed = dataclasses.replace(LOUD, **{name: 0.8 * getattr(LOUD, name)})
    assert disagreement(LOUD, data64, n=5, plain=changed) > 1e-6


@pytest.mark.parametrize("change", [{"layer_norm": False}, {"n_values": 1}, {"gradient": "semi"}])
def test_every_switch_changes_the_update(change, data64):
    batch = make_pipeline(data64, batch_size=32).sample(rng.key(1))
    stepped = []
    for method in (LOUD, dataclasses.replace(LOUD, **change)):
        state = double(method.init(rng.key(0), SPEC))
        state, _ = method.update(state, batch, rng.key(2))
        stepped.append(method.update(state, batch, rng.key(2))[1]["value_loss"])
    assert abs(stepped[0] - stepped[1]) > 1e-4


# --- the projection, on a V of two parameters


LINE = ODICE(hidden=(), actor_hidden=(), n_values=1, layer_norm=False)


def toy(seed: int, n: int = 6) -> tuple[State, Batch]:
    """A state whose V is w s + b, its target another line, and random transitions."""
    spec = SPEC._replace(obs_dim=1, action_dim=1)
    k = rng.split(rng.key(seed), 5)
    draw = lambda key, *shape: rng.normal(key, shape, torch.float64)
    state = double(LINE.init(k[0], spec))
    target = double(LINE.init(k[1], spec)).value
    batch = Batch(
        draw(k[2], n, 1), draw(k[2], n, 1).tanh(), draw(k[3], n), torch.full((n,), 0.9).double(),
        draw(k[4], n, 1),
    )  # fmt: skip
    return state._replace(target_value=target), batch


def slopes_by_hand(state: State, batch: Batch, weight: float, eta: float):
    """(of V itself, forward, backward): derivatives by (w, b), from f*' = max(x / 2 + 1, 0)."""
    line = lambda layer: (layer[0]["w"].flatten(), layer[0]["b"].flatten())
    (w, b), (tw, tb) = line(state.value), line(state.target_value)
    s, s2 = batch.obs[:, 0], batch.next_obs[:, 0]
    ratio = lambda x: (x / 2 + 1).clamp(min=0)
    forward = ratio(batch.reward + batch.discount * (tw * s2 + tb) - (w * s + b))
    backward = ratio(batch.reward + batch.discount * (w * s2 + b) - (tw * s + tb))
    by = lambda factor, x: torch.stack([(factor * x).mean(), factor.mean()])
    return (
        (1 - weight) * by(torch.ones_like(s), s),
        -weight * by(forward, s),
        weight * eta * by(backward * batch.discount, s2),
    )


def gradient_of(method: ODICE, state: State, batch: Batch) -> torch.Tensor:
    """(2,) by w and b."""
    found = method._value_gradient(state, batch)[0][0]
    return torch.cat([found["w"].flatten(), found["b"].flatten()])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 1.0]))
def test_what_is_kept_of_the_backward_gradient_is_orthogonal_to_the_forward_one(seed, eta):
    state, batch = toy(seed)
    method = dataclasses.replace(LINE, backward_weight=eta)
    own, forward, backward = slopes_by_hand(state, batch, 0.6, eta)
    kept = gradient_of(method, state, batch) - own - forward
    size = forward.norm() * backward.norm() + 1e-12
    assert (kept @ forward).abs() < 1e-9 * size
    # and no more is taken away than lies along the forward one
    removed = backward - kept
    assert (removed[0] * forward[1] - removed[1] * forward[0]).abs() < 1e-9 * size
    # the semi-gradient is what is left where nothing is kept
    semi = gradient_of(dataclasses.replace(LINE, gradient="semi"), state, batch)
    assert torch.allclose(semi, own + forward, rtol=0, atol=1e-12)


def test_a_backward_gradient_along_the_forward_one_vanishes():
    """Where every observation is 0 both move the bias alone, and the orthogonal update is the semi one."""
    state, batch = toy(3)
    batch = batch._replace(obs=torch.zeros_like(batch.obs), next_obs=torch.zeros_like(batch.obs))
    semi, true = (dataclasses.replace(LINE, gradient=g) for g in ("semi", "true"))
    kept = gradient_of(LINE, state, batch)
    assert torch.allclose(kept, gradient_of(semi, state, batch), rtol=0, atol=1e-12)
    assert (kept - gradient_of(true, state, batch)).abs().max() > 0.1


def test_the_value_of_one_state_is_where_the_mean_ratio_is_known():
    """Without a future V's slope is 0 where the mean of max((r - V) / 2 + 1, 0) is (1 - lambda) / lambda."""
    state, batch = toy(5)
    batch = batch._replace(obs=torch.zeros_like(batch.obs), discount=torch.zeros(6).double())
    batch = batch._replace(reward=torch.linspace(0, 1, 6, dtype=torch.float64))
    v = 0.5 + 2 - 2 * 0.4 / 0.6

    def slope(at: float) -> float:
        state.value[0]["b"][:] = at
        return gradient_of(dataclasses.replace(LINE, gradient="semi"), state, batch)[1].item()

    assert abs(slope(v)) < 1e-12 and slope(v - 0.1) < 0 < slope(v + 0.1)


def test_the_contract_sees_that_the_true_gradient_goes_through_the_next_value():
    with pytest.raises(AssertionError, match="a gradient flows through the next"):
        check_targets_are_constants(ODICE(**SMALL, gradient="true"))
    check_targets_are_constants(ODICE(**SMALL, gradient="semi"))


def test_the_policy_acts_by_its_mean_within_the_bounds():
    method = ODICE(**SMALL)
    state, obs = method.init(rng.key(0), SPEC), rng.normal(rng.key(1), (50, SPEC.obs_dim))
    state.actor["mean"][-1]["b"][:] = torch.tensor([3.0, 0.1])
    action = method.act(state, obs, rng.key(2))
    assert (action[:, 0] == 1).all() and (action[:, 1].abs() < 1).all()
    assert torch.equal(action, method.act(state, obs, rng.key(3)))


# --- mutants


KEPT = "return pull((one, one - share, one))[0], residual, metrics"
PER_LAYER = """return torch.utils._pytree.tree_map(
            lambda a, f, b: a + f + b - (f * b).sum() / (f * f).sum().clamp(min=1e-10) * f,
            *(pull(one_of)[0] for one_of in ((one, none, none), (none, one, none), (none, none, one))),
        ), residual, metrics"""
MUTANTS = {
    "projected layer by layer": (LOUD, KEPT, PER_LAYER),
    "projected by the first value": (LOUD, "leaf.flatten() for leaf", "leaf[0].flatten() for leaf"),
    "projected the wrong way": (LOUD, "one - share", "one + share"),
    "not projected": (LOUD, "one - share", "one"),
    "forward one projected": (
        LOUD,
        KEPT,
        "share = inner / (backward @ backward); "
        "return pull((one, one, one - share))[0], residual, metrics",
    ),
    "share of the norm": (LOUD, "inner / square.clamp", "inner / square.sqrt().clamp"),
    "backward one turned round": (LOUD, "one - share, one)", "one - share, -one)"),
    "smaller online value": (LOUD, "bootstrap - v\n", "bootstrap - v.amin(0)\n"),
    "larger target": (LOUD, "(self._v(target, x).amin(0)", "(self._v(target, x).amax(0)"),
    "mean target": (LOUD, "(self._v(target, x).amin(0)", "(self._v(target, x).mean(0)"),
    "online bootstrap": (LOUD, "else old_next_v", "else next_v.detach()"),
    "backward residual of the online value": (LOUD, "next_v - old_v)", "next_v - v.detach())"),
    "weights of after the step": (
        LOUD,
        "weight = residual.clamp(min=0)",
        "weight = self._value_losses(value, state.target_value, batch)[1][0].clamp(min=0)",
    ),
    "weights are the ratio": (LOUD, "residual.clamp(min=0)", "(residual / 2 + 1).clamp(min=0)"),
    "weights of the backward side": (LOUD, "residual.clamp(min=0)", "(-residual).clamp(min=0)"),
    "weights of the smaller residual": (LOUD, "residual.clamp", "residual.amin(0).clamp"),
    "weights of the first value": (LOUD, "residual.clamp", "residual[:1].clamp"),
    "weights not clipped": (LOUD, ".clamp(max=self.max_weight)", ""),
    "terminal ignored": (LOUD, "batch.discount * bootstrap", "0.99 * bootstrap"),
    "terminal ignored backward": (LOUD, "batch.discount * next_v", "0.99 * next_v"),
    "target subtracts the future": (LOUD, "+ batch.discount * boot", "- batch.discount * boot"),
    "ratios below 0": (LOUD, "(x / 2 + 1).clamp(min=0)", "(x / 2 + 1)"),
    "no divergence": (LOUD, "x * w - torch.square(w - 1)", "x * w"),
    "V pushed up": (LOUD, "(1 - self.dual_weight) * v", "(self.dual_weight - 1) * v"),
    "V whole": (LOUD, "(1 - self.dual_weight) * v", "1 * v"),
    "likelihood minimised": (LOUD, "return -(weight", "return (weight"),
    "mean squashed": (LOUD, 'mean = nets.mlp(actor["mean"], batch.obs)',
                      'mean = nets.mlp(actor["mean"], batch.obs).tanh()'),
    "deviation not clipped": (LOUD, ".clamp(-5.0, 2.0)", ""),
    "deviation clipped as elsewhere": (LOUD, ".clamp(-5.0, 2.0)", ".clamp(-20.0, 2.0)"),
    "no weight decay": (LOUD, ", weight_decay=self.weight_decay", ""),
    "values decay too": (
        LOUD,
        "value, opt_value = Adam(self.lr)",
        "value, opt_value = Adam(self.lr, weight_decay=self.weight_decay)",
    ),
    "V without norm": (LOUD, "layer_norm=self.layer_norm).squ", "layer_norm=False).squ"),
    "V norm after": (LOUD, "layer_norm=self.layer_norm).squ", 'layer_norm="after").squ'),
    "target stays": (LOUD, "polyak(state.target_value, value,", "polyak(state.target_value, state.value,"),
    "true: target network": (
        dataclasses.replace(LOUD, gradient="true"),
        'next_v if self.gradient == "true" else old_next_v',
        "old_next_v",
    ),
    "true: smaller next value": (
        dataclasses.replace(LOUD, gradient="true"), "bootstrap = next_v", "bootstrap = next_v.amin(0)",
    ),
    "semi: no target network": (
        dataclasses.replace(LOUD, gradient="semi"), "else old_next_v", "else next_v",
    ),
}  # fmt: skip
# in `make test`; the others in `make test-all` alone
FIRST = (
    "projected layer by layer",
    "projected the wrong way",
    "smaller online value",
    "weights of after the step",
    "weights are the ratio",
    "terminal ignored",
)


@pytest.mark.parametrize(
    "name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS]
)
def test_the_comparison_finds_every_mutant(name, data64):
    method, old, new = MUTANTS[name]
    broken = mutated(ODICE, old, new)(**dataclasses.asdict(method))
    assert disagreement(broken, data64, n=4, plain=method) > 1e-7
