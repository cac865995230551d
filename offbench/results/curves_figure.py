"""Learning curves as a picture: one panel per task, a line with its interval per entry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.results.drawing import COLOURS, DASHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# entries of a panel up to which their intervals are drawn as bands: more cover each other
BANDS = 4
_ABOUT = "updates (on grey: test episodes of the board; before: monitor episodes)"


def draw_figure(
    table: pd.DataFrame, title: str = "", order: Sequence[str] | None = None
) -> "Figure":
    """The curves of `curve_table`; an entry has one colour in all panels.

    Small dots are evaluations, with their intervals as bands where a panel has few entries. Beside the last
    update, on grey, the test evaluations stand once more, large and side by side with their intervals.

    Args:
        order: entries in the order of their colours; None: by name.
    """
    tasks, entries = list(dict.fromkeys(table["task"])), set(table["entry"])
    order = sorted(entries) if order is None else [e for e in order if e in entries]
    figure, axes = panels(len(tasks))
    styles = line_styles(order)
    for axis, task in zip(axes.flat, tasks, strict=False):
        _draw_task(axis, table[table["task"] == task], styles)
        axis.set_title(task, fontsize=8.5, loc="left")
    legend(figure, axes, styles, len(tasks), _ABOUT)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def panels(n: int) -> "tuple[Figure, np.ndarray]":
    """A figure that no window shows, with n panels of scores, and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    # four as a square
    columns = 2 if n == 4 else min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(max(4.6, 3.5 * columns), 2.7 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("score", fontsize=9)
    return figure, axes


def line_styles(entries: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Entry -> colour and dashes, in this order."""
    return {e: (COLOURS[i % 7], DASHES[i // 7 % 4]) for i, e in enumerate(entries)}


def _draw_task(axis: "Axes", table: pd.DataFrame, styles: dict[str, tuple[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    last = table["update"].max()
    banded = table["entry"].nunique() <= BANDS
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
    end = last * (1.05 + 0.018 * len(finals))
    axis.axvspan(last * 1.015, end, color="0.95", linewidth=0, zorder=0)
    axis.set_xlim(0, end)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, last)
    axis.set_xticks([x for x in ticks if x <= last])
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def legend(
    figure: "Figure",
    axes: np.ndarray,
    styles: dict[str, tuple[str, Any]],
    n_tasks: int,
    about: str,
) -> None:
    """The entries, in a free panel or below all, and what the horizontal axes are `about`."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=c, linestyle=d, marker="o", markersize=4, label=entry)
        for entry, (c, d) in styles.items()
    ]
    if n_tasks < axes.size:
        free = axes.flat[n_tasks]
        free.legend(handles=lines, loc="upper left", fontsize=9, frameon=False)
        figure.supxlabel(about, fontsize=8.5)
        return
    # inches of an entry: its line and, at this size, 0.075 for a letter
    wide = 0.55 + 0.075 * max(map(len, styles))
    rows = -(-len(lines) // max(1, int(figure.get_figwidth() / wide)))
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=-(-len(lines) // rows),
        fontsize=8.5,
        frameon=False,
        # a label of the figure would lie on the entries
        title=about,
        title_fontsize=8.5,
    )
