"""`offbench data make` and `compose`: datasets collected by a recipe, or composed of others."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from offbench.cli.console import make_console
from offbench.cli.data.load import replay_of
from offbench.data import compose
from offbench.errors import UserError, unknown, writing
from offbench.tasks import files
from offbench.tasks.embedded import data_of, manifests
from offbench.tasks.locate import canonical


def make(options: argparse.Namespace) -> int:
    """Collects the datasets `options.ids`; "all" is every embedded one."""
    from offbench.recipes import COLLECTIONS, RECIPES

    numbers = {name: getattr(options, name) for name in ("steps", "workers", "seed")}
    numbers = {name: number for name, number in numbers.items() if number is not None}
    ids = list(RECIPES) if options.ids == ["all"] else options.ids
    ids = [name if name in RECIPES or name in COLLECTIONS else canonical(name) for name in ids]
    for name in ids:
        if name not in RECIPES and name in manifests() and (data := data_of(name)) != name:
            raise UserError(f"{name} has the data of {data}: offbench data make {data}")
        if name not in RECIPES and name not in COLLECTIONS:
            raise unknown("recipe", name, {*RECIPES, *COLLECTIONS})
        if name in RECIPES and numbers:
            raise UserError(f"{name}: an embedded set has no --{min(numbers)}; its recipe fixes it")
    for name in ids:
        print(f"{name}: {_make_one(name, options.out, numbers)}")
    return 0


def _make_one(name: str, out: str | None, numbers: Mapping[str, int]) -> Path:
    """Collects one dataset under a progress bar; its file or folder."""
    from rich.progress import Progress

    from offbench.recipes import RECIPES, collect
    from offbench.recipes import make as make_embedded

    console = make_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(name)
        update = lambda done, total: bars.update(bar, completed=done, total=total)
        if name in RECIPES:
            root = Path(out or os.environ.get("OFFBENCH_DATASETS", "datasets"))
            return make_embedded(name, root, progress=update)
        folder = Path(out) if out else files.cache_dir() / "regenerated" / name.split("/")[0]
        with writing(f"into {folder}"):
            return collect(name, folder, progress=update, **numbers)


def compose_dataset(options: argparse.Namespace) -> int:
    """Composes the dataset `options.id` and writes its card and list of trajectories."""
    composed = compose.build(canonical(options.id), replay_of)
    folder = Path(options.out) if options.out else files.cache_dir() / "composed"
    with writing(f"into {folder}"):
        path = compose.save_index(composed, folder)
    card = composed.card
    print(composed.id)
    print(card["summary"])
    print(f"{card['rows']:,} transitions in {card['episodes']:,} episodes, sha256 {card['sha256']}")
    returns = card["returns"]
    print(
        f"returns {returns['min']:.4g} to {returns['max']:.4g}, mean {returns['mean']:.4g}; "
        f"scored as {card['base']}"
    )
    print(f"card and list of trajectories: {path}")
    return 0
