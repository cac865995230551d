"""A run that is interrupted goes on where it was and ends where it would have ended."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from torch.utils._pytree import tree_leaves

from offbench.bench.progress import Progress
from offbench.data.pipeline import make_pipeline
from offbench.errors import UserError
from offbench.methods.bc import BC
from offbench.methods.td3_bc import TD3BC
from offbench.testing.contract import SPEC
from offbench.training import checkpoint
from offbench.training.engine import Engine
from offbench.training.loop import train
from offbench.training.step import initial_carry, make_step

HIDDEN = (8, 8)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.fixture
def trained(data):
    method = TD3BC(hidden=HIDDEN)
    step = make_step(method, make_pipeline(data, batch_size=8))
    carry = initial_carry(method, SPEC, [0, 5])
    engine = Engine(step, carry)
    engine.run(20)
    return step, carry, engine


def test_twenty_and_twenty_updates_through_a_file_equal_forty_bit_for_bit(trained, tmp_path):
    step, carry, engine = trained
    checkpoint.save(engine.carry, tmp_path / "c.safetensors")
    engine.run(20)
    resumed = Engine(step, checkpoint.load(tmp_path / "c.safetensors", carry))
    resumed.run(20)
    assert equal(resumed.carry, engine.carry) and int(resumed.carry.step) == 40


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_by_name(trained, tmp_path):
    _, carry, engine = trained
    path = tmp_path / "c.safetensors"
    checkpoint.save(engine.carry, path)
    with pytest.raises(UserError, match=r"c\.safetensors is of another run"):
        checkpoint.load(path, initial_carry(BC(hidden=HIDDEN), SPEC, [0, 5]))
    with pytest.raises(UserError, match="of another run"):
        checkpoint.load(path, initial_carry(TD3BC(hidden=HIDDEN), SPEC, [0]))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"c\.safetensors cannot be read"):
        checkpoint.load(path, carry)


def test_saving_replaces_whole_files_only(trained, tmp_path, monkeypatch):
    _, carry, engine = trained
    path = tmp_path / "c.safetensors"
    checkpoint.save(carry, path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(engine.carry, path)
    assert equal(checkpoint.load(path, carry), carry) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.env
def test_a_killed_run_ends_with_the_numbers_of_one_that_was_not(tmp_path):
    def command(folder) -> list[str]:
        return [
            sys.executable,
            "-m",
            "offbench.cli",
            "run",
            "method=td3_bc",
            "seeds=[0,1]",
            "jobs=1",
            "task=offbench/hopper/medium-replay-v0",
            "n_updates=3000",
            "eval.episodes=1",
            "method.hidden=[8]",
            "checkpoint_minutes=0",
            "eval.monitor_at=[0.01,0.9]",
            "eval.monitor_episodes=1",
            f"results={folder}",
        ]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path / "killed"), env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # the whole file: what is being written has a dot in front
    while not list((tmp_path / "killed").glob("checkpoints/[!.]*.safetensors")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("runs/**/*.json"))  # it had not finished

    (progress,) = (tmp_path / "killed").glob("checkpoints/*.json")
    body = json.loads(progress.read_text())
    progress.write_text(json.dumps(body | {"code": ["0123456"]}))  # as if by code from before
    rows, reasons = [], []
    for name in ("killed", "whole"):
        subprocess.run(command(tmp_path / name), env=env, check=True, capture_output=True)
        files = sorted((tmp_path / name).glob("runs/**/*.parquet"))
        rows.append(pd.concat(map(pd.read_parquet, files), ignore_index=True))
        assert not list((tmp_path / name).glob("checkpoints/*"))  # not needed any more
        reasons += [
            json.loads(p.read_text())["reason"] for p in (tmp_path / name).glob("runs/**/*.json")
        ]
    pd.testing.assert_frame_equal(*rows)  # what was seen before the end among them
    assert reasons == 2 * ["trained in part by commit 0123456"] + 2 * [None]
    assert set(rows[0]["update"]) == {30, 2700, 3000}


def test_a_run_trained_to_its_end_but_not_judged_is_judged_when_it_goes_on(data):
    pipeline, method = make_pipeline(data, batch_size=8), BC(hidden=HIDDEN)
    *_, last = train(method, pipeline, SPEC, seeds=[0, 1], n_updates=20)
    (again,) = train(method, pipeline, SPEC, seeds=[0, 1], n_updates=20, resume=last.carry)
    assert again.update == 20 and equal(again.carry, last.carry) and again.metrics == {}


def test_what_a_pack_has_shown_is_read_back_and_what_is_ahead_of_its_checkpoint_dropped(tmp_path):
    path = tmp_path / "c.safetensors"
    frames = [
        pd.DataFrame(
            {
                "update": [n, n],
                "return": [0.1 + n, 1e-17],
                "success": [True, None],
                "chunk_lengths": [[n, 2], None],
                "start_value": [1 / 3, None],
                "plans": [None, None],
            }
        ).astype({"success": "boolean", "start_value": "Float64", "plans": "Int64"})
        for n in (10, 30)
    ]
    curves = [{"update": n, "loss": [1 / 3, float("inf")]} for n in (10, 20, 30)]
    Progress(curves, frames, 1.5, ["abc"]).save(path)
    assert Progress.load(path).curves == []  # no checkpoint: the run begins again
    path.touch()
    found = Progress.load(path)
    assert found.curves == curves and found.train_s == 1.5 and found.code == ["abc"]
    for a, b in zip(found.frames, frames, strict=True):
        pd.testing.assert_frame_equal(a, b)
    found.forget_from(30)
    assert [c["update"] for c in found.curves] == [10, 20] and len(found.frames) == 1
    # a file of before the field had its name
    file = Progress.path(path)
    file.write_text(file.read_text().replace('"resumed_from": []', '"began": ["went on"]'))
    assert Progress.load(path).resumed_from == ["went on"]
