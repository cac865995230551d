"""Scores that papers and repositories have published, to stand beside ours and never among them.

`conf/published/scores.csv` has one row per source, task and method, `sources.yaml` what is known of each
source. A user's own table is a csv file with at least the columns task, entry and score. A score is on our
scale: 0 to 100 between the reference returns, or success in percent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from offbench.errors import UserError, unknown
from offbench.io import read_yaml, shipped

COLUMNS: tuple[str, ...] = (
    *("task", "entry", "method", "source", "citation", "score", "std", "seeds", "steps"),
    *("protocol", "note"),
)

# of the column `std`: standard deviations over seeds, by their degrees of freedom
_OVER_SEEDS = {"std": 1, "std0": 0}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where published scores are from, and how they were made as far as that is known."""

    name: str
    citation: str
    # where the numbers were read, where that is not the work itself
    read_in: str = ""
    # which evaluation of a run is its score
    checkpoint: str = ""
    # what the column `std` is: std, std0 (ddof=0), episodes, unknown
    spread: str = "unknown"
    protocol: str = ""
    # methods of ours that have its hyper-parameters, under `preset=`
    settings: tuple[str, ...] = ()
    preset: str = "usual"
    # its tables' names for `offbench reproduce`
    tables: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """All that is known of the protocol, in one line."""
        parts = [f"checkpoint: {self.checkpoint}" if self.checkpoint else ""]
        parts += [self.protocol, f"read in {self.read_in}" if self.read_in else ""]
        return "; ".join(filter(None, parts)) or "its protocol is not known"


@cache
def published_sources() -> Mapping[str, Source]:
    """Short name -> source, of the scores that ship with offbench."""
    text = (shipped("conf") / "published" / "sources.yaml").read_text(encoding="utf-8")
    lists = lambda fields: {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return {
        name: Source(name=name, **{**fields, **lists(fields)})
        for name, fields in read_yaml(text).items()
    }


def published_scores(
    tasks: Sequence[str] | None, sources: Sequence[str] | None = None
) -> pd.DataFrame:
    """Published scores of some tasks, in the order of the sources.

    Args:
        tasks: task ids; None for all.
        sources: short names (`corl`, `iql-2021`) or paths of csv files; None for all that ship.

    Returns:
        One row per source, task and method: task, entry (ours where the method is one of ours, else theirs
        in lower case), method (as printed), source, citation, score, std, seeds (<NA>: not known), steps
        (updates as text, "1M"; "" where not known), protocol, note.

    Raises:
        UserError: there is no such source, or a file is no table of scores.
    """
    named = list(published_sources()) if sources is None else list(sources)
    known = [name for name in named if not is_file(name)]
    if absent := [name for name in known if name not in published_sources()]:
        raise unknown("source of published scores", absent[0], [*published_sources(), "all"])
    shipped_scores = _shipped()
    parts = [shipped_scores[shipped_scores["source"].isin(known)]] if known else []
    parts += [read_scores(Path(name)) for name in named if is_file(name)]
    found = pd.concat(parts, ignore_index=True) if parts else shipped_scores.iloc[:0]
    return found if tasks is None else found[found["task"].isin(list(tasks))].reset_index(drop=True)


def is_file(name: str) -> bool:
    """Whether a source is a user's own table."""
    return name.endswith(".csv")


@cache
def _shipped() -> pd.DataFrame:
    path = shipped("conf") / "published" / "scores.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    about = published_sources()
    frame["citation"] = frame["source"].map({name: s.citation for name, s in about.items()})
    frame["protocol"] = frame["source"].map({name: s.words for name, s in about.items()})
    return _typed(frame)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in ("score", "std")}
    seeds = pd.to_numeric(frame["seeds"], errors="coerce").astype("Int64")
    return frame.assign(**numbers, seeds=seeds)[list(COLUMNS)]


def read_scores(path: Path) -> pd.DataFrame:
    """A user's table of published scores, with the columns of `published_scores`.

    The file has the columns task, entry and score, and may have method, std (over seeds, ddof=1), seeds,
    steps, citation, protocol, note. Its source is the file's name without `.csv`.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file of published scores") from None
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a csv table of published scores ({reason})") from None
    if absent := [name for name in ("task", "entry", "score") if name not in frame]:
        raise UserError(f"{path}: no column {absent[0]}; there are {', '.join(frame.columns)}")
    for name in ("score", "std", "seeds"):
        column = frame.get(name, pd.Series("", frame.index))
        value = pd.to_numeric(column, errors="coerce")
        wrong = ~np.isfinite(value) & ((column != "") | (name == "score"))
        if name == "seeds":
            wrong |= value.notna() & ((value % 1 != 0) | (value < 1))
        if wrong.any():
            line = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{path}, line {line + 2}: {name}={column.iloc[line]!r} is not a number"
                + (" of seeds" if name == "seeds" else "")
            )
    own = {"method": frame["entry"], "source": path.stem, "citation": str(path)}
    missing = {name: own.get(name, "") for name in COLUMNS if name not in frame}
    return _typed(frame.assign(**{**missing, "source": path.stem}))


def spread_of(source: str) -> str:
    """What the column `std` of a source is; a user's own table has standard deviations over seeds."""
    about = published_sources().get(source)
    return about.spread if about else "std"


def intervals(published: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """low and high of each row: Student's t over seeds; nan where the spread or the seeds are not known.

    A population standard deviation (ddof=0) is taken as sqrt(n - 1) standard errors, one with ddof=1 as sqrt(n).
    """
    from scipy import stats

    n = published["seeds"].astype("float64").to_numpy()
    kinds = published["source"].map(lambda name: _OVER_SEEDS.get(spread_of(name), np.nan))
    std, score = (published[name].to_numpy(dtype=np.float64) for name in ("std", "score"))
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = np.where(n > 1, n - 1, np.nan)
        error = std / np.sqrt(n - 1 + kinds.to_numpy(dtype=np.float64))
        half = stats.t.ppf((1 + level) / 2, degrees) * error
    return pd.DataFrame({"low": score - half, "high": score + half}, index=published.index)


def updates_of(steps: str) -> int | None:
    """Number of updates of a text such as "1M" or "100k"; None where it says none or several.

    >>> updates_of("1M"), updates_of("500k"), updates_of(""), updates_of("2000")
    (1000000, 500000, None, 2000)
    """
    found = re.fullmatch(r"(\d+)([kM]?)", steps)
    return int(found[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[found[2]] if found else None
