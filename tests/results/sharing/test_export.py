"""`offbench results export`: one table of all episodes; and what pandas reads of a store directly."""

import io
import json

import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.records import episodes, provenance, spec
from support.stores import fill, flip

from offbench.errors import UserError
from offbench.results.schema import EPISODE_COLUMNS
from offbench.results.sharing.export import SCHEMA, export


@pytest.fixture
def store(tmp_path):
    store = fill(tmp_path / "results", failed=[1])
    lengths = [[1, 2], None, [7]]
    rows = episodes(chunk_lengths=pd.Series(lengths, dtype=object), start_value=[1.5, np.nan, 2.0])
    store.append(spec(seed=7, task="toy/other-v0"), rows, provenance(entry="iql+x"), remark="slow")
    return store


def test_a_table_has_a_row_per_episode_with_the_columns_of_its_run(store, tmp_path):
    path = tmp_path / "all.parquet"
    assert export(store.root, str(path), {}) == (3, 9, [])
    frame = pd.read_parquet(path)
    assert list(frame) == SCHEMA.names and len(frame) == 9
    own = store.episodes().sort_values(["run_id", "episode"], ignore_index=True)
    there = frame.sort_values(["run_id", "episode"], ignore_index=True)
    for name in EPISODE_COLUMNS:
        if name != "chunk_lengths":
            same = own[name].astype("string").fillna("") == there[name].astype("string").fillna("")
            assert same.all() or name in ("start_value", "discounted_return"), name
    line = frame[frame["entry"] == "iql+x"].iloc[0]
    assert json.loads(line["hparams"])["hidden"] == [256, 256]
    assert (line["commit"], line["remark"], line["suite_version"]) == ("c" * 40, "slow", 1)
    assert line["config_id"] == spec(seed=7, task="toy/other-v0").config_id
    assert list(line["chunk_lengths"]) == [1, 2] and line["start_value"] == 1.5


def test_a_csv_has_the_same_rows(store, tmp_path):
    export(store.root, str(tmp_path / "all.parquet"), {})
    export(store.root, str(tmp_path / "all.csv"), {})
    one, two = pd.read_parquet(tmp_path / "all.parquet"), pd.read_csv(tmp_path / "all.csv")
    assert list(one) == list(two) and (one["score"] == two["score"]).all()
    assert (one["hparams"] == two["hparams"]).all()
    texts = two.loc[two["entry"] == "iql+x", "chunk_lengths"].tolist()
    assert texts[0] == "[1, 2]" and pd.isna(texts[1])


@pytest.mark.parametrize(
    ("where", "n"),
    [
        ({"suite": ["toy"]}, 3),
        ({"entry": ["iql"]}, 1),
        ({"entry": ["iql", "bc"]}, 2),
        ({"task": ["toy/other-v0"]}, 1),
        ({"seed": [0], "entry": ["bc"]}, 1),
    ],
)
def test_settings_choose_runs(store, tmp_path, where, n):
    assert export(store.root, str(tmp_path / "x.parquet"), where)[0] == n


def test_what_is_not_recorded_is_refused_and_nothing_written(store, tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(UserError, match="unknown entry 'iqll': did you mean 'iql'"):
        export(store.root, str(path), {"entry": ["iqll"]})
    with pytest.raises(UserError, match="nothing recorded"):
        export(store.root, str(path), {"entry": ["bc"], "task": ["toy/other-v0"]})
    with pytest.raises(UserError, match=r"ends neither in \.parquet nor in \.csv"):
        export(store.root, str(tmp_path / "x.xlsx"), {})
    with pytest.raises(UserError, match="cannot write"):
        export(store.root, "/proc/nowhere/x.csv", {})
    assert not list(tmp_path.glob("*x.*"))


def test_a_url_is_opened_by_fsspec(store):
    export(store.root, "memory://bucket/all.parquet", {})
    content = fsspec.filesystem("memory").cat("bucket/all.parquet")
    assert pq.read_table(io.BytesIO(content)).schema.equals(SCHEMA)
    export(store.root, "memory://bucket/all.csv", {"entry": ["bc"]})
    assert fsspec.filesystem("memory").cat("bucket/all.csv").count(b"\n") == 4


def test_a_driver_or_a_protocol_that_is_not_there_is_one_line(store, monkeypatch):
    def missing(url, mode):
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(UserError, match=r"cannot write nope://b/x\.csv: Protocol not known: nope"):
        export(store.root, "nope://b/x.csv", {})
    monkeypatch.setattr(fsspec, "open", missing)
    with pytest.raises(UserError, match=r"cannot write s3://b/x\.csv: Install s3fs to access S3"):
        export(store.root, "s3://b/x.csv", {})


def test_a_damaged_record_is_named_and_left_out(store, tmp_path):
    path = next(store.root.rglob("*.parquet"))
    flip(path, 60, 1)
    runs, rows, damaged = export(store.root, str(tmp_path / "x.parquet"), {})
    assert (runs, rows) == (2, 6) and damaged == [f"{path} is truncated or was edited"]


def test_many_runs_are_several_row_groups_of_one_table(store, tmp_path, monkeypatch):
    monkeypatch.setattr("offbench.results.sharing.export._GROUP", 2)
    export(store.root, str(tmp_path / "x.parquet"), {})
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups == 2 and file.metadata.num_rows == 9


def test_pandas_and_pyarrow_read_a_store_directly(store, tmp_path):
    """As docs/sharing.md says."""
    files = [str(path) for path in (store.root / "runs").rglob("*.parquet")]
    frame = pd.concat(map(pd.read_parquet, files))
    assert len(frame) == 9 and set(frame["entry"]) == {"iql", "bc", "iql+x"}
    table = ds.dataset(files, format="parquet").to_table(filter=ds.field("entry") == "bc")
    assert table.num_rows == 3
