"""`offbench reproduce TABLE`: a published table's runs planned, run, and compared with what is published; or a
study of this project (`offbench.cli.study`)."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console, print_list
from offbench.errors import UserError, writing
from offbench.io import atomic_write, slug
from offbench.results.words import bounds, plural

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.reproduce import Reproduction
    from offbench.cli.parts import Part
    from offbench.results.board.leaderboard import Board
    from offbench.results.store import Store


def reproduce(args: Sequence[str], *, run: bool = False, **options: Any) -> int:
    """Prints the plan of a published table or a study, with `run` runs what is missing, and compares what is recorded.

    Without a name, lists those there are.
    """
    from offbench.bench.reproduce import reproduction
    from offbench.bench.studies import studies
    from offbench.cli.parts import FAILED, MORE_TO_DO, read_part
    from offbench.results.store import Store

    part = read_part(**options)
    names = [arg for arg in args if "=" not in arg]
    if len(names) > 1:
        raise UserError(f"one table at a time: {', '.join(names)}")
    if not names:
        if args:
            raise UserError(f"{args[0]}: name a table first; `offbench reproduce` lists them")
        print_list(_tables())
        return 0
    if (study := studies().get(names[0])) is not None:
        from offbench.cli.study import reproduce_study

        return reproduce_study(study, [arg for arg in args if "=" in arg], part, run=run)
    console = make_console()
    wanted = reproduction(names[0], [arg for arg in args if "=" in arg])
    _say(wanted, console)
    store, left, failed = Store(Path(wanted.plans[0].settings.results)), False, False
    if run:
        left, failed = _run(wanted, store, console, part)
    else:
        _print_plan(wanted, store, args, console)
    if (board := _our_board(wanted, store)) is not None:
        _compare(wanted, board, store, console)
    return MORE_TO_DO if left else FAILED if failed else 0


def _tables() -> list[tuple[str, str]]:
    from offbench.bench.reproduce import table_names
    from offbench.bench.studies import studies
    from offbench.results.published.scores import published_sources

    sources = published_sources()
    ours = [(study.name, study.summary) for study in studies().values()]
    tables = [
        (
            name,
            f"{plural(len(rows), 'cell')}, {plural(rows['task'].nunique(), 'task')}:"
            f" {sources[rows['source'].iloc[0]].citation}",
        )
        for name, rows in table_names()
    ]
    return tables + ours


def _say(wanted: "Reproduction", console: "Console") -> None:
    """The source, what is planned of it, what cannot be, and whatever is not its protocol."""
    from offbench.bench.reproduce import reasons

    say = lambda text: console.print(text, soft_wrap=True, markup=False)
    about = [wanted.name, wanted.source.citation, wanted.source.words]
    say(": ".join(dict.fromkeys(about)))
    cells, scores = len(wanted.cells), len(wanted.table)
    say(
        f"{plural(scores, 'published score')}, {len(wanted.rows)} of them of {plural(cells, 'cell')} that can be run here"
    )
    for line in reasons(wanted):
        say(f"  cannot be run: {line}")
    for line in wanted.assumed:
        say(f"  assumed: {line}")
    if wanted.changed:
        say(f"  changed by you, so not the published settings: {' '.join(wanted.changed)}")


def _print_plan(
    wanted: "Reproduction", store: "Store", args: Sequence[str], console: "Console"
) -> None:
    """The plan of each suite that has runs to do, as `offbench plan` prints it, and how to run them."""
    from offbench.cli.describe import say_protocol
    from offbench.cli.plan import print_runs

    recorded = set(_recorded(wanted, store)["run_id"])
    todo = False
    for part in wanted.plans:
        ours = {run.run_id for cell in _on_recorded_data(part.cells, store) for run in cell.runs()}
        if ours <= recorded:
            console.print(f"{part.name}: {plural(len(ours), 'run')}, all recorded", markup=False)
            continue
        todo = True
        say_protocol(replace(part, named=True), console)
        print_runs(part, console)
    if todo:
        again = shlex.join(["offbench", "reproduce", *args, "--run"])
        console.print(f"run it: {again}", soft_wrap=True, markup=False)


def _run(
    wanted: "Reproduction", store: "Store", console: "Console", part: "Part"
) -> tuple[bool, bool]:
    """Runs what is missing, suite by suite; returns (whether runs are left to do, whether some failed)."""
    from offbench.cli.bench import run_missing

    ran = [run_missing(plan, store, console, part) for plan in wanted.plans]
    wanted.plans[:] = [r.plan for r in ran]
    # on the data that were fetched
    fetched = {(c.entry, c.task.id): c for part in wanted.plans for c in part.cells}
    wanted.cells = {k: fetched[c.entry, c.task.id] for k, c in wanted.cells.items()}
    return any(r.left for r in ran), any(r.failures for r in ran)


def _on_recorded_data(cells: "Iterable[Cell]", store: "Store") -> "list[Cell]":
    """The cells; those whose data are not here have the checksum of the data in their records."""
    from offbench.cli.recorded import on_recorded_data

    recorded = store.runs()
    return [on_recorded_data(cell, recorded) for cell in cells]


def _recorded(wanted: "Reproduction", store: "Store") -> "pd.DataFrame":
    """The records of the planned runs, under the label that they have in this plan."""
    cells = _on_recorded_data(wanted.cells.values(), store)
    labels = {run.run_id: cell.entry for cell in cells for run in cell.runs()}
    runs = store.runs()
    runs = runs[runs["run_id"].isin(list(labels))]
    return runs.assign(entry=runs["run_id"].map(labels))


def _our_board(wanted: "Reproduction", store: "Store") -> "Board | None":
    """A board of the planned runs alone; None where none is recorded."""
    from offbench.results.board.leaderboard import Asked, leaderboard
    from offbench.results.selection import readable

    runs = _recorded(wanted, store)
    if runs.empty:
        return None
    episodes = store.episodes(run_id=list(runs["run_id"]))
    runs = readable(runs, episodes)
    labels = dict(zip(runs["run_id"], runs["entry"]))
    tasks = [task for task in dict.fromkeys(wanted.rows["task"]) if task in set(runs["task"])]
    unscaled = {c.task.id for c in wanted.cells.values() if not c.task.scaled}
    return leaderboard(
        episodes.assign(entry=episodes["run_id"].map(labels)),
        runs,
        tasks,
        asked=Asked(unscaled=unscaled & set(tasks)),
    )


def _compare(wanted: "Reproduction", board: "Board", store: "Store", console: "Console") -> None:
    """Prints and writes ours next to the published scores, with a verdict per cell and one over all."""
    from offbench.results.published.reproduction import conclusion, verdicts
    from offbench.results.published.table import compared, known_reasons

    labels = {key: cell.entry for key, cell in wanted.cells.items()}
    planned = {key: len(cell.seeds) for key, cell in wanted.cells.items()}
    table = compared(board, wanted.rows, labels)
    found = verdicts(table, planned)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)
    for line in cell_lines(table, found):
        say(line)
    labelled = [labels[key] for key in zip(table["entry"], table["task"])]
    if reasons := known_reasons(table.assign(entry=labelled), board):
        say(reasons)
    say(conclusion(table, found))
    if wanted.changed:
        say(f"No test of what is published: {' '.join(wanted.changed)} changed by you.")
    path = Path(store.root) / "reproduce" / f"{slug(Path(wanted.name).stem)}.csv"
    _write(path, table.assign(verdict=found))
    say(f"written: {path}")


def cell_lines(table: "pd.DataFrame", found: "pd.Series") -> list[str]:
    """A line per published cell under its task: published, ours, the difference; at most 80 columns for names of 12.

    Args:
        table: of `published_table.compared`.
        found: of `offbench.results.reproduction.verdicts`.
    """
    rows = [("method", "published", "ours", "ours - published")]
    for row, said in zip(table.itertuples(), found):
        half = "" if row.low != row.low else f"±{(row.high - row.low) / 2:.1f}"
        if (word := said.partition(":")[0]) in ("agrees", "differs"):
            gap = (row.difference, row.difference_low, row.difference_high)
            said = f"{word} {_spelt(*gap, sign='+')}"
        ours = _spelt(row.ours, row.ours_low, row.ours_high)
        rows.append((row.method, f"{row.score:.1f}{half}", ours, said))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{x:{n}}" for x, n in zip(row, widths)).rstrip() for row in rows]
    shown, task = lines[:1], None
    for line, name in zip(lines[1:], table["task"]):
        shown += [name] if name != task else []
        shown.append(line)
        task = name
    return shown


def _write(path: Path, table: "pd.DataFrame") -> None:
    with writing(path):
        atomic_write(
            path, table.drop(columns=["misses"]).to_csv(index=False, float_format="%.6g").encode()
        )


def _spelt(point: float, low: float, high: float, *, sign: str = "") -> str:
    """`67.5 [60.6, 74.5]`, `--` for nan."""
    return "--" if point != point else f"{point:{sign}.1f}{bounds(low, high, sign=sign)}"
