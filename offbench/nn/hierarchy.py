"""What hierarchical goal-conditioned methods share: representations of goals, losses of their two levels.

Observations end with a goal, [s; g]. A representation of a goal as seen from a state, phi([s; g]), has length
sqrt(R), as random vectors of R numbers have. The high level names a sub-goal by its representation, the low
level acts on the state and that (Park et al., 2023, https://arxiv.org/abs/2307.11949).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from offbench.nn import goal_nets, nets
from offbench.types import Batch, Metrics


class Step(NamedTuple):
    """Transitions that a value learns from: one step, or one option."""

    obs: Tensor  # (B, O + G)
    next_obs: Tensor  # (B, O + G)
    reward: Tensor  # (B,)
    discount: Tensor  # (B,)


def length_normalized(x: Tensor) -> Tensor:
    """Vectors scaled to length sqrt(R): (..., R). One without a length stays 0, and has no gradient."""
    squared = torch.square(x).sum(-1, keepdim=True)
    some = squared > 1e-16
    scale = torch.where(some, squared, 1.0).rsqrt()
    return x * torch.where(some, scale, 0.0) * x.shape[-1] ** 0.5


def soft_length_normalized(x: Tensor) -> Tensor:
    """Vectors of length n scaled to sqrt(R) tanh(n): (..., R); short ones keep their length, up to sqrt(R)."""
    squared = torch.square(x).sum(-1, keepdim=True)
    length = squared.clamp(min=1e-12).sqrt()
    # tanh(n) / n without a division by nearly 0
    scale = torch.where(length < 1e-2, 1 - squared / 3, length.tanh() / length)
    return x * scale * x.shape[-1] ** 0.5


def represent(params: nets.Params, obs: Tensor) -> Tensor:
    """phi([s; g]): (B, O + G) -> (B, R)."""
    return length_normalized(goal_nets.features(params, obs))


def states(obs: Tensor, rep: Tensor, params: nets.Params) -> Tensor:
    """The states of observations, by what a network on (s, phi) takes beside phi: (B, O + G) -> (B, O)."""
    return obs[..., : params[0]["w"].shape[-2] - rep.shape[-1]]


def values(params: nets.Params, obs: list[Tensor], reps: list[Tensor]) -> tuple[Tensor, ...]:
    """V(s, phi) of the twins at several batches, in one pass: (B, O + G) and (B, R) each -> (2, B) each."""
    all_obs, rep = torch.cat(obs), torch.cat(reps)
    return goal_nets.value(params, states(all_obs, rep, params), rep).chunk(len(obs), -1)


def ivl_loss(v: Tensor, target_v: Tensor, next_v: Tensor, step: Step, expectile: float) -> Tensor:
    """Implicit V-learning of twins, as in GCIVL: V, and the target network's V and next V, (2, B) each.

    A = r + gamma m min_i next_i - mean_i target_i weights the squared error of each head to its own target.
    """
    advantage = step.reward + step.discount * next_v.amin(0) - target_v.mean(0)
    error = step.reward + step.discount * next_v - v
    return goal_nets.expectile_loss(advantage, error, expectile).mean(1).sum()


def value_loss(
    learned: tuple[nets.Params, nets.Params],
    fixed: tuple[nets.Params, nets.Params],
    step: Step,
    expectile: float,
) -> tuple[Tensor, Tensor]:
    """The loss of phi and V, (phi, V) `learned`, by the `fixed` phi of before and target of V; and V (2, B).

    There is no target of phi: the target network reads the representation of now, without a gradient.
    """
    rep, next_rep = represent(learned[0], step.obs), represent(fixed[0], step.next_obs)
    (v,) = values(learned[1], [step.obs], [rep])
    target_v, next_v = values(fixed[1], [step.obs, step.next_obs], [rep.detach(), next_rep])
    return ivl_loss(v, target_v, next_v, step, expectile), v


def policy_loss(
    actors: tuple[nets.Params, nets.Params],
    judges: tuple[nets.Params, nets.Params],
    goal_rep: nets.Params,
    batch: Batch,
    temperatures: tuple[float, float],
) -> tuple[Tensor, Metrics]:
    """Advantage-weighted regression of both levels, (low, high) each; `judges` and `goal_rep` are constants.

    Low: the action, towards w = s_{i+k}, weighted by V(s', w) - V(s, w).
    High: phi([s; s_{i+k}]), towards g, weighted by V(s_{i+k}, g) - V(s, g).
    """
    extras = batch.extras
    low = [extras["low_actor_obs"], extras["low_actor_next_obs"]]
    high = [extras["actor_obs"], extras["reached_obs"]]
    reps = represent(goal_rep, torch.cat([*low, *high, extras["target_obs"]])).chunk(5)
    low_v, high_v = values(judges[0], low, [*reps[:2]]), values(judges[1], high, [*reps[2:4]])
    states_ = states(batch.obs, reps[0], actors[0])
    means = goal_nets.actor(actors[0], states_, reps[0]), goal_nets.actor(actors[1], high[0])
    losses, weights = [], []
    for (v, later_v), mean, wanted, temperature in zip(
        (low_v, high_v), means, (batch.action, reps[4]), temperatures, strict=True
    ):
        weight = goal_nets.advantage_weight((later_v - v).mean(0), temperature)
        losses.append(-(weight * goal_nets.log_prob(mean, wanted)).mean())
        weights.append(weight.mean())
    metrics = {
        "low_actor_loss": losses[0],
        "high_actor_loss": losses[1],
        "low_advantage_weight": weights[0],
        "high_advantage_weight": weights[1],
    }
    return losses[0] + losses[1], metrics


def subgoal(high_actor: nets.Params, obs: Tensor) -> Tensor:
    """The representation of the sub-goal that the high level asks for: (E, O + G) -> (E, R)."""
    return length_normalized(goal_nets.actor(high_actor, obs))


def act(low_actor: nets.Params, obs: Tensor, rep: Tensor) -> Tensor:
    """The low level's action for a sub-goal: (E, O + G), (E, R) -> (E, A)."""
    return goal_nets.actor(low_actor, states(obs, rep, low_actor), rep).clamp(-1, 1)
