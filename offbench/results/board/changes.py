"""What changed between two leaderboards, and whether it is more than noise.

The runs of two boards have nothing in common that could be paired, so a difference is tested with the
intervals that both boards print: the variances that they imply are added, each from the side that faces
the other score (`offbench.results.stats.difference`), which holds for success rates too. p-values are
corrected by Holm over all scores that both boards have.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from offbench.errors import UserError
from offbench.results import stats
from offbench.results.board.leaderboard import Board

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# degrees of freedom of an IQM's bootstrap interval, which is stretched to Student's t already
_MANY = 1e6

IQM = "IQM"


@dataclass(frozen=True)
class Scores:
    """The scores of a board, as it is written."""

    # what it is called in sentences
    name: str
    # of its intervals
    level: float
    # entry, task (or "IQM"), value, low, high, n_seeds; value nan where there is none
    table: pd.DataFrame
    # task -> what is behind its scores (`Board.sources`); None where the file does not say
    sources: Mapping[str, Mapping[str, list[str]]] | None


def scores_of(board: Board) -> Scores:
    """Those of a computed board."""
    cells = board.cells.rename(columns={"mean": "value"})
    iqm = board.aggregate.rename(columns={"iqm": "value"}).assign(task=IQM)
    return Scores(board.title, board.level, _table([iqm, cells]), board.sources)


def read_scores(path: Path) -> Scores:
    """Those of a written board, .json or .csv.

    Raises:
        UserError: there is no such file, or it is no board.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"cannot read {path}: no results folder, and no board's .json or .csv"
        ) from None
    try:
        if path.suffix == ".json":
            return _from_json(json.loads(text), path)
        if path.suffix == ".csv":
            return _from_csv(text, path)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no board that `offbench board` wrote") from None
    raise UserError(
        f"cannot compare with {path}: a board's .json or .csv, or a results folder, can be"
    )


def _from_json(found: Mapping[str, Any], path: Path) -> Scores:
    cells = pd.DataFrame(found["cells"]).rename(columns={"mean": "value"})
    iqm = pd.DataFrame(found["aggregate"]).rename(columns={"iqm": "value"}).assign(task=IQM)
    return Scores(str(path), float(found["level"]), _table([iqm, cells]), found["sources"])


def _from_csv(text: str, path: Path) -> Scores:
    rows = pd.DataFrame(list(csv.DictReader(io.StringIO(text))))
    iqm = rows[(rows["kind"] == "aggregate") & (rows["statistic"] == "iqm")].assign(task=IQM)
    cells = rows[(rows["kind"] == "cell") & (rows["statistic"] == "mean")]
    return Scores(str(path), 0.95, _table([iqm, cells]), None)


def _table(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = ["entry", "task", "value", "low", "high", "n_seeds"]
    table = pd.concat([part[columns] for part in parts], ignore_index=True)
    for name in columns[2:]:
        numbers = pd.to_numeric(table[name].replace("", np.nan), errors="raise").astype(float)
        # as it is written
        table[name] = [float(f"{x:.6g}") for x in numbers]
    return table


@dataclass(frozen=True)
class Changes:
    """What differs between two boards.

    scores: entry, task, old, new, difference, low, high, p (Holm), noise (True, False, or None where it is
    not tested), of every score that both boards have, the surest change first.
    """

    old: Scores
    new: Scores
    scores: pd.DataFrame
    # entries and tasks that came and went, and what else is behind the scores, one line each
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What to know of it."""
        found = self.scores
        if found.empty:
            return "the boards have no score in common"
        same = int((found["difference"] == 0).sum())
        if same == len(found):
            return f"no score changed: all {same} are the same"
        sure = found[found["noise"].eq(False)]
        moved = len(found) - same - len(sure)
        names = [
            f"{x.entry} on {x.task}" if x.task != IQM else f"the IQM of {x.entry}"
            for x in sure.itertuples()
        ]
        shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
        return (
            f"{len(sure)} of {len(found)} scores moved by more than noise{shown};"
            f" {moved} moved within noise, {same} are the same"
        )

    def to_terminal(self, console: "Console") -> None:
        """Prints the sentence, the scores that moved, and the notes."""
        from rich.text import Text

        console.print(Text(f"{self.sentence}."))
        moved = self.scores[self.scores["difference"] != 0]
        for title, rows in (
            ("more than noise", moved[moved["noise"].eq(False)]),
            ("within noise", moved[moved["noise"].eq(True)]),
            ("not tested, as one seed says nothing of the noise", moved[moved["noise"].isna()]),
        ):
            if len(rows):
                console.print(_table_of(title, rows))
        for note in self.notes:
            console.print(Text(f"* {note}", style="yellow"))


def _table_of(title: str, rows: pd.DataFrame) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.title, table.title_justify = f"\n{title}", "left"
    table.add_column("entry", overflow="fold")
    table.add_column("  task", overflow="fold")
    for name in ("  old -> new", "  difference", "  p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows.itertuples():
        table.add_row(*(Text(text) for text in _texts(row)))
    return table


def _texts(row: Any) -> Iterator[str]:
    tested = row.noise is not None
    yield row.entry
    yield f"  {row.task.removeprefix('offbench/')}"
    yield f"  {row.old:.1f} -> {row.new:.1f}"
    yield f"  {row.difference:+.1f}" + (f" [{row.low:+.1f}, {row.high:+.1f}]" if tested else "")
    yield f"  {row.p:.2g}" if tested else "  --"


def changes(old: Scores, new: Scores) -> Changes:
    """What changed from one board to another."""
    both = old.table.merge(new.table, on=["entry", "task"], suffixes=("_old", "_new"))
    both = both[both["value_old"].notna() & both["value_new"].notna()].reset_index(drop=True)
    found = _differences(both, old.level, new.level)
    found = found.sort_values(["p", "task", "entry"], ignore_index=True)
    return Changes(old, new, found, tuple(_notes(old, new)))


def _differences(both: pd.DataFrame, old_level: float, new_level: float) -> pd.DataFrame:
    """The differences with intervals and p-values; the written digits are all there is."""
    seeds = _seeds(both)
    old = _standard_errors(both, "old", seeds[0], old_level)
    new = _standard_errors(both, "new", seeds[1], new_level)
    found = stats.difference(new, old)
    difference, below, above = found.point, found.point - found.low, found.high - found.point
    up = difference >= 0
    # of each score the side that faces the other one
    facing = np.where(
        up,
        [old.high - old.point, new.point - new.low],
        [old.point - old.low, new.high - new.point],
    )
    freedom = stats.satterthwaite(facing**2, seeds, seeds.min(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(freedom, -np.abs(difference) / np.where(up, below, above))
    p = np.where(difference == 0, 1.0, p)
    tested = np.isfinite(p)
    adjusted = np.full(len(p), np.nan)
    adjusted[tested] = stats.holm(p[tested])
    t = special.stdtrit(freedom, (1 + new_level) / 2)
    noise = [bool(x >= 1 - new_level) if np.isfinite(x) else None for x in adjusted]
    return pd.DataFrame(
        {
            "entry": both["entry"],
            "task": both["task"],
            "old": both["value_old"],
            "new": both["value_new"],
            "difference": difference,
            "low": difference - t * below,
            "high": difference + t * above,
            "p": adjusted,
            "noise": pd.Series(noise, dtype=object),
        }
    )


def _standard_errors(both: pd.DataFrame, which: str, seeds: np.ndarray, level: float) -> Any:
    """The old or new scores between one standard error below and one above, which their bounds imply: an Interval
    of (n,) arrays."""
    point, low, high = (both[f"{name}_{which}"].to_numpy() for name in ("value", "low", "high"))
    t = special.stdtrit(seeds, (1 + level) / 2)
    return stats.Interval(point, point - (point - low) / t, point + (high - point) / t)


def _seeds(both: pd.DataFrame) -> np.ndarray:  # (2, n)
    many = both["task"].eq(IQM).to_numpy()
    return np.where(many, _MANY, both[["n_seeds_old", "n_seeds_new"]].to_numpy().T)


def _notes(old: Scores, new: Scores) -> Iterator[str]:
    before, after = (x.table[x.table["value"].notna()] for x in (old, new))
    for column, word in (("entry", "entries"), ("task", "tasks")):
        names = [set(x[column]) - {IQM} for x in (before, after)]
        if gone := sorted(names[0] - names[1]):
            yield f"{word} that are gone: {', '.join(gone)}"
        if added := sorted(names[1] - names[0]):
            yield f"{word} that were added: {', '.join(added)}"
    if old.sources is None:
        yield "a .csv does not say which data, environment and protocol are behind it; the .json does"
        return
    yield from _other_sources(old.sources, new.sources or {})


def _other_sources(
    old: Mapping[str, Mapping[str, list[str]]], new: Mapping[str, Mapping[str, list[str]]]
) -> Iterator[str]:
    """Data, environment, protocol and versions that are others, a line for all tasks that share them."""
    found: dict[str, list[str]] = {}
    common = [task for task in new if task in old]
    for task in common:
        for name in dict.fromkeys([*old[task], *new[task]]):
            sides = [" and ".join(x[task].get(name, ["unset"])) for x in (old, new)]
            if sides[0] != sides[1]:
                found.setdefault(f"{name} was {sides[0]}, is {sides[1]}", []).append(task)
    for words, tasks in found.items():
        every = len(tasks) == len(common) > 1
        yield f"{'all tasks' if every else ', '.join(tasks)}: {words}"
