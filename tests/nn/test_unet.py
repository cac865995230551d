"""The U-Net of trajectory diffusion against torch's own convolutions, norms, maxima and repeats, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.nn import unet


def of_torch(params, x, number):
    """The same network in torch's modules' functions, on (B, channels, T)."""

    def conv(layer, x, width):
        n = x.shape[1]
        w = layer["w"].view(width, n, -1).permute(2, 1, 0)
        return F.conv1d(F.pad(x, ((width - 1) // 2, width // 2)), w, layer["b"][0])

    def norm(layer, x):
        # each step alone
        steps = x.mT.flatten(0, 1)
        normed = F.group_norm(steps, 8, layer["scale"][0], layer["shift"][0], eps=1e-6)
        return F.relu(normed.unflatten(0, (len(x), -1)).mT)

    dense = lambda layer, x: x @ layer["w"] + layer["b"][0]
    half = params["time"][0]["w"].shape[0] // 2
    rate = torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)], dtype=x.dtype)
    waves = torch.cat([torch.sin(number[:, None] * rate), torch.cos(number[:, None] * rate)], 1)
    t = F.silu(dense(params["time"][1], F.silu(dense(params["time"][0], waves))))
    x, passed = x.mT, []
    for i, level in enumerate(params["down"]):
        x = F.max_pool1d(x, 2) if i else x
        first, second = level["convs"]
        x = norm(first, conv(first, x, 3) + dense(level["time"], t)[..., None])
        x = norm(second, conv(second, x, 3))
        passed.append(x)
    for level, own in zip(params["up"], passed[-2::-1], strict=True):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = norm(level["rise"], conv(level["rise"], x, 2) + dense(level["time"], t)[..., None])
        x = torch.cat([x, own], 1)
        for layer in level["convs"]:
            x = norm(layer, conv(layer, x, 3))
    return dense(params["out"], x.mT)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equals_torchs_layers(levels):
    params = unet.init(rng.key(3), 5, features=16, levels=levels)
    # scales and shifts that do something
    nudge = iter(rng.split(rng.key(4), 200))
    params = tree_map(
        lambda p: p.double() + 0.1 * rng.normal(next(nudge), p.shape).double(), params
    )
    x = rng.normal(rng.key(5), (4, 16, 5), torch.float64)
    number = rng.normal(rng.key(6), (4,), torch.float64)
    found = unet.apply(params, x, number)
    assert found.shape == x.shape
    assert torch.allclose(found, of_torch(params, x, number), rtol=1e-10, atol=1e-10)


def test_windows_of_many_seeds_are_those_of_each():
    params = unet.init(rng.key(0), 3, features=8, levels=2)
    x, number = rng.normal(rng.key(1), (2, 5, 8, 3)), rng.normal(rng.key(2), (2, 5))
    whole = unet.apply(params, x, number)
    each = torch.stack([unet.apply(params, a, b) for a, b in zip(x, number, strict=True)])
    assert torch.allclose(whole, each, atol=1e-5)


def test_initial_outputs_have_the_size_of_their_inputs():
    params = unet.init(rng.key(0), 16, features=32, levels=3)
    out = unet.apply(params, rng.normal(rng.key(1), (64, 32, 16)), torch.zeros(64))
    assert 0.3 < out.std() < 3 and math.isfinite(float(out.sum()))
