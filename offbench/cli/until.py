"""`offbench bench bench.until=decided`: looks at what is recorded and trains more seeds of undecided entries."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from offbench.cli.recorded import recorded_runs
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.plan import Plan
    from offbench.cli.parts import Ran
    from offbench.results.sequential import Look, Progress
    from offbench.results.store import Store

# of what is missing of a plan, as `offbench.cli.bench.run_missing`
RunMissing = Callable[["Plan", "Store", "Console"], "Ran"]

STOPPED = (
    "seeds added by the sequential rule (bench.until=decided): intervals, p-values and bold are of all"
    " trained seeds and not corrected for stopping; what is decided is"
)


def run_until_decided(
    wanted: "Plan", store: "Store", console: "Console", run_missing: RunMissing
) -> "Ran":
    """Runs the seeds that the sequential rule asks for, look after look, until nothing more is asked.

    What is decided follows from the records alone, so the same command goes on where it was stopped.

    Returns what came of all looks, with the plan's seeds as they were given.
    """
    found = progress_of(wanted, store)
    ran = run_missing(_asking(wanted, found), store, console)
    wanted, said = replace(ran.plan, cells=_with_seeds_of(wanted, ran.plan)), 0
    while True:
        before, found = found, progress_of(wanted, store)
        for number, look in enumerate(found.looks[said:], said + 1):
            line = look_line(found, number, look, wanted.settings.possible_seeds)
            console.print(line, markup=False, soft_wrap=True)
        said = len(found.looks)
        more = {entry for entry, n in found.asked.items() if n > before.asked[entry]}
        if not more or ran.left:
            break
        cells = tuple(c for c in _asking(wanted, found).cells if c.entry in more)
        new = run_missing(replace(wanted, cells=cells), store, console)
        ran = ran._replace(
            missing=ran.missing + new.missing,
            left=new.left,
            failures=ran.failures + new.failures,
        )
    if found.finished:
        console.print(_end(found), markup=False, soft_wrap=True)
    else:
        number = len(found.looks) + 1
        console.print(f"look {number} waits for runs that are not recorded: run this again")
    return ran._replace(plan=wanted)


def progress_of(plan: "Plan", store: "Store") -> "Progress":
    """What is decided of the entries of a plan by what is recorded. Raises UserError where nothing can be."""
    from offbench.results.sequential import Rule, looks, progress

    entries, seeds = _entries(plan), plan.settings.possible_seeds
    margin = None if plan.unscaled else 5.0
    rule = Rule(looks(len(plan.cells[0].seeds), len(seeds)), margin=margin)
    found = recorded_runs(plan, store)
    return progress(
        found.episodes,
        found.runs,
        plan.tasks,
        entries,
        seeds=seeds,
        rule=rule,
        unscaled=plan.unscaled,
    )


def _entries(plan: "Plan") -> list[str]:
    """The entries that are asked for all tasks; UserError where no two can be compared by one number."""
    why = "bench.until=decided compares entries by the IQM of their scores over the tasks: "
    if bad := [c.task.id for c in plan.cells if not c.task.env]:
        raise UserError(f"{why}{bad[0]} has no environment, so no scores")
    if by := [c.protocol["by"] for c in plan.cells if c.protocol.get("by")]:
        raise UserError(f"{why}eval.by={by[0]} plays no episodes, so there are none")
    if len(plan.tasks) > 1 and plan.unscaled:
        raise UserError(
            f"{why}the returns of {min(plan.unscaled)} have no scale in common with others"
        )
    if other := [c for c in plan.cells if c.seeds != plan.cells[0].seeds]:
        first, last = plan.cells[0], other[0]
        raise UserError(
            f"bench.until=decided begins with the same seeds everywhere: {first.task.id} has"
            f" {list(first.seeds)}, {last.task.id} {list(last.seeds)}; give seeds=[...]"
        )
    tasks: dict[str, int] = {}
    for cell in plan.cells:
        tasks[cell.entry] = tasks.get(cell.entry, 0) + 1
    entries = [entry for entry, n in tasks.items() if n == len(plan.tasks)]
    if len(entries) < 2:
        raise UserError(
            "bench.until=decided needs two entries to compare, on all tasks; there"
            f" {'is ' + entries[0] if entries else 'is none'}"
        )
    return entries


def _asking(plan: "Plan", found: "Progress") -> "Plan":
    """A plan with the seeds that each entry is to have."""
    seeds, first = plan.settings.possible_seeds, len(plan.cells[0].seeds)
    n = lambda entry: found.asked.get(entry, first)
    return replace(plan, cells=tuple(replace(c, seeds=seeds[: n(c.entry)]) for c in plan.cells))


def _with_seeds_of(plan: "Plan", on_data: "Plan") -> tuple:
    return tuple(
        replace(cell, seeds=own.seeds) for cell, own in zip(on_data.cells, plan.cells, strict=True)
    )


# --- in words -------------------------------------------------------------------------------


def look_line(found: "Progress", number: int, look: "Look", seeds: Sequence[int]) -> str:
    """`look 2 of 4: 4 of 6 pairs decided; iql, td3_bc get seeds 9-13`."""
    every = found.rule.looks
    line = f"look {number} of {len(every)}: {len(look.decided)} of {found.n_pairs} pairs decided"
    if not look.undecided or number == len(every):
        return line
    new = seeds[look.n_seeds : every[number]]
    which = f"seeds {new[0]}-{new[-1]}" if len(new) > 1 else f"seed {new[0]}"
    return f"{line}; {', '.join(look.entries)} get {which}"


def _end(found: "Progress") -> str:
    if len(found.decided) == found.n_pairs:
        return "all decided"
    most = found.rule.looks[-1]
    if found.looks[-1].undecided:
        return f"the rest is not decided with {most} seeds (bench.max_seeds)"
    return "the rest cannot be decided: an entry has a failed run"


def notes_of(found: "Progress") -> tuple[str, ...]:
    """What a board says of its seeds and of the decisions."""
    from offbench.results.sequential import EQUIVALENT

    error = f"{100 * found.rule.error:g} %"
    above: dict[str, list[str]] = {}
    same: list[str] = []
    rest: list[str] = []
    for (a, b), outcome in sorted(found.decided.items()):
        if outcome == EQUIVALENT:
            same.append(f"{a} and {b}")
        else:
            best, other = (a, b) if outcome == "better" else (b, a)
            above.setdefault(best, []).append(other)
    if found.looks:
        rest = [f"{a} and {b}" for a, b in found.looks[-1].undecided]
    parts = [f"{entry} is better than {', '.join(o)}" for entry, o in sorted(above.items())]
    if same:
        parts.append(f"equivalent within {found.rule.margin:g} points: {'; '.join(same)}")
    if rest:
        parts.append(f"not decided: {'; '.join(rest)}")
    if found.looks and (lost := found.n_pairs - len(found.decided) - len(rest)):
        parts.append(f"left out, as an entry has a failed run: {plural(lost, 'pair')}")
    decided = (
        f"{len(found.decided)} of {found.n_pairs} pairs decided in {plural(len(found.looks), 'look')}"
        f" (at most {error} chance that equal entries are called different)"
    )
    return STOPPED, ". ".join([decided, *parts])
