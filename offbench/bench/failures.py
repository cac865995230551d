"""What kind of failure an error is: a user's mistake, what a retry may mend, or what it repeats."""

import errno
import re
from concurrent.futures.process import BrokenProcessPool
from typing import Literal

from offbench.errors import UserError

Kind = Literal["user", "infrastructure", "error"]

# full or lost disks and networks; what else an OSError may be (no such file, no permission) stays
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EAGAIN", "EBUSY", "ENFILE", "EMFILE", "EREMOTEIO"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENOTCONN", "EPIPE", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)

_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc|cannot allocate memory", re.I)
_CUDA = re.compile(r"\b(CUDA|cuDNN|CUBLAS|NCCL) ?(error|_STATUS)", re.I)
# an index or an assertion of the program, which fails again
_OF_PROGRAM = re.compile(r"device-side assert|invalid (device )?(function|argument|configuration)")


def failure_of(error: BaseException) -> tuple[Kind, str]:
    """(kind, reason in one line) of the error that ended a stack of runs.

    "user": a mistake that a user corrects. "infrastructure": full disks, networks, processes and devices
    that were lost; the same run may succeed when it is tried again. "error": anything else, which the
    same run meets again; the reason of an allocation that failed begins with "out of memory: ".
    """
    words = " ".join(str(error).split())
    if _is_memory(error):
        return "error", f"out of memory: {_brief(words) or type(error).__name__}"
    if isinstance(error, UserError):
        # written as `raise UserError(...) from None` where a record or checkpoint could not be
        below = error.__cause__ or error.__context__
        passing = isinstance(below, OSError) and _is_passing(below)
        return ("infrastructure" if passing else "user"), words
    reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return ("infrastructure" if _is_passing(error) else "error"), reason


def _is_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, numpy, torch or the kernel."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


def _is_passing(error: BaseException) -> bool:
    """Whether the error is of a disk, a network, another process or a device."""
    if isinstance(error, ConnectionError | TimeoutError | EOFError | BrokenProcessPool):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    text = str(error)
    lost = type(error).__name__ == "AcceleratorError" or bool(_CUDA.search(text))
    return isinstance(error, RuntimeError) and lost and not _OF_PROGRAM.search(text)


def _brief(words: str) -> str:
    """What torch says of an allocation without the place in its source: "you tried to allocate ..."."""
    found = re.search(r"(you tried to allocate|tried to allocate)[^.]*(\.\d[^.]*)*", words, re.I)
    return found[0].strip().rstrip(".") if found else words
