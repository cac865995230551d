"""Adaptive advantage-guided policy regularisation, A2PR (Liu et al., 2024). https://arxiv.org/abs/2405.19909

TD3+BC whose actor imitates the better of two actions, the data's and its own as a conditional VAE reconstructs it,
and only where one of them is no worse than V. The VAE learns from those actions of the data that are better than V.

    L_Q  = sum_i (y - Q_i(s, a))^2,  y = r + gamma min_i Q_i'(s', a'),  a' = pi'(s') + clipped noise
    L_V  = (min(y, r + gamma min_i Q_i(s', a')) - V(s))^2,  Q after its step, the same a'
    L_E  = c_vae 1[Q_1(s, a) > V(s)] |E(s, a) - a|^2 + KL / 2,  E encodes, draws z and decodes
    L_pi = -lambda Q_1(s, p) + u |p - a*|^2,  p = pi(s),  lambda = alpha / mean |Q_1(s, p)|
    a*   = E(s, p) if Q_1(s, E(s, p)) >= Q_1(s, a) else a
    u    = c_mask 1[Q_1(s, E(s, p)) >= V(s) or Q_1(s, a) > V(s)]

V is the one from before its step throughout. Squared errors and KL are means over dimensions. One `update` consumes
two minibatches: critics, V and VAE step on both, the actor and the targets move once, on the second.

Differs from the authors' code (ltlhuuu/A2PR f92a2a4): none known in the update. There, and here, the gradient of
|p - a*|^2 passes through E(s, p) too: where the VAE is nearly the identity it all but vanishes. `detach_target` stops it.
If you come from there: `cvae_weight` (c_vae) is `vae_weight`, `bc_weight` (c_mask) `mask`, `polyak_rate` `tau`;
rewards of ant mazes need a shift (`transforms.reward_affine.shift`), of which they give no value.

Metrics: `reconstruction_error` of rows with Q_1 > V, of which `taught` is the share; `bc_loss`, the second term of
L_pi; `imitating`, the share of rows with u > 0, `reconstructed` that of those whose a* is E(s, p).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.nn import cvae, nets
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec, minibatch

KL_WEIGHT = 0.5


class State(NamedTuple):
    actor: nets.Params
    # leading axis 2: the twins
    critic: nets.Params
    value: nets.Params
    cvae: cvae.Params
    target_actor: nets.Params
    target_critic: nets.Params
    opt_actor: AdamState
    opt_critic: AdamState
    opt_value: AdamState
    opt_cvae: AdamState


class Judged(NamedTuple):
    """The data's actions of a minibatch, (B,) each."""

    v: Tensor  # V(s) from before its step
    q: Tensor  # Q_1(s, a) from after the critics' step


@dataclass(frozen=True, kw_only=True)
class A2PR:
    # weight of Q against the imitation
    alpha: float = 2.5
    # c_vae, of the reconstruction against the KL
    cvae_weight: float = 1.0
    # c_mask, of the imitation where there is any
    bc_weight: float = 0.5
    # whether E(s, p) is a constant in the actor's loss
    detach_target: bool = False
    # sigma of the target policy's smoothing noise
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    polyak_rate: PolyakRate = 0.005
    # of actor, critics and V
    lr: Positive = 3e-4
    cvae_lr: Positive = 1e-3
    hidden: Widths = (256, 256, 256)
    # also V's; None: `hidden` and one more layer as its last
    critic_hidden: Widths | None = None
    cvae_hidden: Widths = (750, 750)
    minibatches: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k = rng.split(key, 4)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        wide = self.critic_hidden
        wide = (*self.hidden, *self.hidden[-1:]) if wide is None else wide
        actor = nets.mlp_init(k[0], (n_obs, *self.hidden, n_act))
        critic = nets.mlp_init(k[1], (n_obs + n_act, *wide, 1), ensemble=2)
        value = nets.mlp_init(k[2], (n_obs, *wide, 1))
        vae = cvae.init(k[3], n_obs, n_act, self.cvae_hidden)
        opts = [Adam(self.lr).init(part) for part in (actor, critic, value, vae)]
        return State(actor, critic, value, vae, actor, critic, *opts)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        *keys, k_actor = rng.split(key, self.minibatches + 1)
        for i, k in enumerate(keys):
            mini = minibatch(batch, i)
            state, judged, metrics = self._evaluate(state, mini, k)
        actor, opt, actor_metrics = _descend(
            self._actor_loss, self.lr, state.actor, state.opt_actor, state, mini, judged, k_actor
        )
        state = state._replace(
            actor=actor,
            opt_actor=opt,
            target_actor=polyak(state.target_actor, actor, self.polyak_rate),
            target_critic=polyak(state.target_critic, state.critic, self.polyak_rate),
        )
        return state, metrics | actor_metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor, obs).tanh()

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action).amin(0)

    def _evaluate(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Judged, Metrics]:
        """A step of the critics, then of V, then of the VAE."""
        k_target, k_cvae = rng.split(key)
        noise = self.policy_noise * rng.normal_like(k_target, batch.action)
        noise = noise.clamp(-self.noise_clip, self.noise_clip)
        next_action = (nets.mlp(state.target_actor, batch.next_obs).tanh() + noise).clamp(-1, 1)
        y = _target(state.target_critic, batch, next_action)
        x = torch.cat([batch.obs, batch.action], -1)
        critic, opt_critic, (q_loss, q) = _descend(
            _squared_error, self.lr, state.critic, state.opt_critic, x, y
        )
        y = torch.minimum(y, _target(critic, batch, next_action))
        value, opt_value, (v_loss, v) = _descend(
            _squared_error, self.lr, state.value, state.opt_value, batch.obs, y
        )
        judged = Judged(v, _q(_first(critic), batch.obs, batch.action))
        vae, opt_cvae, metrics = _descend(
            self._cvae_loss, self.cvae_lr, state.cvae, state.opt_cvae, batch, judged, k_cvae
        )
        metrics |= {"critic_loss": q_loss, "q": q.mean(), "value_loss": v_loss, "v": v.mean()}
        state = state._replace(
            critic=critic, value=value, cvae=vae,
            opt_critic=opt_critic, opt_value=opt_value, opt_cvae=opt_cvae,
        )  # fmt: skip
        return state, judged, metrics

    def _cvae_loss(
        self, vae: cvae.Params, batch: Batch, judged: Judged, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        recon, mean, log_std = cvae.reconstruct(vae, batch.obs, batch.action, key)
        error = torch.square(recon - batch.action).mean(-1)  # (B,)
        better = (judged.q > judged.v).to(error.dtype)
        kl = cvae.kl(mean, log_std).mean()
        loss = self.cvae_weight * (better * error).mean() + KL_WEIGHT * kl
        of_better = (better * error).sum() / better.sum().clamp(min=1)
        return loss, {"reconstruction_error": of_better, "kl": kl, "taught": better.mean()}

    def _actor_loss(
        self, actor: nets.Params, state: State, batch: Batch, judged: Judged, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        critic, action = _first(state.critic), nets.mlp(actor, batch.obs).tanh()
        q = _q(critic, batch.obs, action)  # (B,)
        scale = self.alpha / q.abs().mean().detach()
        recon, _, _ = cvae.reconstruct(state.cvae, batch.obs, action, key)
        recon = recon.detach() if self.detach_target else recon
        recon_q = _q(critic, batch.obs, recon)
        own = recon_q >= judged.q  # (B,) bool, as is `gate`
        target = torch.where(own[:, None], recon, batch.action)
        gate = (recon_q >= judged.v) | (judged.q > judged.v)
        imitated = gate.to(q.dtype)
        bc_loss = self.bc_weight * (imitated * torch.square(action - target).mean(-1)).mean()
        loss = bc_loss - scale * q.mean()
        share = (gate & own).to(q.dtype).sum() / imitated.sum().clamp(min=1)
        metrics = {"actor_loss": loss, "bc_loss": bc_loss, "imitating": imitated.mean()}
        return loss, metrics | {"reconstructed": share}


def _first(critic: nets.Params) -> nets.Params:
    """The first of the twins."""
    return [{name: p[0] for name, p in layer.items()} for layer in critic]


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(2, B) of the twins, (B,) of one of them."""
    return nets.mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)


def _target(critic: nets.Params, batch: Batch, next_action: Tensor) -> Tensor:
    """(B,): what one step and the smaller twin promise."""
    return batch.reward + batch.discount * _q(critic, batch.next_obs, next_action).amin(0)


def _squared_error(params: nets.Params, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    """Of one network or, summed, of twins to (B,): the loss, and with it their values (B,) or (2, B)."""
    values = nets.mlp(params, x).squeeze(-1)
    loss = torch.square(values - y).mean(-1).sum()
    return loss, (loss, values)


def _descend(
    loss: Any, lr: float, params: Any, opt: AdamState, *args: Any
) -> tuple[Any, AdamState, Any]:
    """One step of Adam: the parameters, its state, and what the loss tells beside its value."""
    grads, (_, told) = grad_and_value(loss, has_aux=True)(params, *args)
    params, opt = Adam(lr).step(grads, opt, params)
    return params, opt, told
