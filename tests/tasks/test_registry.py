"""Ids: every one has a card, look-alikes are told apart, and what is judged fits its data."""

import csv
import dataclasses
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.layouts import make, write_d4rl, write_minari, write_ogbench
from support.paths import ROOT

from offbench.data import composition
from offbench.data.replay import fingerprint, from_episodes
from offbench.errors import UserError
from offbench.tasks import embedded, registry
from offbench.tasks.custom import own_task
from offbench.tasks.doctor import DataWarning
from offbench.tasks.environments import (
    ANTMAZE,
    MAZE2D,
    antmaze_map,
    evaluation_env,
    make_env,
    maze2d_map,
)
from offbench.tasks.loading import doctor_report, load_data
from offbench.tasks.locate import fetch, load_task, locate, ready

SUITES = sorted((ROOT / "conf" / "suite").glob("*.yaml"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("OFFBENCH_DATA", "MINARI_DATASETS_PATH", "D4RL_DATASET_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "OFFBENCH_DATA"


def test_every_id_has_one_card_of_its_own_name():
    ids = registry.ids()
    assert len(set(ids)) == len(ids) > 600
    for name in ids:
        card = registry.describe(name)
        assert card.id == name and registry.canonical(name) == name
        assert card.env or card.refused
        assert card.score == "success" or (card.ref_min is None) == (card.ref_max is None)
        assert card.ref_min is None or card.ref_max > card.ref_min
        assert all(file.name.split("/")[0] in ("d4rl", "ogbench", "minari") for file in card.files)


def test_every_row_of_the_table_that_names_a_file_is_an_id():
    path = ROOT / "offbench/tasks/d4rl.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset_url"]]
    assert {f"d4rl/{row['dataset_id']}" for row in rows} == {
        i for i in registry.ids() if i.startswith("d4rl/")
    }
    for row in rows:
        card = registry.describe(row["dataset_id"])
        assert card.urls == (row["dataset_url"],)
        assert card.max_episode_steps == int(row["max_episode_steps"])
        if row["ref_min_score"]:
            assert (card.ref_min, card.ref_max) == (
                float(row["ref_min_score"]),
                float(row["ref_max_score"]),
            )
            said = any("KeyError" in note for note in card.notes)
            assert said == (row["in_infos_py"] != "yes"), row["dataset_id"]


@pytest.mark.parametrize(
    "alias, name",
    [
        ("hopper-medium-v2", "d4rl/hopper-medium-v2"),
        ("mujoco/hopper/medium-v0", "minari/mujoco/hopper/medium-v0"),
        ("D4RL/door/human-v2", "minari/D4RL/door/human-v2"),
        ("cube-single-play-v0", "ogbench/cube-single-play-v0"),
        ("cube-single-play-singletask-v0", "ogbench/cube-single-play-singletask-task2-v0"),
        ("ogbench/puzzle-4x5-play-singletask-v0", "ogbench/puzzle-4x5-play-singletask-task2-v0"),
        (
            "puzzle-3x3-play-sparse-singletask-task1-v0",
            "ogbench/puzzle-3x3-play-sparse-singletask-task1-v0",
        ),
        ("scene-play-v0-val", "ogbench/scene-play-v0-val"),
        (
            "visual-antmaze-medium-navigate-singletask-v0",
            "ogbench/visual-antmaze-medium-navigate-singletask-task1-v0",
        ),
        (
            "cube-quadruple-play-100m-singletask-v0",
            "ogbench/cube-quadruple-play-100m-singletask-task2-v0",
        ),
    ],
)
def test_an_id_from_a_paper_means_one_set(alias, name):
    assert registry.describe(alias).id == name


def test_sets_that_sound_alike_never_share_a_column():
    d4rl, minari = (
        registry.describe("hopper-medium-v2"),
        registry.describe("mujoco/hopper/medium-v0"),
    )
    assert d4rl.id != minari.id and d4rl.env != minari.env
    assert any("Minari" in note for note in d4rl.notes)
    assert any("not D4RL's hopper-medium-v2" in note for note in minari.notes)
    assert (
        registry.describe("maze2d-umaze-v1").id != registry.describe("D4RL/pointmaze/umaze-v2").id
    )


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("hoper-medium-v2", "hopper-medium-v2"),
        ("d4rl/hopper-medium-v3", "d4rl/hopper-medium-v"),
        ("mujoco/hoper/medium-v0", "mujoco/hopper/medium-v0"),
        ("cube-single-pley-v0", "cube-single-play-v0"),
        ("cube-single-play-singletask-task6-v0", "cube-single-play-singletask-task"),
        ("powderworld-easy-play-singletask-v0", "powderworld-easy-play-v0"),
        ("antmaze-large-navigate-100m-v0", "antmaze-large-navigate-v0"),
        ("../../etc/passwd", ""),
        ("minari/../x-v0", ""),
        ("", ""),
    ],
)
def test_an_unknown_id_names_the_nearest(wrong, near):
    with pytest.raises(UserError, match="unknown task") as error:
        load_task(wrong)
    assert near in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "heard, sets",
    [
        ("hopper/medium-v0", ["d4rl/hopper-medium-v0", "minari/mujoco/hopper/medium-v0"]),
        ("Hopper-Medium-v2", ["d4rl/hopper-medium-v2"]),
        ("minari/hopper/medium-v0", ["minari/mujoco/hopper/medium-v0"]),
        (
            "hopper/medium-replay-v0",
            ["offbench/hopper/medium-replay-v0", "d4rl/hopper-medium-replay-v0"],
        ),
        ("door-human-v2", ["minari/D4RL/door/human-v2"]),
        ("pointmaze-umaze-v2", ["minari/D4RL/pointmaze/umaze-v2"]),
    ],
)
def test_an_id_that_is_none_names_every_set_it_sounds_like(heard, sets):
    with pytest.raises(UserError, match=f"unknown task '{heard}'") as error:
        load_task(heard)
    words = str(error.value)
    assert all(f"'{name}'" in words for name in sets) and words.count("/v0") == 0
    assert ("These are different data" in words) == (len(sets) > 1) and len(words) < 300


@pytest.mark.parametrize(
    "name", ["offbench/hopper/medium-replay-v0", "hopper-medium-v2", "cube-single-play-v0"]
)
def test_a_task_is_looked_up_with_one_listing_of_the_embedded_sets(name, monkeypatch):
    listings, roots = [], embedded.roots
    monkeypatch.setattr(embedded, "roots", lambda: listings.append(name) or roots())
    load_task(name)
    assert listings == [name]


def test_a_short_id_says_what_it_is_not():
    assert registry.alias_note("hopper-medium-v0") == (
        "hopper-medium-v0 is d4rl/hopper-medium-v0, not offbench/hopper/medium-v0 or "
        "minari/mujoco/hopper/medium-v0 (other data)"
    )
    assert "not offbench/cube-single-play-v0" in registry.alias_note("cube-single-play-v0")
    assert "d4rl/maze2d-umaze-v1" in registry.alias_note("D4RL/pointmaze/umaze-v2")
    for plain in (
        "d4rl/hopper-medium-v2",
        "scene-play-singletask-v0",
        "offbench/cube-single-play-v0",
    ):
        assert registry.alias_note(plain) is None


def test_the_sets_of_a_composition_have_one_spelling():
    short, long = (
        load_task(f"truncate@1k:{name}") for name in ("hopper-medium-v2", "d4rl/hopper-medium-v2")
    )
    assert short == long and short.id == "truncate@1000:d4rl/hopper-medium-v2"


# --- from an id to data ---------------------------------------------------------------------


def test_a_file_in_the_cache_is_a_task(cache):
    (cache / "d4rl").mkdir(parents=True)
    episodes = [
        e._replace(obs=np.tile(e.obs, (1, 4))[:, :11], action=np.tile(e.action, (1, 2))[:, :3])
        for e in make([5, 6])
    ]
    write_d4rl(episodes, cache / "d4rl" / "hopper_medium-v2.hdf5")
    task = load_task("hopper-medium-v2")
    data, spec = load_data(task)
    assert fingerprint(data) == fingerprint(from_episodes(episodes))
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps) == (11, 3, 1000)
    assert len(task.sha256) == 64 and ready(task) is task
    assert task.normalise(3234.3, None) == pytest.approx(100)
    composed = load_task("truncate@3:hopper-medium-v2")
    assert load_data(composed)[0].n_transitions == 3 and composed.env == "Hopper-v4"
    assert composed.sha256 not in (task.sha256, None)


def test_every_task_travels_to_a_worker_process(cache):
    for name in registry.ids():
        task = load_task(name)
        assert pickle.loads(pickle.dumps(task)) == task


def test_a_file_of_another_set_under_the_name_is_refused(cache):
    (cache / "d4rl").mkdir(parents=True)
    write_d4rl(make([5, 6]), cache / "d4rl" / "hopper_medium-v2.hdf5")
    with pytest.raises(UserError, match="has 3 features of observations, it should be 11"):
        load_data(load_task("hopper-medium-v2"))


def test_a_file_that_changes_after_the_plan_is_refused(cache):
    (cache / "ogbench").mkdir(parents=True)
    path = cache / "ogbench" / "cube-single-play-v0.npz"
    write_ogbench(make([5, 6]), path)
    task = load_task("cube-single-play-v0")
    load_data(task)
    write_ogbench(make([5, 6, 7]), path)
    with pytest.raises(UserError, match="not the file it was"):
        load_data(task)


def test_a_known_severe_defect_warns_once(cache):
    (cache / "d4rl").mkdir(parents=True)
    name = Path(registry.describe("antmaze-medium-play-v0").files[0].name).name
    episodes = [
        e._replace(obs=np.tile(e.obs, (1, 10))[:, :29], action=np.tile(e.action, (1, 4)))
        for e in make([40, 30])
    ]
    write_d4rl(episodes, cache / "d4rl" / name)
    with pytest.warns(DataWarning, match="time-outs are out of step"):
        load_data(load_task("antmaze-medium-play-v0"))
    task = load_task("antmaze-medium-play-v0")
    load_data(task)
    with pytest.raises(
        UserError, match=r"^d4rl/antmaze-medium-play-v0: time-outs.*strict=true refuses"
    ):
        load_data(task, defects="refuse")
    # so does a part of a composition
    with pytest.raises(UserError, match="time-outs are out of step"):
        load_data(load_task("truncate@5:antmaze-medium-play-v0"), defects="refuse")


def test_a_set_collected_again_is_not_taken_for_the_published_one(cache):
    (cache / "ogbench").mkdir(parents=True)
    write_ogbench(make([5, 6]), cache / "ogbench" / "cube-single-play-v0.npz")
    task = load_task("cube-single-play-v0")
    assert (
        not doctor_report(task).severe
        and not doctor_report(load_task("cube-double-play-v0")).severe
    )
    (cache / "ogbench" / "cube-single-play-v0.regenerated.yaml").touch()
    with pytest.warns(DataWarning, match=r"cube-single-play-v0\.npz was collected again"):
        load_data(task)
    with pytest.raises(UserError, match="not the published file"):
        load_data(load_task("truncate@5:cube-single-play-v0"), defects="refuse")


def test_a_defect_found_in_the_arrays_is_kept_and_told(cache, monkeypatch):
    zeros = [e._replace(reward=np.zeros_like(e.reward)) for e in make([40, 30, 20])]
    (cache / "d4rl").mkdir(parents=True)
    path = cache / "d4rl" / Path(registry.describe("bullet-hopper-medium-v0").files[0].name).name
    write_d4rl(zeros, path)
    task = load_task("bullet-hopper-medium-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, _ = load_data(task)  # not examined, nothing known
    assert [f.name for f in doctor_report(task, data).severe] == ["rewards_constant"]
    with pytest.warns(DataWarning, match="every reward is zero"):
        load_data(task)
    with monkeypatch.context() as patch:
        patch.setattr("offbench.tasks.doctor.check", None)  # it is not examined again
        with pytest.raises(UserError, match="every reward is zero; strict=true"):
            load_data(task, defects="refuse")
    write_d4rl(make([40, 30, 20]), path)  # other data, other report
    again = load_task(task.id)
    assert not doctor_report(again, load_data(again, defects="refuse")[0]).severe


def test_without_the_file_and_the_network_one_line_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda s: None)
    task = load_task("hopper-medium-v2")
    assert task.sha256 is None
    with pytest.raises(UserError, match=r"http://rail.*hopper_medium-v2\.hdf5.* into ") as error:
        ready(task)
    assert "\n" not in str(error.value)
    assert not [p for p in cache.rglob("*.hdf5")]


def test_the_parts_of_a_large_set_are_put_there_by_hand(cache):
    card = registry.describe("cube-quadruple-play-100m-v0")
    with pytest.raises(UserError, match="put its files into"):
        fetch(card)
    folder = cache / "ogbench" / "cube-quadruple-play-100m-v0"
    folder.mkdir(parents=True)
    for i in range(2):
        write_ogbench(make([5], seed=i), folder / f"x-{i:03d}.npz")
    assert load_data(load_task(card.id))[0].n_episodes == 2


def test_own_data_are_a_task_by_path(tmp_path, cache):
    from offbench.bench.plan import plan

    # two actions, as the swimmer has
    write_d4rl(make([5, 6]), tmp_path / "mine.hdf5")
    made = plan(
        ["method=bc", f"task.data={tmp_path}/mine.hdf5", "task.env=Swimmer-v5"], bench=False
    )
    (cell,) = made.cells
    assert (cell.task.id, cell.task.env, cell.task.max_episode_steps) == (
        "own/mine",
        "Swimmer-v5",
        1000,
    )
    assert (
        load_data(cell.task)[0].n_transitions == 11
        and cell.runs()[0].dataset_sha256 == cell.task.sha256
    )
    for words, given in {
        "does not exist": ["task.data=/nowhere.hdf5", "task.env=Hopper-v5"],
        "no environment to play evaluation": [f"task.data={tmp_path}/mine.hdf5", "eval.episodes=3"],
        "task.data=PATH is missing": ["task.env=Hopper-v5"],
        "did you mean 'task.env'": [f"task.data={tmp_path}/mine.hdf5", "task.enf=Hopper-v5"],
        "not installed": [f"task.data={tmp_path}/mine.hdf5", "task.env=Nowhere-v5"],
    }.items():
        with pytest.raises(UserError, match=words):
            plan(["method=bc", *given], bench=False)


def test_own_play_data_are_labelled_by_the_single_task_of_their_environment(tmp_path, cache):
    """An npz in OGBench's layout holds no rewards; zeros would be trained on."""
    pytest.importorskip("ogbench")
    env = make_env("cube-single-singletask-task2-v0", {}, "x")
    target = env.unwrapped._data.mocap_pos[0].copy()
    env.close()
    qpos = np.zeros((7, 21), np.float32)
    qpos[3:, 14:17] = target  # at the goal from the fourth state on
    ends = np.zeros(7, bool)
    ends[-1] = True
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        observations=rng.normal(size=(7, 28)).astype(np.float32),
        actions=rng.uniform(-1, 1, (7, 5)).astype(np.float32),
        terminals=ends,
        qpos=qpos,
        qvel=np.zeros((7, 20), np.float32),
    )
    task = own_task(tmp_path / "mine.npz", env="cube-single-singletask-task2-v0", score="success")
    data, _ = load_data(task)
    assert data.reward[:6].tolist() == [-1, -1, -1, 0, 0, 0]
    assert data.terminal[:6].tolist() == [False] * 3 + [True] * 3
    plain = own_task(tmp_path / "mine.npz", env="HalfCheetah-v5")
    assert not (zeros := load_data(plain)[0]).reward.any()
    # what was found in one reading of the file is not said of the other
    assert [f.name for f in doctor_report(plain, zeros).severe] == ["rewards_constant"]
    assert not doctor_report(dataclasses.replace(task, id=plain.id), data).severe


# --- goals ----------------------------------------------------------------------------------


def test_nothing_trains_on_a_goal_conditioned_set(cache):
    from offbench.bench.plan import plan

    with pytest.raises(
        UserError, match=r"goal-conditioned.*ogbench/cube-single-play-singletask-v0"
    ) as error:
        plan(["method=bc", "task=cube-single-play-v0"], bench=False)
    assert "\n" not in str(error.value)
    plan(["method=bc", "task=cube-single-play-singletask-v0"], bench=False)


def test_a_goal_is_shown_beside_the_observation_of_the_task_asked_for():
    pytest.importorskip("ogbench")
    task = load_task("pointmaze-medium-navigate-v0")
    assert task.task_ids == (1, 2, 3, 4, 5) and task.score == "success"
    env, goals = evaluation_env(task), []
    assert env.observation_space.shape == (4,)
    for episode in range(6):
        obs, info = env.reset(seed=0, options=task.reset_options(episode))
        assert env.unwrapped.cur_task_id == episode % 5 + 1 and obs.shape == (4,)
        np.testing.assert_array_equal(obs[2:], info["goal"])
        after = env.step(np.ones(2))[0]
        assert (after[2:] == obs[2:]).all() and (after[:2] != obs[:2]).any()
        goals.append(env.unwrapped.cur_task_info["goal_ij"])
    assert goals[5] == goals[0] and len({tuple(g) for g in goals}) > 1
    assert load_task("ogbench/pointmaze-medium-navigate-singletask-v0").reset_options(0) is None
    env.close()


def test_a_goal_conditioned_policy_is_scored_by_success_over_the_five_tasks():
    """Towards the goal in a straight line: it succeeds in some tasks of the maze and in others not."""
    pytest.importorskip("ogbench")
    import torch

    from offbench.rollout import evaluate
    from offbench.types import Policy

    def act(state, step, carry, key):
        return (step.obs[..., 2:] - step.obs[..., :2]).clamp(-1, 1), carry

    task = dataclasses.replace(load_task("pointmaze-medium-navigate-v0"), task_ids=(4, 5))
    frame = evaluate(
        Policy(lambda n, e: (), act),
        {"x": torch.zeros(1, 1)},
        task,
        seeds=[0],
        episodes=2,
        n_envs=2,
    )
    assert frame["score"].tolist() == [100.0 * s for s in frame["success"]]
    assert set(frame["length"]) <= set(range(1, 1001))


# --- what a set is judged in ----------------------------------------------------------------


def judged():
    """One id for every environment with its arguments, pictures left out."""
    found = {}
    for name in registry.ids():
        card = registry.describe(name)
        pictures = card.adapter in ("flat", "image") or "visual" in name
        if card.refused is None and not pictures and "MiniGrid" not in card.env:
            if card.family != "ogbench" or name.endswith(("-play-v0", "-navigate-v0", "task1-v0")):
                found.setdefault((card.env, card.adapter, str(card.env_kwargs)), name)
    return sorted(found.values())


@pytest.mark.env
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*")
@pytest.mark.parametrize("name", judged())
def test_the_environment_is_made_and_shows_what_the_data_have(name):
    card, task = registry.describe(name), load_task(name)
    env = evaluation_env(task)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.shape == obs.shape and obs.ndim == 1
    assert card.obs_dim in (None, len(obs)) and card.action_dim in (None, *env.action_space.shape)
    assert env.spec.max_episode_steps == card.max_episode_steps
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    obs, reward, _, _, info = env.step(np.zeros(env.action_space.shape))
    assert np.isfinite(obs).all() and np.isfinite(reward)
    assert task.score == "return" or "success" in info
    env.close()


def test_what_cannot_be_judged_here_says_why():
    for name, words in {
        "bullet-hopper-medium-v0": "pybullet",
        "carla-lane-v0": "carla",
        "powderworld-easy-play-v0": "choices",
        "D4RL/minigrid/fourrooms-v0": "d4rl/minigrid-fourrooms-v0",
    }.items():
        with pytest.raises(UserError, match=words):
            evaluation_env(load_task(name))


def test_minari_is_asked_where_it_asks_itself(monkeypatch, cache):
    """The parts of an id as minari takes them apart; the owner and the kind of place as it is told."""
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    hub = "https://huggingface.co/datasets/farama-minari/D4RL/resolve/main/door/human-v2/data"
    assert registry.describe("D4RL/door/human-v2").urls == (
        f"{hub}/metadata.json",
        f"{hub}/main_data.hdf5",
    )
    monkeypatch.setenv("MINARI_REMOTE", "gcp://minari-remote")
    url = registry.describe("D4RL/door/human-v2").urls[1]
    assert (
        url == "https://storage.googleapis.com/minari-remote/D4RL/door/human-v2/data/main_data.hdf5"
    )
    monkeypatch.setenv("MINARI_REMOTE", "ftp://x")
    with pytest.raises(UserError, match="neither hf://OWNER nor gcp://BUCKET"):
        registry.describe("D4RL/door/human-v2")


def test_a_minari_download_that_stopped_halfway_is_not_taken_for_the_set(cache):
    data = cache / "minari" / "D4RL" / "door" / "human-v2" / "data"
    for file in (None, "metadata.json", "main_data.hdf5.part"):
        data.mkdir(parents=True, exist_ok=True)
        if file is not None:
            (data / file).write_text("{}")
        card = registry.describe("D4RL/door/human-v2")
        assert locate(card) is None and card.env == "AdroitHandDoor-v1"
    (data / "main_data.hdf5").write_text("damaged")  # a whole file, but of nothing
    with pytest.raises(UserError, match="observation_space"):
        registry.describe("D4RL/door/human-v2")
    assert "observation_space" in dict(registry.listing())["minari/D4RL/door/human-v2"]


def test_a_set_is_judged_alike_by_the_run_that_downloads_it_and_by_the_next(cache, monkeypatch):
    """Its metadata, which name environment and references, are here only after the download."""

    def fetch(card):
        import gymnasium

        made = write_minari(
            make([5, 6]),
            cache.parent / "made",
            "hdf5",
            env=gymnasium.spec("Hopper-v5"),
            eval_env=gymnasium.spec("Walker2d-v5"),
            ref_min_score=3.0,
            ref_max_score=13.0,
        )
        shutil.copytree(made / "data", cache / "minari" / "D4RL" / "door" / "human-v2" / "data")

    monkeypatch.setattr("offbench.tasks.locate.fetch", fetch)
    first = load_task("D4RL/door/human-v2")
    assert first.env == "AdroitHandDoor-v1" and first.sha256 is None
    first = ready(first)
    assert first == ready(load_task("D4RL/door/human-v2"))
    assert (first.env, first.ref_min, first.ref_max) == ("Walker2d-v5", 3.0, 13.0)


ROUND = [[1, 1, 1], [1, "r", 1], [1, "g", 1], [1, 1, 1]]


@pytest.mark.parametrize(
    "walls, other",
    [(ROUND, False), ([r[::-1] for r in ROUND], False), (ROUND[:2] + [[1, 1, 1], [1, 0, 1]], True)],
)
def test_another_maze_for_evaluation_is_said_where_data_are_loaded(cache, walls, other):
    """Minari issue 304: start and goal may lie elsewhere, walls may not."""
    import gymnasium

    from offbench.tasks.environments import make_env

    make_env("PointMaze_UMaze-v3", {}, "x").close()  # registers its kind
    plain = [[1 if cell == 1 else 0 for cell in row] for row in ROUND]
    spec = lambda rows: gymnasium.make("PointMaze_UMaze-v3", maze_map=rows).spec
    made = write_minari(
        make([5, 6]), cache.parent / "made", "hdf5", env=spec(plain), eval_env=spec(walls)
    )
    shutil.copytree(
        made / "data", cache / "minari" / "D4RL" / "antmaze" / "umaze-diverse-v1" / "data"
    )
    task = load_task("D4RL/antmaze/umaze-diverse-v1")
    found = [f.words for f in doctor_report(task).severe]
    assert bool(found) == other and ("other walls" in registry.describe(task.id).differs) == other
    if other:
        assert "issue 304" in found[0]
        with pytest.warns(DataWarning, match="other walls"):
            load_data(task)


@pytest.mark.parametrize("version, adapter", [("==1.2.0", "adroit-1.2.0"), (">=1.2.4", None)])
def test_a_minari_pen_ends_on_a_drop_where_its_recording_did(cache, version, adapter):
    import gymnasium

    from offbench.tasks.environments import make_env

    make_env("AdroitHandPen-v1", {}, "x").close()
    made = write_minari(
        make([5, 6]),
        cache.parent / "made",
        "hdf5",
        env=gymnasium.spec("AdroitHandPen-v1"),
        requirements=[f"gymnasium-robotics{version}"],
    )
    shutil.copytree(made / "data", cache / "minari" / "D4RL" / "pen" / "human-v1" / "data")
    task = load_task("minari/D4RL/pen/human-v1")
    assert task.adapter == adapter
    env, rng = evaluation_env(task), np.random.default_rng(0)
    env.reset(seed=0)
    ended = any(env.step(rng.uniform(-1, 1, 24))[2] for _ in range(150))
    assert ended == (adapter is not None)


def test_arrow_sets_are_told_before_their_data_are_asked_for(monkeypatch, cache):
    space = {"type": "Box", "shape": [2], "low": [-1, -1], "high": [1, 1], "dtype": "float32"}
    content = {
        "data_format": "arrow",
        "observation_space": json.dumps(space),
        "action_space": json.dumps(space),
    }

    def serve(url, name, *rest):
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert path.name == "metadata.json"
        path.write_text(json.dumps(content))
        return path

    monkeypatch.setattr("offbench.tasks.files.fetch", serve)
    with pytest.raises(
        UserError, match="Arrow files; get them with: minari download D4RL/door/human-v2"
    ):
        fetch(registry.describe("D4RL/door/human-v2"))


def test_the_rooms_of_minigrid_have_the_goal_and_the_limit_of_d4rl():
    pytest.importorskip("minigrid")
    env = evaluation_env(load_task("minigrid-fourrooms-v0"))
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        assert obs.shape == (147,) and env.unwrapped.grid.get(12, 12).type == "goal"
    steps = 0
    while True:
        steps += 1
        _, reward, terminated, truncated, _ = env.step(np.eye(7)[0])  # turns on the spot
        assert not terminated and reward == 0
        if truncated:
            break
    assert steps == 50


def test_minigrid_is_one_line_where_its_package_is_missing():
    pytest.importorskip("gymnasium")
    try:
        import minigrid  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install minigrid"):
            evaluation_env(load_task("minigrid-fourrooms-v0"))
    else:
        env = evaluation_env(load_task("minigrid-fourrooms-v0"))
        assert env.observation_space.shape == (147,) and env.action_space.shape == (7,)


@pytest.mark.env
def test_an_ant_reaches_a_goal_of_d4rl_where_it_is(monkeypatch):
    task = load_task("antmaze-umaze-v2")
    env = evaluation_env(task)
    obs, _ = env.reset(seed=0)
    assert np.abs(obs[:2]).max() < 0.2  # positions are relative to the start
    inner = env.unwrapped
    goal = inner.goal - inner.maze.unique_reset_locations[0]
    # two cells of 4 down, and noise of a quarter and of an eighth of a cell at most
    assert ((goal >= [0, 8]) & (goal <= [1.5, 9.5])).all()
    state = inner.ant_env.data.qpos.copy()
    state[:2] = inner.goal
    inner.ant_env.set_state(state, inner.ant_env.data.qvel * 0)
    obs, reward, terminated, _, info = env.step(np.zeros(8))
    assert reward == 1 and terminated and info["success"]
    np.testing.assert_allclose(obs[:2], goal, atol=0.2)
    env.close()


@pytest.mark.env
@pytest.mark.parametrize("size, goal", [("umaze", (1, 1)), ("medium", (6, 6)), ("large", (7, 9))])
def test_a_point_reaches_a_goal_of_d4rl_where_it_is_and_goes_on(size, goal):
    env = evaluation_env(load_task(f"maze2d-{size}-v1"))
    env.reset(seed=0)
    inner = env.unwrapped
    inner.point_env.set_state(inner.goal, np.zeros(2))
    obs, reward, terminated, _, info = env.step(np.zeros(2))
    np.testing.assert_allclose(obs[:2], goal, atol=1e-6)
    assert reward == 1 and not terminated and info["success"]
    env.close()


@pytest.mark.env
def test_a_point_in_a_wall_of_d4rl_is_in_a_wall_here():
    """Rows are the first coordinate there: the free cells of the map are those of the maze."""
    env = evaluation_env(load_task("maze2d-large-v1"))
    maze = env.unwrapped.maze
    free = {
        (round(x + maze.x_map_center - 0.5), round(y + maze.y_map_center - 0.5))
        for x, y in [*maze.unique_reset_locations, *maze.unique_goal_locations]
    }
    rows = MAZE2D["large"]
    assert free == {
        (r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell != "#"
    }
    env.close()


def test_maps_are_turned_so_that_frames_agree():
    assert antmaze_map("umaze")[1][1] == "g" and ANTMAZE["umaze"][3][1] == "G"
    turned = maze2d_map("large")
    assert (len(turned), len(turned[0])) == (len(MAZE2D["large"][0]), len(MAZE2D["large"]))


@pytest.mark.env
def test_the_kitchen_shows_positions_and_the_goal_of_its_tasks():
    env = evaluation_env(load_task("kitchen-mixed-v0"))
    obs, _ = env.reset(seed=0)
    goal = obs[30:]
    assert goal[11] == -0.88 and goal[22] == -0.75 and goal[19] == 0  # no slide cabinet in mixed
    env.close()


# --- suites ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_the_tasks_of_a_suite_exist_and_can_be_judged(path):
    suite = yaml.safe_load(path.read_text())
    assert suite["id"] == path.stem and suite["version"] >= 1
    assert len(set(suite["tasks"])) == len(suite["tasks"])
    for name in suite["tasks"]:
        task = load_task(name)
        assert task.refused is None
        assert name in composition.MIXED or task.id == name  # spelled as its column is


def test_the_suites_are_of_the_published_size():
    size = {p.stem: len(yaml.safe_load(p.read_text())["tasks"]) for p in SUITES}
    assert size["d4rl-gym-9"] == 9 and size["d4rl-gym-18"] == 18
    assert size["d4rl-antmaze"] == 6 and size["mixed"] == 32 and size["ogbench-singletask"] == 50


def test_no_two_columns_of_all_suites_are_the_same_data_under_two_names():
    names = {n for p in SUITES for n in yaml.safe_load(p.read_text())["tasks"]}
    assert len({load_task(n).id for n in names}) == len(names)


def test_a_score_without_references_is_said_to_be_no_score_of_the_scale(cache):
    scaled = lambda name: load_task(name).scaled
    assert scaled("d4rl/hopper-medium-v2") and scaled("d4rl/antmaze-umaze-v2")
    assert scaled("mujoco/hopper/medium-v0") and not scaled("mujoco/walker2d/medium-v0")


@pytest.mark.env
def test_the_minimum_of_walker2d_is_what_uniform_actions_earn():
    """Measured as those of the embedded sets; there is no maximum, so its scores stay returns."""
    from offbench.recipes.locomotion import uniform_return

    source = registry.describe("minari/mujoco/walker2d/expert-v0").ref_source
    mean, error = uniform_return("Walker2d-v5")
    assert source.startswith("minimum 1.6493, measured here; no maximum")
    assert abs(mean - 1.6493) < 4 * error and 0 < error < 1  # exact with the versions named there


def test_a_mixture_is_of_one_environment_whatever_its_version():
    of = lambda *parts: load_task(f"mix@.5:{':'.join(parts)}").env
    assert of("d4rl/hopper-expert-v2", "offbench/hopper/medium-v0") == "Hopper-v4"
    # of equal sizes
    with pytest.raises(
        UserError, match="in HalfCheetah-v4, d4rl/walker2d-medium-v2 in Walker2d-v4"
    ):
        of("d4rl/halfcheetah-expert-v2", "d4rl/walker2d-medium-v2")
    # of other rewards
    with pytest.raises(UserError, match="different environments"):
        of(*(f"ogbench/cube-single-play-singletask-task{n}-v0" for n in (1, 2)))
