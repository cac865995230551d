"""Atomic writes, checksums, and ids as file names."""

import hashlib
import io
import os

import pytest
from omegaconf import OmegaConf
from support.paths import ROOT

from offbench.io import atomic_write, read_yaml, replacing, sha256_of, slug


def test_a_small_file_is_never_seen_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_created(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    atomic_write(path, b"x")
    assert path.read_bytes() == b"x" and sha256_of(path) == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    "name, file",
    [
        ("offbench/hopper/expert-v0", "offbench--hopper--expert-v0"),
        ("mix@0.1@0:d4rl/a-v2:d4rl/b-v2", "mix@0.1@0%3Ad4rl--a-v2%3Ad4rl--b-v2"),
        ("iql+aw (lr=3e-4)", "iql+aw (lr=3e-4)"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("%2Ehidden", "%252Ehidden"),
        ("a\\b*c?", "a%5Cb%2Ac%3F"),
    ],
)
def test_an_id_is_the_name_of_one_file(name, file):
    assert slug(name) == file


@pytest.mark.parametrize("folder", ["conf", "datasets"])
def test_yaml_is_read_as_hydra_reads_it(folder):
    files = sorted((ROOT / folder).rglob("*.yaml"))
    assert files
    for path in files:
        assert read_yaml(path.read_text(encoding="utf-8")) == OmegaConf.to_container(
            OmegaConf.load(path)
        ), path


@pytest.mark.parametrize(
    "text",
    "1e-3 3e-4 .5 1. -2.5e+6 1_000 0x10 .inf -.inf 12e 007 1:30 e5 true null 1e5 2 x".split(),
)
def test_numbers_in_yaml_are_those_of_hydra(text):
    assert repr(read_yaml(f"x: {text}")) == repr(
        OmegaConf.to_container(OmegaConf.load(io.StringIO(f"x: {text}")))
    )
