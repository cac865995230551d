"""What crosses between a pipeline, a method and an environment."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

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


class Batch(NamedTuple):
    obs: Tensor  # (B, O)
    action: Tensor  # (B, A)  in [-1, 1]
    reward: Tensor  # (B,)  discounted sum over the steps this element spans
    discount: Tensor  # (B,)  gamma ** steps spanned, 0 after a terminal: the whole bootstrap factor
    next_obs: Tensor  # (B, O)  observation at the end of the span
    extras: Any = ()  # dict of tensors that a view declares: next_action, valid, ...


def minibatch(batch: Batch, i: int) -> Batch:
    """The i-th of the minibatches of one update: (K, B, ...) -> (B, ...)."""
    return tree_map(lambda x: x[i], batch)


class Method(Protocol[State]):
    """Pure functions of one seed. A frozen keyword-only dataclass whose fields are hyper-parameters.

    `minibatches` is how many minibatches one `update` consumes (leading axis of the batch when
    more than 1): a delayed actor is `minibatches = 2`, not a counter.
    """

    minibatches: ClassVar[int] = 1

    def init(self, key: Key, spec: Spec) -> State: ...
    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]: ...
    def act(self, state: State, obs: Tensor, key: Key) -> Tensor: ...  # (E, O) -> (E, A)


class Policy(NamedTuple):
    """How stacked seeds act in vectorised environments: N seeds, E environments for each.

    `init(n_seeds, n_envs) -> carry`; `act(state, obs, first, carry, key) -> (action, carry)` with
    obs (N, E, O), first (N, E) bool (the first step of an episode), key (N, E) int64,
    action (N, E, A). `carry` is what the policy remembers; `first` is when it must forget.
    """

    init: Callable[[int, int], Any]
    act: Callable[[Any, Tensor, Tensor, Any, Tensor], tuple[Tensor, Any]]
