"""Windows of steps read by stacks of transformer blocks that share their embeddings.

A step is three tokens: a reward, the observation, the action. Which reward, and what a token attends to, is the
caller's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.nn import nets, transformer
from offbench.types import Context, Spec

Params = dict[str, Any]
# of a step
REWARD, OBS, ACTION = range(3)


def init(key: Tensor, spec: Spec, *, width: int, layers: int, stacks: tuple[str, ...]) -> Params:
    """Embeddings of tokens and of time, a norm, and `layers` blocks under each name of `stacks`."""
    k_reward, k_obs, k_action, k_time, *rest = rng.split(key, 4 + len(stacks))
    ones = torch.ones(1, width, device=key.device)
    blocks = {
        name: transformer.init(k, width=width, layers=layers, hidden=4 * width)
        for name, k in zip(stacks, rest, strict=True)
    }
    return blocks | {
        "reward": nets.mlp_init(k_reward, (1, width)),
        "obs": nets.mlp_init(k_obs, (spec.obs_dim, width)),
        "action": nets.mlp_init(k_action, (spec.action_dim, width)),
        "time": 0.02 * rng.normal(k_time, (spec.max_episode_steps, width)),
        "norm": {"scale": ones, "shift": torch.zeros_like(ones)},
    }


def read(
    params: Params,
    stack: str,
    context: Context,
    reward: Tensor,
    *,
    heads: int = 1,
    dropout: float = 0.0,
    mask: Tensor | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """A stack's outputs at the tokens of every step: (B, K, 3, W).

    `reward` (B, K) is that of the first token of a step; `mask` and `key` are those of transformer.apply.
    """
    k_embed, k_body = (None, None) if key is None else rng.split(key)
    step = context.timestep.clamp(max=len(params["time"]) - 1)
    time = transformer.embed(params["time"], step)  # (B, K, W)
    columns = {"reward": reward[..., None], "obs": context.obs, "action": context.action}
    parts = [nets.mlp(params[name], x) + time for name, x in columns.items()]
    tokens = torch.stack(parts, -2).flatten(-3, -2)  # (B, 3 K, W)
    tokens = F.layer_norm(tokens, tokens.shape[-1:]) * params["norm"]["scale"]
    tokens = transformer.drop(tokens + params["norm"]["shift"], dropout, k_embed)
    out = transformer.apply(
        params[stack],
        tokens,
        heads=heads,
        activation="relu",
        mask=mask,
        dropout=dropout,
        key=k_body,
    )
    return out.unflatten(-2, (-1, 3))


def all_steps(context: Context) -> Tensor:
    """The mask (B, 3 K, 3 K) by which every token attends to those of all steps, and none to padding."""
    known = context.valid[..., None].expand(-1, -1, 3).flatten(-2)  # (B, 3 K)
    itself = torch.eye(known.shape[-1], dtype=torch.bool, device=known.device)
    return known[:, None] | itself


def latest(context: Context, n: int) -> tuple[Context, Tensor]:
    """The last steps of each window, at most n, and the place of the current one among them (E,) int64."""
    length = context.valid.sum(-1)
    first, k = (length - n).clamp(min=0), context.valid.shape[1]
    step = torch.arange(min(n, k), device=first.device)
    row = (first[:, None] + step).clamp(max=k - 1)  # (E, n)

    def taken(x: Tensor) -> Tensor:
        wide = row.reshape(*row.shape, *[1] * (x.ndim - 2))
        return x.gather(1, wide.expand(-1, -1, *x.shape[2:]))

    cut = tree_map(taken, context)._replace(valid=step < (length - first)[:, None])
    return cut, length - first - 1
