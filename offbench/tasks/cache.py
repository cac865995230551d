"""Cache of converted data sets as memory-mapped arrays, so that large sets load at once.

    cache_dir()/arrays/<path and options>/<content and loader>/{obs,action,...}.npy

The inner name is a hash of size and date of every source file, of its sha256 where that is known,
and of the loader's version; a changed file is a new entry, and the old one is deleted. An entry
is written atomically. Where the cache cannot be written nothing is kept; a damaged entry is rebuilt.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from offbench.data.replay import ReplayData
from offbench.tasks.files import cache_dir

# version of the loaders: raise it when one of them gives other arrays for the same file
VERSION = 1
# smaller sets load fast enough
MIN_ROWS = 200_000


def cached(
    sources: Sequence[Path],
    options: Sequence[object],
    build: Callable[[], ReplayData],
    *,
    sha256: str = "",
    min_rows: int = MIN_ROWS,
) -> ReplayData:
    """A converted data set: from the cache, else converted and, if large, stored there.

    Args:
        sources: the files that it is converted from.
        options: whatever else the arrays depend on.
        build: converts them.
        sha256: checksum of the sources, where it is known.
        min_rows: smaller sets are not kept.

    Returns:
        The set; the tensors of a kept one are mapped copy-on-write: writing to them changes no file.
    """
    try:
        entry = _entry(sources, options, sha256)
    except OSError:
        # a source is missing: the loader reports it
        return build()
    if (found := _read(entry)) is not None:
        return found
    data = build()
    if len(data.last) >= min_rows:
        with contextlib.suppress(OSError):
            _write(entry, data)
    return data


def streamed(
    sources: Sequence[Path], options: Sequence[object], parts: Iterable[ReplayData]
) -> ReplayData | None:
    """A data set converted in parts and stored one by one, so that one is in memory at a time.

    Args:
        sources: the files that it is converted from.
        options: whatever else the arrays depend on.
        parts: its rows, one part after another.

    Returns:
        The set, mapped copy-on-write; None where nothing can be kept (some of `parts` may then have
        been consumed).
    """
    entry = _entry(sources, options, "")
    if (found := _read(entry)) is not None:
        return found
    try:
        with _written(entry) as folder:
            rows = _append(folder, parts)
            (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    except OSError:
        return None
    return _read(entry)


def _entry(sources: Sequence[Path], options: Sequence[object], sha256: str) -> Path:
    where = cache_dir() / "arrays" / _hash([sorted(str(p.resolve()) for p in sources), options])
    facts = sorted((str(p.name), p.stat().st_size, p.stat().st_mtime_ns) for p in sources)
    return where / _hash([VERSION, sha256, facts])


def _append(folder: Path, parts: Iterable[ReplayData]) -> int:
    """Writes the columns of all parts; returns the rows written.

    A header of numpy's leaves room for its first axis to grow, so it is written again at the end.
    """
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    with contextlib.ExitStack() as stack:
        files = {
            field: stack.enter_context((folder / f"{field}.npy").open("wb"))
            for field in ReplayData._fields
        }
        rows = 0
        for part in parts:
            for field, x in part._asdict().items():
                column = x.numpy()
                if field not in shapes:
                    shapes[field] = column.shape[1:], column.dtype
                    _header(files[field], 0, *shapes[field])
                column.tofile(files[field])
            rows += len(part.last)
        for field, file in files.items():
            file.seek(0)
            _header(file, rows, *shapes[field])
    return rows


def _header(file: BinaryIO, rows: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    about = {"descr": descr, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:24]


def _read(entry: Path) -> ReplayData | None:
    try:
        rows = json.loads((entry / "rows.json").read_text(encoding="utf-8"))
        columns = [
            np.load(entry / f"{field}.npy", mmap_mode="c", allow_pickle=False)
            for field in ReplayData._fields
        ]
    except (OSError, ValueError, EOFError):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    kinds = [np.float32] * 3 + [np.bool_] + [np.int64] * 2
    if any(len(x) != rows or x.dtype != kind for x, kind in zip(columns, kinds)):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return ReplayData(*map(torch.from_numpy, columns))


def _write(entry: Path, data: ReplayData) -> None:
    with _written(entry) as folder:
        for field, x in data._asdict().items():
            np.save(folder / f"{field}.npy", x.numpy(), allow_pickle=False)
        (folder / "rows.json").write_text(json.dumps(len(data.last)), encoding="utf-8")


@contextlib.contextmanager
def _written(entry: Path) -> Iterator[Path]:
    """A temporary folder that becomes the entry, replacing older ones, if the block succeeds."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".writing-"))
    try:
        yield folder
        for old in entry.parent.iterdir():
            if not old.name.startswith("."):
                shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, entry)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
