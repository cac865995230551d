"""Reads the shipped tables of reference scores and addresses."""

import functools
from collections.abc import Mapping
from pathlib import Path

from offbench.io import read_csv


@functools.cache
def table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a csv file of this folder, every value as text."""
    return tuple(read_csv(Path(__file__).parent / name))
