"""Extreme Q-learning (Garg, Hejna, Geist and Ermon, 2023). https://arxiv.org/abs/2301.02328

IQL with the expectile regression of V replaced by Gumbel regression, whose minimiser is the soft
maximum of Q over the data's actions, temperature * log E exp(Q / temperature).

V steps first; the actor and Q learn with the new V. V's network normalises its layers.

Differs from the authors' code (Div99/XQL): not offered are its smoothing of V's actions (`noise`,
`sample_random_times`), several steps of V in one update, dropout, and the logarithm of the loss
(datasets whose settings need one of the first three have no row for preset=paper); weights start as
in torch.nn.Linear, theirs orthogonal; the log standard deviation is clipped to [-20, 2], theirs to
[-5, 2]. The critic's loss is their Huber loss with threshold 20.
If you come from the authors' code: `value_temperature` is `temp`, `max_exponent` is `max_clip`,
`inverse_temperature` is `temperature`, `polyak_rate` is `tau`.

Metrics: the three losses, the mean of V, the mean advantage weight, and the share of the batch whose
exponent is clipped (near 1, V learns from nothing but the clip: raise `value_temperature`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import PolyakRate, Positive, Steps, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: nets.Gaussian
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    value: nets.Params
    # of the actor and the critic
    opt: AdamState
    opt_value: AdamState


@dataclass(frozen=True, kw_only=True)
class XQL:
    # of the soft maximum that V is, in units of reward
    value_temperature: Positive = 2.0
    max_exponent: float = 7.0  # (Q - V) / value_temperature is clipped above
    # beta: 0 clones the data, larger values follow the advantage more closely
    inverse_temperature: float = 3.0
    max_weight: Positive = 100.0
    # beyond it the critic's loss is linear
    huber_delta: Positive = 20.0
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    # cosine decay of the actor's rate to 0 over so many updates; 0: none
    actor_decay_steps: Steps = 0

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic, k_value = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        mean = nets.mlp_init(k_actor, (n_obs, *self.hidden, n_act))
        actor: nets.Gaussian = {"mean": mean, "log_std": torch.zeros(n_act, device=key.device)}
        critic = nets.mlp_init(k_critic, (n_obs + n_act, *self.hidden, 1), ensemble=2)
        value = nets.mlp_init(k_value, (n_obs, *self.hidden, 1), layer_norm=True)
        adam = Adam(self.lr)
        return State(actor, critic, critic, value, adam.init((actor, critic)), adam.init(value))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        # XQL draws nothing while training
        del key
        adam = Adam(self.lr)
        obs_action = torch.cat([batch.obs, batch.action], -1)
        target_q = nets.mlp(state.target_critic, obs_action).squeeze(-1).amin(0)  # (2, B) -> (B,)

        grads, (_, value_metrics) = grad_and_value(self._value_loss, has_aux=True)(
            state.value, target_q, batch
        )
        value, opt_value = adam.step(grads, state.opt_value, state.value)

        params = (state.actor, state.critic)
        advantage, next_v = target_q - _v(value, batch.obs), _v(value, batch.next_obs)
        grads, (_, metrics) = grad_and_value(self._loss, has_aux=True)(
            params, advantage, next_v, batch
        )
        (actor, critic), opt = adam.step(grads, state.opt, params)
        # Adam's step is proportional to its rate
        if self.actor_decay_steps:
            done = (state.opt.count / self.actor_decay_steps).clamp(max=1)
            actor = polyak(state.actor, actor, 0.5 * (1 + torch.cos(torch.pi * done)))
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        state = State(actor, critic, target_critic, value, opt, opt_value)
        return state, value_metrics | metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor["mean"], obs).tanh()

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return nets.mlp(state.critic, torch.cat([obs, action], -1)).squeeze(-1).amin(0)

    def _value_loss(
        self, value: nets.Params, target_q: Tensor, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """exp(z) - z - 1 with z = (Q - V) / temperature, times exp(-max z), a constant for the gradient."""
        v = _v(value, batch.obs)
        z = (target_q - v) / self.value_temperature
        clipped = (z > self.max_exponent).to(z.dtype).mean()
        z = z.clamp(max=self.max_exponent)
        top = z.max().clamp(min=-1).detach()
        loss = ((z - top).exp() - (z + 1) * (-top).exp()).mean()
        return loss, {"value_loss": loss, "v": v.mean(), "clipped_share": clipped}

    def _loss(
        self, params: tuple, advantage: Tensor, next_v: Tensor, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """The two losses touch disjoint parameters, so their sum is one backward pass."""
        actor, critic = params
        q = nets.mlp(critic, torch.cat([batch.obs, batch.action], -1)).squeeze(-1)  # (2, B)
        error = (q - (batch.reward + batch.discount * next_v)).abs()
        near = error.clamp(max=self.huber_delta)
        critic_loss = (near * (error - 0.5 * near)).mean(-1).sum()

        weight = (self.inverse_temperature * advantage).exp().clamp(max=self.max_weight)
        mean = nets.mlp(actor["mean"], batch.obs).tanh()
        log_prob = gaussian_log_prob(mean, actor["log_std"].clamp(-20.0, 2.0), batch.action)
        actor_loss = -(weight * log_prob).mean()
        return critic_loss + actor_loss, {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "advantage_weight": weight.mean(),
        }


def _v(value: nets.Params, obs: Tensor) -> Tensor:
    """(B, O) -> (B,)."""
    return nets.mlp(value, obs, layer_norm="before", eps=1e-6).squeeze(-1)
