"""Embedded data sets: small, shipped in the repository and the wheel, each with a manifest.

A manifest (`datasets/*.yaml`) has the sha256 of the data file and measured reference returns.
Manifests are searched in `$OFFBENCH_DATASETS`, in `./datasets`, and in the checkout or the installed
package; the first of an id is used.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from offbench.errors import UserError
from offbench.io import read_yaml, shipped
from offbench.tasks.task import File, Task


def roots() -> list[Path]:
    """Folders searched for manifests, first match wins."""
    folders = [Path.cwd() / "datasets", shipped("datasets")]
    if "OFFBENCH_DATASETS" in os.environ:
        folders.insert(0, Path(os.environ["OFFBENCH_DATASETS"]))
    return [path for path in dict.fromkeys(folders) if path.is_dir()]


Manifests: TypeAlias = Mapping[str, tuple[Path, Mapping[str, Any]]]


def manifests() -> Manifests:
    """Every embedded set known here: id -> (root, manifest). Lists the folders anew at every call."""
    files = (p for root in roots() for p in sorted(root.glob("*--*.yaml")))
    return _manifests(tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _manifests(files: tuple[tuple[Path, int], ...]) -> Manifests:
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path, mtime_ns in files:
        manifest = _read(path, mtime_ns)
        found.setdefault(manifest["id"], (path.parent, manifest))
    for name, (root, manifest) in found.items():
        if (data := manifest.get("data")) in found:
            whole = {k: v for k, v in found[data][1].items() if k in _OF_DATA} | {**manifest}
            found[name] = root, MappingProxyType(whole)
    return MappingProxyType(found)


# what a manifest that names the set of another as its data has of that set's manifest
_OF_DATA = (
    "format",
    "rows",
    "episodes",
    "terminal_inside",
    "bytes",
    "sha256",
    "data_sha256",
    "recipe",
    "versions",
)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, mtime_ns: int) -> Mapping[str, Any]:
    return MappingProxyType(read_yaml(path.read_text(encoding="utf-8")))


def data_of(name: str) -> str:
    """The id of the set whose data an embedded set has: its own, but for tasks that share those of another."""
    return manifests()[name][1].get("data", name)


def task(name: str, known: Manifests) -> Task | None:
    """The task of the id of an embedded set, one of `known`; None for another."""
    if (found := known.get(name)) is None:
        return None
    root, manifest = found
    score, env = manifest["score"], manifest["env"]
    # of a goal-conditioned task, which shares the data of another
    data, goals = manifest.get("data", name), tuple(manifest.get("goals", ()))
    if data not in known:
        raise UserError(f"{name}: its data are those of {data}, which has no manifest beside it")
    root = known[data][0]
    return Task(
        id=name,
        family="offbench",
        path=root / "minari" / data,
        sha256=manifest["sha256"],
        env=env["id"],
        env_kwargs=dict(env.get("kwargs") or {}),
        adapter="goal" if goals else None,
        task_ids=goals,
        max_episode_steps=manifest["max_episode_steps"],
        score=score["kind"],
        ref_min=score["ref_min"],
        ref_max=score["ref_max"],
        ref_source=f"measured: {score.get('episodes')} episodes of uniform actions and of the best policy",
        files=(File("", f"minari/{data}/data/main_data.hdf5", None, manifest["sha256"]),),
        terminal_inside=manifest.get("terminal_inside", False),
        notes=(manifest["summary"],),
    )
