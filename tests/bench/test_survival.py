"""Benches that are stopped, killed, doubled and run in parts: nothing is lost, nothing runs twice."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.crashes import COMMAND_LINE, KINDS, TINY, differences, leftovers, rows
from support.paths import ROOT

from offbench.bench import job, recording, runner, schedule
from offbench.bench.plan import plan
from offbench.bench.progress import checkpoint_path, tidy
from offbench.bench.runner import run_pack
from offbench.bench.stacks import Pack, pack, whole_stacks
from offbench.bench.watch import Watch
from offbench.cli.app import main
from offbench.errors import Interrupted, UserError
from offbench.results.claims import Heart
from offbench.results.sharing.gc import runs_of
from offbench.results.store import Store

HOPPER = "task=offbench/hopper/medium-replay-v0"
ONE = ["methods=[bc]", *TINY[1:]]


def planned(results: Path, *more: str):
    return plan([*ONE, f"results={results}", *more], bench=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of the stack of ONE."""
    results = tmp_path_factory.mktemp("undisturbed")
    made = planned(results)
    run_pack(pack(made.cells)[0], Store(results), made.settings)
    return rows(results)


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_rows(
    every, undisturbed, tmp_path
):
    made = planned(tmp_path, "checkpoint_minutes=60")
    part, stops = pack(made.cells)[0], 0
    while True:
        left = [every * (5 if every == 1 else 1)]

        def stop(left=left) -> bool:
            left[0] -= 1
            return left[0] < 0

        try:
            run_pack(part, Store(tmp_path), made.settings, watch=Watch(part, stop=stop))
            break
        except Interrupted:
            stops += 1
            assert stops < 1000
            every *= 2 if stops > 4 else 1
    assert stops >= 3
    assert not differences(rows(tmp_path), undisturbed) and not leftovers(tmp_path)


def test_a_stack_that_was_recorded_in_part_comes_out_as_it_would_have(undisturbed, tmp_path):
    """A process that dies between two records: the other seed is trained in the stack that it had."""
    made = planned(tmp_path)
    store, (part,) = Store(tmp_path), pack(made.cells)
    run_pack(part, store, made.settings)
    lost = part.members[1][1]
    for path in tmp_path.glob(f"runs/**/{lost.run_id}*"):
        path.unlink()
    left = [c for c in pack(made.cells)[0].cells]
    alone = Pack(tuple(type(c)(**{**vars(c), "seeds": (1,)}) for c in left))
    (again,) = whole_stacks([alone], made.cells, store)
    assert [run.seed for _, run in again.members] == [0, 1] and again.name == part.name
    run_pack(again, store, made.settings)
    assert not differences(rows(tmp_path), undisturbed)
    # a seed that was never in that stack stays alone
    more = planned(tmp_path, "seeds=[0,1,2]")
    new = Pack(tuple(type(c)(**{**vars(c), "seeds": (2,)}) for c in more.cells))
    assert whole_stacks([new], more.cells, store) == [new]


def test_a_checkpoint_of_recorded_runs_does_not_outlive_the_next_bench(tmp_path, monkeypatch):
    """A process that dies between the records of a stack and the removal of its checkpoint."""
    made = planned(tmp_path, "checkpoint_minutes=1e-6")
    store, (part,) = Store(tmp_path), pack(made.cells)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "remove", lambda checkpoint: None)
        run_pack(part, store, made.settings)
    checkpoint = checkpoint_path(part, made.settings)
    assert checkpoint.exists() and runs_of(checkpoint) == store.runs()["run_id"].tolist()
    # of another living worker, which is about to remove it
    with Heart(tmp_path) as other:
        assert other.claim(runs_of(checkpoint)[:1])
        tidy(store)
        assert checkpoint.exists()
    lost = part.members[1][1]
    kept = {path: path.read_bytes() for path in tmp_path.glob(f"runs/**/{lost.run_id}*")}
    for path in kept:
        path.unlink()
    tidy(store)
    assert checkpoint.exists()
    for path, content in kept.items():
        path.write_bytes(content[:-9])
    # a damaged record is no record
    tidy(store)
    assert checkpoint.exists()
    for path, content in kept.items():
        path.write_bytes(content)
    assert main(["bench", *ONE, f"results={tmp_path}"]) == 0
    assert not leftovers(tmp_path)


def full_disk(times: int):
    """A runner whose disk is full the first times."""
    left = [times]

    def run(pack, store, settings, **more):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return run_pack(pack, store, settings, **more)

    return run


@pytest.mark.parametrize("failures, retry, code", [(1, 1, 0), (2, 1, 3)])
def test_an_accident_is_tried_again_as_often_as_asked(
    failures, retry, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(job, "run_pack", full_disk(failures))
    monkeypatch.setattr(schedule, "AGAIN_S", 0.0)
    args = ["bench", *ONE, f"results={tmp_path}", "jobs=1", "--retry", str(retry)]
    assert main(args) == code
    runs = Store(tmp_path).runs()
    assert set(runs["status"]) == {"failed" if code else "ok"}
    if code:
        record = Store(tmp_path).read(runs["run_id"][0])
        assert record.failure.attempts == 2 and record.failure.kind == "infrastructure"
        assert "No space left on device" in record.reason
        assert "--only failed" in capsys.readouterr().err


def test_a_disk_that_was_full_for_a_moment_costs_no_second_training(
    tmp_path, monkeypatch, undisturbed
):
    made, left, trained = planned(tmp_path), [2], []
    append, train = Store.append, runner.PackRun.train

    def full(self, *args, **more):
        left[0] -= 1
        if left[0] >= 0:
            raise UserError("cannot write record") from OSError(errno.ENOSPC, "no space")
        return append(self, *args, **more)

    monkeypatch.setattr(Store, "append", full)
    monkeypatch.setattr(recording, "FULL_DISK_S", (0.0, 0.0))
    monkeypatch.setattr(
        runner.PackRun, "train", lambda self, *a: trained.append(1) or train(self, *a)
    )
    run_pack(pack(made.cells)[0], Store(tmp_path), made.settings)
    assert trained == [1] and not differences(rows(tmp_path), undisturbed)


def test_an_error_of_the_method_is_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def run(*_, **__):
        calls.append(1)
        raise ZeroDivisionError("no")

    monkeypatch.setattr(job, "run_pack", run)
    assert main(["bench", *ONE, f"results={tmp_path}", "jobs=1", "--retry", "5"]) == 3
    assert len(calls) == 1
    record = Store(tmp_path).read(Store(tmp_path).runs()["run_id"][0])
    assert (
        record.failure.attempts == 1 and "ZeroDivisionError" in record.failure.traceback.read_text()
    )
    # `--only failed` runs it again, and counts
    args = ["bench", *TINY, f"results={tmp_path}", "jobs=1", "--only", "failed"]
    assert main(args) == 3 and len(calls) == 2
    assert Store(tmp_path).read(record.spec.run_id).failure.attempts == 2


def test_time_that_is_up_leaves_the_rest_for_the_same_command(tmp_path, capsys, undisturbed):
    args = ["bench", *ONE, f"results={tmp_path}", "jobs=1"]
    assert main([*args, "--max-time", "0s"]) == 75
    assert "time is up with 2 runs left" in capsys.readouterr().err
    assert Store(tmp_path).runs().empty
    assert main([*args, "--max-time", "1h"]) == 0
    assert not differences(rows(tmp_path), undisturbed)
    assert main(args) == 0


def test_shards_are_the_plan_and_stay_the_same_while_it_is_recorded(tmp_path, capsys):
    args = ["bench", *TINY, f"results={tmp_path}", "jobs=1", "--shard"]
    assert main([*args, "2/2"]) == 0
    first = set(Store(tmp_path).runs()["entry"])
    assert (
        len(first) == 1 and "4 runs, 0 recorded, 2 to do of 4, shard 2/2" in capsys.readouterr().out
    )
    assert main([*args, "2/2"]) == 0 and set(Store(tmp_path).runs()["entry"]) == first
    assert main([*args, "1/2"]) == 0 and len(Store(tmp_path).runs()) == 4


@pytest.mark.parametrize(
    "option, said",
    [
        (("--only", "passed"), "--only passed: --only failed"),
        (("--retry", "-1"), "--retry"),
        (("--retry", "often"), "--retry often: a number of attempts"),
        (("--max-time", "soon"), "--max-time soon: a time such as 90s, 30m, 8h or 2d"),
        (("--shard", "3/2"), "--shard 3/2: I/N"),
        (("--shard", "0/2"), "--shard 0/2: I/N"),
        (("--shard", "half"), "--shard half: I/N"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(option, said, tmp_path, capsys):
    assert main(["bench", *ONE, f"results={tmp_path / 'r'}", *option]) == 2
    err = capsys.readouterr().err
    assert err.startswith("offbench: ") and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_another_worker_has_claimed_is_waited_for(tmp_path, monkeypatch, undisturbed):
    """Two benches in one folder: the second neither trains nor fails what the first has."""
    made = planned(tmp_path, "jobs=1")
    store, (part,) = Store(tmp_path), pack(made.cells)
    monkeypatch.setattr(schedule, "AGAIN_S", 0.05)
    ids = [run.run_id for _, run in part.members]
    with Heart(tmp_path) as other:
        assert other.claim(ids)
        phases = []
        for event in schedule.run_packs([part], store, made.settings):
            phases.append(event.phase)
            if phases.count("held") == 2 and "recorded" not in phases and not store.whole(ids[0]):
                run_pack(part, store, made.settings)
                other.release(ids)
    assert phases[:2] == ["held", "held"] and phases[-1] == "recorded"
    assert "training" not in phases and not differences(rows(tmp_path), undisturbed)


def test_a_claim_that_nobody_waits_for_any_more_is_taken_over(tmp_path, undisturbed):
    made = planned(tmp_path, "jobs=1")
    (part,) = pack(made.cells)
    dead = Heart(tmp_path)
    assert dead.claim([run.run_id for _, run in part.members])
    # as after kill -9, without the heartbeat
    dead.close()
    assert main(["bench", *ONE, f"results={tmp_path}", "jobs=1"]) == 0
    assert not differences(rows(tmp_path), undisturbed) and not leftovers(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write to .*file"):
        Heart(tmp_path / "file")


# --- real processes -------------------------------------------------------------------------


def bench(results: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND_LINE, "bench", *TINY, f"results={results}", *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(happens, what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def training(results: Path) -> int:
    """Workers that have claimed a stack."""
    return len({p.read_text() for p in results.glob("claims/[!.]*")})


LONG = ["n_updates=400000", "jobs=2", "checkpoint_minutes=0.02", "eval.monitor_at=[]"]


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.parametrize("sent, code", [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_bench_with_two_workers_is_stopped_with_one_line_and_its_states_saved(
    sent, code, tmp_path
):
    process = bench(tmp_path, *LONG)
    until(lambda: training(tmp_path) == 2, "two workers train")
    family = psutil.Process(process.pid).children(recursive=True)
    until(lambda: len(list(tmp_path.glob("checkpoints/[!.]*"))) == 2, "two checkpoints")
    before = time.monotonic()
    # as a terminal does: to the whole group
    os.killpg(process.pid, getattr(signal, sent)) if sent == "SIGINT" else process.terminate()
    out, _ = process.communicate(timeout=60)
    took = time.monotonic() - before
    assert process.returncode == code, out
    assert "the same command goes on" in out and "Traceback" not in out and "failed" not in out
    assert Store(tmp_path).runs().empty and len(list(tmp_path.glob("checkpoints/[!.]*"))) == 2
    assert not psutil.wait_procs(family, timeout=10)[1]
    print(f"{sent}: ended after {took:.1f} s")


@pytest.mark.slow
@pytest.mark.env
def test_workers_end_with_a_bench_that_is_killed(tmp_path):
    process = bench(tmp_path, *LONG)
    until(lambda: training(tmp_path) == 2, "two workers train")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert Store(tmp_path).runs().empty


@pytest.mark.slow
@pytest.mark.env
def test_two_benches_in_one_folder_divide_the_work(tmp_path):
    both = [bench(tmp_path, "jobs=1") for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(Store(tmp_path).runs()) == 4 and not leftovers(tmp_path)
    # each of the two stacks was trained by one of them
    trained = sum(
        line.count(" s)") for text in said for line in text.splitlines() if " x2: " in line
    )
    assert trained == 2, said


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_deaths_of_a_kind_lose_nothing(kind):
    """SIGKILL, SIGTERM, SIGINT, a full disk or killed workers, at random moments; the script takes any number."""
    deaths(ROOT / "tests" / "support" / "crashes.py", "20", kind)


def test_deaths_lose_nothing():
    deaths(ROOT / "tests" / "support" / "crashes.py", "1", "SIGKILL")


def deaths(script: Path, *args: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, str(script), *args], env=env, capture_output=True, text=True
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
