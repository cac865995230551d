"""`offbench evaluate --offline` and `offbench diagnose ope`: kept policies evaluated from recorded data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbench.cli.console import make_console, print_table, print_wrapped
from offbench.cli.recorded import recorded_runs, write_beside_board
from offbench.errors import UserError, unknown
from offbench.results.words import bounds, plural

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from offbench.bench.plan import Plan
    from offbench.results.store import Store

ESTIMATORS = ("fqe", "wis", "dr", "model")

NOTE = (
    "Estimates are discounted raw rewards from the first observations of recorded episodes, discount {gamma:g}, mean and"
    " 95 % interval over seeds and start states. The interval says nothing of an estimator's bias, nor of which"
    " episodes were recorded. Score: undiscounted, of test episodes."
)
QUALITY_NOTE = (
    "Rank correlation (Spearman) of estimates with test scores over policies, one per seed; regret@1: the best score"
    " minus that of the policy with the highest estimate; error: mean difference of estimate and discounted return."
)


def evaluate_offline(
    args: Sequence[str],
    *,
    offline: bool = False,
    by: str = "fqe",
    play: int | None = None,
) -> int:
    """`offbench evaluate --offline`: estimates of what kept policies are worth, beside their scores."""
    if not offline:
        raise UserError(
            "offbench evaluate needs --offline; in their environments policies are played by offbench bench"
        )
    from offbench.results.estimates import PLAYED, quality, read_estimates, values

    names = [name.strip() for name in by.split(",")]
    if bad := [name for name in names if name not in ESTIMATORS]:
        raise unknown("--by", bad[0], ESTIMATORS)
    if play is not None and play < 1:
        raise UserError(f"--play {play}: the number of episodes is at least 1")
    wanted, store, runs = _kept_runs(args)
    console = make_console()
    paths = _estimated(wanted, store, runs, names, play, console)
    rows = read_estimates(paths)
    if rows[rows["estimator"] != PLAYED].empty:
        raise UserError("no kept policy could be evaluated")
    scores = _test_scores(store, runs)
    table = values(rows, runs)
    trust = quality(rows, runs, scores)
    known = runs.set_index("run_id").loc[scores.index, ["task", "entry"]].assign(score=scores)
    means = known.groupby(["task", "entry"])["score"].mean()
    _print(table, trust, means, wanted.settings.eval.fqe_gamma, console)
    for frame, ending in ((table, "estimates.csv"), (trust, "ope.csv")):
        text = frame.to_csv(index=False, lineterminator="\n")
        print(f"written: {write_beside_board(wanted, args, ending, text)}")
    return 0


def _kept_runs(args: Sequence[str]) -> "tuple[Plan, Store, pd.DataFrame]":
    """The recorded runs to evaluate: those of the methods that are named, else all of these tasks and data."""
    from offbench.bench.plan import plan
    from offbench.results.store import Store

    wanted = plan(args, bench=True)
    store = Store(Path(wanted.settings.results))
    if {arg.partition("=")[0] for arg in args} & {"method", "methods", "label", "method._target_"}:
        found = recorded_runs(wanted, store)
        runs = found.runs[found.runs["entry"].isin({cell.entry for cell in wanted.cells})]
    else:
        runs = store.runs(suite=wanted.name)
        data = {cell.task.id: cell.task.sha256 for cell in wanted.cells}
        if len(runs):
            of = zip(runs["task"], runs["dataset_sha256"], strict=True)
            runs = runs[[data.get(task, "") in (None, own) for task, own in of]]
    runs = runs[runs["status"] == "ok"] if len(runs) else runs
    if runs.empty:
        raise UserError(
            f"nothing recorded for these tasks in {wanted.settings.results}; run: offbench bench"
        )
    return wanted, store, runs


def _estimated(
    plan: "Plan",
    store: "Store",
    runs: "pd.DataFrame",
    names: Sequence[str],
    play: int | None,
    console: "Console",
) -> list[Path]:
    """The files of estimates of all runs, made where they are missing; says which policies cannot be evaluated."""
    from offbench.bench.estimate import make_fqe
    from offbench.bench.kept_estimates import Candidate, Evaluation
    from offbench.bench.preflight import resolve_device
    from offbench.tasks.locate import ready

    records = store.read_all(run_id=list(runs["run_id"]))
    tasks = {cell.task.id: cell.task for cell in plan.cells}
    say = lambda text: console.print(text, markup=False, soft_wrap=True)
    device, fqe = resolve_device(plan.settings.device), make_fqe(plan.settings.eval)
    paths: list[Path] = []
    for task, own in runs.groupby("task"):
        rows = own[["run_id", "entry", "seed"]].itertuples(index=False)
        every = [Candidate(i, f"{entry} seed {n}", records[i].path) for i, entry, n in rows]
        for lost in (c for c in every if not c.kept.exists()):
            say(f"{lost.name} on {task}: its policy was not kept")
        if candidates := [c for c in every if c.kept.exists()]:
            with console.status(f"reading {task}") as status:
                here = ready(tasks[str(task)])
                evaluation = Evaluation(here, store.root, fqe, device, say, status.update)
                paths += evaluation.files(candidates, names, play)
    return paths


def _test_scores(store: "Store", runs: "pd.DataFrame") -> "pd.Series":
    """Run id -> mean score of its test episodes; empty where none were played."""
    rows = store.episodes(run_id=list(runs["run_id"]))
    return rows[rows["stream"] == "test"].groupby("run_id", observed=True)["score"].mean()


def _print(
    table: "pd.DataFrame",
    trust: "pd.DataFrame",
    scores: "pd.Series",
    gamma: float,
    console: "Console",
) -> None:
    """A table per task, the best estimate first, and what estimates were worth where scores are known."""
    from offbench.results.estimates import PLAYED

    for task, own in table.groupby("task"):
        first = own["estimator"].iloc[0] if PLAYED != own["estimator"].iloc[0] else None
        names = [n for n in dict.fromkeys(own["estimator"]) if n != PLAYED]
        shown = [*names, *([PLAYED] if PLAYED in set(own["estimator"]) else [])]
        by = {name: own[own["estimator"] == name].set_index("entry") for name in shown}
        order = by[first or names[0]]["value"].sort_values(ascending=False).index
        header = ["entry", "seeds", *(_HEADS.get(n, n) for n in shown)]
        scored = (task in scores.index.get_level_values(0)) if len(scores) else False
        rows = []
        for entry in order:
            cells = [_value(by[n].loc[entry]) if entry in by[n].index else "" for n in shown]
            score = [f"{scores[task, entry]:.1f}"] if scored and (task, entry) in scores else []
            rows.append([entry, str(by[names[0]].loc[entry, "n_seeds"]), *cells, *score])
        print_table(console, rows, header=[*header, *(["score"] * scored)], title=str(task))
        for line in trust[trust["task"] == task].to_dict("records"):
            print_wrapped(_trust(line), console)
        console.print()
    print_wrapped(NOTE.format(gamma=gamma), console)
    if len(trust):
        print_wrapped(QUALITY_NOTE, console)


_HEADS = {"fqe": "FQE", "wis": "WIS", "dr": "DR", "model": "learned model", "played": "played"}


def _value(line: "pd.Series") -> str:
    text = f"{line['value']:.1f}{bounds(line['low'], line['high'])}"
    return text if line["effective"] != line["effective"] else f"{text} n={line['effective']:.1f}"


def _trust(line: "dict[str, Any]") -> str:
    words = f"{_HEADS[line['estimator']]}: rank correlation {line['rank_correlation']:.2f}"
    words += bounds(line["low"], line["high"], 2)
    words += f" over {plural(line['n'], 'policy')}, regret@1 {line['regret_at_1']:.1f} of {line['range']:.1f}"
    if line["absolute_error"] == line["absolute_error"]:
        words += f"; of discounted returns: error {line['absolute_error']:.1f}, rank correlation"
        words += f" {line['rank_correlation_discounted']:.2f}"
    return words


def diagnose_ope(args: Sequence[str], *, play: int | None = None) -> int:
    """`offbench diagnose ope`: how far estimates of kept policies agree with what these earn when they play."""
    return evaluate_offline(args, offline=True, play=20 if play is None else play)
