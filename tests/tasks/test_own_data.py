"""Files that people bring: units of actions, ends of episodes, choices, names, and refusals in one line."""

import shlex

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import data_command as main

from offbench.data.replay import episode_returns
from offbench.errors import UserError
from offbench.tasks.custom import own_task
from offbench.tasks.doctor import DataWarning
from offbench.tasks.environments import evaluation_env
from offbench.tasks.formats import arrays, d4rl
from offbench.tasks.loading import doctor_report, load_data

Columns = dict[str, np.ndarray]


def steps(n: int = 2000, length: int = 100, **changes: np.ndarray | None) -> Columns:
    """Episodes of `length` rows, every second one ended by a terminal."""
    rng = np.random.default_rng(0)
    end = np.arange(n) % length == length - 1
    terminal = end & (np.arange(n) // length % 2 == 0)
    columns = {
        "observations": rng.normal(size=(n, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        "rewards": np.ones(n, np.float32),
        "terminals": terminal,
        "timeouts": end & ~terminal,
    }
    return {k: v for k, v in {**columns, **changes}.items() if v is not None}


def write(path, columns: Columns):
    if path.suffix == ".npz":
        np.savez(path, **columns)
    else:
        with h5py.File(path, "w") as file:
            for key, x in columns.items():
                file[key] = x
    return path


FORMATS = ["a.hdf5", "a.npz"]


# --- where an episode ends --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_time_outs_and_terminals_are_read_alike_in_every_format(name, tmp_path, capsys):
    path = write(tmp_path / name, steps())
    data = arrays.load(path, name="mine")
    assert data.n_episodes == 20 and int(data.terminal.sum()) == 10
    # the last row of an episode that was cut leads nowhere
    assert data.n_transitions == 10 * 100 + 10 * 99
    assert main(["check", str(path)]) == 0
    said = "20 episodes of 100 steps; ended by 'terminals' 10, 'timeouts' 10"
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "renamed",
    [
        {"timeouts": "truncations", "terminals": "terminations"},
        {"timeouts": "truncated", "terminals": "terminated", "observations": "obs"},
        {"actions": "action", "rewards": "reward"},
    ],
)
def test_the_names_that_libraries_give_are_known(renamed, tmp_path):
    plain = arrays.load(write(tmp_path / "a.npz", steps()), name="a")
    columns = {renamed.get(k, k): v for k, v in steps().items()}
    other = arrays.load(write(tmp_path / "b.hdf5", columns), name="b")
    assert all((x == y).all() for x, y in zip(plain, other))


def test_episode_numbers_and_d3rlpys_marks_end_episodes(tmp_path):
    whole = steps()
    plain = arrays.load(write(tmp_path / "a.npz", whole), name="a")
    numbers = np.arange(2000) // 100
    ends = whole["terminals"] | whole["timeouts"]
    for i, more in enumerate(({"episode_id": numbers}, {"episode_terminals": ends})):
        path = write(tmp_path / f"{i}.hdf5", steps(timeouts=None, **more))
        other = arrays.load(path, name="b")
        assert all((x == y).all() for x, y in zip(plain, other))


@pytest.mark.parametrize("name", FORMATS)
def test_first_rows_of_episodes_end_the_ones_before(name, tmp_path, capsys):
    """NeoRL's `index`, beside columns (N, 1)."""
    whole = steps()
    plain = arrays.load(write(tmp_path / f"plain-{name}", whole), name="a")
    done = whole["terminals"].astype(int)[:, None]
    first = np.arange(0, 2000, 100)
    columns = steps(terminals=None, timeouts=None, done=done, index=first)
    columns["rewards"] = columns["rewards"][:, None]
    path = write(tmp_path / name, columns)
    data = arrays.load(path, name="a", reading=arrays.Reading(max_episode_steps=1000))
    assert all((x == y).all() for x, y in zip(plain, data))
    main(["check", str(path), "--limit", "1000"])
    assert "ended by 'done' 10, 'index' 10" in " ".join(capsys.readouterr().out.split())
    # a number a step is no list of first rows
    path = write(tmp_path / f"each-{name}", steps(index=np.arange(2000)))
    assert arrays.load(path, name="b").n_episodes == 20
    for wrong in (first + 1, first[::-1], first * 2, first.astype(float)):
        path = write(tmp_path / f"wrong-{name}", steps(index=wrong))
        with pytest.raises(UserError, match="index must be the first row of each episode"):
            arrays.load(path, name="b")
    path = write(
        tmp_path / f"on-{name}", {**columns, "next_obs": np.roll(columns["observations"], -1, 0)}
    )
    with pytest.raises(
        UserError, match=r"at every one of its 20 ends of episodes \(index\) the next observation"
    ):
        arrays.load(path, name="b", reading=arrays.Reading(max_episode_steps=1000))


def test_dones_are_terminals_unless_one_lies_at_the_limit(tmp_path):
    done = np.zeros(300, bool)
    done[[49, 119, 199, 299]] = True
    columns = steps(300, terminals=None, timeouts=None, dones=done)
    path = write(tmp_path / "a.npz", columns)
    data = arrays.load(path, name="a", reading=arrays.Reading(max_episode_steps=200))
    assert data.n_episodes == 4 and int(data.terminal.sum()) == 4
    with pytest.raises(
        UserError, match="'dones' ends 1 episodes at 100 steps, which may be the time"
    ):
        arrays.load(path, name="a", reading=arrays.Reading(max_episode_steps=100))
    beside = steps(300, terminals=None, timeouts=np.arange(300) == 299, dones=done)
    data = arrays.load(write(tmp_path / "b.npz", beside), name="b")
    assert data.n_episodes == 4 and int(data.terminal.sum()) == 3


def test_a_file_that_was_cut_nobody_knows_where_is_refused(tmp_path, capsys):
    path = write(tmp_path / "a.hdf5", steps(terminals=np.zeros(2000, bool), timeouts=None))
    with pytest.raises(
        UserError, match=r"2000 rows without a terminal.*task.max_episode_steps=1000"
    ):
        load_data(own_task(path, env="InvertedPendulum-v5"))
    given = own_task(path, env="InvertedPendulum-v5", max_episode_steps=200)
    assert load_data(given)[0].n_episodes == 10
    assert main(["check", str(path), "--limit", "200"]) in (0, 1)
    assert "10 episodes of 200 steps; ended by the limit of 200" in " ".join(
        capsys.readouterr().out.split()
    )
    # shorter ones may stand: where the recorder stopped an episode early is not known either way
    short = write(tmp_path / "b.hdf5", steps(timeouts=None, n=900))
    assert load_data(own_task(short, env="InvertedPendulum-v5"))[0].n_episodes == 5


@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_rounding_is_not_the_end_of_an_episode(stored, tmp_path):
    """Observations in float64 beside next observations of a shorter type."""
    walk = 300 + np.cumsum(np.random.default_rng(0).normal(size=(1001, 4)), 0)
    end = np.arange(1000) % 100 == 99
    columns = steps(1000, observations=walk[:-1], next_observations=walk[1:].astype(stored))
    columns |= {"terminals": np.zeros(1000, bool), "timeouts": end}
    # an episode begins elsewhere
    columns["observations"] = columns["observations"] + 7.0 * (np.arange(1000) // 100)[:, None]
    columns["next_observations"] = (walk[1:] + 7.0 * (np.arange(1000) // 100)[:, None]).astype(
        stored
    )
    data = arrays.load(write(tmp_path / "a.hdf5", columns), name="a")
    assert data.n_episodes == 10


# --- actions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_recorded_action_is_played_as_it_was_recorded(name, tmp_path):
    """InvertedPendulum takes [-3, 3]."""
    action = np.random.default_rng(1).uniform(-3, 3, (200, 1)).astype(np.float32)
    path = write(tmp_path / name, steps(200, actions=action))
    task = own_task(path, env="InvertedPendulum-v5")
    data, _ = load_data(task)
    played = []
    env = evaluation_env(task)
    inner, step = env.unwrapped, env.unwrapped.step
    inner.step = lambda a: (played.append(np.array(a)), step(a))[1]
    env.reset(seed=0)
    for row in data.action[data.valid][:50].numpy():
        env.step(row)
        env.reset(seed=0)
    recorded = np.delete(action, 199, 0)[:50]
    np.testing.assert_allclose(np.array(played), recorded, atol=1e-5)
    unit = own_task(path, env="InvertedPendulum-v5", actions="unit")
    with pytest.raises(UserError, match=r"outside \[-1, 1\]"):
        load_data(unit)


def test_the_d4rl_package_is_refused_where_actions_would_have_to_be_scaled(tmp_path):
    import dataclasses

    task = own_task(write(tmp_path / "a.hdf5", steps(200)), env="InvertedPendulum-v5")
    with pytest.raises(
        UserError, match=r"loader=d4rl takes actions as they are .* task.actions=unit"
    ):
        load_data(dataclasses.replace(task, loader="d4rl"))


def test_an_action_outside_the_environments_bounds_is_refused_with_them(tmp_path):
    action = np.zeros((200, 1), np.float32)
    action[7] = 3.5
    path = write(tmp_path / "a.npz", steps(200, actions=action))
    with pytest.raises(
        UserError, match=r"action 3.5 at row 7 .*bounds \[-3, 3\]; task.actions=unit"
    ):
        load_data(own_task(path, env="InvertedPendulum-v5"))


def test_the_units_of_actions_are_part_of_a_runs_identity(tmp_path):
    from offbench.bench.plan import plan

    path = write(tmp_path / "a.hdf5", steps(200))
    own = [f"task.data={path}", "task.env=InvertedPendulum-v5", "method=bc", "seeds=[0]"]
    runs = [
        plan([*own, *more], bench=False).cells[0].runs()[0].run_id
        for more in ([], ["task.actions=unit"])
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_whole_numbers_are_choices(name, shape, tmp_path):
    choice = np.random.default_rng(2).integers(0, 2, 200).reshape(shape)
    path = write(tmp_path / name, steps(200, actions=choice))
    data, spec = load_data(own_task(path, env="CartPole-v1"))
    assert spec.discrete and data.action.shape[1] == 2
    recorded = np.delete(choice.ravel(), 199)
    assert (data.action[data.valid].argmax(1).numpy() == recorded).all()
    one_hot = np.eye(2, dtype=np.float32)[choice.ravel()]
    other = own_task(
        write(tmp_path / f"one-hot-{name}", steps(200, actions=one_hot)), env="CartPole-v1"
    )
    assert (load_data(other)[0].action == data.action).all()


def test_choices_that_the_environment_has_not_are_refused(tmp_path):
    choice = np.arange(200) % 3
    path = write(tmp_path / "a.npz", steps(200, actions=choice))
    with pytest.raises(UserError, match="choices from 0 to 1, found 0 to 2"):
        load_data(own_task(path, env="CartPole-v1"))
    many = write(tmp_path / "b.npz", steps(2000, actions=np.arange(2000)))
    with pytest.raises(UserError, match="as choices they are too many"):
        arrays.load(many, name="b")


def test_one_continuous_action_may_be_a_single_column(tmp_path):
    flat = np.random.default_rng(3).uniform(-1, 1, 200).astype(np.float32)
    data = arrays.load(write(tmp_path / "a.hdf5", steps(200, actions=flat)), name="a")
    assert data.action.shape[1] == 1 and episode_returns(data).shape == (2,)


@pytest.mark.env
def test_check_repeats_the_steps_of_a_file_in_the_environment_that_is_given(tmp_path, capsys):
    import gymnasium

    env = gymnasium.make("HalfCheetah-v5", max_episode_steps=150)
    env.action_space.seed(0)
    rows = []
    for episode in range(2):
        obs, cut = env.reset(seed=episode)[0], False
        while not cut:
            action = env.action_space.sample()
            after, reward, _, cut, _ = env.step(action)
            rows.append((obs, action, reward, after, cut))
            obs = after
    obs, action, reward, after, cut = map(np.array, zip(*rows))
    columns = {"observations": obs, "actions": action, "rewards": reward, "timeouts": cut}
    columns |= {"next_observations": after, "terminals": np.zeros(300, bool)}
    path = write(tmp_path / "a.hdf5", columns)
    assert main(["check", str(path), "--env", "HalfCheetah-v5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "100% agree" in said and "100% of the rewards agree" in said
    with pytest.raises(UserError, match="have 6 features, the environment takes 3"):
        main(["check", str(path), "--env", "Hopper-v5"])


# --- what a run and a check say of a file ------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("length", [1000, 100])
def test_time_limits_recorded_as_terminals_are_told_by_a_run_and_a_check(
    length, tmp_path, capsys, cache
):
    """InvertedPendulum is cut at 1000 steps; a recorder may have cut at 100."""
    n = 4 * length
    path = write(
        tmp_path / "a.npz", steps(n, terminals=np.arange(n) % length == length - 1, timeouts=None)
    )
    if length == 1000:
        with pytest.warns(
            DataWarning, match="4 of 4 episodes that reach the limit of 1000 steps end with a term"
        ):
            load_data(own_task(path, env="InvertedPendulum-v5", id=f"own/{tmp_path.name}"))
        assert main(["check", str(path), "--env", "InvertedPendulum-v5"]) == 1
        assert "where a time-out is meant" in " ".join(capsys.readouterr().out.split())
    assert main(["check", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"all 4 episodes end with a terminal at exactly {length} steps" in said
    # episodes of several lengths, or that were cut, are not remarked on
    cut = {"terminals": np.zeros(n, bool), "timeouts": np.arange(n) % length == length - 1}
    for more in (cut, {"terminals": np.arange(n) % 130 == 40, "timeouts": None}):
        path = write(tmp_path / "b.npz", steps(n, **more))
        load_data(own_task(path, env="InvertedPendulum-v5", id=f"own/other-{tmp_path.name}"))
        main(["check", str(path)])
        assert "end with a terminal" not in capsys.readouterr().out


@pytest.mark.parametrize("more", [{}, {"max_episode_steps": 100}, {"actions": "unit"}])
def test_the_command_in_a_refusal_shows_the_defect(more, tmp_path, capsys, cache):
    path = write(tmp_path / "my set.npz", steps(rewards=np.zeros(2000)))
    task = own_task(path, env="InvertedPendulum-v5", **more)
    with pytest.raises(UserError, match=r"every reward is zero; .*strict=true refuses it") as error:
        load_data(task, defects="refuse")
    command = str(error.value).split("(see: offbench data ")[1].removesuffix(")")
    capsys.readouterr()
    assert main(shlex.split(command)) == 1
    assert "every reward is zero" in " ".join(capsys.readouterr().out.split())


def test_a_minari_set_of_other_action_bounds_than_its_environments_is_a_defect(
    tmp_path, capsys, cache
):
    import gymnasium
    from support.layouts import make, write_minari

    box, made = gymnasium.spaces.Box, {}
    for bound in (1, 3):
        made[bound] = write_minari(
            make([5, 6]),
            tmp_path / str(bound),
            "hdf5",
            action_space=box(-bound, bound, (2,), np.float32),
        )
    gymnasium.register(
        "Reacher2-v0",
        entry_point="gymnasium.envs.mujoco.reacher_v5:ReacherEnv",
        max_episode_steps=50,
    )
    try:
        for bound in (1, 3):
            task = own_task(made[bound], env="Reacher2-v0", id=f"own/bounds-{bound}")
            found = [f for f in doctor_report(task).findings if f.name == "action_bounds"]
            assert bool(found) == (bound == 3)
            args = ["check", str(made[bound]), "--env", "Reacher2-v0"]
            main(args)
            said = " ".join(capsys.readouterr().out.split())
            assert ("actions were recorded in [-3, 3]" in said) == (bound == 3)
        assert found[0].severity == "severe" and main(args) == 1
        with pytest.warns(
            DataWarning,
            match=r"recorded in \[-3, 3\] \(2 features\), Reacher2-v0 takes \[-1, 1\] \(2\)",
        ):
            load_data(task)
    finally:
        del gymnasium.registry["Reacher2-v0"]


def test_a_set_of_arrays_is_saved_and_read_again(tmp_path):
    import offbench

    x = steps(400)
    data = offbench.from_arrays(
        x["observations"], x["actions"], x["rewards"], x["terminals"], x["timeouts"], name="mine"
    )
    for name in FORMATS:
        offbench.save_data(data, tmp_path / name)
        again = arrays.load(tmp_path / name, name="mine")
        assert all((a == b).all() for a, b in zip(data, again))
    with pytest.raises(UserError, match=r"written as .npz or .hdf5"):
        offbench.save_data(data, tmp_path / "a.csv")
    choices = offbench.from_arrays(
        x["observations"], np.arange(400) % 3, x["rewards"], x["terminals"], x["timeouts"]
    )
    assert choices.action.shape[1] == 3


# --- environments and refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("Hopper-v2", "did you mean 'Hopper-v5'"),
        ("Hopper-v3", "did you mean 'Hopper-v5'"),
        ("nosuch:Env-v0", "No module named 'nosuch'"),
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("mine-v0", "written module:Id"),
    ],
)
def test_an_environment_that_cannot_be_had_is_one_line(env, words, tmp_path):
    path = write(tmp_path / "a.npz", steps(200))
    with pytest.raises(UserError, match=words) as error:
        own_task(path, env=env)
    assert "\n" not in str(error.value)


def test_an_npz_with_rewards_and_terminals_is_read_as_hdf5_is(tmp_path):
    columns = steps(timeouts=None, qpos=np.zeros((2000, 3)))
    read = [arrays.load(write(tmp_path / name, columns), name="a") for name in FORMATS]
    assert all((x == y).all() for x, y in zip(*read))
    assert int(read[0].terminal.sum()) == 10


def test_ogbenchs_layout_takes_no_other_bounds_than_its_own(tmp_path):
    columns = {k: v for k, v in steps().items() if k in ("observations", "actions", "terminals")}
    path = write(tmp_path / "a.npz", columns)
    with pytest.raises(
        UserError, match=r"OGBench's layout has actions in .-1, 1., InvertedPendulum"
    ):
        load_data(own_task(path, env="InvertedPendulum-v5"))


def test_time_outs_that_lead_on_to_the_next_row_are_not_guessed_at(tmp_path):
    """As vector environments record them: the next observation is the first of the next episode."""
    obs = steps()["observations"]
    columns = steps(terminals=np.zeros(2000, bool), timeouts=np.arange(2000) % 100 == 99)
    columns["next_observations"] = np.concatenate([obs[1:], obs[:1]])
    path = write(tmp_path / "a.hdf5", columns)
    with pytest.raises(
        UserError, match="at every one of its 20 time-outs the next observation is the"
    ):
        load_data(own_task(path, env="InvertedPendulum-v5"))


@pytest.mark.parametrize("limit", [0, -5])
def test_a_time_limit_is_at_least_one_step(limit, tmp_path):
    path = write(tmp_path / "a.npz", steps(200))
    with pytest.raises(UserError, match=f"max_episode_steps={limit} must be at least 1"):
        own_task(path, env="InvertedPendulum-v5", max_episode_steps=limit)


@pytest.mark.parametrize(
    "space",
    [
        "MultiDiscrete([2, 2])",
        "Box(np.float32([-np.inf]), np.float32([1]))",
        "Box(np.float32([0]), np.float32([0]))",
    ],
)
def test_an_environment_of_other_actions_is_refused_in_one_line(space, tmp_path):
    import gymnasium
    from gymnasium.spaces import Box, MultiDiscrete

    class Odd(gymnasium.Env):
        observation_space = Box(-1, 1, (4,))
        action_space = eval(space, {"Box": Box, "MultiDiscrete": MultiDiscrete, "np": np})

        def reset(self, **kwargs):
            return np.zeros(4), {}

    gymnasium.register("OddActions-v0", entry_point=Odd)
    try:
        with pytest.raises(UserError, match="actions must be a Box with finite bounds") as error:
            own_task(write(tmp_path / "a.npz", steps(200)), env="OddActions-v0")
        assert "\n" not in str(error.value)
    finally:
        del gymnasium.registry["OddActions-v0"]


def test_choices_begin_where_those_of_the_environment_do(tmp_path):
    import gymnasium
    from gymnasium.spaces import Box, Discrete

    class FromOne(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (4,)), Discrete(3, start=1)

        def reset(self, **kwargs):
            return np.zeros(4), {}

    gymnasium.register("FromOne-v0", entry_point=FromOne)
    try:
        choice = 1 + np.random.default_rng(2).integers(0, 2, 200)
        data, _ = load_data(
            own_task(write(tmp_path / "a.npz", steps(200, actions=choice)), env="FromOne-v0")
        )
        assert data.action.shape[1] == 3
        assert (data.action[data.valid].argmax(1).numpy() == np.delete(choice, 199) - 1).all()
        # numbers that are no choices are not rounded to some, and are named as they were recorded
        for wrong in (choice - 1, choice + 0.5):
            other = own_task(write(tmp_path / "b.npz", steps(200, actions=wrong)), env="FromOne-v0")
            with pytest.raises(UserError, match=f"from 1 to 3, found {wrong.min():g} to "):
                load_data(other)
    finally:
        del gymnasium.registry["FromOne-v0"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", r"Faulty-v0.reset raised RuntimeError: no renderer \(.*test_own_data.py:\d+\)$"),
        ("shape", r"Faulty-v0.step returned an observation of shape \(3,\), and .* has \(4,\)$"),
        ("later", r"Faulty-v0.step raised ValueError: it exploded \(.*test_own_data.py:\d+\)$"),
        ("reward", r"Faulty-v0.step returned the reward nan in its first step$"),
        ("none", None),
    ],
)
def test_a_fault_of_the_users_environment_is_one_line(tmp_path, fault, words):
    import gymnasium
    from gymnasium.spaces import Box

    from offbench.rollout import EnvPool
    from offbench.tasks import own_env

    class Faulty(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (4,)), Box(-1, 1, (1,))

        def reset(self, **kwargs):
            if fault == "reset":
                raise RuntimeError("no renderer")
            self.t = 0
            return np.zeros(4, np.float32), {}

        def step(self, action):
            self.t += 1
            if fault == "later" and self.t == 3:
                raise ValueError("it exploded")
            reward = np.nan if fault == "reward" else 0.0
            return np.zeros(3 if fault == "shape" else 4, np.float32), reward, False, False, {}

    own_env._warn_of_no_limit.cache_clear()
    gymnasium.register("Faulty-v0", entry_point=Faulty)
    try:
        task = own_task(write(tmp_path / "a.npz", steps(200)), env="Faulty-v0")
        pool, spec = EnvPool(task), load_data(task)[1]

        def play():
            with pytest.warns(match="Faulty-v0 has no time limit: .*max_episode_steps: 1000"):
                pool.check(spec)
            env = pool.take(1)[0]
            env.reset()
            return [env.step(np.zeros(1)) for _ in range(4)]

        if words is None:
            assert len(play()) == 4
        else:
            with pytest.raises(UserError, match=words):
                play()
    finally:
        del gymnasium.registry["Faulty-v0"]


def test_two_names_of_one_column_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", steps(200, obs=np.zeros((200, 4))))
    with pytest.raises(UserError, match="'observations' and 'obs' are both observations"):
        arrays.load(path, name="a")


shapes = st.sampled_from(
    [(), (0,), (6,), (6, 1), (6, 2), (2, 3), (2, 3, 2), (6, 2, 2), (5,), (1, 6)]
)
kinds = st.sampled_from(["<f4", "<f8", "<i8", "?", "<U3", "<c8", "<u1"])
keys = st.sampled_from(
    [
        "observations",
        "obs",
        "actions",
        "action",
        "rewards",
        "terminals",
        "terminations",
        "timeouts",
        "dones",
        "ends",
        "episode_id",
        "next_observations",
        "masks",
        "valids",
        "qpos",
        "index",
        "other",
    ]
)
layouts = st.dictionaries(keys, st.tuples(shapes, kinds, st.integers(0, 3)), max_size=9)
WHOLE = {
    "observations": ((6, 2), "<f4", 0),
    "actions": ((6, 1), "<f4", 1),
    "rewards": ((6,), "<f4", 2),
    "terminals": ((6,), "?", 3),
    "timeouts": ((6,), "?", 1),
}


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(layout=layouts, base=st.booleans(), suffix=st.sampled_from([".npz", ".hdf5"]))
def test_check_finds_or_refuses_and_never_falls(layout, base, suffix, tmp_path_factory):
    """Any arrays under known names: a report, or one line that says what is wrong."""
    layout = {**WHOLE, **layout} if base else layout
    path = tmp_path_factory.mktemp("layout") / f"x{suffix}"
    columns = {}
    for key, (shape, kind, seed) in layout.items():
        x = np.random.default_rng(seed).uniform(-1.2, 1.9, shape)
        columns[key] = x.astype(kind)
    if suffix == ".hdf5":
        columns = {k: v for k, v in columns.items() if v.dtype.kind != "U"}
    write(path, columns)
    for args in ([], ["--limit", "3"]):
        try:
            assert main(["check", str(path), *args]) in (0, 1)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
    try:
        d4rl.read(path, name="x")
    except UserError:
        pass
