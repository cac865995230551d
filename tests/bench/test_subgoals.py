"""Goal-conditioned policies played again: with and without values, their places in a maze, their sub-goals."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.records import spec as run_spec

from offbench import rng
from offbench.bench.played import play
from offbench.bench.policy import Loaded
from offbench.bench.subgoals import has_subgoals, nearest_states
from offbench.data.goals import Goal
from offbench.data.pipeline import Pipeline, make_pipeline
from offbench.tasks.environments import evaluation_env, maze_walls
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task
from offbench.testing.fakes import fake_data
from offbench.training.step import stack
from offbench.types import Spec

MAZE = "offbench/pointmaze-medium-navigate-goal-v0"
SPEC = Spec(2, 2, 0.9, 30)
VIEW = Goal(0.9, subgoal_steps=10)


@dataclass(frozen=True, kw_only=True)
class Straight:
    """Goes straight at its goal."""

    def init(self, key, spec):
        return {"scale": torch.ones(())}

    def act(self, state, obs, key):
        return state["scale"] * (obs[:, 2:] - obs[:, :2]).sign()


@dataclass(frozen=True, kw_only=True)
class Halfway(Straight):
    """Heads for the point halfway; a state is represented by where it lies from here."""

    def value(self, state, obs, action):
        return -(obs[:, 2:] - obs[:, :2]).norm(dim=-1)

    def subgoal(self, state, obs):
        return 0.5 * (obs[:, 2:] - obs[:, :2])

    def represent(self, state, obs):
        return obs[:, 2:] - obs[:, :2]


def loaded(method, transforms=()) -> Loaded:
    pipeline = Pipeline(None, None, VIEW.to_act(), transforms)
    state = stack([method.init(rng.key(3), VIEW.spec(SPEC))])
    return Loaded("state", run_spec(seed=3), method, pipeline, state, SPEC, None)


def test_a_sub_goal_is_shown_by_the_state_of_nearest_representation():
    """Against a loop, where observations are normalised for the method."""
    spread, data = np.array([5.0, 0.2]), fake_data(SPEC)
    data = data._replace(obs=data.obs * torch.tensor(spread).float() + 3)
    fitted = make_pipeline(data, view=VIEW, transforms=["obs_norm"]).transforms
    r = np.random.default_rng(0)
    states = r.normal(size=(40, 2)) * spread + 3
    obs = r.normal(size=(7, 4)) * np.tile(spread, 2) + 3
    found = nearest_states(loaded(Halfway(), fitted), states, obs)
    scale = fitted[0].std.numpy()
    for (x, y, gx, gy), index in zip(obs, found, strict=True):
        middle = np.array([x + gx, y + gy]) / 2
        assert index == np.argmin(np.linalg.norm((states - middle) / scale, axis=1))
    assert len(set(found)) > 2 and has_subgoals(Halfway()) and not has_subgoals(Straight())


@pytest.fixture(scope="module")
def task():
    """The maze, of which an episode ends after 30 steps."""
    found = load_task(MAZE)
    return replace(found, max_episode_steps=30)


@pytest.mark.env
def test_places_of_a_maze_are_those_of_its_environment(task):
    env = evaluation_env(task)
    centres, width = maze_walls(env)
    env.close()
    assert (len(centres), width) == (38, 4.0)
    rows = play(loaded(Halfway()), task, episodes=5)
    assert rows["episode"].nunique() == 5 and rows["distance"].notna().all()
    to_goal = np.hypot(rows["goal_x"] - rows["x"], rows["goal_y"] - rows["y"])
    # the environment's noise on the goal is a part of neither
    assert np.abs(to_goal.astype(float) - rows["distance"].astype(float)).max() < 1e-4
    assert rows["value"].to_numpy(float) == pytest.approx(-to_goal.to_numpy(float), abs=1e-4)
    # nowhere inside a wall
    inside = [
        np.abs(rows[["x", "y"]].to_numpy(float) - centre).max(1) < width / 2 for centre in centres
    ]
    assert not np.any(inside)
    starts = rows[rows["step"] == 0]
    assert starts["goal_x"].nunique() > 1
    # every `subgoal_steps`, a state of the data near the middle of the way
    marked = rows["subgoal_x"].notna()
    assert (marked == (rows["step"] % 10 == 0)).all()
    data = load_data(load_task(MAZE), defects="ignore")[0].obs.numpy()
    for row in rows[marked].itertuples():
        middle = np.array([row.x + row.goal_x, row.y + row.goal_y]) / 2
        shown = np.array([row.subgoal_x, row.subgoal_y])
        assert np.abs(data - shown).max(1).min() < 1e-6
        gap = np.linalg.norm(shown - middle)
        assert gap < 1.0 + 2 * np.linalg.norm(data - middle, axis=1).min()


@pytest.mark.env
def test_a_policy_without_values_plays_towards_goals(task):
    rows = play(loaded(Straight()), task, episodes=3, n_envs=3)
    assert rows["value"].isna().all() and rows["subgoal_x"].isna().all()
    assert rows["x"].notna().all() and rows["success"].notna().all()
    # paid as the view pays: -1 a step, for ever or until it arrives
    assert rows["discounted_return"].between(-10, -1).all()
