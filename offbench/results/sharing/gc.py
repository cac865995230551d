"""Garbage collection of a results folder: temporary and orphaned files, checkpoints of recorded runs, dead workers."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from offbench.errors import UserError, writing
from offbench.io import clock_of
from offbench.results.claims import claims_of, workers
from offbench.results.sharing import measurements
from offbench.results.sharing.files import examine, scan, temporary_files
from offbench.results.sharing.verify import DAMAGED, existing

# what a running bench may own is younger than this, in seconds
_AGE = 3600.0


class Rubbish(NamedTuple):
    """A file that can go."""

    path: Path
    # why: "temporary file of a writer that was killed"
    kind: str
    bytes: int
    # time of its last change
    changed: float


def rubbish(root: Path, *, damaged: bool = False, policies: bool = False) -> list[Rubbish]:
    """The files of a store that nobody needs; nothing that changed within the last hour.

    Args:
        damaged: those, too, that `verify --repair` put aside.
        policies: kept policies, too.

    Raises:
        UserError: there is no such store, or it cannot be written.
    """
    existing(root)
    found = []
    with writing(root):
        now = clock_of(root)
    for path, kind in _candidates(root, damaged, policies):
        try:
            about = path.stat()
        # removed by another process
        except FileNotFoundError:
            continue
        found.append(Rubbish(path, kind, about.st_size, about.st_mtime))
    return [one for one in found if now - one.changed > _AGE]


def remove(found: list[Rubbish]) -> list[Rubbish]:
    """Deletes files that have not changed since; returns those that are gone. Raises UserError."""
    gone = []
    for one in found:
        try:
            if one.path.stat().st_mtime == one.changed:
                one.path.unlink()
                gone.append(one)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot remove {one.path}: {error.strerror}") from None
    return gone


def _candidates(root: Path, damaged: bool, policies: bool) -> Iterator[tuple[Path, str]]:
    for path in temporary_files(root):
        yield path, "temporary file"
    recorded = set()
    for files in scan(root):
        found = examine(files)
        if found.ok:
            recorded |= {files.run_id, *(found.run.recorded_ids if found.run else ())}
        for path in found.orphans:
            yield path, "file without a record"
        if policies and files.policy in found.members:
            yield files.policy, "kept policy"
    yield from measurements.without_record(root, recorded)
    yield from _checkpoints(root, recorded, damaged)
    yield from _of_dead_workers(root)
    if damaged:
        for path in sorted((root / DAMAGED).rglob("*")):
            if path.is_file():
                yield path, "damaged file"


def _checkpoints(root: Path, recorded: set[str], damaged: bool) -> Iterator[tuple[Path, str]]:
    for path in finished_checkpoints(root, recorded.issuperset):
        yield path, "checkpoint of recorded runs"
    for path in sorted(root.glob("checkpoints/*.damaged")) if damaged else ():
        yield path, "damaged checkpoint"


def finished_checkpoints(root: Path, recorded: Callable[[Sequence[str]], bool]) -> Iterator[Path]:
    """Checkpoints that say which runs they are of, where all of those are `recorded`."""
    for path in sorted(root.glob("checkpoints/*.safetensors")):
        if (runs := runs_of(path)) and recorded(runs):
            yield path


def runs_of(checkpoint: Path) -> list[str]:
    """The runs of a stack, as its checkpoint has them; none of one that cannot be read, or of older ones."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, "np") as file:
            return list(json.loads(file.get_tensor("about").tobytes())["about"]["runs"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return []


def _of_dead_workers(root: Path) -> Iterator[tuple[Path, str]]:
    """Heartbeats that stopped, and the claims of workers without one."""
    known = workers(root)
    for worker in known:
        if not worker.alive:
            yield root / "workers" / f"{worker.name}.json", "heartbeat of a dead worker"
    alive = {worker.name for worker in known if worker.alive}
    for run_id, claims in sorted(claims_of(root).items()):
        for number, holder in claims:
            if holder not in alive:
                yield root / "claims" / f"{run_id}.{number}", "claim of a dead worker"
