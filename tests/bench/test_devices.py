"""Forecasts for a GPU that is not here: what they count, how they scale, and what corrects them."""

import csv
import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.records import episodes, provenance

from offbench.bench import devices
from offbench.bench import forecast as forecasts
from offbench.bench.devices import CARDS, COMPILE_S, Work, card, card_of, work_of
from offbench.bench.forecast import SETUP_S, forecast
from offbench.bench.plan import plan
from offbench.bench.preflight import build
from offbench.bench.stacks import pack
from offbench.cli import main
from offbench.data.pipeline import make_pipeline
from offbench.errors import UserError
from offbench.results.store import Store
from offbench.speed.contenders import SPEC, random_data, sized_method, usual_view
from offbench.speed.cost import cost
from offbench.tasks.loading import load_data
from offbench.training.step import advance, initial_carry, make_step

HOPPER = "offbench/hopper/medium-replay-v0"
H100 = card("H100")


def cell(method: str = "bc", *overrides: str):
    what = [f"method={method}", "eval.episodes=4", "eval.monitor_at=[]", "method.hidden=[16]"]
    where = [] if any(word.startswith("task=") for word in overrides) else [f"task={HOPPER}"]
    return plan([*what, *where, *overrides], bench=False).cells[0]


@pytest.fixture(autouse=True)
def instant_episodes(monkeypatch, tmp_path):
    monkeypatch.setattr(forecasts, "_step_rate", lambda cell: float("inf"))
    # the table changes with the code that is counted
    monkeypatch.setattr(devices, "LAUNCHES", tmp_path / "launches.csv")
    monkeypatch.setattr(devices, "_known", {})


def record(store: Store, done, **facts) -> None:
    own = provenance(entry=done.entry, pack=len(done.seeds), **facts)
    for run in done.runs():
        store.append(run, pd.DataFrame(episodes(4, update=done.n_updates)), own)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("cpu (x86_64)", None),
        ("NVIDIA GeForce GTX 1080 Ti", None),
    ],
)
def test_a_card_is_known_by_the_name_that_its_driver_gives(device, name):
    found = card_of(device)
    assert (found and found.name) == name


def test_a_card_is_written_as_users_write_it():
    assert card("rtx4090") == card("RTX 4090") and {card(c.name) for c in CARDS} == set(CARDS)
    with pytest.raises(UserError, match=r"unknown GPU 'H10'.*H100"):
        card("H10")


MEASURED = Path(__file__).parents[2] / "results" / "gpu" / "h200" / "speed.csv"


@pytest.mark.parametrize(("method", "launches"), [("td3_bc", 28.5), ("iql", 31.9)])
def test_the_estimate_for_an_h200_is_near_what_one_took(method, launches):
    """Rates of 4 to 64 seeds, float32 and TF32, between which there is a factor of nine for a step.

    `launches`: of a minibatch, in the table of the commit that was measured.
    """
    work = work_of(cell(method, "method.hidden=[256,256]", "batch_size=256"))
    work = work._replace(launches=work.minibatches * launches)
    with open(MEASURED, encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == method]
    ratios = [
        work.minibatches
        / float(r["updates_per_s"])
        / card("H200").step_s(work, int(r["seeds"]), r["precision"])
        for r in rows
        if r["backend"] == "cudagraph"
    ]
    assert len(ratios) == 6 and 0.75 < min(ratios) and max(ratios) < 1.35


@pytest.mark.parametrize("method", ["acsac", "fql"])
def test_what_one_operator_of_a_cpu_computes_is_counted(method):
    """The table's work is counted in the program for a GPU, of observations 17 and actions 6."""
    needs = sized_method(method, (256, 256)).needs
    data = random_data(torch.device("cpu"), 5)
    pipeline = make_pipeline(data, batch_size=256, view=usual_view(needs), needs=needs)
    made = sized_method(method, (256, 256))
    step, carry = make_step(made, pipeline), initial_carry(made, pipeline.spec(SPEC), [0])
    _, flops, _ = devices._tally(lambda: advance(step, carry.seed(0)))
    assert flops == cost(step, carry).flops
    with open(MEASURED.parents[2] / "launches.csv", encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == method)
    assert flops / 1e9 == pytest.approx(float(row["gflop"]) / int(row["seeds"]), rel=0.05)


@pytest.mark.parametrize("method", ["bc", "td3_bc"])
def test_the_arithmetic_is_that_of_the_traced_program(method):
    wanted = cell(method)
    data, spec = load_data(wanted.task, defects="ignore")
    made, pipeline = build(wanted, data, spec)
    traced = cost(make_step(made, pipeline), initial_carry(made, pipeline.spec(spec), [0]))
    work = work_of(wanted)
    assert work.flops == traced.flops
    assert work.launches == devices.KERNELS_PER_PRODUCT * sum(traced.products.values())
    assert 0 < work.bytes < traced.bytes
    assert work.minibatches == (2 if method == "td3_bc" else 1)


def test_launches_are_those_of_the_table_where_it_has_the_method(tmp_path):
    lines = ["method,hidden,per_minibatch", "bc,256x256,24.5", "td3_bc,256x256,52.0"]
    (tmp_path / "launches.csv").write_text("\n".join(lines))
    assert work_of(cell("td3_bc", "method.hidden=[16,16]")).launches == 2 * 52
    assert work_of(cell("bc", "method.hidden=[16,8]")).launches == 24.5
    # another number of layers, another method
    for wanted in (cell("bc"), cell("iql", "method.hidden=[16,16]")):
        assert work_of(wanted).launches not in (24.5, 52.0)


def test_a_step_is_launches_and_the_arithmetic_of_every_seed():
    work, gpu = Work(launches=40, flops=1e9, bytes=1e6, minibatches=1), card("A100")
    one, two, three = (gpu.step_s(work, n, "float32") for n in (1, 2, 3))
    assert two - one == pytest.approx(three - two)
    assert one - (two - one) == pytest.approx(40 * devices.LAUNCH_S)
    assert gpu.step_s(work, 8, "tf32") < gpu.step_s(work, 8, "float32")


def test_the_time_of_training_follows_the_updates(tmp_path):
    costs = [
        forecast(pack([cell("bc", f"n_updates={n}", "seeds=[0,1]")]), Store(tmp_path), gpu=H100)[0]
        for n in (1000, 2000, 3000)
    ]
    a, b, c = (one.seconds for one in costs)
    assert c - b == pytest.approx(b - a) and b > a
    assert a - (b - a) == pytest.approx(SETUP_S + COMPILE_S)
    assert {one.basis for one in costs} == {"launches and arithmetic"}


def test_a_program_is_compiled_once(tmp_path):
    wanted = [cell("bc", f"seeds=[{s}]", "n_updates=1000") for s in (0, 1)]
    first, second = forecast([pack([c])[0] for c in wanted], Store(tmp_path), gpu=H100)
    assert first.seconds - second.seconds == pytest.approx(COMPILE_S)


def test_earlier_runs_of_other_methods_on_such_a_card_correct_it(tmp_path):
    store, wanted = Store(tmp_path), cell("td3_bc", "n_updates=1000", "seeds=[0,1]")
    (plain,) = forecast(pack([wanted]), store, gpu=H100)
    done = cell("bc", "n_updates=1000", "seeds=[0,1]")
    estimated = 1000 * H100.step_s(work_of(done), 2, "float32")
    # of other cards, and of a CPU, they say nothing
    record(store, done, device="NVIDIA A100-SXM4-80GB", wall_s=99.0, train_s=99.0)
    assert forecast(pack([wanted]), store, gpu=H100) == [plain]
    other = cell("bc", "n_updates=1000", "seeds=[2,3]")
    record(store, other, device="NVIDIA H100 80GB HBM3", wall_s=9.0, train_s=3 * estimated)
    # the seconds of a source are no updates
    for n in (1000, 2000, 3000):
        mixed = cell("td3_bc", "synthetic=pgd", f"n_updates={n}", "seeds=[2,3]")
        record(store, mixed, device="NVIDIA H100 80GB HBM3", wall_s=9e5, train_s=9e5)
    (corrected,) = forecast(pack([wanted]), store, gpu=H100)
    fixed = SETUP_S + COMPILE_S
    assert corrected.seconds - fixed == pytest.approx(3 * (plain.seconds - fixed))
    assert corrected.basis == "launches and arithmetic x 3, as earlier runs"


def test_records_of_the_same_cell_count_on_their_own_device_only(tmp_path, monkeypatch):
    monkeypatch.setattr(forecasts, "_update_rate", lambda pack: 1000.0)
    store, done = Store(tmp_path), cell("bc", "n_updates=1000", "seeds=[0,1]")
    record(store, done, device="NVIDIA H100 80GB HBM3", wall_s=50.0, train_s=20.0)
    again = pack([dataclasses.replace(done, seeds=(5, 6))])
    assert forecast(again, store, gpu=H100)[0] == forecasts.Cost(50.0, "records", 0.0)
    assert forecast(again, store)[0].basis == "probe"
    assert forecast(again, store, gpu=card("A100"))[0].basis == "launches and arithmetic"


def test_a_plan_for_a_gpu_says_what_it_is(tmp_path, capsys):
    line = ["plan", "method=bc", "n_updates=1000", "seeds=[0,1]", f"results={tmp_path / 'r'}"]
    assert main([*line, f"task={HOPPER}", "device=cuda", "--on", "h100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"2 runs in 1 stack, about \d+ (s|min) on one H100", said), said
    assert "estimated from launches and arithmetic for H100, not measured" in said
    assert main([*line, f"task={HOPPER}", "--on", "H1000"]) == 2
    assert "unknown GPU 'H1000': did you mean 'H100'" in capsys.readouterr().err


def test_data_that_are_not_here_are_replaced_by_the_shape_of_the_environment(tmp_path, capsys):
    wanted = cell("bc", "task=minari/mujoco/hopper/medium-v0")
    data, spec = devices.shape_of(wanted)
    assert wanted.task.sha256 is None and (spec.obs_dim, spec.action_dim) == (11, 3)
    assert data.obs.shape[1] == 11 and work_of(wanted).flops > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_gpu_that_is_asked_for_and_not_here_names_the_option(capsys, tmp_path):
    line = ["plan", "method=bc", f"task={HOPPER}", "device=cuda", f"results={tmp_path / 'r'}"]
    assert main(line) == 2
    assert "offbench plan --on H100" in capsys.readouterr().err
