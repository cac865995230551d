"""Runs one stack of runs (`Pack`): data, training, evaluation, records.

Whatever interrupts a benchmark costs the packs in flight, which go on from their checkpoints.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offbench.bench.episodes import Episodes
from offbench.bench.logged import Logged
from offbench.bench.loggers import Loggers, open_loggers
from offbench.bench.monitors import Monitors
from offbench.bench.preflight import build, build_method, resolve_device, training_episodes
from offbench.bench.progress import Progress, checkpoint_path, code_version, remove
from offbench.bench.provenance import device_name
from offbench.bench.recording import Outcome, Trained, facts_of, largest_return, patiently, record
from offbench.bench.settings import Settings, monitor_plan
from offbench.bench.stacks import Pack
from offbench.bench.synthesis import refresh_of
from offbench.bench.watch import Watch
from offbench.errors import Interrupted, UserError
from offbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from offbench.rollout import EnvPool
    from offbench.training.engine import Ran
    from offbench.training.loop import Point
    from offbench.training.step import Carry

# of a stack: all of it, its training, the evaluation of a trained one
Work = Literal["all", "training", "evaluation"]

# how often metrics are read and progress is reported
CURVE_POINTS = 20

# seconds of training that are saved before the last evaluation
SAVED_BEFORE_TEST_S = 10


def run_pack(
    pack: Pack,
    store: Store,
    settings: Settings,
    *,
    pools: "dict[str, EnvPool] | None" = None,
    watch: Watch | None = None,
    work: Work = "all",
) -> list[Outcome] | None:
    """Trains the stack, evaluates its last update, and records the rows of every run in it.

    With `work="training"`, None: the trained state is in its checkpoint, from which another process goes on.
    What cannot be saved is evaluated here. Raises Interrupted where `watch.stop()` is true; the training
    state is then in its checkpoint.
    """
    watch = watch or Watch(pack)
    watch.report("loading", 0.0)
    return PackRun(pack, store, settings, {} if pools is None else pools, watch).run(work)


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
        from offbench.training.imperative import Imperative

        self.start = time.perf_counter()
        self.pack, self.store, self.settings, self.watch = pack, store, settings, watch
        # cells of a stack differ in numeric hyper-parameters only
        self.cell = cell = pack.cells[0]
        self.seeds = pack.seeds
        self.device = resolve_device(settings.device)
        # the name of the one that trained the stack
        self.made_on = device_name(self.device)
        self.checkpoint = checkpoint_path(pack, settings)
        # preflight has reported defects
        data, self.spec = load_data(cell.task, gamma=cell.pipeline["gamma"], defects="ignore")
        self.recorded = data
        self.train_data, held_out = training_episodes(cell, data)
        lazy = settings.data == "host"
        self.method, self.pipeline = build(cell, self.train_data, self.spec, lazy=lazy)
        # a user's class, which runs as it is written
        self.written = isinstance(self.method, Imperative)
        for other in [name for name in pools if name != cell.task.id]:
            # environments can be large: 200 MB for one OGBench cube
            pools.pop(other).close()
        self.pool = pools.setdefault(cell.task.id, EnvPool(cell.task))
        # monitor evaluations are to be broken off; the pool outlives this stack, and must not hold its states
        self.leaving = leaving = threading.Event()
        self.pool.interrupted = lambda: leaving.is_set() or watch.stop()
        if cell.task.env:
            self.pool.check(self.spec)
        policy = make_policy(self.method, self.pipeline)
        self.episodes = Episodes(policy, self.pool, cell.protocol)
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

    def run(self, work: Work) -> list[Outcome] | None:
        """Trains, evaluates, records; deletes the checkpoint at the end. None where it is left to be evaluated."""
        from offbench.training.loop import diverged
        from offbench.training.step import to_device

        carry, self.progress = self.resume()
        self.progress.told = self.watch.remarks = [*self.progress.told, *self.watch.remarks]
        if self.progress.trained:
            *_, self.made_on = self.progress.trained
            if work == "training":
                return None
        elif work == "evaluation":
            gone = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            raise UserError(f"the trained state is no longer in {self.checkpoint}") from gone
        self.saved = time.perf_counter()
        self.progress.code = list(dict.fromkeys([*self.progress.code, code_version()]))
        self.progress.runs = self.pack.run_ids
        with (
            open_loggers(self.settings, self._logged(), self.progress.update) as logger,
            self._monitors(logger) as self.monitors,
        ):
            try:
                point = self.trained(carry, logger)
                if work == "training" and self.leave(point):
                    return None
                if time.perf_counter() - self.saved > SAVED_BEFORE_TEST_S:
                    self.save(point)
                self.watch.report("evaluating", 0.9)
                final = to_device(point.carry, "cpu")
                broken = diverged(point.state).tolist()
                # the thread has the environments
                self.monitors.finish()
                tested = self.episodes.test(final.state, self.seeds, self.cell.n_updates, broken)
                if self.cell.protocol.get("by"):
                    self._estimate(final.state, broken)
            except Interrupted:
                if self.last:
                    self.save(self.last)
                raise
            for frame in tested:
                logger.episodes(frame)
            # before the logger is waited for
            frames = [*self.progress.frames, *tested]
            write = lambda: self.record(final, point.backend, broken, frames)
            outcomes = patiently(write, self.watch.stop)
        remove(self.checkpoint)
        said = [self.progress.note, self.progress.unsaved, *self.watch.remarks, *logger.warnings]
        notes = "; ".join(filter(None, said))
        return [outcome._replace(note=notes or None) for outcome in outcomes]

    def trained(self, carry: "Carry | None", logger: Loggers) -> "Point":
        """The last point of training, which goes on from `carry`; monitor episodes are played beside it."""
        from offbench.training.engine import Ran
        from offbench.training.loop import Point
        from offbench.training.step import n_minibatches

        n = self.cell.n_updates
        if carry is not None and self.progress.trained:
            name, notes, _ = self.progress.trained
            self.watch.trained(n)
            for update, state in self.progress.load_beside(self.checkpoint, self._like):
                self.monitors.begin(update, state)
            self.last = Point(n, carry, {}, Ran(name, tuple(notes)))
            return self.last
        if carry is not None and self.checkpoint.exists():
            self.monitors.again(int(carry.step) * n_minibatches(self.method), carry)
        for point in self.train(carry, logger):
            # the last update is tested
            if point.update < n and point.metrics:
                self.monitors.begin(point.update, point.carry)
        return point

    def leave(self, point: "Point") -> bool:
        """Saves the trained state for another process to evaluate; whether it could be.

        Monitor episodes that have not been played to their end are left to that process, too.
        """
        # a user's class draws from the generators of the process that trained it
        if self.written or not self.cell.protocol["episodes"]:
            return False
        self.leaving.set()
        self.monitors.break_off()
        self.leaving.clear()
        if self.save(point):
            return True
        self.monitors.begin_again()
        return False

    def save(self, point: "Point") -> bool:
        """Writes a checkpoint that resumes to the same rows; whether it could be written.

        In training it is the state of the first monitor evaluation that has not ended, else of `point`: what was
        not played to its end is played again. After it, it is the trained state, and those of such evaluations
        are written beside it.
        """
        # a note on a PyTorch class says that its objects cannot be saved
        if not self.savable or (self.written and point.backend.notes):
            return False
        begun, own, carry = self.monitors.collect(), self.progress, point.carry
        progress, good = replace(own, frames=[*own.frames], unsaved=None), True
        if point.update == self.cell.n_updates and not self.written:
            progress.trained = (point.backend.name, [*point.backend.notes], self.made_on)
            progress.wall_s += time.perf_counter() - self.start
            good = progress.save_beside({m.update: m.carry for m in begun}, self.checkpoint)
        elif begun:
            update, carry = begun[0].update, begun[0].carry
            progress.curves = [c for c in own.curves if c["update"] <= update]
        if good:
            self.savable = progress.save(carry, self.checkpoint)
        own.unsaved = progress.unsaved
        self.saved = time.perf_counter()
        return own.unsaved is None

    def _logged(self) -> list[Logged]:
        """The runs as loggers show them."""
        return [
            Logged(cell.entry, run, facts_of(cell, self.settings, self.made_on))
            for cell, run in self.pack.members
        ]

    def resume(self) -> "tuple[Carry | None, Progress]":
        """Training state and progress to resume from: a checkpoint of these runs, else the kept state
        of shorter runs with the same settings, else (None, no progress)."""
        from offbench.bench import kept

        if self.checkpoint.exists():
            return Progress.load(self.checkpoint, self._like())
        members = [(cell.entry, run) for cell, run in self.pack.members]
        if self.written or not any(self.store.kept(run) for _, run in members):
            return None, Progress()
        found, why = kept.find_shorter(self.store, members, self._like(), self.method)
        if found is None:
            return None, Progress(note=why)
        return found.carry, Progress.of_records(found.records, found.n_updates, self.store)

    def _like(self) -> "Carry":
        """A training state of this stack before its first update, on the device."""
        from offbench.training.imperative import Imperative
        from offbench.training.step import initial_carry

        method, values = self.method, self.pack.values
        seen = self.pipeline.spec(self.spec)
        if isinstance(method, Imperative):
            return method.like(self.seeds, seen, self.device, values)
        return initial_carry(method, seen, self.seeds, self.device, values=values)

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

        n, settings, pipeline = self.cell.n_updates, self.settings, self.pipeline
        pipeline = pipeline.to(self.device) if settings.data == "device" else pipeline
        given = self.cell, self.method, pipeline, self.train_data, self.device, self.watch
        made = refresh_of(*given, minutes=settings.checkpoint_minutes)
        stops = {n * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)}
        return train(
            self.method,
            pipeline,
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
            refresh=made,
        )

    def _monitor_at(self) -> dict[int, int]:
        """Update, a whole step of the method -> the monitor episodes that are played there."""
        from offbench.training.step import n_minibatches

        n, k, protocol = self.cell.n_updates, n_minibatches(self.method), self.cell.protocol
        shares = monitor_plan(protocol["monitor_at"], protocol["monitor_episodes"])
        return {max(k, round(f * n) // k * k): episodes for f, episodes in shares.items()}

    def _monitors(self, logger: Loggers) -> Monitors:
        def play(state: Any, update: int, episodes: int) -> "pd.DataFrame":
            return self.episodes.play(state, self.seeds, update, episodes, "monitor")

        at, log = self._monitor_at(), logger.episodes
        return Monitors(at, play, self.progress, log, apart=self.written)

    def _estimate(self, state: Any, broken: list[bool]) -> None:
        """Adds to the last point of the curves what the policies are estimated to be worth."""
        from offbench.bench.estimate import estimate_stack

        self.watch.report("estimating", 0.95)
        found = estimate_stack(
            (self.method, self.pipeline, self.spec),
            state,
            self.seeds,
            broken,
            self.recorded,
            self.cell.protocol,
            device=self.device,
            pause=lambda _: self.watch.stop(),
        )
        if found is None:
            raise Interrupted
        self.progress.curves[-1] = self.progress.curves[-1] | found

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
            device=self.made_on,
            broken=broken,
            frames=frames,
            curves=progress.curves,
            wall_s=progress.wall_s + time.perf_counter() - self.start,
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
