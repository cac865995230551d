"""Where offbench's own data files lie, and files written so that they are whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def shipped(name: str) -> Path:
    """A file or folder that ships with offbench, such as "conf": in the package, or the checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).exists() else package.parent / name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, with its ending, to write to; at the end it takes the place of `path`.

    After an error nothing is left of it. Raises OSError where the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield beside
        with beside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Writes a file so that no reader ever sees half of it."""
    with replacing(path) as beside:
        beside.write_bytes(content)
