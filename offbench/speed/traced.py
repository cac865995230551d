"""The programs of a method as the engine traces them for a GPU, on any machine.

State, data and keys are on torch's device `meta`, which has shapes and no memory; then the programs'
devices are rewritten to CUDA. A tensor that a method makes without `device=` is on the CPU and stays
there, so it can be seen.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import PythonKeyTracer
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_map

from offbench.data.goals import Goal
from offbench.data.pipeline import RowWeights, make_pipeline
from offbench.data.views import View, Window
from offbench.speed.contenders import SPEC
from offbench.speed.invented import CUDA
from offbench.testing.fakes import fake_data
from offbench.training import blocks, compiling, tracing
from offbench.training.engine import Engine
from offbench.training.step import initial_carry, make_step

META = torch.device("meta")


class Traced(NamedTuple):
    """A program of the engine: `name` is draw (batches of a block of steps, drawn and gathered) or update (of one)."""

    name: str
    graph: GraphModule
    # whether a GPU's engine gives it to a compiler, and with which options
    compiled: bool
    options: dict[str, Any]


def trace(
    method: Any,
    *,
    view: View | Window | Goal,
    weights: Sequence[RowWeights] = (),
    batch_size: int,
    seeds: int,
) -> list[Traced]:
    """The programs of a stack of seeds as the engine compiles them, on `meta`.

    Every operation has in `meta["lines"]` the calls that made it, (file, line), the innermost first.
    Whatever a method raises while it is traced is raised.
    """
    discrete = getattr(method, "actions", "continuous") == "discrete"
    spec = SPEC._replace(discrete=discrete)
    pipeline = make_pipeline(
        fake_data(spec),
        view=view,
        weights=weights,
        batch_size=batch_size,
        needs=getattr(method, "needs", ()),
    )
    carry = initial_carry(method, pipeline.spec(spec), range(seeds))
    # the number of steps is read by the engine
    moved = _on_meta(carry)._replace(step=carry.step)
    with _recording() as made:
        Engine(make_step(method, _on_meta(pipeline), device=META), moved, backend="compile")
    return made


@contextmanager
def _recording() -> Iterator[list[Traced]]:
    """Keeps the programs that an engine makes inside the block; none is compiled."""
    made: list[Traced] = []
    compiled: list[dict[str, Any]] = []
    init, create_node = tracing.Program.__init__, PythonKeyTracer.create_node

    def record(program: Any, fn: Any, *args: Any, **options: Any) -> None:
        compiled.clear()
        init(program, fn, *args, **options)
        options = {k: v for x in compiled for k, v in x.items()}
        name = "update" if fn.__name__ == "update" else "draw"
        made.append(Traced(name, program.graph, bool(compiled), options))

    def keep(graph: GraphModule, **options: Any) -> GraphModule:
        compiled.append(options.get("options") or {})
        return graph

    def create(*args: Any, **options: Any) -> Node:
        node = create_node(*args, **options)
        node.meta["lines"] = list(_calls())
        return node

    with (
        mock.patch.object(tracing.Program, "__init__", record),
        mock.patch("torch.compile", keep),
        # a compiled draw is compared with one that is not, by numbers that meta tensors do not have
        mock.patch.object(blocks, "equal", lambda a, b: True),
        # an equal program would not be compiled again
        mock.patch.dict(compiling._compiled, clear=True),
        mock.patch.object(PythonKeyTracer, "create_node", create),
    ):
        yield made


def _calls() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _on_meta(tree: Any) -> Any:
    return tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, tree)


class Propagated(FakeTensorProp):
    """Runs a program on FakeTensors of a CUDA device: CUDA's own rules of devices, strides and types.

    Changes the program: devices are rewritten, and constants (the data) become its first inputs. `at` is
    the operation that was run last, the one at fault if one raises.
    """

    def __init__(self, graph: GraphModule):
        _constants_as_inputs(graph)
        for node in graph.graph.nodes:
            if node.kwargs.get("device") == META:
                node.kwargs = {**node.kwargs, "device": CUDA}
        graph.recompile()
        self.at: Node | None = None
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        examples = [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")]
        with self.mode, torch.no_grad():
            self.inputs = [_like(x) for x in examples]
        super().__init__(graph, self.mode)

    def run_node(self, n: Node) -> Any:
        self.at = n
        return super().run_node(n)

    def go(self) -> list[Tensor]:
        """The inputs, with which everything was run."""
        self.propagate_dont_convert_inputs(*self.inputs)
        return self.inputs


def _like(x: Tensor) -> Tensor:
    device = CUDA if x.device.type == "meta" else x.device
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def _constants_as_inputs(graph: GraphModule) -> None:
    """As torch.compile passes them. A constant that is read twice is one input."""
    nodes = graph.graph.find_nodes(op="get_attr")
    first = next(iter(graph.graph.nodes))
    made: dict[str, Node] = {}
    for node in nodes:
        name = str(node.target)
        if name not in made:
            with graph.graph.inserting_before(first):
                made[name] = graph.graph.placeholder(f"constant{name}")
            made[name].meta = {"val": getattr(graph, name), **node.meta}
        node.replace_all_uses_with(made[name])
        graph.graph.erase_node(node)
