"""What a report shows, as plain data: the board, its runs and episodes, and the evidence behind it.

Numbers are those of the board's csv, with six digits; nothing is computed here that a board has.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from offbench.errors import listed
from offbench.results.board import averaged_text, consistency_text, goals_text, render
from offbench.results.board.cell_text import cell_text, rows_of_cells
from offbench.results.board.leaderboard import Board
from offbench.results.board.pairs_text import rank_text
from offbench.results.captions import budget
from offbench.results.published.scores import published_scores
from offbench.results.report.command import settings_of, spelt, words_of_command
from offbench.results.store import Record
from offbench.results.words import plural

_CELL = ("mean", "low", "high", "n_seeds", "n_asked", "n_episodes", "n_failed", "n_diverged")
_AGGREGATE = ("iqm", "low", "high", "mean", "mean_low", "mean_high", "mean_rank", "wall_s")
_COUNTS = ("complete", "n_asked", "n_tasks", "n_seeds", "n_seeds_max", "n_episodes", "n_tuned")


def board_payload(
    board: Board, runs: pd.DataFrame, unscaled: Collection[str] = (), measured: str = ""
) -> dict:
    """The leaderboard: tasks, entries in rank order, and their cells, entry by entry, as columns.

    Args:
        runs: lines of `Store.runs()` of the board.
        unscaled: tasks whose score is a plain return.
        measured: what else was measured of the runs, of `measured_words`.
    """
    rows = rows_of_cells(board)
    cells = [cell for entry in board.aggregate["entry"] for cell in rows[entry]]
    entries = list(board.aggregate.itertuples(index=False))
    return {
        "title": board.title,
        "lede": _lede(board),
        "facts": _facts(board, runs) + [["Measured", measured]] * bool(measured),
        "made": _machine(runs),
        "tasks": list(board.tasks),
        "names": render.without_common_folder(board.tasks),
        "unscaled": [task in set(unscaled) for task in board.tasks],
        "entries": {
            "entry": [row.entry for row in entries],
            "rank": [None if pd.isna(row.rank) else int(row.rank) for row in entries],
            "rank_text": [rank_text(row) for row in entries],
            "text": [render.aggregate_text(row) for row in entries],
            "best": [bool(row.best) for row in entries],
            **{name: [number(getattr(row, name)) for row in entries] for name in _AGGREGATE},
            **{name: [int(getattr(row, name)) for row in entries] for name in _COUNTS},
            **{
                n: [getattr(row, n) or "" for row in entries]
                for n in ("tuning", "updates", "commit")
            },
        },
        "cells": {
            "text": [cell_text(cell) for cell in cells],
            "status": [cell.status for cell in cells],
            "best": [int(cell.best) for cell in cells],
            "success": [int(cell.success) for cell in cells],
            "wall_s": _seconds(runs, cells),
            **{name: [number(getattr(cell, name)) for cell in cells] for name in _CELL},
        },
        "averaged": _averaged(board),
        "goals": _goals(board),
        "consistency": _consistency(board),
        "published": _published(board),
        "caption": board.caption,
        "notes": list(board.notes),
    }


def number(value: Any) -> float | int | None:
    """With the six digits of the board's csv; None for what is not known."""
    if value is None or value is pd.NA or np.isnan(value):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def columns(table: pd.DataFrame) -> dict[str, list]:
    """A table as its columns, numbers with six digits."""
    return {
        str(name): [number(x) for x in table[name]]
        if pd.api.types.is_numeric_dtype(table[name])
        else [None if x is None or x is pd.NA or x != x else str(x) for x in table[name]]
        for name in table
    }


def _seconds(runs: pd.DataFrame, cells: Iterable[Any]) -> list:
    """Seconds per run of each cell, those of a stack shared."""
    share = runs["wall_s"] / runs["pack"]
    found = share[runs["status"] == "ok"].groupby([runs["entry"], runs["task"]]).mean()
    return [number(found.get((cell.entry, cell.task), np.nan)) for cell in cells]


def _averaged(board: Board) -> dict[str, Any] | None:
    if board.averaged.empty:
        return None
    table = board.averaged[["entry", "task", "mean", "low", "high", "last", "n_seeds"]]
    return {**columns(table), "caption": averaged_text.caption(board)}


def _goals(board: Board) -> dict[str, Any] | None:
    if board.goals.empty:
        return None
    head, lines = goals_text.text_table(board)
    return {"head": head, "lines": lines, "caption": goals_text.CAPTION}


def _consistency(board: Board) -> dict[str, Any] | None:
    """How far seeds are apart: of each entry in words and as a number, of each cell in words."""
    if board.entry_consistency.empty:
        return None
    texts, of_cells = consistency_text.column(board), consistency_text.cells(board)
    values = board.entry_consistency.set_index("entry")["value"]
    return {
        "text": list(texts.values()),
        "value": [number(values.get(entry, np.nan)) for entry in texts],
        "cells": [of_cells.get((entry, task), "") for entry in texts for task in board.tasks],
        "caption": consistency_text.CAPTION,
    }


def _published(board: Board) -> dict[str, Any] | None:
    """Published scores of the board's tasks, rows of one source and method, those of entries here first."""
    table = published_scores(board.tasks)
    if table.empty:
        return None
    ours = {str(entry).partition("+")[0] for entry in board.aggregate["entry"]}
    rows, place = [], {task: t for t, task in enumerate(board.tasks)}
    for (source, entry, method), part in table.groupby(["source", "entry", "method"], sort=False):
        scores: list[Any] = [None] * len(place)
        for line in part.itertuples():
            scores[place[line.task]] = [number(line.score), number(line.std), number(line.seeds)]
        first = part.iloc[0]
        known = [str(first[name]) for name in ("citation", "protocol", "note") if first[name]]
        words = f"{entry} ({source})" if method == entry else f"{entry} ({source}: {method})"
        rows.append(
            {"name": words, "ours": entry in ours, "about": "; ".join(known), "scores": scores}
        )
    return {"rows": sorted(rows, key=lambda row: not row["ours"])}


# --- facts ----------------------------------------------------------------------------------


def _lede(board: Board) -> str:
    """What the board says, in a few sentences."""
    table = board.aggregate
    ranked = table[table["rank"].notna()]
    words = f"{plural(len(table), 'entry')} on {plural(len(board.tasks), 'task')}"
    if ranked.empty:
        return f"{words}. None has every run, so none is ranked."
    if len(ranked) < len(table):
        words += (
            f", of which {len(ranked)} {'has' if len(ranked) == 1 else 'have'} every run and a rank"
        )
    first = ranked.iloc[0]
    if not np.isnan(first["mean_rank"]):
        return f"{words}. The best mean rank is {first['mean_rank']:.1f}, of {first['entry']}."
    words += f". The highest IQM is {first['iqm']:.1f}, of {first['entry']}"
    tied = [row.entry for row in ranked.iloc[1:].itertuples() if row.best]
    if not ranked["best"].any() or len(ranked) == 1:
        return f"{words}."
    if not tied:
        return f"{words}; every other is below it."
    if len(tied) == len(ranked) - 1:
        return f"{words}; no other can be told from it."
    few = f"{', '.join(tied[:-1])} and {tied[-1]}" if len(tied) > 1 else tied[0]
    names = few if len(tied) <= 3 else f"{len(tied)} others"
    return f"{words}; {names} cannot be told from it."


def _facts(board: Board, runs: pd.DataFrame) -> list[list[str]]:
    """What a reader asks of a table before its numbers, as (name, words)."""
    whole = runs[runs["status"] == "ok"]
    n_failed, days = len(runs) - len(whole), sorted(runs["created"].str[:10].unique())
    seconds = float((runs["wall_s"] / runs["pack"]).sum())
    made = [f"{len(whole):,} finished"] + ([f"{n_failed:,} failed or diverged"] if n_failed else [])
    return [
        ["Recorded", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"],
        ["Runs", f"{', '.join(made)}; {_duration(seconds)} of training and evaluation"],
        ["Protocol", f"{budget(board.cells)}; {_updates(whole)}; the last update alone counts"],
    ]


def _machine(runs: pd.DataFrame) -> list[list[str]]:
    """What the runs were made with, as (name, words)."""
    names = ("device", "backend", "precision")
    packages = [str(name) for name in runs if str(name).startswith("versions.")]
    versions = [f"{name.removeprefix('versions.')} {_distinct(runs[name])}" for name in packages]
    return [
        ["Machine", "; ".join(_distinct(runs[name]) for name in names)],
        ["Commit", _distinct(runs["commit"].str[:10])],
        ["Versions", ", ".join(versions)],
    ]


def _updates(runs: pd.DataFrame) -> str:
    numbers = sorted({int(n) for n in runs["n_updates"]})
    return f"{' or '.join(f'{n:,}' for n in numbers[:3])}{' ...' * (len(numbers) > 3)} updates"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return plural(max(1, round(seconds / 60)), "minute")
    return f"{seconds / 3600:,.1f} hours"


def _distinct(values: pd.Series, most: int = 3) -> str:
    return listed(sorted({str(value) for value in values.dropna()}), most)


# --- runs and episodes ----------------------------------------------------------------------


def runs_payload(board: Board, episodes: pd.DataFrame, records: Mapping[str, Record]) -> dict:
    """Cell by cell, in the order of `board_payload`: seeds, episodes, settings, and how they were made.

    Args:
        episodes: `Store.episodes()` of the board's runs.
        records: run id -> its record.
    """
    test = episodes[episodes["stream"] == "test"].sort_values(["run_id", "episode"])
    by_run = _episodes_of(test)
    scales = {str(task): _scale(part) for task, part in test.groupby("task")}
    of_cell: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records.values(), key=lambda r: (r.spec.seed, r.spec.run_id)):
        of_cell.setdefault((record.provenance.entry, record.spec.task), []).append(record)
    starts: dict[str, list[int]] = {}
    for (_, task), found in of_cell.items():
        for record in found:
            if record.spec.run_id in by_run:
                starts.setdefault(task, by_run[record.spec.run_id]["start"])
    cells = [
        _cell(of_cell[entry, task], by_run, starts.get(task), scales.get(task) is None)
        if (entry, task) in of_cell
        else None
        for entry in board.aggregate["entry"]
        for task in board.tasks
    ]
    return {
        "starts": [starts.get(task, []) for task in board.tasks],
        "scales": [scales.get(task) for task in board.tasks],
        "cells": cells,
    }


def _scale(test: pd.DataFrame) -> list[float] | None:
    """(slope, intercept) where scores are a line of the returns, as references make them, so that returns
    tell them; None where they are not, as for successes."""
    x, y = test["return"].to_numpy(), test["score"].to_numpy()
    low, high = x.argmin(), x.argmax()
    if x[low] == x[high]:
        return None
    slope = (y[high] - y[low]) / (x[high] - x[low])
    line = y[low] + slope * (x - x[low])
    return (
        [float(slope), float(y[low] - slope * x[low])] if np.allclose(line, y, atol=1e-6) else None
    )


def _episodes_of(test: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Run id -> its test episodes as columns, and the mean of their scores; of rows by run and episode.

    Scores are shown to a tenth, returns to five digits; end is 1 for a terminal, 2 for a time limit.
    """
    if test.empty:
        return {}
    ids, first = np.unique(test["run_id"].to_numpy(dtype=str), return_index=True)
    ends = [*first[1:], len(test)]
    exact = test["score"].to_numpy()
    shown = {
        "score": [number(x) for x in exact.round(1)],
        "return": [_short(x) for x in test["return"]],
        "length": test["length"].tolist(),
        "end": (test["terminated"].astype(int) + 2 * test["truncated"].astype(int)).tolist(),
        "start": test["env_seed"].tolist(),
    }
    return {
        run: {"mean": number(exact[a:b].mean()), **{name: x[a:b] for name, x in shown.items()}}
        for run, a, b in zip(ids.tolist(), first.tolist(), ends, strict=True)
    }


def _short(x: float) -> float | int:
    short = float(f"{x:.5g}")
    return int(short) if short.is_integer() else short


def _cell(
    records: list[Record],
    by_run: Mapping[str, dict[str, Any]],
    starts: list[int] | None,
    with_scores: bool,
) -> dict:
    first = records[0]
    spec, made = first.spec.as_dict(), first.provenance
    ids = [r.spec.run_id for r in records]
    parts = [by_run[run] for run in ids if run in by_run]
    joined = lambda name: [x for part in parts for x in part[name]]
    found: dict[str, Any] = {
        "command": words_of_command(spec, made.entry, [r.spec.seed for r in records]),
        "settings": _settings(spec, made.sources),
        "made": [[name, _words(values)] for name, values in _made(records).items()],
        "seeds": {
            "seed": [r.spec.seed for r in records],
            "run_id": ids,
            "status": [r.status for r in records],
            "reason": [r.reason for r in records],
            "score": [by_run[run]["mean"] if run in by_run else None for run in ids],
            "n": [len(by_run[run]["score"]) if run in by_run else 0 for run in ids],
            "seconds": [number(r.provenance.wall_s / r.provenance.pack) for r in records],
        },
        "episodes": {name: joined(name) for name in ("return", "length", "end")},
    }
    if with_scores:
        found["episodes"]["score"] = joined("score")
    if any(part["start"] != starts for part in parts):
        found["starts"] = joined("start")
    return found


def _settings(spec: Mapping[str, Any], sources: Mapping[str, str]) -> list[list[str]]:
    """Names, values and sources, one list each."""
    settings = settings_of(spec)
    values = [spelt(value) for value in settings.values()]
    return [list(settings), values, [_source(name, sources) for name in settings]]


def _source(name: str, sources: Mapping[str, str]) -> str:
    for spelling in (name, f"{name}._target_"):
        if spelling in sources:
            return sources[spelling]
    below = {words for key, words in sources.items() if key.startswith(f"{name}.")}
    return "" if name == "method" else ", ".join(sorted(below))


def _made(records: list[Record]) -> dict[str, list[Any]]:
    """How the runs of a cell came to be: name -> the value of each run."""
    found: dict[str, list[Any]] = {}

    def add(name: str, values: list[Any]) -> None:
        if any(value not in (None, "") for value in values):
            found[name] = values

    add("data", [r.spec.dataset for r in records])
    add("data sha256", [r.spec.dataset_sha256 for r in records])
    add("environment", [r.spec.env.get("id") for r in records])
    rest = lambda env: {k: v for k, v in env.items() if k != "id" and v not in ({}, None)}
    add(
        "environment settings",
        [spelt(rest(r.spec.env)) if rest(r.spec.env) else "" for r in records],
    )
    for name in ("how", "tried", "source", "preset", "overridden"):
        values = [r.provenance.tuning.get(name) for r in records]
        add(
            f"hyper-parameters: {name}",
            [", ".join(v) if isinstance(v, list) else v for v in values],
        )
    fitted = [r.provenance.fitted for r in records]
    add("left to the data", [spelt(values) if values else "" for values in fitted])
    add("commit", [r.provenance.commit + "+dirty" * r.provenance.dirty for r in records])
    for name in ("device", "backend", "precision", "created"):
        add(name, [getattr(r.provenance, name) for r in records])
    seeds = {r.path.stem: r.spec.seed for r in records}
    add("trained in", [_stack(r, seeds) for r in records])
    add(
        "versions",
        [", ".join(f"{k} {v}" for k, v in r.provenance.versions.items()) for r in records],
    )
    return found


def _stack(record: Record, seeds: Mapping[str, int]) -> str:
    """ "a stack of 6: seeds 0-5"; `seeds` are those of the runs of its cell."""
    stack = record.provenance.stack
    if not stack:
        return f"a stack of {record.provenance.pack}"
    own = [seeds[run_id] for run_id in stack if run_id in seeds]
    follow = own == list(range(own[0], own[0] + len(own))) and len(own) > 2
    spelt = f"{own[0]}-{own[-1]}" if follow else ",".join(map(str, own))
    rest = len(stack) - len(own)
    others = f" and {plural(rest, 'run')} of other rows" if rest else ""
    return f"a stack of {len(stack)}: seed{'s' * (len(own) > 1)} {spelt}{others}"


def _words(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))
