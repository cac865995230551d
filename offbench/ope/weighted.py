"""Importance-weighted estimates: per-decision weighted importance sampling, and doubly robust.

With rho_t = prod_{k <= t} pi(a_k | s_k) / mu(a_k | s_k) of an episode, and w_t = rho_t / (sum of rho_t over episodes),

    WIS   sum_t gamma^t sum_i w_t r_t                           (Precup, Sutton and Singh, 2000)
    DR    sum_t gamma^t sum_i [w_t (r_t - Q_t) + w_{t-1} V_t]   (Thomas and Brunskill, 2016: WDR)

The weights are self-normalised at each step. An episode that terminated keeps its weight and earns nothing more; one
that was cut says nothing of later steps: WIS leaves it out there, DR goes on with V of its last observation. Where the
recorder went on after a terminal, as in OGBench's single tasks, the episode is what came before.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from offbench.data.replay import ReplayData, end_rows, first_rows


class Weighted(NamedTuple):
    """An importance-weighted estimate."""

    # (E,) contributions of the recorded episodes, linearised in the weights; their mean is the estimate
    terms: Tensor
    # effective number of episodes, (sum of rho)^2 / sum of rho^2, mean over steps by their discount
    effective: float


class _Steps(NamedTuple):
    """The steps of E episodes side by side, padded to the longest: (E, T) each."""

    row: Tensor
    # the episode lasts
    inside: Tensor
    # nothing is known: it was cut before
    cut: Tensor
    # (E,) row of the observation after the last step; and whether the environment ended the episode there
    last: Tensor
    ended: Tensor


def wis(data: ReplayData, log_ratio: Tensor, gamma: float) -> Weighted:
    """Weighted importance sampling; `log_ratio` (S,) is log pi - log mu of every row's action."""
    steps = _steps(data)
    weight, effective = _weights(steps, log_ratio, gamma)
    reward = torch.where(steps.inside, data.reward[steps.row].double(), 0.0)
    return Weighted(_terms([(weight, reward)], gamma), effective)


def doubly_robust(
    data: ReplayData, log_ratio: Tensor, q: Tensor, v: Tensor, gamma: float
) -> Weighted:
    """Doubly robust; `q` and `v` (S,) are estimates of Q of every row's action, and of the policy's value there."""
    steps = _steps(data)
    weight, effective = _weights(steps, log_ratio, gamma)
    error = torch.where(steps.inside, (data.reward - q)[steps.row].double(), 0.0)
    n = len(weight)
    before = torch.cat([torch.full_like(weight[:, :1], 1 / n), weight], 1)
    # at the observation after the last step of one that was cut, too
    length = steps.inside.sum(1)
    after = torch.zeros_like(before)
    after[:, :-1] = torch.where(steps.inside, v[steps.row].double(), 0.0)
    goes_on = ~steps.ended
    at = torch.arange(n, device=v.device)
    after[at[goes_on], length[goes_on]] = v[steps.last[goes_on]].double()
    return Weighted(_terms([(weight, error), (before, after)], gamma), effective)


def _steps(data: ReplayData) -> _Steps:
    first, last = first_rows(data), end_rows(data)
    row = first[:, None] + torch.arange(int((last - first).max()), device=first.device)
    inside = row < last[:, None]
    ended = data.terminal[last - 1]
    cut = ~inside & ~ended[:, None]
    return _Steps(torch.minimum(row, last[:, None] - 1), inside, cut, last, ended)


def _weights(steps: _Steps, log_ratio: Tensor, gamma: float) -> tuple[Tensor, float]:
    """(E, T) self-normalised weights of each step, 0 where nothing is known; and how many they are worth."""
    own = torch.where(steps.inside, log_ratio[steps.row].double(), 0.0).cumsum(1)
    own = own.masked_fill(steps.cut, -torch.inf)
    weight = (own - torch.logsumexp(own, 0)).exp().nan_to_num(0.0)
    discount = gamma ** torch.arange(weight.shape[1], dtype=weight.dtype, device=weight.device)
    effective = 1 / weight.square().sum(0)
    effective = torch.where(weight.sum(0) > 0, effective, 0.0)
    return weight, float((effective * discount).sum() / discount.sum())


def _terms(parts: list[tuple[Tensor, Tensor]], gamma: float) -> Tensor:
    """Contributions (E,) of weighted sums over episodes and steps, each weight a share of its step's.

    A share varies with the other episodes; to first order episode i moves the mean of step t by w (x - mean).
    """
    n, device = len(parts[0][0]), parts[0][0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    moved = torch.zeros(n, dtype=torch.float64, device=device)
    for weight, x in parts:
        steps = torch.arange(weight.shape[1], dtype=weight.dtype, device=weight.device)
        discount = gamma**steps
        mean = (weight * x).sum(0)
        total = total + (discount * mean).sum()
        moved = moved + (discount * weight * (x - mean)).sum(1)
    return total + n * moved
