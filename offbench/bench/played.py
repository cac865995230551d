"""Kept policies played again, decision by decision, for `offbench diagnose`.

What a critic says of a decision is compared with the discounted return from there on. Episodes are
therefore played on beyond the time limit of the task, until they end or less than 1 % of a return's
horizon is left out: critics know no time limit. Scores, lengths and decisions are those within the limit.

A *control* executes a fixed number of steps: of the proposals the one whose prefix of that length has the
largest value. It has the critic, the episodes and the noise of the policy that it is compared with.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from offbench.bench.policy import Loaded, load
from offbench.errors import UserError
from offbench.results.decisions import CUT_SHORT, typed
from offbench.rollout import EnvPool, PlayedStep, Values, evaluate, make_policy
from offbench.tasks.task import Task
from offbench.types import Policy

MOST_BEYOND = 1000
"""Steps beyond the time limit at most; returns of what then goes on are marked as cut short."""


def play(path: Path, task: Task, *, episodes: int, n_envs: int = 5) -> pd.DataFrame:
    """The decisions of a kept policy and of its controls, in `offbench.results.decisions.DECISION_SCHEMA`
    but for `run_id`.

    Raises:
        UserError: the file cannot be read, its method says no values, or what they need was not kept.
    """
    return play_loaded(load(path), task, episodes=episodes, n_envs=n_envs)


def play_loaded(loaded: Loaded, task: Task, *, episodes: int, n_envs: int = 5) -> pd.DataFrame:
    """`play` of a kept policy that has been read."""
    method = loaded.method
    if not hasattr(method, "value"):
        raise UserError(f"{loaded.run.method} says no values of its decisions")
    pool = EnvPool(longer(task, _beyond(loaded.pipeline.view.gamma)))
    parts = []
    try:
        for control in (None, *controls(loaded)):
            policy = make_policy(method, loaded.pipeline, values="every", length=control)
            watch = pool.watch = Decisions(policy, task)
            seeds = [loaded.run.seed]
            evaluate(
                policy,
                loaded.state,
                pool,
                seeds=seeds,
                episodes=episodes,
                stream="played",
                n_envs=n_envs,
            )
            parts.append(watch.frame().assign(control=control))
            if loaded.kind == "policy" and parts[-1]["value"].isna().all():
                raise UserError(
                    "only the policy was kept, and its values need more: train it with keep=state"
                )
    finally:
        pool.close()
    return typed(pd.concat([part.astype({"control": "Int64"}) for part in parts]))


def controls(loaded: Loaded) -> Iterator[int]:
    """The lengths that the policy can be asked for; none where it does not choose."""
    chunk = loaded.pipeline.spec(loaded.spec).chunk
    if chunk > 1 and hasattr(loaded.method, "act_for"):
        yield from range(1, chunk + 1)


def longer(task: Task, beyond: int) -> Task:
    """The task with a later time limit, which ends the same episodes but for those it would cut."""
    limit = task.max_episode_steps + beyond
    return replace(task, env_kwargs={**task.env_kwargs, "max_episode_steps": limit})


def _beyond(gamma: float) -> int:
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

    def __init__(self, policy: Policy, task: Task):
        assert policy.gamma is not None
        self.policy, self.gamma, self.task = policy, policy.gamma, task
        self.rows: list[dict[str, Any]] = []
        self._open: dict[int, _Episode] = {}

    def __call__(self, step: PlayedStep) -> None:
        episode = self._open.setdefault(step.episode, _Episode())
        if step.t < self.task.max_episode_steps:
            if (made := decision(step.memory, step.slot)) is not None:
                episode.decisions.append((step.t, *made, step.distance))
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
            self.rows.append(common | row)

    def frame(self) -> pd.DataFrame:
        """One row per decision, in the order of episodes and steps."""
        frame = pd.DataFrame(self.rows).sort_values(["episode", "step"], ignore_index=True)
        return frame.astype({"distance": "Float64", "success": "boolean"})


def decision(memory: Any, slot: tuple[int, int]) -> tuple[int, float] | None:
    """(steps planned, value) where a decision was made at this step; None where a chunk goes on."""
    values = getattr(memory, "inner", memory)
    assert isinstance(values, Values)
    value, plan = float(values.value[slot]), getattr(memory, "plan", None)
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
