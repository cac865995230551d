"""What an entry scores when a few of its trained policies may be tried online: as a curve over their number.

Somebody who deploys a method trains several policies of it, over seeds and settings, tries them for some
episodes, and goes on with the one that looks best. What that scores follows from the stored test episodes:
a bandit draws them, one a pull, and after each pull the mean score of the policy that looks best then is
what counts. It is computed as Jackson et al. 2025, "A clean slate for offline reinforcement learning"
(arXiv 2504.11453), do for Unifloral: eight policies drawn without replacement, a thousand times, UCB with
mean + sqrt(2 ln t / n), in points of the score, at the t-th pull.

Three things differ. Their interval is over the thousand repetitions and goes to nothing with their number;
this one is over policies that could have been trained. A policy that was not tried yet has no mean of 0, so
that it is not picked where all scores are below that. And entries of a task are compared with equally many
policies each: the best of eight is better than the best of three, whatever they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from offbench.errors import UserError
from offbench.results.generators import Generators
from offbench.results.selection import refuse_mixtures
from offbench.results.stats import Interval, check_level

PULLS = 200
DRAWN = 8
ALPHA = 2.0
TRIALS = 1000
SHOWN = (1, 10, 50, 200)
"""The numbers of pulls that tables show."""

COLUMNS = ("entry", "task", "pulls", "score", "low", "high", "drawn", "policies", "settings")

_RESAMPLES, _TRIALS_OF_EACH = 200, 64
# what stands behind a label: the settings that were changed
_SETTINGS = re.compile(r"\([^()]*\)$")


class Policies(NamedTuple):
    """The trained policies of an entry on a task."""

    # (episodes,) test scores of each
    scores: list[np.ndarray]
    # in how many settings it was trained
    settings: int
    # all scores of the task are 0 or 100
    success: bool = False


# --- of records -----------------------------------------------------------------------------


def online_table(
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    *,
    pulls: int = PULLS,
    drawn: int = DRAWN,
    level: float = 0.95,
) -> pd.DataFrame:
    """The expected score of each entry on each task after 1, 2, ... pulls, a row each, in COLUMNS.

    Args:
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records; failed runs have no policy.
        pulls: episodes that may be played online at most.
        drawn: policies that a repetition picks from; on a task where an entry has fewer, as many as that.

    Returns:
        `drawn` is the number that was, `policies` how many the entry has, over `settings` settings. Bounds
        are nan where an entry has one policy.

    Raises:
        UserError: pulls or drawn are below 1, or no run is whole.
    """
    check_level(level)
    for name, number in (("pulls", pulls), ("drawn", drawn)):
        if number < 1:
            raise UserError(f"{name} is {number}; at least 1 is needed")
    found = policies_of(episodes, runs)
    fewest = {
        task: min(len(x.scores) for (_, t), x in found.items() if t == task) for _, task in found
    }
    lines = []
    for (entry, task), own in found.items():
        k = min(drawn, fewest[task])
        at = range(1, pulls + 1)
        for n, interval in zip(
            at, expected_scores(own, pulls=pulls, drawn=k, level=level), strict=True
        ):
            lines.append((entry, task, n, *interval, k, len(own.scores), own.settings))
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    return table.sort_values(["task", "entry", "pulls"], ignore_index=True)


def policies_of(episodes: pd.DataFrame, runs: pd.DataFrame) -> Mapping[tuple[str, str], Policies]:
    """(entry, task) -> its policies; entries that differ in their settings alone, as iql(expectile=0.7) and
    iql(expectile=0.9), are one entry, iql, with the policies of all. UserError where no run is whole."""
    whole = runs[runs["status"] == "ok"]
    if whole.empty:
        raise UserError("no run here is whole, so there is no policy to try")
    refuse_mixtures(whole)
    last = episodes["run_id"].astype(str).map(dict(zip(whole["run_id"], whole["n_updates"])))
    test = episodes[(episodes["stream"] == "test") & (episodes["update"] == last)]
    scores = {
        str(run): x.to_numpy(np.float64)
        for run, x in test.groupby("run_id", observed=True)["score"]
    }
    names = _names(whole)
    found = {}
    for (entry, task), mine in whole.groupby([whole["entry"].map(names), "task"]):
        own = [scores[run] for run in mine["run_id"] if run in scores]
        if own:
            found[str(entry), str(task)] = Policies(own, mine["entry"].nunique())
    for task in {task for _, task in found}:
        mine = {key: x for key, x in found.items() if key[1] == task}
        all_of_it = np.concatenate([np.concatenate(x.scores) for x in mine.values()])
        success = bool(np.isin(all_of_it, (0.0, 100.0)).all())
        found |= {key: x._replace(success=success) for key, x in mine.items()}
    return found


def _names(whole: pd.DataFrame) -> dict[str, str]:
    """Label -> what it is called: without settings where several labels differ in nothing else."""
    labels = list(dict.fromkeys(whole["entry"].astype(str)))
    plain = {label: _SETTINGS.sub("", label) for label in labels}
    together = list(plain.values())
    return {x: plain[x] if together.count(plain[x]) > 1 else x for x in labels}


def remarks(table: pd.DataFrame, episodes: pd.DataFrame, runs: pd.DataFrame) -> Iterator[str]:
    """What a reader must know of a table: policies, settings, failed runs, few stored episodes."""
    first = table[table["pulls"] == 1]
    for task, mine in first.groupby("task", sort=False):
        drawn = int(mine["drawn"].iloc[0])
        if drawn < DRAWN:
            fewest = mine.loc[mine["policies"].idxmin()]
            yield f"{task}: {drawn} of {DRAWN} policies, as {fewest['entry']} has no more"
    several = first[first["settings"] > 1]
    for (entry, settings), mine in several.groupby(["entry", "settings"]):
        n = "/".join(map(str, sorted(set(mine["policies"]))))
        yield f"{entry}: {n} policies of {settings} settings"
    failed = runs[runs["status"] != "ok"].groupby("entry").size()
    if len(failed):
        words = ", ".join(f"{n} of {entry}" for entry, n in failed.items())
        yield f"runs that failed have no policy and are not counted: {words}"
    test = episodes[episodes["stream"] == "test"]
    fewest = int(test.groupby("run_id", observed=True).size().min())
    if fewest < 50:
        yield (
            f"a policy's mean is that of its stored test episodes, here {fewest} at the fewest: the best of"
            " several such means is better than the policy, the more so the fewer they are"
        )


# --- the bandit -----------------------------------------------------------------------------


def expected_scores(
    policies: Policies,
    *,
    pulls: int = PULLS,
    drawn: int = DRAWN,
    alpha: float = ALPHA,
    trials: int = TRIALS,
    level: float = 0.95,
) -> list[Interval]:
    """The expected score after each of `pulls` pulls, with its interval.

    A repetition draws `drawn` of the policies. Those of a round have each policy as their first one once,
    so that one pull is the mean over policies exactly; there are at least `trials` of them. The interval is
    Student's t with the standard error of a bootstrap over policies, less what the repetitions add to it. One policy,
    or several that all score alike, say nothing of how others would: their bounds are nan.
    """
    # by their scores, as their order says nothing; -0.0 is 0
    scores = sorted(
        (np.sort(x) + 0.0 for x in policies.scores), key=lambda x: (x.mean(), x.tolist())
    )
    n = len(scores)
    if not 1 <= drawn <= n:
        raise UserError(f"{drawn} policies are drawn of {n}; they are drawn without replacement")
    generator = Generators()(f"online {drawn} {alpha}", np.concatenate(scores))
    rounds = -(-trials // n)
    places = _places(n, drawn, rounds, generator)
    point = bandit(scores, places, pulls, generator, alpha).mean(1)
    if len({x.mean() for x in scores}) < 2:
        return [Interval(float(x), np.nan, np.nan) for x in point]
    half = special.stdtrit(n - 1, (1 + level) / 2) * _error(scores, drawn, pulls, generator, alpha)
    low, high = point - half, point + half
    if policies.success:
        low, high = np.maximum(low, 0.0), np.minimum(high, 100.0)
    return [Interval(*map(float, x)) for x in zip(point, low, high)]


def bandit(
    scores: Sequence[np.ndarray],
    places: np.ndarray,
    pulls: int,
    generator: np.random.Generator,
    alpha: float = ALPHA,
    shift: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The mean score of the policy that looks best after each pull of each trial: (pulls, trials).

    Args:
        scores: (episodes,) of each policy.
        places: (k, trials) the policies that a trial picks from, in the order in which they are first tried.
        shift: (k, trials) what is added to all scores of a policy in a trial.
    """
    size = np.array([len(x) for x in scores])
    table = np.zeros((len(scores), size.max()))
    for row, x in zip(table, scores):
        row[: len(x)] = x
    truth = np.array([x.mean() for x in scores])
    k, trials = places.shape
    each = np.arange(trials)
    count, total = np.zeros((k, trials)), np.zeros((k, trials))
    shift = np.broadcast_to(shift, places.shape)
    found = np.empty((pulls, trials))
    for t in range(pulls):
        if t < k:
            arm = np.full(trials, t)
        else:
            arm = (total / count + np.sqrt(alpha * np.log(t + 1) / count)).argmax(0)
        policy = places[arm, each]
        episode = (generator.random(trials) * size[policy]).astype(np.int64)
        count[arm, each] += 1
        total[arm, each] += table[policy, episode] + shift[arm, each]
        tried = min(t + 1, k)
        looks_best = (total[:tried] / count[:tried]).argmax(0)
        found[t] = truth[places[looks_best, each]] + shift[looks_best, each]
    return found


def _places(n: int, drawn: int, rounds: int, generator: np.random.Generator) -> np.ndarray:
    """(drawn, rounds * n): of each round an order of the n policies, and all its rotations."""
    order = generator.permuted(np.tile(np.arange(n), (rounds, 1)), axis=1)
    turned = (np.arange(drawn)[:, None] + np.arange(n)) % n  # (drawn, n)
    return order[:, turned].transpose(1, 0, 2).reshape(drawn, rounds * n)


def _error(
    scores: Sequence[np.ndarray],
    drawn: int,
    pulls: int,
    generator: np.random.Generator,
    alpha: float,
) -> np.ndarray:
    """(pulls,) standard error over policies that could have been trained, by drawing them again.

    Drawn again as they are, the best of eight is nearly always one of the same two or three. Each drawn
    policy is therefore moved by normal noise of Silverman's (1986, eq. 3.31) width, and all towards their
    mean so that their variance stays what it was.
    """
    n = len(scores)
    rounds = max(2, -(-_TRIALS_OF_EACH // n))
    again = generator.integers(n, size=(_RESAMPLES, n))
    means = np.array([x.mean() for x in scores])
    noise = 0.9 * n**-0.2 * means.std() * generator.standard_normal(again.shape)
    moved = means.mean() + (means[again] - means.mean() + noise) / np.hypot(1, 0.9 * n**-0.2)
    places = _places(n, drawn, _RESAMPLES * rounds, generator).reshape(drawn, _RESAMPLES, -1)
    each = np.arange(_RESAMPLES)[:, None]
    shift = (moved - means[again])[each, places].reshape(drawn, -1)
    places = again[each, places].reshape(drawn, -1)
    found = bandit(scores, places, pulls, generator, alpha, shift)
    by_round = found.reshape(pulls, _RESAMPLES, rounds, n).mean(3)
    variance = by_round.mean(2).var(1, ddof=1) - by_round.var(2, ddof=1).mean(1) / rounds
    # a resample of n has (n - 1) / n of the variance
    return np.sqrt(np.maximum(variance, 0.0) * n / (n - 1))
