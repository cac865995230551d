"""A disk that is full costs checkpoints, not training; a record that cannot be written says why."""

import contextlib
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.disks import files_of_at_most

from offbench.bench import recording, runner
from offbench.bench.progress import Progress
from offbench.cli import main
from offbench.results.store import Store
from offbench.training import loop
from offbench.training.step import Carry

RUN = [
    "run",
    "method=bc",
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=8",
    "eval.episodes=2",
    "eval.monitor_at=[]",
    "seeds=[0,1]",
    "jobs=1",
    "device=cpu",
    "checkpoint_minutes=0",
]
FULL = "No space left on device"


def state(x: float) -> Carry:
    return Carry((torch.full((9000,), x),), torch.tensor([7]), torch.tensor(2))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "c.safetensors"
    progress = Progress([{"update": 1}])
    assert progress.save(state(1.0), path) and progress.unsaved is None
    progress.curves.append({"update": 2})
    for size in (0, 100, 8192, 20_000):
        with files_of_at_most(size):
            assert progress.save(state(2.0), path)
        assert progress.unsaved == "a checkpoint could not be written: File too large"
        carry, found = Progress.load(path, state(0.0))
        assert carry.state[0][0] == 1.0 and found.curves == [{"update": 1}]
        assert found.unsaved is None and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert progress.save(state(2.0), path)
    carry, found = Progress.load(path, state(0.0))
    assert carry.state[0][0] == 2.0 and len(found.curves) == 2


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "other"
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    return path


def rows(folder: Path) -> pd.DataFrame:
    return Store(folder).episodes().sort_values(["seed", "episode"], ignore_index=True)


def test_training_goes_on_where_no_checkpoint_fits(disk, capsys):
    # of two megabytes
    assert main([*RUN, "method.hidden=[256,256]", "keep=none", f"results={disk}"]) == 0
    said = capsys.readouterr()
    assert said.out.count(f"a checkpoint could not be written: {FULL}") == 1
    assert len(Store(disk).runs(status="ok")) == 2 and not list(disk.glob("checkpoints/*"))


def test_a_record_that_does_not_fit_says_why_and_nothing_is_trained_again(
    disk, tmp_path, monkeypatch, capsys
):
    real, filled = runner.record, []

    def full(*args):
        filled.append(fill(disk))
        return real(*args)

    small = [*RUN, "method.hidden=[8]"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "record", full)
        patch.setattr(recording, "FULL_DISK_S", (0.0,))
        assert main([*small, f"results={disk}"]) == 3
    error = capsys.readouterr().err
    assert FULL in error and "Traceback" not in error and error.count("failed:") == 1
    assert not list(disk.glob("runs/**/*.json")) and not list(disk.glob("runs/**/*.parquet"))
    (kept,) = disk.glob("checkpoints/*.safetensors")
    assert kept.stat().st_size > 0

    filled[0].unlink()
    steps = []
    engine = loop.make_engine
    monkeypatch.setattr(
        loop,
        "make_engine",
        lambda step, carry, **k: (steps.append(int(carry.step)), engine(step, carry, **k))[1],
    )
    assert main([*small, f"results={disk}"]) == 0
    assert not steps and not list(disk.glob("checkpoints/*"))
    assert main([*small, f"results={tmp_path / 'whole'}"]) == 0 and steps == [0]
    pd.testing.assert_frame_equal(rows(disk), rows(tmp_path / "whole"))
