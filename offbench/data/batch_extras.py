"""Extra tensors of a batch that a method asks for, as in `needs = ("next_action",)`.

An extra is fitted to the transformed data once, can restrict the rows that are sampled, and adds
tensors to `batch.extras` by name. It composes with any view.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from offbench.data.goals import GOAL_EXTRAS, FittedGoal
from offbench.data.replay import ReplayData, discounted_to_go
from offbench.data.views import Chunk, FittedWindow, View, spans
from offbench.errors import UserError, unknown
from offbench.types import Batch

# rows per block
_BLOCK = 1 << 20


class Extra(Protocol):
    """Tensors added to a batch, and the rows (S,) bool for which they exist."""

    def support(self, data: ReplayData, view: View) -> Tensor: ...  # (S,) bool
    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]: ...


class NextAction(NamedTuple):
    """`next_action` (B, A): the dataset's action at `next_obs` (the next chunk under a chunked view).

    Rows are excluded whose span ends where no action was recorded, except at a terminal: there it is
    zeros, and the discount is 0.
    """

    def support(self, data: ReplayData, view: View) -> Tensor:
        starts = view.support(data)
        kept = starts.clone()
        for row in starts.nonzero().squeeze(1).split(_BLOCK):
            end = view.end(data, row)
            kept[row] = starts[end] | data.terminal[end - 1]
        return kept

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        end = view.end(data, row)
        gone = data.terminal[end - 1][:, None]
        return {"next_action": torch.where(gone, 0.0, view.action(data, end))}


class ReturnToGo(NamedTuple):
    """`return_to_go` (B,): discounted sum of the rewards from this step to the episode's end.

    Episodes cut by a time limit or the end of the recording have the sum up to there.
    """

    column: Tensor  # (S,)

    @classmethod
    def fit(cls, data: ReplayData, view: View) -> "ReturnToGo":
        _recorded("return_to_go", view)
        return cls(discounted_to_go(data, view.gamma))

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        return {"return_to_go": self.column[row]}


class SparseReturnToGo(NamedTuple):
    """`sparse_return_to_go` (B,): `return_to_go`, with failed episodes continued for ever.

    An episode whose rewards all are the data's least reward r has failed, and its steps have
    r / (1 - gamma), wherever the recording stopped (Nakamoto et al., 2023, their code).
    """

    column: Tensor  # (S,)

    @classmethod
    def fit(cls, data: ReplayData, view: View) -> "SparseReturnToGo":
        _recorded("sparse_return_to_go", view)
        if view.gamma >= 1:
            raise UserError(f"gamma={view.gamma}: failure for ever is worth r / (1 - gamma)")
        worst = data.reward[data.valid].min()
        above = (data.valid & (data.reward > worst)).long()
        succeeded = above.new_zeros(data.n_episodes).index_add_(0, data.episode, above) > 0
        forever = worst.double() / (1 - view.gamma)
        column = torch.where(
            succeeded[data.episode], discounted_to_go(data, view.gamma), forever.to(data.reward)
        )
        return cls(column)

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        return {"sparse_return_to_go": self.column[row]}


class Valid(NamedTuple):
    """`valid` (B, h): 1 for the steps of a chunk that belong to the episode it starts in, else 0.

    All ones unless the view pads; h = 1 for views of single steps.
    """

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        step = torch.arange(getattr(view, "h", 1), device=row.device)
        inside = row[:, None] + step < data.last[row][:, None]  # (B, h)
        return {"valid": inside.to(data.reward.dtype)}


class Prefixes(NamedTuple):
    """Rewards, discounts and observations of the first 1, 2, ..., h steps of a chunk.

    `prefix_reward` (B, h) discounted sums of reward; `prefix_discount` (B, h) bootstrap factors,
    gamma ** steps and 0 from a terminal on; `prefix_obs` (B, h, O) observations after them; and
    `valid` (B, h). The last of each is the batch's own reward, discount and next_obs.
    """

    chunk: Chunk

    @classmethod
    def fit(cls, data: ReplayData, view: View) -> "Prefixes":
        if isinstance(view, Chunk):
            return cls(view)
        if getattr(view, "n", None) == 1:
            return cls(Chunk(1, view.gamma))
        raise UserError(
            f"values of every length of a chunk need view=chunk, not {view}: write view=chunk view.h=5"
        )

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        reward, discount, end = self.chunk.prefixes(data, row)
        columns = {
            "prefix_reward": reward,
            "prefix_discount": discount,
            "prefix_obs": data.obs[end],
        }
        return {**columns, **Valid().tensors(data, view, row)}


class Steps(NamedTuple):
    """Of each step of a window: `step_reward` (B, K), scaled as its returns-to-go, and `step_next_obs` (B, K, O).

    Zeros beyond the episode, as in the window. The window's own columns do not tell the last step's.
    """

    k: int
    return_scale: float

    @classmethod
    def fit(cls, data: ReplayData, view: View) -> "Steps":
        _context(data, view)
        assert isinstance(view, FittedWindow)
        return cls(view.k, view.return_scale)

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        step, _, valid = spans(data, row, self.k)  # (B, K)
        after = data.obs[torch.minimum(step + 1, data.last[row][:, None])]
        return {
            "step_reward": torch.where(valid, data.reward[step] * self.return_scale, 0.0),
            "step_next_obs": torch.where(valid[..., None], after, 0.0),
        }


class OfView(NamedTuple):
    """What the view itself adds: a `Context` as the observation, goals. Requires that view."""

    def support(self, data: ReplayData, view: View) -> Tensor:
        return data.valid

    def tensors(self, data: ReplayData, view: View, row: Tensor) -> Mapping[str, Tensor]:
        return {}


def _next_action(data: ReplayData, view: View) -> Extra:
    return NextAction()


def _valid(data: ReplayData, view: View) -> Extra:
    return Valid()


def _context(data: ReplayData, view: View) -> Extra:
    if isinstance(view, FittedGoal):
        raise UserError("this method learns from windows of steps, which view=goal does not give")
    if not isinstance(view, FittedWindow):
        raise UserError("this method learns from windows of steps: use view=window")
    return OfView()


def _recorded(name: str, view: View) -> None:
    """Raises UserError for returns of recorded rewards under a goal view, which pays its own."""
    if isinstance(view, FittedGoal):
        raise UserError(
            f"{name} is of recorded rewards, which view=goal does not read; this method needs them"
        )


def _goals(data: ReplayData, view: View) -> Extra:
    if not isinstance(view, FittedGoal):
        raise UserError("this method learns to reach goals: use view=goal, and a task with goals")
    return OfView()


EXTRAS = {
    "next_action": _next_action,
    "return_to_go": ReturnToGo.fit,
    "sparse_return_to_go": SparseReturnToGo.fit,
    "valid": _valid,
    "prefixes": Prefixes.fit,
    "context": _context,
    "steps": Steps.fit,
    **dict.fromkeys(GOAL_EXTRAS, _goals),
    # adds nothing to a batch: goals of values have to be later states alone
    "later_goals": _goals,
}


def fit_extras(data: ReplayData, view: View, names: Sequence[str]) -> tuple[Extra, ...]:
    """The named extras fitted on `data`. Raises UserError for an unknown name."""
    for name in names:
        if name not in EXTRAS:
            raise unknown("extra", name, EXTRAS)
    return tuple(EXTRAS[name](data, view) for name in names)


def support(data: ReplayData, view: View, extras: Sequence[Extra]) -> Tensor:
    """(S,) bool: rows that can be sampled under the view and all extras. UserError where none can."""
    rows = view.support(data)
    for extra in extras:
        rows = rows & extra.support(data, view)
    if not rows.any():
        raise UserError(
            "no row of the dataset can start a batch element (is the view longer than every episode?)"
        )
    return rows


def add(batch: Batch, data: ReplayData, view: View, extras: Sequence[Extra], row: Tensor) -> Batch:
    """The batch with the tensors of every extra."""
    if not extras:
        return batch
    tensors = dict(batch.extras or {})
    for extra in extras:
        tensors |= extra.tensors(data, view, row)
    return batch._replace(extras=tensors)
