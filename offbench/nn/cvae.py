"""A conditional variational autoencoder of actions, as pure functions of parameters.

The encoder maps (s, a) to a Gaussian over a latent z, the decoder (s, z) to an action within [-1, 1] by tanh:
the generative model of BCQ (Fujimoto et al., 2019, https://arxiv.org/abs/1812.02900), with its sizes and bounds,
which A2PR and others took over. A loss is put together from `reconstruct` and `kl`:

    recon, mean, log_std = cvae.reconstruct(params, obs, action, key)
    loss = torch.square(recon - action).mean() + 0.5 * cvae.kl(mean, log_std).mean()

Written for one network, not for an ensemble; nothing here knows of a method.
"""

from typing import TypedDict

import torch
from torch import Tensor

from offbench import rng
from offbench.nn import nets

# bounds of the log standard deviation of z
LOG_STD = (-4.0, 15.0)
# actions from the prior are decoded from |z| of at most this
PRIOR_CLIP = 0.5


class Params(TypedDict):
    """Two networks; the encoder's last layer is the mean of z beside its log standard deviation."""

    # O + A -> 2 L
    encoder: nets.Params
    # O + L -> A
    decoder: nets.Params


def init(
    key: Tensor,
    obs_dim: int,
    action_dim: int,
    hidden: tuple[int, ...] = (750, 750),
    latent_dim: int | None = None,
) -> Params:
    """Parameters of both networks, whose hidden layers have the same widths.

    `latent_dim`: L, the numbers of z; None: twice those of an action.
    """
    k_encoder, k_decoder = rng.split(key)
    n_latent = 2 * action_dim if latent_dim is None else latent_dim
    return {
        "encoder": nets.mlp_init(k_encoder, (obs_dim + action_dim, *hidden, 2 * n_latent)),
        "decoder": nets.mlp_init(k_decoder, (obs_dim + n_latent, *hidden, action_dim)),
    }


def encode(params: Params, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clipped log standard deviation of z: (B, O), (B, A) -> (B, L), (B, L)."""
    mean, log_std = nets.mlp(params["encoder"], torch.cat([obs, action], -1)).chunk(2, -1)
    return mean, log_std.clamp(*LOG_STD)


def decode(params: Params, obs: Tensor, z: Tensor) -> Tensor:
    """The action of a latent: (B, O), (B, L) -> (B, A) in [-1, 1]."""
    return nets.mlp(params["decoder"], torch.cat([obs, z], -1)).tanh()


def reconstruct(
    params: Params, obs: Tensor, action: Tensor, key: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """An action encoded, z drawn, and decoded: (B, O), (B, A) -> action (B, A), mean and log-std of z (B, L).

    Differentiable in `params` and in `action`, z by its noise.
    """
    mean, log_std = encode(params, obs, action)
    z = mean + log_std.exp() * rng.normal_like(key, mean)
    return decode(params, obs, z), mean, log_std


def sample(params: Params, obs: Tensor, key: Tensor) -> Tensor:
    """An action of the prior, z ~ N(0, 1) clipped to +-PRIOR_CLIP: (B, O) -> (B, A)."""
    n_latent = params["decoder"][0]["w"].shape[-2] - obs.shape[-1]
    z = rng.normal(key, (*obs.shape[:-1], n_latent), obs.dtype)
    return decode(params, obs, z.clamp(-PRIOR_CLIP, PRIOR_CLIP))


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)), the mean over the latent's dimensions, not their sum: (B, L) -> (B,), in nats."""
    return 0.5 * (torch.square(mean) + (2 * log_std).exp() - 1 - 2 * log_std).mean(-1)
