"""The training loop, as a generator: evaluation, checkpoints and loggers are loops over it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from offbench.data.pipeline import Pipeline
from offbench.errors import UserError, expect, expect_whole
from offbench.training.engine import Backend, Engine, Precision, Ran
from offbench.training.gate import make_engine
from offbench.training.imperative import Imperative, ImperativeEngine
from offbench.training.step import Carry, check_method, initial_carry, make_step, n_minibatches
from offbench.types import Method, Metrics, Spec


class Point(NamedTuple):
    """A stop of the training loop. State and metrics have a leading seed axis N; a pause has no metrics."""

    update: int
    # a copy
    carry: Carry
    metrics: Metrics
    backend: Ran

    @property
    def state(self) -> Any:
        return self.carry.state


class Refresh(NamedTuple):
    """Makes what the state learns from anew: before the first update, and after every `every` of them."""

    # minibatches, as updates are counted
    every: int
    # the training state with new data in it, a function of the old one alone
    make: Callable[[Carry], Carry]


def train(
    method: Method | Imperative,
    pipeline: Pipeline,
    spec: Spec,
    *,
    seeds: Sequence[int],
    n_updates: int,
    stop_at: Sequence[int] = (),
    backend: Backend = "auto",
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    values: Sequence[Mapping[str, float]] | None = None,
    resume: Carry | None = None,
    pause: Callable[[int], bool] | None = None,
    refresh: Refresh | None = None,
) -> Iterator[Point]:
    """Trains every seed at once; yields at each update in `stop_at` and always at `n_updates`.

    An update is one minibatch: a method that takes two per step (TD3+BC) makes `n_updates / 2`
    steps, so equal `n_updates` mean equal data for every method, as the papers count.
    `device` is where training happens, by default where the data are; data elsewhere stay there.
    `values` stacks hyper-parameters along with seeds (`offbench.training.step.initial_carry`). `resume` is the
    training state to continue from; earlier stops are skipped, and a state of `n_updates` is yielded once, without
    metrics. `pause(update)` is asked after every step; where it is true, the training state is yielded there too,
    without metrics, for a checkpoint say. `refresh` changes the training state between updates.
    Raises UserError for bad seeds, and for `n_updates` that is no multiple of the method's minibatches.
    """
    k = _checked(method, pipeline, spec, stop_at, n_updates)
    stops = sorted({max(k, s - s % k) for s in stop_at if 0 < s < n_updates} | {n_updates})
    start = done = (int(resume.step) if resume else 0) * k
    every = max(k, refresh.every // k * k) if refresh else n_updates
    marks = set(range(0, n_updates, every))
    device = _there(device) if device is not None else pipeline.data.obs.device
    seen = pipeline.spec(spec)
    engine: Engine | ImperativeEngine
    if isinstance(method, Imperative):
        _check_as_written(method, backend, precision)
        engine = ImperativeEngine(
            method, pipeline, seen, seeds, device=str(device), values=values, resume=resume
        )
        ran = engine.ran
    else:
        carry = resume or initial_carry(method, seen, seeds, device, values=values)
        carry = refresh.make(carry) if refresh and start in marks else carry
        step, n_steps = make_step(method, pipeline, device=device), n_updates // k
        engine, ran = make_engine(
            step, carry, backend=backend, n_steps=n_steps, precision=precision
        )
    # training was complete; evaluation remains
    if done == n_updates:
        yield Point(done, engine.carry, {}, ran)
    paused = None if pause is None else lambda step: pause(step * k)
    for stop in sorted({*stops, *marks}):
        while done < stop:
            if refresh and start < done and done in marks and isinstance(engine, Engine):
                engine.load(refresh.make(engine.carry))
            metrics = engine.run((stop - done) // k, paused)
            done = engine.step * k
            if done in stops or done < stop:
                yield Point(done, engine.carry, metrics if done == stop else {}, ran)


def _checked(method: Any, pipeline: object, spec: object, stop_at: object, n_updates: int) -> int:
    """Minibatches per step. Raises UserError for an argument of `train` of another type."""
    check_method(method)
    expect("pipeline", pipeline, Pipeline, "a pipeline, as of make_pipeline")
    expect("spec", spec, Spec, "the Spec that load_data returns")
    expect("stop_at", stop_at, Sequence, "a list of numbers of updates")
    assert isinstance(stop_at, Sequence)
    for stop in stop_at:
        expect_whole("stop_at", stop, 0)
    return check_budget(method, n_updates)


def _there(device: torch.device | str) -> torch.device | str:
    """The device. UserError for one that is not on this machine, or has no such name."""
    try:
        torch.empty(0, device=device)
    # torch asserts that it was built for it
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {str(error).partition(chr(10))[0]}") from None
    return device


def _check_as_written(method: Imperative, backend: Backend, precision: Precision) -> None:
    if (backend, precision) != ("auto", "float32"):
        raise UserError(
            f"engine={backend} precision={precision}: {method.name} is run as it is written; use auto and float32"
        )


def check_budget(method: Method | Imperative, n_updates: int) -> int:
    """Minibatches per step. Raises UserError where `n_updates` is no positive multiple of them."""
    k = n_minibatches(method)
    expect("n_updates", n_updates, int, "a whole number")
    if n_updates < 1 or n_updates % k:
        raise UserError(
            f"n_updates={n_updates} must be a positive multiple of {k}: "
            f"{type(method).__name__} takes {k} minibatch{'es' if k > 1 else ''} a step"
        )
    return k


def diverged(state: Any) -> torch.Tensor:
    """(N,) bool: seeds with a nan or infinite number in their state."""
    tensors = [x for x in torch.utils._pytree.tree_leaves(state) if isinstance(x, torch.Tensor)]
    leaves = [x for x in tensors if x.is_floating_point()]
    return torch.stack([~x.reshape(len(x), -1).isfinite().all(1) for x in leaves]).any(0)
