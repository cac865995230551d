"""Samplers: distributions over start rows, composed as products of row weights.

Reweighting (Hong et al., 2023) changes only which rows are drawn, so it works with any method and
any view: `make_sampler(view.support(data), advantage_weights(data, temperature=0.1))`.
"""

from functools import reduce
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from offbench import rng
from offbench.data.replay import ReplayData, episode_returns, first_rows
from offbench.errors import UserError


class Sampler(Protocol):
    """Draws row numbers with a key."""

    def __call__(self, key: Tensor, n: int) -> Tensor: ...  # (n,) int64 rows


class Uniform(NamedTuple):
    """Uniform draws from the rows of a mask.

    Stored as runs of neighbouring rows, mostly one per episode, instead of a table of all rows.
    """

    first: Tensor  # (R,) int64 first row of each run
    before: Tensor  # (R,) int64 rows in the runs before it
    total: Tensor  # () int64 rows in all runs

    def __call__(self, key: Tensor, n: int) -> Tensor:
        k = rng.randint(key, (n,), self.total)
        run = torch.searchsorted(self.before, k, right=True) - 1
        return self.first[run] + (k - self.before[run])


class Categorical(NamedTuple):
    """Draws in proportion to row weights, by inverse CDF: O(log S), no host sync.

    torch.multinomial is limited to 2**24 rows.
    """

    cdf: Tensor  # (S,) float64, not normalised

    def __call__(self, key: Tensor, n: int) -> Tensor:
        u = rng.uniform(key, (n,), torch.float64) * self.cdf[-1]
        # without the last, which u may reach by rounding
        return torch.searchsorted(self.cdf[:-1], u, right=True)


def make_sampler(*weights: Tensor) -> Sampler:
    """A sampler of rows in proportion to the product of non-negative row weights, each (S,)."""
    if all(w.dtype == torch.bool for w in weights):
        mask = reduce(torch.logical_and, weights)
        if not mask.any():
            raise UserError(
                "no row of the dataset can start a batch element (is the view longer than every episode?)"
            )
        return _uniform(mask)
    w = reduce(torch.mul, weights, torch.ones((), dtype=torch.float64, device=weights[0].device))
    if not (w.sum() > 0 and torch.isfinite(w).all() and (w >= 0).all()):
        raise UserError("the product of the sampling weights must be finite, >= 0 and not all zero")
    return Categorical(w.cumsum(0))


def _uniform(mask: Tensor) -> Uniform:
    outside = torch.zeros(1, dtype=torch.bool, device=mask.device)
    # of booleans: where neighbours differ
    change = torch.cat([outside, mask, outside]).diff()
    first, stop = change.nonzero().view(-1, 2).unbind(1)
    length = stop - first
    return Uniform(first.contiguous(), length.cumsum(0) - length, length.sum())


def _softmax_weights(x: Tensor, data: ReplayData, temperature: float) -> Tensor:
    """exp of the min-max scaled trajectory score over the temperature, per row: (S,)."""
    if temperature <= 0:
        raise UserError(f"sampler temperature must be > 0, got {temperature}")
    if len(x) < 2:
        raise UserError("trajectory weighting needs at least two trajectories, the dataset has one")
    spread = x.max() - x.min()
    scaled = (x - x.min()) / spread if spread > 0 else torch.ones_like(x)
    return torch.exp((scaled - 1) / temperature)[data.episode]


def _returns(data: ReplayData) -> Tensor:
    """Undiscounted returns of the episodes (E,), by which they are weighed and ranked."""
    if not data.reward.any():
        raise UserError(
            "this sampler weighs episodes by their returns, and every reward of the dataset is 0"
        )
    return episode_returns(data)


def return_weights(data: ReplayData, *, temperature: float = 0.1) -> Tensor:
    """RW of Hong et al. (2023): trajectories weighted by their undiscounted raw return, (S,)."""
    return _softmax_weights(_returns(data), data, temperature)


def advantage_weights(data: ReplayData, *, temperature: float = 0.1) -> Tensor:
    """AW of Hong et al. (2023): return minus a least-squares fit on the first observation, (S,).

    From the rewards as recorded; the authors' IQL code subtracts 1 in antmaze first, which favours
    short episodes.
    """
    returns = _returns(data).cpu().numpy()
    first = data.obs[first_rows(data)].double().cpu().numpy()
    # centred: better conditioned
    design = np.column_stack([first - first.mean(0), np.ones(len(first))])
    baseline = design @ np.linalg.lstsq(design, returns, rcond=None)[0]
    return _softmax_weights(
        torch.from_numpy(returns - baseline).to(data.obs.device), data, temperature
    )


def top_fraction(
    data: ReplayData,
    *,
    fraction: float = 0.1,
    by: Literal["trajectories", "timesteps"] = "trajectories",
) -> Tensor:
    """Rows of the best episodes by return, (S,) bool; "10 % BC" is BC with this sampler.

    `by="trajectories"` keeps ceil(fraction x episodes); `by="timesteps"` keeps the best episodes
    until they hold `fraction` of all steps (Decision Transformer's variant). At least one is kept.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"sampler fraction must be in (0, 1], got {fraction}")
    order = torch.argsort(_returns(data), descending=True, stable=True)
    if by == "trajectories":
        n = int(np.ceil(fraction * data.n_episodes - 1e-9))
    elif by == "timesteps":
        length = torch.bincount(data.episode, minlength=data.n_episodes) - 1
        n = int((length[order].cumsum(0) < fraction * data.n_transitions).sum()) + 1
    else:
        raise UserError(f"top_fraction counts by 'trajectories' or 'timesteps', not {by!r}")
    keep = torch.zeros(data.n_episodes, dtype=torch.bool, device=data.obs.device)
    keep[order[:n]] = True
    return keep[data.episode]
