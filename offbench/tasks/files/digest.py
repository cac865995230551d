"""Checksums of data sets, each computed once for as long as its files do not change."""

import contextlib
import hashlib
import json
from pathlib import Path

from offbench.io import atomic_write, sha256_of
from offbench.tasks.files.folders import cache_dir


def digest(path: Path) -> str:
    """The checksum of a dataset, cached by size and date of its files.

    Args:
        path: a file or a folder.

    Returns:
        The sha256 of the file, or of the names and contents of the folder's files.

    Raises:
        OSError: it cannot be read.
    """
    inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in inside]
    note = (
        cache_dir() / "seen" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"
    )
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    if path.is_dir():
        named = [(p.relative_to(path).as_posix(), sha256_of(p)) for p in inside]
        found = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    else:
        found = sha256_of(path)
    with contextlib.suppress(OSError):
        atomic_write(note, json.dumps({"path": str(path), "sha256": found}).encode())
    return found
