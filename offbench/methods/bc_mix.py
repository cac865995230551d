"""Behaviour cloning with a mixture of Gaussians, where the data act in several ways at one state.

The loss is the negative log-likelihood of the data's actions under K components (offbench/nn/mixture.py), which `bc`
with one Gaussian would average. It acts by the mean of the heaviest component, or by a sample with `sample_actions`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.func import grad_and_value

from offbench.nn import mixture
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Count, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: mixture.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class BCMix:
    components: Count = 4  # K
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    # act by a sample instead of the heaviest component's mean
    sample_actions: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        actor = mixture.init(key, (spec.obs_dim, *self.hidden, spec.action_dim), self.components)
        return State(actor, Adam(self.lr).init(actor))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        # nothing is drawn while training
        del key
        grads, loss = grad_and_value(self._loss)(state.actor, batch)
        actor, opt = Adam(self.lr).step(grads, state.opt, state.actor)
        return State(actor, opt), {"actor_loss": loss}

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        policy = mixture.at(state.actor, obs)
        return mixture.sample(policy, key) if self.sample_actions else mixture.best(policy)

    def _loss(self, actor: mixture.Params, batch: Batch) -> Tensor:
        return -mixture.log_prob(mixture.at(actor, batch.obs), batch.action).mean()
