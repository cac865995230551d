"""`offbench diagnose --consistency`: do seeds of an entry end in the same policy?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console, print_table, print_wrapped
from offbench.cli.recorded import read_recorded
from offbench.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from offbench.cli.recorded import Recorded

_NOTE = (
    "Mean divergence of pairs of seeds on states of the data, with its 95 % interval over seeds (jackknife)."
    " action: root mean square difference of first actions over their range, 0 the same, 1 opposite ends."
    " choice: share of states with different choices. js: of Gaussian policies, Jensen-Shannon divergence in bits,"
    " 0 the same, 1 nothing in common. Policies act as at the start of an episode, with the same noise."
    " Churn between the last two checkpoints of a run is not measured: only final policies are kept."
)


def show_consistency(args: Sequence[str]) -> int:
    """Measures all cells that keep the policies of two seeds or more, and writes a row per pair of seeds."""
    from offbench.bench.consistency import measure, probe_states
    from offbench.results.consistency import cell_consistency, path_of, write_pairs

    found, console = read_recorded(args), make_console()
    tasks = {cell.task.id: cell.task for cell in found.plan.cells}
    states: dict[str, Any] = {}
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
    marks = {run: record.path for run, record in found.store.read_all(run_id=found.ids).items()}
    runs = found.runs[found.runs["status"] == "ok"].sort_values("seed")
    cells = []
    for entry, task in dict.fromkeys((cell.entry, cell.task.id) for cell in found.plan.cells):
        mine = runs[(runs["entry"] == entry) & (runs["task"] == task)]
        files = {
            int(s): marks[r].with_suffix(".safetensors")
            for s, r in zip(mine["seed"], mine["run_id"])
        }
        cells.append((entry, task, {seed: path for seed, path in files.items() if path.exists()}))
    return cells


def _print(table: "pd.DataFrame", console: Any) -> None:
    for task, mine in table.groupby("task", sort=False):
        lines = [
            [x.entry, x.kind, _spelt(x), str(x.n_seeds), f"{x.states:,}"] for x in mine.itertuples()
        ]
        head = ["entry", "kind", "divergence", "seeds", "states"]
        print_table(console, lines, header=head, title=str(task), whole=range(1, len(head)))
        console.print()
    print_wrapped(_NOTE, console)


def _spelt(row: Any) -> str:
    bounds = "" if row.low != row.low else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.value:.3f}{bounds}"
