"""Published scores beside a leaderboard: in which cells ours and theirs differ, as tables and in words.

They enter no rank, aggregate, interval or bold of ours.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.results import markdown, stats
from offbench.results.board.cell_text import TASK_WIDTH
from offbench.results.board.leaderboard import Board
from offbench.results.board.render import column_headings, without_common_folder
from offbench.results.captions import count
from offbench.results.published.scores import intervals, published_sources, updates_of
from offbench.results.stats import Interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MISS = "≠"

LEGEND = (
    f"{MISS}: ours and theirs differ (the 95 % interval of the difference leaves out 0; where theirs has no"
    " known spread over seeds, theirs lies outside our interval). Published scores enter no rank, mean,"
    " interval or bold."
)


def difference(ours: Interval, theirs: Interval) -> Interval:
    """Ours minus theirs (`offbench.results.stats.difference`); a score of theirs without interval counts as exact."""
    exact = theirs._replace(low=theirs.point, high=theirs.point)
    return stats.difference(ours, exact if np.isnan(theirs.low) else theirs)


def compared(
    board: Board,
    published: pd.DataFrame,
    labels: Mapping[tuple[str, str], str] | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Published scores with our cells beside them.

    Args:
        board: of ours.
        published: rows of `published_scores`.
        labels: (published entry, task) -> the entry of ours that it is compared with; None: the same name.
        level: confidence level of their intervals and of the difference; that of the board.

    Returns:
        The rows with low and high (theirs), ours, ours_low, ours_high, n_seeds, n_asked, status (of our cell;
        "missing" without one), difference, difference_low, difference_high and misses (whether they differ).
    """
    cells = {(cell.entry, cell.task): cell for cell in board.cells.itertuples(index=False)}
    table = published.join(intervals(published, level))
    lines = []
    for row in table.itertuples(index=False):
        key = row.entry, row.task
        label = row.entry if labels is None else labels.get(key)
        lines.append(_line(cells.get((label, row.task)), Interval(row.score, row.low, row.high)))
    names = ["ours", "ours_low", "ours_high", "n_seeds", "n_asked", "status"]
    names += ["difference", "difference_low", "difference_high", "misses"]
    return table.join(pd.DataFrame(lines, columns=names, index=table.index))


def _line(cell: Any, theirs: Interval) -> tuple[Any, ...]:
    if cell is None or cell.missing:
        status = "missing" if cell is None else cell.status
        return np.nan, np.nan, np.nan, 0, 0, status, np.nan, np.nan, np.nan, False
    ours = Interval(cell.mean, cell.low, cell.high)
    found = difference(ours, theirs)
    # nan where ours has no interval: nothing is said
    misses = bool(found.low > 0 or found.high < 0)
    return *ours, cell.n_seeds, cell.n_asked, cell.status, *found, misses


def known_reasons(table: pd.DataFrame, board: Board) -> str:
    """What is known to differ between ours and theirs in the cells that have both, in one line; "" for nothing."""
    both = table[table["ours"].notna()]
    trained = dict(zip(board.aggregate["entry"], board.aggregate["n_updates"], strict=True))
    reasons: dict[str, None] = {}
    for name in both["source"].unique():
        checkpoint = published_sources()[name].checkpoint if name in published_sources() else ""
        if checkpoint not in ("", "last"):
            reasons[f"{name}: {checkpoint} evaluation there, the last here"] = None
    for row in both.drop_duplicates(["entry", "steps"]).itertuples():
        theirs, ours = updates_of(row.steps), str(trained.get(row.entry, ""))
        if theirs and ours.isdigit() and int(ours) != theirs:
            reasons[f"{row.entry}: {count(theirs)} updates there, {count(int(ours))} here"] = None
    if both["task"].str.startswith("d4rl/").any():
        reasons["D4RL's environments run here in MuJoCo 3"] = None
    return f"Known to differ: {'; '.join(reasons)}." if reasons else ""


def sources_line(table: pd.DataFrame) -> Iterable[str]:
    """Each source once: its short name, citation and protocol."""
    for row in table.drop_duplicates("source").itertuples():
        yield f"{row.source}: {row.citation}" + (f"; {row.protocol}" if row.protocol else "")


def to_markdown(table: pd.DataFrame, board: Board) -> str:
    """A second table under a board's: a line per source and method, and what is known of the sources."""
    names = without_common_folder(board.tasks)
    head, lines = ["method", "source", "entry here", *names, "seeds", "updates"], []
    for (source, method), rows in _by_method(table):
        cells = [_texts(rows[rows["task"] == task], wide=True) for task in board.tasks]
        more = ["/".join(_distinct(rows[name])) or "--" for name in ("seeds", "steps")]
        entry = rows["entry"].iloc[0] if rows["ours"].notna().any() else "--"
        lines.append([method, source, entry, *cells, *more])
    parts = [
        "## Published",
        markdown.table(head, lines, left=range(3)),
        LEGEND,
        known_reasons(table, board),
    ]
    parts.append("\n".join(f"* {line}" for line in sources_line(table)))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_terminal(table: pd.DataFrame, board: Board, console: "Console") -> None:
    """Prints published scores in dim italics, in columns like the board's; many tasks in several tables."""
    from rich.text import Text

    label = max(len(f"{method} {source}") for (source, method), _ in _by_method(table))
    width = max(TASK_WIDTH, *map(len, _texts(table, wide=False).split("\n")))
    fit = max(1, (console.width - label - 1) // (width + 1))
    headings = dict(zip(board.tasks, column_headings(board.tasks), strict=True))
    for start in range(0, len(board.tasks), fit):
        tasks = board.tasks[start : start + fit]
        console.print(_terminal_table(table, {task: headings[task] for task in tasks}, width))
    for line in (LEGEND, known_reasons(table, board), *sources_line(table)):
        if line:
            console.print(Text(line, style="dim"))


def _terminal_table(table: pd.DataFrame, headings: Mapping[str, str], width: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    shown.title = "published"
    shown.add_column("method", overflow="fold")
    for heading in headings.values():
        shown.add_column(heading, justify="right", width=width)
    for (source, method), rows in _by_method(table):
        line = [Text(f"{method} {source}", style="dim italic")]
        for task in headings:
            text = _texts(rows[rows["task"] == task], wide=False)
            line.append(Text(text, style="yellow italic" if MISS in text else "dim italic"))
        shown.add_row(*line)
    return shown


def _by_method(table: pd.DataFrame) -> Any:
    return table.groupby(["source", "method"], sort=False)


def _distinct(column: pd.Series) -> list[str]:
    return list(dict.fromkeys(str(x) for x in column.dropna() if str(x)))


def _texts(rows: pd.DataFrame, *, wide: bool) -> str:
    """The score of a cell: `67.5 ± 6.9 ≠`; several (targets of a decision transformer) one below the other."""
    words = []
    for row in rows.itertuples():
        text = f"{row.score:.1f}"
        if not np.isnan(row.low):
            half = (row.high - row.low) / 2
            short = f"{half:.0f}" if half >= 9.95 else f"{half:.1f}"
            text += f" ± {half:.1f}" if wide else f"±{short}"
        words.append(text + ((" " if wide else "") + MISS if row.misses else ""))
    return ("<br>" if wide else "\n").join(words) or "--"
