"""Forecasts of stacks: time from records and probes, and memory, counted before anything is made."""

import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from support.records import episodes, provenance

from offbench.bench import forecast as forecasts
from offbench.bench import memory, probes
from offbench.bench.devices import COMPILE_S, card, shape_of
from offbench.bench.forecast import SETUP_S, forecast, makespan
from offbench.bench.memory import _group_bytes, run_bytes, stack_limit
from offbench.bench.plan import plan
from offbench.bench.preflight import build
from offbench.bench.settings import Settings
from offbench.bench.stacks import pack, whole_stacks
from offbench.cli import main
from offbench.errors import UserError
from offbench.ope import decisions
from offbench.results.store import Store
from offbench.tasks import loading
from offbench.tasks.loading import kept_in_memory, load_data
from offbench.training.engine import peak_bytes
from offbench.training.step import initial_carry, make_step


def cell(*overrides: str):
    what = ["method=bc", "eval.episodes=10"]
    if not any(word.startswith("task=") for word in overrides):
        what.append("task=offbench/hopper/medium-replay-v0")
    return plan([*what, "n_updates=100", *overrides], bench=False).cells[0]


def test_monitor_episodes_cost_what_test_episodes_did(tmp_path):
    store, done = Store(tmp_path), cell("eval.monitor_at=[]", "seeds=[0,1]")
    facts = provenance(entry=done.entry, pack=2, wall_s=SETUP_S + 50, train_s=30)
    for run in done.runs():
        store.append(run, pd.DataFrame(episodes(10, update=100)), facts)
    plain, watched = (
        cell("seeds=[5,6,7,8]", m, "eval.monitor_episodes=3")
        for m in ("eval.monitor_at=[]", "eval.monitor_at=[0.5,0.8]")
    )
    several = cell("seeds=[5,6,7,8]", "eval.monitor_at=[0.5,0.8]", "eval.monitor_episodes=[1,4]")
    costs = forecast(pack([plain, watched, several]), store)
    # 20 s for 10 episodes of two seeds are 4 s for one of four
    assert [cost.monitor for cost in costs] == [0, 6 * 4, 5 * 4]
    assert [cost.seconds - 2 * (SETUP_S + 50) for cost in costs] == [0, 24, 20]
    assert {cost.basis for cost in costs} == {"records"}


def sweep(n: int, *more: str):
    values = ",".join(f"{1e-4 * (i + 1):.6f}" for i in range(n))
    what = ["method=bc", "task=offbench/hopper/medium-replay-v0", "n_updates=100", "seeds=[0]"]
    return plan([*what, f"method.lr=[{values}]", *more], bench=False).cells


def test_a_sweep_is_one_stack_and_one_program_is_probed_at_two_sizes(tmp_path, monkeypatch):
    probed = []

    def rate(stack):
        probed.append((stack.size, len(stack.values)))
        # updates per second: 10 ms and 1 ms for each run
        return 1 / (0.010 + 0.001 * stack.size)

    monkeypatch.setattr(forecasts, "_update_rate", rate)
    monkeypatch.setattr(forecasts, "_step_rate", lambda cell: float("inf"))
    (stack,) = pack(sweep(500))
    (cost,) = forecast([stack], Store(tmp_path))
    assert stack.size == 500 and probed == [(8, 8), (32, 32)]
    assert cost.seconds == pytest.approx(SETUP_S + 100 * 0.510)
    assert cost.basis == "probes of 8 and 32"


def test_a_real_probe_of_a_sweep_has_the_values_of_its_members(tmp_path):
    (cost,) = forecast(pack(sweep(3, "method.hidden=[8]")), Store(tmp_path))
    assert cost.basis == "probe" and cost.seconds > SETUP_S


def test_the_longest_stacks_go_first():
    assert makespan([1, 2, 3, 6], 2) == 6 and makespan([1, 1, 4], 2) == 4 and makespan([], 3) == 0


def test_no_cell_is_looked_at_twice_in_packing(tmp_path, monkeypatch):
    """No sum over the cells before each; no run is specified for an empty store."""
    one = cell("seeds=[0,1]")
    cells = [one.varied(hparams=one.hparams.changed({"lr": 1e-6 * i})) for i in range(1, 501)]
    asked = []
    real = type(one).__getattribute__

    def counted(self, name):
        asked.extend([name] if name == "seeds" else [])
        return real(self, name)

    monkeypatch.setattr(type(one), "__getattribute__", counted)
    limited = pack(cells, max_stack=100)
    assert [p.size for p in limited] == [100] * 10
    assert whole_stacks(limited, cells, Store(tmp_path)) == limited
    # 500 cells, a few looks at each
    assert len(asked) < 20 * len(cells)


# --- memory


@pytest.mark.parametrize("method", ["bc", "td3_bc"])
def test_memory_is_counted_on_tensors_without_any(method):
    wanted = cell(f"method={method}", "seeds=[0]")
    data, spec = load_data(wanted.task, defects="ignore")
    made, pipeline = build(wanted, data, spec)
    carry = initial_carry(made, pipeline.spec(spec), [0])
    assert run_bytes(wanted) == peak_bytes(make_step(made, pipeline), carry)
    assert run_bytes(wanted, bound=True) > run_bytes(wanted)


@pytest.mark.parametrize("hidden", ["[100000000,100000000]", "[1000000000000,1000000000000]"])
def test_a_run_that_no_machine_holds_is_refused_in_one_line(hidden):
    wanted = cell("seeds=[0]", f"method.hidden={hidden}")
    with pytest.raises(UserError, match=r"bc.*one run takes .* there are .* method.hidden"):
        stack_limit([wanted], Settings(device="cpu"))


def test_a_stack_that_fits_only_when_smaller_is_split(monkeypatch):
    cells = sweep(64, "method.hidden=[512,512]")
    size = run_bytes(cells[0])
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(10.5 * size / 0.9))
    settings = Settings(device="cpu", jobs=1)
    sizes = [p.size for p in pack(cells, max_stack=stack_limit(cells, settings))]
    assert sizes == [10] * 6 + [4]
    limited = stack_limit(cells, replace(settings, max_stack=7))
    assert {p.size for p in pack(cells, max_stack=limited)} == {7, 1}


@pytest.mark.parametrize("task", ["offbench/hopper/medium-replay-v0", "d4rl/hopper-medium-v2"])
def test_stacks_for_a_card_that_is_not_here_are_as_large_as_its_memory(task):
    """Of which runs have 80 % and share it with the data; those of D4RL are not here."""
    wanted = cell(f"task={task}", "method.hidden=[512,512]", "seeds=[0,1,2,3,4,5,6,7,8,9]")
    settings, size = Settings(device="cpu", jobs=2), run_bytes(wanted)
    held = sum(x.nbytes for x in shape_of(wanted)[0])
    small = card("T4")._replace(memory=(4.5 * size + held) / 0.8)
    sizes = [p.size for p in pack([wanted], max_stack=stack_limit([wanted], settings, gpu=small))]
    assert sizes == [4, 4, 2]
    host = replace(settings, data="host")
    assert stack_limit([wanted], host, gpu=small._replace(memory=4.5 * size / 0.8))(wanted) == 4
    with pytest.raises(UserError, match=r"one run takes .* and there are .* for it on one T4;"):
        stack_limit([wanted], settings, gpu=small._replace(memory=size))


def test_data_are_read_once_and_a_program_is_counted_once(monkeypatch):
    """For all tasks with the same dimensions, and all questions about them."""
    read, counted = [], []
    for module, name, calls in (
        (loading.minari_files, "load", read),
        (memory, "_counted", counted),
    ):
        was = getattr(module, name)
        monkeypatch.setattr(module, name, Counter(was, calls))
    tasks = [f"task=offbench/halfcheetah/{kind}-v0" for kind in ("medium-replay", "expert5")]
    cells = [cell(task) for task in tasks] * 3
    known: dict = {}
    with kept_in_memory():
        sizes = {run_bytes(c, known=known) for c in cells}
        stack_limit(cells, Settings(device="cpu"), known)
    # the size, and its bound
    assert (len(sizes), len(counted), len(read)) == (1, 2, 2)
    load_data(cells[0].task, defects="ignore")
    assert len(read) == 3


class Counter:
    """A function that notes its calls."""

    def __init__(self, function, calls: list):
        self.function, self.calls = function, calls

    def __call__(self, *args, **options):
        self.calls.append(args)
        return self.function(*args, **options)


class Memory:
    def __init__(self, available: float):
        self.available = self.total = available


def test_what_is_left_to_a_control_group_is_found_in_all_above_it(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    for folder, most, used in (("", "max", 10), ("outer", "1000", 900), ("outer/inner", "max", 5)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{most}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    assert _group_bytes(tmp_path, own) == 150
    assert _group_bytes(tmp_path / "nowhere", own) == float("inf")


# what an allocation that fails in training becomes, in a process with little address space
LIMITED = """
import resource
import torch
from offbench.bench.failures import failure_of
from offbench.training.step import initial_carry
from offbench.testing.contract import fake_data
from offbench.methods.bc import BC
from offbench.types import Spec

torch.set_num_threads(1)
import psutil
limit = psutil.Process().memory_info().vms + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    initial_carry(BC(hidden=(8192, 8192)), Spec(obs_dim=11, action_dim=3, gamma=0.99, max_episode_steps=9), [0, 1])
except Exception as error:
    print(*failure_of(error))
"""


def test_an_allocation_that_fails_under_a_limit_is_out_of_memory():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("error out of memory: "), done.stdout + done.stderr


# --- fitted Q evaluation

FQE = ("eval.by=fqe", "eval.fqe_hidden=[8]", "seeds=[0,1]")


def fqe_cell(*overrides: str):
    what = ["method=bc", "task=offbench/hopper/medium-replay-v0", "n_updates=100"]
    return plan([*what, *FQE, *overrides], bench=False).cells[0]


def test_fitted_q_evaluation_is_probed_for_the_whole_stack_and_added(tmp_path, monkeypatch):
    stacks = []

    def step_s(engine, steps):
        stacks.append((len(engine.carry.key), engine.carry.state.policy.tolist()))
        return 0.002

    monkeypatch.setattr(forecasts, "_update_rate", lambda stack: 1000)
    monkeypatch.setattr(probes, "step_s", step_s)
    monkeypatch.setattr(probes, "_decided", with_seconds(probes._decided, 7.0))
    short, long = (fqe_cell(f"eval.fqe_updates={n}") for n in (1000, 3000))
    costs = forecast(pack([short, long, fqe_cell("view=chunk", "view.h=3")]), Store(tmp_path))
    assert [cost.fitted for cost in costs] == [7 + 2, 7 + 6, 7 + 20]
    assert [c.seconds - c.fitted for c in costs] == pytest.approx(3 * [SETUP_S + 0.1])
    assert {cost.episodes for cost in costs} == {0.0} and stacks == 3 * [(2, [0, 1])]


@pytest.mark.parametrize("more, draws", [((), 1), (("view=chunk", "view.h=3"), 1)])
def test_decisions_of_a_probe_are_like_those_of_the_policy(more, draws):
    wanted = fqe_cell(*more)
    data, spec = load_data(wanted.task, defects="ignore")
    method, pipeline = build(wanted, data, spec)
    (stack,) = pack([wanted])
    state = probes._untrained(method, pipeline.spec(spec), stack)
    found, seconds = probes._decided((method, pipeline, spec), state, [0, 1], data)
    steps = 3 if more else 1
    assert found.steps == steps and found.length is None and seconds > 0
    assert found.action.shape == (2, draws, len(data.obs), steps * data.action.shape[1])
    # one row stands for all of them, without their memory
    assert found.action.untyped_storage().nbytes() <= 4096 * 2 * steps * data.action.shape[1] * 4


def test_deciding_takes_as_long_as_its_rows_and_draws(monkeypatch):
    wanted = fqe_cell()
    data, spec = load_data(wanted.task, defects="ignore")
    asked, now = [], iter(range(100))

    def decide(policy, state, part, *, keys, steps):
        asked.append(len(part.obs))
        return decisions.Decisions(torch.zeros(2, 4, len(part.obs), 3), None)

    monkeypatch.setattr(decisions, "decide", decide)
    monkeypatch.setattr(probes.time, "perf_counter", lambda: float(next(now)))
    trained = (*build(wanted, data, spec), spec)
    _, seconds = probes._decided(trained, None, [0, 1], data)
    # a second for six draws at 64 rows is slow, and no more rows are asked about
    assert asked == [64, 64]
    assert seconds == pytest.approx((2 * 4096 + 4 * len(data.obs)) / 64 / 6)
    monkeypatch.setattr(probes, "PROBE_DECISIONS_S", 2)
    _, seconds = probes._decided(trained, None, [0, 1], data)
    assert asked[2:] == [64, 64, 4096, 4096]
    assert seconds == pytest.approx((2 * 4096 + 4 * len(data.obs)) / 4096 / 6)


def test_evaluations_are_scaled_from_records_that_were_evaluated_so(tmp_path, monkeypatch):
    monkeypatch.setattr(probes.OfFqe, "of", lambda self, pack, report: 0.5)
    monkeypatch.setattr(forecasts, "_step_rate", lambda cell: float("inf"))
    store, done = Store(tmp_path), fqe_cell("eval.fqe_updates=1000")
    facts = provenance(entry=done.entry, pack=2, wall_s=SETUP_S + 50, train_s=30)
    for run in done.runs():
        store.append(run, pd.DataFrame(episodes(0, update=100)), facts)
    # twice the updates and runs
    longer = fqe_cell("eval.fqe_updates=2000", "n_updates=300", "seeds=[5,6,7,8]")
    wider = fqe_cell("eval.fqe_updates=2000", "eval.fqe_hidden=[16]", "seeds=[5,6]")
    played = cell("seeds=[5,6]", "method.hidden=[8]", "eval.monitor_at=[]")
    costs = [forecast(pack([c]), store)[0] for c in (longer, wider, played)]
    assert costs[0].fitted == 2 * 2 * 20 and costs[0].basis == "records"
    assert costs[0].seconds == pytest.approx(2 * 3 * (SETUP_S + 30) + 80)
    assert [cost.basis for cost in costs[1:]] == ["probe", "probe"]
    assert costs[1].fitted == 0.5


@pytest.mark.parametrize("on", [[], ["--on", "H100"]])
def test_a_plan_says_the_share_of_fitted_q_evaluation(on, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecasts, "_update_rate", lambda stack: 1000)
    share = lambda self, pack, report: (SETUP_S + 0.1) if self.gpu is None else 1e6
    monkeypatch.setattr(probes.OfFqe, "of", share)
    task = "task=offbench/hopper/medium-replay-v0"
    where = [] if on else ["device=cpu"]
    what = ["method=bc", task, "n_updates=100", *FQE, *where, f"results={tmp_path}"]
    assert main(["plan", *what, *on]) == 0
    said = " ".join(capsys.readouterr().out.split())
    if on:
        assert "on one H100; fitted Q evaluation is 100 % of it" in said
    else:
        words = "fitted Q evaluation of what was trained: 50 % of the time (eval.fqe_updates)"
        assert words in said


def test_on_a_gpu_the_updates_of_q_are_counted_and_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "_decided", with_seconds(probes._decided, 7.0))
    gpu = card("H100")
    costs = [
        forecast(pack([fqe_cell(f"eval.fqe_updates={n}"), more]), Store(tmp_path), gpu=gpu)
        for n, more in ((1000, fqe_cell("eval.fqe_updates=2000")), (1, fqe_cell("view=chunk")))
    ]
    short, long = (cost.fitted for cost in costs[0])
    assert short - long == pytest.approx(COMPILE_S - (long - 7.0) / 2)
    assert 0 < long - 7.0 < 2000 * 100e-6
    # another width of actions is another program
    assert min(cost.fitted for cost in costs[1]) > COMPILE_S


def with_seconds(decided, seconds: float):
    return lambda *given: (decided(*given)[0], seconds)


def test_what_cannot_be_evaluated_so_is_no_forecast_but_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(forecasts, "_update_rate", lambda stack: 1000)
    wanted = fqe_cell("method=dt", "method.width=8")
    with pytest.raises(UserError, match="decides by more than one observation"):
        forecast(pack([wanted]), Store(tmp_path))
