"""Optional loggers. Results are stored in results/, never here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from offbench.results.spec import RunSpec

# (entry, run) of each member of a stack
Runs = Sequence[tuple[str, "RunSpec"]]


class Logger(Protocol):
    """Receives metrics and evaluation episodes of a stack while it trains."""

    # `values`: one number per member of the stack for each metric
    def metrics(self, update: int, values: Mapping[str, Any]) -> None: ...
    def episodes(self, frame: "pd.DataFrame") -> None: ...


class NoLogger:
    """The logger of `logger=none`."""

    def metrics(self, update: int, values: Mapping[str, Any]) -> None: ...
    def episodes(self, frame: "pd.DataFrame") -> None: ...


class Wandb:
    """Logs to Weights & Biases: one wandb run per run, grouped by cell.

    Offline without an account; `WANDB_MODE` overrides.
    """

    def __init__(self, runs: Runs, folder: str):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._runs = [
            wandb.init(
                project=os.environ.get("WANDB_PROJECT", f"offbench-{spec.suite}"),
                group=f"{entry}-{spec.task}",
                name=f"{entry}-{spec.task}-{spec.seed}",
                config=spec.as_dict() | {"run_id": spec.run_id, "entry": entry},
                mode=mode,
                dir=folder,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
            for entry, spec in runs
        ]

    def metrics(self, update: int, values: Mapping[str, Any]) -> None:
        for i, run in enumerate(self._runs):
            run.log(
                {f"train/{k}": v[i] for k, v in values.items() if k != "update"}
                | {"update": update}
            )

    def episodes(self, frame: "pd.DataFrame") -> None:
        for member, rows in frame.groupby("member"):
            run = self._runs[member]
            kind, update = rows["stream"].iloc[0], int(rows["update"].iloc[0])
            means = {name: float(rows[name].mean()) for name in ("score", "return")}
            means["executed_length"] = float(rows["length"].sum() / rows["plans"].sum())
            if rows["start_value"].notna().all():
                means["start_value"] = float(rows["start_value"].mean())
            run.log({f"{kind}/{name}": value for name, value in means.items()}, step=update)

    def close(self) -> None:
        for run in self._runs:
            run.finish()


@contextmanager
def open_logger(name: str, runs: Runs, folder: str) -> Iterator[Logger]:
    """The logger of the setting `logger=`; closed when the block ends. wandb writes to `folder`."""
    if name == "none":
        yield NoLogger()
        return
    logger = Wandb(runs, folder)
    try:
        yield logger
    finally:
        logger.close()
