"""The command line: `offbench COMMAND [key=value ...]`.

A user's mistake ends in one line and exit code 2, a failed run in exit code 1 after all others have
finished.
"""

import os
import re
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import Progress

    from offbench.bench.cells import Cell
    from offbench.bench.plan import Plan
    from offbench.bench.run import Event, Pack
    from offbench.results.leaderboard import Board
    from offbench.results.records import Store
    from offbench.results.validation_table import ValidationTable
    from offbench.tasks.task import Task

HELP = """\
offbench COMMAND [key=value ...]      (offbench COMMAND --help, offbench --version)

  bench     run what is missing of a suite and print its leaderboard  (suite=quick methods=[bc,iql+aw] seeds=[0,1])
  run       the same for one method                  (method=iql task=... seeds=[0,1,2] method.expectile=0.9)
  plan      print every run, every effective value with its source, and how long it will take; run nothing
  board     print the leaderboard of what has been run and write results/board/<suite>.{md,csv}
  diagnose  draw chunk lengths, success by length, and values against returns, into results/board/<suite>-diagnostics
  list      methods | tasks | suites | samplers | views | weights
  data      list | show | check | fetch | make | compose | pack | unpack      (offbench data --help)
  check     method=NAME             run the contract every method must keep
  speed     how fast training is here, against a plain PyTorch loop

A task without suite= has the protocol of the suite that lists it, or of its family: conf/protocols.yaml.
Settings: conf/run.yaml. Method, sampler, view, weight: conf/method, conf/sampler, conf/view, conf/weight.
A method of your own: method._target_=package.Class, or an installed package with an `offbench.conf` entry point.
"""

_USAGE = {  # command -> what it does, the settings it takes, examples
    "bench": ("run what is missing of a suite and print its leaderboard", "key=value ...", (
        "bench suite=quick", "bench methods=[bc,iql+aw] seeds=[0,1]",
        "bench methods=[mymodule.MyMethod,bc] task=d4rl/hopper-medium-v2")),
    "run": ("run what is missing of one method and print the leaderboard", "method=NAME key=value ...", (
        "run method=iql task=offbench/hopper/medium-replay-v0 method.expectile=0.9",
        "run method=bc task.data=my.hdf5 task.env=HalfCheetah-v5 seeds=[0,1]")),
    "plan": ("print every run, every value with its source, and the time needed; run nothing",
             "key=value ...", ("plan", "plan method=td3_bc method.alpha=1.0 n_updates=20000")),
    "board": ("print the leaderboard of what has been run", "key=value ...", ("board suite=quick",)),
    "diagnose": ("draw chunk lengths, success by length, and values against returns", "key=value ...",
                 ("diagnose suite=quick",)),
    "list": ("name what there is", "methods|tasks|suites|samplers|views|weights", ("list methods",)),
    "check": ("run the contract that every method must keep", "method=NAME key=value ...", (
        "check method=iql", "check method._target_=mymodule.MyMethod")),
    "speed": ("measure training here beside a plain PyTorch loop", "key=value ...", (
        "speed", "speed methods=[iql] seeds=[1,8] hidden=[[64,64]]")),
}  # fmt: skip


def _help_of(command: str) -> str:
    """Usage, examples, and the settings with their defaults, in 80 columns."""
    what, settings, examples = _USAGE[command]
    lines = [f"offbench {command} {settings}", "", f"  {what}", ""]
    lines += [f"  offbench {example}" for example in examples]
    if command in ("bench", "run", "plan", "board", "diagnose", "check"):
        lines += ["", "settings and their defaults (conf/run.yaml):", "", *_settings_in_words()]
        lines += [
            "",
            "  method.KEY, sampler.KEY, view.KEY, weight.KEY: see conf/method and the like,",
            "  or `offbench plan method=NAME`, which prints every value with its source",
            "  names: offbench list methods|tasks|suites|samplers|views|weights",
            "  several values: method.expectile=[0.7,0.9]; a list as [a,b], null for none",
        ]
    return "\n".join(lines) + "\n"


def _settings_in_words() -> list[str]:
    """conf/run.yaml as lines of `key=default  what it is`."""
    from offbench.bench.hydra import conf_dir

    lines, above = [], ""
    for line in (conf_dir() / "run.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(?:  - )?( *)([a-z_]+): *([^#]*?) *(?:# *(.*))?", line)
        if match is None or match[2] == "defaults":
            continue
        inner, key, default, words = match.groups()
        if not default:  # the settings below it
            above = f"{key}."
            continue
        head = f"  {above if inner else ''}{key}={default}"
        tail = textwrap.wrap(words or "", 80 - 33) or [""]
        lines += [f"{head:31}  {tail[0]}".rstrip(), *(f"{'':33}{more}" for more in tail[1:])]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args == ["--version"]:
        from offbench.bench.provenance import versions

        print(f"offbench {versions().get('offbench', 'of unknown version')}")
        return 0
    command, rest = args[0], args[1:]
    warnings.formatwarning = _in_one_line
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for method._target_=mymodule.X, of a file that lies here
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        if rest and rest[0] in ("-h", "--help") and command != "data":
            print(_help_of(command), end="")
            return 0
        if command != "data" and (flags := [a for a in rest if a.startswith("-")]):
            raise UserError(
                f"unknown option {flags[0]!r}: settings are written key=value; see offbench --help"
            )
        return COMMANDS[command](rest)
    except UserError as error:
        print(f"offbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "offbench: interrupted; finished runs are kept, the next run continues", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # `offbench list methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_python_s = warnings.formatwarning


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """Of a warning about data, its words; of any other, what Python makes of it."""
    if category.__name__ == "DataWarning":
        return f"offbench: warning: {message}\n"
    return _python_s(message, category, *where, **more)


def _console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False)


# --- bench, run, plan, board ----------------------------------------------------------------


def _bench(args: Sequence[str]) -> int:
    return _execute(args, bench=True)


def _run(args: Sequence[str]) -> int:
    return _execute(args, bench=False)


def _execute(args: Sequence[str], *, bench: bool) -> int:
    from offbench.bench.plan import plan
    from offbench.bench.run import fetched, missing, preflight, resolve_device
    from offbench.results.records import Store

    start, console = time.perf_counter(), _console()
    wanted = plan(args, bench=bench)
    _say_which(wanted, console)
    _say_protocol(wanted, console)
    _say_settings(wanted, console, args)
    _say_differences(wanted, console)
    resolve_device(wanted.settings.device)
    with console.status("looking for the data") as status:
        wanted = replace(wanted, cells=fetched(wanted.cells, report=status.update))
    store = Store(Path(wanted.settings.results))
    todo = missing(wanted.cells, store)
    total = sum(len(c.seeds) for c in wanted.cells)
    left = sum(len(c.seeds) for c in todo)
    console.print(f"{wanted.name}: {total} runs, {total - left} recorded, {left} to do")
    if todo:
        with console.status("checking") as status:
            preflight(todo, strict=wanted.settings.strict, report=status.update)
        store.check_writable()
    failures = _show_progress(todo, store, wanted, console) if todo else []
    for line in failures:
        print(f"offbench: {line}", file=sys.stderr)
    if (board := _board_of(wanted, store)) is not None:
        _print_board(board, wanted, console, args)
        console.print(f"{left} runs in {time.perf_counter() - start:.0f} s")
    return 1 if failures else 0


def _show_progress(
    todo: "Sequence[Cell]", store: "Store", plan: "Plan", console: "Console"
) -> list[str]:
    """Runs the cells under a progress display; returns one line per failure."""
    from rich.markup import escape

    from offbench.bench.run import pack, run_packs

    packs = pack(todo, max_stack=_stack_limit(todo, plan))
    failures: list[str] = []
    with _bars(console) as bars:
        overall = bars.add_task("all", total=sum(len(p.members) for p in packs))
        rows: dict[int, Any] = {}
        done: dict[int, float] = {}
        for event in run_packs(packs, store, plan.settings):
            part = packs[event.index]
            if event.index not in rows:
                rows[event.index] = bars.add_task("", total=1.0)
            text = f"[dim]{event.phase}[/] {escape(part.title)}"
            bars.update(rows[event.index], completed=event.fraction, description=text)
            done[event.index] = event.fraction * len(part.members)
            bars.update(overall, completed=sum(done.values()))
            if event.outcomes or event.error is not None:
                bars.update(rows[event.index], visible=False)
                for line in _finished(part, event):
                    console.print(line, soft_wrap=True)
                failures += _failures(part, event)
    return failures


def _bars(console: "Console") -> "Progress":
    """Rows that fit: of a long title the end is cut, never the share done or the times."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    title = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    fixed = lambda width: Column(no_wrap=True, min_width=width)
    return Progress(
        TextColumn("{task.description}", table_column=title),
        BarColumn(24 if console.width > 100 else 10, table_column=fixed(10)),
        TaskProgressColumn(table_column=fixed(4)),
        TimeElapsedColumn(table_column=fixed(7)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed(7)),
        console=console, disable=not console.is_terminal, transient=True, expand=True,
    )  # fmt: skip


def _stack_limit(todo: "Sequence[Cell]", plan: "Plan") -> int | None:
    """The most runs of one stack: what was asked for, or what a GPU's memory holds."""
    from offbench.bench.forecast import stack_bytes
    from offbench.bench.run import Pack, program_of, resolve_device

    if plan.settings.max_stack is not None:
        return plan.settings.max_stack
    device = resolve_device(plan.settings.device)
    if not device.startswith("cuda"):
        return None
    import torch

    limits = []
    for cell in {(c.task.id, *program_of(c)): c for c in todo}.values():
        data, _ = cell.task.load(defects="ignore")
        size = sum(x.nbytes for x in data) if plan.settings.data == "device" else 0
        free, _ = torch.cuda.mem_get_info(device)
        per_run = stack_bytes(Pack((replace(cell, seeds=cell.seeds[:1]),)))
        limits.append(max(1, int((0.8 * free - size) // per_run)))  # a fifth is left alone
    return min(limits)


def _title(cell: "Cell") -> str:
    return f"{cell.entry} on {cell.task.id} x{len(cell.seeds)}"


def _finished(part: "Pack", event: "Event") -> list[str]:
    from rich.markup import escape

    if event.error is not None:
        return [f"[red]failed[/] {escape(part.title)}"]
    lines = []
    for o in event.outcomes:
        scores = " ".join(f"{s:.1f}" for s in o.scores.values())
        tail = f" [red]{len(o.failed)} diverged[/]" if o.failed else ""
        engine = f" [yellow]{escape(o.backend)}[/]" if "(" in o.backend else ""  # one was refused
        if not o.cell.protocol["episodes"]:
            errors = " ".join(f"{x:.3g}" for x in o.errors.values())
            scores = f"held-out action error {errors}" if errors else ""
        lines.append(f"{escape(_title(o.cell))}: {scores}{tail} [dim]({o.wall_s:.0f} s)[/]{engine}")
        lines += [
            f"  [yellow]seed {seed}: {escape(remark)}[/]" for seed, remark in o.remarks.items()
        ]
        lines += [f"  [yellow]{escape(o.note)}[/]"] if o.note else []
    return lines


def _failures(part: "Pack", event: "Event") -> list[str]:
    if event.error is not None:
        return [f"{part.title} failed: {event.error.strip()}"]
    return [
        f"{o.cell.entry} on {o.cell.task.id} seed {seed}: {why}"
        for o in event.outcomes
        for seed, why in o.failed.items()
    ]


def _plan(args: Sequence[str]) -> int:
    from offbench.bench.forecast import forecast, kept_bytes, stack_bytes
    from offbench.bench.plan import plan
    from offbench.bench.run import missing, n_jobs, pack
    from offbench.results.records import Store

    console = _console()
    wanted = plan(args, bench=not any(a.startswith(("method=", "method._target_=")) for a in args))
    _say_which(wanted, console)
    _say_protocol(wanted, console)
    _say_differences(wanted, console)
    store = Store(Path(wanted.settings.results))
    todo = missing((c for c in wanted.cells if _is_here(c.task)), store)
    _print_values(wanted, console)
    try:
        with console.status("measuring speed") as status:
            costs = forecast(todo, store, report=status.update)
    except UserError:
        # for instance an environment that is not installed: the runs, and why they have no estimate
        _print_cells(wanted, todo, (), console)
        raise
    _print_cells(wanted, todo, costs, console)
    _print_absent(wanted, console)
    packs = pack(todo, max_stack=_stack_limit(todo, wanted)) if todo else []
    jobs = n_jobs(wanted.settings, len(packs))
    longest = max((c.seconds for c in costs), default=0.0)
    seconds = max(longest, sum(c.seconds for c in costs) / jobs)
    runs = sum(len(c.seeds) for c in todo)
    later = sum(len(c.seeds) for c in wanted.cells if not _is_here(c.task))
    console.print(
        f"{runs} runs to do, about {_duration(seconds)} on {jobs} process{'es' if jobs > 1 else ''}"
        + (f"; {later} more once their data are here" if later else "")
    )
    if packs:
        sizes = [len(p.members) for p in packs]
        memory = max(stack_bytes(p) for p in {p.cells[0].entry: p for p in packs}.values())
        console.print(
            f"{len(packs)} stacks of {min(sizes)} to {max(sizes)} runs; the largest needs about "
            f"{memory / 2**20:.0f} MiB beside its data"
        )
        size = kept_bytes(packs)
        console.print(
            f"kept of the runs: {size[wanted.settings.keep] / 1e6:,.1f} MB (keep={wanted.settings.keep};"
            f" policy {size['policy'] / 1e6:,.1f} MB, state {size['state'] / 1e6:,.1f} MB)"
        )
    return 0


def _say_protocol(plan: "Plan", console: "Console") -> None:
    """Which suite's protocol the runs have, whose it is, and where a budget departs from what is published."""
    suite, first = plan.suite, plan.tasks[0]
    whole = plan.named or plan.tasks == suite["tasks"]
    why = "" if whole else f", that of {first}: no suite was named"
    whose = suite.get("protocol") or "this project's choice, not a published protocol"
    console.print(
        f"suite {suite['id']} v{suite['version']}{why}; protocol: {whose}", soft_wrap=True
    )
    said: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        keys = ("n_updates", "eval.episodes") if cell.task.env else ("n_updates",)
        whose = dict.fromkeys(cell.sources[k] for k in keys)
        tested = f"{cell.protocol['episodes']} test episodes"
        if share := cell.protocol.get("validation"):
            held = f"{100 * share:g} % of the episodes held out for validation metrics"
            tested = f"{tested}, {held}" if cell.task.env else f"no environment: {held}, no score"
        budget = f"{_updates_of(cell)} updates, {tested} ({'; '.join(whose)})"
        said.setdefault(budget, {})[cell.entry] = None
    for budget, entries in said.items():
        names = f" for {', '.join(entries)}" if len(said) > 1 else ""
        console.print(f"  {budget}{names}", soft_wrap=True, markup=False)


def _say_settings(plan: "Plan", console: "Console", args: Sequence[str]) -> None:
    """Nets, learning rates, updates and batch of a few entries, each with where it comes from."""
    entries: dict[str, list[dict[str, tuple[str, str]]]] = {}
    for cell in plan.cells:
        entries.setdefault(cell.entry, []).append(dict(_main_settings(cell)))
    if len(entries) > 4:
        where = f"offbench plan {shlex.join(args)}".strip()
        console.print(f"  every setting with its source: {where}", markup=False, soft_wrap=True)
        return
    for entry, cells in entries.items():
        parts: list[list[str]] = []  # neighbours of one source together
        for name in cells[0]:
            found = {cell[name] for cell in cells}
            text, source = found.pop() if len(found) == 1 else (name, "differs by task")
            if parts and parts[-1][-1] == source:
                parts[-1].insert(-1, text)
            else:
                parts.append([text, source])
        words = ", ".join(f"{', '.join(texts)} [{source}]" for *texts, source in parts)
        _print_wrapped(f"{entry}: {words}", console)


def _print_wrapped(text: str, console: "Console") -> None:
    """Indented, and broken between words to at most 80 columns."""
    width = min(80, console.width)
    lines = textwrap.wrap(
        text, width, initial_indent="  ", subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _main_settings(cell: "Cell") -> "Iterator[tuple[str, tuple[str, str]]]":
    """(setting, (in words, source)) of the network, the learning rates, the updates and the batch."""
    size = lambda k: k in ("hidden", "width", "layers", "heads") or k.endswith("_hidden")
    for wanted in (size, lambda k: k == "lr" or k.endswith("_lr")):
        for key in filter(wanted, cell.hparams):
            text = f"{key} {_number(cell.hparams[key])}"
            yield key, (text, _briefly_from(cell, f"method.{key}"))
    yield "n_updates", (f"{_updates_of(cell)} updates", _briefly_from(cell, "n_updates"))
    batch = f"batch {cell.pipeline['batch_size']}"
    yield "batch_size", (batch, _briefly_from(cell, "batch_size"))


def _number(value: Any) -> str:
    """3e-4 rather than 0.0003."""
    if not (isinstance(value, float) and 0 < value < 0.01):
        return str(value)
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _briefly_from(cell: "Cell", key: str) -> str:
    """The source of a setting in a word or two; `offbench plan` has it in full."""
    source = cell.sources.get(key, "")
    if source == "default" or source.startswith("conf/method/"):
        return "method default"
    brief = source.partition(" (")[0].rpartition(": ")[2]
    return "published budget" if brief == "budget" else brief


def _say_differences(plan: "Plan", console: "Console") -> None:
    """How what is composed around a class without a yaml differs from what its rivals have."""
    around = {c.entry: {k: _in_brief(c, k) for k in ("transforms", "view")} for c in plan.cells}
    for entry in dict.fromkeys(c.entry for c in plan.cells if c.method == c.target):
        own = around[entry]
        others: dict[str, list[str]] = {}
        for rival, theirs in around.items():
            if words := ", ".join(f"{k} {v}" for k, v in theirs.items() if v != own[k]):
                others.setdefault(words, []).append(rival)
        if others or len(around) == 1:
            mine = ", ".join(f"{k} {v}" for k, v in own.items())
            rest = "".join(f"; {', '.join(names)}: {words}" for words, names in others.items())
            _print_wrapped(f"{entry} has no yaml: {mine}{rest}", console)


def _in_brief(cell: "Cell", key: str) -> str:
    """"[obs_norm]", "nstep(n=3)"."""
    if key == "transforms":
        return f"[{', '.join(cell.pipeline['transforms'])}]"
    view = dict(cell.pipeline["view"])
    return f"{view.pop('name')}({', '.join(f'{k}={v}' for k, v in view.items())})"


def _updates_of(cell: "Cell") -> str:
    """ "1M", or "300k of 1M" where another number is published."""
    from offbench.results.leaderboard import count

    published = cell.tuning.get("published_updates")
    own = count(cell.n_updates)
    return own if published in (None, cell.n_updates) else f"{own} of {count(published)}"


def _is_here(task: "Task") -> bool:
    from offbench.tasks.task import NOT_HERE

    missing = task.source == "embedded" and not (task.folder / "data" / "main_data.hdf5").exists()
    return task.sha256 != NOT_HERE and not missing


def _print_absent(plan: "Plan", console: "Console") -> None:
    """What a run would download first: a plan looks at what is here, and fetches nothing."""
    from offbench.data import compose
    from offbench.tasks.task import catalog, load_task

    absent: dict[str, str] = {}
    for task in (c.task for c in plan.cells if not _is_here(c.task)):
        made = compose.parse(task.id)
        for name in [task.id] if isinstance(made, str) else made.leaves:
            if _is_here(load_task(name)):
                continue
            card = catalog.card(name)
            sizes = [file.size for file in card.files]
            known = bool(sizes) and None not in sizes
            size = f"{sum(sizes) / 1e6:,.0f} MB" if known else "size not known"
            how = f"{size}, {card.urls[-1]}" if card.urls else "nothing is known to download"
            if card.family == "offbench":
                how = f"offbench data make {name}"
            absent.setdefault(how, f"  {card.id}: {how}")
    if absent:
        console.print(f"data that a run needs first ({len(absent)} not here, so not estimated):")
        console.print("\n".join(absent.values()), soft_wrap=True, markup=False)


def _say_which(plan: "Plan", console: "Console") -> None:
    """What a short id was taken for, where there is another set that sounds like it."""
    from offbench.tasks.catalog import said

    if plan.settings.task and (words := said(plan.settings.task)):
        console.print(words)


def _print_values(plan: "Plan", console: "Console") -> None:
    """Each setting once where it is the same for every cell, per entry or task otherwise."""
    from rich.table import Table

    table = Table(
        "setting",
        "value",
        "from",
        "for",
        title="effective settings",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in table.columns:
        column.overflow = "fold"
    values: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    tasks: dict[str, list[str]] = {}  # entry -> its tasks
    for cell in plan.cells:
        tasks.setdefault(cell.entry, []).append(cell.task.id)
        for key, value in _effective(cell).items():
            where = values.setdefault((key, value, _source(cell, key)), {})
            where.setdefault(cell.entry, []).append(cell.task.id)
    notes: dict[str, int] = {}  # sources too long for a column, once each
    for (key, value, source), where in sorted(
        values.items(), key=lambda item: (item[0][0], next(iter(item[1])))
    ):
        names = [
            entry if mine == tasks[entry] else f"{entry} on {', '.join(_briefly(mine))}"
            for entry, mine in where.items()
        ]
        table.add_row(
            key, value, _noted(source, notes), "all" if where == tasks else ", ".join(names)
        )
    console.print(table)
    for source, number in notes.items():
        console.print(f"\\[{number}] {source}", soft_wrap=True)
    console.print()


def _noted(source: str, notes: dict[str, int]) -> str:
    """ "preset [1]" for a source of many words, which a note below the table has in full."""
    if len(source) <= 32:
        return source
    kind = source.split(" (")[0] if " (" in source else "several"
    return f"{kind} \\[{notes.setdefault(source, len(notes) + 1)}]"


def _briefly(tasks: Sequence[str]) -> list[str]:
    """The five tasks of an environment of OGBench as one: cube-single-play-singletask-task*-v0."""
    kinds = [re.sub(r"-task\d-", "-task*-", task) for task in tasks]
    return list(dict.fromkeys(k if kinds.count(k) > 1 else t for k, t in zip(kinds, tasks)))


def _effective(cell: "Cell") -> dict[str, str]:
    out = {f"method.{k}": v for k, v in cell.hparams.items()}
    for group in (g for g in ("view", "sampler", "weight") if g in cell.pipeline):
        out |= {group if k == "name" else f"{group}.{k}": v for k, v in cell.pipeline[group].items()}
    out |= {"transforms": cell.pipeline["transforms"], "batch_size": cell.pipeline["batch_size"]}
    out |= {
        "gamma": cell.pipeline["gamma"],
        "n_updates": cell.n_updates,
        "method._target_": cell.target,
    }
    out |= {f"eval.{k}": v for k, v in cell.protocol.items()}
    return {k: str(list(v) if isinstance(v, tuple) else v) for k, v in out.items()}


def _source(cell: "Cell", key: str) -> str:
    if key == "transforms":
        found = [s for k, s in cell.sources.items() if k.startswith("transforms")]
        return ", ".join(dict.fromkeys(found))
    return cell.sources.get(key, cell.sources.get(f"{key}._target_", ""))


def _print_cells(
    plan: "Plan", todo: "Sequence[Cell]", costs: Sequence[Any], console: "Console"
) -> None:
    from rich.table import Table

    columns = ("entry", "task", "seeds", "to do", "updates", "run ids", "time", "estimated from")
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[1].overflow = "fold"
    left = {(c.entry, c.task.id): c for c in todo}
    cost = {(c.entry, c.task.id): k for c, k in zip(todo, costs)}
    for cell in plan.cells:
        key = (cell.entry, cell.task.id)
        ids = [r.run_id[:6] for r in cell.runs()]
        shown = " ".join(ids if len(ids) < 4 else [*ids[:2], f"+{len(ids) - 2}"])
        absent = _spelt(left[key].seeds) if key in left else "recorded"
        if not _is_here(cell.task):  # which is part of what a run is
            shown, absent = "--", "data not here"
        time_, basis = (_duration(cost[key].seconds), cost[key].basis) if key in cost else ("", "")
        seeds = _spelt(cell.seeds)
        table.add_row(
            cell.entry, cell.task.id, seeds, absent, _updates_of(cell), shown, time_, basis
        )
    console.print(table)


def _spelt(seeds: Sequence[int]) -> str:
    """0-3 where they follow each other, else 0,2,5."""
    run = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]}-{seeds[-1]}" if run else ",".join(map(str, seeds))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _board(args: Sequence[str]) -> int:
    from offbench.bench.plan import plan
    from offbench.results.records import Store

    wanted = plan(args, bench=True)
    board = _board_of(wanted, Store(Path(wanted.settings.results)))
    if board is None:
        raise _nothing_recorded(wanted)
    _print_board(board, wanted, _console(), args)
    return 0


def _nothing_recorded(plan: "Plan") -> UserError:
    return UserError(
        f"nothing recorded for {plan.name} with these settings in {plan.settings.results}; run: offbench bench"
    )


def _board_of(plan: "Plan", store: "Store") -> "Board | ValidationTable | None":
    from offbench.results.leaderboard import leaderboard
    from offbench.results.validation_table import validation_table

    runs, other = _runs_of(plan, store)
    if runs.empty:
        return None
    if not plan.cells[0].task.env:
        return validation_table(
            runs,
            store.curves(run_id=list(runs["run_id"])),
            seeds={cell.task.id: cell.seeds for cell in plan.cells},
            title=f"{plan.name} v{plan.suite['version']}",
        )
    board = leaderboard(
        store.episodes(run_id=list(runs["run_id"])),
        runs,
        plan.tasks,
        only=plan.suite.get("only"),
        seeds={cell.task.id: cell.seeds for cell in plan.cells},
        unscaled={cell.task.id for cell in plan.cells if not cell.task.scaled},
        title=f"{plan.name} v{plan.suite['version']}",
    )
    if other:
        words = (
            f"{other} recorded runs of these tasks are left out: their environment, or its rules, or how"
            " a return is scored was another"
        )
        board = replace(board, notes=(*board.notes, words))
    return board


def _runs_of(plan: "Plan", store: "Store") -> "tuple[pd.DataFrame, int]":
    """The planned runs, and every other entry of the suite run with the same protocol and its budget; and
    the number of runs of these tasks that were recorded in another environment or under other rules.

    The budget is the planned number of updates; where the planned runs have the published one, an
    entry whose method is published with another has its own. A policy that was trained outside has none.
    """
    from offbench.results.records import OUTSIDE, columns

    runs = store.runs(suite=plan.name)
    planned = {r.run_id for cell in plan.cells for r in cell.runs()}
    example = {cell.task.id: cell for cell in plan.cells}
    environment = {task: columns(cell.environment, "env.") for task, cell in example.items()}
    entries = {cell.entry for cell in plan.cells}

    def comparable(row: Any) -> bool:
        cell = example[row["task"]]
        if row["method"] == OUTSIDE:  # it has no budget and no data that are known
            episodes = row["protocol.episodes"] == cell.protocol["episodes"]
            return row["entry"] not in entries and episodes and row["seed"] in cell.seeds
        return (
            row["entry"] not in entries
            and row["dataset_sha256"] == cell.task.sha256
            and _alike(row["n_updates"], cell.n_updates, "published_updates", row, cell)
            and _alike(
                row["protocol.episodes"], cell.protocol["episodes"], "published_episodes", row, cell
            )
            and row["seed"] in cell.seeds
            and _same(row.get("protocol.validation"), cell.protocol.get("validation"))
        )

    chosen, left_out = [], 0
    for _, row in runs.iterrows():
        elsewhere = row["task"] in example and _recorded(row, "env.") != environment[row["task"]]
        left_out += elsewhere
        known = row["task"] in example and not elsewhere
        chosen.append(row["run_id"] in planned or (known and comparable(row)))
    return runs[chosen], left_out


def _recorded(row: Any, prefix: str) -> dict[str, Any]:
    """The columns of a record below one key, without those that other records alone have."""
    return {k: v for k, v in row.items() if k.startswith(prefix) and not _absent(v)}


def _same(recorded: Any, planned: Any) -> bool:
    return recorded == planned or (_absent(recorded) and planned is None)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _alike(recorded: int, planned: int, name: str, row: Any, cell: "Cell") -> bool:
    """Whether two budgets are the same, or each the published one of its method."""
    theirs, ours = row.get(f"tuning.{name}"), cell.tuning.get(name)
    return recorded == planned or (recorded == theirs and planned == ours)


def _diagnose(args: Sequence[str]) -> int:
    from offbench.bench.plan import plan
    from offbench.results.diagnostics import write
    from offbench.results.records import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    runs, _ = _runs_of(wanted, store)
    if runs.empty:
        raise _nothing_recorded(wanted)
    ids = list(runs["run_id"])
    folder = _board_folder(wanted) / f"{_board_name(wanted)}-diagnostics"
    for path in write(store.episodes(run_id=ids), runs, store.curves(run_id=ids), folder):
        print(f"written: {path}")
    return 0


def _print_board(
    board: "Board | ValidationTable", plan: "Plan", console: "Console", args: Sequence[str]
) -> None:
    from offbench.results import leaderboard as scores
    from offbench.results import validation_table as metrics

    made = scores if isinstance(board, scores.Board) else metrics
    made.to_terminal(board, console)
    paths = made.write(board, _board_folder(plan), _board_name(plan))
    console.print(f"written: {', '.join(map(str, paths))}")
    if made is metrics:
        return
    more = f"chunk lengths, values against returns: offbench diagnose {shlex.join(args)}".strip()
    console.print(more, markup=False, soft_wrap=True)


def _board_folder(plan: "Plan") -> Path:
    return Path(plan.settings.results) / "board"


def _board_name(plan: "Plan") -> str:
    """The suite's name for the suite as it is: other methods, seeds or settings do not replace its board."""
    from offbench.bench.plan import plan as read

    what = lambda c: (
        c.entry, c.task.id, c.target, c.hparams, c.pipeline, c.n_updates, c.seeds, c.protocol
    )  # fmt: skip
    whole = plan.tasks == plan.suite["tasks"] and plan.settings.loader == "offbench"
    if whole and list(map(what, plan.cells)) == [
        what(c) for c in read([f"suite={plan.name}"], bench=True).cells
    ]:
        return plan.name
    return f"{plan.name}-part"


# --- list, data, check, speed ---------------------------------------------------------------


def _list(args: Sequence[str]) -> int:
    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "methods": _methods,
        "samplers": lambda: _options("sampler"),
        "views": lambda: _options("view"),
        "weights": lambda: _options("weight"),
        "suites": lambda: _options("suite"),
        "tasks": _tasks,
    }
    if len(args) != 1 or args[0] not in kinds:
        raise unknown("thing to list", " ".join(args), kinds)
    rows = kinds[args[0]]()
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        print(f"{name:{width}}  {about}".rstrip())
    return 0


def _options(group: str) -> list[tuple[str, str]]:
    from offbench.bench.hydra import options, read_option

    rows = []
    for name in options(group):
        option = read_option(group, name)
        target = option.get("method", option).get("_target_")
        about = option.get("summary") or (_heading(group, name) if group != "method" else "")
        rows.append((name, about or (_first_line(target) if target else "")))
    return rows


def _heading(group: str, name: str) -> str:
    """The comment at the head of an option's yaml; several are one class with other settings."""
    from offbench.bench.hydra import conf_dir

    path = conf_dir() / group / f"{name}.yaml"  # a plugin's is elsewhere
    first = path.read_text(encoding="utf-8").split("\n")[0] if path.exists() else ""
    return first.removeprefix("# ") if first.startswith("# ") and "@package" not in first else ""


_NEEDS = {  # of the data, beside transitions; what a view provides is not listed
    "next_action": "the action after each transition",
    "return_to_go": "whole episodes",
    "sparse_return_to_go": "whole episodes",
    "context": "whole episodes",
}


def _methods() -> list[tuple[str, str]]:
    """Every method with its paper, and below it what it learns from and how it compares with CORL."""
    from offbench.bench.hydra import options, read_option
    from offbench.bench.targets import locate

    views = {read_option("view", name)["_target_"]: name for name in options("view")}
    results = Path(__file__).resolve().parents[2] / "results/parity"
    scores, updates = _parity(results / "parity.csv"), _updates(results / "same_updates.csv")
    rows = []
    for name, about in _options("method"):
        config = read_option("method", name)
        cls = locate(config["method"]["_target_"])
        view = views.get(config["view"]["_target_"], config["view"]["_target_"])
        method = cls(**{k: v for k, v in config["method"].items() if k != "_target_"})
        needs = [_NEEDS[need] for need in getattr(method, "needs", ()) if need in _NEEDS]
        compared = [told[name] for told in (updates, scores) if name in told]
        parts = [
            f"{getattr(cls, 'actions', 'continuous')} actions",
            f"view={view}",
            *([f"needs {', '.join(needs)}"] if needs else []),
            f"parity: {', '.join(compared)}" if compared else "not compared with other code",
        ]
        rows += [(name, about), ("", "; ".join(parts))]
    return rows


def _parity(path: Path) -> dict[str, str]:
    """Method -> how many of its comparisons agreed, from a table of verdicts; {} without one."""
    import csv

    if not path.exists():
        return {}
    verdicts: dict[str, list[str]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            verdicts.setdefault(row["name"], []).append(row["verdict"])

    def told(found: list[str]) -> str:
        agreed = sum(v.startswith("agrees") for v in found)
        wide = sum(v.endswith("wide") for v in found)
        words = f"{agreed} of {len(found)} scores agree with CORL's"
        return words + (f" ({wide} with wide intervals)" if wide else "")

    return {name: told(found) for name, found in verdicts.items()}


def _updates(path: Path) -> dict[str, str]:
    """Method -> how far its updates went from those of somebody else's code; {} without a table."""
    import csv

    if not path.exists():
        return {}
    furthest: dict[str, tuple[float, str]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found = float(row["largest_difference"]), row["reference"].rsplit(" ", 1)[0]
            furthest[row["algorithm"]] = max(furthest.get(row["algorithm"], found), found)
    return {name: f"updates within {far:.0e} of {code}'s" for name, (far, code) in furthest.items()}


def _first_line(target: str) -> str:
    """The first line of the docstring of what is named, or of the module it is in."""
    from offbench.bench.targets import locate

    obj = locate(target)
    own = (obj.__doc__ or "").strip()
    if not own or own.startswith(f"{obj.__name__}("):
        own = (sys.modules[obj.__module__].__doc__ or "").strip()
    return own.split("\n")[0]


def _tasks() -> list[tuple[str, str]]:
    from offbench.tasks.task import load_task, manifests

    rows = [
        (
            name,
            f"{m['env']['id']}, {m['rows']:,} transitions, {m['episodes']:,} episodes, score: {m['score']['kind']}"
            + ("" if _is_here(load_task(name)) else f"; not here: offbench data make {name}"),
        )
        for name, (_, m) in sorted(manifests().items())
    ]
    if not rows:
        raise UserError(
            "no datasets found here; set OFFBENCH_DATASETS to the folder of their manifests"
        )
    return rows


def _data(args: Sequence[str]) -> int:
    from offbench.cli import data as data_cli

    return data_cli.main(args)


def _check(args: Sequence[str]) -> int:
    from offbench.bench.plan import plan
    from offbench.bench.targets import is_torch_class, locate
    from offbench.testing.contract import SPEC, check_method, fake_batch
    from offbench.training.imperative import Imperative

    for cell in {c.entry: c for c in plan(args, bench=False).cells}.values():
        print(cell.entry)
        if is_torch_class(locate(cell.target)):
            Imperative(locate(cell.target), **cell.hparams).check(SPEC, fake_batch(SPEC))
            print("ok      a PyTorch class, trained as it is written: train_step and act fit together")
            continue
        try:
            check_method(locate(cell.target)(**cell.hparams))
        except AssertionError as error:
            print(f"offbench: {cell.entry} breaks the contract: {error}", file=sys.stderr)
            return 1
    return 0


def _speed(args: Sequence[str]) -> int:
    from offbench.speed import benchmark as speed

    return speed.main(args)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "bench": _bench,
    "run": _run,
    "plan": _plan,
    "board": _board,
    "diagnose": _diagnose,
    "list": _list,
    "data": _data,
    "check": _check,
    "speed": _speed,
}

if __name__ == "__main__":
    sys.exit(main())
