"""Ids: every one has a card, look-alikes are told apart, and what is judged fits its data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_sources_layouts import make, write_d4rl, write_ogbench

from offbench import catalog, compose, tasks
from offbench.data import fingerprint, from_episodes
from offbench.doctor import DataWarning
from offbench.environments import ANTMAZE, MAZE2D, antmaze_map, maze2d_map
from offbench.errors import UserError

SUITES = sorted((Path(__file__).parent.parent / "conf" / "suite").glob("*.yaml"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("OFFBENCH_DATA", "MINARI_DATASETS_PATH", "D4RL_DATASET_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "OFFBENCH_DATA"


def test_every_id_has_one_card_of_its_own_name():
    ids = catalog.ids()
    assert len(set(ids)) == len(ids) > 600
    for name in ids:
        card = catalog.card(name)
        assert card.id == name and catalog.canonical(name) == name
        assert card.env or card.refused
        assert card.score == "success" or (card.ref_min is None) == (card.ref_max is None)
        assert card.ref_min is None or card.ref_max > card.ref_min
        assert all(file.name.split("/")[0] in ("d4rl", "ogbench", "minari") for file in card.files)


def test_every_row_of_the_table_that_names_a_file_is_an_id():
    path = Path(catalog.__file__).parent / "sources" / "d4rl.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset_url"]]
    assert {f"d4rl/{row['dataset_id']}" for row in rows} == {i for i in catalog.ids() if i.startswith("d4rl/")}
    for row in rows:
        card = catalog.card(row["dataset_id"])
        assert card.urls == (row["dataset_url"],)
        assert card.max_episode_steps == int(row["max_episode_steps"])
        if row["ref_min_score"]:
            assert (card.ref_min, card.ref_max) == (float(row["ref_min_score"]), float(row["ref_max_score"]))
            said = any("KeyError" in note for note in card.notes)
            assert said == (row["in_infos_py"] != "yes"), row["dataset_id"]


@pytest.mark.parametrize("alias, name", [
    ("hopper-medium-v2", "d4rl/hopper-medium-v2"),
    ("mujoco/hopper/medium-v0", "minari/mujoco/hopper/medium-v0"),
    ("D4RL/door/human-v2", "minari/D4RL/door/human-v2"),
    ("cube-single-play-v0", "ogbench/cube-single-play-v0"),
    ("cube-single-play-singletask-v0", "ogbench/cube-single-play-singletask-task2-v0"),
    ("ogbench/puzzle-4x5-play-singletask-v0", "ogbench/puzzle-4x5-play-singletask-task2-v0"),
    ("puzzle-3x3-play-sparse-singletask-task1-v0", "ogbench/puzzle-3x3-play-sparse-singletask-task1-v0"),
    ("scene-play-v0-val", "ogbench/scene-play-v0-val"),
    ("visual-antmaze-medium-navigate-singletask-v0", "ogbench/visual-antmaze-medium-navigate-singletask-task1-v0"),
    ("cube-quadruple-play-100m-singletask-v0", "ogbench/cube-quadruple-play-100m-singletask-task2-v0"),
])  # fmt: skip
def test_an_id_from_a_paper_means_one_set(alias, name):
    assert catalog.card(alias).id == name


def test_sets_that_sound_alike_never_share_a_column():
    d4rl, minari = catalog.card("hopper-medium-v2"), catalog.card("mujoco/hopper/medium-v0")
    assert d4rl.id != minari.id and d4rl.env != minari.env
    assert any("Minari" in note for note in d4rl.notes)
    assert any("not D4RL's hopper-medium-v2" in note for note in minari.notes)
    assert catalog.card("maze2d-umaze-v1").id != catalog.card("D4RL/pointmaze/umaze-v2").id


@pytest.mark.parametrize("wrong, near", [
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
])  # fmt: skip
def test_an_unknown_id_names_the_nearest(wrong, near):
    with pytest.raises(UserError, match="unknown task") as error:
        tasks.load_task(wrong)
    assert near in str(error.value) and "\n" not in str(error.value)


# --- from an id to data ---------------------------------------------------------------------


def test_a_file_in_the_cache_is_a_task(cache):
    (cache / "d4rl").mkdir(parents=True)
    episodes = [e._replace(obs=np.tile(e.obs, (1, 4))[:, :11], action=np.tile(e.action, (1, 2))[:, :3]) for e in make([5, 6])]  # fmt: skip
    write_d4rl(episodes, cache / "d4rl" / "hopper_medium-v2.hdf5")
    task = tasks.load_task("hopper-medium-v2")
    data, spec = task.load()
    assert fingerprint(data) == fingerprint(from_episodes(episodes))
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps) == (11, 3, 1000)
    assert len(task.sha256) == 64 and task.ready() is task
    assert task.normalise(3234.3, None) == pytest.approx(100)
    composed = tasks.load_task("truncate@3:hopper-medium-v2")
    assert composed.load()[0].n_transitions == 3 and composed.env == "Hopper-v4"
    assert composed.sha256 not in (task.sha256, tasks.NOT_HERE)


def test_a_file_of_another_set_under_the_name_is_refused(cache):
    (cache / "d4rl").mkdir(parents=True)
    write_d4rl(make([5, 6]), cache / "d4rl" / "hopper_medium-v2.hdf5")
    with pytest.raises(UserError, match="has 3 features of observations, it should be 11"):
        tasks.load_task("hopper-medium-v2").load()


def test_a_file_that_changes_after_the_plan_is_refused(cache):
    (cache / "ogbench").mkdir(parents=True)
    path = cache / "ogbench" / "cube-single-play-v0.npz"
    write_ogbench(make([5, 6]), path)
    task = tasks.load_task("cube-single-play-v0")
    task.load()
    write_ogbench(make([5, 6, 7]), path)
    with pytest.raises(UserError, match="not the file it was"):
        task.load()


def test_a_known_severe_defect_warns_once(cache):
    (cache / "d4rl").mkdir(parents=True)
    name = Path(catalog.card("antmaze-medium-play-v0").files[0].name).name
    episodes = [e._replace(obs=np.tile(e.obs, (1, 10))[:, :29], action=np.tile(e.action, (1, 4))) for e in make([40, 30])]  # fmt: skip
    write_d4rl(episodes, cache / "d4rl" / name)
    with pytest.warns(DataWarning, match="time-outs are out of step"):
        tasks.load_task("antmaze-medium-play-v0").load()
    tasks.load_task("antmaze-medium-play-v0").load()


def test_without_the_file_and_the_network_one_line_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("offbench.files.time.sleep", lambda s: None)
    task = tasks.load_task("hopper-medium-v2")
    assert task.sha256 == tasks.NOT_HERE
    with pytest.raises(UserError, match=r"http://rail.*hopper_medium-v2\.hdf5.* into ") as error:
        task.ready()
    assert "\n" not in str(error.value)
    assert not [p for p in cache.rglob("*.hdf5")]


def test_the_parts_of_a_large_set_are_put_there_by_hand(cache):
    card = catalog.card("cube-quadruple-play-100m-v0")
    with pytest.raises(UserError, match="put its files into"):
        catalog.fetch(card)
    folder = cache / "ogbench" / "cube-quadruple-play-100m-v0"
    folder.mkdir(parents=True)
    for i in range(2):
        write_ogbench(make([5], seed=i), folder / f"x-{i:03d}.npz")
    assert tasks.load_task(card.id).load()[0].n_episodes == 2


def test_own_data_are_a_task_by_path(tmp_path, cache):
    from offbench.config import plan

    write_d4rl(make([5, 6]), tmp_path / "mine.hdf5")
    made = plan(["method=bc", f"task.data={tmp_path}/mine.hdf5", "task.env=HalfCheetah-v5"], bench=False)
    (cell,) = made.cells
    assert (cell.task.id, cell.task.env, cell.task.max_episode_steps) == ("own/mine", "HalfCheetah-v5", 1000)
    assert cell.task.load()[0].n_transitions == 11 and cell.runs()[0].dataset_sha256 == cell.task.sha256
    for words, given in {
        "does not exist": ["task.data=/nowhere.hdf5", "task.env=Hopper-v5"],
        "environment to evaluate in is missing": [f"task.data={tmp_path}/mine.hdf5"],
        "task.data=PATH is missing": ["task.env=Hopper-v5"],
        "did you mean 'task.env'": [f"task.data={tmp_path}/mine.hdf5", "task.enf=Hopper-v5"],
        "not installed": [f"task.data={tmp_path}/mine.hdf5", "task.env=Nowhere-v5"],
    }.items():
        with pytest.raises(UserError, match=words):
            plan(["method=bc", *given], bench=False)


# --- what a set is judged in ----------------------------------------------------------------


def judged():
    """One id for every environment with its arguments, pictures left out."""
    found = {}
    for name in catalog.ids():
        card = catalog.card(name)
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
    card, task = catalog.card(name), tasks.load_task(name)
    env = task.make_env()
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
        "antmaze-eval-umaze-v0": "not built here",
        "powderworld-easy-play-v0": "choices",
    }.items():
        with pytest.raises(UserError, match=words):
            tasks.load_task(name).make_env()


def test_minigrid_is_one_line_where_its_package_is_missing():
    pytest.importorskip("gymnasium")
    try:
        import minigrid  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install minigrid"):
            tasks.load_task("minigrid-fourrooms-v0").make_env()
    else:
        env = tasks.load_task("minigrid-fourrooms-v0").make_env()
        assert env.observation_space.shape == (147,) and env.action_space.shape == (7,)


@pytest.mark.env
def test_an_ant_reaches_a_goal_of_d4rl_where_it_is(monkeypatch):
    task = tasks.load_task("antmaze-umaze-v2")
    env = task.make_env()
    obs, _ = env.reset(seed=0)
    assert np.abs(obs[:2]).max() < 0.2  # positions are relative to the start
    inner = env.unwrapped
    goal = inner.goal - inner.maze.unique_reset_locations[0]
    assert ((goal >= [0, 8]) & (goal <= [1, 9])).all()  # two cells of 4 down, a quarter more at most
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
    env = tasks.load_task(f"maze2d-{size}-v1").make_env()
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
    env = tasks.load_task("maze2d-large-v1").make_env()
    maze = env.unwrapped.maze
    free = {
        (round(x + maze.x_map_center - 0.5), round(y + maze.y_map_center - 0.5))
        for x, y in [*maze.unique_reset_locations, *maze.unique_goal_locations]
    }
    rows = MAZE2D["large"]
    assert free == {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell != "#"}
    env.close()


def test_maps_are_turned_so_that_frames_agree():
    assert antmaze_map("umaze")[1][1] == "g" and ANTMAZE["umaze"][3][1] == "G"
    turned = maze2d_map("large")
    assert (len(turned), len(turned[0])) == (len(MAZE2D["large"][0]), len(MAZE2D["large"]))


@pytest.mark.env
def test_the_kitchen_shows_positions_and_the_goal_of_its_tasks():
    env = tasks.load_task("kitchen-mixed-v0").make_env()
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
        task = tasks.load_task(name)
        assert task.refused is None
        assert name in compose.MIXED or task.id == name  # spelled as its column is


def test_the_suites_are_of_the_published_size():
    size = {p.stem: len(yaml.safe_load(p.read_text())["tasks"]) for p in SUITES}
    assert size["d4rl-gym-9"] == 9 and size["d4rl-gym-18"] == 18
    assert size["d4rl-antmaze"] == 6 and size["mixed"] == 32 and size["ogbench-singletask"] == 50


def test_no_two_columns_of_all_suites_are_the_same_data_under_two_names():
    names = {n for p in SUITES for n in yaml.safe_load(p.read_text())["tasks"]}
    assert len({tasks.load_task(n).id for n in names}) == len(names)


