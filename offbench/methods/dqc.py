"""Decoupled Q-chunking (Li, Park and Levine, 2026), https://arxiv.org/abs/2512.10926, for one task

A critic of long chunks backs values up fast; what acts are the first `policy_chunk` steps of a chunk,
which react. A second critic of those steps learns from the first, leaning to the better of the ways
a chunk can go on, and picks the best of `n_proposals` samples of a flow policy that clones the steps.

    L_C = mean (Q_C(s, a[1:h]) - [sum_j gamma^j r_j + gamma^h V(s_h)])^2
    L_Q = mean expectile(Q_C(s, a[1:h]) - Q(s, a[1:h_a])),  L_V = mean quantile(Qbar(s, a[1:h_a]) - V(s))

The paper's DQC is goal-conditioned: values are probabilities of reaching a goal, learned as logits,
and recorded states are relabelled as goals. This is its form for one task's rewards that the authors
of CGQ (Song, Park and Lee, 2026, https://arxiv.org/abs/2603.13971) compare with, whose numbers are the
published ones of DQC on OGBench's single tasks: real values, squared and absolute errors.

Differs from their code (HubertC1/cgq 533a8c46, after ColinQiyangLi/dqc df898256): one discount, theirs
sums rewards with 0.99 and bootstraps with 0.999 by default; the target critic follows the critic after
its step, theirs the one before it; the first of equal proposals is taken, by a rule of ours; theirs
clips the data's actions to 1 - 1e-5, here they reach 1.
If you come from there: `distill_expectile` is `kappa_d`, `backup_quantile` is `kappa_b`, `policy_chunk` is
`policy_chunk_size`, `view.h` is `backup_horizon` or `horizon_length`, `n_proposals` is `best_of_n`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import UserError
from offbench.nn import flow, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Plan, Spec


class State(NamedTuple):
    # of h steps; leading axis 2: the twins
    chunk_critic: nets.Params
    # of policy_chunk steps, as the flow
    critic: nets.Params
    target_critic: nets.Params
    value: nets.Params  # leading axis 1
    flow: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class DQC:
    # h_a: steps of a proposal, all executed
    policy_chunk: Count = 1
    # kappa_d, 0.5 or 0.8 in the paper; above 1/2: optimistic about the rest of a chunk
    distill_expectile: Fraction = 0.5
    # kappa_b, 0.5 to 0.97 in the paper: of the critic over the data's actions
    backup_quantile: Fraction = 0.9
    n_proposals: Count = 32
    q_aggregate: Literal["mean", "min"] = "mean"
    flow_steps: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("valid",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, spec: Spec) -> None:
        if self.policy_chunk > spec.chunk:
            raise UserError(
                f"method.policy_chunk={self.policy_chunk} is longer than a chunk of {spec.chunk}: use "
                f"view=chunk view.h={self.policy_chunk} or more"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        self.check(spec)
        k_chunk, k_critic, k_value, k_flow = rng.split(key, 4)
        n_obs, n_act = spec.obs_dim, spec.action_dim // spec.chunk * self.policy_chunk
        chunk_critic = flow.critic_init(k_chunk, n_obs, spec.action_dim, self.hidden)
        critic = flow.critic_init(k_critic, n_obs, n_act, self.hidden)
        value = flow.critic_init(k_value, n_obs, 0, self.hidden, n=1)
        velocity = flow.velocity_init(k_flow, n_obs, n_act, self.hidden, layer_norm=True)
        opt = Adam(self.lr).init((chunk_critic, critic, value, velocity))
        return State(chunk_critic, critic, critic, value, velocity, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.chunk_critic, state.critic, state.value, state.flow)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch, key)
        (chunk_critic, critic, value, velocity), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(chunk_critic, critic, target_critic, value, velocity, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Plan:
        """The best of N samples by the critic, the first of equals; the rest of the chunk is zeros."""
        group = (len(obs), self.n_proposals)
        repeated, action = flow.propose(state.flow, obs, key, self.n_proposals, self.flow_steps)
        q = self._aggregate(flow.q_values(state.critic, repeated, action)).unflatten(0, group)
        best = flow.chosen(action.unflatten(0, group), flow.first_argmax(q))  # (E, h_a * A)
        rest = state.chunk_critic[0]["w"].shape[-2] - state.critic[0]["w"].shape[-2]
        length = torch.full_like(best[:, 0], self.policy_chunk, dtype=torch.long)
        return Plan(torch.nn.functional.pad(best, (0, rest)), length)

    def value(self, state: State, obs: Tensor, plan: Plan) -> Tensor:
        """Q of the executed steps, by the critics that chose them: (E, O) and a plan -> (E,)."""
        first = plan.action[:, : state.flow[-1]["b"].shape[-1]]
        return self._aggregate(flow.q_values(state.critic, obs, first))

    def _aggregate(self, q: Tensor) -> Tensor:
        return q.mean(0) if self.q_aggregate == "mean" else q.amin(0)  # (2, B) -> (B,)

    def _loss(
        self, params: tuple, before: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The four losses touch disjoint parameters, so their sum is one backward pass."""
        chunk_critic, critic, value, velocity = params
        last = batch.extras["valid"][:, -1]  # (B,)
        first = batch.action[:, : velocity[-1]["b"].shape[-1]]  # (B, h_a * A)
        no_action = batch.action[:, :0]

        next_v = flow.q_values(before.value, batch.next_obs, no_action)[0]
        chunk_q = flow.q_values(chunk_critic, batch.obs, batch.action)  # (2, B)
        goal = batch.reward + batch.discount * next_v
        chunk_loss = (torch.square(chunk_q - goal) * last).mean()

        q = flow.q_values(critic, batch.obs, first)  # (2, B), each from its own twin
        gap = chunk_q.detach() - q
        distill_loss = (_side(gap, self.distill_expectile) * torch.square(gap) * last).mean()

        target_q = self._aggregate(flow.q_values(before.target_critic, batch.obs, first))
        v = flow.q_values(value, batch.obs, no_action)[0]
        advantage = target_q - v
        side = _side(advantage, self.backup_quantile)
        value_loss = (side * advantage.abs() * last).mean()

        bc_loss = flow.bc_loss(velocity, batch.obs, first, last[:, None], key)
        metrics = {
            "chunk_critic_loss": chunk_loss,
            "distill_loss": distill_loss,
            "value_loss": value_loss,
            "bc_loss": bc_loss,
            "chunk_q": chunk_q.mean(),
            "q": q.mean(),
            "v": v.mean(),
            "advantage_spread": advantage.std(),
        }
        return chunk_loss + distill_loss + value_loss + bc_loss, metrics


def _side(x: Tensor, rate: float) -> Tensor:
    """`rate` where x is not negative, 1 - `rate` elsewhere."""
    return (rate - (x < 0).to(x.dtype)).abs()
