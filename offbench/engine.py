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
    auto        the fastest that passes the equivalence gate (`make_engine`)

One seed is N = 1; there is no other code path. Results of one backend are the same bit for bit from
run to run; between backends and stack sizes they agree to rounding per update.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
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
from offbench.types import Batch, Method, Metrics, Spec

Backend = Literal["auto", "vmap", "eager", "compile", "cudagraph"]
Precision = Literal["float32", "tf32", "bf16"]
COMPILE_FROM = (
    100_000  # steps on a CPU from which compiling, measured at 0.5 ms a step, repays itself
)
GATE_TOLERANCE = 0.02
BLOCK = 32  # steps whose rows are drawn together, and updates per replay of a CUDA graph
GATE_STEPS = BLOCK + 5  # a whole block is replayed, and steps beside it


class Carry(NamedTuple):
    """The whole truth about training: what a resume needs and all it needs."""

    state: Any  # stacked
    key: Tensor  # (N,) int64, the same for the whole run
    step: Tensor  # () int64, steps made

    def seed(self, i: int) -> "Carry":
        """The carry of the i-th seed alone, without the seed axis."""
        return Carry(unstack(self.state, i), self.key[i], self.step)


class Draw(NamedTuple):
    rows: Any  # (minibatches x batch_size,) int64, or the Batch itself where data stay on the host
    key: Tensor  # () int64, for the method


class Step(NamedTuple):
    """One step of one seed. Everything the two functions touch is an argument or immutable.

    `gather` is there when the data stay in host memory: stacked rows (N, ...) -> stacked Batch.
    """

    draw: Callable[[Tensor], Draw]
    update: Callable[[Any, Draw], tuple[Any, Metrics]]
    gather: Callable[[Tensor], Batch] | None = None


class Swept(NamedTuple):
    """The state of a method whose hyper-parameters differ along the stack: `values` are (N,) each."""

    values: dict[str, Tensor]
    state: Any


def bind(method: Method, state: Any) -> tuple[Method, Any]:
    """The method with the hyper-parameters that its state carries, and the method's own state."""
    if not isinstance(state, Swept):
        return method, state
    dtype = next(x.dtype for x in tree_leaves(state.state) if x.is_floating_point())
    values = {k: v.to(dtype) for k, v in state.values.items()}
    wrapper = hasattr(method, "with_values")  # the values are those of the method inside
    return method.with_values(values) if wrapper else replace(method, **values), state.state


def stack(trees: Sequence[Any]) -> Any:
    """A list of N pytrees of one shape -> one pytree with a leading axis of N."""
    return tree_map(lambda *x: torch.stack(x), *trees)


def unstack(tree: Any, i: int) -> Any:
    """The i-th of the stacked pytrees."""
    return tree_map(lambda x: x[i], tree)


def n_minibatches(method: Method) -> int:
    return getattr(method, "minibatches", 1)


def make_step(
    method: Method, pipeline: Pipeline, *, device: torch.device | str | None = None
) -> Step:
    """The step of a method on a pipeline. Data on another device than `device` stay where they are,
    and their batches are brought over."""
    minibatches = n_minibatches(method)
    home = pipeline.data.obs.device
    device = torch.device(device or home)
    sampler = pipeline.sampler  # rows are drawn where they are used

    def draw(key: Tensor) -> Draw:
        k_batch, k_update = rng.split(key)
        return Draw(sampler(k_batch, minibatches * pipeline.batch_size), k_update)

    def update(state: Any, draw: Draw) -> tuple[Any, Metrics]:
        here = isinstance(draw.rows, Tensor)
        batch = pipeline.batch(draw.rows, minibatches) if here else draw.rows
        bound, inner = bind(method, state)
        new, metrics = bound.update(inner, batch, draw.key)
        return (state._replace(state=new) if bound is not method else new), metrics

    def gather(rows: Tensor) -> Batch:
        batch = pipeline.batch(rows.flatten())
        lead = (len(rows), minibatches, pipeline.batch_size) if minibatches > 1 else rows.shape
        return tree_map(lambda x: x.unflatten(0, lead), batch)

    return Step(draw, update, gather if device.type != home.type else None)


def advance(step: Step, carry: Carry) -> tuple[Carry, Metrics]:
    """One step of one seed, as every backend must make it. `carry` has no seed axis."""
    draw = step.draw(rng.fold(carry.key, carry.step))
    state, metrics = step.update(carry.state, draw)
    return Carry(state, carry.key, carry.step + 1), metrics


def initial_carry(
    method: Method,
    spec: Spec,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    values: Sequence[Mapping[str, float]] | None = None,
) -> Carry:
    """States and keys before the first update; each seed's are a function of that seed alone.

    They are made on the CPU and moved, so they do not depend on the device either. `values` gives
    each place of the stack hyper-parameters of its own (the same names everywhere); a seed may then
    occur once for each.
    """
    if not seeds or (values is None and len(set(seeds)) != len(seeds)):
        raise UserError(f"seeds must be a non-empty list without duplicates, got {list(seeds)}")
    pairs = [rng.split(rng.key(s)) for s in seeds]
    state = stack([method.init(k[0], spec) for k in pairs])
    if values is not None:
        names = values[0].keys()
        columns = {n: torch.tensor([v[n] for v in values], dtype=torch.float64) for n in names}
        state = Swept(columns, state)
    carry = Carry(state, torch.stack([k[1] for k in pairs]), torch.tensor(0))
    return to_device(carry, device)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """The pytree with its tensors on `device`."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


def candidates(
    backend: Backend, device: str, n_steps: int = 0, *, host_data: bool = False
) -> list[Backend]:
    """The backends to try, fastest first. Raises UserError for one that cannot run there."""
    if backend not in get_args(Backend):
        raise unknown("engine", backend, get_args(Backend))
    cuda = device.startswith("cuda")
    if backend == "cudagraph" and not cuda:
        raise UserError(f"engine=cudagraph needs a CUDA device, this runs on {device}")
    if backend == "cudagraph" and host_data:
        raise UserError("engine=cudagraph needs the data in device memory; use engine=compile")
    if backend != "auto":
        return [backend]
    if cuda:
        return ["compile", "eager"] if host_data else ["cudagraph", "compile", "eager"]
    return ["compile", "eager"] if n_steps >= COMPILE_FROM else ["eager"]


def make_engine(
    step: "Step", carry: "Carry", *, backend: Backend = "auto", n_steps: int = 0,
    precision: Precision = "float32",
) -> "tuple[Engine, str]":  # fmt: skip
    """An engine at `carry`, and which backend it is with the reason where a faster one was refused.

    The gate of `auto`: GATE_STEPS steps from `carry` must end where the eager float32 program ends,
    within GATE_TOLERANCE of the way that was travelled. A backend that differs or fails is passed over.
    """
    host = step.gather is not None
    names = candidates(backend, carry.key.device.type, n_steps, host_data=host)
    if len(names) == 1:
        return Engine(step, carry, backend=names[0], precision=precision), names[0]
    judge, refused = Engine(step, carry, backend="eager"), []
    judge.run(GATE_STEPS)
    for name in names[:-1]:
        try:
            engine = Engine(step, carry, backend=name, precision=precision)
            engine.run(GATE_STEPS)
            off = deviation(engine.carry.state, judge.carry.state, carry.state)
        except Exception as error:  # a compiler may fail in any way; the eager program remains
            refused.append(f"{name} failed: {type(error).__name__}")
            continue
        if precision == "float32" and not off <= GATE_TOLERANCE:
            refused.append(f"{name} deviates by {off:.2g}")
            continue
        engine.load(carry)
        return engine, " ".join([name, *(f"({r})" for r in refused)])
    engine = Engine(step, carry, backend=names[-1], precision=precision)
    return engine, " ".join([names[-1], *(f"({r})" for r in refused)])


def deviation(state: Any, judge: Any, start: Any) -> float:
    """How far apart two end states are, relative to the way from the start: the worst part of the state.

    Parts are the leaves that moved; Adam's first steps have the size of the learning rate whatever
    the gradient, so single elements may differ by rounding alone and whole leaves are compared.
    """
    worst = 0.0
    for a, b, c in zip(tree_leaves(state), tree_leaves(judge), tree_leaves(start), strict=True):
        if b.is_floating_point():
            way = (b - c).double().norm().item()
            apart = (a - b).double().norm().item()
            worst = max(worst, apart / way if way > 0 else float(apart > 0))
    return worst


class Engine:
    """Holds the carry and advances it, with one backend."""

    def __init__(
        self,
        step: Step,
        carry: Carry,
        *,
        backend: Backend = "eager",
        precision: Precision = "float32",
    ):
        host = step.gather is not None
        self.backend = candidates(backend, carry.key.device.type, host_data=host)[-1]
        self.precision = precision
        self.load(carry)
        key = self._key.cpu() if host else self._key
        draw = _drawer(step, key, traced=self.backend != "vmap")
        device = self._key.device
        self._draws = _HostBlock(draw, key, step.gather, device) if host else _Block(draw, key)
        example = (self._state, self._draws.at(self._made))
        with matmul_precision(precision):
            self._update = _updater(step, example, self.backend, precision)
            self._replay = None
            if self.backend == "cudagraph":
                self._replay = _Captured(draw, self._update, self._state, self._key)

    def load(self, carry: Carry) -> None:
        """Goes to `carry`, which is copied."""
        self._state: Any = tree_map(torch.clone, carry.state)
        self._key, self._made = carry.key.clone(), int(carry.step)

    def run(self, n: int) -> Metrics:
        """Makes n steps of every seed; the metrics, each (N,), are those of the last one."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        metrics: Metrics = {}
        end = self._made + n
        with torch.no_grad(), matmul_precision(self.precision):
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
                first = torch.full((), step, dtype=torch.int64, device=self._key.device)  # no sync
                draws = self._draw((self._key, first))
            self._draws = list(zip(*(x.unbind(0) for x in draws), strict=True))
        return Draw(*self._draws[step - self._first])


class _HostBlock:
    """Batches of data that stay in host memory, gathered ahead of the device by a thread.

    The rows are drawn by the same keys as on the device, so the batches are the same bit for bit.
    """

    AHEAD = 3

    def __init__(
        self,
        draw: Callable[[Any], Draw],
        key: Tensor,
        gather: Callable[[Tensor], Batch],
        device: torch.device,
    ):
        self._block, self._gather, self._device = _Block(draw, key), gather, device
        self._thread = ThreadPoolExecutor(1, "gather")
        self._waiting: dict[int, Future[Draw]] = {}

    def at(self, step: int) -> Draw:
        if step not in self._waiting:  # the first step, or a resume elsewhere
            self._waiting.clear()
        for ahead in range(step, step + self.AHEAD + 1):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._thread.submit(self._make, ahead)
        draw = self._waiting.pop(step).result()
        return tree_map(lambda x: x.to(self._device, non_blocking=True), draw)

    def _make(self, step: int) -> Draw:
        draw = self._block.at(step)
        batch = self._gather(draw.rows)
        if self._device.type == "cuda":
            batch = tree_map(Tensor.pin_memory, batch)
        return Draw(batch, draw.key)


Update = Callable[[tuple[Any, Draw]], tuple[Any, Metrics]]


def _updater(
    step: Step, example: tuple[Any, Draw], backend: Backend, precision: Precision
) -> Update:
    many = vmap(step.update)

    def update(arguments: tuple[Any, Draw]) -> tuple[Any, Metrics]:
        return many(*arguments)

    if backend == "vmap":
        if precision == "bf16":
            raise UserError("precision=bf16 needs a traced engine: eager, compile or cudagraph")
        return update
    bf16 = precision == "bf16"
    if backend == "eager":
        return Program(update, example, reuse=len(tree_leaves(example[0])), bf16=bf16)
    return Program(update, example, compiled=True, bf16=bf16)


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """float32 products strictly, or rounded to TF32 on GPUs that have it; bf16 is the program's."""
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# --- programs -------------------------------------------------------------------------------


class Program:
    """`fn(tree) -> tree` as a straight-line list of tensor operations, traced on the example `tree`.

    `fn` must be a pure function of tensors: tracing runs it once, so a Python branch on a tensor's
    value raises, as does any draw from a global generator under vmap. Tensors it closes over (the
    dataset) are referred to, not copied. The first `reuse` leaves of the argument may be written to.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        tree: Any,
        *,
        reuse: int = 0,
        compiled: bool = False,
        bf16: bool = False,
    ):
        leaves, self._tree = tree_flatten(tree)
        out = {}

        def flat(*leaves: Tensor) -> list[Tensor]:
            result, out["tree"] = tree_flatten(fn(tree_unflatten(list(leaves), self._tree)))
            return result

        graph = make_fx(flat, decomposition_table=_FORMULAS if compiled else {})(*leaves)
        self._out = out["tree"]
        _drop_empty_views(graph)
        if bf16:
            _multiply_in_bf16(graph)
        if compiled:
            self._run = torch.compile(graph, fullgraph=True)
            return
        if not bf16:
            _compute_once(graph)
            if leaves[0].device.type == "cpu":
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


_aten = torch.ops.aten


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
    """One node for operations that do the same to the same values; methods and vmap repeat many."""
    nodes = list(graph.graph.nodes)
    touched, owner = _written_to(nodes), _owners(nodes)
    seen: dict[tuple, Node] = {}
    for node in nodes:
        pure = node.op == "get_attr" or (
            _is_aten(node) and torch.Tag.nondeterministic_seeded not in node.target.tags
        )
        if not pure or touched & {owner[x] for x in (node, *node.all_input_nodes)}:
            continue
        # The name of a node is its repr, and 1, 1.0 and True differ by theirs.
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.graph.erase_node(node)
        seen.setdefault(key, node)
    graph.recompile()


def _write_over_dead_values(graph: GraphModule) -> None:
    """Elementwise operations write into an operand that nothing reads afterwards.

    That memory is in the cache and new memory is not, which on a CPU is half of an activation's
    time. Only what the program itself made is written to, never an argument, a constant or a view
    of one. What is written to counts as new from there on: nothing reads it by its old name.
    """
    nodes = list(graph.graph.nodes)
    owner = _owners(nodes)
    last_read = {owner[x]: node for node in nodes for x in node.all_input_nodes}

    def dead(x: Any, node: Node) -> bool:
        if not isinstance(x, Node) or not _is_aten(made := owner[x]):
            return False
        others = (owner[y] for y in node.all_input_nodes if y is not x)
        return last_read[made] is node and made not in others and _same_layout(x, node)

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
    if not _is_aten(node) or torch.Tag.pointwise not in node.target.tags:
        return None
    name = node.target._schema.name.removeprefix("aten::")
    if name.endswith("_backward"):
        return getattr(getattr(_aten, name), "grad_input", None)
    return getattr(getattr(_aten, name + "_", None), node.target._overloadname, None)


def _same_layout(a: Node, b: Node) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    return (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


def _is_aten(node: Node) -> bool:
    """Whether the node is one of torch's own operations and makes one tensor."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and isinstance(node.meta.get("val"), Tensor)
    )


def _written_to(nodes: list[Node]) -> set[Node]:
    """Whose memory is written to by operations that were traced as writing."""
    owner = _owners(nodes)
    return {
        owner[node.args[i]]
        for node in nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for i, argument in enumerate(node.target._schema.arguments)
        if argument.is_write and i < len(node.args) and isinstance(node.args[i], Node)
    }


def _fast_calls(graph: GraphModule, leaves: list[Tensor]) -> None:
    """Calls torch's C bindings instead of `torch.ops`, which spends 3 us more on every operation.

    The bindings take the same arguments; that is not trusted but tried: the program must give the
    same bits before and after, otherwise it is kept as traced.
    """
    with torch.no_grad():
        want = graph(*leaves)
        targets = {node: node.target for node in graph.graph.nodes}
        for node, target in targets.items():
            if target is torch.ops.offbench.normal.default:
                node.target = rng.normal_formula
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
    if name.startswith("__"):  # fx cannot print torch's own dunder functions
        return getattr(torch.Tensor, name, None)
    found = getattr(torch._C._VariableFunctions, name, None)
    return found if found is not None else getattr(torch._C.TensorBase, name, None)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _copy_what_is_given_away(graph: GraphModule, reuse: int) -> None:
    """Results beside the first `reuse` that share memory with them: the next call would write over it."""
    nodes = list(graph.graph.nodes)
    owner, results = _owners(nodes), list(nodes[-1].args[0])
    kept = {owner[x] for x in results[:reuse]}
    for i, x in enumerate(results[reuse:], reuse):
        if owner[x] in kept:
            results[i] = _insert(graph, nodes[-1], _aten.clone.default, x)
    nodes[-1].args = (results,)


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


def peak_bytes(step: Step, carry: Carry) -> int:
    """Memory of one stack at its fullest: the carry, and the tensors alive at once in an update.

    Counted on the traced program, where a tensor lives from the operation that makes it to its last
    use; views are counted as if they were copies, so this is an upper bound.
    """
    draws = _Block(_drawer(step, carry.key, traced=False), carry.key).at(0)
    leaves, tree = tree_flatten((carry.state, draws))
    many = vmap(step.update)
    graph = make_fx(lambda *x: tree_leaves(many(*tree_unflatten(list(x), tree))))(*leaves).graph
    nodes = list(graph.nodes)
    size = {
        n: sum(x.nbytes for x in tree_leaves(n.meta.get("val")) if isinstance(x, Tensor))
        for n in nodes
    }
    last = {x: i for i, n in enumerate(nodes) for x in n.all_input_nodes}
    alive = peak = sum(x.nbytes for x in leaves)
    for i, node in enumerate(nodes):
        if node.op == "call_function":
            alive += size[node] if node.target is not operator.getitem else 0
            peak = max(peak, alive)
        alive -= sum(size[x] for x in node.all_input_nodes if last[x] == i and x.op == "call_function"
                     and x.target is not operator.getitem)  # fmt: skip
    return peak


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
        return self._state, tree_map(torch.clone, self._metrics)  # the next replay writes over them


def _copy(into: Any, new: Any) -> None:
    """Leaf by leaf; a new leaf may be a view of an old one, so all are read before any is written."""
    pairs = zip(tree_leaves(into), tree_leaves(new), strict=True)
    changed = [(old, fresh.clone()) for old, fresh in pairs if old is not fresh]
    for old, fresh in changed:
        old.copy_(fresh)
