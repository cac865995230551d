"""How far the policies of a cell's seeds are from each other, and each from itself some updates before, on states of
the task's data.

The policies act as at the start of an episode, all seeds in one pass: of a chunk the first action counts,
a policy that aims at a return (Decision Transformer) gets its target, and one that draws when it acts gets
the same noise with every seed. On goal-conditioned tasks each state has another one as its goal.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.bench.policy import Loaded, load
from offbench.errors import UserError
from offbench.nn.distributions import gaussian_log_prob
from offbench.results.consistency import CHURN, COLUMNS
from offbench.rollout import make_policy
from offbench.tasks.loading import load_data
from offbench.tasks.task import Task
from offbench.training.imperative import Imperative, Objects
from offbench.types import Policy, TimeStep

STATES = 10_000
# acted on at once, so that proposals of many policies fit into memory
_AT_ONCE = 2500
_NOISE, _JS = 0xC05, 0x15
# draws from each Gaussian at a state, and their mirror images
_DRAWS = 16


def probe_states(task: Task, n: int = STATES) -> Tensor:
    """(n, O) observations of the task's data, the same whenever they are asked for; all where there are fewer.

    Of a goal-conditioned task with goals, (n, O + G). They depend on the data alone.
    """
    data = load_data(task, defects="ignore")[0]
    rows = data.valid.nonzero().squeeze(1)
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(len(rows))[:n])
    obs = data.obs[rows[torch.from_numpy(chosen)]]
    if not task.goals:
        return obs
    return torch.cat([obs, obs[torch.from_numpy(generator.permutation(len(obs)))]], -1)


def measure(kept: Mapping[int, Path], task: Task, states: Tensor) -> pd.DataFrame:
    """The divergence of each pair of seeds, in `offbench.results.consistency.COLUMNS` but for the entry.

    Args:
        kept: seed -> the kept file of its run, of one cell.
        states: of `probe_states`.

    Raises:
        UserError: a file cannot be read, or the seeds do not fit each other.
    """
    seeds, loaded = list(kept), [load(path) for path in kept.values()]
    lines = []
    for kind, distance in _distances(stacked(loaded), states).items():
        for i, j in itertools.combinations(range(len(seeds)), 2):
            runs = (loaded[i].run.run_id, loaded[j].run.run_id)
            line = (task.id, "", kind, seeds[i], seeds[j], *runs, distance(i, j), len(states))
            lines.append(line)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def measure_churn(
    kept: Mapping[int, tuple[Path, Path]], task: Task, states: Tensor
) -> pd.DataFrame:
    """How far each seed's policy moved over its last updates, in `offbench.results.consistency.CHURN` but for the entry
    and whether the longer run went on from the shorter.

    Args:
        kept: seed -> the kept files of its runs of fewer and of all updates, of one cell.
        states: of `probe_states`.

    Raises:
        UserError: a file cannot be read, the runs do not fit each other, or they are of a PyTorch class, whose runs of
            different lengths need not be parts of each other.
    """
    pairs = [(load(before), load(after)) for before, after in kept.values()]
    if isinstance(pairs[0][0].method, Imperative):
        name = pairs[0][0].run.method
        raise UserError(f"{name} is a PyTorch class: a shorter run need not be a part of a longer")
    lines, n = [], len(pairs)
    one = stacked([before for before, _ in pairs] + [after for _, after in pairs])
    for kind, distance in _distances(one, states).items():
        for i, (seed, (before, after)) in enumerate(zip(kept, pairs)):
            runs = (before.run.run_id, after.run.run_id)
            updates = (before.run.n_updates, after.run.n_updates)
            lines.append((task.id, kind, seed, *updates, *runs, distance(i, n + i), len(states)))
    names = [name for name in CHURN if name not in ("entry", "went_on")]
    return pd.DataFrame(lines, columns=names)


def _distances(one: Loaded, states: Tensor) -> dict[str, Callable[[int, int], float]]:
    """Kind -> the distance of the i-th and the j-th of stacked policies."""
    found: dict[str, Callable[[int, int], float]] = {}
    actions = first_actions(one, states)
    if one.spec.discrete:
        found["choice"] = lambda i, j: choice_distance(actions[i], actions[j])
    else:
        found["action"] = lambda i, j: action_distance(actions[i], actions[j])
    if (gaussians := _gaussians(one, states)) is not None:
        mean, log_std = gaussians
        found["js"] = lambda i, j: js_divergence(mean[i], log_std[i], mean[j], log_std[j])
    return found


def stacked(loaded: Sequence[Loaded]) -> Loaded:
    """The policies of several seeds as one. UserError where they differ in more than their state."""
    first = loaded[0]
    for other in loaded[1:]:
        alike = tree_leaves(first.pipeline.transforms), tree_leaves(other.pipeline.transforms)
        same = len(alike[0]) == len(alike[1]) and all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*alike)
        )
        if not same or first.spec != other.spec or first.run.hparams != other.run.hparams:
            raise UserError(
                f"runs {first.run.run_id} and {other.run.run_id} are not seeds of one configuration"
            )
    if isinstance(first.method, Imperative):
        members = np.concatenate([x.state.members for x in loaded])
        return first._replace(state=Objects(torch.zeros(len(loaded)), members))
    state = tree_map(lambda *xs: torch.cat(xs), *(x.state for x in loaded))
    return first._replace(state=state)


def first_actions(loaded: Loaded, states: Tensor) -> Tensor:
    """(N, S, A) the first action of each of N stacked policies at (S, O) raw observations."""
    policy = make_policy(loaded.method, loaded.pipeline, values="none")
    n = _n_seeds(loaded)
    found = []
    for part, key in zip(states.split(_AT_ONCE), _keys(states).split(_AT_ONCE)):
        size, step = (n, len(part)), TimeStep.begin(part.expand(n, *part.shape))
        with torch.no_grad():
            action, _ = policy.act(loaded.state, step, policy.init(*size), key.expand(size))
        found.append(action.cpu())
    return torch.cat(found, 1)


def _n_seeds(loaded: Loaded) -> int:
    return len(tree_leaves(loaded.state)[0])


def _keys(states: Tensor) -> Tensor:
    """(S,) the noise at each state, which all seeds share."""
    return rng.fold(rng.fold(rng.key(0), _NOISE), torch.arange(len(states)))


def _gaussians(loaded: Loaded, states: Tensor) -> tuple[Tensor, Tensor] | None:
    """(N, S, A) means and log standard deviations, of the first action of a chunk; None where the method has
    no `gaussian_policy`, or what it reads was not kept."""
    method = loaded.method
    if not hasattr(method, "gaussian_policy"):
        return None

    def act(state: Any, step: TimeStep, memory: Any, key: Tensor) -> tuple[Any, Any]:
        return vmap(method.gaussian_policy)(state, step.obs), memory

    policy = Policy(lambda n_seeds, n_envs: (), act)
    for transform in reversed(loaded.pipeline.transforms):
        policy = transform.policy(policy)
    step = TimeStep.begin(states.expand(_n_seeds(loaded), *states.shape))
    with torch.no_grad():
        found, _ = policy.act(
            loaded.state, step, (), torch.zeros_like(step.first, dtype=torch.long)
        )
    mean, log_std = (x[..., : loaded.spec.action_dim] for x in found)
    log_std = log_std if log_std.ndim == mean.ndim else log_std[:, None]
    log_std = log_std.expand_as(mean)
    return (mean, log_std) if log_std.isfinite().all() else None


def action_distance(a: Tensor, b: Tensor) -> float:
    """Root mean square over the dimensions of (S, A) actions in [-1, 1], over their range; mean over states."""
    return float((a.double() - b.double()).square().mean(-1).sqrt().mean() / 2)


def choice_distance(a: Tensor, b: Tensor) -> float:
    """The share of states with different choices, of (S, A) one-hot actions."""
    return float((a.argmax(-1) != b.argmax(-1)).double().mean())


def js_divergence(mean: Tensor, log_std: Tensor, other: Tensor, other_log_std: Tensor) -> float:
    """Jensen-Shannon divergence of diagonal Gaussians (S, A), in bits, mean over states.

    1/2 E_p[log p / m] + 1/2 E_q[log q / m] with m = (p + q) / 2, by draws from both with the same noise. It is
    that of the policies squashed by tanh, too, as a divergence does not change under a bijection.
    """
    noise = rng.normal(rng.key(_JS), (_DRAWS, *mean.shape), torch.float64)
    noise = torch.cat([noise, -noise])
    p, q = (mean.double(), log_std.double()), (other.double(), other_log_std.double())
    parts = []
    for (centre, spread), away in ((p, q), (q, p)):
        x = centre + spread.exp() * noise
        ratio = gaussian_log_prob(*away, x) - gaussian_log_prob(centre, spread, x)
        parts.append(math.log(2) - torch.nn.functional.softplus(ratio).mean())
    return max(0.0, float(sum(parts)) / 2 / math.log(2))
