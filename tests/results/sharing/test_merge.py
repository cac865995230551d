"""`offbench results merge`: whole records are taken over once, damaged ones and conflicts are named."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import episodes, provenance, spec
from support.stores import contents, fill, flip

from offbench.errors import UserError
from offbench.results.record import seal, unsealed
from offbench.results.sharing import merge as sharing_merge
from offbench.results.sharing.files import scan
from offbench.results.sharing.merge import merge
from offbench.results.sharing.verify import verify
from offbench.results.store import Store


def test_records_come_along_with_their_policies_byte_for_byte(tmp_path):
    source = fill(tmp_path / "a", failed=[1], kept=[0])
    found = merge([source.root], tmp_path / "new")
    assert (found.taken, found.skipped) == (4, 0) and not found.damaged + found.conflicts
    assert contents(tmp_path / "new") == contents(source.root)
    assert len(Store(tmp_path / "new").episodes()) == 6


def test_policies_are_left_on_request(tmp_path):
    source = fill(tmp_path / "a", kept=[0])
    merge([source.root], tmp_path / "new", policies=False)
    assert not list((tmp_path / "new").rglob("*.safetensors"))
    assert not verify(tmp_path / "new").faults


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The files of six records: four whole ones, and two of runs that failed."""
    store = fill(tmp_path_factory.mktemp("all") / "results", seeds=[0, 1, 2], failed=[2], kept=[1])
    return store.root, [files.paths for files in scan(store.root)]


chosen = st.sets(st.integers(0, 5), min_size=1)


@settings(max_examples=5, deadline=None)
@given(a=chosen, b=chosen)
def test_merging_is_idempotent_and_commutes_without_conflicts(a, b, records, tmp_path_factory):
    folder, (root, files) = tmp_path_factory.mktemp("merge"), records
    for name, runs in (("a", a), ("b", b)):
        for path in (path for run in runs for path in files[run]):
            target = folder / name / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    sources = [folder / "a", folder / "b"]
    first = merge(sources, folder / "ab")
    merge([sources[1]], folder / "ba")
    merge([sources[0]], folder / "ba")
    whole = contents(folder / "ab")
    assert whole == contents(folder / "ba") and first.taken == len({*a, *b})
    again = merge(sources, folder / "ab")
    assert again.taken == 0 and again.skipped == len(a) + len(b) and not again.conflicts
    assert contents(folder / "ab") == whole


def test_other_episodes_of_the_same_run_are_a_conflict_and_ours_stay(tmp_path):
    ours, theirs = fill(tmp_path / "a"), fill(tmp_path / "b", shift=1.0)
    before = contents(ours.root)
    found = merge([theirs.root], ours.root)
    assert len(found.conflicts) == 4 and not found.taken and not found.skipped
    assert spec(method="iql").run_id in " ".join(found.conflicts)
    assert contents(ours.root) == before


def test_the_same_run_with_another_label_or_another_time_is_there_already(tmp_path):
    ours, theirs = Store(tmp_path / "a"), Store(tmp_path / "b")
    ours.append(spec(), episodes(), provenance())
    theirs.append(spec(), episodes(), provenance(entry="mine", wall_s=3.0))
    found = merge([theirs.root], ours.root)
    assert found.skipped == 1 and not found.conflicts and len(ours.records()) == 1


def test_a_run_under_the_name_of_earlier_records_is_the_same(tmp_path):
    ours, theirs = fill(tmp_path / "a", entries=["iql"], seeds=[0]), fill(tmp_path / "b", seeds=[0])
    run = spec(method="iql", seed=0)
    old = run.recorded_ids[1]
    (mark,) = ours.records()
    body = unsealed(mark.read_bytes())
    for path in list(mark.parent.iterdir()):
        path.rename(path.with_name(path.name.replace(run.run_id, old)))
    body["episodes"].pop("file", None)
    next(mark.parent.glob("*.parquet")).rename(mark.parent / f"{old}.parquet")
    (mark.parent / f"{old}.json").write_text(seal(body | {"run_id": old}))
    assert not verify(ours.root).faults
    found = merge([theirs.root], ours.root)
    assert (found.taken, found.skipped) == (1, 1)


def test_a_failure_gives_way_to_a_whole_record_and_never_replaces_one(tmp_path):
    failed = fill(tmp_path / "failed", failed=[0, 1])
    whole = fill(tmp_path / "whole")
    before = contents(whole.root)
    assert merge([failed.root], whole.root).skipped == 4
    assert contents(whole.root) == before
    assert any(failed.root.rglob("*.traceback.txt"))
    assert merge([whole.root], failed.root).taken == 4
    assert contents(failed.root) == before
    assert len(failed.episodes()) == 12


def test_a_failure_under_another_label_goes_when_the_run_is_taken_over(tmp_path):
    ours, theirs = Store(tmp_path / "a"), Store(tmp_path / "b")
    ours.fail(spec(), "RuntimeError: x", provenance(entry="old"), traceback="x")
    theirs.append(spec(), episodes(), provenance(entry="new"))
    assert merge([theirs.root], ours.root).taken == 1
    assert [path.parent.name for path in ours.records()] == ["new"]
    assert not verify(ours.root).orphans


def test_a_run_that_a_bench_records_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    ours, theirs = Store(tmp_path / "a"), fill(tmp_path / "b", entries=["iql"], seeds=[0])
    run = spec(method="iql", seed=0)
    real = sharing_merge.publish

    def late(*args):
        ours.append(run, episodes(), provenance(entry="iql"))
        real(*args)

    monkeypatch.setattr(sharing_merge, "publish", late)
    assert merge([theirs.root], ours.root).skipped == 1
    assert ours.episodes()["score"].tolist() == [0.0, 50.0, 100.0]
    assert not verify(ours.root).faults


def test_a_damaged_record_is_named_and_left_out_and_the_others_come(tmp_path):
    source = fill(tmp_path / "a", kept=[1])
    path = sorted(source.root.rglob("*.parquet"))[0]
    flip(path, 60, 2)
    policy = sorted(source.root.rglob("*.safetensors"))[-1]
    flip(policy, -1, 2)
    found = merge([source.root], tmp_path / "new")
    assert found.taken == 3 and sorted(line.split()[0] for line in found.damaged) == sorted(
        map(str, [path, policy])
    )
    assert not verify(tmp_path / "new").faults
    assert len(list((tmp_path / "new").rglob("*.safetensors"))) == 1


def test_rows_that_are_not_those_of_the_protocol_are_not_taken(tmp_path):
    """Whoever edits a record can compute its checksums, and not the name of another run."""
    source = fill(tmp_path / "a", entries=["iql"], seeds=[0])
    other = fill(tmp_path / "b", entries=["iql"], seeds=[1])
    (mark,), (donor,) = source.records(), other.records()
    body, theirs = unsealed(mark.read_bytes()), unsealed(donor.read_bytes())
    own, rows = (next(path.parent.glob("*.parquet")) for path in (mark, donor))
    shutil.copyfile(rows, own)
    about = theirs["episodes"] | ({"file": own.name} if "file" in body["episodes"] else {})
    mark.write_text(seal(body | {"episodes": about}))
    found = merge([source.root], tmp_path / "new")
    assert found.taken == 0 and "in a run whose run_id is" in found.damaged[0]


def test_a_damaged_record_of_ours_is_not_written_over(tmp_path):
    ours, theirs = fill(tmp_path / "a"), fill(tmp_path / "b")
    flip(ours.records()[0], 30, 1)
    found = merge([theirs.root], ours.root)
    assert found.skipped == 3 and "results verify --repair" in found.damaged[0]


def test_records_of_a_version_or_format_that_is_not_known_are_taken_as_they_are(tmp_path):
    source = fill(tmp_path / "a", entries=["iql"], seeds=[0], suite_version=9)
    other = fill(tmp_path / "b", entries=["iql"], seeds=[1])
    (mark,) = other.records()
    mark.write_text(seal(unsealed(mark.read_bytes()) | {"format": 7, "spec": {"new": 1}}))
    assert merge([source.root, other.root], tmp_path / "new").taken == 2
    assert merge([source.root, other.root], tmp_path / "new").skipped == 2


def test_files_of_no_record_stay_where_they_are(tmp_path):
    source = fill(tmp_path / "a", seeds=[0])
    (source.records()[0].parent / f"{'2' * 16}.parquet").write_bytes(b"x")
    merge([source.root], tmp_path / "new")
    assert not verify(tmp_path / "new").orphans


def test_what_holds_no_records_is_refused_before_anything_is_taken(tmp_path):
    source = fill(tmp_path / "a")
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    (tmp_path / "text.zip").write_text("no zip")
    for bad in (tmp_path, tmp_path / "empty", tmp_path / "text.zip"):
        with pytest.raises(UserError, match=r"no results folder|has no records|no submission"):
            merge([source.root, bad], tmp_path / "new")
    with pytest.raises(UserError, match="is the folder that records are merged into"):
        merge([source.root], source.root)
    assert not (tmp_path / "new").exists()
