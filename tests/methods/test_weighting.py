"""Learned weights: the loss against plain autograd, the redraw against its expectation, and what they do."""

import dataclasses

import numpy as np
import pytest
import torch
from support.mutants import mutated
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.bench.plan import plan
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.sampling import advantage_weights
from offbench.data.views import NStep
from offbench.methods.bc import BC
from offbench.methods.td3_bc import TD3BC
from offbench.testing.contract import (
    SPEC,
    check_compiles,
    check_float64_works,
    check_resume,
    check_seed_axis,
    check_state_is_a_fixed_point_of_shape,
    check_update_is_pure,
    fake_data,
)
from offbench.training.engine import Engine
from offbench.training.loop import train
from offbench.training.reweighting import DensityWeights, resample
from offbench.training.step import initial_carry, make_step
from offbench.types import Spec

HIDDEN = (8, 8)
INNER = BC(hidden=HIDDEN)
LOUD = DensityWeights(
    method=INNER,
    hidden=HIDDEN,
    lr=2e-2,
    flow_weight=0.3,
    kl_weight=0.4,
    clip=-0.6,
    temperature=0.7,
    flow_discount=0.9,
)


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def module(params: list) -> nn.Sequential:
    parts = []
    for layer in params:
        linear = nn.Linear(*layer["w"].shape).double()
        linear.weight.data, linear.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def disagreement(weights: DensityWeights, n: int = 6) -> float:
    """The largest difference in weights and parameters over n steps on the same batches."""
    pipeline = make_pipeline(fake_data(dtype=torch.float64), batch_size=32)
    state = double(weights.init(rng.key(0), SPEC))
    state = state._replace(  # logits beyond the clip
        **{k: tree_map(lambda x: 3 * x, getattr(state, k)) for k in ("pair", "single")}
    )
    g, f = module(state.pair), module(state.single)
    adam = torch.optim.Adam([*g.parameters(), *f.parameters()], LOUD.lr)
    low, high, worst, m = np.inf, -np.inf, 0.0, LOUD
    for i in range(n):
        batch = pipeline.sample(rng.key(i))
        state, got, metrics = weights._learn(state, batch)
        low, high = min(low, batch.reward.min().item()), max(high, batch.reward.max().item())
        r = (batch.reward - low) / (high - low)
        gs, fs = g(torch.cat([batch.obs, batch.action], 1))[:, 0], f(batch.obs)[:, 0]
        bound = 1 + m.clip
        logit = torch.clamp(gs, -bound, bound) + torch.clamp(fs, -bound, bound)
        w = torch.exp(logit / m.temperature) / torch.exp(logit / m.temperature).sum()
        out = torch.exp((gs + fs) / m.temperature)
        into = torch.exp(f(batch.next_obs)[:, 0] / m.temperature)
        flow = ((m.flow_discount * out - into) ** 2).mean()
        loss = -(w * r).sum() + m.flow_weight * flow + m.kl_weight * (w * torch.log(w)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        worst = max(worst, (got - w).abs().max().item())
        worst = max(worst, abs(metrics["weight_gain"] - (w * r).sum() + r.mean()).item())
    for ours, theirs in ((state.pair, g), (state.single, f)):
        linears = [part for part in theirs if isinstance(part, nn.Linear)]
        for layer, linear in zip(ours, linears, strict=True):
            worst = max(worst, (layer["w"].T - linear.weight).abs().max().item())
            worst = max(worst, (layer["b"].flatten() - linear.bias).abs().max().item())
    return worst


def test_the_weights_equal_a_plain_implementation():
    assert disagreement(LOUD) < 1e-9


MUTANTS = {
    "flees reward": ("loss = -(weight * reward)", "loss = (weight * reward)"),
    "spreads apart": ("+ self.kl_weight * kl", "- self.kl_weight * kl"),
    "no flow": ("self.flow_weight * flow", "0 * flow"),
    "flow of clipped logits": ("exp(g + f) -", "exp(logit * self.temperature) -"),
    "flow discount": ("self.flow_discount * exp", "exp"),
    "flow into the present": ("single, batch.next_obs", "single, obs"),
    "clips the sum": (
        "g.clamp(-bound, bound) + f.clamp(-bound, bound)",
        "(g + f).clamp(-bound, bound)",
    ),
    "no temperature": ("f.clamp(-bound, bound)) / self.temperature", "f.clamp(-bound, bound))"),
    "rewards of this minibatch alone": (
        "torch.minimum(state.low, batch.reward.amin())",
        "batch.reward.amin()",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_finds_every_mutant(name):
    cls = mutated(DensityWeights, *MUTANTS[name])
    fields = {f.name: getattr(LOUD, f.name) for f in dataclasses.fields(LOUD)}
    assert disagreement(cls(**fields)) > 1e-6


def test_a_redraw_has_the_weights_as_its_expectation_and_each_count_next_to_it():
    weight = rng.normal(rng.key(1), (12,), torch.float64).softmax(0)
    counts = torch.zeros(12).double()
    for i in range(2000):
        drawn = torch.bincount(resample(rng.key(i), weight), minlength=12)
        assert drawn.sum() == 12 and ((drawn - 12 * weight).abs() < 1).all()
        counts += drawn / 2000
    assert torch.allclose(counts, 12 * weight, atol=0.04)
    uniform = resample(rng.key(0), torch.full((5,), 0.2))
    assert sorted(uniform.tolist()) == [0, 1, 2, 3, 4]


def test_the_method_sees_the_redrawn_minibatches_and_nothing_else_changes():
    """An update of the method by hand on the rows that the weights draw, two minibatches included."""
    for inner in (INNER, TD3BC(hidden=HIDDEN)):
        wrapped = dataclasses.replace(LOUD, method=inner)
        pipeline = make_pipeline(fake_data(dtype=torch.float64), batch_size=16)
        state = double(wrapped.init(rng.key(0), SPEC))
        k = wrapped.minibatches
        batch, key = pipeline.sample(rng.key(5), k), rng.key(9)
        new, metrics = wrapped.update(state, batch, key)
        k_inner, *k_draw = rng.split(key, 1 + k)
        drawn, now = [], state
        for i in range(k):
            mini = tree_map(lambda x, i=i: x[i], batch) if k > 1 else batch
            now, weight, _ = wrapped._learn(now, mini)
            row = resample(k_draw[i], weight)
            drawn.append(tree_map(lambda x, row=row: x[row], mini))
        rows = drawn[0] if k == 1 else tree_map(lambda *x: torch.stack(x), *drawn)
        want, more = inner.update(state.inner, rows, k_inner)
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(new.inner), tree_leaves(want)))
        assert metrics.keys() == more.keys() | {"weight_share", "weight_gain", "weight_flow_error"}


CHECKS = [
    check_update_is_pure,
    check_state_is_a_fixed_point_of_shape,
    check_seed_axis,
    check_float64_works,
]


@pytest.mark.parametrize("inner", [INNER, TD3BC(hidden=HIDDEN)], ids=["bc", "td3_bc"])
def test_a_weighted_method_keeps_the_contract(inner):
    """But that the flow term reads next observations whatever follows them, as the authors' does."""
    for check in [*CHECKS, *([check_resume] if inner is INNER else [])]:
        check(dataclasses.replace(LOUD, clip=0.2, method=inner))


@pytest.mark.slow
def test_a_weighted_method_compiles():
    check_compiles(LOUD)


# --- what they do


def two_kinds(good: float = 0.1) -> tuple:
    """One step in ten moves right and is paid for it, the others move left for nothing."""
    made = []
    for k in rng.split(rng.key(0), 60):
        paid = rng.uniform(k, (10,)) < good
        action = torch.where(paid, 0.7, -0.7)[:, None]
        obs = rng.normal(rng.fold(k, 1), (11, 2))
        end = np.zeros(10, bool)
        made.append(Episode(obs.numpy(), action.numpy(), paid.float().numpy(), end))
    return from_episodes(made)


def test_the_weight_of_rewarding_steps_rises_and_the_clone_follows():
    spec = Spec(obs_dim=2, action_dim=1, gamma=0.9, max_episode_steps=10)
    data = two_kinds()
    clone = BC(hidden=(16, 16), lr=1e-2)
    weights = DensityWeights(method=clone, hidden=(16, 16), lr=3e-3)
    pipeline = make_pipeline(data, view=NStep(1, 0.9), batch_size=64)
    everything = pipeline.batch(data.valid.nonzero().squeeze(1))
    obs = rng.normal(rng.key(3), (50, 2))

    def trained(method) -> list:
        (point,) = train(method, pipeline, spec, seeds=[0, 1], n_updates=150, backend="eager")
        return [tree_map(lambda x, i=i: x[i], point.state) for i in range(2)]

    for plain, state in zip(trained(clone), trained(weights), strict=True):
        metrics = weights._learn(state, everything)[2]
        assert metrics["weight_gain"] > 0.4  # a tenth of the steps, half of the weight
        assert 0.2 < metrics["weight_share"] < 0.5
        before, after = (
            m.act(s, obs, rng.key(0)).mean() for m, s in ((clone, plain), (weights, state))
        )
        assert before < -0.4 and after > before + 0.3


def test_sweeps_reach_the_method_inside_and_samplers_compose():
    pipeline = make_pipeline(fake_data(), weights=[advantage_weights], batch_size=16)
    wrapped, rates = LOUD, (1e-3, 1e-2)
    values = [{"lr": rate} for rate in rates]
    carry = initial_carry(wrapped, SPEC, [0, 0], values=values)
    engine = Engine(make_step(wrapped, pipeline), carry, backend="eager")
    engine.run(5)
    swept = engine.carry.state.state
    for i, rate in enumerate(rates):
        method = dataclasses.replace(LOUD, method=BC(hidden=HIDDEN, lr=rate))
        alone = Engine(
            make_step(method, pipeline), initial_carry(method, SPEC, [0]), backend="eager"
        )
        alone.run(5)
        for a, b in zip(tree_leaves(swept), tree_leaves(alone.carry.state), strict=True):
            assert torch.allclose(a[i], b[0], rtol=1e-4, atol=1e-5)


def test_an_entry_with_a_weight_and_the_ids_of_those_without():
    hopper = "task=offbench/hopper/medium-replay-v0"
    plain, both = plan([hopper, "methods=[iql+aw,iql+aw+dw]"], bench=True).cells
    assert "weight" not in plain.pipeline and both.entry == "iql+aw+dw"
    assert both.pipeline["weight"]["name"] == "dw"
    assert both.pipeline["sampler"] == plain.pipeline["sampler"]
    (spelt,) = plan([hopper, "method=iql", "sampler=aw", "weight=dw"], bench=False).cells
    assert spelt.entry == both.entry and spelt.runs()[0].run_id == both.runs()[0].run_id
    (other,) = plan([hopper, "method=iql", "weight=dw", "weight.kl_weight=1.0"], bench=False).cells
    assert other.pipeline["weight"]["kl_weight"] == 1.0 and other.tuning["how"] == "user"
