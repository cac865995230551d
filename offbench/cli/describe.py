"""The first lines of a command: the protocol and the main settings, with their sources."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from offbench.bench.hydra import AROUND
from offbench.cli.console import print_wrapped, short_number

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan


def say_protocol(plan: "Plan", console: "Console") -> None:
    """The suite, the source of its protocol, and the budgets that differ from the published ones."""
    suite, first = plan.suite, plan.tasks[0]
    whole = plan.named or plan.tasks == suite["tasks"]
    why = "" if whole else f", that of {first}: no suite was named"
    whose = suite.get("protocol") or "this project's choice, not a published protocol"
    console.print(
        f"suite {suite['id']} v{suite['version']}{why}; protocol: {whose}", soft_wrap=True
    )
    said: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        by = cell.protocol.get("by")
        keys = ("n_updates", "eval.episodes") if cell.task.env and not by else ("n_updates",)
        whose = dict.fromkeys(str(cell.sources[k]) for k in keys)
        tested = f"{cell.protocol['episodes']} test episodes"
        if share := cell.protocol.get("validation"):
            held = f"{100 * share:g} % of the episodes held out for validation metrics"
            if not cell.task.env:
                tested = f"no environment: {held}{'' if by else ', no score'}"
            else:
                tested = held if by else f"{tested}, {held}"
        if by:
            estimated = f"values estimated from the recorded episodes ({by})"
            tested = f"{tested}, {estimated}" if share else estimated
        budget = f"{updates_of(cell)} updates, {tested} ({'; '.join(whose)})"
        said.setdefault(budget, []).append(cell)
    entries = {
        budget: list(dict.fromkeys(c.entry for c in cells)) for budget, cells in said.items()
    }
    by_task = len({tuple(names) for names in entries.values()}) == 1
    for budget, cells in said.items():
        tasks = dict.fromkeys(c.task.id for c in cells)
        which = f"on {_few(list(tasks))}" if by_task else f"for {_few(entries[budget])}"
        console.print(
            f"  {budget}{f' {which}' if len(said) > 1 else ''}", soft_wrap=True, markup=False
        )
    if plan.settings.bench.until == "decided":
        from offbench.results.sequential import looks

        seeds = ", ".join(map(str, looks(len(plan.cells[0].seeds), plan.settings.bench.max_seeds)))
        text = "  all pairs of entries are tested; those not decided get more (bench.until=decided)"
        console.print(f"{text}: looks at {seeds} seeds", soft_wrap=True)


def _few(names: Sequence[str]) -> str:
    """All of them, of hundreds the first few."""
    return ", ".join(names if len(names) <= 100 else [*names[:8], f"and {len(names) - 8:,} more"])


# what an entry is made of, whose settings another entry may lack
_OF_ENTRIES = tuple(f"{group}." for group in ("method", *AROUND))


def say_settings(plan: "Plan", console: "Console", args: Sequence[str]) -> None:
    """Networks, learning rates, updates and batch size of up to four entries, each with its source."""
    entries: dict[str, list[dict[str, tuple[str, str]]]] = {}
    for cell in plan.cells:
        entries.setdefault(cell.entry, []).append(dict(_main_settings(cell)))
    if len(entries) > 4:
        where = f"offbench plan {shlex.join(args)}".strip()
        console.print(f"  every setting with its source: {where}", markup=False, soft_wrap=True)
        return
    for entry, cells in entries.items():
        # neighbours of one source together
        parts: list[list[str]] = []
        for name in cells[0]:
            found = {cell[name] for cell in cells}
            text, source = found.pop() if len(found) == 1 else (name, "differs by task")
            if parts and parts[-1][-1] == source:
                parts[-1].insert(-1, text)
            else:
                parts.append([text, source])
        words = ", ".join(f"{', '.join(texts)} [{source}]" for *texts, source in parts)
        print_wrapped(f"{entry}: {words}", console)


def _main_settings(cell: "Cell") -> "Iterator[tuple[str, tuple[str, str]]]":
    """(setting, (in words, source)) of the network, the learning rates, the updates and the batch."""
    size = lambda k: k in ("hidden", "width", "layers", "heads") or k.endswith("_hidden")
    for wanted in (size, lambda k: k == "lr" or k.endswith("_lr")):
        for key in filter(wanted, cell.hparams):
            text = f"{key} {short_number(cell.hparams[key])}"
            yield key, (text, cell.sources[f"method.{key}"].brief)
    yield "n_updates", (f"{updates_of(cell)} updates", cell.sources["n_updates"].brief)
    batch = f"batch {cell.pipeline['batch_size']}"
    yield "batch_size", (batch, cell.sources["batch_size"].brief)


def say_differences(plan: "Plan", console: "Console") -> None:
    """Settings of the command line that are of some entries alone, and how the transforms and the view of a class
    without a yaml differ from the other entries'."""
    given = dict.fromkeys(k for c in plan.cells for k in c.overrides if k.startswith(_OF_ENTRIES))
    for key in given:
        without = [c.entry for c in plan.cells if key not in c.overrides]
        if without:
            print_wrapped(f"{key} is no setting of {', '.join(dict.fromkeys(without))}", console)
    around = {c.entry: {k: _in_brief(c, k) for k in ("transforms", "view")} for c in plan.cells}
    for entry in dict.fromkeys(c.entry for c in plan.cells if c.method == c.target):
        own = around[entry]
        others: dict[str, list[str]] = {}
        for rival, theirs in around.items():
            if words := ", ".join(f"{k} {v}" for k, v in theirs.items() if v != own[k]):
                others.setdefault(words, []).append(rival)
        if others or len(around) == 1:
            settings = ", ".join(f"{k} {v}" for k, v in own.items())
            rest = "".join(f"; {', '.join(names)}: {words}" for words, names in others.items())
            print_wrapped(f"{entry} has no yaml: {settings}{rest}", console)


def _in_brief(cell: "Cell", key: str) -> str:
    """ "[obs_norm]", "nstep(n=3)"."""
    if key == "transforms":
        return f"[{', '.join(cell.pipeline['transforms'])}]"
    view = dict(cell.pipeline["view"])
    return f"{view.pop('name')}({', '.join(f'{k}={v}' for k, v in view.items())})"


def updates_of(cell: "Cell") -> str:
    """ "1M", or "300k of 1M" where another number is published."""
    from offbench.results.captions import count

    published = cell.tuning.get("published_updates")
    own = count(cell.n_updates)
    return own if published in (None, cell.n_updates) else f"{own} of {count(published)}"


def say_which(plan: "Plan", console: "Console") -> None:
    """The full id of a short one, where other datasets have similar names."""
    from offbench.tasks.registry import alias_note

    if plan.settings.task and (words := alias_note(plan.settings.task)):
        console.print(words)
