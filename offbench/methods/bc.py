"""Behaviour cloning: regression of the data's actions on observations (Pomerleau, 1989).

"10 % BC" is this method with the sampler `top10`; return- and advantage-weighted BC likewise. CORL's
differs: it ranks trajectories by their discounted return, cuts the file into them every 1000 rows as
its reward range does, and normalises observations by the rows that are kept; here it is by all rows.

Deterministic actor, mean squared error, as in the baselines of TD3+BC (Fujimoto and Gu, 2021) and
CORL. Differs from Decision Transformer's BC (Chen et al., 2021), which sees a window of steps.
With `gaussian` the actor is a normal distribution around the same mean, one standard deviation per
action, and the loss the negative log-likelihood: the actor of IQL and AWAC with all weights 1. It
acts by its mean, or by a sample with `sample_actions`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # the second with `gaussian`
    actor: nets.Params | nets.Gaussian
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class BC:
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    # log-likelihood instead of squared error
    gaussian: bool = False
    # act by a sample of the Gaussian instead of its mean
    sample_actions: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        mean = nets.mlp_init(key, (spec.obs_dim, *self.hidden, spec.action_dim))
        actor: nets.Params | nets.Gaussian = mean
        if self.gaussian:
            actor = {"mean": mean, "log_std": torch.zeros(spec.action_dim, device=key.device)}
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
        mean, log_std = _gaussian(state.actor, obs)
        if not self.sample_actions:
            return mean
        return (mean + log_std.exp() * rng.normal_like(key, mean)).clamp(-1, 1)

    def _loss(self, actor: nets.Params | nets.Gaussian, batch: Batch) -> Tensor:
        if isinstance(actor, list):
            action = nets.mlp(actor, batch.obs).tanh()  # (B, A)
            return torch.square(action - batch.action).mean()
        return -gaussian_log_prob(*_gaussian(actor, batch.obs), batch.action).mean()


def _gaussian(actor: nets.Gaussian, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, A) and log standard deviation (A,)."""
    return nets.mlp(actor["mean"], obs).tanh(), actor["log_std"].clamp(-20.0, 2.0)
