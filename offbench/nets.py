"""Networks as pure functions of parameters: a list of layers, each a dict of a weight and a bias.

`mlp_init` makes the parameters from a key, `mlp` applies them. An ensemble is the same network
with a leading axis on every parameter; `mlp` broadcasts over it.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offbench import rng

Layer = dict[str, Tensor]
Params = list[Layer]
Activation = Literal["relu", "gelu", "tanh"]
_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}


def mlp_init(key: Tensor, sizes: tuple[int, ...], *, ensemble: int | None = None) -> Params:
    """Parameters of an MLP with layer widths `sizes`, `ensemble` independent copies of it.

    Weights and biases are uniform in +-1/sqrt(n_in), which is what `torch.nn.Linear` does.
    """
    lead = () if ensemble is None else (ensemble,)
    params = []
    for k, n_in, n_out in zip(rng.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True):
        k_w, k_b = rng.split(k)
        bound = n_in**-0.5
        params.append(
            {
                "w": bound * (2 * rng.uniform(k_w, (*lead, n_in, n_out)) - 1),
                "b": bound * (2 * rng.uniform(k_b, (*lead, 1, n_out)) - 1),
            }
        )
    return params


def mlp(
    params: Params, x: Tensor, *, activation: Activation = "relu", layer_norm: bool = False
) -> Tensor:
    """(B, n_in) -> (B, n_out), or (E, B, n_out) when the parameters are an ensemble of E.

    `layer_norm` normalises (without a learned scale) before each hidden activation.
    """
    for layer in params[:-1]:
        x = x @ layer["w"] + layer["b"]
        if layer_norm:
            x = F.layer_norm(x, x.shape[-1:])
        x = _ACTIVATIONS[activation](x)
    return x @ params[-1]["w"] + params[-1]["b"]
