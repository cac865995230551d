"""Pictures of decisions: executed lengths, scores of controls, values against the returns that followed.

For each task

    <task>-lengths.png       for each entry that chooses lengths: the mean planned length by time step and by
                             distance to the goal, and its score beside those of controls of fixed lengths
    <task>-calibration.png   for each entry and each of its controls: the mean return of decisions of about
                             equal value; on the diagonal values come true
    decisions.csv            what is drawn
"""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.results import drawing
from offbench.results.decisions import measure
from offbench.results.drawing import BLUE, ORANGE

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
    draw = lambda task, mine: {
        "lengths": lengths_figure(task, mine),
        "calibration": calibration_figure(task, mine),
    }
    return drawing.write_pictures(folder, "decisions", numbers, draw)


# --- lengths and scores ---------------------------------------------------------------------


def lengths_figure(task: str, numbers: pd.DataFrame) -> "Figure | None":
    """A row per entry: length by step, length by distance, scores of the policy and its controls.

    None where no entry chooses its lengths.
    """
    entries = sorted(numbers.loc[numbers["control"].notna(), "entry"].unique())
    if not entries:
        return None
    figure, axes = drawing.make_figure(len(entries), 3, (3.6, 2.7))
    for row, entry in zip(axes, entries, strict=True):
        mine = numbers[numbers["entry"] == entry]
        longest = int(mine["control"].max())
        _draw_by_step(row[0], mine, longest)
        _draw_by_distance(row[1], mine, longest)
        _draw_scores(row[2], mine[mine["what"] == "score"])
        row[0].set_ylabel(f"{fill(entry, 24)}\nmean steps planned", fontsize=9)
    titles = ("length by time step", "length by distance to the goal", "score by length")
    drawing.title_columns(axes, titles)
    figure.suptitle(f"{task}, kept policies played again", fontsize=11)
    return figure


def _draw_by_step(axis: "Axes", numbers: pd.DataFrame, longest: int) -> None:
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


def _draw_by_distance(axis: "Axes", numbers: pd.DataFrame, longest: int) -> None:
    lines = numbers[numbers["what"] == "length by distance"]
    if lines.empty:
        drawing.say(axis, "the environment tells no distance")
        return
    _draw_band(axis, lines, BLUE, "-", "")
    _of_lengths(axis, longest)
    axis.set_xlabel("distance to the goal", fontsize=9)


def _draw_band(axis: "Axes", lines: pd.DataFrame, colour: str, style: str, label: str) -> None:
    # the mean of a single episode is no mean of others
    several = lines[lines["low"].notna()]
    lines = (several if len(several) else lines).sort_values("at")
    drawing.band(axis, "at", lines, colour, linestyle=style, marker=".", label=label)


def _of_lengths(axis: "Axes", longest: int) -> None:
    axis.set(ylim=(0.7, longest + 0.3), yticks=drawing.whole_ticks(longest))


def _draw_scores(axis: "Axes", scores: pd.DataFrame) -> None:
    """Controls by length; the policy itself left of them, and a line across."""
    controls = scores[scores["control"].notna()].sort_values("control")
    own = scores[scores["control"].isna()]
    lengths = [int(k) for k in controls["control"]]
    for lines, at, colour in ((own, [0] * len(own), BLUE), (controls, lengths, ORANGE)):
        axis.errorbar(
            at, lines["value"], drawing.interval_bars(lines), fmt="o", color=colour, capsize=3
        )
    axis.axhline(own["value"].iloc[0], color=BLUE, linewidth=0.8, linestyle=":")
    ticks = drawing.whole_ticks(max(lengths))
    axis.set_xticks([0, *ticks], ["adaptive", *map(str, ticks)])
    axis.set_xlim(-0.7, max(lengths) + 0.7)
    # rates, whose intervals stay within them
    if scores[["value", "low", "high"]].stack().between(0, 100).all():
        axis.set_ylim(-4, 104)
    axis.set_xlabel("steps of every chunk", fontsize=9)
    axis.set_ylabel("score\n(95 % interval)", fontsize=8)


# --- calibration ----------------------------------------------------------------------------


def calibration_figure(task: str, numbers: pd.DataFrame) -> "Figure":
    """Mean return by value: a row for an entry with controls, the other entries in rows together."""
    rows = _rows({entry: _panels(part) for entry, part in numbers.groupby("entry")})
    columns = max(map(len, rows))
    figure, axes = drawing.make_figure(len(rows), columns, (2.5, 2.6))
    for row, panels in zip(axes, rows, strict=True):
        for axis, (entry, control, name) in zip(row, panels):
            mine = numbers[numbers["entry"] == entry]
            ends = _ends(mine[mine["what"] == "return by value"])
            some = mine[mine["control"].isna() if control is None else mine["control"] == control]
            _draw_calibration(axis, some, ends)
            axis.set_title(f"{fill(f'{entry}{name}', 30)}\n{_difference(some)}", fontsize=8)
        for axis in row[len(panels) :]:
            axis.set_axis_off()
        row[0].set_ylabel("discounted return", fontsize=9)
    note = "equally many decisions in a bin, 95 % intervals; orange rings: some returns cut short"
    figure.supxlabel(f"value of decisions\n({note})", fontsize=9)
    figure.suptitle(f"{task}, values against the returns that followed", fontsize=11)
    return figure


# entry, control, what it is called behind the entry
_Panel = tuple[str, int | None, str]


def _rows(controls: dict[str, list[int | None]]) -> list[list[_Panel]]:
    """The panels row by row: entries with controls first."""
    rows: list[list[_Panel]] = []
    for entry, own in controls.items():
        if len(own) > 1:
            steps = lambda k: ", adaptive" if k is None else f", {k} step{'s' if k > 1 else ''}"
            rows.append([(entry, control, steps(control)) for control in own])
    single: list[_Panel] = [(entry, None, "") for entry, own in controls.items() if len(own) == 1]
    width = max(map(len, rows), default=4)
    return rows + [single[i : i + width] for i in range(0, len(single), width)]


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
        shape: dict[str, Any] = {"markerfacecolor": face, "markersize": 4, "capsize": 2}
        axis.errorbar(
            part["at"], part["value"], drawing.interval_bars(part), fmt="o", color=colour, **shape
        )
    axis.set(xlim=ends, ylim=ends)


def _difference(numbers: pd.DataFrame) -> str:
    found = numbers[numbers["what"] == "value minus return"]
    return "no finite values" if found.empty else drawing.value_minus_return(found.iloc[0])
