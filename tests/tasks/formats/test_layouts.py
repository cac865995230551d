"""The same episodes, written in every layout, load to the same set; the packages are the judges."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import make, same, steps, write_d4rl, write_minari, write_ogbench

from offbench.data.replay import from_episodes
from offbench.tasks.formats import arrays, d4rl, minari, ogbench


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_every_layout_of_the_same_episodes_loads_to_the_same_set(lengths, seed):
    episodes = make(lengths, seed)
    whole = from_episodes(episodes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_d4rl(episodes, root / "a.hdf5")
        write_ogbench(episodes, root / "b.npz")
        arrays.save_data(whole, root / "c.npz")
        found = {
            "d4rl": d4rl.load(root / "a.hdf5", name="a"),
            "ogbench": ogbench.load(root / "b.npz", name="b"),
            "arrays": arrays.load(root / "c.npz", name="c"),
        }
        for data_format in ("hdf5", "arrow"):
            path = write_minari(episodes, root / data_format, data_format)
            found[data_format] = minari.load(path, name=data_format)
        column = steps(episodes)
        found["memory"] = arrays.from_arrays(
            column["observations"],
            column["actions"],
            column["rewards"],
            column["terminals"],
            column["timeouts"],
            column["next_observations"],
        )
    assert [k for k, data in found.items() if not same(data, whole)] == []


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_terminals_survive_the_layouts_that_can_say_them(data_format, tmp_path):
    episodes = make([3, 1, 4])
    episodes = [
        e._replace(terminal=np.arange(len(e.action)) == len(e.action) - 1) for e in episodes[:2]
    ] + episodes[2:]
    whole = from_episodes(episodes)
    write_d4rl(episodes, tmp_path / "a.hdf5")
    assert same(d4rl.load(tmp_path / "a.hdf5", name="a"), whole)
    path = write_minari(episodes, tmp_path / "m", data_format)
    assert same(minari.load(path, name="m"), whole)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_itself_reads_the_same_episodes(data_format, tmp_path, monkeypatch):
    import minari as package

    path = write_minari(make([4, 1, 6]), tmp_path, data_format)
    data = minari.load(path, name="m")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    judge = package.load_dataset(f"test/{data_format}-v0")
    row = 0
    for episode in judge.iterate_episodes():
        n = len(episode.rewards)
        np.testing.assert_array_equal(data.obs[row : row + n + 1], episode.observations)
        np.testing.assert_array_equal(data.action[row : row + n], episode.actions)
        np.testing.assert_array_equal(data.reward[row : row + n], np.float32(episode.rewards))
        row += n + 1
    assert row == len(data.last)


def test_ogbench_itself_makes_the_same_transitions_of_a_file(tmp_path):
    import ogbench as package

    write_ogbench(make([4, 2, 6]), tmp_path / "a.npz")
    data = ogbench.load(tmp_path / "a.npz", name="a")
    judge = package.load_dataset(str(tmp_path / "a.npz"))
    row = data.valid.nonzero()[:, 0]
    np.testing.assert_array_equal(data.obs[row], judge["observations"])
    np.testing.assert_array_equal(data.obs[row + 1], judge["next_observations"])
    np.testing.assert_array_equal(data.action[row], judge["actions"])


@pytest.mark.parametrize("compact", [True, False])
def test_both_layouts_that_ogbench_makes_are_read(compact, tmp_path):
    import ogbench as package

    write_ogbench(make([4, 2, 6]), tmp_path / "a.npz")
    made = package.load_dataset(str(tmp_path / "a.npz"), compact_dataset=compact)
    np.savez(tmp_path / "b.npz", **made)
    first, second = (ogbench.load(tmp_path / f"{x}.npz", name=x) for x in "ab")
    assert same(first._replace(reward=second.reward), second)


def test_a_folder_of_parts_is_one_set_and_leaves_out_validation(tmp_path):
    episodes = make([4, 2, 6, 3])
    for i, part in enumerate((episodes[:1], episodes[1:])):
        write_ogbench(part, tmp_path / f"x-{i:03d}.npz")
    write_ogbench(episodes, tmp_path / "x-val.npz")
    assert same(ogbench.load(tmp_path, name="x"), from_episodes(episodes))


def test_pictures_become_rows_of_numbers(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(
        tmp_path / "a.npz", observations=image, actions=np.zeros((5, 2)), terminals=np.eye(5)[4]
    )
    data = ogbench.load(tmp_path / "a.npz", name="a")
    np.testing.assert_array_equal(data.obs, image.reshape(5, -1))
