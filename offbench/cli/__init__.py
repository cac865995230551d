"""The command line: the only package that prints."""

from offbench.cli import main

__all__ = ["main"]
