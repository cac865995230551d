"""The command lines of `offbench data`; what they run is imported when one is called."""

import argparse

from offbench.cli.parser import Parser, whole_number
from offbench.errors import UserError

SUMMARIES = {
    "list": "list the known datasets and how each is obtained",
    "show": "show what is in a dataset, with a histogram of its returns",
    "check": "look for defects; exit code 1 for a severe one",
    "import": "write a file of another library as offbench's .npz or .hdf5",
    "make": "collect datasets again, by their recipes",
    "fetch": "download datasets",
    "pack": "put datasets into one archive, for a machine without a network",
    "unpack": "put the datasets of an archive where they are found",
    "compose": "compose a dataset; write its card and list of trajectories",
}

EXAMPLES = {
    "list": ("list", "list hopper"),
    "show": ("show offbench/hopper/medium-replay-v0", "show hopper-medium-v2 --png plots"),
    "check": (
        "check offbench/hopper/medium-replay-v0 --env",
        "check my.hdf5 --env HalfCheetah-v5 --limit 1000",
    ),
    "import": (
        "import my.csv --to my.npz --env InvertedPendulum-v5",
        "import my.csv --to my.npz --map observations=x+y,rewards=r",
    ),
    "make": (
        "make offbench/hopper/medium-v0",
        "make ogbench/cube-single-play-v0 --steps 100k --workers 4",
    ),
    "fetch": ("fetch d4rl/hopper-medium-v2", "fetch hopper-medium-v2 walker2d-medium-v2"),
    "pack": ("pack hopper-medium-v2 walker2d-medium-v2 -o sets.tar",),
    "unpack": ("unpack sets.tar", "unpack sets.tar folder"),
    "compose": (
        "compose truncate@20k:offbench/hopper/medium-replay-v0",
        "compose mix@5%@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2",
    ),
}


def add_data_commands(parser: Parser) -> None:
    """Adds the commands below `offbench data` and their arguments."""
    parsers = parser.add_commands("data_command", SUMMARIES, EXAMPLES)
    parsers["list"].add_argument("words", nargs="*", metavar="WORD", help="words of the line")
    for name in ("show", "check"):
        parsers[name].add_argument("name", metavar="ID|PATH", help="a dataset's id, or a file")
    parsers["show"].add_argument("--png", metavar="FOLDER", help="draw the histogram there")
    parsers["check"].add_argument(
        "--env",
        nargs="?",
        const="",
        metavar="ENV",
        help="repeat recorded steps in the environment, too; ENV is that of a file",
    )
    _add_file_options(parsers["check"])
    _add_import(parsers["import"])
    for name in ("make", "fetch"):
        parsers[name].add_argument("ids", nargs="+", metavar="ID", help="datasets")
    for name, about in (
        ("steps", "number of transitions"),
        ("workers", "number of processes"),
        ("seed", "seed of the collection"),
    ):
        parsers["make"].add_argument(f"--{name}", type=whole_number, metavar="N", help=about)
    parsers["pack"].add_argument("names", nargs="+", metavar="ID|PATH", help="ids or files")
    parsers["unpack"].add_argument("archive", metavar="FILE", help="an archive of `data pack`")
    parsers["unpack"].add_argument(
        "folder", nargs="?", metavar="FOLDER", help="default: the folder of downloads"
    )
    parsers["compose"].add_argument("id", metavar="ID", help="of a composed dataset")
    for name in ("make", "compose"):
        parsers[name].add_argument("-o", "--out", metavar="FOLDER", help="where to write")
    parsers["pack"].add_argument("-o", "--out", metavar="FILE", required=True, help="the archive")


def _add_file_options(parser: Parser) -> None:
    """Adds what tells how the steps of a file are read, but for its environment."""
    parser.add_argument(
        "--actions",
        choices=("env", "unit"),
        default="env",
        help="actions are within the environment's bounds (env, the default) or [-1, 1] (unit)",
    )
    parser.add_argument(
        "--limit", type=whole_number, metavar="STEPS", help="time limit of an episode"
    )


def _add_import(parser: Parser) -> None:
    parser.add_argument("name", metavar="FILE", help="file to read")
    parser.add_argument("--to", metavar="DEST", help="file to write, .npz or .hdf5")
    parser.add_argument(
        "--format", metavar="FORMAT", help="d3rlpy, robomimic, csv, parquet, npz or hdf5"
    )
    parser.add_argument(
        "--map",
        metavar="MAP",
        help="names of columns in the file: observations=obs,actions=a+b",
    )
    parser.add_argument(
        "--columns", metavar="NAMES", help="columns of a table without header: obs_0,action_0"
    )
    parser.add_argument("--env", metavar="ENV", help="environment of the data")
    _add_file_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace DEST")


def run_data_command(options: argparse.Namespace) -> int:
    """Runs the command that `options` names and returns its exit code."""
    from offbench.cli.data import check, collect, convert, listing, show, transfer

    commands = {
        "list": listing.list_datasets,
        "show": show.show,
        "check": check.check,
        "import": convert.import_file,
        "make": collect.make,
        "fetch": transfer.fetch,
        "pack": transfer.pack,
        "unpack": transfer.unpack,
        "compose": collect.compose_dataset,
    }
    if options.data_command is None:
        raise UserError(f"data needs one of: {', '.join(commands)}")
    return commands[options.data_command](options)
