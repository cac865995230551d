"""What the checks share: a method's first state and batch, altered batches, comparison and blame."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from offbench import rng
from offbench.testing.fakes import fake_batch
from offbench.training.step import n_minibatches
from offbench.types import Batch, Method, Plan, Spec

Note = str | None
Check = Callable[..., Note]


def require(condition: bool, sentence: str) -> None:
    """Raises AssertionError(sentence) unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """An exception of the method becomes a sentence which says where it was raised."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        raise AssertionError(
            f"{what} raised {type(error).__name__}: {line}{_where(error)}"
        ) from error


def _where(error: Exception) -> str:
    """The line of the method's own code that raised an exception, where a file outside packages has it."""
    installed = (str(Path(__file__).parents[1]), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(installed) and "site-packages" not in frame.filename
    ]
    return f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""


def close(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Same structure and shapes, and values within a relative and absolute tolerance; nan equals nan."""
    if tree_structure(a) != tree_structure(b):
        return False
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    if tolerance == 0:
        return all(torch.equal(x, y) or _equal_with_nan(x, y) for x, y in pairs)
    return all(
        x.shape == y.shape
        and torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
        for x, y in pairs
    )


def _equal_with_nan(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


# what was computed for the method that was checked last
_remembered: list[tuple[Method, Spec, dict[Any, Any]]] = []


def remembered(method: Method, spec: Spec, what: Any, compute: Callable[[], Any]) -> Any:
    """`compute()`, or copies of what it returned when the last method was asked for `what` before."""
    if not (_remembered and _remembered[0][0] is method and _remembered[0][1] == spec):
        _remembered[:] = [(method, spec, {})]
    known = _remembered[0][2]
    if what not in known:
        known[what] = compute()
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, known[what])


def problem(method: Method, spec: Spec, *, seed: int = 0) -> tuple[Any, Batch, Tensor]:
    """The arguments of one update: a first state, a batch and a key of the method's own shapes."""

    def compute() -> tuple[Any, Batch, Tensor]:
        with naming("init"):
            state = method.init(rng.key(seed), spec)
        return state, batch_for(method, spec, seed=seed + 1), rng.key(seed + 2)

    return remembered(method, spec, ("problem", seed), compute)


def batch_for(method: Method, spec: Spec, *, seed: int = 0) -> Batch:
    """What one update of the method consumes."""
    needs = getattr(method, "needs", ())
    return fake_batch(spec, minibatches=n_minibatches(method), seed=seed, needs=needs)


def observations(method: Method, spec: Spec, n: int, *, seed: int = 0) -> Any:
    """Observations (n, ...) as `act` sees them: those of a batch."""
    batch = fake_batch(spec, size=max(n, 1), seed=seed, needs=getattr(method, "needs", ()))
    return tree_map(lambda x: x[:n], batch.obs)


def actions_of(made: Any) -> Tensor:
    """The actions of what `act` returned."""
    return made.action if isinstance(made, Plan) else made


def update_once(method: Method, state: Any, batch: Batch, key: Tensor) -> tuple[Any, dict]:
    """One update on copies, so that a method that writes into its inputs fails in one check only."""
    with naming("update"):
        return method.update(*tree_map(torch.clone, (state, batch, key)))


def describe(x: Any) -> str:
    return (
        f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
    )


def _as_wide(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))


def discounted(batch: Batch, factor: Tensor) -> Batch:
    """Every bootstrap factor of an element times `factor` (..., B), those of its prefixes too."""
    extras = dict(batch.extras or {})
    for name, x in extras.items():
        if name.endswith("_discount"):
            extras[name] = x * _as_wide(factor, x)
    return batch._replace(discount=batch.discount * factor, extras=extras or batch.extras)


def with_next_moved(batch: Batch, where: Tensor) -> Batch:
    """Every next observation of the elements in `where` (..., B) moved far away."""
    far = 7 * where.to(batch.next_obs.dtype)
    extras = dict(batch.extras or {})
    # those that a value is bootstrapped at
    for name in ("prefix_obs", "option_next_obs", "low_next_obs"):
        if name in extras:
            extras[name] = extras[name] + _as_wide(far, extras[name])
    return batch._replace(next_obs=batch.next_obs + far[..., None], extras=extras or batch.extras)


def rewarded(batch: Batch, reward: Tensor) -> Batch:
    """The batch with these rewards (..., B), those of its prefixes too."""
    extras = dict(batch.extras or {})
    for name, x in extras.items():
        if name.endswith("_reward"):
            extras[name] = _as_wide(reward, x).expand_as(x)
    return batch._replace(reward=reward, extras=extras or batch.extras)


def double(tree: Any) -> Any:
    """Copies in float64, where a difference of two gradients keeps ten digits."""
    return tree_map(lambda x: x.double() if x.is_floating_point() else x.clone(), tree)
