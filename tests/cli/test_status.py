"""`offbench status`: what is printed of a store with records, failures, and workers alive and dead."""

import io
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.records import episodes, provenance, record_cells

from offbench.bench.plan import plan
from offbench.cli import main, status
from offbench.cli.console import make_console
from offbench.cli.plan import _print_cells
from offbench.results.claims import Heart
from offbench.results.status import status_of
from offbench.results.store import Store

ARGS = ["methods=[bc,iql]", "task=offbench/hopper/medium-replay-v0", "suite=quick", "seeds=[0,1,2]"]


@pytest.fixture(scope="module")
def cells():
    return plan(ARGS, bench=True).cells


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def record(store: Store, cell, seeds, *, created: str) -> None:
    for run in (run for run in cell.runs() if run.seed in seeds):
        rows = episodes(cell.protocol["episodes"], update=run.n_updates)
        facts = provenance(entry=cell.entry, tuning=cell.tuning, created=created)
        store.append(run, rows, facts)


def stack_of(cell, **changes) -> dict:
    return {
        "title": f"{cell.entry} on {cell.task.id} x{len(cell.seeds)}",
        "entries": [cell.entry],
        "task": cell.task.id,
        "seeds": list(cell.seeds),
        "runs": [run.run_id for run in cell.runs()],
        "phase": "training",
        "update": cell.n_updates // 2,
        "n_updates": cell.n_updates,
        "updates_per_s": 412.3,
        "started": ago(200),
    } | changes


def elsewhere(root: Path, stack: dict | None, *, age: float = 2, started: float = 300) -> str:
    """A worker of another machine and its claims."""
    name = f"{'0' * 12}-77-{len(list(root.glob('workers/*'))):06x}"
    body = {"worker": name, "host": "node17.cluster.example", "pid": 77, "started": ago(started)}
    body |= {"beat": ago(age), "device": "cuda:0", "memory": 3.2e9, "executor": "slurm"}
    path = root / "workers" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body | {"stack": stack}))
    os.utime(path, (time.time() - age,) * 2)
    (root / "claims").mkdir(exist_ok=True)
    for run in (stack or {}).get("runs", ()):
        (root / "claims" / f"{run}.1").write_text(name)
    return name


def shown(capsys, *args: str) -> str:
    capsys.readouterr()
    assert main(["status", *args]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def columns(text: str, name: str) -> list[int]:
    """done, running, failed, waiting of the line of "runs" or "cells"."""
    (line,) = re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)
    return [int(word) for word in line.split()[:4]]


def test_a_plan_of_which_a_part_is_recorded_running_failed_and_waiting(tmp_path, cells, capsys):
    bc, iql = cells
    store = Store(tmp_path)
    record(store, bc, [0], created=ago(100))
    failed = bc.runs()[1]
    facts = provenance(entry="bc", created=ago(50))
    store.fail(failed, "CUDA error:\n  out of memory", facts, attempts=3, traceback="Traceback ...")
    elsewhere(tmp_path, stack_of(iql))
    text = shown(capsys, *ARGS, f"results={tmp_path}")
    assert columns(text, "runs") == [1, 3, 1, 1] and columns(text, "cells") == [0, 1, 0, 1]
    assert text.startswith(f"quick: 2 cells, 6 runs in {tmp_path}, 20")
    n = iql.n_updates
    row = next(line for line in text.splitlines() if "node17" in line)
    assert f"iql on {iql.task.id} x3 {n // 2}/{n} 412 3.2 GB  3m" in row
    assert "1 run failed, the last:" in text and "CUDA error: out of memory" in text
    assert "bc on offbench/hopper/medium-replay-v0 seed 1 after 3 attempts" in text
    (file,) = re.findall(r"^    (.*traceback.txt)$", text, re.MULTILINE)
    assert Path(file).read_text() == "Traceback ..."
    assert "dead" not in text and "\x1b" not in text


def test_the_time_left_is_that_of_the_updates_since_the_workers_began(tmp_path, cells):
    """Of 6 runs one was recorded and three are half trained in 300 s; what was there before does not count."""
    bc, iql = cells
    store, planned = Store(tmp_path), {cell.entry: cell.runs() for cell in cells}
    record(store, bc, [0], created=ago(5000))
    found = status_of(store, "quick", planned)
    assert found.seconds_left is None and not found.over
    elsewhere(tmp_path, stack_of(iql, updates_per_s=None, update=0, phase="loading"))
    assert status_of(store, "quick", planned).seconds_left is None
    record(store, bc, [1], created=ago(100))
    name = elsewhere(tmp_path, stack_of(iql, updates_per_s=1e9))
    (tmp_path / "workers" / f"{'0' * 12}-77-000000.json").unlink()
    # made: 1 + 3 x 0.45 runs; left: 1 + 3 x 0.55
    found = status_of(store, "quick", planned)
    assert found.seconds_left == pytest.approx(300 * 2.65 / 2.35, rel=0.05)
    assert found.share == pytest.approx((2 + 3 * 0.45) / 6)
    # of the updates of a checkpoint only those that were made here count
    body = json.loads((path := tmp_path / "workers" / f"{name}.json").read_text())
    body["stack"]["updates_per_s"] = 0.1 * iql.n_updates / 200
    path.write_text(json.dumps(body))
    found = status_of(store, "quick", planned)
    assert found.seconds_left == pytest.approx(300 * 2.65 / 1.27, rel=0.05)


def test_without_a_living_worker_no_time_is_promised(tmp_path, cells, capsys):
    bc, iql = cells
    record(Store(tmp_path), bc, [0], created=ago(10))
    elsewhere(tmp_path, stack_of(iql), age=200)
    text = shown(capsys, *ARGS, f"results={tmp_path}")
    assert columns(text, "runs") == [1, 0, 0, 5]
    assert "time left unknown: no worker is alive" in text
    line = next(line for line in text.splitlines() if "dead" in line)
    assert "node17.cluster.example pid 77, silent for 3 min, claims void" in line
    assert f"was at iql on {iql.task.id} x3" in line


def test_all_is_done(tmp_path, cells, capsys):
    record_cells(Store(tmp_path), cells, lambda cell, seed: 50.0)
    text = shown(capsys, *ARGS, f"results={tmp_path}")
    assert columns(text, "runs") == [6, 0, 0, 0] and columns(text, "cells") == [2, 0, 0, 0]
    assert "100 %" in text and "nothing is left to do" in text and "no workers" in text
    # and watching ends by itself
    assert shown(capsys, *ARGS, f"results={tmp_path}", "--watch", "5").count("100 %") == 1


def test_a_damaged_record_is_named_with_its_remedy(tmp_path, cells, capsys):
    """It is neither done nor trained again."""
    store = Store(tmp_path)
    record(store, cells[0], [0, 1], created=ago(10))
    (path := store.records()[0]).write_bytes(path.read_bytes()[:-9])
    text = shown(capsys, *ARGS, f"results={tmp_path}")
    assert columns(text, "runs") == [1, 0, 0, 4]
    assert f"1 record damaged: offbench results verify --repair results={tmp_path}" in text
    assert "1 record damaged" in shown(capsys, "--all", f"results={tmp_path}")


def test_every_suite_of_a_store_without_a_plan(tmp_path, cells, capsys, monkeypatch):
    bc, iql = cells
    store = Store(tmp_path)
    record(store, bc, [0, 1], created="2026-01-02T03:04:05+00:00")
    store.fail(iql.runs()[0], "no", provenance(entry="iql"))
    elsewhere(tmp_path, stack_of(iql))
    monkeypatch.setattr("offbench.bench.plan.plan", None)
    text = shown(capsys, "--all", f"results={tmp_path}")
    assert text.startswith(f"3 records in {tmp_path}, 3 runs in training")
    assert re.search(r"^quick +2 +2 +1  2026-01-02 03:04$", text, re.MULTILINE)
    assert "1 worker\n" in text and "1 run failed" in text


def test_a_folder_that_is_none_has_one_line(tmp_path, capsys):
    for args in (ARGS, ["--all"]):
        text = shown(capsys, *args, f"results={tmp_path / 'none'}")
        assert text == f"{tmp_path / 'none'}: no results are here, and no worker is\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args, words",
    [
        (["--watch", "soon"], "--watch soon: a number of seconds"),
        (["--watch", "-1"], "--watch -1: a number of seconds"),
        (["--all", "suite=quick"], "--all shows every suite of a store"),
        (["methods=[nonsense]"], "nonsense"),
    ],
)
def test_a_mistake_has_one_line(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["status", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_fits_a_terminal_of_80_columns(tmp_path, cells, capsys, monkeypatch):
    """Numbers are whole; of hosts and titles the middle is cut, in a log nothing."""
    bc, iql = cells
    store = Store(tmp_path)
    store.fail(bc.runs()[0], "word " * 40, provenance(entry="bc"))
    long = "a-method-of-a-long-name(lr=0.0001) on offbench/hopper/medium-replay-v0 x3"
    for i in range(40):
        stack = stack_of(iql, title=long, update=412_345 + i, n_updates=1_000_000)
        elsewhere(tmp_path, stack if i % 2 else None)
    elsewhere(tmp_path, stack_of(iql), age=4000)
    assert long in shown(capsys, *ARGS, f"results={tmp_path}")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(
        status.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((80, 24))
    )
    assert main(["status", *ARGS, f"results={tmp_path}"]) == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = {line for line in lines if "412.3k/1M" in line}
    assert "x3" in row and "412 3.2 GB" in row and "…" in row
    assert "  and 28 more" in lines


def test_a_stack_that_says_little_is_shown_all_the_same(tmp_path, cells, capsys):
    elsewhere(tmp_path, {"title": "x"})
    elsewhere(tmp_path, {})
    text = shown(capsys, *ARGS, f"results={tmp_path}")
    assert "2 workers" in text and "time left unknown" in text


def test_it_imports_no_torch_and_writes_nothing(tmp_path, cells):
    record(Store(tmp_path), cells[0], [0], created=ago(10))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    script = (
        "import sys; from offbench.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'gymnasium', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    words = [sys.executable, "-c", script, "status", *ARGS, f"results={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and columns(done.stdout, "runs") == [1, 0, 0, 5], done.stderr
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_plan_says_what_runs_elsewhere(tmp_path, cells, capsys):
    """Of three seeds in a stack elsewhere one is recorded already."""
    bc, iql = cells
    elsewhere(tmp_path, stack_of(iql))
    wanted = plan([*ARGS, f"results={tmp_path}"], bench=True)
    _print_cells(wanted, [bc, iql.varied(seeds=(1, 2))], {bc.task.id}, {}, make_console())
    text = " ".join(capsys.readouterr().out.split())
    assert " 1,2, running on " in text and text.count("running on") == 1
    assert "node17.cluster.example" in text


def test_watching_a_worker_until_ctrl_c(tmp_path, cells, capsys, monkeypatch):
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    with Heart(tmp_path) as heart:
        heart.claim([run.run_id for run in cells[1].runs()])
        text = shown(capsys, *ARGS, f"results={tmp_path}", "--watch", "5")
    assert pauses == [5.0] * 3 and text.count("1 worker\n") == 3
    assert text.count("runs           0         3         0         3") == 3
