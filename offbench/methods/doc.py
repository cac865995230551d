"""Dichotomy of Control (Yang et al., 2022). https://arxiv.org/abs/2210.13435

A policy that is conditioned on returns takes the luck of an episode for its skill. Here it is conditioned
on a latent z of the steps ahead, encoded from the data, that holds what was done and not what happened:

    max over q(z | steps), pi, V   E[log pi(a_t | h_t, z)] - E[(V(h_t, z) - return-to-go_t)^2]
    subject to                     I(r_t, s_{t+1}; z | h_t, a_t) = 0

with h_t the steps up to s_t. An energy e measures the information and climbs where q descends; f gives
reward and next observation of another window, at the same place:

    max over e   E[e(h_t, a_t, z; r_t, s_{t+1}) - log E_f exp e(h_t, a_t, z; f)]

It is the information and a constant, how far (r_t, s_{t+1}) given (h_t, a_t) lie from f. Acting draws z of
the prior p(z | h_t), takes the one of the largest V, and pi's action. It learns from `view=window` and is
asked for no return. q reads whole windows of k steps; a history while acting has at most `past`, so that z
tells of k - past steps to come.

Differs from the authors' code (google-research/dichotomy_of_control), on purpose: q descends on the
information (theirs climbs with e); p learns from q (theirs is never trained); V ranks z of the prior
(theirs one z, repeated); e sees reward and next observation of one step (theirs a later observation, twice,
and a network of a step's own pair is multiplied by one of a shuffled pair); padding is not attended to;
past and future need not be equally long. As in the paper, q reads the window from its first step and the
constraint holds at each. Ours: one history for policy, V and p (theirs two), likelihood of discrete actions
(theirs squared error), KL summed over z's numbers (theirs averaged), V without tanh, e's learning rate.

Metrics: `action_loss`, `value_loss`, `prior_loss` KL(q || p), `information` with its constant.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.errors import UserError
from offbench.nn import nets, windows
from offbench.nn.distributions import greedy
from offbench.nn.optim import AdamState, AdamW, clip_by_global_norm
from offbench.ranges import Count, Positive, Probability, check_ranges
from offbench.types import Batch, Context, Metrics, Spec


class State(NamedTuple):
    # stacks that read history and steps, heads of q, p, pi and V
    params: dict
    # a network of (h, a, z) and one of (r, s'); their inner product is e
    energy: dict
    opt: AdamState
    energy_opt: AdamState


class Gaussian(NamedTuple):
    mean: Tensor
    log_std: Tensor


@dataclass(frozen=True, kw_only=True)
class DoC:
    # of the information
    energy_weight: float = 1.0
    # of KL(q || p) in the loss of q; p learns from all of it
    kl_weight: float = 0.1
    # z drawn to choose from
    n_latents: Count = 100
    # steps of a history while acting
    past: Count = 20
    latent_dim: Count = 32
    width: Count = 128
    layers: Count = 3
    heads: Count = 1
    dropout: Probability = 0.1
    lr: Positive = 1e-4
    energy_lr: Positive = 3e-4
    # updates until the learning rates are reached
    warmup: int = 1000
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.25
    actions: Literal["continuous", "discrete"] = "continuous"
    needs: ClassVar[tuple[str, ...]] = ("context", "steps")
    trained_together: ClassVar = (("params", "energy"),)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.heads:
            raise UserError(
                f"method.width={self.width} must be a multiple of method.heads={self.heads}"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        k, w, n_z, n_act = rng.split(key, 7), self.width, self.latent_dim, spec.action_dim
        stacks = ("history", "steps")
        params = windows.init(k[0], spec, width=w, layers=self.layers, stacks=stacks) | {
            "encoder": nets.mlp_init(k[1], (w, 2 * n_z)),
            "prior": nets.mlp_init(k[2], (w, 2 * n_z)),
            "policy": nets.mlp_init(k[3], (w + n_z, w, n_act)),
            "value": nets.mlp_init(k[4], (w + n_z, w, 1)),
        }
        energy = {
            "cause": nets.mlp_init(k[5], (w + n_act + n_z, w, w)),
            "effect": nets.mlp_init(k[6], (1 + spec.obs_dim, w, w)),
        }
        opt, energy_opt = self._optimisers()
        return State(params, energy, opt.init(params), energy_opt.init(energy))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        slopes = grad_and_value(self._loss, argnums=(0, 1), has_aux=True)
        (grads, rise), (_, metrics) = slopes(state.params, state.energy, batch, key)
        grads, norm = clip_by_global_norm(grads, self.max_grad_norm)
        opt, energy_opt = self._optimisers()
        params, after = opt.step(grads, state.opt, state.params)
        # e climbs on what q descends on
        climb = tree_map(torch.neg, rise)
        energy, energy_after = energy_opt.step(climb, state.energy_opt, state.energy)
        return State(params, energy, after, energy_after), metrics | {"grad_norm": norm}

    def act(self, state: State, obs: Context, key: Tensor) -> Tensor:
        context, last = windows.latest(obs, self.past)
        h = self._history(state.params, context)  # (E, K, W)
        h = h.gather(1, last[:, None, None].expand(-1, 1, h.shape[-1]))
        prior = _gaussian(state.params["prior"], h)  # (E, 1, Z)
        noise = rng.normal(key, (len(h), self.n_latents, self.latent_dim), h.dtype)
        z = prior.mean + prior.log_std.exp() * noise
        given = torch.cat([h.expand(-1, self.n_latents, -1), z], -1)  # (E, n, W + Z)
        best = nets.mlp(state.params["value"], given).argmax(1, keepdim=True)  # (E, 1, 1)
        given = given.gather(1, best.expand(-1, 1, given.shape[-1])).squeeze(1)
        out = nets.mlp(state.params["policy"], given)
        return out.tanh() if self.actions == "continuous" else greedy(out)

    def _optimisers(self) -> tuple[AdamW, AdamW]:
        of = lambda lr: AdamW(lr, self.weight_decay, self.warmup)
        return of(self.lr), of(self.energy_lr)

    def _loss(
        self, params: dict, energy: dict, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        context, reward = batch.obs, batch.extras["step_reward"]
        k_z, k_history, k_steps = rng.split(key, 3)
        h = self._history(params, context, k_history)  # (B, K, W)
        q, p = self._encoded(params, context, reward, k_steps), _gaussian(params["prior"], h)
        z = q.mean + q.log_std.exp() * rng.normal(k_z, tuple(q.mean.shape), h.dtype)
        z = z.expand(*h.shape[:2], -1)  # (B, K, Z)
        given = torch.cat([h, z], -1)
        value = nets.mlp(params["value"], given).squeeze(-1)
        cause = torch.cat([h.detach(), context.action, z], -1)
        effect = torch.cat([reward[..., None], batch.extras["step_next_obs"]], -1)
        constant = lambda gaussian: tree_map(torch.detach, gaussian)
        valid = context.valid.to(h.dtype)
        mean = lambda x: (x * valid).sum() / valid.sum()
        metrics = {
            "action_loss": mean(self._error(nets.mlp(params["policy"], given), context.action)),
            "value_loss": mean(torch.square(value - context.return_to_go)),
            "prior_loss": mean(_kl(constant(q), p)),
            "information": mean(_information(energy, cause, effect, context.valid)),
        }
        loss = metrics["action_loss"] + metrics["value_loss"] + metrics["prior_loss"]
        loss = loss + self.kl_weight * mean(_kl(q, constant(p)))
        return loss + self.energy_weight * metrics["information"], metrics

    def _error(self, out: Tensor, action: Tensor) -> Tensor:
        if self.actions == "continuous":
            return torch.square(out.tanh() - action).mean(-1)
        return -(out.log_softmax(-1) * action).sum(-1)

    def _history(self, params: dict, context: Context, key: Tensor | None = None) -> Tensor:
        """What is known at each observation, rewards received since the window began included: (B, K, W)."""
        to_go = context.return_to_go
        received = torch.cat([torch.zeros_like(to_go[:, :1]), to_go[:, :-1] - to_go[:, 1:]], 1)
        heads, dropout = self.heads, self.dropout
        out = windows.read(
            params, "history", context, received, heads=heads, dropout=dropout, key=key
        )
        return out[:, :, windows.OBS]

    def _encoded(
        self, params: dict, context: Context, reward: Tensor, key: Tensor | None = None
    ) -> Gaussian:
        """q(z | steps), which reads all steps of a window and their rewards: (B, 1, Z)."""
        heads, dropout = self.heads, self.dropout
        mask = windows.all_steps(context)
        out = windows.read(
            params, "steps", context, reward, heads=heads, dropout=dropout, mask=mask, key=key
        )
        return _gaussian(params["encoder"], out[:, :1, windows.OBS])


def _gaussian(head: nets.Params, x: Tensor) -> Gaussian:
    mean, log_std = nets.mlp(head, x).chunk(2, -1)
    return Gaussian(mean, log_std.clamp(-5.0, 2.0))


def _kl(a: Gaussian, b: Gaussian) -> Tensor:
    """KL(a || b) of diagonal Gaussians: (..., Z) -> (...)."""
    square = torch.square(a.mean - b.mean) + (2 * a.log_std).exp()
    return (b.log_std - a.log_std + 0.5 * square * (-2 * b.log_std).exp() - 0.5).sum(-1)


def _information(energy: dict, cause: Tensor, effect: Tensor, valid: Tensor) -> Tensor:
    """How well causes (h, a, z) tell their own effects (r, s') from those of other windows: (B, K)."""
    pair = [nets.mlp(energy["cause"], cause), nets.mlp(energy["effect"], effect)]
    cause, effect = (x.transpose(0, 1) for x in pair)  # (K, B, W)
    energies = cause @ effect.mT  # (K, B, B)
    same = torch.eye(energies.shape[-1], dtype=energies.dtype, device=energies.device)
    own = (energies * same).sum(-1)  # (K, B)
    energies = energies.masked_fill(valid.mT.logical_not()[:, None], -1e9)
    n = valid.sum(0).clamp(min=1).to(cause.dtype)[:, None]
    return (own - energies.logsumexp(-1) + n.log()).mT
