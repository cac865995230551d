"""`offbench board`: the leaderboard of recorded runs."""

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import make_console
from offbench.cli.parser import COLUMNS
from offbench.cli.recorded import (
    board_folder,
    board_name,
    nothing_recorded,
    recorded_runs,
)
from offbench.cli.until import notes_of, progress_of
from offbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.plan import Plan
    from offbench.results.board.evidence import Evidence
    from offbench.results.board.leaderboard import Board
    from offbench.results.board.validation_table import ValidationTable
    from offbench.results.store import Store


def show_board(
    args: Sequence[str],
    *,
    format: str = "terminal",
    explain: bool = False,
    diff: str | None = None,
    check: str | None = None,
    published: str | None = None,
) -> int:
    """`offbench board`: prints and writes the leaderboard of what is recorded."""
    if check is not None:
        return _check_board(Path(check))
    from offbench.bench.plan import plan
    from offbench.cli.published import show_published, split_published
    from offbench.results.store import Store

    args, sources = split_published([*args, *([f"published={published}"] if published else [])])
    wanted, console = plan(args, bench=True), make_console()
    found = evidence_of(wanted, Store(Path(wanted.settings.results)))
    if found is None:
        raise nothing_recorded(wanted)
    if diff is not None:
        return _show_changes(found, wanted, Path(diff), console)
    if explain:
        return _explain(found, console)
    board, paths = write_board(found, wanted, args)
    if format != "terminal":
        print(_formatted(board, format), end="")
        return 0
    _print(board, paths, console, args)
    if sources is not None:
        show_published(board, sources, paths[0], console)
    return 0


def _check_board(path: Path) -> int:
    """Whether a written board is that of its rows: a line for each difference, and exit code 1."""
    from offbench.results.board.check import check

    lines = check(path)
    print("\n".join(lines) or f"{path}: every number is that of its rows")
    return 1 if lines else 0


def _show_changes(
    found: "Evidence | ValidationTable", plan: "Plan", old: Path, console: "Console"
) -> int:
    """What changed since an older board, and whether it is more than noise."""
    from offbench.results.board.changes import changes, read_scores, scores_of
    from offbench.results.board.evidence import Evidence

    if not isinstance(found, Evidence):
        raise UserError(f"{plan.name} has no board of scores that could be compared with {old}")
    if old.is_dir():
        from offbench.results.store import Store

        before = evidence_of(plan, Store(old))
        if not isinstance(before, Evidence):
            raise UserError(f"nothing recorded for {plan.name} with these settings in {old}")
        older = scores_of(before.board())
    else:
        older = read_scores(old)
    changes(older, scores_of(found.board())).to_terminal(console)
    return 0


def _explain(found: "Evidence | ValidationTable", console: "Console") -> int:
    from offbench.results.board import goals_text
    from offbench.results.board.evidence import Evidence
    from offbench.results.board.explain import explanation

    board, paragraphs = None, list[tuple[str, str]]()
    if isinstance(found, Evidence):
        board = found.board()
        paragraphs = list(explanation(board))
    else:
        paragraphs = _captions(found)
    width = min(COLUMNS, console.width) - 2
    for name, words in paragraphs:
        console.print(name, style="bold", markup=False)
        lines = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
        console.print("\n".join(f"  {line}" for line in lines), markup=False, soft_wrap=True)
    if board is not None and len(board.goals):
        console.print(goals_text.to_table(board))
        console.print(goals_text.CAPTION, soft_wrap=True)
    return 0


def _captions(found: "ValidationTable") -> list[tuple[str, str]]:
    from offbench.results.board.validation_table import CAPTION

    names = {CAPTION: "action error"}
    return [(names.get(words, "estimated value"), words) for words in found.captions]


def _formatted(board: "Board | ValidationTable", format: str) -> str:
    """The text of a board in one of the formats that are files."""
    from offbench.results.board import formats, validation_table

    if isinstance(board, validation_table.ValidationTable):
        return validation_table.formatted(board, format)
    return formats.FORMATS[format](board)


def evidence_of(plan: "Plan", store: "Store") -> "Evidence | ValidationTable | None":
    """What the leaderboard of a plan is computed from; None where nothing is recorded.

    Where nothing is played there is a table of estimates and validation metrics instead.
    """
    from offbench.results.board.evidence import Evidence
    from offbench.results.board.leaderboard import Asked
    from offbench.results.board.validation_table import validation_table
    from offbench.results.consistency import read_pairs

    found = recorded_runs(plan, store)
    if found.runs.empty:
        return None
    seeds = {cell.task.id: cell.seeds for cell in plan.cells}
    title = f"{plan.name} v{plan.suite['version']}"
    if not plan.cells[0].protocol["episodes"]:
        curves = store.curves(run_id=found.ids)
        return validation_table(found.runs, curves, seeds=seeds, title=title)
    notes: tuple[str, ...] = ()
    if plan.settings.bench.until == "decided":
        notes = notes_of(progress_of(plan, store))
    if found.left_out:
        text = f"{found.left_out} recorded runs of these tasks are left out: their environment, or its rules, or how"
        notes = (*notes, f"{text} a return is scored was another")
    return Evidence(
        episodes=found.episodes,
        runs=found.runs,
        tasks=tuple(plan.tasks),
        asked=Asked(
            only=plan.suite.get("only") or {},
            seeds=seeds,
            unscaled=plan.unscaled,
        ),
        title=title,
        notes=notes,
        pairs=read_pairs(store.root, plan.name, found.runs),
    )


def print_board(
    found: "Evidence | ValidationTable",
    plan: "Plan",
    console: "Console",
    args: Sequence[str],
    *,
    name: str | None = None,
) -> "Board | ValidationTable":
    """Prints the board of what `evidence_of` found and writes it, with its rows, below the results.

    `name`: of its files; None: that of the plan.
    """
    board, paths = write_board(found, plan, args, name=name)
    _print(board, paths, console, args)
    return board


def write_board(
    found: "Evidence | ValidationTable",
    plan: "Plan",
    args: Sequence[str],
    *,
    name: str | None = None,
) -> "tuple[Board | ValidationTable, Sequence[Path]]":
    """Writes the board of what `evidence_of` found in every format, and its rows; returns the paths, too."""
    from offbench.results.board import formats, validation_table
    from offbench.results.board.evidence import Evidence, write_evidence

    folder, name = board_folder(plan), name or board_name(plan, args)
    if not isinstance(found, Evidence):
        return found, validation_table.write(found, folder, name)
    board = found.board()
    return board, (*formats.write(board, folder, name), *write_evidence(found, folder, name))


def _print(
    board: "Board | ValidationTable",
    paths: Sequence[Path],
    console: "Console",
    args: Sequence[str],
) -> None:
    from offbench.results.board import render, validation_table

    scored = not isinstance(board, validation_table.ValidationTable)
    (render if scored else validation_table).to_terminal(board, console)
    endings = ", ".join(path.name.removeprefix(paths[0].stem) for path in paths)
    console.print(f"written: {paths[0].with_suffix('')} ({endings})", markup=False, soft_wrap=True)
    if not isinstance(board, validation_table.ValidationTable):
        more = f"chunk lengths, values against returns: offbench diagnose {shlex.join(args)}"
        if len(board.goals):
            more = f"values and success by distance to the goal: offbench diagnose --play 20 {shlex.join(args)}"
        console.print(more.strip(), markup=False, soft_wrap=True)
