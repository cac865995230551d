"""`offbench data ...`: what sets there are, what is in them, and how they get here.

Each command is a function of a list of arguments that returns the exit code; a mistake of the user
is a UserError.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from offbench.data import compose, composition
from offbench.data.replay import ACTION_TOLERANCE
from offbench.errors import UserError, unknown
from offbench.io import sha256_of, slug
from offbench.tasks import doctor, files, registry
from offbench.tasks.custom import read_for
from offbench.tasks.embedded import manifests
from offbench.tasks.loading import check_file, load_data, of_this_copy
from offbench.tasks.locate import canonical, fetch, load_task, locate, ready

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from offbench.data.replay import ReplayData
    from offbench.tasks.formats.arrays import Reading
    from offbench.tasks.formats.d4rl import Boundaries
    from offbench.tasks.formats.foreign import Read
    from offbench.tasks.task import Task

USAGE = """\
data list [WORD]                                    sets known here, and how each comes here
data show ID|PATH [--png FOLDER]                    what is in a set, with a histogram of its returns
data check ID|PATH [--limit STEPS] [--env [ENV]] [--actions env|unit]   look for defects, with --env also repeat recorded steps; exit code 1 for a severe one
data import FILE --to DEST.npz [OPTIONS]             write a file of another library in offbench's own layout (.npz or .hdf5)
       --format d3rlpy|robomimic|csv|parquet|npz|hdf5 --map observations=obs,actions=a+b --columns obs_0,action_0,...
       --env ENV --actions env|unit --limit STEPS --overwrite
data make ID... [--steps N --workers N --seed N -o FOLDER]   collect sets again
data fetch ID...                                    download sets
data pack ID|PATH... -o FILE.tar                    take sets to a machine without a network
data unpack FILE.tar [FOLDER]                       put them where they are found there
data compose ID [-o FOLDER]                         make a composed set, keep its card and its list of trajectories
"""


@dataclass(frozen=True)
class Loaded:
    """A set to look at, as it is trained on."""

    data: "ReplayData"
    facts: doctor.Facts
    card: Mapping[str, Any] = field(default_factory=dict)
    # what reading a file showed, besides what the doctor finds in the result
    findings: tuple[doctor.Finding, ...] = ()


def main(args: Sequence[str]) -> int:
    """Run one of the commands. Raises UserError for a mistake in `args`."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not args or args[0] not in COMMANDS:
        if args:
            raise unknown("data command", args[0], COMMANDS)
        raise UserError(f"data needs one of: {', '.join(COMMANDS)}")
    return COMMANDS[args[0]](list(args[1:]))


def _options(
    args: Sequence[str], known: Mapping[str, Callable[[str], Any]], usage: str
) -> tuple[list[str], dict[str, Any]]:
    """Plain arguments, and the values of `--name value` or `--name=value`.

    A value of `_optional` may be left out, and must come after a plain argument.
    """
    plain, values, left = [], {}, list(args)
    while left:
        arg = left.pop(0)
        if not arg.startswith("-") or arg == "-":
            plain.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if name not in known:
            raise UserError(f"unknown option {name!r}: data {usage}")
        if known[name] is _switch:
            value = value or "yes"
        elif not equals and known[name] is _optional:
            value = left.pop(0) if plain and left and not left[0].startswith("-") else ""
        elif not equals:
            if not left:
                raise UserError(f"{name} needs a value: data {usage}")
            value = left.pop(0)
        try:
            values[name.lstrip("-")] = known[name](value)
        except UserError:
            raise
        except ValueError:
            raise UserError(f"{name} {value}: not a whole number") from None
    return plain, values


def _optional(text: str) -> str:
    return text


def _switch(text: str) -> bool:
    if text != "yes":
        raise UserError(f"{text!r}: --overwrite takes no value")
    return True


def _whole(text: str) -> int:
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    return int(text[:-1] if scale > 1 else text) * scale


def _usage(command: str) -> str:
    lines = (line.split("  ")[0] for line in USAGE.splitlines())
    return next(line for line in lines if line.split()[1:2] == [command]).removeprefix("data ")


def _console() -> "Console":
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


# --- what is there --------------------------------------------------------------------------


def _list(args: Sequence[str]) -> int:
    from offbench.recipes import COLLECTIONS, RECIPES

    words, _ = _options(args, {}, _usage("list"))
    rows: dict[str, str] = {}
    for name, (_, m) in manifests().items():
        rows[name] = f"here: {m['summary']}"
    for name, recipe in RECIPES.items():
        rows.setdefault(name, f"data make: {recipe.summary}")
    for name, collection in COLLECTIONS.items():
        rows.setdefault(name, f"data make: {collection.summary}")
    for name, about in registry.listing():
        rows[name] = f"{about}; also data make" if name in rows else about
    for name, made_of in composition.MIXED.items():
        rows.setdefault(name, made_of)
    shown = {k: v for k, v in rows.items() if all(w in k or w in v for w in words)}
    if not shown:
        raise UserError(f"no set matches {' '.join(words)!r}")
    width = max(map(len, shown))
    for name, about in sorted(shown.items()):
        print(f"{name:{width}}  {about}")
    return 0


def load(
    name: str, *, limit: int | None = None, env: str | None = None, actions: str = "env"
) -> Loaded:
    """A set by id or path, a file as a run with that limit, environment and units of actions reads it.

    UserError for one that is unknown, absent or damaged.
    """
    if Path(name).exists() and name not in manifests():
        return _from_path(Path(name), name, limit, env, actions)
    name = canonical(name)
    if composition.is_composed(name):
        composed = compose.build(name, _replay)
        facts = doctor.Facts.of(load_task(composed.card["base"]))
        parts = composition.parse(name).leaves  # type: ignore[union-attr]  # no plain id
        facts = replace(facts, id=composed.id, repeats=True, parts=parts)
        return Loaded(composed.data, facts, composed.card)
    # an unknown one is called a dataset
    registry.describe(name)
    task = ready(load_task(name))
    data, _ = load_data(task, defects="ignore")
    return Loaded(data, doctor.Facts.of(task), _card(task), tuple(of_this_copy(task)))


def _replay(name: str) -> "ReplayData":
    if Path(name).is_file() and name not in manifests():
        raise UserError(f"{name}: a file given by its path cannot be part of a composition")
    return load(name).data


def _card(task: "Task") -> Mapping[str, Any]:
    """What is told of a set by its id."""
    known = manifests()
    if task.id in known:
        return known[task.id][1]
    card = registry.describe(task.id)
    notes = list(card.notes)
    if alike := [n for n in registry.sounds_like(card.id) if n.split("/")[0] != card.family]:
        notes.append(f"not {' or '.join(alike)}, which only sounds like it")
    return {
        "env": {"id": card.env},
        "differs": card.differs,
        "refused": card.refused,
        "notes": notes,
        "reference": card.ref_source,
        "path": "not here" if task.path is None else str(task.path),
        "sha256": task.sha256,
    }


def _from_path(path: Path, name: str, limit: int | None, env: str | None, actions: str) -> Loaded:
    from offbench.tasks.custom import own_task
    from offbench.tasks.formats import arrays, d4rl, minari

    kind = arrays.layout(path, name=name)
    task = None
    if env is not None:
        task = own_task(path, env=env, id=name, max_episode_steps=limit, actions=actions)  # type: ignore[arg-type]
    facts = (
        doctor.Facts(id=name, max_episode_steps=limit) if task is None else doctor.Facts.of(task)
    )
    if kind == "minari":
        meta = minari.metadata(path, name=name)
        ref = meta.eval_env or meta.env
        known = facts.max_episode_steps or (None if ref is None else ref.max_episode_steps)
        found = ()
        if task is not None or ref is not None:
            # evaluation says what its environment lacks
            with contextlib.suppress(UserError):
                found = tuple(of_this_copy(task or own_task(path, id=name)))
        return Loaded(
            minari.load(path, name=name), replace(facts, max_episode_steps=known), findings=found
        )
    if kind == "ogbench":
        data = arrays.load(path, name=name, env=env)
        teleports, goals = "teleport" in path.name, not bool(data.reward.any())
        return Loaded(data, replace(facts, terminal_inside=True, teleports=teleports, goals=goals))
    facts = replace(facts, max_episode_steps=facts.max_episode_steps or _limit(path))
    reading = arrays.Reading(
        max_episode_steps=facts.max_episode_steps, limit_given=limit is not None
    )
    raw, at = arrays.steps(
        path, name=name, reading=task.reading if task and task.reading else reading
    )
    found = [doctor.Finding("boundaries", "info", at.words)]
    if facts.max_episode_steps is None and (apparent := _apparent_limit(at)):
        facts = replace(facts, max_episode_steps=apparent, limit_guessed=True)
        words = f"taken from the longest episodes: {apparent} steps (--limit says otherwise)"
        found.append(doctor.Finding("time_limit", "info", words))
    largest = float(np.abs(raw.action).max(initial=0.0))
    if task is None and np.isfinite(largest) and largest > 1 + ACTION_TOLERANCE:
        words = (
            f"actions reach {largest:.4g}, outside [-1, 1]: recorded in the environment's own bounds;"
            " --env ID compares with them, and a run scales from them"
        )
        found.append(doctor.Finding("action_range", "warning", words, {"largest": largest}))
        raw = raw._replace(action=raw.action / largest)
    return Loaded(d4rl.build(raw, at, name=name), facts, findings=tuple(found))


def _apparent_limit(at: "Boundaries") -> int | None:
    """Steps of the longest episodes that were cut, if one in twenty and three at least are as long."""
    ends = np.flatnonzero(at.end)
    lengths = np.diff(ends, prepend=-1)[~at.terminal[ends]]
    same = int((lengths == lengths.max(initial=0)).sum())
    return int(lengths.max()) if same >= max(3, len(ends) / 20) else None


def _limit(path: Path) -> int | None:
    """Steps of an episode in a file that has the name of a published one."""
    if path.suffix not in (".hdf5", ".h5"):
        return None
    found = {
        c.max_episode_steps
        for c in map(registry.describe, registry.ids())
        if any(Path(f.name).name == path.name for f in c.files)
    }
    return found.pop() if len(found) == 1 else None


# --- show, check ----------------------------------------------------------------------------


def _one(args: Sequence[str], command: str, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    plain, options = _options(args, known, _usage(command))
    if len(plain) != 1:
        raise UserError(f"one set is needed: data {_usage(command)}")
    return plain[0], options


def _show(args: Sequence[str]) -> int:
    name, options = _one(args, "show", {"--png": str})
    console = _console()
    try:
        found = load(name)
    except UserError:
        _show_what_is_known(name, console)
        raise
    report = doctor.check(found.data, found.facts)
    _print_card(found.facts, found.card, found.data, report, console)
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


def _show_what_is_known(name: str, console: "Console") -> None:
    """The card of a set that is not here and cannot be had now; nothing for a name that is no id."""
    if Path(name).exists() or composition.is_composed(canonical(name)):
        return
    registry.describe(name)
    task = load_task(name)
    if task.sha256 is None:
        facts = doctor.Facts.of(task)
        report = doctor.Report(task.id, 0, 0, tuple(doctor.known_defects(task.id)))
        _print_card(facts, _card(task), None, report, console)


def _print_card(
    facts: doctor.Facts,
    card: Mapping[str, Any],
    data: "ReplayData | None",
    report: doctor.Report,
    console: "Console",
) -> None:
    from rich.table import Table

    rows: dict[str, Any] = {"id": facts.id, "summary": card.get("summary")}
    if data is not None:
        rows["transitions"] = f"{report.rows:,} in {report.episodes:,} episodes"
        rows["dimensions"] = f"{data[0].shape[1]} observed, {data[1].shape[1]} acted"
    rows["environment"] = (card.get("env") or {}).get("id") or card.get("refused")
    rows["differs"] = card.get("differs") or None
    rows["limit"] = f"{facts.max_episode_steps} steps" if facts.max_episode_steps else None
    if facts.score == "success":
        rows["score"] = "share of successes, in percent"
    elif facts.ref_min is not None:
        rows["score"] = f"0 at a return of {facts.ref_min:g}, 100 at {facts.ref_max:g}"
    rows["made by"] = (card.get("recipe") or {}).get("algorithm")
    rows["base"] = card.get("base")
    rows["references"] = card.get("reference") or None
    rows["note"] = "\n".join(card.get("notes") or ()) or None
    rows["path"] = card.get("path")
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


def _check(args: Sequence[str]) -> int:
    from rich.table import Table

    name, options = _one(args, "check", {"--limit": _whole, "--env": _optional, "--actions": str})
    env, actions = options.get("env") or None, options.get("actions", "env")
    if actions not in ("env", "unit"):
        raise unknown("--actions", actions, ("env", "unit"))
    found = load(name, limit=options.get("limit"), env=env, actions=actions)
    console = _console()
    limit, facts = options.get("limit"), found.facts
    if (
        limit is None
        and facts.max_episode_steps is None
        and not (facts.goals or facts.terminal_inside)
    ):
        limit = doctor.apparent_limit(found.data)
        if limit is not None:
            console.print(
                f"limit taken from the longest episodes: {limit} steps (--limit says otherwise)"
            )
    if limit is not None:
        guessed = "limit" not in options
        facts = replace(facts, max_episode_steps=limit, limit_guessed=guessed)
        found = replace(found, facts=facts)
    path = Path(name)
    sha256 = sha256_of(path) if path.is_file() else found.card.get("sha256")
    report = doctor.check(found.data, found.facts, sha256=sha256)
    table = Table("severity", "check", "found", box=None, pad_edge=False)
    table.columns[2].overflow = "fold"
    report = replace(report, findings=(*report.findings, *found.findings))
    for f in report.findings:
        table.add_row(_label(f.severity, f.severity), f.name.replace("_", " "), f.words)
    if "env" in options:
        table.add_row(*_repeated(name, env, options.get("limit"), actions))
    console.print(f"{report.id}: {report.rows:,} transitions in {report.episodes:,} episodes")
    console.print(table)
    try:
        console.print(f"\nreport: {doctor.save(report)}", soft_wrap=True)
    except OSError as error:
        raise UserError(
            f"the report cannot be kept in {files.cache_dir()} ({error.strerror}); set OFFBENCH_DATA"
        ) from None
    return 1 if report.severe else 0


def _repeated(name: str, env: str | None, limit: int | None, actions: str) -> tuple[str, str, str]:
    """A row on how well an environment repeats the recorded steps."""
    from offbench.tasks.consistency import one_step
    from offbench.tasks.custom import own_task

    try:
        if Path(name).exists() and name not in manifests():
            if env is None and Path(name).is_file():
                raise UserError("a file names no environment; give one: --env HalfCheetah-v5")
            task = own_task(name, env=env, max_episode_steps=limit, actions=actions)  # type: ignore[arg-type]
        else:
            task = ready(load_task(name))
        found = one_step(task)
    except UserError as error:
        return _label("info", "info"), "environment", str(error)
    severity = "info" if found.agrees else "warning"
    return _label(severity, severity), "environment", found.words


# --- import ---------------------------------------------------------------------------------


def _import(args: Sequence[str]) -> int:
    from offbench.tasks.formats import arrays, foreign

    words = ("--to", "--format", "--map", "--columns", "--env", "--actions")
    name, options = _one(
        args, "import", dict.fromkeys(words, str) | {"--limit": _whole, "--overwrite": _switch}
    )
    path, env, actions = Path(name).expanduser(), options.get("env"), options.get("actions", "env")
    if "to" not in options:
        raise UserError(f"{name}: where to is missing: --to {path.stem}-offbench.npz")
    dest = Path(options["to"]).expanduser()
    arrays.check_ending(dest)
    if dest.exists() and "overwrite" not in options:
        raise UserError(f"{dest} is there already; --overwrite replaces it")
    if actions not in ("env", "unit"):
        raise unknown("--actions", actions, ("env", "unit"))
    if actions == "unit" and env is None:
        raise UserError(
            f"{name}: --actions unit is written in the bounds of an environment; give it: --env ID"
        )
    limit = options.get("limit")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: an episode has at least 1 step")
    format = options.get("format") or foreign.guess(path, name=name)
    given = foreign.parse_map(options["map"]) if "map" in options else {}
    header = (
        tuple(x.strip() for x in options["columns"].split(",")) if "columns" in options else None
    )
    read = foreign.read(path, format, name=name, given=given, header=header)
    reading = arrays.Reading(max_episode_steps=limit, limit_given=limit is not None)
    if env is not None:
        reading = read_for(env, {}, name, limit, limit is not None)
    data, at = arrays.convert(read, dest, name=name, reading=reading, unit=actions == "unit")
    _print_import(read, at.words, reading, f"{name}: read as {format}", env)
    more = f" --env {env}" if env else ""
    print(
        f"written: {dest}, {data.n_transitions:,} transitions in {data.n_episodes:,} episodes; look at them: "
        f"offbench data check {shlex.quote(str(dest))}{more}"
    )
    return 0


def _print_import(
    read: "Read", words: str, reading: "Reading", title: str, env: str | None
) -> None:
    print(title)
    size = lambda x: int(np.prod(x.shape[1:], dtype=int))
    for column, called in read.called.items():
        print(f"  {column:17}  {called} ({size(read.columns[column])})")
    if read.unread:
        print(f"  not read           {', '.join(read.unread)}")
    print(f"  boundaries         {words}")
    action = read.columns["actions"]
    if reading.n_actions is not None:
        units = f"choices of {env}, {reading.n_actions}"
    elif reading.low is not None and reading.high is not None:
        units = f"in the bounds of {env}, {min(reading.low):g} to {max(reading.high):g}"
    elif action.dtype.kind in "iu" and size(action) == 1:
        units = f"choices {action.min()} to {action.max()}"
    else:
        units = f"{action.min():.4g} to {action.max():.4g}, as recorded; --env ID compares with its bounds"
    print(f"  units of actions   {units}")


# --- make, fetch ----------------------------------------------------------------------------


def _make(args: Sequence[str]) -> int:
    from offbench.recipes import COLLECTIONS, RECIPES

    numbers = dict.fromkeys(("--steps", "--workers", "--seed"), _whole)
    ids, options = _options(args, numbers | {"-o": str, "--out": str}, _usage("make"))
    if not ids:
        raise UserError(f"no id is given: data {_usage('make')}")
    if ids == ["all"]:
        ids = list(RECIPES)
    ids = [name if name in RECIPES or name in COLLECTIONS else canonical(name) for name in ids]
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


def _fetch(args: Sequence[str]) -> int:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    ids, _ = _options(args, {}, _usage("fetch"))
    if not ids:
        raise UserError(f"no id is given: data {_usage('fetch')}")
    cards = [card for name in ids for card in _cards(name)]
    console = _console()
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
            path = _embedded_at(card) or fetch(card, update, verify=True)
            console.print(f"{card.id}: {path}", soft_wrap=True)
    return 0


def _cards(name: str) -> "Iterator[Task]":
    """Of an id, or of every part of a composition."""
    made = composition.parse(canonical(name))
    for part in [name] if isinstance(made, str) else made.leaves:
        yield registry.describe(part)


def _embedded_at(card: "Task") -> Path | None:
    """Folder of an embedded set; UserError where its file is not here or not the manifest's."""
    if card.family != "offbench":
        return None
    folder = manifests()[card.id][0] / "minari" / card.id
    check_file(folder / "data" / "main_data.hdf5", card.sha256 or "", card.id)
    return folder


# --- pack, unpack ---------------------------------------------------------------------------


def _pack(args: Sequence[str]) -> int:
    names, options = _options(args, {"-o": str, "--out": str}, _usage("pack"))
    out = options.get("o") or options.get("out")
    if not names or not out:
        raise UserError(f"sets and an archive are needed: data {_usage('pack')}")
    items: dict[str, Path] = {}
    for name in names:
        items |= _items(name)
    manifest = files.pack(items, Path(out))
    total = sum(f["size"] for f in manifest["files"].values())
    print(f"{out}: {len(manifest['files'])} files, {total:,} bytes")
    return 0


def _items(name: str) -> dict[str, Path]:
    """Name in the archive -> file or folder, for one set or the parts of a composition."""
    if Path(name).exists() and name not in manifests():
        return {f"files/{Path(name).resolve().name}": Path(name)}
    items = {}
    for card in _cards(name):
        if (folder := _embedded_at(card)) is not None:
            root, manifest = manifests()[card.id][0], f"{slug(card.id)}.yaml"
            items |= {f"datasets/{manifest}": root / manifest, f"datasets/minari/{card.id}": folder}
        elif (path := locate(card)) is not None:
            items[card.id if card.family == "minari" else card.files[0].name] = path
        else:
            raise UserError(f"{card.id} is not here; get it with: offbench data fetch {card.id}")
    return items


def _unpack(args: Sequence[str]) -> int:
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


def _compose(args: Sequence[str]) -> int:
    name, options = _one(args, "compose", {"-o": str, "--out": str})
    made = compose.build(canonical(name), _replay)
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


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = MappingProxyType(
    {
        "list": _list,
        "show": _show,
        "check": _check,
        "import": _import,
        "make": _make,
        "fetch": _fetch,
        "pack": _pack,
        "unpack": _unpack,
        "compose": _compose,
    }
)
