"""Probes on this CPU behind `offbench plan`: of a training step, of fitted Q evaluation, of sources of synthetic data."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench import devices
from offbench.bench.devices import Card

if TYPE_CHECKING:
    from offbench.bench.stacks import Pack
    from offbench.data.pipeline import Pipeline
    from offbench.data.replay import ReplayData
    from offbench.ope.decisions import Decisions
    from offbench.training.engine import Engine
    from offbench.training.imperative import ImperativeEngine
    from offbench.types import Spec

PROBE_UPDATES, PROBE_ROUNDS = 60, 3
# rows at which policies decide in a probe, and more where that takes no longer than so many seconds
PROBE_ROWS, PROBE_DECISIONS_S = 64, 0.05
# sub-trajectories of a probe, and noise levels of a sample
PROBE_ROLLOUTS, PROBE_LEVELS = 64, 2
# stacks up to this size are probed themselves; the time of an update of larger ones is extended from two
PROBED, SMALLER = 32, 8


@contextmanager
def one_thread() -> Iterator[None]:
    """With one thread, as in a worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def step_s(engine: "Engine | ImperativeEngine", steps: int) -> float:
    """Seconds of a step, the least of a few short rounds of so many."""
    engine.run(1)
    best = float("inf")
    # one step first: an update of large networks takes seconds
    n = 1
    with one_thread():
        for _ in range(PROBE_ROUNDS):
            start = time.perf_counter()
            engine.run(n)
            took = time.perf_counter() - start
            best = min(best, took / n)
            if took > 1:
                break
            n = steps
    return best


class OfFqe:
    """Time of fitted Q evaluation (`eval.by=fqe`): of what policies decide at every recorded row, from a probe
    on this CPU, and of the updates of Q, from another or for a GPU from launches and arithmetic."""

    def __init__(self, gpu: Card | None):
        self.gpu = gpu
        self.known: dict[object, float] = {}
        self.compiled: set[object] = set()

    def of(self, pack: "Pack", report: Callable[[str], None]) -> float:
        """Seconds for a stack; 0 where it is played. UserError where its policies cannot be evaluated so."""
        from offbench.bench.stacks import program_of

        cell, seconds = pack.cells[0], 0.0
        if not cell.protocol.get("by"):
            return seconds
        for size, weight in probed(pack.size):
            key = (*program_of(cell), cell.task.id, cell.protocol.shown, size)
            if key not in self.known:
                report(f"measuring fitted Q evaluation of {pack.title}")
                self.known[key] = self._seconds(pack.first(size))
            seconds += weight * self.known[key]
        return seconds

    def _seconds(self, pack: "Pack") -> float:
        from offbench.bench.estimate import fqe_of, keys_of
        from offbench.bench.preflight import build, check_estimable
        from offbench.ope.fqe import Problem
        from offbench.training.engine import Engine

        cell = pack.cells[0]
        data, spec = devices.shape_of(cell)
        method, pipeline = build(cell, data, spec)
        check_estimable(cell, pipeline, data)
        seeds, fqe = pack.seeds, fqe_of(cell.protocol)
        state = _untrained(method, pipeline.spec(spec), pack)
        found, seconds = _decided((method, pipeline, spec), state, seeds, data)
        problem = Problem.of(fqe, data, found)
        step, carry = problem.step(), problem.start(keys_of(seeds, data))
        if not self.gpu:
            return seconds + fqe.n_updates * step_s(Engine(step, carry), PROBE_UPDATES)
        work = devices.work_of_step(step, carry)
        seconds += 0.0 if work in self.compiled else devices.COMPILE_S
        self.compiled.add(work)
        return seconds + fqe.n_updates * self.gpu.step_s(work, pack.size, "float32")


def _untrained(method: Any, seen: "Spec", pack: "Pack") -> Any:
    """The state of a stack's methods before their first update."""
    from offbench.training.imperative import Imperative
    from offbench.training.step import initial_carry

    if isinstance(method, Imperative):
        return method.like(pack.seeds, seen, "cpu", pack.values).state
    return initial_carry(method, seen, pack.seeds, values=pack.values).state


def _decided(
    trained: "tuple[Any, Pipeline, Spec]", state: Any, seeds: Sequence[int], data: "ReplayData"
) -> "tuple[Decisions, float]":
    """Decisions of the form that these policies make, the same at every row; and the seconds that making them at
    every row takes."""
    from offbench.bench.estimate import keys_of, planning
    from offbench.ope.decisions import ROWS, Decisions, decide

    (policy, steps), keys = planning(*trained), keys_of(seeds, data)
    n = len(data.obs)
    # few rows first: an action that is chosen among proposals takes long
    for rows in (min(n, PROBE_ROWS), min(n, ROWS)):
        part = data._replace(obs=data.obs[:rows])
        decide(policy, state, part, keys=keys, steps=steps)
        start = time.perf_counter()
        found = decide(policy, state, part, keys=keys, steps=steps)
        took = time.perf_counter() - start
        if took > PROBE_DECISIONS_S:
            break
    # the first rows are asked about twice more, to see whether there is chance in it
    each = took / rows / (2 + found.draws)
    seconds = each * (2 * min(n, ROWS) + found.draws * n)
    # without a copy for each row
    alike = lambda x: x[:, :, :1].expand(*x.shape[:2], n, *x.shape[3:])
    length = None if found.length is None else alike(found.length)
    return Decisions(alike(found.action), length, steps), seconds


def probed(members: int) -> list[tuple[int, float]]:
    """(size, weight) of the stacks whose times of an update, added, are that of a stack of `members`."""
    if members <= PROBED:
        return [(members, 1.0)]
    share = (members - SMALLER) / (PROBED - SMALLER)
    return [(SMALLER, 1 - share), (PROBED, share)]


class OfSources:
    """Time of synthetic data: a source's training, once where none was kept, and the sub-trajectories of every pool;
    from probes on this CPU, or for a GPU from launches and arithmetic."""

    def __init__(self, gpu: Card | None):
        self.gpu = gpu
        # (file of a source, seconds of its training, of one pool of a seed)
        self.known: dict[str, tuple[Path, float, float]] = {}
        # files of those whose training was counted
        self.counted: set[Path] = set()

    def of(self, pack: "Pack", report: Callable[[str], None]) -> float:
        """Seconds for a stack; 0 without synthetic data."""
        from offbench.bench.preflight import build_source, training_episodes
        from offbench.synthetic.sources import PolicyGuidedDiffusion
        from offbench.tasks.files import cache_dir

        cell = pack.cells[0]
        settings = build_source(cell)
        if settings is None:
            return 0.0
        key = repr((cell.task.id, cell.protocol.get("validation"), settings))
        if key not in self.known:
            report(f"measuring the data source of {pack.title}")
            data, _ = training_episodes(cell, devices.shape_of(cell)[0])
            path = settings.kept(data, cache_dir() / "sources")
            measure = _diffusion if isinstance(settings, PolicyGuidedDiffusion) else _world_model
            self.known[key] = (path, *measure(settings, data, path.exists(), self.gpu))
        file, training, pool = self.known[key]
        pools = -(-cell.n_updates // settings.every)
        seconds = pools * pack.size * pool + (0.0 if file in self.counted else training)
        self.counted.add(file)
        return seconds


def _diffusion(
    settings: Any, data: "ReplayData", trained: bool, gpu: Card | None
) -> tuple[float, float]:
    """(seconds of training, 0 where it was trained; seconds of a pool) of a diffusion model."""
    if gpu:
        return _diffusion_on(gpu, settings, data, trained)
    import torch

    from offbench import rng
    from offbench.synthetic.diffusion import problem
    from offbench.training.engine import Engine

    model, step, start = problem(settings, data)
    training, key = 0.0, rng.key(0)[None]
    if not trained:
        training = settings.n_updates * step_s(Engine(step, start), 10)
    few = model._replace(settings=replace(settings, steps=PROBE_LEVELS, second_order=False))
    with torch.no_grad(), one_thread():
        few.rollouts(key, PROBE_ROLLOUTS)
        began = time.perf_counter()
        few.rollouts(key, PROBE_ROLLOUTS)
    each = (time.perf_counter() - began) / (PROBE_LEVELS * PROBE_ROLLOUTS)
    return training, each * settings.rollouts * settings.steps * (1 + settings.second_order)


def _diffusion_on(
    gpu: Card, settings: Any, data: "ReplayData", trained: bool
) -> tuple[float, float]:
    """`_diffusion` on a GPU. Training is captured as a method's is; the launches of a sample, which is not, take
    longer than is counted, and are few beside the arithmetic of networks that need a GPU."""
    import torch

    from offbench import rng
    from offbench.nn import unet
    from offbench.synthetic.diffusion import TOGETHER, State, denoise, learn
    from offbench.training.fitting import Fit
    from offbench.training.step import to_device

    key, channels = rng.key(0, "meta"), data.obs.shape[1] + data.action.shape[1] + 2
    sizes = {"features": settings.features, "levels": settings.levels}
    net = to_device(unet.init(key, channels, **sizes), "meta")
    windows = lambda n: torch.empty(n, settings.length, channels, device="meta")
    training, state = 0.0, State(Fit.start(net), net)
    if not trained:
        batch = windows(settings.batch_size)
        update = devices.work_of_run(lambda: learn(settings, state, batch, key))
        training = devices.COMPILE_S + settings.n_updates * gpu.step_s(update, 1, "float32")
    together = min(TOGETHER, settings.rollouts)
    once = devices.work_of_run(lambda: denoise(net, windows(together), 1.0))
    times = settings.steps * (1 + settings.second_order) * -(-settings.rollouts // together)
    return training, times * gpu.step_s(once, 1, "float32")


def _world_model(
    settings: Any, data: "ReplayData", trained: bool, gpu: Card | None
) -> tuple[float, float]:
    """(seconds of training, 0 where it was trained; of a pool, which takes none beside it) of an ensemble."""
    from offbench.ope.model import MEMBERS, problem
    from offbench.training.engine import Engine

    if trained:
        return 0.0, 0.0
    _, step, start = problem(data, settings.fit)
    if not gpu:
        return settings.n_updates * step_s(Engine(step, start), PROBE_UPDATES), 0.0
    work = devices.work_of_step(step, start)
    update = gpu.step_s(work, MEMBERS, "float32")
    return devices.COMPILE_S + settings.n_updates * update, 0.0
