"""Matrix products by oneDNN on processors where MKL, which torch calls for them, is slow.

Torch's wheels hold both libraries. On AMD's processors with AVX-512 MKL computes float32 products by narrower
instructions, at half the speed of oneDNN. Which library computes
a product follows from the processor and the shape alone, never from a measurement, so that a run repeats bit
for bit on the same machine.
"""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

_aten = torch.ops.aten
# operators that multiply matrices, with where the two factors stand among their arguments
FACTORS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
# multiplications of one product, and its shortest side, from which the call repays itself
_FROM_SIZE = 128**3
_FROM_SIDE = 32


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and torch has both libraries."""
    both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return both and wide and "AuthenticAMD" in _vendor()


def _vendor() -> str:
    """What names the maker of the processor: Linux has it in a file, Windows in the name of the platform."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()


def by_onednn(graph: GraphModule) -> None:
    """Products of float32 matrices that are large enough, by oneDNN; equal to rounding."""
    for node in graph.graph.nodes:
        if node.target in _OPERATORS and _repays(*(x.meta["val"] for x in node.args)):
            node.target = _OPERATORS[node.target]
    graph.recompile()


def _repays(a: Tensor, b: Tensor) -> bool:
    sides = (*a.shape[-2:], b.shape[-1])
    m, k, n = sides
    large = m * k * n >= _FROM_SIZE and min(sides) >= _FROM_SIDE
    return large and a.dtype == b.dtype == torch.float32


def mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of float32 matrices, by oneDNN: (m, k), (k, n) -> (m, n)."""
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), None, "none", [], "")


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """The products of a batch of float32 matrices, one after another: (B, m, k), (B, k, n) -> (B, m, n)."""
    return torch.stack([mm(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True)])


_mm = torch.library.custom_op("offbench::mm", mm, mutates_args=())
_bmm = torch.library.custom_op("offbench::bmm", bmm, mutates_args=())


@_mm.register_fake
@_bmm.register_fake
def _(a, b):
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


_OPERATORS = {
    _aten.mm.default: torch.ops.offbench.mm.default,
    _aten.bmm.default: torch.ops.offbench.bmm.default,
}
# operator -> the function without torch's dispatch, which takes longer than a small product
CALLS = {torch.ops.offbench.mm.default: mm, torch.ops.offbench.bmm.default: bmm}
