"""The equivalence gate: a compiled or captured program trains only if it follows the eager one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from offbench.training.blocks import BLOCK
from offbench.training.engine import Backend, Engine, Precision, Ran, candidates
from offbench.training.step import Carry, Step

TOLERANCE = 0.02
# one replayed block, and single steps after it
STEPS = BLOCK + 5
# a program may differ from the eager one so many times as much as that does from itself if the last bits of its
# start are others: tensors of ACSAC's eager float32 are up to 9 such distances from float64 after four steps
ROUNDINGS = 10


def make_engine(
    step: Step,
    carry: Carry,
    *,
    backend: Backend = "auto",
    n_steps: int = 0,
    precision: Precision = "float32",
) -> tuple[Engine, Ran]:
    """(engine at `carry`, its backend with a note on each faster one that was refused).

    With `auto`, a backend whose state after STEPS steps from `carry` is more than TOLERANCE from that of the
    eager float32 program (`Judge`), or which fails, is refused.
    """
    names = candidates(backend, carry.key.device.type, n_steps)
    if len(names) == 1:
        return Engine(step, carry, backend=names[0], precision=precision), Ran(names[0])
    judge, refused = Judge(step, carry), list[str]()
    for name in names[:-1]:
        try:
            engine = Engine(step, carry, backend=name, precision=precision)
            engine.run(STEPS)
            # rounded products (TF32, bf16) are not judged
            exact = precision == "float32"
            off = judge.deviation(engine.carry.state, STEPS, TOLERANCE) if exact else 0.0
        # a compiler may fail in any way; the eager program remains
        except Exception as error:
            refused.append(f"{name} failed: {type(error).__name__}")
            continue
        if not off <= TOLERANCE:
            refused.append(f"{name} deviates by {off:.2g}")
            continue
        engine.load(carry)
        return engine, Ran(name, tuple(refused))
    engine = Engine(step, carry, backend=names[-1], precision=precision)
    return engine, Ran(names[-1], tuple(refused))


class Judge:
    """The eager float32 program, which others are held against."""

    def __init__(self, step: Step, carry: Carry):
        self._carry, self._engine = carry, Engine(step, carry, backend="eager")
        # (steps, whether the start was nudged) -> the end
        self._ends: dict[tuple[int, bool], Any] = {}

    def deviation(self, state: Any, steps: int, tolerance: float) -> float:
        """`deviation` of a state after so many steps; only one beyond the tolerance is worth two eager runs."""
        end, start = self._end(steps, nudged=False), self._carry.state
        off = deviation(state, end, start)
        if off <= tolerance:
            return off
        return deviation(state, end, start, self._end(steps, nudged=True), tolerance)

    def _end(self, steps: int, *, nudged: bool) -> Any:
        key = steps, nudged
        if key not in self._ends:
            start = nudge(self._carry.state) if nudged else self._carry.state
            self._engine.load(self._carry._replace(state=start))
            self._engine.run(steps)
            self._ends[key] = self._engine.carry.state
        return self._ends[key]


def deviation(
    state: Any, reference: Any, start: Any, nudged: Any = None, tolerance: float = TOLERANCE
) -> float:
    """Relative error of a state: max over leaves of |state - reference| / |reference - start|.

    Norms are over whole leaves: Adam's first steps have the size of the learning rate whatever the
    gradient, so single elements can differ by rounding alone. So can whole leaves: where a gradient is
    zero but for rounding (the biases of attention's keys) Adam makes steps of full size all the same, and a target
    network moves by little more than float32 resolves.

    Args:
        nudged: the end of the reference program from a `nudge` of its start. A leaf that is off by ROUNDINGS
            times as much as that one counts as `tolerance`.
    """
    worst = 0.0
    nudged = reference if nudged is None else nudged
    for a, b, c, d in zip(*map(tree_leaves, (state, reference, start, nudged)), strict=True):
        if b.is_floating_point():
            apart, way, shake = (
                (x - y).double().norm().item() for x, y in ((a, b), (b, c), (d, b))
            )
            way = max(way, ROUNDINGS * shake / tolerance)
            worst = max(worst, apart / way if way > 0 else float(apart > 0))
    return worst


def nudge(state: Any) -> Any:
    """A state with other last bits: each of its numbers but 0 is the next one up or down, in turns."""

    def off(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        up = torch.arange(x.numel(), device=x.device).view(x.shape) % 2 == 0
        next_one = torch.nextafter(x, torch.where(up, torch.inf, -torch.inf).to(x))
        # a moment of Adam's below 0 has no root
        return torch.where(x == 0, x, next_one)

    return tree_map(off, state)
