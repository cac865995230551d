"""Views: what one element of a batch spans, and what the policy outputs.

`NStep` has n-step returns; `Chunk` spans h steps and makes the next h actions one action, which turns
any method into its open-loop chunked form; `Window` gives k steps at once to a method that reads a
`Context`.
"""

from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from offbench.data.replay import ReplayData, best_return, blocks, discounted_to_go, first_rows
from offbench.errors import UserError
from offbench.types import Batch, Context, Plan, Policy, Spec, TimeStep


class View(Protocol):
    """A mapping from start rows to batch elements, and its inverse for the acting policy."""

    @property
    def gamma(self) -> float: ...

    def spec(self, spec: Spec) -> Spec: ...
    def support(self, data: ReplayData) -> Tensor: ...  # (S,) bool: rows it can start from
    # (B,) rows, under a goal view a dict of them
    def batch(self, data: ReplayData, row: Any) -> Batch: ...
    def action(self, data: ReplayData, row: Tensor) -> Tensor: ...  # (B, A) that starts at a row
    def end(self, data: ReplayData, row: Tensor) -> Tensor: ...  # (B,) row of batch.next_obs
    def policy(self, policy: Policy) -> Policy: ...


def spans(data: ReplayData, row: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the next n steps, which of them lie inside the episode, and which count.

    A step counts while the episode lasts and no terminal came before it.
    """
    last = data.last[row][:, None]  # (B, 1)
    steps = row[:, None] + torch.arange(n, device=row.device)  # (B, n)
    inside, steps = steps < last, torch.minimum(steps, last)
    ended = data.terminal[steps] & inside  # (B, n)
    before = ended.long().cumsum(1) - ended.long()
    return steps, inside, inside & (before == 0)


def _returns(
    data: ReplayData, row: Tensor, n: int, gamma: float, after_terminal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the next n steps: discounted rewards, whether terminated by then, and lengths, each (B, n);
    and the powers of gamma (n + 1,).

    A return adds rewards up to a terminal or the end of the episode; with `after_terminal` also those
    recorded after a terminal inside an episode. The span ends at the terminal either way.
    """
    steps, inside, counts = spans(data, row, n)
    powers = gamma ** torch.arange(n + 1, dtype=data.reward.dtype, device=row.device)
    reward = data.reward[steps] * powers[:n] * (inside if after_terminal else counts)
    ended = (data.terminal[steps] & inside).cumsum(1) > 0
    return reward, ended, counts.cumsum(1), powers


def _batch(
    data: ReplayData, row: Tensor, n: int, gamma: float, after_terminal: bool = False
) -> Batch:
    # fast path of the common case, tested against the general one
    if n == 1:
        discount = gamma * (~data.terminal[row]).to(data.reward.dtype)
        return Batch(data.obs[row], data.action[row], data.reward[row], discount, data.obs[row + 1])
    reward, ended, lengths, powers = _returns(data, row, n, gamma, after_terminal)
    length = lengths[:, -1]
    discount = torch.where(ended[:, -1], 0.0, powers[length])
    return Batch(data.obs[row], data.action[row], reward.sum(1), discount, data.obs[row + length])


def _end(data: ReplayData, row: Tensor, n: int) -> Tensor:
    return row + 1 if n == 1 else row + spans(data, row, n)[2].sum(1)


def _support(data: ReplayData, n: int, pad: bool, name: str) -> Tensor:
    """(S,) bool: start rows of spans of n steps; all transitions with `pad`, else those with n steps left."""
    if n < 1:
        raise UserError(f"view.{name} must be at least 1, got {n}")
    whole = torch.empty_like(data.last, dtype=torch.bool)
    for part in blocks(len(whole)):
        row = torch.arange(part.start, part.stop, device=whole.device)
        torch.le(row + n, data.last[part], out=whole[part])
    if not whole.any():
        longest = int(torch.bincount(data.episode).max()) - 1
        raise UserError(
            f"view.{name}={n} is longer than every episode (the longest has {longest} steps)"
        )
    return data.valid if pad else whole


class NStep(NamedTuple):
    """n-step returns; n = 1 is the usual transition.

    `pad` and `rewards_after_terminal` are those of `Chunk`: with `pad` the end of an episode shortens
    a span, without it rows with fewer than n steps left are outside the support. The authors of
    Q-chunking add rewards after a terminal in FQL-n and BFN-n as they do in chunks.
    """

    n: int = 1
    gamma: float = 0.99
    pad: bool = True
    rewards_after_terminal: bool = False

    def spec(self, spec: Spec) -> Spec:
        return spec

    def support(self, data: ReplayData) -> Tensor:
        if self.pad and self.n >= 1:
            return data.valid
        return _support(data, self.n, self.pad, "n")

    def batch(self, data: ReplayData, row: Tensor) -> Batch:
        return _batch(data, row, self.n, self.gamma, self.rewards_after_terminal)

    def action(self, data: ReplayData, row: Tensor) -> Tensor:
        return data.action[row]

    def end(self, data: ReplayData, row: Tensor) -> Tensor:
        return _end(data, row, self.n)

    def policy(self, policy: Policy) -> Policy:
        """Actions of a method that returns a `Plan` are chunks of one step."""

        def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
            action, memory = policy.act(state, step, memory, key)
            return action.action if isinstance(action, Plan) else action, memory

        return policy._replace(act=act)


class ChunkMemory(NamedTuple):
    """Memory of a chunked policy: that of the inner policy, and the current chunk of each environment."""

    inner: Any
    plan: Plan | None
    left: Tensor  # (N, E) int64, steps of the chunk not yet taken
    lengths: Tensor  # (N, E, h) int64: number of chunks of this episode by steps executed, 1 to h


class Chunk(NamedTuple):
    """Open-loop action chunks of length h; rows without h steps left are outside the support.

    With `pad` every transition is a start row: the span ends with the episode and further actions are
    zeros, for methods that mask them (`needs = ("valid",)`), as Q-chunking does (Li, Zhou and Levine,
    2025).

    OGBench's trajectories go on after an accidental success, which is a terminal inside an episode.
    The return ends there, as it would for an agent. With `rewards_after_terminal` the rewards
    recorded afterwards are added too, as in the authors' code of Q-chunking: the targets of spans
    that cross a success are then too low, by at most (h - 1) rewards.
    """

    h: int = 5
    gamma: float = 0.99
    pad: bool = False
    rewards_after_terminal: bool = False

    def spec(self, spec: Spec) -> Spec:
        return spec._replace(action_dim=spec.action_dim * self.h, chunk=spec.chunk * self.h)

    def support(self, data: ReplayData) -> Tensor:
        return _support(data, self.h, self.pad, "h")

    def batch(self, data: ReplayData, row: Tensor) -> Batch:
        batch = _batch(data, row, self.h, self.gamma)
        if self.rewards_after_terminal:
            batch = batch._replace(reward=self.prefixes(data, row)[0][:, -1])
        return batch._replace(action=self.action(data, row))

    def prefixes(self, data: ReplayData, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, discount and row of the end of the first 1, 2, ..., h steps: each (B, h).

        Column h - 1 is what `batch` has for the whole chunk. Steps beyond the episode add nothing.
        """
        paid, ended, n, powers = _returns(
            data, row, self.h, self.gamma, self.rewards_after_terminal
        )
        # in float64 and from the first step on, as cumsum adds on a CPU; on a GPU its order is not fixed
        sums = torch.stack(list(accumulate(paid.double().unbind(1))), 1).to(paid.dtype)
        return sums, torch.where(ended, 0.0, powers[n]), row[:, None] + n

    def action(self, data: ReplayData, row: Tensor) -> Tensor:
        """The next h actions; those beyond the episode repeat the zeros of its last row."""
        steps = row[:, None] + torch.arange(self.h, device=row.device)
        return data.action[torch.minimum(steps, data.last[row][:, None])].flatten(1)

    def end(self, data: ReplayData, row: Tensor) -> Tensor:
        return _end(data, row, self.h)

    def policy(self, policy: Policy) -> Policy:
        """Executes a chunk per environment, and a new one after its last step or when an episode begins.

        A chunk is executed for h steps, or for the length in the method's `Plan`.
        """

        def init(n_seeds: int, n_envs: int) -> Any:
            none = torch.zeros(n_seeds, n_envs, dtype=torch.long)
            lengths = torch.zeros(n_seeds, n_envs, self.h, dtype=torch.long)
            return ChunkMemory(policy.init(n_seeds, n_envs), None, none, lengths)

        def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
            inner, plan, left, lengths = memory
            asks = step.first.to(left.device) | (left == 0)  # (N, E)
            if asks.any():
                new, after = policy.act(state, step, inner, key)
                if not isinstance(new, Plan):
                    new = Plan(new, torch.full_like(asks, self.h, dtype=torch.long))
                # (N, E, h, A), (N, E)
                new = Plan(new.action.unflatten(-1, (self.h, -1)), new.length)
                plan = new if plan is None else _where(asks, new, plan)
                inner = _where(asks, after, inner)
                left = torch.where(asks, plan.length.to(left.device), left)
            t = plan.length.to(left.device) - left  # (N, E) steps of the chunk taken before
            index = t[..., None, None].expand(*t.shape, 1, plan.action.shape[-1])
            action = plan.action.gather(-2, index.to(plan.action.device)).squeeze(-2)
            lengths = torch.where(step.first[..., None].to(left.device), 0, lengths)
            # the current chunk is one step longer
            lengths = lengths + _one_hot(t, self.h) - _one_hot(t - 1, self.h)
            return action, ChunkMemory(inner, plan, left - 1, lengths)

        return policy._replace(init=init, act=act)


def _one_hot(index: Tensor, n: int) -> Tensor:
    """(...) -> (..., n) int64; zeros where the index is negative."""
    return (index[..., None] == torch.arange(n, device=index.device)).long()


def _where(mask: Tensor, a: Any, b: Any) -> Any:
    """Tree `a` where the mask (N, E) holds, tree `b` elsewhere."""

    def pick(x: Any, y: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.where(_as_wide(mask.to(x.device), x), x, y)

    return tree_map(pick, a, b)


class WindowMemory(NamedTuple):
    """Memory of a windowed policy: that of the inner policy, and the last steps of each environment."""

    inner: Any
    past: Context | None


class Window(NamedTuple):
    """Windows of k steps with returns-to-go (Chen et al., 2021), not fitted to data.

    Windows start at every step with equal probability and end with the episode, as in the authors'
    code. `target_return` conditions the acting policy, in units of transformed rewards; by default the
    best return in the data. `return_scale` multiplies returns-to-go and target; by default one over the
    largest |return-to-go| in the data. Returns are those of an agent: they stop at a terminal.
    """

    k: int = 20
    gamma: float = 0.99
    target_return: float | None = None
    return_scale: float | None = None

    def spec(self, spec: Spec) -> Spec:
        return spec._replace(context=self.k)

    def fit(self, data: ReplayData) -> "FittedWindow":
        """The view of a dataset: its returns-to-go, and defaults of null settings."""
        if self.k < 1:
            raise UserError(f"view.k must be at least 1, got {self.k}")
        if data.n_transitions == data.n_episodes and self.k > 1:
            raise UserError(
                "view=window needs trajectories; every episode of this dataset is a single transition"
            )
        to_go = discounted_to_go(data, 1.0)
        target, scale = self.target_return, self.return_scale
        target = best_return(data) if target is None else target
        scale = 1 / max(float(to_go.abs().max()), 1e-8) if scale is None else scale
        timestep = (
            torch.arange(len(data.last), device=to_go.device) - first_rows(data)[data.episode]
        )
        n_actions = data.action.shape[1]
        return FittedWindow(self.k, self.gamma, target, scale, n_actions, to_go, timestep)

    def to_act(self, n_actions: int) -> "FittedWindow":
        """The view for acting only, without data; needs `target_return` and `return_scale`."""
        assert self.target_return is not None and self.return_scale is not None
        none = torch.zeros(0)
        return FittedWindow(
            self.k, self.gamma, self.target_return, self.return_scale, n_actions, none, none.long()
        )


class FittedWindow(NamedTuple):
    """A `Window` fitted to a dataset. Reward and discount of an element span its k steps."""

    k: int
    gamma: float
    target_return: float
    return_scale: float
    n_actions: int
    to_go: Tensor  # (S,) undiscounted return from each row on
    timestep: Tensor  # (S,) int64 steps since the episode began

    def refit(self, data: ReplayData) -> "FittedWindow":
        """Fitted to other data, with the same target and scale."""
        return Window(self.k, self.gamma, self.target_return, self.return_scale).fit(data)

    def spec(self, spec: Spec) -> Spec:
        return spec._replace(context=self.k)

    def support(self, data: ReplayData) -> Tensor:
        return data.valid

    def batch(self, data: ReplayData, row: Tensor) -> Batch:
        steps, _, valid = spans(data, row, self.k)
        context = Context(
            data.obs[steps],
            data.action[steps],
            self.to_go[steps] * self.return_scale,
            self.timestep[steps],
            valid,
        )
        return _batch(data, row, self.k, self.gamma)._replace(obs=_padded(context))

    def action(self, data: ReplayData, row: Tensor) -> Tensor:
        return data.action[row]

    def end(self, data: ReplayData, row: Tensor) -> Tensor:
        return _end(data, row, self.k)

    def policy(self, policy: Policy) -> Policy:
        """Gives the policy the last k steps of each environment's episode.

        The return-to-go starts at the target; received rewards are subtracted.
        """

        def init(n_seeds: int, n_envs: int) -> Any:
            return WindowMemory(policy.init(n_seeds, n_envs), None)

        def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Tensor, Any]:
            inner, past = memory
            context, newest = self._observe(past, step)
            action, inner = policy.act(state, step._replace(obs=context), inner, key)
            taken = torch.where(
                newest[..., None], action[:, :, None].to(newest.device), context.action
            )
            return action, WindowMemory(inner, context._replace(action=taken))

        return policy._replace(init=init, act=act)

    def _observe(self, past: Context | None, step: TimeStep) -> tuple[Context, Tensor]:
        """Windows (N, E, K, ...) that end with the current step, and a mask (N, E, K) of that step."""
        obs, first = step.obs, step.first
        if past is None:
            empty = obs.new_zeros(*first.shape, self.k)
            no_obs, no_action = (
                empty.new_zeros(*empty.shape, n) for n in (obs.shape[-1], self.n_actions)
            )
            past = Context(no_obs, no_action, empty, empty.long(), empty.bool())
        past = _padded(past._replace(valid=past.valid & ~first[..., None]))
        length = past.valid.sum(-1)  # (N, E)
        newest = torch.arange(self.k, device=obs.device) == length.clamp(max=self.k - 1)[..., None]
        before = (length - 1).clamp(min=0)[..., None]
        to_go = past.return_to_go.gather(-1, before).squeeze(-1) - self.return_scale * step.reward
        now = Context(
            obs,
            obs.new_zeros(*first.shape, self.n_actions),
            torch.where(first, self.return_scale * self.target_return, to_go),
            torch.where(first, 0, past.timestep.gather(-1, before).squeeze(-1) + 1),
            torch.ones_like(first),
        )
        moved = _where(length == self.k, tree_map(lambda x: x.roll(-1, 2), past), past)
        put = lambda new, x: torch.where(_as_wide(newest, x), new[:, :, None], x)
        return tree_map(put, now, moved), newest


def _padded(context: Context) -> Context:
    """The context with zeros where steps are not valid."""
    # keeps the dtype: a Python 0 would turn bool into int64
    zero = lambda x: x.new_zeros(())
    return tree_map(lambda x: torch.where(_as_wide(context.valid, x), x, zero(x)), context)


def _as_wide(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
