"""All recorded episodes as one table: parquet or csv, a local file or what fsspec opens."""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from offbench.errors import UserError, in_one_line, unknown, writing
from offbench.io import replacing
from offbench.results.record import read_episodes
from offbench.results.schema import EPISODE_SCHEMA
from offbench.results.sharing.files import Found, examine, scan
from offbench.results.sharing.verify import existing

_JSON = ("env", "hparams", "pipeline", "protocol", "versions", "tuning", "overrides", "fitted")

RUN_SCHEMA = pa.schema(
    [
        ("config_id", pa.string()),
        ("suite_version", pa.int64()),
        ("dataset", pa.string()),
        ("dataset_sha256", pa.string()),
        ("n_updates", pa.int64()),
        # what to know of the run's score
        ("remark", pa.string()),
        ("commit", pa.string()),
        ("dirty", pa.bool_()),
        ("device", pa.string()),
        ("backend", pa.string()),
        ("precision", pa.string()),
        ("pack", pa.int64()),
        ("wall_s", pa.float64()),
        ("train_s", pa.float64()),
        ("created", pa.string()),
        # json
        *((name, pa.string()) for name in _JSON),
    ]
)
"""The columns of an export that are the same in all rows of a run, beside those of an episode."""

SCHEMA = pa.schema([*EPISODE_SCHEMA, *RUN_SCHEMA])

# runs to a row group
_GROUP = 200


def export(
    root: Path, target: str, where: Mapping[str, Collection[Any]]
) -> tuple[int, int, list[str]]:
    """Writes one row per recorded episode, with the columns of its run.

    Args:
        target: FILE.parquet or FILE.csv; a URL (`s3://`, `memory://`) is opened by fsspec.
        where: "suite", "entry", "task" or "seed" -> the values that are wanted.

    Returns:
        Number of runs, number of rows, and a line for each damaged record, which is left out.

    Raises:
        UserError: nothing recorded is wanted, or the file cannot be written.
    """
    kind = target.rpartition(".")[2]
    if kind not in ("parquet", "csv"):
        raise UserError(f"export: {target} ends neither in .parquet nor in .csv")
    damaged: list[str] = []
    chosen = _chosen(root, where, damaged)
    n_rows = 0
    with _opened(target) as file:
        writer = (
            pq.ParquetWriter(file, SCHEMA, compression="zstd")
            if kind == "parquet"
            else pc.CSVWriter(file, _as_text(SCHEMA.empty_table()).schema)
        )
        with writer:
            for start in range(0, len(chosen), _GROUP):
                group = [_rows(found) for found in chosen[start : start + _GROUP]]
                table = pa.concat_tables(group)
                writer.write_table(table if kind == "parquet" else _as_text(table))
                n_rows += len(table)
    return len(chosen), n_rows, damaged


def _chosen(root: Path, where: Mapping[str, Collection[Any]], damaged: list[str]) -> list[Found]:
    found = [examine(files) for files in scan(existing(root))]
    damaged += [str(fault) for f in found for fault in f.faults]
    whole = [(f, _names(f)) for f in found if f.ok and f.run is not None]
    for column, wanted in where.items():
        known = {names[column] for _, names in whole}
        if absent := [value for value in wanted if value not in known]:
            raise unknown(column, absent[0], known)
    chosen = [f for f, names in whole if all(names[c] in values for c, values in where.items())]
    if not chosen:
        raise UserError(f"nothing recorded in {root} that could be exported")
    return chosen


def _names(found: Found) -> dict[str, Any]:
    assert found.run is not None and found.body is not None
    run, entry = found.run, found.body["provenance"]["entry"]
    return {"suite": run.suite, "entry": entry, "task": run.task, "seed": run.seed}


def _rows(found: Found) -> pa.Table:
    """The episodes of a record in SCHEMA."""
    assert found.run is not None and found.body is not None
    values = found.body["provenance"] | found.run.as_dict() | {"remark": found.body["reason"]}
    values |= {"config_id": found.run.config_id}
    values |= {name: json.dumps(values[name], sort_keys=True) for name in _JSON}
    table = read_episodes(found.files.mark, found.body["episodes"])
    for field in RUN_SCHEMA:
        table = table.append_column(
            field, pa.repeat(pa.scalar(values[field.name], field.type), len(table))
        )
    return table


def _as_text(table: pa.Table) -> pa.Table:
    """With lists as json text, which a csv file can hold."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [None if x is None else json.dumps(x) for x in table[i].to_pylist()]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table


@contextlib.contextmanager
def _opened(target: str) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its place when the block ends without an error."""
    if "://" not in target:
        with writing(target), replacing(Path(target)) as temporary, temporary.open("wb") as file:
            yield file
        return
    import fsspec

    try:
        with fsspec.open(target, "wb") as file:
            yield file
    except ImportError as error:
        raise UserError(f"cannot write {target}: {error}") from None
    except UserError:
        raise
    # every driver has errors of its own
    except Exception as error:
        raise UserError(f"cannot write {target}: {in_one_line(error)}") from None
