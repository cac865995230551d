"""Collection in pieces that survive an interruption: one small file for each trajectory.

Every piece is a function of the plan and of its own name, so it does not matter which process
makes it, in which order, or in how many runs. A folder of pieces belongs to one plan; another plan
is refused there.
"""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offbench.errors import UserError
from offbench.io import replacing
from offbench.recipes import Progress, unwatched

Work = Callable[..., Mapping[str, NDArray[Any]]]
# the bytes are a function of the arrays
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# pieces queued for each worker
_AHEAD = 4


def collect(
    folder: Path,
    plan: Mapping[str, Any],
    jobs: Mapping[str, tuple[Any, ...]],
    work: Work,
    *,
    workers: int = 1,
    progress: Progress = unwatched,
) -> list[Path]:
    """Make the pieces that are missing and return the files of all, in the order of ``jobs``.

    ``work(*jobs[name])`` gives the arrays of a piece; with more than one worker it runs in other
    processes. ``progress`` is called with the pieces there and the pieces wanted. UserError when
    the folder holds pieces of another plan.
    """
    if workers < 1:
        raise UserError(f"workers={workers}: at least one is needed")
    _claim(folder, plan)
    paths = {name: folder / f"{name}.npz" for name in jobs}
    todo = [name for name in jobs if not _whole(paths[name])]
    done = len(jobs) - len(todo)
    progress(done, len(jobs))
    for new, _ in enumerate(_finished(todo, jobs, paths, work, workers), 1):
        progress(done + new, len(jobs))
    return list(paths.values())


def _finished(
    todo: Sequence[str],
    jobs: Mapping[str, tuple[Any, ...]],
    paths: Mapping[str, Path],
    work: Work,
    workers: int,
) -> Iterator[None]:
    """One item for each piece as it is written."""
    if workers == 1 or len(todo) < 2:
        for name in todo:
            _piece(paths[name], work, jobs[name])
            yield
        return
    context = multiprocessing.get_context("spawn")
    left = iter(todo)
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        running: set[Future[None]] = set()
        try:
            while True:
                for name in left:
                    running.add(pool.submit(_piece, paths[name], work, jobs[name]))
                    if len(running) >= workers * _AHEAD:
                        break
                if not running:
                    return
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    future.result()
                    yield
        finally:
            pool.shutdown(cancel_futures=True)


def _piece(path: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    arrays: Mapping[str, Any] = work(*arguments)
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def _whole(path: Path) -> bool:
    """Pieces get their name when written; a disk that filled up may still have cut one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _claim(folder: Path, plan: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / "plan.json", json.loads(json.dumps(plan))
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        if differ:
            raise UserError(
                f"{folder} holds pieces made with another {differ[0]} "
                f"({theirs.get(differ[0])}, now {mine.get(differ[0])}); delete it or finish that one"
            )
    path.write_text(json.dumps(mine, indent=1), encoding="utf-8")


def column(paths: Sequence[Path], name: str) -> NDArray[Any]:
    """One array of all pieces, joined in order."""
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            parts.append(file[name])
    return np.concatenate(parts)


def write_npz(path: Path, columns: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
    """Write a compressed npz, one column in memory at a time; the same arrays, the same bytes."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, read in columns.items():
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, read(), allow_pickle=False)
