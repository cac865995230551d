"""Builds data sets composed of others: mixtures, truncations, subsets of episodes, noise.

Their ids are parsed in `offbench.data.composition`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offbench.data.composition import EXAMPLE, Composition, parse, spell
from offbench.data.replay import ReplayData, episode_returns, fingerprint, first_rows
from offbench.errors import UserError
from offbench.io import atomic_write, slug

Load = Callable[[str], ReplayData]


class _Result(NamedTuple):
    data: ReplayData
    origin: NDArray[np.int64]  # (E, 3): part, episode in that part, steps kept


@dataclass(frozen=True)
class Composed:
    """A composed data set, with the origin of its episodes and its description."""

    id: str  # canonical
    data: ReplayData
    index: NDArray[np.int64]  # (E, 3): part, episode in that part, steps kept
    card: Mapping[str, Any]


def build(dataset_id: str, load: Load) -> Composed:
    """The composed set of an id; `load` gives the data of a plain id.

    Raises UserError for an id that is no composition, and for parts that differ in dimensions.
    """
    parsed = parse(dataset_id)
    if isinstance(parsed, str):
        raise UserError(f"{dataset_id!r} is not a composition; they are written like {EXAMPLE}")
    parts = {name: load(name) for name in parsed.leaves}
    return _build(parsed, parts.__getitem__)


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
    data, index = _BUILDERS[what.op](*parts, *what.args, name=str(what))
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
    names, args = [str(p) for p in what.parts], [spell(a) for a in what.args]
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
    """The numbered episodes, in that order, repeats allowed; of each its first `steps`.

    A cut episode keeps the next observation and bootstraps there.
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
    """(E,) number of steps of each episode."""
    firsts = first_rows(data)
    return (data.last[firsts] - firsts).numpy()


def join(parts: list[ReplayData]) -> ReplayData:
    """Concatenates data sets."""
    rows = np.cumsum([0, *(len(p.last) for p in parts)])[:-1].tolist()
    episodes = np.cumsum([0, *(p.n_episodes for p in parts)])[:-1].tolist()
    moved = [
        p._replace(last=p.last + r, episode=p.episode + e) for p, r, e in zip(parts, rows, episodes)
    ]
    return ReplayData(*(torch.cat(column) for column in zip(*moved)))


def mix(
    good: ReplayData, other: ReplayData, share: float, seed: int, *, name: str = "mix"
) -> _Result:
    """A mixture of N transitions, `share` of them from `good`, the rest from `other`; N as in `good`.

    Whole trajectories of `good` are drawn with replacement until they hold `share * N`
    transitions, then whole ones of `other`, in random order (each once before any comes again),
    until there are N, as in Hong et al. (2023): the share is of transitions, not of trajectories.
    Good trajectories come first.
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
    return _Result(join(chosen), index.astype(np.int64))


def _draw(
    sizes: NDArray[np.int64], wanted: float, draw: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Episodes drawn in batches until they hold `wanted` transitions, and none after that."""
    chosen = np.zeros(0, np.int64)
    while sizes[chosen].sum() < wanted:
        chosen = np.concatenate([chosen, draw(len(sizes))])
    before = np.cumsum(sizes[chosen]) - sizes[chosen]
    return chosen[before < wanted]


def truncate(data: ReplayData, rows: int, *, name: str = "truncate") -> _Result:
    """The first `rows` transitions in order; the last episode may be cut."""
    return _first(data, np.arange(data.n_episodes), rows, name)


def _first(data: ReplayData, order: NDArray[np.integer], rows: int, name: str) -> _Result:
    if rows > data.n_transitions:
        raise UserError(f"{name}: there are only {data.n_transitions} transitions, not {rows}")
    sizes = lengths(data)[order]
    before = np.cumsum(sizes) - sizes
    order, steps = order[before < rows], np.minimum(sizes, rows - before)[before < rows]
    return _kept(data, order, steps)


def _kept(
    data: ReplayData, episodes: NDArray[np.integer], steps: NDArray[np.integer] | None = None
) -> _Result:
    steps = lengths(data)[episodes] if steps is None else steps
    index = np.stack([np.zeros(len(episodes)), episodes, steps], axis=1).astype(np.int64)
    return _Result(take(data, episodes, steps), index)


def subset(data: ReplayData, by: str, *args: float, name: str = "subset") -> _Result:
    """A subset of the episodes: `rows` or `episodes` (count, seed), `top` or `bottom` (share by return),
    or those with a `return` in [low, high]. Only the last episode of `rows` may be cut."""
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


def noise(data: ReplayData, on: str, scale: float, seed: int, *, name: str = "noise") -> _Result:
    """Gaussian noise on every recorded `reward` or observation (`obs`). The next observation of a step
    has the same noise as the observation of the step after it."""
    rng = np.random.default_rng(seed)
    index = _kept(data, np.arange(data.n_episodes)).origin
    if on == "obs":
        spread = data.obs.double().std(0, correction=0) * scale
        drawn = torch.from_numpy(rng.standard_normal(tuple(data.obs.shape), dtype=np.float32))
        return _Result(data._replace(obs=drawn.mul_(spread.float()).add_(data.obs)), index)
    spread = data.reward[data.valid].double().std(correction=0) * scale
    drawn = torch.from_numpy(rng.standard_normal(len(data.reward), dtype=np.float32))
    noisy = torch.where(data.valid, data.reward + drawn * spread.float(), data.reward)
    return _Result(data._replace(reward=noisy), index)


_BUILDERS: Mapping[str, Callable[..., _Result]] = MappingProxyType(
    {"mix": mix, "truncate": truncate, "subset": subset, "noise": noise}
)


def save_index(composed: Composed, folder: Path) -> Path:
    """Writes the card and the origin of each episode of a composed set as json; returns the file."""
    path = folder / f"{slug(composed.id)}.json"
    columns = ["part", "episode", "steps"]
    content = dict(composed.card) | {"columns": columns, "index": composed.index.tolist()}
    atomic_write(path, json.dumps(content).encode())
    return path
