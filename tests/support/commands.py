"""`offbench data`, called as the command line calls it."""

from collections.abc import Sequence

from offbench.cli.app import call


def data_command(args: Sequence[str]) -> int:
    """The exit code of `offbench data ARGS`; a user's mistake is raised."""
    return call(["data", *args])
