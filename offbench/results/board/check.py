"""Checks written boards: computes them again from their rows and compares number by number.

A number may differ in the last of the digits that are written, which is what another processor's rounding
does.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offbench.errors import UserError
from offbench.results.board.evidence import paths_of, read_evidence
from offbench.results.board.formats import ENDINGS, FORMATS

# of six digits
_TOLERANCE = 2e-5


def check(path: Path) -> list[str]:
    """What differs between the board of a name and its rows, one line each.

    Args:
        path: of any file of the board (NAME.md, .csv, .json, .tex, or a parquet file); all that are there
            are compared.

    Raises:
        UserError: there is no such board, or its rows are not there or damaged.
    """
    folder, name = path.parent, board_name(path)
    if path.suffix == ".html":
        raise UserError(f"{path} is a report; what can be checked is the board: {path.stem}.csv")
    written = {kind: folder / f"{name}.{ending}" for kind, ending in ENDINGS.items()}
    written = {kind: file for kind, file in written.items() if file.is_file()}
    if not written:
        raise UserError(f"{path} is no board: there is no {name}.md, .csv, .json or .tex")
    if not paths_of(folder, name)[0].is_file():
        raise UserError(
            f"{folder / name} has no rows to recompute it from ({paths_of(folder, name)[0].name}); "
            "`offbench bench` and `offbench board` write them beside a board"
        )
    board = read_evidence(folder, name).board()
    lines = []
    for kind, file in written.items():
        text = file.read_text(encoding="utf-8")
        lines += [f"{file}: {line}" for line in differences(kind, text, FORMATS[kind](board))]
    return lines


def board_name(path: Path) -> str:
    """The name of the board that a file is of."""
    for ending in (
        ".runs.parquet",
        ".episodes.parquet",
        ".consistency.csv",
        *(f".{e}" for e in ENDINGS.values()),
    ):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name


def differences(kind: str, written: str, computed: str) -> list[str]:
    """What differs between two texts of a board in one format: where, what is written, what the rows say."""
    try:
        old = dict(_READERS.get(kind, _lines)(written))
    except (ValueError, KeyError) as error:
        return [f"is no board in {kind}: {error}"]
    new = dict(_READERS.get(kind, _lines)(computed))
    return [
        f"{place}: {_spelt(old.get(place))} is written, the rows say {_spelt(new.get(place))}"
        for place in dict.fromkeys([*old, *new])
        if not _same(old.get(place), new.get(place))
    ]


def _spelt(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(old: Any, new: Any) -> bool:
    if old == new:
        return True
    try:
        a, b = float(old), float(new)
    except (TypeError, ValueError):
        return False
    return abs(a - b) <= _TOLERANCE * max(abs(a), abs(b))


def _of_csv(text: str) -> Iterator[tuple[str, Any]]:
    for row in csv.DictReader(io.StringIO(text)):
        names = (row["kind"], row["entry"], row["task"], row["statistic"])
        for column, value in row.items():
            yield f"{' '.join(name for name in names if name)}, {column}", value


def _of_json(text: str) -> Iterator[tuple[str, Any]]:
    yield from _leaves(json.loads(text), "")


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{where} {key}".strip())
    elif isinstance(value, list):
        for index, item in enumerate(value):
            names = (
                [str(item[k]) for k in ("entry", "rival", "task", "task_id") if k in item]
                if isinstance(item, Mapping)
                else [str(index)]
            )
            yield from _leaves(item, " ".join([where, *names]))
    else:
        yield where, value


def _of_markdown(text: str) -> Iterator[tuple[str, Any]]:
    """The cells of its tables, by table, row and column, and its other lines; without published scores."""
    head, table = None, 0
    own = text.partition("\n## Published")[0]
    for number, line in enumerate(own.splitlines(), 1):
        if not line.startswith("|"):
            head = None
            yield f"line {number}", line
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if head is None:
            head, table = cells, table + 1
        names = [cells[head.index(name)] for name in ("entry", "task") if name in head]
        row = " on ".join(names) if "entry" in head else str(number)
        for column, cell in zip(head, cells):
            yield f"table {table}, {row}, {column}", cell


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        yield f"line {number}", line


_READERS = {"csv": _of_csv, "json": _of_json, "markdown": _of_markdown}
