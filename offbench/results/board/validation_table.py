"""The board of data without an environment: validation metrics of every entry, and no ranking.

A policy that does what the data do has a small action error whether or not it would earn anything, so
entries stand in the order of their names.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from offbench.errors import unknown
from offbench.results import markdown
from offbench.results.board.render import write_texts
from offbench.results.captions import count
from offbench.results.schema import VALIDATION_ERRORS
from offbench.results.selection import refuse_mixtures

if TYPE_CHECKING:
    from rich.console import Console

HEAD = "no environment: not ranked by return"
CAPTION = (
    "Action error: mean squared difference between the policy's action and the recorded one, in units of"
    " [-1, 1]; of discrete actions the share of other choices. Mean (range) over seeds, after the last"
    " update. It says how far a policy is from the data, not what it would earn."
)
_COLUMNS = (
    "entry",
    "seeds",
    "held-out action error",
    "on training episodes",
    "updates",
    "settings",
)


@dataclass(frozen=True, kw_only=True)
class ValidationTable:
    """rows, one per (task, entry): task, entry, n_seeds, n_asked, n_failed, updates, tuning, held_out, low,
    high and training (action errors), and the mean of every other validation metric under its name."""

    title: str
    rows: pd.DataFrame
    notes: tuple[str, ...]


def validation_table(
    runs: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    *,
    seeds: Mapping[str, Sequence[int]],
    title: str,
) -> ValidationTable:
    """Validation metrics after the last update, one row per (task, entry).

    Args:
        runs: `Store.runs()`.
        curves: `Store.curves()` of the same records.
        seeds: task -> the seeds asked for.

    Raises:
        UserError: runs of one entry on one task are not seeds of one configuration.
    """
    whole = runs[runs["status"] == "ok"]
    refuse_mixtures(whole)
    lines, notes = [], []
    for (task, entry), group in runs.groupby(["task", "entry"]):
        mine = group[group["status"] == "ok"]
        last = pd.DataFrame([curves[i].iloc[-1] for i in mine["run_id"] if i in curves])
        name = next((n for n in VALIDATION_ERRORS if n in last), None)
        error = last[name] if name else pd.Series(dtype="float64")
        line = {
            "task": task,
            "entry": entry,
            "n_seeds": len(mine),
            "n_asked": len(seeds.get(str(task), mine)),
            "n_failed": len(set(group["seed"]) - set(mine["seed"])),
            "updates": int(group["n_updates"].iloc[0]),
            "tuning": group["tuning.how"].iloc[0],
            "held_out": error.mean(),
            "low": error.min(),
            "high": error.max(),
            "training": last[name.replace("validation", "training")].mean()
            if name
            else float("nan"),
        }
        others = [n for n in last if n.startswith("validation/") and n != name]
        lines.append(line | {n: last[n].mean() for n in others})
        notes += [
            f"{entry} on {task}: {reason}" for reason in dict.fromkeys(group["reason"].dropna())
        ]
    rows = pd.DataFrame(lines).sort_values(["task", "entry"], ignore_index=True)
    return ValidationTable(title=f"{title}; {HEAD}", rows=rows, notes=tuple(notes))


def _texts(row: pd.Series) -> tuple[str, ...]:
    seeds = str(row.n_seeds) if row.n_seeds == row.n_asked else f"{row.n_seeds} of {row.n_asked}"
    error = f"{row.held_out:.4g} ({row.low:.4g} to {row.high:.4g})" if row.n_seeds else "failed"
    training = f"{row.training:.4g}" if row.n_seeds else ""
    return row.entry, seeds, error, training, count(row.updates), row.tuning


def to_markdown(table: ValidationTable) -> str:
    """A GitHub table per task, the caption and the notes."""
    lines = [f"# {table.title}"]
    for task, rows in table.rows.groupby("task"):
        texts = [_texts(row) for _, row in rows.iterrows()]
        lines += ["", f"## {task}", "", markdown.table(_COLUMNS, texts, left=range(6))]
    lines += ["", CAPTION, *(f"\n* {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_terminal(table: ValidationTable, console: "Console") -> None:
    """Prints a table per task, the caption and the notes."""
    from rich.table import Table
    from rich.text import Text

    for task, rows in table.rows.groupby("task"):
        shown = Table(*_COLUMNS, title=f"{table.title}: {task}", title_justify="left", box=None)
        for _, row in rows.iterrows():
            shown.add_row(*(Text(text) for text in _texts(row)))
        console.print(shown)
    console.print(Text(CAPTION, style="dim"))
    for note in table.notes:
        console.print(Text(f"* {note}", style="yellow"))


def to_csv(table: ValidationTable) -> str:
    """The rows as csv."""
    text = io.StringIO()
    table.rows.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def formatted(table: ValidationTable, format: str) -> str:
    """The table as markdown or csv; UserError for another format."""
    formats = {"markdown": to_markdown, "csv": to_csv}
    if format not in formats:
        raise unknown("--format of a board of validation metrics", format, formats)
    return formats[format](table)


def write(table: ValidationTable, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.csv`; the same records give the same bytes."""
    return write_texts(folder, name, to_markdown(table), to_csv(table))
