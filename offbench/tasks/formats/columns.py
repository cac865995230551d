"""Columns of a file with one row per step, under their common names.

    observations       observations, observation, obs, states
    actions            actions, action
    rewards            rewards, reward
    terminals          terminals, terminal, terminations, terminated: the environment ended
    timeouts           timeouts, timeout, truncations, truncated: a time limit, or the recorder, cut the episode
    ends               ends, episode_terminals, episode_ends: the last row of an episode, for either reason
    dones              dones, done: an end that may be either
    episodes           episodes, episode, episode_id, trajectory_id: a number for each episode
    starts             starts, index: the first row of each episode (NeoRL); not where it has a number a step
    next_observations  next_observations, next_observation, next_obs, next_states

HDF5 and npz are read alike; d3rlpy's files (version 1) have `episode_terminals`. A file with two
names of one column is refused. Other names are given as a mapping from a column to the keys that are
concatenated to it.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from offbench.errors import UserError, nearest
from offbench.tasks.formats import hdf5
from offbench.tasks.formats.npz import Npz

if TYPE_CHECKING:
    import h5py

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "observations": ("observations", "observation", "obs", "states"),
        "actions": ("actions", "action"),
        "rewards": ("rewards", "reward"),
        "terminals": ("terminals", "terminal", "terminations", "terminated"),
        "timeouts": ("timeouts", "timeout", "truncations", "truncated"),
        "ends": ("ends", "episode_terminals", "episode_ends"),
        "dones": ("dones", "done"),
        "episodes": ("episodes", "episode", "episode_id", "trajectory_id"),
        "starts": ("starts", "index"),
        "next_observations": ("next_observations", "next_observation", "next_obs", "next_states"),
    }
)
Keys = Mapping[str, tuple[str, ...]]
"""Column -> the keys of a file that are concatenated to it."""


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
        return hdf5.shape(*self._at(key))

    def array(self, key: str) -> np.ndarray:
        return hdf5.array(*self._at(key))

    def _at(self, key: str) -> "tuple[h5py.Group, str, str]":
        """The group that `a/b/c` lies in, and `c`; no link is followed on the way."""
        *above, last = key.split("/")
        parent = self.file
        for part in above:
            parent = hdf5.group(parent, part, self.name)
        return parent, last, self.name


class _Npz:
    def __init__(self, file: Npz):
        self.file = file

    def keys(self) -> list[str]:
        return list(self.file.members)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.file.member(key).shape

    def array(self, key: str) -> np.ndarray:
        return self.file.read(key)


Arrays = Mapping[str, Callable[[], np.ndarray]]


class Lazy:
    """Arrays by name, read lazily; `parts` can be read but are not in `keys`."""

    def __init__(self, content: Arrays, name: str, parts: Arrays | None = None):
        self.content, self.name, self.loaded = content, name, dict[str, np.ndarray]()
        self.all = {**(parts or {}), **content}

    def keys(self) -> list[str]:
        return list(self.content)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.array(key).shape

    def array(self, key: str) -> np.ndarray:
        if key not in self.all:
            raise UserError(f"{self.name}: there is no {key!r}: {nearest(key, self.all)}")
        if key not in self.loaded:
            self.loaded[key] = self.all[key]()
        return self.loaded[key]


@contextmanager
def opened(path: Path, name: str) -> Iterator[Columns]:
    """The arrays of an HDF5 or npz file; nothing is unpickled and no link is followed."""
    if path.suffix == ".npz":
        with Npz(path, name) as file:
            yield _Npz(file)
    else:
        with hdf5.opened(path, name) as file:
            yield _Hdf5(file, name)


def names(
    file: Columns, name: str, given: Keys = MappingProxyType({})
) -> dict[str, tuple[str, ...]]:
    """Column -> keys in a file; `given` ones win over the common names.

    UserError for two names of one column.
    """
    keys = set(file.keys())
    found: dict[str, tuple[str, ...]] = {}
    for column, spellings in NAMES.items():
        present = [s for s in spellings if s in keys]
        if column in given:
            found[column] = given[column]
        elif len(present) > 1:
            raise UserError(
                f"{name}: {present[0]!r} and {present[1]!r} are both {column}; keep one"
            )
        elif present:
            found[column] = (present[0],)
    return found


def read(path: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(columns, their names in the file) of a file with common names; see `gather`."""
    with opened(path, name) as file:
        return gather(file, path, name)


def gather(
    file: Columns, path: Path, name: str, given: Keys = MappingProxyType({})
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(columns with one row per step, their names in the file) of an open file.

    Raises UserError where observations, actions, rewards or terminals (or dones) are missing, and
    for arrays that differ in length.
    """
    keys = names(file, name, given)
    have = ", ".join(map(repr, file.keys()[:12])) or "nothing"
    for column in ("observations", "actions", "rewards"):
        if column not in keys:
            raise UserError(
                f"{name}: there is no {column!r} in {path.name} (found: {have}){_elsewhere(file, path)}"
            )
    if "terminals" not in keys and "dones" not in keys:
        raise UserError(
            f"{name}: there is no 'terminals' in {path.name} (found: {have}); it says at which steps the"
            " environment ended, zeros where it never did"
        )
    rows = {c: [next(iter(file.shape(key)), 0) for key in parts] for c, parts in keys.items()}
    if "starts" in keys and "starts" not in given and rows["starts"] == rows["observations"]:
        del keys["starts"], rows["starts"]
    called = {column: "+".join(parts) for column, parts in keys.items()}
    per_episode = "ends" in keys and rows.get("next_observations") != rows["observations"]
    apart = {"starts"} | ({"next_observations"} if per_episode else set())
    compared = {c: n for c, n in rows.items() if c not in apart}
    if len({n for column in compared.values() for n in column}) > 1:
        words = ", ".join(f"{n[0]} {called[column]}" for column, n in compared.items())
        raise UserError(f"{name}: arrays differ in length: {words}")
    if not rows["observations"][0]:
        raise UserError(f"{name}: no episodes ({path} has no rows)")
    return {column: _side_by_side(file, parts) for column, parts in keys.items()}, called


def _side_by_side(file: Columns, keys: tuple[str, ...]) -> np.ndarray:
    """(N, ...) of one key as it is, (N, features) of several."""
    if len(keys) == 1:
        return file.array(keys[0])
    parts = [file.array(key) for key in keys]
    return np.concatenate([x.reshape(len(x), -1) for x in parts], axis=1)


def _elsewhere(file: Columns, path: Path) -> str:
    """Advice for a file of another format, by its top-level keys."""
    keys = set() if path.suffix == ".npz" else set(file.keys())
    if "episode_0" in keys:
        return "; a Minari set is given as the folder that holds `data`"
    for layout, mark in (("d3rlpy", "num_episodes"), ("robomimic", "data")):
        if mark in keys:
            return f"; {layout}'s layout is written as offbench's once: {import_command(path)}"
    return ""


def at(path: Path, name: str) -> str:
    """The beginning of a message: the name, and the path if it differs."""
    return name if name == str(path) else f"{name}: {path}"


def import_command(path: Path) -> str:
    """The command that converts a file of another format."""
    return f"offbench data import {shlex.quote(str(path))} --to {shlex.quote(path.stem + '-offbench.npz')}"
