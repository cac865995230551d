"""Runs one pack: data, stacked training, evaluation, records.

Whatever interrupts a benchmark costs the packs in flight, which go on from their checkpoints.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench.cells import Cell
from offbench.bench.preflight import build, build_method, resolve_device, training_episodes
from offbench.bench.progress import Progress, checkpoint_path, code_version
from offbench.bench.recording import Outcome, most_earned, record
from offbench.bench.settings import Settings
from offbench.bench.stacks import Pack
from offbench.results.store import Store
from offbench.tasks.loading import action_units, load_data

if TYPE_CHECKING:
    import pandas as pd

    from offbench.data.pipeline import Pipeline
    from offbench.rollout import EnvPool
    from offbench.training.loop import Point
    from offbench.training.step import Carry
    from offbench.types import Spec

# how often metrics are read and progress is reported
CURVE_POINTS = 20

# phase, fraction of the pack done
Report = Callable[[str, float], None]


def run_pack(
    pack: Pack,
    store: Store,
    settings: Settings,
    *,
    pools: "dict[str, EnvPool] | None" = None,
    report: Report | None = None,
) -> list[Outcome]:
    """Trains the stack, evaluates its last update, and records the rows of every run in it.

    Environments step on the CPU with a copy of the states, so they can step while training goes on
    and see the same policy whatever trained it.
    """
    from offbench.bench import kept
    from offbench.bench.loggers import open_sink
    from offbench.rollout import EnvPool, evaluate, make_policy
    from offbench.training.held_out import Validation
    from offbench.training.imperative import Imperative
    from offbench.training.loop import diverged
    from offbench.training.step import n_minibatches

    start = time.perf_counter()
    report = report or (lambda phase, fraction: None)
    pools = {} if pools is None else pools
    cell = pack.cells[0]
    device = resolve_device(settings.device)
    report("loading", 0.0)
    data, spec = load_data(
        cell.task, gamma=cell.pipeline["gamma"], defects="ignore"
    )  # told in preflight
    data, held_out = training_episodes(cell, data)
    method, pipeline = build(cell, data, spec, lazy=settings.data == "host")
    for other in [name for name in pools if name != cell.task.id]:
        # environments can be large: 200 MB for one OGBench cube
        pools.pop(other).close()
    pool = pools.setdefault(cell.task.id, EnvPool(cell.task))
    if cell.task.env:
        pool.check(spec)
    policy = make_policy(method, pipeline)
    n, protocol, members = cell.n_updates, cell.protocol, pack.members
    k = n_minibatches(method)
    monitor = {max(k, round(f * n) // k * k) for f in protocol["monitor_at"]}
    stops = sorted({n * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)} | monitor)
    look = partial(evaluate, policy, task=cell.task, n_envs=protocol["envs"], pool=pool)
    validate = None
    if held_out is not None:
        validate = Validation(method, pipeline, held_out, discrete=spec.discrete, device=device)
    seeds = [run.seed for _, run in members]
    looks: list[Future[pd.DataFrame]] = []
    resume, before = _begin(pack, store, settings, method, pipeline, spec, device)
    curves, train_s = before.curves, before.train_s
    code = list(dict.fromkeys([*before.code, code_version()]))
    keep = lambda: replace(
        before, frames=[*before.frames, *(f.result() for f in looks)], train_s=train_s, code=code
    ).save(checkpoint_path(pack, settings))
    with (
        ThreadPoolExecutor(1, "evaluate") as beside,
        open_sink(settings.sink, pack, settings.results) as sink,
    ):
        mark = time.perf_counter()
        for point in _training(pack, method, pipeline, spec, stops, settings, device, keep, resume):
            values = {k: v.tolist() for k, v in point.metrics.items()}  # waits for the device
            train_s += time.perf_counter() - mark
            if values:
                # what was kept ahead of the checkpoint
                before.forget_from(point.update)
                if validate:
                    values |= {k: v.tolist() for k, v in validate(point.state).items()}
                curves.append({"update": point.update} | values)
                sink.metrics(point.update, curves[-1])
            report("training", 0.9 * point.update / n)
            if point.update in monitor and point.metrics:
                here = partial(look, _to_cpu(point.state), seeds=seeds, update=point.update)
                episodes = protocol["monitor_episodes"]
                looks.append(beside.submit(here, episodes=episodes, stream="monitor"))
                # its seeds borrow the process's generators, which evaluation draws from, too
                if isinstance(method, Imperative):
                    looks[-1].result()
            mark = time.perf_counter()
        frames = [*before.frames, *(f.result() for f in looks)]
        report("evaluating", 0.9)
        final = _to_cpu(point.carry)
        broken = diverged(point.state).tolist()
        finite = [i for i, bad in enumerate(broken) if not bad]
        if finite and protocol["episodes"]:
            test = look(
                _select(final.state, finite),
                seeds=[seeds[i] for i in finite],
                episodes=protocol["episodes"],
                stream="test",
                update=n,
            )
            frames.append(test.assign(member=test["member"].map(dict(enumerate(finite)))))
        for frame in frames:
            sink.episodes(frame)
    fitted = _fitted(cell, pipeline)
    units = kept.Units(*(pool.units() if cell.task.env else action_units(cell.task, spec.discrete)))

    def keep_run(i: int, path: Path) -> None:
        own, run = members[i]
        method = build_method(own)
        kept.save(
            path.with_suffix(".safetensors"),
            final,
            i,
            keep=settings.keep,
            run=run,
            target=own.target,
            method=method,
            pipeline=pipeline,
            spec=spec,
            units=units,
            fitted=fitted,
        )

    outcomes = record(
        pack,
        store,
        settings,
        point.backend,
        device,
        broken,
        frames,
        curves,
        start,
        train_s,
        fitted,
        most_earned(pipeline),
        [c for c in code if c != code_version()],
        before.began,
        keep_run if settings.keep != "none" else None,
    )
    for path in (checkpoint_path(pack, settings), Progress.path(checkpoint_path(pack, settings))):
        path.unlink(missing_ok=True)
    report("done", 1.0)
    return [outcome._replace(note=before.note) for outcome in outcomes]


def _begin(
    pack: Pack,
    store: Store,
    settings: Settings,
    method: Any,
    pipeline: "Pipeline",
    spec: "Spec",
    device: str,
) -> "tuple[Carry | None, Progress]":
    """Where training begins and what came before: a checkpoint of these runs, else the kept state of
    shorter runs of the same settings, else nothing."""
    from offbench.bench import kept
    from offbench.training import checkpoint
    from offbench.training.imperative import Imperative
    from offbench.training.step import initial_carry

    path = checkpoint_path(pack, settings)
    seeds = [run.seed for _, run in pack.members]
    written = isinstance(method, Imperative)
    like = lambda: (
        method.like(seeds)
        if written
        else initial_carry(method, pipeline.spec(spec), seeds, device, values=pack.values)
    )
    if path.exists():
        return checkpoint.load(path, like()), Progress.load(path)
    members = [(cell.entry, run) for cell, run in pack.members]
    if written or not any(store.kept(run) for _, run in members):
        return None, Progress()
    found, why = kept.earlier(store, members, like(), method)
    if found is None:
        return None, Progress(note=why)
    return found.carry, Progress.of_records(found.records, found.n_updates, store)


def _training(
    pack: Pack,
    method: Any,
    pipeline: "Pipeline",
    spec: "Spec",
    stops: Sequence[int],
    settings: Settings,
    device: str,
    keep: Callable[[], None],
    resume: "Carry | None",
) -> "Iterator[Point]":
    """The points of training, checkpointed on the way.

    `keep` saves what was seen so far beside the checkpoint.
    """
    from offbench.training import checkpoint
    from offbench.training.imperative import NAME, Imperative
    from offbench.training.loop import train

    if settings.data == "device":
        pipeline = pipeline.to(device)
    seeds, values = [run.seed for _, run in pack.members], pack.values
    path = checkpoint_path(pack, settings)
    saved = time.perf_counter()
    for point in train(
        method,
        pipeline,
        spec,
        seeds=seeds,
        values=values,
        n_updates=pack.cells[0].n_updates,
        stop_at=stops,
        backend=settings.engine,
        precision=settings.precision,
        device=device,
        resume=resume,
    ):
        yield point
        resumable = not isinstance(method, Imperative) or point.backend == NAME
        if resumable and time.perf_counter() - saved > 60 * settings.checkpoint_minutes:
            keep()
            checkpoint.save(point.carry, path)
            saved = time.perf_counter()


def _fitted(cell: Cell, pipeline: "Pipeline") -> dict[str, Any]:
    """The view's settings that were left open and filled in from the data."""
    open_ = [k for k, v in cell.pipeline["view"].items() if v is None]
    return {f"view.{k}": getattr(pipeline.view, k) for k in open_}


def _to_cpu(state: Any) -> Any:
    from offbench.training.step import to_device

    return to_device(state, "cpu")


def _select(state: Any, places: list[int]) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda x: x[places], state)
