"""A run that is interrupted goes on where it was and ends where it would have ended."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from support.own_td3_bc import OwnTD3BC
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.bench.progress import Progress
from offbench.data.pipeline import make_pipeline
from offbench.methods.bc import BC
from offbench.methods.td3_bc import TD3BC
from offbench.testing.contract import SPEC
from offbench.training import checkpoint
from offbench.training.checkpoint import Damaged
from offbench.training.engine import Engine
from offbench.training.imperative import Imperative
from offbench.training.loop import train
from offbench.training.step import Carry, initial_carry, make_step

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
    resumed = Engine(step, checkpoint.load(tmp_path / "c.safetensors", carry)[0])
    resumed.run(20)
    assert equal(resumed.carry, engine.carry) and int(resumed.carry.step) == 40


def test_a_checkpoint_of_another_run_is_damaged_by_name(trained, tmp_path):
    _, carry, engine = trained
    path = tmp_path / "c.safetensors"
    checkpoint.save(engine.carry, path)
    others = [
        initial_carry(BC(hidden=HIDDEN), SPEC, [0, 5]),
        initial_carry(TD3BC(hidden=HIDDEN), SPEC, [0]),
        initial_carry(TD3BC(hidden=HIDDEN), SPEC, [0, 6]),
    ]
    for other in others:
        with pytest.raises(
            Damaged, match=r"checkpoint c\.safetensors is damaged \(it is of another"
        ):
            checkpoint.load(path, other)
    assert equal(checkpoint.load(path, carry)[0], engine.carry)


def small() -> Carry:
    return Carry((torch.arange(3.0),), torch.tensor([7]), torch.tensor(2))


def test_every_flipped_bit_and_every_cut_is_damage(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(small(), path, {"curves": [{"loss": [1 / 3, float("inf")]}]})
    whole = path.read_bytes()
    carry, about = checkpoint.load(path, small())
    assert equal(carry, small()) and about == {"curves": [{"loss": [1 / 3, float("inf")]}]}
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        for content in (bytes(flipped), whole[:at]):
            path.write_bytes(content)
            with pytest.raises(Damaged, match="is damaged") as found:
                checkpoint.load(path, small())
            assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04.", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 99, b"hello" * 50, None],
    ids=["empty", "pickle", "bare", "ones", "text", "earlier version"],
)
def test_a_file_of_another_program_is_damage(content, tmp_path):
    path = tmp_path / "c.safetensors"
    if content is None:
        save_file({"0000": torch.arange(3.0)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(Damaged, match="cut off, or of another version"):
        checkpoint.load(path, small())


class Canary:
    """Unpickling one of these writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_checkpoint_is_never_loaded(tmp_path, data):
    path, canary = tmp_path / "c.safetensors", tmp_path / "canary"
    members = np.empty(1, object)
    members[0] = Canary(canary)
    blob = torch.frombuffer(bytearray(pickle.dumps(members)), dtype=torch.uint8)
    key = torch.stack([rng.split(rng.key(0))[1]])
    # as the version before wrote a PyTorch class
    save_file({"0000": torch.zeros(1), "0001": blob, "0002": key, "0003": torch.tensor(3)}, path)
    like = Imperative(OwnTD3BC, width=4).like([0], SPEC)
    with pytest.raises(Damaged, match="another version"):
        checkpoint.load(path, like)
    torch.save({"state": Canary(canary)}, path)
    with pytest.raises(Damaged, match="another version"):
        checkpoint.load(path, like)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


def test_saving_replaces_whole_files_only(trained, tmp_path, monkeypatch):
    _, carry, engine = trained
    path = tmp_path / "c.safetensors"
    checkpoint.save(carry, path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.save(engine.carry, path)
    assert equal(checkpoint.load(path, carry)[0], carry) and len(list(tmp_path.iterdir())) == 1


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
    assert reasons == 4 * [None]
    assert set(rows[0]["update"]) == {30, 2700, 3000}


def test_a_run_trained_to_its_end_but_not_judged_is_judged_when_it_goes_on(data):
    pipeline, method = make_pipeline(data, batch_size=8), BC(hidden=HIDDEN)
    *_, last = train(method, pipeline, SPEC, seeds=[0, 1], n_updates=20)
    (again,) = train(method, pipeline, SPEC, seeds=[0, 1], n_updates=20, resume=last.carry)
    assert again.update == 20 and equal(again.carry, last.carry) and again.metrics == {}


def progress() -> Progress:
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
    return Progress(curves, frames, 1.5, ["abc"], remarks=["a remark"])


def test_what_a_pack_has_shown_is_read_back_with_its_state(tmp_path):
    path, shown = tmp_path / "c.safetensors", progress()
    assert shown.save(small(), path)
    carry, found = Progress.load(path, small())
    assert equal(carry, small()) and found.curves == shown.curves and found.remarks == ["a remark"]
    assert (found.train_s, found.code, found.note) == (1.5, ["abc"], None)
    for a, b in zip(found.frames, shown.frames, strict=True):
        pd.testing.assert_frame_equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_damaged_checkpoint_is_set_aside_once_and_training_begins_again(tmp_path):
    path, shown = tmp_path / "c.safetensors", progress()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        carry, found = Progress.load(path, small())
        assert carry is None and found.curves == [] and found.frames == []
        line = "checkpoint c.safetensors is damaged (cut off, or of another version); training begins again"
        assert found.note == line and found.remarks == [line]
    assert [p.name for p in tmp_path.iterdir()] == ["c.damaged"]
    assert (tmp_path / "c.damaged").read_bytes() == b"two"
    # of another pack, with a state of the same shapes
    shown.save(small(), path)
    path.rename(tmp_path / "d.safetensors")
    carry, found = Progress.load(tmp_path / "d.safetensors", small())
    assert carry is None and "it is of another run" in found.note
