"""Traces a function of tensors to a straight-line program, and optimises the program.

Tracing gives a list of operations without branches. The passes below rewrite it with equal results:
products in the form a CPU computes fastest, repeated operations once, elementwise operations and
optimisers in place. Memory may be overwritten where no later operation reads it through any view
(`_owners`).
"""

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from offbench import rng
from offbench.nn import evaluated, optim
from offbench.training import compiling, fusing, products

_aten = torch.ops.aten
# torch.fx keeps the trace it makes in a global variable; episodes are played in another thread than training
_one_at_a_time = threading.RLock()


class Program:
    """`fn(tree) -> tree` as a straight-line list of tensor operations, traced on the example `tree`.

    `fn` must be a pure function of tensors: tracing runs it once, so a Python branch on a tensor's
    value raises, as does any draw from a global generator under vmap. Tensors it closes over (the
    dataset) are not copied. The first `reuse` leaves of the argument may be overwritten. `any_length`: the
    compiled code is for any number of rows of what `fn` closes over. `graph` is the list, before a compiler
    gets it.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        tree: Any,
        *,
        reuse: int = 0,
        compiled: bool = False,
        bf16: bool = False,
        any_length: bool = False,
    ):
        leaves, self._tree = tree_flatten(tree)
        out: dict[str, Any] = {}

        def flat(*leaves: Tensor) -> list[Tensor]:
            result, out["tree"] = tree_flatten(fn(tree_unflatten(list(leaves), self._tree)))
            return result

        with _one_at_a_time:
            graph = trace(flat, leaves, for_compiler=compiled)
        self.graph, self._out = graph, out["tree"]
        _drop_empty_views(graph)
        if bf16:
            _multiply_in_bf16(graph)
        if compiled or not bf16:
            _compute_once(graph)
        on_cpu = leaves[0].device.type == "cpu"
        if on_cpu and not bf16 and products.onednn_is_faster():
            products.by_onednn(graph)
        if compiled:
            options = fusing.fuse(graph, leaves[0].device)
            self._run = compiling.compiled(graph, options, any_length=any_length)
            return
        if not bf16:
            if on_cpu:
                _turn_thin_products(graph)
            _write_over_dead_values(graph)
        in_place = []
        if reuse:
            _copy_what_is_given_away(graph, reuse)
            in_place = _overwritable(graph, reuse)
        _fast_calls(graph, leaves)
        for node in in_place:
            node.target = _IN_PLACE[node.target][0]
        graph.recompile()
        self._run = graph

    def __call__(self, tree: Any) -> Any:
        return tree_unflatten(self._run(*tree_leaves(tree)), self._out)


_FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.ops.offbench.adam.default: optim.adam_lists,
    torch.ops.offbench.lerp.default: optim.lerp_formula,
    **evaluated.FORMULAS,
}
# operation -> the one that writes, and which arguments it writes to
_IN_PLACE: dict[Any, tuple[Callable[..., Any], tuple[int, ...]]] = {
    torch.ops.offbench.adam.default: (optim.adam_, (0, 2, 3)),
    torch.ops.offbench.lerp.default: (optim.lerp_, (0,)),
}


# operators of offbench -> their functions, which are called without torch's dispatch
_DIRECT: dict[Any, Callable[..., Any]] = {
    torch.ops.offbench.normal.default: rng.normal_formula,
    **products.CALLS,
}


def trace(fn: Callable[..., Any], leaves: list[Tensor], *, for_compiler: bool) -> GraphModule:
    """The operations of `fn(*leaves)`; for a compiler optimisers as their formulas, and none that writes.

    A graph that writes to its values is traced again, operation by operation: the function itself may hold
    an autograd.Function, which torch cannot rewrite.
    """
    graph = make_fx(fn, decomposition_table=_FORMULAS if for_compiler else {})(*leaves)
    targets = [node.target for node in graph.graph.nodes]
    writes = any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)
    if for_compiler and writes:
        return make_fx(functionalize(graph, remove="mutations"))(*leaves)
    return graph


_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
_SHAPE_ONLY = {torch.ops.aten.view.default, torch.ops.aten.expand.default, _UNSAFE_VIEW}


def _drop_empty_views(graph: GraphModule) -> None:
    """vmap's batching rules leave hundreds of views that change neither shape nor stride."""
    for node in list(graph.graph.nodes):
        if node.target in _SHAPE_ONLY:
            before, after = node.args[0].meta["val"], node.meta["val"]
            if before.shape == after.shape and before.stride() == after.stride():
                node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()


_PRODUCTS = {torch.ops.aten.bmm.default, torch.ops.aten.mm.default}


def _multiply_in_bf16(graph: GraphModule) -> None:
    """Matrix products on bfloat16 operands; everything else, the optimiser too, stays float32."""
    cast = torch.ops.aten._to_copy.default
    for node in list(graph.graph.nodes):
        if node.target in _PRODUCTS and node.meta["val"].dtype == torch.float32:
            value = node.meta["val"]
            with graph.graph.inserting_before(node):
                operands = [
                    graph.graph.call_function(cast, (x,), {"dtype": torch.bfloat16})
                    for x in node.args
                ]
            node.args = tuple(operands)
            with graph.graph.inserting_after(node):
                back = graph.graph.call_function(cast, (node,), {"dtype": torch.float32})
            back.meta["val"] = value
            node.replace_all_uses_with(back, delete_user_cb=lambda user, b=back: user is not b)
    graph.recompile()


def _insert(graph: GraphModule, node: Node, target: Any, *args: Any) -> Node:
    """A new operation before `node`, with the value it would have."""
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(target, args)
    new.meta["val"] = target(*(_shape_of(x) if isinstance(x, Node) else x for x in args))
    return new


def _shape_of(node: Node) -> Tensor:
    """A tensor without memory, laid out as the node's value."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _turn_thin_products(graph: GraphModule) -> None:
    """Batched products with a side of length 1, which CPU libraries compute 3 to 14 times slower.

    (m x k)(k x 1) is computed transposed, and the outer product (m x 1)(1 x n) elementwise.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _aten.bmm.default:
            continue
        a, b = node.args
        k, n = b.meta["val"].shape[1:]
        if k == 1:
            new = _insert(graph, node, _aten.mul.Tensor, a, b)
        elif n == 1:
            turned = [_insert(graph, node, _aten.transpose.int, x, 1, 2) for x in (b, a)]
            product = _insert(graph, node, _aten.bmm.default, *turned)
            new = _insert(graph, node, _aten.transpose.int, product, 1, 2)
        else:
            continue
        node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _compute_once(graph: GraphModule) -> None:
    """Merges equal operations on equal values, of which methods and vmap produce many."""
    nodes = list(graph.graph.nodes)
    touched, owner = _written_to(nodes), _owners(nodes)
    seen: dict[tuple, Node] = {}
    for node in nodes:
        pure = node.op == "get_attr" or (
            _is_aten(node) and torch.Tag.nondeterministic_seeded not in node.target.tags
        )
        if not pure or touched & {owner[x] for x in (node, *node.all_input_nodes)}:
            continue
        # by repr: nodes by name, and 1, 1.0 and True differ
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.graph.erase_node(node)
        seen.setdefault(key, node)
    graph.recompile()


def _write_over_dead_values(graph: GraphModule) -> None:
    """Elementwise operations write into an operand that nothing reads afterwards.

    That memory is in the cache and new memory is not, which on a CPU is half of an activation's
    time. Arguments, constants and views of them are never overwritten.
    """
    nodes = list(graph.graph.nodes)
    owner = _owners(nodes)
    last_read = {owner[x]: node for node in nodes for x in node.all_input_nodes}

    def dead(x: Any, node: Node) -> bool:
        if not isinstance(x, Node) or not _is_aten(maker := owner[x]):
            return False
        others = (owner[y] for y in node.all_input_nodes if y is not x)
        return last_read[maker] is node and maker not in others and _same_layout(x, node)

    for node in nodes:
        if (form := _in_place_form(node)) is None:
            continue
        first, *rest = node.args
        if node.target in _COMMUTE and not node.kwargs and not dead(first, node):
            first, rest = rest[0], [first]
        if dead(first, node):
            node.target, node.args = form, (first, *rest)
            if form._overloadname == "grad_input":
                node.kwargs = {**node.kwargs, "grad_input": first}
    graph.recompile()


_COMMUTE = {_aten.add.Tensor, _aten.mul.Tensor}


def _in_place_form(node: Node) -> Any:
    """The operator that computes an elementwise `node` into its first argument, if there is one."""
    target: Any = node.target
    if not _is_aten(node) or torch.Tag.pointwise not in target.tags:
        return None
    name = target._schema.name.removeprefix("aten::")
    if name.endswith("_backward"):
        return getattr(getattr(_aten, name), "grad_input", None)
    return getattr(getattr(_aten, name + "_", None), target._overloadname, None)


def _same_layout(a: Node, b: Node) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    return (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


def _is_aten(node: Node) -> bool:
    """Whether the node is an aten operation with one tensor as its result."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and isinstance(node.meta.get("val"), Tensor)
    )


def _written_to(nodes: list[Node]) -> set[Node]:
    """Owners of the memory that traced in-place operations write to."""
    owner = _owners(nodes)
    return {
        owner[x]
        for node in nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, x in zip(node.target._schema.arguments, node.args)
        if argument.is_write and isinstance(x, Node)
    }


def _fast_calls(graph: GraphModule, leaves: list[Tensor]) -> None:
    """Calls torch's C bindings instead of `torch.ops`, which spends 3 us more on every operation.

    The program is run before and after; if results differ in any bit it is kept as traced.
    """
    with torch.no_grad():
        want = graph(*leaves)
        targets = {node: node.target for node in graph.graph.nodes}
        for node, target in targets.items():
            if target in _DIRECT:
                node.target = _DIRECT[target]
            elif isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
                node.target = _binding(target._schema.name.removeprefix("aten::")) or target
        try:
            graph.recompile()
            same = all(map(_same_bits, want, graph(*leaves)))
        except (TypeError, RuntimeError):
            same = False
        if not same:
            for node, target in targets.items():
                node.target = target
            graph.recompile()


def _binding(name: str) -> Any:
    # fx cannot print torch's own dunder functions
    if name.startswith("__"):
        return getattr(torch.Tensor, name, None)
    found = getattr(torch._C._VariableFunctions, name, None)
    return found if found is not None else getattr(torch._C.TensorBase, name, None)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _copy_what_is_given_away(graph: GraphModule, reuse: int) -> None:
    """Copies results that share memory with the first `reuse`, which the next call overwrites."""
    nodes = list(graph.graph.nodes)
    owner, results = _owners(nodes), list(nodes[-1].args[0])
    kept = {owner[x] for x in results[:reuse]}
    for i, x in enumerate(results[reuse:], reuse):
        if owner[x] in kept:
            results[i] = _insert(graph, nodes[-1], _aten.clone.default, x)
    nodes[-1].args = (results,)


def _overwritable(graph: GraphModule, reuse: int) -> list[Node]:
    """Optimiser steps and target updates that may write in place: nothing reads the old values later.

    Otherwise every step would copy all parameters and both moments.
    """
    nodes = list(graph.graph.nodes)
    owner = _owners(nodes)
    results = nodes[-1].args[0]
    if len({owner[x] for x in results[:reuse]}) < reuse:
        # two leaves share memory: writing to one in the next step would change the other
        return []
    if any(owner[x].op == "get_attr" or not x.meta["val"].is_contiguous() for x in results[:reuse]):
        return []
    last_read: dict[Node, Node] = {owner[x]: node for node in nodes for x in node.all_input_nodes}
    inputs = [n for n in nodes if n.op == "placeholder"]
    lent = {n for n in nodes if n.op != "get_attr"} - set(inputs[reuse:])

    def writable(node: Node) -> bool:
        lists: Any = node.args
        old: list[Node] = [x for i in _IN_PLACE[node.target][1] for x in lists[i]]
        own = all(owner[x] is x and x in lent and last_read[x] is node for x in old)
        return own and len(set(old)) == len(old)

    return [node for node in nodes if node.target in _IN_PLACE and writable(node)]


def _owners(nodes: list[Node]) -> dict[Node, Node]:
    """Each node -> the node that owns its memory: itself, or the base of a view."""
    owner: dict[Node, Node] = {}
    for node in nodes:
        shows = node.op == "call_function" and _is_view(node) and node.all_input_nodes
        owner[node] = owner[node.all_input_nodes[0]] if shows else node
    return owner


def _is_view(node: Node) -> bool:
    """Whether the result may share memory with its first argument."""
    # of an optimiser's list: memory of its own; of unbind: a view
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, Node) and source.op == "call_function" and _is_view(source)
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return node.target is _UNSAFE_VIEW or any(r.alias_info is not None for r in returns)
