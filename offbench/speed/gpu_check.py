"""Everything a GPU is needed for to be known, in one command of less than four minutes.

    python -m offbench.speed.gpu_check OUT_FOLDER            exit code 2 without a CUDA device
    python -m offbench.speed.gpu_check OUT_FOLDER --dry-run  a miniature on the CPU

Each program that is checked or timed (a method, a number of seeds, a precision) is traced, compiled
and captured in a process of its own, as many at a time as there are processors, the most telling
first. It is held against eager float32 there at once. When all that is timed is ready, or READY_S
have passed, processes still at work are paused and the others are timed in turns; then they go on.
So one that fails, hangs or breaks the device's context leaves the others as they were, and what is
not ready in time is skipped, which is not a failure. `summary.md` is written anew after each answer.

It needs torch, numpy, pandas and pyarrow. Missing packages are taken from wheels in the folder
`wheels`, or that of the variable WHEELS. Compiled programs are kept in `.gpu_check_cache`, or in
TORCHINDUCTOR_CACHE_DIR, where a second check finds them.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from offbench.speed.gpu_parts import Found, Station
from offbench.speed.gpu_plan import DRY, GPU, Job, Sizes, jobs
from offbench.speed.gpu_report import Record, passed, write

# all of it; when what is ready is measured; when what became ready later is
TOTAL_S, READY_S, LATE_S = 230, 140, 205
# beyond the time at which the last is asked
GRACE_S = 10
# what is asked while nothing else runs, in this order, and the seconds that an answer may take
ALONE = {"ceilings": 20, "time": 10, "profile": 20, "train": 40}
# a program's rate is the best of so many, taken in turns
ROUNDS = 3

# --- processes


# (process, what it found; None: it has ended)
Answers = queue.SimpleQueue[tuple[Any, Found | None]]


class Process:
    """A job in a process, and group, of its own: verbs are asked, and answered through the queue."""

    def __init__(self, job: Job, out: Path, sizes: Sizes, answers: Answers):
        self.job = job
        self.why = ""
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # a group, not a session: should this process be killed, the paused ones are ended with it
        self.process: Any = subprocess.Popen(
            self.command(job, out, sizes),
            **pipes,
            stderr=self.log,
            text=True,
            env=_environ(job),
            process_group=0,
        )
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    @staticmethod
    def command(job: Job, out: Path, sizes: Sizes) -> list[str]:
        dry = ["--dry-run"] if sizes is DRY else []
        module = [sys.executable, "-m", "offbench.speed.gpu_check"]
        return [*module, str(out), "--job", json.dumps(job), *dry]

    def _listen(self, answers: Answers) -> None:
        for line in self.process.stdout:
            answers.put((self, json.loads(line)))
        code = self.process.wait()
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or ["no output"])[-1]
        self.why = f"exit code {code}: {last}"[:500]
        for file in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                file.close()
        answers.put((self, None))

    def ask(self, verb: str) -> None:
        # where it has ended its last answer will say so
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(verb + "\n")
            self.process.stdin.flush()

    def signal(self, name: str) -> None:
        """SIGSTOP, SIGCONT or SIGKILL, to the compilers that it started, too."""
        if hasattr(os, "killpg") and hasattr(signal, name):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, getattr(signal, name))
        elif name == "SIGKILL":
            self.process.kill()


def _environ(job: Job) -> dict[str, str]:
    """Of a job's process: four compilers for what is checked first, one for others, which are many."""
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(Path(".gpu_check_cache").resolve())}
    threads = "4" if job.alone and "gate" in job.first else "1"
    own = {"TORCHINDUCTOR_COMPILE_THREADS": threads, "OMP_NUM_THREADS": "1"}
    # CUPTI's end breaks graphs that are replayed after it
    return kept | os.environ | own | {"TEARDOWN_CUPTI": "0"}


def serve(job: Job, out: Path, sizes: Sizes) -> int:
    """The process of a job: a line of JSON for each verb on stdin. Other output goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    station, verb = Station(job, out, sizes), "set_up"
    while verb:
        answer = station.answer(verb)
        print(json.dumps(answer), file=replies, flush=True)
        if verb == "set_up" and "error" in answer:
            return 0
        verb = sys.stdin.readline().strip()
    return 0


# --- the crew


class Crew:
    """Jobs and the processes that do them, `slots` at work at a time."""

    def __init__(self, todo: list[Job], slots: int, patience: float):
        self.slots, self.patience = slots, patience
        self.records = [Record(job) for job in todo]
        self.waiting = deque(self.records)
        self.answers: Answers = queue.SimpleQueue()
        self.of: dict[int, Record] = {}
        # job -> its process
        self.employ: Callable[[Job], Any] = lambda job: None
        # called after each answer
        self.tell: Callable[[Record], None] = lambda record: None

    def work(self, until: float, done: Callable[[], bool]) -> None:
        """Starts jobs and takes answers, until a time or until `done`."""
        while time.monotonic() < until and not done():
            while self.waiting and len(self.busy()) < self.slots:
                self._start(self.waiting.popleft())
            self._take(until)

    def _start(self, record: Record) -> None:
        record.open = ["set_up", *record.job.first]
        record.worker = worker = self.employ(record.job)
        self.of[id(worker)] = record
        for verb in record.job.first:
            worker.ask(verb)

    def _take(self, until: float) -> None:
        try:
            worker, answer = self.answers.get(timeout=max(0.0, min(0.5, until - time.monotonic())))
        except queue.Empty:
            return
        record = self.of[id(worker)]
        if answer is None:
            if record.error is None and record.open:
                record.error = worker.why
            record.worker, record.open = None, []
        else:
            verb = answer.pop("verb")
            record.found[verb] = answer
            if verb in record.open:
                record.open.remove(verb)
            if "error" in answer:
                record.error = f"{verb}: {answer['error']}"
                record.open = record.open if verb != "set_up" else []
        self.tell(record)

    def busy(self) -> list[Record]:
        return [r for r in self.records if r.worker and r.open]

    def idle(self) -> bool:
        return not self.busy() and not self.waiting

    def unready(self) -> list[Record]:
        """What will be timed and is still being set up, or waits for that."""
        return [r for r in self.records if r.job.alone and (r.open or r in self.waiting)]

    def measure(self, until: float) -> None:
        """Asks what is ready and not measured yet, one process at a time, the others paused."""
        paused = self.busy()
        ready = [r for r in self.records if r.worker and not r.open and not r.measured]
        for record in paused:
            record.worker.signal("SIGSTOP")
        for verb, limit in ALONE.items():
            for _ in range(ROUNDS if verb == "time" else 1):
                for record in (r for r in ready if verb in r.job.alone and r.worker):
                    if time.monotonic() < until:
                        limit_s = limit * self.patience
                        self._ask(record, verb, min(until + GRACE_S, time.monotonic() + limit_s))
        for record in paused:
            if record.worker:
                record.worker.signal("SIGCONT")

    def _ask(self, record: Record, verb: str, until: float) -> None:
        record.open, record.measured = [verb], True
        record.worker.ask(verb)
        while record.open and time.monotonic() < until:
            self._take(until)
        if record.open:
            record.error = f"{verb}: no answer in time, stopped"
            record.worker.signal("SIGKILL")
            record.worker, record.open = None, []
            self.tell(record)

    def close(self) -> None:
        """Ends every process."""
        for record in self.records:
            if record.worker:
                record.worker.signal("SIGKILL")


# --- the whole


def check(out: Path, sizes: Sizes, *, employ: Any = Process, todo: list[Job] | None = None) -> bool:
    """Runs every job and writes what it found; whether nothing failed."""
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    todo = jobs(sizes) if todo is None else todo
    crew = Crew(todo, max(2, (os.cpu_count() or 2) - 1), sizes.patience)
    crew.employ = lambda job: employ(job, out, sizes, crew.answers)
    ready, late, total = (begin + s * sizes.patience for s in (READY_S, LATE_S, TOTAL_S))

    def tell(record: Record) -> None:
        last = next(reversed(record.found), "ended")
        print(
            f"{time.monotonic() - begin:5.0f} s  {record.job.name}: {last} {record.failure}",
            flush=True,
        )
        write(out, crew.records, time.monotonic() - begin)

    crew.tell = tell
    write(out, crew.records, 0.0)
    try:
        crew.work(ready, lambda: not crew.unready())
        crew.measure(late)
        crew.work(late, crew.idle)
        crew.measure(total - GRACE_S)
        crew.work(total, crew.idle)
    finally:
        crew.close()
    write(out, crew.records, time.monotonic() - begin)
    return passed(crew.records)


def add_wheels(folder: Path, into: Path) -> list[str]:
    """Installs wheels of packages that are missing here, without an index; a line for each."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        try:
            importlib.metadata.version(name)
            continue
        except importlib.metadata.PackageNotFoundError:
            pass
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        try:
            done = subprocess.run(
                [*command, "--target", str(into), str(wheel)],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired:
            error = ["not installed within 60 s"]
        lines.append(f"{wheel.name}: {error[0] if error else 'installed for this check'}")
    return lines


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m offbench.speed.gpu_check")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="a miniature on the CPU")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    sizes = DRY if given.dry_run else GPU
    if given.job:
        values: list[Any] = json.loads(given.job)
        job = Job._make(tuple(x) if isinstance(x, list) else x for x in values)
        return serve(job, given.out, sizes)
    if not given.dry_run and not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} of {sys.executable} finds no CUDA device; nothing "
            "was measured (another interpreter: make gpu-check PYTHON=python3)",
            file=sys.stderr,
        )
        return 2
    # so that a time limit of the shell ends the other processes, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        for line in add_wheels(Path(os.environ.get("WHEELS", "wheels")), Path(folder)):
            print(line)
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"), folder]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        ok = check(given.out, sizes)
    said = "nothing failed" if ok else "something failed"
    print(f"written: {given.out}; {said}, see summary.md")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
