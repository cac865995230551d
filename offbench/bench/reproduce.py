"""Plans of published tables: the cells of a source of published scores, as far as they can be run here.

A cell has the number of seeds and updates of its source where they are known, our preset of that source where
there is one, and for the rest the usual hyper-parameters and the protocol of the task's suite. `Reproduction` says what was assumed and what cannot be run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import pandas as pd

from offbench.bench.cells import Cell
from offbench.bench.hydra import AROUND, options, parse_overrides
from offbench.bench.plan import Plan, plan
from offbench.bench.presets import has_variant
from offbench.bench.studies import studies
from offbench.bench.suites import home_of
from offbench.errors import UserError, listed, unknown
from offbench.results.published.scores import (
    Source,
    is_file,
    published_scores,
    published_sources,
    updates_of,
)

# the last word of a table's name -> patterns of its tasks
FAMILIES: Mapping[str, Sequence[str]] = {
    "gym": ("d4rl/halfcheetah-*", "d4rl/hopper-*", "d4rl/walker2d-*", "d4rl/ant-*"),
    "antmaze": ("d4rl/antmaze-*",),
    "maze2d": ("d4rl/maze2d-*",),
    "adroit": ("d4rl/pen-*", "d4rl/door-*", "d4rl/hammer-*", "d4rl/relocate-*"),
    "kitchen": ("d4rl/kitchen-*",),
    "mixed": ("mixed/*",),
    "ogbench": ("ogbench/*",),
}

# settings that the command itself sets, by task and method
_CHOOSE = ("task", "methods")

_TAKEN = ("method", "suite", "label", "bench.until")

# entry and task of a published cell
Key = tuple[str, str]


@dataclass(kw_only=True)
class Reproduction:
    """A published table, planned."""

    name: str
    source: Source
    # rows of `published_scores`: all of the table, and those with a cell below
    table: pd.DataFrame
    rows: pd.DataFrame
    # one per suite
    plans: list[Plan] = field(default_factory=list)
    cells: dict[Key, Cell] = field(default_factory=dict)
    # why -> what cannot be run
    impossible: dict[str, list[str]] = field(default_factory=dict)
    # what the source does not say, with what is used here
    assumed: list[str] = field(default_factory=list)
    # settings of the command line that change how runs are trained or evaluated
    changed: list[str] = field(default_factory=list)


def table_names() -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and published rows of each table with a method that is here, but for those of best evaluations."""
    scores, here = published_scores(None), set(options("method"))
    for name, source in published_sources().items():
        mine = scores[scores["source"] == name]
        ours = mine["entry"].str.partition("+")[0].isin(here) & ~mine["task"].str.contains(
            "*", regex=False
        )
        if source.checkpoint == "best" or not ours.any():
            continue
        families = [f for f in FAMILIES if (ours & _of_family(mine, f)).any()]
        yield name, mine
        yield from ((alias, mine) for alias in source.tables)
        if len(families) > 1:
            yield from ((f"{name}-{f}", mine[_of_family(mine, f)]) for f in families)


def _of_family(rows: pd.DataFrame, family: str) -> pd.Series:
    tasks = [t for t in rows["task"].unique() if any(fnmatch(t, p) for p in FAMILIES[family])]
    return rows["task"].isin(tasks)


def find_table(name: str) -> tuple[Source, pd.DataFrame]:
    """The source and the published rows of a table: SOURCE, SOURCE-FAMILY, another name of it, or a csv file."""
    sources = published_sources()
    if is_file(name):
        rows = published_scores(None, [name])
        return Source(name=name, citation=name, spread="std"), rows
    by_alias = {alias: source for source in sources.values() for alias in source.tables}
    stem, _, family = name.rpartition("-")
    source = sources.get(name) or by_alias.get(name)
    rows = published_scores(None)
    if source is None and stem in sources and family in FAMILIES:
        source = sources[stem]
        rows = rows[_of_family(rows, family)]
    rows = rows[rows["source"] == source.name] if source else rows.iloc[:0]
    if source is None or rows.empty:
        raise unknown("table or study", name, [*(known for known, _ in table_names()), *studies()])
    return source, rows.reset_index(drop=True)


def reproduction(name: str, overrides: Sequence[str]) -> Reproduction:
    """Plans every cell of a published table that can be run here.

    Args:
        name: as of `find_table`.
        overrides: settings of a bench; `methods=[...]` and `task=` choose among the table's cells, any other
            one wins over the source's protocol and is said.

    Raises:
        UserError: there is no such table, it has no cell that can be run, or a setting is wrong.
    """
    source, table = find_table(name)
    if source.checkpoint == "best":
        raise UserError(
            f"{name}: its scores are each run's best evaluation, an oracle's choice; offbench scores the last"
        )
    chosen = {key: value for key, _, value in (o.partition("=") for o in overrides)}
    if taken := [key for key in chosen if key in _TAKEN]:
        raise UserError(
            f"{taken[0]}= is set by the table; methods=[...] and task= choose among its cells"
        )
    table = _chosen(table, chosen, name)
    # task by task, each in the order of the source
    table["task"] = pd.Categorical(table["task"], list(dict.fromkeys(table["task"])))
    table = table.sort_values("task", kind="stable", ignore_index=True).astype({"task": str})
    result = Reproduction(name=name, source=source, table=table, rows=table)
    given = [o for o in overrides if o.partition("=")[0] not in _CHOOSE]
    if sweeps := [o for o in given if len(parse_overrides([o])) > 1]:
        raise UserError(f"{' '.join(sweeps)}: a sweep has several cells for one published score")
    result.changed = [o for o in given if _matters(o.partition("=")[0])]
    for task in dict.fromkeys(table["task"]):
        _plan_task(result, table[table["task"] == task], given)
    if not result.cells:
        why = "; ".join(reasons(result))
        raise UserError(f"{name}: none of its cells can be run here ({why})")
    result.rows = table[[key in result.cells for key in zip(table["entry"], table["task"])]]
    _assume(result)
    return result


def reasons(result: Reproduction) -> list[str]:
    """Why some cells cannot be run, a line each."""
    return [f"{listed(what, 6)}: {why}" for why, what in result.impossible.items()]


def _chosen(table: pd.DataFrame, chosen: Mapping[str, str], name: str) -> pd.DataFrame:
    """The rows that `methods=[...]` and `task=` choose."""
    for key, column in (("methods", "entry"), ("task", "task")):
        for wanted in filter(None, chosen.get(key, "").strip("[]").split(",")):
            if wanted.strip() not in set(table[column]):
                raise unknown(f"{column} of {name}", wanted.strip(), table[column].unique())
        if chosen.get(key):
            names = [x.strip() for x in chosen[key].strip("[]").split(",")]
            table = table[table[column].isin(names)]
    return table.reset_index(drop=True)


def _matters(key: str) -> bool:
    """Whether a setting is part of how a run is trained or evaluated."""
    groups = ("method", *AROUND, "transforms", "eval")
    whole = ("seeds", "n_updates", "batch_size", "gamma", "preset", "precision", "loader")
    return key.split(".")[0] in groups or key in whole


def _plan_task(result: Reproduction, rows: pd.DataFrame, given: Sequence[str]) -> None:
    """Adds the cells of one task, and why others cannot be."""
    task, here = rows["task"].iloc[0], set(options("method"))
    if "*" in task:
        result.impossible.setdefault(
            "a mean over five tasks, of which no single one is known", []
        ).append(task)
        return
    for entry, of_entry in rows.groupby("entry", sort=False):
        if _method(entry) not in here:
            what = result.impossible.setdefault("no such method here", [])
            what += [m for m in of_entry["method"].unique() if m not in what]
            continue
        args = _protocol(result.source, of_entry.iloc[0])
        try:
            found = _one_cell(args, given)
        except UserError as error:
            # a mistake in what was given is the user's, whatever else is not the table's
            if given and _is_planned(args):
                raise
            result.impossible.setdefault(str(error), []).append(f"{entry} on {task}")
            continue
        updates = updates_of(of_entry["steps"].iloc[0])
        if updates and found.cells[0].n_updates != updates and not _gives(given, "n_updates"):
            found = _one_cell([*args, f"n_updates={updates}"], given)
        _add(result, (entry, task), found)


def _method(entry: str) -> str:
    """Of an entry such as `iql+aw` or `dt(preset=corl)`."""
    return re.split(r"[+(]", entry)[0]


def _protocol(source: Source, row: Any) -> list[str]:
    """The settings under which one published cell is planned, but for its number of updates."""
    name = _method(row["entry"])
    args = [f"suite={home_of(row['task'])}", f"task={row['task']}", f"methods=[{row['entry']}]"]
    if name in source.settings and has_variant(name, row["task"], source.preset):
        args.append(f"preset={source.preset}")
    if pd.notna(row["seeds"]):
        args.append(f"seeds=[{','.join(map(str, range(int(row['seeds']))))}]")
    return args


def _one_cell(args: Sequence[str], given: Sequence[str]) -> Plan:
    found = plan([*args, *given], bench=True)
    if len(found.cells) != 1:
        raise UserError(f"{' '.join(given)}: a sweep has several cells for one published score")
    return found


def _is_planned(args: Sequence[str]) -> bool:
    try:
        plan(args, bench=True)
    except UserError:
        return False
    return True


def _gives(given: Sequence[str], key: str) -> bool:
    return any(o.partition("=")[0] == key for o in given)


def _add(result: Reproduction, key: Key, found: Plan) -> None:
    result.cells[key] = found.cells[0]
    for i, other in enumerate(result.plans):
        if other.name == found.name:
            result.plans[i] = replace(other, cells=(*other.cells, *found.cells))
            return
    result.plans.append(found)


def _assume(result: Reproduction) -> None:
    """Says what the source leaves open, with what is used here."""
    changed = {o.partition("=")[0] for o in result.changed}
    rows, cells = result.rows, list(result.cells.values())
    spelt = lambda numbers: "/".join(f"{n:,}" for n in sorted(set(numbers)))
    if rows["seeds"].isna().any() and "seeds" not in changed:
        seeds = spelt(len(c.seeds) for c in cells)
        result.assumed.append(f"its number of seeds is not known: {seeds}, of the suite")
    unclear = rows[[updates_of(steps) is None for steps in rows["steps"]]]
    if len(unclear) and "n_updates" not in changed:
        used = {result.cells[k].n_updates for k in zip(unclear["entry"], unclear["task"])}
        result.assumed.append(f"updates of {len(unclear)} cells are not known: {spelt(used)}")
    methods = dict.fromkeys(map(_method, rows["entry"]))
    if names := ", ".join(name for name in methods if name not in result.source.settings):
        result.assumed.append(
            f"hyper-parameters of {names}: the usual ones here; its own may differ"
        )
    if "eval.episodes" not in changed:
        episodes = spelt(c.protocol["episodes"] for c in cells)
        result.assumed.append(f"test episodes per seed, of the suites and methods here: {episodes}")
