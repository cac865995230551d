"""The registry of tasks: dataset ids and their tasks.

    d4rl/hopper-medium-v2                              also: hopper-medium-v2
    minari/mujoco/hopper/medium-v0                     also: mujoco/hopper/medium-v0
    ogbench/cube-single-play-v0                        also: cube-single-play-v0
    ogbench/cube-single-play-singletask-task2-v0       also: ...-singletask-v0 (the default task)
    ogbench/scene-play-sparse-singletask-task1-v0      rewards -1 until all is done
    ogbench/cube-quadruple-play-100m-v0                a folder of parts
    ogbench/cube-single-play-v0-val                    the validation file
    offbench/hopper/medium-replay-v0                   embedded, see datasets/

`describe(id).id` has the prefix of its family, so that sets with similar names (`hopper-medium-v2`,
`mujoco/hopper/medium-v0`) are never one column of a table. The families' modules describe their ids:
`d4rl`, `minari`, `ogbench`, `embedded`. Nothing heavy is imported before data are loaded.
"""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from offbench.errors import UserError, unknown
from offbench.tasks import d4rl, embedded, minari, ogbench
from offbench.tasks.task import Task


def describe(dataset_id: str, *, kind: str = "dataset") -> Task:
    """The task of an id, with the metadata of a downloaded Minari set.

    Args:
        kind: what errors call the id.

    Raises:
        UserError: the id is unknown; names the nearest ids.
    """
    known = embedded.manifests()
    name = canonical(dataset_id, known)
    task = embedded.task(name, known)
    family, _, rest = name.partition("/")
    if task is None and family in _DESCRIBE:
        task = _DESCRIBE[family](rest)
    if task is None:
        raise _unknown(kind, dataset_id)
    return task


_DESCRIBE: Mapping[str, Callable[[str], Task | None]] = {
    "d4rl": d4rl.task,
    "minari": minari.task,
    "ogbench": ogbench.task,
}


def _unknown(kind: str, dataset_id: str) -> UserError:
    """The error for an unknown id, with ids of the same words, else the nearest ones."""
    alike = sounds_like(dataset_id)
    family = dataset_id.partition("/")[0]
    alike = tuple(name for name in alike if name.startswith(f"{family}/")) or alike
    if not alike:
        return unknown(kind, dataset_id, _choices(dataset_id))
    tail = " These are different data." if len(alike) > 1 else ""
    return UserError(
        f"unknown {kind} {dataset_id!r}: did you mean {' or '.join(map(repr, alike))}?{tail}"
    )


def sounds_like(dataset_id: str) -> tuple[str, ...]:
    """Other listed ids with the same words, of the same version if there are any: for
    `hopper/medium-v0`, `d4rl/hopper-medium-v0` and `minari/mujoco/hopper/medium-v0`."""
    words, version = _sound(dataset_id)
    alike = [name for name in _by_sound().get(words, ()) if name != canonical(dataset_id)]
    same = [name for name in alike if _sound(name)[1] == version]
    return tuple(same or alike)


_FAMILIES = re.compile(r"^((d4rl|minari|ogbench|offbench|mujoco|gym)/)+")


def _sound(dataset_id: str) -> tuple[str, str]:
    """(words, version) of an id, without the names of family and task."""
    plain = _FAMILIES.sub("", dataset_id.strip("/").lower())
    plain = re.sub(r"[/_ ]+", "-", plain)
    match = re.fullmatch(r"(.*?)(?:-?(v\d+))?", plain)
    assert match is not None
    words = re.sub(
        r"^(pointmaze|maze2d)-(?=(open|umaze|medium|large)(-dense)?$)", "maze2d-", match[1]
    )
    return words, match[2] or ""


@functools.cache
def _by_sound() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in ids():
        words = _sound(name)[0]
        found[words] = (*found.get(words, ()), name)
    return MappingProxyType(found)


def alias_note(dataset_id: str) -> str | None:
    """A note on the set that an ambiguous short id stands for; None for other ids."""
    name = canonical(dataset_id)
    if name == dataset_id:
        return None
    others = [n for n in sounds_like(name) if n.split("/")[0] != name.split("/")[0]]
    return f"{dataset_id} is {name}, not {' or '.join(others)} (other data)" if others else None


def canonical(dataset_id: str, known: "embedded.Manifests | None" = None) -> str:
    """The id with the prefix of its family and the number of its task; unknown ids unchanged.

    `known` are the embedded sets, where the caller has listed them already.
    """
    name = dataset_id.strip("/")
    if name in (embedded.manifests() if known is None else known):
        return name
    family, _, rest = name.partition("/")
    if family in ("mujoco", "D4RL"):
        return f"minari/{name}"
    if family == "ogbench" or not rest:
        plain = rest or name
        if plain in d4rl.rows() and family != "ogbench":
            return f"d4rl/{plain}"
        parsed = ogbench.parse(plain)
        if parsed is not None:
            return f"ogbench/{parsed.name}"
    return name


def _choices(dataset_id: str) -> list[str]:
    """Listed ids to compare a misspelt one with: with prefixes where it has one."""
    family, _, rest = dataset_id.partition("/")
    known = ids()
    if not rest:
        return [name.split("/", 1)[1] for name in known]
    same = [name for name in known if name.startswith(f"{family}/")]
    return same or [*known, *(n.removeprefix("minari/") for n in known)]


@functools.cache
def ids() -> tuple[str, ...]:
    """Every listed id, without aliases, validation files and sparse variants."""
    d4rl_ids = [f"d4rl/{name}" for name in d4rl.rows()]
    minari_ids = [f"minari/{name}" for name in minari.LISTED]
    sets = [f"ogbench/{name}" for name in ogbench.SETS]
    single = [
        f"ogbench/{name.removesuffix('-v0')}-singletask-task{task}-v0"
        for name in ogbench.SETS
        if not name.startswith("powderworld")
        for task in range(1, 6)
    ]
    return (*embedded.manifests(), *d4rl_ids, *minari_ids, *sets, *single)


def listing() -> list[tuple[str, str]]:
    """(id, summary) of every listed set."""
    return [(name, _summary(name)) for name in ids()]


def _summary(name: str) -> str:
    try:
        return describe(name).summary
    # a damaged set that lies here; the others are listed none the less
    except UserError as error:
        return str(error).removeprefix(f"{name}: ")
