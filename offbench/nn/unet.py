"""A 1-D U-Net over the steps of a window, conditioned on a number: the network of trajectory diffusion.

    level:   0 ------------------------------------ 0    T steps, `features` channels
              \\ 1 ---------------------------- 1 /      T / 2 steps, twice as many
                 \\ 2 ------------------------ /         T / 4 steps, four times as many

Each level has two convolutions, each followed by a group norm and a ReLU; the embedded number is added after
the first. Going down halves the steps by maxima; going up repeats them, and joins the level's own output. As in
the code of policy-guided diffusion (Jackson et al., 2024), where a norm is of 8 groups of channels at each step, not
over the window: flax takes the steps of a single window for a batch. A convolution is one matrix product over shifted
copies, whose gradient adds in a fixed order on a GPU too.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offbench import rng

# of channels, that are normalised together
GROUPS = 8
_EPS = 1e-6
Params = dict[str, Any]


def init(key: Tensor, channels: int, *, features: int, levels: int) -> Params:
    """Parameters of a network on windows of `channels` numbers a step, `features` a multiple of 8.

    Weights are normal with variance 1 / inputs, biases 0, as flax makes them but for its cut tails.
    """
    keys = iter(rng.split(key, 3 + 8 * levels))

    def dense(n_in: int, n_out: int) -> dict[str, Tensor]:
        w = rng.normal(next(keys), (n_in, n_out)) * n_in**-0.5
        return {"w": w, "b": torch.zeros(1, n_out)}

    def normed(n_in: int, n_out: int, width: int) -> dict[str, Tensor]:
        own = {"scale": torch.ones(1, n_out), "shift": torch.zeros(1, n_out)}
        return dense(width * n_in, n_out) | own

    time = [dense(features // 8 * 2, features), dense(features, features)]
    down, up, n_in = [], [], channels
    for level in range(levels):
        n = features * 2**level
        first = normed(n_in, n, 3)
        down.append({"time": dense(features, n), "convs": [first, normed(n, n, 3)]})
        n_in = n
    for level in reversed(range(levels - 1)):
        n = features * 2**level
        rise = normed(n_in, n, 2)
        convs = [normed(2 * n, n, 3), normed(n, n, 3)]
        up.append({"time": dense(features, n), "rise": rise, "convs": convs})
        n_in = n
    return {"time": time, "down": down, "up": up, "out": dense(n_in, channels)}


def apply(params: Params, x: Tensor, number: Tensor) -> Tensor:
    """(..., T, channels), (...) -> (..., T, channels); T is a multiple of 2 ** (levels - 1)."""
    t = F.silu(_embed(params["time"], number))[..., None, :]
    passed: list[Tensor] = []
    for i, level in enumerate(params["down"]):
        if i:
            # halves of neighbouring steps
            x = x.unflatten(-2, (-1, 2)).amax(-2)
        first, second = level["convs"]
        x = _normed(first, _conv(first, x, 3) + _dense(level["time"], t))
        x = _normed(second, _conv(second, x, 3))
        passed.append(x)
    for level, own in zip(params["up"], reversed(passed[:-1]), strict=True):
        x = x.repeat_interleave(2, -2)
        rise, (first, second) = level["rise"], level["convs"]
        x = _normed(rise, _conv(rise, x, 2) + _dense(level["time"], t))
        x = torch.cat([x, own], -1)
        x = _normed(first, _conv(first, x, 3))
        x = _normed(second, _conv(second, x, 3))
    return _dense(params["out"], x)


def _embed(layers: list, number: Tensor) -> Tensor:
    """(...) -> (..., features): sines and cosines of several frequencies, through two layers."""
    first, second = layers
    half = first["w"].shape[-2] // 2
    step = torch.arange(half, device=number.device, dtype=number.dtype)
    angle = number[..., None] * torch.exp(step * (-math.log(10_000) / max(half - 1, 1)))
    waves = torch.cat([angle.sin(), angle.cos()], -1)
    # a row each, as layers have a bias (1, n)
    return _dense(second, F.silu(_dense(first, waves[..., None, :]))).squeeze(-2)


def _dense(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ layer["w"] + layer["b"]


def _conv(layer: dict[str, Tensor], x: Tensor, width: int) -> Tensor:
    """A convolution over steps, of 3 centred on each or of 2 from each on; zeros beyond the window."""
    n = x.shape[-2]
    wide = F.pad(x, (0, 0, (width - 1) // 2, width // 2))
    return _dense(layer, torch.cat([wide[..., i : i + n, :] for i in range(width)], -1))


def _normed(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    """ReLU of the groups of channels normalised at each step."""
    parts = x.unflatten(-1, (GROUPS, -1))
    parts = F.layer_norm(parts, parts.shape[-1:], eps=_EPS)
    return F.relu(parts.flatten(-2) * layer["scale"] + layer["shift"])
