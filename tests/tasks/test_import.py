"""`offbench data import`: files in other libraries' layouts, written once in offbench's own."""

import os
import pickle
import re

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import data_command as main

from offbench.cli.app import main as cli
from offbench.data.replay import from_flat
from offbench.errors import UserError
from offbench.tasks.custom import own_task
from offbench.tasks.formats import arrays, foreign
from offbench.tasks.loading import load_data

N, LENGTH, PENDULUM = 600, 100, "InvertedPendulum-v5"
END = np.arange(N) % LENGTH == LENGTH - 1
TERMINAL = END & (np.arange(N) // LENGTH % 2 == 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def steps(scale: float = 3.0) -> dict[str, np.ndarray]:
    """Six episodes of 100 steps, three ended by the environment; actions of InvertedPendulum."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(N, 4)).astype(np.float32),
        "actions": rng.uniform(-scale, scale, (N, 1)).astype(np.float32),
        "rewards": rng.normal(size=N).astype(np.float32),
        "terminals": TERMINAL,
        "timeouts": END & ~TERMINAL,
    }


# --- files as the libraries write them -------------------------------------------------------


def write_csv(path, x):
    frame = {f"obs_{i}": x["observations"][:, i] for i in range(4)} | {"act": x["actions"][:, 0]}
    frame |= {"reward": x["rewards"], "terminated": x["terminals"], "truncated": x["timeouts"]}
    pd.DataFrame(frame).to_csv(path, index=False)


def write_parquet(path, x):
    columns = {
        "observation": pa.array(list(x["observations"])),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(x["actions"].ravel()), 1),
        "reward": x["rewards"],
        "terminated": x["terminals"],
        "truncated": x["timeouts"],
    }
    pq.write_table(pa.table(columns), path, row_group_size=130)


def write_d3rlpy_1(path, x):
    with h5py.File(path, "w") as file:
        for key in ("observations", "actions", "rewards"):
            file.create_dataset(key, data=x[key])
        file.create_dataset("terminals", data=x["terminals"].astype(np.float32))
        file.create_dataset("episode_terminals", data=END.astype(np.float32))
        file.create_dataset("discrete_action", data=x["actions"].dtype.kind == "i")
        file.create_dataset("create_mask", data=False)
        file.create_dataset("mask_size", data=1)
        file.create_dataset("version", data="1.0")
        file.flush()


def write_d3rlpy_2(path, x):
    with h5py.File(path, "w") as file:
        file.create_dataset("columns", data=["observations", "actions", "rewards", "terminated"])
        file.create_dataset("num_episodes", data=N // LENGTH)
        for i in range(N // LENGTH):
            rows = slice(i * LENGTH, (i + 1) * LENGTH)
            file.create_dataset(f"observations_{i}", data=x["observations"][rows])
            file.create_dataset(f"actions_{i}", data=x["actions"][rows].reshape(LENGTH, -1))
            file.create_dataset(f"rewards_{i}", data=x["rewards"][rows].reshape(-1, 1))
            file.create_dataset(f"terminated_{i}", data=bool(x["terminals"][rows].any()))
        file.create_dataset("version", data="2.1")


def write_robomimic(path, x, *, after: bool = True):
    """Demonstrations 0 to 5, of which `demo_10` would come before `demo_2` by name; dones where the task is
    done; two vectors and an image of each observation."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = N
        for i in range(N // LENGTH):
            rows = slice(i * LENGTH, (i + 1) * LENGTH)
            demo = data.create_group(f"demo_{i if i < 2 else i + 8}")
            obs = x["observations"][rows]
            following = np.concatenate([obs[1:], obs[-1:] + 1])
            for group, o in (("obs", obs), ("next_obs", following))[: 1 + after]:
                demo[f"{group}/robot0_eef_pos"] = o[:, 1:]
                demo[f"{group}/object"] = o[:, :1]
                demo[f"{group}/agentview_image"] = np.zeros((LENGTH, 2, 2, 3), np.uint8)
            demo["actions"], demo["rewards"] = x["actions"][rows], x["rewards"][rows]
            demo["dones"] = x["terminals"][rows].astype(np.int64)
            demo["states"] = np.zeros((LENGTH, 9))


def write_lerobot(path, x):
    """A folder as of formats v2.1 and v3.0, in two files."""
    for part, rows in enumerate((slice(0, 300), slice(300, N))):
        frame = {
            "observation.state": pa.FixedSizeListArray.from_arrays(
                pa.array(x["observations"][rows].ravel()), 4
            ),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(x["actions"][rows].ravel()), 1),
            "timestamp": np.arange(300, dtype=np.float32),
            "frame_index": np.arange(300) % LENGTH,
            "episode_index": np.arange(N)[rows] // LENGTH,
            "index": np.arange(N)[rows],
            "task_index": np.zeros(300, np.int64),
            "next.reward": x["rewards"][rows],
            "next.done": x["terminals"][rows],
        }
        file = path / f"data/chunk-000/file-{part:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(frame), file)


def write_npz(path, x):
    np.savez(path, **{f"my_{k}": v for k, v in x.items()})


def write_hdf5(path, x):
    with h5py.File(path, "w") as file:
        for key, v in x.items():
            file[f"buffer/my_{key}"] = v


OWN = "observations=my_observations,actions=my_actions,rewards=my_rewards,terminals=my_terminals,timeouts=my_timeouts"
FILES = {
    "csv": (write_csv, "a.csv", "csv", ["--map", "actions=act"]),
    "parquet": (write_parquet, "a.parquet", "parquet", []),
    "lerobot": (write_lerobot, "lerobot", "parquet", []),
    "d3rlpy-1": (write_d3rlpy_1, "a.h5", "d3rlpy", []),
    "d3rlpy-2": (write_d3rlpy_2, "a.h5", "d3rlpy", []),
    "robomimic": (
        write_robomimic,
        "a.hdf5",
        "robomimic",
        ["--map", "observations=obs/object+obs/robot0_eef_pos"],
    ),
    "npz": (write_npz, "a.npz", "npz", ["--map", OWN]),
    "hdf5": (write_hdf5, "a.hdf5", "hdf5", ["--map", OWN.replace("=my", "=buffer/my")]),
}


def truth(x, *, after=None, scale=3.0):
    action = np.asarray(2 * (x["actions"].astype(np.float64) + scale) / (2 * scale) - 1, np.float32)
    return from_flat(x["observations"], action, x["rewards"], x["terminals"], END, next_obs=after)


@pytest.mark.parametrize("dest", ["out.npz", "out.hdf5"])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_imported_is_what_was_recorded(kind, dest, tmp_path, capsys):
    """Bit for bit in float32, actions as they are played."""
    write, name, format, more = FILES[kind]
    source, out, x = tmp_path / name, tmp_path / dest, steps()
    write(source, x)
    assert main(["import", str(source), "--to", str(out), "--env", PENDULUM, *more]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{source}: read as {format} " in said
    assert "6 episodes of 100 steps; ended by" in said and " 3" in said.split("ended by")[1]
    assert "in the bounds of InvertedPendulum-v5, -3 to 3" in said
    data, _ = load_data(own_task(out, env=PENDULUM))
    after = None
    if kind == "robomimic":
        after = np.concatenate([x["observations"][1:], x["observations"][:1]])
        after[END] = x["observations"][END] + 1
    expected = truth(x, after=after)
    assert all((a == b).all() for a, b in zip(data, expected))
    with np.load(out) if dest == "out.npz" else h5py.File(out) as file:
        rows = np.ones(N, bool) if after is not None else ~END | TERMINAL
        assert (
            file["actions"].dtype == np.float32
            and (file["actions"][()] == x["actions"][rows]).all()
        )
    # what offbench has written it can write again
    again = tmp_path / f"again-{dest}"
    assert main(["import", str(out), "--to", str(again)]) == 0
    more, _ = load_data(own_task(again, env=PENDULUM))
    assert all((a == b).all() for a, b in zip(data, more))


@pytest.mark.parametrize("kind", ["csv", "d3rlpy-1", "d3rlpy-2", "parquet"])
def test_choices_stay_whole_numbers(kind, tmp_path):
    write, name, _, more = FILES[kind]
    x = steps()
    x["actions"] = np.random.default_rng(1).integers(0, 2, (N, 1))
    write(tmp_path / name, x)
    for env in ([], ["--env", "CartPole-v1"]):
        out = tmp_path / "out.npz"
        assert (
            main(["import", str(tmp_path / name), "--to", str(out), "--overwrite", *more, *env])
            == 0
        )
        with np.load(out) as file:
            assert file["actions"].dtype == np.int64
            assert (file["actions"] == x["actions"].ravel()[~END | TERMINAL]).all()
        data, spec = load_data(own_task(out, env="CartPole-v1"))
        assert spec.discrete and data.n_episodes == 6


def test_whole_numbers_of_a_continuous_action_are_numbers(tmp_path):
    x = steps()
    x["actions"] = np.random.default_rng(1).integers(-3, 4, (N, 1))
    write_csv(tmp_path / "a.csv", x)
    out = tmp_path / "out.npz"
    main(
        [
            "import",
            str(tmp_path / "a.csv"),
            "--to",
            str(out),
            "--env",
            PENDULUM,
            "--map",
            "actions=act",
        ]
    )
    data, spec = load_data(own_task(out, env=PENDULUM))
    assert not spec.discrete and all((a == b).all() for a, b in zip(data, truth(x)))


def test_actions_recorded_in_minus_one_to_one_are_written_as_they_are_played(tmp_path):
    x = steps(scale=1.0)
    write_csv(tmp_path / "a.csv", x)
    out, more = tmp_path / "out.npz", ["--actions", "unit", "--map", "actions=act"]
    args = ["import", str(tmp_path / "a.csv"), "--to", str(out), *more]
    with pytest.raises(
        UserError, match="--actions unit is written in the bounds of an environment"
    ):
        main(args)
    assert main([*args, "--env", PENDULUM]) == 0
    with np.load(out) as file:
        np.testing.assert_allclose(file["actions"], 3 * x["actions"][~END | TERMINAL], rtol=1e-6)
    data, _ = load_data(own_task(out, env=PENDULUM))
    expected = from_flat(x["observations"], x["actions"], x["rewards"], TERMINAL, END)
    np.testing.assert_allclose(data.action, expected.action, atol=1e-6)


def test_actions_that_the_environment_does_not_take_are_refused(tmp_path):
    write_csv(tmp_path / "a.csv", steps(scale=4.0))
    args = [
        "import",
        str(tmp_path / "a.csv"),
        "--to",
        str(tmp_path / "o.npz"),
        "--map",
        "actions=act",
    ]
    with pytest.raises(UserError, match=r"outside the environment's bounds \[-3, 3\]"):
        main([*args, "--env", PENDULUM])
    with pytest.raises(UserError, match=r"outside \[-1, 1\]"):
        main([*args, "--env", PENDULUM, "--actions", "unit"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


def test_the_vectors_of_a_robomimic_file_go_side_by_side_by_name(tmp_path, capsys):
    x = steps(scale=1.0)
    write_robomimic(tmp_path / "a.hdf5", x)
    assert main(["import", str(tmp_path / "a.hdf5"), "--to", str(tmp_path / "o.npz")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "observations obs/object+obs/robot0_eef_pos (4)" in said
    assert "not read states, obs/agentview_image, next_obs/agentview_image" in said
    write_robomimic(tmp_path / "b.hdf5", x, after=False)
    picked = ["--map", "observations=obs/robot0_eef_pos,terminals=dones"]
    assert main(["import", str(tmp_path / "b.hdf5"), "--to", str(tmp_path / "p.npz"), *picked]) == 0
    assert "observations obs/robot0_eef_pos (3)" in " ".join(capsys.readouterr().out.split())
    data = arrays.load(tmp_path / "p.npz", name="p")
    assert data.obs.shape[1] == 3 and data.n_transitions == N - 3


# --- the ending, the header, the names -------------------------------------------------------


def test_a_word_among_the_numbers_of_a_csv_is_named_with_its_row(tmp_path):
    write_csv(tmp_path / "a.csv", steps())
    frame = pd.read_csv(tmp_path / "a.csv", dtype=str)
    frame.loc[3, "reward"] = "oops"
    frame.rename(columns={"act": "action"}).to_csv(tmp_path / "a.csv", index=False)
    words = r"column 'reward' holds text, not numbers \(row 3: 'oops'\)"
    with pytest.raises(UserError, match=words):
        main(["import", str(tmp_path / "a.csv"), "--to", str(tmp_path / "o.npz")])
    assert not (tmp_path / "o.npz").exists()


def test_a_csv_without_a_header_is_refused_with_how_to_name_its_columns(tmp_path):
    x = steps()
    rows = np.c_[x["observations"], x["actions"], x["rewards"], x["terminals"], x["timeouts"]]
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",")
    args = ["import", str(tmp_path / "a.csv"), "--to", str(tmp_path / "o.npz")]
    with pytest.raises(UserError, match=r"has no header .* name its 8 columns: --columns obs_0"):
        main(args)
    with pytest.raises(UserError, match="has 8 columns, 2 names"):
        main([*args, "--columns", "obs,action"])
    names = "obs_0,obs_1,obs_2,obs_3,action_0,reward,terminated,truncated"
    assert main([*args, "--columns", names]) == 0
    data, _ = load_data(own_task(tmp_path / "o.npz", env=PENDULUM))
    assert all((a == b).all() for a, b in zip(data, truth(x)))
    # numpy writes a header behind a #
    np.savetxt(tmp_path / "b.csv", rows, delimiter=",", header=names)
    assert main(["import", str(tmp_path / "b.csv"), "--to", str(tmp_path / "b.npz")]) == 0
    assert all(
        (a == b).all()
        for a, b in zip(data, load_data(own_task(tmp_path / "b.npz", env=PENDULUM))[0])
    )


def test_episodes_of_a_table_may_be_named_in_words(tmp_path):
    x = steps()
    frame = {
        "obs": x["observations"][:, 0],
        "action": x["actions"][:, 0] / 3,
        "reward": x["rewards"],
    }
    frame |= {"terminal": TERMINAL, "episode_id": [f"run-{i // LENGTH}" for i in range(N)]}
    pd.DataFrame(frame).to_csv(tmp_path / "a.csv", index=False)
    assert main(["import", str(tmp_path / "a.csv"), "--to", str(tmp_path / "o.npz")]) == 0
    assert arrays.load(tmp_path / "o.npz", name="o").n_episodes == 6


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--format", "parquet"], "a.csv is no parquet file"),
        (["--format", "rlds"], "np.savez"),
        (["--format", "cvs"], "unknown format 'cvs': did you mean 'csv'"),
        (["--map", "action=act"], "unknown column of --map 'action': did you mean 'actions'"),
        (["--map", "actions"], "written COLUMN=NAME"),
        (["--map", "actions=act,actions=obs"], "names actions twice"),
        (["--map", "actions=akt"], "there is no 'akt': did you mean 'act'"),
        ([], r"there is no 'actions' in a.csv \(found: 'act'"),
        (["--actions", "units"], "unknown --actions 'units'"),
        (["--limit", "0"], "at least 1 step"),
        (
            ["--map", "actions=act", "--env", "Hopper-v5"],
            "have 1 features, the environment takes 3",
        ),
        (["--overwrite=no"], "--overwrite: ignored explicit argument 'no'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(more, words, tmp_path):
    write_csv(tmp_path / "a.csv", steps())
    with pytest.raises(UserError, match=words) as error:
        main(["import", str(tmp_path / "a.csv"), "--to", str(tmp_path / "o.npz"), *more])
    assert "\n" not in str(error.value) or "rlds" in more
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


@pytest.mark.parametrize(
    ("write", "format", "words"),
    [
        (write_robomimic, "d3rlpy", "not in d3rlpy's layout; it looks like robomimic"),
        (write_d3rlpy_2, "robomimic", "not in robomimic's layout; it looks like d3rlpy"),
        (write_hdf5, "robomimic", "not in robomimic's layout; it looks like hdf5"),
    ],
)
def test_a_wrong_format_says_what_the_file_looks_like(write, format, words, tmp_path):
    write(tmp_path / "a.h5", steps())
    with pytest.raises(UserError, match=words):
        main(
            ["import", str(tmp_path / "a.h5"), "--to", str(tmp_path / "o.npz"), "--format", format]
        )


def test_a_file_that_is_there_is_replaced_only_on_request(tmp_path):
    write_parquet(tmp_path / "a.parquet", steps())
    out = tmp_path / "o.npz"
    out.write_bytes(b"mine")
    args = ["import", str(tmp_path / "a.parquet"), "--to", str(out)]
    with pytest.raises(UserError, match="is there already; --overwrite replaces it"):
        main(args)
    assert out.read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"written as .npz or .hdf5"):
        main([*args[:3], str(tmp_path / "o.csv")])
    # a refused import leaves what was there
    with pytest.raises(UserError, match="outside the environment's bounds"):
        main([*args, "--overwrite", "--env", "Pendulum-v1"])
    assert out.read_bytes() == b"mine"
    assert main([*args, "--overwrite"]) == 0
    assert load_data(own_task(out, env=PENDULUM))[0].n_episodes == 6


def test_an_interrupted_import_leaves_no_file(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", steps())

    def stop(file, **content):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["import", str(tmp_path / "a.parquet"), "--to", str(tmp_path / "o.npz")])
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


# --- pickles and tables given as they are ----------------------------------------------------


def paths(one="observation", n=2):
    rng = np.random.default_rng(0)
    keys = {
        "observation": (50, 11),
        "action": (50, 3),
        "reward": (50,),
        "next_observation": (50, 11),
    }
    plural, found = "s" if one == "observations" else "", []
    for _ in range(n):
        x = {k: rng.uniform(-1, 1, shape) for k, shape in keys.items()} | {"terminal": np.zeros(50)}
        x["next_observation"][:-1] = x["observation"][1:]
        found.append(
            {f"{k}{plural}": v for k, v in x.items()} | {"env_infos": {"success": np.zeros(50)}}
        )
    return found


CONVERT = re.compile(r"(?:^    .+\n?){3}", re.MULTILINE)


@pytest.mark.parametrize("one", ["observation", "observations"])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["expert.pkl", "expert.pickle", "expert", "expert.pt"])
def test_a_pickle_is_never_loaded_and_its_refusal_shows_how_to_convert_it(
    name, listed, one, tmp_path
):
    path, content = tmp_path / name, paths(one)
    if not listed:
        content = {k: v for k, v in content[0].items() if isinstance(v, np.ndarray)}
        content["timeouts"] = np.arange(50) == 49
    if name == "expert.pt":
        import torch

        tensors = lambda p: {
            k: torch.from_numpy(v) for k, v in p.items() if isinstance(v, np.ndarray)
        }
        torch.save([tensors(p) for p in content] if listed else tensors(content), path)
    else:
        path.write_bytes(pickle.dumps(content))
    for run in (
        lambda: main(["check", str(path)]),
        lambda: main(["import", str(path), "--to", str(tmp_path / "o.npz")]),
        lambda: main(["import", str(path), "--to", str(tmp_path / "o.npz"), "--format", "hdf5"]),
        lambda: own_task(path, env="Hopper-v5"),
    ):
        with pytest.raises(
            UserError, match=r"is a pickle, which can run any code .* never opened"
        ) as error:
            run()
    lines = CONVERT.search(str(error.value))[0]
    exec("\n".join(line.strip() for line in lines.splitlines()), {})
    data, _ = load_data(own_task(tmp_path / "expert.npz", env="Hopper-v5"))
    assert data.n_episodes == (2 if listed else 1) and data.obs.shape[1] == 11
    first = content[0] if listed else content
    assert (
        data.action[:50].numpy()
        == np.asarray(first["actions" if one.endswith("s") else "action"], np.float32)
    ).all()


def test_episodes_of_one_step_cannot_be_repeated_and_are_told_in_one_line(tmp_path, capsys):
    """Next observations that lead nowhere end an episode at every row."""
    rng = np.random.default_rng(0)
    x = {
        "obs": rng.normal(size=(50, 11)),
        "next_obs": rng.normal(size=(50, 11)),
        "reward": rng.random(50),
    }
    np.savez(tmp_path / "a.npz", **x, action=rng.uniform(-1, 1, (50, 3)), done=np.zeros(50))
    assert main(["check", str(tmp_path / "a.npz"), "--env", "Hopper-v5"]) in (0, 1)
    said = " ".join(capsys.readouterr().out.split())
    assert "50 episodes of 1 steps" in said and "no recorded step has a next row" in said


def test_a_link_is_not_followed_to_guess_a_format(tmp_path):
    write_robomimic(tmp_path / "a.h5", steps())
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "data")
    with pytest.raises(UserError, match="'data' is a link; links in data files are not followed"):
        main(["import", str(tmp_path / "b.h5"), "--to", str(tmp_path / "o.npz")])


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_that_does_something_is_never_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    for name in ("a.pkl", "a.npz", "a.h5", "a.parquet", "a.csv", "a"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        for args in (
            ["data", "check", str(tmp_path / name)],
            ["data", "import", str(tmp_path / name), "--to", str(tmp_path / "o.npz")],
            [
                "run",
                "method=bc",
                f"task.data={tmp_path / name}",
                "task.env=Hopper-v5",
                f"results={tmp_path}/r",
            ],
        ):
            assert cli(args) == 2
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet", "d3rlpy-2", "robomimic"])
def test_a_foreign_file_given_as_it_is_names_the_command(kind, tmp_path):
    write, name, _, more = FILES[kind]
    path = tmp_path / name
    write(path, steps(scale=1.0))
    for run in (
        lambda: main(["check", str(path)]),
        lambda: load_data(own_task(path, env=PENDULUM)),
    ):
        with pytest.raises(UserError, match="offbench data import ") as error:
            run()
    command = (
        str(error.value)
        .split("offbench data ")[1]
        .replace("a-offbench.npz", str(tmp_path / "o.npz"))
    )
    assert main([*command.split(), *more]) == 0
    assert arrays.load(tmp_path / "o.npz", name="o").n_episodes == 6


# --- anything under known names --------------------------------------------------------------

names = st.sampled_from(
    [
        "observations",
        "obs",
        "obs_0",
        "obs_1",
        "obs_2",
        "action",
        "actions",
        "actions_0",
        "reward",
        "rewards",
        "rewards_0",
        "observations_0",
        "terminals",
        "terminated",
        "terminated_0",
        "timeouts",
        "dones",
        "episode_id",
        "episode_index",
        "observation.state",
        "next.reward",
        "next.done",
        "num_episodes",
        "columns",
        "version",
        "discrete_action",
        "episode_terminals",
        "next_observations",
        "data/demo_0/obs/a",
        "data/demo_0/next_obs/a",
        "data/demo_0/actions",
        "data/demo_0/rewards",
        "data/demo_0/dones",
        "data/demo_1/actions",
        "data/demo_x",
        "data/demo_1/obs/a",
    ]
)
shapes = st.sampled_from([(), (0,), (6,), (6, 1), (6, 2), (2, 3), (6, 2, 2), (5,), (0, 2)])
kinds = st.sampled_from(["<f4", "<f8", "<i8", "?", "S3", "nan"])
content = st.dictionaries(names, st.tuples(shapes, kinds, st.integers(0, 3)), max_size=10)
WHOLE = {
    "csv": ["obs_0", "action", "reward", "terminated"],
    "parquet": ["observations", "actions", "rewards", "terminals"],
    "d3rlpy": ["num_episodes", "observations_0", "actions_0", "rewards_0", "terminated_0"],
    "robomimic": [f"data/demo_0/{k}" for k in ("obs/a", "actions", "rewards", "dones")],
    "npz": ["observations", "actions", "rewards", "terminals"],
    "hdf5": ["observations", "actions", "rewards", "terminals"],
}


def numbers(shape, kind, seed):
    x = np.random.default_rng(seed).uniform(-1.2, 1.9, shape)
    if kind == "nan":
        return np.where(x > 0, x, np.nan)
    return np.full(shape, b"abc") if kind == "S3" else x.astype(kind)


def write_anything(path, layout):
    """The arrays, as far as the format can hold them."""
    if path.suffix == ".npz":
        np.savez(path, **layout)
    elif path.suffix in (".csv", ".parquet"):
        rows = max((len(x) for x in layout.values() if x.ndim), default=0)
        columns = {k: list(np.resize(x, rows) if x.ndim != 2 else x) for k, x in layout.items()}
        if path.suffix == ".csv":
            flat = {k: np.resize(x, rows) if x.size else [] for k, x in layout.items()}
            pd.DataFrame({k: pd.Series(x) for k, x in flat.items()}).to_csv(path, index=False)
        else:
            short = {k: pa.array([None] * (rows - len(x)) + x) for k, x in columns.items()}
            pq.write_table(pa.table(short), path)
    else:
        with h5py.File(path, "w") as file:
            for key, x in layout.items():
                try:
                    file[key] = x
                except (OSError, ValueError, TypeError):
                    pass


@settings(deadline=None, max_examples=300)
@given(
    layout=content,
    base=st.booleans(),
    format=st.sampled_from(sorted(WHOLE)),
    cut=st.integers(0, 40),
)
def test_any_file_is_imported_or_refused_in_one_line(layout, base, format, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    made = {k: numbers(*v) for k, v in layout.items()}
    if base:
        made = {k: numbers((6, 1), "<f4", 1) for k in WHOLE[format]} | made
        made |= {k: np.zeros(6, bool) for k in WHOLE[format] if "termin" in k or "dones" in k}
        if format == "d3rlpy":
            made["num_episodes"] = np.array(1 + cut % 2)
    suffix = {"csv": ".csv", "parquet": ".parquet", "npz": ".npz"}.get(format, ".h5")
    path, out = folder / f"x{suffix}", folder / "o.npz"
    write_anything(path, made)
    if cut < 6:  # damaged
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * cut // 6])
    for more in ([], ["--format", format], ["--limit", "3"]):
        try:
            assert main(["import", str(path), "--to", str(out), *more]) == 0
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            assert not out.exists()
        else:
            assert main(["check", str(out)]) in (0, 1)
            out.unlink()
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_the_base_of_the_property_can_be_imported(tmp_path, capsys):
    """So that the property above sees successes, of every format."""
    for format, keys in WHOLE.items():
        made = {k: numbers((6, 1), "<f4", 1) for k in keys}
        made |= {k: np.zeros(6, bool) for k in keys if "termin" in k or "dones" in k}
        made |= {"num_episodes": np.array(1)} if format == "d3rlpy" else {}
        suffix = {"csv": ".csv", "parquet": ".parquet", "npz": ".npz"}.get(format, ".h5")
        path = tmp_path / f"{format}{suffix}"
        write_anything(path, made)
        assert main(["import", str(path), "--to", str(tmp_path / f"{format}-o.npz")]) == 0, format
        assert foreign.guess(path, name="x") == format
