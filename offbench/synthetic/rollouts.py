"""Imagined sub-trajectories of stacked seeds, and the transitions that methods learn from."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench.data.batch_extras import add, fit_extras, support
from offbench.data.pipeline import Pipeline
from offbench.data.replay import ReplayData
from offbench.errors import UserError
from offbench.types import Batch

# a policy of N stacked seeds: raw observations (N, B, O) and a number -> actions (N, B, A); what it draws by chance
# differs from number to number
Actions = Callable[[Tensor, int], Tensor]


class Rollouts(NamedTuple):
    """R sub-trajectories of T observations for each of N seeds, in the units of the data.

    Of the last step only the observation counts, so there are T - 1 transitions, or as many as there are up to
    a terminal.
    """

    obs: Tensor  # (N, R, T, O)
    action: Tensor  # (N, R, T, A)
    reward: Tensor  # (N, R, T)
    terminal: Tensor  # (N, R, T) bool

    @property
    def lengths(self) -> Tensor:
        """(N, R) int64 number of transitions."""
        n = self.terminal.shape[2] - 1
        number = torch.arange(1, n + 1, device=self.terminal.device)
        return torch.where(self.terminal[..., :n], number, n).amin(-1)

    def data(self) -> ReplayData:
        """The rollouts of all seeds as episodes of a dataset: N R T rows."""
        n, r, t = self.terminal.shape
        number = torch.arange(n * r, device=self.obs.device)
        last = number * t + self.lengths.flatten()
        return ReplayData(
            self.obs.flatten(0, 2),
            self.action.flatten(0, 2),
            self.reward.flatten(),
            self.terminal.flatten(),
            last.repeat_interleave(t),
            number.repeat_interleave(t),
        )


def transitions(
    rollouts: Rollouts, pipeline: Pipeline, needs: Sequence[str] = ()
) -> tuple[Batch, Tensor]:
    """(batches (N, S, ...), how many of the S count (N,)): the elements that a pipeline's view has in rollouts.

    Transforms, view and extras are those of the pipeline, so an element is as one of the recorded data. S is
    R (T - 1); elements that do not exist repeat the first. UserError where a seed has none.
    """
    n, r, t = rollouts.terminal.shape
    data = rollouts.data()
    for transform in pipeline.transforms:
        data = transform.data(data)
    extras = fit_extras(data, pipeline.view, needs)
    starts = support(data, pipeline.view, extras).view(n, r * t)
    count = starts.sum(1)
    if not count.all():
        raise UserError(
            "every synthetic sub-trajectory of a seed ends before view.n steps; use view.pad=true"
        )
    # those that count come first
    row = torch.argsort((~starts).byte(), dim=1, stable=True)[:, : r * (t - 1)]
    exists = torch.arange(row.shape[1], device=row.device) < count[:, None]
    row = torch.where(exists, row, row[:, :1])
    row = row + torch.arange(n, device=row.device)[:, None] * r * t
    batch = pipeline.view.batch(data, row.flatten())
    batch = add(batch, data, pipeline.view, extras, row.flatten())
    return tree_map(lambda x: x.unflatten(0, row.shape), batch), count
