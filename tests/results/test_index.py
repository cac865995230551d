"""The index of a store: it says what the records say, and may be lost, damaged, foreign or old at any time."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import episodes, parquet_of, provenance, spec

from offbench.errors import UserError
from offbench.results import index
from offbench.results.index import Lines, _encoded
from offbench.results.record import DamagedRecord
from offbench.results.spec import RunSpec
from offbench.results.store import STATES, Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Whole, failed and diverged runs of two tasks; the index is written from the first record on."""
    monkeypatch.setattr(index, "WORTH", 1)
    store = Store(tmp_path)
    for task in ("toy/a", "toy/b"):
        for entry in ("iql", "bc"):
            for seed in range(2):
                run = spec(task=task, seed=seed, method=entry, hparams={entry: seed or None})
                store.append(run, episodes(), provenance(entry=entry))
    store.fail(spec(task="toy/a", seed=5), "no room", provenance(), attempts=3)
    store.fail(spec(task="toy/a", seed=6), "nan", provenance(), status="diverged")
    return store


def tables(store: Store) -> list[pd.DataFrame]:
    return [store.runs(), store.states(), store.episodes(), store.runs(entry="bc", task="toy/b")]


def same(a: list[pd.DataFrame], b: list[pd.DataFrame]) -> None:
    for one, other in zip(a, b, strict=True):
        pd.testing.assert_frame_equal(one, other)


def opened(store: Store, monkeypatch: pytest.MonkeyPatch, call: Any) -> int:
    """Number of jsons that a call opens."""
    count = []
    with monkeypatch.context() as patch:
        load = index.load
        patch.setattr(index, "load", lambda path: (count.append(path), load(path))[1])
        call()
    return len(count)


def files(store: Store) -> list[Path]:
    return sorted((store.root / ".index").rglob("*.arrow"))


def test_records_are_opened_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(store, monkeypatch, store.states) == 10
    assert opened(store, monkeypatch, lambda: tables(store)) == 0
    store.append(spec(task="toy/a", seed=7), episodes(), provenance())
    assert opened(store, monkeypatch, store.runs) == 1
    assert opened(store, monkeypatch, store.states) == 0
    store.append(spec(task="toy/a", seed=5), episodes(), provenance())
    assert opened(store, monkeypatch, lambda: store.missing([spec(task="toy/a", seed=5)])) == 1
    assert store.missing([spec(task="toy/a", seed=s) for s in (5, 6, 7)]) == [
        spec(task="toy/a", seed=6)
    ]


def test_few_records_are_read_without_an_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(spec(), episodes(), provenance())
    tables(store)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_index_says_what_the_records_say(store: Store) -> None:
    first = tables(store)
    same(tables(store), first)
    assert len(files(store)) == 4
    for path in files(store):
        path.unlink()
    same(tables(store), first)


@pytest.mark.parametrize("how", ["empty", "cut", "flipped", "text", "of another task", "folder"])
def test_an_index_that_is_none_is_written_again(store: Store, how: str) -> None:
    first = tables(store)
    whole = {path: path.read_bytes() for path in files(store)}
    for (path, content), other in zip(whole.items(), reversed(whole.values())):
        changed = {
            "empty": b"",
            "cut": content[:-100],
            "flipped": content[:300] + bytes([content[300] ^ 1]) + content[301:],
            "text": b"no index at all",
            "of another task": other,
        }
        if how == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(changed[how])
    same(tables(store), first)
    if how != "folder":
        assert {path: path.read_bytes() for path in files(store)} == whole


def test_a_store_that_cannot_be_written_to_is_read_without(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "atomic_write", refuse)
    assert len(store.runs()) == 10 and len(store.episodes()) == 24
    assert not (store.root / ".index").exists()


def test_damage_after_a_record_was_indexed_is_noticed(store: Store) -> None:
    tables(store)
    marks = sorted((store.root / "runs/toy/toy--a/iql").glob("*.json"))
    parquet = parquet_of(
        store.path(spec(task="toy/b", method="bc", hparams={"bc": 1}, seed=1), "bc")
    )
    for path in (marks[0], parquet):
        content = path.read_bytes()
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.warns(DamagedRecord, match=marks[0].name):
        assert len(store.runs()) == 9
    with pytest.warns(DamagedRecord) as told:
        store.episodes()
    assert [path.name in str(w.message) for w, path in zip(told, (marks[0], parquet))] == [True] * 2


def test_states_say_what_became_of_every_run(store: Store) -> None:
    states = store.states("toy")
    assert tuple(states.columns) == STATES
    assert states["status"].value_counts().to_dict() == {"ok": 8, "failed": 1, "diverged": 1}
    failed = states[states["status"] == "failed"].iloc[0]
    assert (failed["attempts"], failed["seed"], failed["n_updates"]) == (3, 5, 100)
    assert states["attempts"].isna().sum() == 8
    assert store.states("other").empty and tuple(store.states("other").columns) == STATES


def test_a_column_that_no_record_has_is_refused_from_the_index_too(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="did you mean 'entry'"):
            store.runs(entri="bc")


values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.lists(st.integers(0, 3) | st.floats(0, 1), max_size=2).map(tuple)
)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), values), min_size=1, max_size=5))
def test_lines_come_back_as_pandas_has_them(lines: list[dict[str, Any]]) -> None:
    expected = pd.DataFrame(lines)
    encoded = _encoded([{**x, "@names": list(x)} for x in lines], list(map(str, lines)))
    frame = Lines(encoded, [""] * len(lines)).frame()
    assert list(frame.columns) == list(expected.columns)
    if len(frame.columns):
        pd.testing.assert_frame_equal(frame, expected)


# --- how much is looked at ------------------------------------------------------------------


def looked_at(monkeypatch: pytest.MonkeyPatch, store: Store, run: RunSpec) -> tuple[int, int]:
    """Folders listed and files asked about or opened by an append."""
    listed, asked = [], []
    with monkeypatch.context() as patch:
        for name, calls in (
            ("scandir", listed),
            ("listdir", listed),
            ("stat", asked),
            ("open", asked),
        ):
            original = getattr(os, name)
            patch.setattr(
                os,
                name,
                lambda *a, original=original, calls=calls, **k: (
                    calls.append(a),
                    original(*a, **k),
                )[1],
            )
        store.append(run, episodes(), provenance())
    return len(listed), len(asked)


def test_an_append_looks_at_no_other_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.append(spec(seed=0), episodes(), provenance())
    before = looked_at(monkeypatch, store, spec(seed=1))
    assert before[0] == 2 and before[1] > 0
    folder = store.path(spec(), "iql").parent
    for i in range(300):
        (folder / f"{i:016x}.json").write_text("{}")
        (folder.parent.with_name(f"task{i}") / "iql").mkdir(parents=True)
        (folder.parent.parent.with_name(f"suite{i}") / "task" / "iql").mkdir(parents=True)
    assert looked_at(monkeypatch, store, spec(seed=2)) == before
