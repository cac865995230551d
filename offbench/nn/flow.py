"""Flow-matching behaviour policies, and critics that choose among their samples.

A velocity network v(s, x, u) carries noise x at time u = 0 to an action at u = 1 (Lipman et al.,
2023). It is trained by regression alone and sampled by Euler steps (Park, Li and Levine, 2025,
FQL); actions are flat, so a chunk of h actions is one action. Sizes and activations are those of
the code of FQL and Q-chunking.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from offbench import rng
from offbench.nn import nets


def velocity_init(
    key: Tensor,
    obs_dim: int,
    action_dim: int,
    hidden: tuple[int, ...],
    *,
    layer_norm: bool = False,
) -> nets.Params:
    """Parameters of a velocity network on (observation, action, time)."""
    sizes = (obs_dim + action_dim + 1, *hidden, action_dim)
    return nets.mlp_init(key, sizes, weight="xavier", layer_norm=layer_norm)


def velocity(params: nets.Params, obs: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """The velocity field: (B, O), (B, A), (B, 1) -> (B, A)."""
    return _network(params, obs, x, time)


def one_step(params: nets.Params, obs: Tensor, noise: Tensor) -> Tensor:
    """The action of a distilled one-step policy, not clipped: (B, O), noise (B, A) -> (B, A)."""
    return _network(params, obs, noise)


def _network(params: nets.Params, *inputs: Tensor) -> Tensor:
    """The network on concatenated inputs (B, .); layers with a scale are normalised."""
    norm: Literal["after", False] = "after" if "scale" in params[0] else False
    x = torch.cat(inputs, -1)
    return nets.mlp(params, x, activation="gelu_tanh", layer_norm=norm, eps=1e-6)


def sample(params: nets.Params, obs: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """Actions in [-1, 1] after `n_steps` Euler steps from standard normal noise: (B, A) -> (B, A)."""
    x = noise
    for i in range(n_steps):
        time = torch.full_like(x[..., :1], i / n_steps)
        x = x + velocity(params, obs, x, time) / n_steps
    return x.clamp(-1, 1)


def propose(
    params: nets.Params,
    obs: Tensor,
    key: Tensor,
    n: int,
    n_steps: int,
    sample: Callable[[nets.Params, Tensor, Tensor, int], Tensor] = sample,
) -> tuple[Tensor, Tensor]:
    """`n` samples per observation: repeated observations (B * n, O) and actions (B * n, A)."""
    repeated = obs[:, None].expand(-1, n, -1).flatten(0, 1)
    noise = rng.normal(key, (len(repeated), params[-1]["b"].shape[-1]), obs.dtype)
    return repeated, sample(params, repeated, noise, n_steps)


def bc_loss(params: nets.Params, obs: Tensor, action: Tensor, valid: Tensor, key: Tensor) -> Tensor:
    """Mean squared error of the velocity at a uniform time between noise and the recorded action.

    `valid` (B, h) masks padded steps of chunks; the mean is over all h.
    """
    k_noise, k_time = rng.split(key)
    noise = rng.normal_like(k_noise, action)
    time = rng.uniform(k_time, (len(action), 1), action.dtype)
    moving = (1 - time) * noise + time * action
    error = velocity(params, obs, moving, time) - (action - noise)
    return (torch.square(error).unflatten(-1, (valid.shape[-1], -1)) * valid[..., None]).mean()


def critic_init(
    key: Tensor, obs_dim: int, action_dim: int, hidden: tuple[int, ...], n: int = 2
) -> nets.Params:
    """Parameters of `n` critics on (observation, action), with layer normalisation."""
    sizes = (obs_dim + action_dim, *hidden, 1)
    return nets.mlp_init(key, sizes, ensemble=n, weight="xavier", layer_norm=True)


def q_values(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """Q of `n` critics: (B, O), (B, A) -> (n, B)."""
    x = torch.cat([obs, action], -1)
    return nets.mlp(critic, x, activation="gelu_tanh", layer_norm="after", eps=1e-6).squeeze(-1)


def first_argmax(x: Tensor) -> Tensor:
    """(..., n) -> (...) int64: index of the largest entry, the first of ties.

    torch.argmax does not specify which of tied entries it returns.
    """
    n = x.shape[-1]
    index = torch.arange(n, device=x.device)
    return torch.where(x == x.amax(-1, keepdim=True), index, n).amin(-1).clamp(max=n - 1)


def chosen(x: Tensor, index: Tensor) -> Tensor:
    """(B, n, A) -> (B, A): row `index` (B,) of each group."""
    return x.gather(1, index[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)
