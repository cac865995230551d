"""`offbench board published=corl`, `offbench list published`: scores of papers beside ours."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.errors import UserError, listed, writing
from offbench.io import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.results.board.leaderboard import Board
    from offbench.results.board.validation_table import ValidationTable
    from offbench.results.published.scores import Source

KEY = "published="


def split_published(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The settings without `published=`, and the sources it names; None where it is not given.

    Raises UserError for an unknown source.

    >>> split_published(["suite=quick", "published=[corl,iql-2021]"])
    (['suite=quick'], ['corl', 'iql-2021'])
    """
    rest = [arg for arg in args if not arg.startswith(KEY)]
    given = [arg.removeprefix(KEY) for arg in args if arg.startswith(KEY)]
    if not given or given[-1] in ("null", "[]"):
        return rest, None
    names = [name.strip() for text in given for name in text.strip("[]").split(",")]
    if not any(names):
        raise UserError("published= names no source; see offbench list published")
    named = list(dict.fromkeys(filter(None, names)))
    # unknown ones are refused before anything is computed or written
    _find([], named)
    return rest, named


def _find(tasks: Sequence[str], names: Sequence[str]) -> "pd.DataFrame":
    from offbench.results.published.scores import published_scores

    return published_scores(tasks, None if "all" in names else names)


def show_published(
    board: "Board | ValidationTable", names: Sequence[str], path: Path, console: "Console"
) -> None:
    """Prints published scores under a board, and appends them to its Markdown file."""
    from offbench.results.board.validation_table import ValidationTable
    from offbench.results.published import table as published_table

    if isinstance(board, ValidationTable):
        console.print("no published scores: validation metrics are compared with nothing")
        return
    found = _find(board.tasks, names)
    if found.empty:
        console.print(_none_of(board.tasks, names), soft_wrap=True, markup=False)
        return
    table = published_table.compared(board, found)
    published_table.to_terminal(table, board, console)
    text = path.read_text(encoding="utf-8") + "\n" + published_table.to_markdown(table, board)
    with writing(path):
        atomic_write(path, text.encode())


def _none_of(tasks: Sequence[str], names: Sequence[str]) -> str:
    """That nothing is published, and which sources have scores of these tasks or, failing that, of others."""
    from offbench.results.published.scores import published_scores

    which = "" if "all" in names else f" in {', '.join(names)}"
    text = f"no published scores of these tasks{which}"
    means = {
        row.source for row in published_scores(None).itertuples() if _is_mean_over(row.task, tasks)
    }
    if named := sorted(means if "all" in names else means & set(names)):
        return (
            f"{text}; those in {', '.join(named)} are means over the five tasks of an environment"
        )
    if others := list(dict.fromkeys(published_scores(tasks)["source"])):
        return f"{text}; there are some in {', '.join(others)}"
    if all(task.startswith("offbench/") for task in tasks):
        text += ": their data were made here"
    return (
        f"{text}; nearest are D4RL's in corl and OGBench's in ogbench-2024: offbench list published"
    )


def _is_mean_over(published: str, tasks: Sequence[str]) -> bool:
    """Whether a published score is a mean over several tasks, one of which is named."""
    return "*" in published and any(fnmatch(task, published) for task in tasks)


def list_sources() -> list[tuple[str, str]]:
    """Every source with its citation, what it has scores of, and its protocol."""
    from offbench.results.published.scores import published_scores, published_sources

    scores, rows = published_scores(None), []
    for name, source in published_sources().items():
        mine = scores[scores["source"] == name]
        rows += [(name, source.citation), ("", _contents(mine, source))]
    return rows


def _contents(mine: "pd.DataFrame", source: "Source") -> str:
    from offbench.results.words import plural

    methods = list(dict.fromkeys(mine["method"]))
    seeds = sorted({int(n) for n in mine["seeds"].dropna()})
    known = f"{'/'.join(map(str, seeds))} seeds" if seeds else "seeds not known"
    tasks = plural(mine["task"].nunique(), "task")
    return f"{tasks}, {known}: {listed(methods, 10)}; {source.words}"
