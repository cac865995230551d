"""The measured methods against an ordinary PyTorch implementation of the papers, in float64.

The references are the plain loops of `offbench.speed.benchmark`: torch.nn modules, one loss and one
torch.optim.Adam per network, `backward()`, written from the papers and not from the methods.
"""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import advantage_weights
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.cql import CQL
from offbench.methods.dt import DT
from offbench.methods.iql import IQL
from offbench.methods.sac_n import SACN
from offbench.methods.td3_bc import TD3BC
from offbench.methods.xql import XQL
from offbench.speed.benchmark import CONTENDERS
from offbench.testing.contract import SPEC, view_for
from offbench.training.engine import Engine, advance, initial_carry, make_step
from offbench.types import minibatch

HIDDEN = (16, 16)
VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]
HPARAMS = [
    BC(hidden=HIDDEN),
    TD3BC(hidden=HIDDEN),
    TD3BC(hidden=HIDDEN, alpha=0.7, policy_noise=1.0, noise_clip=0.3, polyak_rate=0.1, lr=1e-2),
    IQL(hidden=HIDDEN),
    IQL(
        hidden=HIDDEN,
        expectile=0.9,
        inverse_temperature=10.0,
        max_weight=1.2,
        polyak_rate=0.1,
        lr=1e-2,
    ),
]

DEFAULTS = [
    ours(hidden=HIDDEN) for ours, _ in CONTENDERS.values()
]  # other methods: test_reference_*.py


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def to_module(params: list, net: nn.Sequential) -> None:
    linears = [part for part in net if isinstance(part, nn.Linear)]
    for layer, linear in zip(params, linears, strict=True):
        linear.weight.data, linear.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()


def member(params: list, i: int) -> list:
    return [{name: p[i] for name, p in layer.items()} for layer in params]


def pairs_of(method, state, plain) -> list:
    """(our network, the plain network) for every network of the method."""
    twins = lambda ours, theirs: [(member(ours, 0), theirs.q1), (member(ours, 1), theirs.q2)]
    if isinstance(method, BC):
        return [(state.actor, plain.actor)]
    if isinstance(method, TD3BC):
        return [
            (state.actor, plain.actor),
            (state.target_actor, plain.target_actor),
            *twins(state.critic, plain.critic),
            *twins(state.target_critic, plain.target_critic),
        ]
    return [
        (state.actor["mean"], plain.actor),
        (state.value, plain.value),
        *twins(state.critic, plain.critic),
        *twins(state.target_critic, plain.target_critic),
    ]


def start(method, spec, seed: int = 0):
    """A float64 state of ours and a plain learner with the same weights."""
    plain_class = next(plain for ours, plain in CONTENDERS.values() if isinstance(method, ours))
    plain = plain_class(method, spec, torch.device("cpu"))
    for value in vars(plain).values():
        if isinstance(value, nn.Module):
            value.double()
    state = double(method.init(rng.key(seed), spec))
    if isinstance(method, IQL):
        plain.log_std.data = state.actor["log_std"].clone()
    for ours, theirs in pairs_of(method, state, plain):
        to_module(ours, theirs)
    return state, plain


def plain_update(method, plain, batch, key) -> dict[str, float]:
    """One of our updates in plain steps, with the noise that the key gives."""
    if isinstance(method, TD3BC):
        keys = rng.split(key, 2)
        minis = [minibatch(batch, i) for i in range(2)]
        logs = [
            plain.update(m, rng.normal_like(k, m.action)) for m, k in zip(minis, keys, strict=True)
        ]
        return logs[-1]
    return plain.update(batch)


def gap(method, state, plain) -> float:
    """The largest difference between our parameters and the plain ones."""
    worst = 0.0
    for ours, theirs in pairs_of(method, state, plain):
        linears = [part for part in theirs if isinstance(part, nn.Linear)]
        for layer, linear in zip(ours, linears, strict=True):
            worst = max(worst, (layer["w"].T - linear.weight).abs().max().item())
            worst = max(worst, (layer["b"].flatten() - linear.bias).abs().max().item())
    if isinstance(method, IQL):
        worst = max(worst, (state.actor["log_std"] - plain.log_std).abs().max().item())
    return worst


def disagreement(method, data, view=VIEWS[0], n: int = 100) -> float:
    """The largest difference in parameters and metrics over n updates on the same batches and noise."""
    pipeline = make_pipeline(data, view=view, batch_size=32)
    state, plain = start(method, pipeline.spec(SPEC))
    key, worst = rng.key(7), 0.0
    k = getattr(method, "minibatches", 1)
    for _ in range(n):
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch, k)
        state, metrics = method.update(state, batch, k_update)
        logged = plain_update(method, plain, batch, k_update)
        assert logged.keys() == metrics.keys()
        worst = max(worst, *(abs(logged[name] - metrics[name].item()) for name in metrics))
    return max(worst, gap(method, state, plain))


@pytest.mark.parametrize("method", HPARAMS, ids=repr)
def test_a_hundred_updates_equal_the_plain_implementation(method, data64):
    assert disagreement(method, data64) < 1e-10


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (SACN, "n_critics", 0), (CQL, "n_actions", 0), (IQL, "actor_decay_steps", -1),
        (XQL, "actor_decay_steps", -1), (DT, "heads", 3), (DT, "layers", 0),
    ],
)  # fmt: skip
def test_a_count_that_cannot_be_is_refused_where_a_method_is_made(method, name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        method(**{name: value})


@pytest.mark.parametrize("method", DEFAULTS, ids=repr)
@pytest.mark.parametrize("view", VIEWS[1:], ids=str)
def test_longer_spans_equal_the_plain_implementation_too(method, view, data64):
    assert disagreement(method, data64, view, n=20) < 1e-10


@pytest.mark.parametrize("method", DEFAULTS, ids=repr)
def test_the_greedy_action_equals_the_plain_actor(method):
    state, plain = start(method, SPEC)
    obs = rng.normal(rng.key(3), (9, SPEC.obs_dim), torch.float64)
    assert torch.allclose(method.act(state, obs, rng.key(0)), plain.actor(obs), rtol=0, atol=1e-12)


def fields_of(method) -> list:
    """The numbers that are not switched off; IQL's switches are in test_reference_iql.py."""
    numbers = {k: v for k, v in dataclasses.asdict(method).items() if isinstance(v, float)}
    return [(method, name) for name, value in numbers.items() if value]


@pytest.mark.parametrize(
    "method, name", [pair for i in (0, 2, 4) for pair in fields_of(HPARAMS[i])], ids=str
)
def test_every_hyper_parameter_acts_in_the_settings_compared(method, name, data64):
    """Otherwise the comparison above would say nothing about it: a cap that never caps, a clip that never clips."""
    pipeline = make_pipeline(data64, batch_size=32)
    other = dataclasses.replace(method, **{name: 0.8 * getattr(method, name)})
    states = []
    for m in (method, other):
        state = double(m.init(rng.key(0), SPEC))
        for i in range(10):
            batch = pipeline.sample(rng.key(i), getattr(m, "minibatches", 1))
            state, _ = m.update(state, batch, rng.key(100 + i))
        states.append(state)
    assert (
        max((a - b).abs().max().item() for a, b in zip(*map(tree_leaves, states), strict=True))
        > 1e-6
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "aw"])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_seed_does_not_depend_on_its_neighbours(shipped_method, view, weighted, data64):
    """Seed 1 by itself, step after step without an engine, and seed 1 among three in the engine.

    The backends are compared with each other in test_engine.py.
    """
    needs = getattr(shipped_method, "needs", ())
    if type(view_for(needs)) is not NStep:
        if view != VIEWS[0]:
            pytest.skip("learns through a view of its own")
        view = view_for(needs)
    weights = [lambda d: advantage_weights(d, temperature=0.2)] * weighted
    pipeline = make_pipeline(
        data64, view=view, weights=weights, transforms=["obs_norm"], batch_size=16, needs=needs
    )
    step = make_step(shipped_method, pipeline)
    carry = initial_carry(shipped_method, pipeline.spec(SPEC), [0, 1, 2])
    engine = Engine(step, double(carry), backend="vmap")
    engine.run(50)

    alone = double(initial_carry(shipped_method, pipeline.spec(SPEC), [1]).seed(0))
    for _ in range(50):
        alone, _ = advance(step, alone)
    for a, b in zip(tree_leaves(alone), tree_leaves(engine.carry.seed(1)), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=1e-10)
