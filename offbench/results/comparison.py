"""The result of a comparison, and how it is written: text of 80 columns, Markdown, csv and json."""

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from offbench.results import markdown
from offbench.results.board.render import short_names
from offbench.results.names import shortened
from offbench.results.verdict import spelt_p
from offbench.results.words import bounds

_WIDTH = 80
_NAME = 11


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An entry against each of its rivals.

    table, one row per rival and common task: rival, task, mine_score, rival_score (mean over seeds),
    difference, low, high (of this difference alone), p (the board's: Holm-adjusted over all pairs of the
    column), outcome (better | worse | not told apart | one seed), mine_seeds, rival_seeds.
    overall, one row per rival: rival, verdict, n_tasks, difference (of the IQM), low, high, p (Holm-adjusted
    over n_pairs), improvement, improvement_low, improvement_high, wins, losses, ties, mine_ and rival_ iqm,
    mean, median and optimality_gap (mean shortfall below 100), n_pairs, n_seeds, n_seeds_max, more_seeds and
    more_episodes (that would show the difference asked for).
    costs, one row per entry: entry, n_runs, n_tasks, n_tuned, tuning, commit, n_updates,
    published_updates, updates, wall_s (per run); empty where only rows are known.
    """

    mine: str
    # rival -> the sentence
    verdicts: Mapping[str, str]
    table: pd.DataFrame
    overall: pd.DataFrame
    costs: pd.DataFrame
    notes: tuple[str, ...]
    level: float

    @property
    def verdict(self) -> str | dict[str, str]:
        """The sentence, of several rivals one each by name."""
        if len(self.verdicts) == 1:
            return next(iter(self.verdicts.values()))
        return dict(self.verdicts)

    def __str__(self) -> str:
        return "\n".join(line for line, _ in self.lines())

    def lines(self) -> Iterator[tuple[str, bool]]:
        """The text, line by line, with whether it is part of a verdict."""
        for rival, sentence in self.verdicts.items():
            for line in _wrapped(sentence):
                yield line, True
            yield "", False
            for line in self._block(rival):
                yield line, False
            yield "", False
        if len(self.costs):
            for line in _aligned(_COST_HEAD, [_cost(row) for row in self.costs.itertuples()]):
                yield line, False
        for note in self.notes:
            for line in _wrapped(f"* {note}", indent="  "):
                yield line, False

    def to_markdown(self) -> str:
        """Verdict, tasks and overall table of every rival, and what the entries cost."""
        parts = [f"# {self.mine}"]
        for rival, sentence in self.verdicts.items():
            rows = [_task(row) for row in self._tasks(rival)]
            parts += [f"**{sentence}**", markdown.table(self._head(rival), rows)]
            (row,) = self.overall[self.overall["rival"] == rival].itertuples()
            parts.append(markdown.table(["", self.mine, rival, "", ""], _statistics(row)))
        if len(self.costs):
            parts.append(
                markdown.table(_COST_HEAD, [_cost(row) for row in self.costs.itertuples()])
            )
        parts += ["\n".join(f"* {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Rows of kind `overall`, `task` and `costs`, in the columns of all three."""
        tables = {"overall": self.overall, "task": self.table, "costs": self.costs}
        columns = dict.fromkeys(name for table in tables.values() for name in table)
        sink = io.StringIO()
        writer = csv.DictWriter(sink, ["kind", "mine", *columns], lineterminator="\n")
        writer.writeheader()
        for kind, table in tables.items():
            for row in _plain(table):
                line = {k: "" if v is None else v for k, v in row.items()}
                writer.writerow({"kind": kind, "mine": self.mine} | line)
        return sink.getvalue()

    def to_json(self) -> str:
        """The tables as lists of objects, null for what is not known."""
        body = {
            "mine": self.mine,
            "level": self.level,
            "verdicts": dict(self.verdicts),
            "overall": _plain(self.overall),
            "tasks": _plain(self.table),
            "costs": _plain(self.costs),
            "notes": list(self.notes),
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def _tasks(self, rival: str) -> list[Any]:
        own = self.table[self.table["rival"] == rival]
        return list(own.assign(name=short_names(tuple(own["task"]))).itertuples())

    def _head(self, rival: str) -> list[str]:
        share = f"difference [{100 * self.level:g} %]"
        return ["task", self.mine, rival, share, "p", ""]

    def _block(self, rival: str) -> list[str]:
        """A rival's tasks, the averages over them, and the shares of runs and tasks won."""
        (row,) = self.overall[self.overall["rival"] == rival].itertuples()
        rows = [_task(own) for own in self._tasks(rival)]
        averages = [[*line, ""] for line in _statistics(row)]
        table = [self._head(rival), *rows, *averages]
        table[0][1:3] = shortened(table[0][1:3], _NAME)
        others = sum(max(len(line[i]) for line in table) for i in range(1, 6)) + 10
        names = shortened([line[0] for line in table], max(12, _WIDTH - others))
        table = [[name, *line[1:]] for name, line in zip(names, table)]
        lines = _aligned(table[0], table[1:])
        if averages:
            lines.insert(1 + len(rows), "")
        counts = f"tasks: {row.wins} better, {row.losses} worse, {row.ties} not told apart"
        return [*lines, "", counts, _improvement(row, self.mine)]


_COST_HEAD = ["entry", "runs", "updates", "s/run", "tuned", "commit", "tuning"]


def _cost(row: Any) -> list[str]:
    seconds = "--" if np.isnan(row.wall_s) else f"{row.wall_s:.0f}"
    tuned = f"{row.n_tuned}/{row.n_tasks}"
    return [row.entry, str(row.n_runs), row.updates, seconds, tuned, row.commit, row.tuning or "--"]


def _task(row: Any) -> list[str]:
    outcome = "" if row.outcome == "not told apart" else row.outcome
    scores = [f"{row.mine_score:.1f}", f"{row.rival_score:.1f}"]
    return [row.name, *scores, _span(row.difference, row.low, row.high), _p(row.p), outcome]


def _statistics(row: Any) -> list[list[str]]:
    """IQM, mean, median and optimality gap of both."""
    lines = []
    names = {"iqm": "IQM", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}
    for name, words in names.items():
        a, b = getattr(row, f"mine_{name}"), getattr(row, f"rival_{name}")
        if np.isnan(a):
            continue
        tested = name == "iqm"
        span = _span(row.difference, row.low, row.high) if tested else f"{a - b:+.1f}"
        lines.append([words, f"{a:.1f}", f"{b:.1f}", span, _p(row.p) if tested else ""])
    return lines


def _improvement(row: Any, mine: str) -> str:
    found = bounds(100 * row.improvement_low, 100 * row.improvement_high, 0)
    share = f"{100 * row.improvement:.0f} %{found}"
    return f"probability that a run of {_cut(mine, 24)} is the better one: {share}"


def _span(point: float, low: float, high: float) -> str:
    return f"{point:+.1f}{bounds(low, high)}"


def _p(p: float) -> str:
    return "--" if np.isnan(p) else spelt_p(p).removeprefix("p = ").removeprefix("p ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(text: str, indent: str = "") -> list[str]:
    # p stays on the line of its value
    text = text.replace("p = ", "p\xa0=\xa0").replace("p < ", "p\xa0<\xa0")
    lines = textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\xa0", " ") for line in lines]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, numbers to the right; the last one is wrapped."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    room = max(12, _WIDTH - sum(widths[:-1]) - 2 * (len(widths) - 1))
    words = ("task", "entry", "tuned", "commit", "tuning", "")
    lines = []
    for line in table:
        cells = [
            cell.ljust(width) if name in words else cell.rjust(width)
            for cell, width, name in zip(line[:-1], widths, head)
        ]
        last = textwrap.wrap(line[-1], room) or [""]
        lead = "  ".join(cells) + "  "
        lines += [(lead if i == 0 else " " * len(lead)) + part for i, part in enumerate(last)]
    return [line.rstrip() for line in lines]


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table in JSON values, None for what is not a number."""
    rows = table.to_dict("records")
    return [{str(k): _value(v) for k, v in row.items()} for row in rows]


def _value(value: Any) -> Any:
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if np.isfinite(value) else None
