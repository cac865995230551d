"""Archives of data sets: one tar with a manifest, for machines without a network."""

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offbench.errors import UserError, writing
from offbench.io import replacing, sha256_of
from offbench.tasks.files.folders import cache_dir, make_folder, relative_path

MANIFEST = "manifest.json"
_FORMAT = "offbench-pack-1"
_MAX_MANIFEST = 64 << 20
MAX_MEMBERS = 200_000
MAX_BYTES = 1 << 40


def pack(items: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Writes files into one tar; the same files give the same archive, byte for byte.

    Args:
        items: name inside the archive (a plain relative path, as under `cache_dir()`) -> file or
            folder.
        out: the archive.

    Returns:
        The manifest, which is the first member: size and sha256 of every other one.

    Raises:
        UserError: a file is missing, or the archive cannot be written.
    """
    sources = dict(_walk(items))
    if not sources:
        raise UserError("nothing to pack")
    sizes = {n: p.stat().st_size for n, p in sources.items()}
    facts = {n: {"size": sizes[n], "sha256": sha256_of(p)} for n, p in sources.items()}
    manifest = {"format": _FORMAT, "files": facts}
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    make_folder(out.parent)
    with (
        writing(out),
        replacing(out) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        for name, path in sources.items():
            with path.open("rb") as file:
                archive.addfile(_member(name, sizes[name]), file)
    return manifest


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _walk(items: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of every file, folders unrolled, in the order of the names; never a link out."""
    found: dict[str, Path] = {}
    for name, path in items.items():
        relative_path(name)
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
    """Unpack an archive of `pack`, all of it or, after an error, nothing.

    Args:
        archive: the tar.
        folder: where its files go, None: `cache_dir()`.
        max_bytes: the largest total size of its files.
        max_members: the largest number of its files.

    Returns:
        The files, those that were there already included.

    Raises:
        UserError: it is no archive of ours; it holds links, devices or paths that leave the folder;
            a member is not in the manifest, missing, repeated, too large or has another sha256; or a
            file with another content is there already.
    """
    folder = cache_dir() if folder is None else folder
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
        scratch = Path(temporary)
        try:
            with tarfile.open(archive, "r:") as tar:
                facts = _read_manifest(tar, max_bytes, max_members)
                _room(folder, facts)
                _extract(tar, facts, scratch)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise UserError(f"{archive}: {error}") from None
            words = str(error) or type(error).__name__
            raise UserError(f"{archive} cannot be read as an archive ({words})") from None
        return _install(facts, scratch, folder, archive)


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
        relative_path(name)
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


def _extract(tar: tarfile.TarFile, facts: Mapping[str, Mapping[str, Any]], scratch: Path) -> None:
    done: set[str] = set()
    while (member := tar.next()) is not None:
        relative = relative_path(member.name)
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
        target = scratch / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if sha256_of(target) != fact["sha256"]:
            raise UserError(f"{member.name} does not have the sha256 of its manifest")
        done.add(member.name)
    if absent := sorted(set(facts) - done):
        raise UserError(f"{absent[0]} is named in its manifest and missing")


def _install(
    facts: Mapping[str, Mapping[str, Any]], scratch: Path, folder: Path, archive: Path
) -> list[Path]:
    new = []
    for name, fact in facts.items():
        path = folder / relative_path(name)
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
        path = folder / relative_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / relative_path(name), path)
    return [folder / relative_path(name) for name in facts]
