"""D4RL files (HDF5), read directly: no mujoco-py, no old gym.

    observations (N, O), actions (N, A), rewards (N,), terminals (N,), timeouts (N,)
    next_observations (N, O)      in gym-mujoco v1 and v2 only

An episode ends at `terminals | timeouts`, on the rows as they are in the file. Exceptions:

- a time-out after which the recording goes on ends nothing: the next row is what the row leads to
  by `next_observations`, or, where the file has none, it follows as rows inside episodes do
  (`offbench.doctor.continuing`; the human demonstrations of door and its like);
- files without `timeouts` (v0) are cut at the step limit, counted from the last end;
- where `next_observations` says that a row leads elsewhere than to the next row, the recording was
  cut there without a mark (the replay sets); the episode ends and bootstraps.

A time-out is never a terminal. The last episode of a file is kept, finished or not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offbench.data import ReplayData, from_flat
from offbench.errors import UserError
from offbench.sources import hdf5

if TYPE_CHECKING:
    from offbench import doctor

_LOOK = 200_000  # rows in which time-outs inside episodes are looked for first
_SAME = 1e-6  # official IQL's distance below which two observations are the same


class Raw(NamedTuple):
    """The arrays of a file as they are."""

    obs: np.ndarray  # (N, O)
    action: np.ndarray  # (N, A)
    reward: np.ndarray  # (N,)
    terminal: np.ndarray  # (N,) bool
    timeout: np.ndarray | None  # (N,) bool
    next_obs: np.ndarray | None  # (N, O)


def load(
    path: Path,
    *,
    name: str,
    max_episode_steps: int | None = None,
    n_actions: int | None = None,
) -> ReplayData:
    """The set in a D4RL file.

    `max_episode_steps` cuts files that mark no time-outs. `n_actions` says that actions are
    numbers of choices (minigrid): they become one-hot rows. Images become rows of numbers.
    Raises UserError naming `name` for a file that is damaged or does not hold a set.
    """
    raw = read(path, name=name, n_actions=n_actions)
    end = ends(raw, max_episode_steps)
    obs, action, reward, terminal, _, after = raw
    if after is not None:
        after = after[end]  # all that is left to know of it
    del raw
    return from_flat(obs, action, reward, terminal, end, next_obs=after, name=name)


def read(path: Path, *, name: str, n_actions: int | None = None) -> Raw:
    """The arrays of a file. UserError where they are not those of a D4RL set."""
    with hdf5.opened(path, name) as file:
        lengths = {}
        for key in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations"):
            if key in ("timeouts", "next_observations") and not hdf5.has(file, key):
                continue
            lengths[key] = next(iter(hdf5.shape(file, key, name)), 0)
        if len(set(lengths.values())) > 1:
            words = ", ".join(f"{n} {key}" for key, n in lengths.items())
            raise UserError(f"{name}: arrays differ in length: {words}")
        if not lengths["observations"]:
            raise UserError(f"{name}: no episodes ({path} has no rows)")
        column = {key: hdf5.array(file, key, name) for key in lengths}
    terminal = _flag(column["terminals"], "terminals", name)
    timeout = _flag(column["timeouts"], "timeouts", name) if "timeouts" in column else None
    if n_actions is not None:
        column["actions"] = one_hot(column["actions"], n_actions, name)
    after = column.get("next_observations")
    return Raw(
        _rows(column["observations"]),
        _rows(column["actions"]),
        _vector(column["rewards"], "rewards", name),
        terminal,
        timeout,
        None if after is None else _rows(after),
    )


def _rows(x: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N, features)."""
    return x.reshape(len(x), -1)


def _vector(x: np.ndarray, key: str, name: str) -> np.ndarray:
    if x.ndim == 2 and x.shape[1] == 1:
        return x[:, 0]
    if x.ndim != 1:
        raise UserError(f"{name}: {key} {x.shape} must be one number a step")
    return x


def _flag(x: np.ndarray, key: str, name: str) -> np.ndarray:
    x = _vector(x, key, name)
    if x.dtype != bool and not ((x == 0) | (x == 1)).all():
        raise UserError(f"{name}: {key} must be 0 or 1")
    return x.astype(bool)


def one_hot(action: np.ndarray, n: int, name: str) -> np.ndarray:
    """(N,) or (N, 1) numbers of choices -> (N, n) float32."""
    number = _vector(action, "actions", name)
    if not np.array_equal(number, np.round(number)) or number.min() < 0 or number.max() >= n:
        raise UserError(f"{name}: actions must be whole numbers from 0 to {n - 1}")
    return np.eye(n, dtype=np.float32)[number.astype(np.int64)]


def ends(raw: Raw, max_episode_steps: int | None = None) -> np.ndarray:
    """(N,) bool: the last row of each episode, by the rules at the top."""
    if raw.timeout is None:
        end = _at_limit(raw.terminal, max_episode_steps)
    else:
        end = raw.terminal | (raw.timeout & ~_goes_on(raw))
    if raw.next_obs is not None:
        end[:-1] |= ~_follows(raw)
    end[-1] = True
    return end


def _at_limit(terminal: np.ndarray, limit: int | None) -> np.ndarray:
    """Ends by terminal, and every `limit` steps since the last of them."""
    end = terminal.copy()
    if limit is not None:
        row = np.arange(len(end))
        first = np.concatenate([[True], terminal[:-1]])
        start = np.maximum.accumulate(np.where(first, row, 0))
        end |= (row - start) % limit == limit - 1
    return end


def _follows(raw: Raw) -> np.ndarray:
    """(N - 1,) bool: the next row is what the row leads to by `next_observations`."""
    assert raw.next_obs is not None
    out = np.empty(len(raw.obs) - 1, bool)
    step = max(1, (1 << 22) // max(1, raw.obs.shape[1]))
    for a in range(0, len(out), step):  # a few MB at a time
        b = min(a + step, len(out))
        gap = np.abs(raw.next_obs[a:b] - raw.obs[a + 1 : b + 1])
        out[a:b] = gap.max(1, initial=0.0) <= _SAME
    return out


def _goes_on(raw: Raw) -> np.ndarray:
    """(N,) bool: time-outs that end nothing."""
    none = np.zeros(len(raw.obs), bool)
    if raw.timeout is None or not raw.timeout.any():
        return none
    if raw.next_obs is not None:
        none[:-1] = raw.timeout[:-1] & ~raw.terminal[:-1]
        row = np.flatnonzero(none)
        gap = np.abs(raw.next_obs[row] - raw.obs[row + 1]).max(1, initial=0.0)
        none[row] = gap <= _SAME
        return none
    from offbench import doctor

    flat = doctor.Flat(raw.obs, raw.action, raw.reward, raw.terminal, raw.timeout)
    if len(none) > _LOOK and not doctor.continuing(_head(flat, _LOOK)).any():
        return none  # a recorder that marks wrongly does so throughout
    return doctor.continuing(flat)


def _head(flat: "doctor.Flat", rows: int) -> "doctor.Flat":
    return type(flat)(*(None if x is None else x[:rows] for x in flat))
