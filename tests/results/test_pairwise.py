"""All pairs of a board: against the board itself, rliable, and simulation."""

import time
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from offbench.errors import UserError
from offbench.results import stats, uncertainty
from offbench.results.board.leaderboard import Asked, leaderboard
from offbench.results.pairwise import Scores, improvement, profiles

Frames = tuple[pd.DataFrame, pd.DataFrame]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frames(cells: dict[tuple[str, str], np.ndarray], start: int = 0) -> Frames:
    """(episodes, runs) from {(entry, task): (n_seeds, n_episodes)}."""
    rows = []
    for (entry, task), values in cells.items():
        table = np.asarray(values, dtype=float)
        seed, episode = np.indices(table.shape)
        rows.append(
            pd.DataFrame(
                {
                    "run_id": [f"{entry}/{task}/{s}" for s in seed.ravel()],
                    "entry": entry,
                    "task": task,
                    "seed": seed.ravel(),
                    "stream": "test",
                    "update": 10,
                    "episode": episode.ravel(),
                    "env_seed": start + episode.ravel(),
                    "score": table.ravel(),
                }
            )
        )
    episodes = pd.concat(rows, ignore_index=True)
    runs = episodes.drop_duplicates("run_id")[["run_id", "entry", "task", "seed"]]
    runs = runs.assign(config_id=runs["entry"] + runs["task"], status="ok", n_updates=10)
    return episodes, runs


def normal(
    levels: dict[str, float], tasks: int = 4, seeds: int = 5, spread: float = 4.0, seed: int = 0
) -> Frames:
    generator = rng(seed)
    luck = generator.normal(0, 10, (tasks, 1, 6))
    return frames(
        {
            (entry, f"t{t}"): level + luck[t] + generator.normal(0, spread, (seeds, 6))
            for entry, level in levels.items()
            for t in range(tasks)
        }
    )


def tasks_of(pair: Frames) -> list[str]:
    return sorted(pair[1]["task"].unique())


@pytest.fixture
def rliable() -> Iterator[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("rliable")


def pairwise(episodes, runs, tasks, *, unscaled=(), random_seed=0) -> pd.DataFrame:
    asked = Asked(unscaled=unscaled)
    return leaderboard(episodes, runs, tasks, asked=asked, random_seed=random_seed).pairwise


def ranks(episodes, runs, tasks, *, unscaled=()) -> pd.DataFrame:
    return leaderboard(episodes, runs, tasks, asked=Asked(unscaled=unscaled)).ranks


# --- the board ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_pairs_that_differ_are_those_of_the_boards_bold_marks(seed) -> None:
    levels = {"a": 50.0, "b": 50.5, "c": 53.0, "d": 70.0, "e": 71.0}
    data = normal(levels, seed=seed)
    tasks = tasks_of(data)
    table = pairwise(*data, tasks)
    board = leaderboard(*data, tasks)
    points = board.aggregate.set_index("entry")["iqm"]
    p = table.pivot(index="entry", columns="rival", values="p").fillna(1.0)
    marked = uncertainty.not_worse_than_best(points[p.index].to_numpy(), p.to_numpy(), 0.95)
    best = board.aggregate.set_index("entry")["best"]
    assert marked.tolist() == best[p.index].tolist() and 0 < marked.sum() < 5
    columns = Scores.of(*data, tasks).columns
    wins = {(i, j): 0 for i in levels for j in levels if i != j}
    for task in tasks:
        cells = board.cells[board.cells["task"] == task].set_index("entry")
        entries, pairs = columns[task]
        p, means = pairs.adjusted(), cells.loc[entries, "mean"].to_numpy()
        marked = uncertainty.not_worse_than_best(means, p, 0.95)
        assert marked.tolist() == cells.loc[entries, "best"].tolist()
        for i, j in wins:
            at = entries.index(i), entries.index(j)
            wins[i, j] += p[at] < 0.05 and means[at[0]] > means[at[1]]
    assert table.set_index(["entry", "rival"])["wins"].to_dict() == wins and any(wins.values())


def test_differences_are_those_of_the_board_and_turn_with_the_pair() -> None:
    data = normal({"a": 50.0, "b": 55.0, "c": 60.0})
    board = leaderboard(*data, tasks_of(data)).aggregate.set_index("entry")["iqm"]
    table = pairwise(*data, tasks_of(data)).set_index(["entry", "rival"])
    assert list(table) == [
        *("difference", "low", "high", "p", "improvement", "improvement_low", "improvement_high"),
        *("wins", "losses", "ties"),
    ]
    assert len(table) == 6
    for a, b in table.index:
        row, back = table.loc[(a, b)], table.loc[(b, a)]
        assert row["difference"] == pytest.approx(board[a] - board[b], abs=1e-12)
        assert row["low"] == pytest.approx(-back["high"]) and row["p"] == back["p"]
        assert row["low"] < row["difference"] < row["high"]
        assert row["improvement"] + back["improvement"] == pytest.approx(1)
        assert row["improvement_low"] == pytest.approx(1 - back["improvement_high"])
        assert (row["wins"], row["ties"]) == (back["losses"], 4 - row["wins"] - row["losses"])
    assert table.loc[("c", "a"), "wins"] == 4 and table.loc[("c", "a"), "p"] < 0.01


def test_the_interval_leaves_out_0_exactly_where_the_uncorrected_test_differs() -> None:
    for seed in range(6):
        data = normal({"a": 50.0, "b": 51.5}, tasks=3, seeds=3, seed=seed)
        # of one pair nothing is corrected
        row = pairwise(*data, tasks_of(data)).iloc[0]
        assert (row["p"] < 0.05) == (row["low"] > 0 or row["high"] < 0)
        cells = [Scores.of(*data, ["t0"]).found[e, "t0"] for e in "ab"]
        pairs = uncertainty.differences(cells, uncertainty.Pool.of(cells))
        low, high = pairs.intervals(0.95)
        assert (pairs.adjusted()[0, 1] < 0.05) == (low[0, 1] > 0 or high[0, 1] < 0)


def test_an_entry_that_lacks_a_task_or_failed_is_no_part_of_it() -> None:
    episodes, runs = normal({"a": 50.0, "b": 51.0, "c": 52.0})
    gone = (runs["entry"] == "c") & (runs["task"] == "t1")
    table = pairwise(episodes[~episodes["run_id"].isin(runs["run_id"][gone])], runs[~gone], ["t0"])
    assert set(table["entry"]) == {"a", "b", "c"}
    runs.loc[gone & (runs["seed"] == 0), "status"] = "diverged"
    table = pairwise(episodes, runs, tasks_of((episodes, runs)))
    assert set(table["entry"]) == {"a", "b"}
    assert set(ranks(episodes, runs, ["t0", "t1"])["entry"]) == {"a", "b"}
    assert set(profiles(episodes, runs, ["t0", "t1"])["entry"]) == {"a", "b"}
    with pytest.raises(UserError, match="no task"):
        Scores.of(episodes, runs, [])


def test_returns_of_several_scales_have_ranks_and_no_difference() -> None:
    data = normal({"a": 50.0, "b": 60.0})
    table = pairwise(*data, tasks_of(data), unscaled=["t3"])
    assert table[["difference", "low", "high", "p"]].isna().all(axis=None)
    assert table["improvement"].notna().all() and table["wins"].sum() > 0
    assert ranks(*data, tasks_of(data), unscaled=["t3"])["high"].notna().all()
    assert profiles(*data, tasks_of(data), unscaled=["t3"])["point"].isna().all()
    assert pairwise(*data, ["t3"], unscaled=["t3"])["difference"].notna().all()


def test_one_seed_has_points_and_no_intervals() -> None:
    one, several = normal({"a": 50.0}, seeds=1), normal({"b": 60.0, "c": 61.0})
    data = pd.concat([one[0], several[0]]), pd.concat([one[1], several[1]])
    table = pairwise(*data, tasks_of(data)).set_index(["entry", "rival"])
    row = table.loc[("a", "b")]
    assert row[["low", "high", "p", "improvement_low", "improvement_high"]].isna().all()
    assert np.isfinite(row["difference"]) and row["improvement"] == 0 and row["ties"] == 4
    assert table.loc[("b", "c")].notna().all()
    ranked = ranks(*data, tasks_of(data)).set_index("entry")
    assert np.isnan(ranked.loc["a", "low"]) and ranked.loc["a", "mean_rank"] == 3
    assert np.isfinite(ranked.loc["b", "low"])
    bands = profiles(*data, tasks_of(data)).groupby("entry")["low"].count()
    assert (bands["a"], bands["b"]) == (0, 101)


# --- rliable --------------------------------------------------------------------------------


def test_points_are_rliables(rliable) -> None:
    from rliable import library, metrics

    data = normal({"a": 50.0, "b": 52.0}, tasks=6, seeds=7)
    tasks = tasks_of(data)
    scores = Scores.of(*data, tasks)
    a, b = (np.stack([c.means for c in scores.row(e, tasks)], -1) for e in "ab")
    row = pairwise(*data, tasks).set_index(["entry", "rival"]).loc[("a", "b")]
    gap = metrics.aggregate_iqm(a) - metrics.aggregate_iqm(b)
    assert row["difference"] == pytest.approx(gap, abs=1e-12)
    expected = metrics.probability_of_improvement(a, b)
    assert row["improvement"] == pytest.approx(expected, abs=1e-12)
    table = profiles(*data, tasks, thresholds=np.linspace(30, 70, 9))
    theirs = library.score_distributions(a, np.linspace(30, 70, 9))
    np.testing.assert_allclose(table[table["entry"] == "a"]["point"], theirs, atol=1e-12)


# --- probability of improvement -------------------------------------------------------------


def probability(cells: dict[tuple[str, str], np.ndarray]) -> pd.Series:
    data = frames(cells)
    return pairwise(*data, tasks_of(data)).set_index(["entry", "rival"]).loc[("a", "b")]


def test_the_probability_of_improvement_by_hand_with_ties() -> None:
    row = probability(
        {
            ("a", "s"): np.array([[1.0], [2.0]]),
            ("b", "s"): np.array([[0.0], [2.0]]),
            ("a", "t"): np.array([[0.0], [0.0], [0.0]]),
            ("b", "t"): np.array([[0.0], [0.0]]),
        }
    )
    assert row["improvement"] == pytest.approx(((1 + 0 + 1 + 0.5) / 4 + 0.5) / 2)


def test_winning_every_time_with_few_seeds_is_not_certainty() -> None:
    width = []
    for seeds in (2, 3, 10):
        cells = {(e, "t"): (v + np.arange(seeds))[:, None] for e, v in {"a": 90, "b": 10}.items()}
        row = probability(cells)
        assert row["improvement"] == row["improvement_high"] == 1
        width.append(1 - row["improvement_low"])
    assert width[0] > width[1] > 0.3 and 0.05 < width[2] < width[1] / 2


@pytest.mark.parametrize(
    ("n_tasks", "gap"), [(1, 1.0), (5, 0.0), (5, 1.5), (5, np.array([-9, 9, -9, 9, 0.0]))]
)
def test_the_interval_of_the_probability_of_improvement_holds_the_truth(n_tasks, gap) -> None:
    """Normal scores, 3 seeds against 4; nominal 95 %, at least 93 of 100 of 400 draws."""
    generator, trials = rng(1), 400
    gap = np.broadcast_to(np.asarray(gap, dtype=float), (n_tasks,))
    from scipy.special import ndtr

    truth, held = ndtr(gap / np.sqrt(2)).mean(), 0
    tasks = tuple(f"t{t}" for t in range(n_tasks))
    for _ in range(trials):
        found = {
            (e, t): uncertainty.Cell(g * (e == "a") + generator.normal(size=n), 10)
            for e, n in (("a", 3), ("b", 4))
            for t, g in zip(tasks, gap)
        }
        scores = Scores(tasks, found, {}, frozenset(), frozenset())
        _, low, high = improvement(scores, ["a", "b"], tasks, 0.95)
        held += low[0, 1] <= truth <= high[0, 1]
    assert held / trials > 0.93


# --- ranks ----------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    data = frames(
        {
            (e, t): np.full((3, 2), v)
            for t, row in {"s": (1.0, 2.0, 2.0), "t": (9.0, 5.0, 7.0)}.items()
            for e, v in zip("abc", row)
        }
    )
    table = ranks(*data, ["s", "t"])
    assert table["entry"].tolist() == ["c", "a", "b"]
    np.testing.assert_allclose(table["mean_rank"], [1.75, 2.0, 2.25])
    np.testing.assert_allclose(table["borda"], [0.625, 0.5, 0.375])
    board = leaderboard(*data, ["s", "t"], asked=Asked(unscaled=("s", "t"))).aggregate
    assert board.set_index("entry").loc[list("cab"), "mean_rank"].tolist() == [1.75, 2.0, 2.25]


def test_intervals_of_ranks_hold_them_and_are_wide_where_entries_are_alike() -> None:
    data = normal({"a": 50.0, "b": 50.0, "c": 90.0}, seeds=3)
    table = ranks(*data, tasks_of(data)).set_index("entry")
    assert (table["low"] <= table["mean_rank"]).all() and (
        table["mean_rank"] <= table["high"]
    ).all()
    assert table.loc["c", ["low", "high"]].tolist() == [1, 1]
    assert table.loc["a", "high"] - table.loc["a", "low"] > 0.4
    alone = normal({"a": 50.0})
    assert np.isnan(ranks(*alone, tasks_of(alone)).loc[0, "borda"])


# --- habits ---------------------------------------------------------------------------------


def test_numbers_do_not_depend_on_the_order_of_the_rows_or_on_other_entries_draws() -> None:
    episodes, runs = normal({"a": 50.0, "b": 52.0, "c": 51.0})
    tasks = tasks_of((episodes, runs))
    mixed = episodes.sample(frac=1, random_state=0), runs.sample(frac=1, random_state=1)
    for function in (pairwise, ranks, profiles):
        table = function(episodes, runs, tasks)
        pd.testing.assert_frame_equal(table, function(*mixed, tasks))
    once, other = (pairwise(episodes, runs, tasks, random_seed=s) for s in (0, 1))
    assert (once["low"] != other["low"]).all()
    assert (once["difference"] == other["difference"]).all()


@pytest.mark.slow
def test_fifty_entries_on_fifty_tasks_take_seconds() -> None:
    data = normal({f"e{i:02}": 50.0 for i in range(50)}, tasks=50, seeds=10)
    start = time.process_time()
    assert len(pairwise(*data, tasks_of(data))) == 50 * 49
    assert time.process_time() - start < 20


def test_the_statistics_of_a_board_leave_numpys_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    data = normal({"a": 50.0, "b": 52.0})
    pairwise(*data, tasks_of(data))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert stats.holm([]).size == 0
