"""TensorBoard event files of runs: DIR/SUITE/TASK/ENTRY/seed-N-RUN_ID, scalars by update."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from offbench.bench.logged import Logged, evaluation_means
from offbench.errors import UserError
from offbench.io import slug

if TYPE_CHECKING:
    import pandas as pd


class EventFiles:
    """A sink (`offbench.bench.logged.Sink`) of one folder of event files per run."""

    def __init__(self, runs: Sequence[Logged], folder: Path, *, resumed_at: int = 0):
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        # the names of event files have that of the machine in them
        writers: Any = import_module("tensorboard.summary.writer.event_file_writer")
        writers.socket = SimpleNamespace(gethostname=lambda: "offbench")
        # what a run that was interrupted had logged beyond its checkpoint is not shown twice
        self._writers = [
            SummaryWriter(str(run_folder(folder, logged)), purge_step=resumed_at + 1)
            for logged in runs
        ]
        for writer, logged in zip(self._writers, runs, strict=True):
            about = logged.spec.as_dict() | {"entry": logged.entry} | dict(logged.facts)
            text = json.dumps(about, indent=1, default=str)
            writer.add_text("settings", f"```\n{text}\n```", resumed_at + 1)

    def metrics(self, i: int, update: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[i].add_scalar(f"train/{name}", value, update)

    def evaluation(self, i: int, rows: "pd.DataFrame") -> None:
        for name, value in evaluation_means(rows).items():
            self._writers[i].add_scalar(name, value, int(rows["update"].iloc[0]))

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def run_folder(folder: Path, logged: Logged) -> Path:
    """Where the event files of a run lie."""
    spec = logged.spec
    names = [slug(spec.suite), slug(spec.task), slug(logged.entry)]
    return folder.joinpath(*names, f"seed-{spec.seed}-{spec.run_id}")


def check_installed() -> None:
    """Raises UserError where the tensorboard package is missing."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        raise UserError(
            "logger=tensorboard needs the package tensorboard: pip install 'offbench[tensorboard]'"
        )
