"""The cache folder, and the folders where other packages keep their data sets."""

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Literal

from offbench.errors import UserError

Kind = Literal["d4rl", "minari", "ogbench"]


def cache_dir() -> Path:
    """`$OFFBENCH_DATA`, else `offbench` in the user's cache folder; it need not exist yet."""
    if named := os.environ.get("OFFBENCH_DATA"):
        return Path(named).expanduser()
    # macOS folder of versions before platformdirs read XDG_CACHE_HOME
    legacy = Path.home() / "Library" / "Caches" / "offbench"
    if sys.platform == "darwin" and legacy.is_dir():
        return legacy
    # where a variable names the folder nothing more is needed
    import platformdirs

    return platformdirs.user_cache_path("offbench", appauthor=False, opinion=False)


def search_folders(kind: Kind) -> list[Path]:
    """Folders where data sets of a kind may lie, in the order they are searched.

    Args:
        kind: the format of the data sets.

    Returns:
        The folder in our cache, then the cache of the package that the format comes from.
    """
    home = Path.home()
    variable, default = {
        "d4rl": ("D4RL_DATASET_DIR", home / ".d4rl" / "datasets"),
        "minari": ("MINARI_DATASETS_PATH", home / ".minari" / "datasets"),
        "ogbench": ("", home / ".ogbench" / "data"),
    }[kind]
    return [cache_dir() / kind, Path(os.environ.get(variable) or default).expanduser()]


def find(kind: Kind, name: str) -> Path | None:
    """The file (Minari: the folder) of a data set.

    Args:
        kind: the format of the data set.
        name: its path relative to a folder of `search_folders(kind)`.

    Returns:
        The first one that exists, None if there is none.

    Raises:
        UserError: the name is not a plain relative path.
    """
    relative = relative_path(name)
    return next((p / relative for p in search_folders(kind) if (p / relative).exists()), None)


def relative_path(name: str) -> Path:
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


def make_folder(folder: Path) -> None:
    """Create a folder for files of ours; UserError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); set OFFBENCH_DATA to one that can be written"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written; set OFFBENCH_DATA to one that can")
