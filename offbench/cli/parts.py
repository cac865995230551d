"""Which of the missing runs `offbench bench` does, how often and for how long it tries, and what came of them."""

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from offbench.errors import UserError

if TYPE_CHECKING:
    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.bench.schedule import Effort
    from offbench.results.store import Store

# exit codes: some runs failed; runs are left to do (EX_TEMPFAIL)
FAILED, MORE_TO_DO = 3, 75


class Part(NamedTuple):
    """Which of the missing runs to do, how often and for how long to try."""

    effort: "Effort"
    # only runs that failed before
    only_failed: bool
    # (number from 1, of how many)
    shard: tuple[int, int]

    @property
    def words(self) -> str:
        """ "shard 1/4, failed before"."""
        i, n = self.shard
        shard = f"shard {i}/{n}" if n > 1 else ""
        return ", ".join(filter(None, [shard, "failed before" if self.only_failed else ""]))


class Ran(NamedTuple):
    """What came of the missing runs of a plan."""

    # on its data
    plan: "Plan"
    # number of runs that were missing, and that still are: nobody failed, time was up
    missing: int
    left: int
    # one line each, printed
    failures: list[str]

    @property
    def exit_code(self) -> int:
        return MORE_TO_DO if self.left else FAILED if self.failures else 0


def read_part(
    *,
    only: str | None = None,
    retry: str | None = None,
    max_time: str | None = None,
    shard: str | None = None,
) -> Part:
    """The options of `offbench bench`. Raises UserError for what they do not mean."""
    from offbench.bench.schedule import Effort

    if only not in (None, "failed"):
        raise UserError(f"--only {only}: --only failed runs again what has failed")
    if retry is not None and not re.fullmatch(r"\d{1,3}", retry):
        raise UserError(f"--retry {retry}: a number of attempts, such as 2")
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"--shard {shard}: I/N, the I-th of N parts, such as 1/4")
    effort = Effort()
    if retry is not None:
        effort = replace(effort, retry=int(retry))
    if max_time is not None:
        effort = replace(effort, deadline=time.monotonic() + _seconds(max_time))
    return Part(effort, only == "failed", part)


def _seconds(text: str) -> float:
    """Seconds of `90s`, `30m`, `8h`, `2d`; of a plain number too."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h|d)?", text.strip())
    if not found:
        raise UserError(f"--max-time {text}: a time such as 90s, 30m, 8h or 2d")
    return float(found[1]) * {"m": 60, "min": 60, "h": 3600, "d": 86400}.get(found[2], 1)


def chosen(
    cells: "Sequence[Cell]", left: "Sequence[Cell]", part: Part, store: "Store"
) -> "list[Cell]":
    """Of the cells that are left to do, with their seeds, those that belong to a part of the plan's."""
    from offbench.bench.stacks import pack

    i, n = part.shard
    if n > 1:
        # by the whole plan: the parts stay the same while runs are recorded
        mine = {name for p in pack(cells)[i - 1 :: n] for name in p.run_ids}
        left = [_with_seeds(cell, mine) for cell in left]
    if part.only_failed:
        runs = [run for cell in left for run in cell.runs()]
        untried = {run.run_id for run in store.missing(runs, count_failed=True)}
        left = [_with_seeds(cell, {r.run_id for r in runs} - untried) for cell in left]
    return [cell for cell in left if cell.seeds]


def _with_seeds(cell: "Cell", run_ids: "Collection[str]") -> "Cell":
    return replace(cell, seeds=tuple(r.seed for r in cell.runs() if r.run_id in run_ids))
