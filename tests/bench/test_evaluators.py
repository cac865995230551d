"""Evaluation in processes of its own: the same rows, nothing trained twice, and the next stack need not wait."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from safetensors import safe_open
from support.crashes import COMMAND_LINE, TINY, differences, leftovers, rows
from support.executors import children, left_over
from support.paths import ROOT

from offbench.bench import schedule
from offbench.bench.episodes import Episodes
from offbench.bench.executors.executor import n_evaluators
from offbench.bench.job import Event, Job, run_job
from offbench.bench.plan import plan
from offbench.bench.progress import Progress
from offbench.bench.runner import PackRun, run_pack
from offbench.bench.schedule import Effort, run_packs
from offbench.bench.settings import EvalSettings, Settings
from offbench.bench.stacks import pack
from offbench.cli.app import main
from offbench.errors import Interrupted
from offbench.results.claims import Heart, workers
from offbench.results.store import Store

ONE = ["methods=[bc]", *TINY[1:], "checkpoint_minutes=60"]


def planned(results, *more: str):
    return plan([*ONE, f"results={results}", *more], bench=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of the stack of ONE, trained and evaluated in one process."""
    results = tmp_path_factory.mktemp("undisturbed")
    made = planned(results)
    run_pack(pack(made.cells)[0], Store(results), made.settings)
    return rows(results)


@pytest.fixture
def stack(tmp_path):
    """The same stack in another folder: (run_pack with the work to do, its checkpoints)"""
    made = planned(tmp_path)
    (part,), store = pack(made.cells), Store(tmp_path)
    run = lambda work, **more: run_pack(part, store, made.settings, work=work, **more)
    return run, lambda: sorted(path.name for path in tmp_path.glob("checkpoints/*")), part


def no_training(monkeypatch) -> None:
    def train(*_) -> Iterator:
        raise AssertionError("trained again")

    monkeypatch.setattr(PackRun, "train", train)


def slow_monitors(monkeypatch) -> None:
    """No monitor episode ends before training does."""
    play = Episodes.play

    def wait(self, state, seeds, update, episodes, stream):
        while stream == "monitor" and not self.pool.interrupted():
            time.sleep(0.001)
        if self.pool.interrupted():
            raise Interrupted
        return play(self, state, seeds, update, episodes, stream)

    monkeypatch.setattr(Episodes, "play", wait)


@pytest.mark.parametrize("remain", [False, True], ids=["monitored", "monitors remain"])
def test_a_trained_stack_is_evaluated_elsewhere_to_the_same_rows(
    remain, stack, tmp_path, undisturbed, monkeypatch
):
    run, checkpoints, part = stack
    with monkeypatch.context() as patch:
        if remain:
            slow_monitors(patch)
        assert run("training") is None
    assert Store(tmp_path).runs().empty
    beside = [f"{part.name}.{update}.safetensors" for update in (100, 50) if remain]
    assert set(beside) <= set(checkpoints()) and f"{part.name}.safetensors" in checkpoints()
    no_training(monkeypatch)
    # one that is given again, by another bench
    assert run("training") is None
    assert len(run("evaluation")) == 1
    assert not differences(rows(tmp_path), undisturbed) and not leftovers(tmp_path)


def test_an_evaluation_that_is_stopped_trains_nothing_again(
    stack, tmp_path, undisturbed, monkeypatch
):
    run, *_ = stack
    with monkeypatch.context() as patch:
        slow_monitors(patch)
        run("training")
    no_training(monkeypatch)
    play, played = Episodes.play, []

    def until_the_test(self, state, seeds, update, episodes, stream):
        if stream == "test" and not played.count("test"):
            played.append(stream)
            raise Interrupted
        played.append(update)
        return play(self, state, seeds, update, episodes, stream)

    monkeypatch.setattr(Episodes, "play", until_the_test)
    with pytest.raises(Interrupted):
        run("evaluation")
    # whoever comes next; the monitor episodes were kept
    assert len(run("all")) == 1
    assert played == [50, 100, "test", 200]
    assert not differences(rows(tmp_path), undisturbed) and not leftovers(tmp_path)


def test_what_cannot_be_saved_is_evaluated_where_it_was_trained(
    stack, tmp_path, undisturbed, monkeypatch
):
    run, checkpoints, _ = stack
    first = Episodes.play

    def full(self, carry, checkpoint):
        self.unsaved = "a checkpoint could not be written: No space left on device"
        return True

    # the first monitor episodes are broken off, and played again
    def play(self, state, seeds, update, episodes, stream):
        while update == 50 and not broken and not self.pool.interrupted():
            time.sleep(0.001)
        if update == 50 and not broken:
            broken.append(update)
            raise Interrupted
        return first(self, state, seeds, update, episodes, stream)

    broken: list[int] = []
    monkeypatch.setattr(Episodes, "play", play)
    monkeypatch.setattr(Progress, "save", full)
    (outcome,) = run("training")
    assert "No space left" in outcome.note and broken == [50]
    assert not checkpoints() and not differences(rows(tmp_path), undisturbed)


def test_a_trained_state_that_is_gone_is_trained_once_more(tmp_path, undisturbed, monkeypatch):
    made, store = planned(tmp_path), Store(tmp_path)
    (part,) = pack(made.cells)
    with Heart(tmp_path) as heart:
        job = Job(0, part, 1, 2, "evaluation")
        event = run_job(job, store, made.settings, heart)
    assert (event.phase, event.kind) == ("failed", "infrastructure")
    assert event.reason.startswith("the trained state is no longer in ")
    assert store.runs().empty
    again = schedule._again(event, job)
    assert (again.work, again.attempt) == ("all", 2)
    # one whose process died is evaluated again
    assert schedule._again(Event(0, "lost"), job).work == "evaluation"


# --- who does what, and when


class Scripted:
    """An executor whose stacks take as long as they are told to: (seconds of training, of evaluation)."""

    def __init__(self, slots: int, evaluators: int, seconds: list[tuple[float, float]]):
        self.slots, self.evaluators, self._seconds = slots, evaluators, seconds
        self.now, self._running, self.log, self.stopped = 0.0, [], [], False
        self._trained: set[int] = set()

    def submit(self, job: Job) -> None:
        training, evaluation = self._seconds[job.index]
        seconds = 0.0 if job.index in self._trained else training
        seconds += evaluation if job.work != "training" else 0.0
        self._running.append((self.now + seconds, job))
        self.log.append((self.now, job.work, job.index))
        evaluating = sum(one.work == "evaluation" for _, one in self._running)
        assert evaluating <= self.evaluators
        assert len(self._running) - evaluating <= self.slots

    def events(self, timeout: float) -> list[Event]:
        if not self._running:
            return []
        end, job = self._running.pop(self._running.index(min(self._running, key=lambda x: x[0])))
        self.now = end
        if job.work != "training":
            return [Event(job.index, "done")]
        self._trained.add(job.index)
        return [Event(job.index, "trained")]

    def stop(self) -> None:
        self.stopped = True

    def close(self, seconds: float) -> None:
        pass


def scripted(monkeypatch, tmp_path, *arguments, **effort) -> tuple[Scripted, list[Event]]:
    executor = Scripted(*arguments)
    monkeypatch.setattr(schedule, "make_executor", lambda *_: executor)
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: executor.now))
    packs = range(len(arguments[2]))
    return executor, list(run_packs(packs, Store(tmp_path), Settings(), Effort(**effort)))


def test_the_next_stack_is_trained_while_one_is_evaluated(monkeypatch, tmp_path):
    executor, events = scripted(monkeypatch, tmp_path, 1, 1, [(3, 2)] * 3)
    assert executor.log == [
        (0, "training", 0),
        (3, "evaluation", 0),
        (3, "training", 1),
        (6, "evaluation", 1),
        # no other waits to be trained
        (6, "all", 2),
    ]
    assert [e.index for e in events if e.phase == "done"] == [0, 1, 2]
    assert executor.now == 11


def test_stacks_that_wait_for_evaluators_are_few_and_no_process_is_idle(monkeypatch, tmp_path):
    executor, _ = scripted(monkeypatch, tmp_path, 1, 1, [(1, 10)] * 8)
    trained, evaluated, most = 0, 0, 0
    for _, work, _ in executor.log:
        trained += work == "training"
        evaluated += work == "evaluation"
        most = max(most, trained - evaluated)
    assert most <= schedule.WAITING + 2
    # 80 seconds of evaluation and 8 of training for two processes
    assert executor.now <= 50


def test_without_evaluators_all_is_as_it_was(monkeypatch, tmp_path):
    executor, _ = scripted(monkeypatch, tmp_path, 2, 0, [(3, 2)] * 4)
    assert [(work, i) for _, work, i in executor.log] == [("all", i) for i in range(4)]


def test_time_that_is_up_leaves_trained_stacks_to_the_next_command(monkeypatch, tmp_path):
    executor, events = scripted(monkeypatch, tmp_path, 1, 1, [(3, 2)] * 4, deadline=4.0)
    assert executor.stopped
    # the second was being trained
    assert {(e.phase, e.index) for e in events if e.phase != "trained"} == {
        ("done", 0),
        ("stopped", 1),
        ("stopped", 2),
        ("stopped", 3),
    }


@pytest.mark.parametrize(
    ("given", "jobs", "stacks", "cores", "on_gpus", "wanted"),
    [
        ("auto", 1, 9, 16, True, 4),
        ("auto", 4, 90, 16, True, 12),
        ("auto", 1, 9, 2, True, 1),
        ("auto", 4, 9, 4, True, 1),
        ("auto", 2, 9, 64, False, 0),
        # one stack makes way for no other
        ("auto", 1, 1, 16, True, 0),
        (2, 2, 2, 16, False, 0),
        (8, 1, 3, 1, False, 2),
        (0, 1, 9, 16, True, 0),
    ],
)
def test_evaluators_are_the_cores_beside_those_of_gpus(given, jobs, stacks, cores, on_gpus, wanted):
    settings = Settings(eval=EvalSettings(processes=given))
    assert n_evaluators(settings, jobs, stacks, cores=cores, on_gpus=on_gpus) == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("eval.processes=-1", "eval.processes=-1 must be auto or at least 0"),
        ("eval.processes=some", "eval.processes"),
        ("eval.processes=2 executor=slurm slurm.cluster=local", "evaluates what it has trained"),
    ],
)
def test_a_wrong_number_is_one_line(given, words, tmp_path, capsys):
    assert main(["bench", *ONE, f"results={tmp_path / 'results'}", *given.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "results").exists()


# --- the real ones

SEVERAL = ["methods=[bc]", *TINY[1:], "seeds=[0,1,2]", "max_stack=1", "jobs=1"]


def bench(results, *more: str, seen: Callable[[Event], None] = lambda event: None) -> list[Event]:
    made = plan([*SEVERAL, f"results={results}", *more], bench=True)
    store, events = Store(results), []
    store.check_writable()
    for event in run_packs(pack(made.cells, max_stack=1), store, made.settings):
        events.append(event)
        seen(event)
    return events


@pytest.fixture(scope="module")
def by_one_process(tmp_path_factory):
    results = tmp_path_factory.mktemp("one")
    bench(results, "eval.processes=0")
    return rows(results)


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "more",
    [["eval.processes=1"], ["eval.processes=2"], ["eval.processes=1", "executor=ray"]],
    ids=["one", "two", "ray"],
)
def test_rows_are_the_same_from_any_number_of_evaluators(more, by_one_process, tmp_path):
    before = children()
    events = bench(tmp_path, *more)
    ends = {p: [e.index for e in events if e.phase == p] for p in ("trained", "done")}
    assert ends["trained"] == [0, 1] and sorted(ends["done"]) == [0, 1, 2]
    assert not differences(rows(tmp_path), by_one_process) and not leftovers(tmp_path)
    assert left_over(before) == []


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.filterwarnings("default")
def test_an_evaluator_that_is_killed_is_replaced(by_one_process, tmp_path, monkeypatch):
    made, killed, trained, make = [], [], [], schedule.make_executor
    monkeypatch.setattr(schedule, "make_executor", lambda *a: made.append(make(*a)) or made[0])
    monkeypatch.setattr(schedule, "AGAIN_S", 0.0)

    def kill(event: Event) -> None:
        if event.phase == "trained":
            trained.append(event.index)
        # it has only just begun
        if trained and event.index == trained[0] and event.phase == "loading" and not killed:
            (process,) = [p for p in made[0]._busy if p.evaluates]
            os.kill(process.process.pid, signal.SIGKILL)
            killed.append(event.index)

    events = bench(tmp_path, "eval.processes=1", seen=kill)
    assert killed == [0] and [e.index for e in events if e.phase == "again"] == [0]
    since = events[[e.phase for e in events].index("trained") :]
    assert not [e for e in since if (e.phase, e.index) == ("training", 0)]
    assert not differences(rows(tmp_path), by_one_process) and not leftovers(tmp_path)


def about(checkpoint) -> dict:
    with safe_open(checkpoint, "np") as file:
        return json.loads(file.get_tensor("about").tobytes())["about"]


@pytest.mark.slow
@pytest.mark.env
def test_ctrl_c_ends_evaluators_too_and_keeps_what_is_trained(tmp_path):
    long = [*SEVERAL, "eval.processes=1", "eval.episodes=20000", f"results={tmp_path}"]
    before = children()
    here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMAND_LINE, "bench", *long]
    phases = lambda: [w.stack["phase"] for w in workers(tmp_path) if w.stack]
    with subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True) as process:
        # one evaluates the first stack; the other one trained two more, and evaluates the last
        while process.poll() is None and phases() != ["evaluating"] * 2:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=120)
    # 3 s on a machine that has nothing else to do
    assert process.returncode == 130 and time.monotonic() - start < 20, errors
    assert len(errors.strip().splitlines()) == 1 and "interrupted" in errors, errors
    assert left_over(before) == [] and Store(tmp_path).runs().empty
    saved = list(tmp_path.glob("checkpoints/*.safetensors"))
    # beside states of which monitor episodes remain
    assert sum(about(path)["trained"] is not None for path in saved) == 3
