"""Fits networks that are no method: regressions on recorded rows, stacked as seeds are.

Adam, whose rate is a function of the update: falling linearly to 0, say.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import Interrupted
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.training import checkpoint
from offbench.training.engine import Backend
from offbench.training.gate import make_engine
from offbench.training.step import Carry, Draw, Input, Step, stack, to_device
from offbench.types import Metrics


class Fit(NamedTuple):
    """A network in training."""

    net: Any
    opt: AdamState

    @classmethod
    def start(cls, net: Any) -> "Fit":
        """Before the first update; every Adam begins alike, whatever its rate."""
        return cls(net, Adam(1.0).init(net))

    def descend(
        self, loss: Callable[[Any], Tensor], lr: float, rate: Tensor
    ) -> "tuple[Fit, Tensor]":
        """One step of Adam with the learning rate lr x rate (), and the loss before it."""
        grads, value = grad_and_value(loss)(self.net)
        stepped, opt = Adam(lr).step(grads, self.opt, self.net)
        # Adam's step is proportional to its rate
        return Fit(polyak(self.net, stepped, rate), opt), value

    def falling(self, n_updates: int) -> Tensor:
        """() rate that falls linearly to 0 after n_updates."""
        return (1 - self.opt.count / n_updates).clamp(min=0)


class Stops(NamedTuple):
    """Whether a fit is to stop, and the checkpoint from which it then goes on to the same bits."""

    # asked after every update
    asked: Callable[[int], bool] = lambda update: False
    # its checkpoint, which remains when it is done; None: a fit that was stopped begins again
    path: Path | None = None
    # between two checkpoints; 0: one is written where it stops
    minutes: float = 0.0
    # told in a line what could not be read or written
    say: Callable[[str], None] = lambda line: None

    def resumed(self, start: Carry) -> Carry:
        """The training state of the checkpoint, on the device of `start`; that one where there is none."""
        if self.path is None or not self.path.exists():
            return start
        try:
            return checkpoint.load(self.path, start)[0]
        except checkpoint.Damaged as error:
            self.say(f"{error}; training begins again")
            return start

    def save(self, carry: Carry) -> None:
        """Writes the checkpoint; where it cannot be written, the one before it stays."""
        if self.path is None:
            return
        try:
            checkpoint.save(carry, self.path)
        except OSError as error:
            self.say(f"a checkpoint could not be written: {error.strerror or error}")


NEVER = Stops()


def regression(
    loss: Callable[[Any, Any], Tensor],
    rows: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Any],
    *,
    n_updates: int,
    lr: float,
) -> Step:
    """One step of the fit of a network, whose state is a `Fit`.

    Args:
        rows: draws those of a minibatch with a key.
        gather: reads it: any pytree of tensors, which `loss` is given with a network.
    """

    def draw(key: Tensor) -> Draw:
        k_rows, k_update = rng.split(key)
        return Draw(rows(k_rows), k_update)

    def update(state: Fit, given: Input) -> tuple[Fit, Metrics]:
        own = lambda net: loss(net, given.batch)
        state, value = state.descend(own, lr, state.falling(n_updates))
        return state, {"loss": value}

    return Step(draw, gather, update)


def begin(states: Sequence[Any], keys: Tensor) -> Carry:
    """The training state of N fits before their first update, where `keys` (N,) are."""
    device = keys.device
    return Carry(to_device(stack(states), device), keys, torch.tensor(0, device=device))


def run(
    step: Step,
    start: Carry,
    n_updates: int,
    *,
    backend: Backend = "auto",
    stops: Stops = NEVER,
) -> Any:
    """The stacked states (N, ...) after n_updates from `start`. Raises Interrupted where it was stopped."""
    carry = stops.resumed(start)
    engine, _ = make_engine(step, carry, backend=backend, n_steps=n_updates)
    stopped, saved = False, time.perf_counter()

    def pause(update: int) -> bool:
        nonlocal stopped
        stopped = stops.asked(update)
        return stopped or 0 < 60 * stops.minutes < time.perf_counter() - saved

    while engine.step < n_updates:
        engine.run(n_updates - engine.step, pause)
        if engine.step < n_updates:
            stops.save(engine.carry)
            saved = time.perf_counter()
            if stopped:
                raise Interrupted
    return engine.carry.state
