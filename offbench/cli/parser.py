"""argparse whose mistakes are one line, a `UserError` that names the nearest valid choice."""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offbench.errors import UserError, unknown

COLUMNS = 80


class Parser(argparse.ArgumentParser):
    """Sub-commands, options and help; `more` writes the end of the help when it is asked for."""

    def __init__(self, *, more: Callable[[], str] | None = None, **kwargs: Any) -> None:
        self.options: list[str] = []
        self._more = more
        super().__init__(allow_abbrev=False, formatter_class=_formatter, **kwargs)

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        self.options += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **kwargs)

    def add_commands(
        self, dest: str, summaries: Mapping[str, str], examples: Mapping[str, Sequence[str]]
    ) -> dict[str, "Parser"]:
        """Adds commands below this one, by name; the one that is called is the option `dest`."""
        commands = self.add_subparsers(
            title="commands", metavar="COMMAND", dest=dest, prog=self.prog
        )
        parsers = {}
        for name, summary in summaries.items():
            lines = "".join(f"  {self.prog} {line}\n" for line in examples[name])
            more = lambda lines=lines: f"examples:\n{lines}"
            parsers[name] = commands.add_parser(name, help=summary, description=summary, more=more)
            parsers[name].set_defaults(parser=parsers[name])
        return parsers

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self._more()}" if self._more else "")

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; {' '.join(self.format_usage().split())}")

    # argparse's own message of a wrong choice does not say which one is near
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = action.option_strings[0] if action.option_strings else action.dest
            raise unknown(kind.replace("_", " "), value, action.choices)


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = min(COLUMNS, shutil.get_terminal_size().columns)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width)


def whole_number(text: str) -> int:
    """5000, 5k or 1M."""
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    try:
        return int(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
