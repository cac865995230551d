"""Several writers of one folder, without file locks: one record of every run, whole, and no other file."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.paths import ROOT
from support.records import episodes, provenance, spec

from offbench.errors import UserError
from offbench.io import finished_file
from offbench.results import commit
from offbench.results.commit import holding, place
from offbench.results.store import Store

WRITER = f"""
import os, sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from offbench.errors import UserError
from offbench.results.store import Store
from support.records import episodes, provenance, spec

root, me, others = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def meet(name):
    # all processes go on at the same moment
    (root / f"{{name}}.{{me}}").touch()
    while not all((root / f"{{name}}.{{i}}").exists() for i in range(others)):
        pass
"""


def together(root: Path, n: int, code: str, *arguments: object) -> list[list[str]]:
    """The words that each of n processes prints, which run `code` at the same time."""
    command = [sys.executable, "-c", WRITER + textwrap.dedent(code), str(root)]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(n), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for i in range(n)
    ]
    said = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * n
    return said


def files(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


# mode -> without links, entries of two labels, after a failure
MODES = {
    "plain": (0, 0, 0),
    "labels": (0, 1, 0),
    "failures": (0, 0, 1),
    "unlinked": (1, 0, 0),
    "unlinked-labels": (1, 1, 0),
    "unlinked-failures": (1, 0, 1),
}

RACE = f"""
def refuse(*_):
    raise OSError(95, "Operation not supported")

link = os.link
for mode, (unlinked, labels, failures) in {MODES}.items():
    os.link = refuse if unlinked else link
    store = Store(root / "stores" / mode)
    for seed in range(int(sys.argv[4])):
        entry = f"label{{me}}" if labels else "iql"
        meet(f"{{mode}}.{{seed}}")
        try:
            if failures and me == 0:
                print("failed")
                store.fail(spec(seed=seed), "stopped", provenance(entry=entry), traceback="line 1")
            store.append(spec(seed=seed), episodes(score=float(me)), provenance(entry=entry))
            print(f"{{mode}}.{{seed}}")
        except UserError as error:
            assert "recorded already" in str(error), error
"""


@pytest.mark.parametrize("n", [5, pytest.param(150, marks=pytest.mark.slow)])
def test_of_several_writers_of_one_run_one_has_its_record(tmp_path: Path, n: int) -> None:
    said = together(tmp_path, 2, RACE, n)
    for mode in MODES:
        won = [{int(w.split(".")[1]) for w in words if w.startswith(f"{mode}.")} for words in said]
        assert won[0] | won[1] == set(range(n)) and won[0].isdisjoint(won[1])
        store = Store(tmp_path / "stores" / mode)
        # every checksum holds
        rows = store.episodes()
        assert len(rows) == 3 * n and store.runs()["status"].tolist() == ["ok"] * n
        for me, seeds in enumerate(won):
            assert set(rows["seed"][rows["score"] == me]) == seeds
        # a json and a parquet of each, nothing left behind
        assert len(files(store.root / "runs")) == 2 * n


MANY = """
store = Store(root / "store")
meet("start")
for seed in range(me, int(sys.argv[4]), others):
    run = spec(seed=seed, task=f"toy/task{seed % 20}-v0")
    store.append(run, episodes(), provenance(entry=f"entry{seed // 20 % 50}"))
"""


@pytest.mark.parametrize(
    ("processes", "n"), [(2, 50), pytest.param(8, 10_000, marks=pytest.mark.slow)]
)
def test_many_processes_lose_and_double_nothing(tmp_path: Path, processes: int, n: int) -> None:
    together(tmp_path, processes, MANY, n)
    store = Store(tmp_path / "store")
    runs = store.runs()
    assert sorted(runs["seed"]) == list(range(n)) and runs["run_id"].is_unique
    rows = store.episodes()
    assert len(rows) == 3 * n and (rows.groupby("run_id").size() == 3).all()
    assert len(files(store.root / "runs")) == 2 * n


# --- holds ----------------------------------------------------------------------------------


def test_a_hold_keeps_others_waiting_and_one_left_behind_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, final = tmp_path / ".x.hold", tmp_path / "x.json"
    monkeypatch.setattr(commit, "HELD_S", 0.3)
    with finished_file(b"a", final) as a, finished_file(b"b", final) as b:
        start = time.monotonic()
        with holding(hold, a), holding(hold, b):
            waited = time.monotonic() - start
            assert hold.read_bytes() == b"b"
            # the process of a was stopped for long: what it does now is done with the hold of b
            with pytest.raises(FileExistsError):
                place(a, hold, final, replace=True)
            place(b, hold, final, replace=True)
            assert final.read_bytes() == b"b"
        assert 0.25 <= waited < 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_is_linked_to_its_name_once(tmp_path: Path) -> None:
    final = tmp_path / "x.json"
    for content, first in ((b"a", True), (b"b", False)):
        with finished_file(content, final) as file, holding(tmp_path / ".x.hold", file):
            if first:
                place(file, tmp_path / ".x.hold", final, replace=False)
            else:
                with pytest.raises(FileExistsError):
                    place(file, tmp_path / ".x.hold", final, replace=False)
    assert final.read_bytes() == b"a"


def test_a_link_that_was_made_although_the_answer_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(a: Path, b: Path) -> None:
        link(a, b)
        link(a, b)

    monkeypatch.setattr(os, "link", twice)
    store = Store(tmp_path)
    store.append(spec(), episodes(), provenance())
    with pytest.raises(UserError, match="recorded already"):
        store.append(spec(), episodes(), provenance())
    assert len(store.episodes()) == 3


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_no_record_and_no_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", lambda *_: refused(95))
        synced = []

        def full(handle: int) -> None:
            synced.append(handle)
            if len(synced) == (3 if links else 4):
                refused(28)

        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write record .*: No space left on device"):
            store.append(spec(), episodes(), provenance())
    assert store.runs().empty and not [n for n in files(tmp_path) if not n.endswith(".parquet")]
    store.append(spec(), episodes(), provenance())
    assert len(store.episodes()) == 3


def refused(number: int) -> None:
    raise OSError(number, os.strerror(number))
