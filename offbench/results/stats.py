"""Statistics of benchmark scores that say how sure they are.

A score is a number per run, and runs are grouped by task, so everywhere `scores` is a list with
one array per task: `(n_seeds,)`, or `(n_seeds, n_episodes)` where the episodes take part. Tasks
may have different numbers of seeds; each task counts equally whatever its number of seeds. A
2-D array `(n_seeds, n_tasks)`, as rliable has it, is taken by columns.

A *statistic* maps such a list, whose arrays have the seeds on their LAST axis, to a number per
remaining index. So `iqm` of `[(5,), (3,)]` is one number and of `[(2000, 5), (2000, 3)]` is 2000
of them, and a bootstrap is one call without a loop over resamples.

Definitions follow Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
precipice", and equal rliable's on rectangular input. Every random function takes its generator.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special  # scipy.stats takes a second to import

from offbench.errors import UserError, unknown

Scores = Sequence[np.ndarray] | np.ndarray
Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]

# up to 2**14 sign patterns are enumerated rather than drawn
_EXACT_PAIRS = 14


class Interval(NamedTuple):
    """A point estimate and its bounds; the bounds are nan where the data cannot give them."""

    point: float
    low: float
    high: float


# --- from episodes to scores ----------------------------------------------------------------


def score_table(episodes: pd.DataFrame) -> pd.DataFrame:
    """Mean test score of each run: columns entry, task, seed, run_id, score, n_episodes.

    Reads `test` rows only. Raises UserError when two runs claim one (entry, task, seed), when a
    run has test episodes at two updates, and for a score that is not finite.
    """
    test = episodes[episodes["stream"] == "test"]
    if not np.isfinite(test["score"]).all():
        bad = test[~np.isfinite(test["score"])].iloc[0]
        raise UserError(f"run {bad['run_id']} has a score which is not finite, on {bad['task']}")
    table = test.groupby(["entry", "task", "seed"], as_index=False, sort=True).agg(
        run_id=("run_id", "min"),
        other=("run_id", "max"),
        score=("score", "mean"),
        n_episodes=("score", "size"),
        first=("update", "min"),
        last=("update", "max"),
    )
    for line in table[table["run_id"] != table["other"]].itertuples():
        raise UserError(
            f"entry {line.entry!r} has two runs of seed {line.seed} on {line.task}:"
            f" {line.run_id} and {line.other}; give one of them another entry label"
        )
    for line in table[table["first"] != table["last"]].itertuples():
        raise UserError(f"run {line.run_id} has test episodes at {line.first} and at {line.last}")
    return table[["entry", "task", "seed", "run_id", "score", "n_episodes"]]


# each (n_seeds of the task,), by seed
def scores_by_task(episodes: pd.DataFrame, entry: str, tasks: Sequence[str]) -> list[np.ndarray]:
    """One array of per-seed test scores per task; raises UserError naming a missing cell."""
    table = score_table(episodes)
    if entry not in set(table["entry"]):
        raise unknown("entry", entry, table["entry"])
    by_task = dict(tuple(table[table["entry"] == entry].groupby("task")["score"]))
    for task in tasks:
        if task not in by_task:
            raise UserError(f"entry {entry!r} has no test scores on {task}")
    return [by_task[task].to_numpy() for task in tasks]


# each (n_seeds, n_episodes)
def paired_scores(
    episodes: pd.DataFrame, a: str, b: str, tasks: Sequence[str], *, common_seeds: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores of two entries on the same seeds (rows) and evaluation episodes (columns).

    Raises UserError when the episodes differ, or the seeds do; `common_seeds` restricts both
    entries to the seeds they share instead.
    """
    score_table(episodes)  # refuses mixed runs
    test = episodes[episodes["stream"] == "test"]
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for task in tasks:
        x, y = (_seeds_by_episodes(test, entry, task) for entry in (a, b))
        if not x.columns.equals(y.columns):
            raise UserError(f"{a!r} and {b!r} were not evaluated on the same episodes of {task}")
        seeds = x.index.intersection(y.index)
        if len(seeds) == 0 or not (common_seeds or x.index.equals(y.index)):
            raise UserError(
                f"{a!r} has seeds {list(x.index)} on {task}, {b!r} has {list(y.index)};"
                " pairs need the same seeds"
            )
        left.append(x.loc[seeds].to_numpy())
        right.append(y.loc[seeds].to_numpy())
    return left, right


def _seeds_by_episodes(test: pd.DataFrame, entry: str, task: str) -> pd.DataFrame:
    rows = test[(test["entry"] == entry) & (test["task"] == task)]
    if rows.empty:
        raise UserError(f"entry {entry!r} has no test scores on {task}")
    table = rows.pivot_table(index="seed", columns=["episode", "env_seed"], values="score")
    if table.isna().to_numpy().any():
        raise UserError(f"seeds of {entry!r} were not evaluated on the same episodes of {task}")
    return table


# --- point estimates ------------------------------------------------------------------------


def mean(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Mean over tasks of the mean over seeds.

    >>> float(mean([np.array([0.0, 2.0]), np.array([5.0])]))
    3.0
    """
    return _task_means(_tasks(scores)).mean(-1)


def median(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Median over tasks of the mean over seeds."""
    return np.median(_task_means(_tasks(scores)), axis=-1)


def optimality_gap(scores: Scores, target: float = 100.0) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Mean shortfall below `target`; scores above it count as the target. Lower is better."""
    return target - mean([np.minimum(x, target) for x in _tasks(scores)])


def iqm(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Interquartile mean of all runs of all tasks: the mean of the middle half.

    With N runs in all, the share floor(N / 4) / N is cut from each end (scipy's `trim_mean`, hence
    rliable). With unequal numbers of seeds a run weighs 1 / (its task's seeds), so that each task
    counts equally; the same share of *weight* is cut, splitting the run on the boundary, which
    makes the value independent of the order of tied scores.

    >>> float(iqm([np.array([0.0, 10.0]), np.array([20.0, 1000.0])]))
    15.0
    """
    tasks = _tasks(scores)
    counts = np.array([x.shape[-1] for x in tasks])
    total = int(counts.sum())
    cut = total // 4
    pooled = np.concatenate(tasks, axis=-1)  # (..., N)
    if (counts == counts[0]).all():
        return np.sort(pooled, axis=-1)[..., cut : total - cut].mean(-1)
    order = np.argsort(pooled, axis=-1)
    weight = np.repeat(1.0 / (counts * len(tasks)), counts)[order]  # (..., N), sums to 1
    above = np.cumsum(weight, axis=-1)
    share = cut / total
    kept = np.minimum(above, 1 - share) - np.maximum(above - weight, share)
    kept = np.maximum(kept, 0.0)
    return (kept * np.take_along_axis(pooled, order, -1)).sum(-1) / kept.sum(-1)


# [(..., n_t)] -> (..., n_tasks)
def _task_means(tasks: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([x.mean(-1) for x in tasks], axis=-1)


def _tasks(scores: Scores) -> list[np.ndarray]:
    if isinstance(scores, np.ndarray):
        if scores.ndim != 2:
            raise UserError(f"an array of scores is (n_seeds, n_tasks), not {scores.shape}")
        scores = list(scores.T)
    tasks = [np.asarray(x, dtype=np.float64) for x in scores]
    if not tasks:
        raise UserError("no task has scores")
    for index, x in enumerate(tasks):
        if x.ndim == 0 or x.size == 0:
            raise UserError(f"task number {index} has no scores")
    return tasks


# --- intervals ------------------------------------------------------------------------------


def mean_interval(x: np.ndarray, level: float = 0.95) -> Interval:
    """Student-t interval of the mean over seeds, for one task; nan bounds with one seed.

    Right for normal scores. Real seeds fail now and then: on published ones, nominal 95 % hold
    the truth in 79 to 91 % with 3 seeds (results/coverage), for which
    `offbench.results.uncertainty.cell_interval` has a remedy.
    """
    _check_level(level)
    x = np.asarray(x, dtype=np.float64)
    point = float(x.mean())
    if x.size < 2:
        return Interval(point, np.nan, np.nan)
    half = special.stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(x.size)
    return Interval(point, point - float(half), point + float(half))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """The share of successes among n independent trials, by Wilson's (1927) score interval.

    Unlike the usual one it has a width where none or all succeed. Raises UserError for n = 0.
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} successes of {n}: a share needs 0 to n of at least 1 trial")
    z, share = float(special.ndtri((1 + level) / 2)), successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, middle - float(half)), min(1.0, middle + float(half)))


def welch_interval(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of mean(a) - mean(b) for seeds that are not paired; nan bounds with one seed."""
    _check_level(level)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    point = float(a.mean() - b.mean())
    if min(a.size, b.size) < 2:
        return Interval(point, np.nan, np.nan)
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if va + vb == 0:
        return Interval(point, point, point)
    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    half = float(special.stdtrit(freedom, (1 + level) / 2) * np.sqrt(va + vb))
    return Interval(point, point - half, point + half)


def bootstrap(
    scores: Scores,
    statistic: Statistic = iqm,
    *,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of `statistic`, stratified: seeds are resampled within each task.

    The interval is rliable's. With few seeds it is too narrow: on published seeds of D4RL, nominal
    95 % hold the truth in 78 to 88 % with 3 seeds and 88 to 94 % with 10 (results/coverage), for
    which `offbench.results.uncertainty.aggregate` has a remedy.

    Arrays `(n_seeds, n_episodes)` add a level: episodes are resampled within each drawn seed. The
    spread between seeds contains that of their episodes already, so this errs on the wide side.
    Bounds are nan when a task has one seed: nothing can be resampled there, and an interval without
    that task's share would be too narrow.

    >>> x = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 4.0])]
    >>> bootstrap(x, mean, rng=np.random.default_rng(0)).point
    3.0
    """
    tasks = _tasks(scores)
    point = float(statistic(_seed_means(tasks)))
    if _single(tasks):
        return Interval(point, np.nan, np.nan)
    return _percentile(point, statistic([_nested(x, rng, reps) for x in tasks]), level)


def paired_difference(
    a: Scores,
    b: Scores,
    statistic: Statistic = mean,
    *,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> Interval:
    """statistic(a) - statistic(b), where row i of a task is the same seed in both.

    Pairs are resampled, so what both share (the episodes, the luck of a seed) cancels. With arrays
    `(n_seeds, n_episodes)` (see `paired_scores`) the episodes are resampled too, the same ones for
    all seeds and both entries because every run meets the same list: Owen 2007, "The pigeonhole
    bootstrap". Bounds are nan when a task has one pair.
    """
    x, y = _matched(a, b)
    point = float(statistic(_seed_means(x)) - statistic(_seed_means(y)))
    if _single(x):
        return Interval(point, np.nan, np.nan)
    left, right = [], []
    for xt, yt in zip(x, y, strict=True):
        seeds = rng.integers(len(xt), size=(reps, len(xt)))  # (reps, n_seeds)
        if xt.ndim == 1:
            left.append(xt[seeds])
            right.append(yt[seeds])
        else:
            episodes = rng.integers(xt.shape[1], size=(reps, 1, xt.shape[1]))
            left.append(xt[seeds[..., None], episodes].mean(-1))
            right.append(yt[seeds[..., None], episodes].mean(-1))
    return _percentile(point, statistic(left) - statistic(right), level)


def unpaired_difference(
    a: Scores,
    b: Scores,
    statistic: Statistic = mean,
    *,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
    rescale: bool = False,
) -> Interval:
    """statistic(a) - statistic(b) where nothing is shared: each side is resampled by itself.

    `rescale` stretches the seeds by sqrt(n / (n - 1)) about their task's mean before resampling (Rao
    and Wu 1988), which gives a resample the variance of the seeds.
    """
    x, y = _tasks(a), _tasks(b)
    point = float(statistic(_seed_means(x)) - statistic(_seed_means(y)))
    if _single(x) or _single(y):
        return Interval(point, np.nan, np.nan)
    if rescale:
        x, y = _rescaled(x), _rescaled(y)
    left = statistic([_nested(xt, rng, reps) for xt in x])
    right = statistic([_nested(yt, rng, reps) for yt in y])
    return _percentile(point, left - right, level)


def probability_of_improvement(
    a: Scores,
    b: Scores,
    *,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Chance that a run of `a` beats a run of `b` on a task, averaged over tasks.

    The Mann-Whitney form: ties count one half. Seeds of the two entries are resampled separately.
    """
    x, y = _seed_means(_tasks(a)), _seed_means(_tasks(b))
    if len(x) != len(y):
        raise UserError(f"{len(x)} tasks against {len(y)}")
    wins = [_wins(xt, yt) for xt, yt in zip(x, y, strict=True)]
    point = float(np.mean([w.mean() for w in wins]))
    if _single(x) or _single(y):
        return Interval(point, np.nan, np.nan)
    draws = np.zeros(reps)
    for w in wins:
        left, right = (_frequencies(n, rng, reps) for n in w.shape)
        draws += np.einsum("ri,ij,rj->r", left, w, right, optimize=True) / len(wins)
    return _percentile(point, draws, level)


def performance_profile(
    scores: Scores,
    thresholds: np.ndarray,
    *,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Share of runs with a score above each threshold: columns threshold, point, low, high.

    Each task counts equally; the band is pointwise, by the stratified bootstrap.
    """
    _check_level(level)
    thresholds = np.asarray(thresholds, dtype=np.float64)
    tasks = _seed_means(_tasks(scores))
    above = [(x[:, None] > thresholds).astype(np.float64) for x in tasks]  # each (n_t, K)
    bounds = np.full((2, thresholds.size), np.nan)
    if not _single(tasks):
        draws = np.zeros((reps, thresholds.size))
        for share in above:
            draws += _frequencies(len(share), rng, reps) @ share / len(above)
        bounds = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    point = np.mean([share.mean(0) for share in above], axis=0)
    columns = {"threshold": thresholds, "point": point, "low": bounds[0], "high": bounds[1]}
    return pd.DataFrame(columns)


def _rescaled(tasks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Seeds moved away from their task's mean by sqrt(n / (n - 1)), each with its episodes."""
    scaled = []
    for x in tasks:
        seed = x if x.ndim == 1 else x.mean(-1, keepdims=True)
        scaled.append(x + (seed - x.mean()) * (np.sqrt(len(x) / (len(x) - 1)) - 1))
    return scaled


def _nested(x: np.ndarray, rng: np.random.Generator, reps: int) -> np.ndarray:
    """Resampled scores of one task: (n,) or (n, n_episodes) -> (reps, n)."""
    seeds = rng.integers(len(x), size=(reps, len(x)))
    if x.ndim == 1:
        return x[seeds]
    episodes = rng.integers(x.shape[1], size=(reps, *x.shape))
    return x[seeds[..., None], episodes].mean(-1)


def _frequencies(n: int, rng: np.random.Generator, reps: int) -> np.ndarray:
    """How often each of n seeds occurs in a resample, as a share: (reps, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=reps) / n


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # (n,), (m,) -> (n, m)
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


def _seed_means(tasks: Sequence[np.ndarray]) -> list[np.ndarray]:
    for index, x in enumerate(tasks):
        if x.ndim > 2:
            raise UserError(f"task number {index} has shape {x.shape}, not (seeds[, episodes])")
    return [x if x.ndim == 1 else x.mean(-1) for x in tasks]


def _single(tasks: Sequence[np.ndarray]) -> bool:
    return any(len(x) < 2 for x in tasks)


def _matched(a: Scores, b: Scores) -> tuple[list[np.ndarray], list[np.ndarray]]:
    x, y = _tasks(a), _tasks(b)
    if [xt.shape for xt in x] != [yt.shape for yt in y]:
        shapes = [xt.shape for xt in x], [yt.shape for yt in y]
        raise UserError(f"pairs need equal shapes per task: {shapes[0]} against {shapes[1]}")
    return x, y


def _percentile(point: float, draws: np.ndarray, level: float) -> Interval:
    _check_level(level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(point, float(low), float(high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level is {level}; a confidence level lies between 0 and 1, e.g. 0.95")


# --- tests ----------------------------------------------------------------------------------


def permutation_test(
    a: Scores, b: Scores, *, rng: np.random.Generator, reps: int = 10_000
) -> float:
    """Two-sided p-value of "a and b are exchangeable within each pair", for the mean difference.

    Under it, swapping a pair flips the sign of its difference. All sign patterns are enumerated up
    to 14 pairs, else `reps` are drawn and the observed one is counted among them (Phipson and Smyth
    2010), so p is never 0. With n pairs p cannot fall below 2 ** (1 - n): 5 pairs never reach 0.05.
    """
    x, y = (_seed_means(tasks) for tasks in _matched(a, b))
    share = [(xt - yt) / (len(xt) * len(x)) for xt, yt in zip(x, y, strict=True)]
    share = np.concatenate(share)  # (N,): sums to the mean difference
    # a tie must not be lost to rounding
    observed = abs(share.sum()) * (1 - 1e-9)
    if share.size <= _EXACT_PAIRS:
        patterns = (np.arange(2**share.size)[:, None] >> np.arange(share.size)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ share) >= observed))
    signs = 1 - 2 * rng.integers(2, size=(reps, share.size), dtype=np.int8)
    return float((1 + np.sum(np.abs(signs @ share) >= observed)) / (1 + reps))


def holm(pvalues: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values, in the given order: the family-wise error stays below.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UserError("p-values are a list of numbers between 0 and 1")
    order = np.argsort(p, kind="stable")
    factor = p.size - np.arange(p.size)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factor))
    return adjusted
