"""The wheel, built from the checkout and installed elsewhere, is offbench whole: configuration,
data sets and tables included. Its dependencies are those of the interpreter that runs the test."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support.paths import ROOT

from offbench.cli import main
from offbench.recipes import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.env]

HOPPER = "offbench/hopper/medium-replay-v0"


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """The scripts of a new environment that has the wheel and, by a path, its dependencies."""
    built, where = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("env")
    done(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built), cwd=ROOT)
    (wheel,) = built.glob("*.whl")
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(where)
    context = builder.ensure_directories(where)
    pip = ["-m", "pip", "--python", context.env_exe, "install", "-q", "--no-deps", "--no-index"]
    done(sys.executable, *pip, str(wheel), cwd=where)
    # a folder named in a .pth file has its own .pth files left alone: no editable offbench is seen
    libraries = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site,) = {p.parents[1] for p in where.rglob("offbench/__init__.py")}
    (site / "dependencies.pth").write_text("\n".join(libraries))
    return Path(context.bin_path)


def done(*command: str, cwd: Path) -> str:
    """What a command prints, run where neither the checkout nor another data folder is named."""
    hidden = () if cwd == ROOT else ("PYTHONPATH", "OFFBENCH_DATASETS", "VIRTUAL_ENV")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    ran = subprocess.run(
        command, cwd=cwd, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_published_scores_are_in_the_wheel(bin_folder, tmp_path):
    assert "corl " in done(str(bin_folder / "offbench"), "list", "published", cwd=tmp_path)


def test_a_benchmark_runs_in_an_empty_folder(bin_folder, tmp_path):
    program = "import offbench, offbench.io as io; print(offbench.__file__, io.shipped('conf'))"
    home = bin_folder.parent.resolve()
    for path in done(str(bin_folder / "python"), "-c", program, cwd=tmp_path).split():
        assert Path(path).is_relative_to(home)
    tiny = [
        "methods=[bc]",
        "seeds=[0]",
        "n_updates=20",
        "eval.episodes=2",
        "eval.monitor_at=[]",
        "method.hidden=[8]",
    ]
    bench = [str(bin_folder / "offbench"), "bench", f"task={HOPPER}", *tiny, "jobs=1"]
    out = done(*bench, cwd=tmp_path)
    assert "1 to do" in out and "bc(hidden=[8])" in out
    assert len(list(tmp_path.glob("results/runs/quick/**/*.parquet"))) == 1
    assert (tmp_path / "results/board/quick-part.md").is_file()
    # its style and scripts are shipped
    assert "<table" in (tmp_path / "results/board/quick-part.html").read_text()


def test_lists_say_what_they_say_in_the_checkout(bin_folder, tmp_path, capsys):
    """The tables of comparisons ship, and so do the embedded sets and no others."""
    offbench = str(bin_folder / "offbench")
    methods = done(offbench, "list", "methods", cwd=tmp_path)
    assert main(["list", "methods"]) == 0
    assert methods == capsys.readouterr().out
    assert "scores agree with CORL's" in methods and "updates within" in methods
    tasks = done(offbench, "list", "tasks", cwd=tmp_path).splitlines()
    missing = {line.split()[0] for line in tasks if "not here: offbench data make" in line}
    assert main(["list", "tasks"]) == 0
    names = lambda lines: [line.split()[0] for line in lines]
    assert names(tasks) == names(capsys.readouterr().out.splitlines())
    assert missing == {name for name, r in RECIPES.items() if not r.shipped}


def test_the_policies_that_the_other_sets_are_made_from_ship(bin_folder):
    (policies,) = bin_folder.parent.rglob("offbench/datasets/policies")
    ours = ROOT / "datasets/policies"
    files = [p.relative_to(ours) for p in sorted(ours.rglob("*")) if p.is_file()]
    assert len(files) == 25 and (policies.parents[1] / "py.typed").is_file()
    assert all((policies / f).read_bytes() == (ours / f).read_bytes() for f in files)
