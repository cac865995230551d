"""The table of launches: what a step of each method launches on a GPU, and whether that has grown.

    offbench speed --audit launches=true [methods=[iql]]    writes results/launches.csv anew

Counts belong to the versions of torch and triton in the table. `before` is the number for each minibatch
that a row had when it was first written, and stays.
"""

import csv
import io
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from offbench.errors import UserError
from offbench.io import atomic_write, read_csv
from offbench.speed.contenders import check_shipped, shipped
from offbench.speed.lowering import Launches, can_lower, launches

COLUMNS = (
    "method hidden seeds batch_size card kernels products other draw minibatches per_minibatch before"
    " gflop mbyte torch triton"
).split()
# beside all methods at SEEDS
LEADING = ("bc", "td3_bc", "iql", "acsac")
SEEDS = 16


class Case(NamedTuple):
    """What a row of the table is counted for."""

    method: str
    seeds: int = SEEDS
    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    card: str = "h100"

    @property
    def key(self) -> dict[str, str]:
        words = self._asdict() | {"hidden": "x".join(map(str, self.hidden))}
        return {name: str(value) for name, value in words.items()}

    def measure(self) -> Launches:
        return launches(
            self.method,
            seeds=self.seeds,
            hidden=self.hidden,
            batch_size=self.batch_size,
            card=self.card,
        )


def cases(methods: Sequence[str] = (), cards: Sequence[str] = ("h100",)) -> list[Case]:
    """The rows of the table, of some methods or all."""
    check_shipped(methods)
    names = methods or list(shipped())
    found = [Case(name, card=card) for card in cards for name in names]
    return found + [Case(name, 1, card=card) for card in cards for name in names if name in LEADING]


def row_of(case: Case, counted: Launches, before: str = "") -> dict[str, str]:
    """A row of the table."""
    per = f"{counted.per_minibatch:.1f}"
    numbers = {n: str(getattr(counted, n)) for n in COLUMNS[5:10]}
    work = {"gflop": f"{counted.flops / 1e9:.3f}", "mbyte": f"{counted.bytes / 1e6:.1f}"}
    return (
        case.key
        | numbers
        | {"per_minibatch": per, "before": before or per}
        | work
        | {"torch": torch.__version__, "triton": _triton()}
    )


def _triton() -> str:
    return version("triton") if can_lower() else ""


def grown(row: dict[str, str], counted: Launches) -> str | None:
    """One line where a step launches more than the table says, None where it does not."""
    names = ("kernels", "products", "other", "draw")
    before = [int(row[n]) for n in names]
    now = [getattr(counted, n) for n in names]
    if sum(now) <= sum(before):
        return None
    words = [
        f"{n} {a} -> {b}" if a != b else f"{n} {a}"
        for n, a, b in zip(names, before, now, strict=True)
    ]
    return (
        f"{row['method']} x{row['seeds']} on {row['card']} launches more: {', '.join(words)}; if it has to:"
        f" offbench speed --audit launches=true methods=[{row['method']}]"
    )


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file. Raises UserError for another kind of file."""
    if not path.exists():
        return []
    rows = read_csv(path)
    if rows and list(rows[0]) != COLUMNS:
        raise UserError(f"{path} is no table of launches: its columns are {', '.join(rows[0])}")
    return rows


def rewrite(
    path: Path, wanted: Sequence[Case], say: Callable[[str], None] = lambda line: None
) -> list[dict[str, str]]:
    """Counts these rows anew and writes the table after each; other rows stay. Returns those counted."""
    table = {_key(row): row for row in read(path)}
    made = []
    for case in wanted:
        old = table.get(key := _key(case.key))
        row = row_of(case, case.measure(), old["before"] if old else "")
        table[key] = row
        made.append(row)
        _write(path, list(table.values()))
        say(f"{case.method} x{case.seeds} {case.card}: {row['per_minibatch']} for each minibatch")
    return made


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[n] for n in COLUMNS[:5])


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    order = sorted(rows, key=lambda r: (r["card"], -int(r["seeds"]), r["method"]))
    writer.writerows(order)
    atomic_write(path, out.getvalue().encode())
