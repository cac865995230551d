"""`offbench board` and `offbench diagnose`: which recorded runs count, and their leaderboard."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console
from offbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.results.leaderboard import Board
    from offbench.results.store import Store
    from offbench.results.validation_table import ValidationTable


def show_board(args: Sequence[str]) -> int:
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
    from offbench.results.leaderboard import leaderboard
    from offbench.results.validation_table import validation_table

    runs, other = _runs_of(plan, store)
    if runs.empty:
        return None
    if not plan.cells[0].task.env:
        return validation_table(
            runs,
            store.curves(run_id=list(runs["run_id"])),
            seeds={cell.task.id: cell.seeds for cell in plan.cells},
            title=f"{plan.name} v{plan.suite['version']}",
        )
    board = leaderboard(
        store.episodes(run_id=list(runs["run_id"])),
        runs,
        plan.tasks,
        only=plan.suite.get("only"),
        seeds={cell.task.id: cell.seeds for cell in plan.cells},
        unscaled={cell.task.id for cell in plan.cells if not cell.task.scaled},
        title=f"{plan.name} v{plan.suite['version']}",
    )
    if other:
        words = (
            f"{other} recorded runs of these tasks are left out: their environment, or its rules, or how"
            " a return is scored was another"
        )
        board = replace(board, notes=(*board.notes, words))
    return board


def _runs_of(plan: "Plan", store: "Store") -> "tuple[pd.DataFrame, int]":
    """The planned runs, and every other entry of the suite run with the same protocol and its budget; and
    the number of runs of these tasks that were recorded in another environment or under other rules.

    The budget is the planned number of updates; where the planned runs have the published one, an
    entry whose method is published with another has its own. A policy that was trained outside has none.
    """
    from offbench.results.spec import OUTSIDE
    from offbench.results.store import columns

    runs = store.runs(suite=plan.name)
    planned = {r.run_id for cell in plan.cells for r in cell.runs()}
    example = {cell.task.id: cell for cell in plan.cells}
    environment = {task: columns(cell.environment, "env.") for task, cell in example.items()}
    entries = {cell.entry for cell in plan.cells}

    def comparable(row: Any) -> bool:
        cell = example[row["task"]]
        # it has no budget and no data that are known
        if row["method"] == OUTSIDE:
            episodes = row["protocol.episodes"] == cell.protocol["episodes"]
            return row["entry"] not in entries and episodes and row["seed"] in cell.seeds
        return (
            row["entry"] not in entries
            and cell.task.sha256 in (None, row["dataset_sha256"])
            and _alike(row["n_updates"], cell.n_updates, "published_updates", row, cell)
            and _alike(
                row["protocol.episodes"], cell.protocol["episodes"], "published_episodes", row, cell
            )
            and row["seed"] in cell.seeds
            and _same(row.get("protocol.validation"), cell.protocol.get("validation"))
        )

    chosen, left_out = [], 0
    for _, row in runs.iterrows():
        elsewhere = row["task"] in example and _recorded(row, "env.") != environment[row["task"]]
        left_out += elsewhere
        known = row["task"] in example and not elsewhere
        chosen.append(row["run_id"] in planned or (known and comparable(row)))
    return runs[chosen], left_out


def _recorded(row: Any, prefix: str) -> dict[str, Any]:
    """The columns of a record below one key, without those that other records alone have."""
    return {k: v for k, v in row.items() if k.startswith(prefix) and not _absent(v)}


def _same(recorded: Any, planned: Any) -> bool:
    return recorded == planned or (_absent(recorded) and planned is None)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _alike(recorded: int, planned: int, name: str, row: Any, cell: "Cell") -> bool:
    """Whether two budgets are the same, or each the published one of its method."""
    theirs, ours = row.get(f"tuning.{name}"), cell.tuning.get(name)
    return recorded == planned or (recorded == theirs and planned == ours)


def draw_diagnostics(args: Sequence[str]) -> int:
    from offbench.bench.plan import plan
    from offbench.results.diagnostics import write
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    runs, _ = _runs_of(wanted, store)
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

    what = lambda c: (
        c.entry,
        c.task.id,
        c.target,
        c.hparams,
        c.pipeline,
        c.n_updates,
        c.seeds,
        c.protocol,
    )
    whole = plan.tasks == plan.suite["tasks"] and plan.settings.loader == "offbench"
    if whole and list(map(what, plan.cells)) == [
        what(c) for c in read([f"suite={plan.name}"], bench=True).cells
    ]:
        return plan.name
    return f"{plan.name}-part"
