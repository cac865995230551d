"""Networks of OGBench's goal-conditioned methods (Park et al., 2025), as functions of parameters.

Hidden layers have GELU; those of values normalise after it, those of actors do not. Weights are Xavier's, the
actor's last a tenth of them. An actor is a Gaussian of deviation 1 around the network's output, so its log
density is half a squared error, up to a constant; acting takes the mean, clipped to [-1, 1].
"""

import math

import torch
from torch import Tensor

from offbench.nn import nets

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# flax's
_EPS = 1e-6


def value_init(
    key: Tensor, n_in: int, hidden: tuple[int, ...], n_out: int = 1, *, ensemble: int | None = 2
) -> nets.Params:
    """Parameters of a value, of twins unless `ensemble` is None."""
    sizes = (n_in, *hidden, n_out)
    return nets.mlp_init(key, sizes, ensemble=ensemble, weight="xavier", layer_norm=True)


def value(params: nets.Params, *inputs: Tensor) -> Tensor:
    """(B, n) each -> (2, B) of twins, (B,) without."""
    return features(params, *inputs).squeeze(-1)


def features(params: nets.Params, *inputs: Tensor) -> Tensor:
    """(B, n) each -> (2, B, n_out) of twins, (B, n_out) without."""
    x = torch.cat(inputs, -1)
    return nets.mlp(params, x, activation="gelu_tanh", layer_norm="after", eps=_EPS)


def actor_init(key: Tensor, n_in: int, hidden: tuple[int, ...], n_out: int) -> nets.Params:
    """Parameters of an actor."""
    last = 0.1 * (6 / (hidden[-1] + n_out)) ** 0.5
    params = nets.mlp_init(key, (n_in, *hidden, n_out), weight="xavier", last=last)
    # biases begin at 0, the last one's too
    params[-1]["b"] = torch.zeros_like(params[-1]["b"])
    return params


def actor(params: nets.Params, *inputs: Tensor) -> Tensor:
    """The mean: (B, n) each -> (B, A)."""
    return nets.mlp(params, torch.cat(inputs, -1), activation="gelu_tanh")


def log_prob(mean: Tensor, action: Tensor) -> Tensor:
    """Log density of actions under deviation 1: (B, A) -> (B,)."""
    return -(0.5 * torch.square(action - mean) + _HALF_LOG_2PI).sum(-1)


def advantage_weight(advantage: Tensor, inverse_temperature: float) -> Tensor:
    """exp(alpha A), at most 100: (B,)."""
    return (inverse_temperature * advantage).exp().clamp(max=100.0)


def expectile_loss(advantage: Tensor, error: Tensor, expectile: float) -> Tensor:
    """Squared errors weighted by the sign of an advantage, (..., B)."""
    # tau above zero, 1 - tau below
    side = (expectile - (advantage < 0).to(error.dtype)).abs()
    return side * torch.square(error)


def ddpg_bc_loss(q: Tensor, log_prob: Tensor, bc_weight: float) -> Tensor:
    """DDPG+BC: -mean Q / mean |Q| - bc_weight x mean log density; q and log_prob (B,)."""
    scale = q.abs().mean().detach() + 1e-6
    return -q.mean() / scale - bc_weight * log_prob.mean()
