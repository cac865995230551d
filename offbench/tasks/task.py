"""The type `Task`: a dataset, its evaluation environment and its score.

A task is plain data, known before any download: `offbench.tasks.registry` has the task of each id, `locate`
finds and downloads data, `loading` reads them, `environments` makes the environment, `custom` has tasks of
your own data.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offbench.errors import UserError
from offbench.tasks.d4rl_envs import RULES

Family = Literal["d4rl", "minari", "ogbench", "offbench", "own", "composed"]
"""The origin of an id: `offbench` for embedded sets, `own` for your data, `composed` for `mix@...`."""
Loader = Literal["offbench", "d4rl"]
Score = Literal["return", "success"]

_LAYOUT = {"d4rl": "HDF5", "minari": "Minari", "ogbench": "npz", "offbench": "embedded"}
_SCORING = ("score", "ref_min", "ref_max", "max_episode_steps")
# references of unscaled scores in run ids of own data
_PLAIN = {"ref_min": 0.0, "ref_max": 100.0}


class File(NamedTuple):
    """A file of a dataset: its url, and its name under `offbench.tasks.files.cache_dir()`."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file of own data is read: time limit, action bounds, discrete actions."""

    # time limit, of the environment or given
    max_episode_steps: int | None = None
    # whether the time limit was given by the user
    limit_given: bool = False
    # whether actions were recorded in [-1, 1] (actions="unit")
    unit: bool = False
    # (A,) bounds of recorded actions, of the environment or, without one, of the data; None: [-1, 1]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    # number of discrete actions, and the first of them
    n_actions: int | None = None
    first_action: int = 0

    @property
    def scales(self) -> bool:
        """Whether action bounds differ from [-1, 1]."""
        return self.low is not None and set(self.low + (self.high or ())) != {-1.0, 1.0}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset, its evaluation environment and its score, with an id that records refer to."""

    # "offbench/hopper/medium-replay-v0"
    id: str
    family: Family
    # --- the data
    # file or folder of the data; None before the download
    path: Path | None = None
    # of the file, or of the names and checksums of a folder's files; None before the download
    sha256: str | None = None
    # files to download
    files: tuple[File, ...] = ()
    # package that reads the data
    loader: Loader = "offbench"
    # of own data
    reading: Reading | None = None
    # a terminal does not end the recorded episode (OGBench's single tasks)
    terminal_inside: bool = False
    # sizes, where known before the data are read
    obs_dim: int | None = None
    action_dim: int | None = None
    notes: tuple[str, ...] = ()
    # --- the environment
    # gymnasium id; None: no evaluation
    env: str | None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # converts observations: offbench.tasks.environments
    adapter: str | None = None
    # why the environment cannot be used
    refused: str | None = None
    # how it differs from the simulator of the published scores
    differs: str = ""
    # goal-conditioned tasks: the goals, which evaluation episodes cycle through
    task_ids: tuple[int, ...] = ()
    # time limit; 0: unknown before the data are read, then the longest episode
    max_episode_steps: int
    # --- the score
    score: Score
    # returns that score 0 and 100; None: the score is the return
    ref_min: float | None = None
    ref_max: float | None = None
    ref_source: str = ""

    @property
    def version(self) -> str:
        """The last part of the id: "v2"."""
        return self.id.rsplit("-", 1)[-1]

    @property
    def urls(self) -> tuple[str, ...]:
        """Urls of the files."""
        return tuple(file.url for file in self.files)

    @property
    def summary(self) -> str:
        """One line for listings."""
        env = self.env or "no environment here"
        goals = f" on {len(self.task_ids)} goals" if self.goals else ""
        return f"{_LAYOUT[self.family]}, evaluated in {env}{goals}, score: {self.score}"

    @property
    def dataset(self) -> str:
        """The name of the dataset in records, with the loader if it is not offbench's."""
        return self.id if self.loader == "offbench" else f"{self.id}, read by {self.loader}"

    @property
    def scaled(self) -> bool:
        """Whether scores are on the 0-100 scale; without references they are returns."""
        return self.score == "success" or self.ref_min is not None

    def normalise(self, episode_return: float, success: bool | None) -> float:
        """The score of an episode: 100 x (return - ref_min) / (ref_max - ref_min), the return without
        references; for tasks scored by success 100 or 0."""
        if self.score == "success":
            return 100.0 * bool(success)
        if self.ref_min is None or self.ref_max is None:
            return episode_return
        return 100.0 * (episode_return - self.ref_min) / (self.ref_max - self.ref_min)

    @property
    def rules(self) -> dict[str, str]:
        """Evaluation rules beyond the environment's id and arguments, hashed into the run id. Empty for
        embedded sets and OGBench."""
        found = {}
        if self.adapter in RULES:
            found["rules"] = f"{self.adapter}/{RULES[self.adapter].version}"
        ant_maze = (self.env or "").startswith("AntMaze")
        if self.score == "success" and (self.family == "own" or ant_maze):
            found["success"] = "at any step"
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """The environment as hashed into the run id; for own data with the references of the score."""
        found: dict[str, Any] = {"id": self.env, "kwargs": dict(self.env_kwargs), **self.rules}
        if self.family == "own":
            found |= {k: getattr(self, k) for k in _SCORING}
            found |= {} if self.ref_min is not None else _PLAIN
            if self.reading is not None:
                found["actions"] = "unit" if self.reading.low is None else "env"
            if self.goals:
                found["goals"] = list(self.task_ids)
        return found

    @property
    def check_command(self) -> str:
        """The command that shows the dataset doctor's report of this task."""
        if self.family != "own":
            return f"offbench data check {self.id}"
        more = f" --env {shlex.quote(self.env)}" if self.env else ""
        if self.reading is not None and self.reading.limit_given:
            more += f" --limit {self.max_episode_steps}"
        if self.reading is not None and self.reading.unit:
            more += " --actions unit"
        return f"offbench data check {shlex.quote(str(self.path))}{more}"

    @property
    def goals(self) -> bool:
        """Whether it is goal-conditioned: no rewards, a goal with each observation."""
        return bool(self.task_ids)

    def check_trainable(self) -> None:
        """Raises UserError for a task whose environment is refused."""
        if self.refused is not None:
            raise UserError(f"{self.id}: {self.refused}")

    def check_view(self, method: str, *, goals: bool) -> None:
        """Raises UserError where one of task and view has goals and the other has not."""
        if self.goals and not goals:
            single = self.id.removesuffix("-val").removesuffix("-v0")
            tasks = f", or train on one of its tasks, {single}-singletask-v0" * (
                self.family == "ogbench"
            )
            raise UserError(
                f"{self.id} is goal-conditioned and {method} has a view without goals: use {method}+goal{tasks}"
            )
        if goals and not self.goals:
            # files of the user's
            hint = (
                "name them by task.goals=[...]" if self.family == "own" else "offbench list tasks"
            )
            raise UserError(
                f"{self.id} has no goals: view=goal is for goal-conditioned tasks ({hint})"
            )

    def goal_of(self, episode: int) -> int | None:
        """The number of the goal of an evaluation episode; None for tasks without goals."""
        return self.task_ids[episode % len(self.task_ids)] if self.task_ids else None

    def reset_options(self, episode: int) -> dict[str, Any] | None:
        """Options of `reset` for an evaluation episode: the goal, of goal-conditioned tasks."""
        goal = self.goal_of(episode)
        return None if goal is None else {"task_id": goal}
