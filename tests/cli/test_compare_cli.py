"""`offbench compare` on recorded runs: names, settings, folders, and mistakes told in one line."""

import io
import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.records import episodes, provenance

from offbench.bench.plan import plan
from offbench.cli import main
from offbench.results.folders import Folders
from offbench.results.record import DamagedRecord
from offbench.results.store import Store

pytestmark = pytest.mark.env
ENTRIES = {"bc": 30.0, "iql": 50.0, "iql+nstep10": 52.0, "qc+chunk3": 60.0, "acsac+chunk3": 20.0}


@cache
def cells(entry: str, *settings: str):
    return plan([f"methods=[{entry}]", "seeds=[0,1,2]", *settings], bench=True).cells


def record(store: Store, entry: str, level: float, *settings: str, **changes: object) -> None:
    """Runs of an entry on every task of quick, or a chunked one on the maze alone, with scores about a level."""
    for cell in cells(entry, *settings):
        if "chunk" in entry and "maze" not in cell.task.id:
            continue
        for run in cell.runs():
            generator = np.random.default_rng([run.seed, len(run.task), len(entry)])
            n = run.protocol["episodes"]
            scores = level + 3 * generator.normal() + generator.normal(0, 5, n)
            rows = episodes(n, update=run.n_updates, score=scores)
            store.append(run, rows, provenance(entry=cell.entry, **changes))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for entry, level in ENTRIES.items():
        record(Store(folder), entry, level)
    return folder


def out(capsys, *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_the_first_entry_is_compared_with_each_of_the_others(results, capsys) -> None:
    text = out(capsys, "iql", "bc", "iql+nstep10", "--suite", "quick", "--results", results)
    words = " ".join(text.split())
    assert "iql is better than bc: +" in words and "iql and iql+nstep10 cannot be" in words
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    # what each cost, and how its settings were chosen
    costs = text[text.index("entry  ") :]
    assert "3,000/4,000/6,000" in costs and "ccccccc" in costs and "published" in costs
    # settings may stand anywhere, and say the same as options
    same = out(capsys, "iql", f"results={results}", "bc", "suite=quick", "iql+nstep10")
    assert same == text
    assert set(results.iterdir()) == {results / "runs"}


def test_a_class_is_named_as_methods_names_it_or_as_the_board_does(capsys, tmp_path) -> None:
    store = Store(tmp_path / "records")
    for entry, level in (("bc", 30.0), ("offbench.methods.iql.IQL+aw", 50.0)):
        record(store, entry, level)
    args = ("bc", f"results={tmp_path}/records")
    text = out(capsys, "IQL+aw", *args)
    assert text.startswith("IQL+aw is better than bc")
    assert out(capsys, "offbench.methods.iql.IQL+aw", *args) == text
    # what runs a class that is not recorded
    line = refused(capsys, "mine.BC+aw", *args)
    assert "unknown entry 'mine.BC+aw'" in line and "methods=[mine.BC+aw]" in line


def test_one_entry_is_compared_with_all_others_over_the_tasks_that_both_have(
    results, capsys
) -> None:
    body = json.loads(out(capsys, "qc+chunk3", "--results", results, "--format", "json"))
    assert [line["rival"] for line in body["overall"]] == sorted(ENTRIES.keys() - {"qc+chunk3"})
    assert {line["n_tasks"] for line in body["overall"]} == {1}
    assert "over 1 of 4 tasks" in body["verdicts"]["bc"]
    assert body["verdicts"]["acsac+chunk3"].startswith("qc+chunk3 is better than acsac+chunk3")


def test_csv_and_markdown_and_the_difference_that_counts(results, capsys) -> None:
    args = ("iql", "iql+nstep10", f"results={results}")
    table = pd.read_csv(io.StringIO(out(capsys, *args, "--format", "csv")))
    assert table["kind"].tolist() == ["overall", *["task"] * 4, "costs", "costs"]
    wide = out(capsys, *args, "format=markdown", "difference=50")
    assert "equivalent within 50 points" in wide
    assert out(capsys, *args, "--format", "markdown", "--difference", "50") == wide


def test_all_recorded_seeds_count_unless_some_are_named(results, capsys, tmp_path) -> None:
    shutil.copytree(results, tmp_path / "r")
    record(Store(tmp_path / "r"), "iql", 50.0, "seeds=[3,4,5,6]")
    args = ("iql", "bc", "--results", tmp_path / "r", "--format", "json")
    (line,) = json.loads(out(capsys, *args))["overall"]
    assert (line["n_seeds"], line["n_seeds_max"]) == (3, 7)
    (line,) = json.loads(out(capsys, *args, "seeds=[0,1,2]"))["overall"]
    assert (line["n_seeds"], line["n_seeds_max"]) == (3, 3)
    one = out(capsys, "iql", "bc", "--results", tmp_path / "r", "seeds=[0]")
    assert "nothing can be said with one seed" in one


# --- several folders ------------------------------------------------------------------------


def test_records_of_two_machines_count_together_and_equal_ones_once(
    results, capsys, tmp_path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for entry in ("bc", "iql"):
        record(Store(here), entry, ENTRIES[entry])
    for entry in ("iql", "iql+nstep10", "qc+chunk3", "acsac+chunk3"):
        record(Store(there), entry, ENTRIES[entry])
    args = ("iql", "--format", "json")
    together = out(capsys, *args, "--results", here, "--results", there)
    assert out(capsys, *args, f"results=[{there},{here}]") == together
    assert json.loads(together) == json.loads(out(capsys, *args, "--results", results))
    assert len(Folders([here, there]).runs("quick")) == len(Store(results).runs(suite="quick"))


def test_other_episodes_of_one_run_are_refused_naming_both(capsys, tmp_path) -> None:
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    record(a, "bc", 30.0, "seeds=[0]")
    record(b, "bc", 31.0, "seeds=[0]")
    line = refused(capsys, "bc", f"results=[{tmp_path}/a,{tmp_path}/b]")
    assert "different episodes" in line
    assert str(tmp_path / "a") in line and str(tmp_path / "b") in line


def test_a_failure_in_one_folder_is_made_good_by_the_other(tmp_path) -> None:
    run = cells("bc")[0].runs()[0]
    Store(tmp_path / "a").fail(run, "out of memory", provenance(entry="bc"))
    rows = episodes(run.protocol["episodes"], update=run.n_updates)
    Store(tmp_path / "b").append(run, rows, provenance(entry="bc"))
    for order in ("ab", "ba"):
        folders = Folders([tmp_path / name for name in order])
        assert folders.runs("quick")["status"].tolist() == ["ok"]
        assert len(folders.episodes([run.run_id])) == run.protocol["episodes"]


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare needs an entry"),
        (["suite=quick"], "compare needs an entry"),
        (["iqll", "bc"], "unknown entry 'iqll': did you mean 'iql'"),
        (["iql", "td3_bc"], "to run one: offbench bench suite=quick methods=[td3_bc]"),
        (["iql", "iql"], "'iql' is compared with itself"),
        (["iql", "bc", "--suite", "qick"], "unknown suite 'qick': did you mean 'quick'"),
        (["iql", "bc", "--suit", "quick"], "unknown option '--suit': did you mean '--suite'"),
        (["iql", "bc", "--format", "xml"], "unknown --format 'xml'"),
        (["iql", "bc", "format=xml"], "unknown format 'xml'"),
        (["iql", "bc", "difference=much"], "difference='much' is not a number of points"),
        (["iql", "bc", "--difference", "-1"], "difference is -1"),
        (["iql", "bc", "n_updates=20"], "have n_updates 3000, those of the board 20; to compare"),
        (["iql", "bc", "eval.episodes=20"], "give eval.episodes=5"),
        (["iql", "bc", "nonsense=1"], "nonsense"),
        (["iql", "bc", "suite=d4rl-gym-9"], "nothing recorded for d4rl-gym-9"),
    ],
)
def test_a_mistake_is_one_line(words, message, results, capsys) -> None:
    assert message in refused(capsys, *words, "--results", results)


def test_empty_or_absent_results_are_refused(capsys, tmp_path) -> None:
    assert "nothing recorded for quick" in refused(capsys, "iql", f"results={tmp_path}")
    line = refused(capsys, "iql", f"results=[{tmp_path},{tmp_path}/none]")
    assert f"there is no folder {tmp_path}/none" in line


@pytest.mark.parametrize("ending", [".parquet", ".json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_half_a_run_and_a_damaged_one_are_left_out_by_name(
    ending, damage, results, capsys, tmp_path
) -> None:
    shutil.copytree(results, tmp_path / "r")
    path = next(p for p in sorted(tmp_path.glob("r/runs/quick/*/iql/*")) if p.suffix == ending)
    path.write_bytes(path.read_bytes()[:-40])
    if damage == "gone":
        path.unlink()
    args = ("iql", "bc", "--results", tmp_path / "r")
    seeds = "iql has 2 to 3 seeds a task, bc has 3 seeds"
    if (ending, damage) == (".json", "gone"):
        # without its commit mark it is no record: a seed fewer
        assert seeds in out(capsys, *args)
    else:
        with pytest.warns(DamagedRecord, match=re.escape(str(path))):
            assert seeds in out(capsys, *args)


def test_a_run_that_is_damaged_in_one_folder_is_read_from_the_other(
    results, capsys, tmp_path
) -> None:
    shutil.copytree(results, tmp_path / "r")
    path = next(p for p in sorted(tmp_path.glob("r/runs/quick/*/iql/*.parquet")))
    path.write_bytes(path.read_bytes()[:-40])
    expected = out(capsys, "iql", "bc", "--results", results)
    for folders in ((results, tmp_path / "r"), (tmp_path / "r", results)):
        given = [word for folder in folders for word in ("--results", folder)]
        assert out(capsys, "iql", "bc", *given) == expected


def test_runs_of_other_settings_are_told_and_two_of_one_label_refused(
    results, capsys, tmp_path
) -> None:
    shutil.copytree(results, tmp_path / "r")
    store = Store(tmp_path / "r")
    record(store, "td3_bc", 40.0, "n_updates=20")
    line = refused(capsys, "td3_bc", "iql", "--results", tmp_path / "r")
    assert "have n_updates 20, those of the board 3000; to compare those give n_updates=20" in line
    record(store, "iql", 40.0, "method.expectile=0.95", "label=mine", "seeds=[0,1]")
    record(store, "iql", 40.0, "method.expectile=0.6", "label=mine", "seeds=[1,2]")
    line = refused(capsys, "mine", "iql", "--results", tmp_path / "r")
    assert "entry 'mine' has two runs of seed 1" in line and "hparams.expectile" in line


def test_a_diverged_seed_is_no_rival(results, capsys, tmp_path) -> None:
    shutil.copytree(results, tmp_path / "r")
    run = cells("td3_bc")[0].runs()[0]
    Store(tmp_path / "r").fail(run, "nan", provenance(entry="td3_bc"), status="diverged")
    assert "'td3_bc' has a failed or diverged run" in refused(
        capsys, "iql", "td3_bc", "--results", tmp_path / "r"
    )
    assert "left out: 'td3_bc'" in " ".join(out(capsys, "iql", "--results", tmp_path / "r").split())
