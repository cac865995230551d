"""Conservative Q-learning (Kumar et al., 2020) on soft actor-critic. https://arxiv.org/abs/2006.04779

CQL(H), equation 4: the critic's loss adds the log-sum-exp of Q over all actions minus Q at the data's
action to the TD error, so actions that the data do not support lose value. The
integral over actions is estimated from 3 K of them and their densities (appendix F): uniform ones,
the policy's, and the policy's at the next observation. `calibrated` is the offline part of Cal-QL
(Nakamoto et al., 2023, https://arxiv.org/abs/2303.05479), equation 4.1: there Q of the policy's
actions counts no less than the return that followed in the data.

The order is CORL's: the losses of temperature, actor, critics and multiplier use the parameters
from before the update. Both critics see the 3 K + 1 actions in one pass, and K samples of a policy
cost one pass of its network.
Differs from the authors' code (aviralkumar2907/CQL): no 40k first updates of cloning; the multiplier
starts at e as in CORL (theirs 1); the target takes the smaller twin before the best action.
Differs from CORL: its second critic keeps 3 layers whatever the setting; after a terminal, where
there is no next observation, the third kind of actions is drawn at `obs`.
Cal-QL's authors (nakamotoo/Cal-QL) take the return of an episode that failed on a sparse task as that of
failing for ever: `sparse_rewards`, an episode of nothing but the data's least reward. CORL takes
one whose last reward is the failure's, so it also counts a success that was lost again.
If you come from CORL: `conservative_weight` is `cql_alpha`, `target_gap` `cql_target_action_gap`,
`softmax_temperature` `cql_temp`, `entropy_backup` `backup_entropy`, `polyak_rate`
`soft_target_update_rate`, `actor_lr` `policy_lr`, `critic_lr` `qf_lr`, and the length of
`critic_hidden` `q_n_hidden_layers`; `hidden` is the policy's.

Metrics: `q` at the data's actions, `q_policy` at the policy's (smaller twin), `critic_loss` the TD
error alone, `conservative_gap` log-sum-exp minus Q at the data, `entropy` of the policy,
`temperature` of the entropy, `multiplier` of the gap in the loss.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.errors import UserError
from offbench.nn import nets
from offbench.nn.distributions import tanh_gaussian_sample
from offbench.nn.optim import Adam, AdamState, polyak
from offbench.ranges import Count, PolyakRate, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec


class State(NamedTuple):
    # the network of mean and log-std, and two numbers that rescale the latter
    actor: dict[str, Any]
    log_temperature: Tensor  # ()
    # leading axis 2: the twins
    critic: nets.Params
    log_multiplier: Tensor  # ()  alpha' of the Lagrange version
    target_critic: nets.Params
    opt_actor: AdamState  # of actor and temperature
    # of critics and multiplier
    opt_critic: AdamState


@dataclass(frozen=True, kw_only=True)
class CQL:
    conservative_weight: float = 10.0  # alpha
    n_actions: Count = 10  # K samples of each kind
    softmax_temperature: Positive = 1.0
    # False: plain log-sum-exp of samples and data, as CQL(rho)'s
    importance_sampling: bool = True
    # lower clip of log-sum-exp - Q of the data
    clip_diff_min: float | None = None
    # learn a multiplier that holds the gap at `target_gap`
    lagrange: bool = False
    target_gap: float = 5.0  # tau
    calibrated: bool = False  # Cal-QL
    # Cal-QL: failed episodes have the return of failing for ever
    sparse_rewards: bool = False
    # bootstrap from the best of K actions
    max_target_backup: bool = False
    # subtract the entropy cost in the target, as SAC does
    entropy_backup: bool = False
    # None: minus the number of action dimensions
    target_entropy: float | None = None
    polyak_rate: PolyakRate = 0.005
    actor_lr: Positive = 3e-5  # also the temperature's
    critic_lr: Positive = 3e-4  # also the multiplier's
    hidden: Widths = (256, 256, 256)
    critic_hidden: Widths | None = None  # None: as `hidden`

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sparse_rewards and not self.calibrated:
            raise UserError(
                "sparse_rewards=true is about the bound of calibrated=true, which is off"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.calibrated:
            return ()
        return ("sparse_return_to_go",) if self.sparse_rewards else ("return_to_go",)

    def init(self, key: Tensor, spec: Spec) -> State:
        k_actor, k_critic = rng.split(key)
        n_obs, n_act = spec.obs_dim, spec.action_dim
        small = 0.01 * (6 / (self.hidden[-1] + 2 * n_act)) ** 0.5  # Xavier with gain 0.01
        net = nets.mlp_init(k_actor, (n_obs, *self.hidden, 2 * n_act), last=small)
        net[-1]["b"] = torch.zeros_like(net[-1]["b"])
        zero = torch.zeros((), device=key.device)
        actor = {"net": net, "log_std_scale": zero + 1, "log_std_shift": zero - 1}
        sizes = (n_obs + n_act, *(self.critic_hidden or self.hidden), 1)
        critic = nets.mlp_init(k_critic, sizes, ensemble=2, weight="orthogonal")
        critic[-1]["w"] = 0.01 / 2**0.5 * critic[-1]["w"]  # gain 0.01
        opt_actor = Adam(self.actor_lr).init((actor, zero))
        opt_critic = Adam(self.critic_lr).init((critic, zero))
        return State(actor, zero, critic, zero + 1, critic, opt_actor, opt_critic)

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        params = state[:4]
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state.target_critic, batch, key)
        (actor, log_temperature), opt_actor = Adam(self.actor_lr).step(
            grads[:2], state.opt_actor, params[:2]
        )
        (critic, log_multiplier), opt_critic = Adam(self.critic_lr).step(
            grads[2:], state.opt_critic, params[2:]
        )
        target_critic = polyak(state.target_critic, critic, self.polyak_rate)
        return State(
            actor, log_temperature, critic, log_multiplier, target_critic, opt_actor, opt_critic
        ), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return _policy(state.actor, obs)[0].tanh()

    def gaussian_policy(self, state: State, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the policy before tanh, (E, A) each."""
        return _policy(state.actor, obs)

    def value(self, state: State, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller Q of the twins: (E, O), (E, A) -> (E,)."""
        return _q(state.critic, obs, action[None]).amin(0)[0]  # (2, 1, E) -> (E,)

    def _loss(
        self, params: tuple, target_critic: nets.Params, batch: Batch, key: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The four losses touch disjoint parameters, so their sum is one backward pass."""
        actor, log_temperature, critic, log_multiplier = params
        k_here, k_next, k_uniform = rng.split(key, 3)
        k, n_act = self.n_actions, batch.action.shape[-1]
        n_backup = k if self.max_target_backup else 1
        temperature = log_temperature.exp().detach()

        here, log_here = _sample(actor, batch.obs, k_here, 1 + k)  # (1 + K, B, A), (1 + K, B)
        ended = (batch.discount == 0)[:, None]
        next_obs = torch.where(ended, batch.obs, batch.next_obs)
        after, log_after = _sample(_fixed(actor), next_obs, k_next, n_backup + k)

        target_entropy = -n_act if self.target_entropy is None else self.target_entropy
        entropy = -log_here[0].mean()
        temperature_loss = log_temperature * (entropy - target_entropy).detach()
        q_policy = _q(_fixed(critic), batch.obs, here[:1]).amin(0)[0]  # (2, 1, B) -> (B,)
        actor_loss = (temperature * log_here[0] - q_policy).mean()

        next_q = _q(target_critic, next_obs, after[:n_backup]).amin(0)  # (2, n, B) -> (n, B)
        next_v, best = next_q.max(0)
        if self.entropy_backup:
            next_v = next_v - temperature * log_after[:n_backup].gather(0, best[None])[0]
        target = batch.reward + batch.discount * next_v

        uniform = 2 * rng.uniform(k_uniform, (k, *batch.action.shape), batch.action.dtype) - 1
        sampled = torch.cat([uniform, after[n_backup:], here[1:]]).detach()  # (3 K, B, A)
        log_uniform = torch.full_like(log_here[1:], -n_act * math.log(2))
        log_density = torch.cat([log_uniform, log_after[n_backup:], log_here[1:]]).detach()
        q = _q(critic, batch.obs, torch.cat([batch.action[None], sampled]))  # (2, 1 + 3 K, B)
        q_data, q_sampled = q[:, 0], q[:, 1:]
        if self.calibrated:
            bounded = q_sampled[:, k:].maximum(batch.extras[self.needs[0]])
            q_sampled = torch.cat([q_sampled[:, :k], bounded], 1)
        gap = self._gap(q_data, q_sampled, log_density)

        multiplier = log_multiplier.exp().clamp(max=1e6) if self.lagrange else 1.0
        weight = self.conservative_weight * multiplier
        offset = self.target_gap if self.lagrange else 0.0
        multiplier_loss = -0.5 * (weight * (gap.detach() - offset)).sum()  # ascends
        td_error = torch.square(q_data - target).mean(-1)  # (2,)
        critic_loss = (td_error + _fixed(weight) * gap).sum()

        metrics = {
            "critic_loss": td_error.sum(),
            "conservative_gap": gap.mean(),
            "q": q_data.mean(),
            "q_policy": q_policy.mean(),
            "actor_loss": actor_loss,
            "entropy": entropy,
            "temperature": temperature,
            "multiplier": gap.new_ones(()) * multiplier,
        }
        return temperature_loss + actor_loss + critic_loss + multiplier_loss, metrics

    def _gap(self, q_data: Tensor, q_sampled: Tensor, log_density: Tensor) -> Tensor:
        """Soft maximum of Q over actions less Q of the data's: (2, B), (2, 3 K, B), (3 K, B) -> (2,)."""
        terms = torch.cat([q_data[:, None], q_sampled], 1)
        if self.importance_sampling:
            terms = q_sampled - log_density
        soft_max = self.softmax_temperature * (terms / self.softmax_temperature).logsumexp(1)
        gap = soft_max - q_data  # (2, B)
        if self.clip_diff_min is not None:
            gap = gap.clamp(min=self.clip_diff_min)
        return gap.mean(-1)


def _policy(actor: dict[str, Any], obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation before the tanh: (B, O) -> (B, A), (B, A)."""
    mean, log_std = nets.mlp(actor["net"], obs).chunk(2, -1)
    log_std = actor["log_std_scale"] * log_std + actor["log_std_shift"]
    return mean, log_std.clamp(-20.0, 2.0)


def _sample(actor: dict[str, Any], obs: Tensor, key: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n actions of the policy at each observation and their log densities: (n, B, A), (n, B)."""
    mean, log_std = _policy(actor, obs)
    return tanh_gaussian_sample(mean, log_std, rng.normal(key, (n, *mean.shape), mean.dtype))


def _q(critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
    """Q of n actions at each observation, as rows of one pass: (B, O), (n, B, A) -> (2, n, B)."""
    rows = torch.cat([obs.expand(*action.shape[:-1], -1), action], -1).flatten(0, 1)
    return nets.mlp(critic, rows).squeeze(-1).unflatten(-1, action.shape[:2])


def _fixed(tree: Any) -> Any:
    """The same values without gradient."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)
