"""Observation and action spaces, and their values as rows of numbers.

Data and environments are flattened by the same rules:

    Box          its numbers in C order
    Discrete     one-hot of n
    MultiBinary  its zeros and ones
    Dict         its entries one after another, by sorted key (goals included: `achieved_goal`,
                 `desired_goal`, `observation`)

MultiDiscrete, Tuple, Text, Sequence, Graph and images are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

from offbench.errors import UserError

# largest number of features, a bound on memory
_MOST = 1 << 24


@dataclass(frozen=True)
class Space:
    """A Gymnasium space as plain data."""

    kind: Literal["Box", "Discrete", "MultiBinary", "Dict"]
    shape: tuple[int, ...] = ()
    low: np.ndarray | None = None  # of a Box
    high: np.ndarray | None = None
    n: int = 0  # of a Discrete
    start: int = 0
    parts: Mapping[str, "Space"] = field(default_factory=dict)  # of a Dict, by sorted key

    @property
    def size(self) -> int:
        """Number of features of a flattened value."""
        if self.kind == "Dict":
            return sum(part.size for part in self.parts.values())
        return self.n if self.kind == "Discrete" else prod(self.shape)


def parse(content: Any, what: str) -> Space:
    """A space from Minari's JSON. Raises UserError naming `what` for an unsupported one."""
    if not isinstance(content, Mapping) or not isinstance(content.get("type"), str):
        raise UserError(f"{what} is no space")
    kind = content["type"]
    try:
        if kind == "Dict":
            parts = {str(k): parse(v, f"{what} {k!r}") for k, v in content["subspaces"].items()}
            space = Space("Dict", parts=dict(sorted(parts.items())))
        elif kind == "Box":
            space = _box(content, what)
        elif kind == "Discrete":
            space = Space("Discrete", n=int(content["n"]), start=int(content.get("start", 0)))
        elif kind == "MultiBinary":
            space = Space("MultiBinary", shape=tuple(np.atleast_1d(content["n"]).tolist()))
        else:
            raise UserError(
                f"{what} is of the kind {kind}, which is not supported (Box, Discrete, MultiBinary and Dict are)"
            )
        size = space.size
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{what}: invalid description of a {kind} ({error})") from None
    if not 0 < size <= _MOST:
        raise UserError(f"{what} has {size} features")
    return space


def _box(content: Mapping[str, Any], what: str) -> Space:
    shape = tuple(int(n) for n in content["shape"])
    if any(n < 0 for n in shape) or prod(shape) > _MOST:
        raise UserError(f"{what} has the shape {shape}")
    if content.get("dtype") == "uint8" and len(shape) == 3:
        raise UserError(
            f"{what} is an image {shape}, stored as JPEG; images are read from OGBench files only"
        )
    low, high = (np.array(content[key], np.float64) for key in ("low", "high"))
    for bound in (low, high):
        if bound.ndim and bound.shape != shape:
            raise UserError(f"{what} has bounds of shape {bound.shape}, not {shape}")
    return Space("Box", shape, np.broadcast_to(low, shape), np.broadcast_to(high, shape))


def of_gymnasium(space: Any, what: str) -> Space:
    """A space from a gymnasium one. Raises UserError naming `what` for an unsupported one."""
    kind = type(space).__name__
    if kind == "Dict":
        parts = {k: of_gymnasium(v, f"{what} {k!r}") for k, v in space.spaces.items()}
        return Space("Dict", parts=dict(sorted(parts.items())))
    if kind == "Box":
        return Space("Box", tuple(space.shape), space.low, space.high)
    if kind == "Discrete":
        return Space("Discrete", n=int(space.n), start=int(space.start))
    if kind == "MultiBinary":
        return Space("MultiBinary", shape=tuple(space.shape))
    raise UserError(f"{what} is of the kind {kind}, which is not supported")


def flatten(space: Space, value: Any, what: str) -> np.ndarray:
    """Values of T steps, arrays (T, ...) or mappings of them -> (T, size)."""
    if space.kind == "Dict":
        if not isinstance(value, Mapping) or set(value) != set(space.parts):
            raise UserError(f"{what} must have the entries {', '.join(space.parts)}")
        columns = [
            flatten(part, value[key], f"{what} {key!r}") for key, part in space.parts.items()
        ]
        if len({len(c) for c in columns}) > 1:
            raise UserError(f"{what}: entries differ in length: {[len(c) for c in columns]}")
        return np.concatenate(columns, axis=1)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{what} holds {array.dtype}, not numbers")
    if space.kind == "Discrete":
        return _one_hot(array, space, what)
    if array.ndim == 0 or array.shape[1:] != space.shape:
        raise UserError(
            f"{what} has the shape {array.shape}, its space (steps, {_list(space.shape)})"
        )
    return array.reshape(len(array), space.size)


def _one_hot(array: np.ndarray, space: Space, what: str) -> np.ndarray:
    number = array.reshape(-1) if array.ndim != 1 and array.size == len(array) else array
    index = number - space.start
    if (
        number.ndim != 1
        or not (np.equal(np.mod(index, 1), 0) & (index >= 0) & (index < space.n)).all()
    ):
        raise UserError(
            f"{what} must be one whole number a step, from {space.start} to {space.start + space.n - 1}"
        )
    return np.eye(space.n, dtype=np.float32)[index.astype(np.int64)]


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def check_action(space: Space, what: str) -> None:
    """Raises UserError where actions of the space cannot be scaled to [-1, 1]."""
    if space.kind == "Discrete":
        return
    if space.kind != "Box":
        raise UserError(f"{what} is a {space.kind}; actions must be a Box or Discrete")
    assert space.low is not None and space.high is not None
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UserError(f"{what} has no finite bounds, so actions cannot be scaled to [-1, 1]")
    if not (space.low < space.high).all():
        raise UserError(f"{what} has a lower bound that is not below its upper one")


def scale_action(space: Space, action: np.ndarray) -> np.ndarray:
    """Actions (T, A) scaled from the bounds of the space to [-1, 1]."""
    if space.kind == "Discrete":
        return action
    low, high = (np.asarray(b, np.float64).reshape(-1) for b in (space.low, space.high))
    if (low == -1).all() and (high == 1).all():
        return action
    return 2 * (action - low) / (high - low) - 1
