"""The measured methods as ordinary PyTorch modules, and how far an update of ours is from theirs."""

import torch
from torch import nn
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.methods.bc import BC
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.speed.benchmark import CONTENDERS
from offbench.testing.contract import SPEC
from offbench.types import minibatch

VIEWS = [NStep(1, 0.99), NStep(3, 0.99), Chunk(4, 0.99)]


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
