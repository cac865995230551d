"""How long the chunks are that an adaptive method plans and executes: one picture from the records.

    python -m offbench.lengths results        writes results/board/lengths.png

Left, how often each length wins where values are bootstrapped, over training; middle, the spread of
values over lengths (0: the choice is noise); right, the mean length executed in successful and in failed
test episodes.
"""

import sys
from pathlib import Path

import numpy as np

from offbench.errors import UserError
from offbench.records import Store


def executed(store: Store) -> "dict[tuple[str, str], dict[bool, np.ndarray]]":
    """(entry, task) -> success -> mean executed length of each test episode, where plans were counted."""
    frame = store.episodes(stream="test")
    frame = frame[frame["plans"].notna() & frame["success"].notna()]
    frame = frame[frame["plans"] < frame["length"]]  # chunks of more than one step
    frame = frame.assign(executed=frame["length"] / frame["plans"].astype(float))
    return {
        key: {bool(s): part["executed"].to_numpy() for s, part in group.groupby("success")}
        for key, group in frame.groupby(["entry", "task"])
    }


def plot(root: Path) -> Path:
    """Writes the picture of every entry and task with adaptive chunks, averaged over seeds, one row each.

    Raises UserError where no record has any.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    store = Store(root)
    runs = store.runs(status="ok")
    curves: dict[tuple[str, str], list] = {}
    for run in runs.to_dict("records"):
        metrics = store.read(run["run_id"]).metrics
        if metrics is not None and "planned_length" in metrics:
            curves.setdefault((run["entry"], run["task"]), []).append(metrics)
    if not curves:
        raise UserError(f"{root}: no record of a method that chooses the length of its chunks")
    lengths = executed(store)
    fig, axes = plt.subplots(len(curves), 3, figsize=(10, 2.6 * len(curves)), squeeze=False)
    for row, (key, seeds) in zip(axes, sorted(curves.items()), strict=True):
        names = [n for n in seeds[0] if n.startswith("planned_") and n != "planned_length"]
        update = seeds[0]["update"]
        shares = [np.mean([m[n] for m in seeds], 0) for n in names]
        row[0].stackplot(update, shares, labels=[n.removeprefix("planned_") for n in names])
        row[0].legend(title="length", fontsize=7)
        row[0].set(title=f"{key[0]} on {key[1]}", xlabel="update", ylabel="share", ylim=(0, 1))
        row[1].plot(update, np.mean([m["prefix_spread"] for m in seeds], 0))
        row[1].set(xlabel="update", ylabel="prefix spread")
        for success, found in lengths.get(key, {}).items():
            row[2].hist(found, alpha=0.6, label="success" if success else "failure")
        row[2].set(xlabel="mean executed length", ylabel="test episodes")
        row[2].legend()
    for axis in axes.flat:
        axis.title.set_size(8), axis.yaxis.label.set_size(7)
    fig.tight_layout()
    path = root / "board" / "lengths.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)
    return path


if __name__ == "__main__":
    plot(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
