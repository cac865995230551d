"""The table of a speed benchmark: its columns, as text, as files and as a plot."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offbench.speed.contenders import YARDSTICKS

if TYPE_CHECKING:
    from rich.table import Table


class Result(NamedTuple):
    """The rows of a benchmark and the circumstances in which they were measured."""

    # COLUMNS, None where something was not measured
    rows: list[dict[str, Any]]
    # what was measured on what, the ceilings, what failed or was skipped
    facts: dict[str, Any]


COLUMNS = {
    "method": "",
    "hidden": "widths of the hidden layers",
    "backend": "",
    "precision": "",
    "seeds": "stacked",
    "updates_per_s": "minibatches of one seed",
    "seed_updates_per_s": "minibatches of all seeds",
    "ratio": "seed_updates_per_s over the plain loop's",
    "device_us": "time the device computes for one update of the stack (CPU: processor time)",
    "flops_per_s": "of the matrix products",
    "of_matmul": "flops_per_s over that of one large matrix product",
    "of_products": "flops_per_s over that of the same matrix products by themselves",
    "bytes_per_s": "operands and results of every operation, an upper bound where operations are fused",
    "of_copy": "bytes_per_s over that of one large copy",
    "build_s": "tracing, on cudagraph compiling and capturing too",
    "first_s": "the first step, with compile its compilation",
    "peak_mb": "device memory beyond the dataset (CUDA)",
}


_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "method": ("method", str),
    "hidden": ("hidden", str),
    "backend": ("backend", str),
    "precision": ("precision", str),
    "seeds": ("seeds", str),
    "updates_per_s": ("updates/s", "{:,.0f}".format),
    "seed_updates_per_s": ("seed-updates/s", "{:,.0f}".format),
    "ratio": ("vs plain", "{:.2f}x".format),
    "device_us": ("device us", "{:,.0f}".format),
    "flops_per_s": ("GFLOP/s", lambda x: f"{x / 1e9:,.0f}"),
    "of_matmul": ("of matmul", "{:.0%}".format),
    "of_products": ("of same products", "{:.0%}".format),
    "bytes_per_s": ("GB/s", lambda x: f"{x / 1e9:,.1f}"),
    "of_copy": ("of copy", "{:.0%}".format),
    "build_s": ("build s", "{:.1f}".format),
    "first_s": ("first s", "{:.1f}".format),
    "peak_mb": ("MiB", "{:,.0f}".format),
}


def cells_of(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text, without columns that are empty or the same float32 throughout."""
    shown = [
        c
        for c in COLUMNS
        if any(r[c] is not None for r in result.rows)
        and not (c == "precision" and {r[c] for r in result.rows} == {"float32"})
    ]
    body = [
        ["" if row[c] is None else _FORMATS[c][1](row[c]) for c in shown] for row in result.rows
    ]
    return [_FORMATS[c][0] for c in shown], body


def to_rich(result: Result) -> "Table":
    """The table for a terminal."""
    from rich.table import Table

    head, body = cells_of(result)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < 3 else "right")
    for i, line in enumerate(body):
        table.add_row(*line, end_section=i + 1 < len(body) and body[i + 1][:2] != line[:2])
    return table


def to_markdown(result: Result) -> str:
    """The table in Markdown, numbers to the right."""
    head, body = cells_of(result)
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def note(result: Result) -> str:
    """What was measured on what, and how to read the columns."""
    f = result.facts
    ceilings = ", ".join(f"{p} {x / 1e9:,.0f} GFLOP/s" for p, x in f["matmul_flops_per_s"].items())
    lines = [
        f"{f['device']}, {f['threads']} thread{'s' * (f['threads'] != 1)}, torch {f['torch']}, batch {f['batch_size']}, "
        f"{f['obs_dim']} observations, {f['action_dim']} actions, {f['transitions']:,} random transitions; "
        f"best of {f['rounds']} rounds, {f['seconds']:g} s for each row.",
        f"Ceilings of this run: large matrix product {ceilings}; large copy {f['copy_bytes_per_s'] / 1e9:,.1f} GB/s.",
        "An update is a minibatch. plain: torch.nn modules, backward(), torch.optim.Adam(fused=True), "
        ".item() each step, one seed. GFLOP/s: matrix products only. GB/s: operands and results of "
        "every operation, an upper bound where operations are fused.",
    ]
    lines += [f"failed: {label}: {why}" for label, why in f["failed"].items()]
    if f["skipped"]:
        lines.append(f"skipped for lack of time: {', '.join(f['skipped'])}")
    return "\n".join(lines)


def write(result: Result, folder: Path) -> list[Path]:
    """speed.csv, speed.json (the facts) and speed.png, in `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"speed.{kind}" for kind in ("csv", "json", "png")]
    with open(paths[0], "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(result.rows)
    paths[1].write_text(
        json.dumps(result.facts | {"columns": COLUMNS}, indent=1) + "\n", encoding="utf-8"
    )
    try:
        plot(result, paths[2])
    # no matplotlib: the table is there all the same
    except ImportError:
        paths.pop()
    return paths


_COLOURS = {
    "eager": "#2a78b5",
    "compile": "#d9772b",
    "cudagraph": "#1f8a5b",
    "vmap": "#8b6bb1",
    "captured": "#b3445a",
    "unstacked": "#7a6a4f",
    "peer": "#000000",
}
_DASHES = {"float32": "-", "tf32": "--", "bf16": ":"}


def plot(result: Result, path: Path) -> None:
    """Seed-updates per second against seeds, both logarithmic; a panel for each method and network."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in result.rows:
        panels.setdefault(row["method"], {}).setdefault(row["hidden"], []).append(row)
    n_columns = max(map(len, panels.values()), default=1)
    size = (4.2 * n_columns + 1.4, 3.1 * max(1, len(panels)) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(max(1, len(panels)), n_columns, squeeze=False, sharex=True, sharey="row")
    ticks = sorted({row["seeds"] for row in result.rows})
    for axes in grid.flat:
        axes.set_visible(False)
    for line, (method, by_size) in zip(grid, panels.items(), strict=False):
        for axes, (hidden, rows) in zip(line, by_size.items(), strict=False):
            axes.set_visible(True)
            _panel(axes, f"{method}, {hidden}", rows, ticks)
        line[0].set_ylabel("seed-updates per second")
    for axes in grid[-1]:
        axes.set_xlabel("seeds trained together")
    entries = {
        label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels())
    }
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{result.facts['device']}, batch {result.facts['batch_size']}", fontsize=10)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, title: str, rows: list[dict[str, Any]], ticks: list[int]) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        point = (row["seeds"], row["seed_updates_per_s"])
        lines.setdefault((row["backend"], row["precision"]), []).append(point)
    for (backend, precision), points in lines.items():
        x, y = zip(*sorted(points), strict=True)
        if backend == "plain":
            axes.axhline(
                y[0], color="#555555", lw=1.2, ls=(0, (4, 3)), label="plain loop, one seed"
            )
            continue
        label = backend if precision in ("float32", "as it chose") else f"{backend} {precision}"
        style = {"color": _COLOURS[backend], "ls": _DASHES.get(precision, "-"), "label": label}
        single = backend in YARDSTICKS or backend == "peer"
        axes.plot(x, y, marker="D" if single else "o", ms=5 if single else 4, lw=1.8, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.autoscale()
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    marks = [m * 10**e for e in range(9) for m in steps if low <= m * 10**e <= high]
    axes.set_yticks(marks, [f"{m:,.0f}" for m in marks])
    axes.set_title(title, fontsize=10)
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
