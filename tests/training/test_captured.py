"""Captured engines, on a graph that repeats recorded operations in recorded memory as a CUDA graph does."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import return_weights
from offbench.methods.bc import BC
from offbench.methods.td3_bc import TD3BC
from offbench.testing.contract import SPEC
from offbench.training import compiling
from offbench.training import engine as engines
from offbench.training.engine import BLOCK, Engine
from offbench.training.step import initial_carry, make_step


class Graph(TorchDispatchMode):
    """Records operations; a replay computes them again, from and into the memory they had."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                # else nothing, a view, or what was written in place
                if (
                    new is not None
                    and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
                ):
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """CUDA's part played on the CPU, by programs that are not compiled; the graphs captured."""
    made = []

    @contextmanager
    def capture(graph, *, capture_error_mode):
        # episodes are played by another thread meanwhile
        assert capture_error_mode == "thread_local"
        made.append(graph)
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    monkeypatch.setattr(compiling, "_compiled", {})
    monkeypatch.setattr(engines, "candidates", lambda backend, device, n_steps=0: [backend])
    return made


def parts(method, data, *, host):
    pipeline = make_pipeline(data, batch_size=4, weights=[return_weights])
    step = make_step(method, pipeline)._replace(host_data=host)
    return step, initial_carry(method, pipeline.spec(SPEC), (0, 3, 5))


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
@pytest.mark.parametrize(
    "method",
    [BC(hidden=(4,)), pytest.param(TD3BC(hidden=(4,)), marks=pytest.mark.slow)],
    ids=["bc", "td3_bc"],
)
def test_a_captured_run_is_the_compiled_one_bit_for_bit(method, host, data, graphs):
    """In any pieces, loaded again, and with data on the device or in host memory."""
    step, carry = parts(method, data, host=host)
    captured, compiled = (Engine(step, carry, backend=b) for b in ("cudagraph", "compile"))
    assert len(graphs) == 1 and equal(captured.carry, carry)
    for pieces in ((BLOCK,), (5, 2 * BLOCK + 3, BLOCK)):
        for n in pieces:
            metrics, want = captured.run(n), compiled.run(n)
            assert equal((captured.carry, metrics), (compiled.carry, want))
        captured.load(carry), compiled.load(carry)


def test_what_a_captured_engine_gave_stays_as_it_was(data, graphs):
    """Its graph writes into the same memory at every replay."""
    step, carry = parts(BC(hidden=(4,)), data, host=False)
    engine = Engine(step, carry, backend="cudagraph")
    given = (engine.run(2 * BLOCK), engine.carry)
    kept = tree_map(torch.clone, given)
    paused = engine.run(3 * BLOCK, lambda step: True)
    kept_paused = tree_map(torch.clone, paused)
    engine.run(BLOCK)
    assert equal(given, kept) and equal(paused, kept_paused) and engine.step == 4 * BLOCK


def test_the_end_of_a_replay_copies_the_state_together(data, graphs):
    step, carry = parts(BC(hidden=(4,)), data, host=False)
    Engine(step, carry, backend="cudagraph")
    names = [call[0]._schema.name for call in graphs[0].calls]
    kinds = {x.dtype for x in tree_leaves(carry.state)}
    assert names.count("aten::_foreach_copy_") == len(kinds) and "aten::copy_" not in names
