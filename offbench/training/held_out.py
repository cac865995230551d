"""Validation metrics on held-out episodes, for data without an environment.

A share of the episodes is held out of training. At every point of the curves the held-out rows give

    validation/NAME                 each metric of the method's update (its losses); the state is unchanged
    validation/action_error         mean squared difference of the policy's action and the recorded one,
                                    in units of [-1, 1]; training/action_error is the same on training rows
    validation/action_disagreement  for discrete actions: the share of other choices

None of them estimates a return. An off-policy estimator would be one more function of a state and the
held-out episodes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from offbench import rng
from offbench.data.compose import take
from offbench.data.pipeline import Pipeline
from offbench.data.replay import ReplayData
from offbench.errors import UserError
from offbench.training.imperative import Imperative, Objects
from offbench.training.mixing import Mixed
from offbench.training.step import bind, n_minibatches, to_device
from offbench.types import Batch, Context, Method, Metrics, Plan, TimeStep, minibatch

# rows of a minibatch that metrics are computed on
ROWS = 2048


def split(data: ReplayData, share: float, *, name: str) -> tuple[ReplayData, ReplayData]:
    """(training, held-out) episodes, the same for every method and seed, at least one of each.

    Raises UserError where there is only one episode.
    """
    if data.n_episodes < 2:
        raise UserError(f"{name}: one episode cannot be split into training and held-out episodes")
    order = np.random.default_rng(0).permutation(data.n_episodes)
    n = min(max(1, round(share * data.n_episodes)), data.n_episodes - 1)
    return take(data, np.sort(order[n:])), take(data, np.sort(order[:n]))


class Validation:
    """Metrics of stacked states on fixed samples of held-out rows and of training rows.

    `pipeline` is that of training: held-out rows go through the view and transforms fitted there. Rows
    are sampled uniformly, whatever the sampler of training.
    """

    def __init__(
        self,
        method: Method,
        pipeline: Pipeline,
        held_out: ReplayData,
        *,
        discrete: bool,
        device: str = "cpu",
    ):
        self.method, self.discrete = method, discrete
        needs = getattr(method, "needs", ())
        parts = {"training": pipeline.uniform(needs), "validation": pipeline.on(held_out, needs)}
        self.batches = {
            name: to_device(
                part._replace(batch_size=ROWS).sample(rng.key(0), n_minibatches(method)), device
            )
            for name, part in parts.items()
        }

    def __call__(self, state: Any) -> Metrics:
        """Metric -> (N,), one value per stacked state."""
        if isinstance(self.method, Imperative):
            return self._of_objects(self.method, state)
        leaf = next(iter(tree_leaves(state)))
        key = rng.split(rng.key(0), 2).to(leaf.device)
        over_seeds = (0, None, None)
        error = vmap(self._error, over_seeds)
        found = {}
        for name, batch in self.batches.items():
            one = batch if n_minibatches(self.method) == 1 else minibatch(batch, 0)
            word = "action_disagreement" if self.discrete else "action_error"
            found[f"{name}/{word}"] = error(state, one, key[0])
        losses = vmap(self._losses, over_seeds)(state, self.batches["validation"], key[1])
        return found | {f"validation/{k}": v for k, v in losses.items() if k not in _ERRORS}

    def _of_objects(self, method: Imperative, state: Objects) -> Metrics:
        """The action errors of a PyTorch class; no losses, as its train_step would learn."""
        act = method.policy().act
        found, n = {}, len(state.members)
        for name, batch in self.batches.items():
            obs, key = batch.obs.expand(n, *batch.obs.shape), rng.key(0)
            action, _ = act(state, TimeStep.begin(obs), (), key.expand(n, len(batch.obs)))
            error = torch.square(action - batch.action.cpu()).mean((1, 2))
            found[f"{name}/action_error"] = error
        return found

    def _losses(self, state: Any, batch: Batch, key: Tensor) -> Metrics:
        bound, inner = bind(self.method, state)
        # on held-out rows alone
        if isinstance(bound, Mixed):
            bound, inner = bound.method, inner.inner
        return bound.update(inner, batch, key)[1]

    def _error(self, state: Any, batch: Batch, key: Tensor) -> Tensor:
        bound, inner = bind(self.method, state)
        # under a goal view, with the goals of the policy
        obs, recorded = (batch.extras or {}).get("actor_obs", batch.obs), batch.action
        if isinstance(obs, Context):
            obs, recorded = _before_acting(obs)
        action = bound.act(inner, obs, key)
        action = action.action if isinstance(action, Plan) else action
        if self.discrete:
            return (action.argmax(-1) != recorded.argmax(-1)).to(action.dtype).mean()
        error = torch.square(action.clamp(-1, 1) - recorded)  # (B, h A)
        extras = batch.extras or {}
        if "valid" not in extras:
            return error.mean()
        # (B, h): the actions of a chunk that lie beyond the episode are not recorded ones
        valid = extras["valid"]
        per_step = error.unflatten(-1, (valid.shape[-1], -1)).mean(-1)
        return (per_step * valid).sum() / valid.sum()


_ERRORS = ("action_error", "action_disagreement")


def _before_acting(context: Context) -> tuple[Context, Tensor]:
    """The windows as a policy sees them, the last action zeroed, and that action (B, A)."""
    index = torch.arange(context.valid.shape[-1], device=context.valid.device)
    last = (index == context.valid.sum(-1, keepdim=True) - 1)[..., None]  # (B, K, 1)
    recorded = torch.where(last, context.action, 0.0).sum(-2)
    return context._replace(action=torch.where(last, 0.0, context.action)), recorded
