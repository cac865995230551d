"""What entries score against the number of episodes that may be played online: one panel per task."""

from typing import TYPE_CHECKING

import pandas as pd

from offbench.results.curves_figure import BANDS, legend, line_styles, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ABOUT = "episodes played online, after which the policy that looks best is kept"


def draw_online_figure(table: pd.DataFrame, title: str = "") -> "Figure":
    """The curves of `offbench.results.online_budget.online_table`, with their intervals as bands where a
    panel has few entries, else as bars at the last number of pulls."""
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = panels(len(tasks))
    styles = line_styles(sorted(set(table["entry"])))
    for axis, task in zip(axes.flat, tasks, strict=False):
        mine = table[table["task"] == task]
        entries = list(dict.fromkeys(mine["entry"]))
        last = mine["pulls"].max()
        for i, (entry, curve) in enumerate(mine.groupby("entry", sort=False)):
            colour, dash = styles[str(entry)]
            axis.plot(curve["pulls"], curve["score"], dash, color=colour, linewidth=1.4)
            if len(entries) <= BANDS:
                low, high = curve["low"], curve["high"]
                axis.fill_between(curve["pulls"], low, high, color=colour, alpha=0.13, linewidth=0)
                continue
            end = curve.iloc[-1]
            at = last * 1.13 ** (i + 1)
            axis.vlines(at, end["low"], end["high"], color=colour, linewidth=1.2)
            axis.plot(at, end["score"], "o", color=colour, markersize=3.5)
        low, high = axis.get_ylim()
        # scores that are all alike
        axis.set_ylim(min(low, (low + high) / 2 - 1), max(high, (low + high) / 2 + 1))
        axis.set_xscale("log")
        ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= last]
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
        axis.set_title(task, fontsize=8.5, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    legend(figure, axes, styles, len(tasks), _ABOUT)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure
