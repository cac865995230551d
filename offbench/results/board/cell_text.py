"""One cell of a leaderboard in words: its mean, its interval, and what is missing of it."""

from typing import Any

import numpy as np

from offbench.results.board.leaderboard import Board
from offbench.results.captions import failures

# of a column of scores: "100.0±12" and a star
TASK_WIDTH = 9

_SHORT = {"failed": "failed", "diverged": "div."}


def rows_of_cells(board: Board) -> dict[str, list[Any]]:
    """Entry -> its cells, in the order of the tasks."""
    found = {(cell.entry, cell.task): cell for cell in board.cells.itertuples(index=False)}
    return {
        entry: [found[entry, task] for task in board.tasks] for entry in board.aggregate["entry"]
    }


def cell_text(cell: Any, *, short: bool = False) -> str:
    """`60.5 ± 33.1`; of a success rate, whose interval is not symmetric, `33.3 [8.1, 73.0]`."""
    if cell.missing:
        return "--" if cell.status in ("missing", "left out") else cell.status
    text = f"{cell.mean:.1f}" + interval_text(cell, short)
    if short and len(text.partition("\n")[0]) > TASK_WIDTH:
        # whole numbers rather than cut ones: 5012±8 of 5012.2±8.3
        text = f"{cell.mean:.0f}" + interval_text(cell, short, whole=True)
    notes = missing_of(cell, short=short)
    return text + "".join(f"\n{note}" if short else f" ({note})" for note in notes)


def missing_of(cell: Any, *, short: bool = False) -> list[str]:
    """`1 failed`, `1 diverged`, or else `2 of 3 seeds`; nothing of a whole cell."""
    notes = [f"{n} {_SHORT[word] if short else word}" for n, word in failures(cell) if n]
    if cell.n_seeds < cell.n_asked and not notes:
        notes.append(f"{cell.n_seeds} of {cell.n_asked}" + ("" if short else " seeds"))
    return notes


def interval_text(cell: Any, short: bool, whole: bool = False) -> str:
    """` ± 33.1`, or ` [8.1, 73.0]` of a success rate; empty where a cell has no interval."""
    if np.isnan(cell.low):
        return ""
    if cell.success:
        return (
            f"\n[{cell.low:.0f}, {cell.high:.0f}]"
            if short
            else f" [{cell.low:.1f}, {cell.high:.1f}]"
        )
    half = (cell.high - cell.low) / 2
    if short:
        return f"±{half:.0f}" if whole or half >= 9.95 else f"±{half:.1f}"
    return f" ± {half:.1f}"
