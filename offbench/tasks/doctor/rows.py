"""The input of the doctor's checks: one row per recorded step, episodes one after another."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offbench.data.replay import ReplayData


class Flat(NamedTuple):
    """Raw arrays of a file, one row per recorded step, episodes one after another."""

    observations: NDArray[Any]  # (N, O)
    actions: NDArray[Any]  # (N, A)
    rewards: NDArray[Any]  # (N,)
    terminals: NDArray[Any]  # (N,) the environment ended
    timeouts: NDArray[Any] | None = None  # (N,) the recording was cut
    next_observations: NDArray[Any] | None = None  # (N, O)
    steps: NDArray[Any] | None = None  # (N,) the row is a transition; None: every row is


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a dataset that are not in its arrays; None: not checked."""

    id: str
    max_episode_steps: int | None = None
    # the limit is taken from the data: terminals there are remarked on and never severe
    limit_guessed: bool = False
    score: Literal["return", "success"] | None = None
    ref_min: float | None = None
    ref_max: float | None = None
    # a terminal does not end the trajectory (OGBench single tasks)
    terminal_inside: bool = False
    # episodes were drawn with replacement
    repeats: bool = False
    # the environment moves the agent across the maze
    teleports: bool = False
    # goal-conditioned: no rewards are recorded
    goals: bool = False
    # ids of the sets it is composed of, whose known defects it has
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Any, **changes: Any) -> "Facts":
        """The facts of a task, with `changes`."""
        names = ("max_episode_steps", "score", "ref_min", "ref_max", "terminal_inside")
        known = {n: getattr(task, n) for n in names} | {"teleports": "teleport" in task.id}
        known["goals"] = bool(task.task_ids)
        if not task.scaled:
            known |= {"ref_min": None, "ref_max": None}
        return cls(id=task.id, **(known | changes))


class Rows(NamedTuple):
    """Rows in file order. `gap[i]` lies between row i and row i + 1: False inside an episode."""

    obs: NDArray[Any]  # (R, O)
    action: NDArray[Any]  # (R, A)
    reward: NDArray[Any]  # (R,)
    terminal: NDArray[np.bool_]  # (R,)
    timeout: NDArray[np.bool_]  # (R,)
    step: NDArray[np.bool_]  # (R,) the row is a transition (not a last observation)
    gap: NDArray[np.bool_]  # (R - 1,)

    @property
    def first(self) -> NDArray[np.intp]:
        """(E,) first row of each episode."""
        return np.flatnonzero(np.r_[True, self.gap])

    @property
    def last(self) -> NDArray[np.intp]:
        """(E,) last transition of each episode."""
        ends = np.r_[np.flatnonzero(self.gap), len(self.step) - 1]
        return np.where(self.step[ends], ends, ends - 1)

    @property
    def lengths(self) -> NDArray[np.intp]:
        """(E,) transitions of each episode."""
        return self.last - self.first + 1


def of_replay(data: ReplayData) -> Rows:
    """The rows of a loaded dataset."""
    step = data.valid.cpu().numpy()
    terminal = data.terminal.cpu().numpy().astype(bool)
    gap = ~step[:-1]
    nothing = np.zeros(len(step), np.bool_)
    obs, action, reward = (x.cpu().numpy() for x in (data.obs, data.action, data.reward))
    return Rows(obs, action, reward, terminal, nothing, step, gap)


def of_flat(flat: Flat, ignore: NDArray[np.bool_] | None = None) -> Rows:
    """The rows of a file; time-outs in `ignore` (N,) end no episode."""
    terminal = np.asarray(flat.terminals).astype(bool).reshape(-1)
    timeout = timeouts(flat)
    marks = terminal | (timeout if ignore is None else timeout & ~ignore)
    step = np.ones(len(terminal), np.bool_) if flat.steps is None else np.asarray(flat.steps)
    return Rows(
        two_dimensional(flat.observations),
        two_dimensional(flat.actions),
        np.asarray(flat.rewards).reshape(-1),
        terminal,
        timeout,
        step.astype(bool),
        marks[:-1],
    )


def two_dimensional(x: NDArray[Any]) -> NDArray[Any]:
    """(N, ...) -> (N, features): images flattened, discrete actions as one column."""
    return np.asarray(x).reshape(len(x), -1)


def timeouts(flat: Flat) -> NDArray[np.bool_]:
    """(N,) time-outs; all False without such a column."""
    if flat.timeouts is None:
        return np.zeros(len(flat.terminals), np.bool_)
    return np.asarray(flat.timeouts).astype(bool).reshape(-1)


def is_finite_float(x: NDArray[Any]) -> bool:
    """Whether an array is (N, features) of finite floating-point numbers."""
    return x.ndim == 2 and x.dtype.kind == "f" and bool(np.isfinite(x).all())
