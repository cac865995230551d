"""How benches end: Ctrl-C, SIGTERM, dead and suspended workers, folders that cannot be written to."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.crashes import TINY, leftovers
from support.paths import ROOT

from offbench.bench import job, runner, schedule
from offbench.bench.episodes import Episodes
from offbench.bench.executors import executor, local
from offbench.bench.plan import plan
from offbench.bench.stacks import pack
from offbench.cli import bench as cli
from offbench.cli.app import main
from offbench.errors import Interrupted
from offbench.results import claims
from offbench.results.claims import Heart
from offbench.results.store import Store

ONE = ["methods=[bc]", *TINY[1:]]


def planned(results: Path, *more: str):
    return plan([*ONE, f"results={results}", *more], bench=True)


def test_a_worker_that_was_suspended_reports_what_another_has_recorded(
    tmp_path, monkeypatch, capsys
):
    """Its stack was taken over and recorded while it slept: that is no failure, and nothing is written twice."""
    store, before = Store(tmp_path), {}

    def record_twice(pack, *where):
        # the other one, and its files
        record(pack, *where)
        before.update({p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*.json")})
        # as of a process that looked just before
        with monkeypatch.context() as patch:
            patch.setattr(Store, "missing", lambda self, runs, **_: list(runs))
            assert record(pack, *where) == []
        return record(pack, *where)

    record = runner.record
    monkeypatch.setattr(runner, "record", record_twice)
    assert main(["bench", *ONE, f"results={tmp_path}", "jobs=1"]) == 0
    said = capsys.readouterr()
    assert "x2: recorded by another process" in said.out and "failed" not in said.out + said.err
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*.json")}
    assert len(before) == 2 and len(store.episodes()) > 0
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("code, kind", [(errno.ENOSPC, "infrastructure"), (errno.EROFS, "user")])
def test_a_folder_that_cannot_be_claimed_in_is_a_failure_not_a_traceback(
    code, kind, tmp_path, monkeypatch
):
    def create(*_):
        raise OSError(code, os.strerror(code))

    made = planned(tmp_path, "jobs=1")
    (part,) = pack(made.cells)
    with Heart(tmp_path) as heart:
        monkeypatch.setattr(claims, "_create", create)
        event = job.run_job(job.Job(0, part), Store(tmp_path), made.settings, heart)
    assert event.phase == "failed" and event.error == event.reason
    assert event.reason == f"cannot write to {tmp_path}: {os.strerror(code)}"
    assert Store(tmp_path).read(part.members[0][1].run_id).failure.kind == kind


def test_a_stop_while_progress_is_shown_ends_the_stacks(tmp_path, monkeypatch):
    """Ctrl-C need not arrive where the executor waits."""
    stopped = []

    class Never:
        slots, evaluators = 1, 0
        submit = events = lambda self, *_: [job.Event(0, "training")]

        def stop(self) -> None:
            stopped.append("stop")

        def close(self, seconds: float) -> None:
            stopped.append(seconds)

    monkeypatch.setattr(schedule, "make_executor", lambda *_: Never())
    monkeypatch.setattr(cli, "_PHASES", Loud())
    with pytest.raises(KeyboardInterrupt):
        cli.run_bench([*ONE, f"results={tmp_path}"])
    assert stopped == ["stop", schedule.TERMINATED_S]


class Loud(dict):
    """Raises where a phase is put in words."""

    def get(self, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "error, seconds",
    [(KeyboardInterrupt, schedule.INTERRUPTED_S), (Interrupted, schedule.TERMINATED_S)],
)
def test_sigterm_leaves_stacks_more_time_than_ctrl_c(error, seconds, tmp_path, monkeypatch):
    closed = []

    class Stopped:
        slots, evaluators = 1, 0
        submit = stop = lambda self, *_: None

        def events(self, timeout: float):
            raise error

        def close(self, seconds: float) -> None:
            closed.append(seconds)
            # a second time
            raise error

    monkeypatch.setattr(schedule, "make_executor", lambda *_: Stopped())
    made = planned(tmp_path)
    dead = Heart(tmp_path)
    dead.claim(["0" * 16])
    dead.close()
    with pytest.raises(error):
        list(schedule.run_packs(pack(made.cells), Store(tmp_path), made.settings))
    assert closed == [seconds] and not leftovers(tmp_path)


@pytest.fixture
def hangup():
    """SIGHUP as a terminal's programs have it, even where nohup started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_first_request_to_end_is_heard_and_later_ones_do_not_disturb(name, hangup):
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    saved = False
    with pytest.raises(Interrupted, match=f"^{name}$"), cli._terminable():
        try:
            os.kill(os.getpid(), getattr(signal, name))
        finally:
            # a shell and the kernel both tell that the terminal is closed
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            saved = True
    assert saved and before == (
        signal.getsignal(signal.SIGHUP),
        signal.getsignal(signal.SIGTERM),
    )


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli._terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_that_dies_after_its_last_record_has_lost_nothing(tmp_path):
    made = planned(tmp_path)
    (part,), store = pack(made.cells), Store(tmp_path)
    runner.run_pack(part, store, made.settings)
    lost = job.Event(0, "lost", 1.0, error="killed", reason="killed")
    told = job.record_failure(job.Job(0, part), lost, store, made.settings)
    assert told == job.Event(0, "recorded", 1.0)


def test_a_seed_whose_return_is_not_finite_leaves_the_others_of_its_stack_alone(
    tmp_path, monkeypatch, capsys
):
    """Finite parameters may still choose actions that are not."""

    def diverge(self, *given):
        tables = tested(self, *given)
        rows = tables[-1]
        return [
            *tables[:-1],
            rows.assign(score=rows["score"].where(rows["member"] != 0, float("nan"))),
        ]

    tested = Episodes.test
    monkeypatch.setattr(Episodes, "test", diverge)
    assert main(["bench", *ONE, f"results={tmp_path}", "jobs=1"]) == 3
    runs = Store(tmp_path).runs().set_index("seed")
    assert runs["status"].to_dict() == {0: "diverged", 1: "ok"}
    assert runs["reason"][0] == "the score of an episode is not finite after 200 updates"
    assert "seed 0: the score of an episode is not finite" in capsys.readouterr().err


def test_python_says_nothing_of_workers_that_were_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "context = multiprocessing.get_context('spawn')\n"
        "def work():\n"
        "    lock = context.Lock()\n"
        "    os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    from offbench.bench.executors import local\n"
        "    local._say_nothing_of_semaphores()\n"
        "    process = context.Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


class Wire:
    """A pipe whose other end nobody reads or writes."""

    send = close = lambda self, *_: None
    poll = lambda self: False


class Sleeper:
    """A process of which only its parent knows whether it lives."""

    exitcode = -9

    def __init__(self):
        self.killed = False

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        if timeout is not None:
            raise KeyboardInterrupt

    def kill(self) -> None:
        self.killed = True


def worker_of(process: Sleeper) -> local._Process:
    worker = local._Process.__new__(local._Process)
    worker.process, worker.pipe, worker.device, worker.alive = process, Wire(), None, True
    return worker


def test_a_dead_worker_is_seen_although_a_process_of_its_own_keeps_the_pipe(tmp_path):
    worker = worker_of(Sleeper())
    worker.job = job.Job(3, None)
    (event,) = worker.events()
    assert (event.index, event.phase) == (3, "lost") and "SIGKILL" in event.reason
    assert not worker.alive and worker.job is None


def test_a_second_ctrl_c_kills_the_workers(tmp_path):
    """Else Python waits at its exit until they have saved their states."""
    workers = local.Processes(Store(tmp_path), planned(tmp_path).settings, 2)
    workers._idle = [worker_of(Sleeper()), worker_of(Sleeper())]
    sleepers = [worker.process for worker in workers._idle]
    with pytest.raises(KeyboardInterrupt):
        workers.close(1.0)
    assert all(sleeper.killed for sleeper in sleepers)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows blocks no signals")
def test_worker_processes_never_see_ctrl_c_while_they_start():
    mask = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with executor.blocking_ctrl_c():
        assert signal.SIGINT in mask()
        code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.strip() == "True" and signal.SIGINT not in mask()
