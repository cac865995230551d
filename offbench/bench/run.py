"""Runs packs of cells: data -> stacked training -> evaluation -> records; many packs on several processes.

A pack is what one engine trains: every seed of a cell, and of the cells that differ from it in
numbers only. It is executed whole in one process and its records are written when it ends, so
whatever interrupts a benchmark costs the packs in flight, which go on from their checkpoints.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from offbench.bench import provenance
from offbench.bench.cells import Cell
from offbench.bench.settings import Settings
from offbench.bench.targets import is_torch_class, locate, option_of
from offbench.errors import UserError
from offbench.io import atomic_write
from offbench.results.records import (
    EPISODE_COLUMNS,
    VALIDATION_ERRORS,
    Provenance,
    Record,
    RunSpec,
    Store,
    no_episodes,
)
from offbench.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from offbench.data.pipeline import Pipeline
    from offbench.data.replay import ReplayData
    from offbench.rollout import EnvPool
    from offbench.training.engine import Carry
    from offbench.training.loop import Point
    from offbench.types import Spec

CURVE_POINTS = 20  # how often metrics are read and progress is reported
TOO_FAR = 10  # times what any policy could earn: no error of estimation, the values have diverged

Report = Callable[[str, float], None]  # phase, fraction of the pack done


class Outcome(NamedTuple):
    """What came of one cell."""

    cell: Cell
    scores: dict[int, float]  # seed -> mean test score
    failed: dict[int, str]  # seed -> reason
    remarks: dict[int, str]  # seed -> what to know of a score that counts
    wall_s: float
    backend: str  # which engine ran, with the reason where a faster one was refused
    errors: dict[int, float] = {}  # seed -> action error on held-out episodes, where any were held out
    note: str | None = None  # what is to be said once, and not of a score


@dataclass(frozen=True)
class Pack:
    """Cells trained as one stack: alike but for the values of numeric hyper-parameters."""

    cells: tuple[Cell, ...]

    @property
    def members(self) -> list[tuple[Cell, RunSpec]]:
        """The stack, place by place."""
        return [(cell, run) for cell in self.cells for run in cell.runs()]

    @property
    def values(self) -> list[dict[str, float]] | None:
        """The hyper-parameters that differ, one dict per place; None where none do."""
        first = self.cells[0].hparams
        names = [k for k in first if any(c.hparams[k] != first[k] for c in self.cells)]
        return [{k: cell.hparams[k] for k in names} for cell, _ in self.members] if names else None

    @property
    def title(self) -> str:
        names = self.cells[0].entry if len(self.cells) == 1 else f"{len(self.cells)} entries"
        return f"{names} on {self.cells[0].task.id} x{len(self.members)}"

    @property
    def name(self) -> str:
        """A file name: what is trained, and nothing about where or how fast."""
        ids = "".join(run.run_id for _, run in self.members)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells with the seeds that have no record yet; cells with none left are dropped."""
    cells = list(cells)
    absent = {run.run_id for run in store.missing([run for cell in cells for run in cell.runs()])}
    left = [
        replace(cell, seeds=tuple(r.seed for r in cell.runs() if r.run_id in absent))
        for cell in cells
    ]
    return [cell for cell in left if cell.seeds]


def pack(cells: Iterable[Cell], *, max_stack: int | None = None) -> list[Pack]:
    """Cells that may share a stack, together; no more than `max_stack` runs in one.

    Task by task, so that a process can keep its environments from one pack to the next.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: c.task.id):
        key = (cell.task.id, *program_of(cell), cell.n_updates, str(cell.protocol))
        groups.setdefault(key, []).append(cell)
    return [Pack(part) for group in groups.values() for part in _split(group, max_stack)]


def program_of(cell: Cell) -> tuple[str, str, str]:
    """What decides the operations and sizes of an update: cells that agree in it train as one program."""
    static = {k: v for k, v in cell.hparams.items() if not isinstance(v, float)}
    return cell.target, str(static), str(cell.pipeline)


def _split(cells: Sequence[Cell], limit: int | None) -> Iterator[tuple[Cell, ...]]:
    here: list[Cell] = []
    for cell in cells:
        for seeds in _chunks(cell.seeds, limit or len(cell.seeds)):
            if here and limit and sum(len(c.seeds) for c in here) + len(seeds) > limit:
                yield tuple(here)
                here = []
            here.append(replace(cell, seeds=seeds))
    yield tuple(here)


def _chunks(seeds: tuple[int, ...], n: int) -> list[tuple[int, ...]]:
    return [seeds[i : i + n] for i in range(0, len(seeds), n)]


def fetched(
    cells: Iterable[Cell], *, report: Callable[[str], None] = lambda text: None
) -> tuple[Cell, ...]:
    """The cells with their data here: downloaded, and their sha256 part of the run's identity."""
    ready: dict[str, Task] = {}
    for cell in (cells := tuple(cells)):
        if cell.task.id not in ready:
            report(f"fetching {cell.task.id}")
            ready[cell.task.id] = cell.task.ready()
    return tuple(replace(cell, task=ready[cell.task.id]) for cell in cells)


def build(
    cell: Cell, data: "ReplayData", spec: "Spec", *, lazy: bool = False
) -> "tuple[Any, Pipeline]":
    """(method, pipeline) of a cell on its task's data. Raises UserError where they do not fit."""
    from offbench.data.pipeline import make_pipeline

    method = build_method(cell)
    sampler = dict(cell.pipeline["sampler"])
    weighted = option_of("sampler", sampler.pop("name"))
    pipeline = make_pipeline(
        data,
        view=build_view(cell),
        weights=[partial(weighted, **sampler)] if weighted else [],
        transforms=cell.pipeline["transforms"],
        batch_size=cell.pipeline["batch_size"],
        lazy=lazy,
        needs=getattr(method, "needs", ()),
    )
    check_actions(method, pipeline.spec(spec), cell)
    if check := getattr(method, "check", None):
        check(pipeline.spec(spec))
    if pipeline.spec(spec).context and "context" not in getattr(method, "needs", ()):
        raise UserError(f"{cell.method} does not learn from windows of steps; use view=nstep")
    if pipeline.spec(spec).chunk > 1:
        check_ends(data, spec, cell)
    check_batch(pipeline.spec(spec), cell)
    return method, pipeline


def build_view(cell: Cell) -> Any:
    """The cell's view, before it has seen data."""
    view = dict(cell.pipeline["view"])
    return option_of("view", view.pop("name"))(**view, gamma=cell.pipeline["gamma"])


def build_method(cell: Cell) -> Any:
    """The cell's method, in its learned weights where it has any. UserError for weights that do not fit."""
    from offbench.training.imperative import Imperative

    cls, weight = locate(cell.target), dict(cell.pipeline.get("weight", {}))
    if not is_torch_class(cls):
        method = cls(**cell.hparams)
    elif weight:
        raise UserError(
            f"{cell.method} is a PyTorch class, and learned weights need a functional method; use weight=none"
        )
    else:
        method = Imperative(cls, **cell.hparams)
    if weight:
        method = option_of("weight", weight.pop("name"))(method=method, **weight)
    return method


def check_batch(spec: "Spec", cell: Cell) -> None:
    """Raises UserError for a minibatch that alone, of one seed, is larger than the machine's memory."""
    import torch

    has = psutil.virtual_memory().total
    if torch.cuda.is_available():
        has = max(has, torch.cuda.get_device_properties(0).total_memory)
    rows, numbers = cell.pipeline["batch_size"], 2 * spec.obs_dim + spec.action_dim + 2
    if (needs := 4 * rows * numbers) > has:
        raise UserError(
            f"batch_size={rows}: one minibatch of {cell.task.id} takes {needs / 2**30:.0f} GiB, and this"
            f" machine has {has / 2**30:.0f}"
        )


def check_ends(data: "ReplayData", spec: "Spec", cell: Cell) -> None:
    """Raises UserError for a recording whose episodes cannot be told apart: chunks would cross their ends."""
    if data.n_episodes == 1 and data.n_transitions > 10 * spec.max_episode_steps:
        raise UserError(
            f"{cell.task.id}: one episode of {data.n_transitions} steps where the environment allows "
            f"{spec.max_episode_steps}: no ends of episodes are recorded, and chunks would run across them"
        )


def check_actions(method: Any, spec: "Spec", cell: Cell) -> None:
    """Raises UserError where a method's kind of actions is not the data's."""
    wants = getattr(method, "actions", "continuous")
    has = "discrete" if spec.discrete else "continuous"
    if wants == "discrete" and has != "discrete":
        raise UserError(
            f"{cell.method} learns discrete actions; those of {cell.task.id} are continuous"
        )
    if spec.discrete and spec.chunk > 1:
        raise UserError(
            f"{cell.task.id}: chunks of discrete actions are not supported; use view=nstep"
        )
    if wants != has:
        raise UserError(
            f"{cell.method} learns continuous actions; those of {cell.task.id} are discrete"
        )


def preflight(
    cells: Sequence[Cell],
    *,
    strict: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> None:
    """Everything that can be known to be wrong before training: data, environment, composition.

    Raises UserError for the first mistake, with `strict` also for a severe defect of a data set, of
    which it warns otherwise. Writes nothing but reports on data, into the cache.
    """
    from offbench import rng
    from offbench.rollout import EnvPool
    from offbench.tasks import doctor
    from offbench.training.imperative import Imperative
    from offbench.training.loop import check_budget

    for task in {cell.task.id: cell.task for cell in cells}.values():
        report(f"checking {task.id}")
        data, spec = task.load(defects="ignore")
        (doctor.refuse if strict else doctor.warn_once)(task.report(data))
        if task.env:
            pool = EnvPool(task)
            pool.check(spec)
            pool.close()
        for cell in (c for c in cells if c.task.id == task.id):
            _training_episodes(cell, data)
            method, pipeline = build(cell, data, spec, lazy=True)
            check_budget(method, cell.n_updates)
            if isinstance(method, Imperative):
                method.check(pipeline.spec(spec), pipeline.sample(rng.key(0)))


def resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device}: no CUDA device is available; use device=cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device={device!r} is not a device; use auto, cpu or cuda") from None
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device={device}: runs are made on cpu and cuda only")
    return str(found)


# --- one pack -------------------------------------------------------------------------------


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
    from offbench.training.engine import n_minibatches
    from offbench.training.held_out import Validation
    from offbench.training.imperative import Imperative
    from offbench.training.loop import diverged

    start = time.perf_counter()
    report = report or (lambda phase, fraction: None)
    pools = {} if pools is None else pools
    cell = pack.cells[0]
    device = resolve_device(settings.device)
    report("loading", 0.0)
    data, spec = cell.task.load(gamma=cell.pipeline["gamma"], defects="ignore")  # told in preflight
    data, held_out = _training_episodes(cell, data)
    method, pipeline = build(cell, data, spec, lazy=settings.data == "host")
    for other in [name for name in pools if name != cell.task.id]:
        pools.pop(other).close()  # environments can be large: 200 MB for one OGBench cube
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
    code = list(dict.fromkeys([*before.code, _code()]))
    keep = lambda: replace(
        before, frames=[*before.frames, *(f.result() for f in looks)], train_s=train_s, code=code
    ).save(_checkpoint_path(pack, settings))
    with (
        ThreadPoolExecutor(1, "evaluate") as beside,
        open_sink(settings.sink, pack, settings.results) as sink,
    ):
        mark = time.perf_counter()
        for point in _training(
            pack, method, pipeline, spec, stops, settings, device, keep, resume
        ):
            if point.metrics:
                before.forget_from(point.update)  # what was kept ahead of the checkpoint
                metrics = point.metrics | (validate(point.state) if validate else {})
                values = {k: v.tolist() for k, v in metrics.items()}
                curves.append({"update": point.update} | values)
                sink.metrics(point.update, curves[-1])
            train_s += time.perf_counter() - mark
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
        broken = diverged(point.state).tolist()
        finite = [i for i, bad in enumerate(broken) if not bad]
        if finite and protocol["episodes"]:
            test = look(
                _select(_to_cpu(point.state), finite), seeds=[seeds[i] for i in finite],
                episodes=protocol["episodes"], stream="test", update=n,
            )  # fmt: skip
            frames.append(test.assign(member=test["member"].map(dict(enumerate(finite)))))
        for frame in frames:
            sink.episodes(frame)
    fitted, final = _fitted(cell, pipeline), _to_cpu(point.carry)
    units = kept.Units(*(pool.units() if cell.task.env else cell.task.units(spec.discrete)))

    def keep_run(i: int, path: Path) -> None:
        own, run = members[i]
        method = build_method(own)
        kept.save(
            path.with_suffix(".safetensors"), final, i, keep=settings.keep, run=run,
            target=own.target, method=method, pipeline=pipeline, spec=spec, units=units, fitted=fitted,
        )  # fmt: skip

    outcomes = _record(
        pack, store, settings, point.backend, device, broken, frames, curves, start, train_s,
        fitted, most_earned(pipeline), [c for c in code if c != _code()], before.began,
        keep_run if settings.keep != "none" else None,
    )  # fmt: skip
    for path in (_checkpoint_path(pack, settings), Progress.path(_checkpoint_path(pack, settings))):
        path.unlink(missing_ok=True)
    report("done", 1.0)
    return [outcome._replace(note=before.note) for outcome in outcomes]


def _training_episodes(
    cell: Cell, data: "ReplayData"
) -> "tuple[ReplayData, ReplayData | None]":
    """The episodes that are trained on, and those held out where the protocol says so."""
    from offbench.training.held_out import split

    if not (share := cell.protocol.get("validation")):
        return data, None
    return split(data, share, name=cell.task.id)


def _begin(
    pack: Pack, store: Store, settings: Settings, method: Any, pipeline: "Pipeline", spec: "Spec", device: str,
) -> "tuple[Carry | None, Progress]":  # fmt: skip
    """Where training begins and what came before: a checkpoint of these runs, else the kept state of
    shorter runs of the same settings, else nothing."""
    from offbench.bench import kept
    from offbench.training import checkpoint
    from offbench.training.engine import initial_carry
    from offbench.training.imperative import Imperative

    path = _checkpoint_path(pack, settings)
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
    pack: Pack, method: Any, pipeline: "Pipeline", spec: "Spec", stops: Sequence[int],
    settings: Settings, device: str, keep: Callable[[], None], resume: "Carry | None",
) -> "Iterator[Point]":  # fmt: skip
    """The points of training, checkpointed on the way.

    `keep` saves what was seen so far beside the checkpoint.
    """
    from offbench.training import checkpoint
    from offbench.training.imperative import NAME, Imperative
    from offbench.training.loop import train

    if settings.data == "device":
        pipeline = pipeline.to(device)
    seeds, values = [run.seed for _, run in pack.members], pack.values
    path = _checkpoint_path(pack, settings)
    saved = time.perf_counter()
    for point in train(
        method, pipeline, spec, seeds=seeds, values=values, n_updates=pack.cells[0].n_updates,
        stop_at=stops, backend=settings.engine, precision=settings.precision, device=device, resume=resume,
    ):  # fmt: skip
        yield point
        resumable = not isinstance(method, Imperative) or point.backend == NAME
        if resumable and time.perf_counter() - saved > 60 * settings.checkpoint_minutes:
            keep()
            checkpoint.save(point.carry, path)
            saved = time.perf_counter()


@dataclass
class Progress:
    """What a pack has shown before its end, kept beside its checkpoint: curves and monitor episodes."""

    curves: list[dict[str, Any]] = field(default_factory=list)
    frames: "list[pd.DataFrame]" = field(default_factory=list)
    train_s: float = 0.0
    code: list[str] = field(default_factory=list)  # the commits that trained it, the first one first
    began: list[str] = field(default_factory=list)  # of each member: where it did, if not at 0
    note: str | None = None  # why it began at 0, if a shorter run was kept

    @staticmethod
    def path(checkpoint: Path) -> Path:
        return checkpoint.with_suffix(".json")

    def save(self, checkpoint: Path) -> None:
        """Written before the checkpoint, so that it is never behind it; what is ahead is dropped."""
        rows = [f.astype(object).where(f.notna(), None).to_dict("list") for f in self.frames]
        body = {f.name: getattr(self, f.name) for f in fields(self)} | {"frames": rows}
        atomic_write(self.path(checkpoint), json.dumps(body).encode())

    @classmethod
    def load(cls, checkpoint: Path) -> "Progress":
        """Nothing where there is no checkpoint or nothing was kept beside it."""
        import pandas as pd

        path = cls.path(checkpoint)
        if not (checkpoint.exists() and path.exists()):
            return cls()
        body = json.loads(path.read_text())
        kinds = {k: v for k, v in EPISODE_COLUMNS.items() if v in ("boolean", "Int64", "Float64")}
        typed = lambda f: f.astype({name: kinds[name] for name in f if name in kinds})
        return cls(**{**body, "frames": [typed(pd.DataFrame(f)) for f in body["frames"]]})

    @classmethod
    def of_records(cls, records: Sequence[Record], n_updates: int, store: Store) -> "Progress":
        """What the records of a shorter run have, one for each member of the stack."""
        own = [record.metrics for record in records]
        whole = all(m is not None and m["update"].equals(own[0]["update"]) for m in own)
        names = list(own[0]) if whole else []
        curves = [
            {"update": int(own[0]["update"][i])}
            | {k: [float(m[k][i]) for m in own] for k in names if k != "update"}
            for i in range(len(own[0]) if whole else 0)
        ]
        frames = []
        for i, record in enumerate(records):
            seen = store.episodes(run_id=record.spec.run_id, stream="monitor")
            if len(seen):
                frames.append(seen.drop(columns=["run_id", "entry", "suite", "method"]).assign(member=i))
        began = "went on from the kept state of run {} ({} updates)"
        return cls(
            curves,
            frames,
            max(record.provenance.train_s for record in records),
            list(dict.fromkeys(_spelt_commit(r.provenance.commit, r.provenance.dirty) for r in records)),
            began=[began.format(record.spec.run_id, n_updates) for record in records],
        )

    def forget_from(self, update: int) -> None:
        self.curves[:] = [c for c in self.curves if c["update"] < update]
        self.frames[:] = [f for f in self.frames if f["update"].iloc[0] < update]


def _code() -> str:
    return _spelt_commit(*provenance.commit())


def _spelt_commit(commit: str, dirty: bool) -> str:
    return f"{commit[:7]}{' with changes' if dirty else ''}"


def _fitted(cell: Cell, pipeline: "Pipeline") -> dict[str, Any]:
    """The view's settings that were left open and filled in from the data."""
    open_ = [k for k, v in cell.pipeline["view"].items() if v is None]
    return {f"view.{k}": getattr(pipeline.view, k) for k in open_}


def _checkpoint_path(pack: Pack, settings: Settings) -> Path:
    return Path(settings.results) / "checkpoints" / f"{pack.name}.safetensors"


def _to_cpu(state: Any) -> Any:
    from offbench.training.engine import to_device

    return to_device(state, "cpu")


def _select(state: Any, places: list[int]) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda x: x[places], state)


def _record(
    pack: Pack, store: Store, settings: Settings, backend: str, device: str, broken: list[bool],
    frames: "list[pd.DataFrame]", curves: list[dict[str, Any]], start: float, train_s: float,
    fitted: dict[str, Any], most: float, earlier: list[str], began: list[str],
    keep_run: Callable[[int, Path], None] | None,
) -> list[Outcome]:  # fmt: skip
    """`earlier` are other commits that trained a part of it, before a checkpoint; `began` says of each
    member where it did, if not at 0; `keep_run(place, path of the record)` keeps what was trained."""
    import pandas as pd

    wall_s = time.perf_counter() - start
    scores: dict[str, dict[int, float]] = {cell.entry: {} for cell in pack.cells}
    failed: dict[str, dict[int, str]] = {cell.entry: {} for cell in pack.cells}
    remarks: dict[str, dict[int, str]] = {cell.entry: {} for cell in pack.cells}
    errors: dict[str, dict[int, float]] = {cell.entry: {} for cell in pack.cells}
    for i, (cell, run) in enumerate(pack.members):
        made = _provenance(
            cell, settings, device, backend, len(pack.members), wall_s, train_s, fitted
        )
        if broken[i]:
            failed[cell.entry][run.seed] = (
                f"a parameter is not finite after {cell.n_updates} updates"
            )
            store.fail(run, failed[cell.entry][run.seed], made, status="diverged")
            continue
        rows = [f[f["member"] == i].drop(columns="member") for f in frames]
        names = [name for name in dict.fromkeys(n for c in curves for n in c) if name != "update"]
        curve = {"update": [c["update"] for c in curves]} | {
            m: [c[m][i] if m in c else float("nan") for c in curves] for m in names
        }
        said = [exploded({m: curve[m][-1] for m in names}, most)]
        said += began[i : i + 1]
        said.append(f"trained in part by commit {', '.join(earlier)}" if earlier else None)
        if remark := "; ".join(filter(None, said)) or None:
            remarks[cell.entry][run.seed] = remark
        if keep_run is not None:
            keep_run(i, store.path(run, cell.entry))
        episodes = pd.concat(rows, ignore_index=True) if rows else no_episodes()
        store.append(run, episodes, made, curve, remark=remark)
        if cell.protocol["episodes"]:
            scores[cell.entry][run.seed] = float(rows[-1]["score"].mean())
        for name in VALIDATION_ERRORS & curve.keys():
            errors[cell.entry][run.seed] = curve[name][-1]
    return [
        Outcome(cell, *(x[cell.entry] for x in (scores, failed, remarks)), wall_s, backend, errors[cell.entry])
        for cell in pack.cells
    ]


def most_earned(pipeline: "Pipeline") -> float:
    """No policy's discounted return can be larger than this, by the rewards as a method sees them."""
    gamma = pipeline.view.gamma
    return float(pipeline.data.reward.abs().max()) / (1 - gamma) if gamma < 1 else float("inf")


def exploded(metrics: Mapping[str, float], most: float) -> str | None:
    """Says so where the mean of a method's values (`q`, else `v`) lies far beyond what can be earned.

    The policy is finite and its score is its score: to leave it out would be to choose the runs that
    count by their outcome. Where all rewards are 0 there is no scale to judge by.
    """
    name = next((n for n in ("q", "v") if n in metrics), None)
    if name is None or most == 0 or abs(metrics[name]) <= TOO_FAR * most:
        return None
    return (
        f"values diverged: mean {name} {metrics[name]:.1e}, while the rewards allow {most:.1e} "
        "(the largest / (1 - gamma))"
    )


def _provenance(
    cell: Cell,
    settings: Settings,
    device: str,
    backend: str,
    size: int,
    wall_s: float,
    train_s: float,
    fitted: dict[str, Any],
) -> Provenance:
    commit, dirty = provenance.commit()
    return Provenance(
        entry=cell.entry,
        commit=commit,
        dirty=dirty,
        versions=provenance.versions(),
        device=provenance.device_name(device),
        backend=backend,
        precision=settings.precision,
        pack=size,
        wall_s=round(wall_s, 3),
        train_s=round(train_s, 3),
        tuning=cell.tuning,
        created=provenance.now(),
        overrides={k: v for k, v in cell.overrides.items() if v is not None},
        host=provenance.host(),
        fitted=fitted,
        sources=cell.recorded_sources,
    )


# --- many packs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """What happened to one pack: a phase and its fraction, its outcomes, or an error."""

    index: int
    phase: str
    fraction: float = 0.0
    outcomes: tuple[Outcome, ...] = ()
    error: str | None = None  # one line for a user's mistake, a traceback for a defect


def n_jobs(settings: Settings, packs: int) -> int:
    if settings.jobs != "auto":
        return min(int(settings.jobs), max(packs, 1))
    if resolve_device(settings.device).startswith("cuda"):
        return 1
    return max(1, min(_cores(), packs))


def _cores() -> int:
    """Cores this process may use; all of the machine's where the system knows no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_packs(packs: Sequence[Pack], store: Store, settings: Settings) -> Iterator[Event]:
    """Runs the packs on `settings.jobs` processes; yields what happens as it happens.

    An error in one pack is recorded as failed runs with their reason and reported as an event; the
    others go on. Environments and the interpreter are kept between the packs of a process.
    """
    jobs = n_jobs(settings, len(packs))
    if jobs == 1:
        yield from _run_here(packs, store, settings)
    else:
        yield from _run_processes(packs, store, settings, jobs)


def _run_here(packs: Sequence[Pack], store: Store, settings: Settings) -> Iterator[Event]:
    """In this process, in a thread beside the caller, so that progress can be shown."""
    import queue

    events: queue.Queue[Event | None] = queue.Queue()
    pools: dict[str, EnvPool] = {}

    broken: list[BaseException] = []

    def work() -> None:
        try:
            for index, pack in enumerate(packs):
                events.put(_guarded(index, pack, store, settings, pools, events.put))
        except BaseException as error:  # the caller waits, and is the one to be told
            broken.append(error)
        events.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (event := events.get()) is not None:
        yield event
    if broken:
        raise broken[0]


def _guarded(
    index: int,
    pack: Pack,
    store: Store,
    settings: Settings,
    pools: "dict[str, EnvPool]",
    send: Callable[[Event], None],
) -> Event:
    """One pack; what goes wrong becomes a record and an event."""
    start = time.perf_counter()
    report = lambda phase, f: send(Event(index, phase, f))
    try:
        outcomes = run_pack(pack, store, settings, pools=pools, report=report)
        return Event(index, "done", 1.0, outcomes=tuple(outcomes))
    except UserError as error:
        reason, text = str(error), str(error)
    except Exception as error:
        reason, text = f"{type(error).__name__}: {error}".split("\n")[0], traceback.format_exc()
    size, wall_s = len(pack.members), time.perf_counter() - start
    for cell, run in pack.members:
        if not store.has(run.run_id):
            made = _provenance(cell, settings, "cpu", settings.engine, size, wall_s, 0.0, {})
            store.fail(run, reason, made)
    return Event(index, "failed", 1.0, error=text)


_worker: dict[
    str, Any
] = {}  # a worker process's environments and event queue; set once, in the worker


def _start_worker(queue: Any, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)
    _worker.update(queue=queue, pools={})


def _work(index: int, pack: Pack, root: Path, settings: Settings) -> Event:
    return _guarded(index, pack, Store(root), settings, _worker["pools"], _worker["queue"].put)


def _run_processes(
    packs: Sequence[Pack], store: Store, settings: Settings, jobs: int
) -> Iterator[Event]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        pool = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_start_worker, initargs=(queue, 1)
        )
        try:
            futures: set[Future[Event]] = {
                pool.submit(_work, i, pack, store.root, settings) for i, pack in enumerate(packs)
            }
            while futures:
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    yield queue.get()
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in (pool._processes or {}).values():
                process.terminate()
