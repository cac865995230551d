"""ODICE (Mao, Xu, Zhang and Zhan, 2024), with Pearson's chi^2. https://arxiv.org/abs/2402.00348

V-DICE learns a value function alone, and a policy cloned with weights of its residual x:

    min_V  (1 - lambda) E[V(s)] + lambda E[f*(x)],   x = r + gamma V(s') - V(s)

V has a forward gradient, through V(s), and a backward one, through V(s'), which may cancel. ODICE keeps
of the backward one what is orthogonal to the forward one, all parameters of all values being one
vector. `gradient`: "orthogonal", the paper's; "semi", the forward one alone (S-DICE); "true", both as
they are, without target networks.

The policy's weight is max(x, 0), as in the authors' code, and not the ratio max(x / 2 + 1, 0); x is
the forward one, of before V's step, and each value's own.

Differs from the authors' code (maoliyuan/ODICE-Pytorch): not offered are the reverse KL divergence and
imitation. Its lambda and eta are one for all sets, the defaults here; the paper's are per set (appendix
D). There `dual_weight` is `Lambda`, `backward_weight` `eta`, `polyak_rate` `beta`.

Metrics: both losses, mean of V, mean weight, share of weights above 0 (near 0 the policy learns from
nothing), and with "orthogonal" the cosine of both gradients before the projection.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.nn import nets
from offbench.nn.distributions import gaussian_log_prob
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import (
    Count,
    Fraction,
    NonNegative,
    PolyakRate,
    Positive,
    Widths,
    check_ranges,
)
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    actor: nets.Gaussian
    # leading axis: `n_values`
    value: nets.Params
    target_value: nets.Params
    opt_actor: AdamState
    opt_value: AdamState


@dataclass(frozen=True, kw_only=True)
class ODICE:
    gradient: Literal["true", "semi", "orthogonal"] = "orthogonal"
    # lambda: the larger, the nearer V is to the best of the data
    dual_weight: Fraction = 0.6
    # eta, of the backward gradient, where it is orthogonal
    backward_weight: NonNegative = 1.0
    max_weight: Positive = 100.0
    # the smallest of their targets is bootstrapped from
    n_values: Count = 2
    layer_norm: bool = True  # of V
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 2e-4
    weight_decay: NonNegative = 1e-4  # L2, of the policy
    hidden: Widths = (256, 256)
    actor_hidden: Widths = (1024, 1024)

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_value = rng.split(key)
        mean = nets.mlp_init(k_actor, (spec.obs_dim, *self.actor_hidden, spec.action_dim))
        log_std = torch.zeros(spec.action_dim, device=key.device)
        actor: nets.Gaussian = {"mean": mean, "log_std": log_std}
        sizes = (spec.obs_dim, *self.hidden, 1)
        value = nets.mlp_init(k_value, sizes, ensemble=self.n_values, layer_norm=self.layer_norm)
        opt_actor, opt_value = (Adam(self.lr).init(part) for part in (actor, value))
        return State(actor, value, value, opt_actor, opt_value)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key  # ODICE draws nothing while training
        grads, residual, metrics = self._value_gradient(state, batch)
        value, opt_value = Adam(self.lr).step(grads, state.opt_value, state.value)
        target_value = polyak(state.target_value, value, self.polyak_rate)

        weight = residual.clamp(min=0).clamp(max=self.max_weight)
        grads, actor_loss = grad_and_value(_actor_loss)(state.actor, weight, batch)
        adam = Adam(self.lr, weight_decay=self.weight_decay)
        actor, opt_actor = adam.step(grads, state.opt_actor, state.actor)
        return State(actor, value, target_value, opt_actor, opt_value), metrics | {
            "actor_loss": actor_loss,
            "weight": weight.mean(),
            "positive_share": (weight > 0).to(weight.dtype).mean(),
        }

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor["mean"], obs).clamp(-1, 1)

    def _value_gradient(self, state: State, batch: Batch) -> tuple[Any, Tensor, Metrics]:
        """(gradient of V's parameters, residual of the policy's weights (V, B), metrics)."""
        losses_of = partial(self._value_losses, target=state.target_value, batch=batch)
        found: Any = vjp(losses_of, state.value, has_aux=True)
        losses, pull, (residual, v) = found
        one, none = torch.ones_like(losses[0]), torch.zeros_like(losses[0])
        metrics = {"value_loss": losses[0] + losses[1], "v": v.mean()}
        if self.gradient != "orthogonal":
            return pull((one, one))[0], residual, metrics
        forward, backward = _vector(pull((none, one, none))), _vector(pull((none, none, one)))
        inner, square = forward @ backward, forward @ forward
        metrics["gradient_cosine"] = inner / (square * (backward @ backward)).sqrt().clamp(1e-10)
        # how much of the forward gradient is in the backward one
        share = inner / square.clamp(min=1e-10)
        return pull((one, one - share, one))[0], residual, metrics

    def _value_losses(
        self, value: nets.Params, target: nets.Params, batch: Batch
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """(the term of V itself, forward loss, backward loss), (residual (V, B), V (V, B))."""
        v, next_v = self._v(value, batch.obs), self._v(value, batch.next_obs)
        old_v, old_next_v = (self._v(target, x).amin(0) for x in (batch.obs, batch.next_obs))
        bootstrap = next_v if self.gradient == "true" else old_next_v
        residual = batch.reward + batch.discount * bootstrap - v
        linear, forward = (1 - self.dual_weight) * v.mean(), _conjugate(residual).mean()
        losses: tuple[Tensor, ...] = (linear, self.dual_weight * forward)
        if self.gradient == "orthogonal":
            backward = _conjugate(batch.reward + batch.discount * next_v - old_v).mean()
            losses += (self.dual_weight * self.backward_weight * backward,)
        return losses, (residual, v)

    def _v(self, value: nets.Params, obs: Tensor) -> Tensor:
        """(B, O) -> (V, B)."""
        return nets.mlp(value, obs, layer_norm=self.layer_norm).squeeze(-1)


def _conjugate(x: Tensor) -> Tensor:
    """f*(x) of Pearson's chi^2 on ratios w >= 0."""
    w = (x / 2 + 1).clamp(min=0)
    return x * w - torch.square(w - 1)


def _actor_loss(actor: nets.Gaussian, weight: Tensor, batch: Batch) -> Tensor:
    """Likelihood of the data's actions, (B,), weighted by (V, B)."""
    mean = nets.mlp(actor["mean"], batch.obs)
    log_prob = gaussian_log_prob(mean, actor["log_std"].clamp(-5.0, 2.0), batch.action)
    return -(weight * log_prob).mean()


def _vector(tree: Any) -> Tensor:
    """All leaves as one vector."""
    return torch.cat([leaf.flatten() for leaf in tree_leaves(tree)])
