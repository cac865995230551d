"""Which entries of a leaderboard are better than which by a test: one sentence, and the full tables."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from offbench.results import markdown
from offbench.results.board.leaderboard import Board
from offbench.results.words import bounds

# entries of which a sentence tells, and of which Markdown has every pair
_TOLD, _PAIRS = 6, 12


def rank_text(row: Any) -> str:
    """The rank, and the ranks that the tests of all pairs leave: `1 [1-2]`."""
    if pd.isna(row.rank):
        return "--"
    if pd.isna(row.rank_low) or pd.isna(row.rank_high):
        return str(row.rank)
    low, high = int(row.rank_low), int(row.rank_high)
    return f"{row.rank} [{low}-{high}]" if low < high else f"{row.rank} [{low}]"


def sentence(board: Board) -> str:
    """Who beats whom, by ranks: `1 beats 4-6, 2 beats 5 6 (IQM, p < 0.05, Holm)`; "" where nothing is tested."""
    pairs = board.pairwise
    if not len(pairs) or not np.isfinite(pairs["p"]).any():
        return ""
    place = {entry: i for i, entry in enumerate(board.aggregate["entry"], 1)}
    surer = pairs[(pairs["p"] < 1 - board.level) & (pairs["difference"] > 0)]
    if surer.empty:
        return f"No IQM is told from another (all pairs, p < {1 - board.level:.2g}, Holm)."
    beaten = surer["rival"].map(place).groupby(surer["entry"].map(place)).agg(sorted)
    told = [f"{winner} beats {_ranges(losers)}" for winner, losers in beaten.head(_TOLD).items()]
    more = "; ..." if len(beaten) > _TOLD else ""
    return f"{'; '.join(told)}{more} (IQM, all pairs, p < {1 - board.level:.2g}, Holm)."


def _ranges(numbers: Sequence[int]) -> str:
    """`4-6 9`: three and more that follow each other as a range."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    long = [[f"{g[0]}-{g[-1]}"] if len(g) > 2 else list(map(str, g)) for g in groups]
    return " ".join(word for group in long for word in group)


def paragraphs(board: Board) -> Iterator[str]:
    """The tables of mean ranks and of all pairs, with what their numbers are."""
    if len(board.ranks) < 2:
        return
    percent = f"{100 * board.level:g} %"
    head = ["entry", "mean rank", "beats of rivals"]
    rows = [
        [
            row.entry,
            f"{row.mean_rank:.2f}{bounds(row.low, row.high, 2)}",
            f"{100 * row.borda:.0f} %",
        ]
        for row in board.ranks.itertuples()
    ]
    yield markdown.table(head, rows)
    yield (
        f"Mean rank within the tasks with its {percent} interval (seeds and start states drawn again), and the"
        " share of rivals that an entry is above, mean over tasks."
    )
    order = {entry: i for i, entry in enumerate(board.aggregate["entry"])}
    pairs = board.pairwise
    pairs = pairs[pairs["entry"].map(order) < pairs["rival"].map(order)]
    if len(board.ranks) > _PAIRS:
        yield f"All {len(pairs):,} pairs of entries are in the .json."
        return
    pairs = pairs.sort_values(["entry", "rival"], key=lambda names: names.map(order))
    head = ["entry", "rival", "difference of IQM", "p", "improvement", "better", "worse", "neither"]
    yield markdown.table(head, [list(_pair(row)) for row in pairs.itertuples()], left=(0, 1))
    yield (
        f"All pairs: difference of the IQMs with its {percent} interval, its p-value (Holm over all pairs), the"
        " probability that a run of the entry has a higher score than one of the rival (mean over tasks), and"
        " on how many tasks the entry is better, worse, or neither by the column's test."
    )


def _pair(row: Any) -> Iterator[str]:
    yield row.entry
    yield row.rival
    gap = f"{row.difference:.1f}{bounds(row.low, row.high)}"
    yield "--" if np.isnan(row.difference) else gap
    yield "--" if np.isnan(row.p) else f"{row.p:.2g}"
    yield f"{row.improvement:.2f}{bounds(row.improvement_low, row.improvement_high, 2)}"
    yield from map(str, (row.wins, row.losses, row.ties))
