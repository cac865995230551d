"""Types shared by data pipelines, methods and environments."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, SupportsFloat, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Key = Tensor  # () int64, see rng.py
Metrics = dict[str, Tensor]  # scalars on the device
State = TypeVar("State")


class Spec(NamedTuple):
    """The problem a method is built for: sizes, discount, time limit."""

    obs_dim: int
    action_dim: int
    gamma: float
    max_episode_steps: int
    # actions are one-hot rows of `action_dim` choices
    discrete: bool = False
    # environment steps in one action: `action_dim` is `chunk` times the environment's
    chunk: int = 1
    # context length in steps; 0 for Markovian policies
    context: int = 0
    # numbers of the goal, at the end of an observation; 0 without goals
    goal_dim: int = 0


class Context(NamedTuple):
    """A window of up to K consecutive steps of an episode, padded with zeros on the right.

    With causal attention no step attends to the padding.
    """

    obs: Tensor  # (B, K, O)
    action: Tensor  # (B, K, A)  while acting, zeros at the last step
    return_to_go: Tensor  # (B, K)  scaled; while acting, target minus the rewards received
    timestep: Tensor  # (B, K) int64, counted from the start of the episode
    valid: Tensor  # (B, K) bool: not padding


class Batch(NamedTuple):
    """A minibatch of B elements: transitions, n-step returns, chunks or windows."""

    # (B, O) Tensor; under a windowed view a `Context`
    obs: Any
    action: Tensor  # (B, A)  in [-1, 1]
    reward: Tensor  # (B,)  discounted sum over the steps this element spans
    discount: Tensor  # (B,)  gamma ** steps spanned, 0 after a terminal: the whole bootstrap factor
    next_obs: Tensor  # (B, O)  observation at the end of the span
    # dict of tensors that a view or a method's `needs` adds: offbench/data/batch_extras.py
    extras: Any = ()


def minibatch(batch: Batch, i: int) -> Batch:
    """The i-th minibatch of an update: (K, B, ...) -> (B, ...)."""
    return tree_map(lambda x: x[i], batch)


class Method(Protocol[State]):
    """A learning algorithm as pure functions of one seed: a frozen keyword-only dataclass of hyper-parameters.

    `act` returns actions, or a `Plan` where the method decides how many steps of a chunk are executed.

    A method may have class variables: `minibatches`, how many minibatches one `update` consumes
    (default 1; when more, the leading axis of the batch): a delayed actor is `minibatches = 2`, not a
    counter; `needs`, names of what it reads from `batch.extras` (default none;
    offbench/data/batch_extras.py); `actions`, the kind it learns, "continuous" (default) or "discrete".
    It may have `check(spec)`, which raises UserError for settings that do not fit the problem. Fields of the
    state that one loss trains together, as an encoder and its head, are listed in `trained_together`
    as groups of names: offbench.testing reports any other such pair as a missing detach.

    A method with a critic may also have `value(state, obs, action) -> (E,)`: what its critics,
    combined as in its update, estimate for `action`, the result of `act` at obs (a `Plan` for methods of
    chunks): a discounted return on the transformed rewards, with the terms that the method adds (an
    entropy, a penalty). Evaluation records it for the first decision of an episode; nothing depends on it.

    A method that learns a Gaussian policy may also have `gaussian_policy(state, obs) -> (mean, log_std)`, (E, A) each
    or log_std (A,), before any squashing: `offbench diagnose --consistency` compares seeds by it.

    A method that decides how many steps are executed may also have `act_for(state, obs, key, length) -> Plan`:
    what it does where it must execute `length` steps. `offbench diagnose` compares with such policies.
    """

    def init(self, key: Key, spec: Spec) -> State: ...
    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]: ...

    # (E, O) -> (E, A); under a windowed view obs is a `Context`
    def act(self, state: State, obs: Any, key: Key) -> "Tensor | Plan": ...


class Plan(NamedTuple):
    """A chunk of actions of which the first `length` environment steps are executed."""

    action: Tensor  # (E, chunk * A)
    length: Tensor  # (E,) int64, 1 to chunk


class TimeStep(NamedTuple):
    """Observations of vectorised environments at one step: N seeds, E environments each."""

    obs: Any  # (N, E, O); a view may make it a tree, for instance of the last steps
    reward: Tensor  # (N, E) of the step before, transformed as in the data; 0 at the first
    first: Tensor  # (N, E) bool: the first step of an episode

    @classmethod
    def begin(cls, obs: Tensor) -> "TimeStep":
        """The first step of episodes, at observations (N, E, O)."""
        first = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
        return cls(obs, torch.zeros(first.shape, device=obs.device), first)


class Policy(NamedTuple):
    """A policy of stacked seeds in vectorised environments.

    `init(n_seeds, n_envs) -> memory`; `act(state, step, memory, key) -> (action, memory)` with key
    (N, E) int64 and action (N, E, A). `memory` is the policy's recurrent state, a pytree of tensors
    (N, E, ...), to be reset where `step.first`.

    `reward` transforms a raw reward as the method's data were; `gamma` is the discount per environment
    step, None where the method has no `value`.
    """

    init: Callable[[int, int], Any]
    act: Callable[[Any, TimeStep, Any, Tensor], tuple[Any, Any]]
    reward: Callable[[SupportsFloat], float] = float
    gamma: float | None = None
