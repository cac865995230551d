"""The one exception that means "you, not us", and the words that go with it.

A `UserError` is a mistake a user can correct: a misspelt name, a folder that cannot be written, a
record that was damaged. It carries one clear line; the command line prints that line and exits
with status 2, without a traceback. Anything else that is raised is a defect of the package.
"""

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator

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


def unknown(kind: str, value: object, choices: Iterable[object]) -> UserError:
    """The error for a name that is not there; the caller raises it.

    >>> str(unknown("method", "iqll", ["bc", "iql"]))
    "unknown method 'iqll': did you mean 'iql'? (choices: bc, iql)"
    """
    return UserError(f"unknown {kind} {str(value)!r}: {nearest(value, choices)}")


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turns an error of a user's code, run inside the block, into a UserError with its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())
        raise UserError(
            f"{what} raised {type(error).__name__}: {words} ({at.filename}:{at.lineno})"
        ) from error
