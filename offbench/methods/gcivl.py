"""Goal-conditioned implicit V-learning, GCIVL (Park et al., 2023; 2025). https://arxiv.org/abs/2410.20092

IQL without Q, for goals: V(s, g) is regressed on its own one-step targets with an expectile, which is sound where
the dynamics are deterministic, and the policy is extracted by advantage-weighted regression.

    A    = r + gamma m min_i V_i(s', g) - mean_i V_i(s, g),  all target networks
    L_V  = sum_i |tau - 1(A < 0)| (r + gamma m V_i'(s', g) - V_i(s, g))^2,  V' the target of V
    L_pi = -min(exp(alpha (mean_i V_i(s', g) - mean_i V_i(s, g))), 100) log pi(a | s, g)

The weight of the expectile comes from the target networks, and each head is regressed on its own target. As in
seohongpark/ogbench 1d41409, impls/agents/gcivl.py, but that the target follows the value after its step, theirs
the one before it. Rewards are -1, and 0 at the goal, so -V is a discounted number of steps.

Metrics: the two losses, the mean of V, the mean of the clipped advantage weights.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import goal_nets, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # leading axis 2: the twins
    value: nets.Params
    target_value: nets.Params
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class GCIVL:
    # tau of the expectile regression
    expectile: Fraction = 0.9
    # alpha: 0 clones the data, larger values follow the advantage more closely
    inverse_temperature: float = 10.0
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_value, k_actor = rng.split(key)
        value = goal_nets.value_init(k_value, spec.obs_dim, self.hidden)
        actor = goal_nets.actor_init(k_actor, spec.obs_dim, self.hidden, spec.action_dim)
        return State(value, value, actor, Adam(self.lr).init((value, actor)))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = (state.value, state.actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state.target_value, batch)
        (value, actor), opt = Adam(self.lr).step(grads, state.opt, params)
        target_value = polyak(state.target_value, value, self.polyak_rate)
        return State(value, target_value, actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return goal_nets.actor(state.actor, obs).clamp(-1, 1)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The mean V of the twins: (E, O + G) -> (E,)."""
        del action
        return goal_nets.value(state.value, obs).mean(0)

    def _loss(
        self, params: tuple, target_value: nets.Params, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """The two losses touch disjoint parameters, so their sum is one backward pass."""
        value, actor = params
        next_v = goal_nets.value(target_value, batch.next_obs)  # (2, B)
        before = goal_nets.value(target_value, batch.obs).mean(0)
        advantage = batch.reward + batch.discount * next_v.amin(0) - before
        v = goal_nets.value(value, batch.obs)
        error = batch.reward + batch.discount * next_v - v
        value_loss = goal_nets.expectile_loss(advantage, error, self.expectile).mean(1).sum()

        obs, next_obs = batch.extras["actor_obs"], batch.extras["actor_next_obs"]
        gain = goal_nets.value(value, next_obs).mean(0) - goal_nets.value(value, obs).mean(0)
        weight = goal_nets.advantage_weight(gain.detach(), self.inverse_temperature)
        log_prob = goal_nets.log_prob(goal_nets.actor(actor, obs), batch.action)
        actor_loss = -(weight * log_prob).mean()
        metrics = {
            "value_loss": value_loss,
            "actor_loss": actor_loss,
            "v": v.mean(),
            "advantage_weight": weight.mean(),
        }
        return value_loss + actor_loss, metrics
