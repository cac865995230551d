"""The one exception that means "you, not us", and the words that go with it.

A `UserError` is a mistake a user can correct: a misspelt name, a folder that cannot be written, a
record that was damaged. It carries one clear line; the command line prints that line and exits
with status 2, without a traceback. Anything else that is raised is a defect of the package.
"""

import contextlib
import difflib
import getpass
import operator
import os
import re
import socket
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

# a suite may have hundreds of tasks; a line of choices must stay readable
_SHOWN = 12


class UserError(ValueError):
    """A mistake of the user, told in one line."""


class Interrupted(BaseException):
    """Work ends here because its process was asked to stop; no failure of what was running."""


def nearest(value: object, choices: Iterable[object], n: int = 3) -> str:
    """What the user probably meant, and what there is.

    >>> nearest("iqll", ["bc", "iql", "td3_bc"])
    "did you mean 'iql'? (choices: bc, iql, td3_bc)"
    >>> nearest("12.5", range(100))  # of many, the nearest alone
    "did you mean '25' or '15' or '12'?"
    >>> nearest("zzz", ["bc", "iql"])
    'choices: bc, iql'
    """
    names = sorted({str(choice) for choice in choices})
    if not names:
        return "there are no choices"
    by_lower = {name.lower(): name for name in reversed(names)}
    close = [
        by_lower[match]
        for match in difflib.get_close_matches(str(value).lower(), by_lower, n=n, cutoff=0.5)
    ]
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown += f", and {len(names) - _SHOWN} more"
    if not close:
        return f"choices: {shown}"
    meant = f"did you mean {' or '.join(repr(name) for name in close)}?"
    return meant if len(names) > _SHOWN else f"{meant} (choices: {shown})"


def listed(names: Iterable[object], most: int) -> str:
    """The first of some names, and how many more there are.

    >>> listed("abcde", 3), listed("abc", 3)
    ('a, b, c and 2 more', 'a, b, c')
    """
    shown = [str(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def unknown(kind: str, value: object, choices: Iterable[object]) -> UserError:
    """The error for a name that is not there; the caller raises it.

    >>> str(unknown("method", "iqll", ["bc", "iql"]))
    "unknown method 'iqll': did you mean 'iql'? (choices: bc, iql)"
    """
    return UserError(f"unknown {kind} {str(value)!r}: {nearest(value, choices)}")


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turns an error of a user's code, run inside the block, into a UserError with its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # where the user's code called torch, not the line of torch
        torch = sys.modules.get("torch")
        library = os.path.dirname(getattr(torch, "__file__", None) or "/")
        own = [frame for frame in frames if not frame.filename.startswith(f"{library}{os.sep}")]
        at = (own or frames)[-1]
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{what} raised {words} ({at.filename}:{at.lineno})") from error


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns an error of the file system, inside the block, into a UserError: what cannot be written, and why.

    >>> with writing("the board to results"):
    ...     raise PermissionError(13, "Permission denied")
    Traceback (most recent call last):
    offbench.errors.UserError: cannot write the board to results: Permission denied
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what}: {error.strerror or in_one_line(error)}") from None


# --- what Python callers hand in ------------------------------------------------------------


def expect(name: str, value: object, kinds: type | tuple[type, ...], words: str) -> None:
    """Raises UserError for an argument of another type; `words` say what is needed. True and False are no numbers.

    >>> expect("difference", "5", (int, float), "a number")
    Traceback (most recent call last):
    offbench.errors.UserError: difference='5' must be a number
    """
    # a number of numpy stands for Python's
    plain = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    if not isinstance(plain, kinds) or (isinstance(plain, bool) and kinds is not bool):
        raise UserError(f"{name}={_shown(value)} must be {words}")


def expect_whole(name: str, value: object, least: int) -> None:
    """Raises UserError for an argument that is no whole number of at least `least`."""
    # numpy's, too
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise UserError(f"{name}={_shown(value)} must be a whole number of at least {least}")


def expect_names(name: str, value: object) -> tuple[str, ...]:
    """Names as a tuple; one name stands for itself. Raises UserError for anything else."""
    if isinstance(value, str):
        return (value,)
    names = tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(x, str) for x in names):
        raise UserError(f"{name}={_shown(value)} must be names")
    return names


def _shown(value: object) -> str:
    """A value in few words, its type where it has many."""
    text = repr(value) if isinstance(value, str | int | float | list | tuple | dict | None) else ""
    kind = value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
    return text if 0 < len(text) <= 40 and text.isprintable() else f"<{kind}>"


# --- what may be published ------------------------------------------------------------------

# a variable of such a name holds a secret
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
# shorter values are words, too
_SHORTEST_SECRET = 8


def publishable(text: str) -> str:
    """A text without what says who or where its writer is: secrets of the environment become `***`, paths
    begin at offbench, at a package, at the working folder or at `~`, and the names of user and host are left out.

    >>> publishable(f"cannot write {Path.home()}/results")
    'cannot write ~/results'
    """
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    for folder, short in _folders():
        text = text.replace(f"{folder}/", short)
        # not the beginning of a longer name
        alone = short.rstrip("/") or "."
        text = re.sub(rf"{re.escape(folder)}(?![\w-])", alone, text)
    user, host = user_and_host()
    if user:
        text = re.sub(rf"(?<=/){re.escape(user)}(?=/)", "USER", text)
    if host and host != "localhost":
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


def clean_traceback(error: BaseException) -> str:
    """The traceback of an error as `publishable` text."""
    return publishable("".join(traceback.format_exception(error)))


def _folders() -> list[tuple[str, str]]:
    """(folder, what stands for it), longest first."""
    package = Path(__file__).resolve().parent
    found = {str(package): "offbench/", str(Path.cwd()): ""}
    found |= {p: "" for p in sysconfig.get_paths().values() if p.endswith(("-packages", "lib"))}
    found[sysconfig.get_paths()["stdlib"]] = ""
    with contextlib.suppress(RuntimeError):
        home = Path.home()
        found |= {str(home): "~/", str(home.resolve()): "~/"}
    found = {folder: short for folder, short in found.items() if len(Path(folder).parts) > 1}
    return sorted(found.items(), key=lambda item: -len(item[0]))


def user_and_host() -> tuple[str, str]:
    """Names of who runs this process and of the machine; the first is empty where there is none, as in a container."""
    try:
        return getpass.getuser(), socket.gethostname()
    except (OSError, KeyError, ImportError):
        return "", socket.gethostname()
