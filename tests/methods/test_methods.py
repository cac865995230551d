"""The measured methods against an ordinary PyTorch implementation of the papers, in float64.

The references are the plain loops of `offbench.speed.benchmark`: torch.nn modules, one loss and one
torch.optim.Adam per network, `backward()`, written from the papers and not from the methods.
"""

import dataclasses

import pytest
import torch
from support.ordinary import VIEWS, disagreement, double, start
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import advantage_weights
from offbench.data.views import NStep
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
from offbench.training.engine import Engine
from offbench.training.step import advance, initial_carry, make_step

HIDDEN = (16, 16)
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


@pytest.mark.parametrize("method", HPARAMS, ids=repr)
def test_updates_equal_the_plain_implementation(method, data64):
    assert disagreement(method, data64, n=40) < 1e-10


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (SACN, "n_critics", 0),
        (CQL, "n_actions", 0),
        (IQL, "actor_decay_steps", -1),
        (XQL, "actor_decay_steps", -1),
        (DT, "heads", 3),
        (DT, "layers", 0),
    ],
)
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


@pytest.mark.parametrize(
    ("view", "weighted"),
    [
        *((view, False) for view in VIEWS),
        (VIEWS[0], True),
        *(pytest.param(view, True, marks=pytest.mark.slow) for view in VIEWS[1:]),
    ],
    ids=lambda x: {False: "uniform", True: "aw"}.get(x) if isinstance(x, bool) else str(x),
)
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
    engine.run(8)

    alone = double(initial_carry(shipped_method, pipeline.spec(SPEC), [1]).seed(0))
    for _ in range(8):
        alone, _ = advance(step, alone)
    for a, b in zip(tree_leaves(alone), tree_leaves(engine.carry.seed(1)), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=1e-10)
