"""Hierarchical implicit Q-learning, HIQL (Park et al., 2023). https://arxiv.org/abs/2307.11949

GCIVL with a policy of two levels. One value judges both: the high level is to name the state k steps ahead
from which the goal is nearer, the low level to act so that this state comes nearer. Where the goal is far,
V(s', g) - V(s, g) of one step is lost in the value's noise, while differences over k steps, and to a sub-goal
that is near, are not.

    V(s, g) = V(s, phi([s; g])), |phi| = sqrt(rep_dim), twins
    A    = r + gamma m min_i V_i'(s', g) - mean_i V_i'(s, g),  V' the target of V
    L_V  = sum_i |tau - 1(A < 0)| (r + gamma m V_i'(s', g) - V_i(s, g))^2,  trains V and phi
    L_lo = -min(exp(alpha_lo (V(s', w) - V(s, w))), 100) log pi_lo(a | s, phi([s; w])),  w = s_{i+k}
    L_hi = -min(exp(alpha_hi (V(s_{i+k}, g) - V(s, g))), 100) log pi_hi(phi([s; s_{i+k}]) | s, g)

w is cut at the episode's end; in L_hi the state ahead is the goal where that comes first. The policies' losses
do not train phi (the authors let them for pixels only), and phi has no target network. Both policies are
Gaussians of deviation 1 and act by their means; the high level is asked anew at every step.

As in seohongpark/ogbench 1d41409, impls/agents/hiql.py, but that the target follows the value after its step,
theirs the one before it. k is `view.subgoal_steps`, tau `expectile`; goals are drawn by the view.

Metrics: the three losses, the mean of V, the means of the clipped advantage weights.
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
    value: nets.Params
    target_value: nets.Params
    low_actor: nets.Params
    high_actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class HIQL:
    # tau of the expectile regression
    expectile: Fraction = 0.7
    # alpha of each level: 0 clones the data, larger values follow the advantage more closely
    low_inverse_temperature: float = 3.0
    high_inverse_temperature: float = 3.0
    # numbers of a goal's representation
    rep_dim: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals", "subgoals")
    trained_together: ClassVar = (("goal_rep", "value"),)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k = rng.split(key, 4)
        n_goal, n_in = spec.obs_dim, spec.obs_dim - spec.goal_dim + self.rep_dim
        goal_rep = goal_nets.value_init(k[0], n_goal, self.hidden, self.rep_dim, ensemble=None)
        value = goal_nets.value_init(k[1], n_in, self.hidden)
        low_actor = goal_nets.actor_init(k[2], n_in, self.hidden, spec.action_dim)
        high_actor = goal_nets.actor_init(k[3], n_goal, self.hidden, self.rep_dim)
        opt = Adam(self.lr).init((goal_rep, value, low_actor, high_actor))
        return State(goal_rep, value, value, low_actor, high_actor, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = (state.goal_rep, state.value, state.low_actor, state.high_actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        (goal_rep, value, low, high), opt = Adam(self.lr).step(grads, state.opt, params)
        target_value = polyak(state.target_value, value, self.polyak_rate)
        return State(goal_rep, value, target_value, low, high, opt), metrics

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
        """The mean V of the twins: (E, O + G) -> (E,)."""
        del action
        (v,) = hierarchy.values(state.value, [obs], [self.represent(state, obs)])
        return v.mean(0)

    def _loss(self, params: tuple, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """The value's loss trains phi and V, the policies' each its own; their sum is one backward pass."""
        goal_rep, value, *actors = params
        step = hierarchy.Step(batch.obs, batch.next_obs, batch.reward, batch.discount)
        fixed = (before.goal_rep, before.target_value)
        value_loss, v = hierarchy.value_loss((goal_rep, value), fixed, step, self.expectile)
        policy_loss, metrics = hierarchy.policy_loss(
            (actors[0], actors[1]),
            (before.value, before.value),
            before.goal_rep,
            batch,
            (self.low_inverse_temperature, self.high_inverse_temperature),
        )
        metrics = {"value_loss": value_loss, "v": v.mean(), **metrics}
        return value_loss + policy_loss, metrics
