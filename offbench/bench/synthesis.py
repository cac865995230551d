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

    said = -1

    def pause(step: int) -> bool:
        nonlocal said
        if (share := 100 * step // settings.n_updates) > said:
            said = share
            watch.report(f"training a data source ({share} %)", 0.0)
        return watch.stop()

    watch.report("training a data source", 0.0)
    source = settings.source(data.to(device), cache_dir() / "sources", pause=pause)
    if source is None:
        raise Interrupted
    # transforms and view alone are read; the data stay where they are
    none = type(data)(*(column[:0] for column in data))
    return refresh(settings, source, method, pipeline._replace(data=none).to(device))
