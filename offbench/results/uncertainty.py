"""Confidence intervals of a board's cells, and which entries differ from the best.

The mean of a cell varies with the training seeds and with the start states of the test episodes.

* Seeds. Three seeds say little about their variance, and nothing about the one in ten that fails.
  The variance of the seeds' means is therefore moderated by that of the board (as in Smyth 2004,
  "Linear models and empirical Bayes methods"): half the mean variance of all cells enters as one
  more observation, and Student's t has as many degrees of freedom as there are seeds (one fewer on
  boards of fewer than six cells, which say little besides what is compared).
* Episodes. All seeds face the same start states, so the spread between seeds leaves them out.
  Their share is estimated from the seeds x episodes table of a cell (two-way random effects).
* Success rates. The interval is Wilson's (1927), at the number of independent episodes that would
  vary as much; it stays within [0, 100] and has a width where no episode succeeds.

Differences are tested for all pairs of a column, corrected by Holm (1979), with episodes paired where both entries
met the same ones, seeds never. `results/coverage` has how often these intervals held the truth on published scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import special

from offbench.results.stats import Interval, holm, satterthwaite, wilson_bounds

# of the board's variance, in observations; chosen for coverage on published scores (results/coverage)
_PRIOR_WEIGHT = 0.5
_MANY_CELLS = 6
# of a board without mixed success rates; the mean over published antmaze scores is 0.12
_DEFAULT_CORRELATION = 0.1
# of scores, up to which numbers differ by rounding alone
_ROUNDING = 1e-12


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
    # of entry and task: cells with equal scores are drawn from independently
    name: str = ""

    @property
    def n_seeds(self) -> int:
        """Number of training seeds."""
        return len(self.means)

    @cached_property
    def mean(self) -> float:
        """Mean score over seeds."""
        return float(self.means.mean())

    @cached_property
    def seed_variance(self) -> float:
        """Variance of a seed's mean score; nan with one seed."""
        found = float(self.means.var(ddof=1)) if self.n_seeds > 1 else np.nan
        return 0.0 if found <= self.rounding else found

    @property
    def rounding(self) -> float:
        """The variance of equal scores, which rounding leaves."""
        return float(_ROUNDING * np.abs(self.means).max()) ** 2

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

    @property
    def by_episode(self) -> np.ndarray:
        """(n_episodes,) mean score of each start state, of a crossed cell."""
        assert self.table is not None
        return self.table.mean(0)

    @cached_property
    def episode_variance(self) -> float:
        """Variance of the mean that comes from which start states were drawn."""
        if not self.crossed:
            return 0.0
        by_episode = float(self.by_episode.var(ddof=1))
        beyond_noise = by_episode - self.residual / self.n_seeds
        # not what rounding leaves of start states that change nothing
        negligible = max(1e-9 * (by_episode + self.seed_variance), self.rounding)
        return beyond_noise / self.n_episodes if beyond_noise > negligible else 0.0

    @property
    def unanimous(self) -> bool:
        """Whether all episodes of a success rate ended alike, which says nothing about how seeds differ."""
        return self.success and self.mean in (0.0, 100.0)

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
    # cells of several seeds that this is the mean of
    n_cells: int = 100

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Pool":
        """The means over the cells that have several seeds; defaults where there are none."""
        several = [c for c in cells if c.n_seeds > 1]
        variances = [c.seed_variance for c in several if not c.success]
        mixed = [c for c in several if c.success and 0 < c.mean < 100 and c.n_episodes > 1]
        found = [_correlation(c) for c in mixed]
        return cls(
            float(np.mean(variances)) if variances else 0.0,
            float(np.mean(found)) if found else _DEFAULT_CORRELATION,
            len(several),
        )

    def freedom(self, cell: Cell) -> float:
        """Degrees of freedom of a moderated variance: the board counts as one more observation
        where it has other cells enough than those that are compared."""
        return float(cell.n_seeds - (self.n_cells < _MANY_CELLS))

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
    if cell.unanimous and n > 1:
        own = prior
    few = pool.n_cells < _MANY_CELLS
    moderated = (_PRIOR_WEIGHT * prior + (n - 1) * own) / (n - few * (1 - _PRIOR_WEIGHT))
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
    each = np.array([pool.freedom(cell), max(1, cell.n_episodes - 1)])
    freedom = _freedom(np.array([seeds, episodes]), each)
    t = float(special.stdtrit(freedom, (1 + level) / 2))
    if not cell.success:
        half = t * np.sqrt(variance)
        return Interval(cell.mean, cell.mean - float(half), cell.mean + float(half))
    bounds = wilson_bounds(cell.mean / 100, cell.chance / variance, t)
    low, high = np.clip(bounds, 0, 1) * 100
    return Interval(cell.mean, float(min(low, cell.mean)), float(max(high, cell.mean)))


class Pairs(NamedTuple):
    """The differences of all pairs of k items, and what their tests and intervals are made of."""

    # (k,) bool, items of several seeds; the pairs are theirs
    usable: np.ndarray
    # (n_pairs,) each: the two items of a pair, their difference, its variance, of Student's t
    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(
        cls, usable: np.ndarray, points: np.ndarray, variances: np.ndarray, each: np.ndarray
    ) -> "Pairs":
        """The pairs of k points, without what rounding leaves of equal ones.

        Args:
            usable, points: (k,).
            variances, each: (parts, n_pairs) variances of the differences, and their degrees of freedom.
        """
        i, j = index_pairs(usable)
        difference, variance = points[i] - points[j], variances.sum(0)
        small = _ROUNDING * np.maximum(np.abs(points[i]), np.abs(points[j]))
        return cls(
            usable,
            i,
            j,
            np.where(np.abs(difference) <= small, 0.0, difference),
            np.where(variance <= small**2, 0.0, variance),
            _freedom(variances, each),
        )

    def adjusted(self, *, holm_over_all: bool = True) -> np.ndarray:
        """(k, k) p-values of no difference, Holm-adjusted over all pairs, or each by itself; 1 of an item
        with itself, nan for items of one seed."""
        p = _two_sided(self.difference, self.variance, self.freedom)
        found = self._square(holm(p) if holm_over_all else p)
        found[self.usable, self.usable] = 1.0
        return np.where(np.isfinite(found), found, found.T)

    def intervals(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """(k, k) low and high of item i minus item j, each pair by itself; nan for items of one seed."""
        half = special.stdtrit(self.freedom, (1 + level) / 2) * np.sqrt(self.variance)
        low, high = self._square(self.difference - half), self._square(self.difference + half)
        turned = np.isfinite(low.T)
        return np.where(turned, -high.T, low), np.where(turned, -low.T, high)

    def _square(self, values: np.ndarray) -> np.ndarray:
        found = np.full((len(self.usable), len(self.usable)), np.nan)
        found[self.first, self.second] = values
        return found


def differences(cells: Sequence[Cell], pool: Pool) -> Pairs:
    """The differences of the means of all pairs of cells of a column.

    Welch's test with the moderated variances of the seeds, and with the start states: those that both
    met count by how differently the two entries fare from them, others for each by itself.
    """
    several = np.array([c.n_seeds > 1 for c in cells], bool)
    i, j = index_pairs(several)
    means = np.array([c.mean for c in cells])
    seeds = np.array([seed_share(c, pool) for c in cells])
    episodes = np.array([c.episode_variance for c in cells])
    n = np.array([pool.freedom(c) if c.n_seeds > 1 else np.nan for c in cells])
    m = np.maximum([c.n_episodes - 1.0 for c in cells], 1.0)
    shared = _shared_episode_variance(cells)[i, j]
    met = np.isfinite(shared)
    variances = np.stack(
        [seeds[i], seeds[j], np.where(met, shared, episodes[i]), np.where(met, 0.0, episodes[j])]
    )
    return Pairs.of(several, means, variances, np.stack([n[i], n[j], m[i], m[j]]))


def _shared_episode_variance(cells: Sequence[Cell]) -> np.ndarray:
    """(k, k) variance of a difference of means that comes from the start states that two entries met
    both; nan where they met others."""
    found = np.full((len(cells), len(cells)), np.nan)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        if cell.crossed:
            groups.setdefault(cell.start_states, []).append(index)
    for members in groups.values():
        covariance = np.atleast_2d(np.cov([cells[k].by_episode for k in members]))
        own = np.diag(covariance)
        noise = np.array([cells[k].residual / cells[k].n_seeds for k in members])
        gap = own[:, None] + own - 2 * covariance - noise[:, None] - noise
        found[np.ix_(members, members)] = np.maximum(gap, 0.0) / cells[members[0]].n_episodes
    return found


def index_pairs(usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of usable items of (k,), by their two indices: two of (n_pairs,)."""
    use = np.flatnonzero(usable)
    rows, columns = np.triu_indices(len(use), 1)
    return use[rows], use[columns]


def _freedom(variances: np.ndarray, each: np.ndarray) -> np.ndarray:
    """Satterthwaite's degrees of freedom; those of the first part where all variances are 0."""
    return satterthwaite(variances, each, each[0])


def _two_sided(difference: np.ndarray, variance: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """p-values of differences; without any variance, whether they are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(freedom, -np.abs(difference) / np.sqrt(variance))
    return np.where(variance > 0, p, difference == 0).astype(np.float64)


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
