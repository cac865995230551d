"""Whether a method can train on a GPU, found out on a machine without one.

A GPU's engine records the operations of many updates once and replays them. So a method may not read
the value of a tensor (`.item()`, `if` on a tensor, a mask as an index), draw from a global generator, or
make a tensor on the CPU. The programs of every view and sampler are traced and propagated as on CUDA
(`offbench.speed.traced`); what does one of these is named, with the method's line.
"""

import inspect
import re
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from offbench.data.goals import Goal
from offbench.data.pipeline import RowWeights
from offbench.data.sampling import return_weights
from offbench.data.views import Chunk, NStep, View, Window
from offbench.speed.contenders import usual_view
from offbench.speed.cost import tensors
from offbench.speed.invented import CUDA, fake_cuda
from offbench.speed.traced import Propagated, Traced, trace

SAMPLERS: dict[str, tuple[RowWeights, ...]] = {"uniform": (), "weighted": (return_weights,)}
# operations after which the host waits for the device, or that draw from its global generator
WAITS = (
    "_local_scalar_dense item is_nonzero equal nonzero nonzero_numpy masked_select unique _unique2"
    " unique_dim unique_consecutive bincount repeat_interleave"
).split()
GENERATORS = "bernoulli multinomial normal rand randn randint randperm rand_like randn_like".split()


class Audited(NamedTuple):
    """What was found for a method with a view and a sampler."""

    method: str
    view: str
    sampler: str
    # operations of the draw of a block of steps and of an update; 0 where tracing raised
    draw: int
    update: int
    # "update: nonzero waits for the GPU, mymodule.py:12"
    faults: tuple[str, ...]


def views(method: Any) -> dict[str, View | Window | Goal]:
    """The views a method can learn from: its own, or single steps, n-step returns and chunks."""
    usual = usual_view(getattr(method, "needs", ()))
    if not isinstance(usual, NStep):
        return {type(usual).__name__.lower(): usual}
    found: dict[str, View | Window | Goal] = {"plain": usual, "n-step": NStep(3, usual.gamma)}
    # chunks of discrete actions are refused
    if getattr(method, "actions", "continuous") == "continuous":
        found["chunk"] = Chunk(3, usual.gamma)
    return found


def audit(
    name: str,
    method: Any,
    *,
    view: str,
    sampler: str = "uniform",
    batch_size: int = 16,
    seeds: int = 2,
) -> Audited:
    """Audits a method with one of its `views` and one of SAMPLERS."""
    # a method may raise anything; the audit goes on with the next one
    try:
        programs = trace(
            method,
            view=views(method)[view],
            weights=SAMPLERS[sampler],
            batch_size=batch_size,
            seeds=seeds,
        )
    except Exception as error:
        calls = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
        fault = _because(error) + _line(calls[::-1], method)
        return Audited(name, view, sampler, 0, 0, (fault,))
    operations = Counter[str]()
    for program in programs:
        operations[program.name] += _count(program)
    with fake_cuda():
        faults = [f for p in programs for f in _faults(p, method)]
    draw, update = operations["draw"], operations["update"]
    return Audited(name, view, sampler, draw, update, tuple(dict.fromkeys(faults)))


def _count(program: Traced) -> int:
    return sum(n.op == "call_function" for n in program.graph.graph.nodes)


def _faults(program: Traced, method: Any) -> list[str]:
    """What would fail, or wait, if the program ran on a GPU."""
    run = Propagated(program.graph)
    found: list[tuple[str, Node | None]] = []
    try:
        run.go()
    except Exception as error:
        found.append((f"{_operation(run.at)}: {_because(error)}", run.at))
    found += [(what, node) for node in program.graph.graph.nodes if (what := _fault(node))]
    return [
        f"{program.name}: {what}{_line(at.meta.get('lines', ()) if at else (), method)}"
        for what, at in found
    ]


def _fault(node: Node) -> str:
    """What is wrong with an operation by itself, in words; empty if nothing is."""
    name = _operation(node)
    if node.op == "call_function" and name in WAITS:
        return f"{name} waits for the GPU"
    if node.op == "call_function" and name in GENERATORS:
        return f"{name} draws from a global generator"
    # a Python number, which kernels take by value
    if node.target is torch.ops.aten._to_copy.default and not node.all_input_nodes:
        return ""
    # what is made of a tensor on the CPU is its fault
    if _elsewhere(node) and not any(map(_elsewhere, node.all_input_nodes)):
        shape = tuple(next(x for x in tensors(node) if x.device != CUDA).shape)
        what = "a constant" if node.op == "placeholder" else name
        return f"{what} of shape {shape} is on the CPU"
    return ""


def _elsewhere(node: Node) -> bool:
    return any(x.device != CUDA for x in tensors(node))


def _operation(node: Node | None) -> str:
    if node is None:
        return "inputs"
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2].rstrip("_")
    return node.name


# --- in words


# how torch says it, and what it means here
_WORDS = {
    r"\.item\(\)|Tensor.item|_local_scalar_dense|data-dependent control flow": (
        "reads the value of a tensor, for which a GPU must be waited for"
    ),
    r"dynamic shape|nonzero": "the shape of a result depends on values (a mask as an index, nonzero)",
    r"random operation": "draws from a global generator; use offbench.rng and the key",
    r"Cannot copy out of meta|meta tensor.*copy": "copies a tensor to the CPU",
    r"two different devices|same device|expected device": "an operation has tensors of the CPU and the GPU",
}


def _because(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    for pattern, words in _WORDS.items():
        if re.search(pattern, said):
            return words
    return f"{type(error).__name__}: {said[:160]}"


def _line(calls: Sequence[tuple[str, int]], method: Any) -> str:
    """ ", mymodule.py:12": the innermost line of the method's file, if it is among the calls."""
    own = inspect.getsourcefile(type(method))
    return next((f", {Path(file).name}:{line}" for file, line in calls if file == own), "")
