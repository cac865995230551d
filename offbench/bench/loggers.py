"""Optional loggers beside training: wandb and TensorBoard. Results are stored in results/, never here.

Each logger has a thread and a queue of its own: training hands over numbers and goes on. When a stack of runs
is recorded, its loggers have CLOSE_S to send what is left. One that raises or hangs is given up with one
warning, one that falls behind loses values and says so; training and its results do not depend on it.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.bench.logged import Logged, Sink
from offbench.bench.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

# calls that wait for a logger; those beyond are dropped
_QUEUE_SIZE = 10_000
# seconds that a logger has to send what is left, when training has ended and when it was interrupted
CLOSE_S, INTERRUPTED_S = 120.0, 5.0
# loggers that could not be started, or did not end: they are not tried again in this process
_given_up: set[str] = set()


class Background:
    """Calls a sink in a background thread; training neither waits for it nor fails with it."""

    def __init__(self, name: str, start: Callable[[], Sink]):
        self.name, self._start = name, start
        self.warning: str | None = None
        self._calls: queue.Queue[tuple[str, tuple] | None] = queue.Queue(_QUEUE_SIZE)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def send(self, method: str, *arguments: Any) -> None:
        """Has a method of the sink called, some time."""
        if self.warning is not None:
            return
        try:
            self._calls.put_nowait((method, arguments))
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float) -> None:
        """Waits for what is left to be sent, at most some seconds."""
        try:
            self._calls.put(None, timeout=seconds)
        except queue.Full:
            pass
        self._thread.join(seconds)
        if self._thread.is_alive():
            _given_up.add(self.name)
            self._give_up(f"does not answer for {seconds:g} s")
        elif self._dropped and self.warning is None:
            self.warning = (
                f"logger={self.name}: {self._dropped} values were dropped, it was too slow"
            )

    def _work(self) -> None:
        sink = None
        # wandb ends its thread with exceptions of every kind
        try:
            sink = self._start()
            while (call := self._calls.get()) is not None:
                getattr(sink, call[0])(*call[1])
            sink.close()
        except BaseException as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            if sink is None:
                _given_up.add(self.name)
            self._give_up(words[:200])

    def _give_up(self, why: str) -> None:
        if self.warning is None:
            self.warning = (
                f"logger={self.name} was given up ({why}); training went on, and its results are whole:"
                f" `offbench sync` sends them later"
            )


class Loggers:
    """The loggers of a stack of runs."""

    def __init__(self, sinks: Sequence[Background]):
        self._sinks = sinks

    def metrics(self, update: int, values: Mapping[str, Sequence[float]]) -> None:
        """Training metrics: one number per run of the stack for each."""
        for i in range(len(next(iter(values.values()), ())) if self._sinks else 0):
            self._send("metrics", i, update, {k: x[i] for k, x in values.items()})

    def episodes(self, frame: "pd.DataFrame") -> None:
        """The episodes of one evaluation, with the `member` of the stack."""
        if self._sinks:
            for member, rows in frame.groupby("member"):
                self._send("evaluation", member, rows.drop(columns="member"))

    @property
    def warnings(self) -> list[str]:
        return [sink.warning for sink in self._sinks if sink.warning is not None]

    def _send(self, method: str, *arguments: Any) -> None:
        for sink in self._sinks:
            sink.send(method, *arguments)

    def close(self, seconds: float) -> None:
        for sink in self._sinks:
            sink.close(seconds)


@contextmanager
def open_loggers(
    settings: Settings, runs: Sequence[Logged], resumed_at: int = 0
) -> Iterator[Loggers]:
    """The loggers of the setting `logger=`, closed when the block ends; they write below `results`.

    Args:
        resumed_at: updates made before, whose numbers have been logged.
    """
    names = [name for name in settings.loggers if name not in _given_up]
    start = partial(_start, settings=settings, runs=runs, resumed_at=resumed_at)
    loggers = Loggers([Background(name, partial(start, name)) for name in names])
    seconds = INTERRUPTED_S
    try:
        yield loggers
        seconds = CLOSE_S
    finally:
        loggers.close(seconds)


def _start(name: str, settings: Settings, runs: Sequence[Logged], resumed_at: int) -> Sink:
    folder = Path(settings.results)
    # imports take seconds
    if name == "wandb":
        from offbench.bench.wandb_runs import Wandb

        return Wandb(runs, folder, settings.wandb)
    from offbench.bench.event_files import EventFiles

    return EventFiles(runs, folder / "tensorboard", resumed_at=resumed_at)
