"""A task: a dataset, the environment that evaluates what was trained on it, and how a return becomes a score.

Plain data, known without reading any: `offbench.tasks.registry` describes every id, `loading` finds,
downloads and reads the data, `environments` makes the environment, `custom` describes your own data.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offbench.errors import UserError
from offbench.tasks.d4rl_envs import RULES

Family = Literal["d4rl", "minari", "ogbench", "offbench", "own", "composed"]
"""Whose id it is: `offbench` for embedded sets, `own` for your data, `composed` for `mix@...`."""
Loader = Literal["offbench", "d4rl"]
Score = Literal["return", "success"]

_LAYOUT = {"d4rl": "HDF5", "minari": "Minari", "ogbench": "npz", "offbench": "embedded"}
_SCORING = ("score", "ref_min", "ref_max", "max_episode_steps")
# references of a score that is the return itself, as runs of own data have recorded them
_PLAIN = {"ref_min": 0.0, "ref_max": 100.0}


class File(NamedTuple):
    """One file of a set: where it comes from, and its name under `offbench.tasks.files.cache_dir()`."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the file of one's own data is read: what its environment and its owner say of it."""

    # of the environment, or given
    max_episode_steps: int | None = None
    # whether the owner gave it, or the environment is asked
    limit_given: bool = False
    # the owner says that actions were recorded in [-1, 1]
    unit: bool = False
    # (A,) bounds that recorded actions are scaled from, of the environment or, without one, of what was
    # recorded; None: they are in [-1, 1]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    # choices of a discrete environment, and the number of the first
    n_actions: int | None = None
    first_action: int = 0

    @property
    def scales(self) -> bool:
        """Whether the environment takes other actions than those in [-1, 1]."""
        return self.low is not None and set(self.low + (self.high or ())) != {-1.0, 1.0}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset, its environment and its score, by an id that records, presets and rows are keyed by."""

    # "offbench/hopper/medium-replay-v0"
    id: str
    family: Family
    # --- the data
    # their file or folder; None while they have not been downloaded
    path: Path | None = None
    # of the file, or of the names and sums of a folder's files; None while they have not been downloaded
    sha256: str | None = None
    # where they are downloaded from
    files: tuple[File, ...] = ()
    # what reads them
    loader: Loader = "offbench"
    # your own file: its environment's time limit, action bounds and choices
    reading: Reading | None = None
    # a terminal does not end the recorded episode (OGBench's single tasks)
    terminal_inside: bool = False
    # features, where known before the data are read
    obs_dim: int | None = None
    action_dim: int | None = None
    notes: tuple[str, ...] = ()
    # --- the environment
    # gymnasium id; None where no policy can be evaluated
    env: str | None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # how it shows what the data have: offbench.tasks.environments
    adapter: str | None = None
    # why no policy can be evaluated in it
    refused: str | None = None
    # how it differs from the simulator of the published scores
    differs: str = ""
    # goal-conditioned: the goals that evaluation episodes are dealt to, in turn
    task_ids: tuple[int, ...] = ()
    # 0 where neither an environment nor the owner says: the longest episode
    max_episode_steps: int
    # --- the score
    score: Score
    # returns that score 0 and 100; None: a score is the return itself
    ref_min: float | None = None
    ref_max: float | None = None
    ref_source: str = ""

    @property
    def version(self) -> str:
        """The last part of the id: "v2"."""
        return self.id.rsplit("-", 1)[-1]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(file.url for file in self.files)

    @property
    def summary(self) -> str:
        """One line for a list."""
        env = self.env or "no environment here"
        return f"{_LAYOUT[self.family]}, evaluated in {env}, score: {self.score}"

    @property
    def dataset(self) -> str:
        """What is trained on, in words of a record; `sha256` says the same in bytes."""
        return self.id if self.loader == "offbench" else f"{self.id}, read by {self.loader}"

    @property
    def scaled(self) -> bool:
        """Whether a score is on the 0-100 scale; without references it is the return itself."""
        return self.score == "success" or self.ref_min is not None

    def normalise(self, episode_return: float, success: bool | None) -> float:
        """100 x (return - ref_min) / (ref_max - ref_min), the return itself without references; of a
        task scored by success 100 for a success and 0 otherwise."""
        if self.score == "success":
            return 100.0 * bool(success)
        if self.ref_min is None or self.ref_max is None:
            return episode_return
        return 100.0 * (episode_return - self.ref_min) / (self.ref_max - self.ref_min)

    @property
    def rules(self) -> dict[str, str]:
        """What decides a score besides an environment's name and arguments: part of a run's identity.
        Nothing for embedded sets and OGBench."""
        found = {}
        if self.adapter in RULES:
            found["rules"] = f"{self.adapter}/{RULES[self.adapter].version}"
        ant_maze = (self.env or "").startswith("AntMaze")
        if self.score == "success" and (self.family == "own" or ant_maze):
            found["success"] = "at any step"
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """The environment, and for own data, whose id says nothing of it, how a return is scored: part of
        a run's identity."""
        found: dict[str, Any] = {"id": self.env, "kwargs": dict(self.env_kwargs), **self.rules}
        if self.family == "own":
            found |= {k: getattr(self, k) for k in _SCORING}
            found |= {} if self.ref_min is not None else _PLAIN
            if self.reading is not None:
                found["actions"] = "unit" if self.reading.low is None else "env"
        return found

    @property
    def check_command(self) -> str:
        """What to type to see what the dataset doctor says of the set, read as this task reads it."""
        if self.family != "own":
            return f"offbench data check {self.id}"
        more = f" --env {shlex.quote(self.env)}" if self.env else ""
        if self.reading is not None and self.reading.limit_given:
            more += f" --limit {self.max_episode_steps}"
        if self.reading is not None and self.reading.unit:
            more += " --actions unit"
        return f"offbench data check {shlex.quote(str(self.path))}{more}"

    def check_trainable(self) -> None:
        """Raises UserError for a task whose environment is refused, and for a goal-conditioned one:
        nothing here trains a policy that is given a goal. The latter can be evaluated
        (`offbench.rollout.evaluate`)."""
        if self.refused is not None:
            raise UserError(f"{self.id}: {self.refused}")
        if not self.task_ids:
            return
        single = self.id.removesuffix("-val").removesuffix("-v0")
        raise UserError(
            f"{self.id} is goal-conditioned (no rewards, a goal beside each observation) and no method "
            f"here is; train on one of its tasks, {single}-singletask-task1-v0 to -task5-v0, or on the "
            f"default one, {single}-singletask-v0"
        )

    def reset_options(self, episode: int) -> dict[str, Any] | None:
        """What an environment's `reset` is told at the beginning of an evaluation episode."""
        if not self.task_ids:
            return None
        return {"task_id": self.task_ids[episode % len(self.task_ids)]}
