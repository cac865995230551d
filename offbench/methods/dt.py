"""Decision Transformer (Chen et al., 2021). https://arxiv.org/abs/2106.01345

A causal transformer reads (return-to-go, observation, action) of the last steps and predicts each
action from what came before it. Asked for a large return, it acts as the episodes that had one. It
learns from `view=window`, whose `target_return` it is conditioned on. Discrete actions
(`actions="discrete"`) are learned by likelihood.

Differs from the authors' code (kzl/decision-transformer, gym): padding is on the right (no step
sees it there either), weights start at standard deviation 0.02 throughout (theirs only inside the
blocks), the unused heads for observations and returns are left out, and `target_return` is by
default the best return in the data. Their budget: 100,000 updates of 64 windows of 20 steps.
If you come from CORL: `width` is `embedding_dim`, `dropout` is all three of its dropout rates,
`max_grad_norm` is `clip_grad`; `loss_over="window"` and `activation="gelu"` are its choices, and
`view.return_scale` is its `reward_scale`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import UserError
from offbench.nn import transformer
from offbench.nn.distributions import greedy
from offbench.nn.optim import AdamState, AdamW, clip_by_global_norm
from offbench.ranges import Count, Positive, Probability, check_ranges
from offbench.types import Batch, Context, Metrics, Spec


class State(NamedTuple):
    # embeddings of the three kinds of token and of time, the blocks, the action head
    params: dict
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class DT:
    width: Count = 128  # of a token
    layers: Count = 3
    heads: Count = 1
    activation: Literal["relu", "gelu"] = "relu"
    dropout: Probability = 0.1
    lr: Positive = 1e-4
    # updates until the learning rate is reached
    warmup: int = 10_000
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.25
    # "window" counts padding as steps without error
    loss_over: Literal["steps", "window"] = "steps"
    actions: Literal["continuous", "discrete"] = "continuous"
    needs: ClassVar[tuple[str, ...]] = ("context",)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.heads:
            raise UserError(
                f"method.width={self.width} must be a multiple of method.heads={self.heads}"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        k = rng.split(key, 6)
        linear = lambda k, n_in, n_out: {
            "w": 0.02 * rng.normal(k, (n_in, n_out)),
            "b": torch.zeros(1, n_out, device=key.device),
        }
        ones = torch.ones(1, self.width, device=key.device)
        params = {
            "return": linear(k[0], 1, self.width),
            "obs": linear(k[1], spec.obs_dim, self.width),
            "action": linear(k[2], spec.action_dim, self.width),
            "time": 0.02 * rng.normal(k[3], (spec.max_episode_steps, self.width)),
            "norm": {"scale": ones, "shift": torch.zeros_like(ones)},
            "body": transformer.init(
                k[4], width=self.width, layers=self.layers, hidden=4 * self.width
            ),
            "head": linear(k[5], self.width, spec.action_dim),
        }
        return State(params, self._optimiser().init(params))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        grads, (loss, error) = grad_and_value(self._loss, has_aux=True)(
            state.params, batch.obs, key
        )
        grads, norm = clip_by_global_norm(grads, self.max_grad_norm)
        params, opt = self._optimiser().step(grads, state.opt, state.params)
        return State(params, opt), {"loss": loss, "action_error": error, "grad_norm": norm}

    def act(self, state: State, obs: Context, key: Tensor) -> Tensor:
        # evaluation is greedy and drops nothing out
        del key
        action = self._actions(state.params, obs)  # (E, K, A)
        last = obs.valid.sum(-1)[:, None, None] - 1
        action = action.gather(1, last.expand(-1, 1, action.shape[-1])).squeeze(1)
        return action if self.actions == "continuous" else greedy(action)

    def _optimiser(self) -> AdamW:
        return AdamW(self.lr, self.weight_decay, self.warmup)

    def _loss(self, params: dict, context: Context, key: Tensor) -> tuple[Tensor, Tensor]:
        action = self._actions(params, context, key)
        if self.actions == "continuous":
            error = torch.square(action - context.action).mean(-1)
        else:
            error = -(action.log_softmax(-1) * context.action).sum(-1)
        valid = context.valid.to(error.dtype)
        error = error * valid  # (B, K)
        per_step = error.sum() / valid.sum()
        return (error.mean() if self.loss_over == "window" else per_step), per_step

    def _actions(self, params: dict, context: Context, key: Tensor | None = None) -> Tensor:
        """Every step's action, or the logits of its choices, from what came before it: (B, K, A)."""
        k_embed, k_body = (None, None) if key is None else rng.split(key)
        embed = lambda name, x: x @ params[name]["w"] + params[name]["b"]
        step = context.timestep.clamp(max=len(params["time"]) - 1)
        time = transformer.embed(params["time"], step)  # (B, K, W)
        parts = [
            embed("return", context.return_to_go[..., None]),
            embed("obs", context.obs),
            embed("action", context.action),
        ]
        tokens = torch.stack([part + time for part in parts], -2)  # (B, K, 3, W)
        tokens = F.layer_norm(tokens.flatten(-3, -2), (self.width,))  # (B, 3 K, W)
        tokens = tokens * params["norm"]["scale"] + params["norm"]["shift"]
        tokens = transformer.drop(tokens, self.dropout, k_embed)
        out = transformer.apply(
            params["body"],
            tokens,
            heads=self.heads,
            activation=self.activation,
            dropout=self.dropout,
            key=k_body,
        )
        # from the observations' tokens
        action = embed("head", out[..., 1::3, :])
        return action.tanh() if self.actions == "continuous" else action
