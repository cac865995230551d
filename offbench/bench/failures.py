"""Kinds of failures: a user's mistake, an accident of the machine, an error that comes back."""

from typing import Literal

from offbench.errors import UserError

Kind = Literal["user", "infrastructure", "error"]


def failure_of(error: Exception) -> tuple[Kind, str]:
    """(kind, reason in one line) of an error that ended a stack."""
    if isinstance(error, UserError):
        return "user", str(error)
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    return ("infrastructure" if isinstance(error, OSError) else "error"), reason
