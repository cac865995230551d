"""How far an entry's seeds are apart, on a board: its column, its lines in the csv, and what it is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from offbench.results.board.leaderboard import Board
from offbench.results.words import bounds

if TYPE_CHECKING:
    from rich.table import Table

CAPTION = (
    "consistency: how far the policies of an entry's seeds are apart on states of the data, mean over pairs of seeds and"
    " over tasks, with its interval over seeds: of the first action the root mean square difference over the range of actions,"
    " of discrete ones the share of other choices. 0: all seeds learned one policy. It enters no rank."
)


def column(board: Board) -> dict[str, str]:
    """Entry -> its text; `--` where it was not measured."""
    found = {
        row.entry: _text(row, len(board.tasks)) for row in board.entry_consistency.itertuples()
    }
    return {entry: found.get(entry, "--") for entry in board.aggregate["entry"]}


def cells(board: Board) -> dict[tuple[str, str], str]:
    """(entry, task) -> its text, of every kind that was measured: "action 0.123 [0.100, 0.150], js 0.4"."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in board.consistency.itertuples():
        found.setdefault((row.entry, row.task), []).append(f"{row.kind} {spelt(row)}")
    return {cell: ", ".join(texts) for cell, texts in found.items()}


def _text(row: Any, n_tasks: int) -> str:
    some = "" if row.n_tasks == n_tasks else f" ({row.n_tasks}/{n_tasks} tasks)"
    return f"{spelt(row)}{some}"


def spelt(row: Any) -> str:
    """`0.123 [0.100, 0.150]`."""
    return f"{row.value:.3f}{bounds(row.low, row.high, 3)}"


def to_table(board: Board) -> "Table":
    """The column as a table of its own, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("entry", overflow="fold")
    table.add_column("  consistency", justify="right")
    for entry, text in column(board).items():
        table.add_row(Text(entry), Text(f"  {text}"))
    return table


def csv_lines(board: Board) -> Iterator[dict[str, Any]]:
    """A line per cell and kind, and one per entry."""
    for row in board.consistency.itertuples():
        names = ("entry", "task", "value", "low", "high", "n_seeds")
        line = {name: getattr(row, name) for name in names}
        yield {"kind": "cell", "statistic": f"consistency, {row.kind}", **line}
    for row in board.entry_consistency.itertuples():
        line = {name: getattr(row, name) for name in ("entry", "value", "low", "high")}
        yield {"kind": "aggregate", "statistic": "consistency", **line}
