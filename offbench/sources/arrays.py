"""Your own data: arrays in memory, or a file or folder in one of the known layouts.

    HDF5 in D4RL layout (.hdf5, .h5), npz in OGBench layout (.npz, or a folder of them), a Minari
    folder (it holds `data`). An npz with `rewards` and `terminals` that mark the end of the task
    is that of `from_arrays`: see `save`.
"""

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from offbench.data import ReplayData, from_flat
from offbench.errors import UserError
from offbench.sources import d4rl, minari, ogbench
from offbench.sources.npz import Npz

Layout = Literal["d4rl", "ogbench", "minari", "arrays"]
_END = "ends"  # the column that only our own layout has


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
    """Arrays with one row a step, as Gymnasium gives them; see `offbench.data.from_flat`."""
    end = np.asarray(terminations, bool) | np.asarray(truncations, bool)
    return from_flat(
        observations, actions, rewards, terminations, end, next_obs=next_observations, name=name
    )


def layout(path: Path, *, name: str) -> Layout:
    """What kind of data lies at a path, judged by its ending and what is in it."""
    if path.is_dir():
        if (path / "data").is_dir():
            return "minari"
        if any(path.glob("*.npz")):
            return "ogbench"
        raise UserError(
            f"{name}: the folder {path} holds neither `data` (a Minari set) nor .npz files"
        )
    if path.suffix in (".hdf5", ".h5"):
        return "d4rl"
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as file:
                return "arrays" if f"{_END}.npy" in file.namelist() else "ogbench"
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
            return "ogbench"  # whose loader says what is wrong
    raise UserError(
        f"{name}: {path} is none of .hdf5 (D4RL layout), .npz (OGBench layout) or a Minari folder"
    )


def load(
    path: Path, *, name: str, max_episode_steps: int | None = None, env: str | None = None
) -> ReplayData:
    """The set at a path, in whatever layout it is. UserError where it is in none.

    A file in OGBench's layout without rewards has those of the single task that `env` names.
    """
    kind = layout(path, name=name)
    if kind == "minari":
        return minari.load(path, name=name)
    if kind == "d4rl":
        return d4rl.load(path, name=name, max_episode_steps=max_episode_steps)
    if kind == "ogbench":
        single = env is not None and "-singletask-" in env and not ogbench.has_rewards(path, name=name)
        return ogbench.load(path, name=name, task=env if single else None)
    return _load(path, name)


def _load(path: Path, name: str) -> ReplayData:
    with Npz(path, name) as file:
        column = {k: file.read(k) for k in ("observations", "actions", "rewards", "terminals", _END)}
        after = file.read("next_observations") if "next_observations" in file else None
    obs, action, reward, terminal, end = column.values()
    return from_flat(obs, action, reward, terminal, end, next_obs=after, name=name)


def save(data: ReplayData, path: Path) -> None:
    """Write a set as the npz that `load` reads: `observations, actions, rewards, terminals` and
    `ends` (the last row of an episode) with one row a step, `next_observations` with one row an
    episode."""
    valid = data.valid.numpy()
    last = np.flatnonzero(~valid)
    end = np.zeros(len(valid), bool)
    end[last - 1] = True
    np.savez_compressed(
        path,
        observations=data.obs.numpy()[valid],
        actions=data.action.numpy()[valid],
        rewards=data.reward.numpy()[valid],
        terminals=data.terminal.numpy()[valid],
        ends=end[valid],
        next_observations=data.obs.numpy()[last],
    )
