"""Environments of the user's own: their faults are told in one line, with the line of the user's file."""

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from offbench.errors import UserError, calling
from offbench.tasks.environments import check_goals, evaluation_env, numpy_seed

if TYPE_CHECKING:
    import gymnasium

    from offbench.tasks.task import Task


def played_env(task: "Task") -> "gymnasium.Env":
    """A new evaluation environment of a task.

    What the user's own raises in `reset` and `step`, and observations of another shape than its
    `observation_space`, are a UserError that names it.
    """
    env = evaluation_env(task)
    return _telling_faults(env, str(task.env)) if task.family == "own" else env


def _telling_faults(env: "gymnasium.Env", name: str) -> "gymnasium.Env":
    import gymnasium

    class TellingFaults(gymnasium.Wrapper):
        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            with calling(f"{name}.reset"):
                obs, info = self.env.reset(**kwargs)
            _check_shape(obs, self.env, f"{name}.reset")
            return obs, info

        def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            with calling(f"{name}.step"):
                obs, reward, terminated, truncated, info = self.env.step(action)
            _check_shape(obs, self.env, f"{name}.step")
            return obs, reward, terminated, truncated, info

    return TellingFaults(env)


def _check_shape(obs: Any, env: "gymnasium.Env", what: str) -> None:
    if np.shape(obs) != env.observation_space.shape:
        raise UserError(
            f"{what} returned an observation of shape {np.shape(obs)}, and its observation_space has"
            f" {env.observation_space.shape}"
        )


@cache
def _warn_of_no_limit(name: str) -> None:
    # its packages may be missing where a GPU is tried
    from offbench.tasks.doctor import DataWarning

    warnings.warn(
        f"{name} has no time limit: an episode that it never ends is played for ever;"
        " task.env_kwargs={max_episode_steps: 1000} sets one",
        DataWarning,
        stacklevel=3,
    )


def try_environment(env: "gymnasium.Env", task: "Task") -> None:
    """Resets a played environment, and steps once; warns where nothing says how long an episode may be.

    Raises UserError for what fails, and for a goal of the task that the environment does not know.
    """
    if env.spec is not None and env.spec.max_episode_steps is None:
        _warn_of_no_limit(str(task.env))
    inner: Any = env
    check_goals(inner.env, task)
    if not task.goals:
        with numpy_seed(0):
            env.reset(seed=0)
            obs, reward, *_ = env.step(np.zeros(env.action_space.shape or (), np.float32))
        # in an evaluation it would look like a method that diverged
        for what, numbers in (("reward", reward), ("observation", obs)):
            if not np.isfinite(np.asarray(numbers, float)).all():
                raise UserError(f"{task.env}.step returned the {what} {numbers} in its first step")
