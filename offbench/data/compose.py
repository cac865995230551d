"""Data sets made of other data sets, each with an id that says how.

    mix@0.05@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2     5 % expert, the rest random, seed 0
    truncate@10k:d4rl/hopper-medium-v2                         the first 10,000 transitions
    subset@rows@100k@0:ID      whole episodes in random order, seed 0, cut to 100,000 transitions
    subset@episodes@20@0:ID    20 episodes at random, seed 0
    subset@top@10%:ID          the tenth of the episodes with the highest returns (bottom: the lowest)
    subset@return@0@1500:ID    episodes with a return in [0, 1500]
    noise@reward@0.1@0:ID      Gaussian, in units of the standard deviation (obs: of each dimension)

An id is an operation, its arguments after `@`, then as many ids after `:` as the operation takes;
these may be compositions themselves. It needs no quotes in a shell or in Hydra. `str(parse(id))` is
its canonical form, in which a number has one spelling. The arrays are a function of the id and of
the arrays of the parts.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offbench.data.replay import ReplayData, episode_returns, fingerprint, first_rows
from offbench.errors import UserError, unknown

Load = Callable[[str], ReplayData]
_MAX_DEPTH = 8


# --- ids ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composition:
    """One operation on parts; a part is a composition or the id of a set."""

    op: str
    args: tuple[str | int | float, ...]
    parts: "tuple[Composition | str, ...]"

    def __str__(self) -> str:
        return ":".join(["@".join([self.op, *map(_spell, self.args)]), *map(str, self.parts)])

    @property
    def leaves(self) -> tuple[str, ...]:
        """Ids of the sets it is made of, each once, in order."""
        found: list[str] = []
        for part in self.parts:
            found += part.leaves if isinstance(part, Composition) else [part]
        return tuple(dict.fromkeys(found))

    def renamed(self, name: Callable[[str], str]) -> "Composition":
        """With the id of each set replaced by what `name` gives for it."""
        parts = (p.renamed(name) if isinstance(p, Composition) else name(p) for p in self.parts)
        return Composition(self.op, self.args, tuple(parts))

    @property
    def base(self) -> str:
        """The set whose environment and score it is judged by: the first."""
        return self.leaves[0]


def _spell(value: str | int | float) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class _Op(NamedTuple):
    parts: int
    usage: str
    read: Callable[[list[str]], tuple[str | int | float, ...]]
    build: "Callable[..., _Made]"


class _Wrong(ValueError):
    pass


def is_composed(dataset_id: str) -> bool:
    """Whether an id is that of a composition, well formed or not."""
    head = dataset_id.partition(":")[0]
    return "@" in head and head.partition("@")[0] in OPERATIONS


def parse(dataset_id: str) -> Composition | str:
    """The composition an id spells out, or the id itself if it is a plain one. UserError if broken."""
    if not is_composed(dataset_id):
        operation = re.match(r"([a-z]+)@", dataset_id)
        if operation is not None and ":" in dataset_id:
            raise unknown("operation", operation[1], OPERATIONS)
        return dataset_id
    tokens = dataset_id.split(":")
    made, left = _parse(tokens, dataset_id, 0)
    if left:
        raise UserError(f"{dataset_id!r}: {left[0]!r} is one part too many")
    return made


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


# --- sets -----------------------------------------------------------------------------------


class _Made(NamedTuple):
    data: ReplayData
    origin: NDArray[np.int64]  # (E, 3) of each episode: the part, its episode there, steps kept


@dataclass(frozen=True)
class Composed:
    """A composed set: usable wherever a loaded one is."""

    id: str  # canonical
    data: ReplayData
    index: NDArray[np.int64]  # (E, 3) of each episode: the part, its episode there, steps kept
    card: Mapping[str, Any]


def build(dataset_id: str, load: Load) -> Composed:
    """Make a composed set; `load` gives the arrays of a plain id.

    Raises UserError where the id is none, and where the parts do not go together.
    """
    made = parse(dataset_id)
    if isinstance(made, str):
        raise UserError(f"{dataset_id!r} is not a composition; they are written like {EXAMPLE}")
    parts = {name: load(name) for name in made.leaves}
    return _build(made, parts.__getitem__)


def _build(what: Composition, load: Load) -> Composed:
    parts, facts = [], []
    for part in what.parts:
        if isinstance(part, Composition):
            inner = _build(part, load)
            parts.append(inner.data)
            facts.append(dict(inner.card))
        else:
            parts.append(load(part))
            facts.append({"id": part, "sha256": fingerprint(parts[-1])})
    _same_shape(what, parts)
    data, index = OPERATIONS[what.op].build(parts, *what.args, name=str(what))
    returns = episode_returns(data)
    card = {
        "id": str(what),
        "summary": _summary(what),
        "operation": what.op,
        "arguments": list(what.args),
        "parts": facts,
        "base": what.base,
        "rows": data.n_transitions,
        "episodes": data.n_episodes,
        "rows_from": [int(index[index[:, 0] == i, 2].sum()) for i in range(len(parts))],
        "returns": {
            "min": float(returns.min()),
            "mean": float(returns.mean()),
            "max": float(returns.max()),
        },
        "sha256": fingerprint(data),
    }
    return Composed(str(what), data, index, MappingProxyType(card))


def _summary(what: Composition) -> str:
    names, args = [str(p) for p in what.parts], [_spell(a) for a in what.args]
    if what.op == "mix":
        return (
            f"{what.args[0]:.4g} of the transitions from {names[0]} (whole trajectories, drawn with "
            f"replacement), the rest from {names[1]}; seed {args[1]}"
        )
    return f"{what.op} {' '.join(args)} of {names[0]}"


def _same_shape(what: Composition, parts: list[ReplayData]) -> None:
    shapes = {(p.obs.shape[1], p.action.shape[1]) for p in parts}
    if len(shapes) > 1:
        sizes = ", ".join(
            f"{p} {d.obs.shape[1]}+{d.action.shape[1]}" for p, d in zip(what.parts, parts)
        )
        raise UserError(f"{what}: the parts differ in dimensions ({sizes})")


def take(
    data: ReplayData, episodes: NDArray[np.integer], steps: NDArray[np.integer] | None = None
) -> ReplayData:
    """Episodes by number, in the order given, repeats allowed; of each the first `steps`.

    An episode that is cut keeps the observation it is cut at and bootstraps there.
    """
    firsts = first_rows(data).numpy()
    lasts = data.last.numpy()[firsts]
    start, full = firsts[episodes], (lasts - firsts)[episodes]
    steps = full if steps is None else np.minimum(np.asarray(steps, np.int64), full)
    size = steps + 1
    stop = np.cumsum(size)
    row = np.repeat(start - np.r_[0, stop[:-1]], size) + np.arange(stop[-1])
    end = torch.from_numpy(np.repeat(stop - 1, size))
    number = torch.from_numpy(np.repeat(np.arange(len(size)), size))
    rows = torch.from_numpy(row)
    action, reward, terminal = data.action[rows], data.reward[rows], data.terminal[rows]
    padding = torch.from_numpy(stop - 1)
    action[padding], reward[padding], terminal[padding] = 0.0, 0.0, False
    return ReplayData(data.obs[rows], action, reward, terminal, end, number)


def lengths(data: ReplayData) -> NDArray[np.int64]:
    """(E,) steps of each episode."""
    firsts = first_rows(data)
    return (data.last[firsts] - firsts).numpy()


def join(parts: list[ReplayData]) -> ReplayData:
    """One set after another."""
    rows = np.cumsum([0, *(len(p.last) for p in parts)])[:-1].tolist()
    episodes = np.cumsum([0, *(p.n_episodes for p in parts)])[:-1].tolist()
    moved = [
        p._replace(last=p.last + r, episode=p.episode + e) for p, r, e in zip(parts, rows, episodes)
    ]
    return ReplayData(*(torch.cat(column) for column in zip(*moved)))


def mix(
    good: ReplayData, other: ReplayData, share: float, seed: int, *, name: str = "mix"
) -> _Made:
    """`share` of N transitions from `good`, the rest from `other`, N the transitions of `good`.

    Whole trajectories of `good` are drawn with replacement until they hold `share * N`
    transitions, then whole ones of `other`, in random order (each once before any comes again),
    until there are N: the construction of Hong et al. (2023), in which a share is of transitions,
    not of trajectories. Good trajectories come first.
    """
    rng = np.random.default_rng(seed)
    n = good.n_transitions
    lucky = _draw(lengths(good), round(share * n, 6), lambda size: rng.integers(size, size=size))
    held = int(lengths(good)[lucky].sum())
    filler = _draw(lengths(other), n - held, rng.permutation)
    index = np.concatenate(
        [
            np.stack([np.full(len(chosen), i), chosen, lengths(part)[chosen]], axis=1)
            for i, (part, chosen) in enumerate([(good, lucky), (other, filler)])
        ]
    )
    chosen = [take(p, c) for p, c in ((good, lucky), (other, filler)) if len(c)]
    return _Made(join(chosen), index.astype(np.int64))


def _draw(
    sizes: NDArray[np.int64], wanted: float, draw: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Episodes drawn in batches until they hold `wanted` transitions, and none after that."""
    chosen = np.zeros(0, np.int64)
    while sizes[chosen].sum() < wanted:
        chosen = np.concatenate([chosen, draw(len(sizes))])
    before = np.cumsum(sizes[chosen]) - sizes[chosen]
    return chosen[before < wanted]


def truncate(data: ReplayData, rows: int, *, name: str = "truncate") -> _Made:
    """The first `rows` transitions in order; the last episode may be cut."""
    return _first(data, np.arange(data.n_episodes), rows, name)


def _first(data: ReplayData, order: NDArray[np.integer], rows: int, name: str) -> _Made:
    if rows > data.n_transitions:
        raise UserError(f"{name}: there are only {data.n_transitions} transitions, not {rows}")
    sizes = lengths(data)[order]
    before = np.cumsum(sizes) - sizes
    order, steps = order[before < rows], np.minimum(sizes, rows - before)[before < rows]
    return _kept(data, order, steps)


def _kept(
    data: ReplayData, episodes: NDArray[np.integer], steps: NDArray[np.integer] | None = None
) -> _Made:
    steps = lengths(data)[episodes] if steps is None else steps
    index = np.stack([np.zeros(len(episodes)), episodes, steps], axis=1).astype(np.int64)
    return _Made(take(data, episodes, steps), index)


def subset(data: ReplayData, by: str, *args: float, name: str = "subset") -> _Made:
    """Some episodes: `rows` or `episodes` (count, seed), `top` or `bottom` (share by return), or
    those with a `return` in [low, high]. Whole ones, but for the last of `rows`."""
    n = data.n_episodes
    if by in ("rows", "episodes"):
        count, seed = int(args[0]), int(args[1])
        order = np.random.default_rng(seed).permutation(n)
        if by == "rows":
            return _first(data, order, count, name)
        if count > n:
            raise UserError(f"{name}: there are only {n} episodes, not {count}")
        return _kept(data, np.sort(order[:count]))
    values = episode_returns(data).numpy()
    if by == "return":
        low, high = args
        chosen = np.flatnonzero((values >= low) & (values <= high))
        if not len(chosen):
            raise UserError(
                f"{name}: no return lies there; they go from {values.min():g} to {values.max():g}"
            )
        return _kept(data, chosen)
    ranked = np.argsort(values if by == "bottom" else -values, kind="stable")
    return _kept(data, np.sort(ranked[: max(1, round(args[0] * n))]))


def noise(data: ReplayData, on: str, scale: float, seed: int, *, name: str = "noise") -> _Made:
    """Gaussian noise on every recorded `reward` or on every recorded observation (`obs`), once:
    an observation is the same as an end of one step and as the start of the next."""
    rng = np.random.default_rng(seed)
    index = _kept(data, np.arange(data.n_episodes)).origin
    if on == "obs":
        spread = data.obs.double().std(0, correction=0) * scale
        drawn = torch.from_numpy(rng.standard_normal(tuple(data.obs.shape), dtype=np.float32))
        return _Made(data._replace(obs=drawn.mul_(spread.float()).add_(data.obs)), index)
    spread = data.reward[data.valid].double().std(correction=0) * scale
    drawn = torch.from_numpy(rng.standard_normal(len(data.reward), dtype=np.float32))
    noisy = torch.where(data.valid, data.reward + drawn * spread.float(), data.reward)
    return _Made(data._replace(reward=noisy), index)


def _on_parts(operation: Callable[..., _Made]) -> Callable[..., _Made]:
    return lambda parts, *args, name: operation(*parts, *args, name=name)


EXAMPLE = "mix@0.05@0:GOOD:OTHER"
OPERATIONS: Mapping[str, _Op] = MappingProxyType(
    {
        "mix": _Op(2, "mix@SHARE@SEED:GOOD:OTHER", _read_mix, _on_parts(mix)),
        "truncate": _Op(1, "truncate@ROWS:ID", _read_truncate, _on_parts(truncate)),
        "subset": _Op(
            1,
            "subset@rows@N@SEED:ID, subset@episodes@N@SEED:ID, subset@top@SHARE:ID, "
            "subset@bottom@SHARE:ID or subset@return@LOW@HIGH:ID",
            _read_subset,
            _on_parts(subset),
        ),
        "noise": _Op(
            1,
            "noise@reward@SCALE@SEED:ID or noise@obs@SCALE@SEED:ID",
            _read_noise,
            _on_parts(noise),
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


def save_index(composed: Composed, folder: Path) -> Path:
    """Write the card and the list of trajectories of a composed set as json; returns the file."""
    from offbench.io import atomic_write

    path = folder / f"{slug(composed.id)}.json"
    columns = ["part", "episode", "steps"]
    content = dict(composed.card) | {"columns": columns, "index": composed.index.tolist()}
    atomic_write(path, json.dumps(content).encode())
    return path


def slug(dataset_id: str) -> str:
    """A composed id as a file name."""
    return dataset_id.replace("/", "--").replace(":", "__")
