"""Minari datasets (HDF5) -> episodes.

Minari keeps T + 1 observations and T actions per episode, and terminations apart from truncations;
both facts are kept (concatenating the observations of all episodes beside the actions, as is easily
done, shifts every episode but the first).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offbench.data import Episode, ReplayData, from_episodes
from offbench.errors import UserError


def load(folder: Path, *, name: str, terminal_inside: bool = False) -> ReplayData:
    """The dataset in a Minari folder (the one that holds `data/`), actions scaled to [-1, 1].

    Raises UserError naming `name` where the file is truncated or its content does not pass
    `offbench.data.from_episodes`, or where no episode ends.
    """
    import h5py

    path = folder / "data" / "main_data.hdf5"
    try:
        with h5py.File(path, "r") as file:
            low, high = _action_bounds(folder)
            episodes = list(_episodes(file, low, high))
    except (OSError, KeyError) as error:
        raise UserError(f"{name}: {path} cannot be read as a Minari file ({error})") from None
    if not any(ended for _, ended in episodes):
        raise UserError(f"{name}: no episode ends anywhere (no termination and no truncation)")
    return from_episodes((e for e, _ in episodes), name=name, terminal_inside=terminal_inside)


def _episodes(file, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[Episode, bool]]:
    groups = sorted(
        (k for k in file if k.startswith("episode_")), key=lambda k: int(k.removeprefix("episode_"))
    )
    for group in (file[k] for k in groups):
        terminal = group["terminations"][()].astype(bool)
        ended = bool(terminal.any() or group["truncations"][()].any())
        action = 2 * (group["actions"][()] - low) / (high - low) - 1
        yield Episode(group["observations"][()], action, group["rewards"][()], terminal), ended


def _action_bounds(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import json

    from minari.serialization import deserialize_space

    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    space = deserialize_space(metadata["action_space"])
    return space.low.astype(np.float64), space.high.astype(np.float64)
