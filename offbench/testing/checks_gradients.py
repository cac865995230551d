"""Checks of who learns from which loss, by the gradients that reach the optimisers.

A method is seen through its numbers alone, so this remains for a test against a reference: a detach
that is missing within one field of the state other than in a target or a scale (the shift inside a
soft maximum); a loss that leaks into a field whose own loss reads the other field anyway (see
check_a_loss_trains_one_part); and which fields a loss should read. Gradients are seen where they go
through offbench.nn.optim; other optimisers are not judged by them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from offbench import rng
from offbench.nn.optim import Adam, AdamState, AdamW
from offbench.testing.checks_bootstrap import learned_from_pay
from offbench.testing.fakes import SPEC
from offbench.testing.helpers import (
    Note,
    close,
    discounted,
    double,
    naming,
    problem,
    require,
    rewarded,
    with_next_moved,
)
from offbench.types import Batch, Method, Spec


@contextmanager
def _steps_of_adam() -> Iterator[list[tuple[list[Tensor], list[Tensor]]]]:
    """Collects (parameters, gradients) of every step of offbench.nn.optim, in order."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    honest: dict[Any, Callable] = {optimiser: optimiser.step for optimiser in (Adam, AdamW)}

    def watched(step: Callable) -> Callable:
        def watch(self: Any, grads: Any, state: Any, params: Any) -> Any:
            seen.append((tree_leaves(params), tree_leaves(grads)))
            return step(self, grads, state, params)

        return watch

    try:
        for optimiser, step in honest.items():
            optimiser.step = watched(step)
        yield seen
    finally:
        for optimiser, step in honest.items():
            optimiser.step = step


def _parts(state: Any) -> dict[str, Any]:
    """The fields of a state that may hold parameters: all but optimisers and counters."""
    return {
        name: part
        for name, part in (state._asdict() if hasattr(state, "_asdict") else {}).items()
        if not isinstance(part, AdamState)
        and tree_leaves(part)
        and all(x.is_floating_point() for x in tree_leaves(part))
    }


def _gradients(method: Method, state: Any, batch: Batch, key: Tensor) -> dict[str, Tensor]:
    """Each trained field of the state -> the first gradient an update takes of it, as one vector."""
    # a target may be the very tensors of what it follows
    state = tree_map(torch.clone, state)
    with _steps_of_adam() as seen, naming("update"):
        method.update(state, batch, key)
    first: dict[int, Tensor] = {}
    for params, grads in seen:
        for x, g in zip(params, grads, strict=True):
            first.setdefault(id(x), g)
    found = {}
    for name, part in _parts(state).items():
        pieces = [first[id(x)].flatten() for x in tree_leaves(part) if id(x) in first]
        if pieces:
            found[name] = torch.cat(pieces)
    return found


NOT_SEEN = "not judged: no gradient of a field of the state went through offbench.nn.optim"


def check_targets_are_constants(method: Method, spec: Spec = SPEC) -> Note:
    """What a reward teaches does not depend on next_obs, wherever a gradient is linear in the reward."""
    state, batch, key = double(problem(method, spec))
    # no error so large that a Huber loss is linear
    batch = rewarded(batch, 0.1 * batch.reward)

    def lesson(batch: Batch, step: float) -> dict[str, Tensor]:
        more = _gradients(method, state, rewarded(batch, batch.reward + step), key)
        less = _gradients(method, state, batch, key)
        return {name: (more[name] - less[name]) / step for name in less}

    once, twice = lesson(batch, 0.01), lesson(batch, 0.02)
    # a little, for the same reason; and less where the sign of an error turned, as in an expectile's weight
    far, near = (
        lesson(with_next_moved(batch, torch.full_like(batch.discount, size)), 0.01)
        for size in (0.02, 0.0005)
    )

    def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
        return bool((a - b).norm() <= tolerance * (a.norm() + b.norm()) + 1e-9)

    linear = [name for name in once if same(once[name], twice[name])]
    for name in linear:
        require(
            # what depends on next_obs moves with it: a fortieth of the way, a fortieth as far
            same(once[name], far[name]) or same(once[name], near[name], 1e-5 / 40),
            f"what a reward teaches `{name}` depends on next_obs, so a gradient flows through the next "
            "value: detach the target, and give a target network no gradient.",
        )
    others = ", ".join(name for name in once if name not in linear)
    if not once:
        return NOT_SEEN
    return f"not judged, not linear in the reward: {others}" if others else None


PROBES, NUDGE = 2, 1e-6


class Influence(NamedTuple):
    """How the gradients of fields answer as a field moves along random directions."""

    gradient: dict[str, Tensor]
    way: dict[tuple[str, int], Tensor]  # (moved field, probe) -> direction
    answer: dict[tuple[str, str, int], Tensor]  # (field, moved field, probe) -> derivative

    def strength(self, field: str, moved: str) -> float:
        answers = [self.answer[field, moved, p].norm() for p in range(PROBES)]
        return float(max(answers) / (self.gradient[field].norm() + 1e-12))


def _influence(method: Method, state: Any, batch: Batch, key: Tensor) -> Influence | None:
    """None where the gradients are no function of the inputs, so differences say nothing."""
    base, way, answer = _gradients(method, state, batch, key), {}, {}
    for i, (moved, part) in enumerate(_parts(state).items()):
        leaves = tree_leaves(part)
        for p in range(PROBES):
            keys = rng.split(rng.fold(rng.key(i), p), len(leaves))
            steps = [rng.normal(k, tuple(x.shape), x.dtype) for k, x in zip(keys, leaves)]
            way[moved, p] = torch.cat([x.flatten() for x in steps])
            ends = []
            for size in (NUDGE, -NUDGE):
                there = [x + size * step for x, step in zip(leaves, steps)]
                nudged = state._replace(**{moved: tree_unflatten(there, tree_structure(part))})
                ends.append(_gradients(method, nudged, batch, key))
            for field in base:
                answer[field, moved, p] = (ends[0][field] - ends[1][field]) / (2 * NUDGE)
    again = _gradients(method, state, batch, key)
    return Influence(base, way, answer) if close(base, again) else None


def check_a_loss_trains_one_part(method: Method, spec: Spec = SPEC) -> Note:
    """No loss has gradients in two fields of the state, unless `trained_together` names them.

    The second derivatives of one loss by two fields are equal whichever comes first. Two losses that
    merely read each other's fields have no such symmetry, so its appearance is a missing detach.
    Judged with a bootstrap and without one, which takes the targets' own dependence away.

    Not seen: a leak into a field whose own loss, bootstrap aside, reads the other field too, which
    breaks the symmetry. CQL's penalty samples the actor and the actor's loss reads the critic, so
    either may train the other unnoticed; so may a multiplier and the critic whose penalty it weighs
    (`weight * gap` in the critic's loss, `gap` in the multiplier's, without a detach). Nor a leak of a loss with
    a detached scale that reads both fields (Q / mean |Q|).
    """
    state, batch, key = double(problem(method, spec))
    together = [set(group) for group in getattr(method, "trained_together", ())]
    for some in (batch, discounted(batch, torch.zeros_like(batch.discount))):
        found = _influence(method, state, some, key)
        if found is None or not found.gradient:
            return NOT_SEEN
        for a, b in combinations(found.gradient, 2):
            here = torch.stack([found.way[b, p] @ found.answer[b, a, p] for p in range(PROBES)])
            there = torch.stack([found.way[a, p] @ found.answer[a, b, p] for p in range(PROBES)])
            size = torch.maximum(here.abs(), there.abs())
            require(
                not bool(((here - there).abs() <= 0.02 * size).all() and (size > 1e-6).all())
                or any({a, b} <= group for group in together),
                f"one loss trains both `{a}` and `{b}`: detach what it reads of the other, or if both are meant "
                f"to learn from it say trained_together: ClassVar = (({a!r}, {b!r}),).",
            )
    return None


def _twins(batch: Batch, row: int) -> Batch:
    """A batch of one element, twice."""
    axis = batch.reward.ndim - 1
    return tree_map(lambda x: x.index_select(axis, torch.tensor([row, row])), batch)


def check_what_a_part_learns_from_is_fixed(method: Method, spec: Spec = SPEC) -> Note:
    """A field's gradient reads the same other fields at any state and in any batch.

    A scale that is not detached cancels what it scales where all values have one sign, as in a batch of
    one element: Q / mean |Q| is then the sign. A temperature that is not detached cancels at its first value, 1.
    Settings by which a clip is flat in every element alone look the same: judge ordinary ones. Fields that are
    `trained_together` are not judged: a loss that contrasts elements is none in a batch of one.
    """
    start, batch, key = double(problem(method, spec))
    if len(_parts(start)) < 2:
        return None
    *_, mixed = learned_from_pay(method, spec)
    # see check_targets_are_constants
    batch = rewarded(batch, 0.1 * batch.reward)
    ends = [_influence(method, state, batch, key) for state in (start, mixed)]
    whole = [influence for influence in ends if influence is not None]
    if len(whole) < len(ends) or not whole[0].gradient:
        return NOT_SEEN
    together = [set(group) for group in getattr(method, "trained_together", ())]
    pairs = [
        (field, other)
        for field, other in product(whole[0].gradient, _parts(start))
        if field != other and not any({field, other} <= group for group in together)
    ]
    singles: list[Influence] = []
    for row in range(batch.reward.shape[-1]):
        single = _influence(method, mixed, _twins(batch, row), key)
        if single is None:
            return NOT_SEEN
        singles.append(single)
        # one element may sit where a clip is flat or on the other side of a minimum, not all do
        if row >= 2 and _learned_at_times(whole, singles, pairs) is None:
            return None
    field, other = _learned_at_times(whole, singles, pairs) or ("", "")
    raise AssertionError(
        f"`{field}` learns from `{other}` in some states or batches and not at all in others: look for "
        "a scale or factor that is not detached and cancels what it multiplies."
    )


def _learned_at_times(
    whole: list[Influence], singles: list[Influence], pairs: Iterable[tuple[str, str]]
) -> tuple[str, str] | None:
    """A field and another that its gradient reads in some of the batches, and in others not at all."""
    for field, other in pairs:
        # a scale over two values of different sign, as chance in an action makes them, does not cancel
        of_one = sorted(single.strength(field, other) for single in singles)[-3]
        seen = (*(influence.strength(field, other) for influence in whole), of_one)
        if min(seen) <= 1e-7 and max(seen) >= 1e-3:
            return field, other
    return None
