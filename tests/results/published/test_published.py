"""Published scores: the shipped table is the collected facts, and what is read from a user's own table."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import published as builder
from support.paths import ROOT, SHARED

from offbench.errors import UserError
from offbench.results.published.scores import (
    COLUMNS,
    intervals,
    published_scores,
    published_sources,
    read_scores,
    updates_of,
)
from offbench.tasks.locate import load_task

FACTS = SHARED / "reference" / "published_scores.csv"
SCORES = ROOT / "conf" / "published" / "scores.csv"

HOPPER = "d4rl/hopper-medium-v2"


@pytest.fixture(scope="module")
def facts() -> list[dict[str, str]]:
    if not FACTS.exists():
        pytest.skip("the collected facts lie beside the checkout")
    return builder.read(FACTS)


def test_the_shipped_table_is_the_collected_facts(facts):
    assert SCORES.read_text(encoding="utf-8") == builder.to_csv(builder.table(facts))


def test_every_number_shipped_was_collected_and_every_other_is_left_out_for_a_reason(facts):
    numbers = lambda row, dataset: (row["score"], row["std"], dataset)
    collected = Counter(numbers(row, row["dataset"]) for row in facts)
    shipped: Counter = Counter()
    for row in builder.read(SCORES):
        dataset = row["task"].split("/")[1].replace("singletask-task*", "singletask")
        if row["task"].startswith("mixed/"):
            dataset = dataset.removesuffix("-v2") + "%-v2"
        shipped[numbers(row, dataset)] += 1
    assert not shipped - collected
    # by hand from the file: 2 x 10 x 6 rows of the online table and its regrets, 23 x 2 Atari scores ...
    left_out = Counter(builder.reason_left_out(row) for row in facts)
    assert left_out.pop(None) == sum(shipped.values()) == 3306
    assert sum(left_out.values()) == 391
    assert left_out["no score: regret"] == 70 and left_out["no score: raw game score"] == 46


def test_a_copy_that_is_left_out_has_the_number_of_the_one_that_is_shipped(facts):
    reason = "another copy of a row that is shipped"
    copies = [row for row in facts if builder.reason_left_out(row) == reason]
    shipped = pd.DataFrame(builder.table(facts)).astype({"score": float})
    shipped = shipped[shipped["source"].isin(["iql-2021", "dt-2021", "tt-2021"])]
    of = {"TT": "trajectory transformer", "DT": "dt", "IQL": "iql"}
    for row in copies:
        entry = of[row["method"].split(" ")[0]]
        same = shipped[(shipped["task"] == f"d4rl/{row['dataset']}") & (shipped["entry"] == entry)]
        # 66.2 and 73.8 in one copy, 66.3 and 73.9 in two others
        assert (np.abs(same["score"] - float(row["score"])) < 0.11).any(), row


def test_the_tasks_are_the_registrys():
    unknown_tasks = set()
    for task in published_scores(None)["task"].unique():
        try:
            load_task(task)
        except UserError:
            unknown_tasks.add(task)
    # means over five tasks, which are no task; mixtures of -v0 that have no registered dataset
    assert {t.split("-")[-2] for t in unknown_tasks if "task*" not in t} == {"expert"}
    assert len(unknown_tasks) == 13


def test_every_score_is_on_the_scale_and_every_source_described():
    found = published_scores(None)
    assert list(found.columns) == list(COLUMNS)
    assert set(found["source"]) == set(published_sources())
    assert found["score"].between(-40, 230).all() and found["citation"].str.len().min() >= 3
    assert found["std"].dropna().ge(0).all()
    assert not found.duplicated(["source", "task", "method", "note"]).any()


def test_scores_of_some_tasks_and_sources():
    found = published_scores([HOPPER, "d4rl/pen-human-v1"], ["corl"])
    assert len(found) == 20 and set(found["source"]) == {"corl"}
    iql = found[(found["entry"] == "iql") & (found["task"] == HOPPER)].squeeze()
    assert (iql["score"], iql["std"], iql["seeds"], iql["steps"]) == (67.53, 3.78, 4, "1M")
    assert "10% BC" in set(found[found["entry"] == "bc+top10"]["method"])
    # numbers of -v0 data are not shown beside -v2
    assert "td3bc-2021" not in set(published_scores([HOPPER])["source"])
    assert set(published_scores(["d4rl/hopper-medium-v0"], ["td3bc-2021"])["score"]) == {99.5}
    assert published_scores(["offbench/hopper/medium-replay-v0"]).empty


def test_an_unknown_source_is_told_with_the_nearest():
    with pytest.raises(
        UserError, match=r"unknown source of published scores 'corll': did you mean 'corl'"
    ):
        published_scores([HOPPER], ["corll"])


def test_intervals_are_students_over_seeds():
    found = published_scores([HOPPER], ["corl", "rapo-2026", "iql-2021"])
    found = found[found["entry"] == "iql"].set_index("source", drop=False)
    bounds = intervals(found)
    # ddof=0 over four seeds: the sample standard deviation is std x sqrt(4 / 3)
    half = stats.t.ppf(0.975, 3) * 3.78 * np.sqrt(4 / 3) / np.sqrt(4)
    np.testing.assert_allclose(bounds.loc["corl", "high"] - 67.53, half)
    rapo = found.loc["rapo-2026"]
    half = stats.t.ppf(0.975, 3) * rapo["std"] / 2
    np.testing.assert_allclose(rapo["score"] - bounds.loc["rapo-2026", "low"], half)
    # neither seeds nor spread known
    assert np.isnan(bounds.loc["iql-2021"]).all()


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("task,entry,score,std,seeds,steps\ntoy/a,bc,10.5,2,3,50\ntoy/b,bc,20,,,\n")
    found = read_scores(path)
    assert list(found["source"]) == ["mine", "mine"] and list(found["steps"]) == ["50", ""]
    assert found["seeds"].isna().tolist() == [False, True]
    assert np.isnan(intervals(found)["low"]).tolist() == [False, True]
    both = published_scores(["toy/a", HOPPER], [str(path), "corl"])
    assert set(both["source"]) == {"mine", "corl"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task,entry\na,bc\n", "no column score"),
        ("task,entry,score\na,bc,ten\n", "line 2: score='ten' is not a number"),
        ("task,entry,score\na,bc,1\na,iql,inf\n", "line 3: score='inf'"),
        ("task,entry,score,seeds\na,bc,1,2.5\n", "seeds='2.5' is not a number of seeds"),
        ("", "not a csv table"),
    ],
)
def test_a_table_that_is_none_is_told_in_one_line(tmp_path, text, words):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_scores(path)
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "other.csv")


def test_updates_are_read_from_text():
    assert [updates_of(t) for t in ("1M", "100k", "50", "", "1M or so")] == [
        10**6,
        10**5,
        50,
        None,
        None,
    ]
