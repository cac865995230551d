"""Chunk-guided Q-learning (Song, Park and Lee, 2026), https://arxiv.org/abs/2603.13971

FQL twice: over chunks of h steps, where values travel fast but the policy is coarse, and over single
steps, where it reacts but errors pile up along the way. The critic of single steps is drawn to that of
the chunks which the data go on with, leaning to the better ones. What acts is the policy of single steps.

    L_1 = mean (Q_1(s, a_1) - [r + gamma m Qbar_1(s', mu_1(s', z))])^2
          + anchor_weight * mean expectile(Q_h(s, a[1:h]) - Q_1(s, a_1)),  no gradient into Q_h

The losses of Q_h and of both policies are FQL's (see fql.py).

Differs from their code (HubertC1/cgq 533a8c46): the target critics follow the critics after their step,
theirs the ones before it; its other targets (SARSA) and actors (best of N) are left out; theirs
clips the data's actions to 1 - 1e-5, here they reach 1.
If you come from there: `anchor_weight` is `beta`, `chunk_distill_weight` is `alpha`, `distill_weight` is
`step_alpha`, `view.h` is `horizon_length`, `polyak_rate` is `tau`, `q_aggregate` is `q_agg`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import flow, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, Fraction, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Plan, Spec


class Nets(NamedTuple):
    # leading axis 2: the twins
    critic: nets.Params
    flow: nets.Params  # the clone
    actor: nets.Params  # the one-step policy


class State(NamedTuple):
    chunk: Nets  # of h steps at once
    step: Nets  # of single steps
    target_critics: tuple[nets.Params, nets.Params]  # of chunk and step
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class CGQ:
    anchor_weight: float = 0.01  # beta
    anchor_expectile: Fraction = 0.95
    chunk_distill_weight: float = 100.0  # alpha
    distill_weight: float = 100.0  # step_alpha
    q_aggregate: Literal["mean", "min"] = "mean"  # of the target critics
    flow_steps: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("prefixes",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_chunk, k_step = rng.split(key)
        chunk = self._nets(k_chunk, spec.obs_dim, spec.action_dim)
        step = self._nets(k_step, spec.obs_dim, spec.action_dim // spec.chunk)
        opt = Adam(self.lr).init((chunk, step))
        return State(chunk, step, (chunk.critic, step.critic), opt)

    def _nets(self, key: Tensor, n_obs: int, n_act: int) -> Nets:
        k_critic, k_flow, k_actor = rng.split(key, 3)
        velocity = flow.velocity_init(k_flow, n_obs, n_act, self.hidden, layer_norm=True)
        sizes = (n_obs + n_act, *self.hidden, n_act)
        actor = nets.mlp_init(k_actor, sizes, weight="xavier", layer_norm=True)
        return Nets(flow.critic_init(k_critic, n_obs, n_act, self.hidden), velocity, actor)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.chunk, state.step)
        weights = (self.chunk_distill_weight, self.distill_weight)
        both = (batch, self._first(batch))
        # inputs without gradient of the losses of chunks and of steps
        fixed = []
        for net, target, part, weight, k in zip(
            params, state.target_critics, both, weights, rng.split(key, 2), strict=True
        ):
            k_next, k_bc, k_actor = rng.split(k, 3)
            noise = rng.normal_like(k_actor, part.action)
            next_action = flow.one_step(net.actor, part.next_obs, rng.normal_like(k_next, noise))
            next_q = flow.q_values(target, part.next_obs, next_action.clamp(-1, 1))  # (2, B)
            taught = flow.sample(net.flow, part.obs, noise, self.flow_steps)
            goal = part.reward + part.discount * self._aggregate(next_q)
            fixed.append((net.critic, part, goal, noise, taught, weight, k_bc))

        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, fixed)
        (chunk, step), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critics = polyak(state.target_critics, (chunk.critic, step.critic), self.polyak_rate)
        return State(chunk, step, target_critics, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Plan:
        """One step of the policy of single steps; the rest of the chunk is zeros."""
        size, whole = (net.actor[-1]["b"].shape[-1] for net in (state.step, state.chunk))
        noise = rng.normal(key, (len(obs), size), obs.dtype)
        action = flow.one_step(state.step.actor, obs, noise).clamp(-1, 1)
        length = torch.ones_like(action[:, 0], dtype=torch.long)
        return Plan(torch.nn.functional.pad(action, (0, whole - size)), length)

    def value(self, state: State, obs: Tensor, plan: Plan) -> Tensor:
        """Q of the critics of single steps: (E, O) and a plan -> (E,)."""
        first = plan.action[:, : state.step.actor[-1]["b"].shape[-1]]
        return self._aggregate(flow.q_values(state.step.critic, obs, first))

    def _aggregate(self, q: Tensor) -> Tensor:
        return q.mean(0) if self.q_aggregate == "mean" else q.amin(0)  # (2, B) -> (B,)

    def _first(self, batch: Batch) -> Batch:
        """The first step of every chunk as a batch of its own."""
        x = batch.extras
        size = batch.action.shape[-1] // x["valid"].shape[-1]
        return Batch(
            batch.obs,
            batch.action[:, :size],
            x["prefix_reward"][:, 0],
            x["prefix_discount"][:, 0],
            x["prefix_obs"][:, 0],
            {"valid": x["valid"][:, :1]},
        )

    def _loss(self, params: tuple[Nets, Nets], fixed: list) -> tuple[Tensor, Metrics]:
        """All six losses touch disjoint parameters, so their sum is one backward pass."""
        total, values = 0.0, []
        metrics: Metrics = {}
        for name, net, given in zip(("chunk_", ""), params, fixed, strict=True):
            critic, part, goal, noise, taught, weight, key = given
            valid = part.extras["valid"]  # (B, h)
            q = flow.q_values(net.critic, part.obs, part.action)  # (2, B)
            critic_loss = (torch.square(q - goal) * valid[:, -1]).mean()
            bc_loss = flow.bc_loss(net.flow, part.obs, part.action, valid, key)
            action = flow.one_step(net.actor, part.obs, noise)
            distill_loss = torch.square(action - taught).mean()
            actor_q = flow.q_values(critic, part.obs, action.clamp(-1, 1)).mean()
            total = total + critic_loss + bc_loss + weight * distill_loss - actor_q
            values.append(q)
            metrics |= {
                f"{name}critic_loss": critic_loss,
                f"{name}bc_loss": bc_loss,
                f"{name}distill_loss": distill_loss,
                f"{name}q": q.mean(),
                f"{name}actor_q": actor_q,
            }

        gap = values[0].detach() - values[1]  # (2, B), each twin with its own
        side = (self.anchor_expectile - (gap < 0).to(gap.dtype)).abs()
        whole = fixed[0][1].extras["valid"][:, -1]
        anchor_loss = (side * torch.square(gap) * whole).mean()
        metrics |= {"anchor_loss": anchor_loss, "anchor_gap": gap.mean()}
        return total + self.anchor_weight * anchor_loss, metrics
