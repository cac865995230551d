"""The GPU job: its miniature runs whole on the CPU, and a part that fails or hangs costs only itself."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from offbench.speed import cost, gpu_check, gpu_parts, gpu_report
from offbench.speed.contenders import shipped
from offbench.speed.gpu_check import check, main
from offbench.speed.gpu_parts import DRY, GPU, LEADING, PARTS, Part
from offbench.speed.table import COLUMNS


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("dry") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "best_seconds", lambda *a, **k: 1e-3)
        # the limit is for a borrowed GPU; a busy machine has as long as it takes
        patch.setattr(gpu_check, "TOTAL_S", 3600)
        return out, main([str(out), "--dry-run"])


@pytest.mark.slow
def test_the_miniature_runs_every_part_and_passes(dry):
    out, code = dry
    found = json.loads((out / "check.json").read_text())
    assert code == 0 and list(found) == list(PARTS)
    assert not any("error" in part for part in found.values())
    assert {r["method"] for r in found["gate"]["rows"]} == set(shipped())
    assert all(r["ok"] for r in found["gate"]["rows"])
    assert found["training"]["updates"] > 0 and found["training"]["finite"]
    kinds = {(r["method"], r["backend"], r["seeds"]) for r in found["table"]["rows"]}
    assert {(m, "eager", 2) for m in LEADING} | {("iql", "plain", 1)} <= kinds
    assert found["precision"]["deviation_after_100"]["float32"] == 0


@pytest.mark.slow
def test_what_it_writes_can_be_brought_back(dry):
    """At most 8 files, none above 16 MB, names of letters, digits, '.', '_' and '-'."""
    files = list(dry[0].rglob("*"))
    assert len(files) <= 8 and all(f.is_file() and f.stat().st_size < 16e6 for f in files)
    assert all(f.name.replace(".", "").replace("_", "").replace("-", "").isalnum() for f in files)
    text = (dry[0] / "summary.md").read_text()
    assert all(f"## {name}" in text for name in PARTS)
    assert "Extrapolated, not run" in text and "| td3_bc | 8 | plain" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without one")
def test_without_a_device_it_says_so_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "no CUDA device" in said.err
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def fails(out, sizes, save, until):
        save({"rows": [1]})
        raise RuntimeError("out of memory")

    def works(out, sizes, save, until):
        save({"device": "cpu"})

    monkeypatch.setattr(gpu_check, "PARTS", {"gate": Part(fails, 1), "environment": Part(works, 1)})
    assert not check(tmp_path, DRY, apart=False)
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["gate"]["error"] == "RuntimeError: out of memory" and found["gate"]["rows"] == [1]
    text = (tmp_path / "summary.md").read_text()
    assert "**Failed:** RuntimeError: out of memory" in text and "- device: cpu" in text


def test_a_part_runs_in_a_process_of_its_own(tmp_path):
    found = gpu_check._apart("environment", tmp_path, DRY, 60)
    assert found["torch"] == torch.__version__ and "error" not in found


def test_a_part_that_hangs_is_stopped_and_what_it_saved_is_kept(tmp_path, monkeypatch):
    code = (
        "import sys, time, pathlib; "
        "path = pathlib.Path(sys.argv[sys.argv.index('--save') + 1]); "
        "path.write_text('{\"rows\": [1]}'); time.sleep(60)"
    )
    real = gpu_check.subprocess.run
    monkeypatch.setattr(
        gpu_check.subprocess,
        "run",
        lambda command, **k: real([command[0], "-c", code, *command[3:]], **k),
    )
    start = time.monotonic()
    found = gpu_check._apart("gate", tmp_path, DRY, 2)
    assert found == {"rows": [1], "error": "stopped at its limit of 2 s"}
    assert time.monotonic() - start < 20


def test_the_parts_fit_into_eight_minutes():
    assert sum(part.seconds for part in PARTS.values()) <= gpu_check.TOTAL_S < 480
    assert GPU.train_s + 15 <= PARTS["training"].seconds


def test_a_failed_gate_or_test_fails_the_check():
    good = {"gate": {"rows": [{"ok": True}]}, "tests": {"passed": True}}
    assert gpu_check._ok(good)
    assert not gpu_check._ok(good | {"gate": {"rows": [{"ok": True}, {"error": "x"}]}})
    assert not gpu_check._ok(good | {"tests": {"passed": False}})
    assert not gpu_check._ok(good | {"table": {"facts": {"failed": {"a": "b"}}}})


def test_an_engine_that_strays_does_not_pass(monkeypatch):
    step, carry = gpu_parts.build(shipped()["bc"], (8,), 2, DRY)
    judge, ends = gpu_parts.Engine(step, carry, backend="eager"), {}
    for n in gpu_parts.GATE_AT:
        judge.load(carry)
        judge.run(n)
        ends[n] = judge.carry.state
    assert gpu_parts._held(step, carry, "vmap", ends)["ok"]
    run = gpu_parts.Engine.run
    monkeypatch.setattr(
        gpu_parts.Engine, "run", lambda self, n: run(self, n + 1)
    )  # trains in its warm-up
    row = gpu_parts._held(step, carry, "eager", ends)
    assert not row["ok"] and row["after_1"] > 0.1


def test_marks_say_what_was_met_and_what_was_not_measured():
    row = dict.fromkeys(COLUMNS) | {
        "hidden": "256x256",
        "method": "td3_bc",
        "precision": "float32",
    }
    rows = [
        row | {"backend": "cudagraph", "seeds": 1, "ratio": 12.0, "updates_per_s": 97.0},
        row | {"backend": "cudagraph", "seeds": 16, "ratio": 80.0},
        row | {"backend": "captured", "seeds": 1, "updates_per_s": 100.0},
    ]
    found = {"environment": {"device": "cuda"}, "table": {"rows": rows}}
    found["training"] = {"extrapolated_s_per_million": 200.0}
    lines = [line for line in gpu_report.targets(found) if line.startswith("| td3_bc")]
    verdicts = [line.split("|")[2:4] for line in lines]
    assert [[a.strip(), b.strip()] for a, b in verdicts] == [
        ["12.0x", "yes"],
        ["80x", "no"],
        ["nan%", "not measured"],
        ["97%", "yes"],
        ["200 s", "yes"],
    ]
    assert gpu_report.targets({"environment": {"device": "cpu"}}) == []


def test_everything_that_is_measured_is_compiled_ahead():
    jobs = gpu_check._jobs(GPU)
    assert len(set(jobs)) == len(jobs)
    for name in LEADING:
        for hidden, seeds in GPU.seeds.items():
            assert {(name, hidden, n, "float32", 100) for n in seeds} <= set(jobs)
    assert {job[0] for job in jobs} == set(shipped())
    shares = [jobs[i :: gpu_check.COMPILERS] for i in range(gpu_check.COMPILERS)]
    assert sum(map(len, shares)) == len(jobs) and max(map(len, shares)) <= 4


def test_a_compiler_that_fails_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_check, "build", lambda *a: (_ for _ in ()).throw(RuntimeError("no memory"))
    )
    gpu_check.compile_ahead(DRY, 0)
    assert "no memory" in capsys.readouterr().out


def test_the_tests_for_a_gpu_are_found_wherever_they_stand(tmp_path, monkeypatch):
    commands, found = [], {}

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu_parts.subprocess, "run", run)
    gpu_parts.tests(tmp_path, DRY, found.update, time.monotonic() + 5)
    (command,) = commands
    names = {Path(word).name for word in command if word.endswith(".py")}
    assert {"test_gpu.py", "test_engine.py"} <= names and found["passed"]
