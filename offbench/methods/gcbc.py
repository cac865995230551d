"""Goal-conditioned behaviour cloning (Lynch et al., 2020; Ghosh et al., 2021), in OGBench's form.

    L = -log pi(a | s, g),  g a later observation of the same episode

An action is imitated as what leads to the observations that followed it (hindsight). The actor is a Gaussian
of deviation 1. As in seohongpark/ogbench 1d41409, impls/agents/gcbc.py.

Metrics: the loss and the mean squared error of the mean.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench.nn import goal_nets, nets
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class GCBC:
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        actor = goal_nets.actor_init(key, spec.obs_dim, self.hidden, spec.action_dim)
        return State(actor, Adam(self.lr).init(actor))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(state.actor, batch)
        actor, opt = Adam(self.lr).step(grads, state.opt, state.actor)
        return State(actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return goal_nets.actor(state.actor, obs).clamp(-1, 1)

    def _loss(self, actor: nets.Params, batch: Batch) -> tuple[Tensor, Metrics]:
        mean = goal_nets.actor(actor, batch.extras["actor_obs"])
        actor_loss = -goal_nets.log_prob(mean, batch.action).mean()
        bc_error = torch.square(mean - batch.action).mean()
        return actor_loss, {"actor_loss": actor_loss, "bc_error": bc_error}
