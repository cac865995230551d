"""What becomes of a benchmark when a pack of it fails."""

import errno
import time

import pytest

from offbench.bench import job, preflight, schedule, stacks
from offbench.bench.episodes import Episodes
from offbench.bench.plan import plan
from offbench.bench.runner import run_pack
from offbench.errors import UserError
from offbench.results.store import Store
from offbench.tasks.loading import load_data

TASKS = ("offbench/hopper/medium-replay-v0", "offbench/halfcheetah/medium-replay-v0")


@pytest.fixture
def made():
    return plan(["methods=[bc]", "seeds=[0,1]", "n_updates=20", "jobs=1", "device=cpu"], bench=True)


def failing(error):
    def run_pack(pack, store, settings, **_):
        if pack.cells[0].task.id == TASKS[0]:
            raise error
        return []

    return run_pack


@pytest.mark.parametrize(
    "error, reason, shown",
    [
        (RuntimeError("no such row\nmore"), "RuntimeError: no such row more", "Traceback"),
        (UserError("no such thing"), "no such thing", "no such thing"),
    ],
)
def test_a_pack_that_fails_is_recorded_and_the_others_go_on(
    error, reason, shown, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "run_pack", failing(error))
    store = Store(tmp_path)
    packs = [p for p in stacks.pack(made.cells) if p.cells[0].task.id in TASKS]
    events = list(schedule.run_packs(packs, store, made.settings))
    phases = {packs[e.index].cells[0].task.id: e for e in events}
    assert phases[TASKS[0]].phase == "failed" and shown in phases[TASKS[0]].error
    # it made no records itself
    assert phases[TASKS[1]].phase == "recorded"
    runs = store.runs()
    assert sorted(runs["seed"]) == [0, 1] and set(runs["task"]) == {TASKS[0]}
    assert set(runs["status"]) == {"failed"} and set(runs["reason"]) == {reason}
    # nothing is done
    planned = [r for c in made.cells for r in c.runs()]
    assert len(store.missing(planned)) == len(planned) == 8


def test_a_defect_of_the_bookkeeping_is_raised_and_nobody_waits_for_ever(
    made, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(job, "run_pack", failing(RuntimeError("out of memory")))
    monkeypatch.setattr(Store, "fail", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        list(schedule.run_packs(stacks.pack(made.cells), Store(tmp_path), made.settings))


def test_a_minibatch_larger_than_the_machine_is_refused_before_anything_is_allocated():
    cell = plan(
        ["method=bc", "task=offbench/hopper/medium-replay-v0", f"batch_size={10**12}"], bench=False
    ).cells[0]
    data, spec = load_data(cell.task, defects="ignore")
    with pytest.raises(
        UserError, match=r"^batch_size=1000000000000: one minibatch of offbench/hopper"
    ):
        preflight.build(cell, data, spec)


@pytest.mark.env
def test_the_test_waits_for_monitor_episodes_that_step_the_same_environments(tmp_path, monkeypatch):
    """Two threads in one environment are wrong scores, or a process killed inside MuJoCo."""
    playing, most, play = [], [], Episodes.play

    def slow(self, state, seeds, update, episodes, stream):
        playing.append(stream)
        most.append(len(playing))
        time.sleep(0.3 if stream == "monitor" else 0.0)
        rows = play(self, state, seeds, update, episodes, stream)
        playing.remove(stream)
        return rows

    monkeypatch.setattr(Episodes, "play", slow)
    args = ["method=bc", f"task={TASKS[0]}", "seeds=[0]", "n_updates=20", "eval.episodes=1"]
    args += ["eval.monitor_at=[0.9]", "eval.monitor_episodes=1", "method.hidden=[8]", "engine=vmap"]
    made = plan([*args, "device=cpu"], bench=False)
    run_pack(stacks.Pack(made.cells), store := Store(tmp_path), made.settings)
    assert most == [1, 1]
    assert list(store.episodes()["stream"]) == ["monitor", "test"]


def test_what_is_tried_again_is_no_failure(made, tmp_path, monkeypatch):
    """A full disk the first time, and room for it the second: nothing is left to say of it at the end."""
    tries = []

    def run_pack(*_, **__):
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return []

    monkeypatch.setattr(job, "run_pack", run_pack)
    monkeypatch.setattr(schedule, "AGAIN_S", 0.0)
    packs = [p for p in stacks.pack(made.cells) if p.cells[0].task.id == TASKS[0]]
    events = list(schedule.run_packs(packs, store := Store(tmp_path), made.settings))
    assert [event.phase for event in events] == ["again", "recorded"]
    assert store.runs().empty
