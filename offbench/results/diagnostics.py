"""What policies do beside scoring: how long their chunks are, and whether their values come true.

Numbers and pictures from the records alone; `offbench diagnose suite=...` writes both. For each task

    <task>-chunks.png   how often each length was executed in evaluations, over training (bars), and how
                        often it won where values were bootstrapped (faint, of a method that chooses);
                        the spread of values over lengths (0: the choice is noise); success by length
    <task>-values.png   what the critics said of the first decision of each test episode against the
                        return that followed, both in the units of the method's data
    numbers.csv         what is drawn, and the mean difference of value and return

A return is *whole* when its episode ended, or when less than 1 % of its horizon is left out (gamma **
length). Others are drawn as rings: of rewards below 0 the return could only be lower, of those above 0
only higher. There is no mean difference over a part of the episodes: where failures are cut short, that
part would be the successes, whose returns are high by selection.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from offbench.errors import UserError
from offbench.results import drawing, stats
from offbench.results.drawing import BLUE, ORANGE
from offbench.results.selection import refuse_mixtures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("entry", "task", "what", "update", "length", "value", "low", "high", "n")
_KEY = ["entry", "task"]
# of a return's horizon, up to which it is called whole
_LEFT_OUT = 0.01


# --- numbers --------------------------------------------------------------------------------


def measure(
    episodes: pd.DataFrame, runs: pd.DataFrame, curves: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Chunk lengths and values against returns, one number per row, in COLUMNS.

    From `Store.episodes()`, `Store.runs()` and `Store.curves()` of the same records. what: `executed` (share of chunks of a length at an evaluation; n chunks), `planned` (share of
    bootstrapped states where a length won, mean over n seeds), `prefix spread` (mean over n seeds, from
    the lowest seed to the highest), `success` (share of n test episodes whose mean executed length is
    near `length`, with its 95 % Wilson interval, which takes the seeds' episodes for independent),
    `start value` (mean over n test episodes), `whole returns` (their share), `discounted return` (mean),
    `value minus return` (mean over seeds with its 95 % Student-t interval; n episodes). The last two only
    where every return is whole.
    """
    of_run = {run["run_id"]: (run["entry"], run["task"]) for run in runs.to_dict("records")}
    lines: list[dict[str, Any]] = []
    for (entry, task), part in episodes.groupby(_KEY):
        mine = [
            curves[run] for run, key in of_run.items() if key == (entry, task) and run in curves
        ]
        test = part[part["stream"] == "test"]
        found = [*_executed(part), *_planned(mine), *_success(test), *_values(test, runs)]
        lines += [{"entry": entry, "task": task, **line} for line in found]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def mean_lengths(episodes: pd.DataFrame) -> pd.DataFrame:
    """The episodes of policies that execute chunks, with the mean length of each: column `executed`."""
    known = episodes[episodes["plans"].notna()]
    known = known.assign(executed=known["length"] / known["plans"].astype(float))
    longest = known.groupby(_KEY)["executed"].transform("max")
    return known[longest > 1]


def start_values(episodes: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The test episodes that have a value and a return, and which returns are `whole`."""
    known = episodes[(episodes["stream"] == "test") & episodes["start_value"].notna()]
    known = known[known["discounted_return"].notna()]
    gamma = runs.get("pipeline.gamma", pd.Series(np.nan, runs.index))
    gamma = known["run_id"].map(dict(zip(runs["run_id"], gamma, strict=True))).astype(float)
    tail = gamma ** known["length"]
    return known.assign(whole=known["terminated"] | (tail < _LEFT_OUT))


def _executed(episodes: pd.DataFrame) -> Iterator[dict[str, Any]]:
    known = episodes[episodes["chunk_lengths"].notna()]
    for update, part in known.groupby("update"):
        count = np.sum(np.stack(part["chunk_lengths"].tolist()), 0)  # (episodes, h) -> (h,)
        for i, n in enumerate(count):
            share = n / count.sum()
            yield {"what": "executed", "update": update, "length": i + 1, "value": share, "n": n}


def _planned(curves: list[pd.DataFrame]) -> Iterator[dict[str, Any]]:
    curves = [curve for curve in curves if "prefix_spread" in curve]
    if not curves:
        return
    n, update = len(curves), curves[0]["update"]
    names = [name for name in curves[0] if name.removeprefix("planned_").isdigit()]
    for name in names:
        for u, share in zip(update, np.mean([c[name] for c in curves], 0), strict=True):
            length = int(name.removeprefix("planned_"))
            yield {"what": "planned", "update": u, "length": length, "value": share, "n": n}
    spread = np.array([c["prefix_spread"] for c in curves])  # (seeds, points)
    for u, seeds in zip(update, spread.T, strict=True):
        bounds = {"low": seeds.min(), "high": seeds.max()}
        yield {"what": "prefix spread", "update": u, "value": seeds.mean(), **bounds, "n": n}


def _success(test: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """By mean executed length, to the nearest half step (of chunks of at most 6 steps) or step."""
    known = mean_lengths(test)
    known = known[known["success"].notna()]
    if known.empty:
        return
    per_step = 2 if known["executed"].max() <= 6 else 1
    for _, part in known.groupby((per_step * known["executed"]).round()):
        n, won = len(part), int(part["success"].sum())
        at = {"update": part["update"].max(), "length": part["executed"].mean()}
        yield {"what": "success", **at, **stats.wilson_interval(won, n).columns, "n": n}


def _values(test: pd.DataFrame, runs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    known = start_values(test, runs)
    if known.empty:
        return
    update, n = known["update"].max(), len(known)
    common = {"update": update, "n": n}
    yield {"what": "start value", "value": known["start_value"].mean(), **common}
    yield {"what": "whole returns", "value": known["whole"].mean(), **common}
    if not known["whole"].all():
        return
    yield {"what": "discounted return", "value": known["discounted_return"].mean(), **common}
    error = (known["start_value"] - known["discounted_return"]).astype(float)
    found = stats.mean_interval(error.groupby(known["seed"]).mean().to_numpy())
    yield {"what": "value minus return", **found.columns, **common}


# --- pictures -------------------------------------------------------------------------------


def write(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    folder: Path,
    *,
    needed: bool = True,
) -> list[Path]:
    """Writes the numbers and the pictures of each task into `folder` and returns their paths.

    Raises UserError where an entry mixes configurations, and where no run has chunks or values; none where
    that is not `needed`, as decisions were played.
    """
    refuse_mixtures(runs[runs["status"] == "ok"])
    numbers = measure(episodes, runs, curves)
    if numbers.empty and not needed:
        return []
    if numbers.empty:
        raise UserError("no run here executes chunks or values its decisions; nothing to diagnose")
    values = start_values(episodes, runs)

    def draw(task: str, mine: pd.DataFrame) -> dict[str, "Figure | None"]:
        valued = values[values["task"] == task]
        return {
            "chunks": _chunks_figure(task, mine),
            "values": _values_figure(task, valued, mine),
        }

    return drawing.write_pictures(folder, "numbers", numbers, draw)


def _chunks_figure(task: str, numbers: pd.DataFrame) -> "Figure | None":
    chunked = numbers[numbers["what"].isin(["executed", "planned", "success"])]
    entries = sorted(chunked["entry"].unique())
    if not entries:
        return None
    longest = int(np.ceil(chunked["length"].max()))
    colours = _colours(longest)
    figure, axes = drawing.make_figure(len(entries), 3, (3.6, 2.6))
    for row, entry in zip(axes, entries, strict=True):
        mine = {what: x for what, x in numbers[numbers["entry"] == entry].groupby("what")}
        none = numbers.iloc[:0]
        _draw_lengths(row[0], mine.get("planned", none), mine.get("executed", none), colours)
        _draw_spread(row[1], mine.get("prefix spread", none))
        _draw_success(row[2], mine.get("success", none), longest)
        row[0].set_ylabel(f"{fill(entry, 24)}\nshare of chunks", fontsize=9)
    titles = ("chunk lengths", "spread of values over lengths", "success by length")
    drawing.title_columns(axes, titles)
    _legend_of_lengths(figure, colours)
    figure.suptitle(task, fontsize=11)
    return figure


def _colours(longest: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.05, 0.95, longest))  # an order: dark is short


def _legend_of_lengths(figure: "Figure", colours: np.ndarray) -> None:
    from matplotlib.patches import Patch

    n = len(colours)
    shown = range(n) if n <= 8 else sorted({0, n // 4, n // 2, 3 * n // 4, n - 1})
    drawing.legend_below(
        figure,
        [Patch(color=colours[i], label=str(i + 1)) for i in shown],
        "steps of a chunk (bars: executed in evaluations; faint: planned where values are bootstrapped)",
    )


def _draw_lengths(
    axis: "Axes", planned: pd.DataFrame, executed: pd.DataFrame, colours: np.ndarray
) -> None:
    if planned.empty and executed.empty:
        drawing.say(axis, "lengths were not recorded then")
        return
    last = max([*planned["update"], *executed["update"]])
    if len(planned):
        table = planned.pivot_table(index="update", columns="length", values="value")
        shades = [colours[int(k) - 1] for k in table]
        axis.stackplot(table.index, table.to_numpy().T, colors=shades, alpha=0.4, linewidth=0)
    table = executed.pivot_table(index="update", columns="length", values="value")
    foot = np.zeros(len(table))
    for length in table:
        share, colour = table[length].to_numpy(), colours[int(length) - 1]
        axis.bar(
            table.index, share, 0.045 * last, foot, color=colour, edgecolor="white", linewidth=0.5
        )
        foot = foot + share
    axis.set_ylim(0, 1)
    _of_updates(axis, last)


def _of_updates(axis: "Axes", last: float) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_xlim(0, 1.04 * last)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1M
    axis.set_xlabel("update", fontsize=9)


def _draw_spread(axis: "Axes", spread: pd.DataFrame) -> None:
    if spread.empty:
        drawing.say(axis, "the length is not chosen")
        return
    drawing.band(axis, "update", spread, BLUE)
    axis.set_ylim(0, None)
    _of_updates(axis, spread["update"].max())
    axis.set_ylabel("largest - smallest value\n(mean and range of seeds)", fontsize=8)


def _draw_success(axis: "Axes", success: pd.DataFrame, longest: int) -> None:
    if success.empty:
        drawing.say(axis, "no episode has both a length and a success")
        return
    bars = drawing.interval_bars(success)
    axis.errorbar(
        success["length"], success["value"], bars, fmt="o", color=ORANGE, capsize=3, markersize=5
    )
    for line in success.itertuples():
        axis.annotate(
            str(line.n),
            (line.length, line.high),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="0.3",
        )
    axis.set(xlim=(0.7, longest + 0.3), ylim=(-0.03, 1.1), xticks=drawing.whole_ticks(longest))
    axis.set_xlabel("mean executed length of an episode", fontsize=9)
    axis.set_ylabel("share of successes\n(95 % interval, number of episodes)", fontsize=8)


def _values_figure(task: str, values: pd.DataFrame, numbers: pd.DataFrame) -> "Figure | None":
    if values.empty:
        return None
    entries = sorted(values["entry"].unique())
    columns = min(4, len(entries))
    figure, axes = drawing.make_figure(-(-len(entries) // columns), columns, (3.0, 2.9))
    for axis in axes.flat[len(entries) :]:
        axis.set_axis_off()
    differ = numbers[numbers["what"] == "value minus return"].set_index("entry")
    for axis, entry in zip(axes.flat, entries, strict=False):
        mine = values[values["entry"] == entry]
        note = f"{(~mine['whole']).sum()} of {len(mine)} returns cut short"
        if entry in differ.index:
            note = drawing.value_minus_return(differ.loc[entry])
        _draw_values(axis, mine)
        axis.set_title(f"{fill(entry, 34)}\n{note}", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("discounted return", fontsize=9)
    hollow = "orange rings: cut short" + (
        ", what would have followed is not in it" if columns > 1 else ""
    )
    figure.supxlabel(f"value of the first decision\n({hollow})", fontsize=9)
    figure.suptitle(task, fontsize=11)
    return figure


def _draw_values(axis: "Axes", values: pd.DataFrame) -> None:
    x, y = (values[name].to_numpy(float) for name in ("start_value", "discounted_return"))
    fine = np.isfinite(x)
    ends = np.array([min(x[fine].min(initial=0), y.min()), max(x[fine].max(initial=0), y.max())])
    ends = ends + np.array([-0.05, 0.05]) * max(ends[1] - ends[0], 1e-3)
    axis.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
    whole = values["whole"].to_numpy(bool)
    for part, face, edge in ((whole, BLUE, BLUE), (~whole, "none", ORANGE)):
        axis.scatter(
            x[part], y[part], s=18, facecolors=face, edgecolors=edge, alpha=0.7, linewidths=0.9
        )
    axis.set(xlim=tuple(ends), ylim=tuple(ends))
