"""`offbench data list`: the known datasets."""

import argparse

from offbench.cli.console import print_list
from offbench.data import composition
from offbench.errors import UserError
from offbench.tasks import registry
from offbench.tasks.embedded import manifests


def list_datasets(options: argparse.Namespace) -> int:
    """Prints each dataset whose line has every word of `options.words`."""
    from offbench.recipes import COLLECTIONS, RECIPES

    rows: dict[str, str] = {}
    for name, (_, m) in manifests().items():
        rows[name] = f"here: {m['summary']}"
    shared = {name: m["data"] for name, (_, m) in manifests().items() if "data" in m}
    for name, recipe in RECIPES.items():
        rows.setdefault(name, f"data make: {recipe.summary}")
    for name, collection in COLLECTIONS.items():
        rows.setdefault(name, f"data make: {collection.summary}")
    for name, about in registry.listing():
        made = f"the data of {shared[name]}" if name in shared else "also data make"
        rows[name] = f"{about}; {made}" if name in rows else about
    for name, made_of in composition.MIXED.items():
        rows.setdefault(name, made_of)
    shown = {k: v for k, v in rows.items() if all(w in k or w in v for w in options.words)}
    if not shown:
        raise UserError(f"no set matches {' '.join(options.words)!r}")
    print_list(sorted(shown.items()))
    return 0
