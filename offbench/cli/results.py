"""`offbench results` and `offbench submit`: recorded runs kept whole, put together, exported, and packed for others."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offbench.cli.parser import Parser
from offbench.errors import UserError, unknown

SUMMARIES = {
    "verify": "read every file and checksum; exit code 3 if one is damaged",
    "merge": "take over the records of other folders and of submissions",
    "gc": "remove what no one needs any more",
    "export": "write all episodes, with the columns of their runs, as one table",
}

EXAMPLES = {
    "verify": ("verify", "verify results=there --repair"),
    "merge": ("merge ../other/results", "merge quick-v3-mine.zip results=board --no-policies"),
    "gc": ("gc --dry-run", "gc --damaged --policies"),
    "export": (
        "export episodes.parquet suite=quick",
        "export s3://bucket/quick.csv suite=quick methods=[bc,iql]",
    ),
}

# exit code where records are damaged or contradict each other
FAULTY = 3

_FILTERS = {"suite": "suite", "methods": "entry", "task": "task", "seeds": "seed"}


def add_results_commands(parser: Parser) -> None:
    """Adds the commands below `offbench results` and their arguments."""
    parsers = parser.add_commands("results_command", SUMMARIES, EXAMPLES)
    words = {
        "verify": ("[results=FOLDER]", "the folder; default results"),
        "merge": ("SOURCE", "folders and files of `offbench submit`; results=FOLDER"),
        "gc": ("[results=FOLDER]", "the folder; default results"),
        "export": ("FILE", "FILE.parquet or FILE.csv; suite=, methods=, task=, seeds=, results="),
    }
    for name, (metavar, about) in words.items():
        parsers[name].add_argument("names", nargs="*", metavar=metavar, help=about)
    for name, flag, about in (
        ("verify", "repair", "move damaged records to FOLDER/damaged: they are trained again"),
        ("merge", "no-policies", "leave kept policies"),
        ("gc", "dry-run", "say what would be removed"),
        ("gc", "damaged", "what `verify --repair` moved, too"),
        ("gc", "policies", "kept policies, too"),
    ):
        parsers[name].add_argument(f"--{flag}", action="store_true", help=about)


def add_submit_arguments(parser: Parser) -> None:
    """The arguments of `offbench submit`."""
    parser.add_argument("names", nargs="*", metavar="ENTRY", help="labels of the board")
    parser.add_argument("--suite", metavar="NAME", help="whose records are packed: quick")
    parser.add_argument("--out", metavar="FILE", help="default SUITE-vN-ENTRY.zip")
    parser.add_argument("--policies", action="store_true", help="pack kept policies, too")


def run_results_command(options: argparse.Namespace) -> int:
    """Runs the command that `options` names and returns its exit code."""
    if options.command == "submit":
        return submit(options)
    commands = {"verify": verify, "merge": merge, "gc": collect, "export": export}
    if options.results_command is None:
        raise UserError(f"results needs one of: {', '.join(commands)}")
    return commands[options.results_command](options)


def _read(
    words: Sequence[str], known: Sequence[str] = ()
) -> tuple[list[str], Path, dict[str, Any]]:
    """The names of a command line, its results folder, and its other settings."""
    from offbench.bench.hydra import parse_overrides

    names, settings = [], {}
    for word in words:
        key = word.partition("=")[0]
        if not key.isidentifier() or "=" not in word or Path(word).exists():
            names.append(word)
        elif key not in ("results", *known):
            raise unknown("setting", key, ("results", *known))
        elif key == "results":
            settings[key] = word.partition("=")[2]
        else:
            settings |= parse_overrides([word])[0]
    folder = settings.pop("results", "results")
    if not folder:
        raise UserError("results= names no folder")
    return names, Path(folder), settings


def _no_names(names: Sequence[str], command: str) -> None:
    if names:
        raise UserError(f"results {command} takes no {names[0]!r}; the folder is results=FOLDER")


def verify(options: argparse.Namespace) -> int:
    """`offbench results verify`: a line for each damaged file."""
    from offbench.results.sharing.verify import DAMAGED, verify
    from offbench.results.words import plural

    names, root, _ = _read(options.names)
    _no_names(names, "verify")
    found = verify(root, repair=options.repair)
    for fault in found.faults:
        print(f"{fault}{f'; moved to {root / DAMAGED}' if options.repair else ''}")
    for path in found.orphans:
        print(f"{path} belongs to no record")
    print(
        f"{root}: {plural(found.whole, 'whole record')}, {found.failed:,} of failed runs,"
        f" {found.damaged:,} damaged; {plural(len(found.orphans), 'file')} of no record"
    )
    if options.repair and found.moved:
        print(f"{plural(len(found.moved), 'file')} moved; offbench bench trains what is missing")
    elif found.faults:
        print(
            f"offbench results verify --repair results={root} puts them aside, to be trained again"
        )
    if found.orphans:
        print(f"offbench results gc results={root} removes what belongs to no record")
    return FAULTY if found.faults else 0


def merge(options: argparse.Namespace) -> int:
    """`offbench results merge`: takes over the records of the sources."""
    from offbench.results.sharing.merge import merge
    from offbench.results.words import plural

    names, root, _ = _read(options.names)
    if not names:
        raise UserError("merge needs a folder or a file: offbench results merge SOURCE ...")
    for name in names:
        if not Path(name).exists():
            raise UserError(f"there is no {name}")
    found = merge([Path(name) for name in names], root, policies=not options.no_policies)
    for line in [*found.reviews, *found.damaged, *found.conflicts]:
        print(line)
    print(
        f"{root}: {plural(found.taken, 'record')} taken over, {found.skipped:,} there already,"
        f" {len(found.damaged):,} damaged, {plural(len(found.conflicts), 'conflict')}"
        + "".join(f"; {folder}: {plural(n, 'file')}" for folder, n in found.measured.items())
    )
    return FAULTY if found.damaged or found.conflicts else 0


def collect(options: argparse.Namespace) -> int:
    """`offbench results gc`: removes what no one needs, and says what."""
    from offbench.results.sharing.gc import remove, rubbish
    from offbench.results.words import plural

    names, root, _ = _read(options.names)
    _no_names(names, "gc")
    found = rubbish(root, damaged=options.damaged, policies=options.policies)
    if not options.dry_run:
        found = remove(found)
    word = "would be removed" if options.dry_run else "removed"
    for one in found:
        print(f"{one.path}  {one.kind}, {one.bytes:,} bytes")
    size = sum(one.bytes for one in found)
    print(f"{root}: {plural(len(found), 'file')} {word}, {size:,} bytes")
    return 0


def export(options: argparse.Namespace) -> int:
    """`offbench results export`: one table of all episodes."""
    from offbench.results.sharing.export import export
    from offbench.results.words import plural

    names, root, settings = _read(options.names, tuple(_FILTERS))
    if len(names) != 1:
        raise UserError("export needs one file: offbench results export FILE.parquet|FILE.csv")
    where = {
        _FILTERS[key]: value if isinstance(value, list) else [value]
        for key, value in settings.items()
    }
    runs, rows, damaged = export(root, names[0], where)
    for line in damaged:
        print(line)
    print(f"written: {names[0]}, {plural(rows, 'episode')} of {plural(runs, 'run')}")
    return FAULTY if damaged else 0


def submit(options: argparse.Namespace) -> int:
    """`offbench submit`: packs the records of entries into one file."""
    from offbench.io import slug
    from offbench.results.sharing.review import review
    from offbench.results.sharing.submission import pack, select
    from offbench.results.words import plural

    names, root, _ = _read(options.names)
    if not names:
        raise UserError("submit needs an entry of the board: offbench submit ENTRY ...")
    records = select(root, names, options.suite)
    run = records[0].run
    assert run is not None
    label = ",".join(names) if len(names) < 4 else f"{len(names)}-entries"
    out = Path(options.out or f"{run.suite}-v{run.suite_version}-{slug(label)}.zip")
    n_cut = pack(records, out, policies=options.policies)
    print("\n".join(review(records)))
    if n_cut:
        print(f"paths, names or tracebacks were left out of {plural(n_cut, 'record')}")
    print(f"written: {out}, {plural(len(records), 'record')}, {out.stat().st_size:,} bytes")
    return 0
