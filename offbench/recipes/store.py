"""From collected episodes to a Minari data set and its manifest.

The manifest pins two digests. ``sha256`` is that of ``main_data.hdf5`` as it ships;
``data_sha256`` is that of the arrays, so it survives another compression or another HDF5
library, and is what "made again identically" means.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offbench import io
from offbench.io import sha256_of, slug

if TYPE_CHECKING:
    from offbench.recipes import Recipe

FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
_PACKAGES = ("numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "ogbench", "h5py")
_LEVELS = {"min": 0.0, "q10": 0.1, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


@dataclass(frozen=True)
class Episode:
    """One trajectory of ``T`` steps; ``observations`` has ``T + 1`` rows."""

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    seed: int


@dataclass(frozen=True)
class Collected:
    """What a recipe hands over: episodes in their final order, and the facts for the manifest."""

    episodes: Sequence[Episode]
    env: str
    max_episode_steps: int
    terminal_inside: bool
    algorithm: str
    how: str
    seeds: dict[str, Any]
    policies: list[dict[str, Any]] = field(default_factory=list)
    score: dict[str, Any] = field(default_factory=dict)
    # of a goal-conditioned task: the numbers of the goals; its rewards are all 0 and not read
    goals: Sequence[int] = ()


def data_digest(episodes: Iterable[Any]) -> str:
    """Return the sha256 over the arrays of ``episodes`` (anything with the attributes of an
    :class:`Episode`).

    Canonical order: episodes by id; in each the fields as in :data:`FIELDS`; of each field a
    line ``name dtype shape`` (numpy's little-endian type string, sizes joined by ``x``), then
    the bytes in C order.
    """
    digest = hashlib.sha256(b"offbench-data-1\n")
    for episode in episodes:
        for name in FIELDS:
            for label, value in _leaves(name, getattr(episode, name)):
                array = np.asarray(value)
                little = array.dtype.newbyteorder("<")
                array = np.ascontiguousarray(array.astype(little, copy=False))
                shape = "x".join(map(str, array.shape))
                digest.update(f"{label} {array.dtype.str} {shape}\n".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a field: itself, or those of a dictionary as ``name/key``, sorted."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key in sorted(value):
        yield from _leaves(f"{name}/{key}", value[key])


def quantiles(returns: Sequence[float]) -> dict[str, float]:
    """Minimum, quantiles and maximum of episode returns, rounded for the manifest."""
    return {k: round(float(np.quantile(returns, q)), 4) for k, q in _LEVELS.items()}


def positive_variance(returns: Sequence[float]) -> float:
    """Positive-sided variance ``E[max(G - E[G], 0)^2]``: how much better than average the best
    episodes are."""
    values = np.asarray(returns, np.float64)
    return float(np.mean(np.maximum(values - values.mean(), 0.0) ** 2))


def episode_return(episode: Any) -> float:
    """Sum of the stored rewards, in float64."""
    return float(np.sum(episode.rewards, dtype=np.float64))


def success_score(
    random: float, oracle: float, *, episodes: int, first_seed: int
) -> dict[str, Any]:
    """The score of a manifest where it is the success, with how often uniform actions and the oracle reach it."""
    return {
        "kind": "success",
        "ref_min": 0.0,
        "ref_max": 1.0,
        "random_success": random,
        "oracle_success": oracle,
        "episodes": episodes,
        "first_seed": first_seed,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the data."""
    return io.versions(_PACKAGES)


@contextmanager
def minari_root(path: Path) -> Iterator[None]:
    """Point Minari at ``path`` for the length of the block."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def write(dataset_id: str, collected: Collected, recipe: Recipe, root: Path) -> Path:
    """Write the Minari set and the manifest under ``root`` and return the set's folder."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as scratch:
        beside = Path(scratch)
        _create(dataset_id, collected, recipe, beside / "minari")
        made = beside / "minari" / dataset_id
        pack_file(made / "data" / "main_data.hdf5")
        set_size(dataset_id, beside / "minari")
        manifest = _manifest(dataset_id, collected, recipe, made)
        return install(dataset_id, beside, root, manifest)


def install(dataset_id: str, beside: Path, root: Path, manifest: dict[str, Any]) -> Path:
    """Move the set made under ``beside/minari`` to its place under ``root``, over what was there,
    write its manifest and return its folder."""
    import yaml

    text = yaml.safe_dump(manifest, sort_keys=False, width=100, allow_unicode=True)
    (beside / "manifest.yaml").write_text(text, encoding="utf-8")
    target = root / "minari" / dataset_id
    _install_namespaces(beside / "minari", root / "minari", dataset_id)
    if target.exists():
        target.rename(beside / "old")
    (beside / "minari" / dataset_id).rename(target)
    (beside / "manifest.yaml").replace(root / f"{slug(dataset_id)}.yaml")
    return target


def _create(dataset_id: str, collected: Collected, recipe: Recipe, root: Path) -> None:
    import gymnasium as gym
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    buffers = [
        EpisodeBuffer(id=i, seed=episode.seed, **{name: getattr(episode, name) for name in FIELDS})
        for i, episode in enumerate(collected.episodes)
    ]
    first = collected.episodes[0]
    obs_shape, act_shape = first.observations.shape[1:], first.actions.shape[1:]
    score = collected.score if collected.score.get("kind") == "return" else {}
    root.mkdir()
    with minari_root(root), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=_spec(collected.env),
            observation_space=gym.spaces.Box(-np.inf, np.inf, obs_shape, np.float32),
            action_space=gym.spaces.Box(-1.0, 1.0, act_shape, np.float32),
            algorithm_name=collected.algorithm,
            author="offbench",
            description=recipe.summary,
            ref_min_score=score.get("ref_min"),
            ref_max_score=score.get("ref_max"),
            requirements=[
                f"{name}=={version(name)}" for name in ("gymnasium", "mujoco", "ogbench")
            ],
            data_format="hdf5",
        )


def _spec(env: str) -> Any:
    """The specification of a registered environment, `module:Id` of one that a module registers."""
    import importlib

    import gymnasium as gym

    module, _, name = env.rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(name)


def pack_file(path: Path) -> None:
    """Rewrite with one compressed chunk an array: the growable chunks Minari writes are mostly air.

    The newer file layout keeps such a chunk without an index tree, which for short episodes is
    two thirds of the file.
    """
    import h5py

    packed = path.with_suffix(".packed")
    with h5py.File(path, "r") as old, h5py.File(packed, "w", libver=("v110", "v110")) as new:
        for number in range(len(old)):
            _copy_group(old[f"episode_{number}"], new.create_group(f"episode_{number}"), FIELDS)
    packed.replace(path)


def _copy_group(source: Any, group: Any, names: Iterable[str]) -> None:
    group.attrs.update(source.attrs)
    for name in names:
        if not hasattr(source[name], "shape"):  # a dictionary of arrays
            _copy_group(source[name], group.create_group(name), source[name])
            continue
        values = source[name][()]
        group.create_dataset(
            name,
            data=values,
            chunks=values.shape,
            compression="gzip",
            compression_opts=9,
            shuffle=True,
        )


def set_size(dataset_id: str, root: Path) -> None:
    """Correct the size in Minari's metadata, which was taken before compression."""
    import minari

    with minari_root(root):
        storage = minari.load_dataset(dataset_id).storage
        storage.update_metadata({"dataset_size": storage.get_size()})


def _install_namespaces(source: Path, target: Path, dataset_id: str) -> None:
    """Make the folders above the set, with the small files by which Minari lists namespaces."""
    folder = Path(dataset_id).parent
    (target / folder).mkdir(parents=True, exist_ok=True)
    while folder != Path("."):
        name = folder / "namespace_metadata.json"
        if (source / name).exists() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)
        folder = folder.parent


def _manifest(dataset_id: str, collected: Collected, recipe: Recipe, made: Path) -> dict[str, Any]:
    data = made / "data" / "main_data.hdf5"
    returns = [episode_return(e) for e in collected.episodes]
    return {
        "id": dataset_id,
        "format": "minari",
        "summary": recipe.summary,
        "env": {"id": collected.env, "kwargs": {}},
        **({"goals": list(collected.goals)} if collected.goals else {}),
        "rows": sum(len(e.rewards) for e in collected.episodes),
        "episodes": len(collected.episodes),
        "max_episode_steps": collected.max_episode_steps,
        "terminal_inside": collected.terminal_inside,
        "terminations": int(sum(e.terminations.sum() for e in collected.episodes)),
        "bytes": sum(f.stat().st_size for f in made.rglob("*") if f.is_file()),
        "sha256": sha256_of(data),
        "data_sha256": data_digest(collected.episodes),
        "returns": quantiles(returns) | {"mean": round(float(np.mean(returns)), 4)},
        "positive_sided_variance": round(positive_variance(returns), 4),
        "score": collected.score,
        "recipe": {
            "function": recipe.function,
            "options": dict(recipe.options),
            "seeds": collected.seeds,
            "algorithm": collected.algorithm,
            "how": collected.how,
        },
        "policies": collected.policies,
        "versions": versions(),
    }
