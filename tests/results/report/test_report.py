"""The report: numbers of the board's csv, commands that make the same runs, files as text, one file whole."""

import base64
import csv
import gzip
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.random_boards import made_board, with_consistency
from support.records import episodes as made_episodes
from support.records import provenance, spec

from offbench.bench.plan import plan
from offbench.cli import main
from offbench.cli.board import evidence_of
from offbench.cli.console import make_console
from offbench.cli.report import refresh_report
from offbench.errors import UserError
from offbench.results.board import render
from offbench.results.board.leaderboard import leaderboard
from offbench.results.published.scores import published_scores
from offbench.results.record import DamagedRecord
from offbench.results.report.charts import charts_payload
from offbench.results.report.command import words_of_command
from offbench.results.report.figures import write_figures
from offbench.results.report.page import fingerprint_of, page, recorded_fingerprint
from offbench.results.report.payload import board_payload, number, runs_payload
from offbench.results.store import Store

TASKS = ["toy/point-v0", "toy/line-v0", "toy/plane-v0"]
EVIL = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a|b'\"&amp;"]


@pytest.fixture(scope="module")
def made():
    return made_board(["iql", "bc", *EVIL], TASKS, monitored=True)


def whole_page(made) -> str:
    board, episodes, runs, records = made
    shown = board_payload(board, runs)
    parts = {
        "evidence": charts_payload(board, episodes, runs, records),
        "runs": runs_payload(board, episodes, records),
    }
    return page(shown, parts, fingerprint_of(shown, list(runs["run_id"])))


@pytest.fixture(scope="module")
def text(made) -> str:
    return whole_page(made)


def board_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def part_of(text: str, name: str) -> dict:
    packed = re.search(rf'id="part-{name}">([^<]*)</script>', text)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_numbers_are_those_of_the_boards_csv(made, text):
    shown = board_of(text)
    entries, cells, tasks = shown["entries"], shown["cells"], shown["tasks"]
    value = lambda x: None if x == "" else float(x)
    found = 0
    for line in csv.DictReader(io.StringIO(render.to_csv(made[0]))):
        row = entries["entry"].index(line["entry"])
        if line["statistic"] in ("iqm", "mean") and line["kind"] == "aggregate":
            prefix = "" if line["statistic"] == "iqm" else "mean_"
            assert entries[line["statistic"]][row] == value(line["value"])
            assert entries[f"{prefix}low"][row] == value(line["low"])
            assert entries[f"{prefix}high"][row] == value(line["high"])
        elif line["kind"] == "cell" and line["statistic"] == "mean":
            at = row * len(tasks) + tasks.index(line["task"])
            for name, key in (("mean", "value"), ("low", "low"), ("high", "high")):
                assert cells[name][at] == value(line[key])
            assert bool(cells["best"][at]) == (line["best"] == "true")
            assert cells["status"][at] == line["status"]
        else:
            continue
        found += 1
    assert found == len(entries["entry"]) * (len(tasks) + 2)


def test_words_of_cells_are_those_of_the_markdown(made, text):
    shown, markdown = board_of(text), render.to_markdown(made[0])
    for words, best in zip(shown["cells"]["text"], shown["cells"]["best"], strict=True):
        assert (f"**{words}**" if best else f" {words} ") in markdown
    for words in shown["entries"]["text"]:
        assert words in markdown


def test_how_far_seeds_are_apart_is_shown_where_it_was_measured(made, text):
    assert board_of(text)["consistency"] is None
    board, _, runs, _ = with_consistency(made)
    shown = board_payload(board, runs)
    found, entries = shown["consistency"], shown["entries"]["entry"]
    markdown = render.to_markdown(board)
    for entry, words, value in zip(entries, found["text"], found["value"], strict=True):
        assert (words == "--" and value is None) == (entry not in ("iql", "bc"))
        assert f" {words} |\n" in markdown
    assert found["value"][entries.index("iql")] == 0.2 and found["caption"] in markdown
    assert found["text"][entries.index("bc")].endswith("(1/3 tasks)")
    cells = np.array(found["cells"]).reshape(len(entries), len(TASKS))
    assert cells[entries.index("iql")].tolist() == 3 * [
        "action 0.200 [0.200, 0.200], js 0.500 [0.500, 0.500]"
    ]
    assert cells[entries.index("bc")].tolist() == ["action 0.100 [0.100, 0.100]", "", ""]
    assert set(cells[~np.isin(entries, ("iql", "bc"))].ravel()) == {""}


def test_ranks_are_shown_with_those_that_the_tests_leave(made, text):
    shown, markdown = board_of(text), render.to_markdown(made[0])
    first = shown["entries"]["rank_text"][0]
    assert re.fullmatch(r"1 \[1(-\d)?\]", first) and f"| {first} |" in markdown


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ([True, False, False, False, False], "; every other is below it."),
        ([True, True, False, False, False], "; b cannot be told from it."),
        ([True, True, False, True, True], "; b, d and e cannot be told from it."),
        ([True, True, True, True, True], "; no other can be told from it."),
    ],
)
def test_the_first_sentence_names_who_cannot_be_told_from_the_first(best, words):
    board, _, runs, _ = made_board(list("abcde"), TASKS[:1])
    table = board.aggregate.assign(entry=list("abcde"), best=best)
    said = board_payload(replace(board, aggregate=table), runs)["lede"]
    assert said == f"5 entries on 1 task. The highest IQM is {table['iqm'][0]:.1f}, of a{words}"


def test_published_scores_are_rows_of_their_own_and_in_no_statistic():
    tasks = ["d4rl/hopper-medium-v2", "d4rl/walker2d-medium-v2"]
    board, _, runs, _ = made_board(["iql", "bc+top10"], tasks)
    shown = board_payload(board, runs)
    (row,) = [r for r in shown["published"]["rows"] if r["name"] == "iql (corl: IQL)"]
    theirs = published_scores(tasks, ["corl"])
    theirs = theirs[theirs["entry"] == "iql"].set_index("task")
    assert [s[0] for s in row["scores"]] == [number(theirs["score"][task]) for task in tasks]
    assert row["ours"] and "checkpoint" in row["about"]
    assert sorted(shown["entries"]["entry"]) == ["bc+top10", "iql"]
    assert board_payload(*made_board(["iql"], TASKS)[0:3:2])["published"] is None


def test_entries_that_lack_a_run_are_last_and_have_no_aggregate():
    _, _, runs, _ = made_board(["iql", "bc"], TASKS)
    lacking = runs[~((runs["entry"] == "bc") & (runs["task"] == TASKS[1]))]
    episodes = made_board(["iql", "bc"], TASKS)[1]
    episodes = episodes[episodes["run_id"].isin(lacking["run_id"])]

    shown = board_payload(leaderboard(episodes, lacking, TASKS, reps=50), lacking)
    assert shown["entries"]["entry"] == ["iql", "bc"]
    assert shown["entries"]["iqm"][1] is None and shown["entries"]["rank"][1] is None
    assert shown["entries"]["text"][1] == "incomplete (2/3 tasks)"
    assert "of which 1 has every run" in shown["lede"]


def test_a_cell_has_the_seeds_and_episodes_that_are_recorded(made, text):
    _, episodes, _, records = made
    shown, runs = board_of(text), part_of(text, "runs")
    at = shown["entries"]["entry"].index("iql") * len(TASKS) + 1
    cell = runs["cells"][at]
    test = episodes[(episodes["stream"] == "test") & (episodes["task"] == TASKS[1])]
    test = test[test["entry"] == "iql"].sort_values(["seed", "episode"])
    assert cell["seeds"]["seed"] == [0, 1, 2] and cell["seeds"]["n"] == [3, 3, 3]
    assert np.allclose(cell["seeds"]["score"], test.groupby("seed")["score"].mean(), rtol=1e-5)
    # scores are a line of the returns here, as reference returns make them
    slope, intercept = runs["scales"][1]
    returns = np.array(cell["episodes"]["return"])
    assert np.allclose(returns, test["return"], rtol=1e-4)
    assert np.allclose(slope * returns + intercept, test["score"], atol=0.01)
    assert "score" not in cell["episodes"]
    assert cell["episodes"]["length"] == test["length"].tolist()
    assert runs["starts"][1] == test[test["seed"] == 0]["env_seed"].tolist()
    settings = dict(zip(cell["settings"][0], zip(*cell["settings"][1:]), strict=True))
    assert settings["method.hidden"] == ("[256,256]", "default")
    assert settings["method.lr"][1] == "suite toy"
    assert "seeds=[0,1,2]" in cell["command"] and records[cell["seeds"]["run_id"][0]]
    assert dict(map(tuple, cell["made"]))["commit"] == "c" * 40


def test_scores_that_returns_do_not_tell_are_kept(made):
    board, episodes, _, records = made
    won = episodes.assign(score=100.0 * (episodes["length"] < 500))
    runs = runs_payload(board, won, records)
    assert runs["scales"] == [None] * len(TASKS)
    cell, first = runs["cells"][0], board.aggregate["entry"].iloc[0]
    mine = won[(won["entry"] == first) & (won["task"] == TASKS[0]) & (won["stream"] == "test")]
    mine = mine.sort_values(["seed", "episode"])
    assert cell["episodes"]["score"] == mine["score"].tolist()
    assert np.allclose(cell["seeds"]["score"], mine.groupby("seed")["score"].mean(), rtol=1e-5)


def test_evidence_has_pairs_ranks_profiles_and_curves(made, text):
    evidence = part_of(text, "evidence")
    assert len(evidence["pairwise"]["entry"]) == 5 * 4
    assert sorted(evidence["ranks"]["entry"]) == sorted(made[0].aggregate["entry"])
    assert set(evidence["curves"]["stream"]) == {"monitor", "test"}
    assert len(evidence["profiles"]["threshold"]) == 5 * 101


def test_what_files_say_is_text_and_never_a_tag(text):
    plain = re.sub(r'id="part-\w+">[^<]*<', "<", text)
    assert "<img" not in plain and "alert(2)</script>" not in plain
    # one end for each script that the page begins, and none from a label
    assert len(re.findall("<script", plain)) == len(re.findall("</script", plain))
    assert set(EVIL) <= set(board_of(text)["entries"]["entry"])
    titled, _, runs, _ = made_board(["iql"], TASKS[:1])
    shown = board_payload(titled, runs) | {"title": EVIL[1]}
    assert f"<title>{EVIL[1]}" not in page(shown, {}, "0" * 32)


def test_nothing_is_asked_of_the_network(text):
    plain = re.sub(r'id="part-\w+">[^<]*<', "<", text)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,)""", plain)
    assert "default-src 'none'" in plain and "@import" not in plain and "url(" not in plain


def test_the_same_records_give_the_same_bytes_and_others_another_fingerprint(made, text):
    assert whole_page(made) == text
    board, _, runs, _ = made
    shown = board_payload(board, runs)
    assert recorded_fingerprint(text[:2000]) == fingerprint_of(shown, list(runs["run_id"]))
    assert fingerprint_of(shown, list(runs["run_id"])[1:]) != recorded_fingerprint(text[:2000])
    assert recorded_fingerprint("<html>") is None


def test_numbers_have_six_digits_and_nan_is_nothing():
    assert [number(x) for x in (1 / 3, 2.0, np.nan, None, np.int64(3))] == [
        0.333333,
        2,
        None,
        None,
        3,
    ]


@pytest.mark.parametrize(
    "settings",
    [
        [
            "methods=[bc+top10,iql+nstep10,qc+chunk3]",
            "task=offbench/cube-single-play-v0",
        ],
        [
            "methods=[iql]",
            "method.expectile=0.85",
            "transforms={reward_standard:{},obs_norm:{}}",
            "suite=quick",
        ],
        ["methods=[td3_bc]", "eval.monitor_at=[0.5]", "precision=bf16", "label=it's (mine)"],
        [
            "methods=[bc]",
            "eval.validation=0.2",
            "task=offbench/hopper/medium-replay-v0",
            "gamma=0.9",
        ],
    ],
    ids=["entries", "settings", "label", "validation"],
)
def test_the_command_of_a_run_makes_the_same_run(settings):
    settings = [s if "mine" not in s else "label='it\\'s (mine)'" for s in settings]
    for cell in plan(settings, bench=True).cells:
        run = cell.runs()[-1]
        words = words_of_command(run.as_dict(), cell.entry, [run.seed])
        assert words[:2] == ("offbench", "run")
        (again,) = plan(words[2:], bench=False).cells
        assert again.runs() == [run] and again.entry == cell.entry, words


def test_own_data_have_a_path_to_fill_in_and_a_policy_from_elsewhere_no_command():

    own = spec(env={"id": "Point-v0", "kwargs": {}, "score": "return"})
    assert {"task.data=PATH", "task.env=Point-v0"} <= set(
        words_of_command(own.as_dict(), "iql", [0])
    )
    assert words_of_command(spec(method="outside").as_dict(), "mine", [0]) is None


# --- figures --------------------------------------------------------------------------------


def test_figures_are_vector_graphics_with_their_words(tmp_path, made):
    board, episodes, runs, _ = made_board(["iql", "bc"], TASKS[:1], monitored=True)
    paths = write_figures(board, episodes, runs, tmp_path)
    stems = {"aggregates", "profiles", "curves"}
    assert {p.stem for p in paths} == stems and {p.suffix for p in paths} == {
        ".pdf",
        ".svg",
        ".png",
    }
    picture = (tmp_path / "aggregates.svg").read_text()
    assert "iql" in picture and "score" in picture and "<image" not in picture


def test_without_aggregates_and_curves_there_is_nothing_to_draw(tmp_path):
    board, episodes, runs, _ = made_board(["iql"], TASKS[:2])
    with pytest.raises(UserError, match="nothing to draw"):
        lacking = board.aggregate.assign(iqm=np.nan)

        write_figures(replace(board, aggregate=lacking), episodes, runs, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- the command line -----------------------------------------------------------------------

ASKED = ["suite=quick", "methods=[bc,iql]", "task=offbench/hopper/medium-replay-v0"]


@pytest.fixture
def results(tmp_path):
    """A store with the runs of a small bench, recorded and never run."""
    store = Store(tmp_path / "results")
    for cell in plan(ASKED, bench=True).cells:
        for run in cell.runs():
            store.append(run, made_episodes(5, update=run.n_updates), provenance(entry=cell.entry))
    return tmp_path / "results"


def test_a_report_says_what_else_was_measured_of_its_runs(results):
    path = results / "board" / "quick-part.html"
    assert main(["report", *ASKED, f"results={results}"]) == 0
    assert "Measured" not in dict(board_of(path.read_text())["facts"])
    marks = Store(results).records()
    names = [
        f"{marks[0].stem}.fqe",
        f"{marks[1].stem}.fqe",
        f"{marks[0].stem}.wis",
        "0" * 16 + ".fqe",
    ]
    for folder, name in [*(("estimates", n) for n in names), ("decisions", marks[0].stem)]:
        table = results / folder / "quick" / "t" / "e" / f"{name}.parquet"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.touch()
    assert main(["report", *ASKED, f"results={results}"]) == 0
    assert dict(board_of(path.read_text())["facts"])["Measured"] == (
        "values by fqe of 2 runs, wis of 1 run (offbench evaluate --offline); decisions of 1 run played again"
        " (offbench diagnose)"
    )


def test_a_report_is_written_and_a_bench_writes_it_again_when_runs_changed(
    results, capsys, monkeypatch
):
    path = results / "board" / "quick-part.html"
    assert main(["report", *ASKED, f"results={results}"]) == 0
    assert f"written: {path}" in capsys.readouterr().out
    first = path.read_text()
    assert board_of(first)["entries"]["entry"] == ["bc", "iql"]
    path.write_text(first[:3000])
    with monkeypatch.context() as patched:
        patched.delattr(Store, "read_all")
        assert main(["bench", *ASKED, f"results={results}"]) == 0
    assert f"report: {path}" in capsys.readouterr().out
    # nothing changed: no record is opened for it, and the file is left alone
    assert path.read_text() == first[:3000]
    gone = next((results / "runs").rglob("iql/*.json"))
    gone.rename(gone.with_suffix(".off"))
    assert main(["board", *ASKED, f"results={results}"]) == 0

    wanted = plan([*ASKED, f"results={results}"], bench=True)
    now = evidence_of(wanted, Store(results))
    refresh_report(now, now.board(), wanted, Store(results), make_console(), ASKED)
    assert len(path.read_text()) > 100_000 and path.read_text() != first


def test_figures_are_asked_for_by_an_option(results, capsys):
    assert main(["report", *ASKED, f"results={results}", "--figures"]) == 0
    assert (results / "board" / "quick-part-figures" / "profiles.pdf").is_file()


def test_faults_of_a_report_are_one_line(results, tmp_path, capsys):
    assert main(["report", *ASKED, f"results={tmp_path / 'none'}"]) == 2
    assert "nothing recorded for quick" in capsys.readouterr().err
    (results / "board" / "quick-part.html").mkdir(parents=True)
    assert main(["bench", *ASKED, f"results={results}"]) == 0
    assert "report: not written, cannot write the report to" in capsys.readouterr().out
    shutil.rmtree(results / "board")
    (results / "board").write_text("a file where the folder should be")
    assert main(["report", *ASKED, f"results={results}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("offbench: cannot write the report to") and said.count("\n") == 1
    mark = next((results / "runs").rglob("*.json"))
    mark.write_text(mark.read_text()[:-40])
    (results / "board").unlink()
    # the others are shown
    with pytest.warns(DamagedRecord, match=mark.name):
        assert main(["report", *ASKED, f"results={results}"]) == 0


# --- size -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_entries_on_fifty_tasks_with_ten_seeds_fit_in_five_megabytes():
    tasks = [f"d4rl/task-number-{i}-medium-replay-v2" for i in range(50)]
    made = made_board(
        [f"method-{i}+nstep{i % 7}" for i in range(50)], tasks, n_seeds=10, n_episodes=10, reps=50
    )
    board, episodes, runs, records = made
    parts = {"runs": runs_payload(board, episodes, records), "evidence": {}}
    assert len(page(board_payload(board, runs), parts, "0" * 32).encode()) < 5e6
