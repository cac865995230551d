"""Reads D4RL files with the `d4rl` package (`loader=d4rl`): the transitions that published code trained
on, with their faults.

`OfflineEnv.get_dataset` and `qlearning_dataset` are the package's own. They drop the last row of
every episode that ends by time-out and the last row of the file even where the file has
`next_observations`, take every time-out for an end, follow a recording across a cut without a mark,
and give a terminal row the first observation of the next episode as its next one (which no target
uses). Our own loader (`offbench.tasks.formats.d4rl`) differs in all of these.

The package imports `mujoco_py`, which stops where the old simulator is not installed; it is masked,
as no environment is made.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from offbench.data.replay import ReplayData, from_flat
from offbench.errors import UserError, in_one_line
from offbench.tasks import cache
from offbench.tasks.formats import d4rl


def version(name: str) -> str:
    """The version of the installed package. UserError naming the dataset where there is none."""
    try:
        return importlib.metadata.version("d4rl")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{name}: loader=d4rl needs the d4rl package; install it with: pip install 'offbench[d4rl]'"
        ) from None


def load(path: Path, *, name: str, max_episode_steps: int | None = None) -> ReplayData:
    """The transitions of `d4rl.qlearning_dataset`. UserError for a damaged file, as from our loader."""
    return cache.cached(
        [path],
        ["d4rl package", version(name), max_episode_steps],
        lambda: _load(path, name, max_episode_steps),
    )


def _load(path: Path, name: str, max_episode_steps: int | None) -> ReplayData:
    # nothing that ours refuses gets to h5py
    actions = d4rl.read(path, name=name).action.shape[1:]
    package = _package(name)
    env = SimpleNamespace(
        observation_space=SimpleNamespace(shape=None),
        action_space=SimpleNamespace(shape=actions),
        _max_episode_steps=max_episode_steps or 1000,
    )
    # hides d4rl's progress bar
    with contextlib.redirect_stderr(io.StringIO()):
        raw = package.offline_env.OfflineEnv.get_dataset(env, str(path))
        transitions = package.qlearning_dataset(env, dataset=raw)
    if not len(transitions["rewards"]):
        raise UserError(f"{name}: d4rl.qlearning_dataset leaves no transition of {path}")
    end = transitions["terminals"].copy()
    end[:-1] |= (transitions["next_observations"][:-1] != transitions["observations"][1:]).any(1)
    end[-1] = True
    return from_flat(
        transitions["observations"],
        transitions["actions"],
        transitions["rewards"],
        transitions["terminals"],
        end,
        next_obs=transitions["next_observations"],
        name=name,
    )


def _package(name: str) -> Any:
    version(name)
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    masked = "mujoco_py" not in sys.modules
    if masked:
        sys.modules["mujoco_py"] = None  # type: ignore[assignment]  # an ImportError, which d4rl expects
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            package = importlib.import_module("d4rl")
            importlib.import_module("d4rl.offline_env")
    # it and the old gym fail in many ways
    except Exception as error:
        words = in_one_line(error)[:200]
        raise UserError(f"{name}: the d4rl package cannot be imported ({words})") from None
    finally:
        if masked:
            sys.modules.pop("mujoco_py", None)
    return package
