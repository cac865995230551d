"""Pointwise changes of the problem: of its data before training, of the policy acting in it.

A transform changes the data once, when a pipeline is made, not every batch: that costs the training
loop nothing, and a reward shift stays right under n-step and chunked views (shifting their sum would
not). Trajectory weights are computed from the data as recorded, before any transform.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from offbench.data import ReplayData, episode_returns
from offbench.errors import unknown
from offbench.types import Policy, TimeStep


class Transform(Protocol):
    def data(self, data: ReplayData) -> ReplayData: ...
    def policy(self, policy: Policy) -> Policy: ...


class ObsNorm(NamedTuple):
    """Observations to zero mean and unit variance over the dataset's transitions."""

    mean: Tensor  # (O,)
    std: Tensor  # (O,)

    @classmethod
    def fit(cls, data: ReplayData, *, eps: float = 1e-3) -> "ObsNorm":
        obs = data.obs[data.valid].double()
        std = obs.std(0, unbiased=False)
        return cls(obs.mean(0).to(data.obs.dtype), (std + eps).to(data.obs.dtype))

    def _apply(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std

    def data(self, data: ReplayData) -> ReplayData:
        return data._replace(obs=self._apply(data.obs))

    def policy(self, policy: Policy) -> Policy:
        return policy._replace(
            act=lambda state, step, carry, key: policy.act(
                state, step._replace(obs=self._apply(step.obs)), carry, key
            )
        )


class RewardAffine(NamedTuple):
    """reward <- scale * reward + shift, per step. Evaluation always reports the raw reward."""

    scale: float = 1.0
    shift: float = 0.0

    def data(self, data: ReplayData) -> ReplayData:
        return data._replace(
            reward=torch.where(data.valid, self.scale * data.reward + self.shift, 0.0)
        )

    def policy(self, policy: Policy) -> Policy:
        """A policy that conditions on rewards sees them as its data had them; the first is 0."""

        def act(state: Any, step: TimeStep, carry: Any, key: Tensor) -> tuple[Any, Any]:
            reward = torch.where(step.first, 0.0, self.scale * step.reward + self.shift)
            return policy.act(state, step._replace(reward=reward), carry, key)

        return policy._replace(act=act)


def obs_norm(data: ReplayData, *, eps: float = 1e-3) -> Transform:
    return ObsNorm.fit(data, eps=eps)


def reward_affine(data: ReplayData, *, scale: float = 1.0, shift: float = 0.0) -> Transform:
    return RewardAffine(scale, shift)


def reward_range(data: ReplayData, *, scale: float = 1000.0) -> Transform:
    """IQL's locomotion scaling (Kostrikov et al., 2021): reward * scale / (max - min return)."""
    returns = episode_returns(data)
    return RewardAffine(scale / max(float(returns.max() - returns.min()), 1e-8))


TRANSFORMS = {"obs_norm": obs_norm, "reward_affine": reward_affine, "reward_range": reward_range}


def fit_transform(data: ReplayData, name: str, **options: float) -> Transform:
    """The named transform fitted on `data`. Raises UserError for an unknown name."""
    if name not in TRANSFORMS:
        raise unknown("transform", name, TRANSFORMS)
    return TRANSFORMS[name](data, **options)
