"""Ids of data sets composed of other data sets.

    mix@0.05@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2     5 % expert, the rest random, seed 0
    truncate@10k:d4rl/hopper-medium-v2                         the first 10,000 transitions
    subset@rows@100k@0:ID      whole episodes in random order, seed 0, cut to 100,000 transitions
    subset@episodes@20@0:ID    20 episodes at random, seed 0
    subset@top@10%:ID          the tenth of the episodes with the highest returns (bottom: the lowest)
    subset@return@0@1500:ID    episodes with a return in [0, 1500]
    noise@reward@0.1@0:ID      Gaussian, in units of the standard deviation (obs: of each dimension)

An id is an operation, its arguments after `@`, then as many ids after `:` as the operation takes;
these may be compositions themselves. It needs no quotes in a shell or in Hydra. `str(parse(id))` is
its canonical form, in which a number has one spelling. `offbench.data.compose`
builds the arrays, a function of the id and of the arrays of the parts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from offbench.errors import UserError, unknown

_MAX_DEPTH = 8


@dataclass(frozen=True)
class Composition:
    """A parsed id: one operation on parts, each a composition or the id of a set."""

    op: str
    args: tuple[str | int | float, ...]
    parts: "tuple[Composition | str, ...]"

    def __str__(self) -> str:
        return ":".join(["@".join([self.op, *map(spell, self.args)]), *map(str, self.parts)])

    @property
    def leaves(self) -> tuple[str, ...]:
        """Ids of all sets in it, each once, in order."""
        found: list[str] = []
        for part in self.parts:
            found += part.leaves if isinstance(part, Composition) else [part]
        return tuple(dict.fromkeys(found))

    def renamed(self, name: Callable[[str], str]) -> "Composition":
        """The composition with each id of a set mapped by `name`."""
        parts = (p.renamed(name) if isinstance(p, Composition) else name(p) for p in self.parts)
        return Composition(self.op, self.args, tuple(parts))

    @property
    def base(self) -> str:
        """The first set, whose environment and score the composition has."""
        return self.leaves[0]


def spell(value: str | int | float) -> str:
    """The canonical spelling of an argument."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class _Op(NamedTuple):
    parts: int
    usage: str
    read: Callable[[list[str]], tuple[str | int | float, ...]]


class _Wrong(ValueError):
    pass


def is_composed(dataset_id: str) -> bool:
    """Whether an id is that of a composition, well formed or not."""
    head = dataset_id.partition(":")[0]
    return "@" in head and head.partition("@")[0] in OPERATIONS


def parse(dataset_id: str) -> Composition | str:
    """The composition of an id; a plain id is returned as it is. UserError for a malformed one."""
    if not is_composed(dataset_id):
        operation = re.match(r"([a-z]+)@", dataset_id)
        if operation is not None and ":" in dataset_id:
            raise unknown("operation", operation[1], OPERATIONS)
        return dataset_id
    tokens = dataset_id.split(":")
    parsed, left = _parse(tokens, dataset_id, 0)
    if left:
        raise UserError(f"{dataset_id!r}: {left[0]!r} is one part too many")
    return parsed


def _parse(tokens: list[str], whole: str, depth: int) -> tuple[Composition | str, list[str]]:
    if depth > _MAX_DEPTH:
        raise UserError(f"{whole!r}: nested more than {_MAX_DEPTH} deep")
    if not tokens or not tokens[0]:
        raise UserError(f"{whole!r}: an id is missing at the end or between two colons")
    head, rest = tokens[0], tokens[1:]
    if "@" not in head:
        return head, rest
    name, *args = head.split("@")
    if name not in OPERATIONS:
        raise unknown("operation", name, OPERATIONS)
    op = OPERATIONS[name]
    try:
        values = op.read(args)
    except (_Wrong, ValueError, IndexError) as error:
        words = f": {error}" if isinstance(error, _Wrong) else ""
        raise UserError(
            f"{whole!r}: cannot read {head!r}{words}; it is written {op.usage}"
        ) from None
    parts = []
    for _ in range(op.parts):
        part, rest = _parse(rest, whole, depth + 1)
        parts.append(part)
    return Composition(name, values, tuple(parts)), rest


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value <= 1:
        raise _Wrong(f"{text} is not a share between 0 and 1")
    return float(f"{value:.12g}")


def _count(text: str) -> int:
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    value = float(text[:-1] if scale > 1 else text) * scale
    if not value.is_integer() or value < 1:
        raise _Wrong(f"{text} is not a positive whole number")
    return int(value)


def _seed(args: list[str], at: int) -> int:
    """The optional last argument, 0 where it is left out."""
    if len(args) > at + 1:
        raise _Wrong("too many arguments")
    text = args[at] if len(args) > at else "0"
    if not text.isdecimal():
        raise _Wrong(f"{text!r} is not a seed")
    return int(text)


def _read_mix(args: list[str]) -> tuple[str | int | float, ...]:
    return _share(args[0]), _seed(args, 1)


def _read_truncate(args: list[str]) -> tuple[str | int | float, ...]:
    (rows,) = args
    return (_count(rows),)


def _read_subset(args: list[str]) -> tuple[str | int | float, ...]:
    by = args[0]
    if by in ("rows", "episodes"):
        return by, _count(args[1]), _seed(args, 2)
    if by in ("top", "bottom"):
        (_, share) = args
        return by, _share(share)
    if by == "return":
        (_, low, high) = args
        if not float(low) <= float(high):
            raise _Wrong(f"{low} to {high} is no interval")
        return by, float(low), float(high)
    raise _Wrong(f"{by!r} is none of rows, episodes, top, bottom, return")


def _read_noise(args: list[str]) -> tuple[str | int | float, ...]:
    on, scale = args[0], float(args[1])
    if on not in ("reward", "obs"):
        raise _Wrong(f"{on!r} is neither reward nor obs")
    if not 0 < scale < float("inf"):
        raise _Wrong(f"{args[1]} is not a positive scale")
    return on, scale, _seed(args, 2)


EXAMPLE = "mix@0.05@0:GOOD:OTHER"
OPERATIONS: Mapping[str, _Op] = MappingProxyType(
    {
        "mix": _Op(2, "mix@SHARE@SEED:GOOD:OTHER", _read_mix),
        "truncate": _Op(1, "truncate@ROWS:ID", _read_truncate),
        "subset": _Op(
            1,
            "subset@rows@N@SEED:ID, subset@episodes@N@SEED:ID, subset@top@SHARE:ID, "
            "subset@bottom@SHARE:ID or subset@return@LOW@HIGH:ID",
            _read_subset,
        ),
        "noise": _Op(
            1,
            "noise@reward@SCALE@SEED:ID or noise@obs@SCALE@SEED:ID",
            _read_noise,
        ),
    }
)

MIXED: Mapping[str, str] = MappingProxyType(
    {
        f"mixed/{env}-random-{good}-{percent}-v2": (
            f"mix@{percent / 100:g}@0:d4rl/{env}-{good}-v2:d4rl/{env}-random-v2"
        )
        for good in ("medium", "expert")
        for percent in (1, 5, 10, 50)
        for env in ("ant", "halfcheetah", "hopper", "walker2d")
    }
)
"""The 32 mixed sets of the trajectory-weighting benchmark (Hong et al. 2023), by name."""
