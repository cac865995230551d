"""tests/parity/compare_goals.py and ogbench_peer.py: what is compared, and that the table is of the shipped scores."""

import json

import numpy as np
import pandas as pd
import pytest
from parity import compare_goals, ogbench_peer
from scipy import stats
from support.paths import ROOT

HERE = ROOT / "results" / "parity"
if not HERE.exists():
    pytest.skip("a source distribution carries no results", allow_module_level=True)


def test_the_ends_of_a_compact_set_are_its_last_observations_and_the_rows_before():
    lengths = [3, 1, 4]
    valid = np.concatenate([np.arange(n + 1) < n for n in lengths])
    wanted = [0, 0, 1, 1] + [1, 1] + [0, 0, 0, 1, 1]
    assert ogbench_peer.ends(valid).tolist() == wanted


def test_the_peers_rows_are_told_by_seed_and_batch(tmp_path):
    rows = [
        {"task": "t", "seed": seed, "updates": 9, "versions": "jax 0", "score": score}
        | {"settings": json.dumps({"batch_size": batch})}
        for batch in (64, 32)
        for seed in (1, 0)
        for score in (batch + seed, batch + seed + 2.0)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "hiql.csv")
    made = compare_goals.theirs(tmp_path, "1d4140997f60")
    told = made[["name", "batch", "seed", "score", "episodes", "commit"]].values.tolist()
    assert told == [
        ["hiql", batch, seed, batch + seed + 1.0, 2, "1d41409"]
        for batch in (32, 64)
        for seed in (0, 1)
    ]


def test_the_shipped_lines_follow_from_their_scores():
    table = pd.read_csv(HERE / "goals.csv")
    assert len(table) > 0
    for row in table.to_dict("records"):
        here, there = (
            np.asarray(row[f"{side}_scores"].split(), float) for side in ("offbench", "ogbench")
        )
        assert len(here) == len(there) == len(row["seed_numbers"].split()) == row["seeds"] >= 4
        assert row["offbench"] == pytest.approx(here.mean(), abs=0.01)
        assert row["ogbench"] == pytest.approx(there.mean(), abs=0.01)
        assert row["difference"] == pytest.approx(here.mean() - there.mean(), abs=0.01)
        welch = stats.ttest_ind(here, there, equal_var=False).confidence_interval(0.95)
        assert (row["welch_low"], row["welch_high"]) == pytest.approx(tuple(welch), abs=0.01)
    assert "\n".join(compare_goals.table(table)) in (HERE / "README.md").read_text()
