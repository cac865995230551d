"""The formats of a leaderboard that are files, and writing them. All spell the numbers of one `Board`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from offbench.errors import writing
from offbench.io import atomic_write
from offbench.results.board.latex import to_latex
from offbench.results.board.leaderboard import Board
from offbench.results.board.render import to_csv, to_markdown

JSON_FORMAT = 1


def to_json(board: Board) -> str:
    """Everything of a board, one line per cell, entry or pair; numbers to six digits, as in the csv.

    Keys: format, title, tasks, level, resamples, sources (what the runs of every task have in common: data,
    environment, protocol, versions), caption, notes, and one list of objects per table: aggregate, cells,
    averaged, ranks, pairwise; of goal-conditioned tasks goals; where seeds were compared consistency (of cells)
    and entry_consistency.
    """
    plain = {
        "format": JSON_FORMAT,
        "title": board.title,
        "tasks": list(board.tasks),
        "level": board.level,
        "resamples": board.reps,
        "sources": board.sources,
        "caption": board.caption,
        "notes": list(board.notes),
    }
    parts = [f" {json.dumps(name)}: {_line(value)}" for name, value in plain.items()]
    goals = ("goals",) if len(board.goals) else ()
    compared = ("consistency", "entry_consistency") if len(board.entry_consistency) else ()
    for name in ("aggregate", "cells", "averaged", *goals, "ranks", "pairwise", *compared):
        lines = [f"  {_line(row)}" for row in getattr(board, name).to_dict("records")]
        parts.append(f' "{name}": [' + ("\n" + ",\n".join(lines) + "\n " if lines else "") + "]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """In types of JSON: six digits of every number, null for what is not known."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or value is pd.NA:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


FORMATS: Mapping[str, Callable[[Board], str]] = MappingProxyType(
    {"markdown": to_markdown, "csv": to_csv, "json": to_json, "latex": to_latex}
)
"""The formats that are files, by name."""

ENDINGS: Mapping[str, str] = MappingProxyType(
    {"markdown": "md", "csv": "csv", "json": "json", "latex": "tex"}
)


def write(board: Board, folder: Path, name: str) -> tuple[Path, ...]:
    """Writes a board in every format; the same records give the same bytes.

    Raises:
        UserError: the folder cannot be written to.
    """
    texts = [(ENDINGS[kind], make(board)) for kind, make in FORMATS.items()]
    paths = [Path(folder) / f"{name}.{ending}" for ending, _ in texts]
    with writing(f"the board to {folder}"):
        for path, (_, text) in zip(paths, texts, strict=True):
            atomic_write(path, text.encode())
    return tuple(paths)
