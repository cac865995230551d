"""Files and their names: atomic writes, checksums, ids as file names, what is shipped and installed with offbench."""

import csv
import hashlib
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml


def shipped(name: str) -> Path:
    """A file or folder that ships with offbench, such as "conf": in the package, or the checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).exists() else package.parent / name


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, every value as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_yaml(text: str) -> Any:
    """Plain data from YAML, with numbers as Hydra reads them: `3e-4` is one, by libyaml where PyYAML has it.
    Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_YamlLoader)


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


_FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^({_FLOAT})$"), list("-+0123456789.")
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the block ends without an error.

    Args:
        path: the file to write; its folder is created.

    Yields:
        A path in the same folder, with the same ending, to write to. It is flushed to the disk and
        renamed at the end; after an error nothing is left of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it; OSError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def finished_file(content: bytes, final: Path, *, sync: bool = True) -> Iterator[Path]:
    """A file beside `final` under a name of its own, gone when the block ends; with `sync` it is on the disk."""
    temporary = _temporary(final)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def linked(source: Path, target: Path) -> bool:
    """Gives a file a second name; False where the file system has no links.

    Raises:
        FileExistsError: there is another file of that name.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # the answer of a network file system may be lost, and the call made again
        if not _same_file(source, target):
            raise
    except (OSError, NotImplementedError):
        return False
    return True


def linked_or_copied(source: Path, target: Path) -> bool:
    """Gives a file a second name, or a copy where there are no links; False where there is a file of that name."""
    try:
        if linked(source, target):
            return True
        file = open(target, "xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return True


def clock_of(folder: Path) -> float:
    """Now, by the clock that stamps the files of a folder: machines' clocks differ. OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _temporary(path: Path) -> Path:
    """A name of one writer, in the folder and with the ending of a file."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}")


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except FileNotFoundError:
        return False


# --- checksums ------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


UNSEALED = "0" * 64
"""What a safetensors file has under "sha256" of its metadata until `seal` puts its checksum there."""

_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')

# a header has names and shapes: kilobytes
_LARGEST_HEADER = 100_000_000


def seal(path: Path) -> None:
    """Puts into a safetensors file its checksum: of the whole file, with UNSEALED in its own place."""
    digest, said = checksums(path)
    assert said == UNSEALED
    with path.open("r+b") as file:
        header = safetensors_header(path)
        file.seek(8 + header.index(f'"sha256":"{UNSEALED}"'.encode()) + len('"sha256":"'))
        file.write(digest.encode())


def checksums(path: Path) -> tuple[str, str | None]:
    """The checksum of a safetensors file, and that which it has, if any. OSError, or ValueError without a header."""
    match = _CHECKSUM.search(safetensors_header(path))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if match is not None:
            digest.update(file.read(8 + match.start(1)) + UNSEALED.encode())
            file.seek(8 + match.end(1))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), match and match[1].decode()


def safetensors_header(path: Path) -> bytes:
    """The json with which a safetensors file begins. OSError, or ValueError where it is not whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 2 <= length <= _LARGEST_HEADER else b""
    if not header or len(header) != length:
        raise ValueError("no header")
    return header


# --- packages -------------------------------------------------------------------------------


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of some packages; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- names ----------------------------------------------------------------------------------


def slug(name: str) -> str:
    """An id as the name of one file or folder, another one for every id without `--` in it.

    >>> slug("offbench/hopper/expert-v0")
    'offbench--hopper--expert-v0'
    >>> slug("mix@0.1@0:d4rl/a-v2:d4rl/b-v2")
    'mix@0.1@0%3Ad4rl--a-v2%3Ad4rl--b-v2'
    """
    quoted = quote(name.replace("/", "--"), safe=" +=,@()[]-")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted
