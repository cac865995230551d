"""D4RL files: where an episode ends, and the real package as the judge of references and pairs."""

import importlib.util
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from support.layouts import make, same, write_d4rl
from support.paths import ROOT, SHARED

from offbench.bench.plan import plan
from offbench.data.replay import episode_returns, from_episodes
from offbench.errors import UserError
from offbench.tasks import loading, registry
from offbench.tasks.formats import d4rl
from offbench.tasks.locate import load_task

DOOR = SHARED / "data" / "d4rl" / "door-human-v0.hdf5"
needs_door = pytest.mark.skipif(not DOOR.is_file(), reason=f"{DOOR.name} is not in {SHARED}")


@needs_door
def test_time_outs_inside_the_door_demonstrations_end_nothing():
    card = registry.describe("door-human-v0")
    data = d4rl.load(DOOR, name=card.id, max_episode_steps=card.max_episode_steps)
    returns = episode_returns(data).numpy()
    assert data.n_episodes == 25 and data.n_transitions == 6729
    assert returns.mean() == pytest.approx(795.66, abs=0.01)
    score = 100 * (returns.mean() - card.ref_min) / (card.ref_max - card.ref_min)
    assert score == pytest.approx(29.0, abs=0.05)
    lengths = np.bincount(data.episode.numpy()) - 1
    assert lengths.min() == 223 and lengths.max() == 300
    assert int(data.terminal.sum()) == 25


@needs_door
def test_the_naive_rule_would_give_fifty_bogus_episodes():
    raw = d4rl.read(DOOR, name="door")
    naive = raw.terminal | raw.timeout
    assert int(naive.sum()) == 50 and int(d4rl.boundaries(raw, None, name="door").end.sum()) == 25


@needs_door
def test_the_door_file_is_of_the_size_that_its_card_says():
    card = registry.describe("d4rl/door-human-v0")
    assert loading.read(card, DOOR).obs.shape[1] == card.obs_dim == 39


def test_a_time_out_is_never_a_terminal_and_the_last_episode_is_kept(tmp_path):
    write_d4rl(make([5, 6, 3]), tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["timeouts"][-1] = False  # the file stops in the middle of an episode
    data = d4rl.load(tmp_path / "a.hdf5", name="a")
    assert not data.terminal.any()
    assert same(data, from_episodes(make([5, 6, 3])))


def test_a_time_out_that_leads_to_the_next_row_ends_nothing(tmp_path):
    write_d4rl(make([8, 6]), tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["timeouts"][3] = True
    assert same(d4rl.load(tmp_path / "a.hdf5", name="a"), from_episodes(make([8, 6])))


def test_a_row_that_leads_elsewhere_ends_an_episode_without_a_mark(tmp_path):
    """The replay sets: a reset that nobody marked."""
    write_d4rl(make([8, 6]), tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["timeouts"][:] = False
    assert same(d4rl.load(tmp_path / "a.hdf5", name="a"), from_episodes(make([8, 6])))


def test_files_without_time_outs_are_cut_at_the_limit_since_the_last_end(tmp_path):
    write_d4rl(make([9]), tmp_path / "a.hdf5", skip=("timeouts", "next_observations"))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["terminals"][1] = True
    data = d4rl.load(tmp_path / "a.hdf5", name="a", max_episode_steps=3)
    assert (np.bincount(data.episode.numpy()) - 1).tolist() == [2, 2, 2]
    assert data.terminal.nonzero()[:, 0].tolist() == [1]
    whole = d4rl.load(tmp_path / "a.hdf5", name="a")
    assert (np.bincount(whole.episode.numpy()) - 1).tolist() == [2, 6]


def test_choices_become_one_hot_and_pictures_rows(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.random.default_rng(0).integers(0, 9, (6, 7, 7, 3))
        file["actions"] = np.array([0, 6, 1, 2, 3, 4])
        file["rewards"] = np.zeros((6, 1))
        file["terminals"] = np.eye(6)[5]
        file["timeouts"] = np.zeros(6)
    data = d4rl.load(tmp_path / "a.hdf5", name="a", n_actions=7)
    assert data.obs.shape == (7, 147) and data.action.shape == (7, 7)
    assert data.action[:-1].argmax(1).tolist() == [0, 6, 1, 2, 3, 4]


def test_a_column_of_rewards_is_read_and_float64_is_rounded_once(tmp_path):
    write_d4rl(make([4]), tmp_path / "a.hdf5", skip=("rewards",))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["rewards"] = np.full((4, 1), 0.1)
    assert (
        d4rl.load(tmp_path / "a.hdf5", name="a").reward[:4].tolist() == [float(np.float32(0.1))] * 4
    )


# --- the real package -----------------------------------------------------------------------

PYTHON = os.environ.get("OFFBENCH_D4RL_PYTHON", sys.executable)
_MASKED = (
    "import os, sys; os.environ['D4RL_SUPPRESS_IMPORT_ERROR'] = '1'; sys.modules['mujoco_py'] = None\n"
    "import d4rl, d4rl.infos, json, numpy as np\n"
)


def judge(code):
    """Output of code run where the real d4rl can be imported."""
    run = subprocess.run([PYTHON, "-c", _MASKED + code], capture_output=True, text=True)
    if "No module named 'd4rl'" in run.stderr:
        pytest.skip(
            "the real d4rl is not installed (pip install d4rl==1.1, or OFFBENCH_D4RL_PYTHON)"
        )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_references_are_those_of_the_real_package():
    found = json.loads(
        judge(
            "i = d4rl.infos\n"
            "print(json.dumps({k: (i.REF_MIN_SCORE[k], i.REF_MAX_SCORE[k], i.DATASET_URLS.get(k)) for k in i.REF_MIN_SCORE}))"
        )
    )
    checked = 0
    for name, (low, high, url) in found.items():
        if url and not name.startswith(("flow", "carla")):
            card = registry.describe(f"d4rl/{name}")
            assert (card.ref_min, card.ref_max) == (low, high), name
            assert card.urls == (url,), name
            checked += 1
    assert checked > 100


def test_transitions_are_those_of_the_real_qlearning_dataset(tmp_path):
    """Except that it drops its last row, and that what follows a terminal there is the next episode."""
    episodes = make([5, 7, 4, 6])
    for i in (1, 2):
        episodes[i].terminal[-1] = True
    path = tmp_path / "a.hdf5"
    write_d4rl(episodes, path, skip=("next_observations",))
    with h5py.File(path, "a") as file:
        file["timeouts"][:] &= ~file["terminals"][:]
    judge(
        "from d4rl.offline_env import OfflineEnv\n"
        "from types import SimpleNamespace\n"
        f"data = {{k: v[:] for k, v in __import__('h5py').File({str(path)!r}).items()}}\n"
        "env = SimpleNamespace(_max_episode_steps=1000)\n"
        "made = d4rl.qlearning_dataset(env, dataset=data)\n"
        f"np.savez({str(tmp_path / 'judge.npz')!r}, **made)\n"
    )
    theirs = np.load(tmp_path / "judge.npz")
    data = d4rl.load(path, name="a")
    row = data.valid.nonzero()[:, 0]
    n = len(theirs["rewards"])
    assert n == len(row)  # our unfinished last episode loses its last row as well
    np.testing.assert_array_equal(data.obs[row], theirs["observations"])
    np.testing.assert_array_equal(data.action[row], theirs["actions"])
    np.testing.assert_array_equal(data.reward[row], theirs["rewards"])
    np.testing.assert_array_equal(data.terminal[row], theirs["terminals"])
    inner = ~theirs["terminals"].astype(bool)
    np.testing.assert_array_equal(
        data.obs[row + 1][torch.from_numpy(inner)], theirs["next_observations"][inner]
    )


def test_the_package_s_loader_can_be_chosen(tmp_path):
    """In one process with it: the transitions are those of its qlearning_dataset, faults included."""
    episodes = make([5, 7, 4, 6])
    episodes[1].terminal[-1] = True
    write_d4rl(episodes, tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["timeouts"][:] &= ~file["terminals"][:]
    found = json.loads(
        judge(
            f"os.environ['OFFBENCH_DATA'] = {str(tmp_path)!r}\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "del sys.modules['mujoco_py']\n"
            "from pathlib import Path\n"
            "from offbench.tasks.custom import own_task\n"
            "from offbench.tasks.loading import load_data\n"
            "from offbench.tasks.locate import read_by\n"
            f"ours = own_task({str(tmp_path / 'a.hdf5')!r}, env='Hopper-v5', max_episode_steps=1000)\n"
            "task = read_by(ours, 'd4rl')\n"
            "data, _ = load_data(task); first, _ = load_data(ours)\n"
            "row = data.valid.nonzero()[:, 0]\n"
            "print(json.dumps([data.obs[row].tolist(), data.terminal[row].tolist(), data.obs[row + 1].tolist(), first.n_transitions, ours.sha256 != task.sha256 and task.dataset == 'own/a, read by d4rl']))\n"
        ).splitlines()[-1]
    )
    obs, terminal, after, ours, differs = found
    kept = [
        e.obs[i].tolist() for n, e in enumerate(episodes) for i in range(len(e.action) - (n != 1))
    ]
    # rows that time out are gone, the terminal one stays; so is the last row of the file
    assert obs == kept and len(obs) == ours - 3 and differs
    assert sum(terminal) == 1 and terminal[4 + 6]
    assert after[4 + 6] == episodes[2].obs[0].tolist()  # of the next episode; no target uses it


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    if importlib.util.find_spec("d4rl"):
        pytest.skip("d4rl is installed")
    with pytest.raises(UserError, match=r"loader=d4rl needs the d4rl package; .*offbench\[d4rl\]"):
        load_task("hopper-medium-v2", loader="d4rl")
    with pytest.raises(UserError, match="reads D4RL's files only"):
        load_task("mujoco/hopper/medium-v0", loader="d4rl")
    with pytest.raises(UserError, match="no actions that are choices"):
        load_task("minigrid-fourrooms-v0", loader="d4rl")
    with pytest.raises(UserError, match="needs the d4rl package"):  # for the parts of a composition
        plan(["method=bc", "task=mixed/hopper-random-medium-1-v2", "loader=d4rl"], bench=False)


def test_the_kitchen_goal_is_that_of_the_real_package():
    found = judge(
        "from pathlib import Path; import ast\n"
        "text = (Path(d4rl.__file__).parent / 'kitchen' / 'kitchen_envs.py').read_text()\n"
        "space = {'np': np}\n"
        "tree = ast.parse(text)\n"
        "keep = [n for n in tree.body if isinstance(n, ast.Assign)]\n"
        "exec(compile(ast.Module(keep, []), 'x', 'exec'), space)\n"
        "print(json.dumps({k: (int(space['OBS_ELEMENT_INDICES'][k][0]), space['OBS_ELEMENT_GOALS'][k].tolist()) for k in space['OBS_ELEMENT_GOALS']}))\n"
    )
    from offbench.tasks.environments import _KITCHEN

    theirs = json.loads(found)
    for task, (first, values) in _KITCHEN.items():
        assert theirs[task] == [first, list(values)], task


def test_the_mazes_are_those_of_the_real_package():
    found = json.loads(
        judge(
            "from pathlib import Path; import ast\n"
            "def names(path):\n"
            "    space = {'np': np, 'gym': None}\n"
            "    tree = ast.parse((Path(d4rl.__file__).parent / path).read_text())\n"
            "    keep = [n for n in tree.body if isinstance(n, ast.Assign)]\n"
            "    exec(compile(ast.Module(keep, []), 'x', 'exec'), space)\n"
            "    return space\n"
            "ant, point = names('locomotion/maze_env.py'), names('pointmaze/maze_model.py')\n"
            "cell = {1: '#', 0: '.', 'r': 'R', 'g': 'G'}\n"
            "print(json.dumps({**{k: [''.join(cell[c] for c in r) for r in ant[k + '_TEST']] for k in ('U_MAZE', 'BIG_MAZE', 'HARDEST_MAZE')},\n"
            "  **{'point ' + k: point[k].replace('O', '.').split(chr(92)) for k in ('OPEN', 'U_MAZE', 'MEDIUM_MAZE', 'LARGE_MAZE', 'U_MAZE_EVAL', 'MEDIUM_MAZE_EVAL', 'LARGE_MAZE_EVAL')}}))\n"
        )
    )
    from offbench.tasks.environments import ANTMAZE, MAZE2D

    ours = {
        "U_MAZE": ANTMAZE["umaze"],
        "BIG_MAZE": ANTMAZE["medium"],
        "HARDEST_MAZE": ANTMAZE["large"],
        "point OPEN": MAZE2D["open"],
        "point U_MAZE": MAZE2D["umaze"],
        "point MEDIUM_MAZE": MAZE2D["medium"],
        "point LARGE_MAZE": MAZE2D["large"],
        "point U_MAZE_EVAL": MAZE2D["eval-umaze"],
        "point MEDIUM_MAZE_EVAL": MAZE2D["eval-medium"],
        "point LARGE_MAZE_EVAL": MAZE2D["eval-large"],
    }
    assert {k: tuple(v) for k, v in found.items()} == ours
