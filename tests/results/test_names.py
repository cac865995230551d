"""Long names where there is little room: no two that differ look the same."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.random_boards import made_board, with_consistency

from offbench.results.board.render import column_headings, to_terminal
from offbench.results.names import folded, shortened

LONG = [f"mymodule.MyMethod(hidden=[512,512],lr=0.000{n})+chunk{n}" for n in (1, 2, 3)]
ENTRIES = ["td3_bc+pgd+unguided", "td3_bc+pgd+unguided2", "iql", *LONG]
TASKS = [f"offbench/a{n}/b-v0" for n in range(8)]


@given(
    st.lists(st.text("ab+,(", min_size=1, max_size=30), min_size=1, max_size=6), st.integers(6, 20)
)
def test_shortened_names_fit_and_stay_apart(names, width):
    found = shortened(names, width)
    assert max(map(len, found)) <= width
    pairs = set(zip(names, found))
    assert len(pairs) == len(set(names)) == len({short for _, short in pairs})


@given(st.text("ab+,(", max_size=60), st.integers(1, 20))
def test_folded_names_fit_and_lose_nothing(name, width):
    lines = folded(name, width).split("\n")
    assert "".join(lines) == name and max(map(len, lines)) <= width


@pytest.mark.parametrize("n_tasks", [1, 3, 8])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_entry_and_score_is_whole_in_a_terminal(n_tasks, width):
    made = made_board(ENTRIES, TASKS[:n_tasks], monitored=True)
    sink = io.StringIO()
    to_terminal(made[0], Console(file=sink, width=width))
    text = sink.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines()]
    for entry in ENTRIES[:3]:
        assert any(entry in row for row in rows)
    # what is folded lies below, in the same column
    for n in (1, 2, 3):
        assert f"0.000{n})" in text and f"+chunk{n}" in text.replace("\n", "")


def test_the_column_of_consistency_has_whole_names():
    sink = io.StringIO()
    board = with_consistency(made_board(["iql", "bc", *LONG], TASKS[:1]))[0]
    to_terminal(board, Console(file=sink, width=60))
    assert "…" not in sink.getvalue()


def test_headings_of_long_words_lose_nothing():
    found = column_headings(("own/MyLongDatasetOne", "own/MyLongDatasetTwo"))
    assert [x.replace("\n", "") for x in found] == ["MyLongDatasetOne", "MyLongDatasetTwo"]
