"""`offbench rerun`: trains a recorded run once more in its own stack and says whether its rows are equal."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import duration, make_console, spelt_seeds
from offbench.errors import UserError
from offbench.results.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from offbench.bench.settings import Settings
    from offbench.bench.stacks import Pack
    from offbench.results.store import Record, Store

# exit code where rows differ, or the run fails
DIFFERENT = 3
# lines of differences that are shown
MOST = 6


def rerun(args: Sequence[str], *, alone: bool = False) -> int:
    """Repeats a run; 0: its rows are those of its record. Nothing is written into its store."""
    from offbench.bench.repeat import settings_of, stack_of
    from offbench.results.store import Store

    name, results = _read(args)
    store, console = Store(results), make_console()
    record = store.read(store.find(name).stem)
    if record.status != "ok":
        raise UserError(
            f"run {record.spec.run_id} has no rows to compare, it {record.status}: {record.reason}"
        )
    with console.status("looking for the data"):
        pack = stack_of(store, record, alone=alone)
    how = "by itself, where rounding differs" if alone else described(pack)
    spec = record.spec
    console.print(
        f"run {spec.run_id}: {record.provenance.entry} on {spec.task} seed {spec.seed}, trained again {how}",
        soft_wrap=True,
        markup=False,
    )
    with tempfile.TemporaryDirectory(prefix="offbench-", ignore_cleanup_errors=True) as folder:
        settings = settings_of(record, folder)
        if (failure := _train(pack, Store(folder), settings, record, console)) is not None:
            console.print(f"it failed: {failure}", soft_wrap=True, markup=False)
            return DIFFERENT
        return _compare(record, store, Store(folder), console)


def described(pack: "Pack") -> str:
    """ "in a stack of 6: seeds 0-5", of several entries "in a stack of 6: 3 entries"."""
    seeds = pack.seeds
    what = f"{len(pack.cells)} entries"
    if len(pack.cells) == 1:
        what = f"seed{'s' if len(seeds) > 1 else ''} {spelt_seeds(seeds)}"
    return f"in a stack of {len(seeds)}: {what}"


def _read(args: Sequence[str]) -> tuple[str, Path]:
    """(run id, folder of the store) of the command line."""
    names = [word for word in args if "=" not in word]
    settings = [word for word in args if "=" in word]
    if wrong := [word for word in settings if not word.startswith("results=")]:
        raise UserError(f"{wrong[0]}: everything else is in the record; only results= is taken")
    if len(names) != 1:
        raise UserError("one run id is needed: offbench rerun RUN_ID [results=PATH]")
    results = settings[-1].removeprefix("results=") if settings else "results"
    return names[0], Path(results)


def _train(
    pack: "Pack", store: "Store", settings: "Settings", record: "Record", console: "Console"
) -> str | None:
    """Trains the stack into a store; returns why nothing came of it."""
    import torch

    from offbench.bench.preflight import preflight, resolve_device
    from offbench.bench.schedule import Effort, run_packs

    resolve_device(settings.device)
    preflight(pack.cells)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(record.provenance.host.get("threads", threads)))
    error = None
    try:
        with console.status("training") as status:
            for event in run_packs([pack], store, settings, Effort(retry=0)):
                status.update(f"{event.phase}, {100 * event.fraction:.0f} %")
                error = event.reason or error
    finally:
        torch.set_num_threads(threads)
    if error is None and not store.whole(record.spec.run_id):
        error = store.read(record.spec.run_id).reason
    return error


def _compare(record: "Record", store: "Store", again: "Store", console: "Console") -> int:
    from offbench.bench.repeat import Rows, changes_around, differences

    then = Rows.read(store, record.path.stem)
    now = Rows.read(again, record.spec.run_id)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)
    found = differences(then, now)
    n = then.episodes["stream"].value_counts()
    counts = ", ".join(f"{n[s]} {s}" for s in ("test", "monitor") if s in n)
    points = 0 if then.curves is None else len(then.curves)
    if found:
        say(f"the rows differ in {plural(len(found), 'part')}:")
        for line in found[:MOST]:
            say(f"  {line}")
        say(f"  and {len(found) - MOST} more") if len(found) > MOST else None
    else:
        episodes = f"{counts} episodes and " if counts else ""
        took = duration(now.provenance.wall_s)
        say(f"all rows are equal to the last bit: {episodes}curves of {points} points ({took})")
    means = [
        rows.episodes["score"][rows.episodes["stream"] == "test"].mean() for rows in (then, now)
    ]
    if found and counts:
        say(f"mean test score: {means[0]:.2f} recorded, {means[1]:.2f} now")
    for line in changes_around(then.provenance, now.provenance):
        say(f"  {line}")
    if found and record.reason:
        say(f"of the record: {record.reason}")
    return DIFFERENT if found else 0
