"""Option-aware temporally abstracted value, OTA (Ahn et al., 2025). https://arxiv.org/abs/2505.12737

HIQL with a value of its own for each level. The high level's counts options of n steps where the low level's
counts steps: a goal 500 steps away is n times nearer, its value has not yet faded, and differences of values
over k steps keep their sign. What HIQL lacks on long horizons is not the policy but this order of values.

    V_lo, L_lo as V and L_lo of HIQL
    A    = r + gamma m min_i V_hi'(s_{i'}, g) - mean_i V_hi'(s, g),  i' = i + n
    L_V  = sum |tau - 1(A < 0)| (r + gamma m V_hi'(s_{i'}, g) - V_hi(s, g))^2
    L_hi = -min(exp(alpha_hi (V_hi(s_{i+k}, g) - V_hi(s, g))), 100) log pi_hi(phi([s; s_{i+k}]) | s, g)

An option ends at the goal where that comes first, and at the episode's end. r is -1 and gamma enters once,
however long the option was; where it ends at the goal, r = m = 0. In place of a current goal there is the state
where the option ends, so that some options do reach their goal.

Both values read goals through one phi, and both train it; the policies do not, and it has no target network.

As in action-sufficient/action-sufficient cb70862, agents/ota.py, a port of the authors' code (ota-v/ota-v), whose
repository could be read only in part: the port also normalises the layers of the policies, which the authors do
not, nor does this file. Differs from both in that targets follow values after their step, theirs before it.
If you come from there: `view.option_steps` is `abstraction_factor`, k is `view.subgoal_steps`.

Metrics: the four losses, the means of both values and of the clipped advantage weights.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import goal_nets, hierarchy, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # phi
    goal_rep: nets.Params
    # leading axis 2: the twins
    low_value: nets.Params
    target_low_value: nets.Params
    high_value: nets.Params
    target_high_value: nets.Params
    low_actor: nets.Params
    high_actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class OTA:
    # tau of the expectile regression of both values
    expectile: Fraction = 0.7
    # alpha of each level: 0 clones the data, larger values follow the advantage more closely
    low_inverse_temperature: float = 3.0
    high_inverse_temperature: float = 3.0
    # numbers of a goal's representation
    rep_dim: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals", "subgoals", "options")
    trained_together: ClassVar = (("goal_rep", "low_value"), ("goal_rep", "high_value"))

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k = rng.split(key, 5)
        n_goal, n_in = spec.obs_dim, spec.obs_dim - spec.goal_dim + self.rep_dim
        goal_rep = goal_nets.value_init(k[0], n_goal, self.hidden, self.rep_dim, ensemble=None)
        low_value = goal_nets.value_init(k[1], n_in, self.hidden)
        high_value = goal_nets.value_init(k[2], n_in, self.hidden)
        low_actor = goal_nets.actor_init(k[3], n_in, self.hidden, spec.action_dim)
        high_actor = goal_nets.actor_init(k[4], n_goal, self.hidden, self.rep_dim)
        actors = (low_actor, high_actor)
        opt = Adam(self.lr).init((goal_rep, low_value, high_value, *actors))
        return State(goal_rep, low_value, low_value, high_value, high_value, *actors, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        actors = (state.low_actor, state.high_actor)
        params = (state.goal_rep, state.low_value, state.high_value, *actors)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        (goal_rep, low, high, *moved), opt = Adam(self.lr).step(grads, state.opt, params)
        target_low = polyak(state.target_low_value, low, self.polyak_rate)
        target_high = polyak(state.target_high_value, high, self.polyak_rate)
        actors = (moved[0], moved[1])
        return State(goal_rep, low, target_low, high, target_high, *actors, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return hierarchy.act(state.low_actor, obs, self.subgoal(state, obs))

    def subgoal(self, state: State, obs: Tensor) -> Tensor:
        """phi([s; w]) of the sub-goal w that the policy heads for: (E, O + G) -> (E, rep_dim)."""
        return hierarchy.subgoal(state.high_actor, obs)

    def represent(self, state: State, obs: Tensor) -> Tensor:
        """phi of observations that end with a goal or sub-goal: (E, O + G) -> (E, rep_dim)."""
        return hierarchy.represent(state.goal_rep, obs)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The mean of the twins of V_lo, which counts steps: (E, O + G) -> (E,)."""
        del action
        (v,) = hierarchy.values(state.low_value, [obs], [self.represent(state, obs)])
        return v.mean(0)

    def _loss(self, params: tuple, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """The values' losses train phi and each its V, the policies' their own; one backward pass of the sum."""
        goal_rep, low_value, high_value, *actors = params
        step = hierarchy.Step(batch.obs, batch.next_obs, batch.reward, batch.discount)
        names = ("option_obs", "option_next_obs", "option_reward", "option_discount")
        option = hierarchy.Step(*(batch.extras[name] for name in names))
        low_loss, low_v = hierarchy.value_loss(
            (goal_rep, low_value), (before.goal_rep, before.target_low_value), step, self.expectile
        )
        high_loss, high_v = hierarchy.value_loss(
            (goal_rep, high_value),
            (before.goal_rep, before.target_high_value),
            option,
            self.expectile,
        )
        policy_loss, metrics = hierarchy.policy_loss(
            (actors[0], actors[1]),
            (before.low_value, before.high_value),
            before.goal_rep,
            batch,
            (self.low_inverse_temperature, self.high_inverse_temperature),
        )
        metrics = {
            "low_value_loss": low_loss,
            "high_value_loss": high_loss,
            "low_v": low_v.mean(),
            "high_v": high_v.mean(),
            **metrics,
        }
        return low_loss + high_loss + policy_loss, metrics
