"""`offbench curves`: what the terminal shows, and the files."""

import pandas as pd
import pytest
from support.records import episodes, provenance, spec

from offbench.bench.plan import plan
from offbench.cli import main
from offbench.cli.curves import short_count, task_lines
from offbench.results.curves import curve_table, updates_needed
from offbench.results.curves_figure import draw_figure
from offbench.results.drawing import save_png
from offbench.results.store import Store

WHAT = [
    "methods=[bc]",
    "task=offbench/hopper/medium-replay-v0",
    "n_updates=20",
    "eval.episodes=1",
    "method.hidden=[8]",
    "seeds=[0,1]",
    "jobs=1",
    "device=cpu",
]


def stored(root, updates: list[int], entries: list[str], last: int = 1_000_000):
    """(episodes, runs) of records with monitor evaluations at some updates."""
    store = Store(root)
    for entry in entries:
        for seed in (0, 1, 2):
            run = spec(seed=seed, method=entry[:9], n_updates=last)
            rows = [episodes(3, update=last)]
            rows += [episodes(2, update=u, stream="monitor", score=u / last * 90) for u in updates]
            store.append(run, pd.concat(rows, ignore_index=True), provenance(entry=entry))
    return store.episodes(), store.runs()


@pytest.mark.parametrize("n", [1, 4, 9, 25])
def test_a_table_fits_80_columns_and_has_the_last_score_with_its_interval(tmp_path, n):
    updates = [1_000_000 * (i + 1) // (n + 1) for i in range(n)]
    names = ["bc", "acsac(hidden=[512,512])+chunk3"]
    table = curve_table(*stored(tmp_path, updates, names))
    lines = task_lines("toy/point-v0", table, updates_needed(table))
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    head, first, second = lines[1:]
    assert head.split()[-2:] == ["90", "%"] and "1M" in head
    assert first.startswith("acsac") and second.startswith("bc")
    for line in (first, second):
        assert "50" in line and "[" in line and "  3" in line
    assert len(second[: second.index("[")].split()) == 2 + min(n, 9)


def test_updates_are_short():
    assert [short_count(x) for x in (5, 1200, 100_000, 1e6, 2.5e6)] == [
        "5",
        "1.2k",
        "100k",
        "1M",
        "2.5M",
    ]


@pytest.mark.parametrize("entries", [2, 9])
def test_a_picture_is_written_whole(tmp_path, entries):
    frames = stored(tmp_path / "r", [250_000, 500_000], [f"m{i}" for i in range(entries)])
    save_png(draw_figure(curve_table(*frames), "title"), tmp_path / "x.png", dpi=150)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.glob("*.png*")] == ["x.png"]


@pytest.mark.parametrize(("n_tasks", "n_entries"), [(1, 2), (3, 7), (4, 7), (5, 9)])
def test_the_legend_of_a_picture_lies_free_and_within_it(tmp_path, n_tasks, n_entries):
    table = curve_table(
        *stored(tmp_path, [250_000], [f"m{i}+nstep10+aw" for i in range(n_entries)])
    )
    tasks = [f"offbench/halfcheetah/medium-replay-v{i}" for i in range(n_tasks)]
    figure = draw_figure(pd.concat([table.assign(task=task) for task in tasks]), "title")
    figure.draw_without_rendering()
    legends = [x.get_legend() for x in figure.axes if x.get_legend()] + figure.legends
    (legend,) = [x.get_window_extent() for x in legends]
    assert figure.bbox.contains(legend.x0, legend.y0) and figure.bbox.contains(legend.x1, legend.y1)
    panels = [x.get_tightbbox() for x in figure.axes if x.axison]
    assert not any(legend.overlaps(panel) for panel in panels)
    if figure._supxlabel:
        label = figure._supxlabel.get_window_extent()
        assert not label.overlaps(legend) and 0 <= label.x0 and label.x1 <= figure.bbox.x1


@pytest.mark.env
def test_curves_of_a_run_are_printed_and_written(tmp_path, capsys):
    results = f"results={tmp_path}"
    assert main(["bench", *WHAT, "eval.monitor_at=[0.5]", "eval.monitor_episodes=1", results]) == 0
    capsys.readouterr()
    assert main(["curves", *WHAT, results]) == 0
    out = capsys.readouterr().out
    assert "updates" in out and "This is no ranking" in " ".join(out.split())
    table = pd.read_csv(tmp_path / "board" / "quick-part-curves.csv")
    assert table["update"].tolist() == [10, 20] and table["stream"].tolist() == ["monitor", "test"]
    assert table["n_seeds"].tolist() == [2, 2]
    expected = Store(tmp_path).episodes().groupby("update")["score"].mean()
    assert table["mean"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert (tmp_path / "board" / "quick-part-curves.png").exists()


@pytest.mark.env
@pytest.mark.parametrize("command", [["curves"], ["curves", "--pulls", "3"]])
def test_what_cannot_be_written_is_said_in_a_line(command, tmp_path, capsys):
    args = [*WHAT, f"results={tmp_path}"]
    store = Store(tmp_path)
    for cell in plan(args, bench=True).cells:
        for run in cell.runs():
            rows = [episodes(1, update=20), episodes(1, update=10, stream="monitor")]
            store.append(run, pd.concat(rows, ignore_index=True), provenance(entry=cell.entry))
    (tmp_path / "board").write_text("no folder")
    assert main([*command, *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("offbench: cannot write") and said.count("\n") == 1


def test_without_monitor_episodes_it_is_said_how_to_get_them(tmp_path, capsys):
    results = f"results={tmp_path}"
    assert main(["curves", *WHAT, results]) == 2
    assert "nothing recorded" in capsys.readouterr().err
    assert main(["bench", *WHAT, "eval.monitor_at=[]", results]) == 0
    capsys.readouterr()
    assert main(["curves", *WHAT, results]) == 2
    assert "run with eval.monitor_at=[0.5]" in capsys.readouterr().err
    assert not list((tmp_path / "board").glob("*curves*"))
