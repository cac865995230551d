"""The terminal: a console, wrapped lines, numbers and durations in words."""

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False)


def print_wrapped(text: str, console: "Console") -> None:
    """Indented, and broken between words to at most 80 columns."""
    width = min(80, console.width)
    lines = textwrap.wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def short_number(value: Any) -> str:
    """3e-4 rather than 0.0003."""
    if not (isinstance(value, float) and 0 < value < 0.01):
        return str(value)
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def spelt_seeds(seeds: Sequence[int]) -> str:
    """0-3 where they follow each other, else 0,2,5."""
    run = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]}-{seeds[-1]}" if run else ",".join(map(str, seeds))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
