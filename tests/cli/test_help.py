"""Help, examples and lists in 80 columns, and what they cost to print."""

import ast
import json
import shlex
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from support.paths import ROOT

from offbench.cli import console
from offbench.cli.app import call, make_parser
from offbench.cli.commands import COMMANDS, SPEED_SETTINGS
from offbench.cli.data.commands import EXAMPLES, SUMMARIES
from offbench.errors import UserError

HEAVY = {"torch", "numpy", "pandas", "hydra", "omegaconf", "gymnasium", "rich"}


@pytest.mark.parametrize("args", [["--help"], ["help"], ["data", "--help"], []])
def test_an_overview_names_every_command_in_80_columns(args, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(args) == (0 if args else 2)
    lines = capsys.readouterr().out.splitlines()
    commands = SUMMARIES if args[:1] == ["data"] else COMMANDS
    assert commands.keys() <= {line.split()[0] for line in lines if line.startswith("    ")}
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", SUMMARIES)
def test_each_data_command_has_its_own_help_with_an_example(command, capsys):
    assert call(["data", command, "--help"]) == 0
    words = capsys.readouterr().out
    assert words.startswith(f"usage: offbench data {command} ")
    assert f"\n  offbench data {command}" in words
    assert max(map(len, words.splitlines())) <= 80


def test_the_examples_of_settings_are_planned():
    """But for those with a reader's own file or module."""
    from offbench.bench.plan import plan
    from offbench.cli.published import split_published

    planned = []
    for example in (e for about in COMMANDS.values() for e in about.examples):
        command = example.split()[0]
        args = getattr(make_parser().parse_args(shlex.split(example)), "settings", [])
        args = [arg for arg in args if arg != "ope"]
        if command in ("run", "bench", "plan", "board", "diagnose") and "my" not in example:
            bench = command != "run" and not any(a.startswith("method=") for a in args)
            assert plan(split_published(args)[0], bench=bench).cells, example
            planned.append(command)
    assert planned.count("run") == 2 and len(set(planned)) == 5


def test_the_help_of_speed_names_settings_that_it_takes():
    rows = [line[2:32] for line in SPEED_SETTINGS.splitlines()[1:] if line[2] != " "]
    keys = [key.strip() for row in rows for key in row.split(",")]
    audits = {"launches", "cards"}
    assert len(keys) >= 16 and audits < set(keys)
    with pytest.raises(UserError, match="unknown setting of speed 'nonsense'"):
        call(["speed", *(f"{key}=1" for key in keys if key not in audits), "nonsense=1"])
    with pytest.raises(UserError, match="unknown setting of speed --audit 'nonsense'"):
        call(["speed", "--audit", "launches=true", "cards=[h100]", "nonsense=1"])


def test_the_examples_of_data_are_read(monkeypatch):
    from offbench.cli.data import commands

    read = []
    monkeypatch.setattr("offbench.cli.app.run_data_command", lambda o: read.append(o) or 0)
    for example in (e for examples in EXAMPLES.values() for e in examples):
        assert call(["data", *shlex.split(example)]) == 0
    assert {options.data_command for options in read} == commands.SUMMARIES.keys()


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], ["data", "--help"]])
def test_help_and_version_import_nothing_heavy(args):
    code = (
        "import sys, json, time, io, contextlib\nstart = time.process_time()\n"
        "from offbench.cli import main\nwith contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({args})\n"
        "print(json.dumps([time.process_time() - start, list(sys.modules)]))"
    )
    run = lambda: json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))
    found = [run() for _ in range(3)]
    assert not HEAVY & set(found[0][1])
    assert min(seconds for seconds, _ in found) < 0.3


def test_no_module_of_the_command_line_imports_in_a_circle():
    """Imports inside functions included."""
    folder = ROOT / "offbench" / "cli"
    names = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in folder.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for path, name in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {node.module, f"{node.module}.__init__", *inside}
        graph[name] &= set(names.values())
    TopologicalSorter(graph).prepare()


ROWS = [("a", "one two three"), ("longer", "some words " * 12), ("", "a second line")]


@pytest.fixture
def terminal(monkeypatch, capsys):
    def lines(rows, columns):
        monkeypatch.setattr("sys.stdout.isatty", lambda: columns is not None, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))
        console.print_list(rows)
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_list_is_wrapped_in_a_terminal_and_has_a_line_for_each_name_in_a_pipe(terminal):
    assert len(terminal(ROWS, None)) == 3
    lines = terminal(ROWS, 80)
    assert lines[0] == "a       one two three" and max(map(len, lines)) <= 80
    assert len(lines) == 4 and lines[2].startswith(" " * 8 + "words")
    assert lines[3] == " " * 8 + "a second line"


def test_what_a_long_name_is_stands_below_it_where_two_columns_would_be_narrow(terminal):
    name, about = "x" * 50, "what it is, in forty letters or some more"
    assert terminal([(name, about)], 80) == [name, f"    {about}"]
    assert terminal([(name, about)], 120) == [f"{name}  {about}"]
    assert terminal([(name, "short")], 80) == [f"{name}  short"]


def test_a_table_shows_brackets_as_they_are():
    screen = console.make_console()
    with screen.capture() as captured:
        console.print_table(screen, [("[bold]", "[a-z]")], header=("one", "two"))
    assert captured.get().split() == ["one", "two", "[bold]", "[a-z]"]
