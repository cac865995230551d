"""How far seeds are apart (`offbench.results.consistency`) in results folders that are checked, merged and cleared up.

A file has all pairs of the seeds of a cell, and is taken over whole: rows of two measurements have no pairs of
the seeds of one with those of the other.
"""

from collections.abc import Collection, Iterator, Set
from pathlib import Path

import pandas as pd

from offbench.errors import UserError
from offbench.io import slug
from offbench.results.consistency import of_runs, parse_pairs, write_pairs
from offbench.results.record import Damage


def files(root: Path) -> list[Path]:
    """The files of a results folder, one per cell."""
    return sorted(root.glob("consistency/*/*/*.csv"))


def read(path: Path) -> pd.DataFrame | Damage:
    """The rows of a file, or what is wrong with it."""
    try:
        rows = parse_pairs(path)
    except UserError:
        return Damage(path, "has no rows of consistency")
    place = {(slug(task), slug(entry)) for task, entry in zip(rows["task"], rows["entry"])}
    if place - {(path.parent.name, path.stem)}:
        return Damage(path, "has rows of another entry or task")
    return rows


def faults(root: Path) -> list[Damage]:
    """What is wrong with the files of a results folder."""
    return [found for path in files(root) if isinstance(found := read(path), Damage)]


def without_record(root: Path, recorded: Collection[str]) -> Iterator[Path]:
    """The files whose runs have no record, none of them."""
    for path in files(root):
        rows = read(path)
        if not isinstance(rows, Damage) and _runs(rows).isdisjoint(recorded):
            yield path


def take_over(source: Path, root: Path, same: Collection[str]) -> Iterator[Damage | Path]:
    """Writes to `root` the rows of `source` for runs that are the `same` in both; yields the files that were written,
    and those that cannot be read.

    Rows that are here stay, unless those of the source are of all their runs and of more.
    """
    for path in files(source):
        rows = read(path)
        if isinstance(rows, Damage):
            yield rows
            continue
        target, rows = root / path.relative_to(source), of_runs(rows, same)
        ours = read(target) if target.exists() else rows.iloc[:0]
        if isinstance(ours, Damage):
            yield ours
        elif _runs(ours) < _runs(rows):
            write_pairs(target, rows)
            yield target


def _runs(rows: pd.DataFrame) -> Set[str]:
    return {*rows["run_id"], *rows["other_run_id"]}
