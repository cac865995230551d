"""ACSAC's operator with noise in its critics, on a small MDP whose values are known exactly. Float64, numpy.

    V(s) = E over n proposals of max over proposals and lengths h of min over critics of (Q(s, a_1..a_h) + noise)
    Q(s, a_1..a_h) = E [sum_{j<h} gamma^j r_j + gamma^h V(s_h)]

The noise is normal, independent for each critic, state and prefix, with standard deviation sigma. `solve` finds
the fixed point by quadrature, with noise of its own for each proposal (actions are continuous: no two proposals
are equal). `tables` draws tables of noise and solves for these, `updates` makes one backup after another with
fresh noise in each, and Polyak averages. Without noise (sigma 0) all is exact.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

GAMMA = 0.99


class MDP(NamedTuple):
    """All prefixes of all chunks from all states: S states, C chunks, H lengths."""

    # discounted, expected: (S, C, H)
    reward: np.ndarray
    # expected steps until success, or the end of the prefix: (S, C, H)
    steps: np.ndarray
    # probabilities of the next state; what is missing to 1 is success: (S, C, H, S)
    after: np.ndarray
    # of each chunk: (C,)
    chance: np.ndarray
    # groups of states, from which only the same and earlier groups are reached
    levels: list[list[int]]
    zones: dict[str, list[int]]


def corridor(
    h: int,
    far: int = 16,
    middle: int = 10,
    near: int = 3,
    *,
    first: float = 0.2,
    stick: float = 0.9,
) -> MDP:
    """A way to success in three parts, -1 for each step, for chunks of h actions, 0 or 1; the last state is the start.

    far      both actions lead a step on: all lengths are equal
    middle   1 leads on, 0 waits: a chunk in the hand that goes on is worth more than another draw
    near     three times, luck decides on arrival which of the actions leads on; after the other, luck is drawn anew

    Chunks of the behaviour policy are open loop and the same everywhere: `first` is the chance that the first
    action is 1, `stick` that of an action to be the one before. Lengths are equal where no chunk
    leads as far as the best place to wait for a chunk that goes on in `middle`, less than h steps before it:
    the zone `far` has these states alone. `near` is without its last stage, where success ends all lengths.
    """
    size = 2 * near + middle + far
    step = np.zeros((size, 2, size))
    lucky = lambda stage: [2 * stage - 2, 2 * stage - 1] if stage else []
    for stage, luck, action in product(range(1, near + 1), (0, 1), (0, 1)):
        to = lucky(stage - 1 if action == luck else stage)
        step[2 * stage - 2 + luck, action, to] = 0.5
    for s in range(2 * near, size):
        on, stays = lucky(near) if s == 2 * near else [s - 1], s < 2 * near + middle
        step[s, 1, on] = 1 / len(on)
        step[s, 0, [s] if stays else on] = 1 if stays else 1 / len(on)
    chunks = np.array(list(product((0, 1), repeat=h)))
    same = (chunks[:, 1:] == chunks[:, :-1]).sum(1)
    chance = np.where(chunks[:, 0], first, 1 - first) * stick**same * (1 - stick) ** (h - 1 - same)
    reward, steps = np.zeros((2, size, len(chunks), h))
    after = np.zeros((size, len(chunks), h, size))
    at = np.broadcast_to(np.eye(size)[:, None], (size, len(chunks), size))
    for j in range(h):
        going = at.sum(-1)
        reward[..., j:] -= GAMMA**j * going[..., None]
        steps[..., j:] += going[..., None]
        at = np.einsum("scx,xcy->scy", at, step[:, chunks[:, j]])
        after[:, :, j] = at
    levels = [lucky(stage) for stage in range(1, near + 1)]
    levels += [[s] for s in range(2 * near, size)]
    zones = {
        "near": list(range(2, 2 * near)),
        "middle": list(range(2 * near, 2 * near + middle)),
        "far": list(range(2 * near + middle - 2 + 2 * h, size)),
    }
    return MDP(reward, steps, after, chance, levels, zones)


def backup(mdp: MDP, value: np.ndarray, states: Any = slice(None)) -> np.ndarray:
    """Values of prefixes from values of states: (..., S) -> (..., states, C, H)."""
    discount = GAMMA ** np.arange(1, mdp.reward.shape[-1] + 1)
    after = np.moveaxis(mdp.after[states], -1, 0)
    return mdp.reward[states] + discount * np.tensordot(value, after, 1)


# --- the maximum ----------------------------------------------------------------------------


class Choice(NamedTuple):
    """Of a maximum over proposals and lengths."""

    # mean of the maximum: (...,)
    value: np.ndarray
    # how often each prefix is chosen: (..., C, H)
    share: np.ndarray


def exact_max(q: np.ndarray, chance: np.ndarray, n: int) -> Choice:
    """Mean over n proposals drawn by `chance` (C,) of the maximum of q (..., C, H)."""
    best = q.max(-1)
    order = best.argsort(-1, kind="stable")
    below = np.minimum(chance[order].cumsum(-1), 1)
    weight = np.diff(below**n, prepend=0, axis=-1)
    of_chunk = np.empty_like(weight)
    np.put_along_axis(of_chunk, order, weight, -1)
    first = np.eye(q.shape[-1])[q.argmax(-1)]
    return Choice((of_chunk * best).sum(-1), of_chunk[..., None] * first)


def noisy_max(q: np.ndarray, chance: np.ndarray, n: int, critics: int, sigma: np.ndarray) -> Choice:
    """The same, of q (B, C, H) with noise (sigma (H,)) of its own for each critic and proposal."""
    low, high = q.max(-1).min() - 9 * sigma.max(), q.max() + 8 * sigma.max()
    points = int(np.ceil(4 * (high - low) / sigma.min()))
    x = np.linspace(low, high, points)
    z = (x[:, None, None, None] - q) / sigma
    above = ndtr(-z)
    # chance that the smallest of the critics is below x, and its density: (X, B, C, H)
    below = 1 - above**critics
    density = critics * above ** (critics - 1) * np.exp(-z * z / 2) / (sigma * np.sqrt(2 * np.pi))
    ones = np.ones_like(below[..., :1])
    lower = np.concatenate([ones, below[..., :-1].cumprod(-1)], -1)
    upper = np.concatenate([ones, below[..., :0:-1].cumprod(-1)], -1)[..., ::-1]
    of_proposal = (below.prod(-1) * chance).sum(-1)
    others = n * of_proposal ** (n - 1)
    weight = others[..., None, None] * chance[:, None] * density * lower * upper * (x[1] - x[0])
    return Choice((x[:, None] * weight.sum((2, 3))).sum(0), weight.sum(0))


class Setting(NamedTuple):
    """Of ACSAC and of the noise."""

    h: int = 5
    n: int = 4
    critics: int = 2
    sigma: float = 0.2
    # Polyak rate of the target; 1: the online critics are the target
    rate: float = 1.0
    # noise of length h has sigma * h ** growth
    growth: float = 0.0
    # the choice of one set of critics is valued by another, as in double Q-learning
    double: bool = False

    def noise(self, online: bool = False) -> np.ndarray:
        """Standard deviations (H,); of an average over updates with noise afresh in each."""
        smaller = 1 if online else np.sqrt(self.rate / (2 - self.rate))
        return self.sigma * smaller * np.arange(1.0, self.h + 1) ** self.growth

    def choose(
        self,
        q: np.ndarray,
        chance: np.ndarray,
        online: bool = False,
        lengths: slice = slice(None),
    ) -> Choice:
        """The maximum of q (B, C, H) over some lengths."""
        q = q[..., lengths]
        if self.sigma == 0:
            return exact_max(q, chance, self.n)
        found = noisy_max(q, chance, self.n, self.critics, self.noise(online)[lengths])
        if self.double:
            return found._replace(value=(found.share * q).sum((1, 2)))
        return found


def solve(mdp: MDP, setting: Setting, tolerance: float = 1e-10) -> np.ndarray:
    """The fixed point of the operator: (S,)."""
    value = np.zeros(len(mdp.reward))
    for states in mdp.levels:
        change = 1.0
        while change > tolerance:
            new = setting.choose(backup(mdp, value, states), mdp.chance).value
            change = np.abs(new - value[states]).max()
            value[states] = new
    return value


def sweeps(mdp: MDP, n: int, start: float, n_sweeps: int, only: int = 0) -> np.ndarray:
    """Values after each sweep over all states, of backups without noise that begin at `start`: (sweeps, S).

    only: the length that is allowed, 0 for all.
    """
    value, found = np.full(len(mdp.reward), start), []
    lengths = slice(only - 1, only) if only else slice(None)
    for _ in range(n_sweeps):
        value = exact_max(backup(mdp, value)[..., lengths], mdp.chance, n).value
        found.append(value)
    return np.stack(found)


def choices(
    mdp: MDP, setting: Setting, q: np.ndarray, online: bool = False, only: int = 0
) -> np.ndarray:
    """Shares (S, C, H) in the maxima of q (S, C, H); only: the length that is allowed, 0 for all."""
    lengths = slice(only - 1, only) if only else slice(None)
    share = np.zeros_like(q)
    for s in range(len(q)):
        share[s, :, lengths] = setting.choose(q[[s]], mdp.chance, online, lengths).share[0]
    return share


def over(mdp: MDP, value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """How much too high values of prefixes are, a mean over chunks: (S, H)."""
    return ((backup(mdp, value) - backup(mdp, exact)) * mdp.chance[:, None]).sum(1)


def steps_to_success(mdp: MDP, share: np.ndarray) -> float:
    """Expected steps from the start, of a policy which chooses prefixes by `share` (S, C, H)."""
    on = np.einsum("sch,schx->sx", share, mdp.after)
    return float(np.linalg.solve(np.eye(len(on)) - on, (share * mdp.steps).sum((1, 2)))[-1])


def equal_lengths(h: int, n: int, critics: int) -> tuple[float, np.ndarray]:
    """In a corridor without end: by how much a step to the goal is overrated, in sigmas, and shares (H,).

    If V is too high by `slope` for each step to the goal, a prefix of length k, which ends k steps nearer,
    gains k * slope less than one of length 0; the maximum of these and the noise must be 0.
    """
    low, high, one, sigma = -4.0, 4.0, np.ones(1), np.ones(h)
    length = np.arange(1, h + 1)
    for _ in range(50):
        slope = (low + high) / 2
        found = noisy_max(-slope * length[None, None], one, n, critics, sigma)
        low, high = (slope, high) if found.value[0] > 0 else (low, slope)
    return slope, found.share[0, 0]


# --- by simulation --------------------------------------------------------------------------


def drawn(setting: Setting, shape: tuple, details: int, rng: np.random.Generator) -> np.ndarray:
    """Minimum over critics of noise (*shape, chunks, H); details 0: equal prefixes have equal noise."""
    h = setting.h
    if details:
        size = (setting.critics, *shape, details * 2**h, h)
        return (rng.standard_normal(size) * setting.noise(online=True)).min(0)
    found = []
    for k, sigma in enumerate(setting.noise(online=True), 1):
        of_prefix = sigma * rng.standard_normal((setting.critics, *shape, 2**k)).min(0)
        found.append(of_prefix.repeat(2 ** (h - k), -1))
    return np.stack(found, -1)


def tables(
    mdp: MDP, setting: Setting, rng: np.random.Generator, n_tables: int, details: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fixed points with tables of noise: values (tables, S), shares of lengths (S, H).

    Each chunk is there `details` times, with actions that differ in what does not matter.
    """
    copies = max(details, 1)
    chance = mdp.chance.repeat(copies) / copies
    value = np.zeros((n_tables, len(mdp.reward)))
    share = np.zeros((len(mdp.reward), setting.h))
    for states in mdp.levels:
        noise = drawn(setting, (n_tables, len(states)), details, rng)
        for _ in range(400):
            q = backup(mdp, value, states).repeat(copies, -2)
            found = exact_max(q + noise, chance, setting.n)
            change = np.abs(found.value - value[:, states]).max()
            value[:, states] = found.value
            if change < 1e-10:
                break
        share[states] = found.share.sum(-2).mean(0)
    return value, share


def updates(
    mdp: MDP, setting: Setting, rng: np.random.Generator, n: int, details: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Backups with noise afresh in each and Polyak averages of the critics.

    Means over the last half: values (S,) of the target, shares of lengths (S, H) in it and in the online critics.
    """
    chance = mdp.chance.repeat(details) / details
    shape = (setting.critics, len(mdp.reward), len(chance), setting.h)
    exact = backup(mdp, solve(mdp, setting._replace(sigma=0)))
    target = np.broadcast_to(exact.repeat(details, 1), shape).copy()
    value, planned, executed = 0.0, 0.0, 0.0
    for i in range(n):
        found = exact_max(target.min(0), chance, setting.n)
        q = backup(mdp, found.value).repeat(details, 1)
        online = q + rng.standard_normal(shape) * setting.noise(online=True)
        if i >= n - n // 2:
            acted = exact_max(online.min(0), chance, setting.n)
            value, planned = value + found.value, planned + found.share.sum(1)
            executed = executed + acted.share.sum(1)
        target += setting.rate * (online - target)
    return value / (n // 2), planned / (n // 2), executed / (n // 2)
