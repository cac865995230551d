"""Distances to the goal: an environment's own, and those of OGBench's mazes and cubes."""

import numpy as np
import pytest

from offbench.tasks.environments import evaluation_env, goal_distance, numpy_seed
from offbench.tasks.locate import load_task

pytestmark = pytest.mark.env


def test_an_environment_tells_its_own_distance_or_none():
    env = evaluation_env(load_task("offbench/hopper/medium-replay-v0"))
    _, info = env.reset(seed=0)
    assert goal_distance(env, info) is None
    assert goal_distance(env, {**info, "distance": np.float32(2.5)}) == 2.5
    env.close()


def test_in_a_maze_it_is_the_straight_line_to_the_goal():
    env = evaluation_env(load_task("offbench/pointmaze-medium-navigate-v0"))
    with numpy_seed(0):
        obs, info = env.reset(seed=0)
    goal = info["goal"]
    for _ in range(3):
        assert goal_distance(env, info) == pytest.approx(np.linalg.norm(obs - goal), rel=1e-6)
        obs, *_, info = env.step(np.ones(2))
    env.close()


def test_of_cubes_it_is_the_way_to_their_places():
    """An observation has the place of the cube in tenths of a metre; of the goal, where it came to lie."""
    env = evaluation_env(load_task("offbench/cube-single-play-v0"))
    obs, info = env.reset(seed=0)
    cube = slice(19, 22)
    want = np.linalg.norm(obs[cube] - info["goal"][cube]) / 10
    assert want > 0.1 and goal_distance(env, info) == pytest.approx(want, abs=0.01)
    assert goal_distance(env, {**info, "privileged/button_0_pos": 0}) is None  # of a scene
    raw = env.unwrapped
    raw._data.joint("object_joint_0").qpos[:3] = raw._data.mocap_pos[raw._cube_target_mocap_ids[0]]
    # a step says of the state before it whether it was a success
    for _ in range(2):
        *_, info = env.step(np.zeros(5))
    assert info["success"] and goal_distance(env, info) < 0.04
    env.close()
