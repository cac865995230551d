"""A view says what one batch element spans, and so what the policy must output.

`NStep` spans up to n steps; `Chunk` spans h steps and makes the next h actions one action, which
turns any flat-action method into its open-loop chunked self.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from offbench.data import ReplayData
from offbench.errors import UserError
from offbench.types import Batch, Policy, Spec


class View(Protocol):
    def spec(self, spec: Spec) -> Spec: ...
    def support(self, data: ReplayData) -> Tensor: ...  # (S,) bool: rows it can start from
    def batch(self, data: ReplayData, row: Tensor) -> Batch: ...
    def policy(self, policy: Policy) -> Policy: ...


def _spans(data: ReplayData, row: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the next n steps, which of them count, and the row each span ends at.

    A step counts while the episode lasts and no terminal came before it.
    """
    last = data.last[row][:, None]  # (B, 1)
    steps = row[:, None] + torch.arange(n, device=row.device)  # (B, n)
    inside, steps = steps < last, torch.minimum(steps, last)
    ended = data.terminal[steps] & inside  # (B, n)
    before = ended.long().cumsum(1) - ended.long()
    counts = inside & (before == 0)
    return steps, counts, row + counts.sum(1)


def _batch(data: ReplayData, row: Tensor, n: int, gamma: float) -> Batch:
    if n == 1:  # the common case, without the (B, n) bookkeeping; equal to it by test
        discount = gamma * (~data.terminal[row]).to(data.reward.dtype)
        return Batch(data.obs[row], data.action[row], data.reward[row], discount, data.obs[row + 1])
    steps, counts, end = _spans(data, row, n)
    powers = gamma ** torch.arange(n + 1, dtype=data.reward.dtype, device=row.device)  # (n + 1,)
    reward = (data.reward[steps] * powers[:n] * counts).sum(1)
    terminal = (data.terminal[steps] & counts).any(1)
    discount = torch.where(terminal, 0.0, powers[end - row])
    return Batch(data.obs[row], data.action[row], reward, discount, data.obs[end])


class NStep(NamedTuple):
    """n-step returns, shortened at the end of an episode; n = 1 is the usual transition."""

    n: int = 1
    gamma: float = 0.99

    def spec(self, spec: Spec) -> Spec:
        return spec

    def support(self, data: ReplayData) -> Tensor:
        if self.n < 1:
            raise UserError(f"view.n must be at least 1, got {self.n}")
        return data.valid

    def batch(self, data: ReplayData, row: Tensor) -> Batch:
        return _batch(data, row, self.n, self.gamma)

    def policy(self, policy: Policy) -> Policy:
        return policy


class Chunk(NamedTuple):
    """Open-loop action chunks of length h; rows without h steps left are outside the support.

    Q-chunking (Li, Zhou and Levine, 2025) also trains its BC term on partial chunks under a mask;
    here they are not drawn.
    """

    h: int = 5
    gamma: float = 0.99

    def spec(self, spec: Spec) -> Spec:
        return spec._replace(action_dim=spec.action_dim * self.h)

    def support(self, data: ReplayData) -> Tensor:
        if self.h < 1:
            raise UserError(f"view.h must be at least 1, got {self.h}")
        row = torch.arange(len(data.last), device=data.last.device)
        whole = row + self.h <= data.last
        if not whole.any():
            longest = int(torch.bincount(data.episode).max()) - 1
            raise UserError(
                f"view.h={self.h} is longer than every episode (the longest has {longest} steps)"
            )
        return whole

    def batch(self, data: ReplayData, row: Tensor) -> Batch:
        steps = row[:, None] + torch.arange(self.h, device=row.device)
        return _batch(data, row, self.h, self.gamma)._replace(action=data.action[steps].flatten(1))

    def policy(self, policy: Policy) -> Policy:
        """Keeps a chunk per environment and asks for a new one when it is used up or an episode begins."""

        def init(n_seeds: int, n_envs: int) -> Any:
            return (
                policy.init(n_seeds, n_envs),
                None,
                torch.zeros(n_seeds, n_envs, dtype=torch.long),
            )

        def act(
            state: Any, obs: Tensor, first: Tensor, carry: Any, key: Tensor
        ) -> tuple[Tensor, Any]:
            inner, chunk, t = carry
            plan = first.to(t.device) | (t == 0)  # (N, E)
            t = torch.where(plan, 0, t)
            if plan.any():
                new, inner = policy.act(state, obs, first, inner, key)
                new = new.unflatten(-1, (self.h, -1))  # (N, E, h, A)
                mask = plan[..., None, None].to(new.device)
                chunk = new if chunk is None else torch.where(mask, new, chunk)
            index = t[..., None, None].expand(*t.shape, 1, chunk.shape[-1]).to(chunk.device)
            action = chunk.gather(-2, index).squeeze(-2)
            return action, (inner, chunk, (t + 1) % self.h)

        return Policy(init, act)
