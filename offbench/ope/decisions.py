"""What fixed policies decide at every recorded observation, computed once.

Estimators read the decisions from a table and never ask a policy while they are fitted, so that they know
neither methods nor networks. A decision is a plan of h steps: one action (h = 1), an open-loop chunk, or
the first `length` steps of one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.replay import ReplayData
from offbench.errors import UserError
from offbench.types import Plan, Policy, TimeStep

# observations that a policy is asked about at once
ROWS = 4096
# draws of each decision of a policy that acts at random
DRAWS = 4


class Decisions(NamedTuple):
    """Decisions of N policies at the S rows of a dataset, K draws of each."""

    # (N, K, S, h A) in [-1, 1], zeros beyond `length`
    action: Tensor
    # (N, K, S) int64, steps that are executed; None where all h are
    length: Tensor | None
    # h, steps of a plan
    steps: int = 1

    @property
    def n_policies(self) -> int:
        """N."""
        return len(self.action)

    @property
    def draws(self) -> int:
        """K."""
        return self.action.shape[1]


def decide(policy: Policy, state: Any, data: ReplayData, *, keys: Tensor, steps: int) -> Decisions:
    """The decisions of N stacked policies at every row of `data`, raw observations.

    Args:
        policy: without its view, so that `act` gives whole plans; it must need no memory.
        keys: (N,), one per policy.
        steps: of a plan, 1 for policies of single actions.

    A policy whose decisions depend on the key is asked DRAWS times.

    Raises UserError where a decision is not finite.
    """
    sample = data.obs[:ROWS]
    both = [_of_rows(policy, state, sample, rng.fold(keys, i)) for i in range(2)]
    draws = 1 if _same(*both) else DRAWS
    made = [_table(policy, state, data.obs, rng.fold(keys, i)) for i in range(draws)]
    action = torch.stack([plan.action for plan in made], 1)
    if not action.isfinite().all():
        raise UserError("a decision of the policy is not finite")
    if not (made[0].length > 0).all() or steps == 1:
        return Decisions(action, None, steps)
    length = torch.stack([plan.length for plan in made], 1)
    if (length == steps).all():
        return Decisions(action, None, steps)
    step = torch.arange(action.shape[-1], device=action.device) // (action.shape[-1] // steps)
    return Decisions(torch.where(step < length[..., None], action, 0.0), length, steps)


def stacked(parts: list[Decisions]) -> Decisions:
    """The decisions of several stacks as those of one; of those that draw once, the draw is repeated."""
    draws, steps = max(part.draws for part in parts), parts[0].steps
    many = lambda x, n: x if n == draws else x.expand(-1, draws, *x.shape[2:])
    action = torch.cat([many(part.action, part.draws) for part in parts])
    if all(part.length is None for part in parts):
        return Decisions(action, None, steps)
    lengths = [
        torch.full(part.action.shape[:-1], steps) if part.length is None else part.length
        for part in parts
    ]
    return Decisions(
        action, torch.cat([many(x, p.draws) for x, p in zip(lengths, parts, strict=True)]), steps
    )


def _same(one: Plan, other: Plan) -> bool:
    return bool(torch.equal(one.action, other.action) and torch.equal(one.length, other.length))


def _table(policy: Policy, state: Any, obs: Tensor, keys: Tensor) -> Plan:
    """The plans at rows (S, O): (N, S, h A) and (N, S)."""
    parts = []
    for first in range(0, len(obs), ROWS):
        # the last block is filled up, so that one traced program serves all
        rows = torch.arange(first, first + min(ROWS, len(obs))).clamp(max=len(obs) - 1)
        part = _of_rows(policy, state, obs[rows], rng.fold(keys, first))
        kept = min(ROWS, len(obs) - first)
        parts.append(tree_map(lambda x, kept=kept: x[:, :kept], part))
    return Plan(*(torch.cat([part[i] for part in parts], 1) for i in range(2)))


def _of_rows(policy: Policy, state: Any, obs: Tensor, keys: Tensor) -> Plan:
    n, e = len(keys), len(obs)
    seen = obs.to(keys.device).expand(n, e, obs.shape[1])
    each = rng.fold(keys[:, None], torch.arange(e, device=keys.device))
    with torch.no_grad():
        made, _ = policy.act(state, TimeStep.begin(seen), policy.init(n, e), each)
    if isinstance(made, Plan):
        return Plan(made.action, made.length.to(torch.int64))
    return Plan(made, torch.zeros(n, e, dtype=torch.int64, device=made.device))
