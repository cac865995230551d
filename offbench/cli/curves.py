"""`offbench curves`: the learning curves of recorded runs, in the terminal, as csv and as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offbench.cli.console import make_console, print_wrapped
from offbench.cli.recorded import board_folder, board_name, in_order, read_recorded
from offbench.errors import UserError, writing
from offbench.results.names import shortened

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 80
# at most so many evaluations are shown before the last
_POINTS = 9

_NOTE = (
    "Mean scores of n seeds. The last column is the test evaluation of the board, with its 95 % interval;"
    " those before it are a few monitor episodes on start states of their own. 90 %: the first evaluation"
    " that reaches 90 % of the best entry's last score. This is no ranking: the best of several noisy"
    " evaluations is too good."
)


def show_curves(args: Sequence[str], *, pulls: int | None = None) -> int:
    """`offbench curves`: prints and writes the learning curves of what is recorded.

    With `pulls`, what is scored by who may play so many episodes online (`offbench.cli.online`).
    """
    if pulls is not None:
        from offbench.cli.online import show_online

        return show_online(args, pulls)
    from offbench.io import atomic_write
    from offbench.results.curves import curve_table, updates_needed
    from offbench.results.curves_figure import draw_figure
    from offbench.results.drawing import save_png

    found, console = read_recorded(args), make_console()
    wanted = found.plan
    table = curve_table(found.episodes, found.runs, unscaled=wanted.unscaled)
    watched = table[table["stream"] == "monitor"]
    if watched.empty:
        raise UserError(
            f"no monitor episodes recorded in {wanted.settings.results}; run with eval.monitor_at=[0.5]"
            " (and another results=, as what is recorded is not trained again)"
        )
    table = in_order(table, wanted, "update")
    needed = updates_needed(table)
    for task, rows in table.groupby("task", sort=False):
        for line in task_lines(str(task), rows, needed):
            console.print(line, markup=False, soft_wrap=True)
        console.print()
    print_wrapped(_NOTE, console)
    has = set(zip(watched["entry"], watched["task"]))
    if without := sorted({e for e, t in zip(table["entry"], table["task"]) if (e, t) not in has}):
        print_wrapped(f"no monitor episodes of some tasks: {', '.join(without)}", console)
    keys = zip(table["entry"], table["task"], strict=True)
    table = table.assign(updates_to_90_percent=[needed[key] for key in keys])
    folder, name = board_folder(wanted), board_name(wanted)
    paths = [folder / f"{name}-curves.{kind}" for kind in ("csv", "png")]
    text = table.round(4).to_csv(index=False, lineterminator="\n")
    title = f"{wanted.name} v{wanted.suite['version']}, mean over seeds and 95 % interval"
    with writing(folder):
        atomic_write(paths[0], text.encode())
        save_png(draw_figure(table, title), paths[1], dpi=150)
    console.print(f"written: {', '.join(map(str, paths))}", soft_wrap=True)
    return 0


def task_lines(task: str, table: "pd.DataFrame", needed: "pd.Series") -> list[str]:
    """The curves on one task, a line per entry, in at most 80 columns.

    Args:
        table: the rows of `curve_table` of one task.
        needed: of `offbench.results.curves.updates_needed`.
    """
    early = table[table["stream"] == "monitor"]
    shown = _spread(sorted(early["update"].unique()), _POINTS)
    digits, width = (1, 6) if len(shown) <= 5 else (0, 5)
    last = sorted(table.loc[table["stream"] == "test", "update"].unique())
    heads = [*(short_count(u) for u in shown), "/".join(map(short_count, last))]
    tails = {
        entry: f"[{row.low:.{digits}f}, {row.high:.{digits}f}]" if row.low == row.low else ""
        for entry, row in zip(table["entry"], table.itertuples())
        if row.stream == "test"
    }
    side = max(map(len, tails.values()), default=0)
    room = _WIDTH - width * len(shown) - max(width, len(heads[-1]) + 1) - side - 1 - 3 - 7
    names = max(8, min(room, table["entry"].str.len().max()))
    entries = list(dict.fromkeys(table["entry"]))
    short = dict(zip(entries, shortened(entries, names), strict=True))
    final = max(width, len(heads[-1]) + 1)
    head = "".join(f"{x:>{width}}" for x in heads[:-1]) + f"{heads[-1]:>{final}}"
    lines = [task, f"{'updates':{names}}{head} {'':{side}}{'n':>3}{'90 %':>7}"]
    for entry, curve in table.groupby("entry", sort=False):
        at = dict(zip(curve["update"], curve["mean"]))
        test = curve[curve["stream"] == "test"].iloc[-1]
        means = "".join(f"{at[u]:{width}.{digits}f}" if u in at else " " * width for u in shown)
        got = needed[entry, task]
        lines.append(
            f"{short[entry]:{names}}{means}{test['mean']:{final}.{digits}f} {tails[entry]:{side}}"
            f"{test['n_seeds']:>3}{short_count(got) if got == got else '':>7}"
        )
    return [line.rstrip() for line in lines]


def _spread(updates: list[int], n: int) -> list[int]:
    """At most n of the updates, evenly spread, the last among them."""
    if len(updates) <= n:
        return updates
    return [updates[round((i + 1) * len(updates) / n) - 1] for i in range(n)]


def short_count(n: float) -> str:
    """1200 as 1.2k, a million as 1M."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if n >= size:
            return f"{n / size:.3g}{letter}"
    return f"{n:g}"
