"""Stacks of runs that one engine trains together.

A `Pack` is every seed of a cell, and of the cells that differ from it in numeric hyper-parameters only. It
runs in one process, and its records are written at its end.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from offbench.bench.cells import Cell
from offbench.results.spec import RunSpec
from offbench.results.store import Store
from offbench.tasks.locate import ready
from offbench.tasks.task import Task


@dataclass(frozen=True)
class Pack:
    """A stack of runs trained together: cells that differ in numeric hyper-parameters only."""

    cells: tuple[Cell, ...]

    @cached_property
    def size(self) -> int:
        """The number of its members."""
        return sum(len(cell.seeds) for cell in self.cells)

    def first(self, size: int) -> "Pack":
        """The stack of the first members of this one."""
        return self if size >= self.size else Pack(next(_split(self.cells, size)))

    @property
    def members(self) -> list[tuple[Cell, RunSpec]]:
        """(cell, run) of each member, in the order of the stack."""
        return [(cell, run) for cell in self.cells for run in cell.runs()]

    @property
    def runs(self) -> list[RunSpec]:
        """The run of each member."""
        return [run for _, run in self.members]

    @property
    def run_ids(self) -> list[str]:
        """The run id of each member."""
        return [run_id for cell in self.cells for run_id in cell.run_ids()]

    @property
    def seeds(self) -> list[int]:
        """The seed of each member."""
        return [seed for cell in self.cells for seed in cell.seeds]

    @property
    def values(self) -> list[dict[str, float]] | None:
        """The hyper-parameters that differ, one dict per member; None where none do."""
        first = self.cells[0].hparams
        names = [k for k in first if any(c.hparams[k] != first[k] for c in self.cells)]
        return (
            [{k: cell.hparams[k] for k in names} for cell in self.cells for _ in cell.seeds]
            if names
            else None
        )

    @property
    def title(self) -> str:
        """For progress bars: "iql on d4rl/hopper-medium-v2 x5"."""
        names = self.cells[0].entry if len(self.cells) == 1 else f"{len(self.cells)} entries"
        return f"{names} on {self.cells[0].task.id} x{self.size}"

    @property
    def name(self) -> str:
        """The name of its checkpoint: a hash of the run ids."""
        return hashlib.sha256("".join(self.run_ids).encode()).hexdigest()[:16]


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells with only the seeds that have no record yet; cells without any are dropped.

    Records are opened only where one has the name of a run.
    """
    cells = list(cells)
    begun = _begun(cells, store)
    runs = [run for cell, some in zip(cells, begun) if some for run in cell.runs()]
    absent = {run.run_id for run in store.missing(runs)} if runs else set()
    left = [
        replace(cell, seeds=tuple(r.seed for r in cell.runs() if r.run_id in absent))
        if some
        else cell
        for cell, some in zip(cells, begun)
    ]
    return [cell for cell in left if cell.seeds]


def _begun(cells: Sequence[Cell], store: Store) -> list[bool]:
    """Whether a record has the name of one of the runs, for each cell."""
    names = {path.stem for path in store.records()}
    found = lambda cell: not names.isdisjoint([*cell.run_ids(), *cell.earlier_ids()])
    return [bool(names) and found(cell) for cell in cells]


def pack(
    cells: Iterable[Cell], *, max_stack: int | Callable[[Cell], int | None] | None = None
) -> list[Pack]:
    """Groups cells into stacks of at most `max_stack` runs, a number or a function of a stack's first cell.

    The longest first, so that no process waits long for another at the end, and by task, so that one can
    reuse its environments for the next stack.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (-c.n_updates, c.task.id)):
        groups.setdefault(_group_of(cell), []).append(cell)
    limit = lambda cell: max_stack(cell) if callable(max_stack) else max_stack
    return [Pack(part) for group in groups.values() for part in _split(group, limit(group[0]))]


def whole_stacks(packs: Sequence[Pack], planned: Iterable[Cell], store: Store) -> list[Pack]:
    """The stacks, with those that were recorded in part as they were when they were trained.

    Numbers depend on the stack by rounding. Where a process died while it recorded a stack, the runs without
    a record are trained once more with the runs that have one, so that they come out as they would have.

    Args:
        planned: the cells of the plan, with all their seeds.
    """
    planned = list(planned)
    groups: dict[Any, list[Cell]] = {}
    for cell in planned:
        groups.setdefault(_group_of(cell), []).append(cell)
    # of most plans, none
    recorded = {_group_of(c) for c, some in zip(planned, _begun(planned, store)) if some}
    begun = {key: _stacks_begun(groups[key], store) for key in recorded}
    found: dict[Any, Pack] = {}
    for i, part in enumerate(packs):
        whole = None
        if stacks := begun.get(_group_of(part.cells[0])):
            mine = {run_id for cell in part.cells for run_id in cell.run_ids()}
            whole = next((s for s in stacks if mine <= s.absent and mine <= s.runs), None)
        # parts of one stack are one
        found[i if whole is None else whole.pack.name] = part if whole is None else whole.pack
    return list(found.values())


class _Begun(NamedTuple):
    """A stack that was recorded in part."""

    pack: Pack
    # its run ids
    runs: frozenset[str]
    # run ids of its group without any record
    absent: frozenset[str]


def _stacks_begun(group: Sequence[Cell], store: Store) -> list[_Begun]:
    """The stacks of cells that can be stacked of which some runs are recorded, and others are not."""
    runs = [run for cell in group for run in cell.runs()]
    # neither recorded, nor as failed
    absent = frozenset(run.run_id for run in store.missing(runs, count_failed=True))
    recorded = [run.run_id for run in runs if run.run_id not in absent]
    if not absent or not recorded:
        return []
    found = []
    # run id -> its cell, and its seed
    where = {
        run_id: (i, seed)
        for i, cell in enumerate(group)
        for run_id, seed in zip(cell.run_ids(), cell.seeds)
    }
    records = store.read_all(run_id=recorded, status="ok").values()
    for stack in dict.fromkeys(tuple(record.provenance.stack) for record in records):
        if absent.isdisjoint(stack):
            continue
        seeds: dict[int, list[int]] = {}
        for run_id in stack:
            if run_id in where:
                i, seed = where[run_id]
                seeds.setdefault(i, []).append(seed)
        whole = Pack(tuple(group[i].varied(seeds=tuple(own)) for i, own in seeds.items()))
        if whole.run_ids == list(stack):
            found.append(_Begun(whole, frozenset(stack), absent))
    return found


def _group_of(cell: Cell) -> Any:
    """What cells agree in that can be stacked."""
    return cell.task.id, *program_of(cell), cell.n_updates, cell.protocol.shown


def program_of(cell: Cell) -> tuple[str, str, str]:
    """What determines the traced program of an update; all cells of a stack agree in it."""
    return cell.target, cell.hparams.fixed, cell.pipeline.shown


def _split(cells: Sequence[Cell], limit: int | None) -> Iterator[tuple[Cell, ...]]:
    here: list[Cell] = []
    size = 0
    for cell in cells:
        for seeds in _chunks(cell.seeds, limit or len(cell.seeds)):
            if here and limit and size + len(seeds) > limit:
                yield tuple(here)
                here, size = [], 0
            here.append(cell if seeds == cell.seeds else cell.varied(seeds=seeds))
            size += len(seeds)
    yield tuple(here)


def _chunks(seeds: tuple[int, ...], n: int) -> list[tuple[int, ...]]:
    return [seeds[i : i + n] for i in range(0, len(seeds), n)]


def fetched(
    cells: Iterable[Cell], *, report: Callable[[str], None] = lambda text: None
) -> tuple[Cell, ...]:
    """The cells with their data downloaded and the sha256 known, which is part of the run id."""
    found: dict[str, Task] = {}
    for cell in (cells := tuple(cells)):
        if cell.task.id not in found:
            report(f"fetching {cell.task.id}")
            found[cell.task.id] = ready(cell.task)
    return tuple(replace(cell, task=found[cell.task.id]) for cell in cells)
