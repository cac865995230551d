"""Fitted Q evaluation (Le, Voloshin and Yue, 2019): the Q-function of a fixed policy. https://arxiv.org/abs/1903.08738

    Q(s, a) <- r + discount * Q(s', pi(s'))        (their equation for the target, with a target network)
    value of pi = mean of Q(s0, pi(s0)) over the first observations of the recorded episodes

Bootstraps go through `discount` alone: it is 0 after a terminal, and a time limit is no terminal. Of a
policy of chunks an action is the whole plan of h steps that is executed, its reward the discounted sum over
them; where the policy chooses how many steps it executes, Q is also given their number and learns all of
them. (Recorded chunks were not open loop: in a stochastic environment Q of plans is biased, see
docs/chunking.md.)

Q is learned on normalised observations and in units of recorded returns, by SGD with Adam, whose rate falls
linearly to 0. Targets are kept within what rewards like the recorded ones can add up to, so that Q cannot
diverge. All policies are fitted at once, as seeds are trained (`offbench.training.engine`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from offbench import rng
from offbench.data.replay import ReplayData, discounted_to_go, first_rows
from offbench.data.sampling import Sampler, make_sampler
from offbench.data.transforms import ObsNorm
from offbench.data.views import Chunk, NStep
from offbench.nn import nets
from offbench.nn.optim import AdamState, polyak
from offbench.ope.decisions import Decisions
from offbench.ranges import Count, Discount, PolyakRate, Positive, Widths, check_ranges
from offbench.training.engine import Backend
from offbench.training.fitting import Fit
from offbench.training.gate import make_engine
from offbench.training.step import Carry, Draw, Input, Step, stack, to_device
from offbench.types import Batch, Metrics


class State(NamedTuple):
    # () int64, which of the policies
    policy: Tensor
    critic: nets.Params
    target: nets.Params
    opt: AdamState


@dataclass(frozen=True, kw_only=True)
class FQE:
    gamma: Discount = 0.99
    n_updates: Count = 10_000
    batch_size: Count = 256
    hidden: Widths = (256, 256)
    lr: Positive = 1e-3
    # targets follow within 1 / rate updates, and values within as many times a horizon of steps
    polyak_rate: PolyakRate = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, "fqe")

    def init(self, key: Tensor, policy: int, n_inputs: int) -> State:
        critic = nets.mlp_init(key, (n_inputs, *self.hidden, 1))
        return State(torch.tensor(policy), critic, critic, Fit.start(critic).opt)

    def update(
        self, state: State, batch: Batch, next_action: list[Tensor], bounds: tuple[float, float]
    ) -> tuple[State, Metrics]:
        """One step on (B,) transitions; `next_action` has the policy's draws at `next_obs`, (B, A) each."""
        draws = [self.value(state.target, batch.next_obs, action) for action in next_action]
        next_q = torch.stack(draws).mean(0)
        target = (batch.reward + batch.discount * next_q).clamp(*bounds).detach()

        def loss(critic: nets.Params) -> Tensor:
            return torch.square(self.value(critic, batch.obs, batch.action) - target).mean()

        fit = Fit(state.critic, state.opt)
        (critic, opt), value = fit.descend(loss, self.lr, fit.falling(self.n_updates))
        target_critic = polyak(state.target, critic, self.polyak_rate)
        return State(state.policy, critic, target_critic, opt), {"loss": value}

    def value(self, critic: nets.Params, obs: Tensor, action: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B,)"""
        return nets.mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)


class Fitted(NamedTuple):
    """The Q-functions of N policies."""

    # (N, E) value of the first observation of each recorded episode
    start_values: Tensor
    # (N,) root of the mean squared difference of Q and its target at the end, in the units of rewards
    error: Tensor
    # (N, S) of every row: Q of the recorded action, and of the policy's; None unless asked for
    q: Tensor | None = None
    v: Tensor | None = None


def fit(
    fqe: FQE,
    data: ReplayData,
    decisions: Decisions,
    *,
    keys: Tensor,
    rows: bool = False,
    backend: Backend = "auto",
    pause: Callable[[int], bool] | None = None,
) -> Fitted | None:
    """Evaluates N policies on recorded data.

    Args:
        data: raw observations and rewards.
        keys: (N,) one per policy; the same key draws the same minibatches.
        rows: give Q and V of every row, too, as doubly robust estimates need.
        pause: asked after every step; where it is true, the result is None.
    """
    problem = Problem.of(fqe, data, decisions)
    carry = problem.start(keys)
    engine, _ = make_engine(problem.step(), carry, backend=backend, n_steps=fqe.n_updates)
    metrics = engine.run(fqe.n_updates, pause)
    if engine.step < fqe.n_updates:
        return None
    critic = engine.carry.state.critic
    start = problem.values(critic, first_rows(data))
    error = problem.scale * metrics["loss"].sqrt()
    if not rows:
        return Fitted(start, error)
    every = torch.arange(len(data.obs), device=data.obs.device)
    q = problem.scale * _by_blocks(lambda part: problem.recorded(critic, part), every)
    return Fitted(start, error, q, problem.values(critic, every))


class Problem(NamedTuple):
    """The data of an evaluation as its update sees them."""

    fqe: FQE
    # observations normalised, rewards divided by `scale`
    data: ReplayData
    decisions: Decisions
    # of a row's span; a chunk begins anywhere, and is cut where its episode ends
    view: Any
    sampler: Sampler
    # (B,) all rows, where a batch has room for them: the gradient is then exact; else None
    every: Tensor | None
    # what values are measured in
    scale: float
    # of targets, in that measure
    bounds: tuple[float, float]

    @classmethod
    def of(cls, fqe: FQE, data: ReplayData, decisions: Decisions) -> "Problem":
        scale, bounds = measure(data, fqe.gamma)
        seen = ObsNorm.fit(data).data(data._replace(reward=data.reward / scale))
        h = decisions.steps
        view = NStep(gamma=fqe.gamma) if h == 1 else Chunk(h, fqe.gamma, pad=True)
        rows = data.valid
        if h > 1 and decisions.length is None:
            # a shorter span is a whole plan only where the environment ended it
            whole = torch.arange(len(rows), device=rows.device) + h <= data.last
            rows = rows & (whole | data.terminal[(data.last - 1).clamp(min=0)])
        found = rows.nonzero().squeeze(1)
        every = found if len(found) <= fqe.batch_size else None
        return cls(fqe, seen, decisions, view, make_sampler(rows), every, scale, bounds)

    @property
    def chooses(self) -> bool:
        """Whether policies choose how many steps of a plan they execute."""
        return self.decisions.length is not None

    @property
    def n_action(self) -> int:
        """Numbers of an action as Q is given it."""
        return self.decisions.action.shape[-1] + self.decisions.steps * self.chooses

    def start(self, keys: Tensor) -> Carry:
        """The state of N fits before their first step; `keys` (N,) are those of the policies."""
        n_inputs = self.data.obs.shape[1] + self.n_action
        each = enumerate(rng.split(keys, 1)[0])
        state = stack([self.fqe.init(k, i, n_inputs) for i, k in each])
        device = self.data.obs.device
        return Carry(to_device(state, device), keys.to(device), torch.tensor(0, device=device))

    def step(self) -> Step:
        """One step of the fit of one policy."""
        draws, h = self.decisions.draws, self.decisions.steps
        size = self.fqe.batch_size if self.every is None else len(self.every)

        def draw(key: Tensor) -> Draw:
            k_rows, k_length, k_after, k_update = rng.split(key, 4)
            rows = {"row": self.sampler(k_rows, size) if self.every is None else self.every}
            if h > 1:
                rows["after"] = self.sampler(k_after, size * h).view(size, h)
            if self.chooses:
                rows["length"] = rng.randint(k_length, (size,), h) + 1
            return Draw(rows, k_update)

        def gather(rows: dict[str, Tensor]) -> Batch:
            lead = rows["row"].shape
            flat = {name: x.flatten(0, len(lead) - 1) for name, x in rows.items()}
            return tree_map(lambda x: x.unflatten(0, lead), self.batch(**flat))

        def update(state: State, given: Input) -> tuple[State, Metrics]:
            batch = given.batch
            row = batch.extras["next_row"]
            chosen = [self.decided(state.policy, k, row) for k in range(draws)]
            return self.fqe.update(state, batch, chosen, self.bounds)

        return Step(draw, gather, update)

    def batch(
        self, row: Tensor, after: Tensor | None = None, length: Tensor | None = None
    ) -> Batch:
        """The transitions of rows (B,); of plans that choose, of the first `length` steps.

        Where the environment ended the episode within a plan, what follows is never executed, and the actions
        of the rows `after` (B, h) stand there: the plan is worth the same with any.
        """
        if after is None:
            return self.view.batch(self.data, row)._replace(extras={"next_row": row + 1})
        data, h = self.data, self.decisions.steps
        reward, discount, end = self.view.prefixes(data, row)
        left = (data.last[row] - row)[:, None]
        recorded = self.view.action(data, row).unflatten(-1, (h, -1))
        inside = (torch.arange(h, device=row.device) < left)[..., None]
        action = torch.where(inside, recorded, data.action[after]).flatten(1)
        at = torch.full_like(row, h) if length is None else length
        # a plan that was cut by a time limit is one of fewer steps
        cut = ~data.terminal[data.last[row] - 1]
        at = torch.where(cut, torch.minimum(at, left.squeeze(1)), at)
        if length is not None:
            action = self.with_length(action, at)
        of = lambda x: x.gather(1, at[:, None] - 1).squeeze(1)
        next_row = of(end)
        own = (data.obs[row], action, of(reward), of(discount), data.obs[next_row])
        return Batch(*own, extras={"next_row": next_row})

    def with_length(self, plan: Tensor, length: Tensor) -> Tensor:
        """The first `length` steps of plans (..., h A), and which number that is: (..., h A + h)."""
        step = torch.arange(self.decisions.steps, device=plan.device)
        each = step.repeat_interleave(plan.shape[-1] // len(step))
        own = torch.where(each < length[..., None], plan, 0.0)
        return torch.cat([own, (step == length[..., None] - 1).to(plan.dtype)], -1)

    def decided(self, policy: Tensor, draw: int, row: Tensor) -> Tensor:
        """What a policy decides at rows (B,), as Q is given it."""
        action = self.decisions.action[policy, draw, row]
        if self.decisions.length is None:
            return action
        return self.with_length(action, self.decisions.length[policy, draw, row])

    def values(self, critic: nets.Params, rows: Tensor) -> Tensor:
        """(N, B) mean of Q over the draws of what each policy decides at rows, in the units of rewards."""

        def of_policy(own: nets.Params, policy: Tensor, part: Tensor) -> Tensor:
            found = [
                self.fqe.value(own, self.data.obs[part], self.decided(policy, k, part))
                for k in range(self.decisions.draws)
            ]
            return torch.stack(found).mean(0)

        each = torch.arange(self.decisions.n_policies, device=rows.device)
        many = vmap(of_policy, in_dims=(0, 0, None))
        return self.scale * _by_blocks(lambda part: many(critic, each, part), rows)

    def recorded(self, critic: nets.Params, rows: Tensor) -> Tensor:
        """(N, B) Q of the recorded actions, in the units of Q."""
        obs, action = self.data.obs[rows], self.view.action(self.data, rows)
        return vmap(lambda own: self.fqe.value(own, obs, action))(critic)


def measure(data: ReplayData, gamma: float) -> tuple[float, tuple[float, float]]:
    """(root mean square of the recorded discounted returns, bounds of any policy's return in that unit).

    Without terminals a return has no fewer rewards than a horizon, else it may be 0. There are no bounds
    where rewards are not discounted.
    """
    valid = data.valid
    scale = float(discounted_to_go(data, gamma)[valid].double().square().mean().sqrt()) or 1.0
    if gamma == 1:
        return scale, (-math.inf, math.inf)
    rewards = data.reward[valid]
    low, high = float(rewards.min()), float(rewards.max())
    if data.terminal.any():
        low, high = min(low, 0.0), max(high, 0.0)
    horizon = scale * (1 - gamma)
    return scale, (low / horizon, high / horizon)


def _by_blocks(of_rows: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """(N, B) of rows, some at a time."""
    with torch.no_grad():
        return torch.cat([of_rows(part) for part in rows.split(1 << 14)], 1)
