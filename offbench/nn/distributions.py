"""Action distributions as functions of their parameters: a Gaussian, one squashed by tanh, choices."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, x: Tensor) -> Tensor:
    """Log density of x under independent normals, summed over the last axis: (..., A) -> (...)."""
    z = (x - mean) / log_std.exp()
    return -(0.5 * torch.square(z) + log_std + _LOG_SQRT_2PI).sum(-1)


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log density: (..., A) -> (..., A), (...).

    The density is computed from the noise, not from (u - mean) / std, which has the rounding of u; the
    correction log(1 - tanh(u)^2) is computed from u, where it cannot underflow.
    """
    u = mean + log_std.exp() * noise
    log_prob = -(0.5 * torch.square(noise) + log_std + _LOG_SQRT_2PI).sum(-1)
    return u.tanh(), log_prob - _log_slope(u).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2)."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def greedy(logits: Tensor) -> Tensor:
    """The choice of the largest logit as one-hot rows: (..., A) -> (..., A)."""
    choices = torch.arange(logits.shape[-1], device=logits.device)
    return (logits.argmax(-1, keepdim=True) == choices).to(logits.dtype)
