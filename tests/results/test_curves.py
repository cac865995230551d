"""Learning curves of recorded episodes, checked against counts by hand and against the board."""

import numpy as np
import pandas as pd
import pytest

from offbench.errors import UserError
from offbench.results.board.leaderboard import Asked, leaderboard
from offbench.results.curves import CURVE_COLUMNS, curve_table, updates_needed

TASK, OTHER = "toy/point-v0", "toy/line-v0"


def recorded(
    scores: dict[str, dict[int, list[list[float]]]], task: str = TASK, status: str = "ok"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(episodes, runs) of entries: entry -> update -> seeds x episodes; the last update is tested."""
    rows, runs = [], []
    for entry, points in scores.items():
        last = max(points)
        for seed in range(len(points[last])):
            run = {"run_id": f"{entry}-{task}-{seed}", "entry": entry, "task": task, "seed": seed}
            runs.append(run | {"config_id": entry, "status": status, "n_updates": last})
            for update, by_seed in points.items():
                stream = "test" if update == last else "monitor"
                own = by_seed[seed] if seed < len(by_seed) else []
                rows += [
                    run
                    | {"update": update, "stream": stream, "episode": i, "score": float(x)}
                    | {"env_seed": i + (0 if stream == "test" else 1000)}
                    for i, x in enumerate(own)
                ]
    return pd.DataFrame(rows), pd.DataFrame(runs)


def together(*frames):
    return tuple(pd.concat(part, ignore_index=True) for part in zip(*frames))


IQL = {20: [[1.0, 2.0], [3.0, 5.0]], 100: [[40.0, 44.0], [50.0, 52.0]]}
BC = {20: [[8.0, 9.0], [9.0, 10.0]], 100: [[10.0, 12.0], [9.0, 11.0]]}


def test_a_point_is_the_mean_over_seeds_with_the_counts_behind_it():
    table = curve_table(*recorded({"iql": IQL, "bc": BC}))
    assert tuple(table.columns) == CURVE_COLUMNS
    assert table[["entry", "update", "stream"]].to_numpy().tolist() == [
        ["bc", 20, "monitor"],
        ["bc", 100, "test"],
        ["iql", 20, "monitor"],
        ["iql", 100, "test"],
    ]
    point = table.set_index(["entry", "update"]).loc["iql", 20]
    assert (point["mean"], point["n_seeds"], point["n_episodes"]) == (2.75, 2, 4)
    assert point["low"] < 2.75 < point["high"]


def test_the_last_point_is_the_cell_of_the_board():
    won = {50: [[0, 0], [0, 0]], 200: [[100, 0], [100, 100]]}
    frames = together(
        recorded({"iql": IQL, "bc": BC}), recorded({"iql": won, "bc": {200: won[200]}}, OTHER)
    )
    columns = ["mean", "low", "high", "n_seeds", "n_episodes"]
    for unscaled in ([], [OTHER]):
        board = leaderboard(*frames, [TASK, OTHER], asked=Asked(unscaled=unscaled))
        last = curve_table(*frames, unscaled=unscaled).query("stream == 'test'")
        pd.testing.assert_frame_equal(
            *(x.set_index(["entry", "task"])[columns].sort_index() for x in (last, board.cells))
        )


def test_failed_runs_and_other_streams_are_not_mixed_in():
    whole = recorded({"iql": IQL})
    # seeds 0 and 1 are whole; a third one failed after its first evaluation
    started = recorded({"iql": {20: [[99.0] * 2] * 3, 100: [[99.0] * 2] * 3}}, status="failed")
    third, rows = (frame[frame["seed"] == 2] for frame in started[::-1])
    rows = rows[rows["update"] == 20]
    tune = whole[0].assign(stream="tune", score=99.0)
    after = whole[0].query("stream == 'monitor'").assign(update=100, score=99.0)
    mixed = pd.concat([whole[0], rows, tune, after], ignore_index=True)
    table = curve_table(mixed, pd.concat([whole[1], third], ignore_index=True))
    pd.testing.assert_frame_equal(table, curve_table(*whole))


def test_a_point_that_a_seed_lacks_says_how_many_it_has():
    table = curve_table(*recorded({"iql": {20: [[1.0, 3.0]], **{100: IQL[100]}}}))
    assert table["n_seeds"].tolist() == [1, 2] and table["mean"][0] == 2.0


def test_success_rates_stay_within_their_scale():
    won = {20: [[0, 0, 0], [0, 0, 0]], 100: [[100, 0, 100], [100, 100, 100]]}
    table = curve_table(*recorded({"qc": won}))
    assert (table["low"] >= 0).all() and (table["high"] <= 100).all()
    # nothing won in six episodes is not certainty
    assert table["high"][0] > 20


def test_without_monitor_episodes_there_is_the_last_point_alone():
    table = curve_table(*recorded({"iql": {100: IQL[100]}}))
    assert table["stream"].tolist() == ["test"]
    assert updates_needed(table).isna().all()
    nothing = recorded({"iql": IQL}, status="failed")
    assert curve_table(*nothing).empty and tuple(curve_table(*nothing)) == CURVE_COLUMNS


def test_two_configurations_are_no_curve():
    episodes, runs = recorded({"iql": IQL})
    runs.loc[1, "config_id"] = "another"
    with pytest.raises(UserError, match="different configurations"):
        curve_table(episodes, runs)


def test_updates_needed_is_the_first_evaluation_at_the_level_of_the_best():
    steps = lambda *means: {u: [[m, m]] for u, m in zip((25, 50, 75, 100), means)}
    fast, slow = steps(10, 90, 80, 95), steps(5, 20, 60, 100)
    worse = {"fast": steps(-10, -3, -2, -1)}
    frames = together(recorded({"fast": fast, "slow": slow}), recorded(worse, OTHER))
    needed = updates_needed(curve_table(*frames))
    # 90 % of the best last score, 100
    assert needed["fast", TASK] == 50 and needed["slow", TASK] == 100
    # a share of a negative score says nothing
    assert np.isnan(needed["fast", OTHER])
    assert updates_needed(curve_table(*frames), 0.98)[("slow", TASK)] == 100
    assert np.isnan(updates_needed(curve_table(*frames), 0.98)[("fast", TASK)])
