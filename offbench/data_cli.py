"""`offbench data ...`: what sets there are, what is in them, and how they get here.

Each command is a function of a list of arguments that returns the exit code; a mistake of the user
is a UserError.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench import compose, doctor, files
from offbench.errors import UserError, unknown

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from offbench.data import ReplayData
    from offbench.tasks import Task

USAGE = """\
data list [WORD]                                    sets known here, and how each comes here
data show ID|PATH [--png FOLDER]                    what is in a set, with a histogram of its returns
data check ID|PATH [--limit STEPS]                  look for defects; exit code 1 for a severe one
data make ID... [--steps N --workers N --seed N -o FOLDER]   collect sets again
data fetch ID...                                    download sets
data pack ID|PATH... -o FILE.tar                    take sets to a machine without a network
data unpack FILE.tar [FOLDER]                       put them where they are found there
data compose ID [-o FOLDER]                         make a composed set, keep its card and its list of trajectories
"""


class Remote(NamedTuple):
    """One file of a set, and where it comes from."""

    url: str
    name: str  # under the cache folder: "d4rl/hopper_medium-v2.hdf5"
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What the command knows of sets that are not embedded; the sources fill it in."""

    ids: Callable[[], Iterable[tuple[str, str]]] = lambda: ()  # (id, one line)
    remote: Callable[[str], Sequence[Remote]] = lambda dataset_id: ()
    load: "Callable[[str], ReplayData] | None" = None
    task: "Callable[[str], Task] | None" = None


@dataclass(frozen=True)
class Loaded:
    """A set to look at: raw arrays where it is a file, what is trained on otherwise."""

    data: "ReplayData | doctor.Flat"
    facts: doctor.Facts
    card: Mapping[str, Any] = field(default_factory=dict)


def main(args: Sequence[str], *, catalog: Catalog | None = None) -> int:
    """Run one of the commands. Raises UserError for a mistake in `args`."""
    if not args or args[0] not in COMMANDS:
        if args:
            raise unknown("data command", args[0], COMMANDS)
        raise UserError(f"data needs one of: {', '.join(COMMANDS)}")
    return COMMANDS[args[0]](list(args[1:]), Catalog() if catalog is None else catalog)


def _options(
    args: Sequence[str], known: Mapping[str, Callable[[str], Any]], usage: str
) -> tuple[list[str], dict[str, Any]]:
    """Plain arguments, and the values of `--name value` or `--name=value`."""
    plain, values, left = [], {}, list(args)
    while left:
        arg = left.pop(0)
        if not arg.startswith("-") or arg == "-":
            plain.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if name not in known:
            raise UserError(f"unknown option {name!r}: data {usage}")
        if not equals:
            if not left:
                raise UserError(f"{name} needs a value: data {usage}")
            value = left.pop(0)
        try:
            values[name.lstrip("-")] = known[name](value)
        except ValueError:
            raise UserError(f"{name} {value}: not a whole number") from None
    return plain, values


def _whole(text: str) -> int:
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    return int(text[:-1] if scale > 1 else text) * scale


def _usage(command: str) -> str:
    lines = (line.split("  ")[0] for line in USAGE.splitlines())
    return next(line for line in lines if line.split()[1] == command).removeprefix("data ")


def _console() -> "Console":
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


# --- what is there --------------------------------------------------------------------------


def _list(args: Sequence[str], catalog: Catalog) -> int:
    from offbench.recipes import COLLECTIONS, RECIPES
    from offbench.tasks import manifests

    words, _ = _options(args, {}, _usage("list"))
    rows: dict[str, str] = {}
    for name, (_, m) in manifests().items():
        rows[name] = f"here: {m['summary']}"
    for name, recipe in RECIPES.items():
        rows.setdefault(name, f"data make: {recipe.summary}")
    for name, collection in COLLECTIONS.items():
        rows.setdefault(name, f"data make: {collection.summary}")
    for name, about in catalog.ids():
        rows[name] = f"{about}; also data make" if name in rows else about
    for name, made_of in compose.MIXED.items():
        rows.setdefault(name, made_of)
    shown = {k: v for k, v in rows.items() if all(w in k or w in v for w in words)}
    if not shown:
        raise UserError(f"no set matches {' '.join(words)!r}")
    width = max(map(len, shown))
    for name, about in sorted(shown.items()):
        print(f"{name:{width}}  {about}")
    return 0


def load(name: str, catalog: Catalog) -> Loaded:
    """A set by id or path. UserError for one that is unknown, absent or damaged."""
    name = compose.MIXED.get(name, name)
    if compose.is_composed(name):
        composed = compose.build(name, lambda part: _replay(part, catalog))
        facts = _facts(composed.card["base"], catalog)
        return Loaded(composed.data, replace(facts, id=composed.id, repeats=True), composed.card)
    path = Path(name)
    if path.exists():
        return _from_path(path, name)
    return _from_id(name, catalog)


def _replay(name: str, catalog: Catalog) -> "ReplayData":
    found = load(name, catalog)
    if isinstance(found.data, doctor.Flat):
        raise UserError(f"{name}: a file given by its path cannot be part of a composition")
    return found.data


def _from_id(name: str, catalog: Catalog) -> Loaded:
    from offbench.tasks import load_task, manifests

    known = manifests()
    if name in known:
        task = load_task(name)
        return Loaded(task.load()[0], doctor.Facts.of(task), known[name][1])
    ids = {name for name, _ in catalog.ids()}
    if name not in ids or catalog.load is None:
        raise unknown("dataset", name, {*known, *ids})
    data = catalog.load(name)
    return Loaded(data, _facts(name, catalog), {})


def _facts(name: str, catalog: Catalog) -> doctor.Facts:
    from offbench.tasks import load_task, manifests

    if name in manifests():
        return doctor.Facts.of(load_task(name))
    if catalog.task is not None:
        return doctor.Facts.of(catalog.task(name))
    return doctor.Facts(id=name)


def _from_path(path: Path, name: str) -> Loaded:
    if path.is_dir():
        from offbench.sources import minari

        if not (path / "data").is_dir():
            raise UserError(f"{name} is a folder without `data` in it: no Minari dataset")
        return Loaded(minari.load(path, name=name), doctor.Facts(id=name))
    if path.suffix not in (".hdf5", ".h5", ".npz"):
        raise UserError(f"{name}: a data file ends in .hdf5 or .npz, or is a Minari folder")
    flat = doctor.read(path)
    goals = path.suffix == ".npz" and not flat.rewards.any()
    return Loaded(flat, doctor.Facts(id=name, goals=goals, teleports="teleport" in path.name))


# --- show, check ----------------------------------------------------------------------------


def _one(args: Sequence[str], command: str, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    plain, options = _options(args, known, _usage(command))
    if len(plain) != 1:
        raise UserError(f"one set is needed: data {_usage(command)}")
    return plain[0], options


def _show(args: Sequence[str], catalog: Catalog) -> int:
    name, options = _one(args, "show", {"--png": str})
    found = load(name, catalog)
    report = doctor.check(found.data, found.facts)
    console = _console()
    _print_card(found, report, console)
    if found.facts.goals:
        console.print("no rewards are recorded, so there are no returns to draw")
        return 0
    values = doctor.returns_of(found.data)
    console.print("\nreturns of its episodes")
    for line in histogram(values):
        console.print(line, markup=False)
    if "png" in options:
        path = draw(values, found.facts, Path(options["png"]))
        console.print(f"\nwritten: {path}", soft_wrap=True)
    return 0


def _print_card(found: Loaded, report: doctor.Report, console: "Console") -> None:
    from rich.table import Table

    facts, card = found.facts, found.card
    rows: dict[str, Any] = {"id": facts.id, "summary": card.get("summary")}
    rows["transitions"] = f"{report.rows:,} in {report.episodes:,} episodes"
    shape = (found.data[0].shape[1], found.data[1].shape[1])
    rows["dimensions"] = f"{shape[0]} observed, {shape[1]} acted"
    rows["environment"] = (card.get("env") or {}).get("id")
    rows["limit"] = f"{facts.max_episode_steps} steps" if facts.max_episode_steps else None
    if facts.score == "success":
        rows["score"] = "share of successes, in percent"
    elif facts.ref_min is not None:
        rows["score"] = f"0 at a return of {facts.ref_min:g}, 100 at {facts.ref_max:g}"
    rows["made by"] = (card.get("recipe") or {}).get("algorithm")
    rows["base"] = card.get("base")
    rows["sha256"] = card.get("sha256")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value is not None:
            table.add_row(key, str(value))
    for finding in report.findings:
        if finding.severity != "info" or finding.name in (
            "returns",
            "normalised_mean",
            "success",
            "lengths",
            "known_defect",
        ):
            table.add_row(_label(finding.severity, finding.name), finding.words)
    console.print(table)


_COLOURS = MappingProxyType({"severe": "bold red", "warning": "yellow", "info": "dim"})


def _label(severity: str, words: str) -> str:
    return f"[{_COLOURS[severity]}]{words.replace('_', ' ')}[/]"


_EIGHTHS = " ▏▎▍▌▋▊▉█"


def histogram(values: "NDArray[Any]", *, bins: int = 16, width: int = 60) -> list[str]:
    """Lines of a histogram in block characters: interval, bar, number of values."""
    import numpy as np

    if np.ptp(values) == 0:
        return [f"{values[0]:>10.4g}  {'█' * width}  {len(values)}"]
    counts, edges = np.histogram(values, bins=min(bins, max(4, len(values))))
    lines = []
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:]):
        eighths = round(8 * width * count / counts.max())
        if count:
            eighths = max(1, eighths)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{low:>10.4g} to {high:<10.4g} {bar:<{width}} {count or ''}".rstrip())
    return lines


def draw(values: "NDArray[Any]", facts: doctor.Facts, folder: Path) -> Path:
    """The histogram as `<id>-returns.png` in a folder, with the references where they are near."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(values, bins=min(40, max(8, len(values) // 4)), color="#4477aa", rwidth=0.95)
    axes.axvline(values.mean(), color="#222222", linewidth=1.2, label=f"mean {values.mean():.4g}")
    low, high = float(values.min()), float(values.max())
    margin = 0.25 * (high - low)
    references = (("score 0", facts.ref_min, ":"), ("score 100", facts.ref_max, "--"))
    for label, at, style in references if facts.score == "return" else ():
        if at is not None and low - margin <= at <= high + margin:
            axes.axvline(at, color="#cc6677", linestyle=style, label=f"{label} at {at:.4g}")
    axes.set_xlabel("return of an episode")
    axes.set_ylabel("episodes")
    title = facts.id if len(facts.id) <= 72 else f"{facts.id[:70]}…"
    axes.set_title(f"{title}  ({len(values):,} episodes)", fontsize=10)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path = folder / f"{doctor.report_path(facts.id).stem}-returns.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None
    return path


def _check(args: Sequence[str], catalog: Catalog) -> int:
    from rich.table import Table

    name, options = _one(args, "check", {"--limit": _whole})
    found = load(name, catalog)
    if "limit" in options:
        found = replace(found, facts=replace(found.facts, max_episode_steps=options["limit"]))
    path = Path(name)
    sha256 = files.sha256_of(path) if path.is_file() else found.card.get("sha256")
    report = doctor.check(found.data, found.facts, sha256=sha256)
    console = _console()
    table = Table("severity", "check", "found", box=None, pad_edge=False)
    table.columns[2].overflow = "fold"
    for f in report.findings:
        table.add_row(_label(f.severity, f.severity), f.name.replace("_", " "), f.words)
    console.print(f"{report.id}: {report.rows:,} transitions in {report.episodes:,} episodes")
    console.print(table)
    try:
        console.print(f"\nreport: {doctor.save(report)}", soft_wrap=True)
    except OSError as error:
        raise UserError(
            f"the report cannot be kept in {files.cache_dir()} ({error.strerror}); set OFFBENCH_DATA"
        ) from None
    return 1 if report.severe else 0


# --- make, fetch ----------------------------------------------------------------------------


def _make(args: Sequence[str], catalog: Catalog) -> int:
    from offbench.recipes import COLLECTIONS, RECIPES

    numbers = dict.fromkeys(("--steps", "--workers", "--seed"), _whole)
    ids, options = _options(args, numbers | {"-o": str, "--out": str}, _usage("make"))
    if not ids:
        raise UserError(f"no id is given: data {_usage('make')}")
    if ids == ["all"]:
        ids = list(RECIPES)
    for name in ids:
        if name not in RECIPES and name not in COLLECTIONS:
            raise unknown("recipe", name, {*RECIPES, *COLLECTIONS})
        if name in RECIPES and (extra := options.keys() & {"steps", "workers", "seed"}):
            raise UserError(f"{name}: an embedded set has no --{min(extra)}; its recipe fixes it")
    out = options.pop("o", None) or options.pop("out", None)
    for name in ids:
        print(f"{name}: {_make_one(name, out, options)}")
    return 0


def _make_one(name: str, out: str | None, options: Mapping[str, int]) -> Path:
    from rich.progress import Progress

    from offbench.recipes import RECIPES, collect, make

    console = _console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task(name)
        update = lambda done, total: bars.update(bar, completed=done, total=total)
        if name in RECIPES:
            root = Path(out or os.environ.get("OFFBENCH_DATASETS", "datasets"))
            return make(name, root, progress=update)
        folder = Path(out) if out else files.cache_dir() / "regenerated" / name.split("/")[0]
        try:
            return collect(name, folder, progress=update, **options)
        except OSError as error:
            raise UserError(f"cannot write into {folder} ({error.strerror or error})") from None


def _fetch(args: Sequence[str], catalog: Catalog) -> int:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    ids, _ = _options(args, {}, _usage("fetch"))
    if not ids:
        raise UserError(f"no id is given: data {_usage('fetch')}")
    wanted = [(name, remote) for name in ids for remote in _remotes(name, catalog)]
    console = _console()
    columns = (
        TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bars:
        for name, remote in wanted:
            path = _lying(remote)
            if path is None:
                bar = bars.add_task(name, total=remote.size)
                update = lambda done, total, bar=bar: bars.update(bar, completed=done, total=total)
                path = files.fetch(*remote, progress=update)
            console.print(f"{name}: {path}", soft_wrap=True)
    return 0


def _remotes(name: str, catalog: Catalog) -> Sequence[Remote]:
    from offbench.tasks import manifests

    name = compose.MIXED.get(name, name)
    if compose.is_composed(name):
        parts = compose.parse(name)
        assert isinstance(parts, compose.Composition)
        return [r for part in parts.leaves for r in _remotes(part, catalog)]
    if name in manifests():
        return []
    remotes = catalog.remote(name)
    if not remotes:
        raise unknown("dataset to download", name, {i for i, _ in catalog.ids()})
    return remotes


def _lying(remote: Remote) -> Path | None:
    """The file where it lies already: in our cache, or in that of the package it comes from."""
    kind, _, rest = remote.name.partition("/")
    if kind in ("d4rl", "minari", "ogbench") and rest:
        found = files.find(kind, rest)
        if found is not None and not found.is_relative_to(files.cache_dir()):
            return found
    return None  # a file of ours is verified by `fetch`


# --- pack, unpack ---------------------------------------------------------------------------


def _pack(args: Sequence[str], catalog: Catalog) -> int:
    names, options = _options(args, {"-o": str, "--out": str}, _usage("pack"))
    out = options.get("o") or options.get("out")
    if not names or not out:
        raise UserError(f"sets and an archive are needed: data {_usage('pack')}")
    items: dict[str, Path] = {}
    for name in names:
        items |= _items(name, catalog)
    manifest = files.pack(items, Path(out))
    total = sum(f["size"] for f in manifest["files"].values())
    print(f"{out}: {len(manifest['files'])} files, {total:,} bytes")
    return 0


def _items(name: str, catalog: Catalog) -> dict[str, Path]:
    """Name in the archive -> file or folder, for one set."""
    from offbench.recipes import slug
    from offbench.tasks import manifests

    name = compose.MIXED.get(name, name)
    if compose.is_composed(name):
        parts = compose.parse(name)
        assert isinstance(parts, compose.Composition)
        return {k: v for part in parts.leaves for k, v in _items(part, catalog).items()}
    known = manifests()
    if name in known:
        root, manifest = slug(name), known[name][0]
        return {
            f"datasets/{root}.yaml": manifest / f"{root}.yaml",
            f"datasets/minari/{name}": manifest / "minari" / name,
        }
    if Path(name).exists():
        return {f"files/{Path(name).resolve().name}": Path(name)}
    items = {}
    for remote in _remotes(name, catalog):
        path = _lying(remote) or files.cache_dir() / remote.name
        if not path.exists():
            raise UserError(f"{name}: {path} is not here; get it with: offbench data fetch {name}")
        items[remote.name] = path
    return items


def _unpack(args: Sequence[str], catalog: Catalog) -> int:
    plain, _ = _options(args, {}, _usage("unpack"))
    if len(plain) not in (1, 2):
        raise UserError(f"one archive is needed: data {_usage('unpack')}")
    archive = Path(plain[0])
    if not archive.is_file():
        raise UserError(f"{archive} is not there")
    folder = Path(plain[1]) if len(plain) == 2 else files.cache_dir()
    paths = files.unpack(archive, folder)
    print(f"{folder}: {len(paths)} files")
    if (folder / "datasets").is_dir():
        print(f"embedded sets are found with OFFBENCH_DATASETS={folder / 'datasets'}")
    return 0


# --- compose --------------------------------------------------------------------------------


def _compose(args: Sequence[str], catalog: Catalog) -> int:
    name, options = _one(args, "compose", {"-o": str, "--out": str})
    name = compose.MIXED.get(name, name)
    made = compose.build(name, lambda part: _replay(part, catalog))
    out = options.get("o") or options.get("out")
    folder = Path(out) if out else files.cache_dir() / "composed"
    try:
        path = compose.save_index(made, folder)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror or error})") from None
    card = made.card
    print(made.id)
    print(card["summary"])
    print(f"{card['rows']:,} transitions in {card['episodes']:,} episodes, sha256 {card['sha256']}")
    returns = card["returns"]
    print(
        f"returns {returns['min']:.4g} to {returns['max']:.4g}, mean {returns['mean']:.4g}; "
        f"judged as {card['base']}"
    )
    print(f"card and list of trajectories: {path}")
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str], Catalog], int]] = MappingProxyType(
    {
        "list": _list,
        "show": _show,
        "check": _check,
        "make": _make,
        "fetch": _fetch,
        "pack": _pack,
        "unpack": _unpack,
        "compose": _compose,
    }
)
