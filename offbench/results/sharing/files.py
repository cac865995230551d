"""The files of a results folder, record by record, and what is wrong with each.

Nothing here stops at the first fault, as a reader of one record does: every file is looked at, and named.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from offbench.errors import UserError
from offbench.io import sha256_of, slug
from offbench.results.record import (
    FORMAT,
    Damage,
    DamageError,
    episodes_file,
    read_episodes,
    unsealed,
)
from offbench.results.schema import episode_table, to_frame
from offbench.results.sharing.policies import policy_fault
from offbench.results.spec import Provenance, RunSpec

# the file of a writer that has not finished: of `offbench.io.replacing` and `offbench.results.commit`
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8,16}\.tmp(\.\w+)?|\.[0-9a-f]{16}\.hold")


class Files(NamedTuple):
    """The files of one run in one folder of a store: all whose names begin with its id."""

    folder: Path
    run_id: str
    paths: tuple[Path, ...]

    @property
    def mark(self) -> Path:
        """The json, with which there is a record."""
        return self.folder / f"{self.run_id}.json"

    @property
    def policy(self) -> Path:
        return self.folder / f"{self.run_id}.safetensors"


class Found(NamedTuple):
    """The files of a run after all of them were read."""

    files: Files
    # of its json; None where there is none, or it is damaged
    body: dict[str, Any] | None
    # None, too, where its format is not known here
    run: RunSpec | None
    # the files of the record, its json last
    members: tuple[Path, ...]
    # what is wrong with the record: its run has to be trained again
    faults: tuple[Damage, ...]
    # with what lies beside it: a kept policy, a traceback
    beside: tuple[Damage, ...]
    # files that belong to no record
    orphans: tuple[Path, ...]

    @property
    def whole(self) -> bool:
        return self.body is not None and not self.faults

    @property
    def ok(self) -> bool:
        """Whether it is the whole record of a run that did not fail."""
        return self.whole and self.body is not None and self.body["status"] == "ok"


def scan(root: Path) -> Iterator[Files]:
    """The files below `root/runs`, run by run, in order of their names; temporary files are left out."""
    for folder in sorted(path for path in root.glob("runs/*/*/*") if path.is_dir()):
        by_run: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and path.is_file():
                by_run.setdefault(path.name.split(".")[0], []).append(path)
        for run_id, paths in by_run.items():
            yield Files(folder, run_id, tuple(paths))


def temporary_files(root: Path) -> list[Path]:
    """What writers that were killed, or are writing, left below a results folder."""
    return sorted(p for p in root.rglob(".*") if TEMPORARY.fullmatch(p.name) and p.is_file())


def examine(files: Files, *, rows: bool = False) -> Found:
    """Reads every file of a run and every checksum.

    Args:
        rows: check, too, that the episodes are those of the run and its protocol, as when they were recorded:
            of records that come from others.
    """
    mark = files.mark
    if mark not in files.paths:
        return Found(files, None, None, (), (), (), files.paths)
    # of a damaged json nothing says which of them are its own
    unclear = Found(files, None, None, (*(p for p in files.paths if p != mark), mark), (), (), ())
    try:
        body = unsealed(mark.read_bytes())
        run = _run_of(body, files) if body["format"] == FORMAT else None
        faults = [fault] if (fault := _episodes_fault(mark, body, run, rows)) else []
        own = [files.policy, *_traceback(files, body)]
    except OSError as error:
        return unclear._replace(faults=(Damage(mark, f"cannot be read: {error.strerror}"),))
    except UserError as error:
        return unclear._replace(faults=(Damage(mark, printable(str(error))),))
    # sealed, and not as a record is written
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        words = printable(f"is no record: {type(error).__name__} {error}")
        return unclear._replace(faults=(Damage(mark, words),))
    beside = [
        Damage(path, what)
        for path in own
        if path in files.paths and (what := _fault_beside(path, body, run))
    ]
    if body.get("episodes") and not (faults and faults[0].path == mark):
        own.append(episodes_file(mark, body["episodes"]))
    members = (*(path for path in own if path in files.paths), mark)
    orphans = tuple(path for path in files.paths if path not in members)
    return Found(files, body, run, members, tuple(faults), tuple(beside), orphans)


def printable(text: str) -> str:
    """Text of a record in one line: others may have written it, and a terminal obeys what is not printable."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= 300 else f"{line[:297]}..."


def _run_of(body: dict[str, Any], files: Files) -> RunSpec:
    """The run of a json. Raises UserError where the json contradicts itself, its name or its folder."""
    try:
        run = RunSpec(**body["spec"])
        # a later version may say more of how a result came to be
        known = {
            f.name: body["provenance"][f.name]
            for f in fields(Provenance)
            if f.name in body["provenance"]
        }
        facts = Provenance(**known)
    except UserError as error:
        raise UserError(f"holds no run: {error}") from None
    if body["run_id"] != files.run_id:
        raise UserError(f"is the record of run {body['run_id']}")
    if files.run_id not in run.recorded_ids:
        raise UserError(f"is named {files.run_id}, and what it says was run is {run.run_id}")
    place = tuple(slug(name) for name in (run.suite, run.task, facts.entry))
    if files.folder.parts[-3:] != place:
        raise UserError(f"belongs into runs/{'/'.join(place)}")
    if body["status"] not in ("ok", "failed", "diverged"):
        raise UserError(f"has status {body['status']!r}")
    return run


def _episodes_fault(
    mark: Path, body: dict[str, Any], run: RunSpec | None, rows: bool
) -> Damage | None:
    about = body.get("episodes")
    if about is None:
        return Damage(mark, "has no episodes") if body.get("status") == "ok" else None
    path = mark
    try:
        path = episodes_file(mark, about)
        if run is None:
            same = sha256_of(path) == about["sha256"]
            return None if same else Damage(path, "is truncated or was edited")
        table = read_episodes(mark, about)
        if rows:
            episode_table(run, to_frame(table), body["provenance"]["entry"])
    except DamageError as error:
        return error.damage
    except OSError as error:
        return Damage(path, f"cannot be read: {error.strerror}")
    except (UserError, pa.ArrowException) as error:
        return Damage(path, printable(str(error).splitlines()[0]))
    return None


# --- what lies beside a record --------------------------------------------------------------


def _traceback(files: Files, body: dict[str, Any]) -> list[Path]:
    """Where the traceback of a failed run lies, if one was kept."""
    kept = (body.get("failure") or {}).get("traceback")
    return [files.folder / f"{files.run_id}.traceback.txt"] if kept else []


def _fault_beside(path: Path, body: dict[str, Any], run: RunSpec | None) -> str | None:
    """What is wrong with a kept policy or a traceback."""
    try:
        if path.suffix == ".safetensors":
            return policy_fault(path, run)
        wanted = body["failure"].get("sha256")
        return None if wanted in (None, sha256_of(path)) else "is truncated or was edited"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
