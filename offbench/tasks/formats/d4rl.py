"""Reads files with one row per step (HDF5 or npz), as D4RL's, without mujoco-py or the old gym.

    observations (N, O), actions (N, A), rewards (N,), terminals (N,), timeouts (N,)
    next_observations (N, O)      in gym-mujoco v1 and v2 only

Other names of these columns, and other marks of an end: `offbench.tasks.formats.columns`. An episode ends
at a terminal, a time-out, a mark of its last row or a change of its number. Exceptions:

- a time-out after which the trajectory continues ends no episode: the next row equals
  `next_observations`, or, where the file has none, follows as rows inside episodes do
  (`offbench.tasks.doctor.continuing`; the human demonstrations of door and similar sets);
- files with terminals only (v0) are cut at the time limit, counted from the last end;
- where `next_observations` differs from the next row, the recording was cut without a mark (the replay
  sets); the episode ends and bootstraps. Observations are equal up to the rounding of the type they
  were stored in.

A time-out is never a terminal. The last episode of a file is kept, finished or not. `dones` alone are
terminals; a file with one at the time limit is refused, as it may be a truncation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offbench.data.replay import ReplayData, from_flat
from offbench.errors import UserError
from offbench.tasks.formats import columns

if TYPE_CHECKING:
    from offbench.tasks import doctor

# rows searched first for time-outs inside episodes
_LOOK = 200_000
# distance of equal observations in the official IQL code, besides rounding
_SAME = 1e-6


class Raw(NamedTuple):
    """Raw arrays of a file."""

    obs: np.ndarray  # (N, O)
    action: np.ndarray  # (N, A)
    reward: np.ndarray  # (N,)
    terminal: np.ndarray  # (N,) bool
    timeout: np.ndarray | None  # (N,) bool
    next_obs: np.ndarray | None  # (N, O), or one row for each episode
    # (N,) bool: the last rows of episodes, where the file marks them as such
    end: np.ndarray | None = None
    # (N,) bool: ends of either kind
    done: np.ndarray | None = None
    # column -> its name in the file
    called: Mapping[str, str] = {}


class Boundaries(NamedTuple):
    """Ends of episodes, and their reasons."""

    # (N,) bool: the last row of an episode
    end: np.ndarray
    # (N,) bool: the environment ended
    terminal: np.ndarray
    # "20 episodes of 100 steps; ended by 'terminals' 10, 'timeouts' 10"
    words: str


def load(
    path: Path,
    *,
    name: str,
    max_episode_steps: int | None = None,
    n_actions: int | None = None,
) -> ReplayData:
    """The dataset in a file.

    `max_episode_steps` cuts files without time-outs. With `n_actions` actions are discrete (minigrid)
    and become one-hot rows. Images are flattened.
    Raises UserError naming `name` for a file that is damaged or holds no dataset.
    """
    raw = read(path, name=name, n_actions=n_actions)
    return build(raw, boundaries(raw, max_episode_steps, name=name), name=name)


def build(raw: Raw, at: Boundaries, *, name: str) -> ReplayData:
    """The dataset of raw arrays with ends of episodes."""
    after = raw.next_obs
    if after is not None and len(after) == len(raw.obs):
        # all that is left to know of it
        after = after[at.end]
    return from_flat(
        raw.obs, raw.action, raw.reward, at.terminal, at.end, next_obs=after, name=name
    )


def read(path: Path, *, name: str, n_actions: int | None = None, first_action: int = 0) -> Raw:
    """The raw arrays of a file. UserError where they are not one row per step."""
    column, called = columns.read(path, name)
    return raw(column, called, name=name, n_actions=n_actions, first_action=first_action)


def raw(
    column: Mapping[str, np.ndarray],
    called: Mapping[str, str],
    *,
    name: str,
    n_actions: int | None = None,
    first_action: int = 0,
) -> Raw:
    """Raw arrays from columns (`offbench.tasks.formats.columns`). UserError as in `read`."""
    flags = {
        key: _flag(column[key], called[key], name)
        for key in ("terminals", "timeouts", "ends", "dones")
        if key in column
    }
    none = np.zeros(len(column["observations"]), bool)
    end = flags.get("ends")
    if "episodes" in column:
        number = _vector(column["episodes"], called["episodes"], name)
        changes = np.append(number[1:] != number[:-1], True)
        end = changes if end is None else end | changes
    if "starts" in column:
        starts = _after_starts(column["starts"], len(none), called["starts"], name)
        end = starts if end is None else end | starts
    after = column.get("next_observations")
    if after is not None and after.shape[1:] != column["observations"].shape[1:]:
        raise UserError(
            f"{name}: {called['next_observations']} {after.shape} must be as {called['observations']}"
            f" {column['observations'].shape}"
        )
    return Raw(
        _rows(column["observations"]),
        actions(column["actions"], n_actions, called["actions"], name, first_action),
        _vector(column["rewards"], called["rewards"], name),
        flags.get("terminals", none),
        flags.get("timeouts"),
        None if after is None else _rows(after),
        end,
        flags.get("dones"),
        called,
    )


def _after_starts(x: np.ndarray, n: int, key: str, name: str) -> np.ndarray:
    """(N,) bool: the rows before those at which episodes begin, and the last one."""
    first = _vector(x, key, name)
    right = len(first) and first.dtype.kind in "iu" and first[0] == 0 and first[-1] < n
    if not right or (np.diff(first.astype(np.int64)) <= 0).any():
        raise UserError(
            f"{name}: {key} must be the first row of each episode, 0 first, each below {n}"
        )
    end = np.zeros(n, bool)
    end[np.append(first[1:], n).astype(np.int64) - 1] = True
    return end


def actions(
    x: np.ndarray, n_actions: int | None, key: str, name: str, first: int = 0
) -> np.ndarray:
    """Actions as (N, A) floats, or one-hot rows of `n_actions` discrete actions from `first` on; of whole
    numbers the number is inferred."""
    choices = x.dtype.kind in "iu" and (x.ndim == 1 or x.shape[1:] == (1,))
    if n_actions is None and choices:
        n_actions = int(x.max(initial=0)) + 1
        if n_actions > MOST_CHOICES:
            raise UserError(
                f"{name}: {key} {x.shape} are whole numbers up to {n_actions - 1}; as choices they are"
                f" too many (at most {MOST_CHOICES}), as continuous actions they must be floats"
            )
    rows = _rows(x)
    if n_actions is None or (rows.shape[1] == n_actions > 1 and _is_one_hot(rows)):
        return rows
    return one_hot(x, n_actions, name, first)


def _is_one_hot(rows: np.ndarray) -> bool:
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all())


MOST_CHOICES = 512
"""Whole numbers of more values than this are not taken for discrete actions."""


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


def one_hot(action: np.ndarray, n: int, name: str, first: int = 0) -> np.ndarray:
    """Discrete actions (N,) or (N, 1), numbers from `first` on -> one-hot rows (N, n) float32."""
    number, last = _vector(action, "actions", name), first + n - 1
    if not np.array_equal(number, np.round(number)) or number.min() < first or number.max() > last:
        raise UserError(
            f"{name}: actions must be choices from {first} to {last}, found {number.min():g} to {number.max():g}"
        )
    return np.eye(n, dtype=np.float32)[number.astype(np.int64) - first]


def boundaries(raw: Raw, max_episode_steps: int | None, *, name: str) -> Boundaries:
    """The ends of episodes of a file, by the rules of this module.

    UserError for `dones` that may be terminals or time-outs.
    """
    terminal, counts = raw.terminal, {}
    called = lambda key: repr(raw.called.get(key, key))
    if raw.done is not None:
        terminal = _terminals_of_dones(raw, max_episode_steps, name)
    end = terminal.copy()
    counts[called("terminals" if "terminals" in raw.called or not raw.called else "dones")] = end

    def add(why: str, more: np.ndarray) -> None:
        nonlocal end
        counts[why] = counts.get(why, False) | more & ~end
        end = end | more

    if raw.timeout is not None:
        add(called("timeouts"), raw.timeout & ~_goes_on(raw))
    if raw.done is not None:
        add(called("dones"), raw.done)
    if raw.end is not None:
        add(called(_mark(raw)), raw.end)
    if raw.timeout is None and raw.end is None and raw.done is None:
        add(f"the limit of {max_episode_steps} steps", _at_limit(terminal, max_episode_steps))
    if raw.next_obs is not None and len(raw.next_obs) == len(raw.obs):
        cut = np.zeros(len(end), bool)
        cut[:-1] = ~_follows(raw)
        add("a row that does not lead to the next", cut)
    last = np.zeros(len(end), bool)
    last[-1] = True
    add("the end of the file", last)
    return Boundaries(end, terminal, _words(end, counts))


def _words(end: np.ndarray, counts: Mapping[str, np.ndarray]) -> str:
    lengths = np.diff(np.flatnonzero(end), prepend=-1)
    span = (
        f"{lengths.min()}"
        if lengths.min() == lengths.max()
        else f"{lengths.min()} to {lengths.max()}"
    )
    by = ", ".join(f"{why} {x.sum()}" for why, x in counts.items() if x.any())
    many = "s" if len(lengths) > 1 else ""
    return f"{len(lengths)} episode{many} of {span} steps; ended by {by}"


def _terminals_of_dones(raw: Raw, limit: int | None, name: str) -> np.ndarray:
    """(N,) bool terminals. In files with terminals or time-outs, `dones` only are ends."""
    assert raw.done is not None
    if "terminals" in raw.called:
        return raw.terminal
    if raw.timeout is not None:
        return raw.done & ~raw.timeout
    stops = np.flatnonzero(raw.done)
    lengths = np.diff(stops, prepend=-1)
    at_limit = int((lengths == (limit or lengths.max(initial=0))).sum())
    if at_limit > (0 if limit is not None else 2):
        raise UserError(
            f"{name}: {raw.called['dones']!r} ends {at_limit} episodes at {limit or lengths.max()} steps,"
            " which may be the time limit; say which ended and which were cut: name the column terminals"
            " if all ended, or store timeouts with it"
        )
    return raw.done


def _mark(raw: Raw) -> str:
    """The column that marks the last rows of episodes."""
    return next((c for c in ("episodes", "starts") if c in raw.called), "ends")


def leads_on_at_every_mark(raw: Raw) -> tuple[str, int] | None:
    """(column, number of marks) of time-outs or starts, where `next_observations` continues at every one
    of at least two marks, so that none ends an episode."""
    if raw.next_obs is None or len(raw.next_obs) != len(raw.obs):
        return None
    marks = {"timeouts": raw.timeout, "starts": raw.end if "starts" in raw.called else None}
    for column, mark in marks.items():
        row = np.empty(0, int) if mark is None else np.flatnonzero(mark[:-1] & ~raw.terminal[:-1])
        if len(row) > 1 and _same(raw, row).all():
            assert mark is not None
            return column, int(mark.sum())
    return None


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
    """(N - 1,) bool: the next row equals `next_observations`."""
    out = np.empty(len(raw.obs) - 1, bool)
    step = max(1, (1 << 22) // max(1, raw.obs.shape[1]))
    # blocks of a few MB
    for a in range(0, len(out), step):
        b = min(a + step, len(out))
        out[a:b] = _same(raw, np.arange(a, b))
    return out


def _same(raw: Raw, row: np.ndarray) -> np.ndarray:
    """(R,) bool: `next_observations` equal the observations of the next rows, up to rounding."""
    assert raw.next_obs is not None
    there, here = raw.next_obs[row], raw.obs[row + 1]
    gap = np.abs(np.subtract(there, here, dtype=np.float64))
    types = [x.dtype for x in (there, here) if x.dtype.kind == "f"]
    coarse = max((float(np.finfo(t).eps) for t in types), default=0.0)
    return (gap <= _SAME + coarse * np.abs(here)).all(1)


def _goes_on(raw: Raw) -> np.ndarray:
    """(N,) bool: time-outs that end nothing."""
    none = np.zeros(len(raw.obs), bool)
    if raw.timeout is None or not raw.timeout.any():
        return none
    if raw.next_obs is not None and len(raw.next_obs) == len(raw.obs):
        none[:-1] = raw.timeout[:-1] & ~raw.terminal[:-1]
        row = np.flatnonzero(none)
        none[row] = _same(raw, row)
        return none
    from offbench.tasks import doctor

    flat = doctor.Flat(raw.obs, raw.action, raw.reward, raw.terminal, raw.timeout)
    if len(none) > _LOOK and not doctor.continuing(_head(flat, _LOOK)).any():
        # a recorder that marks wrongly does so throughout
        return none
    return doctor.continuing(flat)


def _head(flat: "doctor.Flat", rows: int) -> "doctor.Flat":
    return flat._replace(**{k: x[:rows] for k, x in flat._asdict().items() if x is not None})
