"""`offbench plan`: every run, every effective value with its source, how long it will take. Nothing is run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.bench import stack_limit
from offbench.cli.console import duration, make_console, spelt_seeds
from offbench.cli.describe import say_differences, say_protocol, say_which, updates_of
from offbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.bench.sources import Source
    from offbench.tasks.task import Task


def show_plan(args: Sequence[str]) -> int:
    from offbench.bench.executors import n_jobs
    from offbench.bench.forecast import forecast, kept_bytes, stack_bytes
    from offbench.bench.plan import plan
    from offbench.bench.stacks import missing, pack
    from offbench.results.store import Store

    console = make_console()
    wanted = plan(args, bench=not any(a.startswith(("method=", "method._target_=")) for a in args))
    say_which(wanted, console)
    say_protocol(wanted, console)
    say_differences(wanted, console)
    store = Store(Path(wanted.settings.results))
    todo = missing((c for c in wanted.cells if is_here(c.task)), store)
    _print_values(wanted, console)
    try:
        with console.status("measuring speed") as status:
            costs = forecast(todo, store, report=status.update)
    except UserError:
        # for instance an environment that is not installed: the runs, and why they have no estimate
        _print_cells(wanted, todo, (), console)
        raise
    _print_cells(wanted, todo, costs, console)
    _print_absent(wanted, console)
    packs = pack(todo, max_stack=stack_limit(todo, wanted)) if todo else []
    jobs = n_jobs(wanted.settings, len(packs))
    longest = max((c.seconds for c in costs), default=0.0)
    seconds = max(longest, sum(c.seconds for c in costs) / jobs)
    runs = sum(len(c.seeds) for c in todo)
    later = sum(len(c.seeds) for c in wanted.cells if not is_here(c.task))
    console.print(
        f"{runs} runs to do, about {duration(seconds)} on {jobs} process{'es' if jobs > 1 else ''}"
        + (f"; {later} more once their data are here" if later else "")
    )
    if packs:
        sizes = [len(p.members) for p in packs]
        memory = max(stack_bytes(p) for p in {p.cells[0].entry: p for p in packs}.values())
        console.print(
            f"{len(packs)} stacks of {min(sizes)} to {max(sizes)} runs; the largest needs about "
            f"{memory / 2**20:.0f} MiB beside its data"
        )
        size = kept_bytes(packs)
        console.print(
            f"kept of the runs: {size[wanted.settings.keep] / 1e6:,.1f} MB (keep={wanted.settings.keep};"
            f" policy {size['policy'] / 1e6:,.1f} MB, state {size['state'] / 1e6:,.1f} MB)"
        )
    return 0


def is_here(task: "Task") -> bool:
    from offbench.tasks.task import NOT_HERE

    missing = task.source == "embedded" and not (task.folder / "data" / "main_data.hdf5").exists()
    return task.sha256 != NOT_HERE and not missing


def _print_absent(plan: "Plan", console: "Console") -> None:
    """What a run would download first: a plan looks at what is here, and fetches nothing."""
    from offbench.data import compose
    from offbench.tasks import catalog
    from offbench.tasks.task import load_task

    absent: dict[str, str] = {}
    tasks = {c.task.id: c.task for c in plan.cells if not is_here(c.task)}
    for task in tasks.values():
        made = compose.parse(task.id)
        for name in [task.id] if isinstance(made, str) else made.leaves:
            if is_here(load_task(name)):
                continue
            card = catalog.card(name)
            sizes = [file.size for file in card.files]
            known = bool(sizes) and None not in sizes
            size = f"{sum(sizes) / 1e6:,.0f} MB" if known else "size not known"
            how = f"{size}, {card.urls[-1]}" if card.urls else "nothing is known to download"
            if card.family == "offbench":
                how = f"offbench data make {name}"
            absent.setdefault(how, f"  {card.id}: {how}")
    if absent:
        console.print(f"data that a run needs first ({len(absent)} not here, so not estimated):")
        console.print("\n".join(absent.values()), soft_wrap=True, markup=False)


def _print_values(plan: "Plan", console: "Console") -> None:
    """Each setting once where it is the same for every cell, per entry or task otherwise."""
    from rich.table import Table

    table = Table(
        "setting",
        "value",
        "from",
        "for",
        title="effective settings",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in table.columns:
        column.overflow = "fold"
    values: dict[tuple[str, str, tuple[Source, ...]], dict[str, list[str]]] = {}
    tasks: dict[str, list[str]] = {}  # entry -> its tasks
    for cell in plan.cells:
        tasks.setdefault(cell.entry, []).append(cell.task.id)
        for key, value in _effective(cell).items():
            where = values.setdefault((key, value, _sources(cell, key)), {})
            where.setdefault(cell.entry, []).append(cell.task.id)
    # sources too long for a column, once each
    notes: dict[str, int] = {}
    for (key, value, sources), where in sorted(
        values.items(), key=lambda item: (item[0][0], next(iter(item[1])))
    ):
        names = [
            entry if mine == tasks[entry] else f"{entry} on {', '.join(_briefly(mine))}"
            for entry, mine in where.items()
        ]
        table.add_row(
            key, value, _noted(sources, notes), "all" if where == tasks else ", ".join(names)
        )
    console.print(table)
    for source, number in notes.items():
        console.print(f"\\[{number}] {source}", soft_wrap=True)
    console.print()


def _noted(sources: "Sequence[Source]", notes: dict[str, int]) -> str:
    """ "preset [1]" for sources of many words, which a note below the table has in full."""
    text = ", ".join(map(str, sources))
    if len(text) <= 32:
        return text
    first = next((i for i, source in enumerate(sources) if source.published), None)
    named = sources[: first + 1] if first is not None else ()
    kind = ", ".join(source.words for source in named) or "several"
    return f"{kind} \\[{notes.setdefault(text, len(notes) + 1)}]"


def _briefly(tasks: Sequence[str]) -> list[str]:
    """The five tasks of an environment of OGBench as one: cube-single-play-singletask-task*-v0."""
    kinds = [re.sub(r"-task\d-", "-task*-", task) for task in tasks]
    return list(dict.fromkeys(k if kinds.count(k) > 1 else t for k, t in zip(kinds, tasks)))


def _effective(cell: "Cell") -> dict[str, str]:
    out = {f"method.{k}": v for k, v in cell.hparams.items()}
    for group in (g for g in ("view", "sampler", "weight") if g in cell.pipeline):
        out |= {
            group if k == "name" else f"{group}.{k}": v for k, v in cell.pipeline[group].items()
        }
    out |= {"transforms": cell.pipeline["transforms"], "batch_size": cell.pipeline["batch_size"]}
    out |= {
        "gamma": cell.pipeline["gamma"],
        "n_updates": cell.n_updates,
        "method._target_": cell.target,
    }
    out |= {f"eval.{k}": v for k, v in cell.protocol.items()}
    return {k: str(list(v) if isinstance(v, tuple) else v) for k, v in out.items()}


def _sources(cell: "Cell", key: str) -> "tuple[Source, ...]":
    """One, but of transforms those of all of them."""
    if key == "transforms":
        found = [s for k, s in cell.sources.items() if k.split(".")[0] == key]
    else:
        found = [cell.sources[k] for k in (key, f"{key}._target_") if k in cell.sources][:1]
    return tuple(dict.fromkeys(found))


def _print_cells(
    plan: "Plan", todo: "Sequence[Cell]", costs: Sequence[Any], console: "Console"
) -> None:
    from rich.table import Table

    columns = ("entry", "task", "seeds", "to do", "updates", "run ids", "time", "estimated from")
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[1].overflow = "fold"
    left = {(c.entry, c.task.id): c for c in todo}
    cost = {(c.entry, c.task.id): k for c, k in zip(todo, costs)}
    for cell in plan.cells:
        key = (cell.entry, cell.task.id)
        if is_here(cell.task):
            ids = [r.run_id[:6] for r in cell.runs()]
            shown = " ".join(ids if len(ids) < 4 else [*ids[:2], f"+{len(ids) - 2}"])
            absent = spelt_seeds(left[key].seeds) if key in left else "recorded"
        # the data are part of what a run is
        else:
            shown, absent = "--", "data not here"
        time_, basis = (duration(cost[key].seconds), cost[key].basis) if key in cost else ("", "")
        seeds = spelt_seeds(cell.seeds)
        table.add_row(
            cell.entry, cell.task.id, seeds, absent, updates_of(cell), shown, time_, basis
        )
    console.print(table)
