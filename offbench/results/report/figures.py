"""Pictures of a board for papers, as vector graphics (PDF, SVG) and PNG: aggregates, profiles, curves.

Lines differ in their dashes too, not in colours alone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.errors import UserError, writing
from offbench.io import replacing
from offbench.results.board.leaderboard import Board
from offbench.results.curves import curve_table
from offbench.results.curves_figure import draw_figure
from offbench.results.drawing import COLOURS, DASHES
from offbench.results.pairwise import profiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = ("pdf", "svg", "png")
# text stays text, and the same board gives the same bytes
_STYLE: Any = {
    "font.size": 9,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "offbench",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_METADATA: Mapping[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_figures(
    board: Board,
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    folder: Path,
    unscaled: Collection[str] = (),
) -> list[Path]:
    """Writes the pictures that the board has the numbers for, each in three formats, and returns their paths.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records.
        unscaled: tasks whose score is a plain return.

    Raises:
        UserError: there is nothing to draw, or the folder cannot be written to.
    """
    from matplotlib import rc_context

    order = list(board.aggregate["entry"])
    curves = curve_table(episodes, runs)
    watched = set(curves.loc[curves["stream"] == "monitor", "task"])
    pictures: dict[str, Callable[[], Figure]] = {}
    if board.aggregate["iqm"].notna().any():
        found = profiles(episodes, runs, board.tasks, unscaled=unscaled)
        pictures["aggregates"] = partial(_aggregates, board.aggregate)
        pictures["profiles"] = partial(_profiles, found, order)
    if watched:
        shown = curves[curves["task"].isin(watched)]
        place = {task: i for i, task in enumerate(board.tasks)}
        shown = shown.sort_values("task", key=lambda x: x.map(place), kind="stable")
        pictures["curves"] = partial(draw_figure, shown, order=order)
    if not pictures:
        raise UserError(
            "nothing to draw: no entry has every seed of every task, and no run was evaluated during training"
        )
    paths = []
    with writing(f"figures to {folder}"), rc_context(_STYLE):
        for name, draw in pictures.items():
            paths += _save(draw(), folder, name)
    return paths


def _save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in _FORMATS]
    for path, kind in zip(paths, _FORMATS, strict=True):
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=_METADATA.get(kind))
    return paths


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _aggregates(aggregate: pd.DataFrame) -> "Figure":
    """IQM and mean of each ranked entry with their intervals, the best at the top."""
    table = aggregate[aggregate["iqm"].notna()]
    figure, axis = _figure(5.0, 0.7 + 0.32 * len(table))
    y = np.arange(len(table))
    kinds = (
        ("IQM", "iqm", "low", "high", COLOURS[0], "o"),
        ("mean", "mean", "mean_low", "mean_high", "0.45", "D"),
    )
    for k, (label, name, low, high, colour, marker) in enumerate(kinds):
        point = table[name].to_numpy(dtype=float)
        ends = np.array([point - table[low], table[high] - point], dtype=float)
        style: dict[str, Any] = {
            "fmt": marker,
            "color": colour,
            "markersize": 4.5,
            "elinewidth": 1.4,
            "label": label,
        }
        axis.errorbar(point, y + 0.24 * k - 0.12, xerr=np.nan_to_num(ends).clip(0), **style)
    axis.set_yticks(y, table["entry"])
    axis.invert_yaxis()
    axis.set_xlabel("score")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _profiles(table: pd.DataFrame, order: Sequence[str]) -> "Figure":
    """A line with its band for each entry, in the order of the board."""
    known = set(table["entry"])
    shown = [entry for entry in order if entry in known]
    columns = min(4, len(shown))
    figure, axis = _figure(5.0, 3.4 + 0.17 * -(-len(shown) // columns))
    for i, (entry, colour) in enumerate(zip(shown, cycle(COLOURS))):
        mine = table[table["entry"] == entry].sort_values("threshold")
        x, y, low, high = (
            mine[name].to_numpy(dtype=float) for name in ("threshold", "point", "low", "high")
        )
        style: dict[str, Any] = {"linestyle": DASHES[i % len(DASHES)], "linewidth": 1.4}
        axis.plot(x, y, color=colour, label=entry, drawstyle="steps-post", **style)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, step="post")
    axis.set(xlabel="score threshold", ylabel="share of runs above", ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure
