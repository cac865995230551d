"""`offbench report`: the leaderboard with all that is recorded behind it, as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.board import evidence_of
from offbench.cli.recorded import board_folder, board_name, nothing_recorded
from offbench.errors import UserError, writing
from offbench.io import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.plan import Plan
    from offbench.results.board.evidence import Evidence
    from offbench.results.board.leaderboard import Board
    from offbench.results.board.validation_table import ValidationTable
    from offbench.results.store import Store


def show_report(args: Sequence[str], *, figures: bool = False) -> int:
    """Writes the report of what is recorded and prints its path; with `figures`, pictures for papers too."""
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    found = _scored(evidence_of(wanted, store), wanted)
    board = found.board()
    print(f"written: {_write(found, board, wanted, store, args)}")
    if figures:
        from offbench.results.report.figures import write_figures

        folder = board_folder(wanted) / f"{board_name(wanted, args)}-figures"
        for path in write_figures(board, found.episodes, found.runs, folder, found.asked.unscaled):
            print(f"written: {path}")
    return 0


def refresh_report(
    found: "Evidence | ValidationTable",
    board: "Board | ValidationTable",
    plan: "Plan",
    store: "Store",
    console: "Console",
    args: Sequence[str],
) -> None:
    """Writes the report after a bench where its runs or its page changed; says in a line if it cannot.

    Args:
        found: what `evidence_of` found; `board` is its board.
    """
    from offbench.results.board.evidence import Evidence
    from offbench.results.board.leaderboard import Board

    if not (isinstance(found, Evidence) and isinstance(board, Board)):
        return
    try:
        words = f"report: {_write(found, board, plan, store, args, unless_same=True)}"
    except UserError as error:
        words = f"report: not written, {error}"
    console.print(words, markup=False, soft_wrap=True)


def _scored(found: "Evidence | ValidationTable | None", plan: "Plan") -> "Evidence":
    from offbench.results.board.evidence import Evidence

    if found is None:
        raise nothing_recorded(plan)
    if isinstance(found, Evidence):
        return found
    raise UserError(
        "nothing was played and so there are no scores: a report is of scores, the table of estimates and"
        " validation metrics is printed by: offbench board"
    )


def _write(
    found: "Evidence",
    board: "Board",
    plan: "Plan",
    store: "Store",
    args: Sequence[str],
    *,
    unless_same: bool = False,
) -> Path:
    """The path of the report, written, or found as it would be written."""
    from offbench.results.report import page, payload
    from offbench.results.report.beside import measured_words

    runs, unscaled, ids = found.runs, found.asked.unscaled, list(found.runs["run_id"])
    path = board_folder(plan) / f"{board_name(plan, args)}.html"
    shown = payload.board_payload(board, runs, unscaled, measured_words(store.root, set(ids)))
    fingerprint = page.fingerprint_of(shown, ids)
    if unless_same and _fingerprint_in(path) == fingerprint:
        return path
    from offbench.results.report.charts import charts_payload

    records = store.read_all(run_id=ids)
    parts = {
        "evidence": charts_payload(board, found.episodes, runs, records, unscaled),
        "runs": payload.runs_payload(board, found.episodes, records),
    }
    text = page.page(shown, parts, fingerprint)
    with writing(f"the report to {path}"):
        atomic_write(path, text.encode())
    return path


def _fingerprint_in(path: Path) -> str | None:
    from offbench.results.report.page import recorded_fingerprint

    try:
        with path.open(encoding="utf-8") as file:
            return recorded_fingerprint(file.read(2000))
    except (OSError, UnicodeDecodeError):
        return None
