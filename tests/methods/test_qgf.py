"""QGF leans as its formula says: against a closed form, and against the clone it is without guidance."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.methods import qgf
from offbench.methods.qgf import QGF
from offbench.nn import flow
from offbench.types import Spec

SPEC = Spec(obs_dim=3, action_dim=4, gamma=0.9, max_episode_steps=50, chunk=2)
SMALL = QGF(hidden=(12, 12), guidance_weight=0.3, flow_steps=5)
OBS = rng.normal(rng.key(1), (6, 3), torch.float64)


def start(method=SMALL):
    state = method.init(rng.key(0), SPEC)
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, state)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_a_gaussian_flow_and_a_quadratic_value_give_the_closed_form(weight, monkeypatch):
    """Where nothing is clipped every step is affine in the noise, with numbers that can be multiplied out."""
    mean, std, best, curvature, n = 0.1, 0.05, 0.2, 2.0, SMALL.flow_steps
    line = lambda u: (std**2 * u - (1 - u)) / ((1 - u) ** 2 + std**2 * u**2)  # of E[a - z | x_u]
    velocity = lambda params, obs, x, u: mean + line(u) * (x - u * mean)
    value = lambda critic, obs, a: (-0.5 * curvature * (a - best) ** 2).sum(-1).expand(2, -1)
    monkeypatch.setattr(qgf, "_velocity", velocity)
    monkeypatch.setattr(qgf, "_values", value)
    noise = rng.normal(rng.key(5), (6, 4), torch.float64)
    small = noise.abs() < 0.5  # its predictions stay inside [-1, 1]
    gain, shift = 1.0, 0.0
    for i in range(n):
        u, k = i / n, line(i / n)
        v_gain, v_shift = k * gain, mean + k * (shift - u * mean)
        a_gain, a_shift = gain + (1 - u) * v_gain, shift + (1 - u) * v_shift
        gain += (v_gain - weight * curvature * a_gain) / n
        shift += (v_shift + weight * curvature * (best - a_shift)) / n
    method = dataclasses.replace(SMALL, guidance_weight=weight)
    got = method.act(start(), OBS, rng.key(5))
    assert small.sum() > 5
    assert torch.allclose(got[small], (gain * noise + shift)[small], rtol=0, atol=1e-12)


def test_without_guidance_it_is_the_clone_with_the_same_noise(monkeypatch):
    state, method = start(), dataclasses.replace(SMALL, guidance_weight=0.0)
    noise = rng.normal(rng.key(5), (6, 4), torch.float64)
    monkeypatch.setattr(flow, "velocity", qgf._velocity)
    want = flow.sample(state.flow, OBS, noise, method.flow_steps)
    assert torch.equal(method.act(state, OBS, rng.key(5)), want)
    assert not torch.allclose(SMALL.act(state, OBS, rng.key(5)), want, rtol=0, atol=1e-4)


def test_guidance_raises_the_value_more_the_heavier_it_is():
    state = start()
    worth = lambda w: float(
        qgf._values(
            state.target_critic,
            OBS,
            dataclasses.replace(SMALL, guidance_weight=w).act(state, OBS, rng.key(5)),
        )
        .amin(0)
        .mean()
    )
    values = [worth(w) for w in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values) and values[-1] > values[0] + 0.01


def test_acting_needs_no_gradients_switched_on_and_leaves_none():
    """Evaluation runs under no_grad, which must not switch the critic's slope off."""
    state = start()
    want = SMALL.act(state, OBS, rng.key(5))
    with torch.no_grad():
        assert torch.equal(SMALL.act(state, OBS, rng.key(5)), want)
    weights = [x.requires_grad_() for x in tree_leaves(state.target_critic)]
    action = SMALL.act(state, OBS, rng.key(5))
    assert all(x.grad is None for x in weights)
    assert torch.equal(action.detach(), want)


def test_of_several_guided_samples_the_best_acts():
    state, method = start(), dataclasses.replace(SMALL, n_proposals=4)
    repeated = OBS.repeat_interleave(4, 0)
    every = SMALL.act(state, repeated, rng.key(5))  # one each, of the same noise
    values = qgf._values(state.target_critic, repeated, every).amin(0).view(6, 4)
    want = every.view(6, 4, 4)[torch.arange(6), values.argmax(1)]
    assert torch.equal(method.act(state, OBS, rng.key(5)), want)
