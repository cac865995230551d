"""An entry against its rivals: the sentence, the numbers behind it, and what is refused."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import offbench
from offbench.errors import UserError
from offbench.results import aggregates, stats, uncertainty
from offbench.results.board.leaderboard import leaderboard
from offbench.results.compare import compare
from offbench.results.comparison import Comparison, _wrapped
from offbench.results.pairwise import Scores
from offbench.results.verdict import Finding, More, Variance, more_needed, spelt_p, verdict


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows_of(cells: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Episodes as a user has them, from {(entry, task): (n_seeds, n_episodes)}."""
    parts = []
    for (entry, task), values in cells.items():
        table = np.asarray(values, dtype=float)
        seed, episode = np.indices(table.shape)
        columns = {"seed": seed, "episode": episode, "score": table}
        part = pd.DataFrame({name: x.ravel() for name, x in columns.items()})
        parts.append(part.assign(entry=entry, task=task))
    return pd.concat(parts, ignore_index=True)


def normal(
    levels: dict[str, float | list[float]],
    tasks: int = 4,
    seeds: int = 5,
    spread: float = 2.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Seeds that vary by `spread` about the level of an entry, or its level on each task."""
    generator = rng(seed)
    each = {e: np.broadcast_to(level, tasks) for e, level in levels.items()}
    return rows_of(
        {
            (e, f"task{t}"): each[e][t]
            + generator.normal(0, spread, (seeds, 1))
            + generator.normal(0, 0.1, (seeds, 4))
            for e in levels
            for t in range(tasks)
        }
    )


def runs_of(rows: pd.DataFrame, **columns: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(episodes, runs) as of a store."""
    run_id = rows["entry"] + rows["task"] + rows["seed"].astype(str)
    rows = rows.assign(run_id=run_id, stream="test", update=10, env_seed=rows["episode"])
    runs = rows.drop_duplicates("run_id")[["run_id", "entry", "task", "seed"]]
    config = runs["entry"] + runs["task"]
    known = {"status": "ok", "n_updates": 10, "dataset_sha256": "0" * 64, "commit": "c" * 40}
    return rows, runs.assign(config_id=config, wall_s=8.0, pack=2, **known | columns)


# --- the sentence ---------------------------------------------------------------------------


def test_the_verdict_of_a_better_entry_names_where_it_is_worse() -> None:
    rows = normal({"mine": [60, 60, 60, 40, 50], "iql": [50, 50, 50, 60, 50]}, tasks=5)
    found = offbench.compare(rows, "mine", "iql")
    assert isinstance(found, Comparison) and isinstance(found.verdict, str)
    row = found.overall.iloc[0]
    assert found.verdict == (
        f"mine is better than iql: +{row['difference']:.1f} points [{row['low']:.1f}, {row['high']:.1f}]"
        f" over 5 tasks (p {'< 0.001' if row['p'] < 1e-3 else '= ' + format(row['p'], '.2g')});"
        " better on 3, worse on 1 (task3), not told apart on 1"
    )
    back = compare(rows, "iql", ["mine"])
    assert back.verdict.startswith("iql is worse than mine: -")
    assert "better on 1 (task3), worse on 3, not told apart on 1" in back.verdict
    assert back.overall.iloc[0]["low"] == pytest.approx(-row["high"])


def test_the_verdict_of_entries_that_cannot_be_told_apart_says_what_would() -> None:
    found = compare(normal({"mine": 50.0, "iql": 51.0}, seeds=3, spread=8.0), "mine", "iql")
    row = found.overall.iloc[0]
    more = int(row["more_seeds"])
    assert more > 3 and row["more_episodes"] == 0
    assert found.verdict == (
        f"mine and iql cannot be told apart yet: {row['difference']:+.1f} [{row['low']:.1f},"
        f" {row['high']:.1f}] over 4 tasks with 3 seeds; about {more} more seeds each would show a"
        " difference of 5 points with 80 % power"
    )
    less = compare(
        normal({"mine": 50.0, "iql": 51.0}, seeds=3, spread=8.0), "mine", "iql", difference=20
    )
    assert less.overall.iloc[0]["more_seeds"] < more


def test_entries_whose_interval_lies_within_the_difference_are_equivalent() -> None:
    rows = normal({"mine": 50.0, "iql": 50.0}, seeds=10, spread=1.0)
    assert compare(rows, "mine", "iql").verdict.startswith(
        "mine and iql are equivalent within 5 points: "
    )
    assert "cannot be told apart yet" in compare(rows, "mine", "iql", difference=0.1).verdict


def test_one_seed_says_nothing() -> None:
    rows = pd.concat([normal({"mine": 50.0}, seeds=1), normal({"iql": 90.0})])
    found = compare(rows, "mine", "iql")
    assert found.verdict == "mine against iql: nothing can be said with one seed (of mine)"
    assert found.table["outcome"].eq("one seed").all() and found.table["low"].isna().all()
    assert found.overall[["low", "p", "more_seeds"]].isna().all(axis=None)
    assert found.overall.iloc[0]["difference"] < -30


def finding(**changes: object) -> Finding:
    values = {
        "mine": "a", "rival": "b", "difference": 1.0, "low": -6.0, "high": 8.0, "p": 0.7,
        "better": [], "worse": [], "n_tasks": 3, "n_tasks_in_all": 3, "seeds": (3, 5), "single": [],
        "unit": "points", "pairs": 1, "more": More(7, 0),
    }  # fmt: skip
    return Finding(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "over 3 tasks with 3 to 5 seeds; about 7 more seeds each would show"),
        ({"more": More(1, 0)}, "; about 1 more seed each would show a difference of 5 points"),
        ({"more": More(0, 0)}, "; these would show a difference of 5 points with 80 % power"),
        ({"more": None}, "; even 1,000 more seeds each would not show"),
        (
            {"more": More(0, 40)},
            "; start states dominate, about 40 more test episodes each would show",
        ),
        ({"more": More(2, 1)}, "about 2 more seeds and 1 more test episode each would show"),
        ({"n_tasks_in_all": 5}, "over 3 of 5 tasks with"),
        ({"low": -6.0, "high": 4.0}, "a and b cannot be told apart yet: +1.0 [-6.0, 4.0]"),
        ({"low": -4.0, "high": 4.0}, "a and b are equivalent within 5 points: +1.0 [-4.0, 4.0]"),
        (
            {"low": 0.5, "p": 0.12, "pairs": 6, "better": ["x"]},
            "(p = 0.12 as one of 6 pairs); better on 1 (x), not told apart on 2; about 7",
        ),
        ({"difference": np.nan, "worse": ["x", "y", "z"]}, "no mean; worse on 3"),
        ({"unit": "of return", "p": 0.0001}, "a is better than b: +1.0 of return [-6.0, 8.0]"),
        ({"p": 0.0001, "better": "xyz"}, "(p < 0.001); better on 3"),
    ],
)
def test_the_words_of_a_verdict(changes, words) -> None:
    sentence = verdict(finding(**changes), difference=5, level=0.95)
    assert words in sentence and "\n" not in sentence
    assert sentence.endswith(words) or not words.startswith("(p < 0.001)")


# --- the numbers ----------------------------------------------------------------------------


def test_its_numbers_are_those_of_the_board_and_of_pairwise() -> None:
    rows, runs = runs_of(normal({"a": 50.0, "b": 51.0, "c": 54.0, "d": 60.0}, spread=5.0))
    tasks = sorted(set(rows["task"]))
    found = compare(rows, "a", runs=runs)
    board = leaderboard(rows, runs, tasks)
    expected = board.pairwise
    expected = expected[expected["entry"] == "a"].set_index("rival")
    shared = list(expected.columns[1:])
    numbers = found.overall.set_index("rival")[shared]
    pd.testing.assert_frame_equal(numbers, expected[shared], check_dtype=False)
    means = board.cells.set_index(["entry", "task"])["mean"]
    iqm = board.aggregate.set_index("entry")["iqm"]
    for row in found.table.itertuples():
        assert (
            row.mine_score == means["a", row.task] and row.rival_score == means[row.rival, row.task]
        )
        assert row.difference == row.mine_score - row.rival_score
        assert row.low < row.difference < row.high
    for row in found.overall.itertuples():
        assert (row.mine_iqm, row.rival_iqm) == (iqm["a"], iqm[row.rival])
        assert row.mine_optimality_gap == pytest.approx(100 - row.mine_mean)
    wins = found.table.groupby("rival")["outcome"].apply(lambda x: (x == "worse").sum())
    assert wins.to_dict() == found.overall.set_index("rival")["losses"].to_dict()
    assert wins["d"] > 0
    assert set(found.verdict) == {"b", "c", "d"}
    assert any("overall for 6 pairs" in note for note in found.notes)


def test_success_rates_differ_by_no_more_than_100_points() -> None:
    won = {e: np.array([[p] * 5, [p] * 5, [100 - p] * 5]) for e, p in (("a", 100), ("b", 0))}
    found = compare(rows_of({(e, "t"): x for e, x in won.items()}), "a", "b")
    row = found.table.iloc[0]
    assert -100 <= row["low"] < row["difference"] < row["high"] == 100

    both = compare(rows_of({(e, t): x for e, x in won.items() for t in "tuv"}), "a", "b").overall
    assert both.iloc[0]["low"] < both.iloc[0]["difference"] <= both.iloc[0]["high"] == 100


def test_of_an_entry_with_one_seed_no_pair_is_counted() -> None:
    rows = pd.concat([normal({"a": 50.0, "b": 60.0, "c": 55.0}), normal({"d": 50.0}, seeds=1)])
    found = compare(rows, "a")
    assert found.overall.set_index("rival")["n_pairs"].to_dict() == {"b": 3, "c": 3, "d": 3}
    assert "tasks: 0 better, 0 worse, 4 not told apart" in str(compare(rows, "a", "d"))


def test_long_names_of_tasks_stay_different_and_p_stays_with_its_value() -> None:
    rows = normal({"a-long-name": 50.0, "another-name": 60.0}, tasks=3)
    names = {
        f"task{i}": f"halfcheetah-{x}"
        for i, x in enumerate(("medium", "medium-replay", "medium-expert"))
    }
    text = str(compare(rows.assign(task=rows["task"].map(names)), "a-long-name", "another-name"))
    shown = [line.split("  ")[0] for line in text.splitlines() if line.startswith("halfch")]
    assert len(set(shown)) == 3 and max(map(len, text.splitlines())) <= 80
    for words in (f"{'x' * n} (p = 0.02); y" for n in range(60, 80)):
        assert any("(p = 0.02)" in line for line in _wrapped(words))


def test_what_a_reader_must_know_of_own_rows_is_said() -> None:
    rows = normal({"a": 50.0, "b": 50.0, "c": 50.0})
    assert compare(rows.astype({"seed": float}), "a", "b").table.equals(
        compare(rows, "a", "b").table
    )
    numbered = rows.assign(entry=rows["entry"].map({"a": 1, "b": 2, "c": 3}))
    assert set(compare(numbered, 1, 2).verdicts) == {"2"}  # type: ignore[arg-type]
    cut = rows[~((rows["entry"] == "a") & (rows["seed"] == 0) & (rows["episode"] > 0))]
    notes = compare(cut, "a", "b", ["task1"]).notes
    assert "a on task1 has 1 to 4 test episodes a seed" in notes and len(notes) == 2
    small = compare(rows.assign(score=rows["score"] / 100), "a", "b").notes[0]
    assert small.startswith("no score is above 0.5") and small.endswith("must be given as 100")
    fewer = rows[~((rows["entry"] == "c") & (rows["seed"] == 0))]
    assert any("a board leaves those" in x for x in compare(fewer, "a", "b").notes)
    assert not any("a board leaves those" in x for x in compare(rows, "a", "b").notes)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.0496, "p = 0.0496"),
        (0.0503, "p = 0.0503"),
        (0.013, "p = 0.013"),
        (1e-4, "p < 0.001"),
        (1, "p = 1"),
    ],
)
def test_a_p_value_near_the_level_keeps_the_digit_that_decides(p, words) -> None:
    assert spelt_p(p) == words


def test_returns_of_several_scales_are_compared_by_task() -> None:
    rows = normal({"a": [50, 4000, 50, 50], "b": [50, 3000, 90, 50]})
    found = compare(rows, "a", "b", unscaled=["task1"])
    assert found.verdict == (
        "a against b: the returns of these tasks have no common scale and no mean; better on 1 (task1),"
        " worse on 1 (task2), not told apart on 2"
    )
    assert found.overall[["difference", "mine_iqm", "mine_mean"]].isna().all(axis=None)
    one = compare(rows, "a", "b", ["task1"], unscaled=["task1"])
    assert "of return" in one.verdict and one.overall["mine_optimality_gap"].isna().all()


def test_entries_are_compared_over_the_tasks_that_both_have_and_it_says_so() -> None:
    rows = normal({"a": 50.0, "b": 60.0, "c": 61.0})
    rows = rows[~((rows["entry"] == "b") & rows["task"].isin(["task1", "task2"]))]
    found = compare(rows, "a")
    table = found.table.groupby("rival")["task"].apply(list)
    assert table["b"] == ["task0", "task3"] and len(table["c"]) == 4
    assert "over 2 of 4 tasks" in found.verdict["b"] and "over 4 tasks" in found.verdict["c"]
    assert "a and b share 2 of 4 tasks: b has no runs on task1, task2" in found.notes
    # the tests of a column are those of the whole board
    alone = compare(rows, "a", "b")
    mask = found.table["rival"] == "b"
    assert alone.table["p"].tolist() == found.table[mask]["p"].tolist()


def test_different_numbers_of_seeds_are_compared() -> None:
    rows = pd.concat([normal({"a": 50.0}, seeds=3), normal({"b": 60.0}, seeds=7)])
    found = compare(rows, "a", "b")
    row = found.overall.iloc[0]
    assert (row["n_seeds"], row["n_seeds_max"]) == (3, 7) and row["p"] < 0.01
    assert found.notes == ("a has 3 seeds a task, b has 7 seeds",)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda r: r.drop(columns=["score", "seed"]),
            {},
            "rows: no column seed, score; needed are",
        ),
        (lambda r: r.assign(score=np.nan), {}, "not finite"),
        (lambda r: r.assign(score="x"), {}, "column score has 'x', not numbers"),
        (lambda r: r.assign(seed=r["seed"] + 0.5), {}, "column seed has '0.5', not whole numbers"),
        (
            lambda r: r.assign(seed=r["seed"].where(r.index > 9)),
            {},
            "column seed has 'nan', not whole",
        ),
        (
            lambda r: r.assign(entry=r["entry"].where(r.index > 9)),
            {},
            "column entry is empty in 10 rows",
        ),
        (
            lambda r: r.assign(score=(r["score"] > 50) * 1.0),
            {},
            "task0 are 0 or 1; a success is 100",
        ),
        (
            lambda r: r.assign(update=np.where((r["entry"] == "iql") & (r["seed"] == 0), 5, 10)),
            {},
            "rows: iql on task0 has seeds that end at update 5 and at 10",
        ),
        (lambda r: r, {"rivals": []}, "no rival of 'mine' is named"),
        (lambda r: pd.concat([r, r.head(1)]), {}, "mine on task0, seed 0, has episode 0 twice"),
        (lambda r: r.assign(stream="monitor"), {}, "no test episodes"),
        (lambda r: r.head(0), {}, "no test episodes"),
        (lambda r: r, {"mine": "mien"}, "unknown entry 'mien': did you mean 'mine'"),
        (lambda r: r, {"rivals": ["iqll"]}, "unknown entry 'iqll': did you mean 'iql'"),
        (lambda r: r, {"tasks": ["task9"]}, "unknown task 'task9': did you mean"),
        (lambda r: r, {"rivals": ["mine"]}, "'mine' is compared with itself"),
        (lambda r: r[r["entry"] == "mine"], {"rivals": None}, "it is the only entry"),
        (lambda r: r, {"difference": 0}, "difference is 0"),
        (lambda r: r, {"difference": float("inf")}, "difference is inf"),
        (lambda r: r, {"level": 95}, "between 0 and 1"),
        (
            lambda r: r[(r["entry"] == "mine") == (r["task"] == "task0")],
            {},
            "'mine' and 'iql' have no common task: mine has task0, iql has task1, task2, task3",
        ),
    ],
)
def test_bad_rows_are_refused_in_one_line(change, arguments, message) -> None:
    rows = change(normal({"mine": 50.0, "iql": 51.0}))
    values = {"mine": "mine", "rivals": ["iql"]} | arguments
    with pytest.raises(UserError, match=_literal(message)) as error:
        compare(rows, **values)
    assert "\n" not in str(error.value)


def _literal(text: str) -> str:
    import re

    return re.escape(text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataset_sha256", "1" * 64, "they differ in dataset_sha256 (000000000000, 111111111111)"),
        ("n_updates", 20, "they differ in n_updates (10, 20)"),
        ("env.id", "Ant-v5", "they differ in env.id (unset, Ant-v5)"),
        ("protocol.episodes", 100, "they differ in protocol.episodes (unset, 100)"),
        ("protocol.validation", 0.1, "they differ in protocol.validation (unset, 0.1)"),
    ],
)
def test_other_data_environments_and_protocols_are_refused(name, value, message) -> None:
    rows, runs = runs_of(normal({"mine": 50.0, "iql": 51.0, "bc": 20.0}))
    runs.loc[(runs["entry"] == "iql") & (runs["task"] == "task2"), name] = value
    if name == "n_updates":
        rows.loc[(rows["entry"] == "iql") & (rows["task"] == "task2"), "update"] = value
    with pytest.raises(UserError, match=_literal(message)) as error:
        compare(rows, "mine", ["iql"], runs=runs)
    assert "on task2" in str(error.value)
    # of all rivals the comparable ones are shown, and the others named
    found = compare(rows, "mine", runs=runs)
    assert set(found.overall["rival"]) == {"bc"}
    assert any(note.startswith("left out: ") and message in note for note in found.notes)
    assert compare(rows, "mine", ["iql"], ["task0", "task1"], runs=runs).overall["n_tasks"][0] == 2


def test_published_budgets_and_monitor_streams_may_differ() -> None:
    rows, runs = runs_of(normal({"mine": 50.0, "iql": 51.0}))
    of = runs["entry"] == "iql"
    runs["n_updates"] = np.where(of, 20, 10)
    rows["update"] = np.where(rows["entry"] == "iql", 20, 10)
    runs["tuning.published_updates"] = runs["n_updates"]
    runs["protocol.monitor_episodes"] = np.where(of, 3, 0)
    assert len(compare(rows, "mine", ["iql"], runs=runs).table) == 4
    runs["tuning.published_updates"] = 10
    with pytest.raises(UserError, match="differ in n_updates"):
        compare(rows, "mine", ["iql"], runs=runs)


def test_the_finished_seeds_of_an_entry_that_diverged_are_not_compared() -> None:
    rows, runs = runs_of(normal({"mine": 50.0, "iql": 51.0, "bc": 20.0}))
    runs.loc[
        (runs["entry"] == "iql") & (runs["task"] == "task1") & (runs["seed"] == 0), "status"
    ] = "diverged"
    with pytest.raises(UserError, match="'iql' has a failed or diverged run on task1"):
        compare(rows, "mine", ["iql"], runs=runs)
    with pytest.raises(UserError, match="'iql' has a failed or diverged run on task1"):
        compare(rows, "iql", ["mine"], runs=runs)
    found = compare(rows, "mine", runs=runs)
    assert list(found.overall["rival"]) == ["bc"] and "iql" in found.notes[0]


def test_two_runs_of_one_seed_are_refused() -> None:
    rows, _ = runs_of(normal({"mine": 50.0, "iql": 51.0}))
    with pytest.raises(UserError, match="has two runs of seed"):
        compare(pd.concat([rows, rows.assign(run_id=rows["run_id"] + "x")]), "mine", "iql")


# --- how it is written ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> Comparison:
    long = "offbench/halfcheetah-medium-replay-with-a-long-name-v0"
    rows, runs = runs_of(normal({"mine": 50.0, "iql(expectile=0.9)": 55.0, "bc": 20.0}))
    rows = rows.assign(task=rows["task"].replace("task0", long))
    runs = runs.assign(task=runs["task"].replace("task0", long))
    return compare(rows, "mine", runs=runs)


def test_the_text_fits_80_columns_and_has_a_block_for_each_rival(written) -> None:
    text = str(written)
    assert max(map(len, text.splitlines())) <= 80
    for rival, sentence in written.verdict.items():
        assert " ".join(text.split()).count(" ".join(sentence.split())) == 1
        assert f"{rival[:10]}" in text
    assert text.count("probability that a run of mine is the better one: ") == 2
    assert "entry" in text and "ccccccc" in text and text.count("IQM") == 2


def test_csv_json_and_markdown_have_the_same_numbers(written) -> None:
    body = json.loads(written.to_json())
    table = pd.read_csv(io.StringIO(written.to_csv()))
    assert body["verdicts"] == dict(written.verdicts)
    overall = table[table["kind"] == "overall"].set_index("rival")
    for line, row in zip(body["overall"], written.overall.itertuples(), strict=True):
        assert line["difference"] == row.difference == overall.loc[line["rival"], "difference"]
        assert line["p"] == row.p and line["wins"] == row.wins
    assert (table["kind"] == "task").sum() == len(body["tasks"]) == len(written.table) == 8
    assert (table["kind"] == "costs").sum() == len(body["costs"]) == 3
    text = written.to_markdown()
    assert all(f"**{sentence}**" in text for sentence in written.verdicts.values())
    for row in written.table.itertuples():
        assert f"{row.difference:+.1f} [{row.low:.1f}, {row.high:.1f}]" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| ")]
    assert set(widths) <= {6, 7, 8}


def test_names_may_be_categories_as_those_of_the_rows_behind_a_board() -> None:
    episodes, runs = runs_of(normal({"a": 50.0, "b": 60.0}))
    coded = episodes.astype(dict.fromkeys(("run_id", "entry", "task"), "category"))
    found, plain = (compare(x, "a", "b", runs=runs) for x in (coded, episodes))
    assert found.verdicts == plain.verdicts and found.table.equals(plain.table)


# --- error rate and power -------------------------------------------------------------------


def told_apart(generator: np.random.Generator, gap: float, n: int, spread: float = 6.0) -> bool:
    """Whether the board tells two entries apart on four tasks with n seeds each."""
    tasks = tuple("stuv")
    found = {
        (e, t): uncertainty.Cell(
            50 + level + generator.normal(0, spread, n), 10, name=f"{e} on {t}"
        )
        for e, level in (("a", gap), ("b", 0.0))
        for t in tasks
    }
    pool = uncertainty.Pool.of(list(found.values()))
    scores = Scores(tasks, found, dict.fromkeys(tasks, pool), frozenset(), frozenset())
    options = {"reps": 400, "level": 0.95, "seed": 0}
    whole = scores.aggregates(["a", "b"], tasks, **options)
    return aggregates.differences(whole).adjusted()[0, 1] < 0.05


def test_equal_entries_are_called_different_in_at_most_5_of_100_boards() -> None:
    """500 boards of 3 seeds; 0.05 and three standard errors."""
    generator, trials = rng(1), 500
    wrong = sum(told_apart(generator, 0.0, 3) for _ in range(trials))
    assert wrong / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_the_seeds_it_asks_for_show_the_difference_in_about_80_of_100_cases() -> None:
    """12 first studies of 4 seeds, 25 repetitions each with the seeds they ask for: 0.7 to 0.9 of 300.

    Sampling error of the share is 0.023; the first studies' estimates of the variance add about as much.
    """
    generator, shown, trials = rng(2), 0, 25
    for _ in range(12):
        tables = {
            (e, t): 50 + generator.normal(0, 6, (4, 1)) + np.zeros((1, 2))
            for e in "ab"
            for t in "stuv"
        }
        more = compare(rows_of(tables), "a", "b").overall.iloc[0]["more_seeds"]
        assert more > 0
        shown += sum(told_apart(generator, 5.0, 4 + int(more)) for _ in range(trials))
    assert 0.7 <= shown / (12 * trials) <= 0.9


def test_the_number_of_seeds_is_that_of_the_exact_power_of_a_t_test() -> None:
    spread, gap = 6.0, 5.0
    for level in (0.95, 0.99):
        n = 3
        while True:
            freedom = 2 * (n - 1)
            noncentral = gap / (spread * np.sqrt(2 / n))
            critical = scipy.stats.t.ppf((1 + level) / 2, freedom)
            if scipy.stats.nct.sf(critical, freedom, noncentral) >= 0.8:
                break
            n += 1
        variance = Variance((spread**2 / 3,) * 2, (3, 3), (2, 2), 0.0, 10, 9)
        assert more_needed(variance, gap, level=level).seeds == pytest.approx(n - 3, abs=1)
    # Holm's first step of ten pairs at 0.95 is as strict as one at 0.995
    one = more_needed(variance, gap, level=0.995)
    assert more_needed(variance, gap, pairs=10) == one


def test_where_start_states_dominate_more_episodes_are_asked_for() -> None:
    variance = Variance((1.0, 1.0), (3, 3), (3, 3), 40.0, 10, 9)
    found = more_needed(variance, 5.0)
    assert found.episodes > 0
    # with both the difference is 2.8 standard errors, t quantiles are a little wider
    seeds = 2 * 3 / (3 + found.seeds)
    states = 40 * 10 / (10 + found.episodes)
    assert 2.8 <= 5 / np.sqrt(seeds + states) < 3.6
    assert more_needed(Variance((1.0, 1.0), (3, 3), (3, 3), 0.0, 10, 9), 50.0) == More(0, 0)
    assert more_needed(Variance((1e6, 1e6), (3, 3), (3, 3), 0.0, 10, 9), 5.0) is None
    # of real rows: the luck of a start state differs between the entries, seeds hardly do
    generator = rng(3)
    tables = {
        (e, t): generator.normal(50, 25, (1, 10)) + generator.normal(0, 1, (4, 10))
        for e in "ab"
        for t in "st"
    }
    rows = rows_of(tables).assign(env_seed=lambda r: r["episode"])
    row = compare(rows, "a", "b").overall.iloc[0]
    assert row["more_episodes"] > 10
    assert "start states dominate" in row["verdict"] or row["p"] < 0.05


def test_few_start_states_have_the_power_of_few_observations() -> None:
    """A difference of 3 standard errors, all of five start states, is seen in 6 of 10 studies, not in 8."""
    power = lambda gap: scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, 4), 4, gap)
    variance = Variance((1e-6, 1e-6), (20, 20), (20, 20), 1.0, 5, 4)
    assert power(3.0) < 0.7 and more_needed(variance, 3.0).episodes > 0
    enough = next(gap for gap in np.arange(2.0, 6.0, 0.01) if power(gap) >= 0.8)
    least = next(gap for gap in np.arange(2.0, 6.0, 0.01) if more_needed(variance, gap) == (0, 0))
    assert least == pytest.approx(enough, rel=0.05)


def test_what_compare_shows_of_a_board_is_rliables() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    rows = normal({"a": 50.0, "b": 55.0}, tasks=5, seeds=6)
    row = compare(rows, "a", "b").overall.iloc[0]
    table = rows.groupby(["entry", "seed", "task"])["score"].mean().unstack("task")
    a = table.loc["a"].to_numpy()
    for name in ("iqm", "mean", "median", "optimality_gap"):
        options = {"gamma": 100.0} if name == "optimality_gap" else {}
        expected = getattr(metrics, f"aggregate_{name}")(a, **options)
        assert row[f"mine_{name}"] == pytest.approx(expected, abs=1e-12)
    assert stats.iqm(a) == row["mine_iqm"]
