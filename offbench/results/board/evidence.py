"""The rows behind a board: two parquet files next to it, from which anybody can compute it again.

    NAME.runs.parquet       a line per run, as `Store.runs()` has it
    NAME.episodes.parquet   run, stream, update, number, start state and score of every episode, of
                            goal-conditioned tasks the goal; what the board asked for is in its metadata
    NAME.consistency.csv    how far each pair of seeds is apart, where it was measured

Scores are kept to the last bit, because the random numbers of the intervals are seeded by them.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from offbench.errors import UserError, writing
from offbench.io import replacing
from offbench.results.board.leaderboard import Asked, Board, leaderboard
from offbench.results.cells import places
from offbench.results.consistency import (
    cell_consistency,
    entry_consistency,
    parse_pairs,
    write_pairs,
)

FORMAT = 1

_METADATA = b"offbench.board"

# a column of values that are no plain numbers or texts, as JSON
_AS_JSON = b"offbench.json"

_CODES = pa.dictionary(pa.int32(), pa.string())

_EPISODES = pa.schema(
    [
        pa.field("run_id", _CODES, nullable=False),
        pa.field("stream", _CODES, nullable=False),
        pa.field("update", pa.int64(), nullable=False),
        pa.field("episode", pa.int32(), nullable=False),
        pa.field("env_seed", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a board is computed from."""

    # `Store.episodes()`, at least the columns of the file
    episodes: pd.DataFrame
    # `Store.runs()` of the same records
    runs: pd.DataFrame
    tasks: tuple[str, ...]
    asked: Asked
    title: str
    # on the selection of the runs; the board adds its own
    notes: tuple[str, ...] = ()
    # divergences of pairs of seeds, as of `offbench.results.consistency`; None where they were not measured
    pairs: pd.DataFrame | None = None

    def board(self, **options: Any) -> Board:
        """The leaderboard; options (level, reps, random_seed) as of `leaderboard`."""
        board = leaderboard(
            self.episodes, self.runs, self.tasks, asked=self.asked, title=self.title, **options
        )
        board = replace(board, notes=(*board.notes, *self.notes))
        if self.pairs is None or self.pairs.empty:
            return board
        measured = self.pairs[self.pairs["task"].isin(self.tasks)]
        return replace(
            board,
            consistency=cell_consistency(measured, board.level),
            entry_consistency=entry_consistency(measured, board.level),
        )


def paths_of(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a board's runs and episodes."""
    return folder / f"{name}.runs.parquet", folder / f"{name}.episodes.parquet"


def pairs_path(folder: Path, name: str) -> Path:
    """The file of the divergences of seeds, where they were measured."""
    return Path(folder) / f"{name}.consistency.csv"


# --- writing --------------------------------------------------------------------------------


def write_evidence(evidence: Evidence, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes the two files atomically; the same records give the same bytes.

    Raises:
        UserError: the folder cannot be written to.
    """
    tables = _run_table(evidence.runs), _episode_table(evidence)
    paths = paths_of(Path(folder), name)
    with writing(f"the board's rows to {folder}"):
        for path, table in zip(paths, tables, strict=True):
            with replacing(path) as temporary:
                pq.write_table(table, temporary, compression="zstd", write_statistics=False)
        _write_pairs(evidence, folder, name)
    return paths


def _write_pairs(evidence: Evidence, folder: Path, name: str) -> None:
    """Writes the divergences of seeds where they were measured, else takes away those of an older board."""
    path = pairs_path(folder, name)
    if evidence.pairs is None or evidence.pairs.empty:
        path.unlink(missing_ok=True)
    else:
        write_pairs(path, evidence.pairs)


def _in_order(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.sort_values(["entry", "task", "seed", "run_id"], ignore_index=True)


def _run_table(runs: pd.DataFrame) -> pa.Table:
    runs = _in_order(runs)
    columns, fields = [], []
    for name in runs:
        column, about = runs[name], {}
        if column.dtype == object and not _is_text(column):
            column, about = column.map(_as_json), {_AS_JSON: b"1"}
        array = pa.array(column, from_pandas=True)
        if pa.types.is_null(array.type):
            array = array.cast(pa.string())
        columns.append(array)
        fields.append(pa.field(str(name), array.type, metadata=about))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _is_text(column: pd.Series) -> bool:
    # a value may be a list, as a maze's map is
    return all(isinstance(value, str) for value in column.dropna())


def _as_json(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return json.dumps(value, sort_keys=True)


def _episode_table(evidence: Evidence) -> pa.Table:
    asked = evidence.asked
    about = {
        "format": FORMAT,
        "title": evidence.title,
        "tasks": evidence.tasks,
        "only": {method: list(tasks) for method, tasks in asked.only.items()},
        "seeds": {task: list(seeds) for task, seeds in asked.seeds.items()},
        "unscaled": sorted(asked.unscaled),
        "notes": evidence.notes,
    }
    schema = _EPISODES
    if "task_id" in evidence.episodes and evidence.episodes["task_id"].notna().any():
        schema = schema.append(pa.field("task_id", pa.int64()))
    rows = evidence.episodes[schema.names]
    rows = rows.assign(run=places(rows["run_id"], _in_order(evidence.runs)["run_id"]))
    rows = rows.sort_values(["run", "stream", "update", "episode"], ignore_index=True)
    table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    return table.replace_schema_metadata({_METADATA: json.dumps(about)})


# --- reading --------------------------------------------------------------------------------


def read_evidence(folder: Path, name: str) -> Evidence:
    """The evidence that `write_evidence` wrote; names are categories, as 20 million rows need it.

    Raises:
        UserError: a file is not there, is damaged, or is of another format.
    """
    paths = paths_of(Path(folder), name)
    lines, rows = (_read(path) for path in paths)
    about = json.loads((rows.schema.metadata or {}).get(_METADATA, b"{}"))
    if about.get("format") != FORMAT:
        raise UserError(f"{paths[1]} is not the rows of a board in format {FORMAT}")
    runs = _frame_of_runs(lines)
    episodes = rows.to_pandas(split_blocks=True, self_destruct=True)
    if absent := {"run_id", "entry", "task", "seed"} - set(runs):
        raise UserError(f"{paths[0]} has no column {min(absent)}")
    places = pd.Index(runs["run_id"]).get_indexer(episodes["run_id"].cat.categories)
    if (places < 0).any():
        unknown = episodes["run_id"].cat.categories[places < 0][0]
        raise UserError(f"{paths[1]} has episodes of run {unknown}, which {paths[0].name} lacks")
    run = places[episodes["run_id"].cat.codes]
    for column in ("entry", "task"):
        codes, names = pd.factorize(runs[column], sort=True)
        episodes[column] = pd.Categorical.from_codes(codes.astype(np.int16)[run], names)
    episodes["seed"] = runs["seed"].to_numpy()[run]
    return Evidence(
        episodes=episodes,
        runs=runs,
        tasks=tuple(about["tasks"]),
        asked=Asked(about["only"], about["seeds"], frozenset(about["unscaled"])),
        title=about["title"],
        notes=tuple(about["notes"]),
        pairs=parse_pairs(pairs) if (pairs := pairs_path(folder, name)).exists() else None,
    )


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} is not there: nothing to compute the board from") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def _frame_of_runs(table: pa.Table) -> pd.DataFrame:
    runs = table.to_pandas()
    for field in table.schema:
        if _AS_JSON in (field.metadata or {}):
            texts = runs[field.name]
            values = {text: _from_json(text) for text in texts.dropna().unique()}
            runs[field.name] = [values.get(text) for text in texts]
    return runs


def _from_json(text: str) -> Any:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value
