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

from offbench.recipes import DATASETS, RECIPES, find, make, slug
from offbench.recipes.policy import load_policy, policy_digest, save_policy

pytest.importorskip("gymnasium")
minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

store = importlib.import_module("offbench.recipes.store")
locomotion = importlib.import_module("offbench.recipes.locomotion")

OGBENCH = [name for name, recipe in RECIPES.items() if "ogbench" in recipe.function]
LOCOMOTION = [name for name in RECIPES if name not in OGBENCH]


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


@pytest.mark.parametrize("dataset_id", RECIPES)
def test_shipped_set_matches_manifest(dataset_id: str, episodes: Any) -> None:
    facts, data = manifest(dataset_id), episodes(dataset_id)
    file = DATASETS / "minari" / dataset_id / "data" / "main_data.hdf5"
    assert facts["id"] == dataset_id
    assert store.file_digest(file) == facts["sha256"]
    assert store.data_digest(data) == facts["data_sha256"]
    assert len(data) == facts["episodes"]
    assert sum(len(e.rewards) for e in data) == facts["rows"]
    assert sum(int(e.terminations.sum()) for e in data) == facts["terminations"]
    returns = [store.episode_return(e) for e in data]
    assert store.quantiles(returns).items() <= facts["returns"].items()
    assert store.positive_variance(returns) == pytest.approx(
        facts["positive_sided_variance"], rel=1e-6, abs=1e-3
    )
    assert facts["recipe"]["options"] == dict(RECIPES[dataset_id].options)


@pytest.mark.parametrize("dataset_id", RECIPES)
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
    assert sum(manifest(name)["bytes"] for name in RECIPES) < 24_000_000


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
            assert policy_digest(DATASETS / "policies" / entry["policy"]) == entry["sha256"]
    assert sum(entry["rows"] for entry in facts["policies"]) == facts["rows"]
    assert facts["score"]["ref_min"] < facts["score"]["ref_max"]


@pytest.mark.env
@pytest.mark.parametrize("dataset_id", LOCOMOTION)
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
    module = importlib.import_module("offbench.recipes.ogbench_play")
    once = module._navigate_once if "pointmaze" in dataset_id else module._play_once
    names = module.POINTMAZE if "pointmaze" in dataset_id else module.CUBE
    mode = {} if "pointmaze" in dataset_id else {"mode": "data_collection"}
    env = module._make(names[0], terminate_at_goal=False, **mode)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, between, second = (once(env, 40, seed) for seed in (3, 4, 3))
    for a, b, c in zip(first[1:], between[1:], second[1:], strict=True):
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


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


@pytest.mark.env
def test_tiny_recipe_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    import offbench.recipes as recipes

    dataset_id = "offbench/hopper/medium-replay-v0"
    options = {"name": "hopper", "rows": 200, "last": 10, "seed": 1}
    small = {dataset_id: replace(RECIPES[dataset_id], options=options)}
    monkeypatch.setattr(recipes, "RECIPES", small)
    monkeypatch.setattr(locomotion, "_REFERENCE_EPISODES", 2)
    seen: list[tuple[int, int]] = []
    facts = []
    for name in ("a", "b"):
        root = tmp_path / name
        tiny_policies(root)
        folder = make(dataset_id, root, progress=lambda done, rows: seen.append((done, rows)))
        assert folder == root / "minari" / dataset_id
        facts.append(yaml.safe_load((root / f"{slug(dataset_id)}.yaml").read_text()))
        assert not list(root.glob(".making-*"))
    assert facts[0]["data_sha256"] == facts[1]["data_sha256"]
    assert facts[0]["sha256"] == facts[1]["sha256"]
    assert facts[0]["rows"] >= 200 and seen[-1] == (facts[0]["rows"], 200)
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
