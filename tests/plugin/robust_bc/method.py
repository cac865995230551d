"""Behaviour cloning with a Huber loss: a method that lives outside offbench."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch.func import grad_and_value

from offbench import nets
from offbench.optim import Adam, AdamState


class State(NamedTuple):
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class RobustBC:
    delta: float = 0.1  # where the loss turns from squared to absolute
    lr: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)

    def init(self, key, spec):
        actor = nets.mlp_init(key, (spec.obs_dim, *self.hidden, spec.action_dim))
        return State(actor, Adam(self.lr).init(actor))

    def update(self, state, batch, key):
        def loss(actor):
            return F.huber_loss(nets.mlp(actor, batch.obs).tanh(), batch.action, delta=self.delta)

        grads, value = grad_and_value(loss)(state.actor)
        actor, opt = Adam(self.lr).step(grads, state.opt, state.actor)
        return State(actor, opt), {"actor_loss": value}

    def act(self, state, obs, key):
        return nets.mlp(state.actor, obs).tanh()
