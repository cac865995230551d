"""Transforms of observations and rewards, applied to data and to the acting policy.

A transform changes the data once, when a pipeline is made, at no cost in the training loop. For data
too large for that (`lazy`), observations are transformed when read; the numbers are the same. Rewards
are transformed per step, so a shift is right under n-step and chunked views. Row weights are computed
from the data as recorded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from offbench.data.replay import ReplayData, blocks, episode_returns, first_rows
from offbench.errors import UserError, unknown
from offbench.ranges import NonNegative, Positive, check_options
from offbench.types import Policy, TimeStep

# in CORL's code, for every environment
_CORL_STEPS = 1000


class Transform(Protocol):
    """A transform of data, and of what a policy observes: `policy` applies the same to observations and
    rewards of the environment (`Policy.reward`, too)."""

    def data(self, data: ReplayData, *, lazy: bool = False) -> ReplayData: ...
    def policy(self, policy: Policy) -> Policy: ...


class ObsNorm(NamedTuple):
    """Observations to zero mean and unit variance over the dataset's transitions."""

    mean: Tensor  # (O,)
    std: Tensor  # (O,)

    @classmethod
    def fit(cls, data: ReplayData, *, eps: float = 1e-3) -> "ObsNorm":
        """Fitted block by block, for mapped data (Chan, Golub and LeVeque, 1983). UserError for a constant
        feature without `eps`."""
        valid, n = data.valid, 0
        mean = spread = torch.zeros((), dtype=torch.float64, device=valid.device)
        for part in blocks(len(valid)):
            obs = data.obs[part][valid[part]].double()
            if not len(obs):
                continue
            own, n = obs.mean(0), n + len(obs)
            step = own - mean
            spread = (
                spread
                + (obs - own).square().sum(0)
                + step.square() * (len(obs) * (n - len(obs)) / n)
            )
            mean = mean + step * (len(obs) / n)
        std = (spread / n).sqrt()
        if (constant := (std + eps == 0).nonzero()).numel():
            at = int(constant[0])
            raise UserError(
                f"obs_norm: feature {at} of the observations never changes: transforms.obs_norm.eps must be above 0"
            )
        return cls(mean.to(data.obs.dtype), (std + eps).to(data.obs.dtype))

    def _apply(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std

    def data(self, data: ReplayData, *, lazy: bool = False) -> ReplayData:
        # indexed like a tensor
        obs: Any = Normalised(data.obs, self) if lazy else self._apply(data.obs)
        return data._replace(obs=obs)

    def policy(self, policy: Policy) -> Policy:
        def seen(obs: Tensor) -> Tensor:
            # a state, or a state and a goal, which is one of the data's observations
            parts = obs.unflatten(-1, (-1, len(self.mean)))
            return self._apply(parts).flatten(-2)

        return policy._replace(
            act=lambda state, step, memory, key: policy.act(
                state, step._replace(obs=seen(step.obs)), memory, key
            )
        )


class Normalised:
    """(S, O) observations normalised by an `ObsNorm` when rows are read."""

    def __init__(self, obs: Tensor, norm: ObsNorm):
        self._obs, self._norm = obs, norm
        self.shape, self.dtype, self.device = obs.shape, obs.dtype, obs.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self._norm._apply(self._obs[rows])


class RewardAffine(NamedTuple):
    """reward <- scale * reward + shift, per step. Evaluation always reports the raw reward."""

    scale: float = 1.0
    shift: float = 0.0

    def data(self, data: ReplayData, *, lazy: bool = False) -> ReplayData:
        """Never lazy: rewards are small."""
        del lazy
        valid, reward = data.valid, torch.empty_like(data.reward)
        for part in blocks(len(valid)):
            new = self.scale * data.reward[part] + self.shift
            reward[part] = torch.where(valid[part], new, 0.0)
        return data._replace(reward=reward)

    def policy(self, policy: Policy) -> Policy:
        """Shows the policy transformed rewards; 0 at the first step of an episode."""
        new = lambda reward: self.scale * reward + self.shift

        def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Any, Any]:
            reward = torch.where(step.first, 0.0, new(step.reward))
            return policy.act(state, step._replace(reward=reward), memory, key)

        return policy._replace(act=act, reward=lambda reward: policy.reward(new(reward)))


def obs_norm(data: ReplayData, *, eps: NonNegative = 1e-3) -> Transform:
    """Observations to zero mean and unit variance: (obs - mean) / (std + eps)."""
    return ObsNorm.fit(data, eps=eps)


def reward_affine(data: ReplayData, *, scale: float = 1.0, shift: float = 0.0) -> Transform:
    """reward <- scale * reward + shift, per step."""
    return RewardAffine(scale, shift)


def reward_range(
    data: ReplayData, *, scale: Positive = 1000.0, corl_compat_split: bool = False
) -> Transform:
    """IQL's locomotion scaling (Kostrikov et al., 2021): reward * scale / (max - min return).

    `corl_compat_split` uses the returns of trajectories as CORL's code (eeeeef2) splits them, to
    reproduce published numbers. Raises UserError where all returns are equal.
    """
    returns = _corl_returns(data) if corl_compat_split else episode_returns(data)
    if not (spread := float(returns.max() - returns.min())) > 0:
        raise UserError(
            f"reward_range: every trajectory has the return {float(returns[0]):g}, so there is no range"
            " to scale by; switch it off with transforms.reward_range=null"
        )
    return RewardAffine(scale / spread)


def reward_standard(data: ReplayData) -> Transform:
    """Rewards to zero mean and unit variance over the dataset's transitions (EDAC on adroit).

    The shift changes the value of early termination. Raises UserError where all rewards are equal.
    """
    reward = data.reward[data.valid].double()
    mean, std = reward.mean(), reward.std(unbiased=False)
    if not std > 0:
        raise UserError(
            f"reward_standard: every reward is {float(reward[0]):g}, so there is no deviation to"
            " divide by; switch it off with transforms.reward_standard=null"
        )
    return RewardAffine(float(1 / std), float(-mean / std))


def _corl_returns(data: ReplayData) -> Tensor:
    """Returns of CORL's pieces: rows up to a terminal, or 1000 of them, in the order of the file.

    Its data lack the step at which a time limit ended an episode, and the last row of the file
    (d4rl's `qlearning_dataset`), so a piece of 1000 rows runs on into the next episode, and an
    unfinished piece at the end is left out. A recording that was cut short of the limit, as in the
    replay sets, has no mark in the file, and its last row is in CORL's data. What reached 1000 steps
    without a terminal is taken for timed out.
    """
    row = data.valid.nonzero().squeeze(1)
    length = data.last[row] - first_rows(data)[data.episode[row]]
    timed_out = (row + 1 == data.last[row]) & ~data.terminal[row] & (length >= _CORL_STEPS)
    row = row[~timed_out & (row < row[-1])]
    returns, total, steps = [], 0.0, 0
    for reward, terminal in zip(
        data.reward[row].tolist(), data.terminal[row].tolist(), strict=True
    ):
        total, steps = total + reward, steps + 1
        if terminal or steps == _CORL_STEPS:
            returns.append(total)
            total, steps = 0.0, 0
    if not returns:
        raise UserError(
            f"reward_range: corl_compat_split needs a terminal or {_CORL_STEPS} steps, and finds neither"
        )
    return torch.tensor(returns, dtype=torch.float64)


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "obs_norm": obs_norm,
    "reward_affine": reward_affine,
    "reward_range": reward_range,
    "reward_standard": reward_standard,
}

# transforms of rewards
REWARDS = {name for name in TRANSFORMS if name.startswith("reward_")}


def fit_transform(data: ReplayData, name: str, **options: float) -> Transform:
    """The named transform fitted on `data`. Raises UserError for an unknown name, and for an option outside its
    range."""
    if name not in TRANSFORMS:
        raise unknown("transform", name, TRANSFORMS)
    check_options(TRANSFORMS[name], options, f"transforms.{name}")
    try:
        return TRANSFORMS[name](data, **options)
    # of the signature alone: options are names of the command line, and of Python
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UserError(f"transforms.{name}: {str(error).partition('() ')[2]}") from None
