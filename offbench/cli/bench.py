"""`offbench run` and `offbench bench`: train and evaluate the missing runs, print the board."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.board import evidence_of, print_board
from offbench.cli.console import make_console, spelt_seeds
from offbench.cli.describe import say_differences, say_protocol, say_settings, say_which
from offbench.cli.parts import Part, Ran, chosen, read_part
from offbench.cli.report import refresh_report
from offbench.cli.until import run_until_decided
from offbench.errors import Interrupted
from offbench.results.words import plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from offbench.bench.cells import Cell
    from offbench.bench.job import Event
    from offbench.bench.plan import Plan
    from offbench.bench.schedule import Effort
    from offbench.bench.stacks import Pack
    from offbench.results.store import Store


def run_bench(args: Sequence[str], **options: Any) -> int:
    return _execute(args, read_part(**options), bench=True)


def run_one(args: Sequence[str], **options: Any) -> int:
    return _execute(args, read_part(**options), bench=False)


def _execute(args: Sequence[str], part: Part, *, bench: bool) -> int:
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    start, console = time.perf_counter(), make_console()
    wanted = plan(args, bench=bench)
    say_which(wanted, console)
    say_protocol(wanted, console)
    say_settings(wanted, console, args)
    say_differences(wanted, console)
    store = Store(Path(wanted.settings.results))
    run = partial(run_missing, part=part)
    if wanted.settings.bench.until == "decided":
        ran = run_until_decided(wanted, store, console, run)
    else:
        ran = run(wanted, store, console)
    if (found := evidence_of(ran.plan, store)) is not None:
        board = print_board(found, ran.plan, console, args)
        refresh_report(found, board, ran.plan, store, console, args)
        console.print(f"{plural(ran.missing, 'run')} in {time.perf_counter() - start:.0f} s")
    return ran.exit_code


def run_missing(
    wanted: "Plan", store: "Store", console: "Console", part: Part | None = None
) -> Ran:
    """Fetches the data of a plan and runs what has no record, under a progress display."""
    from offbench.bench.executors.executor import check_cluster, is_here
    from offbench.bench.memory import Sizes, check_one, stack_limit
    from offbench.bench.preflight import check_machine, preflight, resolve_device
    from offbench.bench.progress import tidy
    from offbench.bench.stacks import fetched, missing, pack, whole_stacks
    from offbench.tasks.loading import kept_in_memory

    part = part or read_part()
    check_cluster(wanted.settings)
    tidy(store)
    with console.status("looking for the data") as status:
        wanted = replace(wanted, cells=fetched(wanted.cells, report=status.update))
    unrecorded = missing(wanted.cells, store)
    todo = chosen(wanted.cells, unrecorded, part, store)
    total = sum(len(c.seeds) for c in wanted.cells)
    absent = sum(len(c.seeds) for c in unrecorded)
    here = sum(len(c.seeds) for c in todo)
    console.print(
        f"{wanted.name}: {plural(total, 'run')}, {total - absent} recorded, {here} to do"
        + (f" of {absent}, {part.words}" if here < absent else "")
    )
    if not todo:
        return Ran(wanted, 0, 0, [])
    own = wanted.settings
    if is_here(own):
        check_machine(own.device, own.engine, own.precision)
    with console.status("checking") as status, kept_in_memory():
        sizes: Sizes = {}
        fits = partial(check_one, settings=own, known=sizes)
        # kernels of a method's own may be for a GPU alone
        tries = is_here(own) and resolve_device(own.device) == "cpu"
        preflight(todo, strict=own.strict, tries=tries, fits=fits, report=status.update)
        packs = pack(todo, max_stack=stack_limit(todo, own, sizes))
        packs = whole_stacks(packs, wanted.cells, store)
    store.check_writable()
    with _terminable(), _jobs_that_go_on(wanted):
        for line in apart(packs, unrecorded, wanted.cells):
            console.print(line, markup=False, soft_wrap=True)
        failures, left = _show_progress(packs, store, wanted, console, part.effort)
    for line in failures:
        print(f"offbench: {line}", file=sys.stderr)
    if failures:
        words = "the same command tries again what failed; with --only failed, that alone"
        print(f"offbench: {words}", file=sys.stderr)
    if left:
        why = "time is up" if time.monotonic() >= part.effort.deadline else "a worker was stopped"
        words = f"{why} with {plural(left, 'run')} left; the same command goes on"
        print(f"offbench: {words}", file=sys.stderr)
    return Ran(wanted, here, left, failures)


@contextmanager
def _terminable() -> "Iterator[None]":
    """SIGTERM, with which clusters preempt, and SIGHUP, of a terminal that is closed, raise `Interrupted` in the
    block: states are saved. Those after the first do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    there = {getattr(signal, name, signal.SIGTERM) for name in ("SIGTERM", "SIGHUP")}
    # `nohup` ignores SIGHUP
    before = {n: old for n in there if (old := signal.getsignal(n)) != signal.SIG_IGN}

    def interrupt(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _jobs_that_go_on(plan: "Plan") -> "Iterator[None]":
    """Says, where the block is interrupted, that jobs of Slurm go on without it."""
    from offbench.bench.executors.executor import is_here

    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if not is_here(plan.settings) and plan.settings.executor == "slurm":
            words = (
                "jobs in the queue go on without this command: see `offbench status results="
                f"{plan.settings.results}` and `squeue --name offbench`; `scancel --name offbench` ends them"
            )
            print(f"offbench: {words}", file=sys.stderr)
        raise


def _show_progress(
    packs: "Sequence[Pack]", store: "Store", plan: "Plan", console: "Console", effort: "Effort"
) -> tuple[list[str], int]:
    """Runs stacks under a progress display; returns (one line per failure, number of runs not done)."""
    from rich.markup import escape

    from offbench.bench.schedule import run_packs

    failures: list[str] = []
    left = 0
    # closed whatever happens here: its stacks then save their states
    events = run_packs(packs, store, plan.settings, effort)
    with _bars(console) as bars, closing(events):
        overall = bars.add_task("all", total=sum(p.size for p in packs))
        rows: dict[int, Any] = {}
        done: dict[int, float] = {}
        for event in events:
            part = packs[event.index]
            if event.index not in rows:
                rows[event.index] = bars.add_task("", total=1.0)
            text = f"[dim]{_PHASES.get(event.phase, event.phase)}[/] {escape(part.title)}"
            ended = event.phase in ("done", "recorded", "failed", "lost")
            bars.update(
                rows[event.index],
                completed=event.fraction,
                description=text,
                visible=not ended,
            )
            done[event.index] = event.fraction * part.size
            bars.update(overall, completed=sum(done.values()))
            left += part.size if event.phase == "stopped" else 0
            if event.phase == "again":
                words = f"[yellow]tried again[/] {escape(f'{part.title}: {event.reason}')}"
                console.print(words, soft_wrap=True)
            if ended:
                for line in _finished(part, event):
                    console.print(line, soft_wrap=True)
                failures += _failures(part, event)
    return failures, left


def apart(
    packs: "Sequence[Pack]", unrecorded: "Sequence[Cell]", planned: "Sequence[Cell]"
) -> list[str]:
    """A line for each cell some seeds of which were recorded in another stack, on which rounding depends."""
    name = lambda cell: (cell.entry, cell.task.id)
    left = {name(cell): set(cell.seeds) for cell in unrecorded}
    recorded = {name(c): sorted(set(c.seeds) - left.get(name(c), set())) for c in planned}
    lines = []
    for part in packs:
        for cell in part.cells:
            if others := [seed for seed in recorded[name(cell)] if seed not in cell.seeds]:
                lines.append(
                    f"{cell.entry} on {cell.task.id}: seeds {spelt_seeds(cell.seeds)} in a stack of"
                    f" {part.size}, recorded in others: {spelt_seeds(others)} (rounding differs)"
                )
    return lines if len(lines) <= 3 else [*lines[:3], f"and {len(lines) - 3} more such cells"]


_PHASES = {
    "trained": "trained, to be evaluated:",
    "held": "waiting for another process:",
    "recorded": "recorded by another process:",
    "again": "to be tried again:",
}


def _bars(console: "Console") -> "Progress":
    """Rows that fit: of a long title the end is cut, never the share done or the times."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    title = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    fixed = lambda width: Column(no_wrap=True, min_width=width)
    return Progress(
        TextColumn("{task.description}", table_column=title),
        BarColumn(24 if console.width > 100 else 10, table_column=fixed(10)),
        TaskProgressColumn(table_column=fixed(4)),
        TimeElapsedColumn(table_column=fixed(7)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed(7)),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        expand=True,
    )


def _title(cell: "Cell") -> str:
    return f"{cell.entry} on {cell.task.id} x{len(cell.seeds)}"


def _finished(part: "Pack", event: "Event") -> list[str]:
    from rich.markup import escape

    if event.error is not None:
        return [f"[red]failed[/] {escape(part.title)}"]
    if event.phase == "recorded":
        return [f"{escape(part.title)}: recorded by another process"]
    lines = []
    for o in event.outcomes:
        scores = " ".join(f"{s:.1f}" for s in o.scores.values())
        tail = f" [red]{len(o.failed)} diverged[/]" if o.failed else ""
        engine = f" [yellow]{escape(str(o.backend))}[/]" if o.backend.notes else ""
        if not o.cell.protocol["episodes"]:
            errors = " ".join(f"{x:.3g}" for x in o.errors.values())
            scores = f"held-out action error {errors}" if errors else ""
            if values := " ".join(f"{x:.4g}" for x in o.estimates.values()):
                scores = f"estimated value {values}{', ' if scores else ''}{scores}"
        lines.append(f"{escape(_title(o.cell))}: {scores}{tail} [dim]({o.wall_s:.0f} s)[/]{engine}")
        lines += [
            f"  [yellow]seed {seed}: {escape(remark)}[/]" for seed, remark in o.remarks.items()
        ]
        lines += [f"  [yellow]{escape(o.note)}[/]"] if o.note else []
    return lines


def _failures(part: "Pack", event: "Event") -> list[str]:
    if event.error is not None:
        return [f"{part.title} failed: {event.error.strip()}"]
    return [
        f"{o.cell.entry} on {o.cell.task.id} seed {seed}: {why}"
        for o in event.outcomes
        for seed, why in o.failed.items()
    ]
