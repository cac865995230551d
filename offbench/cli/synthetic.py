"""`offbench diagnose synthetic`: are synthetic data true to the simulator, and near the policy that learns from them?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offbench.cli.console import make_console, print_table, print_wrapped
from offbench.cli.recorded import read_recorded, write_beside_board
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.cli.recorded import Recorded
    from offbench.synthetic.sources import Synthetic

_NOTE = (
    "log-likelihood: of the actions under a normal distribution around the policy's, of deviation 1, per step."
    " State error: mean squared difference from what the simulator does, in squared standard deviations of the data,"
    " of all steps, and of the first and the last quarter of a sub-trajectory. Means over the policies. data: recorded"
    " windows; the error that is left there is the environment's."
)


def diagnose_synthetic(args: Sequence[str]) -> int:
    """Measures the sources of a plan's entries on all their kept policies; prints the means and writes all rows."""
    import pandas as pd

    found, console = read_recorded(args), make_console()
    rows = []
    for task in found.tasks:
        with console.status(f"measuring synthetic data of {task}"):
            rows += _of_task(found, task, console)
    if not rows:
        raise UserError("no entry here learns from synthetic data: write methods=[td3_bc+pgd] say")
    table = pd.DataFrame(rows)
    for task, own in table.groupby("task"):
        _print(str(task), own, console)
    print_wrapped(_NOTE, console)
    text = table.to_csv(index=False, lineterminator="\n")
    path = write_beside_board(found.plan, args, "synthetic.csv", text)
    print(f"written: {path}")
    return 0


def _sources(found: "Recorded", task: str) -> "dict[str, Synthetic]":
    """The different sources of a task's entries, by the name of their option."""
    from offbench.bench.preflight import build_source

    sources: dict[str, Synthetic] = {}
    for cell in found.plan.cells:
        if cell.task.id == task and (settings := build_source(cell)):
            name = cell.pipeline["synthetic"]["name"]
            # others of the same name are told apart by their entry
            sources[name if sources.get(name, settings) == settings else cell.entry] = settings
    return sources


def _of_task(found: "Recorded", task_id: str, console: "Console") -> list[dict]:
    from offbench.bench.preflight import training_episodes
    from offbench.bench.synthetic_quality import acting, draws, measure
    from offbench.tasks.consistency import simulator
    from offbench.tasks.files import cache_dir
    from offbench.tasks.loading import load_data
    from offbench.training.fitting import Stops

    sources = _sources(found, task_id)
    if not sources:
        return []
    cell = next(cell for cell in found.plan.cells if cell.task.id == task_id)
    task = cell.task
    # what the runs' own sources were trained on
    data, _ = training_episodes(cell, load_data(task, defects="ignore")[0])
    step = simulator(task, (data.obs.shape[1], data.action.shape[1]))
    files = found.kept()
    runs = found.runs[found.runs["run_id"].isin(files) & (found.runs["task"] == task_id)]
    kept = [(run, acting(files[run["run_id"]])) for run in runs.to_dict("records")]
    if not kept:
        raise UserError(f"no policy of {task_id} was kept here")
    rows = []
    stops = Stops(minutes=found.plan.settings.checkpoint_minutes, say=console.print)
    for source, coefficient, draw in draws(sources, data, cache_dir() / "sources", stops):
        for run, policy in kept:
            about = {key: run[key] for key in ("task", "entry", "seed", "run_id")}
            about |= {"source": source, "coefficient": coefficient}
            rows.append(about | measure(draw, policy, data, step))
    return rows


def _print(task: str, rows: "pd.DataFrame", console: "Console") -> None:
    columns = ["log_likelihood", "state_error", "state_error_first", "state_error_last"]
    means = rows.groupby(["source", "coefficient"], sort=False, dropna=False)[columns].mean()
    lines = [
        [name + ("" if coefficient != coefficient else f" x{coefficient:g}"), f"{values[0]:.3f}"]
        + [f"{value:.4f}" for value in values[1:]]
        for (name, coefficient), values in zip(means.index, means.to_numpy(), strict=True)
    ]
    heads = ["source", "log-likelihood", "state error", "first quarter", "last quarter"]
    title = f"{task}: synthetic data, {plural(rows['run_id'].nunique(), 'policy')}"
    print_table(console, lines, header=heads, title=title)
