"""Implicit Q-learning (Kostrikov, Nair and Levine, 2021). https://arxiv.org/abs/2110.06169

V is an expectile regression on Q, so Q bootstraps from the best actions the data supports and never
evaluates an action outside it; the policy is then extracted by advantage-weighted regression.

All three losses use the parameters from before the update (CORL's order for the actor and V(s')).
Differs from the authors' code (ikostrikov/implicit_q_learning) unless switched: they step V first
and use the new V in the other two losses (`value_first`); their actor's learning rate decays on a
cosine over training (`actor_decay_steps`, in updates; afterwards it stays 0); their weights start
orthogonal (`weight_init`); they drop units of the actor on adroit and kitchen (`actor_dropout`).
Always: their critic's loss is the sum over the twins, ours the mean (Adam hardly sees it); their
log standard deviation is clipped to [-5, 2], ours, as CORL's, to [-20, 2].
If you come from CORL: `expectile` is `iql_tau`, `inverse_temperature` is `beta`, `polyak_rate` is
`tau`, `deterministic` is `iql_deterministic`; its runs are `actor_decay_steps` = n_updates.

Metrics: the three losses, the mean of V, the mean of the clipped advantage weights.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Fraction, PolyakRate, Positive, Probability, Steps, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: nets.Gaussian
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    value: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class IQL:
    # tau of the expectile regression
    expectile: Fraction = 0.7
    # beta: 0 clones the data, larger values follow the advantage more closely
    inverse_temperature: float = 3.0
    max_weight: Positive = 100.0
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    # actor by weighted squared error; otherwise by Gaussian likelihood
    deterministic: bool = False
    # the actor and Q learn with V of after its step
    value_first: bool = False
    # cosine decay of the actor's rate to 0 over so many updates; 0: none
    actor_decay_steps: Steps = 0
    # probability of dropping a hidden unit of the actor while training
    actor_dropout: Probability = 0.0
    weight_init: Literal["torch", "orthogonal"] = "torch"

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic, k_value = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        init = partial(nets.mlp_init, weight=self.weight_init)
        mean = init(k_actor, (n_obs, *self.hidden, n_act))
        actor: nets.Gaussian = {"mean": mean, "log_std": torch.zeros(n_act, device=key.device)}
        critic = init(k_critic, (n_obs + n_act, *self.hidden, 1), ensemble=2)
        value = init(k_value, (n_obs, *self.hidden, 1))
        opt = Adam(self.lr).init((actor, critic, value))
        return State(actor, critic, critic, value, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.actor, state.critic, state.value)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state.target_critic, batch, key)
        if self.value_first:
            opt_value = AdamState(state.opt.count, state.opt.mu[2], state.opt.nu[2])
            value, _ = Adam(self.lr).step(grads[2], opt_value, state.value)
            stepped = (state.actor, state.critic, value)
            (*others, _), (_, later) = loss(stepped, state.target_critic, batch, key)
            grads = (*others, grads[2])
            metrics = later | {name: metrics[name] for name in ("value_loss", "v")}
        (actor, critic, value), opt = Adam(self.lr).step(grads, state.opt, params)
        # Adam's step is proportional to its rate
        if self.actor_decay_steps:
            done = (state.opt.count / self.actor_decay_steps).clamp(max=1)
            actor = polyak(state.actor, actor, 0.5 * (1 + torch.cos(torch.pi * done)))
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(actor, critic, target_critic, value, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor["mean"], obs).tanh()

    def gaussian_policy(self, state: State, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (E, A) and log standard deviation (A,) of the policy that is learned."""
        return self.act(state, obs, obs), state.actor["log_std"].clamp(-20.0, 2.0)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return nets.mlp(state.critic, torch.cat([obs, action], -1)).squeeze(-1).amin(0)

    def _loss(
        self, params: tuple, target_critic: nets.Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The three losses touch disjoint parameters, so their sum is one backward pass."""
        actor, critic, value = params
        obs_action = torch.cat([batch.obs, batch.action], -1)

        v = nets.mlp(value, batch.obs).squeeze(-1)  # (B,)
        target_q = nets.mlp(target_critic, obs_action).squeeze(-1).amin(0)  # (2, B) -> (B,)
        advantage = target_q - v
        # tau above zero, 1 - tau below
        side = (self.expectile - (advantage < 0).to(v.dtype)).abs()
        value_loss = (side * torch.square(advantage)).mean()

        next_v = nets.mlp(value, batch.next_obs).squeeze(-1).detach()
        q = nets.mlp(critic, obs_action).squeeze(-1)  # (2, B)
        critic_loss = torch.square(q - (batch.reward + batch.discount * next_v)).mean()

        weight = (self.inverse_temperature * advantage.detach()).exp().clamp(max=self.max_weight)
        drops = isinstance(self.actor_dropout, Tensor) or self.actor_dropout > 0
        mean = nets.mlp(
            actor["mean"], batch.obs, dropout=self.actor_dropout, key=key if drops else None
        ).tanh()
        if self.deterministic:
            # up to a scale and a constant
            log_prob = -torch.square(mean - batch.action).sum(-1)
        else:
            log_prob = gaussian_log_prob(mean, actor["log_std"].clamp(-20.0, 2.0), batch.action)
        actor_loss = -(weight * log_prob).mean()

        metrics = {
            "value_loss": value_loss,
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "v": v.mean(),
            "advantage_weight": weight.mean(),
        }
        return value_loss + critic_loss + actor_loss, metrics
