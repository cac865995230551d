"""Pipelines: from a dataset to batches, and from a method to a policy in the raw environment."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.batch_extras import Extra, add, fit_extras, support
from offbench.data.goals import FittedGoal, Goal, Rows, without_terminals
from offbench.data.replay import ReplayData
from offbench.data.sampling import Sampler, make_sampler
from offbench.data.transforms import REWARDS, Transform, fit_transform
from offbench.data.views import FittedWindow, NStep, View, Window
from offbench.errors import UserError, expect, expect_names, expect_whole
from offbench.types import Batch, Policy, Spec

# separates the keys of goals from those of rows
_GOALS = 0x60A1

# data -> (S,) row weights of the sampler
RowWeights = Callable[[ReplayData], Tensor]


class Pipeline(NamedTuple):
    """Data with a sampler, a view, transforms and extras: the source of batches of a method."""

    data: ReplayData  # transformed
    sampler: Sampler
    view: View
    transforms: tuple[Transform, ...] = ()
    batch_size: int = 256
    extras: tuple[Extra, ...] = ()

    def spec(self, spec: Spec) -> Spec:
        """The problem as the method sees it through the view."""
        return self.view.spec(spec)

    def draw(self, key: Tensor, n: int) -> "Tensor | Rows":
        """Rows of n elements, drawn with `key`: (n,), under a goal view with those of their goals."""
        start = self.sampler(key, n)
        if not isinstance(self.view, FittedGoal):
            return start
        return self.view.draw(self.data, start, rng.fold(key, _GOALS))

    def batch(self, rows: "Tensor | Rows", minibatches: int = 1) -> Batch:
        """The batch at `rows` as drawn; several minibatches get a leading axis (K, B, ...)."""
        batch = self.view.batch(self.data, rows)
        start = rows if isinstance(rows, Tensor) else rows["start"]
        batch = add(batch, self.data, self.view, self.extras, start)
        if minibatches == 1:
            return batch
        return tree_map(lambda x: x.unflatten(0, (minibatches, self.batch_size)), batch)

    def sample(self, key: Tensor, minibatches: int = 1) -> Batch:
        """A batch drawn with `key`, as the engine draws it."""
        return self.batch(self.draw(key, minibatches * self.batch_size), minibatches)

    def to(self, device: torch.device | str) -> "Pipeline":
        """The pipeline with its tensors on `device`."""
        return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, self)

    def uniform(self, needs: Sequence[str]) -> "Pipeline":
        """The pipeline with uniform sampling and the extras `needs`."""
        return self._over(self.data, needs)

    def on(self, data: ReplayData, needs: Sequence[str]) -> "Pipeline":
        """The pipeline on other raw data, with the transforms and view fitted here."""
        for transform in self.transforms:
            data = transform.data(data)
        return self._over(data, needs)

    def _over(self, data: ReplayData, needs: Sequence[str]) -> "Pipeline":
        view = self.view
        if isinstance(view, FittedWindow):
            view = view.refit(data)
        elif isinstance(view, FittedGoal):
            view, data = view.refit(data, needs), without_terminals(data)
        extras = fit_extras(data, view, needs)
        sampler = make_sampler(support(data, view, extras))
        return self._replace(data=data, sampler=sampler, view=view, extras=extras)

    def policy(self, policy: Policy) -> Policy:
        """The policy in the raw environment: observations are transformed, then viewed, as in the data."""
        parts: tuple[View | Transform, ...] = (self.view, *reversed(self.transforms))
        for part in parts:
            policy = part.policy(policy)
        return policy


def make_pipeline(
    data: ReplayData,
    *,
    view: View | Window | Goal | None = None,
    weights: Sequence[RowWeights] = (),
    transforms: Mapping[str, Mapping[str, Any] | None] | Sequence[str] = (),
    batch_size: int = 256,
    needs: Sequence[str] = (),
    lazy: bool = False,
) -> Pipeline:
    """A pipeline with transforms, view and extras fitted to `data`.

    Rows are sampled in proportion to the product of `weights`, computed from the data as recorded.
    `transforms` are names from `offbench.data.transforms`, in order, with options when given as a
    mapping; `needs` are names from `offbench.data.batch_extras`. `lazy` transforms observations when
    batches are read, for data that memory cannot hold twice.
    """
    expect("data", data, ReplayData, "a dataset, as of load_data or from_arrays")
    if view is not None and not (hasattr(view, "support") or hasattr(view, "fit")):
        raise UserError(f"view={view!r} must be a view, as NStep(5) of offbench.data.views")
    expect_whole("batch_size", batch_size, 1)
    needs = expect_names("needs", needs)
    if not isinstance(transforms, Mapping):
        transforms = expect_names("transforms", transforms)
    if not isinstance(weights, Sequence) or not all(map(callable, weights)):
        raise UserError("weights must be functions of a dataset, one weight for each of its rows")
    recorded = data
    named = transforms if isinstance(transforms, Mapping) else {name: None for name in transforms}
    if isinstance(view, Goal) and (of_rewards := named.keys() & REWARDS):
        raise UserError(
            f"transforms.{min(of_rewards)} changes recorded rewards, which view=goal does not read; switch it"
            " off with null"
        )
    fitted: list[Transform] = []
    for name, options in named.items():
        expect(f"transforms.{name}", options, (Mapping, type(None)), "a mapping of options")
        fitted.append(fit_transform(data, name, **(options or {})))
        data = fitted[-1].data(data, lazy=lazy)
    fitted_view: View
    if isinstance(view, Goal):
        fitted_view, data = view.fit(data, needs), without_terminals(data)
    else:
        fitted_view = view.fit(data) if isinstance(view, Window) else view or NStep()
    extras = fit_extras(data, fitted_view, needs)
    rows = support(data, fitted_view, extras)
    sampler = make_sampler(rows, *(row_weights(recorded) for row_weights in weights))
    return Pipeline(data, sampler, fitted_view, tuple(fitted), batch_size, extras)
