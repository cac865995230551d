"""A method is compiled once for each shape of problem: for all datasets, in a process and between processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.paths import ROOT
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from offbench.data.compose import take
from offbench.data.pipeline import make_pipeline
from offbench.data.views import NStep
from offbench.methods.bc import BC
from offbench.testing.contract import SPEC
from offbench.testing.fakes import fake_data
from offbench.training import compiling
from offbench.training.engine import Engine
from offbench.training.step import initial_carry, make_step
from offbench.training.tracing import Program


def built(data, *, hidden=(4,), n=3, backend="compile", **options):
    method, pipeline = BC(hidden=hidden), make_pipeline(data, batch_size=4, **options)
    step = make_step(method, pipeline)
    return Engine(step, initial_carry(method, SPEC, range(n)), backend=backend)


@pytest.fixture
def calls(monkeypatch):
    """The programs given to torch.compile, which are run as they are."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda graph, **options: given.append(graph) or graph)
    monkeypatch.setattr(compiling, "_compiled", {})
    return given


def test_datasets_of_one_shape_share_a_program(data, calls):
    """Whatever their number of rows, weights, views of one step and normalisers, and where they are."""
    short = take(data, np.arange(5))
    for d, options in (
        (data, {}),
        (short, {}),
        (short, {"transforms": ["obs_norm"], "weights": [lambda d: d.reward.double().exp()]}),
        (data, {"view": NStep(3)}),
    ):
        engine, want = built(d, **options), built(d, **options, backend="eager")
        engine.run(3), want.run(3)
        for a, b in zip(tree_leaves(engine.carry), tree_leaves(want.carry), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{"hidden": (5,)}, {"n": 2}], ids=str)
def test_another_network_or_stack_is_another_program(options, data, calls):
    built(data), built(data, **options)
    assert len(calls) == 2


def test_what_a_program_closes_over_is_not_shared_with_its_code(calls):
    """Two programs of one text: each has its own numbers."""
    one, two = (
        Program(lambda x, c=c: x * c + c, torch.ones(2), compiled=True)
        for c in map(torch.tensor, (2.0, 3.0))
    )
    assert one(torch.ones(2)).tolist() == [4.0, 4.0] and two(torch.ones(2)).tolist() == [6.0, 6.0]
    assert len(calls) == 1
    other = Program(lambda x: x * 2.5, torch.ones(2), compiled=True)
    same = Program(lambda x: x * 3.5, torch.ones(2), compiled=True)
    assert other(torch.ones(2)).tolist() == [2.5, 2.5] and same(torch.ones(2)).tolist() == [
        3.5,
        3.5,
    ]
    assert len(calls) == 3


@pytest.mark.slow
def test_a_second_process_finds_the_code_of_the_first(tmp_path):
    """For a dataset of another size, too."""
    environ = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
    }
    lines = []
    for episodes in ("40", "5"):
        command = [sys.executable, __file__, episodes]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        lines.append(done.stdout.split()[-3:])
    # compiled, found, programs
    assert lines == [["1", "0", "1"], ["0", "1", "1"]]


if __name__ == "__main__":
    built(take(fake_data(SPEC), np.arange(int(sys.argv[1])))).run(2)
    cache = counters["inductor"]
    print(
        cache["fxgraph_cache_miss"], cache["fxgraph_cache_hit"], counters["stats"]["unique_graphs"]
    )
