"""The records of other results folders, and of submissions, taken over into one."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from offbench.errors import UserError, writing
from offbench.io import replacing
from offbench.results.commit import RecordedAlready, publish
from offbench.results.record import read_episodes
from offbench.results.sharing import measurements
from offbench.results.sharing.files import Files, Found, examine, scan
from offbench.results.sharing.review import review
from offbench.results.sharing.submission import unpacked
from offbench.results.sharing.verify import existing


@dataclass
class Merged:
    """What became of the records of the sources."""

    taken: int = 0
    # the same run with the same episodes was there, or it failed and nothing was to gain
    skipped: int = 0
    # lines: records that are damaged, and runs that have other episodes here
    damaged: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    # what the submissions hold
    reviews: list[str] = field(default_factory=list)
    # files of what was measured of them that were taken over, by the folder they are in
    measured: Counter[str] = field(default_factory=Counter)


def merge(sources: Sequence[Path], root: Path, *, policies: bool = True) -> Merged:
    """Takes over the records that a store lacks from other stores and files of `offbench submit`.

    A record appears whole or not at all, its json last, so this can be interrupted and repeated. A failed
    record gives way to a whole one. What was measured of runs comes along where they are the same here.

    Args:
        sources: folders and files; every file is read and checked before the first record is taken.
        policies: take kept policies, too.

    Raises:
        UserError: a source is neither a results folder nor a submission, a submission was changed, or the
            store cannot be written.
    """
    with ExitStack() as opened:
        folders = [_folder(source, root, opened) for source in sources]
        result = Merged()
        for source, folder in zip(sources, folders):
            if source.is_file():
                result.reviews += review(map(examine, scan(folder)))
        ours = {files.run_id: files for files in scan(root)}
        for folder in folders:
            records = list(_records(folder, result))
            same = {r.files.run_id for r in records if _take(r, root, ours, policies, result)}
            for taken in measurements.take_over(folder, root, same):
                if isinstance(taken, measurements.Taken):
                    result.measured[taken.folder] += 1
                else:
                    result.damaged.append(str(taken))
    return result


def _folder(source: Path, root: Path, opened: ExitStack) -> Path:
    """The results folder that a source is, or the one that is packed in it."""
    if source.is_file():
        return opened.enter_context(unpacked(source))
    if existing(source).resolve() == root.resolve():
        raise UserError(f"{source} is the folder that records are merged into")
    if next(scan(source), None) is None:
        raise UserError(f"{source} has no records")
    return source


def _records(folder: Path, result: Merged) -> Iterator[Found]:
    """The whole records of a folder, and those whose policies alone are damaged."""
    for files in scan(folder):
        found = examine(files)
        result.damaged += [str(fault) for fault in [*found.faults, *found.beside]]
        if found.whole:
            yield found


def _take(
    theirs: Found, root: Path, ours: dict[str, Files], policies: bool, result: Merged
) -> bool:
    """Takes a record over; whether that of its run, by its name and label, is now theirs or the same."""
    files, run = theirs.files, theirs.run
    names = run.recorded_ids if run is not None else (files.run_id,)
    own = next((examine(ours[name]) for name in names if name in ours), None)
    if own is not None and own.faults:
        result.damaged.append(f"{own.faults[0]}; offbench results verify --repair results={root}")
        return False
    # files of no record are none
    failed = own.files.mark if own is not None and own.whole else None
    if own is not None and own.whole and (own.ok or not theirs.ok):
        if own.ok and theirs.ok and not _same_episodes(own, theirs):
            result.conflicts.append(
                f"run {files.run_id} has other episodes in {own.files.mark}, which is kept, than in"
                f" {files.mark}"
            )
            return False
        result.skipped += 1
        place = own.files.folder.parts[-3:] == files.folder.parts[-3:]
        return own.ok and theirs.ok and place and own.files.run_id == files.run_id
    # slower, and of those alone that are taken
    if faults := examine(files, rows=True).faults:
        result.damaged.append(str(faults[0]))
        return False
    target = root.joinpath(*files.folder.parts[-4:])
    left_out = {fault.path for fault in theirs.beside} | (set() if policies else {files.policy})
    members = [path for path in theirs.members if path not in left_out]
    replaced = lambda: [] if failed is None else [failed]
    try:
        with writing(target):
            for path in members[:-1]:
                with replacing(target / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            target.mkdir(parents=True, exist_ok=True)
            publish(target / files.mark.name, files.mark.read_bytes(), replaced)
    # by another process, meanwhile
    except RecordedAlready:
        result.skipped += 1
        return False
    ours[files.run_id] = Files(target, files.run_id, tuple(target / path.name for path in members))
    result.taken += 1
    return theirs.ok


def _same_episodes(a: Found, b: Found) -> bool:
    """Whether two records have the same rows; files of two versions of a library may differ."""
    assert a.body is not None and b.body is not None
    about = a.body["episodes"], b.body["episodes"]
    if about[0]["sha256"] == about[1]["sha256"]:
        return True
    if a.run is None or b.run is None:
        return False
    tables = [read_episodes(x.files.mark, known) for x, known in zip((a, b), about)]
    # the entry's label is no part of the run
    return tables[0].drop(["entry", "run_id"]).equals(tables[1].drop(["entry", "run_id"]))
