"""A causal transformer as pure functions: `init` makes the parameters, `apply` runs the blocks on tokens.

The blocks are GPT-2's (Radford et al., 2019): pre-norm attention and feed-forward layers with
residual connections. Embeddings, positions and heads are the caller's. An
ensemble is the same network with a leading axis on every parameter, as in nets.py.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offbench import rng
from offbench.nn import nets

Params = dict[str, Any]


def init(
    key: Tensor,
    *,
    width: int,
    layers: int,
    hidden: int,
    ensemble: int | None = None,
    weight: Literal["normal", "xavier"] = "normal",
    bias: bool = True,
    final_norm: bool = True,
) -> Params:
    """Parameters of `layers` blocks on tokens of `width`, with feed-forward layers of `hidden` units.

    `weight="normal"`: standard deviation 0.02 (GPT-2). "xavier": uniform in +-sqrt(6 / (n_in + n_out)),
    query, key and value apart. Biases start at 0, norms as the identity.
    """
    lead = () if ensemble is None else (ensemble,)
    ones = torch.ones((*lead, 1, width), device=key.device)

    def linear(k: Tensor, n_in: int, n_out: int, copies: int = 1) -> nets.Layer:
        shape = (*lead, n_in, copies * n_out)
        if weight == "normal":
            w = 0.02 * rng.normal(k, shape)
        else:
            w = (6 / (n_in + n_out)) ** 0.5 * (2 * rng.uniform(k, shape) - 1)
        b = torch.zeros((*lead, 1, copies * n_out), device=key.device)
        return {"w": w, "b": b} if bias else {"w": w}

    def norm() -> nets.Layer:
        return {"scale": ones.clone(), "shift": torch.zeros_like(ones)}

    blocks = []
    for k in rng.split(key, layers):
        k_qkv, k_out, k_up, k_down = rng.split(k, 4)
        blocks.append(
            {
                "norm1": norm(),
                "qkv": linear(k_qkv, width, width, copies=3),
                "out": linear(k_out, width, width),
                "norm2": norm(),
                "up": linear(k_up, width, hidden),
                "down": linear(k_down, hidden, width),
            }
        )
    return {"blocks": blocks, "norm": norm()} if final_norm else {"blocks": blocks}


class Branches(NamedTuple):
    """`n` sequences of equal length behind one token: each sees that token and itself, causally."""

    n: int

    def mask(self, n_tokens: int, device: torch.device) -> Tensor:
        """The tokens that each of T sees: (T, T) bool."""
        index = torch.arange(n_tokens, device=device)
        # sequence of each token, -1 for the first
        owner = (index - 1).div((n_tokens - 1) // self.n, rounding_mode="floor")
        return ((owner[:, None] == owner) | (index == 0)) & (index[:, None] >= index)

    def read(self, query: Tensor, seen: Tensor, value: Tensor) -> Tensor:
        """Attention without the scores that the mask would hide: 3 (..., T, D) -> (..., T, D).

        Written without matrix products: those of so few tokens are slow in a library, and a compiler
        makes two kernels of this.
        """
        q, k, v = (x[..., 1:, :].unflatten(-2, (self.n, -1)) for x in (query, seen, value))
        k0, v0 = (x[..., None, :1, :] for x in (seen, value))  # (..., 1, 1, D)
        q = q / q.shape[-1] ** 0.5  # (..., n, H, D)
        first = (q * k0).sum(-1, keepdim=True)  # (..., n, H, 1)
        scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)  # (..., n, H, H)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        largest = torch.maximum(first, scores.amax(-1, keepdim=True))
        first, scores = (first - largest).exp(), (scores - largest).exp()
        read = first * v0 + (scores.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)
        read = read / (first + scores.sum(-1, keepdim=True))
        # the first token sees itself alone
        return torch.cat([value[..., :1, :], read.flatten(-3, -2)], -2)


def apply(
    params: Params,
    tokens: Tensor,
    *,
    heads: int = 1,
    activation: nets.Activation = "gelu",
    eps: float = 1e-5,
    mask: Tensor | Branches | None = None,
    dropout: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """Runs the blocks: (B, T, W) -> (B, T, W), with a leading axis E for ensembles.

    `mask` (T, T) or (B, T, T) bool: the tokens (last axis) that each token attends to, itself at least;
    by default causal. With a `key`, dropout at rate `dropout` on residuals, and on attention weights but
    those of `Branches`.
    """
    n_batch, n_tokens, _ = tokens.shape[-3:]
    if mask is None or (isinstance(mask, Branches) and mask.n == 1):
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=tokens.device).tril()
    # rows, which an ensemble's (E, W, .) weights multiply in one call
    x = tokens.flatten(-3, -2)
    for i, block in enumerate(params["blocks"]):
        k = [None] * 3 if key is None else rng.split(rng.fold(key, i), 3)
        qkv = _linear(block["qkv"], _norm(block["norm1"], x, eps))  # (B * T, 3 W)
        qkv = qkv.unflatten(-2, (n_batch, n_tokens)).unflatten(-1, (3, heads, -1))
        query, seen, value = qkv.transpose(-2, -4).unbind(-3)  # (B, T, 3, H, D) -> 3 (B, H, T, D)
        if isinstance(mask, Branches):
            read = mask.read(query, seen, value)  # (B, H, T, D)
        else:
            scores = query @ seen.mT / query.shape[-1] ** 0.5  # (B, H, T, T)
            hidden = mask.logical_not().unsqueeze(-3)  # (1, T, T) or (B, 1, T, T)
            attention = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            read = drop(attention, dropout, k[0]) @ value
        read = read.transpose(-2, -3).flatten(-2).flatten(-3, -2)  # (B * T, W)
        x = x + drop(_linear(block["out"], read), dropout, k[1])
        h = nets.ACTIVATIONS[activation](_linear(block["up"], _norm(block["norm2"], x, eps)))
        x = x + drop(_linear(block["down"], h), dropout, k[2])
    if "norm" in params:
        x = _norm(params["norm"], x, eps)
    return x.unflatten(-2, (n_batch, n_tokens))


FLAX_EPS = 1e-6
# with GELU and norms as flax computes them
flax = partial(apply, activation="gelu_tanh", eps=FLAX_EPS)


class Ends(NamedTuple):
    """What turns an observation and S actions into tokens, and tokens into values; E networks."""

    # (E, O, W) and (E, A, W)
    w_obs: Tensor
    w_action: Tensor
    # added to the tokens, the observation's first: (E, 1 + S, W)
    place: Tensor
    # (E, S, W)
    head: Tensor


def token_values(
    params: Params, ends: Ends, obs: Tensor, action: Tensor, *, heads: int, branches: int
) -> Tensor:
    """A value at each action behind an observation: (B, O), (B, S, A) -> (E, B, S).

    The actions are `branches` chunks, one after another; each sees the observation and itself only.
    """
    first = (obs.unsqueeze(-3) @ ends.w_obs).unsqueeze(-2)  # (E, B, 1, W)
    rest = (action.flatten(-3, -2).unsqueeze(-3) @ ends.w_action).unflatten(-2, action.shape[-3:-1])
    tokens = torch.cat([first, rest], -2) + ends.place.unsqueeze(-3)
    out = flax(params, tokens, heads=heads, mask=Branches(branches))
    return (out[..., 1:, :] * ends.head.unsqueeze(-3)).sum(-1)


class _Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(table: Tensor, index: Tensor) -> Tensor:
        return table[index]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        table, index = inputs
        ctx.save_for_backward(index)
        ctx.length = len(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        row = torch.arange(ctx.length, device=index.device)
        one_hot = (row[:, None] == index.flatten()).to(grad.dtype)  # (L, n)
        return one_hot @ grad.flatten(0, -2), None


def embed(table: Tensor, index: Tensor) -> Tensor:
    """The rows `index` (...) of a table of learned vectors (L, W): (..., W).

    The gradient of the table is a product with the one-hot index. That of `table[index]` adds rows in the
    order in which threads come to them, so its bits differ from run to run on a GPU, and on a CPU with
    several threads.
    """
    return _Rows.apply(table, index)


def drop(x: Tensor, rate: float | Tensor, key: Tensor | None) -> Tensor:
    """Dropout at `rate`; the identity without a key."""
    if key is None or (not isinstance(rate, Tensor) and rate == 0):
        return x
    kept = (rng.uniform(key, tuple(x.shape), x.dtype) >= rate).to(x.dtype)
    return x * kept / (1 - rate)


def _linear(layer: nets.Layer, x: Tensor) -> Tensor:
    return x @ layer["w"] + layer["b"] if "b" in layer else x @ layer["w"]


def _norm(layer: nets.Layer, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * layer["scale"] + layer["shift"]
