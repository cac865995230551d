"""What each method says its decisions are worth: its critics by hand, a row and a critic at a time."""

import dataclasses
import math

import pytest
import torch
from support.shipped import shipped_methods
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.methods.a2pr import A2PR
from offbench.methods.acsac import ACSAC
from offbench.methods.awac import AWAC
from offbench.methods.cgq import CGQ
from offbench.methods.cql import CQL
from offbench.methods.discrete_cql import DiscreteCQL
from offbench.methods.dqc import DQC
from offbench.methods.fql import FQL
from offbench.methods.gciql import GCIQL
from offbench.methods.gcivl import GCIVL
from offbench.methods.ifql import IFQL
from offbench.methods.iql import IQL
from offbench.methods.qc import QC
from offbench.methods.qgf import QGF
from offbench.methods.rebrac import ReBRAC
from offbench.methods.sac_n import SACN
from offbench.methods.td3_bc import TD3BC
from offbench.methods.td3_bc_mix import TD3BCMix
from offbench.methods.xql import XQL
from offbench.testing.contract import SPEC

SIZES = {"hidden": (7, 7)}
relu = lambda x: x.clamp(min=0)
gelu = lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
same = lambda layer, x: x


def norm(layer, x):
    x = (x - x.mean()) / ((x - x.mean()).square().mean() + 1e-6).sqrt()
    return x * layer["scale"][0] + layer["shift"][0]


mean = lambda q: sum(q) / len(q)
CASES = [
    (IQL(**SIZES), relu, same, min),
    (XQL(**SIZES), relu, same, min),
    (TD3BC(**SIZES), relu, same, min),
    (TD3BCMix(**SIZES), relu, same, min),
    (A2PR(**SIZES, cvae_hidden=(7,)), relu, same, min),
    (AWAC(**SIZES), relu, same, min),
    (CQL(**SIZES), relu, same, min),
    (SACN(**SIZES, n_critics=4), relu, same, min),
    (ReBRAC(**SIZES), relu, norm, min),
    (IFQL(**SIZES, n_proposals=3), gelu, norm, min),
    (QC(**SIZES, n_proposals=3), gelu, norm, mean),
    (QC(**SIZES, n_proposals=3, q_aggregate="min"), gelu, norm, min),
    (FQL(**SIZES), gelu, norm, mean),
    (GCIQL(**SIZES), gelu, norm, min),
    (FQL(**SIZES, q_aggregate="min"), gelu, norm, min),
]


def by_hand(critic, obs, action, layer_of) -> torch.Tensor:
    """(critics, E)"""
    found = []
    for i in range(len(critic[0]["w"])):
        layers = [tree_map(lambda x, i=i: x[i], layer) for layer in critic]
        for s, a in zip(obs, action, strict=True):
            x = torch.cat([s, a])
            for layer in layers[:-1]:
                x = layer_of(layer, x @ layer["w"] + layer["b"][0])
            found.append((x @ layers[-1]["w"] + layers[-1]["b"][0])[0])
    return torch.stack(found).view(-1, len(obs))


def shaken(critic):
    return tree_map(lambda x: x + 0.3 * rng.normal(rng.key(1), tuple(x.shape), x.dtype), critic)


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def decided(method, spec=SPEC):
    """A state with critics that differ, observations (3, O), and what the method does there."""
    state = double(method.init(rng.key(0), spec))
    obs = rng.normal(rng.key(2), (3, spec.obs_dim), torch.float64)
    state = state._replace(critic=shaken(state.critic))
    return state, obs, method.act(state, obs, rng.key(3))


@pytest.mark.parametrize(
    "method, activate, normalise, together", CASES, ids=lambda x: type(x).__name__
)
def test_the_value_is_that_of_the_critics_put_together(method, activate, normalise, together):
    state, obs, made = decided(method)
    q = by_hand(state.critic, obs, made, lambda layer, x: normalise(layer, activate(x)))
    assert (q.amax(0) - q.amin(0) > 1e-3).all()  # else one would do for the other
    want = torch.stack([together(of_one) for of_one in q.T])
    assert torch.allclose(method.value(state, obs, made), want, rtol=1e-9, atol=1e-12)


def test_the_value_of_a_choice_is_the_largest_of_the_choices():
    method = DiscreteCQL(**SIZES)
    spec = SPEC._replace(discrete=True, action_dim=4)
    state, obs, made = decided(method, spec)
    each = [method.value(state, obs, torch.eye(4).double()[[i] * 3]) for i in range(4)]
    assert torch.equal(method.value(state, obs, made), torch.stack(each).amax(0))
    assert len(set(torch.stack(each).flatten().tolist())) == 12


def test_the_value_of_a_plan_is_the_maximum_that_chose_it_and_of_its_executed_steps_alone():
    method = ACSAC(hidden=(7,), width=8, heads=1, layers=1)
    spec = SPEC._replace(action_dim=4 * SPEC.action_dim, chunk=4)
    state, obs, plan = decided(method, spec)
    best, chunk, length = method._best(state.critic, state.flow, obs, rng.key(3))
    assert torch.equal(chunk, plan.action) and torch.equal(length, plan.length)
    assert torch.allclose(method.value(state, obs, plan), best, rtol=1e-12)
    for k in (1, 2, 3, 4):
        shorter = plan._replace(length=torch.full((3,), k))
        value = method.value(state, obs, shorter)
        beyond = torch.arange(8) >= 2 * k
        later = shorter._replace(action=torch.where(beyond, -plan.action, plan.action))
        assert torch.allclose(method.value(state, obs, later), value, rtol=1e-12)
        last = torch.arange(8) // 2 == k - 1
        moved = shorter._replace(action=torch.where(last, -plan.action, plan.action))
        assert ((method.value(state, obs, moved) - value).abs() > 1e-6).all()


@pytest.mark.parametrize("aggregate", ["mean", "min"])
@pytest.mark.parametrize(
    "method", [DQC(**SIZES, policy_chunk=2), CGQ(**SIZES)], ids=lambda x: type(x).__name__
)
def test_the_value_of_the_first_steps_of_a_chunk_is_that_of_their_own_critic(method, aggregate):
    method = dataclasses.replace(method, q_aggregate=aggregate)
    state = double(method.init(rng.key(0), SPEC._replace(action_dim=4 * SPEC.action_dim, chunk=4)))
    obs = rng.normal(rng.key(2), (3, SPEC.obs_dim), torch.float64)
    if isinstance(method, DQC):
        state = state._replace(critic=shaken(state.critic))
        critic, n = state.critic, 2 * SPEC.action_dim
    else:
        state = state._replace(step=state.step._replace(critic=shaken(state.step.critic)))
        critic, n = state.step.critic, SPEC.action_dim
    plan = method.act(state, obs, rng.key(3))
    q = by_hand(critic, obs, plan.action[:, :n], lambda layer, x: norm(layer, gelu(x)))
    want = q.mean(0) if aggregate == "mean" else q.amin(0)
    assert torch.allclose(method.value(state, obs, plan), want, rtol=1e-9, atol=1e-12)


def test_the_value_of_a_guided_action_is_that_of_the_smaller_critic_that_guided_it():
    method = QGF(**SIZES, n_proposals=3)
    state = double(method.init(rng.key(0), SPEC))
    state = state._replace(target_critic=shaken(state.target_critic))
    obs = rng.normal(rng.key(2), (3, SPEC.obs_dim), torch.float64)
    made = method.act(state, obs, rng.key(3))
    q = by_hand(state.target_critic, obs, made, lambda layer, x: gelu(norm(layer, x)))
    assert torch.allclose(method.value(state, obs, made), q.amin(0), rtol=1e-9, atol=1e-12)


def test_the_value_of_a_goal_is_the_mean_of_the_twins_whatever_is_done():
    method = GCIVL(**SIZES)
    state = double(method.init(rng.key(0), SPEC))
    state = state._replace(value=shaken(state.value))
    obs = rng.normal(rng.key(2), (3, SPEC.obs_dim), torch.float64)
    nothing = torch.zeros(3, 0, dtype=torch.float64)
    v = by_hand(state.value, obs, nothing, lambda layer, x: norm(layer, gelu(x)))
    assert (v[0] - v[1]).abs().min() > 1e-3
    got = method.value(state, obs, method.act(state, obs, rng.key(3)))
    assert torch.allclose(got, v.mean(0), rtol=1e-9, atol=1e-12)


def test_every_method_with_a_critic_says_what_its_decisions_are_worth():
    have = {c.__name__ for c in shipped_methods() if hasattr(c, "value")}
    # QRL's distance is not discounted, CRL's logit is no return, ODICE's V is a regularised dual
    without = {"BC", "BCMix", "DT", "DoC", "GCBC", "QRL", "CRL", "ODICE"}
    assert {c.__name__ for c in shipped_methods()} - have == without
    assert have == {type(case[0]).__name__ for case in CASES} | {
        # against plain networks in tests/reference/test_reference_hierarchies.py
        *("HIQL", "OTA", "ARL"),
        "DiscreteCQL",
        "ACSAC",
        "DQC",
        "CGQ",
        "QGF",
        "GCIVL",
    }
