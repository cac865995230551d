"""Trains an unmodified PyTorch class, with its own modules and optimisers, one object per seed.

The class needs `__init__(obs_dim, action_dim, ...)`, `train_step(batch) -> {name: number}` and
`act(obs) -> actions`; `device` and `gamma` are passed where it takes them, every other parameter is a
hyper-parameter. `batch` is an `offbench.types.Batch` on the device, `obs` an (E, O) tensor there, actions are
(E, A) in [-1, 1], tensor or array. Sampled rows, evaluation and records are those of every method; seeds are
trained one after another, without stacking or tracing, so it is slower.

The global generators of torch, numpy and random have a state of their own for each seed, so a seed's result
does not depend on the others, unless objects of the class share state.
"""

import contextlib
import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from offbench import rng
from offbench.data.pipeline import Pipeline
from offbench.errors import UserError, calling, expect
from offbench.training import object_state
from offbench.training.engine import BLOCK, Ran
from offbench.training.object_state import NotPlain, State
from offbench.training.step import Carry, make_draw, to_device, unstack
from offbench.types import Batch, Metrics, Policy, Spec, TimeStep

# parameters that are not hyper-parameters
GIVEN = ("obs_dim", "action_dim", "device", "gamma")


@dataclass
class Member:
    """One seed: its object, the states of its generators, its last metrics."""

    algorithm: Any
    device: str
    action_dim: int
    generators: list[Any]
    metrics: dict[str, float] = field(default_factory=dict)
    # (path, class) of the objects that its constructor made; None where they cannot be stored
    made: frozenset[tuple[str, str]] | None = None

    def read(self) -> State:
        """Its state without pickles. Raises NotPlain, with the attribute's name."""
        try:
            return object_state.read(self._parts(), self.made)
        except NotPlain as error:
            raise NotPlain(str(error).replace("algorithm.", "attribute ", 1)) from None

    def write(self, state: State) -> None:
        """Puts a state into a member that was made anew. Raises NotPlain where it does not fit."""
        parts = self._parts()
        object_state.write(parts, state, self.device)
        self.generators, self.metrics = parts.generators, parts.metrics

    def _parts(self) -> "_Parts":
        return _Parts(self.algorithm, self.generators, self.metrics)


@dataclass
class _Parts:
    """What is stored of a member."""

    algorithm: Any
    generators: list[Any]
    metrics: dict[str, float]


class Objects(NamedTuple):
    """The state of a stack of objects, as in a `Carry`."""

    finite: Tensor  # (N,) 0, nan where a parameter of the seed is not finite
    members: np.ndarray  # (N,) of Member, copies


class Imperative:
    """A PyTorch class with its hyper-parameters, used instead of a functional method.

    The class may have `needs` (offbench/data/batch_extras.py) and `actions`, as a method has. Raises
    UserError for a class that lacks `train_step` or `act`, or does not take these hyper-parameters.
    """

    minibatches = 1

    def __init__(self, cls: type, /, **hparams: Any):
        expect("cls", cls, type, "a PyTorch class, not one of its objects")
        self.cls, self.hparams, self.name = cls, hparams, cls.__name__
        self.needs = tuple(getattr(cls, "needs", ()))
        self.actions = getattr(cls, "actions", "continuous")
        for name in ("train_step(batch)", "act(obs)"):
            if not callable(getattr(cls, name.partition("(")[0], None)):
                raise UserError(
                    f"{self.name} has no {name}: a PyTorch class needs train_step(batch) and act(obs)"
                )
        self._takes = inspect.signature(cls).parameters
        if absent := [name for name in GIVEN[:2] if not self._accepts(name)]:
            raise UserError(
                f"{self.name}.__init__ takes no {' and no '.join(absent)}, passed to it by name"
            )

    def _accepts(self, name: str) -> bool:
        return name in self._takes or any(p.kind is p.VAR_KEYWORD for p in self._takes.values())

    def check(self, spec: Spec, batch: Batch | None = None) -> None:
        """Raises UserError where construction, a training step on `batch`, or acting fails."""
        member = self.member(rng.key(0), spec, "cpu")
        if batch is not None:
            with _lent(member):
                self.numbers(self.train_step(member, batch))
        self._act(member, torch.zeros(2, spec.obs_dim), rng.key(1))

    def member(
        self, key: Tensor, spec: Spec, device: str, values: Mapping[str, float] | None = None
    ) -> Member:
        """A new object for a seed. `values` override the hyper-parameters common to the stack."""
        if device != "cpu" and not self._accepts("device"):
            raise UserError(f"{self.name}.__init__ takes no device; use device=cpu")
        given = dict(zip(GIVEN, (spec.obs_dim, spec.action_dim, device, spec.gamma), strict=True))
        given = {k: v for k, v in given.items() if self._accepts(k)}
        member = Member(None, device, spec.action_dim, [])
        with _lent(member, seed=int(key)), calling(f"{self.name}.__init__"):
            member.algorithm = self.cls(**given, **{**self.hparams, **(values or {})})
        return member

    def train_step(self, member: Member, batch: Batch) -> dict[str, Any]:
        """One `train_step` of the object; its metrics. UserError where it fails or returns no dict."""
        with calling(f"{self.name}.train_step"):
            found = member.algorithm.train_step(batch)
        if not isinstance(found, Mapping):
            raise UserError(
                f"{self.name}.train_step returned {type(found).__name__}: return a dict of numbers"
            )
        return dict(found)

    def numbers(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Metrics as floats, not finite ones included. UserError for other values."""
        metrics = {}
        for name, value in found.items():
            try:
                metrics[str(name)] = float(value.detach() if isinstance(value, Tensor) else value)
            except (TypeError, ValueError, RuntimeError):
                words = f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
                raise UserError(
                    f"{self.name}.train_step: {name!r} is a {words}: return a number"
                ) from None
        return metrics

    def policy(self) -> Policy:
        """The policy of copies in eval mode; random numbers in `act` are seeded by the evaluation key."""
        playing: dict[int, tuple[Member, Member]] = {}

        def player(i: int, member: Member) -> Member:
            if i not in playing or playing[i][0] is not member:
                twin, found = _copied(member)
                for module in (x for x in found if isinstance(x, nn.Module)):
                    module.eval()
                playing[i] = member, twin
            return playing[i][1]

        def act(state: Objects, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
            actions = [
                self._act(player(i, m), step.obs[i], key[i]) for i, m in enumerate(state.members)
            ]
            return torch.stack(actions).clamp(-1, 1), memory

        return Policy(lambda n_seeds, n_envs: (), act)

    def _act(self, member: Member, obs: Tensor, key: Tensor) -> Tensor:
        """(E, O) -> (E, A) on the CPU."""
        with _lent(member, seed=int(key.sum())), torch.no_grad(), calling(f"{self.name}.act"):
            actions = member.algorithm.act(obs.to(member.device))
            actions = torch.as_tensor(actions, dtype=torch.float32).cpu()
        if actions.shape != (want := (len(obs), member.action_dim)):
            raise UserError(
                f"{self.name}.act returned {tuple(actions.shape)} for obs {tuple(obs.shape)}: return {want}"
            )
        if not actions.isfinite().all():
            raise UserError(f"{self.name}.act returned actions that are not finite")
        return actions

    def bytes(self, spec: Spec) -> int:
        """Bytes of one seed: parameters, gradients and two Adam moments."""
        algorithm = self.member(rng.key(0), spec, "cpu").algorithm
        found: dict[int, Tensor] = {}
        for x in [algorithm, *getattr(algorithm, "__dict__", {}).values()]:
            own: list[Tensor] = [*x.parameters()] if isinstance(x, nn.Module) else []
            if isinstance(x, torch.optim.Optimizer):
                own = [p for group in x.param_groups for p in group["params"]]
            found |= {id(p): p for p in own}
        return 4 * sum(p.nbytes for p in found.values()) or 1

    def like(
        self,
        seeds: Sequence[int],
        spec: Spec,
        device: str = "cpu",
        values: Sequence[Mapping[str, float]] | None = None,
    ) -> Carry:
        """The training state before the first step, into which `offbench.training.checkpoint.load` writes."""
        pairs = [rng.split(rng.key(s)) for s in seeds]
        members = np.empty(len(seeds), object)
        members[:] = [
            self.member(key, spec, device, own or None)
            for (key, _), own in zip(pairs, values or [{}] * len(pairs), strict=True)
        ]
        for member in members:
            with contextlib.suppress(NotPlain):
                member.made = member.read().classes
        state = Objects(torch.zeros(len(seeds)), members)
        return Carry(state, torch.stack([key for _, key in pairs]), torch.tensor(0))


class ImperativeEngine:
    """Trains the seeds of a PyTorch class one after another, step by step.

    `ran` has a note where the objects cannot be stored in checkpoints.
    """

    def __init__(
        self,
        method: Imperative,
        pipeline: Pipeline,
        spec: Spec,
        seeds: Sequence[int],
        *,
        device: str,
        values: Sequence[Mapping[str, float]] | None = None,
        resume: Carry | None = None,
    ):
        if not seeds or (values is None and len(set(seeds)) != len(seeds)):
            raise UserError(f"seeds must be a non-empty list without duplicates, got {list(seeds)}")
        self._method, self._pipeline, self._device = method, pipeline, device
        self._draw = vmap(make_draw(method, pipeline))
        carry = resume or method.like(seeds, spec, device, values)
        self._key, self._step = carry.key, int(carry.step)
        members: list[Member] = list(carry.state.members)
        self._members = [_copied(m)[0] for m in members] if resume else members
        self.ran = Ran("imperative, one seed at a time")
        try:
            # what is written must be read again, the same
            again = method.like(seeds[:1], spec, device, values and values[:1])
            self._members[0].made = again.state.members[0].made
            again.state.members[0].write(self._members[0].read())
        except NotPlain as error:
            self.ran = self.ran._replace(notes=(f"no checkpoints: {error}",))

    def run(self, n: int, pause: Callable[[int], bool] | None = None) -> Metrics:
        """n steps of every seed; fewer where `pause(step)` is true after BLOCK of them.

        Returns the metrics last reported, each (N,), or nan.
        """
        end, paused = self._step + n, False
        while self._step < end and not paused:
            numbers = torch.arange(self._step, min(self._step + BLOCK, end))
            for key, member in zip(self._key, self._members, strict=True):
                with _lent(member):
                    found: dict[str, Any] = {}
                    for batch in self._batches(key, numbers):
                        found |= self._method.train_step(member, batch)
                    member.metrics |= self._method.numbers(found)
            self._step += len(numbers)
            paused = pause is not None and pause(self._step)
        names = dict.fromkeys(name for member in self._members for name in member.metrics)
        return {
            k: torch.tensor([m.metrics.get(k, float("nan")) for m in self._members]) for k in names
        }

    @property
    def step(self) -> int:
        """Steps made from the start of training."""
        return self._step

    def _batches(self, key: Tensor, numbers: Tensor) -> Iterator[Batch]:
        """The batches of a seed at some steps: the rows that a functional method gets with it."""
        key = key.to(self._pipeline.data.obs.device)
        drawn = self._draw(rng.fold(key, numbers.to(key.device))).rows
        for i in range(len(numbers)):
            yield to_device(self._pipeline.batch(unstack(drawn, i)), self._device)

    @property
    def carry(self) -> Carry:
        """A copy of the training state."""
        copies = [_copied(member) for member in self._members]
        finite = torch.tensor([0.0 if _finite(found) else float("nan") for _, found in copies])
        members = np.empty(len(copies), object)
        members[:] = [member for member, _ in copies]
        return Carry(Objects(finite, members), self._key.clone(), torch.tensor(self._step))


def _copied(member: Member) -> tuple[Member, list[Any]]:
    """A deep copy, and every object copied for it."""
    memo: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(member, memo)
        # deepcopy leaves out gradients, which add to those of the next step; it keeps what it copied there
        for x in memo.get(id(memo), ()):
            if isinstance(x, Tensor) and x.is_leaf and x.grad is not None:
                memo[id(x)].grad = x.grad.clone()
        return copied, list(memo.values())
    except Exception as error:
        name = type(member.algorithm).__name__
        raise UserError(f"{name} cannot be copied to be evaluated: {error}") from error


def _finite(found: Sequence[Any]) -> bool:
    """Whether all parameters are finite; other tensors (masks, bounds) may be infinite."""
    learned = (
        x
        for x in found
        if isinstance(x, nn.Parameter) or (isinstance(x, Tensor) and x.requires_grad)
    )
    return all(bool(x.isfinite().all()) for x in learned)


# --- generators -----------------------------------------------------------------------------


@contextmanager
def _lent(member: Member, *, seed: int | None = None) -> Iterator[None]:
    """The process's generators in the member's states, or seeded; restored after the block."""
    generators = [torch.default_generator]
    if (device := torch.device(member.device)).type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = _states(generators)
    if seed is None:
        _restore(generators, member.generators)
    else:
        for generator in generators:
            generator.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)
    try:
        yield
    finally:
        member.generators = _states(generators)
        _restore(generators, before)


def _states(generators: Sequence[torch.Generator]) -> list[Any]:
    return [random.getstate(), np.random.get_state(), *(g.get_state() for g in generators)]


def _restore(generators: Sequence[torch.Generator], states: Sequence[Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    for generator, state in zip(generators, states[2:], strict=True):
        generator.set_state(state)
