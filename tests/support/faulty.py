"""Methods with one fault each, of the kinds that a GPU does not forgive, beside one without."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offbench import rng
from offbench.nn.optim import Adam, AdamState
from offbench.types import Batch, Spec


class State(NamedTuple):
    weight: Tensor
    optim: AdamState


@dataclass(frozen=True)
class Healthy:
    """Linear behaviour cloning."""

    minibatches = 1

    def init(self, key: Tensor, spec: Spec) -> State:
        weight = rng.normal(key, (spec.obs_dim, spec.action_dim))
        return State(weight, Adam().init(weight))

    def loss(self, weight: Tensor, batch: Batch, key: Tensor) -> Tensor:
        return self.scale(batch, key) * (batch.obs @ weight - batch.action).square().mean()

    def scale(self, batch: Batch, key: Tensor) -> Any:
        return 1.0

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, dict]:
        grad, loss = torch.func.grad_and_value(self.loss)(state.weight, batch, key)
        weight, optim = Adam().step(grad, state.optim, state.weight)
        return State(weight, optim), {"loss": loss}

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        return (obs @ state.weight).clamp(-1, 1)


class Goals(Healthy):
    """Has all that a goal view gathers."""

    needs = ("actor_goals", "subgoals", "options", "low_goals")

    def scale(self, batch, key):
        return sum(x.square().mean() for x in batch.extras.values())


class Item(Healthy):
    def scale(self, batch, key):
        return batch.reward.mean().item()


class Branch(Healthy):
    def scale(self, batch, key):
        return 2.0 if batch.reward.mean() > 0 else 1.0


class CpuConstant(Healthy):
    def scale(self, batch, key):
        return batch.reward.mean() * torch.tensor(1.0)


class CpuNumbers(Healthy):
    def scale(self, batch, key):
        return (batch.reward + torch.arange(len(batch.reward))).mean()


class Mask(Healthy):
    def scale(self, batch, key):
        return batch.reward[batch.reward > 0].sum()


class GlobalGenerator(Healthy):
    def scale(self, batch, key):
        return torch.randn(batch.reward.shape, device=batch.reward.device).mean()


class Nonzero(Healthy):
    def scale(self, batch, key):
        return torch.nonzero(batch.reward).sum()


class ToCpu(Healthy):
    def scale(self, batch, key):
        return batch.reward.cpu().mean()
