"""What an entry scores when some of its policies may be tried online, against counts by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results.test_curves import TASK, recorded, together
from support.records import record_cells

from offbench.cli import main
from offbench.cli.online import columns_of
from offbench.errors import UserError
from offbench.results import stats
from offbench.results.online_budget import (
    Policies,
    bandit,
    expected_scores,
    online_table,
    policies_of,
    remarks,
)
from offbench.results.online_budget_figure import draw_online_figure
from offbench.results.store import Store

SCORES = st.floats(-50, 150).map(lambda x: round(x, 2))
SEVERAL = st.lists(st.lists(SCORES, min_size=1, max_size=4), min_size=1, max_size=5)


def points(scores, drawn=None, **more) -> np.ndarray:
    own = Policies([np.array(x, float) for x in scores], 1)
    found = expected_scores(own, drawn=drawn or len(scores), **({"trials": 60} | more))
    return np.array([x.point for x in found])


def test_one_policy_has_its_mean_at_every_number_of_pulls_and_no_interval():
    (found,) = {
        tuple(x) for x in expected_scores(Policies([np.array([0.0, 10.0])], 1), drawn=1, pulls=9)
    }
    assert found[0] == 5.0 and np.isnan(found[1:]).all()


def test_of_two_policies_without_noise_one_pull_is_their_mean_and_two_find_the_better_one():
    np.testing.assert_allclose(points([[10, 10], [30]], pulls=5), [20, 30, 30, 30, 30])


def test_three_of_five_policies_without_noise_are_the_order_statistics_of_a_sample():
    # best of the first two, and of all three, of five: mean of the largest over all samples
    one, two, three = points([[0], [1], [2], [3], [4]], drawn=3, pulls=3, trials=30_000)
    assert one == pytest.approx(2.0)
    pairs = [max(a, b) for a in range(5) for b in range(5) if a != b]
    triples = [max(a, b, c) for a in range(5) for b in range(a) for c in range(b)]
    assert two == pytest.approx(np.mean(pairs), abs=0.02)
    assert three == pytest.approx(np.mean(triples), abs=0.02)


def test_the_pulls_of_a_bandit_are_those_of_the_formula():
    """Rewards without noise: counts, and so choices, follow from mean + sqrt(2 ln t / n)."""
    scores = [np.array([1.0]), np.array([0.5])]
    count, total, chosen = np.zeros(2), np.zeros(2), []
    for t in range(1, 31):
        with np.errstate(divide="ignore", invalid="ignore"):
            value = total / count + np.sqrt(2 * np.log(t) / count)
        arm = t - 1 if t <= 2 else int(value.argmax())
        count[arm] += 1
        total[arm] += scores[arm][0]
        chosen.append(arm)

    class Counting:
        def random(self, n):
            return np.zeros(n)

    # policies that differ by which was tried last: their truth is what the bandit reports
    seen = bandit(scores, np.array([[0], [1]]), 30, Counting())
    assert (seen == 1.0).all() and 2 < count[1] < 15
    noisy = [np.array([0.0, 4.0]), np.array([1.1, 1.1])]

    class Fixed:
        def __init__(self):
            self.draws = iter([0.0, 0.0, 0.9, *[0.9] * 40])

        def random(self, n):
            return np.full(n, next(self.draws))

    # the first looks worse (0 < 1.1) until its bonus lets it be tried again, and then 4 is drawn
    found = bandit(noisy, np.array([[0], [1]]), 20, Fixed())[:, 0]
    assert found[0] == 2.0 and found[1] == 1.1
    n = 1
    while 1.1 + np.sqrt(2 * np.log(n + 2) / n) > np.sqrt(2 * np.log(n + 2)):
        n += 1
    assert found[n] == 1.1 and found[n + 1] == 2.0


@settings(max_examples=40, deadline=None)
@given(SEVERAL, st.integers(1, 5))
def test_a_curve_begins_at_the_mean_and_stays_between_the_worst_and_the_best_policy(scores, drawn):
    found, means = points(scores, min(drawn, len(scores)), pulls=12), [np.mean(x) for x in scores]
    assert found[0] == pytest.approx(np.mean(means), abs=1e-9)
    assert (found <= max(means) + 1e-9).all() and (found >= min(means) - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=6), st.integers(1, 6))
def test_without_noise_more_pulls_are_never_worse_and_trying_all_finds_the_best(means, drawn):
    drawn = min(drawn, len(means))
    found = points([[x] * 2 for x in means], drawn, pulls=9)
    assert (np.diff(found) >= -1e-9).all()
    if drawn == len(means):
        assert found[-1] == pytest.approx(max(means))


def test_with_noise_many_pulls_come_near_the_best():
    """Where scores are of the size of the bonus; successes and failures, of a share."""
    shares = [0.2, 0.5, 0.9]
    scores = [np.repeat([0.0, 1.0], [round(10 * (1 - p)), round(10 * p)]) for p in shares]
    found = points(scores, pulls=400, trials=200)
    assert found[0] == pytest.approx(np.mean(shares)) and found[-1] > 0.88
    assert found[[0, 9, 99, 399]].tolist() == sorted(found[[0, 9, 99, 399]])


@settings(max_examples=20, deadline=None)
@given(SEVERAL, st.randoms(use_true_random=False))
def test_the_order_of_policies_and_episodes_does_not_matter(scores, random):
    mixed = [random.sample(x, len(x)) for x in random.sample(scores, len(scores))]
    own = [Policies([np.array(x) for x in both], 1) for both in (scores, mixed)]
    a, b = (expected_scores(x, drawn=len(scores), pulls=6, trials=20) for x in own)
    np.testing.assert_array_equal(a, b)


def test_one_pull_has_the_interval_of_a_mean_and_equal_policies_have_none():
    means = np.array([10.0, 20.0, 25.0, 60.0])
    own = Policies([np.full(3, x) for x in means], 1)
    first = expected_scores(own, drawn=4, pulls=1)[0]
    known = stats.mean_interval(means)
    assert first.point == pytest.approx(known.point)
    assert (first.high - first.low) / (known.high - known.low) == pytest.approx(1, abs=0.15)
    alike = Policies([np.zeros(3)] * 4, 1, success=True)
    assert np.isnan([x.low for x in expected_scores(alike, drawn=4, pulls=3)]).all()
    with pytest.raises(UserError, match="5 policies are drawn of 4"):
        expected_scores(own, drawn=5)


@pytest.mark.parametrize("kind", ["normal", "fails"])
def test_the_interval_of_many_pulls_holds_the_best_of_other_policies(kind):
    """In most studies: drawn again as they are, eight policies would say too little of the best of eight."""
    rng = np.random.default_rng(0)

    def draw(shape):
        x = rng.normal(50, 10, shape)
        return x if kind == "normal" else np.where(rng.random(shape) < 0.25, 20, x)

    truth = draw((20_000, 8)).max(1).mean()
    hits, widths = 0, []
    for _ in range(30):
        own = Policies([np.array([x]) for x in draw(8)], 1)
        last = expected_scores(own, drawn=8, pulls=8, trials=8)[-1]
        hits += last.low <= truth <= last.high
        widths.append(last.high - last.low)
    assert hits >= 25
    # half of it in standard errors, of which the best of eight has 0.61: drawn again as they are 0.43
    assert kind != "normal" or np.mean(widths) / 2 / 2.365 / 10 > 0.48


BC = {100: [[10.0, 12.0], [20.0, 22.0], [30.0, 30.0]]}
LOW, HIGH = {100: [[0.0, 0.0], [40.0, 40.0]]}, {100: [[60.0, 60.0], [20.0, 20.0]]}


def test_settings_of_an_entry_are_its_policies_and_all_try_equally_many():
    frames = recorded({"bc": BC, "iql(expectile=0.7)": LOW, "iql(expectile=0.9)": HIGH})
    found = policies_of(*frames)
    assert {k[0]: (len(x.scores), x.settings) for k, x in found.items()} == {
        "bc": (3, 1),
        "iql": (4, 2),
    }
    table = online_table(*frames, pulls=3).set_index(["entry", "pulls"])
    assert set(table["drawn"]) == {3}
    assert table.loc[("iql", 1), "score"] == pytest.approx(30.0)
    assert table.loc[("bc", 3), "score"] == pytest.approx(30.0)
    # three of 0, 20, 40 and 60: 60 unless it is left out
    assert table.loc[("iql", 3), "score"] == pytest.approx(55.0, abs=1)
    said = " ".join(remarks(table.reset_index(), *frames))
    assert "3 of 8 policies, as bc has no more" in said and "iql: 4 policies of 2 settings" in said
    assert "here 2 at the fewest" in said
    # one setting alone keeps its name
    alone = policies_of(*recorded({"bc": BC, "iql(expectile=0.7)": LOW}))
    assert {entry for entry, _ in alone} == {"bc", "iql(expectile=0.7)"}


def test_failed_runs_monitor_episodes_and_other_updates_are_no_policies():
    with_monitor = {20: [[99.0]] * 3, **BC}
    episodes, runs = recorded({"bc": with_monitor})
    runs.loc[2, "status"] = "failed"
    others = [episodes.assign(stream="tune", update=100, score=99.0)]
    others += [episodes.assign(update=20, score=99.0, stream="test")]
    episodes = pd.concat([episodes, *others], ignore_index=True)
    table = online_table(episodes, runs, pulls=2)
    assert table["score"].tolist() == pytest.approx([16.0, 21.0]) and set(table["policies"]) == {2}
    assert "not counted: 1 of bc" in " ".join(remarks(table, episodes, runs))
    with pytest.raises(UserError, match="no run here is whole"):
        online_table(episodes, runs.assign(status="failed"))
    with pytest.raises(UserError, match="pulls is 0"):
        online_table(episodes, runs, pulls=0)


def test_the_same_rows_give_the_same_numbers_and_an_entry_changes_no_other():
    alone, both = recorded({"bc": BC}), recorded({"bc": BC, "iql": BC})
    a, b = (online_table(*x, pulls=5) for x in (alone, both))
    pd.testing.assert_frame_equal(a, b[b["entry"] == "bc"].reset_index(drop=True))


def test_tables_and_pictures_of_many_entries_and_tasks():
    frames = together(
        *(recorded({f"m{i}": BC for i in range(6)}, t) for t in (TASK, "toy/line-v0"))
    )
    table = online_table(*frames, pulls=60)
    head, rows = columns_of(table[table["task"] == TASK], 0)
    assert head == ["entry", "n", "1 pull", "10 pulls", "50 pulls", "60 pulls"] and len(rows) == 6
    assert rows[0][1] == "3/3" and rows[0][2].startswith("20.7 [")
    figure = draw_online_figure(table, "title")
    assert sum(axis.axison for axis in figure.axes) == 2
    draw_online_figure(table[table["entry"].isin(["m0", "m1"])])


def test_the_command_prints_and_writes_what_is_recorded(tmp_path, capsys):
    from offbench.bench.plan import plan

    what = ["methods=[bc,iql]", "task=offbench/hopper/medium-replay-v0", f"results={tmp_path}"]
    planned = plan(what, bench=True)
    record_cells(Store(tmp_path), planned.cells, lambda cell, seed: 10.0 * seed)
    assert main(["curves", "--pulls", "60", *what]) == 0
    out = capsys.readouterr().out
    assert "6/6" in out and "6 of 8 policies" in " ".join(out.split())
    assert max(map(len, out.split("written")[0].splitlines())) <= 80
    (path,) = (tmp_path / "board").glob("*-online.csv")
    table = pd.read_csv(path)
    assert len(table) == 2 * 60 and table.loc[table["pulls"] == 1, "score"].tolist() == [24.8, 24.8]
    assert table.loc[table["pulls"] == 60, "score"].tolist() == [49.8, 49.8]
    assert "| 60 pulls |" in path.with_suffix(".md").read_text().replace("  ", " ")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["curves", "--pulls", "0", *what]) == 2
    assert "--pulls 0: the number of episodes is at least 1" in capsys.readouterr().err
