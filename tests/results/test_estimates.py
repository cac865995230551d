"""Estimated values: rows and files, intervals, and how well estimates order policies."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from offbench.errors import UserError
from offbench.results.estimates import (
    ESTIMATE_SCHEMA,
    PLAYED,
    bootstrap,
    is_estimated,
    over_seeds,
    path_of,
    quality,
    read_estimates,
    spearman,
    values,
    write_estimates,
)


def rows(run: str, x, estimator: str = "fqe") -> pd.DataFrame:
    columns = {"run_id": run, "estimator": estimator, "episode": range(len(x)), "value": x}
    return pd.DataFrame(columns).assign(effective=np.nan)


def runs(*names: str) -> pd.DataFrame:
    """Runs named entry-seed on one task."""
    entries = [name.split("-")[0] for name in names]
    return pd.DataFrame({"run_id": names, "entry": entries, "task": "toy"})


def test_rows_are_written_and_read_with_the_policy_and_settings_they_are_of(tmp_path):
    kept = tmp_path / "policy.safetensors"
    kept.write_bytes(b"a")
    mark = tmp_path / "runs" / "s" / "t" / "e" / "0123.json"
    path = path_of(tmp_path, mark, "fqe")
    assert path == tmp_path / "estimates" / "s" / "t" / "e" / "0123.fqe.parquet"
    assert not is_estimated(path, kept, {"gamma": 0.9})
    write_estimates(path, rows("0123", [1.0, 2.0]), kept, {"gamma": 0.9})
    found = read_estimates([path])
    assert list(found.columns) == ESTIMATE_SCHEMA.names and found["value"].tolist() == [1.0, 2.0]
    assert is_estimated(path, kept, {"gamma": 0.9})
    assert not is_estimated(path, kept, {"gamma": 0.8})
    kept.write_bytes(b"b")
    assert not is_estimated(path, kept, {"gamma": 0.9})
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match="cannot be read as estimates"):
        read_estimates([path])
    assert read_estimates([]).empty


def test_an_entry_is_worth_the_mean_over_its_seeds_with_an_interval_of_seeds_and_starts():
    generator = np.random.default_rng(0)
    starts = generator.normal(size=40)
    table = pd.concat([rows(f"a-{i}", 10 + i + starts) for i in range(3)] + [rows("b-0", starts)])
    found = values(table, runs("a-0", "a-1", "a-2", "b-0")).set_index("entry")
    assert found.loc["a", "value"] == pytest.approx(11 + starts.mean())
    assert found.loc["a", "n_seeds"] == 3
    # seeds: 1 / sqrt(3), starts: about 1 / sqrt(40)
    assert 1.5 < found.loc["a", "high"] - found.loc["a", "value"] < 3.5
    # one seed: of start states alone
    half = found.loc["b", "high"] - found.loc["b", "value"]
    assert half == pytest.approx(1.96 * starts.std() / np.sqrt(40), rel=0.15)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(120):
        starts = generator.normal(size=50)
        own = starts.mean() + generator.normal(0, 0.3, 4)
        found = over_seeds(own, np.full(4, starts.std(ddof=1) / np.sqrt(50)))
        alone = bootstrap(starts)
        held += [found.low < 0 < found.high, alone.low < 0 < alone.high]
    assert (held / 120 > 0.88).all() and (held / 120 < 0.995).all()


def test_an_interval_of_one_seed_is_that_of_its_starts_and_of_one_start_none():
    found = over_seeds(np.array([2.0]), np.array([0.5]))
    assert found.high - found.point == pytest.approx(1.96 * 0.5, rel=1e-2)
    assert np.isnan(over_seeds(np.array([2.0]), np.array([np.nan])).low)
    assert np.isnan(bootstrap(np.array([1.0])).low)


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_that_of_scipy_with_ties_too(seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(6, size=20).astype(float), generator.normal(size=20)
    assert spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic, rel=1e-12)
    assert np.isnan(spearman(x * 0, y))


def test_quality_says_how_policies_are_ordered_and_what_the_choice_costs():
    names = [f"{e}-0" for e in "abcdef"]
    scores = pd.Series([10.0, 50.0, 30.0, 20.0, 0.0, 40.0], names)
    estimate = [1.0, 4.0, 3.0, 2.0, 0.0, 5.0]
    played = [1.5, 4.0, 3.0, 2.0, 1.0, 5.5]
    parts = [rows(n, [x - 1, x + 1]) for n, x in zip(names, estimate, strict=True)]
    parts += [rows(n, [x], PLAYED) for n, x in zip(names, played, strict=True)]
    (line,) = quality(pd.concat(parts), runs(*names), scores).to_dict("records")
    assert line["estimator"] == "fqe" and line["n"] == 6
    # of the highest estimate the score is 40, the best has 50
    assert line["regret_at_1"] == 10.0 and line["range"] == 50.0
    assert line["rank_correlation"] == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert line["absolute_error"] == pytest.approx((0.5 + 1 + 0.5) / 6)
    assert line["rank_correlation_discounted"] == pytest.approx(1.0)
    assert line["low"] < line["rank_correlation"] < line["high"] <= 1
    few = quality(pd.concat(parts[:2]), runs(*names[:2]), scores)
    assert few.empty
    unplayed = quality(pd.concat(parts[:6]), runs(*names), scores).iloc[0]
    assert np.isnan(unplayed["absolute_error"])
