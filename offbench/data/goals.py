"""The goal view: goals drawn for transitions after the fact, as in OGBench's code (Park et al., 2025).

A goal is an observation of the data. It is the current one, one that comes later in the episode, or one of
any episode. Reward and discount follow from row numbers alone: a transition from the row of its goal has
reached it. Recorded rewards and terminals, which are about other goals, are not read.

Values and policies learn from goals of their own, and hierarchical methods from goals in between; each is drawn
with a key of its own, so that what one method asks for changes nothing for another.

Source: seohongpark/ogbench 1d41409 (impls/utils/datasets.py); options: Ahn et al. (2025),
https://arxiv.org/abs/2505.12737.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offbench import rng
from offbench.data.replay import ReplayData
from offbench.data.sampling import Uniform, make_sampler
from offbench.errors import UserError
from offbench.types import Batch, Policy, Spec

# rows of the data that an element is made of, by name, each (B,) int64
Rows = dict[str, Tensor]
# shares of goals: the current observation, a later one of the episode, one of any episode
Shares = tuple[float, ...]


class Goal(NamedTuple):
    """Transitions with goals, not fitted to data; the policy observes the state and the goal, (O + G,).

    `value_goals` and `actor_goals` are shares of current, later and random goals. Later goals are `geometric`
    with the discount, clipped to the end, or uniform up to it. The reward is -1 and 0 at the goal, or 0 and 1
    where it is not `negative`. Methods with sub-goals reach for the state `subgoal_steps` later; values over
    options take `option_steps` at once. Values of the lower level of a hierarchy may have `low_goals` and a
    discount of their own.
    """

    gamma: float = 0.99
    value_goals: tuple[float, ...] = (0.2, 0.5, 0.3)
    geometric: bool = True
    actor_goals: tuple[float, ...] = (0.0, 1.0, 0.0)
    actor_geometric: bool = False
    negative: bool = True
    subgoal_steps: int = 25
    option_steps: int = 5
    low_goals: tuple[float, ...] = (0.1, 0.85, 0.05)
    low_geometric: bool = True
    low_gamma: float | None = None

    def for_needs(self, needs: Sequence[str]) -> "Goal":
        """With the goals that a method's `needs` ask for."""
        return self._replace(value_goals=(0.0, 1.0, 0.0)) if "later_goals" in needs else self

    def spec(self, spec: Spec) -> Spec:
        return spec._replace(obs_dim=2 * spec.obs_dim, goal_dim=spec.obs_dim)

    def fit(self, data: ReplayData, needs: Sequence[str] = ()) -> "FittedGoal":
        """The view of a dataset, with the parts of a batch that a method asks for by name."""
        for name in ("value_goals", "actor_goals", "low_goals"):
            shares = getattr(self, name)
            if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1):
                raise UserError(
                    f"view.{name}={list(shares)} must be three shares that add to 1: current, later, random"
                )
        low_geometric = "low_goals" in needs and self.low_geometric
        if not 0 < self.gamma < 1 and (self.geometric or self.actor_geometric or low_geometric):
            raise UserError(
                f"gamma={self.gamma}: geometric goals need a discount above 0 and below 1"
            )
        if data.n_transitions == data.n_episodes:
            raise UserError(
                "view=goal needs trajectories; every episode of this dataset is a single transition"
            )
        longest = int(torch.bincount(data.episode).max()) - 1
        for extra, name in (("subgoals", "subgoal_steps"), ("options", "option_steps")):
            steps = getattr(self, name)
            if steps < 1:
                raise UserError(f"view.{name} must be at least 1, got {steps}")
            if extra in needs and steps > longest:
                raise UserError(
                    f"view.{name}={steps} is longer than every episode (the longest has {longest} steps)"
                )
        if "later_goals" in needs and self.value_goals[1] != 1:
            raise UserError(
                f"view.value_goals={list(self.value_goals)} must be [0, 1, 0]: this method tells the states "
                "that followed from others, so its goals are later states alone"
            )
        if not 0 <= self.low_discount < 1:
            raise UserError(f"view.low_gamma must be in [0, 1), got {self.low_gamma}")
        return self.over(data, needs)

    @property
    def low_discount(self) -> float:
        """The discount of values of the lower level."""
        return 1 - 1 / self.subgoal_steps if self.low_gamma is None else self.low_gamma

    def over(self, data: ReplayData, needs: Sequence[str] = ()) -> "FittedGoal":
        """`fit` without its checks, for a part of data that passed them."""
        anywhere = make_sampler(data.valid)
        assert isinstance(anywhere, Uniform)
        return FittedGoal(self, tuple(n for n in GOAL_EXTRAS if n in needs), anywhere)

    def to_act(self) -> "FittedGoal":
        """The view for acting only, without data."""
        none = torch.zeros(1, dtype=torch.long)
        return FittedGoal(self, (), Uniform(none, none, none.sum()))


class FittedGoal(NamedTuple):
    """A `Goal` fitted to a dataset."""

    goal: Goal
    # of GOAL_EXTRAS
    asked: tuple[str, ...]
    anywhere: Uniform

    @property
    def gamma(self) -> float:
        return self.goal.gamma

    @property
    def low_gamma(self) -> float:
        return self.goal.low_discount

    def refit(self, data: ReplayData, needs: Sequence[str]) -> "FittedGoal":
        """Fitted to other data, of which episodes may be shorter."""
        return self.goal.over(data, needs)

    def spec(self, spec: Spec) -> Spec:
        return self.goal.spec(spec)

    def support(self, data: ReplayData) -> Tensor:
        return data.valid

    def draw(self, data: ReplayData, row: Tensor, key: Tensor) -> Rows:
        """The rows of elements that start at `row` (B,)."""
        draw = Draw(self, data, row)
        k = rng.split(key, 4)
        goal, _ = draw.goals(k[0], self.goal.value_goals, self.goal.geometric)
        rows = {"start": row, "goal": goal}
        if "actor_goals" in self.asked or "subgoals" in self.asked:
            rows["actor_goal"], rows["target"] = draw.goals(
                k[1], self.goal.actor_goals, self.goal.actor_geometric, self.goal.subgoal_steps
            )
        if "options" in self.asked:
            rows["option_goal"], rows["option_end"] = draw.options(k[2])
        if "low_goals" in self.asked:
            rows["low_goal"], _ = draw.goals(k[3], self.goal.low_goals, self.goal.low_geometric)
        return rows

    def batch(self, data: ReplayData, row: Rows) -> Batch:
        """Reward and discount of one step towards the goal; obs and next_obs (B, O + G) end with it."""
        start = row["start"]
        obs, next_obs, goal = data.obs[start], data.obs[start + 1], data.obs[row["goal"]]
        reward, discount = self._paid(data, start == row["goal"], self.gamma)
        seen = Seen(data, row, obs, next_obs)
        extras: dict[str, Tensor] = {}
        for name in self.asked:
            extras |= GOAL_EXTRAS[name](self, seen)
        joined = torch.cat([obs, goal], -1)
        following = torch.cat([next_obs, goal], -1)
        return Batch(joined, data.action[start], reward, discount, following, extras or ())

    def _paid(self, data: ReplayData, reached: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Reward and discount, each (B,)."""
        reached = reached.to(data.reward.dtype)
        return reached - float(self.goal.negative), gamma * (1 - reached)

    def action(self, data: ReplayData, row: Tensor) -> Tensor:
        return data.action[row]

    def end(self, data: ReplayData, row: Tensor) -> Tensor:
        return row + 1

    def policy(self, policy: Policy) -> Policy:
        """The environment of a goal-conditioned task shows the goal after the state, and pays 1 on arrival.

        Rewards are told as the view pays them, by whose discounted sum a value is judged.
        """
        if self.goal.negative:
            return policy._replace(reward=lambda reward: -1.0)
        # the data pay in the state of the goal, a step later
        return policy._replace(reward=lambda reward: self.gamma * float(reward))


class Seen(NamedTuple):
    """What the parts of a batch are gathered from."""

    data: ReplayData
    rows: Rows
    obs: Tensor  # (B, O)
    next_obs: Tensor  # (B, O)

    def towards(self, name: str) -> tuple[Tensor, Tensor]:
        """State and goal, next state and goal, each (B, O + G), for the goals of a name."""
        goal = self.data.obs[self.rows[name]]
        return torch.cat([self.obs, goal], -1), torch.cat([self.next_obs, goal], -1)


def _actor_goals(view: FittedGoal, seen: Seen) -> dict[str, Tensor]:
    """`actor_obs`, `actor_next_obs` (B, O + G): the transition with the policy's goal."""
    obs, next_obs = seen.towards("actor_goal")
    return {"actor_obs": obs, "actor_next_obs": next_obs}


def _subgoals(view: FittedGoal, seen: Seen) -> dict[str, Tensor]:
    """Of the two levels of a hierarchy, (B, O + G) each.

    `low_actor_obs`, `low_actor_next_obs`: the transition with the state `subgoal_steps` later as its goal.
    `target_obs`: the state with that state, or with the policy's goal where that comes before it.
    `reached_obs`: that second state with the policy's goal.
    """
    data, rows = seen.data, seen.rows
    last = data.last[rows["start"]] - 1
    later = torch.minimum(rows["start"] + view.goal.subgoal_steps, last)
    obs, next_obs = seen._replace(rows={"later": later}).towards("later")
    target, goal = data.obs[rows["target"]], data.obs[rows["actor_goal"]]
    return {
        "low_actor_obs": obs,
        "low_actor_next_obs": next_obs,
        "target_obs": torch.cat([seen.obs, target], -1),
        "reached_obs": torch.cat([target, goal], -1),
    }


def _options(view: FittedGoal, seen: Seen) -> dict[str, Tensor]:
    """A step of `option_steps` at once: `option_obs`, `option_next_obs` (B, O + G), `option_reward`,
    `option_discount` (B,), gamma once for the whole step."""
    end, goal = seen.rows["option_end"], seen.rows["option_goal"]
    reward, discount = view._paid(seen.data, end == goal, view.gamma)
    obs, next_obs = seen._replace(next_obs=seen.data.obs[end]).towards("option_goal")
    return {
        "option_obs": obs,
        "option_next_obs": next_obs,
        "option_reward": reward,
        "option_discount": discount,
    }


def _low_goals(view: FittedGoal, seen: Seen) -> dict[str, Tensor]:
    """The transition for values of the lower level: `low_obs`, `low_next_obs`, `low_reward`, `low_discount`."""
    reached = seen.rows["start"] == seen.rows["low_goal"]
    reward, discount = view._paid(seen.data, reached, view.goal.low_discount)
    obs, next_obs = seen.towards("low_goal")
    return {
        "low_obs": obs,
        "low_next_obs": next_obs,
        "low_reward": reward,
        "low_discount": discount,
    }


# what a method may ask for in `needs`
GOAL_EXTRAS: dict[str, Callable[[FittedGoal, Seen], dict[str, Tensor]]] = {
    "actor_goals": _actor_goals,
    "subgoals": _subgoals,
    "options": _options,
    "low_goals": _low_goals,
}


class Draw(NamedTuple):
    """Draws goals for transitions that start at `row` (B,)."""

    view: FittedGoal
    data: ReplayData
    row: Tensor

    def goals(
        self, key: Tensor, shares: Shares, geometric: bool, steps: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Rows of goals, and rows `steps` later, not beyond the end nor a later goal: each (B,)."""
        later, random, is_later, is_current = self._choices(key, shares, geometric)
        goal = torch.where(is_current, self.row, torch.where(is_later, later, random))
        target = torch.minimum(self.row + steps, torch.where(is_later, later, self.last))
        return goal, torch.where(is_current, self.row, target)

    def options(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of goals, and rows where the option ends; a current goal is the end of its option."""
        settings = self.view.goal
        later, random, is_later, is_current = self._choices(
            key, settings.value_goals, settings.geometric
        )
        limit = torch.where(is_later, later, self.last)
        end = torch.minimum(self.row + settings.option_steps, limit)
        return torch.where(is_current, end, torch.where(is_later, later, random)), end

    @property
    def last(self) -> Tensor:
        """(B,) the episode's last row that a transition starts from."""
        return self.data.last[self.row] - 1

    def _choices(
        self, key: Tensor, shares: Shares, geometric: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A later and a random row for each transition, whether the goal is later, whether current: (B,)."""
        current, later, _ = shares
        k = rng.split(key, 4)
        size, last = tuple(self.row.shape), self.last
        u = rng.uniform(k[0], size, torch.float64)
        if geometric:
            # offsets n >= 1 with probability (1 - gamma) gamma ** (n - 1)
            offset = torch.floor(torch.log(u) / math.log(self.view.gamma)).long() + 1
            ahead = torch.minimum(self.row + offset, last)
        else:
            # uniform between the next row and the last, whose halves round to the rows inside
            following = torch.minimum(self.row + 1, last)
            ahead = (following * u + last * (1 - u)).round().long()
        among = later / (1 - current) if current < 1 else 0.0
        is_later = rng.uniform(k[1], size, torch.float64) < among
        is_current = rng.uniform(k[2], size, torch.float64) < current
        return ahead, self.view.anywhere(k[3], size[0]), is_later, is_current


def without_terminals(data: ReplayData) -> ReplayData:
    """The data of a goal view: a recorded terminal is about a goal that was not drawn."""
    return data._replace(terminal=torch.zeros_like(data.terminal))
