"""Runs one stack of runs (`Pack`): data, training, evaluation, records.

Whatever interrupts a benchmark costs the packs in flight, which go on from their checkpoints.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench.failures import failure_of
from offbench.bench.logged import Logged
from offbench.bench.loggers import Loggers, open_loggers
from offbench.bench.monitors import Monitors
from offbench.bench.preflight import build, build_method, resolve_device, training_episodes
from offbench.bench.progress import Progress, checkpoint_path, code_version
from offbench.bench.recording import Outcome, Trained, facts_of, largest_return, record
from offbench.bench.settings import Settings, monitor_plan
from offbench.bench.stacks import Pack
from offbench.bench.watch import Watch
from offbench.errors import Interrupted, UserError
from offbench.results.schema import Stream
from offbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from offbench.rollout import EnvPool
    from offbench.training.engine import Ran
    from offbench.training.loop import Point
    from offbench.training.step import Carry

# how often metrics are read and progress is reported
CURVE_POINTS = 20

# seconds of training that are saved before the last evaluation
SAVED_BEFORE_TEST_S = 10
# seconds until records are written again where the disk was full, each time
FULL_DISK_S = (5.0, 20.0)


def run_pack(
    pack: Pack,
    store: Store,
    settings: Settings,
    *,
    pools: "dict[str, EnvPool] | None" = None,
    watch: Watch | None = None,
) -> list[Outcome]:
    """Trains the stack, evaluates its last update, and records the rows of every run in it.

    Raises Interrupted where `watch.stop()` is true; the training state is then in its checkpoint.
    """
    watch = watch or Watch(pack)
    watch.report("loading", 0.0)
    return PackRun(pack, store, settings, {} if pools is None else pools, watch).run()


class PackRun:
    """A stack being trained and evaluated.

    Environments step on the CPU with a copy of the states, so they can step while training goes on
    and see the same policy whatever trained it.
    """

    def __init__(
        self,
        pack: Pack,
        store: Store,
        settings: Settings,
        pools: "dict[str, EnvPool]",
        watch: Watch,
    ):
        from offbench.rollout import EnvPool, make_policy
        from offbench.tasks.loading import load_data
        from offbench.training.held_out import Validation

        self.start = time.perf_counter()
        self.pack, self.store, self.settings, self.watch = pack, store, settings, watch
        # cells of a stack differ in numeric hyper-parameters only
        self.cell = cell = pack.cells[0]
        self.seeds = [run.seed for _, run in pack.members]
        self.device = resolve_device(settings.device)
        self.checkpoint = checkpoint_path(pack, settings)
        # preflight has reported defects
        data, self.spec = load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
        data, held_out = training_episodes(cell, data)
        self.method, self.pipeline = build(cell, data, self.spec, lazy=settings.data == "host")
        for other in [name for name in pools if name != cell.task.id]:
            # environments can be large: 200 MB for one OGBench cube
            pools.pop(other).close()
        self.pool = pools.setdefault(cell.task.id, EnvPool(cell.task))
        self.pool.interrupted = watch.stop
        if cell.task.env:
            self.pool.check(self.spec)
        self.policy = make_policy(self.method, self.pipeline)
        self.validate: Validation | None = None
        if held_out is not None:
            self.validate = Validation(
                self.method,
                self.pipeline,
                held_out,
                discrete=self.spec.discrete,
                device=self.device,
            )
        self.last: Point | None = None
        # false once the state holds what no checkpoint can
        self.savable = True

    def run(self) -> list[Outcome]:
        """Trains, evaluates, records; deletes the checkpoint at the end."""
        from offbench.training.loop import diverged
        from offbench.training.step import n_minibatches, to_device

        carry, self.progress = self.resume()
        self.saved = time.perf_counter()
        code = [*self.progress.code, code_version()]
        self.progress.code = list(dict.fromkeys(code))
        self.progress.runs = [run.run_id for _, run in self.pack.members]
        with (
            open_loggers(self.settings, self._logged(), self._resumed_at()) as logger,
            self._monitors(logger) as self.monitors,
        ):
            if carry is not None and self.checkpoint.exists():
                self.monitors.again(int(carry.step) * n_minibatches(self.method), carry)
            try:
                for point in self.train(carry, logger):
                    # the last update is tested
                    if point.update < self.cell.n_updates and point.metrics:
                        self.monitors.begin(point.update, point.carry)
                if time.perf_counter() - self.saved > SAVED_BEFORE_TEST_S:
                    self.save(point)
                self.watch.report("evaluating", 0.9)
                final = to_device(point.carry, "cpu")
                broken = diverged(point.state).tolist()
                # the thread has the environments
                self.monitors.finish()
                tested = self._tested(final.state, broken)
            except Interrupted:
                if self.last:
                    self.save(self.last)
                raise
            for frame in tested:
                logger.episodes(frame)
            # before the logger is waited for
            frames = [*self.progress.frames, *tested]
            outcomes = self._patiently(lambda: self.record(final, point.backend, broken, frames))
        # temporary files of killed processes, and the side file of earlier versions, too
        left = self.checkpoint.parent.glob(f".{self.checkpoint.stem}.*.tmp*")
        for path in (self.checkpoint, self.checkpoint.with_suffix(".json"), *left):
            path.unlink(missing_ok=True)
        said = [self.progress.note, self.progress.unsaved, *logger.warnings]
        notes = "; ".join(filter(None, said))
        return [outcome._replace(note=notes or None) for outcome in outcomes]

    def _patiently(self, record: Callable[[], list[Outcome]]) -> list[Outcome]:
        """Writes the records, again where the disk was full. Raises UserError where it stays full."""
        for seconds in (*FULL_DISK_S, 0.0):
            try:
                return record()
            except (UserError, OSError) as error:
                kind, why = failure_of(error)
                if kind != "infrastructure":
                    raise
            if self.watch.stop():
                break
            time.sleep(seconds)
        # training once more would find no room for its records, either
        raise UserError(why)

    def save(self, point: "Point") -> None:
        """Writes a checkpoint that resumes to the same rows.

        It is the state of the first monitor evaluation that has not ended, else of `point`: what was not
        played to its end is played again.
        """
        if not (self.savable and self._resumable(point)):
            return
        begun = self.monitors.collect()
        update, carry = (begun.update, begun.carry) if begun else (point.update, point.carry)
        curves = [c for c in self.progress.curves if c["update"] <= update]
        progress = replace(self.progress, frames=[*self.progress.frames], curves=curves)
        self.savable = progress.save(carry, self.checkpoint)
        self.progress.unsaved = progress.unsaved
        self.saved = time.perf_counter()

    def _resumable(self, point: "Point") -> bool:
        """Whether the state can be saved: a note on a PyTorch class says that its objects cannot."""
        from offbench.training.imperative import Imperative

        return not (isinstance(self.method, Imperative) and point.backend.notes)

    def _logged(self) -> list[Logged]:
        """The runs as loggers show them."""
        return [
            Logged(cell.entry, run, facts_of(cell, self.settings, self.device))
            for cell, run in self.pack.members
        ]

    def _resumed_at(self) -> int:
        curves = self.progress.curves
        return curves[-1]["update"] if curves else 0

    def resume(self) -> "tuple[Carry | None, Progress]":
        """Training state and progress to resume from: a checkpoint of these runs, else the kept state
        of shorter runs with the same settings, else (None, no progress)."""
        from offbench.bench import kept
        from offbench.training.imperative import Imperative
        from offbench.training.step import initial_carry

        method, pack = self.method, self.pack
        written = isinstance(method, Imperative)

        def like() -> "Carry":
            seen = self.pipeline.spec(self.spec)
            if written:
                return method.like(self.seeds, seen, self.device, pack.values)
            return initial_carry(method, seen, self.seeds, self.device, values=pack.values)

        if self.checkpoint.exists():
            return Progress.load(self.checkpoint, like())
        members = [(cell.entry, run) for cell, run in pack.members]
        if written or not any(self.store.kept(run) for _, run in members):
            return None, Progress()
        found, why = kept.find_shorter(self.store, members, like(), method)
        if found is None:
            return None, Progress(note=why)
        return found.carry, Progress.of_records(found.records, found.n_updates, self.store)

    def train(self, carry: "Carry | None", logger: Loggers) -> "Iterator[Point]":
        """The points of training; appends metrics to the curves, logs them, and saves checkpoints."""
        n, progress = self.cell.n_updates, self.progress
        mark = time.perf_counter()
        for point in self._points(carry):
            self.last = point
            # waits for the device
            values = {k: v.tolist() for k, v in point.metrics.items()}
            progress.train_s += time.perf_counter() - mark
            if values:
                if self.validate:
                    values |= {k: v.tolist() for k, v in self.validate(point.state).items()}
                progress.curves.append({"update": point.update} | values)
                logger.metrics(point.update, values)
            self.watch.report("training", 0.9 * point.update / n)
            yield point
            if self.watch.stop() and point.update < n:
                raise Interrupted
            if self._due():
                self.save(point)
            mark = time.perf_counter()

    def _due(self) -> bool:
        return time.perf_counter() - self.saved > 60 * self.settings.checkpoint_minutes

    def _pause(self, update: int) -> bool:
        """Whether training pauses at an update, to save a checkpoint or to stop."""
        self.watch.trained(update)
        return self.watch.stop() or (self.settings.checkpoint_minutes > 0 and self._due())

    def _points(self, carry: "Carry | None") -> "Iterator[Point]":
        from offbench.training.loop import train

        n, settings = self.cell.n_updates, self.settings
        stops = {n * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)}
        return train(
            self.method,
            self.pipeline.to(self.device) if settings.data == "device" else self.pipeline,
            self.spec,
            seeds=self.seeds,
            values=self.pack.values,
            n_updates=n,
            stop_at=sorted(stops | self._monitor_at().keys()),
            backend=settings.engine,
            precision=settings.precision,
            device=self.device,
            resume=carry,
            pause=self._pause,
        )

    def _monitor_at(self) -> dict[int, int]:
        """Update, a whole step of the method -> the monitor episodes that are played there."""
        from offbench.training.step import n_minibatches

        n, k, protocol = self.cell.n_updates, n_minibatches(self.method), self.cell.protocol
        shares = monitor_plan(protocol["monitor_at"], protocol["monitor_episodes"])
        return {max(k, round(f * n) // k * k): episodes for f, episodes in shares.items()}

    def _monitors(self, logger: Loggers) -> Monitors:
        from offbench.training.imperative import Imperative

        def play(state: Any, update: int, episodes: int) -> "pd.DataFrame":
            return self._play(state, self.seeds, update, episodes, "monitor")

        apart = isinstance(self.method, Imperative)
        return Monitors(self._monitor_at(), play, self.progress, logger.episodes, apart=apart)

    def _play(
        self, state: Any, seeds: list[int], update: int, episodes: int, stream: Stream
    ) -> "pd.DataFrame":
        from offbench.rollout import evaluate

        return evaluate(
            self.policy,
            state,
            self.pool,
            seeds=seeds,
            episodes=episodes,
            stream=stream,
            update=update,
            n_envs=self.cell.protocol["envs"],
        )

    def _tested(self, state: Any, broken: list[bool]) -> "list[pd.DataFrame]":
        """The test episodes of the members whose parameters are finite."""
        finite = [i for i, bad in enumerate(broken) if not bad]
        episodes = self.cell.protocol["episodes"]
        if not (finite and episodes):
            return []
        seeds = [self.seeds[i] for i in finite]
        test = self._play(_select(state, finite), seeds, self.cell.n_updates, episodes, "test")
        return [test.assign(member=test["member"].map(dict(enumerate(finite))))]

    def record(
        self, final: "Carry", backend: "Ran", broken: list[bool], frames: "list[pd.DataFrame]"
    ) -> list[Outcome]:
        """Records every run; keeps its policy or training state as set by `keep`."""
        from offbench.bench import kept
        from offbench.tasks.loading import action_units

        cell, pipeline, settings, progress = self.cell, self.pipeline, self.settings, self.progress
        # view settings that were null and set from the data
        open_ = [k for k, v in cell.pipeline["view"].items() if v is None]
        fitted = {f"view.{k}": getattr(pipeline.view, k) for k in open_}
        units = self.pool.units() if cell.task.env else action_units(cell.task, self.spec.discrete)

        def keep_run(i: int, path: Path) -> None:
            own, run = self.pack.members[i]
            program = kept.Program(
                own.target, build_method(own), pipeline, self.spec, kept.Units(*units), fitted
            )
            where = path.with_suffix(".safetensors")
            kept.save(where, final, i, keep=settings.keep, run=run, program=program)

        trained = Trained(
            backend=backend,
            device=self.device,
            broken=broken,
            frames=frames,
            curves=progress.curves,
            wall_s=time.perf_counter() - self.start,
            train_s=progress.train_s,
            fitted=fitted,
            largest_return=largest_return(pipeline),
            other_commits=[c for c in progress.code if c != code_version()],
            resumed_from=progress.resumed_from,
            unwatched=progress.unwatched,
            remarks=progress.remarks,
        )
        keep = keep_run if settings.keep != "none" else None
        return record(self.pack, self.store, settings, trained, keep)


def _select(state: Any, members: list[int]) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda x: x[members], state)
