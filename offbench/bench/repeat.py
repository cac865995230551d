"""A recorded run trained once more in the stack in which it was trained, and compared with its record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

import pandas as pd

from offbench.bench.cells import Cell
from offbench.bench.hydra import AROUND, read_option
from offbench.bench.settings import Settings, typed_transforms
from offbench.bench.stacks import Pack, fetched
from offbench.bench.targets import option_of, parameters
from offbench.bench.trust import check_target
from offbench.bench.values import coerce
from offbench.errors import UserError
from offbench.results.identity import Written, transforms_in_order
from offbench.results.spec import OUTSIDE, Provenance, RunSpec
from offbench.results.store import Record, Store
from offbench.tasks.locate import load_task
from offbench.tasks.task import Loader, Task
from offbench.training.engine import Backend


@dataclass(frozen=True)
class Rows:
    """What is compared of a run: its episodes (test and monitor), its curves, and how it came to be."""

    episodes: pd.DataFrame
    curves: pd.DataFrame | None
    provenance: Provenance

    @classmethod
    def read(cls, store: Store, run_id: str) -> "Rows":
        """The rows of a whole record."""
        record = store.read(run_id)
        where = {"run_id": run_id, "suite": record.spec.suite, "task": record.spec.task}
        return cls(store.episodes(**where), record.metrics, record.provenance)


def stack_of(store: Store, record: Record, *, alone: bool = False) -> Pack:
    """The stack in which a recorded run was trained, from the records of its runs; with `alone`, of itself.

    Raises:
        UserError: the stack is not known, a record of it is missing, or the task or method is another now.
    """
    run_id, stack = record.spec.run_id, list(record.provenance.stack)
    if record.spec.method == OUTSIDE:
        raise UserError(f"run {run_id} was trained elsewhere: nothing here trains it")
    if alone:
        members = [record]
    elif not stack:
        raise UserError(
            f"run {run_id} was recorded before records named the runs of their stack (of"
            f" {record.provenance.pack}); --alone trains it by itself, where rounding differs"
        )
    else:
        where = {"suite": record.spec.suite, "task": record.spec.task}
        found = store.read_all(run_id=stack, **where)
        if absent := [name for name in stack if name not in found]:
            raise UserError(
                f"run {run_id} was trained in a stack of {len(stack)}, and {absent[0]} of it has no record in"
                f" {store.root}; --alone trains it by itself, where rounding differs"
            )
        members = [found[name] for name in stack]
    kind = lambda member: (member.provenance.entry, member.spec.config_id)
    cells = [cell_of(list(part)) for _, part in groupby(members, kind)]
    pack = Pack(fetched(cells))
    for (_, run), member in zip(pack.members, members, strict=True):
        _check_same(run, member.spec)
    return pack


def settings_of(record: Record, results: str) -> Settings:
    """The settings with which a run was trained that are no part of it: device, engine, precision."""
    facts = record.provenance
    # "eager (compile failed: ...)"
    engine = facts.backend.partition(" ")[0]
    if engine not in get_args(Backend):
        engine = "auto"
    return Settings(
        device="cpu" if facts.device.startswith("cpu") else "cuda",
        engine=engine,  # type: ignore[arg-type]
        precision=facts.precision,  # type: ignore[arg-type]
        data=facts.overrides.get("data", "device"),
        jobs=1,
        keep="none",
        checkpoint_minutes=0.0,
        results=results,
    )


def cell_of(members: Sequence[Record]) -> Cell:
    """The cell of runs that differ in their seeds."""
    first = members[0]
    spec, facts = first.spec, first.provenance
    target = _target(spec)
    return Cell(
        entry=facts.entry,
        suite=spec.suite,
        suite_version=spec.suite_version,
        task=_task(spec),
        method=spec.method,
        target=target,
        hparams=Written(_typed(target, spec.hparams)),
        pipeline=Written(_pipeline(spec.pipeline, f"run {spec.run_id}")),
        seeds=tuple(member.spec.seed for member in members),
        n_updates=spec.n_updates,
        protocol=Written(spec.protocol),
        tuning=facts.tuning,
        overrides=facts.overrides,
        sources={},
    )


def _target(spec: RunSpec) -> str:
    """The dotted path of the method's class."""
    if "." in spec.method:
        check_target(spec.method, f"run {spec.run_id}")
        return spec.method
    return str(read_option("method", spec.method)["method"]["_target_"])


def _task(spec: RunSpec) -> Task:
    # the environment of own data says how a return is scored
    if "score" in spec.env:
        raise UserError(
            f"run {spec.run_id} was trained on your own data ({spec.task}), and its record does not say where"
            " they lie; the report has the command that trains it again"
        )
    loader = spec.dataset.partition(", read by ")[2] or "offbench"
    return load_task(spec.task, loader=coerce(loader, Loader, "loader"))


def _pipeline(recorded: Mapping[str, Any], where: str) -> dict[str, Any]:
    pipeline = dict(recorded)
    for group in AROUND:
        if option := dict(pipeline.get(group, {})):
            name = option.pop("name")
            if "." in str(name):
                check_target(name, where)
            function = option_of(group, name)
            typed = option if function is None else _typed(function, option)
            pipeline[group] = {"name": name, **typed}
    pipeline["transforms"] = typed_transforms(transforms_in_order(pipeline))
    return pipeline


def _typed(target: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded values in the types of a class or function: lists as tuples."""
    hints = parameters(target)
    for name in values:
        if name not in hints:
            raise UserError(f"{target} has no setting {name} any more, which the record has")
    return {name: coerce(value, hints[name][0], name) for name, value in values.items()}


def _check_same(run: RunSpec, recorded: RunSpec) -> None:
    if run.run_id in recorded.recorded_ids:
        return
    now, then = run.as_dict(), recorded.as_dict()
    changed = [
        f"{name} {then[name]!r} is {now[name]!r} now" for name in now if now[name] != then[name]
    ]
    raise UserError(
        f"run {recorded.run_id} cannot be repeated with what is here: {'; '.join(changed)}"
    )


# --- comparison -----------------------------------------------------------------------------


def differences(recorded: Rows, again: Rows) -> list[str]:
    """What differs between two executions of a run, in words; empty where all is equal to the last bit."""
    found = _of_episodes(recorded.episodes, again.episodes)
    curves, others = recorded.curves, again.curves
    if curves is None or others is None:
        return found + (["one has curves and the other none"] if curves is not others else [])
    for name in dict.fromkeys([*curves, *others]):
        if name not in curves or name not in others or len(curves) != len(others):
            found.append(
                f"curve {name}: {_n(curves, name)} points recorded, {_n(others, name)} now"
            )
            continue
        pairs = list(zip(curves["update"], _plain(curves[name]), _plain(others[name])))
        if other := [pair for pair in pairs if pair[1] != pair[2]]:
            update, then, now = other[0]
            found.append(
                f"curve {name}: {len(other)} of {len(pairs)} points differ, the first at update {update:.0f}:"
                f" {then} recorded, {now} now"
            )
    return found


def _n(curves: pd.DataFrame, name: str) -> int:
    return len(curves) if name in curves else 0


def _of_episodes(recorded: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    found = []
    for stream in sorted({*recorded["stream"], *again["stream"]}):
        then, now = (
            frame[frame["stream"] == stream].reset_index(drop=True) for frame in (recorded, again)
        )
        if len(then) != len(now):
            found.append(f"{stream}: {len(then)} episodes recorded, {len(now)} now")
            continue
        # what older records lack
        names = [name for name in then if name in now and not then[name].isna().all()]
        columns = {name: (_plain(then[name]), _plain(now[name])) for name in names}
        rows = [i for i in range(len(then)) if any(a[i] != b[i] for a, b in columns.values())]
        if rows:
            i = rows[0]
            name = next(
                name
                for name in ("score", *names)
                if name in columns and columns[name][0][i] != columns[name][1][i]
            )
            found.append(
                f"{stream}: {len(rows)} of {len(then)} episodes differ, the first at update"
                f" {then['update'][i]}, episode {then['episode'][i]}: {name} {columns[name][0][i]} recorded,"
                f" {columns[name][1][i]} now"
            )
    return found


def _plain(column: pd.Series) -> list[Any]:
    """The values of a column as Python compares them; not known or not a number is None."""
    values = [list(x) if hasattr(x, "__len__") and not isinstance(x, str) else x for x in column]
    return [None if not isinstance(x, list) and pd.isna(x) else x for x in values]


def changes_around(recorded: Provenance, again: Provenance) -> list[str]:
    """What differs in how two executions came to be, and can change numbers."""
    then, now = recorded.as_dict(), again.as_dict()
    names = ("commit", "dirty", "device", "backend", "precision", "versions", "host")
    flat = [
        {
            (name if key is None else key): value
            for name in names
            for key, value in (
                facts[name].items() if isinstance(facts[name], dict) else [(None, facts[name])]
            )
        }
        for facts in (then, now)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{key}: {flat[0].get(key, 'not known')} recorded, {flat[1].get(key, 'none')} now"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]
