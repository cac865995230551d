"""The command line: `offbench COMMAND [key=value ...]`.

A user's mistake ends in one line and exit code 2, a failed run in exit code 1 after all others have
finished.
"""

import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from offbench.cli.bench import run_bench, run_one
from offbench.cli.board import draw_diagnostics, show_board
from offbench.cli.listing import show_list
from offbench.cli.plan import show_plan
from offbench.errors import UserError, unknown

HELP = """\
offbench COMMAND [key=value ...]      (offbench COMMAND --help, offbench --version)

  bench     run what is missing of a suite and print its leaderboard  (suite=quick methods=[bc,iql+aw] seeds=[0,1])
  run       the same for one method                  (method=iql task=... seeds=[0,1,2] method.expectile=0.9)
  plan      print every run, every effective value with its source, and how long it will take; run nothing
  board     print the leaderboard of what has been run and write results/board/<suite>.{md,csv}
  diagnose  draw chunk lengths, success by length, and values against returns, into results/board/<suite>-diagnostics
  list      methods | tasks | suites | samplers | views | weights
  data      list | show | check | fetch | make | compose | pack | unpack      (offbench data --help)
  check     method=NAME             run the contract every method must keep
  speed     how fast training is here, against a plain PyTorch loop

A task without suite= has the protocol of the suite that lists it, or of its family: conf/protocols.yaml.
Settings: conf/run.yaml. Method, sampler, view, weight: conf/method, conf/sampler, conf/view, conf/weight.
A method of your own: method._target_=package.Class, or an installed package with an `offbench.conf` entry point.
"""

# command -> what it does, the settings it takes, examples
_USAGE = {
    "bench": (
        "run what is missing of a suite and print its leaderboard",
        "key=value ...",
        (
            "bench suite=quick",
            "bench methods=[bc,iql+aw] seeds=[0,1]",
            "bench methods=[mymodule.MyMethod,bc] task=d4rl/hopper-medium-v2",
        ),
    ),
    "run": (
        "run what is missing of one method and print the leaderboard",
        "method=NAME key=value ...",
        (
            "run method=iql task=offbench/hopper/medium-replay-v0 method.expectile=0.9",
            "run method=bc task.data=my.hdf5 task.env=HalfCheetah-v5 seeds=[0,1]",
        ),
    ),
    "plan": (
        "print every run, every value with its source, and the time needed; run nothing",
        "key=value ...",
        ("plan", "plan method=td3_bc method.alpha=1.0 n_updates=20000"),
    ),
    "board": (
        "print the leaderboard of what has been run",
        "key=value ...",
        ("board suite=quick",),
    ),
    "diagnose": (
        "draw chunk lengths, success by length, and values against returns",
        "key=value ...",
        ("diagnose suite=quick",),
    ),
    "list": (
        "name what there is",
        "methods|tasks|suites|samplers|views|weights",
        ("list methods",),
    ),
    "check": (
        "run the contract that every method must keep",
        "method=NAME key=value ...",
        ("check method=iql", "check method._target_=mymodule.MyMethod"),
    ),
    "speed": (
        "measure training here beside a plain PyTorch loop",
        "key=value ...",
        ("speed", "speed methods=[iql] seeds=[1,8] hidden=[[64,64]]"),
    ),
}


def _help_of(command: str) -> str:
    """Usage, examples, and the settings with their defaults, in 80 columns."""
    what, settings, examples = _USAGE[command]
    lines = [f"offbench {command} {settings}", "", f"  {what}", ""]
    lines += [f"  offbench {example}" for example in examples]
    if command in ("bench", "run", "plan", "board", "diagnose", "check"):
        lines += ["", "settings and their defaults (conf/run.yaml):", "", *_settings_in_words()]
        lines += [
            "",
            "  method.KEY, sampler.KEY, view.KEY, weight.KEY: see conf/method and the like,",
            "  or `offbench plan method=NAME`, which prints every value with its source",
            "  names: offbench list methods|tasks|suites|samplers|views|weights",
            "  several values: method.expectile=[0.7,0.9]; a list as [a,b], null for none",
        ]
    return "\n".join(lines) + "\n"


def _settings_in_words() -> list[str]:
    """conf/run.yaml as lines of `key=default  what it is`."""
    from offbench.bench.hydra import conf_dir

    lines, above = [], ""
    for line in (conf_dir() / "run.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(?:  - )?( *)([a-z_]+): *([^#]*?) *(?:# *(.*))?", line)
        if match is None or match[2] == "defaults":
            continue
        inner, key, default, words = match.groups()
        if not default:  # the settings below it
            above = f"{key}."
            continue
        head = f"  {above if inner else ''}{key}={default}"
        tail = textwrap.wrap(words or "", 80 - 33) or [""]
        lines += [f"{head:31}  {tail[0]}".rstrip(), *(f"{'':33}{more}" for more in tail[1:])]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args == ["--version"]:
        from offbench.bench.provenance import versions

        print(f"offbench {versions().get('offbench', 'of unknown version')}")
        return 0
    command, rest = args[0], args[1:]
    warnings.formatwarning = _in_one_line
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        # for method._target_=mymodule.X, of a file that lies here
        sys.path.append(os.getcwd())
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        if rest and rest[0] in ("-h", "--help") and command != "data":
            print(_help_of(command), end="")
            return 0
        if command != "data" and (flags := [a for a in rest if a.startswith("-")]):
            raise UserError(
                f"unknown option {flags[0]!r}: settings are written key=value; see offbench --help"
            )
        return COMMANDS[command](rest)
    except UserError as error:
        print(f"offbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "offbench: interrupted; finished runs are kept, the next run continues", file=sys.stderr
        )
        return 130
    # `offbench list methods | head`
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_python_s = warnings.formatwarning


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """Of a warning about data, its words; of any other, what Python makes of it."""
    if category.__name__ == "DataWarning":
        return f"offbench: warning: {message}\n"
    return _python_s(message, category, *where, **more)


def _data(args: Sequence[str]) -> int:
    from offbench.cli import data as data_cli

    return data_cli.main(args)


def _check(args: Sequence[str]) -> int:
    from offbench.bench.plan import plan
    from offbench.bench.targets import is_torch_class, locate
    from offbench.testing.contract import SPEC, check_method, fake_batch
    from offbench.training.imperative import Imperative

    for cell in {c.entry: c for c in plan(args, bench=False).cells}.values():
        print(cell.entry)
        if is_torch_class(locate(cell.target)):
            Imperative(locate(cell.target), **cell.hparams).check(SPEC, fake_batch(SPEC))
            print(
                "ok      a PyTorch class, trained as it is written: train_step and act fit together"
            )
            continue
        try:
            check_method(locate(cell.target)(**cell.hparams))
        except AssertionError as error:
            print(f"offbench: {cell.entry} breaks the contract: {error}", file=sys.stderr)
            return 1
    return 0


def _speed(args: Sequence[str]) -> int:
    from offbench.speed import benchmark as speed

    return speed.main(args)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "bench": run_bench,
    "run": run_one,
    "plan": show_plan,
    "board": show_board,
    "diagnose": draw_diagnostics,
    "list": show_list,
    "data": _data,
    "check": _check,
    "speed": _speed,
}
