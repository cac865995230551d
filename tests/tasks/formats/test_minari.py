"""Minari sets: spaces, environments, references, and the mapped copy of large ones."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from support.layouts import make, same, write_minari

from offbench.data.replay import Episode, episode_returns
from offbench.errors import UserError
from offbench.tasks import cache, spaces
from offbench.tasks.custom import own_task
from offbench.tasks.environments import evaluation_env
from offbench.tasks.formats import minari
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))


MAZE = Dict(
    observation=Box(-5, 5, (3,), np.float64),
    desired_goal=Box(-5, 5, (2,), np.float64),
    achieved_goal=Box(-5, 5, (2,), np.float64),
)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_entries_of_a_dict_lie_one_after_another_by_key(data_format, tmp_path):
    rng = np.random.default_rng(0)
    obs = {k: rng.uniform(-1, 1, (6, *MAZE[k].shape)) for k in MAZE.spaces}
    episode = Episode(
        obs, rng.uniform(-1, 1, (5, 2)).astype(np.float32), np.ones(5), np.zeros(5, bool)
    )
    path = write_minari([episode], tmp_path, data_format, obs_space=MAZE)
    data = minari.load(path, name="m")
    wanted = np.concatenate([obs[k] for k in ("achieved_goal", "desired_goal", "observation")], 1)
    np.testing.assert_array_equal(data.obs, wanted.astype(np.float32))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_choices_are_one_hot(data_format, tmp_path):
    number = np.array([2, 4, 3, 2])
    episode = Episode(np.array([0, 1, 2, 1, 0]), number, np.ones(4), np.zeros(4, bool))
    path = write_minari(
        [episode], tmp_path, data_format, obs_space=Discrete(3), action_space=Discrete(3, start=2)
    )
    data = minari.load(path, name="m")
    assert data.obs.argmax(1).tolist() == [0, 1, 2, 1, 0] and data.obs.sum() == 5
    assert data.action[:4].argmax(1).tolist() == [0, 2, 1, 0] and data.action.shape == (5, 3)


def test_actions_are_scaled_by_the_bounds_of_their_space(tmp_path):
    box = Box(np.float32([0, -2]), np.float32([1, 2]))
    action = np.float32([[0, -2], [1, 2], [0.5, 0]])
    episode = Episode(np.zeros((4, 3), np.float32), action, np.ones(3), np.zeros(3, bool))
    data = minari.load(write_minari([episode], tmp_path, "hdf5", action_space=box), name="m")
    assert data.action[:3].tolist() == [[-1, -1], [1, 1], [0, 0]]


def test_flattening_is_that_of_gymnasium_for_the_kinds_it_shares():
    inner = Dict({"z": Box(-1, 1, (1,)), "y": Discrete(2)})  # a mapping: gymnasium sorts its keys
    space = Dict({"b": Discrete(3), "a": Box(-1, 1, (2, 2), np.float64), "c": inner})
    space.seed(0)
    ours = spaces.of_gymnasium(space, "x")
    for _ in range(5):
        value = space.sample()
        np.testing.assert_allclose(
            spaces.flatten(ours, _lists(value), "x")[0], gymnasium.spaces.flatten(space, value)
        )
    with pytest.raises(UserError, match="MultiDiscrete"):
        spaces.of_gymnasium(MultiDiscrete([2, 2]), "x")


def _lists(value):
    return (
        {k: _lists(v) for k, v in value.items()}
        if isinstance(value, dict)
        else np.asarray(value)[None]
    )


# --- environments ---------------------------------------------------------------------------


def recorded(tmp_path, **extra):
    path = write_minari(make([5, 6]), tmp_path, "hdf5", **extra)
    return path, minari.metadata(path, name="m")


def test_the_evaluation_environment_comes_before_the_recording_one(tmp_path):
    env = gymnasium.spec("HalfCheetah-v5")
    _, meta = recorded(tmp_path, env=env, eval_env=gymnasium.spec("Hopper-v5"))
    assert meta.env.id == "HalfCheetah-v5" and meta.eval_env.id == "Hopper-v5"
    assert meta.env.max_episode_steps == 1000


def test_a_named_evaluation_environment_that_is_not_here_is_an_error_and_not_the_other_one(
    tmp_path,
):
    path, _ = recorded(tmp_path, env=gymnasium.spec("HalfCheetah-v5"))
    file = path / "data" / "metadata.json"
    content = json.loads(file.read_text())
    content["eval_env_spec"] = json.dumps({"id": "Elsewhere-v7", "kwargs": {}})
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="Elsewhere-v7 is not installed"):
        own_task(path)
    task = own_task(path, max_episode_steps=10)
    assert task.env == "Elsewhere-v7"
    with pytest.raises(UserError, match="Elsewhere-v7 is not installed"):
        evaluation_env(task)


def test_no_environment_is_told_and_can_be_given(tmp_path):
    path, _ = recorded(tmp_path)
    task = own_task(path)
    assert task.env is None
    with pytest.raises(UserError, match=r"task\.env="):
        evaluation_env(task)
    assert own_task(path, env="HalfCheetah-v5").max_episode_steps == 1000


def test_references_of_the_metadata_are_those_of_the_task(tmp_path):
    path, meta = recorded(
        tmp_path, env=gymnasium.spec("Hopper-v5"), ref_min_score=3.0, ref_max_score=13.0
    )
    assert (meta.ref_min, meta.ref_max) == (3, 13)
    assert own_task(path).normalise(8.0, None) == 50


@pytest.mark.env
def test_a_set_recorded_in_a_maze_is_judged_in_it_and_shows_the_same_numbers(tmp_path, monkeypatch):
    """Every step of the record, taken again in the environment of its task."""
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    episodes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make("PointMaze_UMaze-v3", max_episode_steps=20)
        env.action_space.seed(0)
        for seed in (1, 2):
            seen, actions = [env.reset(seed=seed)[0]], []
            for _ in range(20):
                actions.append(env.action_space.sample())
                seen.append(env.step(actions[-1])[0])
            obs = {k: np.stack([o[k] for o in seen]) for k in seen[0]}
            episodes.append(Episode(obs, np.stack(actions), np.zeros(20), np.zeros(20, bool)))
        spec, space, box = env.spec, env.observation_space, env.action_space
        env.close()
    write_minari(episodes, tmp_path, "hdf5", obs_space=space, action_space=box, env=spec)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data, spec = load_data(load_task("minari/test/hdf5-v0"))
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps) == (8, 2, 20)
    made = evaluation_env(load_task("minari/test/hdf5-v0"))
    obs, _ = made.reset(seed=1)
    np.testing.assert_allclose(obs, data.obs[0], atol=1e-6)
    for t in range(20):
        obs, *_ = made.step(data.action[t].numpy())
        np.testing.assert_allclose(obs, data.obs[t + 1], atol=1e-4)
    made.close()


# --- the mapped copy ------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cache, "MIN_ROWS", 1)
    monkeypatch.setattr(cache.cached, "__kwdefaults__", {"sha256": "", "min_rows": 1})


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_the_second_load_is_a_map_of_the_same_numbers(data_format, tmp_path, small, monkeypatch):
    path = write_minari(make([5, 6]), tmp_path, data_format)
    first = minari.load(path, name="m")
    monkeypatch.setattr(minari, "_load", None)  # nothing is read again
    second = minari.load(path, name="m")
    assert same(first, second)
    assert torch.equal(episode_returns(first), episode_returns(second))


def test_writing_to_a_mapped_set_changes_no_file(tmp_path, small):
    path = write_minari(make([5, 6]), tmp_path, "hdf5")
    first = minari.load(path, name="m")
    minari.load(path, name="m").obs[:] = 7
    assert same(minari.load(path, name="m"), first)


def test_a_changed_file_is_read_again_and_the_old_copy_is_gone(tmp_path, small):
    path = write_minari(make([5, 6]), tmp_path, "hdf5")
    minari.load(path, name="m")
    write_minari(make([5, 6], seed=1), tmp_path / "other", "hdf5")
    (tmp_path / "other" / "test" / "hdf5-v0" / "data" / "main_data.hdf5").replace(
        path / "data" / "main_data.hdf5"
    )
    again = minari.load(path, name="m")
    assert float(again.obs[0, 0]) == float(make([5, 6], seed=1)[0].obs[0, 0])
    assert len(list((tmp_path / "cache" / "arrays").glob("*/*/rows.json"))) == 1


@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage", "pickle"])
def test_a_damaged_copy_is_made_again(damage, tmp_path, small):
    path = write_minari(make([5, 6]), tmp_path, "hdf5")
    first = minari.load(path, name="m")
    (obs,) = (tmp_path / "cache" / "arrays").glob("*/*/obs.npy")
    if damage == "truncate":
        obs.write_bytes(obs.read_bytes()[:-8])
    elif damage == "delete":
        obs.unlink()
    elif damage == "garbage":
        obs.write_bytes(b"x" * 400)
    else:
        np.save(obs, np.array([{}] * 13, object), allow_pickle=True)
    assert same(minari.load(path, name="m"), first)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, small, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "file"))
    path = write_minari(make([5, 6]), tmp_path, "hdf5")
    assert minari.load(path, name="m").n_episodes == 2
