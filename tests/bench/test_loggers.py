"""Loggers beside training: what they are told, and that training neither waits for nor fails with them."""

import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from support.records import episodes, provenance, spec
from support.wandb_files import offline_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offbench.bench import loggers
from offbench.bench.event_files import EventFiles, run_folder
from offbench.bench.logged import Logged, evaluation_means
from offbench.bench.loggers import Background, Loggers
from offbench.bench.plan import plan
from offbench.bench.settings import WandbSettings
from offbench.bench.sync import to_event_files
from offbench.bench.wandb_runs import run_arguments
from offbench.errors import UserError
from offbench.results.store import Store

LATER = {"plans": 2, "start_value": None}
FACTS = {"commit": "c" * 40, "sources": {"method.lr": "command line"}}


@pytest.fixture(autouse=True)
def nothing_given_up(monkeypatch):
    monkeypatch.setattr(loggers, "_given_up", set())
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "NAME", "TAGS", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


class Remembers:
    """A sink that keeps what it is told."""

    def __init__(self):
        self.calls, self.closed = [], False

    def metrics(self, i, update, values):
        self.calls.append((i, update, values))

    def evaluation(self, i, rows):
        self.calls.append((i, evaluation_means(rows)))

    def close(self):
        self.closed = True


class Raises(Remembers):
    def metrics(self, i, update, values):
        raise SystemExit("no\nnetwork")


def setting(*overrides: str):
    return plan(["method=bc", *overrides], bench=False).settings


# --- in the background


def test_every_run_of_a_stack_gets_its_own_numbers():
    sink = Remembers()
    stack = Loggers([Background("x", lambda: sink)])
    stack.metrics(10, {"loss": [1.0, 2.0]})
    stack.episodes(episodes(2, **LATER).assign(member=1))
    stack.close(10)
    means = {"test/score": 50, "test/return": 0, "test/length": 7, "test/executed_length": 3.5}
    assert sink.calls == [(0, 10, {"loss": 1.0}), (1, 10, {"loss": 2.0}), (1, means)]
    assert sink.closed and stack.warnings == []
    Loggers([]).metrics(10, {"loss": [1.0]})


def test_what_raises_is_given_up_with_one_line():
    raises, fine = Raises(), Remembers()
    stack = Loggers([Background("a", lambda: raises), Background("b", lambda: fine)])
    for update in (1, 2, 3):
        stack.metrics(update, {"loss": [1.0]})
    stack.close(10)
    assert len(fine.calls) == 3 and fine.closed
    (words,) = stack.warnings
    assert words.startswith("logger=a was given up (SystemExit: no network); training went on")


def test_what_cannot_start_is_not_tried_again(tmp_path, monkeypatch):
    settings = setting("logger=wandb", f"results={tmp_path}")
    # as where the package is broken or not installed
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with loggers.open_loggers(settings, [Logged("bc", spec(), FACTS)]) as stack:
        stack.metrics(1, {"loss": [1.0]})
    assert len(stack.warnings) == 1 and "wandb" in stack.warnings[0]
    with loggers.open_loggers(settings, [Logged("bc", spec(), FACTS)]) as stack:
        assert stack.warnings == []


def test_nobody_waits_for_what_hangs(monkeypatch):
    monkeypatch.setattr(loggers, "_QUEUE_SIZE", 2)
    hangs = threading.Event()

    def start():
        hangs.wait(60)
        return Remembers()

    stack = Loggers([Background("x", start)])
    begun = time.monotonic()
    for update in range(1000):
        stack.metrics(update, {"loss": [1.0]})
    assert time.monotonic() - begun < 5
    stack.close(0.05)
    assert stack.warnings == [w for w in stack.warnings if "does not answer for 0.05 s" in w]
    assert len(stack.warnings) == 1
    # the next stack does not wait for it again
    assert "x" in loggers._given_up
    hangs.set()


def test_what_is_too_slow_loses_values_and_says_so(monkeypatch):
    monkeypatch.setattr(loggers, "_QUEUE_SIZE", 2)
    go = threading.Event()
    sink = Remembers()
    stack = Loggers([Background("x", lambda: (go.wait(60), sink)[1])])
    for update in range(5):
        stack.metrics(update, {"loss": [1.0]})
    go.set()
    stack.close(10)
    assert len(sink.calls) == 2 and "3 values were dropped" in stack.warnings[0]


# --- settings


def test_loggers_are_named_alone_or_together():
    assert setting("logger=none").loggers == ()
    assert setting("logger=wandb").loggers == ("wandb",)
    assert setting("logger=[wandb,tensorboard]").loggers == ("wandb", "tensorboard")
    with pytest.raises(UserError, match="logger='wnadb' must be 'none' or 'wandb'"):
        setting("logger=wnadb")
    with pytest.raises(UserError, match=r"did you mean 'wandb\.project'"):
        setting("wandb.projct=x")


def test_tensorboard_that_is_not_installed_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'offbench\[tensorboard\]'"):
        setting("logger=tensorboard")


def test_a_setting_wins_over_a_variable_and_that_over_the_default(monkeypatch):
    logged = Logged("iql+aw", spec(), FACTS)
    usual = run_arguments(logged, WandbSettings(mode="offline"))
    assert usual["project"] == "offbench-toy" and usual["id"] == spec().run_id
    assert (usual["group"], usual["name"]) == ("iql+aw-toy/point-v0", "iql+aw-toy/point-v0-0")
    assert usual["tags"] == ["toy", "toy/point-v0", "iql", "seed 0", "ccccccc"]
    config = usual["config"]
    assert config["hparams"]["lr"] == 3e-4 and config["sources"] == FACTS["sources"]
    assert (config["entry"], config["seed"], config["commit"]) == ("iql+aw", 0, "c" * 40)
    for name, value in {"PROJECT": "p", "RUN_GROUP": "g", "NAME": "n", "TAGS": "a,b"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    told = run_arguments(logged, WandbSettings())
    assert [told[k] for k in ("project", "group", "name", "mode")] == ["p", "g", "n-0", "disabled"]
    assert told["tags"][-2:] == ["a", "b"]
    own = WandbSettings(project="q", group="h", name="m", tags=("c",), mode="offline")
    told = run_arguments(logged, own)
    assert [told[k] for k in ("project", "group", "name", "mode")] == ["q", "h", "m-0", "offline"]
    assert told["tags"][-1] == "c" and "a" not in told["tags"]


# --- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    return {k: [(e.step, round(e.value, 4)) for e in events.Scalars(k)] for k in names}


def test_event_files_have_metrics_and_evaluations_by_update(tmp_path):
    runs = [Logged("iql", spec(seed=seed), FACTS) for seed in (0, 1)]
    files = EventFiles(runs, tmp_path)
    for update in (50, 100):
        files.metrics(1, update, {"loss": 1 / update})
    files.evaluation(1, episodes(2, update=50, stream="monitor", **LATER))
    files.evaluation(1, episodes(2, **LATER))
    files.close()
    found = scalars(run_folder(tmp_path, runs[1]))
    assert found["train/loss"] == [(50, 0.02), (100, 0.01)]
    assert found["monitor/score"] == [(50, 50.0)] and found["test/score"] == [(100, 50.0)]
    assert scalars(run_folder(tmp_path, runs[0])) == {}


def test_what_a_run_logged_beyond_its_checkpoint_is_shown_once(tmp_path):
    run = Logged("iql", spec(), FACTS)
    for resumed_at, updates in ((0, (25, 50, 75)), (50, (75, 100))):
        files = EventFiles([run], tmp_path, resumed_at=resumed_at)
        for update in updates:
            files.metrics(0, update, {"loss": float(update)})
        files.close()
        # event files are read in the order of their times, in seconds
        time.sleep(1.1)
    found = scalars(run_folder(tmp_path, run))
    assert found["train/loss"] == [(u, float(u)) for u in (25, 50, 75, 100)]


def test_a_recorded_run_is_written_once_and_whole(tmp_path, monkeypatch):
    store = Store(tmp_path / "results")
    rows = pd.concat([episodes(2, update=50, stream="monitor"), episodes()], ignore_index=True)
    curves = {"update": [50, 100], "loss": [2.0, float("nan")]}
    store.append(spec(), rows, provenance(), curves)
    record, seen = store.read(spec().run_id), store.episodes()
    with monkeypatch.context() as patch:
        patch.setattr(EventFiles, "evaluation", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_event_files(record, seen, tmp_path / "events")
    assert not list((tmp_path / "events").iterdir())
    # of a process that was killed
    (tmp_path / "events" / f".{spec().run_id}.1.tmp" / "toy").mkdir(parents=True)
    assert to_event_files(record, seen, tmp_path / "events")
    assert not to_event_files(record, seen, tmp_path / "events")
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["toy"]
    (folder,) = (tmp_path / "events").glob("toy/*/iql/seed-0-*")
    assert len(list(folder.iterdir())) == 1
    found = scalars(folder)
    assert found["train/loss"][0] == (50, 2.0) and found["test/score"] == [(100, 50.0)]
    assert found["monitor/score"] == [(50, 50.0)]


# --- wandb itself


@pytest.mark.slow
def test_wandb_has_each_seed_by_update_without_an_account(tmp_path):
    import wandb

    settings = setting("logger=wandb", "wandb.mode=offline", f"results={tmp_path}")
    runs = [Logged("iql", spec(seed=seed), FACTS) for seed in (0, 1)]
    with loggers.open_loggers(settings, runs) as stack:
        for update in (50, 100):
            stack.metrics(update, {"loss": [1.0, 2.0]})
        # comes when training is further
        watched = episodes(2, update=50, stream="monitor", **LATER)
        stack.episodes(watched.assign(member=0))
        stack.episodes(episodes(3, **LATER).assign(member=0))
    assert stack.warnings == []
    # the files are whole when wandb's own process has ended
    wandb.teardown()
    found = {run.about["config"]["seed"]: run for run in offline_runs(tmp_path)}
    assert found.keys() == {0, 1} and {r.about["id"] for r in found.values()} == {
        run.spec.run_id for run in runs
    }
    loss = lambda run: [(h["update"], h["train/loss"]) for h in run.history if "train/loss" in h]
    assert loss(found[0]) == [(50, 1.0), (100, 1.0)] and loss(found[1]) == [(50, 2.0), (100, 2.0)]
    (score,) = [h for h in found[0].history if "monitor/score" in h]
    assert (score["update"], score["monitor/score"]) == (50, 50)
    assert found[0].summary["test/score"] == 50 and "test/score" not in found[1].summary
    assert found[0].summary["test/episodes.nrows"] == 3
    assert found[0].axes["train/*"] == found[0].axes["test/*"] == "update"
