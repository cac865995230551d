"""What changed between two boards, and what of it is noise."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special
from support.boards import TASKS, evidence
from support.paths import ROOT

from offbench.errors import UserError
from offbench.results.board import formats
from offbench.results.board.changes import IQM, Scores, changes, read_scores, scores_of

LEVEL = 0.95


def scores(*rows: tuple, sources=None) -> Scores:
    names = ["entry", "task", "value", "low", "high", "n_seeds"]
    return Scores("x", LEVEL, pd.DataFrame(rows, columns=names), sources)


def test_nothing_changed():
    board = scores_of(evidence().board(reps=100))
    found = changes(board, board)
    assert found.sentence.startswith("no score changed: all ") and found.notes == ()


def test_a_change_by_hand():
    """Two standard errors, with as many degrees of freedom as seeds, are added as Satterthwaite does."""
    t = special.stdtrit(5, 0.975)
    old, new = (
        scores(("a", "t", 10, 10 - t, 10 + t, 5)),
        scores(("a", "t", 20, 20 - 2 * t, 20 + 2 * t, 5)),
    )
    (row,) = changes(old, new).scores.itertuples()
    error, freedom = np.sqrt(1 + 4), (1 + 4) ** 2 / ((1 + 16) / 5)
    assert row.difference == 10
    assert row.p == pytest.approx(2 * special.stdtr(freedom, -10 / error))
    half = special.stdtrit(freedom, 0.975) * error
    assert (row.low, row.high) == pytest.approx((10 - half, 10 + half))
    assert row.noise is False
    # and back
    (back,) = changes(new, old).scores.itertuples()
    assert (back.p, back.low, back.high) == pytest.approx((row.p, -row.high, -row.low))


def test_of_a_success_rate_the_bound_that_faces_the_other_counts():
    old, new = scores(("a", "t", 0, 0, 10, 3)), scores(("a", "t", 60, 40, 61, 3))
    (row,) = changes(old, new).scores.itertuples()
    t = special.stdtrit(3, 0.975)
    freedom = (100 + 400) ** 2 / ((100**2 + 400**2) / 3)
    error = np.sqrt(100 + 400) / t
    assert row.p == pytest.approx(2 * special.stdtr(freedom, -60 / error))
    # the side away from 0 has the other bounds: none below 0, one point above 60
    assert row.high == pytest.approx(60 + special.stdtrit(freedom, 0.975) * 1 / t)


def test_p_values_are_corrected_for_all_scores_and_one_seed_is_not_tested():
    t = special.stdtrit(4, 0.975)
    rows = [("a", f"t{i}", 10.0, 10 - t, 10 + t, 4) for i in range(20)]
    moved = [
        ("a", f"t{i}", 10.0 + 4 * (i == 0), 10 - t + 4 * (i == 0), 10 + t + 4 * (i == 0), 4)
        for i in range(20)
    ]
    alone = changes(scores(rows[0]), scores(moved[0])).scores["p"][0]
    found = changes(scores(*rows), scores(*moved))
    assert alone < 0.05 and found.scores["p"][0] == pytest.approx(20 * alone)
    assert found.scores["noise"].tolist()[0] is True
    assert (
        found.sentence
        == "0 of 20 scores moved by more than noise; 1 moved within noise, 19 are the same"
    )
    one = changes(
        scores(("a", "t", 1, np.nan, np.nan, 1)), scores(("a", "t", 50, np.nan, np.nan, 1))
    )
    assert one.scores["noise"].tolist() == [None]


def test_more_than_noise_is_told_from_noise_on_boards():
    old = evidence().board(reps=100)
    small, large = (scores_of(evidence(shift=x).board(reps=100)) for x in (0.5, 40.0))
    assert not changes(scores_of(old), small).scores["noise"].eq(False).any()
    found = changes(scores_of(old), large)
    sure = found.scores[found.scores["noise"].eq(False)]
    assert ("x", TASKS[0]) in set(zip(sure["entry"], sure["task"]))
    assert set(sure["entry"]) == {"x"}
    assert f"x on {TASKS[0]}" in found.sentence


def test_files_and_boards_are_the_same_scores(tmp_path):
    board = evidence().board(reps=100)
    formats.write(board, tmp_path, "toy")
    for name in ("toy.json", "toy.csv"):
        found = changes(read_scores(tmp_path / name), scores_of(board))
        assert found.sentence.startswith("no score changed"), name
        assert len(found.scores) == 11 + 3
    assert "does not say which data" in found.notes[0]
    assert IQM in set(found.scores["task"])


def test_entries_tasks_and_what_is_behind_the_scores_are_named():
    old = evidence(**{"versions.mujoco": "3.11.0"}).board(reps=50)
    later = evidence(entries="xyw", dataset_sha256="1" * 64, **{"versions.mujoco": "3.12.0"})
    later = dataclasses.replace(later, tasks=TASKS[:2]).board(reps=50)
    notes = changes(scores_of(old), scores_of(later)).notes
    assert notes == (
        "entries that are gone: z",
        "entries that were added: w",
        f"tasks that are gone: {TASKS[2]}",
        "all tasks: dataset_sha256 was 000000000000, is 111111111111",
        "all tasks: versions.mujoco was 3.11.0, is 3.12.0",
    )


def test_changes_are_printed_within_eighty_columns():
    from rich.console import Console

    console = Console(width=80, file=io.StringIO(), color_system=None)
    boards = (scores_of(evidence(shift=x).board(reps=50)) for x in (0, 40))
    changes(*boards).to_terminal(console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " moved by more than noise" in lines[0]
    assert "more than noise" in [line.strip() for line in lines]
    assert any(x.startswith("x ") and " -> " in x for x in lines)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "cannot read .*none.csv: no results folder"),
        ("a.csv", "x,y\n1,2\n", "a.csv is no board that `offbench board` wrote"),
        ("a.json", "{", "a.json is no board"),
        ("a.md", "# a", "a board's .json or .csv, or a results folder"),
    ],
)
def test_what_is_no_board_is_refused(tmp_path: Path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_scores(tmp_path / name)


def test_a_committed_board_can_be_compared_with():
    for ending in ("csv", "json"):
        found = read_scores(ROOT / f"results/board/quick.{ending}")
        assert changes(found, found).sentence.startswith("no score changed")
