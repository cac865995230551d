"""Compiles programs through torch.compile: each once in a process, its code kept on disk for the next.

Torch finds the code of an equal program again (`TORCHINDUCTOR_CACHE_DIR`), but traces the program anew to
look for it, which takes seconds. Within a process the compiled program itself is used again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Run = Callable[..., list[Tensor]]
_compiled: dict[Any, Run] = {}


def compiled(graph: GraphModule, options: dict[str, Any], *, any_length: bool = False) -> Run:
    """The graph, compiled. Tensors it closes over become arguments of the code, so it does not depend on them.

    Args:
        options: of inductor.
        any_length: the first axes of those tensors may differ between programs that share code, as the rows
            of datasets do.
    """
    if any(isinstance(x, GraphModule) for x in graph.children()):
        # parts that its text does not show
        return _code(graph, options)
    constants = _as_arguments(graph)
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    given = [_shape(n.meta["val"]) for n in inputs[: len(inputs) - len(constants)]]
    closed = [_shape(x, any_length) for x in constants]
    shapes = (tuple(given), tuple(closed))
    key = (graph.code, shapes, str(options), torch.get_float32_matmul_precision())
    run = _compiled.get(key)
    if run is None:
        run = _compiled[key] = _code(graph, options)
    if any_length:
        for x in constants:
            if x.ndim:
                torch._dynamo.maybe_mark_dynamic(x, 0)
    return (lambda *leaves: run(*leaves, *constants)) if constants else run


def _code(graph: GraphModule, options: dict[str, Any]) -> Run:
    # the engine captures graphs itself
    options = {"triton.cudagraphs": False} | options
    return torch.compile(graph, fullgraph=True, options=options)


def _shape(x: Tensor, any_length: bool = False) -> tuple[Any, ...]:
    sizes = (None, *x.shape[1:]) if any_length and x.ndim else tuple(x.shape)
    return sizes, x.stride(), x.dtype, x.device


def _as_arguments(graph: GraphModule) -> list[Tensor]:
    """Makes the tensors that the graph closes over its last arguments, and returns them."""
    nodes: dict[str, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            nodes.setdefault(node.target, []).append(node)
    constants = [getattr(graph, name) for name in nodes]
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    for i, (same, value) in enumerate(reversed(list(zip(nodes.values(), constants, strict=True)))):
        with graph.graph.inserting_after(last):
            new = graph.graph.placeholder(f"constant_{len(constants) - i}")
        new.meta |= same[0].meta | {"val": value}
        for node in same:
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
    graph.recompile()
    return constants
