"""All pairs of a board's entries: differences of the IQM, probabilities of improvement, ranks, profiles.

Differences and tests are those of the board's bold marks (`offbench.results.uncertainty`): moderated
variances, episodes paired, seeds not, p-values adjusted by Holm over all pairs of complete entries.
Probability of improvement, ranks and profiles follow Agarwal et al. 2021, "Deep reinforcement learning
at the edge of the statistical precipice".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
from scipy import special

from offbench.errors import UserError
from offbench.results import aggregates, stats, uncertainty
from offbench.results.aggregates import Aggregate
from offbench.results.cells import Cells, pools_of, scored_cells
from offbench.results.generators import Generators
from offbench.results.selection import current_runs, refuse_mixtures
from offbench.results.stats import check_level
from offbench.results.uncertainty import Cell, Pairs, Pool


@dataclass(frozen=True)
class Scores:
    """The cells of a board, and what it says of the variance between seeds."""

    tasks: tuple[str, ...]
    found: Cells
    # task -> what moderates its variances
    pools: Mapping[str, Pool]
    # (entry, task) with a failed or diverged run: not tested, and no part of an aggregate
    failed: frozenset[tuple[str, str]]
    # tasks whose score is a plain return
    unscaled: frozenset[str]

    @classmethod
    def of(
        cls,
        episodes: pd.DataFrame,
        runs: pd.DataFrame,
        tasks: Sequence[str],
        unscaled: Collection[str] = (),
    ) -> "Scores":
        """Those of some tasks. Raises UserError for records that cannot share a board."""
        tasks = tuple(dict.fromkeys(tasks))
        if not tasks:
            raise UserError("nothing to compare: no task is named")
        runs = current_runs(runs, tasks)
        whole = runs[runs["status"] == "ok"]
        refuse_mixtures(whole)
        found = scored_cells(episodes, whole, unscaled)
        rest = runs[runs["status"] != "ok"]
        failed = frozenset(zip(rest["entry"].astype(str), rest["task"].astype(str), strict=True))
        plain = frozenset(unscaled) & frozenset(tasks)
        return cls(tasks, found, pools_of(found, tasks, plain), failed, plain)

    def entries(self, tasks: Sequence[str]) -> list[str]:
        """The entries with a whole cell on each of some tasks, in alphabetical order."""
        names = sorted({entry for entry, _ in self.found})
        return [e for e in names if all(self.is_whole(e, task) for task in tasks)]

    def is_whole(self, entry: str, task: str) -> bool:
        """Whether there are scores, and no run failed."""
        return (entry, task) in self.found and (entry, task) not in self.failed

    def row(self, entry: str, tasks: Sequence[str]) -> list[Cell]:
        """The cells of an entry."""
        return [self.found[entry, task] for task in tasks]

    @cached_property
    def columns(self) -> Mapping[str, tuple[list[str], Pairs]]:
        """task -> its whole cells by entry, and the differences of all pairs of them."""
        columns = {}
        for task in self.tasks:
            entries = self.entries([task])
            cells = [self.found[entry, task] for entry in entries]
            columns[task] = entries, uncertainty.differences(cells, self.pools[task])
        return columns

    def averages(self, tasks: Sequence[str]) -> bool:
        """Whether the scores of some tasks have a mean: returns of several scales have none."""
        return len(tasks) == 1 or not self.unscaled & set(tasks)

    def aggregates(
        self, entries: Sequence[str], tasks: Sequence[str], *, reps: int, level: float, seed: int
    ) -> list[Aggregate]:
        """The IQM over some tasks of each entry, with draws that are paired between entries."""
        pools = [self.pools[task] for task in tasks]
        estimate = partial(aggregates.aggregate, generator=Generators(seed), reps=reps, level=level)
        return [estimate(self.row(entry, tasks), pools, stats.iqm) for entry in entries]


def pairs_of(
    scores: Scores,
    entries: Sequence[str],
    tasks: Sequence[str],
    *,
    level: float,
    reps: int,
    seed: int,
    found: Sequence[Aggregate] = (),
) -> pd.DataFrame:
    """Some entries against each other, one row per ordered pair.

    Args:
        entries: all whole on the tasks.
        tasks: some of the scores'; each is tested as on the whole board.
        found: the IQMs of the entries where they are known already.

    Returns:
        entry, rival, difference (of the IQM, entry minus rival; nan where returns of several scales have
        none), low, high (of this difference alone; nan with one seed), p (Holm-adjusted over all unordered
        pairs), improvement (probability that a run of the entry has a higher score than one of the rival,
        mean over tasks, ties one half), improvement_low, improvement_high, wins, losses, ties (tasks on
        which the board's test of the column, Holm-adjusted over all its pairs, finds a difference, or none).
    """
    check_level(level)
    k = len(entries)
    gap, low, high, p = np.full((4, k, k), np.nan)
    if k and scores.averages(tasks):
        found = found or scores.aggregates(entries, tasks, reps=reps, level=level, seed=seed)
        points = np.array([a.interval.point for a in found])
        pairs = aggregates.differences(found)
        gap, p = points[:, None] - points, pairs.adjusted()
        low, high = pairs.intervals(level)
        if all(cell.success for entry in entries for cell in scores.row(entry, tasks)):
            low, high = np.maximum(low, -100.0), np.minimum(high, 100.0)
    better = won(scores, entries, tasks, level).sum(0)
    point, point_low, point_high = improvement(scores, entries, tasks, level)
    i, j = np.nonzero(~np.eye(k, dtype=bool))
    names = np.array(entries, dtype=object)
    columns = {
        "difference": gap,
        "low": low,
        "high": high,
        "p": p,
        "improvement": point,
        "improvement_low": point_low,
        "improvement_high": point_high,
        "wins": better,
        "losses": better.T,
        "ties": len(tasks) - better - better.T,
    }
    values = {name: values[i, j] for name, values in columns.items()}
    return pd.DataFrame({"entry": names[i], "rival": names[j], **values})


def won(
    scores: Scores, entries: Sequence[str], tasks: Sequence[str], level: float
) -> np.ndarray:  # (n_tasks, k, k)
    """Whether the first entry of a pair is better on a task, by the board's test of the column."""
    found = []
    for task in tasks:
        column, pairs = scores.columns[task]
        place = [column.index(entry) for entry in entries]
        p = pairs.adjusted()[np.ix_(place, place)]
        means = np.array([scores.found[entry, task].mean for entry in entries])
        # not a number where one has one seed
        found.append((p < 1 - level) & (means[:, None] > means))
    return np.array(found).reshape(len(tasks), len(entries), len(entries))


# --- probability of improvement -------------------------------------------------------------


def improvement(
    scores: Scores, entries: Sequence[str], tasks: Sequence[str], level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(k, k) probability that a run of the one entry beats a run of the other, low and high.

    The mean over tasks of the Mann-Whitney statistic, ties one half. Its interval is Newcombe's (2006,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", method 5): the
    probabilities whose own standard error reaches the one found, so it has a width where every run beats
    every run. The variance of the mean is that of tasks which all have its probability, times how much
    less it is with theirs, each moved towards one half by half a win and half a loss. Runs count with
    their mean score over the episodes that were dealt. nan with one seed.
    """
    k, n_tasks = len(entries), len(tasks)
    n = np.array([[c.n_seeds for c in scores.row(e, tasks)] for e in entries]).reshape(k, n_tasks).T
    share = np.empty((n_tasks, k, k))
    for index, task in enumerate(tasks):
        runs = np.concatenate([scores.found[e, task].means for e in entries] or [np.empty(0)])
        beats = (runs[:, None] > runs) + 0.5 * (runs[:, None] == runs)
        starts = np.cumsum(n[index]) - n[index]
        sums = np.add.reduceat(np.add.reduceat(beats, starts, 0), starts, 1) if k else beats
        share[index] = sums / np.outer(n[index], n[index])
    point = share.mean(0)
    a, b = n[:, :, None].astype(float), n[:, None, :].astype(float)
    fewer = np.minimum(a, b)
    drawn_in = (fewer * share + 0.5) / (fewer + 1)
    even = _variance(drawn_in.mean(0), a, b).sum(0)
    less = np.minimum(1.0, _variance(drawn_in, a, b).sum(0) / even)
    low = _reaches(point, a, b, less, level)
    one = np.any(n < 2, axis=0)
    low[one[:, None] | one] = np.nan
    return point, low, 1 - low.T


def _variance(theta: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Of the Mann-Whitney statistic of n and m runs (Hanley and McNeil 1982, Newcombe 2006)."""
    shape = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return theta * (1 - theta) * (1 + ((n + m) / 2 - 1) * shape) / (n * m)


def _reaches(
    point: np.ndarray, n: np.ndarray, m: np.ndarray, less: np.ndarray, level: float
) -> np.ndarray:
    """The lowest probability from which the found one lies no further than its standard errors, by bisection."""
    z, n_tasks, times = float(special.ndtri((1 + level) / 2)), len(n), 1
    if (n == n[:1]).all() and (m == m[:1]).all():
        # the same sum for all tasks
        n, m, times = n[:1], m[:1], n_tasks
    below, above = np.zeros_like(point), point.copy()
    for _ in range(40):
        middle = (below + above) / 2
        error = np.sqrt(less * times * _variance(middle, n, m).sum(0)) / n_tasks
        far = point - middle > z * error
        below, above = np.where(far, middle, below), np.where(far, above, middle)
    return below


# --- ranks and profiles ---------------------------------------------------------------------


def ranks_of(
    scores: Scores, entries: Sequence[str], drawn_means: Sequence[np.ndarray], level: float
) -> pd.DataFrame:
    """Mean rank of some entries within the tasks, 1 the best, from the drawn means (reps, n_tasks) of each.

    Returns:
        entry, mean_rank, low, high, borda (share of the rivals that it beats, mean over tasks, ties one
        half), in the order of the ranks. Seeds and start states are drawn again as for the IQM, each draw
        ranks anew, and the draws are centred at the ranks found, from which noise moves them towards the
        middle. An entry of one seed has no interval.
    """
    check_level(level)
    k, n_tasks = len(entries), len(scores.tasks)
    point, drawn = np.zeros(k), np.zeros((len(drawn_means[0]) if k else 0, k))
    for index, task in enumerate(scores.tasks if k else ()):
        means = np.array([scores.found[entry, task].mean for entry in entries])
        point += _ranked(means[None])[0] / n_tasks
        drawn += _ranked(np.stack([again[:, index] for again in drawn_means], -1)) / n_tasks
    low, high = np.full((2, k), np.nan)
    if k:
        drawn = np.clip(drawn + point - np.median(drawn, axis=0), 1, k)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    one = [any(c.n_seeds < 2 for c in scores.row(entry, scores.tasks)) for entry in entries]
    low, high = np.where(one, np.nan, [low, high])
    borda = (k - point) / (k - 1) if k > 1 else np.full(k, np.nan)
    columns = {"entry": entries, "mean_rank": point, "low": low, "high": high, "borda": borda}
    return pd.DataFrame(columns).sort_values(["mean_rank", "entry"], ignore_index=True)


def _ranked(x: np.ndarray) -> np.ndarray:  # (n, k) -> (n, k)
    """Ranks within each row, 1 the highest, ties their mean."""
    return pd.DataFrame(x).rank(axis=1, ascending=False).to_numpy()


def profiles(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    tasks: Sequence[str],
    *,
    thresholds: Sequence[float] | np.ndarray | None = None,
    unscaled: Collection[str] = (),
    level: float = 0.95,
    reps: int = 2000,
    random_seed: int = 0,
) -> pd.DataFrame:
    """Performance profile of every complete entry: the share of its runs with a score above a threshold.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records.
        tasks: ids. Entries that lack one, or have a failed run on one, are left out.
        thresholds: 101 from the lowest to the highest run by default.
        unscaled: tasks whose score is a plain return.

    Returns:
        entry, threshold, point, low, high; tasks count equally, the band is pointwise. nan where returns
        of several scales have no common threshold, and bounds nan with one seed.
    """
    scores = Scores.of(episodes, runs, tasks, unscaled)
    entries = scores.entries(scores.tasks)
    check_level(level)
    generator = Generators(random_seed)
    if thresholds is None:
        thresholds = _range([c.means for e in entries for c in scores.row(e, scores.tasks)])
    tables = []
    for entry in entries:
        means = [cell.means for cell in scores.row(entry, scores.tasks)]
        rng = generator(f"profile of {entry}", np.concatenate(means))
        table = _profile(means, np.asarray(thresholds), rng, reps, level)
        if not scores.averages(scores.tasks):
            table[["point", "low", "high"]] = np.nan
        table.insert(0, "entry", entry)
        tables.append(table)
    columns = ["entry", "threshold", "point", "low", "high"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _profile(
    means: Sequence[np.ndarray],
    thresholds: np.ndarray,
    rng: np.random.Generator,
    reps: int,
    level: float,
) -> pd.DataFrame:
    """Share of runs above each threshold, with a band: seeds are resampled within each task."""
    above = [(x[:, None] > thresholds).astype(np.float64) for x in means]
    bounds = np.full((2, len(thresholds)), np.nan)
    if all(len(x) > 1 for x in means):
        draws = np.zeros((reps, len(thresholds)))
        for share in above:
            n = len(share)
            # how often each seed occurs in a resample, as a share
            often = rng.multinomial(n, np.full(n, 1 / n), size=reps) / n
            draws += often @ share / len(above)
        bounds = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    point = np.mean([share.mean(0) for share in above], axis=0)
    columns = {"threshold": thresholds, "point": point, "low": bounds[0], "high": bounds[1]}
    return pd.DataFrame(columns)


def _range(runs: Sequence[np.ndarray]) -> np.ndarray:
    """101 thresholds over all runs."""
    scores = np.concatenate([*runs, np.empty(0)])
    return np.linspace(scores.min(), scores.max(), 101) if len(scores) else np.empty(0)
