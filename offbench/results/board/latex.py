"""A leaderboard as LaTeX tables for a paper, with booktabs; nothing is computed here.

The best of a column, and what does not differ from it, is bold. Boards of many tasks continue in
further tables, each no wider than a page of 6.5 inches.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from offbench.results.board import consistency_text
from offbench.results.board.cell_text import missing_of, rows_of_cells
from offbench.results.board.leaderboard import Board
from offbench.results.board.pairs_text import rank_text
from offbench.results.board.render import aggregate_status, short_names

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}

# points of 6.5 inches, and of a character of a bold number, by size
_PAGE = 465
_SIZES = {r"\small": 4.55, r"\footnotesize": 4.1}

_HEADING_WIDTH = 11


def to_latex(board: Board) -> str:
    """Tables that compile after \\usepackage{booktabs}, captions included."""
    lines = [
        "% \\usepackage{booktabs}; also with a document class of two columns: table* for table",
        *_tables(board),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text as LaTeX shows it; what pdflatex has no letter for is left out."""
    spelt = "".join(_SPECIAL.get(character, character) for character in text)
    return "".join(c for c in spelt if ord(c) < 0x180)


def _tables(board: Board) -> Iterator[str]:
    rows = _rows(board)
    aside = _width([row[0] for row in rows]) + _width([row[1] for row in rows])
    rest = list(range(len(board.tasks)))
    # of all tasks together
    whole = range(2 + len(board.tasks), len(rows[0]))
    first = True
    while rest:
        room = _PAGE / _SIZES[r"\footnotesize"] - aside
        room -= sum(_width([row[i] for row in rows]) for i in whole) if first else 0
        part: list[int] = []
        while rest and (not part or _width([row[2 + rest[0]] for row in rows]) <= room):
            room -= _width([row[2 + rest[0]] for row in rows])
            part.append(rest.pop(0))
        columns = [0, 1, *(2 + column for column in part), *(whole if first else [])]
        yield from _table(board, [[row[column] for column in columns] for row in rows], first=first)
        first = False


def _rows(board: Board) -> list[list[str]]:
    """The heading and a row per entry, in all columns: rank, entry, tasks, IQM; consistency where it was measured."""
    names = short_names(board.tasks)
    rows = [[r"\#", "entry", *(escaped(_heading(name)) for name in names), "IQM"]]
    cells = rows_of_cells(board)
    for row in board.aggregate.itertuples():
        texts = [_bold(_cell(cell), cell.best) for cell in cells[row.entry]]
        rows.append([rank_text(row), escaped(row.entry), *texts, _bold(_aggregate(row), row.best)])
    if len(board.entry_consistency):
        column = ["consistency", *map(_apart, consistency_text.column(board).values())]
        rows = [[*row, text] for row, text in zip(rows, column, strict=True)]
    return rows


def _apart(text: str) -> str:
    """ "0.333 [0.000, 0.512] (1/2 tasks)", the note in small letters."""
    value, found, note = text.partition(" (")
    return value.replace(" [", r"\,[") + (rf" {{\footnotesize({note}}}" if found else "")


def _width(column: Sequence[str]) -> int:
    """Characters that a column takes, its gap included."""
    lines = [line for text in column for line in text.split("\n")]
    return 2 + max(len(re.sub(r"\\(pm|,)|\\[a-z]+ ?|[{}$\\]", "", line)) for line in lines)


def _table(board: Board, rows: Sequence[Sequence[str]], *, first: bool) -> Iterator[str]:
    heading, *body = rows
    width = sum(_width(column) for column in zip(*rows, strict=True))
    size = next((s for s, points in _SIZES.items() if width * points <= _PAGE), r"\footnotesize")
    depth = max(text.count("\n") for text in heading) + 1
    yield from (r"\begin{table}[htbp]", r"\centering", size, r"\setlength{\tabcolsep}{4pt}")
    yield r"\setlength{\belowcaptionskip}{6pt}"
    yield rf"\caption{{{_caption(board, first)}}}"
    yield rf"\begin{{tabular}}{{@{{}}ll{'r' * (len(heading) - 2)}@{{}}}}"
    yield r"\toprule"
    for line in range(depth):
        yield " & ".join(_line_of(text, line, depth) for text in heading) + r" \\"
    yield r"\midrule"
    for row in body:
        yield " & ".join(row) + r" \\"
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}")


def _caption(board: Board, with_aggregate: bool) -> str:
    if not with_aggregate:
        return escaped(f"{board.title}, further tasks.")
    return " ".join(
        [
            rf"\textbf{{{escaped(board.title)}.}}",
            escaped(board.caption),
            *([escaped(consistency_text.CAPTION)] if len(board.entry_consistency) else []),
            *(escaped(f"{note}.") for note in board.notes),
        ]
    )


def _heading(task: str) -> str:
    """A task id in short lines, broken where words end."""
    lines: list[str] = []
    for word in re.findall(r"[^-/_ ]+[-/_ ]?", task):
        if lines and len(lines[-1]) + len(word) <= _HEADING_WIDTH:
            lines[-1] += word
        else:
            lines.append(word)
    return "\n".join(lines)


def _line_of(heading: str, line: int, depth: int) -> str:
    """A line of a heading that ends with the last of `depth` lines."""
    lines = heading.split("\n")
    place = line - (depth - len(lines))
    return lines[place] if place >= 0 else ""


def _cell(cell: Any) -> str:
    if cell.missing:
        return "--" if cell.status in ("missing", "left out") else escaped(cell.status)
    text = f"{cell.mean:.1f}"
    if not np.isnan(cell.low):
        half = (cell.high - cell.low) / 2
        text += _bounds(cell.low, cell.high) if cell.success else rf"\,$\pm$\,{half:.1f}"
    return text + "".join(rf" {{\footnotesize({note})}}" for note in missing_of(cell))


def _aggregate(row: Any) -> str:
    if not np.isnan(row.mean_rank):
        return f"mean rank {row.mean_rank:.1f}"
    if np.isnan(row.iqm):
        status = escaped(aggregate_status(row).partition(" (")[0])
        return "--" if row.complete == row.n_tasks else status
    return f"{row.iqm:.1f}" + ("" if np.isnan(row.low) else _bounds(row.low, row.high))


def _bounds(low: float, high: float) -> str:
    return rf"\,[{low:.1f}, {high:.1f}]".replace("[-", "[$-$").replace(", -", ", $-$")


def _bold(text: str, best: bool) -> str:
    return rf"\textbf{{\boldmath {text}}}" if best else text
