"""What was run and what came of it: append-only records in plain files named by content.

A run is everything that defines it, a `RunSpec`, and its name is a hash of that, so a result can
neither go stale nor collide with another. A record is two files: a parquet, one row per evaluation
episode, and `<run_id>.json`, the spec, the provenance, and name and checksum of the parquet. The json is
written last and is the commit mark: without it there is no record, with it there is a whole one, or a
damaged one, which readers leave out with a warning that names the file.

    root/runs/<suite>/<task, "/" as "--">/<entry>/<run_id>.<8 digits of its sha256>.parquet
                                                   <run_id>.json            written last
                                                   <run_id>.safetensors     the policy, where it is kept
                                                   <run_id>.traceback.txt   of a failed run

Nothing here reads or writes means; tables are recomputed from the rows (`offbench.results.board.leaderboard`).
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import pyarrow as pa

from offbench.errors import UserError, unknown
from offbench.io import atomic_write, slug
from offbench.results.commit import finished_file, holding, place, sync_folder
from offbench.results.record import (
    FORMAT,
    Kind,
    checked_curves,
    episode_bytes,
    episodes_file,
    line_of,
    load,
    read_episodes,
    seal,
)
from offbench.results.schema import EPISODE_COLUMNS, EPISODE_SCHEMA, RUN_COLUMNS, to_frame
from offbench.results.spec import Provenance, RunSpec

Status = Literal["ok", "failed", "diverged"]


class Failure(NamedTuple):
    """What is known of a failure besides its reason."""

    kind: Kind
    # how often the run was tried
    attempts: int
    # None where none was kept
    traceback: Path | None


class Record(NamedTuple):
    """One whole record, except for its episodes."""

    path: Path  # of the json
    status: Status
    # why it failed, or what to know of a run that did not
    reason: str | None
    spec: RunSpec
    provenance: Provenance
    metrics: pd.DataFrame | None  # one row per logged point
    # None of a run that came to its end
    failure: Failure | None = None


@dataclass(frozen=True)
class Store:
    """An append-only folder of records. Constructing one touches nothing.

    Safe for many processes, of many machines, at once, with or without file locks: each record has its own
    files, and of several writers of one run the first has its record and the others an error
    (`offbench.results.commit`).
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
            with finished_file(b"", runs / "probe"):
                pass
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
        body = self._body(run, provenance, "ok", remark)
        body |= {"episodes": about, "metrics": checked_curves(metrics)}
        return self._commit(run, provenance.entry, body, content, None)

    def fail(
        self,
        run: RunSpec,
        reason: str,
        provenance: Provenance,
        *,
        status: Literal["failed", "diverged"] = "failed",
        kind: Kind = "error",
        attempts: int = 1,
        traceback: str | None = None,
    ) -> Path:
        """Records that a run came to nothing, and why. A later success or failure replaces it.

        Args:
            kind: whether it would fail again ("error"), the machine failed, or the user made a mistake.
            attempts: how often the run was tried, this time included.
            traceback: kept in a file beside the record.

        Returns:
            The path of its json.

        Raises:
            UserError: the run has a whole record already, or the record cannot be written.
        """
        if status not in ("failed", "diverged"):
            raise unknown("status", status, ("failed", "diverged"))
        if kind not in get_args(Kind):
            raise unknown("kind of a failure", kind, get_args(Kind))
        content = None if traceback is None else traceback.encode()
        failure: dict[str, Any] = {"kind": kind, "attempts": attempts, "traceback": None}
        if content is not None:
            failure["traceback"] = f"{run.run_id}.traceback.txt"
            failure["sha256"] = hashlib.sha256(content).hexdigest()
        body = self._body(run, provenance, status, reason)
        body |= {"episodes": None, "metrics": None, "failure": failure}
        return self._commit(run, provenance.entry, body, None, content)

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
            read_episodes(path, body["episodes"])
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
        return self.root / "runs" / _safe(run.suite) / _safe(run.task) / _safe(entry)

    def _body(
        self, run: RunSpec, provenance: Provenance, status: Status, reason: str | None
    ) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run_id": run.run_id,
            "config_id": run.config_id,
            "status": status,
            "reason": reason,
            "spec": run.as_dict(),
            "provenance": provenance.as_dict(),
        }

    def _commit(
        self,
        run: RunSpec,
        entry: str,
        body: Mapping[str, Any],
        episodes: bytes | None,
        traceback: bytes | None,
    ) -> Path:
        """Writes the files of a record, its json last."""
        mark = self.path(run, entry)
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            self._superseded(run)
            if episodes is None:
                self._publish(run, mark, body, traceback)
                return mark
            path = episodes_file(mark, body["episodes"])
            atomic_write(path, episodes)
            sync_folder(mark.parent)
            try:
                self._publish(run, mark, body, None)
            except UserError:
                # another process was first; its episodes may be the same
                if not (
                    mark.exists() and episodes_file(mark, load(mark)["episodes"] or {}) == path
                ):
                    path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UserError(f"cannot write record {mark}: {error.strerror}") from None
        return mark

    def _publish(
        self, run: RunSpec, mark: Path, body: Mapping[str, Any], traceback: bytes | None
    ) -> None:
        """Puts the json of a record in its place, and removes the failures that it replaces."""
        hold = mark.parent.with_name(f".{run.run_id}.hold")
        with finished_file(seal(body).encode(), mark) as file, holding(hold, file):
            failures = self._superseded(run)
            if traceback is not None:
                atomic_write(mark.with_name(body["failure"]["traceback"]), traceback)
            try:
                place(file, hold, mark, replace=mark in failures)
            except FileExistsError:
                raise _recorded_already(run, mark) from None
            sync_folder(mark.parent)
            for path in failures:
                # a failure that was recorded under another entry label
                if path != mark:
                    path.unlink(missing_ok=True)
                if path != mark or traceback is None:
                    path.with_suffix(".traceback.txt").unlink(missing_ok=True)

    def _superseded(self, run: RunSpec) -> list[Path]:
        """Failed records of this run; raises when there is a whole one. Lists the entries of its task."""
        task = self.root / "runs" / _safe(run.suite) / _safe(run.task)
        paths = [entry / f"{run.run_id}.json" for entry in _subfolders(task, None)]
        paths = [path for path in paths if path.exists()]
        for path in paths:
            if load(path)["status"] == "ok":
                raise _recorded_already(run, path)
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
    return Record(
        path, body["status"], body["reason"], spec, provenance, metrics, _failure(path, body)
    )


def _failure(path: Path, body: dict[str, Any]) -> Failure | None:
    about = body.get("failure")
    if about is None:
        return None
    file = None if about["traceback"] is None else path.with_suffix(".traceback.txt")
    return Failure(about["kind"], about["attempts"], file)


def _recorded_already(run: RunSpec, path: Path) -> UserError:
    return UserError(f"run {run.run_id} is recorded already in {path}; records are kept")


def _done(paths: Sequence[Path], count_failed: bool) -> bool:
    if not paths:
        return False
    path, body = _winner([(path, load(path)) for path in paths])
    if body["status"] != "ok":
        return count_failed
    # Reading every parquet to decide what is left to run would be slow; its length is free.
    parquet = episodes_file(path, body["episodes"])
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
