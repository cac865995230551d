"""Reads what wandb wrote offline: the records of its .wandb files (the log format of LevelDB)."""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 32768


class OfflineRun(NamedTuple):
    """One wandb run on disk."""

    # id, project, group, name, tags, config
    about: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    # metric or pattern -> what it is drawn against
    axes: dict[str, str]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The runs below a results folder, by id."""
    paths = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.name)
    return [_read(path) for path in paths]


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    about: dict[str, Any] = {}
    history, summary, axes = [], {}, {}
    for data in _chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            about = {"id": run.run_id, "project": run.project, "group": run.run_group}
            config = _values(run.config.update)
            about |= {"name": run.display_name, "tags": list(run.tags), "config": config}
        elif kind == "history":
            history.append(_values(record.history.item))
        elif kind == "summary":
            summary |= _values(record.summary.update)
        elif kind == "metric":
            metric = record.metric
            axes[metric.name or metric.glob_name] = metric.step_metric
    return OfflineRun(about, history, summary, axes)


def _values(items: Any) -> dict[str, Any]:
    return {x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in items}


def _chunks(content: bytes) -> list[bytes]:
    """The records of a file: pieces of at most a block, first, middle and last."""
    found, parts, at = [], b"", 7
    while at + 7 <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        # whole, or last
        if kind in (1, 4):
            found.append(parts)
            parts = b""
    return found
