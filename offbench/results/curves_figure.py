"""Learning curves as a picture: one panel per task, a line with its interval per entry."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is faint on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# entries of a panel up to which their intervals are drawn as bands: more cover each other
_BANDS = 4
_DASHES = ("-", "--", ":", "-.")


def write_figure(table: pd.DataFrame, path: Path, title: str = "") -> None:
    """Writes `curves_figure` as PNG, whole or not at all."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = curves_figure(table, title)
    FigureCanvasAgg(figure)
    image = io.BytesIO()
    figure.savefig(image, dpi=150)
    atomic_write(path, image.getvalue())


def curves_figure(
    table: pd.DataFrame, title: str = "", order: Sequence[str] | None = None
) -> "Figure":
    """Draws the rows of `curve_table`; an entry has one colour in all panels.

    Small dots are monitor evaluations, with their intervals as bands where a panel has few entries; the large
    dot beside the last is the test evaluation with its interval.

    Args:
        order: entries in the order of their colours; None: by name.
    """
    from matplotlib.figure import Figure

    tasks, entries = list(dict.fromkeys(table["task"])), set(table["entry"])
    order = sorted(entries) if order is None else [e for e in order if e in entries]
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(4.6, 3.5 * columns), 2.7 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    styles = {e: (_COLOURS[i % 7], _DASHES[i // 7 % 4]) for i, e in enumerate(order)}
    for axis, task in zip(axes.flat, tasks, strict=False):
        _draw_task(axis, table[table["task"] == task], styles)
        axis.set_title(task, fontsize=8.5, loc="left")
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("score", fontsize=9)
    _legend(figure, axes, styles, len(tasks))
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _draw_task(axis: "Axes", table: pd.DataFrame, styles: dict[str, tuple[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    last = table["update"].max()
    banded = table["entry"].nunique() <= _BANDS
    finals = [e for e in styles if e in set(table["entry"])]
    for entry, curve in table.groupby("entry"):
        colour, dash = styles[str(entry)]
        update, mean = curve["update"].to_numpy(), curve["mean"].to_numpy()
        axis.plot(update, mean, dash, color=colour, linewidth=1.3, marker="o", markersize=2.5)
        if banded:
            low, high = curve["low"], curve["high"]
            axis.fill_between(update, low, high, color=colour, alpha=0.13, linewidth=0)
        final = curve[curve["stream"] == "test"]
        # side by side, so that intervals can be told apart
        shift = last * (0.03 + 0.018 * finals.index(str(entry)))
        low, high = (np.abs(final[k] - final["mean"]).fillna(0) for k in ("low", "high"))
        axis.errorbar(
            final["update"] + shift,
            final["mean"],
            np.array([low, high]),
            fmt="o",
            color=colour,
            markersize=4.5,
            elinewidth=1.2,
        )
    bounds = table if banded else table[table["stream"] == "test"]
    # an interval of a few seeds can be far wider than the scores
    seen = np.concatenate([table["mean"], bounds["low"].clip(0), bounds["high"].clip(upper=100)])
    low, high = np.nanmin(seen), np.nanmax(seen)
    margin = 0.05 * max(high - low, 1.0)
    axis.set_ylim(low - margin, high + margin)
    axis.set_xlim(0, last * (1.06 + 0.018 * len(finals)))
    axis.set_xticks([x for x in MaxNLocator(5).tick_values(0, last) if x <= last])
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(
    figure: "Figure", axes: np.ndarray, styles: dict[str, tuple[str, Any]], n_tasks: int
) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=c, linestyle=d, marker="o", markersize=4, label=entry)
        for entry, (c, d) in styles.items()
    ]
    if n_tasks < axes.size:
        free = axes.flat[n_tasks]
        free.legend(handles=lines, loc="upper left", fontsize=9, frameon=False)
    else:
        columns = min(len(lines), 3 * axes.shape[1])
        figure.legend(
            handles=lines, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False
        )
    words = "updates (large dots: test episodes after the last update, as on the board; before it: monitor episodes)"
    figure.supxlabel(textwrap.fill(words, int(14 * figure.get_figwidth())), fontsize=8.5)
