"""`offbench data show`: a dataset's card, and the histogram of its returns."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offbench.cli.console import make_console, print_table, severity_label
from offbench.cli.data.load import card_of, load
from offbench.data import composition
from offbench.errors import UserError, writing
from offbench.tasks import doctor, registry
from offbench.tasks.locate import canonical, load_task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.text import Text

    from offbench.data.replay import ReplayData


def show(options: argparse.Namespace) -> int:
    """Prints the card of the dataset `options.name` and the histogram of its returns."""
    console = make_console()
    try:
        found = load(options.name)
    except UserError:
        _show_what_is_known(options.name, console)
        raise
    report = doctor.check(found.data, found.facts)
    _print_card(found.facts, found.card, found.data, report, console)
    if found.facts.goals:
        console.print("no rewards are recorded, so there are no returns to draw")
        return 0
    values = doctor.returns_of(found.data)
    console.print("\nreturns of its episodes")
    for line in histogram(values):
        console.print(line, markup=False)
    if options.png is not None:
        path = draw(values, found.facts, Path(options.png))
        console.print(f"\nwritten: {path}", soft_wrap=True)
    return 0


def _show_what_is_known(name: str, console: "Console") -> None:
    """The card of a set that is not here and cannot be had now; nothing for a name that is no id."""
    if Path(name).exists() or composition.is_composed(canonical(name)):
        return
    registry.describe(name)
    task = load_task(name)
    if task.sha256 is None:
        facts = doctor.Facts.of(task)
        report = doctor.Report(task.id, 0, 0, tuple(doctor.known_defects(task.id)))
        _print_card(facts, card_of(task), None, report, console)


# findings of severity info that are part of a card
_SHOWN = ("returns", "normalised_mean", "success", "lengths", "known_defect")


def _print_card(
    facts: doctor.Facts,
    card: Mapping[str, Any],
    data: "ReplayData | None",
    report: doctor.Report,
    console: "Console",
) -> None:
    rows: dict[str, Any] = {"id": facts.id, "summary": card.get("summary")}
    if data is not None:
        rows["transitions"] = f"{report.rows:,} in {report.episodes:,} episodes"
        rows["dimensions"] = f"observation {data[0].shape[1]}, action {data[1].shape[1]}"
    rows["environment"] = (card.get("env") or {}).get("id") or card.get("refused")
    rows["differs"] = card.get("differs") or None
    rows["time limit"] = f"{facts.max_episode_steps} steps" if facts.max_episode_steps else None
    if facts.score == "success":
        rows["score"] = "share of successes, in percent"
    elif facts.ref_min is not None:
        rows["score"] = f"0 at a return of {facts.ref_min:g}, 100 at {facts.ref_max:g}"
    rows["behaviour"] = (card.get("recipe") or {}).get("algorithm")
    rows["scored as"] = card.get("base")
    rows["references"] = card.get("reference") or None
    rows["note"] = "\n".join(card.get("notes") or ()) or None
    rows["path"] = card.get("path")
    rows["sha256"] = card.get("sha256")
    lines: list[tuple[str | Text, str]] = [
        (key, str(value)) for key, value in rows.items() if value is not None
    ]
    lines += [
        (severity_label(finding.severity, finding.name), finding.words)
        for finding in report.findings
        if finding.severity != "info" or finding.name in _SHOWN
    ]
    print_table(console, lines, whole=(0,))


_EIGHTHS = " ▏▎▍▌▋▊▉█"


def histogram(values: "NDArray[Any]", *, bins: int = 16, width: int = 60) -> list[str]:
    """Lines of a histogram in block characters: interval, bar, number of values."""
    if np.ptp(values) == 0:
        return [f"{values[0]:>10.4g}  {'█' * width}  {len(values)}"]
    counts, edges = np.histogram(values, bins=min(bins, max(4, len(values))))
    lines = []
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:]):
        eighths = round(8 * width * count / counts.max())
        if count:
            eighths = max(1, eighths)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{low:>10.4g} to {high:<10.4g} {bar:<{width}} {count or ''}".rstrip())
    return lines


def draw(values: "NDArray[Any]", facts: doctor.Facts, folder: Path) -> Path:
    """The histogram as `<id>-returns.png` in a folder, with the references where they are near."""
    from matplotlib.figure import Figure

    from offbench.results.drawing import save_png

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=min(40, max(8, len(values) // 4)), color="#4477aa", rwidth=0.95)
    axes.axvline(values.mean(), color="#222222", linewidth=1.2, label=f"mean {values.mean():.4g}")
    low, high = float(values.min()), float(values.max())
    margin = 0.25 * (high - low)
    references = (("score 0", facts.ref_min, ":"), ("score 100", facts.ref_max, "--"))
    for label, at, style in references if facts.score == "return" else ():
        if at is not None and low - margin <= at <= high + margin:
            axes.axvline(at, color="#cc6677", linestyle=style, label=f"{label} at {at:.4g}")
    axes.set_xlabel("return of an episode")
    axes.set_ylabel("episodes")
    title = facts.id if len(facts.id) <= 72 else f"{facts.id[:70]}…"
    axes.set_title(f"{title}  ({len(values):,} episodes)", fontsize=10)
    ticks: Any = axes.yaxis.get_major_locator()
    ticks.set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path = folder / f"{doctor.report_path(facts.id).stem}-returns.png"
    with writing(path):
        save_png(figure, path, dpi=150)
    return path
