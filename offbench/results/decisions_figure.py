"""Pictures of decisions: executed lengths, scores of controls, values against the returns that followed.

For each task

    <task>-lengths.png       for each entry the mean planned length by time step and by distance to the
                             goal, and the score beside those of controls of every fixed length
    <task>-calibration.png   for each entry and each of its controls the mean return of decisions of
                             about equal value; on the diagonal values come true
    decisions.csv            what is drawn
"""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from offbench.errors import UserError
from offbench.io import slug
from offbench.results.decisions import measure
from offbench.results.diagnostics import BLUE, ORANGE, make_figure, say, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of one entry's calibration
MOST_PANELS = 8


def write_decisions_figures(
    decisions: pd.DataFrame, runs: pd.DataFrame, folder: Path
) -> list[Path]:
    """Writes the numbers of played decisions and the pictures of each task; returns their paths.

    Raises UserError where they cannot be written.
    """
    numbers = measure(decisions, runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "decisions.csv"]
        numbers.to_csv(paths[0], index=False, float_format="%.6g", lineterminator="\n")
        for task, mine in numbers.groupby("task"):
            drawn = (("lengths", lengths_figure), ("calibration", calibration_figure))
            for kind, draw in drawn:
                paths.append(folder / f"{slug(str(task))}-{kind}.png")
                draw(str(task), mine).savefig(paths[-1], dpi=110)
    except OSError as error:
        raise UserError(f"cannot write diagnostics to {folder}: {error.strerror}") from None
    return paths


# --- lengths and scores ---------------------------------------------------------------------


def lengths_figure(task: str, numbers: pd.DataFrame) -> "Figure":
    """A row per entry: length by step, length by distance, scores of the policy and its controls."""
    entries = sorted(numbers["entry"].unique())
    figure, axes = make_figure(len(entries), 3, (3.6, 2.7))
    for row, entry in zip(axes, entries, strict=True):
        mine = numbers[numbers["entry"] == entry]
        longest = mine["control"].max()
        of_length = mine[mine["what"].str.startswith("length by")]["value"]
        if pd.isna(longest) and of_length.nunique() == 1:
            say(row[0], f"always {of_length.iloc[0]:.0f} steps")
            say(row[1], "the length is not chosen")
        else:
            longest = of_length.max() if pd.isna(longest) else longest
            _draw_by_step(row[0], mine, float(longest))
            _draw_by_distance(row[1], mine, float(longest))
        _draw_scores(row[2], mine[mine["what"] == "score"])
        row[0].set_ylabel(f"{fill(entry, 24)}\nmean steps planned", fontsize=9)
    titles = ("length by time step", "length by distance to the goal", "score by length")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.suptitle(f"{task}, kept policies played again", fontsize=11)
    return figure


def _draw_by_step(axis: "Axes", numbers: pd.DataFrame, longest: float) -> None:
    kinds = (("successes", BLUE, "-"), ("others", ORANGE, "--"))
    found = [
        (name, numbers[numbers["what"] == f"length by step, {name}"], colour, style)
        for name, colour, style in kinds
    ]
    if not any(len(lines) for _, lines, *_ in found):
        found = [("all episodes", numbers[numbers["what"] == "length by step"], BLUE, "-")]
    for name, lines, colour, style in found:
        _draw_band(axis, lines, colour, style, name)
    axis.legend(fontsize=7, frameon=False, loc="best")
    _of_lengths(axis, longest)
    axis.set_xlabel("step of the episode", fontsize=9)


def _draw_by_distance(axis: "Axes", numbers: pd.DataFrame, longest: float) -> None:
    lines = numbers[numbers["what"] == "length by distance"]
    if lines.empty:
        say(axis, "the environment tells no distance")
        return
    _draw_band(axis, lines, BLUE, "-", "")
    _of_lengths(axis, longest)
    axis.set_xlabel("distance to the goal", fontsize=9)


def _draw_band(axis: "Axes", lines: pd.DataFrame, colour: str, style: str, label: str) -> None:
    lines = lines.sort_values("at")
    axis.fill_between(
        lines["at"], lines["low"], lines["high"], color=colour, alpha=0.2, linewidth=0
    )
    axis.plot(lines["at"], lines["value"], color=colour, linestyle=style, marker=".", label=label)


def _of_lengths(axis: "Axes", longest: float) -> None:
    axis.set(ylim=(0.7, longest + 0.3), yticks=whole_ticks(int(np.ceil(longest))))


def _draw_scores(axis: "Axes", scores: pd.DataFrame) -> None:
    """Controls by length; the policy itself left of them, and a line across."""
    controls = scores[scores["control"].notna()].sort_values("control")
    own = scores[scores["control"].isna()]
    lengths = [int(k) for k in controls["control"]]
    for lines, at, colour in ((own, [0] * len(own), BLUE), (controls, lengths, ORANGE)):
        y = lines["value"].to_numpy()
        bounds = np.nan_to_num(np.array([y - lines["low"], lines["high"] - y]))
        axis.errorbar(at, y, bounds, fmt="o", color=colour, capsize=3, markersize=5)
    if len(controls):
        axis.axhline(own["value"].iloc[0], color=BLUE, linewidth=0.8, linestyle=":")
    ticks = [k for k in whole_ticks(max(lengths, default=1)) if k in lengths]
    name = "adaptive" if lengths else "policy"
    axis.set_xticks([0, *ticks], [name, *map(str, ticks)])
    axis.set_xlim(-0.7, max(lengths, default=0) + 0.7)
    axis.set_xlabel("steps of every chunk" if lengths else "", fontsize=9)
    axis.set_ylabel("score\n(mean of seeds, 95 % interval)", fontsize=8)


# --- calibration ----------------------------------------------------------------------------


def calibration_figure(task: str, numbers: pd.DataFrame) -> "Figure":
    """A row per entry: mean return by value, of the policy and of each control."""
    entries = sorted(numbers["entry"].unique())
    shown = {entry: _panels(numbers[numbers["entry"] == entry]) for entry in entries}
    columns = max(map(len, shown.values()))
    figure, axes = make_figure(len(entries), columns, (2.5, 2.5))
    for row, entry in zip(axes, entries, strict=True):
        mine = numbers[numbers["entry"] == entry]
        bins = mine[mine["what"] == "return by value"]
        ends = _ends(bins)
        for axis, control in zip(row, shown[entry]):
            some = mine[mine["control"].isna() if control is None else mine["control"] == control]
            _draw_calibration(axis, some, ends)
            name = f"{control} step{'s' if control != 1 else ''}" if control else "policy"
            name = "adaptive" if control is None and len(shown[entry]) > 1 else name
            axis.set_title(f"{name}\n{_difference(some)}", fontsize=9)
        for axis in row[len(shown[entry]) :]:
            axis.set_axis_off()
        row[0].set_ylabel(f"{fill(entry, 24)}\ndiscounted return", fontsize=9)
    figure.supxlabel(
        "value of decisions, in bins of equally many (95 % intervals; orange rings: some returns cut short)",
        fontsize=9,
    )
    figure.suptitle(f"{task}, values against the returns that followed", fontsize=11)
    return figure


def _panels(numbers: pd.DataFrame) -> list[int | None]:
    """The policy itself (None) and its controls, evenly chosen where there are many."""
    controls = sorted(int(k) for k in numbers["control"].dropna().unique())
    most = MOST_PANELS - 1
    if len(controls) > most:
        picked = np.linspace(0, len(controls) - 1, most).round().astype(int)
        controls = [controls[i] for i in picked]
    return [None, *controls]


def _ends(bins: pd.DataFrame) -> tuple[float, float]:
    if bins.empty:
        return -1.0, 1.0
    low = min(bins["at"].min(), bins["value"].min())
    high = max(bins["at"].max(), bins["value"].max())
    room = 0.08 * max(high - low, 1e-3)
    return low - room, high + room


def _draw_calibration(axis: "Axes", numbers: pd.DataFrame, ends: tuple[float, float]) -> None:
    bins = numbers[numbers["what"] == "return by value"].sort_values("at")
    axis.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
    for part, colour, face in (
        (bins[bins["whole"] == 1], BLUE, BLUE),
        (bins[bins["whole"] < 1], ORANGE, "none"),
    ):
        y = part["value"].to_numpy()
        bounds = np.nan_to_num(np.array([y - part["low"], part["high"] - y]))
        axis.errorbar(
            part["at"],
            y,
            bounds,
            fmt="o",
            color=colour,
            markerfacecolor=face,
            capsize=2,
            markersize=4,
        )
    axis.set(xlim=ends, ylim=ends)


def _difference(numbers: pd.DataFrame) -> str:
    """ "value - return: 1.2 ± 0.4"."""
    found = numbers[numbers["what"] == "value minus return"]
    if found.empty:
        return "no finite values"
    line = found.iloc[0]
    half = "" if np.isnan(line["low"]) else f" ± {(line['high'] - line['low']) / 2:.2g}"
    return f"value - return: {line['value']:.3g}{half}"
