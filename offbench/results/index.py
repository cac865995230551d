"""An index of the records of each task: what `Store.runs()` and `Store.episodes()` say, without opening them.

    root/.index/<suite>/<task>.records.arrow     a line per record: the columns of `Store.runs()`, and its file
    root/.index/<suite>/<task>.episodes.arrow    its episodes

Both are Arrow streams, followed by their sha256. They hold nothing that the records do not: a line counts for a
json of the same name, time of change, size and inode, episodes count for a parquet of the same sha256. Whatever
is missing, damaged or foreign is read from the records, and written again where that was much. Readers write
them, each file whole, so any number may at once; a store that cannot be written to is read without.

Values are JSON texts of a dictionary, as a column has few that differ; a line that lacks a column is null there.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from offbench.io import atomic_write
from offbench.results.commit import winner
from offbench.results.record import Damage, DamageError, episode_payload, line_of, load, parsed
from offbench.results.schema import EPISODE_SCHEMA

WORTH = 32
"""So many records of a task must have been opened before its index is written."""

FILE = ("@file", "@sha256", "rows")
"""The columns that `episodes_of` needs; what is not of `Store.runs()` begins with an @."""

_RECORDS, _EPISODES = b"records 1", b"episodes 1"

# what a line stands for, and the names of its columns in their order
_KEY, _NAMES = "@key", "@names"

_DIGEST = 32

# the value of a line without the column; None is that of a line that says null
_ABSENT = object()


@dataclass(frozen=True)
class Lines:
    """Lines of `Store.runs()`, one per record, column by column."""

    table: pa.Table
    # of the json of each
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def ids(self) -> list[str]:
        return [os.path.basename(path).removesuffix(".json") for path in self.paths]

    def column(self, name: str) -> pd.Series:
        """The values of a column, nan where a line has none; of the type that a frame of the lines has."""
        codes, values = self._values(name)
        few = pd.DataFrame([{} if x is _ABSENT else {name: x} for x in values])
        column = few[name] if name in few else pd.Series(np.nan, range(len(values)), object)
        return column.take(codes).reset_index(drop=True)

    def frame(self) -> pd.DataFrame:
        """All columns of `Store.runs()`, in the order in which the lines have them."""
        codes, shapes = self._values(_NAMES)
        names = dict.fromkeys(n for code in dict.fromkeys(codes.tolist()) for n in shapes[code])
        return pd.DataFrame({name: self.column(name) for name in names})

    def names(self) -> set[str]:
        _, shapes = self._values(_NAMES)
        return {name for shape in shapes for name in shape}

    def take(self, rows: Sequence[int] | np.ndarray) -> "Lines":
        if len(rows) == len(self.paths) and (np.asarray(rows) == np.arange(len(rows))).all():
            return self
        return Lines(self.table.take(pa.array(rows, pa.int64())), [self.paths[i] for i in rows])

    def where(self, name: str, among: tuple[Any, ...]) -> "Lines":
        """The lines with one of some values; that of a line without the column is None."""
        codes, values = self._values(name)
        good = np.array([_is_in(None if x is _ABSENT else x, among) for x in values], bool)
        return self.take(np.flatnonzero(good[codes]))

    def _values(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """(n,) the place of each line's value among those that occur; _ABSENT where it has no such column."""
        if name not in self.table.column_names or not len(self):
            return np.zeros(len(self), np.int64), [_ABSENT] if len(self) else []
        column = self.table[name].unify_dictionaries().combine_chunks()
        raw = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        used, places = np.unique(raw, return_inverse=True)
        texts = column.dictionary.take(pa.array(used[used >= 0])).to_pylist()
        values = [
            tuple(x) if isinstance(x, list) else x for x in json.loads(f"[{','.join(texts)}]")
        ]
        return places, [_ABSENT, *values] if used[0] < 0 else values


def winners(lines: Lines) -> Lines:
    """Of several records of one run, the one that counts."""
    ids = lines.ids()
    if len(set(ids)) == len(ids):
        return lines
    marks: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for i, (name, status) in enumerate(zip(ids, lines.column("status"), strict=True)):
        marks.setdefault(name, []).append((Path(lines.paths[i]), {"status": status, "row": i}))
    return lines.take([winner(own)[1]["row"] for own in marks.values()])


def as_set(value: Any) -> tuple[Any, ...]:
    """The values that a filter accepts: those of a collection, or the one."""
    collection = isinstance(value, Collection) and not isinstance(value, str | Mapping)
    return tuple(value) if collection else (value,)


def _is_in(value: Any, values: tuple[Any, ...]) -> bool:
    return value in values or (isinstance(value, tuple) and value == values)


def joined(parts: Sequence[Lines]) -> Lines:
    """The lines of several tasks; a column that one lacks is null there."""
    tables = [part.table for part in parts if len(part)]
    table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    return Lines(table, [path for part in parts for path in part.paths])


def lines_of(
    task: Path,
    index: Path,
    *,
    ids: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
) -> tuple[Lines, list[Damage]]:
    """The lines of the records of a task, in the order of their names, and what is damaged.

    Args:
        task: folder of the entries.
        index: `<task>.records.arrow`; written where many records had to be opened.
        ids: of the runs; None for all.
        columns: those needed; None for all.

    Raises:
        UserError: a record is of a later format.
    """
    marks = [mark for mark in _listed(task) if ids is None or mark.run_id in ids]
    known, rows = _known(index, columns)
    opened, damaged = _opened([mark for mark in marks if mark.key not in rows])
    worth = len(opened) >= WORTH and ids is None
    if worth and columns is not None:
        # all columns, as they are written again
        known, rows = _known(index, None)
        opened = [(mark, line) for mark, line in opened if mark.key not in rows]
    new = _encoded([line for _, line in opened], [mark.key for mark, _ in opened])
    rows |= {mark.key: len(rows) + i for i, (mark, _) in enumerate(opened)}
    table = new if known is None else pa.concat_tables([known, new], promote_options="default")
    marks = [mark for mark in marks if mark.key in rows]
    found = Lines(table.unify_dictionaries(), [""] * len(table))
    table = found.take([rows[mark.key] for mark in marks]).table
    if worth:
        _write(index, _RECORDS, table)
    return Lines(table, [mark.path for mark in marks]), damaged


def _known(index: Path, columns: Sequence[str] | None) -> tuple[pa.Table | None, dict[str, int]]:
    """What is in an index, and the row of each key."""
    table = _read(index, _RECORDS, None if columns is None else [_KEY, _NAMES, *columns])
    if table is None:
        return None, {}
    return table, {key: i for i, key in enumerate(table[_KEY].to_pylist())}


class _Mark(NamedTuple):
    run_id: str
    path: str
    key: str


def _listed(task: Path) -> list[_Mark]:
    """The records below the folder of a task, by the names of their entries and runs."""
    found = []
    with os.scandir(task) as entries:
        folders = sorted(entry.path for entry in entries if entry.is_dir())
    for folder in folders:
        with os.scandir(folder) as items:
            jsons = [item for item in items if item.name.endswith(".json") and item.name[0] != "."]
        for item in sorted(jsons, key=lambda item: item.name):
            try:
                about = os.stat(item.path)
            except FileNotFoundError:
                continue
            name = f"{os.path.basename(folder)}/{item.name}"
            key = f"{name} {about.st_mtime_ns} {about.st_size} {about.st_ino}"
            found.append(_Mark(item.name.removesuffix(".json"), item.path, key))
    return found


def _opened(
    marks: Sequence[_Mark],
) -> tuple[list[tuple[_Mark, dict[str, Any]]], list[Damage]]:
    """The lines of records that are in no index."""
    lines, damaged = [], []
    for mark in marks:
        try:
            body = load(Path(mark.path))
        except DamageError as error:
            # not one that was replaced since it was listed
            if os.path.exists(mark.path):
                damaged.append(error.damage)
            continue
        line, about = line_of(body), body["episodes"] or {}
        more = {_NAMES: list(line), "@file": about.get("file"), "@sha256": about.get("sha256")}
        more["@attempts"] = (body.get("failure") or {}).get("attempts")
        lines.append((mark, line | more))
    return lines, damaged


def _encoded(lines: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pa.Table:
    """Lines as a table of dictionary-encoded JSON texts."""
    columns: dict[str, pa.Array] = {_KEY: pa.array(keys, pa.string())}
    for name in dict.fromkeys(name for line in lines for name in line):
        texts: dict[str, int] = {}
        codes = [
            texts.setdefault(_text(line[name]), len(texts)) if name in line else None
            for line in lines
        ]
        columns[name] = pa.DictionaryArray.from_arrays(
            pa.array(codes, pa.int32()), pa.array(list(texts), pa.string())
        )
    return pa.table(columns)


def _text(value: Any) -> str:
    return repr(value) if type(value) in (int, float) else json.dumps(value)


# --- episodes -------------------------------------------------------------------------------


def episodes_of(lines: Lines, index: Path) -> tuple[pa.Table, list[Damage]]:
    """The episodes of whole records of a task, in EPISODE_SCHEMA, and what is damaged.

    Every file is read and its checksum compared; those in the index need not be parsed.
    """
    table = _read(index, _EPISODES)
    known = {} if table is None else _places(json.loads(table.schema.metadata[b"files"]))
    parts = [] if table is None else [table.replace_schema_metadata(None)]
    length, parsed_files, wanted, damaged = sum(map(len, parts)), 0, [], []
    columns = (lines.column(name) for name in FILE)
    for mark, file, sha256, rows in zip(lines.paths, *columns, strict=True):
        about = {"sha256": sha256, "rows": rows} | ({"file": file} if file is not None else {})
        try:
            path, payload = episode_payload(Path(mark), about)
            if sha256 not in known:
                parts.append(parsed(path, payload, about))
                known[sha256] = length, length + len(parts[-1])
                length, parsed_files = known[sha256][1], parsed_files + 1
        except DamageError as error:
            damaged.append(error.damage)
            continue
        wanted.append(known[sha256])
    whole = pa.concat_tables(parts) if parts else EPISODE_SCHEMA.empty_table()
    if parsed_files >= WORTH:
        files = [[name, end - start] for name, (start, end) in known.items()]
        _write(
            index, _EPISODES, whole.replace_schema_metadata({b"files": json.dumps(files).encode()})
        )
    return _slices(whole, wanted), damaged


def _places(files: Iterable[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Checksum -> first row and end."""
    places, start = {}, 0
    for name, n in files:
        places[name] = start, start + n
        start += n
    return places


def _slices(table: pa.Table, wanted: Sequence[tuple[int, int]]) -> pa.Table:
    if wanted and [end for _, end in wanted[:-1]] == [start for start, _ in wanted[1:]]:
        return table.slice(wanted[0][0], wanted[-1][1] - wanted[0][0])
    rows = [np.arange(start, end) for start, end in wanted]
    return table.take(pa.array(np.concatenate(rows) if rows else [], pa.int64()))


# --- files ----------------------------------------------------------------------------------


def _write(path: Path, kind: bytes, table: pa.Table) -> None:
    """Writes an index, if it can be written."""
    table = table.unify_dictionaries().combine_chunks()
    metadata = {**(table.schema.metadata or {}), b"offbench.index": kind}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as file:
        file.write_table(table)
    content = sink.getvalue().to_pybytes()
    try:
        atomic_write(path, content + hashlib.sha256(content).digest())
    except OSError:
        pass


def _read(path: Path, kind: bytes, columns: Collection[str] | None = None) -> pa.Table | None:
    """An index, or some columns of it; None where there is none of this kind that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    view = memoryview(content)[:-_DIGEST]
    if hashlib.sha256(view).digest() != content[-_DIGEST:]:
        return None
    try:
        schema = pa.ipc.open_stream(pa.py_buffer(view)).schema
        if (schema.metadata or {}).get(b"offbench.index") != kind:
            return None
        options = pa.ipc.IpcReadOptions()
        if columns is not None:
            options.included_fields = [i for i, n in enumerate(schema.names) if n in columns]
        table = pa.ipc.open_stream(pa.py_buffer(view), options=options).read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError):
        return None
    return table
