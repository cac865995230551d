"""What was measured of recorded runs, in results folders that are checked, merged and cleared up.

How far seeds are apart (`offbench.results.consistency`), what policies are estimated to be worth offline
(`offbench.results.estimates`), and the decisions of those that were played again (`offbench.results.decisions`). A file
is of some runs, and is taken over whole: rows of two measurements have no pairs of the seeds of one with those of the
other.
"""

from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from offbench.errors import UserError, writing
from offbench.io import finished_file, linked_or_copied, sha256_of, slug
from offbench.results import decisions, estimates, measured
from offbench.results.consistency import of_runs, parse_pairs, write_pairs
from offbench.results.record import Damage
from offbench.results.sharing.files import printable


class Kind(NamedTuple):
    """A folder of measurements."""

    # of the results folder
    folder: str
    # what its files are, in words
    what: str
    # of its files, below it
    pattern: str
    # of a file; UserError, without its path, for one that is damaged
    runs: Callable[[Path], Set[str]]
    # writes the rows of a file (first) for some runs to another; whether that was done
    copy: Callable[[Path, Path, Collection[str]], bool]


class Taken(NamedTuple):
    """A file that was taken over."""

    folder: str
    path: Path


def faults(root: Path) -> Iterator[Damage]:
    """What is wrong with the files of a results folder."""
    for kind, path in _files(root):
        if isinstance(found := _runs(kind, path), Damage):
            yield found


def without_record(root: Path, recorded: Collection[str]) -> Iterator[tuple[Path, str]]:
    """The files whose runs have no record, none of them, and what they are."""
    for kind, path in _files(root):
        found = _runs(kind, path)
        if not isinstance(found, Damage) and found.isdisjoint(recorded):
            yield path, f"{kind.what} of runs without a record"


def take_over(source: Path, root: Path, same: Collection[str]) -> Iterator[Damage | Taken]:
    """Writes to `root` the rows of `source` for runs that are the `same` in both; yields the files that were written,
    and those that cannot be read.

    Rows that are here stay, unless those of the source are of all their runs and of more. Rows of another policy
    than is kept here are left.
    """
    for kind, path in _files(source):
        target = root / path.relative_to(source)
        theirs = _runs(kind, path)
        ours = _runs(kind, target) if target.exists() else frozenset()
        if isinstance(theirs, Damage):
            yield theirs
        elif isinstance(ours, Damage):
            yield ours
        elif ours < theirs & set(same):
            with writing(target):
                written = kind.copy(path, target, same)
            if written:
                yield Taken(kind.folder, target)


def _files(root: Path) -> Iterator[tuple[Kind, Path]]:
    for kind in KINDS:
        for path in sorted((root / kind.folder).glob(kind.pattern)):
            if not path.name.startswith("."):
                yield kind, path


def _runs(kind: Kind, path: Path) -> Set[str] | Damage:
    """The runs of a file, or what is wrong with it."""
    try:
        return kind.runs(path)
    except UserError as error:
        return Damage(path, str(error))
    except OSError as error:
        return Damage(path, f"cannot be read: {error.strerror}")


# --- pairs of seeds -------------------------------------------------------------------------


def _seeds_of_pairs(path: Path) -> Set[str]:
    try:
        rows = parse_pairs(path)
    except UserError:
        raise UserError("has no rows of consistency") from None
    place = {(slug(task), slug(entry)) for task, entry in zip(rows["task"], rows["entry"])}
    if place - {(path.parent.name, path.stem)}:
        raise UserError("has rows of another entry or task")
    return {*rows["run_id"], *rows["other_run_id"]}


def _copy_pairs(path: Path, target: Path, same: Collection[str]) -> bool:
    # one seed alone has no pairs
    if found := len(rows := of_runs(parse_pairs(path), same)):
        write_pairs(target, rows)
    return found > 0


# --- tables of one run ----------------------------------------------------------------------


def _run_of_table(parse: Callable[[Path], Any], columns: int) -> Callable[[Path], Set[str]]:
    """Reads the run of a file that is named by the values which its first `columns` columns have in all rows."""

    def runs(path: Path) -> Set[str]:
        try:
            table: pa.Table = parse(path)
        except UserError as error:
            raise UserError(printable(str(error).removeprefix(f"{path} "))) from None
        about = measured.about(path)
        if about is None or "policy" not in about:
            raise UserError("does not say which policy it is of")
        names = path.name.removesuffix(".parquet").split(".")
        said = [set(table[i].to_pylist()) for i in range(columns)]
        if len(names) != columns or any(values != {name} for values, name in zip(said, names)):
            raise UserError("has no rows of the run that it is named by, or others")
        kept = _kept(path)
        if kept.exists() and about["policy"] != sha256_of(kept):
            raise UserError(f"is of another policy than {kept}")
        return {names[0]}

    return runs


def _copy_table(path: Path, target: Path, same: Collection[str]) -> bool:
    """The first that is there wins. A run has one policy, whatever is measured of it."""
    content, kept, about = path.read_bytes(), _kept(target), measured.about(path)
    if about is None or (kept.exists() and about["policy"] != sha256_of(kept)):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with finished_file(content, target) as file:
        return linked_or_copied(file, target)


def _kept(table: Path) -> Path:
    """The policy that a table is of, where it is kept."""
    place = table.parts[-4:-1]
    run = f"{table.name.split('.')[0]}.safetensors"
    return table.parents[4].joinpath("runs", *place, run)


KINDS = (
    Kind("consistency", "divergences", "*/*/*.csv", _seeds_of_pairs, _copy_pairs),
    Kind(
        estimates.FOLDER,
        "estimates",
        "*/*/*/*.parquet",
        _run_of_table(estimates.parse_estimates, 2),
        _copy_table,
    ),
    Kind(
        decisions.FOLDER,
        "decisions",
        "*/*/*/*.parquet",
        _run_of_table(decisions.parse_decisions, 1),
        _copy_table,
    ),
)
