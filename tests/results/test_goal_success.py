"""Success at each goal, behind the one cell of a goal-conditioned task."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.boards import evidence, frames

from offbench.results.board.check import check
from offbench.results.board.evidence import Evidence, read_evidence, write_evidence
from offbench.results.board.explain import explanation
from offbench.results.board.formats import to_json, write
from offbench.results.board.goals_text import to_table
from offbench.results.board.leaderboard import Asked
from offbench.results.board.render import to_csv, to_markdown
from offbench.results.report import payload

MAZE, PLAIN = "toy/maze-v0", "toy/plain-v0"


@pytest.fixture(scope="module")
def found() -> Evidence:
    """Two entries on a task of five goals, ten episodes each of three seeds, and on one without."""
    draw = np.random.default_rng(0)
    scores = {(e, MAZE): 100.0 * (draw.random((3, 10)) < p) for e, p in (("x", 0.8), ("y", 0.3))}
    scores |= {(e, PLAIN): draw.normal(50, 5, (3, 10)) for e in "xy"}
    episodes, runs = frames(scores)
    goals = pd.array(episodes["episode"] % 5 + 1, "Int64")
    episodes["task_id"] = pd.Series(goals).where(episodes["task"] == MAZE)
    # a monitor evaluation, and one of an earlier update, are no test
    monitor = episodes.head(10).assign(stream="monitor", score=100.0)
    early = episodes.head(10).assign(update=50, score=100.0)
    episodes = pd.concat([episodes, monitor, early], ignore_index=True)
    shuffled = episodes.sample(frac=1, random_state=0)
    return Evidence(
        episodes=shuffled, runs=runs, tasks=(MAZE, PLAIN), asked=Asked(), title="toy v1"
    )


def test_each_goal_has_the_mean_of_its_own_test_episodes(found):
    table = found.board(reps=20).goals
    assert len(table) == 2 * 5 and set(table["task"]) == {MAZE}
    tests = found.episodes[found.episodes["stream"] == "test"]
    tests = tests[tests["update"] == 100]
    for row in table.itertuples():
        mine = tests[(tests["entry"] == row.entry) & (tests["task"] == MAZE)]
        assert row.mean == mine[mine["episode"] % 5 == row.task_id - 1]["score"].mean()
        assert 0 <= row.low <= row.mean <= row.high <= 100
        assert (row.n_seeds, row.n_episodes) == (3, 6)
    cells = found.board(reps=20).cells.set_index(["entry", "task"])["mean"]
    for entry, part in table.groupby("entry"):
        assert part["mean"].mean() == pytest.approx(cells[entry, MAZE])


def test_a_report_has_the_goals_as_the_board_spells_them(found):
    goals = payload._goals(found.board(reps=20))
    assert goals["head"] == ["entry", "task", *(f"goal {n}" for n in range(1, 6))]
    assert [line[:2] for line in goals["lines"]] == [["x", MAZE], ["y", MAZE]]
    shown = to_markdown(found.board(reps=20))
    for line in goals["lines"]:
        assert f"| {' | '.join(line)} |" in shown
    plain = found.episodes[found.episodes["task"] == PLAIN].drop(columns="task_id")
    without = replace(
        found, episodes=plain, runs=found.runs[found.runs["task"] == PLAIN], tasks=(PLAIN,)
    )
    assert payload._goals(without.board(reps=20)) is None


def test_every_format_has_the_goals_and_the_rows_make_them_again(found, tmp_path):
    board = found.board()
    write(board, tmp_path, "toy")
    write_evidence(found, tmp_path, "toy")
    again = read_evidence(tmp_path, "toy").board()
    assert to_csv(again) == to_csv(board) and to_markdown(again) == to_markdown(board)
    lines = json.loads(to_json(board))["goals"]
    rows = [r for r in csv.DictReader(io.StringIO(to_csv(board))) if "task_id" in r["statistic"]]
    assert len(lines) == len(rows) == 10
    for line, row in zip(lines, rows, strict=True):
        assert row["statistic"] == f"mean of task_id {line['task_id']}"
        assert float(row["value"]) == pytest.approx(line["mean"], abs=1e-3)
    assert "| entry | task | goal 1 | goal 2 | goal 3 | goal 4 | goal 5 |" in to_markdown(board)
    assert "goals" in dict(explanation(board)) and to_table(board).row_count == 2
    # what is written is checked: another number is named
    assert check(tmp_path / "toy.csv") == []
    text = (tmp_path / "toy.json").read_text()
    (tmp_path / "toy.json").write_text(
        text.replace('"task_id": 2, "mean": ', '"task_id": 2, "mean": 1')
    )
    assert any("goals" in line for line in check(tmp_path / "toy.csv"))


def test_boards_without_goals_are_as_they_were(tmp_path):
    plain = evidence()
    board = plain.board(reps=20)
    assert board.goals.empty and "goals" not in json.loads(to_json(board))
    assert "goals" not in dict(explanation(board))
    written = write_evidence(plain, tmp_path, "toy")
    nothing = pd.array([None] * len(plain.episodes), "Int64")
    null = Evidence(**{**vars(plain), "episodes": plain.episodes.assign(task_id=nothing)})
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_evidence(null, tmp_path, "toy")] == before
    assert null.board(reps=20).goals.empty
