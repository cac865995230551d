"""Statistics: the definitions against rliable, the intervals against simulation."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from offbench.errors import UserError
from offbench.results import resampling, stats
from offbench.results.episode_scores import paired_scores, score_table, scores_by_task

NORMAL_AT_975 = scipy.stats.norm.pdf(scipy.stats.norm.ppf(0.975))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def four_sigma(rate: float, trials: int) -> float:
    """A share of `trials` at true `rate` is further off than this once in 16000 times."""
    return 4 * np.sqrt(rate * (1 - rate) / trials)


def frame(cells: dict[tuple[str, str], np.ndarray], **changes: object) -> pd.DataFrame:
    """Episodes from {(entry, task): (n_seeds, n_episodes)}."""
    rows = [
        {
            "run_id": f"{entry}/{task}/{seed}",
            "entry": entry,
            "task": task,
            "seed": seed,
            "stream": "test",
            "update": 10,
            "episode": episode,
            "env_seed": 100 + episode,
            "score": score,
        }
        for (entry, task), values in cells.items()
        for seed, line in enumerate(values)
        for episode, score in enumerate(line)
    ]
    return pd.DataFrame(rows).assign(**changes)


@pytest.fixture
def rliable() -> Iterator[object]:
    """rliable resamples from numpy's global generator, whatever `random_state` it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("rliable.library")
        metrics = pytest.importorskip("rliable.metrics")
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    yield type("Rliable", (), {"library": library, "metrics": metrics})
    np.random.set_state(before)  # noqa: NPY002


# --- against rliable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 1), (1, 7), (4, 4), (5, 2), (3, 5), (10, 26), (7, 9)]
)
def test_point_estimates_are_rliables_on_rectangular_scores(rliable, shape) -> None:
    scores = rng(sum(shape)).normal(50, 30, shape)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    metrics = rliable.metrics
    np.testing.assert_allclose(stats.iqm(scores), metrics.aggregate_iqm(scores), **exact)
    np.testing.assert_allclose(stats.mean(scores), metrics.aggregate_mean(scores), **exact)
    np.testing.assert_allclose(stats.median(scores), metrics.aggregate_median(scores), **exact)
    gap = metrics.aggregate_optimality_gap(scores, gamma=60)
    np.testing.assert_allclose(stats.optimality_gap(scores, 60), gap, **exact)


@pytest.mark.parametrize("ours", ["iqm", "mean", "median"])
def test_bootstrap_intervals_are_rliables_within_monte_carlo_error(rliable, ours) -> None:
    scores = rng(1).normal(50, 30, (10, 6))
    reps = 3000
    theirs = getattr(rliable.metrics, f"aggregate_{ours}")
    points, bounds = rliable.library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([theirs(x)]), reps=reps
    )
    interval = resampling.bootstrap(scores, getattr(stats, ours), rng=rng(2), reps=reps)
    sigma = (interval.high - interval.low) / (2 * scipy.stats.norm.ppf(0.975))
    # Standard error of a 2.5 % quantile of `reps` normal draws; two of them are compared.
    error = np.sqrt(2 * 0.025 * 0.975 / reps) / NORMAL_AT_975 * sigma
    assert interval.point == pytest.approx(points["x"][0], rel=1e-12)
    np.testing.assert_allclose(interval[1:], bounds["x"][:, 0], atol=4 * error)


def test_probability_of_improvement_is_rliables_with_ties(rliable) -> None:
    a, b = rng(3).integers(0, 5, (5, 4)).astype(float), rng(4).integers(0, 5, (8, 4)).astype(float)
    ours = resampling.probability_of_improvement(a, b, rng=rng())
    assert ours.point == pytest.approx(rliable.metrics.probability_of_improvement(a, b), rel=1e-12)
    assert 0 <= ours.low <= ours.point <= ours.high <= 1
    theirs = rliable.library.get_interval_estimates(
        {"x": (a, b)},
        lambda x, y: np.array([rliable.metrics.probability_of_improvement(x, y)]),
        reps=400,
    )[1]["x"][:, 0]
    sigma = (ours.high - ours.low) / 3.92
    error = np.sqrt(0.025 * 0.975 * (1 / 400 + 1 / 2000)) / NORMAL_AT_975 * sigma
    np.testing.assert_allclose(ours[1:], theirs, atol=4 * error)


def test_performance_profiles_are_rliables(rliable) -> None:
    scores, thresholds = rng(5).normal(50, 30, (6, 4)), np.linspace(-10, 110, 13)
    profile = resampling.performance_profile(scores, thresholds, rng=rng())
    theirs = rliable.library.score_distributions(scores, thresholds)
    np.testing.assert_allclose(profile["point"], theirs, atol=1e-12)
    assert (profile["low"] <= profile["point"]).all()
    assert (profile["point"] <= profile["high"]).all()


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
    with pytest.raises(UserError, match="equal shapes"):
        resampling.paired_difference([np.zeros(3)], [np.zeros(2)], rng=rng())
    with pytest.raises(UserError, match="1 tasks against 2"):
        resampling.probability_of_improvement(np.zeros((3, 1)), np.zeros((3, 2)), rng=rng())
    with pytest.raises(UserError, match=r"not \(seeds"):
        resampling.bootstrap([np.zeros((2, 2, 2))], rng=rng())


# --- intervals ------------------------------------------------------------------------------


def test_the_t_interval_by_hand() -> None:
    interval = stats.mean_interval(np.array([1.0, 2.0, 6.0]))
    half = 4.302652729911275 * np.sqrt(7.0 / 3)  # t at 0.975 with 2 degrees; variance 7
    np.testing.assert_allclose(interval, [3, 3 - half, 3 + half], rtol=1e-9)


def test_welchs_interval_agrees_with_scipy() -> None:
    a, b = rng(0).normal(0, 1, 4), rng(1).normal(1, 5, 9)
    expected = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(stats.welch_interval(a, b, 0.9)[1:], expected, rtol=1e-9)
    assert stats.welch_interval(np.ones(2), np.zeros(2)) == (1, 1, 1)


def test_one_seed_has_no_interval() -> None:
    one, two = np.array([5.0]), np.array([5.0, 6.0])
    nested = np.ones((1, 100))
    for interval in (
        stats.mean_interval(one),
        stats.welch_interval(one, two),
        resampling.bootstrap([one, two], rng=rng()),
        resampling.bootstrap([nested], rng=rng()),
        resampling.paired_difference([two, one], [two, one], rng=rng()),
        resampling.unpaired_difference([two], [one], rng=rng()),
        resampling.probability_of_improvement([one], [two], rng=rng()),
    ):
        assert np.isfinite(interval.point)
        assert np.isnan(interval.low)
        assert np.isnan(interval.high)
    profile = resampling.performance_profile([one, two], np.array([0.0]), rng=rng())
    assert profile["point"].tolist() == [1.0]
    assert profile["low"].isna().all()


def test_with_three_seeds_the_t_interval_covers_and_the_bootstrap_does_not() -> None:
    """Error rates: each bound fails once in 16000 (4 sigma) over seeds; this seed is fixed."""
    trials, generator = 2000, rng(7)
    data = generator.normal(10, 4, (trials, 3))
    student = [stats.mean_interval(x) for x in data]
    resampled = [resampling.bootstrap([x], stats.mean, rng=generator, reps=300) for x in data]
    covered = [np.mean([i.low <= 10 <= i.high for i in each]) for each in (student, resampled)]
    assert abs(covered[0] - 0.95) < four_sigma(0.95, trials)
    assert covered[1] < 0.80 + four_sigma(0.80, trials)  # measured about 0.74


def test_the_stratified_bootstrap_covers_with_ten_seeds_on_five_tasks() -> None:
    """Scores are symmetric about their task's mean, so the true IQM is known; error rate 4 sigma.

    A percentile interval is too short by about sqrt(9 / 10): 0.93 is expected of it, not 0.95.
    """
    trials, generator = 800, rng(8)
    offset = np.array([-20.0, -10.0, 0.0, 10.0, 20.0])
    for statistic in (stats.mean, stats.iqm):
        hits = 0
        for _ in range(trials):
            scores = offset + generator.normal(50, 8, (10, 5))
            interval = resampling.bootstrap(scores, statistic, rng=generator, reps=400)
            hits += interval.low <= 50 <= interval.high
        assert abs(hits / trials - 0.93) < 0.02 + four_sigma(0.93, trials)


def test_rescaled_seeds_have_the_unbiased_variance_and_keep_their_episodes() -> None:
    x = rng(0).normal(size=(4, 30))
    (scaled,) = resampling._rescaled([x])
    assert scaled.mean(1).var() == pytest.approx(x.mean(1).var(ddof=1))
    assert scaled.mean() == pytest.approx(x.mean())
    np.testing.assert_allclose(scaled - scaled.mean(1, keepdims=True), x - x.mean(1, keepdims=True))
    plain, wide = (
        resampling.unpaired_difference([x], [x * 2], rng=rng(1), rescale=r) for r in (False, True)
    )
    assert wide.high - wide.low > 1.05 * (plain.high - plain.low)


def test_pairs_cover_and_are_narrower_than_independent_samples() -> None:
    """The coverage of the paired difference with 20 seeds on 3 tasks; error rate 4 sigma."""
    trials, generator, hits, widths = 500, rng(9), 0, []
    for _ in range(trials):
        shared = generator.normal(0, 10, (20, 3))
        a = shared + generator.normal(2, 1, (20, 3))
        b = shared + generator.normal(0, 1, (20, 3))
        paired = resampling.paired_difference(a, b, rng=generator, reps=300)
        loose = resampling.unpaired_difference(a, b, rng=generator, reps=300)
        hits += paired.low <= 2 <= paired.high
        widths.append((paired.high - paired.low) / (loose.high - loose.low))
    assert abs(hits / trials - 0.94) < 0.02 + four_sigma(0.94, trials)
    assert np.max(widths) < 0.2  # sqrt(2) / sqrt(202) is 0.1


def test_resampling_episodes_widens_an_interval_and_shared_episodes_cancel() -> None:
    episode = rng(0).normal(0, 20, (1, 30))  # how hard each episode is, for everyone
    a = [episode + rng(1).normal(0, 2, (5, 1)) + 3]
    b = [episode + rng(2).normal(0, 2, (5, 1))]
    width = {}
    for name, scores in {"seeds": [a[0].mean(1)], "episodes": a}.items():
        interval = resampling.bootstrap(scores, stats.mean, rng=rng(3))
        width[name] = interval.high - interval.low
    assert width["episodes"] > 1.2 * width["seeds"]
    paired = resampling.paired_difference(a, b, rng=rng(4))
    means = resampling.paired_difference([a[0].mean(1)], [b[0].mean(1)], rng=rng(4))
    np.testing.assert_allclose(paired, means, rtol=0.2)


@settings(deadline=None, max_examples=30)
@given(scores=st.lists(st.lists(numbers, min_size=2, max_size=5), min_size=1, max_size=4))
def test_intervals_are_ordered_bounded_and_repeatable(scores) -> None:
    x = arrays(scores)
    y = [values[::-1] + 1 for values in x]
    calls = [
        lambda g: resampling.bootstrap(x, stats.iqm, rng=g, reps=200),
        lambda g: resampling.paired_difference(x, y, stats.iqm, rng=g, reps=200),
        lambda g: resampling.unpaired_difference(x, y, rng=g, reps=200),
        lambda g: resampling.probability_of_improvement(x, y, rng=g, reps=200),
    ]
    for call in calls:
        interval = call(rng(5))
        assert interval == call(rng(5))
        assert interval.low <= interval.high
    interval = calls[0](rng(5))
    pooled = np.concatenate(x)
    assert pooled.min() - 1e-9 <= interval.low
    assert interval.high <= pooled.max() + 1e-9


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    x = rng(0).normal(size=(5, 3))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one = resampling.bootstrap(x, rng=rng(1))
    assert one == resampling.bootstrap(x, rng=rng(1))
    assert one != resampling.bootstrap(x, rng=rng(2))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_probability_of_improvement_by_hand() -> None:
    a = [np.array([1.0, 2.0]), np.array([0.0, 0.0, 0.0])]
    b = [np.array([0.0, 2.0]), np.array([0.0])]
    interval = resampling.probability_of_improvement(a, b, rng=rng())
    assert interval.point == pytest.approx(((1 + 0 + 1 + 0.5) / 4 + 0.5) / 2)
    reverse = resampling.probability_of_improvement(b, a, rng=rng())
    assert interval.point + reverse.point == pytest.approx(1)


def test_a_profile_falls_and_weighs_tasks_equally() -> None:
    scores = [np.array([10.0, 30.0]), np.array([20.0, 20.0, 20.0, 20.0])]
    thresholds = np.array([0.0, 10.0, 20.0, 30.0])
    profile = resampling.performance_profile(scores, thresholds, rng=rng())
    assert profile["point"].tolist() == [1.0, 0.75, 0.25, 0.0]


# --- tests ----------------------------------------------------------------------------------


def test_exact_permutations_by_hand() -> None:
    a = [np.array([1.0, 2.0, 3.0])]
    b = [np.zeros(3)]
    assert resampling.permutation_test(a, b, rng=rng()) == 2 / 8  # only + + + and - - -
    assert resampling.permutation_test(a, a, rng=rng()) == 1.0
    # Tasks weigh equally: shares 1 | 1/2, -1/4, in all 5/4. Of the sums 7/4, 5/4, 3/4 and 1/4, and
    # their opposites, half are as large.
    a, b = [np.array([2.0]), np.array([2.0, -1.0])], [np.zeros(1), np.zeros(2)]
    assert resampling.permutation_test(a, b, rng=rng()) == 0.5
    d = rng(3).normal(0.4, 1, 9)
    theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples").pvalue
    assert resampling.permutation_test([d], [np.zeros(9)], rng=rng()) == pytest.approx(
        theirs, rel=1e-9
    )


def test_drawn_permutations_agree_with_enumerated_ones(monkeypatch) -> None:
    a, b = rng(0).normal(0.4, 1, (6, 2)), rng(1).normal(0, 1, (6, 2))
    exact = resampling.permutation_test(a, b, rng=rng())
    monkeypatch.setattr(resampling, "_EXACT_PAIRS", 0)
    drawn = resampling.permutation_test(a, b, rng=rng(2), reps=10_000)
    assert 0.01 < exact < 0.99
    assert abs(drawn - exact) < four_sigma(exact, 10_000) + 1e-4


def test_permutations_reject_a_true_null_as_often_as_they_say() -> None:
    """12 pairs, 1000 trials at the level 0.05; error rate 4 sigma."""
    generator = rng(11)
    rejected = [
        resampling.permutation_test(
            generator.normal(size=(6, 2)), generator.normal(size=(6, 2)), rng=rng()
        )
        <= 0.05
        for _ in range(1000)
    ]
    assert abs(np.mean(rejected) - 0.05) < four_sigma(0.05, 1000)


def test_holms_values_by_hand_and_in_the_given_order() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.6, 0.9]), [1.0, 1.0])
    assert stats.holm([]).size == 0
    for bad in ([np.nan], [1.1], [-0.1]):
        with pytest.raises(UserError, match="between 0 and 1"):
            stats.holm(bad)


# --- from episodes --------------------------------------------------------------------------


def test_scores_are_means_of_test_episodes_only() -> None:
    test = frame({("iql", "a"): np.array([[1.0, 3.0], [5.0, 5.0]])})
    other = test.assign(stream="monitor", score=1000.0)
    table = score_table(pd.concat([test, other]))
    assert table["score"].tolist() == [2.0, 5.0]
    assert table["n_episodes"].tolist() == [2, 2]
    assert list(table) == ["entry", "task", "seed", "run_id", "score", "n_episodes"]


def test_scores_by_task_are_ragged_and_name_a_missing_cell() -> None:
    data = frame({("iql", "a"): np.ones((3, 2)), ("iql", "b"): np.ones((1, 2))})
    assert [len(x) for x in scores_by_task(data, "iql", ["b", "a"])] == [1, 3]
    with pytest.raises(UserError, match="'iql' has no test scores on c"):
        scores_by_task(data, "iql", ["a", "c"])
    with pytest.raises(UserError, match="did you mean 'iql'"):
        scores_by_task(data, "iqll", ["a"])


def test_one_seed_of_two_runs_is_refused_with_both_names() -> None:
    data = frame({("iql", "a"): np.ones((2, 2))})
    twice = pd.concat([data, data.assign(run_id="another")])
    with pytest.raises(UserError, match="seed 0 on a: another and iql/a/0"):
        score_table(twice)
    with pytest.raises(UserError, match="at 5 and at 10"):
        score_table(pd.concat([data, data.assign(update=5)]))
    with pytest.raises(UserError, match="not finite"):
        score_table(data.assign(score=np.nan))


def test_paired_scores_match_seeds_and_episodes() -> None:
    values = rng(0).normal(size=(3, 4))
    data = frame({("iql", "a"): values, ("bc", "a"): values + 1}).sample(frac=1, random_state=0)
    a, b = paired_scores(data, "iql", "bc", ["a"])
    np.testing.assert_allclose(a[0], values)
    np.testing.assert_allclose(b[0] - a[0], 1)
    fewer = data[(data["entry"] == "iql") | (data["seed"] < 2)]
    with pytest.raises(UserError, match=r"seeds \[0, 1, 2\] on a, 'bc' has \[0, 1\]"):
        paired_scores(fewer, "iql", "bc", ["a"])
    a, b = paired_scores(fewer, "iql", "bc", ["a"], common_seeds=True)
    assert a[0].shape == b[0].shape == (2, 4)
    elsewhere = data.assign(env_seed=np.where(data["entry"] == "bc", 7, data["env_seed"]))
    with pytest.raises(UserError, match="not evaluated on the same episodes of a"):
        paired_scores(elsewhere, "iql", "bc", ["a"])
    uneven = data[~((data["entry"] == "bc") & (data["seed"] == 0) & (data["episode"] == 0))]
    with pytest.raises(UserError, match="seeds of 'bc'"):
        paired_scores(uneven, "iql", "bc", ["a"])
    with pytest.raises(UserError, match="no test scores on b"):
        paired_scores(data, "iql", "bc", ["b"])


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
