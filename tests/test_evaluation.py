"""Evaluation: the same episodes for everyone, dealt out beforehand, and no trace left in training."""

import numpy as np
import pandas as pd
import pytest
import torch

from offbench import rng
from offbench.evaluation import EnvPool, env_seeds, evaluate, make_policy
from offbench.methods.bc import BC
from offbench.pipeline import make_pipeline
from offbench.tasks import load_task
from offbench.types import Plan, Policy, Spec, TimeStep
from offbench.views import Chunk

HOPPER = "offbench/hopper/medium-replay-v0"
MAZE = "offbench/pointmaze-medium-navigate-v0"
STATE = {"x": torch.zeros(2, 1)}
pytestmark = pytest.mark.env


def random_policy(action_dim: int) -> Policy:
    """Actions that depend on the key alone, so rounding of a forward pass plays no part."""

    def act(state, step, carry, key):
        draw = torch.stack([rng.uniform(k, (action_dim,)) for k in key.flatten()])
        return (2 * draw - 1).view(*key.shape, action_dim), carry

    return Policy(lambda n, e: (), act)


def test_streams_are_disjoint_and_the_same_for_everyone():
    test, monitor, tune = (env_seeds(HOPPER, s, 500) for s in ("test", "monitor", "tune"))
    assert len({*test, *monitor, *tune}) == 1500
    assert test == env_seeds(HOPPER, "test", 500) and test[:10] == env_seeds(HOPPER, "test", 10)
    assert not set(test) & set(env_seeds(MAZE, "test", 500))


def test_an_episode_does_not_depend_on_how_many_environments_step_together():
    pool = EnvPool(load_task(HOPPER))
    frames = [
        evaluate(random_policy(3), STATE, pool.task, seeds=[4, 7], episodes=7, n_envs=n, pool=pool)
        for n in (1, 3, 7)
    ]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(frames[0], frames[2])


def test_every_dealt_episode_is_counted_however_short():
    """Stopping at a number of finished episodes would favour those that end early."""
    frame = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[0, 1], episodes=6, n_envs=4)
    assert (
        len(frame) == 12
        and frame.groupby("seed")["episode"].apply(list).tolist() == [list(range(6))] * 2
    )
    assert frame["length"].nunique() > 1  # they did end at different times
    seeds = env_seeds(HOPPER, "test", 6)
    assert frame["env_seed"].tolist() == seeds * 2


def test_a_seed_acts_with_its_own_noise_in_the_same_episodes():
    frame = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[0, 1], episodes=3)
    a, b = (frame[frame.seed == s]["return"].to_numpy() for s in (0, 1))
    assert not np.array_equal(a, b)
    swapped = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[1, 0], episodes=3)
    assert np.array_equal(swapped[swapped.seed == 0]["return"], a)


def test_the_return_is_the_sum_of_raw_rewards_of_the_seeded_episode():
    task = load_task(HOPPER)
    frame = evaluate(
        random_policy(3), {"x": torch.zeros(1, 1)}, task, seeds=[5], episodes=2, n_envs=1
    )
    row, env = frame.iloc[1], task.make_env()
    stream_key = rng.fold(
        rng.key(5),
        __import__("offbench.evaluation", fromlist=["_number"])._number(f"{task.id}/test"),
    )
    env.reset(seed=int(row["env_seed"]))
    total, steps, ended = 0.0, 0, False
    while not ended:
        key = rng.fold(rng.fold(stream_key, 1), steps)
        action = (2 * rng.uniform(key, (3,)) - 1).numpy()
        _, reward, terminated, truncated, _ = env.step(action)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    assert row["return"] == pytest.approx(total, abs=1e-9) and row["length"] == steps
    assert row["score"] == pytest.approx(
        100 * (total - task.ref_min) / (task.ref_max - task.ref_min)
    )
    assert row["terminated"] == terminated and row["truncated"] == truncated


def test_evaluation_repeats_where_the_environment_uses_numpys_global_generator():
    pool = EnvPool(load_task(MAZE))
    task = pool.task
    starts = []
    for _ in range(2):
        seen = []

        def act(state, step, carry, key, seen=seen):
            seen.append(step.obs[step.first].clone())
            return torch.ones(*step.obs.shape[:2], 2), carry

        state = np.random.get_state()[1].copy()
        evaluate(
            Policy(lambda n, e: (), act),
            {"x": torch.zeros(1, 1)},
            task,
            seeds=[0],
            episodes=2,
            n_envs=2,
            pool=pool,
        )
        assert np.array_equal(state, np.random.get_state()[1])  # and it is left as it was found
        starts.append(torch.cat(seen))
    assert torch.equal(*starts) and not torch.equal(starts[0][0], starts[0][1])


def test_success_is_the_score_where_the_task_says_so():
    frame = evaluate(
        random_policy(2), {"x": torch.zeros(1, 1)}, load_task(MAZE), seeds=[0], episodes=1
    )
    assert frame["success"].tolist() == [False] and frame["score"].tolist() == [0.0]
    assert frame["length"].tolist() == [1000] and frame["truncated"].tolist() == [True]
    assert load_task(MAZE).normalise(-3.0, True) == 100.0


def test_a_stacked_policy_acts_as_each_of_its_seeds():
    task = load_task(HOPPER)
    data, spec = task.load()
    pipeline = make_pipeline(data, transforms=["obs_norm"])
    method = BC(hidden=(8,))
    states = [method.init(rng.key(s), spec) for s in range(3)]
    from offbench.engine import stack

    policy = make_policy(method, pipeline)
    obs = data.obs[:15].view(3, 5, -1)
    key = torch.arange(15).view(3, 5)
    step = TimeStep(obs, torch.zeros(3, 5), torch.ones(3, 5, dtype=torch.bool))
    got, _ = policy.act(stack(states), step, (), key)
    norm = pipeline.transforms[0]
    want = torch.stack(
        [method.act(s, (o - norm.mean) / norm.std, key[0, 0]) for s, o in zip(states, obs)]
    )
    assert torch.allclose(got, want, atol=1e-6)


def test_a_dataset_that_does_not_fit_its_environment_is_refused():
    from offbench.errors import UserError

    with pytest.raises(
        UserError, match=r"observations have 12 features, environment Hopper-v5 has \(11,\)"
    ):
        EnvPool(load_task(HOPPER)).check(Spec(12, 3, 0.99, 1000))


def test_the_plans_of_an_episode_are_counted():
    """Chunks of 1 and of 3 steps by turns; a policy without chunks plans at every step."""

    def act(state, step, carry, key):
        draw = torch.stack([rng.uniform(k, (9,)) for k in key.flatten()])
        length = torch.where(carry % 2 == 0, 1, 3)
        return Plan((2 * draw - 1).view(*key.shape, 9), length), carry + 1

    start = lambda n, e: torch.zeros(n, e, dtype=torch.long)
    policy = Chunk(3).policy(Policy(start, act))
    frame = evaluate(policy, STATE, load_task(HOPPER), seeds=[0, 1], episodes=4, n_envs=4)
    n = frame["length"]
    assert (frame["plans"] == n // 4 * 2 + n % 4 - (n % 4 == 3)).all()
    single = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[0, 1], episodes=2)
    assert (single["plans"] == single["length"]).all()
