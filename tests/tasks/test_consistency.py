"""Recorded steps are repeated: where the simulator is the recorded one, and not where it is another."""

import dataclasses

import numpy as np
import pytest
from support.paths import SHARED

from offbench.errors import UserError
from offbench.tasks.consistency import one_step
from offbench.tasks.custom import own_task
from offbench.tasks.environments import evaluation_env
from offbench.tasks.locate import load_task

pytestmark = pytest.mark.env


@pytest.mark.parametrize(
    "name",
    ["hopper/medium-replay-v0", "halfcheetah/medium-replay-v0", "pointmaze-medium-navigate-v0"],
)
def test_an_environment_repeats_the_steps_recorded_in_it(name):
    found = one_step(load_task(f"offbench/{name}"), steps=100)
    assert found.agrees and found.share == 1 and found.median < 1e-4, found.words
    assert found.rewards in (1, None)


@pytest.mark.parametrize("name", ["hopper/medium-replay-v0", "halfcheetah/medium-replay-v0"])
def test_another_time_step_is_seen_in_the_steps(name, monkeypatch):
    task = load_task(f"offbench/{name}")

    def slower(task):
        env = evaluation_env(task)
        env.unwrapped.model.opt.timestep *= 1.1
        return env

    monkeypatch.setattr("offbench.tasks.consistency.evaluation_env", slower)
    found = one_step(task, steps=50)
    assert found.share < 0.1 and "0%" in found.words
    assert not found._replace(rewards=None).agrees


def test_the_real_door_set_is_repeated_with_d4rls_rules_only(tmp_path, monkeypatch):
    path = SHARED / "data" / "d4rl" / "door-human-v0.hdf5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path))
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "door-v0_demos_clipped.hdf5").symlink_to(path)
    task = load_task("door-human-v0")
    found = one_step(task, steps=100)
    assert found.share >= 0.97 and found.rewards >= 0.97, found.words
    plain = one_step(dataclasses.replace(task, adapter=None), steps=100)
    assert plain.share < 0.6 and plain.rewards < 0.5, plain.words


def test_data_without_an_environment_are_told_to_name_one(tmp_path):
    ends = np.arange(20) == 19
    rows = {
        "observations": np.zeros((20, 3)),
        "actions": np.zeros((20, 2)),
        "rewards": np.zeros(20),
    }
    np.savez(tmp_path / "mine.npz", **rows, terminals=ends, timeouts=np.zeros(20, bool))
    with pytest.raises(UserError, match=r"own/mine: there is no environment; name one"):
        one_step(own_task(tmp_path / "mine.npz"))
