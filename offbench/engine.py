"""Trains all seeds of a cell at once. The only file that knows vmap, tracing, compilers and CUDA graphs.

A step is one seed's: split the key, draw a batch, update. `vmap` adds the seed axis, and the result
is traced once into a straight-line program of tensor operations (forward, backward, optimiser, batch
and noise draws; no autograd tape, no Python of the method). The backends run that one program:

    vmap        the step itself, untraced: slow, for debugging and as the judge of the others
    eager       the traced program, operation by operation
    compile     the traced program through torch.compile (fused kernels; compiling takes up to a minute)
    cudagraph   the traced program captured in a CUDA graph, `unroll` updates per replay

One seed is N = 1; there is no other code path. Results of one backend are the same bit for bit from
run to run; between backends and stack sizes they agree to rounding per update.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from offbench import rng
from offbench.errors import UserError, unknown
from offbench.pipeline import Pipeline
from offbench.types import Method, Metrics, Spec

Backend = Literal["auto", "vmap", "eager", "compile", "cudagraph"]
Carry = tuple[Any, Tensor]  # stacked states, keys (N,)
Step = Callable[[Any, Tensor], tuple[Any, Tensor, Metrics]]


def stack(trees: Sequence[Any]) -> Any:
    """A list of N pytrees of one shape -> one pytree with a leading axis of N."""
    return tree_map(lambda *x: torch.stack(x), *trees)


def unstack(tree: Any, i: int) -> Any:
    """The i-th of the stacked pytrees."""
    return tree_map(lambda x: x[i], tree)


def make_step(method: Method, pipeline: Pipeline) -> Step:
    """One update of one seed. Everything it touches is an argument or immutable."""
    minibatches = n_minibatches(method)

    def step(state: Any, key: Tensor) -> tuple[Any, Tensor, Metrics]:
        key, k_batch, k_update = rng.split(key, 3)
        batch = pipeline.sample(k_batch, minibatches)
        state, metrics = method.update(state, batch, k_update)
        return state, key, metrics

    return step


def n_minibatches(method: Method) -> int:
    return getattr(method, "minibatches", 1)


def initial_carry(
    method: Method, spec: Spec, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> Carry:
    """States and keys before the first update; each seed's are a function of that seed alone."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds must be a non-empty list without duplicates, got {list(seeds)}")
    pairs = [rng.split(rng.key(s, device)) for s in seeds]
    return stack([method.init(k[0], spec) for k in pairs]), torch.stack([k[1] for k in pairs])


def choose_backend(backend: Backend, device: str) -> Backend:
    """What `auto` means on a device. Raises UserError for an engine that cannot run there."""
    if backend not in get_args(Backend):
        raise unknown("engine", backend, get_args(Backend))
    if backend == "auto":
        return "cudagraph" if device.startswith("cuda") else "eager"
    if backend == "cudagraph" and not device.startswith("cuda"):
        raise UserError(f"engine=cudagraph needs a CUDA device, this runs on {device}")
    return backend


class Engine:
    """Holds the carry and advances it. `(state, key)` is the whole truth: it is what a resume needs."""

    def __init__(self, step: Step, carry: Carry, *, backend: Backend = "auto", unroll: int = 1):
        backend = choose_backend(backend, carry[1].device.type)
        self.backend: Backend = backend
        self._carry: Carry = tree_map(torch.clone, carry)
        self._body = _body(step, self._carry, backend, unroll)
        self._unroll = unroll if backend == "cudagraph" else 1

    def run(self, n: int) -> Metrics:
        """Advances every seed by n updates; the metrics, each (N,), are those of the last one."""
        if n < 1 or n % self._unroll:
            raise ValueError(f"n must be a positive multiple of {self._unroll}, got {n}")
        with torch.no_grad():
            for _ in range(n // self._unroll):
                self._carry, metrics = self._body(self._carry)
        return metrics

    @property
    def carry(self) -> Carry:
        """A copy of (states, keys)."""
        return tree_map(torch.clone, self._carry)


def _body(step: Step, carry: Carry, backend: Backend, unroll: int) -> Callable[[Carry], Any]:
    stacked = vmap(step)

    def update(carry: Carry) -> tuple[Carry, Metrics]:
        state, key, metrics = stacked(*carry)
        return (state, key), metrics

    if backend == "vmap":
        return update
    program = Program(update, carry, compiled=backend == "compile")
    return program if backend != "cudagraph" else _capture(program, carry, unroll)


class Program:
    """`fn(tree) -> tree` as a straight-line list of tensor operations, traced on the example `tree`.

    `fn` must be a pure function of tensors: tracing runs it once, so a Python branch on a tensor's
    value raises, as does any draw from a global generator under vmap. Tensors it closes over (the
    dataset) are referred to, not copied.
    """

    def __init__(self, fn: Callable[[Any], Any], tree: Any, *, compiled: bool = False):
        leaves, self._tree = tree_flatten(tree)
        out = {}

        def flat(*leaves: Tensor) -> list[Tensor]:
            result, out["tree"] = tree_flatten(fn(tree_unflatten(list(leaves), self._tree)))
            return result

        graph = make_fx(flat)(*leaves)
        self._out = out["tree"]
        _drop_empty_views(graph)
        self._run = torch.compile(graph, fullgraph=True) if compiled else _fast_calls(graph, leaves)

    def __call__(self, tree: Any) -> Any:
        return tree_unflatten(self._run(*tree_leaves(tree)), self._out)


_VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten._unsafe_view.default,
}


def _drop_empty_views(graph: GraphModule) -> None:
    """vmap's batching rules leave hundreds of views that change neither shape nor stride."""
    for node in list(graph.graph.nodes):
        if node.target in _VIEWS:
            before, after = node.args[0].meta["val"], node.meta["val"]
            if before.shape == after.shape and before.stride() == after.stride():
                node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _fast_calls(graph: GraphModule, leaves: list[Tensor]) -> GraphModule:
    """Calls torch's C bindings instead of `torch.ops`, which spends 3 us more on every operation.

    The bindings take the same arguments; that is not trusted but tried: the program must give the
    same bits before and after, otherwise it is kept as traced.
    """
    with torch.no_grad():
        want = graph(*leaves)
        targets = {node: node.target for node in graph.graph.nodes}
        for node, target in targets.items():
            if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
                name = target._schema.name.removeprefix("aten::")
                # fx cannot print the dunder functions, but it can the dunder methods
                binding = (
                    None
                    if name.startswith("__")
                    else getattr(torch._C._VariableFunctions, name, None)
                )
                node.target = binding or getattr(torch._C.TensorBase, name, None) or target
        try:
            graph.recompile()
            got = graph(*leaves)
            same = all(map(torch.equal, want, got))
        except (TypeError, RuntimeError):
            same = False
        if not same and not any(x.isnan().any() for x in want):
            for node, target in targets.items():
                node.target = target
            graph.recompile()
    return graph


def _capture(
    program: Program, carry: Carry, unroll: int, warmup: int = 3
) -> Callable[[Carry], Any]:
    """`unroll` updates as one CUDA graph over fixed buffers.

    The warm-up that capture requires trains on real data, so it runs on a copy of the carry: a
    captured run equals the eager run from update 1.
    """
    buffers = tree_map(torch.clone, carry)

    def advance() -> Metrics:
        new = buffers
        for _ in range(unroll):
            new, metrics = program(new)
        for old, fresh in zip(tree_leaves(buffers), tree_leaves(new), strict=True):
            old.copy_(fresh)
        return metrics

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(warmup):
            advance()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        metrics = advance()

    def replay(current: Carry) -> tuple[Carry, Metrics]:
        if current is not buffers:
            for old, fresh in zip(tree_leaves(buffers), tree_leaves(current), strict=True):
                old.copy_(fresh)
        graph.replay()
        return buffers, metrics

    return replay
