"""`offbench results verify`: every damaged file of a store is named, and put aside on request."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import episodes, provenance, spec
from support.stores import contents, fill, flip, keep

from offbench.errors import UserError
from offbench.results.record import seal, unsealed
from offbench.results.sharing.files import scan
from offbench.results.sharing.verify import verify
from offbench.results.store import Store


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path / "results", failed=[1], kept=[0])


def rewrite(mark, **changes):
    """Another content of a json, sealed as if it were right."""
    mark.write_text(seal(unsealed(mark.read_bytes()) | changes))


def test_a_whole_store_has_no_faults(store):
    found = verify(store.root)
    assert (found.whole, found.failed, found.damaged) == (2, 2, 0)
    assert not found.faults and not found.orphans


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("whole") / "results", entries=["iql"], failed=[1], kept=[0])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_found_and_its_file_named(whole, data):
    names = list(contents(whole.root))
    path = whole.root / data.draw(st.sampled_from(names))
    before = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255)))
    try:
        assert path in {fault.path for fault in verify(whole.root).faults}
    finally:
        path.write_bytes(before)
    assert not verify(whole.root).faults


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_file_that_is_cut_off_or_added_to_is_found(whole, data):
    path = whole.root / data.draw(st.sampled_from(list(contents(whole.root))))
    before = path.read_bytes()
    path.write_bytes(
        data.draw(st.sampled_from([before[:-1], before[: len(before) // 2], b"", before + b" "]))
    )
    try:
        assert path in {fault.path for fault in verify(whole.root).faults}
    finally:
        path.write_bytes(before)


def test_a_missing_parquet_is_named(store):
    path = next(store.root.rglob("*.parquet"))
    path.unlink()
    (fault,) = verify(store.root).faults
    assert fault.path == path and "No such file" in fault.what


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_id": "0" * 16}, "is the record of run 0000000000000000"),
        ({"status": "good"}, "has status 'good'"),
        ({"episodes": None}, "has no episodes"),
        ({"provenance": {}}, "is no record"),
        ({"spec": None}, "is no record"),
        ({"spec": spec(seed=7).as_dict()}, "what it says was run is"),
        ({"provenance": provenance(entry="other").as_dict()}, "belongs into runs/toy/toy--point-v0/other"),
        ({"episodes": {"file": "../../x.parquet", "rows": 3, "sha256": "0"}}, "names '../../x.parquet'"),
        ({"episodes": 5}, "is no record"),
        ({"run_id": "a\n::error::\x1b[2J"}, "is the record of run a?::error::?[2J"),
    ],
)  # fmt: skip
def test_a_json_that_contradicts_itself_is_damaged_though_its_checksum_is_right(
    store, changes, words
):
    mark = next(f.mark for f in scan(store.root) if store.whole(f.run_id))
    rewrite(mark, **changes)
    (fault,) = verify(store.root).faults
    assert fault.path == mark and words in fault.what


def test_a_json_of_a_later_format_is_checked_by_its_checksums_alone(store):
    mark = next(f.mark for f in scan(store.root) if store.whole(f.run_id))
    rewrite(mark, format=99, spec={"all": "new"})
    assert not verify(store.root).faults
    flip(next(mark.parent.glob(f"{mark.stem}*.parquet")), 40, 1)
    assert len(verify(store.root).faults) == 1


def test_a_later_version_may_say_more_of_how_a_result_came_to_be(store):
    mark = next(f.mark for f in scan(store.root) if store.whole(f.run_id))
    rewrite(mark, provenance=unsealed(mark.read_bytes())["provenance"] | {"more": {"a": 1}})
    assert not verify(store.root).faults


def test_a_run_that_is_recorded_twice_is_named(store, tmp_path):
    run = spec(method="iql", seed=0)
    other = Store(tmp_path / "other")
    other.append(run, episodes(), provenance(entry="again"))
    shutil.copytree(other.root / "runs", store.root / "runs", dirs_exist_ok=True)
    (fault,) = verify(store.root).faults
    assert "second record of its run" in fault.what


def test_a_traceback_that_was_edited_is_named_and_its_record_stays(tmp_path):
    store = Store(tmp_path / "results")
    mark = store.fail(
        spec(), "RuntimeError: x", provenance(), traceback="Traceback\nRuntimeError: x"
    )
    assert not verify(store.root).faults and not verify(store.root).orphans
    path = mark.with_suffix(".traceback.txt")
    flip(path, 3, 1)
    found = verify(store.root, repair=True)
    assert list(found.moved) == [path] and found.failed == 1 and not verify(store.root).faults


def test_files_of_no_record_are_named_and_no_damage(store):
    folder = store.path(spec(), "iql").parent
    lost = [folder / f"{'1' * 16}.parquet", folder / ".x.0123abcd.tmp.json", folder / "notes.txt"]
    for path in lost:
        path.write_bytes(b"x")
    found = verify(store.root)
    assert set(found.orphans) == set(lost) and not found.faults


def test_repair_puts_damaged_records_aside_and_their_runs_are_missing(store):
    run = spec(method="iql", seed=0)
    mark = store.path(run, "iql")
    before = contents(store.root)
    parquet = next(mark.parent.glob(f"{mark.stem}*.parquet"))
    flip(parquet, 50, 4)
    damaged = parquet.read_bytes()
    found = verify(store.root, repair=True)
    assert found.damaged == 1 and found.moved[parquet].read_bytes() == damaged
    assert found.moved[parquet].is_relative_to(store.root / "damaged")
    gone = before.keys() - contents(store.root).keys()
    assert {name.rpartition("/")[2].split(".")[0] for name in gone} == {run.run_id}
    assert len(gone) == len(found.moved) == 3
    again = verify(store.root)
    assert not again.faults and not again.orphans
    assert store.missing([run, spec(method="bc", seed=0)]) == [run]
    # and once more: the names are kept apart
    store.append(run, episodes(), provenance(entry="iql"))
    flip(mark, 10, 1)
    moved = verify(store.root, repair=True).moved
    assert (
        moved[mark].name == f"{mark.name}.1"
        and len(list((store.root / "damaged").rglob("*.json*"))) == 2
    )


def test_a_damaged_policy_goes_alone(store):
    run = spec(method="iql", seed=0)
    policy = store.path(run, "iql").with_suffix(".safetensors")
    flip(policy, -1, 1)
    found = verify(store.root, repair=True)
    assert found.damaged == 0 and list(found.moved) == [policy]
    assert store.whole(run.run_id) and not verify(store.root).faults


def test_a_policy_of_another_run_is_named(store):
    path = keep(store.path(spec(method="iql", seed=0), "iql"), spec(method="iql", seed=5))
    (fault,) = verify(store.root).faults
    assert fault.path == path and "is the policy of run" in fault.what


def test_a_policy_whose_checksum_is_none_is_named(store):
    """One changed byte must not turn it into one of before there were checksums."""
    path = store.path(spec(method="iql", seed=0), "iql").with_suffix(".safetensors")
    whole = path.read_bytes()
    at = whole.index(b'"sha256":"')
    for place in (at + 3, at + 12):
        changed = bytearray(whole)
        changed[place] ^= 0x40
        path.write_bytes(changed)
        (fault,) = verify(store.root).faults
        assert fault.path == path


def test_a_policy_from_before_there_were_checksums_is_whole(store):
    path = store.path(spec(method="iql", seed=0), "iql").with_suffix(".safetensors")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    del header["__metadata__"]["sha256"]
    text = json.dumps(header).encode()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert not verify(store.root).faults


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(UserError, match="is no results folder"):
        verify(tmp_path)
