"""The synthetic data of a stack: trains its source, or reads what was trained on these data before."""

from typing import TYPE_CHECKING, Any

from offbench.bench.cells import Cell
from offbench.bench.preflight import build_source
from offbench.bench.watch import Watch
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
    *,
    minutes: float,
) -> "Refresh | None":
    """What writes the pools of a cell's seeds, from sub-trajectories of raw `data`; None without synthetic data.

    Raises Interrupted where `watch.stop()` is true while the source is trained; its training is saved then, and every
    so many `minutes`. What cannot be saved or read is remarked on.
    """
    settings = build_source(cell)
    if settings is None:
        return None
    from offbench.synthetic.sources import refresh
    from offbench.training.fitting import Stops

    said = -1

    def asked(update: int) -> bool:
        nonlocal said
        if (share := 100 * update // settings.n_updates) > said:
            said = share
            watch.report(f"training a data source ({share} %)", 0.0)
        return watch.stop()

    watch.report("training a data source", 0.0)
    stops = Stops(asked, minutes=minutes, say=watch.remark)
    source = settings.source(data.to(device), cache_dir() / "sources", stops)
    # transforms and view alone are read; the data stay where they are
    none = type(data)(*(column[:0] for column in data))
    return refresh(settings, source, method, pipeline._replace(data=none).to(device))
