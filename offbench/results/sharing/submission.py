"""The records of entries as one file, a zip that another results folder takes over after checking all of it.

A submission has one spelling: its members are records as they lie in a store, not compressed, in order of their
names, with fixed times, and a manifest with the checksum of each. Whoever reads it packs what he read once more and
compares the bytes, so that whatever was changed, added or left out is found, also in the archive itself.
"""

import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offbench.errors import UserError, unknown, writing
from offbench.io import replacing, sha256_of, slug
from offbench.results.record import seal
from offbench.results.sharing.files import Found, examine, scan
from offbench.results.sharing.private import without_private
from offbench.results.sharing.verify import existing

FORMAT = 1

MANIFEST = "manifest.json"

# a folder's name as `offbench.io.slug` makes them
_FOLDER = r"(?!\.)[A-Za-z0-9_.~ +=,@()\[\]%-]{1,200}"
_MEMBER = re.compile(
    rf"runs/{_FOLDER}/{_FOLDER}/{_FOLDER}/[0-9a-f]{{16}}(\.json|(\.[0-9a-f]{{8}})?\.parquet|\.safetensors)"
)

_LARGEST_MANIFEST = 100_000_000


# --- packing --------------------------------------------------------------------------------


def select(root: Path, entries: Sequence[str], suite: str | None) -> list[Found]:
    """The records of entries on the newest recorded version of a suite, failed ones too, each checked.

    Raises:
        UserError: an entry or the suite is not recorded, the entries are of several suites and none is named, or
            a record is damaged.
    """
    every = list(scan(existing(root)))
    # a level of folders is a suite, a task, an entry
    known = {files.folder.name for files in every}
    if absent := [entry for entry in entries if slug(entry) not in known]:
        raise unknown("entry", absent[0], known)
    folders = {slug(entry) for entry in entries}
    own = [files for files in every if files.folder.name in folders]
    suites = sorted({files.folder.parts[-3] for files in own})
    if suite is None and len(suites) > 1:
        words = f"{', '.join(entries)}: recorded on {', '.join(suites)}"
        raise UserError(f"{words}; say which: --suite")
    name = suites[0] if suite is None else slug(suite)
    if name not in suites:
        raise unknown(f"suite of {', '.join(entries)}", suite, suites)
    found = [examine(files, rows=True) for files in own if files.folder.parts[-3] == name]
    # a record that cannot be read might be one that its author would rather not show
    if faults := [fault for f in found for fault in [*f.faults, *f.beside]]:
        raise UserError(f"{faults[0]}; offbench results verify --repair results={root}")
    versions = [f.run.suite_version for f in found if f.run is not None]
    if not versions:
        raise UserError(f"nothing recorded of {', '.join(entries)} on {name} in {root}")
    return [f for f in found if f.run is not None and f.run.suite_version == max(versions)]


def pack(records: Sequence[Found], out: Path, *, policies: bool = False) -> int:
    """Writes a submission; the same records give the same bytes. Returns in how many records paths were cut.

    Tracebacks are left out, and absolute paths are cut to their last name. Raises UserError where a run's own
    specification names a path, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="offbench-") as scratch:
        folder, n_cut = Path(scratch), 0
        for found in records:
            place = folder.joinpath(*found.files.folder.parts[-4:])
            place.mkdir(parents=True, exist_ok=True)
            for path in found.members:
                if path.suffix == ".parquet" or (policies and path == found.files.policy):
                    shutil.copyfile(path, place / path.name)
            content = found.files.mark.read_bytes()
            body = without_private(found.body or {})
            if body != found.body:
                content, n_cut = seal(body).encode(), n_cut + 1
            (place / found.files.mark.name).write_bytes(content)
        with writing(out), replacing(out) as temporary:
            _write(folder, temporary)
    return n_cut


def _write(folder: Path, path: Path) -> None:
    """The archive of a folder that holds `runs`."""
    members = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = json.dumps(_manifest(folder, members), indent=1, sort_keys=True).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_info(MANIFEST, len(manifest)), manifest)
        for member in members:
            name = member.relative_to(folder).as_posix()
            with (
                member.open("rb") as source,
                archive.open(_info(name, member.stat().st_size), "w") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)


def _info(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    # as on every system
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


def _manifest(folder: Path, members: Sequence[Path]) -> dict[str, Any]:
    found = [examine(files) for files in scan(folder)]
    whole = [(f.run, f.body) for f in found if f.run is not None and f.body is not None]
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in members
    }
    return {
        "format": FORMAT,
        "kind": "offbench submission",
        "entries": sorted({body["provenance"]["entry"] for _, body in whole}),
        "suite": sorted({run.suite for run, _ in whole}),
        "suite_version": sorted({run.suite_version for run, _ in whole}),
        "records": len(found),
        "failed": sum(not f.ok for f in found),
        "episodes": sum(body["episodes"]["rows"] for _, body in whole if body["episodes"]),
        "files": files,
    }


# --- reading --------------------------------------------------------------------------------


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The records of a submission as a results folder, which is gone after the block.

    Raises:
        UserError: it is no submission, or anything in it is not as `pack` wrote it.
    """
    with tempfile.TemporaryDirectory(prefix="offbench-") as scratch:
        folder = Path(scratch) / "records"
        folder.mkdir()
        try:
            _extract(path, folder)
            _write(folder, Path(scratch) / "again.zip")
            same = sha256_of(Path(scratch) / "again.zip") == sha256_of(path)
        except UserError:
            raise
        # whatever zipfile makes of bytes that are no archive
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            ValueError,
            EOFError,
        ) as error:
            raise UserError(f"{path} is no submission of offbench: {error}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        if not same:
            raise UserError(
                f"{path} is not as `offbench submit` wrote it: its manifest or its archive was changed"
            )
        for files in scan(folder):
            found = examine(files, rows=True)
            if fault := [*found.faults, *found.beside]:
                raise UserError(f"{path}: {fault[0].path.relative_to(folder)} {fault[0].what}")
            if found.orphans:
                raise UserError(f"{path}: {found.orphans[0].relative_to(folder)} has no record")
        yield folder


def _extract(path: Path, folder: Path) -> None:
    """Writes the members of a submission, each checked against the manifest, below `folder`."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for info in members:
            if info.filename != MANIFEST and not _MEMBER.fullmatch(info.filename):
                raise UserError(
                    f"{path} has a member {info.filename!r}, which is no file of a record"
                )
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise UserError(
                    f"{path}: {info.filename} is compressed; records are packed as they are"
                )
        # a small file cannot fill a disk
        if sum(info.file_size for info in members) > path.stat().st_size:
            raise UserError(f"{path} declares more bytes than it has")
        manifest = _listed(path, archive, [info.filename for info in members])
        for info in members:
            if info.filename == MANIFEST:
                continue
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            if sha256_of(target) != manifest[info.filename]["sha256"]:
                raise UserError(f"{path}: {info.filename} is not what the manifest says")


def _listed(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> dict[str, Any]:
    """The files of the manifest. Raises UserError where they are not those of the archive."""
    if MANIFEST not in names:
        raise UserError(f"{path} is no submission of offbench: it has no {MANIFEST}")
    if archive.getinfo(MANIFEST).file_size > _LARGEST_MANIFEST:
        raise UserError(f"{path}: its manifest is too large")
    try:
        manifest = json.loads(archive.read(MANIFEST))
        files, form = manifest["files"], manifest["format"]
        if form != FORMAT:
            raise UserError(
                f"{path} is a submission of format {form}, this offbench reads {FORMAT}"
            )
        listed = {str(name): dict(about) for name, about in files.items()}
        if any(not isinstance(about["sha256"], str) for about in listed.values()):
            raise TypeError("sha256")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: its manifest is not one of offbench") from None
    inside = [name for name in names if name != MANIFEST]
    (name, times), *_ = Counter(names).most_common(1)
    if times > 1:
        raise UserError(f"{path} has {name} {times} times")
    if absent := sorted(listed.keys() - set(inside)):
        raise UserError(f"{path} lacks {absent[0]}, which its manifest has")
    if extra := sorted(set(inside) - listed.keys()):
        raise UserError(f"{path} has {extra[0]}, which its manifest lacks")
    return listed
