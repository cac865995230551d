"""A dataset as flat, immutable arrays, shared by every seed.

                 |<---- episode 0 ---->|<-- episode 1 -->|
row               0    1    2    3      4    5    6
obs               s0   s1   s2   s3     s0   s1   s2      each episode keeps its last observation,
action            a0   a1   a2   --     a0   a1   --      so next_obs is a shift, stored once
terminal          0    0    1    0      0    0    0       the environment ended; a time limit does not count
last              3    3    3    3      6    6    6
valid = row<last  1    1    1    0      1    1    0
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offbench.errors import UserError

# float32 rounding of an action recorded at the bound
ACTION_TOLERANCE = 1e-5


class Episode(NamedTuple):
    """One trajectory as recorded: T steps, T + 1 observations."""

    obs: np.ndarray  # (T + 1, O)
    action: np.ndarray  # (T, A)
    reward: np.ndarray  # (T,)
    terminal: np.ndarray  # (T,) bool: the environment ended at this step (never for a time limit)


class ReplayData(NamedTuple):
    """A dataset as flat tensors with S rows, one per transition and one per last observation."""

    obs: Tensor  # (S, O) float32, S = transitions + episodes
    action: Tensor  # (S, A) float32; the row of a last observation is padding
    reward: Tensor  # (S,) float32
    terminal: Tensor  # (S,) bool
    last: Tensor  # (S,) int64: row of the last observation of this row's episode
    episode: Tensor  # (S,) int64

    @property
    def valid(self) -> Tensor:
        """(S,) bool: rows that are transitions."""
        valid = torch.empty_like(self.last, dtype=torch.bool)
        for part in blocks(len(valid)):
            row = torch.arange(part.start, part.stop, device=valid.device)
            torch.lt(row, self.last[part], out=valid[part])
        return valid

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return int(self.episode[-1]) + 1

    @property
    def n_transitions(self) -> int:
        """Number of transitions."""
        return len(self.last) - self.n_episodes

    def to(self, device: torch.device | str) -> "ReplayData":
        """The dataset on a device."""
        return ReplayData(*(x.to(device) for x in self))


def is_one_hot(action: Tensor, valid: Tensor) -> bool:
    """Whether every action (S, A) is a one-hot row of at least two choices: discrete actions."""
    if action.shape[1] < 2:
        return False
    for rows, counts in zip(action.split(1 << 20), valid.split(1 << 20), strict=True):
        rows = rows[counts]
        if not (((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()):
            return False
    return True


def from_episodes(
    episodes: Iterable[Episode], *, name: str = "dataset", terminal_inside: bool = False
) -> ReplayData:
    """A dataset of episodes, with the checks of `from_flat`.

    `terminal_inside` permits terminals before an episode's last step: OGBench's single-task sets
    stop the bootstrap at the goal while the trajectory goes on. Raises UserError naming `name` and
    the first offending episode.
    """
    columns: tuple[list[np.ndarray], ...] = ([], [], [], [])
    sizes: list[int] = []
    for i, e in enumerate(episodes):
        like = {"obs": columns[0][0].shape[1], "action": columns[1][0].shape[1]} if sizes else {}
        _check_shapes(e, i, name, like)
        kinds = (np.float32, np.float32, np.float32, bool)
        for column, values, field, dtype in zip(columns, e, Episode._fields, kinds):
            column.append(_cast(values, field, f"{name}: episode {i}", dtype))
            # the row of the last observation
            if field != "obs":
                column.append(np.zeros((1, *column[-1].shape[1:]), dtype))
        sizes.append(len(e.action) + 1)
    if not sizes:
        raise UserError(f"{name}: no episodes")
    obs, action, reward, terminal = (_joined(column) for column in columns)
    return _finish(obs, action, reward, terminal, np.asarray(sizes), name, terminal_inside)


def _joined(column: list[np.ndarray]) -> np.ndarray:
    """The arrays one after another; the list is emptied, so that there are never three copies."""
    joined = np.concatenate(column)
    column.clear()
    return joined


def from_flat(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    end: np.ndarray,
    *,
    next_obs: np.ndarray | None = None,
    name: str = "dataset",
    terminal_inside: bool = False,
) -> ReplayData:
    """A dataset of recorded rows, one per step, episodes one after another.

    obs (N, O), action (N, A), reward (N,), terminal (N,): the environment terminated at this step (not
    by a time limit). end (N,): the last row of an episode; the very last row always is one, so an
    unfinished episode is kept and bootstraps. `next_obs` (N, O) or (E, O): the observation after each
    row, or after the last row of each episode.

    With `next_obs` every row is a transition. Without, a terminal last row stays a transition (its
    observation is repeated as the next one, which no bootstrap uses); any other last row only is the
    next observation of the row before, as in OGBench's files; an episode of one such row is left out.

    Raises UserError naming `name` and the first offending episode.
    """
    obs, action, reward, terminal, end = map(np.asarray, (obs, action, reward, terminal, end))
    _check_columns(obs, action, reward, terminal, end, name)
    terminal = _cast(terminal, "terminal", name, bool)
    ends = _cast(end, "end", name, bool).copy()
    ends[-1] = True
    stop = np.flatnonzero(ends)
    start = np.concatenate([[0], stop[:-1] + 1])
    after = None if next_obs is None else _after(np.asarray(next_obs), obs, stop, name)
    extra = terminal[stop] if after is None else np.ones(len(stop), bool)
    # without episodes of one row whose next observation is unknown
    kept = extra | (stop > start)
    if not kept.any():
        raise UserError(f"{name}: no transition: every episode is a single row without a successor")
    sizes = (stop - start + 1 + extra)[kept]
    if extra.any() or not kept.all():
        rows = np.flatnonzero(np.repeat(kept, stop - start + 1)) if not kept.all() else None
        new_ends = np.cumsum(sizes) - 1
        # output rows that are recorded ones
        recorded = np.ones(int(sizes.sum()), bool)
        recorded[new_ends[extra[kept]]] = False
        pick = (lambda x: x) if rows is None else (lambda x: x[rows])
        last = (obs[stop] if after is None else after)[extra]
        obs = _spread(pick(obs), recorded, "obs", name, fill=last)
        action = _spread(pick(action), recorded, "action", name)
        reward = _spread(pick(reward), recorded, "reward", name)
        wider = np.zeros(len(recorded), bool)
        wider[recorded] = pick(terminal)
        terminal = wider
    else:
        obs, action, reward = (
            _cast(x, field, name, np.float32, copy=field != "obs")
            for x, field in ((obs, "obs"), (action, "action"), (reward, "reward"))
        )
    padding = np.cumsum(sizes) - 1
    action[padding], reward[padding] = 0.0, 0.0
    return _finish(obs, action, reward, terminal, sizes, name, terminal_inside)


def _spread(
    x: np.ndarray, recorded: np.ndarray, field: str, name: str, fill: np.ndarray | float = 0.0
) -> np.ndarray:
    """`x` at the rows where `recorded`, `fill` at the others; float32."""
    _numeric(x, field, name)
    out = np.empty((len(recorded), *x.shape[1:]), np.float32)
    holes = np.flatnonzero(~recorded)
    bounds = np.concatenate([[-1], holes, [len(recorded)]])
    with np.errstate(over="ignore", invalid="ignore"):
        if len(holes) > len(recorded) // 20:
            out[recorded] = x
        # a block of rows at a time is faster
        else:
            for i, (a, b) in enumerate(zip(bounds[:-1] + 1, bounds[1:])):
                out[a:b] = x[a - i : b - i]
        out[holes] = fill
    return out


def _after(next_obs: np.ndarray, obs: np.ndarray, stop: np.ndarray, name: str) -> np.ndarray:
    """(E, O) the observation after each episode's last row."""
    if next_obs.shape == (len(stop), *obs.shape[1:]) and len(stop) != len(obs):
        return next_obs
    if next_obs.shape != obs.shape:
        raise UserError(
            f"{name}: next observations {next_obs.shape} must be as the observations {obs.shape}"
        )
    return next_obs[stop]


def _check_columns(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    end: np.ndarray,
    name: str,
) -> None:
    if obs.ndim != 2 or action.ndim != 2:
        raise UserError(
            f"{name}: observations {obs.shape} and actions {action.shape} must be 2-D (steps, features)"
        )
    for field, x in (("rewards", reward), ("terminals", terminal), ("ends", end)):
        if x.ndim != 1:
            raise UserError(f"{name}: {field} {x.shape} must be 1-D (steps,)")
    found = [len(x) for x in (obs, action, reward, terminal, end)]
    if len(set(found)) > 1:
        raise UserError(
            f"{name}: arrays differ in length: {found[0]} observations, {found[1]} actions, "
            f"{found[2]} rewards, {found[3]} terminals, {found[4]} ends"
        )
    if not found[0]:
        raise UserError(f"{name}: no episodes")


def _numeric(x: np.ndarray, field: str, at: str) -> None:
    if x.dtype.kind not in "fiub":
        raise UserError(f"{at}: {field} holds {x.dtype}, not numbers")


def _cast(x: np.ndarray, field: str, at: str, dtype: type, *, copy: bool = False) -> np.ndarray:
    """`x` as float32 or bool. Flags must be 0 or 1."""
    x = np.asarray(x)
    _numeric(x, field, at)
    if dtype is bool and x.dtype != bool and not np.isin(x, (0, 1)).all():
        raise UserError(f"{at}: {field} must be 0 or 1, found {x[~np.isin(x, (0, 1))][0]}")
    # what overflows is found by `_finish`
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype, copy=copy)


def _check_shapes(e: Episode, i: int, name: str, like: dict[str, int]) -> None:
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


def _finish(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    sizes: np.ndarray,
    name: str,
    terminal_inside: bool,
) -> ReplayData:
    """Checks the values of the final rows and returns the dataset.

    `action` is clipped in place.
    """
    stop = np.cumsum(sizes)

    def at(row: int) -> tuple[str, int]:
        episode = int(np.searchsorted(stop, row, side="right"))
        return f"{name}: episode {episode}", row - int(stop[episode] - sizes[episode])

    for field, x in (("obs", obs), ("action", action), ("reward", reward)):
        if x.ndim == 2 and x.shape[1] == 0:
            raise UserError(f"{name}: {field} has no features")
        # no array as large as the data
        if not (np.isfinite(x.min()) and np.isfinite(x.max())):
            bad = ~np.isfinite(x) if x.ndim == 1 else ~np.isfinite(x).all(1)
            where, step = at(int(np.argmax(bad)))
            raise UserError(f"{where}: {field} is not finite (NaN or Inf) at step {step}")
    largest = max(-float(action.min()), float(action.max()))
    if largest > 1 + ACTION_TOLERANCE:
        where, _ = at(int(np.argmax((np.abs(action) > 1 + ACTION_TOLERANCE).any(1))))
        raise UserError(f"{where}: actions reach {largest:.4g}, outside [-1, 1]")
    np.clip(action, -1, 1, out=action)
    if not terminal_inside:
        inside = terminal.copy()
        inside[stop - 2] = False
        if inside.any():
            where, step = at(int(np.argmax(inside)))
            length = int(sizes[np.searchsorted(stop, int(np.argmax(inside)), side="right")]) - 1
            raise UserError(f"{where}: terminal at step {step}, before its last step {length - 1}")
    last = np.repeat(stop - 1, sizes)
    episode = np.repeat(np.arange(len(sizes)), sizes)
    columns = (obs, action, reward, terminal, last, episode)
    return ReplayData(*(torch.from_numpy(np.ascontiguousarray(x)) for x in columns))


def blocks(n: int, size: int = 1 << 15) -> Iterator[slice]:
    """Slices of n rows, `size` at a time, for mapped data larger than memory."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def episode_returns(data: ReplayData) -> Tensor:
    """(n_episodes,) float64 undiscounted return of each episode."""
    valid, returns = data.valid, data.reward.new_zeros(data.n_episodes, dtype=torch.float64)
    for part in blocks(len(valid)):
        reward = torch.where(valid[part], data.reward[part], 0.0).double()
        returns.index_add_(0, data.episode[part], reward)
    return returns


def first_rows(data: ReplayData) -> Tensor:
    """(n_episodes,) int64 row of each episode's first observation."""
    row = torch.arange(len(data.episode), device=data.episode.device)
    return row[torch.cat([row[:1] == 0, data.episode[1:] != data.episode[:-1]])]


def end_rows(data: ReplayData) -> Tensor:
    """(n_episodes,) int64 row of the observation with which each episode ends: that after its first terminal,
    where the recorder went on, else the last one."""
    row = torch.arange(len(data.last), device=data.last.device)
    stop = torch.where(data.terminal, row + 1, data.last)
    return data.last[first_rows(data)].scatter_reduce(0, data.episode, stop, "amin")


def best_return(data: ReplayData) -> float:
    """The largest undiscounted return of an episode, without what was recorded after a terminal."""
    row = torch.arange(len(data.last), device=data.last.device)
    reward = torch.where(row < end_rows(data)[data.episode], data.reward, 0.0)
    return float(episode_returns(data._replace(reward=reward)).max())


def discounted_to_go(data: ReplayData, gamma: float) -> Tensor:
    """sum_{k >= t} gamma^(k - t) r_k within the episode, stopped at a terminal, per row: (S,)."""
    reward, terminal = data.reward.double().cpu().numpy(), data.terminal.cpu().numpy()
    last = data.last.cpu().numpy()
    steps_left = last - np.arange(len(last))
    total = np.zeros(len(last))
    # all rows k steps from an end, k = 1, 2, ...
    order = np.argsort(steps_left, kind="stable")
    bounds = np.searchsorted(steps_left[order], np.arange(1, steps_left.max() + 2))
    for start, stop in pairwise(bounds.tolist()):
        row = order[start:stop]
        total[row] = reward[row] + gamma * np.where(terminal[row], 0.0, total[row + 1])
    return torch.from_numpy(total).to(data.reward)


def fingerprint(data: ReplayData) -> str:
    """sha256 of the arrays."""
    digest = hashlib.sha256()
    for x in data:
        digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()
