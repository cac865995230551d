"""What crosses between a pipeline, a method and an environment."""

from collections.abc import Callable
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench.errors import UserError

# Ranges of settings, on the fields of a method: `check_ranges` in its `__post_init__` holds them.
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
PolyakRate = Annotated[float, Gt(0), Le(1)]
# of dropping a unit
Probability = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
# a number of updates; 0: none
Steps = Annotated[int, Ge(0)]
Widths = tuple[Count, ...]

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
    obs: Tensor  # (B, O)
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

    `minibatches` is how many minibatches one `update` consumes (leading axis of the batch when
    more than 1): a delayed actor is `minibatches = 2`, not a counter. `needs` names what it reads
    from `batch.extras` (offbench/data/batch_extras.py), `actions` the kind of actions it learns. `act` returns
    actions, or a `Plan` where the method decides how many steps of a chunk are executed. A method may
    have `check(spec)`, which raises UserError for settings that do not fit the problem. One whose state
    has fields that one loss trains together, as an encoder and what reads it, names them in
    `trained_together`, groups of fields: offbench.testing takes any other such pair for a missing detach.

    A method with a critic may also have `value(state, obs, made) -> (E,)`: what its critics, put
    together as it does itself, say of executing what `act` made at obs. It is a discounted return on
    the rewards of the method's data, with whatever the method adds to it (an entropy, a penalty).
    Evaluation keeps it for the first decision of an episode; nothing depends on it.
    """

    minibatches: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    actions: ClassVar[Literal["continuous", "discrete"]] = "continuous"

    def init(self, key: Key, spec: Spec) -> State: ...
    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]: ...
    def act(self, state: State, obs: Tensor, key: Key) -> Tensor: ...  # (E, O) -> (E, A)


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
    reward: Callable[[float], float] = float
    gamma: float | None = None


def check_ranges(settings: Any, group: str = "method") -> None:
    """Raises UserError for a field of a dataclass that lies outside the range in its annotation.

    An update would not notice a negative learning rate, and no result survives one. Tensors, the
    values of a stack that an engine binds, were checked one by one when the stack was made.
    """
    for name, rules in _ranges(type(settings)).items():
        value = getattr(settings, name)
        numbers = value if isinstance(value, list | tuple) else (value,)
        known = [x for x in numbers if not (x is None or isinstance(x, Tensor))]
        if not all(isinstance(x, int | float) and _holds(r, x) for x in known for r in rules):
            text = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
            words = f"{'widths of ' if isinstance(value, list | tuple) else ''}{_in_words(rules)}"
            raise UserError(f"{group}.{name}={text} must be {words}")


@cache
def _ranges(cls: type) -> dict[str, tuple[Ge | Gt | Le | Lt, ...]]:
    """Field -> what its annotation says of its value, or of each of its values."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: rules for name, hint in hints.items() if (rules := tuple(_rules(hint)))}


def _rules(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return [x for x in hint.__metadata__ if isinstance(x, Ge | Gt | Le | Lt)]
    return [rule for arg in get_args(hint) for rule in _rules(arg)]


def _holds(rule: Ge | Gt | Le | Lt, x: float) -> bool:
    match rule:
        case Gt(low):
            return x > low
        case Ge(low):
            return x >= low
        case Lt(high):
            return x < high
    return x <= rule.le


def _in_words(rules: tuple[Ge | Gt | Le | Lt, ...]) -> str:
    match rules:
        case (Gt(low),):
            return f"above {low}"
        case (Ge(low),):
            return f"at least {low}"
        case (Ge(low) | Gt(low) as first, Le(high) | Lt(high) as last):
            opening, closing = "(["[isinstance(first, Ge)], ")]"[isinstance(last, Le)]
            return f"in {opening}{low}, {high}{closing}"
    return " and ".join(map(str, rules))
