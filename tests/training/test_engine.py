"""Every backend computes the same run, a run repeats and resumes bit for bit, and nothing waits for the device."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import return_weights
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.nn import optim
from offbench.testing.contract import SPEC, view_for
from offbench.training.engine import BLOCK, Engine
from offbench.training.loop import diverged, train
from offbench.training.step import (
    Carry,
    Draw,
    Input,
    advance,
    initial_carry,
    make_step,
    stack,
    unstack,
)
from offbench.training.tracing import Program

HIDDEN = (8, 8)


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def parts(method, data, seeds=(0, 1, 2), **options):
    """The step and the first carry, in the type of the data."""
    needs = getattr(method, "needs", ())
    options = {"view": view_for(needs)} | options
    pipeline = make_pipeline(data, batch_size=16, needs=needs, **options)
    carry = initial_carry(method, pipeline.spec(SPEC), seeds)
    return make_step(method, pipeline), double(carry) if data.obs.dtype == torch.float64 else carry


def run(step, carry, n, backend="eager"):
    engine = Engine(step, carry, backend=backend)
    metrics = engine.run(n)
    return engine.carry, metrics


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def close(a, b, tolerance: float) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


# --- backends


def test_the_traced_program_equals_the_untraced_step(shipped_method, data64):
    """And neither waits for the device, and optimisers write in place, under weights and transforms."""
    step, carry = parts(shipped_method, data64, weights=[return_weights], transforms=["obs_norm"])
    untraced, traced = (Engine(step, carry, backend=b) for b in ("vmap", "eager"))
    for engine in (untraced, traced):
        with NoSync() as watch:
            engine.run(2)
        assert watch.seen > 50
    # to rounding, which Adam makes larger where a gradient is nearly zero (doc: 2e-12)
    assert close((untraced.run(10), untraced.carry), (traced.run(10), traced.carry), 1e-11)
    targets = [node.target for node in traced._update._run.graph.nodes]
    assert optim.adam_ in targets and torch.ops.offbench.adam.default not in targets
    assert torch.ops.offbench.lerp.default not in targets


class NoSync(TorchDispatchMode):
    """Forbids what waits for the device: reading a value, and shapes that depend on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        name = func._schema.name.split("::")[1]
        assert not name.startswith(self.FORBIDDEN), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_reading_a_value_waits_for_the_device():
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        torch.ones(()).item()


def test_one_seed_is_a_stack_of_one(data64):
    step, carry = parts(IQL(hidden=HIDDEN), data64, seeds=(7,))
    got, metrics = run(step, carry, 5, "vmap")
    alone = carry.seed(0)
    for _ in range(5):
        alone, want = advance(step, alone)
    assert close(got.seed(0), alone, 1e-12) and close(unstack(metrics, 0), want, 1e-12)


@pytest.mark.slow
def test_compiled_programs_equal_traced_ones(shipped_method, data64):
    """In float64: in float32 Adam makes a whole step of a gradient that is all rounding."""
    step, carry = parts(shipped_method, data64)
    torch._dynamo.reset()
    assert close(run(step, carry, 5, "compile")[0], run(step, carry, 5, "eager")[0], 1e-8)


def lists_for_a_compiler(method, data64, monkeypatch) -> int:
    """Operations on lists in the update that a compiler gets; as they stand they compute the same state."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    step, carry = parts(method, data64)
    untraced, many = Engine(step, carry, backend="vmap"), vmap(step.update)
    state, blocks = carry.state, untraced._blocks
    program = Program(lambda x: many(*x), (state, blocks.at(0)), compiled=True)
    for i in range(4):
        state, _ = program((state, blocks.at(i)))
    untraced.run(4)
    assert close(state, untraced.carry.state, 1e-10)
    # a captured state is copied leaf by leaf into memory of the first one's layout
    for a, b in zip(tree_leaves(state), tree_leaves(carry.state), strict=True):
        assert a.stride() == b.stride()
    return sum("_foreach_" in str(node.target) for node in program._run.graph.nodes)


def test_a_compiler_gets_three_lists_for_a_step_of_adam(data64, monkeypatch):
    """They become one kernel. TD3+BC steps its critics twice and its actor once."""
    assert lists_for_a_compiler(TD3BC(hidden=HIDDEN), data64, monkeypatch) == 9


@pytest.mark.slow
def test_every_update_for_a_compiler_equals_the_untraced_one(shipped_method, data64, monkeypatch):
    n = lists_for_a_compiler(shipped_method, data64, monkeypatch)
    assert n > 0 and n % 3 == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_graphs_equal_traced_programs(shipped_method, data):
    step, carry = parts(shipped_method, data.to("cuda"))
    carry = tree_map(lambda x: x.cuda(), carry)
    n = 2 * BLOCK + 5  # two replays, and steps that are not captured
    graph, metrics = run(step, carry, n, "cudagraph")
    want, want_metrics = run(step, carry, n, "eager")
    assert close(graph, want, 1e-5) and close(metrics, want_metrics, 1e-4)
    assert equal(graph, run(step, carry, n, "cudagraph")[0])


def test_the_default_backend_follows_the_device(data):
    step, carry = parts(BC(hidden=HIDDEN), data)
    assert Engine(step, carry).backend == "eager"
    with pytest.raises(UserError, match="needs a CUDA device"):
        Engine(step, carry, backend="cudagraph")
    with pytest.raises(UserError, match="did you mean 'eager'"):
        Engine(step, carry, backend="eagre")


# --- what a run is


class Twins(NamedTuple):
    """One program, traced twice, and where a run starts."""

    one: Engine
    other: Engine
    start: Carry

    def again(self) -> tuple[Engine, Engine]:
        for engine in (self.one, self.other):
            engine.load(self.start)
        return self.one, self.other


@pytest.fixture(scope="module")
def twins(data):
    step, carry = parts(TD3BC(hidden=HIDDEN), data)
    return Twins(Engine(step, carry), Engine(step, carry), carry)


def test_a_run_repeats_bit_for_bit(twins):
    one, other = twins.again()
    metrics = one.run(10)
    assert equal((other.run(10), other.carry), (metrics, one.carry))
    other.load(twins.start)
    assert equal((other.run(10), other.carry), (metrics, one.carry))


def test_an_untraced_run_repeats_bit_for_bit(data):
    step, carry = parts(TD3BC(hidden=HIDDEN), data)
    assert equal(run(step, carry, 10, "vmap"), run(step, carry, 10, "vmap"))


def test_a_run_resumes_bit_for_bit_from_its_saved_carry(twins, tmp_path):
    one, other = twins.again()
    whole = (one.run(20), one.carry)
    other.run(10)
    torch.save(other.carry, tmp_path / "carry.pt")
    one.load(torch.load(tmp_path / "carry.pt", weights_only=False))
    assert equal((one.run(10), one.carry), whole)


def test_running_in_pieces_equals_running_at_once(twins):
    one, other = twins.again()
    for n in (1, 4, 5):
        one.run(n)
    other.run(10)
    assert equal(one.carry, other.carry)


def test_neither_the_first_carry_nor_a_copy_of_it_is_written_to(twins):
    first = tree_map(torch.clone, twins.start)
    engine, _ = twins.again()
    engine.run(2)
    taken = engine.carry
    kept = tree_map(torch.clone, taken)
    engine.run(2)
    assert equal(twins.start, first) and equal(taken, kept) and not equal(taken, engine.carry)


def test_writing_into_a_carry_does_not_reach_the_engine(data):
    step, carry = parts(BC(hidden=HIDDEN), data)
    engine = Engine(step, carry, backend="vmap")
    want, _ = run(step, carry, 1, "vmap")
    for given in (carry, engine.carry):
        tree_map(lambda x: x.zero_(), given)
    engine.run(1)
    assert equal(engine.carry, want)


def test_seeds_start_and_draw_differently(data):
    step, carry = parts(BC(hidden=HIDDEN), data)
    a, b = carry.seed(0), carry.seed(1)
    assert not any(
        torch.equal(x, y)
        for x, y in zip(tree_leaves(a.state.actor), tree_leaves(b.state.actor), strict=True)
    )
    after, _ = run(step, carry._replace(state=stack([a.state, a.state, a.state])), 1)
    assert not equal(after.seed(0).state, after.seed(1).state)  # other batches


def test_no_key_is_used_twice(data):
    """The batch's and the update's of every step, and the run's own."""
    seen = []

    class Recording(BC):
        def update(self, state, batch, key):
            seen.append(key.item())
            return super().update(state, batch, key)

    step, carry = parts(Recording(hidden=HIDDEN), data, seeds=(0,))
    alone = carry.seed(0)
    seen.append(alone.key.item())
    for _ in range(20):
        step_key = rng.fold(alone.key, alone.step)
        seen += [step_key.item(), rng.split(step_key)[0].item()]
        alone, _ = advance(step, alone)
    assert len(set(seen)) == 61


@pytest.mark.parametrize("start", [0, 5, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_draws_made_in_blocks_are_those_of_each_step(start, data):
    """Wherever a run resumes, a step sees the rows that its number and its seed's key give."""
    step, carry = parts(BC(hidden=HIDDEN), data)
    carry = carry._replace(step=torch.tensor(start))
    seen = []

    class Watching:
        draw = staticmethod(step.draw)
        host_data = False

        @staticmethod
        def input(draw):
            return Input(draw.rows, draw.key)

        @staticmethod
        def update(state, given):
            return state, {"rows": given.batch, "key": given.key}

    engine = Engine(Watching, carry, backend="eager")
    for i in range(BLOCK + 3):
        seen.append(engine.run(1))
        for k in range(3):
            want = step.draw(rng.fold(carry.key[k], torch.tensor(start + i)))
            assert torch.equal(seen[-1]["rows"][k], want.rows)
            assert torch.equal(seen[-1]["key"][k], want.key)


# --- writing in place


class Toy(NamedTuple):
    """A step whose state takes part in chosen ways; its draws are not used."""

    update: Any
    draw: Any = staticmethod(lambda key: Draw(key[None], key))
    input: Any = staticmethod(lambda draw: Input(draw.rows, draw.key))
    host_data: bool = False


def _sgd_like(state, grads):
    adam = optim.Adam(0.1)
    new, opt = adam.step(grads, state["opt"], state["p"])
    return {**state, "p": new, "opt": opt}


def _plain(state, given):
    return _sgd_like(state, [torch.ones_like(state["p"][0])]), {}


def _reads_the_old_value_afterwards(state, given):
    new = _sgd_like(state, [torch.ones_like(state["p"][0])])
    return {**new, "kept": state["p"][0] * 1.0 + 0 * new["p"][0]}, {}


def _reads_a_view_of_the_old_value_afterwards(state, given):
    view = state["p"][0].view(-1)[:2]
    new = _sgd_like(state, [torch.ones_like(state["p"][0])])
    return {**new, "kept": torch.cat([view * new["p"][0].sum() * 0 + view] * 2)}, {}


def _returns_the_old_value(state, given):
    new = _sgd_like(state, [torch.ones_like(state["p"][0])])
    return {**new, "kept": state["p"][0]}, {}


def _two_leaves_become_one(state, given):
    new = _sgd_like(state, [torch.ones_like(state["p"][0])])
    return {**new, "kept": new["p"][0]}, {}


def _target_follows(state, given):
    new = _sgd_like(state, [state["kept"]])
    return {**new, "kept": optim.polyak([state["kept"]], new["p"], 0.5)[0]}, {}


@pytest.mark.parametrize(
    "update",
    [
        _plain,
        _reads_the_old_value_afterwards,
        _reads_a_view_of_the_old_value_afterwards,
        _returns_the_old_value,
        _two_leaves_become_one,
        _target_follows,
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_writing_in_place_never_changes_a_result(update):
    p = [torch.arange(4.0)]
    state = {"p": p, "kept": torch.ones(4), "opt": optim.Adam(0.1).init(p)}
    carry = Carry(stack([state, state]), torch.tensor([1, 2]), torch.tensor(0))
    toy = Toy(update)
    assert equal(run(toy, carry, 5, "eager")[0], run(toy, carry, 5, "vmap")[0])


def test_the_first_state_of_a_seed_does_not_depend_on_the_others():
    method = IQL(hidden=HIDDEN)
    a, b = initial_carry(method, SPEC, [3, 1]), initial_carry(method, SPEC, [1])
    assert equal(a.seed(1), b.seed(0))


@pytest.mark.parametrize("seeds", [[], [0, 1, 0]])
def test_seeds_are_neither_empty_nor_repeated(seeds):
    with pytest.raises(UserError, match="non-empty list without duplicates"):
        initial_carry(BC(hidden=HIDDEN), SPEC, seeds)


def test_metrics_are_those_of_the_last_update_for_each_seed(data64):
    step, carry = parts(IQL(hidden=HIDDEN), data64)
    _, metrics = run(step, carry, 6, "vmap")
    _, last = run(step, run(step, carry, 5, "vmap")[0], 1, "vmap")
    assert metrics.keys() == last.keys() and all(m.shape == (3,) for m in metrics.values())
    assert equal(metrics, last)


@pytest.mark.parametrize("n", [0, -1])
def test_a_run_of_no_updates_is_refused(n, data):
    with pytest.raises(ValueError, match="at least 1"):
        Engine(*parts(BC(hidden=HIDDEN), data)).run(n)


def test_no_update_builds_an_autograd_tape(twins):
    engine, _ = twins.again()
    found = tree_leaves((engine.run(2), engine.carry))
    assert not any(x.requires_grad or x.grad_fn is not None for x in found)


def test_a_method_that_reads_the_global_generator_cannot_be_run(data):
    class Noisy(BC):
        def update(self, state, batch, key):
            return super().update(
                state, batch._replace(obs=batch.obs + torch.randn_like(batch.obs)), key
            )

    with pytest.raises(RuntimeError, match="randomness"):
        run(*parts(Noisy(hidden=HIDDEN), data), 1)


def test_stack_and_unstack_are_inverse():
    trees = [{"a": torch.arange(3) + i, "b": (torch.ones(()) * i,)} for i in range(4)]
    assert all(equal(unstack(stack(trees), i), trees[i]) for i in range(4))


# --- the loop


def test_updates_count_minibatches(data):
    """TD3+BC takes two a step: 20 updates are 10 steps, with as much data as 20 updates of IQL."""
    pipeline = make_pipeline(data, batch_size=8)
    (iql,) = train(IQL(hidden=HIDDEN), pipeline, SPEC, seeds=[0], n_updates=20, backend="vmap")
    (td3,) = train(TD3BC(hidden=HIDDEN), pipeline, SPEC, seeds=[0], n_updates=20, backend="vmap")
    assert iql.update == td3.update == 20
    assert iql.state.opt.count.tolist() == td3.state.opt_critic.count.tolist() == [20]
    assert td3.state.opt_actor.count.tolist() == [10]


def test_training_stops_where_asked_and_always_at_the_end(data):
    pipeline = make_pipeline(data, batch_size=8)
    arguments = {"seeds": [0, 1], "n_updates": 12, "backend": "vmap"}
    *early, with_stops = train(
        TD3BC(hidden=HIDDEN), pipeline, SPEC, stop_at=[5, 1, 0, 99, 6], **arguments
    )
    (straight,) = train(TD3BC(hidden=HIDDEN), pipeline, SPEC, **arguments)
    assert [p.update for p in early] == [2, 4, 6] and straight.update == with_stops.update == 12
    assert equal(with_stops.state, straight.state) and equal(with_stops.metrics, straight.metrics)


@pytest.mark.parametrize("n", [0, -2, 7])
def test_a_number_of_updates_the_method_cannot_make_is_refused(n, data):
    with pytest.raises(UserError, match="positive multiple of 2"):
        next(train(TD3BC(hidden=HIDDEN), make_pipeline(data), SPEC, seeds=[0], n_updates=n))


def test_a_seed_that_diverged_is_found_and_its_neighbours_are_not():
    method = IQL(hidden=HIDDEN)
    state = initial_carry(method, SPEC, [0, 1, 2]).state
    assert diverged(state).tolist() == [False] * 3
    state.critic[0]["w"][1, 0, 2, 3] = float("nan")
    state.actor["log_std"][2, 0] = float("inf")
    assert diverged(state).tolist() == [False, True, True]
