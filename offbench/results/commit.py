"""Writing a record so that it is there as a whole or not at all, and once, without file locks.

Several processes, of several machines, may write to one folder, also on file systems without locks. A file
is finished under a name of its own and then linked to its final name, which fails where that exists. What
takes more than one step is done by one process at a time: whoever links its finished file to the name of
the *hold* has it, and a hold that is older than `HELD_S`, by the clock of the file system, was left behind
by a process that died and is taken away.
"""

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from offbench.errors import UserError, writing
from offbench.io import atomic_write, finished_file, linked, linked_or_copied, slug
from offbench.results.record import DamageError, episodes_file, load, seal
from offbench.results.spec import RunSpec

HELD_S = 5.0
"""Age in seconds of a hold that was left behind; what is done under one takes milliseconds."""


# --- records ---------------------------------------------------------------------------------


def write_record(
    root: Path,
    run: RunSpec,
    entry: str,
    body: Mapping[str, Any],
    *,
    episodes: bytes | None = None,
    traceback: bytes | None = None,
) -> Path:
    """Writes the files of a record, its json last.

    Args:
        root: of the store.
        body: of the json.
        episodes: the parquet file of a whole one.
        traceback: of a failed one.

    Raises:
        RecordedAlready: there is a whole record of this run.
        UserError: it cannot be written.
    """
    mark, replaced = mark_of(root, run, entry), partial(_superseded, root, run)
    path = None if episodes is None else episodes_file(mark, body["episodes"])
    with writing(f"record {mark}"):
        mark.parent.mkdir(parents=True, exist_ok=True)
        replaced()
        if path is not None and episodes is not None:
            atomic_write(path, episodes)
            sync_folder(mark.parent)
        try:
            publish(mark, seal(body).encode(), replaced, traceback)
        except UserError:
            # another process was first; its episodes may be the same
            first = load(mark)["episodes"] if path is not None and mark.exists() else None
            if path is not None and not (first and episodes_file(mark, first) == path):
                path.unlink(missing_ok=True)
            raise
    return mark


class RecordedAlready(UserError):
    """There is a whole record of a run, which is kept."""

    def __init__(self, path: Path):
        super().__init__(f"run {path.stem} is recorded already in {path}; records are kept")


def publish(
    mark: Path,
    content: bytes,
    replaced: Callable[[], list[Path]],
    traceback: bytes | None = None,
) -> None:
    """Puts the json of a record in its place, and removes the failures of its run.

    Args:
        replaced: finds the json of these failures; called when no other process writes this run.
        traceback: of a failed run.

    Raises:
        RecordedAlready: another process was first.
        OSError: it cannot be written.
    """
    hold = mark.parent.with_name(f".{mark.stem}.hold")
    with finished_file(content, mark) as file, holding(hold, file):
        failures = replaced()
        if traceback is not None:
            atomic_write(mark.with_suffix(".traceback.txt"), traceback)
        try:
            place(file, hold, mark, replace=mark in failures)
        except FileExistsError:
            raise RecordedAlready(mark) from None
        sync_folder(mark.parent)
        for path in failures:
            # a failure that was recorded under another entry label
            if path != mark:
                path.unlink(missing_ok=True)
            if path != mark or traceback is None:
                path.with_suffix(".traceback.txt").unlink(missing_ok=True)


def _superseded(root: Path, run: RunSpec) -> list[Path]:
    """Failed records of this run; raises when there is a whole one. Lists the entries of its task."""
    task = root / "runs" / _safe(run.suite) / _safe(run.task)
    paths = [entry / f"{run.run_id}.json" for entry in subfolders(task, None)]
    failures = []
    for path in (path for path in paths if path.exists()):
        try:
            status = load(path)["status"]
        except DamageError:
            # not one that another process removed just now
            if path.exists():
                raise
            continue
        if status == "ok":
            raise RecordedAlready(path)
        failures.append(path)
    return failures


def winner(marks: list[tuple[Path, dict[str, Any]]]) -> tuple[Path, dict[str, Any]]:
    """The record that counts when a failure under another label was not yet cleared away."""
    whole = [mark for mark in marks if mark[1]["status"] == "ok"]
    if len(whole) > 1:
        raise UserError(f"one run is recorded twice: {whole[0][0]} and {whole[1][0]}")
    return whole[0] if whole else marks[-1]


# --- where a record lies --------------------------------------------------------------------


def mark_of(root: Path, run: RunSpec, entry: str) -> Path:
    """Where the json of a run's record lies, or will."""
    folder = root / "runs" / _safe(run.suite) / _safe(run.task) / _safe(entry)
    return inside(root, folder) / f"{run.run_id}.json"


def inside(root: Path, path: Path) -> Path:
    """The path, which lies below `root`. UserError where a link on the way leads elsewhere."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} leads out of {root} to {path.resolve()}: results= names a folder")
    return path


def _safe(name: str) -> str:
    """A folder name for an id. Ids are paths, and one folder level is one id."""
    folder = slug(name)
    if len(folder) > 200:
        raise UserError(f"{name!r} is too long for a folder name")
    return folder


def subfolders(folder: Path, names: Collection[str] | None) -> list[Path]:
    if names is not None:
        return [path for name in sorted(map(str, names)) if (path := folder / _safe(name)).is_dir()]
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(e.name for e in entries if e.is_dir())]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None


# --- one process at a time ------------------------------------------------------------------


@contextmanager
def holding(hold: Path, finished: Path) -> Iterator[None]:
    """Keeps other processes, which want the same hold, waiting until the block ends.

    Args:
        finished: a file of this process, whose second name the hold becomes.

    Raises:
        OSError: the folder cannot be written to.
    """
    while not linked_or_copied(finished, hold):
        # now, by the clock of the file system
        os.utime(finished)
        try:
            held_s = finished.stat().st_mtime - hold.stat().st_mtime
        except FileNotFoundError:
            continue
        if held_s > HELD_S:
            _take_away(hold)
        else:
            time.sleep(0.01)
    try:
        yield
    finally:
        # unless another process took it away and has it now
        if _content(hold) == finished.read_bytes():
            hold.unlink(missing_ok=True)


def place(finished: Path, hold: Path, final: Path, *, replace: bool) -> None:
    """Gives a finished file its final name; to be called within `holding(hold, finished)`.

    Args:
        replace: there is a file of this name, which goes.

    Raises:
        FileExistsError: another process was first.
        OSError: the folder cannot be written to.
    """
    if not replace and linked(finished, final):
        return
    if not replace and final.exists():
        raise FileExistsError(final)
    # The hold itself is renamed: a process that was stopped for long, and whose hold was taken away,
    # cannot put its file over that of another.
    try:
        os.replace(hold, final)
    except FileNotFoundError:
        pass
    if _content(final) != finished.read_bytes():
        raise FileExistsError(final)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk; Windows opens no folder and has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_away(hold: Path) -> None:
    """Removes a hold; of several processes that want to, one does."""
    taken = hold.with_name(f".{hold.stem}.{secrets.token_hex(4)}.tmp")
    try:
        os.replace(hold, taken)
    except FileNotFoundError:
        return
    taken.unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
