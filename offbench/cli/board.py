"""`offbench board` and `offbench diagnose`: the leaderboard and the diagnostics of recorded runs."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import make_console
from offbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.results.leaderboard import Board
    from offbench.results.selection import Wanted
    from offbench.results.spec import RunSpec
    from offbench.results.store import Store
    from offbench.results.validation_table import ValidationTable


def show_board(args: Sequence[str]) -> int:
    """`offbench board`: prints and writes the leaderboard of what is recorded."""
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    board = board_of(wanted, Store(Path(wanted.settings.results)))
    if board is None:
        raise _nothing_recorded(wanted)
    print_board(board, wanted, make_console(), args)
    return 0


def _nothing_recorded(plan: "Plan") -> UserError:
    return UserError(
        f"nothing recorded for {plan.name} with these settings in {plan.settings.results}; run: offbench bench"
    )


def board_of(plan: "Plan", store: "Store") -> "Board | ValidationTable | None":
    """The leaderboard of a plan's runs and those comparable with them; None where nothing is recorded.

    Of data without an environment it is a table of validation metrics.
    """
    from offbench.results.leaderboard import Asked, leaderboard
    from offbench.results.selection import select
    from offbench.results.validation_table import validation_table

    recorded = store.runs(suite=plan.name)
    runs, left_out = select(recorded, wanted_of(plan, recorded))
    if runs.empty:
        return None
    seeds = {cell.task.id: cell.seeds for cell in plan.cells}
    if not plan.cells[0].task.env:
        return validation_table(
            runs,
            store.curves(run_id=list(runs["run_id"])),
            seeds=seeds,
            title=f"{plan.name} v{plan.suite['version']}",
        )
    board = leaderboard(
        store.episodes(run_id=list(runs["run_id"])),
        runs,
        plan.tasks,
        asked=Asked(
            only=plan.suite.get("only") or {},
            seeds=seeds,
            unscaled={cell.task.id for cell in plan.cells if not cell.task.scaled},
        ),
        title=f"{plan.name} v{plan.suite['version']}",
    )
    if left_out:
        words = (
            f"{left_out} recorded runs of these tasks are left out: their environment, or its rules, or how"
            " a return is scored was another"
        )
        board = replace(board, notes=(*board.notes, words))
    return board


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

    cells = [_on_recorded_data(cell, recorded) for cell in plan.cells]
    names = set(recorded["run_id"])
    return Wanted(
        tasks={cell.task.id: protocol(cell) for cell in cells},
        run_ids={_recorded_id(run, names) for cell in cells for run in cell.runs()},
        entries={cell.entry for cell in cells},
    )


def _recorded_id(run: "RunSpec", names: set[str]) -> str:
    """The name that a run is recorded under, or would be."""
    return next((name for name in run.recorded_ids if name in names), run.run_id)


def _on_recorded_data(cell: "Cell", recorded: "pd.DataFrame") -> "Cell":
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
        raise _nothing_recorded(wanted)
    ids = list(runs["run_id"])
    folder = _board_folder(wanted) / f"{_board_name(wanted)}-diagnostics"
    for path in write(store.episodes(run_id=ids), runs, store.curves(run_id=ids), folder):
        print(f"written: {path}")
    return 0


def print_board(
    board: "Board | ValidationTable", plan: "Plan", console: "Console", args: Sequence[str]
) -> None:
    """Prints a board and writes it as Markdown and csv below the results."""
    from offbench.results import render, validation_table

    scored = not isinstance(board, validation_table.ValidationTable)
    module = render if scored else validation_table
    module.to_terminal(board, console)
    paths = module.write(board, _board_folder(plan), _board_name(plan))
    console.print(f"written: {', '.join(map(str, paths))}")
    if not scored:
        return
    more = f"chunk lengths, values against returns: offbench diagnose {shlex.join(args)}".strip()
    console.print(more, markup=False, soft_wrap=True)


def _board_folder(plan: "Plan") -> Path:
    return Path(plan.settings.results) / "board"


def _board_name(plan: "Plan") -> str:
    """The suite's name for the suite as it is: other methods, seeds or settings do not replace its board."""
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
