"""The command line: the only package that prints, but for the benchmark of speed."""

from offbench.cli.app import main

__all__ = ["main"]
