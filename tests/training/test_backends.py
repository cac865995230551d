"""The gate before a faster backend, precision, stacked hyper-parameters, and data on the host."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench.data.pipeline import make_pipeline
from offbench.data.views import Chunk, NStep
from offbench.errors import UserError
from offbench.methods.acsac import ACSAC
from offbench.methods.bc import BC
from offbench.methods.dt import DT
from offbench.methods.iql import IQL
from offbench.methods.rebrac import ReBRAC
from offbench.methods.td3_bc import TD3BC
from offbench.testing.contract import SPEC, view_for
from offbench.training import engine as engines
from offbench.training.engine import BLOCK, Engine, Ran, candidates, peak_bytes
from offbench.training.gate import TOLERANCE, Judge, deviation, make_engine, nudge
from offbench.training.loop import train
from offbench.training.step import bind, initial_carry, make_step, unstack
from offbench.training.tracing import Program

HIDDEN = (8, 8)


def parts(method, data, seeds=(0, 1), **options):
    needs = getattr(method, "needs", ())
    pipeline = make_pipeline(data, batch_size=16, needs=needs, **options)
    return make_step(method, pipeline), initial_carry(method, pipeline.spec(SPEC), seeds)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


# --- the gate


@pytest.fixture
def try_compiling(monkeypatch):
    """`auto` considers compiling however short the run."""
    monkeypatch.setattr(engines, "COMPILE_FROM", 0)


def test_auto_compiles_only_where_a_run_is_long_enough_to_repay_it():
    assert candidates("auto", "cpu", 1000) == ["eager"]
    assert candidates("auto", "cpu", 10**6) == ["compile", "eager"]
    assert candidates("auto", "cuda", 10)[0] == "cudagraph"


def test_a_backend_that_trains_during_its_set_up_is_refused(data, try_compiling, monkeypatch):
    """A warm-up that is not undone, the classic fault of captured graphs."""
    step, carry = parts(BC(hidden=HIDDEN), data)
    honest = Engine.__init__

    def ahead(self, *args, **kwargs):
        honest(self, *args, **{**kwargs, "backend": "eager"})
        if kwargs["backend"] == "compile":
            self.run(3)

    monkeypatch.setattr(Engine, "__init__", ahead)
    engine, name = make_engine(step, carry, backend="auto")
    assert str(name).startswith("eager (compile deviates by ") and equal(engine.carry, carry)


def test_a_backend_that_computes_something_else_is_refused(data, try_compiling, monkeypatch):
    step, carry = parts(BC(hidden=HIDDEN), data)
    honest = engines._updater

    def off(step, example, backend, precision):
        update = honest(step, example, "eager", precision)
        if backend != "compile":
            return update

        def wrong(arguments):
            state, metrics = update(arguments)
            return state._replace(actor=tree_map(lambda x: x * 1.001, state.actor)), metrics

        return wrong

    monkeypatch.setattr(engines, "_updater", off)
    assert str(make_engine(step, carry, backend="auto")[1]).startswith(
        "eager (compile deviates by "
    )


def test_a_compiler_that_fails_is_passed_over_and_named(data, try_compiling, monkeypatch):
    step, carry = parts(BC(hidden=HIDDEN), data)
    honest = engines._updater

    def broken(step, example, backend, precision):
        if backend == "compile":
            raise NotImplementedError("no such kernel")
        return honest(step, example, backend, precision)

    monkeypatch.setattr(engines, "_updater", broken)
    engine, name = make_engine(step, carry, backend="auto")
    assert str(name) == "eager (compile failed: NotImplementedError)" and engine.backend == "eager"


@pytest.mark.slow
def test_a_faithful_backend_passes_the_gate_and_starts_from_the_first_update(data, try_compiling):
    step, carry = parts(TD3BC(hidden=HIDDEN), data)
    torch._dynamo.reset()
    engine, name = make_engine(step, carry, backend="auto")
    assert name == Ran("compile") and equal(engine.carry, carry)  # the gate's steps are undone
    engine.run(30)
    judge = Engine(step, carry, backend="eager")
    judge.run(30)
    assert deviation(engine.carry.state, judge.carry.state, carry.state) < TOLERANCE


def test_deviation_is_relative_to_the_way_travelled():
    start, judge = {"w": torch.zeros(4)}, {"w": torch.full((4,), 2.0)}
    assert deviation({"w": torch.full((4,), 2.2)}, judge, start) == pytest.approx(0.1)
    assert deviation(judge, judge, start) == 0.0
    assert deviation({"w": torch.ones(4)}, start, start) == 1.0  # moved where it should not have
    # ten times as far off as what rounding alone does is the most that passes
    shaken = {"w": torch.full((4,), 2.03)}
    assert deviation({"w": torch.full((4,), 2.3)}, judge, start, shaken) == pytest.approx(TOLERANCE)
    assert deviation({"w": torch.full((4,), 2.6)}, judge, start, shaken) > TOLERANCE


def test_what_rounding_alone_decides_passes_the_gate_and_a_wrong_step_does_not(data):
    """The biases of attention's keys have no gradient but rounding, of which Adam makes steps all the same."""

    def end(lr, start):
        view = view_for(ACSAC.needs)
        step, carry = parts(ACSAC(hidden=HIDDEN, width=32, lr=lr), data, view=view)
        judge = Judge(step, carry)
        engine = Engine(step, carry._replace(state=start(carry.state)), backend="eager")
        engine.run(2)
        return judge, engine.carry.state, carry.state

    judge, rounded, start = end(3e-4, lambda x: nudge(nudge(x)))
    plain = judge._end(2, nudged=False)
    assert deviation(rounded, plain, start) > TOLERANCE
    assert judge.deviation(rounded, 2, TOLERANCE) <= TOLERANCE
    assert judge.deviation(plain, 2, TOLERANCE) == 0.0
    assert judge.deviation(end(3.2e-4, lambda x: x)[1], 2, TOLERANCE) > 2 * TOLERANCE


# --- precision


def test_bf16_multiplies_coarsely_and_keeps_everything_else_in_float32(data):
    step, carry = parts(BC(hidden=HIDDEN), data)
    exact, coarse = (Engine(step, carry, precision=p) for p in ("float32", "bf16"))
    exact.run(20), coarse.run(20)
    off = deviation(coarse.carry.state, exact.carry.state, carry.state)
    assert 1e-5 < off < 1.0
    assert all(a.dtype == b.dtype for a, b in zip(tree_leaves(coarse.carry), tree_leaves(carry)))
    nodes = coarse._update._run.graph.nodes
    products = [n for n in nodes if getattr(n.target, "__name__", "").startswith(("bmm", "mm"))]
    assert products and all(
        x.kwargs.get("dtype") == torch.bfloat16 for n in products for x in n.args
    )


def test_precision_is_set_for_the_engine_and_put_back(data):
    step, carry = parts(BC(hidden=HIDDEN), data)
    torch.set_float32_matmul_precision("high")
    try:
        Engine(step, carry, precision="float32").run(1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        Engine(step, carry, precision="fp8")


# --- stacked hyper-parameters


@pytest.mark.parametrize(
    ("method", "points"),
    [
        (
            IQL(hidden=HIDDEN),
            [
                {"expectile": 0.6, "inverse_temperature": 1.0},
                {"expectile": 0.9, "inverse_temperature": 10.0},
            ],
        ),
        pytest.param(IQL(hidden=HIDDEN), [{"lr": 1e-3}, {"lr": 1e-4}], marks=pytest.mark.slow),
        (
            TD3BC(hidden=HIDDEN),
            [{"alpha": 1.0, "policy_noise": 0.1}, {"alpha": 4.0, "policy_noise": 0.3}],
        ),
        pytest.param(
            TD3BC(hidden=HIDDEN),
            [{"polyak_rate": 0.01, "noise_clip": 0.1}, {"polyak_rate": 0.5, "noise_clip": 0.9}],
            marks=pytest.mark.slow,
        ),
        (BC(hidden=HIDDEN), [{"lr": 1e-3}, {"lr": 1e-2}]),
    ],
    ids=str,
)
def test_hyper_parameters_stack_as_seeds_do(method, points, data64):
    """Each place of the stack, traced, is the run that its values would make alone, untraced."""
    from dataclasses import replace

    to64 = lambda tree: tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)
    pipeline = make_pipeline(data64, batch_size=16)
    values, seeds = [p for p in points for _ in range(2)], [0, 1] * len(points)
    carry = to64(initial_carry(method, SPEC, seeds, values=values))
    together = Engine(make_step(method, pipeline), carry)
    together.run(6)
    for i, (value, seed) in enumerate(zip(values, seeds)):
        one = replace(method, **value)
        first = to64(initial_carry(one, SPEC, [seed]))
        alone = Engine(make_step(one, pipeline), first, backend="vmap")
        alone.run(6)
        got = unstack(together.carry.state, i).state
        for a, b in zip(tree_leaves(got), tree_leaves(unstack(alone.carry.state, 0)), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["alpha", "policy_noise", "noise_clip", "polyak_rate", "lr"])
def test_a_stacked_hyper_parameter_does_not_change_the_type_of_the_state(name, data):
    method, pipeline = TD3BC(hidden=HIDDEN), make_pipeline(data, batch_size=8)
    carry = initial_carry(method, SPEC, [0, 0], values=[{name: 0.1}, {name: 0.2}])
    engine = Engine(make_step(method, pipeline), carry, backend="vmap")
    engine.run(3)
    for a, b in zip(tree_leaves(carry), tree_leaves(engine.carry), strict=True):
        assert a.dtype == b.dtype
    assert not equal(unstack(engine.carry.state, 0).state, unstack(engine.carry.state, 1).state)


def test_bind_gives_a_plain_method_back_unchanged():
    method = BC(hidden=HIDDEN)
    state = method.init(torch.tensor(3), SPEC)
    assert bind(method, state) == (method, state)


# --- data on the host


@pytest.mark.parametrize(
    "view", [NStep(1), pytest.param(NStep(3), marks=pytest.mark.slow), Chunk(4)], ids=str
)
@pytest.mark.parametrize(
    "method",
    [pytest.param(TD3BC(hidden=HIDDEN), marks=pytest.mark.slow), BC(hidden=HIDDEN)],
    ids=["td3_bc", "bc"],
)
def test_batches_gathered_ahead_on_the_host_are_those_of_the_device(method, view, data):
    """Bit for bit, over several blocks, and from a step in the middle."""
    pipeline = make_pipeline(
        data, view=view, weights=[lambda d: d.reward.double().exp()], batch_size=8
    )
    step = make_step(method, pipeline)
    carry = initial_carry(method, pipeline.spec(SPEC), (0, 3))
    host = step._replace(host_data=True)
    resident, ahead = Engine(step, carry), Engine(host, carry)
    n = BLOCK + 9
    resident.run(n), ahead.run(n)
    assert equal(resident.carry, ahead.carry)
    again = Engine(host, resident.carry)
    again.run(5), resident.run(5)
    assert equal(resident.carry, again.carry)


@pytest.mark.parametrize(
    "method",
    [
        ReBRAC(hidden=HIDDEN),
        pytest.param(ACSAC(hidden=HIDDEN, width=8, layers=1, heads=2), marks=pytest.mark.slow),
        pytest.param(DT(width=8), marks=pytest.mark.slow),
    ],
    ids=lambda method: type(method).__name__,
)
def test_batches_gathered_on_the_host_hold_what_a_method_needs(method, data):
    """Extras, padded chunks and windows, as the device would draw them."""
    view = view_for(method.needs)
    pipeline = make_pipeline(data, view=view, batch_size=8, needs=method.needs)
    step = make_step(method, pipeline)
    host = step._replace(host_data=True)
    carry = initial_carry(method, pipeline.spec(SPEC), (0, 3))
    resident, ahead = (Engine(s, carry, backend="vmap") for s in (step, host))
    resident.run(3), ahead.run(3)
    assert equal(resident.carry, ahead.carry)


def test_memory_mapped_data_train_as_data_in_memory(data, tmp_path):
    """What is larger than memory is mapped; a batch touches the pages it needs."""
    import numpy as np

    mapped = []
    for name, x in data._asdict().items():
        np.save(tmp_path / f"{name}.npy", x.numpy())
        array = np.load(tmp_path / f"{name}.npy", mmap_mode="c")
        mapped.append(torch.from_numpy(array))
    arguments = {"seeds": [0, 1], "n_updates": 10, "backend": "vmap"}
    (a,) = train(IQL(hidden=HIDDEN), make_pipeline(data, batch_size=8), SPEC, **arguments)
    mapped_data = type(data)(*mapped)
    (b,) = train(IQL(hidden=HIDDEN), make_pipeline(mapped_data, batch_size=8), SPEC, **arguments)
    assert equal(a.carry, b.carry)


# --- memory


@pytest.mark.slow
def test_the_memory_estimate_bounds_what_an_update_keeps_alive(data):
    """Against the allocator's own count, on the untraced program."""
    small, large = (parts(TD3BC(hidden=(h, h)), data, seeds=(0,)) for h in (8, 64))
    assert peak_bytes(*large) > 3 * peak_bytes(*small)
    one, four = (parts(TD3BC(hidden=(32, 32)), data, seeds=s) for s in ((0,), (0, 1, 2, 3)))
    assert 3.5 < peak_bytes(*four) / peak_bytes(*one) < 4.5
    state = sum(x.nbytes for x in tree_leaves(large[1].state))
    assert peak_bytes(*large) > 1.5 * state


def test_a_program_refers_to_what_it_closes_over(data):
    program = Program(lambda x: data.obs[x].sum(0), torch.tensor([1, 2]))
    constants = [
        getattr(program._run, n.target) for n in program._run.graph.nodes if n.op == "get_attr"
    ]
    assert any(c.data_ptr() == data.obs.data_ptr() for c in constants)
