"""Executors: the same rows from each, whatever dies; what they are told and say."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support.crashes import COMMAND_LINE
from support.executors import (
    PROCESSES,
    RAY,
    SLURM,
    THREAD,
    TINY,
    children,
    left_over,
    made,
    rows,
    run,
)
from support.paths import ROOT

from offbench.bench import settings as settings_module
from offbench.bench.executors import remote
from offbench.bench.executors.executor import n_jobs
from offbench.bench.job import Job
from offbench.bench.schedule import Effort, run_packs
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.claims import Heart, claimed, workers
from offbench.results.store import Store

# --- what settings mean


def test_where_runs_are_made_is_no_part_of_what_they_are(tmp_path):
    own, _ = made(tmp_path)
    setup = "slurm.setup=['export WANDB_API_KEY=secret']"
    apart = ("eval.processes=2",)
    for more in (RAY, SLURM, apart, ("executor=slurm", setup, "slurm.options={account: a}")):
        other, _ = made(tmp_path, *more)
        assert [r.run_id for c in other.cells for r in c.runs()] == [
            r.run_id for c in own.cells for r in c.runs()
        ]
        assert [c.entry for c in other.cells] == [c.entry for c in own.cells]
        assert not {k.split(".")[0] for k in other.cells[0].overrides} & {
            "executor",
            "ray",
            "slurm",
        }
        assert "eval.processes" not in {*other.cells[0].overrides, *other.cells[0].recorded_sources}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("executor=slurn", "did you mean 'slurm'?"),
        ("executor=ray ray.cpus=0", "ray.cpus=0 must be above 0"),
        ("executor=ray ray.gpus=-1", "ray.gpus=-1.0 must not be negative"),
        ("executor=ray ray.address=127.0.0.1:1", "ray.address=127.0.0.1:1: nothing answers"),
        ("executor=ray ray.address=ray://127.0.0.1:1", "nothing answers"),
        ("executor=ray device=cuda:1", "device=cuda:1: executor=ray deals out the GPUs itself"),
        ("executor=slurm slurm.time=0", "slurm.time=0 must be at least 1 minute"),
        ("executor=slurm slurm.cpus=0", "slurm.cpus=0 must be at least 1"),
        ("executor=slurm slurm.gpus=-1", "slurm.gpus=-1 must not be negative"),
        ("executor=slurm slurm.memory=0", "slurm.memory=0.0 must be above 0"),
        ("executor=slurm slurm.account=me", "unknown setting 'slurm.account'"),
        ("executor=slurm", "there is no command sbatch here"),
        ("-m", "-m: offbench plans sweeps itself"),
        ("--multirun", "executor=local, ray or slurm"),
        ("hydra/launcher=submitit_slurm", "hydra/launcher: offbench plans sweeps itself"),
        ("hydra.launcher.partition=x", "offbench plans sweeps itself"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(
    given, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    results = tmp_path / "results"
    assert main(["bench", *TINY, f"results={results}", *given.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("offbench: ") and words in line
    assert not results.exists()


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_not_installed_is_named(executor, package, capsys, monkeypatch):
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    assert main(["plan", *TINY, f"executor={executor}"]) == 2
    words = f"executor={executor} needs the package {package}: pip install 'offbench[{executor}]'"
    assert words in capsys.readouterr().err


def test_jobs_are_stacks_at_once_of_this_machine_and_all_of_a_cluster(tmp_path):
    of = lambda *more: n_jobs(made(tmp_path, *more)[0].settings, 100)
    assert of("jobs=7", "executor=slurm") == 7
    assert of("executor=slurm") == of("executor=ray", "ray.address=auto") == 100
    assert of("executor=ray") == of("executor=slurm", "slurm.cluster=local") == of() < 100


# --- what the files of the store say


def test_progress_and_claims_of_other_processes_are_read_from_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BEAT_S", 0.0)
    monkeypatch.setattr(remote, "CLAIMS_S", 0.0)
    _, packs = made(tmp_path)
    store, job = Store(tmp_path), Job(5, packs[0])
    store.check_writable()
    seen = remote.Seen(store)
    assert seen.settled(job) is None and seen.progress() == []
    ids = [r.run_id for _, r in packs[0].members]
    with Heart(tmp_path, executor="slurm") as heart:
        heart.about = lambda: {"runs": ids, "phase": "training", "update": 10, "n_updates": 40}
        heart._beat()
        assert heart.claim(ids)
        assert seen.progress() == []
        seen.watch(job)
        (event,) = seen.progress()
        assert (event.index, event.phase, event.fraction) == (5, "training", 0.225)
        assert seen.settled(job).phase == "held"
        seen.forget(job)
        assert seen.progress() == []
        heart.release(ids)
    assert seen.settled(job) is None


def test_a_machine_that_does_not_see_the_results_ends_the_command(tmp_path):
    whole, packs = made(tmp_path / "gone")
    place = remote.Place.here(Store(tmp_path / "gone"), whole.settings)
    event = place.run(Job(0, packs[0]), stop=lambda: False)
    with pytest.raises(UserError, match=r"results=.*gone: no such folder on "):
        remote.checked(event)


# --- the real ones


@pytest.fixture(scope="module")
def by_a_thread(tmp_path_factory):
    """The results of the tiny runs, trained in this process."""
    root = tmp_path_factory.mktemp("thread")
    assert [e.phase for e in run(root, *THREAD)] == ["done", "done"]
    return root


def board_of(root) -> str:
    """The board of the tiny runs as csv, without the time that training took."""
    assert main(["board", *TINY, f"results={root}"]) == 0
    (path,) = (root / "board").glob("*part.csv")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    time_column = lines[0].index("wall_s")
    return "\n".join(",".join(x for i, x in enumerate(line) if i != time_column) for line in lines)


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("more", [PROCESSES, RAY, SLURM], ids=["processes", "ray", "slurm"])
def test_rows_and_board_are_the_same_from_every_executor(more, by_a_thread, tmp_path):
    before, handler = children(), signal.getsignal(signal.SIGTERM)
    assert [e.phase for e in run(tmp_path, *more)] == ["done", "done"]
    assert left_over(before) == []
    assert signal.getsignal(signal.SIGTERM) == handler
    assert rows(tmp_path).equals(rows(by_a_thread)) and len(rows(tmp_path)) == 8
    board = board_of(tmp_path)
    assert board == board_of(by_a_thread) and "bc" in board
    assert claimed(tmp_path) == {} and workers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("more", "number"),
    [(RAY, signal.SIGKILL), (RAY, signal.SIGTERM), (SLURM, signal.SIGKILL)],
    ids=["ray killed", "ray ended", "slurm killed"],
)
def test_a_stack_whose_process_is_ended_is_tried_again(more, number, by_a_thread, tmp_path):
    before, killed = children(), []

    def kill() -> None:
        while not killed:
            time.sleep(0.05)
            holders = set(claimed(tmp_path).values())
            for worker in (w for w in workers(tmp_path) if w.name in holders):
                assert worker.executor == more[0].removeprefix("executor=")
                os.kill(worker.pid, number)
                killed.append(worker.pid)
                return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    phases = [e.phase for e in run(tmp_path, *more, "seeds=[0]", effort=Effort(retry=1))]
    thread.join(1)
    assert len(killed) == 1 and phases == ["again", "done"]
    own = rows(by_a_thread)
    assert rows(tmp_path).equals(own[own["seed"] == 0].reset_index(drop=True))
    assert left_over(before) == []


@pytest.mark.slow
@pytest.mark.env
def test_a_job_whose_time_is_up_saves_its_state_and_goes_on(by_a_thread, tmp_path):
    """submitit's signal, sent early: the job is queued again by itself, and the rows are the same."""
    more = [*SLURM, "seeds=[0]", "n_updates=4000", "eval.monitor_at=[]", "checkpoint_minutes=0"]
    whole, packs = made(tmp_path / "a", *more)
    store, sent, saved = Store(tmp_path / "a"), [], []
    store.check_writable()
    states = lambda: list((store.root / "checkpoints").glob("*.safetensors"))

    def preempt() -> None:
        while not states():
            time.sleep(0.02)
        (worker,) = workers(store.root)
        os.kill(worker.pid, signal.SIGUSR2)
        sent.append(worker.pid)
        while psutil.pid_exists(worker.pid):
            time.sleep(0.02)
        saved.extend(states())

    threading.Thread(target=preempt, daemon=True).start()
    phases = [e.phase for e in run_packs(packs, store, whole.settings) if e.final]
    assert phases == ["done"] and len(sent) == len(saved) == 1
    run(tmp_path / "b", *THREAD, *more[3:])
    assert rows(tmp_path / "a").equals(rows(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.parametrize("more", [RAY, SLURM], ids=["ray", "slurm"])
def test_ctrl_c_leaves_no_process_and_no_record(more, tmp_path):
    long = [*TINY, "seeds=[0]", "n_updates=100_000_000", *more, f"results={tmp_path}"]
    command = [sys.executable, "-c", COMMAND_LINE, "bench", *long]
    before = children()
    here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not claimed(tmp_path):
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("offbench: interrupted"), errors
    assert left_over(before) == []
    assert len(Store(tmp_path).runs()) == 0 and claimed(tmp_path) == {}
