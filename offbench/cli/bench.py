"""`offbench run` and `offbench bench`: train and evaluate the missing runs, print the board."""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.cli.board import evidence_of, print_board
from offbench.cli.console import make_console, plural
from offbench.cli.describe import say_differences, say_protocol, say_settings, say_which
from offbench.cli.report import refresh_report
from offbench.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from offbench.bench.cells import Cell
    from offbench.bench.job import Event
    from offbench.bench.plan import Plan
    from offbench.bench.schedule import Effort
    from offbench.bench.stacks import Pack
    from offbench.results.store import Store


# exit codes: some runs failed; runs are left to do (EX_TEMPFAIL)
FAILED, MORE_TO_DO = 3, 75


def run_bench(args: Sequence[str], **options: Any) -> int:
    return _execute(args, read_part(**options), bench=True)


def run_one(args: Sequence[str], **options: Any) -> int:
    return _execute(args, read_part(**options), bench=False)


class Part(NamedTuple):
    """Which of the missing runs to do, how often and for how long to try."""

    effort: "Effort"
    # only runs that failed before
    only_failed: bool
    # (number from 1, of how many)
    shard: tuple[int, int]


class Ran(NamedTuple):
    """What came of the missing runs of a plan."""

    # on its data
    plan: "Plan"
    # number of runs that were missing, and that still are: nobody failed, time was up
    missing: int
    left: int
    # one line each, printed
    failures: list[str]

    @property
    def exit_code(self) -> int:
        return MORE_TO_DO if self.left else FAILED if self.failures else 0


def read_part(
    *,
    only: str | None = None,
    retry: str | None = None,
    max_time: str | None = None,
    shard: str | None = None,
) -> Part:
    """The options of `offbench bench`. Raises UserError for what they do not mean."""
    from offbench.bench.schedule import Effort

    if only not in (None, "failed"):
        raise UserError(f"--only {only}: --only failed runs again what has failed")
    if retry is not None and not re.fullmatch(r"\d{1,3}", retry):
        raise UserError(f"--retry {retry}: a number of attempts, such as 2")
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"--shard {shard}: I/N, the I-th of N parts, such as 1/4")
    effort = Effort()
    if retry is not None:
        effort = replace(effort, retry=int(retry))
    if max_time is not None:
        effort = replace(effort, max_s=_seconds(max_time))
    return Part(effort, only == "failed", part)


def _seconds(text: str) -> float:
    """Seconds of `90s`, `30m`, `8h`, `2d`; of a plain number too."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h|d)?", text.strip())
    if not found:
        raise UserError(f"--max-time {text}: a time such as 90s, 30m, 8h or 2d")
    return float(found[1]) * {"m": 60, "min": 60, "h": 3600, "d": 86400}.get(found[2], 1)


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
    ran = run_missing(wanted, store, console, part)
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
    from offbench.bench.preflight import check_device_name, preflight, resolve_device
    from offbench.bench.stacks import fetched, missing

    part = part or read_part()
    check_device_name(wanted.settings.device)
    check_cluster(wanted.settings)
    with console.status("looking for the data") as status:
        wanted = replace(wanted, cells=fetched(wanted.cells, report=status.update))
    todo = missing(_chosen(wanted.cells, part, store), store)
    total = sum(len(c.seeds) for c in wanted.cells)
    absent = sum(len(c.seeds) for c in missing(wanted.cells, store))
    here = sum(len(c.seeds) for c in todo)
    console.print(
        f"{wanted.name}: {plural(total, 'run')}, {total - absent} recorded, {here} to do"
        + (f" of {absent}, {_words(part)}" if here < absent else "")
    )
    if not todo:
        return Ran(wanted, 0, 0, [])
    if is_here(wanted.settings):
        resolve_device(wanted.settings.device)
    with console.status("checking") as status:
        preflight(todo, strict=wanted.settings.strict, report=status.update)
    store.check_writable()
    with _terminable(), _jobs_that_go_on(wanted):
        failures, left = _show_progress(todo, store, wanted, console, part.effort)
    for line in failures:
        print(f"offbench: {line}", file=sys.stderr)
    if failures:
        print("offbench: `--only failed` runs again what failed", file=sys.stderr)
    if left:
        words = f"time is up with {plural(left, 'run')} left; the same command goes on"
        print(f"offbench: {words}", file=sys.stderr)
    return Ran(wanted, here, left, failures)


def _chosen(cells: "Sequence[Cell]", part: Part, store: "Store") -> "list[Cell]":
    """The cells, with the seeds that belong to a part of the plan."""
    from offbench.bench.stacks import pack

    i, n = part.shard
    chosen = list(cells) if n == 1 else [c for p in pack(cells)[i - 1 :: n] for c in p.cells]
    if part.only_failed:
        runs = [run for cell in chosen for run in cell.runs()]
        untried = {run.run_id for run in store.missing(runs, count_failed=True)}
        chosen = [
            replace(c, seeds=tuple(r.seed for r in c.runs() if r.run_id not in untried))
            for c in chosen
        ]
    return [cell for cell in chosen if cell.seeds]


def _words(part: Part) -> str:
    """ "shard 1/4, failed before"."""
    shard = f"shard {part.shard[0]}/{part.shard[1]}" if part.shard[1] > 1 else ""
    return ", ".join(filter(None, [shard, "failed before" if part.only_failed else ""]))


@contextmanager
def _terminable() -> "Iterator[None]":
    """SIGTERM, with which clusters preempt, raises `Interrupted` in the block: states are saved."""

    def interrupt(*_: Any) -> None:
        raise Interrupted("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    todo: "Sequence[Cell]", store: "Store", plan: "Plan", console: "Console", effort: "Effort"
) -> tuple[list[str], int]:
    """Runs the cells under a progress display; returns (one line per failure, number of runs not done)."""
    from rich.markup import escape

    from offbench.bench.schedule import run_packs
    from offbench.bench.stacks import pack, whole_stacks

    packs = pack(todo, max_stack=stack_limit(todo, plan))
    packs = whole_stacks(packs, plan.cells, store)
    failures: list[str] = []
    left = 0
    with _bars(console) as bars:
        overall = bars.add_task("all", total=sum(len(p.members) for p in packs))
        rows: dict[int, Any] = {}
        done: dict[int, float] = {}
        for event in run_packs(packs, store, plan.settings, effort):
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
            done[event.index] = event.fraction * len(part.members)
            bars.update(overall, completed=sum(done.values()))
            left += len(part.members) if event.phase == "stopped" else 0
            if ended:
                for line in _finished(part, event):
                    console.print(line, soft_wrap=True)
                failures += _failures(part, event)
    return failures, left


_PHASES = {"held": "waiting for another process:", "recorded": "recorded by another process:"}


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


def stack_limit(todo: "Sequence[Cell]", plan: "Plan") -> int | None:
    """The most runs of one stack: what was asked for, or what a GPU's memory holds."""
    from offbench.bench.executors.executor import is_here
    from offbench.bench.forecast import stack_bytes
    from offbench.bench.preflight import resolve_device
    from offbench.bench.stacks import Pack, program_of

    # the memory of a cluster's machines is not known here
    if plan.settings.max_stack is not None or not is_here(plan.settings):
        return plan.settings.max_stack
    device = resolve_device(plan.settings.device)
    if not device.startswith("cuda"):
        return None
    import torch

    from offbench.tasks.loading import load_data

    limits = []
    for cell in {(c.task.id, *program_of(c)): c for c in todo}.values():
        data, _ = load_data(cell.task, defects="ignore")
        size = sum(x.nbytes for x in data) if plan.settings.data == "device" else 0
        free, _ = torch.cuda.mem_get_info(device)
        per_run = stack_bytes(Pack((replace(cell, seeds=cell.seeds[:1]),)))
        limits.append(max(1, int((0.8 * free - size) // per_run)))  # a fifth is left alone
    return min(limits)


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
