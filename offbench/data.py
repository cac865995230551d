"""One dataset, flat, immutable, on the training device; shared by every seed.

                 |<---- episode 0 ---->|<-- episode 1 -->|
row               0    1    2    3      4    5    6
obs               s0   s1   s2   s3     s0   s1   s2      each episode keeps its last observation,
action            a0   a1   a2   --     a0   a1   --      so next_obs is a shift, stored once
terminal          0    0    1    0      0    0    0       the environment ended; a time limit does not count
last              3    3    3    3      6    6    6
valid = row<last  1    1    1    0      1    1    0
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offbench.errors import UserError

ACTION_TOLERANCE = 1e-5  # float32 rounding of an action recorded at the bound


class Episode(NamedTuple):
    """One trajectory as recorded: T steps, T + 1 observations."""

    obs: np.ndarray  # (T + 1, O)
    action: np.ndarray  # (T, A)
    reward: np.ndarray  # (T,)
    terminal: np.ndarray  # (T,) bool: the environment ended at this step (never for a time limit)


class ReplayData(NamedTuple):
    obs: Tensor  # (S, O) float32, S = transitions + episodes
    action: Tensor  # (S, A) float32; the row of a last observation is padding
    reward: Tensor  # (S,) float32
    terminal: Tensor  # (S,) bool
    last: Tensor  # (S,) int64: row of the last observation of this row's episode
    episode: Tensor  # (S,) int64

    @property
    def valid(self) -> Tensor:
        """(S,) bool: rows that are a transition."""
        return torch.arange(len(self.last), device=self.last.device) < self.last

    @property
    def n_episodes(self) -> int:
        return int(self.episode[-1]) + 1

    @property
    def n_transitions(self) -> int:
        return len(self.last) - self.n_episodes

    def to(self, device: torch.device | str) -> "ReplayData":
        return ReplayData(*(x.to(device) for x in self))


def from_episodes(
    episodes: Iterable[Episode], *, name: str = "dataset", terminal_inside: bool = False
) -> ReplayData:
    """The only constructor: every source passes the same checks.

    `terminal_inside` permits terminals before an episode's last step: OGBench's single-task sets
    stop the bootstrap at the goal while the trajectory goes on. Raises UserError naming `name` and
    the first offending episode.
    """
    obs, action, reward, terminal, last, index, size = [], [], [], [], [], [], 0
    for i, e in enumerate(episodes):
        _check(
            e,
            i,
            name,
            terminal_inside,
            like={"obs": obs[0].shape[1], "action": action[0].shape[1]} if obs else {},
        )
        n = len(e.action)
        obs.append(np.asarray(e.obs, np.float32))
        action += [
            np.clip(e.action, -1, 1).astype(np.float32),
            np.zeros((1, e.action.shape[1]), np.float32),
        ]
        reward += [np.asarray(e.reward, np.float32), np.zeros(1, np.float32)]
        terminal += [np.asarray(e.terminal, bool), np.zeros(1, bool)]
        last.append(np.full(n + 1, size + n))
        index.append(np.full(n + 1, i))
        size += n + 1
    if not obs:
        raise UserError(f"{name}: no episodes")
    columns = (obs, action, reward, terminal, last, index)
    return ReplayData(*(torch.from_numpy(np.concatenate(c)) for c in columns))


def _check(e: Episode, i: int, name: str, terminal_inside: bool, like: dict[str, int]) -> None:
    at, n = f"{name}: episode {i}", len(e.action)
    if n == 0:
        raise UserError(f"{at} has no steps")
    if e.obs.ndim != 2 or e.action.ndim != 2:
        raise UserError(
            f"{at}: observations {e.obs.shape} and actions {e.action.shape} must be 2-D (steps, features)"
        )
    if len(e.obs) != n + 1 or len(e.reward) != n or len(e.terminal) != n:
        raise UserError(
            f"{at}: {n} actions need {n + 1} observations, {n} rewards and {n} terminals, "
            f"found {len(e.obs)}, {len(e.reward)} and {len(e.terminal)}"
        )
    if np.ndim(e.reward) != 1 or np.ndim(e.terminal) != 1:
        raise UserError(
            f"{at}: rewards {np.shape(e.reward)} and terminals {np.shape(e.terminal)} must be 1-D (steps,)"
        )
    for field, size in like.items():
        if getattr(e, field).shape[1] != size:
            raise UserError(
                f"{at}: {field} has {getattr(e, field).shape[1]} features, earlier episodes {size}"
            )
    for field in ("obs", "action", "reward"):
        if not np.isfinite(getattr(e, field)).all():
            row = int(np.argwhere(~np.isfinite(getattr(e, field)))[0][0])
            raise UserError(f"{at}: {field} is not finite (NaN or Inf) at step {row}")
    if np.abs(e.action).max() > 1 + ACTION_TOLERANCE:
        raise UserError(f"{at}: actions reach {np.abs(e.action).max():.4g}, outside [-1, 1]")
    if not terminal_inside and np.asarray(e.terminal)[:-1].any():
        row = int(np.argmax(e.terminal))
        raise UserError(f"{at}: terminal at step {row}, before its last step {n - 1}")


def episode_returns(data: ReplayData) -> Tensor:
    """(n_episodes,) float64 undiscounted return of each episode."""
    reward = torch.where(data.valid, data.reward, 0.0).double()
    zeros = torch.zeros(data.n_episodes, dtype=torch.float64, device=reward.device)
    return zeros.index_add_(0, data.episode, reward)


def first_rows(data: ReplayData) -> Tensor:
    """(n_episodes,) int64 row of each episode's first observation."""
    row = torch.arange(len(data.episode), device=data.episode.device)
    return row[torch.cat([row[:1] == 0, data.episode[1:] != data.episode[:-1]])]
