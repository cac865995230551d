"""Optimisers as pure functions: `init(params) -> state`, `step(grads, state, params)`.

Adam is torch's fused kernel, wrapped as a functional operator with a batching rule: Adam is
elementwise, so N seeds are one call on tensors with a leading axis, and one node of a traced update
instead of ten per tensor.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def adam_(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    count: Tensor,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
) -> list[Tensor]:
    """One Adam step in place; returns [params, mu, nu]. `count` is the step number from 1."""
    # stacked seeds are always at the same step
    step = count.reshape(-1)[0]
    torch._fused_adam_(
        params,
        [g.contiguous() for g in grads],
        mu,
        nu,
        [],
        [step] * len(params),
        lr=lr,
        beta1=b1,
        beta2=b2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    return [*params, *mu, *nu]


@torch.library.custom_op("offbench::adam", mutates_args=())
def _adam(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    count: Tensor,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
) -> list[Tensor]:
    """[params, mu, nu] after one step."""
    copies = [[x.clone(memory_format=_DENSE) for x in part] for part in (params, mu, nu)]
    return adam_(copies[0], grads, copies[1], copies[2], count, lr, b1, b2, eps)


# the fused kernel walks memory, so layouts must agree
_DENSE = torch.contiguous_format


@_adam.register_fake
def _(params, grads, mu, nu, count, lr, b1, b2, eps):
    return [torch.empty_like(x, memory_format=_DENSE) for x in (*params, *mu, *nu)]


def adam_formula(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    count: Tensor,
    lr: float | Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """The Adam step as elementwise tensor operations, for compilers; `lr` may be a tensor."""
    mu = [torch.lerp(m, g, 1 - b1) for m, g in zip(mu, grads, strict=True)]
    nu = [torch.lerp(v, g * g, 1 - b2) for v, g in zip(nu, grads, strict=True)]
    new = []
    for p, m, v in zip(params, mu, nu, strict=True):
        t = count.view((*count.shape, *[1] * (p.ndim - count.ndim)))  # (N,) -> (N, 1, 1)
        step = lr / (1 - b1**t)
        new.append(p - step * m / ((v / (1 - b2**t)).sqrt() + eps))
    return [*new, *mu, *nu]


def adam_lists(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    count: Tensor,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
) -> list[Tensor]:
    """The Adam step for compilers of GPU code: one kernel for all leaves, whatever their shapes.

    Inductor puts the last operation of each list into one kernel, with the elementwise operations
    before it, and with those after it: a target's `lerp_formula` is computed in the same kernel. The
    operations between are on single leaves, since a list that only lists read is not kept as one.
    """
    # stacked seeds are always at the same step
    t = count.reshape(-1)[0]
    step, scale = lr / (1 - b1**t), 1 - b2**t
    to_mu = [(1 - b1) * (g - m) for g, m in zip(grads, mu, strict=True)]
    to_nu = [(1 - b2) * (g * g - v) for g, v in zip(grads, nu, strict=True)]
    mu, nu = list(torch._foreach_add(mu, to_mu)), list(torch._foreach_add(nu, to_nu))
    steps = [step * m / ((v / scale).sqrt() + eps) for m, v in zip(mu, nu, strict=True)]
    return [*torch._foreach_sub(params, steps), *mu, *nu]


def _front(tensors: list[Tensor], dims: list[int | None], n: int) -> list[Tensor]:
    """Every tensor with the stacked axis first, expanded where it had none."""
    return [
        t if d == 0 else t.movedim(d, 0) if d is not None else t.expand(n, *t.shape)
        for t, d in zip(tensors, dims, strict=True)
    ]


@_adam.register_vmap
def _(info, in_dims, params, grads, mu, nu, count, lr, b1, b2, eps):
    n = info.batch_size
    lists = [_front(x, d, n) for x, d in zip((params, grads, mu, nu), in_dims[:4], strict=True)]
    out = _adam(*lists, count, lr, b1, b2, eps)
    return out, [0] * len(out)


def lerp_(start: list[Tensor], end: list[Tensor], weight: float) -> list[Tensor]:
    """start + weight (end - start), in place."""
    torch._foreach_lerp_(start, end, weight)
    return start


@torch.library.custom_op("offbench::lerp", mutates_args=())
def _lerp(start: list[Tensor], end: list[Tensor], weight: float) -> list[Tensor]:
    return list(torch._foreach_lerp(start, end, weight))


@_lerp.register_fake
def _(start, end, weight):
    return [torch.empty_like(x) for x in start]


def lerp_formula(start: list[Tensor], end: list[Tensor], weight: float | Tensor) -> list[Tensor]:
    """start + weight (end - start) as tensor operations; `weight` may be a tensor."""
    return [a + weight * (b - a) for a, b in zip(start, end, strict=True)]


@_lerp.register_vmap
def _(info, in_dims, start, end, weight):
    n = info.batch_size
    out = _lerp(_front(start, in_dims[0], n), _front(end, in_dims[1], n), weight)
    return out, [0] * len(out)


class AdamState(NamedTuple):
    """State of Adam: step count and the two moments."""

    # () float32, steps taken; shadows tuple.count
    count: Tensor  # type: ignore[assignment]
    mu: Any  # like the parameters
    nu: Any


class Adam(NamedTuple):
    """Adam (Kingma and Ba, 2015), equal to `torch.optim.Adam`; `lr` in units per step.

    `weight_decay` is L2: its multiple of the parameters is added to the gradient.
    """

    lr: float = 3e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, params: Any) -> AdamState:
        count = torch.zeros((), device=tree_leaves(params)[0].device)
        return AdamState(
            count, tree_map(torch.zeros_like, params), tree_map(torch.zeros_like, params)
        )

    def step(self, grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            grads = tree_map(lambda g, p: g + self.weight_decay * p, grads, params)
        leaves, tree = tree_flatten(params)
        count, n = state.count + 1, len(leaves)
        step = adam_formula if isinstance(self.lr, Tensor) else torch.ops.offbench.adam
        new = step(
            leaves,
            tree_leaves(grads),
            tree_leaves(state.mu),
            tree_leaves(state.nu),
            count,
            self.lr,
            self.b1,
            self.b2,
            self.eps,
        )
        params, mu, nu = (tree_unflatten(new[i * n : (i + 1) * n], tree) for i in range(3))
        return params, AdamState(count, mu, nu)


class AdamW(NamedTuple):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); `lr` rises linearly over `warmup` steps.

    Equal to `torch.optim.AdamW` under a LambdaLR of min(step / warmup, 1), steps counted from 1.
    """

    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: int = 1

    def init(self, params: Any) -> AdamState:
        return Adam(self.lr).init(params)

    def step(self, grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        # Adam's step does not depend on the parameters: from zeros the result is the step itself
        step, after = Adam(self.lr).step(grads, state, tree_map(torch.zeros_like, params))
        warm = (after.count / max(self.warmup, 1)).clamp(max=1.0)
        decay = self.lr * self.weight_decay
        return tree_map(lambda p, d: p + warm * (d - decay * p), params, step), after


def clip_by_global_norm(grads: Any, max_norm: float | Tensor) -> tuple[Any, Tensor]:
    """(gradients scaled to a global norm of at most `max_norm`, their norm before), as in torch."""
    norm = torch.stack([torch.square(g).sum() for g in tree_leaves(grads)]).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return tree_map(lambda g: g * scale, grads), norm


def polyak(target: Any, online: Any, rate: float | Tensor) -> Any:
    """target <- (1 - rate) target + rate online, leaf by leaf."""
    leaves, tree = tree_flatten(target)
    lerp = lerp_formula if isinstance(rate, Tensor) else torch.ops.offbench.lerp
    return tree_unflatten(lerp(leaves, tree_leaves(online), rate), tree)
