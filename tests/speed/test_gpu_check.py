"""The GPU job: its miniature runs on a bare machine, and a part that fails or hangs costs only itself."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from support.paths import ROOT
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from offbench.speed import cost, gpu_check, gpu_parts, gpu_run
from offbench.speed.contenders import shipped
from offbench.speed.gpu_check import Process, add_wheels, check, main
from offbench.speed.gpu_parts import GATE_AT, Environment, Learner, Station
from offbench.speed.gpu_plan import DRY, GPU, Job, jobs
from offbench.speed.gpu_report import Record, passed, write
from offbench.training import engine


class Here:
    """A job in this process."""

    def __init__(self, job, out, sizes, answers):
        self.job, self.answers, self.station = job, answers, Station(job, out, sizes)
        self.ask("set_up")

    def ask(self, verb):
        self.answers.put((self, self.station.answer(verb)))

    def signal(self, name):
        pass


def read(out):
    return json.loads((out / "check.json").read_text())


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(cost, "best_seconds", lambda *a, **k: 1e-3)


# --- the whole


# what is installed beside torch on a machine that has nothing of offbench's own requirements
BARE = """
import sys
HERE = "torch torchgen functorch triton numpy pandas pyarrow pytest _pytest py pluggy iniconfig packaging pygments"
HERE += " sympy mpmath networkx jinja2 markupsafe filelock fsspec typing_extensions dateutil six pytz tzdata offbench support conftest"
class Bare:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in HERE.split() or top in sys.stdlib_module_names or top.startswith(("_", "test_")):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Bare, sys.meta_path)
"""


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Processes that are started find torch, numpy, pandas and pyarrow, and offbench in a checkout."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BARE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_process_needs_nothing_but_torch_and_numpy(bare, tmp_path):
    answers = gpu_check.queue.SimpleQueue()
    worker = Process(Job("learner", "bc", "eager", 2), tmp_path, DRY, answers)
    for verb in ("gate", "time", "sing"):
        worker.ask(verb)
    found: list = []
    while len(found) < 4 and (found[-1:] != [None]):
        found.append(answers.get(timeout=300)[1])
    assert [f and f["verb"] for f in found] == ["set_up", "gate", "time", "sing"], found
    assert (
        found[1]["ok"] and found[2]["updates_per_s"] > 0 and "AttributeError" in found[3]["error"]
    )
    worker.signal("SIGKILL")
    assert answers.get(timeout=60) == (worker, None)


@pytest.mark.slow
def test_the_miniature_passes_on_a_bare_machine(bare, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "offbench.speed.gpu_check", str(out), "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = next(r for r in read(out) if r["job"]["part"] == "run")
    # what cannot be imported is named, and the point mass played instead
    assert (
        run["set_up"]["task"] == gpu_run.POINT_MASS.id and "gymnasium" in run["set_up"]["instead"]
    )
    assert run["train"]["finite"] and run["train"]["updates"] > 0
    text = (out / "summary.md").read_text()
    assert "## failed\n\nNothing.\n\n## skipped: not ready in time\n\nNothing." in text
    # what may be brought back: 8 files, none above 16 MiB, of plain names
    files = list(out.rglob("*"))
    assert len(files) <= 8 and all(f.is_file() and f.stat().st_size < 2**24 for f in files)
    assert all(f.name.replace(".", "").replace("_", "").replace("-", "").isalnum() for f in files)
    names = {"summary.md", "check.json", "speed.csv", "profile.csv", "tests.txt"}
    assert {f.name for f in files} == names


@pytest.mark.slow
def test_methods_of_every_kind_pass_the_gate_in_miniature(tmp_path):
    kinds = ("acsac", "discrete_cql", "dt")
    sizes = DRY._replace(others=kinds)
    todo = [job for job in jobs(sizes) if job.small]
    assert check(tmp_path, sizes, employ=Here, todo=todo)
    gates = {r["job"]["method"]: r["gate"] for r in read(tmp_path)}
    assert set(gates) == set(kinds) and all(g["ok"] and g["repeats"] for g in gates.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without one")
def test_without_a_device_it_says_so_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "no CUDA device" in said.err
    assert not (tmp_path / "out").exists()


# --- processes that hang, die or come late


SCRIPT = """
import json, pathlib, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def answer(**found): print(json.dumps(found | {"took_s": 0.0}), flush=True)
def tick():
    with open(folder / what, "a") as file: file.write(f"{time.time()} ")
if what == "dies": sys.exit("out of memory")
if what == "slow":
    while True: tick(); time.sleep(0.01)
answer(verb="set_up", setup_s=0.1, hidden="8")
for line in sys.stdin:
    if line == "time\\n" and what == "hangs": time.sleep(60)
    if line == "time\\n":
        tick(); time.sleep(0.2); tick()
        answer(verb="time", updates_per_s=100.0, peak_mb=None)
"""


class Scripted(Process):
    """A process without torch that does what its job's method says."""

    @staticmethod
    def command(job, out, sizes):
        return [sys.executable, "-c", SCRIPT, job.method, str(out)]


def job(method, **options):
    return Job("learner", method, "plain", alone=("time",), **options)


@pytest.fixture
def hasty(monkeypatch):
    """Limits of seconds instead of minutes."""
    for name, seconds in (("READY_S", 2), ("LATE_S", 8), ("TOTAL_S", 9)):
        monkeypatch.setattr(gpu_check, name, seconds)
    monkeypatch.setattr(gpu_check, "ALONE", {"time": 1.0})
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 9)


def test_one_that_hangs_dies_or_is_late_leaves_the_others(tmp_path, hasty):
    todo = [job(m) for m in ("hangs", "dies", "slow", "works")]
    start = time.monotonic()
    assert not check(tmp_path, GPU, employ=Scripted, todo=todo)
    assert time.monotonic() - start < 30
    hangs, dies, slow, works = read(tmp_path)
    assert hangs["error"] == "time: no answer in time, stopped" and "time" not in hangs
    assert dies["error"] == "exit code 1: out of memory"
    # late is not failed
    assert slow["error"] is None and slow["missing"] == "set_up, time"
    assert works["time"]["updates_per_s"] == 100 and not works["error"]
    text = (tmp_path / "summary.md").read_text()
    assert "- dies plain x1 float32: exit code 1: out of memory" in text
    assert "- slow plain x1 float32: set_up, time" in text


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes are paused on Unix only")
def test_nothing_runs_while_a_program_is_timed(tmp_path, hasty):
    assert check(tmp_path, GPU, employ=Scripted, todo=[job("works"), job("slow")])
    times = [list(map(float, (tmp_path / m).read_text().split())) for m in ("works", "slow")]
    begin, end = times[0][0], times[0][2 * gpu_check.ROUNDS - 1]
    assert len(times[1]) > 50 and times[1][-1] > end
    assert not [t for t in times[1] if begin < t < end]


# --- what is measured


def test_the_most_telling_comes_first_and_all_that_was_promised():
    todo = jobs(GPU)
    assert len(set(todo)) == len(todo)
    full = [j for j in todo if j.part == "learner" and not j.small]
    assert [j.method for j in full[:4]] == ["td3_bc", "iql", "acsac", "dt"]
    assert all(j.first == ("gate",) for j in full[:4])
    profiled = [j.method for j in todo if "profile" in j.alone]
    assert profiled == ["td3_bc", "acsac"]
    timed = {(j.method, j.backend, j.seeds, j.precision) for j in todo if "time" in j.alone}
    for m in ("td3_bc", "iql"):
        stacks = {(m, "cudagraph", n, p) for n in (1, 4, 16, 64) for p in ("float32", "tf32")}
        assert {(m, "plain", 1, "float32"), (m, "captured", 1, "float32")} | stacks <= timed
    assert {j.method for j in todo if "gate" in j.first} == set(shipped())
    assert all(j.small for j in todo[-len(GPU.others) :])


def test_the_whole_takes_less_than_four_minutes():
    assert gpu_check.READY_S < gpu_check.LATE_S < gpu_check.TOTAL_S < 235
    timed = sum("time" in j.alone for j in jobs(GPU))
    seconds = GPU.round_s * (2 + gpu_check.ROUNDS) * timed + GPU.run_s
    assert gpu_check.READY_S + seconds + 25 < gpu_check.LATE_S
    assert gpu_check.LATE_S + gpu_check.GRACE_S < gpu_check.TOTAL_S


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    return Learner(Job("learner", "bc", "eager", 2), tmp_path_factory.mktemp("bc"), DRY)


def test_an_engine_that_strays_does_not_pass(learner, monkeypatch):
    assert learner.gate()["ok"]
    run = gpu_parts.Engine.run
    strays = lambda self, n: run(self, n + (self is learner.engine))
    monkeypatch.setattr(gpu_parts.Engine, "run", strays)
    row = learner.gate()
    assert row["ok"] is False and row["after_1"] > 0.1 and row["repeats"]
    # rounded products are told, not judged
    monkeypatch.setattr(learner, "job", learner.job._replace(precision="tf32"))
    assert learner.gate()["ok"] is None


def test_a_kernel_profile_is_of_one_minibatch(learner):
    found = learner.profile()
    kernels = {name: calls for name, calls, us in found["kernels"]}
    assert kernels["aten::bmm"] == int(kernels["aten::bmm"]) > 0
    assert found["launches"] == pytest.approx(sum(kernels.values()))
    assert 0 < found["of_products"] < 1


# --- lines that only a GPU reaches, on torch's own signatures


@pytest.fixture
def cuda(learner, monkeypatch):
    """The learner as if it were on a GPU; the functions of torch.cuda do nothing, and check their arguments."""
    for name in ("synchronize", "set_sync_debug_mode", "max_memory_allocated"):
        fake = create_autospec(getattr(torch.cuda, name), return_value=2**20)
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(learner, "cuda", True)
    return learner


def test_a_wait_in_the_loop_is_found_and_named(cuda, monkeypatch):
    assert cuda.gate()["waits"] == "none"
    modes = [call.args for call in torch.cuda.set_sync_debug_mode.call_args_list]
    assert modes == [("error",), ("default",)]
    assert cuda.time()["peak_mb"] == 1.0
    run = cuda.engine.run

    def waits(n):
        if torch.cuda.set_sync_debug_mode.call_args.args == ("error",):
            gpu_parts.tree_leaves(torch.ones(2))[0].reshape(3)
        return run(n)

    monkeypatch.setattr(cuda.engine, "run", waits)
    row = cuda.gate()
    assert row["ok"] is False and "gpu_parts.py" in row["waits"] and "shape" in row["waits"]
    assert torch.cuda.set_sync_debug_mode.call_args.args == ("default",)


def test_kernels_of_the_device_are_counted(cuda, monkeypatch):
    def event(name, us, device, **more):
        return FunctionEvent(0, name, 0, 0.0, us, device_type=device, **more)

    many = 2 * gpu_parts.BLOCK * cuda.per_step
    seen = [event("nvjet_tst_128", 3.0, DeviceType.CUDA)] * (2 * many)
    seen += [event("triton_poi_fused_0", 2.0, DeviceType.CUDA)] * many
    seen += [event("cudaGraphLaunch", 50.0, DeviceType.CPU)]
    seen += [event("a range", 99.0, DeviceType.CUDA, is_user_annotation=True)]
    asked = []

    class Watch:
        def __init__(self, *, activities):
            asked.extend(activities)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            return seen

    monkeypatch.setattr(torch.profiler, "profile", Watch)
    found = cuda.profile()
    assert asked == [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    assert found["kernels"] == [("nvjet_tst_128", 2.0, 6.0), ("triton_poi_fused_0", 1.0, 2.0)]
    assert (found["launches"], found["device_us"], found["of_products"]) == (3.0, 8.0, 0.75)
    seen.clear()
    with pytest.raises(RuntimeError, match="no kernels"):
        cuda.profile()


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs and streams on a CPU: what is captured runs once, and a replay does nothing."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Stream": lambda *a, **k: stream,
        "current_stream": lambda *a, **k: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "CUDAGraph": lambda *a, **k: SimpleNamespace(replay=lambda: None),
        "graph": lambda g, **k: contextlib.nullcontext(),
        "synchronize": lambda *a: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "compile", lambda f, **k: f)
    monkeypatch.setattr(engine, "candidates", lambda backend, *a, **k: [backend])


def test_a_graph_that_does_nothing_does_not_pass(graphs, tmp_path):
    row = Learner(Job("learner", "bc", "cudagraph", 2), tmp_path, DRY).gate()
    assert max(row["after_1"], row["after_20"]) < 1e-3 and row["after_32"] > 0.5
    assert row["ok"] is False


def test_the_captured_loop_is_set_up_and_timed(graphs, tmp_path):
    loop = Learner(Job("learner", "bc", "captured"), tmp_path, DRY)
    assert loop.time()["updates_per_s"] > 0


def test_the_facts_of_a_device(monkeypatch, tmp_path):
    facts = SimpleNamespace(
        name="A GPU", major=9, minor=0, total_memory=2**37, multi_processor_count=132
    )
    fake = create_autospec(torch.cuda.get_device_properties, return_value=facts)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fake)
    said = SimpleNamespace(stdout="580.1, 1980 MHz, 3201 MHz, 1980 MHz, 700 W, 30\n", returncode=0)
    monkeypatch.setattr(gpu_parts.subprocess, "run", lambda *a, **k: said)
    found = Environment(Job("environment"), tmp_path, GPU).facts
    assert found["gpu"] == "A GPU" and found["memory_gib"] == 128 and found["capability"] == "9.0"
    assert found["clocks.sm"] == "1980 MHz"


# --- the summary


def of_gpu():
    """Records as a GPU's, one for each job, some of what is asked not reached."""
    gate = {f"after_{n}": 1e-5 for n in GATE_AT} | {"repeats": True, "waits": "none", "ok": True}
    rate = {"plain": 1000.0, "captured": 5000.0, "cudagraph": 8000.0}
    kernels = [("nvjet", 10.0, 30.0), ("triton_poi", 20.0, 10.0)]
    for job in jobs(GPU):
        found = {"set_up": {"took_s": 9.0, "setup_s": 9.0, "hidden": "256x256"}}
        if job.part == "environment":
            found = {"set_up": {"device": "cuda", "gpu": "A GPU"}}
            found["ceilings"] = {"matmul_flops_per_s": {"float32": 5e13, "tf32": 4e14}}
        if job.part == "learner":
            found |= {"gate": gate} if "gate" in job.first else {}
            found |= {"cost": {"flops": 4e8}} if "cost" in job.first else {}
            each = rate[job.backend] / job.seeds**0.5
            found["time"] = {"updates_per_s": each, "peak_mb": 512.0}
            profile = {"kernels": kernels, "launches": 30.0, "device_us": 40.0, "of_products": 0.75}
            found |= {"profile": profile} if "profile" in job.alone else {}
        yield Record(job, found)


def test_ratios_are_named_and_marks_judged(tmp_path):
    records = list(of_gpu())
    write(tmp_path, records, 200.0)
    with open(tmp_path / "speed.csv") as file:
        rows = {
            (r["method"], r["backend"], r["seeds"], r["precision"]): r for r in csv.DictReader(file)
        }
    one, many = (rows["iql", "cudagraph", n, "float32"] for n in ("1", "16"))
    assert float(one["ratio_to_plain"]) == 8 and float(one["ratio_to_captured"]) == 1.6
    assert float(many["ratio_to_plain"]) == 32 and float(many["of_matmul"]) == 32000 * 4e8 / 5e13
    assert rows["acsac", "cudagraph", "4", "float32"]["ratio_to_plain"] == ""
    text = (tmp_path / "summary.md").read_text()
    assert "| td3_bc | 1 | float32 | ratio_to_plain at least 10 | 8 | **no** |" in text
    assert "| acsac | 4 | float32 | us_per_seed_update at most 2000 | 62.5 | yes |" in text
    assert "75% of it in matrix products" in text and "| nvjet | 10 | 30 | 0.75 | yes |" in text
    assert "- run: train" in text and "- tests: run" in text and passed(records)


def test_a_failed_gate_or_test_fails_the_check():
    good = Record(Job("learner", "bc", first=("gate",)), {"gate": {"ok": True}})
    told = Record(Job("learner", "iql", first=("gate",)), {"gate": {"ok": None}})
    late = Record(Job("learner", "dt", first=("gate",)))
    assert passed([good, told, late]) and late.missing == "set_up, gate"
    for part, verb in (("learner", "gate"), ("tests", "run")):
        bad = Record(Job(part, first=(verb,)), {verb: {"ok": False}})
        assert not passed([good, bad]) and bad.failure == f"{verb} not passed"
    assert not passed([good, Record(Job("run"), error="exit code -9")])


# --- the point mass, the tests, the wheels


def test_a_policy_that_steers_the_point_mass_earns_more():
    def earned(gain):
        env = gpu_run.PointMass()
        state, _ = env.reset(seed=3)
        total, done = 0.0, False
        while not done:
            state, reward, _, done, _ = env.step(gain * state[:2] + 2 * gain * state[2:])
            total += reward
        return total

    assert earned(-2) > earned(0) > earned(2)
    data = gpu_run.point_mass_data(20)
    assert data.n_transitions == 1000 and data.action.abs().max() <= 1


def test_the_tests_for_a_gpu_are_found_wherever_they_stand(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        options["stdout"].write("x PASSED\n3 passed in 1 s\n")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu_parts.subprocess, "run", run)
    found = gpu_parts.Tests(Job("tests"), tmp_path, DRY).run()
    (command,) = commands
    names = {word.rpartition("/")[2] for word in command if word.endswith(".py")}
    assert {"test_gpu.py", "test_engine.py"} <= names
    assert found == {"ok": True, "last": "3 passed in 1 s"}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "venv, given, python",
    [
        (False, [], "python3"),
        (True, [], ".venv/bin/python"),
        (True, ["PYTHON=python3.12"], "python3.12"),
    ],
)
def test_make_installs_nothing_and_takes_the_interpreter_there_is(tmp_path, venv, given, python):
    shutil.copy(ROOT / "Makefile", tmp_path)
    if venv:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").touch()
    environ = {k: v for k, v in os.environ.items() if k != "PYTHON" and not k.startswith("MAKE")}
    command = ["make", "-n", "gpu-check", "OUT=here", *given]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.split() == [python, "-m", "offbench.speed.gpu_check", "here"]


def test_missing_packages_are_taken_from_wheels(tmp_path):
    wheel = tmp_path / "from_beside-1.0-py3-none-any.whl"
    info = "from_beside-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("from_beside.py", "x = 1\n")
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: from_beside\nVersion: 1.0\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    (tmp_path / "numpy-9.9-py3-none-any.whl").write_bytes(b"is here already")
    (tmp_path / "other_system-1.0-py3-none-plan9.whl").write_bytes(b"")
    lines = add_wheels(tmp_path, tmp_path / "into")
    assert lines[0] == f"{wheel.name}: installed for this check"
    assert len(lines) == 2 and "not a supported wheel" in lines[1]
    assert (tmp_path / "into" / "from_beside.py").exists()
