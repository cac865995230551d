"""`offbench sync`: recorded runs in wandb and TensorBoard, each once, and training without either."""

import os
import socket
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.wandb_files import offline_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offbench.cli import main
from offbench.results.store import Store

WHAT = [
    "methods=[bc]",
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=20",
    "eval.episodes=2",
    "method.hidden=[8]",
    "seeds=[0,1]",
]
WATCHED = ["eval.monitor_at=[0.5]", "eval.monitor_episodes=1", "jobs=1", "device=cpu"]
pytestmark = pytest.mark.env


def scalars(folder, seed: int) -> dict[str, list[int]]:
    (path,) = folder.glob(f"quick/*/*/seed-{seed}-*")
    events = EventAccumulator(str(path)).Reload()
    return {k: [e.step for e in events.Scalars(k)] for k in events.Tags()["scalars"]}


def test_a_run_is_logged_while_it_trains_and_sent_later_alike(tmp_path, capsys):
    results = f"results={tmp_path / 'r'}"
    assert main(["bench", *WHAT, *WATCHED, results, "logger=tensorboard"]) == 0
    capsys.readouterr()
    events = ["sync", "--tensorboard", str(tmp_path / "e"), *WHAT, results]
    assert main(events) == 0
    assert f"{tmp_path / 'e'}: 2 runs sent\n" in capsys.readouterr().out
    live, sent = (scalars(tmp_path / x, 1) for x in ("r/tensorboard", "e"))
    assert live == sent and live["monitor/score"] == [10] and live["test/score"] == [20]
    assert len(live["train/actor_loss"]) == 20
    assert main(events) == 0
    assert "0 runs sent, 2 there already" in capsys.readouterr().out


def test_where_to_and_what_must_be_said(tmp_path, capsys):
    assert main(["sync", *WHAT, f"results={tmp_path}"]) == 2
    assert "say where to send the runs: --wandb or --tensorboard DIR" in capsys.readouterr().err
    assert main(["sync", "--wandb", *WHAT, f"results={tmp_path}"]) == 2
    assert "nothing recorded" in capsys.readouterr().err
    assert main(["sync", "--tensorbord", "x"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def offbench(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "offbench.cli", *args],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_training_does_not_depend_on_a_server_that_never_answers(tmp_path):
    results = f"results={tmp_path}"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = offbench(
            *["bench", *WHAT, *WATCHED, results, "logger=wandb"],
            WANDB_API_KEY="a" * 40,
            WANDB_BASE_URL=url,
            WANDB_INIT_TIMEOUT="3",
        )
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("logger=wandb was given up") == 1
    assert len(Store(tmp_path).runs(status="ok")) == 2
    # and later, without an account
    for words in ("wandb: 2 runs sent", "wandb: 0 runs sent, 2 there already"):
        done = offbench("sync", "--wandb", *WHAT, results, WANDB_MODE="offline")
        assert done.returncode == 0 and words in done.stdout, done.stderr
    runs = offline_runs(tmp_path)
    assert sorted(run.about["id"] for run in runs) == sorted(Store(tmp_path).runs()["run_id"])
    for run in runs:
        steps = [h["update"] for h in run.history if "train/actor_loss" in h]
        assert steps == list(range(1, 21))
        score = Store(tmp_path).episodes(run_id=run.about["id"], stream="test")["score"].mean()
        assert run.summary["test/score"] == pytest.approx(score)
        assert run.about["config"]["hparams"]["hidden"] == [8]
