"""Gaussian mixture policies, which keep several ways to act apart where one Gaussian takes their mean.

    pi(a | s) = sum over k of w_k(s) N(a; mu_k(s), sigma_k^2)

The expectation of a critic is differentiated through weights and actions without drawing a component, which is
the marginalised reparameterisation gradient (https://arxiv.org/abs/2605.09157):

    E[Q(s, a)] = sum over k of w_k(s) E[Q(s, mu_k + sigma_k z)],  z ~ N(0, I)

Components start with means apart, and each keeps at least the share `FLOOR` / K, so that none dies.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from offbench import rng
from offbench.nn import flow, nets
from offbench.nn.distributions import gaussian_log_prob

FLOOR = 0.02


class Params(NamedTuple):
    """Of K components: `net` gives K means and K logits, `log_std` is (K, A)."""

    net: nets.Params
    log_std: Tensor


class Mixture(NamedTuple):
    """The policies at B observations."""

    log_weight: Tensor  # (B, K)
    mean: Tensor  # (B, K, A)
    log_std: Tensor  # (K, A)


def init(key: Tensor, sizes: tuple[int, ...], components: int) -> Params:
    """Parameters for layer widths `sizes`, of which the last is that of the actions."""
    k_net, k_apart = rng.split(key)
    *before, n_act = sizes
    net = nets.mlp_init(k_net, (*before, components * (n_act + 1)))
    # means apart: tanh of +-1 is +-0.76
    apart = 2 * rng.uniform(k_apart, (1, components * n_act)) - 1
    equal = torch.zeros(1, components, device=key.device)
    last = net[-1] | {"b": torch.cat([apart, equal], -1)}
    return Params([*net[:-1], last], torch.zeros(components, n_act, device=key.device))


def at(params: Params, obs: Tensor) -> Mixture:
    """The mixtures at observations (B, O), with means in [-1, 1]."""
    components, n_act = params.log_std.shape
    mean, logit = nets.mlp(params.net, obs).split([components * n_act, components], -1)
    weight = (1 - FLOOR) * logit.softmax(-1) + FLOOR / components
    mean = mean.tanh().unflatten(-1, (components, n_act))
    return Mixture(weight.log(), mean, params.log_std.clamp(-5.0, 2.0))


def log_prob(policy: Mixture, action: Tensor) -> Tensor:
    """Log density of actions: (B, A) -> (B,)."""
    each = gaussian_log_prob(policy.mean, policy.log_std, action[:, None])  # (B, K)
    return (policy.log_weight + each).logsumexp(-1)


def best(policy: Mixture) -> Tensor:
    """The mean of the component of the largest weight, which is how to act: (B, A)."""
    return flow.chosen(policy.mean, flow.first_argmax(policy.log_weight))


def sample(policy: Mixture, key: Tensor) -> Tensor:
    """Actions (B, A), clipped to [-1, 1]; no gradient reaches the weights (`expected` is for that)."""
    k_which, k_noise = rng.split(key)
    u = rng.uniform(k_which, tuple(policy.log_weight.shape), policy.log_weight.dtype)
    # the largest of Gumbel-perturbed log weights is a draw by the weights
    which = flow.first_argmax(policy.log_weight - (-u.log()).log())
    return flow.chosen(actions(policy, k_noise), which)


def actions(policy: Mixture, key: Tensor) -> Tensor:
    """An action of every component: (B, K, A), clipped to [-1, 1]."""
    noise = rng.normal_like(key, policy.mean)
    return (policy.mean + policy.log_std.exp() * noise).clamp(-1, 1)


def expected(policy: Mixture, of: Callable[[Tensor], Tensor], action: Tensor) -> Tensor:
    """The expectation of `of` over the components, given an action of each: (B, K, A) -> (..., B).

    `of` maps actions (B * K, A), those of a state in a row, to values (..., B * K).
    """
    values = of(action.flatten(0, 1)).unflatten(-1, policy.log_weight.shape)  # (..., B, K)
    return (policy.log_weight.exp() * values).sum(-1)
