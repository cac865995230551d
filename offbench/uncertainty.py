"""Confidence intervals of a board's cells and aggregates, and which entries differ from the best.

The mean of a cell varies with the training seeds and with the start states of the test episodes.

* Seeds. Three seeds say little about their variance, and nothing about the one in ten that fails.
  The variance of the seeds' means is therefore moderated by that of the board (as in Smyth 2004,
  "Linear models and empirical Bayes methods"): half the mean variance of all cells enters as one
  more observation, and Student's t has as many degrees of freedom as there are seeds.
* Episodes. All seeds face the same start states, so the spread between seeds leaves them out.
  Their share is estimated from the seeds x episodes table of a cell (two-way random effects).
* Success rates. The interval is Wilson's (1927), at the number of independent episodes that would
  vary as much; it stays within [0, 100] and has a width where no episode succeeds.

Differences are tested for all pairs of a column, with episodes paired where both entries met the
same ones, and corrected by Holm (1979). Seeds of two entries have nothing in common and are never
paired. `results/coverage` has how often these intervals held the truth on published scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import stats as _scipy_stats

from offbench.stats import Interval, Statistic, holm

_PRIOR_WEIGHT = 0.5
_DEFAULT_CORRELATION = 0.1


@dataclass(frozen=True)
class Cell:
    """Test scores of one entry on one task, seeds x episodes."""

    # (n_seeds,) mean score of each seed
    means: np.ndarray
    # episodes of each seed
    n_episodes: int
    # (n_seeds, n_episodes) where all seeds met the same start states, else None
    table: np.ndarray | None = None
    # which start states, in the order of the table's columns
    start_states: tuple[int, ...] = ()
    # every score is 0 or 100: a success rate
    success: bool = False

    @property
    def n_seeds(self) -> int:
        return len(self.means)

    @cached_property
    def mean(self) -> float:
        return float(self.means.mean())

    @cached_property
    def seed_variance(self) -> float:
        """Variance of a seed's mean score; nan with one seed."""
        return float(self.means.var(ddof=1)) if self.n_seeds > 1 else np.nan

    @cached_property
    def residual(self) -> float:
        """Mean square of seeds x episodes, what neither seed nor start state explains."""
        assert self.table is not None
        x = self.table
        rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
        return float((rest**2).sum() / ((x.shape[0] - 1) * (x.shape[1] - 1)))

    @property
    def crossed(self) -> bool:
        """Whether the share of the start states can be told from that of the seeds."""
        return self.table is not None and min(self.table.shape) > 1

    @cached_property
    def episode_variance(self) -> float:
        """Variance of the mean that comes from which start states were drawn."""
        if not self.crossed:
            return 0.0
        by_episode = float(self.table.mean(0).var(ddof=1))
        beyond_noise = by_episode - self.residual / self.n_seeds
        # not what rounding leaves of start states that change nothing
        negligible = 1e-9 * (by_episode + self.seed_variance)
        return beyond_noise / self.n_episodes if beyond_noise > negligible else 0.0

    @property
    def chance(self) -> float:
        """p (1 - p) of a success rate in squared points, never 0: one success and failure added."""
        n = self.n_seeds * self.n_episodes
        share = (self.mean / 100 * n + 1) / (n + 2)
        return 1e4 * share * (1 - share)


class Pool(NamedTuple):
    """What all cells of a board say about the spread between seeds."""

    # mean variance of seed means, over cells that are no success rates
    variance: float
    # mean correlation of the episodes of a seed, over success rates
    correlation: float

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Pool":
        several = [c for c in cells if c.n_seeds > 1]
        variances = [c.seed_variance for c in several if not c.success]
        mixed = [c for c in several if c.success and 0 < c.mean < 100 and c.n_episodes > 1]
        found = [_correlation(c) for c in mixed]
        return cls(
            float(np.mean(variances)) if variances else 0.0,
            float(np.mean(found)) if found else _DEFAULT_CORRELATION,
        )

    def prior(self, cell: Cell) -> float:
        """The variance of a seed's mean that the board suggests for a cell."""
        if not cell.success:
            return self.variance
        m = cell.n_episodes
        return cell.chance * (1 + (m - 1) * self.correlation) / m


def _correlation(cell: Cell) -> float:
    """Correlation of success between episodes of one seed, within [0, 1]."""
    share, m = cell.mean / 100, cell.n_episodes
    inflation = m * cell.seed_variance / (1e4 * share * (1 - share))
    return float(np.clip((inflation - 1) / (m - 1), 0.0, 1.0))


def seed_share(cell: Cell, pool: Pool) -> float:
    """Variance of a cell's mean that comes from the seeds, moderated; nan with one seed."""
    n, prior = cell.n_seeds, pool.prior(cell)
    own = cell.seed_variance
    if cell.success and cell.mean in (0.0, 100.0) and n > 1:
        # all episodes ended alike, which says nothing about how seeds differ
        own = prior
    moderated = (_PRIOR_WEIGHT * prior + (n - 1) * own) / n
    if cell.success:
        # no less than that of independent episodes
        moderated = max(moderated, cell.chance / cell.n_episodes)
    return moderated / n


def cell_interval(cell: Cell, pool: Pool, level: float = 0.95) -> Interval:
    """Interval of the mean score over seeds and start states; nan bounds with one seed."""
    if cell.n_seeds < 2:
        return Interval(cell.mean, np.nan, np.nan)
    seeds, episodes = seed_share(cell, pool), cell.episode_variance
    variance = seeds + episodes
    freedom = _freedom([(seeds, cell.n_seeds), (episodes, cell.n_episodes - 1)])
    t = float(_scipy_stats.t.ppf((1 + level) / 2, freedom))
    if not cell.success:
        half = t * np.sqrt(variance)
        return Interval(cell.mean, cell.mean - float(half), cell.mean + float(half))
    independent = cell.chance / variance
    share = cell.mean / 100
    middle = (share + t**2 / (2 * independent)) / (1 + t**2 / independent)
    spread = np.sqrt(share * (1 - share) / independent + t**2 / (4 * independent**2))
    half = t / (1 + t**2 / independent) * spread
    low, high = np.clip([middle - half, middle + half], 0, 1) * 100
    return Interval(cell.mean, float(min(low, cell.mean)), float(max(high, cell.mean)))


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    total = sum(v for v, _ in parts)
    below = sum(v**2 / n for v, n in parts if v > 0)
    return total**2 / below if below > 0 else float(parts[0][1])


def differences(cells: Sequence[Cell], pool: Pool) -> np.ndarray:
    """(k, k) p-values of equal means, Holm-adjusted over all pairs; nan for cells of one seed."""
    several = [c.n_seeds > 1 for c in cells]
    return _all_pairs(cells, several, lambda a, b: _pvalue(a, b, pool))


def _pvalue(a: Cell, b: Cell, pool: Pool) -> float:
    parts = [(seed_share(a, pool), a.n_seeds), (seed_share(b, pool), b.n_seeds)]
    if a.crossed and b.crossed and a.start_states == b.start_states:
        gap = a.table.mean(0) - b.table.mean(0)
        noise = a.residual / a.n_seeds + b.residual / b.n_seeds
        shared = max(0.0, float(gap.var(ddof=1) - noise) / len(gap))
        parts.append((shared, len(gap) - 1))
    else:
        parts += [(c.episode_variance, max(1, c.n_episodes - 1)) for c in (a, b)]
    return _two_sided(a.mean - b.mean, sum(v for v, _ in parts), _freedom(parts))


def _two_sided(difference: float, variance: float, freedom: float) -> float:
    if variance <= 0:
        return float(difference == 0)
    return float(2 * _scipy_stats.t.sf(abs(difference) / np.sqrt(variance), freedom))


def not_worse_than_best(points: np.ndarray, adjusted: np.ndarray, level: float) -> np.ndarray:
    """(k,) bool: the highest point and all that do not differ from it.

    An entry above one of these is one of them, so the marks follow the order of the points.
    Entries with nan (one seed) are never marked and mark nobody.
    """
    points = np.asarray(points, dtype=np.float64)
    usable = np.isfinite(points) & np.isfinite(np.diag(adjusted))
    marked = np.zeros(len(points), bool)
    if not usable.any():
        return marked
    top = int(np.argmax(np.where(usable, points, -np.inf)))
    marked = usable & ((adjusted[top] >= 1 - level) | (points == points[top]))
    return usable & (points >= points[marked].min())


class Aggregate(NamedTuple):
    """A statistic over all tasks of an entry, with the draws that say how it varies."""

    # nan bounds where a task has one seed
    interval: Interval
    # (reps,) about the point; empty where a task has one seed
    draws: np.ndarray
    # of Student's t
    freedom: float


def aggregate(
    cells: Sequence[Cell],
    pools: Sequence[Pool],
    statistic: Statistic,
    *,
    generator: Callable[[np.ndarray], np.random.Generator],
    reps: int = 2000,
    level: float = 0.95,
) -> Aggregate:
    """`statistic` over an entry's cells, one a task, with its smoothed bootstrap interval.

    Seeds are drawn with replacement within each task and moved by normal noise whose variance is the
    board's, over their number. Start states are drawn too, the same ones for every entry that
    met the same, so the draws of two entries are paired by episode. The draws are centred at the
    statistic, which noise would otherwise shift, and their quantiles are stretched from the normal
    to Student's t with Satterthwaite's degrees of freedom. `generator` makes a generator from the
    numbers that it is to depend on.
    """
    point = float(statistic([c.means for c in cells]))
    if any(c.n_seeds < 2 for c in cells):
        return Aggregate(Interval(point, np.nan, np.nan), np.empty(0), np.nan)
    drawn = [_draw(c, p, generator, reps) for c, p in zip(cells, pools, strict=True)]
    draws = np.asarray(statistic(drawn))
    draws += point - np.median(draws)
    freedom = _freedom([(seed_share(c, p), c.n_seeds) for c, p in zip(cells, pools)])
    tails = [(1 - level) / 2, (1 + level) / 2]
    wider = _scipy_stats.t.ppf(tails[1], freedom) / _scipy_stats.norm.ppf(tails[1])
    low, high = point + wider * (np.quantile(draws, tails) - point)
    if all(c.success for c in cells):
        low, high = max(0.0, low), min(100.0, high)
    return Aggregate(Interval(point, float(low), float(high)), draws, freedom)


def _draw(
    cell: Cell, pool: Pool, generator: Callable[[np.ndarray], np.random.Generator], reps: int
) -> np.ndarray:
    """(reps, n_seeds) drawn seed means of a cell."""
    own = generator(cell.means)
    picked = own.integers(cell.n_seeds, size=(reps, cell.n_seeds))
    noise = np.sqrt(pool.prior(cell) / cell.n_seeds)
    drawn = cell.means[picked] + noise * own.standard_normal(picked.shape)
    if cell.episode_variance == 0:
        return drawn
    states = generator(np.array(cell.start_states))
    again = states.integers(cell.n_episodes, size=(reps, cell.n_episodes))
    by_episode = cell.table.mean(0) - cell.mean
    # without what seeds x episodes add to it: the spread between seeds has that already
    share = np.sqrt(cell.episode_variance * cell.n_episodes / by_episode.var(ddof=1))
    return drawn + share * by_episode[again].mean(1, keepdims=True)


def aggregate_differences(aggregates: Sequence[Aggregate]) -> np.ndarray:
    """(k, k) p-values of equal aggregates, Holm-adjusted over all pairs; nan where a task has one seed."""

    def pvalue(a: Aggregate, b: Aggregate) -> float:
        spread = float((a.draws - b.draws).var())
        freedom = _freedom([(a.draws.var(), a.freedom), (b.draws.var(), b.freedom)])
        return _two_sided(a.interval.point - b.interval.point, spread, freedom)

    return _all_pairs(aggregates, [len(a.draws) > 0 for a in aggregates], pvalue)


def _all_pairs(
    items: Sequence[Any], usable: Sequence[bool], pvalue: Callable[[Any, Any], float]
) -> np.ndarray:
    """(k, k) Holm-adjusted p-values of all pairs of usable items; nan for the others, 1 with itself."""
    k, use = len(items), np.flatnonzero(usable)
    adjusted = np.full((k, k), np.nan)
    adjusted[use, use] = 1.0
    rows, columns = (use[index] for index in np.triu_indices(len(use), 1))
    if len(rows):
        found = holm([pvalue(items[i], items[j]) for i, j in zip(rows, columns)])
        adjusted[rows, columns] = adjusted[columns, rows] = found
    return adjusted
