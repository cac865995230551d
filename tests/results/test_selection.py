"""Which recorded runs count on a board: one rule a test, on plain frames."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from offbench.results.selection import Budget, Protocol, Wanted, select
from offbench.results.spec import OUTSIDE

A, B = "toy/a-v0", "toy/b-v0"
PROTOCOL = Protocol(
    dataset_sha256="aa",
    environment={"env.id": "Point-v0", "env.kwargs.size": 3},
    updates=Budget(1000),
    episodes=Budget(20),
    seeds=(0, 1),
)
WANTED = Wanted(tasks={A: PROTOCOL}, run_ids={"planned"}, entries={"iql"})


def run(**changes: Any) -> dict[str, Any]:
    """A run of another entry that is comparable with the planned ones."""
    line = {
        "run_id": "other",
        "entry": "bc",
        "task": A,
        "method": "bc",
        "seed": 1,
        "dataset_sha256": "aa",
        "n_updates": 1000,
        "protocol.episodes": 20,
        "env.id": "Point-v0",
        "env.kwargs.size": 3,
    }
    return line | changes


PLANNED = run(run_id="planned", entry="iql", method="iql")


def chosen(*lines: dict[str, Any], wanted: Wanted = WANTED) -> list[str]:
    return select(pd.DataFrame(lines), wanted).runs["run_id"].tolist()


def with_protocol(**changes: Any) -> Wanted:
    return replace(WANTED, tasks={A: replace(PROTOCOL, **changes)})


def test_planned_runs_count_in_the_order_of_the_records() -> None:
    lines = [run(run_id="b"), PLANNED, run(run_id="a", task=B), run(run_id="c")]
    frame = pd.DataFrame(lines, index=[7, 7, 7, 7])  # labels are of no account
    assert select(frame, WANTED).runs["run_id"].tolist() == ["b", "planned", "c"]


def test_a_planned_run_counts_whatever_the_other_rules_say() -> None:
    assert chosen(PLANNED | {"task": B, "seed": 9, "n_updates": 5, "env.id": "Other-v0"}) == [
        "planned"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"task": B},
        {"entry": "iql"},  # the planned entry with other settings
        {"seed": 2},
        {"dataset_sha256": "bb"},
        {"n_updates": 999},
        {"protocol.episodes": 19},
        {"protocol.validation": 0.1},
        {"env.id": "Point-v1"},
        {"env.kwargs.size": 4},
        {"env.kwargs.size": None},
        {"env.rules": "strict"},
    ],
)
def test_a_run_of_another_entry_counts_if_nothing_differs(change: dict[str, Any]) -> None:
    assert chosen(PLANNED, run()) == ["planned", "other"]
    assert chosen(PLANNED, run(**change)) == ["planned"]


def test_runs_in_another_environment_are_counted_and_no_others() -> None:
    elsewhere = {"env.rules": "strict"}
    lines = [
        run(),
        run(run_id="x", **elsewhere),
        run(run_id="y", seed=9, **elsewhere),
        run(run_id="w", **elsewhere),
        run(run_id="z", task=B, **elsewhere),  # of no wanted task
        run(run_id="u", n_updates=5),  # in the same environment
        PLANNED | elsewhere,  # which is not left out
    ]
    found = select(pd.DataFrame(lines), WANTED)
    assert found.runs["run_id"].tolist() == ["other", "planned"]
    assert found.left_out == 3


def test_what_no_record_says_is_the_same_as_nothing() -> None:
    """Columns that other records alone have are empty in this one: None, or NaN."""
    empty = {"env.rules": None, "env.seed": np.nan, "protocol.validation": np.nan}
    assert chosen(run(**empty), run(run_id="x", **{"env.rules": "strict"})) == ["other"]


def test_environments_are_compared_by_value() -> None:
    wanted = with_protocol(environment={"env.id": "Point-v0", "env.kwargs.goal": (1, 2)})
    line = run(**{"env.kwargs.goal": (1.0, 2)})
    line.pop("env.kwargs.size")
    assert chosen(line, line | {"run_id": "x", "env.kwargs.goal": (1, 3)}, wanted=wanted) == [
        "other"
    ]


def test_a_rule_that_no_record_has_is_another_environment() -> None:
    wanted = with_protocol(environment={**PROTOCOL.environment, "env.rules": "strict"})
    assert select(pd.DataFrame([run()]), wanted)[1] == 1 and chosen(run(), wanted=wanted) == []


def test_validation_shares_are_compared() -> None:
    lines = [run(**{"protocol.validation": x}) for x in (0.1, 0.2, np.nan)]
    assert len(chosen(*lines)) == 1
    assert len(chosen(lines[0], wanted=with_protocol(validation=0.1))) == 1
    assert chosen(*lines[1:], wanted=with_protocol(validation=0.1)) == []


@pytest.mark.parametrize(
    ("field", "column", "published"),
    [
        ("updates", "n_updates", "tuning.published_updates"),
        ("episodes", "protocol.episodes", "tuning.published_episodes"),
    ],
)
def test_published_budgets_are_comparable_with_each_other_alone(
    field: str, column: str, published: str
) -> None:
    n = getattr(PROTOCOL, field).planned
    own = run(**{column: 7, published: 7})
    at_published = with_protocol(**{field: Budget(n, published=n)})
    assert chosen(own, wanted=at_published) == ["other"]
    assert chosen(own, wanted=with_protocol(**{field: Budget(n, published=n + 1)})) == []
    assert chosen(own) == []  # nothing is published for the planned method
    assert chosen(own | {published: 8}, wanted=at_published) == []
    assert chosen(own | {published: None}, run(**{published: 8}), wanted=at_published) == ["other"]


def test_of_a_policy_trained_outside_seed_episodes_and_environment_are_compared() -> None:
    outside = run(method=OUTSIDE, n_updates=0, dataset_sha256="unknown")
    assert chosen(outside) == ["other"]
    for change in (
        {"protocol.episodes": 19},
        {"seed": 2},
        {"entry": "iql"},
        {"env.id": "Point-v1"},
    ):
        assert chosen(outside | change) == []
    own = outside | {"protocol.episodes": 7, "tuning.published_episodes": 7}
    assert chosen(own, wanted=with_protocol(episodes=Budget(20, published=20))) == []


def test_an_empty_store_has_no_runs() -> None:
    empty = pd.DataFrame(columns=["run_id", "entry", "task", "method", "seed"])
    found = select(empty, WANTED)
    assert found.runs.empty and found.left_out == 0


def test_five_thousand_records_are_selected_at_once() -> None:
    """Columns no rule reads cost nothing: a frame of a store has about 80."""
    n, tasks = 5000, [f"toy/{i}" for i in range(25)]
    lines = [run(run_id=str(i), task=tasks[i % 25], seed=i % 4) for i in range(n)]
    frame = pd.DataFrame(lines).assign(**{f"hparams.{i}": 0.1 for i in range(60)})
    wanted = replace(WANTED, tasks=dict.fromkeys(tasks, PROTOCOL))
    start = time.process_time()
    found = select(frame, wanted)
    assert time.process_time() - start < 0.5
    assert len(found.runs) == n // 2
