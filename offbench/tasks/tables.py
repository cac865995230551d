"""Reads the shipped tables of reference scores and addresses."""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path


@functools.cache
def table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a csv file of this folder, every value as text."""
    with (Path(__file__).parent / name).open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))
