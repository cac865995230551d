"""HDF5 files of d3rlpy and robomimic -> the columns of `offbench.tasks.formats.columns`."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offbench.errors import UserError
from offbench.tasks.formats import hdf5
from offbench.tasks.formats.columns import Columns, Keys, Lazy

if TYPE_CHECKING:
    import h5py


@contextmanager
def read_d3rlpy(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    """The columns of a d3rlpy file of version 1 or 2."""
    with hdf5.opened(path, name) as file:
        if hdf5.has(file, "num_episodes"):
            yield _d3rlpy_2(file, name), {}
            return
        keys = ("observations", "actions", "rewards", "terminals", "episode_terminals")
        content: dict[str, Callable[[], np.ndarray]] = {
            k: partial(hdf5.array, file, k, name) for k in keys if hdf5.has(file, k)
        }
        if "actions" in content and hdf5.has(file, "discrete_action"):
            discrete = bool(hdf5.array(file, "discrete_action", name).any())
            content["actions"] = lambda: _of_kind(hdf5.array(file, "actions", name), discrete, name)
        yield Lazy(content, name), {}


def _of_kind(action: np.ndarray, discrete: bool, name: str) -> np.ndarray:
    """Discrete actions as whole numbers, continuous ones as floats."""
    if not discrete:
        return action if action.dtype.kind == "f" else action.astype(np.float64)
    if not np.array_equal(action, np.round(action)):
        raise UserError(f"{name}: discrete_action is set, and actions are not whole numbers")
    return action.astype(np.int64)


def _d3rlpy_2(file: "h5py.File", name: str) -> Columns:
    count = int(hdf5.array(file, "num_episodes", name).ravel()[:1].sum())
    if not 0 < count <= len(file):
        raise UserError(f"{name}: num_episodes says {count}, which the file does not hold")

    def episodes(key: str) -> Iterator[np.ndarray]:
        for i in range(count):
            x = hdf5.array(file, f"{key}_{i}", name)
            if x.ndim == 0:
                raise UserError(f"{name}: {key}_{i} is a single number, one row a step is expected")
            yield x

    def last_rows(flags: list[bool]) -> np.ndarray:
        """(N,) bool: the flag of an episode at its last row."""
        lengths = [len(x) for x in episodes("actions")]
        if min(lengths) == 0:
            raise UserError(f"{name}: actions_{lengths.index(0)} has no rows")
        found = np.zeros(sum(lengths), bool)
        found[np.cumsum(lengths) - 1] = flags
        return found

    if hdf5.has(file, "observations_0_0"):
        raise UserError(
            f"{name}: its observations are tuples; write them as one array, side by side"
        )
    terminated = lambda: [
        bool(hdf5.array(file, f"terminated_{i}", name).any()) for i in range(count)
    ]
    column = lambda k: concatenated(list(episodes(k)), k, name)
    content: dict[str, Callable[[], np.ndarray]] = {
        k: partial(column, k) for k in ("observations", "actions", "rewards")
    }
    content["terminals"] = lambda: last_rows(terminated())
    content["ends"] = lambda: last_rows([True] * count)
    return Lazy(content, name)


def concatenated(parts: list[np.ndarray], key: str, name: str) -> np.ndarray:
    shapes = {x.shape[1:] for x in parts}
    if len(shapes) > 1:
        raise UserError(
            f"{name}: {key} differs in shape from episode to episode: {sorted(shapes)[:4]}"
        )
    return np.concatenate(parts)


@contextmanager
def read_robomimic(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    """The columns of a robomimic file: its demonstrations one after another, in order of number."""
    with hdf5.opened(path, name) as file:
        data = hdf5.group(file, "data", name)
        number = {k: int(k[5:]) for k in data if re.fullmatch(r"demo_\d{1,9}", k)}
        demos = [hdf5.group(data, k, name) for k in sorted(number, key=number.__getitem__)]
        if not demos:
            raise UserError(
                f"{name}: there is no demo_0 in `data` (found: {', '.join(list(data)[:12]) or 'nothing'})"
            )
        keys = [k for k in demos[0] if k not in ("obs", "next_obs")]
        for folder in ("obs", "next_obs"):
            if hdf5.has(demos[0], folder):
                keys += [f"{folder}/{k}" for k in sorted(hdf5.group(demos[0], folder, name))]

        def array(demo: "h5py.Group", key: str) -> np.ndarray:
            folder, _, last = key.rpartition("/")
            x = hdf5.array(
                hdf5.group(demo, folder, name) if folder else demo, last, f"{name}: {demo.name}"
            )
            if x.ndim == 0:
                raise UserError(
                    f"{name}: {demo.name}/{key} is a single number, one row a step is expected"
                )
            return x

        column = lambda k: concatenated([array(d, k) for d in demos], k, name)
        content: dict[str, Callable[[], np.ndarray]] = {k: partial(column, k) for k in keys}
        lengths = lambda: [len(array(d, "actions")) for d in demos]
        content["demo"] = lambda: np.repeat(np.arange(len(demos)), lengths())
        yield Lazy(content, name), _robomimic_columns(demos[0], keys, name)


def _robomimic_columns(demo: "h5py.Group", keys: list[str], name: str) -> Keys:
    """Concatenates the vectors of `obs`, and of `next_obs` if complete."""
    folder = hdf5.group(demo, "obs", name) if hdf5.has(demo, "obs") else {}
    vectors = [
        k for k in keys if k.startswith("obs/") and len(hdf5.shape(folder, k[4:], name)) <= 2
    ]
    known: dict[str, tuple[str, ...]] = {"episodes": ("demo",)}
    if vectors:
        known["observations"] = tuple(vectors)
        after = tuple(f"next_{k}" for k in vectors)
        if set(after) <= set(keys):
            known["next_observations"] = after
    return known
