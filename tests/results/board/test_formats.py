"""Every format of a board has the numbers of the board."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from support.boards import TASKS, evidence

from offbench.results.board import formats, latex
from offbench.results.board.leaderboard import Board
from offbench.results.board.render import short_names, to_terminal

Numbers = dict[tuple[str, str], tuple[float, ...]]


@pytest.fixture(scope="module")
def board() -> Board:
    return evidence().board(reps=200)


def numbers(text: str) -> tuple[float, ...]:
    """The score and its bounds in a cell of a text table, a rank without its brackets left out."""
    found = [float(x) for x in re.findall(r"-?\d+\.\d+", text.replace(r"$-$", "-"))]
    if "±" in text or r"\pm" in text:
        return found[0], found[0] - found[1], found[0] + found[1]
    return tuple(found[:3])


def of_board(board: Board) -> Numbers:
    cells = {(c.entry, c.task): (c.mean, c.low, c.high) for c in board.cells.itertuples()}
    iqm = {(r.entry, "IQM"): (r.iqm, r.low, r.high) for r in board.aggregate.itertuples()}
    return {key: tuple(x for x in three if np.isfinite(x)) for key, three in (cells | iqm).items()}


def of_json(text: str) -> Numbers:
    found = json.loads(text)
    lines = [(c, c["task"], "mean") for c in found["cells"]]
    lines += [(r, "IQM", "iqm") for r in found["aggregate"]]
    return {
        (x["entry"], task): tuple(v for v in (x[name], x["low"], x["high"]) if v is not None)
        for x, task, name in lines
    }


def of_csv(text: str) -> Numbers:
    rows = [r for r in csv.DictReader(io.StringIO(text)) if r["statistic"] in ("mean", "iqm")]
    rows = [r for r in rows if (r["kind"] == "cell") == (r["statistic"] == "mean")]
    return {
        (r["entry"], r["task"] or "IQM"): tuple(
            float(r[name]) for name in ("value", "low", "high") if r[name]
        )
        for r in rows
    }


def of_markdown(text: str) -> Numbers:
    rows = [
        re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.split("\n\n")[1].splitlines()
    ]
    return {
        (row[1].replace("\\|", "|"), column): numbers(row[2 + place])
        for row in rows[2:]
        for place, column in enumerate([*TASKS, "IQM"])
    }


def of_latex(text: str) -> Numbers:
    return dict(_of_latex(text))


def _of_latex(text: str) -> Iterator[tuple[tuple[str, str], tuple[float, ...]]]:
    for line in text.partition(r"\midrule")[2].splitlines():
        if " & " in line:
            row = line.removesuffix(r" \\").split(" & ")
            entry = row[1].replace(r"\textbar{}", "|").replace("\\", "")
            for place, column in enumerate([*TASKS, "IQM"]):
                yield (entry, column), numbers(row[2 + place])


@pytest.mark.parametrize(
    ("kind", "read", "error"),
    [
        ("json", of_json, 1e-3),
        ("csv", of_csv, 1e-3),
        # a half-width that is written to one digit, about a mean that is
        ("markdown", of_markdown, 0.11),
        ("latex", of_latex, 0.11),
    ],
)
def test_every_format_has_the_numbers_of_the_board(board, kind, read, error):
    expected, found = of_board(board), read(formats.FORMATS[kind](board))
    assert found.keys() == expected.keys() and len(expected) == 5 * 4
    for key, values in expected.items():
        assert len(found[key]) == len(values), (kind, key)
        np.testing.assert_allclose(found[key], values, atol=error, err_msg=f"{kind} {key}")
    assert sum(len(v) == 3 for v in found.values()) == 3 * 4 + 2


def test_every_format_says_which_seeds_are_missing(board):
    short = evidence()
    short = type(short)(
        **{**vars(short), "runs": short.runs[short.runs["run_id"] != "y-toy/b-v0-2"]}
    ).board(reps=50)
    for kind in ("markdown", "latex"):
        assert "3 of 4 seeds" in formats.FORMATS[kind](short)
    row = next(c for c in json.loads(formats.to_json(short))["cells"] if c["n_seeds"] == 3)
    assert (row["entry"], row["n_asked"], row["status"]) == ("y", 4, "partial")
    assert "y,toy/b-v0,mean" in formats.FORMATS["csv"](short)


def test_the_json_has_everything(board):
    found = json.loads(formats.to_json(board))
    assert found["format"] == formats.JSON_FORMAT and found["tasks"] == list(TASKS)
    assert found["sources"][TASKS[0]]["dataset_sha256"] == ["0" * 12]
    assert found["sources"][TASKS[0]]["protocol.episodes"] == ["4"]
    assert found["notes"][-1] == "2 recorded runs are left out"
    assert len(found["pairwise"]) == 3 * 2 and len(found["ranks"]) == 3
    first = next(p for p in found["pairwise"] if (p["entry"], p["rival"]) == ("x", "z"))
    assert first["p"] < 0.05 and first["difference"] > 0 and first["wins"] >= 1
    assert (found["level"], found["resamples"]) == (0.95, 200)


def test_ranks_have_the_bounds_that_the_tests_of_pairs_leave(board):
    pairs = board.pairwise[board.pairwise["p"] < 0.05]
    for row in board.aggregate[board.aggregate["rank"].notna()].itertuples():
        mine = pairs[pairs["entry"] == row.entry]
        assert row.rank_low == 1 + (mine["difference"] < 0).sum()
        assert row.rank_high == 3 - (mine["difference"] > 0).sum()
    assert board.aggregate["rank_high"].isna().sum() == 2
    assert "| 1 [1] | x |" in formats.FORMATS["markdown"](board)


def test_the_terminal_says_who_beats_whom_within_eighty_columns(board):
    from rich.console import Console

    console = Console(width=80, file=io.StringIO(), color_system=None)
    to_terminal(board, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.startswith("1 beats 2 3; 2 beats 3 (IQM, all pairs, p < 0.05") for line in lines
    )


def test_short_names_keep_the_environment():
    assert short_names(("offbench/hopper/medium-replay-v0",)) == ["hopper/medium-replay"]
    assert short_names(("o/cheetah/a-v0", "o/cheetah/b-v0")) == ["cheetah/a", "cheetah/b"]
    assert short_names(("d4rl/hopper-medium-v2",)) == ["hopper-medium"]
    assert short_names(("minari/mujoco/ant/a-v0", "minari/mujoco/ant/b-v1")) == [
        "ant/a-v0",
        "ant/b-v1",
    ]


def test_texts_are_escaped_for_latex():
    assert latex.escaped("a_b 50% & #1 {x} $y$ ~^\\") == (
        r"a\_b 50\% \& \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex.escaped("中 é") == " é"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_compiles_and_fits_its_page(board, tmp_path):
    wide = evidence()
    names = {task: f"toy/{task[4]}-a-long-name-v0" for task in TASKS}
    copies = [f"{x}_{i}" for i in range(4) for x in names.values()]
    wide = type(wide)(
        episodes=wide.episodes,
        runs=wide.runs,
        tasks=(*TASKS, *copies),
        asked=wide.asked,
        title="wide_board",
    ).board(reps=20)
    text = formats.to_latex(board) + formats.to_latex(wide)
    assert text.count(r"\begin{table}") >= 3
    head = "\\documentclass{article}\n\\usepackage[margin=1in]{geometry}\n\\usepackage{booktabs}\n"
    path = tmp_path / "board.tex"
    path.write_text(f"{head}\\begin{{document}}\n{text}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and path.with_suffix(".pdf").stat().st_size > 10_000
