"""TD3+BC (Fujimoto and Gu, 2021). https://arxiv.org/abs/2106.06860

TD3 with a behaviour-cloning term in the actor's loss. The Q term is scaled by alpha / mean |Q|, so
one `alpha` serves every reward scale.

One `update` consumes two minibatches: the critics step on both, the actor and the targets move
once, on the second (the delayed policy update of TD3, `policy_freq = 2`).

Differs from the authors' code (sfujim/TD3_BC): none known in the update; observation normalisation
is the pipeline's `obs_norm`, on by default in conf/method/td3_bc.yaml as in the paper.
If you come from CORL: `alpha` is the same, `polyak_rate` is `tau`.
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
class TD3BC:
    # weight of Q against the cloning term
    alpha: float = 2.5
    # sigma of the target policy's smoothing noise
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
        actor = nets.mlp_init(k_actor, (n_obs, *self.hidden, n_act))
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
        grads, (actor_loss, bc_error) = actor_grad(state.actor, state.critic, mini)
        actor, opt = adam.step(grads, state.opt_actor, state.actor)
        state = state._replace(
            actor=actor,
            opt_actor=opt,
            target_actor=polyak(state.target_actor, actor, self.polyak_rate),
            target_critic=polyak(state.target_critic, state.critic, self.polyak_rate),
        )
        metrics = {
            "critic_loss": critic_loss,
            "q": q,
            "actor_loss": actor_loss,
            "bc_error": bc_error,
        }
        return state, metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor, obs).tanh()

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return nets.mlp(state.critic, torch.cat([obs, action], -1)).squeeze(-1).amin(0)

    def _critic_loss(
        self, critic: nets.Params, state: State, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        noise = self.policy_noise * rng.normal_like(key, batch.action)
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        next_action = (nets.mlp(state.target_actor, batch.next_obs).tanh() + noise).clamp(-1, 1)
        next_q = nets.mlp(state.target_critic, torch.cat([batch.next_obs, next_action], -1))
        target = batch.reward + batch.discount * next_q.squeeze(-1).amin(0)  # (2, B) -> (B,)
        q = nets.mlp(critic, torch.cat([batch.obs, batch.action], -1)).squeeze(-1)  # (2, B)
        return torch.square(q - target).mean(-1).sum(), q.mean()

    def _actor_loss(
        self, actor: nets.Params, critic: nets.Params, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        action = nets.mlp(actor, batch.obs).tanh()
        first = [{name: p[0] for name, p in layer.items()} for layer in critic]
        q = nets.mlp(first, torch.cat([batch.obs, action], -1)).squeeze(-1)  # (B,)
        scale = self.alpha / q.abs().mean().detach()
        bc_error = torch.square(action - batch.action).mean()
        return bc_error - scale * q.mean(), bc_error
