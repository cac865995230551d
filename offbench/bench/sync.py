"""Sends recorded runs to wandb or TensorBoard: curves, evaluations and settings, from the records alone.

What was sent is not sent again: a run has the same name everywhere, that of its record.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.bench.event_files import EventFiles, check_installed, run_folder
from offbench.bench.logged import Logged, Sink
from offbench.bench.settings import WandbSettings
from offbench.bench.wandb_runs import Wandb, mark

if TYPE_CHECKING:
    import pandas as pd

    from offbench.results.store import Record

# of a record's provenance, what a run's settings in a logger leave out
_LEFT_OUT = ("entry", "host")


def logged(record: "Record") -> Logged:
    """A recorded run as loggers show it."""
    facts = record.provenance.as_dict()
    facts = {name: value for name, value in facts.items() if name not in _LEFT_OUT}
    if record.reason:
        facts["remark"] = record.reason
    return Logged(record.provenance.entry, record.spec, facts)


def to_wandb(
    record: "Record", episodes: "pd.DataFrame", folder: Path, settings: WandbSettings
) -> bool:
    """Sends a run to wandb, or what the server lacks of it; False where all of it is there already."""
    run = logged(record)
    if mark(run, folder, settings).exists():
        return False
    sink = Wandb([run], folder, settings)
    try:
        _replay(record, episodes, sink, after=sink.sent_to(0))
    finally:
        sink.close()
    return True


def to_event_files(record: "Record", episodes: "pd.DataFrame", folder: Path) -> bool:
    """Writes the event files of a run; False where they are there already."""
    check_installed()
    run = logged(record)
    final = run_folder(folder, run)
    if final.exists():
        return False
    # under another name until all of it is written
    unfinished = folder / f".{run.spec.run_id}.{os.getpid()}.tmp"
    try:
        sink = EventFiles([run], unfinished)
        try:
            _replay(record, episodes, sink)
        finally:
            sink.close()
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(run_folder(unfinished, run), final)
    finally:
        # those of killed processes, too
        for left in folder.glob(f".{run.spec.run_id}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    return True


def _replay(record: "Record", episodes: "pd.DataFrame", sink: Sink, *, after: int = -1) -> None:
    """Calls a sink as training did, in the order of updates, for the updates after one."""
    calls: list[tuple[int, int, Callable[[], None]]] = []
    if record.metrics is not None:
        for row in record.metrics.to_dict("records"):
            update = int(row.pop("update"))
            calls.append((update, 0, partial(sink.metrics, 0, update, row)))
    for (update, stream), rows in episodes.groupby(["update", "stream"]):
        calls.append((update, 1 + (stream == "test"), partial(sink.evaluation, 0, rows)))
    for update, _, call in sorted(calls, key=lambda x: x[:2]):
        if update > after:
            call()
