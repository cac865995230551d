"""Damaged and hostile files: each is one line of a UserError, nothing is unpickled or kept."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.layouts import make, write_d4rl, write_minari, write_ogbench

from offbench.errors import UserError
from offbench.tasks.formats import arrays, d4rl, minari, ogbench

KINDS = {}


def kind(words):
    """Registers a function (folder) -> (loader, path) with the words its error must hold."""

    def add(function):
        KINDS[function.__name__] = (function, words)
        return function

    return add


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))


class Trap:
    """Leaves a file behind where anybody unpickles it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


# --- HDF5 in D4RL layout --------------------------------------------------------------------


def h5(folder, **changes):
    """A D4RL file with arrays replaced, or left out where None."""
    path = folder / "a.hdf5"
    write_d4rl(make([30, 40]), path)
    with h5py.File(path, "a") as file:
        for key, x in changes.items():
            del file[key]
            if x is not None:
                file[key] = x
    return d4rl.load, path


@kind("cannot be read as HDF5")
def truncated(folder):
    _, path = h5(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return d4rl.load, path


@kind("cannot be read as HDF5")
def no_hdf5(folder):
    (folder / "a.hdf5").write_bytes(b"hello" * 1000)
    return d4rl.load, folder / "a.hdf5"


@kind("cannot be read as HDF5")
def an_error_page(folder):
    (folder / "a.hdf5").write_text("<html><title>404 Not Found</title></html>")
    return d4rl.load, folder / "a.hdf5"


@kind("is empty")
def nothing(folder):
    (folder / "a.hdf5").touch()
    return d4rl.load, folder / "a.hdf5"


@kind("No such file")
def missing(folder):
    return d4rl.load, folder / "a.hdf5"


@kind("is a folder")
def a_folder(folder):
    (folder / "a.hdf5").mkdir()
    return d4rl.load, folder / "a.hdf5"


@kind("not a plain file")
def a_pipe(folder):
    os.mkfifo(folder / "a.hdf5")
    return d4rl.load, folder / "a.hdf5"


@kind("cannot be read")
def a_link_in_a_circle(folder):
    (folder / "a.hdf5").symlink_to(folder / "a.hdf5")
    return d4rl.load, folder / "a.hdf5"


@kind("there is no 'observations'")
def wrong_keys(folder):
    with h5py.File(folder / "a.hdf5", "w") as file:
        file["o"] = np.zeros((3, 2))
    return d4rl.load, folder / "a.hdf5"


@kind("there is no 'terminals'")
def a_key_short(folder):
    return h5(folder, terminals=None)


@kind("arrays differ in length")
def lengths(folder):
    return h5(folder, actions=np.zeros((69, 2)))


@kind("arrays differ in length: .* 0 rewards")
def a_scalar(folder):
    return h5(folder, rewards=1.0)


@kind("no episodes")
def zero_rows(folder):
    with h5py.File(folder / "a.hdf5", "w") as file:
        for key in ("observations", "actions"):
            file[key] = np.zeros((0, 2))
        for key in ("rewards", "terminals", "timeouts"):
            file[key] = np.zeros(0)
    return d4rl.load, folder / "a.hdf5"


@kind("not finite .* step 3")
def nan_observation(folder):
    x = np.zeros((70, 3))
    x[3] = np.nan
    return h5(folder, observations=x, next_observations=None)


@kind("reward is not finite")
def infinite_reward(folder):
    return h5(folder, rewards=np.full(70, np.inf))


@kind("outside \\[-1, 1\\]")
def large_actions(folder):
    return h5(folder, actions=np.full((70, 2), 3.0))


@kind("holds text or objects, not numbers")
def text(folder):
    return h5(folder, rewards=np.array([b"1.0"] * 70).astype("S3").astype(object))


@kind("holds text, not numbers")
def fixed_text(folder):
    return h5(folder, rewards=np.array([b"1.0"] * 70, "S3"))


@kind("holds records")
def records(folder):
    return h5(folder, rewards=np.zeros(70, [("a", "f4"), ("b", "f4")]))


@kind("not numbers")
def complex_numbers(folder):
    return h5(folder, observations=np.zeros((70, 3), complex))


@kind("not numbers")
def references(folder):
    path = h5(folder)[1]
    with h5py.File(path, "a") as file:
        reference = file["rewards"].ref
        del file["rewards"]
        file.create_dataset("rewards", (70,), h5py.ref_dtype)[:] = reference
    return d4rl.load, path


@kind("is a group")
def a_group_for_an_array(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    return d4rl.load, path


@kind("'rewards' is empty")
def an_empty_dataspace(folder):
    return h5(folder, rewards=h5py.Empty("f4"))


@kind("terminals must be 0 or 1")
def half_terminals(folder):
    return h5(folder, terminals=np.full(70, 0.5))


@kind("must be one number a step")
def wide_rewards(folder):
    return h5(folder, rewards=np.zeros((70, 2)))


@kind("is a link")
def an_external_link(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["rewards"] = np.zeros(70)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
    return d4rl.load, path


@kind("is a link")
def a_soft_link(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.SoftLink("/timeouts")
    return d4rl.load, path


@kind("is a link")
def a_dangling_link(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.SoftLink("/nowhere")
    return d4rl.load, path


@kind("keeps its content in other files")
def a_virtual_dataset(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["x"] = np.zeros(70)
    layout = h5py.VirtualLayout((70,), "f8")
    layout[:] = h5py.VirtualSource(folder / "other.hdf5", "x", (70,))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("rewards", layout)
    return d4rl.load, path


@kind("keeps its content in other files")
def external_storage(folder):
    _, path = h5(folder, rewards=None)
    (folder / "secret").write_bytes(bytes(560))
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (70,), "f8", external=[(str(folder / "secret"), 0, 560)])
    return d4rl.load, path


@kind("declares .* the file holds")
def absurd_size(folder):
    _, path = h5(folder, observations=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", (10**12, 17), "f4", chunks=(1000, 17))
    return d4rl.load, path


@kind("declares .* the file holds")
def a_bomb_of_zeros(folder):
    _, path = h5(folder, observations=None)
    with h5py.File(path, "a") as file:
        x = file.create_dataset(
            "observations", (10**10, 1), "f4", chunks=(10**4, 1), compression="gzip"
        )
        x[:1] = 1
    return d4rl.load, path


@kind("never written")
def never_written(folder):
    _, path = h5(folder, rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (70,), "f4", chunks=(10,))
    return d4rl.load, path


@kind("cannot be read as HDF5")
def a_damaged_chunk(folder):
    _, path = h5(folder, observations=None)
    with h5py.File(path, "a") as file:
        x = np.random.default_rng(0).standard_normal((70, 3))
        made = file.create_dataset("observations", data=x, chunks=(70, 3), compression="gzip")
        at, size = made.id.get_chunk_info(0).byte_offset, made.id.get_chunk_info(0).size
    raw = bytearray(path.read_bytes())
    raw[at : at + size] = bytes(size)
    path.write_bytes(raw)
    return d4rl.load, path


# --- npz ------------------------------------------------------------------------------------


def npz(folder, **changes):
    path = folder / "a.npz"
    write_ogbench(make([30, 40]), path)
    with np.load(path) as file:
        column = {k: file[k] for k in file}
    for key, x in changes.items():
        del column[key]
        if x is not None:
            column[key] = x
    np.savez(path, **column)
    return ogbench.load, path


def raw_npz(folder, observations, name="observations.npy", **options):
    """An npz whose observations are the bytes given."""
    _, path = npz(folder, observations=None)
    with zipfile.ZipFile(path, "a", **options) as file:
        file.writestr(name, observations)
    return ogbench.load, path


def header(shape, descr="<f4", order=False):
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@kind("cannot be read as npz")
def truncated_npz(folder):
    _, path = npz(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return ogbench.load, path


@kind("cannot be read as npz")
def a_renamed_npz(folder):
    (folder / "a.npz").write_bytes(b"PK" + b"x" * 500)
    return ogbench.load, folder / "a.npz"


@kind("cannot be read as npz")
def a_pickle_for_an_npz(folder):
    (folder / "a.npz").write_bytes(pickle.dumps(Trap(folder / "trapped")))
    return ogbench.load, folder / "a.npz"


@kind("pickled objects, which are never loaded")
def an_object_array(folder):
    return npz(folder, observations=np.array([Trap(folder / "trapped")] * 72, object))


@kind("pickled objects")
def an_object_array_nobody_asks_for(folder):
    _, path = npz(folder)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(folder / "trapped")], object), allow_pickle=True)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("extra.npy", buffer.getvalue())
    return ogbench.load, path


@kind("cannot be read as npz")
def a_pickle_in_an_npz(folder):
    return raw_npz(folder, pickle.dumps(Trap(folder / "trapped")))


@kind("holds <U3, not numbers")
def text_in_npz(folder):
    return npz(folder, actions=np.full((72, 2), "1.0"))


@kind("not numbers")
def dates_in_npz(folder):
    return npz(folder, actions=np.zeros((72, 2), "M8[s]"))


@kind("there is no 'observations'")
def a_key_short_in_npz(folder):
    return npz(folder, observations=None)


@kind("arrays differ in length")
def lengths_in_npz(folder):
    return npz(folder, actions=np.zeros((3, 2)))


@kind("must be rows of numbers")
def flat_observations(folder):
    return npz(folder, observations=np.zeros(72))


@kind("must be 0 or 1")
def terminals_of_two(folder):
    return npz(folder, terminals=np.full(72, 2))


@kind("no transition")
def every_row_the_last(folder):
    return npz(folder, terminals=np.ones(72))


@kind("declares \\(1000000000000, 3\\)")
def absurd_shape(folder):
    return raw_npz(folder, header((10**12, 3)) + bytes(100))


@kind("declares \\(72, 3\\) .* the archive holds")
def too_few_bytes(folder):
    return raw_npz(folder, header((72, 3)) + bytes(100))


@kind("declares")
def negative_length(folder):
    return raw_npz(folder, header((-72, -3)) + bytes(72 * 3 * 4))


@kind("cannot be read as npz|declares")
def overflowing_shape(folder):
    return raw_npz(folder, header((2**62, 2**62)) + bytes(100))


@kind("cannot be read as npz")
def code_in_a_header(folder):
    text = b"{'descr': __import__('os').mkdir('trapped'), 'fortran_order': False, 'shape': (1,)}\n"
    return raw_npz(folder, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)


@kind("cannot be read as npz")
def a_format_of_the_future(folder):
    return raw_npz(folder, b"\x93NUMPY\x09\x00" + bytes(100))


@kind("declares .* bytes, the archive holds")
def a_zip_bomb(folder):
    """Two gigabytes of zeros in a megabyte, of which the directory says ten more."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(bytes(1 << 20)) + deflate.flush()
    _, path = raw_npz(folder, body)
    raw = path.read_bytes()
    entry = raw.rindex(b"observations.npy") - 46  # in the central directory
    raw = raw[: entry + 24] + struct.pack("<I", 2**31) + raw[entry + 28 :]
    path.write_bytes(raw)
    return ogbench.load, path


@kind("twice")
def a_name_twice(folder):
    _, path = npz(folder)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((72, 3)))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("observations.npy", buffer.getvalue())
    return ogbench.load, path


@kind("cannot be read as npz")
def a_wrong_checksum(folder):
    _, path = npz(folder)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\x93NUMPY") + 300
    raw[at : at + 8] = b"DAMAGED!"
    path.write_bytes(raw)
    return ogbench.load, path


@kind("there are no .npz files")
def an_empty_folder_of_parts(folder):
    (folder / "set").mkdir()
    return ogbench.load, folder / "set"


@kind("its parts differ in dimensions")
def parts_of_two_kinds(folder):
    (folder / "set").mkdir()
    for i, width in enumerate((3, 4)):
        np.savez(
            folder / "set" / f"{i}.npz",
            observations=np.zeros((5, width)),
            actions=np.zeros((5, 2)),
            terminals=np.eye(5)[4],
        )
    return ogbench.load, folder / "set"


# --- Minari ---------------------------------------------------------------------------------


def folder_of(folder, data_format="hdf5"):
    return write_minari(make([5, 6]), folder, data_format)


def meta(folder, **changes):
    path = folder_of(folder)
    file = path / "data" / "metadata.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return minari.load, path


def group(folder, change):
    path = folder_of(folder)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        change(file)
    return minari.load, path


@kind("cannot be read as json")
def no_json(folder):
    path = folder_of(folder)
    (path / "data" / "metadata.json").write_text("{" * 5000)
    return minari.load, path


@kind("must be a json object")
def a_list_of_metadata(folder):
    path = folder_of(folder)
    (path / "data" / "metadata.json").write_text("[]")
    return minari.load, path


@kind("No such file")
def no_metadata(folder):
    path = folder_of(folder)
    (path / "data" / "metadata.json").unlink()
    return minari.load, path


@kind("name no observation_space")
def no_space(folder):
    return meta(folder, observation_space=None)


@kind("of the kind MultiDiscrete, which is not supported")
def multi_discrete(folder):
    return meta(
        folder,
        observation_space={
            "type": "MultiDiscrete",
            "nvec": [3, 3],
            "dtype": "int64",
            "start": [0, 0],
        },
    )


@kind("is an image")
def jpeg(folder):
    return meta(
        folder,
        observation_space={
            "type": "Box",
            "dtype": "uint8",
            "shape": [8, 8, 3],
            "low": 0,
            "high": 255,
        },
    )


@kind("has \\d+ features|cannot be made")
def a_space_too_large(folder):
    return meta(folder, observation_space={"type": "Discrete", "n": 10**12, "start": 0})


@kind("no finite bounds")
def unbounded_actions(folder):
    return meta(
        folder,
        action_space={
            "type": "Box",
            "dtype": "float32",
            "shape": [2],
            "low": [-1, -1],
            "high": [1, float("inf")],
        },
    )


@kind("its space")
def another_space(folder):
    return meta(
        folder,
        observation_space={
            "type": "Box",
            "dtype": "float32",
            "shape": [4],
            "low": [-1] * 4,
            "high": [1] * 4,
        },
    )


@kind("say 7 episodes, 2 are there")
def episodes_lost(folder):
    return meta(folder, total_episodes=7)


@kind("the data format 'pickle'")
def another_format(folder):
    return meta(folder, data_format="pickle")


@kind("describe no environment")
def code_for_an_environment(folder):
    return meta(folder, env_spec=json.dumps({"id": "os:system", "entry_point": "os:system"}))


@kind("is a link")
def a_linked_episode(folder):
    def change(file):
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink("/etc/passwd", "x")

    return group(folder, change)


@kind("episodes are missing")
def a_hole(folder):
    return group(folder, lambda file: file.move("episode_1", "episode_5"))


@kind("is no number of an episode")
def an_episode_without_number(folder):
    return group(folder, lambda file: file.move("episode_1", "episode_one"))


@kind("there is no 'truncations'")
def a_column_short(folder):
    return group(folder, lambda file: file["episode_1"].pop("truncations"))


@kind("6 actions need 7 observations")
def no_last_observation(folder):
    def change(file):
        x = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = x

    return group(folder, change)


@kind("no episodes")
def no_episodes(folder):
    return group(folder, lambda file: [file.pop(k) for k in list(file)])


@kind("no episode ends")
def no_ends(folder):
    def change(file):
        for key in file:
            file[key]["truncations"][:] = False

    return group(folder, change)


@kind("cannot be read as Arrow")
def truncated_arrow(folder):
    path = folder_of(folder, "arrow")
    file = next((path / "data" / "1").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    return minari.load, path


@kind("0 arrow files")
def an_arrow_file_short(folder):
    path = folder_of(folder, "arrow")
    next((path / "data" / "1").glob("*.arrow")).unlink()
    return minari.load, path


@kind("episodes are missing")
def an_arrow_episode_short(folder):
    path = folder_of(folder, "arrow")
    shutil.rmtree(path / "data" / "0")
    return minari.load, path


@kind("missing values")
def arrow_nulls(folder):
    import pyarrow as pa

    path = folder_of(folder, "arrow")
    file = next((path / "data" / "1").glob("*.arrow"))
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    table = table.set_column(
        table.column_names.index("rewards"), "rewards", pa.array([None] * len(table), pa.float32())
    )
    with pa.ipc.new_file(str(file), table.schema) as sink:
        sink.write_table(table)
    return minari.load, path


# --- any path -------------------------------------------------------------------------------


@kind("neither `data`")
def a_folder_of_nothing(folder):
    (folder / "x").mkdir()
    return arrays.load, folder / "x"


@kind("is a pickle, .* never opened")
def another_ending(folder):
    (folder / "a.pkl").write_bytes(pickle.dumps(Trap(folder / "trapped")))
    return arrays.load, folder / "a.pkl"


@kind("is a pickle, .* never opened")
def a_torch_file(folder):
    import torch

    torch.save(torch.zeros(3), folder / "a.pt")
    return arrays.load, folder / "a.pt"


@kind("there is no 'observations'")
def own_layout_without_columns(folder):
    np.savez(folder / "a.npz", ends=np.zeros(3))
    return arrays.load, folder / "a.npz"


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_or_hostile_file_is_one_line(name, tmp_path):
    function, words = KINDS[name]
    loader, path = function(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        loader(path, name="mine")
    text = str(error.value)
    # under that of a pickle stand the lines that convert one
    shown = text.split("\n")[1:]
    assert not shown or ("is a pickle" in text and all(line.startswith("    ") for line in shown))
    assert "mine" in text and len(text) < 900
    assert not (tmp_path / "trapped").exists() and not Path("trapped").exists()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_there_are_more_than_forty_kinds():
    assert len(KINDS) > 40


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else_is_told(tmp_path):
    loader, path = h5(tmp_path)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        loader(path, name="mine")


def test_a_declared_terabyte_is_refused_before_any_of_it_is_allocated(tmp_path):
    """In a process that may not have more than two gigabytes."""
    absurd_size(tmp_path)
    absurd_shape(tmp_path)
    code = (
        "import resource; import torch; from pathlib import Path; from offbench.tasks.formats import arrays\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        f"for name in ('a.hdf5', 'a.npz'):\n"
        f"    try: arrays.load(Path({str(tmp_path)!r}) / name, name='mine')\n"
        "    except ValueError as error: print('declares' in str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]
