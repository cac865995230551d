"""SAC-N and EDAC (An et al., 2021). https://arxiv.org/abs/2110.01548

SAC-N is soft actor-critic with the smallest of N critics in the target and in the actor's loss: far
from the data the critics disagree, so the minimum is pessimistic exactly there, and a large N needs
no other term. EDAC gets by with fewer: `diversity_weight` (eta) penalises the cosine similarity of
the critics' gradients in the action, equation 9, which keeps them disagreeing where it matters.

The cosines of all pairs are summed as |sum of unit gradients|^2 - sum of their squares, so the term
costs N, not N^2; each critic's gradient at the data's actions comes with the forward pass for its TD
error. All losses use the parameters from before the update, as in the authors' code.
`max_target_backup` is theirs on pen-cloned: each critic's best of K actions, then the smallest
critic; the online critics are used, without entropy. Rewards, which they
standardise on adroit, are the transform `reward_standard`.
Differs from the authors' code (snu-mllab/EDAC): hidden weights start as in torch.nn.Linear, and the
log density is exact, where theirs, and CORL's, adds 1e-6 inside the logarithm.
Differs from CORL: it draws one more sample for the temperature and steps temperature, actor, critics
one after the other, each from the new values of the one before.
If you come from CORL: `n_critics` is `num_critics`, `diversity_weight` `eta` (null: SAC-N), `polyak_rate`
`tau`, `actor_lr` and `critic_lr` are `actor_learning_rate` and `critic_learning_rate`; the
temperature learns at the actor's rate.

Metrics: `q` at the data's actions, `q_policy` the smallest at the policy's and `q_policy_spread` the
critics' standard deviation there (uncorrected), `critic_loss` the TD errors' sum, `diversity_loss` the
sum of cosines over N - 1 (0 for SAC-N), `entropy` of the policy, `temperature` of the entropy.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.errors import UserError
from offbench.nn import nets
from offbench.nn.distributions import tanh_gaussian_sample
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # mean and log-std before the tanh
    actor: nets.Params
    log_temperature: Tensor  # ()
    critic: nets.Params  # leading axis N
    target_critic: nets.Params
    opt_actor: AdamState  # of actor and temperature
    opt_critic: AdamState


@dataclass(frozen=True, kw_only=True)
class SACN:
    n_critics: Count = 10  # N
    # eta of EDAC; None leaves the term out
    diversity_weight: float | None = None
    # bootstrap from each critic's best of K actions
    max_target_backup: bool = False
    n_actions: Count = 10  # K
    polyak_rate: PolyakRate = 0.005
    actor_lr: Positive = 3e-4  # also the temperature's
    critic_lr: Positive = 3e-4
    hidden: Widths = (256, 256, 256)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.diversity_weight is not None and self.n_critics < 2:
            raise UserError(
                f"n_critics={self.n_critics}: diversity_weight needs at least 2 critics"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic = rng.split(key)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        actor = nets.mlp_init(k_actor, (n_obs, *self.hidden, 2 * n_act), bias=0.1, last=1e-3)
        sizes = (n_obs + n_act, *self.hidden, 1)
        critic = nets.mlp_init(k_critic, sizes, ensemble=self.n_critics, bias=0.1, last=3e-3)
        log_temperature = torch.zeros((), device=key.device)
        opt_actor = Adam(self.actor_lr).init((actor, log_temperature))
        opt_critic = Adam(self.critic_lr).init(critic)
        return State(actor, log_temperature, critic, critic, opt_actor, opt_critic)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = (state.actor, state.log_temperature, state.critic)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state.target_critic, batch, key)
        (actor, log_temperature), opt_actor = Adam(self.actor_lr).step(
            grads[:2], state.opt_actor, params[:2]
        )
        critic, opt_critic = Adam(self.critic_lr).step(grads[2], state.opt_critic, state.critic)
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(actor, log_temperature, critic, target_critic, opt_actor, opt_critic), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return nets.mlp(state.actor, obs).chunk(2, -1)[0].tanh()

    def gaussian_policy(self, state: State, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the policy before tanh, (E, A) each."""
        mean, log_std = nets.mlp(state.actor, obs).chunk(2, -1)
        return mean, log_std.clamp(-5.0, 2.0)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smallest Q, which includes future entropy: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action).amin(0)

    def _loss(
        self, params: tuple, target_critic: nets.Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The three losses touch disjoint parameters, so their sum is one backward pass."""
        actor, log_temperature, critic = params
        k_here, k_next = rng.split(key)
        temperature = log_temperature.exp().detach()
        fixed_actor, fixed_critic = tree_map(Tensor.detach, (actor, critic))

        action, log_prob = _sample(actor, batch.obs, k_here)  # (B, A), (B,)
        entropy = -log_prob.mean()
        target_entropy = -batch.action.shape[-1]
        temperature_loss = log_temperature * (entropy - target_entropy).detach()
        q_policy = _q(fixed_critic, batch.obs, action)  # (N, B)
        actor_loss = (temperature * log_prob - q_policy.amin(0)).mean()

        if self.max_target_backup:
            tiled = batch.next_obs.repeat(self.n_actions, 1)  # (K * B, O)
            next_q = _q(fixed_critic, tiled, _sample(fixed_actor, tiled, k_next)[0])  # (N, K * B)
            next_v = next_q.unflatten(1, (self.n_actions, -1)).amax(1).amin(0)  # (B,)
        else:
            next_action, next_log_prob = _sample(fixed_actor, batch.next_obs, k_next)
            next_q = _q(target_critic, batch.next_obs, next_action).amin(0)  # (N, B) -> (B,)
            next_v = next_q - temperature * next_log_prob
        target = batch.reward + batch.discount * next_v
        if self.diversity_weight is None:
            q, diversity_loss = _q(critic, batch.obs, batch.action), torch.zeros_like(actor_loss)
            weight = 0.0
        else:
            q, diversity_loss = _diversity(critic, batch.obs, batch.action)
            weight = self.diversity_weight
        td_error = torch.square(q - target).mean(-1).sum()

        metrics = {
            "critic_loss": td_error,
            "diversity_loss": diversity_loss,
            "q": q.mean(),
            "q_policy": q_policy.amin(0).mean(),
            "q_policy_spread": q_policy.std(0, unbiased=False).mean(),
            "actor_loss": actor_loss,
            "entropy": entropy,
            "temperature": temperature,
        }
        return temperature_loss + actor_loss + td_error + weight * diversity_loss, metrics


def _sample(actor: nets.Params, obs: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """An action of the policy at each observation and its log density: (B, A), (B,)."""
    mean, log_std = nets.mlp(actor, obs).chunk(2, -1)
    return tanh_gaussian_sample(mean, log_std.clamp(-5.0, 2.0), rng.normal_like(key, mean))


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """(B, O), (B, A) -> (N, B)."""
    return nets.mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)


def _diversity(critic: nets.Params, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the data (N, B), and the mean over the batch of sum_{i != j} cos(dQ_i/da, dQ_j/da) / (N - 1)."""
    n = len(critic[0]["w"])

    def total(tiled: Tensor) -> tuple[Tensor, Tensor]:
        # every critic its own actions
        rows = torch.cat([obs.expand(n, *obs.shape), tiled], -1)
        q = nets.mlp(critic, rows).squeeze(-1)
        return q.sum(), q

    slope, q = grad(total, has_aux=True)(action.expand(n, *action.shape))  # (N, B, A), (N, B)
    slope = slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)
    pairs = slope.sum(0).square().sum(-1) - slope.square().sum((0, -1))  # (B,)
    return q, pairs.mean() / (n - 1)
