"""Types shared by data pipelines, methods and environments."""

from collections.abc import Callable
from typing import (
    Any,
    NamedTuple,
    Protocol,
    SupportsFloat,
    TypeVar,
)

from torch import Tensor
from torch.utils._pytree import tree_map

Key = Tensor  # () int64, see rng.py
Metrics = dict[str, Tensor]  # scalars on the device
State = TypeVar("State")


class Spec(NamedTuple):
    """The problem a method sees: sizes, and the discount for methods that sample from the future."""

    obs_dim: int
    action_dim: int
    gamma: float
    max_episode_steps: int
    # actions are one-hot rows of `action_dim` choices
    discrete: bool = False
    # environment steps in one action: `action_dim` is `chunk` times the environment's
    chunk: int = 1
    # steps in the `Context` that takes the place of an observation; 0: none does
    context: int = 0


class Context(NamedTuple):
    """Up to K consecutive steps of an episode, in order; what lies beyond them is padding of zeros.

    The padding is on the right: with causal attention no step sees it.
    """

    obs: Tensor  # (B, K, O)
    action: Tensor  # (B, K, A)  while acting, that of the last step is yet to come: zeros
    return_to_go: Tensor  # (B, K)  scaled; while acting, the target less what was received
    timestep: Tensor  # (B, K) int64, counted from the start of the episode
    valid: Tensor  # (B, K) bool: which are steps


class Batch(NamedTuple):
    # (B, O) Tensor; under a windowed view the `Context` of the steps
    obs: Any
    action: Tensor  # (B, A)  in [-1, 1]
    reward: Tensor  # (B,)  discounted sum over the steps this element spans
    discount: Tensor  # (B,)  gamma ** steps spanned, 0 after a terminal: the whole bootstrap factor
    next_obs: Tensor  # (B, O)  observation at the end of the span
    # dict of tensors that a view or a method's `needs` adds: offbench/data/batch_extras.py
    extras: Any = ()


def minibatch(batch: Batch, i: int) -> Batch:
    """The i-th of the minibatches of one update: (K, B, ...) -> (B, ...)."""
    return tree_map(lambda x: x[i], batch)


class Method(Protocol[State]):
    """Pure functions of one seed. A frozen keyword-only dataclass whose fields are hyper-parameters.

    `act` returns actions, or a `Plan` where the method decides how many steps of a chunk are executed.

    A method may have class variables: `minibatches`, how many minibatches one `update` consumes
    (default 1; when more, the leading axis of the batch): a delayed actor is `minibatches = 2`, not a
    counter; `needs`, names of what it reads from `batch.extras` (default none;
    offbench/data/batch_extras.py); `actions`, the kind it learns, "continuous" (default) or "discrete".
    It may have `check(spec)`, which raises UserError for settings that do not fit the problem. One whose state
    has fields that one loss trains together, as an encoder and what reads it, names them in
    `trained_together`, groups of fields: offbench.testing takes any other such pair for a missing detach.

    A method with a critic may also have `value(state, obs, action) -> (E,)`: what its critics, put
    together as it does itself, say of executing `action`, what `act` gave at obs (a `Plan` of a method of chunks). It is a discounted return on
    the rewards of the method's data, with whatever the method adds to it (an entropy, a penalty).
    Evaluation keeps it for the first decision of an episode; nothing depends on it.
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
    """What environments show a policy: N seeds, E environments for each."""

    obs: Any  # (N, E, O); a view may make it a tree, for instance of the last steps
    reward: Tensor  # (N, E) of the step before, as the data of the method have it; 0 at the first
    first: Tensor  # (N, E) bool: the first step of an episode


class Policy(NamedTuple):
    """How stacked seeds act in vectorised environments.

    `init(n_seeds, n_envs) -> carry`; `act(state, step, carry, key) -> (action, carry)` with key
    (N, E) int64 and action (N, E, A). `carry` is what the policy remembers, a tree whose tensors
    begin with (N, E); `step.first` is when it must forget.

    `reward` and `gamma` are the units of its method's values: a raw reward as the method's data have
    it, and the discount per environment step; no discount where the method has no values.
    """

    init: Callable[[int, int], Any]
    act: Callable[[Any, TimeStep, Any, Tensor], tuple[Any, Any]]
    reward: Callable[[SupportsFloat], float] = float
    gamma: float | None = None
