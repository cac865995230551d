"""Evaluation: the same episodes for everyone, dealt out beforehand, and no trace left in training."""

import dataclasses
from dataclasses import dataclass

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from offbench import rng
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.transforms import ObsNorm, RewardAffine
from offbench.data.views import Chunk, NStep
from offbench.methods.bc import BC
from offbench.results.schema import EPISODE_COLUMNS, EVALUATION_COLUMNS
from offbench.rollout import EnvPool, evaluate, make_policy
from offbench.tasks.environments import evaluation_env
from offbench.tasks.episodes import env_seeds, number_of
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task
from offbench.tasks.task import Task
from offbench.training.reweighting import DensityWeights
from offbench.training.reweighting import State as WeightState
from offbench.training.step import Swept
from offbench.types import Plan, Policy, Spec, TimeStep

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
        evaluate(random_policy(3), STATE, pool, seeds=[4, 7], episodes=7, n_envs=n)
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


def test_rows_are_those_of_the_schema():
    frame = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[0, 1], episodes=1)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: EPISODE_COLUMNS[name] for name in EVALUATION_COLUMNS
    } | {"member": "int64"}


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
    row, env = frame.iloc[1], evaluation_env(task)
    stream_key = rng.fold(
        rng.key(5),
        number_of(f"{task.id}/test"),
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
            pool,
            seeds=[0],
            episodes=2,
            n_envs=2,
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


class Passes(gymnasium.Env):
    """Meets the goal in its second step only, and goes on for five (as Minari's antmaze does)."""

    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, self.t == 5, {"success": self.t == 2}


def test_a_success_at_any_step_counts_where_the_score_is_success():
    gymnasium.register("Passes-v0", Passes)
    task = dataclasses.replace(LINE, env="Passes-v0")
    run = lambda task: evaluate(random_policy(1), STATE, task, seeds=[0, 1], episodes=3, n_envs=2)
    frame = run(task)
    assert frame["success"].all() and (frame["score"] == 100).all() and (frame["length"] == 5).all()
    assert not run(dataclasses.replace(task, score="return"))[
        "success"
    ].any()  # a column beside the score: of the last step


@pytest.mark.slow
def test_an_ant_of_minari_that_passed_its_goal_has_succeeded():
    """Its environment goes on at the goal (continuing_task in the metadata of the sets)."""
    kwargs = {"continuing_task": True, "max_episode_steps": 12}
    name, env = "minari/D4RL/antmaze/umaze-v1", "AntMaze_UMaze-v4"
    task = dataclasses.replace(LINE, id=name, env=env, env_kwargs=kwargs, max_episode_steps=12)
    pool = EnvPool(task)

    def act(state, step, carry, key):
        inner = pool.take(1)[0].unwrapped
        at = inner.goal if carry == 3 else inner.goal + 3
        inner.ant_env.set_state(
            np.concatenate([at, inner.ant_env.data.qpos[2:]]), inner.ant_env.data.qvel
        )
        return torch.zeros(1, 1, 8), carry + 1

    frame = evaluate(
        Policy(lambda n, e: 0, act),
        {"x": torch.zeros(1, 1)},
        pool,
        seeds=[0],
        episodes=1,
    )
    assert frame["length"].tolist() == [12] and frame["success"].tolist() == [True]


def test_a_stacked_policy_acts_as_each_of_its_seeds():
    task = load_task(HOPPER)
    data, spec = load_data(task)
    pipeline = make_pipeline(data, transforms=["obs_norm"])
    method = BC(hidden=(8,))
    states = [method.init(rng.key(s), spec) for s in range(3)]
    from offbench.training.step import stack

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
    whole, rest = n // 4, n % 4  # of the last chunk, the part that the episode had room for
    want = zip(whole + (rest > 0) + (rest == 2), (rest == 3) * 1, whole, strict=True)
    assert frame["chunk_lengths"].tolist() == [list(x) for x in want]
    single = evaluate(random_policy(3), STATE, load_task(HOPPER), seeds=[0, 1], episodes=2)
    assert (single["plans"] == single["length"]).all()
    assert single["chunk_lengths"].isna().all()


# --- values ---------------------------------------------------------------------------------

GAMMA = 0.9


class Line(gymnasium.Env):
    """Steps of the action's size; reward 10 x place; ends at 2, or after 6 steps."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.t = self.np_random.uniform(-2, 1), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place, self.t = self.place + float(action[0]), self.t + 1
        obs, ends = np.array([self.place], np.float32), self.place > 2
        return obs, 10 * self.place, ends, self.t == 6 and not ends, {"success": ends}


gymnasium.register("Line-v0", Line)
LINE = Task(id="line", family="own", env="Line-v0", max_episode_steps=6, score="success")


@dataclass(frozen=True, kw_only=True)
class Goes:
    """Acts by its observation and speed; values a decision by adding up all it knows."""

    speed: float = 0.7
    steps: int = 1  # environment steps in one decision
    executes: int | None = None  # how many of them it asks for

    def act(self, state, obs, key):
        action = (self.speed * state["sign"] + 0.01 * obs).expand(-1, self.steps)
        if self.executes is None:
            return action
        return Plan(action, torch.full((len(obs),), self.executes))


class Values(Goes):
    def value(self, state, obs, made):
        action = made.action if isinstance(made, Plan) else made
        length = made.length if isinstance(made, Plan) else self.steps
        total = 100 * obs[:, 0] + 10 * action.sum(-1) + state["sign"] + 1000 * length
        return total + 5 * self.speed


def line_pipeline(view):
    """Observations doubled and rewards 3 r - 1, then 0.5 (3 r - 1) + 2."""
    episode = Episode(np.ones((9, 1)), np.zeros((8, 1)), np.arange(8.0), np.zeros(8, bool))
    made = make_pipeline(from_episodes([episode]), view=view)
    first, second = RewardAffine(3.0, -1.0), RewardAffine(0.5, 2.0)
    norm = ObsNorm(torch.zeros(1), torch.full((1,), 0.5))
    return made._replace(transforms=(first, norm, second))


STATES = {"sign": torch.tensor([1.0, -1.0, 0.4])}


@pytest.mark.parametrize(
    "view, method",
    [
        (NStep(3, GAMMA), Values()),
        (Chunk(2, GAMMA), Values(steps=2)),
        (Chunk(3, GAMMA), Values(steps=3, executes=2)),
    ],
)
def test_values_at_the_start_stand_beside_the_return_in_their_units(view, method):
    """Against one episode after another, by hand: shifted rewards, the method's discount, no bootstrap."""
    policy = make_policy(method, line_pipeline(view))
    rows = evaluate(policy, STATES, LINE, seeds=[0, 1, 2], episodes=5, n_envs=2)
    assert set(rows["terminated"]) == {True, False}
    for row in rows.to_dict("records"):
        env, sign = Line(), STATES["sign"][row["member"]].item()
        obs, action, want, raw, t, over = (
            env.reset(seed=row["env_seed"])[0],
            0.0,
            0.0,
            0.0,
            0,
            False,
        )
        executed, total = method.executes or method.steps, None
        while not over:
            if t % executed == 0:
                action = np.clip(0.7 * sign + 0.01 * 2 * obs[0], -1, 1)
                if total is None:
                    total = 200 * obs[0] + 10 * method.steps * action + sign + 1000 * executed + 3.5
            obs, reward, ended, cut, _ = env.step([np.float32(action)])
            want += GAMMA**t * (0.5 * (3 * reward - 1) + 2)
            raw, t, over = raw + reward, t + 1, ended or cut
        if method.steps > 1:
            counts = [0] * method.steps
            counts[executed - 1] += t // executed
            counts[t % executed - 1] += t % executed > 0
            assert row["chunk_lengths"] == counts and row["plans"] == sum(counts)
        assert row["start_value"] == pytest.approx(total, rel=1e-5)
        assert row["discounted_return"] == pytest.approx(want, rel=1e-5)
        assert row["return"] == pytest.approx(raw, rel=1e-5) and row["length"] == t


def test_a_swept_stack_is_valued_with_its_own_settings():
    speeds = torch.tensor([0.2, 0.5, 0.9])
    policy = make_policy(Values(), line_pipeline(NStep(1, GAMMA)))
    state = Swept({"speed": speeds}, {"sign": torch.ones(3)})
    rows = evaluate(policy, state, LINE, seeds=[0, 0, 0], episodes=1)
    apart = rows["start_value"].diff()[1:].tolist()
    assert apart == pytest.approx((15 * speeds.diff()).tolist(), rel=1e-3)


def test_weights_around_a_method_hand_its_values_on():
    wrapped = DensityWeights(method=Values())
    own = {"sign": torch.ones(())}
    inner = WeightState(own, *[()] * 5)
    obs = torch.ones(1, 1)
    made = wrapped.act(inner, obs, None)
    assert torch.equal(wrapped.value(inner, obs, made), Values().value(own, obs, made))
    assert not hasattr(DensityWeights(method=Goes()), "value")


def test_values_that_nobody_has_cost_nothing():
    """No value, no return added up, nothing remembered; and what is remembered is asked for once an episode."""
    policy = make_policy(Goes(), line_pipeline(NStep(1, GAMMA)))
    assert policy.gamma is None and policy.init(2, 3) == ()
    refuse = policy._replace(reward=lambda reward: pytest.fail("a reward was transformed"))
    rows = evaluate(refuse, STATES, LINE, seeds=[0, 1, 2], episodes=3)
    assert rows[["start_value", "discounted_return"]].isna().all(axis=None)

    asked = []

    class Counts(Values):
        def value(self, state, obs, made):
            asked.append(1)
            return super().value(state, obs, made)

    slow = {"sign": torch.zeros(1)}  # every episode is cut after six steps
    policy = make_policy(Counts(), line_pipeline(NStep(1, GAMMA)))
    same = evaluate(policy, slow, LINE, seeds=[0], episodes=4, n_envs=2)
    assert len(asked) == 2 and same["length"].tolist() == [6] * 4
    without = make_policy(Goes(), line_pipeline(NStep(1, GAMMA)))
    plain = evaluate(without, slow, LINE, seeds=[0], episodes=4, n_envs=2)
    shared = [name for name in plain if name not in ("start_value", "discounted_return")]
    pd.testing.assert_frame_equal(same[shared], plain[shared])


def test_a_setting_may_be_called_policy():
    class Named(Goes):
        policy = "greedy"

    pipeline = line_pipeline(NStep(1, GAMMA))
    named, plain = (
        evaluate(make_policy(method, pipeline), STATES, LINE, seeds=[0, 1, 2], episodes=2)
        for method in (Named(), Goes())
    )
    pd.testing.assert_frame_equal(named, plain)
