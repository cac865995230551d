"""Data files on disk: where they lie, how they get there, how they travel.

Everything of ours is under one folder (`OFFBENCH_DATA`, else the platform's user cache), one folder
for each kind of file below it; what other packages have downloaded is found in their own caches
and read in place.

    cache_dir()/d4rl/hopper_medium-v2.hdf5              a download, and beside it
    cache_dir()/d4rl/hopper_medium-v2.hdf5.origin.json  url, size and sha256 as first seen
    cache_dir()/d4rl/hopper_medium-v2.hdf5.part         a download that was interrupted: it resumes

A file has its final name only when it is whole and checked.
"""

import hashlib
import http.client
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from filelock import FileLock

from offbench.errors import UserError
from offbench.io import atomic_write

Kind = Literal["d4rl", "minari", "ogbench"]
Progress = Callable[[int, int | None], None]
"""Called with the bytes there so far and the bytes wanted, None where the server does not say."""

_CHUNK = 1 << 20
_PATIENCE_S = 30.0  # without a byte
# asking again gives the same answer
_FINAL = frozenset({400, 401, 403, 404, 405, 406, 410, 451})


# --- places ---------------------------------------------------------------------------------


def cache_dir() -> Path:
    """`$OFFBENCH_DATA`, else `offbench` in the user's cache folder; it need not exist yet."""
    if named := os.environ.get("OFFBENCH_DATA"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "offbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "offbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offbench"


def places(kind: Kind) -> list[Path]:
    """Folders where files of a kind may lie, in the order they are searched: ours, then the
    cache of the package that the format comes from."""
    native = {
        "d4rl": Path.home() / ".d4rl" / "datasets",
        "minari": Path(
            os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
        ),
        "ogbench": Path.home() / ".ogbench" / "data",
    }
    if kind == "d4rl" and (named := os.environ.get("D4RL_DATASET_DIR")):
        native["d4rl"] = Path(named)
    return [cache_dir() / kind, native[kind].expanduser()]


def find(kind: Kind, name: str) -> Path | None:
    """The file (or, for Minari, the folder) of that name in `places(kind)`, None if nowhere."""
    relative = _relative(name)
    return next((p / relative for p in places(kind) if (p / relative).exists()), None)


def _relative(name: str) -> Path:
    """`name` as a path that stays inside the folder it is joined to; UserError otherwise."""
    pure = PurePosixPath(name)
    bad = (
        not name
        or name != pure.as_posix()
        or pure.is_absolute()
        or "\\" in name
        or "\0" in name
        or any(part in ("..", ".") or ":" in part[1:2] for part in pure.parts)
        or any(len(part.encode()) > 200 for part in pure.parts)
    )
    if bad:
        raise UserError(f"{name!r} is not a plain relative path")
    return Path(*pure.parts)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- downloads ------------------------------------------------------------------------------


class _Refused(Exception):
    """This address will not give the file; asking it again is of no use."""


class _Interrupted(Exception):
    """The transfer stopped short; what has come is kept."""


def fetch(
    url: str,
    name: str,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    *,
    retries: int = 4,
    pause_s: float = 0.5,
    patience_s: float = _PATIENCE_S,
) -> Path:
    """Download `url` to `cache_dir()/name` unless it is there, and return the path.

    An interrupted transfer goes on where it stopped, in this call (at most `retries` times in a
    row without a new byte) or in a later one. `size` in bytes and `sha256` are checked where
    given; the sha256 first seen is recorded beside the file, and a file that is another one later
    is an error. `$OFFBENCH_MIRROR` (a base url in place of scheme and host) is asked first;
    proxies are those of the environment. Processes that want the same file wait for each other.

    Raises UserError, one line with the url, the file and the folder to put it in, when no address
    gives the file, and when what it gives is not what was promised.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are downloaded")
    path = cache_dir() / _relative(name)
    _writable(path.parent)
    # the system drops it with the process
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            _verify(path, size, sha256)
            return path
        part = path.with_name(path.name + ".part")
        reasons = []
        for address in _addresses(url):
            transfer = _Transfer(address, part, size, progress, patience_s)
            try:
                transfer.run(retries, pause_s)
                digest = _checked(part, address, size, sha256)
            except _Refused as refusal:
                reasons.append(f"{address}: {refusal}")
                continue
            os.replace(part, path)
            _record(path, address, digest)
            transfer.forget()
            return path
    raise UserError(
        f"cannot download {url} ({'; '.join(_plain(r, url) for r in reasons)}); "
        f"put the file {path.name} into {path.parent}"
    )


def _plain(reason: str, url: str) -> str:
    return reason.removeprefix(f"{url}: ")


def _addresses(url: str) -> list[str]:
    """The mirror's address of a file, where there is one, and its own."""
    mirror = os.environ.get("OFFBENCH_MIRROR", "").rstrip("/")
    if not mirror:
        return [url]
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise UserError(f"OFFBENCH_MIRROR={mirror}: must begin with http:// or https://")
    parts = urlsplit(url)
    return [mirror + parts.path + (f"?{parts.query}" if parts.query else ""), url]


@dataclass
class _Transfer:
    """One file from one address into `part`."""

    url: str
    part: Path
    size: int | None
    progress: Progress | None
    patience_s: float

    @property
    def _notes(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def run(self, retries: int, pause_s: float) -> None:
        """Ask until the file is whole. _Refused when `retries` answers in a row bring nothing new."""
        left, why = retries + 1, ""
        while left:
            before = self._have()
            try:
                self._ask(before)
                return
            except _Interrupted as stop:
                why = str(stop)
            left = retries if self._have() > before else left - 1
            if left:
                time.sleep(pause_s * 2 ** (retries - left))
        raise _Refused(why)

    def forget(self) -> None:
        self._notes.unlink(missing_ok=True)

    def _have(self) -> int:
        """Bytes that can be built upon: those of this very address and promise."""
        if not self.part.is_file():
            return 0
        if self._read_notes().get("url") != self.url:
            self.part.unlink()
            return 0
        return self.part.stat().st_size

    def _read_notes(self) -> Mapping[str, Any]:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def _ask(self, have: int) -> None:
        headers = {"User-Agent": "offbench", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := self._read_notes().get("etag"):
                # another file by now: all of it again
                headers["If-Range"] = etag
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.patience_s) as answer:
                self._receive(answer, have)
        except urllib.error.HTTPError as error:
            self._http_error(error, have)
        except http.client.IncompleteRead as error:
            raise _Interrupted(f"the connection broke off ({error})") from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None) or error
            raise _Interrupted(str(reason) or type(error).__name__) from None

    def _http_error(self, error: urllib.error.HTTPError, have: int) -> None:
        with error:
            # nothing after what we have: whole, or of another file
            if error.code == 416:
                whole = error.headers.get("Content-Range", "") == f"bytes */{have}"
                if whole and (self.size in (None, have)):
                    return
                self.part.unlink(missing_ok=True)
                raise _Interrupted("the server has another file than before") from None
            if error.code in _FINAL:
                raise _Refused(f"{error.code} {error.reason}") from None
            raise _Interrupted(f"{error.code} {error.reason}") from None

    def _receive(self, answer: Any, have: int) -> None:
        resumed = answer.status == 206 and _starts_at(answer, have)
        if answer.status == 206 and not resumed:
            self.part.unlink(missing_ok=True)
            raise _Interrupted("the server answered with another part than asked for")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if self.size is not None and total is not None and total != self.size:
            self.part.unlink(missing_ok=True)
            raise _Refused(f"{total} bytes there, {self.size} expected")
        notes = {"url": self.url, "etag": answer.headers.get("ETag")}
        self._notes.write_text(json.dumps(notes), encoding="utf-8")
        with self.part.open("ab" if resumed else "wb") as file:
            got = self._copy(answer, file, start, total)
        if total is not None and got < total:
            raise _Interrupted(f"{got} of {total} bytes came")

    def _copy(self, answer: Any, file: BinaryIO, start: int, total: int | None) -> int:
        got, limit = start, self.size if self.size is not None else total
        while chunk := answer.read1(_CHUNK):
            got += len(chunk)
            if limit is not None and got > limit:
                file.truncate(0)
                raise _Refused(f"more than the {limit} bytes expected")
            file.write(chunk)
            if self.progress is not None:
                self.progress(got, limit)
        return got


def _starts_at(answer: Any, have: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _checked(part: Path, address: str, size: int | None, sha256: str | None) -> str:
    """The sha256 of a finished transfer; a wrong one is deleted and _Refused."""
    found = part.stat().st_size if part.is_file() else 0
    if size is not None and found != size:
        part.unlink(missing_ok=True)
        raise _Refused(f"{found} bytes came, {size} expected")
    digest = sha256_of(part) if found else hashlib.sha256().hexdigest()
    if sha256 is not None and digest != sha256:
        part.unlink(missing_ok=True)
        raise _Refused(f"sha256 {digest[:12]}... came, {sha256[:12]}... expected")
    part.touch()
    return digest


def _origin(path: Path) -> Path:
    return path.with_name(path.name + ".origin.json")


def _record(path: Path, address: str, digest: str) -> None:
    stat = path.stat()
    facts = {
        "url": address,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": digest,
    }
    atomic_write(_origin(path), json.dumps(facts, indent=1).encode())


def _verify(path: Path, size: int | None, sha256: str | None) -> None:
    """A file that is there against what is promised and what was seen first.

    Hashed only where its size or date is another than recorded. Raises UserError.
    """
    stat = path.stat()
    again = f"delete it to download it again, or put the right file {path.name} into {path.parent}"
    if size is not None and stat.st_size != size:
        raise UserError(f"{path} has {stat.st_size} bytes, {size} expected; {again}")
    try:
        seen = json.loads(_origin(path).read_text(encoding="utf-8"))
        known, fresh = str(seen["sha256"]), (seen["size"], seen["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        seen, known, fresh = {}, None, None
    untouched = fresh == (stat.st_size, stat.st_mtime_ns)
    digest = known if untouched and known else sha256_of(path)
    for promise, whose in ((sha256, "expected"), (known, "when first seen")):
        if promise is not None and digest != promise:
            raise UserError(
                f"{path} has sha256 {digest[:12]}..., {promise[:12]}... {whose}; {again}"
            )
    if not untouched:
        _record(path, str(seen.get("url", "put there by hand")), digest)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); set OFFBENCH_DATA to one that can be written"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written; set OFFBENCH_DATA to one that can")


# --- archives -------------------------------------------------------------------------------

MANIFEST = "manifest.json"
_FORMAT = "offbench-pack-1"
_MAX_MANIFEST = 64 << 20
MAX_MEMBERS = 200_000
MAX_BYTES = 1 << 40


def pack(items: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write files into one tar for a machine without a network, and return its manifest.

    `items` maps a name inside the archive (a plain relative path, as under `cache_dir()`) to a
    file or a folder. The first member is a manifest with the size and sha256 of every other one;
    the same files give the same archive, byte for byte. Raises UserError for what is missing.
    """
    sources = dict(_walk(items))
    if not sources:
        raise UserError("nothing to pack")
    facts = {n: {"size": p.stat().st_size, "sha256": sha256_of(p)} for n, p in sources.items()}
    manifest = {"format": _FORMAT, "files": facts}
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    _writable(out.parent)
    beside = out.with_name(out.name + ".part")
    try:
        with tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
            for name, path in sources.items():
                with path.open("rb") as file:
                    archive.addfile(_member(name, facts[name]["size"]), file)
        os.replace(beside, out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error})") from None
    finally:
        beside.unlink(missing_ok=True)
    return manifest


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _walk(items: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of every file, folders unrolled, in the order of the names; never a link out."""
    found: dict[str, Path] = {}
    for name, path in items.items():
        _relative(name)
        if path.is_file():
            found[name] = path
        elif path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
            found |= {f"{name}/{p.relative_to(path).as_posix()}": p for p in inside}
        else:
            raise UserError(f"cannot pack {name}: {path} is not there")
    yield from sorted(found.items())


def unpack(
    archive: Path,
    folder: Path | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> list[Path]:
    """Unpack an archive of `pack` under `folder` (default: `cache_dir()`); returns the files.

    Everything is written and checked beside its place first, so after an error nothing has
    changed. Refused with a UserError: what is no archive of ours, links and devices, paths that
    leave the folder, members that are unnamed in the manifest, missing, doubled, too large or
    not of its sha256, and a file that is there already with another content.
    """
    folder = cache_dir() if folder is None else folder
    _writable(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        beside = Path(scratch)
        try:
            with tarfile.open(archive, "r:") as tar:
                facts = _read_manifest(tar, max_bytes, max_members)
                _room(folder, facts)
                _extract(tar, facts, beside)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise UserError(f"{archive}: {error}") from None
            words = str(error) or type(error).__name__
            raise UserError(f"{archive} cannot be read as an archive ({words})") from None
        return _install(facts, beside, folder, archive)


def _read_manifest(
    tar: tarfile.TarFile, max_bytes: int, max_members: int
) -> dict[str, dict[str, Any]]:
    first = tar.next()
    if first is None or first.name != MANIFEST or first.type not in _PLAIN:
        raise UserError("not an archive of `offbench data pack`: no manifest comes first")
    if first.size > _MAX_MANIFEST:
        raise UserError(f"its manifest has {first.size} bytes")
    file = tar.extractfile(first)
    assert file is not None
    content = json.loads(file.read().decode())
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError("not an archive of `offbench data pack`: another format")
    facts = content.get("files")
    if not isinstance(facts, dict) or not facts:
        raise UserError("its manifest names no files")
    if len(facts) > max_members:
        raise UserError(f"its manifest names {len(facts)} files, more than {max_members}")
    for name, fact in facts.items():
        _relative(name)
        if not isinstance(fact, dict) or type(fact.get("size")) is not int or fact["size"] < 0:
            raise UserError(f"its manifest gives no size for {name}")
        if not isinstance(fact.get("sha256"), str):
            raise UserError(f"its manifest gives no sha256 for {name}")
    if len({name.casefold() for name in facts}) < len(facts):
        raise UserError("its manifest names a file twice")
    if (total := sum(fact["size"] for fact in facts.values())) > max_bytes:
        raise UserError(f"it would unpack to {total} bytes, more than {max_bytes}")
    return facts


_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def _room(folder: Path, facts: Mapping[str, Mapping[str, Any]]) -> None:
    need, free = sum(fact["size"] for fact in facts.values()), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"it needs {need} bytes, {folder} has {free} free")


def _extract(tar: tarfile.TarFile, facts: Mapping[str, Mapping[str, Any]], beside: Path) -> None:
    done: set[str] = set()
    while (member := tar.next()) is not None:
        relative = _relative(member.name)
        if member.type not in _PLAIN:
            raise UserError(f"{member.name} is not a plain file")
        if member.name in done:
            raise UserError(f"{member.name} is in it twice")
        if member.name not in facts:
            raise UserError(f"{member.name} is not named in its manifest")
        fact = facts[member.name]
        if member.size != fact["size"]:
            raise UserError(
                f"{member.name} has {member.size} bytes, its manifest says {fact['size']}"
            )
        source = tar.extractfile(member)
        assert source is not None
        target = beside / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if _copy_hashed(source, target) != (fact["size"], fact["sha256"]):
            raise UserError(f"{member.name} does not have the sha256 of its manifest")
        done.add(member.name)
    if absent := sorted(set(facts) - done):
        raise UserError(f"{absent[0]} is named in its manifest and missing")


def _copy_hashed(source: Any, target: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return size, digest.hexdigest()


def _install(
    facts: Mapping[str, Mapping[str, Any]], beside: Path, folder: Path, archive: Path
) -> list[Path]:
    new = []
    for name, fact in facts.items():
        path = folder / _relative(name)
        if not path.exists():
            new.append(name)
        elif not path.is_file() or sha256_of(path) != fact["sha256"]:
            raise UserError(
                f"{archive}: {path} is there already with another content; move it away first"
            )
        for above in path.relative_to(folder).parents:
            if (folder / above).exists() and not (folder / above).is_dir():
                raise UserError(f"{archive}: {folder / above} is in the way")
    for name in new:
        path = folder / _relative(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside / _relative(name), path)
    return [folder / _relative(name) for name in facts]
