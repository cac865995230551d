"""What a stack in training tells whoever runs it, and is told: its phase and update, and whether to stop."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from offbench.bench.stacks import Pack
from offbench.results.spec import utc_now


class Watch:
    """The phase and update of a stack, and the request to stop it.

    Args:
        send: called with the phase and the share of the stack that is done.
        stop: whether the stack should save its state and raise `Interrupted`.
    """

    def __init__(
        self,
        pack: Pack,
        *,
        send: Callable[[str, float], None] = lambda phase, fraction: None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._pack, self._send, self.stop = pack, send, stop
        self._phase, self._update, self._began = "loading", 0, utc_now()
        # update and time at which training began here, after a resume say
        self._first: tuple[int, float] | None = None
        # to be told with the outcome, each once
        self.remarks: list[str] = []

    def report(self, phase: str, fraction: float) -> None:
        """A phase, and the share of the stack that is done."""
        self._phase = phase
        self._send(phase, fraction)

    def remark(self, line: str) -> None:
        """Something to be told with the outcome, once."""
        if line not in self.remarks:
            self.remarks.append(line)

    def trained(self, update: int) -> None:
        """The number of updates made so far."""
        if self._first is None:
            self._first, self._phase = (update, time.perf_counter()), "training"
        self._update = update

    def about(self) -> Mapping[str, Any]:
        """The stack as in `offbench.results.claims.Worker.stack`."""
        cells = self._pack.cells
        rate = None
        if self._first and self._update > self._first[0] and self._phase == "training":
            rate = (self._update - self._first[0]) / (time.perf_counter() - self._first[1])
        return {
            "title": self._pack.title,
            "entries": [cell.entry for cell in cells],
            "task": cells[0].task.id,
            "seeds": sorted(set(self._pack.seeds)),
            "runs": self._pack.run_ids,
            "phase": self._phase,
            "update": self._update,
            "n_updates": cells[0].n_updates,
            "updates_per_s": rate,
            "started": self._began,
        }
