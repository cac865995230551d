"""Statistics: the definitions against rliable, the intervals against simulation."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.errors import UserError
from offbench.results import stats


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def metrics() -> Iterator[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("rliable.metrics")


# --- against rliable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 1), (1, 7), (4, 4), (5, 2), (3, 5), (10, 26), (7, 9)]
)
def test_point_estimates_are_rliables_on_rectangular_scores(metrics, shape) -> None:
    scores = rng(sum(shape)).normal(50, 30, shape)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(stats.iqm(scores), metrics.aggregate_iqm(scores), **exact)
    np.testing.assert_allclose(stats.mean(scores), metrics.aggregate_mean(scores), **exact)
    np.testing.assert_allclose(stats.median(scores), metrics.aggregate_median(scores), **exact)
    gap = metrics.aggregate_optimality_gap(scores, gamma=60)
    np.testing.assert_allclose(stats.optimality_gap(scores, 60), gap, **exact)


# --- properties -----------------------------------------------------------------------------

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3)) | st.sampled_from([0.0, 100.0])
ragged = st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=5)
STATISTICS = [stats.iqm, stats.mean, stats.median, stats.optimality_gap]


def arrays(scores: list[list[float]]) -> list[np.ndarray]:
    return [np.array(x) for x in scores]


@settings(deadline=None)
@given(scores=ragged)
def test_averages_lie_between_the_extremes(scores) -> None:
    pooled = np.concatenate(arrays(scores))
    for statistic in (stats.iqm, stats.mean, stats.median):
        assert pooled.min() - 1e-9 <= statistic(arrays(scores)) <= pooled.max() + 1e-9


@settings(deadline=None)
@given(scores=ragged, seed=st.integers(0, 2**32))
def test_the_order_of_seeds_and_of_tasks_does_not_matter(scores, seed) -> None:
    generator = rng(seed)
    mixed = [generator.permutation(x) for x in arrays(scores)]
    mixed = [mixed[i] for i in generator.permutation(len(mixed))]
    for statistic in STATISTICS:
        assert statistic(mixed) == pytest.approx(statistic(arrays(scores)), abs=1e-8)


@settings(deadline=None)
@given(scores=ragged, rise=st.floats(0, 100), data=st.data())
def test_a_better_run_never_lowers_an_average(scores, rise, data) -> None:
    better = [x.copy() for x in arrays(scores)]
    task = data.draw(st.integers(0, len(scores) - 1))
    better[task][data.draw(st.integers(0, len(scores[task]) - 1))] += rise
    for statistic in (stats.iqm, stats.mean, stats.median):
        assert statistic(better) >= statistic(arrays(scores)) - 1e-8
    assert stats.optimality_gap(better) <= stats.optimality_gap(arrays(scores)) + 1e-8


@settings(deadline=None)
@given(scores=ragged, shift=numbers)
def test_averages_move_with_the_scores(scores, shift) -> None:
    for statistic in (stats.iqm, stats.mean, stats.median):
        moved = statistic([2 * x + shift for x in arrays(scores)])
        assert moved == pytest.approx(2 * statistic(arrays(scores)) + shift, abs=1e-7)


@settings(deadline=None)
@given(scores=ragged)
def test_a_leading_axis_is_many_data_sets(scores) -> None:
    batch = [np.stack([x, x[::-1] + 1, 2 * x]) for x in arrays(scores)]
    for statistic in STATISTICS:
        alone = [statistic([x[i] for x in batch]) for i in range(3)]
        np.testing.assert_allclose(statistic(batch), alone, atol=1e-9)


def test_each_task_counts_equally_whatever_its_seeds() -> None:
    few, many = np.array([0.0, 0.0]), np.full(50, 90.0)
    assert stats.mean([few, many]) == 45
    assert stats.median([few, many]) == 45
    assert stats.optimality_gap([few, many]) == 55
    assert stats.iqm([few, many]) == pytest.approx(45)


def test_a_ragged_iqm_by_hand() -> None:
    # N = 6 runs, floor(6 / 4) / 6 = 1/6 of the weight is cut at each end. Weights: 1/4, 1/4 and
    # four times 1/8. Sorted: 0 (1/8), 1 (1/4), 2 (1/8), 3 (1/8), 9 (1/4), 50 (1/8).
    # Cut 1/6 below: all of 0 and 1/24 of 1. Above: all of 50 and 1/24 of 9.
    kept = {1: 1 / 4 - 1 / 24, 2: 1 / 8, 3: 1 / 8, 9: 1 / 4 - 1 / 24}
    expected = sum(x * w for x, w in kept.items()) / sum(kept.values())
    scores = [np.array([9.0, 1.0]), np.array([50.0, 2.0, 0.0, 3.0])]
    assert stats.iqm(scores) == pytest.approx(expected, rel=1e-12)


def test_nonsense_is_refused() -> None:
    for scores in ([], [np.array([])], [np.array(1.0)]):
        with pytest.raises(UserError, match="scores"):
            stats.iqm(scores)
    with pytest.raises(UserError, match="n_seeds, n_tasks"):
        stats.mean(np.zeros(3))
    with pytest.raises(UserError, match="between 0 and 1"):
        stats.mean_interval(np.zeros(3), level=95)


# --- intervals ------------------------------------------------------------------------------


def test_the_t_interval_by_hand() -> None:
    interval = stats.mean_interval(np.array([1.0, 2.0, 6.0]))
    half = 4.302652729911275 * np.sqrt(7.0 / 3)  # t at 0.975 with 2 degrees; variance 7
    np.testing.assert_allclose(interval, [3, 3 - half, 3 + half], rtol=1e-9)


def test_one_seed_has_no_interval() -> None:
    interval = stats.mean_interval(np.array([5.0]))
    assert interval.point == 5 and np.isnan(interval.low) and np.isnan(interval.high)


# --- tests ----------------------------------------------------------------------------------


def test_holms_values_by_hand_and_in_the_given_order() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.6, 0.9]), [1.0, 1.0])
    assert stats.holm([]).size == 0
    for bad in ([np.nan], [1.1], [-0.1]):
        with pytest.raises(UserError, match="between 0 and 1"):
            stats.holm(bad)


@pytest.mark.parametrize("successes, n", [(0, 1), (0, 7), (3, 7), (7, 7), (400, 1000)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_a_share_has_wilsons_interval(successes: int, n: int, level: float) -> None:
    found = stats.wilson_interval(successes, n, level)
    want = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(found, (successes / n, want.low, want.high), atol=1e-12)


@pytest.mark.parametrize("successes, n", [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(successes: int, n: int) -> None:
    with pytest.raises(UserError, match="a share needs"):
        stats.wilson_interval(successes, n)
