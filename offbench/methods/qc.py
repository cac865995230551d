"""Q-chunking (Li, Zhou and Levine, 2025), https://arxiv.org/abs/2507.07969

Q-learning over chunks of h actions, executed open loop. A flow policy clones the data's chunks;
acting and bootstrapping both take the best of `n_proposals` of its samples. With h = 1 it is BFN, the
paper's best-of-N baseline (EMaQ of Ghasemipour et al., 2021); under `view=nstep` it is BFN-n.

    a' = argmax over n of mean_k Q_k(s_{t+h}, b_n),  b_n from the flow policy at s_{t+h}
    L_Q = mean (Q(s_t, a_{t:t+h}) - [sum_j gamma^j r_{t+j} + gamma^h Qbar(s_{t+h}, a')])^2

The online critics choose the chunk and the target critics value it.

Differs from the authors' code (ColinQiyangLi/qc 48283b4f): the target critic follows the critic
after its step, theirs the one before it; the first of equal proposals is taken, by a rule of ours;
BFN-n uses spans that a trajectory's end cuts short, with their own discount, where theirs masks them;
theirs clips the data's actions to 1 - 1e-5, here they reach 1.
If you come from there: `n_proposals` is `actor_num_samples`, `q_aggregate` is `q_agg`, `polyak_rate`
is `tau`, `view.h` is `horizon_length`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import flow, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    flow: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class QC:
    n_proposals: Count = 32  # N
    # of the critics, where they choose and where they value
    q_aggregate: Literal["mean", "min"] = "mean"
    flow_steps: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("valid",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_critic, k_flow = rng.split(key)
        critic = flow.critic_init(k_critic, spec.obs_dim, spec.action_dim, self.hidden)
        velocity = flow.velocity_init(k_flow, spec.obs_dim, spec.action_dim, self.hidden)
        return State(critic, critic, velocity, Adam(self.lr).init((critic, velocity)))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_next, k_bc = rng.split(key)
        next_action = self.act(state, batch.next_obs, k_next)
        next_q = self._aggregate(flow.q_values(state.target_critic, batch.next_obs, next_action))
        target_q = batch.reward + batch.discount * next_q  # (B,)

        params = (state.critic, state.flow)
        grads, (_, metrics) = grad_and_value(self._loss, has_aux=True)(
            params, batch, target_q, k_bc
        )
        (critic, velocity), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(critic, target_critic, velocity, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        """The best of N samples by the online critics, the first of equals: (E, O) -> (E, A)."""
        n = self.n_proposals
        repeated, action = flow.propose(state.flow, obs, key, n, self.flow_steps)
        q = self._aggregate(flow.q_values(state.critic, repeated, action)).unflatten(
            0, (len(obs), n)
        )
        return flow.chosen(action.unflatten(0, (len(obs), n)), flow.first_argmax(q))

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """Q of the critics that chose: (E, O), (E, A) -> (E,)."""
        return self._aggregate(flow.q_values(state.critic, obs, action))

    def _aggregate(self, q: Tensor) -> Tensor:
        return q.mean(0) if self.q_aggregate == "mean" else q.amin(0)  # (2, B) -> (B,)

    def _loss(
        self, params: tuple, batch: Batch, target_q: Tensor, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The two losses touch disjoint parameters, so their sum is one backward pass."""
        critic, velocity = params
        valid = batch.extras["valid"]  # (B, h)
        q = flow.q_values(critic, batch.obs, batch.action)  # (2, B)
        critic_loss = (torch.square(q - target_q) * valid[:, -1]).mean()
        bc_loss = flow.bc_loss(velocity, batch.obs, batch.action, valid, key)
        metrics = {
            "critic_loss": critic_loss,
            "bc_loss": bc_loss,
            "q": q.mean(),
            "target_q": target_q.mean(),
            "q_disagreement": (q[0] - q[1]).abs().mean(),
        }
        return critic_loss + bc_loss, metrics
