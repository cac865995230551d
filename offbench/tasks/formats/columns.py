"""Arrays of a file with one row a step, under the names that people give them.

    observations       observations, obs, states
    actions            actions, action
    rewards            rewards, reward
    terminals          terminals, terminations, terminated: the environment ended
    timeouts           timeouts, truncations, truncated: a time limit, or the recorder, cut the episode
    ends               ends, episode_terminals, episode_ends: the last row of an episode, for either reason
    dones              dones, done: an end that may be either
    episodes           episodes, episode, episode_id, trajectory_id: a number for each episode
    next_observations  next_observations, next_obs, next_states

HDF5 and npz are read alike; d3rlpy's files (version 1) have `episode_terminals`. A file with two
names for one thing is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from offbench.errors import UserError
from offbench.tasks.formats import hdf5
from offbench.tasks.formats.npz import Npz

if TYPE_CHECKING:
    import h5py

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "observations": ("observations", "obs", "states"),
        "actions": ("actions", "action"),
        "rewards": ("rewards", "reward"),
        "terminals": ("terminals", "terminations", "terminated"),
        "timeouts": ("timeouts", "truncations", "truncated"),
        "ends": ("ends", "episode_terminals", "episode_ends"),
        "dones": ("dones", "done"),
        "episodes": ("episodes", "episode", "episode_id", "trajectory_id"),
        "next_observations": ("next_observations", "next_obs", "next_states"),
    }
)
class Columns(Protocol):
    """An open file of named arrays."""

    def keys(self) -> list[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def array(self, key: str) -> np.ndarray: ...


class _Hdf5:
    def __init__(self, file: "h5py.File", name: str):
        self.file, self.name = file, name

    def keys(self) -> list[str]:
        return list(self.file)

    def shape(self, key: str) -> tuple[int, ...]:
        return hdf5.shape(self.file, key, self.name)

    def array(self, key: str) -> np.ndarray:
        return hdf5.array(self.file, key, self.name)


class _Npz:
    def __init__(self, file: Npz):
        self.file = file

    def keys(self) -> list[str]:
        return list(self.file.members)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.file.members[key].shape

    def array(self, key: str) -> np.ndarray:
        return self.file.read(key)


@contextmanager
def opened(path: Path, name: str) -> Iterator[Columns]:
    """The arrays of an HDF5 or npz file; nothing is unpickled and no link is followed."""
    if path.suffix == ".npz":
        with Npz(path, name) as file:
            yield _Npz(file)
    else:
        with hdf5.opened(path, name) as file:
            yield _Hdf5(file, name)


def names(file: Columns, name: str) -> dict[str, str]:
    """What a file calls each column it has. UserError for two names of one column."""
    keys = set(file.keys())
    found: dict[str, str] = {}
    for column, spellings in NAMES.items():
        present = [s for s in spellings if s in keys]
        if len(present) > 1:
            raise UserError(f"{name}: {present[0]!r} and {present[1]!r} are both {column}; keep one")
        if present:
            found[column] = present[0]
    return found


def read(path: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The columns of a file by the names above, all with one row a step, and what the file calls each.

    Raises UserError where observations, actions, rewards or terminals (or dones) are missing, and
    for arrays that differ in length.
    """
    with opened(path, name) as file:
        called = names(file, name)
        for column in ("observations", "actions", "rewards"):
            if column not in called:
                have = ", ".join(map(repr, file.keys()[:12])) or "nothing"
                raise UserError(f"{name}: there is no {column!r} in {path.name} (found: {have})")
        if "terminals" not in called and "dones" not in called:
            have = ", ".join(map(repr, file.keys()[:12]))
            raise UserError(
                f"{name}: there is no 'terminals' in {path.name} (found: {have}); it says at which steps the"
                " environment ended, zeros where it never did"
            )
        rows = {column: next(iter(file.shape(key)), 0) for column, key in called.items()}
        per_episode = "ends" in called and rows.get("next_observations") != rows["observations"]
        compared = {c: n for c, n in rows.items() if not (per_episode and c == "next_observations")}
        if len(set(compared.values())) > 1:
            words = ", ".join(f"{n} {called[column]}" for column, n in compared.items())
            raise UserError(f"{name}: arrays differ in length: {words}")
        if not rows["observations"]:
            raise UserError(f"{name}: no episodes ({path} has no rows)")
        return {column: file.array(key) for column, key in called.items()}, called
