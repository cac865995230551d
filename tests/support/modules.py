"""Networks as torch.nn modules with the weights of ours: what the reference implementations are made of."""

from itertools import pairwise

import torch
from torch import nn
from torch.utils._pytree import tree_map


def net(sizes, *, norm: bool = False) -> nn.Sequential:
    """Linear and ReLU, then a LayerNorm if asked for, per hidden layer."""
    layers = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        layers += [nn.LayerNorm(n_out, eps=1e-6)] if norm else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1])).double()


def load(layers: list, module: nn.Sequential) -> None:
    """Our weights into the module."""
    linears = [m for m in module if isinstance(m, nn.Linear)]
    for layer, linear in zip(layers, linears, strict=True):
        linear.weight.data, linear.bias.data = layer["w"].T.clone(), layer["b"].flatten().clone()


def gap(layers: list, module: nn.Sequential) -> float:
    """The largest difference between our layers and a module's, norms included."""
    linears = [m for m in module if isinstance(m, nn.Linear)]
    norms = [m for m in module if isinstance(m, nn.LayerNorm)]
    pairs = [(a["w"].T, b.weight) for a, b in zip(layers, linears, strict=True)]
    pairs += [(a["b"].flatten(), b.bias) for a, b in zip(layers, linears, strict=True)]
    scaled = [layer for layer in layers if "scale" in layer]
    pairs += [(a["scale"].flatten(), b.weight) for a, b in zip(scaled, norms, strict=True)]
    pairs += [(a["shift"].flatten(), b.bias) for a, b in zip(scaled, norms, strict=True)]
    return max((a - b).abs().max().item() for a, b in pairs)


def member(params: list, i: int) -> list:
    """The i-th network of an ensemble."""
    return [{name: p[i] for name, p in layer.items()} for layer in params]


def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Polyak averaging, parameter by parameter."""
    for t, p in zip(target.parameters(), online.parameters(), strict=True):
        t.data = (1 - rate) * t.data + rate * p.data


def minimise(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def number(x: float) -> nn.Parameter:
    """A learned number, in float64."""
    return nn.Parameter(torch.tensor(x, dtype=torch.float64))
