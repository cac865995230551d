"""Downloads over http: resumed where they stopped, checked, and recorded."""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock

from offbench.errors import UserError
from offbench.io import atomic_write, sha256_of
from offbench.tasks.files.folders import cache_dir, make_folder, relative_path

Progress = Callable[[int, int | None], None]
"""Called with the bytes there so far and the bytes wanted, None where the server does not say."""

_CHUNK = 1 << 20
# asking again gives the same answer
_FINAL = frozenset({400, 401, 403, 404, 405, 406, 410, 451})


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
    patience_s: float = 30.0,
) -> Path:
    """Download a file into the cache folder, unless it is there and unchanged.

    An interrupted transfer resumes where it stopped, in this call or in a later one. The sha256
    first seen is recorded next to the file, and a file that has another one later is an error.
    `$OFFBENCH_MIRROR` (a base url in place of scheme and host) is asked first; proxies are those of
    the environment. Processes that want the same file wait for each other.

    Args:
        url: http or https.
        name: path of the file below `cache_dir()`.
        size: bytes the file must have, None: any.
        sha256: checksum it must have, None: any.
        progress: called after each chunk.
        retries: attempts in a row without a new byte before an address is given up.
        pause_s: seconds before the first retry, doubled for each of the next.
        patience_s: seconds without a byte after which a transfer counts as interrupted.

    Returns:
        The path of the file.

    Raises:
        UserError: one line with the url, the file and its folder, where no address gives the file
            or what they give is not what was expected.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are downloaded")
    path = cache_dir() / relative_path(name)
    make_folder(path.parent)
    # the system drops the lock with the process
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            _verify(path, size, sha256)
            return path
        part, reasons = path.with_name(path.name + ".part"), []
        for address in _addresses(url):
            transfer = _Transfer(address, part, size, progress, patience_s)
            try:
                transfer.run(retries, pause_s)
                digest = _checked(part, size, sha256)
            except _Refused as refusal:
                reasons.append(f"{refusal}" if address == url else f"{address}: {refusal}")
                continue
            os.replace(part, path)
            _record(path, address, digest)
            transfer.notes.unlink(missing_ok=True)
            return path
    raise UserError(
        f"cannot download {url} ({'; '.join(reasons)}); put the file {path.name} into {path.parent}"
    )


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
    def notes(self) -> Path:
        """The file with the address and the ETag of the bytes in `part`."""
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
            about = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

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
        span = answer.headers.get("Content-Range") or ""
        resumed = answer.status == 206 and span.startswith(f"bytes {have}-")
        if answer.status == 206 and not resumed:
            self.part.unlink(missing_ok=True)
            raise _Interrupted("the server answered with another part than asked for")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if self.size is not None and total is not None and total != self.size:
            self.part.unlink(missing_ok=True)
            raise _Refused(f"{total} bytes there, {self.size} expected")
        about = {"url": self.url, "etag": answer.headers.get("ETag")}
        self.notes.write_text(json.dumps(about), encoding="utf-8")
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


def _checked(part: Path, size: int | None, sha256: str | None) -> str:
    """The sha256 of a finished transfer; a wrong one is deleted and _Refused."""
    found = part.stat().st_size if part.is_file() else 0
    if size is not None and found != size:
        part.unlink(missing_ok=True)
        raise _Refused(f"{found} bytes came, {size} expected")
    digest = sha256_of(part) if found else hashlib.sha256().hexdigest()
    if sha256 is not None and digest != sha256:
        part.unlink(missing_ok=True)
        raise _Refused(f"sha256 {digest[:12]}... came, {sha256[:12]}... expected")
    # an empty file
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
