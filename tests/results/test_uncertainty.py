"""Intervals of a board and its marks: by hand, in simulation, and on published scores."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import coverage
from support.paths import ROOT, SHARED

from offbench.results import aggregates, captions, stats, uncertainty
from offbench.results.generators import Generators
from offbench.results.uncertainty import Cell, Pool

COVERAGE = ROOT / "results" / "coverage"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def crossed(table: np.ndarray, start: int = 0, success: bool = False) -> Cell:
    """A cell whose seeds met the same start states."""
    table = np.asarray(table, dtype=np.float64)
    states = tuple(range(start, start + table.shape[1]))
    return Cell(table.mean(1), table.shape[1], table, states, success)


def seeds(*means: float, episodes: int = 10, success: bool = False) -> Cell:
    """A cell of which the mean of each seed is known."""
    return Cell(np.array(means, dtype=np.float64), episodes, success=success)


# --- cells ----------------------------------------------------------------------------------


def test_a_cells_interval_by_hand() -> None:
    a, b = seeds(10, 20, 30), seeds(50, 50, 50)
    pool = Pool.of([a, b] * 3)
    assert pool.variance == 50
    # half of 50 as one more observation beside two of variance 100: (25 + 200) / 3, over 3 seeds
    half = scipy.stats.t.ppf(0.975, 3) * np.sqrt(75 / 3)
    np.testing.assert_allclose(uncertainty.cell_interval(a, pool), [20, 20 - half, 20 + half])
    # three seeds that agree are not certain: one such cell is the luck of its board
    low = 50 - scipy.stats.t.ppf(0.975, 3) * np.sqrt(25 / 9)
    assert uncertainty.cell_interval(b, pool).low == pytest.approx(low)


def test_one_seed_has_a_mean_and_no_interval_and_is_not_compared() -> None:
    cells = [seeds(90), seeds(50, 51, 52), seeds(10, 11, 12)]
    pool = Pool.of(cells)
    alone = uncertainty.cell_interval(cells[0], pool)
    assert alone.point == 90 and np.isnan([alone.low, alone.high]).all()
    p = uncertainty.differences(cells, pool).adjusted()
    assert np.isnan(p[0]).all() and np.isnan(p[:, 0]).all()
    marked = uncertainty.not_worse_than_best(np.array([90, 51, 11]), p, 0.95)
    assert marked.tolist() == [False, True, False]
    only = uncertainty.not_worse_than_best(np.array([90.0]), p[:1, :1], 0.95)
    assert only.tolist() == [False]


def test_the_share_of_the_start_states_is_estimated_without_bias() -> None:
    generator, found = rng(1), []
    for _ in range(400):
        states = generator.normal(0, 5, (1, 20))
        seed = generator.normal(0, 3, (4, 1))
        found.append(crossed(50 + states + seed + generator.normal(0, 4, (4, 20))))
    # 25 / 20 from 20 start states; a seed's mean varies by 9 + 16 / 20
    assert np.mean([c.episode_variance for c in found]) == pytest.approx(25 / 20, rel=0.1)
    assert np.mean([c.seed_variance for c in found]) == pytest.approx(9.8, rel=0.1)
    without = [crossed(generator.normal(50, 4, (4, 20))) for _ in range(400)]
    # never below 0, so a little above it on average
    assert np.mean([c.episode_variance for c in without]) < 0.15


def test_start_states_that_all_seeds_share_are_part_of_the_interval() -> None:
    """Hard and easy episodes move all seeds alike: their spread alone misses the truth."""
    trials, generator, hits, spread_alone = 400, rng(2), 0, 0
    for _ in range(trials):
        table = 50 + generator.normal(0, 20, (1, 10)) + generator.normal(0, 3, (5, 1))
        cell = crossed(table + generator.normal(0, 5, (5, 10)))
        pool = Pool(variance=9 + 25 / 10, correlation=0.1)
        interval = uncertainty.cell_interval(cell, pool)
        hits += interval.low <= 50 <= interval.high
        alone = stats.mean_interval(cell.means)
        spread_alone += alone.low <= 50 <= alone.high
    assert hits / trials > 0.93
    assert spread_alone / trials < 0.7


@pytest.mark.parametrize("episodes", [10, 50])
def test_no_success_at_all_is_not_certainty(episodes: int) -> None:
    none = seeds(0, 0, 0, episodes=episodes, success=True)
    interval = uncertainty.cell_interval(none, Pool.of([none]))
    assert interval.low == 0
    # more than the 11 % and 2.5 % of that many independent episodes
    independent = stats.wilson_interval(0, 3 * episodes).high * 100
    assert independent < interval.high < 60
    one_in_three = seeds(0, 0, 100, episodes=episodes, success=True)
    interval = uncertainty.cell_interval(one_in_three, Pool.of([one_in_three]))
    assert 0 <= interval.low < 10 and 70 < interval.high <= 100


def test_a_success_rates_interval_by_hand() -> None:
    """Wilson's at the episodes that are worth as many independent ones, with Student's quantile."""
    pool = Pool(variance=1e6, correlation=0.2)
    none = seeds(0, 0, 0, success=True)
    # ends that are all alike say nothing of how seeds differ: the board's correlation alone counts,
    # as half an observation beside two of the same
    independent = 30 / (1 + 9 * 0.2) * 3 / 2.5
    t = scipy.stats.t.ppf(0.975, 3)
    high = uncertainty.cell_interval(none, pool).high
    assert high == pytest.approx(100 * t**2 / (independent + t**2))
    # seeds that agree are no better than independent episodes
    half = seeds(50, 50, 50, success=True)
    found = uncertainty.cell_interval(half, pool)
    spread = t * np.sqrt(0.25 / 30 + t**2 / 3600) / (1 + t**2 / 30)
    assert found.high == pytest.approx(100 * (0.5 + spread))


def test_success_rates_and_scores_are_pooled_by_themselves() -> None:
    scores = [seeds(10, 20, 30), seeds(5, 5, 5)]
    rates_ = [seeds(0, 50, 100, success=True), seeds(10, 10, 10, success=True)]
    pool = Pool.of([*scores, *rates_])
    assert pool.variance == Pool.of(scores).variance == 50
    # (10 * 2500 / 2500 - 1) / 9 = 1, and 0
    assert pool.correlation == 0.5
    assert Pool.of(scores).correlation == 0.1


rates = st.lists(st.integers(0, 10), min_size=2, max_size=6)


@settings(deadline=None)
@given(rates=st.lists(rates, min_size=1, max_size=5))
def test_an_interval_of_a_success_rate_is_one(rates) -> None:
    cells = [seeds(*(10.0 * r for r in x), success=True) for x in rates]
    failures = [seeds(*(100 - 10.0 * r for r in x), success=True) for x in rates]
    pool, other = Pool.of(cells), Pool.of(failures)
    assert 0 <= pool.correlation <= 1
    for cell, failure in zip(cells, failures):
        a, b = uncertainty.cell_interval(cell, pool), uncertainty.cell_interval(failure, other)
        assert 0 <= a.low <= a.point <= a.high <= 100
        assert a.high - a.low > 1
        np.testing.assert_allclose([a.low, a.high], [100 - b.high, 100 - b.low], atol=1e-9)


def test_success_rates_cover_where_seeds_differ() -> None:
    """Seeds with rates from a beta distribution, 10 episodes each: 95 % at least, and not Wilson's."""
    trials, generator, hits, wilson = 600, rng(3), 0, 0
    for _ in range(trials):
        share = generator.beta(1, 3, (8, 4))
        won = generator.binomial(10, share)
        cells = [seeds(*(10.0 * x), success=True) for x in won]
        interval = uncertainty.cell_interval(cells[0], Pool.of(cells))
        hits += interval.low <= 25 <= interval.high
        plain = stats.wilson_interval(int(won[0].sum()), 40)
        wilson += plain.low <= 0.25 <= plain.high
    assert hits / trials > 0.93
    assert wilson / trials < 0.85


def test_a_board_of_few_cells_counts_for_no_observation() -> None:
    a, b = seeds(10, 20, 30), seeds(12, 22, 32)
    few, many = Pool.of([a, b]), Pool.of([a, b] * 3)
    assert (few.n_cells, few.freedom(a), many.freedom(a)) == (2, 2, 3)
    # where the board says what the cell does, the interval is Student's
    assert uncertainty.cell_interval(a, few) == pytest.approx(stats.mean_interval(a.means))


# --- differences and marks ------------------------------------------------------------------


def test_pvalues_by_hand_corrected_over_all_pairs() -> None:
    cells = [seeds(10, 12, 14), seeds(20, 22, 24), seeds(90, 92, 94)]
    pool = Pool.of(cells * 2)
    # (0.5 * 4 + 2 * 4) / 3 each, over 3 seeds; two of them with 3 degrees of freedom each
    error = np.sqrt(2 * (10 / 3) / 3)
    plain = [2 * scipy.stats.t.sf(gap / error, 6) for gap in (10, 80, 70)]
    p = uncertainty.differences(cells, pool).adjusted()
    np.testing.assert_allclose([p[0, 1], p[0, 2], p[1, 2]], stats.holm(plain))
    np.testing.assert_allclose(p, p.T)
    assert np.diag(p).tolist() == [1, 1, 1]


def test_episodes_are_paired_and_seeds_are_not() -> None:
    generator = rng(4)
    luck = generator.normal(0, 30, (1, 10))
    a = crossed(60 + luck + generator.normal(0, 2, (4, 10)))
    b = crossed(50 + luck + generator.normal(0, 2, (4, 10)))
    elsewhere = crossed(b.table, start=100)
    pool = Pool.of([a, b])
    assert uncertainty.differences([a, b], pool).adjusted()[0, 1] < 0.01
    assert uncertainty.differences([a, elsewhere], pool).adjusted()[0, 1] > 0.2
    turned = crossed(b.table[::-1])
    same = [uncertainty.differences([a, x], pool).adjusted()[0, 1] for x in (b, turned)]
    assert same[0] == pytest.approx(same[1], rel=1e-9)


def test_an_advantage_that_depends_on_the_start_state_is_less_sure() -> None:
    """Equal entries, each better from some start states: 5 % of tests may tell them apart."""
    trials, generator, wrong, blind = 400, rng(6), 0, 0
    pool = Pool(variance=4.0, correlation=0.1)
    for _ in range(trials):
        tables = [
            generator.normal(0, 20, (1, 10)) + generator.normal(0, 2, (4, 10)) for _ in range(2)
        ]
        wrong += uncertainty.differences([crossed(x) for x in tables], pool).adjusted()[0, 1] < 0.05
        alone = [seeds(*x.mean(1)) for x in tables]
        blind += uncertainty.differences(alone, pool).adjusted()[0, 1] < 0.05
    assert wrong / trials < 0.09
    assert blind / trials > 0.5


def test_what_a_start_state_does_to_a_difference_is_estimated_without_the_noise_of_seeds() -> None:
    generator, found = rng(7), []
    for _ in range(300):
        luck = generator.normal(0, 30, (1, 20))
        # each entry fares by 3 better or worse from a start state, and every seed by 8
        own = [generator.normal(0, 3, (1, 20)) for _ in range(2)]
        tables = [50 + luck + x + generator.normal(0, 8, (4, 20)) for x in own]
        found.append(uncertainty._shared_episode_variance([crossed(x) for x in tables])[0, 1])
    # 2 * 9 over 20 start states; with the noise of seeds it would be 50 / 20
    assert np.mean(found) == pytest.approx(18 / 20, rel=0.15)


means = st.lists(st.floats(-100, 100).map(lambda x: round(x, 1)), min_size=2, max_size=5)


@settings(deadline=None)
@given(column=st.lists(means, min_size=1, max_size=6), data=st.data())
def test_marks_follow_the_order_of_the_means_and_not_that_of_the_entries(column, data) -> None:
    cells = [seeds(*x) for x in column]
    pool = Pool.of(cells)

    def marks(cells: list[Cell]) -> np.ndarray:
        points = np.array([c.mean for c in cells])
        return uncertainty.not_worse_than_best(
            points, uncertainty.differences(cells, pool).adjusted(), 0.95
        )

    marked = marks(cells)
    points = np.array([c.mean for c in cells])
    assert marked[points.argmax()]
    # no entry without a mark lies above one that has it
    assert not (points[~marked] > points[marked].min()).any()
    order = data.draw(st.permutations(range(len(cells))))
    assert marks([cells[i] for i in order]).tolist() == marked[list(order)].tolist()


def test_a_noisy_entry_below_keeps_the_marks_of_those_above_it() -> None:
    """Alone, 80 would lose its mark against 100 and the noisy 60 would keep it."""
    cells = [seeds(99, 100, 101), seeds(79, 80, 81), seeds(0, 60, 120)]
    p = np.ones((3, 3))
    p[0, 1] = p[1, 0] = 0.001
    points = np.array([c.mean for c in cells])
    assert uncertainty.not_worse_than_best(points, p, 0.95).all()


def test_aggregates_of_equal_episodes_are_paired() -> None:
    generator = rng(5)
    luck = [generator.normal(0, 30, (1, 10)) for _ in range(3)]
    entry = lambda level: [crossed(level + x + generator.normal(0, 2, (4, 10))) for x in luck]
    rows = [entry(60), entry(50)]
    rows.append([crossed(c.table, start=100) for c in rows[1]])
    pools = [Pool.of([c for row in rows for c in row])] * 3
    made = [
        aggregates.aggregate(row, pools, stats.mean, generator=generators, reps=500) for row in rows
    ]
    # the same start states are drawn for the first two, others for the third
    assert (made[0].draws - made[1].draws).std() < 3 < (made[0].draws - made[2].draws).std()
    # pairs by themselves: the correction is for as many as there are
    assert aggregates.differences(made[:2]).adjusted()[0, 1] < 0.01
    assert aggregates.differences([made[0], made[2]]).adjusted()[0, 1] > 0.1


generators = Generators()


def test_an_aggregate_by_hand_with_one_task_is_that_of_its_cell() -> None:
    cell = seeds(10, 20, 30, 40, 50)
    other = seeds(0, 5, 0, 5, 0)
    pool = Pool.of([cell, other] * 3)
    made = aggregates.aggregate([cell], [pool], stats.mean, generator=generators, reps=20_000)
    # of five observations four are the cell's own variance and one is the board's
    expected = np.sqrt((4 * cell.seed_variance + pool.variance) / 5 / 5)
    assert made.draws.std() == pytest.approx(expected, rel=0.02)
    assert made.interval.point == 30 and np.median(made.draws) == pytest.approx(30)
    assert made.freedom_of_seeds == 5 and made.share_of_seeds == 1
    half = (made.interval.high - made.interval.low) / 2
    wider = scipy.stats.t.ppf(0.975, 5) / scipy.stats.norm.ppf(0.975)
    plain = np.diff(np.quantile(made.draws, [0.025, 0.975]))[0] / 2
    assert half == pytest.approx(wider * plain)


def crossed_row(generator, n_tasks: int, sizes: tuple[int, int], luck: list[np.ndarray]) -> list:
    """Equal cells in truth, of mean 50: seeds differ little, start states a lot, and differently for each entry."""
    own = lambda t: generator.normal(0, 15, sizes[1]) + generator.normal(0, 2, (sizes[0], 1))
    noise = lambda: generator.normal(0, 3, sizes)
    return [crossed(50 + luck[t] + own(t) + noise(), start=100 * t) for t in range(n_tasks)]


@pytest.mark.parametrize("n_tasks", [1, 4])
def test_few_start_states_say_little_whatever_the_number_of_seeds(n_tasks: int) -> None:
    """Twenty seeds on five start states: of five observations, not of twenty."""
    generator, trials, held, called = rng(7), 300, 0, 0
    for trial in range(trials):
        luck = [generator.normal(0, 10, 5) for _ in range(n_tasks)]
        rows = [crossed_row(generator, n_tasks, (20, 5), luck) for _ in range(2)]
        pools = [Pool(variance=4 + 9 / 5, correlation=0.1)] * n_tasks
        own = {"generator": Generators(trial), "reps": 300}
        made = [aggregates.aggregate(row, pools, stats.iqm, **own) for row in rows]
        held += made[0].interval.low <= 50 <= made[0].interval.high
        called += aggregates.differences(made).adjusted()[0, 1] < 0.05
    # 84 and 89 %, 11 and 10 %, with the freedom of the seeds alone and start states drawn as they are
    assert held / trials > 0.92 and called / trials < 0.08


def test_an_aggregate_of_one_task_varies_as_its_cell_does() -> None:
    generator = rng(8)
    cell = crossed(50 + generator.normal(0, 20, (1, 5)) + generator.normal(0, 2, (8, 5)))
    pool = Pool(variance=2.0, correlation=0.1)
    made = aggregates.aggregate([cell], [pool], stats.mean, generator=generators, reps=20_000)
    seeds = uncertainty.seed_share(cell, pool)
    assert made.share_of_seeds == pytest.approx(seeds / (seeds + cell.episode_variance))
    assert (made.freedom_of_seeds, made.freedom_of_starts) == (8, 4)
    assert made.draws.var() == pytest.approx(seeds + cell.episode_variance, rel=0.03)
    whole = uncertainty.cell_interval(cell, pool)
    # a resample of five is no normal: its ends are nearer
    assert made.interval.high - made.interval.low == pytest.approx(whole.high - whole.low, rel=0.1)


@pytest.mark.parametrize(("alike", "apart"), [(30, 0), (0, 15), (30, 15)])
def test_a_difference_over_one_task_varies_as_that_of_its_cells(alike: float, apart: float) -> None:
    """The noise of episodes is in the spread of the seeds, and is not counted once more."""
    generator, pool = rng(11), Pool(variance=2.0, correlation=0.1)
    luck = generator.normal(0, alike, (1, 8))
    own = lambda: luck + generator.normal(0, apart, (1, 8)) + generator.normal(0, 10, (6, 8))
    cells = [crossed(50 + own()) for _ in range(2)]
    more = {"generator": generators, "reps": 20_000}
    made = [aggregates.aggregate([c], [pool], stats.mean, **more) for c in cells]
    got = aggregates.differences(made)
    want = uncertainty.differences(cells, pool)
    assert got.variance[0] == pytest.approx(want.variance[0], rel=0.05)
    assert got.freedom[0] == pytest.approx(want.freedom[0], rel=0.05)


def test_what_start_states_do_to_both_alike_costs_a_comparison_no_freedom() -> None:
    generator, luck = rng(9), rng(10).normal(0, 30, (1, 5))
    rows = [[crossed(50 + luck + generator.normal(0, 2, (12, 5)))] for _ in range(2)]
    pools = [Pool(variance=4 / 5, correlation=0.1)]
    made = [aggregates.aggregate(x, pools, stats.mean, generator=generators) for x in rows]
    # of one entry nearly all variance is of five start states, of the difference half
    assert max(a.share_of_seeds for a in made) < 0.05
    assert aggregates.differences(made).freedom[0] > 12


def test_a_success_rate_without_any_success_is_as_unsure_in_an_aggregate_as_in_its_cell() -> None:
    """Drawing again from seeds that are all 0 adds no variance; the board's must stand for it."""
    none = seeds(0, 0, 0, 0, 0, 0, episodes=5, success=True)
    pool = Pool(variance=0.0, correlation=0.5)
    found = aggregates.aggregate([none], [pool], stats.mean, generator=Generators(0), reps=4000)
    assert found.draws.std() == pytest.approx(np.sqrt(uncertainty.seed_share(none, pool)), rel=0.05)


def test_cells_of_equal_scores_are_drawn_from_independently() -> None:
    """No success on many tasks: the mean over tasks is the surer, the more there are."""

    def spread(n: int, same: bool) -> float:
        cells = [
            Cell(np.zeros(3), 10, success=True, name="x" if same else f"task {i}") for i in range(n)
        ]
        pools = [Pool.of(cells)] * n
        return float(
            aggregates.aggregate(cells, pools, stats.mean, generator=generators).draws.var()
        )

    assert spread(8, same=False) == pytest.approx(spread(1, same=False) / 8, rel=0.2)
    assert spread(8, same=True) == pytest.approx(spread(1, same=True), rel=0.2)


# --- on published scores --------------------------------------------------------------------


def test_published_seeds_are_those_of_the_reference() -> None:
    reference = SHARED / "reference/published_scores_per_seed.csv"
    if not reference.exists():
        pytest.skip(f"{reference.name}, the table it was taken from, is not here")
    ours = pd.read_csv(COVERAGE / "published_per_seed.csv")
    theirs = pd.read_csv(reference)
    theirs = theirs[~theirs["source"].str.startswith("CORL")].set_index(["method", "dataset"])
    for row in ours.to_dict("records"):
        expected = theirs.loc[[(row["method"], row["dataset"])]].sort_values("run")["score"]
        found = sorted(row[f"seed{i}"] for i in range(10))
        np.testing.assert_allclose(found, sorted(expected), rtol=1e-4, atol=1e-4)


def test_intervals_hold_the_truth_on_published_seeds_where_the_usual_ones_do_not() -> None:
    found = coverage.populations()
    assert len(found) == 4
    family = "gym, ReBRAC paper"
    rows = pd.DataFrame(coverage.intervals(family, found[family], 3, boards=12)).set_index("what")
    assert rows["ours"]["cell"] > 0.93 > 0.88 > rows["usual"]["cell"]
    assert rows["ours"]["iqm"] > 0.85 > rows["usual"]["iqm"]


@pytest.mark.parametrize("name", ["iqm", "mean"])
def test_the_usual_interval_is_rliables_within_monte_carlo_error(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("rliable.library")
        theirs = getattr(pytest.importorskip("rliable.metrics"), f"aggregate_{name}")
    scores, reps = rng(1).normal(50, 30, (10, 6)), 3000
    # rliable resamples from numpy's global generator, whatever it is given
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    points, bounds = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([theirs(x)]), reps=reps
    )
    np.random.set_state(before)  # noqa: NPY002
    found = coverage.bootstrap(list(scores.T), getattr(stats, name), rng(2), reps)
    assert found.point == pytest.approx(points["x"][0], rel=1e-12)
    # four standard errors of a 2.5 % quantile of normal draws, of which two are compared
    sigma = (found.high - found.low) / 3.92
    error = np.sqrt(2 * 0.025 * 0.975 / reps) / scipy.stats.norm.pdf(1.96) * sigma
    np.testing.assert_allclose(found[1:], bounds["x"][:, 0], atol=4 * error)


def test_equal_entries_keep_their_marks_where_uncorrected_tests_take_some() -> None:
    found = coverage.populations()
    column, whole = coverage.marks(found, 5, 6, boards=40)
    assert column["ours"] < 0.08 < column["usual"]
    assert whole["ours"] < 0.15


def test_the_caption_says_what_was_measured() -> None:
    table = pd.read_csv(COVERAGE / "coverage.csv")
    marks = table[table["what"].str.startswith("marks")]
    assert (marks["ours"] <= 0.08).all()
    assert set(marks["k"]) == {2, 3, 6, 10} and set(marks["n_seeds"]) == {2, 3, 5, 10}
    spans = [table[table["what"] == what]["ours"] for what in ("cell", "iqm")]
    cells, iqms = (f"{100 * x.min():.0f} to {100 * x.max():.0f} %" for x in spans)
    assert f"{cells} of cells and {iqms} of IQMs at 3 to 10 seeds" in " ".join(
        captions.COVERAGE.split()
    )


# --- equal scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0.1, 33.3, -1234.5678, 1e-9, 1e9 / 3])
@pytest.mark.parametrize("shapes", [((3, 3), (3, 7)), ((2, 1), (2, 6)), ((3, 3), (3, 3))])
def test_entries_whose_scores_are_all_equal_are_not_told_apart_by_rounding(x, shapes):
    cells = [Cell(t.mean(1), t.shape[1], t, tuple(range(t.shape[1])), name=str(t.shape))
             for t in (np.full(shape, x) for shape in shapes)]  # fmt: skip
    pool = Pool.of(cells)
    assert pool.variance == 0
    for cell in cells:
        found = uncertainty.cell_interval(cell, pool)
        assert cell.seed_variance == cell.episode_variance == 0
        assert found.low == pytest.approx(x) == found.high
    assert (uncertainty.differences(cells, pool).adjusted() == 1).all()
    drawn = Generators(0)
    found = [aggregates.aggregate([c], [pool], stats.iqm, generator=drawn) for c in cells]
    assert all(np.isfinite(a.draws).all() and a.interval.low == pytest.approx(x) for a in found)
    assert (aggregates.differences(found).adjusted() == 1).all()


def test_scores_that_differ_and_never_vary_are_told_apart():
    cells = [Cell(np.full(3, x), 3, np.full((3, 3), x), (0, 1, 2)) for x in (0.1, 0.1 + 1e-6)]
    assert uncertainty.differences(cells, Pool.of(cells)).adjusted()[0, 1] == 0
