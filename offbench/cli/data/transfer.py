"""`offbench data fetch`, `pack` and `unpack`: datasets brought here, or to another machine."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from offbench.cli.console import make_console
from offbench.data import composition
from offbench.errors import UserError
from offbench.io import slug
from offbench.tasks import files, locate, registry
from offbench.tasks.embedded import data_of, manifests
from offbench.tasks.loading import check_file
from offbench.tasks.locate import canonical

if TYPE_CHECKING:
    from offbench.tasks.task import Task


def fetch(options: argparse.Namespace) -> int:
    """Downloads the datasets `options.ids`, or the parts of a composed one."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    cards = [card for name in options.ids for card in _cards(name)]
    console = make_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bars:
        for card in cards:
            bar = bars.add_task(card.id, total=None)
            update = lambda done, total, bar=bar: bars.update(bar, completed=done, total=total)
            path = _embedded_at(card) or locate.fetch(card, update, verify=True)
            console.print(f"{card.id}: {path}", soft_wrap=True)
    return 0


def _cards(name: str) -> "Iterator[Task]":
    """The card of an id, or those of the parts of a composition."""
    parsed = composition.parse(canonical(name))
    for part in [name] if isinstance(parsed, str) else parsed.leaves:
        yield registry.describe(part)


def _embedded_at(card: "Task") -> Path | None:
    """Folder of an embedded dataset, else None. UserError for a file that is missing or was changed."""
    if card.family != "offbench":
        return None
    assert card.path is not None
    folder = card.path
    check_file(folder / "data" / "main_data.hdf5", card.sha256 or "", card.id)
    return folder


# --- pack, unpack ---------------------------------------------------------------------------


def pack(options: argparse.Namespace) -> int:
    """Writes the datasets `options.names` into the archive `options.out`."""
    items: dict[str, Path] = {}
    for name in options.names:
        items |= _items(name)
    manifest = files.pack(items, Path(options.out))
    total = sum(f["size"] for f in manifest["files"].values())
    print(f"{options.out}: {len(manifest['files'])} files, {total:,} bytes")
    return 0


def _items(name: str) -> dict[str, Path]:
    """Name in the archive -> file or folder, for one dataset or the parts of a composition."""
    if Path(name).exists() and name not in manifests():
        return {f"files/{Path(name).resolve().name}": Path(name)}
    items: dict[str, Path] = {}
    for card in _cards(name):
        if (folder := _embedded_at(card)) is not None:
            # of a goal-conditioned task, the manifest of the set whose data it shares, too
            data = data_of(card.id)
            for one in (card.id, data):
                manifest = f"{slug(one)}.yaml"
                items[f"datasets/{manifest}"] = manifests()[one][0] / manifest
            items[f"datasets/minari/{data}"] = folder
        elif (path := locate.locate(card)) is not None:
            items[card.id if card.family == "minari" else card.files[0].name] = path
        else:
            raise UserError(f"{card.id} is not here; get it with: offbench data fetch {card.id}")
    return items


def unpack(options: argparse.Namespace) -> int:
    """Unpacks `options.archive` into `options.folder`, or where datasets are found."""
    archive = Path(options.archive)
    if not archive.is_file():
        raise UserError(f"{archive} is not there")
    folder = Path(options.folder) if options.folder else files.cache_dir()
    paths = files.unpack(archive, folder)
    print(f"{folder}: {len(paths)} files")
    if (folder / "datasets").is_dir():
        print(f"embedded sets are found with OFFBENCH_DATASETS={folder / 'datasets'}")
    return 0
