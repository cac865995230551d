"""`offbench reproduce STUDY`: the benches of one of this project's studies planned, run, and their boards."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.board import evidence_of, print_board
from offbench.cli.console import make_console
from offbench.cli.parts import FAILED, MORE_TO_DO

if TYPE_CHECKING:
    from offbench.bench.plan import Plan
    from offbench.bench.studies import Study
    from offbench.cli.parts import Part
    from offbench.results.board.evidence import Evidence
    from offbench.results.store import Store


def reproduce_study(study: "Study", given: Sequence[str], part: "Part", *, run: bool) -> int:
    """Prints the plan of each part, with `run` runs what is missing, and prints the boards of what is recorded.

    `given`: settings for every part, which win over its own.
    """
    from offbench.bench.plan import plan
    from offbench.cli.bench import run_missing
    from offbench.cli.describe import say_protocol
    from offbench.cli.plan import print_runs
    from offbench.results.store import Store

    console = make_console()
    console.print(f"{study.name}: {study.summary}", soft_wrap=True, markup=False)
    # a mistake in what is given is found before anything is run
    plans = {name: plan([*own, *given], bench=True) for name, own in study.parts.items()}
    left = failed = False
    for name, own in study.parts.items():
        wanted = plans[name]
        bench = shlex.join(["offbench", "bench", *own, *given])
        console.print(f"\n{name}: {bench}", soft_wrap=True, markup=False)
        store = Store(Path(wanted.settings.results))
        if run:
            ran = run_missing(wanted, store, console, part)
            wanted, left, failed = ran.plan, left or bool(ran.left), failed or bool(ran.failures)
        else:
            say_protocol(wanted, console)
            print_runs(wanted, console)
        if (found := of_part(wanted, store)) is not None:
            print_board(found, wanted, console, [*own, *given], name=f"{study.name}-{name}")
    if not run:
        again = shlex.join(["offbench", "reproduce", study.name, *given, "--run"])
        console.print(f"run it: {again}", soft_wrap=True, markup=False)
    return MORE_TO_DO if left else FAILED if failed else 0


def of_part(plan: "Plan", store: "Store") -> "Evidence | None":
    """What the board of a part is computed from, its own runs alone; None where none is recorded."""
    from offbench.results.board.evidence import Evidence

    found = evidence_of(plan, store)
    ids = {run.run_id for cell in plan.cells for run in cell.runs()}
    if not isinstance(found, Evidence) or not ids & set(found.runs["run_id"]):
        return None
    of_these = lambda rows: rows[rows["run_id"].isin(ids)]
    return replace(found, runs=of_these(found.runs), episodes=of_these(found.episodes))
