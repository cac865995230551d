"""A trained policy as a TorchScript file, which acts without offbench."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.bench.kept import Units
from offbench.errors import UserError, writing
from offbench.io import replacing
from offbench.types import Policy, TimeStep


def export(name: str, policy: Policy, state: Any, n_obs: int, units: Units, path: Path) -> Path:
    """Writes a policy as TorchScript: an observation (O,) float32 -> the action, in the environment's units.

    Args:
        name: by which errors call it.
        state: of one seed, stacked.

    Raises:
        UserError: it remembers earlier steps (chunks, windows), or draws its actions.
    """
    if tree_leaves(policy.init(1, 1)):
        raise UserError(f"{name} plans ahead or looks back; a function of one observation does not")
    obs, keys = torch.zeros(n_obs), [rng.key(i)[None, None] for i in range(2)]

    def act(obs: Tensor, key: Tensor) -> Tensor:
        action, _ = policy.act(state, TimeStep.begin(obs[None, None]), (), key)
        return units.scaled(action[0, 0])

    with torch.no_grad(), warnings.catch_warnings():
        # of the tracer, about constants
        warnings.simplefilter("ignore")
        if not torch.equal(*(act(obs, key) for key in keys)):
            raise UserError(f"{name} draws its actions; a file that acts has no keys to draw with")
        graph: Any = make_fx(lambda obs: act(obs, keys[0]))(obs)
        made = torch.jit.trace(graph, obs)
    with writing(path), replacing(path) as temporary:
        torch.jit.save(made, str(temporary))
    return path
