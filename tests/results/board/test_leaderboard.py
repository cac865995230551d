"""The leaderboard: what it averages, what it refuses to, and what it says."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support import boards

from offbench.errors import UserError
from offbench.results.board import strip
from offbench.results.board.explain import explanation
from offbench.results.board.formats import write
from offbench.results.board.leaderboard import Asked, Board, leaderboard
from offbench.results.board.render import cell_text, to_csv, to_markdown, to_terminal
from offbench.results.spec import Provenance, RunSpec
from offbench.results.store import Store

A, B = "toy/a-v0", "toy/b-v0"
Frames = tuple[pd.DataFrame, pd.DataFrame]


def records(scores: dict[tuple[str, str], Any], **columns: Any) -> Frames:
    """(episodes, runs) from {(entry, task): per-seed lists of episode scores, or a status}."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for (entry, task), seeds in scores.items():
        for seed, values in enumerate(seeds):
            run_id = f"{entry}-{task.split('/')[-1][:-3]}-{seed}"
            run = {
                "run_id": run_id,
                "config_id": f"{entry} on {task}",
                "entry": entry,
                "task": task,
                "seed": seed,
                "status": values if isinstance(values, str) else "ok",
                "n_updates": 100,
                "dataset_sha256": "0" * 64,
                "commit": "0123456789abcdef",
                "dirty": False,
                "wall_s": 60.0,
                "pack": 2,
                "tuning.how": "published",
                "tuning.tried": 1,
                "versions.mujoco": "3.11.0",
            }
            runs.append(run | columns)
            if isinstance(values, str):
                continue
            for episode, score in enumerate(values):
                rows.append(
                    {
                        "run_id": run_id,
                        "entry": entry,
                        "task": task,
                        "seed": seed,
                        "stream": "test",
                        "update": 100,
                        "episode": episode,
                        "env_seed": 50 + episode,
                        "score": float(score),
                    }
                )
    return pd.DataFrame(rows), pd.DataFrame(runs)


def joined(*parts: Frames) -> Frames:
    return pd.concat([p[0] for p in parts]), pd.concat([p[1] for p in parts])


def noisy(entries: list[str], tasks: list[str], *, seeds: int = 5, step: float = 1.0) -> Frames:
    generator = np.random.default_rng(0)
    shape = (seeds, 4)
    return records(
        {
            (entry, task): (50 + step * number + generator.normal(0, 5, shape)).tolist()
            for number, entry in enumerate(entries)
            for task in tasks
        }
    )


def line(board: Board, entry: str) -> pd.Series:
    return board.aggregate.set_index("entry").loc[entry]


def cell(board: Board, entry: str, task: str) -> pd.Series:
    return board.cells.set_index(["entry", "task"]).loc[entry, task]


def printed(board: Board, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    to_terminal(board, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- numbers --------------------------------------------------------------------------------


def test_a_board_by_hand() -> None:
    frames = records(
        {
            ("iql", A): [[10, 20], [30, 30]],  # per seed 15 and 30
            ("iql", B): [[0, 0], [100, 80]],  # per seed 0 and 90
            ("bc", A): [[1, 1], [3, 3]],
            ("bc", B): [[5, 5], [7, 7]],
        }
    )
    board = leaderboard(*frames, [A, B])
    a = cell(board, "iql", A)
    # variances of two seeds: 112.5, 4050, 2, 2, on average 1041.625; half of it beside one of 112.5
    pooled = (112.5 + 4050 + 2 + 2) / 4
    half = 12.706204736432095 * np.sqrt((pooled / 2 + 112.5) / 1.5 / 2)
    assert (a["mean"], a["n_seeds"], a["n_episodes"]) == (22.5, 2, 4)
    np.testing.assert_allclose([a["low"], a["high"]], [22.5 - half, 22.5 + half], rtol=1e-9)
    iql, bc = line(board, "iql"), line(board, "bc")
    assert (iql["rank"], bc["rank"]) == (1, 2)
    # of 0, 15, 30, 90 without the outer two
    assert iql["iqm"] == 22.5
    assert iql["mean"] == 33.75
    assert bc["iqm"] == bc["mean"] == 4
    # two agreeing pairs of seeds are not certain on a board whose seeds differ
    assert bc["low"] < -5 and bc["high"] > 13
    assert (iql["n_seeds"], iql["n_episodes"], iql["wall_s"]) == (2, 8, 30)
    assert board.aggregate["entry"].tolist() == ["iql", "bc"]


def test_returns_without_references_are_never_averaged_with_scores() -> None:
    frames = records(
        {
            ("iql", A): [[10, 20], [30, 30]],
            ("iql", B): [[4000, 4100], [3900, 4000]],
            ("td3", A): [[30, 40], [30, 30]],
            ("td3", B): [[3000, 3100], [2900, 3000]],
            ("bc", A): [[1, 1], [3, 3]],
        }
    )
    board = leaderboard(*frames, [A, B], asked=Asked(unscaled=[B]))
    assert dict(explanation(board))["rank"] == "The order by mean rank."
    numbers = board.aggregate[["iqm", "low", "high", "mean", "mean_low", "mean_high"]]
    assert numbers.isna().all(axis=None) and not board.aggregate["best"].any()
    # ranked by the mean of the ranks within the tasks; bc lacks one
    assert board.aggregate["entry"].tolist() == ["iql", "td3", "bc"]
    assert board.aggregate["rank"].tolist() == [1, 1, pd.NA]
    assert board.aggregate["mean_rank"].tolist()[:2] == [1.5, 1.5]
    assert f"no reference returns are known, a score is the return itself ({B})" in board.notes[0]
    assert cell(board, "iql", B)["mean"] == 4000
    row = next(x for x in to_markdown(board).splitlines() if "| iql |" in x)
    assert "| mean rank 1.5 | -- |" in row
    assert "incomplete" in printed(board) and "mean rank" in printed(board)
    assert "mean rank,1.5" in to_csv(board)
    assert (
        leaderboard(*frames, [A, B], asked=Asked(unscaled=["toy/c-v0"]))
        .aggregate["iqm"]
        .notna()
        .any()
    )
    # one task has nothing to be mixed with
    assert leaderboard(*frames, [B], asked=Asked(unscaled=[B])).aggregate["iqm"].tolist() == [
        4000,
        3000,
    ]


def test_plain_returns_say_nothing_about_the_spread_of_scores() -> None:
    scores = records({("iql", A): [[10], [12], [14]]})
    returns = records({("iql", B): [[4000], [9000], [100]], ("bc", B): [[1], [2], [3]]})
    alone = leaderboard(*scores, [A])
    both = leaderboard(*joined(scores, returns), [A, B], asked=Asked(unscaled=[B]))
    assert cell(both, "iql", A)["low"] == cell(alone, "iql", A)["low"]


def test_only_test_episodes_of_the_last_update_count() -> None:
    episodes, runs = records({("iql", A): [[1, 1], [3, 3]]})
    noise = [episodes.assign(stream=s, score=99.0) for s in ("monitor", "tune")]
    noise.append(episodes.assign(update=50, score=99.0))
    board = leaderboard(pd.concat([episodes, *noise]), runs, [A])
    assert cell(board, "iql", A)["mean"] == 2
    assert cell(board, "iql", A)["n_episodes"] == 4


def test_tasks_that_were_not_asked_for_do_not_count() -> None:
    frames = records({("iql", A): [[1], [3]], ("iql", B): [[90], [95]], ("bc", B): [[1], [2]]})
    board = leaderboard(*frames, [A])
    assert line(board, "iql")["iqm"] == 2
    assert board.aggregate["entry"].tolist() == ["iql"]


def test_a_board_does_not_depend_on_the_order_of_its_records() -> None:
    frames = noisy(["a", "b", "c"], [A, B])
    board = leaderboard(*frames, [A, B])
    shuffled = [frame.sample(frac=1, random_state=1) for frame in frames]
    assert to_csv(leaderboard(*shuffled, [A, B])) == to_csv(board)


def test_a_new_row_changes_others_only_by_what_it_says_of_the_spread_between_seeds() -> None:
    frames = noisy(["a", "b", "c"], [A, B])
    board = leaderboard(*frames, [A, B])
    # as many cells again, of the same spread
    copies = [f.assign(entry=f["entry"] + "'", run_id=f["run_id"] + "'") for f in frames]
    more = leaderboard(*joined(frames, tuple(copies)), [A, B])
    columns = ["iqm", "low", "high", "mean_low", "mean_high"]
    for entry in ("a", "b", "c"):
        found, before = line(more, entry)[columns], line(board, entry)[columns]
        assert found.tolist() == pytest.approx(before.tolist(), rel=1e-12)


def test_the_random_seed_of_the_intervals_can_be_chosen() -> None:
    frames = noisy(["a"], [A, B])
    seeded = [leaderboard(*frames, [A, B], random_seed=s) for s in (0, 0, 1)]
    assert to_csv(seeded[0]) == to_csv(seeded[1])
    assert to_csv(seeded[0]) != to_csv(seeded[2])


# --- what is not there ----------------------------------------------------------------------


def test_a_missing_cell_has_no_aggregate() -> None:
    frames = records(
        {
            ("best", A): [[100], [99]],
            ("iql", A): [[1], [3]],
            ("iql", B): [[1], [3]],
        }
    )
    board = leaderboard(*frames, [A, B])
    missing = cell(board, "best", B)
    assert missing["missing"]
    assert missing["status"] == "missing"
    assert np.isnan(missing["mean"])
    best = line(board, "best")
    assert np.isnan(best["iqm"])
    assert np.isnan(best["mean"])
    assert pd.isna(best["rank"])
    assert board.aggregate["entry"].tolist() == ["iql", "best"]
    for text in (to_markdown(board), to_csv(board)):
        assert "incomplete (1/2 tasks)" in text
    row = next(x for x in to_markdown(board).splitlines() if x.startswith("| -- | best"))
    assert row.split("|")[4].strip() == "--"
    assert "incomplete" in printed(board)


def test_incomplete_entries_rank_last_the_fuller_first() -> None:
    frames = records(
        {("x", A): [[9], [9]], ("y", B): [[1], [1]], ("y", A): [[1], [1]], ("z", A): [[1], [1]]}
    )
    board = leaderboard(*frames, [A, B, "toy/c-v0"])
    assert board.aggregate["entry"].tolist() == ["y", "x", "z"]
    assert board.aggregate["rank"].isna().all()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_failed_run_is_shown_and_not_averaged_over(status: str) -> None:
    frames = records(
        {("iql", A): [[50], [60], status], ("iql", B): [status, status], ("bc", A): [[1], [2]]}
    )
    board = leaderboard(*frames, [A, B])
    partial = cell(board, "iql", A)
    assert (partial["status"], partial[f"n_{status}"], partial["n_seeds"]) == ("partial", 1, 2)
    assert not partial["best"]
    assert cell(board, "iql", B)["status"] == status
    assert cell(board, "iql", B)["missing"]
    assert np.isnan(line(board, "iql")["iqm"])
    assert line(board, "iql")["complete"] == 0
    text = to_markdown(board)
    assert f"(1 {status})" in text
    assert f"| {status} |" in text
    assert f"{A}: iql has 1 {status} beside 2 finished runs" in text


def test_a_remark_on_a_run_is_told_and_its_score_counts() -> None:
    episodes, runs = records({("iql", A): [[50], [60]], ("bc", A): [[1], [2]]})
    told = runs.assign(reason=[None, "values diverged: mean q 1e6", None, None])
    board = leaderboard(episodes, told, [A])
    assert board.cells.equals(leaderboard(episodes, runs, [A]).cells)
    assert cell(board, "iql", A)["mean"] == 55
    (note,) = board.notes
    assert note.startswith(f"{A}: 1 of 2 runs of iql,") and note.endswith("mean q 1e6")
    assert leaderboard(episodes, runs.assign(reason=None), [A]).notes == ()


def test_a_failure_made_good_leaves_no_trace() -> None:
    whole = records({("iql", A): [[50], [60]]})
    failed = records({("iql", A): ["failed", "diverged"]})[1]
    failed = failed.assign(run_id=["old0", "old1"], config_id="with another learning rate")
    board = leaderboard(whole[0], pd.concat([failed, whole[1]]), [A])
    assert cell(board, "iql", A)["status"] == "ok"
    assert to_markdown(board) == to_markdown(leaderboard(*whole, [A]))


def test_a_board_of_failures_alone_can_be_printed() -> None:
    _, runs = records({("iql", A): ["failed", "diverged"]})
    empty = records({("iql", A): [[1]]})[0].iloc[:0]
    board = leaderboard(empty, runs, [A])
    assert cell(board, "iql", A)["status"] == "diverged"
    assert "incomplete (0/1 tasks)" in to_markdown(board)
    assert "incomplete" in printed(board)


def test_one_seed_has_a_mean_and_no_interval_and_is_never_bold() -> None:
    frames = records({("iql", A): [[5, 7]], ("bc", A): [[1, 1], [2, 2]], ("dt", A): [[0], [1]]})
    board = leaderboard(*frames, [A])
    iql = cell(board, "iql", A)
    assert iql["mean"] == 6
    assert np.isnan(iql["low"])
    assert line(board, "iql")["rank"] == 1
    assert not iql["best"] and not line(board, "iql")["best"]
    # and it takes no mark from others
    without = leaderboard(*(f[f["entry"] != "iql"] for f in frames), [A])
    for entry in ("bc", "dt"):
        assert cell(board, entry, A)["best"] and cell(without, entry, A)["best"]
        assert line(board, entry)["best"]
    assert "| 6.0 |" in to_markdown(board)
    assert "One seed has no interval, is compared with nothing and is never bold" in board.caption
    assert "●" in printed(board)


def test_equal_scores_share_a_rank_whatever_the_order_of_their_sum() -> None:
    scores = [0.1, 0.2, 0.3]
    frames = records({("a", A): [scores, scores], ("b", A): [scores[::-1], scores[::-1]]})
    board = leaderboard(*frames, [A])
    assert line(board, "a")["iqm"] != line(board, "b")["iqm"]
    assert board.aggregate["rank"].tolist() == [1, 1]


def test_seeds_that_were_asked_for_and_not_run_are_shown_and_cost_the_rank() -> None:
    frames = records({("iql", A): [[50], [60], [70]], ("bc", A): [[1], [2]]})
    board = leaderboard(*frames, [A], asked=Asked(seeds={A: [0, 1, 2]}))
    bc = cell(board, "bc", A)
    assert (bc["status"], bc["n_seeds"], bc["n_asked"]) == ("partial", 2, 3)
    assert cell(board, "iql", A)["status"] == "ok"
    assert pd.isna(line(board, "bc")["rank"]) and np.isnan(line(board, "bc")["iqm"])
    assert "(2 of 3 seeds)" in to_markdown(board)
    assert f"{A}: bc has 2 of 3 seeds asked for, so it has no aggregate and no rank" in board.notes
    assert "2 of 3" in printed(board)
    assert pd.notna(line(leaderboard(*frames, [A]), "bc")["rank"])
    # one note for all tasks on which as many are missing
    both = records({("bc", t): [[1], [2]] for t in (A, B)})
    notes = leaderboard(*both, [A, B], asked=Asked(seeds={t: [0, 1, 2] for t in (A, B)})).notes
    assert notes == (
        "all tasks: bc has 2 of 3 seeds asked for, so it has no aggregate and no rank",
    )


def test_returns_of_0_and_100_are_no_success_rate_and_a_board_of_returns_says_so() -> None:
    frames = records({("x", A): [[0, 0], [0, 100], [100, 0]], ("y", A): [[0], [0], [100]]})
    plain = leaderboard(*frames, [A], asked=Asked(unscaled=[A]))
    assert not plain.cells["success"].any() and cell(plain, "x", A)["low"] < 0
    assert plain.caption.startswith("Score: the return itself, no reference returns are known")
    assert "the return itself" in plain.summary and "reference minimum" not in plain.caption
    assert leaderboard(*frames, [A]).cells["success"].all()


def test_a_success_rate_has_an_interval_within_its_bounds() -> None:
    frames = records(
        {
            ("none", A): [[0] * 10] * 3,
            ("some", A): [[0] * 10, [0] * 10, [100] * 10],
            ("none", B): [[0.0, 1.5]] * 3,
            ("some", B): [[1.0, 3.5]] * 3,
        }
    )
    board = leaderboard(*frames, [A, B])
    none, some = cell(board, "none", A), cell(board, "some", A)
    assert none["low"] == 0 < 10 < none["high"] < 100
    assert 0 <= some["low"] < some["mean"] < some["high"] <= 100
    assert none["success"] and not cell(board, "none", B)["success"]
    assert f"| **0.0 [0.0, {none['high']:.1f}]** |" in to_markdown(board)
    assert f"[0, {none['high']:.0f}]" in printed(board)


# --- what is refused ------------------------------------------------------------------------


def test_two_runs_of_one_seed_are_refused_with_both_names_and_the_difference() -> None:
    one = records({("iql", A): [[1], [2]]}, **{"hparams.lr": 1e-3})
    two = records({("iql", A): [[5]]}, **{"hparams.lr": 1e-4})
    two = two[0].assign(run_id="other"), two[1].assign(run_id="other", config_id="other")
    with pytest.raises(UserError, match=r"seed 0 .* iql-a-0 and other.*hparams.lr \(0.001, 0.0001"):
        leaderboard(*joined(one, two), [A])


def test_seeds_of_different_configurations_are_not_one_cell() -> None:
    episodes, runs = records({("iql", A): [[1], [2], [3]]})
    runs["hparams.lr"] = [1e-3, 1e-3, 1e-4]
    runs["config_id"] = ["x", "x", "y"]
    with pytest.raises(UserError, match=r"iql-a-0 \(seed 0\) and iql-a-2 .*hparams.lr"):
        leaderboard(episodes, runs, [A])


def test_frames_that_disagree_are_refused() -> None:
    episodes, runs = records({("iql", A): [[1], [2]]})
    with pytest.raises(UserError, match="iql-a-1 is recorded as done but has no test episodes"):
        leaderboard(episodes[episodes["seed"] == 0], runs, [A])
    with pytest.raises(UserError, match="no column config_id"):
        leaderboard(episodes, runs.drop(columns="config_id"), [A])


def test_a_misspelt_task_is_answered_with_the_nearest() -> None:
    frames = records({("iql", A): [[1], [2]]})
    with pytest.raises(UserError, match=f"did you mean '{A}'"):
        leaderboard(*frames, ["toy/a-v1"])
    with pytest.raises(UserError, match="listed twice"):
        leaderboard(*frames, [A, A])
    with pytest.raises(UserError, match="at least one task"):
        leaderboard(*frames, [])


# --- the best of a column -------------------------------------------------------------------


def test_entries_that_do_not_differ_from_the_best_are_marked_with_it() -> None:
    frames = records(
        {
            ("best", A): [[60], [61], [62]],
            ("close", A): [[57], [60], [61]],
            ("below", A): [[30], [31], [32]],
            ("far", A): [[0], [1], [2]],
        }
    )
    board = leaderboard(*frames, [A])
    assert set(board.cells[board.cells["best"]]["entry"]) == {"best", "close"}


def test_marks_do_not_depend_on_the_numbers_of_the_seeds() -> None:
    """Seed 3 of two entries has nothing in common but its number."""
    values = [[50], [60], [70]]
    for other in ([[48], [58], [68.1]], [[68.1], [58], [48]]):
        board = leaderboard(*records({("best", A): values, ("below", A): other}), [A])
        assert set(board.cells[board.cells["best"]]["entry"]) == {"best", "below"}


def test_episodes_are_paired_where_entries_met_the_same_ones() -> None:
    luck = np.random.default_rng(0).normal(50, 30, (1, 12))
    noise = np.random.default_rng(1).normal(0, 1, (2, 4, 12))
    best = records({("best", t): (luck + 8 + noise[0]).tolist() for t in (A, B)})
    below = records({("below", t): (luck + noise[1]).tolist() for t in (A, B)})
    elsewhere = below[0].assign(env_seed=below[0]["env_seed"] + 500), below[1]
    for other, marked in ((below, [True, False]), (elsewhere, [True, True])):
        board = leaderboard(*joined(best, other), [A, B])
        assert board.aggregate["entry"].tolist() == ["best", "below"]
        assert board.aggregate["best"].tolist() == marked
        assert cell(board, "below", A)["best"] == marked[1]


def test_the_aggregate_is_marked_by_the_same_rule() -> None:
    board = leaderboard(*noisy(["a", "b", "c"], [A, B], step=0.1), [A, B])
    assert board.aggregate["best"].all()
    board = leaderboard(*noisy(["a", "b", "c"], [A, B], step=20), [A, B])
    assert board.aggregate["best"].tolist() == [True, False, False]


# --- notes and provenance -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("dataset_sha256", "f" * 64, "runs differ in dataset_sha256"),
        ("n_updates", 100.0, None),
        ("versions.mujoco", "2.1.0", r"runs differ in mujoco (2.1.0: bc; 3.11.0: iql)"),
        ("env.id", "Point-v1", "runs differ in env.id"),
        ("protocol.episodes", 10, "runs differ in protocol.episodes (10: bc; unset: iql)"),
        ("versions.torch", "1.0", None),
        ("hparams.lr", 1.0, None),
    ],
)
def test_a_column_of_different_worlds_says_so(column: str, value: Any, words: str | None) -> None:
    iql = records({("iql", A): [[1], [2]], ("iql", B): [[1], [2]]})
    bc = records({("bc", A): [[1], [2]], ("bc", B): [[1], [2]]}, **{column: value})
    board = leaderboard(*joined(iql, bc), [A, B])
    if words is None:
        assert board.notes == ()
    else:
        assert len(board.notes) == 1
        assert board.notes[0].startswith(f"all tasks: {words}")
        assert board.notes[0] in to_markdown(board)


def test_a_different_number_of_updates_is_noted_for_its_task() -> None:
    episodes, runs = records({("iql", A): [[1], [2]], ("bc", A): [[1], [2]], ("bc", B): [[1], [2]]})
    bc = runs["entry"] == "bc"
    runs.loc[bc, "n_updates"] = 50
    episodes.loc[episodes["entry"] == "bc", "update"] = 50
    board = leaderboard(episodes, runs, [A, B])
    assert board.notes == (f"{A}: runs differ in n_updates (100: iql; 50: bc)",)
    assert line(board, "bc")["n_updates"] == "50"


def test_a_row_says_how_it_was_tuned_and_from_which_commits() -> None:
    episodes, runs = records({("iql", A): [[1], [2]], ("iql", B): [[1], [2]]})
    runs.loc[runs["task"] == B, ["tuning.how", "tuning.tried"]] = ["task preset", 12]
    runs.loc[runs["seed"] == 1, "dirty"] = True
    row = line(leaderboard(episodes, runs, [A, B]), "iql")
    assert row["n_tuned"] == 1
    assert row["tuning"] == "published, task preset (1/2 tasks), 12 tried"
    assert row["commit"] == "0123456, 0123456+dirty"


def test_a_row_says_what_was_overridden_carried_over_and_how_much_of_a_budget_was_run() -> None:
    episodes, runs = records({("iql", A): [[1], [2]], ("iql", B): [[1], [2]]})
    overridden = "task preset, 1 setting overridden (n_updates)"
    runs["tuning.how"] = np.where(runs["task"] == A, overridden, "task preset")
    runs["tuning.preset"] = "carried over from the method alone: a paper"
    runs["n_updates"] = 300_000
    runs["tuning.published_updates"] = np.where(runs["task"] == A, 1_000_000, 300_000)
    row = line(leaderboard(episodes.assign(update=300_000), runs, [A, B]), "iql")
    assert row["n_tuned"] == 2
    assert row["tuning"] == (
        f"task preset (1/2 tasks), {overridden} (1/2 tasks), carried over from the method alone"
    )
    assert row["updates"] == "300k/300k of 1M" and row["n_updates"] == "300000"
    assert "| 300k/300k of 1M |" in to_markdown(
        leaderboard(episodes.assign(update=300_000), runs, [A, B])
    )


# --- renderings -----------------------------------------------------------------------------


def test_the_caption_says_what_every_number_is() -> None:
    board = leaderboard(*noisy(["a"], [A, B]), [A, B], level=0.9, reps=500)
    for words in (
        "5 seeds x 4 episodes",
        "last update only",
        "90 % Student-t interval",
        "interquartile mean",
        "90 % smoothed bootstrap",
        "500 resamples",
        "reference minimum",
        "Holm-corrected",
        "94 to 97 % of cells",
    ):
        assert words in board.caption


def test_the_csv_has_every_number_with_its_interval() -> None:
    board = leaderboard(*noisy(["a", "b"], [A, B]), [A, B])
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert len(lines) == 2 * 2 + 2 * 2
    for record in lines:
        assert float(record["low"]) < float(record["value"]) < float(record["high"])
        assert int(record["n_seeds"]) == 5
        assert int(record["n_episodes"]) > 0
    by_key = {(x["entry"], x["task"], x["statistic"]): x for x in lines}
    expected = cell(board, "a", A)["mean"]
    assert float(by_key["a", A, "mean"]["value"]) == pytest.approx(expected, rel=1e-5)
    assert by_key["b", "", "iqm"]["rank"] == "1"


def test_markdown_tables_have_one_width_and_escape_bars() -> None:
    board = leaderboard(*noisy(["a|b", "c"], [A, B]), [A, B], title="toy")
    text = to_markdown(board)
    assert text.startswith("# toy\n\n| #")
    first = text.split("\n\n")[1]
    table = [x.replace("\\|", "/") for x in first.splitlines()]
    assert len({x.count("|") for x in table}) == 1
    assert "| a-v0 | b-v0 |" in table[0]
    assert text.endswith(".\n")


def wide_board(n_tasks: int) -> Board:
    names = [
        "halfcheetah-medium-expert",
        "humanoidmaze-giant-stitch",
        "pen-cloned",
        "x-y",
        "hopper",
    ]
    tasks = [f"d4rl/{names[i % 5]}{i // 5 or ''}-v2" for i in range(n_tasks)]
    generator = np.random.default_rng(0)
    entries = ["iql", "rebrac+chunk(5)+obs_norm."]
    scores = {(e, t): generator.normal(95, 20, (3, 2)).tolist() for e in entries for t in tasks}
    assert len(entries[1]) == 25
    return leaderboard(*records(scores), tasks)


def test_five_tasks_and_long_names_fit_a_hundred_columns_uncut() -> None:
    board = wide_board(5)
    text = printed(board)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("rebrac+chunk(5)+obs_norm.") == 1  # one table
    row = next(x for x in text.splitlines() if "rebrac" in x)
    assert "…" not in row
    assert row.count("±") == 5
    # no room for the strip: the interval stands below the IQM
    iqm = board.aggregate.iloc[0]
    assert f"[{iqm['low']:.0f}, {iqm['high']:.0f}]" in text and "●" not in text
    assert "●" in printed(board, width=110)


def test_more_tasks_continue_in_further_tables() -> None:
    text = printed(wide_board(12))
    assert max(map(len, text.splitlines())) <= 100
    assert sum(x.count("±") for x in text.splitlines() if "rebrac" in x) == 12
    assert text.count("IQM ") == 1 + wide_board(12).caption.count("IQM ")
    narrow = printed(wide_board(3), width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert sum(x.count("±") for x in narrow.splitlines() if "rebrac" in x) == 3


def test_a_strip_draws_the_interval_to_scale() -> None:
    width = strip.WIDTH
    drawn = strip.draw(0.0, 50.0, 100.0, 0.0, 100.0)
    assert len(drawn) == width
    assert (drawn[0], drawn[-1]) == ("├", "┤")
    assert drawn.index("●") in (width // 2 - 1, width // 2)
    assert strip.draw(np.nan, 0.0, np.nan, 0.0, 100.0) == "●" + " " * (width - 1)
    assert strip.draw(50.0, 50.0, 50.0, 0.0, 100.0).strip() == "●"


def test_writing_twice_gives_the_same_bytes_and_no_debris(tmp_path: Path) -> None:
    frames = noisy(["a", "b"], [A, B])
    first = write(leaderboard(*frames, [A, B]), tmp_path / "board", "toy")
    before = [path.read_bytes() for path in first]
    again = write(leaderboard(*frames, [A, B]), tmp_path / "board", "toy")
    assert [path.read_bytes() for path in again] == before
    assert [path.name for path in again] == ["toy.md", "toy.csv", "toy.json", "toy.tex"]
    assert len(list((tmp_path / "board").iterdir())) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the board"):
        write(leaderboard(*frames, [A, B]), tmp_path / "file", "toy")


def test_a_write_that_fails_leaves_the_old_board(tmp_path: Path, monkeypatch) -> None:
    frames = noisy(["a"], [A])
    paths = write(leaderboard(*frames, [A]), tmp_path, "toy")
    before = paths[0].read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write(leaderboard(*frames, [A], title="new"), tmp_path, "toy")
    assert paths[0].read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_a_store_makes_a_board(tmp_path: Path) -> None:
    def run(method: str, seed: int) -> RunSpec:
        return RunSpec(
            suite="toy",
            suite_version=1,
            task=A,
            dataset="toy/a",
            dataset_sha256="0" * 64,
            env={"id": "A-v0"},
            method=method,
            hparams={"lr": 1e-3},
            pipeline={},
            n_updates=10,
            seed=seed,
            protocol={"episodes": 2},
        )

    def made(entry: str) -> Provenance:
        return Provenance(
            entry=entry,
            commit="0" * 40,
            dirty=False,
            versions={"mujoco": "3.11.0"},
            device="cpu",
            backend="eager",
            precision="float32",
            pack=1,
            wall_s=4.0,
            train_s=3.0,
            tuning={"how": "default", "tried": 1},
            created="2026-01-02T03:04:05+00:00",
        )

    store = Store(tmp_path)
    for seed in range(3):
        for number, method in enumerate(["iql", "bc"]):
            columns = {"update": 10, "stream": "test", "episode": [0, 1], "env_seed": [5, 6]}
            columns |= {"return": 1.0, "score": 10.0 * number + seed, "length": 3}
            columns |= {"success": True, "terminated": True, "truncated": False}
            store.append(run(method, seed), pd.DataFrame(columns), made(method))
    store.fail(run("iql", 3), "stopped", made("iql"))
    board = leaderboard(store.episodes(), store.runs(), [A])
    assert line(board, "bc")["iqm"] == 11
    assert line(board, "bc")["wall_s"] == 4
    assert cell(board, "iql", A)["n_failed"] == 1
    assert board.notes == (f"{A}: iql has 1 failed beside 3 finished runs, so it has no aggregate",)


# --- what a suite asks for ------------------------------------------------------------------


def test_an_entry_that_the_suite_asks_for_some_tasks_alone_is_not_incomplete() -> None:
    frames = records(
        {
            ("iql", A): [[1], [2]],
            ("iql", B): [[1], [3]],
            ("qc", A): [[9], [8]],
            ("qc+aw", A): [[9], [8]],
        },
    )
    runs = frames[1].assign(method=frames[1]["entry"].str.split("+").str[0])
    board = leaderboard(
        frames[0], runs, [A, B], asked=Asked(only={"qc": ["*/a-*"], "other": ["*"]})
    )
    for entry in ("qc", "qc+aw"):
        assert cell(board, entry, B)["status"] == "left out"
        assert cell(board, entry, B)["missing"]
        assert (line(board, entry)["complete"], line(board, entry)["n_asked"]) == (1, 1)
        assert pd.isna(line(board, entry)["rank"]) and line(board, entry)["n_seeds"] == 2
    text = to_markdown(board)
    assert "| qc | **8.5 ± 7.1** | -- | suite's choice (1/2 tasks) |" in text
    assert "the suite asks the entry for some of the tasks alone" in board.caption
    assert "incomplete" not in text + to_csv(board) + printed(board)
    assert "suite's choice" in printed(board)


def test_what_the_suite_asks_for_and_is_not_there_is_incomplete() -> None:
    """A task of its own that failed, one that is missing, and one that was run without being asked for."""
    c = "toy/c-v0"
    frames = records(
        {
            ("x", A): [[1], [2]],
            ("x", B): [[1], "failed"],
            ("y", A): [[1]],
            ("z", A): [[1]],
            ("z", c): [[1]],
        }
    )
    runs = frames[1].assign(method=frames[1]["entry"])
    only = {"x": ["*/a-*", "*/b-*"], "y": ["*/a-*", "*/b-*"], "z": ["*/a-*"]}
    board = leaderboard(frames[0], runs, [A, B, c], asked=Asked(only=only))
    lines = to_markdown(board).splitlines()
    status = {
        e: next(x for x in lines if x.startswith(f"| -- | {e}")).split("|")[6].strip()
        for e in "xyz"
    }
    assert status == {
        "x": "incomplete (1/2 tasks)",
        "y": "incomplete (1/2 tasks)",
        "z": "suite's choice (2/3 tasks)",
    }
    assert (
        cell(board, "y", B)["status"] == "missing" and cell(board, "y", c)["status"] == "left out"
    )
    plain = leaderboard(frames[0], runs, [A, B, c])
    assert "left out" not in set(plain.cells["status"]) and "choice" not in plain.caption


# --- the mean of the last three evaluations -------------------------------------------------


def monitored(frames: Frames, scores: dict[str, dict[int, list[float]]]) -> Frames:
    """With monitor episodes: run_id -> update -> their scores."""
    extra = [
        {
            "run_id": run,
            "entry": run.split("-")[0],
            "task": A if run.split("-")[1] == "a" else B,
            "seed": int(run[-1]),
            "stream": "monitor",
            "update": update,
            "episode": i,
            "env_seed": i,
            "score": float(score),
        }
        for run, updates in scores.items()
        for update, values in updates.items()
        for i, score in enumerate(values)
    ]
    return pd.concat([frames[0], pd.DataFrame(extra)], ignore_index=True), frames[1]


def test_the_last_three_evaluations_are_averaged_beside_the_last_alone() -> None:
    generator = np.random.default_rng(0)
    test = {
        (e, t): generator.uniform(0, 100, (3, 4)).round(1) for e in ("iql", "bc") for t in (A, B)
    }
    frames = records({key: x.tolist() for key, x in test.items()})
    monitor = {
        f"{e}-{t[-4]}-{s}": {u: generator.uniform(0, 100, 2).tolist() for u in (10, 80, 90)}
        for e, t in test
        for s in range(3)
    }
    board = leaderboard(*monitored(frames, monitor), [A, B])
    pooled = np.mean([x.mean(1).var(ddof=1) for x in test.values()])
    means = {}
    for (entry, task), last in test.items():
        of_seed = [
            np.mean(
                [
                    *(np.mean(monitor[f"{entry}-{task[-4]}-{s}"][u]) for u in (80, 90)),
                    last[s].mean(),
                ]
            )
            for s in range(3)
        ]
        found = board.averaged.set_index(["entry", "task"]).loc[entry, task]
        # half the board's variance of seeds, and with fewer than six cells two degrees of freedom
        moderated = (pooled / 2 + 2 * np.var(of_seed, ddof=1)) / 2.5
        half = 4.302652729696142 * np.sqrt(moderated / 3)
        np.testing.assert_allclose(
            [found["mean"], found["low"], found["high"], found["last"]],
            [np.mean(of_seed), np.mean(of_seed) - half, np.mean(of_seed) + half, last.mean()],
        )
        assert (found["n_seeds"], found["n_episodes"]) == (3, 3 * (2 + 2 + 4))
        assert (found["at"], found["each"]) == ((0.8, 0.9, 1.0), (2, 2, 4))
        means.setdefault(entry, []).append([np.mean(of_seed), last.mean()])
    text = to_markdown(board)
    assert "after 80 %, 90 %, 100 % of the updates, on 2, 2, 4 episodes per seed" in text
    for pairs in means.values():
        three, last = np.mean(pairs, 0)
        assert f"| {three:.1f} | {last:.1f} |" in text and f"{three:.1f}" in printed(board)
    assert to_csv(board).count("mean of last 3 evaluations") == 4
    # plain returns have no mean over tasks here either
    returns = to_markdown(
        leaderboard(*monitored(frames, monitor), [A, B], asked=Asked(unscaled=[B]))
    )
    assert returns.split("| mean rank |")[0].count("| -- | -- |") == 2 and not any(
        f"| {three:.1f} | {last:.1f} |" in returns
        for three, last in (np.mean(x, 0) for x in means.values())
    )
    ranked = ["rank", "entry", "iqm", "low", "high", "mean"]  # by the last evaluation, as ever
    pd.testing.assert_frame_equal(
        board.aggregate[ranked], leaderboard(*frames, [A, B]).aggregate[ranked]
    )


def test_without_monitor_evaluations_nothing_is_said_of_three() -> None:
    frames = noisy(["iql"], [A])
    board = leaderboard(*frames, [A])
    one = monitored(frames, {f"iql-a-{s}": {90: [1.0]} for s in range(5)})
    assert board.averaged.empty and leaderboard(*one, [A]).averaged.empty
    # nor of the few episodes of a learning curve
    few = monitored(frames, {f"iql-a-{s}": {80: [1.0], 90: [1.0]} for s in range(5)})
    assert len(few[0]) > len(frames[0]) and leaderboard(*few, [A]).averaged.empty
    for text in (to_markdown(board), to_csv(board), printed(board)):
        assert "last three" not in text and "last 3" not in text


def test_a_cell_with_an_incomplete_run_is_not_averaged_and_its_entry_has_no_mean() -> None:
    frames = records(
        {
            ("iql", A): [[1], [2]],
            ("iql", B): [[3], [4]],
            ("bc", A): [[5], [6]],
            ("bc", B): [[7], "failed"],
        }
    )
    whole = {80: [1.0], 90: [2.0]}
    have = {run: whole for run in frames[0]["run_id"]}
    board = leaderboard(*monitored(frames, have | {"iql-b-1": {90: [2.0]}}), [A, B])
    assert set(zip(board.averaged["entry"], board.averaged["task"])) == {
        ("iql", A),
        ("bc", A),
        ("bc", B),
    }
    rows = [x for x in to_markdown(board).splitlines() if x.startswith(("| iql", "| bc"))]
    assert sorted(rows) == [
        "| bc | 2.8 ± 4.1 (5.5) | 3.3 (7.0) (1 failed) | -- | -- |",
        "| iql | 1.5 ± 4.1 (1.5) | -- | -- | -- |",
    ]


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (5012.2, 8.6, "5012±9"),
        (4999.1, 11, "4999.1±11"),
        (60.5, 3.1, "60.5±3.1"),
        (-1234.6, 22, "-1235±22"),
        (-12345678.9, np.nan, "-12345679"),
    ],
)
def test_a_number_that_does_not_fit_loses_its_decimals_and_is_not_cut(mean, half, words) -> None:
    counts = {"n_failed": 0, "n_diverged": 0, "n_seeds": 3, "n_asked": 3}
    bounds = {"mean": mean, "low": mean - half, "high": mean + half}
    cell = SimpleNamespace(**bounds, **counts, missing=False, success=False)
    assert cell_text(cell, short=True) == words


def test_another_seed_does_not_stand_for_one_that_was_asked_for() -> None:
    episodes, runs = boards.frames(
        {(e, boards.TASKS[0]): [[1.0, 2.0], [3.0, 4.0], [2.0, 5.0]] for e in "ab"}
    )
    for table in (episodes, runs):
        table.loc[(table["entry"] == "a") & (table["seed"] == 2), "seed"] = 7
    asked = Asked(seeds={boards.TASKS[0]: range(3)})
    board = leaderboard(episodes, runs, boards.TASKS[:1], asked=asked, reps=50)
    cells = board.cells.set_index("entry")
    assert cells["status"].to_dict() == {"a": "partial", "b": "ok"}
    assert cells["n_asked"].to_dict() == {"a": 4, "b": 3}
    assert board.aggregate.set_index("entry")["rank"].isna().to_dict() == {"a": True, "b": False}
