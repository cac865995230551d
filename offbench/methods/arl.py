"""Abstraction for offline goal-conditioned RL, ARL (Wibault et al., 2026). https://arxiv.org/abs/2605.22711

A hierarchy whose sub-goals are named by what to do, not by what they are worth. An option w = h([s; s_{i+k}])
is trained by the loss of the low level alone, so states ahead that ask for the same actions share one; HIQL's
representation is trained by the value. Each level has a value and a critic of its own.

    L_Vhi = IVL of HIQL on (s, g), without a representation
    L_Qhi = sum_i (Q_i(s, g, w) - mean V_hi(s_{i+k}, g))^2
    L_Vlo = |tau - 1(u < 0)| u^2,  u = min_i Q_i'(s, g, a) - V_lo(s, g),  Q' the target of Q_lo
    L_Qlo = sum_i (r + gamma_lo m V_lo(s', g) - Q_i(s, g, a))^2
    L_hi  = -min(exp(alpha (min Q_hi(s, g, w) - mean V_hi(s, g))), 100) log pi_hi(w | s, g),  or DDPG+BC:
            -min Q_hi(s, g, norm(mode)) / mean |Q| - alpha log pi_hi(w | s, g)
    L_lo  = -min(exp(alpha (min Q_lo(s, w, a) - V_lo(s, w))), 100) log pi_lo(a | s, h([s; w])),  w = s_{i+k}

L_lo trains h; elsewhere h is a constant. Options have length sqrt(rep_dim). With `relative_options` they are
h(s_{i+k} - s), the same wherever the step is made, and short ones are kept short.

As in CWibault/arl d2472f4, ogb_impls/agents/arl.py. Differs from it: a transition has reached its goal where it
starts from the goal's row; theirs also where state or next state are near the goal by a rule for each
environment (mazes: 0.5 in xy; cubes: 0.4 each; puzzles: equal buttons). A random goal that lies fewer than k
steps ahead in the episode is no sub-goal, theirs takes it. Targets follow after the step, theirs before it. Not
here, unused in its launch script: differences g - s as inputs of values, DDPG+BC at the low level.
If you come from there: `relative_options` is `option_diff`; gamma_lo is `view.low_gamma`, 1 - 1/k as there.

Metrics: the six losses, the means of both values, and of the low level's clipped advantage weights.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import goal_nets, hierarchy, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # h
    option_rep: nets.Params
    # leading axis 2: the twins, as of both critics
    high_value: nets.Params
    target_high_value: nets.Params
    high_critic: nets.Params
    low_value: nets.Params
    low_critic: nets.Params
    target_low_critic: nets.Params
    high_actor: nets.Params
    low_actor: nets.Params
    opt: AdamState


TRAINED = tuple(x for x in State._fields if not x.startswith("target") and x != "opt")


@dataclass(frozen=True, kw_only=True)
class ARL:
    # tau of the expectile regression of both values
    expectile: Fraction = 0.7
    high_actor: Literal["awr", "ddpg_bc"] = "awr"
    # alpha of each level: 0 clones the data, larger values follow the advantage more closely
    low_inverse_temperature: float = 3.0
    high_inverse_temperature: float = 3.0
    # alpha of DDPG+BC: larger values stay closer to the data
    high_bc_weight: Positive = 0.1
    # options of differences between states
    relative_options: bool = False
    # numbers of an option
    rep_dim: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (1024, 1024, 1024, 1024)
    rep_hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals", "subgoals", "low_goals")
    trained_together: ClassVar = (("option_rep", "low_actor"),)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k = rng.split(key, 7)
        n_obs, n_act, n_rep = spec.obs_dim, spec.action_dim, self.rep_dim
        n_state = n_obs - spec.goal_dim
        value = lambda key, n_in, twins: goal_nets.value_init(
            key, n_in, self.hidden, ensemble=twins
        )
        n_option = n_state if self.relative_options else n_obs
        params = {
            "option_rep": goal_nets.value_init(
                k[0], n_option, self.rep_hidden, n_rep, ensemble=None
            ),
            "high_value": value(k[1], n_obs, 2),
            "high_critic": value(k[2], n_obs + n_rep, 2),
            "low_value": value(k[3], n_obs, None),
            "low_critic": value(k[4], n_obs + n_act, 2),
            "high_actor": goal_nets.actor_init(k[5], n_obs, self.hidden, n_rep),
            "low_actor": goal_nets.actor_init(k[6], n_state + n_rep, self.hidden, n_act),
        }
        return State(
            **params,
            target_high_value=params["high_value"],
            target_low_critic=params["low_critic"],
            opt=Adam(self.lr).init(params),
        )

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = {name: getattr(state, name) for name in TRAINED}
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        params, opt = Adam(self.lr).step(grads, state.opt, params)
        follow = lambda target, name: polyak(target, params[name], self.polyak_rate)
        return State(
            **params,
            target_high_value=follow(state.target_high_value, "high_value"),
            target_low_critic=follow(state.target_low_critic, "low_critic"),
            opt=opt,
        ), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return hierarchy.act(state.low_actor, obs, self.subgoal(state, obs))

    def subgoal(self, state: State, obs: Tensor) -> Tensor:
        """The option that the policy follows: (E, O + G) -> (E, rep_dim)."""
        return self._normalized(goal_nets.actor(state.high_actor, obs))

    def represent(self, state: State, obs: Tensor) -> Tensor:
        """h of observations that end with a goal or sub-goal: (E, O + G) -> (E, rep_dim)."""
        return self._option(state.option_rep, obs)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The mean of the twins of V_hi: (E, O + G) -> (E,)."""
        del action
        return goal_nets.value(state.high_value, obs).mean(0)

    def _normalized(self, x: Tensor) -> Tensor:
        norm = (
            hierarchy.soft_length_normalized
            if self.relative_options
            else hierarchy.length_normalized
        )
        return norm(x)

    def _option(self, params: nets.Params, obs: Tensor) -> Tensor:
        """h: [s; w] (B, O + G) -> (B, rep_dim)."""
        state, later = obs.chunk(2, -1)
        seen = later - state if self.relative_options else obs
        return self._normalized(goal_nets.features(params, seen))

    def _loss(self, params: dict, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """Six losses, each of its own parameters and of constants `before`; one backward pass of their sum."""
        option = self._option(before.option_rep, batch.extras["target_obs"])
        losses = {
            **self._value_losses(params, before, batch, option),
            "high_actor_loss": self._high_actor_loss(params, before, batch, option),
        }
        obs = batch.extras["low_actor_obs"]
        q = goal_nets.value(before.low_critic, obs, batch.action).amin(0)
        gain = q - goal_nets.value(before.low_value, obs)
        weight = goal_nets.advantage_weight(gain, self.low_inverse_temperature)
        rep = self._option(params["option_rep"], obs)
        state = hierarchy.states(obs, rep, params["low_actor"])
        mean = goal_nets.actor(params["low_actor"], state, rep)
        losses["low_actor_loss"] = -(weight * goal_nets.log_prob(mean, batch.action)).mean()
        total = torch.stack([x for name, x in losses.items() if name.endswith("_loss")]).sum()
        return total, {**losses, "low_advantage_weight": weight.mean()}

    def _value_losses(
        self, params: dict, before: State, batch: Batch, option: Tensor
    ) -> dict[str, Tensor]:
        """Of the values and critics of both levels, and the means of the values."""
        extras, value = batch.extras, goal_nets.value
        step = hierarchy.Step(batch.obs, batch.next_obs, batch.reward, batch.discount)
        high_v = value(params["high_value"], step.obs)
        target_v, next_v = (value(before.target_high_value, x) for x in step[:2])
        reached_v = value(before.high_value, extras["reached_obs"]).mean(0)
        high_q = value(params["high_critic"], extras["actor_obs"], option)

        obs = extras["low_obs"]
        low_v = value(params["low_value"], obs)
        gap = value(before.target_low_critic, obs, batch.action).amin(0) - low_v
        low_next_v = value(before.low_value, extras["low_next_obs"])
        backup = extras["low_reward"] + extras["low_discount"] * low_next_v
        low_q = value(params["low_critic"], obs, batch.action)
        return {
            "high_value_loss": hierarchy.ivl_loss(high_v, target_v, next_v, step, self.expectile),
            "high_critic_loss": torch.square(high_q - reached_v).mean(1).sum(),
            "low_value_loss": goal_nets.expectile_loss(gap, gap, self.expectile).mean(),
            "low_critic_loss": torch.square(low_q - backup).mean(1).sum(),
            "high_v": high_v.mean(),
            "low_v": low_v.mean(),
        }

    def _high_actor_loss(self, params: dict, before: State, batch: Batch, option: Tensor) -> Tensor:
        obs = batch.extras["actor_obs"]
        mean = goal_nets.actor(params["high_actor"], obs)
        log_prob = goal_nets.log_prob(mean, option)
        chosen = option if self.high_actor == "awr" else self._normalized(mean)
        q = goal_nets.value(before.high_critic, obs, chosen).amin(0)
        if self.high_actor == "ddpg_bc":
            return goal_nets.ddpg_bc_loss(q, log_prob, self.high_bc_weight)
        gain = q - goal_nets.value(before.high_value, obs).mean(0)
        weight = goal_nets.advantage_weight(gain, self.high_inverse_temperature)
        return -(weight * log_prob).mean()
