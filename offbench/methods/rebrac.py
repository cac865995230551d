"""ReBRAC (Tarasov, Kurenkov, Nikulin and Kolesnikov, 2023). https://arxiv.org/abs/2305.09836

TD3+BC with what later work found to matter: the distance to the data is penalised in the critic's
target as well as in the actor's loss, each with its own weight; critics are deeper and normalise
their layers; batches are larger.

One `update` consumes two minibatches, as `policy_freq = 2` there: the critics step on both, the
actor and the targets move once, on the first. Distances are sums over the action's dimensions, not
means as in TD3+BC. The next action of the data is `batch.extras["next_action"]`.

Differs from the authors' code (tinkoff-ai/ReBRAC; the same in CORL): none known in the update. Their
next action after a terminal is the next episode's first, ours zeros; a discount of 0 hides both.
If you come from CORL: `actor_bc_weight` is `actor_bc_coef`, `critic_bc_weight` is `critic_bc_coef`,
`polyak_rate` is `tau`; `critic_ln` and `normalize_q` are always on, `actor_ln` is always off.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec, minibatch


class State(NamedTuple):
    actor: nets.Params
    # leading axis 2: the twins
    critic: nets.Params
    target_actor: nets.Params
    target_critic: nets.Params
    opt_actor: AdamState
    opt_critic: AdamState


@dataclass(frozen=True, kw_only=True)
class ReBRAC:
    # beta_1, on the distance of the policy's action from the data's
    actor_bc_weight: float = 0.01
    # beta_2, on the same distance at the next step, in the target
    critic_bc_weight: float = 0.01
    # sigma of the target policy's smoothing noise
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    polyak_rate: PolyakRate = 0.005
    actor_lr: Positive = 1e-3
    critic_lr: Positive = 1e-3
    hidden: Widths = (256, 256, 256)
    minibatches: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("next_action",)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic = rng.split(key)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        actor = nets.mlp_init(k_actor, (n_obs, *self.hidden, n_act), bias=0.1, last=1e-3)
        critic = nets.mlp_init(
            k_critic,
            (n_obs + n_act, *self.hidden, 1),
            ensemble=2,
            bias=0.1,
            last=3e-3,
            layer_norm=True,
        )
        opt_actor, opt_critic = Adam(self.actor_lr).init(actor), Adam(self.critic_lr).init(critic)
        return State(actor, critic, actor, critic, opt_actor, opt_critic)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_first, k_second = rng.split(key)
        first, second = minibatch(batch, 0), minibatch(batch, 1)
        state, _ = self._critic_step(state, first, k_first)
        state, actor_metrics = self._actor_step(state, first)
        state, critic_metrics = self._critic_step(state, second, k_second)
        return state, critic_metrics | actor_metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor, obs).tanh()

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action).amin(0)

    def _critic_step(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        grad = grad_and_value(self._critic_loss, has_aux=True)
        grads, (_, metrics) = grad(state.critic, state, batch, key)
        critic, opt = Adam(self.critic_lr).step(grads, state.opt_critic, state.critic)
        return state._replace(critic=critic, opt_critic=opt), metrics

    def _actor_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        grad = grad_and_value(self._actor_loss, has_aux=True)
        grads, (_, metrics) = grad(state.actor, state.critic, batch)
        # as the authors do, the target follows the actor of before this step
        target_actor = polyak(state.target_actor, state.actor, self.polyak_rate)
        target_critic = polyak(state.target_critic, state.critic, self.polyak_rate)
        actor, opt = Adam(self.actor_lr).step(grads, state.opt_actor, state.actor)
        state = state._replace(
            actor=actor, opt_actor=opt, target_actor=target_actor, target_critic=target_critic
        )
        return state, metrics

    def _critic_loss(
        self, critic: nets.Params, state: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        noise = self.policy_noise * rng.normal_like(key, batch.action)
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        next_action = (nets.mlp(state.target_actor, batch.next_obs).tanh() + noise).clamp(-1, 1)
        next_error = torch.square(next_action - batch.extras["next_action"]).sum(-1)  # (B,)
        next_q = _q(state.target_critic, batch.next_obs, next_action).amin(0)  # (2, B) -> (B,)
        next_v = next_q - self.critic_bc_weight * next_error
        target = batch.reward + batch.discount * next_v
        q = _q(critic, batch.obs, batch.action)  # (2, B)
        loss = torch.square(q - target).mean(-1).sum()
        # next_bc_error: of rows that bootstrap; after a terminal there is no next action
        alive = (batch.discount > 0).to(q.dtype)
        next_bc_error = (alive * next_error).sum() / alive.sum().clamp(min=1)
        return loss, {"critic_loss": loss, "q": q.mean(), "next_bc_error": next_bc_error}

    def _actor_loss(
        self, actor: nets.Params, critic: nets.Params, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        action = nets.mlp(actor, batch.obs).tanh()
        q = _q(critic, batch.obs, action).amin(0)  # (2, B) -> (B,)
        scale = 1 / q.abs().mean().detach()
        bc_error = torch.square(action - batch.action).sum(-1).mean()
        loss = self.actor_bc_weight * bc_error - scale * q.mean()
        return loss, {"actor_loss": loss, "bc_error": bc_error, "q_policy": q.mean()}


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(2, B): each twin's value."""
    x = torch.cat([obs, action], -1)
    return nets.mlp(critic, x, layer_norm="after", eps=1e-6).squeeze(-1)
