"""A method from outside, as its page shows it, word for word: a package found by its entry point, and
a file in the working directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from offbench.cli import main

PAGE = (ROOT / "docs/write-a-method.md").read_text()
TINY = [
    "task=offbench/hopper/medium-replay-v0",
    "seeds=[0,1]",
    "n_updates=20",
    "eval.episodes=1",
    "eval.monitor_at=[]",
    "jobs=1",
]


def shown(language: str, words: str) -> str:
    """The one block of the page that has these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (block,) = [b for b in blocks if words in b]
    return block


def write_package(root: Path) -> None:
    """Every block, unchanged, in the file that it names."""
    for language, words, path in (
        ("python", "class RobustBC", "robust_bc/method.py"),
        ("yaml", "RobustBC", "robust_bc/conf/method/robust_bc.yaml"),
        ("toml", "offbench.conf", "pyproject.toml"),
    ):
        block = shown(language, words)
        assert path in "\n".join(block.splitlines()[:2])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(block)


def install(root: Path, site: Path) -> dict[str, str]:
    """A package installed by pip into a folder of its own; the environment that sees it."""
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, str(root)]
    subprocess.run(command, check=True, capture_output=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    write_package(root := tmp_path_factory.mktemp("plugin"))
    return install(root, tmp_path_factory.mktemp("site"))


def offbench(env: dict[str, str], *args: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offbench.cli", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, **more)


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


def test_a_yaml_with_a_comment_above_its_header_is_refused_in_one_line(tmp_path):
    """Hydra reads the header up to the first other comment: the method would lie below method.method."""
    write_package(root := tmp_path / "plugin")
    config = root / "robust_bc/conf/method/robust_bc.yaml"
    config.write_text("# mine\n" + config.read_text())
    ran = offbench(install(root, tmp_path / "site"), "plan", "method=robust_bc", *TINY)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "conf/method/robust_bc.yaml: the first line must be '# @package _global_'" in ran.stderr


@pytest.fixture
def alone(tmp_path) -> Path:
    """A folder with a file that has a method, and nothing else."""
    (tmp_path / "mymodule.py").write_text(shown("python", "class RobustBC"))
    return tmp_path


SCRIPT = "import sys; sys.path.pop(0); from offbench.cli.app import main; sys.exit(main())"
"""What the console script runs: the working directory is not on its path."""


def script(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *args, f"results={folder / 'results'}"]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_a_class_in_the_working_directory_needs_no_yaml(alone):
    target = "method._target_=mymodule.RobustBC"
    ran = script(alone, "run", target, "method.hidden=[16]", *TINY)
    assert ran.returncode == 0 and "RobustBC(hidden=[16])" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_class_is_compared_with_methods_in_one_command_on_two_processes(alone):
    tiny = [*TINY, "jobs=2", "seeds=[0]", "method.hidden=[16]"]
    methods = "methods=[mymodule.RobustBC,mymodule.RobustBC+nstep3,td3_bc]"
    ran = script(alone, "bench", methods, *tiny)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for entry in ("RobustBC(hidden=[16])", "RobustBC+nstep3(hidden=[16])", "td3_bc(hidden=[16])"):
        assert f"{entry} on offbench/hopper" in ran.stdout
    assert len(list(alone.glob("results/runs/**/*.parquet"))) == 3


@pytest.mark.parametrize("entry", ["mymodule.Nope", "nomodule.X", "mymodule", "mymodule.nets"])
def test_an_entry_that_is_no_class_is_refused_in_one_line(alone, entry, monkeypatch, capsys):
    monkeypatch.syspath_prepend(alone)
    assert main(["bench", f"methods=[{entry},bc]", *TINY, f"results={alone}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("offbench: ") and entry in said and said.count("\n") == 1
