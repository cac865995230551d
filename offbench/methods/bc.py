"""Behaviour cloning: regression of the dataset's actions on its observations.

"10 % BC" is this method with the sampler `top10`; return- and advantage-weighted BC likewise.

Deterministic actor, mean squared error, as in the baselines of TD3+BC (Fujimoto and Gu, 2021) and
CORL. Differs from Decision Transformer's BC (Chen et al., 2021), which sees a window of steps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import nets
from offbench.optim import Adam, AdamState
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class BC:
    lr: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)

    def init(self, key: Tensor, spec: Spec) -> State:
        actor = nets.mlp_init(key, (spec.obs_dim, *self.hidden, spec.action_dim))
        return State(actor, Adam(self.lr).init(actor))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key  # nothing is drawn while training
        grads, loss = grad_and_value(self._loss)(state.actor, batch)
        actor, opt = Adam(self.lr).step(grads, state.opt, state.actor)
        return State(actor, opt), {"actor_loss": loss}

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key
        return nets.mlp(state.actor, obs).tanh()

    def _loss(self, actor: nets.Params, batch: Batch) -> Tensor:
        action = nets.mlp(actor, batch.obs).tanh()  # (B, A)
        return torch.square(action - batch.action).mean()
