"""Ranges of settings: they stand on the fields of a method, and `check_ranges` holds its values to them.

A method writes

    lr: Positive = 3e-4

and calls `check_ranges(self)` in its `__post_init__`, which then holds in Python as on the command line.
"""

import functools
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from offbench.errors import UserError

Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
PolyakRate = Annotated[float, Gt(0), Le(1)]
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
    for name, rules in _ranges(settings.__class__).items():
        value = getattr(settings, name)
        numbers = value if isinstance(value, list | tuple) else (value,)
        known = [x for x in numbers if not (x is None or type(x).__module__ == "torch")]
        if not all(isinstance(x, int | float) and _holds(r, x) for x in known for r in rules):
            text = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
            words = f"{'widths of ' if isinstance(value, list | tuple) else ''}{_in_words(rules)}"
            raise UserError(f"{group}.{name}={text} must be {words}")


@functools.cache
def _ranges(cls: Any) -> dict[str, tuple[Ge | Gt | Le | Lt, ...]]:
    """Field -> what its annotation says of its value, or of each of its values."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: rules for name, hint in hints.items() if (rules := tuple(_rules(hint)))}


def _rules(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return [x for x in hint.__metadata__ if isinstance(x, Ge | Gt | Le | Lt)]
    return [rule for arg in get_args(hint) for rule in _rules(arg)]


def _holds(rule: Ge | Gt | Le | Lt, x: Any) -> bool:
    match rule:
        case Gt(low):
            return bool(x > low)
        case Ge(low):
            return bool(x >= low)
        case Lt(high):
            return bool(x < high)
    return bool(x <= rule.le)


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
