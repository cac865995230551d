"""Publishing a file under its name once, without file locks.

Several processes, of several machines, may write to one folder, also on file systems without locks. A file
is finished under a name of its own and then linked to its final name, which fails where that exists. What
takes more than one step is done by one process at a time: whoever links its finished file to the name of
the *hold* has it, and a hold that is older than `HELD_S`, by the clock of the file system, was left behind
by a process that died and is taken away.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HELD_S = 5.0
"""Age in seconds of a hold that was left behind; what is done under one takes milliseconds."""


@contextmanager
def finished_file(content: bytes, final: Path) -> Iterator[Path]:
    """A file on the disk, beside `final` and under a name of its own; gone when the block ends."""
    temporary = final.with_name(f".{final.stem}.{secrets.token_hex(8)}.tmp{final.suffix}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def holding(hold: Path, finished: Path) -> Iterator[None]:
    """Keeps other processes, which want the same hold, waiting until the block ends.

    Args:
        finished: a file of this process, whose second name the hold becomes.

    Raises:
        OSError: the folder cannot be written to.
    """
    while not _linked_or_copied(finished, hold):
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
    if not replace and _linked(finished, final):
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


def _linked(source: Path, target: Path) -> bool:
    """Whether a file has a second name now; False where the file system has no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        # the answer of a network file system may be lost, and the call made again
        if not _same_file(source, target):
            raise
    except (OSError, NotImplementedError):
        return False
    return True


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except FileNotFoundError:
        return False


def _linked_or_copied(source: Path, target: Path) -> bool:
    """Whether a file has a second name, or a copy of that name, now; False where there was a file."""
    try:
        if _linked(source, target):
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
