"""Minibatches that are part recorded and part synthetic: a wrapper of any method.

The synthetic elements are part of the state, one pool for each seed, so that seeds stack and a checkpoint has
them. Who makes them (`offbench.synthetic`) writes a new pool now and then (`offbench.training.loop.Refresh`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.errors import UserError
from offbench.ranges import Count, Fraction
from offbench.training.wrapper import Wrapper
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    """The state of the wrapped method, and the synthetic elements that it learns from."""

    inner: Any
    # of S elements
    pool: Batch
    # () int64: of them the first so many are drawn
    filled: Tensor


@dataclass(frozen=True, kw_only=True)
class Mixed(Wrapper):
    """The wrapped method on minibatches of which a share is drawn from the pool, with replacement.

    The recorded rest is drawn as ever, by any sampler. Before the first pool is written the state has one empty
    element.
    """

    # of a minibatch
    share: Fraction
    # S, elements in the pool
    size: Count

    def __post_init__(self) -> None:
        extra = [name for name in self.needs if name != "next_action"]
        if extra:
            raise UserError(
                f"{type(self.method).__name__} reads {', '.join(extra)} of a batch, which synthetic"
                " sub-trajectories do not have; use synthetic=none"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        rows = lambda *shape: torch.zeros((self.size, *shape), device=key.device)
        extras: Any = {"next_action": rows(spec.action_dim)} if self.needs else ()
        obs, action = rows(spec.obs_dim), rows(spec.action_dim)
        pool = Batch(obs, action, rows(), rows(), rows(spec.obs_dim), extras)
        return State(self.method.init(key, spec), pool, torch.tensor(1, device=key.device))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_inner, k_draw = rng.split(key)
        lead = tuple(batch.reward.shape)
        n = round(self.share * lead[-1])
        row = rng.randint(k_draw, (*lead[:-1], n), state.filled)
        # (..., B, x): the last of the recorded elements give way
        axis = len(lead) - 1
        part = lambda x, pool: torch.cat([x.narrow(axis, 0, lead[-1] - n), pool[row]], axis)
        inner, metrics = self.method.update(state.inner, tree_map(part, batch, state.pool), k_inner)
        return state._replace(inner=inner), metrics
