"""Error, power and cost of the sequential rule in simulated studies: `python tests/simulate_sequential.py`.

Writes results/coverage/sequential.csv in half an hour of one core: 2,000 studies of a pair, 1,000 of four
entries, 250 where no entries are equal, these from three seeds only. A study has some entries on three tasks, ten test episodes a seed; its start states are harder or
easier for all entries alike. How seeds differ:

    steady      normal, with a standard deviation of 3 points
    skewed      exponential with one of 10 points, a few seeds far below the others
    bimodal     one seed in four fails and is 30 points lower
    success     episodes succeed or not, with a chance that differs between seeds

truth: the points between entries. `equal pair`: two entries alike; `equal`: four; `two and two`: two are 25
points better than two others, so two pairs are equal; `5 apart` and `10 apart`: each of four is as much better
than the one before.

Columns: first and most (seeds of an entry), truth, kind, error (studies in which equal entries were called
different), uncorrected (error if every look spent all of it), wrongly_equal (studies in which entries 5 points
or more apart were called equivalent), power (share of the unequal pairs told apart), equivalent (share of the
equal pairs called equivalent), seeds (mean of an entry), held (share of the board's 95 % intervals of
a difference, made of all seeds at the end, that hold the truth), studies.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from offbench.results import aggregates
from offbench.results.cells import pools_of
from offbench.results.pairwise import Scores
from offbench.results.sequential import EQUIVALENT, Rule, decide, looks
from offbench.results.uncertainty import Cell

ENTRIES = ("a", "b", "c", "d")
TASKS = ("x", "y", "z")
EPISODES = 10
KINDS = ("steady", "skewed", "bimodal", "success")
# points of each entry above the first
TRUTHS = {
    "equal pair": (0, 0),
    "equal": (0, 0, 0, 0),
    "two and two": (0, 0, 25, 25),
    "5 apart": (0, 5, 10, 15),
    "10 apart": (0, 10, 20, 30),
}
# resamples of an IQM; fewer than a board's
REPS = 100
HERE = Path(__file__).resolve().parents[1] / "results/coverage/sequential.csv"

Tables = Mapping[tuple[str, str], np.ndarray]


def study(kind: str, points: tuple[int, ...], n: int, rng: np.random.Generator) -> Tables:
    """(entry, task) -> (n seeds, episodes) of scores."""
    found = {}
    for task in TASKS:
        states, harder = rng.normal(0, 10, EPISODES), rng.uniform(-0.1, 0.1, EPISODES)
        for entry, above in zip(ENTRIES, points):
            if kind == "success":
                chance = 0.12 + 0.4 * rng.beta(2, 6, (n, 1)) + above / 100 + harder
                found[entry, task] = 100.0 * (rng.random((n, EPISODES)) < chance)
                continue
            seed = {
                "steady": lambda: rng.normal(0, 3, (n, 1)),
                "skewed": lambda: -rng.exponential(10, (n, 1)),
                "bimodal": lambda: -30.0 * (rng.random((n, 1)) < 0.25),
            }[kind]()
            found[entry, task] = 30 + above + seed + states + rng.normal(0, 10, (n, EPISODES))
    return found


class Once(Scores):
    """Scores whose IQMs are computed once."""

    def aggregates(self, entries: Sequence[str], tasks: Sequence[str], **options: Any) -> list:
        """As of `Scores`."""
        known = self.__dict__.setdefault("known", {})
        for entry in entries:
            if (entry, *options.items()) not in known:
                known[entry, *options.items()] = super().aggregates([entry], tasks, **options)[0]
        return [known[entry, *options.items()] for entry in entries]


def scores_of(tables: Tables, n_seeds: Mapping[str, int], kind: str) -> Scores:
    """The scores of the first seeds of each entry."""
    states = tuple(range(EPISODES))
    found, tasks = {}, tuple(dict.fromkeys(task for _, task in tables))
    for (entry, task), table in tables.items():
        own = table[: n_seeds[entry]]
        name = f"{entry} on {task}"
        found[entry, task] = Cell(own.mean(1), EPISODES, own, states, kind == "success", name)
    return Once(tasks, found, pools_of(found, tasks, ()), frozenset(), frozenset())


class Outcome(NamedTuple):
    """Of one study."""

    # an equal pair was called different
    error: bool
    # so with the error spent anew at every look
    uncorrected: bool
    # a pair that differs by the margin or more was called equivalent
    wrongly_equal: bool
    # share of the unequal pairs that were told apart, nan where all are equal
    power: float
    # share of the equal pairs that were called equivalent, nan where none is
    equivalent: float
    # mean over entries
    seeds: float
    # share of the board's intervals of a difference that hold the truth
    held: float


@dataclass(frozen=True)
class Uncorrected(Rule):
    """Every look spends the whole error: what looking again and again does."""

    def spent(self, look: int) -> float:
        """The whole error."""
        return self.error


def outcome(kind: str, points: tuple[int, ...], rule: Rule, rng: np.random.Generator) -> Outcome:
    """Simulates a study by the rule."""
    tables, entries = study(kind, points, rule.looks[-1], rng), ENTRIES[: len(points)]
    at = dict(zip(entries, points))
    gap = {(a, b): at[a] - at[b] for a, b in combinations(entries, 2)}
    equal = [pair for pair in gap if gap[pair] == 0]
    apart = {pair: "better" if gap[pair] > 0 else "worse" for pair in gap if gap[pair]}
    seen: dict[tuple[int, ...], Scores] = {}

    def scores_at(n_seeds: Mapping[str, int]) -> Scores:
        key = tuple(n_seeds.values())
        if key not in seen:
            seen[key] = scores_of(tables, n_seeds, kind)
        return seen[key]

    def wrong(said: Mapping) -> bool:
        return any(said.get(pair, EQUIVALENT) != EQUIVALENT for pair in equal)

    found = decide(scores_at, entries, rule, reps=REPS)
    careless = decide(scores_at, entries, Uncorrected(rule.looks), reps=REPS) if equal else found
    said, share = found.decided, lambda hits: float(np.mean(hits)) if hits else np.nan
    return Outcome(
        wrong(said),
        wrong(careless.decided),
        any(said.get(pair) == EQUIVALENT and abs(gap[pair]) >= rule.margin for pair in gap),
        share([said.get(pair) == word for pair, word in apart.items()]),
        share([said.get(pair) == EQUIVALENT for pair in equal]),
        float(np.mean(list(found.asked.values()))),
        _held(scores_at(found.asked), gap),
    )


def _held(scores: Scores, gap: Mapping) -> float:
    """Share of the board's intervals of the differences that hold them."""
    entries = scores.entries(scores.tasks)
    iqms = scores.aggregates(entries, scores.tasks, reps=REPS, level=0.95, seed=0)
    low, high = aggregates.differences(iqms).intervals(0.95)
    place = {pair: (entries.index(pair[0]), entries.index(pair[1])) for pair in gap}
    return float(np.mean([low[place[p]] <= x <= high[place[p]] for p, x in gap.items()]))


def simulate(kind: str, points: tuple[int, ...], rule: Rule, studies: int) -> Outcome:
    """The mean outcome of some studies."""
    found = [outcome(kind, points, rule, np.random.default_rng(seed)) for seed in range(studies)]
    return Outcome(*np.mean(np.array(found, float), axis=0).tolist())


def markdown(table: pd.DataFrame) -> str:
    """The table in few lines: the range over the kinds of seeds."""
    names = {
        "error": "error",
        "uncorrected": "uncorrected",
        "wrongly_equal": "wrongly equivalent",
        "power": "pairs told apart",
        "seeds": "mean seeds",
        "held": "intervals hold",
    }
    lines = [f"| first seeds | entries | {' | '.join(names.values())} |", "|---" * 8 + "|"]
    for (truth, first), rows in table.groupby(["truth", "first"], sort=False):
        cells = []
        for name in names:
            factor, digits = {"seeds": (1, 1), "power": (100, 0)}.get(name, (100, 1))
            ends = [f"{factor * x:.{digits}f}" for x in (rows[name].min(), rows[name].max())]
            # where no pair is unequal, none can be called equivalent wrongly
            known = not np.isnan(rows["power" if name == "wrongly_equal" else name]).any()
            span = "-".join(dict.fromkeys(ends)) + (" %" if factor > 1 else "")
            cells.append(span if known else "")
        lines.append(f"| {first} | {truth} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description="error, power and cost of the sequential rule")
    parser.add_argument("studies", type=int, nargs="?", default=2000)
    parser.add_argument("--first", type=int, nargs="*", default=[3, 6], help="seeds at first")
    parser.add_argument("--truths", nargs="*", default=list(TRUTHS), choices=TRUTHS)
    parser.add_argument("--most", type=int, default=20)
    parser.add_argument("--to", type=Path, default=HERE)
    args = parser.parse_args()
    lines = []
    for truth, first, kind in product(args.truths, args.first, KINDS):
        points, rule = TRUTHS[truth], Rule(looks(first, args.most))
        if len(points) > 2 and first > args.first[0]:
            continue
        none_equal = len(set(points)) == len(points)
        n = args.studies // (8 if none_equal else len(points) // 2)
        found = simulate(kind, points, rule, n)._asdict()
        if none_equal:
            found |= {"error": np.nan, "uncorrected": np.nan}
        line = {"first": first, "most": args.most, "truth": truth, "kind": kind}
        lines.append(line | found | {"studies": n})
        print(" ".join(str(value)[:11].rjust(11) for value in lines[-1].values()), flush=True)
        pd.DataFrame(lines).to_csv(args.to, index=False, float_format="%.4g")
    print(markdown(pd.DataFrame(lines)))


if __name__ == "__main__":
    main()
