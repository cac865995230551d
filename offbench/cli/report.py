"""`offbench report`: the leaderboard with all that is recorded behind it, as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.board import board_folder, board_name, board_of, nothing_recorded, wanted_of
from offbench.errors import UserError
from offbench.io import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.plan import Plan
    from offbench.results.board.leaderboard import Board
    from offbench.results.board.validation_table import ValidationTable
    from offbench.results.store import Store


def show_report(args: Sequence[str], *, figures: bool = False) -> int:
    """Writes the report of what is recorded and prints its path; with `figures`, pictures for papers too."""
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    board = board_of(wanted, store)
    if board is None:
        raise nothing_recorded(wanted)
    print(f"written: {_write(_scored(board), wanted, store, args)}")
    if figures:
        from offbench.results.report.figures import write_figures

        runs = _runs_of(wanted, store)
        episodes = store.episodes(run_id=list(runs["run_id"]))
        folder = board_folder(wanted) / f"{board_name(wanted, args)}-figures"
        for path in write_figures(_scored(board), episodes, runs, folder, _unscaled(wanted)):
            print(f"written: {path}")
    return 0


def refresh_report(
    board: "Board | ValidationTable",
    plan: "Plan",
    store: "Store",
    console: "Console",
    args: Sequence[str],
) -> None:
    """Writes the report after a bench where its runs or its page changed; says in a line if it cannot."""
    from offbench.results.board.leaderboard import Board

    if not isinstance(board, Board):
        return
    try:
        words = f"report: {_write(board, plan, store, args, unless_same=True)}"
    except UserError as error:
        words = f"report: not written, {error}"
    console.print(words, markup=False, soft_wrap=True)


def _scored(board: "Board | ValidationTable") -> "Board":
    from offbench.results.board.leaderboard import Board

    if isinstance(board, Board):
        return board
    raise UserError(
        "these data have no environment and so no scores: a report is of scores, the table of validation"
        " metrics is printed by: offbench board"
    )


def _write(
    board: "Board", plan: "Plan", store: "Store", args: Sequence[str], *, unless_same: bool = False
) -> Path:
    """The path of the report, written, or found as it would be written."""
    from offbench.results.report import page, payload

    runs, unscaled = _runs_of(plan, store), _unscaled(plan)
    path = board_folder(plan) / f"{board_name(plan, args)}.html"
    shown = payload.board_payload(board, runs, unscaled)
    fingerprint = page.fingerprint_of(shown, list(runs["run_id"]))
    if unless_same and _fingerprint_in(path) == fingerprint:
        return path
    from offbench.results.report.evidence import evidence_payload

    ids = list(runs["run_id"])
    episodes, records = store.episodes(run_id=ids), store.read_all(run_id=ids)
    parts = {
        "evidence": evidence_payload(board, episodes, runs, records, unscaled),
        "runs": payload.runs_payload(board, episodes, records),
    }
    text = page.page(shown, parts, fingerprint)
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot write the report to {path}: {error.strerror}") from None
    return path


def _runs_of(plan: "Plan", store: "Store") -> "pd.DataFrame":
    from offbench.results.selection import select

    recorded = store.runs(suite=plan.name)
    return select(recorded, wanted_of(plan, recorded)).runs


def _unscaled(plan: "Plan") -> set[str]:
    return {cell.task.id for cell in plan.cells if not cell.task.scaled}


def _fingerprint_in(path: Path) -> str | None:
    from offbench.results.report.page import recorded_fingerprint

    try:
        with path.open(encoding="utf-8") as file:
            return recorded_fingerprint(file.read(2000))
    except (OSError, UnicodeDecodeError):
        return None
