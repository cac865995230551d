"""Ranges of settings: they stand on the fields of a method, and `check_ranges` holds its values to them.

A method writes

    lr: Positive = 3e-4

and calls `check_ranges(self)` in its `__post_init__`, which then holds in Python as on the command line.
Bounds of the package annotated_types, which have the same names, are read as well.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from offbench.errors import UserError


@dataclass(frozen=True)
class Ge:
    """At least."""

    ge: float


@dataclass(frozen=True)
class Gt:
    """Above."""

    gt: float


@dataclass(frozen=True)
class Le:
    """At most."""

    le: float


@dataclass(frozen=True)
class Lt:
    """Below."""

    lt: float


_KINDS: dict[str, Callable[[Any], Any]] = {kind.__name__: kind for kind in (Ge, Gt, Le, Lt)}
Rule = Ge | Gt | Le | Lt
Tests = tuple[tuple[Callable[[Any, Any], bool], Any], ...]

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
PolyakRate = Annotated[float, Gt(0), Le(1)]
Discount = Annotated[float, Ge(0), Le(1)]
# of dropping a unit
Probability = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
# a number of updates; 0: none
Steps = Annotated[int, Ge(0)]
Widths = tuple[Count, ...]


def check_ranges(settings: Any, group: str = "method") -> None:
    """Raises UserError for a field of a dataclass that lies outside the range in its annotation.

    An update would not notice a negative learning rate, and no result survives one. Tensors, the
    values of a stack that an engine binds, were checked one by one when the stack was made.
    """
    _check(
        settings.__class__,
        {name: getattr(settings, name) for name in _ranges(settings.__class__)},
        group,
    )


def check_options(function: Callable[..., Any], options: Mapping[str, Any], group: str) -> None:
    """Raises UserError for an option of a function that lies outside the range in its annotation."""
    _check(function, options, group)


def _check(described: Any, values: Mapping[str, Any], group: str) -> None:
    for name, (rules, tests) in _ranges(described).items():
        if name not in values:
            continue
        value = values[name]
        # a plain number, as most are
        if type(value) in (int, float) and all([holds(value, bound) for holds, bound in tests]):
            continue
        numbers = value if isinstance(value, list | tuple) else (value,)
        known = [x for x in numbers if not (x is None or type(x).__module__ == "torch")]
        if not all(isinstance(x, int | float) and all(h(x, y) for h, y in tests) for x in known):
            text = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
            words = f"{'widths of ' if isinstance(value, list | tuple) else ''}{_in_words(rules)}"
            raise UserError(f"{group}.{name}={text} must be {words}")


@functools.cache
def _ranges(described: Any) -> dict[str, tuple[tuple[Rule, ...], Tests]]:
    """Field of a class, or parameter of a function -> what its annotation says of its value, or of each of its values, and the same as tests."""
    hints = get_type_hints(described, include_extras=True)
    found = {name: rules for name, hint in hints.items() if (rules := tuple(_rules(hint)))}
    return {name: (rules, tuple(map(_test, rules))) for name, rules in found.items()}


def _rules(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        named = [(x, type(x).__name__) for x in hint.__metadata__]
        return [_KINDS[name](getattr(x, name.lower())) for x, name in named if name in _KINDS]
    return [rule for arg in get_args(hint) for rule in _rules(arg)]


def _test(rule: Rule) -> tuple[Callable[[Any, Any], bool], Any]:
    """(comparison, bound) of a rule."""
    name = type(rule).__name__.lower()
    return getattr(operator, name), getattr(rule, name)


def _in_words(rules: tuple[Rule, ...]) -> str:
    match rules:
        case (Gt(low),):
            return f"above {low}"
        case (Ge(low),):
            return f"at least {low}"
        case (Ge(low) | Gt(low) as first, Le(high) | Lt(high) as last):
            opening, closing = "(["[isinstance(first, Ge)], ")]"[isinstance(last, Le)]
            return f"in {opening}{low}, {high}{closing}"
    return " and ".join(map(str, rules))
