"""Which small kernels of a compiled program start as one.

Inductor joins those that are equally many operations from the program's arguments. A chain that is ready
early would then start alone, kernel by kernel. Here it waits for company.
"""

import math
from typing import Any

# terms from which a kernel of sums starts with its like only: it would be cut into blocks as is good for the others.
# One of 578 million, scores of attention, took 2.2 ms of an H200 in bad company and 0.7 ms in better
LARGE_SUMS = 2**25


def install() -> None:
    """Makes inductor join kernels as `groups` says, where its option `combo_kernels` is on."""
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(groups)


def groups(scheduler: Any) -> list[list[Any]]:
    """Kernels to start together, in an order that respects what they read.

    The kernel with most kernels to come after it is next, and with it all that are ready and of its kind;
    products start as soon as they can.
    """
    from torch._inductor.scheduler import FusedMixOrderReductions

    nodes = list(scheduler.nodes)
    before = {n: set(scheduler._get_unmet_dep_nodes(n)) for n in nodes}
    # inductor joins nothing that reads these
    mixed = {n for n in nodes if isinstance(n, FusedMixOrderReductions)}
    return ordered_groups(
        nodes, before, {n: None if before[n] & mixed else _kind(n) for n in nodes}
    )


def _kind(node: Any) -> Any:
    """Equal for kernels that inductor can join, None for what is no kernel of its own."""
    from torch._inductor.codegen.triton_combo_kernel import LARGE_NUMELS
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    device, reduces = node.get_device(), node.is_reduction()
    if device is None or device.type in ("cpu", "mps"):
        return None
    if not ForeachKernelSchedulerNode.combinable_nodes([node]):
        return None
    if any(x.node.get_reduction_type() == "dot" for x in node.get_nodes()):
        # a product that inductor writes itself: it is joined with nothing, and must not wait
        return None
    # (numbers that are written, terms of each)
    sizes = [x.group[1] for x in node.get_nodes()]
    if reduces:
        long = {s for s in sizes if math.prod(s).is_number and math.prod(s) > LARGE_SUMS}
        return device, reduces, frozenset(long)
    large = any(n.is_number and n > LARGE_NUMELS for n, _ in sizes)
    return device, reduces, node.get_name() if large else ""


def ordered_groups(
    nodes: list[Any], before: dict[Any, set], kind: dict[Any, Any]
) -> list[list[Any]]:
    """Groups of nodes of one kind, none before what it needs; kind None: alone, as soon as it can.

    Args:
        nodes: each after all that it needs.
        before: node -> those it needs.
        kind: nodes of different kinds are never in a group.
    """
    # groups that come after the node, at least
    height = dict.fromkeys(nodes, 0)
    for node in reversed(nodes):
        for x in before[node]:
            height[x] = max(height[x], height[node] + (kind[node] is not None))
    found: list[list[Any]] = []
    waiting, done = nodes, set[Any]()
    while waiting:
        ready = [n for n in waiting if before[n] <= done]
        free = [n for n in ready if kind[n] is None]
        if free:
            chosen = free
        else:
            first = max(ready, key=height.__getitem__)
            chosen = [n for n in ready if kind[n] == kind[first]]
            found.append(chosen)
        done.update(chosen)
        waiting = [n for n in waiting if n not in done]
    return found
