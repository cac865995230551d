"""The tables behind the charts of a report: pairs, ranks, profiles, curves, chunk lengths, values."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from offbench.results import diagnostics
from offbench.results.board.leaderboard import Board
from offbench.results.curves import curve_table
from offbench.results.pairwise import profiles
from offbench.results.report.payload import columns
from offbench.results.store import Record


def charts_payload(
    board: Board,
    episodes: pd.DataFrame,
    runs: pd.DataFrame,
    records: Mapping[str, Record],
    unscaled: Collection[str] = (),
) -> dict[str, Any]:
    """Tables as columns: pairwise, ranks, profiles, curves, diagnostics (chunk lengths) and values.

    Args:
        board: the leaderboard of these runs.
        episodes: `Store.episodes()`.
        runs: `Store.runs()` of the same records.
        records: run id -> its record.
        unscaled: tasks whose score is a plain return; with others they have no profile.
    """
    tasks = board.tasks
    mixed = len(tasks) > 1 and bool(set(unscaled) & set(tasks))
    found = {
        "pairwise": columns(board.pairwise),
        "ranks": columns(board.ranks),
        "curves": columns(curve_table(episodes, runs)),
        "diagnostics": columns(_chunks(episodes, runs, records)),
        "values": columns(_values(episodes, runs)),
    }
    if not mixed:
        found["profiles"] = columns(profiles(episodes, runs, tasks, unscaled=unscaled))
    return found


def _chunks(
    episodes: pd.DataFrame, runs: pd.DataFrame, records: Mapping[str, Record]
) -> pd.DataFrame:
    """What `diagnostics.measure` says of the test episodes."""
    curves = {run: r.metrics for run, r in records.items() if r.metrics is not None}
    chunked = episodes[(episodes["stream"] == "test") & episodes["chunk_lengths"].notna()]
    table = diagnostics.measure(chunked, runs, curves)
    return table[table["what"].isin(["executed", "success"])]


def _values(episodes: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean value of the first decisions and mean discounted return, one row per cell."""
    known = diagnostics.start_values(episodes, runs)
    return known.groupby(["entry", "task"], as_index=False).agg(
        **{
            "value": ("start_value", "mean"),
            "return": ("discounted_return", "mean"),
            "whole": ("whole", "mean"),
            "n": ("whole", "size"),
        }
    )
