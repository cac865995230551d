"""The `offbench data` commands, called as the command line calls them."""

import hashlib
import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
from support.commands import data_command as main
from support.paths import ROOT

from offbench.cli.data.load import replay_of
from offbench.cli.data.show import draw, histogram
from offbench.data.replay import Episode, fingerprint
from offbench.errors import UserError
from offbench.tasks import d4rl, doctor, registry
from offbench.tasks.doctor import Facts
from offbench.tasks.environments import make_env
from offbench.tasks.loading import load_data
from offbench.tasks.locate import load_task

HOPPER = "offbench/hopper/medium-replay-v0"
CHEETAH = "offbench/halfcheetah/expert5-v0"
REPLAY = "offbench/halfcheetah/medium-replay-v0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    return tmp_path / "cache"


def tiny(level=0.0, n=12):
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        ends = np.zeros(10, bool)
        ends[-1] = i % 2 == 0
        obs = np.cumsum(rng.normal(0, 1, (11, 3)), axis=0).astype(np.float32)
        reward = np.full(10, level + i, np.float32)
        made.append(Episode(obs, rng.uniform(-1, 1, (10, 2)).astype(np.float32), reward, ends))
    return made


def write_d4rl(path, made, **changes):
    timeouts = []
    for e in made:
        ends = np.zeros(len(e.action), bool)
        ends[-1] = not e.terminal[-1]
        timeouts.append(ends)
    columns = {
        "observations": np.concatenate([e.obs[:-1] for e in made]),
        "actions": np.concatenate([e.action for e in made]),
        "rewards": np.concatenate([e.reward for e in made]),
        "terminals": np.concatenate([e.terminal for e in made]),
        "timeouts": np.concatenate(timeouts),
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            file[name] = value
    return path


# --- list -----------------------------------------------------------------------------------


def test_the_list_names_every_kind_of_set(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (
        HOPPER,
        "ogbench/cube-single-play-v0",
        "offbench/pointmaze/umaze-v0",
        "mixed/ant-random-expert-5-v2",
    ):
        assert f"\n{name} " in f"\n{out}"
    assert main(["list", "cube-single"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
    with pytest.raises(UserError, match="no set matches"):
        main(["list", "zzz"])


@pytest.mark.parametrize("args", [["show"], ["check"], ["fetch"], ["pack", "-o", "{tmp}/a.tar"]])
def test_an_embedded_set_that_is_not_made_names_the_command_that_makes_it(
    args, tmp_path, monkeypatch
):
    name = "offbench/hopper/medium-v0"
    shutil.copy(ROOT / "datasets/offbench--hopper--medium-v0.yaml", tmp_path)
    monkeypatch.setenv("OFFBENCH_DATASETS", str(tmp_path))
    command, *rest = (word.format(tmp=tmp_path) for word in args)
    with pytest.raises(UserError, match=f"is missing; rebuild it with: offbench data make {name}$"):
        main([command, name, *rest])


def test_the_list_asks_the_catalog(capsys):
    main(["list", "d4rl/hopper-medium-v2"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("d4rl/")]
    assert line.split(maxsplit=1)[0] == "d4rl/hopper-medium-v2" and "Hopper-v4" in line


# --- show -----------------------------------------------------------------------------------


def test_a_card_is_shown_with_a_histogram_and_a_picture(capsys, tmp_path):
    assert main(["show", HOPPER, "--png", str(tmp_path / "png")]) == 0
    out = capsys.readouterr().out
    for words in (
        HOPPER,
        "50,092 in 549 episodes",
        "Hopper-v5",
        "observation 11, action 3",
        "0 at a return of 17.1327",
        "normalised mean return 6.4",
        "█",
    ):
        assert words in out
    (path,) = (tmp_path / "png").iterdir()
    assert path.suffix == ".png" and str(path) in out.replace("\n", "")
    from matplotlib.image import imread

    picture = imread(path)
    assert picture.shape == (600, 1050, 4)
    dark = (picture[..., :3].sum(-1) < 2.5).mean()
    assert 0.02 < dark < 0.5  # something is drawn


def test_the_card_of_a_set_that_cannot_be_had_is_shown_none_the_less(capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda s: None)
    with pytest.raises(UserError, match="put the file hopper_medium_expert"):
        main(["show", "hopper-medium-expert-v0"])
    out = " ".join(capsys.readouterr().out.split())
    for words in ("Hopper-v4", "100 at 3234.3", "not here", "Farama-Foundation/D4RL#19"):
        assert words in out
    with pytest.raises(UserError, match="unknown dataset"):
        main(["show", "hoper-medium-v2"])
    assert capsys.readouterr().out == ""


def test_success_sets_say_so_and_files_are_shown_too(capsys, tmp_path):
    main(["show", "offbench/cube-single-play-v0"])
    out = capsys.readouterr().out
    assert "share of successes" in out and "38.3% of the episodes succeed" in out
    path = write_d4rl(tmp_path / "mine.hdf5", tiny())
    main(["show", str(path)])
    # of 120 rows, the last of an episode that was cut leads nowhere
    assert "114 in 12 episodes" in capsys.readouterr().out


def test_a_histogram_counts_every_episode_once():
    values = np.concatenate([np.zeros(70), np.arange(1, 31)])
    lines = histogram(values)
    counts = [int(line.split()[-1]) for line in lines if any(c in line for c in "█▏▎▍▌▋▊▉")]
    assert sum(counts) == 100 and len(counts) == 16
    assert len(lines) == 16 and lines[0].count("█") == 60
    assert histogram(np.full(5, 2.0)) == [f"{2.0:>10.4g}  {'█' * 60}  5"]
    assert len(histogram(np.asarray([1.0, 2.0]))) == 4


def test_a_single_episode_can_be_drawn(tmp_path):
    path = draw(np.asarray([3.0]), Facts(id="a/b:c@d"), tmp_path)
    assert path.is_file() and ":" not in path.name


# --- check ----------------------------------------------------------------------------------


def test_a_clean_set_passes_and_its_report_is_kept(capsys, cache):
    assert main(["check", HOPPER]) == 0
    out = capsys.readouterr().out
    assert "50,092 transitions in 549 episodes" in out and "severe" not in out
    (path,) = (cache / "reports").iterdir()
    report = doctor.load(path)
    assert report.id == HOPPER and str(path) in out
    assert report.sha256 == load_task(HOPPER).sha256


def test_a_severe_defect_exits_1_and_is_named(capsys, tmp_path):
    path = write_d4rl(tmp_path / "zero.hdf5", tiny(), rewards=np.zeros(120, np.float32))
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "severe" in out and "rewards constant" in out and "every reward is zero" in out
    (stored,) = (tmp_path / "cache" / "reports").iterdir()
    assert json.loads(stored.read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_warning_alone_does_not_fail(capsys, tmp_path):
    path = write_d4rl(tmp_path / "early.hdf5", tiny())
    assert main(["check", str(path), "--limit", "50"]) == 0
    assert "warning" in (out := capsys.readouterr().out) and "timeout early" in out


def test_the_trained_on_form_of_a_composition_is_checked(capsys):
    assert main(["check", f"mix@50%@0:{CHEETAH}:{REPLAY}"]) == 0
    out = capsys.readouterr().out
    assert f"mix@0.5@0:{CHEETAH}:{REPLAY}: 60,000 transitions" in out
    assert "drawn with replacement" in " ".join(out.split())


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "data needs one of"),
        (["chekc", "x"], "did you mean 'check'"),
        (["check"], "arguments are required: ID"),
        (["check", "a", "b"], "unexpected argument 'b'; usage: offbench data check "),
        (["check", "offbench/hoper/medium-replay-v0"], f"did you mean '{HOPPER}'"),
        (["check", "--limit"], "--limit: expected one argument; usage: offbench data check "),
        (["check", "x", "--limit", "many"], "not a whole number"),
        (["show", HOPPER, "--svg", "x"], "unknown option '--svg': did you mean '--png'"),
        (["compose", HOPPER], "not a composition"),
        (["compose", f"mix@9@0:{HOPPER}:{HOPPER}"], "share between"),
        (["compose", f"mix@.5@0:{HOPPER}:{CHEETAH}"], "differ in dimensions"),
        (["compose", f"truncate@1M:{HOPPER}"], "only 50092 transitions"),
        (["make"], "arguments are required: ID; usage: offbench data make "),
        (["make", "cube-single-navigate-v0"], "unknown recipe"),
        (["make", "ogbench/cube-singel-play-v0"], "did you mean 'ogbench/cube-single-play-v0'"),
        (["make", HOPPER, "--steps", "10"], "no --steps"),
        (["make", "ogbench/cube-single-play-v0", "--steps=x"], "not a whole number"),
        (["make", "ogbench/pointmaze-medium-stitch-v0", "--steps=0"], "not a positive number"),
        (["fetch"], "arguments are required: ID; usage: offbench data fetch "),
        (
            ["fetch", "d4rl/hoper-medium-v2"],
            "unknown dataset 'd4rl/hoper-medium-v2': did you mean 'd4rl/hopper-m",
        ),
        (["fetch", "cube-quadruple-play-100m-v0"], "put its files into"),
        (
            ["show", "hopper/medium-v0"],
            "'minari/mujoco/hopper/medium-v0'. These are different data",
        ),
        (["pack", HOPPER], "arguments are required: -o/--out"),
        (["pack", "-o", "x.tar"], "arguments are required: ID"),
        (["pack", "nope", "-o", "x.tar"], "unknown dataset"),
        (["unpack"], "arguments are required: FILE"),
        (["unpack", "nope.tar"], "nope.tar is not there"),
    ],
)
def test_a_mistake_is_one_line(args, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        main(args)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.tar*"))


def test_a_file_by_its_path_is_no_part_of_a_composition(tmp_path):
    path = write_d4rl(tmp_path / "mine.hdf5", tiny())
    with pytest.raises(UserError, match="cannot be part of a composition"):
        replay_of(str(path))


def test_a_path_that_is_no_set_is_told(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.npz").write_bytes(b"\x80\x04")
    for name, words in (
        ("folder", "holds neither"),
        ("a.txt", "none of .hdf5"),
        ("a.npz", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            main(["check", str(tmp_path / name)])


# --- make -----------------------------------------------------------------------------------


@pytest.mark.env
def test_make_collects_a_published_set_where_it_is_labelled(capsys, cache, tmp_path):
    pytest.importorskip("ogbench")
    name = "ogbench/pointmaze-medium-stitch-v0"
    assert main(["make", name, "--steps", "1k", "--seed", "3"]) == 0
    path = cache / "regenerated" / "ogbench" / "pointmaze-medium-stitch-v0.npz"
    assert str(path) in capsys.readouterr().out and path.is_file()
    assert main(["make", name, "--steps=1000", "--seed=3", "-o", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    capsys.readouterr()
    assert main(["check", str(path)]) == 0
    # a line is wrapped where the path ends
    assert "1,000 transitions in 5 episodes" in " ".join(capsys.readouterr().out.split())


# --- fetch, pack, unpack ----------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A catalogue whose one D4RL file is served here."""
    path = write_d4rl(tmp_path / "www" / "tiny-v0.hdf5", tiny())
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path / "www"))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    row = dict(next(iter(d4rl.rows().values())), dataset_id="tiny-v0", domain="gym_bullet")
    row["dataset_url"] = f"http://127.0.0.1:{server.server_address[1]}/tiny-v0.hdf5"
    monkeypatch.setattr(d4rl, "rows", lambda: {"tiny-v0": row})
    monkeypatch.setattr(registry, "ids", lambda: ("d4rl/tiny-v0",))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield path
    server.shutdown()
    server.server_close()


def test_a_set_is_fetched_packed_and_found_elsewhere(served, cache, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="offbench data fetch d4rl/tiny-v0"):
        main(["pack", "d4rl/tiny-v0", "-o", str(tmp_path / "x.tar")])
    assert main(["fetch", "tiny-v0"]) == 0  # by its short id
    path = cache / "d4rl" / "tiny-v0.hdf5"
    assert f"d4rl/tiny-v0: {path}" in capsys.readouterr().out and path.is_file()
    archive = tmp_path / "x.tar"
    assert main(["pack", f"truncate@20:{HOPPER}", "tiny-v0", "-o", str(archive)]) == 0
    assert "4 files" in capsys.readouterr().out
    monkeypatch.setenv("OFFBENCH_DATA", str(tmp_path / "elsewhere"))
    assert main(["unpack", str(archive)]) == 0
    assert (tmp_path / "elsewhere" / "d4rl" / "tiny-v0.hdf5").read_bytes() == path.read_bytes()
    assert f"OFFBENCH_DATASETS={tmp_path / 'elsewhere' / 'datasets'}" in capsys.readouterr().out
    monkeypatch.setenv("OFFBENCH_DATASETS", str(tmp_path / "elsewhere" / "datasets"))
    task = load_task(HOPPER)
    assert (
        task.path.is_relative_to(tmp_path / "elsewhere" / "datasets")
        and load_data(task)[0].n_episodes == 549
    )


def test_a_download_that_was_changed_since_is_told(served, cache):
    assert main(["fetch", "d4rl/tiny-v0"]) == 0
    (cache / "d4rl" / "tiny-v0.hdf5").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tiny-v0\.hdf5"):
        main(["fetch", "d4rl/tiny-v0"])


def test_what_another_package_has_downloaded_is_not_fetched_again(served, tmp_path, capsys, cache):
    theirs = write_d4rl(tmp_path / "home" / ".d4rl" / "datasets" / "tiny-v0.hdf5", tiny())
    assert main(["fetch", "d4rl/tiny-v0"]) == 0
    assert str(theirs) in capsys.readouterr().out and not cache.exists()


def test_embedded_sets_and_parts_of_mixtures_need_no_download(served, capsys):
    assert main(["fetch", HOPPER]) == 0
    assert main(["fetch", f"mix@.5@0:{HOPPER}:d4rl/tiny-v0"]) == 0
    assert "d4rl/tiny-v0.hdf5" in capsys.readouterr().out


def test_paths_can_be_packed(tmp_path, capsys):
    path = write_d4rl(tmp_path / "mine.hdf5", tiny())
    assert main(["pack", str(path), "-o", str(tmp_path / "x.tar")]) == 0
    assert main(["unpack", str(tmp_path / "x.tar"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "files" / "mine.hdf5").read_bytes() == path.read_bytes()


def test_a_catalogued_set_is_checked_with_its_known_defects(served, capsys, monkeypatch, cache):
    assert main(["check", "tiny-v0"]) == 0
    defect = doctor.Defect("d4rl/tiny-.*", "severe", "is no good", "someone/something#1")
    monkeypatch.setattr("offbench.tasks.doctor.defects.KNOWN_DEFECTS", (defect,))
    assert main(["check", "tiny-v0"]) == 1
    assert "someone/something#1" in " ".join(capsys.readouterr().out.split())
    assert main(["check", "truncate@50:tiny-v0"]) == 1  # a composition has the defects of its parts
    assert "someone/something#1" in " ".join(capsys.readouterr().out.split())
    # the report is that of exactly this file, so a run need not examine it again
    task = load_task("tiny-v0")
    assert doctor.load(doctor.report_path(task.id)).sha256 == task.sha256


def test_recorded_steps_are_repeated_where_asked(capsys):
    assert main(["check", HOPPER, "--env"]) == 0
    assert "300 recorded steps repeated: 100% agree" in " ".join(capsys.readouterr().out.split())
    assert main(["check", HOPPER]) == 0
    assert "repeated" not in capsys.readouterr().out


def test_data_of_another_size_than_the_environments_are_severe(capsys, tmp_path):
    draw = np.random.default_rng(0).uniform
    np.savez(
        tmp_path / "five.npz",
        observations=draw(-1, 1, (60, 5)).astype(np.float32),
        actions=draw(-1, 1, (60, 1)).astype(np.float32),
        rewards=draw(0, 1, 60),
        terminals=np.arange(60) % 20 == 19,
    )
    assert main(["check", str(tmp_path / "five.npz")]) == 0
    assert main(["check", str(tmp_path / "five.npz"), "--env", "InvertedPendulum-v5"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "severe environment" in out and "observations of 5 numbers" in out


def test_a_set_without_states_says_why_its_steps_cannot_be_repeated(capsys, tmp_path):
    assert main(["check", "offbench/cube-single-play-v0", "--env"]) == 0
    assert "holds no simulator states" in " ".join(capsys.readouterr().out.split())
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        for name, size in (("observations", 3), ("actions", 2)):
            file[name] = np.random.default_rng(0).uniform(-1, 1, (60, size)).astype(np.float32)
        file["rewards"], file["terminals"] = np.ones(60, np.float32), np.arange(60) % 20 == 19
    main(["check", str(tmp_path / "mine.hdf5"), "--env"])
    assert "a file names no environment; give one: --env" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cube-single-play-v0", "scene-play-v0", "antmaze-medium-navigate-v0"]
)
def test_steps_of_an_ogbench_file_are_repeated_from_its_states(name, cache, capsys):
    """A file as OGBench's own, with the states that its scripts keep."""

    env = make_env(registry.describe(name).env, {}, name)
    inner, rng = env.unwrapped, np.random.default_rng(0)
    rows = {
        k: [] for k in ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
    }
    for seed in range(3):
        np.random.seed(seed)  # noqa: NPY002 - OGBench draws from it
        obs, _ = env.reset(seed=seed, options={"task_id": 1})
        action = rng.uniform(-1, 1, env.action_space.shape)
        for t in range(40):
            action = 0.7 * action + 0.3 * rng.uniform(-1, 1, action.shape)
            values = (
                obs,
                action,
                t == 39,
                inner.data.qpos.copy(),
                inner.data.qvel.copy(),
                getattr(inner, "_cur_button_states", np.zeros(0)).copy(),
            )
            for column, value in zip(rows.values(), values):
                column.append(value)
            obs = env.step(action)[0]
    if not rows["button_states"][0].size:
        del rows["button_states"]
    path = cache / "ogbench" / f"{name}.npz"
    path.parent.mkdir(parents=True)
    np.savez(
        path, **{k: np.array(v, np.float32 if k != "terminals" else None) for k, v in rows.items()}
    )
    main(["check", name, "--env"])
    out = " ".join(capsys.readouterr().out.split())
    assert "117 recorded steps repeated" in out
    # with states in double precision all of them; the gripper's contact is that sensitive
    assert int(out.split("repeated: ")[1].split("%")[0]) >= (60 if "play" in name else 100)


# --- compose ----------------------------------------------------------------------------------


def test_a_composition_is_made_and_its_list_kept(capsys, cache):
    name = f"mix@5%@1:{CHEETAH}:{REPLAY}"
    assert main(["compose", name]) == 0
    out = capsys.readouterr().out
    (path,) = (cache / "composed").iterdir()
    content = json.loads(path.read_text())
    assert content["id"] == f"mix@0.05@1:{CHEETAH}:{REPLAY}" in out and str(path) in out
    assert content["sha256"] in out and content["base"] == CHEETAH
    from offbench.data import compose

    made = compose.build(name, lambda n: load_data(load_task(n))[0])
    assert fingerprint(made.data) == content["sha256"]
    assert content["index"] == made.index.tolist()


@pytest.mark.parametrize("name", ["absent.npz", "./absent.hdf5"])
def test_a_file_that_is_not_there_is_said_to_be_absent_and_not_an_unknown_set(name):
    with pytest.raises(UserError, match=f"^{re.escape(name)} does not exist$"):
        main(["check", name])
