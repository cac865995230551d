"""Small results folders of runs that never were, with all that may lie in one."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from support.records import episodes, provenance, spec

from offbench.io import UNSEALED, seal
from offbench.results.spec import RunSpec
from offbench.results.store import Store


def fill(
    root: Path,
    *,
    entries: Sequence[str] = ("iql", "bc"),
    seeds: Iterable[int] = (0, 1),
    failed: Iterable[int] = (),
    kept: Iterable[int] = (),
    shift: float = 0.0,
    **changes: object,
) -> Store:
    """Records runs of entries with some seeds; of those `kept`, with a policy; `failed` ones fail.

    The scores follow from the seed and `shift`; `changes` are of the specification.
    """
    store = Store(root)
    for entry in entries:
        for seed in seeds:
            run = spec(method=entry.split("+")[0], seed=seed, **changes)
            facts = provenance(entry=entry)
            if seed in failed:
                store.fail(run, f"RuntimeError: seed {seed}", facts, traceback="Traceback: here")
                continue
            if seed in kept:
                keep(store.path(run, entry), run)
            rows = episodes(score=np.linspace(0, 50, 3) + seed + shift)
            store.append(run, rows, facts, {"update": [50.0, 100.0], "loss": [2.0, 1.0]})
    return store


def keep(mark: Path, run: RunSpec) -> Path:
    """Writes a policy of a few bytes beside a record."""
    about = json.dumps({"format": 1, "run": run.as_dict()})
    content = save({"w": np.arange(6.0)}, metadata={"offbench": about, "sha256": UNSEALED})
    path = mark.with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    seal(path)
    return path


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the records below a results folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted((root / "runs").rglob("*"))
        if path.is_file()
    }


def flip(path: Path, at: int, mask: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= mask
    path.write_bytes(content)


def grow_old(*paths: Path, hours: float = 2.0) -> None:
    """Makes files as if they had not been changed for some hours."""
    then = time.time() - 3600 * hours
    for path in paths:
        os.utime(path, (then, then))
