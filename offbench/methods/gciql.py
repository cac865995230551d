"""Goal-conditioned implicit Q-learning, GCIQL (Kostrikov et al., 2021; Park et al., 2025). https://arxiv.org/abs/2410.20092

IQL with a goal in every input, and a policy that climbs Q (DDPG+BC) or is extracted from advantages (AWR).

    L_V  = |tau - 1(A < 0)| A^2,  A = min_i Q_i'(s, a, g) - V(s, g),  Q' the target of Q
    L_Q  = sum_i (r + gamma m V(s', g) - Q_i(s, a, g))^2
    L_pi = -mean Q(s, pi, g) / mean |Q| - alpha log pi(a | s, g)      (`actor_loss="ddpg_bc"`)
    L_pi = -min(exp(alpha (Q(s, a, g) - V(s, g))), 100) log pi(a | s, g)      (`actor_loss="awr"`)

In L_pi Q is the smaller of the twins and pi the mean clipped to [-1, 1]. Unlike IVL, Q needs no deterministic
dynamics. As in seohongpark/ogbench 1d41409, impls/agents/gciql.py, where alpha is one setting for both actors:
here `bc_weight` and `inverse_temperature`. Its target follows the critic of before a step, ours of after it.

Metrics: the three losses, the means of V and of the smaller Q.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import goal_nets, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    value: nets.Params
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class GCIQL:
    # tau of the expectile regression
    expectile: Fraction = 0.9
    actor_loss: Literal["ddpg_bc", "awr"] = "ddpg_bc"
    # alpha of DDPG+BC
    bc_weight: float = 0.3
    # alpha of AWR
    inverse_temperature: float = 3.0
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_value, k_critic, k_actor = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        value = goal_nets.value_init(k_value, n_obs, self.hidden, ensemble=None)
        critic = goal_nets.value_init(k_critic, n_obs + n_act, self.hidden)
        actor = goal_nets.actor_init(k_actor, n_obs, self.hidden, n_act)
        return State(value, critic, critic, actor, Adam(self.lr).init((value, critic, actor)))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = (state.value, state.critic, state.actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        (value, critic, actor), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(value, critic, target_critic, actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return goal_nets.actor(state.actor, obs).clamp(-1, 1)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O + G), (E, A) -> (E,)."""
        return goal_nets.value(state.critic, obs, action).amin(0)

    def _loss(self, params: tuple, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """Every part of the loss trains one network: others are read from `before`."""
        value, critic, actor = params
        v = goal_nets.value(value, batch.obs)  # (B,)
        target_q = goal_nets.value(before.target_critic, batch.obs, batch.action).amin(0)
        advantage = target_q - v
        value_loss = goal_nets.expectile_loss(advantage, advantage, self.expectile).mean()

        target = batch.reward + batch.discount * goal_nets.value(before.value, batch.next_obs)
        q = goal_nets.value(critic, batch.obs, batch.action)  # (2, B)
        critic_loss = (q - target).square().mean(1).sum()

        actor_loss = self._actor_loss(actor, before, batch)
        metrics = {
            "value_loss": value_loss,
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "v": v.mean(),
            "q": q.amin(0).mean(),
        }
        return value_loss + critic_loss + actor_loss, metrics

    def _actor_loss(self, actor: nets.Params, before: State, batch: Batch) -> Tensor:
        obs = batch.extras["actor_obs"]
        mean = goal_nets.actor(actor, obs)
        log_prob = goal_nets.log_prob(mean, batch.action)
        if self.actor_loss == "ddpg_bc":
            q = goal_nets.value(before.critic, obs, mean.clamp(-1, 1)).amin(0)
            return goal_nets.ddpg_bc_loss(q, log_prob, self.bc_weight)
        q = goal_nets.value(before.critic, obs, batch.action).amin(0)
        advantage = q - goal_nets.value(before.value, obs)
        weight = goal_nets.advantage_weight(advantage, self.inverse_temperature)
        return -(weight * log_prob).mean()
