"""Records: what names a run, what a store accepts, and what survives a crash."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from support.records import episodes, parquet_of, provenance, spec

from offbench.errors import UserError, nearest, unknown
from offbench.results.record import DamagedRecord, DamageError, load, read_episodes, seal
from offbench.results.schema import EPISODE_COLUMNS
from offbench.results.spec import Provenance, RunSpec
from offbench.results.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


# --- the name of a run ----------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(max_size=6), json_values, max_size=4)


def shuffled(value: Any) -> Any:
    """The same value spelt another way: reversed keys, tuples for lists."""
    if isinstance(value, dict):
        return OrderedDict((key, shuffled(value[key])) for key in reversed(value))
    return tuple(map(shuffled, value)) if isinstance(value, list) else value


@settings(deadline=None, max_examples=50)
@given(hparams=json_objects, env=json_objects, seed=st.integers(0, 10**9))
def test_a_run_survives_json_and_its_name_ignores_spelling(hparams, env, seed) -> None:
    run = spec(hparams=hparams, env=env, seed=seed)
    back = RunSpec(**json.loads(json.dumps(run.as_dict())))
    assert back == run
    assert back.as_dict() == run.as_dict()
    assert spec(hparams=shuffled(hparams), env=shuffled(env), seed=seed).run_id == run.run_id
    assert pickle.loads(pickle.dumps(run)) == run


def test_every_field_is_part_of_the_name() -> None:
    changes = {
        "suite": "other",
        "suite_version": 2,
        "task": "toy/other-v0",
        "dataset": "x",
        "dataset_sha256": "cd" * 32,
        "env": {"id": "Point-v0", "kwargs": {"size": 4}},
        "method": "bc",
        "hparams": {"lr": 1e-4},
        "pipeline": {},
        "n_updates": 101,
        "seed": 1,
        "protocol": {"episodes": 4},
    }
    assert set(changes) == set(spec().as_dict())
    names = {spec(**{name: value}).run_id for name, value in changes.items()}
    assert len(names | {spec().run_id}) == len(changes) + 1


def test_the_configuration_is_the_run_without_its_seed() -> None:
    assert spec(seed=1).config_id == spec(seed=2).config_id
    assert spec(hparams={"lr": 1.0}).config_id != spec().config_id


def test_a_name_does_not_change_with_the_version_of_the_code() -> None:
    assert spec().run_id == "c510132bcad14942"
    # of when names said what was monitored
    assert "10b8e4ebf76b44da" in spec().recorded_ids


def test_a_number_is_its_value_and_true_is_not_one() -> None:
    assert spec(hparams={"x": 1}).run_id == spec(hparams={"x": 1.0}).run_id
    assert spec(hparams={"x": 1e3}).run_id == spec(hparams={"x": 1000}).run_id
    assert spec(hparams={"x": 0.0}).run_id == spec(hparams={"x": -0.0}).run_id
    assert spec(hparams={"x": True}).run_id != spec(hparams={"x": 1}).run_id
    assert spec(hparams={"x": "1"}).run_id != spec(hparams={"x": 1}).run_id
    assert spec(hparams={"x": 0.1}).run_id != spec(hparams={"x": 0.1 + 2**-55}).run_id


def test_changing_the_callers_dict_does_not_change_the_run() -> None:
    hparams = {"net": {"hidden": [256]}}
    run = spec(hparams=hparams)
    hparams["net"]["hidden"].append(1)
    assert run.run_id == spec(hparams={"net": {"hidden": [256]}}).run_id


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "hparams.a.b"),
        (float("inf"), "finite"),
        (np.float32(1.0), "numpy.float32"),
        (np.zeros(2), "numpy.ndarray"),
        ({1, 2}, "set"),
        (b"x", "bytes"),
        ({1: 2}, "key 1"),
        ([0, {"c": object()}], r"hparams.a.b\[1\].c"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_field(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        spec(hparams={"a": {"b": value}})


@pytest.mark.parametrize(
    "change",
    [{"seed": -1}, {"seed": True}, {"seed": 1.0}, {"task": ""}, {"env": None}, {"suite": 3}],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        spec(**change)


def test_overridden_presets_and_sources_are_kept_and_give_no_columns(tmp_path: Path) -> None:
    how = "task preset, 2 settings overridden (lr, n_updates)"
    made = provenance(
        tuning={"how": how, "published_updates": 10}, sources={"method.lr": "suite s"}
    )
    store = Store(tmp_path)
    store.append(spec(), episodes(), made)
    assert store.read(spec().run_id).provenance.sources == {"method.lr": "suite s"}
    (line,) = store.runs().to_dict("records")
    assert line["tuning.how"] == how and line["tuning.published_updates"] == 10
    assert not [name for name in line if name.startswith("sources")]
    old = {k: v for k, v in provenance().as_dict().items() if k != "sources"}
    assert Provenance(**old).sources == {}  # a record from before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tuning": {"how": "default, 2 settings overridden (lr)"}}, "unknown tuning.how"),
        ({"tuning": {"how": "publish"}}, "did you mean 'published'"),
        ({"host": {"hostname": "x"}}, "host.hostname"),
        ({"created": "2026-01-02T03:04:05"}, "UTC"),
        ({"created": "2026-01-02T03:04:05+02:00"}, "UTC"),
        ({"pack": 0}, "pack"),
        ({"dirty": 1}, "dirty"),
        ({"wall_s": float("nan")}, "wall_s"),
    ],
)
def test_a_provenance_says_what_is_wrong_with_it(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        provenance(**change)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert nearest("iqll", ["bc", "iql"]) == "did you mean 'iql'? (choices: bc, iql)"
    assert nearest("IQL", ["bc", "iql"]).startswith("did you mean 'iql'?")
    assert nearest("zzz", []) == "there are no choices"
    assert "and 88 more" in nearest("x", range(100))
    assert isinstance(unknown("method", "a", ["b"]), ValueError)


# --- what goes in comes out -----------------------------------------------------------------


def test_episodes_come_back_as_they_went_in(store: Store) -> None:
    run = spec()
    monitor = episodes(2, update=50, stream="monitor")
    sent = pd.concat([episodes(success=[True, False, None]), monitor], ignore_index=True)
    store.append(run, sent, provenance())
    back = store.episodes()
    assert {name: str(kind) for name, kind in back.dtypes.items()} == dict(EPISODE_COLUMNS)
    key = ["stream", "update", "episode"]
    sent = sent.sort_values(key, ignore_index=True)
    for name in sent.columns.drop("success"):
        assert back[name].tolist() == sent[name].tolist(), name
    test = back[back["stream"] == "test"]
    assert test["success"].tolist()[:2] == [True, False]
    assert test["success"].isna().tolist() == [False, False, True]
    constant = {"run_id": run.run_id, "entry": "iql", "task": run.task, "method": "iql", "seed": 0}
    for name, value in constant.items():
        assert (back[name] == value).all()


def test_a_record_is_found_where_the_layout_says(store: Store) -> None:
    path = store.append(spec(), episodes(), provenance(entry="iql+aw"))
    folder = store.root / "runs" / "toy" / "toy--point-v0" / "iql+aw"
    assert path == folder / f"{spec().run_id}.json"
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".parquet"]
    parquet = parquet_of(path)
    digest = hashlib.sha256(parquet.read_bytes()).hexdigest()
    assert parquet == folder / f"{spec().run_id}.{digest[:8]}.parquet"
    assert len(pd.read_parquet(parquet)) == 3  # plain files, no offbench


def test_episodes_of_an_older_record_are_found_under_the_name_of_their_run(store: Store) -> None:
    path = store.append(spec(), episodes(), provenance())
    body = load(path)
    parquet_of(path).rename(path.with_suffix(".parquet"))
    about = {k: v for k, v in body["episodes"].items() if k != "file"}
    path.write_text(seal({**body, "episodes": about}))
    assert parquet_of(path) == path.with_suffix(".parquet")
    assert len(store.episodes()) == 3 and store.missing([spec()]) == []


@pytest.mark.parametrize("name", ["../other.parquet", "other.parquet", "/tmp/x.parquet"])
def test_a_record_names_no_file_outside_itself(store: Store, name: str) -> None:
    path = store.append(spec(), episodes(), provenance())
    body = load(path)
    path.write_text(seal({**body, "episodes": {**body["episodes"], "file": name}}))
    with pytest.raises(UserError, match=r"names .*parquet' as the file of its episodes"):
        parquet_of(path)


def test_an_entry_cannot_leave_its_folder(store: Store) -> None:
    for number, entry in enumerate(["../../up", "..", "a/b", ".hidden", "naïve (v2)"]):
        path = store.append(spec(seed=number), episodes(), provenance(entry=entry))
        assert path.parent.parent == store.root / "runs" / "toy" / "toy--point-v0"
    assert set(store.runs()["entry"]) == {"../../up", "..", "a/b", ".hidden", "naïve (v2)"}
    with pytest.raises(UserError, match="too long"):
        store.append(spec(seed=9), episodes(), provenance(entry="x" * 300))


def test_missing_is_what_is_not_recorded_once_each_in_order(store: Store) -> None:
    runs = [spec(seed=seed) for seed in range(4)]
    assert store.missing([*runs, runs[0]]) == runs
    store.append(runs[2], episodes(), provenance())
    assert store.missing(runs) == [runs[0], runs[1], runs[3]]
    assert store.whole(runs[2].run_id)
    assert not store.whole(runs[0].run_id)
    assert store.missing([spec(seed=2, hparams={"lr": 1.0})]) != []


def test_runs_are_one_flat_line_each(store: Store) -> None:
    store.append(spec(), episodes(), provenance(overrides={"lr": 3e-4}))
    store.append(spec(seed=1, method="bc", hparams={}), episodes(), provenance(entry="bc"))
    runs = store.runs().set_index("entry")
    line = runs.loc["iql"]
    assert line["run_id"] == spec().run_id
    assert line["config_id"] == spec().config_id
    assert (line["hparams.lr"], line["hparams.hidden"]) == (3e-4, (256, 256))
    assert (line["env.kwargs.size"], line["versions.torch"], line["rows"]) == (3, "2.13.0", 3)
    assert (line["tuning.how"], line["status"], line["reason"]) == ("published", "ok", None)
    assert np.isnan(runs.loc["bc", "hparams.lr"])


def test_records_are_selected_by_value_or_collection(store: Store) -> None:
    for seed in range(3):
        store.append(spec(seed=seed), episodes(), provenance())
        store.append(spec(seed=seed, task="toy/b", method="bc"), episodes(), provenance(entry="bc"))
    assert len(store.runs()) == 6
    assert len(store.runs(task="toy/b")) == 3
    assert len(store.runs(task=["toy/b", "toy/none"], seed=[0, 2])) == 2
    assert len(store.runs(**{"hparams.hidden": (256, 256), "hparams.lr": 3e-4})) == 6
    assert store.episodes(entry="bc", seed=1)["run_id"].nunique() == 1
    assert len(store.episodes(stream="monitor")) == 0
    assert len(store.episodes(stream="test", episode=[0, 1])) == 12
    assert len(store.runs(run_id=spec().run_id)) == 1
    assert store.runs(task="toy/none").empty
    with pytest.raises(UserError, match="did you mean 'entry'"):
        store.runs(entri="bc")


def watched(*monitor_at: float) -> RunSpec:
    return spec(
        protocol={"episodes": 3, "monitor_at": monitor_at, "monitor_episodes": len(monitor_at)}
    )


def test_what_is_monitored_is_recorded_and_changes_no_name(store: Store) -> None:
    plain, often = watched(), watched(0.2, 0.5)
    assert plain == often and plain.config_id == often.config_id
    assert often.as_dict()["protocol"]["monitor_at"] == [0.2, 0.5]
    # the name of a run that nothing watched is the one that it always had
    assert plain.run_id == "304079c552f5db17"
    assert spec(protocol={"episodes": 4, "monitor_at": []}) != spec(
        protocol={"episodes": 3, "monitor_at": []}
    )
    store.append(plain, episodes(), provenance())
    assert store.missing([often]) == []


@pytest.mark.parametrize("monitor_at", [(0.2, 0.5), (0.8, 0.9)])
def test_a_record_that_was_named_with_what_is_monitored_still_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch, monitor_at: tuple[float, ...]
) -> None:
    protocol = {"episodes": 3, "monitor_at": monitor_at, "monitor_episodes": 50}
    earlier, now = spec(protocol=protocol), spec(protocol=protocol | {"monitor_at": [0.2, 0.5]})
    with monkeypatch.context() as patch:
        patch.setattr("offbench.results.identity.unmonitored", dict)
        path = store.append(earlier, episodes(), provenance())
    assert path.stem == spec(protocol=protocol).recorded_ids[1] != now.run_id
    assert store.missing([now]) == [] and len(store.episodes()) == 3
    # seeds of before and after are repetitions of one configuration
    assert store.runs()["config_id"][0] == now.config_id
    # both, of a folder where it had been run either way
    store.append(now, episodes(), provenance())
    assert store.missing([now]) == [] and len(store.runs()) == 2


def test_an_empty_store_has_empty_tables_with_their_columns(store: Store) -> None:
    assert list(store.episodes().columns) == list(EPISODE_COLUMNS)
    assert {name: str(kind) for name, kind in store.episodes().dtypes.items()} == EPISODE_COLUMNS
    assert store.runs().empty
    assert "run_id" in store.runs()
    assert not store.root.exists()


def test_a_record_is_read_back_whole(store: Store) -> None:
    curves = {"update": [0, 50], "loss": [1.5, float("nan")]}
    store.append(spec(), episodes(), provenance(), curves)
    record = store.read(spec().run_id)
    assert record.spec == spec()
    assert record.provenance == provenance()
    assert record.metrics is not None
    assert record.metrics["loss"].isna().tolist() == [False, True]
    with pytest.raises(UserError, match="no record"):
        store.read("0" * 16)


# --- what a store refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (episodes(update=99), r"test episodes at update 99.*last update \(100\)"),
        (pd.concat([episodes(), episodes(1, update=50)]), "test episodes at update 50"),
        (pd.concat([episodes(), episodes(1, update=101, stream="tune")]), "update 101 of a run"),
        (episodes(2), "2 test episodes, the protocol has 3"),
        (episodes(4), "4 test episodes, the protocol has 3"),
        (episodes(episode=[0, 1, 1]), "test episode 1 at update 100 occurs twice"),
        (episodes(seed=1), "seed is .*1.* in a run whose seed is 0"),
        (episodes(task="toy/b"), "task is 'toy/b'"),
        (episodes(**{"return": [0.0, np.nan, 1.0]}), "return is not finite"),
        (episodes(**{"return": [0.0, np.inf, 1.0]}), "return is not finite"),
        (episodes(score=np.nan), "score is not finite"),
        (episodes(stream="tests"), "did you mean 'test'"),
        (episodes(length=0), "no steps"),
        (episodes(length=1.5), "wrong type"),
        (episodes(terminated=1), "'terminated' is not true or false"),
        (episodes(success=0.5), "'success' is not true or false"),
        (episodes().drop(columns=["score", "length"]), "no column score, length"),
        (episodes().rename(columns={"score": "scores"}), "did you mean 'score'"),
    ],
)
def test_rows_that_are_not_this_runs_are_refused(
    store: Store, frame: pd.DataFrame, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        store.append(spec(), frame, provenance())
    assert not store.whole(spec().run_id)


def test_a_protocol_without_a_number_of_episodes_is_refused(store: Store) -> None:
    for wanted in (None, True, 0, "3"):
        with pytest.raises(UserError, match=r"protocol\.episodes"):
            store.append(spec(protocol={"episodes": wanted}), episodes(), provenance())


def test_curves_of_different_lengths_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="update 2, loss 1"):
        store.append(spec(), episodes(), provenance(), {"update": [0, 1], "loss": [1.0]})


def test_a_whole_record_is_never_overwritten(store: Store) -> None:
    path = store.append(spec(), episodes(), provenance())
    before = path.read_bytes()
    for entry in ("iql", "another label"):
        with pytest.raises(UserError, match="recorded already"):
            store.append(spec(), episodes(score=1.0), provenance(entry=entry))
        with pytest.raises(UserError, match="recorded already"):
            store.fail(spec(), "too late", provenance(entry=entry))
    assert path.read_bytes() == before
    assert store.episodes()["score"].tolist() == [0.0, 50.0, 100.0]


def test_a_failure_is_kept_until_something_replaces_it(store: Store) -> None:
    run = spec()
    store.fail(run, "out of memory", provenance())
    assert store.missing([run]) == [run]
    assert store.missing([run], count_failed=True) == []
    assert not store.whole(run.run_id)
    assert store.episodes().empty
    store.fail(run, "loss is not finite", provenance(), status="diverged")
    line = store.runs().iloc[0]
    assert (line["status"], line["reason"], line["rows"]) == ("diverged", "loss is not finite", 0)
    store.append(run, episodes(), provenance(entry="iql (retry)"))
    assert store.runs()["status"].tolist() == ["ok"]
    assert len(list(store.root.rglob("*.json"))) == 1
    with pytest.raises(UserError, match="choices: diverged, failed"):
        store.fail(spec(seed=1), "", provenance(), status="ok")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="choices: error, infrastructure, user"):
        store.fail(spec(seed=1), "", provenance(), kind="bad luck")  # type: ignore[arg-type]


def test_a_failure_says_whose_it_is_how_often_it_was_tried_and_where(store: Store) -> None:
    run, text = spec(), "Traceback (most recent call last):\n  line 1, über alles\n"
    path = store.fail(run, "no room", provenance(), kind="infrastructure", traceback=text)
    kept = path.with_suffix(".traceback.txt")
    assert store.read(run.run_id).failure == ("infrastructure", 1, kept)
    assert kept.read_text(encoding="utf-8") == text
    about = json.loads(path.read_text())["failure"]
    assert {k: about[k] for k in ("kind", "attempts", "traceback")} == {
        "kind": "infrastructure",
        "attempts": 1,
        "traceback": kept.name,
    }
    # a later failure takes its place, and so does a success, under another label too
    store.fail(run, "no room", provenance(), attempts=2)
    assert store.read(run.run_id).failure == ("error", 2, None) and not kept.exists()
    store.fail(run, "no room", provenance(), attempts=3, traceback=text)
    store.append(run, episodes(), provenance(entry="iql (retry)"))
    assert store.read(run.run_id).failure is None
    assert not kept.exists() and len(list(store.root.rglob("*.json"))) == 1
    # columns of all records stay what they were
    assert not [name for name in store.runs() if "failure" in name or "attempts" in name]


def test_a_failure_of_an_older_record_is_an_error_that_was_tried_once(store: Store) -> None:
    path = store.fail(spec(), "diverged", provenance(), status="diverged")
    path.write_text(seal({k: v for k, v in load(path).items() if k != "failure"}))
    assert store.read(spec().run_id).failure == ("error", 1, None)


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/results"):
        Store(tmp_path / "file" / "results").check_writable()
    store = Store(tmp_path / "results")
    store.check_writable()
    store.check_writable()
    assert list((store.root / "runs").iterdir()) == []

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("offbench.results.commit.atomic_write", refuse)
    monkeypatch.setattr("offbench.results.store.finished_file", refuse)
    with pytest.raises(UserError, match="results: Permission denied"):
        store.check_writable()
    with pytest.raises(UserError, match="Permission denied"):
        store.append(spec(), episodes(), provenance())


# --- damage and crashes ---------------------------------------------------------------------


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "one bit":
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "emptied", "one bit"])
def test_a_damaged_mark_is_left_out_and_its_run_is_not_run_again(store: Store, how: str) -> None:
    path = store.append(spec(), episodes(), provenance())
    store.append(other := spec(seed=1), episodes(), provenance())
    damaged(path, how)
    words = f"damaged record: .*{path.name} is truncated.*verify --repair results={store.root}"
    for read in (store.runs, store.states, store.episodes, lambda: store.missing([spec()])):
        with pytest.warns(DamagedRecord, match=words) as told:
            found = read()
        assert len(told) == 1
        # nothing is missing, and of the others nothing is lost
        assert found == [] if isinstance(found, list) else set(found["run_id"]) == {other.run_id}
    assert not store.whole(spec().run_id)
    for refuse in (
        lambda: store.read(spec().run_id),
        lambda: store.append(spec(), episodes(), provenance()),
        lambda: store.fail(spec(), "too late", provenance()),
    ):
        with pytest.raises(UserError, match=f"damaged record: .*{path.name}"):
            refuse()
    assert len(list(store.root.rglob("*.parquet"))) == 2


@pytest.mark.parametrize("how", ["truncated", "emptied", "one bit", "deleted"])
def test_damaged_episodes_are_left_out_with_a_warning_that_names_their_file(
    store: Store, how: str
) -> None:
    path = parquet_of(store.append(spec(), episodes(), provenance()))
    store.append(spec(seed=1), episodes(), provenance())
    damaged(path, how)
    with pytest.warns(DamagedRecord, match=f"damaged record: .*{path.name}"):
        assert set(store.episodes()["seed"]) == {1}
    assert store.missing([spec()]) == [] and len(store.runs()) == 2


def test_a_record_moved_to_another_name_is_damaged(store: Store) -> None:
    path = store.append(spec(), episodes(), provenance())
    path.rename(path.with_stem("0" * 16))
    with pytest.warns(DamagedRecord, match=f"record of run {spec().run_id}"):
        assert store.runs().empty


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a record, by name."""
    store = Store(tmp_path_factory.mktemp("whole"))
    curves = {"update": [0.0, 50.0], "loss": [1.5, 0.5]}
    path = store.append(spec(), episodes(), provenance(), curves)
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_flip_of_any_byte_of_a_record_is_noticed(
    whole: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole)))
    place = data.draw(st.integers(0, len(whole[name]) - 1))
    mask = data.draw(st.integers(1, 255))
    # a folder for each, as a file that is as old and as long as another is taken for it
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for file, content in whole.items():
        flipped = bytearray(content)
        if file == name:
            flipped[place] ^= mask
        (folder / file).write_bytes(flipped)
    mark = folder / f"{spec().run_id}.json"
    with pytest.raises(DamageError, match=f"damaged record: .*{name}"):
        read_episodes(mark, load(mark)["episodes"])


def test_a_line_feed_that_became_a_carriage_return_is_noticed(store: Store) -> None:
    path = store.append(spec(), episodes(), provenance())
    content = path.read_bytes()
    for place in (i for i, byte in enumerate(content) if byte == 0x0A):
        other = path.with_stem(f"{place}")
        other.write_bytes(content[:place] + b"\r" + content[place + 1 :])
        with pytest.raises(DamageError, match="is truncated or was edited"):
            load(other)


class Crash(BaseException):
    """Not an Exception: nothing may catch it and carry on."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Makes the step-th system call that matters raise; returns the names of those made."""
    made: list[str] = []

    def guarded(name: str, call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if len(made) == step:
                raise Crash(name)
            made.append(name)
            return call(*args, **kwargs)

        return run

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))
    return made


@pytest.mark.parametrize("after_failure", [False, True])
def test_a_crash_at_any_step_leaves_a_whole_record_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_failure: bool
) -> None:
    outcomes = []
    for step in range(20):
        store = Store(tmp_path / str(step))
        if after_failure:
            store.fail(spec(), "first try", provenance())
        with monkeypatch.context() as patch:
            made = crash_at(patch, step)
            try:
                store.append(spec(), episodes(), provenance())
                crashed = False
            except Crash:
                crashed = True
        whole = store.whole(spec().run_id)
        assert len(store.episodes()) == (3 if whole else 0)
        assert (store.missing([spec()]) == []) == whole
        assert store.runs()["status"].tolist() == (
            ["ok"] if whole else ["failed"] if after_failure else []
        )
        if not whole:
            store.append(spec(), episodes(), provenance())
        assert len(store.episodes()) == 3
        assert list(store.root.rglob("*.tmp*")) == []
        outcomes.append(whole)
        if not crashed:
            break
    last = "replace" if after_failure else "link"
    assert made == ["fsync", "replace", "fsync", "fsync", "link", last, "fsync"]
    assert outcomes == [False] * 6 + [True] * 2


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = f"""
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from offbench.errors import UserError
from offbench.results.store import Store
from support.records import episodes, provenance, spec
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_nothing_that_counts_and_no_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = run_python(
        """
        link = os.link
        def kill_at_the_mark(a, b):
            if b.suffix == ".json":
                os.kill(os.getpid(), signal.SIGKILL)
            link(a, b)
        os.link = kill_at_the_mark
        Store(sys.argv[1]).append(spec(), episodes(), provenance())
        """,
        store.root,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list(store.root.rglob("*.parquet"))) == 1  # it had got that far
    assert store.missing([spec()]) == [spec()]
    assert store.episodes().empty
    assert store.runs().empty
    assert len(list(store.root.rglob(".*.hold"))) == 1
    monkeypatch.setattr("offbench.results.commit.HELD_S", 0.2)
    store.append(spec(), episodes(), provenance())
    assert len(store.episodes()) == 3
    assert [p.name for p in store.root.rglob(".*") if p.suffix != ".json"] == []


def test_a_run_on_data_that_are_not_known_is_planned_and_not_recorded(store: Store) -> None:
    run = spec(dataset_sha256=None)
    assert run.run_id != spec().run_id
    with pytest.raises(UserError, match="dataset_sha256 is not known"):
        store.append(run, episodes(), provenance())
    assert store.runs().empty


def test_a_record_of_a_later_format_is_not_guessed_at(store: Store, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("offbench.results.store.FORMAT", 2)
        store.append(spec(), episodes(), provenance())
    with pytest.raises(UserError, match="format 2"):
        store.runs()


def test_a_provenance_is_a_value() -> None:
    assert provenance() == provenance()
    assert replace(provenance(), pack=3).pack == 3


@pytest.mark.parametrize("since", [0, 1, 4])
def test_rows_of_older_records_are_read_without_what_was_not_kept_then(
    store: Store, since: int
) -> None:
    """First plans were not counted, then nothing was said of values, then of goals; the records stay as they are."""
    later = ["plans", "chunk_lengths", "start_value", "discounted_return", "task_id"]
    path = store.append(spec(), episodes(), provenance())
    table = pq.read_table(parquet_of(path))
    assert all(table[name].null_count == len(table) for name in later)  # not said: not known
    old = path.with_suffix(".parquet")
    pq.write_table(table.drop_columns(later[since:]), old)
    payload = old.read_bytes()
    about = {"sha256": hashlib.sha256(payload).hexdigest(), "rows": len(table)}
    assert read_episodes(old, about).equals(table)


def test_plans_and_values_come_back_as_sent(store: Store) -> None:
    sent = episodes()
    n = list(range(1, len(sent) + 1))
    sent["plans"] = pd.array(n, "Int64")
    sent["chunk_lengths"] = [[0, i] for i in n]
    sent["start_value"] = pd.array([None, *(-0.1 * i for i in n[1:])], "Float64")
    store.append(spec(), sent, provenance())
    found = store.episodes().sort_values("plans")
    assert found["plans"].tolist() == n
    assert [list(x) for x in found["chunk_lengths"]] == [[0, i] for i in n]
    assert found["start_value"].isna().tolist() == [True] + [False] * (len(n) - 1)
    assert found["start_value"][1:].tolist() == [-0.1 * i for i in n[1:]]
    assert found["discounted_return"].isna().all()
    assert found.dtypes[["start_value", "discounted_return"]].tolist() == [pd.Float64Dtype()] * 2


def test_a_record_with_dotted_targets_is_the_same_run_by_name():
    """The first records had dotted paths of the package where names are now; their ids are kept."""
    common = {
        "suite": "s",
        "suite_version": 1,
        "task": "t",
        "dataset": "d",
        "dataset_sha256": "0" * 64,
        "env": {"id": "E"},
        "method": "iql",
        "hparams": {},
        "n_updates": 10,
        "seed": 0,
        "protocol": {"episodes": 5},
    }
    old = {
        "view": {"target": "offbench.views.NStep", "n": 3},
        "sampler": {"target": "offbench.sampling.advantage_weights", "temperature": 0.1},
        "weight": {"target": "offbench.weighting.DensityWeights", "lr": 1},
    }
    new = {
        "view": {"name": "nstep", "n": 3},
        "sampler": {"name": "aw", "temperature": 0.1},
        "weight": {"name": "dw", "lr": 1},
    }
    a, b = RunSpec(**common, pipeline=old), RunSpec(**common, pipeline=new)
    assert a.run_id == b.run_id and a.pipeline == b.pipeline
    outside = RunSpec(**common, pipeline={**new, "view": {"name": "mine.View", "n": 3}})
    assert outside.run_id != b.run_id and "offbench." not in str(b.as_dict())
    none = [
        RunSpec(**common, pipeline={"sampler": x}) for x in ({"target": None}, {"name": "uniform"})
    ]
    assert none[0].run_id == none[1].run_id
