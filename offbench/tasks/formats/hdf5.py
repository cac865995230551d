"""HDF5 files of unknown origin, read without following a link or trusting a declared size."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from offbench.errors import UserError, in_one_line

if TYPE_CHECKING:
    import h5py

# deflate reaches 1032; a file that promises more than this is not data
_RATIO = 2000
_SMALL = 1 << 20


def check_plain_file(path: Path, name: str) -> int:
    """The size in bytes of a file that can be read. UserError for what is missing, a folder, a
    device, empty or not ours to read."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{name}: {path} is a folder, a file is expected")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{name}: {path} is not a plain file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name}: {path} cannot be read (Permission denied)")
    if found.st_size == 0:
        raise UserError(f"{name}: {path} is empty")
    return found.st_size


def check_room(nbytes: int, what: str, name: str) -> None:
    """Raises UserError where `nbytes` exceed half of the machine's memory."""
    memory = psutil.virtual_memory().total
    if nbytes > memory // 2:
        raise UserError(
            f"{name}: {what} needs {nbytes / 1e9:.4g} GB, this machine has {memory / 1e9:.4g} GB of memory"
        )


@contextmanager
def opened(path: Path, name: str, what: str = "HDF5") -> "Iterator[h5py.File]":
    """Opens an HDF5 file; errors in the block become a UserError."""
    import h5py

    check_plain_file(path, name)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        words = in_one_line(error)
        raise UserError(f"{name}: {path} cannot be read as {what} ({words[:300]})") from None


def has(group: "h5py.Group", key: str) -> bool:
    return key.encode() in group.id


def child(group: "h5py.Group", key: str, name: str) -> Any:
    """A member of a group. UserError where it is absent, or a link to somewhere else."""
    _check_link(group, key, name)
    return group[key]


def _check_link(group: "h5py.Group", key: str, name: str) -> None:
    import h5py

    try:
        kind = group.id.links.get_info(key.encode()).type
    except (KeyError, RuntimeError):
        have = ", ".join(repr(k) for k in list(group)[:12]) or "nothing"
        raise UserError(f"{name}: there is no {key!r} (found: {have})") from None
    if kind != h5py.h5l.TYPE_HARD:
        raise UserError(f"{name}: {key!r} is a link; links in data files are not followed")


def group(parent: "h5py.Group", key: str, name: str) -> "h5py.Group":
    import h5py

    found = child(parent, key, name)
    if not isinstance(found, h5py.Group):
        raise UserError(f"{name}: {key!r} is an array, a group is expected")
    return found


def shape(parent: "h5py.Group", key: str, name: str) -> tuple[int, ...]:
    """The declared shape of an array that can be read."""
    return _open(parent, key, name)[1]


def array(parent: "h5py.Group", key: str, name: str) -> np.ndarray:
    """The numbers of a dataset.

    UserError for links, virtual and external storage, text and objects, and for a declared size
    that the file cannot hold; nothing is allocated before that is known. (h5py's own objects cost
    more than the reading where an episode is a group of small arrays.)
    """
    import h5py

    found, declared, dtype = _open(parent, key, name)
    out = np.empty(declared, dtype)
    if out.size:
        found.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
    return out


def _open(parent: "h5py.Group", key: str, name: str) -> "tuple[Any, tuple[int, ...], np.dtype]":
    """An array's identifier, shape and type, after the checks."""
    import h5py

    _check_link(parent, key, name)
    found = h5py.h5o.open(parent.id, key.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise UserError(f"{name}: {key!r} is a group, an array is expected")
    dtype, declared = found.dtype, found.shape
    if declared is None:
        raise UserError(f"{name}: {key!r} is empty")
    if dtype.kind not in "fiub" or dtype.shape:
        raise UserError(f"{name}: {key!r} holds {_words(dtype)}, not numbers")
    plist = found.get_create_plist()
    layout = plist.get_layout()
    if layout == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise UserError(f"{name}: {key!r} keeps its content in other files, which are not opened")
    nbytes, stored = prod(declared) * dtype.itemsize, found.get_storage_size()
    if nbytes > _SMALL and nbytes > _RATIO * stored:
        raise UserError(
            f"{name}: {key!r} declares {declared} ({nbytes} bytes), the file holds {stored} bytes of it"
        )
    if nbytes and not stored and layout != h5py.h5d.COMPACT:
        raise UserError(f"{name}: {key!r} was declared as {declared} and never written")
    if nbytes > _SMALL:
        check_room(nbytes, f"{key!r} {declared}", name)
    return found, declared, dtype


def _words(dtype: np.dtype) -> str:
    return {"O": "text or objects", "S": "text", "V": "records"}.get(dtype.kind, str(dtype))
