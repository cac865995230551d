"""Memory that stacks of runs take in training, counted before anything is made, and what there is of it.

Sizes are those of fake tensors, which have shapes and no memory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from offbench.bench.cells import Cell
from offbench.bench.settings import Settings
from offbench.bench.stacks import pack, program_of
from offbench.errors import UserError

if TYPE_CHECKING:
    from offbench.bench.devices import Card
    from offbench.data.pipeline import Pipeline
    from offbench.types import Spec

# a worker process without its runs: Python, torch and an environment; 310 MB measured
WORKER_BYTES = 400 * 2**20
# of what there is, the rest is left alone; on a GPU, which others may use and where memory is fragmented
_CPU_SHARE, _GPU_SHARE = 0.9, 0.8
# a bound of a run's memory in sizes of its state and of its batch: 2 to 5 and up to 1,200 measured
_TIMES_STATE, _TIMES_BATCH = 8, 10_000


class Room(NamedTuple):
    """Memory that the runs of one process may take, and of what it is a part."""

    size: float
    kind: str


# what a size in bytes depends on -> the size
Sizes = dict[Any, float]


def run_bytes(cell: Cell, *, bound: bool = False, known: Sizes | None = None) -> float:
    """Bytes of one run in training, without its data: networks, gradients, moments of the optimiser, a batch
    and what an update holds at once; infinite where they cannot be counted.

    Args:
        bound: a bound that is quickly found, instead of the size.
        known: sizes that were counted before, once for each program and each shape of the data.
    """
    from offbench.bench.devices import shape_of
    from offbench.bench.preflight import build

    data, spec = shape_of(cell)
    method, pipeline = build(cell, data, spec, lazy=True)
    seen = pipeline.spec(spec)
    known = {} if known is None else known
    key = (*program_of(cell), seen, bound)
    if key not in known:
        known[key] = _size(method, pipeline, seen, cell, bound)
    return known[key]


def _size(method: Any, pipeline: "Pipeline", seen: "Spec", cell: Cell, bound: bool) -> float:
    try:
        return _counted(method, pipeline, seen, cell, bound)
    # a user's class that is too large for this machine, sizes beyond 2**63
    except (MemoryError, OverflowError):
        return float("inf")
    except (RuntimeError, TypeError) as error:
        if "overflow" in str(error).lower():
            return float("inf")
        raise


def _counted(method: Any, pipeline: "Pipeline", seen: "Spec", cell: Cell, bound: bool) -> float:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_leaves

    from offbench.training.engine import peak_bytes
    from offbench.training.imperative import Imperative
    from offbench.training.step import initial_carry, make_step

    # a user's class cannot be expected to be made without memory
    if isinstance(method, Imperative):
        return method.bytes(seen)
    # tensors that are made have shapes and no memory
    with FakeTensorMode(allow_non_fake_inputs=True):
        carry = initial_carry(method, seen, [0])
        if not bound:
            return peak_bytes(make_step(method, pipeline), carry)
    state = sum(x.nbytes for x in tree_leaves(carry) if isinstance(x, Tensor))
    rows = cell.pipeline["batch_size"] * 4 * (2 * seen.obs_dim + seen.action_dim + 2)
    return _TIMES_STATE * state + _TIMES_BATCH * rows


def stack_limit(
    todo: Sequence[Cell],
    settings: Settings,
    known: Sizes | None = None,
    *,
    gpu: "Card | None" = None,
) -> Callable[[Cell], int | None]:
    """The most runs of a stack, for `pack`: `max_stack`, or what a process's share of the memory holds.

    Args:
        known: sizes of runs, as in `run_bytes`.
        gpu: a card that need not be here, of which each process has one to itself.

    Raises:
        UserError: one run does not fit.
    """
    from offbench.bench.executors.executor import is_here, n_jobs
    from offbench.bench.preflight import resolve_device

    # the memory of a cluster's machines is not known here
    if gpu is None and not is_here(settings):
        return lambda cell: settings.max_stack
    device = "" if gpu else resolve_device(settings.device)
    known = {} if known is None else known
    bounds: dict[Any, float] = {}
    sizes: dict[Any, float] = {}
    packs, jobs = pack(todo, max_stack=settings.max_stack), 0
    limits: dict[Any, int | None] = {}
    limit = lambda cell: limits.get(_program(cell), settings.max_stack)
    # smaller stacks may be more processes, which have less each
    while jobs != (jobs := 1 if gpu else n_jobs(settings, len(packs))):
        for part in packs:
            cell, key, n = part.cells[0], _program(part.cells[0]), part.size
            room = room_on(gpu, cell, settings) if gpu else room_for(cell, settings, device, jobs)
            bounds[key] = bounds[key] if key in bounds else run_bytes(cell, bound=True, known=known)
            if n * bounds[key] <= room.size:
                continue
            sizes[key] = sizes[key] if key in sizes else run_bytes(cell, known=known)
            if sizes[key] > room.size:
                alone = room if jobs == 1 else room_for(cell, settings, device, 1)
                raise too_large(cell, sizes[key], room, jobs if sizes[key] <= alone.size else 1)
            fits = int(room.size // sizes[key])
            before = limits.get(key, settings.max_stack)
            limits[key] = min(fits, before) if before else fits
        packs = pack(todo, max_stack=limit)
    return limit


def too_large(cell: Cell, size: float, room: Room, jobs: int = 1) -> UserError:
    """The error for a run that takes more memory than there is; fewer processes than `jobs` would do."""
    wide = [
        f"method.{k}" for k in cell.hparams if k in ("hidden", "width") or k.endswith("_hidden")
    ]
    smaller = ", ".join([*wide[:2], "batch_size"])
    fewer = "jobs=1, or " if jobs > 1 else ""
    return UserError(
        f"{cell.entry} on {cell.task.id}: one run takes {_gib(size)} of memory in training, and there"
        f" are {_gib(room.size)} {room.kind}{f' for each of {jobs} processes' if jobs > 1 else ''};"
        f" use {fewer}a smaller {smaller}"
    )


def check_one(cell: Cell, settings: Settings, known: Sizes | None = None) -> None:
    """Raises UserError where one run of a cell takes more memory than there is; `known` as in `run_bytes`."""
    from offbench.bench.executors.executor import is_here
    from offbench.bench.preflight import resolve_device

    if not is_here(settings):
        return
    room = room_for(cell, settings, resolve_device(settings.device), 1)
    known = {} if known is None else known
    if run_bytes(cell, bound=True, known=known) <= room.size:
        return
    if (size := run_bytes(cell, known=known)) > room.size:
        raise too_large(cell, size, room)


def _gib(size: float) -> str:
    if size == float("inf"):
        return "more than can be counted"
    return f"{size / 2**30:,.1f} GiB" if size < 1e17 else f"{size / 2**30:,.0f} GiB"


def _program(cell: Cell) -> tuple[str, ...]:
    return cell.task.id, *program_of(cell)


def room_on(gpu: "Card", cell: Cell, settings: Settings) -> Room:
    """What runs may take on an unused card, beside the cell's data where those are known."""
    from offbench.bench.devices import shape_of

    held = sum(x.nbytes for x in shape_of(cell)[0]) if settings.data == "device" else 0
    return Room(max(0.0, _GPU_SHARE * gpu.memory - held), f"for it on one {gpu.name}")


def room_for(cell: Cell, settings: Settings, device: str, jobs: int) -> Room:
    """What the runs of one of `jobs` processes may take, beside the cell's data."""
    from offbench.tasks.cache import MIN_ROWS
    from offbench.tasks.loading import load_data

    data, _ = load_data(cell.task, defects="ignore")
    size = sum(x.nbytes for x in data)
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        held = size if settings.data == "device" else 0
        return Room(max(0.0, _GPU_SHARE * free / jobs - held), "of the GPU's memory")
    # larger sets are mapped from files
    held = size if len(data.last) < MIN_ROWS else 0
    # on a CPU none evaluate apart unless asked to
    evaluators = 0 if settings.eval.processes == "auto" else int(settings.eval.processes)
    # one process is this one, which holds them already
    beside = (jobs if jobs > 1 else 0) + evaluators
    other = (WORKER_BYTES + held) * beside / jobs
    rooms = [
        Room(_CPU_SHARE * psutil.virtual_memory().available / jobs - other, "of RAM"),
        Room(_CPU_SHARE * _group_bytes() / jobs - other, "of this control group's memory"),
        Room(_address_space() - (held if jobs > 1 else 0), "below the limit of ulimit -v"),
    ]
    least = min(rooms)
    return least._replace(size=max(0.0, least.size))


def _address_space() -> float:
    """Bytes that this process may still map; infinite without `ulimit -v`."""
    try:
        import resource
    # Windows
    except ImportError:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    return limit - psutil.Process().memory_info().vms


def _group_bytes(root: Path | None = None, own: Path | None = None) -> float:
    """Bytes left to this process's control groups; infinite where nothing limits them."""
    left = [float("inf")]
    try:
        root, own = root or Path("/sys/fs/cgroup"), own or Path("/proc/self/cgroup")
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            base = root / "memory" if kinds else root
            folders = [base / path.strip("/"), *(base / path.strip("/")).parents]
            inside = [f for f in folders if f == base or base in f.parents]
            left += [found for f in inside if (found := _left_in(f)) is not None]
    except (OSError, ValueError):
        return float("inf")
    return min(left)


def _left_in(folder: Path) -> float | None:
    """Bytes left in one control group, of version 2 or 1; file pages that can be dropped count as free."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most = (folder / limit).read_text(encoding="utf-8").strip()
            now = int((folder / used).read_text(encoding="utf-8"))
            if not most.isdigit():
                continue
            lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            numbers = dict(line.split() for line in lines)
            files = int(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
        return max(0, int(most) - now + files)
    return None
