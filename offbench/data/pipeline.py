"""Everything between a dataset and a method, and its mirror image between a method and an environment."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench.data.batch_extras import Extra, add, fit_extras, support
from offbench.data.replay import ReplayData
from offbench.data.sampling import Sampler, make_sampler
from offbench.data.transforms import Transform, fit_transform
from offbench.data.views import FittedWindow, NStep, View, Window
from offbench.types import Batch, Policy, Spec

Weight = Callable[[ReplayData], Tensor]  # data -> (S,) row weights


class Pipeline(NamedTuple):
    data: ReplayData  # transformed
    sampler: Sampler
    view: View
    transforms: tuple[Transform, ...] = ()
    batch_size: int = 256
    extras: tuple[Extra, ...] = ()

    def spec(self, spec: Spec) -> Spec:
        return self.view.spec(spec)

    def batch(self, rows: Tensor, minibatches: int = 1) -> Batch:
        """The batch elements at `rows`; with several minibatches a leading axis counts them."""
        batch = self.view.batch(self.data, rows)
        batch = add(batch, self.data, self.view, self.extras, rows)
        if minibatches == 1:
            return batch
        return tree_map(lambda x: x.unflatten(0, (minibatches, self.batch_size)), batch)

    def sample(self, key: Tensor, minibatches: int = 1) -> Batch:
        """A batch drawn with `key`, as the engine draws it."""
        return self.batch(self.sampler(key, minibatches * self.batch_size), minibatches)

    def to(self, device: torch.device | str) -> "Pipeline":
        """Made on the CPU and moved, a pipeline holds the same bits whatever the device."""
        return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, self)

    def uniform(self, needs: Sequence[str]) -> "Pipeline":
        """The pipeline without its sampling weights: every row that can be drawn is equally likely."""
        return self._over(self.data, needs)

    def on(self, data: ReplayData, needs: Sequence[str]) -> "Pipeline":
        """Other episodes, as recorded, through the transforms and view that were fitted here."""
        for transform in self.transforms:
            data = transform.data(data)
        return self._over(data, needs)

    def _over(self, data: ReplayData, needs: Sequence[str]) -> "Pipeline":
        view = self.view.refit(data) if isinstance(self.view, FittedWindow) else self.view
        extras = fit_extras(data, view, needs)
        sampler = make_sampler(support(data, view, extras))
        return self._replace(data=data, sampler=sampler, view=view, extras=extras)

    def policy(self, policy: Policy) -> Policy:
        """The policy that acts in the raw environment: the view sees what the transforms made, as in the data."""
        parts: tuple[View | Transform, ...] = (self.view, *reversed(self.transforms))
        for part in parts:
            policy = part.policy(policy)
        return policy


def make_pipeline(
    data: ReplayData,
    *,
    view: View | Window | None = None,
    weights: Sequence[Weight] = (),
    transforms: Mapping[str, Mapping[str, Any] | None] | Sequence[str] = (),
    batch_size: int = 256,
    needs: Sequence[str] = (),
    lazy: bool = False,
) -> Pipeline:
    """Fits transforms, view and extras, then draws rows by the view's support times every weight.

    Weights see the data as recorded. `transforms` are names from `offbench.data.transforms`, in order,
    with their options when given as a mapping; `needs` are names from `offbench.data.batch_extras`. `lazy`
    transforms observations as batches are read, for data that memory cannot hold twice.
    """
    recorded = data
    named = transforms if isinstance(transforms, Mapping) else {name: None for name in transforms}
    fitted: list[Transform] = []
    for name, options in named.items():
        fitted.append(fit_transform(data, name, **(options or {})))
        data = fitted[-1].data(data, lazy=lazy)
    fitted_view: View = view.fit(data) if isinstance(view, Window) else view or NStep()
    extras = fit_extras(data, fitted_view, needs)
    rows = support(data, fitted_view, extras)
    sampler = make_sampler(rows, *(weight(recorded) for weight in weights))
    return Pipeline(data, sampler, fitted_view, tuple(fitted), batch_size, extras)
