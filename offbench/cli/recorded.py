"""The recorded runs of a plan and those comparable with them, and where their board is written."""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.errors import UserError, writing
from offbench.io import atomic_write, slug

if TYPE_CHECKING:
    import pandas as pd

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.results.selection import Wanted
    from offbench.results.store import Store
    from offbench.tasks.task import Task


@dataclass(frozen=True)
class Recorded:
    """The recorded runs that count on the board of a plan."""

    plan: "Plan"
    store: "Store"
    # lines of `Store.runs()`
    runs: "pd.DataFrame"
    # number of runs of these tasks that were evaluated in another environment or by other rules
    left_out: int
    # `Store.episodes()` of the runs
    episodes: "pd.DataFrame"

    @property
    def ids(self) -> list[str]:
        return list(self.runs["run_id"])

    @property
    def tasks(self) -> "dict[str, Task]":
        """Task id -> task, of the plan."""
        return {cell.task.id: cell.task for cell in self.plan.cells}

    def kept(self) -> dict[str, Path]:
        """Run id -> its kept policy, of the runs that ended well and keep one, by seed."""
        whole = self.runs[self.runs["status"] == "ok"].sort_values("seed", kind="stable")
        records = self.store.read_all(run_id=self.ids)
        files = {i: records[i].path.with_suffix(".safetensors") for i in whole["run_id"]}
        return {run_id: path for run_id, path in files.items() if path.exists()}


def recorded_runs(plan: "Plan", store: "Store") -> Recorded:
    """The runs in a store that count for a plan; there may be none. Damaged ones are left out, with a warning."""
    from offbench.results.selection import readable, select

    recorded = store.runs(suite=plan.name)
    runs, left_out = select(recorded, wanted_of(_with_possible_seeds(plan), recorded))
    rows = store.episodes(suite=plan.name, run_id=list(runs["run_id"]))
    return Recorded(plan, store, readable(runs, rows), left_out, rows)


def _with_possible_seeds(plan: "Plan") -> "Plan":
    """The plan; with bench.until=decided, with all seeds that its runs may have."""
    if plan.settings.bench.until == "seeds":
        return plan
    seeds = plan.settings.possible_seeds
    return replace(plan, cells=tuple(replace(cell, seeds=seeds) for cell in plan.cells))


def in_order(table: "pd.DataFrame", plan: "Plan", column: str) -> "pd.DataFrame":
    """Tasks in the order of the suite, entries by name, then by `column`."""
    place = {task: i for i, task in enumerate(plan.tasks)}
    key = lambda x: x.map(place) if x.name == "task" else x
    return table.sort_values(["task", "entry", column], key=key, ignore_index=True)


def label_of(name: str, recorded: Container[str]) -> str:
    """The label of an entry; `mymodule.MyMethod`, as it is written in `methods=`, is recorded as `MyMethod`."""
    label = re.sub(r"^(?:[^\W\d]\w*\.)+", "", name)
    return label if name not in recorded and label in recorded else name


def read_recorded(args: Sequence[str]) -> Recorded:
    """The recorded runs that count for the plan of a command line. Raises UserError where there are none."""
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    found = recorded_runs(wanted, Store(Path(wanted.settings.results)))
    if found.runs.empty:
        raise nothing_recorded(wanted)
    return found


def read_plan(args: Sequence[str]) -> "Plan":
    """The plan of a command line: that of `offbench run` where it names one method, else that of `offbench bench`."""
    from offbench.bench.plan import plan

    return plan(args, bench=not any(a.startswith(("method=", "method._target_=")) for a in args))


def nothing_recorded(plan: "Plan") -> UserError:
    """What to say where no record is that of a plan: how many there are of other settings or versions."""
    from offbench.results.store import Store

    recorded, others = Store(Path(plan.settings.results)).runs(suite=plan.name), ""
    if len(recorded):
        versions = ", ".join(f"v{n}" for n in sorted(set(recorded["suite_version"])))
        others = (
            f" ({len(recorded)} runs of {plan.name} {versions} are there, with other settings or seeds"
            f" than v{plan.suite['version']} has)"
        )
    return UserError(
        f"nothing recorded for {plan.name} with these settings in {plan.settings.results}{others};"
        " run: offbench bench"
    )


def wanted_of(plan: "Plan", recorded: "pd.DataFrame") -> "Wanted":
    """What the board of a plan asks for; of a task with several cells, by the protocol of the last.

    Args:
        recorded: lines of `Store.runs()`. Where the data of a task are not here, they say which data its
            runs were trained on, if all say the same.
    """
    from offbench.results.record import columns
    from offbench.results.selection import ESTIMATED, Budget, Protocol, Wanted

    def protocol(cell: "Cell") -> Protocol:
        published = cell.tuning.get
        return Protocol(
            dataset_sha256=cell.task.sha256,
            environment=columns(cell.environment, "env."),
            updates=Budget(cell.n_updates, published("published_updates")),
            episodes=Budget(cell.protocol["episodes"], published("published_episodes")),
            seeds=cell.seeds,
            validation=cell.protocol.get("validation"),
            estimated={
                name: cell.protocol.get(name.removeprefix("protocol.")) for name in ESTIMATED
            },
        )

    cells = [on_recorded_data(cell, recorded) for cell in plan.cells]
    names = set(recorded["run_id"])
    return Wanted(
        tasks={cell.task.id: protocol(cell) for cell in cells},
        run_ids={
            next(iter(run.names_among(names)), run.run_id) for cell in cells for run in cell.runs()
        },
        entries={cell.entry for cell in cells},
    )


def on_recorded_data(cell: "Cell", recorded: "pd.DataFrame") -> "Cell":
    """A cell; where its data are not here, with the checksum of the data that all its records were trained on."""
    if cell.task.sha256 is not None or recorded.empty:
        return cell
    found = recorded.loc[recorded["task"] == cell.task.id, "dataset_sha256"].unique()
    if len(found) != 1:
        return cell
    return replace(cell, task=replace(cell.task, sha256=str(found[0])))


def write_beside_board(plan: "Plan", args: Sequence[str], ending: str, text: str) -> Path:
    """Writes `SUITE-<ending>` where the board of a plan is; returns its path. UserError where it cannot be written."""
    path = board_folder(plan) / f"{board_name(plan, args)}-{ending}"
    with writing(path):
        atomic_write(path, text.encode())
    return path


def board_folder(plan: "Plan") -> Path:
    return Path(plan.settings.results) / "board"


def board_name(plan: "Plan", args: Sequence[str] | None = None) -> str:
    """`SUITE` for a suite as it is defined; `SUITE-part`, with which other methods, seeds or settings do not
    replace its board, and `-decided` behind either where a rule adds seeds."""
    if args is not None and {arg.partition("=")[0] for arg in args} <= {"suite", "results"}:
        # what the suite plans, without planning it once more
        return slug(plan.name)
    from offbench.bench.plan import plan as read
    from offbench.results.identity import unmonitored

    what = lambda c: (
        c.entry,
        c.task.id,
        c.target,
        c.hparams,
        c.pipeline,
        c.n_updates,
        c.seeds,
        unmonitored(c.protocol),
    )
    whole = plan.tasks == plan.suite["tasks"] and plan.settings.loader == "offbench"
    # a method of each entry; planning the suite once more takes long
    if not plan.suite.get("only"):
        whole = whole and len({c.entry for c in plan.cells}) == len(plan.suite["methods"])
    whole = whole and list(map(what, plan.cells)) == [
        what(c) for c in read([f"suite={plan.name}"], bench=True).cells
    ]
    rule = "-decided" if plan.settings.bench.until == "decided" else ""
    return slug(f"{plan.name}{'' if whole else '-part'}{rule}")
