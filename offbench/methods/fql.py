"""Flow Q-learning (Park, Li and Levine, 2025), https://arxiv.org/abs/2502.02538

A flow policy clones the data; a one-step policy mu(s, z) is distilled from it and at the same time
climbs Q. No gradient goes through the flow's steps, and what acts costs one forward pass. Under
`view=chunk` it is QC-FQL of Q-chunking (Li, Zhou and Levine, 2025, https://arxiv.org/abs/2507.07969),
under `view=nstep` its n-step baseline FQL-n.

    L_Q = mean (Q(s, a) - [r + discount * Qbar(s', mu(s', z'))])^2
    L_mu = L_BC(flow) + distill_weight * mean |mu(s, z) - flow(s, z)|^2 - mean Q(s, mu(s, z))

Differs from the authors' code (seohongpark/fql 719d0441, ColinQiyangLi/qc 48283b4f): the target
critic follows the critic after its step, theirs the one before it; spans of n steps cut short by
the end of a trajectory are used with their own discount, theirs are masked; theirs clips the data's
actions to 1 - 1e-5, here they reach 1 (no density of them is taken that would need it).
If you come from there: `distill_weight` is `alpha`, `q_aggregate` is `q_agg`, `polyak_rate` is `tau`.
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
    flow: nets.Params  # the clone
    actor: nets.Params  # the one-step policy
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class FQL:
    # alpha: depends on the scale of Q, so published per environment
    distill_weight: float = 10.0
    q_aggregate: Literal["mean", "min"] = "mean"  # of the target critics
    # divide the actor's Q term by the mean of |Q|
    normalize_q: bool = False
    flow_steps: Count = 10
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("valid",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_critic, k_flow, k_actor = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        critic = flow.critic_init(k_critic, n_obs, n_act, self.hidden)
        velocity = flow.velocity_init(k_flow, n_obs, n_act, self.hidden)
        actor = nets.mlp_init(k_actor, (n_obs + n_act, *self.hidden, n_act), weight="xavier")
        opt = Adam(self.lr).init((critic, velocity, actor))
        return State(critic, critic, velocity, actor, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_next, k_bc, k_actor = rng.split(key, 3)
        noise = rng.normal_like(k_actor, batch.action)
        next_action = flow.one_step(
            state.actor, batch.next_obs, rng.normal_like(k_next, noise)
        ).clamp(-1, 1)
        next_q = self._aggregate(flow.q_values(state.target_critic, batch.next_obs, next_action))
        target_q = batch.reward + batch.discount * next_q
        taught = flow.sample(state.flow, batch.obs, noise, self.flow_steps)

        params = (state.critic, state.flow, state.actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state.critic, batch, target_q, noise, taught, k_bc)
        (critic, velocity, actor), opt = Adam(self.lr).step(grads, state.opt, params)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(critic, target_critic, velocity, actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        noise = rng.normal(key, (len(obs), state.actor[-1]["b"].shape[-1]), obs.dtype)
        return flow.one_step(state.actor, obs, noise).clamp(-1, 1)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """Q of the critics: (E, O), (E, A) -> (E,)."""
        return self._aggregate(flow.q_values(state.critic, obs, action))

    def _aggregate(self, q: Tensor) -> Tensor:
        return q.mean(0) if self.q_aggregate == "mean" else q.amin(0)  # (2, B) -> (B,)

    def _loss(
        self,
        params: tuple,
        fixed_critic: nets.Params,
        batch: Batch,
        target_q: Tensor,
        noise: Tensor,
        taught: Tensor,
        key: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """The three losses touch disjoint parameters, so their sum is one backward pass."""
        critic, velocity, actor = params
        valid = batch.extras["valid"]  # (B, h)
        q = flow.q_values(critic, batch.obs, batch.action)  # (2, B)
        critic_loss = (torch.square(q - target_q) * valid[:, -1]).mean()
        bc_loss = flow.bc_loss(velocity, batch.obs, batch.action, valid, key)

        action = flow.one_step(actor, batch.obs, noise)
        distill_loss = torch.square(action - taught).mean()
        actor_q = flow.q_values(fixed_critic, batch.obs, action.clamp(-1, 1))
        actor_q = actor_q.mean(0)  # (2, B) -> (B,)
        scale = 1 / actor_q.abs().mean().detach() if self.normalize_q else 1.0
        actor_loss = self.distill_weight * distill_loss - scale * actor_q.mean()

        metrics = {
            "critic_loss": critic_loss,
            "bc_loss": bc_loss,
            "distill_loss": distill_loss,
            "q": q.mean(),
            # far above q: the actor exploits the critic
            "actor_q": actor_q.mean(),
            "target_q": target_q.mean(),
        }
        return critic_loss + bc_loss + actor_loss, metrics
