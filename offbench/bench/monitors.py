"""Monitor evaluations of a stack: episodes for learning curves, played in a thread while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.bench.progress import Progress
from offbench.errors import Interrupted, in_one_line

if TYPE_CHECKING:
    import pandas as pd

    from offbench.training.step import Carry

# (state, update, episodes) -> rows of episodes
Play = Callable[[Any, int, int], "pd.DataFrame"]


class Monitored(NamedTuple):
    """An evaluation that is being played."""

    update: int
    # the training state that is evaluated, on the CPU
    carry: "Carry"
    # None where they could not be played
    episodes: "Future[pd.DataFrame | None]"


class Monitors:
    """The monitor evaluations of a stack. Rows of those that have ended are in `progress.frames`.

    Args:
        at: update -> the episodes that are played there.
        play: plays them; called in the thread.
        log: called there with the rows.
        apart: whether training waits for each: a user's class draws from the process's generators, as
            evaluation does.
    """

    def __init__(
        self,
        at: Mapping[int, int],
        play: Play,
        progress: Progress,
        log: "Callable[[pd.DataFrame], None]",
        *,
        apart: bool,
    ):
        self._at, self._play, self._progress, self._log = at, play, progress, log
        self._apart, self._thread = apart, ThreadPoolExecutor(1, "evaluate")
        self._begun: list[Monitored] = []

    def __enter__(self) -> "Monitors":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def begin(self, update: int, carry: "Carry") -> None:
        """Plays the episodes of an update, if it has any."""
        from offbench.training.step import to_device

        if (episodes := self._at.get(update)) is None:
            return
        self.collect()
        carry = to_device(carry, "cpu")
        future = self._thread.submit(self._watch, carry.state, update, episodes)
        self._begun.append(Monitored(update, carry, future))
        if self._apart:
            future.result()

    def again(self, update: int, carry: "Carry") -> None:
        """Plays the episodes of a checkpoint's update if they had not ended when it was saved."""
        progress = self._progress
        played = {int(frame["update"].iloc[0]) for frame in progress.frames if len(frame)}
        if update not in played and str(update) not in progress.unwatched:
            self.begin(update, carry)
            # the environments are one thread's at a time
            self.finish()

    def finish(self) -> None:
        """Waits for all. Raises Interrupted where one was broken off."""
        wait([m.episodes for m in self._begun])
        self.collect()
        if self._begun:
            raise Interrupted

    def break_off(self) -> None:
        """Ends the evaluations, at their next step: the caller has made the environments raise Interrupted."""
        for one in self._begun:
            one.episodes.cancel()
        wait([m.episodes for m in self._begun])

    def begin_again(self) -> None:
        """Plays what was broken off from its first step."""
        left, self._begun = self.collect(), []
        for one in left:
            self.begin(one.update, one.carry)

    def collect(self) -> list[Monitored]:
        """Makes the rows of what has ended progress; returns the evaluations that have not, the first one first."""
        while self._begun and (episodes := self._begun[0].episodes).done():
            if episodes.cancelled() or isinstance(error := episodes.exception(), Interrupted):
                break
            if error is not None:
                raise error
            frame = self._begun.pop(0).episodes.result()
            if frame is not None and len(frame):
                self._progress.frames.append(frame)
        return [*self._begun]

    def _watch(self, state: Any, update: int, episodes: int) -> "pd.DataFrame | None":
        """The rows; None, and a remark on the runs, where they cannot be played: training goes on."""
        try:
            frame = self._play(state, update, episodes)
        except Exception as error:
            words = f"{type(error).__name__}: {in_one_line(error)}"
            self._progress.unwatched[str(update)] = words
            return None
        # of parameters that are not finite
        finite = frame.groupby("member")["score"].transform(lambda x: x.abs().max() < float("inf"))
        frame = frame[finite.to_numpy(dtype=bool)]
        self._log(frame)
        return frame
