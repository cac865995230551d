"""`offbench board` and `offbench diagnose`: the leaderboard and the diagnostics of recorded runs."""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import make_console
from offbench.cli.parser import COLUMNS
from offbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.results.evidence import Evidence
    from offbench.results.leaderboard import Board
    from offbench.results.selection import Wanted
    from offbench.results.spec import RunSpec
    from offbench.results.store import Store
    from offbench.results.validation_table import ValidationTable


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
    from offbench.results.check import check

    lines = check(path)
    print("\n".join(lines) or f"{path}: every number is that of its rows")
    return 1 if lines else 0


def _show_changes(
    found: "Evidence | ValidationTable", plan: "Plan", old: Path, console: "Console"
) -> int:
    """What changed since an older board, and whether it is more than noise."""
    from offbench.results.changes import changes, read_scores, scores_of
    from offbench.results.evidence import Evidence

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
    from offbench.results.evidence import Evidence
    from offbench.results.explain import explanation
    from offbench.results.validation_table import CAPTION

    paragraphs = (
        explanation(found.board()) if isinstance(found, Evidence) else [("action error", CAPTION)]
    )
    width = min(COLUMNS, console.width) - 2
    for name, words in paragraphs:
        console.print(name, style="bold", markup=False)
        lines = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
        console.print("\n".join(f"  {line}" for line in lines), markup=False, soft_wrap=True)
    return 0


def _formatted(board: "Board | ValidationTable", format: str) -> str:
    """The text of a board in one of the formats that are files."""
    from offbench.results import formats, validation_table

    if isinstance(board, validation_table.ValidationTable):
        return validation_table.formatted(board, format)
    return formats.FORMATS[format](board)


def nothing_recorded(plan: "Plan") -> UserError:
    """What to say where no record is that of a plan: how many there are of other settings or versions."""
    from offbench.results.store import Store

    recorded, others = Store(Path(plan.settings.results)).runs(suite=plan.name), ""
    if len(recorded):
        versions = ", ".join(f"v{n}" for n in sorted(set(recorded["suite_version"])))
        others = (
            f" ({len(recorded)} runs of {plan.name} {versions} are there, with other settings or seeds"
            f" than v{plan.suite['version']} has)"
        )
    return UserError(
        f"nothing recorded for {plan.name} with these settings in {plan.settings.results}{others};"
        " run: offbench bench"
    )


def board_of(plan: "Plan", store: "Store") -> "Board | ValidationTable | None":
    """The leaderboard of a plan's runs and those comparable with them; None where nothing is recorded.

    Of data without an environment it is a table of validation metrics.
    """
    from offbench.results.evidence import Evidence

    found = evidence_of(plan, store)
    return found.board() if isinstance(found, Evidence) else found


def evidence_of(plan: "Plan", store: "Store") -> "Evidence | ValidationTable | None":
    """What the leaderboard of a plan is computed from; None where nothing is recorded.

    Data without an environment have a table of validation metrics instead.
    """
    from offbench.results.evidence import Evidence
    from offbench.results.leaderboard import Asked
    from offbench.results.selection import select
    from offbench.results.validation_table import validation_table

    recorded = store.runs(suite=plan.name)
    runs, left_out = select(recorded, wanted_of(plan, recorded))
    if runs.empty:
        return None
    seeds = {cell.task.id: cell.seeds for cell in plan.cells}
    title = f"{plan.name} v{plan.suite['version']}"
    if not plan.cells[0].task.env:
        curves = store.curves(run_id=list(runs["run_id"]))
        return validation_table(runs, curves, seeds=seeds, title=title)
    notes = (
        f"{left_out} recorded runs of these tasks are left out: their environment, or its rules, or how"
        " a return is scored was another",
    )
    return Evidence(
        episodes=store.episodes(run_id=list(runs["run_id"])),
        runs=runs,
        tasks=tuple(plan.tasks),
        asked=Asked(
            only=plan.suite.get("only") or {},
            seeds=seeds,
            unscaled={cell.task.id for cell in plan.cells if not cell.task.scaled},
        ),
        title=title,
        notes=notes if left_out else (),
    )


def wanted_of(plan: "Plan", recorded: "pd.DataFrame") -> "Wanted":
    """What the board of a plan asks for; of a task with several cells, by the protocol of the last.

    Args:
        recorded: lines of `Store.runs()`. Where the data of a task are not here, they say which data its
            runs were trained on, if all say the same.
    """
    from offbench.results.record import columns
    from offbench.results.selection import Budget, Protocol, Wanted

    def protocol(cell: "Cell") -> Protocol:
        published = cell.tuning.get
        return Protocol(
            dataset_sha256=cell.task.sha256,
            environment=columns(cell.environment, "env."),
            updates=Budget(cell.n_updates, published("published_updates")),
            episodes=Budget(cell.protocol["episodes"], published("published_episodes")),
            seeds=cell.seeds,
            validation=cell.protocol.get("validation"),
        )

    cells = [on_recorded_data(cell, recorded) for cell in plan.cells]
    names = set(recorded["run_id"])
    return Wanted(
        tasks={cell.task.id: protocol(cell) for cell in cells},
        run_ids={_recorded_id(run, names) for cell in cells for run in cell.runs()},
        entries={cell.entry for cell in cells},
    )


def _recorded_id(run: "RunSpec", names: set[str]) -> str:
    """The name that a run is recorded under, or would be."""
    return next((name for name in run.recorded_ids if name in names), run.run_id)


def on_recorded_data(cell: "Cell", recorded: "pd.DataFrame") -> "Cell":
    """A cell whose data are not here, on those that all its records name; unchanged where there are others."""
    if cell.task.sha256 is not None or recorded.empty:
        return cell
    found = recorded.loc[recorded["task"] == cell.task.id, "dataset_sha256"].unique()
    if len(found) != 1:
        return cell
    return replace(cell, task=replace(cell.task, sha256=str(found[0])))


def draw_diagnostics(args: Sequence[str]) -> int:
    """`offbench diagnose`: writes chunk lengths and values against returns as numbers and pictures."""
    from offbench.bench.plan import plan
    from offbench.results.diagnostics import write
    from offbench.results.selection import select
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    recorded = store.runs(suite=wanted.name)
    runs, _ = select(recorded, wanted_of(wanted, recorded))
    if runs.empty:
        raise nothing_recorded(wanted)
    ids = list(runs["run_id"])
    folder = board_folder(wanted) / f"{board_name(wanted, args)}-diagnostics"
    for path in write(store.episodes(run_id=ids), runs, store.curves(run_id=ids), folder):
        print(f"written: {path}")
    return 0


def print_board(
    found: "Evidence | ValidationTable", plan: "Plan", console: "Console", args: Sequence[str]
) -> "Board | ValidationTable":
    """Prints the board of what `evidence_of` found and writes it, with its rows, below the results."""
    board, paths = write_board(found, plan, args)
    _print(board, paths, console, args)
    return board


def write_board(
    found: "Evidence | ValidationTable", plan: "Plan", args: Sequence[str]
) -> "tuple[Board | ValidationTable, Sequence[Path]]":
    """Writes the board of what `evidence_of` found in every format, and its rows; returns the paths, too."""
    from offbench.results import formats, validation_table
    from offbench.results.evidence import Evidence, write_evidence

    folder, name = board_folder(plan), board_name(plan, args)
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
    from offbench.results import render, validation_table

    scored = not isinstance(board, validation_table.ValidationTable)
    (render if scored else validation_table).to_terminal(board, console)
    endings = ", ".join(path.name.removeprefix(paths[0].stem) for path in paths)
    console.print(f"written: {paths[0].with_suffix('')} ({endings})", markup=False, soft_wrap=True)
    if scored:
        more = f"chunk lengths, values against returns: offbench diagnose {shlex.join(args)}"
        console.print(more.strip(), markup=False, soft_wrap=True)


def board_folder(plan: "Plan") -> Path:
    return Path(plan.settings.results) / "board"


def board_name(plan: "Plan", args: Sequence[str] | None = None) -> str:
    """The suite's name for the suite as it is: other methods, seeds or settings do not replace its board."""
    if args is not None and {arg.partition("=")[0] for arg in args} <= {"suite", "results"}:
        # what the suite plans, without planning it once more
        return plan.name
    from offbench.bench.plan import plan as read
    from offbench.results.spec import unmonitored

    what = lambda c: (
        c.entry,
        c.task.id,
        c.target,
        c.hparams,
        c.pipeline,
        c.n_updates,
        c.seeds,
        unmonitored(c.protocol),
    )
    whole = plan.tasks == plan.suite["tasks"] and plan.settings.loader == "offbench"
    if whole and list(map(what, plan.cells)) == [
        what(c) for c in read([f"suite={plan.name}"], bench=True).cells
    ]:
        return plan.name
    return f"{plan.name}-part"
