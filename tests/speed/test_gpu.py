"""What holds on a CUDA device. Every test here skips where there is none; `make gpu-check` runs them."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.sampling import return_weights
from offbench.data.views import Chunk, NStep
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.nn import optim
from offbench.speed.reference_loops import PLAIN, captured_loop, unstacked_loop
from offbench.testing.contract import SPEC, fake_batch, view_for
from offbench.training.engine import BLOCK, Engine
from offbench.training.gate import TOLERANCE, Judge, deviation, make_engine
from offbench.training.step import Carry, initial_carry, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Adam and inductor give advice as warnings: capturable outside a graph, TF32 that is not used
    pytest.mark.filterwarnings("default"),
]
HIDDEN = (16, 16)
LONG = 2 * BLOCK + 5  # two replays of a captured engine, and steps that are not captured


def parts(method, data, seeds=(0, 1, 2), device="cuda", **options):
    """The step and the first carry, made on the CPU and moved."""
    needs = getattr(method, "needs", ())
    options = {"view": view_for(needs)} | options
    pipeline = make_pipeline(data, batch_size=16, needs=needs, **options)
    step = make_step(method, pipeline.to(device))
    return step, initial_carry(method, pipeline.spec(SPEC), seeds, device)


def run(step, carry, n, backend):
    engine = Engine(step, carry, backend=backend)
    metrics = engine.run(n)
    return engine.carry, metrics


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def on_cpu(tree):
    return tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, tree)


# --- the same numbers


@pytest.mark.parametrize("backend", ["compile", "cudagraph"])
def test_compiled_and_captured_runs_follow_the_eager_one_from_the_first_update(
    shipped_method, backend, data
):
    """A warm-up that trained, or a graph that read old memory, would show at once."""
    step, carry = parts(shipped_method, data)
    fast, eager = Engine(step, carry, backend=backend), Engine(step, carry, backend="eager")
    judge = Judge(step, carry)
    for n in (1, 2, BLOCK, LONG):
        for engine in (fast, eager):
            engine.load(carry)
        metrics, want = fast.run(n), eager.run(n)
        off = judge.deviation(fast.carry.state, n, TOLERANCE)
        assert off <= TOLERANCE, f"{off:.2g} after {n} steps"
        assert equal(fast.carry.key, carry.key) and int(fast.carry.step) == n
        for name in want:
            assert torch.allclose(metrics[name], want[name], rtol=1e-2, atol=1e-3), name


def test_the_eager_program_on_the_device_follows_the_one_on_the_processor(shipped_method, data):
    cpu, first = parts(shipped_method, data, device="cpu")
    step, carry = parts(shipped_method, data)
    got = run(step, carry, 20, "eager")[0]
    assert Judge(cpu, first).deviation(on_cpu(got.state), 20, TOLERANCE) <= TOLERANCE


def test_weighted_rows_and_other_views_are_captured_too(data):
    method = TD3BC(hidden=HIDDEN)
    for options in ({"view": Chunk(3)}, {"view": NStep(3), "weights": [return_weights]}):
        step, carry = parts(method, data, **options)
        fast = run(step, carry, LONG, "cudagraph")[0]
        assert Judge(step, carry).deviation(fast.state, LONG, TOLERANCE) <= TOLERANCE


@pytest.mark.parametrize("backend", ["eager", "compile", "cudagraph"])
def test_a_run_repeats_bit_for_bit(shipped_method, backend, data):
    step, carry = parts(shipped_method, data)
    assert equal(run(step, carry, LONG, backend), run(step, carry, LONG, backend))


@pytest.mark.parametrize("backend", ["eager", "cudagraph"])
@pytest.mark.parametrize("cut", [BLOCK, 2 * BLOCK])
def test_a_run_resumes_bit_for_bit_at_a_whole_block(backend, cut, data):
    step, carry = parts(TD3BC(hidden=HIDDEN), data)
    half, _ = run(step, carry, cut, backend)
    straight, _ = run(step, carry, cut + 2 * BLOCK, backend)
    assert equal(run(step, half, 2 * BLOCK, backend)[0], straight)


def test_a_captured_run_resumes_anywhere(data):
    """Steps beside the graph are the compiled program's, so the same kernels in another order of launch."""
    step, carry = parts(IQL(hidden=HIDDEN), data)
    half, _ = run(step, carry, 20, "cudagraph")
    straight, _ = run(step, carry, 20 + LONG, "cudagraph")
    resumed, _ = run(step, half, LONG, "cudagraph")
    assert deviation(resumed.state, straight.state, carry.state) <= TOLERANCE


def test_a_captured_engine_can_be_loaded_again(data):
    step, carry = parts(TD3BC(hidden=HIDDEN), data)
    engine = Engine(step, carry, backend="cudagraph")
    engine.run(LONG)
    want = engine.carry
    engine.load(carry)
    assert equal(engine.carry, carry)
    engine.run(LONG)
    assert equal(engine.carry, want)


def test_metrics_and_carries_stay_as_they_were_while_the_engine_runs_on(data):
    """A captured engine writes into the same memory at every replay; what it handed out must not change."""
    step, carry = parts(IQL(hidden=HIDDEN), data)
    engine = Engine(step, carry, backend="cudagraph")
    metrics = engine.run(BLOCK)
    handed = (metrics, engine.carry)
    kept = tree_map(torch.clone, handed)
    engine.run(2 * BLOCK)
    assert equal(handed, kept)


def test_auto_chooses_a_captured_engine_that_passed_the_gate(data):
    step, carry = parts(IQL(hidden=HIDDEN), data)
    engine, chosen = make_engine(step, carry, backend="auto", n_steps=10**6)
    assert engine.backend == "cudagraph" and chosen == ("cudagraph", ())
    assert equal(engine.carry, carry)  # the gate has not trained it


# --- no waiting


@pytest.mark.parametrize("backend", ["eager", "compile", "cudagraph"])
def test_the_loop_never_waits_for_the_device(shipped_method, backend, data):
    step, carry = parts(shipped_method, data, weights=[return_weights])
    engine = Engine(step, carry, backend=backend)
    engine.run(LONG)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device="cuda").item()
        engine.run(LONG)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- the same draws and rows


def test_draws_on_the_device_are_those_on_the_processor():
    """Keys, bits and row numbers exactly; uniforms too, as they are made by exact operations."""
    for seed in range(3):
        cpu, cuda = rng.key(seed), rng.key(seed, "cuda")
        assert equal(cuda.cpu(), cpu)
        assert equal(rng.split(cuda, 5).cpu(), rng.split(cpu, 5))
        assert equal(rng.fold(cuda, 12345).cpu(), rng.fold(cpu, 12345))
        assert equal(rng.bits(cuda, (1000, 7)).cpu(), rng.bits(cpu, (1000, 7)))
        assert equal(
            rng.randint(cuda, (10**6,), 999_983).cpu(), rng.randint(cpu, (10**6,), 999_983)
        )
        for dtype in (torch.float32, torch.float64):
            assert equal(
                rng.uniform(cuda, (10**5,), dtype).cpu(), rng.uniform(cpu, (10**5,), dtype)
            )
        normal = rng.normal(cuda, (10**5,)).cpu(), rng.normal(cpu, (10**5,))
        assert torch.allclose(*normal, rtol=1e-5, atol=1e-6)  # erfinv is each library's own


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": [return_weights]}, {"view": NStep(3)}, {"view": Chunk(4)}],
    ids=["uniform", "rw", "nstep", "chunk"],
)
def test_a_pipeline_moved_to_the_device_gives_the_same_rows(options, data):
    pipeline = make_pipeline(data, batch_size=4096, transforms=["obs_norm"], **options)
    here, there = pipeline.sample(rng.key(3)), pipeline.to("cuda").sample(rng.key(3, "cuda"))
    assert equal(there.obs.cpu(), here.obs) and equal(there.action.cpu(), here.action)
    assert equal(there.next_obs.cpu(), here.next_obs)
    assert torch.allclose(there.reward.cpu(), here.reward, atol=1e-6)  # summed over n steps
    assert torch.allclose(there.discount.cpu(), here.discount, atol=1e-7)


def test_the_first_carry_is_the_same_on_both(shipped_method):
    here, there = (initial_carry(shipped_method, SPEC, [0, 5], d) for d in ("cpu", "cuda"))
    assert equal(on_cpu(there), here)


@pytest.mark.parametrize("backend", ["eager", "compile", "cudagraph"])
def test_data_left_on_the_host_give_the_same_run(backend, data):
    """Rows are drawn by the same keys, so the batches are the same bit for bit."""
    method, pipeline = TD3BC(hidden=HIDDEN), make_pipeline(data, batch_size=16)
    carry = initial_carry(method, SPEC, (0, 1, 2), "cuda")
    resident = make_step(method, pipeline.to("cuda"))
    streamed = make_step(method, pipeline, device="cuda")
    assert streamed.host_data and not resident.host_data
    a, b = (run(step, carry, LONG, backend)[0] for step in (resident, streamed))
    assert deviation(b.state, a.state, carry.state) <= TOLERANCE


def test_batches_gathered_on_the_host_are_those_of_the_device(data):
    pipeline = make_pipeline(data, batch_size=16)
    carry = initial_carry(TD3BC(hidden=HIDDEN), SPEC, (0, 1, 2), "cuda")

    def watching(step):
        """The step with its input for its metrics."""

        def update(state, given):
            batch, key = given
            return state, {"obs": batch.obs, "next_obs": batch.next_obs, "key": key}

        return step._replace(update=update)

    first = Carry({"x": torch.zeros(3, device="cuda")}, carry.key, carry.step)
    resident = watching(make_step(TD3BC(hidden=HIDDEN), pipeline.to("cuda")))
    streamed = watching(make_step(TD3BC(hidden=HIDDEN), pipeline, device="cuda"))
    engines = [Engine(step, first, backend="vmap") for step in (resident, streamed)]
    for _ in range(BLOCK + 3):
        assert equal(*(engine.run(1) for engine in engines))


# --- the optimiser and the yardsticks


@pytest.mark.parametrize("seeds", [None, 3])
def test_adam_on_the_device_is_torchs(seeds):
    """20 steps beside torch.optim.Adam, alone and stacked."""
    adam = optim.Adam(1e-2)
    shapes = [(7, 5), (1, 5), ()]
    keys = rng.split(rng.key(0), 3)
    lead = () if seeds is None else (seeds,)
    start = [rng.normal(k, (*lead, *s)).cuda() for k, s in zip(keys, shapes, strict=True)]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    reference = torch.optim.Adam(theirs, lr=1e-2, fused=True)
    init, step = adam.init, adam.step
    if seeds is not None:
        init, step = torch.func.vmap(init), torch.func.vmap(step)
    ours, state = start, init(start)
    for t in range(20):
        grads = [rng.normal(rng.fold(k, t), tuple(p.shape)).cuda() for k, p in zip(keys, start)]
        ours, state = step(grads, state, ours)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        reference.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", PLAIN)
def test_the_captured_yardsticks_run(name, data):
    method, plain = PLAIN[name][0](hidden=HIDDEN), PLAIN[name][1]
    captured_loop(plain, method, SPEC, data.to("cuda"), 16)(2 * BLOCK)
    unstacked_loop(method, SPEC, make_pipeline(data.to("cuda"), batch_size=16))(2 * BLOCK)


def test_the_modules_of_the_captured_yardstick_take_the_plain_steps():
    """The same weights and batches: without `.item()` nothing else changes."""
    for name, (cls, plain) in PLAIN.items():
        learners = []
        for captured in (False, True):
            torch.manual_seed(0)
            learners.append(
                plain(cls(hidden=HIDDEN), SPEC, torch.device("cuda"), captured=captured)
            )
        for i in range(4):
            batch = tree_map(
                lambda x: x.cuda() if isinstance(x, torch.Tensor) else x, fake_batch(SPEC, seed=i)
            )
            noise = () if name != "td3_bc" else (torch.zeros_like(batch.action),)
            a, b = (learner.update(batch, *noise) for learner in learners)
            assert all(abs(a[k] - b[k].item()) < 1e-4 * (1 + abs(a[k])) for k in a), name
