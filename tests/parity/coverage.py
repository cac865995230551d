"""How often the intervals and marks of `offbench.results.uncertainty` are right on published scores.

    python tests/parity/coverage.py          # writes results/coverage/coverage.csv, 2 minutes

published_per_seed.csv holds the scores of ten training seeds each of 285 pairs of a method and a D4RL
dataset (source in the file). Each pair is taken for a population: boards of n seeds are drawn from
it with replacement, and the mean and the IQM over all ten seeds are what an interval should hold.
Success rates (antmaze) are of 100 episodes a seed. A draw of ten values can lack the one bad seed
of its population: such pairs are what the lowest coverages come from.

Columns: what (cell | iqm | mean: share of intervals that hold the truth; marks: share of columns, or of
boards, of k equal entries on n_tasks tasks in which at least one loses its bold), family, n_seeds, ours, usual (Student's t per cell;
percentile bootstrap; uncorrected Welch tests), half (mean half-width of ours), usual_half, trials.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from offbench.results import aggregates, stats, uncertainty
from offbench.results.uncertainty import Cell, Pool

HERE = Path(__file__).resolve().parents[2] / "results/coverage"
Population = dict[tuple[str, str], np.ndarray]
LEVEL = 0.95


def populations() -> dict[str, Population]:
    """Family -> (method, dataset) -> scores of ten seeds."""
    table = pd.read_csv(HERE / "published_per_seed.csv")
    found: dict[str, Population] = {}
    for (source, family), rows in table.groupby(["source", "family"]):
        cells = {
            (r["method"], r["dataset"]): r[[f"seed{i}" for i in range(10)]].to_numpy(float)
            for _, r in rows.iterrows()
        }
        found[f"{family}, {source}"] = _rectangle(cells)
    return found


def _rectangle(cells: Population) -> Population:
    """The datasets that most methods have, and the methods that have them all."""
    datasets = pd.Series([d for _, d in cells]).value_counts()
    common = datasets.index[datasets >= datasets.max() - 1]
    methods = {m for m, _ in cells if all((m, d) in cells for d in common)}
    return {(m, d): x for (m, d), x in cells.items() if m in methods and d in common}


def draw(scores: np.ndarray, n: int, rng: np.random.Generator, success: bool) -> Cell:
    return Cell(rng.choice(scores, n), 100, success=success)


def intervals(family: str, cells: Population, n: int, boards: int) -> Iterator[dict]:
    """Rows of coverage of cells, IQM and mean, on boards of all methods and datasets."""
    rng = np.random.default_rng(n)
    success = family.startswith("antmaze")
    methods, tasks = sorted({m for m, _ in cells}), sorted({d for _, d in cells})
    hit: dict[str, list] = {"cell": [], "iqm": [], "mean": []}
    options = {"generator": lambda *_: rng, "reps": 400, "level": LEVEL}
    for _ in range(boards):
        drawn = {key: draw(x, n, rng, success) for key, x in cells.items()}
        pool = Pool.of(list(drawn.values()))
        for key, cell in drawn.items():
            ours = uncertainty.cell_interval(cell, pool, LEVEL)
            hit["cell"].append(_held(ours, stats.mean_interval(cell.means), cells[key].mean()))
        for method in methods:
            row = [drawn[method, t] for t in tasks]
            for name, statistic in (("iqm", stats.iqm), ("mean", stats.mean)):
                truth = float(statistic([cells[method, t] for t in tasks]))
                ours = aggregates.aggregate(row, [pool] * len(tasks), statistic, **options)
                usual = bootstrap([c.means for c in row], statistic, rng, reps=400)
                hit[name].append(_held(ours.interval, usual, truth))
    for what, rows in hit.items():
        ours, usual, half, usual_half = np.mean(rows, axis=0)
        yield _row(what, family, n, ours, usual, half=half, usual_half=usual_half, trials=len(rows))


def bootstrap(
    scores: list[np.ndarray], statistic: stats.Statistic, rng: np.random.Generator, reps: int
) -> stats.Interval:
    """The usual interval, rliable's: percentiles of `statistic`, seeds resampled within each task."""
    drawn = [x[rng.integers(len(x), size=(reps, len(x)))] for x in scores]
    low, high = np.quantile(statistic(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return stats.Interval(float(statistic(scores)), float(low), float(high))


def _welch_differs(a: np.ndarray, b: np.ndarray) -> bool:
    """Welch's test; without any variance, whether the means differ."""
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    gap = abs(a.mean() - b.mean())
    if va + vb == 0:
        return bool(gap > 0)
    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    return bool(gap > stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(va + vb))


def _held(ours: stats.Interval, usual: stats.Interval, truth: float) -> tuple[float, ...]:
    hold = [i.low - 1e-9 <= truth <= i.high + 1e-9 for i in (ours, usual)]
    return (*hold, (ours.high - ours.low) / 2, (usual.high - usual.low) / 2)


def marks(
    found: dict[str, Population], n: int, k: int, boards: int, n_tasks: int = 5
) -> Iterator[dict]:
    """Rows of how often k equal entries do not all stay bold, in a column and in the aggregate."""
    rng = np.random.default_rng(100 * n + k)
    lost, usual_lost, whole_lost = [], [], []
    for _ in range(boards):
        family = list(found)[rng.integers(len(found))]
        success = family.startswith("antmaze")
        several = list(found[family].values())
        tasks = [several[i] for i in rng.choice(len(several), n_tasks, replace=False)]
        entries = [[draw(x, n, rng, success) for x in tasks] for _ in range(k)]
        pool = Pool.of([c for e in entries for c in e])
        for column in zip(*entries):
            points = np.array([c.mean for c in column])
            p = uncertainty.differences(column, pool).adjusted()
            lost.append(not uncertainty.not_worse_than_best(points, p, LEVEL).all())
            top = column[int(points.argmax())].means
            usual_lost.append(any(_welch_differs(top, c.means) for c in column))
        options = {"generator": lambda *_: rng, "reps": 400, "level": LEVEL}
        whole = [aggregates.aggregate(e, [pool] * n_tasks, stats.iqm, **options) for e in entries]
        points = np.array([a.interval.point for a in whole])
        p = aggregates.differences(whole).adjusted()
        whole_lost.append(not uncertainty.not_worse_than_best(points, p, LEVEL).all())
    more = {"k": k, "n_tasks": n_tasks}
    ours, usual = np.mean(lost), np.mean(usual_lost)
    yield _row("marks of a column", "all", n, ours, usual, trials=len(lost), **more)
    yield _row("marks of the IQM", "all", n, np.mean(whole_lost), trials=len(whole_lost), **more)


def _row(what: str, family: str, n: int, ours: float, usual: float = np.nan, **more: float) -> dict:
    return {"what": what, "family": family, "n_seeds": n, "ours": ours, "usual": usual, **more}


def measure(boards: int = 60) -> pd.DataFrame:
    found = populations()
    rows = [r for n in (3, 4, 5, 10) for f, c in found.items() for r in intervals(f, c, n, boards)]
    rows += [r for n in (3, 5, 10) for k in (6, 10) for r in marks(found, n, k, 4 * boards)]
    # the smallest boards, of which the variance between seeds is known least
    rows += [r for n in (2, 3, 5) for k in (2, 3) for r in marks(found, n, k, 10 * boards, 1)]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = measure()
    table.to_csv(HERE / "coverage.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3f"))
