"""The synthetic data of a stack: trains its source, or reads what was trained on these data before."""

from typing import TYPE_CHECKING, Any

from offbench.bench.cells import Cell
from offbench.bench.preflight import build_source
from offbench.bench.watch import Watch
from offbench.errors import Interrupted
from offbench.tasks.files import cache_dir

if TYPE_CHECKING:
    from offbench.data.pipeline import Pipeline
    from offbench.data.replay import ReplayData
    from offbench.training.loop import Refresh


def refresh_of(
    cell: Cell,
    method: Any,
    pipeline: "Pipeline",
    data: "ReplayData",
    device: str,
    watch: Watch,
) -> "Refresh | None":
    """What writes the pools of a cell's seeds, from sub-trajectories of raw `data`; None without synthetic data.

    Raises Interrupted where `watch.stop()` is true while the source is trained.
    """
    settings = build_source(cell)
    if settings is None:
        return None
    from offbench.synthetic.sources import refresh

    watch.report("training a data source", 0.0)
    source = settings.source(data.to(device), cache_dir() / "sources", pause=lambda _: watch.stop())
    if source is None:
        raise Interrupted
    return refresh(settings, source, method, pipeline)
