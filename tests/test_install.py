"""What a new machine would install is there, for every Python that is accepted: `make bench` and `make test` set up.

The machine of the tests may have wheels of its own (a torch for CPUs asks for less than that of the registry),
so that an installation that works here may fail everywhere else.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [f"3.{n}" for n in range(8, 20) if f"3.{n}" in SpecifierSet(PROJECT["requires-python"])]
# they have no wheels, and are pure Python
BUILT = ("antlr4-python3-runtime==4.9.3", "rliable")


def pip(*arguments: str) -> subprocess.CompletedProcess:
    """Runs pip with the registry alone: no folder of wheels, no constraints of this machine."""
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env | {"PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
    )


def asked_for(python: str) -> list[str]:
    """The requirements of the package and its tests with this Python."""
    texts = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    found = []
    for asked in map(Requirement, texts):
        if asked.marker is None or asked.marker.evaluate({"python_version": python}):
            asked.marker = None
            found.append(str(asked))
    return found


def checked(done: subprocess.CompletedProcess) -> None:
    """Fails where pip found no way to install it, and skips where it could not ask."""
    unheard = ("connection", "timed out", "temporary failure", "ssl", "proxy")
    if done.returncode and any(word in done.stderr.lower() for word in unheard):
        pytest.skip(f"the registry cannot be reached: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """A folder with the wheels of BUILT."""
    folder = tmp_path_factory.mktemp("wheels")
    checked(pip("wheel", "--no-deps", "-w", str(folder), *BUILT))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_accepted_python_can_install_it(python, wheels, tmp_path):
    systems = [f"--platform=manylinux_2_{n}_x86_64" for n in range(5, 37)]
    systems += ["--platform=manylinux1_x86_64", "--platform=manylinux2014_x86_64"]
    wanted = ["--only-binary=:all:", f"--find-links={wheels}", "-c", "constraints.txt"]
    nowhere = ["--dry-run", "--ignore-installed", f"--target={tmp_path}"]
    asked = [*nowhere, *wanted, *systems, "--python-version", python, *asked_for(python)]
    checked(pip("install", *asked))


def test_the_accepted_pythons_are_those_the_readme_names():
    first, last = PYTHONS[0], PYTHONS[-1]
    assert f"Needs Python {first} to {last}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"offbench needs Python {first} to {last}" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
