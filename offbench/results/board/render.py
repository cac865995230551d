"""A leaderboard as Markdown, csv and terminal tables. Nothing is computed here."""

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from offbench.errors import writing
from offbench.io import atomic_write
from offbench.results import markdown
from offbench.results.board import averaged_text, consistency_text, goals_text, pairs_text, strip
from offbench.results.board.cell_text import TASK_WIDTH, cell_text, rows_of_cells
from offbench.results.board.leaderboard import Board
from offbench.results.board.pairs_text import rank_text
from offbench.results.names import folded
from offbench.results.words import bounds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# the mean is no order of its own
_UNRANKED = {"rank": "", "rank_low": "", "rank_high": ""}


def to_markdown(board: Board) -> str:
    """A GitHub table, its caption and its notes."""
    names = without_common_folder(board.tasks)
    head = ["#", "entry", *names, "IQM", "mean", "seeds", "episodes", "tuned", "tuning", "updates"]
    head += ["s/run", "commit"]
    compared = len(board.entry_consistency) > 0
    seeds_apart = consistency_text.column(board) if compared else {}
    head += ["consistency"] if compared else []
    lines = []
    rows = rows_of_cells(board)
    for row in board.aggregate.itertuples():
        cells = rows[row.entry]
        seeds = f"{row.n_seeds}-{row.n_seeds_max}"
        texts = [
            rank_text(row),
            row.entry,
            *(_bold(cell_text(cell), cell.best) for cell in cells),
            _bold(aggregate_text(row), row.best),
            "--" if np.isnan(row.mean) else f"{row.mean:.1f}",
            str(row.n_seeds) if row.n_seeds == row.n_seeds_max else seeds,
            str(row.n_episodes),
            f"{row.n_tuned}/{row.n_tasks}",
            row.tuning or "--",
            row.updates or "--",
            "--" if np.isnan(row.wall_s) else f"{row.wall_s:.0f}",
            row.commit or "--",
            *([seeds_apart[row.entry]] if compared else []),
        ]
        lines.append(texts)
    words = [head.index(name) for name in ("entry", "tuning", "commit")]
    parts = [f"# {board.title}"] if board.title else []
    parts += [markdown.table(head, lines, left=words), board.caption]
    parts += [consistency_text.CAPTION] if compared else []
    if len(board.averaged):
        parts.append(averaged_text.to_markdown(board, names))
    if len(board.goals):
        parts.append(goals_text.to_markdown(board))
    parts += pairs_text.paragraphs(board)
    if board.notes:
        parts.append("Notes:\n\n" + "\n".join(f"* {note}" for note in board.notes))
    return "\n\n".join(parts) + "\n"


def to_csv(board: Board) -> str:
    """Tidy: one line per number, with its interval and what it was computed from."""
    sink = io.StringIO()
    columns = ["kind", "entry", "task", "statistic", "value", "low", "high", "n_seeds"]
    columns += ["n_episodes", "status", "best", "rank", "n_failed", "n_diverged", "n_tuned"]
    columns += [
        "tuning",
        "n_updates",
        "published_updates",
        "wall_s",
        "commit",
        "rank_low",
        "rank_high",
    ]
    writer = csv.DictWriter(sink, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for cell in board.cells.itertuples():
        common = {name: getattr(cell, name) for name in columns if hasattr(cell, name)}
        writer.writerow(
            _csv_line({**common, "kind": "cell", "statistic": "mean", "value": cell.mean})
        )
    for row in board.aggregate.itertuples():
        common = {name: getattr(row, name) for name in columns if hasattr(row, name)}
        common |= {"kind": "aggregate", "status": aggregate_status(row)}
        if not np.isnan(row.mean_rank):
            writer.writerow(_csv_line({**common, "statistic": "mean rank", "value": row.mean_rank}))
            continue
        writer.writerow(_csv_line({**common, "statistic": "iqm", "value": row.iqm}))
        own = {"low": row.mean_low, "high": row.mean_high, "best": ""}
        writer.writerow(
            _csv_line({**common, "statistic": "mean", "value": row.mean, **own, **_UNRANKED})
        )
    writer.writerows(_csv_line(line) for line in averaged_text.csv_lines(board, columns))
    writer.writerows(_csv_line(line) for line in goals_text.csv_lines(board))
    writer.writerows(_csv_line(line) for line in consistency_text.csv_lines(board))
    return sink.getvalue()


def to_terminal(board: Board, console: "Console") -> None:
    """Prints the board; more tasks than fit one width continue in further tables."""
    from rich.text import Text

    layout = _layout(board, console.width)
    for number, tasks in enumerate(layout.blocks):
        console.print(_terminal_table(board, tasks, layout, with_aggregate=not number))
    for words in (pairs_text.sentence(board), *board.summary.splitlines()):
        if words:
            console.print(Text(words, style="dim"))
    if len(board.averaged):
        console.print(averaged_text.to_table(board))
        console.print(Text(averaged_text.caption(board), style="dim"))
    if len(board.entry_consistency):
        console.print(consistency_text.to_table(board))
        console.print(Text(consistency_text.CAPTION, style="dim"))
    for note in board.notes:
        console.print(Text(f"* {note}", style="yellow"))


def write_texts(folder: Path, name: str, markdown: str, table: str) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.csv`, each whole or not at all."""
    paths = folder / f"{name}.md", folder / f"{name}.csv"
    with writing(f"the board to {folder}"):
        for path, text in zip(paths, (markdown, table), strict=True):
            atomic_write(path, text.encode())
    return paths


def aggregate_status(row: Any) -> str:
    if row.complete == row.n_tasks:
        return "ok"
    if row.complete == row.n_asked:
        return f"suite's choice ({row.complete}/{row.n_tasks} tasks)"
    return f"incomplete ({row.complete}/{row.n_asked} tasks)"


def aggregate_text(row: Any) -> str:
    if not np.isnan(row.mean_rank):
        return f"mean rank {row.mean_rank:.1f}"
    if np.isnan(row.iqm):
        return "--" if row.complete == row.n_tasks else aggregate_status(row)
    return f"{row.iqm:.1f}{bounds(row.low, row.high)}"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _csv_line(line: dict[str, Any]) -> dict[str, Any]:
    return {name: _csv_value(value) for name, value in line.items()}


def _csv_value(value: Any) -> Any:
    if value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else value


def without_common_folder(tasks: tuple[str, ...]) -> list[str]:
    """d4rl/a, d4rl/b/c -> a, b/c; ids of several worlds stay as they are.

    Of what is in folders below the first, the last one stays, as it names the environment:
    offbench/hopper/a -> hopper/a.
    """
    parts = [task.split("/") for task in tasks]
    common = 0
    while all(len(p) > common + 1 + (common > 0) and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


def short_names(tasks: tuple[str, ...]) -> list[str]:
    """a-v2, b-v2 -> a, b, for a heading which has no room."""
    names = without_common_folder(tasks)
    versions = {re.search(r"-v\d+$", name) and name.rpartition("-")[2] for name in names}
    if len(versions) == 1 and None not in versions:
        return [name.rpartition("-")[0] for name in names]
    return names


def column_headings(tasks: tuple[str, ...]) -> list[str]:
    """Names of tasks in lines as wide as a column of scores."""
    return [_heading(name) for name in short_names(tasks)]


def _heading(task: str) -> str:
    """A task id in lines of at most TASK_WIDTH, broken where words end."""
    words = [word for word in re.split(r"[-/_ ]+", task) if word]
    lines: list[str] = []
    for word in words:
        word = word.replace("halfcheetah", "cheetah").replace("humanoid", "hum.")
        if lines and len(lines[-1]) + 1 + len(word) <= TASK_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines += folded(word, TASK_WIDTH).split("\n")
    return "\n".join(lines)


class _Layout(NamedTuple):
    """How a board is laid out within a width."""

    # column numbers of the tasks of every table
    blocks: list[list[int]]
    # whether the interval of the IQM is drawn, or else printed below it
    drawn: bool
    # of the names of entries, which are folded where they are longer
    names: int


def _layout(board: Board, width: int) -> _Layout:
    """As few tables as possible; the strip is drawn where it costs no column.

    Names of entries leave room for three columns.
    """
    rank = max([2, *(len(rank_text(row)) for row in board.aggregate.itertuples())])
    longest = max([len("entry"), *(len(entry) for entry in board.aggregate["entry"])])
    name = min(longest, max(TASK_WIDTH, width - (rank + 1) - 3 * (TASK_WIDTH + 1)))
    # rank, gap, entry; every further column brings its gap
    room = width - (rank + 1 + name)
    columns = list(range(len(board.tasks)))
    with_strip, printed = (
        max(1, (room - aside) // (TASK_WIDTH + 1))
        for aside in (1 + 5 + 1 + strip.WIDTH, 1 + TASK_WIDTH)
    )
    drawn = with_strip >= min(printed, len(columns))
    first = with_strip if drawn else printed
    later = max(1, room // (TASK_WIDTH + 1))
    blocks, columns = [columns[:first]], columns[first:]
    while columns:
        blocks.append(columns[:later])
        columns = columns[later:]
    return _Layout(blocks, drawn, name)


def _terminal_table(
    board: Board, columns: list[int], layout: _Layout, *, with_aggregate: bool
) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    axis, drawn = strip.axis(board.aggregate), layout.drawn
    names = column_headings(board.tasks)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.title = board.title if with_aggregate and board.title else None
    table.add_column("#", no_wrap=True, min_width=2)
    table.add_column("entry", overflow="fold", min_width=layout.names, vertical="top")
    for column in columns:
        table.add_column(names[column], justify="right", width=TASK_WIDTH)
    if with_aggregate and drawn:
        table.add_column("IQM", justify="right", no_wrap=True, min_width=5)
        table.add_column(strip.axis_heading(*axis), no_wrap=True, min_width=strip.WIDTH)
    elif with_aggregate:
        table.add_column("IQM", justify="right", width=TASK_WIDTH)
    rows = rows_of_cells(board)
    for row in board.aggregate.itertuples():
        line = [Text(rank_text(row)), Text(folded(row.entry, layout.names))]
        for column in columns:
            cell = rows[row.entry][column]
            line.append(Text(cell_text(cell, short=True), style="bold" if cell.best else ""))
        if with_aggregate:
            line += _aggregate_texts(row, axis) if drawn else [_aggregate_in_column(row)]
        table.add_row(*line)
    return table


def _aggregate_texts(row: Any, axis: tuple[float, float]) -> "list[Text]":
    """The IQM, and its interval drawn; what stands for them where there is none."""
    from rich.text import Text

    if np.isnan(row.iqm):
        return [Text("--"), Text(aggregate_text(row).replace(" (", "\n("), style="dim")]
    drawn = strip.draw(row.low, row.iqm, row.high, *axis)
    return [Text(f"{row.iqm:.1f}", style="bold" if row.best else ""), Text(drawn, style="cyan")]


def _aggregate_in_column(row: Any) -> "Text":
    """The IQM with its interval below it, as wide as a cell."""
    from rich.text import Text

    if not np.isnan(row.mean_rank):
        return Text(f"mean rank\n{row.mean_rank:.1f}", style="dim")
    if np.isnan(row.iqm):
        return Text(f"--\n{row.complete}/{row.n_tasks} tasks", style="dim")
    below = bounds(row.low, row.high, 0).replace(" ", "\n", 1)
    return Text(f"{row.iqm:.1f}{below}", style="bold" if row.best else "")
