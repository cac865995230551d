"""Pictures of goal-conditioned policies played again: values on the way, success by distance, paths in a maze.

For each task, one colour for each of its goals,

    <task>-goals.png    for each entry: the mean value by the steps that were left in episodes that arrived, and
                        by the distance to the goal in all; the share of successes by the distance at the start
    <task>-paths.png    in a maze, for each entry and goal: the walls, the paths of its first episodes from start
                        (dot) to goal (star), and of methods with sub-goals from some of the states a line to
                        where they head for
    goals.csv           what the first shows
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.results import drawing, stats
from offbench.results.decisions import PLACES, cluster_interval, equal_bins
from offbench.results.drawing import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("entry", "task", "goal", "what", "at", "value", "low", "high", "n")
"""The columns of `measure_goals`."""

# centres of a maze's walls, and how wide each is
Walls = tuple[Sequence[tuple[float, float]], float]
# of one goal, drawn
MOST_PATHS = 4


def measure_goals(
    decisions: pd.DataFrame, runs: pd.DataFrame, goals: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """Values and successes by goal, one number per row, in COLUMNS.

    Args:
        decisions: rows of `offbench.results.decisions.DECISION_SCHEMA`.
        runs: `Store.runs()`, which say what entry and task a run is of.
        goals: task -> the numbers of its goals, which episodes take in turn.

        value by steps left    mean of n decisions of episodes that arrived
        value by distance      mean of n decisions, where the environment tells a distance
        success                share of n episodes, by their mean distance at the start (none: without `at`),
                               with its 95 % Wilson interval

    Intervals of values are of 95 % and count the decisions of an episode as one observation.
    """
    lines: list[dict[str, Any]] = []
    for (entry, task, goal), part in _by_goal(decisions, runs, goals).groupby(
        ["entry", "task", "goal"]
    ):
        common = {"entry": entry, "task": task, "goal": goal}
        lines += [common | line for line in (*_values(part), _success(part))]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _by_goal(
    decisions: pd.DataFrame, runs: pd.DataFrame, goals: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """The decisions of policies themselves on goal-conditioned tasks, with `entry`, `task` and `goal`."""
    known = runs.set_index("run_id")[["entry", "task"]]
    table = decisions[decisions["control"].isna()].join(known, on="run_id", how="inner")
    table = table[table["task"].isin(list(goals))]
    table = table.astype(dict.fromkeys(["value", "distance", *PLACES], "float64"))
    pairs = zip(table["task"], table["episode"], strict=True)
    return table.assign(goal=[goals[task][n % len(goals[task])] for task, n in pairs])


def _values(part: pd.DataFrame) -> Iterator[dict[str, Any]]:
    part = part[np.isfinite(part["value"])]
    part = part.assign(left=part["steps"] - part["step"])
    won = part[part["success"].fillna(False).astype(bool)]
    near = part[part["distance"].notna()]
    for what, some, at in (("steps left", won, "left"), ("distance", near, "distance")):
        if some.empty:
            continue
        for _, bin_ in some.groupby(equal_bins(some[at]).to_numpy()):
            episodes = bin_.groupby(["run_id", "episode"]).ngroup().to_numpy()
            found = cluster_interval(bin_["value"].to_numpy(), episodes).columns
            yield {"what": f"value by {what}", "at": bin_[at].mean(), **found, "n": len(bin_)}


def _success(part: pd.DataFrame) -> dict[str, Any]:
    first = part[part["step"] == 0]
    n, won = len(first), int(first["success"].fillna(False).sum())
    share = stats.wilson_interval(won, n).columns
    return {"what": "success", "at": first["distance"].mean(), **share, "n": n}


# --- pictures -------------------------------------------------------------------------------


def write_goal_figures(
    decisions: pd.DataFrame,
    runs: pd.DataFrame,
    goals: Mapping[str, Sequence[int]],
    walls: Mapping[str, Walls],
    folder: Path,
) -> list[Path]:
    """Writes numbers and pictures of the goal-conditioned tasks that were played; returns their paths.

    `walls` has the tasks that are mazes. Raises UserError where files cannot be written.
    """
    numbers = measure_goals(decisions, runs, goals)
    if numbers.empty:
        return []
    table = _by_goal(decisions, runs, goals)

    def draw(task: str, mine: pd.DataFrame) -> dict[str, "Figure | None"]:
        figures: dict[str, Figure | None] = {"goals": goals_figure(task, mine)}
        if task in walls:
            figures["paths"] = paths_figure(task, table[table["task"] == task], walls[task])
        return figures

    return drawing.write_pictures(folder, "goals", numbers, draw)


def goals_figure(task: str, numbers: pd.DataFrame) -> "Figure":
    """A row per entry: value by steps left, value by distance, success by distance at the start."""
    entries = sorted(numbers["entry"].unique())
    colours = _colours(sorted(numbers["goal"].unique()))
    figure, axes = drawing.make_figure(len(entries), 3, (3.6, 2.7))
    for row, entry in zip(axes, entries, strict=True):
        mine = {what: part for what, part in numbers[numbers["entry"] == entry].groupby("what")}
        none = numbers.iloc[:0]
        by_steps, by_distance = (
            mine.get(f"value by {x}", none) for x in ("steps left", "distance")
        )
        valued = len(by_steps) + len(by_distance) > 0
        _draw_values(row[0], by_steps, colours, "no episode arrived" if valued else _NO_VALUES)
        _draw_values(row[1], by_distance, colours, "no distance is told" if valued else _NO_VALUES)
        _draw_success(row[2], mine["success"], colours)
        row[0].set_ylabel(f"{fill(entry, 24)}\nvalue", fontsize=9)
    titles = (
        "value on the way, of successes",
        "value by distance",
        "success by distance at the start",
    )
    drawing.title_columns(axes, titles)
    _legend(figure, colours)
    figure.suptitle(f"{task}, kept policies played again", fontsize=11)
    return figure


_NO_VALUES = "the method says no values"


def _colours(goals: Sequence[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(goals)))
    return dict(zip(goals, shades, strict=True))


def _legend(figure: "Figure", colours: Mapping[int, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker=".", label=str(g)) for g, c in colours.items()]
    drawing.legend_below(figure, handles, "goal (bands and bars: 95 %)")


def _draw_values(
    axis: "Axes", lines: pd.DataFrame, colours: Mapping[int, Any], without: str
) -> None:
    if lines.empty:
        drawing.say(axis, without)
        return
    for goal, mine in lines.sort_values("at").groupby("goal"):
        drawing.band(axis, "at", mine, colours[goal], marker=".")
    # towards the goal to the right
    axis.invert_xaxis()
    axis.set_xlabel(f"{lines['what'].iloc[0].removeprefix('value by ')} to the goal", fontsize=9)


def _draw_success(axis: "Axes", lines: pd.DataFrame, colours: Mapping[int, Any]) -> None:
    told = lines["at"].notna().all()
    places = lines["at"] if told else lines["goal"].astype(float)
    # side by side where goals are equally far
    aside = np.linspace(-0.02, 0.02, len(lines)) * max(np.ptp(places), 1.0)
    places = places + aside
    for line, at in zip(lines.itertuples(), places, strict=True):
        bounds = np.array([[line.value - line.low], [line.high - line.value]]).clip(min=0)
        colour = colours[line.goal]
        axis.errorbar([at], [line.value], bounds, fmt="o", color=colour, capsize=3, markersize=5)
    axis.set_ylim(-0.03, 1.06)
    axis.set_xlabel("distance at the start" if told else "goal", fontsize=9)
    axis.set_ylabel("share of successes", fontsize=8)


def paths_figure(task: str, played: pd.DataFrame, walls: Walls) -> "Figure":
    """A row per entry, a panel per goal: the first MOST_PATHS episodes of each, in order of seeds."""
    entries, goals = sorted(played["entry"].unique()), sorted(played["goal"].unique())
    figure, axes = drawing.make_figure(len(entries), len(goals), (2.4, 2.4))
    for row, entry in zip(axes, entries, strict=True):
        for axis, goal in zip(row, goals, strict=True):
            _draw_walls(axis, walls)
            mine = played[(played["entry"] == entry) & (played["goal"] == goal)]
            episodes = list(mine.groupby(["episode", "run_id"], sort=True))
            for _, episode in episodes[:MOST_PATHS]:
                _draw_path(axis, episode)
            won = sum(bool(e["success"].iloc[0]) for _, e in episodes)
            axis.set_title(f"goal {goal}: {won} of {len(episodes)} arrived", fontsize=8)
        row[0].set_ylabel(fill(entry, 24), fontsize=9)
    note = "blue: arrived; orange: did not; dot: start; star: goal"
    if played["subgoal_x"].notna().any():
        note += "; black: from a state to the state of the data it heads for"
    figure.supxlabel(note, fontsize=8)
    figure.suptitle(f"{task}, at most {MOST_PATHS} episodes of each goal", fontsize=11)
    return figure


def _draw_walls(axis: "Axes", walls: Walls) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    centres, width = walls
    corners = np.asarray(centres) - width / 2
    squares = [Rectangle((x, y), width, width) for x, y in corners.tolist()]
    axis.add_collection(PatchCollection(squares, facecolor="0.8", edgecolor="0.8"))
    low, high = corners.min(0), corners.max(0) + width
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])


def _draw_path(axis: "Axes", episode: pd.DataFrame) -> None:
    path = episode.sort_values("step")
    won = bool(path["success"].iloc[0])
    axis.plot(path["x"], path["y"], color=BLUE if won else ORANGE, linewidth=1, alpha=0.8)
    first = path.iloc[0]
    axis.plot(first["x"], first["y"], "o", color="black", markersize=4)
    axis.plot(first["goal_x"], first["goal_y"], "*", color="black", markersize=9)
    for line in path[path["subgoal_x"].notna()].itertuples():
        ends = [line.x, line.subgoal_x], [line.y, line.subgoal_y]
        axis.plot(*ends, color="black", linewidth=0.6, alpha=0.6)
        axis.plot(line.subgoal_x, line.subgoal_y, ".", color="black", markersize=3)
