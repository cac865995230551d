"""Single tasks of OGBench: its own relabelling is the judge of our rewards and ends."""

import weakref

import numpy as np
import pytest
import torch

from offbench.data.replay import from_flat
from offbench.errors import UserError
from offbench.tasks import registry
from offbench.tasks.formats import ogbench

pytestmark = [
    pytest.mark.env,
    # OGBench makes its action space anew, and warns, whenever it is asked for
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))


def conditions_met(task, rng, n):
    """States of which some satisfy each condition of a task, and some all of them."""
    state = {"qpos": rng.standard_normal((n, 60)).astype(np.float32)}
    goals = ogbench.goal(task, task)
    buttons = [c for c in goals if c.column == "button_states"]
    if buttons:
        state["button_states"] = rng.integers(0, 2, (n, len(buttons[0].target)))
    for c in goals:
        met = (rng.random(n) < 0.6) | (np.arange(n) % 5 == 0)
        noise = rng.uniform(-1, 1, (n, len(c.target))) * (0 if c.within is None else c.within / 2)
        x = state[c.column]
        x[met, c.start : c.start + len(c.target)] = (c.target + noise)[met]
    return state


@pytest.mark.parametrize(
    "set_id",
    [
        "pointmaze-medium-navigate-singletask-task3-v0",
        "antsoccer-arena-navigate-singletask-v0",
        "cube-double-play-singletask-task4-v0",
        "scene-play-singletask-v0",
        "puzzle-3x3-play-singletask-v0",
    ],
)
def test_rewards_and_ends_are_those_of_ogbench(set_id, tmp_path):
    import ogbench as package
    from ogbench.relabel_utils import relabel_dataset

    from offbench.tasks.environments import make_env

    card, rng, n = registry.describe(set_id), np.random.default_rng(0), 40
    state = conditions_met(card.env, rng, n)
    ends = np.arange(n) % 10 == 9
    np.savez(
        tmp_path / "a.npz",
        observations=rng.standard_normal((n, 4), np.float32),
        actions=rng.uniform(-1, 1, (n, 2)),
        terminals=ends,
        **state,
    )
    judge = package.load_dataset(str(tmp_path / "a.npz"), add_info=True)
    env = make_env(card.env, {}, set_id)
    relabel_dataset(card.env, env, judge)
    env.close()
    data = ogbench.load(tmp_path / "a.npz", name=card.id, task=card.env)
    row = data.valid
    np.testing.assert_array_equal(data.reward[row], judge["rewards"])
    np.testing.assert_array_equal(data.terminal[row], judge["masks"] == 0)
    assert 0 < int(data.terminal.sum()) < n and len(set(judge["rewards"].tolist())) > 1
    sparse = ogbench.load(tmp_path / "a.npz", name=card.id, task=card.env, sparse=True)
    np.testing.assert_array_equal(sparse.reward[row], np.where(judge["rewards"] != 0, -1, 0))
    assert torch.equal(sparse.terminal, data.terminal)


@pytest.mark.parametrize(
    "name",
    [
        "pointmaze-medium-navigate",
        "antsoccer-arena-navigate",
        "cube-single-play",
        "scene-play",
        "puzzle-3x3-play",
        "puzzle-4x4-play",
        "puzzle-4x5-play",
        "puzzle-4x6-play",
    ],
)
def test_the_alias_means_the_task_that_ogbench_means(name):
    import gymnasium
    import ogbench  # noqa: F401

    env = name.rsplit("-", 1)[0]
    made = gymnasium.make(f"{env}-singletask-v0")
    assert registry.describe(f"{name}-singletask-v0").id.endswith(
        f"-task{made.unwrapped._reward_task_id}-v0"
    )
    made.close()


def test_the_reward_is_of_the_state_before_the_action():
    """The state at row t decides the reward of row t, and that of the last row decides nothing."""
    task = "pointmaze-medium-singletask-task1-v0"
    goals = ogbench.goal(task, task)
    qpos = np.zeros((4, 2)) + 100
    qpos[[1, 3]] = goals[0].target

    class File:
        def read(self, key):
            return qpos

    reward, done = ogbench.relabel(File(), goals, "x")
    assert reward.tolist() == [-1, 0, -1, 0] and done.tolist() == [False, True, False, True]
    end = np.array([False, False, False, True])
    data = from_flat(qpos, qpos * 0, reward, done & ~end, end, terminal_inside=True)
    assert data.reward.tolist() == [-1, 0, -1, 0] and data.terminal.tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert data.n_transitions == 3


def test_a_file_without_the_state_cannot_be_labelled(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        observations=np.zeros((3, 2)),
        actions=np.zeros((3, 2)),
        terminals=[0, 0, 1],
    )
    with pytest.raises(UserError, match="there is no 'qpos'"):
        ogbench.load(tmp_path / "a.npz", name="a", task="pointmaze-medium-singletask-task1-v0")


def test_labelling_leaves_numpys_generator_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    ogbench.goal("pointmaze-medium-singletask-task1-v0", "x")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_a_large_set_in_parts_is_kept_as_it_is_read_and_never_whole_in_memory(
    tmp_path, monkeypatch
):
    """The same arrays as joined in memory, from one part at a time, and read back mapped."""
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "parts"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, n in enumerate((7, 30, 12)):
        np.savez(
            folder / f"set-{i}.npz",
            observations=generator.normal(size=(n, 3)).astype(np.float32),
            actions=generator.uniform(-1, 1, (n, 2)).astype(np.float32),
            terminals=np.arange(n) % 5 == 4,
        )
    whole = ogbench.load(folder, name="whole")
    alive, real = [], ogbench._load

    def counted(*args):
        alive.append(sum(ref() is not None for ref in refs))
        data = real(*args)
        refs.append(weakref.ref(data.obs))
        return data

    refs: list = []
    monkeypatch.setattr(ogbench, "LARGE", 0)
    monkeypatch.setattr(ogbench, "_load", counted)
    streamed = ogbench.load(folder, name="streamed")
    assert len(alive) == 3 and max(alive) <= 1
    for a, b in zip(streamed, whole, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert torch.equal(ogbench.load(folder, name="again").obs, whole.obs) and len(alive) == 3

    np.savez(
        folder / "set-3.npz",
        observations=np.zeros((5, 4), np.float32),
        actions=np.zeros((5, 2), np.float32),
        terminals=np.arange(5) == 4,
    )
    with pytest.raises(UserError, match=r"wide: its parts differ in dimensions"):
        ogbench.load(folder, name="wide")
    assert not list((tmp_path / "cache").rglob(".writing-*"))
