"""Jobs of Slurm, with shell scripts in the place of its commands; tests/bench/test_executors.py runs stacks in jobs."""

import os

import pytest
from support.executors import TINY, made

from offbench.bench.executors import remote, slurm
from offbench.bench.executors.executor import n_jobs
from offbench.bench.job import Job
from offbench.cli import main
from offbench.errors import UserError
from offbench.results.claims import Heart
from offbench.results.store import Store


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stands in for sbatch and sacct, which are not on this machine; `state` is what sacct says of a job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    state = folder / "state"
    state.write_text("PENDING")
    scripts = {
        "srun": "exit 0",
        "sbatch": f"cat $1 > {folder}/script; echo Submitted batch job 4242",
        "sacct": f"echo 'JobID|State|NodeList'; for i in 0 1; do echo \"4242_$i|$(cat {state})|n\"; done",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "LOOK_S", 0.0)
    monkeypatch.setattr(slurm, "VISIBLE_S", 0.0)
    return folder


def queue(tmp_path, *more: str):
    """(executor, its two stacks) after they were submitted"""
    folder = tmp_path / "jobs"
    whole, packs = made(tmp_path / "r", "executor=slurm", f"slurm.folder={folder}", *more)
    store = Store(tmp_path / "r")
    store.check_writable()
    executor = slurm.Slurm(store, whole.settings, n_jobs(whole.settings, len(packs)))
    for index, one in enumerate(packs):
        executor.submit(Job(index, one))
    return executor, packs


def test_stacks_become_one_array_with_the_settings_of_the_jobs(tmp_path, commands):
    options = ("slurm.partition=short", "slurm.time=60", "slurm.cpus=2", "slurm.gpus=1")
    more = ("slurm.memory=1.5", "slurm.options={account: lab}", "slurm.setup=['module load x']")
    executor, _ = queue(tmp_path, *options, *more, "jobs=1")
    assert executor.events(0.0) == []
    lines = (commands / "script").read_text().splitlines()
    for line in (
        "#SBATCH --array=0-1%1",
        "#SBATCH --partition=short",
        "#SBATCH --time=60",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --mem=1536MB",
        "#SBATCH --account=lab",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --job-name=offbench",
        "module load x",
    ):
        assert line in lines
    (folder,) = (tmp_path / "jobs").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    # the command ends, and its jobs go on
    executor.stop()
    assert [(e.index, e.phase) for e in executor.events(0.0)] == [(0, "stopped"), (1, "stopped")]
    executor.close()
    assert len(list(folder.glob("*_submitted.pkl"))) == 2


@pytest.mark.parametrize(
    ("state", "phase", "reason"),
    [
        ("CANCELLED by 1000", "stopped", "job 4242_0 was cancelled"),
        ("OUT_OF_MEMORY", "lost", "job 4242_0: it ended as OUT_OF_MEMORY (output: "),
        ("NODE_FAIL", "lost", "job 4242_0: it ended as NODE_FAIL"),
    ],
)
def test_what_becomes_of_a_job_without_a_result(state, phase, reason, tmp_path, commands):
    executor, _ = queue(tmp_path)
    executor.events(0.0)
    (commands / "state").write_text(state)
    executor._queued[0][0].watcher.clear()
    events = executor.events(0.0)
    executor.close()
    assert [e.phase for e in events] == [phase, phase] and reason in events[0].reason
    # the output of what went wrong is kept
    assert any((tmp_path / "jobs").iterdir()) == (phase == "lost")


def test_nothing_is_queued_for_a_stack_that_another_worker_trains(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(remote, "CLAIMS_S", 0.0)
    with Heart(tmp_path / "r") as heart:
        _, packs = made(tmp_path / "r")
        heart.claim([r.run_id for one in packs for _, r in one.members])
        executor, _ = queue(tmp_path)
        assert [e.phase for e in executor.events(0.0)] == ["held", "held"]
        assert not (commands / "script").exists()
        executor.close()


def test_what_sbatch_refuses_is_one_line(tmp_path, commands):
    (commands / "sbatch").write_text("#!/bin/sh\necho sbatch: invalid partition >&2; exit 1\n")
    executor, _ = queue(tmp_path)
    with pytest.raises(UserError, match=r"executor=slurm: .*invalid partition"):
        executor.events(0.0)


def test_files_of_jobs_are_kept_out_of_the_results(tmp_path, commands):
    whole, _ = made(tmp_path, "executor=slurm", f"slurm.folder={tmp_path / 'jobs'}")
    with pytest.raises(UserError, match="nothing there is ever unpickled"):
        slurm.Slurm(Store(tmp_path), whole.settings, 2)


def test_after_ctrl_c_it_is_said_that_jobs_go_on(tmp_path, commands, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm.Slurm, "events", interrupt)
    more = ("executor=slurm", f"slurm.folder={tmp_path / 'jobs'}", f"results={tmp_path / 'r'}")
    assert main(["bench", *TINY, *more]) == 130
    assert "jobs in the queue go on without this command: see `offbench status" in (
        capsys.readouterr().err
    )
