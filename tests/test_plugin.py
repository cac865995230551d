"""A method from outside: its own installed package, found by entry point, under the same contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
TINY = [
    "task=offbench/hopper/medium-replay-v0",
    "seeds=[0,1]",
    "n_updates=20",
    "eval.episodes=1",
    "jobs=1",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The plugin installed by pip into a folder of its own; the environment that sees it."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(
        ["cp", "-r", str(PLUGIN), str(source)], check=True
    )  # pip builds inside the source tree
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def offbench(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offbench.cli", *args], env=env, capture_output=True, text=True
    )


def test_an_installed_method_is_listed_checked_and_benchmarked(installed, tmp_path):
    listed = offbench(installed, "list", "methods")
    assert "robust_bc" in listed.stdout and "outside offbench" in listed.stdout, listed.stderr

    checked = offbench(installed, "check", "method=robust_bc", "method.hidden=[16]")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    ran = offbench(
        installed, "run", "method=robust_bc", "method.delta=0.5", *TINY, f"results={tmp_path}"
    )
    assert ran.returncode == 0 and "robust_bc(delta=0.5)" in ran.stdout, ran.stdout + ran.stderr
    assert len(list(tmp_path.glob("runs/**/*.parquet"))) == 2


def test_a_misspelt_setting_of_an_installed_method_is_refused(installed, tmp_path):
    ran = offbench(
        installed, "run", "method=robust_bc", "method.dleta=0.5", *TINY, f"results={tmp_path}"
    )
    assert ran.returncode == 2 and "did you mean 'method.delta'" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_class_on_the_path_needs_no_yaml(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(PLUGIN), "OMP_NUM_THREADS": "1"}
    target = "method._target_=robust_bc.method.RobustBC"
    ran = offbench(env, "run", target, "method.hidden=[16]", *TINY, f"results={tmp_path}")
    assert ran.returncode == 0 and "RobustBC(hidden=[16])" in ran.stdout, ran.stdout + ran.stderr
