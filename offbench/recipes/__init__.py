"""Seeded recipes that make the embedded data sets, each a Minari HDF5 file with a manifest
beside it (of some only the manifest ships), and large public sets again that need no download.

``make("offbench/hopper/medium-replay-v0")`` collects the set again from what ships: small
policy files or the oracles of a package, never a download. Two runs with the same versions give
the same ``data_sha256``. ``collect("ogbench/cube-single-play-v0", folder)`` makes one of the
:data:`COLLECTIONS` at any size, in several processes, resumably. Nothing heavy is imported before
a set is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offbench.errors import unknown
from offbench.io import shipped

__all__ = [
    "COLLECTIONS",
    "DATASETS",
    "RECIPES",
    "Collection",
    "Progress",
    "Recipe",
    "collect",
    "find",
    "make",
    "unwatched",
]

Progress = Callable[[int, int], None]
"""Called after each episode with the rows collected so far and the rows wanted."""


def unwatched(done: int, wanted: int) -> None:
    """A progress that nobody is told of."""


DATASETS = shipped("datasets")
"""Where manifests, Minari files and policies are kept: in the checkout, or inside the package."""


@dataclass(frozen=True)
class Recipe:
    """How one data set is made: a function as ``"module:name"`` and its keyword arguments.

    Of a set that is not ``shipped`` only the manifest is here until it is made.
    """

    function: str
    env: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    shipped: bool = True


def _options(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "offbench/hopper/medium-replay-v0": Recipe(
            "offbench.recipes.locomotion:replay",
            "Hopper-v5",
            "Stochastic snapshots of one TRPO run, from the untrained to the medium one.",
            _options(name="hopper", rows=50_000, last=80_000, seed=11),
        ),
        "offbench/halfcheetah/medium-replay-v0": Recipe(
            "offbench.recipes.locomotion:replay",
            "HalfCheetah-v5",
            "Stochastic snapshots of one SAC run, from the untrained to the medium one.",
            _options(name="halfcheetah", rows=40_000, last=24_000, seed=12),
        ),
        "offbench/halfcheetah/expert5-v0": Recipe(
            "offbench.recipes.locomotion:rare_expert",
            "HalfCheetah-v5",
            "57 episodes of uniformly random actions and 3 of the expert, shuffled.",
            _options(name="halfcheetah", random=57, expert=3, seed=13),
        ),
        "offbench/pointmaze-medium-navigate-v0": Recipe(
            "offbench.recipes.ogbench_play:navigate",
            "pointmaze-medium-singletask-v0",
            "A noisy path follower visits random goals in a maze; rewards of the default task.",
            # Of the seeds 14, 101 and 102 the one with the middle share of rows at the goal.
            _options(episodes=100, steps=1000, seed=102),
        ),
        "offbench/pointmaze-medium-stitch-goal-v0": Recipe(
            "offbench.recipes.ogbench_play:stitch",
            "pointmaze-medium-v0",
            "A noisy path follower goes four cells far in a maze; five goals beyond that to reach.",
            _options(episodes=500, steps=200, seed=103),
            shipped=False,
        ),
        "offbench/cube-single-play-v0": Recipe(
            "offbench.recipes.ogbench_play:play",
            "cube-single-singletask-v0",
            "A scripted arm moves a cube to random places; rewards of the default task.",
            _options(episodes=60, steps=1000, seed=15),
        ),
        "offbench/pick-and-place-play-v0": Recipe(
            "offbench.recipes.pick_and_place:play",
            "offbench.tasks.pick_and_place:offbench/PickAndPlace-v0",
            "A script carries an object from place to place in the plane; an environment of offbench's own.",
            _options(episodes=2000, steps=200, seed=20),
            shipped=False,
        ),
        "offbench/hopper/medium-v0": Recipe(
            "offbench.recipes.locomotion:snapshots",
            "Hopper-v5",
            "The stochastic medium snapshot of one TRPO run.",
            _options(name="hopper", rows=50_000, steps=[80_000], seed=16),
            shipped=False,
        ),
        "offbench/halfcheetah/medium-v0": Recipe(
            "offbench.recipes.locomotion:snapshots",
            "HalfCheetah-v5",
            "The stochastic medium snapshot of one SAC run.",
            _options(name="halfcheetah", rows=40_000, steps=[24_000], seed=17),
            shipped=False,
        ),
        "offbench/hopper/medium-expert-v0": Recipe(
            "offbench.recipes.locomotion:snapshots",
            "Hopper-v5",
            "Half of the medium, half of the last snapshot of one TRPO run, stochastic.",
            _options(name="hopper", rows=50_000, steps=[80_000, 300_000], seed=18),
            shipped=False,
        ),
        "offbench/halfcheetah/medium-expert-v0": Recipe(
            "offbench.recipes.locomotion:snapshots",
            "HalfCheetah-v5",
            "Half of the medium, half of the last snapshot of one SAC run, stochastic.",
            _options(name="halfcheetah", rows=40_000, steps=[24_000, 120_000], seed=19),
            shipped=False,
        ),
    }
)
"""Every data set that can be made, by Minari id."""


@dataclass(frozen=True)
class Collection:
    """How a set too large to ship is made: a function as ``"module:name"``, its keyword arguments,
    and the published number of transitions."""

    function: str
    env: str
    summary: str
    steps: int
    options: Mapping[str, Any]


def _ogbench(env: str, kind: str, trajectories: int, length: int, **options: Any) -> Collection:
    name = f"{env.removesuffix('-v0')}-{kind}-v0"
    return Collection(
        "offbench.recipes.ogbench_sets:make",
        env,
        f"OGBench's {name} collected again: {_KINDS[kind]}.",
        trajectories * length,
        _options(env=env, kind=kind, length=length, **options),
    )


_KINDS = {
    "navigate": "a noisy path follower visits one goal after another",
    "stitch": "a noisy path follower goes to a goal four cells away",
    "play": "scripted arm, noisy plans computed ahead",
    "noisy": "scripted arm, closed loop, noisy and sometimes random actions",
}


def _collections() -> dict[str, Collection]:
    """Sizes are those of OGBench's generation commands (seohongpark/ogbench @ 1d41409)."""
    made: dict[str, Collection] = {}
    for size in ("medium", "large", "giant", "teleport"):
        env = f"pointmaze-{size}-v0"
        n, length = (500, 2000) if size == "giant" else (1000, 1000)
        made[f"ogbench/pointmaze-{size}-navigate-v0"] = _ogbench(env, "navigate", n, length)
        made[f"ogbench/pointmaze-{size}-stitch-v0"] = _ogbench(env, "stitch", 5000, 200)
    arms = {"cube-single": 1000, "cube-double": 1000, "cube-triple": 3000, "cube-quadruple": 5000}
    arms |= {"scene": 1000}
    arms |= {"puzzle-3x3": 1000, "puzzle-4x4": 1000, "puzzle-4x5": 3000, "puzzle-4x6": 5000}
    for name, n in arms.items():
        random_actions = 0.2 if name.startswith("puzzle") else 0.1
        made[f"ogbench/{name}-play-v0"] = _ogbench(f"{name}-v0", "play", n, 1000)
        made[f"ogbench/{name}-noisy-v0"] = _ogbench(
            f"{name}-v0", "noisy", n, 1000, random_actions=random_actions
        )
    for maze, limit in (("Open", 300), ("UMaze", 300), ("Medium", 600), ("Large", 800)):
        for dense in ("", "Dense"):
            env = f"PointMaze_{maze}{dense}-v3"
            suffix = "-dense" if dense else ""
            made[f"offbench/pointmaze/{maze.lower()}{suffix}-v0"] = Collection(
                "offbench.recipes.pointmaze:make",
                env,
                f"A noisy waypoint controller visits random goals in {env}.",
                1_000_000,
                _options(env=env, max_episode_steps=limit),
            )
    return made


COLLECTIONS: Mapping[str, Collection] = MappingProxyType(_collections())
"""Sets that can be collected at any size, by id; an `ogbench/` id is that of the published set,
which is another one: see :mod:`offbench.recipes.ogbench_sets`."""


def find(dataset_id: str) -> Recipe:
    """Return the recipe of ``dataset_id``; a ``UserError`` names the nearest ids."""
    if dataset_id in RECIPES:
        return RECIPES[dataset_id]
    raise unknown("recipe", dataset_id, RECIPES)


def collect(
    dataset_id: str,
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = unwatched,
    **changes: Any,
) -> Path:
    """Collect one of the :data:`COLLECTIONS` into ``folder`` and return what was made.

    ``steps`` transitions (default: as many as are published). Interrupted, it goes on where it
    stopped; the number of workers does not change a byte. ``changes`` replace the collection's
    options. A ``UserError`` names the nearest ids.
    """
    if dataset_id not in COLLECTIONS:
        raise unknown("collection", dataset_id, COLLECTIONS)
    chosen = COLLECTIONS[dataset_id]
    name, function = chosen.function.split(":")
    module = importlib.import_module(name)
    return getattr(module, function)(
        dataset_id,
        Path(folder).absolute(),
        module.Options(**{**chosen.options, **changes}),
        steps=chosen.steps if steps is None else steps,
        seed=seed,
        workers=workers,
        progress=progress,
    )


def make(dataset_id: str, root: Path | None = None, *, progress: Progress = unwatched) -> Path:
    """Make ``dataset_id`` under ``root`` (default: the checkout's ``datasets``) and return its
    folder.

    The set goes to ``root/minari/<id>`` and its manifest to ``root/<slug>.yaml``; both are made
    beside their place and moved in when whole, over what was there.
    """
    recipe = find(dataset_id)
    store = importlib.import_module("offbench.recipes.store")
    module, name = recipe.function.split(":")
    function = getattr(importlib.import_module(module), name)
    # Minari takes no relative one
    root = DATASETS if root is None else Path(root).absolute()
    collected = function(root=root, progress=progress, **recipe.options)
    return store.write(dataset_id, collected, recipe, root)
