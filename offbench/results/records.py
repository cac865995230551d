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
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from offbench.errors import UserError, nearest, unknown

EPISODE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "run_id": "object",
        "entry": "object",
        "suite": "object",
        "task": "object",
        "method": "object",
        "seed": "int64",
        "update": "int64",
        "stream": "object",
        "episode": "int64",
        "env_seed": "int64",
        "return": "float64",
        "score": "float64",
        "length": "int64",
        "success": "boolean",
        "terminated": "bool",
        "truncated": "bool",
        "plans": "Int64",
        "chunk_lengths": "object",
        "start_value": "Float64",
        "discounted_return": "Float64",
    }
)
"""Column -> pandas dtype, in order. `score` is on the 0-100 scale (success x 100 where that is the
score). `plans` counts the times the policy was asked for actions: `length` / `plans` is the mean length
of the chunks it executed. `chunk_lengths` is the histogram of those lengths, how many were 1, 2, ... h
steps long, where the policy executes chunks. `start_value` is what the method's critics said of its first
decision, `discounted_return` what came of it on the rewards and with the discount of its data
(`offbench.rollout.evaluate`); methods without critics have neither. `success` and all from `plans` on
may be missing; older records lack columns at the end."""
_NULLABLE = ("success", "plans", "chunk_lengths", "start_value", "discounted_return")
_LATER = _NULLABLE[1:]  # in the order in which records came to have them

VALIDATION_ERRORS = frozenset({"validation/action_error", "validation/action_disagreement"})
"""The curves of what a policy does otherwise than held-out episodes have it (`offbench.training.held_out`)."""

STREAMS = ("test", "monitor", "tune")
OUTSIDE = "outside"  # the method, and the tuning, of a policy that was trained elsewhere
TUNINGS = ("default", "published", "suite", "task preset", "user", OUTSIDE)

Status = Literal["ok", "failed", "diverged"]

_ARROW = {
    "object": pa.string(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "Float64": pa.float64(),
    "boolean": pa.bool_(),
    "bool": pa.bool_(),
}
_COUNTS = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    [
        pa.field(name, _COUNTS if name == "chunk_lengths" else _ARROW[kind], name in _NULLABLE)
        for name, kind in EPISODE_COLUMNS.items()
    ]
)
_CONSTANT = ("run_id", "entry", "suite", "task", "method", "seed")  # the same on every row of a run
_FORMAT = 1
_TAIL = ',\n "checksum": "%s"\n}\n'
_TAIL_LENGTH = len(_TAIL % ("0" * 64))
_IDENTIFYING = ("hostname", "host", "node", "nodename", "user", "username", "home", "cwd")


def no_episodes() -> pd.DataFrame:
    """The episodes of a run without an environment."""
    return pd.DataFrame({k: pd.Series(dtype=kind) for k, kind in EPISODE_COLUMNS.items()})


# --- what defines a run ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSpec:
    """Everything that decides the outcome of one run, as plain JSON values.

    Values are compared as JSON: tuples are lists, key order is nothing, and a number is its value,
    so `lr=1` and `lr=1.0` are one run (which of the two a command line produced says nothing
    about the run), while `True` is not `1`. Not a number, infinities and anything that is not
    JSON are refused.

    >>> a = RunSpec(suite="s", suite_version=1, task="t", dataset="d", dataset_sha256="0" * 64,
    ...             env={"id": "E-v0"}, method="iql", hparams={"lr": 1, "hidden": (256, 256)},
    ...             pipeline={}, n_updates=10, seed=0, protocol={"episodes": 5})
    >>> b = RunSpec.from_json(a.to_json())
    >>> a == b, len(a.run_id)
    (True, 16)
    """

    suite: str
    suite_version: int
    task: str
    dataset: str
    dataset_sha256: str
    env: Mapping[str, Any]  # id and kwargs; for own data how a return is scored, too
    method: str  # registry name or dotted path
    hparams: Mapping[str, Any]  # every hyper-parameter, defaults too
    pipeline: Mapping[str, Any]  # view, sampler, transforms, batch size, gamma, lower precision
    n_updates: int
    seed: int
    protocol: Mapping[str, Any]  # episodes, streams, monitor_at

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        object.__setattr__(self, "pipeline", _named(self.pipeline))

    @cached_property
    def run_id(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON."""
        return _digest(self._identity())

    @cached_property
    def config_id(self) -> str:
        """The same without the seed: equal for runs which are repetitions of one another."""
        return _digest({name: value for name, value in self._identity().items() if name != "seed"})

    def _identity(self) -> dict[str, Any]:
        return self.as_dict() | {"pipeline": _as_first_recorded(self.pipeline)}

    def as_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Raises UserError on anything but what `to_json` wrote."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"not the JSON of a run: {error}") from None
        return _from_dict(cls, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunSpec) and self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a result came to be: what may differ between two honest executions of one `RunSpec`.

    `tuning` says how the hyper-parameters were chosen: `how`, one of TUNINGS, or "task preset, 2 settings
    overridden (lr, n_updates)"; `tried`, the number of configurations; `source`, in words; `preset`, the
    source of the preset below what was overridden, or None; `overridden`, the names of the settings that
    differ from what is published; `published_updates` and `published_episodes`, the budget that is
    published for this method and task, or None. Older records have the first three.
    """

    entry: str  # the label of the board's row, e.g. "iql+aw"
    commit: str
    dirty: bool
    versions: Mapping[str, Any]
    device: str
    backend: str
    precision: str
    pack: int  # runs stacked in the process which made this one
    wall_s: float  # of the whole pack
    train_s: float
    tuning: Mapping[str, Any]
    created: str  # ISO 8601, UTC
    overrides: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"cpus": 16}; never a name
    fitted: Mapping[str, Any] = field(default_factory=dict)  # settings that were left to the data
    sources: Mapping[str, Any] = field(default_factory=dict)  # setting -> where its value came from

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.pack < 1:
            raise UserError(f"provenance: pack is {self.pack}, it counts the run itself")
        how = self.tuning.get("how")
        if how not in TUNINGS and not str(how).startswith("task preset, "):
            raise unknown("tuning.how", how, TUNINGS)
        if named := [name for name in self.host if name.lower() in _IDENTIFYING]:
            raise UserError(f"provenance: host.{named[0]} would publish who or where you are")
        if not _is_utc(self.created):
            raise UserError(f"provenance: created is {self.created!r}, not an ISO time in UTC")

    def as_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def _from_dict(cls: type, value: object) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"a {cls.__name__} is a JSON object, not {type(value).__name__}")
    names = [item.name for item in fields(cls)]
    for name in value:
        if name not in names:
            raise unknown(f"field of {cls.__name__}", name, names)
    if absent := [name for name in names if name not in value]:
        raise UserError(f"{cls.__name__} lacks {', '.join(absent)}")
    return cls(**value)


def _checked(item: Any, value: Any) -> Any:
    """The value of one field, copied into plain JSON types, or a UserError naming the field."""
    name, kind = item.name, item.type
    if kind is str:
        if not isinstance(value, str) or not value:
            raise UserError(f"{name}: {value!r} is not a non-empty string")
        return str(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}: {value!r} is not true or false")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{name}: {value!r} is not a whole number >= 0")
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}: {value!r} is not a number")
        return float(_plain(value, name))
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: {value!r} is not a mapping")
    return _plain(value, name)


def _plain(value: Any, where: str) -> Any:
    """A deep copy of `value` in dicts, lists and scalars; refuses what JSON cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is not a finite number")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{where}: key {key!r} is not a string")
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UserError(f"{where}: {kind} is not a JSON value; pass plain numbers, text, lists")


def _by_value(value: Any) -> Any:
    """Integral floats as ints, so that equal numbers are spelt equally."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _by_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_value(item) for item in value]
    return value


_FIRST_RECORDED: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        "view": {name.lower(): f"offbench.views.{name}" for name in ("NStep", "Chunk", "Window")},
        "sampler": {
            "uniform": None,
            "aw": "offbench.sampling.advantage_weights",
            "rw": "offbench.sampling.return_weights",
            "top": "offbench.sampling.top_fraction",
        },
        "weight": {"dw": "offbench.weighting.DensityWeights"},
    }
)
"""What the first records had in the place of a name. Run ids are hashes of it, and stay what they were."""


def _named(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a pipeline by their names: {"name": "nstep"}; of old records, which have targets, too."""
    made = dict(pipeline)
    for group, known in _FIRST_RECORDED.items():
        option = made.get(group)
        if isinstance(option, Mapping) and "target" in option:
            rest = {k: v for k, v in option.items() if k != "target"}
            target = option["target"]
            name = next((n for n, first in known.items() if first == target), target)
            made[group] = {"name": name, **rest}
    return made


def _as_first_recorded(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(pipeline)
    for group, known in _FIRST_RECORDED.items():
        option = made.get(group)
        if isinstance(option, Mapping) and "name" in option:
            rest = {k: v for k, v in option.items() if k != "name"}
            made[group] = {"target": known.get(option["name"], option["name"]), **rest}
    return made


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(_by_value(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


# --- the store ------------------------------------------------------------------------------


class Record(NamedTuple):
    """One whole record, except for its episodes."""

    path: Path  # of the json
    status: Status
    reason: str | None  # why it failed, or what to know of a run that did not
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

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
        table = _episode_table(run, episodes, provenance.entry)
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
        table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        dtypes = {
            pa.bool_(): pd.BooleanDtype(),
            pa.int64(): pd.Int64Dtype(),
            pa.float64(): pd.Float64Dtype(),
        }
        frame = table.drop_columns(list(_NULLABLE)).to_pandas()
        for name in _NULLABLE:  # in the order of the columns
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
                    if path != mark:  # a failure recorded under another entry label
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
        unseen, seen = set(wanted), set()
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


# --- checks on what goes in -----------------------------------------------------------------


def _episode_table(run: RunSpec, episodes: pd.DataFrame, entry: str) -> pa.Table:
    """`episodes` as the rows of `run`, typed and in order, or a UserError saying what is wrong."""
    frame = episodes.copy()
    constant = {
        "run_id": run.run_id,
        "entry": entry,
        "suite": run.suite,
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
    }
    for name in frame.columns:
        if name not in EPISODE_COLUMNS:
            raise UserError(f"episodes: unknown column {name!r}: {nearest(name, EPISODE_COLUMNS)}")
    for name, value in constant.items():
        if name not in frame:
            frame[name] = value
        elif not (same := frame[name] == value).all():
            other = frame[name][~same].iloc[0]
            raise UserError(f"episodes: {name} is {other!r} in a run whose {name} is {value!r}")
    for name in _LATER:
        if name not in frame:
            frame[name] = pd.array([None] * len(frame), EPISODE_COLUMNS[name])
    if absent := [name for name in EPISODE_COLUMNS if name not in frame]:
        raise UserError(f"episodes: no column {', '.join(absent)}")
    frame = frame[list(EPISODE_COLUMNS)]
    for name, kind in EPISODE_COLUMNS.items():
        if kind in ("bool", "boolean") and not _is_boolean(frame[name]):
            raise UserError(f"episodes: column {name!r} is not true or false")
        if name not in _NULLABLE and frame[name].isna().any():
            raise UserError(f"episodes: {name} is not finite or is missing in some rows")
    try:
        table = pa.Table.from_pandas(frame, schema=_SCHEMA, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"episodes: wrong type: {'; '.join(map(str, error.args))}") from None
    _check_rows(run, table.to_pandas())
    order = [("stream", "ascending"), ("update", "ascending"), ("episode", "ascending")]
    return table.replace_schema_metadata(None).sort_by(order)


def _is_boolean(column: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column.dtype):
        return True
    return column.dropna().map(lambda value: isinstance(value, bool | np.bool_)).all()


def _check_rows(run: RunSpec, frame: pd.DataFrame) -> None:
    for name in ("return", "score"):
        if not np.isfinite(frame[name]).all():
            raise UserError(f"episodes: {name} is not finite in some rows; use Store.fail")
    for stream in frame["stream"].unique():
        if stream not in STREAMS:
            raise unknown("stream", stream, STREAMS)
    if (frame["length"] < 1).any():
        raise UserError("episodes: an episode has no steps")
    if not frame["update"].between(0, run.n_updates).all():
        raise UserError(f"episodes: update {frame['update'].max()} of a run of {run.n_updates}")
    key = ["stream", "update", "episode"]
    if (twice := frame.duplicated(key)).any():
        stream, update, episode = frame.loc[twice.idxmax(), key]
        raise UserError(f"episodes: {stream} episode {episode} at update {update} occurs twice")
    test = frame[frame["stream"] == "test"]
    early = test["update"] != run.n_updates
    if early.any():
        raise UserError(
            f"episodes: test episodes at update {test['update'][early].iloc[0]}; the test stream is"
            f" read once, at the last update ({run.n_updates}); use the monitor stream before"
        )
    wanted = run.protocol.get("episodes")
    least = 0 if run.protocol.get("validation") else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < least:
        raise UserError(f"protocol.episodes: {wanted!r} is not a number of test episodes")
    if len(test) != wanted:
        raise UserError(f"episodes: {len(test)} test episodes, the protocol has {wanted}")


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


# --- files ----------------------------------------------------------------------------------


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
    body["spec"]["pipeline"] = _named(body["spec"]["pipeline"])
    return body


def _read_episodes(path: Path, about: Mapping[str, Any]) -> pa.Table:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UserError(f"damaged record: {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != about["sha256"]:
        raise UserError(f"damaged record: {path} is truncated or was edited")
    table = pq.ParquetFile(pa.BufferReader(payload)).read(use_threads=False)
    for name in _LATER:  # a record of before it had them
        if name not in table.column_names:
            field = _SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if table.num_rows != about["rows"] or not table.schema.equals(_SCHEMA):
        raise UserError(f"damaged record: {path} does not hold the rows its json describes")
    return table
