"""What all pictures have in common: colours, panels, a legend below them, and files that are whole or not there."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.errors import writing
from offbench.io import atomic_write, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (2008), told apart by everyone, without yellow, which is faint on white."""

BLUE, ORANGE = COLOURS[:2]

DASHES = ("-", "--", ":", "-.")


def write_pictures(
    folder: Path,
    name: str,
    numbers: pd.DataFrame,
    draw: Callable[[str, pd.DataFrame], Mapping[str, "Figure | None"]],
) -> list[Path]:
    """Writes numbers as `<name>.csv` and pictures of each task as `<task>-<kind>.png`; returns their paths.

    Args:
        numbers: rows with a column `task`.
        draw: of a task and its rows the pictures by their kind; None for one that has nothing to show.

    Raises:
        UserError: they cannot be written.
    """
    paths = [folder / f"{name}.csv"]
    with writing(f"diagnostics to {folder}"):
        text = numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        atomic_write(paths[0], text.encode())
        for task, mine in numbers.groupby("task"):
            for kind, figure in draw(str(task), mine).items():
                if figure is not None:
                    paths.append(folder / f"{slug(str(task))}-{kind}.png")
                    save_png(figure, paths[-1], dpi=110)
    return paths


def save_png(figure: "Figure", path: Path, *, dpi: int) -> None:
    """Writes a figure as PNG, whole or not at all. OSError where it cannot be written."""
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi)
    atomic_write(path, image.getvalue())


def make_figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, Any]":
    """A figure that no window shows, and its panels (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def title_columns(axes: Any, titles: Sequence[str]) -> None:
    """Titles above the panels of the first row."""
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)


def band(axis: "Axes", at: str, lines: pd.DataFrame, color: Any, **line: Any) -> None:
    """A line through `value` over the column `at`, and a band from `low` to `high`."""
    axis.fill_between(lines[at], lines["low"], lines["high"], color=color, alpha=0.2, linewidth=0)
    axis.plot(lines[at], lines["value"], color=color, **line)


def legend_below(figure: "Figure", handles: Sequence[Any], title: str) -> None:
    """A legend in one line below all panels."""
    figure.legend(
        handles=handles,
        title=title,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )


def interval_bars(lines: pd.DataFrame) -> np.ndarray:
    """(2, n) from a value down and up to the ends of its interval; 0 where it has none."""
    y = lines["value"].to_numpy(float)
    return np.nan_to_num(np.array([y - lines["low"], lines["high"] - y])).clip(min=0)


def value_minus_return(line: "pd.Series[Any]") -> str:
    """ "value - return: 1.2 ± 0.4"."""
    half = "" if np.isnan(line["low"]) else f" ± {(line['high'] - line['low']) / 2:.3g}"
    return f"value - return: {line['value']:.3g}{half}"


def whole_ticks(longest: int) -> list[int]:
    """Ticks of the lengths 1 to `longest`, at most eight."""
    step = -(-longest // 8)
    return list(range(1, longest + 1, step))


def say(axis: "Axes", text: str) -> None:
    """Says in an empty panel why it is empty."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(
        0.5, 0.5, text, ha="center", va="center", fontsize=9, color="0.4", transform=axis.transAxes
    )
