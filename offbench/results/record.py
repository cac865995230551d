"""One record on disk: a sealed json, the commit mark, and the parquet file of its episodes.

The json has the run, its provenance, its curves and the checksum of the parquet, and ends in a checksum
of itself, so that whatever is changed, cut off or swapped is an error that names the file. The parquet has
a part of its checksum in its name, so that two writers of one run never write to one file.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from offbench.errors import UserError
from offbench.results.identity import with_names
from offbench.results.schema import EPISODE_SCHEMA, completed, episode_table
from offbench.results.spec import Provenance, RunSpec

FORMAT = 1

_TAIL = ',\n "checksum": "%s"\n}\n'

_TAIL_LENGTH = len(_TAIL % ("0" * 64))

_TAIL_PATTERN = re.compile(re.escape(_TAIL).replace("%s", "([0-9a-f]{64})").encode())

# of the file of episodes; older records have no checksum in it
_ENDING = re.compile(r"(\.[0-9a-f]{8})?\.parquet")

Status = Literal["ok", "failed", "diverged"]

Kind = Literal["error", "infrastructure", "user"]
"""Whose a failure is: the run's, which would fail again; the machine's; or a mistake of the user."""


class Failure(NamedTuple):
    """What is known of a failure besides its reason."""

    kind: Kind
    # how often the run was tried
    attempts: int
    # None where none was kept
    traceback: Path | None


class Record(NamedTuple):
    """One whole record, except for its episodes."""

    # of the json
    path: Path
    status: Status
    # why it failed, or what to know of a run that did not
    reason: str | None
    spec: RunSpec
    provenance: Provenance
    # one row per logged point
    metrics: pd.DataFrame | None
    # None of a run that came to its end
    failure: Failure | None = None


class DamagedRecord(UserWarning):
    """A record was left out because a file of it is not what was written."""


class Damage(NamedTuple):
    """A file of a record that is not what was written."""

    path: Path
    # "is truncated or was edited"
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


class DamageError(UserError):
    """A record cannot be read because a file of it is not what was written."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"damaged record: {path} {what}")
        self.damage = Damage(path, what)


# --- writing --------------------------------------------------------------------------------


def episode_bytes(run: RunSpec, episodes: pd.DataFrame, entry: str) -> tuple[bytes, dict[str, Any]]:
    """The parquet file of a run's episodes, and what its json says of that file."""
    table = episode_table(run, episodes, entry)
    sink = pa.BufferOutputStream()
    # Snappy: a small file is read twice as fast as with zstd, and boards read thousands.
    pq.write_table(table, sink, compression="snappy", write_statistics=False)
    content = sink.getvalue().to_pybytes()
    checksum = hashlib.sha256(content).hexdigest()
    about = {"rows": table.num_rows, "bytes": len(content), "sha256": checksum}
    return content, {"file": f"{run.run_id}.{checksum[:8]}.parquet", **about}


def checked_curves(
    metrics: Mapping[str, Sequence[float]] | None,
) -> dict[str, list[float | None]] | None:
    """Training curves for the json, name -> values; a value that is not finite is kept as null.

    Raises:
        UserError: the curves have different lengths.
    """
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


def seal(body: Mapping[str, Any]) -> str:
    """The text of a record's json, whose last line is a checksum of all above. Curves stay on one line."""
    lines = [
        f' "{name}": {json.dumps(value, indent=None if name == "metrics" else 1, allow_nan=False)}'
        for name, value in body.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}"
    return text[:-2] + _TAIL % hashlib.sha256(text.encode()).hexdigest()


# --- reading --------------------------------------------------------------------------------


def unsealed(content: bytes) -> dict[str, Any]:
    """The body of a record's json as it was sealed. Raises UserError, without a path, for any other bytes."""
    head, tail = content[:-_TAIL_LENGTH] + b"\n}", _TAIL_PATTERN.fullmatch(content[-_TAIL_LENGTH:])
    if tail is None or hashlib.sha256(head).hexdigest().encode() != tail[1]:
        raise UserError("is truncated or was edited")
    try:
        body = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is no record: {error}") from None
    if not isinstance(body, dict):
        raise UserError("is no record")
    return body


def load(path: Path) -> dict[str, Any]:
    """The body of a sealed json, not to be changed; raises UserError with the path when anything in it changed."""
    try:
        about = path.stat()
    except OSError as error:
        raise DamageError(path, f"cannot be read: {error.strerror}") from None
    return _load(path, about.st_mtime_ns, about.st_size, about.st_ino)


# a board reads what its runs are, and then their episodes
@lru_cache(maxsize=4096)
def _load(path: Path, *version: int) -> dict[str, Any]:
    try:
        body = unsealed(path.read_bytes())
    except OSError as error:
        raise DamageError(path, f"cannot be read: {error.strerror}") from None
    except UserError as error:
        raise DamageError(path, str(error)) from None
    if body["format"] != FORMAT:
        raise UserError(f"{path} has record format {body['format']}, this offbench reads {FORMAT}")
    if body["run_id"] != path.stem:
        raise DamageError(path, f"is the record of run {body['run_id']}")
    body["spec"]["pipeline"] = with_names(body["spec"]["pipeline"])
    # what older records do not say
    if body["status"] != "ok":
        body.setdefault("failure", {"kind": "error", "attempts": 1, "traceback": None})
    # older records were hashed with what was monitored
    if body["spec"]["protocol"].get("monitor_at"):
        body["config_id"] = RunSpec(**body["spec"]).config_id
    return body


def episodes_file(mark: Path, about: Mapping[str, Any]) -> Path:
    """The parquet file of a record, from the path of its json and what that says of the episodes."""
    name = about.get("file", f"{mark.stem}.parquet")
    if not (name.startswith(mark.stem) and _ENDING.fullmatch(name, len(mark.stem))):
        raise DamageError(mark, f"names {name!r} as the file of its episodes")
    return mark.with_name(name)


def read_episodes(mark: Path, about: Mapping[str, Any]) -> pa.Table:
    """The episodes of a record, in EPISODE_SCHEMA; null in columns that came after it.

    Args:
        mark: path of its json.
        about: what the json says of the episodes: file, number of rows and checksum.

    Raises:
        DamageError: the file is not there, or not what the json describes.
    """
    return parsed(*episode_payload(mark, about), about)


def episode_payload(mark: Path, about: Mapping[str, Any]) -> tuple[Path, bytes]:
    """The file of a record's episodes, and what is in it; DamageError where that is not its checksum's."""
    path = episodes_file(mark, about)
    try:
        with open(path, "rb", buffering=0) as file:
            payload = file.read()
    except OSError as error:
        raise DamageError(path, f"cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != about["sha256"]:
        raise DamageError(path, "is truncated or was edited")
    return path, payload


def parsed(path: Path, payload: bytes, about: Mapping[str, Any]) -> pa.Table:
    """The episodes in the bytes of a parquet file, which is that of a record."""
    try:
        table = completed(pq.ParquetFile(pa.py_buffer(payload)).read(use_threads=False))
    except pa.ArrowInvalid:
        raise DamageError(path, "is no parquet file") from None
    if table.num_rows != about["rows"] or not table.schema.equals(EPISODE_SCHEMA):
        raise DamageError(path, "does not hold the rows its json describes")
    return table


def record_of(path: Path, body: dict[str, Any]) -> Record:
    """A record, from the path and the body of its json."""
    curves, about = body["metrics"], body.get("failure")
    metrics = None if curves is None else pd.DataFrame(curves, dtype="float64")
    failure = None
    if about is not None:
        file = None if about["traceback"] is None else path.with_suffix(".traceback.txt")
        failure = Failure(about["kind"], about["attempts"], file)
    spec, provenance = RunSpec(**body["spec"]), Provenance(**body["provenance"])
    return Record(path, body["status"], body["reason"], spec, provenance, metrics, failure)


def line_of(body: dict[str, Any]) -> dict[str, Any]:
    """A record's line in `Store.runs()`, from the body of its json."""
    line = {name: body[name] for name in ("run_id", "config_id", "status", "reason")}
    line["rows"] = body["episodes"]["rows"] if body["episodes"] else 0
    for part in ("spec", "provenance"):
        # these are for who reads one record: they would drown the rest
        shown = {k: v for k, v in body[part].items() if k not in ("sources", "stack")}
        _flatten(shown, "", line)
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
