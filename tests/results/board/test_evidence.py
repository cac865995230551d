"""The rows behind a board: kept exactly, and what a written board is held to."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.boards import evidence
from support.paths import ROOT

from offbench.errors import UserError
from offbench.results.board import formats
from offbench.results.board.check import check, differences
from offbench.results.board.evidence import paths_of, read_evidence, write_evidence
from offbench.results.board.render import to_csv
from offbench.results.cells import scored_cells

FOLDERS = (ROOT / "results/board", ROOT / "results/acsac_small", ROOT / "results/goals")
COMMITTED = sorted(path for folder in FOLDERS for path in folder.glob("*.runs.parquet"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a written board, toy.*"""
    found = evidence()
    formats.write(found.board(), tmp_path, "toy")
    write_evidence(found, tmp_path, "toy")
    return tmp_path


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name.split(".")[0])
def test_every_number_of_a_committed_board_is_that_of_its_rows(path):
    assert check(path) == []


def test_every_committed_board_has_its_rows():
    files = [path for folder in FOLDERS for path in folder.glob("*.csv")]
    boards = {path.stem for path in files if not path.stem.endswith(".consistency")}
    assert boards == {path.name.removesuffix(".runs.parquet") for path in COMMITTED} != set()


def test_rows_make_the_same_board_after_writing_and_reading(written):
    found, kept = evidence(), read_evidence(written, "toy")
    assert to_csv(kept.board()) == to_csv(found.board())
    assert (kept.tasks, kept.title, kept.notes) == (found.tasks, found.title, found.notes)
    runs = kept.runs.set_index("run_id").loc[found.runs["run_id"]].reset_index()
    for name in found.runs:
        expected = found.runs[name].astype(object).where(found.runs[name].notna(), None)
        actual = runs[name].astype(object).where(runs[name].notna(), None)
        assert list(actual) == list(expected), name
    names = ["run_id", "entry", "task", "seed", "episode", "env_seed", "score"]
    order = ["run_id", "episode"]
    rows = [
        e[names].astype({"run_id": str}).sort_values(order) for e in (found.episodes, kept.episodes)
    ]
    for name in names:
        assert list(rows[0][name]) == list(rows[1][name]), name


def test_a_map_of_a_maze_is_kept(tmp_path):
    found, name = evidence(), "env.kwargs.maze_map"
    # as antmaze's records have it
    runs = found.runs.assign(**{name: [([1, "g"], [1, 1])] * len(found.runs)})
    write_evidence(type(found)(**{**vars(found), "runs": runs}), tmp_path, "toy")
    assert read_evidence(tmp_path, "toy").runs[name][0] == ([1, "g"], [1, 1])


def test_the_same_rows_are_the_same_bytes_in_whatever_order_they_come(written):
    before = [path.read_bytes() for path in paths_of(written, "toy")]
    found = evidence()
    shuffled = {
        name: getattr(found, name).sample(frac=1, random_state=1) for name in ("episodes", "runs")
    }
    write_evidence(type(found)(**{**vars(found), **shuffled}), written, "toy")
    assert [path.read_bytes() for path in paths_of(written, "toy")] == before


def test_an_untouched_board_is_that_of_its_rows_by_any_of_its_files(written):
    for name in ("toy.csv", "toy.md", "toy.json", "toy.tex", "toy.runs.parquet"):
        assert check(written / name) == []


@pytest.mark.parametrize("ending", ["csv", "md", "json", "tex"])
def test_one_changed_digit_is_told_with_its_place(written, ending):
    path = written / f"toy.{ending}"
    cell = evidence().board().cells.set_index(["entry", "task"]).loc["x", "toy/a-v0"]
    shown = f"{cell['mean']:.6g}" if ending in ("csv", "json") else f"{cell['mean']:.1f}"
    text = path.read_text()
    other = f"{float(shown) + 1:.6g}" if ending in ("csv", "json") else f"{float(shown) + 1:.1f}"
    assert shown in text
    path.write_text(text.replace(shown, other, 1))
    (line,) = check(written / "toy.csv")
    assert line.startswith(f"{path}: ") and shown in line and other in line


def test_rows_that_changed_are_told(written):
    write_evidence(evidence(shift=1e-3), written, "toy")
    lines = check(written / "toy.csv")
    assert lines and all(" is written, the rows say " in line for line in lines)
    assert any("cell x toy/a-v0 mean, value" in line for line in lines)


def test_a_line_or_a_row_that_is_not_there_is_told():
    text = to_csv(evidence().board(reps=20))
    short = "\n".join(text.splitlines()[:-1]) + "\n"
    assert any("nothing is written" in line for line in differences("csv", short, text))
    assert any("the rows say nothing" in line for line in differences("csv", text, short))
    assert (
        "is no board in json"
        in differences("json", "{", formats.to_json(evidence().board(reps=20)))[0]
    )


def test_the_last_written_digit_may_be_rounded_otherwise():
    assert (
        differences(
            "csv",
            *(
                f"kind,entry,task,statistic,value\ncell,a,b,mean,{x}\n"
                for x in ("12.3456", "12.3457")
            ),
        )
        == []
    )
    assert (
        differences(
            "csv",
            *(
                f"kind,entry,task,statistic,value\ncell,a,b,mean,{x}\n"
                for x in ("12.3456", "12.3466")
            ),
        )
        != []
    )


def test_what_cannot_be_checked_is_told_in_a_line(written, tmp_path):
    with pytest.raises(UserError, match=r"there is no nothing\.md, \.csv, \.json or \.tex"):
        check(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match=r"toy\.html is a report; what can be checked"):
        check(written / "toy.html")
    (tmp_path / "alone.csv").write_text("kind\n")
    with pytest.raises(UserError, match="alone has no rows to recompute it from"):
        check(tmp_path / "alone.csv")
    _, episodes = paths_of(written, "toy")
    content = episodes.read_bytes()
    episodes.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"toy\.episodes\.parquet is damaged"):
        check(written / "toy.csv")
    episodes.unlink()
    with pytest.raises(UserError, match=r"toy\.episodes\.parquet is not there"):
        check(written / "toy.csv")
    pd.DataFrame({"run_id": ["a"]}).to_parquet(episodes)
    with pytest.raises(UserError, match="is not the rows of a board in format 1"):
        check(written / "toy.csv")
    episodes.write_bytes(content)
    write_evidence(
        type(evidence())(**{**vars(evidence()), "runs": evidence().runs.iloc[1:]}), written, "cut"
    )
    with pytest.raises(UserError, match="has episodes of run"):
        episodes.replace(written / "cut.episodes.parquet")
        read_evidence(written, "cut")


def test_seeds_that_met_other_start_states_have_no_table_of_seeds_by_episodes():
    found = evidence()
    other = found.episodes.copy()
    other.loc[(other["entry"] == "x") & (other["seed"] == 1), "env_seed"] += 1
    whole = found.runs[found.runs["status"] == "ok"]
    cells = scored_cells(other, whole, ())
    assert cells["x", "toy/a-v0"].table is None and cells["y", "toy/a-v0"].table is not None
    assert cells["y", "toy/a-v0"].start_states == (50, 51, 52, 53)
    np.testing.assert_array_equal(
        cells["x", "toy/a-v0"].means, scored_cells(found.episodes, whole, ())["x", "toy/a-v0"].means
    )
