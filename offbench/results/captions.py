"""What a leaderboard says in words: how entries were tuned and trained, what differs between runs, what its numbers mean."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from offbench.errors import listed
from offbench.results.words import plural

_ENV_PACKAGES = (
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "dm-control",
    "ogbench",
    "minari",
    "d4rl",
)

COVERAGE = (
    "Resampled from ten published seeds of 285 cells, nominal 95 % hold the truth in 94 to 97 %"
    " of cells and 92 to 97 % of IQMs at 3 to 10 seeds (results/coverage)."
)


def notes_on_ranks(mixed: Sequence[str], tasks: tuple[str, ...]) -> Iterable[str]:
    """Why entries are ordered by mean ranks: scores of several scales have no mean."""
    if mixed:
        yield (
            f"{_where(list(mixed), tasks)}: no reference returns are known, a score is the return"
            f" itself ({mixed[0]}), so entries are ordered by the mean of their ranks within the tasks,"
            " which has no interval"
        )


def how_trained(mine: pd.DataFrame) -> dict[str, Any]:
    """How an entry's runs were made, in the words of its row."""
    how = mine.get("tuning.how", pd.Series(dtype=object)).dropna().astype(str)
    of, tasks = mine["task"].loc[how.index], mine["task"].nunique()
    words = []
    for text in sorted(set(how)):
        on = of[how == text].nunique()
        words.append(f"{text} ({on}/{tasks} tasks)" if text.startswith("task preset") else text)
    preset = of[how.str.startswith("task preset")].nunique()
    sources = mine.get("tuning.preset", pd.Series(dtype=object)).dropna().astype(str)
    if sources.str.startswith("carried over").any():
        words.append("carried over from the method alone")
    tried = mine.get("tuning.tried", pd.Series(dtype=float)).dropna()
    if len(tried) and tried.max() > 1:
        words.append(f"{int(tried.max())} tried")
    seconds = np.nan
    if "wall_s" in mine and len(mine):
        packs = mine.get("pack", 1)
        seconds = float((mine["wall_s"] / packs).mean())
    return {
        "n_tuned": preset,
        "tuning": ", ".join(words),
        "commit": _commits(mine),
        **_updates(mine),
        "wall_s": seconds,
    }


def _updates(mine: pd.DataFrame) -> dict[str, str]:
    """What an entry's runs had and what is published, as numbers and in words: `300k of 1M`."""
    column = mine.get("tuning.published_updates", pd.Series(np.nan, mine.index))
    known = pd.to_numeric(column, errors="coerce").fillna(0)
    pairs = sorted({(int(n), int(of)) for n, of in zip(mine["n_updates"], known)})
    words = [count(n) if of in (0, n) else f"{count(n)} of {count(of)}" for n, of in pairs]
    return {
        "n_updates": "/".join(dict.fromkeys(str(n) for n, _ in pairs)),
        "published_updates": "/".join(dict.fromkeys(str(of) for _, of in pairs if of)),
        "updates": "/".join(words),
    }


def count(n: int) -> str:
    """A number of updates in few characters: 1M, 300k, 6,000."""
    if n >= 1_000_000 and n % 100_000 == 0:
        return f"{n / 1e6:g}M"
    return f"{n // 1000}k" if n >= 10_000 and n % 1000 == 0 else f"{n:,}"


def _commits(mine: pd.DataFrame) -> str:
    if "commit" not in mine:
        return ""
    dirty = mine["dirty"].astype(bool) if "dirty" in mine else pd.Series(False, mine.index)
    short = mine["commit"].astype(str).str[:7] + np.where(dirty, "+dirty", "")
    return listed(sorted(short.unique()), 2)


def notes_on(whole: pd.DataFrame, cells: pd.DataFrame, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """What differs within a column of the table, and what is not there."""
    found: dict[str, list[str]] = {}
    columns = dict(tuple(whole.groupby("task")))
    for task in tasks:
        column = columns.get(task, whole.iloc[:0])
        for text in _differences(column):
            found.setdefault(text, []).append(task)
    notes = [f"{_where(where, tasks)}: {text}" for text, where in found.items()]
    for line in cells[(cells["n_failed"] > 0) | (cells["n_diverged"] > 0)].itertuples():
        counts = [f"{n} {word}" for n, word in failures(line) if n]
        notes.append(
            f"{line.task}: {line.entry} has {' and '.join(counts)} beside {line.n_seeds} finished"
            " runs, so it has no aggregate"
        )
    short = cells[(cells["status"] == "partial") & (cells["n_failed"] + cells["n_diverged"] == 0)]
    for (entry, have, asked), part in short.groupby(["entry", "n_seeds", "n_asked"]):
        notes.append(
            f"{_where(list(part['task']), tasks)}: {entry} has {have} of {asked} seeds asked for, so it has"
            " no aggregate and no rank"
        )
    return (*notes, *_remarks(whole))


def _remarks(whole: pd.DataFrame) -> Iterable[str]:
    """What the records say of runs whose scores count."""
    if "reason" not in whole:
        return
    sizes = whole.groupby(["task", "entry"]).size()
    for (task, entry), cell in whole[whole["reason"].notna()].groupby(["task", "entry"]):
        yield (
            f"{task}: {len(cell)} of {sizes[task, entry]} runs of {entry}, whose scores count, are "
            f"recorded with a remark, the first: {cell['reason'].iloc[0]}"
        )


def failures(line: Any) -> tuple[tuple[int, str], tuple[int, str]]:
    """How many runs of a cell failed and diverged, each with its word."""
    return (line.n_failed, "failed"), (line.n_diverged, "diverged")


def _where(where: list[str], tasks: tuple[str, ...]) -> str:
    if len(where) == len(tasks) > 1:
        return "all tasks"
    return f"{len(where)} of {len(tasks)} tasks" if len(where) > 3 else ", ".join(where)


def _differences(column: pd.DataFrame) -> Iterable[str]:
    for name in _columns_of_a_source(column):
        # monitor evaluations change no score
        if name.startswith("protocol.monitor"):
            continue
        values = _spelt(column[name])
        if values.nunique() > 1:
            groups = column.groupby(values)["entry"].unique()
            shown = "; ".join(f"{value}: {', '.join(sorted(who))}" for value, who in groups.items())
            yield f"runs differ in {name.removeprefix('versions.')} ({shown})"


def _columns_of_a_source(runs: pd.DataFrame) -> list[str]:
    fixed = ["dataset_sha256", "n_updates", "suite_version"]
    fixed += [f"versions.{package}" for package in _ENV_PACKAGES]
    nested = sorted(str(name) for name in runs if str(name).startswith(("env.", "protocol.")))
    return [name for name in [*fixed, *nested] if name in runs]


def sources_of(whole: pd.DataFrame, tasks: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """task -> column of the records -> its values in the runs of the task: which data, environment,
    protocol, numbers of updates and versions are behind its scores."""
    columns = dict(tuple(whole.groupby("task")))
    return {
        task: {
            name: sorted(set(_spelt(columns[task][name])))
            for name in _columns_of_a_source(columns[task])
        }
        for task in tasks
        if task in columns
    }


def _spelt(column: pd.Series) -> pd.Series:
    """Every value by `spelt`, each kind of value once."""
    try:
        codes, kinds = pd.factorize(column, use_na_sentinel=False)
    # a list within a tuple
    except TypeError:
        return column.map(spelt)
    return pd.Series(np.array([spelt(kind) for kind in kinds], object)[codes], column.index)


def spelt(value: Any) -> str:
    """A recorded value in few characters; checksums are cut to 12."""
    if isinstance(value, str):
        return value[:12] if re.fullmatch("[0-9a-f]{40,}", value) else value
    if isinstance(value, float):
        return "unset" if np.isnan(value) else f"{value:g}"
    return "unset" if value is None else str(value)


def budget(cells: pd.DataFrame) -> str:
    """Seeds and test episodes per seed of the scored cells: `3 seeds x 20 episodes`."""
    scored = cells[cells["n_seeds"] > 0]
    seeds = number_range(scored["n_seeds"])
    episodes = number_range(scored["n_episodes"] // scored["n_seeds"])
    return f"{plural(seeds, 'seed')} x {plural(episodes, 'episode')}"


def short_caption(cells: pd.DataFrame, scale: str, level: float) -> str:
    """What the numbers of a leaderboard mean, in three lines of a terminal."""
    short = "0-100: reference minimum to maximum, or success" if "100" in scale else scale
    bold = f"{100 * level:g} % intervals over seeds and start states."
    bold += " Bold: not told from the best (Holm)."
    scored = cells[cells["n_seeds"] > 0]
    if (scored["n_seeds"] == 1).any():
        bold = "One seed: its interval is withheld, as nothing says how seeds differ; never bold."
    return "\n".join(
        [
            f"{short}; {budget(cells)}.",
            bold,
            "#: rank [ranks that the tests leave]. Every number in words: board --explain",
        ]
    )


def long_caption(cells: pd.DataFrame, scale: str, level: float, reps: int) -> str:
    """What the numbers of a leaderboard mean: scale, budget, intervals and bold."""
    scored = cells[cells["n_seeds"] > 0]
    percent = f"{100 * level:g} %"
    text = (
        f"Score: {scale}. Test episodes after the last update only: {budget(cells)}."
        f" Cells: mean over seeds ± half-width of its {percent} Student-t interval, whose"
        " variance is moderated by the mean variance of the board; of a success rate [low, high] by"
        " Wilson's interval at the number of independent episodes. IQM: interquartile mean over runs"
        f" and tasks, tasks weighing equally, with its {percent} smoothed bootstrap interval"
        f" ({reps} resamples). Intervals are over seeds and over start states. {COVERAGE} Bold: the best of a column and"
        " whatever does not differ from it, by tests of all pairs of the column with episodes paired,"
        f" Holm-corrected so that equal entries all stay bold in {percent} of columns; what lies above a bold"
        " number is bold too."
        " --: missing; an entry without all its seeds has no aggregate and no rank."
    )
    if (cells["status"] == "left out").any():
        text += " Suite's choice: the suite asks the entry for some of the tasks alone."
    if scored["low"].isna().any():
        text += " One seed has no interval, is compared with nothing and is never bold."
    return text


def number_range(numbers: pd.Series) -> str:
    """Whole numbers from the least to the largest: `3`, `3-5`."""
    if numbers.empty:
        return "0"
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}-{high}"
