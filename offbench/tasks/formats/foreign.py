"""Files in other libraries' layouts -> the columns of `offbench.tasks.formats.columns`.

    csv        one row a step under a header; a vector is `obs_0, obs_1, ...` (or `obs.0`, `obs[0]`)
    parquet    the same, or lists; a folder of files is read in the order of their names. LeRobot's
               columns (formats v2.1 and v3.0: observation.state, action, next.reward, next.done,
               episode_index) are known
    d3rlpy     HDF5: MDPDataset.dump of version 1, ReplayBuffer.dump of version 2 (file version 2.1:
               `observations_0`, `actions_0`, `rewards_0`, `terminated_0`, ... and `num_episodes`)
    robomimic  HDF5: data/demo_0/{obs/KEY, actions, rewards, dones, next_obs/KEY}; vectors of `obs` go
               side by side in the order of their names, images are left out
    npz, hdf5  offbench's own layout under other names

Ends of episodes are determined elsewhere: a reader only returns columns. Pickles are never opened.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from offbench.errors import UserError, unknown
from offbench.tasks.formats import columns, hdf5
from offbench.tasks.formats.columns import Columns, Keys
from offbench.tasks.formats.libraries import read_d3rlpy, read_robomimic
from offbench.tasks.formats.tables import parquet_files, read_csv, read_parquet

Format = Literal["csv", "parquet", "d3rlpy", "robomimic", "rlds", "npz", "hdf5"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: Mapping[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "npz": (".npz",),
    **dict.fromkeys(("d3rlpy", "robomimic", "hdf5"), (".hdf5", ".h5")),
}


class Read(NamedTuple):
    """The columns read from a file, as from `columns.gather`."""

    columns: dict[str, np.ndarray]
    # column -> its names in the file
    called: dict[str, str]
    # names in the file that were not read
    unread: tuple[str, ...]


def read(
    path: Path,
    format: Format,
    *,
    name: str,
    given: Keys | None = None,
    header: tuple[str, ...] | None = None,
) -> Read:
    """Reads the columns of a file in another library's format.

    Args:
        path: the file, or a folder of Parquet files.
        format: its layout.
        name: what errors call it.
        given: column -> keys of the file, where they differ from the common names.
        header: the columns of a csv that has no header of its own.

    Returns:
        The columns, their names in the file, and what was not read.

    Raises:
        UserError: the file is damaged, of another format, or lacks a column.
    """
    _check_format(path, format, name)
    if header is not None and format != "csv":
        raise UserError(f"{name}: --columns names the columns of a csv, this is {format}")
    with _READERS[format](path, name, header) as (file, known):
        keys = file.keys()
        usual = {c: k for c, k in known.items() if c not in (given or {})}
        found, called = columns.gather(
            file, path, name, {**_paired(usual, given, keys), **(given or {})}
        )
        read_keys = {key for words in called.values() for key in words.split("+")}
        return Read(found, called, tuple(k for k in keys if k not in read_keys))


def _paired(usual: Keys, given: Keys | None, keys: list[str]) -> dict[str, tuple[str, ...]]:
    """`given`, with next observations from `next_obs/` where observations are from `obs/`."""
    if not given or "observations" not in given or "next_observations" not in usual:
        return dict(usual)
    after = tuple(f"next_{key}" for key in given["observations"])
    rest = {c: k for c, k in usual.items() if c != "next_observations"}
    return {**rest, "next_observations": after} if set(after) <= set(keys) else rest


def parse_map(text: str) -> Keys:
    """Parses the option `--map`: `observations=a+b,actions=act`.

    Args:
        text: as written.

    Returns:
        Column -> keys, {"observations": ("a", "b"), "actions": ("act",)}.

    Raises:
        UserError: it is not of that form, names an unknown column, or one column twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        column, equals, keys = (x.strip() for x in part.partition("="))
        parts = tuple(k.strip() for k in keys.split("+"))
        if not equals or not all(parts):
            raise UserError(
                f"--map {part!r}: written COLUMN=NAME, or COLUMN=NAME+NAME for several side by side"
            )
        if column not in columns.NAMES:
            raise unknown("column of --map", column, columns.NAMES)
        if column in found:
            raise UserError(f"--map names {column} twice; several go side by side as {column}=a+b")
        found[column] = parts
    return found


def guess(path: Path, *, name: str) -> Format:
    """The format of a file or folder, by suffix and content.

    Args:
        path: the file or folder.
        name: what errors call it.

    Returns:
        The format.

    Raises:
        UserError: there is no such file, it is a pickle, or its format is unknown.
    """
    refuse_pickle(path, name)
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    if path.is_dir():
        if any(path.glob("*.tfrecord*")) or (path / "features.json").is_file():
            return "rlds"
        if parquet_files(path):
            return "parquet"
    elif path.suffix.lower() in (".hdf5", ".h5"):
        return _guess_hdf5(path, name)
    elif ".tfrecord" in path.name:
        return "rlds"
    for format in ("csv", "parquet", "npz"):
        if path.is_file() and path.suffix.lower() in _ENDINGS[format]:
            return format
    raise UserError(
        f"{name}: the format of {path} is unknown; name it with --format {'|'.join(FORMATS)}"
    )


def _guess_hdf5(path: Path, name: str) -> Format:
    with hdf5.opened(path, name) as file:
        if hdf5.has(file, "num_episodes") or hdf5.has(file, "discrete_action"):
            return "d3rlpy"
        import h5py

        if hdf5.has(file, "data") and isinstance(hdf5.child(file, "data", name), h5py.Group):
            return "robomimic"
    return "hdf5"


def _check_format(path: Path, format: Format, name: str) -> None:
    """Raises UserError where a file is not of the given format."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    refuse_pickle(path, name)
    if format == "rlds":
        raise UserError(f"{name}: {_RLDS}")
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    if path.is_dir():
        if format != "parquet" or not parquet_files(path):
            raise UserError(f"{name}: the folder {path} holds no {format} files")
        return
    if path.suffix.lower() not in _ENDINGS[format]:
        raise UserError(
            f"{name}: {path.name} is no {format} file ({' or '.join(_ENDINGS[format])})"
        )
    if format in ("d3rlpy", "robomimic") and (is_ := _guess_hdf5(path, name)) != format:
        raise UserError(f"{name}: {path.name} is not in {format}'s layout; it looks like {is_}")


_RLDS = """\
RLDS is read by TensorFlow, which offbench does not use; write an npz of it once, where tensorflow_datasets is installed:
    import numpy as np, tensorflow_datasets as tfds
    rows = [dict(s, episode=i) for i, e in enumerate(tfds.load(NAME, split="train").as_numpy_iterator()) for s in e["steps"]]
    rows = [r for r in rows if not (r["is_last"] and not r["is_terminal"])]  # holds the last observation alone
    np.savez("data.npz", observations=np.stack([r["observation"] for r in rows]), actions=np.stack([r["action"] for r in rows]), rewards=np.stack([r["reward"] for r in rows]), terminals=np.stack([r["is_terminal"] for r in rows]), episodes=np.stack([r["episode"] for r in rows]))"""
_PICKLES = (".pkl", ".pickle", ".pck", ".p", ".pt", ".pth", ".joblib")


def refuse_pickle(path: Path, name: str) -> None:
    """Raises for a pickle, by suffix or first bytes: loading one can run any code.

    Args:
        path: the file.
        name: what the error calls it.

    Raises:
        UserError: it is a pickle; the message has the lines that make an npz of it.
    """
    if path.suffix.lower() not in _PICKLES and not _begins_as_pickle(path):
        return
    loaded = (
        f"import torch, numpy as np; x = torch.load({str(path)!r}, weights_only=True)"
        if path.suffix.lower() in (".pt", ".pth")
        else f"import pathlib, pickle, numpy as np; x = pickle.loads(pathlib.Path({str(path)!r}).read_bytes())"
    )
    raise UserError(
        f"{columns.at(path, name)} is a pickle, which can run any code when it is loaded, so it is never opened here;"
        " if you trust where it comes from, write an npz of it once (a list of episodes, or one dict of arrays):\n"
        f"    {loaded}\n"
        "    if isinstance(x, list): n = [len(p['actions' if 'actions' in p else 'action']) for p in x];"
        " x = {k: np.concatenate([p[k] for p in x]) for k, v in x[0].items() if np.ndim(v) and len(v) == n[0]}"
        " | {'episode': np.repeat(range(len(n)), n)}\n"
        f"    np.savez({str(path.with_suffix('.npz'))!r}, **x)"
    )


def _begins_as_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 to 5."""
    if (
        path.suffix.lower() in {e for endings in _ENDINGS.values() for e in endings}
        or not path.is_file()
    ):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError:
        return False
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


Opened = AbstractContextManager[tuple[Columns, Keys]]
Reader = Callable[[Path, str, tuple[str, ...] | None], Opened]
"""Path, name for errors, header of a csv -> the open file, and what is known of its columns."""


@contextmanager
def _own(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    with columns.opened(path, name) as file:
        yield file, {}


_READERS: Mapping[str, Reader] = {
    "csv": read_csv,
    "parquet": read_parquet,
    "d3rlpy": read_d3rlpy,
    "robomimic": read_robomimic,
    "npz": _own,
    "hdf5": _own,
}
