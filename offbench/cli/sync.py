"""`offbench sync`: sends recorded runs to wandb or TensorBoard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offbench.cli.console import make_console
from offbench.cli.recorded import nothing_recorded, read_recorded
from offbench.errors import UserError
from offbench.results.words import plural


def sync_runs(args: Sequence[str], *, wandb: bool, tensorboard: str | None) -> int:
    """`offbench sync`: sends the finished runs of a plan, each once."""
    from offbench.bench import sync

    if not (wandb or tensorboard):
        raise UserError("say where to send the runs: --wandb or --tensorboard DIR")
    found, console = read_recorded(args), make_console()
    wanted, store, runs = found.plan, found.store, found.runs
    folder = Path(wanted.settings.results)
    ids = list(runs.loc[runs["status"] == "ok", "run_id"])
    if not ids:
        raise nothing_recorded(wanted)
    targets: dict[str, Callable[..., bool]] = {}
    if wandb:
        targets["wandb"] = lambda run, rows: sync.to_wandb(run, rows, folder, wanted.settings.wandb)
    if tensorboard:
        targets[str(tensorboard)] = lambda run, rows: sync.to_event_files(
            run, rows, Path(tensorboard)
        )
    for name, send in targets.items():
        with console.status(f"sending to {name}"):
            sent = sum(send(*_read(store, run_id)) for run_id in ids)
        there = len(ids) - sent
        more = f", {there} there already" if there else ""
        console.print(f"{name}: {plural(sent, 'run')} sent{more}", soft_wrap=True, markup=False)
    return 0


def _read(store: Any, run_id: str) -> tuple[Any, Any]:
    return store.read(run_id), store.episodes(run_id=run_id)
