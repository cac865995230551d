"""The command line: `offbench COMMAND [key=value ...]`.

A user's mistake ends in one line and exit code 2; failed runs in 3, after all others have finished; runs that are
left to do when time is up or a cluster takes the machine in 75; Ctrl-C in 130. A command's module is imported when the command is called, so that help is quick.
"""

import argparse
import os
import re
import sys
import textwrap
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from offbench.bench.trust import FLAG, allowing_code
from offbench.cli.compare import add_compare_arguments
from offbench.cli.data.commands import add_data_commands, run_data_command
from offbench.cli.parser import COLUMNS, Parser
from offbench.cli.results import add_results_commands, add_submit_arguments, run_results_command
from offbench.errors import Interrupted, UserError, unknown

KINDS = ("methods", "tasks", "suites", "samplers", "views", "weights", "published")


class Option(NamedTuple):
    """A `--flag` of a command besides its settings; its value is passed on as the keyword `name`."""

    flag: str
    # of `argparse.ArgumentParser.add_argument`
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


class Command(NamedTuple):
    summary: str
    examples: tuple[str, ...]
    # what it takes, where that is not KEY=VALUE
    usage: str = "[KEY=VALUE ...]"
    options: tuple[Option, ...] = ()


BOARD_OPTIONS = (
    Option(
        "--format",
        {
            "choices": ("terminal", "markdown", "csv", "json", "latex"),
            "default": "terminal",
            "metavar": "FORMAT",
            "help": "print terminal, markdown, csv, json or latex",
        },
    ),
    Option("--explain", {"action": "store_true", "help": "say what every number of it means"}),
    Option(
        "--diff",
        {
            "metavar": "OLD",
            "help": "what changed since a results folder, or a board's .json or .csv",
        },
    ),
    Option(
        "--check",
        {"metavar": "FILE", "help": "recompute a written board from the rows beside it"},
    ),
    Option(
        "--published", {"metavar": "SOURCES", "help": "published scores below, as corl,iql-2021"}
    ),
)

EFFORT_OPTIONS = (
    Option("--only", {"metavar": "failed", "help": "run again what has failed, and nothing else"}),
    Option(
        "--retry",
        {"metavar": "N", "help": "attempts after a lost process or a full disk (2)"},
    ),
    Option(
        "--max-time",
        {"metavar": "TIME", "help": "save and stop after 30m or 8h; exit code 75: more to do"},
    ),
    Option("--shard", {"metavar": "I/N", "help": "the I-th of N parts of the runs"}),
)

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "bench": Command(
            "run what is missing of a suite and print its leaderboard",
            (
                "bench suite=quick",
                "bench methods=[bc,iql+aw] seeds=[0,1]",
                "bench methods=[mymodule.MyMethod,bc] task=d4rl/hopper-medium-v2",
                "bench suite=d4rl-gym-9 --max-time 8h",
            ),
            options=EFFORT_OPTIONS,
        ),
        "run": Command(
            "run what is missing of one method and print the leaderboard",
            (
                "run method=iql method.expectile=0.9 seeds=[0,1]",
                "run method=bc task=offbench/hopper/medium-replay-v0 n_updates=2000",
                "run method=bc task.data=my.hdf5 task.env=HalfCheetah-v5 seeds=[0,1]",
            ),
            options=EFFORT_OPTIONS,
        ),
        "plan": Command(
            "print every run, every value with its source, and the time needed; run nothing",
            ("plan", "plan method=td3_bc method.alpha=1.0 n_updates=20000"),
        ),
        "status": Command(
            "say how far the runs are, what works at them, and how long it takes",
            ("status", "status suite=d4rl-gym-9 --watch 5", "status --all results=there"),
            options=(
                Option("--watch", {"metavar": "SECONDS", "help": "again and again, until done"}),
                Option("--all", {"action": "store_true", "help": "every suite of the store"}),
            ),
        ),
        "board": Command(
            "print the leaderboard of recorded runs and write it below results/board",
            ("board suite=quick", "board suite=d4rl-gym-9 published=[corl,iql-2021]"),
            options=BOARD_OPTIONS,
        ),
        "reproduce": Command(
            "plan, run and judge the cells of a published table",
            ("reproduce", "reproduce iql-2021-table1", "reproduce corl-gym methods=[iql] --run"),
            "[TABLE [KEY=VALUE ...]]",
            (
                Option("--run", {"action": "store_true", "help": "run what has no record"}),
                *EFFORT_OPTIONS,
            ),
        ),
        "rerun": Command(
            "train a recorded run once more in its stack, and say whether its rows are equal",
            ("rerun RUN_ID", "rerun RUN_ID results=there --alone"),
            "RUN_ID [results=PATH]",
            (Option("--alone", {"action": "store_true", "help": "by itself: rounding differs"}),),
        ),
        "compare": Command(
            "say whether an entry is better than others of the board, and where",
            (
                "compare iql+nstep10 iql",
                "compare mine iql rebrac --suite quick --results here --results there",
            ),
            "ENTRY [RIVAL ...] [--suite NAME] [KEY=VALUE ...]",
        ),
        "curves": Command(
            "print and draw the learning curves of recorded runs",
            ("curves suite=quick", "curves suite=quick methods=[bc,iql]"),
        ),
        "diagnose": Command(
            "draw chunk lengths, success by length, and values against returns",
            ("diagnose suite=quick", "diagnose suite=quick methods=[bc,iql]"),
        ),
        "report": Command(
            "write the leaderboard with all that is behind it as one HTML file",
            ("report suite=quick", "report suite=quick --figures"),
            options=(
                Option(
                    "--figures", {"action": "store_true", "help": "write pictures for papers too"}
                ),
            ),
        ),
        "sync": Command(
            "send recorded runs to wandb or TensorBoard, each once",
            ("sync --wandb suite=quick", "sync --tensorboard events methods=[bc,iql]"),
            options=(
                Option("--wandb", {"action": "store_true", "help": "to Weights & Biases"}),
                Option("--tensorboard", {"metavar": "DIR", "help": "as event files"}),
            ),
        ),
        "results": Command("verify, merge, clear up and export recorded runs", (), "COMMAND ..."),
        "submit": Command(
            "pack the records of entries into one file that others can merge",
            ("submit iql+aw --suite quick", "submit mine iql --suite quick --out mine.zip"),
            "ENTRY ... [--suite NAME] [results=FOLDER]",
        ),
        "list": Command(
            "list methods, tasks, suites, samplers, views, weights or published",
            ("list methods", "list suites"),
            "|".join(KINDS),
        ),
        "data": Command(
            "list, show, check, import, collect, download and compose datasets", (), "COMMAND ..."
        ),
        "check": Command(
            "test that a method keeps the contract of all methods",
            ("check method=iql", "check method._target_=mymodule.MyMethod"),
        ),
        "speed": Command(
            "measure how fast training is here, against a plain PyTorch loop",
            ("speed", "speed methods=[iql] seeds=[1,8] hidden=[[64,64]]"),
        ),
    }
)

NOTES = """\
Help of one command, with examples and its settings: offbench COMMAND --help

Without suite=, a task has the protocol of the suite that lists it, or of its
family (conf/protocols.yaml). Defaults of all settings are in conf/run.yaml; of
methods, samplers, views and weights in conf/{method,sampler,view,weight}.
A method of your own: method._target_=package.Class, or an installed package
with an `offbench.conf` entry point.
"""

NAMES = """\
  method.KEY, sampler.KEY, view.KEY, weight.KEY: see conf/method and the like,
  or `offbench plan method=NAME`, which prints every value with its source
  names: offbench list methods|tasks|suites|samplers|views|weights|published
  several values: method.expectile=[0.7,0.9]; a list as [a,b], null for none
"""

SPEED_SETTINGS = """\
settings:
  methods, precision, backends   names: [td3_bc,iql] or [float32,tf32]
  seeds                          numbers of seeds that train together: [1,8]
  hidden                         widths of hidden layers: [[64,64],[256,256]]
  batch_size, device, threads    as in a run; threads of the processor
  seconds, minutes               of each row; of all, what is left is skipped
  out                            folder of speed.csv, .json and .png; null: none
  peer, peer_pattern, peer_seeds another program's command, a regular expression
                                 with its updates per second, seeds it trains
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="offbench",
        usage="offbench COMMAND [KEY=VALUE ...]",
        description="Offline reinforcement learning: benchmarks and their leaderboards.",
        more=lambda: NOTES,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        FLAG,
        action="store_true",
        help="import code of no installed package that a yaml or a record names",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", prog="offbench"
    )
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about.summary,
            description=about.summary,
            usage=f"offbench {name} {about.usage}{' [OPTION ...]' if about.options else ''}",
            more=(lambda name=name: _end_of_help(name)) if about.examples else None,
        )
        command.set_defaults(parser=command)
        if name == "list":
            command.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
        elif name == "data":
            add_data_commands(command)
        elif name == "results":
            add_results_commands(command)
        elif name == "submit":
            add_submit_arguments(command)
        elif name == "compare":
            add_compare_arguments(command)
        else:
            command.add_argument(
                "settings", nargs="*", metavar="KEY=VALUE", help="settings, lists as [a,b]"
            )
        for option in about.options:
            command.add_argument(option.flag, **option.about)
    return parser


def _end_of_help(command: str) -> str:
    """Examples, and the settings with their defaults, in 80 columns."""
    lines = ["examples:", *(f"  offbench {example}" for example in COMMANDS[command].examples)]
    if command == "speed":
        lines += ["", SPEED_SETTINGS.rstrip()]
    elif command not in ("list", "submit", "rerun"):
        lines += ["", "settings and their defaults (conf/run.yaml):"]
        for key, default, words in run_settings():
            head = f"  {key}={default}"
            tail = textwrap.wrap(words, COLUMNS - 33) or [""]
            lines += [f"{head:31}  {tail[0]}".rstrip(), *(f"{'':33}{more}" for more in tail[1:])]
        lines += ["", NAMES.rstrip()]
    return "\n".join(lines) + "\n"


def run_settings() -> list[tuple[str, str, str]]:
    """conf/run.yaml as (key, default, what it is)."""
    from offbench.bench.hydra import conf_dir

    settings, above = [], ""
    for line in (conf_dir() / "run.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(?:  - )?( *)([a-z_]+): *([^#]*?) *(?:# *(.*))?", line)
        if match is None or match[2] == "defaults":
            continue
        inner, key, default, words = match.groups()
        if not default:  # the settings below it
            above = f"{key}."
            continue
        settings.append((f"{above if inner else ''}{key}", default, words or ""))
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a user's mistake is printed in one line."""
    warnings.formatwarning = _in_one_line
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        # for method._target_=mymodule.X, of a file that lies here
        sys.path.append(os.getcwd())
    code = _called(sys.argv[1:] if argv is None else argv)
    # A stack that takes long to save its state is still in its thread: the process ends here, as Python would
    # take the thread's modules away under it.
    if any(thread.name == "offbench-stack" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _called(words: Sequence[str]) -> int:
    """The exit code of a command line, with a line on the standard error where it ends early."""
    try:
        with allowing_code(FLAG in words):
            return call([word for word in words if word != FLAG])
    except UserError as error:
        code, said = 2, _one_line(str(error))
    except KeyboardInterrupt:
        code, said = 130, "interrupted; what was trained is kept, the same command goes on"
    except Interrupted as signal:
        code, said = 75, f"{signal}: what was trained is kept, the same command goes on"
    # `offbench list methods | head`
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(f"offbench: {said}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    """The words in one line that a terminal shows as they are."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def call(argv: Sequence[str]) -> int:
    """Runs a command line and returns its exit code. Raises UserError for a user's mistake."""
    for word in argv:
        if any(ord(c) < 32 or ord(c) == 127 for c in word):
            raise UserError(f"{word!r} has control characters, which no setting or name may have")
    parser = make_parser()
    try:
        options, rest = parser.parse_known_args(["--help"] if argv == ["help"] else argv)
    # help was printed
    except SystemExit:
        return 0
    taken = getattr(options, "settings", getattr(options, "names", None))
    if taken is not None:
        # argparse takes no words after an option
        taken += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        raise _not_taken(rest[0], options)
    if options.version:
        from offbench.bench.provenance import versions

        print(f"offbench {versions().get('offbench', 'of unknown version')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    return _run(options)


def _not_taken(argument: str, options: argparse.Namespace) -> UserError:
    """The error for an argument that the command does not take."""
    parser: Parser = options.parser
    if not argument.startswith("-"):
        usage = " ".join(parser.format_usage().split())
        return UserError(f"unexpected argument {argument!r}; {usage}")
    if argument in ("-m", "--multirun"):
        return UserError(f"{argument}: {import_module('offbench.bench.hydra').NO_LAUNCHERS}")
    choices, hint = list(parser.options), ""
    if "settings" in options:
        hint = "settings are written key=value; "
        if options.command != "speed":
            choices += [f"{key}=" for key, *_ in run_settings()]
    error = str(unknown("option", argument.partition("=")[0], choices))
    return UserError(f"{error}{' ' if error.endswith('?') else '; '}{hint}see {parser.prog} --help")


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "sync":
            from offbench.cli.sync import sync_runs

            where = {"wandb": options.wandb, "tensorboard": options.tensorboard}
            return sync_runs(options.settings, **where)
        case "list":
            from offbench.cli.listing import show_list

            return show_list(options.kind)
        case "data":
            return run_data_command(options)
        case "results" | "submit":
            return run_results_command(options)
        case "compare":
            from offbench.cli.compare import show_comparison

            return show_comparison(options)
    module, function = _FUNCTIONS[options.command]
    own = COMMANDS[options.command].options
    flags = {o.name: getattr(options, o.name) for o in own}
    return getattr(import_module(module), function)(options.settings, **flags)


# command -> (module, function of the settings and the command's options)
_FUNCTIONS = {
    "bench": ("offbench.cli.bench", "run_bench"),
    "run": ("offbench.cli.bench", "run_one"),
    "plan": ("offbench.cli.plan", "show_plan"),
    "status": ("offbench.cli.status", "show_status"),
    "board": ("offbench.cli.board", "show_board"),
    "reproduce": ("offbench.cli.reproduce", "reproduce"),
    "rerun": ("offbench.cli.rerun", "rerun"),
    "diagnose": ("offbench.cli.board", "draw_diagnostics"),
    "report": ("offbench.cli.report", "show_report"),
    "curves": ("offbench.cli.curves", "show_curves"),
    "check": ("offbench.cli.contract", "check_contract"),
    "speed": ("offbench.speed.benchmark", "main"),
}

_python_format = warnings.formatwarning


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning about data or records in one line; any other as Python formats it."""
    if category.__name__ in ("DataWarning", "DamagedRecord"):
        return f"offbench: warning: {message}\n"
    return _python_format(message, category, *where, **more)
