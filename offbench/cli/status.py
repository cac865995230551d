"""`offbench status`: how far a plan is, what works at it, what has failed. Reads the store, imports no torch."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import duration
from offbench.cli.recorded import read_plan
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    from offbench.results.claims import Worker
    from offbench.results.status import Failure, State, Status
    from offbench.results.store import Store

# lines of a part of the display before it says how many more there are
MOST = 12


def show_status(args: Sequence[str], *, watch: str | None = None, **options: bool) -> int:
    """Prints the status of a plan's runs; with `all`, of all suites of a store; `watch`: every so many seconds."""
    from offbench.results.store import Store

    every = _read_seconds(watch)
    whole = options["all"]
    plan = None if whole else read_plan(args)
    root = Path(_results_of(args) if plan is None else plan.settings.results)
    # what is watched may begin
    if every is None and not any((root / name).is_dir() for name in ("runs", "workers")):
        print(f"{root}: no results are here, and no worker is")
        return 0
    store = Store(root)
    if plan is None:
        read = lambda width: _all_lines(store, width)
    else:
        cells = {(cell.entry, cell.task.id): cell.runs() for cell in plan.cells}
        read = lambda width: _plan_lines(store, plan.name, cells, width)
    if every is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(read(width)[0]))
    else:
        _watch(read, every)
    return 0


def _results_of(args: Sequence[str]) -> str:
    if wrong := [word for word in args if not word.startswith("results=")]:
        raise UserError(f"--all shows every suite of a store; it takes results=, not {wrong[0]}")
    return args[-1].removeprefix("results=") if args else "results"


def _read_seconds(text: str | None) -> float | None:
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 0.1 <= seconds <= 86400:
        raise UserError(f"--watch {text}: a number of seconds, such as 5")
    return seconds


def _watch(read: Callable[[int | None], tuple[list[str], bool]], every: float) -> None:
    """Shows the status again and again until there is nothing to do, or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    over, lines = False, [""]
    try:
        if not console.is_terminal:
            while not over:
                lines, over = read(None)
                print("\n".join([*lines, ""]), flush=True)
                time.sleep(0.0 if over else every)
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not over:
                lines, over = read(console.width)
                shown = lines[: max(1, console.height - 1)]
                live.update(Text("\n".join(shown), no_wrap=True, overflow="crop"), refresh=True)
                time.sleep(0.0 if over else every)
    except KeyboardInterrupt:
        pass
    if console.is_terminal:
        print("\n".join(lines))


# --- a plan ---------------------------------------------------------------------------------


def _plan_lines(
    store: "Store", suite: str, cells: Mapping[Any, Any], width: int | None
) -> tuple[list[str], bool]:
    """(lines, whether nothing is left to do)."""
    from offbench.results.status import status_of

    status = status_of(store, suite, cells)
    n = sum(status.runs.values())
    head = f"{suite}: {plural(len(cells), 'cell')}, {plural(n, 'run')} in {store.root}"
    return [
        _with_time(head, width),
        *_counts(status),
        _time_left(status),
        *_worker_lines(status.workers, width),
        *_failure_lines(status.failures, status.runs.get("failed", 0), width),
        *_damaged_lines(status.runs.get("damaged", 0), store),
    ], status.over


def _counts(status: "Status") -> list[str]:
    names: tuple[State, ...] = ("done", "running", "failed", "waiting")
    head = "      " + "".join(f"{name:>10}" for name in names)
    rows = [
        f"{word:6}" + "".join(f"{counts.get(name, 0):>10,}" for name in names)
        for word, counts in (("runs", status.runs), ("cells", status.cells))
    ]
    # never 100 % before the end
    share = min(99.0, 100 * status.share) if not status.over else 100.0
    return [head, f"{rows[0]}    {share:.0f} % of the updates", rows[1]]


def _time_left(status: "Status") -> str:
    if status.over:
        return "nothing is left to do"
    if not any(worker.alive for worker in status.workers):
        return "time left unknown: no worker is alive"
    if status.seconds_left is None:
        return "time left unknown: nothing was trained yet"
    return f"time left: about {duration(status.seconds_left)}"


# --- a whole store --------------------------------------------------------------------------


def _all_lines(store: "Store", width: int | None) -> tuple[list[str], bool]:
    """(lines, whether no worker is alive)."""
    from offbench.results.claims import claimed, workers
    from offbench.results.status import last_failures, read_states

    table, damaged = read_states(store)
    failed = table[table["status"] != "ok"]
    crew = workers(store.root)
    running = len(set(claimed(store.root)) - set(table["run_id"][table["status"] == "ok"]))
    rows = []
    for suite, part in table.groupby("suite"):
        cells = len(part[["entry", "task"]].drop_duplicates())
        ok = int((part["status"] == "ok").sum())
        rows.append(f"{suite:24.24} {cells:>10,} {ok:>10,} {len(part) - ok:>10,}")
        rows[-1] += f"  {part['created'].max()[:16].replace('T', ' ')}"
    head = f"{plural(len(table), 'record')} in {store.root}, {plural(running, 'run')} in training"
    titles = f"{'suite':24} {'cells':>10} {'done':>10} {'failed':>10}  last (UTC)"
    return [
        _with_time(head, width),
        *([titles, *rows] if rows else []),
        *_worker_lines(crew, width),
        *_failure_lines(last_failures(store, failed.itertuples(index=False)), len(failed), width),
        *_damaged_lines(len(damaged), store),
    ], not any(worker.alive for worker in crew)


# --- parts of both --------------------------------------------------------------------------


def _with_time(head: str, width: int | None) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{head}, {now}" if width is None else f"{_cut(head, width - len(now) - 2)}  {now}"


def _worker_lines(crew: "Sequence[Worker]", width: int | None) -> list[str]:
    """A line for each living worker; of dead ones the last."""
    alive = [worker for worker in crew if worker.alive]
    dead = sorted((worker for worker in crew if not worker.alive), key=lambda w: w.age)
    lines = [plural(len(alive), "worker") if alive else "no workers"]
    if alive:
        rows = [_WORKER_TITLES, *(_worker_row(worker) for worker in alive[:MOST])]
        lines += _aligned(rows, width)
    lines += [f"  and {len(alive) - MOST} more"] if len(alive) > MOST else []
    for worker in dead[:3]:
        at = f", was at {worker.stack.get('title')}" if worker.stack else ""
        text = (
            f"dead: {worker.host} pid {worker.pid}, silent for {duration(worker.age)}, claims void"
        )
        lines.append(_cut(f"  {text}{at}", width))
    if len(dead) > 3:
        lines.append(f"  and {len(dead) - 3} more dead")
    return lines


_WORKER_TITLES = ("worker", "trains", "update", "/s", "memory", "for", "beat")


def _worker_row(worker: "Worker") -> tuple[str, ...]:
    from offbench.results.status import seconds_since

    stack, title, update, rate, since = worker.stack or {}, "nothing", "", "", ""
    if stack:
        title, update = str(stack.get("title")), str(stack.get("phase"))
        if update == "training":
            update = f"{_short(stack.get('update', 0))}/{_short(stack.get('n_updates', 0))}"
            rate = _short(stack.get("updates_per_s") or 0)
        since = _brief(seconds_since(stack.get("started")))
    memory = worker.memory / 1e6
    size = f"{memory:.0f} MB" if memory < 1000 else f"{memory / 1000:.1f} GB"
    return worker.host, title, update, rate, size, since, _brief(worker.age)


def _aligned(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Columns; in a width those of hosts and titles are cut, nothing in a log."""
    sizes = [max(map(len, column)) for column in zip(*rows)]
    if width is not None:
        sizes[0] = min(sizes[0], 12)
        fixed = 2 + sum(size + 1 for i, size in enumerate(sizes) if i != 1)
        sizes[1] = max(16, min(sizes[1], width - fixed))
    right = lambda i: i > 1
    return [
        "  "
        + " ".join(
            _inner(cell, size).rjust(size) if right(i) else _inner(cell, size).ljust(size)
            for i, (cell, size) in enumerate(zip(row, sizes))
        ).rstrip()
        for row in rows
    ]


def _failure_lines(failures: "Sequence[Failure]", n: int, width: int | None) -> list[str]:
    lines = [f"{plural(n, 'run')} failed, the last:"] if failures else []
    for one in failures:
        tries = f" after {one.attempts} attempts" if (one.attempts or 1) > 1 else ""
        lines.append(_cut(f"  {one.entry} on {one.task} seed {one.seed}{tries}", width))
        lines.append(_cut(f"    {one.reason}", width))
        # whole, to be copied
        lines += [f"    {one.traceback}"] if one.traceback else []
    return lines


def _damaged_lines(n: int, store: "Store") -> list[str]:
    if not n:
        return []
    return [f"{plural(n, 'record')} damaged: offbench results verify --repair results={store.root}"]


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: max(1, width) - 1] + "…"


def _inner(text: str, size: int) -> str:
    """A text that is cut in its middle: the ends of titles tell them apart."""
    if len(text) <= size:
        return text
    head = (size - 1) // 3
    return text[:head] + "…" + text[head + 1 - size :]


def _short(number: float) -> str:
    """412, 1200, 25k, 1.25M."""
    if number < 10_000:
        return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
    scale, unit = (1e3, "k") if number < 1e6 else (1e6, "M")
    return f"{number / scale:.4g}{unit}"


def _brief(seconds: float) -> str:
    """45s, 12m, 3.2h, 2.1d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds / 60:.0f}m" if seconds >= 90 else f"{seconds:.0f}s"
