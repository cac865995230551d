"""The terminal: a console, wrapped lines, numbers and durations in words."""

import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def make_console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False)


def print_table(
    console: "Console",
    rows: "Iterable[Sequence[str | Text]]",
    *,
    header: Sequence[str] = (),
    title: str | None = None,
    whole: Collection[int] = (),
) -> None:
    """A table without lines; cells are text, not markup, and the columns `whole` are not wrapped."""
    rows = list(rows)
    if len(rows) > _LONG and not console.is_terminal:
        _print_lines(rows, header, title)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, show_header=bool(header), title=title, title_justify="left"
    )
    for i in range(len(header or rows[0])):
        table.add_column(header[i] if header else "", overflow="fold", no_wrap=i in whole)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


# rows from which a pipe gets plain lines: rich measures and wraps each cell, 2 s for 1,000 rows
_LONG = 200


def _print_lines(
    rows: "list[Sequence[str | Text]]", header: Sequence[str], title: str | None
) -> None:
    """The table with every column as wide as its widest cell, nothing wrapped."""
    lines = [[str(cell) for cell in row] for row in ([header] if header else []) + rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if title:
        print(title)
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_list(rows: Sequence[tuple[str, str]]) -> None:
    """Names and what they are: wrapped to a terminal's width, one line each in a pipe."""
    column = max(len(name) for name, _ in rows)
    if not sys.stdout.isatty():
        for name, about in rows:
            print(f"{name:{column}}  {about}".rstrip())
        return
    width = shutil.get_terminal_size().columns
    room = width - column - 2
    # one above the other where two columns would be narrow
    stacked = room < 48 and any(len(about) > room for _, about in rows)
    indent = " " * (4 if stacked else column + 2)
    for name, about in rows:
        if stacked and name:
            print(name)
        print(
            textwrap.fill(
                about,
                width,
                initial_indent=indent if stacked else f"{name:{column}}  ",
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def severity_label(severity: str, words: str | None = None) -> "Text":
    """The words, or the severity itself, in its colour."""
    from rich.text import Text

    return Text((words or severity).replace("_", " "), style=_COLOURS[severity])


_COLOURS = {"severe": "bold red", "warning": "yellow", "info": "dim"}


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
    if run:
        return f"{seeds[0]}-{seeds[-1]}"
    if len(seeds) > 12:
        return f"{','.join(map(str, seeds[:6]))} and {len(seeds) - 6:,} more"
    return ",".join(map(str, seeds))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
