"""`offbench curves --pulls N`: what entries score when some policies of each may be tried online."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offbench.cli.console import make_console, print_table, print_wrapped
from offbench.cli.recorded import board_folder, board_name, in_order, read_recorded
from offbench.errors import UserError, writing
from offbench.results.words import bounds

if TYPE_CHECKING:
    import pandas as pd

_NOTE = (
    "Expected score of the policy that is kept after so many episodes online: of some policies of an entry a"
    " bandit (UCB, alpha 2, in points) tries one an episode, and the one that looks best counts by the mean of its"
    " test episodes; at least 1,000 repetitions. In brackets the 95 % interval over policies that could have been trained."
    " One pull is the mean over policies, as on the board. n: how many policies are tried, of how many."
)


def show_online(args: Sequence[str], pulls: int) -> int:
    """Prints the expected score after 1, 10, 50 and 200 episodes, and writes its curve."""
    from offbench.io import atomic_write
    from offbench.results import markdown
    from offbench.results.drawing import save_png
    from offbench.results.online_budget import online_table, remarks
    from offbench.results.online_budget_figure import draw_online_figure

    if pulls < 1:
        raise UserError(f"--pulls {pulls}: the number of episodes is at least 1")
    found, console = read_recorded(args), make_console()
    wanted, episodes = found.plan, found.episodes
    if episodes.empty:
        raise UserError(f"{wanted.name}: no episodes are recorded, so there is nothing to try")
    table = in_order(online_table(episodes, found.runs, pulls=pulls), wanted, "pulls")
    parts = []
    for task, mine in table.groupby("task", sort=False):
        head, rows = columns_of(mine, digits=0)
        print_table(console, rows, header=head, title=str(task), whole=range(1, len(head)))
        console.print()
        parts += [f"## {task}", markdown.table(*columns_of(mine))]
    notes = list(remarks(table, episodes, found.runs))
    print_wrapped(_NOTE, console)
    for note in notes:
        print_wrapped(f"* {note}", console)
    folder, name = board_folder(wanted), board_name(wanted)
    paths = [folder / f"{name}-online.{kind}" for kind in ("csv", "md", "png")]
    title = f"{wanted.name} v{wanted.suite['version']}: score of {pulls} episodes online"
    text = table.round(4).to_csv(index=False, lineterminator="\n")
    lines = "\n".join(f"* {note}" for note in (_NOTE, *notes))
    with writing(folder):
        atomic_write(paths[0], text.encode())
        atomic_write(paths[1], ("\n\n".join([f"# {title}", *parts, lines]) + "\n").encode())
        save_png(draw_online_figure(table, f"{title}, 95 % interval"), paths[2], dpi=150)
    console.print(f"written: {', '.join(map(str, paths))}", soft_wrap=True)
    return 0


def columns_of(table: "pd.DataFrame", digits: int = 1) -> tuple[list[str], list[list[str]]]:
    """The table of one task: a line per entry, a column for 1, 10, 50, 200 pulls and the last.

    `digits`: of the bounds.
    """
    from offbench.results.online_budget import SHOWN

    last = int(table["pulls"].max())
    shown = [n for n in SHOWN if n < last] + [last]
    rows = []
    for entry, mine in table.groupby("entry", sort=False):
        at = mine.set_index("pulls")
        first = at.iloc[0]
        of = f"{first['drawn']}/{first['policies']}"
        rows.append([str(entry), of, *(_spelt(at.loc[n], digits) for n in shown)])
    words = [f"{n} pull" if n == 1 else f"{n} pulls" for n in shown]
    return ["entry", "n", *words], rows


def _spelt(row: "pd.Series", digits: int) -> str:
    return f"{row['score']:.1f}{bounds(row['low'], row['high'], digits)}"
