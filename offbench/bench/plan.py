"""Plans the cells of a command line.

Layers of a cell's settings, later ones win:

    the class's own defaults < conf/method/*.yaml < the suite's protocol < the method's published budget
    < the method's preset for the task < the suite's `overrides` < the command line

Where no suite is named, the home suite of the task is used: the toy settings of `quick` reach no published
task unless `suite=quick` is given.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from offbench.bench.cells import Cell
from offbench.bench.entry import Method, expand_sweeps, read_entry
from offbench.bench.hydra import AROUND, GROUPS, options, parse_overrides, read_option
from offbench.bench.layers import check_lists
from offbench.bench.points import Point, numbers_of, plan_point
from offbench.bench.presets import VARIANTS, methods_with_variant
from offbench.bench.settings import Settings
from offbench.bench.sources import Layer
from offbench.bench.suites import SuiteTask, checked_task_id, home_of, suite_task
from offbench.bench.trust import check_target
from offbench.bench.values import coerce
from offbench.errors import UserError, unknown
from offbench.tasks.locate import load_task
from offbench.tasks.task import Loader, Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells and settings of a command line."""

    cells: tuple[Cell, ...]
    settings: Settings
    suite: Mapping[str, Any]
    # whether the command line named the suite
    named: bool = True

    @property
    def tasks(self) -> list[str]:
        """Task ids, each once."""
        return list(dict.fromkeys(cell.task.id for cell in self.cells))

    @property
    def unscaled(self) -> set[str]:
        """Tasks whose score is a plain return."""
        return {cell.task.id for cell in self.cells if not cell.task.scaled}

    @property
    def name(self) -> str:
        """Id of the suite."""
        return self.suite["id"]


@dataclass
class Known:
    """What the points of a command line have in common, read once."""

    points: dict[str, Point] = field(default_factory=dict)
    entries: dict[str, Method] = field(default_factory=dict)
    # entries with settings, of the points planned so far, of which a swept setting was left out
    reduced: set[str] = field(default_factory=set)
    tasks: dict[tuple[str, str, str], SuiteTask] = field(default_factory=dict)

    def find_task(self, name: str, loader: Loader, suite: str) -> SuiteTask:
        """The task in the suite; data folders are searched once per task."""
        key = (checked_task_id(name), loader, suite)
        if key not in self.tasks:
            task = load_task(key[0], loader=loader)
            task.check_trainable()
            self.tasks[key] = suite_task(task, suite)
        return self.tasks[key]

    def entry(self, entry: str | None, choices: Mapping, given: Mapping) -> Method:
        """The method of an entry, not to be changed."""
        # what an entry depends on, beside its name
        own = {k: v for k, v in given.items() if k.startswith("view.") or k == "method._target_"}
        key = str((entry, choices, own))
        if key not in self.entries:
            self.entries[key] = read_entry(entry, choices, given)
        return self.entries[key]


def plan(overrides: Sequence[str], *, bench: bool) -> Plan:
    """The cells of a command line.

    With `bench`, the methods are those of the suite unless `methods=[...]` or `method=` is given;
    without, `method=` must be given. Raises UserError for unknown, mistyped or impossible settings.
    """
    points = parse_overrides(overrides)
    check_lists(points)
    swept = {k for p in points for k, v in p.items() if v != points[0][k] and k != "preset"}
    # all tasks of a sweep get the same label
    if "task" in swept:
        swept |= points[0].keys()
    known = Known()
    made = [_plan_point(point, swept, known, bench=bench) for point in points]
    plans = [p for p in made if p is not None]
    cells = tuple(cell for p in plans for cell in p.cells)
    _check_folder(plans[0].settings.results)
    if not bench and plans[0].settings.bench.until == "decided":
        raise UserError("bench.until=decided compares entries: use offbench bench methods=[...]")
    if len(names := {p.name for p in plans}) > 1:
        raise UserError(
            f"one board, one suite, and these are of {', '.join(sorted(names))}: name one with suite="
        )
    _check_asked_once(cells)
    return replace(plans[0], cells=cells)


def _check_asked_once(cells: Sequence[Cell]) -> None:
    """Raises UserError where two cells of a task have one label, or are the same runs."""
    labelled: dict[tuple[str, str], Cell] = {}
    named: dict[str, Cell] = {}
    for cell in cells:
        on = f"on {cell.task.id}"
        (run_id,) = cell.varied(seeds=cell.seeds[:1]).run_ids()
        same = named.setdefault(run_id, cell)
        if same is not cell and same.entry == cell.entry:
            raise UserError(f"{cell.entry} {on} is asked for twice: leave one out")
        if same is not cell:
            raise UserError(
                f"{same.entry} and {cell.entry} {on} are the same runs under two names: leave one out"
            )
        first = labelled.setdefault((cell.entry, cell.task.id), cell)
        if first is not cell:
            raise UserError(
                f"{cell.entry} {on} is asked for {_twice(first, cell)}: leave one out, or give each a command"
                " and a label= of its own"
            )


def _twice(one: Cell, other: Cell) -> str:
    """In which two settings, the first ones of the command line that differ."""
    for key, value in one.overrides.items():
        if key in other.overrides and other.overrides[key] != value:
            return f"with {key}={value} and {key}={other.overrides[key]} under one label"
    return "as the label of several entries"


def _check_folder(results: str) -> None:
    """Raises UserError where a file has the name of the results folder or of one above it."""
    if not results.strip():
        raise UserError("results= names no folder; without it, records are written to results/")
    folder = Path(results)
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise UserError(f"results={results}: {path} is a file, and results are a folder")
            return


def _plan_point(
    given: dict[str, Any], swept: Set[str], known: Known, *, bench: bool
) -> Plan | None:
    """The cells of one point of a sweep, None where earlier points have them; `swept` settings are always named
    in labels."""
    choices = {g: given.pop(g) for g in GROUPS if g in given}
    for group, name in choices.items():
        if name == "":
            raise UserError(f"{group}= names nothing: {', '.join(options(group)[:12])}, ...")
        if name is not None and not isinstance(name, str):
            raise UserError(
                f"{group}={name!r} must be a name; {group} settings are written {group}.key=value"
            )
    if bad := [k for k in given if k.split(".")[0] == "suite"]:
        raise UserError(
            f"{bad[0]}: a published suite is not edited; set task, seeds, n_updates or eval instead"
        )

    if given.get("task", "-") in ("", [], {}):
        raise UserError("task= names no task; task=null, or nothing, for every task of the suite")
    own = {k.split(".", 1)[1]: given.pop(k) for k in list(given) if k.startswith("task.")}
    if own:
        given["task"] = _own_task(own, given.get("task"))
    named = choices.get("suite")
    suite = read_option(
        "suite", named or (home_of(given["task"]) if given.get("task") else "quick")
    )
    if not (given.get("task") or suite["tasks"]):
        raise UserError(f"suite={suite['id']} has no tasks of its own: name one, or task.data=PATH")
    entries = _entries(choices, given, suite, bench=bench)
    pairs = [
        pair
        for entry, own in _with_own_settings(entries, choices, given, known)
        for pair in _entry_cells(entry, choices, own, suite, swept, known)
    ]
    if not pairs:
        return None
    settings = pairs[-1][1]
    if (wanted := settings.preset) in VARIANTS:
        own_row = lambda source: (source.layer, source.name) == (Layer.PRESET, wanted)
        if not any(own_row(source) for cell, _ in pairs for source in cell.sources.values()):
            raise UserError(
                f"preset={wanted}: no row of these methods and tasks has settings of its own; there are"
                f" such for {', '.join(methods_with_variant(wanted))}"
            )
    cells = tuple(cell for cell, _ in pairs)
    return Plan(cells=cells, settings=settings, suite=suite, named=named is not None)


def _entries(
    choices: Mapping, given: Mapping, suite: Mapping, *, bench: bool
) -> Sequence[str | None]:
    """The entries of a command line; None for a class of method._target_. UserError where there is none."""
    asked = coerce(given.get("methods"), tuple[str, ...] | None, "methods")
    if choices.get("method") or given.get("method._target_"):
        if asked:
            one = choices.get("method") or given["method._target_"]
            raise UserError(f"method={one} or methods=[{','.join(asked)}]: give one of them")
        return (choices.get("method"),)
    if not bench:
        if asked:
            raise UserError(
                f"methods=[{','.join(asked)}] are compared by offbench bench; offbench run takes one, method=NAME"
            )
        raise UserError(
            f"method= is missing: {', '.join(options('method'))}, or method._target_=package.Class"
        )
    if asked == ():
        raise UserError("methods=[] names no method; null, or nothing, for those of the suite")
    if not asked:
        for name in (str(entry).partition("+")[0] for entry in suite["methods"]):
            if "." in name:
                check_target(name, f"suite {suite['id']}")
    return asked or suite["methods"]


def _with_own_settings(
    entries: Sequence[str | None], choices: Mapping, given: Mapping, known: Known
) -> list[tuple[str | None, Mapping]]:
    """Each entry with what is given for it: `method.alpha` and `synthetic.every` are of the entries that have them.

    A setting that none has stays, and is refused. An entry that a sweep over settings of others would plan
    once more is left out.
    """
    groups = [k for k in given if k.split(".")[0] in ("method", *AROUND) and "." in k]
    if not groups:
        return [(entry, given) for entry in entries]
    has = [_hints(entry, choices, given, known) for entry in entries]
    some = {k for k in groups if any(k in own for own in has)}
    found, reduced = list[tuple[str | None, Mapping]](), set[str]()
    for entry, own in zip(entries, has, strict=True):
        left = {k: v for k, v in given.items() if k not in some or k in own}
        if len(left) < len(given):
            key = str((entry, choices, left))
            if key in known.reduced:
                continue
            reduced.add(key)
        found.append((entry, left))
    known.reduced |= reduced
    return found


def _hints(entry: str | None, choices: Mapping, given: Mapping, known: Known) -> Mapping[str, Any]:
    """The settings of an entry with their types."""
    return known.entry(entry, choices, _with_target(entry, given)).values.hints


def _with_target(entry: str | None, given: Mapping) -> Mapping:
    """What is given, with the class of an entry that is the dotted path of an outside one."""
    named = (entry or "").partition("+")[0]
    return {**given, "method._target_": named} if "." in named else given


def _own_task(own: Mapping[str, Any], task_id: Any) -> Task:
    """The task of the user's own data: `task.data=PATH task.env=HalfCheetah-v5`."""
    # its import is heavy
    from offbench.tasks.custom import own_task

    hints = {k: v for k, v in get_type_hints(own_task).items() if k not in ("return", "id")}
    for key in own:
        if key not in hints:
            raise unknown("setting", f"task.{key}", [f"task.{k}" for k in hints])
    if "data" not in own:
        raise UserError(
            "task.data=PATH is missing: a file in D4RL or OGBench layout or a Minari folder"
        )
    coerce(own["data"], str, "task.data")
    values = {k: coerce(v, hints[k], f"task.{k}") for k, v in own.items()}
    return own_task(values.pop("data"), id=coerce(task_id, str | None, "task"), **values)


def _entry_cells(
    entry: str | None,
    choices: Mapping,
    given: Mapping,
    suite: Mapping,
    swept: Set[str],
    known: Known,
) -> Iterator[tuple[Cell, Settings]]:
    """The cells of `iql+aw`, one per task, and of `mymodule.Class+nstep3`."""
    given = _with_target(entry, given)
    hints = known.entry(entry, choices, given).values.hints
    for point in expand_sweeps(given, hints):
        lists = {k for k in point if point[k] is not given[k]}
        numbers = numbers_of(point, swept | lists)
        rest = {k: numbers.index(k) if k in numbers else v for k, v in point.items()}
        kind = str((entry, choices, suite["id"], sorted(lists), numbers, rest))
        first = known.points.get(kind)
        if first is not None:
            yield from first.at(point, numbers)
            continue
        method = known.entry(entry, choices, point)
        made = plan_point(method, suite, point, swept | lists, known.find_task)
        if numbers and made.can_vary(numbers):
            known.points[kind] = made
        yield from made.cells
