"""TD3+BC with a mixture of actions as its actor, where the data act in several ways at one state.

The actor has K actions mu_k(s) with weights w_k(s) (offbench/nn/mixture.py). Its loss is TD3+BC's with the
expectation of Q over the components, differentiated through weights and actions without drawing one (the
marginalised reparameterisation gradient, https://arxiv.org/abs/2605.09157), and with the soft minimum of the
components' squared errors in the place of the squared error, so that each action of the data is cloned by the
component that is near it:

    L_pi = BC - alpha / mean |Q| * E_k[Q_1(s, mu_k)],  BC = -2 sigma^2 log sum over k of w_k exp(-e_k / (2 sigma^2))

with e_k the mean over the action's dimensions of (a - mu_k)^2; one component makes this TD3+BC's loss. Targets
are expectations over the target actor's components, each with smoothing noise of its own. It acts by the
heaviest component.

The paper, whose code is not public, has mixtures as actors of online methods; this combination is offbench's own.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import mixture, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec, minibatch


class State(NamedTuple):
    actor: mixture.Params
    # leading axis 2: the twins
    critic: nets.Params
    target_actor: mixture.Params
    target_critic: nets.Params
    opt_actor: AdamState
    opt_critic: AdamState


@dataclass(frozen=True, kw_only=True)
class TD3BCMix:
    components: Count = 4  # K
    # weight of Q against the cloning term
    alpha: float = 2.5
    # sigma: errors of components are told apart on this scale
    width: Positive = 0.2
    # of the target policy's smoothing noise
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    minibatches: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic = rng.split(key)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        actor = mixture.init(k_actor, (n_obs, *self.hidden, n_act), self.components)
        critic = nets.mlp_init(k_critic, (n_obs + n_act, *self.hidden, 1), ensemble=2)
        adam = Adam(self.lr)
        return State(actor, critic, actor, critic, adam.init(actor), adam.init(critic))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        adam = Adam(self.lr)
        for i, k in enumerate(rng.split(key, self.minibatches)):
            mini = minibatch(batch, i)
            grad = grad_and_value(self._critic_loss, has_aux=True)
            grads, (critic_loss, q) = grad(state.critic, state, mini, k)
            critic, opt = adam.step(grads, state.opt_critic, state.critic)
            state = state._replace(critic=critic, opt_critic=opt)

        actor_grad = grad_and_value(self._actor_loss, has_aux=True)
        grads, (_, metrics) = actor_grad(state.actor, state.critic, mini)
        actor, opt = adam.step(grads, state.opt_actor, state.actor)
        state = state._replace(
            actor=actor,
            opt_actor=opt,
            target_actor=polyak(state.target_actor, actor, self.polyak_rate),
            target_critic=polyak(state.target_critic, state.critic, self.polyak_rate),
        )
        return state, {"critic_loss": critic_loss, "q": q} | metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return mixture.best(mixture.at(state.actor, obs))

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action).amin(0)

    def _critic_loss(
        self, critic: nets.Params, state: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        policy = mixture.at(state.target_actor, batch.next_obs)
        noise = self.policy_noise * rng.normal_like(key, policy.mean)
        action = (policy.mean + noise.clamp(-self.noise_clip, self.noise_clip)).clamp(-1, 1)
        next_q = mixture.expected(
            policy, lambda a: _q(state.target_critic, self._repeated(batch.next_obs), a), action
        )  # (2, B)
        target = batch.reward + batch.discount * next_q.amin(0)
        q = _q(critic, batch.obs, batch.action)  # (2, B)
        return torch.square(q - target).mean(-1).sum(), q.mean()

    def _actor_loss(
        self, actor: mixture.Params, critic: nets.Params, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        policy = mixture.at(actor, batch.obs)
        first = [{name: p[0] for name, p in layer.items()} for layer in critic]
        q = mixture.expected(
            policy, lambda a: _q(first, self._repeated(batch.obs), a), policy.mean
        )  # (B,)
        scale = self.alpha / q.abs().mean().detach()
        error = torch.square(batch.action[:, None] - policy.mean).mean(-1)  # (B, K)
        wide = 2 * self.width**2
        bc_error = -wide * (policy.log_weight - error / wide).logsumexp(-1).mean()
        loss = bc_error - scale * q.mean()
        # 1: one component has all the weight; 1 / K: all have the same
        heaviest = policy.log_weight.exp().amax(-1).mean()
        return loss, {"actor_loss": loss, "bc_error": bc_error, "heaviest": heaviest}

    def _repeated(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B * K, O): the observation of each component."""
        return obs.repeat_interleave(self.components, 0)


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(2, B): each twin's value, or (B,) that of one."""
    return nets.mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)
