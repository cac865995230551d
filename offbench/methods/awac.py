"""AWAC (Nair, Gupta, Dalal and Levine, 2020). https://arxiv.org/abs/2006.09359

An actor-critic whose actor is regression on the dataset's actions, weighted by the exponential of
their advantage: the critic evaluates the policy's own actions, the actor never leaves the data.

Follows CORL's AWAC, the source of the published table: the value of a state is that of one
sample of the policy, weights are clipped, not normalised, the Gaussian's mean is not squashed
and samples are clipped to the bounds.
Differs from the authors' code (rail-berkeley/rlkit): there weights are a softmax over the batch, the
actor learns from the critics of before their step, has 4 hidden layers, weight decay and a log
standard deviation in [-6, 0], batches are 1024, and training goes on online. From CORL's: none known;
the mean is clipped to the bounds when acting, which its environments do.
With `components` above 1 the actor is a mixture of so many Gaussians (offbench/nn/mixture.py), which no
paper of AWAC has. If you come from CORL: `temperature` is `awac_lambda`, `polyak_rate` is `tau`.

Metrics: both losses, Q on the data, V (Q on the policy's actions), the mean weight, and the share of
the batch that the weights amount to (effective sample size: 1 when all are equal, 1/B for one row).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import mixture, nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec

Actor = nets.Gaussian | mixture.Params


class State(NamedTuple):
    # the second with `components`
    actor: Actor
    # leading axis 2: the twins
    critic: nets.Params
    target_critic: nets.Params
    opt_actor: AdamState
    opt_critic: AdamState


@dataclass(frozen=True, kw_only=True)
class AWAC:
    # lambda: weights are exp(advantage / temperature)
    temperature: Positive = 0.3333
    max_weight: Positive = 100.0
    # of a mixture
    components: Count = 1
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (256, 256, 256)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic = rng.split(key)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        sizes = (n_obs, *self.hidden, n_act)
        actor: Actor
        if self.components > 1:
            actor = mixture.init(k_actor, sizes, self.components)
        else:
            log_std = torch.zeros(n_act, device=key.device)
            actor = {"mean": nets.mlp_init(k_actor, sizes), "log_std": log_std}
        critic = nets.mlp_init(k_critic, (n_obs + n_act, *self.hidden, 1), ensemble=2)
        adam = Adam(self.lr)
        return State(actor, critic, critic, adam.init(actor), adam.init(critic))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_next, k_now = rng.split(key)
        adam = Adam(self.lr)
        grad = grad_and_value(self._critic_loss, has_aux=True)
        grads, (_, critic_metrics) = grad(state.critic, state, batch, k_next)
        critic, opt_critic = adam.step(grads, state.opt_critic, state.critic)

        # with the critics of after their step
        actor_grad = grad_and_value(self._actor_loss, has_aux=True)
        grads, (_, actor_metrics) = actor_grad(state.actor, critic, batch, k_now)
        actor, opt_actor = adam.step(grads, state.opt_actor, state.actor)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        state = State(actor, critic, target_critic, opt_actor, opt_critic)
        return state, critic_metrics | actor_metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        if isinstance(state.actor, mixture.Params):
            return mixture.best(mixture.at(state.actor, obs))
        return nets.mlp(state.actor["mean"], obs).clamp(-1, 1)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action).amin(0)

    def _critic_loss(
        self, critic: nets.Params, state: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        next_action = _sample(state.actor, batch.next_obs, key)
        next_q = _q(state.target_critic, batch.next_obs, next_action).amin(0)  # (2, B) -> (B,)
        target = batch.reward + batch.discount * next_q
        q = _q(critic, batch.obs, batch.action)  # (2, B)
        loss = torch.square(q - target).mean(-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def _actor_loss(
        self, actor: Actor, critic: nets.Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        rows = torch.cat([batch.action, _sample(actor, batch.obs, key).detach()])  # (2B, A)
        twice = torch.cat([batch.obs, batch.obs])
        q, v = _q(critic, twice, rows).amin(0).chunk(2)  # (2, 2B) -> (B,), (B,)
        weight = ((q - v) / self.temperature).exp().clamp(max=self.max_weight).detach()
        log_prob = _log_prob(actor, batch.obs, batch.action)
        loss = -(weight * log_prob).mean()
        effective = weight.mean().square() / weight.square().mean()
        return loss, {
            "actor_loss": loss,
            "v": v.mean(),
            "advantage_weight": weight.mean(),
            "effective_share": effective,
        }


def _gaussian(actor: nets.Gaussian, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, A) and log standard deviation (A,)."""
    return nets.mlp(actor["mean"], obs), actor["log_std"].clamp(-20.0, 2.0)


def _log_prob(actor: Actor, obs: Tensor, action: Tensor) -> Tensor:
    if isinstance(actor, mixture.Params):
        return mixture.log_prob(mixture.at(actor, obs), action)
    return gaussian_log_prob(*_gaussian(actor, obs), action)


def _sample(actor: Actor, obs: Tensor, key: Tensor) -> Tensor:
    if isinstance(actor, mixture.Params):
        return mixture.sample(mixture.at(actor, obs), key)
    mean, log_std = _gaussian(actor, obs)
    return (mean + log_std.exp() * rng.normal_like(key, mean)).clamp(-1, 1)


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(2, B): each twin's value."""
    return nets.mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)
