"""Trains all seeds of a stack at once: vmap, tracing, compilers and CUDA graphs (with tracing.py).

`vmap` adds the axis of seeds to a step (`offbench.training.step`), and its update is traced once into
a straight-line program of tensor operations: forward, backward and optimiser, without an autograd
tape or the method's Python. Batches of many steps are made together (`offbench.training.blocks`), by
another such program, and are arguments of the update, which so is the same for all datasets of one shape.
The backends run the program of the update:

    vmap        the step itself, untraced: slow, for debugging and as the reference of the others
    eager       the traced program, operation by operation; optimisers write in place
    compile     the program through torch.compile: fused kernels, for up to a minute of compiling
    cudagraph   compiled and captured in a CUDA graph, many updates per replay
    auto        the fastest that passes the equivalence gate (`offbench.training.gate`)

One seed is N = 1; there is no other code path. On a CPU, results of one backend are the same bit for bit
from run to run, with the same versions and number of threads; between backends and stack sizes they agree
to rounding per update. A GPU repeats its bits too: no update of ours adds in an order left to chance
(`offbench.testing.repeatable`) and compilers choose nothing by the clock; `make gpu-check` measures it, and
results/gpu has what it found. Where a captured run stops within a block, it goes on to rounding.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from offbench.errors import UserError, unknown
from offbench.training.blocks import BLOCK, Blocks, HostBlocks, maker, steps
from offbench.training.step import Carry, Input, Step
from offbench.training.tracing import Program
from offbench.types import Metrics

Backend = Literal["auto", "vmap", "eager", "compile", "cudagraph"]
Precision = Literal["float32", "tf32", "bf16"]


class Ran(NamedTuple):
    """The backend that trains, with notes: which faster one was refused, what it cannot do."""

    name: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(f"({note})" for note in self.notes)])


# steps on a CPU from which compiling repays itself, see `candidates`
COMPILE_FROM = 100_000


def candidates(backend: Backend, device: str, n_steps: int = 0) -> list[Backend]:
    """The backends to try, fastest first. Raises UserError for one that cannot run there.

    On a CPU compiling takes about 0.1 s of processor time for every operation of the program
    (TD3+BC: 480 of them, 48 s) and saves at least 1 us of each at every step, more in large stacks.
    So the number of steps decides, and not the program. A later process finds the compiled code in
    torch's cache (`TORCHINDUCTOR_CACHE_DIR`).
    """
    if backend not in get_args(Backend):
        raise unknown("engine", backend, get_args(Backend))
    cuda = device.startswith("cuda")
    if backend == "cudagraph" and not cuda:
        raise UserError(f"engine=cudagraph needs a CUDA device, this runs on {device}")
    if backend != "auto":
        return [backend]
    if cuda:
        return ["cudagraph", "compile", "eager"]
    return ["compile", "eager"] if n_steps >= COMPILE_FROM else ["eager"]


class Engine:
    """Holds the training state of a stack and advances it, with one backend."""

    def __init__(
        self,
        step: Step,
        carry: Carry,
        *,
        backend: Backend = "eager",
        precision: Precision = "float32",
    ):
        self.backend = candidates(backend, carry.key.device.type)[-1]
        self.precision = precision
        self._key = carry.key.clone()
        make = HostBlocks if step.host_data else Blocks
        with self._set():
            self._blocks: Blocks | HostBlocks = make(step, self._key, backend=self.backend)
            self.load(carry)
            self._blocks.at(self._step)
            # of a step inside a block, whose memory may be less aligned than that of the first
            example = (self._state, self._blocks.at(self._step + 1))
            self._update = _updater(step, example, self.backend, precision)
            if self.backend in ("compile", "cudagraph"):
                # the code is made at the first call, and counts on the alignment that it finds
                self._update(example)
            self._replay = None
            if self.backend == "cudagraph":
                self._replay = _Captured(self._update, self._state, self._blocks, self._step)

    @contextmanager
    def _set(self) -> Iterator[None]:
        """Without gradients, on this device, in this precision."""
        cuda = self._key.device.type == "cuda"
        device = torch.cuda.device(self._key.device) if cuda else nullcontext()
        with torch.no_grad(), device, matmul_precision(self.precision):
            yield

    def load(self, carry: Carry) -> None:
        """Continues from a copy of `carry`."""
        self._state: Any = tree_map(torch.clone, carry.state)
        self._key.copy_(carry.key)
        self._step = int(carry.step)
        self._blocks.load(carry.key)

    def run(self, n: int, pause: Callable[[int], bool] | None = None) -> Metrics:
        """n steps of every seed; fewer where `pause(step)` is true after one (`step` has the number).

        Returns the metrics of the last one, each (N,).
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        metrics: Metrics = {}
        end, paused = self._step + n, False
        with self._set():
            while self._replay and end - self._step >= BLOCK and not paused:
                self._state, metrics = self._replay(self._state, self._step)
                self._step += BLOCK
                paused = pause is not None and pause(self._step)
                # the next replay writes over them
                last = end - self._step < BLOCK or paused
                metrics = tree_map(torch.clone, metrics) if last else metrics
            while self._step < end and not paused:
                self._state, metrics = self._update((self._state, self._blocks.at(self._step)))
                self._step += 1
                paused = pause is not None and pause(self._step)
        return metrics

    @property
    def step(self) -> int:
        """Steps made from the start of training."""
        return self._step

    @property
    def carry(self) -> Carry:
        """A copy of the training state."""
        step = torch.tensor(self._step, device=self._key.device)
        return Carry(tree_map(torch.clone, self._state), self._key.clone(), step)


# --- programs ---------------------------------------------------------------------------------


Update = Callable[[tuple[Any, Input]], tuple[Any, Metrics]]


def _updater(
    step: Step, example: tuple[Any, Input], backend: Backend, precision: Precision
) -> Update:
    many = vmap(step.update)

    def update(arguments: tuple[Any, Input]) -> tuple[Any, Metrics]:
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
    """Sets the precision of float32 matrix products: full or TF32. bf16 is set in the program."""
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_bytes(step: Step, carry: Carry) -> int:
    """Peak bytes of a stack: its state, two blocks of batches and the tensors alive at once in an update,
    an upper bound.

    Counted on the traced program, where a tensor lives from its operation to its last use; views are
    counted as copies.
    """
    block = maker(step, carry.key, traced=False)((carry.key, carry.step))
    leaves, tree = tree_flatten((carry.state, steps(block)[0]))
    many = vmap(step.update)
    graph = make_fx(lambda *x: tree_leaves(many(*tree_unflatten(list(x), tree))))(*leaves).graph
    nodes = list(graph.nodes)
    size = {
        n: sum(x.nbytes for x in tree_leaves(n.meta.get("val")) if isinstance(x, Tensor))
        for n in nodes
    }
    last = {x: i for i, n in enumerate(nodes) for x in n.all_input_nodes}
    alive = peak = sum(x.nbytes for x in leaves) + 2 * sum(x.nbytes for x in tree_leaves(block))
    for i, node in enumerate(nodes):
        if node.op == "call_function":
            alive += size[node] if node.target is not operator.getitem else 0
            peak = max(peak, alive)
        alive -= sum(
            size[x]
            for x in node.all_input_nodes
            if last[x] == i and x.op == "call_function" and x.target is not operator.getitem
        )
    return peak


# --- capture --------------------------------------------------------------------------------


class _Captured:
    """BLOCK updates as one CUDA graph over fixed buffers; batches of data on the device are made in it, too.

    The warm-up that capture requires would train; it runs on a copy of the state, so a captured run
    equals the eager run from the first step. Other threads may use the device meanwhile.
    """

    def __init__(self, update: Update, state: Any, blocks: Blocks | HostBlocks, first: int):
        self._state = tree_map(torch.clone, state)
        read, self._prepare = blocks.fixed()
        self._prepare(first)

        def advance() -> Metrics:
            new, metrics = self._state, dict[str, Tensor]()
            for given in steps(read()):
                new, metrics = update((new, given))
            _copy(self._state, new)
            return metrics

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):
                advance()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.graph(self._graph, capture_error_mode="thread_local"),
            torch.no_grad(),
        ):
            self._metrics = advance()

    def __call__(self, state: Any, first: int) -> tuple[Any, Metrics]:
        """BLOCK steps from `first` on. The next call writes over what this one returns."""
        if state is not self._state:
            _copy(self._state, state)
        self._prepare(first)
        self._graph.replay()
        return self._state, self._metrics


def _copy(into: Any, new: Any) -> None:
    """Writes the leaves of `new` into those of `into`, all at once.

    A new leaf may be a view of an old one, so such a leaf is read before any is written.
    """
    leaves = tree_leaves(into)
    old_memory = {x.untyped_storage().data_ptr() for x in leaves}
    # all of one type, or they are copied one by one
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for old, fresh in zip(leaves, tree_leaves(new), strict=True):
        if old is fresh:
            continue
        shared = fresh.untyped_storage().data_ptr() in old_memory
        targets, sources = kinds.setdefault(old.dtype, ([], []))
        targets.append(old)
        sources.append(fresh.clone() if shared else fresh)
    for targets, sources in kinds.values():
        torch._foreach_copy_(targets, sources)
