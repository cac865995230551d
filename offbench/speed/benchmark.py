"""How fast training is here: the engine at every number of seeds, beside ordinary PyTorch loops.

    offbench speed methods=[iql] seeds=[1,8] hidden=[[64,64]] backends=[plain,eager,compile]
    offbench speed peer="python their_train.py --hidden {hidden}" peer_pattern="([0-9.]+) it/s"

Contenders take turns, round by round, and each keeps its best round, so a busy machine disturbs all
of them alike. The yardsticks are in reference_loops.py; the work is counted and the machine's ceilings are
measured, in the same run, by cost.py.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from offbench.data.replay import ReplayData
from offbench.errors import UserError, unknown
from offbench.methods.bc import BC
from offbench.speed.contenders import (
    BACKENDS,
    SPEC,
    Cell,
    Contender,
    Entry,
    Peer,
    cells,
    default_entries,
    is_of_engine,
    product,
)
from offbench.speed.cost import copy_ceiling, cost, matmul_ceiling, products_ceiling
from offbench.speed.reference_loops import PLAIN as CONTENDERS
from offbench.speed.reference_loops import PlainBC, plain_loop
from offbench.speed.table import COLUMNS, Result, note, to_rich, write
from offbench.training.engine import Precision, candidates
from offbench.training.step import n_minibatches

ROUNDS = 5


def measure(
    cells: Sequence[Cell],
    entries: Sequence[Entry] | None = None,
    *,
    seconds: float = 3.0,
    peer: "Peer | None" = None,
    until: float = float("inf"),
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Times every entry in each cell; an update is a minibatch, so TD3+BC's step is two.

    Args:
        cells: the methods and networks, see `cells`.
        entries: backends, numbers of stacked seeds and precisions; None: those usual on the device.
        seconds: timed for each row, over all its rounds.
        peer: a command of somebody else, measured beside each method.
        until: `time.monotonic` after which nothing more is set up.
        say: gets a line for everything that is set up and for every row that is ready.

    Returns:
        The rows, and facts of the run: ceilings, `failed` (what raised) and `skipped` (for lack of time).

    Raises:
        UserError: a backend or precision that is not there, a size that is not positive.
    """
    if not cells:
        raise UserError("speed needs a method and a network")
    data, batch_size = cells[0].data, cells[0].batch_size
    device = data.obs.device
    entries = default_entries(device) if entries is None else entries
    _check(entries, seconds, device)
    # torch loads parts of itself on first use
    plain_loop(PlainBC, BC(hidden=(1,)), SPEC, data, 1)(1)
    facts = _facts(device, data, batch_size, seconds)
    result = Result([], facts)
    precisions = list(dict.fromkeys(e.precision for e in entries))
    # a plain loop is written for some methods only
    mine = [
        [e for e in entries if cell.name in CONTENDERS or is_of_engine(e.backend)] for cell in cells
    ]
    progress = _Progress(2 * sum(map(len, mine)), say)
    for cell, own in zip(cells, mine, strict=True):
        result.rows.extend(_rows(cell, own, seconds, peer, until, facts, progress))
        _take_ceilings(result, device, precisions)
        facts["peak_rss_mb"] = _peak_memory() / 2**20
    return result


def _peak_memory() -> int:
    """The most bytes of memory this process has held at once."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Progress:
    """A line for each of `total` parts of the work, with the time left if the rest takes as long."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.say, self.done, self.start = total, say, 0, time.monotonic()

    def step(self, line: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        self.say(f"{self.done:3d}/{self.total}  {line}; about {left / 60:.1f} min left")


def _take_ceilings(result: Result, device: torch.device, precisions: Sequence[Precision]) -> None:
    """Measured beside every cell, the best counts, so that a busy moment does not lower them."""
    facts = result.facts
    matmul = facts["matmul_flops_per_s"]
    for precision in precisions:
        matmul[precision] = max(matmul.get(precision, 0.0), matmul_ceiling(device, precision))
    facts["copy_bytes_per_s"] = max(facts["copy_bytes_per_s"], copy_ceiling(device))
    for row in result.rows:
        if row["flops_per_s"] is not None:
            row["of_matmul"] = row["flops_per_s"] / matmul[row["precision"]]
            row["of_copy"] = row["bytes_per_s"] / facts["copy_bytes_per_s"]


def _check(entries: Sequence[Entry], seconds: float, device: torch.device) -> None:
    for entry in entries:
        if entry.backend not in BACKENDS:
            raise unknown("backend", entry.backend, BACKENDS)
        if entry.precision not in get_args(Precision):
            raise unknown("precision", entry.precision, get_args(Precision))
        if entry.backend == "captured" and device.type != "cuda":
            raise UserError("backend captured needs a CUDA device")
        if is_of_engine(entry.backend):
            candidates(entry.backend, device.type)
    if not seconds > 0 or not all(isinstance(e.seeds, int) and e.seeds > 0 for e in entries):
        raise UserError("speed needs positive seconds and seeds")


def _facts(
    device: torch.device, data: ReplayData, batch_size: int, seconds: float
) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": batch_size,
        "transitions": data.n_transitions,
        "obs_dim": SPEC.obs_dim,
        "action_dim": SPEC.action_dim,
        "seconds": seconds,
        "rounds": ROUNDS,
        "matmul_flops_per_s": {},
        "copy_bytes_per_s": 0.0,
        "products_flops_per_s": {},
        "failed": {},
        "skipped": [],
    }


def _rows(
    cell: Cell,
    entries: Sequence[Entry],
    seconds: float,
    peer: "Peer | None",
    until: float,
    facts: dict[str, Any],
    progress: _Progress,
) -> list[dict[str, Any]]:
    title = " ".join(cell.row.values())
    peers = [peer.row(cell)] if peer else []
    ready: list[Contender] = []
    for entry in entries:
        label = f"{title} {entry.backend} x{entry.seeds} {entry.precision}"
        if time.monotonic() > until:
            facts["skipped"].append(label)
            progress.done += 2
            continue
        contender = Contender(cell, entry)
        try:
            contender.prepare(seconds / ROUNDS)
        # one backend that fails must not take the table with it
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            facts["failed"][label] = why
            progress.done += 1
            progress.step(f"{label} failed: {why}")
            continue
        ready.append(contender)
        took = contender.build_s + contender.first_s
        progress.step(f"{label} set up in {took:.1f} s")
    for _ in range(ROUNDS):
        for contender in ready:
            contender.take_turn()
    rows = []
    for contender in ready:
        rows.append(row := _row(contender, facts))
        rate = f"{row['seed_updates_per_s']:,.0f} seed-updates/s"
        progress.step(f"{title} {row['backend']} x{row['seeds']} {row['precision']}: {rate}")
    rows += peers
    plain = next((r["seed_updates_per_s"] for r in rows if r["backend"] == "plain"), None)
    for row in rows:
        row["ratio"] = row["seed_updates_per_s"] / plain if plain else None
    return [dict.fromkeys(COLUMNS) | row for row in rows]


def _row(contender: Contender, facts: dict[str, Any]) -> dict[str, Any]:
    cell, entry = contender.cell, contender.entry
    per_step = n_minibatches(cell.method)
    rate = contender.best * per_step
    row = cell.row | entry._asdict()
    row |= {"updates_per_s": rate, "seed_updates_per_s": rate * entry.seeds}
    row |= {
        "build_s": contender.build_s,
        "first_s": contender.first_s,
        "peak_mb": contender.peak_mb,
    }
    row["device_us"] = 1e6 * contender.device_seconds() / per_step
    work = cost(*cell.parts(entry.seeds))
    row["flops_per_s"] = work.flops * contender.best
    key = f"{' '.join(cell.row.values())} x{entry.seeds} {entry.precision}"
    known = facts["products_flops_per_s"]
    if key not in known:
        known[key] = products_ceiling(work.products, cell.data.obs.device, entry.precision)
    row["of_products"] = row["flops_per_s"] / known[key]
    row["bytes_per_s"] = work.bytes * contender.best
    return row


# --- the command


# what is not set up by then is skipped
MINUTES = 10
_LISTS = ("methods", "seeds", "hidden", "backends", "precision")
_KNOWN = {
    *_LISTS,
    "batch_size",
    "device",
    "seconds",
    "minutes",
    "threads",
    "out",
    "peer",
    "peer_pattern",
    "peer_seeds",
}


def main(args: Sequence[str]) -> int:
    """`offbench speed [key=value ...]`; `out=null` writes no files.

    Progress goes to stderr, line by line, so that the table can be piped on its own.
    """
    import yaml
    from rich.console import Console

    options: dict[str, Any] = {}
    for arg in args:
        key, found, value = arg.partition("=")
        if not found or key not in _KNOWN:
            raise unknown("setting of speed", key, _KNOWN)
        options[key] = (
            value if key.startswith("peer") and key != "peer_seeds" else yaml.safe_load(value)
        )
    for key in _LISTS:
        if key in options and not isinstance(options[key], list):
            options[key] = [options[key]]
    if isinstance(options.get("hidden", [[]])[0], int):
        # hidden=[64,64] is one network
        options["hidden"] = [options["hidden"]]
    if "threads" in options:
        torch.set_num_threads(options.pop("threads"))
    device = options.get("device", "auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if str(device).partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={device}: speed is measured on cpu and cuda only")
    out = options.pop("out", "results/speed")
    until = time.monotonic() + 60 * _positive(options.pop("minutes", MINUTES), "minutes")
    say = partial(print, file=sys.stderr, flush=True)
    shape = {k: options.pop(k) for k in ("methods", "hidden", "batch_size") if k in options}
    options = _arguments(options, torch.device(device))
    result = measure(cells(**shape, device=options.pop("device")), until=until, say=say, **options)
    console = Console(width=None if Console().is_terminal else 170, highlight=False)
    console.print(to_rich(result))
    console.print("\n" + note(result), markup=False)
    if out is not None:
        console.print(f"written: {', '.join(map(str, write(result, Path(out))))}", markup=False)
    return 0


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _arguments(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The settings of the command line as arguments of `measure`, and the device."""
    usual = default_entries(device)
    backends = options.pop("backends", list(dict.fromkeys(e.backend for e in usual)))
    seeds = options.pop("seeds", sorted({e.seeds for e in usual if is_of_engine(e.backend)}))
    entries = product(backends, seeds, options.pop("precision", ["float32"]))
    peer, pattern = options.pop("peer", None), options.pop("peer_pattern", None)
    if (peer is None) != (pattern is None):
        raise UserError(
            "peer= and peer_pattern= go together: a command, and where it prints its updates/s"
        )
    peers = {"peer": Peer(peer, pattern, options.pop("peer_seeds", 1))} if peer else {}
    return options | peers | {"entries": entries, "device": device}
