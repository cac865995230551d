"""Conservative Q-learning for discrete actions (Kumar et al., 2020). https://arxiv.org/abs/2006.04779

Double Q-learning with the penalty of CQL(H), equation 4, which needs no samples here: the
log-sum-exp of Q over all actions is lowered and Q at the data's action is raised, so an action that
the data do not hold is never preferred for an estimate that nothing corrected.

The target network is copied every `copy_every` updates as in DQN, or follows at `polyak_rate`.
Differs from the authors' code (aviralkumar2907/CQL, on Atari frames): one Q in place of 200 quantiles,
an MLP in place of convolutions. Differs from d3rlpy's DiscreteCQL: none known but the kind of target
(theirs is copied) and the step size.
If you come from d3rlpy: `conservative_weight` is `alpha`, `copy_every` `target_update_interval`, `lr`
`learning_rate`.

Metrics: `critic_loss` the Huber loss of the TD error, linear beyond 1, `conservative_gap` log-sum-exp minus Q at the data, `q` at
the data's actions, `q_greedy` at the best, `greedy_share` of the batch whose recorded action is the best.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.nn import nets
from offbench.nn.distributions import greedy
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    critic: nets.Params
    target_critic: nets.Params
    n_updates: Tensor  # () int64
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class DiscreteCQL:
    conservative_weight: float = 1.0  # alpha
    # updates between copies of the target; None: `polyak_rate`
    copy_every: Count | None = None
    polyak_rate: PolyakRate = 0.005
    lr: Positive = 3e-4
    hidden: Widths = (256, 256)
    actions: ClassVar[str] = "discrete"

    def __post_init__(self) -> None:
        check_ranges(self)

    def init(self, key: Tensor, spec: Spec) -> State:
        (k,) = rng.split(key, 1)
        critic = nets.mlp_init(k, (spec.obs_dim, *self.hidden, spec.action_dim))
        n_updates = torch.zeros((), dtype=torch.int64, device=key.device)
        return State(critic, critic, n_updates, Adam(self.lr).init(critic))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        # nothing is drawn while training
        del key
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(state.critic, state.target_critic, batch)
        critic, opt = Adam(self.lr).step(grads, state.opt, state.critic)
        n_updates = state.n_updates + 1
        if self.copy_every is None:
            target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        else:
            due = n_updates % self.copy_every == 0
            target_critic = tree_map(
                lambda new, old: torch.where(due, new, old), critic, state.target_critic
            )
        return State(critic, target_critic, n_updates, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return greedy(nets.mlp(state.critic, obs))

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """Q of the action: (E, O), (E, A) one-hot -> (E,)."""
        return (nets.mlp(state.critic, obs) * action).sum(-1)

    def _loss(
        self, critic: nets.Params, target_critic: nets.Params, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        both = nets.mlp(critic, torch.cat([batch.obs, batch.next_obs]))  # (2 B, A)
        q, next_q = both.chunk(2)
        best = greedy(next_q.detach())
        next_v = (nets.mlp(target_critic, batch.next_obs) * best).sum(-1)  # (B, A) -> (B,)
        q_data = (q * batch.action).sum(-1)  # actions are one-hot
        error = q_data - (batch.reward + batch.discount * next_v)
        huber = F.huber_loss(error, torch.zeros_like(error), reduction="none")
        gap = q.logsumexp(-1) - q_data
        metrics = {
            "critic_loss": huber.mean(),
            "conservative_gap": gap.mean(),
            "q": q_data.mean(),
            "q_greedy": q.amax(-1).mean(),
            "greedy_share": (greedy(q) * batch.action).sum(-1).mean(),
        }
        return (huber + self.conservative_weight * gap).mean(), metrics
