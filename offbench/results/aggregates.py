"""Aggregates of a board (IQM, mean): their intervals, and which entries differ, by a smoothed bootstrap.

The seeds of every cell and the start states of the test episodes are drawn again, each with the variance that
its cell has of them (`uncertainty`). All entries that met the same start states are drawn with the same ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from offbench.results.generators import Generators
from offbench.results.stats import Interval, Statistic, satterthwaite
from offbench.results.uncertainty import Cell, Pairs, Pool, index_pairs, seed_share


class Drawn(NamedTuple):
    """A cell whose seeds and start states are drawn again."""

    # (reps, n_seeds) means of the seeds
    seeds: np.ndarray
    # (reps, 1) what the start states add to them, with the noise of episodes; 0 where they change nothing
    starts: np.ndarray
    # of the spread of `starts`, that is no noise
    share: float

    @property
    def means(self) -> np.ndarray:
        """(reps, n_seeds) means that vary as the cell's do."""
        return self.seeds + self.share * self.starts


class Aggregate(NamedTuple):
    """A statistic over all tasks of an entry, with the draws that say how it varies."""

    # nan bounds where a task has one seed
    interval: Interval
    # (reps,) about the point; empty where a task has one seed
    draws: np.ndarray
    # the same with the noise of episodes in the start states: two entries covary by what moves both, and noise does not
    noisy_draws: np.ndarray
    # of the variance, that comes from the seeds and not from the start states
    share_of_seeds: float
    # of Student's t, of each of the two
    freedom_of_seeds: float
    freedom_of_starts: float


def aggregate(
    cells: Sequence[Cell],
    pools: Sequence[Pool],
    statistic: Statistic,
    *,
    generator: Generators,
    reps: int = 2000,
    level: float = 0.95,
    drawn: Sequence[Drawn] | None = None,
) -> Aggregate:
    """`statistic` over an entry's cells, one a task, with its smoothed bootstrap interval.

    Seeds are drawn with replacement within each task and moved by normal noise whose variance is the
    board's, over their number. Start states are drawn too, the same ones for every entry that
    met the same, so the draws of two entries are paired by episode. The draws are centred at the
    statistic, which noise would otherwise shift, and their quantiles are stretched from the normal to Student's t
    with Satterthwaite's degrees of freedom of seeds and start states. `drawn` is what `draw` has made of the cells.
    """
    point = float(statistic([c.means for c in cells]))
    if any(c.n_seeds < 2 for c in cells):
        none = np.empty(0)
        return Aggregate(Interval(point, np.nan, np.nan), none, none, np.nan, np.nan, np.nan)
    if drawn is None:
        drawn = [draw(c, p, generator, reps) for c, p in zip(cells, pools, strict=True)]
    draws = np.asarray(statistic([d.means for d in drawn]))
    draws += point - np.median(draws)
    noisy = draws
    if any(d.starts.any() for d in drawn):
        noisy = np.asarray(statistic([d.seeds + d.starts for d in drawn]))
    # of each task: seeds, and start states
    parts = np.array([(seed_share(c, p), c.episode_variance) for c, p in zip(cells, pools)])
    each = np.array([(p.freedom(c), max(1, c.n_episodes - 1)) for c, p in zip(cells, pools)])
    of_part, total = satterthwaite(parts, each, each[0]), parts.sum(0)
    freedom = float(satterthwaite(total, of_part, of_part[0]))
    tails = [(1 - level) / 2, (1 + level) / 2]
    wider = special.stdtrit(freedom, tails[1]) / special.ndtri(tails[1])
    low, high = point + wider * (np.quantile(draws, tails) - point)
    if all(c.success for c in cells):
        low, high = max(0.0, low), min(100.0, high)
    share = float(total[0] / total.sum()) if total.any() else 1.0
    return Aggregate(
        Interval(point, float(low), float(high)), draws, noisy, share, *of_part.tolist()
    )


def draw(cell: Cell, pool: Pool, generator: Generators, reps: int) -> Drawn:
    """`reps` draws of a cell."""
    own = generator(cell.name, cell.means)
    picked = own.integers(cell.n_seeds, size=(reps, cell.n_seeds))
    # drawing again from equal seeds adds no variance
    noise = np.sqrt(pool.prior(cell) / (1 if cell.unanimous else cell.n_seeds))
    drawn = cell.means[picked] + noise * own.standard_normal(picked.shape)
    if cell.episode_variance == 0:
        return Drawn(drawn, np.zeros((reps, 1)), 1.0)
    by_episode = cell.by_episode - cell.mean
    # of start states that are drawn again the variance is var(), and (n - 1) / n of what it is of new ones
    inflated = np.sqrt(cell.n_episodes / (cell.n_episodes - 1))
    starts = inflated * (generator.shares(cell.start_states, reps) @ by_episode)[:, None]
    # the spread between seeds has the noise of seeds x episodes already
    share = np.sqrt(cell.episode_variance * cell.n_episodes / by_episode.var(ddof=1))
    return Drawn(drawn, starts, float(share))


def differences(aggregates: Sequence[Aggregate]) -> Pairs:
    """The differences of all pairs of aggregates, whose draws are paired by episode."""
    drawn = np.array([len(a.draws) > 0 for a in aggregates], bool)
    i, j = index_pairs(drawn)
    points = np.array([a.interval.point for a in aggregates])
    parts = [(a.share_of_seeds, a.freedom_of_seeds, a.freedom_of_starts) for a in aggregates]
    share, of_seeds, of_starts = np.array(parts).reshape(-1, 3).T
    own = np.array([a.draws.var() if len(a.draws) else np.nan for a in aggregates])
    covariance = np.full((len(aggregates), len(aggregates)), np.nan)
    if len(use := np.flatnonzero(drawn)):
        found = np.cov([aggregates[k].noisy_draws for k in use.tolist()], ddof=0)
        covariance[np.ix_(use, use)] = found
    seeds = share * own
    # what start states do to both alike changes no difference, and seeds covary by chance alone
    both = (own - seeds)[i] + (own - seeds)[j]
    apart = np.maximum(both - 2 * covariance[i, j], 0.0)
    starts = np.where((share[i] < 1) & (share[j] < 1), apart, both)
    each = np.stack([of_seeds[i], of_seeds[j], np.minimum(of_starts[i], of_starts[j])])
    variances = np.stack([seeds[i], seeds[j], starts])
    return Pairs.of(drawn, points, variances, each)
