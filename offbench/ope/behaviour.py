"""The policy that recorded the data, cloned: the densities that importance weights divide by.

Of continuous actions it is a normal distribution around a network's mean (least squares) with the deviation of
what is left, one per action; of discrete ones a softmax, fitted by likelihood.

A policy that acts without noise has no density. It is weighted as one that acts with the noise of the
behaviour, a normal distribution of the same deviation around its action; of discrete actions its own
choices count, none, one or a share of its draws.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.data.replay import ReplayData
from offbench.data.sampling import make_sampler
from offbench.data.transforms import ObsNorm
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ope.fqe import FQE
from offbench.training.gate import make_engine
from offbench.training.step import Carry, Draw, Input, Step, stack
from offbench.types import Batch, Metrics


class State(NamedTuple):
    net: nets.Params
    opt: AdamState


class Behaviour(NamedTuple):
    """A cloned behaviour policy at the rows of its data."""

    # (S,) of every row's recorded action
    log_prob: Tensor
    # (A,); None of discrete actions
    log_std: Tensor | None

    def log_ratio(self, action: Tensor, decided: Tensor) -> Tensor:
        """(S,) log pi - log mu of recorded actions (S, A), for a policy that decides (K, S, A) in K draws."""
        if self.log_std is None:
            own = (decided * action).sum(-1).double().log()
        else:
            own = gaussian_log_prob(decided.double(), self.log_std.double(), action.double())
        return torch.logsumexp(own, 0) - math.log(len(decided)) - self.log_prob.double()


def clone(data: ReplayData, settings: FQE, *, discrete: bool) -> Behaviour:
    """The behaviour policy of recorded data, fitted with the networks and budget of an evaluation."""
    seen = ObsNorm.fit(data).data(data)
    sampler, optimiser = make_sampler(data.valid), Adam(settings.lr)
    sizes = (data.obs.shape[1], *settings.hidden, data.action.shape[1])

    def loss_of(net: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
        """(B,)"""
        out = nets.mlp(net, obs)
        if discrete:
            return -(out.log_softmax(-1) * action).sum(-1)
        return torch.square(out - action).sum(-1)

    def draw(key: Tensor) -> Draw:
        k_rows, k_update = rng.split(key)
        return Draw(sampler(k_rows, settings.batch_size), k_update)

    def gather(rows: Tensor) -> Batch:
        empty = seen.reward[rows]
        return Batch(seen.obs[rows], seen.action[rows], empty, empty, seen.obs[rows], {})

    def update(state: State, given: Input) -> tuple[State, Metrics]:
        batch = given.batch
        loss = lambda net: loss_of(net, batch.obs, batch.action).mean()
        grads, value = grad_and_value(loss)(state.net)
        stepped, opt = optimiser.step(grads, state.opt, state.net)
        left = (1 - state.opt.count / settings.n_updates).clamp(min=0)
        return State(polyak(state.net, stepped, left), opt), {"loss": value}

    key = rng.key(0)
    start = nets.mlp_init(key, sizes)
    carry = Carry(stack([State(start, optimiser.init(start))]), key[None], torch.tensor(0))
    engine, _ = make_engine(Step(draw, gather, update), carry, n_steps=settings.n_updates)
    engine.run(settings.n_updates)
    net = engine.carry.seed(0).state.net
    out = torch.cat([nets.mlp(net, obs) for obs in seen.obs.split(1 << 14)])
    if discrete:
        return Behaviour((out.log_softmax(-1) * data.action).sum(-1), None)
    # the likeliest one around this mean
    error = (out - data.action)[data.valid].square().mean(0).sqrt()
    log_std = error.clamp(min=1e-3).log()
    return Behaviour(gaussian_log_prob(out, log_std, data.action), log_std)
