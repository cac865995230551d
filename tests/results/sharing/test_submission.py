"""`offbench submit`: an entry's records in one file, of which nothing changed is ever taken over."""

import getpass
import json
import platform
import stat
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import episodes, provenance, spec
from support.stores import contents, fill, flip

from offbench.errors import UserError
from offbench.results.sharing.merge import merge
from offbench.results.sharing.review import review
from offbench.results.sharing.submission import MANIFEST, pack, select, unpacked
from offbench.results.store import Store


def submit(store, out, entries=("iql",), policies=False, suite=None):
    records = select(store.root, entries, suite)
    pack(records, out, policies=policies)
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    store = fill(folder / "results", failed=[1], kept=[0])
    return store, submit(store, folder / "iql.zip", policies=True)


def test_a_submission_is_what_another_folder_takes_over(packed, tmp_path):
    store, path = packed
    assert merge([path], tmp_path / "new").taken == 2
    own = {k: v for k, v in contents(store.root).items() if "/iql/" in k and ".traceback" not in k}
    there = contents(tmp_path / "new")
    assert there.keys() == own.keys()
    failure = Store(store.root).read(spec(method="iql", seed=1).run_id).path
    # which names its traceback, that is not packed
    changed = [name for name in own if own[name] != there[name]]
    assert changed == [failure.relative_to(store.root).as_posix()]
    assert merge([path], tmp_path / "new").skipped == 2
    assert len(merge([path], tmp_path / "new").reviews) > 3


def test_the_same_records_give_the_same_bytes(packed, tmp_path):
    store, path = packed
    assert submit(store, tmp_path / "again.zip", policies=True).read_bytes() == path.read_bytes()
    merge([path], tmp_path / "other")
    there = submit(Store(tmp_path / "other"), tmp_path / "there.zip", policies=True)
    assert there.read_bytes() == path.read_bytes()


def test_the_manifest_says_what_is_in_it(packed):
    with zipfile.ZipFile(packed[1]) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        names = archive.namelist()
    assert manifest["entries"] == ["iql"] and manifest["suite"] == ["toy"]
    counted = [manifest[name] for name in ("format", "records", "failed", "episodes")]
    assert counted == [1, 2, 1, 3]
    assert names == [MANIFEST, *sorted(manifest["files"])]


def test_policies_are_packed_on_request_alone(packed, tmp_path):
    path = submit(packed[0], tmp_path / "x.zip")
    with zipfile.ZipFile(path) as archive:
        assert not any(name.endswith(".safetensors") for name in archive.namelist())
    assert merge([path], tmp_path / "new").taken == 2


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0), mask=st.integers(1, 255))
def test_any_flipped_byte_refuses_the_whole_submission(packed, at, mask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped")
    path = folder / "x.zip"
    path.write_bytes(packed[1].read_bytes())
    flip(path, at, mask)
    with pytest.raises(UserError) as error:
        merge([path], folder / "new")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "new").exists()


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1), tail=st.binary(max_size=3))
def test_a_submission_that_is_cut_off_or_added_to_is_refused(packed, cut, tail, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    whole = packed[1].read_bytes()
    for content in (whole[: cut % len(whole)], whole + tail + b"x", tail + b"x" + whole):
        (folder / "x.zip").write_bytes(content)
        with pytest.raises(UserError):
            merge([folder / "x.zip"], folder / "new")
    assert not (folder / "new").exists()


# --- made to deceive ------------------------------------------------------------------------


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(path, content, compression=zipfile.ZIP_STORED, mode=None):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.compress_type = 3, compression
            info.external_attr = (mode or stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil.json",
        "C:/evil.json",
        "C:\\evil.json",
        "runs/toy/../../../evil/0123456789abcdef.json",
        "runs/toy/toy--point-v0/iql/x/0123456789abcdef.json",
        "runs/toy/toy--point-v0/iql/evil.sh",
        "runs/toy/toy--point-v0/.git/0123456789abcdef.json",
        "runs/toy/toy--point-v0/iql/0123456789abcdef.traceback.txt",
        "runs/toy/toy--point-v0/iql/0123456789abcdef.json/",
    ],
)
def test_no_member_may_lie_elsewhere_or_be_anything_else(packed, tmp_path, name):
    content = members(packed[1])
    rezip(tmp_path / "x.zip", content | {name: b"{}"})
    with pytest.raises(UserError, match="which is no file of a record"):
        merge([tmp_path / "x.zip"], tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_the_archive_that_the_tests_make_is_the_one_that_is_packed(packed, tmp_path):
    """Or the tests here would be refused for another reason than the one they name."""
    path = rezip(tmp_path / "x.zip", members(packed[1]))
    assert path.read_bytes() == packed[1].read_bytes()


def test_links_and_compressed_members_are_refused(packed, tmp_path):
    content = members(packed[1])
    link = rezip(tmp_path / "link.zip", content, mode=stat.S_IFLNK | 0o777)
    with pytest.raises(UserError, match="is not as `offbench submit` wrote it"):
        merge([link], tmp_path / "new")
    deflated = rezip(tmp_path / "deflated.zip", content, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        merge([deflated], tmp_path / "new")


def test_a_small_file_cannot_declare_a_large_member(packed, tmp_path):
    """As of a bomb whose members share their bytes, or that unpacks to more than was declared."""
    content = packed[1].read_bytes()
    name = next(n for n in members(packed[1]) if n.endswith(".parquet"))
    with zipfile.ZipFile(packed[1]) as archive:
        size = archive.getinfo(name).file_size
    # in the central directory, where the name stands a second time
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    huge = (1 << 31).to_bytes(4, "little")
    assert content[entry + 20 : entry + 28] == size.to_bytes(4, "little") * 2
    changed = content[: entry + 20] + huge * 2 + content[entry + 28 :]
    (tmp_path / "x.zip").write_bytes(changed)
    with pytest.raises(UserError, match="declares more bytes than it has"):
        merge([tmp_path / "x.zip"], tmp_path / "new")


@pytest.mark.parametrize("part", [".parquet", ".json"])
def test_a_member_that_is_missing_or_not_listed_is_named(packed, tmp_path, part):
    content = members(packed[1])
    name = next(n for n in content if n.endswith(part) and n != MANIFEST)
    rezip(tmp_path / "x.zip", {k: v for k, v in content.items() if k != name})
    with pytest.raises(UserError, match=f"lacks {name}".replace("+", r"\+")):
        merge([tmp_path / "x.zip"], tmp_path / "new")
    manifest = json.loads(content[MANIFEST])
    del manifest["files"][name]
    listed = json.dumps(manifest, indent=1, sort_keys=True).encode()
    rezip(tmp_path / "y.zip", content | {MANIFEST: listed})
    with pytest.raises(UserError, match="which its manifest lacks"):
        merge([tmp_path / "y.zip"], tmp_path / "new")


def test_a_manifest_that_says_something_else_is_refused(packed, tmp_path):
    content = members(packed[1])
    manifest = json.loads(content[MANIFEST])
    for changes in ({"entries": ["better"]}, {"episodes": 99}, {"suite_version": [2]}, {"more": 1}):
        text = json.dumps(manifest | changes, indent=1, sort_keys=True).encode()
        rezip(tmp_path / "x.zip", content | {MANIFEST: text})
        with pytest.raises(UserError, match="its manifest or its archive was changed"):
            merge([tmp_path / "x.zip"], tmp_path / "new")
    for text in (b"[]", b"{", b'{"files": 1, "format": 1}', b'{"files": {"a": 1}, "format": 1}'):
        rezip(tmp_path / "x.zip", content | {MANIFEST: text})
        with pytest.raises(UserError, match="manifest is not one of offbench"):
            merge([tmp_path / "x.zip"], tmp_path / "new")
    rezip(tmp_path / "x.zip", content | {MANIFEST: json.dumps(manifest | {"format": 2}).encode()})
    with pytest.raises(UserError, match="is a submission of format 2, this offbench reads 1"):
        merge([tmp_path / "x.zip"], tmp_path / "new")


# --- who and what is packed -----------------------------------------------------------------


def test_an_entry_or_a_suite_that_is_not_recorded_is_refused_with_the_nearest(packed):
    store = packed[0]
    with pytest.raises(UserError, match="unknown entry 'iqll': did you mean 'iql'"):
        select(store.root, ["iql", "iqll"], None)
    with pytest.raises(UserError, match="unknown suite of iql 'toi': did you mean 'toy'"):
        select(store.root, ["iql"], "toi")


def test_of_several_suites_one_is_named_and_of_several_versions_the_newest_is_packed(tmp_path):
    store = fill(tmp_path / "a", entries=["iql"])
    fill(tmp_path / "a", entries=["iql"], seeds=[0], suite_version=2)
    fill(tmp_path / "a", entries=["iql"], seeds=[0], suite="other")
    with pytest.raises(UserError, match="recorded on other, toy; say which: --suite"):
        select(store.root, ["iql"], None)
    (found,) = select(store.root, ["iql"], "toy")
    assert found.run.suite_version == 2


@pytest.mark.parametrize("kind", ["json", "parquet", "safetensors"])
def test_a_damaged_record_is_neither_packed_nor_left_out(tmp_path, kind):
    store = fill(tmp_path / "a", kept=[0])
    path = next(store.root.glob(f"runs/*/*/iql/*.{kind}"))
    flip(path, -1, 1)
    with pytest.raises(
        UserError, match=rf"\.{kind} (is truncated or )?was edited; offbench results"
    ):
        select(store.root, ["iql"], None)
    assert len(select(store.root, ["bc"], None)) == 2


def test_a_reviewer_sees_tasks_seeds_data_commits_and_tuning(tmp_path):
    store = fill(tmp_path / "a", entries=["iql"], seeds=[0, 1, 2], failed=[1])
    tuning = {"how": "user", "tried": 12, "source": "a grid", "overridden": ["lr"]}
    store.append(spec(seed=7), episodes(), provenance(dirty=True, commit="d" * 40, tuning=tuning))
    lines = "\n".join(review(select(store.root, ["iql"], None)))
    for words in (
        "iql on toy v1",
        "toy/point-v0: seeds 0,1,2,7; updates 100; episodes 3; data abababababab; 1 failed",
        "commit cccccccccccc",
        "commit dddddddddddd, with uncommitted changes",
        "hyper-parameters: user (a grid), 12 tried; other than published: lr",
        "failed: seed 1: RuntimeError: seed 1",
    ):
        assert words in lines


def test_what_others_wrote_is_printed_in_one_line_without_control_characters(tmp_path):
    store = Store(tmp_path / "a")
    store.fail(spec(), "bad\n::error::\x1b[2Jx" + "y" * 999, provenance(commit="c\x1b[31m"))
    lines = review(select(store.root, ["iql"], None))
    assert all(line.isprintable() and len(line) <= 300 for line in lines)
    assert any("bad?::error::?[2Jx" in line for line in lines)


# --- what would say who somebody is ---------------------------------------------------------


def test_no_path_and_no_name_is_packed(tmp_path):
    store = Store(tmp_path / "a")
    me, here = getpass.getuser(), platform.node()
    reason = f"OSError: /home/{me}/secret/data.hdf5 on {here}: ~/x/y.npz, C:\\Users\\{me}\\z.h5"
    overrides = {"task.data": f"/home/{me}/secret/data.hdf5"}
    store.fail(spec(seed=1), reason, provenance())
    facts = provenance(overrides=overrides, sources={"lr": "/opt/mine/conf/method/x.yaml"})
    store.append(spec(), episodes(), facts, remark="no monitor episodes: /home/me/secret/z.hdf5")
    n_cut = pack(select(store.root, ["iql"], None), tmp_path / "x.zip")
    text = b"".join(members(tmp_path / "x.zip").values()).decode(errors="replace")
    assert n_cut == 2
    for private in ("/home", "secret", "/opt", "Users", "~/x", *([here] if len(here) > 4 else [])):
        assert private not in text
    assert "data.hdf5" in text and "x.yaml" in text
    merge([tmp_path / "x.zip"], tmp_path / "new")
    assert Store(tmp_path / "new").read(spec().run_id).reason == "no monitor episodes: z.hdf5"


def test_ids_and_sources_are_no_paths(tmp_path):
    store = Store(tmp_path / "a")
    tuning = {
        "how": "published",
        "tried": 1,
        "source": "https://arxiv.org/abs/2110.06169, table 1/2",
    }
    facts = provenance(tuning=tuning, sources={"lr": "conf/method/iql.yaml", "x": "suite d4rl/a"})
    store.append(spec(env={"id": "ALE/Pong-v5"}, method="my.pkg.Mine"), episodes(), facts)
    assert pack(select(store.root, ["iql"], None), tmp_path / "x.zip") == 0


def test_a_run_whose_settings_name_a_path_cannot_be_packed(tmp_path):
    store = fill(
        tmp_path / "a", entries=["iql"], env={"id": "E-v0", "kwargs": {"xml": "/home/me/a.xml"}}
    )
    with pytest.raises(UserError, match=r"has the path '/home/me/a.xml' in its settings"):
        submit(store, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_nothing_is_left_in_the_folder_of_temporary_files(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with unpacked(packed[1]) as folder:
        assert folder.is_relative_to(tmp_path)
    broken = tmp_path / "x.zip"
    broken.write_bytes(packed[1].read_bytes()[:-3])
    with pytest.raises(UserError):
        merge([broken], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
