"""Rewrites a traced program before it is compiled: fewer kernels, the same numbers to rounding.

A stack of small networks spends its time on starting kernels as much as on computing, so what can
share one does.
"""

import math
from typing import Any

import torch
from torch._inductor import config
from torch._inductor.pattern_matcher import stable_topological_sort
from torch.fx import Graph, GraphModule, Node
from torch.torch_version import TorchVersion

from offbench.training import grouping

_aten = torch.ops.aten
_BMM, _CAST = _aten.bmm.default, _aten._to_copy.default
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default}


# whether inductor writes products itself, with what follows in the same kernel, instead of calling a library.
# Fewer starts and less memory moved; which is faster only a GPU can tell.
OWN_PRODUCTS = False


def fuse(graph: GraphModule, device: torch.device) -> dict[str, Any]:
    """All passes that help on this device. Returns the options to compile the program with.

    The program must be free of operations that write to their arguments, and no operation be in it twice.
    """
    if device.type == "cpu":
        return {}
    join_rows(graph)
    write_out_products(graph)
    grouping.install()
    return {
        # independent small kernels start as one
        "combo_kernels": True,
        # small values are concatenated in the kernels that read the result, not in one of their own
        "force_pointwise_cat": _largest_cat(graph) <= SMALL_CAT,
        # torch 2.11 fails where it reorders the loops of kernels that it joins: TD3+BC of one seed
        "loop_ordering_after_fusion": TorchVersion(torch.__version__) >= "2.13",
        # a sum over a minibatch in one kernel, and the optimiser in it, instead of two
        "split_reductions": _longest_sum(graph) > LONG_SUM,
        # inductor otherwise pads products and sizes the blocks of sums by what it finds faster at the
        # time, and the order of additions would differ from one compilation to the next
        "deterministic": True,
    } | _of_new_versions()


def _of_new_versions() -> dict[str, Any]:
    options: dict[str, Any] = {"triton.native_matmul": True} if OWN_PRODUCTS else {}
    # kernels start together although values are then needed for longer, by default for at most 5 % more memory
    if hasattr(config, name := "combo_kernel_peak_memory_pct_threshold"):
        options[name] = None
    return options


# numbers up to which a concatenation is written anew by each of its readers: observations and actions of 16 seeds'
# minibatches are 94,000; CQL's, with ten actions for each observation, a million, and its readers then cost kernels
SMALL_CAT = 2**19


def _largest_cat(graph: GraphModule) -> int:
    nodes = graph.graph.find_nodes(op="call_function", target=_aten.cat.default)
    return max((node.meta["val"].numel() for node in nodes), default=0)


# terms of a sum from which a compiler may share one sum among many blocks, with a second kernel
LONG_SUM = 2048


def _longest_sum(graph: GraphModule) -> int:
    longest = 0
    for node in graph.graph.nodes:
        if node.target in (_aten.sum.dim_IntList, _aten.mean.dim):
            terms = node.args[0].meta["val"].numel() // node.meta["val"].numel()
            longest = max(longest, terms)
    return longest


def insert(node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new operation before `node`, with the value it would have."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs)
    new.meta["val"] = target(*(_without_memory(x) for x in args), **kwargs)
    return new


def _without_memory(x: Any) -> Any:
    """A node's value on no device, laid out as it is; what is no node as it is."""
    if isinstance(x, list):
        return [_without_memory(y) for y in x]
    if not isinstance(x, Node):
        return x
    value = x.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


# a side of a product up to which it is written out: the dimensions of actions
THIN = 8
# rows, columns and terms up to which it is
TINY = 24
# multiplications above which that costs more than it saves: written out, attention to 80,000 sets of 21 tokens took
# 38 % of an update of ACSAC on an H200
MANY = 2**26


def write_out_products(graph: GraphModule) -> None:
    """Thin and tiny products become elementwise products and sums.

    A compiler fuses these with the operations around them, and a library's product with nothing: with a side of
    length 1 always, else where they are not too many; the first and last layer of a policy's actions, attention to a
    few tokens.
    """
    for node in graph.graph.find_nodes(op="call_function", target=_BMM):
        operands: Any = node.args
        a, b = operands
        shape = (*a.meta["val"].shape, b.meta["val"].shape[2])
        least, most = min(shape[1:]), max(shape[1:])
        few = math.prod(shape) <= MANY and (least <= THIN or most <= TINY)
        if not (few or least == 1):
            continue
        a = insert(node, _aten.unsqueeze.default, a, 3)
        b = insert(node, _aten.unsqueeze.default, b, 1)
        product = insert(node, _aten.mul.Tensor, a, b)
        node.replace_all_uses_with(insert(node, _aten.sum.dim_IntList, product, [2]))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def join_rows(graph: GraphModule) -> None:
    """Products with the same right operand become one product of all their rows.

    So does what follows row by row: bias, activation, the next layer. A network that is applied to two
    batches (V to both observations, target networks to both minibatches) costs the kernels of one.
    """
    for node in graph.graph.nodes:
        if node.target in _VIEWS:
            # some rows of a larger value may have no such view
            node.target = _aten.reshape.default
    _Rows(graph.graph).join()
    graph.graph.eliminate_dead_code()
    graph.recompile()


# bytes of a left operand up to which it is copied to save a product
COPY_LIMIT = 2**22


def _all_of(parts: list[Node]) -> Node | None:
    """The value whose minibatches these are: (N, n, B, W) for all n of (N, B, W), in order."""
    select, base = _aten.select.int, parts[0].args and parts[0].args[0]
    if not all(x.target is select and x.args == (base, 1, i) for i, x in enumerate(parts)):
        return None
    assert isinstance(base, Node)
    return base if base.meta["val"].shape[1] == len(parts) else None


class _Rows:
    """Values of a graph that are rows of larger ones."""

    def __init__(self, graph: Graph):
        self.graph = graph
        # rows -> (the larger value, which of its parts they are)
        self.place: dict[Node, tuple[Node, int]] = {}

    def join(self) -> None:
        while len(group := self._independent_products()) > 1:
            waiting = [group]
            while waiting:
                waiting += self._followers(self._join(waiting.pop()))
            stable_topological_sort(self.graph)

    def _independent_products(self) -> list[Node]:
        """Products that share their right operand and do not depend on each other."""
        # node -> itself and all that it is computed from, a bit each
        origins: dict[Node, int] = {}
        groups: dict[Node, list[Node]] = {}
        for i, node in enumerate(self.graph.nodes):
            origins[node] = 1 << i
            for x in node.all_input_nodes:
                origins[node] |= origins[x]
            if node.target is not _BMM or self._is_rows(node.args[0]):
                continue
            left, right = node.all_input_nodes[0], node.all_input_nodes[-1]
            group = groups.setdefault(right, [])
            depends = any(origins[x] & ~origins[node] == 0 for x in group)
            if not depends and left.meta["val"].nbytes <= COPY_LIMIT:
                group.append(node)
        return max(groups.values(), key=len, default=[])

    def _join(self, group: list[Node]) -> list[Node]:
        """Computes the operations of a group as one. Returns the rows that take their places."""
        last, value = group[-1], group[-1].meta["val"]
        lengths = [x.meta["val"].shape[-2] for x in group]
        args = [self._joined(last, list(same)) for same in zip(*(x.args for x in group))]
        if last.target in _VIEWS:
            args[1] = [*value.shape[:-2], sum(lengths), value.shape[-1]]
        whole = insert(last, last.target, *args, **last.kwargs)
        rows = []
        for i in range(len(group)):
            span = sum(lengths[:i]), sum(lengths[: i + 1])
            part = insert(last, _aten.slice.Tensor, whole, value.ndim - 2, *span)
            self.place[part] = whole, i
            rows.append(part)
        for node, part in zip(group, rows):
            node.replace_all_uses_with(part)
        for node in group:
            self.graph.erase_node(node)
        return rows

    def _joined(self, before: Node, same: list) -> Any:
        """The argument of the joined operation, from those of the group."""
        if self._is_rows(same[0]):
            return self.place[same[0]][0]
        if all(x is same[0] for x in same) or not isinstance(same[0], Node):
            return same[0]
        if (base := _all_of(same)) is not None:
            first = same[0].meta["val"]
            return insert(before, _aten.reshape.default, base, [len(first), -1, first.shape[-1]])
        return insert(before, _aten.cat.default, same, 1)

    def _is_rows(self, x: Any) -> bool:
        return isinstance(x, Node) and x in self.place

    def _followers(self, rows: list[Node]) -> list[list[Node]]:
        """Groups of operations that do the same to each of the rows."""
        groups: list[list[Node]] = []
        for first in rows[0].users:
            key, group = self._key(first, 0), [first]
            for i, part in enumerate(rows[1:], 1):
                group += [x for x in part.users if self._key(x, i) == key][:1]
            if key and len(set(group)) == len(rows):
                groups.append(group)
        return groups

    def _key(self, node: Node, part: int) -> tuple | None:
        """What an operation does to its rows, equal where it is the same; None where it mixes rows."""
        value = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(
            value, torch.Tensor
        ):
            return None
        args: Any = node.args
        shape = value.shape
        if node.target in _VIEWS:
            whole, kept = self.place[args[0]][0], shape[-2:] == args[0].meta["val"].shape[-2:]
            return ("view", whole, shape[:-2]) if kept and len(shape) > 1 else None
        if node.target is _BMM:
            return None if self._is_rows(args[1]) else (_BMM, self.place[args[0]][0], args[1])
        if torch.Tag.pointwise not in node.target.tags and node.target is not _CAST:
            return None
        same: list[Any] = []
        for x in args:
            rows = (1, 1, *x.meta["val"].shape)[-2] if isinstance(x, Node) else None
            if self._is_rows(x) and self.place[x][1] == part and rows == shape[-2]:
                same.append(self.place[x][0])
            elif self._is_rows(x) or rows not in (None, 1):
                return None
            else:
                # a number, or a value that is the same for every row
                same.append(x if rows else repr(x))
        return node.target, repr(node.kwargs), *same
