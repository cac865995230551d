"""Trains all seeds of a cell at once. The only file that knows vmap, tracing, compilers and CUDA graphs.

A step is one seed's and has two halves: `draw` turns the step's key into row numbers, `update` turns
those rows into a new state. `vmap` adds the seed axis, and each half is traced once into a
straight-line program of tensor operations: forward, backward and optimiser, without an autograd tape
or the method's Python. The key of step t is a function of (run key, t), so the draws of many steps
are made together. The backends run that one program:

    vmap        the step itself, untraced: slow, for debugging and as the judge of the others
    eager       the traced program, operation by operation; optimisers write in place
    compile     the program through torch.compile: fused kernels, for up to a minute of compiling
    cudagraph   compiled and captured in a CUDA graph, many updates per replay

One seed is N = 1; there is no other code path. Results of one backend are the same bit for bit from
run to run; between backends and stack sizes they agree to rounding per update.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from offbench import optim, rng
from offbench.errors import UserError, unknown
from offbench.pipeline import Pipeline
from offbench.types import Method, Metrics, Spec

Backend = Literal["auto", "vmap", "eager", "compile", "cudagraph"]
BLOCK = 32  # steps whose rows are drawn together, and updates per replay of a CUDA graph


class Carry(NamedTuple):
    """The whole truth about training: what a resume needs and all it needs."""

    state: Any  # stacked
    key: Tensor  # (N,) int64, the same for the whole run
    step: Tensor  # () int64, steps made

    def seed(self, i: int) -> "Carry":
        """The carry of the i-th seed alone, without the seed axis."""
        return Carry(unstack(self.state, i), self.key[i], self.step)


class Draw(NamedTuple):
    rows: Tensor  # (minibatches x batch_size,) int64
    key: Tensor  # () int64, for the method


class Step(NamedTuple):
    """One step of one seed. Everything the two functions touch is an argument or immutable."""

    draw: Callable[[Tensor], Draw]
    update: Callable[[Any, Draw], tuple[Any, Metrics]]


def stack(trees: Sequence[Any]) -> Any:
    """A list of N pytrees of one shape -> one pytree with a leading axis of N."""
    return tree_map(lambda *x: torch.stack(x), *trees)


def unstack(tree: Any, i: int) -> Any:
    """The i-th of the stacked pytrees."""
    return tree_map(lambda x: x[i], tree)


def n_minibatches(method: Method) -> int:
    return getattr(method, "minibatches", 1)


def make_step(method: Method, pipeline: Pipeline) -> Step:
    minibatches = n_minibatches(method)

    def draw(key: Tensor) -> Draw:
        k_batch, k_update = rng.split(key)
        return Draw(pipeline.rows(k_batch, minibatches), k_update)

    def update(state: Any, draw: Draw) -> tuple[Any, Metrics]:
        return method.update(state, pipeline.batch(draw.rows, minibatches), draw.key)

    return Step(draw, update)


def advance(step: Step, carry: Carry) -> tuple[Carry, Metrics]:
    """One step of one seed, as every backend must make it. `carry` has no seed axis."""
    draw = step.draw(rng.fold(carry.key, carry.step))
    state, metrics = step.update(carry.state, draw)
    return Carry(state, carry.key, carry.step + 1), metrics


def initial_carry(
    method: Method, spec: Spec, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> Carry:
    """States and keys before the first update; each seed's are a function of that seed alone.

    They are made on the CPU and moved, so they do not depend on the device either.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds must be a non-empty list without duplicates, got {list(seeds)}")
    pairs = [rng.split(rng.key(s)) for s in seeds]
    state = stack([method.init(k[0], spec) for k in pairs])
    carry = Carry(state, torch.stack([k[1] for k in pairs]), torch.tensor(0))
    return tree_map(lambda x: x.to(device), carry)


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
    """Holds the carry and advances it."""

    def __init__(self, step: Step, carry: Carry, *, backend: Backend = "auto"):
        self.backend = choose_backend(backend, carry.key.device.type)
        self._state: Any = tree_map(torch.clone, carry.state)
        self._key, self._made = carry.key.clone(), int(carry.step)
        self._draw = _drawer(step, self._key, traced=self.backend != "vmap")
        self._draws = _Block(self._draw, self._key)
        example = (self._state, self._draws.at(self._made))
        self._update = _updater(step, example, self.backend)
        self._replay = None
        if self.backend == "cudagraph":
            self._replay = _Captured(self._draw, self._update, self._state, self._key)

    def run(self, n: int) -> Metrics:
        """Makes n steps of every seed; the metrics, each (N,), are those of the last one."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        metrics: Metrics = {}
        end = self._made + n
        with torch.no_grad():
            while self._replay and end - self._made >= BLOCK:
                self._state, metrics = self._replay(self._state, self._made)
                self._made += BLOCK
            while self._made < end:
                self._state, metrics = self._update((self._state, self._draws.at(self._made)))
                self._made += 1
        return metrics

    @property
    def carry(self) -> Carry:
        """A copy of the carry; running on does not change it."""
        step = torch.tensor(self._made, device=self._key.device)
        return Carry(tree_map(torch.clone, self._state), self._key.clone(), step)


# --- the two halves, stacked ----------------------------------------------------------------


def _drawer(step: Step, key: Tensor, *, traced: bool) -> Callable[[Any], Draw]:
    """(keys (N,), first step ()) -> the draws of BLOCK steps of every seed, (BLOCK, N, ...)."""
    many = vmap(vmap(step.draw))

    def draw(arguments: tuple[Tensor, Tensor]) -> Draw:
        key, first = arguments
        numbers = first + torch.arange(BLOCK, device=key.device)
        return many(rng.fold(key[None], numbers[:, None]))

    return Program(draw, (key, torch.tensor(0, device=key.device))) if traced else draw


class _Block:
    """The draws of the next BLOCK steps, made when the first of them is asked for."""

    def __init__(self, draw: Callable[[Any], Draw], key: Tensor):
        self._draw, self._key = draw, key
        self._first, self._draws = -1, None

    def at(self, step: int) -> Draw:
        if self._draws is None or not 0 <= step - self._first < BLOCK:
            self._first = step
            with torch.no_grad():
                draws = self._draw((self._key, torch.tensor(step, device=self._key.device)))
            self._draws = list(zip(*(x.unbind(0) for x in draws), strict=True))
        return Draw(*self._draws[step - self._first])


Update = Callable[[tuple[Any, Draw]], tuple[Any, Metrics]]


def _updater(step: Step, example: tuple[Any, Draw], backend: Backend) -> Update:
    many = vmap(step.update)

    def update(arguments: tuple[Any, Draw]) -> tuple[Any, Metrics]:
        return many(*arguments)

    if backend == "vmap":
        return update
    if backend == "eager":
        return Program(update, example, reuse=len(tree_leaves(example[0])))
    return Program(update, example, compiled=True)


# --- programs -------------------------------------------------------------------------------


class Program:
    """`fn(tree) -> tree` as a straight-line list of tensor operations, traced on the example `tree`.

    `fn` must be a pure function of tensors: tracing runs it once, so a Python branch on a tensor's
    value raises, as does any draw from a global generator under vmap. Tensors it closes over (the
    dataset) are referred to, not copied. The first `reuse` leaves of the argument may be written to.
    """

    def __init__(
        self, fn: Callable[[Any], Any], tree: Any, *, reuse: int = 0, compiled: bool = False
    ):
        leaves, self._tree = tree_flatten(tree)
        out = {}

        def flat(*leaves: Tensor) -> list[Tensor]:
            result, out["tree"] = tree_flatten(fn(tree_unflatten(list(leaves), self._tree)))
            return result

        graph = make_fx(flat, decomposition_table=_FORMULAS if compiled else {})(*leaves)
        self._out = out["tree"]
        _drop_empty_views(graph)
        if compiled:
            self._run = torch.compile(graph, fullgraph=True)
            return
        in_place = _overwritable(graph, reuse) if reuse else []
        _fast_calls(graph, leaves)
        for node in in_place:
            node.target = _IN_PLACE[node.target][0]
        graph.recompile()
        self._run = graph

    def __call__(self, tree: Any) -> Any:
        return tree_unflatten(self._run(*tree_leaves(tree)), self._out)


_FORMULAS = {
    torch.ops.offbench.adam.default: optim.adam_formula,
    torch.ops.offbench.lerp.default: optim.lerp_formula,
}
_IN_PLACE = {
    torch.ops.offbench.adam.default: (optim.adam_, (0, 2, 3)),  # arguments that are written to
    torch.ops.offbench.lerp.default: (optim.lerp_, (0,)),
}
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


def _fast_calls(graph: GraphModule, leaves: list[Tensor]) -> None:
    """Calls torch's C bindings instead of `torch.ops`, which spends 3 us more on every operation.

    The bindings take the same arguments; that is not trusted but tried: the program must give the
    same bits before and after, otherwise it is kept as traced.
    """
    with torch.no_grad():
        want = graph(*leaves)
        targets = {node: node.target for node in graph.graph.nodes}
        for node, target in targets.items():
            if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
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
    if name.startswith("__"):  # fx cannot print torch's own dunder functions
        return getattr(torch.Tensor, name, None)
    found = getattr(torch._C._VariableFunctions, name, None)
    return found if found is not None else getattr(torch._C.TensorBase, name, None)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _overwritable(graph: GraphModule, reuse: int) -> list[Node]:
    """Optimiser steps and target updates that may write into what they replace.

    They may where nothing reads the old values afterwards; without it every step copies all
    parameters and both moments. Where memory may be seen twice the operator stays as it is, so the
    program's results are the same.
    """
    nodes = list(graph.graph.nodes)
    owner = _owners(nodes)
    results = nodes[-1].args[0]
    if len({owner[x] for x in results[:reuse]}) < reuse:
        return []  # two leaves share memory: writing to one in the next step would change the other
    if any(owner[x].op == "get_attr" or not x.meta["val"].is_contiguous() for x in results[:reuse]):
        return []
    last_read: dict[Node, Node] = {owner[x]: node for node in nodes for x in node.all_input_nodes}
    inputs = [n for n in nodes if n.op == "placeholder"]
    lent = {n for n in nodes if n.op != "get_attr"} - set(inputs[reuse:])

    def writable(node: Node) -> bool:
        old = [x for i in _IN_PLACE[node.target][1] for x in node.args[i]]
        own = all(owner[x] is x and x in lent and last_read[x] is node for x in old)
        return own and len(set(old)) == len(old)

    return [node for node in nodes if node.target in _IN_PLACE and writable(node)]


def _owners(nodes: list[Node]) -> dict[Node, Node]:
    """Each node -> the node whose memory it may show: itself, or what it is a view of."""
    owner: dict[Node, Node] = {}
    for node in nodes:
        shows = node.op == "call_function" and _is_view(node) and node.all_input_nodes
        owner[node] = owner[node.all_input_nodes[0]] if shows else node
    return owner


def _is_view(node: Node) -> bool:
    """Whether the result may share memory with its first argument."""
    if (
        node.target is operator.getitem
    ):  # of an optimiser's list: memory of its own; of unbind: a view
        source = node.args[0]
        return source.op == "call_function" and _is_view(source)
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return node.target is _UNSAFE_VIEW or any(r.alias_info is not None for r in returns)


# --- capture --------------------------------------------------------------------------------


class _Captured:
    """BLOCK steps, their draws included, as one CUDA graph over fixed buffers.

    The warm-up that capture requires would train; it runs on a copy of the state, so a captured run
    equals the eager run from the first step.
    """

    def __init__(self, draw: Callable[[Any], Draw], update: Update, state: Any, key: Tensor):
        self._state = tree_map(torch.clone, state)
        self._first = torch.zeros((), dtype=torch.int64, device=key.device)

        def advance() -> Metrics:
            draws, new = draw((key, self._first)), self._state
            for rows, update_key in zip(draws.rows.unbind(0), draws.key.unbind(0), strict=True):
                new, metrics = update((new, Draw(rows, update_key)))
            _copy(self._state, new)
            return metrics

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):
                advance()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._metrics = advance()

    def __call__(self, state: Any, first: int) -> tuple[Any, Metrics]:
        if state is not self._state:
            _copy(self._state, state)
        self._first.fill_(first)
        self._graph.replay()
        return self._state, self._metrics


def _copy(into: Any, new: Any) -> None:
    """Leaf by leaf; a new leaf may be a view of an old one, so all are read before any is written."""
    pairs = zip(tree_leaves(into), tree_leaves(new), strict=True)
    changed = [(old, fresh.clone()) for old, fresh in pairs if old is not fresh]
    for old, fresh in changed:
        old.copy_(fresh)
