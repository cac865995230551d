"""Which pairs of a suite's entries are decided, and which need more seeds: a group-sequential Holm test.

After fixed numbers of seeds (looks) every undecided pair of entries is tested by the difference of the IQM
over the suite's tasks, with the p-values of the board (`offbench.results.uncertainty`). The entries of
undecided pairs get seeds up to the next look; a decided pair is not tested again.

Family-wise error: the chance that any two equal entries are ever called different, over all pairs and
looks, is at most 5 %. Look k, with n_k of at most n_K seeds, spends the share w_k = (n_k - n_(k-1)) / n_K of
it (Lan and DeMets 1983; Kim and DeMets 1987, spending function alpha t): with m pairs not called different
yet, the pair with the smallest p is where p <= 0.05 w_k / m, then the next with m - 1 (Holm 1979).

Proof (Ye, Li, Liu and Yao 2013, "A group sequential Holm procedure with multiple primary endpoints"). Let
m0 pairs be equal in truth. Before the first of these is called different, m >= m0; so one of m0 pairs has
p <= 0.05 w_k / m0 at one of the looks, and by Bonferroni's inequality the chance of that is at most
m0 x sum over k of 0.05 w_k / m0 = 0.05. It holds however looks and pairs depend on each other, and whichever
entries get more seeds, as an undecided pair has the same n_k seeds whatever happened before.

What it rests on: a p-value of one look is right by itself, and n_K was chosen beforehand.
tests/simulate_sequential.py measures the error.

A pair is called equivalent at a look where its interval of level 1 - 2 x 0.05 w_k / M, of M pairs in all,
lies within the margin (two one-sided tests): the chance that any pair that differs by the margin is ever
called equivalent is at most 5 %, by the same inequality.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from offbench.errors import UserError
from offbench.results import aggregates
from offbench.results.pairwise import Scores

# two entries, in alphabetical order
Pair = tuple[str, str]

EQUIVALENT = "equivalent"

_REPS = 2000
_SEED = 0


def looks(first: int, most: int) -> tuple[int, ...]:
    """Numbers of seeds at which pairs are tested, each about half as many again as the one before.

    >>> looks(6, 20)
    (6, 9, 14, 20)
    >>> looks(3, 20)
    (3, 5, 8, 12, 20)
    """
    found = [first]
    # the last step is no smaller than a quarter
    while 5 * (following := -(-3 * found[-1] // 2)) <= 4 * most:
        found.append(following)
    return (*found, most) if found[-1] < most else tuple(found)


@dataclass(frozen=True)
class Rule:
    """When pairs are tested, and what a wrong decision may cost."""

    # ascending numbers of seeds
    looks: tuple[int, ...]
    # family-wise, of calling equal entries different
    error: float = 0.05
    # points within which entries are equivalent; None: none are called so
    margin: float | None = 5.0

    def spent(self, look: int) -> float:
        """The part of the error that a look may spend; the first is 0."""
        before = self.looks[look - 1] if look else 0
        return self.error * (self.looks[look] - before) / self.looks[-1]


class Look(NamedTuple):
    """What is known after a look."""

    # seeds of the entries that were tested
    n_seeds: int
    # pair -> better or worse (the first than the second), equivalent
    decided: Mapping[Pair, str]
    undecided: tuple[Pair, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of undecided pairs."""
        return tuple(sorted({entry for pair in self.undecided for entry in pair}))


class Progress(NamedTuple):
    """What is decided so far, and what is to be trained."""

    rule: Rule
    # those whose runs are all recorded
    looks: tuple[Look, ...]
    # entry -> the number of seeds that it is to have
    asked: Mapping[str, int]
    n_pairs: int

    @property
    def decided(self) -> Mapping[Pair, str]:
        """The decisions of all looks."""
        return self.looks[-1].decided if self.looks else {}

    @property
    def finished(self) -> bool:
        """Whether no look is left: nothing is undecided, or every entry of it has all its seeds."""
        done = self.looks
        return bool(done) and (not done[-1].undecided or len(done) == len(self.rule.looks))


def progress(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    tasks: Sequence[str],
    entries: Sequence[str],
    *,
    seeds: Sequence[int],
    rule: Rule,
    unscaled: Collection[str] = (),
) -> Progress:
    """Repeats all looks on the recorded runs, up to the first that lacks some.

    Each look sees what was there when it was taken: of every entry the seeds that it had then. So the
    same records give the same decisions, and seeds that were trained before they were asked for wait.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records, failed ones too; an entry with a failed run is left out.
        entries: those that are compared; each is asked for all tasks.
        seeds: as many as the last look has, in the order in which they are trained.
        unscaled: tasks whose score is a plain return.
    """
    if len(seeds) != rule.looks[-1]:
        raise UserError(f"{len(seeds)} seeds are named for a last look of {rule.looks[-1]}")
    place = {seed: index for index, seed in enumerate(seeds)}
    own = runs[runs["entry"].isin(list(entries)) & runs["task"].isin(list(tasks))]
    own = own[own["seed"].isin(list(seeds))] if len(own) else own
    recorded = set(zip(own["entry"], own["task"], own["seed"]))

    def scores_at(n_seeds: Mapping[str, int]) -> Scores | None:
        needed = ((e, t, s) for e, n in n_seeds.items() for t in tasks for s in seeds[:n])
        if not all(run in recorded for run in needed):
            return None
        use = own["seed"].map(place) < own["entry"].astype(str).map(n_seeds)
        return Scores.of(episodes, own[use], tasks, unscaled)

    return decide(scores_at, entries, rule)


def decide(
    scores_at: Callable[[Mapping[str, int]], Scores | None],
    entries: Sequence[str],
    rule: Rule,
    *,
    reps: int = _REPS,
) -> Progress:
    """All looks at some scores.

    Args:
        scores_at: the scores of the first seeds of each entry, by their number; None where some are missing.
        reps: resamples of an IQM.
    """
    undecided = list(combinations(sorted(entries), 2))
    n_pairs, asked = len(undecided), dict.fromkeys(entries, rule.looks[0])
    decided: dict[Pair, str] = {}
    taken: list[Look] = []
    for number, n_seeds in enumerate(rule.looks):
        asked |= {entry: n_seeds for pair in undecided for entry in pair}
        if (scores := scores_at(asked)) is None:
            break
        whole = set(scores.entries(scores.tasks))
        undecided = [pair for pair in undecided if whole.issuperset(pair)]
        different = sum(outcome != EQUIVALENT for outcome in decided.values())
        decided |= _tested(scores, undecided, rule, number, (n_pairs, different), reps)
        undecided = [pair for pair in undecided if pair not in decided]
        taken.append(Look(n_seeds, dict(decided), tuple(undecided)))
        if not undecided:
            break
    return Progress(rule, tuple(taken), asked, n_pairs)


def _tested(
    scores: Scores,
    undecided: Sequence[Pair],
    rule: Rule,
    number: int,
    counts: tuple[int, int],
    reps: int,
) -> dict[Pair, str]:
    """The pairs that a look decides; `counts` of all pairs, and of those called different before."""
    n_pairs, different = counts
    names = sorted({entry for pair in undecided for entry in pair})
    place = {name: index for index, name in enumerate(names)}
    at = {pair: (place[pair[0]], place[pair[1]]) for pair in undecided}
    found = scores.aggregates(names, scores.tasks, reps=reps, level=1 - rule.error, seed=_SEED)
    pairs, budget = aggregates.differences(found), rule.spent(number)
    p, points = pairs.adjusted(holm_over_all=False), np.array([a.interval.point for a in found])
    outcomes: dict[Pair, str] = {}
    for pair in sorted(undecided, key=lambda pair: p[at[pair]]):
        if not p[at[pair]] <= budget / (n_pairs - different - len(outcomes)):
            break
        outcomes[pair] = "better" if points[at[pair][0]] > points[at[pair][1]] else "worse"
    if rule.margin is None or scores.unscaled:
        return outcomes
    low, high = pairs.intervals(1 - 2 * budget / n_pairs)
    within = (-rule.margin < low) & (high < rule.margin)
    same = [pair for pair in undecided if pair not in outcomes and within[at[pair]]]
    return outcomes | dict.fromkeys(same, EQUIVALENT)
