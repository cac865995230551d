"""Values of settings: coercion to types, nested and dotted forms."""

import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from offbench.errors import UserError, unknown


def short_text(value: Any) -> str:
    """A value as written in labels, without spaces."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one of dotted keys; empty mappings stay values."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        here = out
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return out


def type_hints(cls: Any) -> dict[str, Any]:
    """Dotted field -> type of a nested settings dataclass."""
    out: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            out |= {f"{name}.{k}": v for k, v in type_hints(hint).items()}
        else:
            out[name] = hint
    return out


_hints = cache(get_type_hints)

_LARGEST = sys.float_info.max

# types whose every value is one of the type
_SCALARS = (int, bool, str)


def build_settings(cls: Any, values: Mapping[str, Any]) -> Any:
    """A settings dataclass from nested values, coerced to its types; others are left out."""
    hints = _hints(cls)
    arguments = {}
    for f in fields(cls):
        if f.name in values:
            value, hint = values[f.name], hints[f.name]
            arguments[f.name] = (
                build_settings(hint, value) if is_dataclass(hint) else coerce(value, hint, f.name)
            )
    return cls(**arguments)


def coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type, or a UserError naming `name`, the value and the type."""

    # most values, of sweeps of thousands
    if type(value) is hint and hint in _SCALARS and (hint is not int or abs(value) < 2**63):
        return value

    def bad() -> UserError:
        shown = "null" if value is None else repr(value)
        return UserError(f"{name}={shown} must be {_words(hint)}{_as_list(value, hint, name)}")

    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in (a for a in args if a is not type(None)):
            try:
                return coerce(value, arg, name)
            except UserError:
                continue
        raise bad()
    if origin is Literal:
        # yaml reads the words true and false as truth values
        value = str(value).lower() if isinstance(value, bool) else value
        if value not in args:
            raise UserError(f"{name}: {unknown('value', value, args)}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise bad()
        if args[0] in _SCALARS and {type(x) for x in value} <= {args[0]}:
            return tuple(value)
        return tuple(coerce(x, args[0], f"{name}[{i}]") for i, x in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise bad()
        return dict(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        # 10**400 has no float
        if not -_LARGEST <= value <= _LARGEST:
            raise UserError(f"{name}={value!r} must be a finite number"[:200])
        return float(value)
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            if abs(value) >= 2**63:
                raise UserError(f"{name}={value!r} must lie within 64 bits"[:200])
            return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint not in (int, float, bool, str):
        return value
    raise bad()


def is_list(hint: Any) -> bool:
    """Whether values of a type are lists, or null."""
    return all(get_origin(kind) in (tuple, list) for kind in _kinds(hint))


def _kinds(hint: Any) -> list[Any]:
    """The types of a union but for null, or the type itself."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [kind for kind in kinds if kind is not type(None)]


def _as_list(value: Any, hint: Any, name: str) -> str:
    """How one value is written where a list is needed: ", as in seeds=[0]"."""
    if not is_list(hint) or isinstance(value, list | tuple | Mapping) or value is None:
        return ""
    kind = _kinds(hint)[0]
    try:
        coerce(value, get_args(kind)[0], name)
    except UserError:
        return ""
    return f", as in {name}=[{value}]"


def _words(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "settings, as in {key: value}"
    if origin in (tuple, list):
        return f"a list of {_words(args[0]).removeprefix('a ')}s"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    return names.get(hint, str(hint))
