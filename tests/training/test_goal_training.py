"""Training on drawn goals: every engine draws the same, methods of transitions learn to reach, policies are kept."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves, tree_map

from offbench import rng
from offbench.bench.policy import load_policy
from offbench.cli import main
from offbench.data.compose import take
from offbench.data.goals import Goal
from offbench.data.pipeline import make_pipeline
from offbench.data.replay import Episode, from_episodes
from offbench.data.sampling import return_weights
from offbench.errors import UserError
from offbench.methods.gcbc import GCBC
from offbench.methods.gcivl import GCIVL
from offbench.methods.iql import IQL
from offbench.methods.td3_bc import TD3BC
from offbench.results.store import Store
from offbench.rollout import make_policy
from offbench.tasks.environments import evaluation_env, numpy_seed
from offbench.tasks.locate import load_task
from offbench.testing.contract import SPEC
from offbench.training import compiling
from offbench.training.blocks import BLOCK, Blocks, maker
from offbench.training.engine import Engine
from offbench.training.held_out import ROWS, Validation, split
from offbench.training.imperative import Imperative
from offbench.training.loop import train
from offbench.training.step import initial_carry, make_step, stack, unstack
from offbench.types import Spec, TimeStep

HIDDEN = (8, 8)


def parts(method, data, seeds=(0, 1, 2), **options):
    """The step and the first carry under the goal view, in the type of the data."""
    needs = getattr(method, "needs", ())
    options = {"view": Goal(subgoal_steps=5)} | options
    pipeline = make_pipeline(data, batch_size=16, needs=needs, **options)
    carry = initial_carry(method, pipeline.spec(SPEC), seeds)
    if data.obs.dtype == torch.float64:
        carry = tree_map(lambda x: x.double() if x.is_floating_point() else x, carry)
    return make_step(method, pipeline), carry


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


# --- the engine


@pytest.mark.parametrize(
    "method", [GCIVL(hidden=HIDDEN), TD3BC(hidden=HIDDEN)], ids=["gcivl", "td3_bc"]
)
def test_every_backend_is_given_the_bits_that_a_seed_draws_alone(method, data):
    """Step by step, for blocks of steps, and for blocks traced: goals, rewards and what is gathered."""
    step, carry = parts(method, data, weights=[return_weights], transforms=["obs_norm"])
    untraced, traced = (Blocks(step, carry.key, backend=b) for b in ("vmap", "eager"))
    for t in (0, 1, BLOCK + 2):
        a, b = untraced.at(t), traced.at(t)
        assert equal(a, b)
        for i, key in enumerate(carry.key):
            alone = step.input(step.draw(rng.fold(key, torch.tensor(t))))
            assert equal(unstack(a, i), alone)


def test_blocks_gathered_on_the_host_train_as_on_the_device(data):
    """Over several blocks, and from a step in the middle."""
    step, carry = parts(GCBC(hidden=HIDDEN), data)
    host = step._replace(host_data=True)
    resident, ahead = Engine(step, carry), Engine(host, carry)
    resident.run(BLOCK + 3), ahead.run(BLOCK + 3)
    assert equal(resident.carry, ahead.carry)
    again = Engine(host, resident.carry)
    again.run(5), resident.run(5)
    assert equal(resident.carry, again.carry)


def test_a_compiled_draw_of_goals_is_compared_leaf_by_leaf(data, monkeypatch):
    """On a GPU; the compiler gives its program back as it is."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    monkeypatch.setattr(compiling, "_compiled", {})
    step, carry = parts(GCBC(hidden=HIDDEN), data)
    first = (carry.key, torch.tensor(70))
    with torch.no_grad():
        compiled = maker(step, carry.key, compiled=True)
        assert equal(compiled(first), maker(step, carry.key, traced=False)(first))


@pytest.mark.slow
def test_compiled_draws_of_goals_are_the_same_bits_for_any_number_of_rows(data):
    torch._dynamo.reset()
    counters.clear()
    for d in (data, take(data, np.arange(12))):
        step, carry = parts(GCIVL(hidden=HIDDEN), d)
        first = (carry.key, torch.tensor(70))
        compiled = maker(step, carry.key, compiled=True)
        with torch.no_grad():
            assert equal(compiled(first), maker(step, carry.key, traced=False)(first))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("method", [IQL(hidden=HIDDEN), GCBC(hidden=HIDDEN)], ids=["iql", "gcbc"])
def test_a_seed_of_a_stack_is_the_seed_alone(method, data64):
    step, carry = parts(method, data64)
    together = Engine(step, carry)
    together.run(6)
    for i, seed in enumerate((0, 1, 2)):
        alone = Engine(*parts(method, data64, (seed,)), backend="vmap")
        alone.run(6)
        got, want = together.carry.seed(i), alone.carry.seed(0)
        for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10) if a.is_floating_point() else a == b


# --- methods of transitions


def walks():
    """Straight walks on a line, at a speed of their own: the action is the way to what comes later."""
    r = np.random.default_rng(0)
    episodes = []
    for i in range(60):
        speed = r.uniform(0.3, 1.0) * (1 if i % 2 else -1)
        place = -5 * np.sign(speed) + 0.5 * speed * np.arange(21)
        action = np.full((20, 1), speed)
        episodes.append(Episode(place[:, None], action, np.zeros(20), np.zeros(20, bool)))
    return from_episodes(episodes)


@pytest.mark.parametrize(
    "method",
    [IQL(hidden=(32, 32), lr=3e-3), TD3BC(hidden=(32, 32), lr=3e-3)],
    ids=["iql", "td3_bc"],
)
def test_a_method_of_transitions_learns_to_go_to_a_goal(method):
    """With two seeds stacked, from rewards that nobody recorded."""
    pipeline = make_pipeline(walks(), view=Goal(0.9), batch_size=64, transforms=["obs_norm"])
    seeds, spec = [0, 1], Spec(1, 1, 0.9, 20)
    (point,) = train(method, pipeline, spec, seeds=seeds, n_updates=400, backend="eager")
    policy = make_policy(method, pipeline)
    obs = 8 * torch.rand(2, 200, 2, generator=torch.Generator().manual_seed(0)) - 4
    step = TimeStep(obs, torch.zeros(2, 200), torch.ones(2, 200, dtype=torch.bool))
    keys = rng.split(rng.key(0), 400).view(2, 200)
    action, _ = policy.act(point.state, step, policy.init(2, 200), keys)
    way = obs[..., 1:] - obs[..., :1]
    right = (action.sign() == way.sign()) | (way.abs() < 1)
    assert right.float().mean() > 0.95


class Records:
    """A PyTorch class that remembers its batches."""

    def __init__(self, obs_dim, action_dim):
        self.net, self.seen = torch.nn.Linear(obs_dim, action_dim), []

    def train_step(self, batch):
        self.seen.append((batch.obs.clone(), batch.reward.clone()))
        return {}

    def act(self, obs):
        return self.net(obs)


def test_a_pytorch_class_gets_the_goals_of_a_functional_method(data):
    pipeline = make_pipeline(data, view=Goal(), batch_size=8)
    (point,) = train(Imperative(Records), pipeline, SPEC, seeds=[7], n_updates=BLOCK + 3)
    (member,) = point.state.members
    key = initial_carry(TD3BC(hidden=HIDDEN), pipeline.spec(SPEC), [7]).key[0]
    draw = make_step(Imperative(Records), pipeline).draw
    for t, seen in enumerate(member.algorithm.seen):
        batch = pipeline.batch(draw(rng.fold(key, torch.tensor(t))).rows)
        assert equal(seen, (batch.obs, batch.reward))


# --- held-out episodes, kept policies


def test_held_out_episodes_give_the_losses_and_errors_of_their_own_goals(data64):
    training, held_out = split(data64, 0.3, name="fake")
    method = GCBC(hidden=HIDDEN)
    pipeline = make_pipeline(training, view=Goal(), transforms=["obs_norm"], needs=method.needs)
    state = method.init(rng.key(0), pipeline.spec(SPEC))
    state = tree_map(lambda x: x.double() if x.is_floating_point() else x, stack([state]))
    found = Validation(method, pipeline, held_out, discrete=False)(state)
    batch = pipeline.on(held_out, method.needs)._replace(batch_size=ROWS).sample(rng.key(0))
    made = method.act(unstack(state, 0), batch.extras["actor_obs"], rng.key(0))
    error = torch.square(made - batch.action).mean()
    torch.testing.assert_close(found["validation/action_error"][0], error)
    loss = method.update(unstack(state, 0), batch, rng.key(0))[1]["actor_loss"]
    torch.testing.assert_close(found["validation/actor_loss"][0], loss)


MAZE = "offbench/pointmaze-medium-navigate-goal-v0"


@pytest.mark.env
def test_a_loaded_policy_acts_on_the_state_and_the_goal(tmp_path):
    """The episode of the test stream, played again with the file alone, has the length and the goal on record."""
    tiny = ["method.hidden=[16,16]", "batch_size=32", "eval.episodes=1", "eval.monitor_at=[]"]
    args = ["method=gcivl", f"task={MAZE}", "n_updates=5", "seeds=[3]", "engine=vmap", "jobs=1"]
    assert main(["run", *tiny, *args, f"results={tmp_path}"]) == 0
    (path,) = tmp_path.glob("runs/*/*/*/*.safetensors")
    policy, task = load_policy(path), load_task(MAZE)
    row = Store(tmp_path).episodes(stream="test").iloc[0]
    env = evaluation_env(task)
    with numpy_seed(int(row["env_seed"])):
        obs, _ = env.reset(seed=int(row["env_seed"]), options=task.reset_options(0))
    assert obs.shape == (4,) and obs[:2].tolist() != obs[2:].tolist()
    total, reward, steps, over = 0.0, 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs, reward))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    assert (steps, total) == (row["length"], pytest.approx(row["return"], rel=1e-6))
    with pytest.raises(UserError, match=r"an observation of shape \(2,\), its policies see \(4,\)"):
        policy.act(obs[:2])
