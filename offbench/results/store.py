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
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import pyarrow as pa

from offbench.errors import UserError, expect, nearest, publishable, unknown, writing
from offbench.io import finished_file
from offbench.results.commit import mark_of, subfolders, winner, write_record
from offbench.results.index import FILE, Lines, as_set, episodes_of, joined, lines_of, winners
from offbench.results.record import (
    FORMAT,
    Damage,
    DamagedRecord,
    DamageError,
    Kind,
    Record,
    Status,
    checked_curves,
    episode_bytes,
    load,
    record_of,
)
from offbench.results.schema import EPISODE_COLUMNS, EPISODE_SCHEMA, RUN_COLUMNS, to_frame
from offbench.results.spec import Provenance, RunSpec

STATES = (
    "run_id",
    "suite",
    "task",
    "entry",
    "seed",
    "status",
    "n_updates",
    "wall_s",
    "created",
    "attempts",
)
"""The columns of `Store.states()`."""

_HEAD = ["run_id", "config_id", "entry", "suite", "task", "method", "seed", "status"]


@dataclass(frozen=True)
class Store:
    """An append-only folder of records. Constructing one touches nothing.

    Safe for many processes, of many machines, at once, with or without file locks: each record has its own
    files, and of several writers of one run the first has its record and the others an error
    (`offbench.results.commit`).
    """

    root: Path

    def __init__(self, root: str | Path):
        expect("results", root, (str, os.PathLike), "a folder")
        object.__setattr__(self, "root", Path(root))

    def check_writable(self) -> None:
        """Makes the folder and tries to write to it.

        Raises:
            UserError: records cannot be written there. Better now than after a day of training.
        """
        with writing(f"records to {self.root}"):
            runs = self.root / "runs"
            runs.mkdir(parents=True, exist_ok=True)
            with finished_file(b"", runs / "probe"):
                pass

    def missing(self, runs: Iterable[RunSpec], *, count_failed: bool = False) -> list[RunSpec]:
        """Those of `runs`, in order and once each, which have no whole record yet.

        A failed or diverged run is missing, unless `count_failed`.
        """
        wanted = list(dict.fromkeys(runs))
        where = {"suite": {run.suite for run in wanted}, "task": {run.task for run in wanted}}
        done: set[str] = set()
        for part in self._parts(where, ("status",)):
            status = part.lines.column("status")
            names = zip(part.lines.ids(), status, strict=True)
            done |= {name for name, one in names if count_failed or one == "ok"}
            done |= {damage.path.stem for damage in part.damaged}
        # of runs that were named otherwise: those names take long to compute
        others = done.difference(run.run_id for run in wanted)
        is_done = lambda run: (
            run.run_id in done or (others and not done.isdisjoint(run.recorded_ids))
        )
        return [run for run in wanted if not is_done(run)]

    def whole(self, run_id: str) -> bool:
        """Whether a run that did not fail has a record that is not damaged."""
        try:
            return self.read(run_id).status == "ok"
        except UserError:
            return False

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
        return write_record(self.root, run, provenance.entry, body, episodes=content)

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
        return write_record(self.root, run, provenance.entry, body, traceback=content)

    def read(self, run_id: str) -> Record:
        """The record of a run, without its episodes.

        Raises:
            UserError: there is no such record, or it is damaged.
        """
        paths = self._paths().get(run_id, ())
        if not paths:
            raise UserError(f"no record {run_id!r} in {self.root}")
        try:
            return record_of(*winner([(path, load(path)) for path in paths]))
        except DamageError as error:
            raise UserError(f"{error}; {self._remedy()}") from None

    def read_all(self, **where: Any) -> dict[str, Record]:
        """run_id -> its record, of failed runs too; `where` as in `runs`."""
        return {body["run_id"]: record_of(path, body) for path, body in self._bodies(where)}

    def runs(self, **where: Any) -> pd.DataFrame:
        """One line per record, failed ones too: specification and provenance, nested names dotted.

        Args:
            where: column -> a value or a collection of values; dotted names go in as
                `**{"hparams.lr": 1e-3}`.

        Returns:
            The columns run_id, config_id, status, reason and rows (number of episodes), and every field
            of the specification and the provenance but `sources`.

        Raises:
            UserError: there is no such column, or a record is of a later format.
        """
        frame = joined([part.lines for part in self._parts(where)]).frame()
        rest = [name for name in frame.columns if name not in _HEAD]
        return frame.reindex(columns=_HEAD) if frame.empty else frame[_HEAD + rest]

    def states(self, suite: str | None = None) -> pd.DataFrame:
        """What became of every recorded run, one line each, in STATES; `attempts` of failed ones only.

        Quick, also of 100,000 records, once a reader of the store has indexed them.
        """
        where = {} if suite is None else {"suite": suite}
        lines = joined([part.lines for part in self._parts(where, (*STATES, "@attempts"))])
        columns = {name: lines.column(name) for name in STATES[:-1]}
        return pd.DataFrame({**columns, "attempts": lines.column("@attempts").astype("Int64")})

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
        tables = [EPISODE_SCHEMA.empty_table()]
        for part in self._parts(where, ("status", *FILE)):
            whole = part.lines.where("status", ("ok",))
            table, damaged = episodes_of(whole, part.episodes)
            self._warn(damaged)
            tables.append(table)
        frame = to_frame(pa.concat_tables(tables))
        for name, value in by_row.items():
            frame = frame[frame[name].isin(as_set(value))]
        return frame.reset_index(drop=True)

    def curves(self, **where: Any) -> dict[str, pd.DataFrame]:
        """run_id -> metrics, one row per logged point, of every run that has any; `where` as in `runs`."""
        return {
            body["run_id"]: pd.DataFrame(body["metrics"], dtype="float64")
            for _, body in self._bodies(where)
            if body["metrics"] is not None
        }

    def path(self, run: RunSpec, entry: str) -> Path:
        """Where the json of a run's record lies, or will."""
        return mark_of(self.root, run, entry)

    def records(self) -> list[Path]:
        """The json of every record; nothing is opened."""
        return [path for marks in self._paths().values() for path in marks]

    def find(self, name: str) -> Path:
        """The json of a run, by its id or the beginning of one; nothing is opened.

        Raises UserError where there is none, or several.
        """
        marks = {path.stem: path for path in self.records()}
        found = sorted(run_id for run_id in marks if run_id.startswith(name))
        if not found:
            raise UserError(f"no run {name!r} in {self.root}: {nearest(name, marks)}")
        if len(found) > 1:
            raise UserError(f"{name!r} begins {len(found)} run ids: {', '.join(found[:4])}")
        return marks[found[0]]

    def kept(self, run: RunSpec) -> list[Path]:
        """What was kept of whole runs of this suite and task (`offbench.bench.kept`)."""
        marks = [m for ms in self._paths({run.suite}, {run.task}).values() for m in ms]
        return [path for mark in marks if (path := mark.with_suffix(".safetensors")).exists()]

    # --- inside -----------------------------------------------------------------------------

    def _body(
        self, run: RunSpec, provenance: Provenance, status: Status, reason: str | None
    ) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run_id": run.run_id,
            "config_id": run.config_id,
            "status": status,
            "reason": None if reason is None else publishable(reason),
            "spec": run.as_dict(),
            "provenance": provenance.as_dict(),
        }

    def _paths(
        self, suites: Collection[str] | None = None, tasks: Collection[str] | None = None
    ) -> dict[str, list[Path]]:
        """run_id -> its commit marks (normally one), from names only: nothing is opened."""
        found: dict[str, list[Path]] = {}
        for suite in subfolders(self.root / "runs", suites):
            for task in subfolders(suite, tasks):
                for entry in subfolders(task, None):
                    for name in sorted(os.listdir(entry)):
                        if name.endswith(".json") and not name.startswith("."):
                            found.setdefault(name.removesuffix(".json"), []).append(entry / name)
        return found

    def _parts(
        self, where: Mapping[str, Any], columns: Sequence[str] | None = None
    ) -> Iterator["_Part"]:
        """The records that match, of each task, with a warning for each damaged one.

        Args:
            columns: those needed besides those in `where`; None for all.
        """
        if columns is not None:
            columns = [*columns, *where]
        wanted = {name: as_set(value) for name, value in where.items()}
        ids = frozenset(wanted["run_id"]) if "run_id" in wanted else None
        unseen, seen = set(wanted), set[str]()
        for suite in subfolders(self.root / "runs", wanted.get("suite")):
            for task in subfolders(suite, wanted.get("task")):
                index = self.root / ".index" / suite.name / task.name
                lines, damaged = lines_of(
                    task, _ending(index, ".records.arrow"), ids=ids, columns=columns
                )
                self._warn(damaged)
                lines = winners(lines)
                seen |= (names := lines.names())
                unseen -= names
                for name, values in wanted.items():
                    lines = lines.where(name, values)
                yield _Part(lines, damaged, _ending(index, ".episodes.arrow"))
        if seen and unseen:
            raise unknown("column of the records", min(unseen), seen)

    def _bodies(self, where: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
        for part in self._parts(where, ("status",)):
            for path in map(Path, part.lines.paths):
                try:
                    yield path, load(path)
                except DamageError as error:
                    self._warn([error.damage])

    def _warn(self, damaged: Iterable[Damage]) -> None:
        for path, what in damaged:
            text = f"damaged record: {path} {what}; it is left out; {self._remedy()}"
            warnings.warn(text, DamagedRecord, stacklevel=1)

    def _remedy(self) -> str:
        return f"to move it away: offbench results verify --repair results={self.root}"


class _Part(NamedTuple):
    """Records of one task."""

    lines: Lines
    damaged: list[Damage]
    # of its episodes
    episodes: Path


def _ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
