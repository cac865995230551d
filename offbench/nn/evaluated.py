"""Networks evaluated without gradients on a CPU: the same functions, to rounding, in less time.

An operation on all seeds at once sweeps through more memory than a cache holds, for each product,
bias, activation and norm. Here a block of rows of one seed runs through the whole network, so what
one operation writes is in the cache when the next one reads it, and a product with its bias and GELU
is one operation of oneDNN. Each function is one operator of a traced program with a batching rule;
elsewhere, and for compilers, it is the formula in flow.py or transformer.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offbench.nn import flow, nets, transformer
from offbench.nn.transformer import Ends

# rows from which a loop over seeds repays itself
_FROM_ROWS = 256
# numbers in the widest activation of a block: with its neighbours they fit into a core's cache
_BLOCK = 2**19


def flow_sample(params: nets.Params, obs: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """`flow.sample` without a gradient: (B, O), (B, A) -> (B, A)."""
    plain = all(layer.keys() == {"w", "b"} for layer in params)
    if noise.device.type != "cpu" or len(noise) < _FROM_ROWS or not plain:
        return flow.sample(params, obs, noise, n_steps)
    return _flow([x for layer in params for x in (layer["w"], layer["b"])], obs, noise, n_steps)


def token_values(
    params: transformer.Params,
    ends: Ends,
    obs: Tensor,
    action: Tensor,
    *,
    heads: int,
    branches: int,
) -> Tensor:
    """`transformer.token_values` without a gradient: (B, O), (B, S, A) -> (E, B, S)."""
    if obs.device.type != "cpu" or action[..., 0].numel() < _FROM_ROWS:
        return transformer.token_values(params, ends, obs, action, heads=heads, branches=branches)
    obs, action = (x.expand(len(ends.head), *x.shape) for x in (obs, action))
    return _values([*_listed(params), *ends], obs, action, branches, heads)


# --- operators


def flow_formula(params: list[Tensor], obs: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """The samples of each seed, as tensor operations: (N, B, A)."""
    layers = [{"w": w, "b": b} for w, b in zip(params[::2], params[1::2], strict=True)]
    return flow.sample(layers, obs, noise, n_steps)


@torch.library.custom_op("offbench::flow_sample", mutates_args=())
def _flow(params: list[Tensor], obs: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    widest = max(w.shape[-1] for w in params)
    return _by_member(lambda p, o, z: _sampled(p, o, z, n_steps), widest, params, obs, noise)


def values_formula(
    params: list[Tensor], obs: Tensor, action: Tensor, branches: int, heads: int
) -> Tensor:
    """The values of each seed, as tensor operations: (N, E, B, S)."""
    *leaves, w_obs, w_action, place, head = params
    ends = Ends(w_obs, w_action, place, head)
    # equal for all members of an ensemble
    obs, action = obs[..., 0, :, :], action[..., 0, :, :, :]
    return transformer.token_values(
        _nested(leaves), ends, obs, action, heads=heads, branches=branches
    )


@torch.library.custom_op("offbench::token_values", mutates_args=())
def _values(params: list[Tensor], obs: Tensor, action: Tensor, branches: int, heads: int) -> Tensor:
    mask = transformer.Branches(branches).mask(1 + action.shape[-2], obs.device)
    hidden = torch.zeros_like(mask, dtype=obs.dtype).masked_fill_(~mask, -torch.inf)
    *leaves, w_obs, w_action, place, head = params
    widest = len(mask) * max(w.shape[-1] for w in leaves)
    folded = _folded(_nested(leaves), Ends(w_obs, w_action, place, head))
    return _by_member(lambda p, o, a: _valued(p, o, a, hidden, heads), widest, folded, obs, action)


_PARTS = ("norm1", "qkv", "out", "norm2", "up", "down")


def _leaves(part: nets.Layer) -> tuple[Tensor, Tensor]:
    return (part["scale"], part["shift"]) if "scale" in part else (part["w"], part["b"])


def _listed(params: transformer.Params) -> list[Tensor]:
    parts = [block[name] for block in params["blocks"] for name in _PARTS]
    return [x for part in (*parts, params["norm"]) for x in _leaves(part)]


def _nested(leaves: Sequence[Tensor]) -> transformer.Params:
    """The parameters again of their list."""
    names = [*_PARTS * (len(leaves) // (2 * len(_PARTS))), "norm"]
    parts = [
        dict(zip(("scale", "shift") if name.startswith("norm") else ("w", "b"), pair, strict=True))
        for name, pair in zip(names, zip(leaves[::2], leaves[1::2], strict=True), strict=True)
    ]
    n = len(_PARTS)
    blocks = [dict(zip(_PARTS, parts[i : i + n], strict=True)) for i in range(0, len(parts) - 1, n)]
    return {"blocks": blocks, "norm": parts[-1]}


def _by_member(
    network: Callable[..., Tensor], widest: int, params: list[Tensor], *inputs: Tensor
) -> Tensor:
    """The network of each member of the stack on a block of its inputs at a time, joined."""
    lead = params[0].shape[:-2]
    rows = max(1, _BLOCK // widest)
    members = zip(*(p.reshape(-1, *p.shape[-2:]) for p in params), strict=True)
    inputs = tuple(x.reshape(lead.numel(), *x.shape[len(lead) :]) for x in inputs)
    found = [
        network(own, *block)
        for own, *given in zip(members, *inputs, strict=True)
        for block in zip(*(x.split(rows) for x in given), strict=True)
    ]
    return torch.cat(found).view(*lead, -1, *found[0].shape[1:])


@_flow.register_fake
def _(params, obs, noise, n_steps):
    return torch.empty_like(noise)


@_values.register_fake
def _(params, obs, action, branches, heads):
    return action.new_empty(action.shape[:-1])


def _batched(call: Callable[..., Tensor], n_stacked: int) -> Callable[..., tuple[Tensor, int]]:
    """The batching rule of an operator: parameters and the next `n_stacked` arguments with the axis in front."""

    def rule(info: Any, in_dims: Any, params: list[Tensor], *rest: Any) -> tuple[Tensor, int]:
        def front(x: Tensor, d: int | None) -> Tensor:
            return x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)

        own = [front(x, d) for x, d in zip(params, in_dims[0], strict=True)]
        given = [front(x, d) for x, d in zip(rest[:n_stacked], in_dims[1:], strict=False)]
        return call(own, *given, *rest[n_stacked:]), 0

    return rule


_flow.register_vmap(_batched(_flow, 2))
_values.register_vmap(_batched(_values, 2))

# operator -> the tensor operations that it stands for: for compilers, and to count its work
FORMULAS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.offbench.flow_sample.default: flow_formula,
    torch.ops.offbench.token_values.default: values_formula,
}


# --- one member


def _gelu_layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """GELU of x @ w + b in its tanh form: (R, n), (n, m), (1, m) -> (R, m)."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, w.t(), b.view(-1), "gelu", [], "tanh")
    return nets.ACTIVATIONS["gelu_tanh"](torch.addmm(b, x, w))


def _sampled(params: tuple[Tensor, ...], obs: Tensor, noise: Tensor, n_steps: int) -> Tensor:
    """Euler steps on rows of (observation, action, time), the action moved in place."""
    row = torch.cat([obs, noise, torch.zeros_like(noise[:, :1])], 1)
    action, time = row[:, obs.shape[1] : -1], row[:, -1]
    for i in range(n_steps):
        time.fill_(i / n_steps)
        h = row
        for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            h = _gelu_layer(h, w, b)
        action.add_(torch.addmm(params[-1], h, params[-2]), alpha=1 / n_steps)
    return action.clamp(-1, 1)


def _folded(params: transformer.Params, ends: Ends) -> list[Tensor]:
    """Weights of `_valued`, where no norm subtracts a mean or scales: [w, b, w, b, ..., and those of the ends].

    A norm subtracts the mean of what it reads. So the residual stream is kept without a mean, by centring
    the tokens and what is added to them, and norms only divide by the root of the mean square. Their
    scales and shifts are multiplied into the weights of the layer that reads them.
    """

    def centred(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    found = []
    for block in params["blocks"]:
        for norm, reader, writer in (("norm1", "qkv", "out"), ("norm2", "up", "down")):
            scale, shift = _leaves(block[norm])
            w, b = _leaves(block[reader])
            found += [scale.mT * w, b + shift @ w, *map(centred, _leaves(block[writer]))]
    scale, shift = _leaves(params["norm"])
    offset = (ends.head * shift).sum(-1, keepdim=True)
    return [*found, *map(centred, ends[:3]), ends.head * scale, offset]


def _valued(
    folded: Sequence[Tensor], obs: Tensor, action: Tensor, hidden: Tensor, heads: int
) -> Tensor:
    """Values (B, S) of (B, O) and (B, S, A); `hidden` (T, T) is -inf where a token is not seen."""
    *layers, w_obs, w_action, place, head, offset = folded
    (n, s, _), width = action.shape, w_obs.shape[1]
    t, size = 1 + s, width // heads
    share = obs.new_full((width,), 1 / width)
    steps = torch.mm(action.flatten(0, 1), w_action).view(n, s, width)
    x = torch.cat([torch.mm(obs, w_obs)[:, None], steps], 1).add_(place).view(n * t, width)

    def shrunk() -> Tensor:
        """1 / the root of the mean square of each token."""
        return torch.mv(x * x, share).add_(transformer.FLAX_EPS).rsqrt_()

    for i in range(0, len(layers), 8):
        w, b, w_out, b_out, w_up, b_up, w_down, b_down = layers[i : i + 8]
        qkv = torch.addmm(b, x * shrunk()[:, None], w).view(n, t, 3, heads, size)
        query, seen, value = (y.transpose(1, 2).reshape(n * heads, t, size) for y in qkv.unbind(2))
        scores = torch.baddbmm(hidden, query, seen.mT, alpha=size**-0.5)
        read = torch.bmm(scores.softmax(-1), value).view(n, heads, t, size)
        x.addmm_(read.transpose(1, 2).reshape(n * t, width), w_out).add_(b_out)
        x.addmm_(_gelu_layer(x * shrunk()[:, None], w_up, b_up), w_down).add_(b_down)
    read = (x.view(n, t, width)[:, 1:] * head).view(n * s, width)
    found = torch.mv(read, torch.ones_like(share)).view(n, s)
    return found.mul_(shrunk().view(n, t)[:, 1:]).add_(offset.view(-1))
