"""A method from outside, as its page shows it, word for word: a package found by its entry point, and
a file in the working directory."""

import json
import os
import re
import shutil
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
    "engine=vmap",
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


def install(root: Path, site: Path) -> None:
    """Installs a package with pip into a folder of its own."""
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, str(root)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages with the one of the page in it."""
    write_package(root := tmp_path_factory.mktemp("plugin"))
    install(root, site := tmp_path_factory.mktemp("site"))
    return site


COMMANDS = """
import contextlib, io, json, sys
from offbench.cli import main

for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(command)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def offbench(site: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each command, in one process that sees the folder's packages."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_an_installed_method_is_listed_checked_and_benchmarked(site, tmp_path):
    results = f"results={tmp_path}"
    listed, misspelt, checked, ran = offbench(
        site,
        ["list", "methods"],
        ["run", "method=robust_bc", "method.dleta=0.5", *TINY, results],
        ["check", "method=robust_bc", "method.hidden=[16]"],
        ["run", "method=robust_bc", "method.delta=0.5", *TINY, results],
    )
    assert "robust_bc" in listed[1] and "outside offbench" in listed[1], listed
    assert misspelt[0] == 2 and "did you mean 'method.delta'" in misspelt[2]
    assert checked[0] == 0, checked
    assert ran[0] == 0 and "robust_bc(delta=0.5)" in ran[1], ran
    # of the last command alone
    assert "2 runs, 0 recorded, 2 to do" in ran[1]
    assert len(list(tmp_path.glob("runs/**/*.parquet"))) == 2


def test_a_yaml_with_a_comment_above_its_header_is_refused_in_one_line(site, tmp_path):
    """Hydra reads the header up to the first other comment: the method would lie below method.method."""
    shutil.copytree(site, tmp_path / "site")
    config = tmp_path / "site/robust_bc/conf/method/robust_bc.yaml"
    config.write_text("# mine\n" + config.read_text())
    ((code, _, error),) = offbench(tmp_path / "site", ["plan", "method=robust_bc", *TINY])
    assert code == 2 and error.count("\n") == 1
    assert "conf/method/robust_bc.yaml: the first line must be '# @package _global_'" in error


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
