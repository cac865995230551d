"""A policy exported as TorchScript acts as the one that was kept, in a process that knows nothing of offbench."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from offbench.bench.policy import load_policy
from offbench.cli import main
from offbench.errors import UserError

HOPPER = "offbench/hopper/medium-replay-v0"
TINY = ["method.hidden=[16,16]", "batch_size=32", "n_updates=20", "seeds=[0]", "eval.episodes=1"]
TINY += ["eval.monitor_at=[]", "jobs=1", "engine=vmap", f"task={HOPPER}"]


def kept(results, *args: str):
    """The policy of a short run."""
    own = {arg.partition("=")[0] for arg in args}
    tiny = [arg for arg in TINY if arg.partition("=")[0] not in own]
    assert main(["run", *tiny, f"results={results}", *args]) == 0
    (path,) = results.glob("runs/*/*/*/*.safetensors")
    return load_policy(path)


ACTING = """
import sys, numpy as np, torch
rows = torch.from_numpy(np.load(sys.argv[1]))
for name in sys.argv[2:]:
    policy = torch.jit.load(name)
    np.save(name + ".npy", np.stack([policy(row).numpy() for row in rows]))
assert not any(name.startswith("offbench") for name in sys.modules)
"""


def test_the_files_act_as_the_policies_do(tmp_path):
    rows = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    policies = {m: kept(tmp_path / m, f"method={m}") for m in ("td3_bc", "iql", "bc")}
    files = [str(policy.export(tmp_path / f"{m}.pt")) for m, policy in policies.items()]
    command = [sys.executable, "-c", ACTING, str(tmp_path / "rows.npy"), *files]
    subprocess.run(command, check=True, cwd=tmp_path)
    for name, policy in policies.items():
        actions = np.load(tmp_path / f"{name}.pt.npy")
        np.testing.assert_allclose(actions, policy.act(rows), rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.ptp(actions, 0).min() > 0
        assert np.abs(policy.units.scaled(torch.zeros(1, 3)).numpy() - actions).max() > 1e-3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["method=iql", "view=chunk", "view.h=3"], "plans ahead or looks back"),
        (["method=bc", "method.gaussian=true", "method.sample_actions=true"], "draws its actions"),
    ],
)
def test_what_needs_more_than_an_observation_is_refused_and_nothing_is_written(
    args, words, tmp_path
):
    policy = kept(tmp_path / "r", *args)
    with pytest.raises(UserError, match=words):
        policy.export(tmp_path / "policy.pt")
    assert not (tmp_path / "policy.pt").exists()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    policy = kept(tmp_path / "r", "method=bc")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        policy.export(tmp_path / "file" / "policy.pt")
