"""What was run and what came of it: append-only records in plain files named by content.

A run is everything that defines it, a `RunSpec`, and its name is a hash of that, so a result can
neither go stale nor collide with another. A record is two files: `<run_id>.parquet`, one row per
evaluation episode, and `<run_id>.json`, the spec, the provenance and the checksum of the parquet.
The json is written last and is the commit mark: without it there is no record, with it there is a
whole one, or an error which names the file.

    root/runs/<suite>/<task, "/" as "--">/<entry>/<run_id>.parquet
                                                   <run_id>.json        written last

Nothing here reads or writes means; tables are recomputed from the rows (`offbench.results.board.leaderboard`).
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from offbench.errors import UserError, publishable, unknown
from offbench.io import atomic_write, slug
from offbench.results.record import (
    FORMAT,
    checked_curves,
    episode_bytes,
    line_of,
    load,
    publish,
    read_episodes,
)
from offbench.results.schema import EPISODE_COLUMNS, EPISODE_SCHEMA, RUN_COLUMNS, to_frame
from offbench.results.spec import Provenance, RunSpec

Status = Literal["ok", "failed", "diverged"]


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
        """Makes the folder and tries to write to it.

        Raises:
            UserError: records cannot be written there. Better now than after a day of training.
        """
        try:
            runs = self.root / "runs"
            runs.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock"):
                atomic_write(runs / ".probe", b"")
                (runs / ".probe").unlink()
        except OSError as error:
            raise UserError(f"cannot write records to {self.root}: {error.strerror}") from None

    def missing(self, runs: Iterable[RunSpec], *, count_failed: bool = False) -> list[RunSpec]:
        """Those of `runs`, in order and once each, which have no whole record yet.

        A failed or diverged run is missing, unless `count_failed`.
        """
        wanted = list(dict.fromkeys(runs))
        found = self._paths({run.suite for run in wanted}, {run.task for run in wanted})
        done = lambda name: _done(found.get(name, ()), count_failed)
        return [run for run in wanted if not any(map(done, run.recorded_ids))]

    def has(self, run_id: str, *, count_failed: bool = False) -> bool:
        """Whether a run has a whole record; with `count_failed`, or a failed one."""
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
        """Records a finished run.

        Args:
            episodes: one row per evaluation episode, in EPISODE_COLUMNS; RUN_COLUMNS may be left out.
            metrics: curves of equal length, one list per name.
            remark: what a reader of the score must know, kept as the `reason`.

        Returns:
            The path of its json.

        Raises:
            UserError: the rows do not belong to this run, there are `test` rows before the last update,
                the run has a whole record already, or the record cannot be written.
        """
        if run.dataset_sha256 is None:
            raise UserError(
                f"{run.task}: dataset_sha256 is not known, so nothing says what was trained on"
            )
        content, about = episode_bytes(run, episodes, provenance.entry)
        return self._commit(run, provenance, "ok", remark, content, about, checked_curves(metrics))

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
        """The record of a run, without its episodes.

        Raises:
            UserError: there is no such record, or it is damaged.
        """
        paths = self._paths().get(run_id, ())
        if not paths:
            raise UserError(f"no record {run_id!r} in {self.root}")
        return _record(*_winner([(path, load(path)) for path in paths]))

    def read_all(self, **where: Any) -> dict[str, Record]:
        """run_id -> its record, of failed runs too; `where` as in `runs`."""
        return {body["run_id"]: _record(path, body) for path, body in self._matching(where)}

    def runs(self, **where: Any) -> pd.DataFrame:
        """One line per record, failed ones too: specification and provenance, nested names dotted.

        Args:
            where: column -> a value or a collection of values; dotted names go in as
                `**{"hparams.lr": 1e-3}`.

        Returns:
            The columns run_id, config_id, status, reason and rows (number of episodes), and every field
            of the specification and the provenance but `sources`.

        Raises:
            UserError: a record is damaged, or there is no such column.
        """
        lines = [line_of(body) for _, body in self._matching(where)]
        head = ["run_id", "config_id", "entry", "suite", "task", "method", "seed", "status"]
        frame = pd.DataFrame(lines, columns=None if lines else head)
        rest = [name for name in frame.columns if name not in head]
        return frame[head + rest]

    def episodes(self, **where: Any) -> pd.DataFrame:
        """The recorded episodes of all whole runs, one row each, in EPISODE_COLUMNS.

        Args:
            where: as in `runs`; columns of the episodes filter rows.
        """
        by_row = {
            name: where.pop(name)
            for name in tuple(where)
            if name in EPISODE_COLUMNS and name not in RUN_COLUMNS
        }
        tables = [
            read_episodes(path.with_suffix(".parquet"), body["episodes"])
            for path, body in self._matching(where)
            if body["status"] == "ok"
        ]
        frame = to_frame(pa.concat_tables(tables) if tables else EPISODE_SCHEMA.empty_table())
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
        folder = self.root / "runs" / _safe(run.suite) / _safe(run.task) / _safe(entry)
        return inside(self.root, folder)

    def _commit(
        self,
        run: RunSpec,
        provenance: Provenance,
        status: Status,
        reason: str | None,
        content: bytes | None,
        about: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
    ) -> Path:
        body = {
            "format": FORMAT,
            "run_id": run.run_id,
            "config_id": run.config_id,
            "status": status,
            "reason": None if reason is None else publishable(reason),
            "spec": run.as_dict(),
            "provenance": provenance.as_dict(),
            "episodes": about,
            "metrics": metrics,
        }
        mark = self.path(run, provenance.entry)
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock"):
                superseded = self._superseded(run)
                publish(mark, body, content)
                for path in superseded:
                    # a failure recorded under another entry label
                    if path != mark:
                        path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write record {mark}: {error.strerror}") from None
        return mark

    def _superseded(self, run: RunSpec) -> list[Path]:
        """Failed records of this run; raises when there is a whole one."""
        paths = self._paths({run.suite}, {run.task}).get(run.run_id, [])
        for path in paths:
            if load(path)["status"] == "ok":
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
            path, body = _winner([(mark, load(mark)) for mark in marks])
            if wanted:
                line = line_of(body)
                unseen -= line.keys()
                seen |= line.keys()
                if not all(_is_in(line.get(name), values) for name, values in wanted.items()):
                    continue
            yield path, body
        if seen and unseen:
            raise unknown("column of the records", min(unseen), seen)


def _record(path: Path, body: dict[str, Any]) -> Record:
    curves = body["metrics"]
    metrics = None if curves is None else pd.DataFrame(curves, dtype="float64")
    spec, provenance = RunSpec(**body["spec"]), Provenance(**body["provenance"])
    return Record(path, body["status"], body["reason"], spec, provenance, metrics)


def _done(paths: Sequence[Path], count_failed: bool) -> bool:
    if not paths:
        return False
    path, body = _winner([(path, load(path)) for path in paths])
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


def _as_set(value: Any) -> tuple[Any, ...]:
    collection = isinstance(value, Collection) and not isinstance(value, str | Mapping)
    return tuple(value) if collection else (value,)


def _is_in(value: Any, values: tuple[Any, ...]) -> bool:
    return value in values or (isinstance(value, tuple) and value == values)


def inside(root: Path, path: Path) -> Path:
    """The path, which lies below `root`. UserError where a link on the way leads elsewhere."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} leads out of {root} to {path.resolve()}: results= names a folder")
    return path


def _safe(name: str) -> str:
    """A folder name for an id. Ids are paths, and one folder level is one id."""
    folder = slug(name)
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
