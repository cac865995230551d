"""Reads tables with one row per step: csv and Parquet -> the columns of `offbench.tasks.formats.columns`."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offbench.errors import UserError, in_one_line
from offbench.tasks.formats import columns, hdf5
from offbench.tasks.formats.columns import Arrays, Columns, Keys, Lazy

_LEROBOT: Keys = {
    "observations": ("observation.state",),
    "actions": ("action",),
    "rewards": ("next.reward",),
    "dones": ("next.done",),
    "episodes": ("episode_index",),
}


@contextmanager
def read_csv(
    path: Path, name: str, header: tuple[str, ...] | None
) -> Iterator[tuple[Columns, Keys]]:
    """The columns of a csv or tsv file; `header` names them in a file without a header."""
    import pandas as pd

    hdf5.check_room(4 * hdf5.check_plain_file(path, name), path.name, name)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            lines = [file.readline().strip() for _ in range(2)]
        first = [word.strip().strip('"') for word in lines[0].removeprefix("#").split(separator)]
        numbers = all(map(_is_number, first))
        if numbers and header is None:
            raise UserError(
                f"{name}: {path.name} has no header (its first line: {lines[0][:60]}); name its {len(first)}"
                " columns: --columns obs_0,obs_1,action_0,reward,terminated,truncated"
            )
        titles = list(header or first)
        wide = len((lines[1] or lines[0]).split(separator))
        if len(titles) != wide or len(set(titles)) < len(titles):
            raise UserError(
                f"{name}: {path.name} has {wide} columns, {len(titles)} names: {', '.join(titles)[:200]}"
            )
        table = pd.read_csv(
            path,
            sep=separator,
            names=titles,
            header=None,
            skiprows=0 if numbers else 1,
            index_col=False,
            float_precision="round_trip",
            low_memory=False,
            skipinitialspace=True,
        )
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        words = in_one_line(error)[:300]
        raise UserError(f"{name}: {path} cannot be read as csv ({words})") from None
    plain = {k: lambda k=k: _numbers_of(table[k], f"{name}: column {k!r}", k) for k in titles}
    yield Lazy(_vectors(plain), name, plain), {}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _numbers_of(column: Any, what: str, key: str) -> np.ndarray:
    """A column of a table as numbers; text labels of episodes are numbered."""
    if column.isna().any():
        raise UserError(f"{what} has {int(column.isna().sum())} missing values")
    if column.dtype.kind == "O" and key in columns.NAMES["episodes"]:
        return np.asarray(column.factorize()[0])
    if not len(column):
        raise UserError(f"{what} has no rows")
    if column.dtype.kind not in "fiub":
        words = [str(value) for value in column]
        row = next((i for i, word in enumerate(words) if not _is_number(word)), 0)
        raise UserError(f"{what} holds text, not numbers (row {row}: {words[row][:40]!r})")
    return column.to_numpy()


def _vectors(plain: Arrays) -> dict[str, Callable[[], np.ndarray]]:
    """`obs_0, obs_1` (from 0 on, none left out) as one column `obs`, the others as they are."""
    parts: dict[str, dict[int, str]] = {}
    for key in plain:
        if match := re.fullmatch(r"(.+?)(?:_|\.|\[)(\d{1,6})\]?", key):
            parts.setdefault(match[1], {})[int(match[2])] = key
    whole = {b: p for b, p in parts.items() if b not in plain and set(p) == set(range(len(p)))}
    grouped = {key for p in whole.values() for key in p.values()}
    found = {k: v for k, v in plain.items() if k not in grouped}
    for base, numbered in whole.items():
        keys = [numbered[i] for i in range(len(numbered))]
        found[base] = partial(_side_by_side, [plain[k] for k in keys])
    return found


def _side_by_side(parts: list[Callable[[], np.ndarray]]) -> np.ndarray:
    """Columns (N,) or (N, ...) -> (N, features)."""
    return np.concatenate([(x := part()).reshape(len(x), -1) for part in parts], axis=1)


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files of a folder, or of `data` in it, in the order of their names."""
    inside = folder / "data"
    return sorted(
        p for p in (inside if inside.is_dir() else folder).rglob("*.parquet") if p.is_file()
    )


@contextmanager
def read_parquet(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    """The columns of a Parquet file or a folder of them; LeRobot's columns are known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = parquet_files(path) if path.is_dir() else [path]
    try:
        for part in paths:
            hdf5.check_plain_file(part, name)
        opened = [pq.ParquetFile(part) for part in paths]
        hdf5.check_room(8 * sum(f.metadata.num_rows for f in opened), path.name, name)

        def column(key: str) -> np.ndarray:
            read = [f.read(columns=[key]).column(key).combine_chunks() for f in opened]
            return np.concatenate([_arrow_numbers(x, f"{name}: column {key!r}") for x in read])

        plain = {k: lambda k=k: column(k) for k in opened[0].schema_arrow.names}
        file = Lazy(_vectors(plain), name, plain)
        lerobot = {"observation.state", "episode_index"} <= set(file.keys())
        yield file, {c: k for c, k in _LEROBOT.items() if lerobot and k[0] in file.keys()}
    except (OSError, pa.ArrowException, MemoryError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        words = in_one_line(error)[:300]
        raise UserError(f"{name}: {path} cannot be read as Parquet ({words})") from None


def _arrow_numbers(column: Any, what: str) -> np.ndarray:
    """(N,), or (N, features) of lists of one length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if column.null_count:
        raise UserError(f"{what} has {column.null_count} missing values")
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = (
            pc.min_max(pc.list_value_length(column)).as_py()
            if len(column)
            else {"min": 0, "max": 0}
        )
        if lengths["min"] != lengths["max"]:
            raise UserError(
                f"{what} holds lists of {lengths['min']} to {lengths['max']} numbers, one length is needed"
            )
        return (
            _arrow_numbers(column.flatten(), what).reshape(len(column), -1)
            if lengths["max"]
            else np.zeros((len(column), 0))
        )
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"{what} holds {kind}, not numbers")
    return column.to_numpy(zero_copy_only=False)
