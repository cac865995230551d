"""What every number of a leaderboard means, in plain words, each with an example from the board itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from offbench.results.board.consistency_text import CAPTION
from offbench.results.board.leaderboard import Board
from offbench.results.captions import COVERAGE, budget


def explanation(board: Board) -> list[tuple[str, str]]:
    """(what is explained, a paragraph) for every number, mark and word of a board, and its notes."""
    return [
        *_of_cells(board),
        *_of_aggregates(board),
        *_of_training(len(board.tasks)),
        *((f"note {number}", note) for number, note in enumerate(board.notes, 1)),
    ]


def _of_cells(board: Board) -> Iterator[tuple[str, str]]:
    percent = f"{100 * board.level:g} %"
    yield "score", board.caption.partition(". ")[0].removeprefix("Score: ") + "."
    scored = board.cells[~board.cells["missing"]]
    several = scored[scored["n_seeds"] > 1]
    example = _of_example(next(several.itertuples(), None))
    yield (
        "cell",
        "The mean over seeds of the mean score of a seed's test episodes, after the last update. Nothing"
        f" is chosen by its score: no checkpoint, no seed. Here {budget(board.cells)}.{example}",
    )
    yield (
        "interval",
        "Where the mean over all seeds and start states that could be drawn lies, not where another run"
        f" would; such intervals hold it in {percent} of cases. ± half of its width (Student's t), or [low, high] of a success rate (Wilson's, within 0 and 100). With"
        " few seeds a cell says little about how seeds differ, so the variance of all cells of the board"
        f" counts as one more observation. {COVERAGE}",
    )
    if (scored["n_seeds"] == 1).any():
        yield (
            "one seed",
            "One seed says nothing about how seeds differ: its interval is withheld, it is compared with"
            " nothing and is never bold.",
        )
    yield (
        "bold",
        "The best of a column and whatever cannot be told from it: all pairs of the column are tested, with"
        " episodes paired where both entries met the same start states, and the p-values are corrected for"
        f" the number of pairs (Holm), so that equal entries all stay bold in {percent} of columns. More"
        " bold means fewer seeds or more noise, not more winners.",
    )
    yield (
        "status",
        "`--`: nothing recorded. `n failed`, `n diverged`: runs that ended in an error or in values that"
        " are not finite; they are not averaged over. `2 of 3 seeds`: a seed was asked for and not run."
        " `suite's choice`: the suite asks the entry for these tasks alone. An entry that lacks anything it"
        " was asked for has no IQM, mean or rank.",
    )


def _of_example(cell: Any) -> str:
    if cell is None or np.isnan(cell.low):
        return ""
    return (
        f" {cell.entry} on {cell.task}: {cell.mean:.1f} from {cell.n_seeds} seeds and {cell.n_episodes}"
        f" episodes in all, between {cell.low:.1f} and {cell.high:.1f}."
    )


def _of_aggregates(board: Board) -> Iterator[tuple[str, str]]:
    ranked = board.aggregate[board.aggregate["rank"].notna()]
    if board.aggregate["mean_rank"].notna().any():
        yield (
            "mean rank",
            "Tasks whose score is a plain return have scales of their own, so nothing is averaged over"
            " tasks but the ranks of the entries within each.",
        )
    else:
        yield (
            "IQM",
            "The interquartile mean over all runs of all tasks: the lowest and the highest quarter are left"
            " out, so that one task or one lucky seed decides little. Tasks count equally. Its interval is"
            f" a bootstrap over seeds and start states ({board.reps} resamples).",
        )
        yield "mean", "The mean over tasks of the cells; one very high or low task moves it."
    words = f"The order by {'mean rank' if board.aggregate['mean_rank'].notna().any() else 'IQM'}."
    best = next(ranked.itertuples(), None)
    if best is not None and pd.notna(best.rank_high):
        words += (
            " Behind it, in brackets, the ranks that the tests of all pairs leave it (Holm):"
            " behind the entries that are better by a test, before those that are worse."
            f" [1-{len(ranked)}] says that nothing is known of its place. Here {best.entry} is better than"
            f" {len(ranked) - best.rank_high} of {len(ranked) - 1} rivals by a test."
        )
    yield "rank", words
    yield (
        "pairs",
        "`--format markdown` and `json` have every pair: the difference of the IQMs with its interval, its"
        " p-value (Holm), the probability that a run of the one has a higher score than one of the other,"
        " and on how many tasks the one is better, worse, or neither by the column's test.",
    )
    if len(board.averaged):
        yield (
            "last three",
            "The mean of the last three evaluations, of which two are monitor evaluations on other"
            " episodes. It shows whether the last update was a lucky one. Nothing is ranked by it.",
        )

    if len(board.entry_consistency):
        row = next(board.entry_consistency.itertuples())
        words = CAPTION.removeprefix("consistency: ")
        yield (
            "consistency",
            f"{words[0].upper()}{words[1:]} Seeds of equal score may have learned other policies."
            " The interval leaves out one seed at a time (jackknife), as pairs that share a seed depend on each other;"
            " two seeds have none. Policies act as at the start of an episode, with the same noise for all seeds."
            " `--`: not measured; `offbench diagnose --consistency` measures what keeps its policies, and writes every"
            " pair and, of Gaussian policies, the Jensen-Shannon divergence (in the csv). Churn between the last two"
            f" checkpoints is not measured: only final policies are kept. Here {row.entry}: {row.value:.3f}.",
        )
    if len(board.goals):
        yield (
            "goals",
            "A goal-conditioned task is one column. Its episodes play the task's goals (task_id) in turn,"
            " equally often, and its score is the mean over all of them; the table below has each goal.",
        )


def _of_training(n_tasks: int) -> Iterator[tuple[str, str]]:
    yield (
        "tuned",
        "On how many of its tasks an entry had hyper-parameters published for that very task:"
        f" `0/{n_tasks}` is none.",
    )
    yield (
        "tuning",
        "Where the hyper-parameters came from: `default` of the method, `published` for the family of"
        " tasks, `suite` (its own choice, which may differ by task), `task preset` (one published for this"
        " very task), `user` (the command line), and how many configurations were tried.",
    )
    yield (
        "updates",
        "Minibatches that every run was trained on; `300k of 1M` where more are published for the method.",
    )
    yield "s/run", "Seconds of a run, where several that trained together share their time."
