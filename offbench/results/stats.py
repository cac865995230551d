"""Statistics of benchmark scores: aggregates over tasks, intervals of one task, corrected tests.

A score is a number per run, and runs are grouped by task, so everywhere `scores` is a list with
one array per task: `(n_seeds,)`, or `(n_seeds, n_episodes)` where the episodes take part. Tasks
may have different numbers of seeds; each task counts equally whatever its number of seeds. A
2-D array `(n_seeds, n_tasks)`, as rliable has it, is taken by columns.

A *statistic* maps such a list, whose arrays have the seeds on their LAST axis, to a number per
remaining index. So `iqm` of `[(5,), (3,)]` is one number and of `[(2000, 5), (2000, 3)]` is 2000
of them, and a bootstrap is one call without a loop over resamples.

Definitions follow Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
precipice", and equal rliable's on rectangular input.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes a second to import

from offbench.errors import UserError, expect

Scores = Sequence[np.ndarray] | np.ndarray
Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]


class Interval(NamedTuple):
    """A point estimate and its bounds; the bounds are nan where the data cannot give them."""

    point: float
    low: float
    high: float

    @property
    def columns(self) -> dict[str, float]:
        """As columns of a table: value, low, high."""
        return {"value": self.point, "low": self.low, "high": self.high}


# --- point estimates ------------------------------------------------------------------------


def mean(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Mean over tasks of the mean over seeds.

    >>> float(mean([np.array([0.0, 2.0]), np.array([5.0])]))
    3.0
    """
    return _task_means(by_task(scores)).mean(-1)


def median(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Median over tasks of the mean over seeds."""
    return np.median(_task_means(by_task(scores)), axis=-1)


def optimality_gap(scores: Scores, target: float = 100.0) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Mean shortfall below `target`; scores above it count as the target. Lower is better."""
    return target - mean([np.minimum(x, target) for x in by_task(scores)])


def iqm(scores: Scores) -> np.ndarray:  # [(..., n_t)] -> (...)
    """Interquartile mean of all runs of all tasks: the mean of the middle half.

    With N runs in all, the share floor(N / 4) / N is cut from each end (scipy's `trim_mean`, hence
    rliable). With unequal numbers of seeds a run weighs 1 / (its task's seeds), so that each task
    counts equally; the same share of *weight* is cut, splitting the run on the boundary, which
    makes the value independent of the order of tied scores.

    >>> float(iqm([np.array([0.0, 10.0]), np.array([20.0, 1000.0])]))
    15.0
    """
    tasks = by_task(scores)
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


def by_task(scores: Scores) -> list[np.ndarray]:
    """Scores as a list with one float array per task; UserError where there are none."""
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
    check_level(level)
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
    check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} successes of {n}: a share needs 0 to n of at least 1 trial")
    share = successes / n
    low, high = wilson_bounds(share, n, float(special.ndtri((1 + level) / 2)))
    return Interval(share, max(0.0, low), min(1.0, high))


def wilson_bounds(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's bounds of a share of n trials, which rounding may leave just outside [0, 1]."""
    square = quantile**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    spread = np.sqrt(share * (1 - share) / n + square / (4 * n**2))
    half = float(quantile / (1 + square / n) * spread)
    return middle - half, middle + half


def difference(a: Interval, b: Interval) -> Interval:
    """a minus b, independent of each other, with the interval that follows from theirs; also of arrays.

    The method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence limits about effect
    measures"): of each side the distances of the points to their bounds are added in squares, which asymmetric
    intervals of success rates allow. nan bounds where one of the two has none.

    >>> [float(x) for x in difference(Interval(5, 2, 17), Interval(1, -4, 5))]
    [4.0, -1.0, 17.0]
    """
    point = a.point - b.point
    below = np.hypot(a.point - a.low, b.high - b.point)
    above = np.hypot(a.high - a.point, b.point - b.low)
    return Interval(point, point - below, point + above)


def check_level(level: float) -> None:
    """UserError for a confidence level that is not between 0 and 1."""
    expect("level", level, (int, float), "a confidence level between 0 and 1, e.g. 0.95")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; a confidence level lies between 0 and 1, e.g. 0.95")


def satterthwaite(
    variances: np.ndarray, freedom: np.ndarray, otherwise: np.ndarray | float
) -> np.ndarray:
    """Degrees of freedom of sums of variances (parts, ...), each with its own; `otherwise` where all are 0."""
    below = (variances**2 / freedom).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, variances.sum(0) ** 2 / below, otherwise)


# --- tests ----------------------------------------------------------------------------------


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
