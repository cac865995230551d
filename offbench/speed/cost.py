"""How much work a training step is, counted on the traced program, and how fast this machine could do it.

Floating-point operations are those of the matrix products, two for each multiply-add. Bytes are the
sizes of every operation's operands and result, each counted once: what an unfused program moves, so
an upper bound for a fused one, whose caches and registers keep some of them. Ceilings are measured,
not taken from a data sheet.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from offbench import rng
from offbench.nn import evaluated
from offbench.training.engine import Precision, matmul_precision
from offbench.training.products import FACTORS, bmm, mm, onednn_is_faster
from offbench.training.step import Carry, Step

# batch, rows, inner, columns
Shape = tuple[int, int, int, int]


class Cost(NamedTuple):
    """Of one step of the whole stack."""

    flops: float
    bytes: float
    # how often each shape is multiplied
    products: dict[Shape, int]


def cost(step: Step, carry: Carry) -> Cost:
    """Counts one update of the stacked seeds at `carry`, all resident on one device.

    Its batch is made with those of other steps, and not counted.
    """
    given = step.input(vmap(step.draw)(rng.fold(carry.key, carry.step)))
    leaves, tree = tree_flatten((carry.state, given))
    many = vmap(step.update)
    trace = make_fx(
        lambda *x: tree_leaves(many(*tree_unflatten(list(x), tree))),
        decomposition_table=evaluated.FORMULAS,
    )
    nodes = [n for n in trace(*leaves).graph.nodes if n.op == "call_function"]
    products = Counter(shape for n in nodes if (shape := _product(n)))
    return Cost(
        flops=sum(2.0 * b * m * k * n * times for (b, m, k, n), times in products.items()),
        bytes=float(sum(map(_bytes, nodes))),
        products=dict(products),
    )


_aten = torch.ops.aten
_GATHERS = {_aten.index.Tensor, _aten.index_select.default, _aten.gather.default}


def _product(node: Node) -> Shape | None:
    if node.target not in FACTORS:
        return None
    first = FACTORS[node.target]
    factors: Any = node.args[first : first + 2]
    a, b = (x.meta["val"].shape for x in factors)
    return (a[0] if len(a) == 3 else 1, a[-2], a[-1], b[-1])


def _bytes(node: Node) -> int:
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0  # picks from a list
    results = tensors(node)
    if node.target is _aten._unsafe_view.default or any(
        r.alias_info is not None for r in node.target._schema.returns
    ):
        return 0  # a view
    operands = [x for n in node.all_input_nodes for x in tensors(n)]
    # reads as much of the table as it takes out
    if node.target in _GATHERS:
        operands = [*operands[1:], *results]
    return sum(map(_size, (*operands, *results)))


def tensors(node: Node) -> list[Tensor]:
    """What a traced operation makes."""
    return [x for x in tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]


def _size(x: Tensor) -> int:
    """Bytes of memory behind a tensor; an expanded axis has none of its own."""
    n = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        n *= length if stride or not length else 1
    return n


# --- ceilings


def best_seconds(
    run: Callable[[], Any], device: torch.device, *, seconds: float = 0.5, rounds: int = 5
) -> float:
    """Seconds of one call, by the best of several rounds of many calls."""

    def timed(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed(1)
    n = 1
    while (elapsed := timed(n)) < seconds / rounds / 4:
        n *= 2
    n = max(1, round(n * seconds / rounds / elapsed))
    return min(timed(n) for _ in range(rounds)) / n


def _random(shape: tuple[int, ...], device: torch.device, precision: Precision) -> Tensor:
    """Normal numbers: zeros would run faster than real data do."""
    return torch.randn(shape, device=device, dtype=torch.bfloat16 if precision == "bf16" else None)


def matmul_ceiling(device: torch.device, precision: Precision = "float32", *, n: int = 0) -> float:
    """FLOP/s of one large square product, by the library that the engine takes for it."""
    n = n or (8192 if device.type == "cuda" else 1024)
    a, b = (_random((n, n), device, precision) for _ in range(2))
    product = mm if _by_onednn(device, precision) else torch.mm
    with matmul_precision(precision):
        return 2.0 * n**3 / best_seconds(lambda: product(a, b), device)


def _by_onednn(device: torch.device, precision: Precision) -> bool:
    return device.type == "cpu" and precision == "float32" and onednn_is_faster()


def products_ceiling(
    products: dict[Shape, int], device: torch.device, precision: Precision = "float32"
) -> float:
    """FLOP/s of the products of a program by themselves: the same shapes, nothing between them.

    Where one side has length 1 a library's product may be slow, so each is tried in its other forms.
    """
    total = seconds = 0.0
    patience = 0.05 if device.type == "cuda" else 0.15
    with matmul_precision(precision):
        for (batch, m, k, n), times in products.items():
            a = _random((batch, m, k), device, precision)
            b = _random((batch, k, n), device, precision)
            at, bt = a.mT.contiguous(), b.mT.contiguous()
            forms = [lambda a=a, b=b: torch.bmm(a, b)]
            if _by_onednn(device, precision):
                forms.append(lambda a=a, b=b: bmm(a, b))
            if 1 in (m, n):
                forms.append(lambda at=at, bt=bt: torch.bmm(bt, at))
            if k == 1:
                forms.append(lambda a=a, b=b: a * b)
            runs = [_repeated(form, device) for form in forms]
            best = min(best_seconds(run, device, seconds=patience) for run in runs)
            seconds += times * best / REPEATS
            total += times * 2.0 * batch * m * k * n
    return total / seconds


REPEATS = 16


def _repeated(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """REPEATS calls; on a GPU one graph, so that launching from Python is not what is measured."""

    def many() -> None:
        for _ in range(REPEATS):
            run()

    if device.type != "cuda":
        return many
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return graph.replay


def copy_ceiling(device: torch.device, *, nbytes: int = 0) -> float:
    """Bytes per second of one large copy, those read and those written."""
    nbytes = nbytes or (2**31 if device.type == "cuda" else 2**27)
    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / best_seconds(lambda: target.copy_(source), device)
