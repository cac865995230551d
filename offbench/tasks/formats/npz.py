"""Reads npz files of unknown origin: declared sizes are checked before reading, nothing is unpickled."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy

from offbench.errors import UserError, in_one_line
from offbench.tasks.formats.hdf5 import check_plain_file, check_room

_RATIO = 1100  # deflate reaches 1032
_SMALL = 1 << 20
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    RuntimeError,
    NotImplementedError,
    UnicodeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Member:
    """The header of one array, checked against the archive."""

    shape: tuple[int, ...]
    dtype: np.dtype
    info: zipfile.ZipInfo

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open archive. `members` are known before any array is read.

    >>> with Npz(path, "my data") as file: obs = file.read("observations")  # doctest: +SKIP
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        size = check_plain_file(path, name)
        if path.suffix == ".npy":
            raise UserError(
                f"{name}: {path} is a single array; an .npz of named arrays is expected"
            )
        try:
            self._zip = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise self._error(error) from None
        try:
            self.members = self._members(size)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "Npz":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def _error(self, error: BaseException, key: str = "") -> UserError:
        words = in_one_line(error)
        what = f" ({key!r})" if key else ""
        return UserError(f"{self.name}: {self.path}{what} cannot be read as npz ({words[:300]})")

    def _members(self, size: int) -> Mapping[str, Member]:
        found: dict[str, Member] = {}
        for info in self._zip.infolist():
            key = info.filename.removesuffix(".npy")
            if key == info.filename:
                # not an array; numpy does not read it either
                continue
            if key in found:
                raise UserError(f"{self.name}: {self.path} holds {key!r} twice")
            found[key] = self._member(info, key, size)
        return found

    def _member(self, info: zipfile.ZipInfo, key: str, size: int) -> Member:
        if info.flag_bits & 1:
            raise UserError(f"{self.name}: {key!r} is encrypted")
        if info.compress_size > size or info.file_size > _SMALL + _RATIO * info.compress_size:
            raise UserError(
                f"{self.name}: {key!r} declares {info.file_size} bytes, the archive holds {info.compress_size}"
            )
        try:
            with self._zip.open(info) as file:
                version = npy.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = npy.read_array_header_1_0(file)
                elif version in ((2, 0), (3, 0)):
                    shape, _, dtype = npy.read_array_header_2_0(file)
                else:
                    raise ValueError(f"npy format {version}")
                header = file.tell()
        except UserError:
            raise
        except _BROKEN as error:
            raise self._error(error, key) from None
        if dtype.hasobject:
            raise UserError(f"{self.name}: {key!r} holds pickled objects, which are never loaded")
        member = Member(tuple(shape), dtype, info)
        if any(n < 0 for n in shape) or header + member.nbytes != info.file_size:
            raise UserError(
                f"{self.name}: {key!r} declares {tuple(shape)} {dtype} ({member.nbytes} bytes), "
                f"the archive holds {info.file_size - header}"
            )
        return member

    def member(self, key: str) -> Member:
        """The header of one array. UserError where it is absent."""
        if key not in self.members:
            have = ", ".join(map(repr, list(self.members)[:12])) or "nothing"
            raise UserError(f"{self.name}: there is no {key!r} in {self.path.name} (found: {have})")
        return self.members[key]

    def read(self, key: str) -> np.ndarray[Any, Any]:
        """One array. UserError where it is absent, not numeric, or damaged."""
        member = self.member(key)
        if member.dtype.kind not in "fiub":
            raise UserError(f"{self.name}: {key!r} holds {member.dtype}, not numbers")
        check_room(member.nbytes, f"{key!r} {member.shape}", self.name)
        try:
            with self._zip.open(member.info) as file:
                return npy.read_array(file, allow_pickle=False)
        except _BROKEN as error:
            raise self._error(error, key) from None
