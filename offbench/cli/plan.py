"""`offbench plan`: every run, every effective value with its source, how long it will take. Nothing is run."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import duration, make_console, print_table, spelt_seeds
from offbench.cli.describe import say_differences, say_protocol, say_which, updates_of
from offbench.cli.recorded import read_plan
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.devices import Card
    from offbench.bench.forecast import Cost
    from offbench.bench.memory import Sizes
    from offbench.bench.plan import Plan
    from offbench.bench.settings import Settings
    from offbench.bench.sources import Source
    from offbench.bench.stacks import Pack
    from offbench.tasks.task import Task


def show_plan(args: Sequence[str], *, on: str | None = None) -> int:
    from offbench.bench import devices

    gpu, console, wanted = devices.card(on) if on else None, make_console(), read_plan(args)
    brief = replace(wanted, cells=tuple(cells[0] for cells in _planned_together(wanted)))
    say_which(wanted, console)
    if len(wanted.cells) > MANY:
        entries = plural(len({cell.entry for cell in wanted.cells}), "entry")
        tasks = plural(len(wanted.tasks), "task")
        console.print(f"{entries} on {tasks}: {plural(len(wanted.cells), 'cell')}")
    say_protocol(brief, console)
    say_differences(brief, console)
    _print_values(wanted, console)
    print_runs(wanted, console, gpu)
    return 0


# plans of more cells are shown by what they have in common, and by their first rows
MANY, FIRST = 200, 10


def _planned_together(plan: "Plan") -> "list[list[Cell]]":
    """The cells one by one; of a plan of many, the points of a sweep together."""
    if len(plan.cells) <= MANY:
        return [[cell] for cell in plan.cells]
    groups: dict[int, list[Cell]] = {}
    for cell in plan.cells:
        # cells that differ in swept numbers share the sources of their settings
        groups.setdefault(id(cell.sources), []).append(cell)
    return list(groups.values())


def print_runs(wanted: "Plan", console: "Console", gpu: "Card | None" = None) -> None:
    """Every run, recorded or to do, how long those to do take, and the data that are not here.

    `gpu`: the time on such a GPU, which need not be here, nor the data; else on the device of the settings.
    """
    from offbench.tasks.loading import kept_in_memory

    with kept_in_memory():
        _print_runs(wanted, console, gpu)


def _print_runs(wanted: "Plan", console: "Console", gpu: "Card | None") -> None:
    from offbench.bench.devices import planned_card
    from offbench.bench.forecast import forecast
    from offbench.bench.memory import stack_limit
    from offbench.bench.stacks import missing, pack
    from offbench.results.store import Store

    store, settings = Store(Path(wanted.settings.results)), wanted.settings
    here = {task.id for task in {c.task.id: c.task for c in wanted.cells}.values() if is_here(task)}
    todo = missing((c for c in wanted.cells if c.task.id in here), store)
    packs: list[Pack] = []
    costs: list[Cost] = []
    sizes: Sizes = {}
    try:
        with console.status("measuring speed") as status:
            if gpu:
                estimated = [*todo, *_with_known_sizes(wanted, here, console)]
                packs = pack(estimated, max_stack=stack_limit(estimated, settings, gpu=gpu))
            else:
                packs = pack(todo, max_stack=stack_limit(todo, settings, sizes))
            there = gpu or planned_card(settings)
            costs = forecast(
                packs, store, gpu=there, precision=settings.precision, report=status.update
            )
    except UserError:
        # for instance an environment that is not installed: the runs, and why they have no estimate
        _print_cells(wanted, todo, here, {}, console)
        raise
    shares: dict[tuple[str, str], Cost] = {}
    for part, cost in zip(packs, costs):
        for cell in part.cells:
            key, share = (cell.entry, cell.task.id), len(cell.seeds) / part.size
            before = shares[key].seconds if key in shares else 0.0
            shares[key] = cost._replace(seconds=before + share * cost.seconds)
    _print_cells(wanted, todo, here, shares, console)
    _print_absent(wanted, console, estimated=gpu is not None)
    if gpu:
        _print_estimate(gpu, settings, packs, costs, console)
    else:
        _print_totals(wanted, here, packs, costs, sizes, console)


def _with_known_sizes(plan: "Plan", here: "Set[str]", console: "Console") -> "list[Cell]":
    """The cells whose data are not here, where the environment says how wide observations and actions are."""
    from offbench.bench.devices import shape_of

    refused: dict[str, str] = {}
    found = []
    for cell in (c for c in plan.cells if c.task.id not in here):
        try:
            if cell.task.id not in refused:
                shape_of(cell)
                found.append(cell)
        except UserError as error:
            refused[cell.task.id] = str(error)
    for reason in refused.values():
        console.print(f"not estimated: {reason}", soft_wrap=True, markup=False)
    return found


def _print_estimate(
    gpu: "Card",
    settings: "Settings",
    packs: "Sequence[Pack]",
    costs: "Sequence[Cost]",
    console: "Console",
) -> None:
    """How long all stacks take on such a GPU, and what that is made of."""
    from offbench.bench.forecast import makespan

    jobs = 1 if settings.jobs == "auto" else int(settings.jobs)
    runs, stacks = plural(sum(p.size for p in packs), "run"), plural(len(packs), "stack")
    seconds = [cost.seconds for cost in costs]
    parts = {
        "episodes are": sum(cost.episodes for cost in costs),
        "fitted Q evaluation is": sum(cost.fitted for cost in costs),
        "synthetic data are": sum(cost.synthetic for cost in costs),
    }
    console.print(
        f"{runs} in {stacks}, about {duration(makespan(seconds, jobs))} on "
        + (f"one {gpu.name}" if jobs == 1 else f"{jobs} {gpu.name}")
        + "".join(
            f"; {what} {100 * s / sum(seconds):.0f} % of it" for what, s in parts.items() if s
        )
    )
    console.print(
        f"estimated from launches and arithmetic for {gpu.name}, not measured; episodes at the rate of"
        " their environments on one core of this CPU",
        soft_wrap=True,
    )


def _print_totals(
    plan: "Plan",
    here: "Set[str]",
    packs: "Sequence[Pack]",
    costs: "Sequence[Cost]",
    sizes: "Sizes",
    console: "Console",
) -> None:
    """How long all stacks take on the processes there are, their memory, and the files they leave."""
    from offbench.bench.executors.executor import n_jobs
    from offbench.bench.forecast import kept_bytes, makespan
    from offbench.bench.memory import run_bytes
    from offbench.bench.programs import compiled_programs
    from offbench.bench.stacks import program_of

    seconds = [cost.seconds for cost in costs]
    jobs = n_jobs(plan.settings, len(packs)) if packs else 1
    later = sum(len(c.seeds) for c in plan.cells if c.task.id not in here)
    console.print(
        f"{plural(sum(p.size for p in packs), 'run')} to do, about {duration(makespan(seconds, jobs))}"
        f" on {jobs} process{'es' if jobs > 1 else ''}"
        + (f", the longest stack {duration(max(seconds))}" if len(packs) > 1 else "")
        + (f"; {later} more once their data are here" if later else "")
    )
    if not packs:
        return
    shares = {
        "monitor episodes, for learning curves: {} (eval.monitor_at=[] leaves them out)": "monitor",
        "fitted Q evaluation of what was trained: {} (eval.fqe_updates)": "fitted",
        "sources of synthetic data and what is drawn from them: {}": "synthetic",
    }
    for words, name in shares.items():
        if share := sum(getattr(cost, name) for cost in costs):
            console.print(words.format(f"{100 * share / sum(seconds):.0f} % of the time"))
    members = [p.size for p in packs]
    span = f"{min(members)} to " if min(members) < max(members) else ""
    largest: dict[Any, Pack] = {}
    for part in sorted(packs, key=lambda p: p.size):
        largest[program_of(part.cells[0])] = part
    memory = max(p.size * run_bytes(p.cells[0], known=sizes) for p in largest.values())
    console.print(
        f"{plural(len(packs), 'stack')} of {span}{plural(max(members), 'run')}; the largest needs "
        f"{memory / 2**20:,.1f} MiB of memory and its dataset"
    )
    if n := compiled_programs(packs, plan.settings):
        console.print(
            f"{plural(n, 'program')} to compile, for all datasets of the same dimensions; torch keeps "
            "their code for later processes, in TORCHINDUCTOR_CACHE_DIR"
        )
    size, keep = kept_bytes(packs), plan.settings.keep
    others = (f"keep={k}: {size[k] / 1e6:,.1f} MB" for k in ("policy", "state") if k != keep)
    console.print(
        f"files kept of finished runs: {size[keep] / 1e6:,.1f} MB with keep={keep} "
        f"({', '.join(others)})"
    )


def is_here(task: "Task") -> bool:
    """Whether the task's dataset is on this machine."""
    if task.family == "offbench" and task.path is not None:
        return (task.path / "data" / "main_data.hdf5").exists()
    return task.sha256 is not None


def _print_absent(plan: "Plan", console: "Console", *, estimated: bool = False) -> None:
    """The datasets that are missing here, with the size and source of each; none is downloaded."""
    from offbench.data import composition
    from offbench.tasks.locate import load_task

    absent: dict[str, str] = {}
    tasks = {c.task.id: c.task for c in plan.cells if not is_here(c.task)}
    for task in tasks.values():
        parsed = composition.parse(task.id)
        for name in [task.id] if isinstance(parsed, str) else parsed.leaves:
            part = load_task(name)
            if is_here(part):
                continue
            sizes = [file.size for file in part.files]
            known = [size for size in sizes if size is not None]
            size = f"{sum(known) / 1e6:,.0f} MB" if sizes and known == sizes else "size not known"
            how = f"{size}, {part.urls[-1]}" if part.urls else "nothing is known to download"
            if part.family == "offbench":
                how = f"offbench data make {name}"
            absent.setdefault(how, f"  {part.id}: {how}")
    if absent:
        note = "" if estimated else ", so not estimated"
        console.print(f"data that a run needs first ({len(absent)} not here{note}):")
        console.print("\n".join(absent.values()), soft_wrap=True, markup=False)


def _print_values(plan: "Plan", console: "Console") -> None:
    """Each setting once where it is the same for every cell, per entry or task otherwise."""
    values: dict[tuple[str, str, tuple[Source, ...]], dict[str, list[str]]] = {}
    tasks: dict[str, list[str]] = {}  # entry -> its tasks
    for cells in _planned_together(plan):
        cell = cells[0]
        entry = cell.entry if len(cells) == 1 else f"{cell.entry} and {len(cells) - 1:,} more"
        tasks.setdefault(entry, []).append(cell.task.id)
        for key, value in (_effective(cell) | _swept(cells)).items():
            where = values.setdefault((key, value, _sources(cell, key)), {})
            where.setdefault(entry, []).append(cell.task.id)
    # sources too long for a column, once each
    notes: dict[str, int] = {}
    rows = []
    for (key, value, sources), where in sorted(
        values.items(), key=lambda item: (item[0][0], next(iter(item[1])))
    ):
        names = [
            entry if of_entry == tasks[entry] else f"{entry} on {', '.join(_briefly(of_entry))}"
            for entry, of_entry in where.items()
        ]
        rows.append(
            (key, value, _noted(sources, notes), "all" if where == tasks else ", ".join(names))
        )
    header = ("setting", "value", "from", "for")
    print_table(console, rows, header=header, title="effective settings")
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
    return f"{kind} [{notes.setdefault(text, len(notes) + 1)}]"


def _briefly(tasks: Sequence[str]) -> list[str]:
    """The five tasks of an environment of OGBench as one: cube-single-play-singletask-task*-v0."""
    kinds = [re.sub(r"-task\d-", "-task*-", task) for task in tasks]
    return list(dict.fromkeys(k if kinds.count(k) > 1 else t for k, t in zip(kinds, tasks)))


def _effective(cell: "Cell") -> dict[str, str]:
    out = {f"method.{k}": v for k, v in cell.hparams.items()}
    for group in (g for g in ("view", "sampler", "weight", "synthetic") if g in cell.pipeline):
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
    return {k: _spelt(v) for k, v in out.items()}


def _swept(cells: "Sequence[Cell]") -> dict[str, str]:
    """The settings that differ between the points of a sweep: "0.1 to 0.9, 20 values"."""
    found = {}
    for key in cells[0].overrides if len(cells) > 1 else ():
        different = {cell.overrides[key] for cell in cells if _is_number(cell.overrides[key])}
        if len(different) > 1:
            span = f"{_spelt(min(different))} to {_spelt(max(different))}"
            found[key] = f"{span}, {len(different):,} values"
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _spelt(value: Any) -> str:
    """As it is written on the command line."""
    if value is None:
        return "null"
    return str(list(value) if isinstance(value, tuple) else value)


def _sources(cell: "Cell", key: str) -> "tuple[Source, ...]":
    """One, but of transforms those of all of them."""
    if key == "transforms":
        found = [s for k, s in cell.sources.items() if k.split(".")[0] == key]
    else:
        found = [cell.sources[k] for k in (key, f"{key}._target_") if k in cell.sources][:1]
    return tuple(dict.fromkeys(found))


def _print_cells(
    plan: "Plan",
    todo: "Sequence[Cell]",
    here: "Set[str]",
    costs: "Mapping[tuple[str, str], Cost]",
    console: "Console",
) -> None:
    from offbench.results.status import hosts_at_work

    columns = ("entry", "task", "seeds", "to do", "updates", "run ids", "time", "estimated from")
    rows = []
    left = {(c.entry, c.task.id): c for c in todo}
    busy = hosts_at_work(Path(plan.settings.results)) if todo else {}
    shown_cells = plan.cells if len(plan.cells) <= MANY else plan.cells[:FIRST]
    for cell in shown_cells:
        key = (cell.entry, cell.task.id)
        if cell.task.id in here:
            few = cell if len(cell.seeds) < 4 else replace(cell, seeds=cell.seeds[:2])
            more = f" +{len(cell.seeds) - 2}" if len(cell.seeds) > 3 else ""
            shown = " ".join(name[:6] for name in few.run_ids()) + more
            absent = spelt_seeds(left[key].seeds) if key in left else "recorded"
            if busy and key in left:
                at = dict.fromkeys(busy[name] for name in left[key].run_ids() if name in busy)
                absent += f", running on {', '.join(at)}" if at else ""
        # the data are part of what a run is
        else:
            shown, absent = "--", "data not here"
        time_, basis = (
            (duration(costs[key].seconds), costs[key].basis) if key in costs else ("", "")
        )
        seeds = spelt_seeds(cell.seeds)
        rows.append(
            (cell.entry, cell.task.id, seeds, absent, updates_of(cell), shown, time_, basis)
        )
    print_table(console, rows, header=columns)
    if hidden := len(plan.cells) - len(shown_cells):
        console.print(f"and {plural(hidden, 'cell')} more")
