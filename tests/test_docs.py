"""Every command and every Python block of docs/*.md runs as it stands, one page after another in one folder."""

import re
import shlex
import subprocess
import sys

import pytest
from support.paths import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
# of this page tests/methods/test_own_code.py runs every block, and looks at what comes of it
RUN_ELSEWHERE = {"own-code"}
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The command lines of a block; a backslash goes on, a comment is left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def planned(words: list[str]) -> list[str]:
    """A command for a cluster, planned in its place: tests/bench/test_executors.py runs stacks on them."""
    if not any(word.startswith("executor=") for word in words):
        return words
    return ["plan", *(word for word in words[1:] if not word.startswith("--"))]


@pytest.mark.env
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.stem not in RUN_ELSEWHERE], ids=lambda p: p.stem
)
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    from offbench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    names: dict = {}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        for program, *words in commands(text):
            assert program == "offbench", f"{page.name}: {program} is not run here"
            words = planned(words)
            # workers are processes, which start slowly; that they train the same is a test of the command line
            here = ["jobs=1"] if words[0] in ("run", "bench") else []
            assert main([*words, *here]) == 0, f"{page.name}: offbench {shlex.join(words)}"


def test_there_are_pages_and_a_wrong_command_is_found(tmp_path, capsys):
    from offbench.cli import main

    assert any(
        language == "sh" for page in PAGES for language, _ in BLOCK.findall(page.read_text())
    )
    assert commands("offbench a \\\n  b  # c\n\n# d\n") == [["offbench", "a", "b"]]
    assert main(["data", "chekc", "x"]) == 2


def test_the_columns_of_the_page_are_those_that_are_known():
    from offbench.tasks.formats.columns import NAMES

    text = (ROOT / "docs" / "data.md").read_text()
    for column, spellings in NAMES.items():
        row = ", ".join(f"`{s}`" for s in spellings)
        assert f"| {column.replace('_', ' ')} | {row} |" in text, column


def test_the_program_that_a_shell_runs_is_this_one():
    run = subprocess.run(
        [sys.executable, "-m", "offbench.cli", "data", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0


def test_every_file_that_the_design_names_is_there():
    text = (ROOT / "docs" / "design.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    missing, named = [], 0
    for row in rows:
        folder = ROOT
        for quoted in re.findall(r"`([^`]*)`", row):
            # a bare file name lies where the one before it does
            start = ROOT if "/" in quoted else folder
            before, braces, after = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", quoted).groups()
            names = [before + one + after for one in (braces or "").split(",")]
            for path in [name.replace("<name>", "iql") for name in names]:
                named += 1
                missing += [] if (start / path).exists() else [f"{quoted}: {row[:40]}"]
            folder = (start / names[0]).parent
    assert not missing and named > 30


def test_what_texts_call_on_a_task_is_there():
    from offbench.tasks.task import Task

    texts = [*ROOT.glob("offbench/**/*.py"), *PAGES, ROOT / "README.md"]
    calls = re.compile(r"load_task\([^()]*\)\.(\w+)")
    gone = [
        (path.name, name)
        for path in texts
        for name in calls.findall(path.read_text(encoding="utf-8"))
        if not hasattr(Task, name) and name not in Task.__dataclass_fields__
    ]
    assert not gone
