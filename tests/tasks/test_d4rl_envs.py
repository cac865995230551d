"""D4RL's ids are evaluated as D4RL evaluates them: its simulator, starts, goals, rewards and ends.

`tests/tasks/recorded/d4rl_steps.npz` holds steps and returns of D4RL's own code in MuJoCo 2.1.0. The table
of what uniform actions earn is made again by

    PYTHONPATH=tests python tests/tasks/test_d4rl_envs.py > results/environments.md
"""

import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from support.paths import SHARED
from tasks.recorded.d4rl_steps import steer

from offbench.tasks.environments import MAZE2D, evaluation_env
from offbench.tasks.locate import load_task

RECORDED = Path(__file__).parent / "recorded" / "d4rl_steps.npz"
STEPS = [
    "halfcheetah-medium-v2",
    "hopper-medium-v2",
    "walker2d-medium-v2",
    "ant-medium-v2",
    "antmaze-umaze-v2",
    "maze2d-large-v1",
    "pen-human-v1",
    "door-human-v1",
    "hammer-human-v1",
    "relocate-human-v1",
]
pytestmark = pytest.mark.env


def simulator(env):
    inner = env.unwrapped
    return next(
        (getattr(inner, k) for k in ("ant_env", "point_env", "robot_env") if hasattr(inner, k)),
        inner,
    )


def recorded(name, *columns):
    with np.load(RECORDED) as file:
        return [file[f"{name}/{k}"] for k in columns]


def repeat(name, env):
    """(errors in standard deviations of a step's change, errors of the reward) of the recorded steps."""
    columns = recorded(name, "qpos", "qvel", "action", "next_qpos", "next_qvel", "reward")
    qpos, qvel, action, after, speed, reward = columns
    env.reset(seed=0)
    inner, robot, shift = env.unwrapped, simulator(env), np.zeros(qpos.shape[1])
    if name.startswith("antmaze"):
        shift[:2] = inner.maze.unique_reset_locations[0]
    if name.startswith("maze2d"):  # (1, 1) is 0.2 short of the middle of cell (1, 1) there
        shift = 0.7 - np.array([inner.maze.x_map_center, inner.maze.y_map_center])
    size = np.concatenate([after - qpos, speed - qvel], 1).std(0) + 1e-9  # some stand still
    errors, rewards = [], []
    for i in range(len(qpos)):
        if "human" in name:
            for k in ("body_pos", "body_quat", "site_pos"):
                getattr(robot.model, k)[:] = recorded(name, k)[0][i]
        robot.set_state(qpos[i] + shift, qvel[i])
        rewards.append(env.step(action[i])[1] - reward[i])
        found = np.concatenate([robot.data.qpos - shift - after[i], robot.data.qvel - speed[i]])
        errors.append(np.abs(found / size).max())
    return np.array(errors), np.abs(rewards)


# --- the simulator --------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_d4rl_in_mujoco_2(name):
    errors, rewards = repeat(name, evaluation_env(load_task(name)))
    # some contacts of boxes, with fingers or legs, are found otherwise than in MuJoCo 2
    boxes = name.startswith(("door", "antmaze"))
    assert np.mean(errors < 1e-3) >= (0.85 if boxes else 1.0), errors
    if not name.startswith(("ant", "maze2d")):
        assert np.median(rewards) < 1e-6  # the ant's is of places one simulator step ago
    # and without the rules it is not
    plain = evaluation_env(dataclasses.replace(load_task(name), adapter=None))
    assert np.mean(repeat(name, plain)[0] < 1e-3) < np.mean(errors < 1e-3), name


def test_a_model_weighs_what_it_weighed():
    """Sums of all masses, and the cheetah's torso, of which the head is a part; MuJoCo 2.1.0."""
    for name, mass in (
        ("hopper", 15.264998703792806),
        ("walker2d", 22.698006922186256),
        ("halfcheetah", 14.0),
        ("ant", 0.8787101739346319),
    ):
        model = evaluation_env(load_task(f"{name}-medium-v2")).unwrapped.model
        assert model.body_mass.sum() == pytest.approx(mass, rel=1e-12), name
        if name == "halfcheetah":
            assert model.body_mass[1] == pytest.approx(6.360313315926893, rel=1e-12)
            np.testing.assert_allclose(model.body_ipos[1], [0.14913793, 0, 0.02485632], atol=1e-8)
            moments = sorted(model.body_inertia[1])
            np.testing.assert_allclose(moments, [0.0176178, 0.88356502, 0.89445361], atol=1e-8)


def test_a_demonstration_replayed_earns_what_was_recorded():
    """Actions of whole trajectories from their first states, 223 to 300 steps each."""
    h5py = pytest.importorskip("h5py")
    path = SHARED / "data" / "d4rl" / "door-human-v0.hdf5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    names = ("observations", "actions", "infos/qpos", "infos/qvel", "terminals", "rewards")
    with h5py.File(path) as file:
        obs, action, qpos, qvel, terminal, reward = (file[k][:] for k in names)
    env = evaluation_env(load_task("door-human-v0"))
    env.reset(seed=0)
    inner, last = env.unwrapped, np.flatnonzero(terminal)[:8]
    for first, end in zip([0, *(last[:-1] + 1)], last + 1):
        inner.set_state(qpos[first], qvel[first])
        handle = inner.data.site_xpos[inner.handle_site_id]
        inner.model.body_pos[inner.door_body_id] += obs[first, 32:35] - handle
        inner.set_state(qpos[first], qvel[first])
        total = sum(env.step(a)[1] for a in action[first:end])
        assert total == pytest.approx(reward[first:end].sum(), abs=0.01)


# --- mazes ----------------------------------------------------------------------------------


def test_an_ant_steps_ten_times_a_second_and_gets_as_far_as_in_d4rl():
    env = evaluation_env(load_task("antmaze-umaze-v2"))
    assert env.unwrapped.ant_env.dt == pytest.approx(0.1)
    rng, paths = np.random.default_rng(0), []
    for seed in range(8):
        before = env.reset(seed=seed)[0][:2]
        paths.append(0.0)
        for _ in range(100):
            now = env.step(rng.uniform(-1, 1, 8))[0][:2]
            paths[-1] += np.linalg.norm(now - before)
            before = now
    assert 4.5 < np.mean(paths) < 6.5  # D4RL: 5.2; half the control period: 2.2


def test_an_ant_starts_with_noise_in_every_coordinate_and_in_its_speed():
    env = evaluation_env(load_task("antmaze-medium-play-v2"))
    inner, states = env.unwrapped, []
    for seed in range(200):
        obs = env.reset(seed=seed)[0]
        states.append(np.concatenate([obs[:2], obs[2:]]))
    states = np.array(states)
    still = np.concatenate([[0, 0], inner.ant_env.model.qpos0[2:], np.zeros(14)])
    off = states - still
    assert (np.abs(off[:, :15]) <= 0.1).all() and (np.abs(off[:, :15]).max(0) > 0.09).all()
    np.testing.assert_allclose(off[:, :15].std(0), 0.2 / np.sqrt(12), rtol=0.15)
    np.testing.assert_allclose(off[:, 15:].std(0), 0.1, rtol=0.2)


@pytest.mark.parametrize(
    "name, cell",
    [
        ("umaze-v2", (0, 8)),
        ("medium-play-v2", (20, 20)),
        ("large-diverse-v2", (32, 24)),
        ("eval-umaze-v0", (0, 8)),
        ("eval-medium-play-v0", (20, 0)),
        ("eval-large-play-v0", (32, 0)),
    ],
)
def test_the_goal_of_an_ant_is_drawn_as_in_d4rl(name, cell):
    """Along each axis the sum of uniform draws up to 1 and up to 0.5, anew in every episode."""
    env = evaluation_env(load_task(f"antmaze-{name}"))
    inner, goals = env.unwrapped, []
    for seed in range(2000 if name == "umaze-v2" else 200):
        env.reset(seed=seed)
        goals.append(inner.goal - inner.maze.unique_reset_locations[0] - cell)
    goals = np.array(goals)
    assert (goals >= 0).all() and (goals <= 1.5).all()
    np.testing.assert_allclose(goals.mean(0), 0.75, atol=0.1)
    if name == "umaze-v2":
        outside = (goals > 1).any(1).mean()
        assert outside == pytest.approx(1 - 0.75**2, abs=0.045)  # 4 standard errors
        np.testing.assert_allclose(goals.std(0), np.sqrt((1 + 0.25) / 12), rtol=0.06)
        assert abs(np.corrcoef(goals.T)[0, 1]) < 0.09


@pytest.mark.parametrize("size, cells", [("umaze", 7), ("medium", 26), ("large", 46)])
def test_a_point_starts_in_every_free_cell_and_in_that_of_the_goal(size, cells):
    env = evaluation_env(load_task(f"maze2d-{size}-v1"))
    n = 200 * cells
    obs = np.array([env.reset(seed=seed)[0] for seed in range(n)])
    cell = np.round(obs[:, :2]).astype(int)
    assert (np.abs(obs[:, :2] - cell) <= 0.1).all()  # (row, column) itself is 0.2 beside the middle
    free = [(r, c) for r, row in enumerate(MAZE2D[size]) for c, x in enumerate(row) if x != "#"]
    assert len(free) == cells and set(map(tuple, cell)) == set(free)
    goal = next((r, c) for r, row in enumerate(MAZE2D[size]) for c, x in enumerate(row) if x == "G")
    share = (cell == goal).all(1).mean()
    assert share == pytest.approx(1 / cells, abs=4 * np.sqrt(1 / cells / n))
    np.testing.assert_allclose(obs[:, 2:].std(0), 0.1, rtol=0.1)


# --- hand, kitchen --------------------------------------------------------------------------


def test_a_dropped_pen_ends_the_episode():
    env, rng = evaluation_env(load_task("pen-human-v1")), np.random.default_rng(0)
    ends = 0
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(100):
            _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 24))
            height = env.unwrapped.data.xpos[env.unwrapped.obj_body_id][2]
            assert terminated == (height < 0.075)
            if terminated or truncated:
                break
        ends += terminated
    assert ends >= 5
    plain = evaluation_env(load_task("D4RL/pen/human-v2"))  # Minari's goes on
    plain.reset(seed=0)
    assert not any(plain.step(rng.uniform(-1, 1, 24))[2] for _ in range(150))
    assert plain.unwrapped.data.xpos[plain.unwrapped.obj_body_id][2] < 0.075


@pytest.mark.parametrize("hand", ["door", "hammer", "relocate"])
def test_a_hand_pays_for_its_distance_from_the_object(hand):
    """The dense reward along a straight line from hand to object, with all else as it is."""
    task = load_task(f"{hand}-human-v1")
    env, plain = evaluation_env(task), evaluation_env(dataclasses.replace(task, adapter=None))
    env.reset(seed=0), plain.reset(seed=0)
    action = np.zeros(env.action_space.shape)
    d4rl, other = env.step(action)[1], plain.step(action)[1]
    inner = env.unwrapped
    obs = inner._get_obs()
    gap = {"door": obs[35:38], "hammer": obs[33:36] - obs[36:39], "relocate": obs[30:33]}[hand]
    assert other - d4rl == pytest.approx(0.2 * np.linalg.norm(gap), rel=1e-3)


def test_the_kitchen_has_the_noise_of_d4rl():
    env = evaluation_env(load_task("kitchen-partial-v0"))
    rng, off = np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(60):
        obs = env.step(rng.uniform(-0.05, 0.05, 9))[0]
        off.append(obs[:30] - env.unwrapped.data.qpos)
    amplitude = 0.1 * np.repeat(
        [0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005], [9, 2, 6, 3, 3, 3, 3, 1]
    )
    off = np.abs(off).max(0)
    assert (off <= amplitude + 1e-12).all() and (off > 0.8 * amplitude).all()
    # the kettle stands as high as in MuJoCo 2.1.0; without older margins it is 0.9 mm higher
    assert env.unwrapped.data.qpos[25] == pytest.approx(1.61938, abs=2e-4)


# --- what a policy earns --------------------------------------------------------------------

EPISODES = {
    "halfcheetah-medium-v2": 6,
    "hopper-medium-v2": 80,
    "walker2d-medium-v2": 80,
    "ant-medium-v2": 25,
    "antmaze-umaze-v2": 1,
    "maze2d-umaze-v1": 50,
    "maze2d-medium-v1": 25,
    "maze2d-large-v1": 20,
    "pen-human-v1": 60,
    "door-human-v1": 8,
    "hammer-human-v1": 6,
    "relocate-human-v1": 8,
}
# their published minimum is not what uniform actions earn in D4RL itself
NOT_UNIFORM = ("hopper", "ant-")


def uniform_returns(task, episodes, first=0):
    env, returns = evaluation_env(task), []
    for seed in range(first, first + episodes):
        env.reset(seed=seed)
        # the environment draws from default_rng(seed)
        rng, total, over = np.random.default_rng([seed, 1]), 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(
                rng.uniform(-1, 1, env.action_space.shape)
            )
            total, over = total + reward, terminated or truncated
        returns.append(total)
    env.close()
    return np.array(returns)


def error(returns, n=None):
    return returns.std(ddof=1) / np.sqrt(n or len(returns)) if len(returns) > 1 else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", EPISODES)
def test_uniform_actions_earn_what_they_earn_in_d4rl(name):
    """Within four standard errors of the difference. The published minimum is taken for a mean of 100
    episodes (D4RL does not say), and 0.5 % of it for rounding and the version of MuJoCo."""
    task = load_task(name)
    found = uniform_returns(task, EPISODES[name])
    with np.load(RECORDED) as file:
        there = file.get(f"{name}/returns")
    if there is not None and len(there) > 5:
        assert abs(found.mean() - there.mean()) <= 4 * np.hypot(error(found), error(there)) + 1e-9
    if not name.startswith(NOT_UNIFORM):
        spread = found if there is None else there
        slack = 4 * np.hypot(error(found), error(spread, 100)) + 0.005 * abs(task.ref_min)
        assert abs(found.mean() - task.ref_min) <= slack + 1e-9


def steered_returns(size, episodes):
    env, returns = evaluation_env(load_task(f"maze2d-{size}-v1")), []
    act = steer(MAZE2D[size])
    for seed in range(episodes):
        obs, total, over = env.reset(seed=seed)[0], 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.array(returns)


@pytest.mark.slow
@pytest.mark.parametrize("size, episodes", [("umaze", 40), ("medium", 20), ("large", 15)])
def test_a_controller_earns_what_it_earns_in_d4rl(size, episodes):
    found, there = steered_returns(size, episodes), recorded(f"maze2d-{size}-v1", "steered")[0]
    assert abs(found.mean() - there.mean()) <= 4 * np.hypot(error(found), error(there))


# --- identity, other families ---------------------------------------------------------------


def test_rules_are_part_of_a_runs_identity_and_of_no_embedded_set():
    assert load_task("hopper-medium-v2").rules == {"rules": "d4rl-gym/1"}
    assert load_task("antmaze-umaze-v2").rules == {
        "rules": "d4rl-antmaze/1",
        "success": "at any step",
    }
    assert load_task("D4RL/antmaze/umaze-v1").rules == {"success": "at any step"}
    for name in (
        "offbench/hopper/medium-replay-v0",
        "offbench/pointmaze-medium-navigate-v0",
        "mujoco/hopper/medium-v0",
        "cube-single-play-singletask-task1-v0",
    ):
        assert load_task(name).rules == {}


def test_a_run_under_other_rules_is_another_run():
    from offbench.bench.plan import plan

    cell = plan(["method=bc", "task=d4rl/hopper-medium-v2"], bench=False).cells[0]
    plain = dataclasses.replace(cell, task=dataclasses.replace(cell.task, adapter=None))
    assert cell.runs()[0].env["rules"] == "d4rl-gym/1"
    assert cell.runs()[0].run_id != plain.runs()[0].run_id


def test_minari_keeps_the_environment_it_was_recorded_in():
    task = load_task("D4RL/door/human-v2")
    assert task.adapter is None and task.env == "AdroitHandDoor-v1"


# --- the table -----------------------------------------------------------------------------


def table():
    """Lines of results/environments.md."""
    import mujoco

    yield "# What uniform actions earn\n"
    yield (
        "Mean return and its standard error: in the environment that evaluates the id here (MuJoCo "
        f"{mujoco.__version__}, Gymnasium {gymnasium.__version__}), in D4RL's own code with MuJoCo 2.1.0 "
        "(`tests/tasks/recorded/d4rl_steps.py`), and D4RL's published minimum, which scores 0. The last column is "
        "the share of recorded steps of D4RL's own that end, here, within a thousandth of the same state "
        "(in brackets without `offbench.tasks.d4rl_envs`).\n"
    )
    yield "Made by `PYTHONPATH=tests python tests/tasks/test_d4rl_envs.py > results/environments.md`.\n"
    yield "| id | environment | episodes | here | D4RL, MuJoCo 2.1.0 | published minimum | steps that agree | remark |"
    yield "|---|---|---|---|---|---|---|---|"
    with np.load(RECORDED) as file:
        kept = {k.split("/")[0]: file[k] for k in file if k.endswith("/returns")}
    remarks = {
        "hopper": "the minimum is not uniform actions'",
        "ant-": "the minimum is not uniform actions'",
        "door": "a finger or box against the door is found otherwise",
        "antmaze": "steps against a wall",
        "kitchen": "the minimum is 0 by definition",
    }
    for name, few in (EPISODES | {"kitchen-mixed-v0": 1}).items():
        task, n = load_task(name), {"kitchen-mixed-v0": 20, "antmaze-umaze-v2": 5}.get(name)
        n = n or max(100 if task.max_episode_steps < 1000 else 24, 4 * few)
        found = uniform_returns(task, n, first=1000)
        there = kept.get(name)
        own = "-" if there is None else f"{there.mean():.2f} ± {error(there):.2f} ({len(there)})"
        agree = "-"
        if name in STEPS:
            plain = evaluation_env(dataclasses.replace(task, adapter=None))
            shares = [np.mean(repeat(name, env)[0] < 1e-3) for env in (evaluation_env(task), plain)]
            agree = f"{shares[0]:.0%} ({shares[1]:.0%})"
        remark = next((v for k, v in remarks.items() if name.startswith(k)), "")
        yield (
            f"| {name} | {task.env} | {n} | {found.mean():.2f} ± {error(found):.2f} | {own} | "
            f"{task.ref_min:g} | {agree} | {remark} |"
        )
    yield "\nA controller along the shortest path (`steer` in `tests/tasks/recorded/d4rl_steps.py`):\n"
    yield "| id | episodes | here | D4RL, MuJoCo 2.1.0 | published maximum |\n|---|---|---|---|---|"
    for size in ("umaze", "medium", "large"):
        name = f"maze2d-{size}-v1"
        found, there = steered_returns(size, 100), recorded(name, "steered")[0]
        yield (
            f"| {name} | 100 | {found.mean():.1f} ± {error(found):.1f} | {there.mean():.1f} ± "
            f"{error(there):.1f} (100) | {load_task(name).ref_max:.1f} |"
        )


if __name__ == "__main__":
    print("\n".join(table()))
