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

Nothing is decided here about where episodes end: a reader gives the columns that a file has. Pickles
are never opened.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from offbench.errors import UserError, nearest, unknown
from offbench.tasks.formats import columns, hdf5
from offbench.tasks.formats.columns import Columns, Keys

if TYPE_CHECKING:
    import h5py

Format = Literal["csv", "parquet", "d3rlpy", "robomimic", "rlds", "npz", "hdf5"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: Mapping[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "npz": (".npz",),
    **dict.fromkeys(("d3rlpy", "robomimic", "hdf5"), (".hdf5", ".h5")),
}
_LEROBOT: Keys = {
    "observations": ("observation.state",),
    "actions": ("action",),
    "rewards": ("next.reward",),
    "dones": ("next.done",),
    "episodes": ("episode_index",),
}


class Read(NamedTuple):
    """What was read of a file, as `columns.gather` gives it."""

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
    """The columns of a file. `given` names what a column is made of, `header` the columns of a csv
    that has no header of its own.

    Raises UserError naming `name` for a file that is damaged, of another format, or lacks a column.
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
    """Where observations are given out of `obs/`, next observations are the same out of `next_obs/`."""
    if not given or "observations" not in given or "next_observations" not in usual:
        return dict(usual)
    after = tuple(f"next_{key}" for key in given["observations"])
    rest = {c: k for c, k in usual.items() if c != "next_observations"}
    return {**rest, "next_observations": after} if set(after) <= set(keys) else rest


def parse_map(text: str) -> Keys:
    """`observations=a+b,actions=act` -> {"observations": ("a", "b"), "actions": ("act",)}."""
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


# --- which format ---------------------------------------------------------------------------


def guess(path: Path, *, name: str) -> Format:
    """The format of a file or folder, by its ending and what is in it. UserError where neither says."""
    refuse_pickle(path, name)
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    if path.is_dir():
        if any(path.glob("*.tfrecord*")) or (path / "features.json").is_file():
            return "rlds"
        if _parts(path):
            return "parquet"
    elif path.suffix.lower() in (".hdf5", ".h5"):
        return _guess_hdf5(path, name)
    elif ".tfrecord" in path.name:
        return "rlds"
    for format in ("csv", "parquet", "npz"):
        if path.is_file() and path.suffix.lower() in _ENDINGS[format]:
            return format
    raise UserError(
        f"{name}: the format of {path} cannot be told; say --format {'|'.join(FORMATS)}"
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
    """UserError where a file is not of the format that it is said to be."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    refuse_pickle(path, name)
    if format == "rlds":
        raise UserError(f"{name}: {_RLDS}")
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    if path.is_dir():
        if format != "parquet" or not _parts(path):
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
    """UserError for a pickle, by its ending or its first bytes, with the lines that make an npz of it."""
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
    """Of protocol 2 to 5, in a file whose ending says nothing."""
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


# --- the readers: an open file, and what is known of its columns ------------------------------

Arrays = Mapping[str, Callable[[], np.ndarray]]
Reader = Callable[[Path, str, "tuple[str, ...] | None"], Any]


class _Lazy:
    """Arrays by name, each made when it is asked for; `parts` are found and not listed."""

    def __init__(self, content: "Arrays", name: str, parts: "Arrays | None" = None):
        self.content, self.name, self.made = content, name, dict[str, np.ndarray]()
        self.all = {**(parts or {}), **content}

    def keys(self) -> list[str]:
        return list(self.content)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.array(key).shape

    def array(self, key: str) -> np.ndarray:
        if key not in self.all:
            raise UserError(f"{self.name}: there is no {key!r}: {nearest(key, self.all)}")
        if key not in self.made:
            self.made[key] = self.all[key]()
        return self.made[key]


@contextmanager
def _own(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    with columns.opened(path, name) as file:
        yield file, {}


@contextmanager
def _csv(path: Path, name: str, header: tuple[str, ...] | None) -> Iterator[tuple[Columns, Keys]]:
    import pandas as pd

    hdf5.check_room(4 * hdf5.check_plain_file(path, name), path.name, name)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            lines = [file.readline().strip() for _ in range(2)]
        first = [word.strip().strip('"') for word in lines[0].removeprefix("#").split(separator)]
        numbers = all(map(_is_number, first))
        if numbers and header is None:
            raise UserError(
                f"{name}: {path.name} has no header (its first line: {lines[0][:60]}); name its {len(first)}"
                " columns: --columns obs_0,obs_1,action_0,reward,terminated,truncated"
            )
        titles = list(header or first)
        wide = len((lines[1] or lines[0]).split(separator))
        if len(titles) != wide or len(set(titles)) < len(titles):
            raise UserError(
                f"{name}: {path.name} has {wide} columns, {len(titles)} names: {', '.join(titles)[:200]}"
            )
        table = pd.read_csv(
            path,
            sep=separator,
            names=titles,
            header=None,
            skiprows=0 if numbers else 1,
            index_col=False,
            float_precision="round_trip",
            low_memory=False,
            skipinitialspace=True,
        )
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{name}: {path} cannot be read as csv ({words})") from None
    plain = {k: lambda k=k: _numbers_of(table[k], f"{name}: column {k!r}", k) for k in titles}
    yield _Lazy(_vectors(plain), name, plain), {}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _numbers_of(column: Any, what: str, key: str) -> np.ndarray:
    """A column of a table; texts are numbered where they name episodes."""
    if column.isna().any():
        raise UserError(f"{what} has {int(column.isna().sum())} missing values")
    if column.dtype.kind == "O" and key in columns.NAMES["episodes"]:
        return np.asarray(column.factorize()[0])
    if not len(column):
        raise UserError(f"{what} has no rows")
    if column.dtype.kind not in "fiub":
        raise UserError(f"{what} holds text, not numbers (first: {str(column.iloc[0])[:40]!r})")
    return column.to_numpy()


def _vectors(plain: Arrays) -> dict[str, Callable[[], np.ndarray]]:
    """`obs_0, obs_1` (from 0 on, none left out) as one column `obs`, the others as they are."""
    parts: dict[str, dict[int, str]] = {}
    for key in plain:
        if match := re.fullmatch(r"(.+?)(?:_|\.|\[)(\d{1,6})\]?", key):
            parts.setdefault(match[1], {})[int(match[2])] = key
    whole = {b: p for b, p in parts.items() if b not in plain and set(p) == set(range(len(p)))}
    grouped = {key for p in whole.values() for key in p.values()}
    found = {k: v for k, v in plain.items() if k not in grouped}
    for base, numbered in whole.items():
        keys = [numbered[i] for i in range(len(numbered))]
        found[base] = lambda keys=keys: np.concatenate([_column(plain[k]()) for k in keys], axis=1)
    return found


def _column(x: np.ndarray) -> np.ndarray:
    """(N,) -> (N, 1), lists as they are."""
    return x.reshape(len(x), -1)


def _parts(folder: Path) -> list[Path]:
    """Parquet files of a folder, or of `data` in it, in the order of their names."""
    inside = folder / "data"
    return sorted(
        p for p in (inside if inside.is_dir() else folder).rglob("*.parquet") if p.is_file()
    )


@contextmanager
def _parquet(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = _parts(path) if path.is_dir() else [path]
    try:
        for part in paths:
            hdf5.check_plain_file(part, name)
        opened = [pq.ParquetFile(part) for part in paths]
        hdf5.check_room(8 * sum(f.metadata.num_rows for f in opened), path.name, name)

        def column(key: str) -> np.ndarray:
            read = [f.read(columns=[key]).column(key).combine_chunks() for f in opened]
            return np.concatenate([_arrow_numbers(x, f"{name}: column {key!r}") for x in read])

        plain = {k: lambda k=k: column(k) for k in opened[0].schema_arrow.names}
        file = _Lazy(_vectors(plain), name, plain)
        lerobot = {"observation.state", "episode_index"} <= set(file.keys())
        yield file, {c: k for c, k in _LEROBOT.items() if lerobot and k[0] in file.keys()}
    except (OSError, pa.ArrowException, MemoryError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{name}: {path} cannot be read as Parquet ({words})") from None


def _arrow_numbers(column: Any, what: str) -> np.ndarray:
    """(N,), or (N, features) of lists of one length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if column.null_count:
        raise UserError(f"{what} has {column.null_count} missing values")
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = (
            pc.min_max(pc.list_value_length(column)).as_py()
            if len(column)
            else {"min": 0, "max": 0}
        )
        if lengths["min"] != lengths["max"]:
            raise UserError(
                f"{what} holds lists of {lengths['min']} to {lengths['max']} numbers, one length is needed"
            )
        return (
            _arrow_numbers(column.flatten(), what).reshape(len(column), -1)
            if lengths["max"]
            else np.zeros((len(column), 0))
        )
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"{what} holds {kind}, not numbers")
    return column.to_numpy(zero_copy_only=False)


@contextmanager
def _d3rlpy(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    with hdf5.opened(path, name) as file:
        if hdf5.has(file, "num_episodes"):
            yield _d3rlpy_2(file, name), {}
            return
        keys = ("observations", "actions", "rewards", "terminals", "episode_terminals")
        content = {k: lambda k=k: hdf5.array(file, k, name) for k in keys if hdf5.has(file, k)}
        if "actions" in content and hdf5.has(file, "discrete_action"):
            discrete = bool(hdf5.array(file, "discrete_action", name).any())
            content["actions"] = lambda: _of_kind(hdf5.array(file, "actions", name), discrete, name)
        yield _Lazy(content, name), {}


def _of_kind(action: np.ndarray, discrete: bool, name: str) -> np.ndarray:
    """Whole numbers where actions are choices, floats where they are not."""
    if not discrete:
        return action if action.dtype.kind == "f" else action.astype(np.float64)
    if not np.array_equal(action, np.round(action)):
        raise UserError(f"{name}: discrete_action is set, and actions are not whole numbers")
    return action.astype(np.int64)


def _d3rlpy_2(file: "h5py.File", name: str) -> Columns:
    count = int(hdf5.array(file, "num_episodes", name).ravel()[:1].sum())
    if not 0 < count <= len(file):
        raise UserError(f"{name}: num_episodes says {count}, which the file does not hold")

    def episodes(key: str) -> Iterator[np.ndarray]:
        for i in range(count):
            x = hdf5.array(file, f"{key}_{i}", name)
            if x.ndim == 0:
                raise UserError(f"{name}: {key}_{i} is a single number, one row a step is expected")
            yield x

    def last_rows(flags: list[bool]) -> np.ndarray:
        """(N,) bool: the flag of an episode at its last row."""
        lengths = [len(x) for x in episodes("actions")]
        if min(lengths) == 0:
            raise UserError(f"{name}: actions_{lengths.index(0)} has no rows")
        found = np.zeros(sum(lengths), bool)
        found[np.cumsum(lengths) - 1] = flags
        return found

    if hdf5.has(file, "observations_0_0"):
        raise UserError(
            f"{name}: its observations are tuples; write them as one array, side by side"
        )
    terminated = lambda: [
        bool(hdf5.array(file, f"terminated_{i}", name).any()) for i in range(count)
    ]
    content = {
        k: lambda k=k: _concatenated(list(episodes(k)), k, name)
        for k in ("observations", "actions", "rewards")
    }
    content["terminals"] = lambda: last_rows(terminated())
    content["ends"] = lambda: last_rows([True] * count)
    return _Lazy(content, name)


def _concatenated(parts: list[np.ndarray], key: str, name: str) -> np.ndarray:
    shapes = {x.shape[1:] for x in parts}
    if len(shapes) > 1:
        raise UserError(
            f"{name}: {key} differs in shape from episode to episode: {sorted(shapes)[:4]}"
        )
    return np.concatenate(parts)


@contextmanager
def _robomimic(path: Path, name: str, _: object) -> Iterator[tuple[Columns, Keys]]:
    with hdf5.opened(path, name) as file:
        data = hdf5.group(file, "data", name)
        number = {k: int(k[5:]) for k in data if re.fullmatch(r"demo_\d{1,9}", k)}
        demos = [hdf5.group(data, k, name) for k in sorted(number, key=number.__getitem__)]
        if not demos:
            raise UserError(
                f"{name}: there is no demo_0 in `data` (found: {', '.join(list(data)[:12]) or 'nothing'})"
            )
        keys = [k for k in demos[0] if k not in ("obs", "next_obs")]
        for folder in ("obs", "next_obs"):
            if hdf5.has(demos[0], folder):
                keys += [f"{folder}/{k}" for k in sorted(hdf5.group(demos[0], folder, name))]

        def array(demo: "h5py.Group", key: str) -> np.ndarray:
            folder, _, last = key.rpartition("/")
            x = hdf5.array(
                hdf5.group(demo, folder, name) if folder else demo, last, f"{name}: {demo.name}"
            )
            if x.ndim == 0:
                raise UserError(
                    f"{name}: {demo.name}/{key} is a single number, one row a step is expected"
                )
            return x

        content = {
            k: lambda k=k: _concatenated([array(d, k) for d in demos], k, name) for k in keys
        }
        lengths = lambda: [len(array(d, "actions")) for d in demos]
        content["demo"] = lambda: np.repeat(np.arange(len(demos)), lengths())
        yield _Lazy(content, name), _robomimic_columns(demos[0], keys, name)


def _robomimic_columns(demo: "h5py.Group", keys: list[str], name: str) -> Keys:
    """Vectors of `obs` side by side; those of `next_obs` where they are all there."""
    folder = hdf5.group(demo, "obs", name) if hdf5.has(demo, "obs") else {}
    vectors = [
        k for k in keys if k.startswith("obs/") and len(hdf5.shape(folder, k[4:], name)) <= 2
    ]
    known: dict[str, tuple[str, ...]] = {"episodes": ("demo",)}
    if vectors:
        known["observations"] = tuple(vectors)
        after = tuple(f"next_{k}" for k in vectors)
        if set(after) <= set(keys):
            known["next_observations"] = after
    return known


_READERS: Mapping[str, Reader] = {
    "csv": _csv,
    "parquet": _parquet,
    "d3rlpy": _d3rlpy,
    "robomimic": _robomimic,
    "npz": _own,
    "hdf5": _own,
}
