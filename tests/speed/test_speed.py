"""The speed table compares equals, its numbers add up, and the work it counts is the work that is done.

That the plain loops take the same steps as the methods, update after update, is test_methods.py.
"""

import csv
import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from support.ordinary import plain_update, start
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.errors import UserError
from offbench.speed import benchmark as speed
from offbench.speed import contenders, cost, table
from offbench.speed import reference_loops as plain
from offbench.speed.benchmark import CONTENDERS, main
from offbench.speed.contenders import (
    SPEC,
    YARDSTICKS,
    Cell,
    Contender,
    Entry,
    Peer,
    default_entries,
    product,
)
from offbench.speed.cost import best_seconds, copy_ceiling, matmul_ceiling, products_ceiling
from offbench.speed.reference_loops import PLAIN, unstacked_loop
from offbench.speed.table import Result
from offbench.testing.contract import fake_batch
from offbench.training.engine import BLOCK
from offbench.training.step import Draw, Step, initial_carry, make_step

SHAPE = ("hidden", "batch_size", "device", "episodes")
TINY = {"hidden": ((8,),), "batch_size": 8, "seconds": 0.02}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    monkeypatch.setattr(contenders, "N_EPISODES", 2)
    for name in ("matmul_ceiling", "copy_ceiling", "products_ceiling"):
        monkeypatch.setattr(speed, name, lambda *a, **k: 1e12)


def measure(methods=("bc",), *, entries=None, **options) -> Result:
    """The measured rows of some methods in cells of their own."""
    shape = {k: options.pop(k) for k in SHAPE if k in options}
    return speed.measure(contenders.cells(methods, **shape), entries, **options)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "N_EPISODES", 2)
        patch.setattr(
            cost, "best_seconds", lambda *a, **k: best_seconds(*a, seconds=0.002, rounds=2)
        )
        entries = [Entry("plain"), Entry("unstacked"), Entry("eager", 3)]
        return measure(["bc", "iql"], entries=entries, **TINY)


# --- the yardsticks


@pytest.mark.parametrize("name", CONTENDERS)
def test_both_contenders_compute_the_same_losses_on_the_same_batch(name):
    method = CONTENDERS[name][0](hidden=(64, 64))
    k = getattr(method, "minibatches", 1)
    state, learner = start(method, SPEC)
    batch = fake_batch(SPEC, size=256, minibatches=k, dtype=torch.float64)
    _, ours = method.update(state, batch, rng.key(3))
    theirs = plain_update(method, learner, batch, rng.key(3))
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[name].item() - theirs[name]) < 1e-12 for name in ours)


def test_the_plain_loop_is_the_usual_one():
    for method, learner_class in CONTENDERS.values():
        learner = learner_class(method(hidden=(8,)), SPEC, CPU)
        optimisers = [x for x in vars(learner).values() if isinstance(x, torch.optim.Optimizer)]
        assert optimisers and all(
            type(o) is torch.optim.Adam and o.defaults["fused"] and not o.defaults["capturable"]
            for o in optimisers
        )
        metrics = learner.update(fake_batch(SPEC))
        assert all(isinstance(x, float) for x in metrics.values())  # .item() every step


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_captured_loop_reads_no_value(name):
    method, learner_class = CONTENDERS[name]
    learner = learner_class(method(hidden=(8,)), SPEC, CPU, captured=True)
    learner.adam = None  # made by now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "item", lambda self: pytest.fail("read a value"))
        patch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("read a value"))
        patch.setattr(torch.optim.Adam, "step", lambda self: None)  # has a device of its own
        metrics = learner.update(fake_batch(SPEC))
    assert all(isinstance(x, torch.Tensor) and not x.requires_grad for x in metrics.values())


@pytest.mark.parametrize("name", PLAIN)
def test_the_unstacked_loop_takes_the_steps_of_a_stack_of_one(name, data64, monkeypatch):
    """In float64, across blocks, with the same draws."""
    method = PLAIN[name][0](hidden=(8, 8))
    pipeline = make_pipeline(data64, batch_size=8)
    spec = SPEC._replace(obs_dim=5, action_dim=2)
    first = initial_carry(method, spec, (0,))
    first = first._replace(state=_double(first.state))
    monkeypatch.setattr(plain, "initial_carry", lambda *a: first)
    ends = []
    update = method.update
    object.__setattr__(method, "update", lambda *a: _kept(update(*a), ends))
    step = make_step(method, pipeline)
    monkeypatch.setattr(plain, "Program", lambda fn, tree, **options: fn)
    advance = unstacked_loop(method, spec, pipeline)
    advance(BLOCK + 3)
    advance(2)
    alone = first.seed(0)
    for i in range(BLOCK + 5):
        given = step.input(step.draw(rng.fold(alone.key, i)))
        state, _ = step.update(alone.state, given)
        alone = alone._replace(state=state)
    theirs = _leaves(ends[BLOCK + 4])
    assert all(map(torch.equal, theirs, _leaves(alone.state)))


def _double(tree):
    return torch.utils._pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def _leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def _kept(result, ends):
    ends.append(result[0])
    return result


# --- the work


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "iql")) for n in CONTENDERS]
)
def test_the_operations_counted_are_those_torch_counts(name, data):
    method = CONTENDERS[name][0](hidden=(16, 16))
    step = make_step(method, make_pipeline(data, batch_size=8))
    spec = SPEC._replace(obs_dim=5, action_dim=2)
    one, three = (cost.cost(step, initial_carry(method, spec, range(n))) for n in (1, 3))
    carry = initial_carry(method, spec, range(3))
    given = step.input(vmap(step.draw)(rng.fold(carry.key, carry.step)))
    with FlopCounterMode(display=False) as counter:
        vmap(step.update)(carry.state, given)
    assert three.flops == counter.get_total_flops() == pytest.approx(3 * one.flops)
    assert sum(three.products.values()) >= 3 * len(method.hidden)
    assert three.bytes == pytest.approx(3 * one.bytes, rel=0.05)  # strides decide on copies
    assert one.bytes > 0


def test_bytes_are_operands_and_results_and_rows_taken_not_tables():
    table = torch.zeros(1000, 4)

    def update(state, given):
        rows = table[given.batch]  # reads 2 rows and their numbers, writes 2 rows
        return {"x": state["x"] + rows.sum(0)}, {}  # reads 2 rows; reads 2 vectors, writes 1

    draw = lambda key: Draw(torch.zeros(2, dtype=torch.int64), key)
    step = Step(draw, lambda rows: rows, update)
    carry = SimpleNamespace(
        state={"x": torch.zeros(1, 4)}, key=torch.zeros(1, dtype=torch.int64), step=torch.tensor(0)
    )
    work = cost.cost(step, carry)
    row, vector = 2 * 4 * 4, 4 * 4
    assert work.bytes == (2 * row + 2 * 8) + (row + vector) + 3 * vector
    assert work.flops == 0


def test_ceilings_are_rates_of_what_they_are_named_for():
    assert 1e8 < matmul_ceiling(CPU, n=64) < 1e14 and matmul_ceiling(CPU, "bf16", n=64) > 0
    assert 1e7 < copy_ceiling(CPU, nbytes=2**16) < 1e14
    assert 1e7 < products_ceiling({(2, 8, 16, 4): 3, (1, 8, 8, 8): 1}, CPU) < 1e14


def test_a_time_is_that_of_the_best_round():
    calls = []

    def run():
        calls.append(0)
        time.sleep(0.05 if len(calls) % 5 else 0.001)

    assert best_seconds(run, CPU, seconds=0.002, rounds=5) < 0.02


# --- the table


def test_there_is_a_row_for_every_method_backend_and_number_of_seeds(result):
    rows = {(r["method"], r["backend"], r["seeds"]) for r in result.rows}
    kinds = [("plain", 1), ("unstacked", 1), ("eager", 3)]
    assert rows == {(m, b, n) for m in ("bc", "iql") for b, n in kinds}
    assert len(result.rows) == len(rows) and {r["hidden"] for r in result.rows} == {"8"}
    assert all(list(r) == list(table.COLUMNS) for r in result.rows)


def test_rates_ratios_and_shares_agree(result):
    plain_rate = {
        r["method"]: r["seed_updates_per_s"] for r in result.rows if r["backend"] == "plain"
    }
    for r in result.rows:
        assert r["updates_per_s"] > 0 and r["build_s"] > 0 and r["first_s"] > 0
        assert r["seed_updates_per_s"] == pytest.approx(r["updates_per_s"] * r["seeds"])
        assert r["ratio"] == pytest.approx(r["seed_updates_per_s"] / plain_rate[r["method"]])
        assert 0 < r["of_matmul"] < 2 and 0 < r["of_products"] < 2 and 0 < r["of_copy"] < 5
        assert 0 < r["device_us"] < 20e6 / r["updates_per_s"]
        assert r["peak_mb"] is None  # of the device
    per_update = {
        (r["method"], r["backend"], r["seeds"]): r["flops_per_s"] / r["updates_per_s"]
        for r in result.rows
    }
    for method in plain_rate:
        one = per_update[method, "plain", 1]
        assert per_update[method, "eager", 3] == pytest.approx(3 * one)


def test_updates_are_minibatches(monkeypatch):
    """Where a step takes a tenth of a second, TD3+BC makes 20 updates a second, at two a step."""
    monkeypatch.setattr(Contender, "time", lambda self: self.n / 10)
    monkeypatch.setattr(contenders, "plain_loop", lambda *a: lambda n: None)
    rows = measure(["iql", "td3_bc"], entries=[Entry("plain")], hidden=((8,),), seconds=50.0).rows
    rates = {r["method"]: r["updates_per_s"] for r in rows}
    assert rates == pytest.approx({"iql": 10, "td3_bc": 20})


def test_contenders_take_turns_and_keep_their_best(monkeypatch):
    turns, times = [], iter(range(5, 100))

    def take(self):
        turns.append(self.entry.seeds)
        self.best = max(self.best, 1 / next(times))

    monkeypatch.setattr(Contender, "take_turn", take)
    rows = measure(["bc"], entries=product(["eager"], [1, 2]), **TINY).rows
    assert turns == [1, 2] * speed.ROUNDS
    assert [r["updates_per_s"] for r in rows] == pytest.approx([1 / 5, 1 / 6])


def test_without_a_plain_loop_there_is_no_ratio():
    result = measure(["bc"], entries=[Entry("eager")], **TINY)
    assert result.rows[0]["ratio"] is None and "vs plain" not in table.cells_of(result)[0]


def test_precisions_are_rows_of_their_own():
    entries = product(["plain", "eager"], [2], ["float32", "bf16"])
    assert entries == [Entry("plain"), Entry("eager", 2), Entry("eager", 2, "bf16")]
    result = measure(["bc"], entries=entries, **TINY)
    assert [r["precision"] for r in result.rows] == ["float32", "float32", "bf16"]
    assert "precision" in table.cells_of(result)[0]


def test_a_contender_that_fails_leaves_the_others(monkeypatch):
    def build(self, entry):
        if entry.backend == "eager":
            raise RuntimeError("no such kernel")
        return real(self, entry)

    real = Cell.build
    monkeypatch.setattr(Cell, "build", build)
    result = measure(["bc"], entries=[Entry("plain"), Entry("eager", 2)], **TINY)
    assert [r["backend"] for r in result.rows] == ["plain"]
    assert result.facts["failed"] == {"bc 8 eager x2 float32": "RuntimeError: no such kernel"}
    assert "no such kernel" in table.note(result)


def test_what_time_does_not_allow_is_skipped_and_named():
    result = measure(["bc"], entries=[Entry("plain")], until=time.monotonic(), **TINY)
    assert result.rows == [] and result.facts["skipped"] == ["bc 8 plain x1 float32"]
    assert "skipped for lack of time: bc" in table.note(result)


def test_everything_set_up_and_every_row_is_a_line_with_the_time_left():
    lines = []
    measure(["bc"], entries=[Entry("plain"), Entry("eager", 3)], say=lines.append, **TINY)
    kinds = [
        "plain x1 float32 set",
        "eager x3 float32 set",
        "plain x1 float32:",
        "eager x3 float32:",
    ]
    for i, (line, kind) in enumerate(zip(lines, kinds, strict=True), 1):
        assert line.startswith(f"  {i}/4  bc 8 {kind}") and line.endswith(" min left")
    assert lines[-1].endswith("about 0.0 min left") and "seed-updates/s" in lines[-1]


def test_what_fails_or_is_skipped_counts_as_done(monkeypatch):
    monkeypatch.setattr(Cell, "build", lambda *a: 1 / 0)
    lines = []
    measure(["bc"], entries=[Entry("plain"), Entry("eager", 3)], say=lines.append, **TINY)
    assert [line[:5] for line in lines] == ["  2/4", "  4/4"] and "ZeroDivisionError" in lines[0]


def test_the_time_left_is_that_of_the_parts_that_are_left(monkeypatch):
    clock, lines = iter([0.0, 60.0, 240.0]), []
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(clock))
    progress = speed._Progress(4, lines.append)
    progress.step("a"), progress.step("b")
    assert lines == ["  1/4  a; about 3.0 min left", "  2/4  b; about 4.0 min left"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"methods": ["iqll"]}, "did you mean 'iql'"),
        ({"entries": [Entry("plian")]}, "plain"),
        ({"entries": [Entry("eagre")]}, "did you mean 'eager'"),
        ({"entries": [Entry("auto")]}, "unknown backend"),
        ({"entries": [Entry("eager", 1, "bf61")]}, "did you mean 'bf16'"),
        ({"entries": [Entry("cudagraph")]}, "needs a CUDA device"),
        ({"entries": [Entry("captured")]}, "needs a CUDA device"),
        ({"entries": [Entry("eager", 0)]}, "positive"),
        ({"seconds": 0}, "positive"),
        ({"batch_size": 0}, "positive"),
        ({"methods": []}, "needs a method"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, words, monkeypatch):
    monkeypatch.setattr(speed, "plain_loop", lambda *a: pytest.fail("measured"))
    with pytest.raises(UserError, match=words):
        measure(**(TINY | arguments))


# --- a peer


def peer(code: str, pattern: str = r"([\d.,]+) it/s", **options) -> Peer:
    return Peer(
        f'{sys.executable} -c "{code}" {{method}} {{hidden}} {{batch_size}}', pattern, **options
    )


def test_a_peer_is_a_row_with_the_last_number_it_printed():
    code = "import sys; print('1 it/s'); print(sys.argv[1:]); print('2,500.5 it/s')"
    result = measure(["bc"], entries=[Entry("plain")], peer=peer(code, seeds=4), **TINY)
    row = result.rows[-1]
    assert (row["backend"], row["seeds"], row["updates_per_s"]) == ("peer", 4, 2500.5)
    assert row["ratio"] == pytest.approx(10002 / result.rows[0]["seed_updates_per_s"])
    seen = measure(
        ["bc"], entries=[], peer=peer("import sys; print(sys.argv[3])", r"(\d+)"), **TINY
    )
    assert seen.rows[0]["updates_per_s"] == 8  # {batch_size}


@pytest.mark.parametrize(
    "theirs, words",
    [
        (peer("print('fast')"), "printed no number where peer_pattern"),
        (peer("import sys; sys.exit('no GPU')"), "exit code 1: no GPU"),
        (Peer("no-such-command x", "(1)"), "'no-such-command' cannot be run"),
    ],
)
def test_a_peer_that_says_nothing_ends_the_run(theirs, words):
    with pytest.raises(UserError, match=words):
        measure(["bc"], entries=[Entry("plain")], peer=theirs, **TINY)


# --- what is shown and written


def test_the_texts_show_every_row_and_say_what_was_measured(result):
    head, body = table.cells_of(result)
    assert len(body) == len(result.rows) and all(len(line) == len(head) for line in body)
    assert len(table.to_markdown(result).splitlines()) == 2 + len(result.rows)
    assert table.to_rich(result).row_count == len(result.rows)
    text = table.note(result)
    assert "Adam(fused=True)" in text and "1 thread," in text and "batch 8" in text
    assert "large matrix product float32" in text and "upper bound" in text


def test_table_facts_and_picture_are_written(result, tmp_path):
    paths = table.write(result, tmp_path / "new")
    assert [p.name for p in paths] == ["speed.csv", "speed.json", "speed.png"]
    with open(paths[0]) as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table.COLUMNS) and len(rows) == len(result.rows)
    assert float(rows[0]["updates_per_s"]) == result.rows[0]["updates_per_s"]
    facts = json.loads(paths[1].read_text())
    assert facts["torch"] == torch.__version__ and facts["columns"] == table.COLUMNS
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_panel_for_each_method_and_network_and_all_backends(
    tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self))
    row = dict.fromkeys(table.COLUMNS) | {"precision": "float32"}
    rows = [
        row | {"method": m, "hidden": h, "backend": b, "seeds": n, "seed_updates_per_s": 100.0 * n}
        for m, h in [("bc", "8"), ("bc", "16"), ("iql", "8")]
        for b, n in [("plain", 1), ("captured", 1), ("peer", 1)]
        + [(b, n) for b in ("eager", "compile", "cudagraph", "vmap") for n in (1, 64)]
    ]
    table.plot(Result(rows, {"device": "a card", "batch_size": 256}), tmp_path / "x.png")
    (figure,) = drawn
    panels = [a for a in figure.axes if a.get_visible()]
    assert [a.get_title() for a in panels] == ["bc, 8", "bc, 16", "iql, 8"]
    assert all(a.get_xscale() == a.get_yscale() == "log" for a in panels)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[0] == "plain loop, one seed" and set(labels[1:]) == {
        "captured",
        "peer",
        "eager",
        "compile",
        "cudagraph",
        "vmap",
    }


def test_an_empty_result_is_written_too(tmp_path):
    result = measure(["bc"], entries=[Entry("plain")], until=0.0, **TINY)
    assert len(table.write(result, tmp_path)) == 3 and table.to_rich(result).row_count == 0


# --- the command


@pytest.fixture
def seen(monkeypatch, result):
    found = {}
    monkeypatch.setattr(speed, "cells", lambda **shape: found.update(shape))

    def measured(_, *, until, **more):
        found.update(more, seconds_left=until - time.monotonic())
        return result

    monkeypatch.setattr(speed, "measure", measured)
    return found


def test_the_command_reads_its_settings(capsys, seen, tmp_path):
    settings = ["methods=iql", "hidden=[64,32]", "seeds=[1,2]", "seconds=2", "device=cpu"]
    assert main([*settings, "backends=[plain,eager]", f"out={tmp_path}"]) == 0
    assert 590 < seen.pop("seconds_left") < 600
    seen.pop("say")("a line")
    assert seen == {
        "methods": ["iql"],
        "hidden": [[64, 32]],
        "seconds": 2,
        "device": CPU,
        "entries": [Entry("plain"), Entry("eager", 1), Entry("eager", 2)],
    }
    out, beside = capsys.readouterr()
    assert (
        beside == "a line\n"
        and "seed-updates/s" in out
        and "Ceilings of this run" in out
        and "speed.csv" in out
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["speed.csv", "speed.json", "speed.png"]


def test_the_command_writes_nothing_when_told_so(capsys, seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["out=null", "precision=[float32,tf32]", "backends=eager", "seeds=4"])
    assert seen["entries"] == [Entry("eager", 4), Entry("eager", 4, "tf32")]
    assert not list(tmp_path.iterdir()) and "written" not in capsys.readouterr().out


def test_the_command_takes_a_peer(seen, tmp_path):
    main(["peer=run --seeds {seeds}", "peer_pattern=(.*) it/s", "peer_seeds=2", f"out={tmp_path}"])
    assert seen["peer"] == Peer("run --seeds {seeds}", "(.*) it/s", 2)


def test_the_command_names_a_mistake(seen):
    with pytest.raises(UserError, match="did you mean 'seconds'"):
        main(["second=2"])
    with pytest.raises(UserError, match="minutes must be a positive number, got 'ten'"):
        main(["minutes=ten"])
    with pytest.raises(UserError, match="go together"):
        main(["peer=train"])


def test_what_is_measured_by_default_follows_the_device():
    cpu, cuda = default_entries(CPU), default_entries(torch.device("cuda"))
    assert {e.seeds for e in cpu} == {1, 2, 8} and {e.backend for e in cpu} == {"plain", "eager"}
    assert {e.seeds for e in cuda if e.backend == "cudagraph"} == {1, 2, 4, 8, 16, 32, 64}
    assert [e for e in cuda if e.backend in YARDSTICKS] == [Entry(b) for b in YARDSTICKS]


def test_a_method_without_a_plain_loop_is_measured_by_itself():
    result = measure(
        ["rebrac"],
        entries=[Entry("plain", 1), Entry("vmap", 1)],
        hidden=[(8,)],
        batch_size=8,
        seconds=0.05,
        episodes=2,
    )
    (row,) = result.rows
    assert row["backend"] == "vmap" and row["ratio"] is None and row["flops_per_s"] > 0


def test_a_discrete_method_is_refused_by_name():
    with pytest.raises(UserError, match="discrete_cql learns discrete"):
        measure(["discrete_cql"], hidden=[(8,)])
