"""Behaviour cloning: regression of the data's actions on observations (Pomerleau, 1989).

"10 % BC" is this method with the sampler `top10`; return- and advantage-weighted BC likewise. CORL's
differs: it ranks trajectories by their discounted return, cuts the file into them every 1000 rows as
its reward range does, and normalises observations by the rows that are kept; here it is by all rows.

Deterministic actor, mean squared error, as in the baselines of TD3+BC (Fujimoto and Gu, 2021) and
CORL. Differs from Decision Transformer's BC (Chen et al., 2021), which sees a window of steps.
With `gaussian` the actor is a normal distribution around the same mean, one standard deviation per
action, and the loss the negative log-likelihood: the actor of IQL and AWAC with all weights 1. It
acts by its mean, or by a sample with `sample_actions`. With `components` above 1 it is a mixture of
so many Gaussians (offbench/nn/mixture.py) and acts by the mean of the heaviest.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import mixture, nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Count, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec

Actor = nets.Params | nets.Gaussian | mixture.Params


class State(NamedTuple):
    # the second with `gaussian`, the third with `components`
    actor: Actor
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class BC:
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    # log-likelihood instead of squared error
    gaussian: bool = False
    # of a mixture, which is Gaussian
    components: Count = 1
    # act by a sample of the Gaussian or the mixture instead of a mean
    sample_actions: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        sizes = (spec.obs_dim, *self.hidden, spec.action_dim)
        actor: Actor
        if self.components > 1:
            actor = mixture.init(key, sizes, self.components)
        else:
            actor = nets.mlp_init(key, sizes)
            if self.gaussian:
                log_std = torch.zeros(spec.action_dim, device=key.device)
                actor = {"mean": actor, "log_std": log_std}
        return State(actor, Adam(self.lr).init(actor))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        # nothing is drawn while training
        del key
        grads, loss = grad_and_value(self._loss)(state.actor, batch)
        actor, opt = Adam(self.lr).step(grads, state.opt, state.actor)
        return State(actor, opt), {"actor_loss": loss}

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        if isinstance(state.actor, list):
            return nets.mlp(state.actor, obs).tanh()
        if isinstance(state.actor, mixture.Params):
            policy = mixture.at(state.actor, obs)
            return mixture.sample(policy, key) if self.sample_actions else mixture.best(policy)
        mean, log_std = _gaussian(state.actor, obs)
        if not self.sample_actions:
            return mean
        return (mean + log_std.exp() * rng.normal_like(key, mean)).clamp(-1, 1)

    def _loss(self, actor: Actor, batch: Batch) -> Tensor:
        if isinstance(actor, list):
            action = nets.mlp(actor, batch.obs).tanh()  # (B, A)
            return torch.square(action - batch.action).mean()
        if isinstance(actor, mixture.Params):
            return -mixture.log_prob(mixture.at(actor, batch.obs), batch.action).mean()
        return -gaussian_log_prob(*_gaussian(actor, batch.obs), batch.action).mean()


def _gaussian(actor: nets.Gaussian, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, A) and log standard deviation (A,)."""
    return nets.mlp(actor["mean"], obs).tanh(), actor["log_std"].clamp(-20.0, 2.0)
