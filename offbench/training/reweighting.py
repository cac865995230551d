"""Learned weights of batch elements: a wrapper of any method, trained with it.

Its networks are part of the state, and every minibatch is resampled in proportion to the weights
before the method sees it. A mean over the resampled minibatch has the weighted sum over the
minibatch as its expectation, so every loss is weighted. Composes with any sampler and view.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.nn import nets
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Positive, Widths, check_ranges
from offbench.training.wrapper import Wrapper
from offbench.types import Batch, Context, Metrics, Spec, minibatch

# bound of a logit before exp, in the flow term
_LARGEST = 20.0


class State(NamedTuple):
    """The state of the wrapped method and of its weights."""

    inner: Any
    pair: nets.Params  # g(s, a)
    single: nets.Params  # f(s)
    low: Tensor  # () smallest reward seen
    high: Tensor  # () largest
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class DensityWeights(Wrapper):
    """DW (Hong et al., 2023b): density-ratio weights. https://arxiv.org/abs/2310.04413

    The logit g(s, a) + f(s) raises the weight of rewarding steps, as far as the flow into a state
    stays the flow out of it (`flow_weight`) and the weights stay near uniform (`kl_weight`).

    Differs from the authors' code (Improbable-AI/dw-offline-rl): theirs multiplies each loss of
    each method by the weights, here minibatches are drawn again by them (systematic resampling), so
    TD3+BC's actor is weighted by w(s, a) throughout (theirs weights its Q term by w(s)) and what a
    method computes over the minibatch, as mean |Q|, is weighted too. Rewards are scaled by the
    range seen so far, not the dataset's; logits are cut at 20 in the flow term. As there, the flow
    term ignores terminals. Metrics: `weight_share` is the effective share of a minibatch,
    1 / (B sum w^2); `weight_gain` the weighted less the plain mean of the scaled reward.
    """

    flow_weight: float = 1.0  # lambda_F
    kl_weight: float = 0.2  # lambda_K
    # C: logits of g and of f are clipped to +-(1 + C)
    clip: float = 0.2
    temperature: Positive = 1.0
    flow_discount: float = 1.0
    lr: Positive = 1e-4
    hidden: Widths = (256, 256)

    def __post_init__(self) -> None:
        check_ranges(self, "weight")

    def init(self, key: Tensor, spec: Spec) -> State:
        k_inner, k_pair, k_single = rng.split(key, 3)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        pair = nets.mlp_init(k_pair, (n_obs + n_act, *self.hidden, 1))
        single = nets.mlp_init(k_single, (n_obs, *self.hidden, 1))
        # finite, as infinite states count as diverged
        far = torch.full((), 1e30, device=key.device)
        opt = Adam(self.lr).init((pair, single))
        return State(self.method.init(k_inner, spec), pair, single, far, -far, opt)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        k_inner, *k_draw = rng.split(key, 1 + self.minibatches)
        one = self.minibatches == 1
        drawn = []
        for i, k in enumerate(k_draw):
            mini = batch if one else minibatch(batch, i)
            state, weight, metrics = self._learn(state, mini)
            row = resample(k, weight)
            drawn.append(tree_map(lambda x, row=row: x[row], mini))
        batch = drawn[0] if one else tree_map(lambda *x: torch.stack(x), *drawn)
        inner, more = self.method.update(state.inner, batch, k_inner)
        return state._replace(inner=inner), more | metrics

    def _learn(self, state: State, batch: Batch) -> tuple[State, Tensor, Metrics]:
        """One step of the weight networks, and the weights (B,) before it, which sum to 1."""
        low = torch.minimum(state.low, batch.reward.amin())
        high = torch.maximum(state.high, batch.reward.amax())
        reward = (batch.reward - low) / (high - low).clamp(min=1e-8)
        params = (state.pair, state.single)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, (weight, metrics)) = loss(params, batch, reward)
        (pair, single), opt = Adam(self.lr).step(grads, state.opt, params)
        state = state._replace(pair=pair, single=single, low=low, high=high, opt=opt)
        return state, weight.detach(), metrics

    def _loss(self, params: tuple, batch: Batch, reward: Tensor) -> tuple[Tensor, tuple]:
        pair, single = params
        # a window is weighted by its first step
        obs = batch.obs.obs[..., 0, :] if isinstance(batch.obs, Context) else batch.obs
        g = nets.mlp(pair, torch.cat([obs, batch.action], -1)).squeeze(-1)  # (B,)
        f = nets.mlp(single, obs).squeeze(-1)
        next_f = nets.mlp(single, batch.next_obs).squeeze(-1)

        bound = 1 + self.clip
        logit = (g.clamp(-bound, bound) + f.clamp(-bound, bound)) / self.temperature
        weight, log_weight = logit.softmax(-1), logit.log_softmax(-1)
        exp = lambda x: (x / self.temperature).clamp(-_LARGEST, _LARGEST).exp()
        flow = torch.square(self.flow_discount * exp(g + f) - exp(next_f)).mean()
        kl = (weight * log_weight).sum()
        metrics = {
            "weight_share": 1 / (weight.numel() * torch.square(weight).sum()),
            "weight_gain": (weight * reward).sum() - reward.mean(),
            "weight_flow_error": flow,
        }
        loss = -(weight * reward).sum() + self.flow_weight * flow + self.kl_weight * kl
        return loss, (weight, metrics)


def resample(key: Tensor, weight: Tensor) -> Tensor:
    """(B,) row numbers drawn by `weight` (B,), which sums to 1: row i about B weight_i times.

    Systematic resampling (Kitagawa, 1996): one uniform number, and each count is its expectation
    rounded down or up.
    """
    n = len(weight)
    at = (torch.arange(n, device=weight.device) + rng.uniform(key, (), weight.dtype)) / n
    # a product: the order in which cumsum adds is not fixed on a GPU
    upto = torch.ones(n, n, dtype=torch.float64, device=weight.device).tril()
    edges = (upto @ weight.double()).to(weight.dtype)
    return (edges[:-1] / edges[-1] <= at[:, None]).sum(-1)
