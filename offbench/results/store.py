"""What was run and what came of it: append-only records in plain files named by content.

A run is everything that defines it, a `RunSpec`, and its name is a hash of that, so a result can
neither go stale nor collide with another. A record is two files: `<run_id>.parquet`, one row per
evaluation episode, and `<run_id>.json`, the spec, the provenance and the checksum of the parquet.
The json is written last and is the commit mark: without it there is no record, with it there is a
whole one, or an error which names the file.

    root/runs/<suite>/<task, "/" as "--">/<entry>/<run_id>.parquet
                                                   <run_id>.json        written last

Nothing here reads or writes means; tables are recomputed from the rows (`offbench.results.leaderboard`).
"""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from offbench.errors import UserError, unknown
from offbench.results.schema import (
    ARROW_SCHEMA,
    EPISODE_COLUMNS,
    LATER_COLUMNS,
    NULLABLE,
    episode_table,
)
from offbench.results.spec import Provenance, RunSpec, with_names

Status = Literal["ok", "failed", "diverged"]

# the same on every row of a run
_CONSTANT = ("run_id", "entry", "suite", "task", "method", "seed")

_FORMAT = 1

_TAIL = ',\n "checksum": "%s"\n}\n'

_TAIL_LENGTH = len(_TAIL % ("0" * 64))


class Record(NamedTuple):
    """One whole record, except for its episodes."""

    path: Path  # of the json
    status: Status
    # why it failed, or what to know of a run that did not
    reason: str | None
    spec: RunSpec
    provenance: Provenance
    metrics: pd.DataFrame | None  # one row per logged point


@dataclass(frozen=True)
class Store:
    """An append-only folder of records. Constructing one touches nothing.

    Safe for many processes at once: each record is its own pair of files, and the few renames
    which publish it happen under one lock of the store, which the system drops with the process.
    """

    root: Path

    def __init__(self, root: str | Path):
        object.__setattr__(self, "root", Path(root))

    def check_writable(self) -> None:
        """Raises UserError now, rather than after a day of training."""
        try:
            runs = self.root / "runs"
            runs.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock"):
                _write_temporary(runs / "probe", b"").unlink()
        except OSError as error:
            raise UserError(f"cannot write records to {self.root}: {error.strerror}") from None

    def missing(self, runs: Iterable[RunSpec], *, count_failed: bool = False) -> list[RunSpec]:
        """Those of `runs`, in order and once each, which have no whole record yet.

        A failed or diverged run is missing, unless `count_failed`.
        """
        wanted = list(dict.fromkeys(runs))
        found = self._paths({run.suite for run in wanted}, {run.task for run in wanted})
        return [run for run in wanted if not _done(found.get(run.run_id, ()), count_failed)]

    def has(self, run_id: str, *, count_failed: bool = False) -> bool:
        return _done(self._paths().get(run_id, ()), count_failed)

    def append(
        self,
        run: RunSpec,
        episodes: pd.DataFrame,
        provenance: Provenance,
        metrics: Mapping[str, Sequence[float]] | None = None,
        *,
        remark: str | None = None,
    ) -> Path:
        """Records a finished run and returns the path of its json.

        `episodes` has EPISODE_COLUMNS; those which are the same for the whole run (run_id, entry,
        suite, task, method, seed) may be left out. `metrics` are curves of equal length, one list
        per name. `remark` is what a reader of the score must know, kept as the `reason`. Raises
        UserError for rows that do not belong to this run, for `test` rows before the last update, and
        when the run has a whole record already.
        """
        table = episode_table(run, episodes, provenance.entry)
        sink = pa.BufferOutputStream()
        # Snappy: a small file is read twice as fast as with zstd, and boards read thousands.
        pq.write_table(table, sink, compression="snappy", write_statistics=False)
        payload = sink.getvalue().to_pybytes()
        about = {
            "rows": table.num_rows,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        return self._commit(run, provenance, "ok", remark, payload, about, _curves(metrics))

    def fail(
        self,
        run: RunSpec,
        reason: str,
        provenance: Provenance,
        *,
        status: Literal["failed", "diverged"] = "failed",
    ) -> Path:
        """Records that a run came to nothing, and why. A later success or failure replaces it."""
        if status not in ("failed", "diverged"):
            raise unknown("status", status, ("failed", "diverged"))
        return self._commit(run, provenance, status, reason, None, None, None)

    def read(self, run_id: str) -> Record:
        """Raises UserError when there is no such record."""
        paths = self._paths().get(run_id, ())
        if not paths:
            raise UserError(f"no record {run_id!r} in {self.root}")
        path, body = _winner([(path, _load(path)) for path in paths])
        curves = body["metrics"]
        metrics = None if curves is None else pd.DataFrame(curves, dtype="float64")
        spec, provenance = RunSpec(**body["spec"]), Provenance(**body["provenance"])
        return Record(path, body["status"], body["reason"], spec, provenance, metrics)

    def runs(self, **where: Any) -> pd.DataFrame:
        """One line per record, failed ones too: spec and provenance but `sources`, nested names dotted.

        `where` filters by column, with a value or a collection of values; dotted names go in as
        `**{"hparams.lr": 1e-3}`. Columns besides the fields: run_id, config_id, status, reason,
        rows. Raises UserError for a damaged record or an unknown column.
        """
        lines = [_line(body) for _, body in self._matching(where)]
        head = ["run_id", "config_id", "entry", "suite", "task", "method", "seed", "status"]
        frame = pd.DataFrame(lines, columns=None if lines else head)
        rest = [name for name in frame.columns if name not in head]
        return frame[head + rest]

    def episodes(self, **where: Any) -> pd.DataFrame:
        """All recorded episodes, long form, EPISODE_COLUMNS; `where` as in `runs`, or by row."""
        by_row = {
            name: where.pop(name)
            for name in tuple(where)
            if name in EPISODE_COLUMNS and name not in _CONSTANT
        }
        tables = [
            _read_episodes(path.with_suffix(".parquet"), body["episodes"])
            for path, body in self._matching(where)
            if body["status"] == "ok"
        ]
        table = pa.concat_tables(tables) if tables else ARROW_SCHEMA.empty_table()
        dtypes = {
            pa.bool_(): pd.BooleanDtype(),
            pa.int64(): pd.Int64Dtype(),
            pa.float64(): pd.Float64Dtype(),
        }
        frame = table.drop_columns(list(NULLABLE)).to_pandas()
        # in the order of the columns
        for name in NULLABLE:
            column = table[name].to_pandas(types_mapper=dtypes.get)
            frame.insert(table.schema.get_field_index(name), name, column)
        for name, value in by_row.items():
            frame = frame[frame[name].isin(_as_set(value))]
        return frame.reset_index(drop=True)

    def curves(self, **where: Any) -> dict[str, pd.DataFrame]:
        """run_id -> metrics, one row per logged point, of every run that has any; `where` as in `runs`."""
        return {
            body["run_id"]: pd.DataFrame(body["metrics"], dtype="float64")
            for _, body in self._matching(where)
            if body["metrics"] is not None
        }

    def path(self, run: RunSpec, entry: str) -> Path:
        """Where the json of a run's record lies, or will."""
        return self._folder(run, entry) / f"{run.run_id}.json"

    def records(self) -> list[Path]:
        """The json of every record; nothing is opened."""
        return [path for marks in self._paths().values() for path in marks]

    def kept(self, run: RunSpec) -> list[Path]:
        """What was kept of whole runs of this suite and task (`offbench.bench.kept`)."""
        marks = [m for ms in self._paths({run.suite}, {run.task}).values() for m in ms]
        return [path for mark in marks if (path := mark.with_suffix(".safetensors")).exists()]

    # --- inside -----------------------------------------------------------------------------

    def _folder(self, run: RunSpec, entry: str) -> Path:
        return self.root / "runs" / _safe(run.suite) / _safe(run.task) / _safe(entry)

    def _commit(
        self,
        run: RunSpec,
        provenance: Provenance,
        status: Status,
        reason: str | None,
        payload: bytes | None,
        about: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
    ) -> Path:
        body = {
            "format": _FORMAT,
            "run_id": run.run_id,
            "config_id": run.config_id,
            "status": status,
            "reason": reason,
            "spec": run.as_dict(),
            "provenance": provenance.as_dict(),
            "episodes": about,
            "metrics": metrics,
        }
        mark = self.path(run, provenance.entry)
        folder = mark.parent
        files = [] if payload is None else [(mark.with_suffix(".parquet"), payload)]
        files.append((mark, _seal(body).encode()))
        temporary: list[tuple[Path, Path]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, content in files:
                temporary.append((_write_temporary(path, content), path))
            with FileLock(self.root / ".lock"):
                superseded = self._superseded(run)
                for written, path in temporary:  # the mark is last
                    os.replace(written, path)
                    _sync_folder(folder)
                for path in superseded:
                    # a failure recorded under another entry label
                    if path != mark:
                        path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write record {mark}: {error.strerror}") from None
        finally:
            for written, _ in temporary:
                with suppress(OSError):
                    written.unlink(missing_ok=True)
        return mark

    def _superseded(self, run: RunSpec) -> list[Path]:
        """Failed records of this run; raises when there is a whole one."""
        paths = self._paths({run.suite}, {run.task}).get(run.run_id, [])
        for path in paths:
            if _load(path)["status"] == "ok":
                raise UserError(f"run {run.run_id} is recorded already in {path}; records are kept")
        return paths

    def _paths(
        self, suites: Collection[str] | None = None, tasks: Collection[str] | None = None
    ) -> dict[str, list[Path]]:
        """run_id -> its commit marks (normally one), from names only: nothing is opened."""
        found: dict[str, list[Path]] = {}
        for suite in _subfolders(self.root / "runs", suites):
            for task in _subfolders(suite, tasks):
                for entry in _subfolders(task, None):
                    for name in sorted(os.listdir(entry)):
                        if name.endswith(".json") and not name.startswith("."):
                            found.setdefault(name.removesuffix(".json"), []).append(entry / name)
        return found

    def _matching(self, where: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
        wanted = {name: _as_set(value) for name, value in where.items()}
        paths = self._paths(wanted.get("suite"), wanted.get("task"))
        ids = frozenset(wanted["run_id"]) if "run_id" in wanted else frozenset(paths)
        unseen, seen = set(wanted), set[Any]()
        for run_id, marks in paths.items():
            if run_id not in ids:
                continue
            path, body = _winner([(mark, _load(mark)) for mark in marks])
            if wanted:
                line = _line(body)
                unseen -= line.keys()
                seen |= line.keys()
                rest = ((name, values) for name, values in wanted.items() if name != "run_id")
                if not all(_is_in(line.get(name), values) for name, values in rest):
                    continue
            yield path, body
        if seen and unseen:
            raise unknown("column of the records", min(unseen), seen)


def _done(paths: Sequence[Path], count_failed: bool) -> bool:
    if not paths:
        return False
    path, body = _winner([(path, _load(path)) for path in paths])
    if body["status"] != "ok":
        return count_failed
    # Reading every parquet to decide what is left to run would be slow; its length is free.
    parquet = path.with_suffix(".parquet")
    if not parquet.is_file() or parquet.stat().st_size != body["episodes"]["bytes"]:
        raise UserError(f"damaged record: {parquet} is missing or truncated")
    return True


def _winner(marks: list[tuple[Path, dict[str, Any]]]) -> tuple[Path, dict[str, Any]]:
    """The record that counts when a failure under another label was not yet cleared away."""
    whole = [mark for mark in marks if mark[1]["status"] == "ok"]
    if len(whole) > 1:
        raise UserError(f"one run is recorded twice: {whole[0][0]} and {whole[1][0]}")
    return whole[0] if whole else marks[-1]


def _line(body: dict[str, Any]) -> dict[str, Any]:
    line = {name: body[name] for name in ("run_id", "config_id", "status", "reason")}
    line["rows"] = body["episodes"]["rows"] if body["episodes"] else 0
    for part in ("spec", "provenance"):
        # sources are for who reads one record: a column per setting would drown the rest
        _flatten({k: v for k, v in body[part].items() if k != "sources"}, "", line)
    return line


def columns(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A part of a run's specification as the columns of `Store.runs()`."""
    out: dict[str, Any] = {}
    _flatten(value, prefix, out)
    return {k: v for k, v in out.items() if v is not None}


def _flatten(value: Mapping[str, Any], prefix: str, out: dict[str, Any]) -> None:
    for name, item in value.items():
        if isinstance(item, dict):
            _flatten(item, f"{prefix}{name}.", out)
        else:
            out[prefix + name] = tuple(item) if isinstance(item, list) else item


def _as_set(value: Any) -> tuple[Any, ...]:
    collection = isinstance(value, Collection) and not isinstance(value, str | Mapping)
    return tuple(value) if collection else (value,)


def _is_in(value: Any, values: tuple[Any, ...]) -> bool:
    return value in values or (isinstance(value, tuple) and value == values)


def _curves(metrics: Mapping[str, Sequence[float]] | None) -> dict[str, list[float | None]] | None:
    """Curves for the json; a value that is not finite is kept as null."""
    if metrics is None:
        return None
    curves = {
        str(name): [float(x) if math.isfinite(x) else None for x in values]
        for name, values in metrics.items()
    }
    if len({len(curve) for curve in curves.values()}) > 1:
        lengths = ", ".join(f"{name} {len(curve)}" for name, curve in curves.items())
        raise UserError(f"metrics: curves of different lengths: {lengths}")
    return curves


def _safe(name: str) -> str:
    """A folder name for an id. Ids are paths, and one folder level is one id."""
    folder = quote(name.replace("/", "--"), safe=" +=,@()[]-")
    if folder.startswith("."):
        folder = "%2E" + folder[1:]
    if len(folder) > 200:
        raise UserError(f"{name!r} is too long for a folder name")
    return folder


def _subfolders(folder: Path, names: Collection[str] | None) -> list[Path]:
    if names is not None:
        return [path for name in sorted(map(str, names)) if (path := folder / _safe(name)).is_dir()]
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(e.name for e in entries if e.is_dir())]
    except FileNotFoundError:
        return []


def _write_temporary(path: Path, content: bytes) -> Path:
    """Writes beside `path`, under a hidden name, down to the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk; Windows opens no folder and has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(body: Mapping[str, Any]) -> str:
    """JSON with a checksum of itself as its last line. Curves stay on one line."""
    lines = [
        f' "{name}": {json.dumps(value, indent=None if name == "metrics" else 1, allow_nan=False)}'
        for name, value in body.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}"
    return text[:-2] + _TAIL % hashlib.sha256(text.encode()).hexdigest()


_TAIL_PATTERN = re.compile(re.escape(_TAIL).replace("%s", "([0-9a-f]{64})"))


def _load(path: Path) -> dict[str, Any]:
    """The body of a sealed json; raises UserError with the path when anything in it changed."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"damaged record: {path} cannot be read: {error}") from None
    head, tail = text[:-_TAIL_LENGTH] + "\n}", _TAIL_PATTERN.fullmatch(text[-_TAIL_LENGTH:])
    if tail is None or hashlib.sha256(head.encode()).hexdigest() != tail[1]:
        raise UserError(f"damaged record: {path} is truncated or was edited")
    body = json.loads(head)
    if body["format"] != _FORMAT:
        raise UserError(f"{path} has record format {body['format']}, this offbench reads {_FORMAT}")
    if body["run_id"] != path.stem:
        raise UserError(f"damaged record: {path} is the record of run {body['run_id']}")
    body["spec"]["pipeline"] = with_names(body["spec"]["pipeline"])
    return body


def _read_episodes(path: Path, about: Mapping[str, Any]) -> pa.Table:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UserError(f"damaged record: {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != about["sha256"]:
        raise UserError(f"damaged record: {path} is truncated or was edited")
    table = pq.ParquetFile(pa.BufferReader(payload)).read(use_threads=False)
    # a record of before it had them
    for name in LATER_COLUMNS:
        if name not in table.column_names:
            field = ARROW_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if table.num_rows != about["rows"] or not table.schema.equals(ARROW_SCHEMA):
        raise UserError(f"damaged record: {path} does not hold the rows its json describes")
    return table
