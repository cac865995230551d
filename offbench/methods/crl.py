"""Contrastive RL, CRL (Eysenbach et al., 2022), in OGBench's form. https://arxiv.org/abs/2206.07568

A classifier tells the state that followed (s, a) in its episode from those that followed others. Its logit is
the logarithm of how much more often g is visited after (s, a) than at all, discounted, and up to a constant.

    f_i(s, a, g) = phi_i(s, a) . psi_i(g) / sqrt(d),  i = 1, 2
    L_f  = mean over i, j, k of the cross entropy of sigmoid(f_i(s_j, a_j, g_k)) and 1(j = k)      (binary NCE)
    L_pi = -mean f(s, pi, g) / mean |f| - alpha log pi(a | s, g)      (`actor_loss="ddpg_bc"`)
    L_pi = -min(exp(alpha (f(s, a, g) - v(s, g))), 100) log pi(a | s, g)      (`actor_loss="awr"`)

In L_pi f is the smaller of the twins and pi the mean clipped to [-1, 1]; v is a logit without the action,
learned as f is, and only with AWR. Goals of the batch must be later states alone (view.value_goals=[0,1,0]) and
geometric with the discount. Rewards and discounts are not read. As in seohongpark/ogbench 1d41409,
impls/agents/crl.py, where alpha is one setting for both actors: here `bc_weight` and `inverse_temperature`.

Metrics: the losses, and the mean logits of what followed and of what did not.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import UserError
from offbench.nn import goal_nets, nets
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Count, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class Bilinear(NamedTuple):
    """Logits phi . psi / sqrt(d)."""

    phi: nets.Params
    psi: nets.Params


class State(NamedTuple):
    # leading axis 2: the twins
    critic: Bilinear
    # with AWR alone
    value: Bilinear | tuple[()]
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class CRL:
    actor_loss: Literal["ddpg_bc", "awr"] = "ddpg_bc"
    # alpha of DDPG+BC
    bc_weight: float = 0.1
    # alpha of AWR
    inverse_temperature: float = 3.0
    latent_dim: Count = 512
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals", "later_goals")

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, spec: Spec) -> None:
        if spec.goal_dim == 0:
            raise UserError("crl learns from goals: view=goal")

    def init(self, key: Tensor, spec: Spec) -> State:
        self.check(spec)
        k = rng.split(key, 5)
        n_obs, n_act, n_goal = spec.obs_dim - spec.goal_dim, spec.action_dim, spec.goal_dim
        sizes = (self.hidden, self.latent_dim)
        critic = Bilinear(
            goal_nets.value_init(k[0], n_obs + n_act, *sizes),
            goal_nets.value_init(k[1], n_goal, *sizes),
        )
        value = Bilinear(
            goal_nets.value_init(k[2], n_obs, *sizes, ensemble=None),
            goal_nets.value_init(k[3], n_goal, *sizes, ensemble=None),
        )
        actor = goal_nets.actor_init(k[4], spec.obs_dim, self.hidden, n_act)
        used = value if self.actor_loss == "awr" else ()
        return State(critic, used, actor, Adam(self.lr).init((critic, used, actor)))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = (state.critic, state.value, state.actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        (critic, value, actor), opt = Adam(self.lr).step(grads, state.opt, params)
        return State(critic, value, actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return goal_nets.actor(state.actor, obs).clamp(-1, 1)

    def logit(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller f of the twins: (E, O + G), (E, A) -> (E,)."""
        return _logits(state.critic, obs, action).amin(0)

    def _loss(self, params: tuple, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        critic, value, actor = params
        logits = _all_logits(critic, batch.obs, batch.action)
        metrics = {"critic_loss": _nce(logits)}
        if self.actor_loss == "awr":
            metrics["value_loss"] = _nce(_all_logits(value, batch.obs))
        metrics["actor_loss"] = self._actor_loss(actor, before, batch)
        loss = torch.stack(list(metrics.values())).sum()
        same = _same(logits)
        followed, others = ((logits * where).sum() / where.sum() / 2 for where in (same, 1 - same))
        return loss, metrics | {"logit": followed, "logit_of_others": others}

    def _actor_loss(self, actor: nets.Params, before: State, batch: Batch) -> Tensor:
        """The logits are those of before the step and learn nothing from it."""
        obs = batch.extras["actor_obs"]
        mean = goal_nets.actor(actor, obs)
        log_prob = goal_nets.log_prob(mean, batch.action)
        if self.actor_loss == "ddpg_bc":
            f = _logits(before.critic, obs, mean.clamp(-1, 1)).amin(0)
            return goal_nets.ddpg_bc_loss(f, log_prob, self.bc_weight)
        assert isinstance(before.value, Bilinear)
        gain = _logits(before.critic, obs, batch.action).amin(0) - _logits(before.value, obs)
        weight = goal_nets.advantage_weight(gain, self.inverse_temperature)
        return -(weight * log_prob).mean()


def _features(net: Bilinear, obs: Tensor, *action: Tensor) -> tuple[Tensor, Tensor]:
    """phi / sqrt(d) and psi, (2, B, d) of twins, (B, d) without."""
    n_goal = net.psi[0]["w"].shape[-2]
    state, goal = obs[..., :-n_goal], obs[..., -n_goal:]
    phi, psi = goal_nets.features(net.phi, state, *action), goal_nets.features(net.psi, goal)
    return phi / phi.shape[-1] ** 0.5, psi


def _logits(net: Bilinear, obs: Tensor, *action: Tensor) -> Tensor:
    """Each state with its own goal: (B, O + G) -> (2, B) or (B,)."""
    phi, psi = _features(net, obs, *action)
    return (phi * psi).sum(-1)


def _all_logits(net: Bilinear, obs: Tensor, *action: Tensor) -> Tensor:
    """Each state with the goals of all: (B, O + G) -> (2, B, B) or (B, B)."""
    phi, psi = _features(net, obs, *action)
    return phi @ psi.mT


def _nce(logits: Tensor) -> Tensor:
    """Binary cross entropy, mean over (..., B, B), where only the diagonal is true."""
    return F.binary_cross_entropy_with_logits(logits, _same(logits).expand_as(logits))


def _same(logits: Tensor) -> Tensor:
    """1 where a goal is the state's own, (B, B)."""
    return torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
