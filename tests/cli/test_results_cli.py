"""`offbench results` and `offbench submit` as a user calls them: lines, exit codes, and nothing half-written."""

import re
import shlex
import shutil
from glob import glob
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT
from support.records import record_cells
from support.stores import fill, flip, grow_old

from offbench.bench.plan import plan
from offbench.cli import main
from offbench.cli.results import EXAMPLES, SUMMARIES
from offbench.results.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "results", kept=[0], failed=[1])


def said(capsys, *args, code=0):
    """What a command printed, after its exit code was looked at."""
    assert main([str(a) for a in args]) == code
    out, err = capsys.readouterr()
    if code == 2:
        assert out == "" and err.count("\n") == 1
    return out + err


def test_verify_says_what_is_damaged_and_repair_puts_it_aside(store, capsys):
    whole = "2 whole records, 2 of failed runs, 0 damaged; 0 files of no record"
    assert said(capsys, "results", "verify") == f"results: {whole}\n"
    path = next(store.root.rglob("*.parquet"))
    flip(path, 60, 1)
    (store.root / "runs" / ".x.0123abcd.tmp").write_text("")
    words = said(capsys, "results", "verify", "results=results", code=3)
    assert f"{path.relative_to(store.root.parent)} is truncated or was edited\n" in words
    assert "1 damaged; 1 file of no record" in words and "verify --repair results=results" in words
    assert ".x.0123abcd.tmp belongs to no record" in words
    words = said(capsys, "results", "verify", "--repair", code=3)
    assert "was edited; moved to results/damaged" in words and "offbench bench trains" in words
    assert "0 damaged" in said(capsys, "results", "verify")


def test_merge_submit_and_gc_say_what_they_did(store, capsys):
    words = said(capsys, "submit", "iql", "--suite", "toy")
    assert "iql on toy v1\n" in words and "written: toy-v1-iql.zip, 2 records" in words
    assert "seed 1: RuntimeError: seed 1" in words
    words = said(capsys, "results", "merge", "toy-v1-iql.zip", "results=new")
    assert "new: 2 records taken over, 0 there already, 0 damaged, 0 conflicts" in words
    words = said(capsys, "results", "merge", "toy-v1-iql.zip", "results", "results=new")
    assert "new: 2 records taken over, 4 there already" in words
    grow_old(store.root / "runs", *store.root.rglob("*"))
    words = said(capsys, "results", "gc", "--policies", "--dry-run")
    assert "kept policy" in words and "2 files would be removed" in words
    assert "2 files removed" in said(capsys, "results", "gc", "--policies")
    assert "0 files removed, 0 bytes" in said(capsys, "results", "gc", "--policies")


def test_a_conflict_and_a_damaged_source_are_exit_code_3(store, capsys):
    fill(store.root.parent / "other", shift=1.0)
    words = said(capsys, "results", "merge", "other", code=3)
    assert "has other episodes in" in words and "2 conflicts" in words
    fill(store.root.parent / "third", seeds=[5])
    flip(next((store.root.parent / "third").rglob("*.json")), 10, 1)
    words = said(capsys, "results", "merge", "third", code=3)
    assert "was edited\n" in words and "1 record taken over" in words


def test_export_writes_a_table_of_what_is_chosen(store, capsys):
    words = said(capsys, "results", "export", "x.csv", "suite=toy", "methods=[bc]", "seeds=[0]")
    assert words == "written: x.csv, 3 episodes of 1 run\n"
    said(capsys, "results", "export", "memory://b/x.parquet", "task=toy/point-v0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("results", "results needs one of: verify, merge, gc, export"),
        ("results vrfy", "did you mean 'verify'?"),
        ("results verify nowhere", "takes no 'nowhere'; the folder is results=FOLDER"),
        ("results verify results=nowhere", "there is no folder nowhere"),
        ("results verify results=", "results= names no folder"),
        ("results verify --repiar", "did you mean '--repair' or"),
        ("results gc suite=toy", "unknown setting 'suite'"),
        ("results merge", "merge needs a folder or a file"),
        ("results merge nowhere.zip", "there is no nowhere.zip"),
        ("results merge notes.txt", "notes.txt is no submission of offbench"),
        ("results merge results", "is the folder that records are merged into"),
        ("results merge empty", "empty is no results folder"),
        ("results export", "export needs one file"),
        ("results export x.xlsx", "ends neither in .parquet nor in .csv"),
        ("results export x.csv methods=[iqll]", "did you mean 'iql'?"),
        ("results export x.csv seeds=[77]", "unknown seed '77'"),
        ("results export x.csv sute=toy", "did you mean 'suite'"),
        ("results export nope://a/x.csv", "Protocol not known: nope"),
        ("submit", "submit needs an entry of the board"),
        ("submit iqll", "did you mean 'iql'?"),
        ("submit iql --suite toi", "did you mean 'toy'?"),
        ("submit iql --out results", "cannot write results: Is a directory"),
        ("submit iql --out /proc/nowhere/x.zip", "cannot write /proc/nowhere/x.zip"),
        ("submit iql results=nowhere", "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(store, capsys, line, words):
    folder = store.root.parent
    (folder / "notes.txt").write_text("x")
    (folder / "empty").mkdir()
    before = {path for path in folder.rglob("*")}
    assert words in said(capsys, *line.split(" "), code=2)
    assert {path for path in folder.rglob("*")} == before


@pytest.mark.parametrize("command", SUMMARIES)
def test_each_command_has_help_with_an_example_in_80_columns(command, capsys):
    words = said(capsys, "results", command, "--help")
    assert words.startswith(f"usage: offbench results {command}")
    assert f"\n  offbench results {EXAMPLES[command][0]}" in words
    assert max(map(len, words.splitlines())) <= 80
    assert "offbench submit" in said(capsys, "submit", "--help")


def test_the_examples_are_read(monkeypatch):
    read = []
    monkeypatch.setattr("offbench.cli.app.run_results_command", lambda o: read.append(o) or 0)
    for example in (e for examples in EXAMPLES.values() for e in examples):
        assert main(["results", *shlex.split(example)]) == 0
    assert {options.results_command for options in read} == SUMMARIES.keys()


@pytest.fixture(scope="module")
def community(tmp_path_factory):
    """A repository with two submissions, and the board of both."""
    folder = tmp_path_factory.mktemp("community")
    own = f"results={folder / 'own'}"
    cells = plan(["suite=quick", "methods=[bc,td3_bc]", "seeds=[0]"], bench=True).cells
    record_cells(Store(folder / "own"), cells, lambda cell, seed: len(cell.entry))
    for entry in ("bc", "td3_bc"):
        out = folder / "repository" / "submissions" / f"{entry}.zip"
        assert main(["submit", entry, "--suite", "quick", own, "--out", str(out)]) == 0
    assert main(["board", "suite=quick", own]) == 0
    (folder / "repository" / "board").mkdir()
    for path in (folder / "own" / "board").glob("quick.*"):
        if path.suffix != ".parquet":
            shutil.copy(path, folder / "repository" / "board")
    return folder


@pytest.fixture
def pull_request(community, tmp_path, monkeypatch):
    shutil.copytree(community / "repository", tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    return community


def check_pull_request() -> int:
    """The exit code of the first step that fails, of the yaml of docs/sharing.md, but for what installs."""
    page = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (job,) = yaml.safe_load(text)["jobs"].values()
    steps = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    assert [program for program, *_ in steps] == ["pip", *["offbench"] * 2, "cp", "offbench"]
    for program, *words in steps[1:]:
        words = [path for word in words for path in sorted(glob(word)) or [word]]
        if program == "cp":
            for path in words[:-1]:
                shutil.copy(path, words[-1])
        elif code := main(words):
            return code
    return 0


def test_the_recipe_for_a_community_board_accepts_an_honest_pull_request_alone(pull_request):
    assert check_pull_request() == 0
    board = Path("board/quick.csv")
    lines = board.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("cell,") and "bc" in line)
    lines[at] = re.sub(r"\d+\.?\d*", "77", lines[at])
    board.write_text("\n".join(lines) + "\n")
    assert main(["board", "--check", "board/quick.csv"]) == 1


def test_the_recipe_refuses_a_submission_that_was_changed(pull_request):
    flip(Path("submissions/bc.zip"), 5000, 1)
    assert check_pull_request() == 2 and not Path("merged").exists()


def test_the_recipe_refuses_two_submissions_with_other_rows_of_one_run(pull_request):
    cells = plan(["suite=quick", "methods=[bc]", "seeds=[0]"], bench=True).cells
    record_cells(Store("again"), cells[:1], lambda cell, seed: 50.0)
    assert main(["submit", "bc", "results=again", "--out", "submissions/again.zip"]) == 0
    assert check_pull_request() == 3
