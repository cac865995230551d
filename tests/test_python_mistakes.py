"""Mistakes in calls of the public Python functions: one clear line, never a trace."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import offbench
from offbench import UserError
from offbench.methods.bc import BC

ROWS = pd.DataFrame(
    [
        {"entry": e, "task": t, "seed": s, "episode": i, "score": 10.0 * (e == "a") + i + 0.1 * s}
        for e in "ab"
        for t in ("hopper", "walker2d")
        for s in range(3)
        for i in range(3)
    ]
)
STEPS = {
    "observations": np.zeros((6, 3)),
    "actions": np.zeros((6, 2)),
    "rewards": np.zeros(6),
    "terminations": np.array([0, 0, 0, 0, 0, 1.0]),
    "truncations": np.zeros(6),
}


@pytest.fixture(scope="module")
def made():
    """A task, its data and a method that was trained for two updates, by name."""
    task = offbench.load_task("offbench/hopper/medium-replay-v0")
    data, spec = offbench.load_data(task)
    method, pipeline = BC(hidden=(8,)), offbench.make_pipeline(data, batch_size=8)
    *_, last = offbench.train(method, pipeline, spec, seeds=[0], n_updates=2)
    policy = offbench.make_policy(method, pipeline)
    return {
        "compare": {"rows": ROWS, "mine": "a", "rivals": ["b"]},
        "leaderboard": {
            "episodes": offbench.Store("nowhere").episodes(),
            "runs": offbench.Store("nowhere").runs(),
            "tasks": ["toy"],
        },
        "Store": {"root": "nowhere"},
        "load_task": {"task_id": "offbench/hopper/medium-replay-v0"},
        "load_data": {"task": task},
        "evaluation_env": {"task": task},
        "from_arrays": STEPS,
        "save_data": {"data": data, "path": "x.npz"},
        "make_pipeline": {"data": data},
        "train": {
            "method": method,
            "pipeline": pipeline,
            "spec": spec,
            "seeds": [0],
            "n_updates": 2,
        },
        "make_policy": {"method": method, "pipeline": pipeline},
        "evaluate": {
            "policy": policy,
            "state": last.state,
            "task": task,
            "seeds": [0],
            "episodes": 1,
        },
        "evaluate_policy": {"act": lambda obs: obs, "task": task, "entry": "e", "version": "1"},
        "env_seeds": {"task_id": "toy", "stream": "test", "n": 3},
        "load_policy": {"run": "0123"},
        "own_task": {"data": __file__},
    }


MISTAKES = {
    "compare": [
        {"difference": "5"},
        {"difference": None},
        {"difference": True},
        {"level": "0.95"},
        {"level": 2},
        {"rows": "rows.csv"},
        {"rows": ROWS.to_dict("records")},
        {"rows": None},
        {"runs": "x"},
        {"runs": pd.DataFrame()},
        {"tasks": 3},
        {"tasks": "hoper"},
        {"unscaled": 3},
        {"mine": "c"},
        {"rivals": []},
    ],
    "leaderboard": [
        {"episodes": None},
        {"runs": "x"},
        {"tasks": 3},
        {"level": "a"},
        {"level": 2},
        {"reps": 0},
        {"reps": "x"},
    ],
    "Store": [{"root": None}, {"root": 3}],
    "load_task": [{"task_id": None}, {"task_id": 3}, {"task_id": ["a"]}, {"task_id": Path("x")}],
    "load_data": [{"task": "offbench/hopper/medium-replay-v0"}, {"task": None}, {"defects": "no"}],
    "evaluation_env": [{"task": "offbench/hopper/medium-replay-v0"}, {"task": None}],
    "from_arrays": [
        {"actions": None},
        {"actions": np.zeros((6, 2, 2))},
        {"terminations": np.zeros(5)},
        {"observations": "x"},
    ],
    "save_data": [{"data": None}, {"path": None}, {"path": "x.foo"}],
    "make_pipeline": [
        {"data": None},
        {"view": "nstep"},
        {"weights": "aw"},
        {"weights": ["aw"]},
        {"transforms": 3},
        {"transforms": {"obs_norm": 3}},
        {"transforms": {"obs_norm": {"q": 1}}},
        {"batch_size": "8"},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"needs": 3},
    ],
    "train": [
        {"method": BC},
        {"method": "bc"},
        {"pipeline": None},
        {"spec": None},
        {"seeds": 3},
        {"seeds": ["a"]},
        {"seeds": [0.5]},
        {"seeds": []},
        {"seeds": "01"},
        {"n_updates": "2"},
        {"n_updates": None},
        {"stop_at": 3},
        {"stop_at": ["a"]},
        {"device": "nowhere"},
        {"device": "cuda:77"},
        {"values": 3},
        {"values": [{"lr": 1.0}] * 2},
    ],
    "make_policy": [{"method": BC}, {"method": None}, {"pipeline": None}, {"length": 3}],
    "evaluate": [
        {"policy": None},
        {"policy": BC()},
        {"state": None},
        {"state": 3},
        {"task": "offbench/hopper/medium-replay-v0"},
        {"seeds": []},
        {"seeds": 0},
        {"seeds": [0, 1]},
        {"seeds": ["a"]},
        {"episodes": 0},
        {"episodes": "1"},
        {"episodes": 1.5},
        {"n_envs": 0},
    ],
    "evaluate_policy": [{"entry": None}, {"version": 3}, {"version": ""}, {"results": None}],
    "env_seeds": [{"n": "3"}, {"n": -1}],
    "load_policy": [{"results": 3}],
    "own_task": [
        {"data": None},
        {"data": "nofile.hdf5"},
        {"env": 3},
        {"env_kwargs": 3},
        {"id": 3},
        {"max_episode_steps": "x"},
        {"n_actions": "x"},
        {"n_actions": -1},
        {"score": "x"},
        {"ref_min": "a"},
        {"goals": 3},
        {"goals": ("a",)},
    ],
}


@pytest.mark.parametrize(
    "name, wrong",
    [
        pytest.param(name, wrong, id=f"{name}-{i}-{'-'.join(wrong)}")
        for name, some in MISTAKES.items()
        for i, wrong in enumerate(some)
    ],
)
def test_a_mistake_is_one_line(name, wrong, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        found = getattr(offbench, name)(**(made[name] | wrong))
        # training begins when it is asked for its first stop
        assert name == "train" and list(found)
    said = str(error.value)
    assert said.isprintable() and len(said) < 1500
    assert not list(tmp_path.iterdir())


def test_one_name_stands_for_itself(made):
    alone = offbench.compare(**made["compare"], tasks="hopper")
    assert set(alone.table["task"]) == {"hopper"}
    assert offbench.make_pipeline(made["make_pipeline"]["data"], transforms="obs_norm").transforms


@pytest.mark.parametrize("wrong", [None, 3, lambda: 3, "x"])
def test_what_makes_no_module_is_refused(wrong):
    with pytest.raises(UserError, match=r"must be a torch\.nn\.Module|takes a function that makes"):
        offbench.from_module(wrong)


@pytest.mark.parametrize("wrong", [None, 3, "x"])
def test_what_is_no_class_is_refused(wrong):
    with pytest.raises(UserError, match="must be a PyTorch class"):
        offbench.Imperative(wrong)


def test_a_file_that_is_no_results_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for read in (offbench.Store.runs, offbench.Store.episodes, offbench.Store.records):
        with pytest.raises(UserError, match=r"cannot read .*file.runs: Not a directory"):
            read(offbench.Store(tmp_path / "file"))
