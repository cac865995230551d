"""What is timed: a method's stack of seeds on one backend, a plain loop, or somebody else's command."""

import dataclasses
import importlib
import pkgutil
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

import numpy as np
import torch

from offbench import methods as methods_package
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, ReplayData, from_episodes
from offbench.data.views import View, Window
from offbench.errors import UserError, unknown
from offbench.speed.reference_loops import PLAIN, Advance, captured_loop, plain_loop, unstacked_loop
from offbench.testing.fakes import view_for
from offbench.training.engine import BLOCK, Backend, Engine, Precision
from offbench.training.step import initial_carry, make_step
from offbench.types import Spec

SPEC = Spec(obs_dim=17, action_dim=6, gamma=0.99, max_episode_steps=1000)  # the size of halfcheetah
# of one seed: offbench.speed.reference_loops
Yardstick = Literal["plain", "captured", "unstacked"]
YARDSTICKS: tuple[Yardstick, ...] = get_args(Yardstick)
BACKENDS = (*YARDSTICKS, *(b for b in get_args(Backend) if b != "auto"))


def is_of_engine(backend: Backend | Yardstick) -> TypeGuard[Backend]:
    """Whether the engine runs it: no yardstick."""
    return backend not in YARDSTICKS


class Entry(NamedTuple):
    """How a method is trained: the backend, the seeds stacked, the precision of matrix products."""

    backend: Backend | Yardstick
    seeds: int = 1
    precision: Precision = "float32"


def default_entries(device: torch.device) -> list[Entry]:
    """What is timed on a device unless a user says otherwise."""
    if device.type == "cuda":
        return product((*YARDSTICKS, "eager", "cudagraph"), (1, 2, 4, 8, 16, 32, 64))
    return product(("plain", "eager"), (1, 2, 8))


def product(
    backends: Iterable[Backend | Yardstick],
    seeds: Sequence[int],
    precisions: Sequence[Precision] = ("float32",),
) -> list[Entry]:
    """Every backend at every number of seeds and precision; yardsticks once."""
    found: dict[Entry, None] = {}
    for backend in backends:
        single = not is_of_engine(backend)
        for precision in ("float32",) if single else precisions:
            found |= {Entry(backend, n, precision): None for n in ((1,) if single else seeds)}
    return list(found)


def random_data(device: torch.device, episodes: int) -> ReplayData:
    """Episodes of 1000 random transitions, of SPEC's sizes, on the device."""
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


def check_shipped(names: Iterable[str]) -> None:
    """Raises UserError for a method that is not there."""
    for name in names:
        if name not in shipped():
            raise unknown("method", name, shipped())


def sized_method(name: str, hidden: tuple[int, ...]) -> Any:
    """A shipped method with its own settings, its multilayer perceptrons of these widths."""
    cls = shipped()[name]
    sized = "hidden" in {field.name for field in dataclasses.fields(cls)}
    return cls(hidden=hidden) if sized else cls()


def usual_view(needs: Sequence[str]) -> View | Window | Goal:
    """What a method learns from: goals, chunks of 5 steps and windows of 20, as published."""
    return view_for(needs, SPEC, chunk=5, window=20, goal=Goal())


class Cell(NamedTuple):
    """What all contenders of one comparison share."""

    name: str
    hidden: tuple[int, ...]
    data: ReplayData
    batch_size: int

    @property
    def method(self) -> Any:
        """The method with its own settings, its multilayer perceptrons of the widths asked for."""
        return sized_method(self.name, self.hidden)

    @property
    def row(self) -> dict[str, Any]:
        return {"method": self.name, "hidden": "x".join(map(str, self.hidden))}

    def parts(self, seeds: int) -> tuple[Any, Any]:
        """The step and the first carry of a stack."""
        method = self.method
        needs = getattr(method, "needs", ())
        pipeline = make_pipeline(
            self.data, view=usual_view(needs), batch_size=self.batch_size, needs=needs
        )
        spec = pipeline.spec(SPEC)
        return make_step(method, pipeline), initial_carry(
            method, spec, range(seeds), self.data.obs.device
        )

    def build(self, entry: Entry) -> Advance:
        data, size = self.data, self.batch_size
        if entry.backend == "plain" or entry.backend == "captured":
            loop = plain_loop if entry.backend == "plain" else captured_loop
            return loop(PLAIN[self.name][1], self.method, SPEC, data, size)
        if entry.backend == "unstacked":
            return unstacked_loop(self.method, SPEC, make_pipeline(data, batch_size=size))
        engine = Engine(*self.parts(entry.seeds), backend=entry.backend, precision=entry.precision)

        def advance(n: int) -> None:
            # reading a metric waits for the device
            next(iter(engine.run(n).values())).tolist()

        return advance


N_EPISODES = 100  # of 1000 steps


def cells(
    methods: Sequence[str] = tuple(PLAIN),
    *,
    hidden: Sequence[Sequence[int]] = ((64, 64), (256, 256)),
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    episodes: int = 0,
) -> list[Cell]:
    """Each of the shipped methods with each network, on one set of random data.

    Args:
        hidden: for each network the widths of its hidden layers.
        batch_size: rows of a minibatch.
        device: where the data and the networks are.
        episodes: each 1000 steps; 0: N_EPISODES.

    Raises:
        UserError: a method or device that is not there, a size that is not positive.
    """
    device = torch.device(device)
    check_shipped(methods)
    for name in methods:
        if getattr(shipped()[name], "actions", "continuous") == "discrete":
            raise UserError(f"speed is measured on continuous actions; {name} learns discrete ones")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no CUDA device here")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size={batch_size!r} must be a positive number of rows")
    data = random_data(device, episodes or N_EPISODES)
    return [Cell(name, tuple(sizes), data, batch_size) for name in methods for sizes in hidden]


class Contender:
    """One row of the table: set up once, then timed in rounds of equal length."""

    def __init__(self, cell: Cell, entry: Entry):
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


class Peer(NamedTuple):
    """A command of somebody else that prints how many updates it makes in a second."""

    # {method}, {hidden} as 256,256, {seeds} and {batch_size} are filled in
    command: str
    # its first group is the number; the last match counts
    pattern: str
    # that the command trains together
    seeds: int = 1

    def row(self, cell: Cell) -> dict[str, Any]:
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
