"""Downloads against a real server on this machine, and archives that try to do harm."""

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import platformdirs.macos
import platformdirs.unix
import pytest

from offbench.errors import UserError
from offbench.tasks import files

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves BODY in the way the path asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        way = self.path.split("/")[1].split("?")[0]
        server.seen.append((self.path, self.headers.get("Range")))
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        if way == "absent" or (way == "mirrored" and server.role == "mirror"):
            return self.answer(404, b"")
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", "/plain/data.bin")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if way == "busy" and server.seen.count((self.path, None)) < 3:
            return self.answer(503, b"")
        if way == "norange":
            return self.answer(200, BODY, cut=100_000 if len(server.seen) == 1 else None)
        if way == "changed" and start:  # If-Range does not hold any more
            return self.answer(200, BODY)
        if way == "tampered":
            return self.answer(200, bytes(len(BODY)))
        if way == "silent":
            return self.answer(200, BODY, announce=False)
        if start >= len(BODY):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(BODY)}"})
        limit = {"broken": 120_000, "changed": 120_000, "dead": 0}.get(way)
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        if way == "liar" and start:
            span = f"bytes 0-{len(BODY) - 1}/{len(BODY)}"
        return self.answer(206 if start else 200, BODY[start:], {"Content-Range": span}, limit)

    def answer(self, code, body, headers=(), cut=None, announce=True):
        if "/slow/" in self.path:
            time.sleep(0.5)
        self.send_response(code)
        self.send_header("ETag", '"one"')
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if announce:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and cut < len(body):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


def serve(role):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.role, server.seen = role, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def server():
    made = serve("origin")
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def mirror():
    made = serve("mirror")
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    for name in ("OFFBENCH_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def get(url, name="kind/data.bin", **kwargs):
    return files.fetch(url, name, pause_s=0.001, patience_s=5, **kwargs)


def left(cache):
    """What lies in the cache, locks and notes of origin aside."""
    found = (p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())
    return sorted(p for p in found if not p.endswith((".lock", ".origin.json")))


# --- places -------------------------------------------------------------------------------


def test_the_cache_folder_is_the_named_one_else_that_of_the_platform(monkeypatch, tmp_path):
    assert files.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("OFFBENCH_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "PlatformDirs", platformdirs.unix.Unix)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_dir() == tmp_path / ".cache" / "offbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_dir() == tmp_path / "xdg" / "offbench"


def test_a_cache_folder_of_before_is_kept_on_a_mac(monkeypatch, tmp_path):
    """Where platformdirs would now heed XDG_CACHE_HOME, so that nothing is downloaded twice."""
    monkeypatch.delenv("OFFBENCH_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(platformdirs, "PlatformDirs", platformdirs.macos.MacOS)
    assert files.cache_dir() == tmp_path / "xdg" / "offbench"
    earlier = tmp_path / "Library" / "Caches" / "offbench"
    earlier.mkdir(parents=True)
    assert files.cache_dir() == earlier


@pytest.mark.parametrize(
    "kind, folder",
    [("d4rl", ".d4rl/datasets"), ("minari", ".minari/datasets"), ("ogbench", ".ogbench/data")],
)
def test_a_file_in_another_package_s_cache_is_found_after_ours(
    monkeypatch, tmp_path, cache, kind, folder
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    assert files.find(kind, "a.bin") is None
    theirs = tmp_path / "home" / folder / "a.bin"
    ours = cache / kind / "a.bin"
    for path in (theirs, ours):
        path.parent.mkdir(parents=True)
        path.touch()
        assert files.find(kind, "a.bin") == path


def test_d4rls_own_folder_variable_names_the_folder_of_the_files(monkeypatch, tmp_path):
    """As d4rl 1.1 takes it: nothing is added to it."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    (tmp_path / "hopper_medium-v2.hdf5").touch()
    assert files.find("d4rl", "hopper_medium-v2.hdf5") == tmp_path / "hopper_medium-v2.hdf5"


def test_minari_s_own_folder_variable_is_heeded(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "mujoco" / "hopper").mkdir(parents=True)
    assert files.find("minari", "mujoco/hopper") == tmp_path / "mujoco" / "hopper"


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a\\b", "", "a//b", "./a", "C:/a", "a\0"])
def test_a_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(UserError, match="relative path"):
        files.find("d4rl", name)
    with pytest.raises(UserError, match="relative path"):
        get("http://127.0.0.1:1/x", name)


# --- downloads ----------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_recorded(server, cache):
    steps = []
    path = get(
        f"{server.url}/plain/a", size=len(BODY), sha256=SHA, progress=lambda *a: steps.append(a)
    )
    assert path == cache / "kind" / "data.bin" and path.read_bytes() == BODY
    assert steps[-1] == (len(BODY), len(BODY)) and [s[0] for s in steps] == sorted(
        s[0] for s in steps
    )
    origin = json.loads((cache / "kind" / "data.bin.origin.json").read_text())
    assert origin["sha256"] == SHA and origin["size"] == len(BODY)
    assert origin["url"] == f"{server.url}/plain/a"
    assert left(cache) == ["kind/data.bin"]
    get(f"{server.url}/plain/a")
    assert len(server.seen) == 1


def test_a_transfer_that_breaks_off_resumes_where_it_stopped(server, cache):
    path = get(f"{server.url}/broken/a", size=len(BODY), sha256=SHA)
    assert path.read_bytes() == BODY
    assert [r for _, r in server.seen] == [None, "bytes=120000-", "bytes=240000-"]
    assert left(cache) == ["kind/data.bin"]


def test_a_later_call_resumes_what_an_earlier_one_left(server, cache, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(f"{server.url}/broken/a", progress=stop)
    part = cache / "kind" / "data.bin.part"
    have = part.stat().st_size
    assert 0 < have < len(BODY) and not (cache / "kind" / "data.bin").exists()
    assert get(f"{server.url}/broken/a").read_bytes() == BODY
    assert server.seen[1][1] == f"bytes={have}-"


def test_a_part_of_another_address_is_not_built_upon(server, cache):
    part = cache / "kind" / "data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    (cache / "kind" / "data.bin.part.json").write_text(json.dumps({"url": "http://elsewhere/"}))
    assert get(f"{server.url}/plain/a").read_bytes() == BODY
    assert server.seen == [("/plain/a", None)]


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server):
    assert get(f"{server.url}/norange/a", sha256=SHA).read_bytes() == BODY
    assert len(server.seen) == 2


def test_a_file_that_changed_in_between_is_fetched_anew(server):
    assert get(f"{server.url}/changed/a", sha256=SHA).read_bytes() == BODY


def test_a_server_that_resumes_elsewhere_than_asked_is_not_believed(server, cache):
    part = cache / "kind" / "data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:50])
    (cache / "kind" / "data.bin.part.json").write_text(json.dumps({"url": f"{server.url}/liar/a"}))
    assert get(f"{server.url}/liar/a", sha256=SHA).read_bytes() == BODY


def test_a_part_that_is_whole_already_is_taken(server, cache):
    part = cache / "kind" / "data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    notes = {"url": f"{server.url}/plain/a", "etag": '"one"'}
    (cache / "kind" / "data.bin.part.json").write_text(json.dumps(notes))
    assert get(f"{server.url}/plain/a", sha256=SHA).read_bytes() == BODY


def test_a_server_that_does_not_say_how_much_is_read_to_the_end(server):
    steps = []
    path = get(f"{server.url}/silent/a", progress=lambda *a: steps.append(a))
    assert path.read_bytes() == BODY and steps[-1] == (len(BODY), None)


def test_a_redirect_is_followed(server):
    assert get(f"{server.url}/moved/a", sha256=SHA).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server):
    assert get(f"{server.url}/busy/a").read_bytes() == BODY
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "way, kwargs, words",
    [
        ("absent", {}, "404"),
        ("dead", {}, "bytes came|connection"),
        ("plain", {"size": 10}, f"{len(BODY)} bytes there, 10 expected"),
        ("plain", {"size": len(BODY) + 1}, "expected"),
        ("silent", {"size": 10}, "more than the 10 bytes"),
        ("silent", {"size": len(BODY) + 1}, "bytes came"),
        ("plain", {"sha256": "0" * 64}, "sha256"),
    ],
)
def test_what_cannot_be_had_ends_in_one_line_and_leaves_nothing(server, cache, way, kwargs, words):
    url = f"{server.url}/{way}/a"
    with pytest.raises(UserError, match=words) as error:
        get(url, retries=1, **kwargs)
    line = str(error.value)
    assert "\n" not in line and url in line
    assert "put the file data.bin into" in line and str(cache / "kind") in line
    assert [p for p in left(cache) if not p.endswith(".json")] in ([], ["kind/data.bin.part"])
    if way != "dead":
        assert not (cache / "kind" / "data.bin.part").is_file() or (
            (cache / "kind" / "data.bin.part").stat().st_size == 0
        )


def test_without_a_network_the_line_names_url_file_and_folder(cache):
    with pytest.raises(UserError) as error:
        get("http://127.0.0.1:9/x/hopper.hdf5", "d4rl/hopper.hdf5", retries=1)
    line = str(error.value)
    assert "\n" not in line and "http://127.0.0.1:9/x/hopper.hdf5" in line
    assert f"put the file hopper.hdf5 into {cache / 'd4rl'}" in line


def test_retries_are_bounded_and_only_count_without_progress(server):
    with pytest.raises(UserError):
        get(f"{server.url}/dead/a", retries=2)
    assert len(server.seen) == 3
    assert get(f"{server.url}/broken/a", "kind/b.bin", retries=1).read_bytes() == BODY


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data.bin"])
def test_only_the_web_is_downloaded_from(url):
    with pytest.raises(UserError, match="only http"):
        get(url)


def test_the_mirror_is_asked_first(server, mirror, monkeypatch, cache):
    monkeypatch.setenv("OFFBENCH_MIRROR", f"{mirror.url}/plain/mirror/")
    get(f"{server.url}/data/a.bin?x=1")
    assert mirror.seen == [("/plain/mirror/data/a.bin?x=1", None)] and not server.seen
    assert mirror.url in (cache / "kind" / "data.bin.origin.json").read_text()


def test_what_the_mirror_lacks_comes_from_the_origin(server, mirror, monkeypatch):
    monkeypatch.setenv("OFFBENCH_MIRROR", mirror.url)
    assert get(f"{server.url}/mirrored/a").read_bytes() == BODY
    assert mirror.seen and server.seen


def test_a_mirror_with_another_file_is_passed_over(server, mirror, monkeypatch):
    monkeypatch.setenv("OFFBENCH_MIRROR", f"{mirror.url}/tampered")
    assert get(f"{server.url}/plain/a", sha256=SHA).read_bytes() == BODY
    assert len(mirror.seen) == 1 and server.seen == [("/plain/a", None)]


def test_a_mirror_that_is_no_address_is_refused(monkeypatch):
    monkeypatch.setenv("OFFBENCH_MIRROR", "/mnt/mirror")
    with pytest.raises(UserError, match="OFFBENCH_MIRROR"):
        get("http://127.0.0.1:9/x")


def test_a_file_that_changed_since_first_sight_is_an_error(server, cache):
    path = get(f"{server.url}/plain/a")
    path.write_bytes(b"y" + BODY[1:])
    with pytest.raises(UserError, match="when first seen"):
        get(f"{server.url}/plain/a")
    path.write_bytes(BODY)  # another date, the same content
    assert get(f"{server.url}/plain/a") == path


def test_a_file_put_there_by_hand_is_checked_and_recorded(cache):
    path = cache / "kind" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="sha256"):
        get("http://127.0.0.1:9/x", sha256=SHA)
    with pytest.raises(UserError, match="14 bytes"):
        get("http://127.0.0.1:9/x", size=3)
    path.write_bytes(BODY)
    assert get("http://127.0.0.1:9/x", sha256=SHA, size=len(BODY)) == path
    assert "by hand" in (cache / "kind" / "data.bin.origin.json").read_text()


def test_a_cache_that_cannot_be_written_says_which_variable_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match="OFFBENCH_DATA"):
        get("http://127.0.0.1:9/x")


def _fetch_in_process(url, cache, queue, together):
    os.environ["OFFBENCH_DATA"] = str(cache)
    together.wait(60)
    path = files.fetch(url, "kind/data.bin", sha256=SHA, pause_s=0.001)
    queue.put(hashlib.sha256(path.read_bytes()).hexdigest())


def test_two_processes_that_want_one_file_fetch_it_once(server, cache):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (f"{server.url}/slow/a", cache, queue, context.Barrier(2))
    both = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    assert {queue.get(timeout=60) for _ in both} == {SHA}
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert sum(r is None for _, r in server.seen) == 1
    assert left(cache) == ["kind/data.bin"]


# --- archives -----------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    folder = tmp_path / "here"
    (folder / "set" / "data").mkdir(parents=True)
    (folder / "a.hdf5").write_bytes(BODY)
    (folder / "set" / "data" / "main.hdf5").write_bytes(b"main")
    (folder / "set" / "data" / "metadata.json").write_bytes(b"{}")
    (folder / "set" / "out").symlink_to("/etc/passwd")
    return {"d4rl/a.hdf5": folder / "a.hdf5", "minari/x/set-v0": folder / "set"}


def test_what_is_packed_is_unpacked_where_it_is_found(sets, tmp_path, cache):
    manifest = files.pack(sets, tmp_path / "x.tar")
    assert sorted(manifest["files"]) == [
        "d4rl/a.hdf5",
        "minari/x/set-v0/data/main.hdf5",
        "minari/x/set-v0/data/metadata.json",
    ]
    paths = files.unpack(tmp_path / "x.tar")
    assert files.find("d4rl", "a.hdf5") == cache / "d4rl" / "a.hdf5" in paths
    assert (cache / "d4rl" / "a.hdf5").read_bytes() == BODY
    assert (files.find("minari", "x/set-v0") / "data" / "main.hdf5").read_bytes() == b"main"
    assert left(cache) == sorted(manifest["files"])
    assert files.unpack(tmp_path / "x.tar") == paths  # again: nothing to do


def test_the_same_files_give_the_same_archive(sets, tmp_path):
    files.pack(sets, tmp_path / "x.tar")
    os.utime(sets["d4rl/a.hdf5"], (0, 0))
    files.pack(sets, tmp_path / "y.tar")
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()


def test_packing_what_is_missing_leaves_no_archive(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        files.pack({"a": tmp_path / "nope"}, tmp_path / "x.tar")
    with pytest.raises(UserError, match="nothing to pack"):
        files.pack({}, tmp_path / "x.tar")
    assert not list(tmp_path.glob("x.tar*"))


def test_a_file_with_another_content_is_in_the_way(sets, tmp_path, cache):
    files.pack(sets, tmp_path / "x.tar")
    (cache / "d4rl").mkdir(parents=True)
    (cache / "d4rl" / "a.hdf5").write_bytes(b"mine")
    with pytest.raises(UserError, match="another content"):
        files.unpack(tmp_path / "x.tar")
    assert left(cache) == ["d4rl/a.hdf5"] and (cache / "d4rl" / "a.hdf5").read_bytes() == b"mine"


def craft(path, members, facts=None, fmt="offbench-pack-1", manifest_first=True):
    """An archive with the members given as (TarInfo or name, content)."""
    infos = []
    for name, content in members:
        info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            info.size = len(content)
        infos.append((info, content))
    if facts is None:
        facts = {
            i.name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for i, c in infos
        }
    text = json.dumps({"format": fmt, "files": facts}).encode()
    head = tarfile.TarInfo("manifest.json")
    head.size = len(text)
    infos = [(head, text), *infos] if manifest_first else [*infos, (head, text)]
    with tarfile.open(path, "w") as tar:
        for info, content in infos:
            tar.addfile(info, io.BytesIO(content) if info.size else None)
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def fact(content=b"x", **changes):
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes


HOSTILE = {
    "climbs out": dict(members=[("../evil", b"x")]),
    "climbs out inside": dict(members=[("a/../../evil", b"x")]),
    "absolute": dict(members=[("/tmp/evil", b"x")]),
    "backslash": dict(members=[("..\\evil", b"x")]),
    "drive": dict(members=[("C:/evil", b"x")]),
    "climbs out unnamed": dict(members=[("../evil", b"x")], facts={"a": fact()}),
    "symbolic link": dict(members=[(special("a", tarfile.SYMTYPE, "/etc"), b"")]),
    "link then through it": dict(
        members=[(special("a", tarfile.SYMTYPE, "/tmp"), b""), ("a/evil", b"x")]
    ),
    "hard link": dict(members=[("b", b"x"), (special("a", tarfile.LNKTYPE, "b"), b"")]),
    "device": dict(members=[(special("a", tarfile.CHRTYPE), b"")]),
    "pipe": dict(members=[(special("a", tarfile.FIFOTYPE), b"")]),
    "folder": dict(members=[(special("a", tarfile.DIRTYPE), b"")]),
    "sparse": dict(members=[(special("a", tarfile.GNUTYPE_SPARSE), b"")]),
    "twice": dict(members=[("a", b"x"), ("a", b"x")]),
    "twice but for case": dict(members=[("a", b"x"), ("A", b"x")]),
    "unnamed": dict(members=[("a", b"x"), ("b", b"x")], facts={"a": fact()}),
    "missing": dict(members=[("a", b"x")], facts={"a": fact(), "b": fact()}),
    "another size": dict(members=[("a", b"x")], facts={"a": fact(size=2)}),
    "negative size": dict(members=[("a", b"x")], facts={"a": fact(size=-1)}),
    "no size": dict(members=[("a", b"x")], facts={"a": {"sha256": "0"}}),
    "no sha": dict(members=[("a", b"x")], facts={"a": {"size": 1}}),
    "another sha": dict(members=[("a", b"x")], facts={"a": fact(sha256="0" * 64)}),
    "absurd size": dict(members=[("a", b"x")], facts={"a": fact(size=1 << 62)}),
    "more than fits": dict(members=[("a", b"x")], facts={"a": fact(size=(1 << 40) - 1)}),
    "no files": dict(members=[], facts={}),
    "files is a list": dict(members=[], facts=["a"]),
    "another format": dict(members=[("a", b"x")], fmt="else"),
    "manifest last": dict(members=[("a", b"x")], manifest_first=False),
    "long name": dict(members=[("a" * 250, b"x")]),
    "file under a file": dict(members=[("a", b"x"), ("a/b", b"x")]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_whole(kind, tmp_path, cache):
    archive = craft(tmp_path / "x.tar", **HOSTILE[kind])
    before = sorted(p for p in tmp_path.rglob("*") if p != cache)
    with pytest.raises(UserError) as error:
        files.unpack(archive)
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    assert sorted(p for p in tmp_path.rglob("*") if p != cache) == before
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("keep", [0, 100, 600, 1500, 2**18])
def test_an_archive_that_is_cut_short_is_refused_whole(sets, tmp_path, cache, keep):
    files.pack(sets, tmp_path / "x.tar")
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:keep])
    with pytest.raises(UserError):
        files.unpack(tmp_path / "x.tar")
    assert left(cache) == []


def test_a_compressed_archive_or_none_at_all_is_refused(sets, tmp_path, cache):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    (tmp_path / "y.tar").write_bytes(BODY)
    for name in ("x.tar.gz", "y.tar", "nope.tar"):
        with pytest.raises(UserError, match="cannot be read as an archive"):
            files.unpack(tmp_path / name)


def test_a_member_that_comes_twice_is_called_that(tmp_path):
    archive = craft(tmp_path / "x.tar", **HOSTILE["twice"])
    with pytest.raises(UserError, match="a is in it twice"):
        files.unpack(archive)


def test_limits_on_size_and_number_hold(sets, tmp_path):
    files.pack(sets, tmp_path / "x.tar")
    with pytest.raises(UserError, match="more than 1000"):
        files.unpack(tmp_path / "x.tar", max_bytes=1000)
    with pytest.raises(UserError, match="more than 2"):
        files.unpack(tmp_path / "x.tar", max_members=2)
