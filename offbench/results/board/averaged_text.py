"""The means of the last three evaluations of a board's entries, as tables."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offbench.results import markdown
from offbench.results.board.cell_text import interval_text, rows_of_cells
from offbench.results.board.leaderboard import Board
from offbench.results.captions import failures

if TYPE_CHECKING:
    from rich.table import Table


def to_markdown(board: Board, names: Sequence[str]) -> str:
    """A line for each entry, a column for each task of these `names`, and the caption."""
    lines = []
    found, rows = board.averaged.set_index(["entry", "task"]), rows_of_cells(board)
    for entry in board.aggregate["entry"]:
        if entry not in set(board.averaged["entry"]):
            continue
        texts = [entry]
        for task, whole in zip(board.tasks, rows[entry], strict=True):
            text = "--"
            if (entry, task) in found.index:
                cell = found.loc[entry, task]
                shown = interval_text(cell, short=False)
                text = f"{cell['mean']:.1f}{shown} ({cell['last']:.1f})"
                text += "".join(f" ({n} {word})" for n, word in failures(whole) if n)
            texts.append(text)
        means = _means(board, entry)
        texts += ["--", "--"] if means is None else [f"{x:.1f}" for x in means]
        lines.append(texts)
    table = markdown.table(["entry", *names, "mean of tasks", "the last alone"], lines)
    return f"{table}\n\n{caption(board)}"


def caption(board: Board) -> str:
    """What the numbers are."""
    designs = board.averaged.groupby(["at", "each"]).size().index
    shown = "; ".join(
        f"after {' %, '.join(f'{100 * x:g}' for x in at)} % of the updates, on"
        f" {', '.join(map(str, each))} episodes per seed"
        for at, each in designs
    )
    return (
        f"Mean of the last three evaluations ({shown}) with its interval, as above but over seeds alone;"
        " in brackets, and in the last column, the last evaluation alone. The first two are monitor"
        " episodes, other ones than the test episodes of the last; the board ranks by the last alone."
    )


def csv_lines(board: Board, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line per cell, with those of the columns that it has."""
    for cell in board.averaged.itertuples():
        common = {name: getattr(cell, name) for name in columns if hasattr(cell, name)}
        yield common | {
            "kind": "cell",
            "statistic": "mean of last 3 evaluations",
            "value": cell.mean,
        }


def to_table(board: Board) -> "Table":
    """Means over tasks, for a terminal; single tasks are in the markdown and the csv."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("entry", overflow="fold")
    for name in ("last three", "last alone"):
        table.add_column(f"  {name}", justify="right")
    for entry in board.aggregate["entry"]:
        means = _means(board, entry)
        if means is not None:
            table.add_row(Text(entry), *(f"{x:.1f}" for x in means))
        elif entry in set(board.averaged["entry"]):
            table.add_row(Text(entry), "--", "--")
    return table


def _means(board: Board, entry: str) -> tuple[float, float] | None:
    """Over tasks: of the last three evaluations and of the last alone; None for entries without all."""
    mine = board.averaged[board.averaged["entry"] == entry]
    mean = board.aggregate.set_index("entry")["mean"]
    # what has no aggregate has none here
    if len(mine) < len(board.tasks) or np.isnan(mean[entry]):
        return None
    return float(mine["mean"].mean()), float(mine["last"].mean())
