"""The sequential rule: its looks, what they decide, and its error rate in simulated studies."""

from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import simulate_sequential as simulated
from support.boards import frames
from support.paths import ROOT

from offbench.errors import UserError
from offbench.results import aggregates
from offbench.results.sequential import EQUIVALENT, Look, Progress, Rule, decide, looks, progress

TASKS = ("x", "y")
FIRST, MOST = 3, 8


def scores(means: dict[str, list[float]], spread: float = 1.0) -> dict[tuple[str, str], Any]:
    """{(entry, task): seeds x 4 episodes} around the mean of each seed."""
    around = spread * np.array([-1.5, -0.5, 0.5, 1.5])
    return {
        (e, t): [(m + around + s % 2).tolist() for s, m in enumerate(x)]
        for e, x in means.items()
        for t in TASKS
    }


def repeat(
    means: dict[str, list[float]], *, changed: Any = None, margin: float | None = 5.0
) -> Progress:
    """The progress on the records of some entries; `changed` alters them before."""
    table = scores(means)
    if changed:
        changed(table)
    episodes, runs = frames(table)
    rule = Rule(looks(FIRST, MOST), margin=margin)
    return progress(episodes, runs, TASKS, list(means), seeds=range(MOST), rule=rule)


# --- looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "most"), [(3, 3), (3, 4), (6, 20), (5, 100), (8, 9), (18, 20)])
def test_looks_end_at_the_most_seeds_and_spend_all_of_the_error(first: int, most: int) -> None:
    found = looks(first, most)
    assert found[0] == first and found[-1] == most and (np.diff(found) > 0).all()
    assert all(b <= -(-3 * a // 2) or b == most for a, b in pairwise(found))
    rule = Rule(found)
    assert sum(rule.spent(k) for k in range(len(found))) == pytest.approx(0.05)
    assert rule.spent(0) == pytest.approx(0.05 * first / most)


# --- decisions ------------------------------------------------------------------------------


def test_what_is_clear_is_decided_at_once_and_only_the_rest_gets_seeds() -> None:
    noisy = [10.0, 60.0, 35.0]
    found = repeat({"best": [90.0] * 3, "bad": noisy, "worse": noisy[::-1]}, margin=None)
    (look,) = found.looks
    assert look.decided == {("bad", "best"): "worse", ("best", "worse"): "better"}
    assert look.undecided == (("bad", "worse"),) and look.entries == ("bad", "worse")
    assert found.asked == {"best": 3, "bad": 5, "worse": 5} and not found.finished


def test_a_decision_stands_whatever_later_seeds_say_and_early_seeds_wait() -> None:
    turned = {"a": [90.0] * 3 + [0.0] * 5, "b": [40.0] * 8, "c": [30.0, 50.0] * 4}
    found = repeat(turned, margin=None)
    assert found.decided[("a", "b")] == "better" and found.asked["a"] == 3
    assert found.looks[0] == repeat({e: x[:3] for e, x in turned.items()}, margin=None).looks[0]
    assert found.finished and [look.n_seeds for look in found.looks] == [3, 5, 8]


def test_the_levels_of_all_pairs_and_looks_by_hand() -> None:
    """p <= 0.05 w / (pairs not called different yet), smallest first; then two one-sided tests of all pairs."""
    rng, rule, margin = np.random.default_rng(0), Rule((4, 8)), 5.0
    seen = dict.fromkeys(("bonferroni", "both looks", "equivalent counts", "all pairs"), 0)
    for _ in range(40):
        tables = {
            (e, "x"): rng.normal(m, s, (8, 1)) + rng.normal(0, 1, (8, 10))
            for e, (m, s) in {"a": (0, 1), "b": (0, 1), "c": (5, 3), "d": (12, 5)}.items()
        }
        at = partial(simulated.scores_of, tables, kind="steady")
        found = decide(at, "abcd", rule, reps=100)
        rest, decided = list(combinations("abcd", 2)), dict[tuple[str, str], str]()
        for number, look in enumerate(found.looks):
            budget, tested = rule.spent(number), {e for pair in rest for e in pair}
            scores = at({e: 8 if number and e in tested else 4 for e in "abcd"})
            iqms = scores.aggregates("abcd", ("x",), reps=100, level=0.95, seed=0)
            pairs = aggregates.differences(iqms)
            points = {e: one.interval.point for e, one in zip("abcd", iqms)}
            of = lambda pair, values: values["abcd".index(pair[0]), "abcd".index(pair[1])]
            p = {pair: of(pair, pairs.adjusted(holm_over_all=False)) for pair in rest}
            for pair in sorted(rest, key=p.__getitem__):
                same = list(decided.values()).count(EQUIVALENT)
                left = 6 - len(decided) + same
                seen["equivalent counts"] += budget / left < p[pair] <= budget / (left - same)
                if p[pair] > budget / left:
                    break
                seen["bonferroni"] += p[pair] > budget / 6
                seen["both looks"] += number
                decided[pair] = "better" if points[pair[0]] > points[pair[1]] else "worse"
            for pair in set(rest) - set(decided):
                within = []
                for n in (6, 1):
                    low, high = (of(pair, x) for x in pairs.intervals(1 - 2 * budget / n))
                    within.append(-margin < low and high < margin)
                decided |= {pair: EQUIVALENT} if within[0] else {}
                seen["all pairs"] += within[1] and not within[0]
            assert look.decided == decided
            rest = [pair for pair in rest if pair not in decided]
    # every part of the rule mattered somewhere
    assert min(seen.values()) > 0, seen


def test_entries_alike_are_equivalent_within_the_margin_and_stay_alike() -> None:
    means = {"a": [50.0, 50.5, 49.5], "b": [50.2, 50.4, 49.6]}
    found = repeat(means)
    assert found.decided == {("a", "b"): EQUIVALENT} and found.finished
    assert found.asked == {"a": 3, "b": 3}
    assert not repeat(means, margin=None).decided
    assert not repeat(means, margin=0.5).decided


def test_returns_have_no_margin_in_points() -> None:
    episodes, runs = frames({(e, "x"): [[50.0, 51.0]] * 3 for e in "ab"})
    more = {"seeds": range(3), "rule": Rule((3,)), "unscaled": ["x"]}
    assert not progress(episodes, runs, ["x"], ["a", "b"], **more).decided


# --- records --------------------------------------------------------------------------------


def test_missing_runs_are_asked_for_and_a_failed_one_leaves_its_entry_out() -> None:
    means = {e: [10.0, 60.0, 35.0, 20.0, 50.0][: 5 - (e == "c")] for e in "abc"}
    waiting = repeat(means, margin=None)
    assert len(waiting.looks) == 1 and waiting.asked == {"a": 5, "b": 5, "c": 5}

    def fails(table: dict) -> None:
        table["c", "x"][4:] = ["failed"]
        table["c", "y"].append(table["c", "y"][0])

    failed = repeat(means, changed=fails, margin=None)
    assert [look.undecided for look in failed.looks] == [
        (("a", "b"), ("a", "c"), ("b", "c")),
        (("a", "b"),),
    ]
    assert failed.asked == {"a": 8, "b": 8, "c": 5} and failed.n_pairs == 3


def test_without_any_record_the_first_seeds_are_asked_for() -> None:
    rule = Rule((3, 5))
    nothing = pd.DataFrame(), pd.DataFrame(columns=["entry", "task", "seed"])
    found = progress(*nothing, TASKS, ["a", "b"], seeds=range(5), rule=rule)
    assert found == Progress(rule, (), {"a": 3, "b": 3}, 1) and not found.finished
    with pytest.raises(UserError, match="4 seeds are named for a last look of 5"):
        progress(*nothing, TASKS, ["a", "b"], seeds=range(4), rule=rule)


def test_a_look_knows_the_entries_of_its_pairs() -> None:
    assert Look(3, {}, (("a", "c"), ("b", "c"))).entries == ("a", "b", "c")


# --- simulated studies ----------------------------------------------------------------------

RULE = Rule(looks(3, 20))


def _at_most(studies: int) -> float:
    """5 % and two standard errors of its estimate."""
    return 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


def test_equal_entries_are_called_different_in_5_of_100_studies_at_most() -> None:
    """Seeds of which one in four fails; with no correction for looks it is twice as often."""
    studies = 150
    found = simulated.simulate("bimodal", (0, 0), RULE, studies)
    assert found.error <= _at_most(studies) < found.uncorrected


def test_a_clear_difference_stops_early() -> None:
    found = simulated.simulate("skewed", (0, 20), RULE, 30)
    assert found.power == 1 and found.seeds < 6
    assert simulated.simulate("steady", (0, 10), RULE, 20).seeds < 4


def test_the_table_of_the_page_is_that_of_the_simulation() -> None:
    table = pd.read_csv(simulated.HERE)
    assert (table.loc[table["error"].notna(), "error"] <= 0.05).all()
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    for line in simulated.markdown(table).splitlines():
        assert line in page, line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skewed", "bimodal", "success"])
@pytest.mark.parametrize("first", [3, 6])
def test_the_error_rate_of_many_studies(kind: str, first: int) -> None:
    rule, studies = Rule(looks(first, 20)), 2000
    assert simulated.simulate(kind, (0, 0), rule, studies).error <= _at_most(studies)


@pytest.mark.slow
def test_the_error_rate_of_four_entries_of_which_two_pairs_are_equal() -> None:
    found = simulated.simulate("bimodal", (0, 0, 25, 25), RULE, 1000)
    assert found.error <= _at_most(1000) and found.wrongly_equal <= _at_most(1000)
