"""The board of runs that played nothing: estimated values of every entry, and validation metrics.

With `eval.by=fqe` entries are ranked by what they are estimated to be worth. Else there is no ranking: a policy
that does what the data do has a small action error whether or not it would earn anything, so entries stand
in the order of their names.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from offbench.errors import unknown
from offbench.results import markdown
from offbench.results.board.render import write_texts
from offbench.results.captions import count
from offbench.results.estimates import over_seeds
from offbench.results.schema import ESTIMATE, ESTIMATE_ERROR, RECORDED, VALIDATION_ERRORS
from offbench.results.selection import refuse_mixtures

if TYPE_CHECKING:
    from rich.console import Console

HEAD = "no environment: not ranked by return"
RANKED = "nothing was played: ranked by the value that {by} estimates, discount {gamma:g}"
ESTIMATE_CAPTION = (
    "Estimated value: discounted raw rewards from the first observations of the recorded episodes, by fitted Q"
    " evaluation on those episodes. Mean and 95 % interval over seeds and start states. The interval says nothing"
    " of the estimator's bias, nor of which episodes were recorded: intervals that overlap are no order, and"
    " others may be a wrong one. Recorded: the mean discounted return of the recorded episodes, without what would"
    " follow where they were cut."
)
CAPTION = (
    "Action error: mean squared difference between the policy's action and the recorded one, in units of"
    " [-1, 1]; of discrete actions the share of other choices. Mean (range) over seeds, after the last"
    " update. It says how far a policy is from the data, not what it would earn."
)
_HELD_OUT = ("held-out action error", "on training episodes")


@dataclass(frozen=True, kw_only=True)
class ValidationTable:
    """rows, one per (task, entry), by task and rank: task, entry, n_seeds, n_asked, n_failed, updates, tuning,
    estimate, estimate_low, estimate_high and recorded (nan where nothing was estimated), held_out, low, high
    and training (action errors), and the mean of every other validation metric under its name."""

    title: str
    rows: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        """Whether values were estimated."""
        return bool(self.rows["estimate"].notna().any())

    @property
    def captions(self) -> list[str]:
        """What its numbers mean."""
        held_out = bool(self.rows["held_out"].notna().any())
        return [ESTIMATE_CAPTION] * self.ranked + [CAPTION] * (held_out or not self.ranked)


def validation_table(
    runs: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    *,
    seeds: Mapping[str, Sequence[int]],
    title: str,
) -> ValidationTable:
    """Estimated values and validation metrics after the last update, one row per (task, entry).

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
            **_estimated(last),
            "held_out": error.mean(),
            "low": error.min(),
            "high": error.max(),
            "training": last[name.replace("validation", "training")].mean()
            if name
            else float("nan"),
        }
        if len(mine) and ESTIMATE in last and not np.isfinite(last[ESTIMATE]).all():
            notes.append(f"{entry} on {task}: the estimated value of a seed is not finite")
        others = [n for n in last if n.startswith("validation/") and n != name]
        lines.append(line | {n: last[n].mean() for n in others})
        notes += [
            f"{entry} on {task}: {reason}" for reason in dict.fromkeys(group["reason"].dropna())
        ]
    rows = pd.DataFrame(lines).sort_values(
        ["task", "estimate", "entry"], ascending=[True, False, True], ignore_index=True
    )
    head = HEAD
    if rows["estimate"].notna().any():
        by = ", ".join(runs["protocol.by"].dropna().unique()).upper()
        head = RANKED.format(by=by, gamma=runs["protocol.fqe_gamma"].dropna().iloc[0])
    return ValidationTable(title=f"{title}; {head}", rows=rows, notes=tuple(notes))


def _estimated(last: pd.DataFrame) -> dict[str, float]:
    """The estimate of an entry, from the last values of its runs' curves; nan where there is none."""
    names = ("estimate", "estimate_low", "estimate_high", "recorded")
    if ESTIMATE not in last or not np.isfinite(last[ESTIMATE]).all():
        return dict.fromkeys(names, float("nan"))
    found = over_seeds(last[ESTIMATE].to_numpy(float), last[ESTIMATE_ERROR].to_numpy(float))
    return dict(zip(names, (*found, float(last[RECORDED].mean())), strict=True))


def _columns(table: ValidationTable, rows: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The columns of a task's table: heads, and a text for each row."""
    seeds = [
        str(r.n_seeds) if r.n_seeds == r.n_asked else f"{r.n_seeds} of {r.n_asked}"
        for r in rows.itertuples()
    ]
    shown = [("entry", list(rows["entry"])), ("seeds", seeds)]
    if table.ranked:
        values = [
            f"{r.estimate:.4g} [{r.estimate_low:.4g}, {r.estimate_high:.4g}]"
            if np.isfinite(r.estimate)
            else "failed"
            for r in rows.itertuples()
        ]
        places = [str(i + 1) for i in range(len(rows))]
        recorded = [f"{x:.4g}" if np.isfinite(x) else "" for x in rows["recorded"]]
        shown = [("#", places), *shown, ("estimated value", values), ("recorded", recorded)]
    if not table.ranked or rows["held_out"].notna().any():
        errors = [
            f"{r.held_out:.4g} ({r.low:.4g} to {r.high:.4g})" if r.n_seeds else "failed"
            for r in rows.itertuples()
        ]
        training = [f"{r.training:.4g}" if r.n_seeds else "" for r in rows.itertuples()]
        shown += zip(_HELD_OUT, (errors, training), strict=True)
    return [
        *shown,
        ("updates", list(map(count, rows["updates"]))),
        ("settings", list(rows["tuning"])),
    ]


def to_markdown(table: ValidationTable) -> str:
    """A GitHub table per task, the caption and the notes."""
    lines = [f"# {table.title}"]
    for task, rows in table.rows.groupby("task"):
        heads, columns = zip(*_columns(table, rows), strict=True)
        texts = list(zip(*columns, strict=True))
        lines += ["", f"## {task}", "", markdown.table(heads, texts, left=range(len(heads)))]
    lines += ["", "\n\n".join(table.captions), *(f"\n* {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_terminal(table: ValidationTable, console: "Console") -> None:
    """Prints a table per task, the caption and the notes."""
    from rich.table import Table
    from rich.text import Text

    for task, rows in table.rows.groupby("task"):
        heads, columns = zip(*_columns(table, rows), strict=True)
        shown = Table(title=f"{table.title}: {task}", title_justify="left", box=None)
        for head in heads:
            shown.add_column(head, overflow="fold")
        for texts in zip(*columns, strict=True):
            shown.add_row(*map(Text, texts))
        console.print(shown)
    for caption in table.captions:
        console.print(Text(caption, style="dim"))
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
