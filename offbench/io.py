"""Files and their names: atomic writes, checksums, ids as file names, what is shipped with offbench."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml


def shipped(name: str) -> Path:
    """A file or folder that ships with offbench, such as "conf": in the package, or the checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).exists() else package.parent / name


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
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
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


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(name: str) -> str:
    """An id as the name of one file or folder, another one for every id without `--` in it.

    >>> slug("offbench/hopper/expert-v0")
    'offbench--hopper--expert-v0'
    >>> slug("mix@0.1@0:d4rl/a-v2:d4rl/b-v2")
    'mix@0.1@0%3Ad4rl--a-v2%3Ad4rl--b-v2'
    """
    quoted = quote(name.replace("/", "--"), safe=" +=,@()[]-")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted
