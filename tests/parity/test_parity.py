"""tests/parity/compare.py: what is compared with what, and the rule that calls it agreement."""

import numpy as np
import pandas as pd
import pytest
from parity import compare
from scipy import stats
from support.paths import ROOT

HERE = ROOT / "results" / "parity"
if not HERE.exists():
    pytest.skip("a source distribution carries no results", allow_module_level=True)


def side(name, scores, first=0, episodes=20, **changes):
    row = {
        "name": "iql",
        "task": "t",
        "updates": 9,
        "batch": 64,
        "side": name,
        "episodes": episodes,
        "commit": "abc",
        "settings": "s",
    } | changes
    return pd.DataFrame([row | {"seed": first + i, "score": x} for i, x in enumerate(scores)])


def cell(x, y, **changes):
    return compare.cell(("iql", "t", 9, 64), side("offbench", x), side("CORL", y, **changes))


SPREAD = np.asarray([-2.0, -1.0, 0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        (50 + SPREAD, 51 + SPREAD, "agrees"),  # the interval contains 0
        (50 + SPREAD / 100, 51.9 + SPREAD / 100, "agrees"),  # under 2 points
        (50 + SPREAD / 100, 52.1 + SPREAD / 100, "differs"),
        (50 + SPREAD, 45 + SPREAD, "differs"),
        (50 + 10 * SPREAD, 49 + 10 * SPREAD, "agrees, wide"),
        (np.full(5, 3.0), np.full(5, 3.0), "agrees"),
    ],
)
def test_the_rule(here, there, verdict):
    made = cell(here, there)
    assert made["verdict"] == verdict
    assert made["difference"] == pytest.approx(here.mean() - there.mean())
    assert (made["offbench"], made["corl"]) == pytest.approx((here.mean(), there.mean()))
    if np.ptp(here) > 0:
        welch = stats.ttest_ind(here, there, equal_var=False).confidence_interval(0.95)
        assert (made["welch_low"], made["welch_high"]) == pytest.approx(tuple(welch))


def test_a_cell_of_other_episodes_or_of_two_settings_is_no_cell():
    with pytest.raises(AssertionError):
        cell(SPREAD, SPREAD, episodes=10)
    mixed = side("CORL", SPREAD)
    mixed.loc[0, "settings"] = "other"
    with pytest.raises(AssertionError):
        compare.cell(("iql", "t", 9, 64), side("offbench", SPREAD), mixed)


def test_the_mean_over_cells_is_of_differences_and_one_cell_is_welch():
    one = [side("offbench", 50 + SPREAD), side("CORL", 49 + 3 * SPREAD)]
    point, low, high = compare.pooled(pd.concat(one))
    made = cell(50 + SPREAD, 49 + 3 * SPREAD)
    assert (point, low, high) == pytest.approx(
        (made["difference"], made["welch_low"], made["welch_high"])
    )
    two = [side(name, 100 + 0 * SPREAD, task="u") for name in ("offbench", "CORL")]
    assert compare.pooled(pd.concat(one + two)) == pytest.approx((point / 2, low / 2, high / 2))


def test_the_peers_rows_are_told_by_seed_and_batch(tmp_path):
    rows = [
        {"task": "t", "seed": seed, "updates": 9, "settings": settings, "score": score}
        for settings in ("hidden=64", "hidden=64 batch_size=32")
        for seed in (0, 1)
        for score in (1.0 + seed, 3.0 + seed)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "iql.csv")
    made = compare.theirs(tmp_path, "eeeeef2671")
    assert made.sort_values(["batch", "seed"])["score"].tolist() == [2.0, 3.0, 2.0, 3.0]
    assert sorted(made["batch"]) == [32, 32, 256, 256] and set(made["episodes"]) == {2}
    assert set(made["name"]) == {"iql"} and set(made["commit"]) == {"eeeeef2"}


def test_a_table_takes_the_place_of_the_one_before():
    text = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    once = compare.put(text, "x", ["1", "2"])
    assert once == "a\n<!-- x -->\n1\n2\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    assert compare.put(once, "x", ["1", "2"]) == once


def test_the_shipped_rows_follow_from_the_shipped_seeds():
    table, seeds = pd.read_csv(HERE / "parity.csv"), pd.read_csv(HERE / "per_seed.csv")
    cells = dict(list(seeds.groupby(compare.CELL)))
    assert len(cells) == len(table)
    for row in table.to_dict("records"):
        part = cells[tuple(row[k] for k in compare.CELL)]
        here, there = (part[part["side"] == name] for name in ("offbench", "CORL"))
        made = compare.cell(tuple(row[k] for k in compare.CELL), here, there)
        assert made["verdict"] == row["verdict"] and made["seeds"] == row["seeds"] >= 5
        for k in ("offbench", "corl", "difference", "welch_low", "welch_high"):
            assert made[k] == pytest.approx(row[k], abs=0.01)
    text = (HERE / "README.md").read_text()
    assert "\n".join(compare.scores(table)) in text
