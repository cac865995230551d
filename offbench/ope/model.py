"""A learned model of the environment, and the returns of a policy that acts in it: model-based evaluation.

    s' = s + f(s, a),  r = g(s, a),  p = P(the environment ends the episode | s, a)
    value of pi = mean discounted return of imagined episodes from the recorded first observations

An ensemble of networks is fitted by least squares to changes of the observation, rewards and terminals; each
imagined episode follows one member (Chua et al., 2018, TS-infinity, without their variances:
https://arxiv.org/abs/1805.12114). A model is a mean, so in an environment with chance it imagines states that lie
between real ones. Imagined observations and rewards are kept within the range of the recorded ones. Any policy can
be asked for actions, one with a memory too. Time limits are not imagined.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offbench import rng
from offbench.data.replay import ReplayData, first_rows
from offbench.data.sampling import make_sampler
from offbench.nn import nets
from offbench.ope.fqe import FQE
from offbench.training.fitting import NEVER, Fit, Stops, begin, regression, run
from offbench.training.step import Carry, Step, stack, unstack
from offbench.types import Policy, TimeStep

MEMBERS = 5


class Scale(NamedTuple):
    """A mean and a standard deviation, and the recorded range: (n,) each."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Scale":
        """Of the rows of (S, n); a number that never changes has a deviation of 1."""
        std = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(std > 1e-6, std, 1.0), x.amin(0), x.amax(0))


class Model(NamedTuple):
    """An ensemble of M networks of (observation, action)."""

    # leading axis M
    net: nets.Params
    obs: Scale
    change: Scale
    reward: Scale

    def step(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Next observation (M, G, O), reward and probability of an end (M, G), of (M, G, O), (M, G, A)."""
        x = torch.cat([(obs - self.obs.mean) / self.obs.std, action], -1)
        change, reward, end = nets.mlp(self.net, x).split([obs.shape[-1], 1, 1], -1)
        following = obs + self.change.mean + self.change.std * change
        paid = self.reward.mean + self.reward.std * reward
        following = following.clamp(self.obs.low, self.obs.high)
        return (
            following,
            paid.clamp(self.reward.low, self.reward.high)[..., 0],
            end[..., 0].clamp(0, 1),
        )


class Steps(NamedTuple):
    """A minibatch of B recorded steps."""

    obs: Tensor  # (B, O)
    action: Tensor  # (B, A)
    next_obs: Tensor  # (B, O)
    reward: Tensor  # (B,)
    end: Tensor  # (B,) 1 where the environment ended the episode, else 0


def untrained(data: ReplayData, settings: FQE) -> Model:
    """A model of recorded data before its first update: networks on the CPU, scales where the data are."""
    rows, n_obs = data.valid.nonzero().squeeze(1), data.obs.shape[1]
    sizes = (n_obs + data.action.shape[1], *settings.hidden, n_obs + 2)
    return Model(
        stack([nets.mlp_init(k, sizes) for k in rng.split(rng.key(0), MEMBERS)]),
        Scale.of(data.obs),
        Scale.of(data.obs[rows + 1] - data.obs[rows]),
        Scale.of(data.reward[rows, None]),
    )


def fit_model(data: ReplayData, settings: FQE, *, stops: Stops = NEVER) -> Model:
    """A model of recorded data (raw observations and rewards), with the networks and budget of an evaluation.

    Raises Interrupted where it was stopped.
    """
    model, step, start = problem(data, settings)
    return model._replace(net=run(step, start, settings.n_updates, stops=stops).net)


def problem(data: ReplayData, settings: FQE) -> tuple[Model, Step, Carry]:
    """The untrained model of a dataset, one step of a member's fit, and the state of all before the first."""
    model, n_obs = untrained(data, settings), data.obs.shape[1]
    obs, change, reward = model.obs, model.change, model.reward
    sampler = make_sampler(data.valid)

    def gather(row: Tensor) -> Steps:
        end = data.terminal[row].to(data.obs.dtype)
        return Steps(data.obs[row], data.action[row], data.obs[row + 1], data.reward[row], end)

    def loss(net: nets.Params, batch: Steps) -> Tensor:
        x = torch.cat([(batch.obs - obs.mean) / obs.std, batch.action], -1)
        moved, paid, end = nets.mlp(net, x).split([n_obs, 1, 1], -1)
        true = (batch.next_obs - batch.obs - change.mean) / change.std
        earned = (batch.reward[:, None] - reward.mean) / reward.std
        errors = F.mse_loss(moved, true) + F.mse_loss(paid, earned)
        return errors + F.mse_loss(end[:, 0], batch.end)

    step = regression(
        loss,
        lambda key: sampler(key, settings.batch_size),
        gather,
        n_updates=settings.n_updates,
        lr=settings.lr,
    )
    starts = [Fit.start(unstack(model.net, i)) for i in range(MEMBERS)]
    return model, step, begin(starts, rng.split(rng.key(0, data.obs.device), MEMBERS))


def places(n: int, device: torch.device) -> Tensor:
    """(M P,) int64, P = ceil(n / M): which of n sub-trajectories is at each place of the members, P of each.

    The places that are left over have the first ones once more.
    """
    return torch.arange(MEMBERS * -(-n // MEMBERS), device=device) % n


def follow(model: Model, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Model.step` for R sub-trajectories of each of N seeds, (N, R, O), (N, R, A), each with one member.

    The members share each seed's R alike, so that a seed imagines in a stack what it does alone.
    """
    n, r, _ = obs.shape
    at = places(r, obs.device).view(MEMBERS, -1)
    # (N, R, x) -> (M, N P, x), and back
    dealt = lambda x: x[:, at].transpose(0, 1).flatten(1, 2)
    whole = lambda x: x.unflatten(1, (n, -1)).transpose(0, 1).flatten(1, 2)[:, :r]
    following, paid, end = model.step(dealt(obs), dealt(action))
    return whole(following), whole(paid), whole(end)


def imagined_returns(
    model: Model,
    policy: Policy,
    state: Any,
    data: ReplayData,
    *,
    gamma: float,
    key: Tensor,
    steps: int,
) -> Tensor:
    """Discounted returns (E,) of one imagined episode from each recorded first observation.

    Args:
        state: of one policy, with the leading axis 1.
        steps: of an imagined episode; what follows is left out.
    """
    start = data.obs[first_rows(data)]
    each = places(len(start), start.device)
    obs, memory = start[each][None], policy.init(1, len(each))
    reward = total = torch.zeros_like(obs[..., 0])
    worth = torch.ones_like(total)
    with torch.no_grad():
        for t in range(steps):
            first = torch.full_like(total, t == 0, dtype=torch.bool)
            keys = rng.fold(rng.fold(key, each), t)[None]
            action, memory = policy.act(state, TimeStep(obs, reward, first), memory, keys)
            obs, reward, end = follow(model, obs, action)
            total = total + worth * reward
            worth = worth * (gamma * (1 - end))
    return total[0, : len(start)]
