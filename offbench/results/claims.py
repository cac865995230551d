"""Claims: which worker trains which run, in a folder that several processes and machines write to.

    root/workers/WORKER.json      the heartbeat of a worker process and what it does, rewritten every BEAT_S
    root/claims/RUN_ID.N          the name of the worker that trains the run; the largest N counts

Every file is written under another name and linked or renamed into place, so file locks are not needed. A worker
is dead when its process is gone on the same machine, or its heartbeat is older than DEAD_S by the file system's
clock; its claims are void, and another worker takes them over with the next N. Should two workers train one run all
the same (a machine that slept), the store keeps the record of the first.
"""

import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from offbench.errors import writing
from offbench.io import atomic_write, clock_of, finished_file, linked_or_copied
from offbench.results.spec import utc_now

BEAT_S = 5.0
DEAD_S = 60.0

_CLAIM = re.compile(r"([0-9a-f]{16})\.(\d{1,9})", re.ASCII)
# machine, process id, a number of its own
_WORKER = re.compile(r"[\w.]{1,64}-\d{1,10}-\w{1,32}", re.ASCII)


class Worker(NamedTuple):
    """A worker process, as its heartbeat file describes it."""

    name: str
    host: str
    pid: int
    alive: bool
    # seconds since its last heartbeat
    age: float
    # ISO 8601, UTC
    started: str
    device: str | None
    # bytes of its process
    memory: int
    executor: str
    # title, entries, task, seeds, runs, phase, update, n_updates, updates_per_s, started; None between two stacks
    stack: Mapping[str, Any] | None


class Heart:
    """The heartbeat of this process in a store, and the claims that it holds.

    Args:
        root: folder of the store.
        executor: what started the process: local, ray or slurm.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(
        self,
        root: Path,
        *,
        executor: str = "local",
        device: str | None = None,
    ):
        self.root, self.executor, self.device = root, executor, device
        # the stack that is trained, as in `Worker.stack`; called in a thread
        self.about: Callable[[], Mapping[str, Any] | None] = lambda: None
        self.name = f"{_machine()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._started, self._stopped = utc_now(), threading.Event()
        with writing(f"to {self.root}"):
            self._beat()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._thread.start()

    def claim(self, run_ids: Iterable[str]) -> bool:
        """Claims all runs or none; False where another living worker has one of them.

        The caller then looks whether they were recorded meanwhile: a claim says nothing of finished runs.
        UserError where the folder cannot be written to.
        """
        with writing(f"to {self.root}"):
            return self._claim(run_ids)

    def _claim(self, run_ids: Iterable[str]) -> bool:
        wanted = sorted(set(run_ids))
        held = claims_of(self.root, wanted)
        taken: list[str] = []
        if not self._others(held):
            (self.root / "claims").mkdir(parents=True, exist_ok=True)
            for run_id in wanted:
                if not self._take(run_id, held.get(run_id, [])):
                    break
                taken.append(run_id)
        # two workers that saw the same dead one may both have linked a name: then neither holds the run
        if len(taken) == len(wanted) and not self._others(claims_of(self.root, wanted)):
            return True
        self.release(taken)
        return False

    def release(self, run_ids: Iterable[str]) -> None:
        """Gives claims of this worker up, and removes those of dead ones on the same runs."""
        _remove_void(self.root, claims_of(self.root, list(run_ids)), of=self.name)

    def close(self) -> None:
        """Stops the heartbeat; claims that are still held are void from now on."""
        self._stopped.set()
        self._thread.join(timeout=1)
        # as when the folder can no longer be written to
        with suppress(OSError):
            _path(self.root, self.name).unlink()

    def __enter__(self) -> "Heart":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _others(self, held: Mapping[str, Sequence[tuple[int, str]]]) -> bool:
        """Whether another living worker is among the holders."""
        return bool(_living(self.root, _names(held) - {self.name}))

    def _take(self, run_id: str, holders: Sequence[tuple[int, str]]) -> bool:
        if any(worker == self.name for _, worker in holders):
            return True
        number = max((n for n, _ in holders), default=0) + 1
        return _create(self.root / "claims" / f"{run_id}.{number}", self.name)

    def _beat_on(self) -> None:
        while not self._stopped.wait(BEAT_S):
            # a full disk or a lost mount: the worker counts as dead until it can write again
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        body = {
            "worker": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "beat": utc_now(),
            "device": self.device,
            "memory": psutil.Process().memory_info().rss,
            "executor": self.executor,
            "stack": self.about(),
        }
        atomic_write(_path(self.root, self.name), json.dumps(body).encode())


def workers(root: Path) -> list[Worker]:
    """The workers whose heartbeat files lie in a store, dead ones too; files that cannot be read are left out."""
    try:
        names = sorted(os.listdir(root / "workers"))
    except OSError:
        return []
    found = []
    now = _clock(root)
    for name in (n.removesuffix(".json") for n in names if n.endswith(".json")):
        if _WORKER.fullmatch(name) is None:
            continue
        path = _path(root, name)
        # removed meanwhile, or of another program
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            age = max(0.0, now - path.stat().st_mtime)
            body = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                Worker(
                    name=name,
                    host=str(body["host"]),
                    pid=int(body["pid"]),
                    alive=age < DEAD_S and not _gone(name),
                    age=age,
                    started=str(body["started"]),
                    device=body["device"],
                    memory=int(body["memory"]),
                    executor=str(body["executor"]),
                    stack=None if body["stack"] is None else dict(body["stack"].items()),
                )
            )
    return found


def claimed(root: Path) -> dict[str, str]:
    """Run id -> the living worker that trains it."""
    held = claims_of(root)
    alive = _living(root, _names(held))
    living = {run: [h for h in holders if h[1] in alive] for run, holders in held.items()}
    return {run_id: max(holders)[1] for run_id, holders in living.items() if holders}


def sweep(root: Path) -> None:
    """Removes heartbeat files and claims of dead workers, and what killed processes left half written."""
    _remove_void(root, claims_of(root))
    for one in workers(root):
        if not one.alive:
            with suppress(OSError):
                _path(root, one.name).unlink()
    now = _clock(root)
    for path in [*root.glob("claims/.*.tmp*"), *root.glob("workers/.*.tmp*")]:
        with suppress(OSError):
            if now - path.stat().st_mtime > DEAD_S:
                path.unlink()


def _path(root: Path, worker: str) -> Path:
    return root / "workers" / f"{worker}.json"


def claims_of(
    root: Path, run_ids: Collection[str] | None = None
) -> dict[str, list[tuple[int, str]]]:
    """Run id -> (number, worker) of each of its claim files; worker "" where one cannot be read."""
    found: dict[str, list[tuple[int, str]]] = {}
    try:
        names = os.listdir(root / "claims")
    except OSError:
        return {}
    wanted = None if run_ids is None else frozenset(run_ids)
    for name in names:
        match = _CLAIM.fullmatch(name)
        if match is not None and (wanted is None or match[1] in wanted):
            with suppress(FileNotFoundError):
                worker = _read(root / "claims" / name)
                found.setdefault(match[1], []).append((int(match[2]), worker))
    return found


def _names(held: Mapping[str, Sequence[tuple[int, str]]]) -> set[str]:
    """The workers among holders of runs."""
    return {worker for holders in held.values() for _, worker in holders}


def _living(root: Path, names: Collection[str]) -> set[str]:
    """Those of the workers whose hearts beat, by the clock of the file system."""
    beats = {}
    for name in names:
        if _WORKER.fullmatch(name) is not None and not _gone(name):
            with suppress(OSError):
                beats[name] = _path(root, name).stat().st_mtime
    now = _clock(root) if beats else 0.0
    return {name for name, beat in beats.items() if now - beat < DEAD_S}


def _read(path: Path) -> str:
    """The text of a claim; "" of one that cannot be read. Raises FileNotFoundError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    # a folder, of another user, no text
    except (OSError, ValueError):
        return ""


def _remove_void(
    root: Path, held: Mapping[str, Sequence[tuple[int, str]]], *, of: str | None = None
) -> None:
    """Removes those claims that are of dead workers, and those of the worker `of`."""
    alive = _living(root, {name for name in _names(held) if name != of})
    for run_id, holders in held.items():
        for n, worker in holders:
            path = root / "claims" / f"{run_id}.{n}"
            with suppress(OSError):
                # another worker may have taken the name meanwhile
                if worker not in alive and _read(path) == worker:
                    path.unlink()


def _create(path: Path, content: str) -> bool:
    """Writes a whole file that is not there yet; False where it is."""
    with finished_file(content.encode(), path, sync=False) as temporary:
        return linked_or_copied(temporary, path)


def _clock(root: Path) -> float:
    """Now, by the clock that stamps the heartbeats."""
    try:
        return clock_of(root / "workers")
    # a store that may only be read
    except OSError:
        return time.time()


def _gone(worker: str) -> bool:
    """Whether a worker was a process of this machine that has ended; of other machines nothing is known."""
    machine, pid, _ = worker.split("-")
    if machine != _machine():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _machine() -> str:
    """A name for this machine since it started, and the process ids that are valid on it."""
    parts = [socket.gethostname()]
    # absent where there is no Linux
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
