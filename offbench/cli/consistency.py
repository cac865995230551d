"""`offbench diagnose --consistency` and `--churn`: do seeds of an entry end in the same policy, and has it settled?"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console, print_table, print_wrapped, spelt_seeds
from offbench.cli.recorded import read_recorded, write_beside_board
from offbench.errors import UserError
from offbench.results.board.consistency_text import spelt

if TYPE_CHECKING:
    import pandas as pd

    from offbench.cli.recorded import Recorded
    from offbench.results.store import Record

_NOTE = (
    "Mean divergence of pairs of seeds on states of the data, with its 95 % interval over seeds (jackknife)."
    " action: root mean square difference of first actions over their range, 0 the same, 1 opposite ends."
    " choice: share of states with different choices. js: of Gaussian policies, Jensen-Shannon divergence in bits,"
    " 0 the same, 1 nothing in common. Policies act as at the start of an episode, with the same noise."
    " How far each policy moved over its last updates: offbench diagnose --churn."
)
_CHURN_NOTE = (
    "Churn: how far a policy moved between two numbers of updates, on states of the data; mean over seeds with its 95 %"
    " interval (Student's t). action, choice and js as of diagnose --consistency. Went on: runs that went on from the kept"
    " state of the shorter one; of the others, the shorter had the same seed, draws and settings, and where it was"
    " trained in another stack, engine or machine, what rounding has grown to is part of the number."
)


def show_consistency(args: Sequence[str]) -> int:
    """Measures all cells that keep the policies of two seeds or more, and writes a row per pair of seeds."""
    from offbench.bench.consistency import measure, probe_states
    from offbench.results.consistency import cell_consistency, path_of, write_pairs

    found, console = read_recorded(args), make_console()
    tasks, states = found.tasks, dict[str, Any]()
    rows, written, reasons = [], [], []
    with console.status("comparing seeds") as status:
        for entry, task, kept in _cells(found):
            name = f"{entry} on {task}"
            status.update(f"comparing the seeds of {name}")
            if len(kept) < 2:
                reasons.append(f"{name}: not measured, {len(kept)} of its policies are kept")
                continue
            if task not in states:
                states[task] = probe_states(tasks[task])
            try:
                pairs = measure(kept, tasks[task], states[task]).assign(entry=entry)
            except UserError as error:
                reasons.append(f"{name}: {error}")
                continue
            path = path_of(found.store.root, found.plan.name, task, entry)
            write_pairs(path, pairs)
            written.append(path)
            rows.append(pairs)
    for reason in reasons:
        console.print(reason, markup=False, soft_wrap=True)
    if not rows:
        raise UserError("no entry here keeps the policies of two seeds, so none can be compared")
    import pandas as pd

    _print(cell_consistency(pd.concat(rows, ignore_index=True)), console)
    folder = found.store.root / "consistency"
    console.print(f"written: {len(written)} files below {folder}", markup=False, soft_wrap=True)
    return 0


def _cells(found: "Recorded") -> "list[tuple[str, str, dict[int, Path]]]":
    """(entry, task, seed -> kept policy) of the planned cells, in their order."""
    cells = {(cell.entry, cell.task.id): dict[int, Path]() for cell in found.plan.cells}
    runs = found.runs.set_index("run_id")
    for run, path in found.kept().items():
        place, seed = (runs.at[run, "entry"], runs.at[run, "task"]), int(runs.at[run, "seed"])
        if place in cells:
            cells[place][seed] = path
    return [(*place, kept) for place, kept in cells.items()]


def show_churn(args: Sequence[str]) -> int:
    """Compares kept policies with those of the same runs after fewer updates, where such were kept, too."""
    import pandas as pd

    from offbench.bench.consistency import measure_churn, probe_states
    from offbench.results.consistency import CHURN, cell_churn

    found, console = read_recorded(args), make_console()
    tasks, states = found.tasks, dict[str, Any]()
    records = found.store.read_all(run_id=found.ids)
    rows, lacking = [], dict[str, int]()
    with console.status("comparing policies") as status:
        for entry, task, kept in _cells(found):
            name = f"{entry} on {task}"
            status.update(f"comparing policies of {name}")
            pairs, why, n = _with_earlier(found, kept, records)
            if not pairs:
                console.print(f"{name}: not measured, {why}", markup=False, soft_wrap=True)
                lacking |= {task: n} if n else {}
                continue
            if task not in states:
                states[task] = probe_states(tasks[task])
            try:
                measured = measure_churn(pairs, tasks[task], states[task])
            except UserError as error:
                console.print(f"{name}: {error}", markup=False, soft_wrap=True)
                continue
            whole = measured.assign(entry=entry, went_on=_went_on(measured, records))
            rows.append(whole[list(CHURN)])
    for line in _how_to_get(args, lacking):
        console.print(line, markup=False, soft_wrap=True)
    if not rows:
        raise UserError("no run here has a kept policy of fewer updates, so no churn is measured")
    table = pd.concat(rows, ignore_index=True)
    _print_churn(cell_churn(table), console)
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    path = write_beside_board(found.plan, args, "churn.csv", text)
    console.print(f"written: {path}", markup=False, soft_wrap=True)
    return 0


def _with_earlier(
    found: "Recorded", kept: "Mapping[int, Path]", records: "Mapping[str, Record]"
) -> "tuple[dict[int, tuple[Path, Path]], str, int]":
    """Seed -> kept policies of the most updates below those of its run that every seed has, and of its run.

    Where there are none, why, and the updates of the runs if shorter ones would help, else 0.
    """
    from offbench.bench.kept import on_its_way

    if not kept:
        return {}, "none of its policies are kept", 0
    specs = {seed: records[path.stem].spec for seed, path in kept.items()}
    earlier, follow = {}, list[str]()
    for seed, spec in specs.items():
        earlier[seed], tied = on_its_way(found.store, spec)
        follow = follow or tied
    if common := set.intersection(*(set(files) for files in earlier.values())):
        return {seed: (earlier[seed][max(common)], path) for seed, path in kept.items()}, "", 0
    if follow and not any(earlier.values()):
        words = ", ".join(f"method.{name}" for name in follow)
        return {}, f"{words} follows the length of a run, so a shorter one is no part of it", 0
    n, some = max(spec.n_updates for spec in specs.values()), [s for s in earlier if earlier[s]]
    alone = f" of all seeds, of {spelt_seeds(some)} alone" if some else ""
    return {}, f"no run of fewer than {n:,} updates is kept{alone}", n


def _went_on(measured: "pd.DataFrame", records: "Mapping[str, Record]") -> list[bool]:
    """Whether each run went on from the kept state of the earlier one, as its record says."""
    from offbench.bench.progress import WENT_ON

    runs = zip(measured["earlier_run_id"], measured["earlier_updates"], measured["run_id"])
    return [
        WENT_ON.format(before, updates) in (records[run].reason or "")
        for before, updates, run in runs
    ]


def _how_to_get(args: Sequence[str], lacking: Mapping[str, int]) -> list[str]:
    """The commands that make what was not measured measurable: the same runs, a tenth shorter."""
    own = [a for a in args if a.partition("=")[0] not in ("task", "n_updates")]
    lines = []
    for task, n in lacking.items():
        words = ["offbench", "bench", *own, f"task={task}", f"n_updates={max(1, n * 9 // 10)}"]
        lines.append(f"to measure it: {shlex.join(words)}")
    return lines


def _print_churn(table: "pd.DataFrame", console: Any) -> None:
    for task, mine in table.groupby("task", sort=False):
        lines = [
            [x.entry, x.kind, spelt(x), f"{x.earlier_updates:,} to {x.updates:,}"]
            + [str(x.n_seeds), str(x.n_went_on), f"{x.states:,}"]
            for x in mine.itertuples()
        ]
        head = ["entry", "kind", "churn", "updates", "seeds", "went on", "states"]
        print_table(console, lines, header=head, title=str(task), whole=range(1, len(head)))
        console.print()
    print_wrapped(_CHURN_NOTE, console)


def _print(table: "pd.DataFrame", console: Any) -> None:
    for task, mine in table.groupby("task", sort=False):
        lines = [
            [x.entry, x.kind, spelt(x), str(x.n_seeds), f"{x.states:,}"] for x in mine.itertuples()
        ]
        head = ["entry", "kind", "divergence", "seeds", "states"]
        print_table(console, lines, header=head, title=str(task), whole=range(1, len(head)))
        console.print()
    print_wrapped(_NOTE, console)
