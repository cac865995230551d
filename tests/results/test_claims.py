"""Claims and heartbeats: real processes that race, die, and lie on machines whose clocks differ."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offbench.results import claims
from offbench.results.claims import DEAD_S, Heart, claimed, sweep, workers

RUNS = [c * 16 for c in "abcdef"]

# claims the runs of a line at the time that it begins with; "release" gives up what is held
PROCESS = """
import sys, time
from pathlib import Path
from offbench.results.claims import Heart
heart = Heart(Path(sys.argv[1]))
print(heart.name, flush=True)
held = []
for line in sys.stdin:
    at, *runs = line.split()
    if at == "release":
        heart.release(held)
        held = []
        print("released", flush=True)
        continue
    while time.monotonic() < float(at):
        pass
    held = runs if heart.claim(runs) else []
    print(int(bool(held)), flush=True)
"""


class Process:
    """A worker process without work."""

    def __init__(self, root: Path):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = self.read()

    def read(self) -> str:
        return self.popen.stdout.readline().strip()

    def send(self, *words: str) -> None:
        self.popen.stdin.write(" ".join(words) + "\n")
        self.popen.stdin.flush()

    def claim(self, runs: list[str]) -> bool:
        self.send("0", *runs)
        return self.read() == "1"


@pytest.fixture
def processes(tmp_path):
    started: list[Process] = []

    def start(n: int = 1) -> list[Process]:
        started.extend(Process(tmp_path) for _ in range(n))
        return started[-n:]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def elsewhere(root: Path, *, age: float = 0.0, run: str | None = None, number: int = 1) -> str:
    """A worker of another machine, by its heartbeat file, and its claim of a run."""
    name = f"{'0' * 12}-77-{random.randrange(16**6):06x}"
    body = {"host": "node9", "pid": 77, "started": "2026-01-01T00:00:00+00:00", "device": "cpu"}
    path = root / "workers" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body | {"memory": 5, "executor": "local", "stack": None}))
    os.utime(path, (time.time() - age,) * 2)
    if run is not None:
        (root / "claims").mkdir(exist_ok=True)
        (root / "claims" / f"{run}.{number}").write_text(name)
    return name


def race(processes: list[Process], sets: list[list[str]]) -> list[bool]:
    """Which of the processes got their runs, all asking at once."""
    at = str(time.monotonic() + 0.01)
    for process, runs in zip(processes, sets, strict=True):
        process.send(at, *runs)
    return [process.read() == "1" for process in processes]


def release(processes: list[Process]) -> None:
    for process in processes:
        process.send("release")
    assert all(process.read() == "released" for process in processes)


def test_of_racing_processes_no_two_hold_a_run_and_one_holds_all_of_its_own(tmp_path, processes):
    """All share a run, so exactly one may win; it has all its runs, and the others have none."""
    three, rng = processes(3), random.Random(0)
    for _ in range(60):
        sets = [[RUNS[0], *rng.sample(RUNS[1:], 3)] for _ in three]
        for runs in sets:
            rng.shuffle(runs)
        won = race(three, sets)
        assert sum(won) == 1
        i = won.index(True)
        assert claimed(tmp_path) == dict.fromkeys(sets[i], three[i].name)
        release(three)
        assert not claimed(tmp_path)


def test_claims_of_the_dead_are_taken_over_by_one(tmp_path, processes):
    """Whoever takes over, no two hold one run, and it does not take long until one does."""
    two, tries = processes(2), 0
    for _ in range(30):
        for run in RUNS[:3]:
            elsewhere(tmp_path, age=2 * DEAD_S, run=run)
        won = [False, False]
        while not any(won):
            won, tries = race(two, [RUNS[:3], RUNS[1:4]]), tries + 1
            assert sum(won) <= 1
        release(two)
        assert not list((tmp_path / "claims").glob(f"{RUNS[1]}.*"))
        sweep(tmp_path)
    assert tries < 60


def test_who_saw_a_dead_claim_that_is_gone_looks_again(tmp_path, monkeypatch):
    """Between the look and the link another worker has removed the dead claim and taken its number."""
    elsewhere(tmp_path, age=2 * DEAD_S, run=RUNS[0])
    with Heart(tmp_path) as slow, Heart(tmp_path) as quick:
        create = claims._create

        def later(*args) -> bool:
            monkeypatch.setattr(claims, "_create", create)
            sweep(tmp_path)
            assert quick.claim(RUNS[:1])
            return create(*args)

        monkeypatch.setattr(claims, "_create", later)
        assert not slow.claim(RUNS[:1])
        assert claimed(tmp_path) == {RUNS[0]: quick.name}


def test_disjoint_sets_are_divided(tmp_path, processes):
    two = processes(2)
    assert race(two, [RUNS[:2], RUNS[2:4]]) == [True, True]
    assert not two[0].claim([RUNS[4], RUNS[2]])
    # nothing is left of what was claimed in vain
    assert RUNS[4] not in claimed(tmp_path)


def test_a_killed_process_leaves_its_runs_at_once(tmp_path, processes):
    (first, second) = processes(2)
    assert first.claim(RUNS[:2]) and not second.claim(RUNS[1:3])
    first.popen.kill()
    # not waited for: a zombie is dead, too
    time.sleep(0.05)
    assert second.claim(RUNS[1:3])
    assert claimed(tmp_path) == dict.fromkeys(RUNS[1:3], second.name)
    assert {w.name: w.alive for w in workers(tmp_path)} == {first.name: False, second.name: True}


def test_a_worker_of_another_machine_is_dead_after_a_minute_of_silence(tmp_path):
    fresh = elsewhere(tmp_path, age=DEAD_S - 10, run=RUNS[0])
    silent = elsewhere(tmp_path, age=DEAD_S + 1, run=RUNS[1])
    found = {w.name: w for w in workers(tmp_path)}
    assert found[fresh].alive and not found[silent].alive
    assert DEAD_S < found[silent].age < DEAD_S + 30 and found[silent].host == "node9"
    assert claimed(tmp_path) == {RUNS[0]: fresh}
    with Heart(tmp_path) as heart:
        assert not heart.claim(RUNS[:2])
        assert heart.claim(RUNS[1:3])
        assert claimed(tmp_path) == {RUNS[0]: fresh} | dict.fromkeys(RUNS[1:3], heart.name)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_the_clock_of_the_file_system_counts(tmp_path, monkeypatch, ahead):
    """A server whose clock is an hour off stamps the heartbeats with it."""
    fresh = elsewhere(tmp_path, age=-ahead, run=RUNS[0])
    elsewhere(tmp_path, age=DEAD_S + 1 - ahead, run=RUNS[1])
    monkeypatch.setattr(claims, "clock_of", lambda folder: time.time() + ahead)
    assert {w.name for w in workers(tmp_path) if w.alive} == {fresh}
    assert claimed(tmp_path) == {RUNS[0]: fresh}


def test_without_hard_links_claims_hold_all_the_same(tmp_path, monkeypatch):
    def link(*_) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    with Heart(tmp_path) as one, Heart(tmp_path) as other:
        assert one.claim(RUNS[:2]) and not other.claim(RUNS[1:3])
        assert claimed(tmp_path) == dict.fromkeys(RUNS[:2], one.name)
        one.release(RUNS[:2])
        assert other.claim(RUNS[1:3])
    assert not claimed(tmp_path)
    assert not list((tmp_path / "claims").glob(".*"))


def test_a_link_that_a_server_made_and_denied_is_ours(tmp_path, monkeypatch):
    """A network file system repeats a request whose answer was lost, and says that the file exists."""
    link = os.link

    def lost(*paths) -> None:
        link(*paths)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost)
    with Heart(tmp_path) as heart:
        assert heart.claim(RUNS[:1])


def test_a_second_claim_is_the_first_and_a_release_gives_it_up(tmp_path):
    with Heart(tmp_path) as heart:
        assert heart.claim(RUNS[:2]) and heart.claim(RUNS[:3])
        assert len(list((tmp_path / "claims").iterdir())) == 3
        heart.release(RUNS[:1])
        assert set(claimed(tmp_path)) == set(RUNS[1:3])
    # what was held is void
    assert not claimed(tmp_path)


def test_the_highest_living_claim_counts(tmp_path):
    low = elsewhere(tmp_path, run=RUNS[0], number=2)
    elsewhere(tmp_path, age=2 * DEAD_S, run=RUNS[0], number=10)
    assert claimed(tmp_path) == {RUNS[0]: low}
    high = elsewhere(tmp_path, run=RUNS[0], number=11)
    assert claimed(tmp_path) == {RUNS[0]: high}


def test_sweep_removes_what_is_dead_and_nothing_else(tmp_path):
    fresh = elsewhere(tmp_path, run=RUNS[0])
    elsewhere(tmp_path, age=2 * DEAD_S, run=RUNS[1])
    left = tmp_path / "claims" / ".x.1.tmp"
    new = tmp_path / "claims" / ".y.1.tmp"
    for path in (left, new):
        path.touch()
    os.utime(left, (time.time() - 2 * DEAD_S,) * 2)
    foreign = tmp_path / "claims" / "notes.1"
    foreign.write_text("mine")
    sweep(tmp_path)
    assert [w.name for w in workers(tmp_path)] == [fresh]
    assert {p.name for p in (tmp_path / "claims").iterdir()} == {
        f"{RUNS[0]}.1",
        new.name,
        foreign.name,
    }


BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"host": "x"}',
    b'{"host": "x", "pid": null, "started": "", "device": "", "memory": 1, "executor": "", "stack": null}',
    b'{"host": "x", "pid": 1, "started": "", "device": "", "memory": 1, "executor": "", "stack": [1]}',
]


def test_foreign_and_unreadable_files_are_left_out(tmp_path):
    fresh = elsewhere(tmp_path, run=RUNS[0])
    for i, body in enumerate(BODIES):
        (tmp_path / "workers" / f"{'1' * 12}-{i}-abc.json").write_bytes(body)
    for name in ("notes.txt", ".json", "a.json", "\u00b2-\u00b2-\u00b2.json"):
        (tmp_path / "workers" / name).write_bytes(BODIES[-2])
    (tmp_path / "workers" / f"{'2' * 12}-1-abc.json").mkdir()
    texts = {1: b"\xff\xfe", 2: b"a\0b", 3: b"../../etc-1-x", 4: b"", 5: b"x" * 5000}
    for number, text in texts.items():
        (tmp_path / "claims" / f"{RUNS[1]}.{number}").write_bytes(text)
    (tmp_path / "claims" / f"{RUNS[2]}.1").mkdir()
    for name in ("notes", "notes.1", f"{RUNS[3]}.\u00b2", f"{RUNS[3]}.-1", f"{RUNS[3]}.1.tmp"):
        (tmp_path / "claims" / name).write_text(fresh)
    assert [w.name for w in workers(tmp_path)] == [fresh]
    assert claimed(tmp_path) == {RUNS[0]: fresh}
    with Heart(tmp_path) as heart:
        assert heart.claim(RUNS[1:4])
        assert not heart.claim(RUNS[:1])
    sweep(tmp_path)


def test_a_store_that_may_only_be_read_can_be_looked_at(tmp_path, monkeypatch):
    fresh = elsewhere(tmp_path, run=RUNS[0])
    silent = elsewhere(tmp_path, age=2 * DEAD_S)

    # root may write everywhere, so folders without that right say nothing
    def touch(*_, **__) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(Path, "touch", touch)
    before = sorted(tmp_path.rglob("*"))
    assert {w.name: w.alive for w in workers(tmp_path)} == {fresh: True, silent: False}
    assert claimed(tmp_path) == {RUNS[0]: fresh}
    assert sorted(tmp_path.rglob("*")) == before


def test_of_a_folder_without_workers_nothing_is_known_and_nothing_is_made(tmp_path):
    for root in (tmp_path / "none", Path(__file__)):
        assert workers(root) == [] and claimed(root) == {}
        sweep(root)
    assert not list(tmp_path.iterdir())


def test_a_heart_says_what_is_trained_and_outlives_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    write, full = claims.atomic_write, []

    def broken(*args) -> None:
        full.append(1)
        raise OSError(errno.ENOSPC, "full")

    with Heart(tmp_path, executor="ray", device="cuda:1") as heart:
        monkeypatch.setattr(claims, "atomic_write", broken)
        time.sleep(0.2)
        monkeypatch.setattr(claims, "atomic_write", write)
        heart.about = lambda: {"title": "bc on x"}
        deadline = time.monotonic() + 10
        while (one := workers(tmp_path)[0]).stack is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert full and one.stack == {"title": "bc on x"} and one.alive
        assert (one.executor, one.device, one.pid) == ("ray", "cuda:1", os.getpid())
        assert one.memory > 2**20 and one.name == heart.name
    assert workers(tmp_path) == []
