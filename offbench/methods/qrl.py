"""Quasimetric RL, QRL (Wang et al., 2023), in OGBench's form. https://arxiv.org/abs/2304.01203

The distance d(s, g) in steps is the largest function that obeys the triangle inequality and says 1 for every
recorded step. Both are built in: d is an interval quasimetric embedding (IQE; Wang and Isola, 2022), and a
multiplier lambda holds steps to 1 while distances to random goals are pushed apart.

    d(s, g)  = sigmoid(rho) mean_c l_c + (1 - sigmoid(rho)) max_c l_c,  l_c the length of the union of the
               intervals [phi(s)_ck, phi(g)_ck] that are not empty, k = 1 ... 8
    L_phi    = 100 softplus(5 - d(s, g) / 100) + lambda relu(d(s, s') - 1)^2
    L_lambda = lambda (epsilon - mean relu(d(s, s') - 1)^2)
    L_f      = (d(phi', phi^) + d(phi^, phi')) / 2,  phi^ = phi(s) + f(phi(s), a),  which trains phi too
    L_pi     = DDPG+BC with Q = -d(phi(s) + f(phi(s), pi), phi(g)),  pi the mean clipped to [-1, 1]

Rewards and discounts are not read. As in seohongpark/ogbench 1d41409, impls/agents/qrl.py, of which the form
for discrete actions (AWR) and the other quasimetric (MRN) are left out.

Metrics: the losses of phi, f and pi, lambda, the mean distances to random goals and of a step.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from offbench import rng
from offbench.errors import UserError
from offbench.nn import goal_nets, nets
from offbench.nn.optim import Adam, AdamState
from offbench.ranges import Count, Positive, Widths, check_ranges
from offbench.types import Batch, Metrics, Spec

# intervals of a component of the embedding
INTERVALS = 8


class Quasimetric(NamedTuple):
    phi: nets.Params
    # rho, () : between the mean and the maximum of the components
    mix: Tensor


class State(NamedTuple):
    metric: Quasimetric
    # f
    dynamics: nets.Params
    # log lambda, ()
    log_multiplier: Tensor
    actor: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class QRL:
    # alpha of DDPG+BC
    bc_weight: float = 0.003
    # epsilon: how much the mean squared excess of a step's distance over 1 may be
    slack: Positive = 0.05
    latent_dim: Count = 512
    lr: Positive = 3e-4
    hidden: Widths = (512, 512, 512)
    needs: ClassVar[tuple[str, ...]] = ("actor_goals",)
    trained_together: ClassVar = (("metric", "dynamics"),)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not isinstance(self.latent_dim, Tensor) and self.latent_dim % INTERVALS:
            raise UserError(
                f"method.latent_dim={self.latent_dim} must be a multiple of {INTERVALS}"
            )

    def check(self, spec: Spec) -> None:
        if spec.obs_dim != 2 * spec.goal_dim:
            n_obs = spec.obs_dim - spec.goal_dim
            raise UserError(
                f"qrl measures between goals of the same kind as observations: {spec.goal_dim} numbers, not {n_obs}"
            )

    def init(self, key: Tensor, spec: Spec) -> State:
        self.check(spec)
        k_phi, k_dynamics, k_actor = rng.split(key, 3)
        n_latent, n_act = self.latent_dim, spec.action_dim
        phi = goal_nets.value_init(k_phi, spec.goal_dim, self.hidden, n_latent, ensemble=None)
        dynamics = goal_nets.value_init(
            k_dynamics, n_latent + n_act, self.hidden, n_latent, ensemble=None
        )
        actor = goal_nets.actor_init(k_actor, spec.obs_dim, self.hidden, n_act)
        mix, multiplier = (torch.zeros((), device=key.device) for _ in range(2))
        params = (Quasimetric(phi, mix), dynamics, multiplier, actor)
        return State(*params, opt=Adam(self.lr).init(params))

    def update(self, state: State, batch: Batch, key: Tensor) -> tuple[State, Metrics]:
        del key
        params = (state.metric, state.dynamics, state.log_multiplier, state.actor)
        loss = grad_and_value(self._loss, has_aux=True)
        grads, (_, metrics) = loss(params, state, batch)
        (metric, dynamics, multiplier, actor), opt = Adam(self.lr).step(grads, state.opt, params)
        return State(metric, dynamics, multiplier, actor, opt), metrics

    def act(self, state: State, obs: Tensor, key: Tensor) -> Tensor:
        del key  # evaluation is greedy
        return goal_nets.actor(state.actor, obs).clamp(-1, 1)

    def distance(self, state: State, obs: Tensor) -> Tensor:
        """Steps from state to goal: (E, O + G) -> (E,)."""
        here, goal = (goal_nets.features(state.metric.phi, x) for x in obs.chunk(2, -1))
        return _distance(state.metric, here, goal)

    def _loss(self, params: tuple, before: State, batch: Batch) -> tuple[Tensor, Metrics]:
        metric, dynamics, log_multiplier, actor = params
        obs, goal = batch.obs.chunk(2, -1)
        phi, phi_goal, phi_next = (
            goal_nets.features(metric.phi, x) for x in (obs, goal, batch.next_obs.chunk(2, -1)[0])
        )
        apart, step = _distance(metric, phi, phi_goal), _distance(metric, phi, phi_next)
        excess = (step - 1).relu().square().mean()
        multiplier = log_multiplier.exp()
        spread_loss = 100 * F.softplus(5 - apart / 100).mean()
        metric_loss = spread_loss + multiplier.detach() * excess
        multiplier_loss = multiplier * (self.slack - excess.detach())

        guess = phi + goal_nets.features(dynamics, phi, batch.action)
        both_ways = _distance(metric, phi_next, guess) + _distance(metric, guess, phi_next)
        dynamics_loss = both_ways.mean() / 2

        actor_loss = self._actor_loss(actor, before, batch)
        metrics = {
            "metric_loss": metric_loss,
            "dynamics_loss": dynamics_loss,
            "actor_loss": actor_loss,
            "multiplier": multiplier,
            "distance": apart.mean(),
            "step_distance": step.mean(),
        }
        return metric_loss + multiplier_loss + dynamics_loss + actor_loss, metrics

    def _actor_loss(self, actor: nets.Params, before: State, batch: Batch) -> Tensor:
        """The metric and the dynamics are those of before the step and learn nothing from it."""
        both = batch.extras["actor_obs"]
        mean = goal_nets.actor(actor, both)
        here, goal = (goal_nets.features(before.metric.phi, x) for x in both.chunk(2, -1))
        after = here + goal_nets.features(before.dynamics, here, mean.clamp(-1, 1))
        q = -_distance(before.metric, after, goal)
        return goal_nets.ddpg_bc_loss(q, goal_nets.log_prob(mean, batch.action), self.bc_weight)


def _distance(metric: Quasimetric, start: Tensor, end: Tensor) -> Tensor:
    """IQE of embeddings: (B, latent_dim) twice -> (B,)."""
    lengths = union_length(*(x.unflatten(-1, (-1, INTERVALS)) for x in (start, end)))
    share = metric.mix.sigmoid()
    return share * lengths.mean(-1) + (1 - share) * lengths.amax(-1)


def union_length(left: Tensor, right: Tensor) -> Tensor:
    """Length of the union of the intervals [left, right] along the last axis; where left >= right none.

    The sum of the right ends that no other interval covers, less that of such left ends.
    """
    place = torch.arange(left.shape[-1], device=left.device)
    first = place[None] < place[:, None]
    real = left < right
    # (..., k, j): what interval j does to the ends of k; of equal ends the first counts
    x, y, other_x, other_y = (
        left[..., None],
        right[..., None],
        left[..., None, :],
        right[..., None, :],
    )
    begins = (other_x < x) | ((other_x == x) & first)
    lasts = (other_y > y) | ((other_y == y) & first)
    hides = real[..., None, :]
    opens = real & ~(hides & begins & (x <= other_y)).any(-1)
    closes = real & ~(hides & lasts & (other_x <= y)).any(-1)
    return (torch.where(closes, right, 0.0) - torch.where(opens, left, 0.0)).sum(-1)
