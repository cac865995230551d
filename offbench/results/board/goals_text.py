"""The success at each goal of a board's goal-conditioned tasks, as tables."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from offbench.results import markdown
from offbench.results.board.leaderboard import Board
from offbench.results.words import bounds

if TYPE_CHECKING:
    from rich.table import Table

CAPTION = (
    "Success at each goal (task_id) in percent, of the test episodes after the last update, with its interval"
    " over seeds and start states; the board's score of a task is their mean."
)


def to_markdown(board: Board) -> str:
    """A line for each entry and task, a column for each goal, and the caption."""
    head, lines = text_table(board)
    return f"{markdown.table(head, lines, left=(0, 1))}\n\n{CAPTION}"


def to_table(board: Board) -> "Table":
    """The same for a terminal."""
    from rich.table import Table
    from rich.text import Text

    head, lines = text_table(board)
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < 2 else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def csv_lines(board: Board) -> Iterator[dict[str, Any]]:
    """What the csv says of each goal."""
    for row in board.goals.itertuples():
        yield {
            "kind": "cell",
            "entry": row.entry,
            "task": row.task,
            "statistic": f"mean of task_id {row.task_id}",
            "value": row.mean,
            "low": row.low,
            "high": row.high,
            "n_seeds": row.n_seeds,
            "n_episodes": row.n_episodes,
        }


def text_table(board: Board) -> tuple[list[str], list[list[str]]]:
    """Head and lines: entry, task, and the success at each goal with its interval."""
    goals = sorted(board.goals["task_id"].unique())
    found = {(row.entry, row.task, row.task_id): row for row in board.goals.itertuples()}
    with_goals = [task for task in board.tasks if task in set(board.goals["task"])]
    lines = [
        [entry, task, *(_text(found.get((entry, task, goal))) for goal in goals)]
        for task in with_goals
        for entry in board.aggregate["entry"]
        if any((entry, task, goal) in found for goal in goals)
    ]
    return ["entry", "task", *(f"goal {goal}" for goal in goals)], lines


def _text(cell: Any) -> str:
    return "--" if cell is None else f"{cell.mean:.0f}{bounds(cell.low, cell.high, 0)}"
