"""Minari datasets (HDF5 and Arrow) -> episodes.

Minari keeps T + 1 observations and T actions per episode, and terminations apart from truncations;
both are kept (concatenating all observations and all actions would shift every episode but the
first). Dict observations are flattened by sorted key and actions
scaled to [-1, 1], see `offbench.tasks.spaces`.

    folder/data/metadata.json           spaces, environment, counts
    folder/data/main_data.hdf5          episode_0/{observations,actions,rewards,terminations,truncations}
    folder/data/<episode>/part-0.arrow  (data_format arrow) the same as columns, T + 1 rows, the last
                                        one padding but for its observation
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.errors import UserError, in_one_line
from offbench.tasks import cache, spaces
from offbench.tasks.formats import hdf5

if TYPE_CHECKING:
    import h5py

_MAX_METADATA = 64 << 20


@dataclass(frozen=True)
class EnvRef:
    """An environment by id and arguments, without code."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None


@dataclass(frozen=True)
class Metadata:
    """The content of `metadata.json`."""

    observation: spaces.Space
    action: spaces.Space
    data_format: str
    # the data were collected in
    env: EnvRef | None
    # named for evaluation, where another one is
    eval_env: EnvRef | None
    dataset_id: str | None
    total_episodes: int | None
    ref_min: float | None
    ref_max: float | None
    # packages of the environment
    requirements: tuple[str, ...] = ()

    @property
    def other_maze(self) -> bool:
        """Whether the walls of the evaluation maze differ from those of the data, as in Minari issue 304
        (antmaze-umaze-diverse is evaluated in a rotated maze)."""
        maps = [ref.kwargs.get("maze_map") for ref in (self.env, self.eval_env) if ref is not None]
        walls = [[[cell == 1 for cell in row] for row in rows] for rows in maps if rows]
        return len(walls) == 2 and walls[0] != walls[1]


def load(folder: Path, *, name: str, terminal_inside: bool = False, sha256: str = "") -> ReplayData:
    """The dataset in a Minari folder (the one that holds `data/`), actions scaled to [-1, 1].

    Large sets are kept as mapped arrays in the cache (`offbench.tasks.cache`).
    Raises UserError naming `name` where a file is damaged or its content does not pass
    `offbench.data.replay.from_episodes`, or where no episode ends.
    """
    meta = metadata(folder, name=name)
    return cache.cached(
        _files(folder, meta),
        ["minari", terminal_inside],
        lambda: _load(folder, meta, name, terminal_inside),
        sha256=sha256,
    )


def _load(folder: Path, meta: Metadata, name: str, terminal_inside: bool) -> ReplayData:
    read = _arrow if meta.data_format == "arrow" else _hdf5
    ended: list[bool] = []

    def episodes() -> Iterator[Episode]:
        for i, (episode, truncated) in enumerate(read(folder, meta, name)):
            ended.append(bool(truncated or np.any(episode.terminal)))
            action = spaces.flatten(meta.action, episode.action, f"{name}: episode {i}: actions")
            obs = spaces.flatten(
                meta.observation, episode.obs, f"{name}: episode {i}: observations"
            )
            yield episode._replace(
                obs=obs.astype(np.float32, copy=False) if obs.dtype == np.float64 else obs,
                action=spaces.scale_action(meta.action, action),
            )

    with np.errstate(over="ignore"):
        data = from_episodes(episodes(), name=name, terminal_inside=terminal_inside)
    if meta.total_episodes not in (None, data.n_episodes):
        raise UserError(
            f"{name}: its metadata say {meta.total_episodes} episodes, {data.n_episodes} are there"
        )
    if not any(ended):
        raise UserError(f"{name}: no episode ends anywhere (no termination and no truncation)")
    return data


# --- metadata -------------------------------------------------------------------------------


def metadata(folder: Path, *, name: str) -> Metadata:
    """The metadata of a Minari folder. UserError where they are missing or invalid."""
    if not folder.is_dir():
        raise UserError(f"{name}: {folder} is not a folder; a Minari set is one that holds `data`")
    path = folder / "data" / "metadata.json"
    if hdf5.check_plain_file(path, name) > _MAX_METADATA:
        raise UserError(f"{name}: {path} is too large")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: {path} cannot be read as json ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: {path} must be a json object")
    observation, action = (
        _space(content, key, name) for key in ("observation_space", "action_space")
    )
    spaces.check_action(action, f"{name}: the action space")
    data_format = content.get("data_format", "hdf5")
    if data_format not in ("hdf5", "arrow"):
        raise UserError(
            f"{name}: the data format {data_format!r} is not supported (hdf5 and arrow are)"
        )
    return Metadata(
        observation=observation,
        action=action,
        data_format=data_format,
        env=_env(content.get("env_spec"), "env_spec", name),
        eval_env=_env(content.get("eval_env_spec"), "eval_env_spec", name),
        dataset_id=_typed(content, "dataset_id", str, name),
        total_episodes=_typed(content, "total_episodes", int, name),
        ref_min=_typed(content, "ref_min_score", (int, float), name),
        ref_max=_typed(content, "ref_max_score", (int, float), name),
        requirements=tuple(map(str, _typed(content, "requirements", list, name) or ())),
    )


def _typed(content: Mapping[str, Any], key: str, kind: Any, name: str) -> Any:
    value = content.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise UserError(f"{name}: its metadata give {key}={str(value)[:80]!r}")
    return value


def _space(content: Mapping[str, Any], key: str, name: str) -> spaces.Space:
    if key not in content:
        raise UserError(f"{name}: its metadata name no {key}")
    value = content[key]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{name}: {key} cannot be read as json") from None
    return spaces.parse(value, f"{name}: {key.replace('_', ' ')}")


def _env(text: Any, key: str, name: str) -> EnvRef | None:
    """Id, arguments and time limit of an environment; its entry point, which is code, is ignored."""
    if text is None:
        return None
    try:
        spec = json.loads(text) if isinstance(text, str) else text
        env, kwargs, limit = spec["id"], spec.get("kwargs") or {}, spec.get("max_episode_steps")
        good = isinstance(env, str) and ":" not in env and isinstance(kwargs, dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good or not (limit is None or (type(limit) is int and limit > 0)):
        raise UserError(f"{name}: its metadata describe no environment in {key}")
    return EnvRef(env, kwargs, limit)


def _files(folder: Path, meta: Metadata) -> list[Path]:
    data = folder / "data"
    parts = data.glob("*/*.arrow") if meta.data_format == "arrow" else [data / "main_data.hdf5"]
    return [data / "metadata.json", *parts]


# --- storage --------------------------------------------------------------------------------


def _hdf5(folder: Path, meta: Metadata, name: str) -> Iterator[tuple[Episode, bool]]:
    with hdf5.opened(folder / "data" / "main_data.hdf5", name, "a Minari file") as file:
        for key in _in_order(list(file), "episode_", name):
            at = f"{name}: {key}"
            group = hdf5.group(file, key, name)
            columns = [
                hdf5.array(group, column, at)
                for column in ("actions", "rewards", "terminations", "truncations")
            ]
            action, reward, terminal, truncated = columns
            obs = _tree(group, "observations", meta.observation, at)
            yield Episode(obs, action, reward, terminal), bool(truncated.any())


def _tree(group: "h5py.Group", key: str, space: spaces.Space, at: str) -> Any:
    if space.kind != "Dict":
        return hdf5.array(group, key, at)
    inner = hdf5.group(group, key, at)
    return {part: _tree(inner, part, sub, at) for part, sub in space.parts.items()}


def _in_order(names: list[str], prefix: str, name: str) -> list[str]:
    """Names of episodes by number, which must be 0, 1, 2, ..."""
    number = {k: k.removeprefix(prefix) for k in names if k.startswith(prefix)}
    wrong = next((k for k, n in number.items() if not (n.isascii() and n.isdecimal())), None)
    if wrong is not None:
        raise UserError(f"{name}: {wrong!r} is no number of an episode")
    ordered = sorted(number, key=lambda k: int(number[k]))
    if [int(number[k]) for k in ordered] != list(range(len(ordered))):
        raise UserError(
            f"{name}: episodes are missing: the numbers do not run from 0 to {len(ordered) - 1}"
        )
    return ordered


def _arrow(folder: Path, meta: Metadata, name: str) -> Iterator[tuple[Episode, bool]]:
    data = folder / "data"
    folders = [p.name for p in data.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))]
    for key in _in_order(folders, "", name):
        parts = sorted((data / key).glob("*.arrow"))
        at = f"{name}: episode {key}"
        if len(parts) != 1:
            raise UserError(f"{at}: {len(parts)} arrow files, one is expected")
        yield _arrow_episode(parts[0], meta, at)


def _arrow_episode(path: Path, meta: Metadata, at: str) -> tuple[Episode, bool]:
    import pyarrow as pa

    hdf5.check_plain_file(path, at)
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all().combine_chunks()
        columns = {}
        for key in ("observations", "actions", "rewards", "terminations", "truncations"):
            if key not in table.column_names:
                raise UserError(f"{at}: there is no column {key!r} in {path.name}")
            space = {"observations": meta.observation, "actions": meta.action}.get(key)
            columns[key] = _numbers(table.column(key).combine_chunks(), space, f"{at}: {key}")
    except (OSError, pa.ArrowException, MemoryError) as error:
        words = in_one_line(error)[:300]
        raise UserError(f"{at}: {path} cannot be read as Arrow ({words})") from None
    shorter = {k: v[:-1] for k, v in columns.items() if k != "observations"}
    action, reward, terminal = (shorter[k] for k in ("actions", "rewards", "terminations"))
    return Episode(columns["observations"], action, reward, terminal), bool(
        shorter["truncations"].any()
    )


def _numbers(column: Any, space: spaces.Space | None, at: str) -> Any:
    """An Arrow column as numpy, a Dict as a mapping of them."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if column.null_count:
        raise UserError(f"{at} has {column.null_count} missing values")
    if space is not None and space.kind == "Dict":
        if not pa.types.is_struct(column.type):
            raise UserError(f"{at} is {column.type}, a structure is expected")
        names = {f.name for f in column.type}
        if absent := sorted(set(space.parts) - names):
            raise UserError(f"{at} has no entry {absent[0]!r}")
        return {
            key: _numbers(column.field(key), part, f"{at} {key!r}")
            for key, part in space.parts.items()
        }
    length = len(column)
    shape: tuple[int, ...] = (length,)
    if pa.types.is_fixed_size_list(column.type):
        shape = (length, *(space.shape if space is not None else (column.type.list_size,)))
        column = column.flatten()
    if not (
        pa.types.is_floating(column.type)
        or pa.types.is_integer(column.type)
        or pa.types.is_boolean(column.type)
    ):
        raise UserError(f"{at} holds {column.type}, not numbers")
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count or values.size != np.prod(shape):
        raise UserError(f"{at} has {values.size} numbers, {shape} are expected")
    return values.reshape(shape)
