"""`offbench compare`: is an entry better than its rivals, and where."""

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console
from offbench.cli.parser import Parser
from offbench.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from offbench.bench.plan import Plan
    from offbench.results.comparison import Comparison
    from offbench.results.selection import Wanted

FORMATS = ("text", "markdown", "csv", "json")
_DIFFERENCE = 5.0
# a setting, not an entry such as iql(expectile=0.9)
_SETTING = re.compile(r"[\w.@/~-]+=")


def add_compare_arguments(command: Parser) -> None:
    """The names, settings and options of the command."""
    command.add_argument(
        "names", nargs="*", metavar="ENTRY|KEY=VALUE", help="labels of the board; settings of board"
    )
    command.add_argument("--suite", metavar="NAME", help="whose records are compared: quick")
    command.add_argument(
        "--results",
        action="append",
        metavar="DIR",
        help="folder of the records; may be given several times",
    )
    command.add_argument(
        "--difference",
        metavar="POINTS",
        help=f"difference that is worth showing; default {_DIFFERENCE:g}",
    )
    command.add_argument("--format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))


def show_comparison(options: argparse.Namespace) -> int:
    """Prints how the first entry compares with the others."""
    names, settings, own = _read(options)
    kind = own.get("format", "text")
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    found = _compared(names, settings, own)
    if kind != "text":
        text = {"markdown": found.to_markdown, "csv": found.to_csv, "json": found.to_json}[kind]()
        print(text, end="")
        return 0
    from rich.text import Text

    console = make_console()
    for line, is_verdict in found.lines():
        console.print(Text(line, style="bold" if is_verdict else ""), soft_wrap=True)
    return 0


def _read(options: argparse.Namespace) -> tuple[list[str], list[str], dict[str, Any]]:
    """The entries, the settings of the plan, and those of this command."""
    from offbench.bench.hydra import parse_overrides

    words = list(options.names)
    names = [word for word in words if not _SETTING.match(word)]
    if not names:
        raise UserError("compare needs an entry: offbench compare ENTRY [RIVAL ...]")
    own: dict[str, Any] = {}
    settings = []
    for word in words:
        if not _SETTING.match(word):
            continue
        if word.partition("=")[0] in ("results", "difference", "format"):
            own |= parse_overrides([word])[0]
        else:
            settings.append(word)
    settings += [f"suite={options.suite}"] if options.suite else []
    given = {name: getattr(options, name) for name in ("results", "difference", "format")}
    own |= {name: value for name, value in given.items() if value is not None}
    return names, settings, own


def _compared(names: list[str], settings: list[str], own: dict[str, Any]) -> "Comparison":
    from offbench.bench.plan import plan
    from offbench.cli.recorded import label_of
    from offbench.results.compare import compare
    from offbench.results.folders import Folders
    from offbench.results.selection import readable, select

    difference = _number(own.get("difference", _DIFFERENCE))
    wanted = plan(settings, bench=True)
    folders = own.get("results", wanted.settings.results)
    store = Folders([str(f) for f in (folders if isinstance(folders, list) else [folders])])
    recorded = store.runs(wanted.name)
    if recorded.empty:
        raise UserError(
            f"nothing recorded for {wanted.name} in {store}; run: offbench bench suite={wanted.name}"
        )
    if not any(cell.protocol["episodes"] for cell in wanted.cells):
        raise UserError(
            f"{wanted.name}: without an environment, or with eval.by=fqe, there are no scores to compare; offbench board"
            " has what is recorded"
        )
    asked = _wanted(wanted, recorded, seeds=any(s.startswith("seeds=") for s in settings))
    runs, _ = select(recorded, asked)
    names = [label_of(name, set(recorded["entry"])) for name in names]
    for name in names:
        _refuse_absent(name, recorded, runs, asked, wanted)
    episodes = store.episodes(list(runs["run_id"]))
    runs = readable(runs, episodes)
    return compare(
        episodes,
        names[0],
        names[1:] or None,
        [task for task in wanted.tasks if task in set(runs["task"])],
        runs=runs,
        unscaled=wanted.unscaled,
        difference=difference,
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"difference={value!r} is not a number of points") from None


def _wanted(plan: "Plan", recorded: "pd.DataFrame", *, seeds: bool) -> "Wanted":
    """What the board of a plan asks for, with all recorded seeds unless `seeds` are given."""
    from offbench.cli.recorded import wanted_of

    if not seeds:
        every = tuple(sorted({int(seed) for seed in recorded["seed"]}))
        cells = tuple(replace(cell, seeds=every) for cell in plan.cells)
        plan = replace(plan, cells=cells)
    return wanted_of(plan, recorded)


def _refuse_absent(
    name: str, recorded: "pd.DataFrame", runs: "pd.DataFrame", asked: "Wanted", plan: "Plan"
) -> None:
    """UserError for an entry that has no runs, or has others than are compared; says how to get them."""
    own = recorded[(recorded["entry"] == name) & recorded["task"].isin(list(asked.tasks))]
    if own.empty:
        error = unknown("entry", name, runs["entry"])
        raise UserError(f"{error}; to run one: {_command(name, plan.name)}")
    chosen = runs[runs["entry"] == name]
    for task, lines in own.groupby("task", sort=False):
        if task in set(chosen["task"]):
            continue
        row, protocol = lines.iloc[0], asked.tasks[str(task)]
        expected = {
            "dataset_sha256": protocol.dataset_sha256,
            "n_updates": protocol.updates.planned,
            "protocol.episodes": protocol.episodes.planned,
            "protocol.validation": protocol.validation,
            **protocol.environment,
        }
        raise UserError(f"{name!r} on {task} is not compared: {_reason(row, expected, plan)}")


def _command(name: str, suite: str) -> str:
    """What runs an entry that is not recorded; of a misspelt one, how entries are run."""
    from offbench.bench.hydra import options

    method = re.split(r"[+(]", name)[0]
    plain = re.fullmatch(r"[\w.+]+", name) and (method in options("method") or "." in method)
    return f"offbench bench suite={suite} methods=[{name if plain else 'NAME'}]"


def _reason(row: "pd.Series", expected: dict[str, Any], plan: "Plan") -> str:
    """In what a record differs from those that are compared."""
    from offbench.results.captions import spelt

    for name, value in expected.items():
        found = row.get(name)
        if found != value and not spelt(found) == spelt(value) == "unset":
            key = {"protocol.episodes": "eval.episodes"}.get(name, name)
            hint = f"; to compare those give {key}={spelt(found)}" if key in _GIVEN else ""
            return f"its runs have {name} {spelt(found)}, those of the board {spelt(value)}{hint}"
    return (
        f"its runs have other settings or seeds than {plan.name} has now; give them to this command,"
        " or give those runs a label"
    )


_GIVEN = ("n_updates", "eval.episodes")
