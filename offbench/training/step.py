"""One training step of a method on a pipeline, for one seed, and the training state.

A step has three parts: `draw` turns the step's key into row numbers, `gather` reads the batch at those
rows, `update` turns it into a new state. Only `draw` and `gather` see the data. `offbench.training.engine`
adds the axis of seeds. The key of step t is a function of (run key, t).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.errors import UserError, expect, expect_whole
from offbench.types import Batch, Method, Metrics, Spec


class Carry(NamedTuple):
    """Complete training state of a stack of seeds: parameters, keys, step count."""

    state: Any  # stacked
    key: Tensor  # (N,) int64, the same for the whole run
    step: Tensor  # () int64, steps taken

    def seed(self, i: int) -> "Carry":
        """The training state of the i-th seed, without the seed axis."""
        return Carry(unstack(self.state, i), self.key[i], self.step)


class Draw(NamedTuple):
    """What one step draws: rows of the data and the key of its update."""

    # (minibatches x batch_size,) int64; under a goal view a dict of them
    rows: Any
    key: Tensor  # () int64, for the method


class Input(NamedTuple):
    """What one update learns from: the batch at the rows drawn, and the key of the update."""

    # a pytree of tensors; of a method a `Batch`, of several minibatches (minibatches, batch_size, ...)
    batch: Any
    key: Tensor  # () int64, for the method


class Step(NamedTuple):
    """One training step of one seed, as pure functions.

    `gather` takes rows of many seeds or steps, (..., minibatches x batch_size), and gives their batches with
    the same leading axes, where the data are.
    """

    draw: Callable[[Tensor], Draw]
    gather: Callable[[Any], Any]
    update: Callable[[Any, Input], tuple[Any, Metrics]]
    # the data are not where training happens, and batches are copied
    host_data: bool = False

    def input(self, draw: Draw) -> Input:
        """The draw with its batch."""
        return Input(self.gather(draw.rows), draw.key)


class Swept(NamedTuple):
    """The state of a method whose hyper-parameters differ along the stack: `values` are (N,) each."""

    values: dict[str, Tensor]
    state: Any


def bind(method: Method, state: Any) -> tuple[Method, Any]:
    """(method with the hyper-parameters in its state, state of the method itself)."""
    if not isinstance(state, Swept):
        return method, state
    dtype = next(x.dtype for x in tree_leaves(state.state) if x.is_floating_point())
    values = {k: v.to(dtype) for k, v in state.values.items()}
    # a wrapper sets the values of its method
    inner: Any = method
    bound = inner.with_values(values) if hasattr(inner, "with_values") else replace(inner, **values)
    return bound, state.state


def stack(trees: Sequence[Any]) -> Any:
    """A list of N pytrees of one shape -> one pytree with a leading axis of N."""
    return tree_map(lambda *x: torch.stack(x), *trees)


def unstack(tree: Any, i: int) -> Any:
    """The i-th of the stacked pytrees."""
    return tree_map(lambda x: x[i], tree)


def n_minibatches(method: object) -> int:
    """Minibatches that one update of the method consumes."""
    return getattr(method, "minibatches", 1)


def make_draw(method: object, pipeline: Pipeline) -> Callable[[Tensor], Draw]:
    """A function from the key of a step to its `Draw`."""
    n_rows = n_minibatches(method) * pipeline.batch_size

    def draw(key: Tensor) -> Draw:
        k_batch, k_update = rng.split(key)
        return Draw(pipeline.draw(k_batch, n_rows), k_update)

    return draw


def make_step(
    method: Method, pipeline: Pipeline, *, device: torch.device | str | None = None
) -> Step:
    """The training step of a method on a pipeline. Data on another device than `device` stay there,
    and batches are copied."""
    minibatches = n_minibatches(method)
    home = pipeline.data.obs.device
    device = torch.device(device or home)

    def gather(rows: Any) -> Batch:
        sizes = (minibatches, pipeline.batch_size) if minibatches > 1 else (pipeline.batch_size,)
        lead = (*tree_leaves(rows)[0].shape[:-1], *sizes)
        batch = pipeline.batch(tree_map(torch.flatten, rows))
        return tree_map(lambda x: x.unflatten(0, lead), batch)

    def update(state: Any, given: Input) -> tuple[Any, Metrics]:
        bound, inner = bind(method, state)
        new, metrics = bound.update(inner, given.batch, given.key)
        return (state._replace(state=new) if bound is not method else new), metrics

    return Step(make_draw(method, pipeline), gather, update, device.type != home.type)


def advance(step: Step, carry: Carry) -> tuple[Carry, Metrics]:
    """One step of one seed, the reference of every backend. `carry` has no seed axis."""
    given = step.input(step.draw(rng.fold(carry.key, carry.step)))
    state, metrics = step.update(carry.state, given)
    return Carry(state, carry.key, carry.step + 1), metrics


def check_method(method: Any) -> None:
    """UserError for what is no method: a class without its settings, a name."""
    if isinstance(method, type) or not callable(
        getattr(method, "act", getattr(method, "policy", 0))
    ):
        words = method.__name__ if isinstance(method, type) else f"a {type(method).__name__}"
        raise UserError(f"{words} is no method with its settings, as IQL(lr=1e-3) is")


def initial_carry(
    method: Method,
    spec: Spec,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    values: Sequence[Mapping[str, float]] | None = None,
) -> Carry:
    """The training state before the first update; each seed's part is a function of that seed alone.

    Created on the CPU and moved, so it does not depend on the device. `values` gives each member of
    the stack its own hyper-parameters (the same names for all); seeds may then repeat.
    """
    expect("seeds", seeds, Sequence, "a list of whole numbers")
    for seed in seeds:
        expect_whole("seed", seed, 0)
    if not seeds or (values is None and len(set(seeds)) != len(seeds)):
        raise UserError(f"seeds must be a non-empty list without duplicates, got {list(seeds)}")
    expect("values", values, (Sequence, type(None)), "settings of each member of the stack")
    if values is not None and len(values) != len(seeds):
        raise UserError(
            f"values of {len(values)} members for {len(seeds)} seeds: one is needed for each"
        )
    pairs = [rng.split(rng.key(s)) for s in seeds]
    state = stack([method.init(k[0], spec) for k in pairs])
    if values is not None:
        names = values[0].keys()
        columns = {n: torch.tensor([v[n] for v in values], dtype=torch.float64) for n in names}
        state = Swept(columns, state)
    carry = Carry(state, torch.stack([k[1] for k in pairs]), torch.tensor(0))
    return to_device(carry, device)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """The pytree with its tensors on `device`."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)
