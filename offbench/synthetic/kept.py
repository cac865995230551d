"""The network of a source, trained once for a dataset and its settings and kept in a folder.

    HASH.safetensors                the trained network
    HASH.training.safetensors       the checkpoint of one in training
    HASH.lock                       held by the process that trains, while others wait

HASH is that of the data and the settings of training.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from offbench import rng
from offbench.errors import Interrupted, UserError, in_one_line
from offbench.tasks.files.folders import make_folder
from offbench.training import checkpoint
from offbench.training.fitting import Stops
from offbench.training.step import Carry


def trained_once(path: Path, empty: Any, train: Callable[[Stops], Any], stops: Stops) -> Any:
    """The network at `path`; where there is none, it is trained and kept there, if it can be written.

    Args:
        empty: such a network before its first update, on the CPU; one that is read is there, too.
        train: trains one, with the checkpoint that it is given.

    Where the folder cannot be written, it is read or trained all the same. Raises Interrupted where it was stopped.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        make_folder(path.parent)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                if stops.asked(0):
                    raise Interrupted from None
    except (OSError, UserError) as error:
        net = _read(path, empty, stops)
        if net is None:
            stops.say(f"a data source could not be kept: {in_one_line(error)}")
            net = train(stops)
        return net
    try:
        begun = path.with_suffix(".training.safetensors")
        if (net := _read(path, empty, stops)) is None:
            net = train(stops._replace(path=begun))
            try:
                checkpoint.save(_as_saved(net), path)
            except OSError as error:
                stops.say(f"a data source could not be kept: {error.strerror or error}")
                # from its checkpoint, if there is one, the next goes on
                return net
        # of processes that were killed while they wrote, too
        for left in (begun, *path.parent.glob(f".{path.stem}.*.tmp*")):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        return net
    finally:
        lock.release()


def _read(path: Path, empty: Any, stops: Stops) -> Any | None:
    if not path.exists():
        return None
    try:
        return checkpoint.load(path, _as_saved(empty))[0].state
    # of a machine that went down while it wrote, say
    except checkpoint.Damaged as error:
        stops.say(f"a kept data source is trained again: {error}")
        checkpoint.set_aside(path)
        return None


def _as_saved(net: Any) -> Carry:
    return Carry(net, rng.key(0)[None], torch.tensor(0))
