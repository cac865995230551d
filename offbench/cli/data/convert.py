"""`offbench data import`: a file of another library, written in offbench's own layout."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offbench.errors import UserError
from offbench.tasks.custom import read_for

if TYPE_CHECKING:
    from offbench.tasks.formats.arrays import Reading
    from offbench.tasks.formats.foreign import Read


def import_file(options: argparse.Namespace) -> int:
    """Reads the file `options.name` and writes it as `options.to`."""
    from offbench.tasks.formats import arrays, foreign

    name, env, limit = options.name, options.env, options.limit
    path = Path(name).expanduser()
    if options.to is None:
        raise UserError(
            f"{name}: the file to write is missing, as in --to {path.stem}-offbench.npz"
        )
    dest = Path(options.to).expanduser()
    arrays.check_ending(dest)
    if dest.exists() and not options.overwrite:
        raise UserError(f"{dest} is there already; --overwrite replaces it")
    if options.actions == "unit" and env is None:
        raise UserError(
            f"{name}: --actions unit is written in the bounds of an environment; give it: --env ID"
        )
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: an episode has at least 1 step")
    format = options.format or foreign.guess(path, name=name)
    given = {} if options.map is None else foreign.parse_map(options.map)
    header = None
    if options.columns is not None:
        header = tuple(x.strip() for x in options.columns.split(","))
    read = foreign.read(path, format, name=name, given=given, header=header)
    reading = arrays.Reading(max_episode_steps=limit, limit_given=limit is not None)
    if env is not None:
        reading = read_for(env, {}, name, limit, limit is not None)
    data, at = arrays.convert(
        read, dest, name=name, reading=reading, unit=options.actions == "unit"
    )
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
