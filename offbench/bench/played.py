"""Kept policies played again, decision by decision, for `offbench diagnose`.

What a critic says of a decision is compared with the discounted return from there on. Episodes are
therefore played on beyond the time limit of the task, until they end or less than 1 % of a return's
horizon is left out: critics know no time limit. Scores, lengths and decisions are those within the limit.

Of goal-conditioned tasks the policies without values play, too; in a maze the places they came by are kept,
and of methods with sub-goals every `subgoal_steps` the state they head for (`offbench.bench.subgoals`).

A *control* executes a fixed number of steps: of the proposals the one whose prefix of that length has the
largest value. It has the critic, the episodes and the noise of the policy that it is compared with.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from offbench.bench.policy import Loaded
from offbench.bench.subgoals import CANDIDATES, has_subgoals, nearest_states
from offbench.data.goals import FittedGoal
from offbench.errors import UserError
from offbench.results.decisions import CUT_SHORT, typed
from offbench.rollout import EnvPool, PlayedStep, Values, evaluate, make_policy
from offbench.tasks.environments import maze_walls
from offbench.tasks.loading import load_data
from offbench.tasks.task import Task
from offbench.types import Policy

MOST_BEYOND = 1000
"""Steps beyond the time limit at most; returns of what then goes on are marked as cut short."""


def play(loaded: Loaded, task: Task, *, episodes: int, n_envs: int = 5) -> pd.DataFrame:
    """The decisions of a kept policy and of its controls, in `offbench.results.decisions.DECISION_SCHEMA`
    but for `run_id`.

    Raises:
        UserError: its method says no values, or what they need was not kept.
    """
    method = loaded.method
    valued = hasattr(method, "value")
    if not valued and not task.goals:
        raise UserError(f"{loaded.run.method} says no values of its decisions")
    pool = EnvPool(longer(task, beyond(loaded.pipeline.view.gamma)))
    maze = task.goals and maze_walls(pool.take(1)[0]) is not None
    parts = []
    try:
        for control in (None, *controls(loaded)):
            policy = make_policy(method, loaded.pipeline, values="every", length=control)
            # a policy without values has no discount of its own
            policy = policy._replace(gamma=policy.gamma or loaded.pipeline.view.gamma)
            watch = pool.watch = Decisions(policy, task, maze=maze)
            how: dict[str, Any] = {"episodes": episodes, "stream": "played", "n_envs": n_envs}
            evaluate(policy, loaded.state, pool, seeds=[loaded.run.seed], **how)
            parts.append(watch.frame().assign(control=control))
            if maze and has_subgoals(method):
                parts[-1] = _with_subgoals(parts[-1], watch.seen, loaded, task)
            # on the way to goals, places and successes say something without values
            unknown = valued and loaded.kind == "policy" and parts[-1]["value"].isna().all()
            if unknown and not task.goals:
                raise UserError(
                    "only the policy was kept, and its values need more: train it with keep=state"
                )
    finally:
        pool.close()
    return typed(pd.concat([part.astype({"control": "Int64"}) for part in parts]))


def _with_subgoals(
    rows: pd.DataFrame, seen: dict[tuple[int, int], np.ndarray], loaded: Loaded, task: Task
) -> pd.DataFrame:
    """The decisions with the places they head for, every `subgoal_steps` of an episode."""
    view = loaded.pipeline.view
    every = view.goal.subgoal_steps if isinstance(view, FittedGoal) else 1
    marked = rows.index[rows["step"] % every == 0]
    data = load_data(task, gamma=view.gamma, defects="ignore")[0]
    at = data.valid.nonzero().squeeze(1)
    at = at[:: max(1, len(at) // CANDIDATES)]
    states = data.obs[at].numpy()
    obs = np.stack([seen[e, t] for e, t in rows.loc[marked, ["episode", "step"]].to_numpy()])
    found = nearest_states(loaded, states, obs)
    rows.loc[marked, ["subgoal_x", "subgoal_y"]] = states[found, :2].astype(float)
    return rows


def controls(loaded: Loaded) -> Iterator[int]:
    """The lengths that the policy can be asked for; none where it does not choose."""
    chunk = loaded.pipeline.spec(loaded.spec).chunk
    if chunk > 1 and hasattr(loaded.method, "act_for"):
        yield from range(1, chunk + 1)


def longer(task: Task, beyond: int) -> Task:
    """The task with a later time limit, which ends the same episodes but for those it would cut."""
    limit = task.max_episode_steps + beyond
    return replace(task, env_kwargs={**task.env_kwargs, "max_episode_steps": limit})


def beyond(gamma: float) -> int:
    """Steps after which less than CUT_SHORT of a return's horizon is left out."""
    steps = math.ceil(math.log(CUT_SHORT) / math.log(gamma)) if 0 < gamma < 1 else MOST_BEYOND
    return min(steps, MOST_BEYOND)


@dataclass
class _Episode:
    # per decision: step, length, value, distance
    decisions: list[tuple[int, int, float, float | None]] = field(default_factory=list)
    # per step, as in the method's data
    rewards: list[float] = field(default_factory=list)
    # of raw rewards, and the success, within the time limit
    total: float = 0.0
    success: bool | None = None


class Decisions:
    """The decisions of one policy's episodes, from the steps that an `EnvPool` tells it."""

    def __init__(self, policy: Policy, task: Task, *, maze: bool = False):
        assert policy.gamma is not None
        self.policy, self.gamma, self.task, self.maze = policy, policy.gamma, task, maze
        self.rows: list[dict[str, Any]] = []
        # in a maze, the observation at an episode's step
        self.seen: dict[tuple[int, int], np.ndarray] = {}
        self._open: dict[int, _Episode] = {}

    def __call__(self, step: PlayedStep) -> None:
        episode = self._open.setdefault(step.episode, _Episode())
        if step.t < self.task.max_episode_steps:
            if (made := decision(step.memory, step.slot)) is not None:
                episode.decisions.append((step.t, *made, step.distance))
                if self.maze and step.obs is not None:
                    self.seen[step.episode, step.t] = step.obs
            episode.total += float(step.reward)
            success = step.info.get("success")
            # as `offbench.rollout.evaluate` counts them
            if self.task.score == "success":
                success = bool(episode.success) or bool(success)
            episode.success = None if success is None else bool(success)
        episode.rewards.append(self.policy.reward(step.reward))
        if step.terminated or step.truncated:
            self._close(step.episode, step.terminated)

    def _close(self, number: int, terminated: bool) -> None:
        episode = self._open.pop(number)
        returns = discounted(episode.rewards, self.gamma)
        n, limit = len(returns), self.task.max_episode_steps
        score = self.task.normalise(episode.total, episode.success)
        common: dict[str, Any] = {"episode": number, "steps": min(n, limit)}
        common |= {"success": episode.success, "score": score}
        for t, length, value, distance in episode.decisions:
            row = {"step": t, "length": length, "value": value, "distance": distance}
            row |= {"discounted_return": returns[t]}
            row |= {"left_out": 0.0 if terminated else self.gamma ** (n - t)}
            row |= _places(self.seen.get((number, t)))
            self.rows.append(common | row)

    def frame(self) -> pd.DataFrame:
        """One row per decision, in the order of episodes and steps."""
        frame = pd.DataFrame(self.rows).sort_values(["episode", "step"], ignore_index=True)
        return frame.astype({"distance": "Float64", "success": "boolean"})


def _places(obs: np.ndarray | None) -> dict[str, float]:
    """Where the agent and its goal are, from an observation with a goal in a maze."""
    if obs is None:
        return {}
    goal = obs[len(obs) // 2 :]
    found = {"x": obs[0], "y": obs[1], "goal_x": goal[0], "goal_y": goal[1]}
    return {name: float(x) for name, x in found.items()}


def decision(memory: Any, slot: tuple[int, int]) -> tuple[int, float] | None:
    """(steps planned, value) where a decision was made at this step; None where a chunk goes on.

    The value is nan of a method that says none.
    """
    values = getattr(memory, "inner", memory)
    value = float(values.value[slot]) if isinstance(values, Values) else math.nan
    plan = getattr(memory, "plan", None)
    if plan is None:
        return 1, value
    length = int(plan.length[slot])
    # the first of its steps has been taken from those that are left
    return (length, value) if int(memory.left[slot]) == length - 1 else None


def discounted(rewards: list[float], gamma: float) -> list[float]:
    """The discounted return from each step to the end of the episode."""
    returns, total = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        total = rewards[t] + gamma * total
        returns[t] = total
    return returns
