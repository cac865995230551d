"""Reads OGBench files (npz): states and pixels, one file or the parts of a large set.

    row            0    1   ...  T-1   T     0    1         as published: T + 1 rows for T steps
    observations   s0   s1       sT-1  sT    s0   s1
    actions        a0   a1       aT-1  --    a0   a1
    terminals      0    0        0     1     0    0         end of a trajectory, not of the task

Two further layouts that `ogbench.load_dataset` makes are read too: `next_observations` (T rows) and
`valids` (T + 1 rows, 0 at the last one). No trajectory ends at a goal.

Single tasks get rewards from the recorded state *before* the action (ogbench 1.2): minus the number
of conditions that do not hold yet. Where all hold the bootstrap stops (`terminal`, called a mask of
0 there) and the trajectory goes on. The sparse variant is -1 until all hold, then 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from offbench.data.replay import ReplayData, from_flat
from offbench.errors import UserError
from offbench.tasks import cache
from offbench.tasks.formats.hdf5 import check_room
from offbench.tasks.formats.npz import Npz

# first coordinate of the ball in qpos
_BALL = 15
# first coordinate of the objects in the arm's qpos
_OBJECTS = 14
_CUBE = 7  # coordinates of a cube
_NEAR = 0.04  # metres
# bytes of files; a set in more parts is never in memory whole
LARGE = 1 << 29


def load(
    path: Path | Sequence[Path], *, name: str, task: str | None = None, sparse: bool = False
) -> ReplayData:
    """The dataset in a file, a folder of parts, or the given parts in order.

    `task` is the id of a single-task environment (`cube-single-singletask-task2-v0`), which determines
    rewards and terminals. Without it they are those in the file, if any, else 0 and none.
    Raises UserError naming `name` for a file that is damaged or holds no dataset.
    """
    files = parts(path, name=name)

    options = ["ogbench", task, sparse]

    def build() -> ReplayData:
        return _join(list(pieces()))

    def pieces() -> Iterator[ReplayData]:
        return _following((_load(file, name, task, sparse) for file in files), name)

    if len(files) == 1 and task is None:
        return build()
    if len(files) > 1 and all(f.is_file() for f in files):
        if sum(f.stat().st_size for f in files) > LARGE:
            found = cache.streamed(files, options, pieces())
            if found is not None:
                return found
    return cache.cached(files, options, build)


def parts(path: Path | Sequence[Path], *, name: str) -> list[Path]:
    """The files of a set: a file itself, or the training files in a folder, by name."""
    if not isinstance(path, Path):
        if not path:
            raise UserError(f"{name}: no files")
        return list(path)
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.glob("*.npz") if not p.stem.endswith("-val"))
    if not found:
        raise UserError(f"{name}: there are no .npz files in {path}")
    return found


def has_rewards(path: Path, *, name: str) -> bool:
    """Whether the (first) file of a set has rewards."""
    with Npz(parts(path, name=name)[0], name) as file:
        return "rewards" in file


def _load(path: Path, name: str, task: str | None, sparse: bool) -> ReplayData:
    with Npz(path, name) as file:
        for key in ("observations", "actions", "terminals"):
            if key not in file:
                # says what there is instead
                file.read(key)
        _check_lengths(file, name)
        shape = file.members["observations"].shape
        check_room(12 * prod(shape), f"'observations' {shape} as numbers", name)
        obs, action = (_rows(file.read(key), key, name) for key in ("observations", "actions"))
        n = len(obs)
        after = (
            _rows(file.read("next_observations"), "next_observations", name)
            if "next_observations" in file
            else None
        )
        end = _flag(file.read("terminals"), "terminals", name)
        if after is None and "valids" in file:
            end = ~_flag(file.read("valids"), "valids", name)
        if task is not None:
            reward, terminal = relabel(file, goal(task, name), name, sparse=sparse)
        else:
            reward = file.read("rewards") if "rewards" in file else np.zeros(n, np.float32)
            masks = _flag(file.read("masks"), "masks", name) if "masks" in file else None
            terminal = np.zeros(n, bool) if masks is None else ~masks
    if after is None:
        end[-1:] = True
        # the row of a last observation is no step
        terminal = terminal & ~end
    return from_flat(
        obs, action, reward, terminal, end, next_obs=after, name=name, terminal_inside=True
    )


def _check_lengths(file: Npz, name: str) -> None:
    keys = (
        "observations",
        "actions",
        "terminals",
        "next_observations",
        "valids",
        "rewards",
        "masks",
        "qpos",
        "qvel",
        "button_states",
    )
    length = {
        k: file.members[k].shape[0] if file.members[k].shape else 0 for k in keys if k in file
    }
    if len(set(length.values())) > 1:
        words = ", ".join(f"{n} {key}" for key, n in length.items())
        raise UserError(f"{name}: arrays differ in length: {words}")
    if not length["observations"]:
        raise UserError(f"{name}: no episodes ({file.path.name} has no rows)")


def _rows(x: np.ndarray, key: str, name: str) -> np.ndarray:
    if x.ndim < 2:
        raise UserError(f"{name}: {key} {x.shape} must be rows of numbers, one row a step")
    return x.reshape(len(x), -1)


def _flag(x: np.ndarray, key: str, name: str) -> np.ndarray:
    if x.ndim != 1 or (x.dtype != bool and not ((x == 0) | (x == 1)).all()):
        raise UserError(f"{name}: {key} {x.shape} must be 0 or 1, one a step")
    return x.astype(bool)


def _following(pieces: Iterable[ReplayData], name: str) -> Iterator[ReplayData]:
    """Parts with row and episode numbers continued from the part before."""
    rows = episodes = 0
    like: tuple[int, int] | None = None
    for piece in pieces:
        widths = piece.obs.shape[1], piece.action.shape[1]
        if widths != (like := like or widths):
            raise UserError(f"{name}: its parts differ in dimensions: {sorted({like, widths})}")
        yield piece._replace(last=piece.last + rows, episode=piece.episode + episodes)
        rows += len(piece.last)
        episodes += piece.n_episodes


def _join(pieces: list[ReplayData]) -> ReplayData:
    """Parts one after another, in memory."""
    if len(pieces) == 1:
        return pieces[0]
    import torch

    return ReplayData(*(torch.cat(column) for column in zip(*pieces)))


# --- single tasks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A condition of success: columns of the recorded state near a target."""

    # "qpos" or "button_states"
    column: str
    start: int
    target: np.ndarray  # (k,)
    # distance; None: every one equal, and each is a condition of its own
    within: float | None


def goal(task: str, name: str) -> tuple[Condition, ...]:
    """The success conditions of a single-task environment, read from the environment."""
    from offbench.tasks.environments import make_env, numpy_seed

    env = make_env(task, {}, name)
    try:
        with numpy_seed(0):
            # sets the task
            env.reset(seed=0)
        return _conditions(env.unwrapped, task, name)
    finally:
        env.close()


def _conditions(env: Any, task: str, name: str) -> tuple[Condition, ...]:
    if "maze" in task or "soccer" in task:
        start = 0 if "maze" in task else _BALL
        return (Condition("qpos", start, np.array(env.cur_goal_xy), float(env._goal_tol)),)
    conditions: list[Condition] = []
    cubes = env._num_cubes if "cube" in task or "scene" in task else 0
    for i, xyz in enumerate(np.array(env._data.mocap_pos)[:cubes]):
        conditions.append(Condition("qpos", _OBJECTS + i * _CUBE, xyz, _NEAR))
    if "scene" in task or "puzzle" in task:
        conditions.append(Condition("button_states", 0, np.array(env._target_button_states), None))
    if "scene" in task:
        drawer = _OBJECTS + cubes * _CUBE + env._num_buttons
        for i, at in enumerate((env._target_drawer_pos, env._target_window_pos)):
            conditions.append(Condition("qpos", drawer + i, np.array([at]), _NEAR))
    if not conditions:
        raise UserError(f"{name}: {task} is no single task that data can be labelled for")
    return tuple(conditions)


def relabel(
    file: Npz, conditions: Sequence[Condition], name: str, *, sparse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(rewards (N,), success (N,) bool) of a single task, from the states before the actions."""
    state = {key: file.read(key) for key in {c.column for c in conditions}}
    held: list[np.ndarray] = []
    for c in conditions:
        x, width = state[c.column], len(c.target)
        if x.ndim != 2 or x.shape[1] < c.start + width:
            raise UserError(f"{name}: {c.column} {x.shape} is not the state of this environment")
        x = x[:, c.start : c.start + width]
        if c.within is None:
            held += list((x == c.target).T)
        else:
            held.append(np.linalg.norm(x - c.target, axis=-1) <= c.within)
    reward = (np.sum(held, axis=0) - len(held)).astype(np.float32)
    done = reward == 0
    return (np.where(done, 0, -1).astype(np.float32) if sparse else reward), done
