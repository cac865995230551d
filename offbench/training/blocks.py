"""Batches of a stack of seeds, drawn and gathered for BLOCK steps at a time.

An update never sees the data: it gets its batch as an argument, whether the data are on the device or stay
in host memory. So one program of a method serves every dataset of the same shapes.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from offbench import rng
from offbench.training.step import Draw, Input, Step
from offbench.training.tracing import Program

# steps whose batches are made together, and updates per replay of a CUDA graph
BLOCK = 32

# (keys (N,), number of the first step ()) -> the inputs of BLOCK updates of every seed, (BLOCK, N, ...)
Make = Callable[[tuple[Tensor, Tensor]], Input]
# gives a block in memory that stays where it is
Read = Callable[[], Input]


def maker(step: Step, key: Tensor, *, traced: bool = True, compiled: bool = False) -> Make:
    """A function that draws and gathers a block, where the key is.

    `compiled` compiles the draw, for any number of rows, and keeps it only where it draws the same bits.
    """
    many = vmap(vmap(step.draw))

    def draw(arguments: tuple[Tensor, Tensor]) -> Draw:
        key, first = arguments
        numbers = first + torch.arange(BLOCK, device=key.device)
        return many(rng.fold(key[None], numbers[:, None]))

    def make(arguments: tuple[Tensor, Tensor]) -> Input:
        return step.input(draw(arguments))

    example = (key, torch.zeros((), dtype=torch.int64, device=key.device))
    if not traced:
        return make
    if compiled:
        drawn = draw(example)
        fast = Program(draw, example, compiled=True, any_length=True)
        with torch.no_grad():
            again = fast(example)
        if equal(again, drawn):
            gather = Program(step.input, drawn)
            return lambda arguments: gather(fast(arguments))
    return Program(make, example)


def equal(a: Any, b: Any) -> bool:
    """Leaf by leaf, to the last bit."""
    return all(map(torch.equal, tree_leaves(a), tree_leaves(b)))


def steps(block: Input) -> list[Input]:
    """A block as its steps, without copies."""
    leaves, tree = tree_flatten(block)
    parts = zip(*(x.unbind(0) for x in leaves), strict=True)
    return [tree_unflatten(list(part), tree) for part in parts]


def copy(into: Any, source: Any) -> None:
    """Leaf by leaf; from pinned memory without waiting."""
    for x, y in zip(tree_leaves(into), tree_leaves(source), strict=True):
        x.copy_(y, non_blocking=True)


class Blocks:
    """Blocks of data on the device, made when the first step of one is asked for."""

    def __init__(self, step: Step, key: Tensor, *, backend: str):
        # on a CPU drawing is too small a part of a step
        compiled = backend in ("compile", "cudagraph") and key.device.type != "cpu"
        self._make = maker(step, key, traced=backend != "vmap", compiled=compiled)
        self._key = key.clone()
        self._forget()

    def load(self, key: Tensor) -> None:
        """Draws with `key` from now on."""
        self._key.copy_(key)
        self._forget()

    def _forget(self) -> None:
        self._first, self._steps = -1, list[Input]()

    def at(self, step: int) -> Input:
        """The input of the update of a step."""
        if not 0 <= step - self._first < len(self._steps):
            # frees the memory of the last block
            self._forget()
            # filled on the device, without synchronisation
            first = torch.full((), step, dtype=torch.int64, device=self._key.device)
            with torch.no_grad():
                self._first, self._steps = step, steps(self._make((self._key, first)))
        return self._steps[step - self._first]

    def fixed(self) -> tuple[Read, Callable[[int], Any]]:
        """(read, prepare): after `prepare(step)`, `read()` makes the block from that step on.

        Both use the same memory at every call, so that `read` can be captured.
        """
        first = torch.zeros((), dtype=torch.int64, device=self._key.device)
        return lambda: self._make((self._key, first)), first.fill_


class Slot(NamedTuple):
    """Memory for a block, on the host and on the device, and what its users wait for."""

    host: Input  # page-locked
    device: Input
    steps: list[Input]  # of `device`
    # `device` holds what `host` does, which may be written again
    copied: Any
    # no update reads `device` any more
    used: Any


class HostBlocks:
    """Blocks of data in host memory: while updates use one, a thread gathers the next and sends it.

    Rows are drawn by the same keys as on the device, so the batches are the same bit for bit. Both blocks have
    memory of their own for good, page-locked on the host, and copies have a stream of their own.
    """

    def __init__(self, step: Step, key: Tensor, *, backend: str, streams: Any = None):
        """`streams` has Stream, Event and stream as `torch.cuda` has, by default those of the key's device."""
        cuda = key.device.type == "cuda"
        self._api = streams or (torch.cuda if cuda else torch.cpu)
        self._key = key.cpu().clone()
        self._make = maker(step, self._key, traced=backend != "vmap")
        with torch.no_grad():
            example = self._make((self._key, torch.tensor(0)))
        host = lambda x: torch.empty(x.shape, dtype=x.dtype, pin_memory=cuda)
        device = lambda x: torch.empty(x.shape, dtype=x.dtype, device=key.device)
        self._slots = []
        for _ in range(2):
            there = tree_map(device, example)
            events = (self._api.Event(), self._api.Event())
            self._slots.append(Slot(tree_map(host, example), there, steps(there), *events))
        self._stream = self._api.Stream()
        self._thread = ThreadPoolExecutor(1, "gather")
        self._ahead: Future[None] | None = None
        self._now, self._first, self._next = 0, -1, -1

    def load(self, key: Tensor) -> None:
        """Draws with `key` from now on."""
        self._wait()
        self._key.copy_(key)
        self._first = self._next = -1

    def at(self, step: int) -> Input:
        """The input of the update of a step, on the device."""
        if self._first < 0 or not 0 <= step - self._first < BLOCK:
            self._turn(step)
        return self._slots[self._now].steps[step - self._first]

    def fixed(self) -> tuple[Read, Callable[[int], Any]]:
        """(read, prepare): after `prepare(step)`, `read()` is the block from that step on."""
        place = tree_map(torch.empty_like, self._slots[0].device)

        def prepare(step: int) -> None:
            if self._first != step:
                self._turn(step)
            copy(place, self._slots[self._now].device)

        return lambda: place, prepare

    def _turn(self, step: int) -> None:
        """Goes on to the block from `step` on, and has the one after it made."""
        self._slots[self._now].used.record()
        other = 1 - self._now
        # the first block, or training goes on elsewhere
        if self._next != step:
            self._wait()
            self._begin(other, step)
        self._wait()
        self._slots[other].copied.wait()
        self._now, self._first = other, step
        self._begin(1 - other, step + BLOCK)

    def _begin(self, slot: int, step: int) -> None:
        self._next = step
        self._ahead = self._thread.submit(self._fill, self._slots[slot], step)

    def _wait(self) -> None:
        """Until the thread has gathered, not until the copy has arrived."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.result()

    def _fill(self, slot: Slot, step: int) -> None:
        with torch.no_grad():
            block = self._make((self._key, torch.tensor(step)))
        slot.copied.synchronize()
        copy(slot.host, block)
        with self._api.stream(self._stream):
            slot.used.wait()
            copy(slot.device, slot.host)
            slot.copied.record()
