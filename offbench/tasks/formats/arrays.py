"""Own data: arrays in memory, or a file or folder in a known format.

HDF5 or npz with one row a step (`offbench.tasks.formats.d4rl`), npz in OGBench's layout (or a folder of
them), a Minari folder (it holds `data`). `save_data` writes the first.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from offbench import io
from offbench.data.replay import ACTION_TOLERANCE, ReplayData, from_flat
from offbench.errors import UserError, expect, writing
from offbench.tasks.formats import columns, d4rl, foreign, minari, ogbench
from offbench.tasks.task import Reading

Layout = Literal["steps", "ogbench", "minari"]


def from_arrays(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    next_observations: np.ndarray | None = None,
    *,
    name: str = "arrays",
) -> ReplayData:
    """A dataset from arrays with one row per step, episodes one after another, as in Gymnasium.

    observations (N, O) and next_observations (N, O), the observation after each step; actions (N, A) in
    [-1, 1], or (N,) discrete actions as whole numbers; rewards, terminations and truncations (N,).
    Without next_observations the last row of a truncated episode only is the next observation of the
    row before. Raises UserError naming `name` where arrays differ in length or shape.
    """
    # one value for all steps
    if truncations is None or np.ndim(truncations) == 0:
        truncations = np.full(np.shape(terminations), bool(truncations))
    rows = {"terminations": len(np.atleast_1d(terminations))}
    rows |= {"truncations": len(np.atleast_1d(truncations)), "actions": len(np.atleast_1d(actions))}
    if np.ndim(actions) not in (1, 2):
        raise UserError(
            f"{name}: actions {np.shape(actions)} must be (steps, features) or (steps,)"
        )
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{n} {key}" for key, n in rows.items())
        raise UserError(f"{name}: arrays differ in length: {found}")
    action = d4rl.actions(np.asarray(actions), None, "actions", name)
    end = np.asarray(terminations, bool) | np.asarray(truncations, bool)
    return from_flat(
        observations, action, rewards, terminations, end, next_obs=next_observations, name=name
    )


def reading(
    path: Path, name: str, *, actions: str, n_actions: int | None, limit: int | None
) -> Reading:
    """The reading of a file without an environment: continuous actions beyond [-1, 1] are scaled from
    their recorded range, per dimension. `actions="unit"` leaves them unchanged."""
    unit = actions == "unit"
    found = Reading(
        max_episode_steps=limit, limit_given=limit is not None, n_actions=n_actions, unit=unit
    )
    with columns.opened(path, name) as file:
        # `steps` reports the missing column
        key = columns.names(file, name).get("actions")
        recorded = np.zeros(0) if key is None else file.array(key[0])
    if recorded.dtype.kind != "f" or unit or n_actions is not None or not recorded.size:
        return found
    rows = recorded.reshape(len(recorded), -1).astype(np.float64)
    low, high = rows.min(0), rows.max(0)
    if np.isfinite(rows).all() and max(-low.min(), high.max()) > 1 + ACTION_TOLERANCE:
        # a constant dimension has no range
        high = np.where(high > low, high, low + 1)
        return replace(found, low=tuple(low.tolist()), high=tuple(high.tolist()))
    return found


def layout(path: Path, *, name: str) -> Layout:
    """The format of the data at a path, by suffix and content."""
    foreign.refuse_pickle(path, name)
    if path.is_dir():
        if (path / "data").is_dir():
            return "minari"
        if any(path.glob("*.npz")):
            return "ogbench"
        raise UserError(
            f"{name}: the folder {path} holds neither `data` (a Minari set) nor .npz files"
        )
    if path.suffix in (".hdf5", ".h5"):
        return "steps"
    if path.suffix == ".npz":
        with columns.opened(path, name) as file:
            return "ogbench" if _is_ogbench(set(file.keys())) else "steps"
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        raise UserError(
            f"{columns.at(path, name)} is a table; write it in offbench's layout once: {columns.import_command(path)}"
        )
    raise UserError(
        f"{name}: {path} is none of .hdf5 or .npz (one row a step), .npz as OGBench has it, or a Minari"
        " folder"
    )


def _is_ogbench(keys: set[str]) -> bool:
    """`terminals` mark a trajectory's end there, and rewards come with masks or not at all."""
    marked = any(
        n in keys for m in ("timeouts", "ends", "dones", "episodes") for n in columns.NAMES[m]
    )
    rewarded = not keys.isdisjoint(columns.NAMES["rewards"])
    return "terminals" in keys and not marked and ("masks" in keys or not rewarded)


def load(
    path: Path, *, name: str, reading: Reading | None = None, env: str | None = None
) -> ReplayData:
    """The dataset at a path, in any known format. UserError for others.

    A file in OGBench's layout without rewards has those of the single task that `env` names.
    """
    reading = reading or Reading()
    kind = layout(path, name=name)
    if kind == "minari":
        return minari.load(path, name=name)
    if kind == "ogbench":
        if reading.scales:
            raise UserError(
                f"{name}: a file in OGBench's layout has actions in [-1, 1], {env} takes others; store one row"
                " a step with timeouts, or say task.actions=unit"
            )
        single = (
            env is not None and "-singletask-" in env and not ogbench.has_rewards(path, name=name)
        )
        return ogbench.load(path, name=name, task=env if single else None)
    raw, at = steps(path, name=name, reading=reading)
    return d4rl.build(raw, at, name=name)


def steps(path: Path, *, name: str, reading: Reading) -> tuple[d4rl.Raw, d4rl.Boundaries]:
    """(rows, ends of episodes) of a file; see `divide`."""
    raw = d4rl.read(path, name=name, n_actions=reading.n_actions, first_action=reading.first_action)
    return divide(raw, name=name, reading=reading)


def divide(raw: d4rl.Raw, *, name: str, reading: Reading) -> tuple[d4rl.Raw, d4rl.Boundaries]:
    """(rows with actions scaled to [-1, 1], ends of episodes).

    Raises UserError for an action outside the environment's bounds, and for a file with terminals only
    whose time limit is unknown.
    """
    raw = raw._replace(action=_scaled(raw.action, reading, name))
    if marked := d4rl.leads_on_at_every_mark(raw):
        column, count = marked
        called = raw.called.get(column, column)
        what = "time-outs" if column == "timeouts" else f"ends of episodes ({called})"
        raise UserError(
            f"{name}: at every one of its {count} {what} the next observation is the row that"
            " follows: either nothing was reset there, or the recorder kept the first observation of the next"
            f" episode; leave out {called} in the first case, next_observations in the second"
        )
    at = d4rl.boundaries(raw, reading.max_episode_steps, name=name)
    unmarked = raw.timeout is None and raw.end is None and raw.done is None and raw.next_obs is None
    if unmarked and not reading.limit_given:
        _refuse_to_guess(raw, reading.max_episode_steps, name)
    return raw, at


def _scaled(action: np.ndarray, reading: Reading, name: str) -> np.ndarray:
    """(N, A) from the environment's bounds to [-1, 1]."""
    if reading.low is None or reading.high is None:
        return action
    low, high = (np.array(x, np.float64) for x in (reading.low, reading.high))
    if action.shape[1] != len(low):
        raise UserError(
            f"{name}: the dataset's actions have {action.shape[1]} features, the environment takes {len(low)}"
        )
    room = ACTION_TOLERANCE * (high - low)
    outside = (action < low - room) | (action > high + room)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(
            f"{name}: action {action[row, column]:.4g} at row {row} lies outside the environment's"
            f" bounds [{low[column]:g}, {high[column]:g}]; task.actions=unit says that actions were"
            " recorded in [-1, 1]"
        )
    return np.asarray(2 * (action - low) / (high - low) - 1, np.float32)


def _refuse_to_guess(raw: d4rl.Raw, limit: int | None, name: str) -> None:
    """Raises UserError for rows without an end that exceed the time limit: they were cut without a mark."""
    longest = int(
        np.diff(np.flatnonzero(raw.terminal), prepend=-1, append=len(raw.terminal) - 1).max()
    )
    if limit is None or longest <= limit:
        return
    raise UserError(
        f"{name}: {longest} rows without a terminal, and nothing says where episodes were cut; add"
        f" timeouts, or give the recorder's limit: task.max_episode_steps={limit} (in data commands --limit {limit})"
        " is the environment's"
    )


def save_data(data: ReplayData, path: str | Path) -> None:
    """Writes a dataset as .npz or .hdf5 for `load`: `observations, actions, rewards, terminals`
    and `ends` (the last row of an episode) with one row a step, `next_observations` with one row an
    episode. Actions are in [-1, 1], discrete ones one-hot.

    The write is atomic. UserError for another suffix, or a folder that cannot be written.
    """
    expect("data", data, ReplayData, "a dataset, as of load_data or from_arrays")
    expect("path", path, (str, os.PathLike), "a file")
    write(data, data.action.numpy()[data.valid.numpy()], Path(path))


def write(data: ReplayData, action: np.ndarray, path: Path) -> None:
    """As `save_data`, with actions as they were recorded, one row per transition."""
    valid = data.valid.numpy()
    last = np.flatnonzero(~valid)
    end = np.zeros(len(valid), bool)
    end[last - 1] = True
    content = {
        "observations": data.obs.numpy()[valid],
        "actions": action,
        "rewards": data.reward.numpy()[valid],
        "terminals": data.terminal.numpy()[valid],
        "ends": end[valid],
        "next_observations": data.obs.numpy()[last],
    }
    check_ending(path)
    with writing(path), io.replacing(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, **content)
            return
        import h5py

        with h5py.File(temporary, "w") as file:
            for key, x in content.items():
                file.create_dataset(key, data=x, compression="gzip")


def convert(
    read: foreign.Read, dest: Path, *, name: str, reading: Reading, unit: bool = False
) -> tuple[ReplayData, d4rl.Boundaries]:
    """Writes the columns of a foreign file in offbench's format; returns the dataset and its ends of episodes.

    Actions are written as recorded, in the environment's bounds (`unit`: in [-1, 1]), discrete ones as
    whole numbers, so that a run scales them exactly once. Raises UserError, before writing, for data
    that a run would refuse.
    """
    column = dict(read.columns)
    recorded = column["actions"]
    if reading.low is not None and reading.high is not None:
        # the environment's actions are continuous
        recorded = recorded.astype(np.float64) if recorded.dtype.kind in "iub" else recorded
        if unit:
            d4rl.build(
                *_divided(column, read, name, replace(reading, low=None, high=None)), name=name
            )
            low, high = (np.array(x, np.float64) for x in (reading.low, reading.high))
            recorded = low + (recorded.reshape(len(recorded), -1) + 1) * (high - low) / 2
        column["actions"] = recorded
    raw, at = _divided(column, read, name, reading)
    largest = float(np.abs(raw.action).max(initial=0.0))
    if reading.low is None and np.isfinite(largest) and largest > 1 + ACTION_TOLERANCE:
        raw = raw._replace(action=raw.action / largest)
    data = d4rl.build(raw, at, name=name)
    choices = recorded.size == len(recorded) and (
        recorded.dtype.kind in "iu" or reading.n_actions is not None
    )
    recorded = (
        recorded.reshape(-1).astype(np.int64) if choices else recorded.reshape(len(recorded), -1)
    )
    # the last row of an episode that was cut leads nowhere where no next observations are recorded
    kept = ~at.end | at.terminal if raw.next_obs is None else np.ones(len(at.end), bool)
    write(data, recorded[kept] if choices else recorded[kept].astype(np.float32), dest)
    return data, at


def _divided(
    column: Mapping[str, np.ndarray], read: foreign.Read, name: str, reading: Reading
) -> tuple[d4rl.Raw, d4rl.Boundaries]:
    raw = d4rl.raw(
        column,
        read.called,
        name=name,
        n_actions=reading.n_actions,
        first_action=reading.first_action,
    )
    return divide(raw, name=name, reading=reading)


def check_ending(path: Path) -> None:
    """Raises UserError for a suffix of no writable format."""
    if path.suffix not in (".npz", ".hdf5", ".h5"):
        raise UserError(f"{path}: offbench's own layout is written as .npz or .hdf5")
