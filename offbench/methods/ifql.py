"""Implicit flow Q-learning, the flow variant of IDQL (Hansen-Estruch et al., 2023) used as a baseline by
Park, Li and Levine (2025), https://arxiv.org/abs/2502.02538

IQL's critics, which never see an action outside the data, and a flow policy that clones the data; what
acts is the best of `n_proposals` of its samples by the smaller critic. Nothing is extracted by weights.

    L_V = mean expectile(min_k Qbar_k(s, a) - V(s)),  L_Q = mean (Q(s, a) - [r + discount * V(s')])^2

Differs from the authors' code (seohongpark/fql 719d0441): the target critic follows the critic after its
step, theirs the one before it; the critics' losses are averaged, theirs summed (the same under Adam);
theirs clips the data's actions to 1 - 1e-5, here they reach 1.
If you come from there: `n_proposals` is `num_samples`, `polyak_rate` is `tau`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import flow, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    value: nets.Params  # leading axis 1
    flow: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class IFQL:
    expectile: Fraction = 0.9
    n_proposals: Count = 32
    flow_steps: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("valid",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_critic, k_value, k_flow = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        critic = flow.critic_init(k_critic, n_obs, n_act, self.hidden)
        value = flow.critic_init(k_value, n_obs, 0, self.hidden, n=1)
        velocity = flow.velocity_init(k_flow, n_obs, n_act, self.hidden)
        opt = Adam(self.lr).init((critic, value, velocity))
        return State(critic, critic, value, velocity, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.critic, state.value, state.flow)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch, key)
        (critic, value, velocity), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(critic, target_critic, value, velocity, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        """The best of N samples by the smaller critic, the first of equals: (E, O) -> (E, A)."""
        n = self.n_proposals
        repeated, action = flow.propose(state.flow, obs, key, n, self.flow_steps)
        q = flow.q_values(state.critic, repeated, action).amin(0).unflatten(0, (len(obs), n))
        return flow.chosen(action.unflatten(0, (len(obs), n)), flow.first_argmax(q))

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins, by which the action was chosen: (E, O), (E, A) -> (E,)."""
        return flow.q_values(state.critic, obs, action).amin(0)

    def _loss(
        self, params: tuple, before: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The three losses touch disjoint parameters, so their sum is one backward pass."""
        critic, value, velocity = params
        valid = batch.extras["valid"]  # (B, h)
        last, no_action = valid[:, -1], batch.action[:, :0]
        v = flow.q_values(value, batch.obs, no_action)[0]  # (B,)
        target_q = flow.q_values(before.target_critic, batch.obs, batch.action).amin(0)
        advantage = target_q - v
        side = (self.expectile - (advantage < 0).to(v.dtype)).abs()
        value_loss = (side * torch.square(advantage) * last).mean()

        next_v = flow.q_values(before.value, batch.next_obs, no_action)[0]
        q = flow.q_values(critic, batch.obs, batch.action)  # (2, B)
        goal = batch.reward + batch.discount * next_v
        critic_loss = (torch.square(q - goal) * last).mean()
        bc_loss = flow.bc_loss(velocity, batch.obs, batch.action, valid, key)
        metrics = {
            "value_loss": value_loss,
            "critic_loss": critic_loss,
            "bc_loss": bc_loss,
            "v": v.mean(),
            "q": q.mean(),
            "advantage_spread": advantage.std(),
        }
        return value_loss + critic_loss + bc_loss, metrics
