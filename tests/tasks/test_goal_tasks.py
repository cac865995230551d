"""Goal-conditioned tasks: their data, what plays which goal, and what is refused before training."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml

from offbench import load_data, load_task, own_task, recipes
from offbench.bench.plan import plan
from offbench.cli.app import main
from offbench.errors import UserError
from offbench.recipes import RECIPES, collect, find, make
from offbench.rollout import EnvPool, evaluate
from offbench.tasks import embedded, registry
from offbench.types import Policy

SHARED = {
    "offbench/pointmaze-medium-navigate-goal-v0": "offbench/pointmaze-medium-navigate-v0",
    "offbench/cube-single-play-goal-v0": "offbench/cube-single-play-v0",
}
STITCH = "offbench/pointmaze-medium-stitch-goal-v0"
ogbench = pytest.mark.env

# stands still: no goal of the maze is reached
still = Policy(lambda n, e: (), lambda state, step, carry, key: (step.obs[..., :2] * 0, carry))


@pytest.mark.parametrize("name", SHARED)
def test_a_goal_task_has_the_data_of_the_single_task(name):
    task, single = load_task(name), load_task(SHARED[name])
    assert task.goals and task.score == "success" and not single.goals
    assert (task.path, task.sha256) == (single.path, single.sha256)
    ours, theirs = (embedded.manifests()[n][1] for n in (name, SHARED[name]))
    for key in ("rows", "episodes", "sha256", "data_sha256", "bytes", "recipe"):
        assert ours[key] == theirs[key]
    # what is said of the single task's rewards is not said of this one
    assert "returns" not in ours and ours["env"] != theirs["env"]


def test_a_goal_task_without_the_set_it_shares_is_said(tmp_path, monkeypatch):
    text = "id: offbench/mine-goal-v0\ndata: offbench/mine-v0\nsummary: x\n"
    text += "env: {id: pointmaze-medium-v0}\ngoals: [1]\nmax_episode_steps: 9\n"
    (tmp_path / "offbench--mine-goal-v0.yaml").write_text(
        text + "score: {kind: success, ref_min: 0, ref_max: 1}\n"
    )
    monkeypatch.setenv("OFFBENCH_DATASETS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"data are those of offbench/mine-v0, which has no manifest"
    ):
        load_task("offbench/mine-goal-v0")


def test_lists_say_how_many_goals_and_whose_data(capsys):
    name = "offbench/pointmaze-medium-navigate-goal-v0"
    assert main(["data", "list", name]) == 0
    line = capsys.readouterr().out
    assert "on 5 goals" in line and f"the data of {SHARED[name]}" in line
    assert main(["data", "make", name]) == 2
    assert f"offbench data make {SHARED[name]}" in capsys.readouterr().err
    assert "on 5 goals" in registry.describe("ogbench/antmaze-giant-navigate-v0").summary


def test_a_goal_task_is_packed_with_the_set_it_shares(tmp_path, capsys):
    from offbench.cli.data.transfer import _items

    name = "offbench/cube-single-play-goal-v0"
    assert set(_items(name)) == {
        "datasets/offbench--cube-single-play-goal-v0.yaml",
        "datasets/offbench--cube-single-play-v0.yaml",
        "datasets/minari/offbench/cube-single-play-v0",
    }


@pytest.mark.parametrize(
    "task, words",
    [
        ("ogbench/visual-antmaze-medium-navigate-v0", "pictures"),
        ("ogbench/powderworld-easy-play-v0", "choices"),
        ("offbench/hopper/medium-replay-v0", "has no goals: view=goal"),
    ],
)
def test_what_cannot_be_reached_is_refused_in_a_line(task, words):
    with pytest.raises(UserError, match=words) as error:
        plan([f"task={task}", "methods=[gcivl]"], bench=True)
    assert "\n" not in str(error.value)


@ogbench
def test_the_stitch_set_goes_four_cells_far_and_is_made_again_alike(tmp_path, monkeypatch):
    pytest.importorskip("ogbench")
    recipe = find(STITCH)
    assert recipe.options["steps"] == 200 and not recipe.shipped
    tiny = dataclasses.replace(recipe, options={**recipe.options, "episodes": 3})
    monkeypatch.setattr(recipes, "RECIPES", {STITCH: tiny})
    monkeypatch.setattr("offbench.recipes.ogbench_play._SCORE_EPISODES", 1)
    facts = []
    for root in (tmp_path / "a", tmp_path / "b"):
        make(STITCH, root)
        facts.append(
            yaml.safe_load((root / "offbench--pointmaze-medium-stitch-goal-v0.yaml").read_text())
        )
    assert facts[0] == facts[1] and (facts[0]["rows"], facts[0]["goals"]) == (600, [1, 2, 3, 4, 5])
    monkeypatch.setenv("OFFBENCH_DATASETS", str(tmp_path / "a"))
    data, spec = load_data(load_task(STITCH))
    assert (data.n_transitions, spec.obs_dim, spec.max_episode_steps) == (600, 2, 1000)
    # cells are four units wide: from the start no further than four of them and the noise
    starts = torch.tensor([0, 201, 402])
    for start in starts:
        way = (data.obs[start : start + 201] - data.obs[start]).abs().sum(-1)
        assert 4 < way.max() < 4 * 4 + 4


def test_the_manifest_of_the_stitch_set_is_of_its_recipe():
    facts, recipe = embedded.manifests()[STITCH][1], RECIPES[STITCH]
    assert (facts["summary"], facts["env"]["id"]) == (recipe.summary, recipe.env)
    assert facts["recipe"]["options"] == dict(recipe.options) and facts["rows"] == 100_000
    assert load_task(STITCH).task_ids == (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Four trajectories of OGBench's stitch set, in its own layout."""
    pytest.importorskip("ogbench")
    return collect("ogbench/pointmaze-medium-stitch-v0", tmp_path_factory.mktemp("made"), steps=800)


@ogbench
@pytest.mark.filterwarnings("ignore:.*collected again")
def test_an_npz_of_ogbench_is_a_task_with_goals_which_episodes_play_in_turn(collected, tmp_path):
    task = own_task(collected, env="pointmaze-medium-v0", goals=(1, 2, 3, 4, 5))
    assert task.score == "success" and task.environment["goals"] == [1, 2, 3, 4, 5]
    data, spec = load_data(task, defects="ignore")
    assert (data.n_transitions, data.n_episodes, spec.obs_dim) == (800, 4, 2)
    short = dataclasses.replace(task, env_kwargs={"max_episode_steps": 3})
    rows = evaluate(still, {"x": torch.zeros(1, 1)}, short, seeds=[0], episodes=11, n_envs=3)
    assert rows["task_id"].tolist() == [1, 2, 3, 4, 5] * 2 + [1]
    assert rows["score"].tolist() == [0.0] * 11
    # a plain task plays no goal
    plain = own_task(collected, env="pointmaze-medium-singletask-v0", score="success")
    plain = dataclasses.replace(plain, env_kwargs={"max_episode_steps": 3})
    rows = evaluate(still, {"x": torch.zeros(1, 1)}, plain, seeds=[0], episodes=1)
    assert rows["task_id"].isna().all() and "goals" not in plain.environment


@ogbench
@pytest.mark.parametrize(
    "env, goals, words",
    [
        ("pointmaze-medium-v0", "[1,7]", "pointmaze-medium-v0 has no goal 7"),
        ("HalfCheetah-v5", "[1]", "the dataset's observations have 4 features"),
        ("none", "[1]", r"goals=\[1\] need an environment"),
        ("pointmaze-medium-v0", "one", "task.goals"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*collected again")
def test_goals_that_an_environment_does_not_have_are_refused(collected, env, goals, words):
    with pytest.raises(UserError, match=words) as error:
        args = [
            f"task.data={collected}",
            f"task.env={env}",
            f"task.goals={goals}",
            "methods=[gcbc]",
        ]
        task = plan(args, bench=True).cells[0].task
        EnvPool(task).check(load_data(task, defects="ignore")[1])
    assert "\n" not in str(error.value)


@ogbench
def test_an_environment_that_tells_no_goal_is_refused(tmp_path):
    made = np.random.default_rng(0).normal(size=(9, 17)).astype(np.float32)
    end = np.arange(9) == 8
    np.savez(tmp_path / "x.npz", observations=made, actions=made[:, :6].clip(-1, 1), terminals=end)
    task = own_task(tmp_path / "x.npz", env="HalfCheetah-v5", goals=(1,))
    with pytest.raises(UserError, match=r"HalfCheetah-v5: reset tells no goal"):
        EnvPool(task).check(load_data(task, defects="ignore")[1])


@ogbench
@pytest.mark.filterwarnings("ignore:.*collected again")
@pytest.mark.parametrize(
    "length, needs, words",
    [
        (1, (), "every episode of this dataset is a single"),
        (20, ("subgoals",), "longer than every"),
    ],
)
def test_episodes_that_are_too_short_are_refused_before_training(tmp_path, length, needs, words):
    from offbench.data.goals import Goal

    made = np.random.default_rng(0).normal(size=(6 * (length + 1), 2)).astype(np.float32)
    end = np.arange(len(made)) % (length + 1) == length
    np.savez(tmp_path / "x.npz", observations=made, actions=made.clip(-1, 1), terminals=end)
    task = own_task(tmp_path / "x.npz", env="pointmaze-medium-v0", goals=(1, 2))
    data = load_data(task, defects="ignore")[0]
    with pytest.raises(UserError, match=words) as error:
        Goal(subgoal_steps=25).fit(data, needs)
    assert "\n" not in str(error.value)
