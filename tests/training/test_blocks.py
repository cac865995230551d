"""Batches made for many steps at a time: compiled draws, and blocks of data in host memory."""

import numpy as np
import pytest
import torch
from support.late_device import Device, Thread
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from offbench.data.compose import take
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import return_weights
from offbench.methods.bc import BC
from offbench.testing.contract import SPEC
from offbench.training import blocks
from offbench.training.blocks import BLOCK, Blocks, HostBlocks, maker
from offbench.training.engine import Engine, _copy
from offbench.training.step import initial_carry, make_step


def parts(data, **options):
    method, pipeline = BC(hidden=(4,)), make_pipeline(data, batch_size=4, **options)
    return make_step(method, pipeline), initial_carry(method, SPEC, (0, 1, 2))


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


# --- data in host memory, on a device that runs late

PLANS = {
    "step by step": (range(4 * BLOCK + 3), False),
    "a resume elsewhere": ([*range(5, BLOCK + 9), *range(200, 200 + 2 * BLOCK), 7, 8], False),
    "whole blocks": (range(0, 7 * BLOCK, BLOCK), True),
    "whole blocks from elsewhere": ([0, BLOCK, 11, 11 + BLOCK, 11 + 2 * BLOCK, 0], True),
}


@pytest.mark.parametrize("plan", PLANS)
def test_an_update_reads_its_own_batch_however_late_the_device_runs(plan, data, monkeypatch):
    """A gather, a copy and an update each take as long as they like; only streams and events order them."""
    (numbers, whole), (step, carry) = PLANS[plan], parts(data)
    resident = Blocks(step, carry.key, backend="vmap")
    for seed in range(6):
        device, seen = Device(seed), []
        host = HostBlocks(step, carry.key, backend="vmap", streams=device.api)
        host._thread = Thread(seed)
        at_once = {id(slot.host) for slot in host._slots}

        def copy(into, source, device=device, at_once=at_once, now=blocks.copy):
            if id(into) in at_once:
                now(into, source)
            else:
                device.order(lambda: now(into, source))

        with monkeypatch.context() as patch:
            patch.setattr(blocks, "copy", copy)
            read, prepare = host.fixed()
            for number in numbers:
                if whole:
                    prepare(number)
                given = read() if whole else host.at(number)
                device.order(
                    lambda given=given, seen=seen: seen.append(tree_map(torch.clone, given))
                )
                device.run(share=0.7)
            device.run()
        for number, given in zip(numbers, seen, strict=True):
            there = resident.fixed()
            there[1](number)
            assert equal(given, there[0]() if whole else resident.at(number)), (seed, number)


def test_another_key_draws_other_batches(data):
    step, carry = parts(data)
    other = carry.key.flip(0)
    for kind in (Blocks, HostBlocks):
        made = kind(step, carry.key, backend="vmap")
        before = tree_map(torch.clone, made.at(3))
        made.load(other)
        assert equal(made.at(3), tree_map(lambda x: x.flip(0), before))


def test_an_engine_draws_with_the_key_that_it_loads(data):
    step, carry = parts(data)
    other = carry._replace(key=carry.key + 1)
    engine, fresh = Engine(step, carry, backend="vmap"), Engine(step, other, backend="vmap")
    engine.load(other)
    engine.run(2), fresh.run(2)
    assert equal(engine.carry, fresh.carry)


# --- the state at the end of a replay


def test_a_state_is_copied_leaf_by_leaf_whatever_is_a_view_of_what():
    """Leaves that change places, that are reversed or repeated in their own memory, kept, and new."""
    state = {k: torch.arange(4.0) + 10 * i for i, k in enumerate("abcdef")}
    state |= {"n": torch.tensor([3]), "m": torch.tensor([4])}
    new = {
        "a": state["b"],
        "b": state["a"].view(4),
        "c": state["c"].view(2, 2).t().reshape(-1),
        "d": state["d"][:1].expand(4),
        "e": state["e"],
        "f": state["f"] * 2,
        "n": state["m"],
        "m": state["n"] + 1,
    }
    want = {k: x.clone() for k, x in new.items()}
    kept = dict(state)
    _copy(state, new)
    assert equal(state, want) and all(state[k] is kept[k] for k in state)


def test_only_views_of_the_old_state_are_copied_twice():
    """The others, nearly all, cost one operation together."""

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    state = [torch.zeros(2) for _ in range(9)]
    new = [torch.ones(2) for _ in range(8)] + [state[0]]
    with Count():
        _copy(state, new)
    assert sorted(names) == ["aten::_foreach_copy_", "aten::clone"]


# --- compiled draws


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"weights": [return_weights]}], ids=["uniform", "weights"])
def test_compiled_draws_are_the_same_bits_for_any_number_of_rows(options, data):
    torch._dynamo.reset()
    counters.clear()
    for d in (data, take(data, np.arange(5))):
        step, carry = parts(d, **options)
        first = (carry.key, torch.tensor(70))
        compiled = maker(step, carry.key, compiled=True)
        with torch.no_grad():
            assert equal(compiled(first), maker(step, carry.key, traced=False)(first))
    assert counters["stats"]["unique_graphs"] == 1
