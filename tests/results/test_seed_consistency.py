"""Divergences of pairs of seeds: their files, their mean, and the column of a board."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from results.test_curves import TASK, recorded
from scipy import special

from offbench.errors import UserError
from offbench.results.board.check import check
from offbench.results.board.evidence import Evidence, pairs_path, read_evidence, write_evidence
from offbench.results.board.explain import explanation
from offbench.results.board.formats import to_json, write
from offbench.results.board.latex import to_latex
from offbench.results.board.leaderboard import Asked
from offbench.results.board.render import to_csv, to_markdown, to_terminal
from offbench.results.consistency import (
    COLUMNS,
    cell_consistency,
    mean_divergence,
    path_of,
    read_pairs,
    write_pairs,
)


def square(points) -> np.ndarray:
    return np.abs(np.subtract.outer(points, points))


def pairs(table, entry="iql", task=TASK, kind="action") -> pd.DataFrame:
    lines = [
        (task, entry, kind, i, j, f"{entry}-{task}-{i}", f"{entry}-{task}-{j}", table[i, j], 100)
        for i, j in itertools.combinations(range(len(table)), 2)
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def test_the_mean_is_over_pairs_and_the_interval_leaves_out_seeds():
    table = square([0.0, 0.1, 0.5])
    found = mean_divergence([table])
    assert found.point == pytest.approx((0.1 + 0.5 + 0.4) / 3)
    # without each seed one pair is left
    left = np.array([0.4, 0.5, 0.1])
    error = np.sqrt(2 / 3 * np.square(left - left.mean()).sum())
    assert found.high == pytest.approx(found.point + special.stdtrit(2, 0.975) * error)
    assert found.low == 0.0
    assert np.isnan(mean_divergence([table[:2, :2]])[1:]).all()
    two = mean_divergence([table, np.zeros((4, 4))])
    assert two.point == pytest.approx(found.point / 2)
    assert two.high - two.point == pytest.approx((found.high - found.point) / 2)


def test_intervals_over_seeds_hold_the_mean_where_pairs_taken_for_independent_would_not():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200_000, 2))
    truth, hits, naive = np.abs(draws[:, 0] - draws[:, 1]).mean(), 0, 0
    for _ in range(400):
        table = square(rng.normal(size=8))
        found = mean_divergence([table])
        hits += found.low <= truth <= found.high
        own = table[np.triu_indices(8, 1)]
        naive += abs(own.mean() - truth) <= 2.05 * own.std(ddof=1) / np.sqrt(len(own))
    assert hits >= 352 and naive < hits - 60


def test_rows_are_written_and_read_where_both_runs_count(tmp_path):
    runs = recorded({"iql": {9: [[1.0]] * 3}})[1]
    rows = pairs(square([0.0, 0.1, 0.5]))
    path = path_of(tmp_path, "toy", TASK, "iql")
    write_pairs(path, rows)
    pd.testing.assert_frame_equal(read_pairs(tmp_path, "toy", runs), rows)
    assert len(read_pairs(tmp_path, "toy", runs[runs["seed"] < 2])) == 1
    assert read_pairs(tmp_path, "other", runs).empty
    path.write_text("something else\n")
    with pytest.raises(UserError, match="has no rows of consistency"):
        read_pairs(tmp_path, "toy", runs)


def board_of(rows) -> Evidence:
    scores = {9: [[10.0, 12.0], [20.0, 22.0], [15.0, 18.0]]}
    episodes, runs = recorded({"iql": scores, "bc": scores})
    return Evidence(
        episodes=episodes, runs=runs, tasks=(TASK,), asked=Asked(), title="toy", pairs=rows
    )


def test_a_board_shows_a_column_explains_it_and_can_be_checked(tmp_path, capsys):
    from rich.console import Console

    rows = pairs(square([0.0, 0.1, 0.5]))
    js = pairs(np.full((3, 3), 0.25), kind="js")
    evidence = board_of(pd.concat([rows, js], ignore_index=True))
    board = evidence.board()
    lines = [line for line in to_markdown(board).splitlines() if line.startswith("| ")]
    assert lines[0].endswith("| consistency |")
    ends = {line.split("|")[2].strip(): line.split("|")[-2].strip() for line in lines[1:4]}
    assert ends["iql"].startswith("0.333 [0.000, ") and ends["bc"] == "--"
    # what cannot be compared between methods is in the csv alone
    assert "0.25" in to_csv(board) and "consistency, js" in to_csv(board)
    assert '"entry_consistency"' in to_json(board)
    assert "0.333" in dict(explanation(board))["consistency"]
    heading, *rows = [x for x in to_latex(board).splitlines() if x.endswith(r" \\")]
    assert heading.endswith(r" & consistency \\")
    ends = {row.split(" & ")[1]: row.split(" & ")[-1] for row in rows}
    assert ends["iql"].startswith(r"0.333\,[0.000, ") and ends["bc"] == r"-- \\"
    assert "mean over pairs of seeds" in to_latex(board)
    to_terminal(board, Console(width=80))
    out = capsys.readouterr().out
    assert "consistency" in out and "0.333" in out
    write(board, tmp_path, "toy")
    write_evidence(evidence, tmp_path, "toy")
    assert check(tmp_path / "toy.md") == []
    text = pairs_path(tmp_path, "toy").read_text()
    pairs_path(tmp_path, "toy").write_text(text.replace("0.5,", "0.9,"))
    assert any("0.333" in line for line in check(tmp_path / "toy.md"))
    # without rows the board is what it was, and an older file is taken away
    write_evidence(board_of(None), tmp_path, "toy")
    assert not pairs_path(tmp_path, "toy").exists()
    assert "consistency" not in to_markdown(read_evidence(tmp_path, "toy").board())
    unmeasured = board_of(None).board()
    assert "consistency" not in to_csv(unmeasured) + to_latex(unmeasured)


def test_of_several_tasks_it_is_said_how_many_were_measured():
    rows = pairs(square([0.0, 0.1, 0.5]))
    found = cell_consistency(rows)
    assert found["n_seeds"].tolist() == [3] and found["states"].tolist() == [100]
    board = board_of(rows).board()
    wide = replace(board, tasks=(TASK, "toy/other"))
    from offbench.results.board.consistency_text import column

    assert column(wide)["iql"].endswith("(1/2 tasks)")


def test_a_latex_table_has_the_column_once_and_the_tasks_have_room_beside_it():
    board = board_of(pairs(square([0.0, 0.1, 0.5]))).board()
    names = [f"toy/a-task-of-a-long-name-{i}" for i in range(9)]
    cells = pd.concat([board.cells.assign(task=name) for name in names], ignore_index=True)
    wide = replace(board, tasks=tuple(names), cells=cells)
    tables = to_latex(wide).split(r"\end{table}")[:-1]
    heads = [next(x for x in t.splitlines() if "entry &" in x).split(" & ") for t in tables]
    bare = replace(wide, consistency=pd.DataFrame(), entry_consistency=pd.DataFrame())
    before = to_latex(bare).split(r"\end{table}")[0].split(r"\begin{tabular}")[1]
    assert "consistency" in heads[0][-1] and not any("consistency" in x[-1] for x in heads[1:])
    assert r" {\footnotesize(1/9 tasks)}" in tables[0]
    # two columns less for tasks than without
    assert len(heads[0]) - 4 < before.count("r", 0, before.index("@{}}")) - 1
    assert sum(len(head) - 2 for head in heads) == 9 + 2
