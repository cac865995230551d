"""Which files of a store are damaged, and how the damaged ones are put aside so that their runs are trained again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from offbench.errors import UserError
from offbench.results.record import Damage
from offbench.results.sharing import measurements
from offbench.results.sharing.files import Found, examine, scan, temporary_files

DAMAGED = "damaged"
"""The folder of a store that damaged records are moved to."""


@dataclass
class Verified:
    """What was found in a store."""

    # records of runs that ended well, and of others
    whole: int = 0
    failed: int = 0
    # records whose run has to be trained again
    damaged: int = 0
    faults: list[Damage] = field(default_factory=list)
    # files that belong to no record, and temporary files of writers that were killed
    orphans: list[Path] = field(default_factory=list)
    # of the faults that were repaired, where the damaged file lies now
    moved: dict[Path, Path] = field(default_factory=dict)


def verify(root: Path, *, repair: bool = False) -> Verified:
    """Reads every file of a store and compares it with its checksum.

    Args:
        repair: move the files of damaged records to `root/damaged`; nothing is deleted. A kept policy or a
            traceback that is damaged goes alone: its record stays. So does a file of what was measured of runs.

    Raises:
        UserError: there is no such store, or a damaged file cannot be moved.
    """
    existing(root)
    result, seen = Verified(), dict[str, Found]()
    for files in scan(root):
        found = examine(files)
        if found.ok and (first := seen.setdefault(files.run_id, found)) is not found:
            words = f"is a second record of its run, beside {first.files.mark}"
            found = found._replace(faults=(Damage(files.mark, words),))
        result.orphans += found.orphans
        result.faults += [*found.faults, *found.beside]
        result.damaged += bool(found.faults)
        if found.whole and found.body is not None:
            result.whole += found.ok
            result.failed += not found.ok
        if repair:
            # the json first: from then on the run has no record
            own = found.members[::-1] if found.faults else [fault.path for fault in found.beside]
            for path in own:
                result.moved[path] = _put_aside(path, root)
    for fault in measurements.faults(root):
        result.faults.append(fault)
        if repair:
            result.moved[fault.path] = _put_aside(fault.path, root)
    result.orphans += temporary_files(root)
    return result


def existing(root: Path) -> Path:
    """A results folder. Raises UserError for what is none."""
    if not root.is_dir():
        raise UserError(f"results: there is no folder {root}")
    if not (root / "runs").is_dir():
        raise UserError(f"{root} is no results folder: there is no {root / 'runs'}")
    return root


def _put_aside(path: Path, root: Path) -> Path:
    """Moves a file to the same place below `root/damaged`, under a name that is free there."""
    place = root / DAMAGED / path.relative_to(root)
    target, n = place, 1
    while target.exists():
        target, n = place.with_name(f"{place.name}.{n}"), n + 1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    except OSError as error:
        raise UserError(f"cannot move {path} to {target}: {error.strerror}") from None
    return target
