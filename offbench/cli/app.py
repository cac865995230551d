"""The command line: `offbench COMMAND [key=value ...]`.

A user's mistake ends in one line and exit code 2; failed runs in 3, after all others have finished; runs that are
left to do when time is up or a cluster takes the machine in 75; Ctrl-C in 130. A command's module is imported when
the command is called, so that help is quick.
"""

import argparse
import os
import re
import sys
import textwrap
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from offbench.bench.trust import FLAG, allowing_code
from offbench.cli.commands import COMMANDS, KINDS, NAMES, NOTES, SPEED_SETTINGS
from offbench.cli.compare import add_compare_arguments
from offbench.cli.data.commands import add_data_commands, run_data_command
from offbench.cli.parser import COLUMNS, Parser
from offbench.cli.results import add_results_commands, add_submit_arguments, run_results_command
from offbench.errors import Interrupted, UserError, unknown


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
            kinds = ", ".join(KINDS)
            command.add_argument("kind", choices=KINDS, nargs="?", metavar="KIND", help=kinds)
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
            option.add_to(command)
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
    "diagnose": ("offbench.cli.diagnose", "draw_diagnostics"),
    "evaluate": ("offbench.cli.evaluate", "evaluate_offline"),
    "report": ("offbench.cli.report", "show_report"),
    "sync": ("offbench.cli.sync", "sync_runs"),
    "curves": ("offbench.cli.curves", "show_curves"),
    "check": ("offbench.cli.contract", "check_contract"),
    "speed": ("offbench.cli.audit", "speed"),
}

_python_format = warnings.formatwarning


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning about data or records in one line; any other as Python formats it."""
    if category.__name__ in ("DataWarning", "DamagedRecord"):
        return f"offbench: warning: {message}\n"
    return _python_format(message, category, *where, **more)
