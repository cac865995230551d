"""What a GPU would be given to do: inductor's code for the engine's programs, on a machine without a GPU.

The programs are lowered for an invented card (`offbench.speed.invented`); nothing is launched. Needs
triton, which the CUDA builds of torch have and which the CPU builds take from `pip install triton`.
"""

import importlib.util
import re
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offbench.errors import UserError
from offbench.speed.contenders import sized_method, usual_view
from offbench.speed.invented import CARDS, Card, invented
from offbench.speed.traced import Propagated, Traced, trace
from offbench.training.engine import BLOCK, Precision, matmul_precision
from offbench.training.step import n_minibatches


class Code(NamedTuple):
    """Inductor's code for one program."""

    source: str
    # floating-point operations of its products, bytes its kernels read and write
    flops: int
    bytes: int

    @property
    def calls(self) -> dict[str, list[str]]:
        """What it launches, in order: names of Triton kernels, library products, other operations."""
        body = self.source[self.source.index("async_compile.wait(globals())") :]
        library = re.findall(r"extern_kernels\.(\w+)\(", body)
        products = [x for x in library if re.search(r"mm$|mm_|addmv|dot", x)]
        return {
            "kernels": re.findall(r"(\w+)\.run\(", body),
            "products": products,
            "other": [x for x in library if x not in products]
            + re.findall(r"torch\.ops\.([\w.]+)\(", body)
            + re.findall(r"\b\w+\.(copy_|item)\(", body),
        }


class Launches(NamedTuple):
    """What one step of a stack launches on a GPU; a draw, of BLOCK steps at once, has its own count.

    What a replayed CUDA graph adds (copies of the state, once in BLOCK steps) is not in it.
    """

    # Triton kernels, products of a library, other operations of an update
    kernels: int
    products: int
    other: int
    # launches of BLOCK steps' batches: kernels that draw them, and an operation for each part that is gathered
    draw: int
    minibatches: int
    flops: int
    bytes: int

    @property
    def per_step(self) -> float:
        return self.kernels + self.products + self.other + self.draw / BLOCK

    @property
    def per_minibatch(self) -> float:
        return self.per_step / self.minibatches


def can_lower() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


def launches(
    name: str,
    *,
    seeds: int = 16,
    hidden: tuple[int, ...] = (256, 256),
    batch_size: int = 256,
    card: str = "h100",
    precision: Precision = "float32",
) -> Launches:
    """Counts the launches of a shipped method's step on an invented card.

    Args:
        name: of a shipped method, with its own settings and its usual view.
        seeds: stacked.
        hidden: widths of its multilayer perceptrons, where it has them.
        batch_size: rows of a minibatch.
        card: h100 or a100.
        precision: of matrix products.

    Raises:
        UserError: triton is not installed.
    """
    programs = lowered(
        name, seeds=seeds, hidden=hidden, batch_size=batch_size, card=card, precision=precision
    )
    return counted(programs, n_minibatches(sized_method(name, hidden)))


def counted(programs: list[tuple[Traced, Code | None]], minibatches: int) -> Launches:
    """The launches of a step of these programs."""
    draw = kernels = products = other = flops = moved = 0
    for traced, code in programs:
        if traced.name == "draw":
            draw += _operations(traced.graph) if code is None else _total(code)
        else:
            assert code is not None, "an update is compiled"
            calls = code.calls
            kernels += len(calls["kernels"])
            products += len(calls["products"])
            other += len(calls["other"])
            flops, moved = flops + code.flops, moved + code.bytes
    return Launches(kernels, products, other, draw, minibatches, flops, moved)


def _total(code: Code) -> int:
    return sum(map(len, code.calls.values()))


def _operations(graph: GraphModule) -> int:
    """Operations that are no views."""
    return sum(
        isinstance(n.target, torch._ops.OpOverload)
        and all(r.alias_info is None for r in n.target._schema.returns)
        for n in graph.graph.nodes
    )


def lowered(
    name: str,
    *,
    seeds: int,
    hidden: tuple[int, ...],
    batch_size: int,
    card: str = "h100",
    precision: Precision = "float32",
) -> list[tuple[Traced, Code | None]]:
    """Every program of a shipped method, with its code where the engine compiles it."""
    if not can_lower():
        raise UserError(
            "launches are counted in the code that inductor writes with triton, which is not installed:"
            " pip install triton"
        )
    method = sized_method(name, hidden)
    view = usual_view(getattr(method, "needs", ()))
    with matmul_precision(precision):
        programs = trace(method, view=view, batch_size=batch_size, seeds=seeds)
        return [(p, lower(p, CARDS[card]) if p.compiled else None) for p in programs]


class _Kept(Exception):
    """Ends a compilation: the code is there."""


def lower(program: Traced, card: Card) -> Code:
    """Inductor's code for a program on this card. Changes the program's graph."""
    with invented(card):
        from torch._functorch import config as functorch_config
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.fx_passes import joint_graph
        from torch._inductor.graph import GraphLowering

        found: dict[str, Any] = {}

        def keep(lowering: Any) -> None:
            code, _ = lowering.codegen()
            found["source"] = getattr(code, "value", code)
            nodes = lowering.scheduler.nodes
            found["bytes"] = sum(int(n.get_read_write_buffers_sizes()) for n in nodes)
            raise _Kept

        graph = program.graph
        run = Propagated(graph)
        with FlopCounterMode(display=False) as counter:
            inputs = run.go()
        # no cache: code that is found there is not written
        options = dict(fx_graph_cache=False, compile_threads=1) | program.options
        try:
            with (
                torch.no_grad(),
                mock.patch.object(GraphLowering, "compile_to_module", keep),
                mock.patch.object(joint_graph, "UniformValueConstantFolder", _folder(joint_graph)),
                config.patch(options),
                functorch_config.patch(enable_autograd_cache=False),
                tracing(TracingContext(run.mode)),
            ):
                given: Any = inputs
                run_code: Any = compile_fx(graph, given)
                run_code(*inputs)
        # inductor raises another error from ours
        except Exception:
            if "bytes" not in found:
                raise
    return Code(found["source"], counter.get_total_flops(), found["bytes"])


def _folder(joint_graph: Any) -> type:
    """Inductor's folding of constants, which makes tensors of one element, on the CPU."""

    class Folder(joint_graph.UniformValueConstantFolder):
        def __init__(self, *args: Any, **options: Any):
            with _OnCpu():
                super().__init__(*args, **options)

        def run(self, *args: Any, **options: Any) -> Any:
            with _OnCpu():
                return super().run(*args, **options)

    return Folder


class _OnCpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)
