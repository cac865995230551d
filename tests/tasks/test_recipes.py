"""The shipped data sets against their manifests, and the recipes that made them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from offbench.errors import UserError
from offbench.io import sha256_of, slug
from offbench.recipes import COLLECTIONS, DATASETS, RECIPES, collect, find, make
from offbench.recipes.policy import load_policy, save_policy

pytest.importorskip("gymnasium")
minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

store = importlib.import_module("offbench.recipes.store")
locomotion = importlib.import_module("offbench.recipes.locomotion")

OGBENCH = [
    name for name, recipe in RECIPES.items() if "ogbench" in recipe.function and recipe.shipped
]
LOCOMOTION = [name for name, recipe in RECIPES.items() if "locomotion" in recipe.function]
SHIPPED = [name for name, recipe in RECIPES.items() if recipe.shipped]


def manifest(dataset_id: str) -> dict[str, Any]:
    return yaml.safe_load((DATASETS / f"{slug(dataset_id)}.yaml").read_text())


@pytest.fixture(scope="module")
def episodes() -> Any:
    """Episodes of a shipped set, read once."""
    read: dict[str, list[Any]] = {}

    def get(dataset_id: str) -> list[Any]:
        if dataset_id not in read:
            with store.minari_root(DATASETS / "minari"):
                read[dataset_id] = list(minari.load_dataset(dataset_id).iterate_episodes())
        return read[dataset_id]

    return get


@pytest.mark.parametrize("dataset_id", SHIPPED)
def test_shipped_set_matches_manifest(dataset_id: str, episodes: Any) -> None:
    facts, data = manifest(dataset_id), episodes(dataset_id)
    file = DATASETS / "minari" / dataset_id / "data" / "main_data.hdf5"
    assert facts["id"] == dataset_id
    assert sha256_of(file) == facts["sha256"]
    assert store.data_digest(data) == facts["data_sha256"]
    assert len(data) == facts["episodes"]
    assert sum(len(e.rewards) for e in data) == facts["rows"]
    assert sum(int(e.terminations.sum()) for e in data) == facts["terminations"]
    returns = [store.episode_return(e) for e in data]
    assert store.quantiles(returns).items() <= facts["returns"].items()
    assert store.positive_variance(returns) == pytest.approx(
        facts["positive_sided_variance"], rel=1e-6, abs=1e-3
    )


@pytest.mark.parametrize("dataset_id", RECIPES)
def test_manifest_is_of_the_recipe(dataset_id: str) -> None:
    facts, recipe = manifest(dataset_id), RECIPES[dataset_id]
    assert facts["id"] == dataset_id and facts["summary"] == recipe.summary
    assert facts["recipe"]["function"] == recipe.function
    assert facts["recipe"]["options"] == dict(recipe.options)
    assert facts["env"]["id"] == recipe.env


@pytest.mark.parametrize("dataset_id", SHIPPED)
def test_shipped_set_is_consistent(dataset_id: str, episodes: Any) -> None:
    facts = manifest(dataset_id)
    inside = False
    for e in episodes(dataset_id):
        steps = len(e.rewards)
        assert e.observations.shape[0] == steps + 1
        assert e.actions.shape[0] == e.terminations.shape[0] == e.truncations.shape[0] == steps
        assert e.observations.dtype == e.actions.dtype == e.rewards.dtype == np.float32
        assert np.isfinite(e.observations).all() and np.isfinite(e.rewards).all()
        assert np.abs(e.actions).max() <= 1.0
        assert not e.truncations[:-1].any()
        assert e.terminations[-1] or e.truncations[-1]
        inside |= bool(e.terminations[:-1].any())
    assert inside == facts["terminal_inside"]


def test_all_sets_fit_the_budget() -> None:
    assert sum(manifest(name)["bytes"] for name in SHIPPED) < 24_000_000


@pytest.mark.env
@pytest.mark.parametrize("dataset_id", [LOCOMOTION[0], OGBENCH[0]])
def test_environment_is_recovered(dataset_id: str) -> None:
    if dataset_id in OGBENCH:
        pytest.importorskip("ogbench")
    with store.minari_root(DATASETS / "minari"):
        dataset = minari.load_dataset(dataset_id)
    env = dataset.recover_environment()
    assert env.spec.id == manifest(dataset_id)["env"]["id"]
    assert env.spec.max_episode_steps == manifest(dataset_id)["max_episode_steps"]
    obs, _ = env.reset(seed=0)
    assert obs.shape == dataset.observation_space.shape
    env.close()


def test_five_percent_of_expert5_is_expert(episodes: Any) -> None:
    dataset_id = "offbench/halfcheetah/expert5-v0"
    facts, data = manifest(dataset_id), episodes(dataset_id)
    expert = facts["policies"][1]
    assert expert["rows"] / facts["rows"] == pytest.approx(0.05)
    returns = np.asarray([store.episode_return(e) for e in data])
    half = (facts["score"]["ref_min"] + facts["score"]["ref_max"]) / 2
    assert np.flatnonzero(returns > half).tolist() == expert["episode_ids"]


@pytest.mark.parametrize("dataset_id", LOCOMOTION)
def test_policies_are_those_of_the_manifest(dataset_id: str) -> None:
    facts = manifest(dataset_id)
    for entry in facts["policies"]:
        if "sha256" in entry:
            assert sha256_of(DATASETS / "policies" / entry["policy"]) == entry["sha256"]
    assert sum(entry["rows"] for entry in facts["policies"]) == facts["rows"]
    assert facts["score"]["ref_min"] < facts["score"]["ref_max"]


@pytest.mark.parametrize("robot", ["hopper", "halfcheetah"])
def test_medium_expert_is_medium_and_expert_in_halves(robot: str) -> None:
    medium, both = (manifest(f"offbench/{robot}/{kind}-v0") for kind in ("medium", "medium-expert"))
    replay = manifest(f"offbench/{robot}/medium-replay-v0")
    worse, better = both["policies"]
    assert [p["policy"] for p in medium["policies"]] == [worse["policy"]]
    assert worse["policy"] == replay["policies"][-1]["policy"]  # where the replay ends
    assert better["policy"] == max(
        f"{robot}/{path.name}" for path in (DATASETS / "policies" / robot).glob("*.npz")
    )
    for half in (worse, better):  # whole episodes: to within one
        assert half["rows"] == pytest.approx(both["rows"] / 2, abs=both["max_episode_steps"] / 2)
    assert replay["returns"]["mean"] < medium["returns"]["mean"] < both["returns"]["mean"]


@pytest.mark.env
@pytest.mark.parametrize("dataset_id", [name for name in LOCOMOTION if name in SHIPPED])
def test_shipped_episode_is_collected_again(dataset_id: str, episodes: Any) -> None:
    """Same seed, same policy, same versions: the same start of the episode."""
    facts = manifest(dataset_id)
    here = store.versions()
    if any(here[k] != facts["versions"][k] for k in ("numpy", "gymnasium", "mujoco")):
        pytest.skip("other versions than the set was made with")
    seed = next(locomotion.seeds(facts["recipe"]["options"]["seed"]))
    with store.minari_root(DATASETS / "minari"):
        stored = minari.load_dataset(dataset_id).storage
        (place,) = [
            i
            for i, meta in enumerate(stored.get_episode_metadata(range(facts["episodes"])))
            if meta["seed"] == seed
        ]
    env = locomotion._make(facts["env"]["id"])
    if dataset_id.endswith("expert5-v0"):
        act = locomotion.uniform(env.action_space.shape[0])
    else:
        act = load_policy(DATASETS / "policies" / facts["policies"][0]["policy"]).act
    made, shipped = locomotion.rollout(env, act, seed), episodes(dataset_id)[place]
    # Not to the bit: another processor may round the last bit of the policy's output otherwise.
    np.testing.assert_allclose(made.actions[:20], shipped.actions[:20], atol=1e-5)
    np.testing.assert_allclose(made.observations[:20], shipped.observations[:20], atol=1e-4)


@pytest.mark.parametrize("dataset_id", OGBENCH)
def test_relabelling_agrees_with_own_computation(dataset_id: str, episodes: Any) -> None:
    """Rewards follow from the observations: the goals are the package's task tables, written
    out here."""
    solved = 0
    for e in episodes(dataset_id):
        states = e.observations[:-1].astype(np.float64)
        if "pointmaze" in dataset_id:  # task 1 ends in cell (6, 6): 4 * 6 - 4 = 20
            distance, radius = np.linalg.norm(states - [20.0, 20.0], axis=-1), 1.0
        else:  # task 2 ends at (0.50, 0, 0.02); positions are stored as 10 * (p - (0.425, 0, 0))
            cube = states[:, 19:22] / 10.0 + [0.425, 0.0, 0.0]
            distance, radius = np.linalg.norm(cube - [0.50, 0.0, 0.02], axis=-1), 0.04
        clear = np.abs(distance - radius) > 1e-6
        success = distance <= radius
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(e.rewards[clear], success[clear].astype(np.float32) - 1.0)
        np.testing.assert_array_equal(e.terminations[clear], success[clear])
        solved += int(success.sum())
    assert solved > 0


@pytest.mark.env
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize("dataset_id", OGBENCH)
def test_small_ogbench_collection_is_deterministic(dataset_id: str) -> None:
    pytest.importorskip("ogbench")
    module = importlib.import_module("offbench.recipes.ogbench_oracles")
    sets = importlib.import_module("offbench.recipes.ogbench_play")
    begin = module.begin_navigate if "pointmaze" in dataset_id else module.begin_arm()
    names = sets.POINTMAZE if "pointmaze" in dataset_id else sets.CUBE
    env = module.make_env(names[0], 40)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, between, second = (module.roll(env, begin, 40, seed) for seed in (3, 4, 3))
    for a, b, c in zip(first[1:5], between[1:5], second[1:5], strict=True):
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.env
@pytest.mark.slow
@pytest.mark.parametrize("dataset_id", OGBENCH)
def test_first_trajectory_of_an_ogbench_set_is_collected_again(
    dataset_id: str, episodes: Any
) -> None:
    """The whole first trajectory, by the loop that also makes the large sets."""
    pytest.importorskip("ogbench")
    facts, here = manifest(dataset_id), store.versions()
    if any(here[k] != facts["versions"][k] for k in ("numpy", "gymnasium", "mujoco", "ogbench")):
        pytest.skip("other versions than the set was made with")
    module = importlib.import_module("offbench.recipes.ogbench_oracles")
    sets = importlib.import_module("offbench.recipes.ogbench_play")
    maze = "pointmaze" in dataset_id
    env = module.make_env((sets.POINTMAZE if maze else sets.CUBE)[0], 1000)
    begin = module.begin_navigate if maze else module.begin_arm()
    seed = next(locomotion.seeds(facts["recipe"]["options"]["seed"]))
    made, shipped = module.roll(env, begin, 1000, seed), episodes(dataset_id)[0]
    np.testing.assert_allclose(made.actions[:20], shipped.actions[:20], atol=1e-5)
    np.testing.assert_allclose(made.observations[:20], shipped.observations[:20], atol=1e-4)


PUBLISHED = [
    "ogbench/pointmaze-medium-navigate-v0",
    "ogbench/pointmaze-teleport-stitch-v0",
    "ogbench/cube-double-noisy-v0",
    "ogbench/scene-play-v0",
    "ogbench/scene-noisy-v0",
    "ogbench/puzzle-3x3-play-v0",
    "ogbench/puzzle-4x4-noisy-v0",
]


@pytest.mark.slow
@pytest.mark.env
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize("dataset_id", PUBLISHED)
def test_a_collected_set_is_one_for_ogbench_itself(dataset_id: str, tmp_path: Path) -> None:
    ogbench = pytest.importorskip("ogbench")
    seen: list[tuple[int, int]] = []
    path = collect(dataset_id, tmp_path, steps=50, length=25, progress=lambda *a: seen.append(a))
    name = dataset_id.removeprefix("ogbench/")
    assert path == tmp_path / f"{name}.npz" and seen[0] == (0, 3) and seen[-1] == (3, 3)
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {f"{name}.npz", f"{name}-val.npz", f"{name}.regenerated.yaml"}
    env, train, val = ogbench.make_env_and_datasets(name, dataset_path=str(path))
    for data, rows in ((train, 50), (val, 25)):
        assert data["observations"].shape == (rows, *env.observation_space.shape)
        assert data["actions"].shape == (rows, *env.action_space.shape)
        assert data["observations"].dtype == data["actions"].dtype == np.float32
        assert np.flatnonzero(data["terminals"]).tolist() == list(range(24, rows, 25))
        assert np.isfinite(data["observations"]).all() and np.abs(data["actions"]).max() <= 1
    np.testing.assert_array_equal(train["next_observations"][:24], train["observations"][1:25])
    compact = ogbench.load_dataset(path, compact_dataset=True)
    assert compact["valids"].sum() == 50 and len(compact["valids"]) == 52
    single = name.replace("-v0", "-singletask-v0")
    env, train, _ = ogbench.make_env_and_datasets(single, dataset_path=str(path))
    assert train["rewards"].shape == train["masks"].shape == (50,) and train["rewards"].max() <= 0
    raw = np.load(path)
    assert raw["terminals"].dtype == bool and raw["qpos"].dtype == np.float32
    assert ("button_states" in raw) == ("scene" in name or "puzzle" in name)
    if "button_states" in raw:
        assert raw["button_states"].dtype == np.int64
    label = yaml.safe_load((tmp_path / f"{name}.regenerated.yaml").read_text())
    assert label["regenerated"] is True and label["instead_of"] == dataset_id
    assert label["id"] != dataset_id
    assert label["files"]["train"]["sha256"] == sha256_of(path)
    assert label["files"]["train"]["rows"] == 50 and label["files"]["val"]["episodes"] == 1


NAVIGATE = "ogbench/pointmaze-medium-navigate-v0"


@pytest.mark.env
def test_a_collection_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    whole = collect(NAVIGATE, tmp_path / "a", steps=200, length=20, seed=7)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(NAVIGATE, tmp_path / "b", steps=200, length=20, seed=7, progress=stop)
    pieces = sorted((tmp_path / "b").glob("*.pieces/*.npz"))
    assert len(pieces) == 4 and not list((tmp_path / "b").glob("*.npz"))
    pieces[0].write_bytes(b"cut")  # as by a disk that was full
    dates = [p.stat().st_mtime_ns for p in pieces]
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            assert [p.stat().st_mtime_ns for p in pieces][1:] == dates[1:]

    again = collect(NAVIGATE, tmp_path / "b", steps=200, length=20, seed=7, progress=note)
    assert seen[0] == (3, 11) and seen[-1] == (11, 11)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert again.name == whole.name


@pytest.mark.env
def test_pieces_of_another_plan_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(NAVIGATE, tmp_path, steps=60, length=20, seed=7, progress=stop)
    with pytest.raises(UserError, match=r"another seed \(7, now 8\)"):
        collect(NAVIGATE, tmp_path, steps=60, length=20, seed=8)
    with pytest.raises(UserError, match="workers=0"):
        collect(NAVIGATE, tmp_path, steps=60, length=20, seed=7, workers=0)
    with pytest.raises(UserError, match="steps=0"):
        collect(NAVIGATE, tmp_path, steps=0)


@pytest.mark.env
def test_a_larger_collection_begins_with_the_smaller_one(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    small, large, other = (
        np.load(collect(NAVIGATE, tmp_path / str(i), steps=steps, length=20, seed=seed))
        for i, (steps, seed) in enumerate([(40, 7), (75, 7), (40, 8)])
    )
    for name in small.files:
        np.testing.assert_array_equal(large[name][:42], small[name])
    assert len(large["terminals"]) == 84
    assert not np.array_equal(other["observations"], small["observations"])
    val = [np.load(tmp_path / d / "pointmaze-medium-navigate-v0-val.npz") for d in "01"]
    np.testing.assert_array_equal(val[0]["observations"], val[1]["observations"])
    assert not np.array_equal(val[0]["observations"], small["observations"][:21])


@pytest.mark.env
@pytest.mark.slow
@pytest.mark.parametrize("dataset_id", ["ogbench/cube-double-noisy-v0", "ogbench/scene-play-v0"])
def test_two_workers_make_the_file_of_one(dataset_id: str, tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    one, two = (
        collect(dataset_id, tmp_path / str(n), steps=120, length=30, workers=n) for n in (1, 2)
    )
    assert one.read_bytes() == two.read_bytes()


def test_a_cube_out_of_view_makes_a_scene_unhealthy() -> None:
    sets = importlib.import_module("offbench.recipes.ogbench_sets")
    qpos = np.zeros((5, 25), np.float32)
    assert sets._in_view(qpos)
    for y, z, good in ((0.3, 0.0, False), (-0.35, 0.02, False), (-0.35, 0.07, True)):
        qpos[3, 15], qpos[3, 16] = y, z
        assert sets._in_view(qpos) is good


def test_goals_to_stitch_are_four_cells_away() -> None:
    oracles = importlib.import_module("offbench.recipes.ogbench_oracles")
    row = [(0, j) for j in range(7)]
    assert oracles._at_distance(row, (0, 1), 4) == [(0, 5)]
    assert oracles._at_distance(row, (0, 3), 4) == []
    assert set(oracles._at_distance([*row, (1, 4)], (0, 0), 5)) == {(0, 5), (1, 4)}


@pytest.mark.env
@pytest.mark.parametrize("maze", ["umaze", pytest.param("large-dense", marks=pytest.mark.slow)])
def test_a_pointmaze_set_is_one_for_minari_itself(
    maze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gymnasium_robotics")
    module = importlib.import_module("offbench.recipes.pointmaze")
    monkeypatch.setattr(module, "_SCORE_EPISODES", 2)
    dataset_id = f"offbench/pointmaze/{maze}-v0"
    folder = collect(dataset_id, tmp_path / "a", steps=1100, run=500)
    assert folder == tmp_path / "a" / "minari" / dataset_id
    facts = yaml.safe_load((tmp_path / "a" / f"{slug(dataset_id)}.yaml").read_text())
    assert facts["regenerated"] is True and facts["rows"] == 1100
    assert facts["score"]["oracle_success"] == 1.0
    with store.minari_root(tmp_path / "a" / "minari"):
        dataset = minari.load_dataset(dataset_id)
        made = list(dataset.iterate_episodes())
        env = dataset.recover_environment()
    assert env.spec.id.removesuffix("-v3") == facts["env"]["id"].removesuffix("-v3")
    assert env.observation_space == dataset.observation_space
    env.close()
    assert store.data_digest(made) == facts["data_sha256"]
    for before, e in zip([None, *made], made):
        goal, place = e.observations["desired_goal"], e.observations["achieved_goal"]
        assert len(goal) == len(e.rewards) + 1 and (goal == goal[0]).all()
        np.testing.assert_array_equal(place, e.observations["observation"][:, :2])
        assert e.truncations[-1] and not e.truncations[:-1].any() and not e.terminations.any()
        near = np.linalg.norm(place[1:] - goal[1:], axis=1) <= 0.45
        assert not near[:-1].any()  # an episode ends when its goal is reached
        if (
            before is not None
            and np.linalg.norm(
                before.observations["achieved_goal"][-1] - before.observations["desired_goal"][-1]
            )
            <= 0.45
        ):
            np.testing.assert_array_equal(
                before.observations["observation"][-1], e.observations["observation"][0]
            )
            assert (before.observations["desired_goal"][0] != goal[0]).any()  # Minari issue 265
    again = collect(dataset_id, tmp_path / "b", steps=1100, run=500)
    name = "data/main_data.hdf5"
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_collections_are_those_that_need_no_checkpoint() -> None:
    published = {c for c in COLLECTIONS if c.startswith("ogbench/")}
    assert len(published) == 26 and len(COLLECTIONS) == 34
    assert COLLECTIONS["ogbench/cube-quadruple-play-v0"].steps == 5_000_000
    assert COLLECTIONS["ogbench/pointmaze-giant-navigate-v0"].options["length"] == 2000
    with pytest.raises(UserError, match="did you mean 'ogbench/cube-single-play-v0'"):
        collect("ogbench/cube-singel-play-v0", Path("nowhere"))


def tiny_policies(root: Path) -> None:
    """Two random snapshots of a Hopper policy, and a score that needs no measuring."""
    rng = np.random.default_rng(0)
    for step in (0, 10):
        arrays = {
            "obs_mean": np.zeros(11),
            "obs_scale": np.ones(11),
            "obs_clip": np.asarray(10.0),
            "log_std": np.zeros(3),
            "w0": rng.normal(size=(11, 8)),
            "b0": np.zeros(8),
            "w1": rng.normal(size=(8, 3)),
            "b1": np.zeros(3),
        }
        path = root / "policies" / "hopper" / f"{step:07d}.npz"
        save_policy(path, arrays, activation="tanh", squash=False)


TINY = {
    "offbench/hopper/medium-replay-v0": ({"last": 10}, [0, 10]),
    "offbench/hopper/medium-v0": ({"steps": [10]}, [10]),
    "offbench/hopper/medium-expert-v0": ({"steps": [10, 0]}, [10, 0]),
}


@pytest.mark.env
@pytest.mark.parametrize(
    "dataset_id",
    [n if n.endswith("replay-v0") else pytest.param(n, marks=pytest.mark.slow) for n in TINY],
)
def test_tiny_recipe_is_deterministic(
    dataset_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    import offbench.recipes as recipes

    which, steps = TINY[dataset_id]
    options = {"name": "hopper", "rows": 200, "seed": 1} | which
    small = {dataset_id: replace(RECIPES[dataset_id], options=options)}
    monkeypatch.setattr(recipes, "RECIPES", small)
    monkeypatch.setattr(locomotion, "_REFERENCE_EPISODES", 2)
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[int, int]] = []
    facts = []
    for root in (tmp_path / "a", Path("b")):  # a relative folder too
        tiny_policies(root)
        folder = make(dataset_id, root, progress=lambda done, rows: seen.append((done, rows)))
        assert folder == tmp_path / root / "minari" / dataset_id
        facts.append(yaml.safe_load((root / f"{slug(dataset_id)}.yaml").read_text()))
        assert not list(root.glob(".making-*"))
    assert facts[0]["data_sha256"] == facts[1]["data_sha256"]
    assert facts[0]["sha256"] == facts[1]["sha256"]
    assert facts[0]["rows"] >= 200 and seen[-1] == (facts[0]["rows"], 200)
    policies = facts[0]["policies"]
    assert [p["policy"] for p in policies] == [f"hopper/{step:07d}.npz" for step in steps]
    assert 0 <= policies[0]["rows"] - 200 / len(steps) < 100  # an episode falls within 100 steps
    make(dataset_id, tmp_path / "a")  # over what is there
    with store.minari_root(tmp_path / "a" / "minari"):
        assert minari.load_dataset(dataset_id).total_steps == facts[0]["rows"]


def test_numpy_policy_equals_stable_baselines(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    torch = pytest.importorskip("torch")
    import gymnasium as gym
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    from offbench.recipes.behaviour import save_trpo

    torch.manual_seed(0)
    box = gym.spaces.Box
    net = ActorCriticPolicy(
        box(-np.inf, np.inf, (5,)), box(-1.0, 1.0, (2,)), lambda _: 1e-3, log_std_init=-0.5
    )
    with torch.no_grad():
        net.action_net.weight.mul_(300.0)
    rng = np.random.default_rng(0)
    rms = RunningMeanStd(shape=(5,))
    rms.update(rng.normal(2.0, 3.0, (100, 5)))
    save_trpo(tmp_path / "policy.npz", net, rms)
    policy = load_policy(tmp_path / "policy.npz")
    obs = rng.normal(2.0, 3.0, (64, 5))
    seen = np.clip((obs - rms.mean) / np.sqrt(rms.var + 1e-8), -10.0, 10.0).astype(np.float32)
    with torch.no_grad():
        gauss = net.get_distribution(torch.as_tensor(seen)).distribution
    mean, std = policy.distribution(obs)
    np.testing.assert_allclose(mean, gauss.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(std, gauss.stddev.numpy(), rtol=1e-6)
    np.testing.assert_allclose(policy.act(obs), np.clip(mean, -1, 1), atol=1e-6)
    assert (np.abs(mean) > 1).any()


def test_squashed_policy_is_bounded_and_splits_its_output(tmp_path: Path) -> None:
    arrays = {
        "obs_mean": np.zeros(2),
        "obs_scale": np.ones(2),
        "obs_clip": np.asarray(np.inf),
        "w0": np.eye(2, 4),
        "b0": np.asarray([0.0, 0.0, -1.0, 9.0]),
    }
    save_policy(tmp_path / "policy.npz", arrays, activation="relu", squash=True)
    policy = load_policy(tmp_path / "policy.npz")
    mean, std = policy.distribution(np.asarray([0.5, -3.0]))
    np.testing.assert_allclose(mean, [0.5, -3.0])
    np.testing.assert_allclose(std, np.exp([-1.0, 2.0]))
    np.testing.assert_allclose(policy.act(np.asarray([0.5, -3.0])), np.tanh([0.5, -3.0]), rtol=1e-6)
    assert np.abs(policy.act(np.full((100, 2), 9.0), np.random.default_rng(0))).max() <= 1.0


def test_unknown_id_names_near_ones() -> None:
    with pytest.raises(ValueError, match="offbench/hopper/medium-replay-v0"):
        find("offbench/hoper/medium-replay-v0")
    with pytest.raises(ValueError, match="offbench/cube-single-play-v0"):
        make("cube-single-play")
    with pytest.raises(ValueError, match="offbench/pointmaze-medium-navigate-v0"):
        find("zzz")


def test_missing_policies_say_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import offbench.recipes as recipes

    monkeypatch.setattr(recipes, "DATASETS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"offbench\.recipes\.behaviour hopper"):
        locomotion.policy_folder(tmp_path, "hopper")


def test_importing_recipes_is_light() -> None:
    code = (
        "import sys, json, offbench.recipes; "
        "heavy = ('gymnasium', 'minari', 'h5py', 'ogbench'); "
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(DATASETS.parent)},
    )
    assert json.loads(run.stdout) == []
