"""Is an entry better than another, and where: the comparison of one entry with its rivals.

Tests and corrections are those that the bold of the board of the same records comes from
(`offbench.results.pairwise`).
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from offbench.errors import UserError, expect, expect_names, listed, unknown
from offbench.results import aggregates, stats
from offbench.results.board.render import short_names
from offbench.results.captions import how_trained
from offbench.results.comparison import Comparison
from offbench.results.pairwise import Scores, pairs_of
from offbench.results.rows import complete_rows, remarks_on
from offbench.results.selection import refuse_missing_columns, refuse_other_protocols
from offbench.results.uncertainty import Cell
from offbench.results.verdict import Finding, Variance, more_needed, spelt_seeds, verdict

_REPS = 2000
_SEED = 0


def compare(
    rows: pd.DataFrame,
    mine: str,
    rivals: str | Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    runs: pd.DataFrame | None = None,
    unscaled: Collection[str] = (),
    difference: float = 5.0,
    level: float = 0.95,
) -> Comparison:
    """An entry against its rivals, over the tasks that both have.

    All entries of `rows` count for the correction of the p-values and for the variance between seeds, as
    on a board.

    Args:
        rows: a row per episode, with entry, task, seed, episode and score: `Store.episodes()`, or any other
            frame. Of other columns `stream` (test counts), `update` (the last counts), `env_seed` (which
            start state, so that episodes are paired) and `run_id` are read.
        mine: the entry that is compared.
        rivals: the entries it is compared with; None: all others.
        tasks: ids; None: all of the rows.
        runs: `Store.runs()` of the same records, from which failed runs, protocols and costs are known.
        unscaled: tasks whose score is a plain return.
        difference: what is worth showing, in points: of equivalence, and of how many more runs show it.

    Raises:
        UserError: a column or a name is not there, the two have no common task, their runs failed or have
            other data, environments or protocols.
    """
    _check_arguments(rows, runs, difference, level)
    unscaled = expect_names("unscaled", unscaled)
    rows, every = complete_rows(rows, alone=runs is None)
    known = runs if runs is not None else every
    about = remarks_on(rows, tasks := _tasks(tasks, known), unscaled)
    scores = Scores.of(rows, known, tasks, unscaled)
    mine, chosen = _names(mine, rivals, known)
    whole = known[(known["status"] == "ok") & known["task"].isin(tasks)]
    _refuse_failures(scores, mine)
    pairs, notes = _Pairs(scores, tasks, difference, level), list[str]()
    for rival in chosen:
        try:
            notes += pairs.add(mine, rival, whole)
        except UserError as error:
            if rivals is not None:
                raise
            notes.append(f"left out: {error}")
    if not pairs.verdicts:
        raise UserError(notes[0])
    return Comparison(
        mine=mine,
        verdicts=pairs.verdicts,
        table=pd.DataFrame(pairs.by_task),
        overall=pd.DataFrame(pairs.overall),
        costs=_costs(whole if runs is not None else whole.head(0), [mine, *pairs.verdicts]),
        notes=(*about, *notes, *pairs.explained()),
        level=level,
    )


def _check_arguments(
    rows: pd.DataFrame, runs: pd.DataFrame | None, difference: float, level: float
) -> None:
    """UserError for an argument of `compare` of another type, or out of its range."""
    expect("rows", rows, pd.DataFrame, "a frame with a row per episode")
    expect("runs", runs, (pd.DataFrame, type(None)), "Store.runs() or None")
    stats.check_level(level)
    expect("difference", difference, (int, float), "a number of points")
    if not 0 < difference < np.inf:
        raise UserError(f"difference is {difference}; it is a number of points above 0")
    if runs is not None:
        refuse_missing_columns(runs)


class _Pairs:
    """Comparisons of one entry, rival after rival."""

    def __init__(self, scores: Scores, tasks: Sequence[str], difference: float, level: float):
        self.scores, self.tasks, self.difference, self.level = scores, tasks, difference, level
        self.names = dict(zip(tasks, short_names(tuple(tasks))))
        self.by_task: list[dict] = []
        self.overall: list[dict] = []
        self.verdicts: dict[str, str] = {}
        self._families: dict[tuple[str, ...], pd.DataFrame] = {}

    def add(self, mine: str, rival: str, whole: pd.DataFrame) -> list[str]:
        """Compares two entries over their common tasks; returns what a reader must know.

        Args:
            whole: the finished runs. UserError where those of the two cannot be compared.
        """
        _refuse_failures(self.scores, rival)
        common = _common_tasks(self.scores, mine, rival)
        refuse_other_protocols(whole[whole["task"].isin(common)], (mine, rival))
        lines = [self._task(mine, rival, task) for task in common]
        row = self._family(common).loc[(mine, rival)].to_dict()
        row |= {name: int(row[name]) for name in ("wins", "losses", "ties")}
        outcome = {word: [x["task"] for x in lines if x["outcome"] == word] for word in _OUTCOMES}
        cells = {entry: self.scores.row(entry, common) for entry in (mine, rival)}
        n = [c.n_seeds for own in cells.values() for c in own]
        n_pairs = self._n_pairs(common)
        more = None
        if np.isfinite(row["p"]):
            variance = self._variance(mine, rival, common)
            more = more_needed(variance, self.difference, pairs=n_pairs, level=self.level)
        finding = Finding(
            mine=mine,
            rival=rival,
            **{name: row[name] for name in ("difference", "low", "high", "p")},
            better=[self.names[task] for task in outcome["better"]],
            worse=[self.names[task] for task in outcome["worse"]],
            n_tasks=len(common),
            n_tasks_in_all=len(self.tasks),
            seeds=(min(n), max(n)),
            single=[e for e, own in cells.items() if any(c.n_seeds < 2 for c in own)],
            unit="of return" if self.scores.unscaled & set(common) else "points",
            pairs=n_pairs,
            more=more,
        )
        self.by_task += lines
        self.verdicts[rival] = verdict(finding, difference=self.difference, level=self.level)
        self.overall.append(
            {"rival": rival, "verdict": self.verdicts[rival], "n_tasks": len(common), **row}
            | self._averages(cells, common)
            | {"n_pairs": finding.pairs, "n_seeds": min(n), "n_seeds_max": max(n)}
            | {
                "more_seeds": more.seeds if more else np.nan,
                "more_episodes": more.episodes if more else np.nan,
            }
        )
        return self._remarks(mine, rival, common)

    def _task(self, mine: str, rival: str, task: str) -> dict:
        entries, pairs = self.scores.columns[task]
        at = entries.index(mine), entries.index(rival)
        a, b = (self.scores.found[entry, task] for entry in (mine, rival))
        low, high = (float(x[at]) for x in pairs.intervals(self.level))
        if a.success and b.success:
            low, high = max(low, -100.0), min(high, 100.0)
        p, gap = float(pairs.adjusted()[at]), a.mean - b.mean
        outcome = "not told apart"
        if np.isnan(p):
            outcome = "one seed"
        elif p < 1 - self.level:
            outcome = "better" if gap > 0 else "worse"
        return {
            "rival": rival,
            "task": task,
            "mine_score": a.mean,
            "rival_score": b.mean,
            "difference": gap,
            "low": low,
            "high": high,
            "p": p,
            "outcome": outcome,
            "mine_seeds": a.n_seeds,
            "rival_seeds": b.n_seeds,
        }

    def _n_pairs(self, common: tuple[str, ...]) -> int:
        """Pairs of entries that p is corrected for: of those with several seeds on all of some tasks."""
        rows = [self.scores.row(entry, common) for entry in self.scores.entries(common)]
        k = sum(all(c.n_seeds > 1 for c in own) for own in rows)
        return k * (k - 1) // 2

    def _family(self, common: tuple[str, ...]) -> pd.DataFrame:
        """`pairwise` of all entries that are whole on some tasks."""
        if common not in self._families:
            entries = self.scores.entries(common)
            table = pairs_of(self.scores, entries, common, level=self.level, reps=_REPS, seed=_SEED)
            self._families[common] = table.set_index(["entry", "rival"])
        return self._families[common]

    def _averages(self, cells: Mapping[str, list[Cell]], common: tuple[str, ...]) -> dict:
        """Statistics of both entries, nan where scores have no mean."""
        found = {}
        statistics = {
            "iqm": stats.iqm,
            "mean": stats.mean,
            "median": stats.median,
            "optimality_gap": stats.optimality_gap,
        }
        for who, own in zip(("mine", "rival"), cells.values()):
            for name, statistic in statistics.items():
                plain = name == "optimality_gap" and self.scores.unscaled & set(common)
                value = statistic([c.means for c in own])
                known = self.scores.averages(common) and not plain
                found[f"{who}_{name}"] = float(value) if known else np.nan
        return found

    def _variance(self, mine: str, rival: str, common: tuple[str, ...]) -> Variance:
        """The variance of the difference of the IQM, in what seeds and what start states make of it."""
        scores = self.scores
        draws = partial(Scores.aggregates, reps=_REPS, level=self.level, seed=_SEED)
        both = draws(scores, [mine, rival], common)
        alone = {
            (e, t): Cell(c.means, c.n_episodes, success=c.success, name=c.name)
            for e in (mine, rival)
            for t, c in zip(common, scores.row(e, common))
        }
        without = Scores(scores.tasks, alone, scores.pools, frozenset(), scores.unscaled)
        seeds = [float(a.draws.var()) for a in draws(without, [mine, rival], common)]
        total = float(aggregates.differences(both).variance[0])
        cells = [scores.row(entry, common) for entry in (mine, rival)]
        faced = any(c.episode_variance > 0 for own in cells for c in own)
        n = [float(np.mean([c.n_seeds for c in own])) for own in cells]
        return Variance(
            seeds=(seeds[0], seeds[1]),
            n_seeds=(n[0], n[1]),
            freedom=(both[0].freedom_of_seeds, both[1].freedom_of_seeds),
            start_states=max(0.0, total - sum(seeds)) if faced else 0.0,
            n_episodes=float(np.mean([c.n_episodes for own in cells for c in own])),
            start_freedom=min(a.freedom_of_starts for a in both),
        )

    def _remarks(self, mine: str, rival: str, common: tuple[str, ...]) -> list[str]:
        """Tasks that one of the two lacks, and numbers of seeds that differ."""
        lacks, seeds = [], []
        for entry in (mine, rival):
            if gone := [self.names[t] for t in self.tasks if (entry, t) not in self.scores.found]:
                lacks.append(f"{entry} has no runs on {', '.join(gone)}")
            n = [c.n_seeds for c in self.scores.row(entry, common)]
            seeds.append(spelt_seeds(min(n), max(n)))
        share = f"{mine} and {rival} share {len(common)} of {len(self.tasks)} tasks"
        remarks = [f"{share}: {'; '.join(lacks)}"] if lacks else []
        if seeds[0] != seeds[1]:
            remarks.append(f"{mine} has {seeds[0]} a task, {rival} has {seeds[1]}")
        return remarks

    def explained(self) -> list[str]:
        """How p and intervals are to be read."""
        pairs = sorted({x["n_pairs"] for x in self.overall})
        if pairs[-1] < 2:
            return []
        seeds = {cell.n_seeds for cell in self.scores.found.values()}
        fewer = (
            "entries with fewer seeds count here; a board leaves those that lack a seed out of its tests,"
            " so its p-values are then of fewer pairs"
        )
        return [
            *([fewer] if len(seeds) > 1 else []),
            "p-values are corrected for all pairs of the entries of a column (Holm), overall for"
            f" {' or '.join(map(str, pairs))} pairs; an interval is of its difference alone, so it may leave"
            " out 0 where p does not",
        ]


_OUTCOMES = ("better", "worse")


def _tasks(tasks: Sequence[str] | None, runs: pd.DataFrame) -> tuple[str, ...]:
    known = sorted(set(runs["task"].astype(str)))
    if tasks is None:
        return tuple(known)
    tasks = expect_names("tasks", tasks)
    for task in tasks:
        if task not in known:
            raise unknown("task", task, known)
    return tuple(dict.fromkeys(tasks))


def _names(
    mine: str, rivals: str | Sequence[str] | None, runs: pd.DataFrame
) -> tuple[str, list[str]]:
    """The entry and its rivals, each once; labels that are numbers are their texts."""
    known, mine = sorted(set(runs["entry"].astype(str))), str(mine)
    if rivals is None:
        rivals = [entry for entry in known if entry != mine]
        if not rivals and mine in known:
            raise UserError(f"there is nothing to compare {mine!r} with: it is the only entry")
    rivals = [str(rival) for rival in ([rivals] if np.isscalar(rivals) else rivals)]
    for name in (mine, *rivals):
        if name not in known:
            raise unknown("entry", name, known)
    if mine in rivals:
        raise UserError(f"{mine!r} is compared with itself")
    if not rivals:
        raise UserError(f"no rival of {mine!r} is named")
    return mine, list(dict.fromkeys(rivals))


def _refuse_failures(scores: Scores, entry: str) -> None:
    if failed := [task for task in scores.tasks if (entry, task) in scores.failed]:
        raise UserError(
            f"{entry!r} has a failed or diverged run on {', '.join(failed)}: its other seeds alone would"
            " flatter it; repeat the run, or compare on other tasks"
        )


def _common_tasks(scores: Scores, mine: str, rival: str) -> tuple[str, ...]:
    has = {e: [t for t in scores.tasks if (e, t) in scores.found] for e in (mine, rival)}
    common = tuple(task for task in has[mine] if task in has[rival])
    if not common:
        each = ", ".join(f"{e} has {listed(tasks, 3) or 'none'}" for e, tasks in has.items())
        raise UserError(f"{mine!r} and {rival!r} have no common task: {each}")
    return common


def _costs(whole: pd.DataFrame, entries: Sequence[str]) -> pd.DataFrame:
    """What the runs of each entry cost, and how their settings were chosen."""
    lines = []
    for entry in entries if len(whole) else ():
        own = whole[whole["entry"] == entry]
        lines.append(
            {"entry": entry, "n_runs": len(own), "n_tasks": own["task"].nunique()}
            | how_trained(own)
        )
    return pd.DataFrame(lines)
