"""How fast training is here: the engine at every number of seeds, beside ordinary PyTorch loops.

    offbench speed methods=[iql] seeds=[1,8] hidden=[[64,64]] backends=[plain,eager,compile]
    offbench speed peer="python their_train.py --hidden {hidden}" peer_pattern="([0-9.]+) it/s"

Contenders take turns, round by round, and each keeps its best round, so a busy machine disturbs all
of them alike. The yardsticks are in plain.py; the work is counted and the machine's ceilings are
measured, in the same run, by cost.py.
"""

import csv
import dataclasses
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch

from offbench import methods as methods_package
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import Chunk, NStep, Window
from offbench.errors import UserError, unknown
from offbench.methods.bc import BC
from offbench.speed.cost import copy_ceiling, cost, matmul_ceiling, products_ceiling
from offbench.speed.reference_loops import PLAIN as CONTENDERS
from offbench.speed.reference_loops import (
    Advance,
    PlainBC,
    captured_loop,
    plain_loop,
    unstacked_loop,
)
from offbench.training.engine import BLOCK, Backend, Engine, Precision, candidates
from offbench.training.step import initial_carry, make_step, n_minibatches
from offbench.types import Spec

if TYPE_CHECKING:
    from rich.table import Table

SPEC = Spec(obs_dim=17, action_dim=6, gamma=0.99, max_episode_steps=1000)  # the size of halfcheetah
N_EPISODES = 100  # of 1000 steps
ROUNDS = 5
# of one seed, see plain.py
YARDSTICKS = ("plain", "captured", "unstacked")
# the methods that speed is judged by
LEADING = ("td3_bc", "iql")
BACKENDS = (*YARDSTICKS, *(b for b in get_args(Backend) if b != "auto"))


class Entry(NamedTuple):
    backend: str
    seeds: int = 1
    precision: str = "float32"


class Result(NamedTuple):
    # COLUMNS, None where something was not measured
    rows: list[dict[str, Any]]
    # what was measured on what, the ceilings, what failed or was skipped
    facts: dict[str, Any]


COLUMNS = {
    "method": "",
    "hidden": "widths of the hidden layers",
    "backend": "",
    "precision": "",
    "seeds": "stacked",
    "updates_per_s": "minibatches of one seed",
    "seed_updates_per_s": "minibatches of all seeds",
    "ratio": "seed_updates_per_s over the plain loop's",
    "device_us": "time the device computes for one update of the stack (CPU: processor time)",
    "flops_per_s": "of the matrix products",
    "of_matmul": "flops_per_s over that of one large matrix product",
    "of_products": "flops_per_s over that of the same matrix products by themselves",
    "bytes_per_s": "operands and results of every operation, an upper bound where operations are fused",
    "of_copy": "bytes_per_s over that of one large copy",
    "build_s": "tracing, on cudagraph compiling and capturing too",
    "first_s": "the first step, with compile its compilation",
    "peak_mb": "device memory beyond the dataset (CUDA)",
}


# --- contenders


def random_data(device: torch.device, episodes: int) -> ReplayData:
    r, n = np.random.default_rng(0), SPEC.max_episode_steps

    def episode() -> Episode:
        obs = r.normal(size=(n + 1, SPEC.obs_dim))
        action = np.tanh(r.normal(size=(n, SPEC.action_dim)))
        return Episode(obs, action, r.normal(size=n), np.zeros(n, bool))

    return from_episodes((episode() for _ in range(episodes)), name="random data").to(device)


@cache
def shipped() -> dict[str, type]:
    """The class of every method of the package, by the name of its file."""
    found = {}
    for info in pkgutil.iter_modules(methods_package.__path__):
        module = importlib.import_module(f"{methods_package.__name__}.{info.name}")
        (found[info.name],) = (
            cls
            for cls in vars(module).values()
            if isinstance(cls, type)
            and cls.__module__ == module.__name__
            and hasattr(cls, "update")
        )
    return found


def _view(needs: Sequence[str]) -> NStep | Chunk | Window:
    """What a method learns from: chunks of 5 steps and windows of 20, as published."""
    if {"valid", "prefixes"} & set(needs):
        return Chunk(5, SPEC.gamma, pad=True)
    return Window(20, SPEC.gamma) if "context" in needs else NStep(1, SPEC.gamma)


class _Cell(NamedTuple):
    """What all contenders of one comparison share."""

    name: str
    hidden: tuple[int, ...]
    data: ReplayData
    batch_size: int

    @property
    def method(self) -> Any:
        """The method with its own settings, its multilayer perceptrons of the widths asked for."""
        cls = shipped()[self.name]
        sized = "hidden" in {field.name for field in dataclasses.fields(cls)}
        return cls(hidden=self.hidden) if sized else cls()

    @property
    def row(self) -> dict[str, Any]:
        return {"method": self.name, "hidden": "x".join(map(str, self.hidden))}

    def parts(self, seeds: int) -> tuple[Any, Any]:
        """The step and the first carry of a stack."""
        method = self.method
        needs = getattr(method, "needs", ())
        pipeline = make_pipeline(
            self.data, view=_view(needs), batch_size=self.batch_size, needs=needs
        )
        spec = pipeline.spec(SPEC)
        return make_step(method, pipeline), initial_carry(
            method, spec, range(seeds), self.data.obs.device
        )

    def build(self, entry: Entry) -> Advance:
        data, size = self.data, self.batch_size
        if entry.backend in ("plain", "captured"):
            loop = plain_loop if entry.backend == "plain" else captured_loop
            return loop(CONTENDERS[self.name][1], self.method, SPEC, data, size)
        if entry.backend == "unstacked":
            return unstacked_loop(self.method, SPEC, make_pipeline(data, batch_size=size))
        engine = Engine(*self.parts(entry.seeds), backend=entry.backend, precision=entry.precision)

        def advance(n: int) -> None:
            # reading a metric waits for the device
            next(iter(engine.run(n).values())).tolist()

        return advance


class _Contender:
    """One row of the table: set up once, then timed in rounds of equal length."""

    def __init__(self, cell: _Cell, entry: Entry):
        self.cell, self.entry, self.best = cell, entry, 0.0
        self.cuda = cell.data.obs.device.type == "cuda"
        # steps; a replay makes a whole block
        self.unit = BLOCK if self.cuda else 1

    def prepare(self, round_s: float) -> None:
        before = self._memory(reset=True)
        start = time.perf_counter()
        self.advance = self.cell.build(self.entry)
        self.build_s = time.perf_counter() - start
        self.advance(1)
        self.first_s = time.perf_counter() - start - self.build_s
        self.n = self.unit
        while (elapsed := self.time()) < round_s / 4:
            self.n *= 2
        wanted = self.n * round_s / elapsed
        self.n = max(1, round(wanted / self.unit)) * self.unit
        self.peak_mb = (self._memory() - before) / 2**20 if self.cuda else None

    def _memory(self, *, reset: bool = False) -> int:
        if not self.cuda:
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()

    def time(self) -> float:
        start = time.perf_counter()
        self.advance(self.n)
        return time.perf_counter() - start

    def take_turn(self) -> None:
        self.best = max(self.best, self.n / self.time())

    def device_seconds(self) -> float:
        """What the device computes for one step, without its waiting for the next order."""
        if not self.cuda:
            start = time.process_time()
            self.advance(self.n)
            return (time.process_time() - start) / self.n
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        n = 2 * BLOCK
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as watched:
            self.advance(n)
        kernels = [
            e
            for e in watched.events()
            if e.device_type == DeviceType.CUDA and not e.is_user_annotation
        ]
        return sum(e.self_device_time_total for e in kernels) / 1e6 / n


# --- the measurement


def measure(
    methods: Sequence[str] = tuple(CONTENDERS),
    *,
    entries: Sequence[Entry] | None = None,
    hidden: Sequence[Sequence[int]] = ((64, 64), (256, 256)),
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
    episodes: int = 0,
    peer: "Peer | None" = None,
    until: float = float("inf"),
    report: Callable[[Result], None] = lambda result: None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Times every entry for `seconds`, per method and network; `report` sees the result as it grows.

    `say` gets a line for everything that is set up and for every row that is ready.

    An update is a minibatch, so a step of TD3+BC counts two. Contenders that are not set up by
    `until` (of `time.monotonic`) are skipped, those that fail are left out; `facts` names both.
    Raises UserError for what is not there.
    """
    device = torch.device(device)
    entries = default_entries(device) if entries is None else entries
    _check(methods, entries, batch_size, seconds, device)
    data = random_data(device, episodes or N_EPISODES)
    # torch loads parts of itself on first use
    plain_loop(PlainBC, BC(hidden=(1,)), SPEC, data, 1)(1)
    facts = _facts(device, data, batch_size, seconds)
    result = Result([], facts)
    precisions = list(dict.fromkeys(e.precision for e in entries))
    # a plain loop is written for some methods only
    mine = {
        name: [e for e in entries if name in CONTENDERS or e.backend not in YARDSTICKS]
        for name in methods
    }
    progress = _Progress(2 * len(hidden) * sum(map(len, mine.values())), say)
    for name in methods:
        for sizes in hidden:
            cell = _Cell(name, tuple(sizes), data, batch_size)
            result.rows.extend(_rows(cell, mine[name], seconds, peer, until, facts, progress))
            _take_ceilings(result, device, precisions)
            facts["peak_rss_mb"] = _peak_memory() / 2**20
            report(result)
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


def _take_ceilings(result: Result, device: torch.device, precisions: Sequence[str]) -> None:
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


def default_entries(device: torch.device) -> list[Entry]:
    if device.type == "cuda":
        return product((*YARDSTICKS, "eager", "cudagraph"), (1, 2, 4, 8, 16, 32, 64))
    return product(("plain", "eager"), (1, 2, 8))


def product(
    backends: Iterable[str], seeds: Sequence[int], precisions: Sequence[str] = ("float32",)
) -> list[Entry]:
    """Every backend at every number of seeds and precision; yardsticks once."""
    found: dict[Entry, None] = {}
    for backend in backends:
        single = backend in YARDSTICKS
        for precision in ("float32",) if single else precisions:
            found |= {Entry(backend, n, precision): None for n in ((1,) if single else seeds)}
    return list(found)


def _check(
    methods: Sequence[str],
    entries: Sequence[Entry],
    batch_size: int,
    seconds: float,
    device: torch.device,
) -> None:
    for name in methods:
        if name not in shipped():
            raise unknown("method", name, shipped())
        if getattr(shipped()[name], "actions", "continuous") == "discrete":
            raise UserError(f"speed is measured on continuous actions; {name} learns discrete ones")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no CUDA device here")
    for entry in entries:
        if entry.backend not in BACKENDS:
            raise unknown("backend", entry.backend, BACKENDS)
        if entry.precision not in get_args(Precision):
            raise unknown("precision", entry.precision, get_args(Precision))
        if entry.backend == "captured" and device.type != "cuda":
            raise UserError("backend captured needs a CUDA device")
        if entry.backend not in YARDSTICKS:
            candidates(entry.backend, device.type)
    sizes = [batch_size, *(e.seeds for e in entries)]
    if not seconds > 0 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise UserError("speed needs positive seconds, seeds and batch_size")


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
    cell: _Cell,
    entries: Sequence[Entry],
    seconds: float,
    peer: "Peer | None",
    until: float,
    facts: dict[str, Any],
    progress: _Progress,
) -> list[dict[str, Any]]:
    title = " ".join(cell.row.values())
    peers = [peer.row(cell)] if peer else []
    ready: list[_Contender] = []
    for entry in entries:
        label = f"{title} {entry.backend} x{entry.seeds} {entry.precision}"
        if time.monotonic() > until:
            facts["skipped"].append(label)
            progress.done += 2
            continue
        contender = _Contender(cell, entry)
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


def _row(contender: _Contender, facts: dict[str, Any]) -> dict[str, Any]:
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


class Peer(NamedTuple):
    """A command of somebody else that prints how many updates it makes in a second."""

    # {method}, {hidden} as 256,256, {seeds} and {batch_size} are filled in
    command: str
    # its first group is the number; the last match counts
    pattern: str
    # that the command trains together
    seeds: int = 1

    def row(self, cell: _Cell) -> dict[str, Any]:
        values = {
            "method": cell.name,
            "hidden": ",".join(map(str, cell.hidden)),
            "seeds": str(self.seeds),
            "batch_size": str(cell.batch_size),
        }
        words = shlex.split(self.command)
        for name, value in values.items():
            words = [word.replace("{" + name + "}", value) for word in words]
        start = time.perf_counter()
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except OSError as error:
            raise UserError(f"peer: {words[0]!r} cannot be run: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"peer ended with exit code {done.returncode}: {last}")
        found = re.findall(self.pattern, done.stdout)
        try:
            rate = float(str(found[-1]).replace(",", ""))
        except (IndexError, ValueError):
            raise UserError(
                f"peer printed no number where peer_pattern={self.pattern!r} has its first group"
            ) from None
        seconds = time.perf_counter() - start
        row = cell.row | {"backend": "peer", "precision": "as it chose", "seeds": self.seeds}
        return row | {
            "updates_per_s": rate,
            "seed_updates_per_s": rate * self.seeds,
            "first_s": seconds,
        }


# --- the result


_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "method": ("method", str),
    "hidden": ("hidden", str),
    "backend": ("backend", str),
    "precision": ("precision", str),
    "seeds": ("seeds", str),
    "updates_per_s": ("updates/s", "{:,.0f}".format),
    "seed_updates_per_s": ("seed-updates/s", "{:,.0f}".format),
    "ratio": ("vs plain", "{:.2f}x".format),
    "device_us": ("device us", "{:,.0f}".format),
    "flops_per_s": ("GFLOP/s", lambda x: f"{x / 1e9:,.0f}"),
    "of_matmul": ("of matmul", "{:.0%}".format),
    "of_products": ("of same products", "{:.0%}".format),
    "bytes_per_s": ("GB/s", lambda x: f"{x / 1e9:,.1f}"),
    "of_copy": ("of copy", "{:.0%}".format),
    "build_s": ("build s", "{:.1f}".format),
    "first_s": ("first s", "{:.1f}".format),
    "peak_mb": ("MiB", "{:,.0f}".format),
}


def cells_of(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text, without columns that are empty or the same float32 throughout."""
    shown = [
        c
        for c in COLUMNS
        if any(r[c] is not None for r in result.rows)
        and not (c == "precision" and {r[c] for r in result.rows} == {"float32"})
    ]
    body = [
        ["" if row[c] is None else _FORMATS[c][1](row[c]) for c in shown] for row in result.rows
    ]
    return [_FORMATS[c][0] for c in shown], body


def to_rich(result: Result) -> "Table":
    from rich.table import Table

    head, body = cells_of(result)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < 3 else "right")
    for i, line in enumerate(body):
        table.add_row(*line, end_section=i + 1 < len(body) and body[i + 1][:2] != line[:2])
    return table


def to_markdown(result: Result) -> str:
    head, body = cells_of(result)
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def note(result: Result) -> str:
    """What was measured on what, and how to read the columns."""
    f = result.facts
    ceilings = ", ".join(f"{p} {x / 1e9:,.0f} GFLOP/s" for p, x in f["matmul_flops_per_s"].items())
    lines = [
        f"{f['device']}, {f['threads']} thread{'s' * (f['threads'] != 1)}, torch {f['torch']}, batch {f['batch_size']}, "
        f"{f['obs_dim']} observations, {f['action_dim']} actions, {f['transitions']:,} random transitions; "
        f"best of {f['rounds']} rounds, {f['seconds']:g} s for each row.",
        f"Ceilings of this run: large matrix product {ceilings}; large copy {f['copy_bytes_per_s'] / 1e9:,.1f} GB/s.",
        "An update is a minibatch. plain: torch.nn modules, backward(), torch.optim.Adam(fused=True), "
        ".item() each step, one seed. GFLOP/s: matrix products only. GB/s: operands and results of "
        "every operation, an upper bound where operations are fused.",
    ]
    lines += [f"failed: {label}: {why}" for label, why in f["failed"].items()]
    if f["skipped"]:
        lines.append(f"skipped for lack of time: {', '.join(f['skipped'])}")
    return "\n".join(lines)


def write(result: Result, folder: Path) -> list[Path]:
    """speed.csv, speed.json (the facts) and speed.png, in `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"speed.{kind}" for kind in ("csv", "json", "png")]
    with open(paths[0], "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(result.rows)
    paths[1].write_text(
        json.dumps(result.facts | {"columns": COLUMNS}, indent=1) + "\n", encoding="utf-8"
    )
    try:
        plot(result, paths[2])
    # no matplotlib: the table is there all the same
    except ImportError:
        paths.pop()
    return paths


_COLOURS = {
    "eager": "#2a78b5",
    "compile": "#d9772b",
    "cudagraph": "#1f8a5b",
    "vmap": "#8b6bb1",
    "captured": "#b3445a",
    "unstacked": "#7a6a4f",
    "peer": "#000000",
}
_DASHES = {"float32": "-", "tf32": "--", "bf16": ":"}


def plot(result: Result, path: Path) -> None:
    """Seed-updates per second against seeds, both logarithmic; a panel for each method and network."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in result.rows:
        panels.setdefault(row["method"], {}).setdefault(row["hidden"], []).append(row)
    n_columns = max(map(len, panels.values()), default=1)
    size = (4.2 * n_columns + 1.4, 3.1 * max(1, len(panels)) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(max(1, len(panels)), n_columns, squeeze=False, sharex=True, sharey="row")
    ticks = sorted({row["seeds"] for row in result.rows})
    for axes in grid.flat:
        axes.set_visible(False)
    for line, (method, by_size) in zip(grid, panels.items(), strict=False):
        for axes, (hidden, rows) in zip(line, by_size.items(), strict=False):
            axes.set_visible(True)
            _panel(axes, f"{method}, {hidden}", rows, ticks)
        line[0].set_ylabel("seed-updates per second")
    for axes in grid[-1]:
        axes.set_xlabel("seeds trained together")
    entries = {
        label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels())
    }
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{result.facts['device']}, batch {result.facts['batch_size']}", fontsize=10)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, title: str, rows: list[dict[str, Any]], ticks: list[int]) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        point = (row["seeds"], row["seed_updates_per_s"])
        lines.setdefault((row["backend"], row["precision"]), []).append(point)
    for (backend, precision), points in lines.items():
        x, y = zip(*sorted(points), strict=True)
        if backend == "plain":
            axes.axhline(
                y[0], color="#555555", lw=1.2, ls=(0, (4, 3)), label="plain loop, one seed"
            )
            continue
        label = backend if precision in ("float32", "as it chose") else f"{backend} {precision}"
        style = {"color": _COLOURS[backend], "ls": _DASHES.get(precision, "-"), "label": label}
        single = backend in YARDSTICKS or backend == "peer"
        axes.plot(x, y, marker="D" if single else "o", ms=5 if single else 4, lw=1.8, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.autoscale()
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    marks = [m * 10**e for e in range(9) for m in steps if low <= m * 10**e <= high]
    axes.set_yticks(marks, [f"{m:,.0f}" for m in marks])
    axes.set_title(title, fontsize=10)
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


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
    out = options.pop("out", "results/speed")
    until = time.monotonic() + 60 * _positive(options.pop("minutes", MINUTES), "minutes")
    say = partial(print, file=sys.stderr, flush=True)
    result = measure(**_arguments(options, torch.device(device)), until=until, say=say)
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
    """The settings of the command line as arguments of `measure`."""
    usual = default_entries(device)
    backends = options.pop("backends", list(dict.fromkeys(e.backend for e in usual)))
    seeds = options.pop("seeds", sorted({e.seeds for e in usual if e.backend not in YARDSTICKS}))
    entries = product(backends, seeds, options.pop("precision", ["float32"]))
    peer, pattern = options.pop("peer", None), options.pop("peer_pattern", None)
    if (peer is None) != (pattern is None):
        raise UserError(
            "peer= and peer_pattern= go together: a command, and where it prints its updates/s"
        )
    peers = {"peer": Peer(peer, pattern, options.pop("peer_seeds", 1))} if peer else {}
    return options | peers | {"entries": entries, "device": device}
