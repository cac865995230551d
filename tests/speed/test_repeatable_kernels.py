"""The code that a GPU would run adds in a fixed order and counts in 64 bits: read from it, on any machine."""

import re

import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from offbench import rng
from offbench.methods.bc import BC
from offbench.methods.dt import DT
from offbench.speed.invented import CARDS
from offbench.speed.lowering import can_lower, lower
from offbench.speed.traced import META, Traced, trace
from offbench.testing.fakes import sized, view_for

pytestmark = [
    pytest.mark.skipif(
        not can_lower(), reason="inductor writes kernels with triton: pip install triton"
    ),
    # inductor gives advice as warnings
    pytest.mark.filterwarnings("default"),
]
KEYS = torch.empty(4, dtype=torch.int64, device=META)


def kernels(function, *inputs) -> str:
    """Inductor's code of the function stacked over its first argument, for an invented H100."""
    graph = make_fx(lambda *x: (vmap(function, (0, *[None] * (len(x) - 1)))(*x),))(*inputs)
    return lower(Traced("draw", graph, True, {}), CARDS["h100"]).source


def narrow_constants(source: str) -> list[str]:
    """Constants beyond 32 bits that stand elsewhere than in a tensor of int64: in arithmetic of indices."""
    # the kernels, without the comments above them
    body = "".join(re.findall(r"^def triton_.*?(?=^\'\'\')", source, re.DOTALL | re.MULTILINE))
    assert "tl.store" in body
    body = re.sub(r"tl\.full\(\[[\d, ]*\], -?\d+, tl\.int64\)", "", body)
    return [x for x in re.findall(r"(?<![\w.])\d{10,}(?!\w)", body) if int(x) >= 2**31]


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: rng.bits(k, (70_000,)),
        lambda k: rng.split(k, 3),
        lambda k: rng.uniform(k, (33, 5)),
        lambda k: rng.normal(k, (33, 5)),
        lambda k: rng.randint(k, (64,), 10**6),
        lambda k: rng.fold(k, torch.arange(32, device=k.device)),
    ],
    ids=["bits", "split", "uniform", "normal", "randint", "fold"],
)
def test_draws_multiply_in_64_bits(draw):
    source = kernels(draw, KEYS)
    assert "tl.int64" in source and not narrow_constants(source)


def test_a_product_of_an_index_is_found():
    """The form that `rng.bits` avoids: the counter multiplied before the key is added."""
    source = kernels(lambda k: rng._mix(k + torch.arange(9, device=k.device) * rng._GAMMA), KEYS)
    assert narrow_constants(source)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [BC, DT])
def test_updates_are_lowered_without_atomics_in_the_deterministic_mode(cls):
    method = sized(cls, (8,))
    view = view_for(getattr(method, "needs", ()))
    compiled = [p for p in trace(method, view=view, batch_size=8, seeds=2) if p.compiled]
    assert "update" in {program.name for program in compiled}
    for program in compiled:
        source = lower(program, CARDS["h100"]).source
        assert program.options["deterministic"] is True and "'deterministic': True" in source
        assert "tl.atomic" not in source and "index_put" not in source


def test_an_atomic_sum_is_found():
    index = torch.zeros(8, dtype=torch.int64, device=META)
    rows = torch.empty(4, 8, 3, device=META)
    add = lambda x, i: x.new_zeros(5, 3).index_put((i,), x, accumulate=True)
    assert "tl.atomic" in kernels(add, rows, index)
