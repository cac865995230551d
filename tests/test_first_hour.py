"""What somebody new reads on the screen: help, the first lines of a run, lists, progress, file names."""

import io
import re
import shutil
from dataclasses import replace

import pytest
from rich.console import Console
from support.paths import ROOT

from offbench.bench.plan import plan
from offbench.cli import bench, board, describe
from offbench.cli.app import main
from offbench.cli.commands import COMMANDS

HOPPER = "task=offbench/hopper/medium-replay-v0"
OWN = """
from dataclasses import dataclass
from offbench.methods.bc import BC

@dataclass(frozen=True, kw_only=True)
class Mine(BC):
    pass
"""


@pytest.fixture
def own_class(tmp_path, monkeypatch) -> str:
    (tmp_path / "firsthour.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "firsthour.Mine"


def said(function, *args: str, bench: bool = True) -> str:
    """What is printed of a plan on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    more = (args,) if function is describe.say_settings else ()
    function(plan(args, bench=bench), console, *more)
    return console.file.getvalue()


# --- help


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("data", "results")])
def test_each_command_has_its_own_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    words = capsys.readouterr().out
    assert words.startswith(f"usage: offbench {command} ")
    assert words.count(f"\n  offbench {command}") >= 2
    assert max(map(len, words.splitlines())) <= 80
    others = [c for c in COMMANDS if c not in (command, "list", "plan")]
    assert not any(f"offbench {other} " in words for other in others)


def test_the_help_of_a_run_has_every_setting_with_its_default(capsys):
    import yaml

    assert main(["run", "-h"]) == 0
    words = capsys.readouterr().out
    settings = yaml.safe_load((ROOT / "conf/run.yaml").read_text())
    groups = ("eval", "bench", "ray", "slurm", "wandb")
    keys = [k for k in settings if k not in ("defaults", *groups)]
    keys += [f"{above}.{k}" for above in groups for k in settings[above]]
    for key in [*keys, "suite", "view", "method"]:
        assert re.search(rf"^  {re.escape(key)}=", words, re.MULTILINE), key
    assert "batch_size=256" in words and "conf/method" in words and "offbench list" in words


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"offbench \d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- the first lines of a run


def test_a_few_entries_are_said_with_their_main_settings_and_sources():
    words = said(
        describe.say_settings, "methods=[iql,sac_n]", "task=d4rl/hopper-medium-v2", "batch_size=64"
    )
    joined = re.sub(r"\n +", " ", words)
    assert (
        "iql(batch_size=64): hidden (256, 256), lr 3e-4 [method default], 1M updates [suite d4rl-gym-9], "
        "batch 64 [command line]" in joined
    )
    assert "actor_lr 3e-4, critic_lr 3e-4 [method default], 3M updates [published budget]" in joined
    assert max(map(len, words.splitlines())) <= 80


def test_settings_that_differ_by_task_say_so():
    wanted = plan(["methods=[bc]"], bench=True)
    first, *rest = wanted.cells
    mixed = replace(wanted, cells=(replace(first, hparams={**first.hparams, "lr": 0.5}), *rest))
    console = Console(file=io.StringIO(), width=80)
    describe.say_settings(mixed, console, [])
    assert (
        "hidden (64, 64) [suite quick], lr, n_updates [differs by task]," in console.file.getvalue()
    )


def test_of_many_entries_only_where_their_settings_are_shown():
    assert said(describe.say_settings, "suite=quick") == (
        "  every setting with its source: offbench plan suite=quick\n"
    )


@pytest.mark.env
def test_a_run_begins_with_them(tmp_path, capsys):
    args = [
        HOPPER,
        "n_updates=20",
        "eval.episodes=1",
        "eval.monitor_at=[]",
        "method.hidden=[8]",
        f"results={tmp_path}",
    ]
    assert main(["run", "method=bc", "seeds=[0]", "jobs=1", *args]) == 0
    assert (
        "  bc(hidden=[8]): hidden (8,) [command line], lr 1e-3 [suite quick]"
        in capsys.readouterr().out
    )


def test_what_is_composed_around_a_class_without_a_yaml_is_set_against_its_rivals(own_class):
    words = said(describe.say_differences, HOPPER, f"methods=[{own_class},td3_bc,bc,iql+nstep3]")
    assert " ".join(words.split()) == (
        "Mine has no yaml: transforms [], view nstep(n=1); td3_bc, bc: transforms [obs_norm]; "
        "iql+nstep3: transforms [obs_norm], view nstep(n=3)"
    )
    alone = said(describe.say_differences, HOPPER, f"method={own_class}", bench=False)
    assert alone.strip() == "Mine has no yaml: transforms [], view nstep(n=1)"
    same = ("transforms=[obs_norm]", f"methods=[{own_class},td3_bc]")
    assert said(describe.say_differences, HOPPER, *same) == ""
    assert said(describe.say_differences, HOPPER, "methods=[td3_bc,dt]") == ""


# --- the name of a board


SEEDS = "seeds=[0,1,2,3,4,5]"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "quick"),
        (["suite=quick", "jobs=1", "device=cpu", "batch_size=64", SEEDS], "quick"),
        (["n_updates=20"], "quick-part"),
        (["seeds=[0]"], "quick-part"),
        (["methods=[bc]"], "quick-part"),
        (["method=bc"], "quick-part"),
        (["method.lr=0.5"], "quick-part"),
        (["eval.episodes=1"], "quick-part"),
        (["transforms=[]"], "quick-part"),
        ([HOPPER], "quick-part"),
    ],
)
def test_only_the_suite_as_it_is_writes_the_board_of_its_name(settings, name):
    assert board.board_name(plan(settings, bench=True)) == name


# --- lists


def test_a_set_without_its_file_is_listed_as_such(tmp_path, monkeypatch, capsys):
    """Here: the embedded sets with the file of one of them gone."""
    monkeypatch.setattr("offbench.tasks.embedded.roots", lambda: [tmp_path])
    for path in (ROOT / "datasets").glob("*hopper--medium-*.yaml"):
        shutil.copy(path, tmp_path)
    replay = "minari/offbench/hopper/medium-replay-v0"
    shutil.copytree(ROOT / "datasets" / replay, tmp_path / replay)
    assert main(["list", "tasks"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "not here" not in lines["offbench/hopper/medium-replay-v0"]
    assert lines["offbench/hopper/medium-v0"].endswith(
        "not here: offbench data make offbench/hopper/medium-v0"
    )


@pytest.mark.parametrize("kind", ["samplers", "views", "weights"])
def test_each_option_has_a_summary_of_its_own(kind, capsys):
    assert main(["list", kind]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    about = [words for _, words in lines]
    assert len(set(about)) == len(about) and not any(words.endswith(":") for words in about)


# --- progress


@pytest.mark.parametrize("width", [80, 60, 120])
def test_a_row_of_progress_keeps_its_times_and_the_beginning_of_its_title(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    bars = bench._bars(console)
    title = (
        "[dim]training[/] iql+nstep10(expectile=0.9) on offbench/halfcheetah/medium-replay-v0 x3"
    )
    row = bars.add_task(title, total=1.0)
    bars.update(row, completed=0.31)
    shown = Console(file=io.StringIO(), width=width)
    shown.print(bars.get_renderable())
    (line,) = shown.file.getvalue().splitlines()
    assert len(line) <= width
    assert re.search(r"training iql\+nstep10.* 31% \d:\d\d:\d\d (-:--:--|\d:\d\d:\d\d)", line), line
