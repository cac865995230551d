"""Checks of the bootstrap: reward + discount * next value, nothing where the discount is 0."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.testing.fakes import SPEC
from offbench.testing.helpers import (
    Note,
    close,
    discounted,
    double,
    problem,
    remembered,
    require,
    rewarded,
    update_once,
    with_next_moved,
)
from offbench.types import Batch, Method, Spec


def _partly_terminal(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with discount 0 in every second element of every minibatch, and which those are."""
    ended = (torch.arange(batch.discount.shape[-1]) % 2 == 0).expand_as(batch.discount)
    return discounted(batch, torch.where(ended, 0.0, 1.0).to(batch.discount)), ended


NO_RETURN = "learns no return: neither reward nor discount has an influence on the update"


def _learns_no_return(method: Method, spec: Spec) -> bool:
    """Whether rewards and discounts are not read, as by a model of the dynamics or a distance in steps, for
    which next_obs is no bootstrap. A method with a `value` says that it learns a return."""

    def compute() -> bool:
        state, batch, key = problem(method, spec)
        base = update_once(method, state, batch, key)[0]
        others = (
            rewarded(batch, batch.reward + 1),
            discounted(batch, torch.zeros_like(batch.discount)),
        )
        return all(close(base, update_once(method, state, some, key)[0]) for some in others)

    return not hasattr(method, "value") and remembered(method, spec, "no return", compute)


def check_bootstrap_only_through_discount(method: Method, spec: Spec = SPEC) -> Note:
    """Where discount is 0 the next observation changes nothing: the terminal bug."""
    state, batch, key = problem(method, spec)
    if _learns_no_return(method, spec):
        return NO_RETURN
    batch, ended = _partly_terminal(batch)
    moved = with_next_moved(batch, ended)
    a, b = update_once(method, state, batch, key)[0], update_once(method, state, moved, key)[0]
    require(
        close(a, b, 1e-6),
        "next_obs changed the update where discount is 0, after a terminal: multiply every use of "
        "the next observation's value by batch.discount.",
    )
    return None


def check_discount_scales_the_bootstrap(method: Method, spec: Spec = SPEC) -> Note:
    """A method that uses next_obs scales it by discount, whatever its size: n steps have gamma ** n."""
    state, batch, key = problem(method, spec)
    base = update_once(method, state, batch, key)[0]
    moved = update_once(
        method, state, with_next_moved(batch, torch.ones_like(batch.discount)), key
    )[0]
    if close(base, moved, 1e-6):
        return "does not bootstrap: next_obs has no influence on the update"
    if _learns_no_return(method, spec):
        return NO_RETURN
    halved = update_once(
        method, state, discounted(batch, 0.5 * torch.ones_like(batch.discount)), key
    )[0]
    require(
        not close(base, halved, 1e-6),
        "the size of discount has no influence on the update: use batch.discount itself as the "
        "bootstrap factor, not a gamma and a done flag.",
    )
    return "bootstraps where discount > 0, time limits included"


PAY, PAID_UPDATES = 10.0, 40


def learned_from_pay(method: Method, spec: Spec) -> tuple[Any, ...]:
    """Float64 states after updates without bootstrap on rewards of 10, of -10, and of both in turn by row."""
    return remembered(method, spec, "pay", lambda: _learn_from_pay(method, spec))


def _learn_from_pay(method: Method, spec: Spec) -> tuple[Any, ...]:
    start, batch, key = problem(method, spec)
    batch = discounted(batch, torch.zeros_like(batch.discount))
    hasty, ends = _hasty(method), []
    turns = torch.arange(batch.reward.shape[-1]) % 2 * 2 - 1
    for signs in (torch.ones_like(turns), -torch.ones_like(turns), turns):
        pay = (PAY * signs).to(batch.reward).expand_as(batch.reward)
        state, paid = start, rewarded(batch, pay)
        for i in range(PAID_UPDATES):
            state, _ = update_once(hasty, state, paid, rng.fold(key, i))
        ends.append(double(state))
    return tuple(ends)


def _hasty(method: Any) -> Method:
    """The method with larger steps, where its fields have the names that ours have."""
    names = [field.name for field in dataclasses.fields(method)]
    rates = {
        name: 10 * getattr(method, name) for name in names if name == "lr" or name[-3:] == "_lr"
    }
    return dataclasses.replace(
        method, **rates, **({"polyak_rate": 0.2} if "polyak_rate" in names else {})
    )


def _numbers(state: Any) -> Tensor:
    """Every real number of a state in one vector."""
    return torch.cat([x.flatten() for x in tree_leaves(state) if x.is_floating_point()])


def check_bootstrap_is_added(method: Method, spec: Spec = SPEC) -> Note:
    """Who learned from large rewards bootstraps from larger values than who learned from small ones.

    The value is read off the update: how far the discount moves it, in units of what a reward of 1
    moves it. A bootstrap that is subtracted shows the smaller value for the larger rewards. Rates of 1e-2 and
    more may not learn in 40 updates which rewards are larger: judge ordinary settings.
    """
    start, batch, key = double(problem(method, spec))
    none = discounted(batch, torch.zeros_like(batch.discount))
    learned = lambda state, batch: _numbers(update_once(method, state, batch, key)[0])
    if close(learned(start, batch), learned(start, none), 1e-9):
        return "does not bootstrap: discount has no influence on the update"

    def bootstrapped(state: Any) -> float:
        base = learned(state, none)
        by_reward = learned(state, rewarded(none, none.reward + 1)) - base
        return float((learned(state, batch) - base) @ by_reward / (by_reward @ by_reward))

    rich, poor = (bootstrapped(state) for state in learned_from_pay(method, spec)[:2])
    require(
        rich > poor,
        f"the update adds {rich:.2g} for next_obs after learning from large rewards and {poor:.2g} after "
        "small ones: the target must be reward + discount * next value, look for a turned sign.",
    )
    return None
