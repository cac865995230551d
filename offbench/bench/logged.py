"""What loggers receive: runs, metrics and evaluations."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from offbench.results.spec import RunSpec


class Logged(NamedTuple):
    """A run as loggers show it."""

    entry: str
    spec: "RunSpec"
    # how it came to be: commit, versions, device, sources of settings, tuning
    facts: Mapping[str, Any]


class Sink(Protocol):
    """Where the numbers of several runs go. Any call may raise."""

    # `values`: of one run, by name
    def metrics(self, i: int, update: int, values: Mapping[str, float]) -> None: ...
    # `rows`: the episodes of one evaluation of one run
    def evaluation(self, i: int, rows: "pd.DataFrame") -> None: ...
    def close(self) -> None: ...


def evaluation_means(rows: "pd.DataFrame") -> dict[str, float]:
    """What loggers show of one evaluation: means over its episodes, by `STREAM/NAME`."""
    stream = rows["stream"].iloc[0]
    names = ("score", "return", "length", "success", "start_value")
    known = [name for name in names if rows[name].notna().all()]
    means = {name: float(rows[name].astype(float).mean()) for name in known}
    if rows["plans"].notna().all():
        means["executed_length"] = float(rows["length"].sum() / rows["plans"].sum())
    return {f"{stream}/{name}": value for name, value in means.items()}
