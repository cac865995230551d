"""Where a run's settings come from: the protocol of its task, the budget of its method, and what overrides them."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from offbench.bench.hydra import options, read_option
from offbench.bench.plan import plan
from offbench.bench.suites import home_of, tasks_of
from offbench.cli.recorded import wanted_of
from offbench.data.composition import MIXED
from offbench.errors import UserError
from offbench.results.selection import select
from offbench.results.spec import TUNINGS, Provenance
from offbench.results.store import Store
from offbench.tasks import registry

CUBE = "ogbench/cube-double-play-singletask-task1-v0"
PUBLISHED = [name for name in options("suite") if read_option("suite", name).get("protocol")]


def cells(*overrides: str):
    named = any(o.startswith(("method=", "method._target_=")) for o in overrides)
    return plan(list(overrides), bench=not named).cells


def cell(*overrides: str):
    (one,) = cells(*overrides)
    return one


# --- the embedded suite


def test_the_runs_of_the_embedded_suite_are_what_they_were():
    """Their records are published: an id that changes would orphan them."""
    known = json.loads((Path(__file__).parent / "known_run_ids.json").read_text())
    made = {f"{c.entry} {c.task.id}": [r.run_id for r in c.runs()] for c in cells()}
    assert made == known and len(made) == 28


def test_a_task_of_the_embedded_family_stays_with_the_embedded_suite():
    for task in ("offbench/hopper/medium-expert-v0", "offbench/hopper/medium-replay-v0"):
        made = cell("method=fql", f"task={task}")
        assert (made.suite, made.n_updates, made.hparams["hidden"]) == ("quick", 4000, (64, 64))
        assert made.tuning["published_updates"] is None
    mixed = "mix@0.05@0:offbench/hopper/medium-v0:offbench/hopper/medium-replay-v0"
    assert cell("method=bc", f"task={mixed}").suite == "quick"


def test_the_settings_that_quick_takes_for_its_maze_are_said_to_be_its_own():
    made = cell("method=iql", "task=offbench/pointmaze-medium-navigate-v0")
    assert (
        made.hparams["expectile"] == 0.9
        and made.recorded_sources["method.expectile"] == "suite quick"
    )
    assert made.tuning["how"] == "suite"
    assert cell("method=iql", "task=offbench/hopper/medium-v0").hparams["expectile"] == 0.7


# --- no published task is trained under toy settings


@pytest.mark.parametrize(
    ("task", "suite", "episodes"),
    [
        (CUBE, "ogbench-singletask", 50),
        ("ogbench/cube-triple-play-singletask-task1-v0", "ogbench-chunking", 50),
        ("ogbench/scene-play-sparse-singletask-task1-v0", "ogbench-chunking", 50),
        ("ogbench/antmaze-medium-stitch-singletask-task2-v0", "ogbench-singletask", 50),
        ("d4rl/hopper-medium-v2", "d4rl-gym-9", 10),
        ("hopper-medium-v2", "d4rl-gym-9", 10),
        ("d4rl/hopper-random-v2", "d4rl-gym-18", 10),
        ("d4rl/hopper-medium-v0", "d4rl-gym-18", 10),
        ("d4rl/antmaze-umaze-v0", "d4rl-antmaze", 100),
        ("d4rl/maze2d-umaze-dense-v1", "d4rl-maze2d", 100),
        ("d4rl/pen-human-v0", "d4rl-adroit", 10),
        ("d4rl/kitchen-mixed-v0", "d4rl-kitchen", 10),
        ("minari/D4RL/pen/human-v2", "minari-d4rl", 50),
        ("minari/mujoco/ant/expert-v0", "minari-mujoco", 10),
        ("mixed/hopper-random-expert-5-v2", "mixed", 20),
        ("mix@0.3@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2", "d4rl-gym-18", 10),
    ],
)
def test_a_task_has_the_protocol_of_its_family_where_no_suite_is_named(task, suite, episodes):
    made = cell("method=bc", f"task={task}")
    assert (made.suite, made.n_updates) == (suite, 1_000_000)
    assert made.protocol["episodes"] == episodes
    assert made.hparams["hidden"] == (256, 256) and made.hparams["lr"] == 3e-4
    assert (
        made.recorded_sources["n_updates"]
        == made.recorded_sources["eval.episodes"]
        == f"suite {suite}"
    )
    assert made.tuning["how"] == "default" and made.tuning["overridden"] == []
    published = 1_000_000 if suite in PUBLISHED else None
    assert made.tuning["published_updates"] == published


def test_no_listed_task_but_the_embedded_falls_to_the_toy_suite():
    small = tasks_of("chunking-small")
    for task in (*registry.ids(), *MIXED):
        goals = task.endswith("-goal-v0")
        toy = task.startswith("offbench/") and task not in small and not goals
        assert (home_of(task) == "quick") == toy, task
        assert (home_of(task) == "quick-goal") == goals, task
    assert {home_of(task) for task in small} == {"chunking-small"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_of_one_task_is_the_run_that_its_suite_looks_for(name):
    """`offbench run task=X` and then `offbench bench suite=S` train it once."""
    whole = read_option("suite", name)
    entry, task = whole["methods"][-1], whole["tasks"][-1]
    alone = cell(f"methods=[{entry}]", f"task={task}")
    suite = read_option("suite", alone.suite)
    assert task in suite["tasks"]
    (same,) = (
        c for c in cells(f"suite={alone.suite}", f"methods=[{entry}]") if c.task.id == alone.task.id
    )
    assert [r.run_id for r in same.runs()] == [r.run_id for r in alone.runs()]
    if alone.suite != name:  # a larger suite of the same protocol
        assert tasks_of(alone.suite) & tasks_of(name)


def test_the_toy_suite_for_another_task_is_used_where_it_is_named_and_is_said():
    made = cell("suite=quick", "method=fql", f"task={CUBE}")
    assert (made.suite, made.n_updates, made.hparams["hidden"]) == ("quick", 4000, (64, 64))
    how = "task preset, 5 settings overridden (batch_size, flow_steps, lr, hidden, n_updates)"
    assert made.tuning["how"] == how
    assert made.tuning["published_updates"] == 1_000_000
    assert made.hparams["distill_weight"] == 300  # the preset's, which stands
    assert (
        made.recorded_sources["method.hidden"]
        == made.recorded_sources["n_updates"]
        == "suite quick"
    )
    assert made.recorded_sources["method.distill_weight"].startswith("preset (seohongpark/fql")
    assert made.tuning["source"].endswith("; suite quick")
    paper = cell("suite=quick", "method=rebrac", "task=d4rl/hopper-medium-v2")
    assert paper.pipeline["batch_size"] == 64 and "batch_size" in paper.tuning["overridden"]


def test_own_data_have_a_stated_budget_and_the_methods_own_settings(tmp_path):
    from offbench.tasks.locate import load_task

    path = load_task("offbench/hopper/medium-replay-v0").path
    made = cell("method=rebrac", f"task.data={path}")
    assert (made.suite, made.n_updates, made.protocol["episodes"]) == ("other", 1_000_000, 10)
    assert made.pipeline["batch_size"] == 1024 and made.hparams["hidden"] == (256, 256, 256)
    assert made.recorded_sources["n_updates"] == "suite other" and made.tuning["how"] == "default"
    assert made.tuning["published_updates"] is None
    with pytest.raises(UserError, match=r"^suite=other has no tasks of its own"):
        cells("suite=other")


def test_tasks_of_two_suites_are_not_one_board():
    with pytest.raises(UserError, match="these are of d4rl-antmaze, d4rl-gym-9: name one"):
        cells("method=bc", "task=d4rl/hopper-medium-v2,d4rl/antmaze-umaze-v2")
    made = cells(
        "suite=d4rl-gym-9", "method=bc", "task=d4rl/hopper-medium-v2,d4rl/antmaze-umaze-v2"
    )
    assert [c.suite for c in made] == ["d4rl-gym-9"] * 2


# --- a method's published budget wins over a suite's generic one


@pytest.mark.parametrize(
    ("overrides", "updates", "episodes", "published"),
    [
        (
            ("suite=d4rl-gym-9", "method=sac_n", "task=d4rl/hopper-medium-v2"),
            3_000_000,
            10,
            3_000_000,
        ),
        (
            ("suite=d4rl-gym-18", "method=edac", "task=d4rl/hopper-random-v2"),
            3_000_000,
            10,
            3_000_000,
        ),
        (("method=edac", "task=d4rl/antmaze-umaze-v2"), 3_000_000, 10, 3_000_000),
        (("method=edac", "task=d4rl/pen-human-v1", "preset=paper"), 200_000, 10, 200_000),
        (("method=dt", "task=d4rl/hopper-medium-v2"), 100_000, 100, 100_000),
        (("method=fql", "task=d4rl/pen-human-v1"), 500_000, 50, 500_000),
        (("method=ifql", "task=d4rl/antmaze-umaze-v2"), 500_000, 50, 500_000),
        (("method=fql", "task=d4rl/hopper-medium-v2"), 1_000_000, 10, 1_000_000),
        (
            ("method=sac_n", "task=mix@0.3@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2"),
            3_000_000,
            10,
            None,
        ),
        (("method=sac_n", "task=mixed/hopper-random-expert-5-v2"), 1_000_000, 20, 1_000_000),
        (("method=fql", f"task={CUBE}"), 1_000_000, 50, 1_000_000),
        (
            ("method=sac_n", "task=d4rl/hopper-medium-v2", "n_updates=300000"),
            300_000,
            10,
            3_000_000,
        ),
        (("suite=quick", "method=sac_n", "task=d4rl/hopper-medium-v2"), 4000, 5, 3_000_000),
        (("method=sac_n", "task=minari/mujoco/hopper/expert-v0"), 1_000_000, 10, None),
        (
            ("method=qgf", "task=ogbench/cube-quadruple-play-100m-singletask-task1-v0"),
            500_000,
            30,
            500_000,
        ),
    ],
)
def test_the_budget_is_the_methods_then_the_suites(overrides, updates, episodes, published):
    made = cell(*overrides)
    assert (made.n_updates, made.protocol["episodes"]) == (updates, episodes)
    assert made.tuning["published_updates"] == published
    assert ("n_updates" in made.tuning["overridden"]) == (published not in (updates, None))


def test_the_budget_of_a_method_says_whose_it_is():
    made = cell("method=sac_n", "task=d4rl/hopper-medium-v2")
    want = "budget (CORL's configs/offline/sac_n at corl-team eeeeef2, 30 of 30)"
    assert made.recorded_sources["n_updates"] == want


def test_nothing_is_published_for_a_task_by_a_suite_of_others_or_by_a_budget_of_others():
    foreign = cell("suite=d4rl-gym-9", "method=iql", f"task={CUBE}")
    assert foreign.protocol["episodes"] == 10 and foreign.tuning["published_episodes"] == 50
    # CORL has no kitchen configuration of DT
    kitchen = cell("method=dt", "task=d4rl/kitchen-mixed-v0")
    assert kitchen.recorded_sources["n_updates"] == "suite d4rl-kitchen"
    mixed = cell("method=fql", "task=mix@0.5@0:d4rl/pen-human-v1:d4rl/pen-cloned-v1")
    assert mixed.recorded_sources["n_updates"].startswith(
        "carried over from its first part: budget"
    )


def test_null_leaves_a_budget_to_the_suite():
    made = cell("method=bc", f"task={CUBE}", "n_updates=null", "seeds=null", "eval.episodes=null")
    assert (made.n_updates, made.protocol["episodes"], len(made.seeds)) == (1_000_000, 50, 8)
    with pytest.raises(UserError, match=r"tuning=20 must be settings, as in"):
        cell("method=bc", f"task={CUBE}", "tuning=20")


def test_a_preset_that_has_no_row_says_so():
    made = cells("methods=[iql,td3_bc]", "preset=paper", "task=d4rl/hopper-medium-v2")
    assert "implicit_q_learning" in made[0].tuning["source"]
    assert made[1].tuning["source"] == "no row for preset=paper; default"


# --- settings are published for a composition, not for a method


ALIASES = [
    ("fql+chunk5", "qc_fql"),
    ("fql+nstep5", "fql_n"),
    ("qc_fql+nstep5", "fql_n"),
    ("qc_fql+nstep1", "fql"),
    ("fql_n+chunk5", "qc_fql"),
    ("fql_n+nstep1", "fql"),
    ("qc+nstep5", "bfn+nstep5"),
    ("qc+nstep1", "bfn"),
    ("bfn+chunk5", "qc"),
]


@pytest.mark.parametrize(("entry", "name"), ALIASES)
@pytest.mark.parametrize(
    "task",
    [
        CUBE,
        "ogbench/puzzle-4x4-play-singletask-task1-v0",
        "ogbench/puzzle-3x3-play-sparse-singletask-task1-v0",
        "d4rl/pen-human-v1",
    ],
)
def test_a_composition_that_is_another_published_method_has_its_settings(entry, name, task):
    made, same = cells(f"methods=[{entry},{name}]", f"task={task}")
    assert (made.entry, same.entry) == (entry, name)
    assert made.hparams == same.hparams and made.pipeline == same.pipeline
    assert made.tuning == same.tuning and made.n_updates == same.n_updates


def test_however_the_composition_is_said():
    word = cell("methods=[fql+chunk5]", f"task={CUBE}")
    for spelt in (["view=chunk"], ["view=chunk", "view.h=5"]):
        made = cell("method=fql", *spelt, f"task={CUBE}")
        assert (made.hparams, made.pipeline) == (word.hparams, word.pipeline)
    assert cell("method=fql", "view.n=5", f"task={CUBE}").hparams["distill_weight"] == 100


@pytest.mark.parametrize(
    ("entry", "task", "key", "default"),
    [
        ("fql+chunk3", CUBE, "distill_weight", 10),
        ("fql+nstep3", CUBE, "distill_weight", 10),
        ("ifql+chunk5", "ogbench/antsoccer-arena-navigate-singletask-task1-v0", "n_proposals", 32),
        ("qc+chunk3", "ogbench/puzzle-3x3-play-sparse-singletask-task1-v0", "n_proposals", 32),
        ("cgq+chunk3", "ogbench/puzzle-4x4-play-singletask-task1-v0", "anchor_expectile", 0.95),
        ("rebrac+chunk3", "d4rl/hopper-medium-replay-v2", "critic_bc_weight", 0.01),
    ],
)
def test_a_composition_without_a_row_has_the_methods_defaults_and_says_so(
    entry, task, key, default
):
    made = cell(f"methods=[{entry}]", f"task={task}")
    assert made.hparams[key] == default
    assert made.tuning["how"] == "default" and made.tuning["preset"] is None
    assert not any(s.startswith("preset") for s in made.recorded_sources.values())
    assert "reward_affine" not in made.pipeline["transforms"]


@pytest.mark.parametrize(
    ("entry", "task"),
    [
        ("fql+aw", CUBE),
        ("iql+aw", "d4rl/hopper-medium-v2"),
        ("iql+half", "d4rl/antmaze-umaze-v2"),
        ("rebrac+dw", "d4rl/hopper-medium-replay-v2"),
        ("td3_bc+top10", "d4rl/antmaze-umaze-v2"),
    ],
)
def test_another_sampler_or_weight_changes_nothing_else_and_the_source_says_so(entry, task):
    alone, other = cells(f"methods=[{entry.split('+')[0]},{entry}]", f"task={task}")
    assert other.hparams == alone.hparams
    assert other.pipeline["transforms"] == alone.pipeline["transforms"]
    assert other.tuning["how"] == alone.tuning["how"] == "task preset"
    assert other.tuning["preset"] == f"carried over from the method alone: {alone.tuning['preset']}"


def test_a_row_that_was_published_with_a_sampler_is_not_carried_over():
    task = "task=mix@0.05@0:d4rl/hopper-expert-v2:d4rl/hopper-random-v2"
    weighted, half = cells("methods=[iql+aw,iql+half]", task)
    assert weighted.tuning["preset"].startswith("Improbable-AI/harness-offline-rl")
    assert half.tuning["preset"].startswith("carried over from the method alone: Improbable-AI")


def test_the_row_of_the_method_alone_can_be_asked_for():
    made = cell("methods=[rebrac+chunk5]", "task=d4rl/hopper-medium-replay-v2", "preset=alone")
    assert made.hparams["critic_bc_weight"] == 0.5 and made.tuning["how"] == "task preset"
    assert made.entry == "rebrac+chunk5(preset=alone)"


@pytest.mark.parametrize(
    "name", [s for s in PUBLISHED if "eeeeef2" in read_option("suite", s)["protocol"]]
)
def test_iqls_actor_decays_over_the_run_wherever_corls_protocol_is_claimed(name):
    for made in cells(f"suite={name}", "method=iql", "n_updates=500000"):
        assert made.hparams["actor_decay_steps"] == 500_000, made.task.id
        how = "task preset, 1 setting overridden (n_updates)"  # not the decay, which follows
        assert made.tuning["how"] == how


@pytest.mark.parametrize(
    ("task", "scaled"),
    [
        ("d4rl/hopper-medium-v2", True),
        ("d4rl/pen-human-v1", False),
        ("d4rl/kitchen-mixed-v0", False),
        (CUBE, False),
        ("d4rl/antmaze-umaze-v2", False),
    ],
)
def test_xql_and_odice_scale_rewards_on_locomotion_alone(task, scaled):
    for name in ("xql", "odice"):
        made = cell(f"method={name}", f"task={task}")
        assert ("reward_range" in made.pipeline["transforms"]) == scaled


def test_a_choice_that_is_called_true_needs_no_quotes():
    task = "task=offbench/hopper/medium-replay-v0"
    for word in ("true", '"true"'):
        assert cell("method=odice", task, f"method.gradient={word}").hparams["gradient"] == "true"
    with pytest.raises(UserError, match="gradient: unknown value 'false'"):
        cell("method=odice", task, "method.gradient=false")


@pytest.mark.parametrize(
    ("method", "task", "key", "value", "source"),
    [
        (
            "ifql",
            "ogbench/antsoccer-arena-navigate-singletask-task1-v0",
            "n_proposals",
            64,
            "second-hand",
        ),
        ("ifql", "d4rl/door-cloned-v1", "n_proposals", 128, "second-hand"),
        ("ifql", "d4rl/relocate-human-v1", "n_proposals", 128, "second-hand"),
        ("iql", CUBE, "inverse_temperature", 0.3, "Li, Zhou and Levine (2025)"),
        (
            "iql",
            "ogbench/scene-play-sparse-singletask-task2-v0",
            "inverse_temperature",
            10,
            "Li, Zhou",
        ),
        (
            "qc_fql",
            "ogbench/puzzle-4x4-play-singletask-task1-v0",
            "distill_weight",
            3000,
            "HubertC1/cgq",
        ),
        (
            "fql_n",
            "ogbench/puzzle-4x4-play-singletask-task1-v0",
            "distill_weight",
            1000,
            "HubertC1/cgq",
        ),
        (
            "rebrac",
            "ogbench/humanoidmaze-medium-navigate-singletask-task1-v0",
            "critic_bc_weight",
            0.01,
            "fql 719d0441",
        ),
    ],
)
def test_a_value_and_whose_it_is(method, task, key, value, source):
    made = cell(f"method={method}", f"task={task}")
    assert made.hparams[key] == value and source in made.tuning["preset"]


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("fql", "ogbench/cube-double-noisy-singletask-task1-v0"),
        ("fql", "ogbench/humanoidmaze-giant-navigate-singletask-task1-v0"),
        ("qc_fql", "ogbench/scene-play-singletask-task1-v0"),
        ("iql", "ogbench/antmaze-teleport-navigate-singletask-task1-v0"),
        ("iql", "d4rl/pen-human-longhorizon-v1"),
        ("dt", "d4rl/hopper-random-v2"),
        ("edac", "d4rl/pen-human-v0"),
        ("sac_n", "d4rl/maze2d-umaze-dense-v1"),
    ],
)
def test_a_row_is_not_used_outside_the_tasks_of_its_source(method, task):
    assert cell(f"method={method}", f"task={task}").tuning["preset"] is None


# --- how it was tuned


@pytest.mark.parametrize(
    ("overrides", "how"),
    [
        (("method=iql", "task=d4rl/hopper-medium-v2"), "task preset"),
        (
            ("method=iql", "task=d4rl/hopper-medium-v2", "method.lr=0.1"),
            "task preset, 1 setting overridden (lr)",
        ),
        (
            ("method=iql", "task=d4rl/hopper-medium-v2", "transforms={}"),
            "task preset, 1 setting overridden (transforms)",
        ),
        (("method=iql", "task=d4rl/hopper-medium-v2", "preset=none"), "default"),
        (("method=bc", "task=d4rl/hopper-medium-v2", "n_updates=10"), "default"),
        (("method=bc", "task=d4rl/hopper-medium-v2", "batch_size=10"), "user"),
        (("method=bc", "task=d4rl/hopper-medium-v2", "seeds=[7]", "eval.envs=2"), "default"),
        (("method=bc", "task=offbench/hopper/medium-v0"), "suite"),
        (("method=bc", "task=offbench/hopper/medium-v0", "tuning={configurations: 9}"), "user"),
        (("method._target_=offbench.methods.bc.BC", "task=d4rl/hopper-medium-v2"), "user"),
    ],
)
def test_one_word_hides_no_override(overrides, how):
    made = cell(*overrides)
    assert made.tuning["how"] == how and how.split(",")[0] in TUNINGS


def test_the_source_of_every_setting_of_a_run_is_kept():
    made = cell("method=sac_n", "task=d4rl/hopper-medium-v2", "method.actor_lr=0.1")
    kept = made.recorded_sources
    settings = {f"method.{k}" for k in made.hparams} | {
        "view.n",
        "batch_size",
        "gamma",
        "n_updates",
    }
    assert settings | {"eval.episodes", "seeds"} <= kept.keys() and "device" not in kept
    assert kept["method.actor_lr"] == "command line" and kept["batch_size"] == "conf/run.yaml"
    assert kept["method.n_critics"].startswith("preset (CORL")


# --- one board of methods with budgets of their own


def record(store: Store, made) -> None:
    """A finished run of every seed of a cell, with test episodes that are all alike."""
    for run in made.runs():
        row = {
            "update": run.n_updates,
            "stream": "test",
            "env_seed": 0,
            "return": 1.0,
            "score": 1.0,
            "length": 5,
            "success": False,
            "terminated": False,
            "truncated": True,
        }
        about = Provenance(
            entry=made.entry,
            commit="0" * 40,
            dirty=False,
            versions={},
            device="cpu",
            backend="eager",
            precision="float32",
            pack=1,
            wall_s=1.0,
            train_s=1.0,
            tuning=made.tuning,
            created="2026-01-01T00:00:00+00:00",
            sources=made.recorded_sources,
        )
        rows = [row | {"episode": i} for i in range(made.protocol["episodes"])]
        # the data are not here, as on the machine that shows the board of others
    run = replace(run, dataset_sha256="0" * 64)
    store.append(run, pd.DataFrame(rows), about)


def test_a_board_has_other_entries_at_the_published_budget_of_their_methods(tmp_path):
    task, store = "task=d4rl/hopper-medium-v2", Store(tmp_path)
    sac, dt = cells(task, "methods=[sac_n,dt]")
    short = cell(task, "methods=[edac]", "n_updates=1000")
    for made in (sac, dt, short):
        record(store, made)
    runs = store.runs()
    wanted = lambda *more: wanted_of(plan([task, *more], bench=True), runs)
    shown = lambda *more: set(select(runs, wanted("methods=[iql]", *more)).runs["entry"])
    assert shown() == {"sac_n", "dt"}  # 3M and 100k updates beside IQL's 1M, and not 1,000 of 3M
    assert shown("n_updates=1000") == {"edac"}
    assert shown("eval.episodes=3") == set()
    # planned runs are found by the data they were trained on, which are not here
    assert set(select(runs, wanted("methods=[dt]")).runs["entry"]) == {"sac_n", "dt"}
    both = pd.concat([runs, runs.assign(dataset_sha256="1" * 64)])
    assert select(both, wanted_of(plan([task, "methods=[dt]"], bench=True), both)).runs.empty
