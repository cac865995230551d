"""The sentence that answers whether an entry is better than another, and what would settle it if none can.

How many more runs would show a difference comes from the variances at hand: those of the seeds fall with
their number, that of the start states with the number of episodes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from offbench.results.stats import satterthwaite
from offbench.results.words import plural

POWER = 0.8
# more seeds than anybody trains
_MOST = 1000


class Variance(NamedTuple):
    """Of a difference of two aggregates, in its parts."""

    # of the seeds of each of the two, with their number (mean over tasks) and degrees of freedom
    seeds: tuple[float, float]
    n_seeds: tuple[float, float]
    freedom: tuple[float, float]
    # of the start states, with the episodes of a seed and degrees of freedom
    start_states: float
    n_episodes: float
    start_freedom: float


class More(NamedTuple):
    """What would show a difference, beside what is there."""

    seeds: int
    episodes: int


def more_needed(
    variance: Variance, difference: float, *, pairs: int = 1, level: float = 0.95
) -> More | None:
    """More seeds of each entry, and test episodes per seed, that show a difference in 80 of 100 cases.

    Welch's test of the aggregates at the level over the number of `pairs`, the first step of Holm's
    correction, has that power where the difference is t(1 - alpha / 2) + t(0.8) standard errors, with
    Satterthwaite's degrees of freedom. Episodes are asked for only where start states alone are more than
    seeds can make up for; they and the seeds then have half of the variance each. None: more than 1,000
    seeds.
    """
    alpha = (1 - level) / pairs
    if difference <= 0:
        return None
    seeds = np.arange(_MOST + 1)
    n = np.array(variance.n_seeds)[:, None]
    parts = np.array(variance.seeds)[:, None] * n / (n + seeds)
    each = np.array(variance.freedom)[:, None] * (n + seeds) / n
    total = parts.sum(0)
    # with the start states at hand
    starts = np.full_like(total, variance.start_states)
    ends = np.full_like(total, variance.start_freedom)
    most = _most(difference, alpha, np.stack([*parts, starts]), np.stack([*each, ends]))
    if (total + starts <= most).any():
        return More(int(np.argmax(total + starts <= most)), 0)
    # of more start states the freedom is no limit
    most = _most(difference, alpha, parts, each)
    if not (total <= most / 2).any():
        return None
    k = int(np.argmax(total <= most / 2))
    episodes = variance.n_episodes * (variance.start_states / (most[k] / 2) - 1)
    return More(k, max(1, int(np.ceil(episodes))))


def _most(difference: float, alpha: float, parts: np.ndarray, each: np.ndarray) -> np.ndarray:
    """What the sum of these variances, with their degrees of freedom, may be."""
    freedom = satterthwaite(parts, each, np.inf)
    quantiles = special.stdtrit(freedom, 1 - alpha / 2) + special.stdtrit(freedom, POWER)
    normal = special.ndtri(1 - alpha / 2) + special.ndtri(POWER)
    return (difference / np.where(np.isfinite(freedom), quantiles, normal)) ** 2


class Finding(NamedTuple):
    """What is known of an entry against a rival."""

    mine: str
    rival: str
    # of the IQM: nan where there is none; low, high and p nan with one seed
    difference: float
    low: float
    high: float
    p: float
    # names of the tasks
    better: Sequence[str]
    worse: Sequence[str]
    n_tasks: int
    # those of the suite, or of the rows
    n_tasks_in_all: int
    # fewest and most of a task
    seeds: tuple[int, int]
    # entries with a task of one seed
    single: Sequence[str]
    # "points", or "of return" where that is the score
    unit: str
    # pairs that p is corrected for
    pairs: int
    more: More | None


def verdict(found: Finding, *, difference: float, level: float) -> str:
    """One sentence: better, worse, equivalent, cannot be told apart yet, or nothing can be said."""
    mine, rival = found.mine, found.rival
    over = f"over {plural(found.n_tasks, 'task')}"
    if found.n_tasks < found.n_tasks_in_all:
        over = f"over {found.n_tasks} of {plural(found.n_tasks_in_all, 'task')}"
    if found.single:
        return (
            f"{mine} against {rival}: nothing can be said with one seed"
            f" (of {' and of '.join(found.single)})"
        )
    if np.isnan(found.difference):
        return (
            f"{mine} against {rival}: the returns of these tasks have no common scale and no mean; "
            f"{_where(found)}"
        )
    span = f"{found.difference:+.1f} [{found.low:.1f}, {found.high:.1f}]"
    seeds = spelt_seeds(*found.seeds)
    if found.p < 1 - level:
        word = "better" if found.difference > 0 else "worse"
        return (
            f"{mine} is {word} than {rival}: {span.replace(' [', f' {found.unit} [', 1)} {over}"
            f" ({spelt_p(found.p)}); {_where(found)}"
        )
    points = found.unit == "points"
    if points and -difference < found.low and found.high < difference:
        return f"{mine} and {rival} are equivalent within {difference:g} points: {span} {over} with {seeds}"
    sentence = f"{mine} and {rival} cannot be told apart yet: {span} {over} with {seeds}"
    if (found.low > 0 or found.high < 0) and found.pairs > 1:
        sentence += f" ({spelt_p(found.p)} as one of {found.pairs} pairs)"
    if found.better or found.worse:
        sentence += f"; {_where(found)}"
    return sentence + (f"; {_outlook(found.more, difference)}" if points else "")


def _outlook(more: More | None, difference: float) -> str:
    shown = f"show a difference of {difference:g} points with {100 * POWER:.0f} % power"
    if more is None:
        return f"even 1,000 more seeds each would not {shown}"
    seeds, episodes = plural(more.seeds, "more seed"), plural(more.episodes, "more test episode")
    if more.episodes:
        few = f"{seeds} and {episodes}" if more.seeds else episodes
        return f"start states dominate, about {few} each would {shown}"
    return f"about {seeds} each would {shown}" if more.seeds else f"these would {shown}"


def _where(found: Finding) -> str:
    """`better on 3, worse on 1 (walker2d), not told apart on 1`."""
    parts = []
    for word, tasks in (("better", found.better), ("worse", found.worse)):
        named = f" ({', '.join(tasks)})" if 0 < len(tasks) <= 2 else ""
        parts += [f"{word} on {len(tasks)}{named}"] if tasks else []
    rest = found.n_tasks - len(found.better) - len(found.worse)
    return ", ".join([*parts, *([f"not told apart on {rest}"] if rest else [])])


def spelt_p(p: float) -> str:
    """`p = 0.013`, `p < 0.001`; 0.0496 keeps the digit that says on which side of 0.05 it is."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2g}" if abs(p - 0.05) > 0.0006 else f"p = {p:.3g}"


def spelt_seeds(few: int, many: int) -> str:
    """`3 seeds`, `3 to 5 seeds`."""
    return plural(few, "seed") if few == many else f"{few} to {many} seeds"
