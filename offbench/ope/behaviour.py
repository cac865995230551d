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

from offbench import rng
from offbench.data.replay import ReplayData
from offbench.data.sampling import make_sampler
from offbench.data.transforms import ObsNorm
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.ope.fqe import FQE
from offbench.training.fitting import Fit, begin, regression, run
from offbench.training.step import unstack


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
    sizes = (data.obs.shape[1], *settings.hidden, data.action.shape[1])

    def loss_of(net: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
        """(B,)"""
        out = nets.mlp(net, obs)
        if discrete:
            return -(out.log_softmax(-1) * action).sum(-1)
        return torch.square(out - action).sum(-1)

    key, sampler = rng.key(0), make_sampler(data.valid)
    step = regression(
        lambda net, batch: loss_of(net, *batch).mean(),
        lambda key: sampler(key, settings.batch_size),
        lambda rows: (seen.obs[rows], seen.action[rows]),
        n_updates=settings.n_updates,
        lr=settings.lr,
    )
    start = begin([Fit.start(nets.mlp_init(key, sizes))], key[None])
    net = unstack(run(step, start, settings.n_updates).net, 0)
    out = torch.cat([nets.mlp(net, obs) for obs in seen.obs.split(1 << 14)])
    if discrete:
        return Behaviour((out.log_softmax(-1) * data.action).sum(-1), None)
    # the likeliest one around this mean
    error = (out - data.action)[data.valid].square().mean(0).sqrt()
    log_std = error.clamp(min=1e-3).log()
    return Behaviour(gaussian_log_prob(out, log_std, data.action), log_std)
