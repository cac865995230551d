"""Seeded recipes that make the embedded data sets, each a Minari HDF5 file with a manifest
beside it.

``make("offbench/hopper/medium-replay-v0")`` collects the set again from what ships: small
policy files or the oracles of a package, never a download. Two runs with the same versions give
the same ``data_sha256``. Nothing heavy is imported before a set is made.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["DATASETS", "RECIPES", "Progress", "Recipe", "find", "make", "slug"]

Progress = Callable[[int, int], None]
"""Called after each episode with the rows collected so far and the rows wanted."""

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / "datasets", _PACKAGE / "datasets")

# Recognised by the policies: site-packages may hold an unrelated package named datasets.
DATASETS = next((place for place in _PLACES if (place / "policies").is_dir()), _PLACES[0])
"""Where manifests, Minari files and policies are kept: in the checkout, or inside the package."""


@dataclass(frozen=True)
class Recipe:
    """How one data set is made: a function as ``"module:name"`` and its keyword arguments."""

    function: str
    env: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


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
        "offbench/cube-single-play-v0": Recipe(
            "offbench.recipes.ogbench_play:play",
            "cube-single-singletask-v0",
            "A scripted arm moves a cube to random places; rewards of the default task.",
            _options(episodes=60, steps=1000, seed=15),
        ),
    }
)
"""Every data set that can be made, by Minari id."""


def slug(dataset_id: str) -> str:
    """File name of a data set's manifest, without the ending."""
    return dataset_id.replace("/", "--")


def find(dataset_id: str) -> Recipe:
    """Return the recipe of ``dataset_id``; a ``ValueError`` names the nearest ids."""
    if dataset_id in RECIPES:
        return RECIPES[dataset_id]
    near = difflib.get_close_matches(dataset_id, RECIPES, n=3, cutoff=0.4) or sorted(RECIPES)
    raise ValueError(f"no recipe for {dataset_id!r}; did you mean {', '.join(near)}?")


def make(dataset_id: str, root: Path | None = None, *, progress: Progress | None = None) -> Path:
    """Make ``dataset_id`` under ``root`` (default: the checkout's ``datasets``) and return its
    folder.

    The set goes to ``root/minari/<id>`` and its manifest to ``root/<slug>.yaml``; both are made
    beside their place and moved in when whole, over what was there.
    """
    recipe = find(dataset_id)
    store = importlib.import_module("offbench.recipes.store")
    module, name = recipe.function.split(":")
    function = getattr(importlib.import_module(module), name)
    root = DATASETS if root is None else Path(root)
    collected = function(root=root, progress=progress, **recipe.options)
    return store.write(dataset_id, collected, recipe, root)
